//! Giving free memory back: no allocator does it by itself when a program falls silent.
//!
//! An allocator keeps what a program frees for the program's next call. After a burst that is most of
//! the resident memory, and it stays: measured here, 1.1 of 1.2 GiB after twelve idle seconds, with
//! glibc, jemalloc and mimalloc alike. One call gives it back, but it costs 20 to 200 ms per GiB, locks
//! arenas meanwhile, and the pages come back one fault at a time if they are needed again. So
//! [`Policy`] asks rarely: only for what lay unused through two whole seconds, only where that is more
//! than 64 MiB and a fifth of what is resident, at most once in five seconds, and never on a thread of
//! the program.
//!
//! A program names its allocator; this crate never sets one.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::pressure::Level;

/// What an allocator tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AllocatorStats {
    /// Bytes that the program holds.
    pub allocated_bytes: u64,
    /// Bytes of the allocator that are resident, if it tells; otherwise those of the process count.
    pub resident_bytes: Option<u64>,
}

impl AllocatorStats {
    /// Makes statistics of an allocator that knows what it has given out.
    #[must_use]
    pub fn allocated(bytes: u64) -> Self {
        Self { allocated_bytes: bytes, resident_bytes: None }
    }
}

/// An allocator that can be asked to give free memory back to the system.
///
/// The built-in ones are `Glibc`, `Jemalloc` and `Mimalloc`, each behind the feature of its name.
pub trait AllocatorControl: Send + Sync + 'static {
    /// Returns the allocator's name.
    fn name(&self) -> &'static str;

    /// Returns what the program holds, if the allocator knows.
    fn stats(&self) -> Option<AllocatorStats>;

    /// Gives free memory back to the system; may take hundreds of milliseconds.
    fn give_back(&self);
}

/// glibc's malloc, by `malloc_trim(3)` and `mallinfo2(3)`: Rust's default on Linux.
///
/// # Cost
///
/// Statistics walk the free lists of each arena under its lock: microseconds in a tidy heap, and
/// milliseconds after millions of small objects were freed; the guard asks less often then. A trim
/// takes some 120 ms per GiB that it gives back, a tenth of a second and more under the arenas' locks.
#[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Glibc;

#[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
impl AllocatorControl for Glibc {
    fn name(&self) -> &'static str {
        "glibc"
    }

    fn stats(&self) -> Option<AllocatorStats> {
        Some(AllocatorStats::allocated(crate::raw::allocators::glibc_allocated()))
    }

    fn give_back(&self) {
        crate::raw::allocators::glibc_trim();
    }
}

/// jemalloc, by `mallctl(3)`: statistics and a purge of all arenas.
///
/// For programs whose allocator is `tikv-jemallocator`. What other threads keep in their caches (some
/// MiB each at most) stays with them.
///
/// # Cost
///
/// Statistics take some 15 microseconds, a purge some 190 ms per GiB.
#[cfg(feature = "jemalloc")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Jemalloc;

#[cfg(feature = "jemalloc")]
impl AllocatorControl for Jemalloc {
    fn name(&self) -> &'static str {
        "jemalloc"
    }

    fn stats(&self) -> Option<AllocatorStats> {
        use crate::raw::allocators::{jemalloc_number, jemalloc_refresh};
        jemalloc_refresh();
        Some(AllocatorStats {
            allocated_bytes: jemalloc_number(c"stats.allocated")? as u64,
            resident_bytes: Some(jemalloc_number(c"stats.resident")? as u64),
        })
    }

    fn give_back(&self) {
        use crate::raw::allocators::jemalloc_command;
        // 4096 stands for all arenas (MALLCTL_ARENAS_ALL). This thread's cache first, so that what it
        // holds is purged too.
        jemalloc_command(c"thread.tcache.flush");
        jemalloc_command(c"arena.4096.purge");
    }
}

