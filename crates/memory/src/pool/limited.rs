//! Taking from a pool with a limit on the objects that exist: now, within a time, or when it is one's
//! turn.
//!
//! The rules of the queue are in [`waiters`](super::waiters); a thread that blocks and a task that awaits
//! stand in the same one, told apart by what their waker does. The factory runs after a place has been
//! taken and with no lock held; if it panics, the place is given to the next.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::core::{Core, Kind, Node};

/// Why nothing could be taken from a pool with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// Nothing became free in time.
    #[error("no object of the pool became free within {waited:?}")]
    TimedOut {
        /// The time that was given.
        waited: Duration,
    },
    /// As many wait already as may.
    #[error("{waiters_max} wait for an object of the pool already")]
    TooManyWaiters {
        /// The bound on who waits, as the builder was told.
        waiters_max: usize,
    },
}

/// How a request to the pool went.
enum Claim<T> {
    Object(Box<Node<T>>),
    /// An object may be made; it is counted as existing.
    Place,
    Full,
}

impl<K: Kind> Core<K, 1> {
    /// Takes an object if one is free or may be made.
    pub(super) fn try_claim(self: &Arc<Self>) -> Option<Box<Node<K::Object>>> {
        let claim = self.claim(&mut None, None);
        claim.ok().and_then(|claim| self.redeem(claim))
    }

    /// Waits on this thread until an object can be taken, and for ever where no time is given.
    ///
    /// Who waits for ever is let into a full queue: a thread that blocks costs more than its place there.
    pub(super) fn wait(
        self: &Arc<Self>,
        timeout: Option<Duration>,
    ) -> Result<Box<Node<K::Object>>, TakeError> {
        let start = Instant::now();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut turn = Turn { core: Arc::clone(self), id: None, bounded: timeout.is_some() };
        loop {
            if let Some(taken) = turn.try_take(&waker)? {
                return Ok(taken);
            }
            match timeout {
                None => thread::park(),
                Some(waited) => match waited.checked_sub(start.elapsed()) {
                    Some(rest) if !rest.is_zero() => thread::park_timeout(rest),
                    _ => return Err(TakeError::TimedOut { waited }),
                },
            }
        }
    }

    /// Claims an object or the leave to make one; else joins the queue, if there is a waker to be told.
    fn claim(
        &self,
        id: &mut Option<u64>,
        waker: Option<(&Waker, bool)>,
    ) -> Result<Claim<K::Object>, TakeError> {
        let waiters_max = self.settings.waiters_max;
        let limit = self.settings.limit.unwrap_or(usize::MAX);
        let mut depot = self.depot();
        if !depot.waiters.may_take(*id, depot.places(limit)) {
            if let Some((waker, bounded)) = waker {
                let max = if bounded { waiters_max } else { usize::MAX };
                let place = depot.waiters.wait(*id, waker, max);
                *id = Some(place.ok_or(TakeError::TooManyWaiters { waiters_max })?);
            }
            return Ok(Claim::Full);
        }
        if let Some(id) = id.take() {
            depot.waiters.leave(id);
        }
        Ok(match self.pop_locked(&mut depot, 0) {
            Some(node) => Claim::Object(node),
            None => {
                depot.existing += 1;
                Claim::Place
            }
        })
    }

    fn redeem(self: &Arc<Self>, claim: Claim<K::Object>) -> Option<Box<Node<K::Object>>> {
        let node = match claim {
            Claim::Full => return None,
            Claim::Object(node) => node,
            Claim::Place => self.make(0, || self.no_longer_exists()),
        };
        Some(self.begin(node))
    }
}

/// Waits, as a future, until an object can be taken; leaves the queue when it is dropped.
pub(super) struct Turn<K: Kind> {
    core: Arc<Core<K, 1>>,
    id: Option<u64>,
    bounded: bool,
}

impl<K: Kind> Turn<K> {
    pub(super) fn new(core: Arc<Core<K, 1>>) -> Self {
        Self { core, id: None, bounded: true }
    }

    /// Takes an object, or sees to it that `waker` is woken when it is worth another try.
    fn try_take(&mut self, waker: &Waker) -> Result<Option<Box<Node<K::Object>>>, TakeError> {
        let claim = self.core.claim(&mut self.id, Some((waker, self.bounded)))?;
        Ok(self.core.redeem(claim))
    }
}

impl<K: Kind> Future for Turn<K> {
    type Output = Result<Box<Node<K::Object>>, TakeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.try_take(context.waker()) {
            Ok(Some(taken)) => Poll::Ready(Ok(taken)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<K: Kind> Drop for Turn<K> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let woken = {
            let mut depot = self.core.depot();
            if !depot.waiters.leave(id) {
                return;
            }
            depot.waiters.wake()
        };
        woken.wake();
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
