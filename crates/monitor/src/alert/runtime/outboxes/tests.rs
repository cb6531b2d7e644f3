//! Tests of the outboxes, with time passed in.

use proptest::prelude::*;

use super::*;
use crate::alert::event::{EventKind, Severity};
use crate::alert::handler::tests::event;

fn at(seconds: f64) -> Moment {
    let monotonic = Duration::from_secs_f64(seconds);
    Moment { monotonic, unix_ms: 1_700_000_000_000 + monotonic.as_millis() as i64 }
}

fn options(id: &str) -> DeliveryOptions {
    DeliveryOptions::new(id)
}

/// Outboxes in memory that serve these handlers since the second 0.
fn serving(handlers: &[DeliveryOptions]) -> Outboxes {
    let (registry, pause) = (Registry::default(), Duration::from_secs(1));
    let kept = Kept::default();
    let mut outboxes = Outboxes::new(kept, Journal::in_memory(), registry, pause, 7);
    serve(&mut outboxes, handlers);
    outboxes
}

fn serve(outboxes: &mut Outboxes, handlers: &[DeliveryOptions]) {
    let lanes: Vec<_> = handlers.iter().map(|options| (options.clone(), None)).collect();
    outboxes.serve(&lanes, at(0.0));
}

/// Puts events of these keys into the outboxes that are named.
fn put(outboxes: &mut Outboxes, keys: &[&str], handlers: &[&str]) {
    let event = |key: &&str| AlertEvent {
        handlers: handlers.iter().map(|&id| id.into()).collect(),
        ..event(key, EventKind::Fire)
    };
    put_events(outboxes, keys.iter().map(event).collect());
}

fn put_events(outboxes: &mut Outboxes, events: Vec<AlertEvent>) {
    outboxes.take(Outcome { events, ..Outcome::default() }, 0);
}

/// The keys of the events of the message that is due, nothing if none is.
fn due(outboxes: &mut Outboxes, id: &str, seconds: f64) -> Vec<String> {
    match outboxes.next(&id.into(), at(seconds).monotonic) {
        Next::Message(message) => message.events.iter().map(|it| it.key.clone()).collect(),
        _ => Vec::new(),
    }
}

/// Takes the message that is due and returns its key.
fn send(outboxes: &mut Outboxes, id: &str, seconds: f64) -> Option<String> {
    let id: Arc<str> = id.into();
    let Next::Message(message) = outboxes.next(&id, at(seconds).monotonic) else { return None };
    outboxes.succeeded(&id, &message.key);
    Some(message.key)
}

#[track_caller]
fn waits(outboxes: &mut Outboxes, id: &str, seconds: f64, expected: f64) {
    let next = outboxes.next(&id.into(), at(seconds).monotonic);
    let Next::Wait(wait) = next else { panic!("{next:?}") };
    assert!((wait.as_secs_f64() - expected).abs() < 0.001, "{wait:?} instead of {expected} s");
}

#[test]
fn each_handler_gets_its_messages_in_their_order() {
    let mut outboxes = serving(&[options("x"), options("y")]);
    put(&mut outboxes, &["a", "b"], &["x", "y"]);
    put(&mut outboxes, &["c"], &["y", "nobody"]);
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/a"));
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/b"));
    assert_eq!(outboxes.next(&"x".into(), Duration::ZERO), Next::Idle);
    assert_eq!(outboxes.next(&"nobody".into(), Duration::ZERO), Next::Gone);
    assert!(!outboxes.is_drained());
    for key in ["y/a", "y/b", "y/c"] {
        assert_eq!(send(&mut outboxes, "y", 0.0).as_deref(), Some(key));
    }
    assert!(outboxes.is_drained());
}

