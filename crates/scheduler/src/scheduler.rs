//! The scheduler: how it is built, what it takes, what it tells, and how it ends.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};

use crate::admission::{CoDelSettings, WhenFull};
use crate::dispatch::{Backends, Core, LaneSettings, state_of};
use crate::group::TaskGroup;
use crate::handle::block_on;
use crate::lane::Lane;
use crate::limits::{LimitRule, LimitSettings};
use crate::memory_gate::MemoryGateStats;
use crate::nice::{NICE_MAX, set_nice};
use crate::queue::{Bounds, Standing};
use crate::retry::Retry;
use crate::rules::{Listener, RuleSettings, Rules, SchedulerEvent, TICK};
use crate::stats::{LaneStats, LevelStats, SchedulerStats};
use crate::submission::Submission;
use crate::task::{Priority, ShedReason, TaskError, TaskId, TaskState};
use crate::watchdog::{LaneFigures, health};
use crate::work::{Closure, Once, RetriedClosure, RetriedFuture, TaskContext};

/// How long the end of a scheduler waits for its own threads.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many places of a lane's table are looked at under one lock.
const PAGE: usize = 4_096;
/// A lane in which tasks wait and none has started for so long is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Orders tasks ahead of tokio and rayon.
///
/// Clones share one scheduler. See the [crate's page](crate) for the idea and [`SchedulerBuilder`] for
/// the settings.
///
/// When the last clone is dropped, and no submission or group holds one, the scheduler closes: tasks
/// that wait end as shed, futures that run are dropped, and closures that run are told to stop and
/// finish on their own. The drop waits for no task. Use [`drain`](Self::drain) to end in order.
#[derive(Clone)]
pub struct Scheduler {
    owner: Arc<Owner>,
}

struct Owner {
    core: Arc<Core>,
    group_max: usize,
    /// The runtime of the upper levels' futures, if it is ours.
    urgent: Mutex<Option<Runtime>>,
    /// The threads that are kept for the upper levels of the lane `Cpu`.
    reserved: Mutex<Vec<std::thread::JoinHandle<()>>>,
    closed: AtomicBool,
}

impl Scheduler {
    /// Starts the settings of a scheduler.
    pub fn builder() -> SchedulerBuilder {
        SchedulerBuilder::default()
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.owner.core
    }

    pub(crate) fn group_max(&self) -> usize {
        self.owner.group_max
    }

