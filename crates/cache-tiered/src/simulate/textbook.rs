//! The policies of the literature with their lists, moved on every hit: what ours are judged by.
//!
//! A cache for threads cannot afford them as they are printed, since each hit of LRU, LFU, ARC and
//! W-TinyLFU moves an entry and so needs a lock. Here they run alone, over keys without values. Where
//! entries have weights, a list holds what its capacity weighs, and room is made until the newcomer
//! fits; with unit weights every one of them is the printed algorithm. A key that comes again with
//! another weight keeps the weight it came in with. What is heavier than the whole cache is a miss and
//! changes nothing.

mod arc;
mod lfu;
mod lists;
mod lru;
mod s3_fifo;
mod sieve;
mod sketch;
mod w_tiny_lfu;

use super::{Capacity, Simulated};

/// Names a policy of the literature in its printed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Textbook {
    /// Least recently used.
    Lru,
    /// Least frequently used among the residents, the least recently used of equals; no ageing.
    Lfu,
    /// Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
    Arc,
    /// Yang, Zhang, Qiu, Yue and Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023.
    S3Fifo,
    /// Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
    Sieve,
    /// Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM TOS
    /// 2017, with the window of 1 % and the segmented main area of 80 % that Caffeine gave it.
    WTinyLfu,
}

impl Textbook {
    /// Every one of them.
    pub const ALL: [Self; 6] =
        [Self::Lru, Self::Lfu, Self::Arc, Self::S3Fifo, Self::Sieve, Self::WTinyLfu];

    /// Names the policy as the command line does.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lru => "textbook-lru",
            Self::Lfu => "textbook-lfu",
            Self::Arc => "textbook-arc",
            Self::S3Fifo => "textbook-s3-fifo",
            Self::Sieve => "textbook-sieve",
            Self::WTinyLfu => "textbook-w-tinylfu",
        }
    }

    /// Makes an empty cache of this policy.
    ///
    /// # Cost
    ///
    /// Memory grows with what is resident or remembered: 40 to 80 bytes for a key.
    #[must_use]
    pub fn cache(self, capacity: Capacity) -> Box<dyn Simulated + Send> {
        let limit = capacity.limit();
        match self {
            Self::Lru => Box::new(lru::Lru::new(limit)),
            Self::Lfu => Box::new(lfu::Lfu::new(limit)),
            Self::Arc => Box::new(arc::Arc::new(limit)),
            Self::S3Fifo => Box::new(s3_fifo::S3Fifo::new(limit)),
            Self::Sieve => Box::new(sieve::Sieve::new(limit)),
            Self::WTinyLfu => Box::new(w_tiny_lfu::WTinyLfu::new(capacity)),
        }
    }
}

impl std::fmt::Display for Textbook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
