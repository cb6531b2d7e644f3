//! A value that knows when it is wrong, and a tally of those that are alive.
//!
//! A value carries a checksum over what it says, and a mark that its drop strikes out. So one that is
//! read while somebody writes it, read after it was dropped, or dropped twice, is found out.
//!
//! The tally is a cell for each thread, which only that thread writes and with plain loads and stores:
//! anything stronger would order the threads, and hide what the cache forgets to order.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError};

const ALIVE: u32 = 0x11fe_11fe;
const DROPPED: u32 = 0xdead_dead;

#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) key: u32,
    pub(crate) weight: u32,
    pub(crate) version: u64,
    /// The model's time from which on nobody may find it.
    pub(crate) expires_at: u64,
    checksum: u64,
    mark: AtomicU32,
}

impl Value {
    pub(crate) fn new(key: u32, weight: u32, version: u64, expires_at: u64) -> Self {
        count(1);
        let checksum = checksum(key, weight, version, expires_at);
        Self { key, weight, version, expires_at, checksum, mark: AtomicU32::new(ALIVE) }
    }

    /// Panics unless this is what somebody once made, and is still alive.
    pub(crate) fn check(&self) {
        let Self { key, weight, version, expires_at, .. } = *self;
        let mark = self.mark.load(Relaxed);
        assert_eq!(mark, ALIVE, "a value of key {key} is used that is not alive");
        let sum = checksum(key, weight, version, expires_at);
        assert_eq!(self.checksum, sum, "a value of key {key} is torn");
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        self.check();
        Self::new(self.key, self.weight, self.version, self.expires_at)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.check();
        self.mark.store(DROPPED, Relaxed);
        count(-1);
    }
}

fn checksum(key: u32, weight: u32, version: u64, expires_at: u64) -> u64 {
    [u64::from(key), u64::from(weight), version, expires_at]
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15, |sum: u64, part| {
            (sum ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd)
        })
}

/// What each thread made, less what it dropped.
static CELLS: Mutex<Vec<Arc<AtomicI64>>> = Mutex::new(Vec::new());
/// The same for threads that have ended.
static ENDED: AtomicI64 = AtomicI64::new(0);

struct Cell(Arc<AtomicI64>);

impl Drop for Cell {
    fn drop(&mut self) {
        let mut cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
        ENDED.fetch_add(self.0.load(Relaxed), Relaxed);
        cells.retain(|cell| !Arc::ptr_eq(cell, &self.0));
    }
}

thread_local! {
    static CELL: Cell = {
        let cell = Arc::new(AtomicI64::new(0));
        CELLS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&cell));
        Cell(cell)
    };
}

fn count(change: i64) {
    let counted = CELL.try_with(|Cell(cell)| cell.store(cell.load(Relaxed) + change, Relaxed));
    if counted.is_err() {
        // The thread is ending.
        ENDED.fetch_add(change, Relaxed);
    }
}

/// Values that are alive. Exact while nobody makes or drops one; meanwhile it may be off by what is
/// made and dropped during the sum.
pub(crate) fn alive() -> i64 {
    let cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    cells.iter().map(|cell| cell.load(Relaxed)).sum::<i64>() + ENDED.load(Relaxed)
}
