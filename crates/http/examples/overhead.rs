//! What the layers cost a request, without sockets: a service called directly, and within them.
//!
//! ```text
//! cargo run --release -p ultra-perf-http --example overhead
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::future::ready;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt as _;
use tower::{Layer as _, Service, service_fn};
use ultra_perf::UltraPerf;
use ultra_perf_http::layers;

const ROUNDS: usize = 5;
const REQUESTS: u32 = 20_000;

/// The median of a few rounds, in nanoseconds for each request with its answer's body.
async fn measure<S>(mut service: S) -> f64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        let began = Instant::now();
        for _ in 0..REQUESTS {
            let request = Request::get("/users/7").header("host", "shop").body(Body::empty());
            let request = request.expect("a request");
            let answer = service.call(request).await.unwrap_or_else(|never| match never {});
            let body = answer.into_body().collect().await.expect("a body");
            std::hint::black_box(body.to_bytes());
        }
        rounds.push(began.elapsed().as_nanos() as f64 / f64::from(REQUESTS));
    }
    // The first one makes the series and warms the caches.
    rounds.remove(0);
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.enabled", "false")
        .build()
        .await?;
    let service = |fields: &'static [(&'static str, &'static str)]| {
        service_fn(move |_: Request<Body>| {
            let mut answer = Response::builder();
            for (name, value) in fields {
                answer = answer.header(*name, *value);
            }
            ready(Ok::<_, Infallible>(answer.body(Body::from("Ada")).expect("an answer")))
        })
    };
    let plain = service(&[("cache-control", "no-store")]);
    let bare = measure(plain).await;
    println!("{:<52} {bare:>8.0} ns", "the service alone");
    let none = layers(&perf)
        .request_ids(false)
        .response_time(false)
        .metrics(false)
        .response_cache(None)
        .compression(false)
        .load_shedding(None)
        .timeout(None)
        .catch_panics(false);
    let fields = none.clone().request_ids(true).response_time(true);
    let metrics = layers(&perf)
        .response_cache(None)
        .compression(false)
        .load_shedding(None)
        .timeout(None)
        .catch_panics(false);
    let guarded = layers(&perf).response_cache(None);
    let all = layers(&perf);
    let show = |name: &str, time: f64| {
        println!("{name:<52} {time:>8.0} ns, {:>+8.0} ns", time - bare);
    };
    show("within the layers, all off", measure(none.layer(plain)).await);
    show("+ request id, response time", measure(fields.layer(plain)).await);
    show("+ metrics (the request layer)", measure(metrics.layer(plain)).await);
    show("+ compression, shedding, time limit, panics", measure(guarded.layer(plain)).await);
    show("+ response cache, an answer that is not kept", measure(all.layer(plain)).await);
    let cacheable = service(&[("cache-control", "max-age=600")]);
    show("the same, a hit", measure(all.layer(cacheable)).await);
    perf.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
