//! ARC: recency (T1) and frequency (T2), each with a ghost list (B1, B2) whose hits move the target.
//!
//! The target `p` is the weight that T1 should have. A hit in B1 raises it, a hit in B2 lowers it, by
//! the ratio of the ghost lists where that is more than one (figure 4 of the paper). With weights, a
//! hit moves `p` by the weight of the key times that, and room is made entry by entry.

use super::lists::Lists;
use crate::simulate::Simulated;

const T1: usize = 0;
const T2: usize = 1;
const B1: usize = 2;
const B2: usize = 3;

#[derive(Debug)]
pub(super) struct Arc {
    capacity: u64,
    lists: Lists<4>,
    /// The target for the weight of T1.
    p: f64,
}

impl Arc {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, lists: Lists::new(), p: 0.0 }
    }

    /// Makes a resident a ghost, until `weight` more fits beside the residents.
    fn replace(&mut self, weight: u32, hit_b2: bool) {
        while self.lists.weight(T1) + self.lists.weight(T2) + u64::from(weight) > self.capacity {
            let t1 = self.lists.weight(T1) as f64;
            let from_t1 = t1 > 0.0 && (t1 > self.p || (hit_b2 && t1 >= self.p));
            let (from, to) = if from_t1 || self.lists.len(T2) == 0 { (T1, B1) } else { (T2, B2) };
            let oldest = self.lists.oldest(from).expect("the cache is full, and T2 is not empty");
            self.lists.move_to(to, oldest);
        }
    }

    fn forget(&mut self, list: usize) {
        let oldest = self.lists.oldest(list).expect("the list has a weight");
        self.lists.remove(oldest);
    }

    /// Makes room in the directory for a key that no list knows.
    fn make_room(&mut self, weight: u32) {
        let (capacity, weight) = (self.capacity, u64::from(weight));
        let l1 = |lists: &Lists<4>| lists.weight(T1) + lists.weight(B1);
        while l1(&self.lists) + weight > capacity && self.lists.len(B1) > 0 {
            self.forget(B1);
        }
        while l1(&self.lists) + weight > capacity {
            self.forget(T1);
        }
        let l2 = |lists: &Lists<4>| lists.weight(T2) + lists.weight(B2);
        while l1(&self.lists) + l2(&self.lists) + weight > 2 * capacity && self.lists.len(B2) > 0 {
            self.forget(B2);
        }
    }
}

impl Simulated for Arc {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        let found = self.lists.find(key).map(|node| (node, self.lists.list_of(node)));
        if let Some((node, T1 | T2)) = found {
            self.lists.move_to(T2, node);
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        if let Some((node, ghost)) = found {
            let (b1, b2) = (self.lists.weight(B1) as f64, self.lists.weight(B2) as f64);
            let step = f64::from(weight);
            self.p = if ghost == B1 {
                (self.p + step * (b2 / b1).max(1.0)).min(self.capacity as f64)
            } else {
                (self.p - step * (b1 / b2).max(1.0)).max(0.0)
            };
            // Out of the ghosts first, so that its own way out cannot push it out of the directory.
            self.replace(weight, ghost == B2);
            self.lists.set_weight(node, weight);
            self.lists.move_to(T2, node);
        } else {
            self.make_room(weight);
            self.replace(weight, false);
            self.lists.insert(T1, key, weight);
        }
        false
    }
}
