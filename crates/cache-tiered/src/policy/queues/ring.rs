//! A ring of nodes with a hand at its oldest.
//!
//! A FIFO queue and a clock are the same ring: the newest node is linked behind the hand, the hand
//! points at the oldest, and giving that one another round is moving the hand on by one, which
//! writes no node.

use crate::policy::{NIL, Nodes};

#[derive(Debug)]
pub(super) struct Ring {
    hand: u32,
    len: u32,
    weight: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self { hand: NIL, len: 0, weight: 0 }
    }

    /// The oldest node, or [`NIL`].
    pub(super) fn hand(&self) -> u32 {
        self.hand
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hand == NIL
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// Links `node` as the newest.
    pub(super) fn push<N: Nodes>(&mut self, nodes: &N, node: u32) {
        if self.hand == NIL {
            nodes.set_next(node, node);
            nodes.set_prev(node, node);
            self.hand = node;
        } else {
            let newest = nodes.prev(self.hand);
            nodes.set_next(newest, node);
            nodes.set_prev(node, newest);
            nodes.set_next(node, self.hand);
            nodes.set_prev(self.hand, node);
        }
        self.len += 1;
        self.weight += u64::from(nodes.weight(node));
    }

    pub(super) fn remove<N: Nodes>(&mut self, nodes: &N, node: u32) {
        let next = nodes.next(node);
        if next == node {
            self.hand = NIL;
        } else {
            let prev = nodes.prev(node);
            nodes.set_next(prev, next);
            nodes.set_prev(next, prev);
            if self.hand == node {
                self.hand = next;
            }
        }
        nodes.set_next(node, NIL);
        nodes.set_prev(node, NIL);
        self.len -= 1;
        self.weight -= u64::from(nodes.weight(node));
    }

    /// Links `new` where `old` was.
    pub(super) fn replace<N: Nodes>(&mut self, nodes: &N, old: u32, new: u32) {
        let next = nodes.next(old);
        if next == old {
            nodes.set_next(new, new);
            nodes.set_prev(new, new);
        } else {
            let prev = nodes.prev(old);
            nodes.set_next(prev, new);
            nodes.set_prev(new, prev);
            nodes.set_next(new, next);
            nodes.set_prev(next, new);
        }
        if self.hand == old {
            self.hand = new;
        }
        nodes.set_next(old, NIL);
        nodes.set_prev(old, NIL);
        self.weight -= u64::from(nodes.weight(old));
        self.weight += u64::from(nodes.weight(new));
    }

    /// Gives the oldest node another round: it becomes the newest.
    pub(super) fn rotate<N: Nodes>(&mut self, nodes: &N) {
        self.hand = nodes.next(self.hand);
    }
}
