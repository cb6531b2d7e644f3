//! Serves HTTP/1.1 and HTTP/2 to clients under limits, and drains when asked to.
//!
//! An accept task takes a place for a connection *before* it accepts one, so at `max_connections`
//! new clients wait in the kernel's queue. Each connection is one task; it looks at the first bytes
//! to tell HTTP/2 with prior knowledge from HTTP/1, then hyper speaks the protocol. A request is
//! [normalized](crate::forward::normalize) and handed to the [`Handler`]; a handler that panics
//! costs its request a 500 and nobody else anything.
//!
//! **Slow clients.** hyper can time the reading of a head, but an allocation and a timer per
//! request is a lot where a whole hit takes 10 us. Here the socket and the requests leave notes in
//! `Client` (idle since, head since, write blocked since), and one timer per connection looks at
//! them when the earliest of its limits could have passed.
//!
//! **Draining.** The tasks register a waker each. [`Server::shutdown`] stops accepting, moves the
//! state to draining and wakes them all: idle connections close, busy ones answer what they have
//! begun with `Connection: close` (HTTP/2: GOAWAY). What is left at the deadline is aborted and
//! counted. A relaxed load per poll is all that this costs a running connection.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::Instant,
};
use tracing::{debug, error, warn};

use self::{
    client::{Client, ClientIo, UnderWay},
    tasks::{ABORTING, Accepting, DRAINING, Tasks},
};
use crate::forward::{self, Peer};

mod client;
mod tasks;

/// How long aborted connections get to notice.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// How HTTP/2 with prior knowledge begins; no HTTP/1 method does.
const H2_START: &[u8] = b"PRI ";

type BoxError = Box<dyn Error + Send + Sync>;

/// Answers requests.
///
/// Implemented for functions from a request and a [`ConnInfo`] to a future of a response.
pub trait Handler: Send + Sync + 'static {
    /// The body of the answers.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

    /// Answers a normalized request.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped if the client goes away.
    fn handle(
        &self,
        request: Request<Incoming>,
        connection: ConnInfo,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

impl<F, R, B> Handler for F
where
    F: Fn(Request<Incoming>, ConnInfo) -> R + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Body = B;

    fn handle(
        &self,
        request: Request<Incoming>,
        connection: ConnInfo,
    ) -> impl Future<Output = Response<B>> + Send {
        self(request, connection)
    }
}

/// The limits of a [`Server`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerLimits {
    /// How many connections may be open; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a request's head may take from its first byte, and the first byte of a connection.
    pub header_timeout: Duration,
    /// How long a connection may lie idle between requests.
    pub idle_timeout: Duration,
    /// How long a client may take nothing while there is something to send.
    pub write_timeout: Duration,
    /// How many bytes a request's head may have.
    pub max_head_bytes: usize,
    /// How many requests an HTTP/2 client may have open at once.
    pub max_concurrent_streams: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            max_head_bytes: 32 * 1024,
            max_concurrent_streams: 128,
        }
    }
}

/// What a [`Server`] has done and holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections open now, tunnels included.
    pub connections: usize,
    /// Requests and tunnels under way now.
    pub requests: usize,
}

/// How a shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Requests and tunnels that were still under way at the deadline and were cut off.
    pub aborted: usize,
}

/// A running server; dropping it cuts all its connections.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    tasks: Arc<Tasks>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Starts to serve the listener's connections with `handler`.
    ///
    /// # Errors
    ///
    /// The listener's own address cannot be read.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start<H: Handler>(
        listener: TcpListener,
        handler: H,
        limits: ServerLimits,
    ) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let tasks = Arc::new(Tasks::new());
        let head_bytes = limits.max_head_bytes.clamp(1024, 1024 * 1024);
        let mut http1 = http1::Builder::new();
        http1
            .header_read_timeout(None)
            .max_header_size(head_bytes)
            .max_buf_size(head_bytes.max(64 * 1024));
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.idle_timeout)
            .keep_alive_timeout(limits.write_timeout)
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(64 * 1024);
        let serving =
            Arc::new(Serving { handler, limits, http1, http2, tasks: Arc::clone(&tasks) });
        let accept = tokio::spawn({
            let accepting = Accepting::begin(&tasks);
            async move {
                accept(listener, serving).await;
                drop(accepting);
            }
        });
        Ok(Self { addr, tasks, accept })
    }

    /// Returns the address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns what it has done and what it holds.
    ///
    /// # Cost
    ///
    /// Walks over the connections under a lock; for a page, not for a request.
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            accepted: self.tasks.accepted(),
            connections: self.tasks.members(),
            requests: self.tasks.requests(),
        }
    }

    /// Stops accepting, lets the requests under way end, and cuts what is left after `grace`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the server draining; it can be called again, and dropping the server
    /// still cuts everything.
    pub async fn shutdown(&self, grace: Duration) -> Drained {
        let deadline = Instant::now() + grace;
        self.accept.abort();
        self.tasks.advance(DRAINING);
        if tokio::time::timeout_at(deadline, self.tasks.emptied()).await.is_ok() {
            return Drained { aborted: 0 };
        }
        let aborted = self.tasks.requests();
        self.tasks.advance(ABORTING);
        if tokio::time::timeout(ABORT_PATIENCE, self.tasks.emptied()).await.is_err() {
            warn!("connections did not stop; a handler blocks its thread");
        }
        Drained { aborted }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
        self.tasks.advance(ABORTING);
    }
}

