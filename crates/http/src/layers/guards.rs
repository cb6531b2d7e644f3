//! What stands between the cache and a service: load shedding, a time limit, and an end to panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use tower::{Service, ServiceExt as _};
use ultra_perf::monitor::{Counter, Kind, Registry, Unit};
use ultra_perf::resilience::{AdaptiveLimit, LimitPermit, Outcome, Timeout};

use crate::origin::{BoxError, Failure};
use crate::watch::Family;

const SHED: &str = "http_requests_shed_total";
const TIMED_OUT: &str = "http_requests_timed_out_total";
const PANICKED: &str = "http_requests_panicked_total";

const FAMILIES: &[Family] = &[
    (SHED, Kind::Counter, Unit::None, "Requests refused because the service had too much to do."),
    (TIMED_OUT, Kind::Counter, Unit::None, "Requests whose service took too long."),
    (PANICKED, Kind::Counter, Unit::None, "Requests whose service panicked."),
];

/// When to come back to a service that has too much to do.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// A service that requests of this kind may be sent to, whatever its answers' bodies are.
pub(crate) trait Serves: Clone + Send + Sync + 'static {
    /// Answers a request, once it is ready for one.
    fn answer(
        self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, BoxError>> + Send;
}

impl<S, R> Serves for S
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        match self.oneshot(request).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) => Err(error.into()),
        }
    }
}

/// What stands around a service's calls.
#[derive(Debug, Clone)]
pub(crate) struct Guards {
    pub(crate) limit: Option<AdaptiveLimit>,
    pub(crate) timeout: Option<Timeout>,
    pub(crate) catch_panics: bool,
    shed: Counter,
    timed_out: Counter,
    panicked: Counter,
}

impl Guards {
    /// Lets everything through; what it does is counted in this registry.
    pub(crate) fn none(registry: &Registry) -> Self {
        crate::watch::describe(registry, FAMILIES);
        Self {
            limit: None,
            timeout: None,
            catch_panics: false,
            shed: registry.counter(SHED, &[]),
            timed_out: registry.counter(TIMED_OUT, &[]),
            panicked: registry.counter(PANICKED, &[]),
        }
    }

    /// Has a service answer a request.
    pub(crate) async fn call<S: Serves>(
        &self,
        service: S,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let permit = self.admit()?;
        // `answer` itself runs within the future, so that its panics are caught as well.
        let answer = AssertUnwindSafe(async move { service.answer(request).await }).catch_unwind();
        let ended = match &self.timeout {
            Some(timeout) => timeout.call(|| answer).await,
            None => Ok(answer.await),
        };
        match ended {
            Err(late) => {
                self.timed_out.increment(1);
                if let Some(permit) = permit {
                    permit.timed_out_at(Instant::now());
                }
                tracing::warn!(after = ?late.after, "a service took too long");
                let detail = "The service took too long to answer.";
                Err(Failure::of_origin(StatusCode::GATEWAY_TIMEOUT, detail))
            }
            Ok(Err(panic)) => {
                if !self.catch_panics {
                    resume_unwind(panic);
                }
                self.panicked.increment(1);
                tracing::error!(message = message(&*panic), "a service panicked");
                Err(internal_error())
            }
            Ok(Ok(Err(error))) => {
                tracing::error!(error = &*error as &dyn std::error::Error, "a service failed");
                Err(internal_error())
            }
            Ok(Ok(Ok(response))) => {
                if let Some(permit) = permit {
                    permit.complete(said_by(response.status()));
                }
                Ok(response)
            }
        }
    }

    /// Takes a place in the service, if there is one.
    fn admit(&self) -> Result<Option<LimitPermit>, Failure> {
        let Some(limit) = &self.limit else { return Ok(None) };
        limit.try_acquire().map(Some).map_err(|_| {
            self.shed.increment(1);
            let detail = "The service has too much to do.";
            let failure = Failure::of_origin(StatusCode::SERVICE_UNAVAILABLE, detail);
            let retry_after = Some(COME_BACK_AFTER);
            Failure { retry_after, was_asked: false, was_sent: false, ..failure }
        })
    }
}

/// What an answer says about how much the service can take.
///
/// A 429 is about the one who asks, and a 503 that the service has made may be about a part of it or
/// about something that it calls: whoever can have these answers at will must not take the places of
/// all others. That the service as a whole has too much to do shows in how long it takes.
fn said_by(status: StatusCode) -> Outcome {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Outcome::Ignored,
        status => Outcome::of_status(status.as_u16(), None),
    }
}

/// The answer to a request that made the service fail, which another request may not do.
fn internal_error() -> Failure {
    let detail = "The service could not answer the request.";
    let failure = Failure::of_origin(StatusCode::INTERNAL_SERVER_ERROR, detail);
    Failure { is_everybodys: false, ..failure }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
