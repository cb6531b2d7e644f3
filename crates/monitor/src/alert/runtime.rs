//! The running alerting: rules are evaluated, what they say is written down, and then sent.
//!
//! [`Alerting::tick`] evaluates on the thread of the caller. What comes of it goes into the journal, and
//! from there a thread of its own takes it to the handlers, so that nothing they do holds up an evaluation.
//! Locks are taken in one order: the evaluation first, then the outboxes; no handler is called under either.

mod dispatcher;
mod outboxes;
mod rules;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime;
use tokio::sync::{Notify, broadcast};

use self::dispatcher::{Post, Served};
use self::outboxes::Outboxes;
use self::rules::{Loaded, Sources};
pub use self::rules::{ReloadReport, RulesRefused};
use super::delivery::DeliveryOptions;
use super::engine::{AcknowledgeError, AlertSummary, Engine, EngineOptions};
use super::event::{
    AlertEvent, AlertView, EndedAlert, EventKind, Fingerprint, InstanceRecord, Outcome, Severity,
};
use super::handler::{AlertHandler, ChannelHandler, HandlerError, Message};
use super::journal::{DeadLetter, Journal, JournalError, JournalReplay, Kept, Outbox, Record};
use super::rule::{Rule, RuleSet};
use super::silence::{Silence, SilenceError};
use crate::clock::{Clock, Moment, millis};
use crate::histogram::Histogram;
use crate::registry::{Gauge, Readings, Registry, Watch};
use crate::series::{Kind, Labels, Unit};
use crate::source::Source;

/// How often the journal is brought to the disk.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is written down that the process is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long a silence is remembered after its end, in milliseconds.
const SILENCE_REMEMBERED_MS: i64 = 3_600_000;
/// Threads that handlers may block at the same time.
const BLOCKED_MAX: usize = 64;
/// How long the thread that sends waits for handlers when it ends.
const ENDING: Duration = Duration::from_secs(1);

/// What an [`Alerting`] starts with.
#[derive(Clone)]
pub struct AlertingOptions {
    /// The rules and handlers that are there without any file.
    pub rules: RuleSet,
    /// Files that are laid over them, in this order; they are looked at again while this runs.
    pub rule_files: Vec<PathBuf>,
    /// The file that survives a restart; nothing does without it.
    pub journal: Option<PathBuf>,
    /// Handlers of the program. One that has the name of a handler of the rules takes its place; any other
    /// gets every message that its filter lets through.
    pub handlers: Vec<(DeliveryOptions, Arc<dyn AlertHandler>)>,
    /// How often the files are looked at.
    pub poll: Duration,
    /// The wait before a message is tried again; it grows fourfold with each try, to at most a minute.
    pub pause: Duration,
    /// Events that are kept for slow listeners of [`Alerting::subscribe`].
    pub channel: usize,
    /// The bounds of the evaluation.
    pub engine: EngineOptions,
    /// Where the random part of waits begins.
    pub seed: u64,
}

impl Default for AlertingOptions {
    fn default() -> Self {
        Self {
            rules: RuleSet::default(),
            rule_files: Vec::new(),
            journal: None,
            handlers: Vec::new(),
            poll: Duration::from_secs(5),
            pause: Duration::from_secs(1),
            channel: 1_024,
            engine: EngineOptions::default(),
            seed: fastrand::u64(..),
        }
    }
}

impl fmt::Debug for AlertingOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertingOptions")
            .field("rule_files", &self.rule_files)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

/// Why the alerting does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlertingError {
    /// The rules or handlers cannot be used.
    #[error(transparent)]
    Rules(#[from] RulesRefused),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no thread to be had.
    #[error("the thread that sends alerts cannot be started")]
    Thread(#[source] io::Error),
}

/// Alerts of the last hours.
#[derive(Debug, Clone, Serialize)]
pub struct Alerts {
    /// What is pending, firing or recovering, the worst first.
    pub active: Vec<AlertView>,
    /// What ended, the latest first.
    pub ended: Vec<EndedAlert>,
}

/// How a handler is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HandlerStatus {
    /// Its name.
    pub id: Arc<str>,
    /// Events that wait to be sent.
    pub waiting: usize,
    /// Messages that were given up.
    pub dead: usize,
    /// Alerts that it was told of and that have not ended.
    pub told: usize,
}

