//! Calls to other services over HTTP, guarded: [`HttpClients`] gives a handle its clients.
//!
//! ```text
//!   request ─▶ deadline ─▶ place ─▶ ┌ breaker of the host ─▶ pooled connection ─▶ answer ┐
//!                                   └──── wait, budget ◀──── may be repeated ◀── failed ◀─┘
//! ```
//!
//! A request takes one place of its client from before the first attempt until the body of its answer has
//! been read or dropped, so the bound on concurrency bounds connections and memory as well. Each attempt
//! asks the breaker of its host. It is repeated where the method is idempotent, or where certainly nothing
//! was sent, and only with a body that is still there; each repetition is paid for out of the budget that
//! all retries of the handle share, so a service that is down is not asked three times as often.

mod body;
mod connect;
mod sent;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Uri, request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::{Mutex, RwLock};
use tokio_rustls::rustls::ClientConfig;
use tower::Service;
use ultra_perf::monitor::{Counter, Histogram, Kind, Registry, Unit};
use ultra_perf::resilience::{
    self, Bulkhead, BulkheadPermit, CircuitBreaker, Deadline, Outcome, RetryPolicy, Timeout,
};
use ultra_perf::{Site, UltraPerf};

pub use self::body::HttpClientBody;
use self::connect::{Connector, connector, tls};
use self::sent::{Sent, Slot};
use crate::origin::BoxError;
use crate::watch::Family;

/// Clients that a handle keeps by name.
const CLIENTS_MAX: usize = 256;
/// Hosts of a client that have a breaker of their own; further ones are called without.
const HOSTS_MAX: usize = 256;

const REQUESTS: &str = "http_client_requests_total";
const DURATION: &str = "http_client_request_duration_seconds";
const RETRIES: &str = "http_client_retries_total";

const FAMILIES: &[Family] = &[
    (REQUESTS, Kind::Counter, Unit::None, "Requests to others, by client and by how they ended."),
    (
        DURATION,
        Kind::Histogram,
        Unit::Seconds,
        "Time to the head of the answer of others, with all attempts.",
    ),
    (RETRIES, Kind::Counter, Unit::None, "Attempts beyond the first of requests to others."),
];

/// The clients of a handle, by name.
pub trait HttpClients {
    /// Returns the client of this name, making it with the default options.
    ///
    /// Clients are kept with the handle: the same name is the same pool of connections.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use ultra_perf_http::HttpClients as _;
    ///
    /// # async fn example(perf: ultra_perf::UltraPerf) -> Result<(), ultra_perf_http::HttpClientError> {
    /// let answer = perf.http_client("billing").get("https://billing.example/invoices/7").await?;
    /// println!("{}: {} bytes", answer.status(), answer.into_body().bytes().await?.len());
    /// # Ok(())
    /// # }
    /// ```
    fn http_client(&self, name: &str) -> HttpClient;

    /// Makes the client of this name with these options; it is the one of the name from then on.
    fn http_client_with(&self, name: &str, options: HttpClientOptions) -> HttpClient;
}

