//! Gathers gets that are asked for at the same time into MGETs.
//!
//! One task per connection takes whatever waits, up to the most that one MGET may ask for, and sends
//! it, as long as no more than `in_flight` batches are under way. Nobody waits for company: a lone get
//! is sent at once, and batches grow by themselves while earlier ones are on their way. One get per
//! connection may go without the task ([`Lane::alone`]), which spares a lone get two hand-overs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use resilience::Outcome;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::client::{Fetched, RemoteError};
use super::{Lookup, Shared};

/// Where gets ask for one connection.
#[derive(Debug)]
pub(super) struct Lane {
    index: usize,
    requests: mpsc::Sender<Request>,
    is_taken: AtomicBool,
}

impl Lane {
    /// A lane, and what [`run`] serves for it.
    pub(super) fn new(index: usize, queue: usize) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(queue);
        (Self { index, requests, is_taken: AtomicBool::new(false) }, receiver)
    }

    /// Puts a request into the queue; `false` if that is full.
    pub(super) fn try_send(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// The leave to look a name up without the task, if nobody has it.
    pub(super) fn alone(&self) -> Option<Alone<'_>> {
        // Relaxed: it guards nothing but a number of look-ups.
        (!self.is_taken.swap(true, Ordering::Relaxed)).then_some(Alone(self))
    }
}

/// The leave to look one name up; given back when dropped.
pub(super) struct Alone<'a>(&'a Lane);

impl Alone<'_> {
    pub(super) async fn look_up(shared: &Shared, lane: usize, names: Vec<Bytes>) -> Vec<Reply> {
    let count = names.len();
    let Some(permit) = shared.permit() else {
        return vec![Reply::Rejected; count];
    };
    shared.counters.batches.increment();
    shared.counters.batched_keys.add(count as u64);
    let start = Instant::now();
    let answer = timeout(shared.config.timeout, shared.client.get_many(lane, names)).await;
    let now = Instant::now();
    let fetched = answer.unwrap_or_else(|_| Fetched::failed(count, RemoteError::Timeout));
    let outcome = if fetched.is_answer() { Outcome::Success } else { Outcome::Failure };
    permit.complete_at(outcome, now.into_std());
    if fetched.is_answer() {
        shared.observe_latency(now - start);
    }
    // A new connection may lead to a server that has forgotten writes; upkeep has to look first.
    if shared.verified[lane].load(Ordering::Acquire) != shared.client.connection(lane) {
        shared.wake.notify_one();
        return vec![Reply::Rejected; count];
    }
    let failure = match &fetched.error {
        Some(RemoteError::Timeout) => Reply::Timeout,
        _ => Reply::Error,
    };
    let reply = |value| match value {
        Lookup::Hit(value) => Reply::Hit(value),
        Lookup::Miss => Reply::Miss,
        Lookup::Unavailable => failure.clone(),
    };
    fetched.values.into_iter().map(reply).collect()
}
