//! The intervals of our histograms as exponential buckets, which native histograms and OTLP have.
//!
//! At resolution `n` each power of two is cut into `2^n` buckets of the same ratio, and bucket `i` reaches
//! from `2^((i - 1) / 2^n)`, exclusive, to `2^(i / 2^n)`, inclusive (Prometheus calls the resolution schema;
//! OTLP calls it scale and numbers the same bucket `i - 1`). Our intervals cut a power of two into 32 of the
//! same width, 3.1 % to 1.6 % of their values, so at resolution 5 the two are about as fine as each other.
//!
//! An interval goes into the bucket of the mean of its values. A value may so end up in a bucket that its
//! own interval only touches: it is then read as at most `(1 + 1/32) * 2^(1/32) - 1 = 5.4 %` away.

use std::sync::LazyLock;

use crate::histogram::Distribution;

/// The resolution that is as fine as our intervals.
pub(crate) const RESOLUTION: i8 = 5;

/// Buckets of a power of two at that resolution.
const PER_POWER: usize = 1 << RESOLUTION;

/// Where the buckets of the power of two from 1 to 2 end; the first is 1 itself, which ends the one before.
static BOUNDS: LazyLock<[f64; PER_POWER + 1]> =
    LazyLock::new(|| std::array::from_fn(|at| (at as f64 / PER_POWER as f64).exp2()));

/// The number of the bucket of a value above zero.
fn index(value: f64) -> i32 {
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = value.to_bits();
    let exponent = (bits >> 52) as i32 - 1_023;
    let fraction = f64::from_bits(bits & FRACTION | 1.0_f64.to_bits());
    // The logarithm of 1 to 2 lies above the straight line, by less than a tenth.
    let mut at = ((fraction - 1.0) * PER_POWER as f64) as usize;
    while at < PER_POWER && fraction > BOUNDS[at] {
        at += 1;
    }
    exponent * PER_POWER as i32 + at as i32
}

/// A distribution in exponential buckets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exponential {
    /// How finely powers of two are cut.
    pub(crate) resolution: i8,
    /// Below this a value counts as zero: half a tick.
    pub(crate) zero_threshold: f64,
    /// Values that are zero.
    pub(crate) zeros: u64,
    /// Buckets that are not empty, by number, ascending.
    pub(crate) buckets: Vec<(i32, u64)>,
}

impl Exponential {
    /// Sorts the intervals of a distribution into buckets of the finest resolution.
    pub(crate) fn new(distribution: &Distribution) -> Self {
        let zero_threshold = distribution.scale() / 2.0;
        let mut zeros = 0;
        let mut buckets = Vec::<(i32, u64)>::with_capacity(distribution.parts().len());
        for bucket in distribution.buckets() {
            if bucket.mean <= zero_threshold {
                zeros += bucket.count;
                continue;
            }
            let index = index(bucket.mean);
            match buckets.last_mut() {
                Some((last, count)) if *last >= index => *count += bucket.count,
                _ => buckets.push((index, bucket.count)),
            }
        }
        Self { resolution: RESOLUTION, zero_threshold, zeros, buckets }
    }

    /// Makes buckets coarser until the first and the last are fewer than `width` apart, at least 2:
    /// buckets below and above 1 never become one.
    #[cfg(any(feature = "otlp", test))]
    pub(crate) fn narrowed(mut self, width: i32) -> Self {
        while let (Some((first, _)), Some((last, _))) = (self.buckets.first(), self.buckets.last())
            && last - first >= width
        {
            self.resolution -= 1;
            let mut halved = Vec::<(i32, u64)>::with_capacity(self.buckets.len());
            for (index, count) in self.buckets {
                let index = (index + 1).div_euclid(2); // two buckets end where the second of them ends
                match halved.last_mut() {
                    Some((last, sum)) if *last == index => *sum += count,
                    _ => halved.push((index, count)),
                }
            }
            self.buckets = halved;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_between_the_bounds_of_its_bucket() {
        for step in -40_000..40_000 {
            let value = (f64::from(step) / 1_000.0).exp2();
            let at = f64::from(index(value)) / PER_POWER as f64;
            let (low, high) = ((at - 1.0 / PER_POWER as f64).exp2(), at.exp2());
            assert!(low < value * (1.0 + 1e-12) && value <= high * (1.0 + 1e-12), "{value}");
        }
        for power in -30..40 {
            assert_eq!(index(2_f64.powi(power)), power * 32, "a bound belongs to what is below");
        }
    }
}
