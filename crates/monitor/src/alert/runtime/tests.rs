//! Tests of the running alerting: rules over a made-up metric, handlers of the test, time passed in.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

use super::*;
use crate::alert::handler::{CallbackHandler, Handling};
use crate::selector::Selector;
use crate::series::{SeriesId, SeriesKey};
use crate::source::{Aggregate, Matched, Reading, Window};

/// A clock and one gauge, `queue_depth`, both set by the test.
struct Rig {
    now: Mutex<Moment>,
    value: Mutex<f64>,
    registry: Registry,
}

impl Clock for Rig {
    fn now(&self) -> Moment {
        *self.now.lock()
    }
}

impl Source for Rig {
    fn generation(&self) -> u64 {
        1
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        let key = SeriesKey { name: "queue_depth".into(), labels: Labels::default() };
        let matched = selector.matches(&key);
        let (id, kind, unit) = (SeriesId(1), Kind::Gauge, Unit::None);
        matched.then(|| Matched { id, key: Arc::new(key), kind, unit }).into_iter().collect()
    }

    fn aggregate(&self, _: &[SeriesId], _: Window, _: Aggregate) -> Option<Reading> {
        Some(Reading { value: *self.value.lock(), samples: 60, expected: 60 })
    }

    fn range(&self, _: &[SeriesId], window: Window, step: i64, _: Aggregate) -> Vec<Option<f64>> {
        vec![Some(*self.value.lock()); (window.length_ms() / step.max(1)) as usize]
    }
}

const RULES: &str = "
    [[rule]]
    id = 'long'
    metric = 'queue_depth'
    every = '1s'
    window = '10s'
    level.warning = '> 10'
    level.critical = '> 100'
    cooldown = '0s'
    flap = false
    summary = '{{value}} wait'
";

impl Rig {
    fn new() -> Arc<Self> {
        let now = Moment { monotonic: Duration::from_secs(100), unix_ms: 1_700_000_000_000 };
        let (now, value, registry) = (Mutex::new(now), Mutex::new(0.0), Registry::default());
        Arc::new(Self { now, value, registry })
    }

    fn options(handlers: Vec<Handler>) -> AlertingOptions {
        let rules = RuleSet::parse(RULES, "rules").expect("rules");
        let pause = Duration::from_millis(1);
        AlertingOptions { rules, handlers, pause, seed: 7, ..AlertingOptions::default() }
    }

    fn start(self: &Arc<Self>, options: AlertingOptions) -> Alerting {
        let (clock, source) = (Arc::clone(self), Arc::clone(self));
        Alerting::start(options, clock, source, &self.registry).expect("it starts")
    }

    /// Sets the metric, lets a second pass and evaluates.
    fn tick(&self, alerting: &Alerting, value: f64) {
        *self.value.lock() = value;
        let now = {
            let mut now = self.now.lock();
            *now = now.after(Duration::from_secs(1));
            *now
        };
        alerting.tick(now);
    }

    fn number(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.registry.read(self.now()).number(name, labels)
    }
}

/// A handler that says what it gets, and what it was told to answer.
struct Sink {
    got: SyncSender<String>,
    answer: Mutex<Result<(), HandlerError>>,
}

impl AlertHandler for Sink {
    fn handle<'a>(&'a self, message: &'a Message, _at_ms: i64) -> Handling<'a> {
        let said = |event: &Arc<AlertEvent>| format!("{} {}", event.kind.word(), event.summary);
        let said: Vec<_> = message.events.iter().map(said).collect();
        // Taken first: what the test changes after it heard of the message is for the next one.
        let answer = self.answer.lock().clone();
        self.got.send(said.join(", ")).expect("the test listens");
        Box::pin(async { answer })
    }
}

type Handler = (DeliveryOptions, Arc<dyn AlertHandler>);

/// A handler of a name, and what it gets.
fn sink(id: &str) -> (Handler, Arc<Sink>, Receiver<String>) {
    let (got, gets) = sync_channel(1_000);
    let sink = Arc::new(Sink { got, answer: Mutex::new(Ok(())) });
    ((DeliveryOptions::new(id), Arc::clone(&sink) as _), sink, gets)
}

#[track_caller]
fn next(gets: &Receiver<String>) -> String {
    gets.recv_timeout(Duration::from_secs(20)).expect("a message comes")
}

/// Waits until something is so.
#[track_caller]
fn eventually(mut so: impl FnMut() -> bool) {
    for _ in 0..4_000 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never came to be so");
}

