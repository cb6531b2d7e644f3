//! The bounded queue of writes that a lower tier has still to make.
//!
//! A write is pending from the moment it is pushed until the tier has made it. Until then the queue
//! answers for the tier: [`lookup`](WriteBehind::lookup) sees the newest pending write of a key, so an
//! entry that memory has already lost is not read back in an older version. A key is pending at most
//! once: a newer write takes the place of an older one that has not begun, so the queue never holds
//! more than its bound in keys, however often one key is written.
//!
//! One worker takes batches, in the order in which keys became pending, and reports each as done. A
//! write that arrives while the worker is busy with its key queues the key once more.

use std::collections::VecDeque;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};
use quick_cache::DefaultHashBuilder;
use tokio::sync::{Notify, oneshot};

use crate::lower::{Room, Write};

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// The value is not written, but the removal of what the tier holds for the key is queued.
    Displaced,
    /// Nothing is pending for the key; what the tier holds for it is out of date.
    Refused,
}

struct Pending<V> {
    write: Write<V>,
    sequence: u64,
    /// Whether the key stands in `order`; if not, the worker has taken it.
    queued: bool,
}

/// Something for the worker to do once everything that was pushed before has been made.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

enum Step<K> {
    Write(K),
    Errand(Errand),
}

struct State<K, V> {
    pending: HashMap<K, Pending<V>, DefaultHashBuilder>,
    /// Each queued key once, and the errands of calls that wait for them.
    order: VecDeque<Step<K>>,
    weight: u64,
    next_sequence: u64,
    closed: bool,
}

pub(crate) struct WriteBehind<K, V> {
    state: Mutex<State<K, V>>,
    /// For a worker that is a thread.
    work: Condvar,
    /// For a worker that is a task.
    work_async: Notify,
    max_entries: usize,
    max_weight: u64,
}

/// What a worker has to do next.
pub(crate) enum Work<K, V> {
    Batch(Vec<Taken<K, V>>),
    Errand(Errand),
    Nothing,
    /// Closed, and everything is done.
    Finished,
}

/// A write in the worker's hands.
pub(crate) struct Taken<K, V> {
    pub(crate) key: K,
    pub(crate) write: Write<V>,
    sequence: u64,
}

/// The worker's end of a queue. When the worker is gone, whatever the reason, nobody waits for it.
pub(crate) struct Worker<K, V>(Arc<WriteBehind<K, V>>);

impl<K, V> Worker<K, V> {
    pub(crate) fn of(queue: &Arc<WriteBehind<K, V>>) -> Self {
        Self(Arc::clone(queue))
    }
}

impl<K, V> Deref for Worker<K, V> {
    type Target = WriteBehind<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<K, V> Drop for Worker<K, V> {
    fn drop(&mut self) {
        // What is pending stays, and answers for the tier as before.
        let mut state = self.0.state.lock();
        state.closed = true;
        let order = std::mem::take(&mut state.order);
        drop(state);
        // With the errands go the senders that their callers listen to.
        drop(order);
    }
}

impl<K, V> WriteBehind<K, V> {
    fn wake(&self) {
        self.work.notify_one();
        self.work_async.notify_one();
    }

    /// Takes no more writes; the worker finishes what is pending and ends.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
    }
}

impl<K: Hash + Eq + Clone, V> WriteBehind<K, V> {
    pub(crate) fn new(max_entries: usize, max_weight: u64) -> Self {
        Self {
            state: Mutex::new(State {
                pending: HashMap::default(),
                order: VecDeque::new(),
                weight: 0,
                next_sequence: 0,
                closed: false,
            }),
            work: Condvar::new(),
            work_async: Notify::new(),
            max_entries,
            max_weight,
        }
    }

    /// Makes `write` the pending write of `key`.
    ///
    /// A put that does not fit takes the key's older pending write along. `force` lets a removal in
    /// above the bound; who forces bounds the number of keys for which that happens. The caller keeps
    /// a clone of `write`, and drops that and the replaced write that is returned once it holds no
    /// lock: they may be the last of a value.
    pub(crate) fn push(&self, key: &K, write: Write<V>, force: bool) -> (Pushed, Option<Write<V>>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        let outcome = if let Some(pending) = state.pending.get_mut(key) {
            let rest = state.weight - pending.write.weight();
            let fits = write.weight() == 0 || rest + write.weight() <= self.max_weight;
            let (pushed, write) = match fits && !state.closed {
                true => (Pushed::Queued, write),
                false => (Pushed::Displaced, Write::Remove),
            };
            state.weight = rest + write.weight();
            pending.sequence = sequence;
            if !std::mem::replace(&mut pending.queued, true) {
                state.order.push_back(Step::Write(key.clone()));
            }
            (pushed, Some(std::mem::replace(&mut pending.write, write)))
        } else {
            let fits = state.pending.len() < self.max_entries
                && (write.weight() == 0 || state.weight + write.weight() <= self.max_weight);
            if state.closed || !(fits || force) {
                return (Pushed::Refused, None);
            }
            state.weight += write.weight();
            state.pending.insert(key.clone(), Pending { write, sequence, queued: true });
            state.order.push_back(Step::Write(key.clone()));
            (Pushed::Queued, None)
        };
        drop(guard);
        self.wake();
        outcome
    }

