//! One lane: its queue, its slots and its figures under one lock, and who waits beside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use super::entry::{Ending, Entry, Left, Options, Start, drop_task};
use super::turn::CPU_TIME;
use crate::admission::{CoDelSettings, WhenFull};
use crate::batch::{self, Done, Recall};
use crate::lane::Lane;
use crate::limits::LimitSettings;
use crate::queue::{Bounds, Queue};
use crate::rules::LaneRules;
use crate::stats::Ledger;
use crate::task::{Priority, ShedReason, TaskId};
use crate::timer::{Due, Timer};

/// Failed tasks whose ids a lane remembers, for tasks that are yet to depend on them.
const FAILURES: usize = 10_000;
/// How often to look at a taken lock before waiting for it.
const SPINS: u32 = 256;
/// How many overdue tasks of overloaded levels are taken out under one lock.
const GIVE_UP: usize = 64;
/// The most tasks that a drainer takes together.
const BATCH: usize = 32;
/// How long the tasks of a batch may take together, by what their types usually take.
const BATCH_TIME: Duration = Duration::from_micros(20);
/// Claims older than this are recalled by whoever has a turn: their drainer is held by one of them.
const STALE: Duration = Duration::from_micros(100);

/// The tasks that a drainer of a lane has claimed.
pub(super) type Batch = batch::Batch<Start, Ending>;

pub(crate) struct LaneState {
    pub(crate) queue: Queue<Entry>,
    pub(crate) ledger: Ledger,
    pub(crate) slots: usize,
    pub(super) active: usize,
    /// Why nothing is taken any more.
    pub(super) closed: Option<ShedReason>,
    pub(super) failures: VecDeque<u64>,
    /// The last sequence number among the failures that were forgotten.
    pub(super) forgotten: u64,
    pub(crate) rules: LaneRules,
    /// Tasks that an overloaded level has given up, to be ended outside of the lock.
    pub(super) given_up: Vec<GivenUp>,
    /// Tasks that have ended in a batch, to be let go outside of the lock.
    pub(super) ended: Vec<Left>,
    /// Since when tasks have been claimed.
    claimed: Instant,
}

/// A task that was shed from an overloaded level.
pub(super) struct GivenUp {
    pub(super) left: Left,
    pub(super) priority: Priority,
    pub(super) retry_after: Duration,
}

// Aligned, so that neither another lane nor the scheduler's count of references shares a line with it.
#[repr(align(128))]
pub(crate) struct LaneCore {
    pub(crate) lane: Lane,
    pub(crate) state: Mutex<LaneState>,
    /// How many tasks are queued, as a hint to who lingers.
    pub(super) queued: AtomicUsize,
    pub(crate) when_full: [WhenFull; 4],
    /// Callers that wait for room, by level, and how many there are.
    pub(super) room: [Notify; 4],
    pub(crate) callers: [AtomicUsize; 4],
    /// Told when there is a task for a thread that is kept for the upper levels.
    pub(super) important: Condvar,
    /// One for each worker of the rayon pool, in the lane `Cpu`.
    batches: Box<[Batch]>,
}

/// A lane that is locked and whose table knows all that has happened in its batches.
pub(crate) struct Exact<'a> {
    state: Option<MutexGuard<'a, LaneState>>,
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
    /// How many workers run closures in batches.
    pub(crate) batches: usize,
    /// Whether there are threads that are kept.
    pub(crate) keeps: bool,
}

/// Brings what happened in a batch into a lane's table.
struct Recaller<'a> {
    state: &'a mut LaneState,
    /// Whether it is the owner itself.
    own: bool,
}

