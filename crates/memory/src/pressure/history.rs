//! Where memory was: one point a second for 15 minutes, one a minute for a day.
//!
//! A point gathers the readings of its second or minute. Time without readings has no point, and a
//! ring forgets what is older than its span as well as what exceeds its length.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Level, MemorySample};

/// The readings of one second or minute.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct HistoryPoint {
    /// When its second or minute began.
    pub at: Instant,
    /// How many readings it gathers.
    pub readings: u32,
    /// Least bytes in use of the limit that was nearest.
    pub used_min_bytes: u64,
    /// Mean bytes in use.
    pub used_mean_bytes: u64,
    /// Most bytes in use.
    pub used_max_bytes: u64,
    /// The limit of the last reading in bytes, zero if there was none.
    pub limit_bytes: u64,
    /// Most resident bytes of the process.
    pub rss_max_bytes: u64,
    /// The highest level.
    pub level_max: Level,
}

#[derive(Debug)]
pub(super) struct History {
    seconds: Ring,
    minutes: Ring,
}

impl History {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            seconds: Ring::new(start, Duration::from_secs(1), 15 * 60),
            minutes: Ring::new(start, Duration::from_secs(60), 24 * 60),
        }
    }

    pub(super) fn record(&mut self, sample: &MemorySample, now: Instant) {
        self.seconds.record(sample, now);
        self.minutes.record(sample, now);
    }

    pub(super) fn seconds(&self) -> Vec<HistoryPoint> {
        self.seconds.points.iter().copied().collect()
    }

    pub(super) fn minutes(&self) -> Vec<HistoryPoint> {
        self.minutes.points.iter().copied().collect()
    }
}

#[derive(Debug)]
struct Ring {
    start: Instant,
    width: Duration,
    length: usize,
    points: VecDeque<HistoryPoint>,
    /// The sum of the newest point's use, for its mean.
    sum: u128,
}

impl Ring {
    fn new(start: Instant, width: Duration, length: usize) -> Self {
        Self { start, width, length, points: VecDeque::new(), sum: 0 }
    }

    fn record(&mut self, sample: &MemorySample, now: Instant) {
        let age = now.saturating_duration_since(self.start);
        let number = (age.as_nanos() / self.width.as_nanos()) as u32;
        let at = self.start + self.width * number;
        let used = sample.used_bytes;
        match self.points.back_mut() {
            // A clock that steps back is counted into the newest point.
            Some(point) if point.at >= at => {
                point.readings += 1;
                self.sum += u128::from(used);
                point.used_mean_bytes = (self.sum / u128::from(point.readings)) as u64;
                point.used_min_bytes = point.used_min_bytes.min(used);
                point.used_max_bytes = point.used_max_bytes.max(used);
                point.limit_bytes = sample.limit_bytes;
                point.rss_max_bytes = point.rss_max_bytes.max(sample.rss_bytes);
                point.level_max = point.level_max.max(sample.level);
            }
            _ => {
                self.sum = u128::from(used);
                self.points.push_back(HistoryPoint {
                    at,
                    readings: 1,
                    used_min_bytes: used,
                    used_mean_bytes: used,
                    used_max_bytes: used,
                    limit_bytes: sample.limit_bytes,
                    rss_max_bytes: sample.rss_bytes,
                    level_max: sample.level,
                });
            }
        }
        let span = self.width * self.length as u32;
        let is_old = |point: &HistoryPoint| at.saturating_duration_since(point.at) >= span;
        while self.points.front().is_some_and(is_old) {
            self.points.pop_front();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sample(used: u64) -> MemorySample {
        MemorySample { used_bytes: used, rss_bytes: used, ..MemorySample::default() }
    }

    #[test]
    fn readings_of_one_second_are_one_point() {
        let start = Instant::now();
        let mut history = History::new(start);
        for (millis, used) in [(0, 10), (250, 30), (500, 20), (1_000, 7)] {
            history.record(&sample(used), start + Duration::from_millis(millis));
        }
        let [first, second] = history.seconds()[..] else { panic!("two points") };
        let of = |it: HistoryPoint| {
            (it.readings, it.used_min_bytes, it.used_mean_bytes, it.used_max_bytes)
        };
        assert_eq!((of(first), of(second)), ((3, 10, 20, 30), (1, 7, 7, 7)));
        assert_eq!(history.minutes().len(), 1);
        assert_eq!(history.minutes()[0].readings, 4);
    }

    #[test]
    fn the_rings_hold_fifteen_minutes_and_a_day() {
        let start = Instant::now();
        let mut history = History::new(start);
        let day = 24 * 60 * 60;
        for second in 0..day + 3_600 {
            history.record(&sample(second), start + Duration::from_secs(second));
        }
        assert_eq!((history.seconds().len(), history.minutes().len()), (900, 1_440));
        assert_eq!(history.seconds()[899].used_max_bytes, day + 3_599);
        // After a long silence nothing of before is left.
        history.record(&sample(1), start + Duration::from_secs(3 * day));
        assert_eq!((history.seconds().len(), history.minutes().len()), (1, 1));
    }
}
