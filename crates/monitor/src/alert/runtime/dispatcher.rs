//! Whoever sends: a thread with a small tokio runtime of its own.
//!
//! It works whether the program has a runtime or not, and a program that starves its own does not keep its
//! alerts back. Each handler has a task that takes one message after the other from its outbox. The
//! handler itself is called on a thread that may block, so one that hangs or panics costs its own messages
//! and nobody else's: a hanging future is dropped at its limit, and while a handler blocks its thread beyond
//! that, its task waits for the thread and the outbox of that handler fills up to its bound.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::outboxes::{Next, Outboxes};
use crate::alert::delivery::DeliveryOptions;
use crate::alert::event::AlertEvent;
use crate::alert::handler::{AlertHandler, HandlerError, Message};
use crate::alert::journal::sync_folder;
use crate::clock::Clock;

/// How much longer than its limit a handler may take to give its thread back.
const GRACE: Duration = Duration::from_millis(500);

/// A handler and its options.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) handler: Arc<dyn AlertHandler>,
    pub(super) options: DeliveryOptions,
}

/// What handlers, the evaluation and the calls of users share.
pub(super) struct Post {
    pub(super) outboxes: Mutex<Outboxes>,
    /// Told after each message.
    drained: Condvar,
    handlers: ArcSwap<BTreeMap<Arc<str>, Served>>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

/// What a handler is called with.
enum Call {
    Message(Message),
    Refresh(Vec<Arc<AlertEvent>>),
}

/// A call that goes on although its time is over.
type Blocked = JoinHandle<Result<(), HandlerError>>;

impl Post {
    pub(super) fn new(outboxes: Outboxes, clock: Arc<dyn Clock>, runtime: Handle) -> Arc<Self> {
        let outboxes = Mutex::new(outboxes);
        let (drained, handlers) = (Condvar::new(), ArcSwap::default());
        Arc::new(Self { outboxes, drained, handlers, clock, runtime })
    }

    /// Serves these handlers from now on, and no others.
    pub(super) fn serve(self: &Arc<Self>, handlers: Vec<Served>) {
        let lanes: Vec<_> = handlers
            .iter()
            .map(|served| (served.options.clone(), served.handler.refresh_every()))
            .collect();
        let by_id = handlers.into_iter().map(|it| (Arc::clone(&it.options.id), it)).collect();
        self.handlers.store(Arc::new(by_id));
        let unserved = self.outboxes.lock().serve(&lanes, self.clock.now());
        for (id, wake) in unserved {
            self.runtime.spawn(Arc::clone(self).lane(id, wake));
        }
    }

    /// Runs a task beside those of the handlers.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Returns the handlers by their names.
    pub(super) fn handlers(&self) -> Arc<BTreeMap<Arc<str>, Served>> {
        self.handlers.load_full()
    }

    /// Serves one handler until it is gone.
    async fn lane(self: Arc<Self>, id: Arc<str>, wake: Arc<Notify>) {
        loop {
            // The state of an outbox is small, its journal a file in the page cache: short enough for a
            // runtime that does nothing else.
            let next = self.outboxes.lock().next(&id, self.clock.now().monotonic);
            let blocked = match next {
                Next::Gone => return,
                Next::Idle => {
                    wake.notified().await;
                    None
                }
                Next::Wait(wait) => {
                    // Woken early or not, the next look tells what is due.
                    let _ = timeout(wait, wake.notified()).await;
                    None
                }
                Next::Refresh(active) => {
                    let (result, blocked) = self.call(&id, Call::Refresh(active)).await;
                    if let Err(error) = result {
                        tracing::warn!(handler = %id, %error, "alerts that go on were not repeated");
                        self.outboxes.lock().refresh_failed(&id);
                    }
                    blocked
                }
                Next::Message(message) => {
                    let key = message.key.clone();
                    let (result, blocked) = self.call(&id, Call::Message(message)).await;
                    let mut outboxes = self.outboxes.lock();
                    match result {
                        Ok(()) => outboxes.succeeded(&id, &key),
                        Err(error) => outboxes.failed(&id, &key, &error, self.clock.now()),
                    }
                    drop(outboxes);
                    self.drained.notify_all();
                    blocked
                }
            };
            if let Some(blocked) = blocked {
                self.wait_for(&id, &wake, blocked).await;
            }
        }
    }

