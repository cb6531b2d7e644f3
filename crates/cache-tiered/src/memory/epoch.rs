//! Who is reading: an epoch per reader, so that a writer can tell when nobody holds what it unlinked.
//!
//! # Protocol
//!
//! There is one epoch for the process, a counter that only grows, and one slot per thread on a cache
//! line of its own. A reader that *pins* copies the epoch into its slot, reads whatever it likes, and
//! clears the slot when it *unpins*. A writer that wants to free something
//!
//! 1. unlinks it, so that who comes later cannot find it,
//! 2. asks for the [`horizon`]: the oldest epoch in any slot,
//! 3. if no slot is taken, frees it; else [`advance`]s the epoch, keeps the old value as the *stamp* of
//!    what it unlinked, and frees it once a later horizon lies beyond the stamp.
//!
//! This is epoch-based reclamation (Fraser, "Practical lock-freedom", 2004) in the shape of a
//! single stamp per batch, as hazard eras use it (Ramalhete and Correia, SPAA 2017), instead of three
//! generations that all readers must step through together: a reader that is late holds back what was
//! unlinked since it came, and nothing before.
//!
//! # Why it holds
//!
//! Both sides have a sequentially consistent fence: the reader between its slot and its first read
//! (F<sub>r</sub>), the writer between its unlinking and its look at the slots (F<sub>w</sub>). Fences
//! stand in one order. If F<sub>r</sub> comes first, the look at the slot sees the reader's epoch, or
//! something that was written there later. If F<sub>w</sub> comes first, the reader's reads see the
//! unlinking and cannot reach the thing. So a reader that may hold the thing is seen, and it remains to
//! tell it from readers that came after:
//!
//! - A slot that reads `e > stamp`: its reader loaded (Acquire) an epoch that `advance` (a release
//!   sequence of read-modify-writes) wrote after the unlinking, so it sees the unlinking.
//! - A reader may publish an epoch that has grown stale in between. It is smaller than it could be,
//!   which frees less and never more.
//! - An empty slot, or a later epoch in the slot of a reader that has unpinned meanwhile: every write to
//!   a slot is a Release and the look at it an Acquire, so what that reader did lies before the look.
//! - A slot that the look does not reach, because the registry grew: the number of slots is raised
//!   before the new slot's first fence, so the same two cases apply to it.
//!
//! On x86-64 a locked exchange takes the place of the reader's store and fence: it costs half of
//! `mfence` there and orders the same. The model of the language does not say so (an exchange is no
//! fence), the architecture does, and a compiler fence keeps the compiler to it; crossbeam-epoch rests
//! on the same argument. Under loom and Miri the store and the fence are checked as written here.
//!
//! # Slots
//!
//! A thread takes a slot when it pins for the first time and gives it back when it ends; its number is
//! small and dense, and serves other per-thread tables as well ([`Guard::thread`]). Slots are never
//! freed, so their number is that of the threads that lived at the same time. While a thread is being
//! torn down its slot is already gone: pins borrow a free one each. A writer's look costs one cache
//! line per slot ever used.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::sync::{
    AcqRel, Acquire, AtomicBool, AtomicU64, AtomicUsize, Relaxed, Release, SeqCst, fence,
};

/// What [`Guard::thread`] says of a pin that borrowed its slot.
pub(crate) const NO_THREAD: usize = usize::MAX;

/// What [`horizon`] says when nobody reads.
pub(crate) const NOBODY: u64 = u64::MAX;

/// A slot's word is zero, or the number of the thread's pins, [`BORROWED`] or not, and the epoch.
const DEPTH: u64 = (1 << 11) - 1;
/// The slot belongs to one guard, and goes back with it.
const BORROWED: u64 = DEPTH + 1;
/// What an epoch adds to the one before, so that it stands above those.
const EPOCH: u64 = BORROWED << 1;

/// Slots of the first segment; each further segment doubles.
#[cfg(not(loom))]
const FIRST: usize = 64;
#[cfg(loom)]
const FIRST: usize = 4;
const MORE: usize = 24;

/// One thread's place in the registry.
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    word: AtomicU64,
    taken: AtomicBool,
    /// What [`Guard::thread`] says.
    number: AtomicUsize,
}

