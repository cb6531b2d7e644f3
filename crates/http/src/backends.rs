//! The backends: which one a request goes to, what its answer says of it, and when another is asked.
//!
//! ```text
//!   request ─ lease of a backend (or wait for one) ─ its breaker ─ its connections ─┬─ answer
//!                    ▲                                                              │
//!                    └── another one, if the request may be sent again ── failed ───┘
//! ```
//!
//! Every request holds a lease of its backend from before it is sent until its answer's body has been
//! read or dropped, so the limit of a backend bounds all that it works on. What the lease tells of
//! the backend's speed is the time to the head of the answer: how long a body takes is up to its
//! length and to the client that reads it, through a proxy that does not read ahead.
//!
//! A breaker that opens suspends its backend in the balancer, which is no failure of anybody: no
//! request is picked for it before the breaker wants a probe. So only requests that were picked in the
//! same instant meet an open breaker, and those pick again.
//!
//! A request goes to another backend if the first is certain not to have got it, or if the method is
//! idempotent, there is no body that is gone by then, and the answer was a failure or a 502, 503 or
//! 504 of which nothing has been passed on. Each time is paid for out of one budget, which hedges
//! share, so a failure of all backends at once is not multiplied.

mod body;
mod reclaim;
mod report;
mod session;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use http::header::UPGRADE;
use http::{HeaderValue, Method, Request, Response, StatusCode, request, response};
use http_body::Body as _;
use tokio::task::AbortHandle;
use ultra_perf::UltraPerf;
use ultra_perf::config::{Backend, Balancing, Config};
use ultra_perf::loadbalancer::{
    self, AcquireError, Balancer, Change, CheckTask, Event, Events, Lease, Outcome, Pick,
};
use ultra_perf::resilience::{
    self, CircuitBreaker, Extra, Hedge, HedgeBuilder, Permit, RetryBudget, State, StateChange,
};

pub(crate) use self::body::BackendBody;
pub(crate) use self::reclaim::IdleConnections;
pub(crate) use self::report::{FAMILIES, NodeReport, breaker_name, seconds};
use self::session::Sessions;
use crate::accelerator::now_ms;
use crate::body::RequestBody;
use crate::forward::{Forwarder, HostPolicy, Peer, Refusal};
use crate::rules::Times;
use crate::upstream::{
    InvalidUpstream, Upstream, UpstreamBody, UpstreamConfig, UpstreamError, UpstreamStats,
};

/// All backends of an accelerator; clones share them.
#[derive(Clone)]
pub(crate) struct Backends(Arc<Shared>);

struct Shared {
    balancer: Balancer,
    nodes: Box<[Node]>,
    budget: RetryBudget,
    hedge: Option<Hedge>,
    retries_max: usize,
    /// Whether the policy places requests by their target.
    keyed: bool,
    sessions: Option<Sessions>,
    retried: AtomicU64,
    /// Tells the log and the counters what happens to the backends.
    listener: AbortHandle,
    _checks: Option<CheckTask>,
}

/// One backend.
struct Node {
    id: Arc<str>,
    upstream: Upstream,
    forwarder: Forwarder,
    breaker: Option<CircuitBreaker>,
    /// Its breaker has suspended it, and has not been seen closed since.
    guarded: AtomicBool,
    tally: Arc<Tally>,
}

/// What became of a backend's requests, and of itself.
#[derive(Debug, Default)]
struct Tally {
    succeeded: AtomicU64,
    failed: AtomicU64,
    overloaded: AtomicU64,
    ignored: AtomicU64,
    cancelled: AtomicU64,
    ejected: AtomicU64,
}

/// Why backends cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendsError {
    #[error(transparent)]
    Url(#[from] InvalidUpstream),
    #[error(transparent)]
    Balancer(#[from] loadbalancer::BuildError),
    #[error(transparent)]
    Guard(#[from] resilience::BuildError),
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
}

/// An answer of a backend.
pub(crate) struct Called {
    pub(crate) head: response::Parts,
    pub(crate) body: BackendBody,
    pub(crate) times: Times,
    /// The cookie that keeps the client on the backend, if it has none yet.
    pub(crate) cookie: Option<HeaderValue>,
    at: usize,
}

/// Why no backend gave an answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The request is not one for a backend.
    Refused(Refusal),
    /// The backend gave none.
    Upstream(UpstreamError),
    /// There was no backend for it.
    NoBackend(NoBackend),
}

/// There was no backend for a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoBackend {
    pub(crate) detail: &'static str,
    /// When there may be one again.
    pub(crate) retry_after: Duration,
}

const BUSY: &str = "The backends have too much to do.";
const NONE_READY: &str = "No backend takes requests at the moment.";

