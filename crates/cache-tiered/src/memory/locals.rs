//! What a thread notes down about its requests where no other thread writes: counters and samples.
//!
//! A hit must not write a line that another core writes, or the second reader pays for the first. So
//! each thread has a block of its own per cache: its hits, its misses, and a short buffer of sampled
//! requests. The block belongs to the thread's index, which the epoch registry hands out. The blocks
//! lie side by side, 8 KiB in all, so that counting a hit is an addition; the buffer of a thread,
//! 0.8 KiB, comes with its first sample. Sums are taken by whoever asks for the statistics.
//!
//! # Sampling
//!
//! Requests are sampled by key: a key whose hash falls under the threshold is sampled at each of its
//! requests, any other key never (spatial sampling: Waldspurger et al., "Efficient MRC Construction
//! with SHARDS", FAST 2015). What is sampled then looks like the same traffic on a cache that is
//! smaller by the same share. The threshold is read at every request and written a few times per
//! second at most, so its line stays shared by all readers. [`position`] mixes the hash once more,
//! because shards and tables take bits of the same hash and a sample must not favour one of them.
//!
//! A thread hands over its own samples: when the buffer is half full, [`Locals::sample`] says so, and
//! the caller tries the lock of the election and drains. Nobody ever reads another thread's buffer,
//! hence no line goes back and forth for it, and a stream of hits alone is sampled like any other. If
//! the lock is taken, the thread goes on and tries again a few samples later; a full buffer drops
//! what does not fit, hits and misses alike, and counts it. Drops thin out requests rather than keys,
//! which makes every simulated hit ratio look lower than it is; the consumer sees how many and can lower the
//! rate. A thread that ends leaves less than a buffer of samples to the next owner of its index.
//!
//! # Orderings
//!
//! A block is written by the owner of its index alone, so each counter is raised by a load and a
//! store, without a locked instruction. All accesses are `Relaxed`:
//!
//! - the owner reads what it wrote itself. When an index passes from a thread that ended to a new one,
//!   the registry's hand-over (its Release and Acquire on the index) orders the old owner's stores
//!   before the new owner's loads; without that the new owner could start from an older value and
//!   lose counts, never more. Checked by `loom_an_index_handed_over_loses_no_count`;
//! - others only sum the counters, each of which grows: a sum may miss what happens meanwhile, and two
//!   sums taken in order by one thread never go back;
//! - the threshold carries nothing but itself.
//!
//! Two threads that wrongly shared an index would lose counts and mix up samples; memory stays safe.

use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU32, AtomicU64, Relaxed};

/// Threads with an index below this have a block of their own.
pub(crate) const EXCLUSIVE: usize = 64;

/// Samples that a thread can hold; half of it is what one drain usually takes.
pub(crate) const RING: usize = if cfg!(loom) { 4 } else { 64 };

/// Misses of a thread after which it looks after the election even if it sampled nothing: where
/// nothing misses there is nothing to elect.
pub(crate) const HEARTBEAT: u64 = 1024;

/// The threshold under which every key is sampled.
pub(crate) const EVERY_KEY: u64 = 1 << 32;

/// Where a key stands between 0 and 2^32, evenly and independent of any few bits of its hash.
pub(crate) fn position(hash: u64) -> u64 {
    // The upper bits of a product depend on all bits of its factors.
    hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32
}

/// The counters and samples of all threads of one cache.
#[derive(Debug)]
pub(crate) struct Locals {
    blocks: Box<[Block; EXCLUSIVE]>,
    /// Shared by the threads that have no block.
    overflow: CachePadded<Overflow>,
    /// Keys with a [`position`] below this are sampled.
    threshold: CachePadded<AtomicU64>,
}

/// How many requests hit and missed, over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Counts {
    pub(crate) fn requests(self) -> u64 {
        self.hits + self.misses
    }

    /// The share of hits; 0 where there was no request.
    pub(crate) fn hit_ratio(self) -> f64 {
        self.hits as f64 / self.requests().max(1) as f64
    }

    /// What was counted after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
        }
    }
}

#[derive(Debug, Default)]
struct Overflow {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// One thread's part. Aligned to two lines, since neighbouring lines are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Block {
    hits: AtomicU64,
    misses: AtomicU64,
    buffer: OnceLock<Box<Buffer>>,
}

