//! The accelerator as a proxy: what it does with a client's connection and with its backends.
//!
//! A request that passes the cache by streams to a backend under the limits on bodies, or becomes a
//! tunnel. The backends are the [`Origin`] of everything else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, request};
use http_body::Body as _;
use hyper::body::Incoming;
use ultra_perf::memory::MemoryGuard;
use ultra_perf::monitor::Registry;

use crate::accelerator::{
    Accelerator, Answer, Asked, Shared, Step, answer_with, set_cookie, with_scratch,
};
use crate::answer::AnswerBody;
use crate::backends::{BackendBody, Backends, CallError, Called, NoBackend};
use crate::background::Background;
use crate::body::{RequestBody, RequestBodyError};
use crate::compress::{self, Packed, Wanted};
use crate::forward::{self, Peer, X_REQUEST_ID, wants_upgrade};
use crate::origin::{Failure, Fetched, Origin};
use crate::response_cache::ResponseCache;
use crate::rules::{CacheStatus, Outcome, RequestHead};
use crate::server::{ConnInfo, Handler};
use crate::shown::{X_MEMORY_USAGE, X_RESPONSE_TIME, percent, seconds};
use crate::traffic::Traffic;
use crate::tunnel;
use crate::upstream::UpstreamError;

/// What an accelerator is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) backends: Backends,
    /// `None` passes every request on.
    pub(crate) store: Option<ResponseCache>,
    pub(crate) background: Background,
    pub(crate) coalesce_timeout: Duration,
    pub(crate) max_request_body_bytes: u64,
    pub(crate) idle_timeout: Duration,
    /// Whether answers are compressed for clients that accept it.
    pub(crate) compress: bool,
    /// Whose reading each answer shows.
    pub(crate) shown_memory: Option<MemoryGuard>,
}

/// An accelerator's owner: when it goes, so do the accelerator's tasks.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Accelerator);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.backends().close();
        drop(self.0.stop());
    }
}

/// Backends behind a proxy, and its limits.
#[derive(Debug, Clone)]
pub(crate) struct Proxied {
    backends: Backends,
    max_request_body_bytes: u64,
    idle_timeout: Duration,
    compress: bool,
    shown_memory: Option<MemoryGuard>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    peer: Peer,
    /// The backend that its cookie names.
    session: Option<usize>,
}

impl Origin for Proxied {
    type Client = Client;
    type Body = Packed<BackendBody>;

    async fn fetch(
        &self,
        parts: request::Parts,
        client: &Client,
    ) -> Result<Fetched<Packed<BackendBody>>, Failure> {
        let wanted = self.compress.then(|| Wanted::of(&parts.method, &parts.headers));
        let sent = self.send(parts, RequestBody::Empty, &client.peer, client.session).await?;
        Ok(sent.packed(wanted.as_ref()))
    }
}

impl Proxied {
    /// Sends a request to one of the backends.
    async fn send(
        &self,
        parts: request::Parts,
        body: RequestBody,
        peer: &Peer,
        session: Option<usize>,
    ) -> Result<Fetched<BackendBody>, Failure> {
        let Called { head, body, times, cookie, .. } =
            self.backends.call(parts, body, peer, session).await?;
        Ok(Fetched { head, body, times, cookie })
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "the origin did not answer");
        let is_origins = error.is_origin_failure();
        let was_sent = !matches!(
            error,
            UpstreamError::Connect(_)
                | UpstreamError::ConnectTimeout(_)
                | UpstreamError::Saturated
                | UpstreamError::Closed
        );
        let failure = Self::of_origin(error.status(), error.detail());
        Self { is_origins, is_everybodys: is_origins, was_sent, ..failure }
    }
}

impl From<NoBackend> for Failure {
    fn from(none: NoBackend) -> Self {
        tracing::debug!(?none, "no backend for a request");
        let failure = Self::of_origin(StatusCode::SERVICE_UNAVAILABLE, none.detail);
        Self { retry_after: Some(none.retry_after), was_sent: false, ..failure }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Upstream(error) => error.into(),
            CallError::NoBackend(none) => none.into(),
        }
    }
}

impl From<forward::Refusal> for Failure {
    fn from(refusal: forward::Refusal) -> Self {
        Self::of_request(refusal.status(), refusal.detail())
    }
}

impl Handler for Accelerator {
    type Body = AnswerBody<Packed<BackendBody>>;

    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: ConnInfo,
    ) -> Response<AnswerBody<Packed<BackendBody>>> {
        let started = Instant::now();
        let id = match request.headers().get(X_REQUEST_ID) {
            Some(id) if forward::is_sane_id(id.as_bytes()) => id.clone(),
            _ => forward::request_id(fastrand::u64(..)),
        };
        let mut answer = self.answer(request, &connection, &id).await;
        let took = started.elapsed();
        self.traffic().answered(answer.outcome, answer.response.status(), took);
        answer.describe();
        let headers = answer.response.headers_mut();
        headers.insert(X_REQUEST_ID, id);
        with_scratch(|scratch| {
            headers.insert(X_RESPONSE_TIME, seconds(took, scratch));
            if let Some(memory) = &self.origin().shown_memory {
                headers.insert(X_MEMORY_USAGE, percent(memory.sample().percent(), scratch));
            }
        });
        answer.response
    }
}

