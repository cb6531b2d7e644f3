//! Where the answers come from that the cache does not have: backends, or a service in this process.
//!
//! The [accelerator](crate::accelerator) is the same in front of both. It asks an [`Origin`] only for
//! what it may keep or pass on without a body of the request; a request that passes the cache by goes to
//! its origin as it came, which is the business of whoever has the request.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode, request, response};
use http_body::Body;

use crate::answer::AnswerBody;
use crate::compress::{Packed, Wanted};
use crate::forward::problem;
use crate::rules::Times;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// Answers what the cache cannot; clones are the same origin.
pub(crate) trait Origin: Clone + Send + Sync + 'static {
    /// What the origin is told of the client, beside the head of the request.
    type Client: Clone + Send + Sync + 'static;
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + Unpin + 'static;

    /// Asks for something with a request that has no body.
    ///
    /// The fields of the answer are those for another hop.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the call.
    fn fetch(
        &self,
        parts: request::Parts,
        client: &Self::Client,
    ) -> impl Future<Output = Result<Fetched<Self::Body>, Failure>> + Send;
}

/// An answer of an origin.
pub(crate) struct Fetched<B> {
    pub(crate) head: response::Parts,
    pub(crate) body: B,
    pub(crate) times: Times,
    /// The cookie that keeps the client on the backend, if it has none yet.
    pub(crate) cookie: Option<HeaderValue>,
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Fetched<B> {
    /// Compresses the answer, if that is wanted and of use.
    pub(crate) fn packed(self, wanted: Option<&Wanted>) -> Fetched<Packed<B>> {
        let Self { head, body, times, cookie } = self;
        let (head, body) = match wanted {
            Some(wanted) => wanted.pack(head, body),
            None => (head, Packed::Plain(body)),
        };
        Fetched { head, body, times, cookie }
    }
}

/// A call to the origin without an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) detail: &'static str,
    /// Whether it is the origin's and not the request's: a stale answer may stand in.
    pub(crate) is_origins: bool,
    /// Whether those who wait for this call would fail as well.
    pub(crate) is_everybodys: bool,
    /// When to ask again, where that is known.
    pub(crate) retry_after: Option<Duration>,
    /// Whether it counts as a call that failed.
    pub(crate) was_asked: bool,
    /// Whether the request may have reached the origin, which may have done what was asked.
    pub(crate) was_sent: bool,
}

impl Failure {
    pub(crate) fn of_origin(status: StatusCode, detail: &'static str) -> Self {
        Self {
            status,
            detail,
            is_origins: true,
            is_everybodys: true,
            retry_after: None,
            was_asked: true,
            was_sent: true,
        }
    }

    pub(crate) fn of_request(status: StatusCode, detail: &'static str) -> Self {
        Self {
            is_origins: false,
            is_everybodys: false,
            was_asked: false,
            was_sent: false,
            ..Self::of_origin(status, detail)
        }
    }

    /// The answer to a client.
    pub(crate) fn response<B>(&self) -> Response<AnswerBody<B>> {
        let mut response = problem(self.status, self.detail).map(AnswerBody::from);
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, and never "at once".
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}
