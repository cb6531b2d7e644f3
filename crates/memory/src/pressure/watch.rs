//! The newest sample for any number of readers, blocking or async, under any runtime.
//!
//! A value with a version behind one mutex that nobody holds for longer than a copy takes. A reader
//! remembers the version it has seen; it is woken when there is a newer one, and readers that are
//! slow see only the newest. There is at most one waker per reader. The wake-ups happen without the
//! lock.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Level, MemorySample};

#[derive(Debug, Default)]
struct State {
    sample: MemorySample,
    /// Grows when the level changes.
    version: u64,
    closed: bool,
    /// One for each reader that waits, by the reader's number.
    wakers: Vec<(u64, Waker)>,
    readers: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The side that writes.
#[derive(Debug)]
pub(crate) struct Publisher(Arc<Shared>);

/// Watches the level of a [`MemoryGuard`](crate::MemoryGuard); clones are watchers of their own.
///
/// # Examples
///
/// ```
/// # async fn example(guard: memory::MemoryGuard) {
/// let mut watch = guard.watch();
/// while let Some(level) = watch.changed().await {
///     println!("memory: {level}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct PressureWatch {
    shared: Arc<Shared>,
    number: u64,
    seen: u64,
}

pub(crate) fn channel() -> (Publisher, PressureWatch) {
    let shared = Arc::new(Shared::default());
    let watch = PressureWatch::new(Arc::clone(&shared));
    (Publisher(shared), watch)
}

impl Publisher {
    /// Stores a sample, and wakes the readers if it has another level than the last.
    pub(crate) fn publish(&self, sample: MemorySample) {
        let mut state = self.0.state.lock();
        let changed = state.sample.level != sample.level;
        state.sample = sample;
        if changed {
            state.version += 1;
            self.wake(state);
        }
    }

    /// Ends every wait, for good.
    pub(crate) fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        self.wake(state);
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.0.changed.notify_all();
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Returns the last sample.
    pub(crate) fn sample(&self) -> MemorySample {
        self.0.state.lock().sample
    }

    /// Returns a new reader, which has seen what there is.
    pub(crate) fn subscribe(&self) -> PressureWatch {
        PressureWatch::new(Arc::clone(&self.0))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.close();
    }
}

impl PressureWatch {
    fn new(shared: Arc<Shared>) -> Self {
        let mut state = shared.state.lock();
        state.readers += 1;
        let (number, seen) = (state.readers, state.version);
        drop(state);
        Self { shared, number, seen }
    }

    /// Returns the last sample.
    ///
    /// # Cost
    ///
    /// A short lock and a copy.
    #[must_use]
    pub fn sample(&self) -> MemorySample {
        self.shared.state.lock().sample
    }

    /// Returns the level of the last sample.
    #[must_use]
    pub fn level(&self) -> Level {
        self.sample().level
    }

    /// Resolves when the level has changed since the last call; `None` once the guard is gone.
    ///
    /// # Cancel safety
    ///
    /// May be dropped; the change is seen by the next call.
    pub async fn changed(&mut self) -> Option<Level> {
        poll_fn(|context| self.poll_changed(context)).await
    }

    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<Option<Level>> {
        let mut state = self.shared.state.lock();
        if state.version != self.seen {
            self.seen = state.version;
            return Poll::Ready(Some(state.sample.level));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        match state.wakers.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => state.wakers.push((self.number, context.waker().clone())),
        }
        Poll::Pending
    }

    /// Blocks until the level has changed since the last call, for `timeout` at most.
    ///
    /// `None` when it has not, or when the guard is gone. For plain threads; async code has
    /// [`changed`](Self::changed).
    pub fn wait(&mut self, timeout: Duration) -> Option<Level> {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.shared.state.lock();
        while state.version == self.seen {
            if state.closed {
                return None;
            }
            let timed_out = match deadline {
                Some(deadline) => self.shared.changed.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.shared.changed.wait(&mut state);
                    false
                }
            };
            if timed_out && state.version == self.seen {
                return None;
            }
        }
        self.seen = state.version;
        Some(state.sample.level)
    }
}

impl Clone for PressureWatch {
    fn clone(&self) -> Self {
        let mut clone = Self::new(Arc::clone(&self.shared));
        clone.seen = self.seen;
        clone
    }
}

impl Drop for PressureWatch {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let waiting = state.wakers.iter().position(|(number, _)| *number == self.number);
        let waker = waiting.map(|at| state.wakers.swap_remove(at));
        drop(state);
        // A user's waker is dropped without the lock.
        drop(waker);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn at(level: Level) -> MemorySample {
        MemorySample { level, ..MemorySample::default() }
    }

    #[test]
    fn a_reader_is_woken_once_for_a_change_and_not_for_a_sample_without_one() {
        let (publisher, mut watch) = channel();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        {
            let mut changed = pin!(watch.changed());
            assert!(changed.as_mut().poll(&mut context).is_pending());
            assert!(changed.as_mut().poll(&mut context).is_pending());
            publisher.publish(at(Level::Normal));
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
            publisher.publish(at(Level::High));
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
            assert_eq!(changed.as_mut().poll(&mut context), Poll::Ready(Some(Level::High)));
        }
        // A clone has seen what the original has.
        assert!(pin!(watch.clone().changed()).poll(&mut context).is_pending());
        drop(publisher);
        assert_eq!(pin!(watch.changed()).poll(&mut context), Poll::Ready(None));
    }

    #[test]
    fn a_reader_that_goes_leaves_no_waker() {
        let (publisher, mut watch) = channel();
        let waker = Waker::from(Arc::new(Count::default()));
        let mut context = Context::from_waker(&waker);
        assert!(pin!(watch.changed()).poll(&mut context).is_pending());
        assert_eq!(publisher.0.state.lock().wakers.len(), 1);
        drop(watch);
        assert_eq!(publisher.0.state.lock().wakers.len(), 0);
    }

    #[test]
    fn a_thread_waits_for_a_change_or_its_time() {
        let (publisher, mut watch) = channel();
        assert_eq!(watch.wait(Duration::ZERO), None);
        let thread = std::thread::spawn(move || watch.wait(Duration::from_secs(60)));
        publisher.publish(at(Level::Critical));
        assert_eq!(thread.join().expect("no panic"), Some(Level::Critical));
    }
}
