//! The response cache in front of a service of this process.
//!
//! It is the [accelerator](crate::accelerator) of the proxy; the service is its origin. A request that the
//! cache can neither answer nor keep anything of reaches the service as it came: with its body, its
//! extensions and its chance to become a tunnel.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::OriginalUri;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    CACHE_CONTROL, EXPIRES, HOST, HeaderName, HeaderValue, PRAGMA, SET_COOKIE, UPGRADE,
};
use http::uri::Authority;
use http::{Extensions, Method, Request, Response, StatusCode, Uri, request, response};
use http_body::Body as _;
use tower::{Layer, Service};
use ultra_perf::UltraPerf;
use ultra_perf::cache_tiered::{BuildError, Tag};
use ultra_perf::config::Config;
use ultra_perf::monitor::{Readings, Registry};

use super::guards::{Guards, Serves};
use crate::TrafficStats;
use crate::accelerator::{Accelerator, Answer, Asked, Shared, Step, answer_with, now_ms};
use crate::background::Background;
use crate::compress::{self, Packed, Wanted};
use crate::configured;
use crate::forward;
use crate::origin::{BoxError, Failure, Fetched, Origin};
use crate::response_cache::ResponseCache;
use crate::rules::{self, CacheStatus, Forward, Outcome, Policy, RequestHead, Times};
use crate::stored::{StoredCodec, weigh};
use crate::traffic::Traffic;

/// Gives an answer a lifetime here and nowhere else.
const LIFETIME: HeaderName = HeaderName::from_static("ultra-perf-cache-control");

/// A response cache by RFC 9111 for a service in this process, as a tower layer.
///
/// It stores what `Cache-Control` of the answers allows a shared cache to store, answers from that what
/// may be answered, calls the service once for requests that miss at the same time, and refreshes stale
/// answers in the background where `stale-while-revalidate` allows it. Each answer tells what was done:
/// `X-Cache`, `Cache-Status` (RFC 9211) and, from the cache, `Age`.
///
/// The layer takes requests with any body and hands the service requests with axum's [`Body`]; where it
/// is put around several services, such as the routes of a router, these share one cache. Clones do, too.
///
/// # Examples
///
/// ```
/// use axum::{Router, http::header::CACHE_CONTROL, routing::get};
/// use ultra_perf::UltraPerf;
/// use ultra_perf_http::ResponseCacheLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let perf = UltraPerf::builder().set("monitor.history.enabled", "false").build().await?;
/// let cache = ResponseCacheLayer::new(&perf, "shop")?;
/// let app: Router = Router::new()
///     .route("/prices", get(|| async { ([(CACHE_CONTROL, "max-age=60")], "[]") }))
///     .layer(cache.clone());
/// cache.purge("shop.example", "/prices").await;
/// # drop(app);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ResponseCacheLayer {
    shared: Arc<Shared>,
    guards: Arc<Guards>,
    assumed: Option<Assumed>,
}

/// A lifetime for answers that say nothing of caching.
#[derive(Debug, Clone)]
struct Assumed {
    lifetime: HeaderValue,
    /// Which fields say something of it.
    policy: Arc<ArcSwap<Policy>>,
}

impl Assumed {
    /// Gives an answer the lifetime, unless something says that it is not for everybody or for how long.
    fn apply(&self, head: &mut response::Parts) {
        let say = [CACHE_CONTROL, EXPIRES, PRAGMA, SET_COOKIE, LIFETIME];
        let policy = self.policy.load();
        let mut names = say.iter().chain(&policy.targeted_fields);
        if head.status == StatusCode::OK && !names.any(|name| head.headers.contains_key(name)) {
            head.headers.insert(LIFETIME, self.lifetime.clone());
        }
    }
}

/// Whether this field was added by [`Assumed`], here or by one who stored the answer before.
fn is_assumed(lifetime: &HeaderValue) -> bool {
    lifetime.as_bytes().ends_with(rules::ASSUMED.as_bytes())
}

impl ResponseCacheLayer {
    /// Makes a cache in memory alone, with the bounds and times of the configuration.
    ///
    /// # Errors
    ///
    /// [`BuildError::Invalid`] for a name that no cache can have.
    pub fn new(perf: &UltraPerf, name: &str) -> Result<Self, BuildError> {
        let config = perf.config();
        let policy = configured::policy(perf);
        perf.counts_requests_of(name);
        let cache = perf.memory_cache(name);
        let cache = cache.bytes(config.cache.memory.capacity.as_u64(), weigh).build()?;
        Ok(Self::over(perf, name, ResponseCache::new(cache, policy, max_body(&config))))
    }

