//! Being told what other machines change, so that memory does not keep what Redis no longer has.
//!
//! A cache that follows its namespace lets an entry in memory go as soon as another machine has written
//! or removed its key. The server tells it, by one of two ways:
//!
//! - **Tracking.** `CLIENT TRACKING` in broadcast mode names every key with the namespace's prefix that
//!   is written, removed, evicted or expired. It is asked for on the connection that writes, with
//!   `NOLOOP`, so that the cache's own writes stay in memory.
//! - **Publish and subscribe**, where the server does not track. Who writes publishes the names on the
//!   namespace's channel when Redis has acknowledged the writes; a write counts as made only if that
//!   was acknowledged, too. The sender's number in a message tells one's own.
//!
//! **Nothing is missed silently.** Pushes stop with a connection, come from each node of a cluster by
//! itself, and are dropped where a buffer is full. Whatever of that happens, the client says
//! [`Push::Lost`]: the tier asks anew (`upkeep`), and when it has been promised all pushes from then on,
//! memory is emptied and all values on their way into it are overtaken. So what memory holds was read or
//! written after the promise, or is named by a push that is still to be worked off. Between a loss and
//! the new promise memory answers as it would without all this: at most as stale as a time to live.
//! [`RedisStats::coherent`](super::RedisStats::coherent) says whether that is so.
//!
//! A server tells of a removal only if there was something to remove. What only the memories and disks of
//! machines hold has to be told of, too, so a removal puts an empty value there first, for as long as it
//! takes to remove it again.
//!
//! At the start there is nothing to empty for: the keys that came before the first promise are
//! remembered, and these alone are let go. What was brought from a snapshot or a list is not among
//! them.
//!
//! **A cluster's nodes** come and go without a word to those who have no business with their slots, so the
//! client looks at the cluster's epoch every few seconds.
//!
//! **The namespace's version** has a name with that prefix as well: another machine's clear is a push,
//! the upkeep reads the version at once, and a version that was replaced empties memory. Names of older
//! versions, which expire in masses after a clear, are ignored. A server that is emptied by `FLUSHALL` or
//! `FLUSHDB` tells no names, and a client may not pass that on; then the missing version tells it within
//! about a second, to whoever looks first, and the version that this one makes tells all others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::client::{Command, Follow, Push, RemoteClient, RemoteError};
use super::config::Coherence;
use super::keys::Name;
use super::{Names, Shared};

/// The most names that wait to be worked off, and their bytes; beyond either, all is lost.
const NAMES_MAX: usize = 65_536;
const BYTES_MAX: usize = 16 << 20;
/// What a name costs in the queue beside its bytes.
const NAME_BYTES: usize = 32;
/// Names that are worked off in one go.
const NAMES_AT_ONCE: usize = 64;
/// What a message begins with.
const MESSAGE_FORMAT: u8 = 1;

/// Where a client puts what it was told. Takes anything at once, and holds a bounded part of it.
#[derive(Debug, Default)]
pub(super) struct PushQueue {
    waiting: Mutex<Waiting>,
    ready: Notify,
    losses: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    pushes: VecDeque<Push>,
    names: usize,
    bytes: usize,
    lost: bool,
    empty: bool,
    /// A promise that all pushes come from now on, given after so many losses.
    promised: Option<u64>,
}

/// What is to be worked off next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Push(Push),
    /// Memory is to be emptied, for a promise given after so many losses or for another reason.
    Empty(Option<u64>),
}

impl PushQueue {
    /// Puts a push in.
    pub(super) fn push(&self, push: Push) {
        let (names, bytes) = match &push {
            Push::Changed(names) => {
                (names.len(), names.iter().map(|name| name.len() + NAME_BYTES).sum())
            }
            Push::Message(message) => (1, message.len() + NAME_BYTES),
            Push::Lost => (usize::MAX, usize::MAX),
        };
        let mut waiting = self.waiting.lock();
        let (names, bytes) =
            (waiting.names.saturating_add(names), waiting.bytes.saturating_add(bytes));
        if names > NAMES_MAX || bytes > BYTES_MAX {
            // What the promise to come makes of memory is all that these could have done.
            waiting.pushes.clear();
            (waiting.names, waiting.bytes) = (0, 0);
            waiting.lost = true;
            // Release: who sees the count sees what made it. Under the lock only to go with `lost`.
            self.losses.fetch_add(1, Ordering::Release);
        } else {
            waiting.pushes.push_back(push);
            (waiting.names, waiting.bytes) = (names, bytes);
        }
        drop(waiting);
        self.ready.notify_one();
    }