/// mimalloc, by `mi_collect(true)`.
///
/// For programs whose allocator is the crate `mimalloc`. It does not know what the program holds, so
/// it is asked whenever the resident memory has stopped growing; see [`AllocatorControl`].
///
/// What it cannot collect: free blocks in pages that a living thread owns and has not given up, some
/// MiB for each thread, which that thread collects with its next allocations; and pages of 64 KiB in
/// which anything lives, however little.
///
/// # Cost
///
/// Some 20 ms per GiB that it gives back, and well below a millisecond when there is nothing.
#[cfg(feature = "mimalloc")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mimalloc;

#[cfg(feature = "mimalloc")]
impl AllocatorControl for Mimalloc {
    fn name(&self) -> &'static str {
        "mimalloc"
    }

    fn stats(&self) -> Option<AllocatorStats> {
        None
    }

    fn give_back(&self) {
        crate::raw::allocators::mimalloc_collect();
    }
}

/// One give-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GiveBackReport {
    /// The allocator's name.
    pub allocator: &'static str,
    /// Resident bytes of the process before.
    pub before_bytes: u64,
    /// Resident bytes after.
    pub after_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl GiveBackReport {
    /// Returns by how much the resident bytes fell.
    #[must_use]
    pub fn observed_bytes(&self) -> u64 {
        self.before_bytes.saturating_sub(self.after_bytes)
    }
}