impl Recall<Start, Ending> for Recaller<'_> {
    fn give_back(&mut self, task: Start) {
        // If it was cancelled meanwhile, this is the last of it, and there is nothing foreign in it
        // any more: its work was dropped when it ended.
        self.state.queue.give_back(task.id);
    }

    fn ended(&mut self, done: &Done<Ending>) -> bool {
        let state = &mut *self.state;
        if !self.own && state.queue.get(done.id).is_some_and(|(entry, _)| !entry.is_plain()) {
            // Somebody waits for its end, and then the owner has nothing else to do before it says so:
            // its batch was recalled when that one came.
            return false;
        }
        let left = match state.queue.finish_claimed(done.id, done.started, done.ended) {
            Some((entry, waited, ran)) => {
                state.rules.last_start = done.started;
                let row = state.ledger.ran(entry.row, ran);
                row.wait.record(waited);
                done.ending.count(&mut row.counts);
                Some(state.left(done.id, entry, done.ending == Ending::Done))
            }
            None => state.finish(done.id, done.ending, done.ended),
        };
        state.ended.extend(left);
        true
    }

    fn runs(&mut self, id: TaskId, since: Instant) {
        self.state.begun(id, since);
    }
}

impl std::ops::Deref for Exact<'_> {
    type Target = LaneState;

    fn deref(&self) -> &LaneState {
        self.state.as_ref().expect("it is there until the drop")
    }
}

impl std::ops::DerefMut for Exact<'_> {
    fn deref_mut(&mut self) -> &mut LaneState {
        self.state.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Exact<'_> {
    fn drop(&mut self) {
        let ended = self.state.take().map(|mut state| std::mem::take(&mut state.ended));
        // Nobody waits for them, so dropping them is all there is to do, without the lock.
        ended.into_iter().flatten().for_each(|left| drop_task(left.entry.task));
    }
}

impl LaneState {
    pub(super) fn new(lane: Lane, settings: &LaneSettings) -> Self {
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
                (settings.least, settings.keeps),
                Instant::now(),
            ),
            given_up: Vec::new(),
            ended: Vec::new(),
            claimed: Instant::now(),
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