#[test]
fn a_failed_message_comes_again_with_growing_waits_and_then_is_dead() {
    let mut outboxes = serving(&[options("x")]);
    put(&mut outboxes, &["a", "b"], &["x"]);
    let (id, mut now): (Arc<str>, _) = ("x".into(), 0.0);
    for (attempt, longest) in [1.0, 4.0, 16.0].into_iter().enumerate() {
        let Next::Message(message) = outboxes.next(&id, at(now).monotonic) else { panic!() };
        assert_eq!((message.key.as_str(), message.attempts), ("x/a", attempt as u32));
        outboxes.failed(&id, "x/a", &HandlerError::failed("busy"), at(now));
        let Next::Wait(wait) = outboxes.next(&id, at(now).monotonic) else { panic!() };
        let wait = wait.as_secs_f64();
        assert!((longest / 2.0..=longest).contains(&wait), "{wait} of {longest}");
        now += wait + 0.001;
    }
    assert_eq!(due(&mut outboxes, "x", now), ["a"]);
    outboxes.failed(&id, "x/a", &HandlerError::failed("busy"), at(now));
    // The next one is not held up by it.
    assert_eq!(send(&mut outboxes, "x", now).as_deref(), Some("x/b"));
    let letters = &outboxes.kept.outboxes["x"].dead;
    let letter = letters.front().expect("a dead letter");
    assert_eq!((letter.message.attempts, letter.error.as_str()), (4, "busy"));
    assert!(outboxes.is_drained());
    assert_eq!((outboxes.revive(Some("y")), outboxes.revive(None)), (0, 1));
    assert_eq!(send(&mut outboxes, "x", now).as_deref(), Some("x/a"));
    assert!(outboxes.kept.outboxes["x"].dead.is_empty());
}

#[test]
fn a_receiver_that_says_no_is_not_asked_again_and_one_that_says_when_is_left_alone_until_then() {
    let mut outboxes = serving(&[options("x")]);
    put(&mut outboxes, &["a", "b"], &["x"]);
    assert_eq!(due(&mut outboxes, "x", 0.0), ["a"]);
    outboxes.failed(&"x".into(), "x/a", &HandlerError::Refused("status 400".into()), at(0.0));
    assert_eq!(due(&mut outboxes, "x", 0.0), ["b"]);
    let retry_after = Some(Duration::from_secs(30));
    let slow_down = HandlerError::Failed { reason: "status 429".into(), retry_after };
    outboxes.failed(&"x".into(), "x/b", &slow_down, at(0.0));
    waits(&mut outboxes, "x", 0.0, 30.0);
    assert_eq!(due(&mut outboxes, "x", 30.0), ["b"]);
}

#[test]
fn events_of_a_group_wait_for_each_other_and_then_for_the_interval() {
    let by_rule = DeliveryOptions {
        group_by: vec!["alertname".into()],
        group_wait: Duration::from_secs(10),
        group_interval: Duration::from_secs(60),
        events_max: 3,
        ..options("x")
    };
    let mut outboxes = serving(&[by_rule]);
    put(&mut outboxes, &["a", "b"], &["x"]);
    waits(&mut outboxes, "x", 0.0, 10.0);
    let mut other = event("z", EventKind::Fire);
    (other.rule, other.handlers) = ("disk_full".into(), vec!["x".into()]);
    put_events(&mut outboxes, vec![other]);
    put(&mut outboxes, &["c", "d"], &["x"]);
    waits(&mut outboxes, "x", 4.0, 6.0);
    assert_eq!(due(&mut outboxes, "x", 10.0), ["a", "b", "c"]);
    // It stays as it is until it is sent, whatever comes.
    put(&mut outboxes, &["e"], &["x"]);
    assert_eq!(send(&mut outboxes, "x", 11.0).as_deref(), Some("x/a+2"));
    waits(&mut outboxes, "x", 11.0, 3.0);
    assert_eq!(send(&mut outboxes, "x", 14.0).as_deref(), Some("x/z"));
    assert_eq!(due(&mut outboxes, "x", 69.0), [""; 0]);
    assert_eq!(due(&mut outboxes, "x", 70.0), ["d", "e"]);
    // Who closes waits for nobody.
    outboxes.succeeded(&"x".into(), "x/d+1");
    put(&mut outboxes, &["f"], &["x"]);
    assert_eq!(due(&mut outboxes, "x", 71.0), [""; 0]);
    outboxes.close();
    assert_eq!(due(&mut outboxes, "x", 71.0), ["f"]);
}

#[test]
fn a_full_outbox_makes_dead_letters_and_a_minute_has_a_number_of_messages() {
    let few = DeliveryOptions { queue: 2, per_minute: 2, ..options("x") };
    let mut outboxes = serving(&[few]);
    put(&mut outboxes, &["a", "b", "c"], &["x"]);
    let dead: Vec<_> = outboxes.kept.outboxes["x"].dead.iter().collect();
    assert_eq!((dead.len(), dead[0].message.key.as_str()), (1, "x/c"));
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/a"));
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/b"));
    put(&mut outboxes, &["d"], &["x"]);
    waits(&mut outboxes, "x", 0.0, 30.0);
    waits(&mut outboxes, "x", 20.0, 10.0);
    assert_eq!(send(&mut outboxes, "x", 30.1).as_deref(), Some("x/d"));
}

