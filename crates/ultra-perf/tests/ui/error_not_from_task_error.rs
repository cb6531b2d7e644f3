//! Results that cannot say what ended the call from outside.
use ultra_perf::{UltraPerf, optimized};

#[optimized(timeout = "2s")]
async fn load(perf: &UltraPerf, id: u64) -> Option<u64> {
    Some(id)
}

struct Refused;

#[optimized(io)]
async fn save(perf: &UltraPerf, id: u64) -> Result<u64, Refused> {
    Ok(id)
}

#[optimized(retry = 2)]
async fn count(perf: &UltraPerf, id: u64) -> u64 {
    id
}

fn main() {}
