//! The handle of a task: its result, as a future or by waiting, and a way to end it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::dispatch::{Core, Task, state_of};
use crate::task::{TaskError, TaskId, TaskState};

/// A task as its handle sees it.
pub trait Join<T>: Send + Sync {
    /// Takes the result, or leaves a waker for it.
    fn poll_join(&self, context: &Context<'_>) -> Poll<Result<T, TaskError>>;

    /// Tells whether the task has ended, and whether with a value.
    fn ended(&self) -> Option<bool>;

    /// The task as its lane sees it.
    #[allow(private_interfaces, reason = "only this crate calls it")]
    fn as_task(&self) -> &dyn Task;
}

/// Owns the result of a task.
///
/// It is a future of the result; a plain thread can [`wait`](Self::wait). Dropping the handle lets the
/// task go on and drops its result, unless [`abort_on_drop`](Self::abort_on_drop) says otherwise.
///
/// A task that waits for another, while it holds a slot that the other needs, starts it at once: an
/// awaited future goes beyond its lane's slots, and a closure that is waited for in a worker of its own
/// lane runs in that worker. So tasks may submit tasks and wait for them. To wait in a worker of the
/// lane `Cpu` for a task of another lane that itself waits for the lane `Cpu` still needs a free
/// worker; `after` does not.
///
/// # Cancel safety
///
/// Dropping a handle in a `select!` loses the result, not the task. Poll `&mut handle` to keep it.
#[must_use = "dropping a handle lets the task run and drops its result"]
pub struct TaskHandle<T> {
    core: Arc<Core>,
    task: Arc<dyn Join<T>>,
    id: TaskId,
    row: u16,
    abort_on_drop: bool,
    /// Whether the result has been taken.
    taken: bool,
}

impl<T> TaskHandle<T> {
    pub(crate) fn new(core: Arc<Core>, task: Arc<dyn Join<T>>, id: TaskId, row: u16) -> Self {
        Self { core, task, id, row, abort_on_drop: false, taken: false }
    }

    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Cancels the task, unless it has ended.
    ///
    /// The result is [`TaskError::Cancelled`] from now on. A task that waits leaves its queue and its
    /// work is dropped here; a future that runs is dropped by its runtime soon; a closure that runs
    /// goes on until it asks its context, and what it returns is dropped.
    pub fn cancel(&self) {
        self.core.end(self.id, self.row, self.task.as_task(), TaskError::Cancelled);
    }

    /// Says where the task is.
    pub fn state(&self) -> TaskState {
        match self.task.ended() {
            Some(true) => TaskState::Done,
            Some(false) => TaskState::Failed,
            None => {
                let mut state = self.core.lane(self.id.lane()).exact();
                let found = state.queue.get(self.id);
                // Between the two looks it may have ended.
                found.map_or(TaskState::Running, |(_, standing)| state_of(standing))
            }
        }
    }

    /// Makes the drop of the handle cancel the task, or not.
    pub fn abort_on_drop(mut self, abort: bool) -> Self {
        self.abort_on_drop = abort;
        self
    }

    /// Waits for the result on this thread; not for async code, which it would block.
    ///
    /// # Errors
    ///
    /// The [`TaskError`] of a task that ended without a value.
    pub fn wait(mut self) -> Result<T, TaskError> {
        self.wait_until(None).unwrap_or(Err(TaskError::Cancelled))
    }

    /// Waits for the result on this thread, at most so long; none if it is not there by then.
    ///
    /// The task goes on in that case, and the handle can be asked again.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<T, TaskError>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    pub(crate) fn wait_until(&mut self, end: Option<Instant>) -> Option<Result<T, TaskError>> {
        if self.task.ended().is_none() {
            self.core.hurry(self.id, true);
        }
        block_until(end, |context| self.poll_result(context))
    }

    fn poll_result(&mut self, context: &Context<'_>) -> Poll<Result<T, TaskError>> {
        let result = self.task.poll_join(context);
        self.taken |= result.is_ready();
        result
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = self.poll_result(context);
        if result.is_pending() {
            self.core.hurry(self.id, false);
        }
        result
    }
}

impl<T> Drop for TaskHandle<T> {
    fn drop(&mut self) {
        if self.abort_on_drop && !self.taken {
            self.cancel();
        }
    }
}

impl<T> fmt::Debug for TaskHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.id)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Unparks a thread.
struct Unpark(Thread);

impl task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls on this thread, parked in between, until there is something or the time is over.
pub(crate) fn block_until<T>(
    end: Option<Instant>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    if let Poll::Ready(value) = poll(&mut Context::from_waker(Waker::noop())) {
        return Some(value);
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = poll(&mut context) {
            return Some(value);
        }
        match end {
            None => thread::park(),
            Some(end) => {
                let rest = end.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return None;
                }
                thread::park_timeout(rest);
            }
        }
    }
}

/// Polls a future on this thread until it is ready or the time is over.
pub(crate) fn block_on<T>(end: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    block_until(end, |context| future.as_mut().poll(context))
}
