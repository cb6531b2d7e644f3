//! One connection to the origin, driven by whoever uses it.
//!
//! A hyper connection is a future that has to be polled. The usual way gives each its own task, and
//! then every request crosses a channel and the scheduler twice each way. Here the connection lies
//! inside the future that waits for the response and later inside the response's body, so that a
//! proxied request runs from the client's bytes to the origin's and back in one task.
//!
//! hyper wakes the driver of a connection also for hand-overs between its own two halves. As both
//! halves are polled in the same breath here, each such wake would only run the whole task again
//! for nothing. [`Pulse`] is the waker that hyper gets: a wake that comes *while* the connection is
//! being driven becomes another turn of the loop; one that comes while it rests wakes the task.

use std::{
    error::Error as _,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::UpstreamError;
use crate::body::RequestBody;

/// How often a connection may ask to be driven again before other tasks get their turn.
const TURNS_MAX: usize = 8;

type Driver = http1::Connection<TokioIo<TcpStream>, RequestBody>;

/// A connection and what it takes to drive it.
pub(super) struct Connection {
    pulse: Arc<Pulse>,
    /// The same pulse as hyper sees it.
    waker: Waker,
    pub(super) wire: Wire,
    pub(super) idle_since: Instant,
}

pub(super) struct Wire {
    sender: SendRequest<RequestBody>,
    /// Dropping it resolves whatever still waits for it.
    pub(super) driver: Option<Driver>,
    /// The driver has finished: the connection is closed or speaks another protocol.
    pub(super) ended: bool,
    /// One timer for all waits of this connection. Moving it to a later time takes no lock.
    pub(super) timer: Pin<Box<Sleep>>,
    /// The request's body under way, if it streams.
    upload: Option<Upload>,
}

struct Upload {
    /// Counts the frames that hyper took.
    frames: Arc<AtomicU64>,
    /// The count when the timer was set last.
    seen: u64,
}

pub(super) struct Failure {
    pub(super) error: UpstreamError,
    /// The request, if not a byte of it was written.
    pub(super) unsent: Option<Request<RequestBody>>,
    /// The connection was lost before a response came.
    pub(super) lost: bool,
}

impl Connection {
    /// Starts to speak HTTP on a socket; a response's head may have `max_head_bytes`.
    pub(super) async fn open(
        stream: TcpStream,
        max_head_bytes: usize,
    ) -> Result<Self, UpstreamError> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(max_head_bytes.max(8192))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Protocol)?;
        let pulse = Arc::new(Pulse::default());
        Ok(Self {
            waker: Waker::from(Arc::clone(&pulse)),
            pulse,
            wire: Wire {
                sender,
                driver: Some(driver),
                ended: false,
                timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
                upload: None,
            },
            idle_since: Instant::now(),
        })
    }

    /// Writes a request and reads the head of its response.
    pub(super) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        self.wire.upload = request.body().progress().map(|frames| Upload { frames, seen: 0 });
        self.wire.timer.as_mut().reset(Instant::now() + timeout);
        let mut answer = pin!(self.wire.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            self.drive(cx, |wire, cx| {
                wire.turn(cx);
                if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(answer));
                }
                if wire.abandon()
                    && let Poll::Ready(answer) = answer.as_mut().poll(cx)
                {
                    return Poll::Ready(Some(answer));
                }
                wire.poll_idle(cx, timeout).map(|()| None)
            })
        })
        .await;
        match answered {
            Some(Ok(response)) => Ok(response),
            Some(Err(mut refused)) => {
                let unsent = refused.take_message();
                let error = refused.into_error();
                let lost = is_lost(&error);
                Err(Failure { error: UpstreamError::from_hyper(error), unsent, lost })
            }
            None => Err(Failure {
                error: UpstreamError::ResponseTimeout(timeout),
                unsent: None,
                lost: false,
            }),
        }
    }

    /// Runs `step` under the pulse until it is ready or truly has to wait.
    pub(super) fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Wire, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let mut inner = Context::from_waker(&self.waker);
        self.pulse.task.register(cx.waker());
        for _ in 0..TURNS_MAX {
            self.pulse.begin();
            if let Poll::Ready(value) = step(&mut self.wire, &mut inner) {
                self.pulse.end();
                return Poll::Ready(value);
            }
            if self.pulse.end() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Drives an idle connection once to see whether the origin closed it or spoke unasked.
    pub(super) fn is_alive(&mut self) -> bool {
        self.pulse.begin();
        self.wire.turn(&mut Context::from_waker(&self.waker));
        self.pulse.end();
        self.wire.is_reusable()
    }

    /// Forgets the task that used it last.
    pub(super) fn rest(&mut self) {
        self.wire.upload = None;
        drop(self.pulse.task.take());
    }
}

