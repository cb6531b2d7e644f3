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
#[repr(align(64))]
pub(super) struct Counters {
    allocs: AtomicU64,
    bytes: AtomicU64,
    /// Allocated and not freed, in bytes.
    net: AtomicI64,
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
}

impl Counters {
    const fn new() -> Self {
        Self {
            allocs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            net: AtomicI64::new(0),
            high: AtomicI64::new(0),
            base: AtomicI64::new(0),
            peak: AtomicI64::new(0),
        }
    }

    #[inline]
    pub(super) fn allocated(&self, size: usize) {
        self.allocs.store(self.allocs.load(Relaxed) + 1, Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(size as u64), Relaxed);
        let net = self.net.load(Relaxed).wrapping_add(size as i64);
        self.net.store(net, Relaxed);
        if net > self.high.load(Relaxed) {
            self.high.store(net, Relaxed);
        }
    }

    #[inline]
    pub(super) fn freed(&self, size: usize) {
        self.net.store(self.net.load(Relaxed).wrapping_sub(size as i64), Relaxed);
    }

    pub(super) fn shared_allocated(&self, size: usize) {
        self.allocs.fetch_add(1, Relaxed);
        self.bytes.fetch_add(size as u64, Relaxed);
        self.net.fetch_add(size as i64, Relaxed);
    }

    pub(super) fn shared_freed(&self, size: usize) {
        self.net.fetch_sub(size as i64, Relaxed);
    }

    /// Begins an entry: its peak counts from here.
    #[inline]
    pub(super) fn enter(&self) -> Frame {
        let frame = Frame { base: self.base.load(Relaxed), high: self.high.load(Relaxed) };
        let net = self.net.load(Relaxed);
        self.base.store(net, Relaxed);
        self.high.store(net, Relaxed);
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
        self.high.store(frame.high.max(high), Relaxed);
    }

    pub(super) fn report(&self) -> ScopeReport {
        let entry = self.high.load(Relaxed) - self.base.load(Relaxed);
        let peak = self.peak.load(Relaxed).max(entry).max(0);
        ScopeReport {
            allocs: self.allocs.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            net: self.net.load(Relaxed),
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
