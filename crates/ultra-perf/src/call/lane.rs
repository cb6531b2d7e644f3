//! Bodies that run as tasks of the scheduler.

use std::future::Future;

use scheduler::{Priority, Submission, Work};

use super::{Call, TaskError, TaskErrorKind};
use crate::UltraPerf;

/// How a lane takes a task.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Its level.
    pub priority: Priority,
    /// How much memory it declares to need.
    pub memory_bytes: u64,
}

/// Runs a future on the lane `Io`.
///
/// # Errors
///
/// [`TaskError`] where the lane did not run it to its end.
///
/// # Cancel safety
///
/// Dropped, it cancels the task.
pub async fn on_io<F>(
    perf: &UltraPerf,
    call: Call,
    terms: Terms,
    body: F,
) -> Result<F::Output, TaskError>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    #[cfg(feature = "memory")]
    let body = perf.future_with_peak(call.label(), terms.memory_bytes, body);
    run(perf.scheduler().io(call.label(), body), call, terms).await
}

/// Runs a closure on the lane `Cpu`; otherwise as [`on_io`].
///
/// # Errors
///
/// As [`on_io`].
///
/// # Cancel safety
///
/// As [`on_io`]; a closure that has begun runs to its end, and what it returns is dropped.
pub async fn on_cpu<F, R>(
    perf: &UltraPerf,
    call: Call,
    terms: Terms,
    body: F,
) -> Result<R, TaskError>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    #[cfg(feature = "memory")]
    let body = perf.with_peak(call.label(), terms.memory_bytes, body);
    run(perf.scheduler().cpu(call.label(), |_| body()), call, terms).await
}

/// Runs a closure on the lane `Cpu` in a scope that gives memory back at its end; otherwise as [`on_cpu`].
///
/// # Errors
///
/// As [`on_io`].
///
/// # Cancel safety
///
/// As [`on_cpu`].
#[cfg(feature = "memory")]
pub async fn on_cpu_in_scope<F, R>(
    perf: &UltraPerf,
    call: Call,
    terms: Terms,
    body: F,
) -> Result<R, TaskError>
where
    F: FnOnce() -> R + Send + 'static,
    R: Send + 'static,
{
    let own = perf.clone();
    on_cpu(perf, call, terms, move || own.memory_scope(call.label()).run_sync(body).0).await
}

async fn run<W: Work>(
    task: Submission<W>,
    call: Call,
    terms: Terms,
) -> Result<W::Output, TaskError> {
    let function = call.label();
    let task = task.priority(terms.priority).memory_bytes(terms.memory_bytes);
    let submitted = task.submit();
    let handle =
        submitted.map_err(|error| TaskErrorKind::Refused { function, source: error.refusal() })?;
    let ended = handle.abort_on_drop(true).await;
    ended.map_err(|error| {
        let kind = match error {
            scheduler::TaskError::Panicked(message) => {
                TaskErrorKind::Panicked { function, message }
            }
            shed @ scheduler::TaskError::Shed { .. } => {
                TaskErrorKind::Shed { function, source: shed }
            }
            _ => TaskErrorKind::Cancelled { function },
        };
        kind.into()
    })
}
