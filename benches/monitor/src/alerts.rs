//! What judging costs: a thousand rules with ten instances each, over five minutes of samples a second.
//!
//! Nobody else evaluates rules inside a process, so there is no peer and the target is absolute. What the
//! rules themselves cost is told by a source that answers at once; the rest is the history's.

use std::hint::black_box;
use std::time::Duration;

use monitor::alert::{Engine, EngineOptions, RuleSet};
use monitor::{
    Aggregate, Gauge, History, HistoryOptions, Matched, Moment, Reading, Registry, Selector,
    SeriesId, Source, Window,
};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

const RULES: usize = 1_000;
const METRICS: usize = 100;
const INSTANCES: usize = 10;

/// Ten series for each of a hundred names, all with noise around a half, and their history.
struct Watched {
    registry: Registry,
    gauges: Vec<Gauge>,
    history: History,
    random: fastrand::Rng,
    now: Moment,
}

impl Watched {
    fn new() -> Self {
        let registry = Registry::default();
        let gauge = |at: usize| {
            let (name, instance) = (format!("metric_{}", at / INSTANCES), at % INSTANCES);
            registry.gauge(&name, &[("instance", instance.to_string().as_str())])
        };
        let gauges = (0..METRICS * INSTANCES).map(gauge).collect();
        let history = History::open(HistoryOptions::default()).expect("it is in memory");
        let random = fastrand::Rng::with_seed(7);
        let now = Moment { monotonic: Duration::ZERO, unix_ms: 1_700_000_000_000 };
        let mut watched = Self { registry, gauges, history, random, now };
        watched.seconds(300);
        watched
    }

    /// Lets time pass, with a sample of each series in each second.
    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for gauge in &self.gauges {
                gauge.set(0.3 + 0.4 * self.random.f64());
            }
            self.now = self.now.after(Duration::from_secs(1));
            self.history.record(&self.registry.read(self.now));
        }
    }
}

/// A source that knows the series and answers the same for every window.
struct Ready(History);

impl Source for Ready {
    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        self.0.matching(selector)
    }

    fn aggregate(&self, series: &[SeriesId], _: Window, _: Aggregate) -> Option<Reading> {
        (!series.is_empty()).then_some(Reading { value: 0.5, samples: 300, expected: 300 })
    }

    fn range(&self, _: &[SeriesId], _: Window, _: i64, _: Aggregate) -> Vec<Option<f64>> {
        Vec::new()
    }
}

/// The rows: over the history, and without the cost of reading it, at rest and with everything firing.
pub(crate) fn rows(suite: &mut Suite) {
    let mut watched = Watched::new();
    let history = watched.history.clone();
    let ready = Ready(history.clone());
    let cases: [(&str, &dyn Source, &str); 3] = [
        ("alerts, 1,000 rules x 10 instances, 5 min", &history, "> 0.9"),
        ("alerts, the same without reading samples", &ready, "> 0.9"),
        ("alerts, the same with all of them firing", &ready, "> 0.1"),
    ];
    for (name, source, raise) in cases {
        let mut engine = Engine::new(rules(raise), EngineOptions::default());
        // The first evaluation finds the series, and those that fire say so.
        engine.evaluate(watched.now, source);
        suite.reported(name, "ms").at_most(20.0).rounds(41).measure(|| {
            watched.seconds(10);
            let stopwatch = Stopwatch::start(Clock::Cpu);
            black_box(engine.evaluate(watched.now, source));
            stopwatch.elapsed().as_secs_f64() * 1e3
        });
    }
}

fn rules(raise: &str) -> RuleSet {
    let rule = |at: usize| {
        let metric = at % METRICS;
        format!(
            "[[rule]]\nid = 'rule_{at}'\nmetric = 'metric_{metric}'\nagg = 'avg'\nwindow = '5m'\n\
             by = ['instance']\nlevel.warning = '{raise}'\n\
             summary = '{{{{labels.instance}}}} at {{{{value|pct}}}}'\n"
        )
    };
    let text: String = (0..RULES).map(rule).collect();
    RuleSet::parse(&text, "bench.toml").expect("rules that read")
}
