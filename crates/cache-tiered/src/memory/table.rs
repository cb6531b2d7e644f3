//! One shard: a hash table that is read without a lock, and the nodes that it finds.
//!
//! This is the crate's only file with unsafe code.
//!
//! # Structure
//!
//! *Nodes* hold a key, a value and what policies and wheels keep about them. They live in a slab of
//! segments that double in size and never move, so 24 bits name a node and links are indices.
//! The *table* is an array of chunks of one cache line: twelve tags of eight bits, a count of the
//! entries that overflowed the chunk, and twelve node indices. A key's home chunk comes from the upper
//! bits of its hash, its tag from the lower ones; what finds no room at home goes to the next chunk
//! that has some, and raises the overflow count of each chunk that it passes. A look-up compares the
//! twelve tags at once and goes on only past a chunk whose count is not zero. There are no tombstones,
//! and entries never move until the array is replaced as a whole. This is the table of F14 (Bronson
//! and Shi, "Open-sourcing F14", 2019) with two departures: any number of chunks, not only powers of
//! two, because a bounded cache knows how many it wants; and the next chunk in place of a second hash.
//!
//! # Protocol
//!
//! Writers hold the shard's lock and are alone. Readers hold a [`Guard`] of [`epoch`](super::epoch)
//! and nothing else; they write no shared line but a node's mark. What they may meet:
//!
//! - *A slot that changes.* A writer fills a node first and then stores its index in a slot
//!   (Release); the reader's load (Acquire) therefore finds the node complete. Tags and counts are
//!   hints: a reader that sees an old tag loads a slot that holds 0 or another node, and compares keys
//!   in any case. A key that is there during the whole look-up is found: its tag and its slot do not
//!   change, and the counts it raised stay above zero until it leaves.
//! - *A replaced value.* The new node's index goes into the same slot. A reader gets the old value or
//!   the new one, and a value is never written in place.
//! - *A removed node.* Its slot is set to 0 and the node waits in *limbo*, with its key and value
//!   intact. A reader that took its index before keeps a valid node. Once no reader that came before
//!   the removal is left (`epoch` tells), the key and the value are moved out, to be dropped by the
//!   caller outside the lock, and the node is free.
//! - *A new array.* Growing and shrinking build a new array from the hashes in the nodes and publish
//!   it (Release, Acquire); the old one waits in limbo. A reader of the old one sees the table as it
//!   was at that moment. Nodes that leave later are in limbo longer than it reads, because its epoch is
//!   not beyond their stamp: had it seen their epoch, it would have seen the new array.
//!
//! So "unlinking", in the sense of `epoch`, is the store into the slot, or the store of the array's
//! pointer. Limbo is stamped in batches, after the fence, never node by node: one fence and one look at
//! the readers serve a whole batch.
//!
//! # The other structure
//!
//! A lock that is biased towards readers (BRAVO: Dice and Kogan, USENIX ATC 2019), one per shard over
//! hashbrown and a slab of the same nodes, was measured beside this table: u64 under u64, 100,000
//! entries in eight shards, a plain clock, CPU time on two cores of an AMD EPYC as a ratio to
//! quick_cache in the same run, medians of seven; bytes as resident memory per entry at a million.
//!
//! |            | hit  | 2 threads | 90/10 mix | 2 threads | insert that evicts | 2 threads | bytes |
//! |------------|------|-----------|-----------|-----------|--------------------|-----------|-------|
//! | this table | 1.04 | 0.52      | 0.96      | 0.36      | 1.30               | 0.93      | 48.6  |
//! | BRAVO      | 1.03 | 0.51      | 1.32      | 0.71      | 0.93               | 0.83      | 50.5  |
//!
//! Hits cost the same, one exchange and one store each. But a write has to take the bias away, which
//! waits for the readers of the shard, and until it comes back readers pay for the lock; here writes
//! wait for nobody and pay for limbo. A cache is read more than written, so this one was kept.
//!
//! Whatever the safe code around it does with links and marks, the memory stays sound: whether a node
//! is in the table is written in a bit that only this file touches, and every index is checked against
//! it before its key or its value is touched.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, needs_drop};
use std::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use crate::Equivalent;
use crate::policy::{self, NIL};
use crate::sync::{
    Acquire, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, Mutex, MutexGuard, Relaxed, Release,
    UnsafeCell, spin_loop, yield_now,
};

use super::epoch::{self, Guard};

use chunk::{Chunk, Path, SLOTS};

mod chunk;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// The bits of a node's index.
const INDEX_BITS: u32 = 24;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
const _: () = assert!(NIL == INDEX_MASK, "a link that leads nowhere is one of the mask's bits");

/// How many nodes a shard can hold, those in limbo included.
pub(crate) const MAX_NODES: u32 = INDEX_MASK - 1;

/// The segments that the expected entries fill, about, as a power of two.
const SEGMENTS_BITS: u32 = 4;
/// The nodes of a segment are a power of two in this range.
const SEGMENT_BITS: std::ops::RangeInclusive<u32> = if cfg!(loom) { 1..=1 } else { 6..=16 };

/// The share of the slots that the expected number of entries fills.
const LOAD: f64 = 0.66;

/// The share of the slots past which the array grows.
const MAX_LOAD: f64 = 0.87;

/// Set in the upper bits of a node's `prev`, which nobody but this file writes, while the node is in the
/// table: its key and its value can be read.
const LIVE: u32 = 1 << INDEX_BITS;

/// A flag: [`Locked::take_released`] tells when the node has left limbo.
pub(crate) const REPORTED: u8 = 1 << 7;

/// How long what was removed may wait for its readers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimboOptions {
    /// Entries after which a writer looks whether the readers are gone.
    pub(crate) batch_entries: usize,
    /// Weight after which it looks, too.
    pub(crate) batch_weight: u64,
    /// Entries in limbo above which [`Table::settle`] waits.
    pub(crate) max_entries: usize,
    /// Weight in limbo above which it waits, too.
    pub(crate) max_weight: u64,
}

/// What a table is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableOptions {
    pub(crate) expected_entries: usize,
    pub(crate) limbo: LimboOptions,
    /// Keeps a stamp of the last use beside each node.
    pub(crate) idle_stamps: bool,
}

/// An entry on its way into the table.
#[derive(Debug)]
pub(crate) struct NewNode<K, V> {
    pub(crate) key: K,
    pub(crate) value: V,
    /// Well mixed, and not the bits that chose the shard.
    pub(crate) hash: u32,
    pub(crate) weight: u32,
    /// Milliseconds, of which 48 bits are kept, or [`NEVER`].
    pub(crate) deadline: u64,
    /// The caller's own, but for [`REPORTED`].
    pub(crate) flags: u8,
}

