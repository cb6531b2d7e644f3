//! Score, insight and advice over the history that a registry filled, as a monitor has them.

use std::time::Duration;

use monitor::advice::{AdviceContext, Advisor, AdvisorOptions, GenericOptions, generic_rules};
use monitor::anomaly::AnomalyOptions;
use monitor::insight::{
    DegradationOptions, MetricSpec, Side, Worse, anomaly, baselines, bottleneck, degradations,
    forecast,
};
use monitor::score::{PartState, Score, ScoreMetric, ScoreOptions, ScorePart};
use monitor::{Aggregate, History, HistoryOptions, Moment, Registry, Selector};

/// A registry and a history whose ticks a test makes.
struct Rig {
    registry: Registry,
    history: History,
    now: Moment,
}

impl Rig {
    fn new() -> Self {
        Self {
            registry: Registry::default(),
            history: History::open(HistoryOptions::default()).expect("it is in memory"),
            now: Moment { monotonic: Duration::ZERO, unix_ms: 1_700_000_000_000 },
        }
    }

    /// Ticks once a second; `each` is called before each tick with its number.
    fn tick(&mut self, seconds: u32, mut each: impl FnMut(&Registry, u32)) {
        for second in 0..seconds {
            each(&self.registry, second);
            self.now = self.now.after(Duration::from_secs(1));
            self.history.record(&self.registry.read(self.now)).expect("a second has passed");
        }
    }

    fn score(&self) -> Score {
        Score::read(&self.history, self.now.unix_ms, &ScoreOptions::default(), &[])
    }
}

/// A second of a small service: ten requests of 20 to 30 ms, one failure in a hundred.
fn serve(registry: &Registry, second: u32) {
    let labels = [("method", "GET"), ("status", "200"), ("route", "/")];
    registry.counter("http_requests_total", &labels).increment(10);
    if second.is_multiple_of(10) {
        let labels = [("method", "GET"), ("status", "503"), ("route", "/")];
        registry.counter("http_requests_total", &labels).increment(1);
    }
    let whole = registry.histogram("http_request_duration_seconds", &labels);
    let stage = |name| registry.histogram("http_request_stage_seconds", &[("stage", name)]);
    for at in 0..10 {
        let seconds = 0.020 + 0.001 * f64::from(at);
        whole.record(seconds);
        stage("database").record(seconds * 0.75);
        stage("render").record(seconds * 0.25);
    }
    registry.gauge("system_cpu_usage_ratio", &[]).set(0.30 + 0.01 * f64::from(second % 5));
}

#[test]
fn a_score_comes_after_five_minutes_and_adds_up() {
    let mut rig = Rig::new();
    rig.tick(280, serve);
    assert_eq!(rig.score().score, None, "{:?}", rig.score());
    rig.tick(30, serve);
    let score = rig.score();
    for part in &score.parts {
        let scored = [ScorePart::Latency, ScorePart::Errors, ScorePart::Saturation];
        let expected = match scored.contains(&part.part) {
            true => PartState::Scored,
            false => PartState::Absent,
        };
        assert_eq!(part.state, expected, "{part:?}");
    }
    let value = |metric| score.metric(metric).and_then(|found| found.value).expect("a value");
    assert!((value(ScoreMetric::P95) - 0.029).abs() < 0.001);
    assert!((value(ScoreMetric::ErrorRatio) - 0.01).abs() < 0.001);
    assert!((value(ScoreMetric::Cpu) - 0.32).abs() < 0.001);
    let sum: f64 = score.parts.iter().filter_map(|part| part.points).sum();
    assert!((score.score.expect("a score") - sum).abs() < 1e-9);
}

#[test]
fn baselines_degradation_and_the_bottleneck_are_read_from_the_history() {
    let mut rig = Rig::new();
    rig.tick(4_000, serve);
    let specs = MetricSpec::defaults();
    let found = baselines(&rig.history, &specs, rig.now.unix_ms);
    let hour = |name: &str| {
        let found = found.iter().find(|found| found.name == name).expect("it was asked for");
        found.hour.clone().unwrap_or_else(|| panic!("no baseline of {name}"))
    };
    assert!((hour("cpu").median - 0.32).abs() < 0.005);
    assert!((hour("response_time").median - 0.029).abs() < 0.001);
    assert!((hour("throughput").median - 10.1).abs() < 0.2, "{}", hour("throughput").median);

    let whole = Selector::name("http_request_duration_seconds");
    let stages = Selector::name("http_request_stage_seconds");
    let window = Duration::from_secs(300);
    let slow = bottleneck(&rig.history, &whole, &stages, "stage", window, rig.now.unix_ms)
        .expect("3,000 requests");
    assert_eq!((slow.stage.as_str(), slow.dominates), ("database", true));
    assert!((slow.share - 0.75).abs() < 0.02);
    // The same samples give the same result.
    let again = bottleneck(&rig.history, &whole, &stages, "stage", window, rig.now.unix_ms);
    assert_eq!(again, Some(slow));

    rig.tick(300, |registry, second| {
        serve(registry, second);
        registry.gauge("system_cpu_usage_ratio", &[]).set(0.8);
    });
    let options = DegradationOptions::default();
    let found = degradations(&rig.history, &specs, rig.now.unix_ms, &options);
    let degraded: Vec<&str> =
        found.iter().filter(|found| found.degraded).map(|found| found.name.as_str()).collect();
    assert_eq!(degraded, ["cpu"]);
    assert_eq!(found[0].worse, Worse::Higher);
}