    /// Opens a cache with all the tiers of the configuration: answers survive a restart on disk, and
    /// processes share them in Redis.
    ///
    /// # Errors
    ///
    /// [`BuildError`], such as when the directory of the disk tier is in use. Redis need not be there.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// May be dropped; what has been opened is closed.
    pub async fn open(perf: &UltraPerf, name: &str) -> Result<Self, BuildError> {
        let config = perf.config();
        let policy = configured::policy(perf);
        let codec = StoredCodec { policy: Arc::clone(&policy) };
        perf.counts_requests_of(name);
        let cache = perf.cache_with_codec(name, codec);
        let cache = cache.bytes(config.cache.memory.capacity.as_u64(), weigh).open().await?;
        Ok(Self::over(perf, name, ResponseCache::new(cache, policy, max_body(&config))))
    }

    fn over(perf: &UltraPerf, name: &str, store: ResponseCache) -> Self {
        let config = perf.config();
        let background = Background::new(perf.scheduler().clone(), config.scheduler.task_timeout);
        // Its times are for `stats` alone: the registry has those of all requests, by route.
        let traffic = Traffic::new(&Registry::default());
        let timeout = config.response_cache.coalesce_timeout;
        let idle = config.server.idle_timeout;
        let shared = Arc::new(Shared::new(Some(store), background, timeout, idle, traffic));
        let registry = perf.registry();
        crate::watch::describe(registry, crate::traffic::FAMILIES);
        let (weak, name) = (Arc::downgrade(&shared), name.to_owned());
        registry.collect(move |out: &mut Readings| {
            if let Some(shared) = weak.upgrade() {
                shared.traffic().report_cache(&name, out);
            }
        });
        Self { shared, guards: Arc::new(Guards::none(registry)), assumed: None }
    }

    /// Gives a lifetime to answers that say nothing of caching.
    ///
    /// It is for answers of 200 that have neither `Cache-Control` (or a field that stands in for it, such
    /// as `CDN-Cache-Control`) nor `Expires` nor `Pragma` nor `Set-Cookie`, to requests without `Cookie`
    /// and `Authorization`: for these nothing says that they are one user's. Requests with one of the two
    /// are not answered from them either. Other caches are told nothing of it.
    #[must_use]
    pub fn assume(mut self, lifetime: Duration) -> Self {
        let value = format!("max-age={}, {}", lifetime.as_secs(), rules::ASSUMED);
        let lifetime = HeaderValue::from_maybe_shared(Bytes::from(value)).ok();
        let policy = self.accelerator(()).store().map(|store| Arc::clone(&store.policy));
        self.assumed = lifetime.zip(policy).map(|(lifetime, policy)| Assumed { lifetime, policy });
        self
    }

    /// Returns what the cache has done for its requests.
    #[must_use]
    pub fn stats(&self) -> TrafficStats {
        self.shared.traffic().stats()
    }

    /// Forgets a target in all its variants, and lets nobody wait for what is on its way.
    ///
    /// `authority` is the host as clients name it, with a port that is not the default.
    ///
    /// # Cancel safety
    ///
    /// Once polled, memory has forgotten it; lower tiers may not have if the future is dropped.
    pub async fn purge(&self, authority: &str, path_and_query: &str) {
        let target = rules::target_key("http", authority, path_and_query);
        self.accelerator(()).purge(&target).await;
    }

    /// Forgets every answer with one of these tags, which answers name in `Surrogate-Key` or
    /// `Cache-Tag`.
    ///
    /// # Cancel safety
    ///
    /// As [`purge`](Self::purge).
    pub async fn purge_tags<T: AsRef<[u8]>>(&self, tags: impl IntoIterator<Item = T>) {
        let tags: Vec<Tag> = tags.into_iter().map(Tag::new).collect();
        self.accelerator(()).purge_tags(&tags, false).await;
    }

