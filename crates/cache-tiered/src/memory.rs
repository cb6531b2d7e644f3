//! The memory tier: `quick_cache` (CLOCK-PRO with ghosts) bounded by entries or by weight, with the
//! expiry and the idle time that it has none of.
//!
//! An entry carries its deadline and its weight; the weight is computed once, when the entry comes
//! in. An entry past its deadline is a miss and leaves on the look-up that finds it; the sweeper takes
//! those that nobody looks up. Whatever leaves, by any way, is handed to the caller as [`Outgoing`],
//! who drops it after the locks are gone. Only the news of an eviction goes to the lower tiers under
//! the shard's lock.

use std::cell::RefCell;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter, sync};

use crate::clock::{Clock, Millis, NEVER};
use crate::lower::Write;
use crate::stats::{Counter, Evictions, TierStats};

/// A value in memory with what decides about its life.
#[derive(Debug, Clone)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) expires_at: Millis,
    /// Four bytes keep the entry small: what a hit costs is the memory it touches.
    pub(crate) weight: u32,
    /// Whether a lower tier already holds this very value.
    pub(crate) stored_below: bool,
    /// When the entry was last read; present only where a time-to-idle is set.
    touched: Option<Arc<AtomicU64>>,
}

/// What an operation took out of the cache, to be dropped once no lock is held.
#[derive(Debug)]
pub(crate) struct Outgoing<K, V> {
    first: Option<Left<K, V>>,
    rest: Vec<Left<K, V>>,
    /// Writes that newer ones replaced in the queues below.
    pub(crate) writes: Vec<Write<V>>,
    /// quick_cache announces a real eviction, and no replacement, just before it reports it.
    evicting: bool,
}

/// An entry that left.
#[derive(Debug)]
struct Left<K, V> {
    key: K,
    entry: Entry<V>,
    evicted: bool,
}

impl<K, V> Default for Outgoing<K, V> {
    fn default() -> Self {
        Self { first: None, rest: Vec::new(), writes: Vec::new(), evicting: false }
    }
}

impl<K, V> Outgoing<K, V> {
    fn push(&mut self, key: K, entry: Entry<V>, evicted: bool) {
        let left = Left { key, entry, evicted };
        match &mut self.first {
            first @ None => *first = Some(left),
            Some(_) => self.rest.push(left),
        }
    }

    /// The key's entry, if it is among those that were pushed out for want of room.
    pub(crate) fn evicted(&self, key: &K) -> Option<&Entry<V>>
    where
        K: Eq,
    {
        let mut left = self.first.iter().chain(&self.rest);
        left.find(|left| left.evicted && left.key == *key).map(|left| &left.entry)
    }
}

/// Receives each entry that capacity pushes out, under the lock of its shard.
///
/// Under the lock, because only there is the order against a later `remove` of the same key certain.
/// It must be quick and must not call the cache. What it has to drop goes into the list.
pub(crate) type Demote<K, V> = Arc<dyn Fn(&K, &Entry<V>, &mut Vec<Write<V>>) + Send + Sync>;

struct OnEvict<K, V> {
    demote: Option<Demote<K, V>>,
    evicted: Arc<Counter>,
}

impl<K, V> Clone for OnEvict<K, V> {
    fn clone(&self) -> Self {
        Self { demote: self.demote.clone(), evicted: Arc::clone(&self.evicted) }
    }
}

impl<K, V> Lifecycle<K, Entry<V>> for OnEvict<K, V> {
    type RequestState = Outgoing<K, V>;

    fn before_evict(&self, out: &mut Outgoing<K, V>, _: &K, _: &mut Entry<V>) {
        out.evicting = true;
    }

    fn on_evict(&self, out: &mut Outgoing<K, V>, key: K, entry: Entry<V>) {
        let evicted = std::mem::take(&mut out.evicting);
        if evicted {
            self.evicted.increment();
            if let Some(demote) = &self.demote {
                demote(&key, &entry, &mut out.writes);
            }
        }
        out.push(key, entry, evicted);
    }
}

/// The share of a shard that its hot entries may take: quick_cache's own default.
const HOT_SHARE: f64 = 0.97;

#[derive(Clone)]
struct ByStoredWeight;

impl<K, V> Weighter<K, Entry<V>> for ByStoredWeight {
    fn weight(&self, _: &K, entry: &Entry<V>) -> u64 {
        u64::from(entry.weight)
    }
}

