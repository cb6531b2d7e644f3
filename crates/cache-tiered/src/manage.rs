//! The cache as a whole: what it holds and has done, its size and policy, emptying and closing it.
//!
//! Whoever looks after many caches does not know their types: for them there is [`ManagedCache`], the
//! same without keys and values. It stands on the inner state that the handles share, so a weak
//! reference to it follows the cache itself and not a handle.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::cache::{Cache, Inner, WritePolicy};
use crate::fates::{AdviceStats, Fates};
use crate::lower::Tier;
use crate::memory::UnsupportedByEngine;
use crate::policy::Policy;
use crate::policy::curve::{Estimate, MissRatioCurve};
use crate::policy::election::PolicyReport;
use crate::stats::{CacheStats, TierStats};
use crate::tags::Tag;
use crate::tuning::{TuneError, Tuning};

/// A cache without the types of its keys and values: what it tells of itself, and what can be changed.
///
/// [`Cache::managed`] and [`CacheBuilder::on_open`](crate::CacheBuilder::on_open) give it away. Nobody
/// else implements it, so it may get further methods.
pub trait ManagedCache: sealed::Sealed + fmt::Debug + Send + Sync + 'static {
    /// Returns the name that the cache was built with.
    fn name(&self) -> &str;

    /// As [`Cache::stats`].
    fn stats(&self) -> CacheStats;

    /// As [`Cache::capacity`].
    fn capacity(&self) -> u64;

    /// As [`Cache::is_bounded_by_bytes`].
    fn is_bounded_by_bytes(&self) -> bool;

    /// As [`Cache::resize`].
    fn resize(&self, capacity: u64);

    /// As [`Cache::policy`].
    fn policy(&self) -> Option<Policy>;

    /// As [`Cache::set_policy`].
    ///
    /// # Errors
    ///
    /// [`UnsupportedByEngine`] with [`Engine::ClockPro`](crate::Engine::ClockPro).
    fn set_policy(&self, policy: Policy) -> Result<(), UnsupportedByEngine>;

    /// As [`Cache::policy_report`].
    fn policy_report(&self) -> Option<PolicyReport>;

    /// As [`Cache::hit_ratio_at`].
    fn hit_ratio_at(&self, capacity: u64) -> Option<Estimate>;

    /// As [`Cache::miss_ratio_curve`].
    fn miss_ratio_curve(&self) -> Option<MissRatioCurve>;

    /// As [`Cache::advice_stats`].
    fn advice_stats(&self) -> AdviceStats;

    /// As [`Cache::tuning`].
    fn tuning(&self) -> Tuning;

    /// As [`Cache::tune`].
    ///
    /// # Errors
    ///
    /// [`TuneError`] with every problem of the change; then nothing is changed.
    fn tune(&self, tuning: &Tuning) -> Result<(), TuneError>;

    /// Returns what was set after [`CacheBuilder::described`](crate::CacheBuilder::described), or at all
    /// where nobody called that.
    fn chosen(&self) -> Chosen;

    /// Tells whether the cache was given a loader by [`Cache::loading`], without which nothing is loaded
    /// before it is asked for.
    fn has_loader(&self) -> bool;

    /// As [`Cache::reclaimable_bytes`].
    fn reclaimable_bytes(&self) -> u64;

    /// As [`Cache::reclaim_until`].
    fn reclaim_until(&self, target_bytes: u64, deadline: Instant) -> u64;

    /// As [`Cache::clear`], and cancelled like it.
    fn clear(&self, tier: Option<Tier>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// As [`Cache::invalidate_tags`], and cancelled like it.
    fn invalidate_tags<'a>(
        &'a self,
        tags: &'a [Tag],
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

    /// As [`Cache::remove_expired`].
    fn remove_expired(&self) -> Pin<Box<dyn Future<Output = u64> + Send + '_>>;

    /// As [`Cache::flush`], and cancelled like it.
    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// As [`Cache::close`], and cancelled like it.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Returns what copies the current statistics into metrics, registered with the recorder that is
    /// installed now: [`Publisher::publish`](crate::Publisher::publish).
    ///
    /// It does not keep the cache alive, and does nothing once the cache is gone.
    #[cfg(feature = "metrics")]
    fn publisher(&self) -> Box<dyn Fn() + Send + Sync>;
}

