//! All unsafe code of this crate, as small primitives that are safe to call.
//!
//! # Values that belong to a thread and can still be visited
//!
//! [`PerThread`] has a slot for every thread. The owner of a slot uses it without a locked instruction:
//! it says `inside`, looks whether a visitor has said `wanted`, and goes in only if none has. A visitor
//! says `wanted` and waits until the owner is not `inside`. Each side writes its own flag and then reads
//! the other's, as in Dekker's algorithm, so between the two there has to be a full fence on both sides.
//! The owner comes by millions of times for each visit, so the fences are asymmetric: the owner's is one
//! for the compiler only, and the visitor has the kernel run a fence on every core that runs a thread of
//! this process (`membarrier(2)`, `MEMBARRIER_CMD_PRIVATE_EXPEDITED`). Where the kernel does not offer
//! that, both sides take the full fence.
//!
//! Neither side waits for long: an owner that finds a visitor goes without its value, and a visitor gives
//! an owner up that stays `inside` (it has been preempted there) after a bounded number of looks.

#![allow(unsafe_code)]

use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::sync::{Acquire, AtomicBool, Mutex, Relaxed, Release, UnsafeCell, yield_now};

/// Threads that can have slots at the same time; a later one does without.
#[cfg(not(loom))]
pub(crate) const THREADS_MAX: usize = CHUNKS * CHUNK;
const CHUNKS: usize = if cfg!(loom) { 1 } else { 64 };
const CHUNK: usize = if cfg!(loom) { 3 } else { 16 };

/// How often a visitor looks whether the owner has left, yielding in between.
const LOOKS_MAX: u32 = if cfg!(loom) { 2 } else { 200 };

/// A value `T` for each thread, which its thread reaches without a lock, and a shared part `S` beside it.
pub(crate) struct PerThread<S, T> {
    /// No other `PerThread` of this process ever has the same.
    id: u64,
    /// Slots come in chunks that are made when the first thread needs one, and never move.
    chunks: [OnceLock<Chunk<S, T>>; CHUNKS],
    /// Held by the one visitor.
    visitor: Mutex<()>,
}

type Chunk<S, T> = Box<[CachePadded<Slot<S, T>>; CHUNK]>;

struct Slot<S, T> {
    /// The owner is using the value. Written by the owner alone.
    inside: AtomicBool,
    /// A visitor is using the value or waits for it. Written under the visitors' lock.
    wanted: AtomicBool,
    /// Here because the owner reads this cache line anyway.
    light: fences::Light,
    shared: S,
    value: UnsafeCell<T>,
}

// SAFETY: a `&PerThread` lets a thread reach `&S` of any thread, hence `S: Sync`, and `&mut T` of any
// thread, but of each value one thread at a time (see `Slot::own`), which is sending it: `T: Send`.
unsafe impl<S: Send + Sync, T: Send> Sync for PerThread<S, T> {}

impl<S: Default, T: Default> PerThread<S, T> {
    pub(crate) fn new() -> Self {
        fences::decide();
        Self {
            id: thread::next_id(),
            chunks: [const { OnceLock::new() }; CHUNKS],
            visitor: Mutex::new(()),
        }
    }

    /// Runs `f` with the slot of this thread: its shared part, and its value unless a visitor or a caller
    /// further up on this thread's stack has it.
    ///
    /// A thread that is ending, or is one of more than `THREADS_MAX`, has no slot.
    ///
    /// # Cost
    ///
    /// Two stores and two loads of a cache line that belongs to this thread.
    #[inline(always)]
    pub(crate) fn mine<R>(&self, f: impl FnOnce(Option<(&S, Option<&mut T>)>) -> R) -> R {
        let Some(slot) = self.my_slot() else { return f(None) };
        // SAFETY: `my_slot` is the slot of this thread's number, which no other living thread has; and a
        // number that is given again went through a lock, so all that the former thread did is seen.
        unsafe { slot.own(|shared, value| f(Some((shared, value)))) }
    }

