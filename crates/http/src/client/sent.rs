//! The body of a request that is sent as it comes, and what goes wrong with reading it.
//!
//! A connection tells of that in its own way: HTTP/1.1 as an error of the user, HTTP/2 as a stream that
//! was reset, as if the host had done it. So the body leaves a note.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

use crate::origin::BoxError;

/// Where a body leaves its error.
pub(super) type Slot = Arc<Mutex<Option<BoxError>>>;

/// What the connection gets to see of the error.
#[derive(Debug, thiserror::Error)]
#[error("the request's body broke off")]
pub(super) struct BrokeOff;

pin_project! {
    /// A body that leaves its error in a slot.
    pub(super) struct Sent<B> {
        #[pin]
        body: B,
        slot: Slot,
    }
}

impl<B> Sent<B> {
    pub(super) fn new(body: B, slot: Slot) -> Self {
        Self { body, slot }
    }
}

impl<B> Body for Sent<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                *this.slot.lock() = Some(error.into());
                BrokeOff
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
