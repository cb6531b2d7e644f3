//! Least recently used: a hit moves to the front, the end of the list leaves.

use super::lists::Lists;
use crate::simulate::Simulated;

#[derive(Debug)]
pub(super) struct Lru {
    capacity: u64,
    lists: Lists<1>,
}

impl Lru {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, lists: Lists::new() }
    }
}

impl Simulated for Lru {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        if let Some(node) = self.lists.find(key) {
            self.lists.move_to(0, node);
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        while self.lists.weight(0) + u64::from(weight) > self.capacity {
            let oldest = self.lists.oldest(0).expect("what has a weight has an end");
            self.lists.remove(oldest);
        }
        self.lists.insert(0, key, weight);
        false
    }
}
