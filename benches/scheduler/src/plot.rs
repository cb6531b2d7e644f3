//! The overload over time, drawn as SVG: answers on top, what was done and shed below.
//!
//! Text and ground follow the reader's preference for light or dark. Lines have colours that are told
//! apart on both and by people who see few of them (after Okabe and Ito), and dashes as well.

use std::fmt::Write as _;
use std::time::Duration;

use ultra_perf_bench::{begin_picture, escape};

use crate::overload::Run;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
/// Top and bottom of the upper and of the lower panel.
const UPPER: (f64, f64) = (64.0, 270.0);
const LOWER: (f64, f64) = (320.0, 500.0);
/// Points of a line.
const POINTS: u32 = 60;

const COLOURS: [&str; 4] = ["#0a7bc4", "#009e73", "#d55e00", "#cc79a7"];
const DASHES: [&str; 4] = ["", "", "7 4", "2 3"];

/// A line: its name, its colour and dashes, and its points.
struct Line {
    name: String,
    colour: &'static str,
    dashes: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws the runs, which have the same phases.
pub(crate) fn svg(runs: &[Run], provenance: &str) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let total = first.phases.total();
    let step = total / POINTS;
    let windows = || (0..POINTS).map(move |i| (step * i, step * (i + 1)));
    let middle = |from: Duration| (from + step / 2).as_secs_f64();
    let line = |index: usize, name: String, read: &dyn Fn(Duration, Duration) -> f64| Line {
        name,
        colour: COLOURS[index % 4],
        dashes: DASHES[index % 4],
        points: windows().map(|(from, to)| (middle(from), read(from, to))).collect(),
    };
    let answers: Vec<Line> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| line(index, run.name.to_owned(), &|a, b| run.high_p99(a, b)))
        .collect();
    let mut rates: Vec<Line> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| {
            line(index, format!("done, {}", run.name), &|a, b| run.done_per_second(a, b))
        })
        .collect();
    rates.push(Line {
        dashes: "2 3",
        ..line(0, format!("shed, {}", first.name), &|a, b| first.shed_per_second(a, b))
    });

    let mut out = begin_picture(
        (WIDTH, HEIGHT),
        "An overload of three times the capacity",
        LEFT,
        "Three times the capacity is offered in the shaded time",
    );
    _ = writeln!(out, "<desc>{}</desc>", escape(provenance.trim()));
    let across = |seconds: f64| LEFT + seconds / total.as_secs_f64() * (RIGHT - LEFT);
    let begin = first.phases.alone.as_secs_f64();
    let end = begin + first.phases.overload.as_secs_f64();
    for (top, bottom) in [UPPER, LOWER] {
        _ = writeln!(
            out,
            "<rect fill=\"#888\" fill-opacity=\".12\" x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            across(begin),
            across(end) - across(begin),
            bottom - top,
        );
    }
    panel(
        &mut out,
        UPPER,
        "p99 of answers to important tasks, ms",
        &Scale::decades(&answers),
        &answers,
        &across,
    );
    panel(&mut out, LOWER, "tasks per second", &Scale::linear(&rates), &rates, &across);
    for tick in ticks(total.as_secs_f64()) {
        let x = across(tick);
        _ = writeln!(
            out,
            "<text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            LOWER.1 + 18.0,
        );
    }
    _ = writeln!(
        out,
        "<text class=\"text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">seconds</text>\n</svg>",
        f64::midpoint(LEFT, RIGHT),
        LOWER.1 + 40.0,
    );
    out
}