/// What a hit touches, side by side, so that it is rarely split by the end of a cache line.
///
/// Key and value are written while the node is free and read while it is live or in limbo; the other
/// fields can be read at any time.
struct Hot<K, V> {
    key: UnsafeCell<MaybeUninit<K>>,
    value: UnsafeCell<MaybeUninit<V>>,
    deadline_low: AtomicU32,
    deadline_high: AtomicU16,
    flags: AtomicU8,
    mark: AtomicU8,
}

#[repr(C)]
pub(crate) struct Node<K, V> {
    hot: Hot<K, V>,
    hash: AtomicU32,
    weight: AtomicU32,
    /// An index, and the policy's tag in the upper bits.
    next: AtomicU32,
    /// An index, and [`LIVE`] or not.
    prev: AtomicU32,
}

impl<K, V> Node<K, V> {
    /// A free node.
    fn new() -> Self {
        Self {
            hot: Hot {
                key: UnsafeCell::new(MaybeUninit::uninit()),
                value: UnsafeCell::new(MaybeUninit::uninit()),
                deadline_low: AtomicU32::new(0),
                deadline_high: AtomicU16::new(0),
                flags: AtomicU8::new(0),
                mark: AtomicU8::new(0),
            },
            hash: AtomicU32::new(0),
            weight: AtomicU32::new(0),
            next: AtomicU32::new(INDEX_MASK),
            prev: AtomicU32::new(INDEX_MASK),
        }
    }

    #[inline]
    fn is_live(&self) -> bool {
        self.prev.load(Relaxed) & LIVE != 0
    }

    /// The deadline in 48 bits, which are all set for never.
    #[inline]
    fn deadline_bits(&self) -> u64 {
        let low = u64::from(self.hot.deadline_low.load(Relaxed));
        low | u64::from(self.hot.deadline_high.load(Relaxed)) << 32
    }
}

const DEADLINE_NEVER: u64 = (1 << 48) - 1;

/// A link with another index and the same upper bits.
#[inline]
fn repack(link: u32, index: u32) -> u32 {
    link & !INDEX_MASK | index & INDEX_MASK
}

/// Where the nodes are: a directory of segments, which is replaced by a longer one when it is full.
///
/// A segment is one allocation of nodes and, where they are kept, a stamp for each. The directory
/// does not hold its address but where node 0 would be if the segment reached down to it, so that
/// adding an index gives the node. Index 0 names no node.
struct Slab<K, V> {
    directory: AtomicPtr<AtomicPtr<Node<K, V>>>,
    /// The nodes of a segment, as a power of two.
    bits: u32,
    stamps: bool,
    /// Both, as a [`Found`] carries them above its index.
    shape: u32,
}

/// Set in a slab's shape where it keeps stamps; the bits of its segments are below.
const STAMPED: u32 = 1 << 31;

impl<K, V> Slab<K, V> {
    /// The directory's entry for a node.
    ///
    /// # Safety
    ///
    /// The directory reaches the index, and the caller knows that from a slot or holds the lock. During
    /// `'a` the guard under which it read the slot, or the lock, is held.
    #[inline]
    unsafe fn segment<'a>(&self, index: u32) -> &'a AtomicPtr<Node<K, V>> {
        // Acquire: pairs with the Release in `extend_directory`, which lies before the first index
        // that needs the longer directory.
        let directory = self.directory.load(Acquire);
        // SAFETY: the directory reaches the index. It is freed like an array: when no guard that could
        // have loaded it is left, and only under the lock.
        unsafe { &*directory.add((index >> self.bits) as usize) }
    }

    /// The node `index`.
    ///
    /// # Safety
    ///
    /// The node was made, and the caller knows its index from a slot or holds the lock. During `'a` the
    /// guard under which it read the slot, or the lock, is held.
    #[inline]
    unsafe fn node<'a>(&self, index: u32) -> &'a Node<K, V> {
        // SAFETY: as the caller says. The lock, or the guard as long as the node is not free, keeps
        // the segment from being given back. The node is initialized: its fields are atomics, or cells
        // that may be empty.
        unsafe { &*self.node_ptr(index).as_ptr() }
    }

    /// # Safety
    ///
    /// As for [`node`](Self::node).
    #[inline]
    unsafe fn node_ptr(&self, index: u32) -> NonNull<Node<K, V>> {
        // SAFETY: as the caller says. Node and address are of the same allocation, which is not at 0.
        unsafe {
            let origin = self.segment(index).load(Relaxed);
            NonNull::new_unchecked(origin.wrapping_add(index as usize))
        }
    }

    /// The index of the first node in the segment of another one.
    fn first(&self, index: u32) -> u32 {
        index >> self.bits << self.bits
    }

    /// Where the segment of a node begins, from what the directory says.
    fn start(&self, origin: *mut Node<K, V>, index: u32) -> *mut Node<K, V> {
        origin.wrapping_add(self.first(index) as usize)
    }

    /// Where the stamp of a node is, in a segment that begins at `start`.
    fn stamp_ptr(&self, start: *mut Node<K, V>, index: u32) -> *mut AtomicU32 {
        let (_, stamps) = Self::layout(self.bits, self.stamps);
        let offset = index - self.first(index);
        start.wrapping_byte_add(stamps).cast::<AtomicU32>().wrapping_add(offset as usize)
    }

    /// The layout of a segment, and where its stamps begin.
    fn layout(bits: u32, stamps: bool) -> (Layout, usize) {
        let nodes = Layout::array::<Node<K, V>>(1 << bits);
        let stamps = Layout::array::<AtomicU32>(usize::from(stamps) << bits);
        let both = nodes.and_then(|nodes| nodes.extend(stamps?));
        both.expect("2^16 nodes fit an address space")
    }

    /// Allocates a segment, whose nodes and stamps are not initialized.
    ///
    /// # Safety
    ///
    /// As for [`segment`](Self::segment), and the segment does not exist yet.
    unsafe fn fill(&self, index: u32) {
        let (layout, _) = Self::layout(self.bits, self.stamps);
        // SAFETY: a node has links, so the layout is not empty.
        let start = unsafe { alloc(layout) }.cast::<Node<K, V>>();
        if start.is_null() {
            handle_alloc_error(layout);
        }
        let origin = start.wrapping_sub(self.first(index) as usize);
        // SAFETY: as the caller says.
        unsafe { self.segment(index) }.store(origin, Relaxed);
    }

    /// Gives the segment of a node back to the allocator.
    ///
    /// # Safety
    ///
    /// As for [`segment`](Self::segment), and the segment exists. Each of its nodes is free or was
    /// never made, and nobody uses one any more.
    unsafe fn give_back(&self, index: u32) {
        // SAFETY: as the caller says; `fill` allocated it with this layout, and free nodes own nothing.
        unsafe {
            let start = self.start(self.segment(index).load(Relaxed), index);
            dealloc(start.cast(), Self::layout(self.bits, self.stamps).0);
        }
    }
}

