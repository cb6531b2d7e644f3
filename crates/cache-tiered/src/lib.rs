//! A tiered cache: memory, Redis and disk behind one handle.
//!
//! A [`Cache`] keeps values in this process's memory, bounded by entries or by bytes. It can be given
//! a disk tier, which survives restarts, and a Redis tier, which other machines share. Look-ups go
//! down until a tier has the value, and bring it up; concurrent loads of one key run one loader.
//! Nothing below memory can make a call fail: a tier that is full, broken or away is a counted miss.
//!
#![cfg_attr(feature = "disk", doc = "```")]
#![cfg_attr(not(feature = "disk"), doc = "```ignore")]
//! use std::time::Duration;
//! use cache_tiered::{Cache, disk::DiskConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let users = Cache::<u64, String>::builder("users")
//!     .entries(10_000)
//!     .ttl(Duration::from_secs(600))
//!     .disk(DiskConfig::new(directory.path()).capacity_bytes(64 << 20))
//!     .open()
//!     .await?;
//! users.insert(7, "Ada".to_owned());
//! assert_eq!(users.get(&7).await.as_deref(), Some("Ada"));
//! users.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `disk` (default): the disk tier with its segment log; `sled` adds sled as an engine.
//! - `redis`: the Redis tier.
//! - `encryption`: encrypts what the tiers below memory keep.
//! - `lz4`: LZ4 as another compression; `wincode` and `messagepack`: other codecs.
//! - `metrics`: publishes the statistics through the `metrics` facade.
//! - `simulate`: tells from a record of requests what other sizes and policies would have answered.
#![deny(unsafe_code)]

mod builder;
mod cache;
mod clock;
#[cfg(feature = "__lower")]
mod codec;
#[cfg(feature = "__lower")]
mod compression;
#[cfg(feature = "__lower")]
mod dictionary;
#[cfg(feature = "disk")]
pub mod disk;
#[cfg(all(feature = "encryption", feature = "__lower"))]
mod encryption;
#[cfg(feature = "__lower")]
mod envelope;
mod error;
mod fates;
#[cfg(feature = "__lower")]
mod files;
mod flights;
mod freshness;
mod hasher;
mod invalidation;
mod latency;
mod loading;
mod lower;
mod manage;
mod memory;
#[cfg(feature = "__redis")]
mod offload;
mod policy;
mod prefetch;
#[cfg(feature = "metrics")]
mod publish;
mod reclaim;
#[cfg(feature = "__redis")]
pub mod redis;
mod similarity;
#[cfg(feature = "simulate")]
pub mod simulate;
#[cfg(feature = "__lower")]
mod snapshot;
mod stats;
mod sweeper;
mod sync;
mod tags;
mod tuning;
#[cfg(feature = "disk")]
mod warm_up;
#[cfg(feature = "__lower")]
mod write_behind;

pub use builder::CacheBuilder;
pub use cache::{Cache, Hit, InsertOptions, Loaded, Reservation, WritePolicy};
pub use clock::Clock;
#[cfg(all(feature = "messagepack", feature = "__lower"))]
pub use codec::MessagePack;
#[cfg(all(feature = "wincode", feature = "__lower"))]
pub use codec::Wincode;
#[cfg(feature = "__lower")]
pub use codec::{Bincode, Codec, CodecError};
#[cfg(feature = "__lower")]
pub use compression::Compression;
#[cfg(all(feature = "encryption", feature = "__lower"))]
pub use encryption::EncryptionKeys;
#[cfg(feature = "__lower")]
pub use envelope::MAX_VALUE_BYTES;
pub use error::{BuildError, LoadError, NotKept, Problem};
pub use fates::AdviceStats;
pub use hasher::DefaultHashBuilder;
pub use invalidation::Namespace;
pub use latency::ReadLatency;
pub use loading::LoadingCache;
pub use lower::Tier;
pub use manage::{Chosen, ManagedCache};
pub use memory::{Engine, EvictionCause, UnsupportedByEngine};
#[cfg(feature = "__redis")]
pub use offload::OffloadedWork;
pub use policy::Policy;
pub use policy::curve::{CurvePoint, Estimate, MissRatioCurve};
pub use policy::election::{CandidateReport, PolicyReport, PolicySwitch};
pub use prefetch::Prefetch;
#[cfg(feature = "metrics")]
pub use publish::Publisher;
pub use quick_cache::Equivalent;
pub use similarity::{
    EmbeddingError, Match, SimilarityBuildError, SimilarityCache, SimilarityCacheBuilder,
    SimilarityStats,
};
#[cfg(feature = "__lower")]
pub use snapshot::{SnapshotError, SnapshotProgress};
pub use stats::{
    CacheStats, CoherenceStats, CompressionStats, Evictions, PrefetchStats, ThreadLookups,
    TierStats, thread_lookups,
};
pub use tags::Tag;
pub use tuning::{TuneError, Tuning};
#[cfg(feature = "disk")]
pub use warm_up::WarmProgress;

#[cfg(all(doctest, feature = "disk"))]
#[doc = include_str!("../README.md")]
struct Readme;
