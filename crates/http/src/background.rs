//! The accelerator's own work, in the order of the scheduler.
//!
//! Refreshing stale answers is `Low` on the lane of futures and purging is `High`; what the cache seals
//! for Redis is `Low` on the lane of what computes, and what it opens for a request `High`. Requests of
//! clients are not scheduled: they run as they come, and a refresh must not stand in their way. So few
//! refreshes run at a time, each says how much memory it will take, and one that cannot start at once
//! is left to a later request, which finds the answer as stale as this one did.
//!
//! Under memory pressure the handle halves the budget of what is in the background, and at the critical
//! level nothing new begins.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use ultra_perf::scheduler::{Priority, Scheduler, TaskError};

/// Refreshes that may run at once; more are left to later requests.
const REFRESHES_MAX: usize = 64;
/// A refresh that waits for this long, such as for memory, is given up: it keeps others from asking.
const REFRESH_WAIT: Duration = Duration::from_millis(100);

/// The accelerator's own work; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Background {
    scheduler: Scheduler,
    refreshes: Arc<Semaphore>,
    /// Ends refreshes: the scheduler is not the accelerator's alone.
    stopped: Arc<watch::Sender<bool>>,
    task_timeout: Duration,
}

/// Why work in the background was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotDone {
    #[error("the work was refused: {0}")]
    Refused(String),
    #[error("the work was not done: {0}")]
    Ended(TaskError),
}

impl Background {
    pub(crate) fn new(scheduler: Scheduler, task_timeout: Duration) -> Self {
        Self {
            scheduler,
            refreshes: Arc::new(Semaphore::new(REFRESHES_MAX)),
            stopped: Arc::new(watch::Sender::new(false)),
            task_timeout,
        }
    }

    /// Takes the place of a refresh, if there is one left.
    pub(crate) fn refresh_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.refreshes).try_acquire_owned().ok()
    }

    /// Runs a refresh that is about to take so many bytes, or drops it if it cannot start soon.
    pub(crate) fn refresh(
        &self,
        place: OwnedSemaphorePermit,
        bytes: u64,
        refresh: BoxFuture<'static, ()>,
    ) {
        let mut stopped = self.stopped.subscribe();
        let future = async move {
            tokio::select! {
                // An error would mean that the accelerator itself is gone.
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = refresh => {}
            }
            drop(place);
        };
        let task = self
            .scheduler
            .io("refresh", future)
            .priority(Priority::Low)
            .memory_bytes(bytes)
            .queue_timeout(REFRESH_WAIT)
            .timeout(self.task_timeout);
        // Refused, it is dropped, and with it the lead that others would wait for.
        drop(task.spawn());
    }

    /// Runs work that an operator waits for, ahead of all that is in the background.
    ///
    /// It goes on if the caller goes away: half a purge is worse than one that nobody hears of.
    pub(crate) async fn urgently<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NotDone> {
        let task = self.scheduler.io(name, work).priority(Priority::High).submit();
        let handle = task.map_err(|error| NotDone::Refused(error.to_string()))?;
        handle.abort_on_drop(false).await.map_err(NotDone::Ended)
    }

    /// Takes no further refreshes, and ends those that run.
    pub(crate) fn stop_refreshes(&self) {
        self.refreshes.close();
        self.stopped.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn background() -> Background {
        let scheduler = Scheduler::builder().memory_budget_bytes(1_000).build();
        Background::new(scheduler.expect("valid settings"), Duration::from_secs(30))
    }

    #[tokio::test]
    async fn only_so_many_refreshes_run_and_a_purge_waits_for_none_of_them() {
        let background = background();
        for _ in 0..REFRESHES_MAX {
            let place = background.refresh_place().expect("a place");
            background.refresh(place, 1, Box::pin(std::future::pending()));
        }
        assert!(background.refresh_place().is_none());
        assert_eq!(background.urgently("purge", async { 7 }).await, Ok(7));
        background.stop_refreshes();
        assert_eq!(background.scheduler.drain(Duration::from_secs(30)).await.stopped, []);
        assert!(background.refresh_place().is_none(), "none is taken any more");
    }

    #[tokio::test]
    async fn a_refresh_that_finds_no_memory_is_left_to_a_later_request() {
        let background = background();
        background.scheduler.set_memory_scale(0.0);
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let place = background.refresh_place().expect("a place");
        background.refresh(place, 10, Box::pin(async move { _ = tell.send(()) }));
        assert!(told.await.is_err(), "it was dropped unrun");
        background.scheduler.set_memory_scale(1.0);
        let (tell, told) = tokio::sync::oneshot::channel();
        let place = background.refresh_place().expect("its place is free again");
        background.refresh(place, 10, Box::pin(async move { _ = tell.send(()) }));
        assert_eq!(told.await, Ok(()));
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_taken() {
        let background = background();
        background.scheduler.drain(Duration::ZERO).await;
        assert!(matches!(background.urgently("purge", async {}).await, Err(NotDone::Refused(_))));
    }
}
