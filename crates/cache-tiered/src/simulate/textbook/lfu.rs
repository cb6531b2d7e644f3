//! Least frequently used, in constant time: entries of one count share a list, and the lists are
//! linked by count (Shah, Mitra and Matani, "An O(1) algorithm for implementing the LFU cache eviction
//! scheme", 2010).
//!
//! A count lives as long as its entry is resident. Among equals the least recently used leaves.

use hashbrown::HashMap;

use crate::simulate::Simulated;
use crate::simulate::mix::BuildMix;

const NIL: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    key: u64,
    newer: u32,
    older: u32,
    weight: u32,
    bucket: u32,
}

/// The entries that were asked for `count` times.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    count: u64,
    newest: u32,
    oldest: u32,
    fewer: u32,
    more: u32,
}

#[derive(Debug)]
pub(super) struct Lfu {
    capacity: u64,
    weight: u64,
    index: HashMap<u64, u32, BuildMix>,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    buckets: Vec<Bucket>,
    free_buckets: Vec<u32>,
    /// The bucket with the lowest count.
    least: u32,
}

impl Lfu {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            weight: 0,
            index: HashMap::default(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            buckets: Vec::new(),
            free_buckets: Vec::new(),
            least: NIL,
        }
    }

    fn evict(&mut self) {
        let node = self.buckets[self.least as usize].oldest;
        let Node { key, weight, .. } = self.nodes[node as usize];
        self.unlink(node);
        self.index.remove(&key);
        self.weight -= u64::from(weight);
        self.free_nodes.push(node);
    }

    /// Puts a node at the front of the bucket of `count`, which belongs right after `fewer`.
    fn link(&mut self, node: u32, count: u64, fewer: u32) {
        let more = self.more_than(fewer);
        let bucket = if more != NIL && self.buckets[more as usize].count == count {
            more
        } else {
            self.new_bucket(count, fewer, more)
        };
        let newest = std::mem::replace(&mut self.buckets[bucket as usize].newest, node);
        let linked = &mut self.nodes[node as usize];
        (linked.bucket, linked.newer, linked.older) = (bucket, NIL, newest);
        if newest == NIL {
            self.buckets[bucket as usize].oldest = node;
        } else {
            self.nodes[newest as usize].newer = node;
        }
    }

    /// Takes a node out of its bucket, and the bucket out if that was its last.
    fn unlink(&mut self, node: u32) {
        let Node { newer, older, bucket, .. } = self.nodes[node as usize];
        if newer == NIL {
            self.buckets[bucket as usize].newest = older;
        } else {
            self.nodes[newer as usize].older = older;
        }
        if older == NIL {
            self.buckets[bucket as usize].oldest = newer;
        } else {
            self.nodes[older as usize].newer = newer;
        }
        let Bucket { oldest, fewer, more, .. } = self.buckets[bucket as usize];
        if oldest == NIL {
            self.join(fewer, more);
            self.free_buckets.push(bucket);
        }
    }

    fn new_bucket(&mut self, count: u64, fewer: u32, more: u32) -> u32 {
        let fresh = Bucket { count, newest: NIL, oldest: NIL, fewer, more };
        let bucket = self.free_buckets.pop().unwrap_or_else(|| {
            self.buckets.push(fresh);
            u32::try_from(self.buckets.len() - 1).expect("there are fewer buckets than nodes")
        });
        self.buckets[bucket as usize] = fresh;
        self.join(fewer, bucket);
        self.join(bucket, more);
        bucket
    }

    fn more_than(&self, bucket: u32) -> u32 {
        if bucket == NIL { self.least } else { self.buckets[bucket as usize].more }
    }

    /// Makes two buckets neighbours.
    fn join(&mut self, fewer: u32, more: u32) {
        if fewer == NIL {
            self.least = more;
        } else {
            self.buckets[fewer as usize].more = more;
        }
        if more != NIL {
            self.buckets[more as usize].fewer = fewer;
        }
    }
}

impl Simulated for Lfu {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        if let Some(&node) = self.index.get(&key) {
            let bucket = self.nodes[node as usize].bucket;
            let Bucket { count, newest, oldest, fewer, .. } = self.buckets[bucket as usize];
            self.unlink(node);
            let last = newest == oldest;
            self.link(node, count + 1, if last { fewer } else { bucket });
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        while self.weight + u64::from(weight) > self.capacity {
            self.evict();
        }
        let fresh = Node { key, newer: NIL, older: NIL, weight, bucket: NIL };
        let node = self.free_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(fresh);
            u32::try_from(self.nodes.len() - 1).expect("a trace has fewer keys")
        });
        self.nodes[node as usize] = fresh;
        self.index.insert(key, node);
        self.weight += u64::from(weight);
        self.link(node, 1, NIL);
        false
    }
}
