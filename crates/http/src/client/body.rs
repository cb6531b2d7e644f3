//! The body of an answer of another service: bounded in bytes and in silence, and holding its place.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, Sleep};
use ultra_perf::resilience::BulkheadPermit;

use super::HttpClientError;

/// The body of an answer; its request's place is free once it has been read or dropped.
#[derive(Debug)]
pub struct HttpClientBody {
    // Dropped in this order: the connection is free before the place is.
    body: Incoming,
    host: Authority,
    limit_bytes: u64,
    left_bytes: u64,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    place: Option<BulkheadPermit>,
}

impl HttpClientBody {
    pub(super) fn new(
        body: Incoming,
        host: Authority,
        limit_bytes: u64,
        idle_timeout: Duration,
        place: BulkheadPermit,
    ) -> Self {
        // Nothing comes that could tell when it is over.
        let place = (!body.is_end_stream()).then_some(place);
        let (left_bytes, timer, waiting) = (limit_bytes, None, false);
        Self { body, host, limit_bytes, left_bytes, idle_timeout, timer, waiting, place }
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// [`HttpClientError::BodyTooLarge`], [`HttpClientError::BodyStalled`] or
    /// [`HttpClientError::Broken`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, what was read is lost and the connection is closed.
    pub async fn bytes(self) -> Result<Bytes, HttpClientError> {
        Ok(self.collect().await?.to_bytes())
    }

    /// Reads all of it as JSON.
    ///
    /// # Errors
    ///
    /// As [`bytes`](Self::bytes), and [`HttpClientError::Json`] if it is something else.
    ///
    /// # Cancel safety
    ///
    /// As [`bytes`](Self::bytes).
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, HttpClientError> {
        Ok(serde_json::from_slice(&self.bytes().await?)?)
    }

    fn checked(
        &mut self,
        frame: Result<Frame<Bytes>, hyper::Error>,
    ) -> Result<Frame<Bytes>, HttpClientError> {
        let frame = frame.map_err(|error| HttpClientError::Broken {
            host: self.host.to_string(),
            source: error.into(),
        })?;
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left_bytes.checked_sub(length) {
            Some(left) => {
                self.left_bytes = left;
                Ok(frame)
            }
            None => Err(HttpClientError::BodyTooLarge { limit_bytes: self.limit_bytes }),
        }
    }
}

impl Body for HttpClientBody {
    type Data = Bytes;
    type Error = HttpClientError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpClientError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.waiting = false;
                let frame = frame.map(|frame| this.checked(frame));
                if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
                    this.place = None;
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let after = this.idle_timeout;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
                if !this.waiting {
                    this.waiting = true;
                    timer.as_mut().reset(Instant::now() + after);
                }
                timer.as_mut().poll(cx).map(|()| Some(Err(HttpClientError::BodyStalled { after })))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
