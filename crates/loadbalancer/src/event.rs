//! What happens to the backends, each with its reason, for those who listen.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::advice::ScaleAdvice;

/// Something that changed, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// The backend it happened to; `None` if it concerns all of them.
    pub backend: Option<Arc<str>>,
    /// What happened.
    pub change: Change,
}

/// What can happen to a backend or to the set.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// It joined the set; `known` if it was there before and its history was kept.
    Added {
        /// Whether the balancer still had its history.
        known: bool,
    },
    /// It left the set.
    Removed,
    /// Its weight is another one.
    Weight {
        /// The weight before.
        from: u32,
        /// The weight now.
        to: u32,
    },
    /// Its limit of leases is another one; `None` is no limit.
    MaxInFlight {
        /// The limit before.
        from: Option<u32>,
        /// The limit now.
        to: Option<u32>,
    },
    /// It gets no traffic for a while.
    Ejected {
        /// Why.
        reason: EjectReason,
        /// For how long.
        time: Duration,
    },
    /// It should have been ejected, but as many as may be are.
    NotEjected {
        /// Why it should have been.
        reason: EjectReason,
    },
    /// It gets traffic again after an ejection.
    Restored {
        /// Whether a person did it before the time was over.
        early: bool,
    },
    /// Its active checks found it healthy.
    Up,
    /// Its active checks found it down.
    Down {
        /// What the last check said.
        reason: String,
    },
    /// It gets no new leases, and keeps those that are out.
    Draining,
    /// The last lease of a draining or removed backend is back.
    Drained,
    /// It gets nothing for a while, because somebody who guards its calls said so.
    Suspended {
        /// For how long at most.
        time: Duration,
    },
    /// It gets leases again after draining, or after a suspension.
    Resumed,
    /// Too few backends are healthy, so health is ignored until enough are.
    PanicBegan {
        /// Those that are healthy.
        healthy: usize,
        /// Those whose health is known.
        of: usize,
    },
    /// Enough backends are healthy again.
    PanicEnded,
    /// Another policy picks from now on.
    Policy,
    /// A new set could not be found out; the old one stays.
    DiscoveryFailed {
        /// Why.
        reason: String,
    },
    /// There should be more or fewer backends.
    ScaleAdvised {
        /// How many, and why.
        advice: ScaleAdvice,
    },
    /// An advice was not acted upon, or not to its end.
    ScaleFailed {
        /// Why.
        reason: String,
    },
}

/// Why a backend was ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum EjectReason {
    /// It failed this often in a row.
    ConsecutiveFailures(u32),
    /// It succeeded less often than the others.
    SuccessRate {
        /// Its share of good answers.
        own: f64,
        /// That of all others together.
        others: f64,
    },
    /// A person asked for it.
    Manual,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backend) = &self.backend {
            write!(f, "{backend}: ")?;
        }
        self.change.fmt(f)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |limit: &Option<u32>| limit.map_or("none".to_owned(), |it| it.to_string());
        match self {
            Self::Added { known: false } => write!(f, "added"),
            Self::Added { known: true } => write!(f, "added again"),
            Self::Removed => write!(f, "removed"),
            Self::Weight { from, to } => write!(f, "weight {from} is now {to}"),
            Self::MaxInFlight { from, to } => {
                write!(f, "most in flight {} is now {}", limit(from), limit(to))
            }
            Self::Ejected { reason, time } => write!(f, "ejected for {time:.1?}: {reason}"),
            Self::NotEjected { reason } => write!(f, "not ejected, too many are: {reason}"),
            Self::Restored { early: false } => write!(f, "restored: the time is over"),
            Self::Restored { early: true } => write!(f, "restored: asked for"),
            Self::Up => write!(f, "up: its checks succeed"),
            Self::Down { reason } => write!(f, "down: {reason}"),
            Self::Draining => write!(f, "draining"),
            Self::Drained => write!(f, "drained"),
            Self::Suspended { time } => write!(f, "suspended for {time:.1?}"),
            Self::Resumed => write!(f, "resumed"),
            Self::PanicBegan { healthy, of } => {
                write!(f, "health is ignored: {healthy} of {of} are healthy")
            }
            Self::PanicEnded => write!(f, "health counts again"),
            Self::Policy => write!(f, "another policy picks"),
            Self::DiscoveryFailed { reason } => write!(f, "discovery failed: {reason}"),
            Self::ScaleAdvised { advice: ScaleAdvice { desired, current, reason } } => {
                write!(f, "{desired} backends are better than {current}: {reason}")
            }
            Self::ScaleFailed { reason } => write!(f, "scaling failed: {reason}"),
        }
    }
}

impl fmt::Display for EjectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(count) => write!(f, "{count} failures in a row"),
            Self::SuccessRate { own, others } => {
                write!(f, "{:.0} % succeed, {:.0} % elsewhere", own * 100.0, others * 100.0)
            }
            Self::Manual => write!(f, "asked for"),
        }
    }
}

/// Listens to what happens from the moment it was asked for.
///
/// A listener that falls behind by more than 256 events loses the oldest, and
/// [`missed`](Self::missed) says how many.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    missed: u64,
}

/// Events that wait for the slowest listener.
pub(crate) const EVENTS_MAX: usize = 256;

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receiver, missed: 0 }
    }

    /// Waits for the next event; `None` when the balancer is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(missed)) => self.missed += missed,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Returns the next event if there is one.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(TryRecvError::Lagged(missed)) => self.missed += missed,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// Returns how many events were lost so far because nobody took them in time.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}
