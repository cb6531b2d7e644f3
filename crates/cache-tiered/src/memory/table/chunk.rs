//! The cache lines of the table: tags, overflow counts and node indices, and how a hash finds its way
//! among them.
//!
//! A chunk holds twelve entries: their tags, byte by byte in two words, the count of the entries that
//! went on because the chunk was full, and the indices of their nodes. Writers are alone, under the
//! table's lock; what a reader may meet meanwhile is told in the head of [`table`](super).

#![forbid(unsafe_code)]

use crate::sync::{Acquire, AtomicU32, AtomicU64, Relaxed, Release};

/// Slots of a chunk.
pub(super) const SLOTS: usize = 12;

/// A cache line of the table.
#[repr(C, align(64))]
pub(super) struct Chunk {
    /// A byte for each slot, lowest first. That of an empty slot is 0, but so are others. Above the last
    /// four: the overflow count.
    tags: [AtomicU64; 2],
    /// Node indices, 0 where the slot is empty.
    pub(super) slots: [AtomicU32; SLOTS],
}

/// Where the overflow count stands in a chunk's second word.
const OVERFLOW_SHIFT: u32 = 32;
const LAST_TAGS: u64 = (1 << OVERFLOW_SHIFT) - 1;
/// A count that is no longer known exactly and never goes down again.
const STUCK: u64 = u32::MAX as u64;

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
        self.0[1] >> OVERFLOW_SHIFT != 0
    }
}

/// A hash's tag.
#[inline]
fn tag_of(hash: u32) -> u8 {
    hash as u8
}

/// The slots of a chunk that may have a tag, each below [`SLOTS`]: none is missing, one too many is
/// possible.
#[derive(Clone, Copy)]
pub(super) struct Matches(u64);

impl Matches {
    /// Compares all bytes at once; bit `s` is for slot `s`.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn new(words: [u64; 2], tag: u8) -> Self {
        Self(u64::from(super::equal_bytes(words, tag)) & ((1 << SLOTS) - 1))
    }

    /// Finds the bytes that are zero after an exclusive or; the subtraction borrows across such a byte
    /// and takes a 1 behind it for a 0. Bit `8 * b + w` is for byte `b` of word `w`.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    #[inline]
    fn new([first, last]: [u64; 2], tag: u8) -> Self {
        let low = u64::from_ne_bytes([1; 8]);
        let zeros = |word: u64| word.wrapping_sub(low) & !word & low << 7;
        let [first, last] = [first, last].map(|word| zeros(word ^ u64::from(tag) * low));
        Self(first >> 7 | (last & LAST_TAGS) >> 6)
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn slot(bit: u32) -> usize {
        bit as usize
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    #[inline]
    fn slot(bit: u32) -> usize {
        (bit / 8 + bit % 8 * 8) as usize
    }
}

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let slot = Self::slot(self.0.trailing_zeros());
        self.0 &= self.0 - 1;
        Some(slot)
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

    #[inline]
    fn set_tag(&self, slot: usize, tag: u8) {
        let (word, shift) = (&self.tags[slot / 8], slot % 8 * 8);
        word.store(word.load(Relaxed) & !(0xff << shift) | u64::from(tag) << shift, Relaxed);
    }

    /// A slot that holds nothing.
    #[inline]
    fn free_slot(&self) -> Option<usize> {
        Matches::new(self.tags().0, 0).find(|slot| self.slots[*slot].load(Relaxed) == 0)
    }

    /// The slot that holds a node.
    #[inline]
    fn slot_of(&self, hash: u32, index: u32) -> Option<usize> {
        self.tags().matches(hash).find(|slot| self.slots[*slot].load(Relaxed) == index)
    }

    #[inline]
    fn fill(&self, slot: usize, hash: u32, index: u32) {
        // Release: the node is complete. Pairs with the Acquire of the look-ups; checked by
        // `loom_a_look_up_sees_a_whole_entry`.
        self.slots[slot].store(index, Release);
        self.set_tag(slot, tag_of(hash));
    }

    #[inline]
    fn clear(&self, slot: usize) {
        self.slots[slot].store(0, Relaxed);
        self.set_tag(slot, 0);
    }

    /// Adds to the overflow count, or takes from it.
    fn count_overflow(&self, by: i64) {
        let word = self.tags[1].load(Relaxed);
        let count = word >> OVERFLOW_SHIFT;
        if count != STUCK {
            let count = count.wrapping_add_signed(by);
            self.tags[1].store(word & LAST_TAGS | count << OVERFLOW_SHIFT, Relaxed);
        }
    }
}

