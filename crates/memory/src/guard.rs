//! One call at start-up: watch memory, reclaim under pressure, give back when it is idle.
//!
//! A [`MemoryGuard`] runs a [`PressureMonitor`] on a thread of its own, so it works when the program's
//! runtime is starved: a reading each 250 ms, and each 50 ms from [`Level::Elevated`] on, since a
//! program that fills its memory may need less than 250 ms from there to the end. What a reading
//! asks for is done on another thread, so that a reclaimer that takes long does not stop the readings.
//! At most one run is under way; one that does not end is reported as stuck after five seconds, and
//! the next run goes on without the reclaimer in which it hangs.
//!
//! # How much is reclaimed
//!
//! From the threshold on, as much as brings the use ten points below it. What the allocator holds
//! unused already counts as free, because the next allocations use it up before the process grows:
//! otherwise a run would evict again what the run before has freed and the allocator has kept. At
//! [`Level::Critical`] that credit is not given. A run that frees nothing makes the next one wait
//! longer, up to five seconds.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::allocator::{self, AllocatorControl, GiveBackReport, Policy};
use crate::pressure::{
    Event, EventKind, HistoryPoint, Level, MemorySample, PressureMonitor, PressureSettings,
    PressureWatch, Publisher, Resident, SourceStats, Thresholds, channel,
};
use crate::reclaim::{
    ReclaimOutcome, Reclaimer, ReclaimerReport, Reclaimers, Registration, Surroundings,
    TooManyReclaimers, Wanted,
};

/// How long one reclaimer may take, and a whole run.
const EACH: Duration = Duration::from_millis(200);
const RUN: Duration = Duration::from_secs(1);
/// After this long a run counts as stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Threads that may hang in reclaimers; with that many there are no more automatic runs.
const WORKERS_MAX: usize = 4;
/// The pause after a run, and after one that freed nothing for the sixth time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long freed bytes that an allocator does not tell about are taken to be on their way.
const CREDIT_FOR: Duration = Duration::from_secs(5);
/// How long a drop waits for the threads.
const JOIN: Duration = Duration::from_secs(2);
/// How often reclaimers let go of what nobody uses.
const DECAY_EVERY: Duration = Duration::from_secs(5);

/// Why a guard or a monitor was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Settings are wrong; each text names one, the value seen and what would be right.
    #[error("invalid settings, {} problems:{}", .0.len(), listed(.0))]
    Invalid(Vec<String>),
    /// The thread could not be started.
    #[error("the thread that watches memory could not be started")]
    Thread(#[source] std::io::Error),
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// What a clean-up is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CleanupRequest {
    /// Cleans up below the threshold too; without more said, a quarter of what can be freed.
    pub force: bool,
    /// Frees all that can be freed, and asks the allocator however short ago it was asked.
    pub aggressive: bool,
    /// How many bytes to free, in place of what the level asks for.
    pub target_bytes: Option<u64>,
}

impl CleanupRequest {
    /// Cleans up below the threshold too.
    #[must_use]
    pub fn force(self) -> Self {
        Self { force: true, ..self }
    }

    /// Frees all that can be freed.
    #[must_use]
    pub fn aggressive(self) -> Self {
        Self { aggressive: true, ..self }
    }

    /// Sets how many bytes to free.
    #[must_use]
    pub fn target_bytes(self, bytes: u64) -> Self {
        Self { target_bytes: Some(bytes), ..self }
    }
}

/// What a clean-up did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CleanupReport {
    /// Whether there was anything to do: `false` below the threshold without `force`.
    pub ran: bool,
    /// The level when it began.
    pub level: Level,
    /// How many bytes the reclaimers were asked for in all.
    pub wanted_bytes: u64,
    /// How many bytes they said they freed.
    pub claimed_bytes: u64,
    /// Resident bytes of the process before.
    pub before_bytes: u64,
    /// Resident bytes after, what the allocator gave back included.
    pub after_bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Each reclaimer's part.
    pub reclaimers: Vec<ReclaimerReport>,
    /// The allocator's part, if it was asked.
    pub give_back: Option<GiveBackReport>,
}

impl CleanupReport {
    /// Returns by how much the resident bytes fell.
    #[must_use]
    pub fn observed_bytes(&self) -> u64 {
        self.before_bytes.saturating_sub(self.after_bytes)
    }
}

