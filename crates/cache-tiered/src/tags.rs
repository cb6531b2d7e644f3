//! Tags: names by which entries are invalidated together, however many there are.
//!
//! Nothing is looked for when a tag is invalidated. A cache has a *clock* that counts invalidations; a
//! tag's *cell* holds the time of its last one, and each tagged entry a *stamp*: the time at which its
//! value began to be made. An entry counts as long as none of its tags was invalidated after its stamp,
//! which a look-up finds out for itself. So an invalidation is a few stores, and a value that is still
//! being loaded when its tag is invalidated is refused, because its stamp is older.
//!
//! A look-up that has found an entry good moves its stamp up to the clock, so that it compares two
//! numbers the next time, until something is invalidated again.
//!
//! **Soft.** A tag can also be invalidated softly: its entries are then stale, and good for whatever
//! stale values are good for. The bit 0 of a tag's number is never set, and with it set it names the
//! soft invalidation, in the record on disk and between machines, too.
//!
//! **Bounds.** Cells that entries refer to are as many as the entries' tags. Of the others the newest
//! 65,536 are kept, for the loads that are under way and for what lies in tiers below. The *floor* is the
//! latest invalidation that was forgotten with its cell: a tag without a cell counts as invalidated
//! then, which may refuse a good value and never keeps a stale one.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::freshness::Windows;
use crate::sync::{Acquire, AtomicU64, Mutex, Relaxed, Release};

/// A name that entries are invalidated by, together with all others that carry it.
///
/// Made of any text; a 64-bit hash of it is kept. Two tags whose hashes meet are invalidated together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u64);

impl Tag {
    /// Makes a tag of a name, the same in every process.
    #[must_use]
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        Self(xxh3_64(name.as_ref()) & !SOFT)
    }

    /// The number that stands for the tag.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// The number that stands for its soft invalidation.
    pub(crate) fn soft_number(self) -> u64 {
        self.0 | SOFT
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({:016x})", self.0)
    }
}

impl From<&str> for Tag {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Tag {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&String> for Tag {
    fn from(name: &String) -> Self {
        Self::new(name)
    }
}

/// Set in a number that stands for a soft invalidation.
const SOFT: u64 = 1;

/// The most tags that an entry may have.
pub(crate) const TAGS_MAX: usize = 1_024;

const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };
/// Cells of a shard that no entry refers to and that are kept all the same.
const IDLE_OF_SHARD: usize = if cfg!(test) { 64 } else { 4_096 };

/// When the value of an entry began to be made, in this cache's time and in that of the shared tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub(crate) local: u64,
    pub(crate) shared: u64,
}

/// What an entry's tags say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// Softly invalidated: stale.
    Stale,
    Invalid,
}

/// When a tag was last invalidated.
#[derive(Debug)]
pub(crate) struct Cell {
    /// For what is written down.
    #[cfg(feature = "__lower")]
    number: u64,
    invalidated: AtomicU64,
    softened: AtomicU64,
}

impl Cell {
    /// The latest of both.
    fn last(&self) -> u64 {
        self.invalidated.load(Relaxed).max(self.softened.load(Relaxed))
    }
}

