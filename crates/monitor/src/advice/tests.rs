//! The life of recommendations over passed time, and each generic rule once found and once not.

use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::clock::Moment;
use crate::insight::Worse;
use crate::insight::fake::Fake;
use crate::selector::Selector;
use crate::source::Aggregate;

const MINUTE: u64 = 60;

fn at(seconds: u64) -> Moment {
    let monotonic = Duration::from_secs(seconds);
    Moment { monotonic, unix_ms: 1_000 * seconds as i64 }
}

/// Keeps the settings that it is told, and refuses or panics when told to.
#[derive(Default)]
struct Settings {
    told: Mutex<Vec<(String, Value)>>,
    refuse: Mutex<bool>,
    panic: Mutex<bool>,
    /// Why no change is in force any more.
    overtaken: Mutex<Option<&'static str>>,
    lasting: bool,
}

impl Settings {
    /// Of a program that writes down what it is told.
    fn lasting() -> Self {
        Self { lasting: true, ..Self::default() }
    }

    fn last(&self) -> Option<Value> {
        self.told.lock().expect("not poisoned").last().map(|(_, value)| value.clone())
    }

    fn set(&self, path: &str, value: &Value) -> Result<(), ActuatorError> {
        assert!(!*self.panic.lock().expect("not poisoned"), "a listener is out of order");
        if *self.refuse.lock().expect("not poisoned") {
            return Err(ActuatorError("read-only".to_owned()));
        }
        self.told.lock().expect("not poisoned").push((path.to_owned(), value.clone()));
        Ok(())
    }
}

impl Actuator for Settings {
    fn apply(&self, path: &str, value: &Value) -> Result<Receipt, ActuatorError> {
        self.set(path, value)?;
        let receipt = Receipt::new(path);
        Ok(if self.lasting { receipt.persistent() } else { receipt })
    }

    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError> {
        if let Some(reason) = self.superseded(receipt) {
            return Err(UndoError::Superseded(reason));
        }
        let path = receipt.change().as_str().expect("its own receipt");
        Ok(self.set(path, &json!(64))?)
    }

    fn superseded(&self, _: &Receipt) -> Option<String> {
        self.overtaken.lock().expect("not poisoned").map(str::to_owned)
    }
}

fn finding(subject: &str) -> Finding {
    Finding {
        subject: subject.to_owned(),
        action: Some(Action::set("cache.capacity", 64, 96)),
        target: Some(MetricSpec::new(
            "hit_ratio",
            Selector::name("hit_ratio"),
            Aggregate::Avg,
            Worse::Lower,
        )),
        ..Finding::advice(Category::Cache, Priority::High, "31 % of misses", "Raise 64 to 96")
    }
}

/// An advisor with a rule that finds what `found` says.
fn advisor(found: &'static Mutex<Vec<&'static str>>) -> Advisor {
    let mut advisor = Advisor::new(AdvisorOptions::default());
    advisor.rule("cache.undersized", move |_| {
        found.lock().expect("not poisoned").iter().map(|subject| finding(subject)).collect()
    });
    advisor
}

fn found(subjects: &[&'static str]) -> &'static Mutex<Vec<&'static str>> {
    Box::leak(Box::new(Mutex::new(subjects.to_vec())))
}

fn state(advisor: &Advisor, id: &str) -> &'static str {
    advisor.get(id).map_or("none", |one| one.state.name())
}

const ID: &str = "cache.undersized:users";

/// Samples a minute: the hit ratio and the 95th percentile change at minute 20.
fn samples(hit_ratio: [f64; 2], p95: [f64; 2]) -> Fake {
    let mut fake = Fake::default();
    let two = |values: [f64; 2]| (0..60).map(move |at| values[usize::from(at > 20)]);
    fake.gauge("hit_ratio", &[], 0, 60_000, two(hit_ratio));
    for (minute, seconds) in (0..).zip(two(p95)) {
        fake.histogram("http_request_duration_seconds", &[], minute * 60_000, &[seconds; 20]);
    }
    fake
}

/// Applies at minute 20 and returns the state of minute 30 with the last setting.
#[track_caller]
fn probation(hit_ratio: [f64; 2], p95: [f64; 2]) -> (&'static str, Option<Value>) {
    let (source, settings) = (samples(hit_ratio, p95), Settings::default());
    let mut advisor = advisor(found(&["users"]));
    advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    assert_eq!(settings.last(), Some(json!(96)));
    let almost = at(30 * MINUTE - 1);
    advisor.evaluate(almost, &source, None, Some(&settings));
    assert_eq!(state(&advisor, ID), "applied");
    advisor.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    (state(&advisor, ID), settings.last())
}

#[test]
fn what_helped_is_verified_and_stays() {
    assert_eq!(probation([0.7, 0.8], [0.1, 0.1]), ("verified", Some(json!(96))));
}

#[test]
fn what_changed_nothing_is_without_effect_and_stays() {
    assert_eq!(probation([0.7, 0.71], [0.1, 0.1]), ("no_effect", Some(json!(96))));
    assert_eq!(probation([0.7, 0.65], [0.1, 0.1]), ("no_effect", Some(json!(96))));
}

#[test]
fn what_made_the_target_or_another_metric_worse_is_undone() {
    assert_eq!(probation([0.7, 0.6], [0.1, 0.1]), ("rolled_back", Some(json!(64))));
    assert_eq!(probation([0.7, 0.8], [0.1, 0.12]), ("rolled_back", Some(json!(64))));
}

