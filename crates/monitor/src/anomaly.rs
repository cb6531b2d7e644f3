//! Whether a series behaves oddly: two baselines that must agree, for most of two minutes.
//!
//! The *short* baseline is the median of the last hour, with the median absolute deviation as its spread
//! (Hampel's identifier). The *weekly* baseline is the same of the quarter of an hour one week ago, so a
//! rush that comes every Monday is not odd. A sample deviates from a baseline if it is further away than
//! `z` spreads and than `min_change`. The series is odd if at least `share` of the samples of `of` deviate
//! from the short baseline, and as many from the weekly one.
//!
//! A rule on single samples raises some forty false alarms per series and day; this one stays quiet for
//! weeks, at the price of about two minutes. Until a week is stored the short baseline judges alone and
//! says that it is learning. While the series is odd nothing is learned, with two exceptions: a level that
//! stays for `adapt_after` is accepted as the new normal, and a quarter of an hour of which last week tells
//! nothing is learned for the next, because the short baseline alone takes each quiet weekend for odd.
//!
//! Time comes in with each sample, so that weeks can be simulated in seconds.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::millis;

/// Length of a slot of the weekly baseline, in milliseconds.
const SLOT_MS: i64 = 15 * 60_000;

/// Slots in a week.
const SLOTS: usize = 7 * 24 * 4;

/// A week, in milliseconds.
const WEEK_MS: i64 = SLOT_MS * SLOTS as i64;

/// What turns the median absolute deviation into a standard deviation, for normal noise.
const MAD_SCALE: f64 = 1.4826;

/// Samples of the short baseline at most, and of one slot; more often sampled series are thinned out.
const SAMPLES_MAX: usize = 4_096;

/// Samples that `of` holds at most.
const RECENT_MAX: u32 = 64;

/// Samples of a slot below which it is no baseline.
const SLOT_SAMPLES_MIN: usize = 5;

/// How odd is odd.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnomalyOptions {
    /// How often a sample comes.
    pub step: Duration,
    /// How many spreads away from the baseline.
    pub z: f64,
    /// The part of the samples of `of` that must deviate, from 0 to 1.
    pub share: f64,
    /// The stretch of time that is judged; at most 64 steps.
    pub of: Duration,
    /// The length of the short baseline.
    pub short: Duration,
    /// Whether the same time of the last week must find it odd as well.
    pub weekly: bool,
    /// The least change that counts, as a part of the baseline.
    pub min_change: f64,
    /// The least spread, as a part of the baseline, so that a flat series is not odd at its first twitch.
    pub floor: f64,
    /// How long an odd level must stay until it is learned.
    pub adapt_after: Duration,
}

impl Default for AnomalyOptions {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(10),
            z: 3.0,
            share: 0.6,
            of: Duration::from_secs(120),
            short: Duration::from_secs(3_600),
            weekly: true,
            min_change: 0.2,
            floor: 0.05,
            adapt_after: Duration::from_secs(6 * 3_600),
        }
    }
}

impl AnomalyOptions {
    /// Returns how many samples are judged together.
    fn recent(&self) -> u32 {
        let steps = self.of.as_secs_f64() / self.step.as_secs_f64().max(1e-3);
        (steps.round() as u32).clamp(1, RECENT_MAX)
    }
}

/// What the detector makes of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// Whether the series is odd.
    pub odd: bool,
    /// Whether a baseline is not complete.
    pub learning: bool,
    /// Whether this sample alone deviates from every baseline there is.
    pub deviates: bool,
    /// The short baseline, nothing until there are enough samples.
    pub expected: Option<f64>,
    /// How far a sample may be from it.
    pub tolerance: f64,
    /// The baseline of one week ago.
    pub expected_weekly: Option<f64>,
}

/// A median and how far samples may be away from it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Baseline {
    median: f64,
    tolerance: f64,
}

impl Baseline {
    fn deviates(self, value: f64) -> bool {
        (value - self.median).abs() > self.tolerance
    }
}

/// A slot of the last week: when it was, its median and deviation.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Quarters of an hour since 1970, plus one; zero if it was never filled.
    stamp: u32,
    median: f32,
    deviation: f32,
}

/// The consensus of a short and a weekly baseline over one series.
///
/// # Cost
///
/// About 8 KiB for the week and 16 bytes for each sample of the short baseline. A sample costs a few
/// nanoseconds, and once a minute two selections over the short baseline.
#[derive(Debug, Clone)]
pub struct Detector {
    options: AnomalyOptions,
    short: VecDeque<(i64, f64)>,
    /// The short baseline, and until when it is good.
    short_baseline: Option<Baseline>,
    refresh_ms: i64,
    slots: Vec<Slot>,
    /// Samples of the slot that runs, and its quarter of an hour since 1970.
    open: Vec<f64>,
    open_stamp: i64,
    /// The last samples, the newest in the lowest bit: whether they deviated.
    deviant_short: u64,
    deviant_weekly: u64,
    first_ms: Option<i64>,
    last_ms: Option<i64>,
    odd_since_ms: Option<i64>,
    last: Judgement,
}

