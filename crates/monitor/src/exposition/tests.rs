//! The formats against golden texts, and both kinds of buckets against the values they came from.

use std::time::Duration;

use proptest::prelude::*;

use super::classic::Ladder;
use super::exponential::Exponential;
use super::*;
use crate::clock::Moment;
use crate::exemplar::TraceId;
use crate::histogram::Distribution;
use crate::registry::Registry;
use crate::series::{Kind, Unit};

fn at(seconds: u64) -> Moment {
    Moment { monotonic: Duration::from_secs(seconds), unix_ms: 0 }
}

/// A registry without what it says about itself.
fn read(registry: &Registry) -> Snapshot {
    let mut snapshot = registry.read(at(0));
    snapshot.families.retain(|family| !family.name.starts_with("monitor_"));
    snapshot
}

fn text(snapshot: &Snapshot, format: Format) -> String {
    let mut out = Vec::new();
    render(snapshot, format, &mut out);
    String::from_utf8(out).expect("text")
}

/// Some of everything.
fn registry() -> Registry {
    let registry = Registry::default();
    registry.describe("jobs_total", Kind::Counter, Unit::None, "Jobs \"done\",\nby kind \\ all.");
    registry.counter("jobs_total", &[("kind", "a \"b\"\n\\c"), ("by", "é")]).increment(3);
    registry.counter("seen", &[]).increment(2); // not a name for a counter
    registry.describe("heap_bytes", Kind::Gauge, Unit::Bytes, "Bytes in use.");
    registry.gauge("heap_bytes", &[]).set(1.5e18);
    registry.gauge("odd", &[]).set(f64::NAN);
    registry.describe("wait_seconds", Kind::Histogram, Unit::Seconds, "Time waited.");
    let wait = registry.histogram("wait_seconds", &[("queue", "q")]);
    for seconds in [0.0, 0.000_01, 0.25, 0.25, 3.0, 1_000.0] {
        wait.record(seconds);
    }
    wait.offer_exemplar(0.25, TraceId::new(0xabc).expect("not zero"), 1_500);
    registry
}

/// The lines of classic buckets: as many values up to each bound, by the first bound of each number.
fn buckets(changes: &[(f64, u64)], exemplar: Option<(f64, &str)>) -> String {
    let ladder = Ladder::of(Unit::Seconds);
    let mut lines = String::new();
    for (bound, text) in ladder
        .bounds
        .iter()
        .chain([&f64::INFINITY])
        .zip(ladder.texts.iter().map(String::as_str).chain(["+Inf"]))
    {
        let count =
            changes.iter().rev().find(|(from, _)| bound >= from).map_or(0, |(_, count)| *count);
        let shown = exemplar.filter(|(at, _)| at == bound).map_or("", |(_, text)| text);
        lines += &format!("wait_seconds_bucket{{queue=\"q\",le=\"{text}\"}} {count}{shown}\n");
    }
    lines
}

const COUNTS: [(f64, u64); 5] = [(0.0, 1), (1e-5, 2), (0.25, 4), (5.0, 5), (f64::INFINITY, 6)];

