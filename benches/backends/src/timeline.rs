//! What happens to the backends and when, and what the clients saw of it.
//!
//! Each fault strikes backends that have just been started, after a quiet time and with a rest behind it:
//! one that was ejected a moment ago would be out as well, and one of three can be missed, but not two. A
//! fault is over for the clients when every window of a second from then on has a p99 of at most twice
//! that of the quiet times; a request that failed counts as slower than any other in it. The courses of
//! the faults are put behind each other.

use std::io;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::load::{Sample, TIMEOUT};

/// How many times longer requests take on a backend that is slow.
const SLOWER: u32 = 10;
/// The p99 that counts as recovered, by that of the quiet time.
pub(crate) const RECOVERED: f64 = 2.0;
/// What was due so long before a fault may be under way when it begins, and belongs to it.
const UNDER_WAY: Duration = Duration::from_millis(250);
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
    pub(crate) const SHORT: Self = Self::of(1, 2, 3, 2);
    /// Those of a run in full.
    pub(crate) const FULL: Self = Self::of(1, 2, 4, 3);

    const fn of(warm_up: u64, quiet: u64, fault: u64, rest: u64) -> Self {
        Self {
            warm_up: Duration::from_secs(warm_up),
            quiet: Duration::from_secs(quiet),
            fault: Duration::from_secs(fault),
            rest: Duration::from_secs(rest),
        }
    }

    /// How long the load of one fault lasts.
    pub(crate) fn length(&self) -> Duration {
        self.warm_up + self.quiet + self.fault + self.rest
    }

    /// How long all backends are well after a fault.
    pub(crate) fn rest(&self) -> Duration {
        self.rest
    }

    /// When the course of a fault begins.
    fn start(&self, index: usize) -> Duration {
        self.length() * u32::try_from(index).expect("there are four")
    }

    /// When a fault begins and ends.
    pub(crate) fn of_fault(&self, index: usize) -> (Duration, Duration) {
        let begin = self.start(index) + self.warm_up + self.quiet;
        (begin, begin + self.fault)
    }

    /// How long the load for all faults lasts.
    pub(crate) fn total(&self) -> Duration {
        self.start(FAULTS.len())
    }
}

/// Lets a fault strike a backend and end again, in its time.
pub(crate) fn play(phases: &Phases, fault: Fault, backend: &mut Backend) -> io::Result<()> {
    let start = Instant::now();
    let wait = |until: Duration| std::thread::sleep(until.saturating_sub(start.elapsed()));
    let (begin, end) = phases.of_fault(0);
    wait(begin);
    fault.begin(backend)?;
    wait(end);
    fault.end(backend)
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
    /// Takes the samples of each fault, which are in the order in which they were due.
    pub(crate) fn new(name: &'static str, phases: Phases, of_faults: Vec<Vec<Sample>>) -> Self {
        let samples = of_faults.into_iter().enumerate().flat_map(|(index, samples)| {
            let start = phases.start(index);
            samples.into_iter().map(move |sample| Sample { due: start + sample.due, ..sample })
        });
        Self { name, phases, samples: samples.collect() }
    }

    /// Requests that were due in a stretch of time.
    fn between(&self, from: Duration, to: Duration) -> &[Sample] {
        let at = |time| self.samples.partition_point(|sample| sample.due < time);
        &self.samples[at(from)..at(to).max(at(from))]
    }

    /// Requests after the warm-ups.
    fn counted(&self) -> impl Iterator<Item = &Sample> {
        (0..FAULTS.len()).flat_map(|index| {
            let from = self.phases.start(index) + self.phases.warm_up;
            self.between(from, self.phases.start(index + 1))
        })
    }

    /// Every request as a line: the entrant, when it was due and what it took in ms, and if it was good.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.samples.iter().map(move |Sample { due, latency, good }| {
            format!("{},{:.1},{:.1},{good}\n", self.name, ms(*due), ms(*latency))
        })
    }

    /// Requests that count, and those of them that failed.
    pub(crate) fn requests_and_errors(&self) -> (usize, usize) {
        (self.counted().count(), errors(self.counted()))
    }

    /// The p50 and p99 of the quiet times.
    pub(crate) fn quiet(&self) -> (Duration, Duration) {
        let quiet: Vec<Sample> = (0..FAULTS.len())
            .flat_map(|index| {
                let begin = self.phases.of_fault(index).0;
                self.between(begin - self.phases.quiet, begin - UNDER_WAY)
            })
            .copied()
            .collect();
        (quantile(&quiet, 0.5), quantile(&quiet, 0.99))
    }

    /// What was seen of a fault.
    pub(crate) fn seen(&self, index: usize) -> Seen {
        let (begin, end) = self.phases.of_fault(index);
        let over = self.phases.start(index + 1);
        let during = self.between(begin - UNDER_WAY, over);
        Seen {
            after_begin: self.recovery(begin, end),
            after_end: self.recovery(end, over),
            worst_p99: windows(begin - UNDER_WAY, over)
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

fn errors<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> usize {
    samples.into_iter().filter(|sample| !sample.good).count()
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
        let length = phases.length().as_millis() as u64;
        let of_fault = |index: u64| {
            let sample = |number: u64| {
                let due = Duration::from_millis(number * 10);
                match what(index * length + number * 10) {
                    Ok(ms) => Sample { due, latency: Duration::from_millis(ms), good: true },
                    Err(()) => Sample { due, latency: Duration::ZERO, good: false },
                }
            };
            (0..length / 10).map(sample).collect()
        };
        Run::new("a run", phases, (0..FAULTS.len() as u64).map(of_fault).collect())
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
        assert_eq!((seen.errors, seen.requests), (0, 525));
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
        assert_eq!((requests, errors), (4 * 700, 5));
        let course = run.course();
        assert_eq!(course.len(), 64);
        let at = (begin / 500) as usize;
        assert_eq!((course[at].2, course[at + 1].2), (10.0, 0.0));
    }
}
