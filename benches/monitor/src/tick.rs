//! What watching costs: the collector reads the machine, the registry all series, and the history takes
//! them in each second; score and advice are read from it every ten seconds and every five minutes.

use std::hint::black_box;
use std::time::Duration;

use monitor::advice::{Advisor, AdvisorOptions, GenericOptions, generic_rules};
use monitor::collect::{Collector, CollectorOptions};
use monitor::score::{Score, ScoreOptions};
use monitor::{Clock as _, History, HistoryOptions, Registry, SystemClock};
use ultra_perf_bench::{Clock, Suite};

/// Ticks of one round.
const TICKS: u64 = 50;
/// Series of a tick, those of the collector among them.
const SERIES: usize = 200;

/// A registry with a collector, filled up to 200 series: half of the rest histograms.
fn filled() -> (Registry, Collector) {
    let registry = Registry::default();
    let collector =
        Collector::start(&registry, CollectorOptions::default()).expect("a thread can be started");
    let clock = SystemClock::new();
    // The slow set comes from its thread, and ratios from the second reading on.
    let own = loop {
        let read = registry.read(clock.now());
        if read.number("process_count", &[]).is_some() {
            break registry.read(clock.now()).series().count();
        }
        std::thread::yield_now();
    };
    for at in 0..SERIES.saturating_sub(own) {
        let labels = [("part", at.to_string())];
        let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        match at % 2 {
            0 => registry.counter("work_total", &labels).increment(at as u64),
            _ => {
                let seconds = registry.histogram("work_seconds", &labels);
                (1..100).for_each(|value| seconds.record(f64::from(value) * 0.000_7));
            }
        }
    }
    (registry, collector)
}

/// The rows: a tick with the history and without, and the collector's part of it.
pub(crate) fn rows(suite: &mut Suite) {
    let clock = SystemClock::new();
    let (registry, collector) = filled();
    let ticks = |registry: &Registry| {
        for _ in 0..TICKS {
            black_box(registry.read(clock.now()));
        }
    };
    suite
        .time("tick, 200 series with those of the collector", Clock::Cpu, TICKS)
        .at_most(1e6)
        .measure(|| ticks(&registry));
    // Ticks a second apart, so that blocks are closed and compressed; that is counted as well.
    let history = History::open(HistoryOptions::default()).expect("it is in memory");
    let mut now = clock.now();
    suite
        .time("tick, 200 series into the history", Clock::Cpu, TICKS)
        .at_most(1e6)
        .rounds(31)
        .measure(|| {
            for _ in 0..TICKS {
                now = now.after(Duration::from_secs(1));
                black_box(history.record(&registry.read(now)));
            }
        });
    drop(collector);

    let registry = Registry::default();
    let _collector =
        Collector::start(&registry, CollectorOptions::default()).expect("a thread can be started");
    suite
        .time("tick, the collector alone", Clock::Cpu, TICKS)
        .at_most(5e5)
        .measure(|| ticks(&registry));
}

/// Minutes that are stored before score and advice are read.
const STORED_MINUTES: u32 = 6 * 60;

/// The rows: the score and one round of all generic advice, over six hours of a small service.
pub(crate) fn reading_rows(suite: &mut Suite) {
    let (score, advice) = ("score, over six hours", "advice, all generic rules over six hours");
    if !suite.wants(score) && !suite.wants(advice) {
        return;
    }
    let registry = Registry::default();
    let history = History::open(HistoryOptions::default()).expect("it is in memory");
    let mut now = SystemClock::new().now();
    let seconds = registry.histogram("http_request_duration_seconds", &[("route", "/")]);
    let requests = registry.counter("http_requests_total", &[("status", "200")]);
    let resident = registry.gauge("process_resident_memory_bytes", &[]);
    registry.gauge("process_memory_limit_bytes", &[]).set(4e9);
    registry.gauge("system_cpu_usage_ratio", &[]).set(0.4);
    for second in 0..STORED_MINUTES * 60 {
        requests.increment(10);
        (0..10).for_each(|at| seconds.record(0.02 + 0.001 * f64::from(at)));
        resident.set(1e9 + f64::from(second % 97) * 1e6);
        now = now.after(Duration::from_secs(1));
        history.record(&registry.read(now));
        if second % 300 == 0 {
            history.flush().expect("it is in memory");
        }
    }
    let options = ScoreOptions::default();
    suite
        .time(score, Clock::Cpu, 1)
        .measure(|| _ = black_box(Score::read(&history, now.unix_ms, &options, &[])));
    suite.time(advice, Clock::Cpu, 1).measure(|| {
        let mut advisor = Advisor::new(AdvisorOptions::default());
        generic_rules(&GenericOptions::default())
            .into_iter()
            .for_each(|rule| advisor.add_rule(rule));
        black_box(advisor.evaluate(now, &history, None, None));
    });
}