impl Slot {
    #[cfg(not(loom))]
    const fn new(word: u64) -> Self {
        Self {
            word: AtomicU64::new(word),
            taken: AtomicBool::new(false),
            number: AtomicUsize::new(0),
        }
    }

    #[cfg(loom)]
    fn new(word: u64) -> Self {
        Self {
            word: AtomicU64::new(word),
            taken: AtomicBool::new(false),
            number: AtomicUsize::new(0),
        }
    }

    /// Publishes a first pin; nothing that follows is read before the others can see it.
    #[inline]
    fn announce(&self, word: u64) {
        // Pairs with the fence in `Domain::horizon`; checked by `loom_a_pin_holds_back_a_stamp`.
        if cfg!(all(target_arch = "x86_64", not(loom), not(miri))) {
            self.word.swap(word, SeqCst);
            std::sync::atomic::compiler_fence(SeqCst);
        } else {
            self.word.store(word, Release);
            fence(SeqCst);
        }
    }

    /// Ends a nested pin or a borrowed one.
    #[cold]
    #[inline(never)]
    fn leave(&self, word: u64) {
        if word & DEPTH > 1 {
            self.word.store(word - 1, Release);
        } else {
            self.word.store(0, Release);
            self.give_back();
        }
    }

    fn give_back(&self) {
        // Release: pairs with the Acquire in `Domain::take`.
        self.taken.store(false, Release);
    }
}

/// The epoch and everybody who reads under it.
#[derive(Debug)]
struct Domain {
    epoch: CachePadded<AtomicU64>,
    /// No slot from this number on was ever taken.
    used: CachePadded<AtomicUsize>,
    first: [Slot; FIRST],
    more: [OnceLock<Box<[Slot]>>; MORE],
    /// Stands for the slot of a thread that has none. It looks like one that can count no more pins,
    /// so that a pin asks one question instead of two.
    nobodys: Slot,
}

#[cfg(not(loom))]
static DOMAIN: Domain = Domain {
    epoch: CachePadded::new(AtomicU64::new(EPOCH)),
    used: CachePadded::new(AtomicUsize::new(0)),
    first: [const { Slot::new(0) }; FIRST],
    more: [const { OnceLock::new() }; MORE],
    nobodys: Slot::new(DEPTH),
};

#[cfg(not(loom))]
#[inline]
fn domain() -> &'static Domain {
    &DOMAIN
}

#[cfg(loom)]
fn domain() -> &'static Domain {
    loom::lazy_static! {
        static ref DOMAIN: Domain = Domain {
            epoch: CachePadded::new(AtomicU64::new(EPOCH)),
            used: CachePadded::new(AtomicUsize::new(0)),
            first: std::array::from_fn(|_| Slot::new(0)),
            more: std::array::from_fn(|_| OnceLock::new()),
            nobodys: Slot::new(DEPTH),
        };
    }
    &DOMAIN
}

impl Domain {
    /// The slots of a segment, if it exists.
    fn segment(&self, segment: usize) -> Option<&[Slot]> {
        match segment.checked_sub(1) {
            None => Some(&self.first),
            Some(more) => self.more.get(more)?.get().map(|slots| &**slots),
        }
    }

