//! The configuration tree: where each value comes from, what it may be, and what is wrong with it.
//!
//! A [`ConfigLoader`] collects sources. Whatever their order of registration, a value from code or
//! the command line wins over the environment, that over a file, that over what the level chooses:
//!
//! ```text
//!   default  <  level  <  file (TOML)  <  environment  <  code, command line
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
mod change;
mod explain;
mod level;
mod loader;
mod machine;
mod problem;
mod quantity;
mod reference;
mod schema;
mod secret;
mod setting;
mod source;
mod tree;
mod url;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use loader::Sources;
use tree::Key;

pub use backend::{Backend, Backends};
pub use change::{Difference, Effect, FlattenError, Setting, flatten};
pub use explain::{Explained, Explanation, Note};
pub use level::levels;
pub use loader::ConfigLoader;
pub use machine::Machine;
pub use problem::{ConfigError, Problem};
pub use quantity::{ByteSize, ParseQuantityError, format_duration, parse_duration};
pub use reference::reference;
pub use schema::schema;
pub use secret::{KeySources, Secret, SigningKey};
pub use setting::{
    Admission, Balancing, BreakerMode, Coherence, CompressionMethod, DiskEngine, Fsync, LogFilter,
    LogFormat, LowerTier, MemoryEngine, OptimizationLevel, ParseLevelError, Policy, Share,
    WritePolicy,
};
pub use source::Origin;
#[cfg(all(test, any(feature = "monitor", feature = "macros")))]
pub(crate) use tree::is_cache_name;
pub use tree::{
    Advice, Balancer, Breaker, Cache, CacheSettings, Disk, Encryption, Log, Memory, Monitor,
    MonitorHistory, ProcessMemory, Redis, ResponseCache, Scheduler, SchedulerBlocking,
    SchedulerCpu, SchedulerIo, Server, Targets,
};
pub use url::{BackendUrl, ParseUrlError, RedisUrl};

/// Holds the resolved and checked configuration.
///
/// Only [`ConfigLoader::load`] and [`Config::with`] make one, so its values are within the bounds that
/// [`reference()`] names.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// What chose the defaults.
    pub level: OptimizationLevel,
    /// The proxy: addresses, time-outs and limits.
    pub server: Server,
    /// How requests are spread over the backends.
    pub balancer: Balancer,
    /// The cache of HTTP responses.
    pub response_cache: ResponseCache,
    /// The tiers that every cache of the process stands on.
    pub cache: Cache,
    /// What single caches have otherwise, by their names.
    pub caches: BTreeMap<String, CacheSettings>,
    /// The memory of the whole process.
    pub memory: ProcessMemory,
    /// How much work in the background runs and waits.
    pub scheduler: Scheduler,
    /// What is watched, remembered and warned of.
    pub monitor: Monitor,
    /// What is found to be better otherwise.
    pub advice: Advice,
    /// What is aimed at.
    pub targets: Targets,
    /// What is logged, and how.
    pub log: Log,
    #[cfg(feature = "encryption")]
    pub(crate) encryption: Option<cache_tiered::EncryptionKeys>,
    signing_key: Option<Secret>,
    origins: BTreeMap<String, Origin>,
    notes: Vec<Note>,
    /// Threads that compute were started so many.
    threads_at_start: usize,
    sources: Arc<Sources>,
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
        tree::find(path)?;
        Some(self.origins.get(path).unwrap_or(&Origin::Default))
    }

    /// Calls `row` with each key and its effective value as text, in the order of the reference.
    ///
    /// Of the keys of single caches these are those that a source names.
    fn show(&self, row: &mut dyn FnMut(String, &'static Key, String)) {
        let mut once = |key: &'static Key, value| row(key.path.to_owned(), key, value);
        once(tree::LEVEL, self.level.to_string());
        self.server.show(&mut once);
        self.balancer.show(&mut once);
        self.response_cache.show(&mut once);
        self.cache.show(&mut once);
        for (name, cache) in &self.caches {
            cache.show(&mut |key, value| {
                let path = key.path_in(name);
                if self.origins.contains_key(&path) {
                    row(path, key, value);
                }
            });
        }
        let mut once = |key: &'static Key, value| row(key.path.to_owned(), key, value);
        self.memory.show(&mut once);
        self.scheduler.show(&mut once);
        self.monitor.show(&mut once);
        self.advice.show(&mut once);
        self.targets.show(&mut once);
        self.log.show(&mut once);
    }

    /// Calls `row` with each key that `other` has differently and its two values, in the same order.
    fn compare(&self, other: &Self, row: &mut dyn FnMut(String, &'static Key, [String; 2])) {
        let mut once = |key: &'static Key, values| row(key.path.to_owned(), key, values);
        if self.level != other.level {
            once(tree::LEVEL, [self.level, other.level].map(|level| level.to_string()));
        }
        self.server.compare(&other.server, &mut once);
        self.balancer.compare(&other.balancer, &mut once);
        self.response_cache.compare(&other.response_cache, &mut once);
        self.cache.compare(&other.cache, &mut once);
        let nothing = CacheSettings::default();
        let names: BTreeSet<_> = self.caches.keys().chain(other.caches.keys()).collect();
        for name in names {
            let [before, after] =
                [self, other].map(|config| config.caches.get(name).unwrap_or(&nothing));
            before.compare(after, &mut |key, values| row(key.path_in(name), key, values));
        }
        let mut once = |key: &'static Key, values| row(key.path.to_owned(), key, values);
        self.memory.compare(&other.memory, &mut once);
        self.scheduler.compare(&other.scheduler, &mut once);
        self.monitor.compare(&other.monitor, &mut once);
        self.advice.compare(&other.advice, &mut once);
        self.targets.compare(&other.targets, &mut once);
        self.log.compare(&other.log, &mut once);
    }

    /// Returns what is worth knowing although it is no problem, such as a value that was lowered.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

#[cfg(test)]
mod tests;
