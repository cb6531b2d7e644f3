//! Hit ratio against size, drawn as SVG.
//!
//! One picture for each trace: sizes on a logarithmic axis, a line and a marker for each entrant, the
//! optimum in grey. Text and ground follow the reader's preference for light or dark; lines have colours
//! that are told apart on both and by people who see few of them, and dashes and markers as well.

use std::fmt::Write as _;

use ultra_perf_bench::{begin_picture, escape};

/// A line of a picture.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) style: Style,
    /// Sizes and hit ratios in percent, from the smallest size.
    pub(crate) points: Vec<(u64, f64)>,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Style {
    pub(crate) colour: &'static str,
    pub(crate) width: f64,
    /// As SVG has it; nothing for a solid line.
    pub(crate) dashes: &'static str,
    pub(crate) marker: Marker,
}

/// The shape at each point of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    Disc,
    Square,
    Diamond,
    Triangle,
    None,
}

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 336.0;

/// Draws a picture; `shares` names the sizes that get a mark on the axis.
pub(crate) fn svg(title: &str, shares: &[(u64, String)], lines: &[Line]) -> String {
    let sizes = || shares.iter().map(|(size, _)| *size);
    let (smallest, largest) = (sizes().min().unwrap_or(1), sizes().max().unwrap_or(1));
    let across = Across::new(smallest, largest);
    let hits = lines.iter().flat_map(|line| line.points.iter().map(|(_, hits)| *hits));
    let up = Up::new(hits);

    let named = format!("{title}: hit ratio against size");
    let mut out = begin_picture((WIDTH, HEIGHT), &named, LEFT, title);
    axes(&mut out, shares, &across, &up);
    // The broad ones first, so that they cover none of the others.
    let mut order: Vec<&Line> = lines.iter().collect();
    order.sort_by(|a, b| b.style.width.total_cmp(&a.style.width));
    for line in order {
        draw(&mut out, line, &across, &up);
    }
    for (row, line) in lines.iter().enumerate() {
        legend(&mut out, line, TOP + 8.0 + 22.0 * row as f64);
    }
    out += "</svg>\n";
    out
}

fn axes(out: &mut String, shares: &[(u64, String)], across: &Across, up: &Up) {
    for hits in up.ticks() {
        let y = up.at(hits);
        _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\
             <text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{hits}</text>",
            LEFT - 8.0,
            y + 4.0,
        );
    }
    for (size, share) in shares {
        let x = across.at(*size);
        _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\"/>\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
             font-size=\"10\">{}</text>",
            BOTTOM + 17.0,
            grouped(*size),
            BOTTOM + 31.0,
            escape(share),
        );
    }
    let middle = f64::midpoint(TOP, BOTTOM);
    _ = writeln!(
        out,
        "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\n\
         <text class=\"text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">capacity in entries, and as \
         a share of the distinct keys</text>\n\
         <text class=\"text\" x=\"16\" y=\"{middle:.1}\" text-anchor=\"middle\" \
         transform=\"rotate(-90 16 {middle:.1})\">hit ratio in percent</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 52.0,
    );
}

fn draw(out: &mut String, line: &Line, across: &Across, up: &Up) {
    let places: Vec<_> =
        line.points.iter().map(|(size, hits)| (across.at(*size), up.at(*hits))).collect();
    let mut path = String::new();
    for (x, y) in &places {
        _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
    }
    stroke(out, &path, line.style);
    for (x, y) in places {
        mark(out, line.style, x, y);
    }
}

fn legend(out: &mut String, line: &Line, y: f64) {
    let from = RIGHT + 18.0;
    stroke(out, &format!("M{from:.1} {y:.1}H{:.1}", from + 30.0), line.style);
    mark(out, line.style, from + 15.0, y);
    let (x, y) = (from + 38.0, y + 4.0);
    let name = escape(&line.name);
    _ = writeln!(out, "<text class=\"text\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
}

fn stroke(out: &mut String, path: &str, style: Style) {
    let Style { colour, width, dashes, .. } = style;
    let dashes = match dashes {
        "" => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    };
    _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dashes} \
         stroke-linejoin=\"round\"/>"
    );
}

