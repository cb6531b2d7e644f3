//! A histogram for hot paths: recording is one relaxed addition, and every quantile is within 1.6 %.
//!
//! Values are counted in ticks, such as nanoseconds, in the buckets of an H2 histogram with grouping
//! power 5 (<https://h2histogram.org>): each power of two is cut into 32 equal buckets, so a bucket is at
//! most 1/32 of its value wide. A bucket is one atomic word: the lower half counts values, the upper half
//! adds up where in the bucket they lay, in sixteenths of its width. So one addition keeps the count, the
//! sum and the mean of each bucket. Both halves wrap; [`HistogramCell::read`] takes the differences to the
//! reading before, which is right as long as no bucket takes more than four billion values between two
//! readings. Carrying out of the lower half adds one sixteenth to the upper, and the reader takes it
//! away again.
//!
//! The buckets of values below 2^36, 68 seconds in nanoseconds, lie side by side, so that a value is one
//! step away from its word: a histogram takes 8 KiB. Those of larger values, 7 KiB, are allocated when the
//! first one comes. Going by a table of smaller pieces takes a fifth of the memory and a third more time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::exemplar::{Exemplar, Exemplars, TraceId};
use crate::series::Unit;

/// Each power of two is cut into 2 to this.
const GROUPING: u32 = 5;
/// Buckets of one power of two.
const GROUP: usize = 1 << GROUPING;
/// Groups that 64 bits need: values below 32 are the first, those below 64 the second.
const GROUPS: usize = 64 - GROUPING as usize + 1;
/// All buckets.
const BUCKETS: usize = GROUPS * GROUP;
/// Values of up to so many bits are near.
const NEAR_BITS: u32 = 36;
/// Buckets of near values.
const NEAR: usize = (NEAR_BITS - GROUPING + 1) as usize * GROUP;
/// What the exponent and the first bits of the fraction of a floating-point number are above the index of its
/// bucket: the exponent of 1 is 1,023, and the first 32 values are one group and not five.
const INDEX_OF_ONE: usize = (1_023 + GROUPING as usize - 1) << GROUPING;
/// Parts of a bucket's width in which positions are added up, as a power of two.
const PARTS: u32 = 4;

/// Returns the bucket of a value and where in the bucket it lies, in sixteenths of its width.
fn locate(ticks: u64) -> (usize, u64) {
    let shift = 63 - (ticks | GROUP as u64).leading_zeros() - GROUPING;
    let index = ((shift as usize) << GROUPING) + (ticks >> shift) as usize;
    let within = ticks & ((1 << shift) - 1);
    (index, (within << PARTS) >> shift)
}

/// Returns the least value of a bucket and how far its width is shifted.
fn bounds(index: usize) -> (u64, u32) {
    let group = index / GROUP;
    match group {
        0 => (index as u64, 0),
        _ => (((index % GROUP + GROUP) as u64) << (group - 1), (group - 1) as u32),
    }
}

/// Records values; clones record into the same series.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let registry = monitor::Registry::default();
/// let seconds = registry.histogram("job_duration_seconds", &[("job", "import")]);
/// seconds.record_duration(Duration::from_millis(30));
/// ```
#[derive(Clone)]
pub struct Histogram(pub(crate) Arc<HistogramCell>);

impl Histogram {
    /// Records a value in the unit of the metric.
    ///
    /// What is less than zero counts as zero; what is not a number is passed over.
    ///
    /// # Cost
    ///
    /// As [`record_ticks`](Self::record_ticks), and a multiplication.
    #[inline]
    pub fn record(&self, value: f64) {
        // Added to this, a smaller number has its whole part in the low bits of the mantissa.
        const WHOLE: f64 = (1_u64 << 52) as f64;
        let ticks = value * self.0.ticks_per_unit;
        if (0.0..WHOLE).contains(&ticks) {
            self.record_ticks((ticks + WHOLE).to_bits() - WHOLE.to_bits());
        } else if !value.is_nan() {
            // Saturates at both ends.
            self.record_ticks(ticks as u64);
        }
    }

    /// Records how long something took, into a histogram of seconds.
    ///
    /// # Cost
    ///
    /// As [`record_ticks`](Self::record_ticks); reading the clock costs several times as much.
    #[inline]
    pub fn record_duration(&self, duration: Duration) {
        const NANOS: u64 = 1_000_000_000;
        let seconds = duration.as_secs();
        self.record_ticks(match seconds < u64::MAX / NANOS {
            true => seconds * NANOS + u64::from(duration.subsec_nanos()),
            false => u64::MAX,
        });
    }