/// What whoever opened a cache set itself, of what can be changed while the cache is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chosen {
    /// [`CacheBuilder::entries`](crate::CacheBuilder::entries).
    pub entries: bool,
    /// [`CacheBuilder::bytes`](crate::CacheBuilder::bytes).
    pub bytes: bool,
    /// [`CacheBuilder::policy`](crate::CacheBuilder::policy).
    pub policy: bool,
    /// [`CacheBuilder::ttl`](crate::CacheBuilder::ttl).
    pub ttl: bool,
    /// [`CacheBuilder::absent_ttl`](crate::CacheBuilder::absent_ttl) or `negative_ttl`.
    pub absent_ttl: bool,
    /// [`CacheBuilder::stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate).
    pub stale_while_revalidate: bool,
    /// [`CacheBuilder::stale_if_error`](crate::CacheBuilder::stale_if_error).
    pub stale_if_error: bool,
    /// [`CacheBuilder::early_refresh`](crate::CacheBuilder::early_refresh).
    pub early_refresh: bool,
    /// [`CacheBuilder::prefetch`](crate::CacheBuilder::prefetch).
    pub prefetch: bool,
    /// [`CacheBuilder::related`](crate::CacheBuilder::related).
    pub related: bool,
}

mod sealed {
    pub trait Sealed {}
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Empties one tier, or all of them with `None`.
    ///
    /// Entries written before the call are not read again from that tier, nor is a value kept whose
    /// load began before. In Redis the whole namespace is replaced at once; other machines that follow it
    /// empty their memory then, and others within about a second. What is written meanwhile may be lost.
    ///
    /// # Cancel safety
    ///
    /// When dropped, some tiers may be empty and others not.
    ///
    /// # Cost
    ///
    /// Memory is emptied on the calling thread, an entry at a time: some 100 ns for each.
    pub async fn clear(&self, tier: impl Into<Option<Tier>>) {
        ManagedCache::clear(&**self.inner(), tier.into()).await;
    }

    /// Removes entries past their time from memory and disk, and tells how many; Redis does it itself.
    ///
    /// # Cost
    ///
    /// Visits the entries that are due on the calling thread, with one shard locked at a time; with
    /// [`Engine::ClockPro`](crate::Engine::ClockPro), every entry in memory.
    pub async fn remove_expired(&self) -> u64 {
        ManagedCache::remove_expired(&**self.inner()).await
    }

    /// Returns the policy that was asked for, `None` where the engine has but its own.
    #[must_use]
    pub fn policy(&self) -> Option<Policy> {
        self.inner().memory.policy()
    }

    /// Changes the policy of the memory tier while it runs; no entry is lost.
    ///
    /// Entries keep their place: the lists of the old policy become those of the new one, which takes
    /// its first decision at the next eviction.
    ///
    /// # Errors
    ///
    /// [`UnsupportedByEngine`] with [`Engine::ClockPro`](crate::Engine::ClockPro).
    ///
    /// # Cost
    ///
    /// A short lock for each shard; no entry is visited.
    pub fn set_policy(&self, policy: Policy) -> Result<(), UnsupportedByEngine> {
        self.inner().memory.set_policy(policy)
    }

    /// Reports which policy runs, how its rivals do on a sample of the keys, and what was switched why.
    ///
    /// `None` where the engine has but its own policy.
    #[must_use]
    pub fn policy_report(&self) -> Option<PolicyReport> {
        self.inner().memory.policy_report()
    }

    /// Estimates the hit ratio that the live policy would have in a memory tier of this capacity.
    ///
    /// It tells of the requests so far, up to a million sampled ones: what comes reaches more where many
    /// of them were the first of their keys, as after a start, and something else where the traffic
    /// changes. The capacity is in the unit of the cache's own. `None` unless the cache was built with
    /// [`miss_ratio_curve`](crate::CacheBuilder::miss_ratio_curve) and has seen enough requests.
    #[must_use]
    pub fn hit_ratio_at(&self, capacity: u64) -> Option<Estimate> {
        self.miss_ratio_curve()?.hit_ratio_at(capacity)
    }

    /// Returns what the live policy misses at an eighth to eight times the memory tier's capacity.
    ///
    /// `None` unless the cache was built with
    /// [`miss_ratio_curve`](crate::CacheBuilder::miss_ratio_curve) and has seen enough requests.
    #[must_use]
    pub fn miss_ratio_curve(&self) -> Option<MissRatioCurve> {
        self.inner().memory.miss_ratio_curve()
    }

