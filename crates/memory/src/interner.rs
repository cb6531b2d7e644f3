//! Interning: one copy of each string, so that a million occurrences cost a million small handles.
//!
//! Two types, chosen by what happens to strings that nobody uses any more:
//!
//! - [`Symbol`], four bytes and `Copy`, from a [`SymbolTable`]: for closed vocabularies (metric names,
//!   routes, tenants). Nothing is ever removed, so the table has a hard cap and an error at it.
//! - [`IStr`], eight bytes and counted, from an [`Interner`]: for strings that come and go. A string
//!   without handles is taken out by [`Interner::sweep`] or [`Interner::reclaim`].
//!
//! Interning saves memory and makes equality one comparison. It does not save CPU time: making a short
//! `String` costs less than most lookups.
//!
//! # How `IStr` avoids shared writes
//!
//! The tables are sharded and behind read-write locks, and a handle is a reference count; both words
//! would travel between cores at each use. So each thread has a direct-mapped *front cache* of strings
//! it saw, and each of its slots owns a [`Stock`]: some references, bought in one addition. While a
//! slot holds the string, interning it takes a reference out of the slot, dropping a handle puts it
//! back, and cloning takes another: nothing shared is written (weighted reference counting; Bevan
//! 1987). Only the owner of a front cache uses it, through a [`TryCell`], so that `sweep` can take
//! back the stock of strings that a thread no longer asks for, also of a thread that sleeps.
//!
//! # Who may remove a string
//!
//! A reference comes from another reference, or from the table under its shard's lock. The sweep holds
//! that lock exclusively; if it then sees one reference, that is the table's own, nobody can make a
//! second, and the string goes (`loom_a_sweep_takes_no_string_in_use`).

mod front;
mod istr;
#[cfg(all(test, loom))]
mod loom_tests;
mod settings;
mod symbol;
#[cfg(all(test, not(loom)))]
mod tests;

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
#[cfg(loom)]
use foldhash::fast::FixedState as RandomState;
#[cfg(not(loom))]
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parking_lot::RwLock;

use crate::raw::{Stock, Text};
use crate::reclaim::{Cost, ReclaimRequest, Reclaimer};
use crate::sync::{AtomicU64, Mutex, Relaxed};
use front::FrontCache;

pub(crate) use front::put;
pub use istr::IStr;
pub use settings::{InternerBuilder, InternerError, InternerProblem};
pub use symbol::{Symbol, SymbolError, SymbolTable, SymbolTableStats};

/// Tables of one interner; each has a lock of its own.
const SHARDS: usize = 64;
/// Buckets that a sweep looks at under one lock.
const LOCK_STEP: usize = 256;
/// Strings up to which `reclaimable_bytes` looks at all of them.
const EXACT_UP_TO: u64 = 65_536;
/// Of larger interners it looks at one shard in so many.
const SHARD_SAMPLE: usize = 16;

/// Keeps one copy of each string in use, shared by all its handles.
///
/// The handle is cheap to clone; clones share one table. Strings outlive the interner while handles
/// to them do.
///
/// # Examples
///
/// ```
/// use memory::Interner;
///
/// let interner = Interner::builder().strings_max(100_000).build()?;
/// let one = interner.intern("GET /users");
/// let two = interner.intern("GET /users");
/// assert_eq!(one, two);
/// assert_eq!(one.as_ptr(), two.as_ptr(), "one copy");
/// # Ok::<_, memory::InternerError>(())
/// ```
#[derive(Clone)]
pub struct Interner {
    shared: Arc<Shared>,
}

struct Shared {
    /// Tells the front caches of a thread apart; a handle carries it to find its own.
    id: u32,
    hasher: RandomState,
    settings: Settings,
    shards: Box<[CachePadded<RwLock<Shard>>]>,
    /// The front caches of all threads; a thread that ends drops its own.
    fronts: Mutex<Vec<Weak<FrontCache>>>,
    cursor: Mutex<Cursor>,
    strings: AtomicU64,
    bytes: AtomicU64,
    totals: Arc<Totals>,
    since: Instant,
}

