//! Options that do not exist, or whose values mean nothing: all are told at once.
use ultra_perf::{UltraPerf, cached, optimized};

#[cached(tll = "10m", tiers = [memory, disc], name = "a name", schema = "2", skip(nobody))]
async fn load(perf: &UltraPerf, id: u64) -> u64 {
    id
}

#[optimized(io, cpu, timeout = "2", retry = 0, memory = "64", priority = Higher, ttl = "1m", io)]
async fn render(perf: &UltraPerf, id: u64) -> Result<u64, ultra_perf::TaskError> {
    Ok(id)
}

fn main() {}
