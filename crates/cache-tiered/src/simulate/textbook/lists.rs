//! Keys in intrusive lists, found by a hash table: what every textbook policy is made of.
//!
//! Nodes live in one slab and name their neighbours by index. A key is in exactly one of `N` lists, or
//! not here at all; a ghost is simply a key in a list that the policy does not count as resident. Each
//! list knows its length and its weight.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::simulate::mix::BuildMix;

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    key: u64,
    newer: u32,
    /// Towards the end of the list, or the next free node.
    older: u32,
    weight: u32,
    list: u8,
    /// For the policy alone.
    uses: u8,
}

#[derive(Debug, Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    len: u64,
    weight: u64,
}

/// `N` lists that share their nodes and one table.
#[derive(Debug)]
pub(super) struct Lists<const N: usize> {
    index: HashMap<u64, u32, BuildMix>,
    nodes: Vec<Node>,
    free: u32,
    lists: [List; N],
}

impl<const N: usize> Lists<N> {
    pub(super) fn new() -> Self {
        Self {
            index: HashMap::default(),
            nodes: Vec::new(),
            free: NIL,
            lists: [List { newest: NIL, oldest: NIL, len: 0, weight: 0 }; N],
        }
    }

    /// The node of a key, in whichever list it is.
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        self.index.get(&key).copied()
    }

    pub(super) fn key(&self, node: u32) -> u64 {
        self.nodes[node as usize].key
    }

    pub(super) fn list_of(&self, node: u32) -> usize {
        usize::from(self.nodes[node as usize].list)
    }

    pub(super) fn set_weight(&mut self, node: u32, weight: u32) {
        let node = &mut self.nodes[node as usize];
        let list = &mut self.lists[usize::from(node.list)];
        list.weight = list.weight - u64::from(node.weight) + u64::from(weight);
        node.weight = weight;
    }

    pub(super) fn uses(&self, node: u32) -> u8 {
        self.nodes[node as usize].uses
    }

    pub(super) fn set_uses(&mut self, node: u32, uses: u8) {
        self.nodes[node as usize].uses = uses;
    }

    pub(super) fn len(&self, list: usize) -> u64 {
        self.lists[list].len
    }

    pub(super) fn weight(&self, list: usize) -> u64 {
        self.lists[list].weight
    }

    /// The node at the end of a list.
    pub(super) fn oldest(&self, list: usize) -> Option<u32> {
        some(self.lists[list].oldest)
    }

    /// The neighbour of a node that came in after it.
    pub(super) fn newer(&self, node: u32) -> Option<u32> {
        some(self.nodes[node as usize].newer)
    }

    /// Puts a key that is in no list at the front of one.
    pub(super) fn insert(&mut self, list: usize, key: u64, weight: u32) {
        let fresh = Node { key, newer: NIL, older: NIL, weight, list: list as u8, uses: 0 };
        let node = match some(self.free) {
            Some(node) => {
                self.free = self.nodes[node as usize].older;
                self.nodes[node as usize] = fresh;
                node
            }
            None => {
                let node = u32::try_from(self.nodes.len()).expect("a trace has fewer keys");
                self.nodes.push(fresh);
                node
            }
        };
        match self.index.entry(key) {
            Entry::Vacant(vacant) => vacant.insert(node),
            Entry::Occupied(_) => unreachable!("the key was looked up before"),
        };
        self.link(list, node);
    }

    /// Moves a node to the front of a list, which may be the one it is in.
    pub(super) fn move_to(&mut self, list: usize, node: u32) {
        self.unlink(node);
        self.nodes[node as usize].list = list as u8;
        self.link(list, node);
    }

    /// Forgets a node's key.
    pub(super) fn remove(&mut self, node: u32) {
        self.unlink(node);
        self.index.remove(&self.nodes[node as usize].key);
        self.nodes[node as usize].older = self.free;
        self.free = node;
    }

    fn link(&mut self, list: usize, node: u32) {
        let list = &mut self.lists[list];
        let newest = list.newest;
        let linked = &mut self.nodes[node as usize];
        linked.newer = NIL;
        linked.older = newest;
        list.len += 1;
        list.weight += u64::from(linked.weight);
        list.newest = node;
        match some(newest) {
            Some(newest) => self.nodes[newest as usize].newer = node,
            None => list.oldest = node,
        }
    }

    fn unlink(&mut self, node: u32) {
        let Node { newer, older, weight, list, .. } = self.nodes[node as usize];
        let list = &mut self.lists[usize::from(list)];
        list.len -= 1;
        list.weight -= u64::from(weight);
        match some(newer) {
            Some(newer) => self.nodes[newer as usize].older = older,
            None => list.newest = older,
        }
        match some(older) {
            Some(older) => self.nodes[older as usize].newer = newer,
            None => list.oldest = newer,
        }
    }
}

fn some(node: u32) -> Option<u32> {
    (node != NIL).then_some(node)
}
