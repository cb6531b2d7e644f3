//! Publishes a cache's statistics through the `metrics` facade.
//!
//! Handles are made once and kept; [`Publisher::publish`] copies the current numbers into them. It is
//! called when somebody scrapes, so that a hit never pays for being counted twice.

use std::hash::{BuildHasher, Hash};

use metrics::{Counter, Gauge, counter, gauge};

use crate::cache::Cache;
use crate::hasher::DefaultHashBuilder;
use crate::lower::Tier;
use crate::stats::{CoherenceStats, TierStats};

/// The metrics of one cache, with the label `cache` for its name and `type` for its tiers.
#[derive(Debug)]
pub struct Publisher<K, V, S = DefaultHashBuilder> {
    cache: Cache<K, V, S>,
    tiers: Vec<TierMetrics>,
    loads: Counter,
    load_failures: Counter,
    load_seconds: Gauge,
    coalesced: Counter,
    superseded: Counter,
    refreshes: Counter,
    stale: [Counter; 2],
    in_flight: Gauge,
    coherence: Option<CoherenceMetrics>,
}

/// Where memory follows a tier that is shared.
#[derive(Debug)]
struct CoherenceMetrics {
    coherent: Gauge,
    invalidations: Counter,
    resets: Counter,
}

impl CoherenceMetrics {
    fn new(cache: &str) -> Self {
        let labels = [("cache", cache.to_owned())];
        Self {
            coherent: gauge!("cache_coherent", &labels),
            invalidations: counter!("cache_invalidations_total", &labels),
            resets: counter!("cache_coherence_resets_total", &labels),
        }
    }

    fn publish(&self, stats: &CoherenceStats) {
        self.coherent.set(f64::from(u8::from(stats.coherent)));
        self.invalidations.absolute(stats.invalidations);
        self.resets.absolute(stats.resets);
    }
}

#[derive(Debug)]
struct TierMetrics {
    tier: Tier,
    hits: Counter,
    misses: Counter,
    errors: Counter,
    writes: Counter,
    dropped_writes: Counter,
    evictions: [Counter; 4],
    entries: Gauge,
    bytes: Gauge,
    capacity: Gauge,
    queue_depth: Gauge,
    queue_bytes: Gauge,
}

impl TierMetrics {
    fn new(cache: &str, tier: Tier) -> Self {
        let labels = [("cache", cache.to_owned()), ("type", tier.as_str().to_owned())];
        let evictions = |cause: &'static str| {
            let [cache, tier] = labels.clone();
            counter!("cache_evictions_total", &[cache, tier, ("cause", cause.to_owned())])
        };
        Self {
            tier,
            hits: counter!("cache_hits_total", &labels),
            misses: counter!("cache_misses_total", &labels),
            errors: counter!("cache_errors_total", &labels),
            writes: counter!("cache_writes_total", &labels),
            dropped_writes: counter!("cache_dropped_writes_total", &labels),
            evictions: ["capacity", "expired", "removed", "too_large"].map(evictions),
            entries: gauge!("cache_entries", &labels),
            bytes: gauge!("cache_size_bytes", &labels),
            capacity: gauge!("cache_capacity", &labels),
            queue_depth: gauge!("cache_queue_depth", &labels),
            queue_bytes: gauge!("cache_queue_bytes", &labels),
        }
    }

    fn publish(&self, stats: &TierStats) {
        self.hits.absolute(stats.hits);
        self.misses.absolute(stats.misses);
        self.errors.absolute(stats.errors);
        self.writes.absolute(stats.writes);
        self.dropped_writes.absolute(stats.dropped_writes);
        let causes = &stats.evictions;
        let causes = [causes.capacity, causes.expired, causes.removed, causes.too_large];
        for (counter, count) in self.evictions.iter().zip(causes) {
            counter.absolute(count);
        }
        self.entries.set(stats.entries as f64);
        self.bytes.set(stats.bytes as f64);
        self.capacity.set(stats.capacity as f64);
        self.queue_depth.set(stats.queue_depth as f64);
        self.queue_bytes.set(stats.queue_bytes as f64);
    }
}

