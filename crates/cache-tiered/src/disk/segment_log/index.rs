//! The index of the segment log: which key lies where, 24 bytes per entry, in memory.
//!
//! A key is its 64-bit hash here; two keys with one hash replace each other, and the reader compares
//! the key that is stored with the record. The table is cut into shards by bits of the hash which
//! `hashbrown` uses neither for the bucket (the low ones) nor for the tag (the high ones). Many
//! shards keep two things short: waiting for a writer, and the pause when a table doubles.

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

#[derive(Default)]
struct Shard {
    table: HashTable<Slot>,
    live_bytes: u64,
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
        &self.shards[(hash >> SHARD_SHIFT) as usize % SHARDS]
    }

    pub(super) fn get(&self, hash: u64) -> Option<Slot> {
        self.shard(hash).read().table.find(hash, |slot| slot.hash == hash).copied()
    }

    /// Stores a slot and returns the one it replaces.
    pub(super) fn insert(&self, slot: Slot) -> Option<Slot> {
        let mut shard = self.shard(slot.hash).write();
        shard.live_bytes += u64::from(slot.len);
        let replaced = match shard.table.entry(slot.hash, |s| s.hash == slot.hash, |s| s.hash) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), slot)),
            Entry::Vacant(entry) => {
                entry.insert(slot);
                None
            }
        };
        shard.live_bytes -= replaced.map_or(0, |old| u64::from(old.len));
        replaced
    }

    /// Removes the slot of a key if it satisfies `condition`.
    pub(super) fn remove_if(
        &self,
        hash: u64,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Slot> {
        let mut shard = self.shard(hash).write();
        let Ok(entry) = shard.table.find_entry(hash, |slot| slot.hash == hash) else { return None };
        if !condition(entry.get()) {
            return None;
        }
        let (slot, _) = entry.remove();
        shard.live_bytes -= u64::from(slot.len);
        Some(slot)
    }

    /// Removes what has expired, one shard at a time, and returns how many it was.
    pub(super) fn remove_expired(&self, now_ms: u64) -> usize {
        let mut removed = 0;
        for shard in &self.shards {
            let mut shard = shard.write();
            let mut bytes = 0;
            let before = shard.table.len();
            shard.table.retain(|slot| {
                let stays = !slot.expired(now_ms);
                bytes += if stays { 0 } else { u64::from(slot.len) };
                stays
            });
            shard.live_bytes -= bytes;
            removed += before - shard.table.len();
        }
        removed
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
