//! The running handle: every part that the configuration asks for, connected to the others.
//!
//! ```text
//!   caches ─ stats ──────────────▶ registry ◀───────────── stats ─ scheduler
//!     ▲                               │ each second                   ▲
//!     │ reclaim                       ▼                               │ share of the memory budget
//!   memory guard ── stats ──▶ monitor: history, alerts, advice        │
//!     └────────────────────── pressure ───────────────────────────────┘
//!                                 advice ─▶ apply ─▶ configuration ─▶ caches, scheduler, balancers
//! ```
//!
//! Nobody below knows two of these; this file is where they meet. Parts are reached by cheap clones of one
//! handle. What runs in the background belongs to the handle: it ends with [`UltraPerf::shutdown`], and at
//! the latest when the last clone is dropped.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[cfg(feature = "memory")]
use crate::config::Origin;
use crate::config::{Config, ConfigError, ConfigLoader, OptimizationLevel};
use crate::live::Live;
use crate::slots::Slots;

/// The name by which problems and explanations call what a program sets in code.
const ORIGIN: &str = "the program";

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Why a hook failed.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;
type StartHook = Box<dyn FnOnce(UltraPerf) -> BoxFuture<Result<(), HookError>> + Send>;
type ShutdownHook = Box<dyn FnOnce(UltraPerf) -> BoxFuture<()> + Send>;

/// The parts of ultra-perf, made and connected as one configuration says; clones share them.
///
/// Two handles in one process know nothing of each other: give them directories of their own.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ultra_perf::{OptimizationLevel, UltraPerf};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let perf = UltraPerf::builder()
///     .level(OptimizationLevel::Basic)
///     .set("monitor.history.enabled", "false")
///     .build()
///     .await?;
/// assert_eq!(perf.level(), OptimizationLevel::Basic);
/// perf.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UltraPerf(pub(crate) Arc<Inner>);

/// A handle that keeps nothing alive; see [`UltraPerf::downgrade`].
#[derive(Clone)]
pub struct WeakUltraPerf(Weak<Inner>);

pub(crate) struct Inner {
    pub(crate) live: Live,
    #[cfg(feature = "scheduler")]
    scheduler: scheduler::Scheduler,
    #[cfg(feature = "memory")]
    memory: Option<memory::MemoryGuard>,
    #[cfg(feature = "monitor")]
    watch: crate::watch::Watched,
    #[cfg(feature = "cache")]
    pub(crate) caches: crate::caches::Caches,
    #[cfg(feature = "resilience")]
    breakers: resilience::Registry<String>,
    #[cfg(feature = "resilience")]
    retry_budget: resilience::RetryBudget,
    #[cfg(feature = "loadbalancer")]
    pub(crate) balancers: crate::balance::Balancers,
    #[cfg(feature = "memory")]
    pub(crate) memory_scopes: crate::scope::Ended,
    pub(crate) slots: Slots,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
    on_shutdown: Mutex<Vec<(String, ShutdownHook)>>,
    stopped: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.get_mut().iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl fmt::Debug for UltraPerf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UltraPerf").field("level", &self.level()).finish_non_exhaustive()
    }
}

impl fmt::Debug for WeakUltraPerf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakUltraPerf").finish_non_exhaustive()
    }
}

impl WeakUltraPerf {
    /// Returns the handle while somebody else keeps one.
    #[must_use]
    pub fn upgrade(&self) -> Option<UltraPerf> {
        self.0.upgrade().map(UltraPerf)
    }
}