impl<K, V, S> Publisher<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Registers the metrics of a cache with the recorder that is installed now.
    #[must_use]
    pub fn new(cache: Cache<K, V, S>) -> Self {
        describe();
        let stats = cache.stats();
        let name = cache.name().to_owned();
        let tiers =
            [Some(Tier::Memory), stats.redis.map(|_| Tier::Redis), stats.disk.map(|_| Tier::Disk)];
        let tiers = tiers.into_iter().flatten().map(|tier| TierMetrics::new(&name, tier)).collect();
        let coherence = stats.coherence.map(|_| CoherenceMetrics::new(&name));
        let labels = [("cache", name)];
        let loads = |status: &str| {
            let [cache] = labels.clone();
            counter!("cache_loads_total", &[cache, ("status", status.to_owned())])
        };
        Self {
            tiers,
            loads: loads("success"),
            load_failures: loads("failure"),
            load_seconds: gauge!("cache_load_seconds", &labels),
            coalesced: counter!("cache_coalesced_total", &labels),
            superseded: counter!("cache_superseded_total", &labels),
            refreshes: counter!("cache_refreshes_total", &labels),
            stale: ["revalidating", "error"].map(|reason| {
                let [cache] = labels.clone();
                counter!("cache_stale_total", &[cache, ("reason", reason.to_owned())])
            }),
            in_flight: gauge!("cache_in_flight", &labels),
            coherence,
            cache,
        }
    }

    /// Copies the cache's current statistics into its metrics.
    pub fn publish(&self) {
        let stats = self.cache.stats();
        for metrics in &self.tiers {
            let tier = match metrics.tier {
                Tier::Memory => Some(stats.memory),
                Tier::Redis => stats.redis,
                Tier::Disk => stats.disk,
            };
            if let Some(tier) = tier {
                metrics.publish(&tier);
            }
        }
        self.loads.absolute(stats.loads);
        self.load_failures.absolute(stats.load_failures);
        self.load_seconds.set(stats.load_time.as_secs_f64());
        self.coalesced.absolute(stats.coalesced);
        self.superseded.absolute(stats.superseded);
        self.refreshes.absolute(stats.refreshes);
        for (counter, count) in self.stale.iter().zip([stats.stale_hits, stats.stale_on_error]) {
            counter.absolute(count);
        }
        self.in_flight.set(stats.in_flight as f64);
        if let (Some(metrics), Some(stats)) = (&self.coherence, &stats.coherence) {
            metrics.publish(stats);
        }
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_counter!("cache_hits_total", "Look-ups that a tier answered.");
    describe_counter!("cache_misses_total", "Look-ups that a tier did not answer.");
    describe_counter!("cache_errors_total", "Calls to a tier that failed; each was a miss.");
    describe_counter!("cache_writes_total", "Entries written to a tier.");
    describe_counter!("cache_dropped_writes_total", "Writes to a tier that were not made.");
    describe_counter!("cache_evictions_total", "Entries that left a tier, by cause.");
    describe_counter!("cache_loads_total", "Loaders that ran, by status.");
    describe_counter!("cache_coalesced_total", "Calls that shared somebody else's load.");
    describe_counter!("cache_superseded_total", "Slow values not kept: their key was written.");
    describe_counter!("cache_refreshes_total", "Loads in the background that have ended.");
    describe_counter!("cache_stale_total", "Values served past their time to live, by reason.");
    describe_counter!("cache_invalidations_total", "Keys that others changed in a shared tier.");
    describe_counter!("cache_coherence_resets_total", "Times that memory was emptied for safety.");
    describe_gauge!("cache_coherent", "Whether memory follows what others change.");
    describe_gauge!("cache_load_seconds", Unit::Seconds, "Time spent in loaders since the start.");
    describe_gauge!("cache_in_flight", "Keys that are being loaded or looked up below memory.");
    describe_gauge!("cache_entries", "Entries that a tier holds.");
    describe_gauge!("cache_size_bytes", Unit::Bytes, "Bytes that a tier holds.");
    describe_gauge!("cache_capacity", "The bound of a tier: bytes, or entries if it counts those.");
    describe_gauge!("cache_queue_depth", "Reads and writes that wait for a tier.");
    describe_gauge!("cache_queue_bytes", Unit::Bytes, "Bytes of writes that wait for a tier.");
}
