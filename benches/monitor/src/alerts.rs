//! What judging costs: a thousand rules with ten instances each, over five minutes of samples a second.
//!
//! Nobody else evaluates rules inside a process, so there is no peer and the target is absolute. The source
//! is one of plain vectors that sums each window anew; what the rules themselves cost is the difference to a
//! source that answers at once.

use std::hint::black_box;
use std::time::Duration;

use monitor::alert::{Engine, EngineOptions, MadeUp, RuleSet};
use monitor::{Aggregate, Matched, Moment, Reading, Selector, SeriesId, Source, Window};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

const RULES: usize = 1_000;
const INSTANCES: usize = 10;
/// Seconds of samples.
const SECONDS: i64 = 900;

/// A source that knows the series and answers the same for every window.
struct Instant(MadeUp);

impl Source for Instant {
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

/// Adds the rows about alerts.
pub(crate) fn rows(suite: &mut Suite) {
    let samples = source();
    measure(suite, "alerts: 1,000 rules x 10 instances, windows of 5 min", &samples, "> 0.9");
    let instant = Instant(samples);
    measure(suite, "alerts: the same, samples at no cost", &instant, "> 0.9");
    measure(suite, "alerts: the same, all of them firing", &instant, "> 0.1");
}

fn measure(suite: &mut Suite, name: &str, source: &dyn Source, raise: &str) {
    let mut engine = Engine::new(rules(raise), EngineOptions::default());
    let mut at = 300;
    let mut evaluate = || {
        let stopwatch = Stopwatch::start(Clock::Cpu);
        let now = Moment { monotonic: Duration::from_secs(at), unix_ms: at as i64 * 1_000 };
        black_box(engine.evaluate(now, source));
        at += 10;
        stopwatch.elapsed().as_secs_f64() * 1e3
    };
    // The first evaluation finds the series, and those that fire say so.
    evaluate();
    suite.reported(name, "ms").at_most(20.0).measure(evaluate);
}

/// Makes ten series for each of a hundred names, all with noise around a half.
fn source() -> MadeUp {
    let mut source = MadeUp::new();
    let mut random = fastrand::Rng::with_seed(7);
    for name in 0..100 {
        for instance in 0..INSTANCES {
            let values = (0..SECONDS).map(|second| (second * 1_000, 0.3 + 0.4 * random.f64()));
            let values: Vec<_> = values.collect();
            let instance = instance.to_string();
            source.gauge(&format!("metric_{name}"), &[("instance", instance.as_str())], values);
        }
    }
    source
}

fn rules(raise: &str) -> RuleSet {
    let rule = |at: usize| {
        let metric = at % 100;
        format!(
            "[[rule]]\nid = 'rule_{at}'\nmetric = 'metric_{metric}'\nagg = 'avg'\nwindow = '5m'\n\
             by = ['instance']\nlevel.warning = '{raise}'\n\
             summary = '{{{{labels.instance}}}} at {{{{value|pct}}}}'\n"
        )
    };
    let text: String = (0..RULES).map(rule).collect();
    RuleSet::parse(&text, "bench.toml").expect("rules that read")
}
