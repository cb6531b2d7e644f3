//! The time limit of a call, and how what runs within it hears of it.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::{Call, TaskError, TaskErrorKind};

#[cfg(feature = "resilience")]
tokio::task_local! {
    /// When the call ends by its limit, or one around it by its own.
    static ENDS: Instant;
}

/// Returns when the call that is under way is ended from outside, if that is known.
#[cfg(feature = "resilience")]
pub(super) fn ends() -> Option<Instant> {
    ENDS.try_with(|ends| *ends).ok()
}

/// Ends a call that takes longer than its limit, by dropping it.
///
/// # Errors
///
/// [`TaskErrorKind::TimedOut`].
pub async fn limited<R, F>(call: Call, limit: Duration, run: F) -> Result<R, TaskError>
where
    F: Future<Output = Result<R, TaskError>>,
{
    // A limit that the clock cannot tell is none.
    let Some(end) = Instant::now().checked_add(limit) else { return run.await };
    #[cfg(feature = "resilience")]
    let run = ENDS.scope(ends().map_or(end, |outer| outer.min(end)), run);
    match tokio::time::timeout_at(end, run).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(TaskErrorKind::TimedOut { function: call.site.identity.label(), limit }.into())
        }
    }
}
