//! The crate's own engine: shards that are read without a lock, under a policy that can change.
//!
//! The upper bits of a key's hash choose its shard, the lower 32 its place there. A shard is a
//! [`Table`]: readers pin an epoch and look, writers hold its mutex. Under the same mutex lies what
//! only writers need, [`Shard`]: the [`Queues`] of the policy, the [`Wheel`] of deadlines and the
//! [`Flights`] of keys under way. So an insert takes one lock and hashes once, whatever it overtakes.
//!
//! # A look-up
//!
//! Hash, pin, find, compare the deadline with a coarse clock if there is one, raise the node's mark
//! unless it is saturated, clone, unpin, count in a cell of this thread. The mark, and the idle stamp
//! where a time-to-idle is set, are all that it writes where others may read.
//!
//! # The bound
//!
//! An insert makes room before it links: at every instant the entries that can be found in a shard
//! weigh no more than its share of the capacity. What was unlinked waits in limbo until no reader can
//! hold it; limbo is no more than [`LIMBO_SHARE`] of a shard's entries or weight, beyond which a writer
//! waits for the readers. A value's `Clone` runs while its reader is pinned, so one that takes long
//! holds back what was unlinked after it began.
//!
//! # Order of events
//!
//! An entry that leaves is unlinked from the queues and the wheel, told to the tiers below where
//! evictions are written, cloned for the listener where there is one, and retired. A user's `Clone`
//! that panics in between still leaves the entry retired: the panic goes on afterwards.

use std::hash::{BuildHasher, Hash};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use quick_cache::Equivalent;

use super::attributes::Records;
use super::director::Director;
use super::epoch::{self, Guard};
use super::locals::Locals;
use super::table::{self, Found, LimboOptions, NewNode, Table, TableOptions};
use super::wheel::Wheel;
use super::{
    Demote, EngineOptions, Entry, EntryRef, Evicted, EvictionCause, LockedShard, MemoryEngine,
    Outgoing,
};
use crate::clock::{Clock, Millis, NEVER};
use crate::fates::{Departure, Fates};
use crate::flights::Flights;
use crate::freshness::{Freshness, Life, Windows};
use crate::hasher::hash_of;
use crate::policy::curve::MissRatioCurve;
use crate::policy::election::PolicyReport;
use crate::policy::{Kind, MARK_MAX, Node as _, Nodes as _, Policy, Queues};
use crate::stats::{Evictions, TierStats, looked_up};
use crate::tags::{Attributes, Standing, TagTable};

/// Shards for each core, so that writers seldom meet.
const SHARDS_PER_CORE: usize = 4;
/// A shard is not made smaller than this many entries: decisions among fewer are poor ones.
const SHARD_ENTRIES_MIN: usize = 32;
/// Of a shard's entries and weight, what may at most wait for readers before a writer waits too.
const LIMBO_SHARE: u64 = 8;
/// Entries for which memory is prepared at most; a cache that has more grows to them.
const ENTRIES_MAX: usize = 1 << 30;
/// Entries that one lock of a shard takes out at most, where a call takes out many.
const BATCH: usize = 256;
/// Look-ups of a batch whose cache lines are asked for before the first of them is read.
const AHEAD: usize = 16;
/// Nodes of the wheel that an insert looks at on its way, at most.
const EXPIRY_BUDGET: usize = 16;

/// The flags of a node.
mod flag {
    pub(super) const PINNED: u8 = 1;
    pub(super) const STORED_BELOW: u8 = 2;
    /// The entry has a deadline, or is watched for idleness: its use asks the clock.
    pub(super) const TIMED: u8 = 4;
    /// The entry has windows of its own, and so a record.
    pub(super) const WINDOWED: u8 = 8;
    /// The entry has a record.
    pub(super) const ATTRIBUTED: u8 = super::table::REPORTED;
}

/// The entries of a shard, and what belongs to them.
type ShardTable<K, V> = Table<K, V, Shard<K, V>>;

/// A shard: its table, and what some of its entries carry beside.
struct Partition<K, V> {
    table: ShardTable<K, V>,
    records: Records,
}

pub(super) struct Switchable<K, V, S> {
    shards: Box<[CachePadded<Partition<K, V>>]>,
    /// How far a hash is shifted, after one bit, to leave the number of its shard.
    shift: u32,
    hasher: S,
    locals: Locals,
    director: Director,
    fates: Fates,
    freshness: Freshness,
    clock: Clock,
    tags: Arc<TagTable>,
    /// Whether any entry ever had tags, and the time of the last sweep for those that are invalid.
    tagged: AtomicBool,
    swept_at: AtomicU64,
    idle: Option<Idle>,
    weighs: bool,
    capacity: AtomicU64,
    /// Entries for each unit of the capacity.
    entries_per_weight: f64,
    demote: Option<Demote<K, V>>,
    listened: bool,
    /// Whether any entry was ever given a deadline; until then nobody reads the clock for it.
    expires: AtomicBool,
}

/// What lives under the mutex of a shard, beside the table.
struct Shard<K, V> {
    queues: Queues,
    wheel: Wheel,
    flights: Flights<K, V>,
    capacity: u64,
    pinned_weight: u64,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    capacity: u64,
    expired: u64,
    removed: u64,
    too_large: u64,
    writes: u64,
}

/// A time-to-idle, and the unit of the stamps: fine enough that 32 bits outlast it by far.
#[derive(Debug, Clone, Copy)]
struct Idle {
    limit: Millis,
    tick: Millis,
}

