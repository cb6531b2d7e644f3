//! The objects that rest with one thread, and the numbers of that thread.

use std::sync::Arc;

use super::Node;
use crate::pool::births::{BIRTHS, Birth};
use crate::sync::{AtomicU64, AtomicUsize, Relaxed};

/// After so many steps of decay without a use, a stash or the depot is emptied.
const QUIET_STEPS: u8 = 5;

/// Numbers of one thread. Only the thread writes them, or who has its stash, so an increment is a load
/// and a store.
#[derive(Default)]
pub(super) struct Counters {
    /// Guards taken, by birth.
    pub(super) taken: [AtomicU64; BIRTHS],
    /// Guards dropped, by birth.
    pub(super) dropped: [AtomicU64; BIRTHS],
    /// Of the guards taken, those whose object did not come from the stash.
    pub(super) past: AtomicU64,
    /// Objects in the stash.
    pub(super) idle: AtomicUsize,
    /// Bytes in the stash, where objects differ in their weight.
    pub(super) bytes: AtomicUsize,
}

impl Counters {
    /// Guards taken of objects from the stash.
    pub(super) fn hits(&self) -> u64 {
        let past = self.past.load(Relaxed);
        let taken: u64 = self.taken.iter().map(|it| it.load(Relaxed)).sum();
        taken.saturating_sub(past)
    }

    /// Counts `n` objects more in the stash (wrapping), of whose class it has `len` now.
    #[inline(always)]
    pub(super) fn arrive<const C: usize>(&self, len: usize, n: usize) {
        // With one class its length is all, which spares a load.
        let idle = if C == 1 { len } else { self.idle.load(Relaxed).wrapping_add(n) };
        self.idle.store(idle, Relaxed);
    }

    /// Guards taken less guards dropped on this thread; wraps.
    pub(super) fn guards_of(&self, birth: Birth) -> u64 {
        let dropped = self.dropped[birth.index()].load(Relaxed);
        self.taken[birth.index()].load(Relaxed).wrapping_sub(dropped)
    }
}

/// Adds one and returns the sum.
#[inline(always)]
pub(super) fn increment(counter: &AtomicU64) -> u64 {
    let sum = counter.load(Relaxed).wrapping_add(1);
    counter.store(sum, Relaxed);
    sum
}

/// The objects that rest with a thread.
pub(super) struct Stash<T, H, const C: usize> {
    pub(super) free: [Vec<Box<Node<T>>>; C],
    pub(super) unused: [Unused; C],
    /// How many objects of each class and how many bytes this stash may hold; nothing until the thread is
    /// known to the pool.
    pub(super) grant: Grant,
    pub(super) asked: bool,
    pub(super) home: Option<Arc<H>>,
}

/// What of a class was not needed since the last step of decay.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unused {
    /// The fewest objects there were.
    pub(super) low: usize,
    /// Steps since it was last used.
    pub(super) quiet: u8,
}

impl Unused {
    /// Notes that one was taken and `left` stay.
    #[inline]
    pub(super) fn left(&mut self, left: usize) {
        // A branch that is nearly never taken, where a minimum would be a store each time.
        if left < self.low {
            self.low = left;
        }
    }

    /// Says how many of `len` objects go in this step.
    pub(super) fn step(&mut self, len: usize) -> usize {
        self.quiet = if self.low == len { (self.quiet + 1).min(QUIET_STEPS) } else { 0 };
        if self.quiet == QUIET_STEPS { len } else { self.low.div_ceil(2) }
    }

    /// Begins the time until the next step, with `len` objects.
    pub(super) fn begin(&mut self, len: usize) {
        self.low = len;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) objects: usize,
    pub(super) bytes: usize,
    /// The most bytes of an object that is kept.
    pub(super) heaviest: usize,
}

impl<T, H, const C: usize> Default for Stash<T, H, C> {
    fn default() -> Self {
        Self {
            free: [const { Vec::new() }; C],
            unused: [Unused::default(); C],
            grant: Grant::default(),
            asked: false,
            home: None,
        }
    }
}

impl<T, H, const C: usize> Stash<T, H, C> {
    #[inline(always)]
    pub(super) fn pop(
        &mut self,
        class: usize,
        counters: &Counters,
        weighed: bool,
    ) -> Option<Box<Node<T>>> {
        let free = &mut self.free[class];
        let node = free.pop()?;
        let left = free.len();
        self.unused[class].left(left);
        counters.arrive::<C>(left, usize::MAX);
        if weighed {
            let bytes = counters.bytes.load(Relaxed) - node.bytes;
            counters.bytes.store(bytes, Relaxed);
        }
        Some(node)
    }

    #[inline(always)]
    pub(super) fn push(
        &mut self,
        class: usize,
        node: Box<Node<T>>,
        counters: &Counters,
        weighed: bool,
    ) -> Result<(), Box<Node<T>>> {
        let free = &mut self.free[class];
        // The room is made elsewhere, see `make_room`: here it would cost more than the rest.
        if free.len() >= self.grant.objects || free.len() == free.capacity() {
            return Err(node);
        }
        if weighed {
            let bytes = counters.bytes.load(Relaxed) + node.bytes;
            if bytes > self.grant.bytes || node.bytes > self.grant.heaviest {
                return Err(node);
            }
            counters.bytes.store(bytes, Relaxed);
        }
        free.push(node);
        counters.arrive::<C>(free.len(), 1);
        Ok(())
    }

    /// Allocates room for as many objects of a class as the grant allows.
    pub(super) fn make_room(&mut self, class: usize) {
        let free = &mut self.free[class];
        free.reserve_exact(self.grant.objects.saturating_sub(free.len()));
    }

    /// Takes out the `n` objects of a class that have rested longest, without counting them as taken.
    pub(super) fn drain(
        &mut self,
        class: usize,
        n: usize,
        counters: &Counters,
        weighed: bool,
    ) -> impl Iterator<Item = Box<Node<T>>> {
        let left = self.free[class].len() - n;
        self.unused[class].left(left);
        counters.arrive::<C>(left, n.wrapping_neg());
        self.free[class].drain(..n).inspect(move |node| {
            if weighed {
                counters.bytes.store(counters.bytes.load(Relaxed) - node.bytes, Relaxed);
            }
        })
    }
}
