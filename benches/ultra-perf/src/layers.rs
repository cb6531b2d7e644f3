//! What the layers around a service of the program's own cost a request, without sockets.

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;

use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer as _, Service, service_fn};
use ultra_perf::{OptimizationLevel, UltraPerf};
use ultra_perf_bench::{Clock, Stopwatch, Suite};
use ultra_perf_http::layers;

/// Requests of a round.
const REQUESTS: u64 = 20_000;

/// Measures a service within the layers, less the same service alone.
pub(crate) fn measure(suite: &mut Suite) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let perf = runtime.block_on(
        UltraPerf::builder()
            .level(OptimizationLevel::Basic)
            .set("monitor.history.enabled", "false")
            .build(),
    );
    let perf = perf.expect("a valid configuration");
    let plain = service_fn(|_: Request<Body>| {
        let answer = Response::builder().header("cache-control", "no-store");
        ready(Ok::<_, Infallible>(answer.body(Body::from("Ada")).expect("an answer")))
    });
    let request_layer = layers(&perf)
        .response_cache(None)
        .compression(false)
        .load_shedding(None)
        .timeout(None)
        .catch_panics(false);
    let (mut within, mut alone) = (request_layer.layer(plain), plain);
    let case = "the request layer: id, response time and metrics, on top of the service";
    suite.reported(case, "ns CPU/op").at_most(1_000.0).measure(|| {
        let (within, alone) = (time(&runtime, &mut within), time(&runtime, &mut alone));
        (within - alone).max(1.0)
    });
    let mut within = layers(&perf).layer(plain);
    let case = "all layers, an answer that is not kept, on top of the service";
    suite.reported(case, "ns CPU/op").measure(|| {
        let (within, alone) = (time(&runtime, &mut within), time(&runtime, &mut alone));
        (within - alone).max(1.0)
    });
}

/// Nanoseconds for a request with the body of its answer.
fn time<S>(runtime: &Runtime, service: &mut S) -> f64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let watch = Stopwatch::start(Clock::Cpu);
    runtime.block_on(async {
        for _ in 0..REQUESTS {
            let request = Request::get("/users/7").header("host", "shop").body(Body::empty());
            let request = request.expect("a request");
            let answer = service.call(request).await.unwrap_or_else(|never| match never {});
            let body = answer.into_body().collect().await.expect("a body");
            black_box(body.to_bytes());
        }
    });
    watch.nanos_per(REQUESTS)
}
