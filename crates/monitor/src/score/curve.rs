//! The log-normal curve of a score and the complementary error function beneath it.

use std::f64::consts::PI;

/// The inverse of the complementary error function at 0.2.
const ERFC_INVERSE_OF_A_FIFTH: f64 = 0.906_193_802_436_823_2;

/// Returns the score from 0 to 1 of a value of which less is better.
///
/// It is 0.9 at `good` and 0.5 at `half`, and follows a log-normal distribution between and beyond:
/// `erfc(ln(value / half) * erfc⁻¹(0.2) / ln(half / good)) / 2`, as Lighthouse computes it. Values of zero
/// and less score 1, what is not a number scores 0.
///
/// # Examples
///
/// ```
/// let score = |seconds| monitor::score::log_normal(seconds, 0.2, 0.4);
/// assert!((score(0.2) - 0.9).abs() < 1e-12);
/// assert!((score(0.4) - 0.5).abs() < 1e-12);
/// assert!(score(0.05) > 0.99 && score(2.0) < 0.01);
/// ```
#[must_use]
pub fn log_normal(value: f64, good: f64, half: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let position = (value / half).ln() * ERFC_INVERSE_OF_A_FIFTH / (half / good).ln();
    let score = 0.5 * erfc(position);
    if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) }
}

/// Returns the complementary error function, within 1e-13 of its value where that is above 1e-300.
///
/// Near zero by the series 7.1.6, further out by the continued fraction 7.1.14 of Abramowitz and Stegun,
/// Handbook of Mathematical Functions.
///
/// # Cost
///
/// At most about a hundred multiplications and divisions.
#[must_use]
pub fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 {
        // All terms are positive, so nothing cancels before the last subtraction.
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum;
    }
    if x > 27.0 {
        return 0.0;
    }
    // 1 / (x + (1/2) / (x + (2/2) / (x + (3/2) / ...))), from the inside out.
    let fraction = (1..=120).rev().fold(x, |inner, k| x + 0.5 * f64::from(k) / inner);
    (-x * x).exp() / (PI.sqrt() * fraction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn erfc_agrees_with_published_values() {
        for (x, expected) in [
            (0.0, 1.0),
            (0.1, 0.887_537_083_981_715),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (1.5, 0.033_894_853_524_689_27),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
            (4.0, 1.541_725_790_028_002e-8),
            (5.0, 1.537_459_794_428_035e-12),
            (10.0, 2.088_487_583_762_545e-45),
        ] {
            let relative = (erfc(x) - expected).abs() / expected;
            assert!(relative < 1e-13, "erfc({x}) is {} and not {expected}", erfc(x));
            assert!((erfc(-x) - (2.0 - expected)).abs() < 1e-15);
        }
        assert!((erfc(ERFC_INVERSE_OF_A_FIFTH) - 0.2).abs() < 1e-15);
        assert!(erfc(f64::NAN).is_nan());
        assert_eq!((erfc(f64::INFINITY), erfc(f64::NEG_INFINITY)), (0.0, 2.0));
    }

    #[test]
    fn the_two_ways_meet_without_a_step() {
        let below = erfc(2.0 - 1e-12);
        let above = erfc(2.0);
        // The slope there is 0.0207.
        assert!((below - above - 0.0207e-12).abs() < 1e-15);
    }

    #[test]
    fn the_control_points_hold_for_every_metric() {
        for (good, half) in [(1.0, 2.0), (1.5, 4.0), (0.001, 0.02), (0.65, 0.9), (1.0, 14.0)] {
            assert!((log_normal(good, good, half) - 0.9).abs() < 1e-12);
            assert!((log_normal(half, good, half) - 0.5).abs() < 1e-12);
        }
        assert_eq!(log_normal(0.0, 1.0, 2.0), 1.0);
        assert_eq!(log_normal(f64::NAN, 1.0, 2.0), 0.0);
        assert_eq!(log_normal(f64::INFINITY, 1.0, 2.0), 0.0);
    }

    proptest! {
        #[test]
        fn a_worse_value_never_scores_more(a in 0.0..100.0_f64, b in 0.0..100.0_f64) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(log_normal(less, 1.0, 3.0) >= log_normal(more, 1.0, 3.0) - 1e-15);
        }

        /// The derivative is `-2/sqrt(pi) exp(-x²)`: the function against its integral by Simpson's rule.
        #[test]
        fn erfc_is_the_integral_of_the_bell(x in 0.0..5.5_f64) {
            let bell = |t: f64| 2.0 / PI.sqrt() * (-t * t).exp();
            let (steps, width) = (4_000, x / 4_000.0);
            let sum: f64 = (0..steps)
                .map(|at| {
                    let from = f64::from(at) * width;
                    (bell(from) + 4.0 * bell(from + width / 2.0) + bell(from + width)) * width / 6.0
                })
                .sum();
            prop_assert!((erfc(x) - (1.0 - sum)).abs() < 1e-12);
        }
    }
}
