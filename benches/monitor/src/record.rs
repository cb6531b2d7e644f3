//! What it costs to count, to record and to time; how exact quantiles are; and that nothing grows.
//!
//! The measure of all is one relaxed `fetch_add` on a word that is in the cache: less is not possible for a
//! number that several threads may count into. Ours and the addition read the same values from the same
//! array. The CPU clock shows the price of one thread without competition.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use monitor::{
    Clock as _, Distribution, Moment, Registry, RequestMetrics, RequestOptions, SystemClock,
};
use ultra_perf_bench::{Clock, Suite};

/// Records per round: some milliseconds.
pub(crate) const RECORDS: u64 = 400_000;
/// Values that are recorded in turn; as many as stay in the cache.
const VALUES: usize = 1_024;

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    handles(suite);
    timing(suite);
    accuracy(suite);
    growth(suite);
    #[cfg(feature = "peers")]
    crate::peers::record(suite);
    #[cfg(not(feature = "peers"))]
    for peer in ["metrics", "prometheus", "prometheus-client", "opentelemetry"] {
        let reason = "built without the feature peers";
        suite.time("counter, stored handle", Clock::Cpu, 1).skip(peer, reason);
    }
}

/// Does something with each of many latencies.
pub(crate) fn each<T: Copy>(values: &[T], mut work: impl FnMut(T)) {
    for at in 0..RECORDS as usize {
        work(black_box(values[at % VALUES]));
    }
}

/// Latencies in nanoseconds, in the order in which they are recorded.
pub(crate) fn values() -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..VALUES).map(|at| (latency(Shape::LogNormal, at, &mut random) * 1e9) as u64).collect()
}

fn handles(suite: &mut Suite) {
    let registry = Registry::default();
    let labels = [("kind", "bench")];
    let (word, values) = (AtomicU64::new(0), values());
    let peer = "one relaxed fetch_add";
    let counter = registry.counter("bench_total", &labels);
    suite.time("counter, stored handle", Clock::Cpu, RECORDS).at_most(1.3).compare(
        peer,
        || each(&values, |_| black_box(&counter).increment(1)),
        || each(&values, |_| _ = black_box(&word).fetch_add(1, Relaxed)),
    );
    let histogram = registry.histogram("bench_seconds", &labels);
    suite.time("histogram, ticks, stored handle", Clock::Cpu, RECORDS).at_most(1.6).compare(
        peer,
        || each(&values, |ticks| black_box(&histogram).record_ticks(ticks)),
        || each(&values, |ticks| _ = black_box(&word).fetch_add(ticks, Relaxed)),
    );
    let durations: Vec<Duration> = values.iter().copied().map(Duration::from_nanos).collect();
    suite.time("histogram, Duration, stored handle", Clock::Cpu, RECORDS).compare(
        peer,
        || each(&durations, |duration| black_box(&histogram).record_duration(duration)),
        || each(&values, |ticks| _ = black_box(&word).fetch_add(ticks, Relaxed)),
    );
    let seconds: Vec<f64> = durations.iter().map(Duration::as_secs_f64).collect();
    suite.time("histogram, f64, stored handle", Clock::Cpu, RECORDS).compare(
        peer,
        || each(&seconds, |seconds| black_box(&histogram).record(seconds)),
        || each(&values, |ticks| _ = black_box(&word).fetch_add(ticks, Relaxed)),
    );
    let gauge = registry.gauge("bench_level", &labels);
    let row = suite.time("gauge, stored handle", Clock::Cpu, RECORDS);
    row.measure(|| each(&values, |ticks| black_box(&gauge).set(ticks as f64)));
    let row = suite.time("counter, looked up each time", Clock::Cpu, RECORDS);
    row.measure(|| each(&values, |_| registry.counter("bench_total", &labels).increment(1)));
}

