//! Caches with the tiers, bounds and times of the configuration.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

#[cfg(any(feature = "disk", feature = "redis"))]
use cache_tiered::{Bincode, Codec};
use cache_tiered::{
    CacheBuilder, Chosen, Engine, ManagedCache, Policy, Prefetch, Tier, WritePolicy,
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::config::{self, Config};

impl Config {
    /// Describes a cache with the tiers, bounds and times of the configuration.
    ///
    /// Its memory tier is bounded by `cache.memory.entries` if that is set. Otherwise it holds
    /// `cache.memory.default_entries` until the program says what a value weighs, which nobody else knows:
    /// [`CacheBuilder::bytes`] with `cache.memory.capacity` then bounds it by bytes alone. The name is that
    /// of the cache's directory and of its keys in Redis.
    pub fn cache_builder<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
        V: Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
    {
        #[cfg(any(feature = "disk", feature = "redis"))]
        return self.cache_builder_with_codec(name, Bincode);
        #[cfg(not(any(feature = "disk", feature = "redis")))]
        self.memory_cache_builder(name)
    }

    /// Describes a cache as [`cache_builder`](Self::cache_builder) does, with a codec of the program's own.
    #[cfg(any(feature = "disk", feature = "redis"))]
    pub fn cache_builder_with_codec<K, V>(
        &self,
        name: &str,
        codec: impl Codec<K, V> + Clone,
    ) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let cache = &self.cache;
        let mut builder = self.memory_cache_builder(name);
        builder = match cache.compression_method {
            _ if !cache.compression => builder.compress_above(None),
            config::CompressionMethod::Zstd => {
                builder.compress_above(cache.compression_threshold.as_usize())
            }
            config::CompressionMethod::ZstdDictionary => {
                builder.compression(cache_tiered::Compression::ZstdDictionary)
            }
            #[cfg(feature = "lz4")]
            config::CompressionMethod::Lz4 => builder
                .compression(cache_tiered::Compression::Lz4)
                .compress_above(cache.compression_threshold.as_usize()),
            // A configuration that names a method which the build lacks does not load.
            #[cfg(not(feature = "lz4"))]
            config::CompressionMethod::Lz4 => builder.compress_above(None),
        };
        #[cfg(feature = "encryption")]
        if let Some(keys) = &self.encryption {
            builder = builder.encryption(keys.clone());
        }
        #[cfg(feature = "disk")]
        if let Some(location) = cache.disk.location() {
            builder = builder.disk_with(self.disk(&location.join(name)), codec.clone());
            builder = builder.warm_up(cache.disk.warm_up);
        }
        #[cfg(feature = "redis")]
        if let Some(url) = &cache.redis.url {
            let redis = cache_tiered::redis::RedisConfig {
                prefix: cache.redis.prefix.clone(),
                connections: cache.redis.connections,
                timeout: cache.redis.timeout,
                coherence: match cache.redis.coherence {
                    config::Coherence::Auto => cache_tiered::redis::Coherence::Auto,
                    config::Coherence::Tracking => cache_tiered::redis::Coherence::Tracking,
                    config::Coherence::PubSub => cache_tiered::redis::Coherence::PubSub,
                    config::Coherence::Off => cache_tiered::redis::Coherence::Off,
                },
                ..cache_tiered::redis::RedisConfig::new(url.expose())
            };
            builder = builder.redis_with(redis, codec);
        }
        builder
    }

    #[cfg(feature = "disk")]
    fn disk(&self, path: &std::path::Path) -> cache_tiered::disk::DiskConfig {
        use cache_tiered::disk::{self, DiskConfig};
        let disk = &self.cache.disk;
        DiskConfig::new(path)
            .capacity_bytes(disk.capacity.as_u64())
            .engine(match disk.engine {
                config::DiskEngine::SegmentLog => disk::DiskEngine::SegmentLog,
                #[cfg(feature = "sled")]
                config::DiskEngine::Sled => disk::DiskEngine::Sled,
                // A configuration that names an engine which the build lacks does not load.
                #[cfg(not(feature = "sled"))]
                config::DiskEngine::Sled => disk::DiskEngine::SegmentLog,
            })
            .fsync(match disk.fsync {
                config::Fsync::Never => disk::Fsync::Never,
                config::Fsync::Every(interval) => disk::Fsync::Every(interval),
                config::Fsync::Always => disk::Fsync::Always,
            })
            .admission(match disk.admission {
                config::Admission::Everything => disk::Admission::Everything,
                config::Admission::SecondSight => disk::Admission::SecondSight,
            })
            .write_budget_bytes_per_second(disk.write_budget.map(config::ByteSize::as_u64))
            .setting("cache.disk.path")
    }

    /// Describes a cache of memory alone, with the bounds and times of the configuration.
    pub fn memory_cache_builder<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let (cache, plan) = (&self.cache, self.cache_plan(name));
        let mut builder = cache_tiered::Cache::builder(name)
            .default_entries(plan.default_entries)
            .ttl(plan.ttl)
            .ttl_jitter(u8::try_from(cache.ttl_jitter).unwrap_or(100))
            .expiry_sweep(cache.expiry_sweep)
            .policy(policy(plan.policy))
            .engine(match cache.memory.engine {
                config::MemoryEngine::Switchable => Engine::Switchable,
                config::MemoryEngine::ClockPro => Engine::ClockPro,
            })
            .miss_ratio_curve(cache.memory.miss_ratio_curve)
            .order(cache.order.iter().map(|tier| match tier {
                config::LowerTier::Redis => Tier::Redis,
                config::LowerTier::Disk => Tier::Disk,
            }))
            .write_policy(match cache.write {
                config::WritePolicy::Through => WritePolicy::Through,
                config::WritePolicy::OnEviction => WritePolicy::OnEviction,
            });
        if let Some(entries) = plan.entries {
            builder = builder.entries(entries);
        }
        if let Some(window) = plan.stale_while_revalidate {
            builder = builder.stale_while_revalidate(window);
        }
        if let Some(window) = plan.stale_if_error {
            builder = builder.stale_if_error(window);
        }
        if plan.early_refresh > 0.0 {
            builder = builder.early_refresh(plan.early_refresh);
        }
        if plan.prefetch {
            builder = builder.prefetch(Prefetch::default());
        }
        if let Some(ttl) = plan.negative_ttl {
            builder = builder.absent_ttl(ttl);
        }
        if let Some(idle) = cache.memory.time_to_idle {
            builder = builder.time_to_idle(idle);
        }
        builder
    }
}