impl Idle {
    fn new(limit: Millis) -> Self {
        Self { limit, tick: (limit >> 24).max(1) }
    }

    fn stamp(self, now: Millis) -> u32 {
        (now / self.tick) as u32
    }

    /// When an entry that was last touched at `stamp` will have been idle for too long.
    fn due(self, stamp: u32, now: Millis) -> Millis {
        let age = u64::from(self.stamp(now).wrapping_sub(stamp)) * self.tick;
        (now + self.limit).saturating_sub(age)
    }
}

/// A shard that is locked for writing.
pub(super) struct Locked<'a, K, V, S> {
    engine: &'a Switchable<K, V, S>,
    records: &'a Records,
    table: table::Locked<'a, K, V, Shard<K, V>>,
}

/// An entry on its way into a shard.
struct Arrival<K, V> {
    node: NewNode<K, V>,
    attributes: Option<Arc<Attributes>>,
}

impl<K: Hash + Eq + Clone, V: Clone, S: BuildHasher + Clone + 'static> Switchable<K, V, S> {
    pub(super) fn new(options: EngineOptions<K, V, S>) -> Self {
        let entries = options.estimated_entries.clamp(1, ENTRIES_MAX);
        let shards = shard_count(entries, options.capacity);
        let kind = options.policy.kind();
        let now = options.clock.now();
        let capacities = (0..shards).map(|at| share(options.capacity, at, shards));
        let tables = capacities.map(|capacity| {
            let entries = entries.div_ceil(shards);
            let state = Shard {
                queues: Queues::new(kind, capacity, entries),
                wheel: Wheel::new(now),
                flights: Flights::default(),
                capacity,
                pinned_weight: 0,
                tally: Tally::default(),
            };
            let options = TableOptions {
                expected_entries: entries,
                limbo: limbo_options(entries, capacity),
                idle_stamps: options.time_to_idle.is_some(),
            };
            let table = Table::new(options, state);
            CachePadded::new(Partition { table, records: Records::default() })
        });
        let locals = Locals::new();
        let capacity = options.capacity;
        let director = Director::new(options.policy, options.curve, capacity, entries as u64);
        director.begin(&locals);
        Self {
            shards: tables.collect(),
            shift: 63 - shards.ilog2(),
            hasher: options.hasher,
            locals,
            director,
            fates: Fates::new(entries as u64),
            freshness: options.freshness,
            clock: options.clock,
            tags: options.tags,
            tagged: AtomicBool::new(false),
            swept_at: AtomicU64::new(0),
            idle: options.time_to_idle.map(Idle::new),
            weighs: options.weighs,
            capacity: AtomicU64::new(capacity),
            entries_per_weight: options.estimated_entries as f64 / capacity.max(1) as f64,
            demote: options.demote,
            listened: options.listened,
            expires: AtomicBool::new(options.time_to_idle.is_some()),
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Partition<K, V> {
        &self.shards[(hash >> 1 >> self.shift) as usize]
    }

    /// Notes a use of an entry that the clock decides about, and tells whether it is alive.
    fn touch(&self, found: Found<'_, K, V>) -> bool {
        let now = self.clock.now();
        if found.deadline() <= now || self.is_idle(found.touched(), found.flags(), now) {
            return false;
        }
        if let (Some(idle), Some(touched)) = (self.idle, found.touched()) {
            let stamp = idle.stamp(now);
            if touched.load(Ordering::Relaxed) != stamp {
                touched.store(stamp, Ordering::Relaxed);
            }
        }
        true
    }

    fn is_dead(&self, records: &Records, found: &Found<'_, K, V>, now: Millis) -> bool {
        found.deadline() <= now
            || self.is_idle(found.touched(), found.flags(), now)
            || self.is_invalid(records, found)
    }

    /// Whether a tag of the entry was invalidated after its value was made.
    fn is_invalid(&self, records: &Records, found: &Found<'_, K, V>) -> bool {
        self.standing(records, found, found.flags()) == Standing::Invalid
    }

    /// What the tags of the entry say now.
    #[inline]
    fn standing(&self, records: &Records, found: &Found<'_, K, V>, flags: u8) -> Standing {
        if flags & flag::ATTRIBUTED == 0 {
            return Standing::Good;
        }
        records.standing(found.index(), &self.tags)
    }

    /// What decides about the life of an entry.
    fn life(&self, records: &Records, found: &Found<'_, K, V>, standing: Standing) -> Life {
        let windowed = found.flags() & flag::WINDOWED != 0;
        let windows = if windowed { records.windows(found.index()) } else { Windows::default() };
        Life { deadline: found.deadline(), stale: standing == Standing::Stale, windows }
    }

    /// The value of an entry that is alive and in this standing, if it is fresh.
    #[inline]
    fn fresh_value(
        &self,
        records: &Records,
        found: &Found<'_, K, V>,
        standing: Standing,
    ) -> Option<V> {
        let fresh = standing == Standing::Good
            && (found.flags() & flag::WINDOWED == 0 || self.is_fresh(records, found));
        fresh.then(|| found.value().clone())
    }

    #[inline(never)]
    fn is_fresh(&self, records: &Records, found: &Found<'_, K, V>) -> bool {
        self.freshness.is_fresh(&self.life(records, found, Standing::Good), self.clock.now())
    }

    fn is_idle(&self, touched: Option<&crate::sync::AtomicU32>, flags: u8, now: Millis) -> bool {
        match (self.idle, touched) {
            (Some(idle), Some(touched)) if flags & flag::PINNED == 0 => {
                idle.due(touched.load(Ordering::Relaxed), now) <= now
            }
            _ => false,
        }
    }

    /// One look-up of a batch or alone. An entry that `take` does not want is a miss and stays.
    #[inline(always)]
    fn look_up<Q, T>(
        &self,
        guard: &Guard,
        hash: u64,
        key: &Q,
        counted: bool,
        take: impl FnOnce(&Records, &Found<'_, K, V>, Standing) -> Option<T>,
    ) -> Option<T>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let thread = guard.thread();
        let Partition { table, records } = self.shard(hash);
        let found = table.find(guard, hash as u32, key);
        let mut expired = None;
        if let Some(found) = found
            && let flags = found.flags()
            && (flags & flag::TIMED == 0 || self.touch(found))
            && let standing = self.standing(records, &found, flags)
            && standing != Standing::Invalid
        {
            if let Some(taken) = take(records, &found, standing) {
                found.raise_mark(MARK_MAX);
                if counted {
                    looked_up(true);
                    self.locals.hit(thread);
                    if self.locals.sampled(hash) && self.locals.sample(thread, hash, found.weight())
                    {
                        self.consult(thread);
                    }
                }
                return Some(taken);
            }
            // Not fresh any more, and kept for those who take it all the same.
            expired = (standing == Standing::Good).then_some(NEVER);
        } else if let Some(found) = found {
            expired = Some(found.deadline()).filter(|deadline| *deadline <= self.clock.now());
            self.bury(hash, key);
        }
        if counted {
            looked_up(false);
            if self.fates.watches(hash as u32) {
                self.fates.missed(hash as u32, expired, self.clock.now());
            }
            if self.locals.miss(thread) {
                self.consult(thread);
            }
        }
        None
    }

    /// Takes out an entry that a look-up found dead, unless it has come alive since.
    #[cold]
    fn bury<Q>(&self, hash: u64, key: &Q)
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        // Nobody is told here: this may be a reader in the middle of a batch. The sweep is.
        if self.listened {
            return;
        }
        let mut out = Outgoing::default();
        let mut locked = self.lock(hash);
        if let Some(index) = locked.table.find(hash as u32, key)
            && locked.is_dead(index, self.clock.now())
        {
            let cause = locked.cause_of_death(index);
            locked.take_out(index, cause, &mut out);
        }
        drop(locked);
    }

    /// Feeds this thread's samples to the election, and does what it decides. No lock is held by who
    /// calls; a pin does no harm, nobody who holds a lock waits for it.
    #[cold]
    fn consult(&self, thread: usize) {
        self.director.consult(&self.locals, thread, |kind| self.switch(kind));
    }

    /// What is due after a write of this key, once its shard is unlocked.
    #[inline]
    pub(super) fn after_write(&self, hash: u64, weight: Option<u32>, over: bool) {
        if over {
            self.shard(hash).table.settle(&mut Vec::new());
        }
        if let Some(weight) = weight
            && self.locals.sampled(hash)
        {
            self.sample_write(hash, weight);
        }
    }

    #[inline(never)]
    fn sample_write(&self, hash: u64, weight: u32) {
        // The number is this thread's own for as long as it lives, beyond the pin.
        let thread = epoch::pin().thread();
        if self.locals.sample(thread, hash, weight) {
            self.consult(thread);
        }
    }

    fn lock_partition<'a>(&'a self, partition: &'a Partition<K, V>) -> Locked<'a, K, V, S> {
        Locked { engine: self, records: &partition.records, table: partition.table.lock() }
    }

    /// Whether an entry can be dead and still be in the table.
    fn some_die(&self) -> bool {
        self.expires.load(Ordering::Relaxed) || self.tagged.load(Ordering::Relaxed)
    }

    /// Takes out what tags have made invalid since the last time, and tells how much that was.
    fn remove_invalid(&self, settle: &mut impl FnMut(Outgoing<K, V>)) -> u64 {
        let now = self.tags.now();
        if !self.tagged.load(Ordering::Relaxed) || self.swept_at.swap(now, Ordering::Relaxed) == now
        {
            return 0;
        }
        self.take_out_where(EvictionCause::Invalidated, settle, |records, found| {
            self.is_invalid(records, found)
        })
    }

    fn take_out_where(
        &self,
        cause: EvictionCause,
        settle: &mut impl FnMut(Outgoing<K, V>),
        wanted: impl Fn(&Records, &Found<'_, K, V>) -> bool,
    ) -> u64 {
        let mut removed = 0;
        for partition in &self.shards {
            let mut from = Some(0);
            while let Some(first) = from {
                let mut out = Outgoing::default();
                let mut locked = self.lock_partition(partition);
                let (taken, next) = locked.take_some(first, cause, &mut out, &wanted);
                drop(locked);
                settle(out);
                removed += taken;
                from = next;
            }
        }
        removed
    }

    fn switch(&self, kind: Kind) {
        for partition in &self.shards {
            let mut locked = partition.table.lock();
            let (_, shard) = locked.split();
            shard.queues.switch(kind);
        }
    }

    pub(super) fn policy(&self) -> Policy {
        self.director.policy()
    }

    pub(super) fn set_policy(&self, policy: Policy) {
        // Under the director's lock, so that of two calls the later one decides for all shards.
        self.director.set_policy(policy, &self.locals, |kind| self.switch(kind));
    }

    pub(super) fn policy_report(&self) -> PolicyReport {
        self.director.report()
    }

    pub(super) fn miss_ratio_curve(&self) -> Option<MissRatioCurve> {
        self.director.curve()
    }

    pub(super) fn set_pinned(&self, key: &K, pinned: bool) -> bool {
        let hash = hash_of(&self.hasher, key);
        let mut locked = self.lock(hash);
        let Some(index) = locked.table.find(hash as u32, key) else { return false };
        let now = if self.expires.load(Ordering::Relaxed) { self.clock.now() } else { 0 };
        if self.some_die() && locked.is_dead(index, now) {
            return false;
        }
        let (nodes, shard) = locked.table.split();
        let flags = nodes.flags(index);
        let weight = u64::from(nodes.at(index).weight());
        let was_pinned = flags & flag::PINNED != 0;
        match (was_pinned, pinned) {
            (false, true) => {
                if shard.pinned_weight + weight > shard.capacity / 2 {
                    return false;
                }
                shard.queues.unlink(&nodes, index);
                shard.pinned_weight += weight;
                locked.table.set_flags(index, flags | flag::PINNED);
                true
            }
            (true, false) => {
                shard.pinned_weight -= weight;
                let placement = shard.queues.arrive(hash as u32, weight as u32);
                shard.queues.link(&nodes, index, placement);
                let deadline = nodes.deadline(index);
                locked.table.set_flags(index, flags & !flag::PINNED);
                locked.schedule(index, deadline, now);
                true
            }
            _ => was_pinned,
        }
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
        Box::new(self.shards.iter().flat_map(move |partition| {
            let Partition { table, records } = &**partition;
            let now = self.clock.now();
            let mut taken = Vec::new();
            let guard = epoch::pin();
            table.for_each(&guard, |found| {
                if !self.is_dead(records, &found, now) {
                    taken.push(take(found.key(), entry_ref(records, &found)));
                }
            });
            drop(guard);
            taken
        }))
    }
}

/// The shards of a cache: a power of two.
fn shard_count(entries: usize, capacity: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fewest = usize::try_from(capacity).unwrap_or(usize::MAX).min(entries);
    let wanted = (SHARDS_PER_CORE * cores).next_power_of_two();
    let possible = (fewest / SHARD_ENTRIES_MIN).max(1);
    // A shard names its nodes by 24 bits, those in limbo included.
    let needed = (entries / (table::MAX_NODES as usize / 2)).max(1).next_power_of_two();
    wanted.min(1 << possible.ilog2()).max(needed)
}

/// What of `total` falls to one of `shards`.
fn share(total: u64, at: usize, shards: usize) -> u64 {
    total / shards as u64 + u64::from((at as u64) < total % shards as u64)
}

fn limbo_options(entries: usize, capacity: u64) -> LimboOptions {
    let of_weight = |share: u64| (capacity / share).max(1);
    LimboOptions {
        batch_entries: (entries / 64).clamp(1, 64),
        batch_weight: of_weight(64),
        max_entries: (entries / LIMBO_SHARE as usize).max(8),
        max_weight: of_weight(LIMBO_SHARE),
    }
}

impl<K, V, S> MemoryEngine<K, V> for Switchable<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    type Locked<'a>
        = Locked<'a, K, V, S>
    where
        Self: 'a;

    #[inline]
    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        hash_of(&self.hasher, key)
    }

    #[inline(always)]
    fn get<Q>(&self, key: &Q, counted: bool) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = hash_of(&self.hasher, key);
        self.look_up(&epoch::pin(), hash, key, counted, |records, found, standing| {
            self.fresh_value(records, found, standing)
        })
    }

    fn read<Q>(&self, key: &Q, counted: bool, wanted: impl Fn(&Life) -> bool) -> Option<(V, Life)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = hash_of(&self.hasher, key);
        let take = |records: &Records, found: &Found<'_, K, V>, standing| {
            let life = self.life(records, found, standing);
            wanted(&life).then(|| (found.value().clone(), life))
        };
        self.look_up(&epoch::pin(), hash, key, counted, take)
    }

    fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        let mut values = Vec::with_capacity(keys.len());
        let guard = epoch::pin();
        for keys in keys.chunks(AHEAD) {
            let mut hashes = [0; AHEAD];
            for (key, hash) in keys.iter().zip(&mut hashes) {
                *hash = hash_of(&self.hasher, key);
                self.shard(*hash).table.prefetch(*hash as u32);
            }
            for (key, hash) in keys.iter().zip(hashes) {
                values.push(self.look_up(&guard, hash, key, true, |records, found, standing| {
                    self.fresh_value(records, found, standing)
                }));
            }
        }
        values
    }

    #[inline]
    fn lock(&self, hash: u64) -> Locked<'_, K, V, S> {
        let partition = self.shard(hash);
        partition.table.prefetch(hash as u32);
        self.lock_partition(partition)
    }

    fn for_each_flights(&self, mut each: impl FnMut(&mut Flights<K, V>)) {
        for partition in &self.shards {
            each(&mut partition.table.lock().state().flights);
        }
    }

    #[inline]
    fn max_weight(&self) -> u32 {
        let shards = self.shards.len() as u64;
        let share = self.capacity.load(Ordering::Relaxed).div_ceil(shards);
        // One less than what a weight saturates at, so that such an entry is refused.
        u32::try_from(share).unwrap_or(u32::MAX).min(u32::MAX - 1)
    }

    fn expect_expiry(&self) {
        if !self.expires.load(Ordering::Relaxed) {
            // Relaxed: whoever misses it looks at the wheel the next time.
            self.expires.store(true, Ordering::Relaxed);
        }
    }

    fn clear(&self, mut settle: impl FnMut(Outgoing<K, V>)) {
        self.take_out_where(EvictionCause::Removed, &mut settle, |_, _| true);
    }

    fn remove_expired(&self, mut settle: impl FnMut(Outgoing<K, V>)) -> u64 {
        let mut removed = self.remove_invalid(&mut settle);
        if !self.expires.load(Ordering::Relaxed) {
            return removed;
        }
        let now = self.clock.now();
        for partition in &self.shards {
            let mut closely = true;
            loop {
                let mut out = Outgoing::default();
                let mut locked = self.lock_partition(partition);
                if std::mem::take(&mut closely) {
                    locked.table.split().1.wheel.look_closely(now);
                }
                let mut budget = BATCH;
                removed += locked.expire(now, &mut budget, &mut out);
                locked.reclaim_now(&mut out);
                drop(locked);
                settle(out);
                if budget > 0 {
                    break;
                }
            }
        }
        removed
    }

    fn resize(&self, capacity: u64, mut settle: impl FnMut(Outgoing<K, V>)) {
        let shards = self.shards.len();
        self.capacity.store(capacity, Ordering::Relaxed);
        // Read again under each lock: of two calls at once, whichever comes second to a shard sees what
        // the later one stored, so all shards end at the same capacity.
        let wanted = || {
            let capacity = self.capacity.load(Ordering::Relaxed);
            let entries = (capacity as f64 * self.entries_per_weight).ceil() as usize;
            (capacity, entries.min(ENTRIES_MAX))
        };
        self.director.resize(wanted, &self.locals);
        self.fates.resize(wanted().1 as u64);
        for (at, partition) in self.shards.iter().enumerate() {
            loop {
                let mut out = Outgoing::default();
                let mut locked = self.lock_partition(partition);
                let (capacity, entries) = wanted();
                let entries = entries.div_ceil(shards).min(table::MAX_NODES as usize);
                let done = locked.resize_some(share(capacity, at, shards), entries, &mut out);
                drop(locked);
                settle(out);
                if done {
                    break;
                }
            }
        }
    }

    fn evict(
        &self,
        weight: u64,
        go_on: impl Fn() -> bool,
        mut settle: impl FnMut(Outgoing<K, V>),
    ) -> Evicted {
        let weights: Vec<u64> =
            self.shards.iter().map(|it| it.table.lock().split().1.queues.weight()).collect();
        let all = weights.iter().map(|it| u128::from(*it)).sum::<u128>().max(1);
        let mut evicted = Evicted::default();
        for (partition, held) in self.shards.iter().zip(weights) {
            // Each shard gives the same part of what it has.
            let part = (u128::from(weight) * u128::from(held)).div_ceil(all);
            let mut wanted = u64::try_from(part).unwrap_or(u64::MAX).min(held);
            while wanted > 0 && evicted.weight < weight && go_on() {
                let mut out = Outgoing::default();
                let mut locked = self.lock_partition(partition);
                let some = locked.evict_some(wanted, &mut out);
                drop(locked);
                settle(out);
                evicted.weight += some.weight;
                evicted.entries += some.entries;
                wanted = if some.entries == 0 { 0 } else { wanted.saturating_sub(some.weight) };
            }
        }
        evicted
    }

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    #[inline]
    fn fates(&self) -> Option<&Fates> {
        Some(&self.fates)
    }

    fn stats(&self) -> TierStats {
        let counts = self.locals.counts();
        let mut stats = TierStats {
            hits: counts.hits,
            misses: counts.misses,
            capacity: self.capacity.load(Ordering::Relaxed),
            ..TierStats::default()
        };
        for partition in &self.shards {
            let mut locked = partition.table.lock();
            stats.entries += locked.len() as u64;
            let (_, shard) = locked.split();
            if self.weighs {
                stats.bytes += shard.queues.weight() + shard.pinned_weight;
            }
            let Evictions { capacity, expired, removed, too_large } = &mut stats.evictions;
            *capacity += shard.tally.capacity;
            *expired += shard.tally.expired;
            *removed += shard.tally.removed;
            *too_large += shard.tally.too_large;
            stats.writes += shard.tally.writes;
        }
        stats
    }
}

