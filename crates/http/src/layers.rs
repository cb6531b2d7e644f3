//! What a service of this process gets around it with one call: [`layers`].
//!
//! ```text
//!   request ─▶ request id ─▶ metrics ─▶ response cache ─▶ compression ─▶ load shedding
//!                                                             ─▶ time limit ─▶ panics ─▶ service
//! ```
//!
//! The order has its reasons. The id is known to all that follows, and metrics see every answer, those
//! of the cache and refusals included. The cache stands before everything that protects the service: a
//! hit needs neither a place nor a timer, and a stale answer may stand in for a refusal, a time-out or a
//! panic where it says so. Compression is behind the cache, so that an answer is compressed once and
//! stored as it goes out. Load shedding is outside the time limit because a refusal is quick, and what
//! runs out of time tells it that the service is overloaded. A panic is caught last, beside the service.

mod cached;
mod guards;

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::MatchedPath;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use ultra_perf::memory::MemoryGuard;
use ultra_perf::monitor::{Measured, MeasuredFuture, RequestLayer, RequestMetrics, RequestOptions};
use ultra_perf::resilience::{AdaptiveLimit, Timeout};
use ultra_perf::{Site, UltraPerf};

pub use self::cached::{ResponseCacheLayer, ResponseCached};
use self::guards::{Guards, Serves};
use crate::accelerator::with_scratch;
use crate::answer::AnswerBody;
use crate::compress::{self, Packed, Wanted};
use crate::forward::{X_REQUEST_ID, is_sane_id, request_id};
use crate::origin::BoxError;
use crate::shown::{X_MEMORY_USAGE, X_RESPONSE_TIME, percent, seconds};

/// How long a service may take for the head of its answer, unless a program says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the layers for a service of this process, as the configuration says.
///
/// They go around an axum router, or any other tower service, with one call. Each call makes layers with
/// a cache and a limit of their own: what one service stores, another does not serve.
///
/// ```
/// use axum::{Router, routing::get};
/// use ultra_perf::UltraPerf;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let perf = UltraPerf::builder().set("monitor.history.enabled", "false").build().await?;
/// let app: Router = Router::new()
///     .route("/users/{id}", get(|| async { "Ada" }))
///     .layer(ultra_perf_http::layers(&perf));
/// # drop(app);
/// # Ok(())
/// # }
/// ```
///
/// | layer | on | what it does |
/// |---|---|---|
/// | [`request_ids`](Layers::request_ids) | yes | `X-Request-ID`: taken over if it is sane, or made; on the request and on the answer |
/// | [`response_time`](Layers::response_time) | yes | `X-Response-Time: 0.000123s` |
/// | [`memory_usage`](Layers::memory_usage) | `memory.header` | `X-Memory-Usage: 67.8%`, where a guard of memory runs |
/// | [`metrics`](Layers::metrics) | yes | `http_requests_total`, `http_request_duration_seconds`, `http_requests_in_flight` by method, route and status |
/// | [`response_cache`](Layers::response_cache) | `response_cache.enabled` | [`ResponseCacheLayer`], in memory |
/// | [`compression`](Layers::compression) | `server.compression` | zstd, br, gzip or deflate, by `Accept-Encoding` |
/// | [`load_shedding`](Layers::load_shedding) | yes | 503 and `Retry-After` once the service takes no more |
/// | [`timeout`](Layers::timeout) | 30 s | 504 when the head of an answer takes longer |
/// | [`catch_panics`](Layers::catch_panics) | yes | 500 instead of a connection that breaks off |
///
/// # Panics
///
/// Never for a configuration that was checked.
pub fn layers(perf: &UltraPerf) -> Layers {
    let config = perf.config();
    let registry = perf.registry();
    let limit = AdaptiveLimit::builder("http").limits(64, 10_000).initial(512).build();
    let mut guards = Guards::none(registry);
    guards.limit = Some(limit.expect("the bounds are in order"));
    guards.timeout = Some(Timeout::new(TIMEOUT));
    guards.catch_panics = true;
    let cache = match config.response_cache.enabled {
        true => Choice::Own { perf: perf.clone(), made: Arc::default() },
        false => Choice::None,
    };
    Layers(Arc::new(Settings {
        request_ids: true,
        response_time: true,
        memory: perf.memory().cloned().filter(|_| config.memory.header),
        guard: perf.memory().cloned(),
        metrics: Some(RequestLayer::new(known(perf).metrics.clone(), matched_route)),
        cache,
        compress: config.server.compression,
        guards: Arc::new(guards),
    }))
}

/// What a handle remembers of layers.
struct Known {
    metrics: RequestMetrics,
    /// Caches that were made for layers.
    caches: AtomicUsize,
}

fn known(perf: &UltraPerf) -> &Known {
    static SITE: Site = Site::new();
    perf.slot(&SITE, || Known {
        metrics: RequestMetrics::new(perf.registry(), RequestOptions::default()),
        caches: AtomicUsize::new(0),
    })
}

