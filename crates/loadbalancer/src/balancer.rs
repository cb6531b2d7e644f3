//! The balancer: the handle, the way of a pick, and what changes beneath it.
//!
//! A pick loads the [`Snapshot`] of the set, goes through its levels and takes a place in a node. It
//! takes no lock unless time has to change something first (an ejection ends, a slow start goes on):
//! the next such moment is one number, and whoever comes after it does the work. Changes of the set
//! happen under its lock, each ends in a new snapshot, and then the queue is served, since there may
//! be room now. Locks are taken in the order queue, set.

#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use tokio::sync::{broadcast, oneshot};
use tokio::time::timeout_at;

use crate::backend::{Backend, BackendStats};
use crate::builder::{BalancerBuilder, BuildError, Settings, check_backends, problem_of};
use crate::event::{Change, EVENTS_MAX, Event, Events};
use crate::latency::Nanos;
use crate::lease::Lease;
use crate::node::{Fleet, Node, Released, nanos_since};
use crate::pick::{AcquireError, Pick};
use crate::policy::hash::mix;
use crate::policy::{How, Policy};
use crate::set::{Set, Snapshot};
use crate::sync::{AtomicU64, Mutex, Relaxed, lock};
use crate::waiting::Waiters;

/// Spreads calls over backends by leases.
///
/// Clones share one balancer. See the [crate's page](crate) for the idea, [`BalancerBuilder`] for
/// the settings and [`Policy`] for how a backend is chosen.
///
/// # Cost
///
/// [`try_acquire`](Self::try_acquire) takes no lock and allocates nothing; it reads the clock once
/// under [`Policy::PeakEwma`], and under the others only while an ejection or a slow start goes on.
/// Every change of the set costs time by the number of its backends.
#[derive(Clone)]
pub struct Balancer {
    core: Arc<Core>,
}

/// What the clones of a balancer share.
pub(crate) struct Core {
    epoch: Instant,
    settings: Arc<Settings>,
    fleet: Arc<Fleet>,
    snapshot: ArcSwap<Snapshot>,
    /// When time alone changes something next.
    next_change: AtomicU64,
    /// When the success rates are compared next.
    compare_at: AtomicU64,
    draws: Draws,
    waiters: Waiters<Waiter>,
    set: Mutex<Set>,
    events: broadcast::Sender<Event>,
    shed: AtomicU64,
    timed_out: AtomicU64,
}

/// Somebody in the queue.
struct Waiter {
    pick: Pick,
    answer: oneshot::Sender<Result<Lease, AcquireError>>,
}

/// Where chance comes from.
enum Draws {
    Thread,
    /// A counter, mixed: SplitMix64.
    Seeded(CachePadded<AtomicU64>),
}

impl Draws {
    fn next(&self) -> u64 {
        match self {
            Self::Thread => fastrand::u64(..),
            Self::Seeded(state) => mix(state.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)),
        }
    }
}

/// The shortest and longest guess of when there is room again.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The guess where nothing is known.
const RETRY_UNKNOWN: Duration = Duration::from_secs(1);

impl Balancer {
    /// Starts the settings of a balancer.
    pub fn builder() -> BalancerBuilder {
        BalancerBuilder::new()
    }

    pub(crate) fn new(
        settings: Settings,
        policy: Policy,
        backends: Vec<Backend>,
        seed: Option<u64>,
        now: Instant,
    ) -> Self {
        let settings = Arc::new(settings);
        let fleet = Arc::new(Fleet::new(settings.failure_penalty));
        let mut set =
            Set::new(Arc::clone(&settings), policy, seed.unwrap_or_else(|| fastrand::u64(..)));
        let core = Arc::new_cyclic(|core: &Weak<Core>| {
            let make = |id| Arc::new(Node::new(id, now, Arc::clone(&fleet), Weak::clone(core)));
            // Nobody listens yet.
            let mut unheard = Vec::new();
            set.replace(backends, 0, make, &mut unheard);
            set.expire(0, &mut unheard);
            let snapshot = set.snapshot(0, &mut unheard);
            Core {
                epoch: now,
                snapshot: ArcSwap::from_pointee(snapshot),
                next_change: AtomicU64::new(set.next_change(0)),
                compare_at: AtomicU64::new(set.compare_at()),
                draws: seed.map_or(Draws::Thread, |seed| {
                    Draws::Seeded(CachePadded::new(AtomicU64::new(mix(seed))))
                }),
                waiters: Waiters::new(settings.queue_max),
                events: broadcast::Sender::new(EVENTS_MAX),
                shed: AtomicU64::new(0),
                timed_out: AtomicU64::new(0),
                set: Mutex::new(set),
                fleet,
                settings,
            }
        });
        Self { core }
    }

