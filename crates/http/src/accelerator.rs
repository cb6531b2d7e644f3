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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, HeaderName, HeaderValue, PRAGMA, SET_COOKIE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, request, response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use ultra_perf::cache_tiered::{Reservation, Tag, Tier};

use crate::answer::AnswerBody;
use crate::background::Background;
use crate::fill::{Fill, Pumped, Silence};
use crate::flights::{Filling, Fit, Flights, Landing, Lead, Part};
use crate::origin::{Failure, Fetched, Origin};
use crate::proxy::Proxied;
use crate::response_cache::{Found, Keep, ResponseCache, can_tell_apart};
use crate::rules::{
    self, Bypass, CacheStatus, Condition, Decision, Forward, Freshened, Lookup, NotStored, Outcome,
    RequestClass, RequestHead, ResponseHead, RevalidateReason, Storable, StoredHead,
};
use crate::stored::{ResponseKey, Stored, StoredResponse};
use crate::traffic::Traffic;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Times that a request joins a flight before it goes to the origin alone.
const ROUNDS_MAX: usize = 4;

/// The least silence for which a body that nobody reads is waited for.
const UNREAD_LEAST: Duration = Duration::from_secs(1);

const ORIGIN_ERROR: &str = "The origin answered with an error.";

/// Answers requests from the cache, or from the origin; clones with one origin or another share
/// the cache, its flights and its counters.
#[derive(Debug, Clone)]
pub(crate) struct Accelerator<O = Proxied> {
    shared: Arc<Shared>,
    origin: O,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// `None` passes every request on.
    store: Option<ResponseCache>,
    background: Background,
    coalesce_timeout: Duration,
    /// For bodies that are being stored.
    silence: Silence,
    flights: Arc<Flights>,
    traffic: Traffic,
    /// Pumps: as many as there are answers on their way into the cache.
    tasks: Mutex<JoinSet<()>>,
    closed: AtomicBool,
}

impl Shared {
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn new(
        store: Option<ResponseCache>,
        background: Background,
        coalesce_timeout: Duration,
        idle_timeout: Duration,
        traffic: Traffic,
    ) -> Self {
        // What nobody reads is stored for those who come next, who would not wait any longer.
        let unread = coalesce_timeout.max(UNREAD_LEAST).min(idle_timeout);
        Self {
            store,
            background,
            coalesce_timeout,
            silence: Silence { read: idle_timeout, unread },
            flights: Flights::new(),
            traffic,
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }
}

/// A request that may be answered from the cache.
pub(crate) struct Asked<C> {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    /// What the origin is told of the client.
    pub(crate) client: C,
    pub(crate) lookup: Lookup,
    pub(crate) target: ResponseKey,
}

impl<C> Asked<C> {
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
pub(crate) struct Answer<B> {
    pub(crate) response: Response<AnswerBody<B>>,
    pub(crate) outcome: Outcome,
    pub(crate) status: CacheStatus,
}

impl<B> Answer<B> {
    /// The answer where there is none from the origin.
    pub(crate) fn of(failure: &Failure, outcome: Outcome, status: CacheStatus) -> Self {
        Self { response: failure.response(), outcome, status }
    }

    /// Writes what the cache did into the answer's fields.
    pub(crate) fn describe(&mut self) {
        let headers = self.response.headers_mut();
        headers.insert(X_CACHE, self.outcome.value());
        with_scratch(|scratch| headers.append(CACHE_STATUS, self.status.value(scratch)));
    }
}

/// What is to be done with a request.
pub(crate) enum Step<B> {
    /// Memory had it.
    Answer(Answer<B>),
    /// The cache may have it, or get it.
    LookUp { lookup: Lookup, target: ResponseKey, found: Found },
    /// It passes the cache by, and may change a target.
    Pass { changes: Option<String>, status: CacheStatus },
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Hands out a buffer to write the value of a field in.
pub(crate) fn with_scratch<R>(write: impl FnOnce(&mut BytesMut) -> R) -> R {
    SCRATCH.with_borrow_mut(|(_, _, scratch)| write(scratch))
}

thread_local! {
    /// Reused by every request of the thread: the target's key, a variant, a header value.
    static SCRATCH: RefCell<(String, Vec<u8>, BytesMut)> = RefCell::default();
}

impl<O> Accelerator<O> {
    /// Puts a cache and an origin together.
    pub(crate) fn over(shared: Arc<Shared>, origin: O) -> Self {
        Self { shared, origin }
    }

