//! A tower layer that counts and times requests until the end of their response body.
//!
//! The time of a request runs until its body has been sent or dropped, because a streamed answer is work for
//! as long as it streams; so does `http_requests_in_flight`. Where streams are endless, such as
//! server-sent events, [`RequestLayer::until_head`] ends the time with the head of the response. A request
//! whose future is dropped before there is a response counts as `cancelled`, one whose service fails as
//! `error`; a body that breaks off keeps the status that was sent.
//!
//! The exemplar of a slow request is the trace of its `traceparent` header, or else the one that
//! [`set_trace_id_source`](crate::set_trace_id_source) finds.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::exemplar::TraceId;
use crate::requests::{RequestGuard, RequestMetrics};

/// The route of requests for which there is no template.
const UNMATCHED: &str = "unmatched";

type RouteOf = dyn for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync;

/// Wraps services so that their requests are counted and timed.
///
/// # Examples
///
/// ```
/// use std::borrow::Cow;
///
/// use monitor::{Registry, RequestLayer, RequestMetrics, RequestOptions};
///
/// /// What a router puts into the extensions of a request, such as axum's `MatchedPath`.
/// #[derive(Clone)]
/// struct Template(String);
///
/// let registry = Registry::default();
/// let requests = RequestMetrics::new(&registry, RequestOptions::default());
/// let layer = RequestLayer::new(requests, |request| {
///     let template = request.extensions.get::<Template>()?;
///     Some(Cow::from(template.0.as_str()))
/// });
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct RequestLayer {
    metrics: RequestMetrics,
    route: Arc<RouteOf>,
    until_head: bool,
}

impl RequestLayer {
    /// Makes a layer; `route` finds the template of a request, never its path.
    ///
    /// Requests without one are of the route `unmatched`.
    pub fn new(
        metrics: RequestMetrics,
        route: impl for<'a> Fn(&'a Parts) -> Option<Cow<'a, str>> + Send + Sync + 'static,
    ) -> Self {
        Self { metrics, route: Arc::new(route), until_head: false }
    }

    /// Ends the time of a request with the head of its response.
    #[must_use]
    pub fn until_head(mut self) -> Self {
        self.until_head = true;
        self
    }
}

impl fmt::Debug for RequestLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestLayer")
            .field("metrics", &self.metrics)
            .field("until_head", &self.until_head)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, layer: self.clone() }
    }
}

/// A service whose requests are counted and timed.
#[derive(Clone, Debug)]
pub struct Measured<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S, B, R> Service<http::Request<B>> for Measured<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Body,
{
    type Response = http::Response<MeasuredBody<R>>;
    type Error = S::Error;
    type Future = MeasuredFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let route = (self.layer.route)(&parts);
        let mut guard =
            self.layer.metrics.begin(parts.method.as_str(), route.as_deref().unwrap_or(UNMATCHED));
        let traceparent = parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
        if let Some(trace_id) = traceparent.and_then(TraceId::from_traceparent) {
            guard.trace(trace_id);
        }
        drop(route);
        let inner = self.inner.call(http::Request::from_parts(parts, body));
        MeasuredFuture { inner, guard: Some(guard), until_head: self.layer.until_head }
    }
}

pin_project! {
    /// The future of a response; dropped early, its request counts as cancelled.
    #[derive(Debug)]
    pub struct MeasuredFuture<F> {
        #[pin]
        inner: F,
        guard: Option<RequestGuard>,
        until_head: bool,
    }
}

