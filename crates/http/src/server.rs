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
//! [`Client`] (idle since, head since, write blocked since), and one timer per connection looks at
//! them when the earliest of its limits could have passed.
//!
//! **Draining.** The tasks register a waker each. [`Server::shutdown`] stops accepting, moves the
//! state to draining and wakes them all: idle connections close, busy ones answer what they have
//! begun with `Connection: close` (HTTP/2: GOAWAY). What is left at the deadline is aborted and
//! counted. A relaxed load per poll is all that this costs a running connection.

use std::{
    collections::HashMap,
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
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
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, Sleep},
};
use tracing::{debug, error, warn};

use crate::forward::{self, Peer};

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
        let tasks = Arc::new(Tasks {
            state: AtomicU8::new(RUNNING),
            started: Instant::now(),
            accepted: AtomicU64::new(0),
            registry: Mutex::new(Registry { accepting: true, ..Registry::default() }),
            emptied: Notify::new(),
        });
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
            let accepting = Accepting(Arc::clone(&tasks));
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
        let registry = self.tasks.registry.lock();
        ServerStats {
            accepted: self.tasks.accepted.load(Ordering::Relaxed),
            connections: registry.members.len(),
            requests: registry.requests(),
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
        let aborted = self.tasks.registry.lock().requests();
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

/// Says that the accept task runs; dropped after the listener.
struct Accepting(Arc<Tasks>);

impl Drop for Accepting {
    fn drop(&mut self) {
        let mut registry = self.0.registry.lock();
        registry.accepting = false;
        let empty = registry.is_empty();
        drop(registry);
        if empty {
            self.0.emptied.notify_waiters();
        }
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
                serving.tasks.accepted.fetch_add(1, Ordering::Relaxed);
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
    let info = ConnInfo {
        client: Arc::new(Client {
            peer: Peer::new(addr),
            tasks: Arc::clone(&serving.tasks),
            phase: AtomicU8::new(IDLE),
            since: AtomicU64::new(serving.tasks.now()),
            blocked_since: AtomicU64::new(NEVER),
            requests: AtomicUsize::new(0),
            _place: place,
        }),
    };
    let member = Tasks::join(&info.client);
    let first = tokio::time::timeout(serving.limits.header_timeout, speaks_http2(&stream));
    let http2 = match member.unless_draining(first).await {
        Some(Ok(Ok(http2))) => http2,
        Some(Ok(Err(_)) | Err(_)) | None => return,
    };
    let io =
        TokioIo::new(ClientIo { stream, client: Arc::clone(&info.client), notes_heads: !http2 });
    let service = service_fn({
        let serving = Arc::clone(&serving);
        let info = info.clone();
        move |request| answer(Arc::clone(&serving), info.clone(), request)
    });
    let limits = &serving.limits;
    let outcome = if http2 {
        let conn = serving.http2.serve_connection(io, service);
        member.run(pin!(conn), limits, |conn| conn.graceful_shutdown()).await
    } else {
        let conn = serving.http1.serve_connection(io, service).with_upgrades();
        member.run(pin!(conn), limits, |conn| conn.graceful_shutdown()).await
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
        &self.client.peer
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
        self.client.phase.store(TUNNEL, Ordering::Relaxed);
        self.client.note_now();
    }

    /// Returns how long no byte has passed either way; for tunnels.
    pub(crate) fn quiet_for(&self) -> Duration {
        let since = self.client.since.load(Ordering::Relaxed);
        Duration::from_millis(self.client.tasks.now().saturating_sub(since))
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo").field("peer", &self.client.peer.addr()).finish_non_exhaustive()
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

/// A request from its head to the end of its answer.
struct UnderWay(Arc<Client>);

impl UnderWay {
    fn begin(client: &Arc<Client>) -> Self {
        client.requests.fetch_add(1, Ordering::Relaxed);
        if client.phase.load(Ordering::Relaxed) != TUNNEL {
            client.phase.store(BUSY, Ordering::Relaxed);
        }
        Self(Arc::clone(client))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let client = &*self.0;
        if client.requests.fetch_sub(1, Ordering::Relaxed) == 1
            && client.phase.load(Ordering::Relaxed) == BUSY
        {
            client.note_now();
            client.phase.store(IDLE, Ordering::Relaxed);
        }
    }
}

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;
const TUNNEL: u8 = 3;

const NEVER: u64 = u64::MAX;

/// The notes about one connection; times are milliseconds since the server started.
///
/// All accesses are relaxed: the notes are written and read by the connection's own task, or, for
/// HTTP/2, are a hint that the next look at the clock corrects.
struct Client {
    peer: Peer,
    tasks: Arc<Tasks>,
    phase: AtomicU8,
    /// When `phase` became what it is; in a tunnel, when the last byte passed.
    since: AtomicU64,
    blocked_since: AtomicU64,
    requests: AtomicUsize,
    _place: OwnedSemaphorePermit,
}

impl Client {
    fn note_now(&self) {
        self.since.store(self.tasks.now(), Ordering::Relaxed);
    }

    /// Turns an idle connection into one that has to end, telling whether it was idle.
    fn end_idling(&self) -> bool {
        let idle = self.phase.load(Ordering::Relaxed) == IDLE;
        if idle {
            self.note_now();
            self.phase.store(HEAD, Ordering::Relaxed);
        }
        idle
    }

    /// Returns when the connection has to be closed unless something happens before.
    fn deadline(&self, limits: &ServerLimits) -> Option<u64> {
        let since = self.since.load(Ordering::Relaxed);
        let phase = match self.phase.load(Ordering::Relaxed) {
            IDLE => Some(since.saturating_add(millis(limits.idle_timeout))),
            HEAD => Some(since.saturating_add(millis(limits.header_timeout))),
            _ => None,
        };
        let blocked = match self.blocked_since.load(Ordering::Relaxed) {
            NEVER => None,
            since => Some(since.saturating_add(millis(limits.write_timeout))),
        };
        match (phase, blocked) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The client's socket; it notes what happens on it.
struct ClientIo {
    stream: TcpStream,
    client: Arc<Client>,
    /// HTTP/1: bytes that come while idle begin a head.
    notes_heads: bool,
}

impl ClientIo {
    fn note_write<T>(&self, poll: &Poll<T>) {
        let blocked = &self.client.blocked_since;
        match (poll.is_pending(), blocked.load(Ordering::Relaxed)) {
            (true, NEVER) => blocked.store(self.client.tasks.now(), Ordering::Relaxed),
            (true, _) | (false, NEVER) => {}
            (false, _) => blocked.store(NEVER, Ordering::Relaxed),
        }
        if poll.is_ready() && self.client.phase.load(Ordering::Relaxed) == TUNNEL {
            self.client.note_now();
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            let client = &self.client;
            match client.phase.load(Ordering::Relaxed) {
                IDLE if self.notes_heads => {
                    client.note_now();
                    client.phase.store(HEAD, Ordering::Relaxed);
                }
                TUNNEL => client.note_now(),
                _ => {}
            }
        }
        poll
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_write(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const ABORTING: u8 = 2;

/// All tasks of a server, so that a drain can reach them and wait for them.
#[derive(Debug)]
struct Tasks {
    state: AtomicU8,
    started: Instant,
    accepted: AtomicU64,
    registry: Mutex<Registry>,
    emptied: Notify,
}

#[derive(Default)]
struct Registry {
    /// The accept task still holds the listener.
    accepting: bool,
    next: u64,
    members: HashMap<u64, Entry>,
}

struct Entry {
    waker: Option<Waker>,
    client: std::sync::Weak<Client>,
}

impl Registry {
    fn is_empty(&self) -> bool {
        !self.accepting && self.members.is_empty()
    }

    fn requests(&self) -> usize {
        let mut seen = std::collections::HashSet::new();
        self.members
            .values()
            .filter_map(|entry| entry.client.upgrade())
            // A tunnel's task and its connection's share one client while they overlap.
            .filter(|client| seen.insert(Arc::as_ptr(client)))
            .map(|client| client.requests.load(Ordering::Relaxed))
            .sum()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

impl Tasks {
    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    fn join(client: &Arc<Client>) -> Member {
        let tasks = Arc::clone(&client.tasks);
        let mut registry = tasks.registry.lock();
        let id = registry.next;
        registry.next += 1;
        let entry = Entry { waker: None, client: Arc::downgrade(client) };
        registry.members.insert(id, entry);
        drop(registry);
        Member { id, tasks, client: Arc::clone(client) }
    }

    /// Moves to a later state and lets every task see it.
    fn advance(&self, state: u8) {
        // Before the lock: a task that registers its waker after this loop reads the new state.
        self.state.fetch_max(state, Ordering::Release);
        let wakers: Vec<_> = {
            let registry = self.registry.lock();
            let members = registry.members.values();
            members.filter_map(|entry| entry.waker.clone()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            let mut notified = pin!(notified);
            notified.as_mut().enable();
            if self.registry.lock().is_empty() {
                return;
            }
            notified.await;
        }
    }
}

/// A task's place among the others; leaves when dropped.
struct Member {
    id: u64,
    tasks: Arc<Tasks>,
    client: Arc<Client>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut registry = self.tasks.registry.lock();
        registry.members.remove(&self.id);
        let empty = registry.is_empty();
        drop(registry);
        if empty {
            self.tasks.emptied.notify_waiters();
        }
    }
}

impl Member {
    fn register(&self, waker: &Waker) {
        let mut registry = self.tasks.registry.lock();
        if let Some(entry) = registry.members.get_mut(&self.id) {
            entry.waker = Some(waker.clone());
        }
    }

    /// Runs `future` until the state reaches `limit`.
    async fn until<F: Future>(&self, limit: u8, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut registered = false;
        poll_fn(|cx| {
            // The task's waker stays the same for all its life.
            if !registered {
                registered = true;
                self.register(cx.waker());
            }
            if self.tasks.state() >= limit {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }

    async fn unless_draining<F: Future>(&self, future: F) -> Option<F::Output> {
        self.until(DRAINING, future).await
    }

    async fn unless_aborting<F: Future>(&self, future: F) -> Option<F::Output> {
        self.until(ABORTING, future).await
    }

    /// Runs a connection under its limits until it ends, is told to drain, or is cut.
    async fn run<C>(
        &self,
        mut conn: Pin<&mut C>,
        limits: &ServerLimits,
        drain: impl Fn(Pin<&mut C>),
    ) -> Result<(), hyper::Error>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut watch = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = 0;
        let mut draining = false;
        let served = poll_fn(|cx| {
            if !draining && self.tasks.state() >= DRAINING {
                draining = true;
                drain(conn.as_mut());
            }
            if let Poll::Ready(end) = conn.as_mut().poll(cx) {
                return Poll::Ready(Some(end));
            }
            while self.is_overdue(watch.as_mut(), &mut armed, limits, cx) {
                if !self.client.end_idling() {
                    return Poll::Ready(None);
                }
                // HTTP/2 tells the client; then it has as long as a head may take to hang up.
                draining = true;
                drain(conn.as_mut());
                if let Poll::Ready(end) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Some(end));
                }
            }
            Poll::Pending
        });
        match self.unless_aborting(served).await {
            Some(Some(end)) => end,
            Some(None) | None => Ok(()),
        }
    }

    /// Keeps `watch` at the earliest moment at which a limit could have passed, and tells whether
    /// one has.
    fn is_overdue(
        &self,
        mut watch: Pin<&mut Sleep>,
        armed: &mut u64,
        limits: &ServerLimits,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(deadline) = self.client.deadline(limits) else {
            return false;
        };
        loop {
            // An early timer is left alone: it finds out when it fires. Only a limit that comes
            // before it moves it.
            if *armed == 0 || deadline < *armed {
                *armed = deadline.max(1);
                let at = self.tasks.started + Duration::from_millis(*armed);
                watch.as_mut().reset(at);
            } else if !watch.is_elapsed() {
                // Registered with this task's waker when it was armed.
                return false;
            }
            if watch.as_mut().poll(cx).is_pending() {
                return false;
            }
            *armed = 0;
            if self.tasks.now() >= deadline {
                return true;
            }
        }
    }
}