#[test]
fn the_text_format_is_written_to_the_letter() {
    let snapshot = read(&registry());
    let sum = text(&snapshot, Format::Text);
    let sum = sum.lines().find_map(|line| line.strip_prefix("wait_seconds_sum{queue=\"q\"} "));
    let sum = sum.expect("a sum");
    assert!((sum.parse::<f64>().expect("a number") - 1_003.500_01).abs() < 0.5, "{sum}");
    let expected = format!(
        "# HELP heap_bytes Bytes in use.\n# TYPE heap_bytes gauge\nheap_bytes 1.5e18\n\
         # HELP jobs_total Jobs \"done\",\\nby kind \\\\ all.\n# TYPE jobs_total counter\n\
         jobs_total{{by=\"é\",kind=\"a \\\"b\\\"\\n\\\\c\"}} 3\n\
         # TYPE odd gauge\nodd NaN\n\
         # TYPE seen untyped\nseen 2\n\
         # HELP wait_seconds Time waited.\n# TYPE wait_seconds histogram\n{}\
         wait_seconds_sum{{queue=\"q\"}} {sum}\nwait_seconds_count{{queue=\"q\"}} 6\n",
        buckets(&COUNTS, None),
    );
    assert_eq!(text(&snapshot, Format::Text), expected);

    let expected = format!(
        "# HELP heap_bytes Bytes in use.\n# TYPE heap_bytes gauge\n# UNIT heap_bytes bytes\n\
         heap_bytes 1.5e18\n\
         # HELP jobs Jobs \\\"done\\\",\\nby kind \\\\ all.\n# TYPE jobs counter\n\
         jobs_total{{by=\"é\",kind=\"a \\\"b\\\"\\n\\\\c\"}} 3\n\
         # TYPE odd gauge\nodd NaN\n\
         # TYPE seen unknown\nseen 2\n\
         # HELP wait_seconds Time waited.\n# TYPE wait_seconds histogram\n\
         # UNIT wait_seconds seconds\n{}\
         wait_seconds_sum{{queue=\"q\"}} {sum}\nwait_seconds_count{{queue=\"q\"}} 6\n# EOF\n",
        buckets(
            &COUNTS,
            Some((0.25, " # {trace_id=\"00000000000000000000000000000abc\"} 0.25 1.5"))
        ),
    );
    assert_eq!(text(&snapshot, Format::OpenMetrics), expected);
}

#[test]
fn a_counter_beside_a_gauge_of_its_base_name_keeps_its_name() {
    let registry = Registry::default();
    registry.gauge("jobs", &[]).set(1.0);
    registry.counter("jobs_total", &[]).increment(2);
    let expected = "# TYPE jobs gauge\njobs 1\n# TYPE jobs_total unknown\njobs_total 2\n# EOF\n";
    assert_eq!(text(&read(&registry), Format::OpenMetrics), expected);
}

#[test]
fn a_scraper_gets_the_format_that_it_likes_best() {
    #[cfg(feature = "protobuf")]
    let protobuf = Format::Protobuf;
    #[cfg(not(feature = "protobuf"))]
    let protobuf = Format::OpenMetrics;
    let cases = [
        (None, Format::Text),
        (Some(""), Format::Text),
        (Some("*/*"), Format::Text),
        (Some("text/html, application/json"), Format::Text),
        (Some("application/openmetrics-text"), Format::OpenMetrics),
        (Some("application/openmetrics-text; version=0.0.1"), Format::Text),
        (
            Some("text/plain;q=0.9, application/openmetrics-text; version=1.0.0; q=0.8"),
            Format::Text,
        ),
        (Some("application/openmetrics-text;version=1.0.0;q=0"), Format::Text),
        (Some("application/openmetrics-text;version=\"1.0.0\";q=x, ;;=,"), Format::Text),
        // Prometheus 2.42, without and with its feature for native histograms.
        (
            Some(
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                 q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ),
            Format::OpenMetrics,
        ),
        (
            Some(
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                 encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,\
                 application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                 */*;q=0.1",
            ),
            protobuf,
        ),
        // Prometheus 3, the same.
        (
            Some(
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,\
                 */*;q=0.1",
            ),
            Format::OpenMetrics,
        ),
        (
            Some(
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                 encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;\
                 escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            ),
            protobuf,
        ),
    ];
    for (accept, format) in cases {
        assert_eq!(negotiate(accept), format, "{accept:?}");
    }
}

#[test]
fn a_copy_is_served_for_a_second() {
    let registry = Registry::default();
    let count = registry.counter("count_total", &[]);
    let renderer = Renderer::new();
    let render = |at: Moment, format| {
        count.increment(1);
        renderer.render(&registry.read(at), format)
    };
    let first = render(at(5), Format::Text);
    let half = Moment { monotonic: Duration::from_millis(5_999), unix_ms: 0 };
    assert!(Arc::ptr_eq(&first, &render(half, Format::Text)));
    let open = render(half, Format::OpenMetrics);
    assert!(open.ends_with(b"# EOF\n"), "each format has a copy of its own");
    let later = render(at(6), Format::Text);
    assert!(String::from_utf8_lossy(&later).contains("\ncount_total 4\n"));
}

