//! The admin API: what a handle's parts and the accelerator are doing, and the ways to steer them.
//!
//! A handle has its part of the routes also without an accelerator: [`admin()`]. What is about the cache of
//! answers, the backends and the requests comes with the accelerator.
//!
//! Every request passes these checks in this order: its Host names this machine's loopback (a page
//! elsewhere that points a name at 127.0.0.1 is refused), a browser does not send it for a page from
//! elsewhere (an `<img>` could start a profile), the path exists, the method fits, a body is
//! `application/json` (which no cross-site form can send). No GET changes anything. Errors are
//! problem documents of RFC 9457.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http_body_util::LengthLimitError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ultra_perf::UltraPerf;
use ultra_perf::cache_tiered::{
    CacheStats, CandidateReport, CompressionStats, CurvePoint, Policy, PolicySwitch, Tag, Tier,
    TierStats,
};
use ultra_perf::monitor::negotiate;

use crate::accelerator::Accelerator;
use crate::forward::problem;
use crate::rules;
use crate::watch::Machine;

/// The longest body that a request may have.
const MAX_BODY_BYTES: usize = 64 << 10;

pub(crate) struct Admin {
    pub(crate) accelerator: Accelerator,
    pub(crate) perf: UltraPerf,
}

mod advice;
mod balancer;
mod config;
mod memory;
mod monitor;
mod profile;
mod scheduler;

/// What the routes of a handle have.
type Shared = State<UltraPerf>;
/// What those of the accelerator have.
type Accelerated = State<Arc<Admin>>;

/// Returns the routes that show and steer a handle, under `/performance`, as an axum router.
///
/// They are the part of the admin API that needs no accelerator: metrics and their history, alerts, the
/// score, recommendations with apply, undo and dismiss, the configuration and its changes, memory, the
/// scheduler, profiles. [`AdminServer`](crate::AdminServer) serves them on the address that the
/// configuration names, which is what most services want.
///
/// Whoever reaches them steers the handle, without a password. Requests have to name a loopback host, and
/// those that a browser sends for a page from elsewhere are refused; neither keeps out who writes requests by
/// hand, so serve them where only this machine gets: a port on the loopback, or a Unix socket.
///
/// # Examples
///
/// ```
/// use ultra_perf::UltraPerf;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let perf = UltraPerf::builder().set("monitor.history.enabled", "false").build().await?;
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let admin = ultra_perf_http::admin(&perf);
/// tokio::spawn(async move { axum::serve(listener, admin).await });
/// # Ok(())
/// # }
/// ```
pub fn admin(perf: &UltraPerf) -> Router {
    let routes = routes().route("/health", get(handle_health)).with_state(perf.clone());
    nested(
        routes,
        "There is nothing at this path; stats, cache and balancer come with an accelerator.",
    )
}

/// The routes of the accelerator and of its handle, under `/performance`.
pub(crate) fn router(admin: Arc<Admin>) -> Router {
    let perf = admin.perf.clone();
    let own = Router::new()
        .route("/health", get(health))
        .route("/stats", get(stats))
        .route("/cache/stats", get(cache_stats))
        .route("/cache/manage", post(manage))
        .route("/cache/purge", post(purge))
        .route("/cache/policy", get(policy).post(set_policy))
        .route("/balancer/stats", get(balancer::stats))
        .route("/balancer/eject", post(balancer::eject))
        .route("/balancer/restore", post(balancer::restore))
        .route("/balancer/drain", post(balancer::drain))
        .route("/balancer/weight", post(balancer::weight))
        .with_state(admin);
    nested(own.merge(routes().with_state(perf)), NOTHING)
}

/// The routes of a handle.
fn routes() -> Router<UltraPerf> {
    Router::new()
        .route("/memory/stats", get(memory::stats))
        .route("/memory/usage", get(memory::usage))
        .route("/memory/cleanup", post(memory::cleanup))
        .route("/scheduler/stats", get(scheduler::stats))
        .route("/scheduler/tasks", get(scheduler::tasks))
        .route("/scheduler/cancel", post(scheduler::cancel))
        .route("/metrics", get(metrics))
        .route("/metrics/history", get(monitor::history))
        .route("/metrics/baselines", get(monitor::baselines))
        .route("/alerts", get(monitor::alerts))
        .route("/alerts/acknowledge", post(monitor::acknowledge))
        .route("/alerts/silence", post(monitor::silence))
        .route("/alerts/unsilence", post(monitor::unsilence))
        .route("/alerts/silences", get(monitor::silences))
        .route("/alerts/clear", post(monitor::clear))
        .route("/alerts/reload", post(monitor::reload))
        .route("/alerts/handlers", get(monitor::handlers))
        .route("/recommendations", get(advice::list))
        .route("/recommendations/{id}", get(advice::one))
        .route("/recommendations/{id}/apply", post(advice::apply))
        .route("/recommendations/{id}/undo", post(advice::undo))
        .route("/recommendations/{id}/dismiss", post(advice::dismiss))
        .route("/optimize/{id}", post(advice::apply))
        .route("/config", get(config::show).put(config::set))
        .route("/config/undo", post(config::undo))
        .route("/config/schema", get(config::schema))
        .route("/config/changes", get(config::changes))
        .route("/profile", get(profile::take))
        .route("/score", get(advice::score))
}