impl Detector {
    /// Makes a detector that knows nothing yet.
    #[must_use]
    pub fn new(options: AnomalyOptions) -> Self {
        Self {
            options,
            short: VecDeque::new(),
            short_baseline: None,
            refresh_ms: i64::MIN,
            slots: match options.weekly {
                true => vec![Slot::default(); SLOTS],
                false => Vec::new(),
            },
            open: Vec::new(),
            open_stamp: i64::MIN,
            deviant_short: 0,
            deviant_weekly: 0,
            first_ms: None,
            last_ms: None,
            odd_since_ms: None,
            last: Judgement {
                odd: false,
                learning: true,
                deviates: false,
                expected: None,
                tolerance: 0.0,
                expected_weekly: None,
            },
        }
    }

    /// Learns a sample of the past without a judgement, oldest first.
    pub fn learn(&mut self, unix_ms: i64, value: f64) {
        if value.is_finite() && self.last_ms.is_none_or(|last| unix_ms > last) {
            self.last_ms = Some(unix_ms);
            self.keep(unix_ms, value);
        }
    }

    /// Judges a sample, then learns it if the series is not odd.
    ///
    /// A sample that is no finite number counts as missing. One that is not newer than the last changes
    /// nothing.
    pub fn observe(&mut self, unix_ms: i64, value: f64) -> Judgement {
        if self.last_ms.is_some_and(|last| unix_ms <= last) {
            return self.last;
        }
        let gap = self.last_ms.map_or(0, |last| unix_ms.saturating_sub(last));
        if gap > millis(self.options.of) {
            (self.deviant_short, self.deviant_weekly) = (0, 0);
        }
        self.last_ms = Some(unix_ms);
        let short = self.short_baseline(unix_ms);
        let weekly = self.weekly_baseline(unix_ms);
        let finite = value.is_finite();
        let from_short = finite && short.is_some_and(|baseline| baseline.deviates(value));
        let from_weekly = finite && weekly.is_none_or(|baseline| baseline.deviates(value));
        self.deviant_short = self.deviant_short << 1 | u64::from(from_short);
        self.deviant_weekly = self.deviant_weekly << 1 | u64::from(from_weekly);
        let odd = self.most(self.deviant_short) && self.most(self.deviant_weekly);
        let week = self.first_ms.is_some_and(|first| unix_ms.saturating_sub(first) >= WEEK_MS);
        let weekly_ready = !self.options.weekly || (week && weekly.is_some());
        self.last = Judgement {
            odd,
            learning: short.is_none() || !weekly_ready,
            deviates: from_short && from_weekly,
            expected: short.map(|baseline| baseline.median),
            tolerance: short.map_or(0.0, |baseline| baseline.tolerance),
            expected_weekly: weekly.map(|baseline| baseline.median),
        };
        match odd {
            true => _ = self.odd_since_ms.get_or_insert(unix_ms),
            false => self.odd_since_ms = None,
        }
        let stays = self
            .odd_since_ms
            .is_some_and(|since| unix_ms.saturating_sub(since) >= millis(self.options.adapt_after));
        if finite && (!odd || stays) {
            self.keep(unix_ms, value);
        } else if finite && weekly.is_none() {
            // The short baseline judged alone. What comes every week, such as a quiet weekend, would
            // else be odd for ever: it is odd the first time, so it would never be learned.
            self.keep_slot(unix_ms, value);
        }
        self.last
    }

    /// Returns the last judgement.
    #[must_use]
    pub fn judgement(&self) -> Judgement {
        self.last
    }

    /// Whether enough of the last samples deviated.
    fn most(&self, deviant: u64) -> bool {
        let recent = self.options.recent();
        let mask = u64::MAX >> (RECENT_MAX - recent);
        let enough = (self.options.share * f64::from(recent)).ceil().max(1.0);
        f64::from((deviant & mask).count_ones()) >= enough
    }

    fn baseline(&self, median: f64, deviation: f64) -> Baseline {
        let options = &self.options;
        let spread = (MAD_SCALE * deviation).max(options.floor * median.abs());
        let tolerance = (options.z * spread).max(options.min_change * median.abs());
        Baseline { median, tolerance: tolerance.max(f64::MIN_POSITIVE) }
    }

