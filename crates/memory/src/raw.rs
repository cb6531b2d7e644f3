//! All unsafe code of this crate, as primitives that are safe to call.
//!
//! - [`Text`], [`Handle`] and [`Stock`]: a counted string behind one pointer, a reference that is kept
//!   for the next time when it drops, and a bundle of references.
//! - [`TryCell`]: a value that one thread at a time may use and that nobody waits for.
//! - The `GlobalAlloc` of [`Tracked`](crate::Tracked) and [`TrackedExact`](crate::TrackedExact).
//! - [`return_addresses`]: where a call came from, as code addresses.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::ffi::{c_int, c_void};
use std::mem::{self, ManuallyDrop};
use std::ptr::{self, NonNull};
use std::slice;

use crate::interner;
use crate::sync::{
    Acquire, AtomicBool, AtomicU32, AtomicUsize, Relaxed, Release, UnsafeCell, fence,
};
use crate::tracked::{self, Tracked, TrackedExact};

// Counted strings.

/// What stands before the bytes of a [`Text`].
#[repr(C)]
struct Header {
    references: AtomicUsize,
    hash: u64,
    length: usize,
    owner: u32,
    mark: AtomicU32,
}

/// One counted reference to an immutable string: a pointer to the count, the hash and the bytes.
///
/// As `Arc<str>` with half the width and no weak count; the hash is kept so that a table never
/// computes it again.
pub(crate) struct Text {
    header: NonNull<Header>,
}

// SAFETY: all of the string is immutable but the atomics, and its memory is freed by whoever gives
// back the last reference, whichever thread that is.
unsafe impl Send for Text {}
// SAFETY: as above; a shared `Text` only gives shared access and clones.
unsafe impl Sync for Text {}

impl Text {
    /// The bytes a string takes beside its own.
    pub(crate) const OVERHEAD: usize = mem::size_of::<Header>();

    /// Copies `text` behind a new count of one.
    ///
    /// # Panics
    ///
    /// If the length and the header exceed `isize::MAX` bytes, which no `str` in memory does.
    pub(crate) fn new(text: &str, hash: u64, owner: u32) -> Self {
        let layout = Self::layout(text.len());
        // SAFETY: the header makes the size larger than zero.
        let pointer = unsafe { std::alloc::alloc(layout) };
        let Some(header) = NonNull::new(pointer.cast::<Header>()) else {
            handle_alloc_error(layout)
        };
        let references = AtomicUsize::new(1);
        let mark = AtomicU32::new(0);
        let value = Header { references, hash, length: text.len(), owner, mark };
        // SAFETY: the allocation is as large as a header and the bytes, aligned for the header, and
        // nobody else knows it; `text` is another allocation.
        unsafe {
            header.write(value);
            ptr::copy_nonoverlapping(text.as_ptr(), pointer.add(Self::OVERHEAD), text.len());
        }
        Self { header }
    }

