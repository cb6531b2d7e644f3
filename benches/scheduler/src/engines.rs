//! The engines: two levels of tasks in front of two workers, each engine as it comes.
//!
//! An engine takes a closure and a level and runs it sometime. What has no levels takes both into one
//! queue; what people build instead, two pools or two runtimes, has one for each level.

use std::sync::Arc;
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::{CoDelSettings, Lane, Priority, Scheduler};
use tokio::runtime::{Builder, Runtime};

use crate::work::WORKERS;

/// A task of an engine.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Runs tasks of two levels.
pub(crate) trait Engine: Send + Sync {
    /// Takes a task; `high` ones should start first.
    fn submit(&self, high: bool, task: Task);

    /// Ends the engine; what still waits need not run.
    fn stop(&self) {}
}

/// How an engine is called in the tables, and how it is made.
#[derive(Clone, Copy)]
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    pub(crate) make: fn() -> Arc<dyn Engine>,
}

/// Ours, in each mode.
pub(crate) const OURS: [Entrant; 4] = [
    Entrant { name: "ours, ordered", make: || ours(Lane::Cpu, false, None, false) },
    Entrant { name: "ours, ordered, lane io", make: || ours(Lane::Io, false, None, false) },
    Entrant { name: "ours, reserved", make: || ours(Lane::Cpu, true, None, false) },
    Entrant { name: "ours, reserved, nice 19", make: || ours(Lane::Cpu, true, Some(19), false) },
];

/// One rayon pool: what the others are measured against.
pub(crate) const RAYON: Entrant =
    Entrant { name: "rayon, one pool", make: || Arc::new(Pools::new(WORKERS, 0, None)) };

/// What else people use today.
pub(crate) const OTHERS: [Entrant; 7] = [
    Entrant { name: "tokio::spawn, one runtime", make: || Arc::new(Runtimes::new(WORKERS, 0)) },
    Entrant { name: "spawn_blocking, 2 threads", make: || Arc::new(Blocking::new(WORKERS)) },
    Entrant { name: "spawn_blocking, 512 threads", make: || Arc::new(Blocking::new(512)) },
    Entrant { name: "rayon, two pools 2+1", make: || Arc::new(Pools::new(WORKERS, 1, None)) },
    Entrant { name: "rayon, two pools 2+2", make: || Arc::new(Pools::new(WORKERS, 2, None)) },
    Entrant {
        name: "rayon, two pools 2+1, low at nice 19",
        make: || Arc::new(Pools::new(WORKERS, 1, Some(19))),
    },
    Entrant { name: "tokio, two runtimes 2+2", make: || Arc::new(Runtimes::new(WORKERS, 2)) },
];

/// Rayon pools, one or one for each level.
struct Pools {
    low: ThreadPool,
    high: Option<ThreadPool>,
}

impl Pools {
    fn new(low: usize, high: usize, nice: Option<i32>) -> Self {
        let pool = |threads: usize, nice: Option<i32>| {
            let builder = ThreadPoolBuilder::new().num_threads(threads).start_handler(move |_| {
                if let Some(nice) = nice {
                    scheduler::set_nice(nice).expect("raising needs no privilege");
                }
            });
            builder.build().expect("threads can be had")
        };
        Self { low: pool(low, nice), high: (high > 0).then(|| pool(high, None)) }
    }
}

impl Engine for Pools {
    fn submit(&self, high: bool, task: Task) {
        let pool = self.high.as_ref().filter(|_| high).unwrap_or(&self.low);
        pool.spawn(task);
    }
}

/// Tokio runtimes, one or one for each level.
struct Runtimes {
    low: Runtime,
    high: Option<Runtime>,
}

impl Runtimes {
    fn new(low: usize, high: usize) -> Self {
        Self { low: runtime(low), high: (high > 0).then(|| runtime(high)) }
    }
}

impl Engine for Runtimes {
    fn submit(&self, high: bool, task: Task) {
        let runtime = self.high.as_ref().filter(|_| high).unwrap_or(&self.low);
        runtime.spawn(async { task() });
    }
}

/// The blocking threads of a tokio runtime.
struct Blocking(Runtime);

impl Blocking {
    fn new(threads: usize) -> Self {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(1).max_blocking_threads(threads);
        Self(builder.build().expect("threads can be had"))
    }
}

impl Engine for Blocking {
    fn submit(&self, _: bool, task: Task) {
        self.0.spawn_blocking(task);
    }
}

/// A tokio runtime with so many workers.
pub(crate) fn runtime(workers: usize) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).build().expect("threads can be had")
}

/// The scheduler itself, on one lane.
struct Ours {
    scheduler: Scheduler,
    lane: Lane,
    /// Keeps the runtime of the lane `Io`; dropped after the scheduler.
    _runtime: Option<Runtime>,
}

/// Makes ours: two workers on the lane, perhaps a thread that only takes important tasks, and workers that
/// yield to it; bounded, it keeps 200 others waiting and sheds what waits for half a second in overload.
fn ours(lane: Lane, reserve: bool, nice: Option<i32>, bounded: bool) -> Arc<dyn Engine> {
    let runtime = (lane == Lane::Io).then(|| runtime(WORKERS));
    let mut builder = Scheduler::builder().cpu_threads(WORKERS).io_slots(WORKERS);
    if let Some(runtime) = &runtime {
        builder = builder.runtime(runtime.handle().clone());
    }
    if reserve {
        builder = builder.reserve_threads(Priority::High, 1);
    }
    if let Some(nice) = nice {
        builder = builder.cpu_nice(nice);
    }
    if bounded {
        let codel = CoDelSettings {
            target: Duration::from_millis(50),
            interval: Duration::from_millis(100),
            shed_after: Duration::from_millis(500),
        };
        builder = builder.level_tasks(Priority::Low, 200).codel(Priority::Low, codel);
    }
    let scheduler = builder.build().expect("a valid configuration");
    Arc::new(Ours { scheduler, lane, _runtime: runtime })
}

/// Returns ours with room for all the tasks of a round.
pub(crate) fn idle_scheduler() -> Scheduler {
    let builder = Scheduler::builder().cpu_threads(WORKERS);
    builder.build().expect("a valid configuration")
}

impl Engine for Ours {
    fn submit(&self, high: bool, task: Task) {
        let priority = if high { Priority::High } else { Priority::Low };
        // What is refused is dropped here, and the task counts itself as shed.
        let _ = match self.lane {
            Lane::Io => {
                let future = async move { task() };
                self.scheduler.io("bench", future).priority(priority).spawn().err().map(drop)
            }
            _ => self
                .scheduler
                .cpu("bench", move |_| task())
                .priority(priority)
                .spawn()
                .err()
                .map(drop),
        };
    }

    fn stop(&self) {
        let _ = self.scheduler.drain_blocking(Duration::from_millis(100));
    }
}

/// What is overloaded beside rayon, with a bound on the others that wait.
pub(crate) const OVERLOADED: [Entrant; 2] = [
    Entrant { name: "ours, ordered", make: || ours(Lane::Cpu, false, None, true) },
    Entrant { name: "ours, reserved, nice 19", make: || ours(Lane::Cpu, true, Some(19), true) },
];
