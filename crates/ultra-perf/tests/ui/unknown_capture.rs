//! A tag that captures what is no argument.
use ultra_perf::{UltraPerf, cached};

#[cached(tags = ["user:{idd}"])]
async fn load(perf: &UltraPerf, id: u64) -> u64 {
    id
}

fn main() {}
