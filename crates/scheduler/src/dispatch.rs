//! The heart: lanes with their queues and slots, and the one way in which tasks start and end.
//!
//! A lane has *slots*. Whoever holds one is a *drainer*: a job on the rayon pool, a blocking thread, or
//! a future that runs. `active` counts them. A submission puts its task into the queue and, if
//! `active < slots`, takes a slot for a new drainer; a drainer asks for the next task when its last
//! has ended, and gives its slot back when there is none. Both happen under the lane's lock, so there
//! is never a queued task beside a free slot that nobody is on the way to fill. A drainer that finds
//! more tasks and a free slot starts one more, so a batch needs one wake-up.
//!
//! The lock order is: one lane, then the dependencies or the timer. No two lanes are locked together,
//! and nothing foreign - work, results, wakers, drops - runs under any lock.

mod drainer;

use std::cell::Cell as ThreadCell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use rayon::ThreadPool;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use drainer::Drainer;

use crate::admission::{CoDelSettings, WhenFull};
use crate::cell::{Wake, Was};
use crate::group::Membership;
use crate::lane::Lane;
use crate::limits::LimitSettings;
use crate::memory_gate::Entry as AtGate;
use crate::nice::thread_cpu_time;
use crate::queue::{Bounds, Class, Queue, Standing};
use crate::rules::{LaneRules, Memory, Rules, SchedulerEvent, TICK};
use crate::stats::{Counts, Ledger};
use crate::task::{Priority, Refusal, ShedReason, TaskError, TaskId, TaskState};
use crate::timer::{Due, Key, Timer};
use crate::watchdog::RunningTask;

/// Failed tasks whose ids a lane remembers, for tasks that are yet to depend on them.
const FAILURES: usize = 10_000;
/// How often to look at a taken lock before waiting for it.
const SPINS: u32 = 64;
/// How many overdue tasks of overloaded levels are taken out under one lock.
const GIVE_UP: usize = 64;
/// How many places of a lane's table the watchdog looks at under one lock.
const PAGE: usize = 4_096;

/// What a lane can do with a task, whatever it is.
pub(crate) trait Task: Send + Sync {
    /// Runs a closure to its end, or sets a future going and returns none.
    fn start(self: Arc<Self>, core: &Arc<Core>, id: TaskId, priority: Priority) -> Option<Step>;

    /// Ends the task from outside, unless it has ended.
    fn end(&self, error: TaskError) -> Option<(Was, Wake)>;
}

/// How an attempt of a task came out.
pub(crate) enum Step {
    /// It is over.
    Ended(Ending, Wake),
    /// There will be another attempt after this time.
    Again(Duration),
}

/// How a task ended, for the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Failed,
    Cancelled,
    TimedOut,
    Shed,
    /// Somebody outside has ended it before, and counted it.
    Stopped,
}

impl Ending {
    fn of(error: &TaskError) -> Self {
        match error {
            TaskError::Cancelled => Self::Cancelled,
            TaskError::TimedOut => Self::TimedOut,
            TaskError::Shed { .. } => Self::Shed,
            TaskError::Panicked(_) | TaskError::DependencyFailed(_) => Self::Failed,
        }
    }

    fn count(self, counts: &mut Counts) {
        match self {
            Self::Done => counts.done += 1,
            Self::Failed => counts.failed += 1,
            Self::Cancelled => counts.cancelled += 1,
            Self::TimedOut => counts.timed_out += 1,
            Self::Shed => counts.shed += 1,
            Self::Stopped => {}
        }
    }
}

/// A task that has been given a slot.
pub(crate) struct Start {
    pub(crate) id: TaskId,
    pub(crate) priority: Priority,
    pub(crate) task: Arc<dyn Task>,
}

/// What a drainer wants after its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Another one.
    More,
    /// Another one, and if there is none, to keep the slot for a moment.
    Linger,
    /// Nothing.
    Stop,
}

/// What a drainer gets.
enum Turn {
    /// A task.
    Start(Start),
    /// No task, but it has its slot still.
    Linger,
    /// The slot has gone back.
    Over,
}

/// What the queue keeps of a task.
pub(crate) struct Entry {
    task: Arc<dyn Task>,
    row: u16,
    /// Somebody waits for its end in [`Core::dependents`].
    dependents: bool,
    /// What most tasks do not have.
    extra: Option<Box<Extra>>,
}

#[derive(Default)]
struct Extra {
    /// What must happen before it is queued.
    holds: usize,
    run_timeout: Option<Duration>,
    wait_key: Option<Key>,
    run_key: Option<Key>,
    attempt_key: Option<Key>,
    group: Option<Membership>,
    memory: Memory,
}

/// A task that has left the table.
struct Left {
    id: TaskId,
    entry: Entry,
    succeeded: bool,
}

/// How a task is to be taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bytes: u64,
    pub(crate) after: Vec<TaskId>,
    pub(crate) when_full: Option<WhenFull>,
    pub(crate) group: Option<Membership>,
}

impl Entry {
    /// Returns the row of the figures of the task's type and level.
    pub(crate) fn row(&self) -> u16 {
        self.row
    }
}

impl Options {
    fn class(&self) -> Class {
        Class { priority: self.priority, deadline: self.deadline, bytes: self.bytes }
    }

    /// Tells whether a task with these needs nothing but its place in the queue.
    fn is_plain(&self) -> bool {
        self.queue_timeout.is_none()
            && self.timeout.is_none()
            && self.after.is_empty()
            && self.group.is_none()
    }

    /// Tells whether a task with these has to pass the memory gate first.
    fn is_gated(&self, rules: &Rules) -> bool {
        self.bytes > 0 && rules.gate.is_some()
    }
}

/// Where a task that was taken is.
pub(crate) struct Taken {
    pub(crate) id: TaskId,
    pub(crate) row: u16,
}