/// A directory that was allocated and is freed by hand.
struct Directory<K, V> {
    start: NonNull<AtomicPtr<Node<K, V>>>,
    len: usize,
}

// SAFETY: a directory only holds addresses; what may be done at them is the slab's affair.
unsafe impl<K, V> Send for Directory<K, V> {}

impl<K, V> Directory<K, V> {
    /// Makes one that begins with the segments of a shorter one.
    fn new(len: usize, shorter: &[AtomicPtr<Node<K, V>>]) -> Self {
        let segment = |at| {
            let old: Option<&AtomicPtr<_>> = shorter.get(at);
            AtomicPtr::new(old.map_or(ptr::null_mut(), |old| old.load(Relaxed)))
        };
        let segments: Box<[_]> = (0..len).map(segment).collect();
        Self { start: NonNull::from(Box::leak(segments)).cast(), len }
    }

    /// # Safety
    ///
    /// Nobody uses the directory any more, and it is not freed twice.
    unsafe fn free(self) {
        let segments = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: `new` leaked a box of this length.
        drop(unsafe { Box::from_raw(segments) });
    }
}

/// The first line of an array, in front of its chunks.
#[repr(C, align(64))]
struct Header {
    chunks: u32,
    /// Where the allocation begins: up to a line before this, because an allocator asked for a whole
    /// line's alignment would write the zeros itself, and so touch every page.
    allocation: *mut u8,
}

/// An array of chunks, which is freed by hand once no reader can be in it.
#[derive(Clone, Copy)]
struct Array(NonNull<Header>);

// SAFETY: an array owns its memory, which holds nothing but atomics and two constants.
unsafe impl Send for Array {}

impl Array {
    /// A header, the chunks, and a line to align them in.
    fn layout(chunks: u32) -> Layout {
        let lines = size_of::<Header>() * 2 + size_of::<Chunk>() * chunks as usize;
        Layout::from_size_align(lines, align_of::<u64>()).expect("2^24 lines fit")
    }

    /// How many chunks hold `entries` at the load that look-ups like.
    fn chunks_for(entries: usize) -> u32 {
        let entries = entries.clamp(1, MAX_NODES as usize);
        ((entries as f64 / (SLOTS as f64 * LOAD)).ceil() as u32).max(1)
    }

    /// Makes an empty array. Its pages are not touched, so that one that is larger than needed takes
    /// addresses but no memory.
    fn new(chunks: u32) -> Self {
        let layout = Self::layout(chunks);
        // SAFETY: the layout is not empty.
        let allocation = unsafe { alloc_zeroed(layout) };
        if allocation.is_null() {
            handle_alloc_error(layout);
        }
        let start = allocation.wrapping_add(allocation.align_offset(align_of::<Header>()));
        let start = NonNull::new(start.cast::<Header>()).expect("it lies in the allocation");
        // SAFETY: aligned, and with room for the chunks behind it: there is a line more than that.
        unsafe { start.write(Header { chunks, allocation }) };
        let array = Self(start);
        for at in if cfg!(loom) { 0..chunks as usize } else { 0..0 } {
            // SAFETY: within the allocation. Loom's atomics are not bare zeros, the real ones are.
            unsafe { Self::first_chunk(array.0.as_ptr()).add(at).write(Chunk::new()) };
        }
        array
    }

    fn first_chunk(header: *mut Header) -> *mut Chunk {
        header.wrapping_add(1).cast()
    }

    /// # Safety
    ///
    /// The array is not freed during `'a`.
    #[inline]
    unsafe fn chunks<'a>(self) -> &'a [Chunk] {
        // SAFETY: the header was written by `new` and never again; the chunks lie behind it, are
        // initialized (zeros are valid atomics) and only changed through their atomics.
        unsafe {
            std::slice::from_raw_parts(
                Self::first_chunk(self.0.as_ptr()),
                self.0.as_ref().chunks as usize,
            )
        }
    }

    /// # Safety
    ///
    /// Nobody uses the array any more, and it is not freed twice.
    unsafe fn free(self) {
        // SAFETY: the header is still there, and `new` allocated with the layout of its count.
        unsafe {
            let header = self.0.as_ref();
            dealloc(header.allocation, Self::layout(header.chunks));
        }
    }
}

/// The bytes of two words that equal another, lowest first, a bit for each.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn equal_bytes([first, last]: [u64; 2], byte: u8) -> u16 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let bytes = _mm_set_epi64x(last.cast_signed(), first.cast_signed());
        let equal = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte.cast_signed()));
        _mm_movemask_epi8(equal) as u16
    }
}

/// Asks for a cache line that will be needed soon.
#[inline]
fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch is a hint; it has no effect on the program whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// What left together and waits for the readers of its time.
struct Batch<K, V> {
    stamp: u64,
    nodes: Vec<u32>,
    weight: u64,
    memory: Option<Memory<K, V>>,
}

/// What was replaced by something larger or smaller.
enum Memory<K, V> {
    Array(Array),
    Directory(Directory<K, V>),
}

impl<K, V> Memory<K, V> {
    /// # Safety
    ///
    /// Nobody uses it any more, and it is not freed twice.
    unsafe fn free(self) {
        // SAFETY: as the caller says.
        unsafe {
            match self {
                Self::Array(array) => array.free(),
                Self::Directory(directory) => directory.free(),
            }
        }
    }
}

/// What the lock protects.
struct Inner<K, V, X> {
    /// Entries in the table.
    len: usize,
    /// Entries above which the array grows.
    room: usize,
    /// Nodes below this index are initialized, and their segments exist.
    /// Index 0 is among them, and is never used.
    made: u32,
    /// The segments that the directory has room for.
    directory_len: usize,
    /// How many segments there are.
    segments: usize,
    /// Free nodes, the last one first to go.
    free: Vec<u32>,
    /// Free nodes beyond `wanted`, used only when there is no other, so that their segments can go.
    spare: Vec<u32>,
    /// As many nodes as the table expects to need.
    wanted: u32,
    /// Spare nodes at which it is tried to give segments back.
    trim_at: usize,
    /// The nodes that left since the last batch was closed, and their weight.
    open: Vec<u32>,
    open_weight: u64,
    batches: VecDeque<Batch<K, V>>,
    /// What is in `batches`: nodes, their weight, and how many batches hold more than those.
    closed: usize,
    closed_weight: u64,
    memory: usize,
    /// Whether any node was ever to be reported, and those that have left limbo since they were asked for.
    reports: bool,
    released: Vec<u32>,
    options: TableOptions,
    state: X,
}