/// What must lie unused before anything is done, in bytes, and as a share of what is resident.
const UNUSED_MIN: u64 = 64 << 20;
const UNUSED_SHARE: f64 = 0.2;
/// For how long it must have lain unused.
const UNUSED_FOR: Duration = Duration::from_secs(2);
/// The shortest time between two give-backs, and at the critical level.
const EVERY: Duration = Duration::from_secs(5);
const EVERY_CRITICAL: Duration = Duration::from_secs(1);
/// A look that found nothing is repeated no sooner than after this many times what it took.
const PATIENCE: u32 = 100;
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// At most this share of the time is spent on statistics: one part in so many. One call that was slow
/// only because its thread had to wait for a core must not blind the guard for long.
const STATS_PART: u32 = 200;
const STATS_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Decides when the allocator is asked to give memory back.
#[derive(Debug)]
pub(crate) struct Policy {
    /// Unused bytes over the last two seconds, a reading for each; where the allocator does not tell,
    /// all resident bytes stand for them.
    window: VecDeque<(Instant, u64)>,
    /// Whether the window is of resident bytes for want of better.
    blind: bool,
    resident: u64,
    /// When statistics may be asked for again.
    stats_at: Option<Instant>,
    /// After a give-back that brought nothing: until when, and up to how many unused bytes, another is
    /// not worth it.
    fruitless: Option<(Instant, u64)>,
    last: Option<Instant>,
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self {
            window: VecDeque::new(),
            blind: false,
            resident: 0,
            stats_at: None,
            fruitless: None,
            last: None,
        }
    }

    /// Whether the statistics are worth their cost now.
    pub(crate) fn wants_stats(&self, resident: u64, now: Instant) -> bool {
        resident > UNUSED_MIN / 4 && self.stats_at.is_none_or(|at| now >= at)
    }

    /// Notes what the allocator told, and how long that took.
    pub(crate) fn observe(
        &mut self,
        stats: Option<AllocatorStats>,
        process_resident: u64,
        took: Duration,
        now: Instant,
    ) {
        self.stats_at = Some(now + (took * STATS_PART).min(STATS_PAUSE_MAX));
        self.blind = stats.is_none();
        let resident = stats.and_then(|it| it.resident_bytes).unwrap_or(process_resident);
        self.resident = resident;
        let unused = stats.map_or(resident, |it| resident.saturating_sub(it.allocated_bytes));
        self.window.push_back((now, unused));
        // One reading from before the window stays, so that the window is covered whole.
        let old = |at: Instant| now.saturating_duration_since(at) >= UNUSED_FOR;
        while self.window.get(1).is_some_and(|(at, _)| old(*at)) {
            self.window.pop_front();
        }
    }

    /// What lay unused through the whole window; zero while the window is not covered yet.
    fn unused(&self, now: Instant) -> u64 {
        let covered = self
            .window
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= UNUSED_FOR);
        let least = self.window.iter().map(|(_, unused)| *unused).min().unwrap_or(0);
        if !covered {
            return 0;
        }
        if !self.blind {
            return least;
        }
        // Blind: while the resident bytes grow, the program is filling them.
        let most = self.window.iter().map(|(_, unused)| *unused).max().unwrap_or(0);
        let newest = self.window.back().map_or(0, |(_, unused)| *unused);
        let grows = newest > least + (least / 64).max(1 << 20);
        if grows || most == 0 { 0 } else { newest }
    }

    /// What lies unused now; `None` if the allocator does not tell.
    pub(crate) fn slack(&self) -> Option<u64> {
        let newest = self.window.back().map_or(0, |(_, unused)| *unused);
        (!self.blind).then_some(newest)
    }

    /// Whether it was not asked a moment ago.
    pub(crate) fn is_rested(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= EVERY_CRITICAL)
    }

    fn may(&self, level: Level, now: Instant) -> bool {
        let every = if level == Level::Critical { EVERY_CRITICAL } else { EVERY };
        let rested = self.last.is_none_or(|last| now.saturating_duration_since(last) >= every);
        let newest = self.window.back().map_or(0, |(_, unused)| *unused);
        rested && self.fruitless.is_none_or(|(at, unused)| now >= at || newest > unused)
    }

    /// Whether the allocator should be asked now.
    ///
    /// `limit` is that of the process, zero if it has none. From [`Level::High`] on, what is unused
    /// counts as soon as it is there, and less of it is enough: what reclaimers freed a moment ago lies
    /// in the allocator.
    pub(crate) fn is_due(&self, level: Level, limit: u64, now: Instant) -> bool {
        if !self.may(level, now) {
            return false;
        }
        if level >= Level::High {
            let least = (limit / 32).clamp(1 << 20, UNUSED_MIN);
            let newest = self.window.back().map_or(0, |(_, unused)| *unused);
            return newest >= least;
        }
        let least = UNUSED_MIN.max((self.resident as f64 * UNUSED_SHARE) as u64);
        self.unused(now) > least
    }

    /// Notes that it was asked.
    pub(crate) fn gave_back(&mut self, report: &GiveBackReport, now: Instant) {
        self.last = Some(now);
        let unused = self.window.back().map_or(0, |(_, unused)| *unused);
        self.window.clear();
        self.stats_at = None;
        let fruitless = report.observed_bytes() < (UNUSED_MIN / 8).max(report.before_bytes / 50);
        let pause = (report.took * PATIENCE).min(PATIENCE_MAX);
        // As much again as makes a give-back worth it.
        let more = UNUSED_MIN.max((self.resident as f64 * UNUSED_SHARE) as u64);
        self.fruitless = fruitless.then(|| (now + pause, unused + more));
    }
}

/// Asks the allocator, and measures what that brings; tells whether it panicked as well.
pub(crate) fn ask(
    allocator: &dyn AllocatorControl,
    around: &dyn crate::reclaim::Surroundings,
) -> (GiveBackReport, bool) {
    let (began, before) = (around.now(), around.resident());
    let panicked = catch_unwind(AssertUnwindSafe(|| allocator.give_back())).is_err();
    let report = GiveBackReport {
        allocator: allocator.name(),
        before_bytes: before,
        after_bytes: around.resident(),
        took: around.now().saturating_duration_since(began),
    };
    (report, panicked)
}