pub(crate) struct LaneState {
    pub(crate) queue: Queue<Entry>,
    pub(crate) ledger: Ledger,
    pub(crate) slots: usize,
    active: usize,
    /// Why nothing is taken any more.
    closed: Option<ShedReason>,
    failures: VecDeque<u64>,
    /// The last sequence number among the failures that were forgotten.
    forgotten: u64,
    pub(crate) rules: LaneRules,
    /// Tasks that an overloaded level has given up, to be ended outside of the lock.
    given_up: Vec<GivenUp>,
}

/// A task that was shed from an overloaded level.
struct GivenUp {
    left: Left,
    priority: Priority,
    retry_after: Duration,
}

pub(crate) struct LaneCore {
    pub(crate) lane: Lane,
    pub(crate) state: Mutex<LaneState>,
    /// How many tasks are queued, as a hint to who lingers.
    queued: AtomicUsize,
    pub(crate) when_full: [WhenFull; 4],
    /// Callers that wait for room, by level, and how many there are.
    room: [Notify; 4],
    pub(crate) callers: [AtomicUsize; 4],
    /// Told when there is a task for a thread that is kept for the upper levels.
    important: Condvar,
}

/// What a lane is made with.
pub(crate) struct LaneSettings {
    pub(crate) slots: usize,
    pub(crate) bounds: Bounds,
    pub(crate) targets: [Duration; 4],
    pub(crate) types_max: usize,
    pub(crate) when_full: [WhenFull; 4],
    pub(crate) codel: [Option<CoDelSettings>; 4],
    pub(crate) limit: LimitSettings,
    /// The lowest level of threads that are kept.
    pub(crate) least: Priority,
}

pub(crate) struct Core {
    pub(crate) lanes: [LaneCore; 3],
    pub(crate) rules: Rules,
    pub(crate) timer: Arc<Timer>,
    /// The tasks that wait for the end of another, by that other.
    dependents: Mutex<HashMap<TaskId, Vec<TaskId>>>,
    waits: AtomicUsize,
    dependencies_max: usize,
    /// Gone once the scheduler is closed.
    pool: RwLock<Option<ThreadPool>>,
    runtime: Option<Handle>,
    /// For futures of the upper levels, where there is one.
    urgent: Option<Handle>,
    /// Told whenever a lane has become empty.
    pub(crate) emptied: Notify,
}

thread_local! {
    /// Which task of which scheduler this thread runs.
    static CURRENT: ThreadCell<Option<Current>> = const { ThreadCell::new(None) };
    /// The CPU time of the task that has just ended on this thread, where it was measured.
    static CPU_TIME: ThreadCell<Option<Duration>> = const { ThreadCell::new(None) };
}

/// The task that a thread runs at this moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Current {
    core: usize,
    lane: Lane,
}

/// Makes a task the current one of the thread until it drops.
pub(crate) struct Entered(Option<Current>);

