//! The monitor as a whole, with a clock that the tests turn: ticks, alerts, score and advice over restarts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use monitor::advice::{
    Action, Actuator, ActuatorError, Category, Finding, Priority, Receipt, State, UndoError,
};
use monitor::alert::{AlertState, Severity};
use monitor::{
    Aggregate, Clock, Format, Moment, Monitor, MonitorBuilder, Selector, Source as _, StartError,
    Window,
};

/// Where the clock begins.
const START_MS: i64 = 1_790_000_000_000;

/// A clock that stands still until it is turned.
#[derive(Clone, Default)]
struct Turned(Arc<AtomicU64>);

impl Clock for Turned {
    fn now(&self) -> Moment {
        let millis = self.0.load(SeqCst);
        Moment {
            monotonic: Duration::from_millis(millis),
            unix_ms: START_MS + i64::try_from(millis).expect("a few days"),
        }
    }
}

impl Turned {
    /// Lets seconds pass, with a tick in each.
    fn seconds(&self, monitor: &Monitor, seconds: u64) {
        for _ in 0..seconds {
            self.0.fetch_add(1_000, SeqCst);
            monitor.tick();
        }
    }
}

fn builder(clock: &Turned) -> MonitorBuilder {
    Monitor::builder().manual().collector(None).without_generic_advice().clock(clock.clone())
}

fn kept(clock: &Turned, directory: &Path) -> Monitor {
    builder(clock).directory(directory).start().expect("a monitor")
}

fn last(monitor: &Monitor, metric: &str) -> Option<f64> {
    let history = monitor.history();
    let found: Vec<_> =
        history.matching(&Selector::name(metric)).iter().map(|found| found.id).collect();
    let window = Window::ending(monitor.now().unix_ms, 3_600_000);
    history.aggregate(&found, window, Aggregate::Last).map(|read| read.value)
}

#[test]
fn a_tick_reads_remembers_and_judges() {
    let clock = Turned::default();
    let monitor = builder(&clock).start().expect("a monitor");
    let depth = monitor.gauge("queue_depth", &[]);
    let added =
        monitor.add_alert_rule("queue_long", "queue_depth", 10.0, Severity::Critical, "too long");
    added.expect("a rule");
    depth.set(3.0);
    clock.seconds(&monitor, 30);
    assert_eq!(last(&monitor, "queue_depth"), Some(3.0));
    assert!(monitor.alerts(1.0).active.is_empty());
    depth.set(11.0);
    clock.seconds(&monitor, 70); // what counts is the mean of a minute
    let alerts = monitor.alerts(1.0);
    let alert = alerts.active.first().expect("an alert");
    assert_eq!((&*alert.rule, alert.state), ("queue_long", AlertState::Firing));
    assert_eq!(alert.value, Some(11.0));
    depth.set(3.0);
    clock.seconds(&monitor, 70);
    assert!(monitor.alerts(1.0).active.is_empty());
    assert_eq!(monitor.alerts(1.0).ended.len(), 1);
    assert_eq!(last(&monitor, "monitor_ticks_total"), Some(170.0));
}

#[test]
fn snapshots_and_texts_are_those_of_the_last_tick() {
    let clock = Turned::default();
    let monitor = builder(&clock).start().expect("a monitor");
    let seen = monitor.counter("seen_total", &[]);
    seen.increment(1);
    clock.seconds(&monitor, 1);
    seen.increment(1);
    assert_eq!(monitor.snapshot().number("seen_total", &[]), Some(1.0));
    let text = monitor.render(Format::Text);
    assert!(String::from_utf8_lossy(&text).contains("\nseen_total 1\n"));
    // Nobody ticks any more: whoever asks reads.
    clock.0.fetch_add(5_000, SeqCst);
    assert_eq!(monitor.snapshot().number("seen_total", &[]), Some(2.0));
}

