//! What happens to the backends and when, and what the clients saw of it.
//!
//! One fault follows the other, with a rest between them in which all backends are well. A fault is over
//! for the clients when every window of a second from then on has a p99 of at most twice that of the quiet
//! time before the first fault; a request that failed counts as slower than any other in it.

use std::io;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::load::{Sample, TIMEOUT};

/// How many times longer requests take on a backend that is slow.
const SLOWER: u32 = 10;
/// The p99 that counts as recovered, by that of the quiet time.
pub(crate) const RECOVERED: f64 = 2.0;
/// A window in which p99 is looked at, and how far it moves on.
const WINDOW: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(100);

/// What can happen to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Slow,
    Failing,
    Killed,
    Frozen,
}

/// All faults, in their order.
pub(crate) const FAULTS: [Fault; 4] = [Fault::Slow, Fault::Failing, Fault::Killed, Fault::Frozen];

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Slow => "ten times slower",
            Self::Failing => "503 at once",
            Self::Killed => "killed, then restarted",
            Self::Frozen => "frozen",
        }
    }

    fn begin(self, backend: &mut Backend) -> io::Result<()> {
        match self {
            Self::Slow => backend.slow(SLOWER),
            Self::Failing => backend.fail(),
            Self::Killed => backend.kill(),
            Self::Frozen => backend.freeze(),
        }
    }

    fn end(self, backend: &mut Backend) -> io::Result<()> {
        match self {
            Self::Slow | Self::Failing => backend.heal(),
            Self::Killed => backend.restart(),
            Self::Frozen => backend.thaw(),
        }
    }
}

/// How long everything takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phases {
    /// What passes before anything counts.
    warm_up: Duration,
    quiet: Duration,
    fault: Duration,
    rest: Duration,
}

impl Phases {
    /// Those of a usual run.
    pub(crate) const SHORT: Self = Self::of(1, 3, 3, 3);
    /// Those of a run in full.
    pub(crate) const FULL: Self = Self::of(1, 3, 5, 4);

    const fn of(warm_up: u64, quiet: u64, fault: u64, rest: u64) -> Self {
        Self {
            warm_up: Duration::from_secs(warm_up),
            quiet: Duration::from_secs(quiet),
            fault: Duration::from_secs(fault),
            rest: Duration::from_secs(rest),
        }
    }

    /// When a fault begins and ends.
    pub(crate) fn of_fault(&self, index: usize) -> (Duration, Duration) {
        let before = (self.fault + self.rest) * u32::try_from(index).expect("there are four");
        let begin = self.warm_up + self.quiet + before;
        (begin, begin + self.fault)
    }

    /// How long the load lasts.
    pub(crate) fn total(&self) -> Duration {
        self.of_fault(FAULTS.len()).0
    }
}

/// Lets everything happen to the backends in its time; each fault strikes the next of them.
pub(crate) fn play(phases: &Phases, backends: &mut [Backend]) -> io::Result<()> {
    let start = Instant::now();
    let wait = |until: Duration| std::thread::sleep(until.saturating_sub(start.elapsed()));
    for (index, fault) in FAULTS.into_iter().enumerate() {
        let backend = &mut backends[index % 3];
        let (begin, end) = phases.of_fault(index);
        wait(begin);
        fault.begin(backend)?;
        wait(end);
        fault.end(backend)?;
    }
    Ok(())
}

/// What one entrant made of the timeline.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) phases: Phases,
    samples: Vec<Sample>,
}

/// What clients saw of one fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// From the begin of the fault until p99 had recovered; `None` if it did not while it lasted.
    pub(crate) after_begin: Option<Duration>,
    /// From its end until p99 had recovered; `None` if it did not before the next.
    pub(crate) after_end: Option<Duration>,
    /// The highest p99 of a window.
    pub(crate) worst_p99: Duration,
    pub(crate) errors: usize,
    pub(crate) requests: usize,
}

impl Run {
    /// Takes samples that are in the order in which they were due.
    pub(crate) fn new(name: &'static str, phases: Phases, samples: Vec<Sample>) -> Self {
        Self { name, phases, samples }
    }

    /// Requests that were due in a stretch of time.
    fn between(&self, from: Duration, to: Duration) -> &[Sample] {
        let at = |time| self.samples.partition_point(|sample| sample.due < time);
        &self.samples[at(from)..at(to).max(at(from))]
    }

    fn counted(&self) -> &[Sample] {
        self.between(self.phases.warm_up, self.phases.total())
    }

    /// Requests that count, and those of them that failed.
    pub(crate) fn requests_and_errors(&self) -> (usize, usize) {
        (self.counted().len(), errors(self.counted()))
    }

    /// The p50 and p99 before the first fault.
    pub(crate) fn quiet(&self) -> (Duration, Duration) {
        let quiet = self.between(self.phases.warm_up, self.phases.of_fault(0).0);
        (quantile(quiet, 0.5), quantile(quiet, 0.99))
    }

    /// What was seen of a fault.
    pub(crate) fn seen(&self, index: usize) -> Seen {
        let (begin, end) = self.phases.of_fault(index);
        let next = self.phases.of_fault(index + 1).0;
        let during = self.between(begin, next);
        Seen {
            after_begin: self.recovery(begin, end),
            after_end: self.recovery(end, next),
            worst_p99: windows(begin, next)
                .map(|from| quantile(self.between(from, from + WINDOW), 0.99))
                .max()
                .unwrap_or_default(),
            errors: errors(during),
            requests: during.len(),
        }
    }

