//! A result that cannot go to the tiers below memory.
use ultra_perf::{UltraPerf, cached};

#[derive(Clone)]
struct User;

#[cached]
async fn load(perf: &UltraPerf, id: u64) -> User {
    User
}

#[cached(tiers = [memory])]
async fn fine(perf: &UltraPerf, id: u64) -> User {
    User
}

fn main() {}
