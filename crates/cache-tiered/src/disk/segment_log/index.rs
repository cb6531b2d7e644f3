//! The index of the segment log: which key lies where, 24 bytes per entry, in memory.
//!
//! A key is its 64-bit hash here; two keys with one hash replace each other, and the reader compares
//! the key that is stored with the record. The table is cut into shards by bits of the hash which
//! `hashbrown` uses neither for the bucket (the low ones) nor for the tag (the high ones). Many
//! shards keep two things short: waiting for a writer, and the pause when a table doubles.
//!
//! Each entry has one bit that a read sets and that nothing but a new record clears. It is what second
//! chance (CLOCK) knows of an entry: used since it was written, or not.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::RwLock;

const SHARDS: usize = 256;
const SHARD_SHIFT: u32 = 40;

/// Where the newest record of a key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) hash: u64,
    /// Low half of the segment's id; fewer than 2^31 segments live at once.
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// Length of the whole record.
    pub(super) len: u32,
    /// Expiry in seconds, rounded up; 0 = never, or beyond the year 2106.
    pub(super) expires_s: u32,
}

impl Slot {
    /// Rounds an expiry up to the second, so that the index never thinks it earlier than it is.
    pub(super) fn expiry(expires_at_ms: u64) -> u32 {
        u32::try_from(expires_at_ms.div_ceil(1000)).unwrap_or(0)
    }

    /// Tells whether the entry has expired beyond doubt.
    pub(super) fn expired(&self, now_ms: u64) -> bool {
        self.expires_s != 0 && u64::from(self.expires_s) * 1000 <= now_ms
    }
}

/// Records are shorter than this, so that the highest bit of a length is free.
pub(super) const MAX_RECORD: u64 = 1 << 31;
/// The bit of [`Stored::len`] that says that the entry was read.
const USED: u32 = 1 << 31;

/// A slot as the table has it, with the bit that readers set while others read.
struct Stored {
    hash: u64,
    segment: u32,
    offset: u32,
    /// The length of the record, and [`USED`].
    len: AtomicU32,
    expires_s: u32,
}

impl Stored {
    fn new(slot: Slot) -> Self {
        let Slot { hash, segment, offset, len, expires_s } = slot;
        Self { hash, segment, offset, len: AtomicU32::new(len), expires_s }
    }

    fn slot(&self) -> Slot {
        let Self { hash, segment, offset, expires_s, .. } = *self;
        // Relaxed: the length never changes, and the bit is a hint.
        Slot { hash, segment, offset, len: self.len.load(Relaxed) & !USED, expires_s }
    }
}

#[derive(Default)]
struct Shard {
    table: HashTable<Stored>,
    live_bytes: u64,
}

impl Shard {
    fn insert(&mut self, slot: Slot) -> Option<Slot> {
        self.live_bytes += u64::from(slot.len);
        let replaced = match self.table.entry(slot.hash, |s| s.hash == slot.hash, |s| s.hash) {
            Entry::Occupied(mut entry) => {
                Some(std::mem::replace(entry.get_mut(), Stored::new(slot)).slot())
            }
            Entry::Vacant(entry) => {
                entry.insert(Stored::new(slot));
                None
            }
        };
        self.live_bytes -= replaced.map_or(0, |old| u64::from(old.len));
        replaced
    }

    fn remove_if(&mut self, hash: u64, condition: impl FnOnce(&Slot) -> bool) -> Option<Slot> {
        let Ok(entry) = self.table.find_entry(hash, |slot| slot.hash == hash) else { return None };
        if !condition(&entry.get().slot()) {
            return None;
        }
        let slot = entry.remove().0.slot();
        self.live_bytes -= u64::from(slot.len);
        Some(slot)
    }
}

