//! Ghosts: who was evicted of late, by fingerprint.
//!
//! ARC and S3-FIFO remember evicted keys in exact FIFO lists. A list and an index over it would cost
//! 9 to 16 bytes per ghost; here a ghost is four bytes in a set-associative table: 19 bits of
//! fingerprint, one bit for the list it belongs to, and 12 bits for when it joined. Time is counted in
//! ghosts that joined the same list, in steps of 1/256 of the table, so the age of a ghost is its
//! distance from the end of its list, within 0.4 %. Whether it is still remembered is asked with the
//! length the list has by then, its *window*: nothing is ever walked or dropped, an old ghost is
//! overwritten when its set needs the slot.
//!
//! Departures from exact lists: a set that overflows forgets the ghost that is oldest relative to its
//! list, which costs each list up to a tenth of its ghosts, and during a long flood of the one list up
//! to half of the other's; a list from which ghosts came back holds fewer than its window; and two keys
//! of one set share a fingerprint once in 2^19, so that about one new key in 60,000 is taken for a
//! ghost. What all of it costs in hit ratio is in the heads of the two policies.

use super::lines::Lines;

/// Half a cache line. Twice the ways cost 30 ns more per eviction and bring no hit.
const WAYS: usize = 8;
const WAY_BITS: u32 = WAYS.trailing_zeros();
/// Enough for the 2^24 nodes of the largest shard.
const SETS_MAX: usize = 1 << 22;
/// Steps of age within one table's worth of ghosts.
const STEPS: u32 = 256;

// A ghost: when it joined, which list, and the fingerprint, from the high bits down.
const FINGERPRINT_BITS: u32 = 19;
const FINGERPRINT: u32 = (1 << FINGERPRINT_BITS) - 1;
const LIST_SHIFT: u32 = FINGERPRINT_BITS;
const JOINED_SHIFT: u32 = LIST_SHIFT + 1;
const JOINED: u32 = u32::MAX >> JOINED_SHIFT;

/// Fingerprint zero, which no ghost has.
const EMPTY: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GhostList {
    Young,
    Main,
}

/// Both ghost lists of one shard.
#[derive(Debug)]
pub(super) struct Ghosts {
    /// Sets of [`WAYS`], one after the other.
    slots: Lines,
    /// Ghosts per step of age.
    step: u32,
    /// How many joined each list since the last step.
    rest: [u32; 2],
    /// The time of each list, in steps.
    now: [u32; 2],
    /// How many of each list can still be hit, as far as that is known without looking.
    live: [u32; 2],
}

impl Ghosts {
    /// Makes room for about `entries` ghosts, those of both lists together, in the memory of `spare`
    /// if that is enough.
    pub(super) fn new(entries: usize, spare: Vec<u32>) -> Self {
        // An eighth more than there are ghosts, or every second set would overflow.
        let sets = entries.saturating_add(entries / 8).div_ceil(WAYS).clamp(2, SETS_MAX);
        Self {
            slots: Lines::zeroed(sets * WAYS, spare),
            step: ((sets * WAYS) as u32 / STEPS).max(1),
            rest: [0; 2],
            now: [0; 2],
            live: [0; 2],
        }
    }

    pub(super) fn into_spare(self) -> Vec<u32> {
        self.slots.into_memory()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.slots.bytes()
    }

    /// Adds an evicted key to `list`; of either list, as many ghosts count as its window says.
    pub(super) fn add(&mut self, hash: u32, list: GhostList, windows: [u32; 2]) {
        let index = list as usize;
        if windows[index] == 0 {
            return;
        }
        self.live[index] = (self.live[index] + 1).min(windows[index]);
        self.rest[index] += 1;
        if self.rest[index] == self.step {
            self.rest[index] = 0;
            self.now[index] = (self.now[index] + 1) & JOINED;
        }
        // Ages relative to the window, so that a long list does not push out a short one. The low
        // bits carry the way, so that finding the oldest is a maximum without a branch. At most
        // 4,095 << 14 << 4, which is below 2^30.
        let scale = windows.map(|window| (1 << 15) / (window / self.step + 2));
        let now = self.now;
        let slots = self.set(hash);
        let mut oldest = 0;
        for (way, &slot) in slots.iter().enumerate() {
            let main = slot >> LIST_SHIFT & 1 != 0;
            let (now, scale) = if main { (now[1], scale[1]) } else { (now[0], scale[0]) };
            let age = now.wrapping_sub(slot >> JOINED_SHIFT) & JOINED;
            let rank = if slot == EMPTY { 1 << 26 } else { age * scale };
            oldest = oldest.max((rank << WAY_BITS | way as u32) as i32);
        }
        let way = oldest as usize & (WAYS - 1);
        slots[way] = fingerprint(hash) | (index as u32) << LIST_SHIFT | now[index] << JOINED_SHIFT;
    }

    /// Removes the ghost of a key that comes back, and tells which list remembered it.
    pub(super) fn take(&mut self, hash: u32, windows: [u32; 2]) -> Option<GhostList> {
        let slots = self.set(hash);
        let wanted = fingerprint(hash);
        let ways = slots.iter().enumerate().fold(0, |ways, (way, slot)| {
            ways | if slot & FINGERPRINT == wanted { 1 << way } else { 0_u32 }
        });
        if ways == 0 {
            return None;
        }
        let way = ways.trailing_zeros() as usize;
        let ghost = std::mem::replace(&mut slots[way], EMPTY);
        let index = (ghost >> LIST_SHIFT & 1) as usize;
        let age = self.now[index].wrapping_sub(ghost >> JOINED_SHIFT) & JOINED;
        if age * self.step >= windows[index] {
            return None;
        }
        self.live[index] = self.live[index].saturating_sub(1);
        Some(if index == 0 { GhostList::Young } else { GhostList::Main })
    }

    /// About how many ghosts of `list` can still be hit.
    pub(super) fn live(&self, list: GhostList) -> u32 {
        self.live[list as usize]
    }

    fn set(&mut self, hash: u32) -> &mut [u32; WAYS] {
        let sets = self.slots.as_chunks_mut::<WAYS>().0;
        &mut sets[place(hash, sets.len())]
    }
}

/// Which of `sets` is the hash's, by its high bits.
fn place(hash: u32, sets: usize) -> usize {
    ((u64::from(hash) * sets as u64) >> 32) as usize
}

fn fingerprint(hash: u32) -> u32 {
    (hash & FINGERPRINT).max(1)
}

#[cfg(test)]
mod tests;