/// What a guard has done and sees.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GuardStats {
    /// The last reading.
    pub sample: MemorySample,
    /// Clean-ups that ran, automatic and by hand.
    pub runs: u64,
    /// When the last of them ended.
    pub last_run: Option<SystemTime>,
    /// Bytes that reclaimers said they freed.
    pub claimed_bytes: u64,
    /// Bytes by which the resident memory fell during the runs.
    pub observed_bytes: u64,
    /// Times that the allocator was asked to give memory back.
    pub give_backs: u64,
    /// Bytes by which the resident memory fell meanwhile.
    pub given_back_bytes: u64,
    /// Bytes that reclaimers said they dropped because nobody had used them for long.
    pub decayed_bytes: u64,
    /// Panics of reclaimers, and of an allocator's control.
    pub panics: u64,
    /// Times that a reclaimer returned after its deadline.
    pub late: u64,
    /// Runs that did not end within five seconds.
    pub stuck: u64,
    /// Runs that took place on the watching thread because no other could be started.
    pub inline_runs: u64,
    /// Reclaimers that are registered.
    pub reclaimers: usize,
    /// What reading the sources has met.
    pub sources: SourceStats,
}

/// Settings of a [`MemoryGuard`].
#[derive(Debug)]
#[must_use]
pub struct MemoryGuardBuilder {
    pressure: PressureSettings,
    headroom: f64,
    period: Duration,
    pressed_period: Duration,
    automatic: bool,
    allocator: Option<Box<dyn AllocatorControl>>,
}

impl Default for MemoryGuardBuilder {
    fn default() -> Self {
        Self {
            pressure: PressureSettings::default(),
            headroom: 0.1,
            period: Duration::from_millis(250),
            pressed_period: Duration::from_millis(50),
            automatic: true,
            allocator: None,
        }
    }
}

impl MemoryGuardBuilder {
    /// Sets a limit of resident bytes, beside those of the control group and the host.
    pub fn limit_bytes(mut self, limit: u64) -> Self {
        self.pressure = self.pressure.limit_bytes(limit);
        self
    }

    /// Sets from which share of the limit on memory is reclaimed; 0.8 unless said otherwise.
    pub fn cleanup_threshold(self, share: f64) -> Self {
        self.thresholds(Thresholds::cleanup_at(share))
    }

    /// Sets the thresholds of all levels.
    pub fn thresholds(mut self, thresholds: Thresholds) -> Self {
        self.pressure = self.pressure.thresholds(thresholds);
        self
    }

    /// Sets how far below the threshold a run brings the use, as a share of the limit; 0.1.
    pub fn headroom(self, share: f64) -> Self {
        Self { headroom: share, ..self }
    }

    /// Sets the time between two readings, 250 ms; and from [`Level::Elevated`] on, 50 ms.
    pub fn periods(self, usual: Duration, pressed: Duration) -> Self {
        Self { period: usual, pressed_period: pressed, ..self }
    }

    /// Names the program's allocator, which is asked to give idle memory back.
    pub fn allocator(self, allocator: impl AllocatorControl) -> Self {
        Self { allocator: Some(Box::new(allocator)), ..self }
    }

    /// Sets whether anything is reclaimed or given back without being asked for; `true`.
    pub fn automatic(self, automatic: bool) -> Self {
        Self { automatic, ..self }
    }

    /// Reads a tree below `root` in place of the system's `/proc` and control groups.
    pub fn root(mut self, root: impl AsRef<Path>) -> Self {
        self.pressure = self.pressure.root(root);
        self
    }

