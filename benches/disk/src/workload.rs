//! The entries that every engine is given, and the order in which they are read.
//!
//! Keys are random, as those of a cache are in effect: a tree sees them in no order. Values are hex
//! digits, which compress about two to one, cut out of one block so that making them costs nothing.
//! Reads follow a Zipf distribution over entries in random order, drawn before the clock starts.

use fastrand::Rng;

/// Bytes of a key.
const KEY_BYTES: usize = 16;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 1 << 10;
/// Bytes of the block that values are cut from.
const BLOCK_BYTES: usize = 1 << 20;
/// The exponent of the Zipf distribution.
const SKEW: f64 = 0.99;

/// Entries of a database, told apart by their number.
pub(crate) struct Workload {
    keys: Vec<[u8; KEY_BYTES]>,
    block: String,
    /// Entries from the most to the least popular.
    popularity: Vec<u32>,
    /// The sum of the weights of the ranks up to each.
    weights: Vec<f64>,
}

impl Workload {
    /// Makes the same `entries` for the same seed.
    pub(crate) fn new(entries: u32, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let keys = (0..entries).map(|_| rng.u128(..).to_le_bytes()).collect();
        let digit = |rng: &mut Rng| char::from_digit(rng.u32(0..16), 16).expect("less than 16");
        let block = (0..BLOCK_BYTES).map(|_| digit(&mut rng)).collect();
        let mut popularity: Vec<u32> = (0..entries).collect();
        rng.shuffle(&mut popularity);
        let mut sum = 0.0;
        let weights = (1..=entries)
            .map(|rank| {
                sum += f64::from(rank).powf(-SKEW);
                sum
            })
            .collect();
        Self { keys, block, popularity, weights }
    }

    /// Numbers the entries in the order of their keys, which is what a tree likes best.
    pub(crate) fn sorted(mut self) -> Self {
        self.keys.sort_unstable();
        self
    }

    /// The number of entries.
    pub(crate) fn entries(&self) -> u32 {
        self.popularity.len() as u32
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.entries()) * (KEY_BYTES + VALUE_BYTES) as u64
    }

    pub(crate) fn key(&self, entry: u32) -> &[u8] {
        &self.keys[entry as usize]
    }

    pub(crate) fn value(&self, entry: u32) -> &str {
        self.value_of(entry, VALUE_BYTES)
    }

    /// A value of another size, up to 64 KiB.
    pub(crate) fn value_of(&self, entry: u32, bytes: usize) -> &str {
        let at = entry as usize * 37 % (BLOCK_BYTES - bytes);
        &self.block[at..at + bytes]
    }

    /// Draws entries to read, the popular ones more often.
    pub(crate) fn zipf(&self, reads: usize, seed: u64) -> Vec<u32> {
        let mut rng = Rng::with_seed(seed);
        let all = self.weights.last().copied().unwrap_or_default();
        let mut draw = || {
            let point = rng.f64() * all;
            let rank = self.weights.partition_point(|weight| *weight <= point);
            self.popularity[rank.min(self.popularity.len() - 1)]
        };
        (0..reads).map(|_| draw()).collect()
    }

    /// Draws entries to read, each as likely as the other.
    pub(crate) fn uniform(&self, reads: usize, seed: u64) -> Vec<u32> {
        let mut rng = Rng::with_seed(seed);
        (0..reads).map(|_| rng.u32(0..self.entries())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn a_workload_is_the_same_for_the_same_seed_and_its_entries_differ() {
        let (one, again) = (Workload::new(1_000, 7), Workload::new(1_000, 7));
        let mut keys = HashSet::new();
        let mut values = HashSet::new();
        for entry in 0..1_000 {
            assert_eq!((one.key(entry), one.value(entry)), (again.key(entry), again.value(entry)));
            keys.insert(one.key(entry));
            values.insert(one.value(entry));
        }
        assert_eq!((keys.len(), values.len()), (1_000, 1_000));
        assert_eq!(one.zipf(100, 3), again.zipf(100, 3));
    }

    #[test]
    fn reads_follow_the_weights_of_the_ranks() {
        let workload = Workload::new(10_000, 1);
        let reads = 200_000;
        let mut counts = HashMap::new();
        for entry in workload.zipf(reads, 2) {
            *counts.entry(entry).or_insert(0_usize) += 1;
        }
        let all = workload.weights[9_999];
        for rank in [0, 1, 9] {
            let expected = reads as f64 * ((rank + 1) as f64).powf(-SKEW) / all;
            let seen = counts[&workload.popularity[rank]] as f64;
            assert!((seen / expected - 1.0).abs() < 0.1, "rank {rank}: {seen}, not {expected}");
        }
    }

    #[test]
    fn uniform_reads_reach_every_entry() {
        let seen: HashSet<u32> = Workload::new(100, 1).uniform(10_000, 2).into_iter().collect();
        assert_eq!(seen, (0..100).collect());
    }
}