#[test]
fn an_undo_that_is_refused_is_tried_again() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::default());
    let mut advisor = advisor(found(&["users"]));
    advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    *settings.refuse.lock().expect("not poisoned") = true;
    let changes = advisor.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    assert!(changes.iter().any(|change| change.event == AuditEvent::UndoRefused));
    assert_eq!(state(&advisor, ID), "applied");
    *settings.refuse.lock().expect("not poisoned") = false;
    // By now the readings are gone; it is undone for the reason there was.
    advisor.evaluate(at(40 * MINUTE), &Fake::default(), None, Some(&settings));
    assert_eq!((state(&advisor, ID), settings.last()), ("rolled_back", Some(json!(64))));
    let State::RolledBack { reason, .. } = &advisor.get(ID).expect("there").state else {
        panic!("rolled back");
    };
    assert_eq!(reason, "target went from 0.7 to 0.5");
}

#[test]
fn one_change_of_a_subsystem_is_on_probation_at_a_time() {
    let (source, settings) = (Fake::default(), Settings::default());
    let mut advisor = advisor(found(&["users", "pages"]));
    advisor.rule("sched.parallel", |_| {
        vec![Finding { action: Some(Action::set("sched.slots", 4, 5)), ..finding("") }]
    });
    advisor.evaluate(at(0), &source, None, Some(&settings));
    let mut apply = |id: &str| advisor.apply(id, "ann", at(0), &source, &settings);
    assert_eq!(apply(ID), Ok(()));
    assert_eq!(apply("cache.undersized:pages"), Err(ApplyError::Busy(ID.to_owned())));
    assert_eq!(apply("sched.parallel"), Ok(()));
    assert_eq!(apply(ID), Err(ApplyError::State { state: "applied", expected: "open" }));
    assert_eq!(apply("x"), Err(ApplyError::Unknown("x".to_owned())));
    advisor.evaluate(at(10 * MINUTE), &source, None, Some(&settings));
    let again = advisor.apply("cache.undersized:pages", "ann", at(11 * MINUTE), &source, &settings);
    assert_eq!(again, Ok(()));
}

#[test]
fn a_change_that_is_refused_leaves_the_recommendation_open() {
    let (source, settings) = (Fake::default(), Settings::default());
    *settings.refuse.lock().expect("not poisoned") = true;
    let mut advisor = advisor(found(&["users"]));
    advisor.evaluate(at(0), &source, None, None);
    let refused = ApplyError::Refused(ActuatorError("read-only".to_owned()));
    assert_eq!(advisor.apply(ID, "ann", at(0), &source, &settings), Err(refused));
    assert_eq!(state(&advisor, ID), "open");
    let events: Vec<_> = advisor.audit().map(|entry| entry.event).collect();
    assert_eq!(events, [AuditEvent::Opened, AuditEvent::ApplyRefused]);
}

#[test]
fn advice_for_people_has_nothing_to_apply() {
    let mut advisor = Advisor::new(AdvisorOptions::default());
    advisor.rule("a.b", |_| vec![Finding::advice(Category::Cpu, Priority::Low, "a", "b")]);
    advisor.evaluate(at(0), &Fake::default(), None, None);
    let applied = advisor.apply("a.b", "ann", at(0), &Fake::default(), &Settings::default());
    assert_eq!(applied, Err(ApplyError::NoAction));
}

#[test]
fn what_is_not_found_for_three_windows_is_gone() {
    let subjects = found(&["users"]);
    let mut advisor = advisor(subjects);
    advisor.evaluate(at(0), &Fake::default(), None, None);
    subjects.lock().expect("not poisoned").clear();
    for (minute, expected) in [(5, "open"), (10, "open"), (15, "none")] {
        advisor.evaluate(at(minute * MINUTE), &Fake::default(), None, None);
        assert_eq!(state(&advisor, ID), expected, "minute {minute}");
    }
}

#[test]
fn what_ended_opens_again_after_three_windows_of_evidence() {
    let settings = Settings::default();
    let source = Fake::default();
    let subjects = found(&["users"]);
    let mut advisor = advisor(subjects);
    advisor.evaluate(at(0), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(0), &source, &settings).expect("open");
    advisor.undo(ID, "bob", at(60), &settings).expect("applied");
    assert_eq!((state(&advisor, ID), settings.last()), ("rolled_back", Some(json!(64))));
    let mut look = |minute: u64, there: bool| {
        *subjects.lock().expect("not poisoned") = if there { vec!["users"] } else { vec![] };
        advisor.evaluate(at(minute * MINUTE), &source, None, Some(&settings));
        state(&advisor, ID)
    };
    assert_eq!(
        (look(5, true), look(10, true), look(15, false)),
        ("rolled_back", "rolled_back", "rolled_back")
    );
    // Two looks within one window count once.
    assert_eq!(
        (look(20, true), look(21, true), look(22, true)),
        ("rolled_back", "rolled_back", "rolled_back")
    );
    assert_eq!((look(25, true), look(30, true)), ("rolled_back", "open"));
}