/// What the configuration says of one cache, the parts that can change while it is open.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CachePlan {
    policy: config::Policy,
    ttl: Duration,
    entries: Option<u64>,
    default_entries: u64,
    capacity_bytes: u64,
    /// The bound in bytes of caches that have none of their own.
    usual_capacity_bytes: u64,
    stale_while_revalidate: Option<Duration>,
    stale_if_error: Option<Duration>,
    early_refresh: f64,
    negative_ttl: Option<Duration>,
    prefetch: bool,
    changed: Changed,
}

/// What a change of the configuration says of this very cache, over the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Changed {
    policy: bool,
    ttl: bool,
    entries: bool,
    capacity: bool,
    stale_while_revalidate: bool,
    stale_if_error: bool,
    early_refresh: bool,
    negative_ttl: bool,
    prefetch: bool,
}

impl Config {
    /// What holds for the cache of this name: its own settings, or those for all.
    pub(crate) fn cache_plan(&self, name: &str) -> CachePlan {
        let (all, own) = (&self.cache, self.caches.get(name).cloned().unwrap_or_default());
        let changed = |key: &str, is_set: bool| {
            is_set
                && matches!(
                    self.origin(&format!("caches.{name}.{key}")),
                    Some(config::Origin::Change { .. })
                )
        };
        CachePlan {
            policy: own.policy.unwrap_or(all.policy),
            ttl: own.ttl.unwrap_or(all.ttl),
            entries: own.entries.or(all.memory.entries).map(|entries| entries as u64),
            default_entries: all.memory.default_entries as u64,
            capacity_bytes: own.capacity.unwrap_or(all.memory.capacity).as_u64(),
            usual_capacity_bytes: all.memory.capacity.as_u64(),
            stale_while_revalidate: own.stale_while_revalidate.or(all.stale_while_revalidate),
            stale_if_error: own.stale_if_error.or(all.stale_if_error),
            early_refresh: own.early_refresh.unwrap_or(all.early_refresh),
            negative_ttl: own.negative_ttl,
            prefetch: own.prefetch.unwrap_or(all.prefetch),
            changed: Changed {
                policy: changed("policy", own.policy.is_some()),
                ttl: changed("ttl", own.ttl.is_some()),
                entries: changed("entries", own.entries.is_some()),
                capacity: changed("capacity", own.capacity.is_some()),
                stale_while_revalidate: changed(
                    "stale_while_revalidate",
                    own.stale_while_revalidate.is_some(),
                ),
                stale_if_error: changed("stale_if_error", own.stale_if_error.is_some()),
                early_refresh: changed("early_refresh", own.early_refresh.is_some()),
                negative_ttl: changed("negative_ttl", own.negative_ttl.is_some()),
                prefetch: changed("prefetch", own.prefetch.is_some()),
            },
        }
    }
}

