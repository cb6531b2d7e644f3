//! The connections to one origin.
//!
//! [`Upstream::send`] takes an idle connection or opens one, writes the request and returns as soon
//! as the response's head is there; the body streams through [`UpstreamBody`], which hands the
//! connection back when it has been read to its end and closes it otherwise.
//!
//! No task stands behind a connection: whoever uses it drives it (see `connection`). Dropping the
//! future or the body closes the socket, and a reader that stops reading stops the origin: there is
//! nowhere for bytes to pile up.
//!
//! **Bounds.** A request holds one of `max_connections` permits from before it has a connection
//! until that is parked or closed, and opens a connection only when none is idle. So open
//! connections, idle ones included, never exceed `max_connections`. Requests beyond it wait, at
//! most `max_waiting` of them and at most `queue_timeout` each.
//!
//! **A connection that the origin closed while it lay idle** shows itself when it is driven once
//! before use; those are discarded. The origin may still close at the very moment a request is
//! written. If hyper gives the request back unwritten, or if it is idempotent and can be sent
//! again, it goes out once more on a new connection (RFC 9110, section 9.2.2).

use std::{
    collections::VecDeque,
    error::Error as _,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Semaphore, task::AbortHandle, time::Instant};

use self::{
    body::Lease,
    connection::{Connection, Failure},
};
use crate::body::{RequestBody, RequestBodyError};

mod body;
mod connection;

pub use self::body::{Tunnelled, UpstreamBody};

/// Says where the origin is and how long, how many and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// The origin's name or address, an IPv6 address without brackets.
    pub host: String,
    /// The origin's port.
    pub port: u16,
    /// What goes before each path; empty, or with a leading and without a trailing slash.
    pub base_path: String,
    /// How long resolving the name and connecting may take.
    pub connect_timeout: Duration,
    /// How long the origin may think: from the last progress of the request to the response's head.
    pub response_timeout: Duration,
    /// How long the origin may pause within a body.
    pub body_idle_timeout: Duration,
    /// How long an unused connection is kept.
    pub keep_alive_timeout: Duration,
    /// How long a request may wait while all connections are in use.
    pub queue_timeout: Duration,
    /// How many connections may be open, idle ones included.
    pub max_connections: usize,
    /// How many requests may wait for a connection.
    pub max_waiting: usize,
    /// How many bytes the head of a response may have; also the size of the read buffer.
    pub max_head_bytes: usize,
}

impl UpstreamConfig {
    /// Reads an origin's URL, `http://host[:port][/base]`, and fills in the defaults.
    ///
    /// # Errors
    ///
    /// [`InvalidUpstream`] if it is not such a URL.
    pub fn new(url: &str) -> Result<Self, InvalidUpstream> {
        let uri: Uri = url.parse()?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(InvalidUpstream::Scheme(other.to_owned())),
            None => return Err(InvalidUpstream::NoScheme),
        }
        let authority = uri.authority().ok_or(InvalidUpstream::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(InvalidUpstream::UserInfo);
        }
        if uri.query().is_some() {
            return Err(InvalidUpstream::Query);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(InvalidUpstream::NoHost);
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(':') || authority.as_str() == authority.host() => {
                80
            }
            None => return Err(InvalidUpstream::Port),
        };
        if port == 0 {
            return Err(InvalidUpstream::Port);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            base_path: uri.path().trim_end_matches('/').to_owned(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(10),
            max_connections: 512,
            max_waiting: 4096,
            max_head_bytes: 64 * 1024,
        })
    }
}

/// Says what is wrong with an origin's URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUpstream {
    /// It is no URL at all.
    #[error("not a url")]
    Uri(#[from] http::uri::InvalidUri),
    /// It does not start with a scheme.
    #[error("expected a url that starts with http://")]
    NoScheme,
    /// Its scheme is not `http`.
    #[error("expected http, found {0}")]
    Scheme(String),
    /// It names no host.
    #[error("the url names no host")]
    NoHost,
    /// It carries a user name or a password.
    #[error("the url must not carry a user name")]
    UserInfo,
    /// It carries a query.
    #[error("the url must not carry a query")]
    Query,
    /// Its port is not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
}

