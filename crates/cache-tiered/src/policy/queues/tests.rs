//! The rings under every operation and every policy, and the bounds of one eviction.

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::policy::mini::{Node, Slab};

/// A cache of numbered keys over the queues, as an engine drives them.
struct Driven {
    queues: Queues,
    slab: Slab,
    linked: BTreeSet<u32>,
}

impl Driven {
    fn new(kind: Kind, capacity: u64) -> Self {
        Self {
            queues: Queues::new(kind, capacity, capacity as usize),
            slab: Slab::default(),
            linked: BTreeSet::new(),
        }
    }

    fn node(&mut self, id: u64, weight: u32) -> u32 {
        self.slab.0.push(Node::new(id, weight));
        self.slab.0.len() as u32 - 1
    }

    fn insert(&mut self, id: u64, weight: u32) -> Vec<u64> {
        if u64::from(weight) > self.queues.capacity() {
            return Vec::new();
        }
        let node = self.node(id, weight);
        let placement = self.queues.arrive(self.slab.at(node).hash(), weight);
        let evicted = self.evict_down_to(self.queues.capacity() - u64::from(weight));
        self.queues.link(&self.slab, node, placement);
        self.linked.insert(node);
        evicted
    }

    fn evict_down_to(&mut self, weight: u64) -> Vec<u64> {
        let mut evicted = Vec::new();
        while self.queues.weight() > weight {
            let victim = self.queues.evict(&self.slab).expect("something weighs");
            assert!(self.linked.remove(&victim), "a victim was linked");
            evicted.push(self.slab.0[victim as usize].id);
        }
        evicted
    }

    fn pick(&self, index: usize) -> Option<u32> {
        let place = index.checked_rem(self.linked.len())?;
        self.linked.iter().nth(place).copied()
    }

    fn find(&self, id: u64) -> Option<u32> {
        self.linked.iter().copied().find(|&node| self.slab.0[node as usize].id == id)
    }

    fn request(&mut self, id: u64) -> Vec<u64> {
        match self.find(id) {
            Some(node) => {
                {
                    let it = self.slab.at(node);
                    it.set_mark((it.mark() + 1).min(MARK_MAX));
                };
                Vec::new()
            }
            None => self.insert(id, 1),
        }
    }

    /// Walks all rings: every linked node is there once, with the tag of its ring, linked both ways.
    fn check(&self) {
        let mut seen = BTreeSet::new();
        for (index, ring) in self.queues.rings.iter().enumerate() {
            let (mut len, mut weight, mut node) = (0, 0, ring.hand());
            while node != NIL {
                assert!(seen.insert(node), "{node} is linked once");
                assert_eq!(ring_of(&self.slab, node), index);
                assert_eq!(self.slab.at(self.slab.at(node).next()).prev(), node);
                len += 1;
                weight += u64::from(self.slab.at(node).weight());
                node = self.slab.at(node).next();
                if node == ring.hand() {
                    break;
                }
            }
            assert_eq!((len, weight), (ring.len(), ring.weight()));
        }
        assert_eq!(seen, self.linked);
        assert_eq!(self.queues.len(), seen.len());
        assert!(self.queues.weight() <= self.queues.capacity());
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Insert(u64, u32),
    Mark(usize, u8),
    Remove(usize),
    Replace(usize, u32),
    Switch(usize),
    Resize(u64, usize),
    Evict,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0_u64..500, 1_u32..10).prop_map(|(id, weight)| Operation::Insert(id, weight)),
        1 => (0_u64..500, 1_u32..300).prop_map(|(id, weight)| Operation::Insert(id, weight)),
        4 => (any::<usize>(), 0..=MARK_MAX).prop_map(|(pick, mark)| Operation::Mark(pick, mark)),
        1 => any::<usize>().prop_map(Operation::Remove),
        1 => (any::<usize>(), 1_u32..200).prop_map(|(pick, weight)| Operation::Replace(pick, weight)),
        1 => (0..Kind::ALL.len()).prop_map(Operation::Switch),
        1 => (0_u64..300, 0_usize..300).prop_map(|(to, expected)| Operation::Resize(to, expected)),
        1 => Just(Operation::Evict),
    ]
}