    /// Takes the first free slot, making more if there is none.
    fn take(&'static self) -> &'static Slot {
        let mut start = 0;
        for segment in 0..=MORE {
            if let Some(more) = segment.checked_sub(1) {
                self.more[more].get_or_init(|| {
                    std::iter::repeat_with(|| Slot::new(0)).take(FIRST << segment).collect()
                });
            }
            let slots = self.segment(segment).expect("it was made above");
            for (offset, slot) in slots.iter().enumerate() {
                // Acquire: pairs with the Release in `give_back`, so that the last owner's writes to
                // the word lie before ours.
                if !slot.taken.load(Relaxed)
                    && slot.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
                {
                    let number = start + offset;
                    // Release: who sees the number finds the segment. It lies before the slot's first
                    // fence, so a writer whose fence comes later looks at this slot too.
                    self.used.fetch_max(number + 1, Release);
                    slot.number.store(number, Relaxed);
                    return slot;
                }
            }
            start += slots.len();
        }
        unreachable!("there are more slots than an operating system has threads")
    }

    /// Calls `look` with the word of every slot that was ever used.
    fn for_each(&self, mut look: impl FnMut(u64)) {
        let mut left = self.used.load(Acquire);
        let mut segment = 0;
        while left > 0 {
            let slots = self.segment(segment).expect("`used` counts slots that exist");
            let here = left.min(slots.len());
            for slot in &slots[..here] {
                look(slot.word.load(Acquire));
            }
            left -= here;
            segment += 1;
        }
    }
}

/// Tells the oldest epoch anybody reads under, or [`NOBODY`], for what was unlinked before the call.
///
/// # Cost
///
/// A full fence and a cache line per slot in use.
pub(crate) fn horizon() -> u64 {
    // Pairs with the fence, or the exchange, in `Slot::announce`.
    fence(SeqCst);
    let mut oldest = NOBODY;
    domain().for_each(|word| {
        if word != 0 {
            oldest = oldest.min(word & !(EPOCH - 1));
        }
    });
    oldest
}

/// Starts a new epoch and gives the stamp of what was unlinked before the last [`horizon`].
///
/// What bears the stamp can be freed once a horizon is greater than it.
pub(crate) fn advance() -> u64 {
    // Release: a reader that sees the new epoch sees what was unlinked before it.
    domain().epoch.fetch_add(EPOCH, AcqRel)
}

#[cfg(not(loom))]
thread_local! {
    // Two variables: this one needs no destructor, so that reading it is a plain load.
    static MINE: Cell<&'static Slot> = const { Cell::new(&DOMAIN.nobodys) };
    static AT_EXIT: AtExit = const { AtExit(Cell::new(None)) };
}
#[cfg(loom)]
loom::thread_local! {
    static MINE: Cell<&'static Slot> = Cell::new(&domain().nobodys);
    static AT_EXIT: AtExit = AtExit(Cell::new(None));
}

/// Gives the thread's slot back when the thread ends.
struct AtExit(Cell<Option<&'static Slot>>);

impl Drop for AtExit {
    fn drop(&mut self) {
        if cfg!(loom) {
            // There the registry may be gone before the thread's variables.
            return;
        }
        _ = MINE.try_with(|mine| mine.set(&domain().nobodys));
        // A slot that is still pinned, by a guard that was leaked, stays taken for good.
        if let Some(slot) = self.0.get()
            && slot.word.load(Relaxed) == 0
        {
            slot.give_back();
        }
    }
}

#[inline]
fn mine() -> &'static Slot {
    MINE.try_with(Cell::get).unwrap_or(&domain().nobodys)
}

fn is_nobodys(slot: &Slot) -> bool {
    std::ptr::eq(slot, &domain().nobodys)
}

/// Keeps what the thread can reach from being freed, as long as it lives.
///
/// Pins may nest, and their guards may be dropped in any order.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: &'static Slot,
    /// The slot is the thread's own, so the guard stays on the thread.
    not_send: PhantomData<*const ()>,
}

/// Pins the calling thread.
///
/// # Cost
///
/// One exchange on a line of the thread's own; a nested pin is a plain store.
#[inline]
pub(crate) fn pin() -> Guard {
    let slot = mine();
    // Relaxed: nobody else writes the word of a slot that is taken.
    if slot.word.load(Relaxed) != 0 {
        return pin_again();
    }
    // Acquire: pairs with `advance`.
    slot.announce(domain().epoch.load(Acquire) | 1);
    Guard { slot, not_send: PhantomData }
}

/// Pins a thread that is pinned already, or has no slot: yet, or any more.
#[cold]
#[inline(never)]
fn pin_again() -> Guard {
    let mine = mine();
    let word = mine.word.load(Relaxed);
    if word & DEPTH != DEPTH {
        mine.word.store(word + 1, Release);
        return Guard { slot: mine, not_send: PhantomData };
    }
    let slot = domain().take();
    // A thread that has a slot comes here when it cannot count more pins in it.
    let keep = is_nobodys(mine) && AT_EXIT.try_with(|exit| exit.0.set(Some(slot))).is_ok();
    if keep {
        MINE.with(|mine| mine.set(slot));
    }
    let mut word = domain().epoch.load(Acquire) | 1;
    if !keep {
        word |= BORROWED;
        slot.number.store(NO_THREAD, Relaxed);
    }
    slot.announce(word);
    Guard { slot, not_send: PhantomData }
}