/// Says why the origin gave no response, or not all of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The connection could not be opened.
    #[error("cannot connect to the origin")]
    Connect(#[source] io::Error),
    /// Opening the connection took too long.
    #[error("connecting to the origin took longer than {0:?}")]
    ConnectTimeout(Duration),
    /// No response head came in time.
    #[error("the origin did not answer within {0:?}")]
    ResponseTimeout(Duration),
    /// The response's body paused for too long.
    #[error("the origin paused for more than {0:?} within a body")]
    BodyIdle(Duration),
    /// The connection broke, or what came over it is not HTTP.
    #[error("the origin broke off or broke the protocol")]
    Protocol(#[source] hyper::Error),
    /// The response's length is given in two ways.
    #[error("the origin sent both a content-length and a transfer-encoding")]
    AmbiguousLength,
    /// The origin switched protocols without being asked.
    #[error("the origin switched protocols without being asked")]
    UnexpectedUpgrade,
    /// All connections stayed in use, or too many requests wait for one.
    #[error("all connections to the origin are in use")]
    Saturated,
    /// The upstream has been closed.
    #[error("the upstream is closed")]
    Closed,
    /// The client's body ended before its end.
    #[error("the request's body could not be sent")]
    RequestBody {
        /// The status that tells the client what it did.
        status: StatusCode,
        /// What happened; its source is a [`RequestBodyError`].
        #[source]
        source: hyper::Error,
    },
}

impl UpstreamError {
    /// Returns the status that tells a client of this failure.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Connect(_)
            | Self::Protocol(_)
            | Self::AmbiguousLength
            | Self::UnexpectedUpgrade => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout(_) | Self::ResponseTimeout(_) | Self::BodyIdle(_) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Saturated | Self::Closed => StatusCode::SERVICE_UNAVAILABLE,
            Self::RequestBody { status, .. } => *status,
        }
    }

    /// Returns a sentence for the client that tells nothing about the inside.
    pub fn detail(&self) -> &'static str {
        match self {
            Self::Connect(_) => "The origin server cannot be reached.",
            Self::ConnectTimeout(_) => "The origin server did not accept a connection in time.",
            Self::ResponseTimeout(_) => "The origin server did not answer in time.",
            Self::BodyIdle(_) => "The origin server stopped sending.",
            Self::Protocol(_) | Self::AmbiguousLength | Self::UnexpectedUpgrade => {
                "The origin server sent no valid response."
            }
            Self::Saturated => "The origin server is busy.",
            Self::Closed => "The server is shutting down.",
            Self::RequestBody { status, .. } => match *status {
                StatusCode::PAYLOAD_TOO_LARGE => "The request body is too large.",
                StatusCode::REQUEST_TIMEOUT => "The request body took too long to arrive.",
                _ => "The request body broke off.",
            },
        }
    }

    /// Tells whether the failure is the origin's, not the client's or the proxy's own.
    ///
    /// These are the failures for which a stale answer may be served instead.
    pub fn is_origin_failure(&self) -> bool {
        !matches!(self, Self::Closed | Self::RequestBody { .. })
    }

    fn from_hyper(error: hyper::Error) -> Self {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(body) = inner.downcast_ref::<RequestBodyError>() {
                let status = match body {
                    RequestBodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                    RequestBodyError::Idle { .. } => StatusCode::REQUEST_TIMEOUT,
                    RequestBodyError::Broken(_) => StatusCode::BAD_REQUEST,
                };
                return Self::RequestBody { status, source: error };
            }
            cause = inner.source();
        }
        Self::Protocol(error)
    }
}

/// What an [`Upstream`] has done and holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamStats {
    /// Connections opened since the start.
    pub opened: u64,
    /// Requests that went out on a connection used before.
    pub reused: u64,
    /// Requests sent again because their connection had been closed by the origin.
    pub retried: u64,
    /// Requests refused because all connections were in use.
    pub saturated: u64,
    /// Requests that hold a connection or are opening one.
    pub active: usize,
    /// Requests that wait for a connection.
    pub waiting: usize,
    /// Connections that lie idle.
    pub idle: usize,
}

/// A client of one origin with its pool of connections.
///
/// Handles are cheap to clone and share the pool. Dropping the last one, or [`Upstream::close`],
/// closes the idle connections; those in use close as their bodies end.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    config: UpstreamConfig,
    authority: String,
    permits: Semaphore,
    waiting: AtomicUsize,
    pool: Mutex<Pool>,
    opened: AtomicU64,
    retried: AtomicU64,
    saturated: AtomicU64,
}

