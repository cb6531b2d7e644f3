//! What a function that is not async cannot have.
use ultra_perf::{TaskError, UltraPerf, cached, optimized};

#[optimized(io, timeout = "2s", retry = 3)]
fn load(perf: &UltraPerf, id: u64) -> Result<u64, TaskError> {
    Ok(id)
}

#[cached(stale = "1m", tiers = [memory, disk])]
fn find(perf: &UltraPerf, id: u64) -> Option<u64> {
    Some(id)
}

fn main() {}