    /// Enters the slot of this thread; `None` where [`mine`](Self::mine) would give no value.
    ///
    /// For paths that are run so often that the one call of their closure has to be inlined.
    #[inline(always)]
    pub(crate) fn enter(&self) -> Option<Inside<'_, S, T>> {
        let slot = self.my_slot()?;
        // As in `Slot::own`.
        (!slot.inside.load(Relaxed) && slot.enter()).then_some(Inside { slot })
    }

    #[inline(always)]
    fn my_slot(&self) -> Option<&Slot<S, T>> {
        let (id, slot) = thread::last();
        if id == self.id {
            // SAFETY: numbers of `PerThread`s are not given twice, so `find_slot` of this one stored the
            // pointer, on this thread; its slots stay where they are while it lives. When the thread's
            // number is given back, the pointer is forgotten.
            return Some(unsafe { &*slot.cast() });
        }
        self.find_slot()
    }

    #[inline(never)]
    fn find_slot(&self) -> Option<&Slot<S, T>> {
        let slot = self.slot(thread::index()?);
        thread::set_last(self.id, std::ptr::from_ref(slot).cast());
        Some(slot)
    }

    /// Runs `f` with the value of every slot that was ever used; returns how many it had to leave out.
    ///
    /// `f` must not come back to this `PerThread`: it would find no value and no other visitor's place.
    ///
    /// # Cost
    ///
    /// A system call that interrupts every core on which this process runs: a few microseconds.
    pub(crate) fn visit(&self, mut f: impl FnMut(&S, &mut T)) -> usize {
        let _visitor = self.visitor.lock();
        for slot in self.slots() {
            slot.wanted.store(true, Relaxed);
        }
        // All flags are up before one fence for all of them; each comes down when its slot is done, and
        // all of them if `f` panics.
        let _down = OnDrop(|| self.slots().for_each(|slot| slot.wanted.store(false, Release)));
        if !fences::heavy() {
            return self.slots().count();
        }
        let mut left_out = 0;
        for slot in self.slots() {
            // SAFETY: this is the one visitor, `wanted` is up, and the heavy fence has been run since.
            let visited = unsafe { slot.visit(&mut f) };
            left_out += usize::from(!visited);
        }
        left_out
    }

    /// The parts of all slots that may be looked at from any thread.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &S> {
        self.slots().map(|slot| &slot.shared)
    }

    /// All slots whose chunk has been made. A chunk that is made meanwhile is left out from then on by
    /// every later call of one visit too only if it was left out before: `wanted` is down in it, so
    /// `Slot::visit` refuses it.
    fn slots(&self) -> impl Iterator<Item = &Slot<S, T>> {
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        chunks.flat_map(|chunk| chunk.iter().map(|slot| &**slot))
    }

    #[inline]
    fn slot(&self, index: usize) -> &Slot<S, T> {
        let chunk = &self.chunks[index / CHUNK % CHUNKS];
        let chunk = match chunk.get() {
            Some(chunk) => &**chunk,
            None => Self::make(chunk),
        };
        &chunk[index % CHUNK]
    }

    #[cold]
    fn make(chunk: &OnceLock<Chunk<S, T>>) -> &[CachePadded<Slot<S, T>>; CHUNK] {
        chunk.get_or_init(|| {
            let slots: Vec<_> = (0..CHUNK).map(|_| CachePadded::new(Slot::new())).collect();
            slots.try_into().ok().expect("as many as a chunk has")
        })
    }
}

/// This thread inside of its slot, until it goes. It cannot go to another thread: a slot is not `Sync`.
pub(crate) struct Inside<'s, S, T> {
    slot: &'s Slot<S, T>,
}

impl<S, T> Inside<'_, S, T> {
    /// Runs `f` with the slot of this thread and leaves it.
    #[inline(always)]
    pub(crate) fn with<R>(self, f: impl FnOnce(&S, &mut T) -> R) -> R {
        // SAFETY: as in `Slot::own`; this is the only `Inside` of the slot, and it ends here.
        self.slot.value.with_mut(|value| f(&self.slot.shared, unsafe { &mut *value }))
    }
}

