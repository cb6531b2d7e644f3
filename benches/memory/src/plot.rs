//! Memory against time, drawn as SVG.
//!
//! Text and ground follow the reader's preference for light or dark. Curves have colours that people
//! who see few of them can tell apart, and dashes as well.

use std::fmt::Write as _;

use ultra_perf_bench::begin_picture;

/// One curve.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) colour: &'static str,
    /// As SVG has it; nothing for a solid line.
    pub(crate) dashes: &'static str,
    /// Seconds and MiB.
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 610.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 320.0;

/// Draws the curves over whole seconds, from the first to the last of them.
pub(crate) fn svg(title: &str, curves: &[Curve]) -> String {
    let seconds = || curves.iter().flat_map(|it| it.points.iter().map(|(at, _)| *at));
    let (from, to) = (seconds().fold(0.0, f64::min), seconds().fold(1.0, f64::max));
    let most = curves.iter().flat_map(|it| it.points.iter().map(|(_, mib)| *mib));
    let most = (most.fold(1.0, f64::max) / 200.0).ceil() * 200.0;
    let across = |at: f64| LEFT + (at - from) / (to - from) * (RIGHT - LEFT);
    let up = |mib: f64| BOTTOM - mib / most * (BOTTOM - TOP);
    let mut out = begin_picture((WIDTH, HEIGHT), title, LEFT, title);
    for step in 0..=(most / 200.0) as u32 {
        let mib = f64::from(step) * 200.0;
        let y = up(mib);
        _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mib}</text>",
            LEFT - 8.0,
            y + 4.0,
        );
    }
    for second in from.ceil() as i32..=to.floor() as i32 {
        let x = across(f64::from(second));
        _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\"/>\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second}</text>",
            BOTTOM + 17.0,
        );
    }
    let (middle, centre) = (f64::midpoint(TOP, BOTTOM), f64::midpoint(LEFT, RIGHT));
    _ = writeln!(
        out,
        "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\n\
         <text class=\"text\" x=\"{centre:.1}\" y=\"{:.1}\" text-anchor=\"middle\">seconds since the \
         last free</text>\n\
         <text class=\"text\" x=\"16\" y=\"{middle:.1}\" text-anchor=\"middle\" \
         transform=\"rotate(-90 16 {middle:.1})\">resident MiB</text>",
        BOTTOM + 40.0,
    );
    for (row, curve) in curves.iter().enumerate() {
        let mut path = String::new();
        for (at, mib) in &curve.points {
            let letter = if path.is_empty() { 'M' } else { 'L' };
            _ = write!(path, "{letter}{:.1} {:.1}", across(*at), up(*mib));
        }
        let y = TOP + 10.0 + 22.0 * row as f64;
        let from = RIGHT + 18.0;
        for path in [path, format!("M{from:.1} {y:.1}H{:.1}", from + 30.0)] {
            _ = writeln!(
                out,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" \
                 stroke-dasharray=\"{}\" stroke-linejoin=\"round\"/>",
                curve.colour,
                if curve.dashes.is_empty() { "none" } else { curve.dashes },
            );
        }
        let (x, y, name) = (from + 38.0, y + 4.0, &curve.name);
        _ = writeln!(out, "<text class=\"text\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
    }
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_its_curves_and_closes_what_it_opens() {
        let points = vec![(-1.0, 0.0), (0.0, 1_130.0), (4.0, 20.0)];
        let curve = Curve { name: "glibc alone".into(), colour: "#07b", dashes: "5 4", points };
        let svg = svg("memory", &[curve]);
        for part in ["glibc alone", ">1200<", ">-1<", ">4<", "stroke-dasharray=\"5 4\""] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }
}
