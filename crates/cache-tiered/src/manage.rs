//! The cache as a whole: what it holds and has done, its size and policy, emptying and closing it.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use futures_util::future::join_all;

use crate::cache::{Cache, WritePolicy};
use crate::lower::Tier;
use crate::memory::UnsupportedByEngine;
use crate::policy::Policy;
use crate::policy::curve::{Estimate, MissRatioCurve};
use crate::policy::election::PolicyReport;
use crate::stats::CacheStats;

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
        let inner = self.inner();
        let which = tier.into();
        let wanted = |tier| which.is_none() || which == Some(tier);
        // A value on its way here must not reach a tier that has just been emptied.
        inner.memory.overtake_all();
        let clearing = which.is_none().then(|| inner.lower.begin_clearing());
        if clearing.is_some() {
            inner.memory.clear();
        }
        let tiers = inner.lower.tiers.iter().filter(|it| wanted(it.tier()));
        join_all(tiers.map(|it| it.clear())).await;
        // Again: values were read below and brought up while those tiers were still full.
        inner.memory.overtake_all();
        if wanted(Tier::Memory) {
            inner.memory.clear();
        }
    }

    /// Removes entries past their time from memory and disk, and tells how many; Redis does it itself.
    ///
    /// # Cost
    ///
    /// Visits the entries that are due on the calling thread, with one shard locked at a time; with
    /// [`Engine::ClockPro`](crate::Engine::ClockPro), every entry in memory.
    pub async fn remove_expired(&self) -> u64 {
        let inner = self.inner();
        let mut removed = inner.memory.remove_expired();
        for tier in &inner.lower.tiers {
            removed += tier.remove_expired().await;
        }
        removed
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
    /// The capacity is in the unit of the cache's own. `None` unless the cache was built with
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
        join_all(self.inner().lower.tiers.iter().map(|tier| tier.flush())).await;
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
        let inner = self.inner();
        if inner.write_policy == WritePolicy::OnEviction {
            inner.write_all_down().await;
        }
        join_all(inner.lower.tiers.iter().map(|tier| tier.close())).await;
        #[cfg(feature = "__lower")]
        if let Some(dictionaries) = &inner.dictionaries {
            dictionaries.close().await;
        }
    }

    /// Returns what the cache has done and holds.
    ///
    /// # Cost
    ///
    /// Some hundred relaxed loads and a short lock for each shard and queue.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let inner = self.inner();
        let counters = &inner.counters;
        let mut stats = CacheStats {
            memory: inner.memory.stats(),
            loads: counters.loads.get(),
            load_failures: counters.load_failures.get(),
            load_time: Duration::from_nanos(counters.load_nanos.get()),
            coalesced: counters.coalesced.get(),
            superseded: counters.superseded.get(),
            refreshes: counters.refreshes.get(),
            stale_hits: counters.stale_hits.get(),
            stale_on_error: counters.stale_on_error.get(),
            in_flight: inner.memory.in_flight(),
            prefetch: inner.prefetcher.as_ref().map(|it| it.stats()).unwrap_or_default(),
            ..CacheStats::default()
        };
        for tier in &inner.lower.tiers {
            // The tiers share what seals their values, so any of them tells all.
            stats.compression = tier.compression();
            stats.coherence = stats.coherence.or_else(|| tier.coherence());
            match tier.tier() {
                Tier::Redis => stats.redis = Some(tier.stats()),
                Tier::Disk => stats.disk = Some(tier.stats()),
                Tier::Memory => {}
            }
        }
        stats
    }
}