/// What a handle remembers of clients.
#[derive(Default)]
struct Clients {
    by_name: Mutex<HashMap<String, HttpClient>>,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl HttpClients for UltraPerf {
    fn http_client(&self, name: &str) -> HttpClient {
        let clients = clients(self);
        if let Some(client) = clients.by_name.lock().get(name) {
            return client.clone();
        }
        // Reads files, so before the lock.
        let tls = clients.tls.get_or_init(tls);
        // Looked up again: of those that ask for a name at the same time one makes its client, and a
        // client that somebody has made with options is not replaced.
        let mut by_name = clients.by_name.lock();
        if let Some(client) = by_name.get(name) {
            return client.clone();
        }
        let client = HttpClient::new(self, name, HttpClientOptions::default(), tls);
        keep(&mut by_name, &client);
        client
    }

    fn http_client_with(&self, name: &str, options: HttpClientOptions) -> HttpClient {
        let clients = clients(self);
        let client = HttpClient::new(self, name, options, clients.tls.get_or_init(tls));
        keep(&mut clients.by_name.lock(), &client);
        client
    }
}

/// Makes a client the one of its name.
fn keep(by_name: &mut HashMap<String, HttpClient>, client: &HttpClient) {
    let name = client.name();
    if by_name.len() < CLIENTS_MAX || by_name.contains_key(name) {
        by_name.insert(name.to_owned(), client.clone());
    } else {
        tracing::warn!(name, "there are {CLIENTS_MAX} clients; this one is not kept");
    }
}

fn clients(perf: &UltraPerf) -> &Clients {
    static SITE: Site = Site::new();
    perf.slot(&SITE, Clients::default)
}

/// What a client may do; numbers outside of what makes sense are brought to the nearest that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpClientOptions {
    /// How long a connection may take to be made; 5 s by default.
    pub connect_timeout: Duration,
    /// How long an attempt may take to the head of its answer; 10 s.
    pub attempt_timeout: Duration,
    /// How long a request may take to the head of its answer, with all attempts and waits; 30 s. A
    /// [`Deadline`] that is earlier counts.
    pub timeout: Duration,
    /// How long the body of an answer may pause; 30 s.
    pub body_timeout: Duration,
    /// How long a connection is kept that nobody uses; 60 s.
    pub idle_timeout: Duration,
    /// Connections that are kept for each host while nobody uses them; 32.
    pub idle_per_host: usize,
    /// Requests that may be under way; more wait. 256.
    pub requests_max: usize,
    /// Requests that may wait for a place; more are refused. 1,024.
    pub queue_max: usize,
    /// How long a request waits for a place; 1 s.
    pub queue_timeout: Duration,
    /// Attempts of a request that may be repeated; 3. One repeats nothing.
    pub attempts: u32,
    /// The wait before the first repetition is random up to this, twice that before the second, and so on;
    /// 25 ms.
    pub backoff: Duration,
    /// Bytes of a request's body that are kept to be sent again; 64 KiB. A longer body is sent once.
    pub replay_max_bytes: u64,
    /// Bytes that the body of an answer may have; 64 MiB.
    pub body_max_bytes: u64,
    /// Whether each host has a circuit breaker, with the settings of `balancer.breaker`.
    pub breaker: bool,
}

impl Default for HttpClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            idle_per_host: 32,
            requests_max: 256,
            queue_max: 1_024,
            queue_timeout: Duration::from_secs(1),
            attempts: 3,
            backoff: Duration::from_millis(25),
            replay_max_bytes: 64 << 10,
            body_max_bytes: 64 << 20,
            breaker: true,
        }
    }
}

impl HttpClientOptions {
    /// The nearest options that make sense.
    fn bounded(mut self) -> Self {
        const TIME: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(60 * 60));
        for time in [
            &mut self.connect_timeout,
            &mut self.attempt_timeout,
            &mut self.timeout,
            &mut self.body_timeout,
            &mut self.idle_timeout,
            &mut self.queue_timeout,
        ] {
            *time = (*time).clamp(TIME.0, TIME.1);
        }
        self.requests_max = self.requests_max.clamp(1, 1_000_000);
        self.queue_max = self.queue_max.min(1_000_000);
        self.attempts = self.attempts.clamp(1, 10);
        self.backoff = self.backoff.clamp(Duration::from_millis(1), Duration::from_secs(1));
        self
    }
}