/// One shard's entries, read without a lock, and `X`, which changes under the lock with them.
pub(crate) struct Table<K, V, X> {
    array: AtomicPtr<Header>,
    /// How many chunks it has, for [`prefetch`](Self::prefetch) alone.
    chunks: AtomicU32,
    slab: Slab<K, V>,
    /// On lines of its own: readers share the fields above, and writers write here.
    inner: CachePadded<Mutex<Inner<K, V, X>>>,
    /// It owns keys and values.
    owns: PhantomData<(K, V)>,
}

// SAFETY: keys and values may be dropped on another thread than they came from, and readers on many
// threads share them; the state is only reached under the lock.
unsafe impl<K: Send, V: Send, X: Send> Send for Table<K, V, X> {}
// SAFETY: as above.
unsafe impl<K: Send + Sync, V: Send + Sync, X: Send> Sync for Table<K, V, X> {}

/// An entry that was found; it stays as it is while the guard, or the lock, is held.
///
/// Two words, so that a look-up gives it back in registers.
pub(crate) struct Found<'g, K, V> {
    /// Reaches the whole segment.
    node: NonNull<Node<K, V>>,
    /// The index, and the shape of the slab above it.
    index: u32,
    held: PhantomData<&'g Node<K, V>>,
}

impl<K, V> Clone for Found<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Found<'_, K, V> {}

impl<'g, K, V> Found<'g, K, V> {
    /// # Safety
    ///
    /// As for [`Slab::node`], with `'g` as its `'a`; and before its key or its value is asked for, the
    /// node is live, or in limbo and held by the guard.
    #[inline]
    unsafe fn new(slab: &Slab<K, V>, index: u32) -> Self {
        // SAFETY: as the caller says.
        let node = unsafe { slab.node_ptr(index) };
        Self { node, index: index | slab.shape, held: PhantomData }
    }

    #[inline]
    fn node(&self) -> &'g Node<K, V> {
        // SAFETY: the node stays during `'g`, as `new` was promised.
        unsafe { self.node.as_ref() }
    }

    /// The node's index.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.index & INDEX_MASK
    }

    #[inline]
    pub(crate) fn key(&self) -> &'g K {
        // SAFETY: a `Found` is only made of a node that is live, or in limbo and held by a guard; its
        // key was written before it became so and is written again only after `'g`.
        self.node().hot.key.with(|key| unsafe { (*key).assume_init_ref() })
    }

    #[inline]
    pub(crate) fn value(&self) -> &'g V {
        // SAFETY: as for the key.
        self.node().hot.value.with(|value| unsafe { (*value).assume_init_ref() })
    }

    /// The deadline, or [`NEVER`].
    #[inline]
    pub(crate) fn deadline(&self) -> u64 {
        match self.node().deadline_bits() {
            DEADLINE_NEVER => NEVER,
            deadline => deadline,
        }
    }

    pub(crate) fn weight(&self) -> u32 {
        self.node().weight.load(Relaxed)
    }

    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        self.node().hot.flags.load(Relaxed)
    }

    /// Counts a use, up to `max`; a use that races with another may be lost.
    #[inline]
    pub(crate) fn raise_mark(&self, max: u8) {
        let mark = &self.node().hot.mark;
        let uses = mark.load(Relaxed);
        if uses < max {
            mark.store(uses + 1, Relaxed);
        }
    }

    /// The stamp of the last use, where stamps are kept. What it holds is the caller's affair; it is 0
    /// when a node is new.
    #[inline]
    pub(crate) fn touched(&self) -> Option<&'g AtomicU32> {
        if self.index & STAMPED == 0 {
            return None;
        }
        let bits = (self.index & !STAMPED) >> INDEX_BITS;
        let offset = (self.index & ((1 << bits) - 1)) as usize;
        let (_, stamps) = Slab::<K, V>::layout(bits, true);
        let start = self.node.as_ptr().wrapping_sub(offset);
        let stamp = start.wrapping_byte_add(stamps).cast::<AtomicU32>().wrapping_add(offset);
        // SAFETY: the stamps lie behind the nodes of the segment, which stays during `'g`; a stamp is
        // initialized with its node.
        Some(unsafe { &*stamp })
    }
}

impl<K, V, X> Table<K, V, X> {
    /// Makes an empty table around `state`.
    pub(crate) fn new(options: TableOptions, state: X) -> Self {
        // The array follows the entries, so that a cache that is far from full stays dense.
        let chunks = Array::chunks_for(options.expected_entries.min(SLOTS));
        let expected = options.expected_entries.clamp(1, MAX_NODES as usize);
        let bits = expected.ilog2().saturating_sub(SEGMENTS_BITS);
        let bits = bits.clamp(*SEGMENT_BITS.start(), *SEGMENT_BITS.end());
        // One for what does not fill a segment, and one for what is in limbo.
        let directory = Directory::new((expected >> bits) + 2, &[]);
        Self {
            array: AtomicPtr::new(Array::new(chunks).0.as_ptr()),
            chunks: AtomicU32::new(chunks),
            slab: Slab {
                directory: AtomicPtr::new(directory.start.as_ptr()),
                bits,
                stamps: options.idle_stamps,
                shape: bits << INDEX_BITS | if options.idle_stamps { STAMPED } else { 0 },
            },
            inner: CachePadded::new(Mutex::new(Inner {
                len: 0,
                room: room(chunks),
                made: 0,
                directory_len: directory.len,
                segments: 0,
                free: Vec::new(),
                spare: Vec::new(),
                wanted: wanted(&options),
                trim_at: 1 << bits,
                open: Vec::new(),
                open_weight: 0,
                batches: VecDeque::new(),
                closed: 0,
                closed_weight: 0,
                memory: 0,
                reports: false,
                released: Vec::new(),
                options,
                state,
            })),
            owns: PhantomData,
        }
    }

    /// The chunks of the array that is current.
    ///
    /// # Safety
    ///
    /// During `'a` the caller's guard or lock is held.
    #[inline]
    unsafe fn chunks<'a>(&self) -> &'a [Chunk] {
        // Acquire: pairs with the Release in `rebuild`.
        let array = self.array.load(Acquire);
        // SAFETY: the pointer is never null; an array that was replaced is freed when no guard that
        // could have loaded it is left, and only under the lock.
        unsafe { Array(NonNull::new_unchecked(array)).chunks() }
    }

