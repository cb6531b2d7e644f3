//! `cache_none` of a `Result`, and `cache_errors` of an `Option`.
use ultra_perf::{UltraPerf, cached};

#[cached(cache_none)]
async fn load(perf: &UltraPerf, id: u64) -> Result<u64, String> {
    Ok(id)
}

#[cached(cache_errors = "5s")]
async fn find(perf: &UltraPerf, id: u64) -> Option<u64> {
    Some(id)
}

fn main() {}
