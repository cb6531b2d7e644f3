//! Puts the accelerator together as the configuration says, and runs it with its admin API; or that alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::ServiceExt as _;
use ultra_perf::cache_tiered::BuildError;
use ultra_perf::config::{ByteSize, Config};
use ultra_perf::memory::{Registration, TooManyReclaimers};
use ultra_perf::monitor::Watch;
use ultra_perf::{UltraPerf, UltraPerfBuilder, loadbalancer, resilience};

use crate::accelerator::Accelerator;
use crate::admin::{self, Admin};
use crate::backends::{Backends, BackendsError, IdleConnections};
use crate::background::Background;
use crate::configured;
use crate::proxy::{Parts, Running};
use crate::response_cache::ResponseCache;
use crate::server::{self, ConnInfo, Handler, ServerLimits};
use crate::stored::{StoredCodec, weigh};
use crate::upstream::InvalidUpstream;
use crate::watch;

/// Names the cache of responses: its directory, its keys in Redis and its metrics.
const CACHE_NAME: &str = "responses";
/// Names the balancer in its metrics.
const BALANCER_NAME: &str = "backends";
/// Longest time for what is left when the server has stopped, such as alerts on their way; these are sent
/// after the next start.
const PARTS_DEADLINE: Duration = Duration::from_secs(3);
/// Longest time for requests of the admin API that are under way when it stops.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// A running accelerator with its admin API.
///
/// [`start`](Self::start) makes all that it needs of a configuration. A program that has a handle of its own
/// embeds the accelerator with [`start_on`](Self::start_on): they share the scheduler, the guard of the
/// memory and the monitor, and the admin API is that of both.
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
    admin: AdminServer,
    running: Running,
    /// Takes the connections out of the guard's registry when the server goes.
    _reclaimed: Option<Registration>,
    reported: Reported,
    perf: UltraPerf,
    /// Whether the handle was made for this server, and ends with it.
    owned: bool,
}

/// Lets go of the accelerator when the server goes: the registry may go on.
#[derive(Debug)]
struct Reported(Option<Watch>);

