//! The seam between the tier and the library that speaks to Redis.
//!
//! The tier decides what is sent, when, and what an answer is worth. A client only carries commands:
//! it connects and reconnects by itself, never waits for a server that is away, and says when it has
//! changed connections, because commands are ordered on one connection and on no two.

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

    /// The identities of the server processes behind a lane; empty if they are not told.
    fn servers(&self, lane: usize) -> BoxFuture<'static, Result<Vec<String>, RemoteError>>;

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
    Set { key: Bytes, value: Bytes, ttl: Option<Duration> },
    SetIfMissing { key: Bytes, value: Bytes },
    Delete { key: Bytes },
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
