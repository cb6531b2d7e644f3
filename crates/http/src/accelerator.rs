//! The accelerator: every request meets the cache here, and only what it does not have goes on.
//!
//! ```text
//!   request ─ classify ─┬─ bypass ───────────────────────────────▶ origin ─▶ invalidate ─▶ answer
//!                       └─ look up ─┬─ usable ───────────────────────────────────────────▶ answer
//!                                   └─ not ─ flight ─┬─ wait, look again
//!                                                    └─ lead ─▶ origin ─▶ keep, stream ─▶ answer
//! ```
//!
//! What may be used or kept is asked of [`rules`](crate::rules); this file only acts on the
//! answers. A stale answer within its window goes out at once, and a task of our own, away from the
//! client's connection, refreshes it.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, HeaderName, HeaderValue, PRAGMA, RETRY_AFTER, SET_COOKIE,
    UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, request, response};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use ultra_perf::cache_tiered::{Reservation, Tag, Tier};
use ultra_perf::memory::MemoryGuard;
use ultra_perf::monitor::Registry;

use crate::answer::AnswerBody;
use crate::backends::{BackendBody, Backends, CallError, Called, NoBackend};
use crate::background::Background;
use crate::body::{RequestBody, RequestBodyError};
use crate::fill::{Fill, Pumped};
use crate::flights::{Filling, Fit, Flights, Landing, Lead, Part};
use crate::forward::{self, Peer, X_REQUEST_ID, problem, wants_upgrade};
use crate::response_cache::{Found, Keep, ResponseCache, can_tell_apart};
use crate::rules::{
    self, Bypass, CacheStatus, Condition, Decision, Forward, Freshened, Lookup, NotStored, Outcome,
    RequestClass, RequestHead, ResponseHead, RevalidateReason, Storable, StoredHead,
};
use crate::server::{ConnInfo, Handler};
use crate::stored::{ResponseKey, Stored, StoredResponse};
use crate::traffic::Traffic;
use crate::tunnel;
use crate::upstream::UpstreamError;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_RESPONSE_TIME: HeaderName = HeaderName::from_static("x-response-time");
const X_MEMORY_USAGE: HeaderName = HeaderName::from_static("x-memory-usage");

/// Times that a request joins a flight before it goes to the origin alone.
const ROUNDS_MAX: usize = 4;

const ORIGIN_ERROR: &str = "The origin answered with an error.";

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
    /// Whose reading each answer shows.
    pub(crate) shown_memory: Option<MemoryGuard>,
}

/// An accelerator's owner: when it goes, so do the accelerator's tasks.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Accelerator);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stop());
    }
}

/// Answers requests from the cache, or from the origin; clones share one accelerator.
#[derive(Debug, Clone)]
pub(crate) struct Accelerator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Parts,
    flights: Arc<Flights>,
    traffic: Traffic,
    /// Pumps: as many as there are connections to the origin, at most.
    tasks: Mutex<JoinSet<()>>,
    closed: AtomicBool,
}

/// A request that may be answered from the cache.
struct Asked {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    peer: Peer,
    /// The backend that the client's cookie names.
    session: Option<usize>,
    lookup: Lookup,
    target: ResponseKey,
}

impl Asked {
    fn head(&self) -> RequestHead<'_> {
        RequestHead { method: &self.method, headers: &self.headers }
    }

    /// The request as it came.
    fn parts(&self) -> request::Parts {
        let mut parts = Request::new(()).into_parts().0;
        parts.method = self.method.clone();
        parts.uri = self.uri.clone();
        parts.version = self.version;
        parts.headers = self.headers.clone();
        parts
    }
}

/// An answer, and what the cache did for it.
struct Answer {
    response: Response<AnswerBody>,
    outcome: Outcome,
    status: CacheStatus,
}

/// A call to the origin without an answer.
#[derive(Debug, Clone, Copy)]
struct Failure {
    status: StatusCode,
    detail: &'static str,
    /// Whether any other request would have failed as well, and a stale answer may stand in.
    is_origins: bool,
    /// When to ask again, where that is known.
    retry_after: Option<Duration>,
}

