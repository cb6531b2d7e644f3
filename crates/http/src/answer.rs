//! The body of an answer to a client: from memory, from the origin, or from a body being stored.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::fill::{BrokenOff, FillReader};
use crate::origin::BoxError;

/// The body of an answer; an enum, so that a hit needs no allocation for it.
#[derive(Debug)]
pub(crate) struct AnswerBody<B>(Kind<B>);

#[derive(Debug)]
enum Kind<B> {
    Empty,
    Full(Bytes),
    Origin(Box<B>),
    Fill(FillReader),
}

/// A body that could not be sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// The origin broke off, or was too slow, while its answer was passed on.
    #[error("the origin's response broke off")]
    Origin(#[source] BoxError),
    /// The answer that was being stored broke off.
    #[error(transparent)]
    Fill(#[from] BrokenOff),
}

impl<B> AnswerBody<B> {
    /// A body that comes from the origin and is not stored.
    pub(crate) fn of_origin(body: B) -> Self {
        Self(Kind::Origin(Box::new(body)))
    }

    /// All of the body, where it is in memory; otherwise itself.
    pub(crate) fn whole(self) -> Result<Bytes, Self> {
        match self.0 {
            Kind::Empty => Ok(Bytes::new()),
            Kind::Full(bytes) => Ok(bytes),
            other => Err(Self(other)),
        }
    }

    /// The body of the origin, where it is one; otherwise itself.
    pub(crate) fn into_origin(self) -> Result<B, Self> {
        match self.0 {
            Kind::Origin(body) => Ok(*body),
            other => Err(Self(other)),
        }
    }
}

impl<B> Default for AnswerBody<B> {
    fn default() -> Self {
        Self(Kind::Empty)
    }
}

impl<B> From<Bytes> for AnswerBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Full(bytes))
    }
}

impl<B> From<FillReader> for AnswerBody<B> {
    fn from(reader: FillReader) -> Self {
        Self(Kind::Fill(reader))
    }
}

impl<B> From<Full<Bytes>> for AnswerBody<B> {
    fn from(mut full: Full<Bytes>) -> Self {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(&mut full).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                frame.into_data().map_or_else(|_| Self::default(), Self::from)
            }
            _ => Self::default(),
        }
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut self.get_mut().0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Origin(body) => {
                let frame = Pin::new(&mut **body).poll_frame(cx);
                frame.map_err(|error| AnswerError::Origin(error.into()))
            }
            Kind::Fill(reader) => reader.poll(cx).map_err(AnswerError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Origin(body) => body.is_end_stream(),
            Kind::Fill(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Origin(body) => body.size_hint(),
            Kind::Fill(reader) => reader.size_hint(),
        }
    }
}
