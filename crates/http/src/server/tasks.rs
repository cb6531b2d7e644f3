//! The tasks of a server: how a drain reaches them, waits for them and cuts them.
//!
//! Each task joins the registry with its connection's notes and its waker. A drain moves one shared
//! state forward, wakes everybody and waits until the registry is empty. A running connection also
//! watches its own limits here, with one timer that is set only when a limit comes nearer.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};

use super::{
    ServerLimits,
    client::{Client, millis},
};

const RUNNING: u8 = 0;
pub(super) const DRAINING: u8 = 1;
pub(super) const ABORTING: u8 = 2;

/// All tasks of a server, so that a drain can reach them and wait for them.
#[derive(Debug)]
pub(super) struct Tasks {
    state: AtomicU8,
    started: Instant,
    accepted: AtomicU64,
    registry: Mutex<Registry>,
    emptied: Notify,
}

#[derive(Default)]
struct Registry {
    /// The accept task still holds the listener.
    accepting: bool,
    next: u64,
    members: HashMap<u64, Entry>,
}

struct Entry {
    waker: Option<Waker>,
    client: Weak<Client>,
}

impl Registry {
    fn is_empty(&self) -> bool {
        !self.accepting && self.members.is_empty()
    }

    fn requests(&self) -> usize {
        let mut seen = HashSet::new();
        self.members
            .values()
            .filter_map(|entry| entry.client.upgrade())
            // A tunnel's task and its connection's share one client while they overlap.
            .filter(|client| seen.insert(Arc::as_ptr(client)))
            .map(|client| client.requests())
            .sum()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU8::new(RUNNING),
            started: Instant::now(),
            accepted: AtomicU64::new(0),
            registry: Mutex::default(),
            emptied: Notify::new(),
        }
    }

    pub(super) fn note_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn members(&self) -> usize {
        self.registry.lock().members.len()
    }

    /// Returns how many requests and tunnels are under way on all connections.
    pub(super) fn requests(&self) -> usize {
        self.registry.lock().requests()
    }

    pub(super) fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    pub(super) fn join(client: &Arc<Client>) -> Member {
        let tasks = Arc::clone(client.tasks());
        let mut registry = tasks.registry.lock();
        let id = registry.next;
        registry.next += 1;
        let entry = Entry { waker: None, client: Arc::downgrade(client) };
        registry.members.insert(id, entry);
        drop(registry);
        Member { id, tasks, client: Arc::clone(client) }
    }

    /// Moves to a later state and lets every task see it.
    pub(super) fn advance(&self, state: u8) {
        // Before the lock: a task that registers its waker after this loop reads the new state.
        self.state.fetch_max(state, Ordering::Release);
        let wakers: Vec<_> = {
            let registry = self.registry.lock();
            let members = registry.members.values();
            members.filter_map(|entry| entry.waker.clone()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    pub(super) async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            let mut notified = pin!(notified);
            notified.as_mut().enable();
            if self.registry.lock().is_empty() {
                return;
            }
            notified.await;
        }
    }
}

/// Says that the accept task runs; dropped after the listener.
pub(super) struct Accepting(Arc<Tasks>);

impl Accepting {
    pub(super) fn begin(tasks: &Arc<Tasks>) -> Self {
        tasks.registry.lock().accepting = true;
        Self(Arc::clone(tasks))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        let mut registry = self.0.registry.lock();
        registry.accepting = false;
        let empty = registry.is_empty();
        drop(registry);
        if empty {
            self.0.emptied.notify_waiters();
        }
    }
}

/// A task's place among the others; leaves when dropped.
pub(super) struct Member {
    id: u64,
    tasks: Arc<Tasks>,
    client: Arc<Client>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut registry = self.tasks.registry.lock();
        registry.members.remove(&self.id);
        let empty = registry.is_empty();
        drop(registry);
        if empty {
            self.tasks.emptied.notify_waiters();
        }
    }
}

impl Member {
    fn register(&self, waker: &Waker) {
        let mut registry = self.tasks.registry.lock();
        if let Some(entry) = registry.members.get_mut(&self.id) {
            entry.waker = Some(waker.clone());
        }
    }

    /// Runs `future` until the state reaches `limit`.
    async fn until<F: Future>(&self, limit: u8, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut registered = false;
        poll_fn(|cx| {
            // The task's waker stays the same for all its life.
            if !registered {
                registered = true;
                self.register(cx.waker());
            }
            if self.tasks.state() >= limit {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }

    pub(super) async fn unless_draining<F: Future>(&self, future: F) -> Option<F::Output> {
        self.until(DRAINING, future).await
    }

    pub(super) async fn unless_aborting<F: Future>(&self, future: F) -> Option<F::Output> {
        self.until(ABORTING, future).await
    }

    /// Runs a connection under its limits until it ends, is told to drain, or is cut.
    pub(super) async fn run<C>(
        &self,
        mut conn: Pin<&mut C>,
        limits: &ServerLimits,
        drain: impl Fn(Pin<&mut C>),
    ) -> Result<(), hyper::Error>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut watch = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = 0;
        let mut draining = false;
        let served = poll_fn(|cx| {
            if !draining && self.tasks.state() >= DRAINING {
                draining = true;
                drain(conn.as_mut());
            }
            if let Poll::Ready(end) = conn.as_mut().poll(cx) {
                return Poll::Ready(Some(end));
            }
            while self.is_overdue(watch.as_mut(), &mut armed, limits, cx) {
                if !self.client.end_idling() {
                    return Poll::Ready(None);
                }
                // HTTP/2 tells the client; then it has as long as a head may take to hang up.
                draining = true;
                drain(conn.as_mut());
                if let Poll::Ready(end) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Some(end));
                }
            }
            Poll::Pending
        });
        match self.unless_aborting(served).await {
            Some(Some(end)) => end,
            Some(None) | None => Ok(()),
        }
    }

    /// Keeps `watch` at the earliest moment at which a limit could have passed, and tells whether
    /// one has.
    fn is_overdue(
        &self,
        mut watch: Pin<&mut Sleep>,
        armed: &mut u64,
        limits: &ServerLimits,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(deadline) = self.client.deadline(limits) else {
            return false;
        };
        loop {
            // An early timer is left alone: it finds out when it fires. Only a limit that comes
            // before it moves it.
            if *armed == 0 || deadline < *armed {
                *armed = deadline.max(1);
                let at = self.tasks.started + Duration::from_millis(*armed);
                watch.as_mut().reset(at);
            } else if !watch.is_elapsed() {
                // Registered with this task's waker when it was armed.
                return false;
            }
            if watch.as_mut().poll(cx).is_pending() {
                return false;
            }
            *armed = 0;
            if self.tasks.now() >= deadline {
                return true;
            }
        }
    }
}