impl Entered {
    pub(crate) fn new(core: &Arc<Core>, lane: Lane) -> Self {
        let current = Current { core: Arc::as_ptr(core) as usize, lane };
        Self(CURRENT.replace(Some(current)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

impl LaneState {
    fn new(lane: Lane, settings: &LaneSettings) -> Self {
        Self {
            queue: Queue::new(lane, settings.bounds.clone(), settings.targets),
            ledger: Ledger::new(settings.types_max),
            slots: settings.slots,
            active: 0,
            closed: None,
            failures: VecDeque::new(),
            forgotten: 0,
            rules: LaneRules::new(
                lane,
                &settings.codel,
                settings.limit,
                settings.least,
                Instant::now(),
            ),
            given_up: Vec::new(),
        }
    }

    /// Starts the next task of the levels down to `least`.
    pub(crate) fn next(&mut self, least: Priority, now: Instant, timer: &Timer) -> Option<Start> {
        self.give_up_overdue(now);
        let running = self.queue.running() + 1;
        let next = self.queue.pop(least, now)?;
        self.rules.started(next.waited, running, now);
        Some(Self::started(&mut self.ledger, next, now, timer))
    }

    fn started(
        ledger: &mut Ledger,
        next: crate::queue::Next<'_, Entry>,
        now: Instant,
        timer: &Timer,
    ) -> Start {
        let (id, priority, entry) = (next.id, next.priority, next.task);
        ledger.get(entry.row).wait.record(next.waited);
        if let Some(extra) = &mut entry.extra {
            if let Some(key) = extra.wait_key.take() {
                timer.remove(key);
            }
            extra.run_key = extra.run_timeout.and_then(|it| timer.add(now, it, Due::Run(id)));
        }
        Start { id, priority, task: Arc::clone(&entry.task) }
    }

    /// Ends a running task.
    fn finish(&mut self, id: TaskId, ending: Ending, now: Instant) -> Option<Left> {
        let (entry, _, ran) = self.queue.finish(id, now)?;
        if self.rules.moves {
            self.rules.limit.ended(ran, CPU_TIME.take());
        }
        let row = self.ledger.get(entry.row);
        row.run.record(ran);
        ending.count(&mut row.counts);
        Some(self.left(id, entry, ending == Ending::Done))
    }

    fn left(&mut self, id: TaskId, entry: Entry, succeeded: bool) -> Left {
        if !succeeded {
            if self.failures.len() == FAILURES
                && let Some(oldest) = self.failures.pop_front()
            {
                self.forgotten = self.forgotten.max(oldest);
            }
            self.failures.push_back(id.sequence());
        }
        Left { id, entry, succeeded }
    }

    /// Holds a running task until its next attempt.
    fn again(&mut self, id: TaskId, delay: Duration, now: Instant, timer: &Timer) -> bool {
        if !self.queue.hold(id, now) {
            return false;
        }
        let Some((entry, _)) = self.queue.get(id) else { return false };
        let extra = entry.extra.get_or_insert_default();
        extra.holds += 1;
        if let Some(key) = extra.run_key.take() {
            timer.remove(key);
        }
        extra.attempt_key = timer.add(now, delay, Due::Attempt(id));
        let row = entry.row;
        self.ledger.get(row).counts.retried += 1;
        true
    }

    /// Takes tasks out that have waited too long in an overloaded level, some of them at a time.
    fn give_up_overdue(&mut self, now: Instant) {
        for _ in 0..GIVE_UP {
            let overdue = self.rules.overdue(&mut self.queue, now);
            let Some((id, priority, retry_after)) = overdue else { return };
            let Some((entry, _)) = self.queue.remove(id) else { return };
            self.ledger.get(entry.row).counts.shed += 1;
            let left = self.left(id, entry, false);
            self.given_up.push(GivenUp { left, priority, retry_after });
        }
    }

    /// Takes a slot for one more drainer, if there is work for it.
    fn take_slot(&mut self) -> bool {
        let take = self.active < self.slots && self.queue.queued() > 0;
        self.active += usize::from(take);
        take
    }

    /// Says how a dependency stands.
    fn dependency(&mut self, id: TaskId) -> Dependency {
        if let Some((entry, _)) = self.queue.get(id) {
            entry.dependents = true;
            return Dependency::Open;
        }
        let sequence = id.sequence();
        if sequence > self.queue.sequence() {
            Dependency::Unknown
        } else if self.failures.contains(&sequence) {
            Dependency::Failed
        } else if sequence <= self.forgotten {
            Dependency::Forgotten
        } else {
            Dependency::Succeeded
        }
    }
}

enum Dependency {
    Open,
    Succeeded,
    Failed,
    Forgotten,
    Unknown,
}

impl LaneCore {
    fn new(lane: Lane, settings: LaneSettings) -> Self {
        Self {
            lane,
            state: Mutex::new(LaneState::new(lane, &settings)),
            queued: AtomicUsize::new(0),
            when_full: settings.when_full,
            room: std::array::from_fn(|_| Notify::new()),
            callers: std::array::from_fn(|_| AtomicUsize::new(0)),
            important: Condvar::new(),
        }
    }

    /// Wakes a thread that is kept for tasks of this level, if one is idle.
    fn has_important(&self, state: &LaneState, priority: Priority) {
        if state.rules.idle > 0 && priority <= state.rules.least {
            self.important.notify_one();
        }
    }

    /// Locks the lane, on the way of every task.
    ///
    /// The lock is held for some hundred nanoseconds, so spinning that long beats giving the processor
    /// away, which is what `parking_lot` does after a few rounds.
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        for _ in 0..SPINS {
            if let Some(state) = self.state.try_lock() {
                return state;
            }
            std::hint::spin_loop();
        }
        self.state.lock()
    }

    /// Tells callers that wait for room that there may be some.
    fn has_room(&self) {
        for (callers, room) in self.callers.iter().zip(&self.room) {
            // A caller counts itself before it looks for room, and room is made before this looks at
            // the count, both under the lane's lock.
            if callers.load(Relaxed) > 0 {
                room.notify_one();
            }
        }
    }

    pub(crate) fn room(&self, priority: Priority) -> &Notify {
        &self.room[priority.index()]
    }
}

/// Where the lanes run.
pub(crate) struct Backends {
    pub(crate) pool: ThreadPool,
    pub(crate) runtime: Option<Handle>,
    pub(crate) urgent: Option<Handle>,
}

impl Core {
    pub(crate) fn new(
        settings: [LaneSettings; 3],
        backends: Backends,
        dependencies_max: usize,
        rules: Rules,
    ) -> Arc<Self> {
        let mut lanes = Lane::ALL.into_iter().zip(settings);
        let core = Self {
            lanes: std::array::from_fn(|_| {
                let (lane, settings) = lanes.next().expect("one for each lane");
                LaneCore::new(lane, settings)
            }),
            rules,
            timer: Timer::new(),
            dependents: Mutex::new(HashMap::new()),
            waits: AtomicUsize::new(0),
            dependencies_max,
            pool: RwLock::new(Some(backends.pool)),
            runtime: backends.runtime,
            urgent: backends.urgent,
            emptied: Notify::new(),
        };
        if core.runtime.is_none() {
            for lane in [Lane::Io, Lane::Blocking] {
                core.lane(lane).state.lock().closed = Some(ShedReason::NoRuntime { lane });
            }
        }
        Arc::new(core)
    }

    pub(crate) fn lane(&self, lane: Lane) -> &LaneCore {
        &self.lanes[lane.index()]
    }

    /// Returns the runtime for the futures of a level.
    pub(crate) fn runtime(&self, priority: Priority) -> Option<&Handle> {
        let urgent = self.urgent.as_ref().filter(|_| priority <= Priority::High);
        urgent.or(self.runtime.as_ref())
    }

    // Submission.

    /// Takes tasks into a lane, all or none.
    ///
    /// With [`WhenFull::CallerRuns`] a task may come back to be run by the caller.
    pub(crate) fn submit(
        self: &Arc<Self>,
        lane: Lane,
        name: &'static str,
        options: &Options,
        tasks: impl ExactSizeIterator<Item = Arc<dyn Task>>,
        mut taken: impl FnMut(Taken),
    ) -> Result<Option<Start>, Refusal> {
        self.check_dependencies(options)?;
        let now = Instant::now();
        let here = self.lane(lane);
        let (class, count) = (options.class(), tasks.len());
        let gated = options.is_gated(&self.rules);
        let plain = options.is_plain() && !gated;
        if gated && options.bytes > self.rules.budget {
            let (bytes, budget) = (options.bytes, self.rules.budget);
            return Err(Refusal::new(ShedReason::MemoryBudget { bytes, budget }));
        }
        let mut evicted = Vec::new();
        let mut held = Vec::new();
        let mut caller_runs = false;
        let mut start = false;
        let mut run = None;
        let mut first = None;
        let mut given_up = Vec::new();
        {
            let mut state = here.lock();
            let room = state.room(here, options, count, &mut evicted);
            match room {
                Ok(()) => {}
                Err((_, true)) if count == 1 && plain => caller_runs = true,
                Err((reason, _)) => {
                    let row = state.ledger.row(name, class.priority);
                    state.ledger.get(row).counts.refused += count as u64;
                    let retry_after = state.rules.overload(class.priority, now);
                    drop(state);
                    self.evict(evicted);
                    return Err(Refusal { reason, retry_after });
                }
            }
            let row = state.ledger.row(name, class.priority);
            state.ledger.get(row).counts.submitted += count as u64;
            for task in tasks {
                let entry = Entry { task, row, dependents: false, extra: None };
                let id = state.queue.insert(entry, class, now);
                taken(Taken { id, row });
                if plain {
                    state.queue.release(id, now);
                    here.has_important(&state, class.priority);
                } else if let Some((entry, _)) = state.queue.get(id) {
                    let mut extra = self.extra(id, options, now);
                    if gated {
                        extra.memory = Memory::Wants(self.rules.estimate(name, options.bytes));
                    }
                    entry.extra = Some(Box::new(extra));
                    held.push(id);
                }
                if caller_runs {
                    let LaneState { queue, ledger, .. } = &mut *state;
                    run = queue
                        .start(id, now)
                        .map(|next| LaneState::started(ledger, next, now, &self.timer));
                }
            }
            if held.is_empty() && !caller_runs {
                start = state.take_slot();
            }
            if start && lane == Lane::Io {
                // A future needs no other thread to start, so it goes under the same lock.
                first = state.next(Priority::Low, now, &self.timer);
                state.active -= usize::from(first.is_none());
                start = first.is_some() && state.take_slot();
                given_up = std::mem::take(&mut state.given_up);
            }
            here.queued.store(state.queue.queued(), Relaxed);
        }
        self.evict(evicted);
        if let Some(first) = first {
            self.start_future(first);
        }
        if start {
            self.start_drainer(lane);
        }
        if !given_up.is_empty() {
            self.give_up(lane, given_up);
        }
        for id in held {
            self.hold(id, options);
        }
        Ok(run)
    }

    fn extra(&self, id: TaskId, options: &Options, now: Instant) -> Extra {
        Extra {
            // One for each dependency, one for the group, and one for the submission itself.
            holds: options.after.len() + usize::from(options.group.is_some()) + 1,
            run_timeout: options.timeout,
            wait_key: options.queue_timeout.and_then(|it| self.timer.add(now, it, Due::Wait(id))),
            group: options.group.clone(),
            ..Extra::default()
        }
    }

    /// Ties a held task to what it waits for, and lets it go if there is nothing.
    fn hold(self: &Arc<Self>, id: TaskId, options: &Options) {
        for &dependency in &options.after {
            let standing = {
                let mut state = self.lane(dependency.lane()).state.lock();
                let standing = state.dependency(dependency);
                if matches!(standing, Dependency::Open) {
                    // Under the lane's lock, so that the dependency cannot end in between.
                    self.waits.fetch_add(1, Relaxed);
                    self.dependents.lock().entry(dependency).or_default().push(id);
                }
                standing
            };
            match standing {
                Dependency::Open => {}
                Dependency::Succeeded => self.let_go(id),
                Dependency::Failed | Dependency::Forgotten | Dependency::Unknown => {
                    self.end_id(id, TaskError::DependencyFailed(dependency));
                }
            }
        }
        if let Some(group) = &options.group {
            if group.enter(id) {
                self.let_go(id);
            }
            if self.lane(id.lane()).state.lock().queue.get(id).is_none() {
                // It ended before it entered, and so has not left.
                if let Some(next) = group.leave(id) {
                    self.let_go(next);
                }
            }
        }
        self.let_go(id);
    }

    /// Takes away one of the things that a held task waits for; the last one queues it.
    pub(crate) fn let_go(self: &Arc<Self>, id: TaskId) {
        let lane = id.lane();
        let here = self.lane(lane);
        let mut gated = false;
        let start = {
            let mut state = here.state.lock();
            let Some(class) = state.queue.class_of(id) else { return };
            let priority = class.priority;
            let Some((entry, Standing::Held)) = state.queue.get(id) else { return };
            let Some(extra) = &mut entry.extra else { return };
            extra.holds = extra.holds.saturating_sub(1);
            if extra.holds > 0 {
                return;
            }
            let now = Instant::now();
            if let (Memory::Wants(bytes), Some(gate)) = (extra.memory, &self.rules.gate) {
                match gate.lock().request(id, priority, bytes, now) {
                    // It was compared with the budget when it was submitted.
                    Ok(AtGate::Admitted(_)) | Err(_) => extra.memory = Memory::Has(bytes),
                    Ok(AtGate::Waiting(place)) => {
                        extra.memory = Memory::Waits(place);
                        gated = true;
                    }
                }
            }
            if gated {
                false
            } else {
                state.queue.release(id, now);
                here.has_important(&state, priority);
                state.take_slot()
            }
        };
        if start {
            self.start_drainer(lane);
        }
        if gated {
            self.open_gate();
        }
    }

    /// Lets tasks through the memory gate as far as the budget goes.
    pub(crate) fn open_gate(self: &Arc<Self>) {
        let Some(gate) = &self.rules.gate else { return };
        loop {
            let now = Instant::now();
            let Some((id, bytes)) = gate.lock().next(now) else { return };
            let here = self.lane(id.lane());
            let start = {
                let mut state = here.state.lock();
                let priority = state.queue.class_of(id).map(|class| class.priority);
                match (state.queue.get(id), priority) {
                    (Some((entry, Standing::Held)), Some(priority)) => {
                        if let Some(extra) = &mut entry.extra {
                            extra.memory = Memory::Has(bytes);
                        }
                        state.queue.release(id, now);
                        here.has_important(&state, priority);
                        Some(state.take_slot())
                    }
                    _ => None,
                }
            };
            match start {
                Some(true) => self.start_drainer(id.lane()),
                Some(false) => {}
                // It ended between the gate and here, and nobody knew that it has bytes.
                None => gate.lock().release(bytes),
            }
        }
    }

    /// Gives back what a task that has left has of the memory budget, or its place at the gate.
    fn leave_gate(self: &Arc<Self>, memory: Memory) {
        let Some(gate) = &self.rules.gate else { return };
        match memory {
            Memory::None | Memory::Wants(_) => return,
            Memory::Waits(place) => drop(gate.lock().remove(place)),
            Memory::Has(bytes) => gate.lock().release(bytes),
        }
        self.open_gate();
    }

    fn check_dependencies(&self, options: &Options) -> Result<(), Refusal> {
        if options.after.is_empty() {
            return Ok(());
        }
        let max = self.dependencies_max;
        if self.waits.load(Relaxed) + options.after.len() > max {
            return Err(Refusal::new(ShedReason::TooManyDependencies { max }));
        }
        for &dependency in &options.after {
            let standing = self.lane(dependency.lane()).state.lock().dependency(dependency);
            let reason = match standing {
                Dependency::Unknown => ShedReason::DependencyUnknown { dependency },
                Dependency::Forgotten => ShedReason::DependencyForgotten { dependency },
                Dependency::Open | Dependency::Succeeded | Dependency::Failed => continue,
            };
            return Err(Refusal::new(reason));
        }
        Ok(())
    }

    /// Ends tasks that were taken out of an overloaded level.
    fn give_up(self: &Arc<Self>, lane: Lane, given_up: Vec<GivenUp>) {
        for GivenUp { left, priority, retry_after } in given_up {
            let reason = ShedReason::Overload { lane, priority };
            let error = TaskError::Shed { reason, retry_after: Some(retry_after) };
            if let Some((_, wake)) = left.entry.task.end(error) {
                wake.wake();
            }
            self.settle(left);
        }
    }

    fn evict(self: &Arc<Self>, evicted: Vec<Left>) {
        for left in evicted {
            let reason = ShedReason::Evicted;
            let error = TaskError::Shed { reason, retry_after: None };
            if let Some((_, wake)) = left.entry.task.end(error) {
                wake.wake();
            }
            self.settle(left);
        }
    }

    // Starting and ending.

    /// Sets a drainer going that has been given a slot.
    fn start_drainer(self: &Arc<Self>, lane: Lane) {
        match lane {
            Lane::Io => self.fill_io(),
            Lane::Cpu => {
                let mut drainer = Some(Drainer::new(self, lane));
                if let Some(pool) = &*self.pool.read()
                    && let Some(drainer) = drainer.take()
                {
                    pool.spawn(move || drainer.run_on_pool(0));
                }
                // Of a closed scheduler there is no pool, and the drainer's drop gives the slot back.
                drop(drainer);
            }
            Lane::Blocking => {
                let drainer = Drainer::new(self, lane);
                if let Some(runtime) = &self.runtime {
                    // It panics if the system has no more threads; then the drainer drops.
                    let spawn = || drop(runtime.spawn_blocking(move || drainer.run()));
                    // The hook has reported it.
                    let _ = catch_unwind(AssertUnwindSafe(spawn));
                }
            }
        }
    }

    /// Starts futures as long as there are slots, of which one has been taken already.
    fn fill_io(self: &Arc<Self>) {
        let here = self.lane(Lane::Io);
        let mut have_slot = true;
        while have_slot {
            let (next, given_up) = {
                let mut state = here.state.lock();
                let next = state.next(Priority::Low, Instant::now(), &self.timer);
                state.active -= usize::from(next.is_none());
                have_slot = next.is_some() && state.take_slot();
                here.has_room();
                (next, std::mem::take(&mut state.given_up))
            };
            self.give_up(Lane::Io, given_up);
            if let Some(next) = next {
                self.start_future(next);
            }
        }
    }

    /// Starts a future that has a slot.
    fn start_future(self: &Arc<Self>, Start { id, priority, task }: Start) {
        if let Some(step) = task.start(self, id, priority) {
            // It had ended before it began.
            self.future_ended(id, step);
        }
    }

    /// Ends a task of a drainer, if there was one, and gives the next, unless the slot goes back.
    fn turn(self: &Arc<Self>, lane: Lane, ended: Option<(TaskId, Step)>, then: Then) -> Turn {
        let here = self.lane(lane);
        let now = Instant::now();
        let mut wake = None;
        let mut left = None;
        let (next, linger, another, empty, given_up);
        {
            let mut state = here.lock();
            match ended {
                Some((id, Step::Ended(ending, to_wake))) => {
                    wake = Some(to_wake);
                    left = state.finish(id, ending, now);
                }
                Some((id, Step::Again(delay))) => {
                    state.again(id, delay, now, &self.timer);
                }
                None => {}
            }
            let may = then != Then::Stop && state.active <= state.slots;
            next = if may { state.next(Priority::Low, now, &self.timer) } else { None };
            linger = next.is_none() && may && then == Then::Linger && state.closed.is_none();
            state.active -= usize::from(next.is_none() && !linger);
            another = state.take_slot();
            here.queued.store(state.queue.queued(), Relaxed);
            given_up = std::mem::take(&mut state.given_up);
            empty = state.queue.len() == 0;
            if next.is_some() {
                here.has_room();
            }
        }
        if let Some(wake) = wake {
            wake.wake();
        }
        if let Some(left) = left {
            self.settle(left);
        }
        if empty {
            self.emptied.notify_waiters();
        }
        if another {
            self.start_drainer(lane);
        }
        if !given_up.is_empty() {
            self.give_up(lane, given_up);
        }
        match next {
            Some(start) => Turn::Start(start),
            None if linger => Turn::Linger,
            None => Turn::Over,
        }
    }

    /// Ends an attempt of a task that holds no slot of its own.
    fn finish(self: &Arc<Self>, id: TaskId, step: Step) {
        let now = Instant::now();
        let here = self.lane(id.lane());
        let mut left = None;
        let mut wake = None;
        let empty = {
            let mut state = here.state.lock();
            match step {
                Step::Ended(ending, to_wake) => {
                    wake = Some(to_wake);
                    left = state.finish(id, ending, now);
                }
                Step::Again(delay) => {
                    state.again(id, delay, now, &self.timer);
                }
            }
            state.queue.len() == 0
        };
        if let Some(wake) = wake {
            wake.wake();
        }
        if let Some(left) = left {
            self.settle(left);
        }
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// Ends the attempt of a future and uses its slot for the next.
    pub(crate) fn future_ended(self: &Arc<Self>, id: TaskId, step: Step) {
        let mut ended = Some((id, step));
        while let Turn::Start(next) = self.turn(Lane::Io, ended.take(), Then::More) {
            match next.task.start(self, next.id, next.priority) {
                None => return,
                Some(step) => ended = Some((next.id, step)),
            }
        }
    }

    /// A future was dropped before its end: its runtime is gone, and with it the lane.
    pub(crate) fn future_dropped(self: &Arc<Self>, id: TaskId, task: &dyn Task) {
        let reason = ShedReason::NoRuntime { lane: Lane::Io };
        let ended = task.end(TaskError::Shed { reason, retry_after: None });
        let (ending, wake) = match ended {
            Some((_, wake)) => (Ending::Shed, wake),
            None => (Ending::Stopped, Wake::default()),
        };
        self.close(Lane::Io, reason);
        self.turn(Lane::Io, Some((id, Step::Ended(ending, wake))), Then::Stop);
    }

    /// Runs a closure on this thread, outside of the lane's slots.
    pub(crate) fn run_here(self: &Arc<Self>, start: Start) {
        let id = start.id;
        if let Some(step) = self.run(start) {
            self.finish(id, step);
        }
    }

    fn run(self: &Arc<Self>, start: Start) -> Option<Step> {
        let lane = start.id.lane();
        let _entered = Entered::new(self, lane);
        let before = if self.rules.cpu_time(lane) { thread_cpu_time() } else { None };
        let step = self.run_caught(start);
        let after = before.and_then(|before| Some(thread_cpu_time()?.saturating_sub(before)));
        CPU_TIME.set(after);
        step
    }

    fn run_caught(self: &Arc<Self>, Start { id, priority, task }: Start) -> Option<Step> {
        // Work that panics is dealt with inside; here it is the drop of a value that nobody wants.
        catch_unwind(AssertUnwindSafe(|| task.start(self, id, priority))).unwrap_or_else(
            |payload| {
                self.end_id(id, TaskError::Panicked(panic_text(payload)));
                Some(Step::Ended(Ending::Stopped, Wake::default()))
            },
        )
    }

    /// Starts a task at once because somebody who holds a slot waits for it.
    ///
    /// A future goes beyond the slots: whoever awaits it does nothing in the meantime. A closure is run
    /// here, if this thread is a worker of its lane (`here`). So a task that waits for one that it
    /// has submitted cannot take the last slot from it.
    pub(crate) fn hurry(self: &Arc<Self>, id: TaskId, blocking: bool) -> bool {
        let lane = id.lane();
        let current = CURRENT.get().filter(|it| it.core == Arc::as_ptr(self) as usize);
        let Some(current) = current else { return false };
        if lane != Lane::Io && (current.lane != lane || !blocking) {
            return false;
        }
        let start = {
            let mut state = self.lane(lane).state.lock();
            let now = Instant::now();
            let LaneState { queue, ledger, active, .. } = &mut *state;
            let Some(next) = queue.start(id, now) else { return false };
            // Its end gives a slot back, so it takes one, be there one or not.
            *active += usize::from(lane == Lane::Io);
            LaneState::started(ledger, next, now, &self.timer)
        };
        if lane == Lane::Io {
            self.start_future(start);
        } else {
            self.run_here(start);
        }
        true
    }

    /// Runs one waiting closure of a level above `priority` on this thread.
    pub(crate) fn run_more_important(self: &Arc<Self>, lane: Lane, priority: Priority) {
        let Some(least) = priority.index().checked_sub(1).map(|it| Priority::ALL[it]) else {
            return;
        };
        if lane == Lane::Io {
            return;
        }
        let (start, given_up) = {
            // Whoever holds the lock is about to take the task.
            let Some(mut state) = self.lane(lane).state.try_lock() else { return };
            let start = state.next(least, Instant::now(), &self.timer);
            (start, std::mem::take(&mut state.given_up))
        };
        self.give_up(lane, given_up);
        if let Some(start) = start {
            self.run_here(start);
        }
    }

    /// Deals with what hangs on a task that has left: timers, its group, and who waits for it.
    fn settle(self: &Arc<Self>, left: Left) {
        if left.entry.extra.is_none() && !left.entry.dependents {
            drop_task(left.entry.task);
            return;
        }
        // A list and not recursion: chains of dependencies are as long as somebody makes them.
        let mut list = vec![left];
        while let Some(Left { id, entry, succeeded }) = list.pop() {
            if let Some(extra) = &entry.extra {
                let keys = [extra.wait_key, extra.run_key, extra.attempt_key];
                keys.into_iter().flatten().for_each(|key| self.timer.remove(key));
                self.leave_gate(extra.memory);
                if let Some(next) = extra.group.as_ref().and_then(|group| group.leave(id)) {
                    self.let_go(next);
                }
            }
            drop_task(entry.task);
            if !entry.dependents {
                continue;
            }
            let dependents = self.dependents.lock().remove(&id).unwrap_or_default();
            self.waits.fetch_sub(dependents.len(), Relaxed);
            for dependent in dependents {
                if succeeded {
                    self.let_go(dependent);
                } else {
                    list.extend(self.take_out(dependent, TaskError::DependencyFailed(id)));
                }
            }
        }
    }

    // Ending from outside.

    /// Ends a task by its handle.
    pub(crate) fn end(self: &Arc<Self>, id: TaskId, row: u16, task: &dyn Task, error: TaskError) {
        let ending = Ending::of(&error);
        let Some((was, wake)) = task.end(error) else { return };
        let here = self.lane(id.lane());
        let mut empty = false;
        let left = {
            let mut state = here.state.lock();
            ending.count(&mut state.ledger.get(row).counts);
            // One that is on its way to run now is dealt with by its drainer.
            let removed = (was == Was::Waiting).then(|| state.queue.remove(id)).flatten();
            removed.map(|(entry, _)| {
                here.has_room();
                empty = state.queue.len() == 0;
                state.left(id, entry, false)
            })
        };
        wake.wake();
        if let Some(left) = left {
            self.settle(left);
        }
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// Ends a task by its id; `false` if it has ended.
    pub(crate) fn end_id(self: &Arc<Self>, id: TaskId, error: TaskError) -> bool {
        let found = {
            let mut state = self.lane(id.lane()).state.lock();
            state.queue.get(id).map(|(entry, _)| (Arc::clone(&entry.task), entry.row))
        };
        let Some((task, row)) = found else { return false };
        self.end(id, row, &*task, error);
        true
    }

    /// Ends a waiting task and leaves what hangs on it to the caller.
    fn take_out(self: &Arc<Self>, id: TaskId, error: TaskError) -> Option<Left> {
        let here = self.lane(id.lane());
        let ending = Ending::of(&error);
        let (left, empty) = {
            let mut state = here.state.lock();
            let (entry, _) = state.queue.remove(id)?;
            here.has_room();
            (state.left(id, entry, false), state.queue.len() == 0)
        };
        if let Some((_, wake)) = left.entry.task.end(error) {
            ending.count(&mut here.state.lock().ledger.get(left.entry.row).counts);
            wake.wake();
        }
        if empty {
            self.emptied.notify_waiters();
        }
        Some(left)
    }

    /// Does what is due.
    pub(crate) fn due(self: &Arc<Self>, due: Due) {
        match due {
            Due::Wait(id) => {
                let waits = {
                    let mut state = self.lane(id.lane()).state.lock();
                    let found = state.queue.get(id);
                    found.is_some_and(|(_, standing)| standing != Standing::Running)
                };
                if waits && let Some(left) = self.take_out(id, TaskError::TimedOut) {
                    self.settle(left);
                }
            }
            Due::Run(id) => {
                let runs = {
                    let mut state = self.lane(id.lane()).state.lock();
                    let found = state.queue.get(id);
                    found.is_some_and(|(_, standing)| standing == Standing::Running)
                };
                if runs {
                    self.end_id(id, TaskError::TimedOut);
                }
            }
            Due::Attempt(id) => self.let_go(id),
            Due::Wake(waker) => waker.wake(),
            Due::Tick => self.tick(),
        }
    }

    /// Stops a lane from taking tasks and ends those that wait.
    pub(crate) fn close(self: &Arc<Self>, lane: Lane, reason: ShedReason) -> Vec<TaskId> {
        self.stop_admission(lane, reason);
        self.end_waiting(lane, &TaskError::Shed { reason, retry_after: None })
    }

    /// Stops a lane from taking tasks; what is in it stays.
    pub(crate) fn stop_admission(&self, lane: Lane, reason: ShedReason) {
        let here = self.lane(lane);
        here.state.lock().closed.get_or_insert(reason);
        for room in &here.room {
            room.notify_waiters();
        }
    }

    /// Ends all tasks of a lane that wait and returns their ids.
    pub(crate) fn end_waiting(self: &Arc<Self>, lane: Lane, error: &TaskError) -> Vec<TaskId> {
        let waiting: Vec<TaskId> = {
            let state = self.lane(lane).state.lock();
            let all = state.queue.iter();
            all.filter(|it| it.standing != Standing::Running).map(|it| it.id).collect()
        };
        let mut ended = Vec::with_capacity(waiting.len());
        for id in waiting {
            if let Some(left) = self.take_out(id, error.clone()) {
                ended.push(id);
                self.settle(left);
            }
        }
        ended
    }

    /// Ends all tasks of a lane that run, as far as they can be: futures stop, closures are told.
    pub(crate) fn end_running(self: &Arc<Self>, lane: Lane, error: &TaskError) {
        let running: Vec<(TaskId, u16, Arc<dyn Task>)> = {
            let state = self.lane(lane).state.lock();
            let all = state.queue.iter().filter(|it| it.standing == Standing::Running);
            all.map(|it| (it.id, it.task.row, Arc::clone(&it.task.task))).collect()
        };
        for (id, row, task) in running {
            self.end(id, row, &*task, error.clone());
        }
    }

    /// Ends the windows of the limits and looks for tasks that hold their worker too long.
    fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        // First, so that a listener that panics does not end the ticks.
        self.timer.add(now, TICK, Due::Tick);
        for here in &self.lanes {
            let (change, start) = {
                let mut state = here.state.lock();
                let queued = state.queue.queued();
                let change = state.rules.limit.tick(queued, now);
                state.slots = state.rules.limit.get();
                (change, change.is_some() && state.take_slot())
            };
            if start {
                self.start_drainer(here.lane);
            }
            if let Some(change) = change {
                self.rules.tell(SchedulerEvent::LimitChanged(change));
            }
        }
        let found = {
            let mut watchdog = self.rules.watchdog.lock();
            let watched = Lane::ALL.into_iter().filter(|lane| watchdog.watches(*lane));
            let running: Vec<_> = watched.flat_map(|lane| self.running(lane)).collect();
            watchdog.scan(running, now)
        };
        for held in found {
            self.rules.tell(SchedulerEvent::HeldTooLong(held));
        }
    }

    /// The tasks of a lane that run; looks at some places of the table at a time.
    fn running(&self, lane: Lane) -> Vec<RunningTask> {
        let mut tasks = Vec::new();
        for first in (0..).step_by(PAGE) {
            let state = self.lane(lane).state.lock();
            if tasks.len() >= state.queue.running() || first >= state.queue.places() {
                break;
            }
            let page = state.queue.page(first, PAGE);
            let running = page.filter(|seen| seen.standing == Standing::Running);
            tasks.extend(running.map(|seen| RunningTask {
                id: seen.id,
                task_type: state.ledger.name(seen.task.row),
                lane,
                since: seen.since,
            }));
        }
        tasks
    }

    /// Sets the limit of a lane by hand, or lets it be what it was.
    pub(crate) fn set_limit(self: &Arc<Self>, lane: Lane, limit: Option<usize>) {
        let now = Instant::now();
        let (change, start) = {
            let mut state = self.lane(lane).state.lock();
            let change = state.rules.limit.set_override(limit, now);
            state.slots = state.rules.limit.get();
            (change, state.take_slot())
        };
        // The first drainer starts the others.
        if start {
            self.start_drainer(lane);
        }
        if let Some(change) = change {
            self.rules.tell(SchedulerEvent::LimitChanged(change));
        }
    }

    /// Runs tasks of the upper levels of the lane `Cpu` until the lane is closed, on a thread of its own.
    pub(crate) fn serve_important(self: &Arc<Self>) {
        let here = self.lane(Lane::Cpu);
        let mut ended: Option<(TaskId, Step)> = None;
        let mut busy = false;
        loop {
            if let Some((id, step)) = ended.take() {
                self.finish(id, step);
            }
            if std::mem::take(&mut busy) {
                here.state.lock().rules.busy -= 1;
            }
            let (start, given_up) = {
                let mut state = here.state.lock();
                let least = state.rules.least;
                let start = loop {
                    if let Some(start) = state.next(least, Instant::now(), &self.timer) {
                        state.rules.busy += 1;
                        break Some(start);
                    }
                    if !state.given_up.is_empty() {
                        break None;
                    }
                    // Nothing waits any more, and nothing will come.
                    if state.closed.is_some() && state.queue.len() == state.queue.running() {
                        return;
                    }
                    state.rules.idle += 1;
                    here.important.wait_for(&mut state, Duration::from_millis(500));
                    state.rules.idle -= 1;
                };
                here.has_room();
                (start, std::mem::take(&mut state.given_up))
            };
            self.give_up(Lane::Cpu, given_up);
            if let Some(start) = start {
                busy = true;
                let id = start.id;
                ended = self.run(start).map(|step| (id, step));
            }
        }
    }

    /// Wakes the threads that are kept, so that they see that the lane is closed, and says whether
    /// one of them runs a task.
    pub(crate) fn wake_important(&self) -> bool {
        let here = self.lane(Lane::Cpu);
        here.important.notify_all();
        here.state.lock().rules.busy > 0
    }

    /// Lets go of the rayon pool, whose threads end when their work does.
    pub(crate) fn drop_pool(&self) {
        let pool = self.pool.write().take();
        drop(pool);
    }
}

impl LaneState {
    /// Makes room for `count` tasks as far as the policy allows; otherwise says why there is none,
    /// and whether the caller may run the task.
    fn room(
        &mut self,
        here: &LaneCore,
        options: &Options,
        count: usize,
        evicted: &mut Vec<Left>,
    ) -> Result<(), (ShedReason, bool)> {
        if let Some(reason) = self.closed {
            return Err((reason, false));
        }
        let priority = options.priority;
        let bytes = options.bytes.saturating_mul(count as u64);
        let Err(reason) = self.queue.room(priority, count, bytes) else { return Ok(()) };
        let policy = options.when_full.unwrap_or(here.when_full[priority.index()]);
        match policy {
            WhenFull::EvictLower if matches!(reason, ShedReason::LaneFull { .. }) => {
                // Evicting some and then refusing anyway would lose them for nothing.
                if self.queue.queued_below(priority) < self.queue.excess(count) {
                    return Err((reason, false));
                }
                while self.queue.excess(count) > 0 {
                    let Some(id) = self.queue.evictable(priority) else { break };
                    let Some((entry, _)) = self.queue.remove(id) else { break };
                    self.ledger.get(entry.row).counts.shed += 1;
                    let left = self.left(id, entry, false);
                    evicted.push(left);
                }
                self.queue.room(priority, count, bytes).map_err(|reason| (reason, false))
            }
            WhenFull::CallerRuns => Err((reason, here.lane != Lane::Io)),
            _ => Err((reason, false)),
        }
    }
}

/// Drops a task, and with it maybe the last of its work or value, whose drop may panic.
///
/// The hook has reported it then, and nobody here has anything to do with it.
fn drop_task(task: Arc<dyn Task>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
}

/// Returns the text of a panic's payload.
pub(crate) fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = match payload.downcast::<String>() {
        Ok(text) => return *text,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(text) => return (*text).to_owned(),
            Err(payload) => payload,
        },
    };
    // The drop of a foreign payload may panic in its turn.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(text)));
    "a panic without a text".to_owned()
}

/// Says where a task of the table is.
pub(crate) fn state_of(standing: Standing) -> TaskState {
    match standing {
        Standing::Held | Standing::Free => TaskState::Held,
        Standing::Listed | Standing::Dated => TaskState::Queued,
        Standing::Running => TaskState::Running,
    }
}
