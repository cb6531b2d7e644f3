//! The memory tier: one set of operations over two engines, chosen when the cache is built.
//!
//! [`Switchable`] is this crate's own engine: five policies that change while it runs, and look-ups
//! that lock nothing. [`ClockPro`] is quick_cache with what it lacks: expiry, idle time and a single
//! flight. Both implement [`MemoryEngine`], and [`MemoryTier`] is the choice between them.
//!
//! A write locks the key's shard first ([`MemoryTier::lock`]). Under that lock live the key's entry and
//! its placeholder, so a write, the load that it overtakes and the queues below are one step for
//! everybody else. Whatever leaves a shard, by any way, is handed out as [`Outgoing`] and settled once
//! no lock is held: listeners hear of it, then it is dropped. Only the news of an eviction goes to the
//! lower tiers under the lock.

mod attributes;
mod clock_pro;
mod director;
mod engine;
mod epoch;
pub(crate) mod locals;
mod table;
mod wheel;

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use quick_cache::Equivalent;
use tokio::sync::watch;

use crate::clock::{Clock, Millis};
use crate::fates::Fates;
use crate::flights::{Booking, Flight, Flights, Landing};
use crate::freshness::{Freshness, Life};
use crate::lower::Write;
use crate::policy::Policy;
use crate::policy::curve::MissRatioCurve;
use crate::policy::election::PolicyReport;
use crate::stats::TierStats;
use crate::tags::{Attributes, Stamp, TagTable};

use clock_pro::ClockPro;
use engine::Switchable;

/// The structure that holds the entries in memory; chosen when the cache is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Engine {
    /// This crate's own: every [`Policy`], switchable while it runs, and look-ups without a lock.
    #[default]
    Switchable,
    /// `quick_cache`: CLOCK-Pro and nothing else.
    ClockPro,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switchable => "switchable",
            Self::ClockPro => "clock-pro",
        })
    }
}

/// The engine of the cache cannot do what was asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine clock-pro cannot {operation}; build the cache with Engine::Switchable")]
pub struct UnsupportedByEngine {
    operation: &'static str,
}

impl UnsupportedByEngine {
    fn new(operation: &'static str) -> Self {
        Self { operation }
    }
}

/// Why an entry left the memory tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictionCause {
    /// Made room for others.
    Capacity,
    /// Was past its time to live, or idle for too long.
    Expired,
    /// Was removed by a call of `remove` or `clear`.
    Removed,
    /// Had a tag that was invalidated, was picked out by a predicate, or was written or removed by another
    /// machine, or may have been.
    Invalidated,
    /// Gave way to a newer value of its key.
    Replaced,
    /// Was never let in, because it is heavier than a shard may hold.
    TooLarge,
}

/// A value with what decides about its life, ready to be put in.
#[derive(Debug, Clone)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) expires_at: Millis,
    pub(crate) weight: u32,
    /// Whether a lower tier already holds this very value.
    pub(crate) stored_below: bool,
    /// What else it carries.
    pub(crate) attributes: Option<Arc<Attributes>>,
}

/// An entry where it stands.
#[derive(Debug)]
pub(crate) struct EntryRef<'a, V> {
    pub(crate) value: &'a V,
    pub(crate) expires_at: Millis,
    pub(crate) weight: u32,
    pub(crate) stored_below: bool,
    pub(crate) attributes: Option<Arc<Attributes>>,
}

impl<V> Entry<V> {
    pub(crate) fn by_ref(&self) -> EntryRef<'_, V> {
        EntryRef {
            value: &self.value,
            expires_at: self.expires_at,
            weight: self.weight,
            stored_below: self.stored_below,
            attributes: self.attributes.clone(),
        }
    }
}

/// An entry that left.
#[derive(Debug)]
struct Left<K, V> {
    key: K,
    entry: Entry<V>,
    cause: EvictionCause,
}