    /// Takes a first reading and starts the guard's thread.
    ///
    /// # Errors
    ///
    /// [`GuardError::Invalid`] with everything that is wrong, [`GuardError::Thread`] if the system
    /// starts no thread.
    pub fn start(self) -> Result<MemoryGuard, GuardError> {
        let core = Core::new(self, Instant::now(), |root| {
            Box::new(System { resident: Resident::new(root) })
        })?;
        let core = Arc::new(core);
        let thread = std::thread::Builder::new()
            .name("memory-guard".to_owned())
            .spawn({
                let core = Arc::clone(&core);
                move || watch(&core)
            })
            .map_err(GuardError::Thread)?;
        Ok(MemoryGuard(Arc::new(Running { core, thread: Mutex::new(Some(thread)) })))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.pressure.problems();
        let high = self.pressure.thresholds.high;
        if !(self.headroom > 0.0 && self.headroom < high) {
            let headroom = self.headroom;
            problems.push(format!("headroom = {headroom}: must be above 0 and below {high}"));
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(60));
        if !(least..=most).contains(&self.period) {
            problems.push(format!("period = {:?}: must be from 1 ms to 60 s", self.period));
        }
        if self.pressed_period < least || self.pressed_period > self.period {
            let (pressed, usual) = (self.pressed_period, self.period);
            problems.push(format!(
                "pressed period = {pressed:?}: must be from 1 ms to the usual period, {usual:?}"
            ));
        }
        problems
    }
}

/// Watches the memory of the process, reclaims under pressure and gives idle memory back.
///
/// Handles are cheap to clone and share one guard. When the last is dropped, its threads end; the
/// drop waits for that, two seconds at most.
///
/// # Cost
///
/// A reading of 10 to 25 microseconds each 250 ms, on a thread of its own.
///
/// # Examples
///
/// ```
/// use memory::{CleanupRequest, MemoryGuard};
///
/// let guard = MemoryGuard::builder().limit_bytes(8 << 30).cleanup_threshold(0.8).start()?;
/// assert!(!guard.should_cleanup());
/// let report = guard.cleanup(CleanupRequest::default().force());
/// println!("{} bytes freed, {} seen", report.claimed_bytes, report.observed_bytes());
/// # Ok::<_, memory::GuardError>(())
/// ```
#[derive(Clone)]
pub struct MemoryGuard(Arc<Running>);

struct Running {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.control.lock().stop = true;
        self.core.wake.notify_all();
        self.core.publisher.close();
        let Some(thread) = self.thread.lock().take() else { return };
        // A reclaimer may hold the last handle: a thread cannot wait for itself.
        if thread.thread().id() == std::thread::current().id() {
            return;
        }
        let until = Instant::now() + JOIN;
        let mut control = self.core.control.lock();
        while !control.ended {
            if self.core.wake.wait_until(&mut control, until).timed_out() {
                return;
            }
        }
        drop(control);
        let _ = thread.join();
    }
}

impl fmt::Debug for MemoryGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryGuard").field("sample", &self.sample()).finish_non_exhaustive()
    }
}

impl MemoryGuard {
    /// Starts the settings of a guard.
    pub fn builder() -> MemoryGuardBuilder {
        MemoryGuardBuilder::default()
    }

    /// Returns the last reading, 250 ms old at most.
    #[must_use]
    pub fn sample(&self) -> MemorySample {
        self.0.core.publisher.sample()
    }

    /// Takes a reading now.
    ///
    /// # Cost
    ///
    /// 10 to 25 microseconds, and a lock that the guard's thread takes as well.
    pub fn observe(&self) -> MemorySample {
        self.0.core.observe(Instant::now())
    }

    /// Returns the level of the last reading.
    #[must_use]
    pub fn level(&self) -> Level {
        self.sample().level
    }

    /// Whether memory is used up to the clean-up threshold.
    #[must_use]
    pub fn should_cleanup(&self) -> bool {
        self.level() >= Level::High
    }

    /// Frees memory now, on this thread.
    ///
    /// Reclaimers are asked as an automatic run asks them, then the allocator gives back what is free
    /// then, unless it did so a moment ago. Waits for an automatic run that is under way, a second at
    /// most.
    ///
    /// # Cost
    ///
    /// Blocks for as long as the reclaimers take, a second at most if they keep to their deadlines, and
    /// some 200 ms per GiB that the allocator gives back. From async code, call it where blocking is
    /// allowed, or use [`request_cleanup`](Self::request_cleanup).
    pub fn cleanup(&self, request: CleanupRequest) -> CleanupReport {
        self.0.core.cleanup(request)
    }

    /// Has the guard's thread clean up soon, and returns at once.
    ///
    /// Of several requests that come before the thread's next reading, the last one counts.
    pub fn request_cleanup(&self, request: CleanupRequest) {
        self.0.core.control.lock().requested = Some(request);
        self.0.core.wake.notify_all();
    }

