//! The scheduler's timer: one thread that ends what waited or ran too long, and wakes what waits.
//!
//! It holds an entry for each task with a time limit and each attempt to come, and the entry goes when
//! the task does, so it is bounded by the tasks. The thread sleeps until the first entry is due.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::task::TaskId;

/// What is due.
#[derive(Debug)]
pub(crate) enum Due {
    /// The task has waited too long, if it still waits.
    Wait(TaskId),
    /// The task has run too long, if it still runs.
    Run(TaskId),
    /// The time before the next attempt is over.
    Attempt(TaskId),
    /// Somebody waits until then.
    Wake(Waker),
    /// It is time to look at the limits and at who holds a worker.
    Tick,
}

/// Names an entry, to take it out.
pub(crate) type Key = (Instant, u64);

pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Key, Due>,
    numbers: u64,
    stopped: bool,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Makes a timer; nothing is due before [`start`](Self::start).
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread that hands what is due to `fire`, all that is due at a time together.
    ///
    /// It ends when `fire` returns `false`, or with [`stop`](Self::stop).
    pub(crate) fn start(
        self: &Arc<Self>,
        mut fire: impl FnMut(Vec<Due>, Instant) -> bool + Send + 'static,
    ) -> io::Result<()> {
        let timer = Arc::clone(self);
        let name = "scheduler-timer".to_owned();
        let thread = thread::Builder::new().name(name).spawn(move || {
            while let Some((due, now)) = timer.wait() {
                if !fire(due, now) {
                    break;
                }
            }
        })?;
        self.state.lock().thread = Some(thread);
        Ok(())
    }

    /// Waits until something is due; none when the timer has stopped.
    fn wait(&self) -> Option<(Vec<Due>, Instant)> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let Some((&(first, _), _)) = state.entries.first_key_value() else {
                self.changed.wait(&mut state);
                continue;
            };
            let now = Instant::now();
            if first > now {
                self.changed.wait_until(&mut state, first);
                continue;
            }
            let later = state.entries.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.entries, later);
            return Some((due.into_values().collect(), now));
        }
    }

    /// Adds an entry; a time too far to be told is never due and gives no key.
    pub(crate) fn add(&self, now: Instant, after: Duration, due: Due) -> Option<Key> {
        let at = now.checked_add(after)?;
        let mut state = self.state.lock();
        state.numbers += 1;
        let key = (at, state.numbers);
        let first = state.entries.first_key_value().is_none_or(|(first, _)| key < *first);
        state.entries.insert(key, due);
        drop(state);
        if first {
            self.changed.notify_one();
        }
        Some(key)
    }

    /// Takes an entry out, if it has not been due.
    pub(crate) fn remove(&self, key: Key) {
        self.state.lock().entries.remove(&key);
    }

    /// Ends the thread and waits for it, at most `patience`; never waits in the thread itself.
    pub(crate) fn stop(&self, patience: Duration) {
        let thread = {
            let mut state = self.state.lock();
            state.stopped = true;
            state.entries.clear();
            state.thread.take()
        };
        self.changed.notify_all();
        let Some(thread) = thread.filter(|it| it.thread().id() != thread::current().id()) else {
            return;
        };
        let end = Instant::now() + patience;
        // It may be in somebody's waker or drop, and these may take as long as they like.
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_micros(100));
        }
        if thread.is_finished() {
            // A panic there has been reported by the hook, and there is nothing left to do.
            let _ = thread.join();
        }
    }

    /// Waits until `end`, or for ever without one, for what `poll` gives.
    pub(crate) async fn until<T>(
        &self,
        end: Option<Instant>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        let mut alarm = Alarm { timer: self, key: None };
        std::future::poll_fn(move |context| {
            if let Poll::Ready(value) = poll(context) {
                return Poll::Ready(Some(value));
            }
            let Some(end) = end else { return Poll::Pending };
            let now = Instant::now();
            if now >= end {
                return Poll::Ready(None);
            }
            // Set anew each time, since the waker may be another one.
            alarm.clear();
            alarm.key = self.add(now, end - now, Due::Wake(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Entries that are not due yet.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().entries.len()
    }
}

/// An entry that goes when it is dropped.
struct Alarm<'a> {
    timer: &'a Timer,
    key: Option<Key>,
}

impl Alarm<'_> {
    fn clear(&mut self) {
        if let Some(key) = self.key.take() {
            self.timer.remove(key);
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn id(sequence: u64) -> TaskId {
        TaskId::new(crate::Lane::Cpu, 0, sequence)
    }

    #[test]
    fn what_is_due_comes_in_order_and_what_was_taken_out_does_not() {
        let timer = Timer::new();
        let now = Instant::now();
        let ms = Duration::from_millis;
        timer.add(now, ms(2), Due::Run(id(2)));
        let gone = timer.add(now, ms(1), Due::Wait(id(1))).expect("a near time");
        timer.add(now, ms(0), Due::Attempt(id(3)));
        assert!(timer.add(now, Duration::MAX, Due::Wait(id(4))).is_none());
        timer.remove(gone);
        let (sender, seen) = sync_channel(8);
        let fire = move |due: Vec<Due>, _| {
            due.into_iter().for_each(|due| sender.send(due).expect("the test listens"));
            true
        };
        timer.start(fire).expect("a thread can be started");
        assert!(matches!(seen.recv(), Ok(Due::Attempt(it)) if it == id(3)));
        assert!(matches!(seen.recv(), Ok(Due::Run(it)) if it == id(2)));
        assert_eq!(timer.len(), 0);
        timer.stop(Duration::from_secs(60));
        assert!(seen.recv().is_err(), "the thread has ended");
    }
}