impl<S, T> Drop for Inside<'_, S, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl<S: Default, T: Default> Slot<S, T> {
    fn new() -> Self {
        Self {
            inside: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            light: fences::light(),
            shared: S::default(),
            value: UnsafeCell::new(T::default()),
        }
    }
}

impl<S, T> Slot<S, T> {
    /// Runs `f` as the owner; without the value if somebody has it.
    ///
    /// # Safety
    ///
    /// Only one thread calls this at a time, and what an earlier such thread did happened before.
    #[inline(always)]
    unsafe fn own<R>(&self, f: impl FnOnce(&S, Option<&mut T>) -> R) -> R {
        // Only this thread writes `inside`: true means that a caller further up the stack is in here.
        if self.inside.load(Relaxed) || !self.enter() {
            return f(&self.shared, None);
        }
        let _leave = OnDrop(|| self.leave());
        // SAFETY: this thread is the only owner and was not inside before, so no other `&mut` comes
        // from here. A visitor that raised its flag before the fence of `enter` was seen there; one that
        // did so later sees `inside` after its own fence and does not touch the value until we leave.
        self.value.with_mut(|value| f(&self.shared, Some(unsafe { &mut *value })))
    }

    /// Says that the owner is inside, and takes that back if a visitor is.
    #[inline(always)]
    fn enter(&self) -> bool {
        self.inside.store(true, Relaxed);
        self.light.fence();
        // Acquire: pairs with the Release with which a visitor takes its flag down.
        let wanted = self.wanted.load(Acquire);
        if wanted {
            self.leave();
        }
        !wanted
    }

    #[inline]
    fn leave(&self) {
        // Release: what was done to the value is done before a visitor sees us gone. Pairs with the
        // Acquire in `visit`; checked by `loom_owner_and_visitor`.
        self.inside.store(false, Release);
    }

    /// Runs `f` as the visitor, unless the owner stays inside; tells whether it did.
    ///
    /// # Safety
    ///
    /// Only one thread calls this at a time, and has run `fences::heavy` since it put `wanted` up.
    unsafe fn visit(&self, f: impl FnOnce(&S, &mut T)) -> bool {
        if !self.wanted.load(Relaxed) {
            return true; // made since the flags were put up, and empty
        }
        let mut looks = 0;
        // Acquire: pairs with the Release in `own`.
        while self.inside.load(Acquire) {
            looks += 1;
            if looks > LOOKS_MAX {
                return false;
            }
            yield_now();
        }
        // SAFETY: `wanted` is up and the fence was run after that, so an owner that we see outside
        // will find the flag before it touches the value; visitors come one at a time.
        self.value.with_mut(|value| f(&self.shared, unsafe { &mut *value }));
        // Release: pairs with the Acquire in `own`.
        self.wanted.store(false, Release);
        true
    }
}

/// Runs a closure at the end of a scope, also when it ends by a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    #[inline]
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The two fences of the owner and the visitor.
mod fences {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    pub(super) use by_kernel::{Light, decide, heavy, light};
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    pub(super) use full::{Light, decide, heavy, light};

    /// The same full fence on both sides.
    #[cfg(not(all(target_os = "linux", not(loom), not(miri))))]
    mod full {
        #[cfg(loom)]
        use loom::sync::atomic::fence;
        use std::sync::atomic::Ordering::SeqCst;
        #[cfg(not(loom))]
        use std::sync::atomic::fence;

        pub(in crate::raw) fn decide() {}

        pub(in crate::raw) struct Light;

        impl Light {
            #[inline]
            pub(in crate::raw) fn fence(&self) {
                fence(SeqCst);
            }
        }

        pub(in crate::raw) fn light() -> Light {
            Light
        }