    /// Requests a clean-up when the returned scope is dropped: for a block that needs much memory.
    #[must_use = "the clean-up is requested when this is dropped"]
    pub fn cleanup_scope(&self, request: CleanupRequest) -> CleanupScope {
        CleanupScope { guard: self.clone(), request }
    }

    /// Adds a reclaimer until the registration is dropped.
    ///
    /// # Errors
    ///
    /// [`TooManyReclaimers`], beyond 1,024.
    pub fn register(&self, reclaimer: impl Reclaimer) -> Result<Registration, TooManyReclaimers> {
        self.0.core.reclaimers.register(reclaimer)
    }

    /// Returns the registry of reclaimers.
    #[must_use]
    pub fn reclaimers(&self) -> &Reclaimers {
        &self.0.core.reclaimers
    }

    /// Returns a watcher of the level.
    #[must_use]
    pub fn watch(&self) -> PressureWatch {
        self.0.core.publisher.subscribe()
    }

    /// Returns the last 256 events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.core.monitor.lock().events()
    }

    /// Returns a point for each of the last 900 seconds, oldest first.
    #[must_use]
    pub fn seconds(&self) -> Vec<HistoryPoint> {
        self.0.core.monitor.lock().seconds()
    }

    /// Returns a point for each of the last 1,440 minutes, oldest first.
    #[must_use]
    pub fn minutes(&self) -> Vec<HistoryPoint> {
        self.0.core.monitor.lock().minutes()
    }

    /// Returns the name of the allocator that it was given.
    #[must_use]
    pub fn allocator_name(&self) -> Option<&'static str> {
        self.0.core.allocator.as_deref().map(AllocatorControl::name)
    }

    /// Returns from which share of the limit on each level holds.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.0.core.thresholds
    }

    /// Returns what the guard has done and sees.
    #[must_use]
    pub fn stats(&self) -> GuardStats {
        self.0.core.stats()
    }
}

/// Requests a clean-up when it is dropped; see [`MemoryGuard::cleanup_scope`].
#[derive(Debug)]
pub struct CleanupScope {
    guard: MemoryGuard,
    request: CleanupRequest,
}

impl Drop for CleanupScope {
    fn drop(&mut self) {
        self.guard.request_cleanup(self.request);
    }
}

/// The system's clock, and the process's resident bytes.
struct System {
    resident: Resident,
}

impl Surroundings for System {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn resident(&self) -> u64 {
        self.resident.bytes()
    }
}

/// What the handles and the threads share.
struct Core {
    thresholds: Thresholds,
    headroom: f64,
    period: Duration,
    pressed_period: Duration,
    automatic: bool,
    allocator: Option<Box<dyn AllocatorControl>>,
    around: Box<dyn Surroundings + Send + Sync>,
    monitor: Mutex<PressureMonitor>,
    publisher: Publisher,
    reclaimers: Reclaimers,
    policy: Mutex<Policy>,
    pace: Mutex<Pace>,
    tally: Mutex<GuardStats>,
    /// Held by whoever runs.
    gate: Mutex<()>,
    control: Mutex<Control>,
    wake: Condvar,
}

/// What the handles tell the thread, and it them.
#[derive(Debug, Default)]
struct Control {
    stop: bool,
    ended: bool,
    requested: Option<CleanupRequest>,
}

/// When the next automatic run may be, and what the last ones have freed unseen.
#[derive(Debug, Default)]
struct Pace {
    not_before: Option<Instant>,
    /// When reclaimers last let time pass.
    decayed: Option<Instant>,
    fruitless: u32,
    /// Bytes that were freed and did not show, and until when they are believed.
    unseen: Option<(u64, Instant)>,
}

impl Pace {
    /// Tells whether it is time to let go of what nobody uses; the first call begins the wait.
    fn decay_is_due(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(*self.decayed.get_or_insert(now)) >= DECAY_EVERY
    }
}

/// What a reading asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Reclaim, because of the level.
    Reclaim,
    /// Only the allocator.
    GiveBack,
    /// Let go of what nobody uses.
    Decay,
    /// Somebody asked.
    Requested(CleanupRequest),
}