impl Failure {
    fn of_origin(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail, is_origins: true, retry_after: None }
    }

    fn of_request(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail, is_origins: false, retry_after: None }
    }

    fn answer(&self, outcome: Outcome, status: CacheStatus) -> Answer {
        let mut response = problem(self.status, self.detail).map(AnswerBody::from);
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, and never "at once".
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
        }
        Answer { response, outcome, status }
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "the origin did not answer");
        let is_origins = error.is_origin_failure();
        Self { status: error.status(), detail: error.detail(), is_origins, retry_after: None }
    }
}

impl From<NoBackend> for Failure {
    fn from(none: NoBackend) -> Self {
        tracing::debug!(?none, "no backend for a request");
        let failure = Self::of_origin(StatusCode::SERVICE_UNAVAILABLE, none.detail);
        Self { retry_after: Some(none.retry_after), ..failure }
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

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

thread_local! {
    /// Reused by every request of the thread: the target's key, a variant, a header value.
    static SCRATCH: RefCell<(String, Vec<u8>, BytesMut)> = RefCell::default();
}

impl Handler for Accelerator {
    type Body = AnswerBody;

    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: ConnInfo,
    ) -> Response<AnswerBody> {
        let started = Instant::now();
        let id = match request.headers().get(X_REQUEST_ID) {
            Some(id) if forward::is_sane_id(id.as_bytes()) => id.clone(),
            _ => forward::request_id(fastrand::u64(..)),
        };
        let Answer { mut response, outcome, status } = self.answer(request, &connection, &id).await;
        let took = started.elapsed();
        self.0.traffic.answered(outcome, response.status(), took);
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, id);
        headers.insert(X_CACHE, outcome.value());
        SCRATCH.with_borrow_mut(|(_, _, scratch)| {
            headers.append(CACHE_STATUS, status.value(scratch));
            headers.insert(X_RESPONSE_TIME, seconds(took, scratch));
            if let Some(memory) = &self.0.parts.shown_memory {
                headers.insert(X_MEMORY_USAGE, percent(memory.sample().percent(), scratch));
            }
        });
        response
    }
}

/// `0.234s`, to the microsecond where it is short.
fn seconds(time: Duration, scratch: &mut BytesMut) -> HeaderValue {
    use std::io::Write as _;

    use bytes::BufMut as _;
    let seconds = time.as_secs_f64();
    let digits = if seconds < 0.01 { 6 } else { 3 };
    write!(scratch.writer(), "{seconds:.digits$}s").expect("writing to memory cannot fail");
    HeaderValue::from_maybe_shared(scratch.split().freeze()).expect("digits are valid in a header")
}

/// `67.8%`.
fn percent(percent: f64, scratch: &mut BytesMut) -> HeaderValue {
    use std::io::Write as _;

    use bytes::BufMut as _;
    write!(scratch.writer(), "{percent:.1}%").expect("writing to memory cannot fail");
    HeaderValue::from_maybe_shared(scratch.split().freeze()).expect("digits are valid in a header")
}