/// The checked settings.
#[derive(Clone, Copy, Debug)]
struct Settings {
    strings_max: u64,
    bytes_max: u64,
    text_bytes_max: usize,
    front_cache: usize,
    idle: Duration,
    sweep_step: usize,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Text>,
}

/// Counts that front caches fold in when their thread ends, and those of the table itself.
#[derive(Debug, Default)]
struct Totals {
    front_hits: AtomicU64,
    table_hits: AtomicU64,
    refused: AtomicU64,
    removed: AtomicU64,
}

/// Where the next step of the sweep goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Whether the front caches have been visited in this pass.
    fronts: bool,
    shard: usize,
    bucket: usize,
}

/// What an interner holds and did, from [`Interner::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternerStats {
    /// Distinct strings in the table.
    pub strings: u64,
    /// Bytes they take, with 32 bytes of header each and without the table's 9 to 18.
    pub bytes: u64,
    /// Lookups that a thread's front cache answered.
    pub front_hits: u64,
    /// Lookups that the shared table answered.
    pub table_hits: u64,
    /// Strings that were new.
    pub misses: u64,
    /// Strings that were handed out without being kept, at a cap or for their length.
    pub refused: u64,
    /// Strings that a sweep or a reclaim removed.
    pub removed: u64,
}

impl InternerStats {
    /// Returns the share of lookups that found their string; 0 before the first.
    ///
    /// A ratio that stays low while `strings` rises says that the strings do not repeat: interning
    /// then costs memory.
    pub fn hit_ratio(&self) -> f64 {
        let hits = self.front_hits + self.table_hits;
        match hits + self.misses + self.refused {
            0 => 0.0,
            all => hits as f64 / all as f64,
        }
    }
}

/// What interning saves at this moment, from [`Interner::usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternerUsage {
    /// Handles that are out, front caches not counted.
    pub handles: u64,
    /// Bytes of the strings and of the handles.
    pub bytes: u64,
    /// Bytes that as many `String`s of these texts would take, 24 each and their length.
    pub as_strings_bytes: u64,
}

impl InternerUsage {
    /// Returns the bytes saved; 0 where interning costs more than it saves.
    pub fn saved_bytes(&self) -> u64 {
        self.as_strings_bytes.saturating_sub(self.bytes)
    }
}

/// What one call of [`Interner::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sweep {
    /// Buckets looked at.
    pub examined: usize,
    /// Strings removed.
    pub removed: usize,
    /// Bytes they took.
    pub bytes: u64,
    /// Whether this step ended a pass over the whole interner.
    pub pass_done: bool,
}

impl Interner {
    /// Starts a builder with the defaults.
    pub fn builder() -> InternerBuilder {
        InternerBuilder::new()
    }