/// What an operation took out of the cache, to be settled once no lock is held.
#[derive(Debug)]
pub(crate) struct Outgoing<K, V> {
    first: Option<Left<K, V>>,
    rest: Vec<Left<K, V>>,
    /// Keys and values that left before, and that no reader can hold any more.
    reclaimed: Vec<(K, V)>,
    /// Writes that newer ones replaced in the queues below.
    pub(crate) writes: Vec<Write<V>>,
    /// Loads that a write has overtaken.
    overtaken: Option<Flight<V>>,
    /// quick_cache announces a real eviction, and no replacement, just before it reports it.
    evicting: bool,
}

impl<K, V> Default for Outgoing<K, V> {
    fn default() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
            reclaimed: Vec::new(),
            writes: Vec::new(),
            overtaken: None,
            evicting: false,
        }
    }
}

impl<K, V> Outgoing<K, V> {
    fn push(&mut self, key: K, entry: Entry<V>, cause: EvictionCause) {
        let left = Left { key, entry, cause };
        match &mut self.first {
            first @ None => *first = Some(left),
            Some(_) => self.rest.push(left),
        }
    }

    /// Says that what was removed was others' doing.
    fn blame_others(&mut self) {
        for left in self.first.iter_mut().chain(&mut self.rest) {
            if left.cause == EvictionCause::Removed {
                left.cause = EvictionCause::Invalidated;
            }
        }
    }

    /// The key's entry, if it found no room itself.
    pub(crate) fn turned_away(&self, key: &K) -> Option<&Entry<V>>
    where
        K: Eq,
    {
        let no_room = [EvictionCause::Capacity, EvictionCause::TooLarge];
        let mut left = self.first.iter().chain(&self.rest);
        left.find(|left| no_room.contains(&left.cause) && left.key == *key).map(|left| &left.entry)
    }
}

/// Receives each entry that capacity pushes out, under the lock of its shard.
///
/// Under the lock, because only there is the order against a later `remove` of the same key certain.
/// It must be quick and must not call the cache. What it has to drop goes into the list.
pub(crate) type Demote<K, V> = Arc<dyn Fn(&K, EntryRef<'_, V>, &mut Vec<Write<V>>) + Send + Sync>;

/// Computes the weight of an entry, in the unit of the memory tier's capacity.
pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

/// Hears of each entry that left, under no lock.
pub(crate) type Listener<K, V> = Arc<dyn Fn(&K, &V, EvictionCause) + Send + Sync>;

pub(crate) struct MemoryOptions<K, V, S> {
    pub(crate) engine: Engine,
    pub(crate) policy: Policy,
    pub(crate) curve: bool,
    pub(crate) hasher: S,
    /// Entries, or weight where a weigher is given.
    pub(crate) capacity: u64,
    pub(crate) estimated_entries: usize,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) time_to_idle: Option<Millis>,
    pub(crate) freshness: Freshness,
    pub(crate) clock: Clock,
    pub(crate) tags: Arc<TagTable>,
    pub(crate) demote: Option<Demote<K, V>>,
    pub(crate) listener: Option<Listener<K, V>>,
}

/// What an engine needs to be told.
struct EngineOptions<K, V, S> {
    hasher: S,
    capacity: u64,
    estimated_entries: usize,
    weighs: bool,
    time_to_idle: Option<Millis>,
    freshness: Freshness,
    clock: Clock,
    tags: Arc<TagTable>,
    demote: Option<Demote<K, V>>,
    /// Whether anybody hears of what leaves; only then are values cloned for it.
    listened: bool,
    policy: Policy,
    curve: bool,
}

/// A structure that holds entries in memory, bounded by their weight.
trait MemoryEngine<K, V> {
    /// A shard that is locked for writing.
    type Locked<'a>: LockedShard<K, V>
    where
        Self: 'a;

    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64;

    /// The value, if it is here and alive, and fresh where it has windows of its own. One that is dead
    /// is taken out.
    fn get<Q>(&self, key: &Q, counted: bool) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized;

