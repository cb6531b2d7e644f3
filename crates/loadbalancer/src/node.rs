//! One backend as the picks see it: a count of leases, a limit, a weight and a latency.
//!
//! The count carries two flags. WAITING says that somebody queues for a place, WATCHED that somebody
//! wants to know when the last lease is back. Both sit in the word that every release changes anyway,
//! so the release that finds no flag owes nobody anything, and there is no instant in which a waiter
//! has seen no room and a releaser no waiter: whoever changes the word second sees what the first
//! did. Flags are set and cleared under the lock of the queue and of the set, respectively.
//!
//! A node outlives its place in the set: leases hold it, and a backend that comes back under the same
//! name gets its node back. What the leases touch stands first and together with the reference count
//! of the `Arc`, so that taking a lease moves one or two cache lines, not three.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::balancer::Core;
use crate::latency::{Latency, Median, Nanos};
use crate::sync::{AcqRel, Acquire, AtomicU32, AtomicU64, Relaxed};

const WAITING: u32 = 1 << 31;
const WATCHED: u32 = 1 << 30;
/// Leases that a backend without a limit can have.
pub(crate) const UNLIMITED: u32 = WATCHED - 1;
const COUNT: u32 = UNLIMITED;

/// The state of one backend that leases and picks share.
#[repr(C)]
pub(crate) struct Node {
    count: AtomicU32,
    limit: AtomicU32,
    failures_in_row: AtomicU32,
    /// One through the weight in effect, as the bits of an `f32`; infinite for weight zero.
    per_weight: AtomicU32,
    /// Leases that have told how the call went and keep their places, as for a body that goes on.
    answered_open: AtomicU32,
    pub(crate) latency: Latency,
    /// When it last took a lease while it owed no answer, if the policy reads the clock.
    busy_since: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    /// Leases that came back as neither a success nor a failure.
    unanswered: AtomicU64,
    pub(crate) id: Arc<str>,
    pub(crate) epoch: Instant,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) core: Weak<Core>,
}

/// What all nodes of a balancer write to, apart from what they read.
pub(crate) struct Fleet {
    /// Leases of the policies that bound the load of a node by the mean of all.
    pub(crate) bounded_leases: CachePadded<AtomicU64>,
    pub(crate) median: CachePadded<Median>,
    /// What a failure's latency is taken for, in nanoseconds.
    pub(crate) failure_penalty: f64,
}

impl Fleet {
    pub(crate) fn new(failure_penalty: Duration) -> Self {
        Self {
            failure_penalty: failure_penalty.as_nanos() as f64,
            bounded_leases: CachePadded::new(AtomicU64::new(0)),
            median: CachePadded::new(Median::unknown()),
        }
    }
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Somebody waits for a place.
    pub(crate) awaited: bool,
    /// It was the last lease of a node that is watched.
    pub(crate) last_of_watched: bool,
}

impl Node {
    pub(crate) fn new(id: Arc<str>, epoch: Instant, fleet: Arc<Fleet>, core: Weak<Core>) -> Self {
        Self {
            count: AtomicU32::new(0),
            limit: AtomicU32::new(UNLIMITED),
            failures_in_row: AtomicU32::new(0),
            per_weight: AtomicU32::new(1.0_f32.to_bits()),
            answered_open: AtomicU32::new(0),
            latency: Latency::unknown(),
            busy_since: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            id,
            epoch,
            fleet,
            core,
        }
    }

    pub(crate) fn nanos(&self, now: Instant) -> Nanos {
        nanos_since(self.epoch, now)
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.count.load(Relaxed) & COUNT
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: u32) {
        self.limit.store(limit.min(UNLIMITED), Relaxed);
    }

    pub(crate) fn per_weight(&self) -> f64 {
        f64::from(f32::from_bits(self.per_weight.load(Relaxed)))
    }

    pub(crate) fn set_weight(&self, weight: f64) {
        self.per_weight.store(((1.0 / weight) as f32).to_bits(), Relaxed);
    }

    /// The leases out if there is room for one more.
    pub(crate) fn room(&self) -> Option<u32> {
        let count = self.in_flight();
        (count < self.limit()).then_some(count)
    }

    /// Since when it has owed answers without a pause; zero if nobody has read the clock.
    pub(crate) fn busy_since(&self) -> Nanos {
        self.busy_since.load(Relaxed)
    }