#[test]
fn what_was_dismissed_stays_so_until_its_time_and_three_windows_more() {
    let source = Fake::default();
    let mut advisor = advisor(found(&["users", "pages"]));
    advisor.evaluate(at(0), &source, None, None);
    let hour = Some(Duration::from_secs(3_600));
    advisor.dismiss(ID, "ann", "known", hour, at(0)).expect("open");
    advisor.dismiss("cache.undersized:pages", "ann", "wanted", None, at(0)).expect("open");
    let mut states = Vec::new();
    for minute in (5..=90).step_by(5) {
        advisor.evaluate(at(minute * MINUTE), &source, None, None);
        states.push((minute, state(&advisor, ID)));
    }
    let opened = states.iter().find(|(_, state)| *state == "open").expect("opens");
    assert_eq!(opened.0, 70, "at 60, 65 and 70 minutes it is found again");
    assert_eq!(state(&advisor, "cache.undersized:pages"), "dismissed");
}

#[test]
fn a_rule_that_panics_takes_nothing_with_it() {
    let mut advisor = advisor(found(&["users"]));
    advisor.rule("bad.rule", |_| panic!("out of order"));
    let changes = advisor.evaluate(at(0), &Fake::default(), None, None);
    let events: Vec<_> = changes.iter().map(|change| (change.id.as_str(), change.event)).collect();
    assert_eq!(events, [("bad.rule", AuditEvent::RulePanicked), (ID, AuditEvent::Opened)]);
}

#[test]
fn lists_keep_their_bounds() {
    let options =
        AdvisorOptions { recommendations_max: 5, audit_max: 7, ..AdvisorOptions::default() };
    let mut advisor = Advisor::new(options);
    advisor.rule("a.many", |_| {
        (0..50)
            .map(|at| Finding {
                subject: at.to_string(),
                ..Finding::advice(Category::Cpu, Priority::Low, "a", "b")
            })
            .collect()
    });
    advisor.rule("b.urgent", |_| vec![finding("")]);
    advisor.evaluate(at(0), &Fake::default(), None, None);
    assert_eq!((advisor.recommendations().len(), advisor.audit().len()), (5, 7));
    assert_eq!(advisor.recommendations()[0].id, "b.urgent");
}

#[test]
fn the_state_survives_a_restart_and_the_probation_of_a_lasting_change_begins_anew() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::lasting());
    let mut before = advisor(found(&["users", "pages"]));
    before.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    before.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    before
        .dismiss(
            "cache.undersized:pages",
            "ann",
            "no",
            Some(Duration::from_secs(7_200)),
            at(20 * MINUTE),
        )
        .expect("open");
    let text = serde_json::to_string(&before.snapshot()).expect("plain data");

    let mut after = advisor(found(&["users", "pages"]));
    // The monotonic clock of another process begins at zero.
    let start = Moment { monotonic: Duration::ZERO, unix_ms: at(25 * MINUTE).unix_ms };
    after.restore(serde_json::from_str(&text).expect("its own text"), start);
    assert_eq!(after.snapshot(), before.snapshot());
    let later = |minutes: u64| start.after(Duration::from_secs(minutes * MINUTE));
    after.evaluate(later(9), &source, None, Some(&settings));
    assert_eq!(state(&after, ID), "applied");
    after.evaluate(later(10), &source, None, Some(&settings));
    assert_eq!((state(&after, ID), settings.last()), ("rolled_back", Some(json!(64))));
    assert_eq!(state(&after, "cache.undersized:pages"), "dismissed");
}

#[test]
fn the_metric_of_a_change_outlives_the_process_whether_or_not_its_rule_finds_it_again() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::lasting());
    let mut before = advisor(found(&["users"]));
    before.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    before.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    let text = serde_json::to_string(&before.snapshot()).expect("plain data");

    let mut after = advisor(found(&[]));
    after.restore(serde_json::from_str(&text).expect("its own text"), at(20 * MINUTE));
    after.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    let State::RolledBack { reason, .. } = &after.get(ID).expect("there").state else {
        panic!("rolled back");
    };
    assert_eq!(reason, "target went from 0.7 to 0.5");
}

/// A state as it was written before recommendations held the metric that they are for.
const FORMER: &str = r#"{"version":1,"recommendations":[{"id":"cache.undersized:users",
    "rule":"cache.undersized","subject":"users","category":"cache","priority":"high",
    "title":"31 % of misses","recommendation":"Raise 64 to 96","why":"","current_value":null,
    "target_value":0.8,"evidence":[{"metric":"hit_ratio","aggregate":"avg","from_ms":0,"to_ms":9,
    "value":0.7,"samples":3,"values":[0.7,null]}],"action":{"kind":"config.set",
    "path":"cache.capacity","from":64,"to":96},"inverse":{"kind":"config.set",
    "path":"cache.capacity","from":96,"to":64},"expected":null,"risk":0,"effort":"medium",
    "confidence":0.8,"state":"applied","at_ms":1200000,"by":"ann","before":[{"name":"p95",
    "value":0.1,"worse":"higher","floor":0.001}],"undo_refused":null,"opened_ms":1200000,
    "seen_ms":1200000}],"audit":[{"at_ms":1200000,"id":"cache.undersized:users",
    "event":"applied","by":"ann","change":null,"reason":""}]}"#;

#[test]
fn a_state_of_the_former_form_is_read_and_its_change_has_ended() {
    let (source, settings) = (samples([0.7, 0.7], [0.1, 0.2]), Settings::default());
    let mut advisor = advisor(found(&[]));
    advisor.restore(serde_json::from_str(FORMER).expect("the former form"), at(20 * MINUTE));
    assert_eq!(advisor.get(ID).expect("there").finding.target_value, Some(0.8));
    advisor.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    assert_eq!((state(&advisor, ID), settings.last()), ("lapsed", None));
    let former: Value = serde_json::from_str(FORMER).expect("JSON");
    let now = serde_json::to_value(advisor.snapshot()).expect("plain data");
    let (former, now) = (&former["recommendations"][0], &now["recommendations"][0]);
    for field in ["id", "subject", "category", "evidence", "action", "inverse", "confidence"] {
        assert_eq!(former[field], now[field], "{field}");
    }
}