/// Why a request got no answer, or its answer no end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpClientError {
    /// The URL is none that can be called.
    #[error("\"{url}\" is not an absolute URL of http or https")]
    Url {
        /// What was given, without a user name or a password that it may carry.
        url: String,
    },
    /// The URL carries a user name or a password, which would go to logs and metrics with it.
    #[error(
        "the URL for {host} carries a user name or a password; send them in the field Authorization"
    )]
    UserInfo {
        /// The host, with its port.
        host: String,
    },
    /// The host has failed so often that it is not called for now.
    #[error("{host} is not called for another {retry_after:?}")]
    Open {
        /// The host, with its port.
        host: String,
        /// When it is called again.
        retry_after: Duration,
    },
    /// As many requests are under way as may be, and no place came free in time.
    #[error("the client \"{client}\" has too many requests under way")]
    Busy {
        /// The client.
        client: String,
    },
    /// There is no connection to the host; nothing was sent.
    #[error("no connection to {host}")]
    Connect {
        /// The host, with its port.
        host: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// There was no answer in time.
    #[error("no answer within {after:?}")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke off, or what came over it was no HTTP.
    #[error("{host} broke off")]
    Broken {
        /// The host, with its port.
        host: String,
        /// What went wrong.
        #[source]
        source: BoxError,
    },
    /// The body of the request could not be read.
    #[error("the request's body broke off")]
    RequestBody(#[source] BoxError),
    /// The body of the answer is longer than the client takes.
    #[error("the answer's body exceeds {limit_bytes} bytes")]
    BodyTooLarge {
        /// The limit that it exceeds.
        limit_bytes: u64,
    },
    /// The body of the answer paused for too long.
    #[error("the answer's body stalled for {after:?}")]
    BodyStalled {
        /// How long nothing came.
        after: Duration,
    },
    /// The body of the answer is not what it was read as.
    #[error("the answer's body is not the JSON that was expected")]
    Json(#[from] serde_json::Error),
}

impl HttpClientError {
    /// Returns whether certainly nothing of the request has reached a service.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        matches!(
            self,
            Self::Url { .. }
                | Self::UserInfo { .. }
                | Self::Open { .. }
                | Self::Busy { .. }
                | Self::Connect { .. }
        )
    }

    /// Returns when the host is called again, where it is not called for now.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Open { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// What it says of the host.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Broken { .. } => Outcome::Failure,
            _ => Outcome::Ignored,
        }
    }
}

/// Calls other services; clones share connections, bounds and breakers.
///
/// HTTP/1.1 and, where a host of `https` offers it, HTTP/2. Redirections are answers like others, and
/// nothing is read from the environment. It is a [`Service`] as well, for layers of tower.
#[derive(Clone)]
pub struct HttpClient(Arc<Shared>);

struct Shared {
    name: String,
    options: HttpClientOptions,
    pool: legacy::Client<Connector, Body>,
    places: Bulkhead,
    retry: RetryPolicy,
    breakers: resilience::Registry<String>,
    hosts: RwLock<HashMap<Authority, CircuitBreaker>>,
    metrics: Metrics,
}

/// What is counted of a client.
struct Metrics {
    ended: [Counter; ENDS.len()],
    duration: Histogram,
    retries: Counter,
}

/// How a request may end, as the label `status` has it.
const ENDS: [&str; 9] =
    ["1xx", "2xx", "3xx", "4xx", "5xx", "error", "timeout", "refused", "cancelled"];

impl Metrics {
    fn new(registry: &Registry, client: &str) -> Self {
        crate::watch::describe(registry, FAMILIES);
        let ended = |status| registry.counter(REQUESTS, &[("client", client), ("status", status)]);
        Self {
            ended: ENDS.map(ended),
            duration: registry.histogram(DURATION, &[("client", client)]),
            retries: registry.counter(RETRIES, &[("client", client)]),
        }
    }
}

/// Counts a request once it has ended, as cancelled if nobody says otherwise.
struct Counted<'a> {
    metrics: &'a Metrics,
    started: Instant,
    end: usize,
}

impl<'a> Counted<'a> {
    fn begin(metrics: &'a Metrics) -> Self {
        Self { metrics, started: Instant::now(), end: ENDS.len() - 1 }
    }

    fn end<B>(&mut self, result: &Result<Response<B>, HttpClientError>) {
        self.end = match result {
            Ok(response) => usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1,
            Err(HttpClientError::TimedOut { .. }) => 6,
            Err(HttpClientError::Open { .. } | HttpClientError::Busy { .. }) => 7,
            Err(_) => 5,
        };
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.ended[self.end].increment(1);
        self.metrics.duration.record_duration(self.started.elapsed());
    }
}

/// The body of a request.
enum Outgoing {
    /// In memory, to be sent as often as need be.
    Whole(Bytes),
    /// Sent once; the slot has what went wrong with reading it.
    Once(Option<Body>, Slot),
}

