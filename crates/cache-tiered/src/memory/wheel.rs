//! When the entries of one shard fall due: a hierarchical timing wheel over node indices, used under
//! the shard's mutex.
//!
//! The wheel (Varghese & Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987) has seven levels
//! of 64 slots. A slot of the lowest spans a tick of 64 ms, a slot of the next all 64 slots below it,
//! and so on: together 2^48 ms, every deadline that a node can carry. The level of a deadline is that
//! of the highest digit, in base 64, in which its tick differs from the current one, so nothing ever
//! wraps round. Scheduling, moving and cancelling relink one list. A word per level tells which slots
//! are occupied.
//!
//! When time moves, every slot that has begun (in the lowest level: that is over) is appended to one
//! list of those to be looked at, a slot at a time and not an entry at a time. [`Wheel::pop`] then
//! takes them from there, within a budget: those that are due are reported, the others go where they
//! belong now. What a budget leaves over waits in that list for the next call. A clock that jumps over
//! years therefore costs at most 448 slots and one look at each entry.
//!
//! Here this departs from the paper:
//!
//! - The wheel keeps no deadlines. It asks for one when it looks at an entry, and that costs the line
//!   of the node. In return it takes 8 bytes per node instead of 16, and a deadline may move into the
//!   future behind its back, as a time-to-idle does at every read: such an entry is found not to be due
//!   and goes round again. One that moves *closer* has to be scheduled again.
//! - Nothing is reported before its deadline. What is due is reported by the first calls that come when
//!   its tick is over, so it holds its memory up to 64 ms longer than it lives, and longer where
//!   nobody calls. Who reads an entry compares the exact deadline and does not depend on the wheel.
//!   [`Wheel::look_closely`] reports to the millisecond.
//!
//! An entry is looked at once for each level on its way down, at most seven times, and once more for
//! each period in which it did not go idle. A longer tick would save looks and hold memory longer:
//! with a second instead of 64 ms, lives between 4 minutes and an hour would take one look fewer.

use crate::clock::Millis;

#[cfg(test)]
mod tests;

const TICK_BITS: u32 = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: u64 = 1 << SLOT_BITS;
const LEVELS: u32 = 7;

/// Deadlines from here on never come.
const END: Millis = (1 << (TICK_BITS + LEVELS * SLOT_BITS)) - 1;

/// The list of those to be looked at, behind the slots.
const BEGUN: u32 = LEVELS * SLOTS as u32;
/// Where the links of the nodes begin, behind the heads of all lists.
const HEADS: u32 = BEGUN + 1;

/// The `next` of a node that is not scheduled.
const NOWHERE: u32 = u32::MAX;

/// A node's place in a circular list. The head of a list is a link like the others, so neither end
/// is special, and a node need not know in which slot it is.
#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    prev: u32,
}

/// The entries of one shard that will expire, by when.
///
/// Nothing is allocated before the first entry is scheduled; then 3.5 KiB for the slots, and 8 bytes
/// for each node up to the highest that was ever scheduled.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// The heads of the lists, then a link per node.
    links: Vec<Link>,
    /// A bit per slot that is not empty.
    occupied: [u64; LEVELS as usize],
    /// The tick up to which time has come.
    tick: u64,
    /// No look before this time finds anything to do.
    next_due: Millis,
    len: usize,
}

