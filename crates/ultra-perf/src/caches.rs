//! The caches of a handle: each connects itself when it is opened, follows changes, and is closed with the rest.

use std::collections::BTreeMap;
#[cfg(feature = "monitor")]
use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
#[cfg(feature = "monitor")]
use std::sync::{
    Weak,
    atomic::{AtomicU64, Ordering},
};

#[cfg(any(feature = "disk", feature = "redis"))]
use cache_tiered::Codec;
use cache_tiered::{CacheBuilder, ManagedCache};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::UltraPerf;
use crate::caching::Followed;
use crate::config::Config;
use crate::live::Live;

/// The caches that were opened, by name.
#[derive(Default)]
pub(crate) struct Caches {
    open: Mutex<BTreeMap<String, Opened>>,
    /// Names of those whose requests somebody else counts.
    #[cfg(feature = "monitor")]
    counted_elsewhere: Mutex<BTreeSet<String>>,
}

struct Opened {
    followed: Arc<Followed>,
    #[cfg(feature = "memory")]
    _reclaimed: Option<memory::Registration>,
    #[cfg(feature = "monitor")]
    published: Option<monitor::Watch>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.open.lock().keys()).finish()
    }
}

impl Caches {
    /// Takes all caches out, to be closed.
    pub(crate) fn take(&self) -> Vec<Arc<dyn ManagedCache>> {
        let taken = std::mem::take(&mut *self.open.lock());
        taken.into_values().map(|opened| Arc::clone(opened.followed.cache())).collect()
    }

    fn list(&self) -> Vec<Arc<Followed>> {
        self.open.lock().values().map(|opened| Arc::clone(&opened.followed)).collect()
    }

    /// Lets the open caches follow a change, each as far as the configuration now says something else of it.
    pub(crate) fn follow(&self, live: &Live) {
        // Without the lock: making a cache smaller may take milliseconds.
        self.list().iter().for_each(|followed| followed.follow(|| live.config()));
    }
}

impl UltraPerf {
    /// Describes a cache with the tiers, bounds and times of the configuration, `[caches.NAME]` included.
    ///
    /// Its memory tier is bounded by the number of its entries, because only the program knows what a value
    /// weighs; [`CacheBuilder::bytes`] bounds it by bytes. When it is opened, the cache connects itself: its
    /// figures are watched, it gives way under memory pressure, it follows changes of the configuration, and the
    /// shutdown closes it. The handle keeps it until then; another cache of the same name takes its place.
    ///
    /// What the program sets on the builder wins, and stays when the level or a key for all caches changes. Only
    /// a change that names `caches.NAME` itself goes before it; taken back, it leaves what the program set. A
    /// bound in bytes that is the configuration's own (`config().cache.memory.capacity`) follows that.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(perf: ultra_perf::UltraPerf) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let users = perf.cache::<u64, String>("users").ttl(Duration::from_secs(600)).open().await?;
    /// let name = users.get_or_load(&7, || async { Ok::<_, std::io::Error>("Ada".to_owned()) }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cache<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
        V: Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
    {
        let config = self.config();
        self.connected(&config, config.cache_builder(name))
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
        let config = self.config();
        self.connected(&config, config.cache_builder_with_codec(name, codec))
    }

