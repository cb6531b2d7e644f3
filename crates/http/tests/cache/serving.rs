//! How requests are answered: hits, conditions, ranges, methods, and what each answer tells.

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::*;
use crate::{
    accelerator::{Accelerated, age, outcome, send},
    support::{
        client::{Answer, RawClient},
        origin::Origin,
    },
};

/// What every answer of the accelerator tells, whatever it is.
fn check_telling(answer: &Answer, expected: &str) {
    assert_eq!(outcome(answer), expected, "{answer:?}");
    let status = *answer.header_all("cache-status").last().expect("a Cache-Status");
    assert!(status.starts_with("ultra-perf; "), "{status}");
    assert_eq!(status.contains("; hit"), expected == "HIT" || expected == "STALE", "{status}");
    let time = answer.header("x-response-time").expect("an X-Response-Time");
    let seconds = time.strip_suffix('s').and_then(|time| time.parse::<f64>().ok());
    assert!(seconds.is_some_and(|seconds| seconds < 30.0), "{time}");
    let id = answer.header("x-request-id").expect("an X-Request-ID");
    assert_eq!(id.len(), 16, "{id}");
    assert_eq!(answer.header_all("x-request-id").len(), 1);
    // An age says that the answer is not from the origin just now.
    assert_eq!(answer.header("age").is_some(), expected == "HIT", "{answer:?}");
}

#[tokio::test]
async fn every_answer_tells_what_the_cache_did() {
    let origin = Origin::start(|request| match request.path() {
        "/broken" => Reply::close(),
        "/slow" => Reply::hang(),
        "/error" => Reply::status(500).body("oh"),
        _ => fresh("body").header("x-request-id", "the origin's"),
    })
    .await;
    let keys = [("server.response_timeout", "200ms")];
    let proxy = Accelerated::with(&origin.url(), &keys).await;
    for (method, target, control, status, outcome, cache_status) in [
        ("GET", "/", "", 200, "MISS", "ultra-perf; fwd=uri-miss; fwd-status=200; stored"),
        ("GET", "/", "", 200, "HIT", "ultra-perf; hit; ttl="),
        ("HEAD", "/", "", 200, "HIT", "ultra-perf; hit; ttl="),
        ("GET", "/", "no-cache", 200, "MISS", "ultra-perf; fwd=request; fwd-status=200; stored"),
        ("POST", "/", "", 200, "BYPASS", "ultra-perf; fwd=method; fwd-status=200"),
        (
            "GET",
            "/new",
            "only-if-cached",
            504,
            "MISS",
            "ultra-perf; fwd=miss; detail=only-if-cached",
        ),
        (
            "GET",
            "/error",
            "",
            500,
            "MISS",
            "ultra-perf; fwd=uri-miss; fwd-status=500; detail=not-cacheable",
        ),
        ("GET", "/broken", "", 502, "MISS", "ultra-perf; fwd=uri-miss"),
        ("POST", "/broken", "", 502, "BYPASS", "ultra-perf; fwd=method"),
        ("GET", "/slow", "", 504, "MISS", "ultra-perf; fwd=uri-miss"),
    ] {
        let fields = [("Cache-Control", control)];
        let fields = if control.is_empty() { &[][..] } else { &fields[..] };
        let answer = proxy.send(method, target, fields, "").await;
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
        check_telling(&answer, outcome);
        let told = answer.header("cache-status").expect("a Cache-Status");
        let same = if cache_status.ends_with('=') {
            told.starts_with(cache_status)
        } else {
            told == cache_status
        };
        assert!(same, "{method} {target}: {told}");
        if matches!(status, 502 | 504) {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            let problem: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(problem["status"], status, "{problem}");
        }
    }
}

#[tokio::test]
async fn a_clients_request_id_goes_all_the_way_and_comes_back() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::to(&origin).await;
    for id in ["mine-1", "mine-2"] {
        let answer = proxy.get_with("/", &[("X-Request-ID", id)]).await;
        assert_eq!(answer.header("x-request-id"), Some(id));
    }
    assert_eq!(origin.last().header("x-request-id"), Some("mine-1"));
    let made = proxy.get_with("/new", &[("X-Request-ID", "not {sane}")]).await;
    assert_eq!(made.header("x-request-id"), origin.last().header("x-request-id"));
}