impl From<AcquireError> for NoBackend {
    fn from(error: AcquireError) -> Self {
        let detail = match error {
            AcquireError::Full { .. } | AcquireError::TimedOut { .. } => BUSY,
            _ => NONE_READY,
        };
        Self { detail, retry_after: error.retry_after().unwrap_or(Duration::from_secs(1)) }
    }
}

/// A place in a backend whose breaker lets the request pass.
struct Admitted<'a> {
    // Dropped in this order.
    permit: Option<Permit>,
    lease: Lease,
    at: usize,
    node: &'a Node,
}

/// An attempt that got no answer.
struct Failed {
    error: CallError,
    /// The body, if certainly nothing of the request was sent.
    unsent: Option<RequestBody>,
    at: Option<usize>,
}

impl From<NoBackend> for Failed {
    fn from(none: NoBackend) -> Self {
        Self { error: CallError::NoBackend(none), unsent: None, at: None }
    }
}

/// Counts an attempt that is dropped before its outcome is known.
struct Undecided<'a>(Option<&'a Tally>);

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if let Some(tally) = self.0 {
            tally.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Backends {
    /// Makes the clients of all backends as the configuration says, and begins to check them.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn start(perf: &UltraPerf) -> Result<Self, BackendsError> {
        let config = perf.config();
        let balancer = config.balancer_builder().build()?;
        let budget = perf.retry_budget().clone();
        let hedge = config.hedge_builder(budget.clone()).map(HedgeBuilder::build).transpose()?;
        let settings = &config.balancer;
        let host =
            if config.server.preserve_host { HostPolicy::Preserve } else { HostPolicy::Origin };
        let instance = fastrand::u64(..);
        let mut nodes = Vec::new();
        let known = balancer.backends();
        for (backend, known) in config.server.to.iter().flatten().zip(known) {
            let upstream = Upstream::new(upstream_config(&config, backend)?);
            let authority = upstream.authority().parse().map_err(InvalidUpstream::from)?;
            let base_path = backend.url.base_path();
            let breaker =
                config.breaker_builder(&known.id).map(|it| it.on_change(log_breaker).build());
            nodes.push(Node {
                id: known.id,
                forwarder: Forwarder::new(&authority, base_path, host, instance),
                upstream,
                breaker: breaker.transpose()?,
                guarded: AtomicBool::new(false),
                tally: Arc::default(),
            });
        }
        if settings.check_path.is_some() {
            // Taken for well until a check says otherwise: a start must not be a time without backends.
            for node in &nodes {
                for _ in 0..settings.check_rise {
                    balancer.report_check(&node.id, Ok(()));
                }
            }
        }
        let tallies =
            nodes.iter().map(|node| (Arc::clone(&node.id), Arc::clone(&node.tally))).collect();
        let listener = tokio::spawn(listen(balancer.events(), tallies)).abort_handle();
        let sessions = settings.sticky.then(|| {
            let ids = nodes.iter().map(|node| &*node.id);
            Sessions::new(&settings.sticky_cookie, config.signing_key(), ids)
        });
        let sessions = sessions.transpose()?;
        Ok(Self(Arc::new(Shared {
            _checks: config.checks().map(|checks| checks.start(&balancer)),
            balancer,
            nodes: nodes.into(),
            budget,
            hedge,
            retries_max: settings.retries,
            keyed: matches!(settings.policy, Balancing::RingHash | Balancing::Maglev),
            sessions,
            retried: AtomicU64::new(0),
            listener,
        })))
    }

    /// Returns what spreads the requests.
    pub(crate) fn balancer(&self) -> &Balancer {
        &self.0.balancer
    }

    /// Returns how clients are kept on their backends, if they are.
    pub(crate) fn sessions(&self) -> Option<&Sessions> {
        self.0.sessions.as_ref()
    }

    /// Returns what all connections together have done and hold.
    pub(crate) fn upstream_stats(&self) -> UpstreamStats {
        let mut sum = UpstreamStats::default();
        for node in &self.0.nodes {
            let stats = node.upstream.stats();
            sum.opened += stats.opened;
            sum.reused += stats.reused;
            sum.retried += stats.retried;
            sum.saturated += stats.saturated;
            sum.active += stats.active;
            sum.waiting += stats.waiting;
            sum.idle += stats.idle;
        }
        sum
    }

    /// Ends what stands against a backend: draining, ejection, and what its breaker remembers;
    /// returns whether it is there.
    pub(crate) fn restore(&self, id: &str) -> bool {
        let Some(node) = self.0.nodes.iter().find(|node| *node.id == *id) else { return false };
        if let Some(breaker) = &node.breaker {
            breaker.reset();
        }
        node.guarded.store(false, Ordering::Relaxed);
        self.0.balancer.resume(id);
        self.0.balancer.restore(id)
    }

    /// Closes the idle connections and refuses further requests; answers under way go on.
    pub(crate) fn close(&self) {
        self.0.listener.abort();
        self.0.nodes.iter().for_each(|node| node.upstream.close());
    }

    /// Sends a request to a backend, and to another one where that is allowed and of use.
    ///
    /// `session` is the backend that the client's cookie names.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection in use and gives the places back.
    pub(crate) async fn call(
        &self,
        parts: request::Parts,
        body: RequestBody,
        peer: &Peer,
        session: Option<usize>,
    ) -> Result<Called, CallError> {
        let shared = &*self.0;
        let pick = shared.pick(&parts, session);
        let called = if shared.nodes.len() == 1 {
            let admitted = shared.admit(&pick).await.map_err(CallError::NoBackend)?;
            shared.attempt(admitted, parts, body, peer).await.map_err(|failed| failed.error)
        } else {
            // In a box, so that the way through a single backend is not as large as all of this.
            Box::pin(shared.call_one_of(pick, parts, body, peer)).await
        };
        let mut called = called?;
        if let Some(sessions) = &shared.sessions
            && session != Some(called.at)
        {
            called.cookie = Some(sessions.cookie(called.at));
        }
        Ok(called)
    }
}

