//! Who allocates: a wrapper around the global allocator that counts by scope.
//!
//! A library never chooses the allocator; a program that wants to know writes
//!
//! ```
//! use std::alloc::System;
//! use memory::Tracked;
//!
//! #[global_allocator]
//! static ALLOCATOR: Tracked<System> = Tracked::new(System);
//!
//! fn main() -> Result<(), memory::TrackError> {
//!     memory::track(memory::Track::Scopes)?;
//!     {
//!         let _scope = memory::Scope::enter("parse");
//!         drop(std::hint::black_box(vec![0_u8; 1_000]));
//!     }
//!     assert_eq!(memory::Scope::named("parse").report().bytes, 1_000);
//!     Ok(())
//! }
//! ```
//!
//! # How it counts without shared writes
//!
//! Each thread claims a *block* with counters for every scope it enters, and points to those of the
//! current scope from a thread-local cell. An allocation adds to three words that only this thread
//! writes; who reads a report adds up the blocks. A thread that ends gives its block back as it is,
//! and the next thread goes on counting in it, so nothing is lost or copied, and there are as many
//! blocks as there ever were threads at once.
//!
//! # Where there is no block
//!
//! Making the block allocates, and destructors of thread-locals allocate after the block is gone. Both
//! find their thread not `Running` and count in one shared block with atomic additions. Nothing in
//! here locks, panics or calls back while it counts.
//!
//! # To whom a free counts
//!
//! Under [`Tracked`] to the scope that frees, on its thread: a producer's net grows and its consumer's
//! falls below zero. [`TrackedExact`] writes the owner in front of each allocation, 16 bytes or the
//! alignment, and subtracts from the owner wherever the free happens: `net` then is what the scope
//! holds. It is meant for debugging.

mod block;
mod scope;
mod sites;
#[cfg(all(test, not(loom)))]
mod tests;

use std::cell::Cell;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use block::{Block, Counters, SHARED};

pub use scope::{InScope, Scope, ScopeExt, ScopeGuard, ScopeReport};
pub use sites::{LiveSites, SAMPLE_INTERVAL_BYTES, SITES_MAX, Site, live_sites};

/// Bytes in front of each allocation of a [`TrackedExact`], where the alignment asks for no more.
pub(crate) const PREFIX: usize = 16;
/// The owner of what was allocated while tracking was off.
const NOBODY: u16 = u16::MAX;

const OFF: u8 = 0;
const SCOPES: u8 = 1;
const SITES: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(OFF);

/// A global allocator that counts by scope what `A` allocates; off until [`track`].
///
/// A free counts to the scope that runs it.
///
/// # Cost
///
/// Off: one load of a constant and a branch. On: three additions in memory of the thread's own for an
/// allocation, one for a free.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracked<A> {
    pub(crate) inner: A,
}

impl<A> Tracked<A> {
    /// Wraps an allocator.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

/// A [`Tracked`] that remembers the owner of each allocation, for debugging.
///
/// A free counts to the scope that allocated, wherever it happens, so the net of a scope is what it
/// holds.
///
/// # Cost
///
/// As [`Tracked`], and 16 bytes for each allocation (its alignment, where that is more).
#[derive(Clone, Copy, Debug, Default)]
pub struct TrackedExact<A> {
    pub(crate) inner: A,
}

impl<A> TrackedExact<A> {
    /// Wraps an allocator.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

/// What the tracked allocator writes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Track {
    /// Nothing.
    #[default]
    Off,
    /// Allocations by scope.
    Scopes,
    /// Allocations by scope, and of one allocation in 512 KiB where it was made and that it lives.
    Sites,
}

/// Why tracking cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// The program allocates past this crate.
    #[error(
        "the global allocator is not tracked: the program needs `#[global_allocator] static \
         ALLOCATOR: memory::Tracked<A> = memory::Tracked::new(..)`"
    )]
    NotInstalled,
}

/// Sets what is tracked from now on, in all threads.
///
/// Counts go on where they stopped. What is freed while tracking is on and was allocated while it was
/// off makes a net too small, but under [`TrackedExact`]: begin early.
///
/// # Errors
///
/// [`TrackError::NotInstalled`] if the program has no [`Tracked`] global allocator; then tracking
/// stays off.
pub fn track(what: Track) -> Result<(), TrackError> {
    if what == Track::Sites {
        sites::prepare();
    }
    let mode = match what {
        Track::Off => OFF,
        Track::Scopes => SCOPES,
        Track::Sites => SITES,
    };
    MODE.store(mode, Relaxed);
    if mode != OFF && !is_counted() {
        MODE.store(OFF, Relaxed);
        return Err(TrackError::NotInstalled);
    }
    Ok(())
}

/// Returns what is tracked.
pub fn tracking() -> Track {
    match MODE.load(Relaxed) {
        OFF => Track::Off,
        SCOPES => Track::Scopes,
        _ => Track::Sites,
    }
}

/// Whether an allocation of this thread is counted.
fn is_counted() -> bool {
    let _scope = Scope::ROOT.enter_self();
    let allocs = || LOCAL.with(|local| local.counters.get().map(|it| it.report().allocs));
    // The first one gives the thread its block.
    drop(std::hint::black_box(Box::new(1_u8)));
    let before = allocs();
    drop(std::hint::black_box(Box::new(1_u8)));
    before != allocs()
}