/// Which cache is asked.
#[derive(Clone)]
enum Choice {
    None,
    Given(ResponseCacheLayer),
    /// One of the layers' own, made once they go around something.
    Own {
        perf: UltraPerf,
        made: Arc<OnceLock<ResponseCacheLayer>>,
    },
}

impl Choice {
    fn get(&self) -> Option<&ResponseCacheLayer> {
        match self {
            Self::None => None,
            Self::Given(cache) => Some(cache),
            Self::Own { perf, made } => Some(made.get_or_init(|| own_cache(perf))),
        }
    }
}

/// Makes a cache for layers: `http`, and `http-2` and so on for further ones, which may be for services
/// that have nothing to do with the first.
fn own_cache(perf: &UltraPerf) -> ResponseCacheLayer {
    let name = match known(perf).caches.fetch_add(1, Ordering::Relaxed) {
        0 => "http".to_owned(),
        others => format!("http-{}", others + 1),
    };
    ResponseCacheLayer::new(perf, &name).expect("a checked configuration makes a cache")
}

/// The template of axum's router.
fn matched_route(request: &Parts) -> Option<Cow<'_, str>> {
    request.extensions.get::<MatchedPath>().map(|path| Cow::Borrowed(path.as_str()))
}

/// Layers for a service of this process, made by [`layers`]; clones, and all services that one goes
/// around, share the cache, the limit and the counters.
///
/// The service gets requests with axum's [`Body`], whatever body they come with.
#[derive(Clone, Debug)]
#[must_use = "layers do nothing until they go around a service"]
pub struct Layers(Arc<Settings>);

#[derive(Clone)]
struct Settings {
    request_ids: bool,
    response_time: bool,
    /// Whose reading each answer shows.
    memory: Option<MemoryGuard>,
    /// The one that there is.
    guard: Option<MemoryGuard>,
    metrics: Option<RequestLayer>,
    cache: Choice,
    compress: bool,
    guards: Arc<Guards>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("request_ids", &self.request_ids)
            .field("response_time", &self.response_time)
            .field("memory_usage", &self.memory.is_some())
            .field("metrics", &self.metrics.is_some())
            .field("response_cache", &!matches!(self.cache, Choice::None))
            .field("compression", &self.compress)
            .field("guards", &self.guards)
            .finish_non_exhaustive()
    }
}

impl Layers {
    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets whether requests and answers carry `X-Request-ID`.
    pub fn request_ids(self, on: bool) -> Self {
        self.with(|it| it.request_ids = on)
    }

    /// Sets whether answers carry `X-Response-Time`.
    pub fn response_time(self, on: bool) -> Self {
        self.with(|it| it.response_time = on)
    }

    /// Sets whether answers carry `X-Memory-Usage`; they do only where a guard of memory runs.
    pub fn memory_usage(self, on: bool) -> Self {
        self.with(|it| it.memory = it.guard.clone().filter(|_| on))
    }

    /// Sets whether requests are counted and timed.
    pub fn metrics(self, on: bool) -> Self {
        self.with(|it| it.metrics = it.metrics.take().filter(|_| on))
    }

    /// Counts and times requests with this layer instead: with routes of its own, say.
    pub fn metrics_by(self, layer: RequestLayer) -> Self {
        self.with(|it| it.metrics = Some(layer))
    }

    /// Answers from this cache, such as one with tiers below memory or an assumed lifetime; from none
    /// with `None`.
    pub fn response_cache(self, cache: impl Into<Option<ResponseCacheLayer>>) -> Self {
        self.with(|it| it.cache = cache.into().map_or(Choice::None, Choice::Given))
    }

    /// Sets whether answers are compressed for clients that accept it.
    ///
    /// Text of all kinds from 1 KiB on is; what is encoded already, part of an answer, marked
    /// `no-transform`, given with a digest or a stream of events is not.
    pub fn compression(self, on: bool) -> Self {
        self.with(|it| it.compress = on)
    }

    /// Sets how many requests the service works on at a time; `None` lets all through.
    ///
    /// A request beyond is answered with 503 and `Retry-After` at once, or with a stale answer that
    /// says `stale-if-error`. The default adapts between 64 and 10,000 by how long answers take; what
    /// their statuses say does not count.
    pub fn load_shedding(self, limit: impl Into<Option<AdaptiveLimit>>) -> Self {
        self.with(|it| Arc::make_mut(&mut it.guards).limit = limit.into())
    }

    /// Sets how long the service may take for the head of an answer; `None` for as long as it likes.
    ///
    /// What the service calls can see how much of it is left:
    /// [`Deadline::current`](ultra_perf::resilience::Deadline::current).
    pub fn timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        self.with(|it| Arc::make_mut(&mut it.guards).timeout = limit.into().map(Timeout::new))
    }

    /// Sets whether a panic of the service costs its request a 500 and nobody else anything.
    pub fn catch_panics(self, on: bool) -> Self {
        self.with(|it| Arc::make_mut(&mut it.guards).catch_panics = on)
    }

    /// Returns the cache that is asked, to purge it say.
    #[must_use]
    pub fn cache(&self) -> Option<&ResponseCacheLayer> {
        self.0.cache.get()
    }
}