    /// How long after `from` every window up to `to` is as it was in the quiet time.
    fn recovery(&self, from: Duration, to: Duration) -> Option<Duration> {
        let bound = self.quiet().1.mul_f64(RECOVERED);
        let is_bad = |at: &Duration| quantile(self.between(*at, *at + WINDOW), 0.99) > bound;
        match windows(from, to).filter(is_bad).last() {
            None => Some(Duration::ZERO),
            // The first window that is good begins a step later.
            Some(last) if last + STEP + WINDOW <= to => Some(last + STEP - from),
            Some(_) => None,
        }
    }

    /// For each half second: its middle, p99 in milliseconds, and errors per second.
    pub(crate) fn course(&self) -> Vec<(f64, f64, f64)> {
        let length = Duration::from_millis(500);
        let count = (self.phases.total().as_millis() / length.as_millis()) as u32;
        (0..count)
            .map(|index| {
                let (from, to) = (length * index, length * (index + 1));
                let samples = self.between(from, to);
                let p99 = quantile(samples, 0.99).as_secs_f64() * 1e3;
                let middle = (from + length / 2).as_secs_f64();
                (middle, p99, errors(samples) as f64 / length.as_secs_f64())
            })
            .collect()
    }
}

/// The begins of the windows that lie within a stretch of time.
fn windows(from: Duration, to: Duration) -> impl Iterator<Item = Duration> {
    (0..).map(move |step| from + STEP * step).take_while(move |begin| *begin + WINDOW <= to)
}

fn errors(samples: &[Sample]) -> usize {
    samples.iter().filter(|sample| !sample.good).count()
}

/// A quantile of latencies, by nearest rank; failed requests are the slowest.
fn quantile(samples: &[Sample], q: f64) -> Duration {
    let latency = |sample: &Sample| if sample.good { sample.latency } else { TIMEOUT };
    let mut latencies: Vec<Duration> = samples.iter().map(latency).collect();
    latencies.sort_unstable();
    let rank = (latencies.len() as f64 * q).ceil() as usize;
    latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request every 10 ms; `what` says what became of those due at a time, in milliseconds.
    fn run(what: impl Fn(u64) -> Result<u64, ()>) -> Run {
        let phases = Phases::SHORT;
        let samples = (0..phases.total().as_millis() as u64 / 10).map(|number| {
            let due = Duration::from_millis(number * 10);
            match what(number * 10) {
                Ok(ms) => Sample { due, latency: Duration::from_millis(ms), good: true },
                Err(()) => Sample { due, latency: Duration::ZERO, good: false },
            }
        });
        Run::new("a run", phases, samples.collect())
    }

    #[test]
    fn recovery_is_the_time_after_which_every_window_is_as_before() {
        // Slow for 1.3 s from the begin of the first fault, and once more at its end.
        let (begin, end) = Phases::SHORT.of_fault(0);
        let (begin, end) = (begin.as_millis() as u64, end.as_millis() as u64);
        let slow = |at: u64| (begin..begin + 1_300).contains(&at) || (end..end + 100).contains(&at);
        let seen = run(|at| Ok(if slow(at) { 500 } else { 50 })).seen(0);
        assert_eq!(seen.after_begin, Some(Duration::from_millis(1_300)));
        assert_eq!(seen.after_end, Some(Duration::from_millis(100)));
        assert_eq!(seen.worst_p99, Duration::from_millis(500));
        assert_eq!((seen.errors, seen.requests), (0, 600));
    }

    #[test]
    fn what_lasts_as_long_as_the_fault_is_no_recovery() {
        let (begin, end) = Phases::SHORT.of_fault(1);
        let slow = |at: u64| (begin..end).contains(&Duration::from_millis(at));
        let run = run(|at| Ok(if slow(at) { 101 } else { 50 }));
        assert_eq!(run.seen(1).after_begin, None);
        assert_eq!(run.seen(1).after_end, Some(Duration::ZERO));
        assert_eq!(run.seen(0).after_begin, Some(Duration::ZERO));
        let just_within = self::run(|at| Ok(if slow(at) { 100 } else { 50 }));
        assert_eq!(just_within.seen(1).after_begin, Some(Duration::ZERO));
    }

    #[test]
    fn failures_are_slower_than_anything_and_are_counted_where_they_were() {
        let (begin, _) = Phases::SHORT.of_fault(2);
        let begin = begin.as_millis() as u64;
        let run = run(|at| if (begin..begin + 50).contains(&at) { Err(()) } else { Ok(50) });
        let seen = run.seen(2);
        assert_eq!((seen.errors, seen.worst_p99), (5, TIMEOUT));
        assert_eq!(run.seen(1).errors, 0);
        let (requests, errors) = run.requests_and_errors();
        assert_eq!((requests, errors), (2_700, 5));
        let course = run.course();
        assert_eq!(course.len(), 56);
        let at = (begin / 500) as usize;
        assert_eq!((course[at].2, course[at + 1].2), (10.0, 0.0));
    }
}