impl Core {
    fn new(
        builder: MemoryGuardBuilder,
        now: Instant,
        around: impl FnOnce(&Path) -> Box<dyn Surroundings + Send + Sync>,
    ) -> Result<Self, GuardError> {
        let problems = builder.problems();
        if !problems.is_empty() {
            return Err(GuardError::Invalid(problems));
        }
        let thresholds = builder.pressure.thresholds;
        let around = around(&builder.pressure.root);
        let monitor = PressureMonitor::new(builder.pressure, now)?;
        let (publisher, _) = channel();
        let core = Self {
            thresholds,
            headroom: builder.headroom,
            period: builder.period,
            pressed_period: builder.pressed_period,
            automatic: builder.automatic,
            allocator: builder.allocator,
            around,
            monitor: Mutex::new(monitor),
            publisher,
            reclaimers: Reclaimers::default(),
            policy: Mutex::new(Policy::new()),
            pace: Mutex::default(),
            tally: Mutex::default(),
            gate: Mutex::new(()),
            control: Mutex::default(),
            wake: Condvar::new(),
        };
        core.observe(now);
        Ok(core)
    }

    fn observe(&self, now: Instant) -> MemorySample {
        let sample = self.monitor.lock().observe(now);
        self.publisher.publish(sample);
        sample
    }

    /// Asks the allocator for its statistics, if they are worth it now.
    fn ask_allocator(&self, sample: &MemorySample, now: Instant) {
        let Some(allocator) = &self.allocator else { return };
        if !self.policy.lock().wants_stats(sample.rss_bytes, now) {
            return;
        }
        let began = self.around.now();
        // It is the program's own code, and this may be the thread that watches.
        let stats = catch_unwind(AssertUnwindSafe(|| allocator.stats()));
        let stats = stats.unwrap_or_else(|_| {
            self.tally.lock().panics += 1;
            None
        });
        let took = self.around.now().saturating_duration_since(began);
        self.policy.lock().observe(stats, sample.rss_bytes, took, now);
    }

    /// Takes a reading, and tells what it asks for and when to take the next.
    fn tick(&self, now: Instant) -> (Duration, Option<Job>) {
        let sample = self.observe(now);
        self.ask_allocator(&sample, now);
        let pressed = sample.level >= Level::High;
        let near = sample.level >= Level::Elevated;
        let period = if near { self.pressed_period } else { self.period };
        if let Some(request) = self.control.lock().requested.take() {
            return (period, Some(Job::Requested(request)));
        }
        if !self.automatic {
            return (period, None);
        }
        if pressed && self.pace.lock().not_before.is_none_or(|at| now >= at) {
            return (period, Some(Job::Reclaim));
        }
        let due = self.allocator.is_some()
            && self.policy.lock().is_due(sample.level, sample.limit_bytes, now);
        if due {
            return (period, Some(Job::GiveBack));
        }
        let decay = self.pace.lock().decay_is_due(now) && self.reclaimers.decay_is_of_use();
        (period, decay.then_some(Job::Decay))
    }

    /// How many bytes must be freed for the use to be `headroom` below the threshold.
    fn excess(&self, sample: &MemorySample, now: Instant) -> u64 {
        let goal = ((self.thresholds.high - self.headroom) * sample.limit_bytes as f64) as u64;
        let excess = sample.used_bytes.saturating_sub(goal);
        if sample.level == Level::Critical || sample.limit_bytes == 0 {
            return excess;
        }
        let slack = self.allocator.as_ref().and_then(|_| self.policy.lock().slack());
        let credit = slack.unwrap_or_else(|| {
            let unseen = self.pace.lock().unseen;
            unseen.filter(|(_, until)| now < *until).map_or(0, |(bytes, _)| bytes)
        });
        excess.saturating_sub(credit)
    }

