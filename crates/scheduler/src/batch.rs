//! Batches: short tasks that a drainer takes together, so that they share the lane's lock.
//!
//! A task of some hundred nanoseconds costs less than the lock that every worker wants to start and end
//! it. So a drainer may *claim* several tasks at a time and run them one after the other: it starts
//! and ends them under a lock of its own, that of its batch, which nobody else wants as a rule. The lane's
//! table learns of it later, at the drainer's next turn - or earlier, because whoever holds the lane's
//! lock may *recall* all batches at any time: tasks that have not been started go back to where they
//! were in the queue, the one that runs is marked as running since it was started, and those that have
//! ended leave. So nothing is decided by an old picture: whoever has something more important, wants a
//! list, waits for a task, or has nothing to do, recalls first.
//!
//! A task is in exactly one hand: in the batch, or out of it by `next` (the owner runs it) or by `recall`
//! (it is queued again); both take it out under the batch's lock. The lock order is: the lane, then
//! one batch. Checked by the loom tests.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::Mutex;
use crate::task::TaskId;

#[cfg(all(test, loom))]
mod loom_tests;

/// The tasks that one drainer has claimed.
// Aligned, so that the batches of two workers share no line.
#[repr(align(128))]
pub(crate) struct Batch<T, E> {
    inner: Mutex<Inner<T, E>>,
}

struct Inner<T, E> {
    /// What was not started yet, in the order in which it will be.
    todo: VecDeque<T>,
    /// What the owner runs, and since when.
    current: Option<(TaskId, Instant)>,
    done: Vec<Done<E>>,
}

/// A task that the owner has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done<E> {
    pub(crate) id: TaskId,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) ending: E,
}

/// What whoever recalls a batch does with what is in it.
pub(crate) trait Recall<T, E> {
    /// A task that was not started; the last one comes first.
    fn give_back(&mut self, task: T);

    /// A task that has ended; `false` leaves it to the owner's next turn.
    fn ended(&mut self, done: &Done<E>) -> bool;

    /// A task that the owner runs.
    fn runs(&mut self, id: TaskId, since: Instant);
}

impl<T, E> Batch<T, E> {
    pub(crate) fn new() -> Self {
        let inner = Inner { todo: VecDeque::new(), current: None, done: Vec::new() };
        Self { inner: Mutex::new(inner) }
    }

    /// Puts claimed tasks in, behind `first`, which the owner starts now; the lane is locked.
    pub(crate) fn fill(&self, first: TaskId, now: Instant, tasks: impl Iterator<Item = T>) {
        let mut inner = self.inner.lock();
        inner.current = Some((first, now));
        inner.todo.extend(tasks);
    }

    /// Notes how the owner's task ended and gives the next; none if there is none left.
    pub(crate) fn next(&self, ending: E, now: Instant, id: impl Fn(&T) -> TaskId) -> Option<T> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some((id, started)) = inner.current.take() {
            inner.done.push(Done { id, started, ended: now, ending });
        }
        let next = inner.todo.pop_front()?;
        inner.current = Some((id(&next), now));
        Some(next)
    }

    /// Takes everything out but the task that the owner runs; the lane is locked.
    ///
    /// With `own` it is the owner, at its turn, and runs nothing that the batch knows of.
    pub(crate) fn recall(&self, own: bool, recall: &mut impl Recall<T, E>) {
        let mut inner = self.inner.lock();
        while let Some(task) = inner.todo.pop_back() {
            recall.give_back(task);
        }
        inner.done.retain(|done| !recall.ended(done));
        if let Some((id, since)) = inner.current {
            recall.runs(id, since);
        }
        if own {
            inner.current = None;
        }
    }
}