fn entry_ref<'g, K, V>(records: &Records, found: &Found<'g, K, V>) -> EntryRef<'g, V> {
    let attributed = found.flags() & flag::ATTRIBUTED != 0;
    EntryRef {
        value: found.value(),
        expires_at: found.deadline(),
        weight: found.weight(),
        stored_below: found.flags() & flag::STORED_BELOW != 0,
        attributes: if attributed { records.attributes(found.index()) } else { None },
    }
}

impl<K: Hash + Eq + Clone, V: Clone, S: BuildHasher + Clone + 'static> Locked<'_, K, V, S> {
    /// Whether an entry is past its deadline or idle for too long.
    fn is_dead(&self, index: u32, now: Millis) -> bool {
        self.table.get(index).is_some_and(|found| self.engine.is_dead(self.records, &found, now))
    }

    /// What a dead entry died of.
    fn cause_of_death(&self, index: u32) -> EvictionCause {
        let found = self.table.get(index);
        let invalid = found.is_some_and(|found| self.engine.is_invalid(self.records, &found));
        if invalid { EvictionCause::Invalidated } else { EvictionCause::Expired }
    }

    /// Moves out what no reader can hold any more, once a batch of it is there.
    #[inline]
    fn reclaim(&mut self, out: &mut Outgoing<K, V>) {
        self.table.reclaim(&mut out.reclaimed);
        self.empty_records();
    }

