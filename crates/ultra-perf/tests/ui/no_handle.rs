//! A function that has no handle.
use ultra_perf::cached;

#[cached(ttl = "10m")]
async fn load(id: u64) -> u64 {
    id
}

fn main() {}