    /// Records a value in ticks: nanoseconds for seconds, billionths of a ratio, else the plain number.
    ///
    /// # Cost
    ///
    /// One relaxed addition to a word that threads with similar values share, and no allocation except
    /// for the first value of 2^36 ticks or more.
    #[inline]
    pub fn record_ticks(&self, ticks: u64) {
        self.0.record(ticks);
    }

    /// Returns all that has been recorded.
    ///
    /// # Cost
    ///
    /// One to two microseconds.
    #[must_use]
    pub fn distribution(&self) -> Arc<Distribution> {
        self.0.read()
    }

    /// Keeps the trace in which a value was measured, unless there is a younger one for such values.
    ///
    /// The value itself is recorded apart. `unix_ms` is the time of the wall clock.
    ///
    /// # Cost
    ///
    /// A lock that is tried and never waited for; the first exemplar of a histogram allocates.
    pub fn offer_exemplar(&self, value: f64, trace_id: TraceId, unix_ms: i64) {
        let bits = u64::BITS - ((value * self.0.ticks_per_unit) as u64).leading_zeros();
        let exemplars = self.0.exemplars.get_or_init(Box::default);
        exemplars.offer(bits, Exemplar { value, trace_id, unix_ms });
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Histogram").field(&self.0.read()).finish()
    }
}

/// The counts of one series.
pub(crate) struct HistogramCell {
    near: [AtomicU64; NEAR],
    far: OnceLock<Box<[AtomicU64; BUCKETS - NEAR]>>,
    ticks_per_unit: f64,
    scale: f64,
    exemplars: OnceLock<Box<Exemplars>>,
    read: Mutex<ReadState>,
}

/// What the words were at the last reading, and all that was counted up to then.
struct ReadState {
    words: Vec<(u16, u64)>,
    total: Arc<Distribution>,
}

impl HistogramCell {
    pub(crate) fn new(unit: Unit) -> Self {
        let ticks_per_unit = ticks_per_unit(unit);
        let scale = 1.0 / ticks_per_unit;
        Self {
            near: [const { AtomicU64::new(0) }; NEAR],
            far: OnceLock::new(),
            ticks_per_unit,
            scale,
            exemplars: OnceLock::new(),
            read: Mutex::new(ReadState {
                words: Vec::new(),
                total: Arc::new(Distribution::empty(scale)),
            }),
        }
    }

    #[inline]
    fn record(&self, ticks: u64) {
        const LEAST: u64 = GROUP as u64;
        if ticks.wrapping_sub(LEAST) >= (1 << NEAR_BITS) - LEAST {
            return self.record_unusual(ticks);
        }
        // The same as `locate`, read from the exponent and the highest bits of the fraction that the value
        // has as a floating-point number: nothing has to be shifted by a number that is not known before.
        let bits = (ticks as i64 as f64).to_bits();
        let index = (bits >> (52 - GROUPING)) as usize - INDEX_OF_ONE;
        let position = bits >> (52 - GROUPING - PARTS) & ((1 << PARTS) - 1);
        // The remainder changes nothing, and spares a check.
        self.near[index % NEAR].fetch_add(1 | position << 32, Relaxed);
    }

    /// Records a value below those that have 32 buckets to a power of two, or beyond the near ones.
    #[inline(never)]
    fn record_unusual(&self, ticks: u64) {
        let (index, position) = locate(ticks);
        let word = match self.near.get(index) {
            Some(word) => word,
            None => {
                let make = || Box::new([const { AtomicU64::new(0) }; BUCKETS - NEAR]);
                &self.far.get_or_init(make)[index - NEAR]
            }
        };
        word.fetch_add(1 | position << 32, Relaxed);
    }

    /// Returns the exemplars that are kept.
    pub(crate) fn exemplars(&self) -> Vec<Exemplar> {
        self.exemplars.get().map_or_else(Vec::new, |exemplars| exemplars.read())
    }