    /// Returns the interner of the whole process, made with the defaults at the first call.
    ///
    /// `IStr::from` and deserializing an `IStr` use it.
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Interner> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            Self::builder().build_at(Instant::now()).expect("the defaults are valid")
        })
    }

    fn new(settings: Settings, now: Instant) -> Self {
        // The id only says where to look; who finds something compares pointers. So it may wrap, but
        // not to zero, which means "of no interner".
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Relaxed).max(1);
        Self {
            shared: Arc::new(Shared {
                id,
                hasher: RandomState::default(),
                settings,
                shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
                fronts: Mutex::new(Vec::new()),
                cursor: Mutex::new(Cursor::default()),
                strings: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                totals: Arc::default(),
                since: now,
            }),
        }
    }

    /// Returns the handle of `text`, keeping a copy of it if it is new.
    ///
    /// This never fails: at a cap, and for a text longer than `text_bytes_max`, the handle gets a copy
    /// of its own, which the interner does not keep and counts as `refused`.
    ///
    /// # Cost
    ///
    /// A string that this thread saw lately: a hash, a comparison, and no write that another thread
    /// sees. Else a read lock of one shard in 64; for a new string a write lock and an allocation.
    pub fn intern(&self, text: &str) -> IStr {
        let hash = self.hash(text);
        front::take(&self.shared, hash, text)
            .unwrap_or_else(|| self.shared.look_up_or_insert(hash, text))
    }

    /// Returns the handle of `text` if it is in the table.
    pub fn get(&self, text: &str) -> Option<IStr> {
        let hash = self.hash(text);
        front::take(&self.shared, hash, text).or_else(|| self.shared.look_up(hash, text))
    }

    #[inline]
    fn hash(&self, text: &str) -> u64 {
        hash_of(&self.shared.hasher, text)
    }

    /// Removes strings that had no handle for the idle time, a bounded step per call.
    ///
    /// Each call looks at up to `sweep_step` buckets and goes on where the last one stopped; call it
    /// from a timer, or register the interner with a [`MemoryGuard`](crate::MemoryGuard). A pass begins with the front caches: what a thread did not ask for since the pass
    /// before, it gives back. So an unused string goes in the third pass at the latest when the idle
    /// time is over. A second sweep at the same time does nothing.
    ///
    /// # Cost
    ///
    /// At most 256 buckets under one shard's lock, then the next.
    pub fn sweep(&self, now: Instant) -> Sweep {
        self.shared.sweep(now)
    }

    /// Estimates the bytes that [`reclaim`](Self::reclaim) could free.
    ///
    /// # Cost
    ///
    /// Looks at each string, and beyond 65,536 of them at those of one shard in 16.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.shared.reclaimable_bytes()
    }

    /// Removes strings without handles, however lately used, until `target_bytes` are free.
    ///
    /// Returns the bytes freed.
    ///
    /// # Cost
    ///
    /// Empties the front caches of all threads; each looks its strings up again.
    pub fn reclaim(&self, target_bytes: u64) -> u64 {
        self.shared.reclaim(target_bytes)
    }

    /// Returns what the interner holds and did so far.
    pub fn stats(&self) -> InternerStats {
        let shared = &*self.shared;
        let totals = &shared.totals;
        let mut front_hits = totals.front_hits.load(Relaxed);
        let mut table_hits = totals.table_hits.load(Relaxed);
        for front in shared.live_fronts() {
            let (here, there) = front.hits();
            front_hits += here;
            table_hits += there;
        }
        let strings = shared.strings.load(Relaxed);
        let removed = totals.removed.load(Relaxed);
        InternerStats {
            strings,
            bytes: shared.bytes.load(Relaxed),
            front_hits,
            table_hits,
            misses: strings + removed,
            refused: totals.refused.load(Relaxed),
            removed,
        }
    }

    /// Works out what interning saves at this moment.
    ///
    /// # Cost
    ///
    /// Looks at each string, shard by shard under read locks, and at each slot of the front caches.
    pub fn usage(&self) -> InternerUsage {
        self.shared.usage()
    }
}

/// Under pressure it gives up the strings that nobody has a handle of.
impl Reclaimer for Interner {
    fn name(&self) -> &str {
        "interner"
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.reclaimable_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.reclaim(request.target_bytes)
    }

    fn cost(&self) -> Cost {
        Cost::Unused
    }

    fn decays(&self) -> bool {
        true
    }

    fn decay(&self, now: Instant) -> u64 {
        let mut bytes = 0;
        loop {
            let swept = self.sweep(now);
            bytes += swept.bytes;
            if swept.pass_done || swept.examined == 0 {
                return bytes;
            }
        }
    }
}

impl std::fmt::Debug for Interner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Interner");
        debug.field("strings", &self.shared.strings.load(Relaxed)).finish_non_exhaustive()
    }
}

