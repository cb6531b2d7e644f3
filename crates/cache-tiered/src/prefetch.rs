//! Fetching ahead: values that will be asked for next are loaded before they are.
//!
//! Two sources tell what comes next: [`Successions`], which the cache learns from its own requests,
//! and what the user knows ([`related`](crate::CacheBuilder::related)). Both are asked when a key is
//! missing in memory, and when one that was fetched ahead is hit for the first time; so what was
//! predicted right leads on to what comes after it. Other hits are no part of this: they neither
//! teach nor predict, and cost what they cost without it. A [`LoadingCache`](crate::LoadingCache)
//! does it, because it takes a loader that outlives a call.
//!
//! # What comes of it
//!
//! A key that is being fetched ahead has a *mark*, 32 bits of its hash and of its state in a small
//! table without locks, and a place in a queue. A hit looks into the table only while any mark is
//! set. The mark ends with the first of these:
//!
//! - the key is hit, or asked for while the value is on its way: it was *used*;
//! - its load fails, it is overwritten or removed, or it is missing although it had come: *wasted*;
//! - a look at the queue, two keys with every new one, finds that it is in memory no more, or the
//!   queue is full and it is the oldest: *wasted*.
//!
//! The [`Governor`] follows fewer predictions while fewer than 30 % of what was decided was used.
//!
//! # Bounds
//!
//! The rows of the table of successions, the fetches under way, and [`OUTSTANDING_MAX`] marks.

mod governor;
mod successions;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Problem;
use crate::stats::PrefetchStats;

use governor::Governor;
use successions::Successions;

/// Keys that were fetched ahead and may still be hit, at most.
pub(crate) const OUTSTANDING_MAX: usize = 1_024;
/// Slots for their marks, so that few find all of theirs taken.
const SLOTS: usize = 4 * OUTSTANDING_MAX;
/// Keys that are taken of what a user calls related to one key.
const RELATED_MAX: usize = 16;
/// Keys of the queue that are looked at with every new one.
const REVIEWED: usize = 2;

/// What a [`LoadingCache`](crate::LoadingCache) learns to load before it is asked for.
///
/// Given to [`CacheBuilder::prefetch`](crate::CacheBuilder::prefetch).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prefetch {
    /// Keys whose successors are remembered, up to three each; 16,384 unless told otherwise, 0 for
    /// none. About 110 bytes for each with keys of 8 bytes, and what longer keys own.
    pub successions: usize,
    /// Fetches ahead that may be under way at once; 16 unless told otherwise.
    pub in_flight: usize,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { successions: 16_384, in_flight: 16 }
    }
}

impl Prefetch {
    /// Sets the number of keys whose successors are remembered; 0 learns nothing.
    #[must_use]
    pub fn successions(self, keys: usize) -> Self {
        Self { successions: keys, ..self }
    }

    /// Sets how many fetches ahead may be under way at once.
    #[must_use]
    pub fn in_flight(self, fetches: usize) -> Self {
        Self { in_flight: fetches, ..self }
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.successions > 1 << 24 {
            let expected = "must be at most 16777216";
            problems.push(Problem::new("prefetch.successions", self.successions, expected));
        }
        if !(1..=OUTSTANDING_MAX).contains(&self.in_flight) {
            let expected = format!("must be between 1 and {OUTSTANDING_MAX}");
            problems.push(Problem::new("prefetch.in_flight", self.in_flight, expected));
        }
        problems
    }
}

/// Tells what a user knows to be asked for after a key.
pub(crate) type Related<K> = Arc<dyn Fn(&K, &mut Vec<K>) + Send + Sync>;

/// Wraps what the user gave, and takes no more of it than is of use.
pub(crate) fn related<K, F, I>(of: F) -> Related<K>
where
    F: Fn(&K) -> I + Send + Sync + 'static,
    I: IntoIterator<Item = K>,
{
    Arc::new(move |key, keys| keys.extend(of(key).into_iter().take(RELATED_MAX)))
}

/// What one cache fetches ahead.
pub(crate) struct Prefetcher<K> {
    marks: Marks,
    /// What was asked for last; it holds unless nothing is fetched ahead at present.
    options: Mutex<Prefetch>,
    paused: AtomicBool,
    learned: Mutex<Option<Successions<K>>>,
    related: Option<Related<K>>,
    queue: Mutex<VecDeque<(u64, K)>>,
    governor: Mutex<Governor>,
    /// For the fetches under way; others when their number is changed.
    permits: Mutex<Arc<Semaphore>>,
    issued: AtomicU64,
    used: AtomicU64,
    wasted: AtomicU64,
    skipped: AtomicU64,
}