/// How far a thread is with its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Starting,
    Running,
    Ended,
}

/// What a thread needs to count; without a destructor, so it can be reached at any time.
struct Local {
    /// Those of the current scope; absent until the first count in it.
    counters: Cell<Option<&'static Counters>>,
    until_sample: Cell<i64>,
    block: Cell<Option<&'static Block>>,
    scope: Cell<u16>,
    phase: Cell<Phase>,
    /// This thread is writing or reading samples: nothing it allocates meanwhile is sampled.
    sampling: Cell<bool>,
    /// The state of the draws of when to sample; 0 before the first.
    draws: Cell<u64>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            counters: Cell::new(None),
            until_sample: Cell::new(0),
            block: Cell::new(None),
            scope: Cell::new(Scope::ROOT_ID),
            phase: Cell::new(Phase::Fresh),
            sampling: Cell::new(false),
            draws: Cell::new(0),
        }
    };
    /// Gives the block back. The oldest destructors of a thread run last, and this one is asked for by
    /// the thread's first allocation.
    static AT_END: AtEnd = const { AtEnd };
}

struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        LOCAL.with(|local| {
            local.phase.set(Phase::Ended);
            local.counters.set(None);
            if let Some(block) = local.block.take() {
                block.release();
            }
        });
    }
}

/// Counts an allocation and returns the scope it belongs to.
#[inline]
pub(crate) fn allocated(address: usize, size: usize) -> u16 {
    // The usual mode first: it then has one check, and so has no tracking at all.
    let mode = MODE.load(Relaxed);
    if mode != SCOPES {
        return if mode == OFF { NOBODY } else { allocated_at(address, size) };
    }
    LOCAL.with(|local| match local.counters.get() {
        Some(counters) => {
            counters.allocated(size);
            local.scope.get()
        }
        None => local.allocated_slowly(size),
    })
}

/// Counts an allocation and takes a sample where one is due.
#[inline(never)]
fn allocated_at(address: usize, size: usize) -> u16 {
    LOCAL.with(|local| match local.counters.get() {
        Some(counters) => {
            counters.allocated(size);
            local.maybe_sample(address, size);
            local.scope.get()
        }
        None => local.allocated_slowly(size),
    })
}

/// Counts a free to the current scope.
#[inline]
pub(crate) fn freed(address: usize, size: usize) {
    let mode = MODE.load(Relaxed);
    if mode != SCOPES {
        if mode == OFF {
            return;
        }
        sites::forget(address);
    }
    LOCAL.with(|local| match local.counters.get() {
        Some(counters) => counters.freed(size),
        None => local.freed_slowly(local.scope.get(), size),
    });
}

/// Counts a free to the scope that allocated, also while tracking is off.
#[inline]
pub(crate) fn freed_of(owner: u16, address: usize, size: usize) {
    if owner == NOBODY {
        return;
    }
    LOCAL.with(|local| match local.counters.get() {
        Some(counters) if owner == local.scope.get() => counters.freed(size),
        _ => local.freed_slowly(owner, size),
    });
    if MODE.load(Relaxed) == SITES {
        sites::forget(address);
    }
}

/// Says that an allocation is about to move, before its memory can belong to another.
#[inline]
pub(crate) fn moving(address: usize) {
    if MODE.load(Relaxed) == SITES {
        sites::forget(address);
    }
}

/// Counts a reallocation as a free of the old size and an allocation of the new.
#[inline]
pub(crate) fn reallocated(address: usize, old: usize, size: usize) {
    let mode = MODE.load(Relaxed);
    if mode == OFF {
        return;
    }
    LOCAL.with(|local| {
        let Some(counters) = local.counters.get() else {
            local.freed_slowly(local.scope.get(), old);
            local.allocated_slowly(size);
            return;
        };
        counters.freed(old);
        counters.allocated(size);
        if mode == SITES {
            local.maybe_sample(address, size);
        }
    });
}

impl Local {
    #[inline]
    fn maybe_sample(&self, address: usize, size: usize) {
        let left = self.until_sample.get() - size as i64;
        self.until_sample.set(left);
        if left < 0 {
            sites::sample(self, address, size);
        }
    }

    #[cold]
    fn allocated_slowly(&self, size: usize) -> u16 {
        if let Some(block) = self.running() {
            let counters = block.counters(self.scope.get());
            self.counters.set(Some(counters));
            counters.allocated(size);
            return self.scope.get();
        }
        SHARED.counters(Scope::ROOT_ID).shared_allocated(size);
        Scope::ROOT_ID
    }

    #[cold]
    fn freed_slowly(&self, scope: u16, size: usize) {
        match self.running() {
            Some(block) => block.counters(scope).freed(size),
            None => SHARED.counters(scope).shared_freed(size),
        }
    }

    /// This thread's block; `None` while it is being made and after it is gone.
    fn running(&self) -> Option<&'static Block> {
        if self.phase.get() == Phase::Fresh {
            self.phase.set(Phase::Starting);
            // What this allocates finds `Starting` and counts in the shared block.
            if AT_END.try_with(|_| ()).is_ok() {
                self.block.set(Some(Block::claim()));
                self.phase.set(Phase::Running);
            } else {
                self.phase.set(Phase::Ended);
            }
        }
        self.block.get()
    }
}