impl Shared {
    fn pick(&self, parts: &request::Parts, session: Option<usize>) -> Pick {
        let mut pick = Pick::new();
        if self.keyed {
            pick = pick.key(parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        }
        match session.and_then(|at| self.nodes.get(at)) {
            Some(node) => pick.prefer(Arc::clone(&node.id)),
            None => pick,
        }
    }

    /// Sends a request to one of several backends.
    async fn call_one_of(
        &self,
        mut pick: Pick,
        parts: request::Parts,
        body: RequestBody,
        peer: &Peer,
    ) -> Result<Called, CallError> {
        let spare = if parts.method.is_idempotent() { body.replay() } else { None };
        let hedge = self.hedge.as_ref().filter(|_| may_hedge(&parts, &body));
        let mut result = match hedge {
            // In a box: it is rare, and as large as two attempts.
            Some(hedge) => Box::pin(self.hedged(hedge, &pick, &parts, peer)).await,
            None => {
                self.budget.call_at(Instant::now());
                let admitted = self.admit(&pick).await.map_err(CallError::NoBackend)?;
                self.attempt(admitted, copy(&parts), body, peer).await
            }
        };
        let mut tried = Vec::new();
        while tried.len() < self.retries_max {
            let (at, body) = match &mut result {
                Ok(called) if is_refusal(called.head.status) => (called.at, None),
                Err(Failed { error: CallError::Upstream(error), unsent, at: Some(at) })
                    if error.is_origin_failure() =>
                {
                    (*at, unsent.take())
                }
                _ => break,
            };
            let Some(body) = body.or_else(|| spare.as_ref().and_then(RequestBody::replay)) else {
                break;
            };
            tried.push(at);
            pick = pick.avoid(Arc::clone(&self.nodes[at].id));
            let Some(admitted) = self.admit_other(&pick, &tried) else { break };
            if !self.budget.try_spend_at(Extra::Retry, Instant::now()) {
                break;
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            // The connection of an answer that nobody reads is closed before the next is in use.
            drop(result);
            result = self.attempt(admitted, copy(&parts), body, peer).await;
        }
        result.map_err(|failed| failed.error)
    }

    /// Sends a request, and to a second backend as well if the first takes long.
    async fn hedged(
        &self,
        hedge: &Hedge,
        pick: &Pick,
        parts: &request::Parts,
        peer: &Peer,
    ) -> Result<Called, Failed> {
        let (calls, first) = (AtomicUsize::new(0), OnceLock::new());
        let (calls, first) = (&calls, &first);
        let make = || async move {
            let admitted = if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                let admitted = self.admit(pick).await?;
                let _ = first.set(admitted.at);
                admitted
            } else {
                // While the first has no backend, a second would only wait behind it.
                let none = NoBackend { detail: BUSY, retry_after: Duration::from_secs(1) };
                let at = *first.get().ok_or(none)?;
                let pick = pick.clone().avoid(Arc::clone(&self.nodes[at].id));
                self.admit_other(&pick, &[at]).ok_or(none)?
            };
            self.attempt(admitted, copy(parts), RequestBody::Empty, peer).await
        };
        let good = |result: &Result<Called, Failed>| {
            result.as_ref().is_ok_and(|called| !is_refusal(called.head.status))
        };
        hedge.call(make, good).await
    }

    /// Takes a place in a backend, waiting for one while all are full.
    async fn admit(&self, pick: &Pick) -> Result<Admitted<'_>, NoBackend> {
        let mut hint = Duration::MAX;
        // Each backend's breaker may have opened since the balancer heard of it.
        for _ in 0..=self.nodes.len() {
            let lease = self.balancer.acquire(pick).await?;
            match self.guard(lease) {
                Ok(admitted) => return Ok(admitted),
                Err(open_for) => hint = hint.min(open_for),
            }
        }
        Err(NoBackend { detail: NONE_READY, retry_after: hint })
    }