        pub(in crate::raw) fn heavy() -> bool {
            fence(SeqCst);
            true
        }
    }

    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    mod by_kernel {
        use std::sync::Once;
        use std::sync::atomic::Ordering::{Relaxed, SeqCst};
        use std::sync::atomic::{AtomicBool, compiler_fence, fence};

        use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

        /// Whether the kernel runs the fences; settled before the first `PerThread` exists.
        static BY_KERNEL: AtomicBool = AtomicBool::new(false);
        static DECIDED: Once = Once::new();

        /// Settles, once for the process, which fences are used.
        pub(in crate::raw) fn decide() {
            DECIDED.call_once(|| {
                let offered =
                    membarrier_query().contains_command(MembarrierCommand::PrivateExpedited);
                BY_KERNEL.store(offered && register(), Relaxed);
            });
        }

        fn register() -> bool {
            membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
        }

        /// The owner's fence.
        pub(in crate::raw) struct Light {
            by_kernel: bool,
        }

        impl Light {
            #[inline]
            pub(in crate::raw) fn fence(&self) {
                if self.by_kernel {
                    compiler_fence(SeqCst);
                } else {
                    fence(SeqCst);
                }
            }
        }

        pub(in crate::raw) fn light() -> Light {
            Light { by_kernel: BY_KERNEL.load(Relaxed) }
        }

        /// Runs the visitor's fence; false if that could not be done.
        pub(in crate::raw) fn heavy() -> bool {
            if !BY_KERNEL.load(Relaxed) {
                fence(SeqCst);
                return true;
            }
            let run = || membarrier(MembarrierCommand::PrivateExpedited).is_ok();
            // A forked child inherits our flag but not the kernel's registration.
            run() || (register() && run())
        }
    }
}

/// Something that wants to know when a thread ends.
pub(crate) trait ThreadEnd: Send + Sync {
    /// Runs on the thread that ends, while it still has its slots.
    fn thread_ends(&self);
}

/// Small numbers for living threads, and what is to be done when one ends.
#[cfg(not(loom))]
mod thread {
    use std::cell::{Cell, RefCell};
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    use std::ptr;
    use std::sync::Weak;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::{THREADS_MAX, ThreadEnd};

    /// No number has been asked for yet.
    const UNSET: usize = usize::MAX;
    /// The thread is ending, or all numbers were taken.
    const NONE: usize = usize::MAX - 1;

    thread_local! {
        /// Plain, so that reading it is one load; [`LEASE`] has the destructor.
        static INDEX: Cell<usize> = const { Cell::new(UNSET) };
        /// The slot that this thread has used last, and the number of its `PerThread`.
        static LAST: Cell<(u64, *const ())> = const { Cell::new((0, ptr::null())) };
        static LEASE: Lease = Lease::new();
    }

    static NEXT_ID: AtomicU64 = AtomicU64::new(1);

    static NUMBERS: parking_lot::Mutex<Numbers> =
        parking_lot::Mutex::new(Numbers { next: 0, free: BinaryHeap::new() });

    /// The numbers that are not in use; the smallest is given first, which keeps chunks few.
    struct Numbers {
        next: usize,
        free: BinaryHeap<Reverse<usize>>,
    }

    /// Holds a number for as long as its thread lives.
    struct Lease {
        index: Option<usize>,
        /// Pools that this thread has used. Dead ones go when the list would grow, so it is at most
        /// twice as long as there are pools.
        ends: RefCell<Vec<Weak<dyn ThreadEnd>>>,
    }

    impl Lease {
        fn new() -> Self {
            let mut numbers = NUMBERS.lock();
            let index = match numbers.free.pop() {
                Some(Reverse(index)) => Some(index),
                None if numbers.next < THREADS_MAX => {
                    numbers.next += 1;
                    Some(numbers.next - 1)
                }
                None => None,
            };
            INDEX.set(index.unwrap_or(NONE));
            Self { index, ends: RefCell::new(Vec::new()) }
        }
    }

    impl Drop for Lease {
        fn drop(&mut self) {
            for end in self.ends.take() {
                if let Some(end) = end.upgrade() {
                    end.thread_ends();
                }
            }
            LAST.set((0, ptr::null()));
            INDEX.set(NONE);
            if let Some(index) = self.index {
                NUMBERS.lock().free.push(Reverse(index));
            }
        }
    }