impl<S> Layer<S> for Layers {
    type Service = Layered<S>;

    fn layer(&self, service: S) -> Layered<S> {
        // Not at the first request, which would wait for it.
        let _ = self.0.cache.get();
        let core = Core { service, settings: Arc::clone(&self.0) };
        Layered(match &self.0.metrics {
            Some(metrics) => Outermost::Measured(metrics.layer(core)),
            None => Outermost::Core(core),
        })
    }
}

/// A service within [`Layers`].
#[derive(Clone, Debug)]
pub struct Layered<S>(Outermost<S>);

#[derive(Clone, Debug)]
enum Outermost<S> {
    Measured(Measured<Core<S>>),
    Core(Core<S>),
}

impl<S, R, B> Service<Request<B>> for Layered<S>
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
    type Future = LayeredFuture;

    /// Always ready: a hit does not wait for the service, and what the service refuses is answered.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> LayeredFuture {
        let request = request.map(Body::new);
        match &mut self.0 {
            Outermost::Measured(service) => {
                LayeredFuture { kind: Kind::Measured { future: service.call(request) } }
            }
            Outermost::Core(service) => {
                LayeredFuture { kind: Kind::Core { future: service.call(request) } }
            }
        }
    }
}

type CoreFuture = BoxFuture<'static, Result<Response<Body>, Infallible>>;

pin_project! {
    /// The future of an answer.
    pub struct LayeredFuture {
        #[pin]
        kind: Kind,
    }
}

pin_project! {
    #[project = KindProjected]
    enum Kind {
        Measured { #[pin] future: MeasuredFuture<CoreFuture> },
        Core { #[pin] future: CoreFuture },
    }
}

impl fmt::Debug for LayeredFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredFuture").finish_non_exhaustive()
    }
}

impl Future for LayeredFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjected::Measured { future } => {
                Poll::Ready(ready!(future.poll(cx)).map(|response| response.map(Body::new)))
            }
            KindProjected::Core { future } => future.poll(cx),
        }
    }
}

/// Everything within the metrics.
#[derive(Clone, Debug)]
struct Core<S> {
    service: S,
    settings: Arc<Settings>,
}

impl<S: Serves> Service<Request<Body>> for Core<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CoreFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> CoreFuture {
        let (settings, service) = (Arc::clone(&self.settings), self.service.clone());
        Box::pin(async move { Ok(settings.answer(service, request).await) })
    }
}

impl Settings {
    async fn answer<S: Serves>(&self, service: S, mut request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let id = self.request_ids.then(|| match request.headers().get(X_REQUEST_ID) {
            Some(id) if is_sane_id(id.as_bytes()) => id.clone(),
            _ => {
                let id = request_id(fastrand::u64(..));
                request.headers_mut().insert(X_REQUEST_ID, id.clone());
                id
            }
        });
        let mut response = match self.cache.get() {
            Some(cache) => {
                let answer = cache.respond(service, &self.guards, self.compress, request).await;
                answer.response.map(body_of)
            }
            None => self.ask(service, request).await,
        };
        let headers = response.headers_mut();
        if let Some(id) = id {
            headers.insert(X_REQUEST_ID, id);
        }
        if self.response_time {
            let took = started.elapsed();
            with_scratch(|scratch| headers.insert(X_RESPONSE_TIME, seconds(took, scratch)));
        }
        if let Some(memory) = &self.memory {
            let used = memory.sample().percent();
            with_scratch(|scratch| headers.insert(X_MEMORY_USAGE, percent(used, scratch)));
        }
        response
    }

    /// Has the service answer, without a cache.
    async fn ask<S: Serves>(&self, service: S, mut request: Request<Body>) -> Response<Body> {
        let wanted = self.compress.then(|| {
            compress::settle(request.headers_mut());
            Wanted::of(request.method(), request.headers())
        });
        let response = match self.guards.call(service, request).await {
            Ok(response) => response,
            Err(failure) => return failure.response().map(body_of),
        };
        match wanted {
            Some(wanted) => {
                let (head, body) = response.into_parts();
                let (head, body) = wanted.pack(head, body);
                Response::from_parts(head, body_of(AnswerBody::of_origin(body)))
            }
            None => response,
        }
    }
}

/// The body of an answer, as axum has bodies.
fn body_of(body: AnswerBody<Packed<Body>>) -> Body {
    match body.whole() {
        Ok(whole) => Body::from(whole),
        Err(body) => match body.into_origin() {
            Ok(Packed::Plain(body)) => body,
            Ok(packed) => Body::new(packed),
            Err(body) => Body::new(body),
        },
    }
}