fn mark(out: &mut String, style: Style, x: f64, y: f64) {
    let shape = match style.marker {
        Marker::None => return,
        Marker::Disc => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\""),
        Marker::Square => {
            format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\"", x - 3.0, y - 3.0)
        }
        Marker::Diamond => format!("<path d=\"M{x:.1} {:.1}l4 4l-4 4l-4-4z\"", y - 4.0),
        Marker::Triangle => format!("<path d=\"M{x:.1} {:.1}l3.8 6.8h-7.6z\"", y - 4.2),
    };
    _ = writeln!(out, "{shape} fill=\"{}\"/>", style.colour);
}

/// The logarithmic axis of sizes.
struct Across {
    from: f64,
    decades: f64,
}

impl Across {
    fn new(smallest: u64, largest: u64) -> Self {
        let from = (smallest.max(1) as f64).log10();
        Self { from, decades: ((largest.max(1) as f64).log10() - from).max(1e-9) }
    }

    fn at(&self, size: u64) -> f64 {
        let margin = 24.0;
        let share = ((size.max(1) as f64).log10() - self.from) / self.decades;
        LEFT + margin + share * (RIGHT - LEFT - 2.0 * margin)
    }
}

/// The axis of hit ratios: as much of it as the lines need, in steps that read well.
struct Up {
    from: u32,
    to: u32,
    step: u32,
}

impl Up {
    fn new(hits: impl Iterator<Item = f64> + Clone) -> Self {
        let lowest = hits.clone().fold(100.0, f64::min).clamp(0.0, 100.0);
        let highest = hits.fold(0.0, f64::max).clamp(lowest, 100.0);
        let step =
            [1, 2, 5, 10, 20].into_iter().find(|step| highest - lowest <= f64::from(8 * step));
        let step = step.unwrap_or(20);
        let from = (lowest / f64::from(step)).floor() as u32 * step;
        let to = ((highest / f64::from(step)).ceil() as u32 * step).max(from + step);
        Self { from, to, step }
    }

    fn ticks(&self) -> impl Iterator<Item = u32> {
        (self.from..=self.to).step_by(self.step as usize)
    }

    fn at(&self, hits: impl Into<f64>) -> f64 {
        let share = (hits.into() - f64::from(self.from)) / f64::from(self.to - self.from);
        BOTTOM - share * (BOTTOM - TOP)
    }
}

/// A number with its thousands set apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_of_hits_covers_the_lines_in_even_steps() {
        for (hits, expected) in [
            (vec![0.0, 0.0], (0, 1, 1)),
            (vec![91.7, 93.2], (91, 94, 1)),
            (vec![33.3, 60.0], (30, 60, 5)),
            (vec![0.2, 99.9], (0, 100, 20)),
            (vec![100.0], (100, 101, 1)),
        ] {
            let up = Up::new(hits.iter().copied());
            assert_eq!((up.from, up.to, up.step), expected, "{hits:?}");
            assert!(hits.iter().all(|hits| (TOP..=BOTTOM).contains(&up.at(*hits))), "{hits:?}");
        }
    }

    #[test]
    fn each_tenfold_size_is_as_far_from_the_last() {
        let across = Across::new(10, 1_000);
        let steps = [10, 100, 1_000].map(|size| across.at(size));
        assert!((steps[1] - steps[0] - (steps[2] - steps[1])).abs() < 1e-9);
        assert!(steps[0] > LEFT && steps[2] < RIGHT);
    }

    #[test]
    fn a_picture_names_its_lines_and_sizes_and_closes_what_it_opens() {
        let style = Style { colour: "#07b", width: 2.0, dashes: "4 3", marker: Marker::Diamond };
        let line = Line { name: "a<b".into(), style, points: vec![(10, 5.0), (1_000, 50.0)] };
        let shares = [(10, "1 %".to_owned()), (1_000, "100 %".to_owned())];
        let svg = svg("t & u", &shares, &[line]);
        for part in ["t &amp; u", "a&lt;b", ">1,000<", ">100 %<", "stroke-dasharray=\"4 3\""] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([7, 1_000, 1_234_567].map(grouped), ["7", "1,000", "1,234,567"]);
    }
}