impl Accelerator {
    /// Makes an accelerator whose requests this registry counts.
    pub(crate) fn new(parts: Parts, registry: &Registry) -> Self {
        crate::watch::describe(registry, crate::traffic::FAMILIES);
        Self(Arc::new(Shared {
            parts,
            flights: Flights::new(),
            traffic: Traffic::new(registry),
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
        }))
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    pub(crate) fn store(&self) -> Option<&ResponseCache> {
        self.0.parts.store.as_ref()
    }

    pub(crate) fn background(&self) -> &Background {
        &self.0.parts.background
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.0.parts.backends
    }

    /// Targets for which the origin is being asked now.
    pub(crate) fn flights(&self) -> usize {
        self.0.flights.len()
    }

    /// Forgets a target and whatever is on its way for it.
    pub(crate) async fn purge(&self, target: &str) {
        let key = ResponseKey::target(target);
        if let Some(store) = self.store() {
            store.forget(&key).await;
            self.0.flights.detach(&key);
            self.0.traffic.invalidations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets every response with one of these tags, or makes it stale, and whatever is on its way: what
    /// tags that will have is not known yet.
    pub(crate) async fn purge_tags(&self, tags: &[Tag], softly: bool) {
        if let Some(store) = self.store() {
            store.forget_tags(tags, softly).await;
            self.0.flights.detach_all();
            self.0.traffic.invalidations.fetch_add(tags.len() as u64, Ordering::Relaxed);
        }
    }

    /// Forgets everything in a tier, or in all of them, and whatever is on its way.
    pub(crate) async fn clear(&self, tier: Option<Tier>) {
        if let Some(store) = self.store() {
            store.cache.clear(tier).await;
            self.0.flights.detach_all();
        }
    }

    /// Stops refreshes and bodies that are still being stored.
    pub(crate) async fn close(&self) {
        let mut tasks = self.stop();
        tasks.shutdown().await;
    }

    /// As [`close`](Self::close), without waiting for the tasks: they go with what is returned.
    fn stop(&self) -> JoinSet<()> {
        self.0.closed.store(true, Ordering::Relaxed);
        self.0.parts.background.stop_refreshes();
        self.0.parts.backends.close();
        std::mem::take(&mut *self.0.tasks.lock())
    }

    /// Runs a task of the accelerator's own.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock();
        while tasks.try_join_next().is_some() {}
        if !self.0.closed.load(Ordering::Relaxed) {
            tasks.spawn(task);
        }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        connection: &ConnInfo,
        id: &HeaderValue,
    ) -> Answer {
        let sessions = self.0.parts.backends.sessions();
        let session = sessions.and_then(|sessions| sessions.take(request.headers_mut()));
        let Some(store) = self.store() else {
            let passed = Passed { session, changes: None };
            let status = CacheStatus::forward(Forward::Bypass);
            return self.pass(request, connection, id, passed, status).await;
        };
        let class = match rules::classify(RequestHead::from(&request)) {
            // HTTP/2 shows a body by its frames alone.
            RequestClass::Lookup(_) if !request.body().is_end_stream() => {
                RequestClass::Bypass(Bypass::Body)
            }
            class => class,
        };
        let authority = request.headers().get(http::header::HOST);
        let authority = authority.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        match class {
            RequestClass::Bypass(reason) => {
                let forward =
                    if reason == Bypass::Method { Forward::Method } else { Forward::Bypass };
                let detail = (reason != Bypass::Method).then(|| reason.as_str());
                let status = CacheStatus { detail, ..CacheStatus::forward(forward) };
                let changes = rules::is_unsafe(request.method())
                    .then(|| rules::target_key("http", authority, path));
                let passed = Passed { session, changes };
                self.pass(request, connection, id, passed, status).await
            }
            RequestClass::Lookup(lookup) => {
                // A fresh hit is served without a key being built.
                let looked = SCRATCH.with_borrow_mut(|(target, variant, _)| {
                    target.clear();
                    rules::write_target_key("http", authority, path, target);
                    let response = store.peek(target, request.headers(), variant);
                    if let Some(stored) = &response {
                        let head = RequestHead::from(&request);
                        if let Decision::Fresh(age) =
                            rules::evaluate(head, &stored.freshness, now_ms())
                        {
                            let answer = serve(head, stored, age, Outcome::Hit, None);
                            return ControlFlow::Break(answer);
                        }
                    }
                    let target = ResponseKey::target(target);
                    let key = target.variant(variant);
                    ControlFlow::Continue((target, Found { response, key }))
                });
                let (target, found) = match looked {
                    ControlFlow::Continue(looked) => looked,
                    ControlFlow::Break(answer) => return answer,
                };
                let (parts, _) = request.into_parts();
                let mut headers = parts.headers;
                headers.insert(X_REQUEST_ID, id.clone());
                let asked = Asked {
                    method: parts.method,
                    uri: parts.uri,
                    version: parts.version,
                    headers,
                    peer: connection.peer().clone(),
                    session,
                    lookup,
                    target,
                };
                self.look_up(store, asked, found).await
            }
        }
    }

    /// Answers a request that the cache could answer.
    ///
    /// `found` is what memory had; the answer goes out once something usable is found or fetched.
    async fn look_up(&self, store: &ResponseCache, asked: Asked, mut found: Found) -> Answer {
        let deadline = tokio::time::Instant::now() + self.0.parts.coalesce_timeout;
        let Lookup { may_store, only_if_cached } = asked.lookup;
        let unshared = store.is_unshared(&asked.target, &asked.headers, now_ms());
        let mut looked_below = false;
        // Whoever leads a flight looks below for all of it; these will lead none.
        if found.response.is_none() && (only_if_cached || !may_store) {
            found = store.find_below(&asked.target, &asked.headers).await;
        }
        let mut collapsed = false;
        for _ in 0..ROUNDS_MAX {
            let mut stale = None;
            let mut reason =
                if found.is_other_variant() { Forward::VaryMiss } else { Forward::UriMiss };
            if let Some(stored) = &found.response {
                match rules::evaluate(asked.head(), &stored.freshness, now_ms()) {
                    Decision::Fresh(age) => {
                        self.0.traffic.coalesced.fetch_add(collapsed.into(), Ordering::Relaxed);
                        return serve(asked.head(), stored, age, Outcome::Hit, None);
                    }
                    Decision::StaleWhileRevalidate(age) => {
                        self.refresh(&asked, &found.key, Arc::clone(stored));
                        return serve(asked.head(), stored, age, Outcome::Stale, None);
                    }
                    Decision::Stale(age) => {
                        return serve(asked.head(), stored, age, Outcome::Stale, None);
                    }
                    Decision::GatewayTimeout => return not_cached(),
                    Decision::Revalidate { reason: why, may_serve_on_error, .. } => {
                        reason = match why {
                            RevalidateReason::Stale => Forward::Stale,
                            RevalidateReason::Request => Forward::Request,
                        };
                        stale = Some(Stale { response: Arc::clone(stored), may_serve_on_error });
                    }
                }
            } else if only_if_cached {
                return not_cached();
            }
            // An answer that came for another request and has to be validated for this one helps
            // nobody by being waited for again.
            let alone = unshared || (collapsed && stale.is_some());
            let call = Call { asked: &asked, stale, reason, collapsed, unshared };
            if !may_store {
                return self.ask_unstored(call).await;
            }
            if alone {
                return self.ask(store, call, None).await;
            }
            let mut landings = match self.0.flights.join(&found.key) {
                Part::Lead(lead) if found.response.is_none() && !looked_below => {
                    // In memory too: the flight before this one may have landed just now.
                    looked_below = true;
                    let below = store.find_below(&asked.target, &asked.headers).await;
                    if below.response.is_some() || below.key != found.key {
                        lead.land(Landing::Known);
                        found = below;
                        continue;
                    }
                    return self.ask(store, call, Some(lead)).await;
                }
                Part::Lead(lead) => return self.ask(store, call, Some(lead)).await,
                Part::Wait(landings) => landings,
            };
            let landing = match tokio::time::timeout_at(deadline, landings.changed()).await {
                Err(_) => return self.ask(store, call, None).await,
                Ok(Ok(())) => landings.borrow_and_update().clone(),
                // The leader is gone: somebody has to lead.
                Ok(Err(_)) => None,
            };
            match landing {
                None | Some(Landing::Known) => found = store.find(&asked.target, &asked.headers),
                Some(Landing::Stored) => {
                    found = store.find(&asked.target, &asked.headers);
                    // What memory could not keep may be below.
                    looked_below = false;
                    collapsed = true;
                }
                Some(Landing::Filling(filling)) => match filling.fit(&asked.headers, now_ms()) {
                    Fit::Serves(age) => {
                        self.0.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
                        let Filling { storable: Storable { head, .. }, fill, .. } = &*filling;
                        let status = CacheStatus {
                            fwd_status: Some(head.status.as_u16()),
                            collapsed: true,
                            ..CacheStatus::forward(call.reason)
                        };
                        let mut headers = head.headers.clone();
                        headers.insert(AGE, age.age_s.into());
                        return stream(&asked, head, headers, fill, status);
                    }
                    Fit::OtherVariant(variant) => {
                        let key = asked.target.variant(&variant);
                        found = Found { response: None, key };
                    }
                    Fit::Unusable => return self.ask(store, call, None).await,
                },
                Some(Landing::Error(status)) if call.may_serve_stale() => {
                    self.0.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
                    return call.fail(&Failure::of_origin(status, ORIGIN_ERROR));
                }
                Some(Landing::NotShared | Landing::Error(_)) => {
                    return self.ask(store, call, None).await;
                }
                Some(Landing::Failed(status, retry_after)) => {
                    self.0.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
                    let detail = "The origin did not answer the request that this one waited for.";
                    let failure = Failure::of_origin(status, detail);
                    return call.fail(&Failure { retry_after, ..failure });
                }
            }
        }
        let call = Call { asked: &asked, stale: None, reason: Forward::Miss, collapsed, unshared };
        self.ask(store, call, None).await
    }

    /// Asks the origin, and keeps its answer if that may be kept.
    async fn ask(&self, store: &ResponseCache, call: Call<'_>, lead: Option<Lead>) -> Answer {
        let land = |landing| {
            if let Some(lead) = &lead {
                lead.land(landing);
            }
        };
        let asked = call.asked;
        let note_shared =
            |shared| store.note_shared(&asked.target, &asked.headers, shared, now_ms());
        let reservation = store.cache.reserve(&asked.target);
        let mut parts = asked.parts();
        match &call.stale {
            Some(stale) => {
                rules::set_validators(&stale.response.head, &mut parts.headers);
            }
            // The answer will be the client's alone, so its conditions are for the origin.
            None if call.unshared => {}
            None => rules::strip_conditions(&mut parts.headers),
        }
        let mut fetched = self.fetch(parts, RequestBody::Empty, &asked.peer, asked.session).await;

        if let (Some(stale), Ok(answer)) = (&call.stale, &fetched)
            && answer.head.status == StatusCode::NOT_MODIFIED
        {
            let old = &stale.response;
            let new = &answer.head.headers;
            match rules::freshen(&store.policy, asked.head(), &old.head, new, answer.times) {
                Freshened::Updated(storable) if can_tell_apart(&storable.vary) => {
                    let age = storable.freshness.age(now_ms());
                    note_shared(storable.freshness.is_fresh(now_ms()));
                    let keep = Keep::new(storable, old.body.clone());
                    let renewed = Arc::clone(&keep.response);
                    store.keep(&reservation, &asked.target, &asked.headers, keep);
                    land(Landing::Stored);
                    let status =
                        CacheStatus { fwd_status: Some(304), stored: true, ..call.status() };
                    return serve(asked.head(), &renewed, age, Outcome::Hit, Some(status));
                }
                Freshened::Updated(Storable { head, .. }) | Freshened::NotStorable { head, .. } => {
                    store.forget(&asked.target).await;
                    note_shared(false);
                    land(Landing::NotShared);
                    let freshness = head.freshness(&store.policy);
                    let age = freshness.age(now_ms());
                    let once = StoredResponse { head, freshness, body: old.body.clone() };
                    let status = CacheStatus { fwd_status: Some(304), ..call.status() };
                    return serve(asked.head(), &once, age, Outcome::Miss, Some(status));
                }
                Freshened::Mismatch => {
                    let mut parts = asked.parts();
                    rules::strip_conditions(&mut parts.headers);
                    fetched =
                        self.fetch(parts, RequestBody::Empty, &asked.peer, asked.session).await;
                }
            }
        }

        let Called { head, body, times, cookie, .. } = match fetched {
            Ok(fetched) => fetched,
            Err(failure) => {
                land(match failure.is_origins {
                    true => Landing::Failed(failure.status, failure.retry_after),
                    false => Landing::NotShared,
                });
                return call.fail(&failure);
            }
        };
        if rules::is_origin_error(head.status) && call.may_serve_stale() {
            land(Landing::Error(head.status));
            return call.fail(&Failure::of_origin(head.status, ORIGIN_ERROR));
        }
        let status = CacheStatus { fwd_status: Some(head.status.as_u16()), ..call.status() };
        let response = ResponseHead { status: head.status, headers: &head.headers };
        let detail = match rules::store(&store.policy, asked.head(), response, times) {
            Ok(storable) if !can_tell_apart(&storable.vary) => "vary-client",
            Ok(storable) => {
                let length = body.size_hint().exact();
                if let Some(fill) = Fill::begin(&store.room, store.max_body_bytes, length) {
                    note_shared(storable.freshness.is_fresh(now_ms()));
                    let status = CacheStatus { stored: true, ..status };
                    let answer = stream(asked, &storable.head, head.headers, &fill, status);
                    self.keep_while_streaming(asked, reservation, lead, storable, fill, body);
                    return answer;
                }
                "no-room"
            }
            Err(reason) => {
                if call.stale.is_some() && replaces(head.status, reason) {
                    store.forget(&asked.target).await;
                }
                reason.as_str()
            }
        };
        if !is_passing(head.status) {
            note_shared(false);
        }
        land(match rules::is_origin_error(head.status) {
            true => Landing::Error(head.status),
            false => Landing::NotShared,
        });
        let status = CacheStatus { detail: Some(detail), ..status };
        answer_with(head, body, cookie, Outcome::Miss, status)
    }

    /// Has a task of ours store the body of an answer, for its client to read along.
    fn keep_while_streaming(
        &self,
        asked: &Asked,
        reservation: Reservation<ResponseKey, Stored>,
        lead: Option<Lead>,
        storable: Storable,
        fill: Arc<Fill>,
        body: BackendBody,
    ) {
        if let Some(lead) = &lead
            && fill.is_shareable()
        {
            let filling = Filling::new(storable.clone(), Arc::clone(&fill), &asked.headers);
            lead.land(Landing::Filling(Arc::new(filling)));
        }
        let (this, target, headers) = (self.clone(), asked.target.clone(), asked.headers.clone());
        self.spawn(async move {
            let pumped = fill.pump(body).await;
            let Some(store) = this.store() else { return };
            let landing = match pumped {
                Pumped::Complete(body) => {
                    store.keep(&reservation, &target, &headers, Keep::new(storable, body));
                    Landing::Stored
                }
                Pumped::Unsuitable => {
                    store.note_shared(&target, &headers, false, now_ms());
                    Landing::NotShared
                }
                // It may come whole the next time: one of those who wait leads.
                Pumped::Broken => return,
            };
            if let Some(lead) = lead {
                lead.land(landing);
            }
        });
    }

    /// Asks the origin for an answer that is not stored: to HEAD, to a range, or under `no-store`.
    async fn ask_unstored(&self, call: Call<'_>) -> Answer {
        let asked = call.asked;
        let parts = asked.parts();
        let fetched = self.fetch(parts, RequestBody::Empty, &asked.peer, asked.session).await;
        let failure = match fetched {
            Ok(Called { head, body, cookie, .. }) => {
                if !rules::is_origin_error(head.status) || !call.may_serve_stale() {
                    let fwd_status = Some(head.status.as_u16());
                    let status = CacheStatus { fwd_status, ..call.status() };
                    // The client's own conditions went along, so a 304 is for the client.
                    return answer_with(head, body, cookie, Outcome::Miss, status);
                }
                Failure::of_origin(head.status, ORIGIN_ERROR)
            }
            Err(failure) => failure,
        };
        call.fail(&failure)
    }

    /// Refreshes a stale answer, unless somebody is at it or too many refreshes run.
    fn refresh(&self, asked: &Asked, key: &ResponseKey, stale: Arc<StoredResponse>) {
        let background = &self.0.parts.background;
        let Some(place) = background.refresh_place() else { return };
        let Some(lead) = self.0.flights.try_lead(key) else { return };
        self.0.traffic.background_refreshes.fetch_add(1, Ordering::Relaxed);
        let this = self.clone();
        let mut headers = asked.headers.clone();
        rules::strip_conditions(&mut headers);
        // What the client asks of its own answer does not concern the refresh.
        headers.remove(CACHE_CONTROL);
        headers.remove(PRAGMA);
        let asked = Asked {
            method: Method::GET,
            uri: asked.uri.clone(),
            version: asked.version,
            headers,
            peer: asked.peer.clone(),
            session: asked.session,
            lookup: Lookup { may_store: true, only_if_cached: false },
            target: asked.target.clone(),
        };
        let bytes = stale.body.len() as u64;
        // On the heap at once: it is large, and would be moved often on its way.
        let refresh = Box::pin(async move {
            if let Some(store) = this.store() {
                let stale = Some(Stale { response: stale, may_serve_on_error: true });
                let call = Call {
                    asked: &asked,
                    stale,
                    reason: Forward::Stale,
                    collapsed: false,
                    unshared: false,
                };
                // Its body goes into the store; nobody reads the answer itself.
                drop(this.ask(store, call, Some(lead)).await);
            }
        });
        background.refresh(place, bytes, refresh);
    }

    /// Passes a request by the cache, and forgets what it has changed.
    async fn pass(
        &self,
        mut request: Request<Incoming>,
        connection: &ConnInfo,
        id: &HeaderValue,
        passed: Passed,
        status: CacheStatus,
    ) -> Answer {
        let Passed { session, changes } = passed;
        let Parts { max_request_body_bytes, idle_timeout, .. } = self.0.parts;
        let upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(X_REQUEST_ID, id.clone());
        let method = parts.method.clone();
        let mut unanswered = Unanswered { accelerator: self, target: changes };
        let fetched = match RequestBody::streaming(body, max_request_body_bytes, idle_timeout) {
            Ok(body) => self.fetch(parts, body, connection.peer(), session).await,
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
        let Called { mut head, body, cookie, .. } = match fetched {
            Ok(fetched) => fetched,
            Err(failure) => return failure.answer(Outcome::Bypass, status),
        };
        if let Some(target) = changes {
            for target in rules::invalidated(&method, &target, head.status, &head.headers) {
                self.purge(&target).await;
            }
        }
        let status = CacheStatus { fwd_status: Some(head.status.as_u16()), ..status };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade.filter(|_| head.headers.contains_key(UPGRADE)) else {
                let detail = "The origin switched protocols without being asked to.";
                let failure = Failure::of_origin(StatusCode::BAD_GATEWAY, detail);
                return failure.answer(Outcome::Bypass, status);
            };
            let (body, lease) = body.into_parts();
            tunnel::open_with(client, body, connection, idle_timeout, lease);
            set_cookie(&mut head, cookie);
            let response = Response::from_parts(head, AnswerBody::default());
            return Answer { response, outcome: Outcome::Bypass, status };
        }
        answer_with(head, body, cookie, Outcome::Bypass, status)
    }

    /// Sends a request to the origin, whichever of its backends that is.
    async fn fetch(
        &self,
        parts: request::Parts,
        body: RequestBody,
        peer: &Peer,
        session: Option<usize>,
    ) -> Result<Called, Failure> {
        self.0.traffic.origin_calls.fetch_add(1, Ordering::Relaxed);
        let called = self.0.parts.backends.call(parts, body, peer, session).await;
        called.map_err(|error| {
            if !matches!(error, CallError::Refused(_)) {
                self.0.traffic.origin_failures.fetch_add(1, Ordering::Relaxed);
            }
            error.into()
        })
    }
}

/// What is known of a request that passes the cache by.
struct Passed {
    session: Option<usize>,
    /// The target that it may change.
    changes: Option<String>,
}

/// A stored answer that has to be validated first.
struct Stale {
    response: Arc<StoredResponse>,
    may_serve_on_error: bool,
}

/// A call to the origin on behalf of a request.
struct Call<'a> {
    asked: &'a Asked,
    stale: Option<Stale>,
    reason: Forward,
    /// Whether the request has waited for another one's answer.
    collapsed: bool,
    /// Whether the target's answers are known not to be shared.
    unshared: bool,
}

/// Forgets the target of an unsafe request that is dropped before its outcome is known: the client
/// is gone, but the origin may have done what was asked.
struct Unanswered<'a> {
    accelerator: &'a Accelerator,
    target: Option<String>,
}

