//! The decisions of one shard: three rings of nodes and what is remembered of evicted keys.
//!
//! One structure carries every policy. The *young* ring holds what came in lately and has to prove
//! itself, the *main* ring what has proved itself, and the *protected* ring what TinyLFU saw used
//! there. A policy is a rule for where a new key goes and which ring's oldest node leaves:
//!
//! | policy       | young               | main                   | protected | remembers |
//! |--------------|---------------------|------------------------|-----------|-----------|
//! | [`clock`]    |                     | everything, a clock    |           | nothing   |
//! | [`car`]      | T1, a clock         | T2, a clock            |           | ghosts    |
//! | [`s3_fifo`]  | small, a FIFO       | main, a counting clock |           | ghosts    |
//! | [`tiny_lfu`] | the window, a clock | probation, a FIFO      | a clock   | a sketch  |
//!
//! [`Queues::switch`] only changes the rule: nodes stay in the rings in which they are, and a policy
//! that does not use one of them drains it as it evicts. So a switch touches no entry; where the new
//! rule remembers in the other way it starts with nothing, in the memory of the rule before.
//!
//! # Bounds
//!
//! A hit raises a mark and a passing hand lowers it, so each step of a hand over a marked node is paid
//! for by an earlier hit. That bounds the sum; one eviction is bounded too, by [`STEPS_MAX`] marked
//! nodes, after which the hand takes the node in front of it. Under a load that marks every entry
//! between two evictions (an adversary's, or a hit ratio near one) an unbounded clock would go all
//! the way round under the lock, clear every mark, and then evict the node at which it began: the
//! bounded one evicts the next node in the same order, at a cost that does not depend on the number of
//! entries. Otherwise the bound is rarely met: without it the mean hit ratio over the 56 judged points
//! of the suite moves by 0.02 points at most, up or down, for each policy.

use std::mem;

use super::ghosts::{GhostList, Ghosts};
use super::sketch::Sketch;
use super::{Kind, MARK_MAX, NIL, Node as _, Nodes};

mod car;
mod clock;
mod ring;
mod s3_fifo;
mod tiny_lfu;

use ring::Ring;

/// Marked nodes that one eviction gives another round, at most, in each ring.
const STEPS_MAX: u32 = 32;
/// Nodes of an unused ring that one eviction moves.
const SETTLE_STEPS: u32 = 4;

// Which ring a node is in: the low bits of its tag.
const YOUNG: usize = 0;
const MAIN: usize = 1;
const PROTECTED: usize = 2;
const RING_BITS: u8 = 3;

/// Where a new key goes, as [`Queues::arrive`] decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    ring: u8,
}

/// What a policy remembers of keys that are not resident.
#[derive(Debug)]
enum Memory {
    /// Nothing, in memory that another policy may use again.
    Nothing(Vec<u32>),
    Ghosts(Ghosts),
    Sketch(Sketch),
}

/// What decides about the entries of one shard, or of one mini cache.
#[derive(Debug)]
pub(crate) struct Queues {
    kind: Kind,
    capacity: u64,
    rings: [Ring; 3],
    memory: Memory,
    /// How many entries the memory is made for.
    sized_for: usize,
    /// The weight from which on the young ring has to give: CAR's `p`, the small queue, the window.
    young_target: u64,
    protected_target: u64,
}

impl Queues {
    /// Decides over nodes of `capacity` weight in all, of which about `expected_entries` fit.
    pub(crate) fn new(kind: Kind, capacity: u64, expected_entries: usize) -> Self {
        let mut queues = Self {
            kind,
            capacity,
            rings: [Ring::new(), Ring::new(), Ring::new()],
            memory: Memory::Nothing(Vec::new()),
            sized_for: expected_entries,
            young_target: 0,
            protected_target: 0,
        };
        queues.set_targets();
        queues.equip();
        queues
    }

    /// Notes that a key that is not resident will come in, before anything is evicted for it.
    ///
    /// # Cost
    ///
    /// One line of the ghosts or of the sketch.
    #[inline]
    pub(crate) fn arrive(&mut self, hash: u32, weight: u32) -> Placement {
        let ring = match self.kind {
            Kind::Lru => MAIN,
            Kind::Arc => self.arrive_car(hash, weight),
            Kind::S3Fifo => self.arrive_s3_fifo(hash),
            Kind::Lfu | Kind::LfuNarrow | Kind::LfuWide => self.arrive_tiny_lfu(hash),
        };
        Placement { ring: ring as u8 }
    }

