//! A day of history: 200 series by the second, what they take on disk, and what reading them costs.
//!
//! The series are made up, from a seed: 60 counters that grow at a rate of their own, 30 ratios of hits to requests
//! since the start (every bit of the number counts), 20 gauges with two decimals, 30 sizes in pages, 30 latencies in
//! tens of microseconds and 30 numbers that hardly ever change. A day of them is taken in once, and then asked
//! for as pages ask: a line of a thousand points, two hundred such lines, and the windows of alert rules.
//!
//! Files are made in the system's temporary directory and are in the page cache when they are read.

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monitor::history::{Query, TierOptions};
use monitor::{
    Aggregate, History, HistoryOptions, Moment, Registry, Selector, SeriesId, Snapshot, Source,
    Window,
};
use tempfile::TempDir;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

const START_MS: i64 = 1_701_216_000_000;
const DAY: i64 = 86_400;
/// Names of the made-up metrics, and how many series each has.
const METRICS: [(&str, usize); 6] = [
    ("requests_total", 60),
    ("hit_ratio", 30),
    ("load", 20),
    ("heap_bytes", 30),
    ("latency_seconds", 30),
    ("connections", 30),
];
const SERIES: usize = 200;

/// Values of the made-up series, one second after the other.
struct Workload {
    rng: fastrand::Rng,
    state: Vec<(f64, f64)>,
}

impl Workload {
    fn new() -> Self {
        let mut rng = fastrand::Rng::with_seed(8);
        let state = (0..SERIES).map(|series| match metric(series) {
            0 => (0.0, 10_f64.powf(rng.f64() * 3.0)),
            1 => (80_000.0, 100_000.0),
            2 => (50.0 * rng.f64(), 0.0),
            3 => ((10_000.0 + 90_000.0 * rng.f64()).floor(), 0.0),
            4 => (0.0, 0.001 + 0.02 * rng.f64()),
            _ => ((100.0 * rng.f64()).floor(), 0.0),
        });
        let state = state.collect();
        Self { rng, state }
    }

    fn next(&mut self, values: &mut [f64]) {
        for (series, value) in values.iter_mut().enumerate() {
            let (now, other) = &mut self.state[series];
            let rng = &mut self.rng;
            *value = match metric(series) {
                0 => {
                    *now += (*other * (0.8 + 0.4 * rng.f64())).round();
                    *now
                }
                1 => {
                    let requests = rng.u32(100..400);
                    *now += (f64::from(requests) * (0.7 + 0.2 * rng.f64())).round();
                    *other += f64::from(requests);
                    *now / *other
                }
                2 => {
                    *now = (*now + rng.f64() - 0.5).clamp(0.0, 100.0);
                    (*now * 100.0).round() / 100.0
                }
                3 => {
                    *now += f64::from(rng.i32(-20..=20));
                    *now * 4_096.0
                }
                4 => (*other * (0.7 + 0.6 * rng.f64()) * 1e5).round() / 1e5,
                _ => {
                    if rng.u32(0..600) == 0 {
                        *now = (100.0 * rng.f64()).floor();
                    }
                    *now
                }
            };
        }
    }
}

/// Which metric a series is of.
fn metric(series: usize) -> usize {
    let mut end = 0;
    METRICS
        .iter()
        .position(|(_, count)| {
            end += count;
            series < end
        })
        .expect("there are as many series as metrics have")
}

/// A registry that reports the values of the workload.
struct Feed {
    registry: Registry,
    values: Arc<Mutex<Vec<f64>>>,
    workload: Workload,
}

impl Feed {
    fn new() -> Self {
        let registry = Registry::default();
        let values = Arc::new(Mutex::new(vec![0.0; SERIES]));
        let reported = Arc::clone(&values);
        let labels: Vec<String> = (0..SERIES).map(|series| format!("series-{series}")).collect();
        registry.collect(move |readings| {
            let values = reported.lock().expect("nobody panicked");
            for (series, value) in values.iter().enumerate() {
                let (name, _) = METRICS[metric(series)];
                let of = [("of", labels[series].as_str())];
                if name.ends_with("_total") {
                    readings.counter(name, &of, *value);
                } else {
                    readings.gauge(name, &of, *value);
                }
            }
        });
        Self { registry, values, workload: Workload::new() }
    }

    fn read(&mut self, second: i64) -> Snapshot {
        self.workload.next(&mut self.values.lock().expect("nobody panicked"));
        self.registry.read(moment(second))
    }
}

fn moment(second: i64) -> Moment {
    Moment {
        monotonic: Duration::from_secs(second.unsigned_abs()),
        unix_ms: START_MS + second * 1_000,
    }
}

fn open(directory: &TempDir) -> History {
    let options = HistoryOptions {
        path: Some(directory.path().join("history")),
        queue: 1_024,
        ..HistoryOptions::default()
    };
    History::open(options).expect("the directory is new")
}

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    ingest(suite);
    if !suite.wants("history") {
        return;
    }
    let directory = tempfile::tempdir().expect("there is space");
    let history = open(&directory);
    let mut feed = Feed::new();
    for second in 1..=DAY {
        history.record(&feed.read(second));
        if second % 600 == 1 {
            history.flush().expect("there is space");
        }
    }
    history.flush().expect("there is space");
    sizes(suite, &history, &directory);
    queries(suite, &history);
    windows(suite, &history);
}

