//! Publishes a cache's statistics through the `metrics` facade.
//!
//! Handles are made once and kept; [`Publisher::publish`] copies the current numbers into them. It is
//! called when somebody scrapes, so that a hit never pays for being counted twice.

use std::hash::{BuildHasher, Hash};

use metrics::{Counter, Gauge, counter, gauge};

use crate::cache::Cache;
use crate::fates::AdviceStats;
use crate::hasher::DefaultHashBuilder;
use crate::latency::ReadLatency;
use crate::lower::Tier;
use crate::stats::{CacheStats, CoherenceStats, CompressionStats, PrefetchStats, TierStats};

/// The metrics of one cache, with the label `cache` for its name and `type` for its tiers.
#[derive(Debug)]
pub struct Publisher<K, V, S = DefaultHashBuilder> {
    cache: Cache<K, V, S>,
    metrics: CacheMetrics,
}

#[derive(Debug)]
pub(crate) struct CacheMetrics {
    tiers: Vec<TierMetrics>,
    loads: Counter,
    load_failures: Counter,
    load_seconds: Gauge,
    coalesced: Counter,
    superseded: Counter,
    refreshes: Counter,
    stale: [Counter; 2],
    in_flight: Gauge,
    prefetches: [Counter; 4],
    prefetch_outstanding: Gauge,
    /// Where there is a tier below memory.
    compression: Option<CompressionMetrics>,
    coherence: Option<CoherenceMetrics>,
    advice: AdviceMetrics,
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
struct CompressionMetrics {
    values: [Counter; 3],
    bytes_in: Counter,
    bytes_out: Counter,
    ratio: Gauge,
    decompressed: Counter,
    seconds: [Gauge; 2],
    dictionaries: Gauge,
    dictionaries_trained: Counter,
}

impl CompressionMetrics {
    fn new(cache: &str) -> Self {
        let labels = [("cache", cache.to_owned())];
        let with = |name: &'static str, value: &str| {
            let [cache] = labels.clone();
            [cache, (name, value.to_owned())]
        };
        Self {
            values: ["compressed", "kept", "skipped"].map(|outcome| {
                counter!("cache_compression_values_total", &with("outcome", outcome))
            }),
            bytes_in: counter!("cache_compression_input_bytes_total", &labels),
            bytes_out: counter!("cache_compression_output_bytes_total", &labels),
            ratio: gauge!("cache_compression_ratio", &labels),
            decompressed: counter!("cache_decompressed_values_total", &labels),
            seconds: ["compress", "decompress"].map(|operation| {
                gauge!("cache_compression_seconds", &with("operation", operation))
            }),
            dictionaries: gauge!("cache_dictionaries", &labels),
            dictionaries_trained: counter!("cache_dictionaries_trained_total", &labels),
        }
    }

    fn publish(&self, stats: &CompressionStats) {
        let kept = stats.tried.saturating_sub(stats.compressed);
        for (counter, count) in self.values.iter().zip([stats.compressed, kept, stats.skipped]) {
            counter.absolute(count);
        }
        self.bytes_in.absolute(stats.bytes_in);
        self.bytes_out.absolute(stats.bytes_out);
        self.ratio.set(stats.ratio());
        self.decompressed.absolute(stats.decompressed);
        for (gauge, time) in self.seconds.iter().zip([stats.encode_time, stats.decode_time]) {
            gauge.set(time.as_secs_f64());
        }
        self.dictionaries.set(stats.dictionaries as f64);
        self.dictionaries_trained.absolute(stats.dictionaries_trained);
    }
}

/// Why keys are missed, and what loading them again was good for.
#[derive(Debug)]
struct AdviceMetrics {
    one_of: Gauge,
    misses: [Counter; 3],
    rewrites: [Counter; 2],
    reloads: [Counter; 2],
    loads: [Counter; 3],
    repeated: [Counter; 2],
    duplicates: Counter,
}

