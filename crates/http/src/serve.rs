//! Puts the accelerator together as the configuration says, and runs it with its admin API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::ServiceExt as _;
use ultra_perf::cache_tiered::{BuildError, Publisher};
use ultra_perf::config::{ByteSize, Config};
use ultra_perf::memory::{GuardError, MemoryGuardBuilder, Registration, TooManyReclaimers};
use ultra_perf::monitor::Recorder;
use ultra_perf::scheduler::{self, Scheduler};
use ultra_perf::{CacheReclaimer, loadbalancer, resilience};

use crate::accelerator::Accelerator;
use crate::admin::{self, Admin};
use crate::backends::{Backends, BackendsError, IdleConnections};
use crate::background::Background;
use crate::proxy::{Parts, Running};
use crate::response_cache::ResponseCache;
use crate::rules::Policy;
use crate::server::{self, ConnInfo, ServerLimits};
use crate::stored::{StoredCodec, weigh};
use crate::upstream::InvalidUpstream;
use crate::watch::{self, Watched};

/// Names the cache of responses: its directory, its keys in Redis and its metrics.
const CACHE_NAME: &str = "responses";
/// Longest time for alerts that are on their way when the server stops; the rest is sent after the next start.
const MONITOR_DEADLINE: Duration = Duration::from_secs(3);

/// A running accelerator with its admin API.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use ultra_perf::config::ConfigLoader;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ConfigLoader::new().set("server.to", "http://127.0.0.1:8000", "the program").load()?;
/// let server = ultra_perf_http::Server::start(&config).await?;
/// println!("http://{}", server.proxy_addr());
/// server.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    proxy: server::Server,
    admin: server::Server,
    running: Running,
    /// Take the cache and the connections out of the guard's registry when the server goes.
    reclaimers: Vec<Registration>,
    watched: Arc<Watched>,
}

