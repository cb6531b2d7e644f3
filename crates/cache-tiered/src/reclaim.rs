//! Giving memory back under pressure: how much there is, and pushing out the coldest of it.
//!
//! Entries leave as they do for want of room, in the order of the policy, and pinned ones stay. What
//! lies in a tier below stays there, and where evictions are written they are written here as well. The
//! capacity is left as it is, so the cache fills again when memory allows it.

use std::hash::{BuildHasher, Hash};
use std::time::Instant;

use crate::cache::{Cache, Inner};

/// What an entry takes beside its weight; or, where entries are not weighed, beside its own size.
const ENTRY_BYTES: u64 = 100;

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Returns about how many bytes [`reclaim`](Self::reclaim) could free.
    ///
    /// That is what the entries in memory weigh. A cache that is bounded by entries does not weigh them:
    /// there each counts as the size of its key and value with 100 bytes on top, which is too little where
    /// they own more.
    ///
    /// # Cost
    ///
    /// A short lock for each shard.
    #[must_use]
    pub fn reclaimable_bytes(&self) -> u64 {
        self.inner().reclaimable()
    }

    /// Pushes the coldest entries out of memory, until about `target_bytes` are free; tells how many.
    ///
    /// They go in the order of the policy, from all shards alike; pinned ones stay, and so does the
    /// capacity. Nothing is lost in the tiers below, and with
    /// [`WritePolicy::OnEviction`](crate::WritePolicy::OnEviction) they are given what leaves. The bytes
    /// are counted as [`reclaimable_bytes`](Self::reclaimable_bytes) counts them; what a reader still
    /// holds is freed when it is done, and the allocator may keep what it gets.
    ///
    /// # Cost
    ///
    /// Some 100 ns on the calling thread for each entry; a shard is locked for 256 of them at a time. With
    /// [`Engine::ClockPro`](crate::Engine::ClockPro) the capacity is lowered for a moment, and a listener
    /// does not hear of what leaves.
    ///
    /// # Examples
    ///
    /// ```
    /// let cache = cache_tiered::Cache::<u64, Vec<u8>>::builder("pages")
    ///     .bytes(1 << 20, |_, page| page.len() as u64)
    ///     .build()?;
    /// for page in 0..100 {
    ///     cache.insert(page, vec![0; 1_000]);
    /// }
    /// assert!(cache.reclaim(30_000) >= 30_000);
    /// assert!(cache.reclaimable_bytes() <= 70_000);
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn reclaim(&self, target_bytes: u64) -> u64 {
        self.inner().reclaim_while(target_bytes, || true)
    }

    /// As [`reclaim`](Self::reclaim), and stops soon after `deadline`.
    pub fn reclaim_until(&self, target_bytes: u64, deadline: Instant) -> u64 {
        self.inner().reclaim_while(target_bytes, || Instant::now() < deadline)
    }
}

impl<K, V, S> Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// How many bytes a reclaim could free.
    pub(crate) fn reclaimable(&self) -> u64 {
        let stats = self.memory.stats();
        if self.weighs_bytes { stats.bytes } else { stats.entries * Self::estimated_bytes() }
    }

    /// Pushes entries out for as long as `go_on` says.
    pub(crate) fn reclaim_while(&self, target_bytes: u64, go_on: impl Fn() -> bool) -> u64 {
        if self.weighs_bytes {
            return self.memory.evict(target_bytes, go_on).weight;
        }
        let entries = target_bytes.div_ceil(Self::estimated_bytes());
        self.memory.evict(entries, go_on).entries * Self::estimated_bytes()
    }

    fn estimated_bytes() -> u64 {
        (size_of::<K>() + size_of::<V>()) as u64 + ENTRY_BYTES
    }
}
