//! The front cache of a thread: the strings it saw lately, each with references in stock.
//!
//! A thread has one for each interner it uses, up to [`PER_THREAD`]; the oldest makes room. The
//! interner knows them by `Weak`, so a thread that ends gives its stock back by dropping it.

use std::cell::RefCell;
use std::sync::Arc;

use super::{IStr, Shared, Totals};
use crate::raw::{Stock, Text, TryCell};
use crate::sync::{AtomicU64, Relaxed};

/// Interners whose strings a thread keeps at hand.
const PER_THREAD: usize = 8;
/// References that a slot buys at once.
const BATCH: u32 = 32;
/// References that a slot keeps at most.
const MOST: u32 = 2 * BATCH;

/// One thread's slots for one interner.
pub(super) struct FrontCache {
    owner: u32,
    /// One less than the number of slots, a power of two.
    mask: usize,
    slots: TryCell<Box<[Option<Stock>]>>,
    /// Lookups answered here; only the owner writes.
    hits: AtomicU64,
    /// Lookups that the table answered; only the owner writes.
    table_hits: AtomicU64,
    totals: Arc<Totals>,
}

/// Which stock a front cache gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveBack {
    All,
    /// What was not asked for since the last time.
    Unused,
}

#[derive(Default)]
struct Local {
    fronts: Vec<Arc<FrontCache>>,
    /// Which one makes room next.
    oldest: usize,
}

thread_local! {
    static LOCAL: RefCell<Local> =
        const { RefCell::new(Local { fronts: Vec::new(), oldest: 0 }) };
}

/// Lets `work` use the slot for `hash` in this thread's front cache of `owner`.
///
/// `None` where there is none, where the thread is ending, and while a sweep is looking at it.
#[inline]
fn with_slot<R>(
    owner: u32,
    hash: u64,
    work: impl FnOnce(&FrontCache, &mut Option<Stock>) -> R,
) -> Option<R> {
    let in_local = |local: &RefCell<Local>| {
        let local = local.try_borrow().ok()?;
        let front = local.fronts.iter().find(|front| front.owner == owner)?;
        front.slots.try_with(|slots| {
            let slot = &mut slots[hash as usize & front.mask];
            work(front, slot)
        })
    };
    LOCAL.try_with(in_local).ok().flatten()
}

/// Takes a handle of `text` out of this thread's front cache.
#[inline]
pub(super) fn take(shared: &Shared, hash: u64, text: &str) -> Option<IStr> {
    with_slot(shared.id, hash, |front, slot| {
        let stock = slot.as_mut().filter(|stock| stock.is_of(hash, text))?;
        stock.used = true;
        let taken = stock.take(BATCH);
        front.hits.store(front.hits.load(Relaxed) + 1, Relaxed);
        Some(IStr::new(taken))
    })
    .flatten()
}

/// Makes a handle of a text that lies in the table, under the lock of its shard.
///
/// The slot keeps some references for the next time, unless what it has was used since it was last in
/// the way (as in CLOCK: one second chance). What it had comes back, to be dropped outside of the lock.
pub(super) fn keep(shared: &Shared, text: &Text) -> (IStr, Option<Stock>) {
    let kept = with_slot(shared.id, text.hash(), |front, slot| {
        front.table_hits.store(front.table_hits.load(Relaxed) + 1, Relaxed);
        match slot {
            Some(stock) if stock.used => {
                stock.used = false;
                (text.clone(), None)
            }
            _ => {
                let (stock, taken) = Stock::buy(text, BATCH);
                (taken, slot.replace(stock))
            }
        }
    });
    let (taken, replaced) = kept.unwrap_or_else(|| {
        shared.totals.table_hits.fetch_add(1, Relaxed);
        (text.clone(), None)
    });
    (IStr::new(taken), replaced)
}

/// Clones a handle, out of the stock where that holds its string.
#[inline]
pub(super) fn clone(text: &Text) -> Text {
    let from_stock = with_slot(text.owner(), text.hash(), |_, slot| {
        slot.as_mut().filter(|stock| stock.text().is(text)).map(|stock| stock.take(BATCH))
    });
    from_stock.flatten().unwrap_or_else(|| text.clone())
}

/// Puts the reference of a dropped handle in stock where that holds its string or nothing.
#[inline]
pub(crate) fn put(text: Text) {
    let (owner, hash) = (text.owner(), text.hash());
    let mut text = Some(text);
    if owner != 0 {
        with_slot(owner, hash, |_, slot| match slot {
            Some(stock) => {
                text = text.take().and_then(|text| stock.put(text, MOST).err());
            }
            None => *slot = text.take().map(Stock::new),
        });
    }
    drop(text);
}

/// Gives this thread a front cache of `shared`, if it has none and there is to be one.
pub(super) fn open(shared: &Shared) {
    if shared.settings.front_cache == 0 {
        return;
    }
    let known = LOCAL.try_with(|local| {
        local.try_borrow().is_ok_and(|it| it.fronts.iter().any(|front| front.owner == shared.id))
    });
    if known != Ok(false) {
        return;
    }
    let size = shared.settings.front_cache;
    let front = Arc::new(FrontCache {
        owner: shared.id,
        mask: size - 1,
        slots: TryCell::new((0..size).map(|_| None).collect()),
        hits: AtomicU64::new(0),
        table_hits: AtomicU64::new(0),
        totals: Arc::clone(&shared.totals),
    });
    let mut fronts = shared.fronts.lock();
    fronts.retain(|front| front.strong_count() > 0);
    fronts.push(Arc::downgrade(&front));
    drop(fronts);
    let replaced = LOCAL.try_with(|local| {
        let mut local = local.try_borrow_mut().ok()?;
        if local.fronts.len() < PER_THREAD {
            local.fronts.push(front);
            return None;
        }
        let oldest = local.oldest;
        local.oldest = (oldest + 1) % PER_THREAD;
        Some(std::mem::replace(&mut local.fronts[oldest], front))
    });
    // Its stock is given back outside of the borrow.
    drop(replaced);
}

impl FrontCache {
    /// Lookups that were answered here, and by the table.
    pub(super) fn hits(&self) -> (u64, u64) {
        (self.hits.load(Relaxed), self.table_hits.load(Relaxed))
    }

    /// Gives references back, unless the owner is in the middle of a lookup.
    pub(super) fn give_back(&self, which: GiveBack) {
        self.slots.try_with(|slots| {
            for slot in slots.iter_mut() {
                if let Some(stock) = slot {
                    if which == GiveBack::Unused && stock.used {
                        stock.used = false;
                    } else {
                        *slot = None;
                    }
                }
            }
        });
    }

    /// Shows each stock to `look`, unless the owner is in the middle of a lookup.
    pub(super) fn each(&self, mut look: impl FnMut(&Stock)) {
        self.slots.try_with(|slots| slots.iter().flatten().for_each(&mut look));
    }
}

impl Drop for FrontCache {
    fn drop(&mut self) {
        // The slots give their stock back by themselves.
        let (hits, table_hits) = self.hits();
        self.totals.front_hits.fetch_add(hits, Relaxed);
        self.totals.table_hits.fetch_add(table_hits, Relaxed);
    }
}