/// Why the parts were not started.
///
/// Its debug form is the message with all causes, for that is what a `main` which returns it prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration has problems, all of which are listed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is a configuration that was loaded before, and sources of another one.
    #[error(
        "`config` gives a configuration that is loaded already, and {} would be left out: add it to the \
         `ConfigLoader` that makes the configuration, or leave `config` out",
        sources.iter().map(|source| format!("`{source}`")).collect::<Vec<_>>().join(", ")
    )]
    LoadedAlready {
        /// The methods of the builder that named a source.
        sources: Vec<&'static str>,
    },
    /// The scheduler's threads cannot be started.
    #[cfg(feature = "scheduler")]
    #[error("the scheduler cannot be started")]
    Scheduler(#[from] scheduler::BuildError),
    /// The process's memory cannot be watched.
    #[cfg(feature = "memory")]
    #[error("memory cannot be watched")]
    Memory(#[from] memory::GuardError),
    /// The program's allocator does not track what `memory.tracking` asks for.
    #[cfg(feature = "memory")]
    #[error("memory.tracking cannot be switched on")]
    Tracking(#[from] memory::TrackError),
    /// The monitor cannot be started.
    #[cfg(feature = "monitor")]
    #[error("the monitor cannot be started")]
    Monitor(#[from] crate::MonitorError),
    /// The settings of breakers or of the budget of retries do not go together.
    #[cfg(feature = "resilience")]
    #[error("calls cannot be guarded")]
    Guard(#[from] resilience::BuildError),
    /// A hook of the program failed; what had been started is stopped.
    #[error("the start-up hook \"{name}\" failed")]
    Hook {
        /// The hook.
        name: String,
        /// What it returned.
        #[source]
        source: HookError,
    },
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        let mut said = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            // An error that passes on what another one says has it as its cause as well.
            if text != said {
                write!(f, "\n  caused by: {}", text.replace('\n', "\n  "))?;
            }
            (said, cause) = (text, error.source());
        }
        Ok(())
    }
}

/// Collects configuration and hooks of an [`UltraPerf`].
#[must_use = "a builder does nothing until `build`"]
#[derive(Default)]
pub struct UltraPerfBuilder {
    config: Option<Config>,
    loader: ConfigLoader,
    /// The methods by which the loader was given a source.
    sources: Vec<&'static str>,
    settings: Vec<(String, String)>,
    #[cfg(feature = "memory")]
    guard: Option<GuardSettings>,
    #[cfg(feature = "monitor")]
    monitor: Option<MonitorSettings>,
    on_start: Vec<(String, StartHook)>,
    on_shutdown: Vec<(String, ShutdownHook)>,
    #[cfg(feature = "scheduler")]
    jobs: Vec<crate::jobs::Job>,
}

#[cfg(feature = "memory")]
type GuardSettings =
    Box<dyn FnOnce(memory::MemoryGuardBuilder) -> memory::MemoryGuardBuilder + Send>;
#[cfg(feature = "monitor")]
pub(crate) type MonitorSettings =
    Box<dyn FnOnce(monitor::MonitorBuilder) -> monitor::MonitorBuilder + Send>;

impl fmt::Debug for UltraPerfBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.settings.iter().map(|(key, _)| key).collect();
        f.debug_struct("UltraPerfBuilder").field("set", &keys).finish_non_exhaustive()
    }
}

impl UltraPerfBuilder {
    /// Chooses the defaults; whatever is set by file, environment or code wins over them.
    ///
    /// That is the key `level` in code, so a `level` in a file or in `ULTRA_PERF__LEVEL` loses to it: leave this
    /// out where whoever runs the program is to choose.
    pub fn level(self, level: OptimizationLevel) -> Self {
        self.set("level", level.to_string())
    }

    /// Adds a TOML file that must exist.
    pub fn config_file(mut self, path: impl Into<std::path::PathBuf>) -> Self {
        self.sources.push("config_file");
        self.loader = self.loader.file(path);
        self
    }

    /// Adds `ultra-perf.toml` of the working directory if there is one.
    pub fn default_file(mut self) -> Self {
        self.sources.push("default_file");
        self.loader = self.loader.default_file();
        self
    }

