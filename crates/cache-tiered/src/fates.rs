//! What became of keys: why a miss is one, and what a load of it was good for.
//!
//! A share of the keys is watched, chosen by their hashes; any other key costs a comparison when it is
//! missed or leaves. When a watched key leaves memory it is noted why, and when it is missed
//! thereafter the miss has a cause: its key was evicted not long ago (a *ghost hit*: more room
//! would have made it a hit), or its time to live had ended not long ago. When its value is loaded
//! again, a fingerprint of the content tells whether that was any use, and a load that finds nothing
//! or fails is remembered for a minute, so that its repetition is seen.
//!
//! *Not long ago* is for an eviction: no more evictions ago than memory holds entries. For an expiry it
//! is one time to live of the cache.
//!
//! # Bounds
//!
//! The share is an eighth, or less where that would be more than [`WATCHED`] of the entries in memory.
//! What is known of keys stands in sets of four records; the one that was looked at longest ago gives
//! way. There are 1,024 records at most, 32 KiB, made when the first watched key leaves or is written.
//! One lock guards them; it is taken for watched keys alone, under the lock of a shard, and nothing is
//! called while it is held.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::{Millis, NEVER};

/// Watched keys that memory is expected to hold, at most.
const WATCHED: u64 = 512;
/// One key of so many is watched at most.
const ONE_OF: u64 = 8;
const WAYS: usize = 4;
const RECORDS_MIN: usize = 64;
const RECORDS_MAX: usize = 2 * WATCHED as usize;
/// How long a load that was in vain is remembered.
const IN_VAIN: Millis = 60_000;
/// The unit of the times in a record: a few years fit.
const TICK: Millis = 16;

/// What is known of why keys are missed, and of what loading them again was good for; see
/// [`Cache::advice_stats`](crate::Cache::advice_stats).
///
/// Everything but [`duplicate_fetches`](Self::duplicate_fetches) is counted for the watched keys alone,
/// one of [`one_of`](Self::one_of): shares are those of all keys, sums are not. All of it is zero with
/// [`Engine::ClockPro`](crate::Engine::ClockPro), but for the duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AdviceStats {
    /// One key of so many is watched, chosen by its hash; zero where none is.
    pub one_of: u64,
    /// Look-ups in memory that found nothing.
    pub misses: u64,
    /// Those of a key that was pushed out not long ago: no more evictions ago than memory holds
    /// entries.
    pub misses_evicted: u64,
    /// Those of a key whose time to live had ended less than one time to live of the cache ago.
    pub misses_expired: u64,
    /// New values of keys whose earlier value is known: see
    /// [`CacheBuilder::content_hash`](crate::CacheBuilder::content_hash).
    pub rewrites: u64,
    /// Those that were the same as the earlier one.
    pub rewrites_same: u64,
    /// Rewrites that followed an expiry: loads that a longer time to live would have spared.
    pub reloads: u64,
    /// Those that were the same as the value that had expired.
    pub reloads_same: u64,
    /// Loaders that returned a value or an error.
    pub loads: u64,
    /// Loaders that returned what means that there is nothing: see
    /// [`CacheBuilder::absent_if`](crate::CacheBuilder::absent_if).
    pub loads_absent: u64,
    /// Those of a key for which a loader had found nothing less than a minute before.
    pub loads_absent_again: u64,
    /// Loaders that returned an error.
    pub loads_failed: u64,
    /// Those of a key for which one had failed less than a minute before.
    pub loads_failed_again: u64,
    /// Look-ups below memory, loads and reservations that began while the same key was being fetched by
    /// another call, over all keys. Those that waited for the other instead are
    /// [`CacheStats::coalesced`](crate::CacheStats::coalesced).
    pub duplicate_fetches: u64,
}

impl AdviceStats {
    /// Returns the share of misses that a cache of about twice the size might have answered, zero
    /// before the first.
    #[must_use]
    pub fn evicted_share(&self) -> f64 {
        share(self.misses_evicted, self.misses)
    }

    /// Returns the share of misses that a longer time to live would have answered, zero before the
    /// first.
    #[must_use]
    pub fn expired_share(&self) -> f64 {
        share(self.misses_expired, self.misses)
    }

