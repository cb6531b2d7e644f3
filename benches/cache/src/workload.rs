//! Keys in the order in which they are asked for, drawn before a clock starts.

use fastrand::Rng;

use crate::Operation;

/// The exponent of the Zipf distribution: the skew that web caches are usually seen with.
const SKEW: f64 = 0.9;

/// Draws keys by their popularity, which falls with a power of the rank.
#[derive(Debug)]
pub struct Zipf {
    /// The sum of the weights of the ranks up to each.
    weights: Vec<f64>,
}

impl Zipf {
    /// Spreads the popularity over `keys` keys.
    pub fn new(keys: usize) -> Self {
        let mut sum = 0.0;
        let weight = |rank: usize| {
            sum += (rank as f64).powf(-SKEW);
            sum
        };
        Self { weights: (1..=keys).map(weight).collect() }
    }

    /// Draws `count` keys; the popular ones are anywhere among all numbers.
    pub fn draw(&self, count: usize, rng: &mut Rng) -> Vec<u64> {
        let all = self.weights.last().copied().unwrap_or_default();
        let mut draw = || {
            let point = rng.f64() * all;
            let rank = self.weights.partition_point(|weight| *weight <= point);
            key(rank.min(self.weights.len() - 1))
        };
        (0..count).map(|_| draw()).collect()
    }

    /// Draws nine look-ups to each insert, all by popularity.
    pub fn mix(&self, count: usize, rng: &mut Rng) -> Vec<Operation> {
        let keys = self.draw(count, rng);
        let operation = |key| match rng.u8(0..10) {
            0 => Operation::Insert(key),
            _ => Operation::Get(key),
        };
        keys.into_iter().map(operation).collect()
    }
}

/// The key of a rank: an odd multiplier gives each rank another number, far from its neighbours.
pub fn key(rank: usize) -> u64 {
    (rank as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_twice_as_popular_is_drawn_twice_as_often() {
        let keys = Zipf::new(1_000).draw(200_000, &mut Rng::with_seed(1));
        let count = |rank| keys.iter().filter(|drawn| **drawn == key(rank)).count() as f64;
        let expected = 2_f64.powf(SKEW);
        let seen = count(0) / count(1);
        assert!((seen / expected - 1.0).abs() < 0.1, "{seen} instead of {expected}");
    }

    #[test]
    fn one_operation_in_ten_of_the_mix_is_an_insert() {
        let operations = Zipf::new(10).mix(100_000, &mut Rng::with_seed(2));
        let inserts = operations.iter().filter(|op| matches!(op, Operation::Insert(_))).count();
        assert!((9_500..10_500).contains(&inserts), "{inserts}");
    }
}