    /// As [`reclaim`](Self::reclaim), without waiting for a batch.
    fn reclaim_now(&mut self, out: &mut Outgoing<K, V>) {
        self.table.reclaim_now(&mut out.reclaimed);
        self.empty_records();
    }

    /// Empties the records of nodes that are free; before one of them is used again.
    #[inline]
    fn empty_records(&mut self) {
        for index in self.table.take_released() {
            self.records.clear(index);
        }
    }

    /// Takes an entry out of the queues, then of everything else.
    fn take_out(&mut self, index: u32, cause: EvictionCause, out: &mut Outgoing<K, V>) {
        self.unlink(index);
        self.leave(index, cause, out);
    }

    /// Takes an entry out of the queues, or of the pinned ones.
    fn unlink(&mut self, index: u32) {
        let (nodes, shard) = self.table.split();
        if nodes.flags(index) & flag::PINNED == 0 {
            shard.queues.unlink(&nodes, index);
        } else {
            shard.pinned_weight -= u64::from(nodes.at(index).weight());
        }
    }

    /// Ends the life of an entry that is in no queue any more.
    #[inline]
    fn leave(&mut self, index: u32, cause: EvictionCause, out: &mut Outgoing<K, V>) {
        let engine = self.engine;
        let (nodes, _) = self.table.split();
        if engine.fates.watches(nodes.at(index).hash()) {
            self.note_departure(index, cause);
        }
        let shard = self.table.state();
        shard.wheel.cancel(index);
        match cause {
            EvictionCause::Capacity => shard.tally.capacity += 1,
            EvictionCause::Expired => shard.tally.expired += 1,
            EvictionCause::Removed | EvictionCause::Invalidated => shard.tally.removed += 1,
            EvictionCause::Replaced | EvictionCause::TooLarge => {}
        }
        if engine.listened || (engine.demote.is_some() && cause == EvictionCause::Capacity) {
            self.tell(index, cause, out);
        } else {
            self.table.retire(index);
        }
    }

