//! Workers by name and capacity, with leases as numbers for callers that cannot keep a guard.
//!
//! A lease that crosses a boundary (another language, another process) is a number there, and the
//! guard stays here in a table. The table has a bound, and each entry a deadline, after which the
//! caller is taken for gone and the place goes back. All entries are held for the same time, so the
//! next to expire is always the oldest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use resilience::Outcome;
use tokio::time::timeout_at;

use crate::backend::Backend;
use crate::balancer::Balancer;
use crate::builder::BuildError;
use crate::lease::Lease;
use crate::pick::{AcquireError, Pick};
use crate::sync::{Mutex, lock};

/// Lends workers and takes them back by number.
///
/// Clones share one table. The workers are the backends of a [`Balancer`], which can be used beside
/// it.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use loadbalancer::{Balancer, Outcome, Pick, Workers};
///
/// let workers = Workers::new(Balancer::builder().build()?, 1_000, Duration::from_secs(60));
/// workers.add_worker("python-1", 4)?;
/// let held = workers.get_worker(&Pick::new()).await?;
/// println!("call {} and then release {}", held.worker, held.lease);
/// assert!(workers.release_worker(held.lease, Outcome::Success));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Workers {
    balancer: Balancer,
    table: Arc<Mutex<Table>>,
    held_max: usize,
    hold_max: Duration,
}

#[derive(Debug, Default)]
struct Table {
    /// By number, and so by deadline.
    held: BTreeMap<u64, (Lease, Instant)>,
    next: u64,
    expired: u64,
}

impl Table {
    /// Lets go of what is held for too long.
    fn expire(&mut self, now: Instant) -> Vec<Lease> {
        let mut leases = Vec::new();
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            leases.extend(self.held.pop_first().map(|(_, (lease, _))| lease));
        }
        self.expired += leases.len() as u64;
        leases
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.held.first_key_value().map(|(_, (_, deadline))| *deadline)
    }
}

/// A worker that was lent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The number to give back.
    pub lease: u64,
    /// The worker's id.
    pub worker: Arc<str>,
}

impl Workers {
    /// Lends the backends of a balancer: at most `held_max` at once, each for `hold_max` at most.
    ///
    /// What is held for longer goes back as a cancelled call.
    pub fn new(balancer: Balancer, held_max: usize, hold_max: Duration) -> Self {
        Self { balancer, table: Arc::default(), held_max, hold_max }
    }

    /// Returns the balancer beneath.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Adds a worker that can do `capacity` things at once, or changes the capacity of one.
    ///
    /// # Errors
    ///
    /// [`BuildError`] for an empty id, a capacity of zero or too many workers.
    pub fn add_worker(&self, id: impl Into<Arc<str>>, capacity: u32) -> Result<(), BuildError> {
        self.balancer.insert(Backend::new(id).max_in_flight(capacity))
    }

    /// Takes a worker out; returns whether it was there. Those who hold it keep it.
    pub fn remove_worker(&self, id: &str) -> bool {
        self.balancer.remove(id)
    }

    /// Lends a worker, waiting for one as [`Balancer::acquire`] does.
    ///
    /// # Errors
    ///
    /// [`AcquireError`]; [`Full`](AcquireError::Full) also if as many are held as may be.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future holds nothing.
    pub async fn get_worker(&self, pick: &Pick) -> Result<Held, AcquireError> {
        loop {
            let now = read_time();
            let next = {
                let expired = lock(&self.table).expire(now);
                drop(expired); // outside of the lock: a release may serve the queue
                let table = lock(&self.table);
                if table.held.len() >= self.held_max {
                    let first = table.next_deadline();
                    let retry_after =
                        first.map_or(self.hold_max, |it| it.saturating_duration_since(now));
                    let waiting = self.balancer.stats().waiting;
                    return Err(AcquireError::Full { waiting, retry_after });
                }
                table.next_deadline()
            };
            // A place may come back because its time is over, which nobody but us would notice.
            let acquired = match next {
                None => self.balancer.acquire(pick).await,
                Some(next) => match timeout_at(next.into(), self.balancer.acquire(pick)).await {
                    Ok(acquired) => acquired,
                    Err(_) => continue,
                },
            };
            return acquired.and_then(|lease| self.hold(lease, read_time()));
        }
    }

