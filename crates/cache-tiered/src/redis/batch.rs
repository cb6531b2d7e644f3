//! Gathers gets that are asked for at the same time into MGETs.
//!
//! One task per connection takes whatever waits, up to the most that one MGET may ask for, and sends
//! it, as long as no more than `in_flight` batches are under way. Nobody waits for company: a lone get
//! is sent at once, and batches grow by themselves while earlier ones are on their way. A get that
//! finds nothing under way does without the task ([`Lane::alone`]), which spares it two hand-overs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// Look-ups under way.
    busy: Arc<AtomicUsize>,
}

/// The other end of a lane, for the task.
#[derive(Debug)]
pub(super) struct Queue {
    index: usize,
    requests: mpsc::Receiver<Request>,
    busy: Arc<AtomicUsize>,
}

/// One look-up under way, until it is dropped.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        // Relaxed, as everywhere: the number guards nothing, it only tells who goes alone.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lane {
    pub(super) fn new(index: usize, queue: usize) -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel(queue);
        let busy = Arc::new(AtomicUsize::new(0));
        let queue = Queue { index, requests: receiver, busy: Arc::clone(&busy) };
        (Self { index, requests: sender, busy }, queue)
    }

    /// Puts a request into the queue; `false` if that is full.
    pub(super) fn try_send(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// The leave to look a name up without the task, if nothing is under way.
    pub(super) fn alone(&self) -> Option<Alone> {
        let taken = self.busy.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok().then(|| Alone { lane: self.index, _busy: Busy(Arc::clone(&self.busy)) })
    }
}

/// The leave to look one name up; given back when dropped.
pub(super) struct Alone {
    lane: usize,
    _busy: Busy,
}

impl Alone {
    pub(super) async fn look_up(self, shared: &Shared, name: Bytes) -> Reply {
        look_up(shared, self.lane, vec![name]).await.pop().unwrap_or(Reply::Error)
    }
}

/// What became of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Hit(Bytes),
    Miss,
    /// Nothing was sent.
    Rejected,
    Timeout,
    Error,
}

/// Names to look up, and where the replies go.
#[derive(Debug)]
pub(super) enum Request {
    One(Bytes, oneshot::Sender<Reply>),
    Many(Vec<Bytes>, oneshot::Sender<Vec<Reply>>),
}

impl Request {
    fn len(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many(names, _) => names.len(),
        }
    }

    /// Whether somebody still waits.
    fn is_wanted(&self) -> bool {
        match self {
            Self::One(_, reply) => !reply.is_closed(),
            Self::Many(_, reply) => !reply.is_closed(),
        }
    }
}

/// Serves the requests of one lane until the last sender is gone.
pub(super) async fn run(shared: Arc<Shared>, queue: Queue) {
    let Queue { index, mut requests, busy } = queue;
    let most = shared.config.batch;
    let mut under_way = FuturesUnordered::new();
    // The one that did not fit into the last batch.
    let mut left_over = None;
    loop {
        tokio::select! {
            biased;
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            first = next(&mut left_over, &mut requests),
                if under_way.len() < shared.config.in_flight =>
            {
                let Some(first) = first else { break };
                let mut names = first.len();
                let mut batch = vec![first];
                while names < most {
                    let Ok(next) = requests.try_recv() else { break };
                    if names + next.len() > most {
                        left_over = Some(next);
                        break;
                    }
                    names += next.len();
                    batch.push(next);
                }
                batch.retain(Request::is_wanted);
                if !batch.is_empty() {
                    busy.fetch_add(1, Ordering::Relaxed);
                    let busy = Busy(Arc::clone(&busy));
                    under_way.push(fetch(Arc::clone(&shared), index, batch, busy));
                }
            }
        }
    }
}

/// Dropped before it is ready, this has taken nothing.
async fn next(
    left_over: &mut Option<Request>,
    requests: &mut mpsc::Receiver<Request>,
) -> Option<Request> {
    match left_over.take() {
        Some(request) => Some(request),
        None => requests.recv().await,
    }
}

async fn fetch(shared: Arc<Shared>, lane: usize, batch: Vec<Request>, _busy: Busy) {
    let names = batch.iter().flat_map(|request| match request {
        Request::One(name, _) => std::slice::from_ref(name),
        Request::Many(names, _) => names,
    });
    let mut replies = look_up(&shared, lane, names.cloned().collect()).await.into_iter();
    for request in batch {
        // Whoever has given up meanwhile does not mind.
        match request {
            Request::One(_, reply) => drop(reply.send(replies.next().unwrap_or(Reply::Error))),
            Request::Many(names, reply) => {
                drop(reply.send(replies.by_ref().take(names.len()).collect()));
            }
        }
    }
}

async fn look_up(shared: &Shared, lane: usize, names: Vec<Bytes>) -> Vec<Reply> {
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