    /// Looks a key up. The hash is the one its node was inserted with.
    ///
    /// # Cost
    ///
    /// Two cache lines where the key is there; no lock and no write.
    #[inline]
    pub(crate) fn find<'g, Q>(
        &'g self,
        guard: &'g Guard,
        hash: u32,
        key: &Q,
    ) -> Option<Found<'g, K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let _ = guard;
        // SAFETY: the guard is held during `'g`.
        unsafe { self.look_up(hash, key) }
    }

    /// Asks for the cache line where a look-up of this hash begins; nothing has to be held for it.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        // Address and number may be of two arrays, or of one that is gone: a hint then asks in vain.
        let first = Array::first_chunk(self.array.load(Relaxed));
        let home = chunk::home(hash, self.chunks.load(Relaxed) as usize);
        prefetch(first.wrapping_add(home));
    }

    /// # Safety
    ///
    /// During `'g` a guard or the lock is held.
    #[inline(always)]
    unsafe fn look_up<'g, Q>(&'g self, hash: u32, key: &Q) -> Option<Found<'g, K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        // SAFETY: as the caller says.
        let chunks = unsafe { self.chunks() };
        // SAFETY: there is a chunk, so a home lies below their number.
        let chunk = unsafe { chunks.get_unchecked(chunk::home(hash, chunks.len())) };
        let tags = chunk.tags();
        for slot in tags.matches(hash) {
            // SAFETY: matches lie below the number of slots.
            let slot = unsafe { chunk.slots.get_unchecked(slot) };
            // Acquire: pairs with the Release in `publish` and in `Locked::replace`.
            let index = slot.load(Acquire);
            if index != 0 {
                // SAFETY: the index comes from a slot, under the guard or the lock.
                let found = unsafe { Found::new(&self.slab, index) };
                if key.equivalent(found.key()) {
                    return Some(found);
                }
            }
        }
        if tags.overflowed() { self.look_further(chunks, hash, key) } else { None }
    }

    /// Looks up a key that is not at home, where entries went on.
    #[inline(never)]
    fn look_further<'g, Q>(
        &'g self,
        chunks: &'g [Chunk],
        hash: u32,
        key: &Q,
    ) -> Option<Found<'g, K, V>>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let mut path = Path::new(chunks, hash);
        path.advance();
        let mut found = None;
        path.find(|index| {
            // SAFETY: the index comes from a slot, under the guard or the lock of `look_up`.
            let candidate = unsafe { Found::new(&self.slab, index) };
            let is_it = key.equivalent(candidate.key());
            if is_it {
                found = Some(candidate);
            }
            is_it
        });
        found
    }

    /// Calls `f` with every entry. One that stays throughout is seen exactly once; one that comes or
    /// goes meanwhile may be seen or not.
    pub(crate) fn for_each<'g>(&'g self, guard: &'g Guard, mut f: impl FnMut(Found<'g, K, V>)) {
        let _ = guard;
        // SAFETY: the guard is held during `'g`.
        let chunks: &'g [Chunk] = unsafe { self.chunks() };
        for slot in chunks.iter().flat_map(|chunk| &chunk.slots) {
            // Acquire: pairs with the Release in `publish`.
            let index = slot.load(Acquire);
            if index != 0 {
                // SAFETY: the index comes from a slot, under the guard.
                f(unsafe { Found::new(&self.slab, index) });
            }
        }
    }

    /// Takes the shard for writing.
    pub(crate) fn lock(&self) -> Locked<'_, K, V, X> {
        Locked { table: self, inner: self.inner.lock() }
    }

    /// Waits until limbo is within its bounds, unless the calling thread is itself a reader: then it
    /// may be the one that is waited for, and limbo stays as it is.
    ///
    /// The wait is for other threads to finish the look-ups they are in. No lock is held meanwhile, so
    /// that a reader whose `Clone` calls the cache comes to its end.
    pub(crate) fn settle(&self, dropped: &mut Vec<(K, V)>) {
        let mut tries = 0_u32;
        loop {
            let mut locked = self.lock();
            if !locked.is_over() {
                return;
            }
            locked.reclaim_now(dropped);
            if !locked.is_over() || epoch::thread_is_pinned() {
                return;
            }
            drop(locked);
            tries += 1;
            if tries < 64 && !cfg!(loom) { spin_loop() } else { yield_now() }
        }
    }
}

/// The nodes that a table needs for its entries and for limbo; node 0 is one more.
fn wanted(options: &TableOptions) -> u32 {
    let nodes = options.expected_entries.saturating_add(options.limbo.max_entries);
    u32::try_from(nodes).unwrap_or(u32::MAX).min(MAX_NODES) + 1
}

/// The entries that an array with `chunks` chunks takes before it grows.
fn room(chunks: u32) -> usize {
    ((f64::from(chunks) * SLOTS as f64 * MAX_LOAD) as usize).max(1)
}

/// A table whose lock is held.
pub(crate) struct Locked<'t, K, V, X> {
    table: &'t Table<K, V, X>,
    inner: MutexGuard<'t, Inner<K, V, X>>,
}

