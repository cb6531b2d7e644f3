//! Load shedding, time limits and panics.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::AGE;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tower::{Layer as _, ServiceExt as _, service_fn};
use ultra_perf::monitor::{Clock as _, SystemClock};
use ultra_perf::resilience::{AdaptiveLimit, Deadline};
use ultra_perf_http::layers;

use super::*;
use crate::support::{eventually, soon};

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

#[tokio::test]
async fn what_a_service_refuses_takes_no_place_from_the_others() {
    let perf = perf().await;
    let limit = AdaptiveLimit::builder("many").limits(1, 100).initial(50).round(Duration::ZERO, 1);
    let limit = limit.build().expect("a limit");
    let app = Router::new()
        .route("/many", post(|| async { StatusCode::TOO_MANY_REQUESTS }))
        .route("/closed", post(|| async { StatusCode::SERVICE_UNAVAILABLE }));
    let served = Served::start(app.layer(layers(&perf).load_shedding(limit.clone()))).await;
    let mut client = served.client().await;
    for (target, status) in [("/many", 429), ("/closed", 503)] {
        for _ in 0..5 {
            assert_eq!(send(&mut client, "POST", target, &[]).await.status, status);
        }
        assert_eq!(limit.stats().limit, 50, "{target}");
    }
}

#[tokio::test]
async fn whoever_waits_for_a_call_that_fails_asks_again() {
    for is_panic in [true, false] {
        let perf = perf().await;
        let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(0)));
        let (counted, at_service) = (calls.clone(), Arc::clone(&gate));
        let service = service_fn(move |_: Request<Body>| {
            let (count, gate) = (counted.next(), Arc::clone(&at_service));
            async move {
                gate.acquire().await.expect("the gate is never closed").forget();
                match count {
                    1 if is_panic => panic!("on purpose"),
                    1 => Err("on purpose"),
                    _ => Ok((FRESH, "well").into_response()),
                }
            }
        });
        let service = layers(&perf).layer(service);
        let ask = || {
            let request = Request::get("/").header("host", "test").body(Body::empty());
            service.clone().oneshot(request.expect("a request"))
        };
        let (mut first, mut second) = (Box::pin(ask()), Box::pin(ask()));
        for asking in [&mut first, &mut second] {
            for _ in 0..10 {
                assert!(asking.as_mut().now_or_never().is_none());
                tokio::task::yield_now().await;
            }
            assert_eq!(calls.count(), 1, "the second waits for the first");
        }
        gate.add_permits(2);
        let (first, second) = soon("the answers", async { tokio::join!(first, second) }).await;
        let status = |answer: Result<Response, _>| answer.expect("an answer").status().as_u16();
        assert_eq!((status(first), status(second), calls.count()), (500, 200, 2));
    }
}

#[tokio::test]
async fn what_a_call_without_an_answer_may_have_changed_is_forgotten() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let read = move || {
        let count = counted.next().to_string();
        async move { (FRESH, count) }
    };
    let panics = || async {
        if true {
            panic!("on purpose");
        }
    };
    let app = Router::new()
        .route("/late", get(read.clone()).post(std::future::pending::<()>))
        .route("/panics", get(read).post(panics));
    let layers = layers(&perf).timeout(Duration::from_millis(30));
    let served = Served::start(app.layer(layers)).await;
    for (target, status) in [("/late", 504), ("/panics", 500)] {
        let before = served.get(target).await.text().to_owned();
        assert_eq!(served.get(target).await.text(), before);
        assert_eq!(send(&mut served.client().await, "POST", target, &[]).await.status, status);
        assert_ne!(served.get(target).await.text(), before, "{target}");
    }
}

#[tokio::test]
async fn a_call_that_was_refused_has_changed_nothing() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let hold = move || {
        counted.next();
        std::future::pending::<()>()
    };
    let app = Router::new()
        .route("/read", get(|| async { (FRESH, "body") }).post(|| async {}))
        .route("/hold", post(hold));
    let limit = AdaptiveLimit::builder("one").limits(1, 1).initial(1).build().expect("a limit");
    let served = Served::start(app.layer(layers(&perf).load_shedding(limit))).await;
    assert_eq!(outcome(&served.get("/read").await), "MISS");
    let mut holding = served.client().await;
    holding.send("POST /hold HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the call", || calls.count() == 1).await;
    assert_eq!(send(&mut served.client().await, "POST", "/read", &[]).await.status, 503);
    assert_eq!(outcome(&served.get("/read").await), "HIT");
}