    /// Returns the short baseline, computed anew once a minute.
    fn short_baseline(&mut self, unix_ms: i64) -> Option<Baseline> {
        if unix_ms >= self.refresh_ms {
            self.refresh_ms = unix_ms.saturating_add(60_000);
            // By the newest sample that was learned: while the series is odd the baseline stands still.
            let newest = self.short.back().map_or(unix_ms, |(at, _)| *at);
            let oldest = newest.saturating_sub(millis(self.options.short));
            while self.short.front().is_some_and(|(at, _)| *at <= oldest) {
                self.short.pop_front();
            }
            // A quarter of the baseline's length is enough to begin with.
            let covered = self.short.front().map_or(0, |(at, _)| newest.saturating_sub(*at));
            let ready = covered >= millis(self.options.short) / 4 && self.short.len() >= 10;
            let mut values: Vec<f64> = self.short.iter().map(|(_, value)| *value).collect();
            self.short_baseline = ready
                .then(|| median_and_deviation(&mut values))
                .map(|(median, deviation)| self.baseline(median, deviation));
        }
        self.short_baseline
    }

    fn weekly_baseline(&self, unix_ms: i64) -> Option<Baseline> {
        let stamp = unix_ms.div_euclid(SLOT_MS);
        let slot = self.slots.get(slot_of(stamp))?;
        let week_ago = stamp - SLOTS as i64;
        let (median, deviation) = (f64::from(slot.median), f64::from(slot.deviation));
        (i64::from(slot.stamp) - 1 == week_ago).then(|| self.baseline(median, deviation))
    }

    fn keep(&mut self, unix_ms: i64, value: f64) {
        self.first_ms.get_or_insert(unix_ms);
        let length_ms = millis(self.options.short);
        let dense = self.short.len() >= SAMPLES_MAX;
        let last_kept = self.short.back().map_or(i64::MIN, |(at, _)| *at);
        if !dense || unix_ms.saturating_sub(last_kept) >= length_ms / SAMPLES_MAX as i64 {
            if dense {
                self.short.pop_front();
            }
            self.short.push_back((unix_ms, value));
        }
        self.keep_slot(unix_ms, value);
    }

    /// Learns a sample for the same time of next week.
    fn keep_slot(&mut self, unix_ms: i64, value: f64) {
        if !self.options.weekly {
            return;
        }
        let stamp = unix_ms.div_euclid(SLOT_MS);
        if stamp != self.open_stamp {
            self.close_slot();
            self.open_stamp = stamp;
        }
        if self.open.len() < SAMPLES_MAX {
            self.open.push(value);
        }
    }

    /// Moves the slot that ran into the week.
    fn close_slot(&mut self) {
        if self.open.len() >= SLOT_SAMPLES_MIN {
            let (median, deviation) = median_and_deviation(&mut self.open);
            if let Some(slot) = self.slots.get_mut(slot_of(self.open_stamp)) {
                let stamp = u32::try_from(self.open_stamp.saturating_add(1)).unwrap_or(0);
                *slot = Slot { stamp, median: median as f32, deviation: deviation as f32 };
            }
        }
        self.open.clear();
    }
}

fn slot_of(stamp: i64) -> usize {
    usize::try_from(stamp.rem_euclid(SLOTS as i64)).expect("a remainder is not negative")
}

