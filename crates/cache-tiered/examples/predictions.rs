//! How right a cache is about other sizes of itself: what it predicts, what a cache of that size reached
//! over the same requests, and what it reaches itself once it has been resized.
//!
//! Runs a Zipf distribution, or the traces named on the command line (`-- trace.gz ..`):
//!
//! ```text
//! cargo run --release -p cache-tiered --features simulate --example predictions
//! ```

use std::process::ExitCode;

use cache_tiered::simulate::{Trace, TraceOptions, Workload};
use cache_tiered::{Cache, Policy};

/// The capacities that are asked for, in eighths of the cache's own.
const EIGHTHS: [u64; 6] = [1, 2, 4, 16, 32, 64];
const POLICIES: [Policy; 3] = [Policy::Lru, Policy::S3Fifo, Policy::Adaptive];
/// Of the distinct keys, what the cache holds: one of so many.
const ONE_OF: u64 = 20;

fn main() -> ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    if paths.is_empty() {
        // Without optimisation it is to end within seconds too.
        let requests = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
        report(&Workload::Zipf { keys: 50_000, exponent: 0.9 }.trace(requests, 7));
    }
    for path in paths {
        match Trace::open(&path, &TraceOptions::default()) {
            Ok(trace) => report(&trace),
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn report(trace: &Trace) {
    let mut keys: Vec<u64> = trace.keys().to_vec();
    keys.sort_unstable();
    keys.dedup();
    let own = (keys.len() as u64 / ONE_OF).max(8);
    let half = trace.keys().len() / 2;
    println!("{}: {} requests for {} keys", trace.name(), 2 * half, keys.len());
    println!("  policy    capacity  predicted  error  reached so far  off  resized  off");
    for policy in POLICIES {
        for eighths in EIGHTHS {
            let capacity = (own * eighths).div_ceil(8);
            let (before, after) = trace.keys().split_at(half);
            let asked = cache(own, policy);
            run(&asked, before);
            let Some(predicted) = asked.hit_ratio_at(capacity) else { continue };
            let same = run(&cache(capacity, policy), before);
            asked.resize(capacity);
            let resized = run(&asked, after);
            println!(
                "  {policy:8} {capacity:9} {:10.1} {:6.1} {:15.1} {:+5.1} {:8.1} {:+5.1}",
                100.0 * predicted.hit_ratio,
                100.0 * predicted.error,
                100.0 * same,
                100.0 * (predicted.hit_ratio - same),
                100.0 * resized,
                100.0 * (predicted.hit_ratio - resized),
            );
        }
    }
}

fn cache(entries: u64, policy: Policy) -> Cache<u64, ()> {
    let builder = Cache::builder("predictions").entries(entries).policy(policy);
    builder.miss_ratio_curve(true).build().expect("a valid configuration")
}

/// Reads the keys through, and tells the share of hits.
fn run(cache: &Cache<u64, ()>, keys: &[u64]) -> f64 {
    let mut hits = 0;
    for key in keys {
        if cache.get_in_memory(key).is_some() {
            hits += 1;
        } else {
            cache.insert(*key, ());
        }
    }
    f64::from(hits) / keys.len().max(1) as f64
}