    /// Remembers why a watched key leaves.
    #[cold]
    fn note_departure(&mut self, index: u32, cause: EvictionCause) {
        let (nodes, _) = self.table.split();
        let departure = departure(cause, nodes.deadline(index), self.engine.clock.now());
        self.engine.fates.left(nodes.at(index).hash(), departure);
    }

    /// Retires an entry of which somebody has to hear.
    #[inline(never)]
    fn tell(&mut self, index: u32, cause: EvictionCause, out: &mut Outgoing<K, V>) {
        let engine = self.engine;
        let told = catch_unwind(AssertUnwindSafe(|| {
            let Some(found) = self.table.get(index) else { return };
            if let Some(demote) = &engine.demote
                && cause == EvictionCause::Capacity
            {
                demote(found.key(), entry_ref(self.records, &found), &mut out.writes);
            }
            if engine.listened {
                out.push(found.key().clone(), entry_of(self.records, &found), cause);
            }
        }));
        self.table.retire(index);
        if let Err(panic) = told {
            resume_unwind(panic);
        }
    }

    /// Whether the shard has room for `weight` more, with as much as `freed` of it gone.
    #[inline]
    fn has_room(&mut self, weight: u64, freed: u64) -> bool {
        let shard = self.table.state();
        shard.queues.weight() + shard.pinned_weight - freed + weight <= shard.capacity
    }