#[tokio::test]
async fn a_request_limits_what_it_takes_from_the_cache() {
    let origin = Origin::start(|_| fresh("body").header("age", "30")).await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    for (control, expected) in [
        ("max-age=50", "HIT"),
        ("min-fresh=5", "HIT"),
        ("only-if-cached", "HIT"),
        ("max-age=5", "MISS"),
        ("min-fresh=50", "MISS"),
        ("no-cache", "MISS"),
        ("max-age=0", "MISS"),
    ] {
        let answer = proxy.get_with("/", &[("Cache-Control", control)]).await;
        assert_eq!((outcome(&answer), answer.status), (expected, 200), "{control}");
    }
    let pragma = proxy.get_with("/", &[("Pragma", "no-cache")]).await;
    assert_eq!(outcome(&pragma), "MISS");
    let strict = [("Cache-Control", "only-if-cached, max-age=5")];
    assert_eq!(proxy.get_with("/", &strict).await.status, 504);
}

#[tokio::test]
async fn a_condition_that_holds_is_answered_with_304_from_the_cache() {
    const MODIFIED: &str = "Mon, 02 Jan 2023 03:04:05 GMT";
    let origin = Origin::start(|_| {
        fresh("body")
            .header("etag", "\"v1\"")
            .header("last-modified", MODIFIED)
            .header("x-big", "field")
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    // The first is a miss whose answer turns out to be what the client has.
    for (n, (condition, status)) in [
        (("If-None-Match", "\"v1\""), 304),
        (("If-None-Match", "\"v0\", W/\"v1\""), 304),
        (("If-None-Match", "*"), 304),
        (("If-None-Match", "\"v0\""), 200),
        (("If-Modified-Since", MODIFIED), 304),
        (("If-Modified-Since", "Sun, 01 Jan 2023 03:04:05 GMT"), 200),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = proxy.get_with("/", &[condition]).await;
        assert_eq!(answer.status, status, "{condition:?}");
        assert_eq!(outcome(&answer), if n == 0 { "MISS" } else { "HIT" }, "{condition:?}");
        assert_eq!(answer.text(), if status == 200 { "body" } else { "" }, "{condition:?}");
        assert_eq!(answer.header("etag"), Some("\"v1\""), "{condition:?}");
        assert_eq!(answer.header("x-big").is_some(), status == 200, "{condition:?}");
    }
    assert_eq!(origin.hits(), 1);
    let asked = origin.last();
    assert_eq!((asked.header("if-none-match"), asked.header("if-modified-since")), (None, None));
}

#[tokio::test]
async fn conditions_on_answers_that_are_not_shared_are_for_the_origin() {
    let origin = Origin::start(|request| {
        let private =
            |reply: Reply| reply.header("cache-control", "private").header("etag", "\"v1\"");
        match request.header("if-none-match") {
            Some("\"v1\"") => private(Reply::status(304)),
            _ => private(Reply::ok("for you")),
        }
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    assert_eq!(proxy.get("/").await.text(), "for you");
    for _ in 0..2 {
        let answer = proxy.get_with("/", &[("If-None-Match", "\"v1\"")]).await;
        assert_eq!((answer.status, outcome(&answer)), (304, "MISS"));
    }
    let other = proxy.get_with("/", &[("If-None-Match", "\"v0\"")]).await;
    assert_eq!((other.status, other.text()), (200, "for you"));
}

#[tokio::test]
async fn a_head_is_answered_from_a_stored_get_and_stores_nothing_itself() {
    let origin = Origin::start(|_| fresh("").chunks(["four", "more"])).await;
    let proxy = Accelerated::to(&origin).await;
    for _ in 0..2 {
        assert_eq!(outcome(&proxy.send("HEAD", "/", &[], "").await), "MISS");
    }
    assert_eq!(origin.last().method, "HEAD");
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    let mut client = proxy.client().await;
    let head = send(&mut client, "HEAD", "/", &[], "").await;
    assert_eq!((head.status, outcome(&head)), (200, "HIT"));
    assert_eq!(head.header("content-length"), Some("8"));
    // The connection is in step: no body came.
    assert_eq!(client.get("/").await.text(), "fourmore");
    assert_eq!(origin.hits(), 3);
}

#[tokio::test]
async fn a_range_goes_to_the_origin_until_the_whole_is_stored() {
    let origin = Origin::start(|request| match request.header("range") {
        Some(_) => Reply::status(206)
            .header("cache-control", "max-age=60")
            .header("content-range", "bytes 0-1/4")
            .body("bo"),
        None => fresh("body"),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let range = [("Range", "bytes=0-1")];
    for _ in 0..2 {
        let part = proxy.get_with("/", &range).await;
        assert_eq!((part.status, part.text(), outcome(&part)), (206, "bo", "MISS"));
        assert_eq!(part.header("content-range"), Some("bytes 0-1/4"));
    }
    assert_eq!(proxy.get("/").await.text(), "body");
    let whole = proxy.get_with("/", &range).await;
    assert_eq!((whole.status, whole.text(), outcome(&whole)), (200, "body", "HIT"));
}

#[tokio::test]
async fn a_get_with_a_body_passes_the_cache_by() {
    let origin = Origin::start(|request| fresh(request.body.clone())).await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    for body in ["one", "two"] {
        let answer = proxy.send("GET", "/", &[], body).await;
        assert_eq!((answer.text(), outcome(&answer)), (body, "BYPASS"));
        assert_eq!(
            answer.header("cache-status").map(|it| it.contains("detail=request-body")),
            Some(true)
        );
    }
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n").await;
    assert_eq!(client.answer().await.expect("an answer").text(), "three");
    assert_eq!(proxy.get("/").await.text(), "");
}

#[tokio::test]
async fn hosts_and_queries_are_targets_of_their_own() {
    let count = Count::default();
    let origin = Origin::start(move |_| fresh(count.next())).await;
    let proxy = Accelerated::to(&origin).await;
    let mut seen = std::collections::HashSet::new();
    for (host, target, known) in [
        ("shop.example", "/a", false),
        ("SHOP.example:80", "/a", true),
        ("other.example", "/a", false),
        ("shop.example:81", "/a", false),
        ("shop.example", "/A", false),
        ("shop.example", "/a?", false),
        ("shop.example", "/a?x=1", false),
        ("shop.example", "/a?x=1", true),
    ] {
        let mut client = RawClient::connect(proxy.addr()).await;
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!(seen.insert(answer.text().to_owned()), !known, "{host} {target}");
    }
}

#[tokio::test]
async fn a_hit_has_an_age_and_the_fields_of_the_origin() {
    let origin = Origin::start(|_| {
        fresh("body")
            .header("content-type", "text/plain")
            .header("link", "</a>")
            .header("link", "</b>")
            .header("cache-status", "inner; hit")
            .header("connection", "x-hop")
            .header("x-hop", "1")
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for expected in ["MISS", "HIT"] {
        let answer = proxy.get("/").await;
        assert_eq!(outcome(&answer), expected);
        assert_eq!(age(&answer).is_some(), expected == "HIT");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(answer.header_all("link"), ["</a>", "</b>"]);
        assert_eq!((answer.header("connection"), answer.header("x-hop")), (None, None));
        assert_eq!(answer.header_all("date").len(), 1);
        assert_eq!(answer.header("content-length"), Some("4"));
        let chain = answer.header_all("cache-status");
        assert_eq!((chain.len(), chain[0]), (2, "inner; hit"));
    }
}

#[tokio::test]
async fn an_http2_client_shares_the_cache_with_the_others() {
    let origin = Origin::start(|request| fresh(request.body.clone())).await;
    let proxy = Accelerated::to(&origin).await;
    let stream = TcpStream::connect(proxy.addr()).await.expect("a connection");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    let driving = tokio::spawn(connection);
    let mut ask = async |method: &str, body: &'static str| {
        let request = Request::builder()
            .method(method)
            .uri("http://test/")
            .body(Full::<Bytes>::from(body))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.version(), Version::HTTP_2);
        let outcome = response.headers()["x-cache"].to_str().expect("a word").to_owned();
        (outcome, response.into_body().collect().await.expect("a body").to_bytes())
    };
    assert_eq!(ask("GET", "").await, ("MISS".into(), Bytes::new()));
    assert_eq!(ask("GET", "").await.0, "HIT");
    assert_eq!(ask("HEAD", "").await.0, "HIT");
    // Nothing in the head says that this request has a body.
    assert_eq!(ask("GET", "body").await, ("BYPASS".into(), Bytes::from("body")));
    assert_eq!(outcome(&proxy.get("/").await), "HIT");
    assert_eq!(ask("DELETE", "").await.0, "BYPASS");
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    driving.abort();
}
