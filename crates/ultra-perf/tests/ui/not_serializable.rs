//! An argument that cannot be a part of a key.
use ultra_perf::{UltraPerf, cached};

struct Connection;

#[cached]
async fn load(perf: &UltraPerf, connection: &Connection, id: u64) -> u64 {
    id
}

fn main() {}
