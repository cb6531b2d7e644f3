//! The memory tier: `quick_cache` (CLOCK-PRO with ghosts) bounded by entries or by weight, with the
//! expiry and the idle time that it has none of.
//!
//! An entry carries its deadline and its weight; the weight is computed once, when the entry comes
//! in. An entry past its deadline is a miss and leaves on the look-up that finds it; the sweeper takes
//! those that nobody looks up. Victims are handed back to the caller, who drops them (and tells the
//! lower tiers about them) after the shard's lock is gone.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter, sync};

use crate::clock::{Clock, Millis, NEVER};
use crate::stats::{Counter, Evictions, TierStats};

/// A value in memory with what decides about its life.
#[derive(Debug, Clone)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) expires_at: Millis,
    pub(crate) weight: u64,
    /// Whether a lower tier already holds this very value.
    pub(crate) stored_below: bool,
    /// When the entry was last read; present only where a time-to-idle is set.
    touched: Option<Arc<AtomicU64>>,
}

/// Entries that an operation replaced or pushed out, to be dropped once no lock is held.
#[derive(Debug)]
pub(crate) struct Victims<K, V> {
    first: Option<(K, Entry<V>)>,
    rest: Vec<(K, Entry<V>)>,
    /// Hash of the key that is being inserted: quick_cache reports a replaced entry as evicted.
    inserting: Option<u64>,
}

impl<K, V> Default for Victims<K, V> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new(), inserting: None }
    }
}

impl<K, V> Victims<K, V> {
    fn push(&mut self, key: K, entry: Entry<V>) {
        if self.first.is_none() {
            self.first = Some((key, entry));
        } else {
            self.rest.push((key, entry));
        }
    }
}

/// Receives each entry that capacity pushes out, under the lock of its shard.
///
/// Under the lock, because only there is the order against a later `remove` of the same key certain.
/// It must be quick and must not call the cache.
pub(crate) type Demote<K, V> = Arc<dyn Fn(&K, &Entry<V>) + Send + Sync>;

struct OnEvict<K, V> {
    demote: Option<Demote<K, V>>,
    evicted: Arc<Counter>,
    hasher: DefaultHashBuilder,
}

impl<K, V> Clone for OnEvict<K, V> {
    fn clone(&self) -> Self {
        Self {
            demote: self.demote.clone(),
            evicted: Arc::clone(&self.evicted),
            hasher: self.hasher.clone(),
        }
    }
}

impl<K: Hash, V> Lifecycle<K, Entry<V>> for OnEvict<K, V> {
    type RequestState = Victims<K, V>;

    fn on_evict(&self, victims: &mut Victims<K, V>, key: K, entry: Entry<V>) {
        // What has another hash is another key. Two keys of one hash would cost an entry its way
        // down, once in 2^64 evictions.
        if victims.inserting != Some(self.hasher.hash_one(&key)) {
            self.evicted.increment();
            if let Some(demote) = &self.demote {
                demote(&key, &entry);
            }
        }
        victims.push(key, entry);
    }
}

/// The share of a shard that its hot entries may take: quick_cache's own default.
const HOT_SHARE: f64 = 0.97;

#[derive(Clone)]
struct ByStoredWeight;

impl<K, V> Weighter<K, Entry<V>> for ByStoredWeight {
    fn weight(&self, _: &K, entry: &Entry<V>) -> u64 {
        entry.weight
    }
}

/// Computes the weight of an entry, in the unit of the memory tier's capacity.
pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

pub(crate) struct MemoryTier<K, V> {
    cache: sync::Cache<K, Entry<V>, ByStoredWeight, DefaultHashBuilder, OnEvict<K, V>>,
    hasher: DefaultHashBuilder,
    /// The heaviest entry that is let in.
    max_weight: u64,
    weigher: Option<Weigher<K, V>>,
    time_to_idle: Option<Millis>,
    clock: Clock,
    /// Whether any entry was ever given a deadline; until then there is nothing to sweep.
    expires: AtomicBool,
    evicted: Arc<Counter>,
    hits: Counter,
    misses: Counter,
    expired: Counter,
    removed: Counter,
    too_large: Counter,
    writes: Counter,
}

