//! W-TinyLFU: a window of 1 % in LRU order, a segmented main area, and a sketch that decides who stays.
//!
//! What falls out of the window stays only if the sketch has seen it more often than the entry that the
//! main area would give up. The main area is a segmented LRU: 80 % of it is protected, reached by a hit
//! on probation. With weights, the candidate meets one victim after the other until it fits or loses.

use super::lists::Lists;
use super::sketch::Sketch;
use crate::simulate::{Capacity, Simulated};

const WINDOW: usize = 0;
const PROBATION: usize = 1;
const PROTECTED: usize = 2;

#[derive(Debug)]
pub(super) struct WTinyLfu {
    capacity: u64,
    window: u64,
    protected: u64,
    lists: Lists<3>,
    sketch: Sketch,
}

impl WTinyLfu {
    pub(super) fn new(capacity: Capacity) -> Self {
        let limit = capacity.limit();
        let window = (limit / 100).max(1).min(limit);
        Self {
            capacity: limit,
            window,
            protected: (limit - window) * 4 / 5,
            lists: Lists::new(),
            sketch: Sketch::new(capacity.expected_entries()),
        }
    }

    fn is_too_heavy(&self) -> bool {
        let lists = &self.lists;
        lists.weight(WINDOW) + lists.weight(PROBATION) + lists.weight(PROTECTED) > self.capacity
    }

    /// Moves what the window has no room for on to probation, and lets each compete for its place.
    fn evict(&mut self) {
        while self.lists.weight(WINDOW) > self.window {
            let candidate = self.lists.oldest(WINDOW).expect("it has a weight");
            self.lists.move_to(PROBATION, candidate);
            while self.is_too_heavy() {
                let victim = self.lists.oldest(PROBATION).expect("the candidate is there");
                let victim = if victim == candidate {
                    self.lists.oldest(PROTECTED).unwrap_or(candidate)
                } else {
                    victim
                };
                let (ours, theirs) = (self.frequency(candidate), self.frequency(victim));
                if victim == candidate || ours <= theirs {
                    self.lists.remove(candidate);
                    break;
                }
                self.lists.remove(victim);
            }
        }
    }

    fn frequency(&self, node: u32) -> u64 {
        self.sketch.frequency(self.lists.key(node))
    }

    /// Moves an entry of the main area up, and what is protected too long back.
    fn protect(&mut self, node: u32) {
        self.lists.move_to(PROTECTED, node);
        while self.lists.weight(PROTECTED) > self.protected {
            let demoted = self.lists.oldest(PROTECTED).expect("it has a weight");
            self.lists.move_to(PROBATION, demoted);
        }
    }
}

impl Simulated for WTinyLfu {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        self.sketch.increment(key);
        if let Some(node) = self.lists.find(key) {
            match self.lists.list_of(node) {
                WINDOW => self.lists.move_to(WINDOW, node),
                _ => self.protect(node),
            }
            return true;
        }
        let weight = weight.max(1);
        if u64::from(weight) > self.capacity {
            return false;
        }
        self.lists.insert(WINDOW, key, weight);
        self.evict();
        false
    }
}