#[derive(Default)]
struct Pool {
    /// The last one parked is at the back and is taken first, so that a burst's extra connections
    /// grow old at the front.
    idle: VecDeque<Box<Connection>>,
    reused: u64,
    closed: bool,
    sweeper: Option<AbortHandle>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("authority", &self.shared.authority)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Makes a client; it connects when the first request comes.
    pub fn new(config: UpstreamConfig) -> Self {
        let host = if config.host.contains(':') {
            format!("[{}]", config.host)
        } else {
            config.host.clone()
        };
        let authority = match config.port {
            80 => host,
            port => format!("{host}:{port}"),
        };
        let permits = config.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                config,
                authority,
                permits: Semaphore::new(permits),
                waiting: AtomicUsize::new(0),
                pool: Mutex::default(),
                opened: AtomicU64::new(0),
                retried: AtomicU64::new(0),
                saturated: AtomicU64::new(0),
            }),
        }
    }

    /// Returns the configuration.
    pub fn config(&self) -> &UpstreamConfig {
        &self.shared.config
    }

    /// Returns the origin's authority as it stands in a Host field.
    pub fn authority(&self) -> &str {
        &self.shared.authority
    }

    /// Returns what it has done and what it holds.
    pub fn stats(&self) -> UpstreamStats {
        let shared = &*self.shared;
        let (idle, reused) = {
            let pool = shared.pool.lock();
            (pool.idle.len(), pool.reused)
        };
        let permits = shared.config.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        UpstreamStats {
            opened: shared.opened.load(Ordering::Relaxed),
            reused,
            retried: shared.retried.load(Ordering::Relaxed),
            saturated: shared.saturated.load(Ordering::Relaxed),
            active: permits.saturating_sub(shared.permits.available_permits()),
            waiting: shared.waiting.load(Ordering::Relaxed),
            idle,
        }
    }

    /// Closes the idle connections and refuses further requests; responses under way go on.
    pub fn close(&self) {
        self.shared.permits.close();
        let mut pool = self.shared.pool.lock();
        pool.closed = true;
        let idle = std::mem::take(&mut pool.idle);
        if let Some(sweeper) = pool.sweeper.take() {
            sweeper.abort();
        }
        drop(pool);
        drop(idle);
    }

    /// Sends a request and returns the response as soon as its head has come.
    ///
    /// The request goes out as it is: its target and its fields are the caller's business (see
    /// [`forward`](crate::forward)). It needs a Host field.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`], whose [`status`](UpstreamError::status) fits the client's answer. After
    /// the head, the same errors come from the body.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection it was using and frees its place.
    ///
    /// # Cost
    ///
    /// On a pooled connection: one uncontended lock to take it and one to give it back; a copy of
    /// the head where the request could be sent again; no task and no timer registration.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        self.try_send(request).await.map_err(|failure| failure.error)
    }

    /// As [`send`](Self::send); a request of which certainly nothing was sent comes back.
    pub(crate) async fn try_send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        if request.body().size_hint().exact().is_none() {
            // Otherwise hyper takes it that a GET has no body, and drops the one that is there.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        let permit = match self.admit().await {
            Ok(permit) => permit,
            Err(error) => return Err(SendFailure::unsent(error, request)),
        };
        let upgrade = request.headers().contains_key(UPGRADE);
        let response_timeout = self.shared.config.response_timeout;

        let Some(mut connection) = self.shared.checkout() else {
            return self.send_anew(request, permit, upgrade).await;
        };

        let spare = replay(&request);
        match connection.exchange(request, response_timeout).await {
            Ok(response) => Ok(self.respond(response, connection, permit, upgrade)?),
            Err(failure) => {
                let again = match failure.unsent {
                    Some(request) => request,
                    None if failure.lost => match spare {
                        Some(request) => request,
                        None => return Err(failure.error.into()),
                    },
                    None => return Err(failure.error.into()),
                };
                drop(connection);
                self.shared.retried.fetch_add(1, Ordering::Relaxed);
                self.send_anew(again, permit, upgrade).await
            }
        }
    }

    /// Sends a request on a new connection.
    async fn send_anew(
        &self,
        request: Request<RequestBody>,
        permit: Permit,
        upgrade: bool,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let mut connection = match self.shared.connect().await {
            Ok(connection) => connection,
            Err(error) => return Err(SendFailure::unsent(error, request)),
        };
        match connection.exchange(request, self.shared.config.response_timeout).await {
            Ok(response) => Ok(self.respond(response, connection, permit, upgrade)?),
            Err(Failure { error, unsent, .. }) => Err(SendFailure { error, unsent }),
        }
    }

    /// Closes idle connections, the oldest first, at most `most` of them; returns how many.
    pub fn close_idle(&self, most: usize) -> usize {
        let mut pool = self.shared.pool.lock();
        let count = most.min(pool.idle.len());
        let closed: Vec<_> = pool.idle.drain(..count).collect();
        drop(pool);
        closed.len()
    }

    async fn admit(&self) -> Result<Permit, UpstreamError> {
        let shared = &self.shared;
        match shared.permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(tokio::sync::TryAcquireError::Closed) => return Err(UpstreamError::Closed),
            Err(tokio::sync::TryAcquireError::NoPermits) => {
                let waiting = Waiting(&shared.waiting);
                if shared.waiting.fetch_add(1, Ordering::Relaxed) >= shared.config.max_waiting {
                    shared.saturated.fetch_add(1, Ordering::Relaxed);
                    return Err(UpstreamError::Saturated);
                }
                let turn =
                    tokio::time::timeout(shared.config.queue_timeout, shared.permits.acquire());
                match turn.await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) => return Err(UpstreamError::Closed),
                    Err(_) => {
                        shared.saturated.fetch_add(1, Ordering::Relaxed);
                        return Err(UpstreamError::Saturated);
                    }
                }
                drop(waiting);
            }
        }
        Ok(Permit(Arc::clone(shared)))
    }

    fn respond(
        &self,
        response: Response<Incoming>,
        connection: Box<Connection>,
        permit: Permit,
        upgrade: bool,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (mut head, incoming) = response.into_parts();
        if head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH)
        {
            return Err(UpstreamError::AmbiguousLength);
        }
        // hyper has checked that repeated lengths agree; one of them is enough.
        let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
        if let (Some(first), Some(_)) = (lengths.next(), lengths.next()) {
            let first = first.clone();
            head.headers.insert(CONTENT_LENGTH, first);
        }
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if switched && !upgrade {
            return Err(UpstreamError::UnexpectedUpgrade);
        }
        let lease = Lease { connection, permit };
        let body =
            UpstreamBody::new(incoming, lease, self.shared.config.body_idle_timeout, switched);
        Ok(Response::from_parts(head, body))
    }
}