    /// Takes a place if there is one; `now` is zero for policies that read no clock.
    pub(crate) fn try_enter(&self, now: Nanos) -> bool {
        let limit = self.limit();
        let enter = |count: u32| (count & COUNT < limit).then(|| count + 1);
        // Acquire: a place that was given back is seen with what its lease recorded. Pairs with the
        // AcqRel in `leave`; checked by `loom_a_place_is_given_once`.
        let before = self.count.fetch_update(AcqRel, Acquire, enter);
        if let Ok(before) = before
            && before & COUNT <= self.answered_open.load(Relaxed)
        {
            self.busy_since.store(now, Relaxed);
        }
        before.is_ok()
    }

    /// Gives a place back.
    pub(crate) fn leave(&self) -> Released {
        // AcqRel: as in `try_enter`; a waiter that set its flag before this has queued before this.
        // Checked by `loom_no_waiter_is_forgotten`.
        let before = self.count.fetch_sub(1, AcqRel);
        debug_assert!(before & COUNT > 0, "a place was given back twice");
        Released {
            awaited: before & WAITING != 0,
            last_of_watched: before & (COUNT | WATCHED) == (1 | WATCHED),
        }
    }

    /// Notes that a lease keeps its place after its answer.
    pub(crate) fn open_answer(&self) {
        self.answered_open.fetch_add(1, Relaxed);
    }

    /// Notes that such a lease gives its place back now.
    pub(crate) fn close_answer(&self) {
        self.answered_open.fetch_sub(1, Relaxed);
    }

    /// Whether some of its `leases` have no answer yet.
    pub(crate) fn owes_answers(&self, leases: u32) -> bool {
        leases > self.answered_open.load(Relaxed)
    }

    /// Makes every later release say that somebody waits.
    pub(crate) fn await_places(&self) {
        if self.count.load(Relaxed) & WAITING == 0 {
            self.count.fetch_or(WAITING, AcqRel);
        }
    }

    /// Ends what [`await_places`](Self::await_places) began.
    pub(crate) fn stop_awaiting(&self) {
        if self.count.load(Relaxed) & WAITING != 0 {
            self.count.fetch_and(!WAITING, AcqRel);
        }
    }

    /// Makes the release of the last lease say so; returns the leases out.
    pub(crate) fn watch(&self) -> u32 {
        self.count.fetch_or(WATCHED, AcqRel) & COUNT
    }

    /// Ends what [`watch`](Self::watch) began.
    pub(crate) fn stop_watching(&self) {
        self.count.fetch_and(!WATCHED, AcqRel);
    }

    /// Counts a good answer.
    pub(crate) fn succeeded(&self) {
        self.answered.fetch_add(1, Relaxed);
        if self.failures_in_row.load(Relaxed) != 0 {
            self.failures_in_row.store(0, Relaxed);
        }
    }

    /// Counts a failure and returns how many there were in a row.
    pub(crate) fn failed(&self) -> u32 {
        self.answered.fetch_add(1, Relaxed);
        self.failed.fetch_add(1, Relaxed);
        self.failures_in_row.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Makes a success that was counted a failure, and returns how many there were in a row.
    pub(crate) fn failed_after_all(&self) -> u32 {
        self.failed.fetch_add(1, Relaxed);
        self.failures_in_row.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Forgets the failures in a row.
    pub(crate) fn forgive(&self) {
        self.failures_in_row.store(0, Relaxed);
    }

    /// Answers and failures so far; an answer is a call that succeeded or failed.
    pub(crate) fn answers(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Counts a lease that came back as neither a success nor a failure.
    pub(crate) fn unanswered(&self) {
        self.unanswered.fetch_add(1, Relaxed);
    }

    /// Leases so far: those that came back or were answered, which are counted then, and the others
    /// that are out.
    ///
    /// One that is coming back may be counted twice for a moment. A count of their own would cost every
    /// pick an atomic step.
    pub(crate) fn leases(&self) -> u64 {
        let back = self.answered.load(Relaxed) + self.unanswered.load(Relaxed);
        let owed = self.in_flight().saturating_sub(self.answered_open.load(Relaxed));
        back + u64::from(owed)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// The time since the balancer was built; a time before that counts as that.
pub(crate) fn nanos_since(epoch: Instant, now: Instant) -> Nanos {
    let since = now.saturating_duration_since(epoch);
    // Enough for five centuries, and cheaper than to ask for 128 bits.
    since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos()))
}