    /// Returns the bound of the memory tier: bytes, or entries where it counts those.
    ///
    /// # Cost
    ///
    /// One load.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.inner().memory.capacity()
    }

    /// Tells whether the memory tier is bounded by bytes, and not by entries alone.
    #[must_use]
    pub fn is_bounded_by_bytes(&self) -> bool {
        self.inner().weighs_bytes
    }

    /// Returns the cache without the types of its keys and values, for who looks after many.
    ///
    /// The same cache each time: what is returned keeps it alive like a handle, and a
    /// [`Weak`](std::sync::Weak) made of it does not.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, Weak};
    /// use cache_tiered::{Cache, ManagedCache};
    ///
    /// let users = Cache::<u64, String>::builder("users").build()?;
    /// let pages = Cache::<String, Vec<u8>>::builder("pages").build()?;
    /// let all: Vec<Weak<dyn ManagedCache>> =
    ///     [users.managed(), pages.managed()].iter().map(Arc::downgrade).collect();
    /// drop(pages);
    /// let there: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
    /// assert_eq!((there.len(), there[0].name()), (1, "users"));
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    #[must_use]
    pub fn managed(&self) -> Arc<dyn ManagedCache> {
        Arc::clone(self.inner()) as Arc<dyn ManagedCache>
    }

    /// Makes the memory tier larger or smaller, in entries or bytes as it was built.
    ///
    /// Look-ups and writes go on meanwhile. When this returns, no more than `capacity` is held: entries
    /// that do not fit were pushed out in the order of the policy, pinned ones last. Of two calls at once
    /// the later one holds. The number of shards stays that of the build. Zero keeps nothing, and every
    /// insert is refused as too heavy.
    ///
    /// # Cost
    ///
    /// Some 100 ns on the calling thread for each entry pushed out. A growing table is rebuilt a shard
    /// at a time, while that shard takes no writes. Memory of a smaller table goes back to the allocator
    /// as its last entries turn over. With [`Engine::ClockPro`](crate::Engine::ClockPro) the capacity is
    /// rounded down to a multiple of the shards, and a listener does not hear of what a resize pushes
    /// out.
    pub fn resize(&self, capacity: u64) {
        self.inner().memory.resize(capacity);
    }

    /// Resolves when everything written before has reached the tiers below.
    ///
    /// For the disk that means that the bytes survive a killed process; surviving a power cut is a
    /// matter of the tier's fsync policy.
    ///
    /// # Cancel safety
    ///
    /// May be dropped; the writes go on.
    pub async fn flush(&self) {
        ManagedCache::flush(&**self.inner()).await;
    }

    /// Writes down what has to be, then stops every thread and task of the cache.
    ///
    /// The disk tier's directory is free afterwards. Handles may still be used, and find what is in
    /// memory, but the tiers below are gone for them: a write or a removal that comes after the call
    /// is not written down, and the next cache over the same tiers finds what was there before. So
    /// stop writing first. A dictionary that is being trained is waited for, ten seconds at most.
    ///
    /// # Cancel safety
    ///
    /// May be dropped: tiers that have begun to close go on in the background. Those that have not are
    /// closed by another call, or with the last handle.
    pub async fn close(&self) {
        ManagedCache::close(&**self.inner()).await;
    }

    /// Returns why keys are missed, and what loading them again was good for.
    ///
    /// # Cost
    ///
    /// A short lock, and one for each shard.
    ///
    /// # Examples
    ///
    /// ```
    /// use cache_tiered::Cache;
    ///
    /// let cache = Cache::<u64, u64>::builder("numbers").entries(1_000).build()?;
    /// for number in (0..1_500).chain(0..1_500) {
    ///     if cache.get_in_memory(&number).is_none() {
    ///         cache.insert(number, number);
    ///     }
    /// }
    /// assert!(cache.advice_stats().evicted_share() > 0.0);
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    #[must_use]
    pub fn advice_stats(&self) -> AdviceStats {
        self.inner().advice_stats()
    }

    /// Returns what the cache has done and holds.
    ///
    /// # Cost
    ///
    /// Some hundred relaxed loads and a short lock for each shard and queue.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        ManagedCache::stats(&**self.inner())
    }
}

impl<K, V, S> sealed::Sealed for Inner<K, V, S> {}

