//! What a cache counts, and the snapshots that it gives away.
//!
//! Counters are relaxed and spread over padded cells, so that counting a hit does not make two cores
//! exchange a cache line. A snapshot adds the cells up; it is exact when nobody counts meanwhile.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::latency::ReadLatency;

const CELLS: usize = 16;

/// A counter that threads increment without meeting each other.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    cells: [CachePadded<AtomicU64>; CELLS],
}

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        // Relaxed: a count is read for itself and orders nothing.
        self.cells[cell()].fetch_add(count, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum()
    }
}

/// The calling thread's cell: threads take them in turn, once.
#[inline]
fn cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static CELL: usize = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS;
    }
    // A thread that is being torn down counts in the first cell.
    CELL.try_with(|cell| *cell).unwrap_or(0)
}

/// Look-ups in memory that one thread has made, in whatever caches; from [`thread_lookups`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadLookups {
    /// Those that memory answered.
    pub hits: u64,
    /// Those that it did not.
    pub misses: u64,
}

thread_local! {
    static LOOKUPS: Cell<ThreadLookups> = const { Cell::new(ThreadLookups { hits: 0, misses: 0 }) };
}

/// Returns what the look-ups of this thread came to so far, over all caches of the process.
///
/// The difference of two readings is what was looked up in between; a future is read before and after each
/// poll.
#[must_use]
pub fn thread_lookups() -> ThreadLookups {
    LOOKUPS.get()
}

/// Counts a look-up of the calling thread.
#[inline]
pub(crate) fn looked_up(hit: bool) {
    let ThreadLookups { hits, misses } = LOOKUPS.get();
    let (hit, miss) = (u64::from(hit), u64::from(!hit));
    LOOKUPS.set(ThreadLookups { hits: hits + hit, misses: misses + miss });
}

/// What a tier has done and holds; `Copy`, so it can be kept and compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierStats {
    /// Look-ups that this tier answered.
    pub hits: u64,
    /// Look-ups that went on to the next tier, the ones that failed among them.
    pub misses: u64,
    /// Entries held. Redis does not tell; there it is zero.
    pub entries: u64,
    /// Bytes held: weights in memory, file lengths on disk. Redis does not tell; there it is zero.
    pub bytes: u64,
    /// The bound on `bytes`, or on `entries` where weights are not counted; zero where there is none.
    pub capacity: u64,
    /// Entries that left, by cause.
    pub evictions: Evictions,
    /// Calls that failed, timed out or read something broken. Each was a miss for its caller.
    pub errors: u64,
    /// Entries written to this tier.
    pub writes: u64,
    /// Writes that were not made: queue full, disk full, server away, value too large.
    pub dropped_writes: u64,
    /// Values that the disk tier did not write because their keys were new to it.
    pub refused_admission: u64,
    /// Values that the disk tier did not write because its write budget was used up.
    pub refused_budget: u64,
    /// Entries that the disk tier wrote again, instead of evicting them, because they had been read.
    pub copied_forward: u64,
    /// Checkpoints that the disk tier wrote, by which its next opening is fast.
    pub checkpoints: u64,
    /// Writes and reads waiting for this tier.
    pub queue_depth: u64,
    /// Bytes of values waiting to be written to this tier.
    pub queue_bytes: u64,
    /// How long reads of this tier take; of memory it is not measured.
    pub read_latency: ReadLatency,
}

impl TierStats {
    /// Returns the share of look-ups in this tier that it answered, zero before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        ratio(self.hits, self.misses)
    }
}

/// Entries that left a tier, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evictions {
    /// Made room for others.
    pub capacity: u64,
    /// Were past their TTL or idle for too long.
    pub expired: u64,
    /// Were removed by a call of `remove` or `clear`, or because another machine had changed them.
    pub removed: u64,
    /// Were never let in, because they are heavier than the tier may hold.
    pub too_large: u64,
}