/// Computes the weight of an entry, in the unit of the memory tier's capacity.
pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

pub(crate) struct MemoryTier<K, V> {
    cache: sync::Cache<K, Entry<V>, ByStoredWeight, DefaultHashBuilder, OnEvict<K, V>>,
    /// The heaviest entry that is let in.
    max_weight: u32,
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
        let on_evict = OnEvict { demote: options.demote, evicted: Arc::clone(&evicted) };
        let cache = sync::Cache::with_options(
            quick,
            ByStoredWeight,
            DefaultHashBuilder::default(),
            on_evict,
        );
        // What is heavier, quick_cache would refuse, and announce like an eviction.
        let max_weight = (cache.shard_capacity() as f64 * HOT_SHARE) as u64;
        Self {
            // One less than what a weight saturates at, so that such an entry is refused.
            max_weight: u32::try_from(max_weight.max(1)).unwrap_or(u32::MAX).min(u32::MAX - 1),
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
        if value.is_some() {
            self.hits.increment();
        } else {
            self.misses.increment();
        }
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
    pub(crate) fn entry(
        &self,
        key: &K,
        value: V,
        expires_at: Millis,
        stored_below: bool,
    ) -> Entry<V> {
        if expires_at != NEVER && !self.expires.load(Ordering::Relaxed) {
            // Relaxed: a sweep that misses this entry finds it the next time.
            self.expires.store(true, Ordering::Relaxed);
        }
        let weight = self.weigher.as_ref().map_or(1, |weigh| weigh(key, &value).max(1));
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let touched = self.time_to_idle.map(|_| Arc::new(AtomicU64::new(self.clock.now())));
        Entry { value, expires_at, weight, stored_below, touched }
    }

    /// Whether an entry is light enough for a shard.
    pub(crate) fn admits(&self, entry: &Entry<V>) -> bool {
        entry.weight <= self.max_weight
    }

    /// Puts an entry in. One that is too heavy is refused, and takes an older entry of its key along:
    /// after an insert, the old value is never seen again.
    pub(crate) fn insert(&self, key: K, entry: Entry<V>, out: &mut Outgoing<K, V>) {
        if self.admits(&entry) {
            self.writes.increment();
            self.cache.insert_with_lifecycle(key, entry, out);
        } else {
            self.too_large.increment();
            if let Some((key, entry)) = self.cache.remove(&key) {
                out.push(key, entry, false);
            }
            out.push(key, entry, false);
        }
    }

    pub(crate) fn remove(&self, key: &K, out: &mut Outgoing<K, V>) {
        if let Some((key, entry)) = self.cache.remove(key) {
            let alive = !self.is_dead(&entry, self.clock.now());
            if alive {
                self.removed.increment();
            } else {
                self.expired.increment();
            }
            out.push(key, entry, false);
        }
    }

    /// Takes every entry out, one at a time, so that none is dropped under a lock.
    pub(crate) fn clear(&self) {
        self.cache.drain().for_each(|_| self.removed.increment());
    }

    /// Takes out what is dead and tells how many entries that were.
    pub(crate) fn remove_expired(&self) -> u64 {
        if !self.expires.load(Ordering::Relaxed) {
            return 0;
        }
        let now = self.clock.now();
        // quick_cache would drop what it does not retain under its lock, so it only looks.
        let dead = RefCell::new(Vec::new());
        self.cache.retain(|key, entry| {
            if self.is_dead(entry, now) {
                dead.borrow_mut().push(key.clone());
            }
            true
        });
        let dead = dead.into_inner().into_iter();
        let removed = dead.filter_map(|key| self.cache.remove_if(&key, |it| self.is_dead(it, now)));
        let removed = removed.count() as u64;
        self.expired.add(removed);
        removed
    }

    /// The entry, if it is here and alive, without counting as a use.
    pub(crate) fn entry_of(&self, key: &K) -> Option<Entry<V>> {
        self.cache.peek(key).filter(|entry| !self.is_dead(entry, self.clock.now()))
    }

    /// Every key and weight. Entries that come or go meanwhile may be seen or not.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (K, u64)> + Send + '_
    where
        K: Send + Sync,
        V: Send + Sync,
    {
        self.cache.iter().map(|(key, entry)| (key, u64::from(entry.weight)))
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