impl<K, V, S> fmt::Debug for Inner<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K, V, S> ManagedCache for Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn stats(&self) -> CacheStats {
        let counters = &self.counters;
        let mut stats = CacheStats {
            memory: self.memory.stats(),
            loads: counters.loads.get(),
            load_failures: counters.load_failures.get(),
            load_time: Duration::from_nanos(counters.load_nanos.get()),
            coalesced: counters.coalesced.get(),
            superseded: counters.superseded.get(),
            refreshes: counters.refreshes.get(),
            stale_hits: counters.stale_hits.get(),
            stale_on_error: counters.stale_on_error.get(),
            in_flight: self.memory.in_flight(),
            prefetch: self.prefetcher.get().map(|it| it.stats()).unwrap_or_default(),
            ..CacheStats::default()
        };
        for (tier, reads) in self.lower.with_reads() {
            let read = || TierStats { read_latency: reads.summary(), ..tier.stats() };
            // The tiers share what seals their values, so any of them tells all.
            stats.compression = tier.compression();
            stats.coherence = stats.coherence.or_else(|| tier.coherence());
            match tier.tier() {
                Tier::Redis => stats.redis = Some(read()),
                Tier::Disk => stats.disk = Some(read()),
                Tier::Memory => {}
            }
        }
        stats
    }

    fn capacity(&self) -> u64 {
        self.memory.capacity()
    }

    fn is_bounded_by_bytes(&self) -> bool {
        self.weighs_bytes
    }

    fn resize(&self, capacity: u64) {
        self.memory.resize(capacity);
    }

    fn policy(&self) -> Option<Policy> {
        self.memory.policy()
    }

    fn set_policy(&self, policy: Policy) -> Result<(), UnsupportedByEngine> {
        self.memory.set_policy(policy)
    }

    fn policy_report(&self) -> Option<PolicyReport> {
        self.memory.policy_report()
    }

    fn hit_ratio_at(&self, capacity: u64) -> Option<Estimate> {
        self.miss_ratio_curve()?.hit_ratio_at(capacity)
    }

    fn miss_ratio_curve(&self) -> Option<MissRatioCurve> {
        self.memory.miss_ratio_curve()
    }

    fn advice_stats(&self) -> AdviceStats {
        let watched = self.memory.fates().map(Fates::stats).unwrap_or_default();
        AdviceStats { duplicate_fetches: self.memory.doubled(), ..watched }
    }

    fn tuning(&self) -> Tuning {
        self.tuning()
    }

    fn tune(&self, tuning: &Tuning) -> Result<(), TuneError> {
        self.tune(tuning)
    }

    fn chosen(&self) -> Chosen {
        self.chosen
    }

    fn has_loader(&self) -> bool {
        self.counters.has_loader.load(Ordering::Relaxed)
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.reclaimable()
    }

    fn reclaim_until(&self, target_bytes: u64, deadline: Instant) -> u64 {
        self.reclaim_while(target_bytes, || Instant::now() < deadline)
    }

    fn clear(&self, tier: Option<Tier>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let which = tier;
            let wanted = |tier| which.is_none() || which == Some(tier);
            // A value on its way here must not reach a tier that has just been emptied.
            self.memory.overtake_all();
            let clearing = which.is_none().then(|| self.lower.begin_clearing());
            if clearing.is_some() {
                self.memory.clear();
            }
            let tiers = self.lower.tiers.iter().filter(|it| wanted(it.tier()));
            join_all(tiers.map(|it| it.clear())).await;
            // Again: values were read below and brought up while those tiers were still full.
            self.memory.overtake_all();
            if wanted(Tier::Memory) {
                self.memory.clear();
            }
        })
    }

    fn invalidate_tags<'a>(
        &'a self,
        tags: &'a [Tag],
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.invalidate(tags.iter().map(|tag| tag.number()).collect()))
    }

    fn remove_expired(&self) -> Pin<Box<dyn Future<Output = u64> + Send + '_>> {
        Box::pin(async move {
            let mut removed = self.memory.remove_expired();
            for tier in &self.lower.tiers {
                removed += tier.remove_expired().await;
            }
            removed
        })
    }

    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            join_all(self.lower.tiers.iter().map(|tier| tier.flush())).await;
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if self.write_policy == WritePolicy::OnEviction {
                self.write_all_down().await;
            }
            join_all(self.lower.tiers.iter().map(|tier| tier.close())).await;
            #[cfg(feature = "__lower")]
            if let Some(sealer) = &self.sealer {
                sealer.envelopes.compressing.dictionaries().close().await;
            }
        })
    }

    #[cfg(feature = "metrics")]
    fn publisher(&self) -> Box<dyn Fn() + Send + Sync> {
        let metrics = crate::publish::CacheMetrics::new(&self.name, &self.stats());
        let this = self.this.clone();
        Box::new(move || {
            if let Some(cache) = this.upgrade() {
                metrics.publish(&cache.stats(), &cache.advice_stats());
            }
        })
    }
}