/// All slots, by hash.
pub(super) struct Index {
    shards: Box<[CachePadded<RwLock<Shard>>]>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| CachePadded::default()).collect() }
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        &self.shards[Self::shard_of(hash)]
    }

    fn shard_of(hash: u64) -> usize {
        (hash >> SHARD_SHIFT) as usize % SHARDS
    }

    pub(super) fn get(&self, hash: u64) -> Option<Slot> {
        self.shard(hash).read().table.find(hash, |slot| slot.hash == hash).map(Stored::slot)
    }

    /// Returns the slot of a key that is being read, and remembers that it was.
    pub(super) fn get_to_read(&self, hash: u64) -> Option<Slot> {
        let shard = self.shard(hash).read();
        let stored = shard.table.find(hash, |slot| slot.hash == hash)?;
        // Relaxed: a hint. It is written once only, or every read would fight over the line.
        if stored.len.load(Relaxed) & USED == 0 {
            stored.len.fetch_or(USED, Relaxed);
        }
        Some(stored.slot())
    }

    /// Returns the slot of a key if it was read since its record was written.
    pub(super) fn get_used(&self, hash: u64) -> Option<Slot> {
        let shard = self.shard(hash).read();
        let stored = shard.table.find(hash, |slot| slot.hash == hash)?;
        (stored.len.load(Relaxed) & USED != 0).then(|| stored.slot())
    }

    /// Stores a slot and returns the one it replaces.
    pub(super) fn insert(&self, slot: Slot) -> Option<Slot> {
        self.shard(slot.hash).write().insert(slot)
    }

    /// Moves an entry to another place if the index still has it at the old one.
    pub(super) fn replace(&self, old: &Slot, new: Slot) -> bool {
        let mut shard = self.shard(old.hash).write();
        let found = shard.table.find_mut(old.hash, |slot| slot.hash == old.hash);
        match found.filter(|stored| stored.slot() == *old) {
            Some(stored) => {
                *stored = Stored::new(new);
                true
            }
            None => false,
        }
    }

    /// Removes the slot of a key if it satisfies `condition`.
    pub(super) fn remove_if(
        &self,
        hash: u64,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Slot> {
        self.shard(hash).write().remove_if(hash, condition)
    }

    /// Applies what records say, in their order. A slot of length 0 stands for a removal.
    ///
    /// The changes are first sorted by shard, which keeps the table that is being filled in the
    /// processor's cache. `sorted` is a place to do that, whatever it held.
    pub(super) fn replay(&self, changes: &[Slot], sorted: &mut Vec<Slot>) {
        let mut ends = [0_usize; SHARDS];
        changes.iter().for_each(|change| ends[Self::shard_of(change.hash)] += 1);
        let mut sum = 0;
        for end in &mut ends {
            (sum, *end) = (sum + *end, sum);
        }
        sorted.clear();
        sorted.extend_from_slice(changes);
        for change in changes {
            let next = &mut ends[Self::shard_of(change.hash)];
            sorted[*next] = *change;
            *next += 1;
        }
        let mut start = 0;
        for (shard, end) in self.shards.iter().zip(ends) {
            let mut shard = shard.write();
            for change in &sorted[start..end] {
                if change.len == 0 {
                    shard.remove_if(change.hash, |_| true);
                } else {
                    shard.insert(*change);
                }
            }
            start = end;
        }
    }

    /// Removes what has expired, one shard at a time, and returns how many it was.
    pub(super) fn remove_expired(&self, now_ms: u64) -> usize {
        let mut removed = 0;
        for shard in &self.shards {
            let mut shard = shard.write();
            let mut bytes = 0;
            let before = shard.table.len();
            shard.table.retain(|stored| {
                let slot = stored.slot();
                let stays = !slot.expired(now_ms);
                bytes += if stays { 0 } else { u64::from(slot.len) };
                stays
            });
            shard.live_bytes -= bytes;
            removed += before - shard.table.len();
        }
        removed
    }

    /// Calls `visit` for every slot, one shard at a time.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Slot)) {
        for shard in &self.shards {
            shard.read().table.iter().for_each(|stored| visit(stored.slot()));
        }
    }

    /// Forgets everything, memory included, and returns how many slots it was.
    pub(super) fn clear(&self) -> usize {
        self.shards.iter().map(|shard| std::mem::take(&mut *shard.write()).table.len()).sum()
    }

    /// Returns the number of slots and the bytes of their records.
    pub(super) fn size(&self) -> (u64, u64) {
        self.shards.iter().fold((0, 0), |(entries, bytes), shard| {
            let shard = shard.read();
            (entries + shard.table.len() as u64, bytes + shard.live_bytes)
        })
    }
}