fn timing(suite: &mut Suite) {
    let registry = Registry::default();
    let values = values();
    let timer = registry.stage("bench");
    let row = suite.time("timer, every operation", Clock::Cpu, RECORDS);
    row.measure(|| each(&values, |_| drop(black_box(&timer).start())));
    let sampled = timer.sampled(6);
    let row = suite.time("timer, one in 64", Clock::Cpu, RECORDS);
    row.measure(|| each(&values, |_| drop(black_box(&sampled).start())));
    let requests = RequestMetrics::new(&registry, RequestOptions::default());
    for route in 0..40 {
        requests.begin("GET", &format!("/things/{route}/{{id}}")).finish(200);
    }
    let row = suite.time("request, begun and finished", Clock::Cpu, RECORDS).at_most(1_000.0);
    row.measure(|| {
        each(&values, |_| requests.begin("GET", black_box("/things/7/{id}")).finish(200));
    });
}

/// How latencies are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Log-normal about 8 ms.
    LogNormal,
    /// A cache: nine in ten about 0.2 ms, the others about 40 ms.
    Bimodal,
}

/// A latency in seconds.
fn latency(shape: Shape, at: usize, random: &mut fastrand::Rng) -> f64 {
    let (median, sigma) = match shape {
        Shape::LogNormal => (0.008, 0.6),
        Shape::Bimodal if at.is_multiple_of(10) => (0.04, 0.25),
        Shape::Bimodal => (0.000_2, 0.25),
    };
    // Box and Muller.
    let (u, v) = (1.0 - random.f64(), random.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    median * (normal * sigma).exp()
}

/// The largest error of p50, p95, p99 and p99.9 of a million values, in per cent.
fn accuracy(suite: &mut Suite) {
    for (shape, name) in [(Shape::LogNormal, "log-normal"), (Shape::Bimodal, "bimodal")] {
        let case = format!("error of p50 to p99.9, {name}");
        if !suite.wants(&case) {
            continue;
        }
        let mut random = fastrand::Rng::with_seed(7);
        let mut exact: Vec<f64> =
            (0..1_000_000).map(|at| latency(shape, at, &mut random)).collect();
        let histogram = Registry::default().histogram("bench_seconds", &[]);
        exact.iter().for_each(|value| histogram.record(*value));
        exact.sort_by(f64::total_cmp);
        let all: &Distribution = &histogram.distribution();
        let error = |q: f64| {
            let exact = exact[(q * exact.len() as f64).ceil() as usize - 1];
            100.0 * (all.quantile(q).unwrap_or(0.0) / exact - 1.0).abs()
        };
        let worst = [0.5, 0.95, 0.99, 0.999].into_iter().map(error).fold(0.0, f64::max);
        suite.reported(&case, "%").at_most(1.3).observed(worst);
    }
}

/// What the process grows by while 10 million values are recorded and nobody reads them.
fn growth(suite: &mut Suite) {
    const CASE: &str = "growth over 10 M records, nobody scrapes";
    if !suite.wants(CASE) {
        return;
    }
    let registry = Registry::default();
    let handles: Vec<_> = (0..10)
        .map(|at| {
            let label = at.to_string();
            let labels = [("at", label.as_str())];
            (registry.counter("bench_total", &labels), registry.histogram("bench_seconds", &labels))
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(3);
    let mut record = |times: usize| {
        for at in 0..times {
            let (counter, histogram) = &handles[at % handles.len()];
            counter.increment(1);
            histogram.record(latency(Shape::Bimodal, at, &mut random));
        }
    };
    // Every bucket group that these values need is there after some thousands.
    record(100_000);
    let before = resident_bytes();
    record(10_000_000);
    let grown = resident_bytes().saturating_sub(before);
    suite.reported(CASE, "KiB").at_most(256.0).observed(grown as f64 / 1_024.0);
    assert!(registry.read(now()).families.len() > 2, "all of it is there when it is asked for");
}

/// What the process has in memory.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size()
}

pub(crate) fn now() -> Moment {
    SystemClock::new().now()
}