impl Wheel {
    /// Makes a wheel in which nothing is scheduled.
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            links: Vec::new(),
            occupied: [0; LEVELS as usize],
            tick: tick_of(now),
            next_due: Millis::MAX,
            len: 0,
        }
    }

    /// Schedules a node, or moves it if it is scheduled; a deadline that never comes cancels it.
    ///
    /// # Cost
    ///
    /// Constant: four links are written, eight where the node moves. The array of links grows with
    /// the highest node, by doubling.
    #[inline]
    pub(crate) fn schedule(&mut self, node: u32, due: Millis) {
        self.cancel(node);
        if due >= END {
            return;
        }
        let place = node + HEADS;
        if place as usize >= self.links.len() {
            self.grow(place);
        }
        self.place(place, due);
        self.len += 1;
    }

    /// Forgets a node; one that is not scheduled is left alone.
    #[inline]
    pub(crate) fn cancel(&mut self, node: u32) {
        let place = node + HEADS;
        if self.links.get(place as usize).is_some_and(|link| link.next != NOWHERE) {
            self.unlink(place);
            self.len -= 1;
        }
    }

    /// Tells whether [`pop`](Self::pop) has anything to do; one comparison.
    #[inline]
    pub(crate) fn is_due(&self, now: Millis) -> bool {
        self.next_due <= now
    }

    /// Tells the time before which [`pop`](Self::pop) has nothing to do, if anything is scheduled.
    ///
    /// At that time there may be nothing to report yet: entries come down a level then.
    #[cfg(test)]
    pub(crate) fn next_due(&self) -> Option<Millis> {
        (self.len > 0).then_some(self.next_due)
    }

    /// Takes out the next node that is due, looking at no more than `budget` nodes.
    ///
    /// `due` tells a node's deadline. `None` means that nothing more is due, or that the budget, which
    /// is reduced by each look, has come to zero; another call goes on there.
    pub(crate) fn pop(
        &mut self,
        now: Millis,
        budget: &mut usize,
        mut due: impl FnMut(u32) -> Millis,
    ) -> Option<u32> {
        if !self.is_due(now) {
            return None;
        }
        self.turn(now);
        // A caller may have read the clock before another one, and yet come later.
        let now = now.max(self.tick << TICK_BITS);
        loop {
            let place = self.links[BEGUN as usize].next;
            if place == BEGUN {
                self.next_due = self.next_slot();
                return None;
            }
            if *budget == 0 {
                return None;
            }
            *budget -= 1;
            self.unlink(place);
            let node = place - HEADS;
            let due = due(node);
            if due <= now {
                self.len -= 1;
                return Some(node);
            }
            if due < END {
                self.place(place, due);
            } else {
                self.len -= 1;
            }
        }
    }

    /// Has the next calls of [`pop`](Self::pop) look into the tick that is not over, too.
    ///
    /// With a budget that suffices they report all that is due, to the millisecond.
    pub(crate) fn look_closely(&mut self, now: Millis) {
        self.turn(now);
        if self.len > 0 && tick_of(now) == self.tick {
            self.begin(0, self.tick % SLOTS);
        }
    }

    /// Gives memory back once no node from `nodes` on is scheduled any more.
    pub(crate) fn shrink(&mut self, nodes: u32) {
        if self.len == 0 {
            self.links = Vec::new();
            self.next_due = Millis::MAX;
            return;
        }
        let keep = (nodes + HEADS) as usize;
        let is_free = |links: &[Link]| links.iter().all(|link| link.next == NOWHERE);
        if self.links.get(keep..).is_some_and(is_free) {
            self.links.truncate(keep);
            self.links.shrink_to_fit();
        }
    }

    /// Returns how many nodes are scheduled.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the bytes allocated.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }

    #[cold]
    fn grow(&mut self, place: u32) {
        if self.links.is_empty() {
            self.links.extend((0..HEADS).map(|head| Link { next: head, prev: head }));
        }
        self.links.resize(place as usize + 1, Link { next: NOWHERE, prev: NOWHERE });
    }

    /// Links a node, which is not linked, into the slot of its deadline.
    #[inline]
    fn place(&mut self, place: u32, due: Millis) {
        let tick = tick_of(due);
        if tick < self.tick {
            self.append(BEGUN, place);
            self.next_due = 0;
            return;
        }
        let level = ((tick ^ self.tick) | 1).ilog2() / SLOT_BITS;
        let shift = level * SLOT_BITS;
        let slot = tick >> shift & (SLOTS - 1);
        self.append(level * SLOTS as u32 + slot as u32, place);
        self.occupied[level as usize] |= 1 << slot;
        self.next_due = self.next_due.min(look_at(level, tick >> shift));
    }

    #[inline]
    fn append(&mut self, head: u32, place: u32) {
        let last = std::mem::replace(&mut self.links[head as usize].prev, place);
        self.links[last as usize].next = place;
        self.links[place as usize] = Link { next: head, prev: last };
    }

    #[inline]
    fn unlink(&mut self, place: u32) {
        let Link { next, prev } = self.links[place as usize];
        self.links[place as usize].next = NOWHERE;
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        // It was alone, so both its neighbours were the head.
        if prev == next && next < BEGUN {
            self.occupied[(next / SLOTS as u32) as usize] &= !(1 << (next % SLOTS as u32));
        }
    }

    /// Lets time come to `now`: whatever has begun until then is to be looked at.
    fn turn(&mut self, now: Millis) {
        let now = tick_of(now);
        if now <= self.tick {
            return;
        }
        for level in 0..LEVELS {
            let above = (level + 1) * SLOT_BITS;
            let goes_on = now >> above == self.tick >> above;
            let slot = now >> (level * SLOT_BITS) & (SLOTS - 1);
            let mut begun = self.occupied[level as usize];
            if goes_on {
                // The tick `now` itself is not over.
                begun &= if level == 0 { (1 << slot) - 1 } else { !0 >> (SLOTS - 1 - slot) };
            }
            while begun != 0 {
                self.begin(level, u64::from(begun.trailing_zeros()));
                begun &= begun - 1;
            }
            if goes_on {
                // Higher up, the slots up to the current one are empty.
                break;
            }
        }
        self.tick = now;
    }

    /// Moves all of a slot to the list of those to be looked at.
    fn begin(&mut self, level: u32, slot: u64) {
        let head = level * SLOTS as u32 + slot as u32;
        let Link { next: first, prev: last } = self.links[head as usize];
        if first == head {
            return;
        }
        self.links[head as usize] = Link { next: head, prev: head };
        self.occupied[level as usize] &= !(1 << slot);
        let before = std::mem::replace(&mut self.links[BEGUN as usize].prev, last);
        self.links[before as usize].next = first;
        self.links[first as usize].prev = before;
        self.links[last as usize].next = BEGUN;
        self.next_due = 0;
    }

    /// When the first slot has to be looked at. Slots of a level come before those of the next.
    fn next_slot(&self) -> Millis {
        let Some(level) = self.occupied.iter().position(|slots| *slots != 0) else {
            return Millis::MAX;
        };
        let slot = u64::from(self.occupied[level].trailing_zeros());
        let level = level as u32;
        let above = self.tick >> ((level + 1) * SLOT_BITS) << SLOT_BITS;
        look_at(level, above | slot)
    }
}

fn tick_of(time: Millis) -> u64 {
    time >> TICK_BITS
}

/// When a slot, numbered from the beginning of time, has to be looked at: in the lowest level when it
/// is over, and higher up when it begins.
fn look_at(level: u32, slot: u64) -> Millis {
    if level == 0 { (slot + 1) << TICK_BITS } else { slot << (level * SLOT_BITS + TICK_BITS) }
}
