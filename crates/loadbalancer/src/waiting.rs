//! The queue of those who wait for a place, served in the order in which they came.
//!
//! A waiter queues under the lock, then every node is flagged, then the front tries once more; see
//! `node` for why no place can be given back in between without notice. A release that finds the flag
//! comes here and serves the front for as long as there is room. What was found is delivered outside
//! of the lock, since a receiver that is gone gives its place back, which comes here again. When the
//! queue is found empty the flags go.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::node::Node;
use crate::sync::{AtomicU32, Mutex, Relaxed, lock};

/// A queue with a bound.
pub(crate) struct Waiters<W> {
    queue: Mutex<Queue<W>>,
    /// As many as queue, for those who only ask whether anybody does.
    len: AtomicU32,
    limit: usize,
}

struct Queue<W> {
    waiters: VecDeque<(u64, W)>,
    next: u64,
}

impl<W> Waiters<W> {
    pub(crate) fn new(limit: usize) -> Self {
        let queue = Queue { waiters: VecDeque::new(), next: 0 };
        Self { queue: Mutex::new(queue), len: AtomicU32::new(0), limit }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Relaxed) as usize
    }

    /// Queues, unless the queue is full; the number is for [`remove`](Self::remove).
    pub(crate) fn push(&self, waiter: W) -> Option<u64> {
        let mut queue = lock(&self.queue);
        if queue.waiters.len() >= self.limit {
            return None;
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiters.push_back((number, waiter));
        self.len.store(queue.waiters.len() as u32, Relaxed);
        Some(number)
    }

    /// Takes a waiter out, if it is still there.
    pub(crate) fn remove(&self, number: u64) {
        let mut queue = lock(&self.queue);
        // Numbers go up from front to back.
        if let Ok(at) = queue.waiters.binary_search_by_key(&number, |(number, _)| *number) {
            queue.waiters.remove(at);
            self.len.store(queue.waiters.len() as u32, Relaxed);
        }
    }

    /// Serves from the front until `find` finds nothing.
    ///
    /// `nodes` are those whose releases may make room.
    pub(crate) fn serve<T>(
        &self,
        nodes: impl Fn() -> Arc<[Arc<Node>]>,
        mut find: impl FnMut(&W) -> Option<T>,
        mut deliver: impl FnMut(W, T),
    ) {
        loop {
            let mut queue = lock(&self.queue);
            let Some((_, front)) = queue.waiters.front() else {
                nodes().iter().for_each(|node| node.stop_awaiting());
                return;
            };
            nodes().iter().for_each(|node| node.await_places());
            let Some(found) = find(front) else { return };
            let (_, waiter) = queue.waiters.pop_front().expect("it has a front");
            self.len.store(queue.waiters.len() as u32, Relaxed);
            drop(queue);
            deliver(waiter, found);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Weak;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::node::Fleet;

    fn node(limit: u32) -> Arc<[Arc<Node>]> {
        let fleet = Arc::new(Fleet::new(Duration::ZERO));
        let node = Node::new("a".into(), Instant::now(), fleet, Weak::new());
        node.set_limit(limit);
        Arc::new([Arc::new(node)])
    }

    fn served(waiters: &Waiters<char>, nodes: &Arc<[Arc<Node>]>) -> String {
        let mut order = String::new();
        let find = |_: &char| nodes[0].try_enter(0).then_some(());
        waiters.serve(|| Arc::clone(nodes), find, |waiter, ()| order.push(waiter));
        order
    }

    #[test]
    fn the_first_to_come_is_the_first_to_be_served() {
        let (waiters, nodes) = (Waiters::new(3), node(2));
        let numbers: Vec<_> = "abcd".chars().map(|waiter| waiters.push(waiter)).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2), None], "the fourth is one too many");
        assert_eq!(served(&waiters, &nodes), "ab");
        assert_eq!(waiters.len(), 1);
        assert!(nodes[0].leave().awaited);
        assert_eq!(served(&waiters, &nodes), "c");
        assert_eq!(served(&waiters, &nodes), "");
        assert!(!nodes[0].leave().awaited, "nobody is left");
    }

    #[test]
    fn who_leaves_the_queue_is_passed_over() {
        let (waiters, nodes) = (Waiters::new(9), node(9));
        for waiter in "abc".chars() {
            waiters.push(waiter);
        }
        waiters.remove(1);
        waiters.remove(1);
        waiters.remove(7);
        assert_eq!(waiters.len(), 2);
        assert_eq!(served(&waiters, &nodes), "ac");
    }
}