    /// As `get`, with what decides about the entry's life; one that is not wanted is a miss, and stays.
    fn read<Q>(&self, key: &Q, counted: bool, wanted: impl Fn(&Life) -> bool) -> Option<(V, Life)>
    where
        Q: Hash + Equivalent<K> + ?Sized;

    /// The values of several keys, in their order; counted.
    fn get_many(&self, keys: &[K]) -> Vec<Option<V>>;

    fn lock(&self, hash: u64) -> Self::Locked<'_>;

    /// Calls `each` with the placeholders of every shard, locked in turn.
    fn for_each_flights(&self, each: impl FnMut(&mut Flights<K, V>));

    /// The heaviest entry that is let in.
    fn max_weight(&self) -> u32;

    /// Tells that an entry with a deadline may come.
    fn expect_expiry(&self);

    /// Takes out everything, some entries at a time; `settle` is called with no lock held.
    fn clear(&self, settle: impl FnMut(Outgoing<K, V>));

    /// Takes out what is dead and tells how many entries that were.
    fn remove_expired(&self, settle: impl FnMut(Outgoing<K, V>)) -> u64;

    fn resize(&self, capacity: u64, settle: impl FnMut(Outgoing<K, V>));

    /// Pushes out entries of about this weight, in the order of the policy and pinned ones not at all,
    /// and leaves the capacity as it is. `go_on` is asked now and then.
    fn evict(
        &self,
        weight: u64,
        go_on: impl Fn() -> bool,
        settle: impl FnMut(Outgoing<K, V>),
    ) -> Evicted;

    fn capacity(&self) -> u64;

    /// What becomes of some keys, where the engine watches any.
    fn fates(&self) -> Option<&Fates> {
        None
    }

    fn stats(&self) -> TierStats;
}

/// How much was pushed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) weight: u64,
    pub(crate) entries: u64,
}

/// What can be done with a key of a shard whose lock is held.
trait LockedShard<K, V> {
    fn flights(&mut self) -> &mut Flights<K, V>;
    /// Puts an entry in. One that is too heavy is refused, and takes an older entry of its key along:
    /// after an insert, the old value is never seen again.
    fn insert(&mut self, hash: u64, key: K, entry: Entry<V>, out: &mut Outgoing<K, V>);
    fn remove(&mut self, hash: u64, key: &K, out: &mut Outgoing<K, V>);
    /// The entry, if it is here and alive, without counting as a use.
    fn entry_of(&self, hash: u64, key: &K) -> Option<Entry<V>>;
    /// Whether so much waits for its readers that a writer should wait, too, once it has unlocked.
    fn is_over(&self) -> bool;
}

/// The memory tier of a cache.
pub(crate) struct MemoryTier<K, V, S> {
    engine: Choice<K, V, S>,
    weigher: Option<Weigher<K, V>>,
    listener: Option<Listener<K, V>>,
    freshness: Freshness,
    clock: Clock,
    /// Whether the cache has a grace: otherwise what is alive is fresh, unless an entry says otherwise.
    grace: bool,
    pub(crate) tags: Arc<TagTable>,
}

#[expect(clippy::large_enum_variant, reason = "there is one per cache, behind its Arc")]
enum Choice<K, V, S> {
    Switchable(Switchable<K, V, S>),
    ClockPro(ClockPro<K, V, S>),
}

/// Does the same with whichever engine was chosen.
macro_rules! with_engine {
    ($choice:expr, $engine:ident => $body:expr) => {
        match $choice {
            Choice::Switchable($engine) => $body,
            Choice::ClockPro($engine) => $body,
        }
    };
}

/// A key's shard, locked: as long as this lives, no write and no fill of its keys happens elsewhere.
pub(crate) struct Locked<'a, K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    tier: &'a MemoryTier<K, V, S>,
    shard: LockedChoice<'a, K, V, S>,
    hash: u64,
    /// The weight of what was put in.
    inserted: Option<u32>,
}

