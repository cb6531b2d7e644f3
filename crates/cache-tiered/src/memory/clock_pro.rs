//! quick_cache (CLOCK-Pro with ghosts) as an engine, with the expiry and the idle time that it has none
//! of.
//!
//! An entry carries its deadline and its weight; the weight is computed once, when the entry comes
//! in. An entry past its deadline is a miss and leaves on the look-up that finds it; the sweeper takes
//! those that nobody looks up.
//!
//! quick_cache locks its own shards, and nobody else can hold such a lock. So the placeholders of keys
//! under way live in a table of their own, and what this module calls a locked shard is a lock of that
//! table, taken around every write; only evictions happen to a key without it.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter, sync};

use super::{
    Demote, EngineOptions, Entry, EntryRef, Evicted, EvictionCause, LockedShard, MemoryEngine,
    Outgoing,
};
use crate::clock::{Clock, Millis, NEVER};
use crate::flights::Flights;
use crate::freshness::{Freshness, Life, Windows};
use crate::stats::{Counter, Evictions, TierStats, looked_up};
use crate::tags::{Standing, TagTable};

/// A value in memory with what decides about its life.
#[derive(Debug, Clone)]
struct Held<V> {
    entry: Entry<V>,
    /// When the entry was last read; present only where a time-to-idle is set.
    touched: Option<Arc<AtomicU64>>,
}

struct OnEvict<K, V> {
    demote: Option<Demote<K, V>>,
    evicted: Arc<Counter>,
}

impl<K, V> Clone for OnEvict<K, V> {
    fn clone(&self) -> Self {
        Self { demote: self.demote.clone(), evicted: Arc::clone(&self.evicted) }
    }
}

impl<K, V> Lifecycle<K, Held<V>> for OnEvict<K, V> {
    type RequestState = Outgoing<K, V>;

    fn before_evict(&self, out: &mut Outgoing<K, V>, _: &K, _: &mut Held<V>) {
        out.evicting = true;
    }

    fn on_evict(&self, out: &mut Outgoing<K, V>, key: K, held: Held<V>) {
        let cause = if std::mem::take(&mut out.evicting) {
            self.evicted.increment();
            if let Some(demote) = &self.demote {
                demote(&key, held.entry.by_ref(), &mut out.writes);
            }
            EvictionCause::Capacity
        } else {
            EvictionCause::Replaced
        };
        out.push(key, held.entry, cause);
    }
}

/// The share of a shard that its hot entries may take: quick_cache's own default.
const HOT_SHARE: f64 = 0.97;

#[derive(Clone)]
struct ByStoredWeight;

impl<K, V> Weighter<K, Held<V>> for ByStoredWeight {
    fn weight(&self, _: &K, held: &Held<V>) -> u64 {
        u64::from(held.entry.weight)
    }
}

/// Locks for placeholders; more than cores, so that writers seldom meet.
const FLIGHT_SHARDS: usize = 64;

/// Placeholders, on lines of their own.
type FlightShard<K, V> = CachePadded<Mutex<Flights<K, V>>>;

pub(super) struct ClockPro<K, V, S> {
    cache: sync::Cache<K, Held<V>, ByStoredWeight, S, OnEvict<K, V>>,
    flights: Box<[FlightShard<K, V>]>,
    hasher: S,
    weighs: bool,
    /// The capacity that was asked for last.
    wanted: AtomicU64,
    time_to_idle: Option<Millis>,
    freshness: Freshness,
    clock: Clock,
    tags: Arc<TagTable>,
    /// Whether any entry was ever given a deadline or tags; until then there is nothing to sweep.
    expires: AtomicBool,
    evicted: Arc<Counter>,
    hits: Counter,
    misses: Counter,
    expired: Counter,
    removed: Counter,
    too_large: Counter,
    writes: Counter,
}

/// The placeholders of a key, locked.
pub(super) struct Locked<'a, K, V, S> {
    engine: &'a ClockPro<K, V, S>,
    flights: MutexGuard<'a, Flights<K, V>>,
}

