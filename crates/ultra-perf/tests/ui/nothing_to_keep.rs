//! Results that cannot be kept.
use ultra_perf::{UltraPerf, cached};

#[cached]
async fn nothing(perf: &UltraPerf, id: u64) {}

#[cached]
async fn borrowed<'a>(perf: &UltraPerf, name: &'a str) -> Option<&'a str> {
    Some(name)
}

#[cached]
async fn nameless(perf: &UltraPerf, id: u64) -> impl Iterator<Item = u64> {
    0..id
}

fn main() {}