    /// Adds the environment of this process: `ULTRA_PERF__CACHE__TTL=1h`, `REDIS_URL` and other aliases.
    pub fn process_env(mut self) -> Self {
        self.sources.push("process_env");
        self.loader = self.loader.process_env();
        self
    }

    /// Takes a configuration that has been loaded, in place of file and environment.
    ///
    /// [`set`](Self::set) and [`level`](Self::level) win over what it says. A file or the environment beside it
    /// is a [`BuildError::LoadedAlready`]: those belong to the loader that made it.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Sets a key such as `cache.ttl` to a value spelt as in the environment, such as `10m`; it wins over file and
    /// environment.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Says more about the guard of the process's memory, such as the program's allocator:
    /// `|guard| guard.allocator(Mimalloc)`.
    #[cfg(feature = "memory")]
    pub fn memory_guard(
        mut self,
        settings: impl FnOnce(memory::MemoryGuardBuilder) -> memory::MemoryGuardBuilder + Send + 'static,
    ) -> Self {
        self.guard = Some(Box::new(settings));
        self
    }

    /// Names the program's allocator, which gives back what lies idle.
    #[cfg(feature = "memory")]
    pub fn allocator(self, allocator: impl memory::AllocatorControl) -> Self {
        self.memory_guard(|guard| guard.allocator(allocator))
    }

    /// Says more about the monitor, such as handlers of alerts or a clock.
    #[cfg(feature = "monitor")]
    pub fn monitor(
        mut self,
        settings: impl FnOnce(monitor::MonitorBuilder) -> monitor::MonitorBuilder + Send + 'static,
    ) -> Self {
        self.monitor = Some(Box::new(settings));
        self
    }

    /// Runs a hook once all parts are up, in the order of their naming; for warming caches and the like.
    ///
    /// An error ends the start, and what had been started is stopped.
    pub fn on_start<F, Fut>(mut self, name: impl Into<String>, hook: F) -> Self
    where
        F: FnOnce(UltraPerf) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), HookError>> + Send + 'static,
    {
        self.on_start.push((name.into(), Box::new(|perf| Box::pin(hook(perf)))));
        self
    }

    /// Runs a hook at the shutdown, while all parts still work; the last one named runs first.
    pub fn on_shutdown<F, Fut>(mut self, name: impl Into<String>, hook: F) -> Self
    where
        F: FnOnce(UltraPerf) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.on_shutdown.push((name.into(), Box::new(|perf| Box::pin(hook(perf)))));
        self
    }

    /// Runs a job each time that the period is over, as [`UltraPerf::every`].
    #[cfg(feature = "scheduler")]
    pub fn every<F, Fut>(mut self, name: &'static str, period: Duration, job: F) -> Self
    where
        F: Fn(UltraPerf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.jobs.push(crate::jobs::Job::new(name, period, job));
        self
    }

    /// Checks the configuration, starts the parts, connects them and runs the start-up hooks.
    ///
    /// # Errors
    ///
    /// [`BuildError`]: every problem of the configuration at once, or the first part or hook that does not
    /// start.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// May be dropped; what has been started stops.
    pub async fn build(self) -> Result<UltraPerf, BuildError> {
        let config = match self.config {
            Some(_) if !self.sources.is_empty() => {
                return Err(BuildError::LoadedAlready { sources: self.sources });
            }
            Some(config) if self.settings.is_empty() => config,
            Some(config) => config.with_code(&self.settings, ORIGIN)?,
            None => {
                let settings = self.settings.into_iter();
                settings.fold(self.loader, |to, (key, value)| to.set(key, value, ORIGIN)).load()?
            }
        };
        for note in config.notes() {
            tracing::info!(key = note.key, "{}", note.message);
        }
        #[cfg(feature = "memory")]
        if config.memory.tracking {
            track(&config)?;
        }
        #[cfg(feature = "memory")]
        let memory = {
            let more = self.guard.unwrap_or_else(|| Box::new(|guard| guard));
            config.memory_guard_builder().map(|guard| more(guard).start()).transpose()?
        };
        #[cfg(feature = "scheduler")]
        let scheduler = config.scheduler_builder().build()?;
        #[cfg(feature = "monitor")]
        let (watch, itself) = {
            let itself = crate::watch::Itself::default();
            (crate::watch::Watched::start(&config, self.monitor, itself.clone())?, itself)
        };
        #[cfg(feature = "resilience")]
        let (breakers, retry_budget) = (
            resilience::Registry::builder("ultra-perf")
                .defaults(config.named_breakers().on_change(log_breaker))
                .breakers_max(BREAKERS_MAX)
                .build()?,
            config.retry_budget_builder().build()?,
        );
        let perf = UltraPerf(Arc::new(Inner {
            live: Live::new(config),
            #[cfg(feature = "scheduler")]
            scheduler,
            #[cfg(feature = "memory")]
            memory,
            #[cfg(feature = "monitor")]
            watch,
            #[cfg(feature = "cache")]
            caches: crate::caches::Caches::default(),
            #[cfg(feature = "resilience")]
            breakers,
            #[cfg(feature = "resilience")]
            retry_budget,
            #[cfg(feature = "loadbalancer")]
            balancers: crate::balance::Balancers::default(),
            #[cfg(feature = "memory")]
            memory_scopes: crate::scope::Ended::default(),
            slots: Slots::default(),
            tasks: Mutex::default(),
            on_shutdown: Mutex::new(self.on_shutdown),
            stopped: AtomicBool::new(false),
        }));
        #[cfg(feature = "monitor")]
        {
            itself.is(&perf);
            perf.0.watch.connect(&perf);
        }
        perf.follow_changes();
        #[cfg(all(feature = "memory", feature = "scheduler"))]
        perf.follow_pressure();
        for (name, hook) in self.on_start {
            if let Err(source) = hook(perf.clone()).await {
                perf.shutdown(Duration::ZERO).await;
                return Err(BuildError::Hook { name, source });
            }
        }
        #[cfg(feature = "scheduler")]
        for job in self.jobs {
            perf.begin(job);
        }
        Ok(perf)
    }
}