    fn hold(&self, lease: Lease, now: Instant) -> Result<Held, AcquireError> {
        let mut table = lock(&self.table);
        if table.held.len() >= self.held_max {
            drop(table);
            return Err(AcquireError::Full { waiting: 0, retry_after: self.hold_max });
        }
        let number = table.next;
        table.next += 1;
        let worker = Arc::clone(lease.backend());
        table.held.insert(number, (lease, now + self.hold_max));
        Ok(Held { lease: number, worker })
    }

    /// Takes a worker back; returns whether it was held, which it is not after its deadline.
    pub fn release_worker(&self, lease: u64, outcome: Outcome) -> bool {
        let mut table = lock(&self.table);
        let found = table.held.remove(&lease);
        let expired = table.expire(read_time());
        drop(table);
        drop(expired);
        let was_held = found.is_some();
        if let Some((lease, _)) = found {
            lease.complete(outcome);
        }
        was_held
    }

    /// Returns how many workers are lent, and how many were not given back in time so far.
    pub fn held(&self) -> (usize, u64) {
        let mut table = lock(&self.table);
        let expired = table.expire(read_time());
        let counts = (table.held.len(), table.expired);
        drop(table);
        drop(expired);
        counts
    }
}

/// Reads the clock of the timer, which a test may have stopped.
fn read_time() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn workers(held_max: usize, hold_max: Duration) -> Workers {
        let balancer = Balancer::builder().wait_max(Duration::from_secs(5)).build();
        let workers = Workers::new(balancer.expect("valid"), held_max, hold_max);
        workers.add_worker("a", 1).expect("a valid worker");
        workers
    }

    #[tokio::test]
    async fn a_worker_is_lent_as_often_as_it_can_and_comes_back_once() {
        let workers = workers(10, Duration::from_secs(60));
        workers.add_worker("a", 2).expect("a valid worker");
        let one = workers.get_worker(&Pick::new()).await.expect("there is room");
        let two = workers.get_worker(&Pick::new()).await.expect("there is room");
        assert_eq!((&*one.worker, workers.held()), ("a", (2, 0)));
        assert!(workers.release_worker(one.lease, Outcome::Success));
        assert!(!workers.release_worker(one.lease, Outcome::Success));
        assert!(!workers.release_worker(99, Outcome::Success));
        assert!(workers.release_worker(two.lease, Outcome::Failure));
        assert_eq!(workers.balancer().stats().in_flight, 0);
        assert!(workers.add_worker("b", 0).is_err());
        assert!(workers.remove_worker("a") && !workers.remove_worker("a"));
        assert_eq!(workers.get_worker(&Pick::new()).await, Err(AcquireError::Empty));
    }

    #[tokio::test]
    async fn no_more_are_held_than_may_be() {
        let workers = workers(1, Duration::from_secs(60));
        workers.add_worker("b", 5).expect("a valid worker");
        let held = workers.get_worker(&Pick::new()).await.expect("there is room");
        let error = workers.get_worker(&Pick::new()).await.expect_err("one is held");
        assert!(matches!(error, AcquireError::Full { .. }));
        workers.release_worker(held.lease, Outcome::Success);
        assert!(workers.get_worker(&Pick::new()).await.is_ok());
    }

    #[tokio::test]
    async fn who_never_gives_back_loses_the_worker_to_one_who_waits() {
        let workers = workers(10, Duration::from_millis(30));
        let lost = workers.get_worker(&Pick::new()).await.expect("there is room");
        let next = workers.get_worker(&Pick::new()).await.expect("the time of the first is over");
        assert!(next.lease != lost.lease);
        assert!(!workers.release_worker(lost.lease, Outcome::Success), "it was too late");
        assert!(workers.held().1 >= 1);
    }
}