    /// Evicts until the shard has room for `weight` more.
    #[inline]
    fn make_room(&mut self, weight: u64, out: &mut Outgoing<K, V>) {
        while !self.has_room(weight, 0) {
            let (nodes, shard) = self.table.split();
            let Some(victim) = shard.queues.evict(&nodes) else { return };
            self.leave(victim, EvictionCause::Capacity, out);
            self.table.expect_after(victim);
        }
    }

    /// Evicts until the shard has room for `weight` in place of `old`, and tells whether that is still
    /// there: it may be a victim itself.
    fn make_room_beside(&mut self, weight: u64, old: u32, out: &mut Outgoing<K, V>) -> bool {
        let freed = u64::from(self.table.split().0.at(old).weight());
        while !self.has_room(weight, freed) {
            let (nodes, shard) = self.table.split();
            let Some(victim) = shard.queues.evict(&nodes) else { return true };
            if victim == old {
                self.leave(victim, EvictionCause::Replaced, out);
                return false;
            }
            self.leave(victim, EvictionCause::Capacity, out);
        }
        true
    }

    /// Takes out entries that are due, looking at no more than `budget` of them.
    fn expire(&mut self, now: Millis, budget: &mut usize, out: &mut Outgoing<K, V>) -> u64 {
        let mut removed = 0;
        loop {
            let idle = self.engine.idle;
            let (nodes, shard) = self.table.split();
            let due = |index| {
                let deadline = nodes.deadline(index);
                match (idle, nodes.touched(index)) {
                    (Some(idle), Some(touched)) if nodes.flags(index) & flag::PINNED == 0 => {
                        deadline.min(idle.due(touched.load(Ordering::Relaxed), now))
                    }
                    _ => deadline,
                }
            };
            let Some(index) = shard.wheel.pop(now, budget, due) else { return removed };
            self.take_out(index, EvictionCause::Expired, out);
            removed += 1;
        }
    }

