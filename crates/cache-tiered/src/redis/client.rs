//! The seam between the tier and the library that speaks to Redis.
//!
//! The tier decides what is sent, when, and what an answer is worth. A client only carries commands:
//! it connects and reconnects by itself, never waits for a server that is away, and says when it has
//! changed connections, because commands are ordered on one connection and on no two.
//!
//! What a server tells unasked (see `invalidation`) a client puts into the `PushQueue` that it was made
//! with.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Lookup;

/// Carries commands to a server, a cluster, or a script in a test.
pub(super) trait RemoteClient: Send + Sync + 'static {
    /// Looks keys up, all in one command where the server allows that.
    fn get_many(&self, lane: usize, keys: Vec<Bytes>) -> BoxFuture<'static, Fetched>;

    /// Runs writes on lane 0, in this order; one result for each.
    fn run(&self, writes: Vec<Command>) -> BoxFuture<'static, Vec<Result<(), RemoteError>>>;

    /// Runs a Lua script over one key on lane 0, after what was sent there before; returns the strings
    /// of its answer, which is a list.
    fn eval(
        &self,
        script: &'static str,
        key: Bytes,
        arguments: Vec<Bytes>,
    ) -> BoxFuture<'static, Result<Vec<Bytes>, RemoteError>>;

    /// The identities of the server processes behind a lane; empty if they are not told.
    fn servers(&self, lane: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>>;

    /// Asks the servers to tell what is changed, in place of what was asked for before. What they tell
    /// from the answer on goes into the client's queue of pushes, up to the next [`Push::Lost`].
    fn follow(&self, follow: Follow) -> BoxFuture<'static, Result<(), RemoteError>>;

    /// Whether every connection is one on which the last `follow` asked.
    ///
    /// A client says [`Push::Lost`] at once, too; this is looked at from time to time, for connections
    /// that came without a word.
    fn is_following(&self) -> bool;

    /// Counts the connections that a lane has had. Two commands are ordered if it did not change.
    fn connection(&self, lane: usize) -> u64;

    /// Whether every lane is connected now.
    fn is_connected(&self) -> bool;

    /// Repairs what does not repair itself; `stuck` says that answers have been missing for long.
    fn tend(&self, stuck: bool);

    /// Says goodbye to the server.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Set {
        key: Bytes,
        value: Bytes,
        ttl: Option<Duration>,
    },
    SetIfMissing {
        key: Bytes,
        value: Bytes,
        ttl: Option<Duration>,
    },
    Delete {
        key: Bytes,
    },
    /// A message to whoever follows the channel.
    Publish {
        channel: Bytes,
        message: Bytes,
    },
}

impl Command {
    /// The name that is written, if one is.
    pub(super) fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Set { key, .. } | Self::SetIfMissing { key, .. } | Self::Delete { key } => {
                Some(key)
            }
            Self::Publish { .. } => None,
        }
    }
}

/// What the servers are asked to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Follow {
    /// Names with this prefix that are written, deleted, evicted or expired: `CLIENT TRACKING` in its
    /// broadcast mode, on lane 0 to every master, without the writes of that same connection.
    Tracking { prefix: Bytes },
    /// Messages on this channel, on a connection that is used for nothing else.
    Channel { name: Bytes },
}

/// What a server told unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Push {
    /// Names that were changed.
    Changed(Vec<Bytes>),
    /// A message on the channel.
    Message(Bytes),
    /// Pushes may have been missed and may be missing: there is a new connection or a new master, a
    /// buffer has overflown, or a server was emptied. Nothing is relied on before `follow` has asked
    /// again.
    Lost,
}

/// What became of a look-up of several keys.
#[derive(Debug)]
pub(super) struct Fetched {
    /// One for each key, in their order.
    pub(super) values: Vec<Lookup>,
    /// Why some are unavailable.
    pub(super) error: Option<RemoteError>,
}

impl Fetched {
    pub(super) fn failed(keys: usize, error: RemoteError) -> Self {
        Self { values: vec![Lookup::Unavailable; keys], error: Some(error) }
    }

    /// Whether the server answered at all: in a cluster one node may fail alone.
    pub(super) fn is_answer(&self) -> bool {
        self.error.is_none() || self.values.iter().any(|it| !matches!(it, Lookup::Unavailable))
    }
}

/// Why a command has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RemoteError {
    /// No answer in time; a write may have been made, or may yet be.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or it broke; a write may have been made.
    #[error("not connected: {0}")]
    Disconnected(String),
    /// The server answered with an error, and made no write.
    #[error("refused by the server: {0}")]
    Refused(String),
}