#[test]
fn who_is_told_of_an_alert_is_told_of_its_end_below_its_level_too() {
    let errors = DeliveryOptions { min_severity: Severity::Error, ..options("x") };
    let mut outboxes = serving(&[errors]);
    let mut tell = |key: &str, kind, severity| {
        let handlers = vec!["x".into()];
        put_events(&mut outboxes, vec![AlertEvent { severity, handlers, ..event(key, kind) }]);
        send(&mut outboxes, "x", 0.0)
    };
    assert_eq!(tell("a", EventKind::Fire, Severity::Info), None);
    assert_eq!(tell("b", EventKind::Resolve, Severity::Info), None);
    assert!(tell("c", EventKind::Fire, Severity::Error).is_some());
    assert!(tell("d", EventKind::DeEscalate, Severity::Info).is_some());
    assert!(tell("e", EventKind::Resolve, Severity::Info).is_some());
    assert_eq!(tell("f", EventKind::Resolve, Severity::Critical), None);
}

#[test]
fn what_goes_on_is_repeated_until_it_ends() {
    let mut outboxes = serving(&[]);
    let id: Arc<str> = "x".into();
    outboxes.serve(&[(options("x"), Some(Duration::from_secs(60)))], at(0.0));
    assert_eq!(outboxes.next(&id, at(0.0).monotonic), Next::Idle);
    put(&mut outboxes, &["a"], &["x"]);
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/a"));
    for seconds in [1.0, 61.0, 121.0] {
        let Next::Refresh(active) = outboxes.next(&id, at(seconds).monotonic) else { panic!() };
        assert_eq!(active[0].key, "a");
        waits(&mut outboxes, "x", seconds, 60.0);
    }
    let handlers = vec![Arc::clone(&id)];
    put_events(&mut outboxes, vec![AlertEvent { handlers, ..event("b", EventKind::Resolve) }]);
    assert_eq!(send(&mut outboxes, "x", 130.0).as_deref(), Some("x/b"));
    assert_eq!(outboxes.next(&id, at(300.0).monotonic), Next::Idle);
}

#[test]
fn a_beginning_and_its_end_at_once_are_both_told() {
    let mut outboxes = serving(&[options("x")]);
    let of = |key, kind| AlertEvent { handlers: vec!["x".into()], ..event(key, kind) };
    put_events(&mut outboxes, vec![of("a", EventKind::Fire), of("b", EventKind::Resolve)]);
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/a"));
    assert_eq!(send(&mut outboxes, "x", 0.0).as_deref(), Some("x/b"));
}

#[test]
fn an_end_that_a_handler_does_not_get_ends_its_repetitions_too() {
    let mut outboxes = serving(&[DeliveryOptions { send_resolved: false, ..options("x") }]);
    put(&mut outboxes, &["a"], &["x"]);
    assert!(send(&mut outboxes, "x", 0.0).is_some());
    assert_eq!(outboxes.kept.outboxes["x"].told.len(), 1);
    put_events(
        &mut outboxes,
        vec![AlertEvent { handlers: vec!["x".into()], ..event("b", EventKind::Resolve) }],
    );
    assert_eq!(send(&mut outboxes, "x", 0.0), None);
    assert!(outboxes.kept.outboxes["x"].told.is_empty());
}

#[test]
fn what_waits_for_a_handler_that_is_removed_becomes_dead_letters() {
    let mut outboxes = serving(&[options("x"), options("y")]);
    put(&mut outboxes, &["a", "b"], &["x", "y"]);
    assert_eq!(due(&mut outboxes, "x", 0.0), ["a"]);
    serve(&mut outboxes, &[options("y")]);
    assert_eq!(outboxes.next(&"x".into(), Duration::ZERO), Next::Gone);
    assert!(outboxes.kept.outboxes["x"].len() == 0 && !outboxes.is_drained());
    assert_eq!(outboxes.revive(None), 0, "nobody serves it");
    serve(&mut outboxes, &[options("x"), options("y")]);
    assert_eq!(outboxes.revive(None), 2);
    assert_eq!(due(&mut outboxes, "x", 0.0), ["a"]);
}