    /// Makes a task of a closure that computes; it runs on the scheduler's rayon pool.
    ///
    /// Parallel iterators inside it use the same pool. It should not wait for anything but tasks of
    /// this scheduler. `name` is the type of the task in the figures.
    pub fn cpu<F, T>(&self, name: &'static str, run: F) -> Submission<Closure<F, T>>
    where
        F: FnOnce(&TaskContext<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        Submission::new(self, Lane::Cpu, name, Closure::new(run))
    }

    /// Makes a task of a closure that waits in the kernel; it runs on a blocking thread of tokio's.
    pub fn blocking<F, T>(&self, name: &'static str, run: F) -> Submission<Closure<F, T>>
    where
        F: FnOnce(&TaskContext<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        Submission::new(self, Lane::Blocking, name, Closure::new(run))
    }

    /// Makes a task of a future; it runs on the tokio runtime.
    ///
    /// Order decides when it is first polled. What happens at its later polls is the runtime's
    /// business; for long futures of the upper levels see
    /// [`urgent_io_threads`](SchedulerBuilder::urgent_io_threads).
    pub fn io<F>(&self, name: &'static str, future: F) -> Submission<Once<F>>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        Submission::new(self, Lane::Io, name, Once::new(future))
    }

    /// Makes a task of a closure that computes and is tried again when it fails.
    ///
    /// Between attempts it holds no slot. The result is the last attempt's.
    pub fn cpu_retry<F, P, T, E>(
        &self,
        name: &'static str,
        retry: Retry<P>,
        run: F,
    ) -> Submission<RetriedClosure<F, P, T, E>>
    where
        F: FnMut(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
    {
        Submission::new(self, Lane::Cpu, name, RetriedClosure::new(run, retry))
    }

    /// Makes a task of a closure that waits in the kernel and is tried again when it fails.
    ///
    /// Between attempts it holds no slot. The result is the last attempt's.
    pub fn blocking_retry<F, P, T, E>(
        &self,
        name: &'static str,
        retry: Retry<P>,
        run: F,
    ) -> Submission<RetriedClosure<F, P, T, E>>
    where
        F: FnMut(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
    {
        Submission::new(self, Lane::Blocking, name, RetriedClosure::new(run, retry))
    }

    /// Makes a task of a function whose future is made again when it fails.
    ///
    /// Between attempts it holds no slot. The result is the last attempt's.
    pub fn io_retry<F, P, Fut>(
        &self,
        name: &'static str,
        retry: Retry<P>,
        make: F,
    ) -> Submission<RetriedFuture<F, P, Fut>>
    where
        F: FnMut(&TaskContext<'_>) -> Fut + Send + 'static,
    {
        Submission::new(self, Lane::Io, name, RetriedFuture::new(make, retry))
    }

    /// Makes a batch of tasks that compute, to be submitted together.
    pub fn cpu_all<F, T>(
        &self,
        name: &'static str,
        runs: impl IntoIterator<Item = F>,
    ) -> Submission<Vec<Closure<F, T>>>
    where
        F: FnOnce(&TaskContext<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        Submission::new(self, Lane::Cpu, name, runs.into_iter().map(Closure::new).collect())
    }

    /// Makes a batch of tasks that wait in the kernel, to be submitted together.
    pub fn blocking_all<F, T>(
        &self,
        name: &'static str,
        runs: impl IntoIterator<Item = F>,
    ) -> Submission<Vec<Closure<F, T>>>
    where
        F: FnOnce(&TaskContext<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        Submission::new(self, Lane::Blocking, name, runs.into_iter().map(Closure::new).collect())
    }

    /// Makes a batch of futures, to be submitted together.
    pub fn io_all<F>(
        &self,
        name: &'static str,
        futures: impl IntoIterator<Item = F>,
    ) -> Submission<Vec<Once<F>>>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        Submission::new(self, Lane::Io, name, futures.into_iter().map(Once::new).collect())
    }

    /// Sets how many tasks of a lane may run at once, or with `None` lets the limit be what it was.
    ///
    /// It is brought between the least and the most of the lane; `Cpu` has at most its threads. Tasks that
    /// run beyond a lower limit go on.
    pub fn set_limit(&self, lane: Lane, limit: Option<usize>) {
        self.core().set_limit(lane, limit);
    }

    /// Sets between which bounds the limit of a lane moves that was built with a range.
    ///
    /// A limit beyond them comes to the nearer one, and moves on from there. Bounds outside of 1 to 65536
    /// count as the nearer end. For a lane without a range, `Cpu` among them, it does nothing.
    pub fn set_limit_range(&self, lane: Lane, min: usize, max: usize) {
        let [min, max] = [min, max].map(|bound| bound.clamp(1, MOST_SLOTS));
        self.core().set_limit_range(lane, min, max);
    }

    /// Sets how many bytes tasks that declare memory may hold together.
    ///
    /// Tasks that run keep what they have. One that waits and is larger than a smaller budget waits until
    /// that is raised, it is cancelled, or its time is over. Without a budget at the start it does nothing.
    pub fn set_memory_budget_bytes(&self, bytes: u64) {
        if let Some(gate) = &self.core().rules.gate {
            self.core().rules.budget.store(bytes, Relaxed);
            gate.lock().set_budget(bytes);
            self.core().open_gate();
        }
    }

    /// Sets the share of the memory budget that may be used: 1 all of it, 0 none.
    ///
    /// For a monitor of memory pressure. Tasks that run keep what they have. Without a budget it does
    /// nothing.
    pub fn set_memory_scale(&self, scale: f64) {
        if let Some(gate) = &self.core().rules.gate {
            gate.lock().set_scale(scale);
            self.core().open_gate();
        }
    }

    /// Lets only tasks of `lowest` and above through the memory gate; the others wait.
    pub fn set_memory_lowest(&self, lowest: Priority) {
        if let Some(gate) = &self.core().rules.gate {
            gate.lock().set_lowest(lowest);
            self.core().open_gate();
        }
    }

    /// Teaches the memory gate what a task of a type really needed at its peak.
    ///
    /// Later tasks of the type are let in by the corrected estimate, from a quarter to four times what they
    /// declare.
    pub fn observe_memory(&self, name: &'static str, declared_bytes: u64, peak_bytes: u64) {
        self.core().rules.estimates.lock().observe(name, declared_bytes, peak_bytes);
    }

    /// Reads the state of the memory gate; none without a budget.
    pub fn memory_stats(&self) -> Option<MemoryGateStats> {
        self.core().rules.gate.as_ref().map(|gate| gate.lock().stats())
    }

    /// Returns the last 256 events, the oldest first.
    pub fn events(&self) -> Vec<SchedulerEvent> {
        self.core().rules.events()
    }

    /// Makes an empty group of tasks.
    pub fn group<T: Send + 'static>(&self) -> TaskGroup<T> {
        TaskGroup::new(self)
    }

    /// Cancels a task by its id; `false` if there is no such task any more.
    pub fn cancel(&self, id: TaskId) -> bool {
        self.core().end_id(id, TaskError::Cancelled)
    }

    /// Says where a task is; none if it has ended.
    pub fn state(&self, id: TaskId) -> Option<TaskState> {
        let mut state = self.core().lane(id.lane()).exact();
        state.queue.get(id).map(|(_, standing)| state_of(standing))
    }

    /// Lists tasks that run, and after them tasks that wait, at most `max` of each lane.
    ///
    /// The tasks are not in the order in which they will start. Other tasks come and go meanwhile.
    ///
    /// # Cost
    ///
    /// Looks at the whole table of each lane, under its lock for 4,096 places at a time.
    pub fn tasks(&self, max: usize) -> Vec<TaskInfo> {
        let now = Instant::now();
        let mut all = Vec::new();
        for lane in Lane::ALL {
            let (mut running, mut waiting) = (Vec::new(), Vec::new());
            let mut first = 0;
            loop {
                let state = self.core().lane(lane).exact();
                for seen in state.queue.page(first, PAGE) {
                    let runs = seen.standing == Standing::Running;
                    let list = if runs { &mut running } else { &mut waiting };
                    if list.len() < max {
                        list.push(TaskInfo {
                            id: seen.id,
                            name: state.ledger.name(seen.task.row()),
                            lane,
                            priority: seen.class.priority,
                            state: state_of(seen.standing),
                            since: now.saturating_duration_since(seen.since),
                            bytes: seen.class.bytes,
                        });
                    }
                }
                first += PAGE;
                if first >= state.queue.places() {
                    break;
                }
            }
            waiting.truncate(max - running.len());
            all.append(&mut running);
            all.append(&mut waiting);
        }
        all
    }

    /// Reads the figures of all lanes.
    ///
    /// A task that is awaited may be counted a moment after its result is there.
    ///
    /// # Cost
    ///
    /// Copies about 2 KiB for each type and level under the lane's lock.
    pub fn stats(&self) -> SchedulerStats {
        let now = Instant::now();
        SchedulerStats { lanes: Lane::ALL.map(|lane| self.lane_stats(lane, now)) }
    }

    fn lane_stats(&self, lane: Lane, now: Instant) -> LaneStats {
        // First, because the watchdog looks at lanes under its own lock.
        let holding = self.core().rules.watchdog.lock().holding(lane);
        let state = self.core().lane(lane).exact();
        let levels = Priority::ALL.map(|priority| {
            let (counts, wait, run) = state.ledger.level(priority);
            let queued = state.queue.queued_in(priority);
            let (waiting, waiting_bytes) = state.queue.waiting_in(priority);
            let oldest = state.queue.oldest_of(priority);
            LevelStats {
                priority,
                queued,
                held: waiting - queued,
                waiting_bytes,
                oldest: oldest.map_or(Duration::ZERO, |it| now.saturating_duration_since(it)),
                counts,
                wait,
                run,
            }
        });
        let running = state.queue.running();
        let of_level = |level: &LevelStats| {
            let figures = LaneFigures {
                queued: level.queued,
                running,
                slots: state.slots,
                holding,
                oldest: level.oldest,
                last_start: now.saturating_duration_since(state.rules.last_start),
            };
            health(figures, state.queue.target_of(level.priority), STALLED_AFTER)
        };
        LaneStats {
            lane,
            slots: state.slots,
            running,
            health: levels.iter().map(of_level).max().unwrap_or_default(),
            levels,
            types: state.ledger.rows().to_vec(),
        }
    }

    /// Stops taking tasks, lets those that are here finish until `timeout` is over, and ends the rest.
    ///
    /// Tasks start in their usual order. What still waits at the end is shed, futures that run are
    /// dropped, and closures that run are told to stop; the report names them all. A closure that
    /// does not look at its context goes on alone. Calling it again waits for what is left.
    ///
    /// # Cancel safety
    ///
    /// The scheduler takes no more tasks once this was polled, even if the future is dropped.
    pub async fn drain(&self, timeout: Duration) -> DrainReport {
        let core = self.core();
        let end = Instant::now().checked_add(timeout);
        for lane in Lane::ALL {
            core.stop_admission(lane, ShedReason::Closing);
        }
        let before = self.ended();
        loop {
            let mut emptied = std::pin::pin!(core.emptied.notified());
            emptied.as_mut().enable();
            if core.lanes.iter().all(|lane| lane.state.lock().queue.len() == 0) {
                break;
            }
            let waited = core.timer.until(end, |context| emptied.as_mut().poll(context)).await;
            if waited.is_none() {
                break;
            }
        }
        let ended = self.ended() - before;
        let dropped = self.tasks(usize::MAX);
        let mut report = DrainReport { ended, ..DrainReport::default() };
        if !dropped.is_empty() {
            for task in dropped {
                // Only what this call ends itself is in the report.
                let error = if task.state == TaskState::Running {
                    TaskError::Cancelled
                } else {
                    TaskError::Shed { reason: ShedReason::Closing, retry_after: None }
                };
                if core.end_id(task.id, error) {
                    let list = match task.state {
                        TaskState::Running => &mut report.stopped,
                        _ => &mut report.dropped,
                    };
                    list.push(task);
                }
            }
        }
        report
    }

    /// Does what [`drain`](Self::drain) does, on this thread, which it blocks.
    pub fn drain_blocking(&self, timeout: Duration) -> DrainReport {
        block_on(None, self.drain(timeout)).expect("it ends by itself")
    }

    /// Tasks that have ended since the scheduler was built.
    fn ended(&self) -> u64 {
        let of_lane = |lane: &crate::dispatch::LaneCore| {
            lane.exact().ledger.rows().iter().map(|row| row.counts.ended()).sum::<u64>()
        };
        self.core().lanes.iter().map(of_lane).sum()
    }

    /// Stops taking tasks and ends all there are, without waiting for any.
    ///
    /// Tasks that wait end as shed, futures that run are dropped, closures that run are told to stop.
    pub fn close(&self) {
        self.owner.close();
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Scheduler");
        for lane in &self.core().lanes {
            let state = lane.exact();
            let figures = (state.queue.running(), state.slots, state.queue.queued());
            debug.field(
                lane.lane.name(),
                &format_args!("{} of {} run, {} queued", figures.0, figures.1, figures.2),
            );
        }
        debug.finish_non_exhaustive()
    }
}

impl Owner {
    fn close(&self) {
        if self.closed.swap(true, AcqRel) {
            return;
        }
        for lane in Lane::ALL {
            self.core.close(lane, ShedReason::Closing);
        }
        for lane in Lane::ALL {
            self.core.end_running(lane, &TaskError::Cancelled);
        }
        self.core.drop_pool();
        let end = Instant::now() + PATIENCE;
        for thread in self.reserved.lock().drain(..) {
            // The last clone may be dropped in a task of that very thread.
            let own = thread.thread().id() == std::thread::current().id();
            // One that runs a task ends after it, on its own: the drop waits for no task.
            while !own
                && !thread.is_finished()
                && !self.core.wake_important()
                && Instant::now() < end
            {
                std::thread::sleep(Duration::from_micros(100));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        self.core.timer.stop(PATIENCE);
        if let Some(runtime) = self.urgent.lock().take() {
            // Dropping a runtime would wait for it, which async code must not.
            runtime.shutdown_background();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

/// What an admin interface tells of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskInfo {
    /// The task's id, by which it can be cancelled.
    pub id: TaskId,
    /// Its type.
    pub name: &'static str,
    /// Its lane.
    pub lane: Lane,
    /// Its level.
    pub priority: Priority,
    /// Where it is: held, queued or running.
    pub state: TaskState,
    /// How long it has been there.
    pub since: Duration,
    /// The memory that it has declared.
    pub bytes: u64,
}

/// How a scheduler was drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks that ended in the given time, whether with a value or without.
    pub ended: u64,
    /// Tasks that had not started; they were shed.
    pub dropped: Vec<TaskInfo>,
    /// Tasks that ran; futures were dropped, closures told to stop.
    pub stopped: Vec<TaskInfo>,
}

impl DrainReport {
    /// Tells whether every task ended in the given time.
    pub fn is_complete(&self) -> bool {
        self.dropped.is_empty() && self.stopped.is_empty()
    }
}

/// Collects the settings of a [`Scheduler`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct SchedulerBuilder {
    cpu_threads: Option<usize>,
    io_slots: usize,
    blocking_slots: Option<usize>,
    urgent_io_threads: usize,
    runtime: Option<Handle>,
    level_tasks: [usize; 4],
    level_bytes: [u64; 4],
    lane_tasks: usize,
    when_full: [[WhenFull; 4]; 3],
    ageing_targets: [Duration; 4],
    types_max: usize,
    group_max: usize,
    dependencies_max: usize,
    rules: RuleSettings,
}

impl Default for SchedulerBuilder {
    fn default() -> Self {
        Self {
            cpu_threads: None,
            io_slots: 1_000,
            blocking_slots: None,
            urgent_io_threads: 0,
            runtime: None,
            level_tasks: [100_000; 4],
            level_bytes: [1 << 30; 4],
            lane_tasks: 400_000,
            when_full: [[WhenFull::Reject; 4]; 3],
            ageing_targets: [10, 50, 200, 1_000].map(Duration::from_millis),
            types_max: 256,
            group_max: 1_000_000,
            dependencies_max: 100_000,
            rules: RuleSettings::default(),
        }
    }
}

impl SchedulerBuilder {
    /// Sets the threads of the rayon pool, and so the slots of the lane `Cpu`; the cores unless told.
    pub fn cpu_threads(mut self, threads: usize) -> Self {
        self.cpu_threads = Some(threads);
        self
    }

    /// Sets how many futures may run at once; 1,000 unless told.
    pub fn io_slots(mut self, slots: usize) -> Self {
        self.io_slots = slots;
        self
    }

    /// Sets how many closures of the lane `Blocking` may run at once; twice the cores unless told.
    ///
    /// The runtime must allow at least as many blocking threads (`max_blocking_threads`, 512 unless
    /// told), or tasks wait there unordered.
    pub fn blocking_slots(mut self, slots: usize) -> Self {
        self.blocking_slots = Some(slots);
        self
    }

    /// Sets the runtime of the lanes `Io` and `Blocking`; the one in which `build` is called unless told.
    ///
    /// Without any these two lanes refuse tasks.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Runs futures of `Critical` and `High` on a runtime of their own with so many threads; off, 0,
    /// unless told.
    ///
    /// The queues order when a future is first polled, and no more. Futures that are polled often get
    /// ahead of the others only on threads that they do not share with them.
    pub fn urgent_io_threads(mut self, threads: usize) -> Self {
        self.urgent_io_threads = threads;
        self
    }

    /// Sets how many tasks may wait in a level of each lane; 100,000 unless told.
    pub fn level_tasks(mut self, priority: Priority, tasks: usize) -> Self {
        self.level_tasks[priority.index()] = tasks;
        self
    }

    /// Sets how many declared bytes may wait in a level of each lane; 1 GiB unless told.
    ///
    /// A single task may be larger.
    pub fn level_bytes(mut self, priority: Priority, bytes: u64) -> Self {
        self.level_bytes[priority.index()] = bytes;
        self
    }

    /// Sets how many tasks may wait in a lane, over all levels; 400,000 unless told.
    pub fn lane_tasks(mut self, tasks: usize) -> Self {
        self.lane_tasks = tasks;
        self
    }

    /// Sets what happens to a task of a lane and a level for which there is no room; `Reject` unless
    /// told.
    pub fn when_full(mut self, lane: Lane, priority: Priority, policy: WhenFull) -> Self {
        self.when_full[lane.index()][priority.index()] = policy;
        self
    }

    /// Sets how long tasks of a level may wait before the level is aged and gets its share; 10 ms,
    /// 50 ms, 200 ms and 1 s unless told.
    pub fn ageing_target(mut self, priority: Priority, target: Duration) -> Self {
        self.ageing_targets[priority.index()] = target;
        self
    }

    /// Sets how many types of tasks a lane keeps figures of; 256 unless told, at most 4,096.
    ///
    /// All others share the name `other`.
    pub fn types_max(mut self, types: usize) -> Self {
        self.types_max = types;
        self
    }

    /// Sets how many tasks a group may have; 1,000,000 unless told.
    pub fn group_max(mut self, tasks: usize) -> Self {
        self.group_max = tasks;
        self
    }

    /// Sets how many dependencies between tasks may be open at once; 100,000 unless told.
    pub fn dependencies_max(mut self, dependencies: usize) -> Self {
        self.dependencies_max = dependencies;
        self
    }

    /// Sheds tasks of a level while it is overloaded, and serves its newest first; off unless told.
    ///
    /// See [`CoDelSettings::of`] for settings. For levels whose callers go away, such as requests; a
    /// batch of tasks that is submitted at once waits long by nature, and should not be in such a level.
    pub fn codel(mut self, priority: Priority, settings: CoDelSettings) -> Self {
        self.rules.codel[priority.index()] = Some(settings);
        self
    }

    /// Lets the limit of a lane move between `min` and `max` as it is measured; off unless told.
    ///
    /// It begins at the lane's slots. Not for `Cpu`, whose limit is its threads. Each change is an event
    /// with its reason.
    pub fn limit_range(mut self, lane: Lane, min: usize, max: usize) -> Self {
        self.rules.ranges[lane.index()] = Some((min, max));
        self
    }

    /// Sets how many bytes tasks that declare memory may hold together; no bound unless told.
    pub fn memory_budget_bytes(mut self, bytes: u64) -> Self {
        self.rules.memory_budget = Some(bytes);
        self
    }

    /// Sets how long a task may hold a worker before an event names it; 1 s on `Cpu`, 30 s on
    /// `Blocking`, and `Io` is not watched unless told.
    pub fn hold_limit(mut self, lane: Lane, limit: Option<Duration>) -> Self {
        self.rules.hold_limits = self.rules.hold_limits.lane(lane, limit);
        self
    }

    /// Sets a function that is told of events; it should return soon, or others are late.
    pub fn on_event(mut self, tell: impl Fn(&SchedulerEvent) + Send + Sync + 'static) -> Self {
        self.rules.listener = Some(Listener(Arc::new(tell)));
        self
    }

    /// Keeps threads beside the pool for closures of `least` and the levels above; 0 unless told.
    ///
    /// `least` is `Critical` or `High`. With [`cpu_nice`](Self::cpu_nice) such a task starts within
    /// microseconds even while all workers are busy. Parallel iterators inside of it use rayon's global
    /// pool.
    pub fn reserve_threads(mut self, least: Priority, threads: usize) -> Self {
        self.rules.reserved = (least, threads);
        self
    }

    /// Makes the threads of the pool yield to others: 1 a little, 19 to everybody; only on Linux, off
    /// unless told.
    pub fn cpu_nice(mut self, nice: i32) -> Self {
        self.rules.cpu_nice = Some(nice);
        self
    }

    /// Checks the settings and starts the scheduler's threads.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings, or if the threads cannot be started.
    pub fn build(self) -> Result<Scheduler, BuildError> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(BuildError::Invalid { problems });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu_threads = self.cpu_threads.unwrap_or(cores);
        let nice = self.rules.cpu_nice;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(cpu_threads)
            .thread_name(|index| format!("scheduler-cpu-{index}"))
            // A panic of a task is its result; what comes here is a panic of its drop, and the hook
            // has reported it.
            .panic_handler(|_| {})
            .start_handler(move |_| {
                // The value was checked; a kernel that refuses it leaves the thread as it is.
                let _ = nice.map_or(Ok(()), set_nice);
            })
            .build()
            .map_err(|error| BuildError::Threads(Box::new(error)))?;
        let threads = |error: std::io::Error| BuildError::Threads(Box::new(error));
        let urgent = match self.urgent_io_threads {
            0 => None,
            workers => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(workers).thread_name("scheduler-io").enable_all();
                Some(builder.build().map_err(threads)?)
            }
        };
        let backends = Backends {
            pool,
            runtime: self.runtime.clone().or_else(|| Handle::try_current().ok()),
            urgent: urgent.as_ref().map(|runtime| runtime.handle().clone()),
        };
        let slots = [self.io_slots, cpu_threads, self.blocking_slots.unwrap_or(2 * cores)];
        let settings = Lane::ALL.map(|lane| LaneSettings {
            slots: slots[lane.index()],
            bounds: Bounds {
                lane_tasks: self.lane_tasks,
                tasks: self.level_tasks,
                bytes: self.level_bytes,
            },
            targets: self.ageing_targets,
            types_max: self.types_max,
            when_full: self.when_full[lane.index()],
            codel: self.rules.codel,
            limit: self.limit(lane, slots[lane.index()]),
            least: self.rules.reserved.0,
            batches: if lane == Lane::Cpu { cpu_threads } else { 0 },
            keeps: lane == Lane::Cpu && self.rules.reserved.1 > 0,
        });
        let rules = Rules::new(&self.rules);
        let core = Core::new(settings, backends, self.dependencies_max, rules);
        let owner = Owner {
            core: Arc::clone(&core),
            group_max: self.group_max,
            urgent: Mutex::new(urgent),
            reserved: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
        };
        let weak = Arc::downgrade(&core);
        let fire = move |due: Vec<crate::timer::Due>, _now| {
            let Some(core) = weak.upgrade() else { return false };
            for due in due {
                // Wakers and drops are foreign code, and the timer has to outlive their panics.
                let fire = std::panic::AssertUnwindSafe(|| core.due(due));
                let _ = std::panic::catch_unwind(fire);
            }
            true
        };
        core.timer.start(fire).map_err(threads)?;
        core.timer.add(Instant::now(), TICK, crate::timer::Due::Tick);
        for index in 0..self.rules.reserved.1 {
            let serves = Arc::clone(&core);
            let name = format!("scheduler-reserved-{index}");
            let thread = std::thread::Builder::new().name(name);
            let thread = thread.spawn(move || serves.serve_important()).map_err(threads)?;
            owner.reserved.lock().push(thread);
        }
        Ok(Scheduler { owner: Arc::new(owner) })
    }

    /// The limit of a lane: moving between its bounds, or where it is unless set by hand.
    fn limit(&self, lane: Lane, slots: usize) -> LimitSettings {
        match self.rules.ranges[lane.index()] {
            Some((min, max)) => LimitSettings::new(LimitRule::of(lane), min, slots, max),
            None => {
                let max = if lane == Lane::Cpu { slots } else { MOST_SLOTS };
                LimitSettings::new(LimitRule::Fixed, 1, slots, max)
            }
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, setting, value: &dyn fmt::Debug, expected| {
            if !holds {
                problems.push(Problem { setting, value: format!("{value:?}"), expected });
            }
        };
        let slots = |slots: &usize| (1..=MOST_SLOTS).contains(slots);
        let expected = "must be from 1 to 65536";
        if let Some(threads) = &self.cpu_threads {
            check(slots(threads), "cpu_threads", threads, expected);
        }
        check(slots(&self.io_slots), "io_slots", &self.io_slots, expected);
        if let Some(blocking) = &self.blocking_slots {
            check(slots(blocking), "blocking_slots", blocking, expected);
        }
        check(
            self.urgent_io_threads <= 1_024,
            "urgent_io_threads",
            &self.urgent_io_threads,
            "must be at most 1024",
        );
        check(
            self.level_tasks.iter().all(|tasks| (1..=MOST_WAITING).contains(tasks)),
            "level_tasks",
            &self.level_tasks,
            "must be from 1 to 4000000",
        );
        check(
            self.level_bytes.iter().all(|bytes| *bytes > 0),
            "level_bytes",
            &self.level_bytes,
            "must be at least 1",
        );
        check(
            (1..=MOST_WAITING).contains(&self.lane_tasks),
            "lane_tasks",
            &self.lane_tasks,
            "must be from 1 to 4000000",
        );
        check(
            self.ageing_targets.iter().all(|target| *target <= Duration::from_hours(24)),
            "ageing_target",
            &self.ageing_targets,
            "must be at most 24 hours",
        );
        check(
            (1..=4_096).contains(&self.types_max),
            "types_max",
            &self.types_max,
            "must be from 1 to 4096",
        );
        let RuleSettings { ranges, reserved, cpu_nice, memory_budget, .. } = &self.rules;
        check(
            ranges[Lane::Cpu.index()].is_none(),
            "limit_range",
            &Lane::Cpu,
            "must be Io or Blocking: the limit of Cpu is its threads",
        );
        check(
            ranges.iter().flatten().all(|(min, max)| slots(min) && slots(max) && min <= max),
            "limit_range",
            ranges,
            "must be from 1 to 65536, and min at most max",
        );
        check(
            reserved.0 <= Priority::High,
            "reserve_threads",
            &reserved.0,
            "must be Critical or High",
        );
        check(reserved.1 <= 1_024, "reserve_threads", &reserved.1, "must be at most 1024");
        check(
            cpu_nice.is_none_or(|nice| (1..=NICE_MAX).contains(&nice) && cfg!(target_os = "linux")),
            "cpu_nice",
            cpu_nice,
            "must be from 1 to 19, and only on Linux",
        );
        check(
            memory_budget.is_none_or(|bytes| bytes > 0),
            "memory_budget_bytes",
            memory_budget,
            "must be at least 1",
        );
        check(self.group_max > 0, "group_max", &self.group_max, "must be at least 1");
        problems
    }
}

/// The most tasks of a lane that run at once.
const MOST_SLOTS: usize = 1 << 16;
/// The most tasks of a lane that wait; with those that run, an id can name them all.
const MOST_WAITING: usize = 4_000_000;

/// Why a scheduler could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Some settings cannot be used; all of them are listed.
    #[error(
        "invalid scheduler, {} problem{}:{}",
        problems.len(),
        if problems.len() == 1 { "" } else { "s" },
        Lines(problems)
    )]
    Invalid {
        /// The problems, in the order of the settings.
        problems: Vec<Problem>,
    },
    /// The system did not give the threads.
    #[error("the scheduler's threads could not be started")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The name of the setting, which is the builder's method.
    pub setting: &'static str,
    /// The value seen; where it is set per level, all of them.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.setting, self.value, self.expected)
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