    pub(super) fn next_id() -> u64 {
        NEXT_ID.fetch_add(1, Relaxed)
    }

    #[inline(always)]
    pub(super) fn last() -> (u64, *const ()) {
        LAST.get()
    }

    pub(super) fn set_last(id: u64, slot: *const ()) {
        LAST.set((id, slot));
    }

    /// Returns the number of this thread, which no other living thread has.
    #[inline]
    pub(super) fn index() -> Option<usize> {
        let index = INDEX.get();
        if index < THREADS_MAX { Some(index) } else { first(index) }
    }

    #[cold]
    fn first(index: usize) -> Option<usize> {
        if index == NONE {
            return None;
        }
        LEASE.try_with(|lease| lease.index).ok().flatten()
    }

    /// Has `end` told when this thread ends; does nothing on a thread without a number.
    pub(crate) fn at_end(end: Weak<dyn ThreadEnd>) {
        let _ = LEASE.try_with(|lease| {
            let mut ends = lease.ends.borrow_mut();
            if ends.len() == ends.capacity() {
                ends.retain(|end| end.strong_count() > 0);
            }
            ends.push(end);
        });
    }
}

/// The threads of a model: each says which number it has, and its end is a call of the model's.
#[cfg(loom)]
pub(crate) mod thread {
    use std::cell::Cell;
    use std::sync::Weak;

    use super::ThreadEnd;

    loom::thread_local! {
        static INDEX: Cell<Option<usize>> = Cell::new(None);
    }

    pub(super) fn index() -> Option<usize> {
        INDEX.with(Cell::get)
    }

    pub(super) fn next_id() -> u64 {
        1
    }

    /// Nothing is remembered: the threads of a model share what belongs to a thread of the system.
    pub(super) fn last() -> (u64, *const ()) {
        (0, std::ptr::null())
    }

    pub(super) fn set_last(_id: u64, _slot: *const ()) {}

    pub(crate) fn at_end(_end: Weak<dyn ThreadEnd>) {}

    /// Gives this thread a number; no other thread of the model may have the same.
    #[cfg(test)]
    pub(crate) fn begin(index: usize) {
        INDEX.with(|it| it.set(Some(index)));
    }
}