/// A request without a response.
pub(crate) struct SendFailure {
    pub(crate) error: UpstreamError,
    /// The request, if not a byte of it was written.
    ///
    /// After a request that was lost on a connection used before and could be sent again, this tells
    /// of the second time only; but such a request is idempotent.
    pub(crate) unsent: Option<Request<RequestBody>>,
}

impl SendFailure {
    fn unsent(error: UpstreamError, request: Request<RequestBody>) -> Self {
        Self { error, unsent: Some(request) }
    }
}

impl From<UpstreamError> for SendFailure {
    fn from(error: UpstreamError) -> Self {
        Self { error, unsent: None }
    }
}

/// Copies a request that may be sent twice.
fn replay(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() {
        return None;
    }
    let mut copy = Request::new(request.body().replay()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to one connection.
struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.permits.add_permits(1);
    }
}

impl Shared {
    /// Takes the youngest idle connection that still lives.
    fn checkout(&self) -> Option<Box<Connection>> {
        let now = Instant::now();
        loop {
            let mut connection = {
                let mut pool = self.pool.lock();
                let connection = pool.idle.pop_back()?;
                pool.reused += 1;
                connection
            };
            let age = now.saturating_duration_since(connection.idle_since);
            if age < self.config.keep_alive_timeout && connection.is_alive() {
                return Some(connection);
            }
            drop(connection);
            self.pool.lock().reused -= 1;
        }
    }

