//! The sliding window: a ring of buckets that count calls, without a lock and without a sweeper.
//!
//! Time is cut into numbered *slots* of a tenth of the window. Slot `s` counts in bucket
//! `s % BUCKETS`; the window is the newest slot and the nine before it, so it reaches back between
//! nine and ten tenths. `newest` only grows: whoever records first in a later slot raises it, and
//! a time older than the newest slot counts in the newest slot, so a clock that stands still or
//! steps back loses nothing.
//!
//! A bucket is never cleared. Each of its counters is a [`TaggedCounter`], one word with a tag and
//! a count, and the tag names the slot and the breaker's generation that the count belongs to. A
//! counter with another tag reads as zero, and the first one to record under a new tag replaces
//! the word by compare-exchange. That makes the two races of such rings impossible: a thread that
//! was held up between choosing a bucket and adding cannot add to a later slot (its exchange
//! fails, and it looks again), and an outcome of an older generation cannot count in a newer one.
//!
//! A tag holds the low 24 bits of the slot and the low 8 bits of the generation. An old count could
//! only pass for a new one if its bucket were left alone for an exact multiple of 5 x 2^24 slots
//! (84 million: 2.6 years with a window of 10 s) within generations that agree in those bits.
//!
//! [`InFlight`] is a ring of the same kind over the times at which calls *began*: a counter goes up
//! when a call begins in its slot and down when that call ends, so what is left in an old slot are
//! the calls that are overdue, without a list of calls.

use crossbeam_utils::CachePadded;

use crate::sync::{AcqRel, Acquire, AtomicU64, Relaxed};

/// Buckets in the ring; under loom two, so that a turn of the ring is near.
pub(crate) const BUCKETS: u64 = if cfg!(loom) { 2 } else { 10 };

/// The calls of one generation that lie in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Calls that were given up by their caller after they had taken too long.
    pub(crate) abandoned: u64,
    /// Calls that took too long, however they ended.
    pub(crate) slow: u64,
}

/// How a counted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Succeeded,
    Failed,
    Abandoned,
}

impl Totals {
    pub(crate) fn calls(&self) -> u64 {
        self.succeeded + self.failed + self.abandoned
    }
}

/// A ring of buckets over the last tenths of the window.
pub(crate) struct Window {
    bucket_nanos: u64,
    newest: CachePadded<AtomicU64>,
    ring: CachePadded<[Bucket; BUCKETS as usize]>,
}

#[derive(Default)]
struct Bucket {
    succeeded: TaggedCounter,
    failed: TaggedCounter,
    abandoned: TaggedCounter,
    slow: TaggedCounter,
}

impl Window {
    /// Makes an empty window of `window_nanos`, which is at least [`BUCKETS`].
    pub(crate) fn new(window_nanos: u64) -> Self {
        Self {
            bucket_nanos: (window_nanos / BUCKETS).max(1),
            newest: CachePadded::new(AtomicU64::new(0)),
            ring: CachePadded::new(std::array::from_fn(|_| Bucket::default())),
        }
    }

    /// Counts one call, unless its generation is over: then it counts nothing and says `false`.
    ///
    /// `is_current` tells whether the breaker is still in `generation`.
    #[inline]
    pub(crate) fn record(
        &self,
        generation: u32,
        ended: Ended,
        slow: bool,
        now: u64,
        is_current: impl Fn() -> bool,
    ) -> bool {
        let outcome = self.add(generation, now, &is_current, |bucket| match ended {
            Ended::Succeeded => &bucket.succeeded,
            Ended::Failed => &bucket.failed,
            Ended::Abandoned => &bucket.abandoned,
        });
        if slow && outcome {
            self.add(generation, now, &is_current, |bucket| &bucket.slow);
        }
        outcome
    }

