//! Order ahead of tokio and rayon: priorities that hold under overload, with bounds and figures.

#![forbid(unsafe_code)]

mod lane;
mod task;

pub use lane::Lane;
pub use task::{Priority, Refusal, ShedReason, SubmitError, TaskError, TaskId, TaskState};