#[test]
fn a_change_that_ended_with_its_process_is_not_undone_in_the_next_one() {
    for applied_minutes in [20, 30] {
        let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::default());
        let mut before = advisor(found(&["users"]));
        before.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
        before.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
        // In the second case it was to be undone, which was refused.
        *settings.refuse.lock().expect("not poisoned") = true;
        before.evaluate(at(applied_minutes * MINUTE), &source, None, Some(&settings));
        assert_eq!(state(&before, ID), "applied");
        let text = serde_json::to_string(&before.snapshot()).expect("plain data");

        let settings = Settings::default();
        let mut after = advisor(found(&["users"]));
        after.auto_apply(|| true);
        after.restore(serde_json::from_str(&text).expect("its own text"), at(40 * MINUTE));
        assert_eq!(state(&after, ID), "lapsed");
        let last = after.audit().next_back().expect("an entry");
        assert_eq!((last.event, last.reason.contains("has ended")), (AuditEvent::Lapsed, true));
        let refused = after.undo(ID, "ann", at(41 * MINUTE), &settings);
        assert!(matches!(refused, Err(ApplyError::State { state: "lapsed", .. })), "{refused:?}");
        after.evaluate(at(50 * MINUTE), &source, None, Some(&settings));
        assert_eq!(settings.last(), None, "nothing was undone");
        // Found again it applies itself again, unless it had made something worse.
        let events = moves(&mut after, 55..=65, &source, &settings);
        let again = events.iter().any(|(_, _, event)| *event == AuditEvent::Applied);
        assert_eq!(again, applied_minutes == 20, "{events:?}");
    }
}

#[test]
fn what_is_verified_cannot_be_undone_by_the_next_process() {
    let (source, settings) = (samples([0.7, 0.8], [0.1, 0.1]), Settings::default());
    let mut before = advisor(found(&["users"]));
    before.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    before.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    before.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    let mut after = advisor(found(&[]));
    after.restore(before.snapshot(), at(31 * MINUTE));
    assert_eq!(state(&after, ID), "verified");
    let refused = after.undo(ID, "ann", at(32 * MINUTE), &settings).expect_err("it has ended");
    assert!(refused.to_string().contains("the process that made the change has ended"));
    assert_eq!((state(&after, ID), settings.last()), ("lapsed", Some(json!(96))));
}

#[test]
fn a_change_that_somebody_else_replaced_is_neither_judged_nor_undone() {
    // It would be undone, verified, and without effect.
    for hit_ratio in [[0.7, 0.5], [0.7, 0.8], [0.7, 0.7]] {
        let (source, settings) = (samples(hit_ratio, [0.1, 0.1]), Settings::default());
        let mut advisor = advisor(found(&["users"]));
        advisor.auto_apply(|| true);
        advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
        advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
        *settings.overtaken.lock().expect("not poisoned") = Some("bob has set it to 128");
        let changes = advisor.evaluate(at(25 * MINUTE), &source, None, Some(&settings));
        assert_eq!(changes, [Change { id: ID.to_owned(), event: AuditEvent::Lapsed }]);
        let last = advisor.audit().next_back().expect("an entry");
        assert_eq!((last.event, &*last.reason), (AuditEvent::Lapsed, "bob has set it to 128"));
        // What bob wants is not changed by itself the same day.
        let later = moves(&mut advisor, 30..=600, &source, &settings);
        assert_eq!(later, [(35, ID.to_owned(), AuditEvent::Reopened)]);
        assert_eq!(settings.last(), Some(json!(96)), "nothing was set since");
    }
}

#[test]
fn an_undo_by_people_of_what_somebody_else_replaced_says_so() {
    let (source, settings) = (Fake::default(), Settings::default());
    let mut advisor = advisor(found(&["users", "pages"]));
    advisor.evaluate(at(0), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(0), &source, &settings).expect("open");
    *settings.overtaken.lock().expect("not poisoned") = Some("bob has set it");
    let undone = advisor.undo(ID, "ann", at(60), &settings);
    assert_eq!(undone, Err(ApplyError::Lapsed("bob has set it".to_owned())));
    assert_eq!(state(&advisor, ID), "lapsed");
    // And what it kept others from is free at once.
    *settings.overtaken.lock().expect("not poisoned") = None;
    let pages = "cache.undersized:pages";
    advisor.apply(pages, "ann", at(60), &source, &settings).expect("nothing else is watched");
    *settings.overtaken.lock().expect("not poisoned") = Some("bob has set it");
    advisor.rule("cache.other", |_| vec![finding("")]);
    advisor.evaluate(at(5 * MINUTE), &source, None, None);
    assert_eq!(advisor.apply("cache.other", "ann", at(5 * MINUTE), &source, &settings), Ok(()));
    assert_eq!(state(&advisor, pages), "lapsed");
}

