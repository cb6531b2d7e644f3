//! What a task does: closures and futures, once or with further attempts, and how each is run.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use crate::cell::{Cell, Wake, Was};
use crate::dispatch::{Core, Ending, Entered, Step, Task, panic_text};
use crate::handle::Join;
use crate::lane::Lane;
use crate::retry::{AfterFailure, Backoff, Retry, RetryIf};
use crate::sync::{AtomicBool, Relaxed};
use crate::task::{Priority, ShedReason, TaskError, TaskId};

/// What a task can learn about itself while it runs.
pub struct TaskContext<'a> {
    core: &'a Arc<Core>,
    id: TaskId,
    priority: Priority,
    stop: &'a AtomicBool,
}

impl TaskContext<'_> {
    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Returns the task's level.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Tells whether nobody wants the result any more: the task was cancelled or has timed out.
    ///
    /// # Cost
    ///
    /// One relaxed load, so a loop may ask in every round.
    pub fn is_cancelled(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Lets a waiting task of a higher level of this lane run now, on this thread, and says whether
    /// to go on.
    ///
    /// For long closures: called every millisecond or so, it brings the wait of more important work
    /// below the length of the closure. Call it where no lock is held, since the other task may want
    /// it. In the lane `Io` it only looks whether to go on.
    ///
    /// # Errors
    ///
    /// [`Stop`] if nobody wants the result any more, so that `?` ends the work.
    ///
    /// # Cost
    ///
    /// A short lock, and the other task if there is one.
    pub fn checkpoint(&self) -> Result<(), Stop> {
        if self.is_cancelled() {
            return Err(Stop);
        }
        self.core.run_more_important(self.id.lane(), self.priority);
        if self.is_cancelled() { Err(Stop) } else { Ok(()) }
    }
}

impl std::fmt::Debug for TaskContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext")
            .field("id", &self.id)
            .field("priority", &self.priority)
            .field("is_cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Nobody wants the result of the task any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task is to stop")]
pub struct Stop;

/// How one attempt came out.
pub enum Attempt<W, T> {
    /// With the value of the task.
    Done(T),
    /// With the error of the last attempt, as a value.
    Failed(T),
    /// There is to be another attempt after this time.
    Again(W, Duration),
}

/// Work that a task can do.
///
/// There is no need to name it: the scheduler's methods make what implements it.
#[allow(private_bounds, reason = "only this crate implements it")]
pub trait Work: sealed::Sealed + Sized {
    /// What the task returns.
    type Output: Send + 'static;
    /// The task with this work in it.
    #[doc(hidden)]
    type Task: Join<Self::Output> + Task + 'static;

    #[doc(hidden)]
    fn into_task(self) -> Self::Task;

    #[doc(hidden)]
    fn from_task(task: &Self::Task) -> Option<Self>;
}

mod sealed {
    pub trait Sealed {}
}

/// A closure that runs once.
pub struct Closure<F, T> {
    run: F,
    output: PhantomData<fn() -> T>,
}

/// A closure that may run several times.
pub struct RetriedClosure<F, P, T, E> {
    run: F,
    backoff: Backoff<P>,
    output: PhantomData<fn() -> Result<T, E>>,
}

/// A future.
pub struct Once<F>(F);

/// A function whose futures may run several times.
pub struct RetriedFuture<F, P, Fut> {
    make: F,
    backoff: Backoff<P>,
    future: PhantomData<fn() -> Fut>,
}

impl<F, T> Closure<F, T> {
    pub(crate) fn new(run: F) -> Self {
        Self { run, output: PhantomData }
    }
}

impl<F, P, T, E> RetriedClosure<F, P, T, E> {
    pub(crate) fn new(run: F, retry: Retry<P>) -> Self {
        Self { run, backoff: retry.start(Instant::now()), output: PhantomData }
    }
}

impl<F> Once<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(future)
    }
}

impl<F, P, Fut> RetriedFuture<F, P, Fut> {
    pub(crate) fn new(make: F, retry: Retry<P>) -> Self {
        Self { make, backoff: retry.start(Instant::now()), future: PhantomData }
    }
}

/// Says what follows a result, where an error may be followed by another attempt.
fn judge<W, T, E, P: RetryIf<E>>(
    result: Result<T, E>,
    backoff: &mut Backoff<P>,
    again: impl FnOnce() -> W,
) -> Attempt<W, Result<T, E>> {
    match &result {
        Ok(_) => Attempt::Done(result),
        Err(error) => match backoff.failed(error, Instant::now()) {
            AfterFailure::RetryIn(delay) => Attempt::Again(again(), delay),
            AfterFailure::GiveUp(_) => Attempt::Failed(result),
        },
    }
}