    /// Makes every answer with one of these tags stale: it may still be served while it is refreshed.
    ///
    /// # Cancel safety
    ///
    /// As [`purge`](Self::purge).
    pub async fn soften_tags<T: AsRef<[u8]>>(&self, tags: impl IntoIterator<Item = T>) {
        let tags: Vec<Tag> = tags.into_iter().map(Tag::new).collect();
        self.accelerator(()).purge_tags(&tags, true).await;
    }

    /// Forgets everything.
    ///
    /// # Cancel safety
    ///
    /// As [`purge`](Self::purge).
    pub async fn clear(&self) {
        self.accelerator(()).clear(None).await;
    }

    fn accelerator<O>(&self, origin: O) -> Accelerator<O> {
        Accelerator::over(Arc::clone(&self.shared), origin)
    }

    /// Answers a request from the cache or by a service within these guards.
    pub(super) async fn respond<S: Serves>(
        &self,
        service: S,
        guards: &Arc<Guards>,
        compress: bool,
        mut request: Request<Body>,
    ) -> Answer<Packed<Body>> {
        let started = Instant::now();
        if compress {
            compress::settle(request.headers_mut());
        }
        let (guards, assumed) = (Arc::clone(guards), self.assumed.clone());
        let origin = InProcess { service, guards, compress, assumed };
        let mut answer = self.accelerator(origin).respond(request).await;
        let status = answer.response.status();
        self.shared.traffic().answered(answer.outcome, status, started.elapsed());
        // What was said to this cache alone.
        let headers = answer.response.headers_mut();
        if headers.get(LIFETIME).is_some_and(is_assumed) {
            headers.remove(LIFETIME);
        }
        answer.describe();
        answer
    }
}

impl fmt::Debug for ResponseCacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCacheLayer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn max_body(config: &Config) -> usize {
    config.response_cache.max_body.as_usize()
}

impl<S> Layer<S> for ResponseCacheLayer {
    type Service = ResponseCached<S>;

    fn layer(&self, service: S) -> ResponseCached<S> {
        ResponseCached { service, layer: self.clone() }
    }
}

/// A service behind a [`ResponseCacheLayer`].
#[derive(Clone, Debug)]
pub struct ResponseCached<S> {
    service: S,
    layer: ResponseCacheLayer,
}

impl<S, R, B> Service<Request<B>> for ResponseCached<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    /// A service that fails has its request answered with 500.
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    /// Always ready: a hit does not wait for the service.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (layer, service) = (self.layer.clone(), self.service.clone());
        Box::pin(async move {
            let request = request.map(Body::new);
            let answer = layer.respond(service, &layer.guards, false, request).await;
            Ok(answer.response.map(super::body_of))
        })
    }
}

/// A service of this process, as an origin.
#[derive(Clone)]
struct InProcess<S> {
    service: S,
    guards: Arc<Guards>,
    compress: bool,
    assumed: Option<Assumed>,
}

impl<S: Serves> Origin for InProcess<S> {
    /// What layers around the cache have found out, such as the route and who is connected.
    type Client = Extensions;
    type Body = Packed<Body>;

    async fn fetch(
        &self,
        mut parts: request::Parts,
        extensions: &Extensions,
    ) -> Result<Fetched<Packed<Body>>, Failure> {
        parts.extensions = extensions.clone();
        let wanted = self.compress.then(|| Wanted::of(&parts.method, &parts.headers));
        let personal = rules::is_personal(&parts.headers);
        let request_ms = now_ms();
        let request = Request::from_parts(parts, Body::empty());
        let response = self.guards.call(self.service.clone(), request).await?;
        let times = Times { request_ms, response_ms: now_ms() };
        let (mut head, body) = response.into_parts();
        rules::remove_hop_by_hop(&mut head.headers);
        if let Some(assumed) = self.assumed.as_ref().filter(|_| !personal) {
            assumed.apply(&mut head);
        }
        Ok(Fetched { head, body, times, cookie: None }.packed(wanted.as_ref()))
    }
}