struct Serving<H> {
    handler: H,
    limits: ServerLimits,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    tasks: Arc<Tasks>,
}

async fn accept<H: Handler>(listener: TcpListener, serving: Arc<Serving<H>>) {
    const PAUSE_MIN: Duration = Duration::from_millis(10);
    const PAUSE_MAX: Duration = Duration::from_secs(1);

    let places = serving.limits.max_connections;
    let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
    let mut pause = PAUSE_MIN;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, addr)) => {
                pause = PAUSE_MIN;
                serving.tasks.note_accepted();
                tokio::spawn(connection(stream, addr, place, Arc::clone(&serving)));
            }
            // The client's doing; the next one may be fine.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::Interrupted
                ) => {}
            // Out of descriptors or memory: trying again at once would only burn the core.
            Err(error) => {
                warn!(%error, "cannot accept connections, pausing for {pause:?}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn connection<H: Handler>(
    stream: TcpStream,
    addr: SocketAddr,
    place: OwnedSemaphorePermit,
    serving: Arc<Serving<H>>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the connection is gone before it began");
        return;
    }
    let client = Client::new(Peer::new(addr), Arc::clone(&serving.tasks), place);
    let info = ConnInfo { client: Arc::new(client) };
    let member = Tasks::join(&info.client);
    let first = tokio::time::timeout(serving.limits.header_timeout, speaks_http2(&stream));
    let Some(Ok(Ok(http2))) = member.unless_draining(first).await else {
        return;
    };
    let io = TokioIo::new(ClientIo::new(stream, Arc::clone(&info.client), !http2));
    let service = service_fn({
        let serving = Arc::clone(&serving);
        let info = info.clone();
        move |request| answer(Arc::clone(&serving), info.clone(), request)
    });
    let limits = &serving.limits;
    let outcome = if http2 {
        let conn = serving.http2.serve_connection(io, service);
        member.run(pin!(conn), limits, http2::Connection::graceful_shutdown).await
    } else {
        let conn = serving.http1.serve_connection(io, service).with_upgrades();
        member.run(pin!(conn), limits, http1::UpgradeableConnection::graceful_shutdown).await
    };
    if let Err(error) = outcome {
        debug!(peer = %addr, error = &error as &dyn Error, "connection ended");
    }
}

/// Tells by the first bytes, without taking them, whether the client speaks HTTP/2.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; H2_START.len()];
    loop {
        let n = stream.peek(&mut start).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if n == H2_START.len() || start[..n] != H2_START[..n] {
            return Ok(start == H2_START);
        }
        // The socket stays readable as long as the few bytes lie there; look again in a while.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn answer<H: Handler>(
    serving: Arc<Serving<H>>,
    info: ConnInfo,
    request: Request<Incoming>,
) -> Result<Response<ServedBody<H::Body>>, Infallible> {
    let under_way = UnderWay::begin(&info.client);
    let (mut head, body) = request.into_parts();
    if let Err(refusal) = forward::normalize(&mut head) {
        let response = forward::problem(refusal.status(), refusal.detail());
        return Ok(
            response.map(|body| ServedBody { body: Served::Own(body), _under_way: under_way })
        );
    }
    let request = Request::from_parts(head, body);
    let response = match unpanicked(|| serving.handler.handle(request, info)).await {
        Some(response) => response.map(Served::Handler),
        None => {
            error!("a handler panicked");
            forward::problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The server met an unexpected condition.",
            )
            .map(Served::Own)
        }
    };
    Ok(response.map(|body| ServedBody { body, _under_way: under_way }))
}

/// Makes and runs a future; `None` if either panicked.
async fn unpanicked<F: Future>(make: impl FnOnce() -> F) -> Option<F::Output> {
    // Unwind safety: whatever the future was about is dropped with it. What it shares with others
    // is behind locks that do not poison, whose holders keep no state across a call that may panic.
    let future = catch_unwind(AssertUnwindSafe(make)).ok()?;
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// The connection that a request came on; cheap to clone.
#[derive(Clone)]
pub struct ConnInfo {
    client: Arc<Client>,
}

impl ConnInfo {
    /// Returns who is at the other end.
    pub fn peer(&self) -> &Peer {
        self.client.peer()
    }

    /// Runs a task in the server's care: counted while it runs, cut when a drain's deadline passes.
    ///
    /// For what outlives its request, such as a tunnel. It keeps the connection's place.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let client = Arc::clone(&self.client);
        // Joined before it is spawned: a drain must not miss it in between.
        let member = Tasks::join(&client);
        let under_way = UnderWay::begin(&client);
        tokio::spawn(async move {
            member.unless_aborting(task).await;
            drop(under_way);
        });
    }

    /// Marks the connection as a tunnel, whose bytes count as its activity.
    pub(crate) fn begin_tunnel(&self) {
        self.client.begin_tunnel();
    }

    /// Returns how long no byte has passed either way; for tunnels.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.client.quiet_for()
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo").field("peer", &self.client.peer().addr()).finish_non_exhaustive()
    }
}

/// The body of an answer: the handler's, or the server's own where it refused.
pub struct ServedBody<B> {
    body: Served<B>,
    _under_way: UnderWay,
}

enum Served<B> {
    Handler(B),
    Own(Full<Bytes>),
}

impl<B> Body for ServedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().body {
            Served::Handler(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Served::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Served::Handler(body) => body.is_end_stream(),
            Served::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Served::Handler(body) => body.size_hint(),
            Served::Own(body) => body.size_hint(),
        }
    }
}
