//! The median of a few rounds and the 95 % interval around it.
//!
//! Of n independent rounds, the number that fall below the true median is binomial with p = 1/2,
//! whatever the distribution looks like. So the chance that the true median is smaller than the k-th
//! smallest round is P(Bin(n, 1/2) < k), and the same on the other end. Taking the largest k for which
//! that is at most 2.5 % gives an interval that covers the true median in at least 95 % of all runs.
//! Nothing is assumed about the noise, and no random numbers are needed as in a bootstrap.

/// The chance, at each end, that the true median lies outside of the interval.
const TAIL: f64 = 0.025;

/// Returns the median of `values`, or `None` if there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Returns the 95 % interval of the median, or `None` below six values, where none exists.
pub fn interval(values: &[f64]) -> Option<[f64; 2]> {
    let sorted = sorted(values);
    let rank = rank(sorted.len())?;
    Some([sorted[rank - 1], sorted[sorted.len() - rank]])
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The largest k with P(Bin(n, 1/2) < k) <= `TAIL`; `None` if that is none.
fn rank(n: usize) -> Option<usize> {
    let mut exactly = 0.5_f64.powi(i32::try_from(n).ok()?); // P(Bin = k), starting at k = 0
    let mut below = 0.0;
    let mut k = 0;
    while k < n && below + exactly <= TAIL {
        below += exactly;
        exactly *= (n - k) as f64 / (k + 1) as f64;
        k += 1;
    }
    (k > 0).then_some(k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_halfway_between_the_two_middles() {
        for (values, expected) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(values), expected);
        }
    }

    #[test]
    fn the_ranks_are_those_of_the_sign_test_tables() {
        // Critical values of the two-sided sign test at 5 %, plus one.
        for (n, expected) in [
            (5, None),
            (6, Some(1)),
            (8, Some(1)),
            (9, Some(2)),
            (11, Some(2)),
            (12, Some(3)),
            (15, Some(4)),
            (20, Some(6)),
            (25, Some(8)),
            (100, Some(40)),
        ] {
            assert_eq!(rank(n), expected, "n = {n}");
        }
    }

    #[test]
    fn one_wild_round_of_nine_does_not_move_the_interval() {
        let calm = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8];
        let mut wild = calm;
        wild[8] = 900.0;
        assert_eq!(interval(&calm), Some([1.1, 1.7]));
        assert_eq!(interval(&wild), Some([1.1, 1.7]));
    }

    #[test]
    fn the_interval_covers_the_true_median_in_95_of_100_runs() {
        let mut rng = fastrand::Rng::with_seed(7);
        let runs = 4_000;
        let covered = (0..runs)
            .filter(|_| {
                // Heavily skewed on purpose: the median of u^4 is (1/2)^4.
                let rounds: Vec<f64> = (0..15).map(|_| rng.f64().powi(4)).collect();
                let [low, high] = interval(&rounds).expect("15 rounds");
                (low..=high).contains(&0.0625)
            })
            .count();
        let share = covered as f64 / f64::from(runs);
        assert!((0.95..0.985).contains(&share), "{share}");
    }
}