    pub(super) fn started(
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

    /// Brings what happened in a drainer's own batch into the table, and says how many tasks that were.
    pub(super) fn settle(&mut self, batch: &Batch) -> usize {
        let before = self.queue.claimed();
        batch.recall(true, &mut Recaller { state: self, own: true });
        before - self.queue.claimed()
    }

    /// Learns that a claimed task has been started.
    fn begun(&mut self, id: TaskId, started: Instant) {
        let running = self.queue.running() + 1;
        if let Some(next) = self.queue.begin(id, started) {
            self.rules.started(next.waited, running, started);
            self.ledger.get(next.task.row).wait.record(next.waited);
        }
    }

    /// Claims tasks to be run after `first`, as long as all are short, and tells whether there are any.
    ///
    /// It takes no more than its share of what is queued, and one more drainer is wanted if it took
    /// something while there is a free slot.
    pub(super) fn claim(&mut self, first: &Start, batch: &Batch, now: Instant) -> bool {
        let Self { queue, ledger, rules, .. } = self;
        let share = (queue.queued() / self.active.max(1)).min(BATCH - 1);
        if share == 0 || self.closed.is_some() || !rules.batches(first.priority) {
            return false;
        }
        let row = queue.get(first.id).filter(|(entry, _)| entry.is_plain()).map(|it| it.0.row);
        let Some(usual) = row.and_then(|row| ledger.usual(row)) else { return false };
        let mut rest = BATCH_TIME.saturating_sub(usual);
        let before = queue.claimed();
        let mut claim = || {
            let mut takes = |entry: &Entry| {
                let usual = ledger.usual(entry.row).filter(|_| entry.is_plain());
                let after = usual.and_then(|usual| rest.checked_sub(usual));
                rest = after.unwrap_or(rest);
                after.is_some()
            };
            let (id, entry) = queue.claim(first.priority, &mut takes)?;
            Some(Start { id, priority: first.priority, task: Arc::clone(&entry.task) })
        };
        let Some(second) = claim() else { return false };
        let others = std::iter::from_fn(claim).take(share - 1);
        batch.fill(first.id, now, std::iter::once(second).chain(others));
        if before == 0 {
            self.claimed = now;
        }
        true
    }

    /// Tells whether whoever looks for a task has to recall those that are claimed first.
    pub(super) fn wants_recall(&self, now: Instant) -> bool {
        if self.queue.claimed() == 0 {
            return false;
        }
        self.queue.top().is_none_or(|top| self.queue.claimed_above(top))
            || now.saturating_duration_since(self.claimed) > STALE
    }

    /// Ends a running task.
    pub(super) fn finish(&mut self, id: TaskId, ending: Ending, now: Instant) -> Option<Left> {
        let (entry, _, ran) = self.queue.finish(id, now)?;
        if self.rules.moves {
            self.rules.limit.ended(ran, CPU_TIME.take());
        }
        ending.count(&mut self.ledger.ran(entry.row, ran).counts);
        Some(self.left(id, entry, ending == Ending::Done))
    }

    pub(super) fn left(&mut self, id: TaskId, entry: Entry, succeeded: bool) -> Left {
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
    pub(super) fn again(
        &mut self,
        id: TaskId,
        delay: Duration,
        now: Instant,
        timer: &Timer,
    ) -> bool {
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
    pub(super) fn give_up_overdue(&mut self, now: Instant) {
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
    pub(super) fn take_slot(&mut self) -> bool {
        let take = self.active < self.slots && self.queue.queued() > 0;
        self.active += usize::from(take);
        take
    }

    /// Says how a dependency stands.
    pub(super) fn dependency(&mut self, id: TaskId) -> Dependency {
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

    /// Makes room for `count` tasks as far as the policy allows; otherwise says why there is none,
    /// and whether the caller may run the task.
    pub(super) fn room(
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
        let Err(mut reason) = self.queue.room(priority, count, bytes) else { return Ok(()) };
        if self.queue.claimed() > 0 {
            // What has started in a batch does not wait any more.
            here.recall(self);
            match self.queue.room(priority, count, bytes) {
                Ok(()) => return Ok(()),
                Err(now) => reason = now,
            }
        }
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

pub(super) enum Dependency {
    Open,
    Succeeded,
    Failed,
    Forgotten,
    Unknown,
}

impl LaneCore {
    pub(super) fn new(lane: Lane, settings: LaneSettings) -> Self {
        Self {
            lane,
            state: Mutex::new(LaneState::new(lane, &settings)),
            queued: AtomicUsize::new(0),
            when_full: settings.when_full,
            room: std::array::from_fn(|_| Notify::new()),
            callers: std::array::from_fn(|_| AtomicUsize::new(0)),
            important: Condvar::new(),
            batches: (0..settings.batches).map(|_| Batch::new()).collect(),
        }
    }

    /// Returns the batch of a worker of the rayon pool.
    pub(super) fn batch(&self, worker: usize) -> Option<&Batch> {
        self.batches.get(worker)
    }

    /// Brings what happened in the batches into the table, and queues again what was not started.
    pub(super) fn recall(&self, state: &mut LaneState) {
        for batch in &self.batches {
            batch.recall(false, &mut Recaller { state, own: false });
        }
        self.has_room(BATCH);
    }

    /// Locks the lane for somebody who wants to see or end any of its tasks.
    pub(crate) fn exact(&self) -> Exact<'_> {
        let mut state = self.state.lock();
        if state.queue.claimed() > 0 {
            self.recall(&mut state);
        }
        Exact { state: Some(state) }
    }

    /// Wakes a thread that is kept for tasks of this level, if one is idle.
    pub(super) fn has_important(&self, state: &LaneState, priority: Priority) {
        if state.rules.idle > 0 && priority <= state.rules.least {
            self.important.notify_one();
        }
    }

    /// Locks the lane, on the way of every task.
    ///
    /// The lock is held for some hundred nanoseconds, for a batch a microsecond or two, so spinning that
    /// long beats giving the processor away, which is what `parking_lot` does after a few rounds.
    pub(super) fn lock(&self) -> MutexGuard<'_, LaneState> {
        for _ in 0..SPINS {
            if let Some(state) = self.state.try_lock() {
                return state;
            }
            std::hint::spin_loop();
        }
        self.state.lock()
    }

    /// Tells callers that wait for room that so many places may be free.
    pub(super) fn has_room(&self, places: usize) {
        for (callers, room) in self.callers.iter().zip(&self.room) {
            // A caller counts itself before it looks for room, and room is made before this looks at
            // the count, both under the lane's lock.
            for _ in 0..callers.load(Relaxed).min(places) {
                room.notify_one();
            }
        }
    }

    pub(crate) fn room(&self, priority: Priority) -> &Notify {
        &self.room[priority.index()]
    }
}
