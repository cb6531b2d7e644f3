//! The monitor: one thread that reads everything once a second, and the handle to all that it knows.
//!
//! A tick asks the registry for all values, hands them to the history, and judges them by the rules; every ten
//! seconds it computes the score, and the advisor looks when its time has come. Writing and sending happen on
//! threads of their own, so a full disk or a slow receiver never delays a tick. Ticks that begin late or are
//! left out are counted, and so is what ticks cost.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Condvar, Mutex};

use crate::advice::{
    Actuator, AdviceContext, AdviceRule, Advisor, AdvisorOptions, ApplyError, AuditEntry, Finding,
    GenericOptions, Recommendation, generic_rules,
};
use crate::alert::{
    AlertEvent, AlertHandler, AlertState, AlertSummary, Alerting, AlertingError, AlertingOptions,
    Alerts, DeliveryOptions, RuleSet, RulesRefused, Severity,
};
use crate::clock::{Clock, Moment, SystemClock};
use crate::collect::{Collector, CollectorOptions};
use crate::exposition::{Format, Renderer};
use crate::histogram::Histogram;
use crate::history::{self, History, HistoryOptions};
use crate::insight::{Degradation, DegradationOptions, MetricBaseline, MetricSpec};
use crate::registry::{Counter, Gauge, Readings, Registry, RegistryOptions, Snapshot, Watch};
use crate::score::{Score, ScoreOptions};
use crate::series::{Kind, Unit};

/// How often the score is computed, unless ticks are further apart.
const SCORE_EVERY: Duration = Duration::from_secs(10);
/// A tick that begins later than this part of the interval is late.
const LATE_PART: u32 = 10;

/// What the monitor tells about itself.
const FAMILIES: [(&str, Kind, Unit, &str); 7] = [
    ("monitor_tick_cpu_seconds", Kind::Histogram, Unit::Seconds, "Processor time of a tick."),
    ("monitor_ticks_total", Kind::Counter, Unit::None, "Ticks."),
    ("monitor_ticks_late_total", Kind::Counter, Unit::None, "Ticks that began late."),
    ("monitor_ticks_missed_total", Kind::Counter, Unit::None, "Ticks that were left out."),
    (
        "monitor_history_degraded",
        Kind::Gauge,
        Unit::None,
        "Whether the history is kept in memory although it should be on disk.",
    ),
    ("performance_score", Kind::Gauge, Unit::None, "The score from 0 to 100."),
    (
        "monitor_advice_panics_total",
        Kind::Counter,
        Unit::None,
        "Panics of advice rules, and of changes that advice made or undid.",
    ),
];

