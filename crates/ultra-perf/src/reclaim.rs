//! Where caches and the memory guard meet: neither crate knows the other.

use std::hash::{BuildHasher, Hash};

use cache_tiered::{Cache, DefaultHashBuilder};
use memory::{Cost, MemoryGuard, MemoryGuardBuilder, ReclaimRequest, Reclaimer};

use crate::UltraPerf;
use crate::config::Config;

/// Lets a [`MemoryGuard`] push the coldest entries out of a cache's memory.
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

impl UltraPerf {
    /// Describes a guard of the process's memory with the limit and threshold of the configuration.
    ///
    /// `None` where `memory.enabled` is `false`. The program adds its allocator and starts it.
    ///
    /// # Examples
    ///
    /// ```
    /// use ultra_perf::{UltraPerf, config::ConfigLoader};
    ///
    /// let config = ConfigLoader::new()
    ///     .set("memory.limit", "8GiB", "the program")
    ///     .set("cache.disk.enabled", "false", "the program")
    ///     .load()?;
    /// let guard = UltraPerf::new(config).memory_guard().expect("it is enabled").start()?;
    /// assert!(!guard.should_cleanup());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn memory_guard(&self) -> Option<MemoryGuardBuilder> {
        guard_of(&self.config)
    }
}

fn guard_of(config: &Config) -> Option<MemoryGuardBuilder> {
    let settings = &config.memory;
    let threshold = settings.cleanup_threshold.as_f64();
    // Ten points below the threshold, and half of it where that is little.
    let headroom = (threshold / 2.0).min(0.1);
    let builder = MemoryGuard::builder().cleanup_threshold(threshold).headroom(headroom);
    settings.enabled.then(|| match settings.limit {
        Some(limit) => builder.limit_bytes(limit.as_u64()),
        None => builder,
    })
}
