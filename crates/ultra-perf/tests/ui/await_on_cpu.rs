//! A body that would wait on a thread that computes.
use ultra_perf::{TaskError, UltraPerf, optimized};

#[optimized(cpu)]
async fn render(perf: &UltraPerf, id: u64) -> Result<u64, TaskError> {
    let later = async { 1 };
    std::future::ready(()).await;
    Ok(id + later.await)
}

fn main() {}