pub(crate) use thread::at_end;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use super::*;

    fn with<R>(values: &PerThread<(), u64>, f: impl FnOnce(&mut u64) -> R) -> Option<R> {
        values.mine(|slot| slot?.1.map(f))
    }

    fn add(values: &PerThread<(), u64>) -> Option<u64> {
        with(values, |value| {
            *value += 1;
            *value
        })
    }

    #[test]
    fn a_thread_finds_what_it_left_and_no_other_thread_does() {
        let values = PerThread::new();
        assert_eq!((add(&values), add(&values)), (Some(1), Some(2)));
        thread::scope(|scope| {
            assert_eq!(scope.spawn(|| add(&values)).join().expect("no panic"), Some(1));
        });
    }

    #[test]
    fn a_caller_inside_of_another_goes_without() {
        let values = PerThread::new();
        assert_eq!(with(&values, |_| add(&values)), Some(None));
        assert_eq!(add(&values), Some(1));
    }

    #[test]
    fn a_panic_inside_leaves_the_slot_usable() {
        let values = PerThread::new();
        let inside = || with(&values, |_| panic!("on purpose"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(inside)).expect_err("it goes on");
        assert_eq!(add(&values), Some(1));
        let visit = || values.visit(|(), _| panic!("on purpose"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(visit)).expect_err("it goes on");
        assert_eq!(add(&values), Some(2));
    }

    #[test]
    fn a_visitor_reaches_the_values_of_threads_that_sleep_and_loses_no_change() {
        let values = Arc::new(PerThread::new());
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        let (woken, sleeping) = sync_channel::<()>(0);
        let sleeper = thread::spawn({
            let values = Arc::clone(&values);
            move || {
                while with(&values, |value| *value += 5).is_none() {}
                let _ = sleeping.recv();
            }
        });
        let mut taken = 0;
        let left = thread::scope(|scope| {
            let adder = scope.spawn(|| (0..rounds).filter(|_| add(&values).is_none()).count());
            while !adder.is_finished() {
                values.visit(|(), value| taken += std::mem::take(value));
                thread::yield_now();
            }
            adder.join().expect("no panic")
        });
        while taken < rounds - left as u64 + 5 {
            values.visit(|(), value| taken += std::mem::take(value));
        }
        drop(woken);
        sleeper.join().expect("no panic");
        assert_eq!(taken + left as u64, rounds + 5);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Both sides change the value by load and store, so a change is lost or seen as a race if they are
    /// ever in there together.
    #[test]
    fn loom_owner_and_visitor() {
        loom::model(|| {
            let values = Arc::new(PerThread::<(), u32>::new());
            super::thread::begin(0);
            // The chunk has to be there, or the visitor has nothing to visit.
            let with = |f: &mut dyn FnMut(&mut u32)| values.mine(|slot| slot?.1.map(f)).is_some();
            with(&mut |value| *value = 1);
            let visitor = thread::spawn({
                let values = Arc::clone(&values);
                move || {
                    let mut taken = 0;
                    values.visit(|(), value| taken += std::mem::take(value));
                    taken
                }
            });
            let mut added = 1;
            for _ in 0..2 {
                added += u32::from(with(&mut |value| *value += 1));
            }
            let taken = visitor.join().expect("no panic");
            let mut rest = 0;
            assert!(with(&mut |value| rest = *value), "the visit is over");
            assert_eq!(taken + rest, added);
        });
    }
}

/// A buffer of the pool as what `bytes` writes into.
#[cfg(feature = "buffers")]
mod buf_mut {
    use bytes::BufMut;
    use bytes::buf::UninitSlice;

    use crate::PooledBuf;

    // SAFETY: `chunk_mut` is the room after the contents, not empty because `spare_mut` makes it so, and
    // `advance_mut` moves by what the caller wrote there, within bounds that it checks. All of the
    // buffer's memory is initialised, whatever was written.
    unsafe impl BufMut for PooledBuf {
        #[inline]
        fn remaining_mut(&self) -> usize {
            isize::MAX as usize - self.len()
        }

        #[inline]
        unsafe fn advance_mut(&mut self, n: usize) {
            self.advance(n);
        }

        #[inline]
        fn chunk_mut(&mut self) -> &mut UninitSlice {
            UninitSlice::new(self.spare_mut(1))
        }

        #[inline]
        fn put_slice(&mut self, source: &[u8]) {
            self.extend_from_slice(source);
        }
    }
}

/// Calls into the C interfaces of allocators.
#[cfg(any(
    all(feature = "glibc", target_os = "linux", target_env = "gnu"),
    feature = "jemalloc",
    feature = "mimalloc"
))]
pub(crate) mod allocators {
    /// Has glibc give free pages of all its arenas back to the system (`malloc_trim(3)`).
    #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
    pub(crate) fn glibc_trim() {
        // SAFETY: it takes a number and no pointer, and is safe to call from any thread.
        unsafe { libc::malloc_trim(0) };
    }

    /// Bytes that glibc has given out: from its arenas and as mappings of their own (`mallinfo2(3)`).
    #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
    pub(crate) fn glibc_allocated() -> u64 {
        // SAFETY: it takes nothing and returns a plain structure by value, from any thread.
        let info = unsafe { libc::mallinfo2() };
        (info.uordblks + info.hblkhd) as u64
    }