/// The numbers of tags are hashes already.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed");
    }

    fn write_u64(&mut self, number: u64) {
        // Bit 0 is always the same, and a shard's upper bits are.
        self.0 = number.rotate_right(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[derive(Debug, Default)]
struct Shard {
    cells: HashMap<u64, Arc<Cell>, BuildHasherDefault<Unhashed>>,
    /// Cells at which those that are idle are looked through.
    sweep_at: usize,
}

/// What the tier that machines share knows of their invalidations.
#[cfg(feature = "__redis")]
pub(crate) trait SharedLog: Send + Sync {
    /// The number up to which all invalidations are known; zero while none is.
    fn head(&self) -> u64;

    /// The number of a tag's last invalidation, or a larger one.
    fn invalidated(&self, number: u64) -> u64;
}

/// What a cache knows of its tags.
pub(crate) struct TagTable {
    /// Counts invalidations.
    clock: AtomicU64,
    floor: AtomicU64,
    #[cfg(feature = "__redis")]
    shared: std::sync::OnceLock<Box<dyn SharedLog>>,
    /// Held while an invalidation takes its number and sets its cells.
    order: Mutex<()>,
    shards: [Mutex<Shard>; SHARDS],
}

impl fmt::Debug for TagTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagTable").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Default for TagTable {
    fn default() -> Self {
        Self::starting_at(1)
    }
}

impl TagTable {
    /// A table that knows nothing of what happened before `now`.
    pub(crate) fn starting_at(now: u64) -> Self {
        Self {
            clock: AtomicU64::new(now),
            floor: AtomicU64::new(now),
            #[cfg(feature = "__redis")]
            shared: std::sync::OnceLock::new(),
            order: Mutex::new(()),
            shards: std::array::from_fn(|_| Mutex::new(Shard::default())),
        }
    }

    /// The stamp of a value that begins to be made now.
    #[inline]
    pub(crate) fn stamp(&self) -> Stamp {
        // Acquire: what was invalidated up to then has been set in the cells.
        let local = self.clock.load(Acquire);
        #[cfg(feature = "__redis")]
        let shared = self.shared.get().map_or(0, |log| log.head());
        #[cfg(not(feature = "__redis"))]
        let shared = 0;
        Stamp { local, shared }
    }

    /// Sets what is known of the tier that machines share.
    #[cfg(feature = "__redis")]
    pub(crate) fn share(&self, log: Box<dyn SharedLog>) {
        // A cache has one such tier.
        let _ = self.shared.set(log);
    }

    /// The clock alone.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Acquire)
    }

    /// Invalidates tags, by their numbers, and returns the time of it.
    ///
    /// # Cost
    ///
    /// Two short locks and a store for each tag, whatever the number of entries.
    pub(crate) fn invalidate(&self, numbers: &[u64]) -> u64 {
        let _order = self.order.lock();
        let time = self.clock.load(Relaxed) + 1;
        for number in numbers {
            self.set(*number, time);
        }
        // Release, and after the cells: who reads this time finds them set. Who does not yet has an
        // older stamp.
        self.clock.store(time, Release);
        time
    }

    fn set(&self, number: u64, time: u64) {
        let cell = self.cell(number & !SOFT);
        let place = if number & SOFT == 0 { &cell.invalidated } else { &cell.softened };
        place.fetch_max(time, Release);
    }

    /// Begins where an earlier process has ended: nothing is known of what happened up to `floor`.
    #[cfg(feature = "disk")]
    pub(crate) fn begin(&self, floor: u64, now: u64) {
        let _order = self.order.lock();
        self.floor.fetch_max(floor, Relaxed);
        self.clock.fetch_max(now.max(floor), Release);
    }

    /// Takes over an invalidation that an earlier process has noted.
    #[cfg(feature = "disk")]
    pub(crate) fn restore(&self, number: u64, time: u64) {
        let _order = self.order.lock();
        self.set(number, time);
        self.clock.fetch_max(time, Release);
    }

    /// Everything that is to be noted for a later process: the floor, the time, and the invalidations
    /// after the floor.
    #[cfg(feature = "disk")]
    pub(crate) fn snapshot(&self) -> (u64, u64, Vec<(u64, u64)>) {
        let _order = self.order.lock();
        let mut known = Vec::new();
        for shard in &self.shards {
            for cell in shard.lock().cells.values() {
                for (number, place) in
                    [(cell.number, &cell.invalidated), (cell.number | SOFT, &cell.softened)]
                {
                    known.push((number, place.load(Relaxed)));
                }
            }
        }
        let floor = self.floor.load(Relaxed);
        known.retain(|(_, time)| *time > floor);
        known.sort_unstable_by_key(|(_, time)| *time);
        (floor, self.clock.load(Relaxed), known)
    }

    fn shard(&self, number: u64) -> &Mutex<Shard> {
        &self.shards[(number >> 60) as usize % SHARDS]
    }

    /// The cell of a tag, made if there is none.
    fn cell(&self, number: u64) -> Arc<Cell> {
        let mut shard = self.shard(number).lock();
        if let Some(cell) = shard.cells.get(&number) {
            return Arc::clone(cell);
        }
        if shard.cells.len() >= shard.sweep_at.max(2 * IDLE_OF_SHARD) {
            self.sweep(&mut shard);
        }
        // Relaxed: under the lock of the shard, where alone a cell with this number is forgotten.
        let floor = self.floor.load(Relaxed);
        let cell = Arc::new(Cell {
            #[cfg(feature = "__lower")]
            number,
            invalidated: AtomicU64::new(floor),
            softened: AtomicU64::new(floor),
        });
        shard.cells.insert(number, Arc::clone(&cell));
        cell
    }

    /// Forgets the oldest of the cells that nobody refers to.
    #[cold]
    fn sweep(&self, shard: &mut Shard) {
        let floor = self.floor.load(Relaxed);
        // Under this lock nobody can begin to refer to a cell that nobody refers to.
        let idle = |cell: &Arc<Cell>| Arc::strong_count(cell) == 1;
        let mut times: Vec<u64> =
            shard.cells.values().filter(|cell| idle(cell)).map(|cell| cell.last()).collect();
        times.retain(|time| *time > floor);
        let mut forgotten = floor;
        if let Some(excess) = times.len().checked_sub(IDLE_OF_SHARD)
            && excess > 0
        {
            let (_, last, _) = times.select_nth_unstable(excess - 1);
            forgotten = *last;
        }
        // Before the cells go, so that nobody makes one anew that does not know of it.
        self.floor.fetch_max(forgotten, Relaxed);
        shard.cells.retain(|_, cell| !idle(cell) || cell.last() > forgotten);
        shard.sweep_at = 2 * shard.cells.len();
    }

    /// How many tags are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().cells.len()).sum()
    }
}