    fn layout(length: usize) -> Layout {
        let bytes = Layout::array::<u8>(length).expect("a str is at most isize::MAX bytes");
        let (layout, offset) = Layout::new::<Header>().extend(bytes).expect("as above");
        debug_assert_eq!(offset, Self::OVERHEAD, "bytes need no padding");
        layout
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: this reference is counted, so the header is there and stays; it was written in
        // `new` and is only shared since.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        let length = self.header().length;
        // SAFETY: `new` copied `length` bytes of a `str` behind the header, within one allocation
        // whose provenance the pointer has; they never change.
        unsafe {
            let bytes = self.header.as_ptr().cast::<u8>().add(Self::OVERHEAD);
            str::from_utf8_unchecked(slice::from_raw_parts(bytes, length))
        }
    }

    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        self.header().hash
    }

    /// The number that `new` was given.
    #[inline]
    pub(crate) fn owner(&self) -> u32 {
        self.header().owner
    }

    /// A word for the owner's notes, zero at first.
    #[inline]
    pub(crate) fn mark(&self) -> &AtomicU32 {
        &self.header().mark
    }

    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.header == other.header
    }

    /// The references at this moment.
    ///
    /// One is certain, because it is the caller's own: then nobody else can make another.
    #[inline]
    pub(crate) fn references(&self) -> usize {
        // Acquire: what the givers-back did before their Release in `release` is visible to the one
        // who sees itself alone.
        self.header().references.load(Acquire)
    }

    /// Adds references that the caller promises to account for.
    #[inline]
    fn add(&self, count: usize) {
        // Relaxed: the caller holds a reference, so nothing can be freed meanwhile.
        let before = self.header().references.fetch_add(count, Relaxed);
        if before > isize::MAX as usize {
            // As in `Arc`: only a program that forgets references by the billion comes here.
            std::process::abort();
        }
    }

    /// Gives back `count` references, the last of which frees the string.
    ///
    /// # Safety
    ///
    /// The caller owns as many references and uses none of them again.
    #[inline]
    unsafe fn release(header: NonNull<Header>, count: usize) {
        // SAFETY: the references of the caller keep the header alive until the subtraction.
        let references = unsafe { &header.as_ref().references };
        // Release: pairs with the Acquire of the one that frees.
        if references.fetch_sub(count, Release) != count {
            return;
        }
        fence(Acquire);
        // SAFETY: the count is zero, so nobody else has the pointer. The layout is that of `new`.
        unsafe {
            let layout = Self::layout(header.as_ref().length);
            header.drop_in_place();
            std::alloc::dealloc(header.as_ptr().cast(), layout);
        }
    }
}

impl Clone for Text {
    #[inline]
    fn clone(&self) -> Self {
        self.add(1);
        Self { header: self.header }
    }
}

impl Drop for Text {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this value is one reference, and it ends here.
        unsafe { Self::release(self.header, 1) }
    }
}

/// A reference that goes to the front cache of its thread when it drops.
pub(crate) struct Handle {
    text: ManuallyDrop<Text>,
}

impl Handle {
    #[inline]
    pub(crate) fn new(text: Text) -> Self {
        Self { text: ManuallyDrop::new(text) }
    }

    #[inline]
    pub(crate) fn text(&self) -> &Text {
        &self.text
    }
}

impl Drop for Handle {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is the only place that takes it out, and nobody uses the handle after its drop.
        interner::put(unsafe { ManuallyDrop::take(&mut self.text) });
    }
}

/// At least one reference to one string, bought and given back in bulk.
///
/// This is weighted reference counting (Bevan, "Distributed Garbage Collection using Reference
/// Counting", 1987): a holder of many references hands some out without touching the shared count.
pub(crate) struct Stock {
    text: ManuallyDrop<Text>,
    /// References owned beside that of `text`.
    extra: u32,
    /// The highest bits of the hash, to turn another string away without looking at this one.
    tag: u16,
    /// A note of the holder.
    pub(crate) used: bool,
}

impl Stock {
    /// Makes a stock of the one reference.
    #[inline]
    pub(crate) fn new(text: Text) -> Self {
        let tag = Self::tag_of(text.hash());
        Self { text: ManuallyDrop::new(text), extra: 0, tag, used: false }
    }

    /// Buys a stock and one reference to hand out, in one addition.
    #[inline]
    pub(crate) fn buy(text: &Text, batch: u32) -> (Self, Text) {
        text.add(batch.max(1) as usize + 1);
        let mut stock = Self::new(Text { header: text.header });
        stock.extra = batch.max(1) - 1;
        (stock, Text { header: text.header })
    }

    #[inline]
    fn tag_of(hash: u64) -> u16 {
        (hash >> 48) as u16
    }

    /// Whether this is the stock of `text`, which has this hash.
    #[inline]
    pub(crate) fn is_of(&self, hash: u64, text: &str) -> bool {
        self.tag == Self::tag_of(hash) && self.text.as_str() == text
    }

