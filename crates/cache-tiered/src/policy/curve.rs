//! The miss-ratio curve: what the live policy would reach with an eighth to eight times the memory.
//!
//! Mini caches of the live policy ([`MiniCache`]), scaled to 1/8, 1/4, 1/2, 1, 2, 4 and 8 times the
//! size, run on the sample that the election uses too. Any policy has such a curve, not only LRU, as
//! in miniature simulation (Waldspurger, Saemundsson, Ahmad and Park, USENIX ATC 2017). The large
//! ones take a smaller share of the sample, so that none is expected to hold more than 768 entries.
//!
//! # From the sample to the cache
//!
//! A sample of keys misses or catches the few hottest keys by luck, and each of them moves the hit
//! ratio of the sample by points. SHARDS (Waldspurger, Park, Garthwaite and Ahmad, FAST 2015) corrects that
//! by assuming that what the sample has too few or too many of would be hits. Here the hit ratio of
//! the cache itself is known, for it is counted anyway, and the sample is only asked for the *difference*:
//!
//! `misses(m) = misses of the cache + (misses of mini m - misses of mini 1) / (requests x rate)`
//!
//! where both minis are counted over the same keys. Hot keys hit in both and cancel out, with SHARDS'
//! reasoning in the denominator. What the minis cannot see (expiry, removals, shards) is in the
//! first term and counts at every size alike.
//!
//! # The error
//!
//! Keys fall into eight groups by their hash. How far the groups disagree about the difference gives
//! its standard error (with the finite population's correction: at a rate of one nothing is
//! estimated); 2.4 times that, plus what a mini of few entries rounds (half a point, and ten points over
//! the root of its entries), plus a quarter of the step between two sizes where a value lies between them, is the error that is
//! stated. Over the shared traces it covers nineteen estimates of twenty. It does not cover traffic
//! that changes: the curve describes the last million samples. Nor does it cover that a cache of another
//! size may be split into more or fewer shards, or that an election might choose otherwise there.
//!
//! # Cost and memory
//!
//! Seven minis, together about 3,700 entries: some 150 KiB. In a cache of 100,000 entries one
//! request in 130 is sampled, 3 ns per request. Small caches sample everything, so
//! an allowance (a million samples to begin with and one per 96 requests) bounds what they spend;
//! when it is used up the sampling rests until it is saved again, and the first samples after
//! that only warm the minis.

use super::{Kind, MiniCache};
use crate::memory::locals::{Counts, EVERY_KEY, position};

/// The sizes that are simulated, as multiples of the cache's: 2 to the power of these.
const POWERS: [i32; 7] = [-3, -2, -1, 0, 1, 2, 3];
/// Which of them is the size of the cache itself.
const SAME: usize = 3;
/// Entries of the mini that stands for the cache itself, and of the larger ones at most.
const MINI_ENTRIES: f64 = 768.0;
/// Entries that any mini may hold, where weights are smaller than expected.
const ENTRIES_MAX: usize = 1 << 14;
/// Groups of keys whose disagreement is the error.
const GROUPS: usize = 8;
/// Samples after which the older half fades.
const MEMORY: f64 = (1_u64 << 20) as f64;
/// Samples that can be saved for, and how many each request earns.
const SAVINGS: f64 = MEMORY;
const EARNS: f64 = 1.0 / 96.0;
/// Student's t for nineteen cases of twenty, with one degree of freedom less than there are groups.
const DEVIATIONS: f64 = 2.365;
/// What a mini rounds in hit ratio: any, and one of a single entry.
const ROUNDING: f64 = 0.005;
const ROUNDING_OF_ONE: f64 = 0.1;

/// Estimates the hit ratio at other sizes, for one cache.
#[derive(Debug)]
pub(crate) struct Curve {
    capacity: u64,
    /// Entries the cache is expected to hold.
    entries: f64,
    /// The share of the keys that is sampled.
    rate: f64,
    sizes: [Size; POWERS.len()],
    /// Requests of the cache as last heard of.
    heard: Counts,
    /// Its hits and requests, faded.
    live_hits: f64,
    live_requests: f64,
    /// Requests of the cache while the sample was counted, faded.
    covered: f64,
    /// Samples that may still be taken.
    allowance: f64,
    /// Samples to come that only warm the minis.
    warming: f64,
    resting: bool,
    /// Samples counted and lost, faded.
    counted: f64,
    lost: f64,
}

