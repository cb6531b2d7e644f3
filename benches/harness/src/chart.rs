//! Lines over time, drawn as SVG: the panels of a picture, their axes and their legends.
//!
//! Lines have colours that are told apart on light and dark grounds and by people who see few of them
//! (after Okabe and Ito), and dashes as well. [`begin_picture`](crate::begin_picture) begins the picture
//! and has the classes that are used here.

use std::fmt::Write as _;

use crate::page::escape;

const COLOURS: [&str; 6] = ["#0a7bc4", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES: [&str; 6] = ["", "", "7 4", "2 3", "9 3 2 3", "4 2"];

/// A line: its name, its colour and dashes, and its points from left to right.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What the legend says; what follows the first `, ` stands on a second row.
    pub name: String,
    /// An SVG colour.
    pub colour: &'static str,
    /// An SVG pattern of dashes; empty for a whole line.
    pub dashes: &'static str,
    /// The points, each as across and up.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// Makes the `index`-th line of a panel, with the colour and dashes of that place.
    pub fn new(index: usize, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let (colour, dashes) = (COLOURS[index % COLOURS.len()], DASHES[index % DASHES.len()]);
        Self { name: name.into(), colour, dashes, points }
    }
}

/// One panel of a picture: a title, an axis to the left, lines, and a legend to the right.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// The left and right edge.
    pub sides: (f64, f64),
    /// The top and bottom edge.
    pub heights: (f64, f64),
    /// The vertical axis.
    pub scale: &'a Scale,
    /// What is drawn; the first row of the legend is the first line.
    pub lines: &'a [Line],
    /// The value at the right edge of the horizontal axis, which begins at zero.
    pub across_max: f64,
}

impl Panel<'_> {
    /// Where a value of the horizontal axis lies.
    pub fn across(&self, value: f64) -> f64 {
        let (left, right) = self.sides;
        left + value / self.across_max * (right - left)
    }

    /// Shades a stretch of the horizontal axis over the whole height.
    pub fn shade(&self, out: &mut String, from: f64, to: f64) {
        let ((top, bottom), x) = (self.heights, self.across(from));
        _ = writeln!(
            out,
            "<rect fill=\"#888\" fill-opacity=\".12\" x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" \
             height=\"{:.1}\"/>",
            self.across(to) - x,
            bottom - top,
        );
    }

    /// Draws the panel.
    pub fn draw(&self, out: &mut String) {
        let ((left, right), (top, bottom)) = (self.sides, self.heights);
        let up = |value: f64| bottom - self.scale.share(value) * (bottom - top);
        let title = escape(self.title);
        _ = writeln!(
            out,
            "<text class=\"text\" x=\"{left}\" y=\"{:.1}\">{title}</text>",
            top - 12.0
        );
        for (value, label) in &self.scale.ticks {
            let y = up(*value);
            _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 8.0,
                y + 4.0,
            );
        }
        _ = writeln!(
            out,
            "<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>"
        );
        for (row, line) in self.lines.iter().enumerate() {
            let mut path = String::new();
            // A stretch in which nothing was measured has no place on a logarithmic axis.
            for (x, y) in line.points.iter().filter(|(_, y)| *y > 0.0 || !self.scale.logarithmic) {
                let step = if path.is_empty() { 'M' } else { 'L' };
                _ = write!(path, "{step}{:.1} {:.1}", self.across(*x), up(*y));
            }
            stroke(out, &path, line);
            let (x, y) = (right + 14.0, top + 10.0 + 34.0 * row as f64);
            stroke(out, &format!("M{x:.1} {y:.1}H{:.1}", x + 26.0), line);
            for (index, words) in line.name.splitn(2, ", ").enumerate() {
                let (x, y) = (x + 34.0, y + 4.0 + 14.0 * index as f64);
                let words = escape(words);
                _ = writeln!(out, "<text class=\"text\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>");
            }
        }
    }

    /// Draws the marks of the horizontal axis and its name below the panel.
    pub fn draw_across(&self, out: &mut String, name: &str) {
        let bottom = self.heights.1;
        for tick in ticks(self.across_max) {
            let x = self.across(tick);
            _ = writeln!(
                out,
                "<text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
                bottom + 18.0,
            );
        }
        _ = writeln!(
            out,
            "<text class=\"text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(self.sides.0, self.sides.1),
            bottom + 40.0,
            escape(name),
        );
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
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Whole powers of ten around the values above zero.
    pub fn decades(lines: &[Line]) -> Self {
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
    pub fn linear(lines: &[Line]) -> Self {
        let values = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let most = values.fold(1.0, f64::max);
        let steps = ticks(most);
        let step = steps.get(1).copied().unwrap_or(most);
        let to = (most / step).ceil() * step;
        let last = steps.last().copied().filter(|last| *last < to).map(|_| to);
        let ticks = steps.into_iter().chain(last).map(|tick| (tick, format!("{tick}")));
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
    // Whole millionths, so that three times 0.2 reads as 0.6.
    (0..=(most / step) as u32).map(|i| (f64::from(i) * step * 1e6).round() / 1e6).collect()
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
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    }

    #[test]
    fn an_axis_of_decades_covers_its_values() {
        let line = Line::new(0, "", vec![(0.0, 0.7), (1.0, 18_000.0), (2.0, 0.0)]);
        let scale = Scale::decades(&[line]);
        assert_eq!((scale.from, scale.to), (0.1, 100_000.0));
        assert_eq!((scale.share(0.1), scale.share(100_000.0)), (0.0, 1.0));
    }

    #[test]
    fn a_panel_draws_its_lines_and_leaves_out_what_has_no_place() {
        let lines = [Line::new(0, "a<b, two rows", vec![(0.0, 1.0), (5.0, 0.0), (10.0, 100.0)])];
        let scale = Scale::decades(&lines);
        let panel = Panel {
            title: "p99",
            sides: (50.0, 150.0),
            heights: (0.0, 100.0),
            scale: &scale,
            lines: &lines,
            across_max: 10.0,
        };
        let mut out = String::new();
        panel.shade(&mut out, 2.0, 4.0);
        panel.draw(&mut out);
        panel.draw_across(&mut out, "seconds");
        for part in
            ["M50.0 100.0L150.0 0.0\"", ">a&lt;b</text>", ">two rows</text>", "x=\"70.0\" y=\"0\""]
        {
            assert!(out.contains(part), "{part} in {out}");
        }
        assert_eq!(out.matches("<text").count(), out.matches("</text>").count());
    }
}
