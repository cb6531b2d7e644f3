//! Arenas for one piece of work each: everything is freed at its end, in one step.
//!
//! The arena is `bumpalo`'s. It keeps its largest chunk when it is reset, however large that is, by
//! decision (bumpalo issues 61 and 305); so arenas over a capacity are dropped instead of kept.

use std::fmt;
use std::time::{Duration, Instant};

use bumpalo::Bump;

use crate::error::{BuildError, Problem};
use crate::pool::{Pool, PoolBuilder, PoolStats};
use crate::reclaim::{Cost, ReclaimRequest, Reclaimer};

/// Lends arenas, which are emptied and used again.
///
/// Clones share one pool. Destructors of what is allocated in an arena do not run, as `bumpalo` says: put
/// plain data, `bumpalo` collections and references there.
///
/// # Examples
///
/// ```
/// let arenas = memory::ArenaPool::builder().arena_bytes_max(256 << 10).build()?;
/// let words = arenas.scope(|arena| {
///     let text = arena.alloc_str("all of this goes at the end of the request");
///     text.split(' ').count()
/// });
/// assert_eq!(words, 10);
/// # Ok::<_, memory::BuildError>(())
/// ```
#[derive(Clone)]
pub struct ArenaPool {
    pool: Pool<Bump>,
}

impl ArenaPool {
    /// Starts the settings of a pool.
    pub fn builder() -> ArenaPoolBuilder {
        ArenaPoolBuilder { arena_bytes_max: 1 << 20, idle_max: 64, decay: Duration::from_secs(5) }
    }

    /// Runs `work` with an empty arena, which is emptied when it returns.
    ///
    /// If `work` panics, the arena is dropped and the panic goes on.
    ///
    /// # Cost
    ///
    /// That of [`Pool::take`] and of the reset, which frees all chunks but the largest.
    pub fn scope<R>(&self, work: impl FnOnce(&Bump) -> R) -> R {
        work(&self.pool.take())
    }

    /// Reads what the pool has done and holds.
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Returns how many bytes rest in the pool, which [`trim`](Self::trim) could free.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.pool.reclaimable_bytes()
    }

    /// Frees what rests until `target_bytes` are gone or nothing is left; returns the bytes.
    pub fn trim(&self, target_bytes: u64) -> u64 {
        self.pool.trim(target_bytes)
    }

    /// Frees half of what was not needed lately, if it is time; see [`Pool::decay`].
    pub fn decay(&self, now: Instant) -> u64 {
        self.pool.decay(now)
    }
}

/// Under pressure the pool gives up what rests, before anything that is of use.
impl Reclaimer for ArenaPool {
    fn name(&self) -> &str {
        self.pool.name()
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.pool.reclaimable_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.pool.reclaim(request)
    }

    fn cost(&self) -> Cost {
        Cost::Surplus
    }

    fn decays(&self) -> bool {
        true
    }

    fn decay(&self, now: Instant) -> u64 {
        self.pool.decay(now)
    }
}

impl fmt::Debug for ArenaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaPool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The settings of an [`ArenaPool`].
#[derive(Clone, Debug)]
#[must_use = "nothing is built until `build`"]
pub struct ArenaPoolBuilder {
    arena_bytes_max: usize,
    idle_max: usize,
    decay: Duration,
}

impl ArenaPoolBuilder {
    /// Drops arenas whose largest chunk is larger than this instead of keeping them; 1 MiB unless said.
    pub fn arena_bytes_max(mut self, bytes: usize) -> Self {
        self.arena_bytes_max = bytes;
        self
    }

    /// Bounds the arenas that rest; 64 unless said. With the bound on each, it bounds their bytes.
    pub fn idle_max(mut self, arenas: usize) -> Self {
        self.idle_max = arenas;
        self
    }

    /// Sets how often half of the arenas that were not needed are freed; 5 s unless said.
    pub fn decay(mut self, interval: Duration) -> Self {
        self.decay = interval;
        self
    }

    /// Builds the pool; it is empty.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every setting that cannot be used.
    pub fn build(self) -> Result<ArenaPool, BuildError> {
        let mut problems = Vec::new();
        for (setting, value) in
            [("arena_bytes_max", self.arena_bytes_max), ("idle_max", self.idle_max)]
        {
            if value == 0 {
                problems.push(Problem::new(setting, value, "must be at least 1"));
            }
        }
        if self.decay.is_zero() {
            problems.push(Problem::new("decay", self.decay, "must be longer than nothing"));
        }
        BuildError::check("arena pool", problems)?;
        let builder: PoolBuilder<Bump> = Pool::builder(Bump::new);
        let pool = builder
            .name("arenas")
            .reset(Bump::reset)
            .weigh(|arena| arena.allocated_bytes() + size_of::<Bump>())
            .object_bytes_max(self.arena_bytes_max.saturating_add(size_of::<Bump>()))
            .idle_bytes_max(
                self.arena_bytes_max.saturating_mul(self.idle_max).saturating_add(1 << 16),
            )
            .stash_bytes_max(self.arena_bytes_max.saturating_mul(4))
            .idle_max(self.idle_max)
            .decay(self.decay)
            .build()?;
        Ok(ArenaPool { pool })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn kept_of(bytes: usize) -> PoolStats {
        let arenas = ArenaPool::builder().arena_bytes_max(64 << 10).build().expect("valid");
        for _ in 0..3 {
            arenas.scope(|arena| {
                arena.alloc_slice_fill_copy(bytes, 7_u8);
            });
        }
        arenas.stats()
    }

    #[test]
    fn an_arena_is_used_again_unless_it_has_grown_too_large() {
        let small = kept_of(10_000);
        assert_eq!((small.hits, small.misses, small.discarded), (2, 1, 0));
        let large = kept_of(100_000);
        assert_eq!((large.hits, large.misses, large.discarded), (0, 3, 3));
    }

    #[test]
    fn a_scope_that_panics_costs_its_arena_and_nothing_else() {
        let arenas = ArenaPool::builder().build().expect("valid");
        let panicking = std::panic::AssertUnwindSafe(|| arenas.scope(|_| panic!("on purpose")));
        std::panic::catch_unwind(panicking).expect_err("it goes on");
        assert_eq!((arenas.stats().poisoned, arenas.stats().in_use), (1, 0));
        assert_eq!(arenas.scope(|arena| *arena.alloc(7)), 7);
    }

    #[test]
    fn every_setting_that_cannot_be_used_is_named() {
        let builder = ArenaPool::builder().arena_bytes_max(0).idle_max(0).decay(Duration::ZERO);
        let error = builder.build().expect_err("three problems").to_string();
        assert_eq!(
            error,
            "invalid arena pool, 3 problems:\n  arena_bytes_max = 0: must be at least 1\n  \
             idle_max = 0: must be at least 1\n  decay = 0ns: must be longer than nothing"
        );
    }
}