#[test]
fn what_a_rule_says_reaches_a_handler() {
    let rig = Rig::new();
    let (handler, _sink, gets) = sink("sink");
    let alerting = rig.start(Rig::options(vec![handler]));
    let mut heard = alerting.subscribe();
    rig.tick(&alerting, 5.0);
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    assert_eq!(rig.number("monitor_alerts_active", &[("severity", "warning")]), Some(1.0));
    rig.tick(&alerting, 250.0);
    assert_eq!(next(&gets), "escalate 250 wait");
    assert_eq!(alerting.active()[0].severity, Severity::Critical);
    rig.tick(&alerting, 5.0);
    assert_eq!(next(&gets), "resolve 5 wait");
    assert!(alerting.shutdown(Duration::from_secs(20)));
    assert_eq!(heard.try_recv().expect("the dashboard hears it too").kind, EventKind::Fire);
    assert_eq!(rig.number("monitor_alerts_active", &[("severity", "critical")]), Some(0.0));
    let sent = [("handler", "sink")];
    assert_eq!(rig.number("monitor_alerts_sent_total", &sent), Some(3.0));
    let alerts = alerting.alerts(1.0);
    assert_eq!((alerts.active.len(), alerts.ended.len()), (0, 1));
}

#[test]
fn a_restart_neither_loses_nor_repeats() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = || Some(folder.path().join("alerts.journal"));
    let rig = Rig::new();
    let start = || {
        let (handler, sink, gets) = sink("sink");
        let options = AlertingOptions {
            journal: journal(),
            pause: Duration::from_secs(60),
            ..Rig::options(vec![handler])
        };
        (rig.start(options), sink, gets)
    };
    let (alerting, sink, gets) = start();
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    let fingerprint = alerting.active()[0].fingerprint;
    alerting.acknowledge(fingerprint, "ada", "on it").expect("it fires");
    let matchers = Selector::parse_matchers("alertname=\"other\"").expect("matchers");
    let silence = Silence {
        id: 0,
        matchers,
        author: "ada".to_owned(),
        comment: String::new(),
        starts_at_ms: rig.now().unix_ms,
        ends_at_ms: rig.now().unix_ms + 3_600_000,
    };
    let silence = alerting.silence(silence).expect("a silence");
    // The receiver is down when it ends.
    *sink.answer.lock() = Err(HandlerError::failed("down"));
    rig.tick(&alerting, 5.0);
    assert_eq!(next(&gets), "resolve 5 wait");
    assert!(!alerting.shutdown(Duration::ZERO), "it was not taken");
    drop(alerting);

    let (alerting, _sink, gets) = start();
    assert_eq!(next(&gets), "resolve 5 wait", "sent without waiting for a tick");
    assert_eq!(alerting.silences(), std::slice::from_ref(&silence));
    assert_eq!(alerting.alerts(1.0).ended.len(), 1);
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    assert_eq!(alerting.unsilence(silence.id), Some(silence));
    assert!(alerting.shutdown(Duration::from_secs(20)));
    drop(alerting);

    let (alerting, _sink, gets) = start();
    rig.tick(&alerting, 26.0);
    rig.tick(&alerting, 26.0);
    assert_eq!(alerting.active().len(), 1);
    assert!(alerting.silences().is_empty());
    rig.tick(&alerting, 5.0);
    assert_eq!(next(&gets), "resolve 5 wait", "and no second fire before");
    assert!(alerting.shutdown(Duration::from_secs(20)));
    assert_eq!(gets.try_recv().ok(), None);
}

#[test]
fn rules_that_are_added_before_the_first_tick_go_on_with_their_alerts() {
    let folder = tempfile::tempdir().expect("a folder");
    let rig = Rig::new();
    let start = || {
        let (handler, _sink, gets) = sink("sink");
        let mut options = Rig::options(vec![handler]);
        options.rules = RuleSet::default();
        options.journal = Some(folder.path().join("alerts.journal"));
        let alerting = rig.start(options);
        let added =
            alerting.add_alert_rule("deep", "queue_depth", 10.0, Severity::Error, "too deep");
        added.expect("a rule");
        (alerting, gets)
    };
    let (alerting, gets) = start();
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire too deep");
    let error = alerting.add_alert_rule("bad", "queue_depth{", 1.0, Severity::Info, "{{x}}");
    let error = error.expect_err("two mistakes").to_string();
    assert!(error.starts_with("invalid rules, 2 problems:\n"), "{error}");
    assert_eq!(alerting.rules().rules().len(), 1);
    assert_eq!(rig.number("monitor_rules_refused", &[]), Some(0.0), "no file is to blame");
    assert!(alerting.shutdown(Duration::from_secs(20)));
    drop(alerting);
    let (alerting, gets) = start();
    rig.tick(&alerting, 26.0);
    assert!(alerting.remove_rule("deep").expect("nothing is wrong without it"));
    assert_eq!(next(&gets), "resolve too deep", "the first that is said");
    assert!(!alerting.remove_rule("deep").expect("nothing happens"));
}