impl AdviceMetrics {
    fn new(cache: &str) -> Self {
        let labels = [("cache", cache.to_owned())];
        let with = |name: &'static str, label: &'static str, value: &str| {
            let [cache] = labels.clone();
            counter!(name, &[cache, (label, value.to_owned())])
        };
        Self {
            one_of: gauge!("cache_watched_one_of", &labels),
            misses: ["evicted", "expired", "other"]
                .map(|cause| with("cache_watched_misses_total", "cause", cause)),
            rewrites: ["same", "changed"]
                .map(|content| with("cache_watched_rewrites_total", "content", content)),
            reloads: ["same", "changed"]
                .map(|content| with("cache_watched_reloads_total", "content", content)),
            loads: ["found", "absent", "failed"]
                .map(|outcome| with("cache_watched_loads_total", "outcome", outcome)),
            repeated: ["absent", "failed"]
                .map(|outcome| with("cache_watched_repeated_loads_total", "outcome", outcome)),
            duplicates: counter!("cache_duplicate_fetches_total", &labels),
        }
    }

    fn publish(&self, stats: &AdviceStats) {
        self.one_of.set(stats.one_of as f64);
        let known = stats.misses_evicted + stats.misses_expired;
        let misses = [stats.misses_evicted, stats.misses_expired, stats.misses - known];
        let in_vain = stats.loads_absent + stats.loads_failed;
        let loads = [stats.loads - in_vain, stats.loads_absent, stats.loads_failed];
        let changed = [stats.rewrites - stats.rewrites_same, stats.reloads - stats.reloads_same];
        let counted = [
            (&self.misses[..], &misses[..]),
            (&self.rewrites, &[stats.rewrites_same, changed[0]]),
            (&self.reloads, &[stats.reloads_same, changed[1]]),
            (&self.loads, &loads),
            (&self.repeated, &[stats.loads_absent_again, stats.loads_failed_again]),
        ];
        for (counters, counts) in counted {
            counters.iter().zip(counts).for_each(|(counter, count)| counter.absolute(*count));
        }
        self.duplicates.absolute(stats.duplicate_fetches);
    }
}

/// What only the disk tier counts.
#[derive(Debug)]
struct DiskMetrics {
    refused: [Counter; 2],
    copied_forward: Counter,
    checkpoints: Counter,
}

impl DiskMetrics {
    fn new(labels: &[(&'static str, String); 2]) -> Self {
        let refused = |reason: &'static str| {
            let [cache, tier] = labels.clone();
            counter!("cache_refused_writes_total", &[cache, tier, ("reason", reason.to_owned())])
        };
        Self {
            refused: ["admission", "budget"].map(refused),
            copied_forward: counter!("cache_copied_forward_total", labels),
            checkpoints: counter!("cache_checkpoints_total", labels),
        }
    }

    fn publish(&self, stats: &TierStats) {
        let refused = [stats.refused_admission, stats.refused_budget];
        for (counter, count) in self.refused.iter().zip(refused) {
            counter.absolute(count);
        }
        self.copied_forward.absolute(stats.copied_forward);
        self.checkpoints.absolute(stats.checkpoints);
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
    /// Of the tiers below memory.
    read_seconds: Option<[Gauge; 3]>,
    disk: Option<DiskMetrics>,
}

impl TierMetrics {
    fn new(cache: &str, tier: Tier) -> Self {
        let labels = [("cache", cache.to_owned()), ("type", tier.as_str().to_owned())];
        let evictions = |cause: &'static str| {
            let [cache, tier] = labels.clone();
            counter!("cache_evictions_total", &[cache, tier, ("cause", cause.to_owned())])
        };
        let quantile = |quantile: &'static str| {
            let [cache, tier] = labels.clone();
            gauge!("cache_read_seconds", &[cache, tier, ("quantile", quantile.to_owned())])
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
            read_seconds: (tier != Tier::Memory).then(|| ["0.5", "0.95", "0.99"].map(quantile)),
            disk: (tier == Tier::Disk).then(|| DiskMetrics::new(&labels)),
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
        let ReadLatency { p50, p95, p99, .. } = stats.read_latency;
        for (gauge, time) in self.read_seconds.iter().flatten().zip([p50, p95, p99]) {
            gauge.set(time.as_secs_f64());
        }
        if let Some(disk) = &self.disk {
            disk.publish(stats);
        }
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
        Self { metrics: CacheMetrics::new(cache.name(), &cache.stats()), cache }
    }

    /// Copies the cache's current statistics into its metrics.
    pub fn publish(&self) {
        self.metrics.publish(&self.cache.stats(), &self.cache.advice_stats());
    }
}

impl CacheMetrics {
    /// Registers the metrics of a cache of this name, as far as its statistics tell what it has.
    pub(crate) fn new(name: &str, stats: &CacheStats) -> Self {
        describe();
        let tiers =
            [Some(Tier::Memory), stats.redis.map(|_| Tier::Redis), stats.disk.map(|_| Tier::Disk)];
        let tiers = tiers.into_iter().flatten().map(|tier| TierMetrics::new(name, tier)).collect();
        let coherence = stats.coherence.map(|_| CoherenceMetrics::new(name));
        let has_lower = stats.redis.is_some() || stats.disk.is_some();
        let compression = has_lower.then(|| CompressionMetrics::new(name));
        let labels = [("cache", name.to_owned())];
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
            advice: AdviceMetrics::new(name),
            prefetches: ["issued", "used", "wasted", "skipped"].map(|state| {
                let [cache] = labels.clone();
                counter!("cache_prefetches_total", &[cache, ("state", state.to_owned())])
            }),
            prefetch_outstanding: gauge!("cache_prefetches_outstanding", &labels),
            compression,
        }
    }

