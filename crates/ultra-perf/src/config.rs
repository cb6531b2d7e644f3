//! The configuration tree: where each value comes from, what it may be, and what is wrong with it.
//!
//! A [`ConfigLoader`] collects sources. Whatever their order of registration, a value from code or
//! the command line wins over the environment, that over a file, that over the default:
//!
//! ```text
//!   default  <  file (TOML)  <  environment  <  code, command line
//! ```
//!
//! The keys are data, written once in `tree.rs`: a field there is the struct's field, its parser,
//! its default, its bounds, its aliases and its line in [`reference()`]. A source is flattened to
//! `path -> value`, so a mistyped key, a wrong type and a bound that does not hold are all found in
//! one pass; deriving the file's shape instead would stop at the first of them. What comes out is a
//! [`Config`] of plain fields that hold by construction, or a [`ConfigError`] with every problem.
//!
//! ```
//! use ultra_perf::config::ConfigLoader;
//!
//! let config = ConfigLoader::new()
//!     .toml("ultra-perf.toml", "[cache]\nttl = '10m'\n")
//!     .env([("ULTRA_PERF__CACHE__TTL".to_owned(), "30m".to_owned())])
//!     .set("server.to", "http://127.0.0.1:8000", "--to")
//!     .load()?;
//! assert_eq!(config.cache.ttl.as_secs(), 30 * 60);
//! assert_eq!(config.origin("cache.ttl").unwrap().to_string(), "ULTRA_PERF__CACHE__TTL");
//! # Ok::<_, ultra_perf::config::ConfigError>(())
//! ```

mod backend;
mod explain;
mod loader;
mod machine;
mod problem;
mod quantity;
mod reference;
mod secret;
mod setting;
mod source;
mod tree;
mod url;

use std::collections::BTreeMap;

pub use backend::{Backend, Backends};
pub use explain::{Explained, Explanation, Note};
pub use loader::ConfigLoader;
pub use machine::Machine;
pub use problem::{ConfigError, Problem};
pub use quantity::{ByteSize, ParseQuantityError, format_duration, parse_duration};
pub use reference::reference;
pub use secret::{KeySources, Secret, SigningKey};
pub use setting::{
    Admission, Balancing, BreakerMode, Coherence, CompressionMethod, DiskEngine, Fsync, LogFilter,
    LogFormat, LowerTier, MemoryEngine, Policy, Share, WritePolicy,
};
pub use source::Origin;
pub use tree::{
    Balancer, Breaker, Cache, Disk, Encryption, Log, Memory, Monitor, MonitorHistory,
    ProcessMemory, Redis, ResponseCache, Scheduler, SchedulerBlocking, SchedulerCpu, SchedulerIo,
    Server, Targets,
};
pub use url::{BackendUrl, ParseUrlError, RedisUrl};

/// Holds the resolved and checked configuration.
///
/// Only [`ConfigLoader::load`] makes one, so its values are within the bounds that
/// [`reference()`] names.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The proxy: addresses, time-outs and limits.
    pub server: Server,
    /// How requests are spread over the backends.
    pub balancer: Balancer,
    /// The cache of HTTP responses.
    pub response_cache: ResponseCache,
    /// The tiers that every cache of the process stands on.
    pub cache: Cache,
    /// The memory of the whole process.
    pub memory: ProcessMemory,
    /// How much work in the background runs and waits.
    pub scheduler: Scheduler,
    /// What is watched, remembered and warned of.
    pub monitor: Monitor,
    /// What is aimed at.
    pub targets: Targets,
    /// What is logged, and how.
    pub log: Log,
    #[cfg(feature = "encryption")]
    pub(crate) encryption: Option<cache_tiered::EncryptionKeys>,
    signing_key: Option<Secret>,
    origins: BTreeMap<&'static str, Origin>,
    notes: Vec<Note>,
}

impl Config {
    /// Lists every key with its effective value and where that came from.
    ///
    /// Passwords and keys are not shown.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        Explanation::of(self, &BTreeMap::new())
    }

    /// Returns the key of `balancer.sticky_key`, if there is one.
    #[must_use]
    pub fn signing_key(&self) -> Option<&Secret> {
        self.signing_key.as_ref()
    }

    /// Tells where the value of the key `path` came from, if there is such a key.
    #[must_use]
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        let key = tree::find(path)?;
        Some(self.origins.get(key.path).unwrap_or(&Origin::Default))
    }

    /// Returns what is worth knowing although it is no problem, such as a value that was lowered.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

#[cfg(test)]
mod tests;