/// Why a rule is not fired for a test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule \"{0}\"")]
pub struct NoSuchRule(pub String);

/// Evaluates rules and tells handlers; clones share it.
///
/// Everything stops when the last clone is dropped. What was not sent by then is sent after the next start
/// if there is a journal; [`shutdown`](Self::shutdown) sends it before.
#[derive(Clone)]
pub struct Alerting(Arc<Inner>);

struct Inner {
    evaluation: Mutex<Evaluation>,
    post: Arc<Post>,
    /// Where rules come from; held while they are loaded.
    sources: Mutex<Sources>,
    channel: ChannelHandler,
    clock: Arc<dyn Clock>,
    source: Arc<dyn Source>,
    replay: JournalReplay,
    tests: AtomicU64,
    refused: AtomicBool,
    metrics: Metrics,
    watch: Mutex<Option<Watch>>,
    stop: Arc<Notify>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

struct Evaluation {
    engine: Engine,
    /// The records of an earlier process and how long it is gone, until the first tick: the program may
    /// have rules to add before.
    restore: Option<(Vec<InstanceRecord>, Duration)>,
    /// Handlers that get every message.
    everything: Vec<Arc<str>>,
    alive: Duration,
}

struct Metrics {
    duration: Histogram,
    active: [Gauge; 4],
    pending: Gauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let counters = [
            ("monitor_alerts_sent_total", "Messages that handlers took"),
            ("monitor_alerts_retried_total", "Messages that are tried again"),
            ("monitor_alerts_dead_total", "Messages that were given up"),
            ("monitor_alerts_journal_errors_total", "Writes of the journal that failed"),
        ];
        for (name, help) in counters {
            registry.describe(name, Kind::Counter, Unit::None, help);
        }
        let gauges = [
            ("monitor_alerts_active", "Alerts that fire, by severity"),
            ("monitor_alerts_pending", "Conditions that are met, not yet for long enough"),
            ("monitor_alerts_waiting", "Events that wait for their handler"),
            ("monitor_alerts_dead_letters", "Messages that were given up and are still kept"),
            ("monitor_alerts_journal_degraded", "Whether the journal could not be written last"),
            ("monitor_rules_refused", "Whether the rule files were refused when last read"),
        ];
        for (name, help) in gauges {
            registry.describe(name, Kind::Gauge, Unit::None, help);
        }
        let name = "monitor_alerts_evaluation_duration_seconds";
        registry.describe(name, Kind::Histogram, Unit::Seconds, "Time to evaluate the rules");
        let active = Severity::ALL.map(|severity| {
            registry.gauge("monitor_alerts_active", &[("severity", severity.word())])
        });
        let pending = registry.gauge("monitor_alerts_pending", &[]);
        Self { duration: registry.histogram(name, &[]), active, pending }
    }

    fn show(&self, summary: &AlertSummary) {
        for (severity, gauge) in Severity::ALL.iter().zip(&self.active) {
            gauge.set(summary.by_severity.get(severity).copied().unwrap_or(0) as f64);
        }
        self.pending.set(summary.pending as f64);
    }
}

