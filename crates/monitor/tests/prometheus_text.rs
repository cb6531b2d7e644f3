//! The text for Prometheus beside that of `metrics-exporter-prometheus`, and under the eyes of `promtool`.
//!
//! The same recordings go through the `metrics` facade into both. What a parser reads must be equal: the
//! same families of the same types, the same samples, the same values. Sums of histograms may differ by a
//! thousandth and no values were recorded close to the bounds of buckets, because ours keep intervals.

#![cfg(feature = "metrics")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::PrometheusBuilder;
use monitor::{Format, Kind, Moment, Recorder, Registry, Unit, render};

/// The bounds of our classic buckets of seconds.
const BOUNDS: [f64; 24] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0,
];

/// Records some of everything through the facade.
fn record() {
    describe_counter!("jobs_total", "Jobs that are done.");
    describe_gauge!("depth", "Jobs that wait, \\ or run.");
    describe_histogram!("wait_seconds", "Time waited.");
    for (kind, times) in [("mail", 3), ("a \"quoted\"\nvalue\\", 5)] {
        counter!("jobs_total", "kind" => kind, "zone" => "eu").increment(times);
    }
    counter!("plain_total").absolute(u64::from(u32::MAX));
    for (queue, depth) in [("a", -1.25), ("b", 1e18), ("c", f64::NAN)] {
        gauge!("depth", "queue" => queue).set(depth);
    }
    gauge!("depth", "queue" => "a").increment(0.5);
    let mut state = 9_u64;
    for at in 0..2_000 {
        // Anywhere between two bounds but near one; the last is beyond all of them.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (state >> 33) as usize % 25;
        let (low, high) = match place {
            0 => (1e-6, BOUNDS[0]),
            24 => (BOUNDS[23], 5_000.0),
            _ => (BOUNDS[place - 1], BOUNDS[place]),
        };
        let within = 0.1 + 0.8 * ((state >> 11) & 1_023) as f64 / 1_023.0;
        let queue = if at % 3 == 0 { "a" } else { "b" };
        histogram!("wait_seconds", "queue" => queue).record(low + (high - low) * within);
    }
}

/// A family as a parser reads it.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    help: Option<String>,
    /// Values by name and labels, as text.
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

/// Reads the text format, as its specification describes it.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            families.entry(name.to_owned()).or_default().help = Some(unescape(help));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
            current = name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, label_pairs(labels)),
                None => (series, BTreeMap::new()),
            };
            assert!(name.starts_with(&current), "{name} after the head of {current}");
            let family = families.get_mut(&current).expect("a head comes first");
            let value = value.replace("Inf", "inf").parse().expect("a number");
            let double = family.samples.insert((name.to_owned(), labels), value);
            assert_eq!(double, None, "{line} comes twice");
        }
    }
    families
}

/// Reads `a="1",b="2"}`.
fn label_pairs(mut rest: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while rest != "}" {
        let (name, value) = rest.split_once("=\"").expect("a label");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.expect("a closing quote");
        let mut text = unescape(&value[..end]);
        if name == "le" {
            let bound: f64 = text.replace("Inf", "inf").parse().expect("a bound");
            text = bound.to_string();
        }
        pairs.insert(name.to_owned(), text);
        rest = value[end + 1..].strip_prefix(',').unwrap_or(&value[end + 1..]);
    }
    pairs
}

fn unescape(text: &str) -> String {
    let (mut plain, mut escaped) = (String::new(), false);
    for c in text.chars() {
        match (escaped, c) {
            (false, '\\') => escaped = true,
            (true, 'n') => (plain.push('\n'), escaped = false).1,
            (_, c) => (plain.push(c), escaped = false).1,
        }
    }
    plain
}

fn ours(registry: &Registry) -> String {
    let mut snapshot = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
    snapshot.families.retain(|family| !family.name.starts_with("monitor_"));
    let mut out = Vec::new();
    render(&snapshot, Format::Text, &mut out);
    String::from_utf8(out).expect("text")
}

#[test]
fn our_text_reads_as_that_of_the_exporter() {
    let registry = Registry::default();
    metrics::with_local_recorder(&Recorder::new(&registry), record);
    let peer = PrometheusBuilder::new().set_buckets(&BOUNDS).expect("bounds").build_recorder();
    metrics::with_local_recorder(&peer, record);
    let (mut ours, mut theirs) = (parse(&ours(&registry)), parse(&peer.handle().render()));
    assert_eq!(ours.len(), 4);
    for (name, family) in &mut ours {
        let theirs = theirs.get_mut(name).expect("they have it");
        for (sample, value) in &mut family.samples {
            let peer = theirs.samples.get_mut(sample).expect("they have it");
            let close = (*value - *peer).abs() <= peer.abs() / 1_000.0;
            // Not a number is not equal to itself; of a sum it is enough to be close.
            if (value.is_nan() && peer.is_nan()) || (sample.0.ends_with("_sum") && close) {
                (*value, *peer) = (0.0, 0.0);
            }
        }
    }
    assert_eq!(ours, theirs);
    let samples: usize = ours.values().map(|family| family.samples.len()).sum();
    assert_eq!(samples, 2 + 1 + 3 + 2 * 27);
}

#[test]
fn promtool_finds_nothing_to_say() {
    let registry = Registry::default();
    registry.describe("jobs_total", Kind::Counter, Unit::None, "Jobs that are done.");
    registry.describe("heap_bytes", Kind::Gauge, Unit::Bytes, "Bytes in use.");
    registry.describe("wait_seconds", Kind::Histogram, Unit::Seconds, "Time waited.");
    for job in ["mail", "a \"quoted\"\nvalue\\"] {
        registry.counter("jobs_total", &[("kind", job)]).increment(2);
        registry.histogram("wait_seconds", &[("kind", job)]).record(0.3);
    }
    registry.gauge("heap_bytes", &[]).set(1e12);
    let requests = monitor::RequestMetrics::new(&registry, monitor::RequestOptions::default());
    requests.begin("GET", "/").finish(200);
    drop(registry.stage("db.query").sampled(0).start());

    let snapshot = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
    let mut text = Vec::new();
    render(&snapshot, Format::Text, &mut text);
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(error) => {
            eprintln!("skipped: promtool cannot be run ({error}); Debian has it in `prometheus`");
            return;
        }
    };
    promtool.stdin.take().expect("piped").write_all(&text).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    assert_eq!(String::from_utf8_lossy(&said), "");
}
