//! Order ahead of tokio and rayon: priorities that hold under overload, with bounds and figures.

#![forbid(unsafe_code)]

mod admission;
mod lane;
mod limits;
mod memory_gate;
mod nice;
mod retry;
mod task;
mod watchdog;

pub use admission::{CoDel, CoDelSettings, Order, WhenFull};
pub use lane::Lane;
pub use limits::{LimitChange, LimitReason, LimitRule, LimitSettings, MovingLimit, Sample};
pub use memory_gate::{
    Entry, Estimates, MemoryGate, MemoryGateStats, PASSES, PATIENCE, TooLarge, Waiting,
};
pub use nice::{NICE_MAX, NiceError, nice, set_nice, thread_cpu_time};
pub use retry::{
    AfterFailure, Always, Backoff, GiveUp, RETRIES_MAX, Retry, RetryBudget, RetryIf, When,
};
pub use task::{Priority, Refusal, ShedReason, SubmitError, TaskError, TaskId, TaskState};
pub use watchdog::{
    HeldTooLong, HoldLimits, LaneFigures, LaneHealth, RunningTask, Watchdog, health,
};
