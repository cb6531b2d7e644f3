//! Protobuf messages of `io.prometheus.client`, each behind its length, with classic and native buckets.
//!
//! The messages are those of `metrics.proto` in <https://github.com/prometheus/client_model>, as far as they
//! are needed here, written field by field: building them as values first would take most of the time. Both
//! kinds of buckets are told. A server without native histograms takes the classic ones, and one that has
//! them can be configured to take both.

use super::classic::Ladder;
use super::exponential::Exponential;
use crate::exemplar::Exemplar;
use crate::histogram::Distribution;
use crate::registry::{FamilySnapshot, SeriesSnapshot, Snapshot, Value};
use crate::series::Kind;

/// Appends a snapshot.
pub(super) fn render(snapshot: &Snapshot, out: &mut Vec<u8>) {
    let mut writer = Writer { out, counts: Vec::new() };
    for family in &snapshot.families {
        if !family.series.is_empty() {
            writer.delimited(|writer| writer.family(family));
        }
    }
}

/// A gap of as many empty buckets is cheaper to fill with zeros than to begin another span.
const GAP: i32 = 2;

/// Writes buckets as runs of neighbours `(offset, length)`, and each count as the difference to the one
/// before.
///
/// Without buckets there is one empty span, which tells a native histogram from a classic one.
fn spans(buckets: &[(i32, u64)]) -> (Vec<(i32, u32)>, Vec<i64>) {
    let mut spans = Vec::<(i32, u32)>::new();
    let mut deltas = Vec::with_capacity(buckets.len());
    let (mut next, mut last) = (0, 0_i64);
    for &(index, count) in buckets {
        let gap = index - next;
        match spans.last_mut() {
            Some((_, length)) if gap <= GAP => {
                for _ in 0..gap {
                    deltas.push(-last);
                    last = 0;
                }
                *length += gap as u32 + 1;
            }
            _ => spans.push((gap, 1)),
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - last);
        (next, last) = (index + 1, count);
    }
    if spans.is_empty() {
        spans.push((0, 0));
    }
    (spans, deltas)
}

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED: u64 = 1;
const BYTES: u64 = 2;

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// The classic buckets of the histogram at hand.
    counts: Vec<u64>,
}

impl Writer<'_> {
    /// `MetricFamily`
    fn family(&mut self, family: &FamilySnapshot) {
        self.text(1, &family.name);
        if !family.help.is_empty() {
            self.text(2, &family.help);
        }
        let kind = match family.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        };
        self.whole(3, kind);
        for series in &family.series {
            self.message(4, |writer| writer.metric(family, series));
        }
        let unit = family.unit.suffix();
        if !unit.is_empty() {
            self.text(5, unit);
        }
    }

    /// `Metric`
    fn metric(&mut self, family: &FamilySnapshot, series: &SeriesSnapshot) {
        for (name, value) in series.key.labels.iter() {
            self.label(name, value);
        }
        match &series.value {
            Value::Number(value) => {
                let field = if family.kind == Kind::Counter { 3 } else { 2 };
                self.message(field, |writer| writer.double(1, *value));
            }
            Value::Distribution(distribution) => {
                self.message(7, |writer| writer.histogram(family, series, distribution));
            }
        }
    }

    /// `LabelPair`
    fn label(&mut self, name: &str, value: &str) {
        self.message(1, |writer| {
            writer.text(1, name);
            writer.text(2, value);
        });
    }

    /// `Histogram`
    fn histogram(
        &mut self,
        family: &FamilySnapshot,
        series: &SeriesSnapshot,
        distribution: &Distribution,
    ) {
        let ladder = Ladder::of(family.unit);
        let mut counts = std::mem::take(&mut self.counts);
        let sum = ladder.cumulate(distribution, &mut counts);
        self.whole(1, counts.last().copied().unwrap_or(0));
        self.double(2, sum);
        let bounds = ladder.bounds.iter().copied().chain([f64::INFINITY]);
        for (place, (bound, &count)) in bounds.zip(&counts).enumerate() {
            self.message(3, |writer| {
                writer.whole(1, count);
                writer.double(2, bound);
                if let Some(exemplar) = ladder.newest(&series.exemplars, place) {
                    writer.message(3, |writer| writer.exemplar(exemplar));
                }
            });
        }
        self.counts = counts;
        let native = Exponential::new(distribution);
        let (spans, deltas) = spans(&native.buckets);
        self.whole(5, zigzag(native.resolution.into()));
        self.double(6, native.zero_threshold);
        self.whole(7, native.zeros);
        for (offset, length) in spans {
            self.message(12, |writer| {
                writer.whole(1, zigzag(offset.into()));
                writer.whole(2, length.into());
            });
        }
        if !deltas.is_empty() {
            self.message(13, |writer| {
                deltas.iter().for_each(|delta| writer.varint(zigzag(*delta)));
            });
        }
    }

    /// `Exemplar`
    fn exemplar(&mut self, exemplar: &Exemplar) {
        self.label("trace_id", &exemplar.trace_id.to_string());
        self.double(2, exemplar.value);
        let (seconds, millis) =
            (exemplar.unix_ms.div_euclid(1_000), exemplar.unix_ms.rem_euclid(1_000));
        self.message(3, |writer| {
            writer.whole(1, seconds as u64); // an `int64` is written as the bits of its complement
            writer.whole(2, millis as u64 * 1_000_000);
        });
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn whole(&mut self, field: u64, value: u64) {
        self.key(field, VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, FIXED);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, field: u64, value: &str) {
        self.key(field, BYTES);
        self.varint(value.len() as u64);
        self.out.extend_from_slice(value.as_bytes());
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        self.key(field, BYTES);
        self.delimited(write);
    }

    /// Writes something behind its length.
    fn delimited(&mut self, write: impl FnOnce(&mut Self)) {
        let start = self.out.len();
        self.out.push(0);
        write(self);
        let end = self.out.len();
        let (length, bytes) = varint((end - start - 1) as u64);
        // Room for one byte was left; a length of more moves what was written.
        if bytes > 1 {
            self.out.resize(end + bytes - 1, 0);
            self.out.copy_within(start + 1..end, start + bytes);
        }
        self.out[start..start + bytes].copy_from_slice(&length[..bytes]);
    }

    fn varint(&mut self, value: u64) {
        // Nearly all are keys, lengths and small differences.
        if value < 0x80 {
            return self.out.push(value as u8);
        }
        let (digits, bytes) = varint(value);
        self.out.extend_from_slice(&digits[..bytes]);
    }
}

/// A number in groups of seven bits, the lowest first, and how many bytes they take.
fn varint(mut value: u64) -> ([u8; 10], usize) {
    let (mut digits, mut bytes) = ([0; 10], 1);
    while value >= 0x80 {
        digits[bytes - 1] = value as u8 | 0x80;
        value >>= 7;
        bytes += 1;
    }
    digits[bytes - 1] = value as u8;
    (digits, bytes)
}

/// A signed number with its sign in the lowest bit, as protobuf's `sint32` and `sint64`.
fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}