impl Outgoing {
    /// The body for an attempt; `None` if it is gone.
    fn take(&mut self) -> Option<Body> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Some(Body::empty()),
            Self::Whole(bytes) => Some(Body::from(bytes.clone())),
            Self::Once(body, _) => body.take(),
        }
    }

    fn is_there(&self) -> bool {
        !matches!(self, Self::Once(None, _))
    }

    /// The error of the body itself, if that is why it was not sent.
    fn own_error(&self) -> Option<BoxError> {
        match self {
            Self::Whole(_) => None,
            Self::Once(_, slot) => slot.lock().take(),
        }
    }
}

impl HttpClient {
    fn new(perf: &UltraPerf, name: &str, options: HttpClientOptions, tls: &ClientConfig) -> Self {
        let options = options.bounded();
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.idle_timeout)
            .pool_max_idle_per_host(options.idle_per_host)
            .build(connector(tls, options.connect_timeout));
        let places = Bulkhead::builder(name)
            .calls_max(options.requests_max)
            .queue_max(options.queue_max)
            .wait_max(options.queue_timeout);
        let retry = RetryPolicy::builder(name)
            .attempts(options.attempts)
            .backoff(options.backoff, Duration::from_secs(1))
            .budget(perf.retry_budget().clone());
        Self(Arc::new(Shared {
            name: name.to_owned(),
            options,
            pool,
            places: places.build().expect("the options are within its bounds"),
            retry: retry.build().expect("the options are within its bounds"),
            breakers: perf.breakers().clone(),
            hosts: RwLock::default(),
            metrics: Metrics::new(perf.registry(), name),
        }))
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Asks for a URL.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`]. An answer with a status of 400 and more is an answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the attempt that is under way, with its connection, and gives the place
    /// back.
    pub async fn get(&self, url: &str) -> Result<Response<HttpClientBody>, HttpClientError> {
        let uri: Uri = url.parse().map_err(|_| not_called(url))?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        self.request(request).await
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// GET, HEAD, PUT, DELETE, OPTIONS and TRACE may be sent again after a failure or a 5xx or 429; any
    /// other method only where no connection came about.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`]. An answer with a status of 400 and more is an answer.
    ///
    /// # Cancel safety
    ///
    /// As [`get`](Self::get).
    pub async fn request<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<HttpClientBody>, HttpClientError>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let shared = &*self.0;
        let mut counted = Counted::begin(&shared.metrics);
        let whole = Timeout::new(shared.options.timeout);
        // In a box: it is large, and would be part of whatever awaits it.
        let ended = whole.call(|| Box::pin(shared.send(request))).await;
        let result =
            ended.unwrap_or_else(|late| Err(HttpClientError::TimedOut { after: late.after }));
        counted.end(&result);
        result
    }
}

