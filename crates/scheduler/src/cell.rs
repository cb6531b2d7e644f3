//! The cell of one task: its work, then its result, and who waits for either.
//!
//! ```text
//!            begin               end(result)
//!   Ready ----------> Running ----------------> Ended ------> Taken
//!     |  <-----------    |                        ^     poll
//!     |    put_back      |                        |
//!     +------------------+------------------------+
//!                 end(error), from anywhere
//! ```
//!
//! Whoever moves the cell to `Ended` has decided how the task ends; every later attempt is told so and
//! drops what it brought. So a result that comes after a time-out or a cancellation is dropped, a
//! task that was cancelled while it waited is not run, and a handle resolves exactly once. All
//! moves happen under one short lock that is never held across foreign code: work, results and wakers
//! are moved out first. Checked by the loom tests.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicBool, Mutex, Relaxed};
use crate::task::TaskError;

#[cfg(all(test, loom))]
mod loom_tests;

pub(crate) struct Cell<P, T> {
    /// Set when a task that runs has been ended from outside; it is a hint to stop.
    stop: AtomicBool,
    inner: Mutex<Inner<P, T>>,
}

// A cell is small, because a lane may hold a hundred thousand of them and each costs a cache line or two.
struct Inner<P, T> {
    stage: Stage<P, T>,
    /// Who waits for the result.
    joiner: Option<Waker>,
}

enum Stage<P, T> {
    Ready(P),
    /// With the waker of the future that runs, to be told that it has been ended.
    Running(Option<Waker>),
    Ended(Result<T, Box<TaskError>>),
    Taken,
}

/// What to do after a cell has ended, outside of all locks.
#[must_use = "somebody may wait"]
#[derive(Default)]
pub(crate) struct Wake {
    joiner: Option<Waker>,
    runner: Option<Waker>,
}

impl Wake {
    /// Wakes who waits for the result, and the future that is to stop.
    ///
    /// A waker that panics is its maker's concern; the hook has reported it.
    pub(crate) fn wake(self) {
        for waker in [self.runner, self.joiner].into_iter().flatten() {
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// Whether a task waited or ran when it was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Was {
    Waiting,
    Running,
}

impl<P, T> Cell<P, T> {
    pub(crate) fn new(work: P) -> Self {
        let inner = Inner { stage: Stage::Ready(work), joiner: None };
        Self { stop: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    /// Takes the work to run it; `None` if the task has ended, or runs already.
    pub(crate) fn begin(&self) -> Option<P> {
        let mut inner = self.inner.lock();
        if !matches!(inner.stage, Stage::Ready(_)) {
            return None;
        }
        match mem::replace(&mut inner.stage, Stage::Running(None)) {
            Stage::Ready(work) => Some(work),
            Stage::Running(_) | Stage::Ended(_) | Stage::Taken => None,
        }
    }

    /// Gives the work back for another attempt; refused if the task has ended meanwhile.
    pub(crate) fn put_back(&self, work: P) -> Result<(), P> {
        let mut inner = self.inner.lock();
        if !matches!(inner.stage, Stage::Running(_)) {
            return Err(work);
        }
        let runner = mem::replace(&mut inner.stage, Stage::Ready(work));
        drop(inner);
        drop(runner);
        Ok(())
    }

    /// Ends the task, unless it has ended; says where it stood and whom to wake.
    pub(crate) fn end(&self, result: Result<T, TaskError>) -> Option<(Was, Wake)> {
        let result = result.map_err(Box::new);
        let mut inner = self.inner.lock();
        let (was, runner) = match &mut inner.stage {
            Stage::Ready(_) => (Was::Waiting, None),
            Stage::Running(runner) => (Was::Running, runner.take()),
            Stage::Ended(_) | Stage::Taken => return None,
        };
        let before = mem::replace(&mut inner.stage, Stage::Ended(result));
        let wake = Wake { joiner: inner.joiner.take(), runner };
        // Relaxed: what runs finds out for sure under the lock, when it brings its result.
        self.stop.store(true, Relaxed);
        drop(inner);
        // The work's own drop may do anything, so it runs without the lock.
        drop(before);
        Some((was, wake))
    }

    /// Tells whether what runs should stop.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Leaves the waker of the future that runs; `false` if the task has ended meanwhile.
    pub(crate) fn set_runner(&self, waker: &Waker) -> bool {
        let mut inner = self.inner.lock();
        let Stage::Running(runner) = &mut inner.stage else { return false };
        match runner {
            Some(runner) => runner.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// Takes the result, or leaves a waker for it.
    pub(crate) fn poll_join(&self, context: &Context<'_>) -> Poll<Result<T, TaskError>> {
        let mut inner = self.inner.lock();
        match inner.stage {
            Stage::Ready(_) | Stage::Running(_) => {
                match &mut inner.joiner {
                    Some(joiner) => joiner.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            Stage::Ended(_) => match mem::replace(&mut inner.stage, Stage::Taken) {
                Stage::Ended(result) => Poll::Ready(result.map_err(|error| *error)),
                Stage::Ready(_) | Stage::Running(_) | Stage::Taken => Poll::Pending,
            },
            Stage::Taken => Poll::Ready(Err(TaskError::Cancelled)),
        }
    }

    /// Tells whether the task has ended, and if its result is still here, whether it is a value.
    pub(crate) fn ended(&self) -> Option<bool> {
        match &self.inner.lock().stage {
            Stage::Ready(_) | Stage::Running(_) => None,
            Stage::Ended(result) => Some(result.is_ok()),
            Stage::Taken => Some(true),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Text = Cell<Arc<()>, &'static str>;

    fn poll(cell: &Text) -> Poll<Result<&'static str, TaskError>> {
        cell.poll_join(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn work_is_run_once_and_its_result_taken_once() {
        let cell = Text::new(Arc::new(()));
        assert!(poll(&cell).is_pending());
        assert!(cell.begin().is_some() && cell.begin().is_none());
        assert_eq!(cell.end(Ok("done")).map(|(was, _)| was), Some(Was::Running));
        assert_eq!(poll(&cell), Poll::Ready(Ok("done")));
        assert_eq!(
            poll(&cell),
            Poll::Ready(Err(TaskError::Cancelled)),
            "and nobody waits for ever"
        );
    }

    #[test]
    fn ending_a_task_that_waits_frees_its_work_at_once() {
        let work = Arc::new(());
        let cell = Text::new(Arc::clone(&work));
        let was = cell.end(Err(TaskError::Cancelled)).map(|(was, _)| was);
        assert_eq!(was, Some(Was::Waiting));
        assert_eq!(Arc::strong_count(&work), 1);
        assert!(cell.begin().is_none() && cell.end(Ok("late")).is_none());
        assert_eq!(poll(&cell), Poll::Ready(Err(TaskError::Cancelled)));
    }

    #[test]
    fn a_result_after_a_time_out_is_dropped_and_the_work_was_told() {
        let cell = Text::new(Arc::new(()));
        let work = cell.begin().expect("it is ready");
        assert!(!cell.stopped());
        assert!(cell.end(Err(TaskError::TimedOut)).is_some());
        assert!(cell.stopped() && !cell.set_runner(Waker::noop()));
        assert!(cell.end(Ok("late")).is_none() && cell.put_back(work).is_err());
        assert_eq!(cell.ended(), Some(false));
    }

    #[test]
    fn work_that_was_put_back_runs_again() {
        let cell = Text::new(Arc::new(()));
        let work = cell.begin().expect("it is ready");
        assert!(cell.put_back(work).is_ok());
        assert_eq!(cell.ended(), None);
        assert!(cell.begin().is_some());
    }
}
