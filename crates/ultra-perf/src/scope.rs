//! Scopes: what a block or a future took, of time, memory, caches and tasks.
//!
//! A future is measured poll by poll on whatever thread that is, so what other tasks do in between is not
//! counted to it. What it hands to other threads is not counted either: tasks are counted when they are
//! submitted, and their own work belongs to their names.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

use crate::UltraPerf;

/// What a scope took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ScopeReport {
    /// From its beginning to its end.
    pub elapsed: Duration,
    /// Of that, the time in which its own code ran; of a block, all of it.
    pub busy: Duration,
    /// Allocations on its thread; zero unless the program's allocator is tracked and `memory.tracking` is on.
    pub allocations: u64,
    /// Bytes that these took.
    pub allocated_bytes: u64,
    /// Look-ups that a cache answered.
    pub cache_hits: u64,
    /// Look-ups that no tier of a cache answered.
    pub cache_misses: u64,
    /// Tasks given to the scheduler.
    pub tasks: u64,
}

/// What a thread has counted so far; the difference of two is what was done in between.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    cache_hits: u64,
    cache_misses: u64,
    tasks: u64,
}

impl Counted {
    #[inline]
    fn now() -> Self {
        #[cfg_attr(not(any(feature = "cache", feature = "scheduler")), expect(unused_mut))]
        let mut counted = Self::default();
        #[cfg(feature = "cache")]
        {
            let lookups = cache_tiered::thread_lookups();
            (counted.cache_hits, counted.cache_misses) = (lookups.hits, lookups.misses);
        }
        #[cfg(feature = "scheduler")]
        {
            counted.tasks = scheduler::thread_submissions();
        }
        counted
    }
}

/// A name under which blocks and futures are measured; from [`UltraPerf::scope`].
#[derive(Debug, Clone)]
#[must_use = "a scope measures what is run in it"]
pub struct Scope {
    #[cfg(feature = "memory")]
    allocations: memory::Scope,
    #[cfg(feature = "monitor")]
    seconds: monitor::Histogram,
}

impl Scope {
    /// Runs a block and tells what it took.
    pub fn run_sync<R>(&self, block: impl FnOnce() -> R) -> (R, ScopeReport) {
        let began = Instant::now();
        let mut report = ScopeReport::default();
        let result = self.counted(&mut report, block);
        report.elapsed = began.elapsed();
        report.busy = report.elapsed;
        self.record(&report);
        (result, report)
    }

    /// Runs a future and tells what it took.
    ///
    /// # Cancel safety
    ///
    /// As the future's own; without its end there is no report.
    pub fn run<F: Future>(&self, future: F) -> InScope<'_, F> {
        InScope { future, scope: self, began: Instant::now(), report: ScopeReport::default() }
    }

    /// Runs a part of the scope on this thread and adds what it counted.
    #[inline]
    fn counted<R>(&self, report: &mut ScopeReport, part: impl FnOnce() -> R) -> R {
        let before = Counted::now();
        #[cfg(feature = "memory")]
        let entry = memory::Scope::enter(self.allocations);
        let result = part();
        #[cfg(feature = "memory")]
        {
            let allocated = entry.so_far();
            report.allocations += allocated.allocs;
            report.allocated_bytes += allocated.bytes;
        }
        let after = Counted::now();
        report.cache_hits += after.cache_hits - before.cache_hits;
        report.cache_misses += after.cache_misses - before.cache_misses;
        report.tasks += after.tasks - before.tasks;
        result
    }

    #[inline]
    fn record(&self, report: &ScopeReport) {
        #[cfg(feature = "monitor")]
        self.seconds.record_duration(report.elapsed);
        #[cfg(not(feature = "monitor"))]
        let _ = report;
    }
}

pin_project! {
    /// A future that is measured; from [`Scope::run`].
    #[derive(Debug)]
    #[must_use = "a future does nothing until it is polled"]
    pub struct InScope<'a, F> {
        #[pin]
        future: F,
        scope: &'a Scope,
        began: Instant,
        report: ScopeReport,
    }
}

impl<F: Future> Future for InScope<'_, F> {
    type Output = (F::Output, ScopeReport);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = Instant::now();
        let ready = this.scope.counted(this.report, || this.future.poll(context));
        let now = Instant::now();
        this.report.busy += now.duration_since(polled);
        let Poll::Ready(result) = ready else { return Poll::Pending };
        this.report.elapsed = now.duration_since(*this.began);
        this.scope.record(this.report);
        Poll::Ready((result, *this.report))
    }
}

