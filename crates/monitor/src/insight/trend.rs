//! Whether a series rises or falls, and how fast, in a way that single spikes do not change.
//!
//! The slope is the median of the slopes of all pairs of points (Theil 1950, Sen 1968): up to 29 % of the
//! points may be wrong without moving it far. Whether there is a slope at all is told by the test of Mann
//! (1945) and Kendall (1975), which counts how many pairs rise and how many fall, corrected for ties. Both
//! look at all pairs, so a series is first cut down to [`POINTS_MAX`] points, each the median of its part.
//!
//! The test takes the points to be independent. A series that wanders is called a trend more often than
//! its level says, which is why a [forecast](crate::insight::time_to_limit) also asks that the change stands out
//! of the noise.

use serde::Serialize;

/// Points that a trend is computed from at most; longer series are cut down first.
pub const POINTS_MAX: usize = 120;

/// Points that a trend needs; below, the distribution of the test statistic is not yet near normal.
pub const POINTS_MIN: usize = 8;

/// Test statistic beyond which a trend counts as one: 99 % on both sides.
pub const Z_SIGNIFICANT: f64 = 2.58;

/// How a series changes over a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trend {
    /// Change in a second: the median of the slopes of all pairs of points.
    pub slope: f64,
    /// A quarter of the pairs have a lower slope than this.
    pub slope_low: f64,
    /// A quarter of the pairs have a higher slope than this.
    pub slope_high: f64,
    /// The Mann-Kendall statistic, positive if the series rises.
    pub z: f64,
    /// Whether `z` is beyond [`Z_SIGNIFICANT`] on either side.
    pub significant: bool,
    /// Value of the fitted line at the last point.
    pub level: f64,
    /// Spread of the points about the line: 1.4826 times the median of the distances.
    pub noise: f64,
    /// Time between the first and the last point.
    pub seconds: f64,
    /// Values that came in, before they were cut down.
    pub samples: usize,
}

impl Trend {
    /// Returns by how much the fitted line changes over the window.
    #[must_use]
    pub fn change(&self) -> f64 {
        self.slope * self.seconds
    }

    /// Whether the trend is significant, and the line changes by at least three times the noise.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.significant && self.change() != 0.0 && self.change().abs() >= 3.0 * self.noise
    }
}