/// Counts allocations by scope, for the whole process: an allocator is no part of one handle.
///
/// Where only the level asks for it, a program with another allocator goes on without.
#[cfg(feature = "memory")]
fn track(config: &Config) -> Result<(), BuildError> {
    match memory::track(memory::Track::Scopes) {
        Err(error) if matches!(config.origin("memory.tracking"), Some(Origin::Level(_))) => {
            tracing::info!(%error, "memory.tracking stays off");
            Ok(())
        }
        tracked => Ok(tracked?),
    }
}

/// Tells of a breaker that opens or closes; its state and its count are watched besides.
#[cfg(feature = "resilience")]
fn log_breaker(change: &resilience::StateChange<'_>) {
    let resilience::StateChange { breaker, from, to, reason, .. } = change;
    tracing::warn!(breaker, ?from, ?to, ?reason, "a circuit breaker changed");
}

/// Breakers that a handle keeps; beyond that the one that rested longest goes.
#[cfg(feature = "resilience")]
const BREAKERS_MAX: usize = 10_000;

impl UltraPerf {
    /// Starts to collect configuration and hooks.
    pub fn builder() -> UltraPerfBuilder {
        UltraPerfBuilder::default()
    }

    /// Returns the configuration in force.
    ///
    /// # Cost
    ///
    /// Two atomic operations; keep it where it is read often and need not follow changes.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.0.live.config()
    }

    /// Returns the level in force.
    #[must_use]
    pub fn level(&self) -> OptimizationLevel {
        self.config().level
    }

    /// Returns a handle that keeps nothing alive, for what the parts themselves hold.
    #[must_use]
    pub fn downgrade(&self) -> WeakUltraPerf {
        WeakUltraPerf(Arc::downgrade(&self.0))
    }

    /// Returns the scheduler.
    #[cfg(feature = "scheduler")]
    #[must_use]
    pub fn scheduler(&self) -> &scheduler::Scheduler {
        &self.0.scheduler
    }

    /// Returns the guard of the process's memory; `None` where `memory.enabled` is `false`.
    #[cfg(feature = "memory")]
    #[must_use]
    pub fn memory(&self) -> Option<&memory::MemoryGuard> {
        self.0.memory.as_ref()
    }

    /// Returns the registry that every part reports to.
    #[cfg(feature = "monitor")]
    #[must_use]
    pub fn registry(&self) -> &monitor::Registry {
        self.0.watch.registry()
    }

    /// Returns the monitor; `None` where `monitor.enabled` is `false`.
    #[cfg(feature = "monitor")]
    #[must_use]
    pub fn monitor(&self) -> Option<&monitor::Monitor> {
        self.0.watch.monitor()
    }

    /// Returns what all parts last counted; a second old at most, or an interval of the monitor.
    ///
    /// # Cost
    ///
    /// With a monitor, that of cloning a pointer. Without one it may read all parts, the sizes of disk tiers
    /// among them, so it belongs on a thread that may block.
    #[cfg(feature = "monitor")]
    #[must_use]
    pub fn snapshot(&self) -> Arc<monitor::Snapshot> {
        self.0.watch.snapshot()
    }

    /// Returns what all parts last counted in a format of Prometheus. Costs as [`snapshot`](Self::snapshot).
    #[cfg(feature = "monitor")]
    #[must_use]
    pub fn render(&self, format: monitor::Format) -> Arc<[u8]> {
        self.0.watch.render(format)
    }

    /// Returns the circuit breaker of this name, making it with the settings of `balancer.breaker`.
    ///
    /// Where the configuration says `balancer.breaker.mode = "off"`, it never opens by itself.
    /// What it does is watched under its name. A handle keeps at most 10,000; beyond that those at rest go
    /// first, the longest unused before others.
    #[cfg(feature = "resilience")]
    #[must_use]
    pub fn breaker(&self, name: &str) -> resilience::CircuitBreaker {
        match self.0.breakers.find(name) {
            Some(breaker) => breaker,
            None => self.0.breakers.get(name),
        }
    }

    /// Returns all circuit breakers of the handle.
    #[cfg(feature = "resilience")]
    #[must_use]
    pub fn breakers(&self) -> &resilience::Registry<String> {
        &self.0.breakers
    }

    /// Returns the budget that all retries and hedges of the handle share.
    #[cfg(feature = "resilience")]
    #[must_use]
    pub fn retry_budget(&self) -> &resilience::RetryBudget {
        &self.0.retry_budget
    }

    /// Lets pressure on memory scale what tasks in the background may take.
    #[cfg(all(feature = "memory", feature = "scheduler"))]
    fn follow_pressure(&self) {
        let Some(guard) = &self.0.memory else { return };
        let (scheduler, mut watch) = (self.0.scheduler.clone(), guard.watch());
        // The pressure may have been there before.
        scheduler.set_memory_scale(crate::pressure::scale_at(watch.level()));
        self.keep(tokio::spawn(async move {
            while let Some(level) = watch.changed().await {
                scheduler.set_memory_scale(crate::pressure::scale_at(level));
            }
        }));
    }

    /// Holds a task that ends with the handle.
    #[cfg(feature = "scheduler")]
    pub(crate) fn keep(&self, task: tokio::task::JoinHandle<()>) {
        let mut tasks = self.0.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        if self.0.stopped.load(Ordering::Acquire) {
            task.abort();
        }
    }

    /// Stops everything in order, and tells how each step went.
    ///
    /// Jobs stop first, then the hooks run while all parts still work, then tasks may finish, caches write
    /// down what only memory had, and the monitor ends. What is not done at the deadline is cut off and said
    /// so; scheduler and monitor have up to a second more for their reports. The guard over the memory ends
    /// with the last handle. A second call has nothing to do and returns an empty report. A cache that is
    /// opened later than this is not closed by anybody but the program.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the handle stopping: jobs are gone, and what memory alone held may be lost.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let mut report = ShutdownReport::default();
        if self.0.stopped.swap(true, Ordering::AcqRel) {
            return report;
        }
        let end = Instant::now() + deadline.min(FAR);
        self.0.tasks.lock().drain(..).for_each(|task| task.abort());
        report.steps.push(Step {
            name: "jobs".to_owned(),
            took: Duration::ZERO,
            outcome: Outcome::Done,
        });
        let hooks = std::mem::take(&mut *self.0.on_shutdown.lock());
        for (name, hook) in hooks.into_iter().rev() {
            let perf = self.clone();
            // In a task of its own: a hook that panics must not keep the others from running.
            let hook = guarded(async move { hook(perf).await });
            report.step(format!("hook {name}"), end, hook).await;
        }
        #[cfg(feature = "scheduler")]
        {
            let left = end.saturating_duration_since(Instant::now());
            let drain = async {
                let drained = self.0.scheduler.drain(left).await;
                match drained.dropped.len() + drained.stopped.len() {
                    0 => Outcome::Done,
                    cut => Outcome::CutOff(format!("{cut} tasks")),
                }
            };
            // It keeps the time itself; its report is worth the moment that comes on top.
            report.step("scheduler".to_owned(), end + Duration::from_secs(1), drain).await;
        }
        #[cfg(feature = "cache")]
        for _ in ["those that are open", "those that were opened meanwhile"] {
            for cache in self.0.caches.take() {
                let close = async {
                    cache.close().await;
                    Outcome::Done
                };
                report.step(format!("cache {}", cache.name()), end, close).await;
            }
        }
        #[cfg(feature = "monitor")]
        {
            let (watch, left) = (self.clone(), end.saturating_duration_since(Instant::now()));
            // It writes to the disk.
            let stop = tokio::task::spawn_blocking(move || watch.0.watch.shutdown(left));
            let stop = async { stop.await.map_or(Outcome::Panicked, |()| Outcome::Done) };
            report.step("monitor".to_owned(), end + Duration::from_secs(1), stop).await;
        }
        report
    }
}

