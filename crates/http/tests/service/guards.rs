//! Load shedding, time limits and panics.

use std::time::Duration;

use axum::http::header::AGE;
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use ultra_perf::monitor::{Clock as _, SystemClock};
use ultra_perf::resilience::{AdaptiveLimit, Deadline};
use ultra_perf_http::layers;

use super::*;
use crate::support::eventually;

/// How often this has happened to requests.
fn counted(perf: &UltraPerf, name: &str) -> f64 {
    let snapshot = perf.registry().read(SystemClock::new().now());
    snapshot.number(name, &[]).expect("it is counted from the start")
}

#[tokio::test]
async fn what_the_service_cannot_take_is_refused_at_once() {
    let perf = perf().await;
    let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(0)));
    let (counting, at_service) = (calls.clone(), Arc::clone(&gate));
    let handler = move || {
        counting.next();
        let gate = Arc::clone(&at_service);
        async move {
            gate.acquire().await.expect("the gate is never closed").forget();
            "done"
        }
    };
    let limit = AdaptiveLimit::builder("one").limits(1, 1).initial(1).build().expect("a limit");
    let app = Router::new().route("/", post(handler)).layer(layers(&perf).load_shedding(limit));
    let served = Served::start(app).await;
    let (mut first, mut second) = (served.client().await, served.client().await);
    first.send("POST / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the call", || calls.count() == 1).await;
    let refused = send(&mut second, "POST", "/", &[]).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.header("x-request-id").is_some());
    gate.add_permits(2);
    assert_eq!(first.answer().await.expect("an answer").text(), "done");
    assert_eq!(send(&mut second, "POST", "/", &[]).await.text(), "done");
    assert_eq!((calls.count(), counted(&perf, "http_requests_shed_total")), (2, 1.0));
}

#[tokio::test]
async fn a_service_that_takes_too_long_is_ended() {
    let perf = perf().await;
    let gone = Arc::new(());
    let held = Arc::downgrade(&gone);
    let at_service = Arc::new(std::sync::Mutex::new(Some(gone)));
    let handler = move || {
        let held = at_service.lock().expect("no panic under this lock").take();
        async move {
            let left = Deadline::current().expect("it knows how long it has");
            assert!(left.remaining_at(std::time::Instant::now()) <= Duration::from_millis(30));
            std::future::pending::<()>().await;
            drop(held);
        }
    };
    let app = Router::new().route("/", get(handler));
    let served = Served::start(app.layer(layers(&perf).timeout(Duration::from_millis(30)))).await;
    let answer = served.get("/").await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(held.upgrade().is_none(), "what it held is free");
    assert_eq!(counted(&perf, "http_requests_timed_out_total"), 1.0);
}

#[tokio::test]
async fn a_panic_costs_its_request_and_not_the_connection() {
    let perf = perf().await;
    let handler = || async {
        if true {
            panic!("on purpose");
        }
    };
    let app = Router::new().route("/panic", get(handler)).route("/well", get(|| async { "well" }));
    let served = Served::start(app.layer(layers(&perf))).await;
    let mut client = served.client().await;
    let answer = client.get("/panic").await;
    assert_eq!(answer.status, 500);
    assert!(!answer.text().contains("on purpose"), "{}", answer.text());
    assert_eq!(client.get("/well").await.text(), "well");
    assert_eq!(counted(&perf, "http_requests_panicked_total"), 1.0);
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_a_panic() {
    let perf = perf().await;
    let calls = Calls::default();
    let handler = move || {
        let count = calls.next();
        async move {
            assert!(count == 1, "on purpose");
            // Stale on arrival.
            ([(CACHE_CONTROL, "max-age=60, stale-if-error=600"), (AGE, "100")], "the first")
        }
    };
    let served = Served::start(Router::new().route("/", get(handler)).layer(layers(&perf))).await;
    assert_eq!(served.get("/").await.text(), "the first");
    let answer = served.get("/").await;
    assert_eq!((answer.status, outcome(&answer), answer.text()), (200, "STALE", "the first"));
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_place_back() {
    let perf = perf().await;
    let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(0)));
    let (counting, at_service) = (calls.clone(), Arc::clone(&gate));
    let handler = move || {
        counting.next();
        let gate = Arc::clone(&at_service);
        async move {
            gate.acquire().await.expect("the gate is never closed").forget();
            "done"
        }
    };
    let limit = AdaptiveLimit::builder("one").limits(1, 1).initial(1).build().expect("a limit");
    let app = Router::new().route("/", post(handler));
    let served = Served::start(app.layer(layers(&perf).load_shedding(limit.clone()))).await;
    let mut client = served.client().await;
    client.send("POST / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the call", || calls.count() == 1).await;
    assert_eq!(limit.stats().in_flight, 1);
    drop(client);
    eventually("the place", || limit.stats().in_flight == 0).await;
}
