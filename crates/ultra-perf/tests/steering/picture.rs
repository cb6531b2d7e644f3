//! The picture of a story, drawn when the test runs with `UPDATE=1`: one panel under the other.

use std::fs;
use std::path::Path;

use ultra_perf_bench::{Line, Panel, Scale, begin_picture};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/steering");
const WIDTH: f64 = 900.0;
const SIDES: (f64, f64) = (70.0, 660.0);
const PANEL: f64 = 170.0;
const TOP: f64 = 66.0;
const GAP: f64 = 62.0;

/// Points of a line, of two columns.
pub(crate) fn line(index: usize, name: &str, x: &[f64], y: &[f64]) -> Line {
    Line::new(index, name, x.iter().copied().zip(y.iter().copied()).collect())
}

/// Draws a story if it is asked for; `across` names the horizontal axis, and `shaded` is a stretch of it.
pub(crate) fn draw(
    name: &str,
    heading: &str,
    across: &str,
    shaded: Option<(f64, f64)>,
    panels: &[(&str, Vec<Line>)],
) {
    if std::env::var_os("UPDATE").is_none() {
        return;
    }
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let mut out = begin_picture((WIDTH, height), heading, 16.0, heading);
    let points = panels.iter().flat_map(|(_, lines)| lines).flat_map(|line| &line.points);
    let across_max = points.map(|point| point.0).fold(1.0, f64::max);
    for (at, (title, lines)) in panels.iter().enumerate() {
        let top = TOP + at as f64 * (PANEL + GAP);
        let scale = Scale::linear(lines);
        let heights = (top, top + PANEL);
        let panel = Panel { title, sides: SIDES, heights, scale: &scale, lines, across_max };
        if let Some((from, to)) = shaded {
            panel.shade(&mut out, from, to);
        }
        panel.draw(&mut out);
        panel.draw_across(&mut out, across);
    }
    out += "</svg>\n";
    fs::create_dir_all(FOLDER).expect("the folder can be made");
    fs::write(Path::new(FOLDER).join(name), out).expect("the picture can be written");
}
