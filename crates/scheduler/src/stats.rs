//! Figures per lane, level and type of task.
//!
//! A lane keeps its figures under the lock that it takes for every start and end anyway, so counting
//! costs no atomics and no clock of its own. A row belongs to one type at one level; sums over either
//! are made when somebody asks.

use std::collections::HashMap;
use std::time::Duration;

use crate::lane::Lane;
use crate::task::Priority;
use crate::watchdog::LaneHealth;

/// Buckets of a histogram: four to each power of two, from 128 ns to about 137 s.
const BUCKETS: usize = 120;
/// The name of the row of all types beyond the maximum.
const OTHER: &str = "other";

/// Durations in buckets whose width is at most a quarter of their lower end.
///
/// Below 512 ns the buckets are 128 ns wide; everything above 137 s is in the last one.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    count: u64,
    sum_nanos: u64,
    max_nanos: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), count: 0, sum_nanos: 0, max_nanos: 0 }
    }

    pub(crate) fn record(&mut self, value: Duration) {
        let nanos = nanos(value);
        self.counts[bucket(nanos)] += 1;
        self.count += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
        self.max_nanos = self.max_nanos.max(nanos);
    }

    fn add(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += other;
        }
        self.count += other.count;
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
        self.max_nanos = self.max_nanos.max(other.max_nanos);
    }

    /// Returns how many durations were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the sum of the durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos)
    }

    /// Returns the longest duration.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_nanos)
    }

    /// Returns the mean; zero if there is none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos.checked_div(self.count).unwrap_or_default())
    }

    /// Returns an upper bound of the `q`-quantile, at most a quarter too large; zero if empty.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(index).min(self.max());
            }
        }
        self.max()
    }

    /// Returns the buckets that are not empty: their upper end, and the count in them.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0).map(|(index, &count)| (upper(index), count))
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

/// Nanoseconds of a duration, as far as they can be told: 584 years.
fn nanos(value: Duration) -> u64 {
    let subsecond = u64::from(value.subsec_nanos());
    value.as_secs().saturating_mul(1_000_000_000).saturating_add(subsecond)
}

fn bucket(nanos: u64) -> usize {
    let units = nanos >> 7;
    if units < 4 {
        return units as usize;
    }
    let power = units.ilog2() - 2;
    let index = 4 + power as usize * 4 + (units >> power & 3) as usize;
    index.min(BUCKETS - 1)
}

/// The first duration beyond a bucket.
fn upper(index: usize) -> Duration {
    let next = index as u64 + 1;
    let units = if next < 4 { next } else { (4 + next % 4) << (next / 4 - 1) };
    Duration::from_nanos(units << 7)
}

/// What became of the tasks of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Tasks that were taken.
    pub submitted: u64,
    /// Tasks that ended with a value.
    pub done: u64,
    /// Tasks that panicked, or gave their last attempt's error, or whose dependency failed.
    pub failed: u64,
    /// Tasks that were cancelled, by a handle, a group or the end of the scheduler.
    pub cancelled: u64,
    /// Tasks that waited or ran longer than they may.
    pub timed_out: u64,
    /// Tasks that were given up while they waited.
    pub shed: u64,
    /// Tasks that were not taken.
    pub refused: u64,
    /// Further attempts.
    pub retried: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        let Self { submitted, done, failed, cancelled, timed_out, shed, refused, retried } = other;
        self.submitted += submitted;
        self.done += done;
        self.failed += failed;
        self.cancelled += cancelled;
        self.timed_out += timed_out;
        self.shed += shed;
        self.refused += refused;
        self.retried += retried;
    }

    /// Returns how many of the tasks that were taken have ended.
    pub fn ended(&self) -> u64 {
        self.done + self.failed + self.cancelled + self.timed_out + self.shed
    }
}

/// The figures of one type of task at one level.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeStats {
    /// The type's name; `other` for all beyond the maximum.
    pub name: &'static str,
    /// The level.
    pub priority: Priority,
    /// What became of the tasks.
    pub counts: Counts,
    /// How long they waited in the queue before they started.
    pub wait: Histogram,
    /// How long they ran; of a future, with the time in which it waited.
    pub run: Histogram,
}

impl TypeStats {
    fn new(name: &'static str, priority: Priority) -> Self {
        let (wait, run) = (Histogram::new(), Histogram::new());
        Self { name, priority, counts: Counts::default(), wait, run }
    }
}

/// The figures of one level of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LevelStats {
    /// The level.
    pub priority: Priority,
    /// Tasks that wait in the queue at this moment.
    pub queued: usize,
    /// Tasks that wait for something else first: dependencies, memory, a group, another attempt.
    pub held: usize,
    /// The bytes that all these have declared.
    pub waiting_bytes: u64,
    /// How long the oldest queued task has waited.
    pub oldest: Duration,
    /// What became of the tasks.
    pub counts: Counts,
    /// How long they waited.
    pub wait: Histogram,
    /// How long they ran.
    pub run: Histogram,
}

/// The figures of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// The lane.
    pub lane: Lane,
    /// Tasks that may run at once.
    pub slots: usize,
    /// Tasks that run at this moment.
    pub running: usize,
    /// How the lane is.
    pub health: LaneHealth,
    /// The levels, from `Critical` to `Low`.
    pub levels: [LevelStats; 4],
    /// Each type at each level of which there was a task, in the order in which they came.
    pub types: Vec<TypeStats>,
}