const NOTHING: &str = "There is nothing at this path.";

/// Puts routes under `/performance` and a guard before them, and nothing beside: the router can be merged.
fn nested(routes: Router, nothing: &'static str) -> Router {
    let routes = routes
        .fallback(move || async move { Problem::new(StatusCode::NOT_FOUND, nothing) })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "The path does not take this method.")
        })
        .layer(from_fn(guard));
    Router::new().nest("/performance", routes)
}

/// Routes that have an address to themselves: what is at no path is a problem document too.
pub(crate) fn alone(routes: Router) -> Router {
    let nothing = any(|| async { Problem::new(StatusCode::NOT_FOUND, NOTHING) });
    routes.fallback_service(nothing.layer(from_fn(guard)).with_state(()))
}

/// An error for the client.
struct Problem {
    status: StatusCode,
    detail: String,
    /// Where several things are wrong at once: each of them.
    problems: Vec<String>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), problems: Vec::new() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let response = problem(self.status, &self.detail).map(Body::new);
        if self.problems.is_empty() {
            return response;
        }
        let document = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "problems": self.problems,
        });
        response.map(|_| Body::from(document.to_string()))
    }
}

/// Who does something, if the request does not say.
fn api() -> String {
    "the admin API".to_owned()
}

/// Lets requests through that name this machine and that no page from elsewhere has made.
async fn guard(request: Request, next: Next) -> Response {
    if !names_this_machine(&request) {
        let detail = "The Host field must name this machine: localhost, 127.0.0.1 or [::1].";
        return Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response();
    }
    if !request.headers().get_all(SEC_FETCH_SITE).iter().all(is_own_page) {
        let detail =
            "A page from elsewhere has made the browser send this; open the address itself.";
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Who made a browser send a request; other programs do not say.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether it was a page of this address, or somebody who entered the address. Another port of this
/// machine is `same-site`, and somebody else's program.
fn is_own_page(site: &HeaderValue) -> bool {
    [&b"same-origin"[..], b"none"].contains(&site.as_bytes())
}

/// Whether a request names this machine, in its target or in Host, and nothing else.
fn names_this_machine(request: &Request) -> bool {
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    let fields = request.headers().get_all(header::HOST);
    let fields = fields.iter().map(|host| host.to_str().unwrap_or_default());
    let mut names = target.into_iter().chain(fields).peekable();
    names.peek().is_some() && names.all(is_loopback)
}

/// Whether a Host field names this machine itself.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn timestamp() -> String {
    rfc3339(OffsetDateTime::now_utc())
}

fn rfc3339(now: OffsetDateTime) -> String {
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

async fn health(State(admin): Accelerated) -> Result<Json<Value>, Problem> {
    healthy(&admin.perf, admin.accelerator.store().is_some()).await
}

/// A handle optimizes as soon as one of its caches is open.
async fn handle_health(State(perf): Shared) -> Result<Json<Value>, Problem> {
    healthy(&perf, !perf.caches().is_empty()).await
}

async fn healthy(perf: &UltraPerf, optimizer_running: bool) -> Result<Json<Value>, Problem> {
    let machine = read_machine(perf).await?;
    Ok(Json(json!({
        "status": "healthy",
        "timestamp": timestamp(),
        "optimizer_running": optimizer_running,
        "system_resources": machine.system,
    })))
}

async fn read_machine(perf: &UltraPerf) -> Result<Machine, Problem> {
    let perf = perf.clone();
    // Reading may ask the disk tier for its size.
    let read = tokio::task::spawn_blocking(move || Machine::of(&perf.snapshot())).await;
    read.map_err(|_| unreadable())
}

fn unreadable() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The figures could not be read.")
}

async fn stats(State(admin): Accelerated) -> Result<Json<Value>, Problem> {
    let memory = read_machine(&admin.perf).await?.process;
    let cache = admin.accelerator.store().map(|store| store.cache.stats());
    let upstream = admin.accelerator.backends().upstream_stats();
    let queue = admin.accelerator.backends().balancer().stats();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "memory": { "current": memory, "gc_stats": memory::gc_stats(admin.perf.memory()) },
        "cache": cache.map(|stats| cache_summary(&admin, &stats)),
        "requests": admin.accelerator.traffic().stats(),
        "origin": {
            "connections_opened": upstream.opened,
            "connections_reused": upstream.reused,
            "connections_active": upstream.active,
            "connections_idle": upstream.idle,
            "requests_waiting": upstream.waiting + queue.waiting,
            "requests_retried": upstream.retried,
            "requests_refused": upstream.saturated + queue.shed + queue.timed_out,
            "flights": admin.accelerator.flights(),
        },
    })))
}

