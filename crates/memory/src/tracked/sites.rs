//! Samples of live allocations: where they were made and how long they live.
//!
//! On average one allocation in 512 KiB is written down with its stack, at distances drawn from an
//! exponential distribution so that no pattern of the program can hide from it (as in tcmalloc and in
//! jemalloc's profiler). A sample of `s` bytes stands for `s / (1 - exp(-s / 512 KiB))` bytes.
//!
//! Every free has to know whether it ends a sample. Samples lie in a direct-mapped table, and beside
//! it is one word for each place with a print of the address, so a free reads one word. A sample
//! whose place is taken is lost and counted as such; the place depends on the address alone, so this
//! thins out all sites alike.
//!
//! The table is behind a lock that is held without allocating or freeing, so the allocator cannot come
//! back to it on the same thread. The order of prints and frees is the program's own: who frees an
//! address has been handed it by whoever allocated it, after the print was written.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LOCAL, Local, Scope};
use crate::raw;

/// The mean distance of two samples, in bytes allocated by one thread.
pub const SAMPLE_INTERVAL_BYTES: u64 = 512 << 10;
/// The most sites that are told apart; what comes later counts to the first, without frames.
pub const SITES_MAX: usize = 1_024;

/// Samples that can be alive, a power of two.
const PLACES: usize = 1 << PLACES_BITS;
const PLACES_BITS: u32 = 13;
/// Calls that a site remembers, innermost first.
const DEPTH: usize = 32;
/// Sites that are probed for a free place.
const PROBES: usize = 16;

static PRINTS: [AtomicU32; PLACES] = [const { AtomicU32::new(0) }; PLACES];
static TABLE: Mutex<Option<Box<Table>>> = Mutex::new(None);

struct Table {
    samples: Box<[Option<Sample>]>,
    sites: Box<[Option<Stack>]>,
    lost: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    address: usize,
    size: usize,
    site: u16,
    at: Instant,
}

#[derive(Clone, Copy)]
struct Stack {
    hash: u64,
    scope: u16,
    depth: u8,
    frames: [usize; DEPTH],
}

/// Live allocations of one place in the program, from [`live_sites`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Site {
    /// A number that stays the same for this site while the program runs.
    pub id: u64,
    /// The scope in which they were made.
    pub scope: Scope,
    /// The code addresses of the calls, innermost first; empty beyond [`SITES_MAX`].
    ///
    /// The first few are the allocator's own.
    pub frames: Vec<usize>,
    /// Samples that are alive.
    pub samples: u64,
    /// The allocations they stand for.
    pub live_allocs: f64,
    /// The bytes they stand for.
    pub live_bytes: f64,
    /// The age in the middle of the samples.
    pub median_age: Duration,
}

#[cfg(all(test, not(loom)))]
impl Site {
    /// A site of three samples.
    pub(crate) fn for_tests(id: u64, live_bytes: f64, median_age: Duration) -> Self {
        let (samples, live_allocs, frames) = (3, 3.0, vec![0x10, 0x20]);
        Self { id, scope: Scope::ROOT, frames, samples, live_allocs, live_bytes, median_age }
    }
}

/// Live allocations by site, from [`live_sites`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LiveSites {
    /// The sites with live samples, those with the most bytes first.
    pub sites: Vec<Site>,
    /// Samples lost since the start because their place was taken.
    pub lost_samples: u64,
}

/// The lock, also if a thread panicked with it: each change leaves the table whole.
fn table() -> MutexGuard<'static, Option<Box<Table>>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the table, about 640 KiB, at the first call.
pub(super) fn prepare() {
    let made = Table::new();
    // What is there already is kept, and `made` drops after the lock.
    let mut table = table();
    if table.is_none() {
        *table = Some(made);
    }
}

fn place_of(address: usize) -> usize {
    // Fibonacci hashing; the lowest four bits of an address say nothing.
    ((address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES_BITS)) as usize
}

fn print_of(address: usize) -> u32 {
    // Never 0, which says that there is none.
    (address >> 4) as u32 | 1 << 31
}

/// The bytes and allocations that a sample of this size stands for.
fn weight(size: usize) -> (f64, f64) {
    let allocs = 1.0 / -(-(size as f64) / SAMPLE_INTERVAL_BYTES as f64).exp_m1();
    (size as f64 * allocs, allocs)
}

/// Takes a sample, unless this thread is in the middle of one, and draws when the next is due.
#[cold]
#[inline(never)]
pub(super) fn sample(local: &Local, address: usize, size: usize) {
    let first = local.draws.get() == 0;
    local.until_sample.set(next_distance(local));
    // A thread begins anywhere between two samples, so its first allocation is none in particular.
    if first || local.sampling.replace(true) {
        return;
    }
    let mut frames = [0; DEPTH];
    let depth = raw::return_addresses(&mut frames) as u8;
    let scope = local.scope.get();
    let hash =
        frames.iter().chain([&usize::from(scope)]).fold(0xcbf2_9ce4_8422_2325, |hash, it| {
            (hash ^ *it as u64).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
        });
    let stack = Stack { hash, scope, depth, frames };
    let now = Instant::now();
    if let Some(table) = table().as_mut() {
        table.add(address, size, &stack, now);
    }
    local.sampling.set(false);
}

