//! S3-FIFO: a small queue of 10 % that most keys leave as ghosts, a main queue with second chances.
//!
//! A key that was asked for again at least twice while it was in the small queue goes on to the main
//! queue; so does one that comes back while it is a ghost. The ghost queue remembers as much as the main
//! queue holds.

use super::lists::Lists;
use crate::simulate::Simulated;

const SMALL: usize = 0;
const MAIN: usize = 1;
const GHOST: usize = 2;

/// Uses are counted up to here.
const USES_MAX: u8 = 3;
/// Uses that carry a key from the small queue to the main queue.
const PROMOTED: u8 = 2;

#[derive(Debug)]
pub(super) struct S3Fifo {
    capacity: u64,
    small: u64,
    lists: Lists<3>,
}

impl S3Fifo {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, small: (capacity / 10).max(1), lists: Lists::new() }
    }

    fn evict(&mut self) {
        if self.lists.weight(SMALL) >= self.small || self.lists.len(MAIN) == 0 {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(oldest) = self.lists.oldest(SMALL) {
            if self.lists.uses(oldest) >= PROMOTED {
                self.lists.set_uses(oldest, 0);
                self.lists.move_to(MAIN, oldest);
                if self.lists.weight(MAIN) > self.capacity - self.small {
                    self.evict_main();
                }
            } else {
                self.lists.set_uses(oldest, 0);
                self.lists.move_to(GHOST, oldest);
                while self.lists.weight(GHOST) > self.capacity - self.small {
                    let forgotten = self.lists.oldest(GHOST).expect("it has a weight");
                    self.lists.remove(forgotten);
                }
                return;
            }
        }
    }

    fn evict_main(&mut self) {
        while let Some(oldest) = self.lists.oldest(MAIN) {
            let uses = self.lists.uses(oldest);
            if uses == 0 {
                self.lists.remove(oldest);
                return;
            }
            self.lists.set_uses(oldest, uses - 1);
            self.lists.move_to(MAIN, oldest);
        }
    }
}

impl Simulated for S3Fifo {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        let found = self.lists.find(key).map(|node| (node, self.lists.list_of(node)));
        if let Some((node, SMALL | MAIN)) = found {
            self.lists.set_uses(node, (self.lists.uses(node) + 1).min(USES_MAX));
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        let ghost = found.map(|(node, _)| self.lists.remove(node)).is_some();
        while self.lists.weight(SMALL) + self.lists.weight(MAIN) + u64::from(weight) > self.capacity
        {
            self.evict();
        }
        self.lists.insert(if ghost { MAIN } else { SMALL }, key, weight);
        false
    }
}