/// Hits and misses by level, and the share of requests that the cache answered.
fn cache_summary(admin: &Admin, stats: &CacheStats) -> Value {
    let levels = levels(stats);
    let of = |count: fn(&TierStats) -> u64| -> serde_json::Map<_, _> {
        levels.iter().map(|(level, stats)| ((*level).to_owned(), count(stats).into())).collect()
    };
    json!({ "hits": of(|it| it.hits), "misses": of(|it| it.misses), "hit_rate": hit_rate(admin) })
}

fn hit_rate(admin: &Admin) -> f64 {
    admin.accelerator.traffic().stats().hit_rate()
}

/// The levels that the cache has, under the names that the API gives them.
fn levels(stats: &CacheStats) -> Vec<(&'static str, TierStats)> {
    let all = [("l1", Some(stats.memory)), ("l2", stats.redis), ("l3", stats.disk)];
    all.into_iter().filter_map(|(level, stats)| Some((level, stats?))).collect()
}

fn tier_name(level: &str) -> &'static str {
    match level {
        "l1" => "memory",
        "l2" => "redis",
        _ => "disk",
    }
}

async fn cache_stats(State(admin): Accelerated) -> Result<Json<Value>, Problem> {
    let store = admin.accelerator.store().ok_or_else(no_cache)?;
    let stats = store.cache.stats();
    let levels: serde_json::Map<_, _> = levels(&stats)
        .into_iter()
        .map(|(level, stats)| (level.to_owned(), tier(level, &stats)))
        .collect();
    Ok(Json(json!({
        "timestamp": timestamp(),
        "levels": levels,
        "hit_rate": hit_rate(&admin),
        "superseded": stats.superseded,
        "compression": compression(&stats.compression),
    })))
}

fn compression(stats: &CompressionStats) -> Value {
    json!({
        "tried": stats.tried,
        "compressed": stats.compressed,
        "skipped": stats.skipped,
        "decompressed": stats.decompressed,
        "bytes_in": stats.bytes_in,
        "bytes_out": stats.bytes_out,
        "ratio": stats.ratio(),
        "encode_seconds": stats.encode_time.as_secs_f64(),
        "decode_seconds": stats.decode_time.as_secs_f64(),
        "dictionaries": stats.dictionaries,
        "dictionaries_trained": stats.dictionaries_trained,
    })
}

fn tier(level: &str, stats: &TierStats) -> Value {
    json!({
        "tier": tier_name(level),
        "hits": stats.hits,
        "misses": stats.misses,
        "hit_rate": stats.hit_ratio(),
        "entries": stats.entries,
        "size_bytes": stats.bytes,
        "capacity_bytes": stats.capacity,
        "evictions": {
            "capacity": stats.evictions.capacity,
            "expired": stats.evictions.expired,
            "removed": stats.evictions.removed,
            "too_large": stats.evictions.too_large,
        },
        "errors": stats.errors,
        "writes": stats.writes,
        "dropped_writes": stats.dropped_writes,
        "refused_writes": {
            "admission": stats.refused_admission,
            "budget": stats.refused_budget,
        },
        "copied_forward": stats.copied_forward,
        "checkpoints": stats.checkpoints,
        "queue_depth": stats.queue_depth,
        "queue_bytes": stats.queue_bytes,
    })
}

fn no_cache() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "The response cache is switched off: response_cache.enabled.",
    )
}

/// What `POST /performance/cache/manage` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manage {
    action: Action,
    #[serde(default)]
    level: Level,
    /// Removes only what is past its time; memory and disk.
    #[serde(default)]
    expired_only: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Clear,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    #[serde(alias = "memory")]
    L1,
    #[serde(alias = "redis")]
    L2,
    #[serde(alias = "disk")]
    L3,
    #[default]
    All,
}

