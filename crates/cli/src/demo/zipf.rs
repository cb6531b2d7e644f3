//! An exact Zipf sampler: rank `k` of `n` is drawn with probability proportional to `1 / k^s`.
//!
//! Popularity on the web follows this law, so it decides both what the sample shop sells and what
//! the load asks for. The cumulative distribution is a table that a draw searches by halving, which
//! is exact for every exponent and fast for the few thousand ranks that a demonstration has.

/// A Zipf distribution over the ranks `0..n`, the most popular first.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    /// `cumulative[k]` is the probability of a rank of at most `k`; the last is 1.
    cumulative: Box<[f64]>,
}

impl Zipf {
    /// Builds the distribution over `ranks` ranks (at least one) with the given exponent.
    pub(super) fn new(ranks: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut cumulative: Box<[f64]> = (1..=ranks.max(1))
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        for value in &mut cumulative {
            *value /= sum;
        }
        Self { cumulative }
    }

    /// Draws a rank with the randomness of `rng`.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        self.rank(rng.f64())
    }

    /// Finds the rank that a uniform number from `[0, 1)` falls on.
    fn rank(&self, uniform: f64) -> usize {
        let rank = self.cumulative.partition_point(|&below| below <= uniform);
        rank.min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's statistic of `draws` draws against the exact probabilities.
    fn chi_square(ranks: usize, exponent: f64, draws: u32, seed: u64) -> f64 {
        let zipf = Zipf::new(ranks, exponent);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut seen = vec![0_u32; ranks];
        for _ in 0..draws {
            seen[zipf.draw(&mut rng)] += 1;
        }
        let norm: f64 = (1..=ranks).map(|rank| (rank as f64).powf(-exponent)).sum();
        (1..=ranks)
            .zip(seen)
            .map(|(rank, seen)| {
                let expected = f64::from(draws) * (rank as f64).powf(-exponent) / norm;
                (f64::from(seen) - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn draws_follow_the_exact_distribution() {
        for (ranks, exponent) in [(2, 0.5), (10, 0.9), (100, 0.9), (400, 1.2), (50, 0.0)] {
            let freedom = (ranks - 1) as f64;
            // The statistic has mean `freedom` and variance `2 * freedom`; the seeds are fixed.
            let limit = freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0;
            for seed in 0..3 {
                let found = chi_square(ranks, exponent, 200_000, seed);
                assert!(
                    found < limit,
                    "{ranks} ranks, s {exponent}, seed {seed}: {found} >= {limit}"
                );
            }
        }
    }

    #[test]
    fn the_ends_of_the_unit_interval_are_the_first_and_the_last_rank() {
        for ranks in [1, 2, 3, 428] {
            let zipf = Zipf::new(ranks, 0.9);
            assert_eq!(zipf.rank(0.0), 0);
            assert_eq!(zipf.rank(1.0_f64.next_down()), ranks - 1);
            assert_eq!(zipf.rank(1.0), ranks - 1);
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_ranks() {
        let zipf = Zipf::new(100, 0.9);
        let ranks = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            (0..50).map(|_| zipf.draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(ranks(7), ranks(7));
        assert_ne!(ranks(7), ranks(8));
    }
}
