//! Whether a value found in a lower tier should come into memory at once or at the second sight.
//!
//! The tier below is taken to hold everything that was ever asked for. A key that comes for the first
//! time is loaded and put into memory in either case. A key that is found below is put into memory at
//! once, or only if it was found there before, within as many findings as memory has entries.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use cache_tiered::simulate::{Capacity, Simulated, Trace, run};
use cache_tiered::{Cache, Policy};

use crate::judge::JUDGED;
use crate::traces;

struct Tiered {
    memory: Cache<u64, ()>,
    below: HashSet<u64>,
    /// Keys found below: those of this generation, and those of the one before.
    found: [HashSet<u64>; 2],
    generation: usize,
    second_sight: bool,
}

impl Tiered {
    fn new(policy: Policy, capacity: Capacity, second_sight: bool) -> Self {
        let builder = Cache::builder("simulation").policy(policy).entries(capacity.limit());
        Self {
            memory: builder.build().expect("the name and the bound are good"),
            below: HashSet::new(),
            found: [HashSet::new(), HashSet::new()],
            generation: usize::try_from(capacity.limit()).expect("a trace fits in memory"),
            second_sight,
        }
    }

    /// Tells whether a key was found below of late, and remembers that it was.
    fn was_found(&mut self, key: u64) -> bool {
        let known = self.found.iter().any(|generation| generation.contains(&key));
        self.found[0].insert(key);
        if self.found[0].len() >= self.generation {
            self.found.swap(0, 1);
            self.found[0].clear();
        }
        known
    }
}

impl Simulated for Tiered {
    fn request(&mut self, key: u64, _weight: u32) -> bool {
        if self.memory.get_in_memory(&key).is_some() {
            return true;
        }
        let is_new = self.below.insert(key);
        if is_new || !self.second_sight || self.was_found(key) {
            self.memory.insert(key, ());
        }
        false
    }
}

/// Measures all recorded traces; the hit ratio of memory at second sight less that at once, in points.
pub(crate) fn table(folder: &Path) -> String {
    let mut table =
        "| trace | size | lru | s3-fifo | adaptive |\n|---|--:|--:|--:|--:|\n".to_owned();
    let mut sums = [0.0; 3];
    let mut points = 0;
    for subject in traces::ALL.iter().filter(|subject| subject.judged) {
        let Ok(trace) = subject.load(folder, traces::QUICK) else { continue };
        for share in JUDGED {
            let gains = [Policy::Lru, Policy::S3Fifo, Policy::Adaptive]
                .map(|policy| gain(&trace, policy, share));
            let _ = writeln!(
                table,
                "| {} | {} % | {:+.1} | {:+.1} | {:+.1} |",
                subject.name,
                share * 100.0,
                gains[0],
                gains[1],
                gains[2]
            );
            sums.iter_mut().zip(gains).for_each(|(sum, gain)| *sum += gain);
            points += 1;
        }
    }
    let mean = sums.map(|sum| sum / f64::from(points.max(1)));
    let _ = writeln!(table, "| mean | | {:+.2} | {:+.2} | {:+.2} |", mean[0], mean[1], mean[2]);
    table
}

fn gain(trace: &Trace, policy: Policy, share: f64) -> f64 {
    let limit = trace.footprint().entries(share).limit().max(1);
    let [at_once, second] = [false, true].map(|second_sight| {
        let mut cache = Tiered::new(policy, Capacity::entries(limit), second_sight);
        run(trace, &mut cache).hit_ratio() * 100.0
    });
    second - at_once
}
