//! Classic buckets: a fixed ladder of bounds for each unit, and how many values are at or below each.

use std::sync::LazyLock;

use crate::exemplar::Exemplar;
use crate::histogram::Distribution;
use crate::series::Unit;

/// Bounds in ascending order, without the last one, which is infinite.
#[derive(Debug)]
pub(super) struct Ladder {
    /// The bounds.
    pub(super) bounds: Vec<f64>,
    /// The bounds as values of the label `le`.
    pub(super) texts: Vec<String>,
}

/// 10 us to 500 s.
static SECONDS: LazyLock<Ladder> = LazyLock::new(|| {
    let steps = [1.0, 2.5, 5.0];
    Ladder::new((-5..3).flat_map(|power| steps.map(|step| step * 10_f64.powi(power))))
});

/// 64 bytes to 4 PiB, each bound four times the one before.
static BYTES: LazyLock<Ladder> =
    LazyLock::new(|| Ladder::new((3..27).map(|power| 4_f64.powi(power))));

/// Twentieths of a whole, and four bounds near its ends.
static RATIO: LazyLock<Ladder> = LazyLock::new(|| {
    let twentieths = (1..=20).map(|step| f64::from(step) / 20.0);
    Ladder::new(twentieths.chain([0.001, 0.01, 0.99, 0.999]))
});

/// As for ratios, in hundredths.
static PERCENT: LazyLock<Ladder> = LazyLock::new(|| {
    let steps = (1..=20).map(|step| f64::from(step) * 5.0);
    Ladder::new(steps.chain([0.1, 1.0, 99.0, 99.9]))
});

/// Thousandths to a hundred million, close together between 1 and a million.
static NUMBER: LazyLock<Ladder> = LazyLock::new(|| {
    let middle = (0..6).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
    Ladder::new(middle.chain([0.001, 0.01, 0.1, 1e6, 1e7, 1e8]))
});

/// The mean of an interval is known to a thirty-second of its width, which is a thousandth of the mean: a
/// value equal to a bound is at or below it all the same.
const SLACK: f64 = 1.0 + 1.0 / 1_000.0;

impl Ladder {
    /// The ladder of a unit, 24 bounds.
    pub(super) fn of(unit: Unit) -> &'static Self {
        match unit {
            Unit::Seconds => &SECONDS,
            Unit::Bytes => &BYTES,
            Unit::Ratio => &RATIO,
            Unit::Percent => &PERCENT,
            Unit::None => &NUMBER,
        }
    }

    fn new(bounds: impl Iterator<Item = f64>) -> Self {
        // A product such as 2.5 * 0.00001 may be a bit off; its shortest text is not.
        let mut bounds: Vec<f64> = bounds
            .map(|bound| format!("{bound:.10e}").parse().expect("a number that was just written"))
            .collect();
        bounds.sort_by(f64::total_cmp);
        let texts = bounds.iter().map(|&bound| bound_text(bound)).collect();
        Self { bounds, texts }
    }

    /// Writes how many values are at or below each bound and then how many there are, and returns their sum.
    pub(super) fn cumulate(&self, distribution: &Distribution, counts: &mut Vec<u64>) -> f64 {
        counts.clear();
        let (mut total, mut sum) = (0, 0.0);
        for bucket in distribution.buckets() {
            while let Some(bound) = self.bounds.get(counts.len())
                && bucket.mean > bound * SLACK
            {
                counts.push(total);
            }
            total += bucket.count;
            sum += bucket.mean * bucket.count as f64;
        }
        counts.resize(self.bounds.len() + 1, total);
        sum
    }

    /// The newest exemplar of those whose value falls into the bucket at a place.
    pub(super) fn newest<'e>(
        &self,
        exemplars: &'e [Exemplar],
        place: usize,
    ) -> Option<&'e Exemplar> {
        let place_of = |value| self.bounds.partition_point(|bound| value > bound * SLACK);
        let here = exemplars.iter().filter(|exemplar| place_of(exemplar.value) == place);
        here.max_by_key(|exemplar| exemplar.unix_ms)
    }
}

/// A bound as Go's `strconv` and with it all of Prometheus writes it: `1e-05`, `0.25`, `1.0`, `1e+06`.
fn bound_text(bound: f64) -> String {
    let scientific = format!("{bound:e}");
    let (digits, exponent) = scientific.split_once('e').expect("an exponent was asked for");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if (-4..6).contains(&exponent) {
        return format!("{bound:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_prometheus_writes_them() {
        let cases = [
            (1e-5, "1e-05"),
            (2.5e-5, "2.5e-05"),
            (0.0001, "0.0001"),
            (0.25, "0.25"),
            (1.0, "1.0"),
            (100.0, "100.0"),
            (262_144.0, "262144.0"),
            (1e6, "1e+06"),
            (1_048_576.0, "1.048576e+06"),
        ];
        for (bound, text) in cases {
            assert_eq!(bound_text(bound), text);
        }
    }

    #[test]
    fn every_unit_has_24_ascending_bounds() {
        for unit in [Unit::None, Unit::Seconds, Unit::Bytes, Unit::Ratio, Unit::Percent] {
            let ladder = Ladder::of(unit);
            assert_eq!(ladder.bounds.len(), 24, "{unit:?}");
            assert!(ladder.bounds.is_sorted_by(|a, b| a < b), "{unit:?}: {:?}", ladder.bounds);
        }
        let seconds = Ladder::of(Unit::Seconds);
        assert_eq!((seconds.bounds[0], seconds.bounds[23]), (1e-5, 500.0));
    }
}