impl<S: Serves> Accelerator<InProcess<S>> {
    async fn respond(&self, mut request: Request<Body>) -> Answer<Packed<Body>> {
        let is_over = request.body().is_end_stream();
        // What may be looked up reaches the service without the fields of the client's connection:
        // they select no variant, so the service must not answer by them either.
        if matches!(*request.method(), Method::GET | Method::HEAD)
            && is_over
            && !request.headers().contains_key(UPGRADE)
        {
            rules::remove_hop_by_hop(request.headers_mut());
        }
        // A nested router of axum sees what its prefix has left of the path, which is no key.
        let uri = request.extensions().get::<OriginalUri>().map_or(request.uri(), |it| &it.0);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // `*` is no path, and its key would be that of `/*`.
        let Some(authority) = authority(uri, &request).filter(|_| path != "*") else {
            let status =
                CacheStatus { detail: Some("host"), ..CacheStatus::forward(Forward::Bypass) };
            return self.pass(request, None, status).await;
        };
        match self.begin(RequestHead::from(&request), is_over, authority, path) {
            Step::Answer(answer) => answer,
            Step::Pass { changes, status } => self.pass(request, changes, status).await,
            Step::LookUp { lookup, target, found } => {
                let (parts, _) = request.into_parts();
                let asked = Asked {
                    method: parts.method,
                    uri: parts.uri,
                    version: parts.version,
                    headers: parts.headers,
                    client: parts.extensions,
                    lookup,
                    target,
                };
                self.look_up(asked, found).await
            }
        }
    }

    /// Hands a request to the service, and forgets what it has changed.
    async fn pass(
        &self,
        request: Request<Body>,
        changes: Option<String>,
        status: CacheStatus,
    ) -> Answer<Packed<Body>> {
        let InProcess { service, guards, compress, .. } = self.origin();
        let (parts, body) = request.into_parts();
        let method = parts.method.clone();
        let wanted = compress.then(|| Wanted::of(&parts.method, &parts.headers));
        let mut unanswered = self.unanswered(changes);
        let request_ms = now_ms();
        let answered = guards.call(service.clone(), Request::from_parts(parts, body)).await;
        self.traffic().called(answered.as_ref().err());
        let changes = unanswered.answered();
        let (head, body) = match answered {
            Ok(response) => response.into_parts(),
            Err(failure) => {
                self.forget_if_sent(&failure, changes).await;
                return Answer::of(&failure, Outcome::Bypass, status);
            }
        };
        if let Some(target) = changes {
            self.invalidate(&method, &target, head.status, &head.headers).await;
        }
        let status = CacheStatus { fwd_status: Some(head.status.as_u16()), ..status };
        let times = Times { request_ms, response_ms: now_ms() };
        let Fetched { head, body, .. } =
            Fetched { head, body, times, cookie: None }.packed(wanted.as_ref());
        answer_with(head, body, None, Outcome::Bypass, status)
    }
}

/// The host that a request names; `None` if it can be read in more than one way, or is none, which may
/// let one answer be stored as that of another site or path.
fn authority<'a, B>(uri: &'a Uri, request: &'a Request<B>) -> Option<&'a str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let named = uri.authority().or_else(|| request.uri().authority()).map(Authority::as_str);
    let host_of = match (named, host, more) {
        (_, _, Some(_)) => None,
        (Some(named), Some(host), None) => {
            host.as_bytes().eq_ignore_ascii_case(named.as_bytes()).then_some(named)
        }
        (Some(named), None, None) => Some(named),
        (None, Some(host), None) => host.to_str().ok(),
        // As over HTTP/1.0. No host that is named has this key.
        (None, None, None) => return Some(""),
    };
    host_of.filter(|host| forward::is_authority(host.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_not_one_is_none() {
        for (uri, hosts, expected) in [
            ("/a", &["shop"][..], Some("shop")),
            ("/a", &[], Some("")),
            ("http://shop/a", &[], Some("shop")),
            ("http://shop/a", &["SHOP"], Some("shop")),
            ("http://shop/a", &["else"], None),
            ("/a", &["shop", "else"], None),
            ("/a", &["shop:8080"], Some("shop:8080")),
            ("/a", &["[::1]:80"], Some("[::1]:80")),
            ("/a", &["shop/b"], None),
            ("/a", &["shop?b"], None),
            ("/a", &["shop#b"], None),
            ("/a", &["user@shop"], None),
            ("http://user@shop/a", &[], None),
            ("http://user@shop/a", &["user@shop"], None),
            ("/a", &[""], None),
        ] {
            let mut request = Request::get(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let request = request.body(()).expect("a request");
            assert_eq!(authority(request.uri(), &request), expected, "{uri} {hosts:?}");
        }
    }
}