#[test]
fn a_setting_that_is_on_probation_is_not_changed_for_another_subsystem() {
    let (source, settings) = (Fake::default(), Settings::default());
    let mut advisor = advisor(found(&["users"]));
    advisor.rule("memory.over_target", |_| vec![finding("")]);
    advisor.rule("memory.other", |_| {
        vec![Finding { action: Some(Action::set("memory.other", 1, 2)), ..finding("") }]
    });
    advisor.evaluate(at(0), &source, None, Some(&settings));
    let mut apply = |id: &str| advisor.apply(id, "ann", at(0), &source, &settings);
    assert_eq!(apply(ID), Ok(()));
    assert_eq!(apply("memory.over_target"), Err(ApplyError::Busy(ID.to_owned())));
    assert_eq!(apply("memory.other"), Ok(()));
}

#[test]
fn an_actuator_that_panics_refuses() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::default());
    let mut advisor = advisor(found(&["users"]));
    advisor.auto_apply(|| true);
    let panics = |now: bool| *settings.panic.lock().expect("not poisoned") = now;
    panics(true);
    assert_eq!(
        moves(&mut advisor, 0..=15, &source, &settings),
        [(10, ID.to_owned(), AuditEvent::ApplyRefused)]
    );
    let entry = advisor.audit().next_back().expect("an entry");
    assert_eq!(entry.reason, "it panicked: a listener is out of order");
    assert_eq!((state(&advisor, ID), advisor.panics()), ("open", 1));
    panics(false);
    advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    panics(true);
    let refused = moves(&mut advisor, 30..=30, &source, &settings);
    assert_eq!(refused, [(30, ID.to_owned(), AuditEvent::UndoRefused)]);
    assert_eq!(advisor.panics(), 2);
    panics(false);
    let undone = moves(&mut advisor, 40..=40, &source, &settings);
    assert_eq!(undone, [(40, ID.to_owned(), AuditEvent::RolledBack)]);
}

#[test]
fn an_undo_that_is_refused_for_days_is_told_once() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::default());
    let mut advisor = advisor(found(&["users"]));
    advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    *settings.refuse.lock().expect("not poisoned") = true;
    let refused = moves(&mut advisor, 30..=24 * 60, &source, &settings);
    assert_eq!(refused, [(30, ID.to_owned(), AuditEvent::UndoRefused)]);
    assert_eq!(state(&advisor, ID), "applied");
}

#[test]
fn a_metric_that_cannot_be_read_is_none_and_the_rest_of_the_state_is_there() {
    let target = r#""target":{"name":"x","selector":"{","aggregate":"avg","worse":"lower"},"risk""#;
    let text = FORMER.replace("\"risk\"", target);
    let mut advisor = advisor(found(&[]));
    advisor.restore(serde_json::from_str(&text).expect("the rest"), at(0));
    assert_eq!(
        (state(&advisor, ID), &advisor.get(ID).expect("there").finding.target),
        ("lapsed", &None)
    );
}

/// Evaluates every five minutes from one minute to another, and returns the moves with their minutes.
fn moves(
    advisor: &mut Advisor,
    minutes: std::ops::RangeInclusive<u64>,
    source: &Fake,
    settings: &Settings,
) -> Vec<(u64, String, AuditEvent)> {
    let mut moves = Vec::new();
    for minute in minutes.step_by(5) {
        let changes = advisor.evaluate(at(minute * MINUTE), source, None, Some(settings));
        let changes = changes.into_iter().filter(|change| change.event != AuditEvent::Opened);
        moves.extend(changes.map(|change| (minute, change.id, change.event)));
    }
    moves
}

#[test]
fn what_was_found_three_times_applies_itself_where_that_is_allowed() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (source, settings) = (samples([0.7, 0.8], [0.1, 0.1]), Settings::default());
    let mut advisor = advisor(found(&["users", "pages"]));
    let allowed = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&allowed);
    advisor.auto_apply(move || switch.load(Ordering::Relaxed));
    assert_eq!(moves(&mut advisor, 0..=15, &source, &settings), []);
    allowed.store(true, Ordering::Relaxed);
    let pages = "cache.undersized:pages".to_owned();
    let all = moves(&mut advisor, 20..=30, &source, &settings);
    // Of one subsystem one at a time: the next when the first is verified.
    let expected = [
        (20, pages.clone(), AuditEvent::Applied),
        (30, pages, AuditEvent::Verified),
        (30, ID.to_owned(), AuditEvent::Applied),
    ];
    assert_eq!(all, expected);
    let applied = advisor.audit().filter(|entry| entry.event == AuditEvent::Applied);
    let by: Vec<&str> = applied.map(|entry| entry.by.as_str()).collect();
    assert_eq!(by, ["auto", "auto"]);
}

#[test]
fn nothing_applies_itself_before_it_was_found_often_enough_or_beyond_the_bounds() {
    for (risk, confidence, action, expected) in [
        (2, 0.7, true, 1),
        (3, 0.7, true, 0),
        (2, 0.69, true, 0),
        (2, f64::NAN, true, 0),
        (0, 1.0, false, 0),
    ] {
        let (source, settings) = (Fake::default(), Settings::default());
        let mut advisor = Advisor::new(AdvisorOptions::default());
        advisor.auto_apply(|| true);
        advisor.rule("a.b", move |_| {
            let mut finding = Finding { risk, confidence, ..finding("") };
            finding.action.take_if(|_| !action);
            vec![finding]
        });
        assert_eq!(moves(&mut advisor, 0..=5, &source, &settings), []);
        let applied = moves(&mut advisor, 10..=10, &source, &settings);
        assert_eq!(applied.len(), expected, "risk {risk}, confidence {confidence}, {action}");
    }
}

