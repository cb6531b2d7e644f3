//! Who waits for a place under a limit, in order.
//!
//! A place that becomes free is promised to whoever has waited longest and not been promised one yet; a
//! newcomer gets a place only if there is one that is promised to nobody. So nobody overtakes, and nobody
//! is handed an object that it may no longer want: a waiter that gives up passes its promise on.

use std::collections::VecDeque;
use std::task::Waker;

/// The queue, kept under the lock of the depot.
#[derive(Default)]
pub(super) struct Waiters {
    queue: VecDeque<Waiter>,
    next_id: u64,
    promised: usize,
}

struct Waiter {
    id: u64,
    waker: Waker,
    promised: bool,
}

/// The waker of somebody who was promised a place; to be woken where no lock is held.
#[derive(Default)]
#[must_use]
pub(super) struct Woken(Option<Waker>);

impl Woken {
    pub(super) fn wake(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
    }
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Promises the place that has become free.
    pub(super) fn wake(&mut self) -> Woken {
        let next = self.queue.iter_mut().find(|waiter| !waiter.promised);
        let Some(waiter) = next else { return Woken(None) };
        waiter.promised = true;
        self.promised += 1;
        Woken(Some(waiter.waker.clone()))
    }

    /// Whether somebody may take one of `places`: `me` if it waits, or a newcomer.
    pub(super) fn may_take(&self, me: Option<u64>, places: usize) -> bool {
        match me.and_then(|id| self.find(id)) {
            Some(at) if self.queue[at].promised => places > 0,
            _ => places > self.promised,
        }
    }

    /// Joins the queue, or stays in it with another waker; `None` if `max` are in it.
    pub(super) fn wait(&mut self, me: Option<u64>, waker: &Waker, max: usize) -> Option<u64> {
        if let Some(at) = me.and_then(|id| self.find(id)) {
            self.queue[at].waker.clone_from(waker);
            return me;
        }
        if self.queue.len() >= max {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push_back(Waiter { id, waker: waker.clone(), promised: false });
        Some(id)
    }

    /// Leaves the queue; tells whether there was a promise.
    pub(super) fn leave(&mut self, me: u64) -> bool {
        let Some(waiter) = self.find(me).and_then(|at| self.queue.remove(at)) else { return false };
        self.promised -= usize::from(waiter.promised);
        waiter.promised
    }

    fn find(&self, id: u64) -> Option<usize> {
        // Numbers rise along the queue.
        self.queue.binary_search_by_key(&id, |waiter| waiter.id).ok()
    }
}