    /// Unlinks and returns the next victim; `None` when nothing is linked.
    ///
    /// # Cost
    ///
    /// Amortised constant, and bounded whatever the marks are: see the head of this module.
    pub(crate) fn evict<N: Nodes>(&mut self, nodes: &N) -> Option<u32> {
        if self.rings.iter().all(Ring::is_empty) {
            return None;
        }
        Some(match self.kind {
            Kind::Lru => self.evict_clock(nodes),
            Kind::Arc => self.evict_car(nodes),
            Kind::S3Fifo => self.evict_s3_fifo(nodes),
            Kind::Lfu | Kind::LfuNarrow | Kind::LfuWide => self.evict_tiny_lfu(nodes),
        })
    }

    /// Links a node that is in no ring, with its mark cleared.
    #[inline]
    pub(crate) fn link<N: Nodes>(&mut self, nodes: &N, node: u32, placement: Placement) {
        nodes.at(node).set_mark(0);
        self.push(nodes, usize::from(placement.ring), node);
        if matches!(self.kind, Kind::Lfu | Kind::LfuNarrow | Kind::LfuWide) {
            self.overflow_window(nodes);
        }
    }

    /// Unlinks a node that was removed or expired, and remembers nothing of it.
    pub(crate) fn unlink<N: Nodes>(&mut self, nodes: &N, node: u32) {
        self.rings[ring_of(nodes, node)].remove(nodes, node);
    }

    /// Puts `new` where `old` is, as one more use of the same key. The weight may end up above the
    /// capacity; then the caller evicts.
    pub(crate) fn replace<N: Nodes>(&mut self, nodes: &N, old: u32, new: u32) {
        nodes.at(new).set_mark((nodes.at(old).mark() + 1).min(MARK_MAX));
        self.rings[ring_of(nodes, old)].replace(nodes, old, new);
    }

    /// Returns the weight of all linked nodes.
    #[inline]
    pub(crate) fn weight(&self) -> u64 {
        self.rings[YOUNG].weight() + self.rings[MAIN].weight() + self.rings[PROTECTED].weight()
    }

