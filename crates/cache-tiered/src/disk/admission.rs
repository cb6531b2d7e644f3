//! Which values the disk tier writes at all: admission by second sight, and a budget of bytes per second.
//!
//! Most keys of most caches are asked for once. Writing them wears the disk out and evicts what will be asked
//! for again. With [`Admission::SecondSight`] a value is written when its key was offered once before,
//! lately. What was offered is kept in two Bloom filters: keys go into the newer one, and when that has its
//! number, it becomes the older one and the older one is forgotten. So a key is remembered for at least
//! one and at most two generations, in memory that never grows. About one new key in twenty is
//! taken for a known one when both are full, and no known key for a new one.
//!
//! The budget is a token bucket: it fills with the bytes that may be written each second, holds no more than
//! a second's worth, and every write takes its bytes out. A value that finds too little in it is refused,
//! so nobody ever waits. Removals and copies must be made; they take their bytes afterwards, if need be into
//! debt, and values wait until it is paid.
//!
//! Both belong to the one thread that writes, and are given the time.

use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

/// Which values the disk tier takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Admission {
    /// Every value is written.
    #[default]
    Everything,
    /// A value is written if its key was offered once before, lately, or is on the disk already.
    ///
    /// It remembers between one and two times as many keys as the capacity has blocks of 4 KiB, but no
    /// fewer than 4,096 and no more than 4,194,304, in 2 to 4 bytes each.
    SecondSight,
}

/// Remembers keys for a while; see the top of this file.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    newer: Box<[u64]>,
    older: Box<[u64]>,
    /// Keys in `newer`.
    keys: u64,
    generation: u64,
}

impl Doorkeeper {
    /// Probes for each key.
    const PROBES: u32 = 4;

    /// Makes one that suits a disk tier of this capacity.
    pub(super) fn for_capacity(bytes: u64) -> Self {
        Self::new((bytes / 4096).clamp(1 << 12, 1 << 22))
    }

    /// Makes one that remembers at least the last `generation` keys.
    fn new(generation: u64) -> Self {
        let words = (generation / 8).next_power_of_two().max(1) as usize;
        let filter = || vec![0; words].into_boxed_slice();
        Self { newer: filter(), older: filter(), keys: 0, generation }
    }

    /// Tells whether a key was seen lately, and sees it.
    pub(super) fn see(&mut self, key: &[u8]) -> bool {
        let hash = xxh3_64(key);
        let in_newer = Self::bits(hash, self.newer.len())
            .fold(true, |all, (word, bit)| all & (self.newer[word] & bit != 0));
        let known = in_newer
            || Self::bits(hash, self.older.len()).all(|(word, bit)| self.older[word] & bit != 0);
        if !in_newer {
            for (word, bit) in Self::bits(hash, self.newer.len()) {
                self.newer[word] |= bit;
            }
            self.keys += 1;
            if self.keys >= self.generation {
                std::mem::swap(&mut self.newer, &mut self.older);
                self.newer.fill(0);
                self.keys = 0;
            }
        }
        known
    }

    /// The bits of a key: double hashing after Kirsch and Mitzenmacher.
    fn bits(hash: u64, words: usize) -> impl Iterator<Item = (usize, u64)> {
        let mask = words as u64 * 64 - 1;
        let step = hash.rotate_left(32) | 1;
        (0..Self::PROBES).map(move |probe| {
            let bit = hash.wrapping_add(step.wrapping_mul(probe.into())) & mask;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
}

/// A token bucket of bytes; see the top of this file.
#[derive(Debug)]
pub(super) struct WriteBudget {
    per_second: u64,
    /// What may be written now; less than nothing after writes that had to be made.
    left: i64,
    refilled: Instant,
}

impl WriteBudget {
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second.min(i64::MAX as u64);
        Self { per_second, left: per_second as i64, refilled: now }
    }

    /// Takes the bytes of a value, if they are there. A value of more than a second's worth goes
    /// through when the bucket is full, and leaves it in debt.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> bool {
        self.refill(now);
        let fits = self.left >= 0 && self.left as u64 >= bytes.min(self.per_second);
        if fits {
            self.charge(bytes);
        }
        fits
    }

    /// Takes the bytes of something that was written in any case.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub_unsigned(bytes);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(3600));
        let bytes = u128::from(self.per_second) * passed.as_nanos() / 1_000_000_000;
        if bytes > 0 {
            // Only when something came of it: fractions of a byte must not be lost for ever.
            self.refilled = now;
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(bytes).min(self.per_second as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_the_second_time_and_forgotten_after_two_generations() {
        let mut doorkeeper = Doorkeeper::new(4_096);
        for i in 0..2_000_u64 {
            doorkeeper.see(&i.to_le_bytes());
            assert!(doorkeeper.see(&i.to_le_bytes()));
        }
        // Others come: one generation later it is still known, whatever else is.
        for i in 10_000..14_000_u64 {
            doorkeeper.see(&i.to_le_bytes());
        }
        assert!((0..2_000_u64).all(|i| doorkeeper.see(&i.to_le_bytes())));
        for i in 20_000..30_000_u64 {
            doorkeeper.see(&i.to_le_bytes());
        }
        let still = (0..2_000_u64).filter(|i| doorkeeper.see(&i.to_le_bytes())).count();
        assert!(still < 200, "{still} of 2,000 are still known");
    }

    #[test]
    fn few_new_keys_are_taken_for_known_ones() {
        let mut doorkeeper = Doorkeeper::for_capacity(1 << 30);
        let keys = 1_000_000_u64;
        let wrong = (0..keys).filter(|i| doorkeeper.see(&i.to_le_bytes())).count();
        assert!(wrong < 50_000, "{wrong} of {keys}");
    }

    #[test]
    fn the_budget_lets_through_what_it_says_and_no_more() {
        let start = Instant::now();
        let mut budget = WriteBudget::new(1_000, start);
        let mut written = 0;
        for milli in 0..10_000_u64 {
            let now = start + Duration::from_millis(milli);
            written += if budget.take(7, now) { 7 } else { 0 };
        }
        // Ten seconds and the full bucket of the beginning.
        assert!((10_980..=11_000).contains(&written), "{written}");
    }

    #[test]
    fn debt_is_paid_before_the_next_value() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut budget = WriteBudget::new(100, start);
        assert!(budget.take(250, start), "it is full, so a larger value goes through");
        assert!(!budget.take(1, start) && !budget.take(1, at(1)));
        assert!(budget.take(1, at(2)));
        budget.charge(1_000);
        assert!(!budget.take(1, at(10)) && budget.take(1, at(13)));
    }
}