#[test]
fn a_rush_that_last_week_knows_is_not_odd_and_another_is() {
    let mut rig = Rig::new();
    // A tick a minute for a week and a day, then one each ten seconds; a rush each day at noon.
    let rush = |at_ms: i64| (12..13).contains(&(at_ms / 3_600_000 % 24));
    let tick = |rig: &mut Rig, seconds: u64, value: &dyn Fn(i64) -> f64| {
        rig.now = rig.now.after(Duration::from_secs(seconds));
        rig.registry.gauge("load", &[]).set(value(rig.now.unix_ms));
        rig.history.record(&rig.registry.read(rig.now)).expect("time has passed");
    };
    let usual = |at_ms| if rush(at_ms) { 50.0 } else { 10.0 };
    // 22:13 on the first day to 11:58 on the ninth.
    for minute in 1..=(8 * 24 - 10) * 60 - 15 {
        tick(&mut rig, 60, &usual);
        // Days pass in milliseconds here, faster than the thread that keeps them for good.
        if minute % 5 == 0 {
            rig.history.flush().expect("it is in memory");
        }
    }
    for _ in 0..90 {
        tick(&mut rig, 10, &usual);
    }
    let odd = |rig: &Rig| {
        let (load, options) = (Selector::name("load"), AnomalyOptions::default());
        let at_ms = rig.now.unix_ms;
        anomaly(&rig.history, &load, Aggregate::Avg, options, at_ms).expect("there are values")
    };
    let found = odd(&rig);
    assert!(rush(rig.now.unix_ms), "the rush has begun");
    assert_eq!((found.odd, found.learning, found.value), (false, false, 50.0), "{found:?}");
    assert_eq!(found.expected_weekly, Some(50.0));
    for _ in 0..30 {
        tick(&mut rig, 10, &|_| 90.0);
    }
    let found = odd(&rig);
    assert!(found.odd && found.since_ms.is_some(), "{found:?}");
}

#[test]
fn growth_is_forecast_and_advised_about() {
    let mut rig = Rig::new();
    let mebi = f64::from(1 << 20);
    rig.tick(2 * 3_600, |registry, second| {
        // A mebibyte every ten seconds, and a saw on top of it.
        let resident = mebi * (500.0 + f64::from(second) / 10.0 + f64::from(second % 7));
        registry.gauge("process_resident_memory_bytes", &[]).set(resident);
        registry.gauge("process_memory_limit_bytes", &[]).set(2_048.0 * mebi);
    });
    let window = Duration::from_secs(2 * 3_600);
    let found = forecast(
        &rig.history,
        &Selector::name("process_resident_memory_bytes"),
        Aggregate::Avg,
        window,
        rig.now.unix_ms,
        2_048.0 * mebi,
        Side::Above,
    )
    .expect("a clear trend");
    // 1,220 of 2,048 MiB are used, and 0.1 MiB come each second.
    let left = found.forecast.expected_seconds;
    assert!((left - 8_250.0).abs() < 300.0, "{left}");

    let context = AdviceContext { source: &rig.history, at_ms: rig.now.unix_ms, score: None };
    let titles: Vec<(String, String)> = generic_rules(&GenericOptions::default())
        .iter()
        .flat_map(|rule| {
            let titles = rule.check(&context).into_iter().map(|finding| finding.title);
            titles.map(|title| (rule.id().to_owned(), title)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(titles.len(), 1, "{titles:?}");
    assert_eq!(titles[0].0, "memory.growth");
    assert!(titles[0].1.contains("reaches its limit of 2 GiB in 2 h"), "{titles:?}");

    let mut advisor = Advisor::new(AdvisorOptions::default());
    for rule in generic_rules(&GenericOptions::default()) {
        advisor.add_rule(rule);
    }
    advisor.evaluate(rig.now, &rig.history, None, None);
    assert_eq!(advisor.open().len(), 1);
}