impl Alerting {
    /// Loads the rules, takes up what the journal holds, and starts to send.
    ///
    /// Rules are evaluated by [`tick`](Self::tick). A message that an earlier process did not get rid of is
    /// sent at once, under the key that it had.
    ///
    /// # Errors
    ///
    /// [`AlertingError`]; of rules and handlers with all problems at once.
    pub fn start(
        options: AlertingOptions,
        clock: Arc<dyn Clock>,
        source: Arc<dyn Source>,
        registry: &Registry,
    ) -> Result<Self, AlertingError> {
        let AlertingOptions { rules, rule_files, journal, handlers, poll, .. } = options;
        let now = clock.now();
        let channel = ChannelHandler::new(options.channel);
        let mut sources = Sources::new(rules, rule_files, handlers);
        let loaded = sources.load(&channel)?;
        let (journal, kept, replay) = match &journal {
            Some(path) => Journal::open(path, now.unix_ms)?,
            None => (Journal::in_memory(), Kept::default(), JournalReplay::default()),
        };
        let mut engine = Engine::new(loaded.rules.clone(), options.engine);
        engine.restore_silences(kept.silences.values().cloned(), now);
        engine.restore_ended(kept.ended.iter().cloned());
        let away = kept.at_ms.map_or(0, |at_ms| now.unix_ms.saturating_sub(at_ms).max(0));
        let away = Duration::from_millis(away.unsigned_abs());
        let restore = Some((kept.instances.values().cloned().collect(), away));

        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKED_MAX)
            .thread_name("monitor-handler")
            .build()
            .map_err(AlertingError::Thread)?;
        let (registry, pause, seed) = (registry.clone(), options.pause, options.seed);
        let metrics = Metrics::new(&registry);
        let outboxes = Outboxes::new(kept, journal, registry.clone(), pause, seed);
        let post = Post::new(outboxes, Arc::clone(&clock), runtime.handle().clone());
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("monitor-alerts".to_owned()).spawn(move || {
            runtime.block_on(stopped.notified());
            runtime.shutdown_timeout(ENDING);
        });
        let thread = Mutex::new(Some(thread.map_err(AlertingError::Thread)?));
        let Loaded { handlers, everything, .. } = loaded;
        let evaluation = Evaluation { engine, restore, everything, alive: now.monotonic };
        let inner = Arc::new(Inner {
            evaluation: Mutex::new(evaluation),
            post,
            sources: Mutex::new(sources),
            channel,
            clock,
            source,
            replay,
            tests: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            metrics,
            watch: Mutex::new(None),
            stop,
            thread,
        });
        inner.post.serve(handlers);
        let weak = Arc::downgrade(&inner);
        *inner.watch.lock() = Some(registry.collect(move |readings| {
            if let Some(inner) = weak.upgrade() {
                inner.report(readings);
            }
        }));
        let weak = Arc::downgrade(&inner);
        inner.post.spawn(async move {
            let mut to_poll = poll;
            loop {
                tokio::time::sleep(KEEP_EVERY.min(poll)).await;
                let Some(inner) = weak.upgrade() else { return };
                to_poll = to_poll.saturating_sub(KEEP_EVERY.min(poll));
                let look = to_poll.is_zero();
                if look {
                    to_poll = poll;
                }
                // Files are the business of a thread that may wait for them.
                let kept = tokio::task::spawn_blocking(move || {
                    inner.post.keep(false);
                    if look {
                        inner.reload_if_changed();
                    }
                });
                // A panic in there is told by the hook of the program, and the next round goes on.
                let _ = kept.await;
            }
        });
        Ok(Self(inner))
    }

    /// Evaluates the rules that are due and hands on what they say.
    ///
    /// Call it every second or so, from one place.
    ///
    /// # Cost
    ///
    /// That of [`Engine::evaluate`], and one write to a file in the page cache if something changed. It waits
    /// for no handler.
    pub fn tick(&self, now: Moment) {
        let inner = &*self.0;
        let mut evaluation = inner.evaluation.lock();
        let begun = inner.clock.now().monotonic;
        if let Some((records, away)) = evaluation.restore.take() {
            let outcome = evaluation.engine.restore(records, now, away);
            inner.take(&evaluation, outcome, now);
            inner.metrics.show(&evaluation.engine.summary(now));
        }
        let outcome = evaluation.engine.evaluate(now, &*inner.source);
        if !outcome.is_empty() {
            inner.take(&evaluation, outcome, now);
            inner.metrics.show(&evaluation.engine.summary(now));
        }
        if now.since(evaluation.alive) >= ALIVE_EVERY {
            evaluation.alive = now.monotonic;
            inner.alive(now);
        }
        drop(evaluation);
        let took = inner.clock.now().since(begun);
        inner.metrics.duration.record_duration(took);
    }

    /// Returns when the next rule is due, by the monotonic clock.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.0.evaluation.lock().engine.next_due()
    }

    /// Returns what goes on, and what ended in the last hours.
    #[must_use]
    pub fn alerts(&self, hours: f64) -> Alerts {
        let now = self.0.clock.now();
        let since = Duration::try_from_secs_f64(hours.max(0.0) * 3_600.0).unwrap_or(Duration::MAX);
        let evaluation = self.0.evaluation.lock();
        let ended = evaluation.engine.ended(now.unix_ms.saturating_sub(millis(since)));
        Alerts { active: evaluation.engine.alerts(now), ended }
    }

    /// Returns what is pending, firing or recovering, the worst first.
    #[must_use]
    pub fn active(&self) -> Vec<AlertView> {
        self.0.evaluation.lock().engine.alerts(self.0.clock.now())
    }

    /// Returns the instances of a rule, those that are well too.
    #[must_use]
    pub fn instances(&self, rule: &str) -> Vec<AlertView> {
        self.0.evaluation.lock().engine.instances(rule, self.0.clock.now())
    }

    /// Returns numbers over what goes on and what went on.
    #[must_use]
    pub fn summary(&self) -> AlertSummary {
        self.0.evaluation.lock().engine.summary(self.0.clock.now())
    }

    /// Ends and archives everything that goes on, tells those who know of it, and returns how many ended.
    ///
    /// A condition that is still met fires again.
    pub fn clear(&self) -> usize {
        self.change(Engine::clear)
    }

    /// Keeps messages back for a while and returns the silence with its number.
    ///
    /// # Errors
    ///
    /// [`SilenceError`].
    pub fn silence(&self, silence: Silence) -> Result<Silence, SilenceError> {
        let now = self.0.clock.now();
        let mut evaluation = self.0.evaluation.lock();
        let silence = evaluation.engine.silence(silence, now)?;
        let record = Record::Silence { silence: silence.clone() };
        self.0.post.outboxes.lock().commit(&[record]);
        Ok(silence)
    }

    /// Ends a silence and returns it, if there is one of this number.
    pub fn unsilence(&self, id: u64) -> Option<Silence> {
        let mut evaluation = self.0.evaluation.lock();
        let silence = evaluation.engine.unsilence(id)?;
        self.0.post.outboxes.lock().commit(&[Record::Unsilence { id }]);
        Some(silence)
    }

    /// Returns the silences that are not over.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.0.evaluation.lock().engine.silences()
    }

    /// Notes that somebody saw an alert: nothing more is said until it gets worse or ends.
    ///
    /// # Errors
    ///
    /// [`AcknowledgeError`].
    pub fn acknowledge(
        &self,
        fingerprint: Fingerprint,
        by: &str,
        comment: &str,
    ) -> Result<(), AcknowledgeError> {
        let now = self.0.clock.now();
        let mut evaluation = self.0.evaluation.lock();
        let outcome = evaluation.engine.acknowledge(fingerprint, by, comment, now)?;
        self.0.take(&evaluation, outcome, now);
        Ok(())
    }

    /// Takes an acknowledgement back.
    ///
    /// # Errors
    ///
    /// [`AcknowledgeError`].
    pub fn unacknowledge(&self, fingerprint: Fingerprint) -> Result<(), AcknowledgeError> {
        let now = self.0.clock.now();
        let mut evaluation = self.0.evaluation.lock();
        let outcome = evaluation.engine.unacknowledge(fingerprint, now)?;
        self.0.take(&evaluation, outcome, now);
        Ok(())
    }

    /// Adds a rule in its short form, in place of one of the same name; see [`Rule::short`].
    ///
    /// # Errors
    ///
    /// [`RulesRefused`] with everything that is wrong; then nothing is changed.
    pub fn add_alert_rule(
        &self,
        name: &str,
        metric: &str,
        threshold: f64,
        severity: Severity,
        message: &str,
    ) -> Result<(), RulesRefused> {
        self.add_rule(Rule::short(name, metric, threshold, severity, message)?)
    }

    /// Adds a rule, in place of one of the same name.
    ///
    /// It lasts as long as this process: add it again after a restart, before the first tick, and its
    /// alerts go on.
    ///
    /// # Errors
    ///
    /// [`RulesRefused`] with everything that is wrong; then nothing is changed.
    pub fn add_rule(&self, rule: Rule) -> Result<(), RulesRefused> {
        let mut sources = self.0.sources.lock();
        let before = sources.clone();
        sources.add(rule);
        let done = self.0.load(&mut sources);
        if done.is_err() {
            *sources = before;
        }
        done.map(|_| ())
    }

    /// Takes back a rule that was added, and returns whether there was one of this name.
    ///
    /// # Errors
    ///
    /// [`RulesRefused`] if the rules cannot be used without it; then nothing is changed.
    pub fn remove_rule(&self, name: &str) -> Result<bool, RulesRefused> {
        let mut sources = self.0.sources.lock();
        let before = sources.clone();
        if !sources.remove(name) {
            return Ok(false);
        }
        let done = self.0.load(&mut sources);
        if done.is_err() {
            *sources = before;
        }
        done.map(|_| true)
    }

    /// Reads the rule files again.
    ///
    /// Alerts of rules that stay the same go on; those of others are resolved. It happens by itself, when
    /// a file has changed and then stayed the same for two looks at it.
    ///
    /// # Errors
    ///
    /// [`RulesRefused`] with every problem of every file; the old rules stay.
    pub fn reload(&self) -> Result<ReloadReport, RulesRefused> {
        self.0.reload(&mut self.0.sources.lock())
    }

    /// Returns the rules and handlers in force.
    #[must_use]
    pub fn rules(&self) -> Arc<RuleSet> {
        Arc::clone(self.0.evaluation.lock().engine.rule_set())
    }

    /// Listens to the events that go to handlers of the type `channel`, from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<AlertEvent>> {
        self.0.channel.subscribe()
    }

    /// Returns how each handler is doing.
    #[must_use]
    pub fn handlers(&self) -> Vec<HandlerStatus> {
        self.0.handlers()
    }

    /// Returns the messages that were given up, the oldest of each handler first; at most 200 of each.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let outboxes = self.0.post.outboxes.lock();
        outboxes.kept.outboxes.values().flat_map(|outbox| outbox.dead.iter().cloned()).collect()
    }

    /// Tries the dead letters of one handler, or of all, again; returns how many.
    pub fn retry_dead(&self, handler: Option<&str>) -> usize {
        self.0.post.outboxes.lock().revive(handler)
    }

    /// Returns what was found in the journal.
    #[must_use]
    pub fn journal_replay(&self) -> JournalReplay {
        self.0.replay
    }

    /// Sends a made-up event to a handler, beside its outbox and without a second try.
    ///
    /// # Errors
    ///
    /// [`HandlerError`] as the handler gave it.
    ///
    /// # Cancel safety
    ///
    /// The event may be sent although the future is dropped.
    pub fn test_handler(
        &self,
        id: &str,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send + use<> {
        let now = self.0.clock.now();
        let event = self.0.made_up("handler_test", Severity::Info, Labels::default(), now);
        let message = Message {
            key: format!("{id}/{}", event.key),
            group: Labels::new([("alertname", &*event.rule)]),
            events: vec![Arc::new(event)],
            attempts: 0,
        };
        self.0.post.test(id.into(), message)
    }

    /// Makes the event that a rule would send at its worst level, labelled `test="true"`.
    ///
    /// Unless `dry`, it is sent to the handlers of the rule, and so is its end. The state of the rule is
    /// not touched. The second value names the handlers whose filters let it through.
    ///
    /// # Errors
    ///
    /// [`NoSuchRule`].
    pub fn fire(&self, rule: &str, dry: bool) -> Result<(AlertEvent, Vec<Arc<str>>), NoSuchRule> {
        let now = self.0.clock.now();
        let evaluation = self.0.evaluation.lock();
        let set = evaluation.engine.rule_set();
        let found = set.rules().iter().find(|it| &*it.id == rule);
        let found = found.ok_or_else(|| NoSuchRule(rule.to_owned()))?;
        let severity = found.levels.last().map_or(Severity::Info, |level| level.severity);
        let mut event = self.0.made_up(&found.id, severity, found.labels.clone(), now);
        event.runbook = found.runbook.to_string();
        event.handlers = set.routes().get(&found.id).map_or_else(Vec::new, |it| it.to_vec());
        let served = self.0.post.handlers();
        let all = event.handlers.iter().chain(&evaluation.everything);
        let wants = |id: &&Arc<str>| {
            served.get(*id).is_some_and(|served| served.options.wants(&event, false))
        };
        let reached: Vec<_> = all.filter(wants).cloned().collect();
        if !dry {
            let end = AlertEvent {
                key: format!("{}-end", event.key),
                kind: EventKind::Resolve,
                ends_at_ms: Some(now.unix_ms),
                ..event.clone()
            };
            for event in [event.clone(), end] {
                // One after the other: who is told of the end depends on who was told of the beginning.
                let outcome = Outcome { events: vec![event], ..Outcome::default() };
                self.0.take(&evaluation, outcome, now);
            }
        }
        Ok((event, reached))
    }

    /// Sends what waits, for at most this long, writes everything down and stops; returns whether all
    /// was sent.
    ///
    /// Groups wait for nobody any more. What is left is sent after the next start if there is a journal.
    /// Blocks the calling thread, so an async program calls it where that is allowed.
    pub fn shutdown(&self, at_most: Duration) -> bool {
        let inner = &*self.0;
        let drained = inner.post.drain(at_most);
        {
            let now = inner.clock.now();
            let evaluation = inner.evaluation.lock();
            // Before the first tick the records are still those of the process before.
            if evaluation.restore.is_none() {
                let changed = evaluation.engine.records(now);
                let outcome = Outcome { changed, ..Outcome::default() };
                inner.take(&evaluation, outcome, now);
                inner.alive(now);
            }
        }
        inner.post.keep(true);
        inner.stop();
        if let Some(thread) = inner.thread.lock().take() {
            // If it panicked, the hook of the program has told so.
            let _ = thread.join();
        }
        drained
    }

    fn change(&self, change: impl FnOnce(&mut Engine, Moment) -> Outcome) -> usize {
        let now = self.0.clock.now();
        let mut evaluation = self.0.evaluation.lock();
        let outcome = change(&mut evaluation.engine, now);
        let ended = outcome.ended.len();
        self.0.take(&evaluation, outcome, now);
        self.0.metrics.show(&evaluation.engine.summary(now));
        ended
    }
}