    pub(crate) fn publish(&self, stats: &CacheStats, advice: &AdviceStats) {
        self.advice.publish(advice);
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
        let PrefetchStats { issued, used, wasted, skipped, outstanding, .. } = stats.prefetch;
        for (counter, count) in self.prefetches.iter().zip([issued, used, wasted, skipped]) {
            counter.absolute(count);
        }
        self.prefetch_outstanding.set(outstanding as f64);
        if let Some(compression) = &self.compression {
            compression.publish(&stats.compression);
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
    describe_counter!("cache_prefetches_total", "Loads ahead of their requests, by state.");
    describe_counter!("cache_refused_writes_total", "Values that a tier did not take, by reason.");
    describe_counter!("cache_copied_forward_total", "Entries written again instead of evicted.");
    describe_counter!("cache_checkpoints_total", "Checkpoints that a tier wrote.");
    describe_counter!("cache_compression_values_total", "Values to be compressed, by outcome.");
    let input = "Bytes of the values that compression was tried on.";
    describe_counter!("cache_compression_input_bytes_total", Unit::Bytes, input);
    let output = "Bytes that these values are stored in.";
    describe_counter!("cache_compression_output_bytes_total", Unit::Bytes, output);
    describe_gauge!("cache_watched_one_of", "One key of so many is watched for advice.");
    describe_counter!(
        "cache_watched_misses_total",
        "Misses of watched keys, by what became of them."
    );
    let rewrites = "New values of watched keys, by whether they differ from the earlier one.";
    describe_counter!("cache_watched_rewrites_total", rewrites);
    let reloads = "New values after an expiry, by whether they differ from what had expired.";
    describe_counter!("cache_watched_reloads_total", reloads);
    describe_counter!("cache_watched_loads_total", "Loads of watched keys, by what they came to.");
    let repeated = "Loads in vain less than a minute after another of the same key.";
    describe_counter!("cache_watched_repeated_loads_total", repeated);
    let duplicates = "Fetches of keys that another call was fetching already.";
    describe_counter!("cache_duplicate_fetches_total", duplicates);
    let read = "How long reads of a tier have taken of late, by quantile.";
    describe_gauge!("cache_read_seconds", Unit::Seconds, read);
    describe_counter!("cache_decompressed_values_total", "Values that were decompressed.");
    describe_counter!(
        "cache_dictionaries_trained_total",
        "Dictionaries trained and taken into use."
    );
    describe_gauge!("cache_compression_ratio", "Bytes that went in for each that is stored.");
    let seconds = "Time spent on compression since the start, by operation; sampled.";
    describe_gauge!("cache_compression_seconds", Unit::Seconds, seconds);
    describe_gauge!("cache_dictionaries", "Dictionaries that values can be read with.");
    describe_gauge!("cache_prefetches_outstanding", "Loads ahead that nobody has asked for yet.");
    describe_gauge!("cache_load_seconds", Unit::Seconds, "Time spent in loaders since the start.");
    describe_gauge!("cache_in_flight", "Keys that are being loaded or looked up below memory.");
    describe_gauge!("cache_entries", "Entries that a tier holds.");
    describe_gauge!("cache_size_bytes", Unit::Bytes, "Bytes that a tier holds.");
    describe_gauge!("cache_capacity", "The bound of a tier: bytes, or entries if it counts those.");
    describe_gauge!("cache_queue_depth", "Reads and writes that wait for a tier.");
    describe_gauge!("cache_queue_bytes", Unit::Bytes, "Bytes of writes that wait for a tier.");
}