#[inline]
fn hash_of(hasher: &RandomState, text: &str) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// What a kept string counts for.
fn cost(text: &Text) -> u64 {
    (Text::OVERHEAD + text.as_str().len()) as u64
}

impl Shared {
    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // The table inside uses the lowest bits and the highest seven.
        &self.shards[(hash >> 40) as usize % SHARDS]
    }

    fn look_up(&self, hash: u64, text: &str) -> Option<IStr> {
        front::open(self);
        let shard = self.shard(hash).read();
        let found = shard.table.find(hash, |it| it.hash() == hash && it.as_str() == text)?;
        if found.mark().load(Relaxed) != 0 {
            found.mark().store(0, Relaxed);
        }
        let (handle, replaced) = front::keep(self, found);
        drop(shard);
        drop(replaced);
        Some(handle)
    }

    fn look_up_or_insert(&self, hash: u64, text: &str) -> IStr {
        if let Some(found) = self.look_up(hash, text) {
            return found;
        }
        let too_long = text.len() > self.settings.text_bytes_max;
        let full = self.strings.load(Relaxed) >= self.settings.strings_max
            || self.bytes.load(Relaxed) >= self.settings.bytes_max;
        if too_long || full {
            self.totals.refused.fetch_add(1, Relaxed);
            return IStr::new(Text::new(text, hash, 0));
        }
        let made = Text::new(text, hash, self.id);
        let mut shard = self.shard(hash).write();
        let equal = |it: &Text| it.hash() == hash && it.as_str() == text;
        let (found, is_new) = match shard.table.entry(hash, equal, Text::hash) {
            hashbrown::hash_table::Entry::Occupied(entry) => {
                // Another thread came first.
                (entry.get().clone(), false)
            }
            hashbrown::hash_table::Entry::Vacant(entry) => {
                self.strings.fetch_add(1, Relaxed);
                self.bytes.fetch_add(cost(&made), Relaxed);
                entry.insert(made.clone());
                (made, true)
            }
        };
        drop(shard);
        if !is_new {
            self.totals.table_hits.fetch_add(1, Relaxed);
        }
        IStr::new(found)
    }

    /// The front caches of threads that are alive; forgets the others.
    fn live_fronts(&self) -> Vec<Arc<FrontCache>> {
        let mut fronts = self.fronts.lock();
        fronts.retain(|front| front.strong_count() > 0);
        fronts.iter().filter_map(Weak::upgrade).collect()
    }

    fn sweep(&self, now: Instant) -> Sweep {
        let mut swept = Sweep::default();
        let Some(mut cursor) = self.cursor.try_lock() else { return swept };
        if !cursor.fronts {
            for front in self.live_fronts() {
                front.give_back(front::GiveBack::Unused);
            }
            cursor.fronts = true;
        }
        // Seconds are enough for an idle time, and 0 says "in use".
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX - 1);
        let tick = seconds(now.saturating_duration_since(self.since)) + 1;
        let idle = seconds(self.settings.idle);
        let gone = |text: &Text| {
            let mark = text.mark();
            if text.references() > 1 {
                mark.store(0, Relaxed);
                return false;
            }
            let since = match mark.load(Relaxed) {
                0 => {
                    mark.store(tick, Relaxed);
                    tick
                }
                since => since,
            };
            tick.saturating_sub(since) >= idle
        };
        while swept.examined < self.settings.sweep_step {
            let step = LOCK_STEP.min(self.settings.sweep_step - swept.examined);
            let (examined, removed, bytes, more) =
                self.sweep_shard(cursor.shard, cursor.bucket, step, gone);
            swept.examined += examined;
            swept.removed += removed;
            swept.bytes += bytes;
            if more {
                cursor.bucket += examined;
                continue;
            }
            cursor.bucket = 0;
            cursor.shard += 1;
            if cursor.shard == SHARDS {
                *cursor = Cursor::default();
                swept.pass_done = true;
                break;
            }
        }
        swept
    }

    /// Looks at `step` buckets of a shard: how many there were, the strings and bytes removed, and
    /// whether the shard has more.
    fn sweep_shard(
        &self,
        shard: usize,
        first: usize,
        step: usize,
        mut gone: impl FnMut(&Text) -> bool,
    ) -> (usize, usize, u64, bool) {
        let mut shard = self.shards[shard].write();
        let table = &mut shard.table;
        let end = table.num_buckets().min(first.saturating_add(step));
        // Looking is one thing and removing another: nothing in the first loop waits for anything, so
        // the cache misses of many texts are under way at once.
        let unused: Vec<usize> =
            (first..end).filter(|it| table.get_bucket(*it).is_some_and(&mut gone)).collect();
        let mut bytes = 0;
        let mut texts = Vec::with_capacity(unused.len());
        for bucket in unused {
            // The lock is exclusive: a text with one reference has no other and gets none.
            if let Ok(entry) = table.get_bucket_entry(bucket) {
                bytes += cost(entry.get());
                texts.push(entry.remove().0);
            }
        }
        let more = end < table.num_buckets();
        if !more && table.len() * 8 < table.num_buckets() && table.num_buckets() > 64 {
            table.shrink_to(table.len() * 2, Text::hash);
        }
        drop(shard);
        let removed = texts.len();
        drop(texts);
        self.strings.fetch_sub(removed as u64, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
        self.totals.removed.fetch_add(removed as u64, Relaxed);
        (end.saturating_sub(first), removed, bytes, more)
    }

    fn reclaim(&self, target_bytes: u64) -> u64 {
        for front in self.live_fronts() {
            front.give_back(front::GiveBack::All);
        }
        let mut freed: u64 = 0;
        for shard in 0..SHARDS {
            let mut bucket = 0;
            loop {
                if freed >= target_bytes {
                    return freed;
                }
                let gone = |text: &Text| {
                    let gone = freed < target_bytes && text.references() == 1;
                    freed += if gone { cost(text) } else { 0 };
                    gone
                };
                let (examined, _, _, more) = self.sweep_shard(shard, bucket, LOCK_STEP, gone);
                bucket += examined;
                if !more {
                    break;
                }
            }
        }
        freed
    }

    fn reclaimable_bytes(&self) -> u64 {
        let sample = if self.strings.load(Relaxed) > EXACT_UP_TO { SHARD_SAMPLE } else { 1 };
        let mut bytes: u64 = 0;
        for shard in self.shards.iter().step_by(sample) {
            let shard = shard.read();
            bytes += shard.table.iter().filter(|it| it.references() == 1).map(cost).sum::<u64>();
        }
        bytes * sample as u64
    }

    fn usage(&self) -> InternerUsage {
        let as_string = |text: &Text| (size_of::<String>() + text.as_str().len()) as u64;
        // First what is in stock and then all: a handle that is put back in between is not missed
        // twice. What moves meanwhile makes this an estimate.
        let (mut stocked, mut stocked_bytes) = (0, 0);
        for front in self.live_fronts() {
            front.each(|stock: &Stock| {
                stocked += u64::from(stock.count());
                stocked_bytes += u64::from(stock.count()) * as_string(stock.text());
            });
        }
        let (mut handles, mut as_strings, mut kept) = (0, 0, 0);
        for shard in &self.shards {
            for text in &shard.read().table {
                let references = (text.references() as u64).saturating_sub(1);
                handles += references;
                as_strings += references * as_string(text);
                kept += cost(text);
            }
        }
        let handles: u64 = u64::saturating_sub(handles, stocked);
        InternerUsage {
            handles,
            bytes: kept + handles * size_of::<IStr>() as u64,
            as_strings_bytes: u64::saturating_sub(as_strings, stocked_bytes),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody asks for these strings again; handles to them keep what they need.
        for front in self.live_fronts() {
            front.give_back(front::GiveBack::All);
        }
    }
}
