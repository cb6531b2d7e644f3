//! Starting and ending: how whoever fills a slot ends its task and gets the next.

use std::cell::Cell as ThreadCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Core;
use super::drainer::Drainer;
use super::entry::{Ending, Start, Step, Task, panic_text};
use super::state::{Batch, LaneState};
use crate::cell::Wake;
use crate::lane::Lane;
use crate::nice::thread_cpu_time;
use crate::task::{Priority, ShedReason, TaskError, TaskId};

/// What a drainer wants after its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Another one.
    More,
    /// Another one, and if there is none, to keep the slot for a moment.
    Linger,
    /// Nothing.
    Stop,
}

/// Where a drainer of a lane with batches sits.
pub(super) struct Seat<'a> {
    pub(super) batch: &'a Batch,
    /// Whether the last turn put something into the batch.
    pub(super) batched: bool,
}

/// What a drainer gets.
pub(super) enum Turn {
    /// A task.
    Start(Start),
    /// No task, but it has its slot still.
    Linger,
    /// The slot has gone back.
    Over,
}

thread_local! {
    /// Which task of which scheduler this thread runs.
    pub(super) static CURRENT: ThreadCell<Option<Current>> = const { ThreadCell::new(None) };
    /// The CPU time of the task that has just ended on this thread, where it was measured.
    pub(super) static CPU_TIME: ThreadCell<Option<Duration>> = const { ThreadCell::new(None) };
}

/// The task that a thread runs at this moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Current {
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

impl Core {
    /// Sets a drainer going that has been given a slot.
    pub(super) fn start_drainer(self: &Arc<Self>, lane: Lane) {
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
    pub(super) fn fill_io(self: &Arc<Self>) {
        let here = self.lane(Lane::Io);
        let mut have_slot = true;
        while have_slot {
            let (next, given_up) = {
                let mut state = here.state.lock();
                let next = state.next(Priority::Low, Instant::now(), &self.timer);
                state.active -= usize::from(next.is_none());
                have_slot = next.is_some() && state.take_slot();
                here.has_room(1);
                (next, std::mem::take(&mut state.given_up))
            };
            self.give_up(Lane::Io, given_up);
            if let Some(next) = next {
                self.start_future(next);
            }
        }
    }

    /// Starts a future that has a slot.
    pub(super) fn start_future(self: &Arc<Self>, Start { id, priority, task }: Start) {
        if let Some(step) = task.start(self, id, priority) {
            // It had ended before it began.
            self.future_ended(id, step);
        }
    }

    /// Ends a task of a drainer, if there was one, and gives the next, unless the slot goes back.
    ///
    /// A drainer with a seat may get further tasks in its batch, and ends those of the last one.
    pub(super) fn turn(
        self: &Arc<Self>,
        lane: Lane,
        mut seat: Option<&mut Seat<'_>>,
        ended: Option<(TaskId, Step)>,
        then: Then,
    ) -> Turn {
        let here = self.lane(lane);
        let now = Instant::now();
        let mut wake = None;
        let mut left = None;
        let (next, linger, mut another, empty, given_up, others);
        {
            let mut state = here.lock();
            let mut places = 0;
            if let Some(seat) = &mut seat
                && std::mem::take(&mut seat.batched)
            {
                places = state.settle(seat.batch);
            }
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
            if may && state.wants_recall(now) {
                here.recall(&mut state);
            }
            next = if may { state.next(Priority::Low, now, &self.timer) } else { None };
            linger = next.is_none() && may && then == Then::Linger && state.closed.is_none();
            state.active -= usize::from(next.is_none() && !linger);
            another = state.take_slot();
            if let (Some(seat), Some(next)) = (seat, &next) {
                seat.batched = state.claim(next, seat.batch, now);
                if seat.batched && state.active < state.slots {
                    // Whoever has nothing to do takes a part of the batch.
                    state.active += 1;
                    another = true;
                }
            }
            here.queued.store(state.queue.queued(), Relaxed);
            given_up = std::mem::take(&mut state.given_up);
            others = std::mem::take(&mut state.ended);
            empty = state.queue.len() == 0;
            here.has_room(places + usize::from(next.is_some()));
        }
        if let Some(wake) = wake {
            wake.wake();
        }
        left.into_iter().chain(others).for_each(|left| self.settle(left));
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
    pub(super) fn finish(self: &Arc<Self>, id: TaskId, step: Step) {
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
        while let Turn::Start(next) = self.turn(Lane::Io, None, ended.take(), Then::More) {
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
        self.turn(Lane::Io, None, Some((id, Step::Ended(ending, wake))), Then::Stop);
    }

    /// Runs a closure on this thread, outside of the lane's slots.
    pub(crate) fn run_here(self: &Arc<Self>, start: Start) {
        let id = start.id;
        if let Some(step) = self.run(start) {
            self.finish(id, step);
        }
    }

    pub(super) fn run(self: &Arc<Self>, start: Start) -> Option<Step> {
        let lane = start.id.lane();
        let _entered = Entered::new(self, lane);
        let before = if self.rules.cpu_time(lane) { thread_cpu_time() } else { None };
        let step = self.run_caught(start);
        let after = before.and_then(|before| Some(thread_cpu_time()?.saturating_sub(before)));
        CPU_TIME.set(after);
        step
    }

    /// Runs a task and then what is in the batch, until that is empty or one wants another attempt.
    pub(super) fn run_batch(
        self: &Arc<Self>,
        mut start: Start,
        batch: &Batch,
    ) -> Option<(TaskId, Step)> {
        loop {
            let id = start.id;
            match self.run(start)? {
                Step::Ended(ending, wake) => {
                    wake.wake();
                    start = batch.next(ending, Instant::now(), |start| start.id)?;
                }
                step @ Step::Again(_) => return Some((id, step)),
            }
        }
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
            let mut state = self.lane(lane).exact();
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
        let here = self.lane(lane);
        let ended;
        let (start, given_up) = {
            // Whoever holds the lock is about to take the task.
            let Some(mut state) = here.state.try_lock() else { return };
            if state.queue.claimed_above(priority) {
                here.recall(&mut state);
            }
            let start = state.next(least, Instant::now(), &self.timer);
            ended = std::mem::take(&mut state.ended);
            (start, std::mem::take(&mut state.given_up))
        };
        ended.into_iter().for_each(|left| self.settle(left));
        self.give_up(lane, given_up);
        if let Some(start) = start {
            self.run_here(start);
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
                here.has_room(1);
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
}
