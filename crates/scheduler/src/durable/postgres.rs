//! The durable queue in Postgres: jobs in the table `apalis.jobs` of `apalis-postgres`.
//!
//! A worker takes the next job with `FOR UPDATE SKIP LOCKED`, so two never take the same one, and writes
//! its name at the job. Each heartbeat also puts back the jobs of workers that were not seen for too long.
//! Four things are added to what the crate does:
//!
//! - **A name of its own for each run of a worker.** A job belongs to a name. Were a worker that died
//!   started again under its old name, its heartbeats would keep the jobs of the dead one from everybody.
//! - **One job a fetch.** With more, heartbeats and results would wait until the last one fetched has
//!   begun, behind jobs that may take hours, and others could not run what waits there.
//! - **A wait between attempts**, twice as long each time, and **a steady poll** by which a worker sees
//!   new jobs before its next heartbeat.
//! - **An end to what is kept**: keys, jobs that have ended and workers that are gone.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use apalis_core::backend::{TaskSink as _, TaskSinkError};
use apalis_core::error::BoxDynError;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_postgres::{Config, PostgresStorage};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use tokio::time::MissedTickBehavior;
use tower::limit::ConcurrencyLimitLayer;

use super::{DurableSettings, Job, JobFailed, Running, signal, task};

/// Connections that a queue and its clones have at most.
const CONNECTIONS: u32 = 4;
/// How long a call waits for a connection before it is an error.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// How often an idle worker looks for jobs.
const POLL: Duration = Duration::from_millis(200);
/// The time between two removals of what is kept no longer.
const SWEEP: Duration = Duration::from_secs(60);
/// The least time without heartbeats: the store counts whole seconds, and none would take jobs from the living.
const DEAD_AFTER_LEAST: Duration = Duration::from_secs(1);

/// The index whose violation says that a job with the same key is known.
const KEY_INDEX: &str = "idx_jobs_idempotency_key";

const FORGET_KEY: &str = "UPDATE apalis.jobs SET idempotency_key = NULL \
     WHERE job_type = $1 AND idempotency_key = $2 AND run_at <= now() - make_interval(secs => $3)";

/// The attempt that fails now is not counted yet: the first wait is a second, the longest five minutes.
const PUT_OFF: &str = "UPDATE apalis.jobs \
     SET run_at = now() + make_interval(secs => least(power(2, least(attempts, 16)), 300)) \
     WHERE id = $1 AND lock_by = $2";

const RELEASE: &str = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL \
     WHERE lock_by = $1 AND status IN ('Queued', 'Running')";

const REMOVE_ENDED: &str = "DELETE FROM apalis.jobs WHERE id IN (SELECT id FROM apalis.jobs \
     WHERE job_type = $1 AND done_at <= now() - make_interval(secs => $2) \
     AND (status IN ('Done', 'Killed') OR (status = 'Failed' AND attempts >= max_attempts)) \
     LIMIT 10000 FOR UPDATE SKIP LOCKED)";

const REMOVE_WORKERS: &str = "DELETE FROM apalis.workers AS gone WHERE gone.worker_type = $1 \
     AND gone.last_seen <= now() - make_interval(secs => $2) \
     AND NOT EXISTS (SELECT FROM apalis.jobs WHERE lock_by = gone.id)";

/// A queue in Postgres; clones share its connections.
pub(super) struct Store<J: Job> {
    pool: PgPool,
    config: Config,
    settings: DurableSettings,
    job: PhantomData<fn() -> J>,
}