#[test]
fn handlers_that_hang_or_panic_hold_up_nobody_else() {
    let rig = Rig::new();
    let (good, _sink, gets) = sink("good");
    let quick = |id: &str| DeliveryOptions {
        timeout: Duration::from_millis(50),
        retries: 0,
        ..DeliveryOptions::new(id)
    };
    // Held until the end of the test: nobody sends.
    let (_held, block) = sync_channel::<()>(0);
    let block = Mutex::new(block);
    let blocks = CallbackHandler::new(move |_: &AlertEvent| {
        let _ = block.lock().recv();
        Ok(())
    });
    struct Hangs;
    impl AlertHandler for Hangs {
        fn handle<'a>(&'a self, _: &'a Message, _: i64) -> Handling<'a> {
            Box::pin(std::future::pending())
        }
    }
    let panics = CallbackHandler::new(|_: &AlertEvent| {
        // As `panic!`, without the hook that would print a trace.
        std::panic::resume_unwind(Box::new("no ink"))
    });
    let handlers: Vec<(_, Arc<dyn AlertHandler>)> = vec![
        (quick("blocks"), Arc::new(blocks)),
        (quick("hangs"), Arc::new(Hangs)),
        (quick("panics"), Arc::new(panics)),
        good,
    ];
    let alerting = rig.start(Rig::options(handlers));
    for (value, said) in [(25.0, "fire 25 wait"), (5.0, "resolve 5 wait"), (26.0, "fire 26 wait")] {
        rig.tick(&alerting, value);
        assert_eq!(next(&gets), said);
    }
    eventually(|| {
        let dead = |id: &str| alerting.handlers().iter().any(|it| &*it.id == id && it.dead == 3);
        dead("hangs") && dead("panics")
    });
    let letters = alerting.dead_letters();
    let error = |id: &str| {
        let letter = letters.iter().find(|letter| &*letter.handler == id).expect("it is dead");
        letter.error.clone()
    };
    assert_eq!(error("hangs"), "it took longer than 50ms");
    assert_eq!(error("panics"), "the handler panicked: no ink");
    // One thread is all that the third can have.
    let blocks = alerting.handlers().into_iter().find(|it| &*it.id == "blocks");
    assert_eq!(blocks.map(|it| it.waiting + it.dead), Some(3));
}

#[test]
fn dead_letters_are_kept_counted_and_sent_when_asked() {
    let rig = Rig::new();
    let (handler, sink, gets) = sink("sink");
    *sink.answer.lock() = Err(HandlerError::Refused("status 400".to_owned()));
    let alerting = rig.start(Rig::options(vec![handler]));
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    eventually(|| alerting.dead_letters().len() == 1);
    let labels = [("handler", "sink")];
    assert_eq!(rig.number("monitor_alerts_dead_total", &labels), Some(1.0));
    assert_eq!(rig.number("monitor_alerts_dead_letters", &labels), Some(1.0));
    *sink.answer.lock() = Ok(());
    assert_eq!((alerting.retry_dead(Some("log")), alerting.retry_dead(None)), (0, 1));
    assert_eq!(next(&gets), "fire 25 wait");
    assert!(alerting.shutdown(Duration::from_secs(20)) && alerting.dead_letters().is_empty());
}

/// Puts a file in its place as a whole.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

#[test]
fn a_file_that_is_still_being_written_is_not_taken_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.toml");
    write(&path, RULES);
    let mut sources = Sources::new(RuleSet::default(), vec![path.clone()], Vec::new());
    let channel = ChannelHandler::new(1);
    sources.load(&channel).expect("rules");
    assert!(!sources.have_changed() && !sources.have_changed());
    write(&path, "");
    assert!(!sources.have_changed(), "it may be about to be filled");
    write(&path, &RULES.replace("'long'", "'longer'"));
    assert!(!sources.have_changed(), "it changed again");
    assert!(sources.have_changed());
    sources.load(&channel).expect("rules");
    assert!(!sources.have_changed());
}

#[test]
fn a_bad_file_is_refused_whole_and_a_good_one_taken_up_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.toml");
    write(&path, &RULES.replace("'long'", "'from_file'"));
    let rig = Rig::new();
    let (handler, _sink, gets) = sink("sink");
    let options = AlertingOptions {
        rules: RuleSet::default(),
        rule_files: vec![path.clone()],
        poll: Duration::from_millis(20),
        ..Rig::options(vec![handler])
    };
    let alerting = rig.start(options);
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    let mistakes = "[[rule]]\nid = 'a'\nmetrik = 'b'\nlevel.error = '> 1'\n[[handler]]\nid = 'c'\n";
    write(&path, mistakes);
    let error = alerting.reload().expect_err("it is full of mistakes");
    assert!(error.rules.len() >= 2, "{error}");
    assert!(error.to_string().contains("alerts.toml:3:1"), "{error}");
    assert_eq!(rig.number("monitor_rules_refused", &[]), Some(1.0));
    rig.tick(&alerting, 26.0);
    assert_eq!(&*alerting.active()[0].rule, "from_file", "the old rules stay");
    write(&path, &RULES.replace("'long'", "'another_one'"));
    assert_eq!(next(&gets), "resolve 26 wait");
    eventually(|| rig.number("monitor_rules_refused", &[]) == Some(0.0));
    assert_eq!(&*alerting.rules().rules()[0].id, "another_one");
    std::fs::remove_file(&path).expect("removed");
    let error = alerting.reload().expect_err("it is gone").to_string();
    assert!(error.contains("alerts.toml cannot be read"), "{error}");
}