    /// Returns the share of reloads after an expiry that brought what was there before, `None` before
    /// the first.
    #[must_use]
    pub fn reloads_same_share(&self) -> Option<f64> {
        (self.reloads > 0).then(|| share(self.reloads_same, self.reloads))
    }
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

/// Why a key left memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    Evicted,
    /// At this time.
    Expired(Millis),
    /// Removed, invalidated or given a newer value.
    Other,
}

/// What a load came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Found,
    Absent,
    Failed,
}

/// The watched keys of one cache.
#[derive(Debug)]
pub(crate) struct Fates {
    /// Hashes that come below this when they are mixed are watched.
    threshold: AtomicU32,
    /// The cache's own time to live.
    ttl: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Empty until the first is needed.
    records: Box<[Record]>,
    /// How many there are to be.
    size: usize,
    one_of: u64,
    /// Evictions of watched keys, and how many of them count as not long ago.
    evictions: u32,
    window: u32,
    /// Counts the uses of records.
    uses: u32,
    stats: AdviceStats,
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// The content of the last known value.
    content: u64,
    hash: u32,
    used: u32,
    /// When it left: an eviction's number, or the time of an expiry.
    left: u32,
    /// When a load was in vain.
    in_vain_at: u32,
    state: State,
    /// Whether `content` is known, the key was missed because its value had expired, and what kind of
    /// load was in vain.
    known: bool,
    reloading: bool,
    in_vain: Option<InVain>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InVain {
    Absent,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// No record of any key.
    #[default]
    Free,
    /// In memory, or nobody knows why not.
    Unknown,
    Evicted,
    Expired,
}

fn ticks(time: Millis) -> u32 {
    (time / TICK) as u32
}

impl Fates {
    /// Watches keys of a cache that is expected to hold `entries`.
    pub(crate) fn new(entries: u64) -> Self {
        let fates = Self {
            threshold: AtomicU32::new(0),
            ttl: AtomicU64::new(NEVER),
            table: Mutex::default(),
        };
        fates.resize(entries);
        fates
    }

    /// Follows the cache to another size. What is known of keys is forgotten, if other keys are watched.
    pub(crate) fn resize(&self, entries: u64) {
        let one_of = entries.max(1).div_ceil(WATCHED).max(ONE_OF).next_power_of_two();
        let mut table = self.table.lock();
        table.window = u32::try_from(entries / one_of).unwrap_or(u32::MAX).max(1);
        if table.one_of != one_of {
            table.one_of = one_of;
            table.records = Box::default();
            table.size =
                (2 * entries / one_of).clamp(RECORDS_MIN as u64, RECORDS_MAX as u64) as usize;
            table.size = table.size.next_power_of_two().min(RECORDS_MAX);
            self.threshold.store((1_u64 << 32).div_euclid(one_of) as u32, Ordering::Relaxed);
        }
    }

    /// Sets the time to live after which an expiry is long ago.
    pub(crate) fn set_ttl(&self, ttl: Millis) {
        self.ttl.store(ttl, Ordering::Relaxed);
    }

    /// Whether the key with this hash is watched.
    #[inline]
    pub(crate) fn watches(&self, hash: u32) -> bool {
        mixed(hash) < self.threshold.load(Ordering::Relaxed)
    }

    /// Hears that a watched key has left memory.
    #[inline(never)]
    pub(crate) fn left(&self, hash: u32, departure: Departure) {
        let mut table = self.table.lock();
        let evictions = table.evictions;
        let (state, left) = match departure {
            Departure::Evicted => {
                table.evictions = evictions.wrapping_add(1);
                (State::Evicted, evictions)
            }
            Departure::Expired(at) => (State::Expired, ticks(at)),
            Departure::Other => {
                // What is not known needs no record.
                if let Some(record) = table.find(hash) {
                    (record.state, record.reloading) = (State::Unknown, false);
                }
                return;
            }
        };
        let record = table.record(hash);
        (record.state, record.left) = (state, left);
    }

    /// Hears that a watched key is not found in memory. Where an entry was there that is past its time,
    /// `expired` says since when.
    #[inline(never)]
    pub(crate) fn missed(&self, hash: u32, expired: Option<Millis>, now: Millis) {
        let ttl = self.ttl.load(Ordering::Relaxed);
        let mut table = self.table.lock();
        table.stats.misses += 1;
        let (evictions, window) = (table.evictions, table.window);
        let found = table.find(hash).map(|record| {
            let state = std::mem::replace(&mut record.state, State::Unknown);
            record.reloading = false;
            (state, record.left)
        });
        let age = match (expired, found) {
            (Some(since), _) => now.saturating_sub(since),
            (None, Some((State::Expired, left))) => {
                Millis::from(ticks(now).wrapping_sub(left)) * TICK
            }
            (None, Some((State::Evicted, left))) if evictions.wrapping_sub(left) <= window => {
                table.stats.misses_evicted += 1;
                return;
            }
            _ => return,
        };
        if age < ttl {
            table.stats.misses_expired += 1;
            table.record(hash).reloading = true;
        }
    }