    /// Describes a cache as [`cache`](Self::cache) does, of memory alone and of types that need no codec.
    pub fn memory_cache<K, V>(&self, name: &str) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let config = self.config();
        self.connected(&config, config.memory_cache_builder(name))
    }

    /// Describes a cache as [`cache`](Self::cache) does, with only these of the tiers below memory.
    #[cfg(feature = "macros")]
    pub(crate) fn cache_in<K, V>(&self, name: &str, disk: bool, redis: bool) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
        V: Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
    {
        let mut config = Config::clone(&self.config());
        config.cache.disk.enabled &= disk;
        if !redis {
            config.cache.redis.url = None;
        }
        let config = Arc::new(config);
        self.connected(&config, config.cache_builder(name))
    }

    /// Says that a cache of this name, opened from now on, is asked for something of which the caller counts
    /// the requests; for the crates of this project.
    #[doc(hidden)]
    #[cfg(feature = "monitor")]
    pub fn counts_requests_of(&self, name: &str) {
        self.0.caches.counted_elsewhere.lock().insert(name.to_owned());
    }

    /// Returns the caches that are open.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<dyn ManagedCache>> {
        self.0.caches.list().iter().map(|followed| Arc::clone(followed.cache())).collect()
    }

    fn connected<K, V>(
        &self,
        config: &Arc<Config>,
        builder: CacheBuilder<K, V>,
    ) -> CacheBuilder<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        #[cfg(all(feature = "scheduler", feature = "redis"))]
        let builder = builder.executor(crate::offload_to(self.scheduler()));
        let (weak, config) = (self.downgrade(), Arc::clone(config));
        builder.described().on_open(move |cache| {
            // Without the handle there is nothing to connect to.
            if let Some(perf) = weak.upgrade() {
                perf.connect(cache, &config);
            }
        })
    }

    /// Connects a cache that was described by a configuration, which may not be the newest any more.
    fn connect(&self, cache: Arc<dyn ManagedCache>, described: &Config) {
        let name = cache.name().to_owned();
        #[cfg(feature = "memory")]
        let reclaimed = self.memory().and_then(|guard| {
            let registered = guard.register(crate::reclaim::Managed::new(Arc::clone(&cache)));
            registered
                .inspect_err(|error| tracing::warn!(cache = name, %error, "not reclaimed"))
                .ok()
        });
        #[cfg(feature = "monitor")]
        let published = {
            let recorder = monitor::Recorder::new(self.registry());
            let publisher = metrics::with_local_recorder(&recorder, || cache.publisher());
            let counted_here = !self.0.caches.counted_elsewhere.lock().contains(&name);
            let requests = counted_here.then(|| Requests::new(&cache));
            Some(self.registry().collect(move |out| {
                publisher();
                if let Some(requests) = &requests {
                    requests.report(out);
                }
            }))
        };
        let followed = Arc::new(Followed::new(cache, &described.cache_plan(&name)));
        let opened = Opened {
            followed: Arc::clone(&followed),
            #[cfg(feature = "memory")]
            _reclaimed: reclaimed,
            #[cfg(feature = "monitor")]
            published,
        };
        let replaced = self.0.caches.open.lock().insert(name.clone(), opened);
        if let Some(_replaced) = replaced {
            tracing::warn!(cache = name, "another cache of this name takes the place of the first");
            #[cfg(feature = "monitor")]
            if let Some(published) = _replaced.published {
                published.remove();
            }
        }
        // Now that changes reach it: one may have been made since it was described.
        followed.follow(|| self.config());
    }
}

/// Tells how many requests a cache has answered, which the score and the default rules read.
#[cfg(feature = "monitor")]
struct Requests {
    cache: Weak<dyn ManagedCache>,
    name: String,
    /// What is on its way to a lower tier is a miss of memory already and may become a hit: what was told
    /// does not fall.
    misses: AtomicU64,
}

#[cfg(feature = "monitor")]
impl Requests {
    fn new(cache: &Arc<dyn ManagedCache>) -> Self {
        let (name, misses) = (cache.name().to_owned(), AtomicU64::new(0));
        Self { cache: Arc::downgrade(cache), name, misses }
    }

    fn report(&self, out: &mut monitor::Readings) {
        let Some(cache) = self.cache.upgrade() else { return };
        let stats = cache.stats();
        let below = stats.redis.iter().chain(&stats.disk).map(|tier| tier.hits).sum::<u64>();
        let missed = stats.memory.misses.saturating_sub(below);
        let missed = self.misses.fetch_max(missed, Ordering::Relaxed).max(missed);
        for (result, count) in [("hit", stats.memory.hits + below), ("miss", missed)] {
            let labels = [("cache", &*self.name), ("result", result)];
            out.counter("cache_requests_total", &labels, count as f64);
        }
    }
}