#[test]
fn everything_that_is_wrong_at_the_start_is_said_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.toml");
    write(&path, "[[rule]]\nid = 'a'\nlevel.error = 'x'\n");
    let rig = Rig::new();
    let missing = folder.path().join("missing.toml");
    let options = AlertingOptions { rule_files: vec![missing, path], ..Rig::options(Vec::new()) };
    let (clock, source) = (Arc::clone(&rig), Arc::clone(&rig));
    let error = Alerting::start(options, clock, source, &rig.registry).expect_err("two mistakes");
    let error = error.to_string();
    assert!(error.contains("missing.toml cannot be read"), "{error}");
    assert!(error.contains("alerts.toml:3"), "{error}");
}

#[test]
fn a_rule_and_a_handler_can_be_tried_without_touching_any_state() {
    let rig = Rig::new();
    let (mut handler, sink, gets) = sink("sink");
    handler.0.min_severity = Severity::Critical;
    let alerting = rig.start(Rig::options(vec![handler]));
    assert!(alerting.fire("short", true).is_err());
    let (event, reached) = alerting.fire("long", true).expect("there is such a rule");
    assert_eq!((event.severity, event.labels.get("test")), (Severity::Critical, Some("true")));
    assert_eq!(reached, [Arc::from("log"), "dashboard".into(), "sink".into()]);
    assert_eq!(gets.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
    alerting.fire("long", false).expect("there is such a rule");
    assert_eq!(next(&gets), "fire this is a test of long; nothing is wrong");
    assert_eq!(next(&gets), "resolve this is a test of long; nothing is wrong");
    assert!(alerting.active().is_empty());

    *sink.answer.lock() = Err(HandlerError::Refused("no".to_owned()));
    let asked =
        futures_util::future::join(alerting.test_handler("sink"), alerting.test_handler("x"));
    let runtime = runtime::Builder::new_current_thread().build().expect("a runtime");
    let (tried, unknown) = runtime.block_on(asked);
    assert_eq!(tried, Err(HandlerError::Refused("no".to_owned())));
    assert_eq!(unknown, Err(HandlerError::Unknown("x".to_owned())));
    assert!(alerting.dead_letters().is_empty());
}

#[test]
fn clearing_ends_what_goes_on_and_says_so() {
    let rig = Rig::new();
    let (handler, _sink, gets) = sink("sink");
    let alerting = rig.start(Rig::options(vec![handler]));
    rig.tick(&alerting, 25.0);
    assert_eq!(next(&gets), "fire 25 wait");
    assert_eq!(alerting.clear(), 1);
    assert_eq!(next(&gets), "resolve 25 wait");
    assert!(alerting.active().is_empty());
    assert_eq!((alerting.clear(), alerting.summary().ended), (0, 1));
}

#[test]
fn closing_waits_for_no_group() {
    let rig = Rig::new();
    let (mut handler, _sink, gets) = sink("sink");
    handler.0.group_by = vec!["alertname".into()];
    handler.0.group_wait = Duration::from_secs(3_600);
    let alerting = rig.start(Rig::options(vec![handler]));
    rig.tick(&alerting, 25.0);
    rig.tick(&alerting, 250.0);
    assert!(alerting.shutdown(Duration::from_secs(20)));
    assert_eq!(next(&gets), "fire 25 wait, escalate 250 wait");
}

#[test]
fn everything_stops_with_the_last_handle() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.journal");
    let rig = Rig::new();
    let options = || AlertingOptions { journal: Some(path.clone()), ..Rig::options(Vec::new()) };
    let alerting = rig.start(options());
    let (clock, source) = (Arc::clone(&rig), Arc::clone(&rig));
    let second = Alerting::start(options(), clock, source, &rig.registry);
    assert!(matches!(second, Err(AlertingError::Journal(JournalError::Locked { .. }))));
    let clone = alerting.clone();
    drop(alerting);
    rig.tick(&clone, 25.0);
    drop(clone);
    // The lock goes when the thread has ended.
    eventually(|| Journal::open(&path, 0).is_ok());
    assert_eq!(rig.number("monitor_rules_refused", &[]), None, "nothing is asked any more");
}