impl fmt::Debug for Alerting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alerting").field("handlers", &self.handlers()).finish_non_exhaustive()
    }
}

impl Inner {
    /// Writes down what an evaluation came to, and lets the handlers have it.
    fn take(&self, evaluation: &Evaluation, mut outcome: Outcome, now: Moment) {
        for event in &mut outcome.events {
            event.handlers.extend(evaluation.everything.iter().cloned());
        }
        self.post.outboxes.lock().take(outcome, now.unix_ms);
    }

    /// Writes down that the process is alive, and forgets silences that are long over.
    fn alive(&self, now: Moment) {
        let mut outboxes = self.post.outboxes.lock();
        let over = |silence: &&Silence| {
            silence.ends_at_ms.saturating_add(SILENCE_REMEMBERED_MS) < now.unix_ms
        };
        let over = outboxes.kept.silences.values().filter(over);
        let mut records: Vec<_> =
            over.map(|silence| Record::Unsilence { id: silence.id }).collect();
        records.push(Record::Alive { at_ms: now.unix_ms });
        outboxes.commit(&records);
    }

    /// Reads the files again, and remembers whether they were refused.
    fn reload(&self, sources: &mut Sources) -> Result<ReloadReport, RulesRefused> {
        let done = self.load(sources);
        self.refused.store(done.is_err(), Relaxed);
        done
    }

