//! The cache lines of the table: tags, overflow counts and node indices, and how a hash finds its way
//! among them.
//!
//! A chunk holds twelve entries. The tag of slot `2 * b + w` is byte `b` of word `w`, so that a match
//! in either word becomes one bit of one mask whose position is four times the slot's number; the
//! count of the entries that passed by because the chunk was full stands above the tags of the first
//! word. Writers are alone, under the table's lock; what a reader may meet meanwhile is told in the
//! head of [`table`](super).

#![forbid(unsafe_code)]

use crate::sync::{Acquire, AtomicU32, AtomicU64, Relaxed, Release};

/// Slots of a chunk.
pub(super) const SLOTS: usize = 12;

/// A cache line of the table.
#[repr(C, align(64))]
pub(super) struct Chunk {
    /// Six tags in the lower bytes. That of an empty slot is 0, but so are others.
    tags: [AtomicU64; 2],
    /// Node indices, 0 where the slot is empty.
    pub(super) slots: [AtomicU32; SLOTS],
}

/// Where the overflow count stands in a chunk's first word.
const OVERFLOW_SHIFT: u32 = 48;
/// A count that is no longer known exactly and never goes down again.
const STUCK: u64 = u16::MAX as u64;

const TAGS: u64 = (1 << OVERFLOW_SHIFT) - 1;
const LOW_BITS: u64 = 0x0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080;

/// The two words of a chunk's tags, as they were at some moment.
#[derive(Clone, Copy)]
pub(super) struct Tags([u64; 2]);

impl Tags {
    /// The slots that may belong to a hash.
    #[inline]
    pub(super) fn matches(self, hash: u32) -> Matches {
        Matches::new(self.0, tag_of(hash))
    }

    /// Whether entries whose home this is, or that came by, may be further on.
    #[inline]
    pub(super) fn overflowed(self) -> bool {
        self.0[0] >> OVERFLOW_SHIFT != 0
    }
}

/// A hash's tag.
#[inline]
fn tag_of(hash: u32) -> u64 {
    u64::from(hash as u8)
}

/// The slots of a chunk that may have a tag, each below [`SLOTS`].
///
/// One that follows another match may be a mistake: the subtraction borrows across a byte that is
/// zero and takes a 1 behind it for a 0. None is missing.
#[derive(Clone, Copy)]
pub(super) struct Matches(u64);

impl Matches {
    #[inline]
    fn new(words: [u64; 2], tag: u64) -> Self {
        let zeros = |word: u64| word.wrapping_sub(LOW_BITS) & !word & HIGH_BITS;
        let [first, second] = words.map(|word| zeros(word ^ tag * LOW_BITS));
        Self(first >> 7 | second >> 3)
    }
}

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.0.trailing_zeros() / 4;
        self.0 &= self.0 - 1;
        Some(slot as usize)
    }
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self {
            tags: std::array::from_fn(|_| AtomicU64::new(0)),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// The tags and the overflow count. Relaxed: they are hints, see the head of the table.
    #[inline]
    pub(super) fn tags(&self) -> Tags {
        Tags([self.tags[0].load(Relaxed), self.tags[1].load(Relaxed)])
    }

    fn set_tag(&self, slot: usize, tag: u64) {
        let (word, shift) = (&self.tags[slot % 2], slot / 2 * 8);
        word.store(word.load(Relaxed) & !(0xff << shift) | tag << shift, Relaxed);
    }

    /// A slot that holds nothing.
    fn free_slot(&self) -> Option<usize> {
        Matches::new(self.tags().0, 0).find(|slot| self.slots[*slot].load(Relaxed) == 0)
    }

    /// Adds to the overflow count, or takes from it.
    fn count_overflow(&self, by: i64) {
        let word = self.tags[0].load(Relaxed);
        let count = word >> OVERFLOW_SHIFT;
        if count != STUCK {
            let count = count.wrapping_add_signed(by);
            self.tags[0].store(word & TAGS | count << OVERFLOW_SHIFT, Relaxed);
        }
    }
}

/// The chunk where a hash is looked for first: below `chunks`, if that is not 0.
#[inline]
pub(super) fn home(hash: u32, chunks: usize) -> usize {
    (u64::from(hash) * chunks as u64 >> 32) as usize
}

#[inline]
fn after(at: usize, chunks: usize) -> usize {
    if at + 1 < chunks { at + 1 } else { 0 }
}

/// A slot of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) slot: usize,
}

/// Finds the slot with a hash's tag whose node `is_it`.
#[inline]
pub(super) fn probe(
    chunks: &[Chunk],
    hash: u32,
    mut is_it: impl FnMut(u32) -> bool,
) -> Option<Place> {
    let mut at = home(hash, chunks.len());
    for _ in 0..chunks.len() {
        let tags = chunks[at].tags();
        for slot in tags.matches(hash) {
            // Acquire: pairs with the Release in `publish` and in `Locked::replace`.
            let index = chunks[at].slots[slot].load(Acquire);
            if index != 0 && is_it(index) {
                return Some(Place { chunk: at, slot });
            }
        }
        if !tags.overflowed() {
            return None;
        }
        at = after(at, chunks.len());
    }
    None
}

/// Puts a node into the first free slot from its home on; there must be one.
pub(super) fn publish(chunks: &[Chunk], hash: u32, index: u32) {
    let mut at = home(hash, chunks.len());
    let slot = loop {
        if let Some(slot) = chunks[at].free_slot() {
            break slot;
        }
        chunks[at].count_overflow(1);
        at = after(at, chunks.len());
    };
    // Release: the node is complete. Pairs with the Acquire of the look-ups; checked by
    // `loom_a_look_up_sees_a_whole_entry`.
    chunks[at].slots[slot].store(index, Release);
    chunks[at].set_tag(slot, tag_of(hash));
}

/// Empties a slot and takes the entry out of the counts between its home and there.
pub(super) fn withdraw(chunks: &[Chunk], hash: u32, place: Place) {
    chunks[place.chunk].slots[place.slot].store(0, Relaxed);
    chunks[place.chunk].set_tag(place.slot, 0);
    let mut passed = home(hash, chunks.len());
    while passed != place.chunk {
        chunks[passed].count_overflow(-1);
        passed = after(passed, chunks.len());
    }
}
