//! A task before it is taken: its work, and how it is to be treated.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::admission::WhenFull;
use crate::dispatch::{Core, Options};
use crate::group::Membership;
use crate::handle::{TaskHandle, block_on};
use crate::lane::Lane;
use crate::scheduler::Scheduler;
use crate::task::{Priority, SubmitError, TaskId};
use crate::work::Work;

/// A task that is ready to be submitted; every setting has a default.
///
/// [`Scheduler`]'s methods make it. A refused submission comes back in the error, as it was, so that
/// nothing is lost and it can be tried again or run otherwise.
#[must_use = "a task that is not submitted never runs"]
pub struct Submission<W> {
    scheduler: Scheduler,
    lane: Lane,
    name: &'static str,
    options: Options,
    work: W,
}

impl<W> Submission<W> {
    pub(crate) fn new(scheduler: &Scheduler, lane: Lane, name: &'static str, work: W) -> Self {
        let options = Options::default();
        Self { scheduler: scheduler.clone(), lane, name, options, work }
    }

    /// Sets the level; `Normal` unless told.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.options.priority = priority;
        self
    }

    /// Sets by when the task should start, which orders it within its level.
    ///
    /// It is no promise and no time-out. A task without a deadline counts as due when the ageing target
    /// of its level is over.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.options.deadline = Some(deadline);
        self
    }

    /// Ends the task with [`TimedOut`](crate::TaskError::TimedOut) if it waits longer than this.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.options.queue_timeout = Some(timeout);
        self
    }

    /// Ends the task with [`TimedOut`](crate::TaskError::TimedOut) if it, or one attempt, runs longer.
    ///
    /// A future is dropped then. A closure is told by its context and keeps its slot until it returns.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Declares how much memory the task needs while it runs; nothing unless told.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.options.bytes = bytes;
        self
    }

    /// Starts the task only after these have ended with a value.
    ///
    /// If one of them fails, is cancelled, or is shed, the task ends with
    /// [`DependencyFailed`](crate::TaskError::DependencyFailed) and is not run.
    pub fn after(mut self, tasks: &[TaskId]) -> Self {
        self.options.after.extend_from_slice(tasks);
        self
    }

    /// Sets what happens if there is no room, instead of what the lane says.
    pub fn when_full(mut self, policy: WhenFull) -> Self {
        self.options.when_full = Some(policy);
        self
    }

    pub(crate) fn group(mut self, group: Option<Membership>) -> Self {
        self.options.group = group;
        self
    }
}

thread_local! {
    static SUBMITTED: Cell<u64> = const { Cell::new(0) };
}

/// Returns how many tasks this thread has submitted, to whatever scheduler, batches included.
///
/// The difference of two readings is what was submitted in between; a future is read before and after
/// each poll. What was refused does not count.
#[must_use]
pub fn thread_submissions() -> u64 {
    SUBMITTED.get()
}

impl<W: Work> Submission<W> {
    /// Submits the task.
    ///
    /// Never waits, from wherever it is called: from async code, from a thread, or from a task of any
    /// lane. (With [`WhenFull::CallerRuns`] it may run the task.)
    ///
    /// # Errors
    ///
    /// [`SubmitError`] with the reason and the task if there is no room or the scheduler is closing.
    ///
    /// # Cost
    ///
    /// One allocation, one reading of the clock and one short lock; waking a worker if one sleeps.
    pub fn submit(self) -> Result<TaskHandle<W::Output>, SubmitError<Self>> {
        let mut kept = None;
        let (id, row, scheduler) = self.take(|task| kept = Some(Arc::clone(task)))?;
        let task = kept.expect("it was shown before it was taken");
        Ok(TaskHandle::new(Arc::clone(scheduler.core()), task, id, row))
    }

