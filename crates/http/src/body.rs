//! The body of a request on its way to the origin.
//!
//! Most requests carry none, some are made by the proxy itself and fit in one buffer, and the rest
//! stream from the client: frame by frame, never more than the origin takes, under a limit on the
//! whole and another on how long the client may pause. An enum instead of a boxed trait object
//! keeps the common case free of allocations and virtual calls.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

/// Says why the body of a request ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestBodyError {
    /// The body is longer than this server accepts.
    #[error("the request body exceeds {limit_bytes} bytes")]
    TooLarge {
        /// The limit it exceeds.
        limit_bytes: u64,
    },
    /// The client stopped sending before the end of the body.
    #[error("the request body stalled for {after:?}")]
    Idle {
        /// How long nothing came.
        after: Duration,
    },
    /// The client's connection failed or broke the protocol.
    #[error("the request body broke off")]
    Broken(#[source] hyper::Error),
}

/// The body of a request to the origin.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum RequestBody {
    /// No body.
    #[default]
    Empty,
    /// A body in memory; it can be sent again.
    Full(Bytes),
    /// A body that streams from the client.
    Stream(ClientBody),
}

impl RequestBody {
    /// Wraps a client's body, refusing one that already announces more than `limit_bytes`.
    ///
    /// While it streams, the same limit counts the bytes that really come, and a client that sends
    /// nothing for `idle_timeout` ends it with an error.
    ///
    /// # Errors
    ///
    /// [`RequestBodyError::TooLarge`] if the announced length exceeds the limit.
    ///
    /// # Cost
    ///
    /// Nothing for a request without a body, one small allocation otherwise.
    pub fn streaming(
        body: Incoming,
        limit_bytes: u64,
        idle_timeout: Duration,
    ) -> Result<Self, RequestBodyError> {
        if body.is_end_stream() {
            return Ok(Self::Empty);
        }
        if body.size_hint().lower() > limit_bytes {
            return Err(RequestBodyError::TooLarge { limit_bytes });
        }
        Ok(Self::Stream(ClientBody {
            body,
            limit_bytes,
            left_bytes: limit_bytes,
            idle_timeout,
            timer: None,
            waiting: false,
            progress: Arc::default(),
        }))
    }

    /// Tells whether the body can be sent a second time.
    pub fn is_replayable(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }

    /// Copies a replayable body.
    pub(crate) fn replay(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Stream(_) => None,
        }
    }

    /// Returns the counter of frames taken from a streaming body.
    pub(crate) fn progress(&self) -> Option<Arc<AtomicU64>> {
        match self {
            Self::Stream(body) => Some(Arc::clone(&body.progress)),
            _ => None,
        }
    }
}

/// A client's body under a limit of bytes and of silence; made by [`RequestBody::streaming`].
#[derive(Debug)]
pub struct ClientBody {
    body: Incoming,
    limit_bytes: u64,
    left_bytes: u64,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    progress: Arc<AtomicU64>,
}

impl ClientBody {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.waiting = false;
                self.progress.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(frame.map(|frame| self.checked(frame)))
            }
            Poll::Pending => {
                let idle_timeout = self.idle_timeout;
                let timer =
                    self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_timeout)));
                if !self.waiting {
                    self.waiting = true;
                    timer.as_mut().reset(Instant::now() + idle_timeout);
                }
                timer
                    .as_mut()
                    .poll(cx)
                    .map(|()| Some(Err(RequestBodyError::Idle { after: idle_timeout })))
            }
        }
    }

    fn checked(
        &mut self,
        frame: Result<Frame<Bytes>, hyper::Error>,
    ) -> Result<Frame<Bytes>, RequestBodyError> {
        let frame = frame.map_err(RequestBodyError::Broken)?;
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left_bytes.checked_sub(length) {
            Some(left) => {
                self.left_bytes = left;
                Ok(frame)
            }
            None => Err(RequestBodyError::TooLarge { limit_bytes: self.limit_bytes }),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.body.size_hint(),
        }
    }
}