/// The chunk where a hash is looked for first: below `chunks`, if that is not 0.
#[inline]
pub(super) fn home(hash: u32, chunks: usize) -> usize {
    ((u64::from(hash) * chunks as u64) >> 32) as usize
}

/// Strides that an entry takes from its home before it looks at every chunk in turn.
const STRIDES: usize = 8;

/// The chunks where a hash may be, in the order in which they are tried.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    chunks: &'a [Chunk],
    hash: u32,
    at: usize,
    taken: usize,
}

impl<'a> Path<'a> {
    /// Begins at home.
    #[inline]
    pub(super) fn new(chunks: &'a [Chunk], hash: u32) -> Self {
        Self { chunks, hash, at: home(hash, chunks.len()), taken: 0 }
    }

    #[inline]
    fn chunk(&self) -> &'a Chunk {
        &self.chunks[self.at]
    }

    /// Goes on to the next chunk, by strides that differ from hash to hash so that full chunks do not
    /// fill their neighbours. The last ones, of 1, reach every chunk.
    #[inline]
    pub(super) fn advance(&mut self) {
        let step = if self.taken < STRIDES { (self.hash >> 8 & 0xff) as usize } else { 0 };
        self.at += step + 1;
        if self.at >= self.chunks.len() {
            self.at %= self.chunks.len();
        }
        self.taken += 1;
    }

    /// Finds the slot with the hash's tag whose node `is_it`, from here on.
    #[inline]
    pub(super) fn find(mut self, mut is_it: impl FnMut(u32) -> bool) -> Option<Place> {
        while self.taken < STRIDES + self.chunks.len() {
            let chunk = self.chunk();
            let tags = chunk.tags();
            for slot in tags.matches(self.hash) {
                // Acquire: pairs with the Release in `publish` and in `Locked::replace`.
                let index = chunk.slots[slot].load(Acquire);
                if index != 0 && is_it(index) {
                    return Some(Place { chunk: self.at, slot });
                }
            }
            if !tags.overflowed() {
                return None;
            }
            self.advance();
        }
        None
    }
}

/// A slot of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) slot: usize,
}

/// Puts a node into the first free slot on its path; there must be one.
#[inline]
pub(super) fn publish(chunks: &[Chunk], hash: u32, index: u32) {
    let home = &chunks[home(hash, chunks.len())];
    match home.free_slot() {
        Some(slot) => home.fill(slot, hash, index),
        None => publish_further(chunks, hash, index),
    }
}

#[inline(never)]
fn publish_further(chunks: &[Chunk], hash: u32, index: u32) {
    let mut path = Path::new(chunks, hash);
    let slot = loop {
        path.chunk().count_overflow(1);
        path.advance();
        if let Some(slot) = path.chunk().free_slot() {
            break slot;
        }
    };
    path.chunk().fill(slot, hash, index);
}

/// Empties the slot of a node and takes it out of the counts on the path to there; tells whether
/// there was one.
#[inline]
pub(super) fn withdraw(chunks: &[Chunk], hash: u32, index: u32) -> bool {
    let home = &chunks[home(hash, chunks.len())];
    match home.slot_of(hash, index) {
        Some(slot) => {
            home.clear(slot);
            true
        }
        None => withdraw_further(chunks, hash, index),
    }
}

#[inline(never)]
fn withdraw_further(chunks: &[Chunk], hash: u32, index: u32) -> bool {
    let Some(place) = Path::new(chunks, hash).find(|other| other == index) else { return false };
    chunks[place.chunk].clear(place.slot);
    let mut path = Path::new(chunks, hash);
    while path.at != place.chunk {
        path.chunk().count_overflow(-1);
        path.advance();
    }
    true
}