/// Describes a [`Monitor`].
#[must_use = "a builder does nothing until it starts"]
pub struct MonitorBuilder {
    interval: Duration,
    manual: bool,
    directory: Option<PathBuf>,
    registry: RegistryOptions,
    shared_registry: Option<Registry>,
    collector: Option<CollectorOptions>,
    history: HistoryOptions,
    alerting: AlertingOptions,
    score: ScoreOptions,
    advice: AdvisorOptions,
    generic_advice: bool,
    advice_rules: Vec<Box<dyn AdviceRule>>,
    actuator: Option<Arc<dyn Actuator>>,
    auto_apply: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for MonitorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorBuilder")
            .field("interval", &self.interval)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Default for MonitorBuilder {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            manual: false,
            directory: None,
            registry: RegistryOptions::default(),
            shared_registry: None,
            collector: Some(CollectorOptions::default()),
            history: HistoryOptions::default(),
            alerting: AlertingOptions::default(),
            score: ScoreOptions::default(),
            advice: AdvisorOptions::default(),
            generic_advice: true,
            advice_rules: Vec::new(),
            actuator: None,
            auto_apply: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl MonitorBuilder {
    /// Sets the time between two ticks; a second unless told, at least 10 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Starts no thread: the owner calls [`Monitor::tick`].
    pub fn manual(mut self) -> Self {
        self.manual = true;
        self
    }

    /// Keeps history, alerts and advice in this directory, so that they outlive the process.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Bounds the registry.
    pub fn registry(mut self, options: RegistryOptions) -> Self {
        self.registry = options;
        self
    }

    /// Reads a registry that is there already, in place of one of its own.
    pub fn share_registry(mut self, registry: &Registry) -> Self {
        self.shared_registry = Some(registry.clone());
        self
    }

    /// Says what of process and system is read; `None` reads neither.
    pub fn collector(mut self, options: Option<CollectorOptions>) -> Self {
        self.collector = options;
        self
    }

    /// Says how long what is remembered. Its path is set by [`directory`](Self::directory).
    pub fn history(mut self, options: HistoryOptions) -> Self {
        self.history = options;
        self
    }

    /// Sets rules, rule file and bounds of the alerts. The journal is set by [`directory`](Self::directory).
    pub fn alerting(mut self, options: AlertingOptions) -> Self {
        self.alerting = options;
        self
    }

    /// Judges by these rules, beside those of a rule file.
    pub fn rules(mut self, rules: RuleSet) -> Self {
        self.alerting.rules = rules;
        self
    }

    /// Judges by the rules of this file too, and reads it again when it changes.
    pub fn rule_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.alerting.rule_files.push(path.into());
        self
    }

    /// Adds a handler of the program's own; the options name it, and say what it gets and how.
    pub fn handler(mut self, options: DeliveryOptions, handler: impl AlertHandler) -> Self {
        self.alerting.handlers.push((options, Arc::new(handler)));
        self
    }

    /// Says what is aimed at, and where the score is read.
    pub fn score(mut self, options: ScoreOptions) -> Self {
        self.score = options;
        self
    }

    /// Sets bounds and times of the advice.
    pub fn advice(mut self, options: AdvisorOptions) -> Self {
        self.advice = options;
        self
    }

    /// Leaves out the advice rules about system and requests.
    pub fn without_generic_advice(mut self) -> Self {
        self.generic_advice = false;
        self
    }

    /// Adds an advice rule.
    pub fn advice_rule(mut self, rule: impl AdviceRule + 'static) -> Self {
        self.advice_rules.push(Box::new(rule));
        self
    }

    /// Changes settings through this when advice is applied and undone; it should not block for long, and
    /// what panics in it counts as refused.
    pub fn actuator(mut self, actuator: impl Actuator + 'static) -> Self {
        self.actuator = Some(Arc::new(actuator));
        self
    }

    /// Lets advice apply itself while `allowed` says so, as [`Advisor::auto_apply`].
    ///
    /// It is asked each time that the rules have looked, so it can be a setting that changes.
    pub fn auto_apply(mut self, allowed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.auto_apply = Some(Box::new(allowed));
        self
    }

    /// Takes the time from this clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Opens history and journal and begins to tick.
    ///
    /// A history that cannot be opened is kept in memory; `monitor_history_degraded` is 1 then.
    ///
    /// # Errors
    ///
    /// [`StartError`], with every problem of the rule file.
    pub fn start(self) -> Result<Monitor, StartError> {
        if self.interval < Duration::from_millis(10) {
            return Err(StartError::Interval(self.interval));
        }
        let registry = self.shared_registry.unwrap_or_else(|| Registry::new(self.registry));
        for (name, kind, unit, help) in FAMILIES {
            registry.describe(name, kind, unit, help);
        }
        let collector = self.collector.map(|options| Collector::start(&registry, options));
        let collector = collector.transpose().map_err(StartError::Thread)?;
        let (history, refused) = open_history(self.history, self.directory.as_deref())?;
        // Alerts and advice there belong to the process that has the history.
        let directory = self.directory.filter(|_| refused.is_none());
        let mut alerting = self.alerting;
        if let Some(directory) = &directory {
            alerting.journal.get_or_insert_with(|| directory.join("alerts.journal"));
        }
        let source = Arc::new(history.clone());
        let alerting = Alerting::start(alerting, Arc::clone(&self.clock), source, &registry)?;
        let mut advisor = Advisor::new(self.advice);
        if let Some(allowed) = self.auto_apply {
            advisor.auto_apply(allowed);
        }
        if self.generic_advice {
            for rule in generic_rules(&GenericOptions::default()) {
                advisor.add_rule(rule);
            }
        }
        for rule in self.advice_rules {
            advisor.add_rule(rule);
        }
        let advice_file = directory.map(|directory| directory.join("advice.json"));
        if let Some(file) = &advice_file {
            restore_advice(&mut advisor, file, self.clock.now());
        }
        let own = OwnMetrics::new(&registry);
        let monitor = Monitor(Arc::new(Inner {
            registry,
            clock: self.clock,
            interval: self.interval,
            latest: Mutex::new(None),
            renderer: Renderer::new(),
            history,
            history_refused: refused,
            alerting,
            score_options: self.score,
            score: Mutex::new(None),
            advisor: Mutex::new(advisor),
            advice_file,
            actuator: ArcSwapOption::from(self.actuator.map(Arc::new)),
            own,
            _collector: collector,
            stop: Arc::default(),
            thread: Mutex::new(None),
        }));
        if !self.manual {
            let (inner, stop) = (Arc::downgrade(&monitor.0), Arc::clone(&monitor.0.stop));
            let interval = self.interval;
            let thread = std::thread::Builder::new()
                .name("monitor".to_owned())
                .spawn(move || tick_until_stopped(&inner, &stop, interval))
                .map_err(StartError::Thread)?;
            *monitor.0.thread.lock() = Some(thread);
        }
        Ok(monitor)
    }
}

/// Why a monitor does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Ticks would follow each other too closely.
    #[error("the interval is {0:?}: must be at least 10 ms")]
    Interval(Duration),
    /// The options of the history do not go together.
    #[error("the history cannot be kept")]
    History(#[source] history::OpenError),
    /// The rules or their journal cannot be used.
    #[error("the alerts cannot be watched")]
    Alerting(#[from] AlertingError),
    /// The system gives no thread.
    #[error("the monitor's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// Opens the history, in memory if its directory cannot be had; then the reason is returned as well.
fn open_history(
    mut options: HistoryOptions,
    directory: Option<&Path>,
) -> Result<(History, Option<String>), StartError> {
    if let Some(directory) = directory {
        options.path.get_or_insert_with(|| directory.join("history"));
    }
    match History::open(options.clone()) {
        Ok(history) => Ok((history, None)),
        Err(error @ history::OpenError::Locked { .. }) => {
            tracing::warn!(%error, "the history is kept in memory");
            let options = HistoryOptions { path: None, ..options };
            let history = History::open(options).map_err(StartError::History)?;
            Ok((history, Some(error.to_string())))
        }
        Err(error) => Err(StartError::History(error)),
    }
}

fn restore_advice(advisor: &mut Advisor, file: &Path, now: Moment) {
    let read = match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
    };
    match read {
        Ok(state) => advisor.restore(state, now),
        Err(error) => tracing::warn!(%error, file = %file.display(), "earlier advice is lost"),
    }
}

/// What the monitor counts about itself.
struct OwnMetrics {
    tick_cpu: Histogram,
    ticks: Counter,
    late: Counter,
    missed: Counter,
    degraded: Gauge,
    score: Gauge,
    advice_panics: Counter,
}

impl OwnMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            tick_cpu: registry.histogram("monitor_tick_cpu_seconds", &[]),
            ticks: registry.counter("monitor_ticks_total", &[]),
            late: registry.counter("monitor_ticks_late_total", &[]),
            missed: registry.counter("monitor_ticks_missed_total", &[]),
            degraded: registry.gauge("monitor_history_degraded", &[]),
            score: registry.gauge("performance_score", &[]),
            advice_panics: registry.counter("monitor_advice_panics_total", &[]),
        }
    }
}

