//! How often a key was asked for of late: a count-min sketch of 4-bit counters with ageing.
//!
//! The sketch of TinyLFU (Einziger, Friedman and Manes, ACM Transactions on Storage 2017): four
//! counters per key, of which the smallest is the estimate, and once the sketch has counted sixteen
//! uses per entry of the cache every counter is halved. All four counters of a key lie in one cache
//! line of 128, 32 to each row, so a look is one miss; only the smallest of the four are raised
//! (conservative update: Estan and Varghese, ACM TOCS 2003).
//!
//! There are 16 counters per entry, eight bytes, and twice as many while that is no more than 128 KiB.
//! In the mean hit ratio of TinyLFU over the suite's traces, half of it costs 0.3 points and twice
//! 0.2 gains; beyond that there is little to gain.
//!
//! Halving is one pass over the sketch, 10 to 20 microseconds per MiB, once in sixteen arrivals per
//! entry. Halving line by line would spread it, but two keys whose counters were halved at
//! different times compare wrongly by a factor of two, and in a loop that is the whole decision.

/// 64-bit words of a line.
const WORDS: usize = 8;
const ROWS: usize = 4;
/// Entries whose counters share a line.
const ENTRIES_PER_LINE: usize = 8;
/// The same in a sketch of no more than [`AMPLE_LINES`].
const ENTRIES_PER_AMPLE_LINE: usize = 4;
const AMPLE_LINES: usize = 2048;
/// Enough for the 2^24 nodes of the largest shard.
const LINES_MAX: usize = 1 << 21;
/// Uses counted per entry before everything is halved.
const USES_PER_ENTRY: u64 = 16;
const COUNTER_MAX: u64 = 15;

#[derive(Debug)]
pub(super) struct Sketch {
    lines: Box<[[u64; WORDS]]>,
    counted: u64,
    /// How many uses are counted before everything is halved.
    period: u64,
}

impl Sketch {
    /// Makes a sketch for a cache of about `entries`.
    pub(super) fn new(entries: usize) -> Self {
        let ample = entries.div_ceil(ENTRIES_PER_AMPLE_LINE).clamp(4, AMPLE_LINES);
        let lines = entries.div_ceil(ENTRIES_PER_LINE).max(ample).min(LINES_MAX);
        Self {
            lines: vec![[0; WORDS]; lines].into_boxed_slice(),
            counted: 0,
            period: USES_PER_ENTRY.saturating_mul(entries.max(16) as u64),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val::<[_]>(&self.lines)
    }

    /// Counts one use of a key.
    pub(super) fn add(&mut self, hash: u32) {
        let (line, counters) = self.place(hash);
        let words = &mut self.lines[line];
        let smallest = counters.map(|counter| counter.get(words)).into_iter().min().unwrap_or(0);
        if smallest < COUNTER_MAX {
            for counter in counters {
                counter.raise_from(smallest, words);
            }
        }
        self.counted += 1;
        if self.counted >= self.period {
            self.halve();
        }
    }

    /// Estimates how often a key was used of late, 15 at most.
    pub(super) fn estimate(&self, hash: u32) -> u8 {
        let (line, counters) = self.place(hash);
        let words = &self.lines[line];
        counters.map(|counter| counter.get(words)).into_iter().min().unwrap_or(0) as u8
    }

    fn halve(&mut self) {
        for word in self.lines.as_flattened_mut() {
            *word = *word >> 1 & 0x7777_7777_7777_7777;
        }
        self.counted /= 2;
    }

    fn place(&self, hash: u32) -> (usize, [Counter; ROWS]) {
        let line = (u64::from(hash) * self.lines.len() as u64 >> 32) as usize;
        // The line has used up the high bits, so the counters are chosen by a second mix of all.
        let bits = u64::from(hash).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let counters = std::array::from_fn(|row| {
            let counter = (bits >> (row * 8) & 31) as usize;
            Counter { word: row * 2 + counter / 16, shift: (counter % 16 * 4) as u32 }
        });
        (line, counters)
    }
}

/// Where in a line a counter is.
#[derive(Clone, Copy)]
struct Counter {
    word: usize,
    shift: u32,
}

impl Counter {
    fn get(self, words: &[u64; WORDS]) -> u64 {
        words[self.word & (WORDS - 1)] >> self.shift & COUNTER_MAX
    }

    /// Adds one if the counter stands at `count`, which is below the maximum.
    fn raise_from(self, count: u64, words: &mut [u64; WORDS]) {
        let raise = u64::from(self.get(words) == count);
        words[self.word & (WORDS - 1)] += raise << self.shift;
    }
}

#[cfg(test)]
mod tests;