    /// Puts a node in that was linked nowhere yet: its stamps and its place in the wheel.
    #[inline]
    fn schedule(&mut self, index: u32, deadline: Millis, now: Millis) {
        let mut due = deadline;
        if let Some(idle) = self.engine.idle {
            due = due.min(now + idle.limit);
            if let Some(touched) = self.table.get(index).and_then(|found| found.touched()) {
                touched.store(idle.stamp(now), Ordering::Relaxed);
            }
        }
        if due != NEVER {
            self.table.state().wheel.schedule(index, due);
        }
    }

    /// Puts in an entry whose key is not here.
    #[inline]
    fn add(&mut self, new: Arrival<K, V>, now: Millis, out: &mut Outgoing<K, V>) {
        let Arrival { node: new, attributes } = new;
        let NewNode { hash, weight, deadline, .. } = new;
        let placement = self.table.state().queues.arrive(hash, weight);
        self.make_room(u64::from(weight), out);
        let (records, kept) = (self.records, attributes.clone());
        match self.table.insert(new, |index| records.set_some(index, kept)) {
            Ok(index) => {
                let (nodes, shard) = self.table.split();
                shard.queues.link(&nodes, index, placement);
                shard.tally.writes += 1;
                self.schedule(index, deadline, now);
            }
            Err(new) => self.turn_away(Arrival { node: new, attributes }, out),
        }
    }

    #[inline(never)]
    fn add_anew(&mut self, new: Arrival<K, V>, now: Millis, out: &mut Outgoing<K, V>) {
        self.add(new, now, out);
    }

    /// Puts a newer value in the place of an older one.
    #[inline(never)]
    fn replace(&mut self, old: u32, new: Arrival<K, V>, now: Millis, out: &mut Outgoing<K, V>) {
        let (nodes, shard) = self.table.split();
        let was_pinned = nodes.flags(old) & flag::PINNED != 0;
        let lighter = u64::from(nodes.at(old).weight());
        let weight = u64::from(new.node.weight);
        // A newer value that is no heavier never loses the pin, not even after the shard has shrunk.
        let stays_pinned = was_pinned
            && (weight <= lighter || shard.pinned_weight - lighter + weight <= shard.capacity / 2);
        if was_pinned && !stays_pinned {
            self.take_out(old, EvictionCause::Replaced, out);
            return self.add_anew(new, now, out);
        }
        if !self.make_room_beside(weight, old, out) {
            return self.add_anew(new, now, out);
        }
        if self.engine.listened {
            let found = self.table.get(old).expect("make_room spared it");
            let entry = entry_of(self.records, &found);
            out.push(found.key().clone(), entry, EvictionCause::Replaced);
        }
        let Arrival { node: new, attributes } = new;
        let (deadline, pinned) = (new.deadline, if stays_pinned { flag::PINNED } else { 0 });
        let new = NewNode { flags: new.flags | pinned, ..new };
        let (records, kept) = (self.records, attributes.clone());
        match self.table.replace(old, new, |index| records.set_some(index, kept)) {
            Ok(index) => {
                let (nodes, shard) = self.table.split();
                if stays_pinned {
                    shard.pinned_weight = shard.pinned_weight - lighter + weight;
                } else {
                    shard.queues.replace(&nodes, old, index);
                }
                shard.wheel.cancel(old);
                shard.tally.writes += 1;
                self.schedule(index, deadline, now);
            }
            Err(new) => {
                self.take_out(old, EvictionCause::Replaced, out);
                self.turn_away(Arrival { node: new, attributes }, out);
            }
        }
    }

    /// Gives back an entry for which the shard has no node left.
    #[cold]
    fn turn_away(&mut self, new: Arrival<K, V>, out: &mut Outgoing<K, V>) {
        let Arrival { node: new, attributes } = new;
        self.table.state().tally.capacity += 1;
        let entry = Entry {
            value: new.value,
            expires_at: new.deadline,
            weight: new.weight,
            stored_below: new.flags & flag::STORED_BELOW != 0,
            attributes,
        };
        out.push(new.key, entry, EvictionCause::Capacity);
    }