impl Wire {
    /// Lets hyper read and write what it can.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>) {
        if !self.ended
            && let Some(driver) = &mut self.driver
        {
            // An error reaches whoever waits for the response or its body.
            self.ended = driver.poll_without_shutdown(cx).is_ready();
        }
    }

    /// Drops a driver that has finished, so that whatever still waits for it learns of that.
    pub(super) fn abandon(&mut self) -> bool {
        if self.ended {
            self.driver = None;
        }
        self.ended
    }

    pub(super) fn is_reusable(&self) -> bool {
        !self.ended && self.sender.is_ready() && !self.sender.is_closed()
    }

    /// Becomes ready when the timer has run out and the request's body has not moved either.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>, timeout: Duration) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let Some(upload) = &mut self.upload else {
                return Poll::Ready(());
            };
            let frames = upload.frames.load(Ordering::Relaxed);
            if frames == upload.seen {
                return Poll::Ready(());
            }
            upload.seen = frames;
            self.timer.as_mut().reset(Instant::now() + timeout);
        }
    }
}

/// Tells whether the connection went away, as opposed to the origin answering nonsense.
fn is_lost(error: &hyper::Error) -> bool {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return true;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::NotConnected
            );
        }
        cause = inner.source();
    }
    false
}

const DRIVING: u8 = 1;
const WOKEN: u8 = 2;

/// The waker inside a connection.
///
/// `state` holds two bits. While `DRIVING` is set, a wake only adds `WOKEN` and the driver takes
/// another turn instead of going to rest. While it is clear, the first wake goes to the task, and
/// `WOKEN` keeps later ones from repeating it until somebody drives again.
///
/// A wake is lost in no order of events. Whoever wakes has made its change before; `wake`, `begin`
/// and `end` are all read-modify-writes of the one word, each acquiring and releasing, so a wake
/// before `begin` or `end` is seen there together with its change, and a wake after `end` finds
/// `DRIVING` clear and calls the task that `drive` registered before it began.
#[derive(Default)]
struct Pulse {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Pulse {
    fn begin(&self) {
        self.state.swap(DRIVING, Ordering::AcqRel);
    }

    /// Goes to rest, telling whether no wake came meanwhile.
    fn end(&self) -> bool {
        self.state.swap(0, Ordering::AcqRel) == DRIVING
    }
}

impl Wake for Pulse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) == 0 {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts the wakes that reach the task.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_pulse_wakes_the_task_once_and_only_while_it_rests() {
        let task = Arc::new(Task::default());
        let pulse = Arc::new(Pulse::default());
        let waker = Waker::from(Arc::clone(&pulse));
        let woken = || task.0.load(Ordering::Relaxed);
        pulse.task.register(&Waker::from(Arc::clone(&task)));

        pulse.begin();
        assert!(pulse.end(), "nothing happened");
        pulse.begin();
        waker.wake_by_ref();
        assert!(!pulse.end(), "it takes another turn");
        assert_eq!(woken(), 0);

        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        pulse.task.register(&Waker::from(Arc::clone(&task)));
        pulse.begin();
        assert!(pulse.end(), "the wake was before this turn");
        waker.wake();
        assert_eq!(woken(), 2);
    }
}