/// What a whole cache has done and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct CacheStats {
    /// The memory tier.
    pub memory: TierStats,
    /// The Redis tier, if the cache has one.
    pub redis: Option<TierStats>,
    /// The disk tier, if the cache has one.
    pub disk: Option<TierStats>,
    /// Loaders that returned a value.
    pub loads: u64,
    /// Loaders that returned an error.
    pub load_failures: u64,
    /// Time spent in loaders, all added up.
    pub load_time: Duration,
    /// Calls that waited for somebody else's load instead of loading.
    pub coalesced: u64,
    /// Loads and promotions whose value was not kept, because the key was written meanwhile.
    pub superseded: u64,
    /// Loads in the background that have ended.
    pub refreshes: u64,
    /// Values served by a [`LoadingCache`](crate::LoadingCache) that were past their time to live.
    pub stale_hits: u64,
    /// Values served past their time to live because their loader had failed.
    pub stale_on_error: u64,
    /// Keys that are being loaded, reserved or looked up below memory at this moment.
    pub in_flight: u64,
    /// Compression of the values that go to the tiers below memory; zeros without such a tier.
    pub compression: CompressionStats,
    /// Loads ahead of their requests; zeros where a cache does not [prefetch](crate::Prefetch).
    pub prefetch: PrefetchStats,
    /// How memory follows what other machines change in Redis; `None` without Redis.
    pub coherence: Option<CoherenceStats>,
}

/// How a cache's memory follows what other machines change in a tier that they share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoherenceStats {
    /// Whether memory follows now. If not, what others change stays there for its time to live.
    pub coherent: bool,
    /// How other machines' changes are told, `tracking` or `pubsub`; `None` while they are not.
    pub mode: Option<&'static str>,
    /// Keys that others have written or removed, or that have expired or were evicted there.
    pub invalidations: u64,
    /// How often memory was emptied, because changes may have been missed or another machine has
    /// cleared the namespace.
    pub resets: u64,
}

/// What loading ahead of requests has done; see [`Prefetch`](crate::Prefetch).
///
/// What was issued is used or wasted in the end; until then it is outstanding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefetchStats {
    /// Values that were fetched, or began to be, before anybody asked for them.
    pub issued: u64,
    /// Those of them that were asked for while they were there, or on their way.
    pub used: u64,
    /// Those that left memory, were overwritten or could not be loaded before anybody asked.
    pub wasted: u64,
    /// Those of which neither has come true yet.
    pub outstanding: u64,
    /// Predictions that were let pass: too many under way, or too few of late were of use.
    pub skipped: u64,
    /// One prediction of so many is followed now: 1, or a power of two while too few are of use.
    pub one_of: u64,
}

impl PrefetchStats {
    /// Returns the share of what was decided that was of use, zero before the first.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.used, self.wasted)
    }
}

/// What compression has saved and cost, all lower tiers together.
///
/// A value that goes to two tiers is compressed once. Times are those of every sixteenth call, times
/// sixteen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionStats {
    /// Values that compression was tried on.
    pub tried: u64,
    /// Those of them that became at least a tenth smaller and are stored so.
    pub compressed: u64,
    /// Values that were long enough and not tried, because it had not paid for the ones before.
    pub skipped: u64,
    /// Bytes of the values tried.
    pub bytes_in: u64,
    /// Bytes that these values are stored in.
    pub bytes_out: u64,
    /// Values that were decompressed.
    pub decompressed: u64,
    /// Time spent on compressing.
    pub encode_time: Duration,
    /// Time spent on decompressing.
    pub decode_time: Duration,
    /// The dictionary that values are compressed with now, zero for none.
    pub dictionary: u32,
    /// Dictionaries that values can be read with.
    pub dictionaries: u64,
    /// Dictionaries that were trained and taken into use.
    pub dictionaries_trained: u64,
}

impl CompressionStats {
    /// Returns how many times smaller the values tried have become, 1 before the first.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.bytes_out == 0 { 1.0 } else { self.bytes_in as f64 / self.bytes_out as f64 }
    }
}

impl CacheStats {
    /// Returns the share of look-ups that some tier answered, zero before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        let hits = self.hits();
        ratio(hits, (self.memory.hits + self.memory.misses).saturating_sub(hits))
    }

    /// Returns the number of look-ups that some tier answered.
    #[must_use]
    pub fn hits(&self) -> u64 {
        let lower = |tier: Option<TierStats>| tier.map_or(0, |tier| tier.hits);
        self.memory.hits + lower(self.redis) + lower(self.disk)
    }
}

fn ratio(hits: u64, misses: u64) -> f64 {
    let all = hits + misses;
    if all == 0 { 0.0 } else { hits as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_counts_every_thread() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1_000).for_each(|_| counter.increment()));
            }
        });
        assert_eq!(counter.get(), 20_000);
    }

    #[test]
    fn the_hit_ratio_counts_a_lower_hit_once() {
        let mut stats = CacheStats::default();
        assert_eq!(stats.hit_ratio(), 0.0);
        stats.memory = TierStats { hits: 6, misses: 4, ..TierStats::default() };
        stats.disk = Some(TierStats { hits: 2, misses: 2, ..TierStats::default() });
        assert_eq!(stats.hit_ratio(), 0.8);
    }
}
