//! Arguments of which there is only one, for a call that may be made several times.
use ultra_perf::{UltraPerf, optimized};

struct Once;

#[optimized(retry = 2)]
async fn send(perf: &UltraPerf, message: Once) -> Result<(), String> {
    drop(message);
    Ok(())
}

#[optimized(retry = 2)]
async fn append(perf: &UltraPerf, list: &mut Vec<u8>) -> Result<(), String> {
    list.push(1);
    Ok(())
}

fn main() {}