impl<K, V, X> Locked<'_, K, V, X> {
    /// The links and marks of the nodes, and the state beside them.
    #[inline]
    pub(crate) fn split(&mut self) -> (Nodes<'_, K, V>, &mut X) {
        let inner = &mut *self.inner;
        let slab = &self.table.slab;
        let nodes = Nodes {
            directory: slab.directory.load(Relaxed),
            bits: slab.bits,
            made: inner.made,
            slab,
        };
        (nodes, &mut inner.state)
    }

    pub(crate) fn state(&mut self) -> &mut X {
        &mut self.inner.state
    }

    /// The nodes ever made and not given back: every index is below.
    pub(crate) fn made(&self) -> u32 {
        self.inner.made
    }

    /// Entries in the table.
    pub(crate) fn len(&self) -> usize {
        self.inner.len
    }

    /// Entries that were removed and still wait, and their weight.
    pub(crate) fn limbo(&self) -> (usize, u64) {
        let inner = &*self.inner;
        (inner.closed + inner.open.len(), inner.closed_weight + inner.open_weight)
    }

    #[inline]
    fn chunks(&self) -> &[Chunk] {
        // SAFETY: the lock is held during the borrow.
        unsafe { self.table.chunks() }
    }

    #[inline]
    fn node(&self, index: u32) -> &Node<K, V> {
        assert!(index < self.inner.made, "an index that was never given out");
        // SAFETY: the node was made, and the lock is held during the borrow.
        unsafe { self.table.slab.node(index) }
    }

    /// An entry that is in the table.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<Found<'_, K, V>> {
        if index >= self.inner.made || !self.node(index).is_live() {
            return None;
        }
        // SAFETY: the node was made and is live, and the lock is held during the borrow.
        Some(unsafe { Found::new(&self.table.slab, index) })
    }

    /// The key and the value of an entry that is in the table.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn entry(&self, index: u32) -> Option<(&K, &V)> {
        self.get(index).map(|found| (found.key(), found.value()))
    }

    /// Looks a key up under the lock, which the keys' `Eq` must not ask for again.
    #[inline]
    pub(crate) fn find<Q>(&self, hash: u32, key: &Q) -> Option<u32>
    where
        Q: Equivalent<K> + ?Sized,
    {
        // SAFETY: the lock is held during the borrow.
        let found = unsafe { self.table.look_up(hash, key) }?;
        Some(found.index())
    }

    pub(crate) fn set_flags(&mut self, index: u32, flags: u8) {
        self.node(index).hot.flags.store(flags, Relaxed);
    }

    /// Puts an entry in whose key is not there; `prepare` is told its index before anybody finds it.
    ///
    /// # Errors
    ///
    /// Gives the entry back if the shard holds as many nodes as it has names for.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        new: NewNode<K, V>,
        prepare: impl FnOnce(u32),
    ) -> Result<u32, NewNode<K, V>> {
        let hash = new.hash;
        let Some(index) = self.vacancy() else { return Err(new) };
        // SAFETY: the vacancy is this call's.
        unsafe { self.fill(index, new) };
        prepare(index);
        if self.inner.len >= self.inner.room {
            self.grow();
        }
        chunk::publish(self.chunks(), hash, index);
        self.inner.len += 1;
        Ok(index)
    }

    #[cold]
    fn grow(&mut self) {
        let (len, expected) = (self.inner.len, self.inner.options.expected_entries);
        let doubled = 2 * len.max(SLOTS);
        // The last step lands on what is expected, and does not stop shortly before it.
        let grown = if len < expected && doubled > expected / 2 { expected } else { doubled };
        self.rebuild(Array::chunks_for(grown.max(len + 1)));
    }

    /// Puts an entry in the place of one with the same key and hash, which goes to limbo; `prepare` is
    /// told its index before anybody finds it.
    ///
    /// # Errors
    ///
    /// Gives the entry back if the shard holds as many nodes as it has names for.
    ///
    /// # Panics
    ///
    /// If `old` is not in the table, or has another hash.
    pub(crate) fn replace(
        &mut self,
        old: u32,
        new: NewNode<K, V>,
        prepare: impl FnOnce(u32),
    ) -> Result<u32, NewNode<K, V>> {
        let node = self.node(old);
        assert!(node.is_live(), "only an entry of the table is replaced");
        assert_eq!(node.hash.load(Relaxed), new.hash, "the same key has the same hash");
        let place = Path::new(self.chunks(), new.hash).find(|other| other == old);
        let place = place.expect("a live node is in the table under its hash");
        let Some(index) = self.vacancy() else { return Err(new) };
        // SAFETY: the vacancy is this call's.
        unsafe { self.fill(index, new) };
        prepare(index);
        // Release: the new node is complete. Pairs with the Acquire of the look-ups; checked by
        // `loom_a_look_up_sees_the_old_value_or_the_new`.
        self.chunks()[place.chunk].slots[place.slot].store(index, Release);
        self.enter_limbo(old);
        Ok(index)
    }

    /// Takes an entry out of the table; its key and its value go to limbo.
    ///
    /// # Panics
    ///
    /// If it is not in the table.
    #[inline]
    pub(crate) fn retire(&mut self, index: u32) {
        let node = self.node(index);
        assert!(node.is_live(), "only an entry of the table leaves it");
        let was_there = chunk::withdraw(self.chunks(), node.hash.load(Relaxed), index);
        assert!(was_there, "a live node is in the table under its hash");
        self.inner.len -= 1;
        self.enter_limbo(index);
    }

    /// Puts a node that was unlinked, and was live until now, into the open batch.
    #[inline]
    fn enter_limbo(&mut self, index: u32) {
        let node = self.node(index);
        node.prev.store(node.prev.load(Relaxed) & !LIVE, Relaxed);
        let weight = u64::from(node.weight.load(Relaxed));
        self.inner.open.push(index);
        self.inner.open_weight += weight;
    }

    /// Asks for the lines that the next eviction will touch, if its victim is the node that the last one
    /// pointed at: policies evict along their links, so that is a good guess.
    #[inline]
    pub(crate) fn expect_after(&self, victim: u32) {
        let linked = |index| {
            let next = self.node(index).next.load(Relaxed) & INDEX_MASK;
            (next < self.inner.made).then_some(next)
        };
        let Some(next) = linked(victim) else { return };
        self.table.prefetch(self.node(next).hash.load(Relaxed));
        if let Some(after) = linked(next) {
            // Where the links are: key and value may lie on another line, and are not needed.
            prefetch(&raw const self.node(after).prev);
        }
    }

    /// A free node, which is nobody else's now.
    #[inline]
    fn vacancy(&mut self) -> Option<u32> {
        self.inner.free.pop().or_else(|| self.make())
    }

    /// Fills a node; nobody sees it yet.
    ///
    /// # Safety
    ///
    /// The node comes from `vacancy`, and nothing was done with it since.
    #[inline]
    unsafe fn fill(&mut self, index: u32, new: NewNode<K, V>) {
        let node = self.node(index);
        let NewNode { key, value, hash, weight, deadline, flags } = new;
        let reported = flags & REPORTED != 0;
        // SAFETY: the node is free: no reader can hold it, and the lock keeps writers away. It owns no
        // key and no value that would be lost.
        node.hot.key.with_mut(|place| unsafe { (*place).write(key) });
        // SAFETY: as for the key.
        node.hot.value.with_mut(|place| unsafe { (*place).write(value) });
        let deadline = deadline.min(DEADLINE_NEVER);
        node.hot.deadline_low.store(deadline as u32, Relaxed);
        node.hot.deadline_high.store((deadline >> 32) as u16, Relaxed);
        node.hot.flags.store(flags, Relaxed);
        node.hot.mark.store(0, Relaxed);
        node.hash.store(hash, Relaxed);
        node.weight.store(weight, Relaxed);
        node.next.store(INDEX_MASK, Relaxed);
        node.prev.store(LIVE | INDEX_MASK, Relaxed);
        if self.table.slab.stamps {
            // SAFETY: the node was made and is full, and the lock is held.
            let stamp = unsafe { Found::new(&self.table.slab, index) }.touched();
            stamp.expect("stamps are kept").store(0, Relaxed);
        }
        self.inner.reports |= reported;
    }

    /// # Safety
    ///
    /// The node left limbo with this call: no reader holds it or can find it, and its key and its value
    /// were moved out, or have nothing to drop.
    #[inline]
    unsafe fn free(&mut self, index: u32) {
        let inner = &mut *self.inner;
        if index < inner.wanted { inner.free.push(index) } else { inner.spare.push(index) }
    }

    /// Takes a spare node, or makes one more, with its segment if it is the first one there.
    #[inline(never)]
    fn make(&mut self) -> Option<u32> {
        let index = self.inner.made;
        if index >= self.inner.wanted
            && let Some(spare) = self.inner.spare.pop()
        {
            return Some(spare);
        }
        if index > MAX_NODES {
            return None;
        }
        let slab = &self.table.slab;
        let segment = (index >> slab.bits) as usize;
        if segment == self.inner.directory_len {
            self.extend_directory();
        }
        if segment == self.inner.segments {
            // SAFETY: the directory reaches the index now, and the lock is held.
            unsafe { slab.fill(index) };
            self.inner.segments += 1;
        }
        // SAFETY: the segment exists, and nobody has a reference to a node that was not made.
        unsafe {
            let origin = slab.segment(index).load(Relaxed);
            origin.wrapping_add(index as usize).write(Node::new());
            if slab.stamps {
                slab.stamp_ptr(slab.start(origin, index), index).write(AtomicU32::new(0));
            }
        }
        self.inner.made = index + 1;
        if index == 0 { self.make() } else { Some(index) }
    }

    /// Replaces the directory by one that is twice as long; the old one goes to limbo.
    #[cold]
    fn extend_directory(&mut self) {
        let start = NonNull::new(self.table.slab.directory.load(Relaxed));
        let start = start.expect("there always is a directory");
        let old = Directory { start, len: self.inner.directory_len };
        // SAFETY: the directory holds so many segments, is freed later, and is only changed through
        // its atomics.
        let segments = unsafe { std::slice::from_raw_parts(start.as_ptr(), old.len) };
        let longer = Directory::new(old.len * 2, segments);
        // Release: it is complete. Pairs with the Acquire in `Slab::segment`; checked by
        // `loom_a_look_up_survives_a_new_directory`.
        self.table.slab.directory.store(longer.start.as_ptr(), Release);
        self.inner.directory_len = longer.len;
        let oldest = epoch::horizon();
        self.stamp(oldest, Some(Memory::Directory(old)));
    }

    /// Replaces the array by one of `chunks` chunks; the old one goes to limbo.
    fn rebuild(&mut self, chunks: u32) {
        let array = Array::new(chunks);
        // SAFETY: nobody else knows the array yet.
        let into = unsafe { array.chunks() };
        for slot in self.chunks().iter().flat_map(|chunk| &chunk.slots) {
            let index = slot.load(Relaxed);
            if index != 0 {
                chunk::publish(into, self.node(index).hash.load(Relaxed), index);
            }
        }
        let old = self.table.array.load(Relaxed);
        // Release: the array is complete. Pairs with the Acquire in `Table::chunks`; checked by
        // `loom_a_look_up_survives_a_new_array`.
        self.table.array.store(array.0.as_ptr(), Release);
        self.table.chunks.store(chunks, Relaxed);
        self.inner.room = room(chunks);
        let old = NonNull::new(old).map(Array).expect("there always is an array");
        let oldest = epoch::horizon();
        self.stamp(oldest, Some(Memory::Array(old)));
    }

    /// Closes the open batch: what is in it was unlinked before the call of `horizon` that told
    /// `oldest`.
    fn stamp(&mut self, oldest: u64, memory: Option<Memory<K, V>>) {
        if self.inner.open.is_empty() && memory.is_none() {
            return;
        }
        // With no reader there is nothing to tell apart, and no epoch to write.
        let stamp = if oldest == epoch::NOBODY { 0 } else { epoch::advance() };
        let inner = &mut *self.inner;
        let nodes = std::mem::take(&mut inner.open);
        let weight = std::mem::take(&mut inner.open_weight);
        inner.closed += nodes.len();
        inner.closed_weight += weight;
        inner.memory += usize::from(memory.is_some());
        inner.batches.push_back(Batch { stamp, nodes, weight, memory });
    }

    /// Moves out what no reader can hold any more, for the caller to drop after the lock.
    ///
    /// Entries whose drop does nothing are not among it: they are just gone.
    ///
    /// # Cost
    ///
    /// Nothing until a batch is full; then a fence and a look at each thread's slot.
    #[inline]
    pub(crate) fn reclaim(&mut self, dropped: &mut Vec<(K, V)>) {
        let limits = &self.inner.options.limbo;
        if self.inner.open.len() >= limits.batch_entries
            || self.inner.open_weight >= limits.batch_weight
            || self.inner.memory > 0
        {
            self.reclaim_now(dropped);
        }
    }

    /// As [`reclaim`](Self::reclaim), without waiting for a batch to fill.
    pub(crate) fn reclaim_now(&mut self, dropped: &mut Vec<(K, V)>) {
        if self.inner.open.is_empty() && self.inner.batches.is_empty() {
            return;
        }
        let oldest = epoch::horizon();
        self.stamp(oldest, None);
        while let Some(batch) = self.inner.batches.pop_front_if(|batch| batch.stamp < oldest) {
            let Batch { mut nodes, weight, memory, .. } = batch;
            self.inner.closed -= nodes.len();
            self.inner.closed_weight -= weight;
            for index in nodes.drain(..) {
                if self.inner.reports && self.node(index).hot.flags.load(Relaxed) & REPORTED != 0 {
                    self.inner.released.push(index);
                }
                if needs_drop::<(K, V)>() || cfg!(loom) {
                    let hot = &self.node(index).hot;
                    // SAFETY: a node in limbo holds a key and a value. Its readers are gone, and once
                    // it is free nobody takes them again.
                    let key = hot.key.with_mut(|key| unsafe { (*key).assume_init_read() });
                    // SAFETY: as for the key.
                    let value = hot.value.with_mut(|value| unsafe { (*value).assume_init_read() });
                    dropped.push((key, value));
                }
                // SAFETY: its readers are gone, and it was taken out of limbo and emptied here.
                unsafe { self.free(index) };
            }
            if self.inner.open.capacity() < nodes.capacity() && self.inner.open.is_empty() {
                self.inner.open = nodes;
            }
            if let Some(memory) = memory {
                self.inner.memory -= 1;
                // SAFETY: it was replaced before its stamp, and its readers are gone; a batch is taken
                // once.
                unsafe { memory.free() };
            }
        }
        if self.inner.spare.len() >= self.inner.trim_at {
            self.trim();
        }
    }

    /// The nodes with [`REPORTED`] that have left limbo since the last call. To be asked for before an
    /// entry is put in, which may be given one of them.
    #[inline]
    pub(crate) fn take_released(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.inner.released)
    }

    /// Whether limbo is over its bounds, and [`Table::settle`] called for.
    pub(crate) fn is_over(&self) -> bool {
        let limits = &self.inner.options.limbo;
        let (entries, weight) = self.limbo();
        entries > limits.max_entries || weight > limits.max_weight
    }

    /// Prepares for another number of entries: a larger array at once, a smaller one once the entries
    /// fit, and segments at the end that hold nothing any more go back to the allocator.
    pub(crate) fn resize(&mut self, expected_entries: usize, limbo: LimboOptions) {
        self.inner.options.expected_entries = expected_entries;
        self.inner.options.limbo = limbo;
        let chunks = Array::chunks_for(expected_entries.max(self.inner.len));
        if chunks as usize != self.chunks().len() {
            self.rebuild(chunks);
        }
        let inner = &mut *self.inner;
        inner.wanted = wanted(&inner.options);
        let mut free = std::mem::take(&mut inner.free);
        free.append(&mut inner.spare);
        // The lowest ones last, which are taken first.
        free.sort_unstable_by(|one, other| other.cmp(one));
        let wanted = free.partition_point(|index| *index >= inner.wanted);
        inner.free = free.split_off(wanted);
        inner.spare = free;
        self.trim();
    }

    /// Gives back the segments at the end in which every node is spare.
    #[cold]
    fn trim(&mut self) {
        let slab = &self.table.slab;
        let inner = &mut *self.inner;
        inner.spare.sort_unstable();
        // The first segment stays, with node 0.
        while inner.segments > 1 {
            let last = inner.made - 1;
            let first = slab.first(last);
            let below = inner.spare.partition_point(|index| *index < first);
            if inner.spare.len() - below != (last - first + 1) as usize {
                break;
            }
            inner.spare.truncate(below);
            // SAFETY: the segment is the last one, and the lock is held. All of its nodes were free, so
            // no guard keeps one, and from here on no index reaches them.
            unsafe { slab.give_back(last) };
            inner.segments -= 1;
            inner.made = first;
        }
        inner.spare.shrink_to(64);
        inner.free.shrink_to(64);
        inner.trim_at = inner.spare.len() + (1 << slab.bits);
    }
}