impl Accelerator {
    /// Makes an accelerator whose requests this registry counts.
    pub(crate) fn new(parts: Parts, registry: &Registry) -> Self {
        crate::watch::describe(registry, crate::traffic::FAMILIES);
        let Parts { backends, store, background, coalesce_timeout, idle_timeout, .. } = parts;
        let traffic = Traffic::new(registry);
        let shared = Shared::new(store, background, coalesce_timeout, idle_timeout, traffic);
        let origin = Proxied {
            backends,
            max_request_body_bytes: parts.max_request_body_bytes,
            idle_timeout,
            compress: parts.compress,
            shown_memory: parts.shown_memory,
        };
        Self::over(Arc::new(shared), origin)
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.origin().backends
    }

    /// Stops refreshes and bodies that are still being stored.
    pub(crate) async fn close(&self) {
        let mut tasks = self.stop();
        self.backends().close();
        tasks.shutdown().await;
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        connection: &ConnInfo,
        id: &HeaderValue,
    ) -> Answer<Packed<BackendBody>> {
        if self.origin().compress {
            compress::settle(request.headers_mut());
        }
        let sessions = self.backends().sessions();
        let session = sessions.and_then(|sessions| sessions.take(request.headers_mut()));
        let authority = request.headers().get(http::header::HOST);
        let authority = authority.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let is_over = request.body().is_end_stream();
        match self.begin(RequestHead::from(&request), is_over, authority, path) {
            Step::Answer(answer) => answer,
            Step::Pass { changes, status } => {
                self.pass(request, connection, id, Passed { session, changes }, status).await
            }
            Step::LookUp { lookup, target, found } => {
                let (parts, _) = request.into_parts();
                let mut headers = parts.headers;
                headers.insert(X_REQUEST_ID, id.clone());
                let asked = Asked {
                    method: parts.method,
                    uri: parts.uri,
                    version: parts.version,
                    headers,
                    client: Client { peer: connection.peer().clone(), session },
                    lookup,
                    target,
                };
                self.look_up(asked, found).await
            }
        }
    }

    /// Passes a request by the cache, and forgets what it has changed.
    async fn pass(
        &self,
        mut request: Request<Incoming>,
        connection: &ConnInfo,
        id: &HeaderValue,
        passed: Passed,
        status: CacheStatus,
    ) -> Answer<Packed<BackendBody>> {
        let Passed { session, changes } = passed;
        let &Proxied { max_request_body_bytes, idle_timeout, .. } = self.origin();
        let upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(X_REQUEST_ID, id.clone());
        let method = parts.method.clone();
        let wanted = self.origin().compress.then(|| Wanted::of(&parts.method, &parts.headers));
        let mut unanswered = self.unanswered(changes);
        let fetched = match RequestBody::streaming(body, max_request_body_bytes, idle_timeout) {
            Ok(body) => {
                let sent = self.origin().send(parts, body, connection.peer(), session).await;
                self.traffic().called(sent.as_ref().err());
                sent
            }
            Err(RequestBodyError::TooLarge { .. }) => Err(Failure::of_request(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request's body is larger than this server accepts.",
            )),
            Err(_) => Err(Failure::of_request(
                StatusCode::BAD_REQUEST,
                "The request's body could not be read.",
            )),
        };
        let changes = unanswered.answered();
        let Fetched { mut head, body, times, cookie } = match fetched {
            Ok(fetched) => fetched,
            Err(mut failure) => {
                // What may be sent twice may have been, and the last backend's failure says nothing of
                // the one before it.
                failure.was_sent |= failure.is_origins && method.is_idempotent();
                self.forget_if_sent(&failure, changes).await;
                return Answer::of(&failure, Outcome::Bypass, status);
            }
        };
        if let Some(target) = changes {
            self.invalidate(&method, &target, head.status, &head.headers).await;
        }
        let status = CacheStatus { fwd_status: Some(head.status.as_u16()), ..status };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade.filter(|_| head.headers.contains_key(UPGRADE)) else {
                let detail = "The origin switched protocols without being asked to.";
                let failure = Failure::of_origin(StatusCode::BAD_GATEWAY, detail);
                return Answer::of(&failure, Outcome::Bypass, status);
            };
            let (body, lease) = body.into_parts();
            tunnel::open_with(client, body, connection, idle_timeout, lease);
            set_cookie(&mut head, cookie);
            let response = Response::from_parts(head, AnswerBody::default());
            return Answer { response, outcome: Outcome::Bypass, status };
        }
        let Fetched { head, body, cookie, .. } =
            Fetched { head, body, times, cookie }.packed(wanted.as_ref());
        answer_with(head, body, cookie, Outcome::Bypass, status)
    }
}

/// What is known of a request that passes the cache by.
struct Passed {
    session: Option<usize>,
    /// The target that it may change.
    changes: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_request_that_found_no_connection_was_certainly_not_sent() {
        let second = Duration::from_secs(1);
        for (error, was_sent) in [
            (UpstreamError::Connect(io::ErrorKind::ConnectionRefused.into()), false),
            (UpstreamError::ConnectTimeout(second), false),
            (UpstreamError::Saturated, false),
            (UpstreamError::Closed, false),
            (UpstreamError::ResponseTimeout(second), true),
            (UpstreamError::AmbiguousLength, true),
        ] {
            let text = error.to_string();
            assert_eq!(Failure::from(error).was_sent, was_sent, "{text}");
        }
    }
}
