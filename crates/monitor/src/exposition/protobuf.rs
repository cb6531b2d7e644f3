//! Protobuf messages of `io.prometheus.client`, each behind its length, with classic and native buckets.
//!
//! The messages are those of `metrics.proto` in <https://github.com/prometheus/client_model>, as far as they
//! are written here. Both kinds of buckets are told: a server without native histograms takes the classic
//! ones, and one that has them can be configured to take both.

use prost::Message as _;

use super::classic::Ladder;
use super::exponential::Exponential;
use crate::histogram::Distribution;
use crate::registry::{FamilySnapshot, SeriesSnapshot, Snapshot, Value};
use crate::series::Kind;

/// Appends a snapshot.
pub(super) fn render(snapshot: &Snapshot, out: &mut Vec<u8>) {
    for family in &snapshot.families {
        if !family.series.is_empty() {
            let encoded = message(family).encode_length_delimited(out);
            encoded.expect("a vector grows as needed");
        }
    }
}

fn message(family: &FamilySnapshot) -> MetricFamily {
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let unit = family.unit.suffix();
    MetricFamily {
        name: Some((*family.name).to_owned()),
        help: (!family.help.is_empty()).then(|| (*family.help).to_owned()),
        r#type: Some(kind as i32),
        metric: family.series.iter().map(|series| metric(family, series)).collect(),
        unit: (!unit.is_empty()).then(|| unit.to_owned()),
    }
}

fn metric(family: &FamilySnapshot, series: &SeriesSnapshot) -> Metric {
    let label = |(name, value): (&str, &str)| LabelPair {
        name: Some(name.to_owned()),
        value: Some(value.to_owned()),
    };
    let label = series.key.labels.iter().map(label).collect();
    match &series.value {
        Value::Number(value) if family.kind == Kind::Counter => {
            Metric { label, counter: Some(Number { value: Some(*value) }), ..Metric::default() }
        }
        Value::Number(value) => {
            Metric { label, gauge: Some(Number { value: Some(*value) }), ..Metric::default() }
        }
        Value::Distribution(distribution) => {
            let histogram = histogram(family, series, distribution);
            Metric { label, histogram: Some(histogram), ..Metric::default() }
        }
    }
}

fn histogram(
    family: &FamilySnapshot,
    series: &SeriesSnapshot,
    distribution: &Distribution,
) -> Histogram {
    let ladder = Ladder::of(family.unit);
    let mut counts = Vec::new();
    ladder.cumulate(distribution, &mut counts);
    let bounds = ladder.bounds.iter().copied().chain([f64::INFINITY]);
    let bucket = bounds.zip(&counts).enumerate().map(|(place, (bound, &count))| Bucket {
        cumulative_count: Some(count),
        upper_bound: Some(bound),
        exemplar: ladder.newest(&series.exemplars, place).map(exemplar),
    });
    let native = Exponential::new(distribution);
    let (positive_span, positive_delta) = spans(&native.buckets);
    Histogram {
        sample_count: counts.last().copied(),
        sample_sum: Some(distribution.sum()),
        bucket: bucket.collect(),
        schema: Some(native.resolution.into()),
        zero_threshold: Some(native.zero_threshold),
        zero_count: Some(native.zeros),
        positive_span,
        positive_delta,
    }
}

fn exemplar(exemplar: &crate::exemplar::Exemplar) -> Exemplar {
    let millis = exemplar.unix_ms.rem_euclid(1_000);
    Exemplar {
        label: vec![LabelPair {
            name: Some("trace_id".to_owned()),
            value: Some(exemplar.trace_id.to_string()),
        }],
        value: Some(exemplar.value),
        timestamp: Some(Timestamp {
            seconds: exemplar.unix_ms.div_euclid(1_000),
            nanos: millis as i32 * 1_000_000,
        }),
    }
}

/// A gap of as many empty buckets is cheaper to fill with zeros than to begin another span.
const GAP: i32 = 2;

/// Writes buckets as runs of neighbours, and each count as the difference to the one before.
///
/// Without buckets there is one empty span, which tells a native histogram from a classic one.
fn spans(buckets: &[(i32, u64)]) -> (Vec<BucketSpan>, Vec<i64>) {
    let mut spans = Vec::<BucketSpan>::new();
    let mut deltas = Vec::with_capacity(buckets.len());
    let (mut next, mut last) = (0, 0_i64);
    for &(index, count) in buckets {
        let gap = index - next;
        match spans.last_mut() {
            Some(span) if gap <= GAP => {
                for _ in 0..gap {
                    deltas.push(-last);
                    last = 0;
                }
                span.length += gap as u32 + 1;
            }
            _ => spans.push(BucketSpan { offset: gap, length: 1 }),
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - last);
        (next, last) = (index + 1, count);
    }
    if spans.is_empty() {
        spans.push(BucketSpan { offset: 0, length: 0 });
    }
    (spans, deltas)
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) help: Option<String>,
    #[prost(enumeration = "MetricType", optional, tag = "3")]
    pub(super) r#type: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
    #[prost(string, optional, tag = "5")]
    pub(super) unit: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    pub(super) gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    pub(super) counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LabelPair {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) value: Option<String>,
}

/// `Counter` and `Gauge`, which have their value in the same place.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Number {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    pub(super) exemplar: Option<Exemplar>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct BucketSpan {
    /// Buckets left out since the span before, or the number of the first bucket.
    #[prost(sint32, tag = "1")]
    pub(super) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(super) length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    pub(super) value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    pub(super) timestamp: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}
