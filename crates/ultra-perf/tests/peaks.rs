//! What tasks really allocate corrects what later ones are taken to need.

use std::alloc::System;
use std::hint::black_box;

use ultra_perf::memory::Tracked;
use ultra_perf::{OptimizationLevel, UltraPerf};

#[global_allocator]
static ALLOCATOR: Tracked<System> = Tracked::new(System);

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 64 * MIB;

/// How many tasks of 16 declared MiB fit into the budget at once, after one of them took `real` bytes.
async fn fitting(real: usize, as_future: bool) -> u64 {
    let perf = UltraPerf::builder()
        .level(OptimizationLevel::Basic)
        .set("monitor.enabled", "false")
        .set("memory.tracking", "true")
        .set("scheduler.memory_budget", "64MiB")
        .build()
        .await
        .expect("a handle");
    let declared = 16 * MIB;
    let first = match as_future {
        true => {
            let work = async move {
                let half = black_box(vec![0_u8; real / 2]);
                tokio::task::yield_now().await;
                let other = black_box(vec![0_u8; real - real / 2]);
                half.len() + other.len()
            };
            let work = perf.future_with_peak("work", declared, work);
            perf.scheduler().io("work", work).memory_bytes(declared).submit().expect("room").await
        }
        false => {
            let work = perf.with_peak("work", declared, move || black_box(vec![0_u8; real]).len());
            perf.scheduler()
                .cpu("work", |_| work())
                .memory_bytes(declared)
                .submit()
                .expect("room")
                .await
        }
    };
    assert_eq!(first.expect("it runs"), real);
    let used = || perf.scheduler().memory_stats().expect("there is a budget").used_bytes;
    while used() > 0 {
        tokio::task::yield_now().await;
    }
    let waiting = std::future::pending::<()>();
    let second = perf.scheduler().io("work", waiting).memory_bytes(declared);
    let _second = second.submit().expect("room");
    // What little the machinery itself allocates counts too.
    (BUDGET as f64 / used() as f64).round() as u64
}

#[tokio::test]
async fn the_peak_of_a_task_corrects_what_the_next_one_is_taken_to_need() {
    assert_eq!(fitting(16 << 20, false).await, 4, "as declared");
    assert_eq!(fitting(4 << 20, false).await, 16, "a quarter of what was declared");
    assert_eq!(fitting(32 << 20, false).await, 2, "twice of it");
    assert_eq!(fitting(32 << 20, true).await, 2, "of a future, over its polls");
}
