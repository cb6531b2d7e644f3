//! What a server reads from the protobuf format is what was recorded.
//!
//! The messages are decoded by `prost`, from a description that is apart from the code that writes them.

use prost::Message as _;

use super::*;

fn families(registry: &Registry) -> Vec<MetricFamily> {
    let mut out = Vec::new();
    render(&read(registry), Format::Protobuf, &mut out);
    let mut rest = out.as_slice();
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut rest).expect("a message"));
    }
    families
}

/// The buckets of a native histogram that are not empty, as a server adds them up.
fn expanded(histogram: &Histogram) -> Vec<(i32, u64)> {
    let (mut index, mut count, mut buckets) = (0, 0, Vec::new());
    let mut deltas = histogram.positive_delta.iter();
    for span in &histogram.positive_span {
        index += span.offset;
        for _ in 0..span.length {
            count += deltas.next().expect("a delta for each bucket");
            if count > 0 {
                buckets.push((index, count as u64));
            }
            index += 1;
        }
    }
    assert_eq!(deltas.next(), None);
    buckets
}

#[test]
fn messages_hold_what_was_recorded() {
    let families = families(&registry());
    let family = |name: &str| {
        let found = families.iter().find(|family| family.name.as_deref() == Some(name));
        found.expect("there")
    };
    let jobs = family("jobs_total");
    assert_eq!(jobs.r#type, Some(MetricType::Counter as i32));
    assert_eq!(jobs.metric[0].counter.expect("a counter").value, Some(3.0));
    assert_eq!(jobs.metric[0].label[1].value.as_deref(), Some("a \"b\"\n\\c"));
    let heap = family("heap_bytes");
    assert_eq!(heap.metric[0].gauge.expect("a gauge").value, Some(1.5e18));
    assert_eq!(heap.unit.as_deref(), Some("bytes"));
    let wait = family("wait_seconds").metric[0].histogram.as_ref().expect("a histogram");
    assert_eq!((wait.sample_count, wait.zero_count, wait.schema), (Some(6), Some(1), Some(5)));
    // 2^(-64/32) is 0.25, a bound of its bucket; its interval begins there, so it may be the next one.
    let native = expanded(wait);
    assert_eq!(native.iter().map(|(_, count)| count).sum::<u64>(), 5);
    assert!(native.contains(&(-64, 2)) || native.contains(&(-63, 2)), "{native:?}");
    let quarter = wait.bucket.iter().find(|bucket| bucket.upper_bound == Some(0.25));
    let quarter = quarter.expect("a bound");
    assert_eq!(quarter.cumulative_count, Some(4));
    let exemplar = quarter.exemplar.as_ref().expect("an exemplar");
    let time = exemplar.timestamp.expect("a time");
    assert_eq!((exemplar.value, time.seconds, time.nanos), (Some(0.25), 1, 500_000_000));
    assert_eq!(wait.bucket.iter().filter(|bucket| bucket.exemplar.is_some()).count(), 1);
}

#[test]
fn a_histogram_of_nothing_is_seen_to_be_native() {
    let registry = Registry::default();
    let _ = registry.histogram("wait_seconds", &[]);
    let families = families(&registry);
    let wait = families[0].metric[0].histogram.as_ref().expect("a histogram");
    assert_eq!(wait.positive_span.len(), 1);
    assert!(expanded(wait).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn spans_and_deltas_add_up_to_the_buckets(values in prop::collection::vec(seconds(), 0..300)) {
        let registry = Registry::default();
        let wait = registry.histogram("wait_seconds", &[]);
        values.iter().for_each(|value| wait.record(*value));
        let families = families(&registry);
        let wait = families[0].metric[0].histogram.as_ref().expect("a histogram");
        let native = Exponential::new(&distribution(&values));
        prop_assert_eq!(expanded(wait), native.buckets);
        prop_assert_eq!(wait.zero_count, Some(native.zeros));
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(enumeration = "MetricType", optional, tag = "3")]
    r#type: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
    #[prost(string, optional, tag = "5")]
    unit: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

/// `Counter` and `Gauge`, which have their value in the same place.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Number {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct BucketSpan {
    /// Buckets left out since the span before, or the number of the first bucket.
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}