impl Drop for Reported {
    fn drop(&mut self) {
        if let Some(watch) = self.0.take() {
            watch.remove();
        }
    }
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
    /// The scheduler, the guard of the memory or the monitor cannot be started.
    #[error("a part cannot be started")]
    Parts(#[from] ultra_perf::BuildError),
    /// The backends' settings do not go together.
    #[error("the balancer cannot be made")]
    Balancer(#[from] loadbalancer::BuildError),
    /// The settings of breakers, retries or hedges do not go together.
    #[error("the calls to the backends cannot be guarded")]
    Guard(#[from] resilience::BuildError),
    /// The system gives no random bytes for a key.
    #[error("no key can be drawn for balancer.sticky_cookie")]
    Key(#[source] std::io::Error),
    /// The guard has as many reclaimers as it takes.
    #[error("the connections cannot be registered with the memory guard")]
    Reclaimer(#[from] TooManyReclaimers),
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

    /// As [`start`](Self::start), with more said about the parts.
    ///
    /// A binary names its allocator here, which no library can know: `|parts| parts.allocator(..)`.
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
        parts: impl FnOnce(UltraPerfBuilder) -> UltraPerfBuilder,
    ) -> Result<Self, StartError> {
        // Addresses first: a second instance must fail on them, and not on the cache's directory.
        let listeners = Listeners::bind(config).await?;
        let perf = parts(UltraPerf::builder().config(config.clone())).build().await?;
        let started = Self::run(listeners, &perf, true).await;
        if started.is_err() {
            perf.shutdown(PARTS_DEADLINE).await;
        }
        started
    }

    /// Starts to serve clients and the admin API with the parts of a handle, which goes on when the server
    /// has stopped.
    ///
    /// The cache of responses is the handle's cache `responses`, and what the program does itself is in the
    /// same metrics, alerts and advice.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use ultra_perf::UltraPerf;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let perf = UltraPerf::builder().set("server.to", "http://127.0.0.1:8000").build().await?;
    /// let server = ultra_perf_http::Server::start_on(&perf).await?;
    /// let users = perf.cache::<u64, String>("users").open().await?;
    /// server.shutdown(Duration::from_secs(10)).await;
    /// perf.shutdown(Duration::from_secs(10)).await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start_on(perf: &UltraPerf) -> Result<Self, StartError> {
        let listeners = Listeners::bind(&perf.config()).await?;
        Self::run(listeners, perf, false).await
    }

    async fn run(listeners: Listeners, perf: &UltraPerf, owned: bool) -> Result<Self, StartError> {
        let config = perf.config();
        let backends = Backends::start(perf)?;
        perf.watch_balancer(BALANCER_NAME, backends.balancer());
        let store = match config.response_cache.enabled {
            true => Some(open_store(perf).await?),
            false => None,
        };
        let reclaimed =
            perf.memory().map(|guard| guard.register(IdleConnections(backends.clone())));
        let parts = Parts {
            backends,
            store,
            background: Background::new(perf.scheduler().clone(), config.scheduler.task_timeout),
            coalesce_timeout: config.response_cache.coalesce_timeout,
            max_request_body_bytes: config.server.max_body.map_or(u64::MAX, ByteSize::as_u64),
            idle_timeout: config.server.idle_timeout,
            compress: config.server.compression,
            shown_memory: perf.memory().cloned().filter(|_| config.memory.header),
        };
        let accelerator = Accelerator::new(parts, perf.registry());
        // From here on what has begun ends with it, also if the rest does not start.
        let running = Running(accelerator.clone());
        let reported = Reported(Some(watch::watch(perf.registry(), &accelerator)));

        let limits = ServerLimits {
            max_connections: config.server.max_connections,
            header_timeout: config.server.header_timeout,
            idle_timeout: config.server.idle_timeout,
            write_timeout: config.server.idle_timeout,
            max_head_bytes: config.server.max_header_bytes.as_usize(),
            ..ServerLimits::default()
        };
        let admin = Arc::new(Admin { accelerator: accelerator.clone(), perf: perf.clone() });
        Ok(Self {
            proxy: listeners.proxy.start(accelerator, limits)?,
            admin: listeners.admin.start(perf, admin::router(admin))?,
            running,
            _reclaimed: reclaimed.transpose()?,
            reported,
            perf: perf.clone(),
            owned,
        })
    }

    /// Returns the address on which clients are served.
    #[must_use]
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy.local_addr()
    }

    /// Returns the address of the admin API.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// Returns the address that serves only metrics, where `server.metrics_listen` names one.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.admin.metrics_addr()
    }

    /// Returns the handle over the parts.
    #[must_use]
    pub fn perf(&self) -> &UltraPerf {
        &self.perf
    }

    /// Stops accepting, lets requests end for at most `grace`, then writes the cache down.
    ///
    /// A handle that was given to [`start_on`](Self::start_on) goes on, without the cache of responses.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the accelerator stopping; what memory alone held is lost then.
    pub async fn shutdown(self, grace: Duration) -> Stopped {
        let drained = self.proxy.shutdown(grace).await;
        let Running(accelerator) = &self.running;
        accelerator.close().await;
        self.admin.shutdown().await;
        if let Some(store) = accelerator.store() {
            store.cache.close().await;
        }
        drop(self.reported);
        if self.owned {
            let report = self.perf.shutdown(PARTS_DEADLINE).await;
            if !report.is_clean() {
                tracing::warn!("not everything ended in time: {report}");
            }
        }
        Stopped { aborted: drained.aborted }
    }
}

/// The admin API of a handle on its address, for a service without an accelerator; dropped, it stops.
///
/// It listens on `server.admin`, a loopback address, and serves metrics alone on `server.metrics_listen`
/// where that names one. Metrics and their history, alerts, the score, recommendations, the configuration,
/// memory, the scheduler and profiles are there; `ultra-perf recommend`, `apply` and `undo` work against it.
/// With an accelerator in the same program, [`Server::start_on`] has all of this and its own in one.
///
/// # Examples
///
/// ```
/// use ultra_perf::UltraPerf;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let perf = UltraPerf::builder().set("monitor.history.enabled", "false")
///     .set("server.admin", "127.0.0.1:0").build().await?;
/// let admin = ultra_perf_http::AdminServer::start(&perf).await?;
/// println!("ultra-perf recommend --admin {}", admin.addr());
/// admin.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct AdminServer {
    admin: server::Server,
    metrics: Option<server::Server>,
}