/// Why an accelerator did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration names no backend.
    #[error("server.to names no backend to make fast")]
    NoBackend,
    /// The backend's URL cannot be used.
    #[error("server.to cannot be used")]
    Backend(#[from] InvalidUpstream),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({path})")]
    Listen {
        /// The configuration's key.
        path: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The guard of the process's memory cannot be started.
    #[error("memory cannot be watched")]
    Memory(#[from] GuardError),
    /// The backends' settings do not go together.
    #[error("the balancer cannot be made")]
    Balancer(#[from] loadbalancer::BuildError),
    /// The settings of breakers, retries or hedges do not go together.
    #[error("the calls to the backends cannot be guarded")]
    Guard(#[from] resilience::BuildError),
    /// The system gives no random bytes for a key.
    #[error("no key can be drawn for balancer.sticky_cookie")]
    Key(#[source] std::io::Error),
    /// The scheduler's threads cannot be started.
    #[error("the scheduler cannot be started")]
    Scheduler(#[from] scheduler::BuildError),
    /// The guard has as many reclaimers as it takes.
    #[error("the response cache or the connections cannot be registered with the memory guard")]
    Reclaimer(#[from] TooManyReclaimers),
    /// What is watched cannot be.
    #[error("the monitor cannot be started")]
    Monitor(#[from] ultra_perf::MonitorError),
    /// The cache of responses cannot be opened.
    #[error("the response cache cannot be opened")]
    Cache(#[from] BuildError),
}

/// How a shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Requests that were cut off at the deadline.
    pub aborted: usize,
}

impl From<BackendsError> for StartError {
    fn from(error: BackendsError) -> Self {
        match error {
            BackendsError::Url(error) => Self::Backend(error),
            BackendsError::Balancer(error) => Self::Balancer(error),
            BackendsError::Guard(error) => Self::Guard(error),
            BackendsError::Random(error) => Self::Key(std::io::Error::other(error)),
        }
    }
}

impl Server {
    /// Opens the cache and starts to serve clients and the admin API.
    ///
    /// # Errors
    ///
    /// [`StartError`]. Neither the backend nor Redis needs to be there yet.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_with(config, |guard| guard).await
    }

    /// As [`start`](Self::start), with more said about the guard of the process's memory.
    ///
    /// A binary names its allocator here, which no library can know: `|guard| guard.allocator(..)`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start_with(
        config: &Config,
        guard: impl FnOnce(MemoryGuardBuilder) -> MemoryGuardBuilder,
    ) -> Result<Self, StartError> {
        if config.server.to.is_none() {
            return Err(StartError::NoBackend);
        }
        // Addresses first: a second instance must fail on them, and not on the cache's directory.
        let listener = listen("server.listen", config.server.listen).await?;
        let admin_listener = listen("server.admin", config.server.admin).await?;

        let backends = Backends::start(config)?;
        let scheduler = config.scheduler_builder().build()?;
        let store = match config.response_cache.enabled {
            true => Some(open_store(config, &scheduler).await?),
            false => None,
        };
        let memory =
            config.memory_guard_builder().map(|builder| guard(builder).start()).transpose()?;
        let background = Background::new(scheduler, config.scheduler.task_timeout);
        if let Some(guard) = &memory {
            background.follow(guard);
        }
        let mut reclaimers = Vec::new();
        if let Some(memory) = &memory {
            if let Some(store) = &store {
                reclaimers.push(memory.register(CacheReclaimer::new(store.cache.clone()))?);
            }
            reclaimers.push(memory.register(IdleConnections(backends.clone()))?);
        }
        let watched = Arc::new(Watched::start(config)?);
        let registry = watched.registry();
        let publisher = store.as_ref().map(|store| {
            let recorder = Recorder::new(registry);
            ::metrics::with_local_recorder(&recorder, || Publisher::new(store.cache.clone()))
        });
        let parts = Parts {
            backends: backends.clone(),
            store,
            background,
            coalesce_timeout: config.response_cache.coalesce_timeout,
            max_request_body_bytes: config.server.max_body.map_or(u64::MAX, ByteSize::as_u64),
            idle_timeout: config.server.idle_timeout,
            compress: config.server.compression,
            shown_memory: memory.clone().filter(|_| config.memory.header),
        };
        let accelerator = Accelerator::new(parts, registry);
        watch::watch(registry, &accelerator, publisher, memory.clone());
        let admin = admin::router(Arc::new(Admin {
            accelerator: accelerator.clone(),
            watched: Arc::clone(&watched),
            memory,
            policy: config.balancer.policy,
        }));

        let limits = ServerLimits {
            max_connections: config.server.max_connections,
            header_timeout: config.server.header_timeout,
            idle_timeout: config.server.idle_timeout,
            write_timeout: config.server.idle_timeout,
            max_head_bytes: config.server.max_header_bytes.as_usize(),
            ..ServerLimits::default()
        };
        let admin_limits = ServerLimits { max_connections: 64, ..ServerLimits::default() };
        let failed = |path, address| move |source| StartError::Listen { path, address, source };
        let proxy = server::Server::start(listener, accelerator.clone(), limits)
            .map_err(failed("server.listen", config.server.listen))?;
        let admin = move |request: Request<Incoming>, _: ConnInfo| {
            let router = admin.clone();
            async move {
                match router.oneshot(request.map(Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        };
        let admin = server::Server::start(admin_listener, admin, admin_limits)
            .map_err(failed("server.admin", config.server.admin))?;
        Ok(Self { proxy, admin, running: Running(accelerator), reclaimers, watched })
    }

    /// Returns the address on which clients are served.
    #[must_use]
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy.local_addr()
    }

    /// Returns the address of the admin API.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Stops accepting, lets requests end for at most `grace`, then writes the cache down.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the accelerator stopping; what memory alone held is lost then.
    pub async fn shutdown(mut self, grace: Duration) -> Stopped {
        self.reclaimers.clear();
        let drained = self.proxy.shutdown(grace).await;
        let Running(accelerator) = &self.running;
        accelerator.close().await;
        self.admin.shutdown(Duration::from_secs(1)).await;
        if let Some(store) = accelerator.store() {
            store.cache.close().await;
        }
        // The cache has had the last of its values sealed.
        accelerator.background().close().await;
        let watched = Arc::clone(&self.watched);
        // It writes to the disk. A thread that cannot be had leaves at most a second of history unwritten.
        let _ = tokio::task::spawn_blocking(move || watched.shutdown(MONITOR_DEADLINE)).await;
        Stopped { aborted: drained.aborted }
    }
}

async fn listen(path: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { path, address, source };
    TcpListener::bind(address).await.map_err(failed)
}

async fn open_store(config: &Config, scheduler: &Scheduler) -> Result<ResponseCache, StartError> {
    let settings = &config.response_cache;
    let window = |window: Duration| (!window.is_zero()).then_some(window);
    let policy = Arc::new(Policy {
        heuristic_fraction: if settings.heuristics { 0.1 } else { 0.0 },
        stale_while_revalidate: window(settings.stale_while_revalidate),
        stale_if_error: window(settings.stale_if_error),
        keep_for_revalidation: settings.keep,
        ..Policy::default()
    });
    let codec = StoredCodec { policy: Arc::clone(&policy) };
    let cache = config
        .cache_builder_with_codec(CACHE_NAME, codec)
        .bytes(config.cache.memory.capacity.as_u64(), weigh)
        .executor(ultra_perf::offload_to(scheduler))
        .open()
        .await?;
    Ok(ResponseCache::new(cache, policy, settings.max_body.as_usize()))
}
