//! Functions that return a future of which nothing shows where its body is.
use std::pin::Pin;

use ultra_perf::{UltraPerf, cache_invalidate, cached, monitored, optimized};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[monitored]
fn named(perf: &UltraPerf) -> impl Future<Output = u8> + use<> {
    let number = 1;
    async move { number }
}

#[cached]
fn boxed(perf: &UltraPerf, id: u8) -> Pin<Box<dyn Future<Output = u8> + Send>> {
    Box::pin(std::future::ready(id))
}

#[cache_invalidate(tags = ["all"])]
async fn twice(perf: &UltraPerf) -> Pin<Box<dyn Future<Output = u8> + Send>> {
    Box::pin(async move { 1 })
}

#[optimized(breaker = "elsewhere")]
fn elsewhere(perf: &UltraPerf) -> Pin<Box<dyn Future<Output = Result<u8, String>> + Send>> {
    other()
}

fn other() -> Boxed<Result<u8, String>> {
    Box::pin(async { Ok(1) })
}

fn main() {}
