//! Patterns that cannot be a part of a key, and arguments that a cached call would not change.
use ultra_perf::{UltraPerf, cached};

#[cached]
async fn add(perf: &UltraPerf, (one, other): (u64, u64), _: u8, sum: &mut u64) -> u64 {
    *sum += one + other;
    *sum
}

#[cached(key = id, skip(name))]
async fn both(perf: &UltraPerf, id: u64, name: String) -> u64 {
    id
}

fn main() {}