enum LockedChoice<'a, K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    Switchable(engine::Locked<'a, K, V, S>),
    ClockPro(clock_pro::Locked<'a, K, V, S>),
}

macro_rules! with_shard {
    ($choice:expr, $shard:ident => $body:expr) => {
        match $choice {
            LockedChoice::Switchable($shard) => $body,
            LockedChoice::ClockPro($shard) => $body,
        }
    };
}

impl<K, V, S> MemoryTier<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    pub(crate) fn new(options: MemoryOptions<K, V, S>) -> Self {
        let MemoryOptions { engine, policy, curve, hasher, weigher, listener, freshness, .. } =
            options;
        let (clock, tags) = (options.clock.clone(), Arc::clone(&options.tags));
        let engine_options = EngineOptions {
            hasher,
            capacity: options.capacity,
            estimated_entries: options.estimated_entries,
            weighs: weigher.is_some(),
            time_to_idle: options.time_to_idle,
            freshness,
            clock: options.clock,
            tags: options.tags,
            demote: options.demote,
            listened: listener.is_some(),
            policy,
            curve,
        };
        let engine = match engine {
            Engine::Switchable => Choice::Switchable(Switchable::new(engine_options)),
            Engine::ClockPro => Choice::ClockPro(ClockPro::new(engine_options)),
        };
        Self { engine, weigher, listener, freshness, clock, grace: freshness.grace() > 0, tags }
    }

    /// The value, if it is here and fresh; counts a hit or a miss.
    #[inline(always)]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        if self.grace {
            return self.get_fresh(key, true);
        }
        with_engine!(&self.engine, engine => engine.get(key, true))
    }

    /// The value, if it is here and fresh, uncounted: for a second look inside one operation.
    pub(crate) fn peek_fresh<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.get_fresh(key, false)
    }

    #[inline(never)]
    fn get_fresh<Q>(&self, key: &Q, counted: bool) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let wanted = |life: &Life| self.is_fresh(life);
        let read = with_engine!(&self.engine, engine => engine.read(key, counted, wanted));
        read.map(|(value, _)| value)
    }

    /// Whether what has this life is fresh now.
    pub(crate) fn is_fresh(&self, life: &Life) -> bool {
        self.freshness.is_fresh(life, self.clock.now())
    }

    /// The value, fresh or not, with what decides about its life; counts a hit or a miss.
    #[inline]
    pub(crate) fn read<Q>(&self, key: &Q) -> Option<(V, Life)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        with_engine!(&self.engine, engine => engine.read(key, true, |_| true))
    }

    /// As [`read`](Self::read), of what may be served while a newer one is loaded: all else is a miss.
    #[inline]
    pub(crate) fn read_servable<Q>(&self, key: &Q) -> Option<(V, Life)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let wanted = |life: &Life| self.freshness.serves_meanwhile(life, self.clock.now());
        with_engine!(&self.engine, engine => engine.read(key, true, wanted))
    }

    /// As [`read`](Self::read), uncounted.
    pub(crate) fn peek(&self, key: &K) -> Option<(V, Life)> {
        with_engine!(&self.engine, engine => engine.read(key, false, |_| true))
    }

    /// Whether a key is here and alive; no use of it, and not counted.
    pub(crate) fn contains(&self, key: &K) -> bool {
        let alive = std::cell::Cell::new(false);
        let wanted = |_: &Life| {
            alive.set(true);
            false
        };
        let unwanted = with_engine!(&self.engine, engine => engine.read(key, false, wanted));
        debug_assert!(unwanted.is_none());
        alive.get()
    }

    /// The hash of a key, as tables that are consulted before this one need it.
    #[inline]
    pub(crate) fn hash(&self, key: &K) -> u64 {
        with_engine!(&self.engine, engine => engine.hash(key))
    }

    /// The values of several keys, in their order; counted like so many look-ups.
    pub(crate) fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        if self.grace {
            return keys.iter().map(|key| self.get_fresh(key, true)).collect();
        }
        with_engine!(&self.engine, engine => engine.get_many(keys))
    }

    /// Makes an entry, with its weight. A weight of zero counts as one, because nothing would ever
    /// push out an entry that weighs nothing.
    pub(crate) fn entry(
        &self,
        key: &K,
        value: V,
        expires_at: Millis,
        attributes: Option<Arc<Attributes>>,
        stored_below: bool,
    ) -> Entry<V> {
        if expires_at != crate::clock::NEVER {
            with_engine!(&self.engine, engine => engine.expect_expiry());
        }
        let weight = self.weigher.as_ref().map_or(1, |weigh| weigh(key, &value).max(1));
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        Entry { value, expires_at, weight, stored_below, attributes }
    }

    /// Whether an entry is light enough for a shard.
    pub(crate) fn admits(&self, entry: &Entry<V>) -> bool {
        entry.weight <= with_engine!(&self.engine, engine => engine.max_weight())
    }

    /// Locks the key's shard, and leaves what is under way alone.
    #[inline(always)]
    pub(crate) fn lock(&self, key: &K) -> Locked<'_, K, V, S> {
        self.lock_hashed(with_engine!(&self.engine, engine => engine.hash(key)))
    }

    /// Locks the key's shard for a write, and overtakes whatever is under way for the key.
    #[inline(always)]
    pub(crate) fn overtake(&self, key: &K, out: &mut Outgoing<K, V>) -> Locked<'_, K, V, S> {
        let mut locked = self.lock(key);
        let hash = locked.hash;
        if let Some(flight) = locked.flights().overtake(hash, key) {
            out.overtaken = Some(flight);
        }
        locked
    }

    /// Overtakes everything that is under way.
    ///
    /// When this returns, no value whose fetch began before is stored any more.
    pub(crate) fn overtake_all(&self) {
        let mut overtaken = Vec::new();
        with_engine!(&self.engine, engine => {
            engine.for_each_flights(|flights| flights.overtake_all(&mut overtaken));
        });
    }

    /// Keys on which something is under way.
    pub(crate) fn in_flight(&self) -> u64 {
        let mut count = 0;
        with_engine!(&self.engine, engine => {
            engine.for_each_flights(|flights| count += flights.len() as u64);
        });
        count
    }

    /// Tells the listener of what left; whoever calls holds no lock, and drops it afterwards.
    #[inline]
    fn settle(&self, out: &Outgoing<K, V>) {
        if let Some(listener) = &self.listener {
            Self::tell(listener, out);
        }
    }

    #[inline(never)]
    fn tell(listener: &Listener<K, V>, out: &Outgoing<K, V>) {
        for Left { key, entry, cause } in out.first.iter().chain(&out.rest) {
            let told = catch_unwind(AssertUnwindSafe(|| listener(key, &entry.value, *cause)));
            if told.is_err() {
                tracing::error!(%cause, "an eviction listener panicked");
            }
        }
    }

    /// Takes every entry out; none is dropped under a lock.
    pub(crate) fn clear(&self) {
        with_engine!(&self.engine, engine => engine.clear(|out| self.settle(&out)));
    }

    /// As [`clear`](Self::clear), because others may have changed what is here.
    pub(crate) fn invalidate_all(&self) {
        with_engine!(&self.engine, engine => engine.clear(|mut out| {
            out.blame_others();
            self.settle(&out);
        }));
    }

    /// Takes out what is dead and tells how many entries that were.
    pub(crate) fn remove_expired(&self) -> u64 {
        with_engine!(&self.engine, engine => engine.remove_expired(|out| self.settle(&out)))
    }

    /// Makes the tier larger or smaller; entries that do not fit any more are pushed out.
    pub(crate) fn resize(&self, capacity: u64) {
        with_engine!(&self.engine, engine => engine.resize(capacity, |out| self.settle(&out)));
    }

    /// Pushes out entries of about this weight; see [`MemoryEngine::evict`].
    pub(crate) fn evict(&self, weight: u64, go_on: impl Fn() -> bool) -> Evicted {
        with_engine!(&self.engine, engine => engine.evict(weight, go_on, |out| self.settle(&out)))
    }

    /// Something of every entry that is alive, a shard at a time.
    pub(crate) fn snapshot<'a, T: Send + 'a>(
        &'a self,
        take: impl Fn(&K, EntryRef<'_, V>) -> T + Send + 'a,
    ) -> Box<dyn Iterator<Item = T> + Send + 'a>
    where
        K: Send + Sync,
        V: Send + Sync,
        S: Send + Sync,
    {
        with_engine!(&self.engine, engine => engine.snapshot(take))
    }

    /// What becomes of some keys, where the engine watches any.
    #[inline]
    pub(crate) fn fates(&self) -> Option<&Fates> {
        with_engine!(&self.engine, engine => engine.fates())
    }

    /// How often a fetch of a key has begun while another was under way.
    pub(crate) fn doubled(&self) -> u64 {
        let mut count = 0;
        with_engine!(&self.engine, engine => {
            engine.for_each_flights(|flights| count += flights.doubled());
        });
        count
    }

    /// The bound, in the unit of the weights.
    pub(crate) fn capacity(&self) -> u64 {
        with_engine!(&self.engine, engine => engine.capacity())
    }

    pub(crate) fn stats(&self) -> TierStats {
        with_engine!(&self.engine, engine => engine.stats())
    }

    /// The policy that was asked for; quick_cache has one of its own.
    pub(crate) fn policy(&self) -> Option<Policy> {
        self.switchable("name its policy").ok().map(Switchable::policy)
    }

    pub(crate) fn set_policy(&self, policy: Policy) -> Result<(), UnsupportedByEngine> {
        self.switchable("change its policy")?.set_policy(policy);
        Ok(())
    }

    pub(crate) fn policy_report(&self) -> Option<PolicyReport> {
        self.switchable("report on its policy").ok().map(Switchable::policy_report)
    }

    pub(crate) fn miss_ratio_curve(&self) -> Option<MissRatioCurve> {
        self.switchable("sample a curve").ok()?.miss_ratio_curve()
    }

    pub(crate) fn set_pinned(&self, key: &K, pinned: bool) -> Result<bool, UnsupportedByEngine> {
        Ok(self.switchable("pin entries")?.set_pinned(key, pinned))
    }

    fn switchable(
        &self,
        operation: &'static str,
    ) -> Result<&Switchable<K, V, S>, UnsupportedByEngine> {
        match &self.engine {
            Choice::Switchable(engine) => Ok(engine),
            Choice::ClockPro(_) => Err(UnsupportedByEngine::new(operation)),
        }
    }

    #[inline(always)]
    fn lock_hashed(&self, hash: u64) -> Locked<'_, K, V, S> {
        let shard = match &self.engine {
            Choice::Switchable(engine) => LockedChoice::Switchable(engine.lock(hash)),
            Choice::ClockPro(engine) => LockedChoice::ClockPro(engine.lock(hash)),
        };
        Locked { tier: self, shard, hash, inserted: None }
    }

    /// Takes a ticket for a key, to fetch it from a lower tier.
    pub(crate) fn ticket(self: &Arc<Self>, key: &K) -> Ticket<K, V, S> {
        // Cloned before anything is booked: a user's `Clone` may panic.
        let ticket_key = key.clone();
        let stamp = self.tags.stamp();
        let mut locked = self.lock(key);
        let hash = locked.hash;
        let booking = locked.flights().book(hash, key);
        drop(locked);
        Ticket { memory: Arc::clone(self), key: ticket_key, booking, stamp }
    }

    /// Joins the key's flight, or starts one.
    pub(crate) fn join(self: &Arc<Self>, key: &K) -> Role<K, V, S> {
        let ticket_key = key.clone();
        let stamp = self.tags.stamp();
        let mut locked = self.lock(key);
        let hash = locked.hash;
        if let Some(flight) = locked.flights().flight(hash, key) {
            return Role::Waiter(flight);
        }
        let (booking, sender, landed) = locked.flights().start(hash, key);
        drop(locked);
        drop(landed);
        let ticket = Ticket { memory: Arc::clone(self), key: ticket_key, booking, stamp };
        Role::Leader(ticket, sender)
    }
}

