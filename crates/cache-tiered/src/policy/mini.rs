//! A cache of hashes alone, deciding as the live shards do.
//!
//! Miniature simulation (Waldspurger, Saemundsson, Ahmad and Park, USENIX ATC 2017): a cache of a
//! hundredth of the size, given a hundredth of the keys, has about the hit ratio of the whole. It is
//! a slab of nodes, an index by hash and the same [`Queues`] as a live shard.

use std::cell::Cell;

use super::queues::Queues;
use super::{Kind, MARK_MAX, NIL, Node as _, Nodes};

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) id: u64,
    weight: u32,
    next: Cell<u32>,
    prev: Cell<u32>,
    tag: Cell<u8>,
    mark: Cell<u8>,
}

impl Node {
    pub(super) fn new(id: u64, weight: u32) -> Self {
        Self { id, weight, ..Self::default() }
    }
}

/// The nodes of a mini cache, by index.
#[derive(Debug, Default)]
pub(super) struct Slab(pub(super) Vec<Node>);

impl Nodes for Slab {
    type Node<'a> = &'a Node;

    #[inline]
    fn at(&self, node: u32) -> &Node {
        &self.0[node as usize]
    }
}

impl super::Node for &Node {
    #[inline]
    fn next(self) -> u32 {
        self.next.get()
    }

    #[inline]
    fn set_next(self, to: u32) {
        self.next.set(to);
    }

    #[inline]
    fn prev(self) -> u32 {
        self.prev.get()
    }

    #[inline]
    fn set_prev(self, to: u32) {
        self.prev.set(to);
    }

    #[inline]
    fn tag(self) -> u8 {
        self.tag.get()
    }

    #[inline]
    fn link(self, tag: u8, prev: u32, next: u32) {
        self.tag.set(tag);
        self.prev.set(prev);
        self.next.set(next);
    }

    #[inline]
    fn mark(self) -> u8 {
        self.mark.get()
    }

    #[inline]
    fn set_mark(self, mark: u8) {
        self.mark.set(mark);
    }

    #[inline]
    fn hash(self) -> u32 {
        mixed(self.id)
    }

    #[inline]
    fn weight(self) -> u32 {
        self.weight
    }
}

/// The ids of a sample have bits in common, those that put them into the sample; this spreads the rest.
#[inline]
fn mixed(id: u64) -> u32 {
    (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// A cache that keeps ids and decides about them as a live shard does.
#[derive(Debug)]
pub(crate) struct MiniCache {
    queues: Queues,
    slab: Slab,
    /// Head of the free nodes, linked through `next`.
    free: u32,
    entries_max: usize,
    /// Open addressing with linear probing, at most half full.
    index: Box<[u32]>,
}

impl MiniCache {
    /// Makes an empty cache of `capacity` weight and `entries_max` entries at most.
    pub(crate) fn bounded(kind: Kind, capacity: u64, entries_max: usize) -> Self {
        Self {
            queues: Queues::new(kind, capacity, expected(capacity, entries_max)),
            slab: Slab(Vec::new()),
            free: NIL,
            entries_max,
            index: vec![NIL; 16].into_boxed_slice(),
        }
    }

    /// Looks a key up, inserts it on a miss, and tells whether it was a hit.
    pub(crate) fn request(&mut self, id: u64, weight: u32) -> bool {
        let weight = weight.max(1);
        if let Some(node) = self.find(id) {
            let node = self.slab.at(node);
            let mark = node.mark();
            if mark < MARK_MAX {
                node.set_mark(mark + 1);
            }
            return true;
        }
        if u64::from(weight) > self.queues.capacity() || self.entries_max == 0 {
            return false;
        }
        let placement = self.queues.arrive(mixed(id), weight);
        self.evict_down_to(
            self.queues.capacity() - u64::from(weight),
            self.entries_max.saturating_sub(1),
        );
        let node = self.allocate(id, weight);
        self.queues.link(&self.slab, node, placement);
        false
    }

    /// Decides as `kind` from now on.
    pub(crate) fn switch(&mut self, kind: Kind) {
        self.queues.switch(kind);
    }

    /// Changes the capacity, evicting what no longer fits.
    pub(crate) fn resize(&mut self, capacity: u64) {
        self.queues.set_capacity(capacity, expected(capacity, self.entries_max));
        self.evict_down_to(capacity, self.entries_max);
    }

    /// Returns how many entries it holds.
    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Returns the bytes it holds on the heap.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.queues.bytes()
            + self.slab.0.capacity() * size_of::<Node>()
            + size_of_val::<[_]>(&self.index)
    }

    fn evict_down_to(&mut self, weight: u64, entries: usize) {
        while self.queues.weight() > weight || self.queues.len() > entries {
            let Some(victim) = self.queues.evict(&self.slab) else { return };
            self.remove_from_index(victim);
            self.slab.at(victim).set_next(self.free);
            self.free = victim;
        }
    }

    fn allocate(&mut self, id: u64, weight: u32) -> u32 {
        let made = Node::new(id, weight);
        let node = if self.free == NIL {
            self.slab.0.push(made);
            (self.slab.0.len() - 1) as u32
        } else {
            let node = self.free;
            self.free = self.slab.at(node).next();
            self.slab.0[node as usize] = made;
            node
        };
        if self.slab.0.len() * 2 > self.index.len() {
            self.index = vec![NIL; self.index.len() * 2].into_boxed_slice();
            for other in 0..self.slab.0.len() as u32 {
                self.add_to_index(other);
            }
        } else {
            self.add_to_index(node);
        }
        node
    }

    fn home(&self, id: u64) -> usize {
        mixed(id.rotate_left(32)) as usize & (self.index.len() - 1)
    }

    fn find(&self, id: u64) -> Option<u32> {
        let mut at = self.home(id);
        loop {
            let node = self.index[at];
            if node == NIL {
                return None;
            }
            if self.slab.0[node as usize].id == id {
                return Some(node);
            }
            at = (at + 1) & (self.index.len() - 1);
        }
    }

    fn add_to_index(&mut self, node: u32) {
        let mut at = self.home(self.slab.0[node as usize].id);
        while self.index[at] != NIL {
            at = (at + 1) & (self.index.len() - 1);
        }
        self.index[at] = node;
    }

    /// Empties a node's slot and moves back whoever was pushed past it.
    fn remove_from_index(&mut self, node: u32) {
        let mask = self.index.len() - 1;
        let mut hole = self.home(self.slab.0[node as usize].id);
        while self.index[hole] != node {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let other = self.index[at];
            if other == NIL {
                break;
            }
            let home = self.home(self.slab.0[other as usize].id);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.index[hole] = other;
                hole = at;
            }
        }
        self.index[hole] = NIL;
    }
}

/// How many entries ghosts and sketch are made for.
fn expected(capacity: u64, entries_max: usize) -> usize {
    usize::try_from(capacity).unwrap_or(usize::MAX).min(entries_max)
}

#[cfg(test)]
mod tests;