impl<K, V, X> Drop for Table<K, V, X> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let array = NonNull::new(self.array.load(Relaxed)).map(Array);
        let array = array.expect("there always is an array");
        let mut limbo = std::mem::take(&mut inner.open);
        for batch in inner.batches.drain(..) {
            limbo.extend(batch.nodes);
            if let Some(memory) = batch.memory {
                // SAFETY: nobody else has the table, and a batch is taken once.
                unsafe { memory.free() };
            }
        }
        // SAFETY: as above; the current array is in no batch.
        unsafe { array.free() };
        let live = (1..inner.made).filter(|index| {
            // SAFETY: the node was made, and nobody else has the table.
            unsafe { self.slab.node(*index) }.is_live()
        });
        for index in live.chain(limbo).filter(|_| needs_drop::<(K, V)>()) {
            // SAFETY: as above.
            let hot = unsafe { &self.slab.node(index).hot };
            // SAFETY: nodes that are live or in limbo hold a key and a value; none is both.
            hot.key.with_mut(|key| unsafe { (*key).assume_init_drop() });
            // SAFETY: as for the key.
            hot.value.with_mut(|value| unsafe { (*value).assume_init_drop() });
        }
        for segment in 0..inner.segments {
            // SAFETY: the segment exists, nothing is left in its nodes, and nobody else has the table.
            unsafe { self.slab.give_back((segment << self.slab.bits) as u32) };
        }
        let start = NonNull::new(self.slab.directory.load(Relaxed));
        let start = start.expect("there always is a directory");
        let directory = Directory { start, len: inner.directory_len };
        // SAFETY: nobody else has the table, and the current directory is in no batch.
        unsafe { directory.free() };
    }
}