/// What a tick costs: taking it in, its log, and its part of the chunks of ten minutes.
fn ingest(suite: &mut Suite) {
    let case = "history: tick of 200 series, with its log and chunks";
    if !suite.wants(case) {
        return;
    }
    let directory = tempfile::tempdir().expect("there is space");
    let history = open(&directory);
    let mut feed = Feed::new();
    let mut second = 0;
    suite.reported(case, "us CPU").at_most(1_000.0).measure(|| {
        let snapshots: Vec<Snapshot> = (0..600).map(|tick| feed.read(second + tick + 1)).collect();
        second += 600;
        let watch = Stopwatch::start(Clock::Cpu);
        for snapshot in &snapshots {
            history.record(snapshot);
        }
        history.flush().expect("there is space");
        watch.elapsed().as_secs_f64() * 1e6 / 600.0
    });
}

fn sizes(suite: &mut Suite, history: &History, directory: &TempDir) {
    let samples = (DAY * SERIES as i64) as f64;
    let stats = history.stats();
    assert_eq!((stats.blocks_lost, stats.ticks_unlogged), (0, 0), "the day is whole");
    // Tiers of minutes and hours are in it; the samples are those of the seconds.
    let bytes = stats.chunk_bytes as f64 / samples;
    suite.reported("history: chunks of all tiers, per sample", "B").at_most(1.5).observed(bytes);
    let files = files_bytes(&directory.path().join("history/store")) as f64 / samples;
    suite.reported("history: files of a day with the journal, per sample", "B").observed(files);
    let seconds = one_tier(history) / samples;
    suite.reported("history: chunks by the second, per sample", "B").at_most(1.5).observed(seconds);
    let memory = stats.memory_bytes as f64 / (1 << 20) as f64;
    suite.reported("history: memory for 200 series", "MiB").observed(memory);
}

fn files_bytes(path: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(path).expect("it is there").filter_map(Result::ok);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(of) if of.is_dir() => files_bytes(&entry.path()),
        Ok(of) => of.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Bytes of the chunks by the second, of the same day in a history that has no other tier.
fn one_tier(history: &History) -> f64 {
    let tiers = vec![TierOptions {
        step: Duration::from_secs(1),
        keep: Duration::from_secs(1 << 20),
        limit_bytes: 1 << 30,
    }];
    let options =
        HistoryOptions { tiers, memory_limit_bytes: 1 << 30, ..HistoryOptions::default() };
    let single = History::open(options).expect("it is in memory");
    let mut feed = Feed::new();
    for second in 1..=DAY {
        single.record(&feed.read(second));
        if second % 600 == 1 {
            single.flush().expect("it is in memory");
        }
    }
    assert_eq!(single.last_ms(), history.last_ms());
    single.stats().chunk_bytes as f64
}

fn queries(suite: &mut Suite, history: &History) {
    let (from_ms, to_ms) = (START_MS, START_MS + DAY * 1_000);
    let query = |selector: &str| Query {
        selector: Selector::parse(selector).expect("a selector"),
        from_ms,
        to_ms,
        step_ms: Some(86_400),
        aggregate: Aggregate::Avg,
        by: None,
    };
    let one = query(r#"load{of="series-95"}"#);
    suite.reported("history: a day of one series, 1,000 points", "ms CPU").at_most(5.0).measure(
        || {
            let watch = Stopwatch::start(Clock::Cpu);
            let result = history.query(&one).expect("it is sound");
            assert_eq!((result.series.len(), result.series[0].points.len()), (1, 1_000));
            watch.elapsed().as_secs_f64() * 1e3
        },
    );
    let all: Vec<Query> = METRICS.iter().map(|(name, _)| query(name)).collect();
    let case = "history: a day of 200 series, 1,000 points";
    suite.reported(case, "ms CPU").at_most(50.0).measure(|| {
        let watch = Stopwatch::start(Clock::Cpu);
        let lines: usize =
            all.iter().map(|query| history.query(query).expect("it is sound").series.len()).sum();
        assert_eq!(lines, SERIES);
        watch.elapsed().as_secs_f64() * 1e3
    });
}

/// Ten thousand windows of five minutes, as rules ask for them once in a while.
fn windows(suite: &mut Suite, history: &History) {
    let ids: Vec<SeriesId> = METRICS
        .iter()
        .flat_map(|(name, _)| history.matching(&Selector::name(*name)))
        .map(|matched| matched.id)
        .collect();
    let window = Window::ending(history.last_ms().expect("a day is in it"), 300_000);
    for (name, aggregate) in
        [("mean", Aggregate::Avg), ("rate", Aggregate::Rate), ("p95", Aggregate::Quantile(0.95))]
    {
        let case = format!("history: {name} of five minutes");
        suite.time(&case, Clock::Cpu, 10_000).at_most(2_000.0).measure(|| {
            for at in 0..10_000 {
                black_box(history.aggregate(&ids[at % SERIES..=at % SERIES], window, aggregate));
            }
        });
    }
}