    /// Parks a connection whose response has been read.
    fn park(self: &Arc<Self>, mut connection: Box<Connection>) {
        connection.rest();
        connection.idle_since = Instant::now();
        let mut pool = self.pool.lock();
        if pool.closed {
            drop(pool);
            drop(connection);
            return;
        }
        pool.idle.push_back(connection);
        // Outside of a runtime, or in one that is shutting down, nobody sweeps; then `checkout`
        // still refuses what is too old.
        if pool.sweeper.as_ref().is_none_or(AbortHandle::is_finished)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let sweep = sweep(Arc::downgrade(self), self.config.keep_alive_timeout);
            pool.sweeper = Some(runtime.spawn(sweep).abort_handle());
        }
    }

    async fn connect(&self) -> Result<Box<Connection>, UpstreamError> {
        let config = &self.config;
        let deadline = Instant::now() + config.connect_timeout;
        let stream = match tokio::time::timeout_at(deadline, self.dial(deadline)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(UpstreamError::ConnectTimeout(config.connect_timeout));
            }
            Ok(Err(error)) => return Err(UpstreamError::Connect(error)),
            Err(_) => return Err(UpstreamError::ConnectTimeout(config.connect_timeout)),
        };
        stream.set_nodelay(true).map_err(UpstreamError::Connect)?;
        let connection = Connection::open(stream, config.max_head_bytes).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(connection))
    }

    /// Tries the origin's addresses in turn, giving each its share of the time that is left.
    async fn dial(&self, deadline: Instant) -> io::Result<TcpStream> {
        let config = &self.config;
        if let Ok(ip) = config.host.parse::<IpAddr>() {
            return TcpStream::connect(SocketAddr::new(ip, config.port)).await;
        }
        let addrs: Vec<_> =
            tokio::net::lookup_host((config.host.as_str(), config.port)).await?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (tried, addr) in addrs.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let shares = u32::try_from(addrs.len() - tried).unwrap_or(u32::MAX);
            match tokio::time::timeout(left / shares, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(sweeper) = &self.pool.get_mut().sweeper {
            sweeper.abort();
        }
    }
}

/// Closes connections that lie idle for too long; ends when none is left.
async fn sweep(shared: Weak<Shared>, keep: Duration) {
    let period = (keep / 2).clamp(Duration::from_millis(10), Duration::from_secs(10));
    loop {
        tokio::time::sleep(period).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut old = Vec::new();
        let mut pool = shared.pool.lock();
        let now = Instant::now();
        // The front is the oldest. A connection that the origin closed is dropped wherever it lies.
        pool.idle = std::mem::take(&mut pool.idle)
            .into_iter()
            .filter_map(|mut connection| {
                let age = now.saturating_duration_since(connection.idle_since);
                if age < keep && connection.is_alive() {
                    return Some(connection);
                }
                old.push(connection);
                None
            })
            .collect();
        let done = pool.idle.is_empty();
        if done {
            pool.sweeper = None;
        }
        drop(pool);
        drop(old);
        if done {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origins_url_is_a_scheme_a_host_a_port_and_a_base() {
        for (url, expected) in [
            ("http://a", ("a", 80, "", "a")),
            ("http://a/", ("a", 80, "", "a")),
            ("http://a:8000/api/", ("a", 8000, "/api", "a:8000")),
            ("http://127.0.0.1:80/x/y", ("127.0.0.1", 80, "/x/y", "127.0.0.1")),
            ("http://[::1]:81", ("::1", 81, "", "[::1]:81")),
        ] {
            let config = UpstreamConfig::new(url).expect(url);
            let read = (config.host.as_str(), config.port, config.base_path.as_str());
            assert_eq!(read, (expected.0, expected.1, expected.2), "{url}");
            assert_eq!(Upstream::new(config).authority(), expected.3, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_says_what_is_wrong() {
        for (url, expected) in [
            ("", "not a url"),
            ("a:80", "expected a url that starts with http://"),
            ("/path", "expected a url that starts with http://"),
            ("https://a", "expected http, found https"),
            ("http://u:p@a", "the url must not carry a user name"),
            ("http://a/?x", "the url must not carry a query"),
            ("http://a:0", "the port must be a number from 1 to 65535"),
            ("http://a:99999", "the port must be a number from 1 to 65535"),
        ] {
            let error = UpstreamConfig::new(url).expect_err(url);
            assert_eq!(error.to_string(), expected, "{url}");
        }
    }
}
