//! What every answer carries, what is counted, and what the layers go around.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, Request, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceBuilder;
use ultra_perf::monitor::{Clock as _, Registry, Snapshot, SystemClock};
use ultra_perf_http::layers;

use super::*;
use crate::support::soon;

fn read(registry: &Registry) -> Snapshot {
    registry.read(SystemClock::new().now())
}

#[tokio::test]
async fn an_answer_tells_its_id_its_time_and_what_the_cache_did() {
    let perf = perf().await;
    let told = |headers: HeaderMap| async move {
        let id = headers.get("x-request-id").expect("an id").to_str().expect("text").to_owned();
        (FRESH, id)
    };
    let served = Served::start(Router::new().route("/", get(told)).layer(layers(&perf))).await;
    let first = served.get("/").await;
    let id = first.header("x-request-id").expect("an id");
    assert!(id.len() == 16 && id.bytes().all(|it| it.is_ascii_hexdigit()), "{id}");
    assert_eq!(first.text(), id, "the service knows it");
    let time = first.header("x-response-time").and_then(|time| time.strip_suffix('s'));
    let time: f64 = time.expect("a time").parse().expect("seconds");
    assert!((0.0..10.0).contains(&time), "{time}");
    assert_eq!(outcome(&first), "MISS");
    assert_eq!(
        first.header("cache-status"),
        Some("ultra-perf; fwd=uri-miss; fwd-status=200; stored")
    );
    let second = served.get_with("/", &[("x-request-id", "mine-7")]).await;
    assert_eq!((outcome(&second), second.header("x-request-id")), ("HIT", Some("mine-7")));
    assert_eq!(second.text(), id, "it is the first answer");
    assert_eq!(second.header("age"), Some("0"));
    assert!(
        second.header("cache-status").is_some_and(|it| it.starts_with("ultra-perf; hit; ttl="))
    );
    let forged = served.get_with("/", &[("x-request-id", "<script>")]).await;
    assert_ne!(forged.header("x-request-id"), Some("<script>"));
    assert!(first.header("x-memory-usage").is_none(), "it was not asked for");
}

#[tokio::test]
async fn the_use_of_memory_is_shown_where_that_is_turned_on() {
    let perf = perf().await;
    let app = Router::new().route("/", get(|| async { "it" }));
    let served = Served::start(app.layer(layers(&perf).memory_usage(true))).await;
    let answer = served.get("/").await;
    let used = answer.header("x-memory-usage").and_then(|it| it.strip_suffix('%'));
    let used: f64 = used.expect("a share").parse().expect("percent");
    assert!((0.0..=100.0).contains(&used), "{used}");
}

#[tokio::test]
async fn what_is_turned_off_is_not_there() {
    let perf = perf().await;
    let bare = layers(&perf)
        .request_ids(false)
        .response_time(false)
        .metrics(false)
        .response_cache(None)
        .compression(false);
    let app = Router::new().route("/", get(|| async { (FRESH, "it") }));
    let served = Served::start(app.layer(bare)).await;
    let answer = served.get("/").await;
    for name in ["x-request-id", "x-response-time", "x-cache", "cache-status", "vary", "age"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    let labels = [("method", "GET"), ("route", "/"), ("status", "2xx")];
    assert_eq!(read(perf.registry()).number("http_requests_total", &labels), None);
}

#[tokio::test]
async fn requests_are_counted_by_route_with_those_that_the_cache_answers() {
    let perf = perf().await;
    let user = |Path(id): Path<u32>| async move { (FRESH, id.to_string()) };
    let app = Router::new().route("/users/{id}", get(user)).layer(layers(&perf));
    let served = Served::start(app).await;
    for (target, expected) in [("/users/1", "MISS"), ("/users/2", "MISS"), ("/users/1", "HIT")] {
        assert_eq!(outcome(&served.get(target).await), expected);
    }
    let snapshot = read(perf.registry());
    let labels = [("method", "GET"), ("route", "/users/{id}"), ("status", "2xx")];
    assert_eq!(snapshot.number("http_requests_total", &labels), Some(3.0));
    let answered = |result| {
        let labels = [("cache", "http"), ("result", result)];
        snapshot.number("cache_requests_total", &labels)
    };
    assert_eq!([answered("hit"), answered("miss")], [Some(1.0), Some(2.0)]);
    let calls = snapshot.number("http_origin_calls_total", &[("cache", "http")]);
    assert_eq!(calls, Some(2.0));
}

#[tokio::test]
async fn a_service_without_a_router_gets_them_as_well() {
    let perf = perf().await;
    let service = ServiceBuilder::new().layer(layers(&perf)).service_fn(
        |request: Request<Body>| async move {
            let body = Body::from(request.uri().path().to_owned());
            let answer = Response::builder().header("cache-control", "max-age=60").body(body);
            answer.map_err(std::io::Error::other)
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let service = TowerToHyperService::new(service);
        let builder = auto::Builder::new(TokioExecutor::new());
        builder.serve_connection(TokioIo::new(stream), service).await.expect("it is served");
    });
    let mut client = RawClient::connect(addr).await;
    for expected in ["MISS", "HIT"] {
        let answer = client.get("/path").await;
        assert_eq!((outcome(&answer), answer.text()), (expected, "/path"));
    }
    drop(client);
    soon("the end of the connection", serving).await.expect("no panic");
}

#[tokio::test]
async fn a_body_streams_through_and_a_connection_may_become_a_tunnel() {
    let perf = perf().await;
    let echo = |body: Body| async move { body };
    let tunnel = |mut request: Request<Body>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("a tunnel"));
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.expect("four bytes");
            stream.write_all(&bytes).await.expect("they go back");
            stream.shutdown().await.expect("it closes");
        });
        let answer = Response::builder().status(101).header("connection", "upgrade");
        answer.header("upgrade", "websocket").body(Body::empty()).expect("an answer")
    };
    let app = Router::new().route("/echo", post(echo)).route("/tunnel", get(tunnel));
    let served = Served::start(app.layer(layers(&perf))).await;
    let mut client = served.client().await;
    let chunks = "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    let head = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}{chunks}")).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((outcome(&answer), answer.text()), ("BYPASS", "abcdefg"));
    let fields = [("Connection", "upgrade"), ("Upgrade", "websocket")];
    let answer = send(&mut client, "GET", "/tunnel", &fields).await;
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    client.send("ping").await;
    assert_eq!(client.rest().await, b"ping");
}