/// A distribution of values in seconds.
fn distribution(values: &[f64]) -> Distribution {
    let mut all = Distribution::empty(1e-9);
    values.iter().for_each(|value| all.record(*value));
    all
}

/// Seconds from below a nanosecond to hours, every magnitude alike.
fn seconds() -> impl Strategy<Value = f64> {
    (-11.0..4.0_f64).prop_map(|power| 10_f64.powf(power))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A classic bucket counts what a bound would that is at most a thirty-second away.
    #[test]
    fn classic_buckets_are_off_by_a_thirty_second(values in prop::collection::vec(seconds(), 0..200)) {
        let ladder = Ladder::of(Unit::Seconds);
        let mut counts = Vec::new();
        ladder.cumulate(&distribution(&values), &mut counts);
        prop_assert_eq!(counts.len(), 25);
        prop_assert_eq!(counts[24], values.len() as u64);
        for (bound, count) in ladder.bounds.iter().zip(&counts) {
            let up_to = |bound: f64| values.iter().filter(|value| **value <= bound).count() as u64;
            prop_assert!(up_to(bound * (1.0 - 1.0 / 31.0)) <= *count, "{} {}", bound, count);
            prop_assert!(up_to(bound * (1.0 + 1.0 / 30.0)) >= *count, "{} {}", bound, count);
        }
    }

    /// Values equal to a bound are at or below it, whatever it is.
    #[test]
    fn a_value_on_a_bound_is_counted_below(place in 0_usize..24, times in 1_usize..50) {
        let ladder = Ladder::of(Unit::Seconds);
        let mut counts = Vec::new();
        ladder.cumulate(&distribution(&vec![ladder.bounds[place]; times]), &mut counts);
        prop_assert_eq!(counts[place], times as u64);
        prop_assert!(counts[..place].iter().all(|count| *count == 0));
    }

    /// A quantile of exponential buckets is within 5.5 % of the true one.
    #[test]
    fn exponential_buckets_keep_quantiles(values in prop::collection::vec(seconds(), 1..200), q in 0.0..1.0_f64) {
        let buckets = Exponential::new(&distribution(&values));
        let total: u64 = buckets.buckets.iter().map(|(_, count)| count).sum();
        prop_assert_eq!(buckets.zeros + total, values.len() as u64);
        prop_assert!(buckets.buckets.is_sorted_by(|a, b| a.0 < b.0));
        let rank = ((q * values.len() as f64).ceil() as u64).max(1);
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let exact = sorted[rank as usize - 1];
        let mut below = buckets.zeros;
        let found = buckets.buckets.iter().find(|(_, count)| {
            below += count;
            below >= rank
        });
        // Below some tens of ticks a value is known to a tick only.
        if exact > 100e-9 && rank > buckets.zeros {
            let high = 2_f64.powf(f64::from(found.expect("there are as many").0) / 32.0);
            for edge in [high, high / 2_f64.powf(1.0 / 32.0)] {
                prop_assert!((edge / exact - 1.0).abs() < 0.055, "{} for {}", edge, exact);
            }
        }
    }

    /// Coarser buckets hold the same values, and none reaches into another.
    #[test]
    fn buckets_are_made_coarser_until_they_fit(values in prop::collection::vec(seconds(), 1..200), width in 2_i32..200) {
        let fine = Exponential::new(&distribution(&values));
        let coarse = fine.clone().narrowed(width);
        prop_assert_eq!(coarse.zeros, fine.zeros);
        if let (Some(first), Some(last)) = (coarse.buckets.first(), coarse.buckets.last()) {
            prop_assert!(last.0 - first.0 < width);
        }
        let step = f64::from(1 << (fine.resolution - coarse.resolution).min(30));
        for (index, count) in &coarse.buckets {
            let inside = fine.buckets.iter().filter(|(fine, _)| (f64::from(*fine) / step).ceil() == f64::from(*index));
            prop_assert_eq!(inside.map(|(_, count)| count).sum::<u64>(), *count);
        }
    }
}

#[cfg(feature = "protobuf")]
mod protobuf_messages;