/// What holds of an open cache, of that which can change.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    policy: Option<Policy>,
    /// Bytes or entries, by which the cache is bounded.
    size: u64,
    ttl: Option<Duration>,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    early_refresh: f64,
    negative_ttl: Option<Duration>,
    prefetch: Option<Prefetch>,
}

impl Held {
    fn by(cache: &dyn ManagedCache) -> Self {
        let tuning = cache.tuning();
        Self {
            policy: cache.policy(),
            size: cache.capacity(),
            ttl: tuning.ttl,
            stale_while_revalidate: tuning.stale_while_revalidate,
            stale_if_error: tuning.stale_if_error,
            early_refresh: tuning.early_refresh,
            negative_ttl: tuning.negative_ttl,
            prefetch: tuning.prefetch,
        }
    }

    /// Gives a cache what is different in this one from what it was given before.
    ///
    /// What is the same in both is left alone, for the program may have changed it meanwhile.
    fn give(&self, before: &Self, cache: &dyn ManagedCache) {
        if let Some(policy) = self.policy.filter(|_| self.policy != before.policy)
            && let Err(error) = cache.set_policy(policy)
        {
            tracing::warn!(cache = cache.name(), %error, "the policy stays");
        }
        if self.size != before.size {
            cache.resize(self.size);
        }
        let mut tuning = cache.tuning();
        if self.ttl != before.ttl {
            tuning.ttl = self.ttl;
        }
        if self.stale_while_revalidate != before.stale_while_revalidate {
            tuning.stale_while_revalidate = self.stale_while_revalidate;
        }
        if self.stale_if_error != before.stale_if_error {
            tuning.stale_if_error = self.stale_if_error;
        }
        if self.early_refresh != before.early_refresh {
            tuning.early_refresh = self.early_refresh;
        }
        if self.prefetch != before.prefetch {
            tuning.prefetch = self.prefetch;
        }
        let tune = |tuning| {
            if let Err(error) = cache.tune(&tuning) {
                tracing::warn!(cache = cache.name(), %error, "its times stay");
            }
        };
        if tuning != cache.tuning() {
            tune(tuning);
        }
        // Apart: a cache that cannot tell what means that there is nothing refuses it.
        if self.negative_ttl != before.negative_ttl {
            tuning.negative_ttl = self.negative_ttl;
            tune(tuning);
        }
    }
}

/// An open cache that follows the configuration in all that the program has not set itself.
///
/// What the program set on the builder stays, whatever the level and `[cache]` come to say. A change that names
/// `caches.NAME` is about this very cache and goes before it; once it is taken back, what the cache was opened
/// with holds again. So what holds follows from the program and the configuration alone, and not from the order
/// in which caches are opened and changes are made.
pub(crate) struct Followed {
    cache: Arc<dyn ManagedCache>,
    opened: Held,
    chosen: Chosen,
    /// Whether its size is the program's.
    size_is_chosen: bool,
    /// What it was given last. The lock orders those who give it something.
    held: Mutex<Held>,
}

