//! A service that puts its answer together from three others, one of which fails for a while.
//!
//! Each host has a circuit breaker, so the one that fails is left alone, and answers go out without its
//! part at once in place of waiting for it. When it is well again, a probe finds that out.
//!
//! ```text
//! cargo run --release -p ultra-perf-http --example upstreams
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use ultra_perf::UltraPerf;
use ultra_perf_http::{HttpClient, HttpClientError, HttpClientOptions, HttpClients as _, layers};

const REQUESTS: usize = 200;

/// One of the three.
struct Upstream {
    name: &'static str,
    url: String,
    works: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl Upstream {
    /// Starts one that takes its time, and longer where it fails.
    async fn start(name: &'static str) -> std::io::Result<Self> {
        let (works, calls) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicU64>::default());
        let (is_well, counted) = (Arc::clone(&works), Arc::clone(&calls));
        let answer = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let works = is_well.load(Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(if works { 1 } else { 50 })).await;
                match works {
                    true => Ok(Json(json!({ "from": name }))),
                    false => Err(StatusCode::INTERNAL_SERVER_ERROR),
                }
            }
        };
        let url = serve(Router::new().route("/", get(answer))).await?;
        Ok(Self { name, url, works, calls })
    }
}

/// Serves a router on a free port; returns its URL.
async fn serve(app: Router) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

struct Page {
    client: HttpClient,
    parts: Vec<(&'static str, String)>,
    refused: AtomicU64,
}

impl Page {
    /// Asks for a part; without it the page is still one.
    async fn part(&self, url: &str) -> Value {
        let read = async {
            let answer = self.client.get(url).await?;
            match answer.status() {
                StatusCode::OK => answer.into_body().json().await,
                _ => Ok(Value::Null),
            }
        };
        match read.await {
            Ok(part) => part,
            Err(error) => {
                let open = matches!(error, HttpClientError::Open { .. });
                self.refused.fetch_add(u64::from(open), Ordering::Relaxed);
                Value::Null
            }
        }
    }
}

async fn page(State(page): State<Arc<Page>>) -> Json<Value> {
    let parts =
        page.parts.iter().map(|(name, url)| async { (name.to_string(), page.part(url).await) });
    let parts = futures_util::future::join_all(parts).await;
    Json(Value::Object(parts.into_iter().collect()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        .set("balancer.breaker.failures", "3")
        .set("balancer.breaker.open_time", "200ms")
        .set("balancer.breaker.open_time_max", "200ms")
        .build()
        .await?;
    let mut upstreams = Vec::new();
    for name in ["prices", "stock", "reviews"] {
        upstreams.push(Upstream::start(name).await?);
    }
    let options = HttpClientOptions {
        attempt_timeout: Duration::from_millis(500),
        attempts: 2,
        ..HttpClientOptions::default()
    };
    let shown = Arc::new(Page {
        client: perf.http_client_with("parts", options),
        parts: upstreams.iter().map(|it| (it.name, it.url.clone())).collect(),
        refused: AtomicU64::new(0),
    });
    let app = Router::new().route("/", get(page)).with_state(Arc::clone(&shown));
    let url = serve(app.layer(layers(&perf).timeout(Duration::from_secs(2)))).await?;

    let reader = perf.http_client("reader");
    println!(
        "{:<22} {:>6} {:>6} {:>9} {:>9} {:>15} {:>11}",
        "", "pages", "whole", "p50 ms", "max ms", "calls: reviews", "not called"
    );
    let reviews = &upstreams[2];
    for (phase, works) in
        [("all are well", true), ("reviews fails", false), ("all are well again", true)]
    {
        reviews.works.store(works, Ordering::Relaxed);
        let (calls, refused) =
            (reviews.calls.load(Ordering::Relaxed), shown.refused.load(Ordering::Relaxed));
        let (mut whole, mut times) = (0, Vec::new());
        for _ in 0..REQUESTS {
            let began = Instant::now();
            let page: Value = reader.get(&url).await?.into_body().json().await?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            whole += usize::from(page["reviews"] != Value::Null);
        }
        times.sort_unstable_by(f64::total_cmp);
        let calls = reviews.calls.load(Ordering::Relaxed) - calls;
        println!(
            "{phase:<22} {REQUESTS:>6} {whole:>6} {:>9.2} {:>9.2} {:>15} {:>11}",
            times[REQUESTS / 2],
            times[REQUESTS - 1],
            calls,
            shown.refused.load(Ordering::Relaxed) - refused,
        );
        if works == (whole == 0) {
            return Err(format!("{whole} of {REQUESTS} pages were whole while {phase}").into());
        }
        if !works && calls > REQUESTS as u64 / 2 {
            return Err(format!("{calls} calls of what fails").into());
        }
    }
    for (name, breaker) in perf.breakers().list() {
        println!("breaker {name}: {:?}, opened {} times", breaker.state, breaker.opened);
    }
    perf.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