    /// Returns all that has been recorded; the same allocation as before if nothing was since.
    pub(crate) fn read(&self) -> Arc<Distribution> {
        let mut state = self.read.lock();
        let ReadState { words, total } = &mut *state;
        let mut now: Vec<(u16, u64)> = Vec::with_capacity(words.len());
        let far = self.far.get().into_iter().flat_map(|far| far.iter());
        for (index, word) in self.near.iter().chain(far).enumerate() {
            match word.load(Relaxed) {
                0 => {}
                word => now.push((index as u16, word)),
            }
        }
        if now == *words {
            return Arc::clone(total);
        }
        let mut parts = Vec::with_capacity(now.len());
        let mut before = words.iter().peekable();
        let mut sums = total.parts.iter().peekable();
        for &(index, word) in &now {
            while before.next_if(|(other, _)| *other < index).is_some() {}
            while let Some(part) = sums.next_if(|part| part.index < index) {
                parts.push(*part);
            }
            let last = before.next_if(|(other, _)| *other == index).map_or(0, |(_, word)| *word);
            let sum = sums.next_if(|part| part.index == index).copied();
            let mut part = sum.unwrap_or(Part { index, count: 0, position: 0 });
            let (count, carried) = (word as u32).overflowing_sub(last as u32);
            let position = ((word >> 32) as u32).wrapping_sub((last >> 32) as u32);
            part.count += u64::from(count);
            part.position += u64::from(position.wrapping_sub(u32::from(carried)));
            parts.push(part);
        }
        parts.extend(sums.copied());
        *words = now;
        *total = Arc::new(Distribution { scale: self.scale, parts });
        Arc::clone(total)
    }
}

/// Ticks in one unit.
fn ticks_per_unit(unit: Unit) -> f64 {
    match unit {
        Unit::Bytes => 1.0,
        Unit::Seconds | Unit::Ratio | Unit::Percent | Unit::None => 1e9,
    }
}

/// What one bucket holds, as stores keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which bucket, from 0 to 1919.
    pub index: u16,
    /// How many values.
    pub count: u64,
    /// Where in the bucket they lay, in sixteenths of its width, added up.
    pub position: u64,
}

/// One bucket that is not empty, in the unit of the metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Which bucket, from 0 to 1919.
    pub index: u16,
    /// Its least value.
    pub low: f64,
    /// The least value of the next.
    pub high: f64,
    /// How many values.
    pub count: u64,
    /// Their mean, within a thirty-second of the width.
    pub mean: f64,
}

/// Values by bucket: all that a histogram has seen, or what came between two readings.
///
/// # Examples
///
/// ```
/// use monitor::Distribution;
///
/// let mut seconds = Distribution::empty(1e-9);
/// (1..=1_000).for_each(|millis| seconds.record(millis as f64 / 1_000.0));
/// let p99 = seconds.quantile(0.99).expect("there are values");
/// assert!((p99 - 0.99).abs() < 0.99 * 0.016);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    scale: f64,
    /// Ascending by index, each once, none empty.
    parts: Vec<Part>,
}

impl Distribution {
    /// Returns a distribution of nothing; `scale` is what a tick is in the unit of the metric.
    #[must_use]
    pub fn empty(scale: f64) -> Self {
        Self { scale, parts: Vec::new() }
    }

    /// Makes a distribution of what [`parts`](Self::parts) gave.
    ///
    /// Parts may come in any order and twice. Those of no bucket and empty ones are left out.
    #[must_use]
    pub fn from_parts(scale: f64, parts: impl IntoIterator<Item = Part>) -> Self {
        let mut parts: Vec<Part> = parts
            .into_iter()
            .filter(|part| part.count > 0 && usize::from(part.index) < BUCKETS)
            .collect();
        parts.sort_by_key(|part| part.index);
        parts.dedup_by(|later, part| {
            let same = later.index == part.index;
            if same {
                part.count = part.count.saturating_add(later.count);
                part.position = part.position.saturating_add(later.position);
            }
            same
        });
        Self { scale, parts }
    }

    /// Returns the buckets that are not empty, ascending.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns what a tick is in the unit of the metric.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Adds one value, as [`Histogram::record`] does.
    pub fn record(&mut self, value: f64) {
        self.record_many(value, 1);
    }

    /// Adds a value so many times.
    pub fn record_many(&mut self, value: f64, count: u64) {
        if !value.is_nan() && count > 0 {
            let (index, position) = locate((value / self.scale).round_ties_even() as u64);
            self.add(Part { index: index as u16, count, position: position.saturating_mul(count) });
        }
    }