impl Unanswered<'_> {
    /// The outcome is known; returns the target.
    fn answered(&mut self) -> Option<String> {
        self.target.take()
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            // Removing is done at the first poll.
            let _ = self.accelerator.purge(&target).now_or_never();
        }
    }
}

impl Call<'_> {
    fn status(&self) -> CacheStatus {
        CacheStatus { collapsed: self.collapsed, ..CacheStatus::forward(self.reason) }
    }

    fn may_serve_stale(&self) -> bool {
        self.stale.as_ref().is_some_and(|stale| stale.may_serve_on_error)
    }

    /// The answer when the origin gives none: a stale one where that is allowed.
    fn fail(&self, failure: &Failure) -> Answer {
        match &self.stale {
            Some(Stale { response, may_serve_on_error: true }) if failure.is_origins => {
                let age = response.freshness.age(now_ms());
                let status = CacheStatus {
                    fwd_status: Some(failure.status.as_u16()),
                    detail: Some("stale-if-error"),
                    ..self.status()
                };
                serve(self.asked.head(), response, age, Outcome::Stale, Some(status))
            }
            _ => failure.answer(Outcome::Miss, self.status()),
        }
    }
}

/// Answers with a stored response; `status` where the origin was asked for it.
fn serve(
    request: RequestHead<'_>,
    stored: &StoredResponse,
    age: rules::Age,
    outcome: Outcome,
    status: Option<CacheStatus>,
) -> Answer {
    let status = status.unwrap_or_else(|| CacheStatus::hit(age.ttl_s));
    let mut response = Response::new(AnswerBody::default());
    match rules::condition(request, &stored.head) {
        Condition::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.headers_mut() = rules::not_modified_headers(&stored.head.headers);
        }
        Condition::Full => {
            *response.status_mut() = stored.head.status;
            *response.headers_mut() = stored.head.headers.clone();
            if request.method == Method::HEAD && stored.head.status != StatusCode::NO_CONTENT {
                response.headers_mut().insert(CONTENT_LENGTH, stored.body.len().into());
            } else {
                *response.body_mut() = stored.body.clone().into();
            }
        }
    }
    response.headers_mut().insert(AGE, age.age_s.into());
    Answer { response, outcome, status }
}

