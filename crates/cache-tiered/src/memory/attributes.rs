//! What some entries of a shard carry beyond their nodes, beside the table.
//!
//! A record for each node that needs one, found by the node's index in a tree of three levels that is
//! made as far as it is used: a cache without tags pays nothing for it. Look-ups read records without a
//! lock, as long as nothing was invalidated since they last looked closely. A record is filled before
//! its node can be found, and emptied when the node has left limbo, so that whoever finds a node reads
//! the record that belongs to it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::freshness::Windows;
use crate::tags::{Attributes, Standing, TagTable};

/// The children of a level: three levels of them are the 24 bits of an index.
const FAN: usize = 256;

type Level<T> = Box<[OnceLock<T>]>;

/// The records of a shard's nodes.
#[derive(Default)]
pub(super) struct Records {
    root: OnceLock<Level<Level<Leaf>>>,
}

/// The records of nodes whose indices differ in the last eight bits.
struct Leaf {
    /// The cache's time up to which the tags of each are known to be good; 0 for never. Apart from the
    /// rest, because it is all that most look-ups read.
    good_at: Box<[AtomicU64]>,
    records: Box<[Record]>,
}

impl Leaf {
    fn new() -> Self {
        Self {
            good_at: (0..FAN).map(|_| AtomicU64::new(0)).collect(),
            records: (0..FAN).map(|_| Record::new()).collect(),
        }
    }
}

/// An own window that there is none of.
const NONE: u32 = u32::MAX;

struct Record {
    /// The entry's own windows, in their order; the last as the bits of an `f32`.
    windows: [AtomicU32; 4],
    attributes: Mutex<Option<Arc<Attributes>>>,
}

impl Record {
    fn new() -> Self {
        Self {
            windows: std::array::from_fn(|_| AtomicU32::new(NONE)),
            attributes: Mutex::new(None),
        }
    }
}

fn level<T>() -> Level<T> {
    (0..FAN).map(|_| OnceLock::new()).collect()
}

impl Records {
    #[inline]
    fn leaf(&self, index: u32) -> Option<(&Leaf, usize)> {
        let [_, high, middle, low] = index.to_be_bytes().map(usize::from);
        Some((self.root.get()?[high].get()?[middle].get()?, low))
    }

    fn get(&self, index: u32) -> Option<&Record> {
        let (leaf, at) = self.leaf(index)?;
        leaf.records.get(at)
    }

    /// Fills the record of a node that nobody finds yet.
    pub(super) fn set(&self, index: u32, attributes: Arc<Attributes>) {
        let [_, high, middle, low] = index.to_be_bytes().map(usize::from);
        let branches = self.root.get_or_init(level)[high].get_or_init(level);
        let leaf = branches[middle].get_or_init(Leaf::new);
        let record = &leaf.records[low];
        let Windows { while_revalidate, if_error, ahead, early } = attributes.windows;
        let windows = [while_revalidate, if_error, ahead, early.map(f32::to_bits)];
        for (place, window) in record.windows.iter().zip(windows) {
            place.store(window.unwrap_or(NONE), Ordering::Relaxed);
        }
        let good_at = if attributes.is_stale() { 0 } else { attributes.stamp().local };
        leaf.good_at[low].store(good_at, Ordering::Relaxed);
        *record.attributes.lock() = Some(attributes);
    }

    /// As [`set`](Self::set), if there is something to fill it with.
    #[inline]
    pub(super) fn set_some(&self, index: u32, attributes: Option<Arc<Attributes>>) {
        if let Some(attributes) = attributes {
            self.set(index, attributes);
        }
    }

    /// Empties the record of a node that is free.
    pub(super) fn clear(&self, index: u32) {
        if let Some(record) = self.get(index) {
            drop(record.attributes.lock().take());
        }
    }

    pub(super) fn attributes(&self, index: u32) -> Option<Arc<Attributes>> {
        self.get(index)?.attributes.lock().clone()
    }

    /// What the tags of an entry say now.
    #[inline]
    pub(super) fn standing(&self, index: u32, tags: &TagTable) -> Standing {
        let Some((leaf, at)) = self.leaf(index) else { return Standing::Good };
        if leaf.good_at[at].load(Ordering::Relaxed) >= tags.now() {
            return Standing::Good;
        }
        Self::look_closely(leaf, at, tags)
    }

    #[inline(never)]
    fn look_closely(leaf: &Leaf, at: usize, tags: &TagTable) -> Standing {
        let attributes = leaf.records[at].attributes.lock();
        let Some(attributes) = &*attributes else { return Standing::Good };
        let (standing, now) = attributes.standing(tags);
        if standing == Standing::Good {
            // Relaxed: under the lock no other time is stored, and an older one only costs a closer look.
            leaf.good_at[at].store(now, Ordering::Relaxed);
        }
        standing
    }

    /// The entry's own windows.
    pub(super) fn windows(&self, index: u32) -> Windows {
        let Some(record) = self.get(index) else { return Windows::default() };
        let [while_revalidate, if_error, ahead, early] = record.windows.each_ref().map(|window| {
            let window = window.load(Ordering::Relaxed);
            (window != NONE).then_some(window)
        });
        Windows { while_revalidate, if_error, ahead, early: early.map(f32::from_bits) }
    }
}