    /// Hears of a new value of a watched key.
    #[inline(never)]
    pub(crate) fn written(&self, hash: u32, content: u64) {
        let mut table = self.table.lock();
        let record = table.record(hash);
        let before = record.known.then_some(record.content);
        let reloading = std::mem::take(&mut record.reloading);
        (record.content, record.known) = (content, true);
        let Some(before) = before else { return };
        let same = u64::from(before == content);
        let stats = &mut table.stats;
        stats.rewrites += 1;
        stats.rewrites_same += same;
        if reloading {
            stats.reloads += 1;
            stats.reloads_same += same;
        }
    }

    /// Hears what a load of a watched key came to.
    #[inline(never)]
    pub(crate) fn loaded(&self, hash: u32, outcome: Outcome, now: Millis) {
        let mut table = self.table.lock();
        table.stats.loads += 1;
        let kind = match outcome {
            Outcome::Found => {
                if let Some(record) = table.find(hash) {
                    record.in_vain = None;
                }
                return;
            }
            Outcome::Absent => InVain::Absent,
            Outcome::Failed => InVain::Failed,
        };
        let record = table.record(hash);
        let age = Millis::from(ticks(now).wrapping_sub(record.in_vain_at)) * TICK;
        let again = u64::from(record.in_vain == Some(kind) && age < IN_VAIN);
        (record.in_vain, record.in_vain_at) = (Some(kind), ticks(now));
        let stats = &mut table.stats;
        let (loads, repeated) = match kind {
            InVain::Absent => (&mut stats.loads_absent, &mut stats.loads_absent_again),
            InVain::Failed => (&mut stats.loads_failed, &mut stats.loads_failed_again),
        };
        *loads += 1;
        *repeated += again;
    }

    pub(crate) fn stats(&self) -> AdviceStats {
        let table = self.table.lock();
        AdviceStats { one_of: table.one_of, ..table.stats }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        size_of_val(&*self.table.lock().records)
    }
}

impl Table {
    fn set(&mut self, hash: u32) -> &mut [Record] {
        let sets = self.records.len() / WAYS;
        // The low bits: the high ones are those that chose the key.
        let at = mixed(hash) as usize & (sets - 1);
        &mut self.records[at * WAYS..(at + 1) * WAYS]
    }

    fn find(&mut self, hash: u32) -> Option<&mut Record> {
        if self.records.is_empty() {
            return None;
        }
        self.uses = self.uses.wrapping_add(1);
        let uses = self.uses;
        let mut set = self.set(hash).iter_mut();
        let record = set.find(|it| it.state != State::Free && it.hash == hash)?;
        record.used = uses;
        Some(record)
    }

    /// The key's record, made in the place of the one that was used longest ago.
    fn record(&mut self, hash: u32) -> &mut Record {
        if self.records.is_empty() {
            self.records = vec![Record::default(); self.size].into_boxed_slice();
        }
        self.uses = self.uses.wrapping_add(1);
        let uses = self.uses;
        let set = self.set(hash);
        let is_here = |it: &Record| it.state != State::Free && it.hash == hash;
        let unused = |it: &Record| {
            if it.state == State::Free { u32::MAX } else { uses.wrapping_sub(it.used) }
        };
        let at = set.iter().position(is_here);
        let at = at.or_else(|| (0..WAYS).max_by_key(|at| unused(&set[*at]))).unwrap_or(0);
        let record = &mut set[at];
        if !is_here(record) {
            *record = Record { hash, state: State::Unknown, ..Record::default() };
        }
        record.used = uses;
        record
    }
}

/// Spreads what the hashes of a shard have in common.
#[inline]
fn mixed(hash: u32) -> u32 {
    // The upper bits of a product depend on all bits of its factors; the lower ones get some of that.
    let product = hash.wrapping_mul(0x9E37_79B1);
    product ^ product >> 15
}

#[cfg(test)]
mod tests;