impl<F, R, E> Future for MeasuredFuture<F>
where
    F: Future<Output = Result<http::Response<R>, E>>,
    R: Body,
{
    type Output = Result<http::Response<MeasuredBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(context));
        let mut guard = this.guard.take();
        match result {
            Ok(response) => {
                if let Some(guard) = &mut guard {
                    guard.status(response.status().as_u16());
                }
                if *this.until_head || response.body().is_end_stream() {
                    guard = None;
                }
                Poll::Ready(Ok(response.map(|inner| MeasuredBody { inner, guard })))
            }
            Err(error) => {
                if let Some(guard) = &mut guard {
                    guard.failed();
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

pin_project! {
    /// The body of a response, whose end is that of its request.
    #[derive(Debug)]
    pub struct MeasuredBody<B> {
        #[pin]
        inner: B,
        guard: Option<RequestGuard>,
    }
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(context));
        // Servers do not ask again where a body has said that this was the last frame.
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.guard = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::clock::Moment;
    use crate::registry::{Registry, Value};
    use crate::requests::RequestOptions;

    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Request = http::Request<()>;

    fn layer() -> (Registry, RequestLayer) {
        let registry = Registry::default();
        let metrics = RequestMetrics::new(&registry, RequestOptions::default());
        let layer = RequestLayer::new(metrics, |request| {
            let path = request.uri.path();
            path.starts_with("/users/").then(|| Cow::from("/users/{id}"))
        });
        (registry, layer)
    }

    fn get(path: &str) -> Request {
        http::Request::get(path).body(()).expect("a request")
    }

    /// How many requests of a route and status there were, how many seconds they took, and how many are in
    /// flight.
    fn read(registry: &Registry, route: &str, status: &str) -> (f64, f64, f64) {
        let snapshot = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
        let labels = [("method", "GET"), ("route", route), ("status", status)];
        let count = snapshot.number("http_requests_total", &labels).unwrap_or(0.0);
        let seconds = match snapshot.get("http_request_duration_seconds", &labels) {
            Some(Value::Distribution(times)) => times.sum(),
            _ => 0.0,
        };
        (count, seconds, snapshot.number("http_requests_in_flight", &[]).expect("always there"))
    }

    /// A body of three frames, a second apart.
    fn slow_body() -> impl Body<Data = Bytes, Error = Error> {
        let frames = futures_util::stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let frame = Frame::data(Bytes::from_static(b"x"));
            (sent < 3).then(|| (Ok::<_, Error>(frame), sent + 1))
        });
        StreamBody::new(Box::pin(frames))
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_with_its_body() {
        let (registry, layer) = layer();
        let service = layer.layer(service_fn(|_: Request| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok::<_, Error>(http::Response::new(slow_body()))
        }));
        let response = service.clone().oneshot(get("/users/7")).await.expect("an answer");
        assert_eq!(read(&registry, "/users/{id}", "2xx"), (0.0, 0.0, 1.0));
        response.into_body().collect().await.expect("a whole body");
        let (count, seconds, in_flight) = read(&registry, "/users/{id}", "2xx");
        assert_eq!((count, in_flight), (1.0, 0.0));
        assert!((seconds - 6.0).abs() < 0.01, "{seconds}");

        // Dropped in the middle of its body.
        let response = service.clone().oneshot(get("/else")).await.expect("an answer");
        let mut body = Box::pin(response.into_body());
        body.frame().await.expect("a frame").expect("a good one");
        drop(body);
        let (count, seconds, in_flight) = read(&registry, UNMATCHED, "2xx");
        assert_eq!((count, in_flight), (1.0, 0.0));
        assert!((seconds - 3.0).abs() < 0.01, "{seconds}");

        let head = layer.until_head().layer(service.inner);
        let response = head.oneshot(get("/users/7")).await.expect("an answer");
        assert_eq!(read(&registry, "/users/{id}", "2xx").0, 2.0);
        drop(response);
        assert_eq!(read(&registry, "/users/{id}", "2xx").0, 2.0);
    }

    #[tokio::test]
    async fn a_whole_body_ends_with_its_last_frame() {
        let (registry, layer) = layer();
        let service = layer.layer(service_fn(|request: Request| async move {
            let text = if request.uri().path() == "/empty" { "" } else { "text" };
            let mut response = http::Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            Ok::<_, Error>(response)
        }));
        let response = service.clone().oneshot(get("/empty")).await.expect("an answer");
        assert_eq!(read(&registry, UNMATCHED, "4xx").0, 1.0);
        drop(response);
        let mut response = service.oneshot(get("/text")).await.expect("an answer");
        assert_eq!(read(&registry, UNMATCHED, "4xx").0, 1.0);
        response.body_mut().frame().await.expect("a frame").expect("a good one");
        assert_eq!(read(&registry, UNMATCHED, "4xx").0, 2.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_is_cancelled_or_failed() {
        let (registry, layer) = layer();
        let service = layer.layer(service_fn(|request: Request| async move {
            if request.uri().path() == "/users/wait" {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            Err::<http::Response<Full<Bytes>>, Error>("no answer".into())
        }));
        let waiting = service.clone().oneshot(get("/users/wait"));
        assert!(tokio::time::timeout(Duration::from_secs(5), waiting).await.is_err());
        let (count, seconds, in_flight) = read(&registry, "/users/{id}", "cancelled");
        assert_eq!((count, in_flight), (1.0, 0.0));
        assert!((seconds - 5.0).abs() < 0.01, "{seconds}");
        service.oneshot(get("/users/7")).await.expect_err("it fails");
        assert_eq!(read(&registry, "/users/{id}", "error").0, 1.0);
    }

    #[tokio::test]
    async fn the_trace_of_a_header_becomes_the_exemplar() {
        let (registry, layer) = layer();
        let service = layer.layer(service_fn(|_: Request| async {
            Ok::<_, Error>(http::Response::new(Full::new(Bytes::new())))
        }));
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let mut request = get("/");
        let header = format!("00-{trace}-00f067aa0ba902b7-01").parse().expect("a header");
        request.headers_mut().insert("traceparent", header);
        drop(service.oneshot(request).await.expect("an answer"));
        let snapshot = registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 });
        let exemplars = snapshot.series().flat_map(|(_, series)| &series.exemplars);
        let traces: Vec<String> = exemplars.map(|exemplar| exemplar.trace_id.to_string()).collect();
        assert_eq!(traces, [trace]);
    }
}