    #[inline]
    pub(crate) fn text(&self) -> &Text {
        &self.text
    }

    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.extra + 1
    }

    /// Hands out one reference; buys `batch` more where only the last is left.
    #[inline]
    pub(crate) fn take(&mut self, batch: u32) -> Text {
        if self.extra == 0 {
            self.text.add(batch.max(1) as usize);
            self.extra = batch.max(1);
        }
        self.extra -= 1;
        Text { header: self.text.header }
    }

    /// Adds a reference to the same string; gives half back where there are more than `most`.
    ///
    /// A reference to another string comes back.
    #[inline]
    pub(crate) fn put(&mut self, text: Text, most: u32) -> Result<(), Text> {
        if !self.text.is(&text) {
            return Err(text);
        }
        mem::forget(text);
        self.extra += 1;
        if self.extra > most {
            let half = self.extra / 2;
            self.extra -= half;
            // SAFETY: `extra` counted them as ours, and does no longer.
            unsafe { Text::release(self.text.header, half as usize) }
        }
        Ok(())
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // SAFETY: `text` is one reference and `extra` counts more that are ours; all of them end
        // here, and `text` does not drop by itself.
        unsafe { Text::release(self.text.header, self.extra as usize + 1) }
    }
}

// A cell that nobody waits for.

/// A value that one thread at a time may use; who comes second is turned away.
#[derive(Debug)]
pub(crate) struct TryCell<T> {
    busy: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `busy` lets one thread at a time reach the value, so sharing the cell is sending the value.
unsafe impl<T: Send> Sync for TryCell<T> {}

impl<T> TryCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { busy: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Lets `work` use the value, unless somebody is using it.
    ///
    /// # Cost
    ///
    /// One exchange of a word that is only fought for when two threads come at once.
    #[inline]
    pub(crate) fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        /// Frees the cell, also when `work` panics.
        struct Free<'a>(&'a AtomicBool);
        impl Drop for Free<'_> {
            #[inline]
            fn drop(&mut self) {
                // Release: pairs with the Acquire of the next one's swap.
                self.0.store(false, Release);
            }
        }
        if self.busy.swap(true, Acquire) {
            return None;
        }
        let _free = Free(&self.busy);
        // SAFETY: the swap made this thread the only one between `busy` and its release.
        Some(self.value.with_mut(|value| work(unsafe { &mut *value })))
    }
}

// The tracked allocators.

// SAFETY: every call goes to the inner allocator with the layout it came with, and its answer is
// returned as it is; what is counted beside that are plain numbers. Neither counting nor sampling
// panics or unwinds: see `tracked`.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Tracked<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised to us.
        let pointer = unsafe { self.inner.alloc(layout) };
        if !pointer.is_null() {
            tracked::allocated(pointer.addr(), layout.size());
        }
        pointer
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised to us.
        let pointer = unsafe { self.inner.alloc_zeroed(layout) };
        if !pointer.is_null() {
            tracked::allocated(pointer.addr(), layout.size());
        }
        pointer
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Before the memory goes: afterwards another thread can have it at the same address.
        tracked::freed(pointer.addr(), layout.size());
        // SAFETY: as the caller promised to us.
        unsafe { self.inner.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        tracked::moving(pointer.addr());
        // SAFETY: as the caller promised to us.
        let moved = unsafe { self.inner.realloc(pointer, layout, size) };
        if !moved.is_null() {
            tracked::reallocated(moved.addr(), layout.size(), size);
        }
        moved
    }
}

/// Where an allocation of [`TrackedExact`] begins for the inner allocator, and how it asks for it.
///
/// The user's part comes behind a prefix that keeps its alignment; the owner's number is in the last
/// four bytes of the prefix.
#[inline]
fn with_prefix(layout: Layout) -> Option<(Layout, usize)> {
    let prefix = layout.align().max(tracked::PREFIX);
    let size = layout.size().checked_add(prefix)?;
    Some((Layout::from_size_align(size, prefix).ok()?, prefix))
}

impl<A: GlobalAlloc> TrackedExact<A> {
    /// Writes the owner into the prefix and counts; returns the user's part.
    ///
    /// # Safety
    ///
    /// `base` is null or an allocation of the layout that [`with_prefix`] gave with `prefix`.
    #[inline]
    unsafe fn hand_out(base: *mut u8, prefix: usize, size: usize) -> *mut u8 {
        if base.is_null() {
            return base;
        }
        let owner = tracked::allocated(base.addr() + prefix, size);
        // SAFETY: the prefix has at least 16 bytes, so its last four are inside of the allocation
        // and aligned, and what follows it is as large as the user asked for.
        unsafe {
            let pointer = base.add(prefix);
            pointer.cast::<u32>().sub(1).write(u32::from(owner));
            pointer
        }
    }

