//! Stacks as a flame graph (Brendan Gregg, "The Flame Graph", CACM 2016): a box for each function, as
//! wide as its share of the samples, on top of its caller.
//!
//! Boxes stand in the order of their names, so that two pictures of one program can be compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1_200.0;
const ROW: usize = 17;
/// Boxes narrower than this, in pixels, are left out: nobody could see them.
const NARROWEST: f64 = 0.2;
/// The width of a character, in pixels.
const CHARACTER: f64 = 7.0;
/// Frames of a stack that are drawn.
const DEPTH_MAX: usize = 256;

/// A function in one place of the tree, with those that it called.
#[derive(Default)]
struct Node<'a> {
    samples: u64,
    called: BTreeMap<&'a str, Node<'a>>,
}

impl Node<'_> {
    /// How many rows it and what it called take, as far as they are drawn.
    fn rows(&self, least: u64) -> usize {
        let drawn = self.called.values().filter(|node| node.samples >= least);
        1 + drawn.map(|node| node.rows(least)).max().unwrap_or(0)
    }
}

/// Draws stacks, the outermost function first, with the samples that were taken of each.
pub(super) fn svg(stacks: &[(Vec<String>, u64)], hertz: u32) -> String {
    let mut root = Node::default();
    for (stack, samples) in stacks {
        root.samples += samples;
        let mut node = &mut root;
        for name in stack.iter().take(DEPTH_MAX) {
            node = node.called.entry(name.as_str()).or_default();
            node.samples += samples;
        }
    }
    let total = root.samples.max(1);
    let least = ((NARROWEST / WIDTH) * total as f64).ceil() as u64;
    let height = (root.rows(least) + 1) * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fdfdfb\"/>\n\
         <text x=\"4\" y=\"13\">CPU time by stack: {} samples at {hertz} Hz</text>\n",
        root.samples
    );
    let picture = Picture { total, least, hertz, height };
    picture.draw(&mut svg, "all", &root, 0, 0);
    svg.push_str("</svg>\n");
    svg
}

struct Picture {
    total: u64,
    least: u64,
    hertz: u32,
    height: usize,
}

impl Picture {
    /// Draws a box and those above it; `before` samples are to its left.
    fn draw(&self, svg: &mut String, name: &str, node: &Node<'_>, before: u64, depth: usize) {
        let scale = WIDTH / self.total as f64;
        let (x, width) = (before as f64 * scale, node.samples as f64 * scale);
        let y = self.height - (depth + 1) * ROW;
        let seconds = node.samples as f64 / f64::from(self.hertz);
        let share = 100.0 * node.samples as f64 / self.total as f64;
        let name = escaped(name);
        let colour = colour(&name);
        // A write to a string does not fail.
        let _ = write!(
            svg,
            "<g><title>{name}: {seconds:.2} s, {share:.1} %</title>\
             <rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\" rx=\"1\"/>",
            ROW - 1
        );
        let fits = ((width - 6.0) / CHARACTER) as usize;
        if fits >= 3 {
            let text = shortened(&name, fits);
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{}\">{text}</text>", x + 3.0, y + 12);
        }
        svg.push_str("</g>\n");
        let mut before = before;
        for (called, node) in &node.called {
            if node.samples >= self.least {
                self.draw(svg, called, node, before, depth + 1);
            }
            before += node.samples;
        }
    }
}

/// The text with what has a meaning in XML replaced; other than printable characters become spaces.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(if other.is_control() { ' ' } else { other }),
        }
    }
    escaped
}

/// The beginning of an escaped text that takes at most so many characters; an entity counts as one.
fn shortened(escaped: &str, fits: usize) -> String {
    let (mut ends, mut entity) = (Vec::new(), false);
    for (at, character) in escaped.char_indices() {
        entity = (entity || character == '&') && character != ';';
        if !entity {
            ends.push(at + character.len_utf8());
        }
    }
    match ends.len() <= fits {
        true => escaped.to_owned(),
        false => format!("{}..", &escaped[..ends[fits - 3]]),
    }
}

/// A warm colour that stays the same for a name.
fn colour(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("#{:02x}{:02x}50", 205 + hash % 50, 110 + (hash >> 8) % 110)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(stacks: &[(&str, u64)]) -> String {
        let stacks: Vec<_> = stacks
            .iter()
            .map(|(stack, samples)| (stack.split(';').map(str::to_owned).collect(), *samples))
            .collect();
        svg(&stacks, 100)
    }

    #[test]
    fn a_box_is_as_wide_as_its_share_and_stands_on_its_caller() {
        let svg = drawn(&[("main;a", 75), ("main;b;c", 25)]);
        for line in [
            "<title>all: 1.00 s, 100.0 %</title><rect x=\"0.0\" y=\"68\" width=\"1200.0\"",
            "<title>main: 1.00 s, 100.0 %</title><rect x=\"0.0\" y=\"51\" width=\"1200.0\"",
            "<title>a: 0.75 s, 75.0 %</title><rect x=\"0.0\" y=\"34\" width=\"900.0\"",
            "<title>b: 0.25 s, 25.0 %</title><rect x=\"900.0\" y=\"34\" width=\"300.0\"",
            "<title>c: 0.25 s, 25.0 %</title><rect x=\"900.0\" y=\"17\" width=\"300.0\"",
        ] {
            assert!(svg.contains(line), "{line} in {svg}");
        }
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let svg = drawn(&[("<Vec<T> as \"A\"&B>::c\n", 1)]);
        assert!(svg.contains("<title>&lt;Vec&lt;T&gt; as &quot;A&quot;&amp;B&gt;::c : "), "{svg}");
        assert_eq!(shortened("a&lt;b&gt;c", 5), "a&lt;b&gt;c");
        assert_eq!(shortened("a&lt;b&gt;cd", 5), "a&lt;b..");
    }

    #[test]
    fn what_nobody_could_see_is_left_out_and_nothing_is_no_error() {
        let svg = drawn(&[("main;wide", 100_000), ("main;narrow", 1)]);
        assert!(svg.contains("wide") && !svg.contains("narrow"), "{svg}");
        assert!(drawn(&[]).contains("0 samples"));
    }
}