#[derive(Debug)]
struct Size {
    mini: MiniCache,
    capacity: u64,
    /// The share of the keys that it sees.
    rate: f64,
    /// Misses of this mini less those of the one of the cache's own size, on the same keys.
    difference: [f64; GROUPS],
}

impl Curve {
    /// Simulates a cache of `capacity` weight, expected to hold `entries`, that runs `kind`.
    pub(crate) fn new(capacity: u64, entries: u64, kind: Kind) -> Self {
        let mut curve = Self {
            capacity,
            entries: 1.0,
            rate: 1.0,
            sizes: POWERS.map(|_| Size {
                mini: MiniCache::bounded(kind, 0, ENTRIES_MAX),
                capacity: 0,
                rate: 1.0,
                difference: [0.0; GROUPS],
            }),
            heard: Counts::default(),
            live_hits: 0.0,
            live_requests: 0.0,
            covered: 0.0,
            allowance: SAVINGS,
            warming: 0.0,
            resting: false,
            counted: 0.0,
            lost: 0.0,
        };
        curve.resize(capacity, entries);
        curve
    }

    /// Follows the cache to another size, and starts over.
    pub(crate) fn resize(&mut self, capacity: u64, entries: u64) {
        self.capacity = capacity;
        let entries = entries.clamp(1, capacity.max(1)) as f64;
        self.entries = entries;
        self.rate = (MINI_ENTRIES / entries).min(1.0);
        for (size, power) in self.sizes.iter_mut().zip(POWERS) {
            let multiple = 2_f64.powi(power);
            size.capacity = (capacity as f64 * multiple).round() as u64;
            size.rate = self.rate;
            while power > 0 && entries * multiple * size.rate > MINI_ENTRIES && size.rate < 1.0 {
                size.rate /= 2.0;
            }
            size.mini.resize((capacity as f64 * multiple * size.rate).round() as u64);
            size.difference = [0.0; GROUPS];
        }
        self.counted = 0.0;
        self.lost = 0.0;
        self.covered = 0.0;
        self.live_hits = 0.0;
        self.live_requests = 0.0;
    }

    /// Follows the cache to another policy.
    pub(crate) fn switch(&mut self, kind: Kind) {
        for size in &mut self.sizes {
            size.mini.switch(kind);
        }
    }

    /// The threshold under which the positions of sampled keys lie, at present.
    pub(crate) fn threshold(&self) -> u64 {
        if self.resting || self.capacity == 0 { 0 } else { (self.rate * EVERY_KEY as f64) as u64 }
    }

    /// Puts one sampled request to all sizes.
    pub(crate) fn request(&mut self, id: u64, weight: u32) {
        let position = position(id) as f64 / EVERY_KEY as f64;
        if self.resting || position >= self.rate {
            return;
        }
        self.allowance -= 1.0;
        let counted = self.warming <= 0.0;
        if counted {
            self.counted += 1.0;
        } else {
            self.warming -= 1.0;
        }
        // Other bits than those that choose the sample.
        let group = (id.wrapping_mul(0xa076_1d64_78bd_642f) >> 61) as usize;
        let missed = !self.sizes[SAME].mini.request(id, weight);
        for (at, size) in self.sizes.iter_mut().enumerate() {
            if at == SAME || position >= size.rate {
                continue;
            }
            let misses = !size.mini.request(id, weight);
            if counted && misses != missed {
                size.difference[group] += if misses { 1.0 } else { -1.0 };
            }
        }
    }

    /// Takes note of how the cache itself does, and of the samples that were lost meanwhile.
    pub(crate) fn observe(&mut self, counts: Counts, dropped: u64) {
        let passed = counts.since(self.heard);
        self.heard = counts;
        let requests = passed.requests() as f64;
        self.live_hits += passed.hits as f64;
        self.live_requests += requests;
        self.allowance = (self.allowance + requests * EARNS).min(SAVINGS);
        if self.resting {
            if self.allowance >= SAVINGS / 4.0 {
                self.resting = false;
                let largest = self.sizes[POWERS.len() - 1].capacity as f64;
                self.warming = (2.0 * largest * self.rate).min(SAVINGS / 16.0);
            }
        } else if self.warming <= 0.0 {
            self.lost += dropped as f64;
            self.covered += requests;
            self.resting = self.allowance <= 0.0;
        }
        if self.counted > MEMORY {
            for faded in [
                &mut self.counted,
                &mut self.lost,
                &mut self.covered,
                &mut self.live_hits,
                &mut self.live_requests,
            ] {
                *faded /= 2.0;
            }
            for faded in self.sizes.iter_mut().flat_map(|size| &mut size.difference) {
                *faded /= 2.0;
            }
        }
    }

