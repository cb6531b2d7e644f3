//! The two text formats, which differ in the heads of families, in exemplars and in the end.

use std::collections::HashSet;
use std::io::Write as _;

use super::classic::Ladder;
use crate::exemplar::Exemplar;
use crate::histogram::Distribution;
use crate::registry::{FamilySnapshot, SeriesSnapshot, Snapshot, Value};
use crate::series::{Kind, Labels};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Plain,
    OpenMetrics,
}

/// Appends a snapshot.
pub(super) fn render(snapshot: &Snapshot, dialect: Dialect, out: &mut Vec<u8>) {
    let mut writer = Writer { dialect, out, labels: Vec::new(), counts: Vec::new() };
    let taken: HashSet<&str> = match dialect {
        Dialect::Plain => HashSet::new(),
        Dialect::OpenMetrics => snapshot.families.iter().map(|family| &*family.name).collect(),
    };
    for family in &snapshot.families {
        if !family.series.is_empty() {
            writer.family(family, &taken);
        }
    }
    if dialect == Dialect::OpenMetrics {
        writer.put("# EOF\n");
    }
}

/// Whether a name says what its kind is: `_total` for a counter, and no end that histograms have.
///
/// `promtool check metrics` complains about other names unless they have no type.
pub(super) fn is_conventional(family: &FamilySnapshot) -> bool {
    let name = &*family.name;
    let is_counter = family.kind == Kind::Counter;
    family.kind == Kind::Histogram
        || (is_counter == name.ends_with("_total")
            && !["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)))
}

struct Writer<'a> {
    dialect: Dialect,
    out: &'a mut Vec<u8>,
    /// The labels of the series at hand, `a="1",b="2"`.
    labels: Vec<u8>,
    /// The classic buckets of the histogram at hand.
    counts: Vec<u64>,
}

impl Writer<'_> {
    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn family(&mut self, family: &FamilySnapshot, taken: &HashSet<&str>) {
        let name = &*family.name;
        let is_open = self.dialect == Dialect::OpenMetrics;
        let (head, kind) = match family.kind {
            Kind::Counter if is_open => match name.strip_suffix("_total") {
                Some(base) if !base.is_empty() && !taken.contains(base) => (base, "counter"),
                _ => (name, "unknown"),
            },
            Kind::Counter | Kind::Gauge if !is_conventional(family) => (name, "untyped"),
            Kind::Counter => (name, "counter"),
            Kind::Gauge => (name, "gauge"),
            Kind::Histogram => (name, "histogram"),
        };
        if !family.help.is_empty() {
            self.head("HELP", head);
            escape(&family.help, is_open, self.out);
            self.put("\n");
        }
        self.head("TYPE", head);
        self.put(kind);
        self.put("\n");
        let unit = family.unit.suffix();
        // `OpenMetrics` has a unit only where the name ends in it.
        if is_open
            && head.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
            && !unit.is_empty()
        {
            self.head("UNIT", head);
            self.put(unit);
            self.put("\n");
        }
        for series in &family.series {
            self.series(family, series);
        }
    }

    fn head(&mut self, what: &str, name: &str) {
        for part in ["# ", what, " ", name, " "] {
            self.put(part);
        }
    }

    fn series(&mut self, family: &FamilySnapshot, series: &SeriesSnapshot) {
        self.labels.clear();
        label_pairs(&series.key.labels, &mut self.labels);
        match &series.value {
            Value::Number(value) => {
                self.sample(&family.name, "", None);
                number(*value, self.out);
                self.put("\n");
            }
            Value::Distribution(distribution) => self.histogram(family, series, distribution),
        }
    }

    fn histogram(
        &mut self,
        family: &FamilySnapshot,
        series: &SeriesSnapshot,
        distribution: &Distribution,
    ) {
        let ladder = Ladder::of(family.unit);
        let mut counts = std::mem::take(&mut self.counts);
        let sum = ladder.cumulate(distribution, &mut counts);
        let texts = ladder.texts.iter().map(String::as_str).chain(["+Inf"]);
        for (place, (bound, &count)) in texts.zip(&counts).enumerate() {
            self.sample(&family.name, "_bucket", Some(bound));
            whole(count, self.out);
            self.exemplar(ladder.newest(&series.exemplars, place));
            self.put("\n");
        }
        let count = counts.last().copied().unwrap_or(0);
        self.counts = counts;
        self.sample(&family.name, "_sum", None);
        number(sum, self.out);
        self.put("\n");
        self.sample(&family.name, "_count", None);
        whole(count, self.out);
        self.put("\n");
    }

    /// Writes a sample up to its value.
    fn sample(&mut self, name: &str, suffix: &str, le: Option<&str>) {
        self.put(name);
        self.put(suffix);
        if !self.labels.is_empty() || le.is_some() {
            self.put("{");
            self.out.extend_from_slice(&self.labels);
            if let Some(bound) = le {
                self.put(if self.labels.is_empty() { "le=\"" } else { ",le=\"" });
                self.put(bound);
                self.put("\"");
            }
            self.put("}");
        }
        self.put(" ");
    }

    fn exemplar(&mut self, exemplar: Option<&Exemplar>) {
        let Some(exemplar) = exemplar.filter(|_| self.dialect == Dialect::OpenMetrics) else {
            return;
        };
        let seconds = exemplar.unix_ms as f64 / 1_000.0;
        let _ = write!(self.out, " # {{trace_id=\"{}\"}} ", exemplar.trace_id);
        number(exemplar.value, self.out);
        self.put(" ");
        number(seconds, self.out);
    }
}

/// Writes `a="1",b="2"`.
fn label_pairs(labels: &Labels, out: &mut Vec<u8>) {
    for (at, (name, value)) in labels.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        escape(value, true, out);
        out.push(b'"');
    }
}

/// Writes a text with backslashes and line feeds escaped, and where asked for double quotes as well.
fn escape(text: &str, quotes: bool, out: &mut Vec<u8>) {
    let is_special = |byte: &u8| matches!(byte, b'\\' | b'\n') || (quotes && *byte == b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(is_special) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            _ => b"\\\"",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Writes a number in the fewest digits that read as the same.
fn number(value: f64, out: &mut Vec<u8>) {
    // Up to here every whole number is one of its own.
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    let size = value.abs();
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if value.fract() == 0.0 && size <= WHOLE {
        if value < 0.0 {
            out.push(b'-');
        }
        whole(size as u64, out);
    } else if (1e-4..1e15).contains(&size) {
        let _ = write!(out, "{value}"); // writing to a vector cannot fail
    } else {
        let _ = write!(out, "{value:e}");
    }
}

fn whole(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_the_fewest_digits() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-12.0, "-12"),
            (0.25, "0.25"),
            (1e-9, "1e-9"),
            (1.5e18, "1.5e18"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ];
        for (value, text) in cases {
            let mut out = Vec::new();
            number(value, &mut out);
            assert_eq!(String::from_utf8(out).expect("text"), text);
        }
    }
}