/// What an entry carries beyond its value and its deadline, if anything.
#[derive(Debug)]
pub(crate) struct Attributes {
    tags: Box<[Arc<Cell>]>,
    /// When the entry was last known to be good; not before its value began to be made.
    stamp: AtomicU64,
    shared_stamp: u64,
    /// Softly invalidated in a time that is not this cache's.
    stale: bool,
    pub(crate) windows: Windows,
}

impl Attributes {
    /// Makes those of an entry; `None` where there is nothing to carry.
    pub(crate) fn new(
        table: &TagTable,
        tags: impl IntoIterator<Item = u64>,
        stamp: Stamp,
        windows: Windows,
    ) -> Option<Arc<Self>> {
        let mut tags: Vec<u64> = tags.into_iter().collect();
        if tags.is_empty() && windows == Windows::default() {
            return None;
        }
        tags.sort_unstable();
        tags.dedup();
        Some(Arc::new(Self::of(table, &tags, stamp, false, windows)))
    }

    /// Makes those that were written down; the tags are in ascending order.
    pub(crate) fn of(
        table: &TagTable,
        tags: &[u64],
        stamp: Stamp,
        stale: bool,
        windows: Windows,
    ) -> Self {
        let tags = tags.iter().map(|tag| table.cell(tag & !SOFT)).collect();
        let Stamp { local, shared } = stamp;
        Self { tags, stamp: AtomicU64::new(local), shared_stamp: shared, stale, windows }
    }

    /// What the tags say now, and until when that has been looked at.
    pub(crate) fn standing(&self, table: &TagTable) -> (Standing, u64) {
        let now = table.now();
        let stamp = self.stamp.load(Relaxed);
        let mut standing = Standing::Good;
        if !self.tags.is_empty() && now > stamp {
            standing = self.since(stamp);
            if standing == Standing::Good {
                // The cells were read after `now`: none was set before it and after the stamp.
                self.stamp.fetch_max(now, Relaxed);
            }
        }
        if self.stale && standing == Standing::Good {
            standing = Standing::Stale;
        }
        (standing, now)
    }

    /// What was done to the tags after `stamp`.
    fn since(&self, stamp: u64) -> Standing {
        let mut standing = Standing::Good;
        for cell in &self.tags {
            if cell.invalidated.load(Acquire) > stamp {
                return Standing::Invalid;
            }
            if cell.softened.load(Acquire) > stamp {
                standing = Standing::Stale;
            }
        }
        standing
    }

    /// Whether no tag was invalidated since the value began to be made.
    ///
    /// Of several invalidations a cell knows the last, so nothing more can be said of one in between.
    pub(crate) fn is_untouched(&self) -> bool {
        self.since(self.stamp.load(Relaxed)) == Standing::Good
    }

    /// Whether the value is good for something, by all that is known here of its tags.
    pub(crate) fn is_valid(&self, table: &TagTable) -> bool {
        self.standing(table).0 != Standing::Invalid
            && self.shared_standing(table) != Standing::Invalid
    }

