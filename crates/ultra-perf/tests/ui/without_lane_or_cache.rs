//! Options that are about something which is not there.
use ultra_perf::{TaskError, UltraPerf, optimized};

#[optimized(priority = High, memory = "1MiB", key = id, tags = ["user:{id}"], retry_if = |_| true)]
async fn load(perf: &UltraPerf, id: u64) -> Result<u64, TaskError> {
    Ok(id)
}

fn main() {}