    fn execute(&self, job: Job) {
        match job {
            Job::Requested(request) => drop(self.cleanup(request)),
            Job::GiveBack => {
                let gate = self.gate.try_lock_for(RUN);
                let report = self.give_back();
                drop(gate);
                if let Some(report) = report {
                    let observed_bytes = report.observed_bytes();
                    let kind = EventKind::GaveBack { observed_bytes };
                    self.monitor.lock().push_event(self.around.now(), kind);
                }
            }
            Job::Decay => {
                let now = self.around.now();
                self.pace.lock().decayed = Some(now);
                let (bytes, panicked) = self.reclaimers.decay(now);
                let mut tally = self.tally.lock();
                tally.decayed_bytes = tally.decayed_bytes.saturating_add(bytes);
                tally.panics += panicked.len() as u64;
                drop(tally);
                for name in panicked {
                    let kind = EventKind::ReclaimerPanicked { name: name.to_string() };
                    self.monitor.lock().push_event(now, kind);
                }
            }
            Job::Reclaim => {
                let sample = self.publisher.sample();
                let bytes = self.excess(&sample, self.around.now());
                let wanted = self.wanted(bytes, &sample, false);
                self.run(wanted, Asking::IfDue);
            }
        }
    }

    fn wanted(&self, bytes: u64, sample: &MemorySample, force: bool) -> Wanted {
        let force = force || sample.level == Level::Critical;
        Wanted { bytes, level: sample.level, force, each: EACH, all: RUN }
    }

    fn cleanup(&self, request: CleanupRequest) -> CleanupReport {
        let now = self.around.now();
        let sample = self.observe(now);
        let CleanupRequest { force, aggressive, target_bytes } = request;
        if !force && sample.level < Level::High {
            let resident = sample.rss_bytes;
            return CleanupReport {
                ran: false,
                level: sample.level,
                wanted_bytes: 0,
                claimed_bytes: 0,
                before_bytes: resident,
                after_bytes: resident,
                took: Duration::ZERO,
                reclaimers: Vec::new(),
                give_back: None,
            };
        }
        let quarter = || self.reclaimers.reclaimable().iter().map(|(_, bytes)| bytes / 4).sum();
        let bytes = match target_bytes {
            Some(bytes) => bytes,
            None if aggressive => u64::MAX,
            None if sample.level >= Level::High => self.excess(&sample, now),
            None => quarter(),
        };
        let asking = if aggressive { Asking::Always } else { Asking::UnlessJustNow };
        self.run(self.wanted(bytes, &sample, force), asking)
    }

    /// One run: the reclaimers, then the allocator.
    fn run(&self, wanted: Wanted, asking: Asking) -> CleanupReport {
        // A run that hangs in a reclaimer keeps this gate; the reclaimer is skipped by its own mark.
        let gate = self.gate.try_lock_for(RUN);
        let (began, before) = (self.around.now(), self.around.resident());
        let reclaimers = self.reclaimers.run(wanted, &*self.around);
        let claimed: u64 =
            reclaimers.iter().fold(0, |sum, it| sum.saturating_add(it.claimed_bytes));
        let now = self.around.now();
        let sample = self.observe(now);
        self.ask_allocator(&sample, now);
        let give_back = match asking {
            Asking::Always => self.give_back(),
            Asking::UnlessJustNow if self.policy.lock().is_rested(now) => self.give_back(),
            Asking::IfDue if self.policy.lock().is_due(sample.level, sample.limit_bytes, now) => {
                self.give_back()
            }
            _ => None,
        };
        let after = self.around.resident();
        drop(gate);
        let report = CleanupReport {
            ran: true,
            level: wanted.level,
            wanted_bytes: wanted.bytes,
            claimed_bytes: claimed,
            before_bytes: before,
            after_bytes: after,
            took: self.around.now().saturating_duration_since(began),
            reclaimers,
            give_back,
        };
        self.note(&report);
        report
    }

    fn give_back(&self) -> Option<GiveBackReport> {
        let allocator = self.allocator.as_deref()?;
        let (report, panicked) = allocator::ask(allocator, &*self.around);
        self.policy.lock().gave_back(&report, self.around.now());
        let mut tally = self.tally.lock();
        tally.give_backs += 1;
        tally.panics += u64::from(panicked);
        tally.given_back_bytes += report.observed_bytes();
        Some(report)
    }

