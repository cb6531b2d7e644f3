//! Bulkheads: so many calls at a time, so many more in a queue, for so long, and no more.
//!
//! A dependency that hangs then holds a bounded part of the program instead of all of it. Waiting
//! callers are served in the order in which they came.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Deadline;
use crate::build_error::{BuildError, Problem, Problems};
use crate::deadline::now;

/// Bounds the calls at a time and those that wait. Clones are one bulkhead.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience::Bulkhead;
///
/// let reports = Bulkhead::builder("reports").calls_max(4).queue_max(16).build()?;
/// let permit = reports.acquire().await?;
/// // .. make the call ..
/// drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Bulkhead {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    calls_max: usize,
    queue_max: usize,
    wait_max: Duration,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    rejected: AtomicU64,
}

impl Bulkhead {
    /// Starts the settings of a bulkhead.
    pub fn builder(name: impl Into<String>) -> BulkheadBuilder {
        BulkheadBuilder {
            name: name.into(),
            calls_max: 100,
            queue_max: 100,
            wait_max: Duration::from_secs(1),
        }
    }

    /// Takes a place, if there is one and nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`BulkheadFull`] otherwise.
    pub fn try_acquire(&self) -> Result<BulkheadPermit, BulkheadFull> {
        match Arc::clone(&self.shared.places).try_acquire_owned() {
            Ok(place) => Ok(BulkheadPermit { _place: place }),
            Err(_) => Err(self.reject(false)),
        }
    }

    /// Takes a place, after a wait in the queue if need be.
    ///
    /// The wait ends with the bulkhead's [`wait_max`](BulkheadBuilder::wait_max) and with the
    /// [current deadline](Deadline::current).
    ///
    /// # Errors
    ///
    /// [`BulkheadFull`] if the queue is full or the wait is over.
    ///
    /// # Cancel safety
    ///
    /// A caller that is dropped leaves the queue.
    pub async fn acquire(&self) -> Result<BulkheadPermit, BulkheadFull> {
        let shared = &*self.shared;
        if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
            return Ok(BulkheadPermit { _place: place });
        }
        // Relaxed: the number guards nothing but itself.
        let joined = shared.waiting.try_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < shared.queue_max).then_some(waiting + 1)
        });
        if joined.is_err() {
            return Err(self.reject(false));
        }
        let _waiting = Waiting(&shared.waiting);
        let own = Deadline::after(shared.wait_max, now());
        let until = Deadline::current().map_or(own, |outer| outer.min(own));
        let place = Arc::clone(&shared.places).acquire_owned();
        match tokio::time::timeout_at(until.instant().into(), place).await {
            Ok(Ok(place)) => Ok(BulkheadPermit { _place: place }),
            Ok(Err(_)) | Err(_) => Err(self.reject(true)),
        }
    }

    fn reject(&self, waited: bool) -> BulkheadFull {
        self.shared.rejected.fetch_add(1, Ordering::Relaxed);
        BulkheadFull { calls_max: self.shared.calls_max, waited }
    }

    /// Reads the counts.
    pub fn stats(&self) -> BulkheadStats {
        BulkheadStats {
            in_flight: self.shared.calls_max - self.shared.places.available_permits(),
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            rejected: self.shared.rejected.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Leaves the queue, however the wait ended.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in a bulkhead; dropped, it goes to the next in the queue.
#[derive(Debug)]
#[must_use = "a permit that is dropped gives its place back at once"]
pub struct BulkheadPermit {
    _place: OwnedSemaphorePermit,
}

/// There was no place for a call; it was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "all {calls_max} places are taken{}",
    if *waited { " and none came free in time" } else { "" }
)]
#[non_exhaustive]
pub struct BulkheadFull {
    /// How many places there are.
    pub calls_max: usize,
    /// Whether the caller waited; otherwise the queue was full, or not asked.
    pub waited: bool,
}

/// A snapshot of a bulkhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BulkheadStats {
    /// Places taken.
    pub in_flight: usize,
    /// Callers in the queue.
    pub waiting: usize,
    /// Calls turned away since the bulkhead was built.
    pub rejected: u64,
}

/// Collects the settings of a [`Bulkhead`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct BulkheadBuilder {
    name: String,
    calls_max: usize,
    queue_max: usize,
    wait_max: Duration,
}

impl BulkheadBuilder {
    /// Sets how many calls there may be at a time: 1 to 1,000,000; 100 unless told.
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.calls_max = calls;
        self
    }

    /// Sets how many callers may wait: up to 1,000,000; 100 unless told.
    pub fn queue_max(mut self, callers: usize) -> Self {
        self.queue_max = callers;
        self
    }

    /// Sets how long a caller waits at most: up to 1 hour; 1 s unless told.
    pub fn wait_max(mut self, time: Duration) -> Self {
        self.wait_max = time;
        self
    }

    /// Checks the settings and makes a bulkhead.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<Bulkhead, BuildError> {
        BuildError::unless_none("bulkhead", &self.name, self.problems())?;
        let shared = Shared {
            name: self.name,
            calls_max: self.calls_max,
            queue_max: self.queue_max,
            wait_max: self.wait_max,
            places: Arc::new(Semaphore::new(self.calls_max)),
            waiting: AtomicUsize::new(0),
            rejected: AtomicU64::new(0),
        };
        Ok(Bulkhead { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (1..=1_000_000).contains(&self.calls_max),
            "calls_max",
            &self.calls_max,
            "must be from 1 to 1000000",
        );
        problems.check(
            self.queue_max <= 1_000_000,
            "queue_max",
            &self.queue_max,
            "must be at most 1000000",
        );
        problems.check(
            self.wait_max <= Duration::from_hours(1),
            "wait_max",
            &self.wait_max,
            "must be at most 1 hour",
        );
        problems.found
    }
}