/// A time that never comes, and that a clock can still be advanced by.
pub(crate) const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);

async fn guarded(hook: impl Future<Output = ()> + Send + 'static) -> Outcome {
    struct Abort(tokio::task::AbortHandle);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let task = tokio::spawn(hook);
    let _cut_off_with_this = Abort(task.abort_handle());
    task.await.map_or(Outcome::Panicked, |()| Outcome::Done)
}

/// How a shutdown went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// The steps in their order.
    pub steps: Vec<Step>,
}

/// One step of a shutdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was stopped.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a step of a shutdown ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// In time and whole.
    Done,
    /// At its deadline with something undone.
    CutOff(String),
    /// By a panic.
    Panicked,
}

impl ShutdownReport {
    /// Returns whether every step ended whole.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.steps.iter().all(|step| step.outcome == Outcome::Done)
    }

    async fn step(&mut self, name: String, end: Instant, work: impl Future<Output = Outcome>) {
        let began = Instant::now();
        let outcome = match tokio::time::timeout_at(end.into(), work).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::CutOff("at the deadline".to_owned()),
        };
        self.steps.push(Step { name, took: began.elapsed(), outcome });
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { name, took, outcome } in &self.steps {
            match outcome {
                Outcome::Done => writeln!(f, "{name}: done in {took:.1?}")?,
                Outcome::CutOff(what) => writeln!(f, "{name}: cut off after {took:.1?}: {what}")?,
                Outcome::Panicked => writeln!(f, "{name}: panicked after {took:.1?}")?,
            }
        }
        Ok(())
    }
}