/// Fits a line to `(seconds, value)` points and tests whether it rises or falls.
///
/// Points come in the order of their time; the seconds count from any moment. Values that are no finite
/// number are passed over. `None` if fewer than [`POINTS_MIN`] points remain, or if all are of one moment.
///
/// # Cost
///
/// At most 7,140 pairs, whatever the length of the series.
///
/// # Examples
///
/// ```
/// let points: Vec<_> = (0..60).map(|at| (f64::from(at) * 10.0, 100.0 + f64::from(at))).collect();
/// let trend = monitor::insight::theil_sen(&points).expect("enough points");
/// assert!(trend.significant);
/// assert!((trend.slope - 0.1).abs() < 1e-9);
/// ```
#[must_use]
pub fn theil_sen(points: &[(f64, f64)]) -> Option<Trend> {
    let finite: Vec<_> = points
        .iter()
        .copied()
        .filter(|(seconds, value)| seconds.is_finite() && value.is_finite())
        .collect();
    let samples = finite.len();
    let points = downsample(&finite, POINTS_MAX);
    if points.len() < POINTS_MIN {
        return None;
    }
    let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
    let mut rising = 0_i64;
    for (at, &(start, before)) in points.iter().enumerate() {
        for &(end, after) in &points[at + 1..] {
            rising += i64::from(after > before) - i64::from(after < before);
            if end > start {
                slopes.push((after - before) / (end - start));
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    let slope = quantile(&mut slopes, 0.5)?;
    let slope_low = quantile(&mut slopes, 0.25)?;
    let slope_high = quantile(&mut slopes, 0.75)?;
    let z = mann_kendall(rising, &points);

    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let mut offsets: Vec<f64> =
        points.iter().map(|(seconds, value)| value - slope * (seconds - first)).collect();
    let offset = quantile(&mut offsets, 0.5)?;
    for value in &mut offsets {
        *value = (*value - offset).abs();
    }
    let noise = MAD_TO_DEVIATION * quantile(&mut offsets, 0.5)?;
    Some(Trend {
        slope,
        slope_low,
        slope_high,
        z,
        significant: z.abs() > Z_SIGNIFICANT,
        level: offset + slope * (last - first),
        noise,
        seconds: last - first,
        samples,
    })
}

/// What the median of the absolute deviations is multiplied with to estimate a standard deviation.
pub(crate) const MAD_TO_DEVIATION: f64 = 1.4826;

/// Cuts points down to at most `points_max`, each the mean time and the median value of neighbours.
///
/// # Panics
///
/// If `points_max` is zero.
#[must_use]
pub fn downsample(points: &[(f64, f64)], points_max: usize) -> Vec<(f64, f64)> {
    if points.len() <= points_max {
        return points.to_vec();
    }
    let mut values = Vec::new();
    (0..points_max)
        .map(|part| {
            let from = part * points.len() / points_max;
            let to = (part + 1) * points.len() / points_max;
            let part = &points[from..to];
            values.clear();
            values.extend(part.iter().map(|point| point.1));
            let seconds = part.iter().map(|point| point.0).sum::<f64>() / part.len() as f64;
            (seconds, quantile(&mut values, 0.5).unwrap_or(f64::NAN))
        })
        .collect()
}

/// Returns the test statistic of rising pairs less falling ones, with the variance corrected for ties.
fn mann_kendall(rising: i64, points: &[(f64, f64)]) -> f64 {
    let spread = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
    values.sort_unstable_by(f64::total_cmp);
    let ties: f64 = values.chunk_by(|a, b| a == b).map(|equal| spread(equal.len() as f64)).sum();
    let variance = (spread(points.len() as f64) - ties) / 18.0;
    if variance <= 0.0 {
        return 0.0;
    }
    // One less towards zero: the correction for continuity.
    (rising - rising.signum()) as f64 / variance.sqrt()
}

/// Returns a quantile of values, between two of them in proportion; their order changes. Needs one value.
pub(crate) fn quantile(values: &mut [f64], quantile: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let position = quantile.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (position.floor() as usize, position.fract());
    let (_, &mut at, above) = values.select_nth_unstable_by(low, f64::total_cmp);
    if share == 0.0 {
        return Some(at);
    }
    let next = above.iter().copied().min_by(f64::total_cmp).unwrap_or(at);
    Some(at + (next - at) * share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn series(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
        values.into_iter().enumerate().map(|(at, value)| (at as f64, value)).collect()
    }

    #[test]
    fn a_line_gives_its_slope_and_no_noise() {
        let trend = theil_sen(&series((0..100).map(|at| 5.0 - 0.25 * f64::from(at)))).expect("100");
        assert!((trend.slope + 0.25).abs() < 1e-12);
        assert!((trend.level - (5.0 - 0.25 * 99.0)).abs() < 1e-9);
        assert!(trend.noise < 1e-9 && trend.z < -10.0 && trend.is_clear());
        assert!((trend.change() + 0.25 * 99.0).abs() < 1e-9);
    }

    #[test]
    fn one_value_over_and_over_is_no_trend() {
        let trend = theil_sen(&series([3.0; 50])).expect("50");
        assert_eq!((trend.slope, trend.z, trend.significant), (0.0, 0.0, false));
        assert!(!trend.is_clear());
    }

    #[test]
    fn spikes_do_not_turn_a_slope() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut found = 0;
        for _ in 0..100 {
            let rising = (0..120).map(|at| {
                let spike = if random.f64() < 0.02 { 500.0 * random.f64() } else { 0.0 };
                0.05 * f64::from(at) + random.f64() + spike
            });
            let trend = theil_sen(&series(rising)).expect("120");
            found += u32::from(trend.significant && (trend.slope - 0.05).abs() < 0.005);
        }
        assert_eq!(found, 100);
    }

    #[test]
    fn few_flat_series_are_called_trends() {
        let mut random = fastrand::Rng::with_seed(2);
        let called = (0..150)
            .filter(|_| {
                theil_sen(&series((0..120).map(|_| random.f64()))).expect("120").significant
            })
            .count();
        // One in a hundred is what the level of the test promises.
        assert!(called <= 6, "{called} of 150");
    }

    #[test]
    fn the_statistic_is_that_of_a_worked_example() {
        // Ten rising values: S = 45, variance 10 * 9 * 25 / 18 = 125, z = 44 / sqrt(125).
        let trend = theil_sen(&series((0..10).map(f64::from))).expect("10");
        assert!((trend.z - 44.0 / 125.0_f64.sqrt()).abs() < 1e-12);
        // Eight values, two pairs of them equal: S = 28 - 2, variance (8*7*21 - 2*2*1*9) / 18.
        let trend = theil_sen(&series([1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0])).expect("8");
        assert!((trend.z - 25.0 / ((1176.0 - 36.0) / 18.0_f64).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn too_little_gives_nothing() {
        assert_eq!(theil_sen(&[]), None);
        assert_eq!(theil_sen(&series((0..7).map(f64::from))), None);
        assert_eq!(theil_sen(&[(1.0, 2.0); 20]), None);
        assert_eq!(theil_sen(&series([f64::NAN; 30])), None);
    }

    #[test]
    fn a_long_series_is_cut_down_and_keeps_its_slope() {
        let trend = theil_sen(&series((0..10_000).map(|at| f64::from(at) * 2.0))).expect("many");
        assert!((trend.slope - 2.0).abs() < 1e-9);
        assert_eq!(trend.samples, 10_000);
        assert_eq!(downsample(&series((0..10_000).map(f64::from)), 120).len(), 120);
    }

    proptest! {
        /// The quantile by selection against one by sorting.
        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(-1e6..1e6_f64, 1..200),
            q in 0.0..=1.0_f64,
        ) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let position = q * (sorted.len() - 1) as f64;
            let (low, high) = (position.floor() as usize, position.ceil() as usize);
            let expected = sorted[low] + (sorted[high] - sorted[low]) * position.fract();
            let found = quantile(&mut values, q).expect("one value");
            prop_assert!((found - expected).abs() <= 1e-6);
        }

        /// Whatever the points, the numbers are in order and nothing panics.
        #[test]
        fn any_points_give_ordered_quartiles(
            values in prop::collection::vec((prop::num::f64::ANY, prop::num::f64::ANY), 0..150),
        ) {
            let tame: Vec<_> = values.iter().map(|(t, v)| (t % 1e9, v % 1e9)).collect();
            let _ = theil_sen(&values);
            if let Some(trend) = theil_sen(&tame) {
                prop_assert!(trend.slope_low <= trend.slope && trend.slope <= trend.slope_high);
                prop_assert!(trend.noise >= 0.0);
            }
        }
    }
}