    /// Loads the rules anew and puts them in force.
    fn load(&self, sources: &mut Sources) -> Result<ReloadReport, RulesRefused> {
        let Loaded { rules, handlers, everything } = sources.load(&self.channel)?;
        let now = self.clock.now();
        let mut evaluation = self.evaluation.lock();
        let report = ReloadReport::between(evaluation.engine.rule_set(), &rules);
        // Who is new can be told at once, and who is gone is told of nothing any more.
        self.post.serve(handlers);
        evaluation.everything = everything;
        let outcome = evaluation.engine.reload(rules, now);
        self.take(&evaluation, outcome, now);
        self.metrics.show(&evaluation.engine.summary(now));
        Ok(report)
    }

    fn reload_if_changed(&self) {
        let mut sources = self.sources.lock();
        if !sources.have_changed() {
            return;
        }
        match self.reload(&mut sources) {
            Ok(report) => tracing::info!(%report, "the alert rules were read again"),
            Err(error) => tracing::error!(%error, "the alert rules stay as they were"),
        }
    }

    /// An event for a test.
    fn made_up(&self, rule: &str, severity: Severity, labels: Labels, now: Moment) -> AlertEvent {
        let number = self.tests.fetch_add(1, Relaxed);
        let labels = labels.with(&Labels::new([("test", "true")]));
        AlertEvent {
            key: format!("test-{}-{number}", now.unix_ms),
            kind: EventKind::Fire,
            rule: rule.into(),
            severity,
            value: None,
            threshold: None,
            summary: format!("this is a test of {rule}; nothing is wrong"),
            description: String::new(),
            runbook: String::new(),
            starts_at_ms: now.unix_ms,
            ends_at_ms: None,
            at_ms: now.unix_ms,
            fingerprint: Fingerprint::of(rule, &labels),
            labels,
            handlers: Vec::new(),
            group: rule.into(),
            recommend: Vec::new(),
        }
    }