    /// Reads the owner of an allocation.
    ///
    /// # Safety
    ///
    /// `pointer` came out of [`hand_out`](Self::hand_out) and was not given back.
    #[inline]
    unsafe fn owner(pointer: *mut u8) -> u16 {
        // SAFETY: `hand_out` wrote a `u16` there.
        unsafe { pointer.cast::<u32>().sub(1).read() as u16 }
    }
}

// SAFETY: an allocation of the inner allocator is asked for larger by a prefix that is a multiple of
// the alignment, so the part behind it is as large and as aligned as the layout asks; giving back and
// moving work out the same prefix from the same layout. A size that overflows gives null.
unsafe impl<A: GlobalAlloc> GlobalAlloc for TrackedExact<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, prefix)) = with_prefix(layout) else { return ptr::null_mut() };
        // SAFETY: `whole` is not empty, and is what `hand_out` asks for.
        unsafe { Self::hand_out(self.inner.alloc(whole), prefix, layout.size()) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((whole, prefix)) = with_prefix(layout) else { return ptr::null_mut() };
        // SAFETY: as in `alloc`; the owner is outside of the user's part.
        unsafe { Self::hand_out(self.inner.alloc_zeroed(whole), prefix, layout.size()) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some((whole, prefix)) = with_prefix(layout) else { return };
        // SAFETY: the caller got `pointer` from us with this layout.
        unsafe {
            tracked::freed_of(Self::owner(pointer), pointer.addr(), layout.size());
            self.inner.dealloc(pointer.sub(prefix), whole);
        }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some((whole, prefix)) = with_prefix(layout) else { return ptr::null_mut() };
        let Some(whole_size) = size.checked_add(prefix) else { return ptr::null_mut() };
        if Layout::from_size_align(whole_size, whole.align()).is_err() {
            return ptr::null_mut();
        }
        tracked::moving(pointer.addr());
        // SAFETY: the caller got `pointer` from us with this layout, and the new size is a layout.
        // The prefix moves along, so the owner is there to be read.
        unsafe {
            let owner = Self::owner(pointer);
            let base = self.inner.realloc(pointer.sub(prefix), whole, whole_size);
            if base.is_null() {
                return base;
            }
            tracked::freed_of(owner, 0, layout.size());
            Self::hand_out(base, prefix, size)
        }
    }
}

// Where a call came from.

