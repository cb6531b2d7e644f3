//! Arguments that a task of its own would outlive.
use std::borrow::Cow;
use ultra_perf::{TaskError, UltraPerf, optimized};

#[optimized(io)]
async fn load(perf: &UltraPerf, name: &str, other: Option<Cow<'_, str>>) -> Result<u64, TaskError> {
    Ok(0)
}

struct Users {
    perf: UltraPerf,
}

impl Users {
    #[optimized(cpu, perf = self.perf)]
    async fn render(&self, id: u64) -> Result<u64, TaskError> {
        Ok(id)
    }
}

fn main() {}