impl fmt::Debug for dyn AllocatorControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Feeds `allocated/resident` in MiB, one each 250 ms (`?` for an allocator that does not tell),
    /// and writes the steps at which the allocator is asked; each ask brings what is unused.
    fn check(level: Level, steps: &[(&str, u32)], asked: &[u32]) {
        let start = Instant::now();
        let mut policy = Policy::new();
        let mut at = Vec::new();
        let mut number = 0;
        for (reading, times) in steps {
            for _ in 0..*times {
                let now = start + Duration::from_millis(250) * number;
                let (allocated, resident) = reading.split_once('/').expect("two numbers");
                let resident = resident.parse::<u64>().expect("a number") * MIB;
                let allocated = allocated.parse::<u64>().ok().map(|it| it * MIB);
                let stats = allocated.map(AllocatorStats::allocated);
                if policy.wants_stats(resident, now) {
                    policy.observe(stats, resident, Duration::from_micros(10), now);
                }
                if policy.is_due(level, 1 << 30, now) {
                    at.push(number);
                    let report = GiveBackReport {
                        allocator: "made-up",
                        before_bytes: resident,
                        after_bytes: allocated.unwrap_or(resident),
                        took: Duration::from_millis(20),
                    };
                    policy.gave_back(&report, now);
                }
                number += 1;
            }
        }
        assert_eq!(at, asked, "{steps:?}");
    }

    #[test]
    fn what_lay_unused_for_two_seconds_is_given_back() {
        check(Level::Normal, &[("1000/1100", 8), ("10/1100", 20), ("10/20", 100)], &[16]);
    }

    #[test]
    fn what_is_used_again_within_two_seconds_is_left() {
        let turn = [("100/1000", 6), ("990/1000", 2)];
        check(Level::Normal, &turn.repeat(20), &[]);
    }

    #[test]
    fn little_is_left_alone_and_so_is_a_small_share() {
        check(Level::Normal, &[("10/70", 100)], &[]);
        check(Level::Normal, &[("900/1000", 100)], &[]);
    }

    #[test]
    fn there_are_five_seconds_between_two() {
        check(Level::Normal, &[("500/1000", 30)], &[8, 28]);
        check(Level::Normal, &[("?/1000", 60)], &[8, 28, 48]);
    }

    #[test]
    fn what_brought_nothing_is_tried_again_later_or_when_there_is_more() {
        let start = Instant::now();
        let mut policy = Policy::new();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let observe = |policy: &mut Policy, unused: u64, seconds: u64| {
            let stats = Some(AllocatorStats::allocated(100 * MIB));
            policy.observe(stats, (100 + unused) * MIB, Duration::from_micros(10), at(seconds));
            policy.is_due(Level::Normal, 0, at(seconds))
        };
        assert!(!observe(&mut policy, 100, 0));
        assert!(observe(&mut policy, 100, 2));
        let took = Duration::from_millis(200);
        let report = GiveBackReport { allocator: "made-up", before_bytes: 1, after_bytes: 1, took };
        policy.gave_back(&report, at(2));
        // 200 ms for nothing: not again for 20 seconds.
        for seconds in 3..22 {
            assert!(!observe(&mut policy, 100, seconds), "{seconds}");
        }
        assert!(observe(&mut policy, 100, 22));
        policy.gave_back(&report, at(22));
        // But there is much more to be had now.
        assert!(!observe(&mut policy, 500, 23));
        assert!(observe(&mut policy, 500, 27));
    }

    #[test]
    fn an_allocator_that_does_not_tell_is_asked_once_its_growth_has_ended() {
        let growth: Vec<_> = (0..40).map(|step| (format!("?/{}", 100 + 20 * step), 1)).collect();
        let growth: Vec<_> = growth.iter().map(|(text, times)| (text.as_str(), *times)).collect();
        check(Level::Normal, &growth, &[]);
        check(Level::Normal, &[&growth[..], &[("?/880", 10)]].concat(), &[47]);
    }

    #[test]
    fn under_pressure_it_is_asked_at_once_and_for_less() {
        check(Level::High, &[("960/1000", 1)], &[0]);
        check(Level::High, &[("990/1000", 100)], &[]);
        check(Level::Critical, &[("900/1000", 9)], &[0, 4, 8]);
    }
}