#[test]
fn history_alerts_and_advice_outlive_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Turned::default();
    let advice = || {
        let mut finding =
            Finding::advice(Category::Disk, Priority::High, "old", "run `backup now`");
        finding.action = Some(Action::set("backup.every", "1d", "1h"));
        vec![finding]
    };
    let start = || {
        let monitor = builder(&clock)
            .directory(directory.path())
            .actuator(Accepts)
            .start()
            .expect("a monitor");
        monitor.add_advice_rule("backup.old", move |_| advice());
        let rule = ("queue_long", "queue_depth", 10.0, Severity::Warning, "too long");
        monitor.add_alert_rule(rule.0, rule.1, rule.2, rule.3, rule.4).expect("a rule");
        monitor
    };
    let monitor = start();
    monitor.gauge("queue_depth", &[]).set(11.0);
    clock.seconds(&monitor, 70);
    let firing = monitor.alerts(1.0).active.first().expect("an alert").clone();
    monitor.apply("backup.old", "ann").expect("it is open");
    monitor.shutdown(Duration::from_secs(5));
    drop(monitor);

    let monitor = start();
    monitor.gauge("queue_depth", &[]).set(11.0);
    clock.seconds(&monitor, 70);
    let again = monitor.alerts(1.0).active.first().expect("it still fires").clone();
    assert_eq!((again.fingerprint, again.starts_at_ms), (firing.fingerprint, firing.starts_at_ms));
    let advice = monitor.recommendations();
    assert!(matches!(advice[0].state, State::Applied { .. }), "{advice:?}");
    monitor.undo("backup.old", "ann").expect("it is applied");
    assert_eq!(monitor.recommendations()[0].state.name(), "rolled_back");
    // Both processes ticked seventy times.
    let series = monitor.history().matching(&Selector::name("queue_depth"));
    let all = Window::ending(monitor.now().unix_ms, 3_600_000);
    let count = monitor.history().aggregate(&[series[0].id], all, Aggregate::Count);
    assert_eq!(count.map(|read| read.value), Some(140.0));
    monitor.shutdown(Duration::from_secs(5));
}

/// Takes every change, and keeps it for later processes.
struct Accepts;

impl Actuator for Accepts {
    fn apply(&self, _: &str, _: &serde_json::Value) -> Result<Receipt, ActuatorError> {
        Ok(Receipt::new(1).persistent())
    }

    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError> {
        assert_eq!(receipt.change(), 1);
        Ok(())
    }
}

/// Panics as a listener of changes might.
struct Panics;

impl Actuator for Panics {
    fn apply(&self, _: &str, _: &serde_json::Value) -> Result<Receipt, ActuatorError> {
        panic!("a listener is out of order")
    }

    fn undo(&self, _: &Receipt) -> Result<(), UndoError> {
        Ok(())
    }
}

#[test]
fn a_change_that_panics_is_refused_and_counted_and_the_ticks_go_on() {
    let clock = Turned::default();
    let monitor = builder(&clock).actuator(Panics).auto_apply(|| true).start().expect("a monitor");
    monitor.add_advice_rule("backup.old", |_| {
        let mut finding = Finding::advice(Category::Disk, Priority::High, "old", "run it");
        finding.action = Some(Action::set("backup.every", "1d", "1h"));
        vec![finding]
    });
    clock.seconds(&monitor, 1_000);
    let refused = monitor.advice_audit().into_iter().find(|entry| entry.by == "auto");
    let refused = refused.expect("it was tried");
    assert_eq!(refused.reason, "it panicked: a listener is out of order");
    assert_eq!(last(&monitor, "monitor_advice_panics_total"), Some(1.0));
    let refused = monitor.apply("backup.old", "ann").expect_err("it panics");
    assert_eq!(refused.to_string(), "the change was refused");
    clock.seconds(&monitor, 1);
    assert_eq!(last(&monitor, "monitor_advice_panics_total"), Some(2.0));
    assert_eq!(monitor.recommendations()[0].state, State::Open);
    monitor.shutdown(Duration::from_secs(1));
}

#[test]
fn a_second_process_keeps_to_memory_and_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Turned::default();
    let first = kept(&clock, directory.path());
    let second = kept(&clock, directory.path());
    clock.seconds(&second, 2);
    assert_eq!(first.history_degraded(), None);
    let reason = second.history_degraded().expect("a reason");
    assert!(reason.contains("is open in another process"), "{reason}");
    assert_eq!(last(&second, "monitor_history_degraded"), Some(1.0));
    second.shutdown(Duration::from_secs(1));
    first.shutdown(Duration::from_secs(1));
}

#[test]
fn what_cannot_be_is_refused() {
    let error = Monitor::builder().interval(Duration::ZERO).start().expect_err("no interval");
    assert!(matches!(error, StartError::Interval(_)), "{error}");
    let directory = tempfile::tempdir().expect("a directory");
    let rules = directory.path().join("rules.toml");
    std::fs::write(&rules, "version = 1\n[[rule]]\nid = 'a'\n").expect("a file");
    let error = Monitor::builder().rule_file(&rules).start().expect_err("no rules");
    let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("rules.toml"), "{error}: {text}");
}

#[test]
fn the_thread_ticks_and_ends_with_the_last_handle() {
    let monitor = Monitor::builder()
        .interval(Duration::from_millis(10))
        .collector(None)
        .start()
        .expect("a monitor");
    let ticks = monitor.counter("monitor_ticks_total", &[]);
    while ticks.get() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    monitor.shutdown(Duration::from_secs(5));
    let at_the_end = ticks.get();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ticks.get(), at_the_end);
}
