//! Background jobs on a timer, each run a task of the scheduler.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use scheduler::{Priority, TaskError};
use tokio::time::MissedTickBehavior;

use crate::UltraPerf;
use crate::perf::FAR;

type Run = Arc<dyn Fn(UltraPerf) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is done again and again.
pub(crate) struct Job {
    name: &'static str,
    period: Duration,
    run: Run,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Job {
    pub(crate) fn new<F, Fut>(name: &'static str, period: Duration, run: F) -> Self
    where
        F: Fn(UltraPerf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        // A period of zero would never let go of its thread.
        let period = period.clamp(Duration::from_millis(1), FAR);
        Self { name, period, run: Arc::new(move |perf| Box::pin(run(perf))) }
    }
}

impl UltraPerf {
    /// Runs a job each time that the period is over, first after one period, until the shutdown.
    ///
    /// Each run is a task on the lane of futures with the priority `Low`, with `scheduler.task_timeout` as
    /// its longest time. Runs of one job do not overlap: a run that takes longer than the period leaves out
    /// what it misses. A run that fails, panics or is shed is logged and counted under the job's name, and
    /// the next one comes at its time. The job must not hold a handle itself; it is given one.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn every<F, Fut>(&self, name: &'static str, period: Duration, job: F)
    where
        F: Fn(UltraPerf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.begin(Job::new(name, period, job));
    }

    pub(crate) fn begin(&self, Job { name, period, run }: Job) {
        let weak = self.downgrade();
        self.keep(tokio::spawn(async move {
            let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                timer.tick().await;
                let Some(perf) = weak.upgrade() else { return };
                let limit = perf.config().scheduler.task_timeout;
                let task = perf.scheduler().io(name, run(perf.clone()));
                let task = task.priority(Priority::Low).timeout(limit).submit();
                drop(perf);
                let ended = match task {
                    Ok(handle) => handle.await.map_err(|error: TaskError| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = ended {
                    tracing::warn!(job = name, error, "a run of a job did not end well");
                }
            }
        }));
    }
}