impl<K, V, X> fmt::Debug for Table<K, V, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

/// The links, marks and constants of a shard's nodes, under its lock.
///
/// # Panics
///
/// Every method does, if the index was never given out.
pub(crate) struct Nodes<'a, K, V> {
    /// As in `slab`, where it does not change as long as this borrows the lock.
    directory: *const AtomicPtr<Node<K, V>>,
    bits: u32,
    made: u32,
    slab: &'a Slab<K, V>,
}

impl<K, V> Clone for Nodes<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Nodes<'_, K, V> {}

impl<K, V> Nodes<'_, K, V> {
    #[inline]
    fn node(&self, index: u32) -> &Node<K, V> {
        assert!(index < self.made, "an index that was never given out");
        // SAFETY: the node was made, so the directory and a segment reach it, and both stay as long as
        // this view borrows the lock.
        unsafe {
            let origin = (*self.directory.add((index >> self.bits) as usize)).load(Relaxed);
            &*origin.wrapping_add(index as usize)
        }
    }

    pub(crate) fn flags(&self, index: u32) -> u8 {
        self.node(index).hot.flags.load(Relaxed)
    }

    pub(crate) fn deadline(&self, index: u32) -> u64 {
        match self.node(index).deadline_bits() {
            DEADLINE_NEVER => NEVER,
            deadline => deadline,
        }
    }

    /// The stamp of the last use, if the table keeps them.
    pub(crate) fn touched(&self, index: u32) -> Option<&AtomicU32> {
        assert!(index < self.made, "an index that was never given out");
        // SAFETY: the node was made, and the lock is held as long as this view lives. A stamp is there
        // whether the node is live or not.
        unsafe { Found::new(self.slab, index) }.touched()
    }
}

impl<K, V> policy::Nodes for Nodes<'_, K, V> {
    type Node<'a>
        = &'a Node<K, V>
    where
        Self: 'a;

    #[inline]
    fn at(&self, node: u32) -> &Node<K, V> {
        self.node(node)
    }
}

impl<K, V> policy::Node for &Node<K, V> {
    #[inline]
    fn next(self) -> u32 {
        self.next.load(Relaxed) & INDEX_MASK
    }

    #[inline]
    fn set_next(self, to: u32) {
        self.next.store(repack(self.next.load(Relaxed), to), Relaxed);
    }

    #[inline]
    fn prev(self) -> u32 {
        self.prev.load(Relaxed) & INDEX_MASK
    }

    #[inline]
    fn set_prev(self, to: u32) {
        self.prev.store(repack(self.prev.load(Relaxed), to), Relaxed);
    }

    #[inline]
    fn tag(self) -> u8 {
        (self.next.load(Relaxed) >> INDEX_BITS) as u8
    }

    #[inline]
    fn link(self, tag: u8, prev: u32, next: u32) {
        self.next.store(repack(u32::from(tag) << INDEX_BITS, next), Relaxed);
        self.set_prev(prev);
    }

    #[inline]
    fn mark(self) -> u8 {
        self.hot.mark.load(Relaxed)
    }

    #[inline]
    fn set_mark(self, mark: u8) {
        self.hot.mark.store(mark, Relaxed);
    }

    #[inline]
    fn hash(self) -> u32 {
        self.hash.load(Relaxed)
    }

    #[inline]
    fn weight(self) -> u32 {
        self.weight.load(Relaxed)
    }
}
