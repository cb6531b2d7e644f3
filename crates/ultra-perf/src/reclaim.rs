//! Where caches and the memory guard meet: neither crate knows the other.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use cache_tiered::{Cache, DefaultHashBuilder, ManagedCache};
use memory::{Cost, ReclaimRequest, Reclaimer};

/// Lets a [`MemoryGuard`](memory::MemoryGuard) push the coldest entries out of a cache's memory.
///
/// It holds a handle of the cache, so the cache lives until the registration is dropped.
///
/// # Examples
///
/// ```
/// use ultra_perf::{CacheReclaimer, cache_tiered::Cache, memory::MemoryGuard};
///
/// let users = Cache::<u64, String>::builder("users").entries(10_000).build()?;
/// let guard = MemoryGuard::builder().start()?;
/// let registration = guard.register(CacheReclaimer::new(users))?;
/// # drop(registration);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CacheReclaimer<K, V, S = DefaultHashBuilder> {
    cache: Cache<K, V, S>,
    cost: Cost,
    weight: u32,
}

impl<K, V, S> CacheReclaimer<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Takes a cache. Where it has a disk tier, what leaves memory is near; otherwise it is remote.
    #[must_use]
    pub fn new(cache: Cache<K, V, S>) -> Self {
        let cost = if cache.stats().disk.is_some() { Cost::Nearby } else { Cost::Remote };
        Self { cache, cost, weight: 1 }
    }

    /// Sets the share that the cache takes among those that cost the same; 1 unless set.
    #[must_use]
    pub fn with_weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }
}

impl<K, V, S> Reclaimer for CacheReclaimer<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        self.cache.name()
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.cache.reclaimable_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.cache.reclaim_until(request.target_bytes, request.deadline)
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn weight(&self) -> u32 {
        self.weight
    }
}

/// As [`CacheReclaimer`], over a cache whose types are not known.
pub(crate) struct Managed {
    cache: Arc<dyn ManagedCache>,
    cost: Cost,
}

impl Managed {
    pub(crate) fn new(cache: Arc<dyn ManagedCache>) -> Self {
        let cost = if cache.stats().disk.is_some() { Cost::Nearby } else { Cost::Remote };
        Self { cache, cost }
    }
}

impl Reclaimer for Managed {
    fn name(&self) -> &str {
        self.cache.name()
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.cache.reclaimable_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.cache.reclaim_until(request.target_bytes, request.deadline)
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}