impl Level {
    fn tier(self) -> Option<Tier> {
        match self {
            Self::L1 => Some(Tier::Memory),
            Self::L2 => Some(Tier::Redis),
            Self::L3 => Some(Tier::Disk),
            Self::All => None,
        }
    }
}

async fn manage(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let Manage { action: Action::Clear, level, expired_only } = read_json(&headers, body).await?;
    let store = admin.accelerator.store().ok_or_else(no_cache)?;
    let present = levels(&store.cache.stats());
    let wanted = level.tier().map(Tier::as_str);
    let cleared: Vec<_> = present
        .iter()
        .map(|(level, _)| *level)
        .filter(|level| wanted.is_none_or(|wanted| tier_name(level) == wanted))
        .collect();
    if cleared.is_empty() {
        let names: Vec<_> = present.iter().map(|(level, _)| *level).collect();
        let detail = format!("The cache has no such level; it has {}.", names.join(", "));
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    if expired_only {
        if level != Level::All {
            let detail = "Expired entries are removed from all levels together; leave level out.";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        let removed = store.cache.remove_expired().await;
        return Ok(Json(json!({
            "timestamp": timestamp(),
            "status": "success",
            "action": "clear",
            "expired_only": true,
            "expired_removed": removed,
        })));
    }
    let accelerator = admin.accelerator.clone();
    urgently(&admin, async move { accelerator.clear(level.tier()).await }).await?;
    tracing::info!(levels = cleared.join(","), "the cache was cleared by the admin API");
    Ok(Json(json!({
        "timestamp": timestamp(),
        "status": "success",
        "action": "clear",
        "cleared": cleared,
    })))
}

/// Which policy memory runs, how its rivals do on the sample, and what other capacities would hit.
async fn policy(State(admin): Accelerated) -> Result<Json<Value>, Problem> {
    let store = admin.accelerator.store().ok_or_else(no_cache)?;
    let report = store.cache.policy_report().ok_or_else(fixed_engine)?;
    let candidate = |it: &CandidateReport| {
        json!({
            "name": it.name,
            "live": it.live,
            "hit_rate": it.hit_ratio,
            "recent_hit_rate": it.recent_hit_ratio,
        })
    };
    let switch = |it: &PolicySwitch| {
        json!({
            "request": it.request,
            "from": it.from,
            "to": it.to,
            "from_hit_rate": it.from_hit_ratio,
            "to_hit_rate": it.to_hit_ratio,
        })
    };
    let point = |it: &CurvePoint| {
        json!({
            "capacity_bytes": it.capacity,
            "hit_rate": it.estimate.hit_ratio,
            "error": it.estimate.error,
        })
    };
    let curve = store.cache.miss_ratio_curve();
    let curve = curve.map(|curve| curve.points().iter().map(point).collect::<Vec<_>>());
    Ok(Json(json!({
        "timestamp": timestamp(),
        "policy": store.cache.policy().map(Policy::as_str),
        "live": report.live,
        "voting": report.voting,
        "sampling_rate": report.sampling_rate,
        "sampled": report.sampled,
        "dropped": report.dropped,
        "candidates": report.candidates.iter().map(candidate).collect::<Vec<_>>(),
        "switched": report.switched,
        "switches": report.switches.iter().map(switch).collect::<Vec<_>>(),
        "curve": curve,
    })))
}

fn fixed_engine() -> Problem {
    let detail = "The memory tier has but one policy: cache.memory.engine is clock-pro.";
    Problem::new(StatusCode::CONFLICT, detail)
}

/// What `POST /performance/cache/policy` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPolicy {
    policy: String,
}

async fn set_policy(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let SetPolicy { policy } = read_json(&headers, body).await?;
    let store = admin.accelerator.store().ok_or_else(no_cache)?;
    let policy: Policy = policy.parse().map_err(|error| {
        let detail = format!("policy is \"{policy}\": {error}.");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    store.cache.set_policy(policy).map_err(|_| fixed_engine())?;
    tracing::info!(%policy, "the policy was set by the admin API");
    Ok(Json(json!({
        "timestamp": timestamp(),
        "status": "success",
        "policy": policy.as_str(),
    })))
}

/// What `POST /performance/cache/purge` takes: a URL, or tags.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Purge {
    /// The URL as clients ask for it, with scheme and host.
    url: Option<String>,
    /// Names from the answers' `Surrogate-Key` or `Cache-Tag`.
    tags: Option<Vec<String>>,
    /// Leaves what has one of the tags stale in place of forgetting it.
    #[serde(default)]
    soft: bool,
}

async fn purge(
    State(admin): Accelerated,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let refuse = |detail| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let url = match read_json(&headers, body).await? {
        Purge { url: Some(url), tags: None, soft: false } => url,
        Purge { url: None, tags: Some(tags), soft } => {
            return purge_tags(&admin, &tags, soft).await;
        }
        Purge { url: Some(_), tags: None, soft: true } => {
            return Err(refuse("Only tags can be purged softly; leave soft out."));
        }
        _ => return Err(refuse("The body must name either url or tags.")),
    };
    admin.accelerator.store().ok_or_else(no_cache)?;
    let target = target_of(&url).ok_or_else(|| {
        let detail = "url must be a whole URL as clients ask for it: http://host:port/path?query";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    let (accelerator, key) = (admin.accelerator.clone(), target.clone());
    urgently(&admin, async move { accelerator.purge(&key).await }).await?;
    tracing::info!(url, "a target was purged by the admin API");
    Ok(Json(json!({ "timestamp": timestamp(), "status": "success", "purged": target })))
}

async fn purge_tags(admin: &Admin, tags: &[String], soft: bool) -> Result<Json<Value>, Problem> {
    admin.accelerator.store().ok_or_else(no_cache)?;
    let is_tag =
        |tag: &String| !tag.is_empty() && tag.trim() == tag && !tag.contains(char::is_control);
    if tags.is_empty() || !tags.iter().all(is_tag) {
        let detail = "tags must be names as Surrogate-Key or Cache-Tag give them, one at least.";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let numbers: Vec<_> = tags.iter().map(Tag::from).collect();
    let accelerator = admin.accelerator.clone();
    urgently(admin, async move { accelerator.purge_tags(&numbers, soft).await }).await?;
    tracing::info!(tags = tags.join(","), soft, "tags were purged by the admin API");
    Ok(Json(json!({
        "timestamp": timestamp(), "status": "success", "purged_tags": tags, "soft": soft,
    })))
}

/// Does what forgets answers, ahead of what is in the background.
async fn urgently(
    admin: &Admin,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Problem> {
    let done = admin.accelerator.background().urgently("purge", work).await;
    done.map_err(|error| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("Nothing is sure to be purged: {error}."),
        )
    })
}

fn target_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let authority = url.authority()?;
    url.scheme()?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    Some(rules::target_key("http", authority.as_str(), path))
}

/// Reads a JSON body, and says what is wrong with it if that fails.
async fn read_json<T: serde::de::DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        let detail = "The body must be JSON, with Content-Type: application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let reading = axum::body::to_bytes(body, MAX_BODY_BYTES);
    let bytes: Bytes = match tokio::time::timeout(Duration::from_secs(10), reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_long(&error) => {
            let detail = format!("The body is longer than {MAX_BODY_BYTES} bytes.");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        Ok(Err(_)) => {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "The body broke off."));
        }
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "The body did not come."));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("The body: {error}."))
    })
}

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

