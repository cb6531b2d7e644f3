//! A function that has two handles and does not say which one.
use ultra_perf::{UltraPerf, cached};

#[cached]
async fn load(perf: &UltraPerf, other: &UltraPerf, id: u64) -> u64 {
    id
}

fn main() {}
