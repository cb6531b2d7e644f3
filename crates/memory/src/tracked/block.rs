//! The counters of one thread, and the list of all of them.
//!
//! A block belongs to the thread that claimed it, which alone writes its counters: a load and a store,
//! both relaxed, instead of an atomic addition. A claim (Acquire) comes after the release (Release) of
//! the thread before, so the new owner goes on from the last counts.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};

use super::scope::{SCOPES_MAX, ScopeReport};

/// Scopes whose counters are made together.
const PAGE: usize = 16;
const PAGES: usize = SCOPES_MAX.div_ceil(PAGE);

/// Counts what no thread's block can take: see the head of [`super`].
pub(super) static SHARED: Block = Block::new();
static FIRST: OnceLock<Box<Block>> = OnceLock::new();

/// What one thread did in one scope.
///
/// The net is not a word of its own, which each allocation would have to read after the free before
/// it: `net = bytes - freed`, and what is kept instead of `freed` is `mark = high + freed`. So a free
/// adds to one word, an allocation to two others, and a new peak is where `bytes` comes to exceed
/// `mark`.
#[repr(align(64))]
pub(super) struct Counters {
    allocs: AtomicU64,
    bytes: AtomicI64,
    /// The bytes freed and `high`, added up.
    mark: AtomicI64,
    /// The highest net since the scope was entered.
    high: AtomicI64,
    /// The net when the scope was entered.
    base: AtomicI64,
    /// The most that one entry added to the net.
    peak: AtomicI64,
}

/// What a guard restores when its scope is left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    base: i64,
    high: i64,
    /// What the counters said when the entry began.
    allocs: u64,
    bytes: i64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            allocs: AtomicU64::new(0),
            bytes: AtomicI64::new(0),
            mark: AtomicI64::new(0),
            high: AtomicI64::new(0),
            base: AtomicI64::new(0),
            peak: AtomicI64::new(0),
        }
    }

    #[inline]
    pub(super) fn allocated(&self, size: usize) {
        self.allocs.store(self.allocs.load(Relaxed) + 1, Relaxed);
        let bytes = self.bytes.load(Relaxed).wrapping_add(size as i64);
        self.bytes.store(bytes, Relaxed);
        let mark = self.mark.load(Relaxed);
        if bytes > mark {
            self.mark.store(bytes, Relaxed);
            self.high.store(self.high.load(Relaxed) + (bytes - mark), Relaxed);
        }
    }

    #[inline]
    pub(super) fn freed(&self, size: usize) {
        self.mark.store(self.mark.load(Relaxed).wrapping_add(size as i64), Relaxed);
    }

    /// Counts for threads without a block, which have no entries and no peak.
    pub(super) fn shared_allocated(&self, size: usize) {
        self.allocs.fetch_add(1, Relaxed);
        self.bytes.fetch_add(size as i64, Relaxed);
    }

    pub(super) fn shared_freed(&self, size: usize) {
        self.mark.fetch_add(size as i64, Relaxed);
    }

    fn net(&self) -> i64 {
        let freed = self.mark.load(Relaxed) - self.high.load(Relaxed);
        self.bytes.load(Relaxed) - freed
    }

    /// Begins an entry: its peak counts from here.
    #[inline]
    pub(super) fn enter(&self) -> Frame {
        let frame = Frame {
            base: self.base.load(Relaxed),
            high: self.high.load(Relaxed),
            allocs: self.allocs.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        };
        let net = self.net();
        self.base.store(net, Relaxed);
        self.high.store(net, Relaxed);
        // With the net for `high`, the mark is what was ever allocated.
        self.mark.store(self.bytes.load(Relaxed), Relaxed);
        frame
    }

    /// Ends an entry and goes on with the one around it.
    #[inline]
    pub(super) fn leave(&self, frame: Frame) {
        let high = self.high.load(Relaxed);
        let peak = high - self.base.load(Relaxed);
        if peak > self.peak.load(Relaxed) {
            self.peak.store(peak, Relaxed);
        }
        self.base.store(frame.base, Relaxed);
        if frame.high > high {
            self.mark.store(self.mark.load(Relaxed) + (frame.high - high), Relaxed);
            self.high.store(frame.high, Relaxed);
        }
    }

    /// What the entry that began with this frame, and is the innermost, has counted so far.
    pub(super) fn since(&self, frame: &Frame) -> ScopeReport {
        let base = self.base.load(Relaxed);
        ScopeReport {
            allocs: self.allocs.load(Relaxed) - frame.allocs,
            bytes: self.bytes.load(Relaxed).wrapping_sub(frame.bytes) as u64,
            net: self.net() - base,
            peak: (self.high.load(Relaxed) - base).max(0) as u64,
        }
    }

    /// What was counted; exact on the own thread, and elsewhere as of about now.
    pub(super) fn report(&self) -> ScopeReport {
        let entry = self.high.load(Relaxed) - self.base.load(Relaxed);
        let peak = self.peak.load(Relaxed).max(entry).max(0);
        ScopeReport {
            allocs: self.allocs.load(Relaxed),
            bytes: self.bytes.load(Relaxed) as u64,
            net: self.net(),
            peak: peak as u64,
        }
    }
}

/// The counters of one thread for all scopes; those of the first few are always there.
pub(super) struct Block {
    claimed: AtomicBool,
    first: [Counters; PAGE],
    pages: [OnceLock<Box<[Counters; PAGE]>>; PAGES],
    next: OnceLock<Box<Block>>,
}

impl Block {
    const fn new() -> Self {
        Self {
            claimed: AtomicBool::new(false),
            first: [const { Counters::new() }; PAGE],
            pages: [const { OnceLock::new() }; PAGES],
            next: OnceLock::new(),
        }
    }

    /// Takes a block that no thread has, making one if need be.
    pub(super) fn claim() -> &'static Self {
        let mut link = &FIRST;
        loop {
            let block = link.get_or_init(|| Box::new(Self::new()));
            if block.claimed.compare_exchange(false, true, Acquire, Relaxed).is_ok() {
                return block;
            }
            link = &block.next;
        }
    }

    pub(super) fn release(&self) {
        self.claimed.store(false, Release);
    }

    /// The counters of a scope; the first time for each 16 scopes beyond the first this allocates.
    #[inline]
    pub(super) fn counters(&self, scope: u16) -> &Counters {
        let (page, place) = (usize::from(scope) / PAGE, usize::from(scope) % PAGE);
        if page == 0 {
            return &self.first[place];
        }
        &self.pages[page].get_or_init(|| Box::new([const { Counters::new() }; PAGE]))[place]
    }

    /// Adds up a scope over all threads there ever were.
    pub(super) fn sum(scope: u16) -> ScopeReport {
        let mut sum = ScopeReport::default();
        let mut next = Some(&SHARED);
        let mut link = &FIRST;
        let (page, place) = (usize::from(scope) / PAGE, usize::from(scope) % PAGE);
        while let Some(block) = next {
            let counters = match page {
                0 => Some(&block.first[place]),
                _ => block.pages[page].get().map(|page| &page[place]),
            };
            if let Some(counters) = counters {
                let report = counters.report();
                sum.allocs += report.allocs;
                sum.bytes = sum.bytes.wrapping_add(report.bytes);
                sum.net += report.net;
                sum.peak = sum.peak.max(report.peak);
            }
            next = link.get().map(|block| &**block);
            if let Some(block) = next {
                link = &block.next;
            }
        }
        sum
    }
}