#[test]
fn what_was_undone_does_not_apply_itself_again_within_a_day_even_over_a_restart() {
    let (source, settings) = (samples([0.7, 0.5], [0.1, 0.1]), Settings::default());
    let mut first = advisor(found(&["users"]));
    first.auto_apply(|| true);
    let of = |events: Vec<(u64, String, AuditEvent)>| -> Vec<(u64, AuditEvent)> {
        events.into_iter().map(|(minute, _, event)| (minute, event)).collect()
    };
    let found_twice = of(moves(&mut first, 10..=15, &source, &settings));
    assert_eq!(found_twice, []);
    let day = 24 * 60;
    let mut moved = of(moves(&mut first, 20..=12 * 60, &source, &settings));
    let text = serde_json::to_string(&first.snapshot()).expect("plain data");
    let mut second = advisor(found(&["users"]));
    second.auto_apply(|| true);
    second.restore(serde_json::from_str(&text).expect("its own text"), at(12 * 60 * MINUTE));
    moved.extend(of(moves(&mut second, 12 * 60 + 5..=day + 25, &source, &settings)));
    assert_eq!(
        moved,
        [(20, AuditEvent::Applied), (30, AuditEvent::RolledBack), (40, AuditEvent::Reopened)]
    );
    assert_eq!(
        of(moves(&mut second, day + 30..=day + 30, &source, &settings)),
        [(day + 30, AuditEvent::Applied)]
    );
}

#[test]
fn what_is_refused_is_not_tried_again_the_same_day() {
    let (source, settings) = (Fake::default(), Settings::default());
    *settings.refuse.lock().expect("not poisoned") = true;
    let mut advisor = advisor(found(&["users"]));
    advisor.auto_apply(|| true);
    let all = moves(&mut advisor, 0..=600, &source, &settings);
    assert_eq!(all, [(10, ID.to_owned(), AuditEvent::ApplyRefused)]);
}

#[test]
fn a_ratio_is_guarded_as_a_part_of_what_grew() {
    let mut source = Fake::default();
    let total = |each: f64| (0..=60).map(move |at| f64::from(at) * each);
    source.counter("hits", &[("cache", "a \"b\" \\")], 0, 60_000, total(30.0));
    source.counter("misses", &[("cache", "a \"b\" \\")], 0, 60_000, total(10.0));
    let label =
        crate::selector::Matcher::new("cache", crate::selector::Comparison::Equal, "a \"b\" \\");
    let matchers = vec![label.expect("a matcher")];
    let select = |name: &str| Selector { name: name.into(), matchers: matchers.clone() };
    let spec = MetricSpec::ratio(
        "hit_ratio",
        select("hits"),
        [select("hits"), select("misses")],
        Worse::Lower,
    );
    let guarded = Finding { target: Some(spec.clone()), ..finding("") };
    let readings = GuardOptions::default().read(&source, &guarded, 3_600_000);
    assert_eq!(readings.last().and_then(|reading| reading.value), Some(0.75));
    let text = serde_json::to_string(&spec).expect("plain data");
    assert_eq!(serde_json::from_str::<MetricSpec>(&text).expect("its own text"), spec);
    let evidence = Evidence::of(&source, &spec, crate::source::Window::ending(3_600_000, 600_000));
    assert_eq!(evidence.value, Some(0.75));
    assert!(evidence.metric.starts_with("hits{cache=\"a \\\"b"), "{}", evidence.metric);
    assert!(evidence.metric.contains("} / (hits{"), "{}", evidence.metric);
}

#[test]
fn a_change_that_helped_is_undone_if_it_made_another_metric_of_the_finding_worse() {
    let mut source = samples([0.7, 0.8], [0.1, 0.1]);
    source.gauge("size", &[], 0, 60_000, (0..60).map(|at| if at > 20 { 2.0 } else { 1.0 }));
    let mut advisor = Advisor::new(AdvisorOptions::default());
    advisor.rule("cache.undersized", |_| {
        let size = Selector::name("size");
        let size = MetricSpec::new("size", size, Aggregate::Avg, Worse::Higher);
        vec![Finding { also: vec![size], ..finding("users") }]
    });
    let settings = Settings::default();
    advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
    advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
    advisor.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
    let State::RolledBack { reason, .. } = &advisor.get(ID).expect("there").state else {
        panic!("rolled back");
    };
    assert_eq!(reason, "size went from 1 to 2");
}

#[test]
fn memory_that_a_change_is_known_to_take_is_no_reason_to_undo_it() {
    let mebi = f64::from(1 << 20);
    for (memory_bytes, expected) in [(0, "rolled_back"), (96 << 20, "verified")] {
        let mut source = samples([0.7, 0.8], [0.1, 0.1]);
        let resident = (0..60).map(|at| if at > 20 { 400.0 * mebi } else { 300.0 * mebi });
        source.gauge("process_resident_memory_bytes", &[], 0, 60_000, resident);
        let mut advisor = Advisor::new(AdvisorOptions::default());
        advisor
            .rule("cache.undersized", move |_| vec![Finding { memory_bytes, ..finding("users") }]);
        let settings = Settings::default();
        advisor.evaluate(at(20 * MINUTE), &source, None, Some(&settings));
        advisor.apply(ID, "ann", at(20 * MINUTE), &source, &settings).expect("open");
        advisor.evaluate(at(30 * MINUTE), &source, None, Some(&settings));
        assert_eq!(state(&advisor, ID), expected);
    }
}