/// Fills `frames` with the addresses of the calls on this thread's stack, innermost first.
///
/// Returns how many there are. Nothing is allocated and no lock of this crate or of the standard
/// library is taken, so an allocator can call it. The names are left to whoever reads the addresses.
pub(crate) fn return_addresses(frames: &mut [usize]) -> usize {
    /// Where to write, and how many there are.
    struct Walk<'a> {
        frames: &'a mut [usize],
        depth: usize,
    }

    // The unwinder of the Itanium C++ ABI, section 1.3.3, with which the standard library is linked.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            visit: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(context: *mut c_void) -> usize;
    }
    /// `_URC_NO_REASON`: go on.
    const CONTINUE: c_int = 0;
    /// `_URC_END_OF_STACK`.
    const STOP: c_int = 5;

    unsafe extern "C" fn visit(context: *mut c_void, argument: *mut c_void) -> c_int {
        // SAFETY: `_Unwind_Backtrace` passes on the argument it was given, and calls this on the same
        // thread before it returns, one call at a time.
        let walk = unsafe { &mut *argument.cast::<Walk<'_>>() };
        // SAFETY: the context is the unwinder's own and valid during this call.
        let address = unsafe { _Unwind_GetIP(context) };
        match walk.frames.get_mut(walk.depth) {
            // The outermost frame of a thread has the address 0.
            Some(frame) if address != 0 => {
                *frame = address;
                walk.depth += 1;
                CONTINUE
            }
            _ => STOP,
        }
    }

    let mut walk = Walk { frames, depth: 0 };
    // SAFETY: `visit` keeps to its contract and does not unwind; `walk` outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk.depth
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_what_went_in() {
        for text in ["", "a", "GET /users/{id}", "\u{1f980}crab", &"x".repeat(10_000)] {
            let one = Text::new(text, 7, 3);
            let two = one.clone();
            assert_eq!((one.as_str(), one.hash(), one.owner()), (text, 7, 3));
            assert!(one.is(&two));
            assert_eq!(one.references(), 2);
            drop(one);
            assert_eq!((two.as_str(), two.references()), (text, 1));
        }
    }

    #[test]
    fn a_stock_counts_what_it_owns() {
        let text = Text::new("counted", 1, 1);
        let mut stock = Stock::new(text.clone());
        let taken: Vec<Text> = (0..5).map(|_| stock.take(4)).collect();
        assert_eq!(text.references(), 1 + 5 + stock.count() as usize);
        for one in taken {
            assert!(stock.put(one, 100).is_ok());
        }
        let other = Text::new("counted", 1, 1);
        assert!(stock.put(other, 100).is_err_and(|other| other.references() == 1));
        assert_eq!(text.references(), 1 + stock.count() as usize);
        drop(stock);
        assert_eq!(text.references(), 1);
        let (stock, handed) = Stock::buy(&text, 4);
        assert_eq!((stock.count(), text.references()), (4, 6));
        assert!(stock.is_of(1, "counted") && handed.is(&text));
        assert!(!stock.is_of(1, "others") && !stock.is_of(1 << 48, "counted"));
        drop((stock, handed));
        assert_eq!(text.references(), 1);
    }

    #[test]
    fn a_stock_gives_half_back_beyond_its_most() {
        let text = Text::new("many", 1, 1);
        let mut stock = Stock::new(text.clone());
        for _ in 0..9 {
            assert!(stock.put(text.clone(), 8).is_ok());
        }
        assert_eq!(stock.count(), 6);
        assert_eq!(text.references(), 7);
    }

    #[test]
    fn a_cell_in_use_turns_away_and_survives_a_panic() {
        let cell = TryCell::new(1);
        assert_eq!(cell.try_with(|_| cell.try_with(|it| *it)), Some(None));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cell.try_with(|_| panic!("inside"))
        }));
        assert!(panicked.is_err());
        assert_eq!(cell.try_with(|it| *it), Some(1));
    }

    #[test]
    fn an_exact_allocation_keeps_its_alignment_and_its_bytes() {
        let exact = TrackedExact::new(std::alloc::System);
        for align in [1, 8, 16, 64, 4_096] {
            let layout = Layout::from_size_align(100, align).expect("a valid layout");
            // SAFETY: the layout is not empty; each pointer is used within its size and given back
            // once, with the size it then has.
            unsafe {
                let pointer = exact.alloc_zeroed(layout);
                assert_eq!(pointer.addr() % align, 0);
                assert!(slice::from_raw_parts(pointer, 100).iter().all(|byte| *byte == 0));
                pointer.write_bytes(7, 100);
                let pointer = exact.realloc(pointer, layout, 5_000);
                assert_eq!(pointer.addr() % align, 0);
                assert!(slice::from_raw_parts(pointer, 100).iter().all(|byte| *byte == 7));
                exact.dealloc(pointer, Layout::from_size_align(5_000, align).expect("valid"));
            }
        }
    }

    #[test]
    fn a_size_that_overflows_is_no_allocation() {
        let exact = TrackedExact::new(std::alloc::System);
        let layout = Layout::from_size_align(isize::MAX as usize - 7, 8).expect("the largest");
        // SAFETY: the layout is not empty.
        assert!(unsafe { exact.alloc(layout) }.is_null());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no stack to walk")]
    fn a_walk_finds_its_callers() {
        #[inline(never)]
        fn walk(deep: usize) -> usize {
            if deep > 0 {
                return std::hint::black_box(walk(deep - 1));
            }
            let mut frames = [0; 64];
            let depth = return_addresses(&mut frames);
            assert!(frames[..depth].iter().all(|frame| *frame != 0));
            depth
        }
        assert!(walk(10) >= walk(0) + 10);
        assert_eq!(return_addresses(&mut []), 0);
    }
}