    fn handlers(&self) -> Vec<HandlerStatus> {
        let outboxes = self.post.outboxes.lock();
        let status = |id: &Arc<str>| {
            let outbox = outboxes.kept.outboxes.get(id);
            HandlerStatus {
                id: Arc::clone(id),
                waiting: outbox.map_or(0, Outbox::len),
                dead: outbox.map_or(0, |outbox| outbox.dead.len()),
                told: outbox.map_or(0, |outbox| outbox.told.len()),
            }
        };
        outboxes.served().map(status).collect()
    }

    /// Reports what is read at each tick.
    fn report(&self, readings: &mut Readings) {
        for status in self.handlers() {
            let labels: [(&str, &str); 1] = [("handler", &status.id)];
            readings.gauge("monitor_alerts_waiting", &labels, status.waiting as f64);
            readings.gauge("monitor_alerts_dead_letters", &labels, status.dead as f64);
        }
        let (errors, degraded) = {
            let outboxes = self.post.outboxes.lock();
            (outboxes.journal.errors(), outboxes.journal.is_degraded())
        };
        readings.counter("monitor_alerts_journal_errors_total", &[], errors as f64);
        readings.gauge("monitor_alerts_journal_degraded", &[], f64::from(u8::from(degraded)));
        let refused = f64::from(u8::from(self.refused.load(Relaxed)));
        readings.gauge("monitor_rules_refused", &[], refused);
    }

    fn stop(&self) {
        if let Some(watch) = self.watch.lock().take() {
            watch.remove();
        }
        self.stop.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