    /// Whether a put of this weight would be queued now.
    pub(crate) fn room(&self, weight: u64) -> Room {
        let state = self.state.lock();
        if state.closed {
            Room::Closed
        } else if state.pending.len() < self.max_entries
            && state.weight.saturating_add(weight) <= self.max_weight
        {
            Room::Free
        } else {
            Room::Full
        }
    }

    /// The newest pending write of a key.
    pub(crate) fn lookup(&self, key: &K) -> Option<Write<V>> {
        let state = self.state.lock();
        if state.pending.is_empty() {
            return None;
        }
        state.pending.get(key).map(|pending| pending.write.clone())
    }

    /// Takes up to `max` writes, or says that there is nothing to do.
    pub(crate) fn take(&self, max: usize) -> Work<K, V> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut batch = Vec::new();
        while batch.len() < max {
            match state.order.pop_front() {
                Some(Step::Write(key)) => {
                    let Some(pending) = state.pending.get_mut(&key) else { continue };
                    pending.queued = false;
                    let (write, sequence) = (pending.write.clone(), pending.sequence);
                    batch.push(Taken { key, write, sequence });
                }
                Some(Step::Errand(errand)) if batch.is_empty() => return Work::Errand(errand),
                Some(errand) => {
                    state.order.push_front(errand);
                    break;
                }
                None => break,
            }
        }
        match batch.is_empty() {
            false => Work::Batch(batch),
            true if state.closed => Work::Finished,
            true => Work::Nothing,
        }
    }

    /// Reports writes as made. A key that was written again meanwhile stays pending.
    pub(crate) fn done(&self, batch: Vec<Taken<K, V>>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut dropped = Vec::with_capacity(batch.len());
        for taken in &batch {
            if state.pending.get(&taken.key).is_some_and(|it| it.sequence == taken.sequence)
                && let Some(pending) = state.pending.remove(&taken.key)
            {
                state.weight -= pending.write.weight();
                dropped.push(pending);
            }
        }
        drop(guard);
        drop(dropped);
        drop(batch);
    }

    /// Blocks the worker's thread until there may be work.
    #[cfg(feature = "disk")]
    pub(crate) fn wait(&self) {
        let mut state = self.state.lock();
        while state.order.is_empty() && !state.closed {
            self.work.wait(&mut state);
        }
    }

    /// Waits until there may be work.
    #[cfg(feature = "__redis")]
    pub(crate) async fn wait_async(&self) {
        self.work_async.notified().await;
    }

    /// Makes a removal of every pending write, because the tier is about to be emptied.
    ///
    /// They are not dropped: until the tier is empty, each of them hides an older value in it.
    pub(crate) fn displace_all(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut displaced = Vec::with_capacity(state.pending.len());
        for (key, pending) in &mut state.pending {
            displaced.push(std::mem::replace(&mut pending.write, Write::Remove));
            pending.sequence = state.next_sequence;
            state.next_sequence += 1;
            // The worker has it in hand, and may write it yet.
            if !std::mem::replace(&mut pending.queued, true) {
                state.order.push_back(Step::Write(key.clone()));
            }
        }
        state.weight = 0;
        drop(guard);
        self.wake();
        drop(displaced);
    }

    /// Has the worker do something after all writes that are pending now; resolves with its result.
    ///
    /// `None` if the queue is closed, or if the worker is gone.
    pub(crate) async fn after_pending<T: Send + 'static>(
        &self,
        errand: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.closed {
                return None;
            }
            state.order.push_back(Step::Errand(Box::new(move || {
                // Whoever waited may have given up.
                let _ = tell.send(errand());
            })));
        }
        self.wake();
        told.await.ok()
    }

    /// Pending writes and their weight.
    pub(crate) fn depth(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.pending.len() as u64, state.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::Item;

    type Queue = WriteBehind<u32, &'static str>;

    fn put(value: &'static str) -> Write<&'static str> {
        Write::Put(Arc::new(Item::new(value, crate::clock::NEVER, 0, value.len() as u64)))
    }

    fn pending(queue: &Queue, key: u32) -> &'static str {
        match queue.lookup(&key) {
            Some(Write::Put(item)) => item.value,
            Some(Write::Remove) => "removed",
            None => "nothing",
        }
    }

    fn take(queue: &Queue, max: usize) -> Vec<Taken<u32, &'static str>> {
        match queue.take(max) {
            Work::Batch(batch) => batch,
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_newer_write_takes_the_place_of_an_older_one() {
        let queue = Queue::new(2, 100);
        queue.push(&1, put("old"), false);
        queue.push(&1, put("new"), false);
        assert_eq!(queue.depth(), (1, 3));
        let batch = take(&queue, 10);
        assert_eq!(batch.len(), 1);
        assert_eq!(pending(&queue, 1), "new");
        queue.done(batch);
        assert_eq!((pending(&queue, 1), queue.depth()), ("nothing", (0, 0)));
    }

    #[test]
    fn a_write_during_the_workers_own_stays_pending() {
        let queue = Queue::new(2, 100);
        queue.push(&1, put("old"), false);
        let first = take(&queue, 10);
        queue.push(&1, put("new"), false);
        queue.done(first);
        assert_eq!(pending(&queue, 1), "new");
        let second = take(&queue, 10);
        assert_eq!(second.len(), 1);
        queue.done(second);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_leaves_an_older_write_behind() {
        let queue = Queue::new(2, 10);
        let push = |key, write, force| queue.push(&key, write, force).0;
        assert_eq!(push(1, put("123456"), false), Pushed::Queued);
        assert_eq!((queue.room(4), queue.room(5)), (Room::Free, Room::Full));
        assert_eq!(push(2, put("123456"), false), Pushed::Refused);
        assert_eq!(push(1, put("12345678901"), false), Pushed::Displaced);
        assert_eq!(pending(&queue, 1), "removed");
        assert_eq!(push(2, put("2"), false), Pushed::Queued);
        assert_eq!(queue.room(0), Room::Full);
        assert_eq!(push(3, Write::Remove, false), Pushed::Refused);
        assert_eq!(push(3, Write::Remove, true), Pushed::Queued);
        assert_eq!(queue.depth(), (3, 1));
    }

    #[tokio::test]
    async fn an_errand_runs_after_the_writes_before_it_and_before_those_after() {
        let queue = Arc::new(Queue::new(10, 100));
        queue.push(&1, put("before"), false);
        let errand = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.after_pending(|| "done").await }
        });
        tokio::task::yield_now().await;
        queue.push(&2, put("after"), false);
        let batch = take(&queue, 10);
        assert_eq!(batch.iter().map(|taken| taken.key).collect::<Vec<_>>(), [1]);
        queue.done(batch);
        let Work::Errand(work) = queue.take(10) else { panic!("the errand is next") };
        work();
        assert_eq!(errand.await.unwrap(), Some("done"));
        assert_eq!(take(&queue, 10).len(), 1);
    }

    #[test]
    fn a_closed_queue_finishes_what_it_has_and_takes_nothing() {
        let queue = Queue::new(10, 100);
        queue.push(&1, put("last"), false);
        queue.close();
        assert_eq!(queue.push(&2, put("late"), false).0, Pushed::Refused);
        assert_eq!(queue.room(0), Room::Closed);
        let batch = take(&queue, 10);
        queue.done(batch);
        assert!(matches!(queue.take(10), Work::Finished));
    }
    #[test]
    fn what_is_displaced_hides_the_tier_until_its_removal_has_been_made() {
        let queue = Queue::new(10, 100);
        queue.push(&1, put("in hand"), false);
        let in_hand = take(&queue, 10);
        queue.push(&2, put("waits"), false);
        queue.displace_all();
        assert_eq!((pending(&queue, 1), pending(&queue, 2)), ("removed", "removed"));
        queue.done(in_hand);
        assert_eq!(pending(&queue, 1), "removed", "the old value may just have been written");
        let removals = take(&queue, 10);
        assert_eq!(removals.len(), 2);
        queue.done(removals);
        assert_eq!((pending(&queue, 1), queue.depth()), ("nothing", (0, 0)));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_worker_that_is_gone() {
        let queue = Arc::new(Queue::new(10, 100));
        let worker = Worker::of(&queue);
        queue.push(&1, put("never written"), false);
        let errand = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.after_pending(|| "done").await }
        });
        tokio::task::yield_now().await;
        drop(worker);
        assert_eq!(errand.await.unwrap(), None);
        assert_eq!(queue.after_pending(|| "done").await, None);
        assert_eq!(pending(&queue, 1), "never written");
    }
}