impl<K, V, S> Locked<'_, K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    /// The hash of the key.
    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    #[inline]
    fn flights(&mut self) -> &mut Flights<K, V> {
        with_shard!(&mut self.shard, shard => shard.flights())
    }

    /// Puts an entry of this key in, or refuses it for its weight; the older one leaves either way.
    #[inline]
    pub(crate) fn insert(&mut self, key: K, entry: Entry<V>, out: &mut Outgoing<K, V>) {
        self.inserted = Some(entry.weight);
        with_shard!(&mut self.shard, shard => shard.insert(self.hash, key, entry, out));
    }

    /// Unlocks the shard, then tells what left it; the caller drops that.
    #[inline(always)]
    pub(crate) fn release(self, out: &Outgoing<K, V>) {
        let Self { tier, shard, hash, inserted } = self;
        let over = with_shard!(&shard, shard => shard.is_over());
        drop(shard);
        if let Choice::Switchable(engine) = &tier.engine {
            engine.after_write(hash, inserted, over);
        }
        tier.settle(out);
    }

    pub(crate) fn remove(&mut self, key: &K, out: &mut Outgoing<K, V>) {
        with_shard!(&mut self.shard, shard => shard.remove(self.hash, key, out));
    }

    /// As [`remove`](Self::remove), because others have changed the key.
    pub(crate) fn invalidate(&mut self, key: &K, out: &mut Outgoing<K, V>) {
        self.remove(key, out);
        out.blame_others();
    }

    /// The entry, if it is here and alive, without counting as a use.
    pub(crate) fn entry_of(&self, key: &K) -> Option<Entry<V>> {
        with_shard!(&self.shard, shard => shard.entry_of(self.hash, key))
    }
}