    fn note(&self, report: &CleanupReport) {
        let now = self.around.now();
        let observed = report.observed_bytes();
        let count = |outcome| report.reclaimers.iter().filter(|it| it.outcome == outcome).count();
        let panicked = report.reclaimers.iter().filter(|it| it.outcome == ReclaimOutcome::Panicked);
        let names: Vec<_> = panicked.map(|it| it.name.to_string()).collect();

        let mut tally = self.tally.lock();
        tally.runs += 1;
        tally.last_run = Some(SystemTime::now());
        tally.claimed_bytes = tally.claimed_bytes.saturating_add(report.claimed_bytes);
        tally.observed_bytes += observed;
        tally.panics += names.len() as u64;
        tally.late += count(ReclaimOutcome::Late) as u64;
        drop(tally);

        let mut pace = self.pace.lock();
        let fruitful = report.claimed_bytes > 0 || observed > 0;
        pace.fruitless = if fruitful { 0 } else { (pace.fruitless + 1).min(6) };
        let pause = (PAUSE_MIN * (1 << pace.fruitless)).min(PAUSE_MAX);
        pace.not_before = Some(now + pause);
        let unseen = report.claimed_bytes.saturating_sub(observed);
        let before = pace.unseen.filter(|(_, until)| now < *until).map_or(0, |(bytes, _)| bytes);
        // What shows later than it was freed belongs to an earlier run.
        let before = before.saturating_sub(observed.saturating_sub(report.claimed_bytes));
        pace.unseen = Some((before.saturating_add(unseen), now + CREDIT_FOR));
        drop(pace);

        let mut monitor = self.monitor.lock();
        for name in names {
            monitor.push_event(now, EventKind::ReclaimerPanicked { name });
        }
        // A run that finds nothing to do is no event: at a level that lasts there are many.
        if fruitful {
            let claimed_bytes = report.claimed_bytes;
            monitor
                .push_event(now, EventKind::Reclaimed { claimed_bytes, observed_bytes: observed });
        }
    }

    fn stats(&self) -> GuardStats {
        GuardStats {
            sample: self.publisher.sample(),
            reclaimers: self.reclaimers.len(),
            sources: self.monitor.lock().source_stats(),
            ..*self.tally.lock()
        }
    }
}

/// Whether a run asks the allocator as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    IfDue,
    UnlessJustNow,
    Always,
}

/// A run on a thread of its own.
struct Worker {
    thread: JoinHandle<()>,
    since: Instant,
    stuck: bool,
}

/// What the guard's thread does until it is told to stop.
fn watch(core: &Arc<Core>) {
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        let now = core.around.now();
        workers.retain(|worker| !worker.thread.is_finished());
        for worker in &mut workers {
            if !worker.stuck && now.saturating_duration_since(worker.since) >= STUCK {
                worker.stuck = true;
                core.tally.lock().stuck += 1;
                let name = core.reclaimers.at_work();
                let name = name.map_or_else(|| "the allocator".to_owned(), |it| it.to_string());
                core.monitor.lock().push_event(now, EventKind::ReclaimerStuck { name });
            }
        }
        let idle = workers.iter().all(|worker| worker.stuck) && workers.len() < WORKERS_MAX;
        let period = if idle {
            let (period, job) = core.tick(now);
            if let Some(job) = job {
                start(core, job, now, &mut workers);
            }
            period
        } else {
            core.observe(now);
            core.pressed_period
        };
        let mut control = core.control.lock();
        if !control.stop && control.requested.is_none() {
            core.wake.wait_for(&mut control, period);
        } else if !control.stop {
            // A request that waits for a run to end is looked at again soon, not at once.
            core.wake.wait_for(&mut control, core.pressed_period);
        }
        if control.stop {
            break;
        }
    }
    // Those that hang are left behind; they hold nothing but their reclaimer and this core.
    let until = Instant::now() + JOIN / 2;
    while workers.iter().any(|worker| !worker.thread.is_finished()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    core.control.lock().ended = true;
    core.wake.notify_all();
}

fn start(core: &Arc<Core>, job: Job, now: Instant, workers: &mut Vec<Worker>) {
    let spawned = std::thread::Builder::new().name("memory-reclaim".to_owned()).spawn({
        let core = Arc::clone(core);
        move || core.execute(job)
    });
    match spawned {
        Ok(thread) => workers.push(Worker { thread, since: now, stuck: false }),
        // Short of memory there may be no thread to be had, and that is when this matters.
        Err(_) => {
            core.tally.lock().inline_runs += 1;
            core.execute(job);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
