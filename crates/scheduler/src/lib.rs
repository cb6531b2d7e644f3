//! Order ahead of tokio and rayon: priorities that hold under overload, with bounds and figures.

#![forbid(unsafe_code)]

mod admission;
mod cell;
mod dispatch;
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
pub use submission::Submission;
pub use task::{Priority, Refusal, ShedReason, SubmitError, TaskError, TaskId, TaskState};
pub use watchdog::{
    HeldTooLong, HoldLimits, LaneFigures, LaneHealth, RunningTask, Watchdog, health,
};
pub use work::{Closure, Once, RetriedClosure, RetriedFuture, Stop, TaskContext, Work};
