//! The body of a response, which carries its connection.
//!
//! It reads from the socket as it is polled, one piece at a time. The end of the body gives the
//! connection back to the pool; an error or a drop before the end closes it. After a 101 response
//! there is no body, and the connection itself can be taken over.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{net::TcpStream, time::Instant};

use super::{Permit, UpstreamError, connection::Connection};

/// A connection in use and the place it takes.
pub(super) struct Lease {
    // Dropped in this order: the place is free once the connection is parked or closed.
    pub(super) connection: Box<Connection>,
    pub(super) permit: Permit,
}

/// The body of an origin's response.
///
/// It is read from the socket as it is polled. Read to its end it gives the connection back to the
/// pool; dropped earlier it closes it.
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    idle_timeout: Duration,
    waiting: bool,
    /// It is the body of a 101 response.
    switched: bool,
    /// An error that the reader gets at the next call.
    failure: Option<UpstreamError>,
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Incoming,
        lease: Lease,
        idle_timeout: Duration,
        switched: bool,
    ) -> Self {
        let mut body = Self {
            incoming,
            lease: Some(lease),
            idle_timeout,
            waiting: false,
            switched,
            failure: None,
        };
        if !switched && body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    /// Takes the connection over after a 101 response: the socket and what was read too much.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::UnexpectedUpgrade`] if the response did not switch protocols.
    pub async fn upgrade(mut self) -> Result<Tunnelled, UpstreamError> {
        let Some(mut lease) = self.lease.take().filter(|_| self.switched) else {
            return Err(UpstreamError::UnexpectedUpgrade);
        };
        std::future::poll_fn(|cx| {
            lease.connection.drive(cx, |wire, cx| {
                wire.turn(cx);
                if wire.ended { Poll::Ready(()) } else { Poll::Pending }
            })
        })
        .await;
        let driver = lease.connection.wire.driver.take();
        let parts = driver.ok_or(UpstreamError::UnexpectedUpgrade)?.into_parts();
        Ok(Tunnelled {
            stream: parts.io.into_inner(),
            read_ahead: parts.read_buf,
            _permit: lease.permit,
        })
    }

    /// Gives the connection back if the exchange is complete.
    fn finish(&mut self) {
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        if lease.connection.wire.is_reusable() || lease.connection.is_alive() {
            let Lease { connection, permit } = lease;
            permit.0.park(connection);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let Self { incoming, lease: Some(lease), idle_timeout, waiting, .. } = self else {
            // Whatever hyper still holds needs no connection: trailers, or nothing.
            return Pin::new(&mut self.incoming).poll_frame(cx).map_err(UpstreamError::Protocol);
        };
        lease.connection.drive(cx, |wire, cx| {
            let mut frame = Pin::new(&mut *incoming).poll_frame(cx);
            if frame.is_pending() {
                wire.turn(cx);
                frame = Pin::new(&mut *incoming).poll_frame(cx);
            }
            if frame.is_pending() && wire.abandon() {
                frame = Pin::new(&mut *incoming).poll_frame(cx);
            }
            if let Poll::Ready(frame) = frame {
                *waiting = false;
                return Poll::Ready(frame.map(|frame| frame.map_err(UpstreamError::from_hyper)));
            }
            if !*waiting {
                *waiting = true;
                wire.timer.as_mut().reset(Instant::now() + *idle_timeout);
            }
            wire.poll_idle(cx, *idle_timeout)
                .map(|()| Some(Err(UpstreamError::BodyIdle(*idle_timeout))))
        })
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = self.get_mut();
        if let Some(error) = this.failure.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match ready!(this.poll(cx)) {
            Some(Err(error)) => {
                this.lease = None;
                // hyper closes the client's connection on an error without writing what it has
                // buffered. Given one more turn it flushes, and what had come still arrives.
                this.failure = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            frame => frame,
        };
        match &frame {
            None => this.finish(),
            Some(_) if this.incoming.is_end_stream() => this.finish(),
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody")
            .field("length", &self.incoming.size_hint().exact())
            .field("leased", &self.lease.is_some())
            .finish_non_exhaustive()
    }
}

/// A connection to the origin that no longer speaks HTTP; it still counts as one.
pub struct Tunnelled {
    /// The socket.
    pub stream: TcpStream,
    /// Bytes that came right behind the response's head.
    pub read_ahead: Bytes,
    _permit: Permit,
}

impl fmt::Debug for Tunnelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnelled")
            .field("stream", &self.stream)
            .field("read_ahead", &self.read_ahead.len())
            .finish_non_exhaustive()
    }
}