proptest! {
    #[test]
    fn every_node_is_linked_once_and_the_bound_holds_whatever_happens(
        kind in 0..Kind::ALL.len(),
        capacity in 0_u64..200,
        operations in prop::collection::vec(operation(), 0..200),
    ) {
        let mut driven = Driven::new(Kind::ALL[kind], capacity);
        for operation in operations {
            match operation {
                Operation::Insert(id, weight) => drop(driven.insert(id, weight)),
                Operation::Mark(pick, mark) => {
                    if let Some(node) = driven.pick(pick) {
                        driven.slab.at(node).set_mark(mark);
                    }
                }
                Operation::Remove(pick) => {
                    if let Some(node) = driven.pick(pick) {
                        driven.queues.unlink(&driven.slab, node);
                        driven.linked.remove(&node);
                    }
                }
                Operation::Replace(pick, weight) => {
                    if let Some(old) = driven.pick(pick) {
                        let new = driven.node(driven.slab.0[old as usize].id, weight);
                        driven.queues.replace(&driven.slab, old, new);
                        driven.linked.remove(&old);
                        driven.linked.insert(new);
                        prop_assert!(driven.slab.at(new).mark() > 0);
                        driven.evict_down_to(driven.queues.capacity());
                    }
                }
                Operation::Switch(to) => {
                    driven.queues.switch(Kind::ALL[to]);
                    prop_assert_eq!(driven.queues.kind(), Kind::ALL[to]);
                }
                Operation::Resize(to, expected) => {
                    driven.queues.set_capacity(to, expected);
                    driven.evict_down_to(to);
                }
                Operation::Evict => {
                    let victim = driven.queues.evict(&driven.slab);
                    prop_assert_eq!(victim.is_some(), !driven.linked.is_empty());
                    if let Some(victim) = victim {
                        prop_assert!(driven.linked.remove(&victim));
                    }
                }
            }
            driven.check();
        }
    }
}

/// Asks for `keys` in order and compares the keys that fell out.
fn check(kind: Kind, capacity: u64, keys: &str, evicted: &str) {
    let mut driven = Driven::new(kind, capacity);
    let mut out = String::new();
    for key in keys.chars().filter(|key| !key.is_whitespace()) {
        for id in driven.request(u64::from(key)) {
            out.push(char::from_u32(id as u32).expect("it was made from one"));
        }
        driven.check();
    }
    assert_eq!(out, evicted, "{kind:?}");
}

#[test]
fn clock_evicts_in_order_of_arrival_what_was_not_used() {
    check(Kind::Lru, 3, "abc d e", "ab");
}

#[test]
fn clock_gives_what_was_used_another_round() {
    check(Kind::Lru, 3, "abc a d e f", "bca");
}

#[test]
fn s3_fifo_keeps_what_was_used_twice_from_a_scan() {
    check(Kind::S3Fifo, 10, "a aa bcdefghij klmnopqrst", "bcdefghijk");
}

#[test]
fn s3_fifo_lets_a_ghost_into_the_main_queue() {
    check(Kind::S3Fifo, 10, "abcdefghij k a lmnopqrstuvw", "abcdefghijklmn");
}

#[test]
fn car_keeps_what_was_used_once_from_a_scan() {
    check(Kind::Arc, 4, "a a bcd efgh", "bcde");
}

#[test]
fn tiny_lfu_turns_away_what_came_once() {
    check(Kind::LfuNarrow, 4, "abc abc abc d efgh", "defg");
}

#[test]
fn tiny_lfu_lets_in_what_came_more_often_than_the_victim() {
    check(Kind::LfuNarrow, 4, "abcd ee f", "da");
}

/// Counts how many nodes are looked at.
struct Watched<'a>(&'a Slab, Cell<u32>);

impl Nodes for Watched<'_> {
    type Node<'a>
        = WatchedNode<'a>
    where
        Self: 'a;

    fn at(&self, node: u32) -> WatchedNode<'_> {
        WatchedNode(self.0.at(node), &self.1)
    }
}

#[derive(Clone, Copy)]
struct WatchedNode<'a>(&'a Node, &'a Cell<u32>);