#[test]
fn a_recommendation_reads_as_asked_for() {
    let mut advisor = advisor(found(&["users"]));
    advisor.evaluate(at(0), &Fake::default(), None, None);
    let json = serde_json::to_value(advisor.open()).expect("plain data");
    for field in ["category", "priority", "recommendation", "current_value", "target_value"] {
        assert!(json[0].get(field).is_some(), "{field}");
    }
    assert_eq!(json[0]["target"]["selector"], json!("hit_ratio"));
    assert_eq!((&json[0]["state"], &json[0]["inverse"]["to"]), (&json!("open"), &json!(64)));
}

/// Ten minutes of a sample each ten seconds.
fn ten_minutes(fake: &mut Fake, name: &str, labels: &[(&str, &str)], value: impl Fn(i32) -> f64) {
    fake.gauge(name, labels, 0, 10_000, (0..=60).map(value));
}

/// Runs the generic rules at the end of ten minutes, or of six hours, and returns titles by name.
fn titles(fake: &Fake, at_ms: i64) -> Vec<(String, String)> {
    let context = AdviceContext { source: fake, at_ms, score: None };
    let mut titles = Vec::new();
    for rule in generic_rules(&GenericOptions::default()) {
        for finding in rule.check(&context) {
            assert!(!finding.evidence.is_empty() && !finding.why.is_empty());
            assert!(!finding.recommendation.is_empty() && finding.current_value.is_some());
            titles.push((rule.id().to_owned(), finding.title));
        }
    }
    titles
}

#[track_caller]
fn check(build: impl Fn(&mut Fake, f64), bad: f64, good: f64, rule: &str, title: &str) {
    let mut fake = Fake::default();
    build(&mut fake, bad);
    assert_eq!(titles(&fake, 600_000), [(rule.to_owned(), title.to_owned())]);
    let mut fake = Fake::default();
    build(&mut fake, good);
    assert_eq!(titles(&fake, 600_000), []);
}

#[test]
fn every_generic_rule_says_state_number_and_action() {
    let gauge =
        |name: &'static str| move |fake: &mut Fake, v: f64| ten_minutes(fake, name, &[], |_| v);
    check(
        gauge("system_cpu_usage_ratio"),
        0.93,
        0.80,
        "system.cpu_saturation",
        "Processors are busy 93 % of the time over 10 min",
    );
    check(
        |fake, used| {
            ten_minutes(fake, "process_resident_memory_bytes", &[], |_| used);
            ten_minutes(fake, "process_memory_limit_bytes", &[], |_| 1024.0 * 1024.0 * 1024.0);
        },
        950.0 * 1024.0 * 1024.0,
        500.0 * 1024.0 * 1024.0,
        "memory.high",
        "The process uses 950 MiB of its 1 GiB of memory (93 %)",
    );
    check(
        |fake, failing| {
            let total = |each: f64| (0..=60).map(move |at| f64::from(at) * each);
            fake.counter("http_requests_total", &[("status", "200")], 0, 10_000, total(100.0));
            fake.counter("http_requests_total", &[("status", "503")], 0, 10_000, total(failing));
        },
        10.0,
        1.0,
        "requests.errors",
        "590 of 6490 requests failed over 10 min (9.1 %), 100 % of them at {status=\"503\"}",
    );
    check(
        |fake, open| {
            ten_minutes(fake, "process_open_fds", &[], |_| open);
            ten_minutes(fake, "process_max_fds", &[], |_| 1_024.0);
        },
        900.0,
        100.0,
        "system.descriptors",
        "900 of 1024 file descriptors are open (88 %)",
    );
    check(
        |fake, used| {
            let mount = [("mountpoint", "/data")];
            ten_minutes(fake, "system_filesystem_used_bytes", &mount, |_| used);
            ten_minutes(fake, "system_filesystem_size_bytes", &mount, |_| 100.0);
        },
        95.0,
        50.0,
        "system.disk_filling",
        "`/data` holds 95 B of 100 B (95 %)",
    );
    check(
        gauge("system_psi_io_some_ratio"),
        0.25,
        0.05,
        "system.pressure",
        "Some task waits for io 25 % of the time over 10 min",
    );
    check(
        |fake, lingering| {
            ten_minutes(fake, "system_tcp_time_wait", &[], |_| lingering);
            ten_minutes(fake, "system_tcp_in_use", &[], |_| 300.0);
        },
        5_000.0,
        1_100.0,
        "system.connection_churn",
        "5000 closed TCP connections linger, 300 are in use",
    );
    check(
        |fake, each| {
            let total = (0..=60).map(|at| f64::from(at) * each);
            let labels = [("metric", "http_requests_total")];
            fake.counter("monitor_series_overflow_total", &labels, 0, 10_000, total);
        },
        2.0,
        0.0,
        "monitor.cardinality",
        "`http_requests_total` has more series than it may: 118 lookups went to \
            `__other__` over 10 min",
    );
    check(
        |fake, each| {
            let total = (0..=60).map(|at| f64::from(at) * each);
            fake.counter("monitor_ticks_late_total", &[], 0, 10_000, total);
        },
        1.0,
        0.1,
        "monitor.late_ticks",
        "59 readings came late over 10 min",
    );
}

