//! Acting on advice: a task that watches the load, and those who change the number of backends.
//!
//! A [`Scaler`] says how many backends there should be; an [`Actuator`] makes it so. [`ScaleTask`] joins
//! them: it looks at the balancer at an interval and hands each advice on. It does one thing at a time, so
//! an actuator never has two advices at once, and nothing is looked at while it acts. Every advice and
//! every failure is an event of the balancer; a failure is not repeated here, since the next advice,
//! after the cooldown of the scaler, says what is needed then.

mod pool;
#[cfg(feature = "webhook")]
mod webhook;

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

pub use self::pool::{ChildWorker, TaskWorker, Worker, WorkerPool};
#[cfg(feature = "webhook")]
pub use self::webhook::{Webhook, WebhookError};
use crate::advice::{ScaleAdvice, Scaler, Scaling};
use crate::balancer::Balancer;
use crate::builder::BuildError;

/// Changes the number of backends when it is advised to.
///
/// [`WorkerPool`] starts and stops workers of this process; `Webhook` (feature `webhook`) asks somebody
/// else.
pub trait Actuator: Send + 'static {
    /// Makes the number of backends what the advice says, as far as it can.
    ///
    /// It is called with one advice at a time. It may be dropped before it has ended.
    ///
    /// # Errors
    ///
    /// [`ActuateError`]; what was done until then stays done.
    fn act(&mut self, advice: ScaleAdvice)
    -> impl Future<Output = Result<(), ActuateError>> + Send;
}

/// Why an advice was not acted upon, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActuateError {
    /// A worker did not start.
    #[error("worker {number} did not start: {source}")]
    Start {
        /// Its number, counted from one over the life of the pool.
        number: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A worker started, and its backend cannot be used.
    #[error("the backend of worker {number} cannot be used: {source}")]
    Backend {
        /// Its number, counted from one over the life of the pool.
        number: u64,
        /// Why.
        source: BuildError,
    },
    /// Nobody took the advice.
    #[error("gave up after attempt {attempts}: {last}")]
    Unanswered {
        /// How often it was tried.
        attempts: u32,
        /// What became of the last attempt.
        last: String,
    },
    /// Another actuator failed in its own way.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// Watches a balancer and lets an actuator act; both stop when this is dropped.
#[derive(Debug)]
#[must_use = "scaling stops when this is dropped"]
pub struct ScaleTask {
    task: JoinHandle<()>,
}

impl ScaleTask {
    /// Starts to look at the load of a balancer every `interval`, which is at least 10 ms.
    ///
    /// [`Change::ScaleAdvised`](crate::Change::ScaleAdvised) tells every advice and
    /// [`Change::ScaleFailed`](crate::Change::ScaleFailed) those that were not acted upon.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(
        balancer: &Balancer,
        scaling: Scaling,
        interval: Duration,
        mut actuator: impl Actuator,
    ) -> Self {
        let balancer = balancer.clone();
        let interval = interval.max(Duration::from_millis(10));
        let task = tokio::spawn(async move {
            let mut scaler = Scaler::new(scaling);
            loop {
                let now = Instant::now().into_std();
                if let Some(advice) = scaler.observe(&balancer.stats(), now) {
                    balancer.scale_advised(advice);
                    if let Err(error) = actuator.act(advice).await {
                        balancer.scale_failed(error.to_string());
                    }
                }
                sleep(interval).await;
            }
        });
        Self { task }
    }
}

impl Drop for ScaleTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::advice::ScaleReason;
    use crate::backend::Backend;
    use crate::event::Change;
    use crate::pick::Pick;

    /// Notes the advices and fails each of them.
    struct Notes(mpsc::Sender<ScaleAdvice>);

    impl Actuator for Notes {
        async fn act(&mut self, advice: ScaleAdvice) -> Result<(), ActuateError> {
            self.0.send(advice).await.expect("the test listens");
            Err(ActuateError::Other("there are no machines left".into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_advice_is_handed_on_and_told_and_the_end_of_the_task_ends_the_actuator() {
        let balancer = Balancer::builder().backend(Backend::new("a").max_in_flight(10)).build();
        let balancer = balancer.expect("a valid set");
        let mut events = balancer.events();
        let _busy: Vec<_> = (0..9).map(|_| balancer.try_acquire(&Pick::new())).collect();
        let (notes, mut noted) = mpsc::channel(1);
        let second = Duration::from_secs(1);
        let task = ScaleTask::start(&balancer, Scaling::default(), second, Notes(notes));
        let advice = noted.recv().await.expect("it is too busy");
        assert_eq!((advice.desired, advice.current), (2, 1));
        assert!(matches!(advice.reason, ScaleReason::Busy { .. }));
        assert_eq!(events.next().await.map(|it| it.change), Some(Change::ScaleAdvised { advice }));
        let failed = events.next().await.expect("it lives").to_string();
        assert_eq!(failed, "scaling failed: there are no machines left");
        // After the cooldown it is said again.
        assert_eq!(noted.recv().await.map(|advice| advice.desired), Some(2));
        drop(task);
        assert_eq!(noted.recv().await, None);
    }
}
