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
    root: OnceLock<Level<Level<Box<[Record]>>>>,
}

/// An own window that there is none of.
const NONE: u32 = u32::MAX;

struct Record {
    /// The cache's time up to which the tags are known to be good; 0 for never.
    good_at: AtomicU64,
    /// The entry's own windows, in their order; the last as the bits of an `f32`.
    windows: [AtomicU32; 4],
    attributes: Mutex<Option<Arc<Attributes>>>,
}

impl Record {
    fn new() -> Self {
        Self {
            good_at: AtomicU64::new(0),
            windows: std::array::from_fn(|_| AtomicU32::new(NONE)),
            attributes: Mutex::new(None),
        }
    }
}

fn level<T>() -> Level<T> {
    (0..FAN).map(|_| OnceLock::new()).collect()
}

impl Records {
    fn get(&self, index: u32) -> Option<&Record> {
        let [_, high, middle, low] = index.to_be_bytes().map(usize::from);
        self.root.get()?[high].get()?[middle].get()?.get(low)
    }

    /// Fills the record of a node that nobody finds yet.
    pub(super) fn set(&self, index: u32, attributes: Arc<Attributes>) {
        let [_, high, middle, low] = index.to_be_bytes().map(usize::from);
        let branches = self.root.get_or_init(level)[high].get_or_init(level);
        let leaf = branches[middle].get_or_init(|| (0..FAN).map(|_| Record::new()).collect());
        let record = &leaf[low];
        let Windows { while_revalidate, if_error, ahead, early } = attributes.windows;
        let windows = [while_revalidate, if_error, ahead, early.map(f32::to_bits)];
        for (place, window) in record.windows.iter().zip(windows) {
            place.store(window.unwrap_or(NONE), Ordering::Relaxed);
        }
        let good_at = if attributes.is_stale() { 0 } else { attributes.stamp().local };
        record.good_at.store(good_at, Ordering::Relaxed);
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
        match self.get(index) {
            Some(record) if record.good_at.load(Ordering::Relaxed) >= tags.now() => Standing::Good,
            Some(record) => Self::look_closely(record, tags),
            None => Standing::Good,
        }
    }

    #[inline(never)]
    fn look_closely(record: &Record, tags: &TagTable) -> Standing {
        let attributes = record.attributes.lock();
        let Some(attributes) = &*attributes else { return Standing::Good };
        let (standing, now) = attributes.standing(tags);
        if standing == Standing::Good {
            // Relaxed: under the lock no other time is stored, and an older one only costs a closer look.
            record.good_at.store(now, Ordering::Relaxed);
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
