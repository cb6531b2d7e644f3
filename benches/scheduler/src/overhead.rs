//! What a task costs beside the engine that it runs on.
//!
//! The closures do nothing, or compute for a known time. Both sides have two workers and live in the same
//! process; a round is some thousand tasks, taken by the wall clock because half of the work is waking
//! others. The peer is what one would call instead: `rayon::spawn` where nobody waits, `tokio_rayon`
//! where an async caller does, `tokio::spawn` for futures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::Scheduler;
use tokio::runtime::Runtime;
use ultra_perf_bench::{Clock, Suite};

use crate::engines::{idle_scheduler, runtime};
use crate::work::{Countdown, WORKERS, compute};

/// Empty tasks of a round.
const TASKS: usize = 50_000;
/// Tasks that are awaited together.
const BATCH: usize = 1_000;
#[cfg(not(feature = "peers"))]
const NO_PEERS: &str = "built without peers: cargo xtask bench scheduler --peers";

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    let runtime = runtime(WORKERS);
    let _inside = runtime.enter();
    let scheduler = idle_scheduler();
    let pool = ThreadPoolBuilder::new().num_threads(WORKERS).build().expect("threads can be had");

    suite.time("fire and forget, from outside", Clock::Wall, TASKS as u64).at_most(1.25).compare(
        "rayon::spawn",
        || ours(&scheduler, TASKS, Duration::ZERO),
        || rayons(&pool, TASKS, Duration::ZERO),
    );
    suite.time("fire and forget, from a worker", Clock::Wall, TASKS as u64).at_most(1.0).compare(
        "rayon::spawn",
        || ours_inside(&scheduler),
        || rayons_inside(&pool),
    );
    for (name, time, tasks, target) in [
        ("tasks of 1 us", 1, 20_000, None),
        ("tasks of 10 us", 10, 5_000, Some(1.03)),
        ("tasks of 100 us", 100, 500, Some(1.03)),
    ] {
        let time = Duration::from_micros(time);
        let case = suite.time(name, Clock::Wall, tasks as u64);
        let case = match target {
            Some(target) => case.at_most(target),
            None => case,
        };
        case.compare(
            "rayon::spawn",
            || ours(&scheduler, tasks, time),
            || rayons(&pool, tasks, time),
        );
    }
    awaited(suite, &runtime, &scheduler, &pool);
    io(suite, &runtime, &scheduler);
}

fn ours(scheduler: &Scheduler, tasks: usize, time: Duration) {
    let left = Arc::new(Countdown::new(tasks));
    for _ in 0..tasks {
        let left = Arc::clone(&left);
        let task = scheduler.cpu("bench", move |_| {
            compute(time);
            left.done();
        });
        task.spawn().expect("there is room");
    }
    left.wait();
}

fn rayons(pool: &ThreadPool, tasks: usize, time: Duration) {
    let left = Arc::new(Countdown::new(tasks));
    for _ in 0..tasks {
        let left = Arc::clone(&left);
        pool.spawn(move || {
            compute(time);
            left.done();
        });
    }
    left.wait();
}

fn ours_inside(scheduler: &Scheduler) {
    let left = Arc::new(Countdown::new(TASKS));
    let (all, inner) = (Arc::clone(&left), scheduler.clone());
    let task = scheduler.cpu("bench", move |_| {
        for _ in 0..TASKS {
            let left = Arc::clone(&all);
            inner.cpu("bench", move |_| left.done()).spawn().expect("there is room");
        }
    });
    task.spawn().expect("there is room");
    left.wait();
}

fn rayons_inside(pool: &ThreadPool) {
    let left = Arc::new(Countdown::new(TASKS));
    let all = Arc::clone(&left);
    pool.spawn(move || {
        for _ in 0..TASKS {
            let left = Arc::clone(&all);
            rayon::spawn(move || left.done());
        }
    });
    left.wait();
}

/// Rows in which an async caller waits for closures.
fn awaited(suite: &mut Suite, runtime: &Runtime, scheduler: &Scheduler, pool: &ThreadPool) {
    let batch = "awaited by a thousand";
    let alone = "awaited one at a time";
    let ours_batch = || {
        runtime.block_on(async {
            let task = |_| scheduler.cpu("bench", |_| ()).submit().expect("there is room");
            let handles: Vec<_> = (0..BATCH).map(task).collect();
            for handle in handles {
                handle.await.expect("it runs");
            }
        });
    };
    let ours_alone = || {
        runtime.block_on(async {
            for _ in 0..BATCH {
                let handle = scheduler.cpu("bench", |_| ()).submit().expect("there is room");
                handle.await.expect("it runs");
            }
        });
    };
    #[cfg(feature = "peers")]
    {
        use tokio_rayon::AsyncThreadPool as _;
        suite.time(batch, Clock::Wall, BATCH as u64).at_most(1.1).compare(
            "tokio_rayon",
            ours_batch,
            || {
                runtime.block_on(async {
                    let handles: Vec<_> = (0..BATCH).map(|_| pool.spawn_async(|| ())).collect();
                    for handle in handles {
                        handle.await;
                    }
                });
            },
        );
        suite.time(alone, Clock::Wall, BATCH as u64).at_most(1.15).compare(
            "tokio_rayon",
            ours_alone,
            || {
                runtime.block_on(async {
                    for _ in 0..BATCH {
                        pool.spawn_async(|| ()).await;
                    }
                });
            },
        );
    }
    #[cfg(not(feature = "peers"))]
    {
        let _ = pool;
        suite.time(batch, Clock::Wall, BATCH as u64).measure(ours_batch);
        suite.time(alone, Clock::Wall, BATCH as u64).measure(ours_alone);
        suite.time(batch, Clock::Wall, BATCH as u64).skip("tokio_rayon", NO_PEERS);
    }
}

/// Rows of futures that are ready at once: what is added to `tokio::spawn`.
fn io(suite: &mut Suite, runtime: &Runtime, scheduler: &Scheduler) {
    let per_task = |work: &dyn Fn()| {
        let start = Instant::now();
        for _ in 0..10 {
            work();
        }
        start.elapsed().as_nanos() as f64 / (10 * BATCH) as f64
    };
    let ours = || {
        runtime.block_on(async {
            let task = |_| scheduler.io("bench", async {}).submit().expect("there is room");
            let handles: Vec<_> = (0..BATCH).map(task).collect();
            for handle in handles {
                handle.await.expect("it runs");
            }
        });
    };
    let tokio = || {
        runtime.block_on(async {
            let handles: Vec<_> = (0..BATCH).map(|_| tokio::spawn(async {})).collect();
            for handle in handles {
                handle.await.expect("it runs");
            }
        });
    };
    suite.time("futures awaited by a thousand", Clock::Wall, BATCH as u64).compare(
        "tokio::spawn",
        ours,
        tokio,
    );
    // A difference: a reading must be above zero.
    suite
        .reported("futures awaited by a thousand, beyond tokio::spawn", "ns/op")
        .at_most(120.0)
        .measure(|| (per_task(&ours) - per_task(&tokio)).max(1.0));
}