/// Work that runs on a thread of its own.
pub trait Call: Send + Sized + 'static {
    type Output: Send + 'static;

    fn call(self, context: &TaskContext<'_>) -> Attempt<Self, Self::Output>;
}

/// Work that is polled.
pub trait Begin: Send + Sized + 'static {
    type Output: Send + 'static;

    fn begin(
        self,
        context: &TaskContext<'_>,
    ) -> impl Future<Output = Attempt<Self, Self::Output>> + Send + use<Self>;
}

impl<F, T> Call for Closure<F, T>
where
    F: FnOnce(&TaskContext<'_>) -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = T;

    fn call(self, context: &TaskContext<'_>) -> Attempt<Self, T> {
        Attempt::Done((self.run)(context))
    }
}

impl<F, P, T, E> Call for RetriedClosure<F, P, T, E>
where
    F: FnMut(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
    P: RetryIf<E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = Result<T, E>;

    fn call(mut self, context: &TaskContext<'_>) -> Attempt<Self, Result<T, E>> {
        let result = (self.run)(context);
        let Self { run, mut backoff, .. } = self;
        match judge(result, &mut backoff, || ()) {
            Attempt::Done(result) => Attempt::Done(result),
            Attempt::Failed(result) => Attempt::Failed(result),
            Attempt::Again((), delay) => {
                Attempt::Again(Self { run, backoff, output: PhantomData }, delay)
            }
        }
    }
}

impl<F> Begin for Once<F>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    type Output = F::Output;

    fn begin(
        self,
        _: &TaskContext<'_>,
    ) -> impl Future<Output = Attempt<Self, F::Output>> + Send + use<F> {
        async move { Attempt::Done(self.0.await) }
    }
}

impl<F, P, Fut, T, E> Begin for RetriedFuture<F, P, Fut>
where
    F: FnMut(&TaskContext<'_>) -> Fut + Send + 'static,
    P: RetryIf<E> + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = Result<T, E>;

    fn begin(
        mut self,
        context: &TaskContext<'_>,
    ) -> impl Future<Output = Attempt<Self, Result<T, E>>> + Send + use<F, P, Fut, T, E> {
        let future = (self.make)(context);
        async move {
            let result = future.await;
            let Self { make, mut backoff, .. } = self;
            match judge(result, &mut backoff, || ()) {
                Attempt::Done(result) => Attempt::Done(result),
                Attempt::Failed(result) => Attempt::Failed(result),
                Attempt::Again((), delay) => {
                    Attempt::Again(Self { make, backoff, future: PhantomData }, delay)
                }
            }
        }
    }
}

/// A task that runs on a thread.
pub struct CallTask<C: Call>(Cell<C, C::Output>);

/// A task that is polled.
pub struct FutureTask<B: Begin>(Cell<B, B::Output>);

/// Ends an attempt that came out so.
fn ended<W, T>(cell: &Cell<W, T>, result: Result<T, TaskError>, ending: Ending) -> Step {
    match cell.end(result) {
        Some((_, wake)) => Step::Ended(ending, wake),
        None => Step::Ended(Ending::Stopped, Wake::default()),
    }
}

fn came_out<W, T>(cell: &Cell<W, T>, attempt: Result<Attempt<W, T>, Box<dyn Any + Send>>) -> Step {
    match attempt {
        Ok(Attempt::Done(value)) => ended(cell, Ok(value), Ending::Done),
        Ok(Attempt::Failed(value)) => ended(cell, Ok(value), Ending::Failed),
        Ok(Attempt::Again(work, delay)) => match cell.put_back(work) {
            Ok(()) => Step::Again(delay),
            Err(_) => Step::Ended(Ending::Stopped, Wake::default()),
        },
        Err(payload) => ended(cell, Err(TaskError::Panicked(panic_text(payload))), Ending::Failed),
    }
}

impl<C: Call> Task for CallTask<C> {
    fn start(self: Arc<Self>, core: &Arc<Core>, id: TaskId, priority: Priority) -> Option<Step> {
        let Some(work) = self.0.begin() else {
            return Some(Step::Ended(Ending::Stopped, Wake::default()));
        };
        let stop = self.0.stop_flag();
        let context = TaskContext { core, id, priority, stop };
        let attempt = catch_unwind(AssertUnwindSafe(|| work.call(&context)));
        Some(came_out(&self.0, attempt))
    }

    fn end(&self, error: TaskError) -> Option<(Was, Wake)> {
        self.0.end(Err(error))
    }
}