/// Returns the median and the median absolute deviation of at least one value; their order changes.
fn median_and_deviation(values: &mut [f64]) -> (f64, f64) {
    let median = median(values);
    for value in values.iter_mut() {
        *value = (*value - median).abs();
    }
    (median, self::median(values))
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    let count = values.len();
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    match count % 2 {
        1 => *upper,
        _ => {
            let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (lower + *upper) / 2.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP_MS: i64 = 10_000;

    /// A daily cycle with noise that repeats, the same each day.
    fn normal(unix_ms: i64) -> f64 {
        let day = unix_ms.rem_euclid(86_400_000) as f64 / 86_400_000.0;
        let noise = ((unix_ms / STEP_MS).wrapping_mul(7_919).rem_euclid(101) as f64 - 50.0) / 50.0;
        45.0 - 25.0 * (std::f64::consts::TAU * day).cos() + noise
    }

    /// Feeds the samples of a stretch of time and returns how many steps were odd.
    fn feed(
        detector: &mut Detector,
        from_ms: i64,
        length_ms: i64,
        value: impl Fn(i64) -> f64,
    ) -> usize {
        let steps = (from_ms..from_ms + length_ms).step_by(STEP_MS as usize);
        steps.filter(|&at| detector.observe(at, value(at)).odd).count()
    }

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn normal_weeks_are_not_odd_and_a_shift_is() {
        let mut detector = Detector::new(AnomalyOptions::default());
        assert_eq!(feed(&mut detector, 0, WEEK_MS + 12 * HOUR_MS, normal), 0);
        assert!(!detector.judgement().learning);
        let at = WEEK_MS + 12 * HOUR_MS;
        let odd = feed(&mut detector, at, 600_000, |at| normal(at) * 1.5);
        assert!((40..60).contains(&odd), "{odd} of 60 samples");
        let after = feed(&mut detector, at + 600_000, HOUR_MS, normal);
        assert!(after < 12, "{after} samples after the end");
    }

    #[test]
    fn a_single_spike_is_not_odd() {
        let mut detector = Detector::new(AnomalyOptions::default());
        feed(&mut detector, 0, 6 * HOUR_MS, |_| 10.0);
        for spike in 0..6 {
            let judgement = detector.observe(6 * HOUR_MS + spike * STEP_MS, 100.0);
            assert!(judgement.deviates && !judgement.odd, "spike {spike}");
        }
    }

    #[test]
    fn what_comes_each_week_at_this_time_is_not_odd() {
        let rush = |at: i64| match (12..13).contains(&(at.rem_euclid(WEEK_MS) / HOUR_MS)) {
            true => 100.0,
            false => 10.0,
        };
        let mut detector = Detector::new(AnomalyOptions::default());
        assert!(feed(&mut detector, 0, WEEK_MS, rush) > 0, "the first rush is new");
        assert_eq!(feed(&mut detector, WEEK_MS, WEEK_MS, rush), 0, "the second is known");
        // What is odd although last week is known is not learned.
        let other = |at: i64| {
            if (20..21).contains(&((at - 2 * WEEK_MS) / HOUR_MS)) { 100.0 } else { rush(at) }
        };
        assert!(feed(&mut detector, 2 * WEEK_MS, 24 * HOUR_MS, other) > 0, "at another hour");
        let again = |at: i64| other(at - WEEK_MS);
        assert!(
            feed(&mut detector, 3 * WEEK_MS + 18 * HOUR_MS, 3 * HOUR_MS, again) > 0,
            "and once more"
        );
    }

    #[test]
    fn nothing_is_learned_while_odd_until_it_stays() {
        let options = AnomalyOptions { weekly: false, ..AnomalyOptions::default() };
        let mut detector = Detector::new(options);
        feed(&mut detector, 0, 2 * HOUR_MS, |_| 10.0);
        feed(&mut detector, 2 * HOUR_MS, 5 * HOUR_MS, |_| 50.0);
        assert!(detector.judgement().odd, "five hours are no new normal");
        feed(&mut detector, 7 * HOUR_MS, 4 * HOUR_MS, |_| 50.0);
        assert!(!detector.judgement().odd, "six hours are");
    }

    #[test]
    fn it_says_that_it_learns() {
        let mut detector = Detector::new(AnomalyOptions::default());
        assert!(detector.observe(0, 1.0).learning);
        feed(&mut detector, STEP_MS, HOUR_MS, |_| 10.0);
        assert!(detector.judgement().learning && detector.judgement().expected.is_some());
        assert!(detector.judgement().expected_weekly.is_none());
        let mut taught = Detector::new(AnomalyOptions::default());
        for at in (0..=WEEK_MS).step_by(60_000) {
            taught.learn(at, 10.0);
        }
        assert!(!taught.observe(WEEK_MS + STEP_MS, 10.0).learning, "a past can be taught");
    }

    #[test]
    fn small_changes_and_odd_times_change_nothing() {
        let mut detector =
            Detector::new(AnomalyOptions { weekly: false, ..AnomalyOptions::default() });
        feed(&mut detector, 0, 2 * HOUR_MS, |_| 10.0);
        assert_eq!(feed(&mut detector, 2 * HOUR_MS, 600_000, |_| 11.9), 0, "below min_change");
        let before = detector.judgement();
        assert_eq!(detector.observe(0, 1e9), before, "an old sample");
        for at in 0..12 {
            detector.observe(3 * HOUR_MS + at * STEP_MS, f64::NAN);
        }
        assert!(!detector.judgement().odd);
    }

    #[test]
    fn medians_are_those_of_the_textbook() {
        assert_eq!(median_and_deviation(&mut [3.0, 1.0, 2.0]), (2.0, 1.0));
        assert_eq!(median_and_deviation(&mut [4.0, 1.0, 2.0, 3.0]), (2.5, 1.0));
        assert_eq!(median_and_deviation(&mut [7.0]), (7.0, 0.0));
    }
}
