//! What one pick asks for, and why it may get nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::policy::hash;

/// What the caller of a pick would like.
///
/// Nothing in it is needed: `&Pick::new()` takes what the policy says.
#[derive(Clone, Debug, Default)]
pub struct Pick {
    key: Option<u64>,
    prefer: Option<Arc<str>>,
    avoid: Vec<Arc<str>>,
    deadline: Option<Instant>,
}

impl Pick {
    /// Asks for nothing in particular.
    pub const fn new() -> Self {
        Self { key: None, prefer: None, avoid: Vec::new(), deadline: None }
    }

    /// Sets the key by which [`Policy::RingHash`](crate::Policy::RingHash) and
    /// [`Policy::Maglev`](crate::Policy::Maglev) place the call; other policies ignore it.
    ///
    /// Equal keys go to the same backend, in every process that has the same set.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(hash::hash(key.as_ref()));
        self
    }

    /// Takes this backend if it is there, ready and has room, whatever the policy.
    ///
    /// This is what keeps a session on its backend; when that cannot take it, the policy decides.
    #[must_use]
    pub fn prefer(mut self, backend: impl Into<Arc<str>>) -> Self {
        self.prefer = Some(backend.into());
        self
    }

    /// Avoids a backend as long as any other has room; may be said several times.
    ///
    /// For a retry, which should not go where the first attempt has failed.
    #[must_use]
    pub fn avoid(mut self, backend: impl Into<Arc<str>>) -> Self {
        self.avoid.push(backend.into());
        self
    }

    /// Sets when the caller has no use for a backend any more.
    ///
    /// Without one, the wait ends after the balancer's
    /// [`wait_max`](crate::BalancerBuilder::wait_max), and never later than that.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub(crate) fn key_hash(&self) -> Option<u64> {
        self.key
    }

    pub(crate) fn preferred(&self) -> Option<&Arc<str>> {
        self.prefer.as_ref()
    }

    pub(crate) fn avoided(&self) -> &[Arc<str>] {
        &self.avoid
    }

    pub(crate) fn avoids(&self, id: &str) -> bool {
        self.avoid.iter().any(|avoided| **avoided == *id)
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        self.deadline
    }
}

/// Why there was no backend for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The set has no backends.
    #[error("there are no backends")]
    Empty,
    /// None of the backends takes calls: they are ejected, down, unknown or draining.
    #[error("no backend is available, retry in {retry_after:?}")]
    Unavailable {
        /// When the next one may be back.
        retry_after: Duration,
    },
    /// Every place is taken, and so is the queue, or the caller did not want to wait.
    #[error("all backends are full and {waiting} calls wait, retry in {retry_after:?}")]
    Full {
        /// The calls in the queue.
        waiting: usize,
        /// A guess of when there will be room.
        retry_after: Duration,
    },
    /// The deadline passed in the queue.
    #[error("waited {waited:?} for a backend, retry in {retry_after:?}")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
        /// A guess of when there will be room.
        retry_after: Duration,
    },
}

impl AcquireError {
    /// When to try again, as for a `Retry-After`; `None` if time alone changes nothing.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Empty => None,
            Self::Unavailable { retry_after }
            | Self::Full { retry_after, .. }
            | Self::TimedOut { retry_after, .. } => Some(*retry_after),
        }
    }
}