impl<J: Job> Store<J> {
    /// Connects and brings the tables up to date; the settings have been checked.
    pub(super) async fn connect(
        url: &str,
        settings: &DurableSettings,
    ) -> Result<Self, BoxDynError> {
        let options: PgConnectOptions = url.parse()?;
        // A pool would ask a server that refuses again and again until its time is over.
        PgConnection::connect_with(&options).await?.close().await?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECTION_WAIT)
            .connect_with(options)
            .await?;
        PostgresStorage::setup(&pool).await?;
        let config = Config::default()
            .queue(J::NAME)
            .batch_size(1)
            .heartbeat_interval(settings.heartbeat)
            .missed_heartbeats(missed_heartbeats(settings))
            .lock_tasks(false);
        Ok(Self { pool, config, settings: *settings, job: PhantomData })
    }

    fn storage(&self) -> PostgresStorage<J> {
        PostgresStorage::new(&self.pool).with_config(self.config.clone())
    }

    /// Queues a job, unless one with its key is known.
    pub(super) async fn push(&self, job: J) -> Result<(), BoxDynError> {
        if let Some(key) = job.idempotency_key() {
            let ttl = self.settings.idempotency_ttl.as_secs_f64();
            let forget = sqlx::query(FORGET_KEY).bind(J::NAME).bind(key).bind(ttl);
            forget.execute(&self.pool).await?;
        }
        match self.storage().push_task(task(job)).await {
            Err(TaskSinkError::PushError(apalis_postgres::Error::Database(error)))
                if is_known(&error) =>
            {
                Ok(())
            }
            pushed => Ok(pushed?),
        }
    }

    /// Runs jobs until `stop` is ready and those that run have ended.
    pub(super) async fn work<F, Fut, E>(
        &self,
        worker: &str,
        run: F,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), BoxDynError>
    where
        F: Fn(J) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxDynError> + Send + 'static,
    {
        let name = format!("{worker}-{:016x}", fastrand::u64(..));
        let handler = {
            let (pool, name) = (self.pool.clone(), name.clone());
            move |job: J, id: TaskId| {
                let (ends, pool, name) = (run(job), pool.clone(), name.clone());
                async move {
                    let Err(error) = ends.await else { return Ok(()) };
                    // Without it the next attempt follows at once, which is no reason to end the worker.
                    let put_off = sqlx::query(PUT_OFF).bind(id.to_string()).bind(name);
                    let _ = put_off.execute(&pool).await;
                    Err(JobFailed(error.into()))
                }
            }
        };
        let built = WorkerBuilder::new(name.as_str())
            .backend(self.storage())
            .layer(ConcurrencyLimitLayer::new(self.settings.concurrency))
            .build(handler);
        let mut running: Running = Box::pin(built.run_until(signal(stop)));
        // Both are one task: each tick of the second makes the first look for jobs.
        let ended = tokio::select! {
            ended = &mut running => ended,
            never = self.tend() => match never {},
        };
        drop(running);
        // What was fetched in the last moment; if this fails the missing heartbeats tell the others.
        let _ = sqlx::query(RELEASE).bind(&name).execute(&self.pool).await;
        Ok(ended?)
    }

    /// Ticks at the rate of the poll, and now and then removes what is kept no longer.
    async fn tend(&self) -> Infallible {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP.min(self.settings.idempotency_ttl));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = poll.tick() => {}
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    /// Removes jobs that ended, and workers that were not seen, for as long as keys are remembered.
    ///
    /// A failure is left to the next time; a store that is down ends the worker by its heartbeat.
    async fn sweep(&self) {
        let ttl = self.settings.idempotency_ttl;
        let ended = sqlx::query(REMOVE_ENDED).bind(J::NAME).bind(ttl.as_secs_f64());
        let _ = ended.execute(&self.pool).await;
        let gone = ttl.max(self.config.orphaned_duration() * 10);
        let gone = sqlx::query(REMOVE_WORKERS).bind(J::NAME).bind(gone.as_secs_f64());
        let _ = gone.execute(&self.pool).await;
    }
}

impl<J: Job> Clone for Store<J> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            config: self.config.clone(),
            settings: self.settings,
            job: PhantomData,
        }
    }
}

/// Whether an insertion failed because a job with the same key is there.
fn is_known(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|e| e.is_unique_violation() && e.constraint() == Some(KEY_INDEX))
}

/// The heartbeats that may be missed, so many that they take the least time at least.
fn missed_heartbeats(settings: &DurableSettings) -> usize {
    let least = DEAD_AFTER_LEAST.as_nanos().div_ceil(settings.heartbeat.as_nanos().max(1));
    settings.missed_heartbeats.max(usize::try_from(least).unwrap_or(usize::MAX))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_dead_after_a_second_at_the_earliest() {
        let settings = |millis, missed_heartbeats| DurableSettings {
            heartbeat: Duration::from_millis(millis),
            missed_heartbeats,
            ..DurableSettings::default()
        };
        assert_eq!(missed_heartbeats(&settings(100, 1)), 10);
        assert_eq!(missed_heartbeats(&settings(300, 2)), 4);
        assert_eq!(missed_heartbeats(&settings(500, 3)), 3);
        assert_eq!(missed_heartbeats(&settings(10_000, 3)), 3);
    }
}