    /// Submits the task without a handle: nobody waits for it, and only its id can cancel it.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn spawn(self) -> Result<TaskId, SubmitError<Self>> {
        self.take(|_| ()).map(|(id, ..)| id)
    }

    /// Submits the task, of which nobody here keeps anything that `keep` does not.
    fn take(
        self,
        keep: impl FnOnce(&Arc<W::Task>),
    ) -> Result<(TaskId, u16, Scheduler), SubmitError<Self>> {
        let Self { scheduler, lane, name, options, work } = self;
        let task = Arc::new(work.into_task());
        keep(&task);
        let mut place = None;
        let core = scheduler.core();
        let mut tasks = std::iter::once(task);
        let submitted = core.submit(lane, name, &options, &mut tasks, |taken| {
            place = Some((taken.id, taken.row));
        });
        match (submitted, place) {
            (Ok(run), Some((id, row))) => {
                SUBMITTED.set(SUBMITTED.get() + 1);
                if let Some(start) = run {
                    core.run_here(start);
                }
                Ok((id, row, scheduler))
            }
            (Ok(_), None) => unreachable!("a task that was taken has a place"),
            (Err(refusal), _) => {
                let work = tasks.next().and_then(|task| W::from_task(&task));
                let work = work.expect("it was not taken, and nobody else has seen it");
                Err(SubmitError::new(refusal, Self { scheduler, lane, name, options, work }))
            }
        }
    }

    /// Submits the task as soon as there is room, waiting for it at most so long.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit); the reason is the one that holds when the time is over. A reason
    /// that waiting does not help is returned at once.
    ///
    /// # Cancel safety
    ///
    /// The task is dropped with the future, if it has not been submitted.
    pub async fn submit_wait(
        self,
        timeout: Duration,
    ) -> Result<TaskHandle<W::Output>, SubmitError<Self>> {
        let end = Instant::now().checked_add(timeout);
        let scheduler = self.scheduler.clone();
        let core = scheduler.core();
        let (lane, priority) = (self.lane, self.options.priority);
        let here = core.lane(lane);
        let _caller = Caller::new(core, lane, priority);
        let mut task = self;
        loop {
            let mut room = std::pin::pin!(here.room(priority).notified());
            // From here on no wake-up is missed.
            room.as_mut().enable();
            let error = match task.submit() {
                Ok(handle) => return Ok(handle),
                Err(error) => error,
            };
            if !error.reason().may_pass() {
                return Err(error);
            }
            let waited = core.timer.until(end, |context| room.as_mut().poll(context)).await;
            if waited.is_none() {
                return Err(error);
            }
            task = error.into_task();
        }
    }

    /// Does what [`submit_wait`](Self::submit_wait) does, on this thread, which it blocks.
    ///
    /// # Errors
    ///
    /// As [`submit_wait`](Self::submit_wait).
    pub fn submit_blocking(
        self,
        timeout: Duration,
    ) -> Result<TaskHandle<W::Output>, SubmitError<Self>> {
        block_on(None, self.submit_wait(timeout)).expect("it ends by itself")
    }
}

impl<W> Submission<Vec<W>> {
    /// Returns how many tasks the batch has.
    pub fn len(&self) -> usize {
        self.work.len()
    }

    /// Tells whether the batch has no tasks.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }
}

impl<W: Work> Submission<Vec<W>> {
    /// Submits all the tasks together, or none of them.
    ///
    /// The handles are in the order of the tasks. All settings hold for each task; those that name
    /// bytes are per task.
    ///
    /// # Errors
    ///
    /// As [`submit`](Submission::submit), with all the tasks, if there is not room for all of them. To
    /// a batch [`WhenFull::CallerRuns`] is `Reject`.
    ///
    /// # Cost
    ///
    /// One lock and one wake-up for all, and one allocation for each.
    pub fn submit_all(self) -> Result<Vec<TaskHandle<W::Output>>, SubmitError<Self>> {
        let Self { scheduler, lane, name, options, work } = self;
        let tasks: Vec<Arc<W::Task>> =
            work.into_iter().map(|it| Arc::new(it.into_task())).collect();
        let core = scheduler.core();
        let mut places = Vec::with_capacity(tasks.len());
        let mut all = tasks.iter().map(Arc::clone);
        match core.submit(lane, name, &options, &mut all, |taken| places.push(taken)) {
            Ok(run) => {
                SUBMITTED.set(SUBMITTED.get() + places.len() as u64);
                if let Some(start) = run {
                    core.run_here(start);
                }
                let both = tasks.into_iter().zip(places);
                let handle = |(task, taken): (Arc<W::Task>, crate::dispatch::Taken)| {
                    TaskHandle::new(Arc::clone(core), task, taken.id, taken.row)
                };
                Ok(both.map(handle).collect())
            }
            Err(refusal) => {
                let work = tasks
                    .iter()
                    .map(|task| W::from_task(task).expect("nobody else has seen the task"));
                let work = work.collect();
                Err(SubmitError::new(refusal, Self { scheduler, lane, name, options, work }))
            }
        }
    }
}

impl<W> fmt::Debug for Submission<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission")
            .field("lane", &self.lane)
            .field("name", &self.name)
            .field("priority", &self.options.priority)
            .finish_non_exhaustive()
    }
}

/// A caller that waits for room, counted as long as it does.
struct Caller<'a> {
    core: &'a Core,
    lane: Lane,
    priority: Priority,
}

impl<'a> Caller<'a> {
    fn new(core: &'a Core, lane: Lane, priority: Priority) -> Self {
        core.lane(lane).callers[priority.index()].fetch_add(1, SeqCst);
        Self { core, lane, priority }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.core.lane(self.lane).callers[self.priority.index()].fetch_sub(1, SeqCst);
    }
}
