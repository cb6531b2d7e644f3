//! Work on values that takes the processor for long, done away from the threads that serve.
//!
//! Sealing what goes to Redis and opening large values that come from there happen in async tasks. They
//! are handed to tokio's blocking threads, or to an executor of the user's, which knows what else
//! there is to do and what is more urgent.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What work on values is done for, which says how urgent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OffloadedWork {
    /// A caller waits for the value.
    Read,
    /// Values on their way to a tier below memory; nobody waits.
    Write,
}

/// Runs work somewhere, now or later; what it drops is done elsewhere.
pub(crate) type Executor = Arc<dyn Fn(OffloadedWork, Box<dyn FnOnce() + Send>) + Send + Sync>;

/// Runs `work` on the executor; on tokio's blocking threads without one, or where it drops the work.
///
/// `None` if the work panics or the runtime shuts down.
pub(crate) async fn offload<T: Send + 'static>(
    executor: Option<&Executor>,
    why: OffloadedWork,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let Some(executor) = executor else {
        return tokio::task::spawn_blocking(work).await.ok();
    };
    let (tell, told) = oneshot::channel();
    // Held twice, because what an executor drops has to be had back.
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let run = move || {
        let taken = theirs.lock().take();
        if let Some(work) = taken {
            // Who asked may have gone.
            let _ = tell.send(work());
        }
    };
    executor(why, Box::new(run));
    if let Ok(value) = told.await {
        return Some(value);
    }
    let left = work.lock().take();
    tokio::task::spawn_blocking(left?).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executor(run: impl Fn(Box<dyn FnOnce() + Send>) + Send + Sync + 'static) -> Executor {
        Arc::new(move |_, work| run(work))
    }

    #[tokio::test]
    async fn work_is_done_whatever_an_executor_does_with_it() {
        let threads = executor(|work| drop(std::thread::spawn(work)));
        let at_once = executor(|work| work());
        let drops = executor(drop);
        for executor in [None, Some(&threads), Some(&at_once), Some(&drops)] {
            assert_eq!(offload(executor, OffloadedWork::Write, || 42).await, Some(42));
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_nothing_and_is_not_done_again() {
        let caught = executor(|work| {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        });
        let times = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&times);
        let work = move || -> u8 {
            *counted.lock() += 1;
            panic!("on purpose")
        };
        assert_eq!(offload(Some(&caught), OffloadedWork::Read, work).await, None);
        assert_eq!(*times.lock(), 1);
    }
}
