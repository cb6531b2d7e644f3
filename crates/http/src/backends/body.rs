//! The body of a backend's answer, which keeps the lease of the backend until it has been read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use ultra_perf::loadbalancer::{Lease, Outcome};

use crate::upstream::{UpstreamBody, UpstreamError};

/// The body of an answer, and the place that it takes in its backend.
///
/// Read to its end, or dropped, it gives the place back. If the backend breaks off within it, that
/// counts as a failure.
#[derive(Debug)]
pub(crate) struct BackendBody {
    // Dropped in this order: the connection is free before the place is.
    body: UpstreamBody,
    lease: Option<Lease>,
}

impl BackendBody {
    /// `lease` is that of an answer which has more to come.
    pub(super) fn new(body: UpstreamBody, lease: Option<Lease>) -> Self {
        Self { body, lease }
    }

    /// Takes it apart, for a tunnel.
    pub(crate) fn into_parts(self) -> (UpstreamBody, Option<Lease>) {
        (self.body, self.lease)
    }
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Err(error)) if error.is_origin_failure() => {
                if let Some(lease) = this.lease.take() {
                    lease.complete(Outcome::Failure);
                }
            }
            Some(Ok(_)) if !this.body.is_end_stream() => {}
            _ => this.lease = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
