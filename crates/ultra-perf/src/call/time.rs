//! The time limit of a call.

use std::future::Future;
use std::time::Duration;

use super::{Call, TaskError, TaskErrorKind};

/// Ends a call that takes longer than its limit, by dropping it.
///
/// # Errors
///
/// [`TaskErrorKind::TimedOut`].
pub async fn limited<R, F>(call: Call, limit: Duration, run: F) -> Result<R, TaskError>
where
    F: Future<Output = Result<R, TaskError>>,
{
    match tokio::time::timeout(limit, run).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(TaskErrorKind::TimedOut { function: call.site.identity.label(), limit }.into())
        }
    }
}
