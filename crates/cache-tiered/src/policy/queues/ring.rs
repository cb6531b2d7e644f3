//! A ring of nodes with a hand at its oldest.
//!
//! A FIFO queue and a clock are the same ring: the newest node is linked behind the hand, the hand
//! points at the oldest, and giving that one another round is moving the hand on by one, which
//! writes no node.

use crate::policy::{NIL, Node as _, Nodes};

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

    /// Links `node` as the newest, with a tag.
    #[inline]
    pub(super) fn push<N: Nodes>(&mut self, nodes: &N, node: u32, tag: u8) {
        let it = nodes.at(node);
        self.len += 1;
        self.weight += u64::from(it.weight());
        if self.hand == NIL {
            it.link(tag, node, node);
            self.hand = node;
        } else {
            let hand = nodes.at(self.hand);
            let newest = hand.prev();
            it.link(tag, newest, self.hand);
            nodes.at(newest).set_next(node);
            hand.set_prev(node);
        }
    }

    /// Unlinks a node; its own links stay as they were.
    #[inline]
    pub(super) fn remove<N: Nodes>(&mut self, nodes: &N, node: u32) {
        let it = nodes.at(node);
        let next = it.next();
        self.len -= 1;
        self.weight -= u64::from(it.weight());
        if next == node {
            self.hand = NIL;
        } else {
            let prev = it.prev();
            nodes.at(prev).set_next(next);
            nodes.at(next).set_prev(prev);
            if self.hand == node {
                self.hand = next;
            }
        }
    }

    /// Links `new` where `old` was.
    pub(super) fn replace<N: Nodes>(&mut self, nodes: &N, old: u32, new: u32) {
        let [from, to] = [old, new].map(|node| nodes.at(node));
        let (prev, next) = (from.prev(), from.next());
        if next == old {
            to.link(from.tag(), new, new);
        } else {
            to.link(from.tag(), prev, next);
            nodes.at(prev).set_next(new);
            nodes.at(next).set_prev(new);
        }
        if self.hand == old {
            self.hand = new;
        }
        self.weight -= u64::from(from.weight());
        self.weight += u64::from(to.weight());
    }

    /// Gives the oldest node another round: it becomes the newest.
    #[inline]
    pub(super) fn rotate<N: Nodes>(&mut self, nodes: &N) {
        self.hand = nodes.at(self.hand).next();
    }
}
