//! Caches with the tiers, bounds and times of the configuration.

use std::hash::Hash;
use std::time::Duration;

#[cfg(any(feature = "disk", feature = "redis"))]
use cache_tiered::{Bincode, Codec};
use cache_tiered::{CacheBuilder, Engine, ManagedCache, Policy, Prefetch, Tier, WritePolicy};
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
    stale_while_revalidate: Option<Duration>,
    stale_if_error: Option<Duration>,
    early_refresh: f64,
    negative_ttl: Option<Duration>,
    prefetch: bool,
}

impl Config {
    /// What holds for the cache of this name: its own settings, or those for all.
    pub(crate) fn cache_plan(&self, name: &str) -> CachePlan {
        let (all, own) = (&self.cache, self.caches.get(name).cloned().unwrap_or_default());
        CachePlan {
            policy: own.policy.unwrap_or(all.policy),
            ttl: own.ttl.unwrap_or(all.ttl),
            entries: own.entries.or(all.memory.entries).map(|entries| entries as u64),
            default_entries: all.memory.default_entries as u64,
            capacity_bytes: own.capacity.unwrap_or(all.memory.capacity).as_u64(),
            stale_while_revalidate: own.stale_while_revalidate.or(all.stale_while_revalidate),
            stale_if_error: own.stale_if_error.or(all.stale_if_error),
            early_refresh: own.early_refresh.unwrap_or(all.early_refresh),
            negative_ttl: own.negative_ttl,
            prefetch: own.prefetch.unwrap_or(all.prefetch),
        }
    }
}

impl CachePlan {
    /// Gives a cache that was opened under another plan what is different in this one.
    ///
    /// What is the same in both is left alone, for the program may have set something else.
    pub(crate) fn give(&self, before: &Self, cache: &dyn ManagedCache) {
        if self.policy != before.policy
            && let Err(error) = cache.set_policy(policy(self.policy))
        {
            tracing::warn!(cache = cache.name(), %error, "the policy stays");
        }
        let size = |plan: &Self| match cache.is_bounded_by_bytes() {
            true => plan.capacity_bytes,
            false => plan.entries.unwrap_or(plan.default_entries),
        };
        if size(self) != size(before) {
            cache.resize(size(self));
        }
        let mut tuning = cache.tuning();
        if self.ttl != before.ttl {
            tuning.ttl = Some(self.ttl);
        }
        if self.stale_while_revalidate != before.stale_while_revalidate {
            tuning.stale_while_revalidate = self.stale_while_revalidate.unwrap_or_default();
        }
        if self.stale_if_error != before.stale_if_error {
            tuning.stale_if_error = self.stale_if_error.unwrap_or_default();
        }
        if self.early_refresh != before.early_refresh {
            tuning.early_refresh = self.early_refresh;
        }
        if self.prefetch != before.prefetch {
            tuning.prefetch = self.prefetch.then(Prefetch::default);
        }
        let tune = |tuning| {
            if let Err(error) = cache.tune(&tuning) {
                tracing::warn!(cache = cache.name(), %error, "its times stay");
            }
        };
        tune(tuning);
        // Apart: a cache that cannot tell what means that there is nothing refuses it.
        if self.negative_ttl != before.negative_ttl {
            tuning.negative_ttl = self.negative_ttl;
            tune(tuning);
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