impl Block {
    fn new() -> Self {
        Self { hits: AtomicU64::new(0), misses: AtomicU64::new(0), buffer: OnceLock::new() }
    }
}

/// The samples of a thread.
#[derive(Debug)]
struct Buffer {
    dropped: AtomicU64,
    /// Samples held in `ids` and `weights`, from the front.
    held: AtomicU32,
    weights: [AtomicU32; RING],
    ids: [AtomicU64; RING],
}

impl Buffer {
    #[cold]
    fn boxed() -> Box<Self> {
        Box::new(Self {
            dropped: AtomicU64::new(0),
            held: AtomicU32::new(0),
            weights: std::array::from_fn(|_| AtomicU32::new(0)),
            ids: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }
}

impl Locals {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Box::new(std::array::from_fn(|_| Block::new())),
            overflow: CachePadded::default(),
            threshold: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Counts a hit of the calling thread.
    #[inline]
    pub(crate) fn hit(&self, thread: usize) {
        match self.blocks.get(thread) {
            Some(block) => {
                raise(&block.hits);
            }
            None => {
                self.overflow.hits.fetch_add(1, Relaxed);
            }
        }
    }

    /// Counts a miss of the calling thread; true once per [`HEARTBEAT`], for who keeps time by it.
    #[inline]
    #[must_use]
    pub(crate) fn miss(&self, thread: usize) -> bool {
        let misses = match self.blocks.get(thread) {
            Some(block) => raise(&block.misses),
            None => self.overflow.misses.fetch_add(1, Relaxed) + 1,
        };
        misses.is_multiple_of(HEARTBEAT)
    }

    /// Tells whether requests of this key are sampled at present.
    #[inline]
    pub(crate) fn sampled(&self, hash: u64) -> bool {
        position(hash) < self.threshold.load(Relaxed)
    }

    /// Samples the keys with a [`position`] below `threshold` from now on: 0 none, [`EVERY_KEY`] all.
    pub(crate) fn set_threshold(&self, threshold: u64) {
        self.threshold.store(threshold, Relaxed);
    }

    /// Notes a request of a sampled key, and tells whether it is time to [`drain`](Self::drain).
    ///
    /// A thread without a block notes nothing.
    pub(crate) fn sample(&self, thread: usize, hash: u64, weight: u32) -> bool {
        let Some(block) = self.blocks.get(thread) else { return false };
        let buffer = block.buffer.get_or_init(Buffer::boxed);
        let held = buffer.held.load(Relaxed) as usize;
        if held >= RING {
            return raise(&buffer.dropped).is_multiple_of(RING as u64 / 2);
        }
        buffer.ids[held].store(hash, Relaxed);
        buffer.weights[held].store(weight, Relaxed);
        buffer.held.store(held as u32 + 1, Relaxed);
        held + 1 >= RING / 2 && (held + 1).is_multiple_of(RING / 4)
    }

    /// Empties the calling thread's samples into `consume`, oldest first, and returns how many were
    /// dropped since the thread's last drain.
    pub(crate) fn drain(&self, thread: usize, mut consume: impl FnMut(u64, u32)) -> u64 {
        let Some(buffer) = self.blocks.get(thread).and_then(|block| block.buffer.get()) else {
            return 0;
        };
        let held = (buffer.held.load(Relaxed) as usize).min(RING);
        let dropped = buffer.dropped.load(Relaxed);
        buffer.held.store(0, Relaxed);
        buffer.dropped.store(0, Relaxed);
        for (id, weight) in buffer.ids[..held].iter().zip(&buffer.weights) {
            consume(id.load(Relaxed), weight.load(Relaxed));
        }
        dropped
    }

    /// Sums the hits and misses of all threads.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            hits: self.overflow.hits.load(Relaxed),
            misses: self.overflow.misses.load(Relaxed),
        };
        for block in &*self.blocks {
            counts.hits += block.hits.load(Relaxed);
            counts.misses += block.misses.load(Relaxed);
        }
        counts
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn bytes(&self) -> usize {
        let buffers = self.blocks.iter().filter(|block| block.buffer.get().is_some()).count();
        size_of_val(&*self.blocks) + buffers * size_of::<Buffer>()
    }
}

/// Adds one to a counter that only the caller writes, and returns the sum.
#[inline]
fn raise(counter: &AtomicU64) -> u64 {
    let sum = counter.load(Relaxed) + 1;
    counter.store(sum, Relaxed);
    sum
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