fn panel(
    out: &mut String,
    (top, bottom): (f64, f64),
    title: &str,
    scale: &Scale,
    lines: &[Line],
    across: &dyn Fn(f64) -> f64,
) {
    let up = |value: f64| bottom - scale.share(value) * (bottom - top);
    _ = writeln!(out, "<text class=\"text\" x=\"{LEFT}\" y=\"{:.1}\">{title}</text>", top - 12.0);
    for (value, label) in &scale.ticks {
        let y = up(*value);
        _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            y + 4.0,
        );
    }
    _ = writeln!(out, "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {top}V{bottom}H{RIGHT}\"/>");
    for (row, line) in lines.iter().enumerate() {
        let mut path = String::new();
        // A stretch in which nothing was answered has no percentile.
        for (x, y) in line.points.iter().filter(|(_, y)| *y > 0.0 || !scale.logarithmic) {
            _ = write!(
                path,
                "{}{:.1} {:.1}",
                if path.is_empty() { 'M' } else { 'L' },
                across(*x),
                up(*y)
            );
        }
        stroke(out, &path, line);
        let (x, y) = (RIGHT + 14.0, top + 10.0 + 34.0 * row as f64);
        stroke(out, &format!("M{x:.1} {y:.1}H{:.1}", x + 26.0), line);
        let mut words = line.name.splitn(2, ", ");
        for (index, word) in words.by_ref().enumerate() {
            let y = y + 4.0 + 14.0 * index as f64;
            _ = writeln!(
                out,
                "<text class=\"text\" x=\"{:.1}\" y=\"{y:.1}\">{word}</text>",
                x + 34.0
            );
        }
    }
}

fn stroke(out: &mut String, path: &str, line: &Line) {
    let dashes = match line.dashes {
        "" => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    };
    _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{dashes} \
         stroke-linejoin=\"round\"/>",
        line.colour,
    );
}

/// A vertical axis.
struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Whole powers of ten around the values above zero.
    fn decades(lines: &[Line]) -> Self {
        let values = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min).clamp(1e-3, 1e6);
        let most = values.iter().copied().fold(least, f64::max).clamp(1e-3, 1e6);
        let from = least.log10().floor() as i32;
        let to = (most.log10().ceil() as i32).max(from + 1);
        let ticks =
            (from..=to).map(|power| (10_f64.powi(power), format!("{}", 10_f64.powi(power))));
        Self {
            from: 10_f64.powi(from),
            to: 10_f64.powi(to),
            logarithmic: true,
            ticks: ticks.collect(),
        }
    }

    /// From zero to the largest value, in about five steps.
    fn linear(lines: &[Line]) -> Self {
        let values = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let most = values.fold(1.0, f64::max);
        let steps = ticks(most);
        let step = steps.get(1).copied().unwrap_or(most);
        let to = (most / step).ceil() * step;
        let ticks = steps.into_iter().chain([to]).map(|tick| (tick, format!("{tick}")));
        Self { from: 0.0, to, logarithmic: false, ticks: ticks.collect() }
    }

    fn share(&self, value: f64) -> f64 {
        let place = |value: f64| if self.logarithmic { value.log10() } else { value };
        let share = (place(value) - place(self.from)) / (place(self.to) - place(self.from));
        share.clamp(0.0, 1.0)
    }
}

/// Even steps from zero up to `most`, four to eight of them.
fn ticks(most: f64) -> Vec<f64> {
    let power = 10_f64.powf(most.max(1e-9).log10().floor());
    let step =
        [0.1, 0.2, 0.5, 1.0].map(|part| part * power).into_iter().find(|step| most / step <= 8.0);
    let step = step.unwrap_or(2.0 * power);
    (0..=(most / step) as u32).map(|i| f64::from(i) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_even_and_few() {
        for most in [1.0, 2.5, 9.9, 50.0, 2_031.0, 6_000.0] {
            let ticks = ticks(most);
            assert!((3..=10).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(ticks[0] == 0.0 && *ticks.last().expect("some") <= most);
        }
    }

    #[test]
    fn an_axis_of_decades_covers_its_values() {
        let points = vec![(0.0, 0.7), (1.0, 18_000.0), (2.0, 0.0)];
        let line = Line { name: String::new(), colour: "", dashes: "", points };
        let scale = Scale::decades(&[line]);
        assert_eq!((scale.from, scale.to), (0.1, 100_000.0));
        assert_eq!((scale.share(0.1), scale.share(100_000.0)), (0.0, 1.0));
    }
}