async fn metrics(State(perf): Shared, headers: HeaderMap) -> Response {
    exposition(perf, headers).await
}

/// The metrics alone, for a scraper that must not reach the rest.
pub(crate) fn metrics_router(perf: UltraPerf) -> Router {
    let scrape = |State(perf): State<UltraPerf>, headers: HeaderMap| exposition(perf, headers);
    Router::new()
        .route("/metrics", get(scrape))
        .route("/performance/metrics", get(scrape))
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "Here are only metrics, at /metrics.")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Metrics are only read.")
        })
        .with_state(perf)
}

async fn exposition(perf: UltraPerf, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = negotiate(accept);
    // Reading asks the disk tier for its size.
    let body = tokio::task::spawn_blocking(move || perf.render(format)).await;
    let Ok(body) = body else { return unreadable().into_response() };
    let kind = HeaderValue::from_static(format.content_type());
    ([(header::CONTENT_TYPE, kind)], Bytes::from_owner(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_machine() {
        for host in
            ["localhost", "LOCALHOST:8600", "127.0.0.1", "127.0.0.1:1", "127.8.8.8", "[::1]:8600"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "example.org", "localhost.example.org", "10.0.0.1", "127.0.0.1.nip.io", "a b"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_purge_names_a_target_as_a_request_does() {
        let cases = [
            ("http://Shop.example:80/a?b=c", Some("http://shop.example/a?b=c")),
            ("https://shop.example", Some("http://shop.example/")),
            ("/a", None),
            ("shop.example/a", None),
            ("", None),
        ];
        for (url, target) in cases {
            assert_eq!(target_of(url).as_deref(), target, "{url}");
        }
    }

    #[test]
    fn a_timestamp_is_rfc_3339_to_the_second() {
        let stamp = timestamp();
        assert_eq!((stamp.len(), stamp.ends_with('Z')), (20, true), "{stamp}");
    }
}