    /// Counts the losses so far.
    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Has memory emptied, because of a promise that was given after so many losses, if it says so.
    pub(super) fn empty(&self, promised: Option<u64>) {
        let mut waiting = self.waiting.lock();
        waiting.empty = true;
        waiting.promised = promised.or(waiting.promised);
        drop(waiting);
        self.ready.notify_one();
    }

    fn try_next(&self) -> Option<Next> {
        let mut waiting = self.waiting.lock();
        if std::mem::take(&mut waiting.lost) {
            return Some(Next::Push(Push::Lost));
        }
        if std::mem::take(&mut waiting.empty) {
            return Some(Next::Empty(waiting.promised.take()));
        }
        let push = waiting.pushes.pop_front()?;
        if waiting.pushes.is_empty() {
            (waiting.names, waiting.bytes) = (0, 0);
            waiting.pushes.shrink_to(1_024);
        }
        Some(Next::Push(push))
    }

    async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.ready.notified().await;
        }
    }
}

/// An entry that others have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed<'a> {
    /// By its encoded key.
    Key(&'a [u8]),
    /// By the hash in its name.
    Hash(u128),
}

/// Who lets entries go.
pub(super) trait Listener: Send + Sync {
    /// Others have changed an entry. `false` if that names no entry that could be found.
    fn changed(&self, entry: Changed<'_>) -> bool;

    /// Tags were invalidated, by whomever, after all that was known before.
    fn tags_invalidated<'a>(&'a self, numbers: &'a [u64]) -> BoxFuture<'a, ()>;

    /// The log of tags was read for the first time.
    fn tags_known(&self) -> BoxFuture<'_, ()>;

    /// Others may have changed anything. With `promised`, all pushes come from now on.
    fn lost(&self, promised: bool) -> BoxFuture<'_, ()>;
}

/// Whether and how a tier follows its namespace.
pub(super) struct Following {
    pub(super) pushes: Arc<PushQueue>,
    /// Tells the tier's own messages from others'.
    nonce: u64,
    pub(super) listener: OnceLock<Arc<dyn Listener>>,
    listened: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The losses before the last time that the servers were asked and answered.
    asked: Option<u64>,
    /// How they tell; `None` if they do not.
    way: Option<Coherence>,
    /// The losses before the promise for which memory was emptied.
    since: Option<u64>,
    /// Whether the server refuses to pass messages on.
    muted: bool,
    /// The replaced versions of the namespace that memory was emptied for.
    replaced: u64,
}

impl Following {
    pub(super) fn new(pushes: Arc<PushQueue>, nonce: u64) -> Self {
        Self {
            pushes,
            nonce,
            listener: OnceLock::new(),
            listened: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Sets who lets entries go; without one, nothing is followed. The first one stays.
    pub(super) fn listen(&self, listener: Arc<dyn Listener>) {
        if self.listener.set(listener).is_ok() {
            self.listened.notify_one();
        }
    }

    /// How the servers tell of changes, and whether nothing that they told before is in memory.
    pub(super) fn stats(&self) -> (Option<Coherence>, bool) {
        let state = self.state.lock();
        let coherent = state.since == Some(self.pushes.losses()) && !state.muted;
        (state.way, coherent && state.way.is_some())
    }

    /// Whether the servers are to be asked (again).
    pub(super) fn is_due(&self, wanted: Coherence, client: &dyn RemoteClient) -> bool {
        if wanted == Coherence::Off || self.listener.get().is_none() {
            return false;
        }
        let (asked, way) = {
            let state = self.state.lock();
            (state.asked, state.way)
        };
        asked != Some(self.pushes.losses()) || (way.is_some() && !client.is_following())
    }

    /// Asks the servers to tell of changes; tells whether they promised to.
    pub(super) async fn ask(&self, shared: &Shared) -> Result<bool, RemoteError> {
        let losses = self.pushes.losses();
        let wanted = shared.config.coherence;
        let tracking = (Coherence::Tracking, Follow::Tracking { prefix: shared.names.stem() });
        let channel = (Coherence::PubSub, Follow::Channel { name: shared.names.channel() });
        for (way, follow) in [tracking, channel] {
            if wanted != way && wanted != Coherence::Auto {
                continue;
            }
            match shared.client.follow(follow).await {
                Ok(()) => {
                    let mut state = self.state.lock();
                    state.asked = Some(losses);
                    state.muted = false;
                    if state.way.replace(way) != Some(way) {
                        let mode = way.as_str();
                        tracing::info!(namespace = shared.namespace, mode, "memory follows redis");
                    }
                    drop(state);
                    self.pushes.empty(Some(losses));
                    return Ok(true);
                }
                Err(RemoteError::Refused(reason)) => {
                    let mode = way.as_str();
                    tracing::debug!(namespace = shared.namespace, mode, reason, "refused");
                }
                Err(error) => return Err(error),
            }
        }
        let mut state = self.state.lock();
        if state.asked.is_none() || state.way.is_some() {
            tracing::warn!(
                namespace = shared.namespace,
                "memory does not follow redis: the server refuses to tell of changes"
            );
        }
        // Another connection may lead to a server that does.
        state.asked = Some(losses);
        state.muted = false;
        state.way = None;
        Ok(false)
    }

    /// Has memory emptied if the namespace's version was replaced.
    pub(super) fn note_replaced(&self, replaced: u64) {
        let before = std::mem::replace(&mut self.state.lock().replaced, replaced);
        if before != replaced && self.listener.get().is_some() {
            self.pushes.empty(None);
        }
    }

    /// How others are assumed to be told; both ways while that is not known.
    fn tells(&self, wanted: Coherence, way: Coherence) -> bool {
        let state = self.state.lock();
        match wanted {
            Coherence::Auto if self.listener.get().is_none() => false,
            Coherence::Auto => match state.way {
                Some(known) => known == way,
                None => state.asked.is_none(),
            },
            wanted => wanted == way,
        }
    }

    /// Whether the server tells others of what is removed only if it was there.
    pub(super) fn announces(&self, wanted: Coherence) -> bool {
        self.tells(wanted, Coherence::Tracking)
    }

    /// A message for those who follow by the channel, if there may be any.
    pub(super) fn message(
        &self,
        wanted: Coherence,
        names: &Names,
        changed: &[&Bytes],
    ) -> Option<Command> {
        let publishes = self.tells(wanted, Coherence::PubSub) && !self.state.lock().muted;
        (publishes && !changed.is_empty()).then(|| Command::Publish {
            channel: names.channel(),
            message: encode(self.nonce, changed),
        })
    }

    /// Takes the outcome of publishing; an error if what was written with it must not count.
    pub(super) fn published(&self, outcome: Result<(), RemoteError>) -> Result<(), RemoteError> {
        match outcome {
            Err(RemoteError::Refused(reason)) => {
                if !std::mem::replace(&mut self.state.lock().muted, true) {
                    tracing::warn!(reason, "redis does not tell other machines of changes");
                }
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// Works pushes off until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let following = &shared.following;
    let listener = loop {
        match following.listener.get() {
            Some(listener) => break &**listener,
            None => following.listened.notified().await,
        }
    };
    loop {
        match following.pushes.next().await {
            Next::Push(Push::Lost) => shared.wake.notify_one(),
            Next::Push(Push::Changed(names)) => changed(&shared, listener, &names).await,
            Next::Push(Push::Message(message)) => match decode(&message) {
                Some((sender, _)) if sender == following.nonce => {}
                Some((_, names)) => changed(&shared, listener, &names).await,
                // Whoever wrote it knows more than this version of the software.
                None => listener.lost(false).await,
            },
            Next::Empty(promised) => {
                listener.lost(promised.is_some()).await;
                if promised.is_some() {
                    following.state.lock().since = promised;
                }
            }
        }
    }
}

async fn changed(shared: &Shared, listener: &dyn Listener, names: &[Bytes]) {
    for some in names.chunks(NAMES_AT_ONCE) {
        // An older version's entries are in nobody's memory any more. Zero while none is known.
        let current = shared.serving.load(Ordering::Acquire);
        for name in some {
            let found = match shared.names.parse(name) {
                Name::Version | Name::Tags => {
                    shared.wake.notify_one();
                    true
                }
                Name::Entry { version, key } if version >= current => {
                    listener.changed(Changed::Key(&key))
                }
                Name::Hashed { version, hash } if version >= current => {
                    listener.changed(Changed::Hash(hash))
                }
                _ => true,
            };
            if !found {
                // That does what the names to come would do.
                listener.lost(false).await;
                shared.wake.notify_one();
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// A message: its format, the sender's number, and names, each with its length before it.
fn encode(sender: u64, names: &[&Bytes]) -> Bytes {
    let length = names.iter().map(|name| name.len() + 4).sum::<usize>();
    let mut message = BytesMut::with_capacity(9 + length);
    message.put_u8(MESSAGE_FORMAT);
    message.put_u64_le(sender);
    for name in names {
        // One that is too long for its length makes the message one that nobody understands.
        message.put_u32_le(u32::try_from(name.len()).unwrap_or(u32::MAX));
        message.put_slice(name);
    }
    message.freeze()
}

fn decode(message: &Bytes) -> Option<(u64, Vec<Bytes>)> {
    let (&MESSAGE_FORMAT, rest) = message.split_first()? else { return None };
    let (sender, mut rest) = rest.split_first_chunk::<8>()?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (name, tail) = tail.split_at_checked(length)?;
        names.push(message.slice_ref(name));
        rest = tail;
    }
    Some((u64::from_le_bytes(*sender), names))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(names: usize) -> Push {
        Push::Changed((0..names).map(|name| Bytes::from(name.to_string())).collect())
    }

    #[test]
    fn pushes_come_out_in_their_order() {
        let queue = PushQueue::default();
        let message = Push::Message(Bytes::from_static(b"message"));
        queue.push(changed(2));
        queue.push(message.clone());
        assert_eq!(queue.try_next(), Some(Next::Push(changed(2))));
        assert_eq!(queue.try_next(), Some(Next::Push(message)));
        assert_eq!((queue.try_next(), queue.losses()), (None, 0));
    }

    #[test]
    fn more_than_fits_is_one_loss_and_holds_nothing() {
        let queue = PushQueue::default();
        for _ in 0..3 {
            for _ in 0..=NAMES_MAX / 100 {
                queue.push(changed(100));
            }
            assert!(queue.waiting.lock().names <= NAMES_MAX);
        }
        assert_eq!(queue.losses(), 3);
        assert_eq!(queue.try_next(), Some(Next::Push(Push::Lost)));
        assert!(queue.try_next().is_none());
        queue.push(Push::Message(Bytes::from(vec![0; BYTES_MAX])));
        assert_eq!(queue.try_next(), Some(Next::Push(Push::Lost)));
    }

    #[test]
    fn a_promise_is_worked_off_before_the_pushes_that_came_with_it() {
        let queue = PushQueue::default();
        queue.push(Push::Lost);
        queue.push(changed(1));
        queue.empty(Some(1));
        queue.empty(None);
        assert_eq!(queue.try_next(), Some(Next::Push(Push::Lost)));
        assert_eq!(queue.try_next(), Some(Next::Empty(Some(1))));
        assert_eq!(queue.try_next(), Some(Next::Push(changed(1))));
        assert_eq!(queue.try_next(), None);
    }

    proptest! {
        #[test]
        fn a_message_is_read_back_and_a_broken_one_is_none_or_another(
            sender: u64,
            names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..9),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let names: Vec<_> = names.into_iter().map(Bytes::from).collect();
            let message = encode(sender, &names.iter().collect::<Vec<_>>());
            prop_assert_eq!(decode(&message), Some((sender, names)));
            let at = at.index(message.len());
            if let Some((_, names)) = decode(&message.slice(..at)) {
                prop_assert!(names.iter().map(|name| name.len() + 4).sum::<usize>() + 9 == at);
            }
            let mut broken = message.to_vec();
            broken[at] = byte;
            let _ = decode(&Bytes::from(broken));
        }
    }
}