    pub(crate) fn origin(&self) -> &O {
        &self.origin
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    pub(crate) fn store(&self) -> Option<&ResponseCache> {
        self.shared.store.as_ref()
    }

    pub(crate) fn background(&self) -> &Background {
        &self.shared.background
    }

    /// Targets for which the origin is being asked now.
    pub(crate) fn flights(&self) -> usize {
        self.shared.flights.len()
    }

    /// Forgets a target and whatever is on its way for it.
    pub(crate) async fn purge(&self, target: &str) {
        let key = ResponseKey::target(target);
        if let Some(store) = self.store() {
            store.forget(&key).await;
            self.shared.flights.detach(&key);
            self.shared.traffic.invalidations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets every response with one of these tags, or makes it stale, and whatever is on its way: what
    /// tags that will have is not known yet.
    pub(crate) async fn purge_tags(&self, tags: &[Tag], softly: bool) {
        if let Some(store) = self.store() {
            store.forget_tags(tags, softly).await;
            self.shared.flights.detach_all();
            self.shared.traffic.invalidations.fetch_add(tags.len() as u64, Ordering::Relaxed);
        }
    }

    /// Forgets everything in a tier, or in all of them, and whatever is on its way.
    pub(crate) async fn clear(&self, tier: Option<Tier>) {
        if let Some(store) = self.store() {
            store.cache.clear(tier).await;
            self.shared.flights.detach_all();
        }
    }

    /// Stops refreshes and bodies that are still being stored; what is left of these goes with
    /// what is returned.
    pub(crate) fn stop(&self) -> JoinSet<()> {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.background.stop_refreshes();
        std::mem::take(&mut *self.shared.tasks.lock())
    }

    /// Runs a task of the accelerator's own.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.shared.tasks.lock();
        while tasks.try_join_next().is_some() {}
        if !self.shared.closed.load(Ordering::Relaxed) {
            tasks.spawn(task);
        }
    }

    /// Sorts a request by its head, and answers it at once if memory has what it asks for.
    ///
    /// `is_over` tells whether the request certainly has no body: HTTP/2 shows one by its frames
    /// alone.
    pub(crate) fn begin<B>(
        &self,
        head: RequestHead<'_>,
        is_over: bool,
        authority: &str,
        path: &str,
    ) -> Step<B> {
        let Some(store) = self.store() else {
            return Step::Pass { changes: None, status: CacheStatus::forward(Forward::Bypass) };
        };
        let lookup = match rules::classify(head) {
            RequestClass::Lookup(lookup) if is_over => lookup,
            RequestClass::Lookup(_) => return pass(head.method, authority, path, Bypass::Body),
            RequestClass::Bypass(reason) => return pass(head.method, authority, path, reason),
        };
        // A fresh hit is served without a key being built.
        let looked = SCRATCH.with_borrow_mut(|(target, variant, _)| {
            target.clear();
            rules::write_target_key("http", authority, path, target);
            let response = store.peek(target, head.headers, variant);
            if let Some(stored) = &response
                && let Decision::Fresh(age) = rules::evaluate(head, &stored.freshness, now_ms())
            {
                return ControlFlow::Break(serve(head, stored, age, Outcome::Hit, None));
            }
            let target = ResponseKey::target(target);
            let key = target.variant(variant);
            ControlFlow::Continue((target, Found { response, key }))
        });
        match looked {
            ControlFlow::Break(answer) => Step::Answer(answer),
            ControlFlow::Continue((target, found)) => Step::LookUp { lookup, target, found },
        }
    }

    /// Forgets what a request has changed, once there is an answer to it.
    pub(crate) async fn invalidate(
        &self,
        method: &Method,
        target: &str,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        for target in rules::invalidated(method, target, status, headers) {
            self.purge(&target).await;
        }
    }

    /// Forgets what a request may have changed to which there is no answer: it may have been done before
    /// the call failed.
    pub(crate) async fn forget_if_sent(&self, failure: &Failure, changes: Option<String>) {
        if let Some(target) = changes.filter(|_| failure.was_sent) {
            self.purge(&target).await;
        }
    }

    /// Stands for a request that changes a target, until there is an answer to it.
    pub(crate) fn unanswered(&self, changes: Option<String>) -> Unanswered<'_, O> {
        Unanswered { accelerator: self, target: changes }
    }
}

impl<O: Origin> Accelerator<O> {
    /// Answers a request that the cache could answer.
    ///
    /// `found` is what memory had; the answer goes out once something usable is found or fetched.
    ///
    /// # Panics
    ///
    /// Without a store, which has no such requests.
    pub(crate) async fn look_up(
        &self,
        asked: Asked<O::Client>,
        mut found: Found,
    ) -> Answer<O::Body> {
        let store = self.store().expect("only a store finds anything");
        let deadline = tokio::time::Instant::now() + self.shared.coalesce_timeout;
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
                        self.shared
                            .traffic
                            .coalesced
                            .fetch_add(collapsed.into(), Ordering::Relaxed);
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
                    Decision::NotForRequest => {
                        let (reason, stale) = (Forward::Request, None);
                        let call = Call { asked: &asked, stale, reason, collapsed, unshared };
                        return self.ask_unstored(call).await;
                    }
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
            let mut landings = match self.shared.flights.join(&found.key) {
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
                        self.shared.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
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
                    self.shared.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
                    return call.fail(&Failure::of_origin(status, ORIGIN_ERROR));
                }
                Some(Landing::NotShared | Landing::Error(_)) => {
                    return self.ask(store, call, None).await;
                }
                Some(Landing::Failed(status, retry_after)) => {
                    self.shared.traffic.coalesced.fetch_add(1, Ordering::Relaxed);
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
    async fn ask(
        &self,
        store: &ResponseCache,
        call: Call<'_, O::Client>,
        lead: Option<Lead>,
    ) -> Answer<O::Body> {
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
        let mut fetched = self.fetch(parts, &asked.client).await;

        if let (Some(stale), Ok(answer)) = (&call.stale, &fetched)
            && answer.head.status == StatusCode::NOT_MODIFIED
        {
            let old = &stale.response;
            let new = &answer.head.headers;
            let policy = store.policy.load_full();
            match rules::freshen(&policy, asked.head(), &old.head, new, answer.times) {
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
                    let freshness = head.freshness(&policy);
                    let age = freshness.age(now_ms());
                    let once = StoredResponse { head, freshness, body: old.body.clone() };
                    let status = CacheStatus { fwd_status: Some(304), ..call.status() };
                    return serve(asked.head(), &once, age, Outcome::Miss, Some(status));
                }
                Freshened::Mismatch => {
                    let mut parts = asked.parts();
                    rules::strip_conditions(&mut parts.headers);
                    fetched = self.fetch(parts, &asked.client).await;
                }
            }
        }

        let Fetched { head, body, times, cookie, .. } = match fetched {
            Ok(fetched) => fetched,
            Err(failure) => {
                land(match failure {
                    Failure { is_everybodys: true, status, retry_after, .. } => {
                        Landing::Failed(status, retry_after)
                    }
                    Failure { is_origins: true, status, .. } => Landing::Error(status),
                    _ => Landing::NotShared,
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
        let storable = rules::store(&store.policy.load(), asked.head(), response, times);
        let detail = match storable {
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
        asked: &Asked<O::Client>,
        reservation: Reservation<ResponseKey, Stored>,
        lead: Option<Lead>,
        storable: Storable,
        fill: Arc<Fill>,
        body: O::Body,
    ) {
        if let Some(lead) = &lead
            && fill.is_shareable()
        {
            let filling = Filling::new(storable.clone(), Arc::clone(&fill), &asked.headers);
            lead.land(Landing::Filling(Arc::new(filling)));
        }
        let (this, target, headers) = (self.clone(), asked.target.clone(), asked.headers.clone());
        self.spawn(async move {
            let Some(store) = this.store() else { return };
            let land = |landing| {
                if let Some(lead) = &lead {
                    lead.land(landing);
                }
            };
            let unsuitable = || {
                store.note_shared(&target, &headers, false, now_ms());
                land(Landing::NotShared);
            };
            match fill.pump(body, this.shared.silence, unsuitable).await {
                Pumped::Complete(body) => {
                    store.keep(&reservation, &target, &headers, Keep::new(storable, body));
                    land(Landing::Stored);
                }
                Pumped::Unsuitable => unsuitable(),
                // It may come whole the next time: one of those who wait leads.
                Pumped::Broken => {}
            }
        });
    }

    /// Asks the origin for an answer that is not stored: to HEAD, to a range, or under `no-store`.
    async fn ask_unstored(&self, call: Call<'_, O::Client>) -> Answer<O::Body> {
        let asked = call.asked;
        let parts = asked.parts();
        let fetched = self.fetch(parts, &asked.client).await;
        let failure = match fetched {
            Ok(Fetched { head, body, cookie, .. }) => {
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
    fn refresh(&self, asked: &Asked<O::Client>, key: &ResponseKey, stale: Arc<StoredResponse>) {
        let background = &self.shared.background;
        let Some(place) = background.refresh_place() else { return };
        let Some(lead) = self.shared.flights.try_lead(key) else { return };
        self.shared.traffic.background_refreshes.fetch_add(1, Ordering::Relaxed);
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
            client: asked.client.clone(),
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

    /// Asks the origin with a request that has no body.
    async fn fetch(
        &self,
        parts: request::Parts,
        client: &O::Client,
    ) -> Result<Fetched<O::Body>, Failure> {
        let fetched = self.origin.fetch(parts, client).await;
        self.shared.traffic.called(fetched.as_ref().err());
        fetched
    }
}

/// A stored answer that has to be validated first.
struct Stale {
    response: Arc<StoredResponse>,
    may_serve_on_error: bool,
}

/// A call to the origin on behalf of a request.
struct Call<'a, C> {
    asked: &'a Asked<C>,
    stale: Option<Stale>,
    reason: Forward,
    /// Whether the request has waited for another one's answer.
    collapsed: bool,
    /// Whether the target's answers are known not to be shared.
    unshared: bool,
}

/// Forgets the target of an unsafe request that is dropped before its outcome is known: the client
/// is gone, but the origin may have done what was asked.
pub(crate) struct Unanswered<'a, O> {
    accelerator: &'a Accelerator<O>,
    target: Option<String>,
}

impl<O> Unanswered<'_, O> {
    /// The outcome is known; returns the target.
    pub(crate) fn answered(&mut self) -> Option<String> {
        self.target.take()
    }
}

impl<O> Drop for Unanswered<'_, O> {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            // Removing is done at the first poll.
            let _ = self.accelerator.purge(&target).now_or_never();
        }
    }
}

impl<C> Call<'_, C> {
    fn status(&self) -> CacheStatus {
        CacheStatus { collapsed: self.collapsed, ..CacheStatus::forward(self.reason) }
    }

    fn may_serve_stale(&self) -> bool {
        self.stale.as_ref().is_some_and(|stale| stale.may_serve_on_error)
    }

    /// The answer when the origin gives none: a stale one where that is allowed.
    fn fail<B>(&self, failure: &Failure) -> Answer<B> {
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
            _ => Answer::of(failure, Outcome::Miss, self.status()),
        }
    }
}

/// Answers with a stored response; `status` where the origin was asked for it.
fn serve<B>(
    request: RequestHead<'_>,
    stored: &StoredResponse,
    age: rules::Age,
    outcome: Outcome,
    status: Option<CacheStatus>,
) -> Answer<B> {
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
fn stream<B, C>(
    asked: &Asked<C>,
    stored: &StoredHead,
    headers: HeaderMap,
    fill: &Arc<Fill>,
    status: CacheStatus,
) -> Answer<B> {
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

/// Answers with what the origin sent. Only here, where nothing is stored, a client gets the cookie that
/// keeps it on its backend: an answer that others may get as well says nothing to one client.
pub(crate) fn answer_with<B>(
    mut head: response::Parts,
    body: B,
    cookie: Option<HeaderValue>,
    outcome: Outcome,
    status: CacheStatus,
) -> Answer<B> {
    set_cookie(&mut head, cookie);
    let response = Response::from_parts(head, AnswerBody::of_origin(body));
    Answer { response, outcome, status }
}

pub(crate) fn set_cookie(head: &mut response::Parts, cookie: Option<HeaderValue>) {
    if let Some(cookie) = cookie {
        head.headers.append(SET_COOKIE, cookie);
    }
}

/// The answer to `only-if-cached` when nothing is.
fn not_cached<B>() -> Answer<B> {
    let detail = "The request wants a stored answer only, and there is none.";
    let failure = Failure::of_request(StatusCode::GATEWAY_TIMEOUT, detail);
    let status =
        CacheStatus { detail: Some("only-if-cached"), ..CacheStatus::forward(Forward::Miss) };
    Answer::of(&failure, Outcome::Miss, status)
}

/// What is to be done with a request that passes the cache by.
fn pass<B>(method: &Method, authority: &str, path: &str, reason: Bypass) -> Step<B> {
    let (forward, detail) = match reason {
        Bypass::Method => (Forward::Method, None),
        reason => (Forward::Bypass, Some(reason.as_str())),
    };
    let changes = rules::is_unsafe(method).then(|| rules::target_key("http", authority, path));
    Step::Pass { changes, status: CacheStatus { detail, ..CacheStatus::forward(forward) } }
}
