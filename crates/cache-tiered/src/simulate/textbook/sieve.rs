//! SIEVE: a queue whose entries never move, and a hand that spares and clears the visited ones.
//!
//! The hand starts at the oldest entry and goes towards the newest; the one it evicts at is where it
//! goes on from. Newcomers enter at the front, in its back.

use super::lists::Lists;
use crate::simulate::Simulated;

#[derive(Debug)]
pub(super) struct Sieve {
    capacity: u64,
    lists: Lists<1>,
    /// Where the next search begins; at the oldest when there is none.
    hand: Option<u32>,
}

impl Sieve {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, lists: Lists::new(), hand: None }
    }

    fn evict(&mut self) {
        loop {
            let at = self.hand.or_else(|| self.lists.oldest(0)).expect("a full cache has entries");
            self.hand = self.lists.newer(at);
            if self.lists.uses(at) == 0 {
                self.lists.remove(at);
                return;
            }
            self.lists.set_uses(at, 0);
        }
    }
}

impl Simulated for Sieve {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        if let Some(node) = self.lists.find(key) {
            self.lists.set_uses(node, 1);
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        while self.lists.weight(0) + u64::from(weight) > self.capacity {
            self.evict();
        }
        self.lists.insert(0, key, weight);
        false
    }
}
