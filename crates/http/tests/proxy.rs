//! The plain proxy over real sockets, in front of an origin that the tests script.

mod support;

use std::{
    error::Error,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    client::{Answer, RawClient},
    eventually,
    origin::{Gate, Origin, Reply},
    proxy::{Options, Proxy},
    soon,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use ultra_perf_http::forward::HostPolicy;

const MIB: usize = 1024 * 1024;

/// What two hops of loopback sockets can swallow with nobody reading, at most.
const KERNEL_BUFFERS: u64 = 40 * MIB as u64;

/// Sends `request` on a fresh connection and reads one answer.
async fn ask(addr: SocketAddr, request: impl AsRef<[u8]>) -> Option<Answer> {
    let mut client = RawClient::connect(addr).await;
    client.send(request).await;
    client.answer().await
}

async fn get(addr: SocketAddr, target: &str) -> Answer {
    RawClient::connect(addr).await.get(target).await
}

fn short() -> Duration {
    Duration::from_millis(100)
}

// ---- What arrives where ----

#[tokio::test]
async fn a_request_and_its_response_pass_through() {
    let origin = Origin::start(|request| {
        Reply::status(201)
            .header("x-answer", "42")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .body(request.body.clone())
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let answer = ask(
        proxy.addr(),
        "POST /things?q=%20x&y HTTP/1.1\r\nHost: shop.example\r\nX-Custom: Yes\r\n\
         Content-Length: 5\r\n\r\nhello",
    )
    .await
    .expect("an answer");
    assert_eq!(answer.status, 201);
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.header("x-answer"), Some("42"));
    assert_eq!(answer.header_all("set-cookie"), ["a=1", "b=2"]);
    let received = origin.last();
    assert_eq!(received.method, "POST");
    assert_eq!(received.target, "/things?q=%20x&y");
    assert_eq!(received.header("host"), Some("shop.example"));
    assert_eq!(received.header("x-custom"), Some("Yes"));
    assert_eq!(received.header("content-length"), Some("5"));
    assert_eq!(received.body, b"hello");
}

#[tokio::test]
async fn the_origin_learns_who_asked_and_not_what_the_client_claims() {
    let origin = Origin::start(|_| Reply::ok("")).await;
    let proxy = Proxy::to(&origin.url()).await;
    ask(
        proxy.addr(),
        "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nProxy: evil\r\nVia: 1.1 edge\r\nX-Request-ID: mine-1\r\n\r\n",
    )
    .await
    .expect("an answer");
    let received = origin.last();
    for (name, expected) in [
        ("x-forwarded-for", vec!["127.0.0.1"]),
        ("x-forwarded-proto", vec!["http"]),
        ("x-forwarded-host", vec!["shop.example"]),
        ("x-forwarded-port", vec![]),
        ("forwarded", vec!["for=127.0.0.1;proto=http"]),
        ("x-real-ip", vec![]),
        ("proxy", vec![]),
        ("x-request-id", vec!["mine-1"]),
    ] {
        assert_eq!(received.header_all(name), expected, "{name}");
    }
    let via = received.header_all("via");
    assert_eq!(via[0], "1.1 edge");
    assert!(via[1].starts_with("1.1 ultra-perf-"), "{via:?}");
}

#[tokio::test]
async fn fields_for_one_hop_stay_on_it() {
    let origin = Origin::start(|_| {
        Reply::ok("x")
            .header("connection", "x-origin-hop")
            .header("x-origin-hop", "1")
            .header("keep-alive", "timeout=5")
            .header("x-end", "1")
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let answer = ask(
        proxy.addr(),
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Client-Hop, Host\r\n\
         X-Client-Hop: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
    )
    .await
    .expect("an answer");
    for name in ["connection", "x-origin-hop", "keep-alive"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(answer.header("x-end"), Some("1"));
    let received = origin.last();
    for name in ["connection", "x-client-hop", "keep-alive", "te", "proxy-authorization", "upgrade"]
    {
        assert_eq!(received.header(name), None, "{name}");
    }
    assert_eq!(received.header("host"), Some("a"));
}

#[tokio::test]
async fn a_base_path_goes_before_each_path_and_the_host_can_be_the_origins() {
    let origin = Origin::start(|_| Reply::ok("")).await;
    let mut options = Options::to(&format!("{}/api/", origin.url()));
    options.host = HostPolicy::Origin;
    let proxy = options.start().await;
    get(proxy.addr(), "/v1?x=1").await;
    assert_eq!(origin.last().target, "/api/v1?x=1");
    assert_eq!(origin.last().header("host"), Some(origin.addr().to_string().as_str()));
    ask(proxy.addr(), "GET http://other.example/v2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(origin.last().target, "/api/v2");
    assert_eq!(origin.last().header("x-forwarded-host"), Some("other.example"));
}

#[tokio::test]
async fn bodies_arrive_whole_however_they_are_framed() {
    let origin = Origin::start(|request| match request.path() {
        "/length" => Reply::ok("hello world"),
        "/chunked" => Reply::status(200).chunks(["hello", " ", "world"]),
        "/close" => Reply::ok("hello world").until_close(),
        "/slow" => {
            Reply::status(200).chunks(["hello", " ", "world"]).pausing(Duration::from_millis(20))
        }
        "/interim" => Reply::raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
        ),
        "/twice" => Reply::ok("hello world").header("content-length", "11"),
        _ => Reply::status(404),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    for path in ["/length", "/chunked", "/close", "/slow", "/interim", "/twice"] {
        let answer = get(proxy.addr(), path).await;
        assert_eq!((answer.status, answer.text()), (200, "hello world"), "{path}");
        assert!(answer.complete, "{path}");
        assert!(answer.header_all("content-length").len() < 2, "{path}");
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connections_usable() {
    let origin = Origin::start(|request| match request.path() {
        "/204" => Reply::status(204),
        "/304" => Reply::status(304).header("etag", "\"a\""),
        "/empty" => Reply::ok(""),
        _ => Reply::ok("twelve bytes"),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head_answer().await.expect("an answer");
    assert_eq!((head.status, head.header("content-length")), (200, Some("12")));
    for (path, status) in [("/204", 204), ("/304", 304), ("/empty", 200), ("/", 200)] {
        assert_eq!(client.get(path).await.status, status, "{path}");
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(proxy.server.stats().accepted, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start(|request| {
        let delay = if request.path() == "/1" { 50 } else { 0 };
        Reply::ok(request.path()).after(Duration::from_millis(delay))
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    let requests: String =
        (1..=4).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests).await;
    for n in 1..=4 {
        assert_eq!(client.answer().await.expect("an answer").text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_answer_it_can_read() {
    let origin = Origin::start(|_| Reply::status(200).chunks(["a", "b"])).await;
    let proxy = Proxy::to(&origin.url()).await;
    let answer = ask(proxy.addr(), "GET / HTTP/1.0\r\n\r\n").await.expect("an answer");
    assert_eq!(answer.text(), "ab");
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(origin.last().header("host"), Some(origin.addr().to_string().as_str()));
    assert!(origin.last().header("via").expect("a via").starts_with("1.0 "));
}

#[tokio::test]
async fn a_request_that_comes_back_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let _proxy = Options::to(&format!("http://{addr}")).start_on(listener);
    assert_eq!(get(addr, "/").await.status, 508);
}

// ---- Strictness ----

#[tokio::test]
async fn malformed_requests_never_reach_the_origin() {
    let origin = Origin::start(|_| Reply::ok("")).await;
    let proxy =
        Options::to(&origin.url()).limits(|limits| limits.max_head_bytes = 8 * 1024).start().await;
    let long = "x".repeat(20 * 1024);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        ("GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\na", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: the-best\r\n\r\n", 417),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
    ] {
        let answer = ask(proxy.addr(), request).await;
        let answer = answer.unwrap_or_else(|| panic!("no answer to {request:?}"));
        assert_eq!(answer.status, status, "{request:?}");
    }
    assert_eq!(origin.hits(), 0);
}

#[tokio::test]
async fn a_second_length_cannot_smuggle_a_request() {
    let origin = Origin::start(|_| Reply::ok("ok")).await;
    let proxy = Proxy::to(&origin.url()).await;
    for request in [
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 44\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = RawClient::connect(proxy.addr()).await;
        client.send(request).await;
        client.answer().await.expect("an answer");
        assert!(client.rest().await.is_empty(), "the connection goes on");
    }
    assert_eq!(origin.hits(), 2);
    for request in origin.received() {
        assert_ne!(request.path(), "/smuggled");
        assert_eq!(request.header("content-length"), None);
        assert!(request.body.is_empty());
    }
}

#[tokio::test]
async fn a_broken_chunk_ends_the_request() {
    let origin = Origin::start(|_| Reply::ok("ok")).await;
    let proxy = Proxy::to(&origin.url()).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["5\r\nhello\r\nzz\r\nx", "ffffffffffffffffff\r\nx", "5\r\nhelloXX0\r\n\r\n"] {
        if let Some(answer) = ask(proxy.addr(), format!("{head}{body}")).await {
            assert_eq!(answer.status, 400, "{body:?}");
        }
    }
    // The origin has seen a beginning at most; no whole request came out of it.
    assert!(origin.received().is_empty());
}

#[tokio::test]
async fn nonsense_from_the_origin_is_a_502() {
    let origin = Origin::start(|request| match request.path() {
        "/garbage" => Reply::raw("what?\r\n\r\n"),
        "/both" => Reply::raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n\r\n",
        ),
        "/lengths" => {
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")
        }
        "/fold" => Reply::raw("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
        "/switch" => Reply::echo("surprise"),
        "/long" => Reply::ok("").header("x-long", &"x".repeat(200_000)),
        "/nothing" => Reply::close(),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    for path in ["/garbage", "/both", "/lengths", "/fold", "/switch", "/long", "/nothing"] {
        let answer = get(proxy.addr(), path).await;
        assert_eq!(answer.status, 502, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.text().contains("\"status\":502"), "{}", answer.text());
    }
    assert_eq!(get(proxy.addr(), "/").await.text(), "fine");
}

#[tokio::test]
async fn a_body_cut_by_the_origin_arrives_cut() {
    let origin = Origin::start(|request| match request.path() {
        "/short" => Reply::ok("ten bytes.").claiming(100),
        _ => Reply::status(200).chunks(["ten", " bytes."]).cut(),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    for path in ["/short", "/chunked"] {
        let answer = get(proxy.addr(), path).await;
        assert_eq!((answer.status, answer.text()), (200, "ten bytes."), "{path}");
        assert!(!answer.complete, "{path}");
    }
    eventually("no lease is left", || proxy.upstream.stats().active == 0).await;
}

// ---- The pool ----

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let origin = Origin::start(|request| match request.path() {
        "/chunked" => Reply::status(200).chunks(["a", "b"]),
        _ => Reply::ok("x".repeat(100_000)),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    for n in 0..20 {
        let path = if n % 2 == 0 { "/chunked" } else { "/length" };
        assert!(get(proxy.addr(), path).await.complete);
    }
    let stats = proxy.upstream.stats();
    assert_eq!(origin.connections(), 1);
    assert_eq!((stats.opened, stats.reused, stats.retried), (1, 19, 0));
}

#[tokio::test]
async fn parallel_requests_never_open_more_than_the_bound() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::ok("x").when(&gate)
    })
    .await;
    let proxy =
        Options::to(&origin.url()).upstream(|upstream| upstream.max_connections = 3).start().await;
    let addr = proxy.addr();
    let asking: Vec<_> =
        (0..12).map(|_| tokio::spawn(async move { get(addr, "/").await.status })).collect();
    origin.wait_for_hits(3).await;
    eventually("nine wait", || proxy.upstream.stats().waiting == 9).await;
    gate.open();
    for asked in asking {
        assert_eq!(soon("an answer", asked).await.expect("no panic"), 200);
    }
    assert_eq!((origin.hits(), origin.connections()), (12, 3));
    let stats = proxy.upstream.stats();
    assert_eq!((stats.active, stats.waiting, stats.idle), (0, 0, 3));
}

#[tokio::test]
async fn a_full_pool_refuses_after_its_time_and_beyond_its_queue() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Options::to(&origin.url())
        .upstream(|upstream| {
            upstream.max_connections = 1;
            upstream.max_waiting = 1;
            upstream.queue_timeout = Duration::from_millis(300);
        })
        .start()
        .await;
    let mut first = RawClient::connect(proxy.addr()).await;
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.wait_for_hits(1).await;
    let mut second = RawClient::connect(proxy.addr()).await;
    second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("one waits", || proxy.upstream.stats().waiting == 1).await;
    assert_eq!(get(proxy.addr(), "/").await.status, 503);
    assert_eq!(second.answer().await.expect("an answer").status, 503);
    assert_eq!(proxy.upstream.stats().saturated, 2);
    drop(first);
    eventually("the place is free", || proxy.upstream.stats().active == 0).await;
}

#[tokio::test]
async fn a_connection_that_the_origin_closed_is_not_used_again() {
    let origin = Origin::start(|_| Reply::ok("x").then_close()).await;
    let proxy = Proxy::to(&origin.url()).await;
    for n in 0..6 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(ask(proxy.addr(), request).await.expect("an answer").status, 200);
        eventually("the origin closed", || origin.open_connections() == 0).await;
    }
    assert_eq!((origin.hits(), origin.connections()), (6, 6));
}

#[tokio::test]
async fn an_idempotent_request_survives_a_close_in_the_moment_of_sending() {
    let origin = Origin::start(|request| match request.header("x-reused") {
        // The first connection closes on its second request without a byte.
        Some(_) if request.connection == 0 => Reply::close(),
        _ => Reply::ok("x"),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    assert_eq!(get(proxy.addr(), "/").await.status, 200);
    let again = "GET /again HTTP/1.1\r\nHost: a\r\nX-Reused: 1\r\n\r\n";
    assert_eq!(ask(proxy.addr(), again).await.expect("an answer").status, 200);
    assert_eq!((origin.hits(), origin.connections()), (3, 2));
    assert_eq!(proxy.upstream.stats().retried, 1);
}

#[tokio::test]
async fn a_request_that_is_not_idempotent_is_never_sent_twice() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "POST" => Reply::close(),
        _ => Reply::ok("x"),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    assert_eq!(get(proxy.addr(), "/").await.status, 200);
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(proxy.addr(), post).await.expect("an answer").status, 502);
    assert_eq!(origin.hits(), 2);
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_a_pooled_connection() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match request.connection {
            0 => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                .then_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", &gate),
            _ => Reply::ok("right"),
        }
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    assert_eq!(get(proxy.addr(), "/").await.text(), "x");
    let before = origin.sent_bytes();
    gate.open();
    eventually("the stray bytes are out", || origin.sent_bytes() > before).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(get(proxy.addr(), "/").await.text(), "right");
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy = Options::to(&origin.url())
        .upstream(|upstream| upstream.keep_alive_timeout = short())
        .start()
        .await;
    get(proxy.addr(), "/").await;
    assert_eq!(origin.connections(), 1);
    eventually("it is closed", || origin.open_connections() == 0).await;
    assert_eq!(proxy.upstream.stats().idle, 0);
    get(proxy.addr(), "/").await;
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn a_closed_upstream_answers_503_and_lets_go_of_its_connections() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy = Proxy::to(&origin.url()).await;
    get(proxy.addr(), "/").await;
    proxy.upstream.close();
    assert_eq!(get(proxy.addr(), "/").await.status, 503);
    eventually("they are closed", || origin.open_connections() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_origin() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.wait_for_hits(1).await;
    drop(client);
    eventually("the origin is let go", || origin.open_connections() == 0).await;
    eventually("the place is free", || proxy.upstream.stats().active == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_clients_on_many_threads_all_get_their_own_answers() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "POST" => Reply::ok(request.body.clone()),
        _ if request.index % 7 == 0 => Reply::ok(request.path()).then_close(),
        _ => Reply::status(200).chunks([request.path(), &"x".repeat(20_000)]),
    })
    .await;
    let proxy =
        Options::to(&origin.url()).upstream(|upstream| upstream.max_connections = 8).start().await;
    let addr = proxy.addr();
    let clients: Vec<_> = (0..24)
        .map(|n| {
            tokio::spawn(async move {
                let mut client = RawClient::connect(addr).await;
                for m in 0..40 {
                    let mark = format!("/{n}/{m}");
                    let answer = if m % 4 == 0 {
                        let body = mark.repeat(3_000);
                        let length = body.len();
                        let head = format!(
                            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
                        );
                        client.send(head + &body).await;
                        let answer = client.answer().await.expect("an answer");
                        // A close in the moment of sending may hit it, and it is not sent twice.
                        assert!(answer.status == 502 || answer.text() == body);
                        continue;
                    } else {
                        client.get(&mark).await
                    };
                    assert!(answer.complete);
                    assert!(answer.text().starts_with(&mark), "{mark}");
                    let rest = &answer.text()[mark.len()..];
                    assert!(rest.bytes().all(|byte| byte == b'x'), "{mark}");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no panic");
    }
    let stats = proxy.upstream.stats();
    assert_eq!((stats.active, stats.waiting), (0, 0));
    assert!(stats.idle <= 8 && stats.reused > stats.opened, "{stats:?}");
}

// ---- Time-outs ----

#[tokio::test]
async fn an_origin_that_does_not_listen_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let proxy = Proxy::to(&format!("http://{addr}")).await;
    assert_eq!(get(proxy.addr(), "/").await.status, 502);
}

#[tokio::test]
async fn an_origin_that_does_not_accept_is_a_504() {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("a free port");
    socket.listen(0).expect("listening");
    let addr = socket.local_addr().expect("an address").as_socket().expect("an ip address");
    // With the queue full the kernel drops further attempts, and connecting waits.
    let fill: Vec<_> = (0..8).map(|_| tokio::spawn(TcpStream::connect(addr))).collect();
    tokio::time::sleep(short()).await;
    let proxy = Options::to(&format!("http://{addr}"))
        .upstream(|upstream| upstream.connect_timeout = short())
        .start()
        .await;
    assert_eq!(get(proxy.addr(), "/").await.status, 504);
    fill.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_origin_that_thinks_too_long_is_a_504() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Options::to(&origin.url())
        .upstream(|upstream| upstream.response_timeout = short())
        .start()
        .await;
    // Twice: the second time on the timer of a new connection, not of a pooled one.
    for _ in 0..2 {
        assert_eq!(get(proxy.addr(), "/").await.status, 504);
    }
    eventually("the origin is let go", || origin.open_connections() == 0).await;
}

#[tokio::test]
async fn an_origin_that_pauses_too_long_within_a_body_cuts_it() {
    let gate = Gate::new();
    gate.let_through(1);
    let origin =
        Origin::start(move |_| Reply::status(200).chunks(["first", "never"]).pieces_when(&gate))
            .await;
    let proxy = Options::to(&origin.url())
        .upstream(|upstream| upstream.body_idle_timeout = short())
        .start()
        .await;
    let answer = get(proxy.addr(), "/").await;
    assert_eq!((answer.text(), answer.complete), ("first", false));
}

#[tokio::test]
async fn an_upload_that_moves_does_not_run_into_the_response_timeout() {
    let origin = Origin::start(|request| Reply::ok(request.body.len().to_string())).await;
    let proxy = Options::to(&origin.url())
        .upstream(|upstream| upstream.response_timeout = Duration::from_millis(600))
        .start()
        .await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    for _ in 0..12 {
        tokio::time::sleep(short()).await;
        client.send("x").await;
    }
    assert_eq!(client.answer().await.expect("an answer").text(), "12");
}

// ---- Bodies that stream ----

#[tokio::test]
async fn the_head_arrives_before_the_body_exists() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::status(200).chunks(["one", "two"]).pieces_when(&gate)
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.bytes().await;
    assert!(head.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&head));
    assert!(!String::from_utf8_lossy(&head).contains("one"));
    gate.let_through(1);
    assert_eq!(client.bytes().await, b"3\r\none\r\n");
    gate.open();
    let rest = client.bytes().await;
    assert!(rest.starts_with(b"3\r\ntwo\r\n"), "{:?}", String::from_utf8_lossy(&rest));
}

/// Waits until `count` stops growing.
async fn settled(count: impl Fn() -> u64) -> u64 {
    let deadline = Instant::now() + support::PATIENCE;
    let mut last = (count(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "it never stops");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.0
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_origin() {
    const TOTAL: usize = 64 * MIB;
    let origin = Origin::start(|_| Reply::status(200).repeated(vec![b'x'; MIB], TOTAL / MIB)).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.bytes().await;
    let sent = settled(|| origin.sent_bytes()).await;
    assert!(sent < KERNEL_BUFFERS, "{sent} bytes left the origin for nobody");
    let mut stream = client.into_stream();
    let mut read = head.len();
    let mut buffer = vec![0; MIB];
    while read < TOTAL {
        let n = soon("the rest", stream.read(&mut buffer)).await.expect("no error");
        assert!(n > 0, "the body ended at {read}");
        read += n;
    }
}

#[tokio::test]
async fn an_origin_that_does_not_read_stops_the_client() {
    const TOTAL: usize = 64 * MIB;
    let gate = Gate::new();
    let origin = Origin::start_early({
        let gate = gate.clone();
        move |_| Reply::ok("done").when(&gate).reading(usize::MAX)
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let client = RawClient::connect(proxy.addr()).await;
    let (mut reader, mut writer) = client.into_stream().into_split();
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let sending = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move {
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {TOTAL}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.expect("sent");
            let block = vec![b'x'; 64 * 1024];
            for _ in 0..TOTAL / block.len() {
                writer.write_all(&block).await.expect("sent");
                sent.fetch_add(block.len() as u64, std::sync::atomic::Ordering::SeqCst);
            }
            writer
        }
    });
    let taken = settled(|| sent.load(std::sync::atomic::Ordering::SeqCst)).await;
    assert!(taken < KERNEL_BUFFERS, "{taken} bytes were taken for nobody");
    gate.open();
    let _writer = soon("the upload", sending).await.expect("no panic");
    let mut answer = [0; 12];
    soon("an answer", reader.read_exact(&mut answer)).await.expect("no error");
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(origin.read_bytes(), TOTAL as u64);
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let origin = Origin::start(|_| Reply::ok("")).await;
    let mut options = Options::to(&origin.url());
    options.body_limit_bytes = 10;
    let proxy = options.start().await;
    for (request, status) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", 200),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n0123456789x", 413),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n",
            413,
        ),
    ] {
        let answer = ask(proxy.addr(), request).await.expect("an answer");
        assert_eq!(answer.status, status, "{request:?}");
    }
    assert_eq!(origin.received().len(), 1);
}

#[tokio::test]
async fn a_client_that_stalls_within_its_body_is_a_408() {
    let origin = Origin::start(|_| Reply::ok("")).await;
    let mut options = Options::to(&origin.url());
    options.body_idle_timeout = short();
    let proxy = options.start().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234";
    assert_eq!(ask(proxy.addr(), request).await.expect("an answer").status, 408);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let origin = Origin::start(|request| Reply::ok(request.body.clone())).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    assert_eq!(client.bytes().await, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("ok").await;
    assert_eq!(client.answer().await.expect("an answer").text(), "ok");
    assert_eq!(origin.last().header("expect"), None);
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let origin = Origin::start_early(|_| Reply::status(403).body("no")).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome").await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (403, "no"));
    eventually("its connection is not kept", || proxy.upstream.stats().active == 0).await;
    assert_eq!(proxy.upstream.stats().idle, 0);
}

// ---- HTTP/2 ----

#[tokio::test]
async fn an_http2_client_is_served_with_many_requests_at_once() -> Result<(), Box<dyn Error>> {
    let origin = Origin::start(|request| match request.path() {
        "/post" => Reply::ok(request.body.clone()),
        "/cookies" => Reply::ok(request.header_all("cookie").join("|")),
        _ => Reply::status(200).chunks([vec![b'x'; 50_000], vec![b'y'; 50_000]]),
    })
    .await;
    let proxy = Proxy::to(&origin.url()).await;
    let stream = TcpStream::connect(proxy.addr()).await?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let answers: Vec<_> = (0..20)
        .map(|n| {
            let mut sender = sender.clone();
            let request = Request::get(format!("http://two.example/{n}"))
                .body(Full::<Bytes>::default())
                .expect("a request");
            tokio::spawn(async move {
                let response = sender.send_request(request).await.expect("an answer");
                assert_eq!(response.version(), Version::HTTP_2);
                assert_eq!(response.headers().get("transfer-encoding"), None);
                response.into_body().collect().await.expect("a body").to_bytes().len()
            })
        })
        .collect();
    for answer in answers {
        assert_eq!(soon("an answer", answer).await?, 100_000);
    }
    let last = origin.last();
    assert_eq!(last.header("host"), Some("two.example"));
    assert!(last.header("via").expect("a via").starts_with("2 ultra-perf-"));

    let mut sender = sender.clone();
    let post = Request::post("http://two.example/post").body(Full::from("hello"))?;
    let body = sender.send_request(post).await?.into_body().collect().await?.to_bytes();
    assert_eq!(body, "hello");
    let cookies = Request::get("http://two.example/cookies")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::default())?;
    let body = sender.send_request(cookies).await?.into_body().collect().await?.to_bytes();
    assert_eq!(body, "a=1; b=2");
    let twofaced =
        Request::get("http://two.example/").header("host", "other.example").body(Full::default())?;
    assert_eq!(sender.send_request(twofaced).await?.status(), StatusCode::BAD_REQUEST);
    assert_eq!(proxy.server.stats().accepted, 1);
    drop(sender);
    driving.abort();
    Ok(())
}

#[tokio::test]
async fn an_idle_http2_connection_is_told_to_go() -> Result<(), Box<dyn Error>> {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy =
        Options::to(&origin.url()).limits(|limits| limits.idle_timeout = short()).start().await;
    let stream = TcpStream::connect(proxy.addr()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = Request::get("http://two.example/").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    assert_eq!(response.into_body().collect().await?.to_bytes(), "x");
    soon("the end", driving).await??;
    Ok(())
}

// ---- Clients and their connections ----

#[tokio::test]
async fn a_head_that_trickles_in_is_given_up() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy = Options::to(&origin.url())
        .limits(|limits| limits.header_timeout = Duration::from_millis(400))
        .start()
        .await;
    // From the first byte of a connection, and from the first byte after a request.
    for first in [false, true] {
        let mut client = RawClient::connect(proxy.addr()).await;
        if first {
            client.get("/").await;
        }
        let begun = Instant::now();
        let trickle = b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ".iter().chain([&b'x'; 10_000]);
        let mut sent = 0;
        for byte in trickle {
            if !client.try_send([*byte]).await {
                break;
            }
            sent += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(sent < 10_000);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert!(begun.elapsed() < support::PATIENCE);
    }
    let mut silent = RawClient::connect(proxy.addr()).await;
    assert!(silent.rest().await.is_empty());
    eventually("none is left", || proxy.server.stats().connections == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy =
        Options::to(&origin.url()).limits(|limits| limits.idle_timeout = short()).start().await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.get("/").await;
    let begun = Instant::now();
    assert!(client.rest().await.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn a_slow_answer_is_not_an_idle_connection() {
    let origin = Origin::start(|_| {
        Reply::status(200).chunks(["a", "b"]).after(Duration::from_millis(300)).pausing(short())
    })
    .await;
    let proxy = Options::to(&origin.url())
        .limits(|limits| {
            limits.idle_timeout = Duration::from_millis(50);
            limits.header_timeout = Duration::from_millis(200);
        })
        .start()
        .await;
    assert_eq!(get(proxy.addr(), "/").await.text(), "ab");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let origin = Origin::start(|_| Reply::status(200).repeated(vec![b'x'; MIB], 64)).await;
    let proxy = Options::to(&origin.url())
        .limits(|limits| limits.write_timeout = Duration::from_millis(300))
        .start()
        .await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the request arrived", || origin.hits() == 1).await;
    eventually("it is cut", || proxy.server.stats().connections == 0).await;
    eventually("the origin is let go", || origin.open_connections() == 0).await;
}

#[tokio::test]
async fn connections_over_the_bound_wait_their_turn() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy =
        Options::to(&origin.url()).limits(|limits| limits.max_connections = 2).start().await;
    let mut first = RawClient::connect(proxy.addr()).await;
    let mut second = RawClient::connect(proxy.addr()).await;
    first.get("/").await;
    second.get("/").await;
    let mut third = RawClient::connect(proxy.addr()).await;
    third.send("GET /third HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(short()).await;
    assert_eq!(proxy.server.stats().accepted, 2);
    drop(first);
    assert_eq!(third.answer().await.expect("an answer").status, 200);
    assert_eq!(proxy.server.stats().accepted, 3);
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_request_a_500() {
    let origin = Origin::start(|_| Reply::ok("x")).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    assert_eq!(client.get("/panic").await.status, 500);
    assert_eq!(client.get("/").await.status, 200);
}

// ---- Draining ----

#[tokio::test]
async fn a_drain_lets_requests_end_and_closes_the_rest() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::ok("x").when(&gate)
    })
    .await;
    let proxy = Arc::new(Proxy::to(&origin.url()).await);
    let addr = proxy.addr();
    let mut idle = RawClient::connect(addr).await;
    let mut fresh = RawClient::connect(addr).await;
    let mut busy = RawClient::connect(addr).await;
    gate.let_through(1);
    idle.get("/").await;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.wait_for_hits(2).await;
    eventually("all are in", || proxy.server.stats().connections == 3).await;
    let draining = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { proxy.server.shutdown(support::PATIENCE).await }
    });
    assert!(idle.rest().await.is_empty());
    assert!(fresh.rest().await.is_empty());
    eventually("nobody is accepted", || std::net::TcpStream::connect(addr).is_err()).await;
    gate.open();
    let answer = busy.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(soon("the drain", draining).await.expect("no panic").aborted, 0);
}

#[tokio::test]
async fn a_drain_cuts_what_is_left_at_its_deadline_and_counts_it() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut first = RawClient::connect(proxy.addr()).await;
    let mut second = RawClient::connect(proxy.addr()).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    first.send(request).await;
    second.send(request).await;
    origin.wait_for_hits(2).await;
    let begun = Instant::now();
    let drained = soon("the drain", proxy.server.shutdown(short())).await;
    assert_eq!(drained.aborted, 2);
    assert!(begun.elapsed() >= short());
    assert!(first.rest().await.is_empty());
    assert!(second.rest().await.is_empty());
    eventually("the origin is let go", || origin.open_connections() == 0).await;
}

#[tokio::test]
async fn an_http2_client_is_drained_too() -> Result<(), Box<dyn Error>> {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Reply::ok("x").when(&gate)
    })
    .await;
    let proxy = Arc::new(Proxy::to(&origin.url()).await);
    let stream = TcpStream::connect(proxy.addr()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = Request::get("http://two.example/").body(Empty::<Bytes>::new())?;
    let answer = tokio::spawn(sender.send_request(request));
    origin.wait_for_hits(1).await;
    let draining = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { proxy.server.shutdown(support::PATIENCE).await }
    });
    eventually("nobody is accepted", || std::net::TcpStream::connect(proxy.addr()).is_err()).await;
    gate.open();
    let response = soon("an answer", answer).await??;
    assert_eq!(response.into_body().collect().await?.to_bytes(), "x");
    assert_eq!(soon("the drain", draining).await?.aborted, 0);
    // How its side of the connection ends is the client's affair.
    let _ = soon("the end", driving).await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_server_cuts_everything() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.wait_for_hits(1).await;
    drop(proxy);
    assert!(client.rest().await.is_empty());
}

// ---- Tunnels ----

const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let origin = Origin::start(|_| Reply::echo("websocket")).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send(UPGRADE).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    let received = origin.last();
    assert_eq!(received.header("upgrade"), Some("websocket"));
    assert_eq!(received.header("connection"), Some("upgrade"));
    assert_eq!(received.header("sec-websocket-key"), Some("x"));
    for message in ["one", "two"] {
        client.send(message).await;
        assert_eq!(client.bytes().await, message.as_bytes());
    }
    assert_eq!(proxy.server.stats().requests, 1);
    assert_eq!(proxy.upstream.stats().active, 1);
    drop(client);
    eventually("the origin is let go", || origin.open_connections() == 0).await;
    eventually("the places are free", || {
        proxy.upstream.stats().active == 0 && proxy.server.stats().connections == 0
    })
    .await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let origin = Origin::start(|_| Reply::status(400).body("no")).await;
    let proxy = Proxy::to(&origin.url()).await;
    let mut client = RawClient::connect(proxy.addr()).await;
    client.send(UPGRADE).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (400, "no"));
    assert_eq!(client.get("/").await.status, 400);
}

#[tokio::test]
async fn a_silent_tunnel_ends_and_a_drain_cuts_a_loud_one() {
    let origin = Origin::start(|_| Reply::echo("websocket")).await;
    let mut options = Options::to(&origin.url());
    options.tunnel_idle_timeout = Duration::from_millis(300);
    let proxy = options.start().await;
    let mut silent = RawClient::connect(proxy.addr()).await;
    silent.send(UPGRADE).await;
    assert_eq!(silent.answer().await.expect("an answer").status, 101);
    assert!(silent.rest().await.is_empty());

    let mut options = Options::to(&origin.url());
    options.tunnel_idle_timeout = Duration::from_secs(60);
    let proxy = options.start().await;
    let mut loud = RawClient::connect(proxy.addr()).await;
    loud.send(UPGRADE).await;
    assert_eq!(loud.answer().await.expect("an answer").status, 101);
    loud.send("x").await;
    assert_eq!(loud.bytes().await, b"x");
    assert_eq!(soon("the drain", proxy.server.shutdown(short())).await.aborted, 1);
    assert!(loud.rest().await.is_empty());
}
