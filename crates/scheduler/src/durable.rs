//! Jobs that outlive the process: a queue in Redis or Postgres, worked on by any number of machines.
//!
//! A closure cannot leave its process, so durable work is a [`Job`]: a name and data that serde can
//! write. [`DurableQueue`] keeps jobs in a store through `apalis` and hands each to some worker. A worker
//! that dies stops its heartbeats; after [`missed_heartbeats`](DurableSettings::missed_heartbeats) of them
//! the others put its jobs back and one of them runs them again. So a job runs **at least once**, and may
//! run twice: its handler has to bear that, for instance by doing what is done under a key of the job.
//! [`Job::idempotency_key`] keeps the same job from being *queued* twice within a time; it does not make
//! its effects happen once.
//!
//! How many jobs a worker runs at once is [`concurrency`](DurableSettings::concurrency). In Redis it also
//! bounds what a worker fetches ahead, which nobody else can run while it lives; in Postgres a worker
//! fetches a job when it can run it.
//!
//! Order between priorities is a matter of one process; durable queues are first in, first out. A handler
//! that has heavy work to do submits it to a [`Scheduler`](crate::Scheduler) and awaits the handle.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use apalis_core::error::{BoxDynError, WorkerError};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "durable-postgres")]
mod postgres;
#[cfg(feature = "durable-redis")]
mod redis;

/// Work that can be written down: data, and the name of the queue that it goes through.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + Unpin + 'static {
    /// Names the queue; all machines that share it use the same name and the same data.
    const NAME: &'static str;

    /// Returns a key under which this job counts as queued already; none unless told.
    fn idempotency_key(&self) -> Option<String> {
        None
    }
}

/// How a durable queue is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableSettings {
    /// Jobs that one worker runs at once; at least 1.
    pub concurrency: usize,
    /// How often a worker says that it lives; at least 100 ms.
    pub heartbeat: Duration,
    /// After how many missed heartbeats its jobs go to others; at least 1.
    ///
    /// The store counts whole seconds, so the least time until then is about a second.
    pub missed_heartbeats: usize,
    /// How long an idempotency key is remembered; at least 1 s.
    pub idempotency_ttl: Duration,
}

impl Default for DurableSettings {
    /// Four at once, a heartbeat each 10 s of which three may be missed, keys for a day.
    fn default() -> Self {
        Self {
            concurrency: 4,
            heartbeat: Duration::from_secs(10),
            missed_heartbeats: 3,
            idempotency_ttl: Duration::from_secs(24 * 3_600),
        }
    }
}

/// Why a durable queue could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// The settings cannot be used; each problem is a line.
    #[error("invalid durable queue {queue:?}:{problems}")]
    Invalid {
        /// The queue.
        queue: &'static str,
        /// The problems, each on a line of its own.
        problems: String,
    },
    /// The store could not be reached, or refused.
    #[error("the store of queue {queue:?} failed")]
    Store {
        /// The queue.
        queue: &'static str,
        /// What it said.
        #[source]
        source: BoxDynError,
    },
}

/// A queue of jobs in Redis or Postgres; clones share its connections.
pub struct DurableQueue<J: Job> {
    store: Store<J>,
    settings: DurableSettings,
}

/// Where the jobs are.
enum Store<J: Job> {
    #[cfg(feature = "durable-redis")]
    Redis(redis::Store<J>),
    #[cfg(feature = "durable-postgres")]
    Postgres(postgres::Store<J>),
}

impl<J: Job> DurableQueue<J> {
    /// Connects to a Redis server, such as `redis://127.0.0.1/`.
    ///
    /// # Errors
    ///
    /// [`DurableError::Invalid`] with every problem of the settings, [`DurableError::Store`] if the
    /// server cannot be reached.
    #[cfg(feature = "durable-redis")]
    pub async fn connect(url: &str, settings: DurableSettings) -> Result<Self, DurableError> {
        check(J::NAME, &settings)?;
        let store = redis::Store::connect(url, &settings).await.map_err(store_failed::<J>)?;
        Ok(Self { store: Store::Redis(store), settings })
    }

    /// Connects to a Postgres server, such as `postgres://user@127.0.0.1/database`, and sets its tables up.
    ///
    /// The tables are in the schema `apalis`, which queues of all names share; setting them up again
    /// changes nothing. The role has to be allowed to create a schema and the extension `hstore`. The
    /// connection is not encrypted. Jobs that have ended are removed after
    /// [`idempotency_ttl`](DurableSettings::idempotency_ttl), by any worker of the queue.
    ///
    /// # Errors
    ///
    /// [`DurableError::Invalid`] with every problem of the settings, [`DurableError::Store`] if the
    /// server cannot be reached or refuses to set the tables up.
    ///
    /// # Cost
    ///
    /// A job costs one query to queue (two with a key) and two to run. A worker that has nothing to do
    /// asks every 200 ms. A queue and its clones have four connections at most.
    #[cfg(feature = "durable-postgres")]
    pub async fn connect_postgres(
        url: &str,
        settings: DurableSettings,
    ) -> Result<Self, DurableError> {
        check(J::NAME, &settings)?;
        let store = postgres::Store::connect(url, &settings).await.map_err(store_failed::<J>)?;
        Ok(Self { store: Store::Postgres(store), settings })
    }