impl<K: Hash + Eq + Clone, V: Clone, S: BuildHasher + Clone + 'static> ClockPro<K, V, S> {
    pub(super) fn new(options: EngineOptions<K, V, S>) -> Self {
        let evicted = Arc::new(Counter::default());
        let quick = OptionsBuilder::new()
            .estimated_items_capacity(options.estimated_entries)
            .weight_capacity(options.capacity)
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are given");
        let on_evict = OnEvict { demote: options.demote, evicted: Arc::clone(&evicted) };
        let hasher = options.hasher;
        let cache = sync::Cache::with_options(quick, ByStoredWeight, hasher.clone(), on_evict);
        Self {
            cache,
            flights: (0..FLIGHT_SHARDS).map(|_| CachePadded::default()).collect(),
            hasher,
            weighs: options.weighs,
            wanted: AtomicU64::new(options.capacity),
            time_to_idle: options.time_to_idle,
            freshness: options.freshness,
            clock: options.clock,
            tags: options.tags,
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

    #[inline]
    fn alive<Q>(&self, key: &Q) -> Option<Held<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let held = self.cache.get(key)?;
        let Entry { expires_at, attributes, .. } = &held.entry;
        if *expires_at == NEVER && held.touched.is_none() && attributes.is_none() {
            return Some(held);
        }
        let now = self.clock.now();
        if self.is_dead(&held, now) {
            if let Some((_, held)) = self.cache.remove_if(key, |held| self.is_dead(held, now)) {
                self.cause_of_death(&held).1.increment();
            }
            return None;
        }
        if let Some(touched) = &held.touched {
            touched.store(now, Ordering::Relaxed);
        }
        Some(held)
    }

    /// What decides about the life of an entry.
    fn life(&self, entry: &Entry<V>) -> Life {
        match &entry.attributes {
            None => Life::until(entry.expires_at),
            Some(attributes) => Life {
                deadline: entry.expires_at,
                stale: attributes.standing(&self.tags).0 == Standing::Stale,
                windows: attributes.windows,
            },
        }
    }

    /// Whether a tag of the entry was invalidated after its value was made.
    fn is_invalid(&self, held: &Held<V>) -> bool {
        let attributes = held.entry.attributes.as_ref();
        attributes.is_some_and(|it| it.standing(&self.tags).0 == Standing::Invalid)
    }

    /// What a dead entry died of, and who counts that.
    fn cause_of_death(&self, held: &Held<V>) -> (EvictionCause, &Counter) {
        if self.is_invalid(held) {
            (EvictionCause::Invalidated, &self.removed)
        } else {
            (EvictionCause::Expired, &self.expired)
        }
    }

    /// Takes out what is wanted out; `settle` is called with no lock held.
    fn take_out_where(
        &self,
        mut settle: impl FnMut(Outgoing<K, V>),
        cause: impl Fn(&K, &Held<V>) -> Option<EvictionCause>,
    ) -> u64 {
        // quick_cache would drop what it does not retain under its lock, so it only looks.
        let wanted = RefCell::new(Vec::new());
        self.cache.retain(|key, held| {
            if cause(key, held).is_some() {
                wanted.borrow_mut().push(key.clone());
            }
            true
        });
        let mut taken = 0;
        for key in wanted.into_inner() {
            let mut why = None;
            let wanted = |held: &Held<V>| {
                why = cause(&key, held);
                why.is_some()
            };
            if let (Some((key, held)), Some(cause)) = (self.cache.remove_if(&key, wanted), why) {
                taken += 1;
                let expired = cause == EvictionCause::Expired;
                if expired { &self.expired } else { &self.removed }.increment();
                let mut out = Outgoing::default();
                out.push(key, held.entry, cause);
                settle(out);
            }
        }
        taken
    }

    fn is_dead(&self, held: &Held<V>, now: Millis) -> bool {
        let idle = match (&held.touched, self.time_to_idle) {
            (Some(touched), Some(limit)) => {
                now.saturating_sub(touched.load(Ordering::Relaxed)) >= limit
            }
            _ => false,
        };
        idle || held.entry.expires_at <= now || self.is_invalid(held)
    }

    /// Sets the capacity that was asked for last.
    fn set_wanted(&self) {
        // Each shard is set in turn, so of two calls at once both may go on: until what was set last is
        // what was wanted last.
        let mut set = None;
        loop {
            let capacity = self.wanted.load(Ordering::SeqCst);
            if set.replace(capacity) == Some(capacity) {
                return;
            }
            self.set_capacity(capacity);
        }
    }

    fn set_capacity(&self, capacity: u64) {
        let shards = self.cache.num_shards() as u64;
        // It would round up in each shard.
        self.cache.set_capacity((capacity / shards * shards).max(capacity.min(shards)));
    }

    /// Something of each entry that is alive, a shard at a time. Those that come or go meanwhile may
    /// be seen or not.
    pub(super) fn snapshot<'a, T: Send + 'a>(
        &'a self,
        take: impl Fn(&K, EntryRef<'_, V>) -> T + Send + 'a,
    ) -> Box<dyn Iterator<Item = T> + Send + 'a>
    where
        K: Send + Sync,
        V: Send + Sync,
        S: Send + Sync,
    {
        let now = self.clock.now();
        let alive = self.cache.iter().filter(move |(_, held)| !self.is_dead(held, now));
        Box::new(alive.map(move |(key, held)| take(&key, held.entry.by_ref())))
    }
}

impl<K, V, S> MemoryEngine<K, V> for ClockPro<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    type Locked<'a>
        = Locked<'a, K, V, S>
    where
        Self: 'a;

    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    #[inline]
    fn get<Q>(&self, key: &Q, counted: bool) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let fresh = |life: &Life| {
            let plain = !life.stale && life.windows == Windows::default();
            plain || self.freshness.is_fresh(life, self.clock.now())
        };
        self.read(key, counted, fresh).map(|(value, _)| value)
    }

    #[inline]
    fn read<Q>(&self, key: &Q, counted: bool, wanted: impl Fn(&Life) -> bool) -> Option<(V, Life)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let alive = self.alive(key).map(|held| {
            let life = self.life(&held.entry);
            (held.entry.value, life)
        });
        let read = alive.filter(|(_, life)| wanted(life));
        if counted {
            looked_up(read.is_some());
            let counter = if read.is_some() { &self.hits } else { &self.misses };
            counter.increment();
        }
        read
    }

    fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        keys.iter().map(|key| self.get(key, true)).collect()
    }

    fn lock(&self, hash: u64) -> Locked<'_, K, V, S> {
        // The top bits but seven, which the table below uses; its bucket comes from the low ones.
        let flights = self.flights[(hash >> 51) as usize % FLIGHT_SHARDS].lock();
        Locked { engine: self, flights }
    }

    fn for_each_flights(&self, mut each: impl FnMut(&mut Flights<K, V>)) {
        for flights in &self.flights {
            each(&mut flights.lock());
        }
    }

    fn max_weight(&self) -> u32 {
        // What is heavier, quick_cache would refuse, and announce like an eviction.
        let max_weight = (self.cache.shard_capacity() as f64 * HOT_SHARE) as u64;
        // One less than what a weight saturates at, so that such an entry is refused.
        u32::try_from(max_weight.max(1)).unwrap_or(u32::MAX).min(u32::MAX - 1)
    }

    fn expect_expiry(&self) {
        if !self.expires.load(Ordering::Relaxed) {
            // Relaxed: a sweep that misses this entry finds it the next time.
            self.expires.store(true, Ordering::Relaxed);
        }
    }

    fn clear(&self, mut settle: impl FnMut(Outgoing<K, V>)) {
        for (key, held) in self.cache.drain() {
            self.removed.increment();
            let mut out = Outgoing::default();
            out.push(key, held.entry, EvictionCause::Removed);
            settle(out);
        }
    }

    fn remove_expired(&self, settle: impl FnMut(Outgoing<K, V>)) -> u64 {
        if !self.expires.load(Ordering::Relaxed) {
            return 0;
        }
        let now = self.clock.now();
        self.take_out_where(settle, |_, held| {
            self.is_dead(held, now).then(|| self.cause_of_death(held).0)
        })
    }

    fn resize(&self, capacity: u64, _: impl FnMut(Outgoing<K, V>)) {
        self.wanted.store(capacity, Ordering::SeqCst);
        self.set_wanted();
    }

    fn evict(&self, weight: u64, _: impl Fn() -> bool, _: impl FnMut(Outgoing<K, V>)) -> Evicted {
        let before = (self.cache.weight(), self.cache.len() as u64);
        // quick_cache evicts for no other reason, so its capacity is lowered for a moment.
        self.set_capacity(before.0.saturating_sub(weight).max(1));
        self.set_wanted();
        Evicted {
            weight: before.0.saturating_sub(self.cache.weight()),
            entries: before.1.saturating_sub(self.cache.len() as u64),
        }
    }

    fn capacity(&self) -> u64 {
        self.cache.capacity()
    }

    fn stats(&self) -> TierStats {
        TierStats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            entries: self.cache.len() as u64,
            bytes: if self.weighs { self.cache.weight() } else { 0 },
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

impl<K, V, S> LockedShard<K, V> for Locked<'_, K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    fn flights(&mut self) -> &mut Flights<K, V> {
        &mut self.flights
    }

    fn insert(&mut self, _: u64, key: K, entry: Entry<V>, out: &mut Outgoing<K, V>) {
        let engine = self.engine;
        if entry.weight > engine.max_weight() {
            engine.too_large.increment();
            if let Some((key, held)) = engine.cache.remove(&key) {
                out.push(key, held.entry, EvictionCause::Replaced);
            }
            return out.push(key, entry, EvictionCause::TooLarge);
        }
        engine.writes.increment();
        if entry.attributes.is_some() {
            engine.expect_expiry();
        }
        let touched = engine.time_to_idle.map(|_| Arc::new(AtomicU64::new(engine.clock.now())));
        engine.cache.insert_with_lifecycle(key, Held { entry, touched }, out);
    }

    fn remove(&mut self, _: u64, key: &K, out: &mut Outgoing<K, V>) {
        let engine = self.engine;
        if let Some((key, held)) = engine.cache.remove(key) {
            let (cause, counter) = if engine.is_dead(&held, engine.clock.now()) {
                engine.cause_of_death(&held)
            } else {
                (EvictionCause::Removed, &engine.removed)
            };
            counter.increment();
            out.push(key, held.entry, cause);
        }
    }

    fn entry_of(&self, _: u64, key: &K) -> Option<Entry<V>> {
        let held = self.engine.cache.peek(key)?;
        (!self.engine.is_dead(&held, self.engine.clock.now())).then_some(held.entry)
    }

    fn is_over(&self) -> bool {
        false
    }
}
