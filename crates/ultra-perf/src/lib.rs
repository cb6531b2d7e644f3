//! One configuration and one handle over the crates of ultra-perf.
//!
//! [`Config`](config::Config) is read from a file, the environment and the command line, checked
//! once, and explains itself. [`UltraPerf`] makes the parts from it, wired as configured: a cache
//! that it builds has the tiers, bounds and times of the configuration, and the program adds only
//! what is its own.
//!
#![cfg_attr(feature = "disk", doc = "```")]
#![cfg_attr(not(feature = "disk"), doc = "```ignore")]
//! use std::time::Duration;
//! use ultra_perf::{UltraPerf, config::ConfigLoader};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().to_str().expect("temporary directories have plain names");
//! let config = ConfigLoader::new()
//!     .process_env()
//!     .set("cache.ttl", "10m", "the program")
//! #   .set("cache.disk.path", path, "the example")
//!     .load()?;
//! let perf = UltraPerf::new(config);
//! let users = perf.cache::<u64, String>("users").open().await?;
//! users.insert(7, "Ada".to_owned());
//! # users.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `disk` (default), `sled`, `redis`: the tiers of `cache-tiered`.
//! - `lz4`, `encryption`: LZ4 as another compression, and encryption of what lower tiers keep.
//! - `metrics`: its statistics through the `metrics` facade.
//! - `simulate`: its simulations of other sizes and policies.
//! - `memory`: the guard over the process's memory, and caches that give way to it; `glibc`, `jemalloc`
//!   and `mimalloc`: what gives idle memory back, for programs with that allocator.
//! - `loadbalancer`: the balancer over the configured backends, with their circuit breakers.
//! - `monitor`: metrics, their history, alert rules and advice.
//! - `scheduler`: priorities for futures, closures that compute and closures that wait.
#![forbid(unsafe_code)]

#[cfg(feature = "loadbalancer")]
mod balance;
pub mod config;
#[cfg(feature = "monitor")]
mod observe;
#[cfg(feature = "memory")]
mod reclaim;
#[cfg(feature = "scheduler")]
mod schedule;

use std::hash::Hash;
use std::sync::Arc;

pub use cache_tiered;
#[cfg(any(feature = "disk", feature = "redis"))]
use cache_tiered::{Bincode, Codec};
use cache_tiered::{CacheBuilder, Engine, Policy, Tier, WritePolicy};
#[cfg(feature = "loadbalancer")]
pub use loadbalancer;
#[cfg(feature = "memory")]
pub use memory;
#[cfg(feature = "monitor")]
pub use monitor;
#[cfg(feature = "monitor")]
pub use observe::MonitorError;
#[cfg(feature = "memory")]
pub use reclaim::CacheReclaimer;
#[cfg(feature = "loadbalancer")]
pub use resilience;
#[cfg(all(feature = "scheduler", feature = "redis"))]
pub use schedule::offload_to;
#[cfg(feature = "scheduler")]
pub use scheduler;
#[cfg(any(feature = "disk", feature = "redis"))]
use serde::{Serialize, de::DeserializeOwned};

use crate::config::Config;

/// The parts of ultra-perf, made as one configuration says; clones share it.
#[derive(Debug, Clone)]
pub struct UltraPerf {
    config: Arc<Config>,
}

impl UltraPerf {
    /// Makes a handle over a configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config: Arc::new(config) }
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Describes a cache with the tiers, bounds and times of the configuration.
    ///
    /// Its memory tier is bounded by `cache.memory.entries`, or by 10,000 entries, because only the
    /// program knows what a value weighs; [`CacheBuilder::bytes`] with `cache.memory.capacity` bounds
    /// it by bytes. The name is that of the cache's directory and of its keys in Redis.
    #[cfg(any(feature = "disk", feature = "redis"))]
    pub fn cache<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
        V: Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
    {
        self.cache_with_codec(name, Bincode)
    }

    /// Describes a cache as [`cache`](Self::cache) does, with a codec of the program's own.
    #[cfg(any(feature = "disk", feature = "redis"))]
    pub fn cache_with_codec<K, V>(
        &self,
        name: &str,
        codec: impl Codec<K, V> + Clone,
    ) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let cache = &self.config.cache;
        let mut builder = self.memory_cache(name);
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
        if let Some(keys) = &self.config.encryption {
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
        let disk = &self.config.cache.disk;
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
    }

    /// Describes a cache of memory alone, with the bounds and times of the configuration.
    pub fn memory_cache<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let cache = &self.config.cache;
        let mut builder = cache_tiered::Cache::builder(name)
            .ttl(cache.ttl)
            .ttl_jitter(u8::try_from(cache.ttl_jitter).unwrap_or(100))
            .expiry_sweep(cache.expiry_sweep)
            .policy(match cache.policy {
                config::Policy::Lru => Policy::Lru,
                config::Policy::Lfu => Policy::Lfu,
                config::Policy::Arc => Policy::Arc,
                config::Policy::S3Fifo => Policy::S3Fifo,
                config::Policy::Adaptive => Policy::Adaptive,
            })
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
        if let Some(entries) = cache.memory.entries {
            builder = builder.entries(entries as u64);
        }
        if let Some(idle) = cache.memory.time_to_idle {
            builder = builder.time_to_idle(idle);
        }
        builder
    }
}

#[cfg(all(doctest, feature = "disk"))]
#[doc = include_str!("../README.md")]
struct Readme;