    /// Waits until a handler gives its thread back, or another takes its place.
    async fn wait_for(&self, id: &Arc<str>, wake: &Notify, mut blocked: Blocked) {
        let handler = |handlers: &BTreeMap<Arc<str>, Served>| {
            handlers.get(id).map(|served| Arc::clone(&served.handler))
        };
        let before = handler(&self.handlers.load());
        loop {
            let mut woken = pin!(wake.notified());
            tokio::select! {
                _ = &mut blocked => return,
                () = &mut woken => {}
            }
            let same = match (&before, handler(&self.handlers.load())) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, &now),
                _ => false,
            };
            if !same {
                return;
            }
        }
    }

    /// Calls a handler on a thread that may block, with its limit around it.
    async fn call(&self, id: &str, call: Call) -> (Result<(), HandlerError>, Option<Blocked>) {
        let Some(served) = self.handlers.load().get(id).cloned() else {
            return (Err(HandlerError::Unknown(id.to_owned())), None);
        };
        let limit = served.options.timeout;
        let at_ms = self.clock.now().unix_ms;
        let runtime = Handle::current();
        let mut task = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                let handling = match &call {
                    Call::Message(message) => served.handler.handle(message, at_ms),
                    Call::Refresh(active) => served.handler.refresh(active, at_ms),
                };
                timeout(limit, handling).await.unwrap_or(Err(HandlerError::TimedOut(limit)))
            })
        });
        match timeout(limit + GRACE, &mut task).await {
            Ok(Ok(result)) => (result, None),
            Ok(Err(ended)) => (Err(panicked(ended)), None),
            Err(_) => (Err(HandlerError::TimedOut(limit)), Some(task)),
        }
    }

    /// Calls a handler with one message, beside its outbox.
    pub(super) fn test(
        self: &Arc<Self>,
        id: Arc<str>,
        message: Message,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send + use<> {
        let post = Arc::clone(self);
        let task =
            self.runtime.spawn(async move { post.call(&id, Call::Message(message)).await.0 });
        async { task.await.unwrap_or(Err(HandlerError::Closed)) }
    }

    /// Waits until nothing waits to be sent, at most so long; returns whether that is so.
    pub(super) fn drain(&self, at_most: Duration) -> bool {
        let mut outboxes = self.outboxes.lock();
        outboxes.close();
        self.drained.wait_while_for(&mut outboxes, |it| !it.is_drained(), at_most);
        outboxes.is_drained()
    }

    /// Brings the journal to the disk, and replaces it by a snapshot if it has grown.
    ///
    /// Takes as long as the disk does, and holds nobody up meanwhile.
    pub(super) fn keep(&self, snapshot: bool) {
        let (sync, folder) = {
            let mut outboxes = self.outboxes.lock();
            (outboxes.journal.take_unsynced(), outboxes.journal.folder())
        };
        if let Some(Err(error)) = sync.map(|file| file.sync_data()) {
            tracing::error!(%error, "the journal of alerts was not brought to the disk");
        }
        let begun = {
            let outboxes = &mut *self.outboxes.lock();
            let due = snapshot || outboxes.journal.wants_snapshot();
            let at_ms = self.clock.now().unix_ms;
            due.then(|| outboxes.journal.begin_snapshot(&outboxes.kept, at_ms)).flatten()
        };
        if let Some(begun) = begun {
            let written = begun.write();
            self.outboxes.lock().journal.end_snapshot(written);
            if let Some(folder) = folder {
                sync_folder(&folder);
            }
        }
    }
}

/// Says what a task panicked with.
fn panicked(ended: tokio::task::JoinError) -> HandlerError {
    let Ok(panic) = ended.try_into_panic() else { return HandlerError::Closed };
    let text = match panic.downcast_ref::<&str>() {
        Some(text) => Some((*text).to_owned()),
        None => panic.downcast_ref::<String>().cloned(),
    };
    HandlerError::Panicked(text.unwrap_or_else(|| "without a text".to_owned()))
}