impl crate::policy::Node for WatchedNode<'_> {
    fn next(self) -> u32 {
        self.0.next()
    }
    fn set_next(self, to: u32) {
        self.0.set_next(to);
    }
    fn prev(self) -> u32 {
        self.0.prev()
    }
    fn set_prev(self, to: u32) {
        self.0.set_prev(to);
    }
    fn tag(self) -> u8 {
        self.0.tag()
    }
    fn link(self, tag: u8, prev: u32, next: u32) {
        self.0.link(tag, prev, next);
    }
    fn mark(self) -> u8 {
        self.1.set(self.1.get() + 1);
        // Somebody reads every entry all the time.
        MARK_MAX
    }
    fn set_mark(self, mark: u8) {
        self.0.set_mark(mark);
    }
    fn hash(self) -> u32 {
        self.0.hash()
    }
    fn weight(self) -> u32 {
        self.0.weight()
    }
}

#[test]
fn an_eviction_looks_at_few_nodes_even_while_all_are_being_read() {
    for kind in Kind::ALL {
        let mut driven = Driven::new(kind, 2_000);
        for id in 0..2_000 {
            driven.insert(id, 1);
        }
        for round in 0..500 {
            let watched = Watched(&driven.slab, Cell::new(0));
            let victim = driven.queues.evict(&watched).expect("there are thousands");
            let most = STEPS_MAX * 7;
            assert!(watched.1.get() <= most, "{kind:?}: {} in round {round}", watched.1.get());
            driven.linked.remove(&victim);
        }
        driven.check();
    }
}

#[test]
fn a_switch_keeps_every_entry_where_it_is() {
    for from in Kind::ALL {
        for to in Kind::ALL {
            let mut driven = Driven::new(from, 100);
            for id in 0..400 {
                driven.request(id % 130);
                driven.request(id % 7);
            }
            let before = driven.linked.clone();
            driven.queues.switch(to);
            driven.check();
            assert_eq!(driven.linked, before, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn what_a_switch_leaves_in_rings_the_new_policy_does_not_use_drains() {
    let mut driven = Driven::new(Kind::LfuWide, 100);
    for id in 0..5_000 {
        driven.request(id % 90);
        driven.request(1_000 + id);
    }
    assert!(driven.queues.rings[PROTECTED].len() > 30);
    assert!(driven.queues.rings[YOUNG].len() > 20);
    driven.queues.switch(Kind::Lru);
    for id in 10_000..10_200 {
        driven.request(id);
    }
    assert_eq!(driven.queues.rings[PROTECTED].len(), 0);
    assert_eq!(driven.queues.rings[YOUNG].len(), 0);
    driven.check();
}

#[test]
fn a_window_left_too_long_shrinks_to_its_share() {
    let mut driven = Driven::new(Kind::LfuWide, 100);
    for id in 0..1_000 {
        driven.request(id);
    }
    assert_eq!(driven.queues.rings[YOUNG].len(), 30);
    driven.queues.switch(Kind::LfuNarrow);
    for id in 1_000..1_100 {
        driven.request(id);
    }
    assert_eq!(driven.queues.rings[YOUNG].len(), 1);
}

#[test]
fn shares_of_a_capacity_neither_vanish_nor_overflow() {
    assert_eq!(share(199, 10), 19);
    assert_eq!(share(10_000_000_007, 30), 3_000_000_002);
    assert_eq!(share(u64::MAX, 100), u64::MAX);
}

#[test]
fn one_policy_remembers_at_most_eight_bytes_per_entry_where_that_is_much() {
    for kind in Kind::ALL {
        let queues = Queues::new(kind, 125_000, 125_000);
        assert!(queues.bytes() <= 8 * 125_000, "{kind:?}: {}", queues.bytes());
    }
}

#[test]
fn the_second_switch_back_and_forth_allocates_nothing() {
    let mut queues = Queues::new(Kind::S3Fifo, 50_000, 50_000);
    queues.switch(Kind::Lfu);
    let bytes = queues.bytes();
    for kind in [Kind::Arc, Kind::LfuWide, Kind::Lru, Kind::S3Fifo, Kind::Lfu] {
        queues.switch(kind);
        assert_eq!(queues.bytes(), bytes, "{kind:?}");
    }
}