#[derive(Default)]
struct Stop {
    stopping: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn stop(&self) {
        *self.stopping.lock() = true;
        self.changed.notify_all();
    }

    /// Waits until a moment; whether it is time to stop.
    fn wait_until(&self, until: Instant) -> bool {
        let mut stopping = self.stopping.lock();
        while !*stopping && !self.changed.wait_until(&mut stopping, until).timed_out() {}
        *stopping
    }
}

/// Ticks at the interval until it is stopped or the last handle is gone.
fn tick_until_stopped(inner: &Weak<Inner>, stop: &Stop, interval: Duration) {
    let mut due = Instant::now();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let late = due.elapsed();
        if late > interval / LATE_PART {
            inner.own.late.increment(1);
        }
        inner.tick();
        due += interval;
        let behind = due.elapsed();
        if behind > interval {
            // What is missed stays missed: ticks do not pile up behind a machine that stood still.
            let missed = (behind.as_nanos() / interval.as_nanos().max(1)) as u32;
            inner.own.missed.increment(u64::from(missed));
            due += interval * missed;
        }
        drop(inner);
        if stop.wait_until(due) {
            return;
        }
    }
}

/// Processor time of this thread; elsewhere than on Linux the time that has passed.
fn thread_time() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    }
    #[cfg(not(target_os = "linux"))]
    {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        START.elapsed()
    }
}