/// Memory scopes that have ended.
#[cfg(feature = "memory")]
#[derive(Debug, Default)]
pub(crate) struct Ended(std::sync::atomic::AtomicU64);

/// Growth of the process below which the end of a memory scope is no reason to look at memory.
#[cfg(feature = "memory")]
const NOTABLE_BYTES: u64 = 1 << 20;

/// A block that needs much memory: measured, and cleaned up after; from [`UltraPerf::memory_scope`].
///
/// When it ends, also by being dropped, the guard looks at memory soon: above `memory.cleanup_threshold` it
/// reclaims, and the allocator gives idle memory back. It does so where the process grew by a mebibyte or
/// more, and in any case at every `memory.reclaim_after_ops`-th end.
#[cfg(feature = "memory")]
#[derive(Debug)]
#[must_use = "the block ends when this is dropped"]
pub struct MemoryScope {
    perf: UltraPerf,
    scope: Scope,
    resident_before: u64,
}

/// What a memory scope took.
#[cfg(feature = "memory")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct MemoryScopeReport {
    /// Resident bytes of the whole process when it began; zero without a guard of memory.
    pub resident_before: u64,
    /// And when it ended, before anything was given back.
    pub resident_after: u64,
    /// Time, allocations, caches and tasks.
    #[serde(flatten)]
    pub scope: ScopeReport,
}

#[cfg(feature = "memory")]
impl MemoryScope {
    /// Runs a block in it and tells what that took.
    pub fn run_sync<R>(self, block: impl FnOnce() -> R) -> (R, MemoryScopeReport) {
        let (result, report) = self.scope.run_sync(block);
        (result, self.report(report))
    }

    /// Runs a future in it and tells what that took.
    ///
    /// # Cancel safety
    ///
    /// As the future's own; the clean-up comes in any case.
    pub async fn run<F: Future>(self, future: F) -> (F::Output, MemoryScopeReport) {
        let (result, report) = self.scope.run(future).await;
        (result, self.report(report))
    }

    fn report(&self, scope: ScopeReport) -> MemoryScopeReport {
        let resident_after = resident(&self.perf);
        MemoryScopeReport { resident_before: self.resident_before, resident_after, scope }
    }
}

#[cfg(feature = "memory")]
impl Drop for MemoryScope {
    fn drop(&mut self) {
        let Some(guard) = self.perf.memory() else { return };
        let ended =
            1 + self.perf.0.memory_scopes.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let every = self.perf.config().memory.reclaim_after_ops as u64;
        let grew = resident(&self.perf).saturating_sub(self.resident_before);
        if grew >= NOTABLE_BYTES || ended.is_multiple_of(every.max(1)) {
            guard.request_cleanup(memory::CleanupRequest::default());
        }
    }
}

#[cfg(feature = "memory")]
fn resident(perf: &UltraPerf) -> u64 {
    perf.memory().map_or(0, |guard| guard.observe().rss_bytes)
}

impl UltraPerf {
    /// Returns a scope by whose name blocks and futures are measured.
    ///
    /// Names are the program's own, as those of routes and tasks are. The times go into the histogram
    /// `scope_duration_seconds` of this handle, whose series are bounded by `monitor.series`.
    ///
    /// Who allocates is counted for the process, and not for a handle: scopes of one name are one, whichever
    /// handle they are from, and there are at most 1,022 names in all; allocations under further ones count
    /// as `(other)`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(perf: ultra_perf::UltraPerf) {
    /// let batch = perf.scope("batch");
    /// let (sum, report) = batch.run(async { (1..=100).sum::<u32>() }).await;
    /// println!("{sum} after {:?}, {} hits", report.elapsed, report.cache_hits);
    /// # }
    /// ```
    ///
    /// # Cost
    ///
    /// Look-ups of the name; keep the scope where it is used often. Running something in it costs some tens
    /// of nanoseconds, and for a future that much again at each poll.
    pub fn scope(&self, name: &str) -> Scope {
        #[cfg(not(any(feature = "memory", feature = "monitor")))]
        let _ = name;
        Scope {
            #[cfg(feature = "memory")]
            allocations: memory::Scope::named(name),
            #[cfg(feature = "monitor")]
            seconds: self.registry().histogram("scope_duration_seconds", &[("scope", name)]),
        }
    }

    /// Begins a block that needs much memory, and cleans up when it ends.
    ///
    /// # Cost
    ///
    /// Memory is read at its beginning and at its end: some microseconds each.
    #[cfg(feature = "memory")]
    pub fn memory_scope(&self, name: &str) -> MemoryScope {
        let resident_before = resident(self);
        MemoryScope { perf: self.clone(), scope: self.scope(name), resident_before }
    }
}