/// Answers with a response that is being stored; `headers` are those of its client.
fn stream(
    asked: &Asked,
    stored: &StoredHead,
    headers: HeaderMap,
    fill: &Arc<Fill>,
    status: CacheStatus,
) -> Answer {
    let mut response = Response::new(AnswerBody::default());
    match rules::condition(asked.head(), stored) {
        Condition::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.headers_mut() = rules::not_modified_headers(&headers);
            if let Some(age) = headers.get(AGE) {
                response.headers_mut().insert(AGE, age.clone());
            }
        }
        Condition::Full => {
            *response.status_mut() = stored.status;
            *response.headers_mut() = headers;
            *response.body_mut() = fill.reader().into();
        }
    }
    Answer { response, outcome: Outcome::Miss, status }
}

/// Whether an answer says nothing about the next ones: an error, or a 304 to the client's own
/// conditions.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::NOT_MODIFIED)
}

/// Whether an answer that cannot be stored says that the stored one is out of date.
fn replaces(status: StatusCode, reason: NotStored) -> bool {
    reason != NotStored::Authorization
        && (status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE))
}

/// Answers with what a backend sent. Only here, where nothing is stored, a client gets the cookie that
/// keeps it on the backend: an answer that others may get as well says nothing to one client.
fn answer_with(
    mut head: response::Parts,
    body: BackendBody,
    cookie: Option<HeaderValue>,
    outcome: Outcome,
    status: CacheStatus,
) -> Answer {
    set_cookie(&mut head, cookie);
    Answer { response: Response::from_parts(head, body.into()), outcome, status }
}

fn set_cookie(head: &mut response::Parts, cookie: Option<HeaderValue>) {
    if let Some(cookie) = cookie {
        head.headers.append(SET_COOKIE, cookie);
    }
}

/// The answer to `only-if-cached` when nothing is.
fn not_cached() -> Answer {
    let detail = "The request wants a stored answer only, and there is none.";
    let failure = Failure::of_request(StatusCode::GATEWAY_TIMEOUT, detail);
    let status =
        CacheStatus { detail: Some("only-if-cached"), ..CacheStatus::forward(Forward::Miss) };
    failure.answer(Outcome::Miss, status)
}
