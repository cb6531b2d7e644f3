//! The durable queue in Redis: jobs in lists, leases by the heartbeats of `apalis-redis`.
//!
//! The store itself forgets idempotency keys, puts the jobs of dead workers back and bounds what a worker
//! fetches ahead by the batch that it is configured with.

use std::future::Future;

use apalis_core::backend::TaskSink as _;
use apalis_core::error::BoxDynError;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_redis::{Config, ConnectionManager, RedisStorage};
use tower::limit::ConcurrencyLimitLayer;

use super::{DurableSettings, Job, JobFailed, Running, signal, task};

/// A queue in Redis; clones share its connection.
pub(super) struct Store<J: Job> {
    storage: RedisStorage<J>,
    concurrency: usize,
}

impl<J: Job> Store<J> {
    /// Connects; the settings have been checked.
    pub(super) async fn connect(
        url: &str,
        settings: &DurableSettings,
    ) -> Result<Self, BoxDynError> {
        let connection: ConnectionManager = apalis_redis::connect(url).await?;
        let config = Config::default()
            .queue(J::NAME)
            .batch_size(settings.concurrency)
            .heartbeat_interval(settings.heartbeat)
            .missed_heartbeats(settings.missed_heartbeats);
        // Without a time the store would give keys one of zero and forget them at once.
        let config = Config { idempotency_ttl: Some(settings.idempotency_ttl), ..config };
        let storage = RedisStorage::new(connection).with_config(config);
        Ok(Self { storage, concurrency: settings.concurrency })
    }

    /// Queues a job, unless one with its key is known.
    pub(super) async fn push(&self, job: J) -> Result<(), BoxDynError> {
        self.storage.clone().push_task(task(job)).await?;
        Ok(())
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
        let handler = move |job: J| {
            let ends = run(job);
            async move { ends.await.map_err(|error| JobFailed(error.into())) }
        };
        let worker = WorkerBuilder::new(worker)
            .backend(self.storage.clone())
            .layer(ConcurrencyLimitLayer::new(self.concurrency))
            .build(handler);
        let running: Running = Box::pin(worker.run_until(signal(stop)));
        Ok(running.await?)
    }
}

impl<J: Job> Clone for Store<J> {
    fn clone(&self) -> Self {
        Self { storage: self.storage.clone(), concurrency: self.concurrency }
    }
}
