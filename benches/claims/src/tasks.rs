//! The claims about tasks: how much more is done when waits overlap, and how many run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scheduler::Scheduler;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};
use ultra_perf_bench::{Clock, Suite};

/// Calls of a round, and how long each waits for somebody else.
const CALLS: u64 = 40;
const WAIT: Duration = Duration::from_millis(5);
/// Tasks that have to run at the same time.
const TASKS: usize = 100;

/// Measures the claims about tasks.
pub(crate) fn measure(suite: &mut Suite) {
    let runtime = Runtime::new().expect("threads can be started");
    let scheduler = {
        let _context = runtime.enter();
        Scheduler::builder().build().expect("the defaults are valid")
    };
    let case =
        "\"3x throughput with async tasks\": 40 calls that wait 5 ms each, submitted together";
    suite.rate(case, Clock::Wall, CALLS).rounds(9).at_least(3.0).compare(
        "one after the other",
        || {
            runtime.block_on(async {
                let submit = |_| scheduler.io("call", sleep(WAIT)).submit().expect("there is room");
                let calls: Vec<_> = (0..CALLS).map(submit).collect();
                for call in calls {
                    call.await.expect("it does not fail");
                }
            });
        },
        || {
            runtime.block_on(async {
                for _ in 0..CALLS {
                    sleep(WAIT).await;
                }
            });
        },
    );
    let case = "\"100 concurrent tasks\": each waits until all the others run too";
    if suite.wants(case) {
        suite.reported(case, "tasks").at_least(100.0).observed(runtime.block_on(met(&scheduler)));
    }
}

/// How many of the tasks met all the others before any of them ended.
async fn met(scheduler: &Scheduler) -> f64 {
    let (barrier, met) = (Arc::new(Barrier::new(TASKS)), Arc::new(AtomicU64::new(0)));
    let submit = |_| {
        let (barrier, met) = (Arc::clone(&barrier), Arc::clone(&met));
        let task = async move {
            if timeout(Duration::from_secs(10), barrier.wait()).await.is_ok() {
                met.fetch_add(1, Ordering::Relaxed);
            }
        };
        scheduler.io("meeting", task).submit().expect("there is room")
    };
    let tasks: Vec<_> = (0..TASKS).map(submit).collect();
    for task in tasks {
        task.await.expect("it does not fail");
    }
    met.load(Ordering::Relaxed) as f64
}
