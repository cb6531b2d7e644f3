//! A count-min sketch of 4-bit counters that halves itself: how often a key was asked for lately.
//!
//! Cormode and Muthukrishnan, "An Improved Data Stream Summary", 2005, with the reset of TinyLFU: when
//! as many requests as ten times the capacity were counted, every counter and the count of requests are
//! halved. Sixteen counters make a word; a key has one counter in each of four words. There is a word
//! per entry of the capacity, rounded up to a power of two.
//!
//! Caffeine does not count a request whose counters are all full, so it resets later where few keys
//! take most requests. Which keys share counters depends on the hash; hit ratios of two faithful
//! implementations differ by some tenths of a point for it, and by up to two where a reset more or less
//! falls into a trace.

use crate::simulate::mix::mix;

const SEEDS: [u64; 4] =
    [0xc3a5_c85c_97cb_3127, 0xb492_b66f_be98_f273, 0x9ae1_6a3b_2f90_404f, 0xcbf2_9ce4_8422_2325];
/// Counters stop here.
const COUNT_MAX: u64 = 15;
/// Requests between two resets, in capacities.
const SAMPLE: u64 = 10;
/// Bits 0 to 2 of each counter.
const HALVES: u64 = 0x7777_7777_7777_7777;

#[derive(Debug)]
pub(super) struct Sketch {
    words: Vec<u64>,
    /// Increments since the last reset, halved by it.
    counted: u64,
    sample: u64,
}

impl Sketch {
    pub(super) fn new(entries: u64) -> Self {
        let entries = entries.clamp(1, 1 << 32);
        let words = usize::try_from(entries.next_power_of_two()).expect("clamped above");
        Self { words: vec![0; words], counted: 0, sample: SAMPLE * entries }
    }

    /// Where the counter of a key in row `row` is: the word, and the bits to shift.
    fn place(&self, hash: u64, row: usize) -> (usize, u32) {
        let mixed = (hash.wrapping_add(SEEDS[row])).wrapping_mul(SEEDS[row] | 1);
        let mixed = mixed ^ (mixed >> 32);
        let word = mixed as usize & (self.words.len() - 1);
        (word, 16 * row as u32 + ((hash >> 60) as u32 & 3) * 4)
    }

    pub(super) fn frequency(&self, key: u64) -> u64 {
        let hash = mix(key);
        let counts = (0..4).map(|row| {
            let (word, shift) = self.place(hash, row);
            (self.words[word] >> shift) & COUNT_MAX
        });
        counts.min().expect("there are four rows")
    }

    pub(super) fn increment(&mut self, key: u64) {
        let hash = mix(key);
        for row in 0..4 {
            let (word, shift) = self.place(hash, row);
            if (self.words[word] >> shift) & COUNT_MAX < COUNT_MAX {
                self.words[word] += 1 << shift;
            }
        }
        self.counted += 1;
        if self.counted >= self.sample {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.words.iter_mut().for_each(|word| *word = (*word >> 1) & HALVES);
        self.counted /= 2;
    }
}
