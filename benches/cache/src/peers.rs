//! Other people's caches, each as it comes.
//!
//! The default configuration of each crate, its default hasher included; only foyer has to be told a
//! policy, because it offers several. Caches whose work is done by a queue ([`Store::settle`]) are
//! waited for before a measurement reads them, never inside of it, except that the CPU time of their
//! own threads counts.

use crate::Store;

/// A cache that can be made with a capacity.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What it is called in tables.
    pub name: &'static str,
    /// The package it comes in.
    pub package: &'static str,
    /// Whether it evicts; the maps that do not are floors to compare with.
    pub evicts: bool,
    /// Whether threads of its own do the inserts, in a time that grows with the size of the cache. Left
    /// to itself such a cache holds far more than its capacity whenever it is written quickly.
    pub queues: bool,
    /// Makes one for so many entries.
    pub make: fn(usize, Split) -> Box<dyn Store>,
}

/// Whether a cache may split its capacity among shards.
///
/// Shards serve threads. A comparison of policies at small sizes asks for one, where that can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// As the crate would by itself.
    Default,
    /// Not, if it can be told so.
    Never,
}

/// The peer of every comparison: fast, and an engine of our own memory tier.
pub const QUICK_CACHE: Peer = Peer {
    name: "quick_cache",
    package: "quick_cache",
    evicts: true,
    queues: false,
    make: |capacity, _| Box::new(quick_cache::sync::Cache::<u64, u64>::new(capacity)),
};

impl Store for quick_cache::sync::Cache<u64, u64> {
    fn get(&self, key: u64) -> Option<u64> {
        self.get(&key)
    }

    fn insert(&self, key: u64, value: u64) {
        self.insert(key, value);
    }
}

/// The peers behind the feature `peers`; none without it.
#[cfg(not(feature = "peers"))]
pub const OTHERS: &[Peer] = &[];

#[cfg(feature = "peers")]
pub use others::OTHERS;

#[cfg(feature = "peers")]
mod others {
    use cachet::{CacheEntry, InMemoryCache};
    use foyer_memory::{CacheBuilder, EvictionConfig};

    use super::{Peer, Split};
    use crate::{Store, ready};

    /// The peers behind the feature `peers`; none without it.
    pub const OTHERS: &[Peer] = &[
        peer("moka", "moka", |capacity, _| {
            Box::new(moka::sync::Cache::<u64, u64>::new(capacity as u64))
        }),
        peer("mini-moka", "mini-moka", |capacity, _| {
            Box::new(mini_moka::sync::Cache::<u64, u64>::new(capacity as u64))
        }),
        peer("cachet", "cachet", |capacity, _| {
            Box::new(InMemoryCache::<u64, u64>::with_max_capacity(capacity as u64))
        }),
        peer("foyer LRU", "foyer-memory", |capacity, split| {
            foyer(capacity, split, foyer_memory::LruConfig::default().into())
        }),
        peer("foyer LFU", "foyer-memory", |capacity, split| {
            foyer(capacity, split, foyer_memory::LfuConfig::default().into())
        }),
        peer("foyer S3-FIFO", "foyer-memory", |capacity, split| {
            foyer(capacity, split, foyer_memory::S3FifoConfig::default().into())
        }),
        peer("foyer SIEVE", "foyer-memory", |capacity, split| {
            foyer(capacity, split, foyer_memory::SieveConfig {}.into())
        }),
        Peer {
            queues: true,
            ..peer("stretto", "stretto", |capacity, _| Box::new(stretto(capacity)))
        },
        Peer {
            evicts: false,
            ..peer("dashmap", "dashmap", |capacity, _| {
                Box::new(dashmap::DashMap::<u64, u64>::with_capacity(capacity))
            })
        },
        Peer {
            evicts: false,
            ..peer("papaya", "papaya", |capacity, _| {
                Box::new(papaya::HashMap::<u64, u64>::with_capacity(capacity))
            })
        },
    ];

    const fn peer(
        name: &'static str,
        package: &'static str,
        make: fn(usize, Split) -> Box<dyn Store>,
    ) -> Peer {
        Peer { name, package, evicts: true, queues: false, make }
    }

    impl Store for moka::sync::Cache<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            self.get(&key)
        }

        fn insert(&self, key: u64, value: u64) {
            self.insert(key, value);
        }

        fn settle(&self) {
            self.run_pending_tasks();
        }
    }

    impl Store for mini_moka::sync::Cache<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            self.get(&key)
        }

        fn insert(&self, key: u64, value: u64) {
            self.insert(key, value);
        }

        fn settle(&self) {
            use mini_moka::sync::ConcurrentCacheExt as _;
            self.sync();
        }
    }

    /// The memory tier of cachet without the layers above it, polled in place.
    impl Store for InMemoryCache<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            let entry = ready(cachet::CacheTier::get(self, &key)).expect("memory does not fail");
            entry.map(|entry| *entry.value())
        }

        fn insert(&self, key: u64, value: u64) {
            let done = ready(cachet::CacheTier::insert(self, key, CacheEntry::new(value)));
            done.expect("memory does not fail");
        }
    }

    type Foyer = foyer_memory::Cache<u64, u64>;

    fn foyer(capacity: usize, split: Split, eviction: EvictionConfig) -> Box<dyn Store> {
        let builder = CacheBuilder::new(capacity).with_eviction_config(eviction);
        let cache: Foyer = match split {
            Split::Default => builder.build(),
            Split::Never => builder.with_shards(1).build(),
        };
        Box::new(cache)
    }

    impl Store for Foyer {
        fn get(&self, key: u64) -> Option<u64> {
            self.get(&key).map(|entry| *entry.value())
        }

        fn insert(&self, key: u64, value: u64) {
            self.insert(key, value);
        }
    }

    /// One unit of cost per entry, and ten counters per entry as its manual says.
    fn stretto(capacity: usize) -> stretto::Cache<u64, u64> {
        let builder = stretto::Cache::builder(10 * capacity, capacity as i64);
        builder.set_ignore_internal_cost(true).finalize().expect("a valid configuration")
    }

    impl Store for stretto::Cache<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            self.get(&key).map(|value| *value.value())
        }

        fn insert(&self, key: u64, value: u64) {
            self.insert(key, value, 1);
        }

        fn settle(&self) {
            self.wait().expect("its thread runs");
        }
    }

    impl Store for dashmap::DashMap<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            self.get(&key).map(|value| *value)
        }

        fn insert(&self, key: u64, value: u64) {
            self.insert(key, value);
        }
    }

    impl Store for papaya::HashMap<u64, u64> {
        fn get(&self, key: u64) -> Option<u64> {
            self.pin().get(&key).copied()
        }

        fn insert(&self, key: u64, value: u64) {
            self.pin().insert(key, value);
        }
    }
}