    /// Takes a place in a backend, without waiting for one.
    ///
    /// While others wait for a place, there is none for who does not.
    ///
    /// # Errors
    ///
    /// [`AcquireError`], never [`TimedOut`](AcquireError::TimedOut).
    pub fn try_acquire(&self, pick: &Pick) -> Result<Lease, AcquireError> {
        self.core.try_acquire(pick, None)
    }

    /// Takes a place in a backend for a call that begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_at(&self, pick: &Pick, now: Instant) -> Result<Lease, AcquireError> {
        self.core.try_acquire(pick, Some(now))
    }

    /// Takes a place in a backend, waiting for one while all are full.
    ///
    /// Calls wait in the order in which they came, until the pick's deadline or the longest wait of
    /// the balancer, in a queue with a bound. Needs the time driver of tokio.
    ///
    /// # Errors
    ///
    /// [`AcquireError`]; [`Full`](AcquireError::Full) if the queue is full or the deadline has
    /// passed already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue; a place that was on its way goes to the next.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use loadbalancer::{Backend, Balancer, Outcome, Pick};
    ///
    /// let balancer = Balancer::builder().backend(Backend::new("a").max_in_flight(1)).build()?;
    /// let lease = balancer.acquire(&Pick::new()).await?;
    /// assert_eq!(&**lease.backend(), "a");
    /// lease.complete(Outcome::Success);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn acquire(&self, pick: &Pick) -> Result<Lease, AcquireError> {
        let full = match self.core.try_acquire_or_queue(pick) {
            Err(full @ AcquireError::Full { .. }) => full,
            other => return other,
        };
        // The clock of the timer, which a test may have stopped.
        let began = tokio::time::Instant::now().into_std();
        let longest = began + self.core.settings.wait_max;
        let deadline = pick.until().map_or(longest, |until| until.min(longest));
        if deadline <= began {
            self.core.shed.fetch_add(1, Relaxed);
            return Err(full);
        }
        let Some(mut waiting) = Waiting::queue(&self.core, pick) else {
            self.core.shed.fetch_add(1, Relaxed);
            return Err(full);
        };
        match timeout_at(deadline.into(), &mut waiting.answer).await {
            Ok(Ok(answer)) => answer,
            // The sender goes only after it has answered or with the queue.
            Ok(Err(_)) => Err(full),
            Err(_) => waiting.give_up().unwrap_or_else(|| {
                self.core.timed_out.fetch_add(1, Relaxed);
                let retry_after = self.core.room_in();
                Err(AcquireError::TimedOut { waited: deadline - began, retry_after })
            }),
        }
    }

    /// Replaces the set of backends.
    ///
    /// Backends that stay keep their counts, latency and ejections, and so do the last 256 that left
    /// when they come back. Leases of those that leave stay good.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem; the set is then as it was.
    pub fn update(&self, backends: impl IntoIterator<Item = Backend>) -> Result<(), BuildError> {
        self.update_at(backends, Instant::now())
    }

    /// Replaces the set of backends at `now`.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn update_at(
        &self,
        backends: impl IntoIterator<Item = Backend>,
        now: Instant,
    ) -> Result<(), BuildError> {
        let core = &self.core;
        // One more than may be is enough to know that there are too many.
        let most = core.settings.backends_max;
        let backends: Vec<_> = backends.into_iter().take(most.saturating_add(1)).collect();
        core.check(&backends)?;
        core.change(now, |set, at, events| set.replace(backends, at, core.maker(), events));
        Ok(())
    }

    /// Adds a backend, or gives the one with this id its new description.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem; the set is then as it was.
    pub fn insert(&self, backend: Backend) -> Result<(), BuildError> {
        let core = &self.core;
        core.change(Instant::now(), |set, at, events| {
            let mut backends = set.backends();
            match backends.iter_mut().find(|before| before.id == backend.id) {
                Some(before) => *before = backend,
                None => backends.push(backend),
            }
            core.check(&backends)?;
            set.replace(backends, at, core.maker(), events);
            Ok(())
        })
    }

    /// Takes a backend out of the set; returns whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        let core = &self.core;
        core.change(Instant::now(), |set, at, events| {
            let mut backends = set.backends();
            let before = backends.len();
            backends.retain(|backend| *backend.id != *id);
            let was_there = backends.len() < before;
            if was_there {
                set.replace(backends, at, core.maker(), events);
            }
            was_there
        })
    }

    /// Gives a backend another weight; returns whether it is there.
    ///
    /// Weights above 1,000,000 count as that.
    pub fn set_weight(&self, id: &str, weight: u32) -> bool {
        let weight = weight.min(crate::backend::WEIGHT_MAX);
        self.core.change(Instant::now(), |set, _, events| {
            set.adjust(id, |backend| backend.weight = weight, events)
        })
    }

    /// Gives a backend another limit of leases, at least 1; returns whether it is there.
    ///
    /// Leases above a lower limit stay good; there are no new ones until they are back.
    pub fn set_max_in_flight(&self, id: &str, leases: Option<u32>) -> bool {
        let leases = leases.map(|leases| leases.max(1));
        self.core.change(Instant::now(), |set, _, events| {
            set.adjust(id, |backend| backend.max_in_flight = leases, events)
        })
    }

    /// Gives a backend no new leases; returns whether it is there.
    ///
    /// [`Change::Drained`] tells when the last of those that are out is back.
    pub fn drain(&self, id: &str) -> bool {
        self.core.change(Instant::now(), |set, _, events| set.drain(id, events))
    }

    /// Gives a backend no traffic for `time`; returns whether it is there.
    pub fn eject(&self, id: &str, time: Duration) -> bool {
        self.eject_at(id, time, Instant::now())
    }

    /// Gives a backend no traffic for `time` from `now` on; returns whether it is there.
    pub fn eject_at(&self, id: &str, time: Duration, now: Instant) -> bool {
        self.core.change(now, |set, at, events| set.eject(id, time, at, events))
    }

    /// Gives a backend nothing for `time`; returns whether it is there.
    ///
    /// For whoever guards its calls, such as a circuit breaker that is open. Unlike an ejection it
    /// holds while health is ignored, has no share that it cannot exceed, and is forgotten when it is
    /// over. A later call replaces the time of one before.
    pub fn suspend(&self, id: &str, time: Duration) -> bool {
        self.suspend_at(id, time, Instant::now())
    }

    /// Gives a backend nothing for `time` from `now` on; returns whether it is there.
    pub fn suspend_at(&self, id: &str, time: Duration, now: Instant) -> bool {
        self.core.change(now, |set, at, events| set.suspend(id, time, at, events))
    }

    /// Ends the suspension of a backend; returns whether it is there.
    pub fn resume(&self, id: &str) -> bool {
        self.resume_at(id, Instant::now())
    }

    /// Ends the suspension of a backend at `now`; returns whether it is there.
    pub fn resume_at(&self, id: &str, now: Instant) -> bool {
        self.core.change(now, |set, at, events| set.resume(id, at, events))
    }

    /// Ends the draining or the ejection of a backend; returns whether it is there.
    pub fn restore(&self, id: &str) -> bool {
        self.restore_at(id, Instant::now())
    }

    /// Ends the draining or the ejection of a backend at `now`; returns whether it is there.
    pub fn restore_at(&self, id: &str, now: Instant) -> bool {
        self.core.change(now, |set, at, events| set.restore(id, at, events))
    }

    /// Takes the result of a check of a backend; returns whether it is there.
    ///
    /// Changes nothing unless the balancer was built with
    /// [`checks`](BalancerBuilder::checks).
    pub fn report_check(&self, id: &str, result: Result<(), &str>) -> bool {
        self.report_check_at(id, result, Instant::now())
    }

    /// Takes the result of a check that ended at `now`; returns whether the backend is there.
    pub fn report_check_at(&self, id: &str, result: Result<(), &str>, now: Instant) -> bool {
        self.core.change(now, |set, at, events| set.check(id, result, at, events))
    }

    /// Lets another policy choose from now on; counts, latencies and ejections stay.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the policy cannot be used; the old one then stays.
    pub fn set_policy(&self, policy: Policy) -> Result<(), BuildError> {
        if let Some(problem) = problem_of(&policy) {
            return Err(BuildError { problems: vec![problem] });
        }
        self.core.change(Instant::now(), |set, _, events| set.set_policy(policy, events));
        Ok(())
    }

    /// Returns the policy that chooses now.
    pub fn policy(&self) -> Policy {
        lock(&self.core.set).policy()
    }

    /// Listens to what happens from now on.
    pub fn events(&self) -> Events {
        Events::new(self.core.events.subscribe())
    }

    /// Tells listeners that a set could not be found out.
    #[cfg(feature = "discovery")]
    pub(crate) fn discovery_failed(&self, reason: String) {
        self.core.tell(Event { backend: None, change: Change::DiscoveryFailed { reason } });
    }

    /// Tells listeners that there should be more or fewer backends.
    #[cfg(feature = "actuators")]
    pub(crate) fn scale_advised(&self, advice: crate::ScaleAdvice) {
        self.core.tell(Event { backend: None, change: Change::ScaleAdvised { advice } });
    }

    /// Tells listeners that an advice was not acted upon.
    #[cfg(feature = "actuators")]
    pub(crate) fn scale_failed(&self, reason: String) {
        self.core.tell(Event { backend: None, change: Change::ScaleFailed { reason } });
    }

    /// The ids of the backends.
    #[cfg(any(feature = "checks", feature = "tower"))]
    pub(crate) fn ids(&self) -> std::collections::HashSet<Arc<str>> {
        let snapshot = self.core.snapshot.load();
        snapshot.members.iter().map(|node| Arc::clone(&node.id)).collect()
    }

    /// Describes every backend, in the order of the set.
    pub fn backends(&self) -> Vec<BackendStats> {
        self.backends_at(Instant::now())
    }

    /// Describes every backend at `now`.
    pub fn backends_at(&self, now: Instant) -> Vec<BackendStats> {
        self.core.advance(Some(now));
        lock(&self.core.set).stats(self.core.nanos(now))
    }

    /// Reads the counts of the balancer.
    ///
    /// # Cost
    ///
    /// One load for each backend. The numbers are read one after the other while calls go on.
    pub fn stats(&self) -> BalancerStats {
        self.core.stats()
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Core {
    fn nanos(&self, now: Instant) -> Nanos {
        nanos_since(self.epoch, now)
    }

    fn read(&self, now: Option<Instant>) -> Nanos {
        self.nanos(now.unwrap_or_else(Instant::now))
    }

    fn maker(self: &Arc<Self>) -> impl Fn(Arc<str>) -> Arc<Node> {
        let core = Arc::downgrade(self);
        let (epoch, fleet) = (self.epoch, Arc::clone(&self.fleet));
        move |id| Arc::new(Node::new(id, epoch, Arc::clone(&fleet), Weak::clone(&core)))
    }

    fn check(&self, backends: &[Backend]) -> Result<(), BuildError> {
        let mut problems = Vec::new();
        check_backends(backends, self.settings.backends_max, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(BuildError { problems }) }
    }

    fn try_acquire(&self, pick: &Pick, now: Option<Instant>) -> Result<Lease, AcquireError> {
        let lease = self.find(pick, now);
        if let Err(AcquireError::Full { .. }) = lease {
            self.shed.fetch_add(1, Relaxed);
        }
        lease
    }

    fn try_acquire_or_queue(&self, pick: &Pick) -> Result<Lease, AcquireError> {
        self.find(pick, None)
    }

    fn find(&self, pick: &Pick, now: Option<Instant>) -> Result<Lease, AcquireError> {
        let mut now = now;
        if self.next_change.load(Relaxed) != Nanos::MAX {
            now = Some(now.unwrap_or_else(Instant::now));
            self.advance(now);
        }
        if self.waiters.len() > 0 {
            return Err(self.full());
        }
        self.enter(pick, now)
    }

    /// Takes a place, passing by the queue.
    fn enter(&self, pick: &Pick, now: Option<Instant>) -> Result<Lease, AcquireError> {
        let snapshot = self.snapshot.load();
        let at = snapshot.averaging.map(|averaging| (self.read(now), averaging));
        let lease = |node: &Arc<Node>| Lease::new(Arc::clone(node), at, snapshot.bounded);
        if let Some(preferred) = pick.preferred()
            && let Some(node) = snapshot.ready.get(preferred)
            && !pick.avoids(&node.id)
            && node.try_enter(at.map_or(0, |(now, _)| now))
        {
            if snapshot.bounded {
                self.fleet.bounded_leases.fetch_add(1, Relaxed);
            }
            return Ok(lease(node));
        }
        let how = How {
            pick,
            now: at.map_or(0, |(now, _)| now),
            draw: self.draws.next(),
            usual: self.fleet.median.get().unwrap_or(1.0),
        };
        let enter = |avoiding| snapshot.levels.iter().find_map(|level| level.enter(&how, avoiding));
        // Any other backend goes before one that is avoided, whatever its level.
        let again = || if pick.avoided().is_empty() { None } else { enter(false) };
        if let Some(node) = enter(true).or_else(again) {
            return Ok(lease(node));
        }
        Err(if snapshot.members.is_empty() {
            AcquireError::Empty
        } else if snapshot.levels.is_empty() {
            let next = self.next_change.load(Relaxed);
            let retry_after = match next {
                Nanos::MAX => RETRY_UNKNOWN,
                next => Duration::from_nanos(next.saturating_sub(self.read(now))).max(RETRY_MIN),
            };
            AcquireError::Unavailable { retry_after }
        } else {
            self.full()
        })
    }

    fn full(&self) -> AcquireError {
        AcquireError::Full { waiting: self.waiters.len(), retry_after: self.room_in() }
    }

    /// Guesses when a newcomer would find room: a median latency for each round of the queue.
    fn room_in(&self) -> Duration {
        let Some(median) = self.fleet.median.get() else { return RETRY_UNKNOWN };
        let snapshot = self.snapshot.load();
        let places = snapshot.capacity.unwrap_or(u64::MAX).max(1);
        let rounds = 1.0 + self.waiters.len() as f64 / places as f64;
        Duration::from_nanos((median * rounds) as u64).clamp(RETRY_MIN, RETRY_MAX)
    }

    /// Does what time alone does, if it is due.
    fn advance(&self, now: Option<Instant>) {
        let next = self.next_change.load(Relaxed);
        if next == Nanos::MAX {
            return;
        }
        let now = now.unwrap_or_else(Instant::now);
        if self.nanos(now) >= next {
            self.change(now, |_, _, _| ());
        }
    }

    /// Changes the set, tells the listeners, and serves the queue.
    fn change<R>(
        &self,
        now: Instant,
        change: impl FnOnce(&mut Set, Nanos, &mut Vec<Event>) -> R,
    ) -> R {
        let result = self.change_unserved(now, change);
        self.serve(Some(now));
        result
    }

    fn change_unserved<R>(
        &self,
        now: Instant,
        change: impl FnOnce(&mut Set, Nanos, &mut Vec<Event>) -> R,
    ) -> R {
        let at = self.nanos(now);
        let mut events = Vec::new();
        let mut set = lock(&self.set);
        let result = change(&mut set, at, &mut events);
        set.expire(at, &mut events);
        self.snapshot.store(Arc::new(set.snapshot(at, &mut events)));
        self.next_change.store(set.next_change(at), Relaxed);
        self.compare_at.store(set.compare_at(), Relaxed);
        // Under the lock, so that they are told in the order in which they happened.
        events.into_iter().for_each(|event| self.tell(event));
        result
    }

    fn tell(&self, event: Event) {
        // An error says that nobody listens.
        _ = self.events.send(event);
    }

    /// Gives places to those who wait, as far as there are any.
    fn serve(&self, now: Option<Instant>) {
        self.waiters.serve(
            || Arc::clone(&self.snapshot.load().members),
            |waiter| match self.enter(&waiter.pick, now) {
                // Nobody is served before its turn, so there is no use in waiting on.
                Err(AcquireError::Full { .. }) => None,
                found => Some(found),
            },
            // One that has gone gives its place back at once, which serves the next.
            |waiter, found| _ = waiter.answer.send(found),
        );
    }

    /// Takes note of a failure, the `row`-th in a row.
    pub(crate) fn failed(&self, node: &Arc<Node>, row: u32, now: Option<Instant>) {
        let limit = self.settings.ejecting.consecutive_failures;
        // Each further row of the same length asks again, not each further failure.
        let is_row = limit > 0 && row.is_multiple_of(limit);
        let now = now.unwrap_or_else(Instant::now);
        if !is_row && self.nanos(now) < self.compare_at.load(Relaxed) {
            return;
        }
        let row = if is_row { row } else { 0 };
        self.change(now, |set, at, events| set.failed(node, row, at, events));
    }

    /// Does what a release found to be done.
    pub(crate) fn released(&self, node: &Node, released: Released, now: Option<Instant>) {
        if released.last_of_watched {
            self.tell(Event { backend: Some(Arc::clone(&node.id)), change: Change::Drained });
        }
        if released.awaited {
            self.serve(now);
        }
    }

    fn stats(&self) -> BalancerStats {
        let snapshot = self.snapshot.load();
        let sum = |of: fn(&Node) -> u64| snapshot.members.iter().map(|node| of(node)).sum();
        BalancerStats {
            backends: snapshot.members.len(),
            ready: snapshot.ready.len(),
            panicking: lock(&self.set).panicking(),
            in_flight: sum(|node| u64::from(node.in_flight())),
            capacity: snapshot.capacity,
            leases: sum(Node::leases),
            waiting: self.waiters.len(),
            shed: self.shed.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
        }
    }
}

/// A place in the queue; leaves it when dropped.
struct Waiting<'c> {
    core: &'c Core,
    number: u64,
    answer: oneshot::Receiver<Result<Lease, AcquireError>>,
}