    /// Queues a job; it is in the store when this returns.
    ///
    /// # Errors
    ///
    /// [`DurableError::Store`]; then the job may be in the store or not.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, the job may be in the store or not.
    pub async fn push(&self, job: J) -> Result<(), DurableError> {
        let pushed = match &self.store {
            #[cfg(feature = "durable-redis")]
            Store::Redis(store) => store.push(job).await,
            #[cfg(feature = "durable-postgres")]
            Store::Postgres(store) => store.push(job).await,
        };
        pushed.map_err(store_failed::<J>)
    }

    /// Runs jobs under the name of a worker until `stop` is ready and those that run have ended.
    ///
    /// A job whose handler returns an error is queued again after a wait that grows, 25 times at most. Two
    /// living workers must not have the same name.
    ///
    /// # Errors
    ///
    /// [`DurableError::Store`] if the store fails; start it again then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the jobs that it runs are those of a worker that died: they run again elsewhere.
    pub async fn work<F, Fut, E>(
        &self,
        worker: &str,
        run: F,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DurableError>
    where
        F: Fn(J) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxDynError> + Send + 'static,
    {
        let ended = match &self.store {
            #[cfg(feature = "durable-redis")]
            Store::Redis(store) => store.work(worker, run, stop).await,
            #[cfg(feature = "durable-postgres")]
            Store::Postgres(store) => store.work(worker, run, stop).await,
        };
        ended.map_err(store_failed::<J>)
    }
}

/// The error of a handler, as the store writes it down.
#[derive(Debug, thiserror::Error)]
#[error("the job failed: {0}")]
struct JobFailed(BoxDynError);

impl<J: Job> Clone for DurableQueue<J> {
    fn clone(&self) -> Self {
        let store = match &self.store {
            #[cfg(feature = "durable-redis")]
            Store::Redis(store) => Store::Redis(store.clone()),
            #[cfg(feature = "durable-postgres")]
            Store::Postgres(store) => Store::Postgres(store.clone()),
        };
        Self { store, settings: self.settings }
    }
}

impl<J: Job> fmt::Debug for DurableQueue<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableQueue")
            .field("name", &J::NAME)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The job as the stores take it.
fn task<J: Job>(job: J) -> Task<J> {
    let key = job.idempotency_key();
    let task = TaskBuilder::new(job);
    match key {
        Some(key) => task.idempotency_key(key).build(),
        None => task.build(),
    }
}

/// A worker of a store that runs until its signal.
type Running = Pin<Box<dyn Future<Output = Result<(), WorkerError>> + Send>>;

/// A signal to stop, as the workers take it.
async fn signal(stop: impl Future<Output = ()>) -> std::io::Result<()> {
    stop.await;
    Ok(())
}

fn store_failed<J: Job>(source: BoxDynError) -> DurableError {
    DurableError::Store { queue: J::NAME, source }
}

fn check(queue: &'static str, settings: &DurableSettings) -> Result<(), DurableError> {
    let DurableSettings { concurrency, heartbeat, missed_heartbeats, idempotency_ttl } = settings;
    let mut problems = String::new();
    let mut check = |holds: bool, setting: &str, value: &dyn fmt::Debug, expected: &str| {
        if !holds {
            problems += &format!("\n  {setting} = {value:?}: {expected}");
        }
    };
    check(!queue.is_empty(), "name", &queue, "must not be empty");
    check(*concurrency > 0, "concurrency", concurrency, "must be at least 1");
    let least = Duration::from_millis(100);
    check(*heartbeat >= least, "heartbeat", heartbeat, "must be at least 100 ms");
    check(*missed_heartbeats > 0, "missed_heartbeats", missed_heartbeats, "must be at least 1");
    let second = Duration::from_secs(1);
    check(*idempotency_ttl >= second, "idempotency_ttl", idempotency_ttl, "must be at least 1 s");
    if problems.is_empty() { Ok(()) } else { Err(DurableError::Invalid { queue, problems }) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_the_settings_is_named_at_once() {
        let settings = DurableSettings {
            concurrency: 0,
            heartbeat: Duration::from_millis(1),
            missed_heartbeats: 0,
            idempotency_ttl: Duration::ZERO,
        };
        let error = check("", &settings).expect_err("nothing of it can be used");
        assert_eq!(
            error.to_string(),
            "invalid durable queue \"\":\n  \
             name = \"\": must not be empty\n  \
             concurrency = 0: must be at least 1\n  \
             heartbeat = 1ms: must be at least 100 ms\n  \
             missed_heartbeats = 0: must be at least 1\n  \
             idempotency_ttl = 0ns: must be at least 1 s"
        );
        assert!(check("mail", &DurableSettings::default()).is_ok());
    }
}
