//! What the guard does and leaves alone when others change settings too, on a handle whose time is turned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use monitor::advice::{ApplyError as NotDone, AuditEvent, State};
use monitor::{Clock, Gauge, Moment, Monitor};

use super::*;
use crate::OptimizationLevel;

/// A clock that stands still until it is turned.
#[derive(Clone, Default)]
struct Turned(Arc<AtomicU64>);

impl Clock for Turned {
    fn now(&self) -> Moment {
        let seconds = self.0.load(Ordering::SeqCst);
        Moment {
            monotonic: Duration::from_secs(seconds),
            unix_ms: 1_790_000_000_000 + 1_000 * i64::try_from(seconds).expect("a few hours"),
        }
    }
}

const RULE: &str = "cache.made";
const CAPACITY: &str = "caches.users.capacity";

struct World {
    perf: UltraPerf,
    clock: Turned,
    good: Gauge,
}

impl World {
    /// A handle with a rule that wants `key` to be `to`, judged by how good things are.
    async fn with(key: &'static str, from: Value, to: Value) -> Self {
        let clock = Turned::default();
        let turned = clock.clone();
        let builder = UltraPerf::builder()
            .level(OptimizationLevel::Ultra)
            .set("cache.disk.enabled", "false")
            .set("monitor.history.enabled", "false")
            .set("monitor.interval", "10s")
            .set("memory.enabled", "false")
            .set("memory.tracking", "false");
        let builder = builder.monitor(move |it| it.manual().collector(None).clock(turned));
        let perf = builder.build().await.expect("a handle");
        let monitor = perf.monitor().expect("it is on");
        let good = monitor.gauge("goodness", &[]);
        for rule in [RULE, "memory.made"] {
            let action = Action::set(key, from.clone(), to.clone());
            monitor.add_advice_rule(rule, move |_| {
                let selector = Selector::name("goodness");
                let spec = MetricSpec::new(
                    "goodness",
                    selector,
                    Aggregate::Avg,
                    monitor::insight::Worse::Lower,
                );
                let finding = Finding::advice(Category::Cache, Priority::Low, "x", "y");
                vec![Finding { action: Some(action.clone()), target: Some(spec), ..finding }]
            });
        }
        let world = Self { perf, clock, good };
        world.good.set(0.8);
        world.minutes(11);
        world
    }

    fn monitor(&self) -> &Monitor {
        self.perf.monitor().expect("it is on")
    }

    fn minutes(&self, minutes: u64) {
        for _ in 0..6 * minutes {
            self.clock.0.fetch_add(10, Ordering::SeqCst);
            self.monitor().tick();
        }
    }

    /// Applies the advice and makes things worse; returns the version of the change.
    fn apply_what_is_bad(&self) -> u64 {
        self.monitor().apply(RULE, "ann").expect("it is open");
        self.good.set(0.4);
        self.perf.version()
    }

    fn state(&self) -> State {
        let all = self.monitor().recommendations();
        all.into_iter().find(|one| one.id == RULE).expect("it is there").state
    }

    fn told(&self, event: AuditEvent) -> String {
        let audit = self.monitor().advice_audit();
        let entry = audit.into_iter().rev().find(|entry| entry.id == RULE && entry.event == event);
        entry.expect("an entry").reason
    }