impl Shared {
    async fn send<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<HttpClientBody>, HttpClientError>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let host = authority(&parts.uri)?;
        let place = self.places.acquire().await;
        let place = place.map_err(|_| HttpClientError::Busy { client: self.name.clone() })?;
        let mut body = self.outgoing(body).await?;
        let breaker = self.breaker(&host);
        self.retry.budget().call_at(Instant::now());
        let mut last = None;
        for attempt in 1.. {
            let (Some(body_now), Ok(permit)) = (
                body.take(),
                breaker.as_ref().map(CircuitBreaker::try_acquire).transpose().map_err(|open| {
                    last.get_or_insert(Err(HttpClientError::Open {
                        host: host.to_string(),
                        retry_after: open.retry_after,
                    }));
                }),
            ) else {
                break;
            };
            if attempt > 1 {
                self.metrics.retries.increment(1);
            }
            let mut result = self.attempt(&parts, body_now, &host).await;
            // Whatever the connection made of it, the host has not failed.
            if result.is_err()
                && let Some(error) = body.own_error()
            {
                result = Err(HttpClientError::RequestBody(error));
            }
            let outcome = match &result {
                Ok(response) => Outcome::of_response(response, SystemTime::now()),
                Err(error) => error.outcome(),
            };
            if let Some(permit) = permit {
                permit.complete(outcome);
            }
            let repeatable = body.is_there()
                && match &result {
                    Ok(_) => parts.method.is_idempotent(),
                    Err(error) => parts.method.is_idempotent() || error.is_unsent(),
                };
            last = Some(result);
            if !repeatable {
                break;
            }
            let plan = self.retry.plan_at(attempt, outcome, Deadline::current(), Instant::now());
            let Ok(wait) = plan else { break };
            tokio::time::sleep(wait).await;
        }
        let answer = last.expect("the first attempt was made or refused")?;
        self.accept(answer, &parts.method, host, place)
    }

    /// Makes one attempt.
    async fn attempt(
        &self,
        parts: &request::Parts,
        body: Body,
        host: &Authority,
    ) -> Result<Response<Incoming>, HttpClientError> {
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        let timeout = Timeout::new(self.options.attempt_timeout);
        match timeout.call(|| self.pool.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let host = host.to_string();
                let unsent = error.is_connect();
                let source: BoxError = error.into();
                Err(match unsent {
                    true => HttpClientError::Connect { host, source },
                    false => HttpClientError::Broken { host, source },
                })
            }
            Err(late) => Err(HttpClientError::TimedOut { after: late.after }),
        }
    }

    /// Takes an answer whose body may come.
    fn accept(
        &self,
        response: Response<Incoming>,
        method: &Method,
        host: Authority,
        place: BulkheadPermit,
    ) -> Result<Response<HttpClientBody>, HttpClientError> {
        let limit_bytes = self.options.body_max_bytes;
        // Some answers say how long a body would be that does not come.
        let is_empty = *method == Method::HEAD
            || response.status() == StatusCode::NOT_MODIFIED
            || response.body().is_end_stream();
        if !is_empty && response.body().size_hint().lower() > limit_bytes {
            return Err(HttpClientError::BodyTooLarge { limit_bytes });
        }
        let idle = self.options.body_timeout;
        Ok(response.map(|body| HttpClientBody::new(body, host, limit_bytes, idle, place)))
    }

    /// Keeps a body that is short enough to be sent again.
    async fn outgoing<B>(&self, body: B) -> Result<Outgoing, HttpClientError>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        if body.is_end_stream() {
            return Ok(Outgoing::Whole(Bytes::new()));
        }
        if body.size_hint().upper().is_some_and(|most| most <= self.options.replay_max_bytes) {
            let whole = body.collect().await;
            let whole = whole.map_err(|error| HttpClientError::RequestBody(error.into()))?;
            return Ok(Outgoing::Whole(whole.to_bytes()));
        }
        let slot = Slot::default();
        let body = Body::new(Sent::new(body, Arc::clone(&slot)));
        Ok(Outgoing::Once(Some(body), slot))
    }

    /// The breaker of a host.
    fn breaker(&self, host: &Authority) -> Option<CircuitBreaker> {
        if !self.options.breaker {
            return None;
        }
        if let Some(breaker) = self.hosts.read().get(host) {
            return Some(breaker.clone());
        }
        let mut hosts = self.hosts.write();
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(host) {
            return None;
        }
        let made = || self.breakers.get(format!("{} {host}", self.name).as_str());
        Some(hosts.entry(host.clone()).or_insert_with(made).clone())
    }
}

/// The host of a URL, with its port where it names one.
fn authority(uri: &Uri) -> Result<Authority, HttpClientError> {
    let none = || not_called(&uri.to_string());
    let authority = match uri.scheme_str() {
        Some("http" | "https") => uri.authority().ok_or_else(none)?,
        _ => return Err(none()),
    };
    match authority.as_str().rsplit_once('@') {
        None => Ok(authority.clone()),
        Some((_, host)) => Err(HttpClientError::UserInfo { host: host.to_owned() }),
    }
}

/// Refuses a URL, without telling what may be a user name and a password in it.
fn not_called(url: &str) -> HttpClientError {
    let url = match url.rsplit_once('@') {
        None => url.to_owned(),
        Some((before, rest)) => {
            // Up to the last sign, for a password that is not encoded may have others in it.
            let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://"));
            format!("{}***@{rest}", scheme.unwrap_or_default())
        }
    };
    HttpClientError::Url { url }
}

impl<B> Service<Request<B>> for HttpClient
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<HttpClientBody>;
    type Error = HttpClientError;
    type Future = BoxFuture<'static, Result<Response<HttpClientBody>, HttpClientError>>;

    /// Always ready: a request waits for its place when it is sent.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HttpClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.request(request).await })
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("name", &self.0.name)
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}