impl<'c> Waiting<'c> {
    /// Queues, unless the queue is full.
    fn queue(core: &'c Core, pick: &Pick) -> Option<Self> {
        let (answer, receiver) = oneshot::channel();
        let number = core.waiters.push(Waiter { pick: pick.clone(), answer })?;
        // From here on a drop leaves the queue.
        let waiting = Self { core, number, answer: receiver };
        // There may have been a release since the last look, which found nobody waiting.
        core.serve(None);
        Some(waiting)
    }

    /// Leaves the queue; returns an answer that came at the last moment.
    fn give_up(mut self) -> Option<Result<Lease, AcquireError>> {
        self.core.waiters.remove(self.number);
        self.answer.close();
        self.answer.try_recv().ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.core.waiters.remove(self.number);
    }
}

/// A snapshot of a balancer's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BalancerStats {
    /// Backends in the set.
    pub backends: usize,
    /// Those of them that get traffic.
    pub ready: usize,
    /// Whether health is ignored because too few are healthy.
    pub panicking: bool,
    /// Leases that are out.
    pub in_flight: u64,
    /// Places of those that get traffic; `None` if one of them has no limit.
    pub capacity: Option<u64>,
    /// Leases since the backends of the set were first added.
    pub leases: u64,
    /// Calls that wait for a place.
    pub waiting: usize,
    /// Calls that were turned away because all backends, and the queue if they would wait, were full.
    pub shed: u64,
    /// Calls that waited in vain.
    pub timed_out: u64,
}