impl<B: Begin> Task for FutureTask<B> {
    fn start(self: Arc<Self>, core: &Arc<Core>, id: TaskId, priority: Priority) -> Option<Step> {
        let Some(work) = self.0.begin() else {
            return Some(Step::Ended(Ending::Stopped, Wake::default()));
        };
        let Some(runtime) = core.runtime(priority) else {
            let reason = ShedReason::NoRuntime { lane: Lane::Io };
            let error = TaskError::Shed { reason, retry_after: None };
            return Some(ended(&self.0, Err(error), Ending::Shed));
        };
        let running = Running { core: Arc::clone(core), task: self, id, over: false };
        runtime.spawn(running.run(work, priority));
        None
    }

    fn end(&self, error: TaskError) -> Option<(Was, Wake)> {
        self.0.end(Err(error))
    }
}

/// A future that runs; it tells the scheduler when it is over, however that comes about.
struct Running<B: Begin> {
    core: Arc<Core>,
    task: Arc<FutureTask<B>>,
    id: TaskId,
    over: bool,
}

impl<B: Begin> Running<B> {
    async fn run(mut self, work: B, priority: Priority) {
        let step = {
            let (core, cell) = (&self.core, &self.task.0);
            let begun = {
                let _entered = Entered::new(core, Lane::Io);
                let stop = cell.stop_flag();
                let context = TaskContext { core, id: self.id, priority, stop };
                catch_unwind(AssertUnwindSafe(|| work.begin(&context)))
            };
            match begun {
                Ok(future) => attempt(core, cell, future).await,
                Err(payload) => came_out(cell, Err(payload)),
            }
        };
        self.over = true;
        self.core.future_ended(self.id, step);
    }
}

/// Polls a future to its end, or until the task is ended from outside.
async fn attempt<B: Begin>(
    core: &Arc<Core>,
    cell: &Cell<B, B::Output>,
    future: impl Future<Output = Attempt<B, B::Output>>,
) -> Step {
    let mut future = pin!(future);
    let mut poll = |context: &mut Context<'_>| {
        if cell.stopped() {
            return Poll::Ready(None);
        }
        let _entered = Entered::new(core, Lane::Io);
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(attempt)) => Poll::Ready(Some(Ok(attempt))),
            Ok(Poll::Pending) if cell.set_runner(context.waker()) => Poll::Pending,
            Ok(Poll::Pending) => Poll::Ready(None),
            Err(payload) => Poll::Ready(Some(Err(payload))),
        }
    };
    match poll_fn(&mut poll).await {
        Some(attempt) => came_out(cell, attempt),
        None => Step::Ended(Ending::Stopped, Wake::default()),
    }
}

impl<B: Begin> Drop for Running<B> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if thread::panicking() {
            // The future's own drop panicked.
            let error = TaskError::Panicked("a panic while the future was dropped".to_owned());
            let step = ended(&self.task.0, Err(error), Ending::Failed);
            self.core.future_ended(self.id, step);
        } else {
            self.core.future_dropped(self.id, &*self.task);
        }
    }
}

/// Makes a task of either kind joinable; both are their cell.
macro_rules! join {
    ($task:ident, $kind:ident) => {
        impl<W: $kind> Join<W::Output> for $task<W> {
            fn poll_join(&self, context: &Context<'_>) -> Poll<Result<W::Output, TaskError>> {
                self.0.poll_join(context)
            }

            fn ended(&self) -> Option<bool> {
                self.0.ended()
            }

            #[allow(private_interfaces, reason = "only this crate calls it")]
            fn as_task(&self) -> &dyn Task {
                self
            }
        }
    };
}

join!(CallTask, Call);
join!(FutureTask, Begin);

/// Makes `Work` of what runs on a thread, or is polled.
macro_rules! work {
    ($task:ident, $work:ident<$($parameter:ident),*>, $kind:ident) => {
        impl<$($parameter),*> sealed::Sealed for $work<$($parameter),*> {}

        impl<$($parameter),*> Work for $work<$($parameter),*>
        where
            Self: $kind,
        {
            type Output = <Self as $kind>::Output;
            type Task = $task<Self>;

            fn into_task(self) -> $task<Self> {
                $task(Cell::new(self))
            }

            fn from_task(task: &$task<Self>) -> Option<Self> {
                task.0.begin()
            }
        }
    };
}

work!(CallTask, Closure<F, T>, Call);
work!(CallTask, RetriedClosure<F, P, T, E>, Call);
work!(FutureTask, Once<F>, Begin);
work!(FutureTask, RetriedFuture<F, P, Fut>, Begin);