    #[inline]
    fn add(
        &self,
        generation: u32,
        now: u64,
        is_current: &impl Fn() -> bool,
        counter: impl Fn(&Bucket) -> &TaggedCounter,
    ) -> bool {
        loop {
            let slot = self.turn_to(now);
            let bucket = &self.ring[(slot % BUCKETS) as usize];
            let added = counter(bucket).add(tag(generation, slot), || {
                self.newest.load(Relaxed) < slot + BUCKETS && is_current()
            });
            if added.is_some() {
                return true;
            }
            if !is_current() {
                return false;
            }
        }
    }

    /// Raises the newest slot to that of `now` and returns the newest.
    #[inline]
    fn turn_to(&self, now: u64) -> u64 {
        // Relaxed: whoever puts a slot's tag into a counter has seen `newest` at that slot before,
        // and the Release and Acquire on the counter (see `TaggedCounter::add`) hand this on, so
        // who meets the tag and then reads `newest` cannot read less.
        // Checked by `loom_a_turn_of_the_ring_mixes_no_slots`.
        let newest = self.newest.load(Relaxed);
        // A product, since a division for every call would cost as much as the counting.
        if now < (newest + 1).saturating_mul(self.bucket_nanos) {
            return newest;
        }
        let slot = now / self.bucket_nanos;
        self.newest.fetch_max(slot, Relaxed).max(slot)
    }

    /// Sums the calls of `generation` that lie in the window at `now`.
    pub(crate) fn totals(&self, generation: u32, now: u64) -> Totals {
        // Relaxed: a thread always sees its own additions and those before them in the same
        // counter; additions elsewhere may be seen a moment late.
        let newest = self.newest.load(Relaxed).max(now / self.bucket_nanos);
        let mut totals = Totals::default();
        for slot in newest.saturating_sub(BUCKETS - 1)..=newest {
            let bucket = &self.ring[(slot % BUCKETS) as usize];
            let tag = tag(generation, slot);
            totals.succeeded += u64::from(bucket.succeeded.count(tag));
            totals.failed += u64::from(bucket.failed.count(tag));
            totals.abandoned += u64::from(bucket.abandoned.count(tag));
            totals.slow += u64::from(bucket.slow.count(tag));
        }
        totals
    }
}

/// Slots of [`InFlight`]: a limit and a window of at most [`BUCKETS`] steps each, and the edges. A power
/// of two, so that the low half of a slot's number finds its place.
const BEGUN: u64 = (2 * BUCKETS + 2).next_power_of_two();

/// Calls that are in flight, counted by when they began.
///
/// A step is a tenth of the window or of the limit, whichever is longer. A call is overdue when its
/// whole step is, so at most a step late, and stays so for one window.
pub(crate) struct InFlight {
    limit: u64,
    step: u64,
    /// The limit in steps, rounded up.
    reach: u64,
    newest: CachePadded<AtomicU64>,
    ring: [TaggedCounter; BEGUN as usize],
}

impl InFlight {
    pub(crate) fn new(window_nanos: u64, limit_nanos: u64) -> Self {
        let step = window_nanos.max(limit_nanos).div_ceil(BUCKETS).max(1);
        Self {
            limit: limit_nanos,
            step,
            reach: limit_nanos.div_ceil(step),
            newest: CachePadded::new(AtomicU64::new(0)),
            ring: std::array::from_fn(|_| TaggedCounter::default()),
        }
    }

    /// Returns the slot of `now`, and whether this is the first look at it.
    pub(crate) fn turn_to(&self, now: u64) -> (u64, bool) {
        // Relaxed: as in `Window::turn_to`.
        let newest = self.newest.load(Relaxed);
        if now < (newest + 1).saturating_mul(self.step) {
            return (newest, false);
        }
        let slot = now / self.step;
        let before = self.newest.fetch_max(slot, Relaxed);
        (slot.max(before), before < slot)
    }

    /// Counts a call that begins in `slot`, unless the slot or its generation is over.
    pub(crate) fn begin(&self, generation: u32, slot: u64, is_current: impl Fn() -> bool) -> bool {
        let counter = &self.ring[(slot % BEGUN) as usize];
        let may_take = || self.newest.load(Relaxed) < slot + BEGUN && is_current();
        counter.add(tag(generation, slot), may_take).is_some()
    }