fn next_distance(local: &Local) -> i64 {
    let mut draws = local.draws.get();
    if draws == 0 {
        // Where the thread's cell lies tells threads apart.
        draws = (std::ptr::from_ref(local).addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }
    // xorshift64 (Marsaglia, 2003).
    draws ^= draws << 13;
    draws ^= draws >> 7;
    draws ^= draws << 17;
    local.draws.set(draws);
    let uniform = ((draws >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (-uniform.ln() * SAMPLE_INTERVAL_BYTES as f64) as i64
}

/// Ends the sample of an address that is about to be freed, if there is one.
#[inline]
pub(super) fn forget(address: usize) {
    let place = place_of(address);
    if PRINTS[place].load(Relaxed) == print_of(address) {
        forget_slowly(address, place);
    }
}

#[cold]
fn forget_slowly(address: usize, place: usize) {
    LOCAL.with(|local| {
        // Nothing is freed while this thread has the lock; this is what keeps it so if that changes.
        if local.sampling.replace(true) {
            return;
        }
        if let Some(table) = table().as_mut()
            && table.samples[place].is_some_and(|sample| sample.address == address)
        {
            table.samples[place] = None;
            PRINTS[place].store(0, Relaxed);
        }
        local.sampling.set(false);
    });
}

impl Table {
    fn new() -> Box<Self> {
        let samples = vec![None; PLACES].into_boxed_slice();
        let sites = vec![None; SITES_MAX].into_boxed_slice();
        Box::new(Self { samples, sites, lost: 0 })
    }

    /// Writes a sample down; allocates nothing.
    fn add(&mut self, address: usize, size: usize, stack: &Stack, at: Instant) {
        let place = place_of(address);
        if self.samples[place].is_some() {
            self.lost += 1;
            return;
        }
        let site = self.site(stack);
        self.samples[place] = Some(Sample { address, size, site, at });
        PRINTS[place].store(print_of(address), Relaxed);
    }

    /// The number of a site; 0 is that of all for which there is no room.
    fn site(&mut self, stack: &Stack) -> u16 {
        let first = stack.hash as usize;
        for probe in 0..PROBES {
            let site = 1 + first.wrapping_add(probe) % (SITES_MAX - 1);
            match &self.sites[site] {
                Some(known) if known.hash == stack.hash => return site as u16,
                Some(_) => {}
                None => {
                    self.sites[site] = Some(*stack);
                    return site as u16;
                }
            }
        }
        0
    }
}

/// Returns where the live allocations were made, as far as they were sampled.
///
/// Empty unless tracking is or was at [`Track::Sites`](super::Track::Sites). `now` is what the ages
/// count up to.
///
/// # Cost
///
/// Copies a table of 8,192 places under a lock that a sampled allocation of another thread waits for.
pub fn live_sites(now: Instant) -> LiveSites {
    let mut samples = Vec::with_capacity(PLACES);
    let mut stacks: Vec<Option<Stack>> = Vec::with_capacity(SITES_MAX);
    let mut lost_samples = 0;
    LOCAL.with(|local| {
        if local.sampling.replace(true) {
            return;
        }
        if let Some(table) = table().as_ref() {
            // Within the capacity: nothing is allocated under the lock.
            samples.extend(table.samples.iter().flatten().copied());
            stacks.extend_from_slice(&table.sites);
            lost_samples = table.lost;
        }
        local.sampling.set(false);
    });
    samples.sort_by_key(|sample: &Sample| (sample.site, sample.at));
    let mut sites: Vec<Site> = samples
        .chunk_by(|one, two| one.site == two.site)
        .map(|samples| {
            let stack = stacks[usize::from(samples[0].site)];
            let middle = samples[samples.len() / 2];
            let (live_bytes, live_allocs) = samples
                .iter()
                .map(|sample| weight(sample.size))
                .fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            Site {
                id: u64::from(samples[0].site),
                scope: stack.map_or(Scope::OTHER, |stack| Scope::of(stack.scope)),
                frames: stack
                    .map_or_else(Vec::new, |stack| stack.frames[..stack.depth.into()].to_vec()),
                samples: samples.len() as u64,
                live_allocs,
                live_bytes,
                median_age: now.saturating_duration_since(middle.at),
            }
        })
        .collect();
    sites.sort_by(|one, two| two.live_bytes.total_cmp(&one.live_bytes).then(one.id.cmp(&two.id)));
    LiveSites { sites, lost_samples }
}
