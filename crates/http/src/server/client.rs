//! Notes about one client's connection, taken where things happen.
//!
//! The socket notes when a head begins and when writing gets stuck, a request notes when it begins
//! and ends; [`Client::deadline`] turns the notes into the moment at which a limit is broken.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

use super::{ServerLimits, tasks::Tasks};
use crate::forward::Peer;

/// A request from its head to the end of its answer.
pub(super) struct UnderWay(Arc<Client>);

impl UnderWay {
    pub(super) fn begin(client: &Arc<Client>) -> Self {
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
pub(super) struct Client {
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
    pub(super) fn new(peer: Peer, tasks: Arc<Tasks>, place: OwnedSemaphorePermit) -> Self {
        Self {
            peer,
            phase: AtomicU8::new(IDLE),
            since: AtomicU64::new(tasks.now()),
            blocked_since: AtomicU64::new(NEVER),
            requests: AtomicUsize::new(0),
            tasks,
            _place: place,
        }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(super) fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }

    /// Returns how many requests and tunnels are under way.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn begin_tunnel(&self) {
        self.phase.store(TUNNEL, Ordering::Relaxed);
        self.note_now();
    }

    /// Returns how long no byte has passed; for tunnels.
    pub(super) fn quiet_for(&self) -> Duration {
        let since = self.since.load(Ordering::Relaxed);
        Duration::from_millis(self.tasks.now().saturating_sub(since))
    }

    fn note_now(&self) {
        self.since.store(self.tasks.now(), Ordering::Relaxed);
    }

    /// Turns an idle connection into one that has to end, telling whether it was idle.
    pub(super) fn end_idling(&self) -> bool {
        let idle = self.phase.load(Ordering::Relaxed) == IDLE;
        if idle {
            self.note_now();
            self.phase.store(HEAD, Ordering::Relaxed);
        }
        idle
    }

    /// Returns when the connection has to be closed unless something happens before.
    pub(super) fn deadline(&self, limits: &ServerLimits) -> Option<u64> {
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

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The client's socket; it notes what happens on it.
pub(super) struct ClientIo {
    stream: TcpStream,
    client: Arc<Client>,
    /// HTTP/1: bytes that come while idle begin a head.
    notes_heads: bool,
}

impl ClientIo {
    pub(super) fn new(stream: TcpStream, client: Arc<Client>, notes_heads: bool) -> Self {
        Self { stream, client, notes_heads }
    }

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