pub(crate) struct MemoryOptions<K, V> {
    /// Entries, or weight where a weigher is given.
    pub(crate) capacity: u64,
    pub(crate) estimated_entries: usize,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) time_to_idle: Option<Millis>,
    pub(crate) clock: Clock,
    pub(crate) demote: Option<Demote<K, V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> MemoryTier<K, V> {
    pub(crate) fn new(options: MemoryOptions<K, V>) -> Self {
        let evicted = Arc::new(Counter::default());
        let quick = OptionsBuilder::new()
            .estimated_items_capacity(options.estimated_entries)
            .weight_capacity(options.capacity)
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are given");
        let hasher = DefaultHashBuilder::default();
        let on_evict = OnEvict {
            demote: options.demote,
            evicted: Arc::clone(&evicted),
            hasher: hasher.clone(),
        };
        let cache =
            sync::Cache::with_options(quick, ByStoredWeight, hasher.clone(), on_evict);
        // What is heavier, quick_cache would refuse.
        let max_weight = (cache.shard_capacity() as f64 * HOT_SHARE) as u64;
        Self {
            max_weight: max_weight.max(1),
            hasher,
            cache,
            weigher: options.weigher,
            time_to_idle: options.time_to_idle,
            clock: options.clock,
            expires: AtomicBool::new(options.time_to_idle.is_some()),
            evicted,
            hits: Counter::default(),
            misses: Counter::default(),
            expired: Counter::default(),
            removed: Counter::default(),
            too_large: Counter::default(),
            writes: Counter::default(),
        }
    }

    /// The value, if it is here and alive; counts a hit or a miss.
    #[inline]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let value = self.peek_alive(key);
        if value.is_some() { self.hits.increment() } else { self.misses.increment() }
        value
    }

    /// The value, if it is here and alive, uncounted: for a second look inside one operation.
    #[inline]
    pub(crate) fn peek_alive<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let entry = self.cache.get(key)?;
        if entry.expires_at == NEVER && entry.touched.is_none() {
            return Some(entry.value);
        }
        let now = self.clock.now();
        if self.is_dead(&entry, now) {
            if self.cache.remove_if(key, |entry| self.is_dead(entry, now)).is_some() {
                self.expired.increment();
            }
            return None;
        }
        if let Some(touched) = &entry.touched {
            touched.store(now, Ordering::Relaxed);
        }
        Some(entry.value)
    }

    fn is_dead(&self, entry: &Entry<V>, now: Millis) -> bool {
        let idle = match (&entry.touched, self.time_to_idle) {
            (Some(touched), Some(limit)) => {
                now.saturating_sub(touched.load(Ordering::Relaxed)) >= limit
            }
            _ => false,
        };
        idle || entry.expires_at <= now
    }

    /// Makes an entry, with its weight and its idle stamp. A weight of zero counts as one, because
    /// nothing would ever push out an entry that weighs nothing.
    pub(crate) fn entry(&self, key: &K, value: V, expires_at: Millis, stored_below: bool) -> Entry<V> {
        if expires_at != NEVER && !self.expires.load(Ordering::Relaxed) {
            // Relaxed: a sweep that misses this entry finds it the next time.
            self.expires.store(true, Ordering::Relaxed);
        }
        let weight = self.weigher.as_ref().map_or(1, |weigh| weigh(key, &value).max(1));
        let touched = self.time_to_idle.map(|_| Arc::new(AtomicU64::new(self.clock.now())));
        Entry { value, expires_at, weight, stored_below, touched }
    }

    /// Whether an entry is light enough for a shard.
    pub(crate) fn admits(&self, entry: &Entry<V>) -> bool {
        entry.weight <= self.max_weight
    }

    /// Puts an entry in. One that is too heavy is refused, and takes an older entry of its key along:
    /// after an insert, the old value is never seen again.
    pub(crate) fn insert(&self, key: K, entry: Entry<V>, victims: &mut Victims<K, V>) {
        if self.admits(&entry) {
            self.writes.increment();
            victims.inserting = Some(self.hasher.hash_one(&key));
            self.cache.insert_with_lifecycle(key, entry, victims);
        } else {
            self.too_large.increment();
            if let Some((key, entry)) = self.cache.remove(&key) {
                victims.push(key, entry);
            }
        }
    }

    pub(crate) fn remove<Q>(&self, key: &Q) -> Option<(K, Entry<V>)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let removed = self.cache.remove(key)?;
        let alive = !self.is_dead(&removed.1, self.clock.now());
        if alive { self.removed.increment() } else { self.expired.increment() }
        alive.then_some(removed)
    }

    pub(crate) fn clear(&self) {
        self.removed.add(self.cache.len() as u64);
        self.cache.clear();
    }

    /// Takes out what is dead and tells how many entries that were.
    pub(crate) fn remove_expired(&self) -> u64 {
        if !self.expires.load(Ordering::Relaxed) {
            return 0;
        }
        let now = self.clock.now();
        let removed = AtomicU64::new(0);
        self.cache.retain(|_, entry| {
            let dead = self.is_dead(entry, now);
            removed.fetch_add(u64::from(dead), Ordering::Relaxed);
            !dead
        });
        let removed = removed.into_inner();
        self.expired.add(removed);
        removed
    }

    /// Shows every entry that is alive, without a lock held.
    pub(crate) fn for_each_alive(&self, mut show: impl FnMut(&K, &Entry<V>)) {
        let now = self.clock.now();
        for (key, entry) in self.cache.iter() {
            if !self.is_dead(&entry, now) {
                show(&key, &entry);
            }
        }
    }

    pub(crate) fn stats(&self) -> TierStats {
        TierStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            entries: self.cache.len() as u64,
            bytes: if self.weigher.is_some() { self.cache.weight() } else { 0 },
            capacity: self.cache.capacity(),
            evictions: Evictions {
                capacity: self.evicted.get(),
                expired: self.expired.get(),
                removed: self.removed.get(),
                too_large: self.too_large.get(),
            },
            writes: self.writes.get(),
            ..TierStats::default()
        }
    }
}
