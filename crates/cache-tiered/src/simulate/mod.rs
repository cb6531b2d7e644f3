//! Tells what a cache of a given size and policy would have answered, from a record of requests.
//!
//! A [`Trace`] is a list of keys in the order in which they were asked for, read from a file in one of
//! the common formats (an access log of an HTTP server among them) or made by a [`Workload`]. A
//! [`Contender`] is what is measured on it: this crate's [`Cache`](crate::Cache) under one of its
//! policies, a policy of the literature in its [`Textbook`] form, or the [optimum](Future) of a cache
//! that knows the future. [`sweep`] measures many contenders at many sizes on all cores.
//!
//! Every request is one read; a miss is followed by the insert of its key. The cache starts empty, and
//! its first misses count.
//!
//! ```
//! use cache_tiered::simulate::{Contender, Trace, TraceOptions, sweep};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let log: &[u8] = b"/home\n/cart\n/home\n/home\n/login\n/cart\n";
//! let trace = Trace::read("pages.txt", log, &TraceOptions::default())?;
//! let half = trace.footprint().entries(0.5);
//! let contenders = Contender::matching("textbook-*")?;
//! let outcomes = sweep(&trace, &contenders, &[half], 2, &|_done| ());
//! for (contender, outcome) in contenders.iter().zip(&outcomes[0]) {
//!     let outcome = outcome.expect("only the optimum may have none");
//!     println!("{}: {:.1} %", contender.name(), outcome.hit_ratio() * 100.0);
//! }
//! # Ok(())
//! # }
//! ```

mod ahead;
mod belady;
mod contender;
mod format;
mod mix;
mod sweep;
mod textbook;
mod trace;
mod workload;

pub use ahead::Ahead;
pub use belady::Future;
pub use contender::{Contender, UnknownContender};
pub use format::{Format, UnknownFormat};
pub use sweep::sweep;
pub use textbook::Textbook;
pub use trace::{Footprint, Trace, TraceError, TraceOptions};
pub use workload::Workload;

/// Requests between two reports of progress.
const STRIDE: usize = 1 << 16;

/// A cache of keys without values, as a simulation drives it.
pub trait Simulated {
    /// Asks for a key, tells whether it was resident, and lets it in if it was not.
    ///
    /// `weight` is what the entry takes of the capacity, at least 1.
    fn request(&mut self, key: u64, weight: u32) -> bool;
}

/// What a cache may hold: a number of entries, or of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capacity {
    limit: u64,
    expected_entries: u64,
    weighs: bool,
}

impl Capacity {
    /// Holds this many entries, whatever they weigh.
    #[must_use]
    pub fn entries(entries: u64) -> Self {
        Self { limit: entries, expected_entries: entries, weighs: false }
    }

    /// Holds entries up to this weight together; `expected_entries` sizes tables and changes no bound.
    #[must_use]
    pub fn weight(limit: u64, expected_entries: u64) -> Self {
        Self { limit, expected_entries, weighs: true }
    }

    /// What the weights of all residents may come to.
    #[must_use]
    pub fn limit(self) -> u64 {
        self.limit
    }

    /// How many entries will fit, as far as is known before.
    #[must_use]
    pub fn expected_entries(self) -> u64 {
        self.expected_entries
    }

    /// Whether weights count, as opposed to entries.
    #[must_use]
    pub fn weighs(self) -> bool {
        self.weighs
    }
}

/// How many requests a cache answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// All requests.
    pub requests: u64,
    /// Those whose key was resident.
    pub hits: u64,
    /// The weight of all requests.
    pub weight: u64,
    /// The weight of the hits.
    pub hit_weight: u64,
}

impl Outcome {
    /// The share of requests that were hits; 0 of none.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        ratio(self.hits, self.requests)
    }

    /// The share of the requested weight that hits answered; 0 of none.
    #[must_use]
    pub fn weight_hit_ratio(&self) -> f64 {
        ratio(self.hit_weight, self.weight)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Asks a cache for every key of a trace, with its weight.
pub fn run(trace: &Trace, cache: &mut dyn Simulated) -> Outcome {
    run_telling(trace, true, cache, &mut |_| ())
}

/// Runs a trace, each key weighing 1 unless `weighs`; `progress` hears of requests done since its last
/// call.
fn run_telling(
    trace: &Trace,
    weighs: bool,
    cache: &mut dyn Simulated,
    progress: &mut dyn FnMut(u64),
) -> Outcome {
    let mut outcome = Outcome::default();
    let weights = trace.weights().filter(|_| weighs);
    for (chunk, keys) in trace.keys().chunks(STRIDE).enumerate() {
        for (at, key) in keys.iter().enumerate() {
            let weight = weights.map_or(1, |weights| weights[chunk * STRIDE + at]);
            let hit = cache.request(*key, weight);
            outcome.hits += u64::from(hit);
            outcome.weight += u64::from(weight);
            outcome.hit_weight += if hit { u64::from(weight) } else { 0 };
        }
        outcome.requests += keys.len() as u64;
        progress(keys.len() as u64);
    }
    outcome
}