impl AdminServer {
    /// Serves [`admin()`](crate::admin()) with the parts of a handle, which goes on when it has stopped.
    ///
    /// # Errors
    ///
    /// [`StartError::Listen`] when an address is taken, by the accelerator of the same handle say.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(perf: &UltraPerf) -> Result<Self, StartError> {
        let listeners = AdminListeners::bind(&perf.config()).await?;
        listeners.start(perf, admin::admin(perf))
    }

    /// Returns its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Returns the address that serves only metrics, where `server.metrics_listen` names one.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(server::Server::local_addr)
    }

    /// Stops accepting, and lets what is under way end for at most a second.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it cuts what is under way.
    pub async fn shutdown(self) {
        let metrics = async {
            if let Some(metrics) = &self.metrics {
                metrics.shutdown(ADMIN_GRACE).await;
            }
        };
        tokio::join!(self.admin.shutdown(ADMIN_GRACE), metrics);
    }
}

/// The addresses, before anything else is begun.
struct Listeners {
    proxy: Listening,
    admin: AdminListeners,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        if config.server.to.is_none() {
            return Err(StartError::NoBackend);
        }
        Ok(Self {
            proxy: Listening::bind("server.listen", config.server.listen).await?,
            admin: AdminListeners::bind(config).await?,
        })
    }
}

/// The addresses of the admin API.
struct AdminListeners {
    admin: Listening,
    metrics: Option<Listening>,
}

impl AdminListeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        Ok(Self {
            admin: Listening::bind("server.admin", config.server.admin).await?,
            metrics: match config.server.metrics_listen {
                Some(address) => Some(Listening::bind("server.metrics_listen", address).await?),
                None => None,
            },
        })
    }

    fn start(self, perf: &UltraPerf, routes: Router) -> Result<AdminServer, StartError> {
        let few = ServerLimits { max_connections: 64, ..ServerLimits::default() };
        let metrics = self.metrics.map(|listener| {
            listener.start(serving(admin::metrics_router(perf.clone())), few.clone())
        });
        Ok(AdminServer {
            metrics: metrics.transpose()?,
            admin: self.admin.start(serving(admin::alone(routes)), few)?,
        })
    }
}

/// An address that is taken, and the key that names it.
struct Listening {
    listener: TcpListener,
    path: &'static str,
    address: SocketAddr,
}

impl Listening {
    async fn bind(path: &'static str, address: SocketAddr) -> Result<Self, StartError> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| StartError::Listen { path, address, source })?;
        Ok(Self { listener, path, address })
    }

    fn start<H: Handler>(
        self,
        handler: H,
        limits: ServerLimits,
    ) -> Result<server::Server, StartError> {
        let Self { listener, path, address } = self;
        let started = server::Server::start(listener, handler, limits);
        started.map_err(|source| StartError::Listen { path, address, source })
    }
}

/// Serves the routes of a router.
fn serving(router: Router) -> impl Handler<Body = Body> {
    move |request: Request<Incoming>, _: ConnInfo| {
        let router = router.clone();
        async move {
            match router.oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    }
}

async fn open_store(perf: &UltraPerf) -> Result<ResponseCache, StartError> {
    let config = perf.config();
    let settings = &config.response_cache;
    let rules = configured::policy(perf);
    let codec = StoredCodec { policy: Arc::clone(&rules) };
    perf.counts_requests_of(CACHE_NAME);
    let cache = perf
        .cache_with_codec(CACHE_NAME, codec)
        .bytes(config.cache.memory.capacity.as_u64(), weigh)
        .open()
        .await?;
    Ok(ResponseCache::new(cache, rules, settings.max_body.as_usize()))
}