    /// Reads a number of jemalloc's statistics, after it has been told to bring them up to date.
    ///
    /// `None` where this jemalloc has no such number.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_number(name: &core::ffi::CStr) -> Option<usize> {
        let mut value = 0usize;
        let mut length = size_of::<usize>();
        // SAFETY: the name ends in a zero byte; `value` and `length` outlive the call, and `length` says
        // how many bytes `value` has, which mallctl checks before it writes.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                (&raw mut value).cast(),
                &raw mut length,
                core::ptr::null_mut(),
                0,
            )
        };
        (failed == 0 && length == size_of::<usize>()).then_some(value)
    }

    /// Has jemalloc bring its statistics up to date.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_refresh() -> bool {
        let mut epoch = 1u64;
        // SAFETY: the name ends in a zero byte, and `epoch` holds the eight bytes that are announced;
        // nothing is asked back.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                c"epoch".as_ptr(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                (&raw mut epoch).cast(),
                size_of::<u64>(),
            )
        };
        failed == 0
    }

    /// Runs a command of jemalloc that takes and gives nothing, such as a purge; tells whether it has it.
    ///
    /// Such a command refuses any argument, so all pointers must be null.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_command(name: &core::ffi::CStr) -> bool {
        // SAFETY: the name ends in a zero byte, and with null pointers nothing is read or written.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                0,
            )
        };
        failed == 0
    }

    /// Has mimalloc collect this thread's free pages and give free pages of all arenas back.
    #[cfg(feature = "mimalloc")]
    pub(crate) fn mimalloc_collect() {
        // SAFETY: it takes a flag and no pointer, and initializes mimalloc for this thread by itself.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
        #[test]
        fn glibc_counts_what_is_allocated() {
            let before = glibc_allocated();
            let block = std::hint::black_box(vec![1u8; 32 << 20]);
            assert!(glibc_allocated() >= before + (16 << 20));
            drop(block);
            glibc_trim();
        }

        #[cfg(feature = "jemalloc")]
        #[test]
        fn jemalloc_knows_the_names_it_has_and_no_others() {
            assert!(jemalloc_refresh());
            assert!(jemalloc_number(c"stats.resident").is_some());
            assert_eq!(jemalloc_number(c"stats.nothing"), None);
            assert!(!jemalloc_command(c"arena.nothing"));
        }

        #[cfg(feature = "mimalloc")]
        #[test]
        fn mimalloc_collects_where_it_is_not_the_allocator() {
            mimalloc_collect();
        }
    }
}

// Counted strings.

pub(crate) use strings::{Handle, Stock, Text, TryCell};

/// A counted string behind one pointer ([`Text`]), a reference that is kept for the next time when it
/// drops ([`Handle`]), a bundle of references ([`Stock`]), and a cell that nobody waits for.
mod strings {
    use std::alloc::{Layout, handle_alloc_error};
    use std::mem::{self, ManuallyDrop};
    use std::ptr::{self, NonNull};
    use std::slice;

    use crate::interner;
    use crate::sync::{
        Acquire, AtomicBool, AtomicU32, AtomicUsize, Relaxed, Release, UnsafeCell, fence,
    };

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
                    // Release: pairs with the Acquire of the next one's exchange.
                    self.0.store(false, Release);
                }
            }
            self.busy.compare_exchange(false, true, Acquire, Relaxed).ok()?;
            let _free = Free(&self.busy);
            // SAFETY: the exchange made this thread the only one between `busy` and its release.
            Some(self.value.with_mut(|value| work(unsafe { &mut *value })))
        }
    }
}

// The tracked allocators.

pub(crate) use tracking::return_addresses;

/// The `GlobalAlloc` of [`Tracked`](crate::Tracked) and [`TrackedExact`](crate::TrackedExact), and where
/// a call came from.
mod tracking {
    use std::alloc::{GlobalAlloc, Layout};
    use std::ffi::{c_int, c_void};
    use std::ptr;

    use crate::tracked::{self, Tracked, TrackedExact};

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
}

#[cfg(all(test, not(loom)))]
mod string_and_tracking_tests {
    use std::alloc::{GlobalAlloc as _, Layout};
    use std::slice;

    use super::strings::*;
    use super::tracking::*;
    use crate::tracked::TrackedExact;

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