#[derive(Debug, Clone)]
enum Step {
    Put { kind: EventKind, instance: u64 },
    Pass { seconds: f64 },
    Try { handler: usize, good: bool },
    Restart,
}

fn steps() -> impl Strategy<Value = Step> {
    let kinds = prop_oneof![Just(EventKind::Fire), Just(EventKind::Resolve)];
    prop_oneof![
        4 => (kinds, 0_u64..4).prop_map(|(kind, instance)| Step::Put { kind, instance }),
        2 => (0.0..40.0_f64).prop_map(|seconds| Step::Pass { seconds }),
        6 => (0_usize..2, any::<bool>()).prop_map(|(handler, good)| Step::Try { handler, good }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// Against a model that only lists what was put: every event is sent in its order, dead or waiting,
    /// each once, whatever fails and however often the process is started anew.
    #[test]
    fn nothing_is_lost_and_nothing_is_sent_twice(steps in prop::collection::vec(steps(), 0..120)) {
        let handlers = [
            DeliveryOptions { queue: 5, retries: 1, ..options("single") },
            DeliveryOptions {
                group_by: vec!["cache".into()],
                group_wait: Duration::from_secs(5),
                events_max: 3,
                ..options("grouped")
            },
        ];
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let start = |now: f64| {
            let (journal, kept, _) = Journal::open(&path, 0).expect("it opens");
            let (registry, pause) = (Registry::default(), Duration::from_secs(1));
            let mut outboxes = Outboxes::new(kept, journal, registry, pause, 7);
            let lanes: Vec<_> = handlers.iter().map(|it| (it.clone(), None)).collect();
            outboxes.serve(&lanes, at(now));
            outboxes
        };
        let mut outboxes = start(0.0);
        let mut now = 0.0;
        let mut put = 0_usize;
        let mut wanted: [Vec<String>; 2] = Default::default();
        let mut told: std::collections::HashSet<u64> = Default::default();
        let mut sent: [Vec<String>; 2] = Default::default();
        for step in &steps {
            match *step {
                Step::Put { kind, instance } => {
                    let key = format!("{put:04}");
                    put += 1;
                    let is_told = match kind {
                        EventKind::Resolve => told.remove(&instance),
                        _ => {
                            told.insert(instance);
                            true
                        }
                    };
                    let event = AlertEvent {
                        fingerprint: crate::alert::event::Fingerprint(instance),
                        labels: Labels::new([("cache", format!("c{}", instance % 2))]),
                        handlers: handlers.iter().map(|it| it.id.clone()).collect(),
                        ..event(&key, kind)
                    };
                    if is_told {
                        wanted.iter_mut().for_each(|wanted| wanted.push(key.clone()));
                    }
                    put_events(&mut outboxes, vec![event]);
                }
                Step::Pass { seconds } => now += seconds,
                Step::Try { handler, good } => {
                    let id = &handlers[handler].id;
                    if let Next::Message(message) = outboxes.next(id, at(now).monotonic) {
                        if good {
                            let keys = message.events.iter().map(|event| event.key.clone());
                            sent[handler].extend(keys);
                            outboxes.succeeded(id, &message.key);
                        } else {
                            outboxes.failed(id, &message.key, &HandlerError::failed("no"), at(now));
                        }
                    }
                }
                Step::Restart => {
                    let before = outboxes.kept.clone();
                    drop(outboxes);
                    outboxes = start(now);
                    prop_assert_eq!(&outboxes.kept.outboxes, &before.outboxes);
                }
            }
        }
        for (at, handler) in handlers.iter().enumerate() {
            let outbox = outboxes.kept.outboxes.get(&handler.id).cloned().unwrap_or_default();
            let dead = outbox.dead.iter().flat_map(|letter| &letter.message.events);
            let formed = outbox.messages.iter().flat_map(|message| &message.events);
            let there = dead.chain(formed).chain(&outbox.waiting).map(|event| event.key.clone());
            let mut found: Vec<_> = sent[at].iter().cloned().chain(there).collect();
            found.sort();
            prop_assert_eq!(&found, &wanted[at], "{}", handler.id);
            if handler.group_by.is_empty() {
                prop_assert!(sent[at].is_sorted(), "{:?}", sent[at]);
            }
            prop_assert!(outbox.len() <= handler.queue);
        }
    }
}