    /// Takes out some entries from node `from` on that are `wanted` out; tells how many, and from which to
    /// go on, `None` at the end.
    fn take_some(
        &mut self,
        from: u32,
        cause: EvictionCause,
        out: &mut Outgoing<K, V>,
        wanted: impl Fn(&Records, &Found<'_, K, V>) -> bool,
    ) -> (u64, Option<u32>) {
        let end = self.table.made().min(from.saturating_add(BATCH as u32));
        let mut taken = 0;
        for index in from..end {
            if self.table.get(index).is_some_and(|found| wanted(self.records, &found)) {
                self.take_out(index, cause, out);
                taken += 1;
            }
        }
        self.reclaim_now(out);
        (taken, (end < self.table.made()).then_some(end))
    }

    /// Brings the shard some entries closer to a capacity, and tells whether it is there.
    fn resize_some(&mut self, target: u64, entries: usize, out: &mut Outgoing<K, V>) -> bool {
        for _ in 0..BATCH {
            let (nodes, shard) = self.table.split();
            if shard.queues.weight() + shard.pinned_weight <= target {
                shard.capacity = target;
                shard.queues.set_capacity(target, entries);
                self.table.resize(entries, limbo_options(entries, target));
                let made = self.table.made();
                self.table.state().wheel.shrink(made);
                self.reclaim_now(out);
                return true;
            }
            // The last to go are the pinned ones, in no order.
            let victim = shard.queues.evict(&nodes);
            let Some(victim) = victim.or_else(|| self.any_pinned()) else { return true };
            if self.table.split().0.flags(victim) & flag::PINNED != 0 {
                self.unlink(victim);
            }
            self.leave(victim, EvictionCause::Capacity, out);
        }
        let (_, shard) = self.table.split();
        shard.capacity = shard.capacity.min(shard.queues.weight() + shard.pinned_weight);
        self.reclaim_now(out);
        false
    }

    /// Evicts some entries, until they weigh as much as is wanted, and tells what that was.
    fn evict_some(&mut self, wanted: u64, out: &mut Outgoing<K, V>) -> Evicted {
        let mut evicted = Evicted::default();
        let (_, shard) = self.table.split();
        let left = shard.queues.weight().saturating_sub(wanted).max(1);
        shard.queues.rebound(left);
        while evicted.weight < wanted && evicted.entries < BATCH as u64 {
            let (nodes, shard) = self.table.split();
            let Some(victim) = shard.queues.evict(&nodes) else { break };
            evicted.weight += u64::from(nodes.at(victim).weight());
            evicted.entries += 1;
            self.leave(victim, EvictionCause::Capacity, out);
        }
        // A user's panic above leaves this out; the next call or resize makes up for it.
        let shard = self.table.state();
        shard.queues.rebound(shard.capacity);
        self.reclaim_now(out);
        evicted
    }

    fn any_pinned(&self) -> Option<u32> {
        (0..self.table.made())
            .find(|index| self.table.get(*index).is_some_and(|it| it.flags() & flag::PINNED != 0))
    }
}

impl<K, V, S> LockedShard<K, V> for Locked<'_, K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    fn flights(&mut self) -> &mut Flights<K, V> {
        &mut self.table.state().flights
    }

    #[inline]
    fn insert(&mut self, hash: u64, key: K, entry: Entry<V>, out: &mut Outgoing<K, V>) {
        let engine = self.engine;
        self.empty_records();
        let mut now = 0;
        if engine.expires.load(Ordering::Relaxed) {
            now = engine.clock.now();
            if self.table.state().wheel.is_due(now) {
                self.expire(now, &mut EXPIRY_BUDGET.clone(), out);
            }
        }
        let old = self.table.find(hash as u32, &key);
        let (nodes, shard) = self.table.split();
        let pinned = match old {
            Some(old) if nodes.flags(old) & flag::PINNED != 0 => {
                shard.pinned_weight - u64::from(nodes.at(old).weight())
            }
            _ => shard.pinned_weight,
        };
        if u64::from(entry.weight) + pinned > shard.capacity || entry.weight == u32::MAX {
            shard.tally.too_large += 1;
            if let Some(old) = old {
                self.take_out(old, EvictionCause::Replaced, out);
            }
            out.push(key, entry, EvictionCause::TooLarge);
        } else {
            let Entry { value, expires_at, weight, stored_below, attributes } = entry;
            let mut flags = if stored_below { flag::STORED_BELOW } else { 0 };
            if let Some(attributes) = &attributes {
                flags |= flag::ATTRIBUTED;
                if attributes.windows != Windows::default() {
                    flags |= flag::WINDOWED;
                }
                engine.tagged.store(true, Ordering::Relaxed);
            }
            if expires_at != NEVER || engine.idle.is_some() {
                flags |= flag::TIMED;
            }
            let hash = hash as u32;
            let node = NewNode { key, value, hash, weight, deadline: expires_at, flags };
            let new = Arrival { node, attributes };
            match old {
                Some(old) => self.replace(old, new, now, out),
                None => self.add(new, now, out),
            }
        }
        self.reclaim(out);
    }

    fn remove(&mut self, hash: u64, key: &K, out: &mut Outgoing<K, V>) {
        let Some(index) = self.table.find(hash as u32, key) else { return };
        let engine = self.engine;
        let dead = engine.some_die() && self.is_dead(index, engine.clock.now());
        let cause = if dead { self.cause_of_death(index) } else { EvictionCause::Removed };
        self.take_out(index, cause, out);
        self.reclaim_now(out);
    }

    fn entry_of(&self, hash: u64, key: &K) -> Option<Entry<V>> {
        let index = self.table.find(hash as u32, key)?;
        let found = self.table.get(index)?;
        let engine = self.engine;
        let dead = engine.some_die() && engine.is_dead(self.records, &found, engine.clock.now());
        (!dead).then(|| entry_of(self.records, &found))
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.table.is_over()
    }
}

/// What is remembered of an entry with this deadline that leaves.
fn departure(cause: EvictionCause, deadline: Millis, now: Millis) -> Departure {
    match cause {
        EvictionCause::Capacity => Departure::Evicted,
        // One that was idle for too long is not past its deadline.
        EvictionCause::Expired if deadline <= now => Departure::Expired(deadline),
        _ => Departure::Other,
    }
}

fn entry_of<K, V: Clone>(records: &Records, found: &Found<'_, K, V>) -> Entry<V> {
    let EntryRef { value, expires_at, weight, stored_below, attributes } =
        entry_ref(records, found);
    Entry { value: value.clone(), expires_at, weight, stored_below, attributes }
}