impl<K> fmt::Debug for Prefetcher<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<K> Prefetcher<K> {
    /// Whether a hit has to be told to [`hit`](Self::hit).
    #[inline]
    pub(crate) fn watches(&self) -> bool {
        // Relaxed: a mark that is seen a moment later makes a use that is not counted.
        self.marks.set.load(Ordering::Relaxed) > 0
    }

    /// Tells whether this hit is the first of a key that was fetched ahead.
    #[inline]
    pub(crate) fn hit(&self, hash: u64) -> bool {
        let marked = self.marks.find(hash).is_some() && self.marks.take(hash).is_some();
        if marked {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
        marked
    }

    /// Hears that a key was asked for which memory does not have, and tells whether it is on its way.
    pub(crate) fn missed(&self, hash: u64) -> bool {
        let mark = self.watches().then(|| self.marks.take(hash)).flatten();
        match mark {
            Some(Mark::Coming) => self.used.fetch_add(1, Ordering::Relaxed),
            Some(Mark::There) => self.wasted.fetch_add(1, Ordering::Relaxed),
            None => 0,
        };
        mark == Some(Mark::Coming)
    }

    /// Hears that a key is overwritten or removed. A fetch of it that is on its way tells by itself.
    #[inline]
    pub(crate) fn displaced(&self, hash: u64) {
        if self.watches() && self.marks.take_if_there(hash) {
            self.wasted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hears how a fetch has ended.
    pub(crate) fn landed(&self, hash: u64, kept: bool) {
        if kept {
            self.marks.land(hash);
        } else if self.marks.take(hash).is_some() {
            self.wasted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hears that a prediction was not followed.
    pub(crate) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> PrefetchStats {
        PrefetchStats {
            issued: self.issued.load(Ordering::Relaxed),
            used: self.used.load(Ordering::Relaxed),
            wasted: self.wasted.load(Ordering::Relaxed),
            outstanding: self.marks.set.load(Ordering::Relaxed) as u64,
            skipped: self.skipped.load(Ordering::Relaxed),
            one_of: self.governor.lock().one_of(),
        }
    }
}

impl<K: Clone> Prefetcher<K> {
    /// Makes one that learns as `options` say, or is told by `related`, or both.
    pub(crate) fn new(options: Prefetch, related: Option<Related<K>>) -> Self {
        Self {
            marks: Marks::new(),
            options: Mutex::new(options),
            paused: AtomicBool::new(false),
            learned: Mutex::new(Self::learning(options)),
            related,
            queue: Mutex::default(),
            governor: Mutex::default(),
            permits: Mutex::new(Arc::new(Semaphore::new(options.in_flight))),
            issued: AtomicU64::new(0),
            used: AtomicU64::new(0),
            wasted: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    fn learning(options: Prefetch) -> Option<Successions<K>> {
        (options.successions > 0).then(|| Successions::new(options.successions))
    }

    /// What is fetched ahead at present, `None` if nothing is.
    pub(crate) fn options(&self) -> Option<Prefetch> {
        let options = self.options.lock();
        (!self.paused.load(Ordering::Relaxed)).then_some(*options)
    }

    /// Fetches ahead as `options` say from now on; `None` is nothing. What was learned stays, unless
    /// another number of keys is to be remembered.
    pub(crate) fn set_options(&self, options: Option<Prefetch>) {
        let mut forgotten = None;
        let mut current = self.options.lock();
        if let Some(options) = options {
            let before = std::mem::replace(&mut *current, options);
            if before.successions != options.successions {
                let learning = Self::learning(options);
                forgotten = std::mem::replace(&mut *self.learned.lock(), learning);
            }
            if before.in_flight != options.in_flight {
                *self.permits.lock() = Arc::new(Semaphore::new(options.in_flight));
            }
        }
        // Relaxed: a prediction more or less.
        self.paused.store(options.is_none(), Ordering::Relaxed);
        drop(current);
        drop(forgotten);
    }

    /// The right to fetch one more key ahead, unless enough are on their way.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits.lock());
        permits.try_acquire_owned().ok()
    }

    /// The keys that are worth fetching now that this one is asked for. Learns from it, too.
    pub(crate) fn expected_after(&self, hash: u64, key: &K) -> Vec<K> {
        let mut expected = Vec::new();
        if self.paused.load(Ordering::Relaxed) {
            return expected;
        }
        let mut dropped = Vec::new();
        if let Some(learned) = &mut *self.learned.lock() {
            learned.observe(hash, key, &mut dropped);
            expected.extend(learned.expected_after(hash).into_iter().map(|(_, key)| key));
        }
        drop(dropped);
        if let Some(related) = &self.related {
            related(key, &mut expected);
        }
        if expected.is_empty() {
            return expected;
        }
        let (used, wasted) =
            (self.used.load(Ordering::Relaxed), self.wasted.load(Ordering::Relaxed));
        let mut governor = self.governor.lock();
        let all = expected.len();
        let mut followed = Vec::with_capacity(all);
        let mut refused = Vec::new();
        for key in expected {
            if governor.allows(used, wasted) { followed.push(key) } else { refused.push(key) }
        }
        drop(governor);
        self.skipped.fetch_add(refused.len() as u64, Ordering::Relaxed);
        followed
    }

    /// Marks a key that is about to be fetched; false when there is no room for its mark, or it has one.
    ///
    /// `is_there` tells whether memory has a key. It is called with no lock held.
    pub(crate) fn begin(&self, hash: u64, key: K, is_there: impl Fn(&K) -> bool) -> bool {
        for _ in 0..REVIEWED {
            let oldest = self.queue.lock().pop_front();
            let Some((hash, key)) = oldest else { break };
            match self.marks.find(hash) {
                Some(Mark::There) if !is_there(&key) => self.landed(hash, false),
                Some(_) => self.enqueue(hash, key),
                None => {}
            }
        }
        if !self.marks.mark(hash) {
            self.skip();
            return false;
        }
        self.issued.fetch_add(1, Ordering::Relaxed);
        self.enqueue(hash, key);
        true
    }

    fn enqueue(&self, hash: u64, key: K) {
        let mut queue = self.queue.lock();
        let oldest = if queue.len() == OUTSTANDING_MAX { queue.pop_front() } else { None };
        queue.push_back((hash, key));
        drop(queue);
        if let Some((hash, _)) = oldest {
            self.landed(hash, false);
        }
    }
}

/// What a mark says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// The value is on its way.
    Coming,
    /// The value has come, and was not hit yet.
    There,
}

/// The marks, in slots of 32 bits: 30 of a hash, one that is set in every mark, and one for [`Mark`].
///
/// A key's mark is in one of four slots that lie side by side. All accesses are relaxed: a mark orders
/// nothing, and one that is lost in a race is a count that is off by one.
struct Marks {
    slots: Box<[AtomicU32]>,
    /// How many are set.
    set: AtomicUsize,
}

impl Marks {
    const SET: u32 = 1;
    const THERE: u32 = 2;
    const WAYS: usize = 4;

    fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(), set: AtomicUsize::new(0) }
    }

    #[inline]
    fn places(&self, hash: u64) -> (&[AtomicU32], u32) {
        let mixed = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let at = (mixed >> 40) as usize & (SLOTS - Self::WAYS);
        let mark = mixed as u32 & !(Self::SET | Self::THERE) | Self::SET;
        (&self.slots[at..at + Self::WAYS], mark)
    }

    #[inline]
    fn locate(&self, hash: u64) -> Option<(&AtomicU32, u32)> {
        let (places, mark) = self.places(hash);
        let mut places = places.iter().map(|place| (place, place.load(Ordering::Relaxed)));
        places.find(|(_, found)| found & !Self::THERE == mark)
    }

    fn state(found: u32) -> Mark {
        if found & Self::THERE == 0 { Mark::Coming } else { Mark::There }
    }

    #[inline]
    fn find(&self, hash: u64) -> Option<Mark> {
        self.locate(hash).map(|(_, found)| Self::state(found))
    }

    /// Sets a mark; false if the key has one or no slot is free.
    fn mark(&self, hash: u64) -> bool {
        if self.find(hash).is_some() {
            return false;
        }
        let (places, mark) = self.places(hash);
        let free = places.iter().any(|place| Self::exchange(place, 0, mark));
        if free {
            self.set.fetch_add(1, Ordering::Relaxed);
        }
        free
    }

    fn land(&self, hash: u64) {
        if let Some((slot, found)) = self.locate(hash) {
            Self::exchange(slot, found, found | Self::THERE);
        }
    }

    /// Ends a mark, and tells what it said.
    fn take(&self, hash: u64) -> Option<Mark> {
        let (slot, found) = self.locate(hash)?;
        self.clear(slot, found).then(|| Self::state(found))
    }

    /// Ends a mark if its value has come.
    fn take_if_there(&self, hash: u64) -> bool {
        let located = self.locate(hash);
        located.is_some_and(|(slot, found)| {
            Self::state(found) == Mark::There && self.clear(slot, found)
        })
    }

    fn clear(&self, slot: &AtomicU32, found: u32) -> bool {
        let cleared = Self::exchange(slot, found, 0);
        if cleared {
            self.set.fetch_sub(1, Ordering::Relaxed);
        }
        cleared
    }

    fn exchange(slot: &AtomicU32, old: u32, new: u32) -> bool {
        slot.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