    /// The curve as it stands; `None` before anything was counted.
    pub(crate) fn estimate(&self) -> Option<MissRatioCurve> {
        if self.counted < 1.0 || self.covered < 1.0 || self.live_requests < 1.0 {
            return None;
        }
        let usual = self.live_hits / self.live_requests;
        let kept = self.counted / (self.counted + self.lost);
        let mut points: Vec<CurvePoint> = Vec::with_capacity(POWERS.len());
        for size in &self.sizes {
            if size.capacity == 0
                || points.last().is_some_and(|last| last.capacity == size.capacity)
            {
                continue;
            }
            let sampled = self.covered * size.rate * kept;
            let difference = size.difference.iter().sum::<f64>() / sampled;
            let mean = size.difference.iter().sum::<f64>() / GROUPS as f64;
            let spread: f64 = size.difference.iter().map(|group| (group - mean).powi(2)).sum();
            let variance = spread * GROUPS as f64 / (GROUPS as f64 - 1.0) * (1.0 - size.rate);
            let entries =
                (self.entries * size.rate * size.capacity as f64 / self.capacity as f64).max(1.0);
            points.push(CurvePoint {
                capacity: size.capacity,
                estimate: Estimate {
                    hit_ratio: (usual - difference).clamp(0.0, 1.0),
                    error: (DEVIATIONS * variance.sqrt() / sampled
                        + ROUNDING
                        + ROUNDING_OF_ONE / entries.sqrt())
                    .min(1.0),
                },
            });
        }
        // More memory never hurts but by accident, and the accident may be the sample's.
        for at in 1..points.len() {
            let least = points[at - 1].estimate.hit_ratio;
            let point = &mut points[at].estimate;
            if point.hit_ratio < least {
                point.error = (point.error + least - point.hit_ratio).min(1.0);
                point.hit_ratio = least;
            }
        }
        Some(MissRatioCurve { points, samples: self.counted as u64 })
    }
}

/// The hit ratio that the present traffic would have at other capacities.
#[derive(Debug, Clone, PartialEq)]
pub struct MissRatioCurve {
    points: Vec<CurvePoint>,
    samples: u64,
}

/// One simulated size of a [`MissRatioCurve`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CurvePoint {
    /// The capacity, in the unit of the cache's own.
    pub capacity: u64,
    /// What a cache of that capacity would reach.
    pub estimate: Estimate,
}

/// A hit ratio estimated from a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Estimate {
    /// The estimate, from 0 to 1.
    pub hit_ratio: f64,
    /// How far off it may be, in the same unit, in nineteen cases of twenty.
    pub error: f64,
}

impl MissRatioCurve {
    /// Returns the simulated sizes, the smallest first.
    #[must_use]
    pub fn points(&self) -> &[CurvePoint] {
        &self.points
    }

    /// Returns how many sampled requests it rests on.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Estimates the hit ratio at `capacity`; `None` outside of 1/8 to 8 times the present one.
    ///
    /// Between the simulated sizes it is interpolated over the logarithm of the capacity.
    #[must_use]
    pub fn hit_ratio_at(&self, capacity: u64) -> Option<Estimate> {
        let above = self.points.iter().position(|point| point.capacity >= capacity)?;
        let high = self.points[above];
        if high.capacity == capacity {
            return Some(high.estimate);
        }
        let low = self.points[above.checked_sub(1)?];
        let log = |capacity: u64| (capacity as f64).ln();
        let share = (log(capacity) - log(low.capacity)) / (log(high.capacity) - log(low.capacity));
        let step = high.estimate.hit_ratio - low.estimate.hit_ratio;
        let error = low.estimate.error.max(high.estimate.error) + step / 4.0;
        Some(Estimate { hit_ratio: low.estimate.hit_ratio + share * step, error: error.min(1.0) })
    }
}

#[cfg(test)]
mod tests;