impl Guard {
    /// A small number that no other living thread has, or [`NO_THREAD`] while the thread ends.
    #[inline]
    pub(crate) fn thread(&self) -> usize {
        self.slot.number.load(Relaxed)
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        let word = self.slot.word.load(Relaxed);
        if word & (BORROWED | DEPTH) == 1 {
            // Release: what was read under the pin was read before this. Pairs with the Acquire in
            // `Domain::for_each`.
            self.slot.word.store(0, Release);
        } else {
            self.slot.leave(word);
        }
    }
}

/// Whether the calling thread holds a [`Guard`]; says yes while the thread is being torn down, where
/// it cannot be told.
pub(crate) fn thread_is_pinned() -> bool {
    let mine = mine();
    if is_nobodys(mine) { AT_EXIT.try_with(|_| ()).is_err() } else { mine.word.load(Relaxed) != 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_leaves_it_to_a_later_one() {
        let number = pin().thread();
        assert_eq!((pin().thread(), pin().thread()), (number, number));
        let highest = (0..500).map(|_| {
            let thread = std::thread::spawn(|| pin().thread());
            thread.join().expect("a pin does not panic")
        });
        // Other tests have threads, too.
        assert!(highest.max() < Some(200));
    }

    #[test]
    fn threads_that_live_together_have_numbers_of_their_own() {
        let count = if cfg!(miri) { 4 } else { 150 };
        let barrier = std::sync::Barrier::new(count);
        let mut numbers = std::thread::scope(|scope| {
            let pin_together = || {
                let number = pin().thread();
                barrier.wait();
                number
            };
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(pin_together)).collect();
            let join = |it: std::thread::ScopedJoinHandle<'_, usize>| it.join();
            threads.into_iter().map(|it| join(it).expect("it pins")).collect::<Vec<_>>()
        });
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }

    #[test]
    fn an_epoch_that_is_read_under_is_the_horizon_or_older() {
        let guard = pin();
        let stamp = advance();
        assert!(horizon() <= stamp);
        drop(guard);
        // Other tests may hold the horizon back for a while.
        while horizon() <= stamp {
            std::thread::yield_now();
        }
        let _guard = pin();
        assert!(horizon() != NOBODY);
    }

    #[test]
    fn pins_nest_deeper_than_a_slot_can_count() {
        let mut guards: Vec<_> = (0..DEPTH + 3).map(|_| pin()).collect();
        assert!(guards.iter().any(|guard| guard.thread() == NO_THREAD));
        let stamp = advance();
        guards.rotate_left(DEPTH as usize / 2);
        for left in (1..guards.len()).rev() {
            guards.truncate(left);
            assert!(thread_is_pinned());
            assert!(left % 100 > 0 || horizon() <= stamp);
        }
        assert!(horizon() <= stamp);
        drop(guards);
        assert!(!thread_is_pinned());
    }

    /// Pins when its thread ends, and tells whether that held the horizon back.
    struct Late(std::sync::mpsc::SyncSender<bool>);

    impl Drop for Late {
        fn drop(&mut self) {
            let guard = pin();
            let stamp = advance();
            let held = horizon() <= stamp && thread_is_pinned();
            drop(guard);
            self.0.send(held).expect("the test listens");
        }
    }

    thread_local! {
        static BEFORE: Cell<Option<Late>> = const { Cell::new(None) };
        static AFTER: Cell<Option<Late>> = const { Cell::new(None) };
    }

    #[test]
    fn a_thread_can_pin_until_its_very_end() {
        let (sender, receiver) = std::sync::mpsc::sync_channel(2);
        let thread = std::thread::spawn(move || {
            BEFORE.set(Some(Late(sender.clone())));
            drop(pin());
            AFTER.set(Some(Late(sender)));
        });
        thread.join().expect("the thread ends in order");
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [true, true]);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    fn borrow() -> Guard {
        let slot = domain().take();
        slot.announce(domain().epoch.load(Acquire) | BORROWED | 1);
        Guard { slot, not_send: PhantomData }
    }

    #[test]
    fn loom_a_slot_goes_from_hand_to_hand() {
        loom::model(|| {
            let other = loom::thread::spawn(|| drop(borrow()));
            for _ in 0..2 {
                let guard = borrow();
                assert!(horizon() != NOBODY);
                drop(guard);
            }
            other.join().expect("the other thread reads and ends");
            assert_eq!(horizon(), NOBODY);
        });
    }
}
