//! The overload over time, drawn as SVG: answers on top, what was done and shed below.

use std::fmt::Write as _;
use std::time::Duration;

use ultra_perf_bench::{Line, Panel, Scale, begin_picture, escape};

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

/// Draws the runs, which have the same phases.
pub(crate) fn svg(runs: &[Run], provenance: &str) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let total = first.phases.total();
    let step = total / POINTS;
    let windows = || (0..POINTS).map(move |i| (step * i, step * (i + 1)));
    let middle = |from: Duration| (from + step / 2).as_secs_f64();
    let line = |index: usize, name: String, read: &dyn Fn(Duration, Duration) -> f64| {
        let points = windows().map(|(from, to)| (middle(from), read(from, to))).collect();
        Line::new(index, name, points)
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
    let begin = first.phases.alone.as_secs_f64();
    let end = begin + first.phases.overload.as_secs_f64();
    let upper = Panel {
        title: "p99 of answers to important tasks, ms",
        sides: (LEFT, RIGHT),
        heights: UPPER,
        scale: &Scale::decades(&answers),
        lines: &answers,
        across_max: total.as_secs_f64(),
    };
    let scale = Scale::linear(&rates);
    let lower =
        Panel { title: "tasks per second", heights: LOWER, scale: &scale, lines: &rates, ..upper };
    for panel in [upper, lower] {
        panel.shade(&mut out, begin, end);
        panel.draw(&mut out);
    }
    lower.draw_across(&mut out, "seconds");
    out += "</svg>\n";
    out
}