    /// Returns how many nodes are linked.
    pub(crate) fn len(&self) -> usize {
        self.rings.iter().map(|ring| ring.len() as usize).sum()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Changes the bound. Evicts nothing; where the number of entries to expect changes by more than
    /// a quarter, what was remembered of evicted keys is forgotten.
    pub(crate) fn set_capacity(&mut self, capacity: u64, expected_entries: usize) {
        let target = self.young_target.min(capacity);
        self.capacity = capacity;
        self.set_targets();
        if self.kind == Kind::Arc {
            self.young_target = target;
        }
        let quarter = self.sized_for / 4;
        if expected_entries.abs_diff(self.sized_for) > quarter {
            self.sized_for = expected_entries;
            self.memory = Memory::Nothing(Vec::new());
            self.equip();
        }
    }

    /// Decides from now on as if the bound were another, and forgets nothing.
    ///
    /// The parts of the policies are shares of the bound. Where less is held than the bound allows and
    /// some of it has to go all the same, they must be shares of what will be left: otherwise a window
    /// that is far from full would be spared, and what has proved itself would go.
    pub(crate) fn rebound(&mut self, capacity: u64) {
        self.set_capacity(capacity, self.sized_for);
    }

    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Decides as `kind` from now on.
    ///
    /// # Cost
    ///
    /// No node is written and nothing is evicted. Where `kind` remembers in another way than the policy
    /// before, the memory is zeroed, and the first time allocated: 8 bytes per entry at most, some 40
    /// microseconds per MiB.
    pub(crate) fn switch(&mut self, kind: Kind) {
        if kind != self.kind {
            self.kind = kind;
            self.set_targets();
            self.equip();
        }
    }

    /// Returns the bytes of heap it holds: per entry 8 at most, and in small shards up to 16.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Nothing(spare) => spare.capacity() * size_of::<u32>(),
            Memory::Ghosts(ghosts) => ghosts.bytes(),
            Memory::Sketch(sketch) => sketch.bytes(),
        }
    }

    fn set_targets(&mut self) {
        let young = match self.kind {
            // Where a switch finds the rings is as good a start as any for what adapts itself.
            Kind::Lru | Kind::Arc => self.rings[YOUNG].weight().min(self.capacity),
            Kind::S3Fifo => share(self.capacity, s3_fifo::SMALL_PERCENT),
            Kind::Lfu => share(self.capacity, tiny_lfu::WINDOW_PERCENT),
            Kind::LfuNarrow => share(self.capacity, tiny_lfu::NARROW_WINDOW_PERCENT),
            Kind::LfuWide => share(self.capacity, tiny_lfu::WIDE_WINDOW_PERCENT),
        };
        self.young_target = young.max(1);
        self.protected_target =
            share(self.capacity.saturating_sub(self.young_target), tiny_lfu::PROTECTED_PERCENT);
    }

    /// Makes the memory the kind needs, unless it is there, out of that of the kind before.
    fn equip(&mut self) {
        match (self.kind, &self.memory) {
            (Kind::Lru, Memory::Nothing(_))
            | (Kind::Arc | Kind::S3Fifo, Memory::Ghosts(_))
            | (Kind::Lfu | Kind::LfuNarrow | Kind::LfuWide, Memory::Sketch(_)) => return,
            _ => {}
        }
        let spare = match mem::replace(&mut self.memory, Memory::Nothing(Vec::new())) {
            Memory::Nothing(spare) => spare,
            Memory::Ghosts(ghosts) => ghosts.into_spare(),
            Memory::Sketch(sketch) => sketch.into_spare(),
        };
        self.memory = match self.kind {
            Kind::Lru => Memory::Nothing(spare),
            Kind::Arc | Kind::S3Fifo => Memory::Ghosts(Ghosts::new(self.sized_for, spare)),
            Kind::Lfu | Kind::LfuNarrow | Kind::LfuWide => {
                Memory::Sketch(Sketch::new(self.sized_for, spare))
            }
        };
    }

    /// Moves a few nodes of a ring that the policy does not use to the main ring.
    #[inline]
    fn settle<N: Nodes>(&mut self, nodes: &N, ring: usize) {
        for _ in 0..SETTLE_STEPS {
            if self.rings[ring].is_empty() {
                return;
            }
            self.pass_on(nodes, ring, MAIN);
        }
    }

    /// Moves the oldest node of one ring to another, where it is the newest.
    #[inline]
    fn pass_on<N: Nodes>(&mut self, nodes: &N, from: usize, to: usize) {
        let node = self.pop(nodes, from);
        self.push(nodes, to, node);
    }

    #[inline]
    fn push<N: Nodes>(&mut self, nodes: &N, ring: usize, node: u32) {
        self.rings[ring].push(nodes, node, ring as u8);
    }

    #[inline]
    fn pop<N: Nodes>(&mut self, nodes: &N, ring: usize) -> u32 {
        let node = self.rings[ring].hand();
        debug_assert_ne!(node, NIL, "only rings that hold something are popped");
        self.rings[ring].remove(nodes, node);
        node
    }

    /// Which ring has to give under a rule that knows two: the young one from its target on.
    #[inline]
    fn giving_ring(&self) -> usize {
        let [young, main, _] = &self.rings;
        if main.is_empty() || !young.is_empty() && young.weight() >= self.young_target {
            YOUNG
        } else {
            MAIN
        }
    }

    #[inline]
    fn remember<N: Nodes>(&mut self, nodes: &N, node: u32, list: GhostList, windows: [u32; 2]) {
        if let Memory::Ghosts(ghosts) = &mut self.memory {
            ghosts.add(nodes.at(node).hash(), list, windows);
        }
    }
}

fn ring_of<N: Nodes>(nodes: &N, node: u32) -> usize {
    usize::from(nodes.at(node).tag() & RING_BITS)
}

fn share(capacity: u64, percent: u64) -> u64 {
    capacity / 100 * percent + capacity % 100 * percent / 100
}

#[cfg(test)]
mod tests;