#[test]
fn slow_requests_name_the_stage() {
    let mut fake = Fake::default();
    fake.histogram("http_request_duration_seconds", &[], 300_000, &[0.5; 1_000]);
    fake.histogram("http_request_stage_seconds", &[("stage", "database")], 300_000, &[0.4; 1_000]);
    fake.histogram("http_request_stage_seconds", &[("stage", "render")], 300_000, &[0.1; 1_000]);
    let titles = titles(&fake, 600_000);
    assert_eq!(titles.len(), 1);
    let (rule, title) = &titles[0];
    assert_eq!(rule, "requests.latency");
    assert!(title.starts_with("One of 20 requests takes longer than "), "{title}");
    assert!(
        title.ends_with("over 10 min (target 200 ms); stage `database` makes 80 % of it"),
        "{title}"
    );
}

#[test]
fn memory_that_grows_into_its_limit_is_told_with_a_time() {
    let mebi = f64::from(1 << 20);
    for (per_minute, expected) in [(1.0 * mebi, 1), (0.01 * mebi, 0)] {
        let mut fake = Fake::default();
        let resident = (0..=360).map(|at| 100.0 * mebi + f64::from(at) * per_minute);
        fake.gauge("process_resident_memory_bytes", &[], 0, 60_000, resident);
        fake.gauge("process_memory_limit_bytes", &[], 0, 60_000, [1_024.0 * mebi; 361]);
        let titles = titles(&fake, 360 * 60_000);
        assert_eq!(titles.len(), expected, "{titles:?}");
        if let Some((rule, title)) = titles.first() {
            assert_eq!(rule, "memory.growth");
            assert_eq!(
                title,
                "Memory grows by 60 MiB an hour and reaches its limit of 1 GiB in 9 h \
                    (between 9 h and 9 h)"
            );
        }
    }
}

#[test]
fn requests_that_are_slower_than_usual_are_told() {
    let mut fake = Fake::default();
    for at in 0..=420 {
        let seconds = if at > 360 { 0.15 } else { 0.05 + 0.001 * f64::from(at % 3) };
        fake.histogram(
            "http_request_duration_seconds",
            &[],
            i64::from(at) * 10_000,
            &[seconds; 10],
        );
    }
    let titles = titles(&fake, 4_200_000);
    assert_eq!(titles.len(), 1);
    assert_eq!(titles[0].0, "requests.degraded");
}

#[test]
fn nothing_is_said_about_what_is_not_there() {
    assert_eq!(titles(&Fake::default(), 600_000), []);
}

/// What can be done to an advisor.
#[derive(Debug, Clone)]
enum Step {
    Find(Vec<&'static str>),
    Wait(u64),
    Evaluate,
    Apply(&'static str),
    Undo(&'static str),
    Dismiss(&'static str, Option<u64>),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let subject = prop::sample::select(vec!["a", "b", "c"]);
    let step = prop_oneof![
        prop::sample::subsequence(vec!["a", "b", "c"], 0..=3).prop_map(Step::Find),
        (1_u64..900).prop_map(Step::Wait),
        Just(Step::Evaluate),
        subject.clone().prop_map(Step::Apply),
        subject.clone().prop_map(Step::Undo),
        (subject, prop::option::of(1_u64..5_000)).prop_map(|(s, until)| Step::Dismiss(s, until)),
        Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever happens in whichever order: only moves of the picture in the module's page are made, the
    /// setting is what the states say, and one change at most is on probation.
    #[test]
    fn only_the_moves_of_the_picture_are_made(steps in steps()) {
        let subjects = found(&[]);
        let (source, settings) = (Fake::default(), Settings::default());
        let mut advisor = advisor(subjects);
        let mut now = 0;
        for step in steps {
            let states = |advisor: &Advisor| {
                ["a", "b", "c"].map(|subject| state(advisor, &format!("cache.undersized:{subject}")))
            };
            let before = states(&advisor);
            let id = |subject: &str| format!("cache.undersized:{subject}");
            match &step {
                Step::Find(which) => *subjects.lock().expect("not poisoned") = which.clone(),
                Step::Wait(seconds) => now += seconds,
                Step::Evaluate => {
                    advisor.evaluate(at(now), &source, None, Some(&settings));
                }
                Step::Apply(subject) => {
                    let _ = advisor.apply(&id(subject), "ann", at(now), &source, &settings);
                }
                Step::Undo(subject) => {
                    let _ = advisor.undo(&id(subject), "ann", at(now), &settings);
                }
                Step::Dismiss(subject, until) => {
                    let until = until.map(Duration::from_secs);
                    let _ = advisor.dismiss(&id(subject), "ann", "", until, at(now));
                }
                Step::Restart => {
                    let kept = advisor.snapshot();
                    advisor = self::advisor(subjects);
                    advisor.restore(kept, at(now));
                }
            }
            let after = states(&advisor);
            for (was, is) in before.into_iter().zip(after) {
                let allowed = was == is
                    || matches!(
                        (&step, was, is),
                        (Step::Evaluate, "none", "open")
                            | (Step::Evaluate, "open", "none")
                            | (Step::Evaluate, "applied", "no_effect" | "verified" | "rolled_back")
                            | (Step::Evaluate, "no_effect" | "rolled_back" | "verified" | "dismissed" | "lapsed", "open")
                            | (Step::Apply(_), "open", "applied")
                            | (Step::Undo(_), "applied" | "no_effect" | "verified", "rolled_back")
                            // Its change is that of another process.
                            | (Step::Undo(_), "no_effect" | "verified", "lapsed")
                            | (Step::Restart, "applied", "lapsed")
                            | (Step::Dismiss(..), _, "dismissed")
                    );
                prop_assert!(allowed, "{:?}: {} became {}", step, was, is);
            }
            prop_assert!(after.iter().filter(|state| **state == "applied").count() <= 1);
        }
    }
}