struct Inner {
    registry: Registry,
    clock: Arc<dyn Clock>,
    interval: Duration,
    latest: Mutex<Option<Arc<Snapshot>>>,
    renderer: Renderer,
    history: History,
    /// Why the history did not get its directory.
    history_refused: Option<String>,
    alerting: Alerting,
    score_options: ScoreOptions,
    score: Mutex<Option<(Duration, Arc<Score>)>>,
    advisor: Mutex<Advisor>,
    advice_file: Option<PathBuf>,
    /// Within another `Arc`, because a swap needs a thin pointer.
    actuator: ArcSwapOption<Arc<dyn Actuator>>,
    own: OwnMetrics,
    _collector: Option<Collector>,
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl Inner {
    fn tick(&self) {
        let before = thread_time();
        let now = self.clock.now();
        self.own.ticks.increment(1);
        let degraded = self.history_refused.is_some() || self.history.degraded().is_some();
        self.own.degraded.set(f64::from(u8::from(degraded)));
        let snapshot = Arc::new(self.registry.read(now));
        let kept_ms = self.history.record(&snapshot);
        *self.latest.lock() = Some(snapshot);
        // Rules look at the moment under which the samples are kept, which never goes back.
        let now =
            Moment { unix_ms: kept_ms.or(self.history.last_ms()).unwrap_or(now.unix_ms), ..now };
        self.alerting.tick(now);
        let score = self.score_at(now);
        let actuator = self.actuator.load_full();
        let actuator = actuator.as_deref().map(|actuator| &**actuator);
        let mut advisor = self.advisor.lock();
        let panics = advisor.panics();
        let changes = advisor.evaluate(now, &self.history, Some(&score), actuator);
        self.own.advice_panics.increment(advisor.panics() - panics);
        if !changes.is_empty() {
            self.keep_advice(&advisor);
        }
        drop(advisor);
        self.own.tick_cpu.record_duration(thread_time().saturating_sub(before));
    }

    /// The score of this moment, or one that is no older than ten seconds.
    fn score_at(&self, now: Moment) -> Arc<Score> {
        if let Some((at, score)) = &*self.score.lock()
            && now.since(*at) < SCORE_EVERY
        {
            return Arc::clone(score);
        }
        let active = self.alerting.active();
        let critical: Vec<String> = active
            .iter()
            .filter(|alert| alert.severity == Severity::Critical)
            .filter(|alert| matches!(alert.state, AlertState::Firing | AlertState::Recovering))
            .map(|alert| alert.rule.to_string())
            .collect();
        let score = Score::read(&self.history, now.unix_ms, &self.score_options, &critical);
        let score = Arc::new(score);
        if let Some(points) = score.score {
            self.own.score.set(points);
        }
        *self.score.lock() = Some((now.monotonic, Arc::clone(&score)));
        score
    }

    /// Writes the state of the advice; it changes a few times a day at most.
    fn keep_advice(&self, advisor: &Advisor) {
        let Some(file) = &self.advice_file else { return };
        let written =
            serde_json::to_vec(&advisor.snapshot()).map_err(io::Error::other).and_then(|bytes| {
                let new = file.with_extension("json.new");
                fs::write(&new, bytes)?;
                fs::rename(&new, file)
            });
        if let Err(error) = written {
            tracing::warn!(%error, file = %file.display(), "the state of the advice is not kept");
        }
    }

    fn change_advice(
        &self,
        change: impl FnOnce(&mut Advisor, Moment) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let mut advisor = self.advisor.lock();
        let panics = advisor.panics();
        let changed = change(&mut advisor, self.clock.now());
        self.own.advice_panics.increment(advisor.panics() - panics);
        // A refused change is in the audit as well.
        self.keep_advice(&advisor);
        changed
    }
}

/// Watches a process and its machine; clones share it.
///
/// # Examples
///
/// ```
/// use monitor::{Monitor, alert::Severity};
///
/// let monitor = Monitor::builder().start()?;
/// monitor.counter("orders_total", &[("kind", "book")]).increment(1);
/// monitor.watch("queue_depth", || 7.0);
/// monitor.add_alert_rule("queue_long", "queue_depth", 100.0, Severity::Warning, "orders pile up")?;
///
/// monitor.tick(); // its thread does so every second
/// assert_eq!(monitor.snapshot().number("queue_depth", &[]), Some(7.0));
/// monitor.shutdown(std::time::Duration::from_secs(5));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Monitor(Arc<Inner>);

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("registry", &self.0.registry).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Describes a monitor that ticks each second and keeps everything in memory.
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder::default()
    }

    /// Returns the registry that it reads.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Returns what it remembers.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Returns its rules, handlers, silences and alerts.
    #[must_use]
    pub fn alerting(&self) -> &Alerting {
        &self.0.alerting
    }

    /// Returns why the history is in memory although it should be on disk.
    #[must_use]
    pub fn history_degraded(&self) -> Option<String> {
        let reason = || self.0.history.degraded().map(|reason| reason.to_string());
        self.0.history_refused.clone().or_else(reason)
    }

    /// Says what a metric is, as [`Registry::describe`].
    pub fn describe(&self, name: &str, kind: Kind, unit: Unit, help: &str) {
        self.0.registry.describe(name, kind, unit, help);
    }

    /// Returns a counter, as [`Registry::counter`].
    #[must_use]
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Counter {
        self.0.registry.counter(name, labels)
    }

    /// Returns a gauge, as [`Registry::gauge`].
    #[must_use]
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Gauge {
        self.0.registry.gauge(name, labels)
    }

    /// Returns a histogram, as [`Registry::histogram`].
    #[must_use]
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        self.0.registry.histogram(name, labels)
    }

    /// Watches a value, as [`Registry::watch`].
    pub fn watch(&self, name: &str, value: impl Fn() -> f64 + Send + Sync + 'static) -> Watch {
        self.0.registry.watch(name, value)
    }

    /// Watches any set of series, as [`Registry::collect`].
    pub fn collect(&self, watcher: impl Fn(&mut Readings) + Send + Sync + 'static) -> Watch {
        self.0.registry.collect(watcher)
    }

    /// Times an operation until the guard is dropped, as [`Registry::time`].
    pub fn time(&self, operation: &str) -> crate::timing::TimerGuard {
        self.0.registry.time(operation)
    }

    /// Reads, remembers and judges everything now; its thread does so at each interval.
    ///
    /// # Cost
    ///
    /// About a millisecond of processor time with 200 series.
    pub fn tick(&self) {
        self.0.tick();
    }

    /// Returns what the last tick read, or reads now if there was none within a second or an interval.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let now = self.0.clock.now();
        let oldest = self.0.interval.max(Duration::from_secs(1)).min(Duration::from_secs(2));
        let latest = self.0.latest.lock().clone();
        match latest.filter(|latest| now.since(latest.at.monotonic) <= oldest) {
            Some(latest) => latest,
            None => {
                let read = Arc::new(self.0.registry.read(now));
                *self.0.latest.lock() = Some(Arc::clone(&read));
                read
            }
        }
    }

    /// Returns everything in a format of Prometheus, rendered at most once a second.
    ///
    /// [`negotiate`](crate::negotiate) finds the format that a scraper wants.
    #[must_use]
    pub fn render(&self, format: Format) -> Arc<[u8]> {
        self.0.renderer.render(&self.snapshot(), format)
    }

    /// Adds an alert rule in short: raised while the mean of a minute is above a threshold.
    ///
    /// It takes the place of a rule of the same name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it; then nothing is changed.
    pub fn add_alert_rule(
        &self,
        name: &str,
        metric: &str,
        threshold: f64,
        severity: Severity,
        message: &str,
    ) -> Result<(), RulesRefused> {
        self.0.alerting.add_alert_rule(name, metric, threshold, severity, message)
    }

    /// Returns the alerts that go on, and those that ended within so many hours.
    #[must_use]
    pub fn alerts(&self, hours: f64) -> Alerts {
        self.0.alerting.alerts(hours)
    }

    /// Resolves all alerts and puts them into the archive; returns how many there were.
    pub fn clear_alerts(&self) -> usize {
        self.0.alerting.clear()
    }

    /// Returns alerts by severity, state and rule, the longest and the most frequent.
    #[must_use]
    pub fn alert_summary(&self) -> AlertSummary {
        self.0.alerting.summary()
    }

    /// Listens to what the alerts say from now on.
    #[must_use]
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Arc<AlertEvent>> {
        self.0.alerting.subscribe()
    }

    /// Returns the score, no older than ten seconds.
    #[must_use]
    pub fn score(&self) -> Arc<Score> {
        self.0.score_at(self.now())
    }

    /// Returns all recommendations, the urgent ones first.
    #[must_use]
    pub fn recommendations(&self) -> Vec<Recommendation> {
        self.0.advisor.lock().recommendations().into_iter().cloned().collect()
    }

    /// Returns what happened to recommendations, the oldest first.
    #[must_use]
    pub fn advice_audit(&self) -> Vec<AuditEntry> {
        self.0.advisor.lock().audit().cloned().collect()
    }

    /// Adds a closure that gives advice, as [`Advisor::rule`].
    pub fn add_advice_rule(
        &self,
        id: &str,
        check: impl Fn(&AdviceContext<'_>) -> Vec<Finding> + Send + Sync + 'static,
    ) {
        self.0.advisor.lock().rule(id, check);
    }

    /// Adds advice rules to a monitor that runs: those that look at parts which are made after it.
    pub fn add_advice_rules(&self, rules: impl IntoIterator<Item = Box<dyn AdviceRule>>) {
        let mut advisor = self.0.advisor.lock();
        rules.into_iter().for_each(|rule| advisor.add_rule(rule));
    }

    /// Changes settings through this from now on when advice is applied and undone, as
    /// [`MonitorBuilder::actuator`].
    pub fn set_actuator(&self, actuator: impl Actuator + 'static) {
        let actuator: Arc<dyn Actuator> = Arc::new(actuator);
        self.0.actuator.store(Some(Arc::new(actuator)));
    }

    /// Makes the change of an open recommendation, and watches what comes of it.
    ///
    /// # Errors
    ///
    /// As [`Advisor::apply`]; [`ApplyError::NoAction`] without an actuator.
    pub fn apply(&self, id: &str, by: &str) -> Result<(), ApplyError> {
        let actuator = self.0.actuator.load_full().ok_or(ApplyError::NoAction)?;
        let history = &self.0.history;
        self.0.change_advice(|advisor, now| advisor.apply(id, by, now, history, &**actuator))
    }

    /// Undoes the change of a recommendation.
    ///
    /// # Errors
    ///
    /// As [`Advisor::undo`]; [`ApplyError::NoAction`] without an actuator.
    pub fn undo(&self, id: &str, by: &str) -> Result<(), ApplyError> {
        let actuator = self.0.actuator.load_full().ok_or(ApplyError::NoAction)?;
        self.0.change_advice(|advisor, now| advisor.undo(id, by, now, &**actuator))
    }

    /// Puts a recommendation aside, for a while or for good.
    ///
    /// # Errors
    ///
    /// As [`Advisor::dismiss`].
    pub fn dismiss(
        &self,
        id: &str,
        by: &str,
        reason: &str,
        time: Option<Duration>,
    ) -> Result<(), ApplyError> {
        self.0.change_advice(|advisor, now| advisor.dismiss(id, by, reason, time, now))
    }

    /// Returns how metrics usually are, over the hour and over the week.
    #[must_use]
    pub fn baselines(&self, metrics: &[MetricSpec]) -> Vec<MetricBaseline> {
        crate::insight::baselines(&self.0.history, metrics, self.now().unix_ms)
    }

    /// Returns the metrics that are worse now than they usually are.
    #[must_use]
    pub fn degradations(
        &self,
        metrics: &[MetricSpec],
        options: &DegradationOptions,
    ) -> Vec<Degradation> {
        crate::insight::degradations(&self.0.history, metrics, self.now().unix_ms, options)
    }

    /// Returns the moment up to which there are samples.
    #[must_use]
    pub fn now(&self) -> Moment {
        let now = self.0.clock.now();
        Moment { unix_ms: self.0.history.last_ms().unwrap_or(now.unix_ms), ..now }
    }

    /// Stops ticking, sends what is to be sent until the deadline, and writes everything down.
    ///
    /// Blocks the calling thread. Without it, the last handle stops the ticks when it goes, and at most a second
    /// of the history is lost.
    pub fn shutdown(&self, deadline: Duration) {
        self.0.stop.stop();
        if let Some(thread) = self.0.thread.lock().take() {
            // A tick that panicked has been told by the panic itself.
            let _ = thread.join();
        }
        self.0.alerting.shutdown(deadline);
        self.0.history.close();
        self.0.keep_advice(&self.0.advisor.lock());
    }
}
