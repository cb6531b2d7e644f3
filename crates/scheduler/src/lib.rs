//! Order ahead of tokio and rayon: priorities that hold under overload, with bounds and figures.
//!
//! A [`Scheduler`] keeps every task in a bounded, ordered queue of its own and starts it late: tokio and
//! rayon only ever see work that may run now. It has no executor, no reactor and no work stealing. Three
//! [`Lane`]s say where a task runs: `Io` for futures on the caller's tokio runtime, `Cpu` for closures on a
//! rayon pool of its own, `Blocking` for closures that wait in the kernel. Four levels of [`Priority`] say
//! which task is next; within a level tasks with a deadline go by that, the others in the order in which
//! they came. A level that waits too long gets at least one in sixteen starts, and no more.
//!
//! ```
//! use std::time::Duration;
//! use scheduler::{Priority, Scheduler, TaskError};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scheduler = Scheduler::builder().cpu_threads(2).build()?;
//!
//! // A closure on the rayon pool, ahead of everything less important.
//! let sum = scheduler.cpu("sum", |_| (1..=10_u64).sum::<u64>()).priority(Priority::High).submit()?;
//! assert_eq!(sum.await, Ok(55));
//!
//! // A future with a limit to its time.
//! let slow = scheduler.io("slow", std::future::pending::<()>()).timeout(Duration::from_millis(5));
//! assert_eq!(slow.submit()?.await, Err(TaskError::TimedOut));
//!
//! // One task after another.
//! let first = scheduler.cpu("first", |_| 1).submit()?;
//! let second = scheduler.cpu("second", |_| 2).after(&[first.id()]).submit()?;
//! assert_eq!(second.await, Ok(2));
//!
//! let report = scheduler.drain(Duration::from_secs(10)).await;
//! assert!(report.is_complete());
//! # Ok(())
//! # }
//! ```
//!
//! # What ends, and how
//!
//! A submission is refused, and gives the task back, or the task is taken and ends in exactly one way:
//! with its value or with one [`TaskError`]. That holds for panics, time-outs, cancellation, shedding, a
//! runtime that is shut down under the scheduler, and the drop of the scheduler itself.
//!
//! # When it does not pay
//!
//! A task of less than about 5 us costs more to schedule than to run, here as in rayon and tokio: put
//! several into one. A program that is never overloaded needs no order. Order decides who *starts* next;
//! it takes no worker from a task that runs. Long closures can let others in at
//! [`checkpoint`](TaskContext::checkpoint)s, and threads kept for a level start beside them.

#![forbid(unsafe_code)]

mod admission;
mod batch;
mod cell;
mod dispatch;
#[cfg(any(feature = "durable-redis", feature = "durable-postgres"))]
mod durable;
mod group;
mod handle;
mod lane;
#[cfg(feature = "tower")]
mod layer;
mod limits;
mod memory_gate;
mod nice;
mod queue;
mod retry;
mod rules;
mod scheduler;
mod stats;
mod submission;
mod sync;
mod task;
mod timer;
mod watchdog;
mod work;

pub use admission::{CoDel, CoDelSettings, Order, WhenFull};
#[cfg(any(feature = "durable-redis", feature = "durable-postgres"))]
pub use durable::{DurableError, DurableQueue, DurableSettings, Job};
pub use group::TaskGroup;
pub use handle::TaskHandle;
pub use lane::Lane;
#[cfg(feature = "tower")]
pub use layer::{RequestPriority, Scheduled, ScheduledCall, ScheduledError, SchedulerLayer};
pub use limits::{LimitChange, LimitReason, LimitRule, LimitSettings, MovingLimit};
pub use memory_gate::{
    Entry, Estimates, MemoryGate, MemoryGateStats, PASSES, PATIENCE, TooLarge, Waiting,
};
pub use nice::{NICE_MAX, NiceError, nice, set_nice, thread_cpu_time};
pub use retry::{
    AfterFailure, Always, Backoff, GiveUp, RETRIES_MAX, Retry, RetryBudget, RetryIf, When,
};
pub use rules::SchedulerEvent;
pub use scheduler::{BuildError, DrainReport, Problem, Scheduler, SchedulerBuilder, TaskInfo};
pub use stats::{Counts, Histogram, LaneStats, LevelStats, SchedulerStats, TypeStats};
pub use submission::{Submission, thread_submissions};
pub use task::{Priority, Refusal, ShedReason, SubmitError, TaskError, TaskId, TaskState};
pub use watchdog::{
    HeldTooLong, HoldLimits, LaneFigures, LaneHealth, RunningTask, Watchdog, health,
};
pub use work::{Closure, Once, RetriedClosure, RetriedFuture, Stop, TaskContext, Work};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