impl LaneStats {
    /// Returns the figures of a type at a level.
    pub fn of_type(&self, name: &str, priority: Priority) -> Option<&TypeStats> {
        self.types.iter().find(|it| it.name == name && it.priority == priority)
    }
}

/// The figures of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerStats {
    /// The lanes: `Io`, `Cpu`, `Blocking`.
    pub lanes: [LaneStats; 3],
}

impl SchedulerStats {
    /// Returns the figures of a lane.
    pub fn lane(&self, lane: Lane) -> &LaneStats {
        &self.lanes[lane.index()]
    }
}

/// The rows of one lane.
pub(crate) struct Ledger {
    rows: Vec<TypeStats>,
    by_name: HashMap<(&'static str, Priority), u16>,
    /// The most types that get rows of their own.
    types_max: usize,
    /// How long tasks of each row usually run, in nanoseconds; none before the first has ended.
    usual: Vec<Option<u64>>,
    /// Where names were last found: few are in use at a time, and a literal keeps its address.
    recent: [Option<Recent>; 16],
}

#[derive(Clone, Copy)]
struct Recent {
    address: usize,
    length: usize,
    priority: Priority,
    row: u16,
}

impl Ledger {
    pub(crate) fn new(types_max: usize) -> Self {
        Self {
            rows: Vec::new(),
            by_name: HashMap::new(),
            types_max,
            usual: Vec::new(),
            recent: [None; 16],
        }
    }

    /// Finds or makes the row of a type at a level.
    pub(crate) fn row(&mut self, name: &'static str, priority: Priority) -> u16 {
        let (address, length) = (name.as_ptr() as usize, name.len());
        let slot = ((address / 8) ^ priority.index()) % self.recent.len();
        if let Some(recent) = self.recent[slot]
            && (recent.address, recent.length, recent.priority) == (address, length, priority)
        {
            return recent.row;
        }
        let row = self.find(name, priority);
        self.recent[slot] = Some(Recent { address, length, priority, row });
        row
    }

    fn find(&mut self, name: &'static str, priority: Priority) -> u16 {
        if let Some(&row) = self.by_name.get(&(name, priority)) {
            return row;
        }
        // Four rows for each type; the last four are for what comes after the maximum.
        let full = self.rows.len() >= 4 * self.types_max;
        if full && name != OTHER {
            return self.find(OTHER, priority);
        }
        let row = self.rows.len() as u16;
        self.rows.push(TypeStats::new(name, priority));
        self.usual.push(None);
        self.by_name.insert((name, priority), row);
        row
    }

    pub(crate) fn get(&mut self, row: u16) -> &mut TypeStats {
        &mut self.rows[row as usize]
    }

    /// Records how long a task ran and returns its row.
    ///
    /// The usual time follows long ones at once and short ones slowly: who acts on it thinks a type short
    /// only as long as all of its tasks are.
    pub(crate) fn ran(&mut self, row: u16, ran: Duration) -> &mut TypeStats {
        let nanos = nanos(ran);
        let usual = &mut self.usual[row as usize];
        *usual = Some(match *usual {
            Some(before) if before > nanos => before - (before - nanos) / 8,
            Some(before) => before + (nanos - before) / 2,
            None => nanos,
        });
        let row = &mut self.rows[row as usize];
        row.run.record(ran);
        row
    }

    /// Returns how long tasks of a row usually run; none before the first has ended.
    pub(crate) fn usual(&self, row: u16) -> Option<Duration> {
        self.usual[row as usize].map(Duration::from_nanos)
    }

    pub(crate) fn name(&self, row: u16) -> &'static str {
        self.rows[row as usize].name
    }

    pub(crate) fn rows(&self) -> &[TypeStats] {
        &self.rows
    }

    /// Sums the rows of a level.
    pub(crate) fn level(&self, priority: Priority) -> (Counts, Histogram, Histogram) {
        let mut sum = (Counts::default(), Histogram::new(), Histogram::new());
        for row in self.rows.iter().filter(|row| row.priority == priority) {
            sum.0.add(&row.counts);
            sum.1.add(&row.wait);
            sum.2.add(&row.run);
        }
        sum
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_its_bucket_and_quantiles_are_close() {
        for nanos in (0..200_000).chain((18..60).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 1]))
        {
            let value = Duration::from_nanos(nanos);
            let index = bucket(nanos);
            let lower = index.checked_sub(1).map(upper).unwrap_or_default();
            assert!(value >= lower, "{value:?}");
            assert!(value < upper(index) || index == BUCKETS - 1, "{value:?}");
        }
        let mut histogram = Histogram::new();
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        let median = histogram.quantile(0.5).as_micros();
        assert!((500..=625).contains(&median), "{median}");
        assert_eq!(histogram.quantile(1.0), Duration::from_millis(1));
        assert_eq!(histogram.mean(), Duration::from_nanos(500_500));
        assert_eq!(Histogram::new().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn types_beyond_the_maximum_share_a_row() {
        let mut ledger = Ledger::new(1);
        let names = ["a", "b", "c", "d", "e", "f"];
        let rows = names.map(|name| ledger.row(name, Priority::Low));
        assert_eq!(rows, [0, 1, 2, 3, 4, 4]);
        assert_eq!((ledger.name(4), ledger.row("b", Priority::Low)), ("other", 1));
    }
}