impl Followed {
    /// Takes a cache that was opened as the plan says, beside what the program set.
    pub(crate) fn new(cache: Arc<dyn ManagedCache>, plan: &CachePlan) -> Self {
        let (opened, chosen) = (Held::by(&*cache), cache.chosen());
        let size_is_chosen = match cache.is_bounded_by_bytes() {
            // Only the program knows a weigher: with the configuration's bound it hands that on.
            true => ![plan.usual_capacity_bytes, plan.capacity_bytes].contains(&opened.size),
            false => chosen.entries,
        };
        let mut followed = Self { cache, opened, chosen, size_is_chosen, held: Mutex::new(opened) };
        let mut held = followed.wanted(&CachePlan { changed: Changed::default(), ..plan.clone() });
        // A bound of its own in the configuration is not the one that the program handed on.
        held.size = opened.size;
        *followed.held.get_mut() = held;
        followed
    }

    pub(crate) fn cache(&self) -> &Arc<dyn ManagedCache> {
        &self.cache
    }

    /// Gives the cache what the configuration in force now says otherwise of it.
    ///
    /// `current` is read under the lock, so that of two calls at once the later one gives what is newest.
    pub(crate) fn follow(&self, current: impl FnOnce() -> Arc<Config>) {
        let mut held = self.held.lock();
        let wanted = self.wanted(&current().cache_plan(self.cache.name()));
        wanted.give(&held, &*self.cache);
        *held = wanted;
    }

    /// What should hold: the program's where it chose and no change names this cache, or else the plan's.
    fn wanted(&self, plan: &CachePlan) -> Held {
        fn either<T>(chosen: bool, changed: bool, opened: T, plan: T) -> T {
            if chosen && !changed { opened } else { plan }
        }
        let Self { opened, chosen, .. } = self;
        let changed = &plan.changed;
        let (size, size_is_changed) = match self.cache.is_bounded_by_bytes() {
            true => (plan.capacity_bytes, changed.capacity),
            false => (plan.entries.unwrap_or(plan.default_entries), changed.entries),
        };
        let prefetch = match plan.prefetch {
            true => Some(Prefetch::default()),
            // Keys that the program named as related are loaded ahead all the same.
            false if chosen.related && !changed.prefetch => {
                Some(Prefetch::default().successions(0))
            }
            false => None,
        };
        Held {
            policy: either(chosen.policy, changed.policy, opened.policy, Some(policy(plan.policy))),
            size: either(self.size_is_chosen, size_is_changed, opened.size, size),
            ttl: either(chosen.ttl, changed.ttl, opened.ttl, Some(plan.ttl)),
            stale_while_revalidate: either(
                chosen.stale_while_revalidate,
                changed.stale_while_revalidate,
                opened.stale_while_revalidate,
                plan.stale_while_revalidate.unwrap_or_default(),
            ),
            stale_if_error: either(
                chosen.stale_if_error,
                changed.stale_if_error,
                opened.stale_if_error,
                plan.stale_if_error.unwrap_or_default(),
            ),
            early_refresh: either(
                chosen.early_refresh,
                changed.early_refresh,
                opened.early_refresh,
                plan.early_refresh,
            ),
            negative_ttl: either(
                chosen.absent_ttl,
                changed.negative_ttl,
                opened.negative_ttl,
                plan.negative_ttl,
            ),
            prefetch: either(chosen.prefetch, changed.prefetch, opened.prefetch, prefetch),
        }
    }
}

fn policy(named: config::Policy) -> Policy {
    match named {
        config::Policy::Lru => Policy::Lru,
        config::Policy::Lfu => Policy::Lfu,
        config::Policy::Arc => Policy::Arc,
        config::Policy::S3Fifo => Policy::S3Fifo,
        config::Policy::Adaptive => Policy::Adaptive,
    }
}