    /// Takes a place in a backend that is none of these, without waiting.
    fn admit_other(&self, pick: &Pick, tried: &[usize]) -> Option<Admitted<'_>> {
        for _ in 0..=self.nodes.len() {
            let lease = self.balancer.try_acquire(pick).ok()?;
            if let Ok(admitted) = self.guard(lease) {
                return (!tried.contains(&admitted.at)).then_some(admitted);
            }
        }
        None
    }

    /// Asks the breaker of a lease's backend; the error is how long it stays open.
    fn guard(&self, lease: Lease) -> Result<Admitted<'_>, Duration> {
        let at = self.at(lease.backend());
        let node = &self.nodes[at];
        let permit = match node.breaker.as_ref().map(CircuitBreaker::try_acquire) {
            None => None,
            Some(Ok(permit)) => Some(permit),
            Some(Err(open)) => {
                self.suspend(node, open.retry_after);
                return Err(open.retry_after);
            }
        };
        Ok(Admitted { permit, lease, at, node })
    }

    fn at(&self, id: &Arc<str>) -> usize {
        // The balancer hands out the very ids that the nodes have, in a set that never changes.
        let found = self.nodes.iter().position(|node| Arc::ptr_eq(&node.id, id));
        found.or_else(|| self.nodes.iter().position(|node| node.id == *id)).unwrap_or(0)
    }

    fn suspend(&self, node: &Node, time: Duration) {
        node.guarded.store(true, Ordering::Relaxed);
        self.balancer.suspend(&node.id, time);
    }

    /// Sends a request to one backend and notes what its answer says.
    async fn attempt(
        &self,
        admitted: Admitted<'_>,
        mut parts: request::Parts,
        body: RequestBody,
        peer: &Peer,
    ) -> Result<Called, Failed> {
        let Admitted { permit, mut lease, at, node } = admitted;
        if let Err(refusal) = node.forwarder.request(&mut parts, peer, fastrand::u64(..)) {
            return Err(Failed { error: CallError::Refused(refusal), unsent: None, at: Some(at) });
        }
        let mut undecided = Undecided(Some(&node.tally));
        let request_ms = now_ms();
        let sent = node.upstream.try_send(Request::from_parts(parts, body)).await;
        undecided.0 = None;
        match sent {
            Ok(response) => {
                let times = Times { request_ms, response_ms: now_ms() };
                let outcome = outcome_of(&response);
                self.settle(node, permit, outcome);
                let (mut head, body) = response.into_parts();
                node.forwarder.response(&mut head);
                let lease = match is_over(&head, &body) {
                    true => {
                        lease.complete(outcome);
                        None
                    }
                    false => {
                        lease.answered(outcome);
                        Some(lease)
                    }
                };
                Ok(Called { head, body: BackendBody::new(body, lease), times, cookie: None, at })
            }
            Err(failure) => {
                let error = &failure.error as &dyn std::error::Error;
                tracing::debug!(backend = &*node.id, error, "a backend gave no answer");
                let outcome = outcome_of_error(&failure.error);
                self.settle(node, permit, outcome);
                lease.complete(outcome);
                Err(Failed {
                    error: CallError::Upstream(failure.error),
                    unsent: failure.unsent.map(Request::into_body),
                    at: Some(at),
                })
            }
        }
    }

    /// Tells a backend's breaker and counters how a request ended.
    fn settle(&self, node: &Node, permit: Option<Permit>, outcome: Outcome) {
        node.tally.count(outcome);
        let (Some(permit), Some(breaker)) = (permit, &node.breaker) else { return };
        permit.complete(outcome);
        if outcome.is_failure() {
            let stats = breaker.stats();
            if stats.state == State::Open {
                self.suspend(node, stats.retry_after);
            }
        } else if node.guarded.load(Ordering::Relaxed) && breaker.state() == State::Closed {
            node.guarded.store(false, Ordering::Relaxed);
            self.balancer.resume(&node.id);
        }
    }
}