    /// What other machines have done to the tags since the value was made, as far as it is known here.
    pub(crate) fn shared_standing(&self, table: &TagTable) -> Standing {
        #[cfg(feature = "__redis")]
        if let Some(log) = table.shared.get().filter(|log| !self.tags.is_empty() && log.head() > 0)
        {
            return self.standing_in(&**log);
        }
        let _ = table;
        Standing::Good
    }

    /// What the log that machines share says of the tags.
    #[cfg(feature = "__redis")]
    fn standing_in(&self, log: &dyn SharedLog) -> Standing {
        let mut standing = Standing::Good;
        for number in self.tags() {
            if log.invalidated(number) > self.shared_stamp {
                return Standing::Invalid;
            }
            if log.invalidated(number | SOFT) > self.shared_stamp {
                standing = Standing::Stale;
            }
        }
        standing
    }

    /// The same for a value that another machine may have made, for one that began to ask for it at
    /// `local` in its own time; `None` if it is invalid, or nobody knows.
    #[cfg(feature = "__redis")]
    pub(crate) fn taken_over(self, table: &TagTable, local: u64) -> Option<Self> {
        let mut stale = self.stale;
        if !self.tags.is_empty() {
            let log = table.shared.get().filter(|log| log.head() > 0)?;
            match self.standing_in(&**log) {
                Standing::Good => {}
                Standing::Stale => stale = true,
                Standing::Invalid => return None,
            }
        }
        Some(Self { stamp: AtomicU64::new(local), stale, ..self })
    }

    #[cfg(feature = "__redis")]
    pub(crate) fn has_tags(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The numbers of the tags, in ascending order.
    #[cfg(feature = "__lower")]
    pub(crate) fn tags(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.tags.iter().map(|cell| cell.number)
    }

    /// Writes down what a later process needs: see [`decode`](Self::decode).
    #[cfg(feature = "__lower")]
    pub(crate) fn encode(&self, stale: bool) -> Vec<u8> {
        let Stamp { local, shared } = self.stamp();
        let Windows { while_revalidate, if_error, ahead, early } = self.windows;
        let windows = [while_revalidate, if_error, ahead, early.map(f32::to_bits)];
        let present = windows.iter().enumerate().map(|(at, own)| u8::from(own.is_some()) << at);
        let flags = u8::from(stale) | present.sum::<u8>() << 1;
        let mut out = Vec::with_capacity(17 + 8 * self.tags.len() + 16);
        out.push(flags);
        out.extend_from_slice(&local.to_le_bytes());
        out.extend_from_slice(&shared.to_le_bytes());
        windows.into_iter().flatten().for_each(|own| out.extend_from_slice(&own.to_le_bytes()));
        self.tags().for_each(|tag| out.extend_from_slice(&tag.to_le_bytes()));
        out
    }

    /// Reads what was written down: a byte of flags (1: stale; 2, 4, 8, 16: which windows follow), the
    /// local stamp, the shared stamp, the windows in four bytes each, the tags in eight each; integers
    /// are little-endian. `None` where that is not what it is.
    #[cfg(feature = "__lower")]
    pub(crate) fn decode(table: &TagTable, bytes: &[u8]) -> Option<Self> {
        let (&flags, bytes) = bytes.split_first()?;
        let (local, bytes) = bytes.split_first_chunk()?;
        let (shared, mut bytes) = bytes.split_first_chunk()?;
        let mut windows = [None; 4];
        for (at, own) in windows.iter_mut().enumerate().filter(|(at, _)| flags >> (at + 1) & 1 == 1)
        {
            let (four, rest) = bytes.split_first_chunk()?;
            let bits = u32::from_le_bytes(*four);
            if at == 3 && !f32::from_bits(bits).is_finite() {
                return None;
            }
            (*own, bytes) = (Some(bits), rest);
        }
        let (tags, []) = bytes.as_chunks() else { return None };
        if flags >= 1 << 5 || tags.len() > TAGS_MAX {
            return None;
        }
        let tags: Vec<u64> = tags.iter().map(|tag| u64::from_le_bytes(*tag)).collect();
        let [while_revalidate, if_error, ahead, early] = windows;
        let windows =
            Windows { while_revalidate, if_error, ahead, early: early.map(f32::from_bits) };
        let stamp =
            Stamp { local: u64::from_le_bytes(*local), shared: u64::from_le_bytes(*shared) };
        Some(Self::of(table, &tags, stamp, flags & 1 == 1, windows))
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { local: self.stamp.load(Relaxed), shared: self.shared_stamp }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