    fn add(&mut self, part: Part) {
        match self.parts.binary_search_by_key(&part.index, |part| part.index) {
            Ok(at) => {
                let own = &mut self.parts[at];
                own.count = own.count.saturating_add(part.count);
                own.position = own.position.saturating_add(part.position);
            }
            Err(at) => self.parts.insert(at, part),
        }
    }

    /// Returns how many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.parts.iter().fold(0, |count, part| count.saturating_add(part.count))
    }

    /// Returns the sum of the values, within a thousandth.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.buckets().map(|bucket| bucket.mean * bucket.count as f64).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns the buckets that are not empty, ascending, in the unit of the metric.
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = Bucket> + Clone + '_ {
        self.parts.iter().map(|part| {
            let (low, shift) = bounds(usize::from(part.index));
            let (low, width) = (low as f64, (1_u64 << shift) as f64);
            let sixteenth = width / f64::from(1 << PARTS);
            // Positions are rounded down where a sixteenth is more than a tick.
            let rounded = if shift > PARTS { sixteenth / 2.0 } else { 0.0 };
            let mean = low + part.position as f64 / part.count as f64 * sixteenth + rounded;
            Bucket {
                index: part.index,
                low: low * self.scale,
                high: (low + width) * self.scale,
                count: part.count,
                mean: mean.min(low + width) * self.scale,
            }
        })
    }

    /// Returns the value that a part `q` of all values does not exceed, nothing if there are none.
    ///
    /// `q` is from 0 to 1. The result is within 1.6 % of a value of that rank, or half a tick.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0_u64;
        for bucket in self.buckets() {
            if below + bucket.count >= rank {
                // The values lie evenly about their mean, as far as the bucket has room on both sides.
                let half = (bucket.mean - bucket.low).min(bucket.high - bucket.mean);
                let place = ((rank - below) as f64 - 0.5) / bucket.count as f64;
                return Some(bucket.mean + (2.0 * place - 1.0) * half);
            }
            below += bucket.count;
        }
        None
    }

    /// Adds the values of another distribution.
    ///
    /// If its ticks are others, its values count as the means of their buckets.
    pub fn merge(&mut self, other: &Self) {
        if other.scale != self.scale {
            for bucket in other.buckets() {
                self.record_many(bucket.mean, bucket.count);
            }
        } else if self.parts.is_empty() {
            self.parts.clone_from(&other.parts);
        } else {
            let both = self.parts.iter().chain(&other.parts).copied();
            *self = Self::from_parts(self.scale, both);
        }
    }

    /// Returns what came since an earlier reading of the same series.
    ///
    /// If this one is not a later reading, because the process is another, all of it came since.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut parts = Vec::new();
        let mut before = earlier.parts.iter().peekable();
        for part in &self.parts {
            let last = before.next_if(|last| last.index <= part.index);
            match last {
                None => parts.push(*part),
                Some(last)
                    if last.index == part.index
                        && last.count <= part.count
                        && last.position <= part.position =>
                {
                    if last.count < part.count {
                        let (count, position) =
                            (part.count - last.count, part.position - last.position);
                        parts.push(Part { index: part.index, count, position });
                    }
                }
                // A bucket that is gone or has less than it had.
                Some(_) => return self.clone(),
            }
        }
        match before.next() {
            None => Self { scale: self.scale, parts },
            Some(_) => self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Records ticks through a handle.
    fn recorded(ticks: &[u64]) -> (Histogram, Arc<Distribution>) {
        let histogram = Histogram(Arc::new(HistogramCell::new(Unit::Bytes)));
        ticks.iter().for_each(|ticks| histogram.record_ticks(*ticks));
        let read = histogram.0.read();
        (histogram, read)
    }

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_leave_no_gap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            let (low, shift) = bounds(index);
            assert_eq!(low, next, "bucket {index}");
            assert_eq!(locate(low), (index, 0));
            let high = low + ((1_u64 << shift) - 1);
            assert_eq!(locate(high).0, index);
            assert!(shift == 0 || (high - low) as f64 <= low as f64 / 32.0);
            next = high.wrapping_add(1);
        }
        assert_eq!(next, 0, "the last bucket ends with the last value");
    }

    #[test]
    fn near_and_far_values_are_counted_where_they_belong() {
        for bits in 0..64 {
            let least = 1_u64 << bits;
            for ticks in [least - 1, least, least + 1, least + least / 3, least + (least - 1)] {
                let (index, position) = locate(ticks);
                let expected = Part { index: index as u16, count: 1, position };
                let (_, read) = recorded(&[ticks]);
                assert_eq!(read.parts(), [expected], "{ticks}");
            }
        }
    }

    #[test]
    fn values_are_rounded_to_the_nearest_tick() {
        let histogram = Histogram(Arc::new(HistogramCell::new(Unit::Bytes)));
        let values = [0.4, 1.6, -0.0, -7.0, f64::INFINITY, (1_u64 << 60) as f64, 4.0e15];
        values.into_iter().for_each(|value| histogram.record(value));
        let mut expected = Distribution::empty(1.0);
        for ticks in [0, 2, 0, 0, u64::MAX, 1 << 60, 4_000_000_000_000_000] {
            let (index, position) = locate(ticks);
            expected.add(Part { index: index as u16, count: 1, position });
        }
        assert_eq!(*histogram.0.read(), expected);
    }

    #[test]
    fn a_reading_is_the_same_allocation_while_nothing_is_recorded() {
        let (histogram, first) = recorded(&[7, 7, 1_000]);
        assert!(Arc::ptr_eq(&first, &histogram.0.read()));
        histogram.record_ticks(7);
        let second = histogram.0.read();
        assert_eq!((first.count(), second.count()), (3, 4));
        assert_eq!(second.since(&first).parts(), [Part { index: 7, count: 1, position: 0 }]);
    }

    #[test]
    fn counts_and_positions_survive_the_wrapping_of_their_halves() {
        let (histogram, _) = recorded(&[]);
        let (index, position) = locate(1_020_000);
        assert!(position > 0);
        let word = &histogram.0.near[index];
        let almost = u32::MAX - 1;
        word.store(u64::from(almost) | u64::from(u32::MAX - 2) << 32, Relaxed);
        let before = histogram.0.read();
        (0..3).for_each(|_| histogram.record_ticks(1_020_000));
        let since = histogram.0.read().since(&before);
        let expected = Part { index: index as u16, count: 3, position: 3 * position };
        assert_eq!(since.parts(), [expected]);
    }

    #[test]
    fn what_is_no_number_is_passed_over_and_what_is_negative_counts_as_zero() {
        let histogram = Histogram(Arc::new(HistogramCell::new(Unit::Seconds)));
        for value in [f64::NAN, -1.0, f64::INFINITY] {
            histogram.record(value);
        }
        let read = histogram.0.read();
        assert_eq!(read.count(), 2);
        assert_eq!(read.quantile(0.0), Some(0.0));
        assert_eq!(Distribution::empty(1.0).quantile(0.5), None);
    }

    #[test]
    fn another_process_begins_anew() {
        let (_, earlier) = recorded(&[5, 5, 900]);
        let (_, later) = recorded(&[5, 800]);
        assert_eq!(later.since(&earlier), *later);
        assert!(later.since(&later).is_empty());
    }

    proptest! {
        #[test]
        fn quantiles_means_and_sums_are_near_the_exact_ones(
            mut values in prop::collection::vec((0_u64..1 << 50).prop_map(|v| v >> (v % 47)), 1..500),
            q in 0.0..=1.0_f64,
        ) {
            let (_, read) = recorded(&values);
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1] as f64;
            let ours = read.quantile(q).expect("there are values");
            prop_assert!((ours - exact).abs() <= exact / 32.0 + 0.5, "{ours} for {exact}");
            let sum = values.iter().map(|value| *value as f64).sum::<f64>();
            prop_assert!((read.sum() - sum).abs() <= sum / 1_000.0 + 1e-6, "{} for {sum}", read.sum());
            prop_assert_eq!(read.count(), values.len() as u64);
        }

        #[test]
        fn merged_differences_are_the_whole(
            first in prop::collection::vec(0_u64..100_000, 0..100),
            second in prop::collection::vec(0_u64..100_000, 0..100),
        ) {
            let (histogram, before) = recorded(&first);
            second.iter().for_each(|ticks| histogram.record_ticks(*ticks));
            let after = histogram.0.read();
            let mut merged = (*before).clone();
            merged.merge(&after.since(&before));
            prop_assert_eq!(&merged, &*after);
            let (_, at_once) = recorded(&[first, second].concat());
            prop_assert_eq!(&*at_once, &*after);
        }
    }
}