impl Tally {
    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Success => &self.succeeded,
            Outcome::Failure => &self.failed,
            Outcome::Overload { .. } => &self.overloaded,
            Outcome::Ignored => &self.ignored,
            Outcome::Cancelled => &self.cancelled,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends").field("balancer", &self.0.balancer).finish_non_exhaustive()
    }
}

fn upstream_config(config: &Config, backend: &Backend) -> Result<UpstreamConfig, InvalidUpstream> {
    let server = &config.server;
    let mut upstream = UpstreamConfig::new(&backend.url.to_string())?;
    upstream.connect_timeout = server.connect_timeout;
    upstream.response_timeout = server.response_timeout;
    upstream.body_idle_timeout = server.idle_timeout;
    upstream.keep_alive_timeout = server.idle_timeout;
    // As many as the backend's leases, so that requests wait in the balancer alone.
    upstream.max_connections =
        backend.max_in_flight.map_or(server.upstream_connections, |most| most as usize);
    upstream.max_head_bytes = server.max_header_bytes.as_usize();
    Ok(upstream)
}

/// What a response says of its backend: by its status, but that 429 says something of the client.
fn outcome_of<B>(response: &Response<B>) -> Outcome {
    match response.status() {
        // Otherwise one client that asks too often takes every backend out.
        StatusCode::TOO_MANY_REQUESTS => Outcome::Ignored,
        StatusCode::SERVICE_UNAVAILABLE => Outcome::of_response(response, SystemTime::now()),
        status => Outcome::of_status(status.as_u16(), None),
    }
}

fn outcome_of_error(error: &UpstreamError) -> Outcome {
    match error {
        // Its own pool was full, which says nothing of the backend.
        UpstreamError::Saturated => Outcome::Ignored,
        error if error.is_origin_failure() => Outcome::Failure,
        _ => Outcome::Ignored,
    }
}

/// Whether a backend says that it cannot answer now, and another one may.
fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether nothing follows the head of an answer.
fn is_over(head: &response::Parts, body: &UpstreamBody) -> bool {
    head.status != StatusCode::SWITCHING_PROTOCOLS && body.is_end_stream()
}

fn may_hedge(parts: &request::Parts, body: &RequestBody) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD)
        && matches!(body, RequestBody::Empty)
        && !parts.headers.contains_key(UPGRADE)
}

/// Copies a head, without its extensions.
fn copy(parts: &request::Parts) -> request::Parts {
    let mut copy = Request::new(()).into_parts().0;
    copy.method = parts.method.clone();
    copy.uri = parts.uri.clone();
    copy.version = parts.version;
    copy.headers = parts.headers.clone();
    copy
}

fn log_breaker(change: &StateChange<'_>) {
    let StateChange { breaker, from, to, reason, .. } = change;
    tracing::warn!(backend = breaker, ?from, ?to, ?reason, "a circuit breaker changed");
}

/// Writes what happens to the backends to the log, and counts ejections.
async fn listen(mut events: Events, tallies: Vec<(Arc<str>, Arc<Tally>)>) {
    while let Some(event) = events.next().await {
        let Event { backend, change, .. } = &event;
        if let (Some(id), Change::Ejected { .. }) = (backend, change)
            && let Some((_, tally)) = tallies.iter().find(|(known, _)| known == id)
        {
            tally.ejected.fetch_add(1, Ordering::Relaxed);
        }
        match change {
            // The changes of the breaker are told beside these.
            Change::Suspended { .. } | Change::Resumed => tracing::debug!("{event}"),
            Change::Ejected { .. }
            | Change::NotEjected { .. }
            | Change::Down { .. }
            | Change::PanicBegan { .. } => tracing::warn!("{event}"),
            _ => tracing::info!("{event}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_of_the_backend_what_it_should() {
        let outcome = |status: u16, hint: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(hint) = hint {
                response = response.header("retry-after", hint);
            }
            outcome_of(&response.body(()).expect("a response"))
        };
        let hinted = Outcome::Overload { retry_after: Some(Duration::from_secs(7)) };
        for (status, hint, expected) in [
            (200, None, Outcome::Success),
            (304, None, Outcome::Success),
            (404, None, Outcome::Ignored),
            (429, Some("7"), Outcome::Ignored),
            (500, None, Outcome::Failure),
            (501, None, Outcome::Ignored),
            (502, None, Outcome::Failure),
            (503, None, Outcome::Overload { retry_after: None }),
            (503, Some("7"), hinted),
        ] {
            assert_eq!(outcome(status, hint), expected, "{status} {hint:?}");
        }
    }
}