/// The right to store a slow value, unless the key is written first.
pub(crate) struct Ticket<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    memory: Arc<MemoryTier<K, V, S>>,
    key: K,
    booking: Booking,
    stamp: Stamp,
}

/// The part that a call plays in a single flight.
pub(crate) enum Role<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    /// Loads, and publishes through the sender.
    Leader(Ticket<K, V, S>, watch::Sender<Landing<V>>),
    /// Waits for the leader.
    Waiter(Flight<V>),
}

impl<K, V, S> Ticket<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// The hash of the key.
    pub(crate) fn hash(&self) -> u64 {
        self.booking.hash()
    }

    /// The time at which the ticket was taken, for the tags of the value that it is for.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Locks the key's shard, unless the key has been written since the ticket was taken.
    pub(crate) fn redeem(&self) -> Option<Locked<'_, K, V, S>> {
        let mut locked = self.memory.lock_hashed(self.booking.hash());
        locked.flights().is_current(self.booking).then_some(locked)
    }
}

impl<K, V, S> Drop for Ticket<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    fn drop(&mut self) {
        let mut locked = self.memory.lock_hashed(self.booking.hash());
        let last = locked.flights().cancel(self.booking);
        drop(locked);
        // The slot may hold a flight's landing, and that the last of a value.
        drop(last);
    }
}

impl fmt::Display for EvictionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "capacity",
            Self::Expired => "expired",
            Self::Removed => "removed",
            Self::Invalidated => "invalidated",
            Self::Replaced => "replaced",
            Self::TooLarge => "too large",
        })
    }
}