    /// Counts the end of a call that began in the slot whose number ends in `slot`.
    pub(crate) fn end(&self, generation: u32, slot: u32) {
        let slot = u64::from(slot);
        self.ring[(slot % BEGUN) as usize].take(tag(generation, slot));
    }

    /// Counts the calls of `generation` that are past the limit at `now` and still in flight.
    pub(crate) fn overdue(&self, generation: u32, now: u64) -> u64 {
        let newest = self.newest.load(Relaxed).max(now / self.step);
        let oldest = newest.saturating_sub(self.reach + BUCKETS);
        (oldest..=newest)
            .take_while(|slot| {
                (slot + 1).saturating_mul(self.step).saturating_add(self.limit) <= now
            })
            .map(|slot| u64::from(self.ring[(slot % BEGUN) as usize].count(tag(generation, slot))))
            .sum()
    }
}

fn tag(generation: u32, slot: u64) -> u32 {
    (generation << 24) | (slot as u32 & 0x00ff_ffff)
}

/// A count that belongs to a tag: under any other tag it is zero.
///
/// The tag is the high half of one word, the count the low half.
#[derive(Default)]
pub(crate) struct TaggedCounter(AtomicU64);

impl TaggedCounter {
    /// Adds one under `tag` and returns the count, or nothing if the counter is not `tag`'s to take.
    ///
    /// A counter with another tag is taken over, starting at one, if `may_take` says so.
    #[inline]
    pub(crate) fn add(&self, tag: u32, may_take: impl Fn() -> bool) -> Option<u32> {
        // Acquire, here and when the exchange fails: pairs with the Release of the exchange that
        // put a tag there. Its thread had seen the generation and the newest slot of that tag, so
        // `may_take`, which reads both, cannot miss them and answers `false` if ours is the older.
        // If another tag comes in after `may_take`, the exchange fails.
        // Checked, by way of the failed exchange, by `loom_a_turn_of_the_ring_mixes_no_slots`; the
        // tag of another generation by `loom_a_success_of_before_a_reset_clears_nothing_after_it`.
        let mut seen = self.0.load(Acquire);
        loop {
            let count = if tag_of(seen) == tag {
                count_of(seen).saturating_add(1)
            } else if may_take() {
                1
            } else {
                return None;
            };
            match self.0.compare_exchange_weak(seen, pack(tag, count), AcqRel, Acquire) {
                Ok(_) => return Some(count),
                Err(other) => seen = other,
            }
        }
    }

    /// Takes one from the count of `tag`, if there is one.
    pub(crate) fn take(&self, tag: u32) {
        let mut seen = self.0.load(Acquire);
        while tag_of(seen) == tag && count_of(seen) > 0 {
            // AcqRel: as in `clear`.
            let less = pack(tag, count_of(seen) - 1);
            match self.0.compare_exchange_weak(seen, less, AcqRel, Acquire) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// Sets the count of `tag` to zero.
    #[inline]
    pub(crate) fn clear(&self, tag: u32) {
        let mut seen = self.0.load(Acquire);
        while tag_of(seen) == tag && count_of(seen) > 0 {
            // AcqRel: keeps the chain of Releases that `add` reads from unbroken. Checked by
            // `loom_a_success_of_before_a_reset_clears_nothing_after_it`.
            match self.0.compare_exchange_weak(seen, pack(tag, 0), AcqRel, Acquire) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// Returns the count of `tag`.
    pub(crate) fn count(&self, tag: u32) -> u32 {
        let seen = self.0.load(Relaxed);
        if tag_of(seen) == tag { count_of(seen) } else { 0 }
    }
}

fn pack(tag: u32, count: u32) -> u64 {
    (u64::from(tag) << 32) | u64::from(count)
}

fn tag_of(word: u64) -> u32 {
    (word >> 32) as u32
}

fn count_of(word: u64) -> u32 {
    word as u32
}