    fn capacity(&self) -> Option<u64> {
        Some(self.perf.config().caches.get("users")?.capacity?.as_u64())
    }
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn what_an_operator_set_meanwhile_is_not_undone() {
    let world = World::with(CAPACITY, json!("256MiB"), json!("384MiB")).await;
    world.apply_what_is_bad();
    assert_eq!(world.capacity(), Some(384 * MIB));
    world.perf.apply([(CAPACITY, json!("1GiB"))], "bob").expect("a change");
    world.minutes(11);
    assert_eq!((world.state().name(), world.capacity()), ("lapsed", Some(1_024 * MIB)));
    let reason = "bob has set caches.users.capacity since, by version 2";
    assert_eq!(world.told(AuditEvent::Lapsed), reason);
    assert_eq!(world.perf.version(), 2, "nobody has changed anything since");
}

#[tokio::test]
async fn what_somebody_set_and_took_back_again_does_not_count() {
    let world = World::with(CAPACITY, json!("256MiB"), json!("384MiB")).await;
    world.apply_what_is_bad();
    let theirs = world.perf.apply([(CAPACITY, json!("1GiB"))], "bob").expect("a change");
    world.perf.undo(theirs.version, "bob").expect("nothing has changed since");
    assert_eq!(world.capacity(), Some(384 * MIB));
    world.minutes(10);
    assert_eq!((world.state().name(), world.capacity()), ("rolled_back", None));
}

#[tokio::test]
async fn two_parts_do_not_change_the_same_key_at_a_time() {
    let world = World::with(CAPACITY, json!("256MiB"), json!("384MiB")).await;
    world.apply_what_is_bad();
    let refused = world.monitor().apply("memory.made", "ann");
    assert_eq!(refused, Err(NotDone::Busy(RULE.to_owned())));
}

#[tokio::test]
async fn a_change_that_was_undone_by_its_version_is_not_judged() {
    let world = World::with(CAPACITY, json!("256MiB"), json!("384MiB")).await;
    let version = world.apply_what_is_bad();
    world.perf.undo(version, "bob").expect("nothing has changed since");
    // What was on probation keeps nobody from the key any more.
    world.monitor().apply("memory.made", "ann").expect("it is open");
    assert_eq!(world.state().name(), "lapsed");
    assert_eq!(world.told(AuditEvent::Lapsed), "bob has undone it by version 2");
    let undone = world.monitor().undo(RULE, "ann").expect_err("it is no longer in force");
    assert_eq!(
        undone,
        NotDone::State { state: "lapsed", expected: "applied, verified or no_effect" }
    );
}

#[tokio::test]
async fn what_is_undone_follows_the_keys_for_all_and_the_level_again() {
    let world = World::with("caches.users.ttl", json!("1h"), json!("2h")).await;
    world.apply_what_is_bad();
    let ttl = || {
        let config = world.perf.config();
        config.caches.get("users").and_then(|own| own.ttl).unwrap_or(config.cache.ttl)
    };
    assert_eq!(ttl(), Duration::from_secs(7_200));
    world.minutes(10);
    assert_eq!(world.state().name(), "rolled_back");
    assert_eq!(world.told(AuditEvent::RolledBack), "target went from 0.8 to 0.4");
    world.perf.apply([("cache.ttl", json!("10m"))], "bob").expect("a change");
    assert_eq!(ttl(), Duration::from_secs(600));
    // And what was in force before the advice is in force again, be it a change itself.
    let undone = world.perf.changes().into_iter().find(|change| change.undoes == Some(1));
    assert_eq!(undone.expect("an undo").by, BY);
}

#[tokio::test]
async fn a_cache_that_was_smaller_than_a_setting_may_be_is_given_back_too() {
    let world = World::with(CAPACITY, json!(17), json!("2MiB")).await;
    world.perf.apply([(CAPACITY, json!(17))], "bob").expect_err("it is below the least");
    world.apply_what_is_bad();
    assert_eq!(world.capacity(), Some(2 * MIB));
    world.minutes(10);
    assert_eq!((world.state().name(), world.capacity()), ("rolled_back", None));
}

#[tokio::test]
async fn a_change_whose_listener_panics_is_taken_back_and_refused() {
    let world = World::with(CAPACITY, json!("256MiB"), json!("384MiB")).await;
    world.perf.on_change(|_, after| assert!(after.caches.is_empty(), "a listener is out of order"));
    let refused = world.monitor().apply(RULE, "ann").expect_err("it panics");
    assert!(matches!(refused, NotDone::Refused(_)), "{refused}");
    assert_eq!((world.state(), world.capacity()), (State::Open, None));
    assert_eq!(world.told(AuditEvent::ApplyRefused), "it panicked: a listener is out of order");
    world.perf.apply([("cache.ttl", json!("10m"))], "bob").expect("changes go on");
    world.minutes(1);
    assert_eq!(world.state(), State::Open);
}
