//! Clients of other services, against an origin that the tests script.

mod support;

use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use support::{
    eventually,
    origin::{Gate, Origin, Reply},
    soon, until,
};
use tower::ServiceExt as _;
use ultra_perf::UltraPerf;
use ultra_perf::monitor::{Clock as _, SystemClock};
use ultra_perf::resilience::Deadline;
use ultra_perf_http::{HttpClient, HttpClientError, HttpClientOptions, HttpClients as _};

/// A handle with these keys of the configuration.
async fn perf(keys: &[(&str, &str)]) -> UltraPerf {
    let quiet = [("cache.disk.enabled", "false"), ("monitor.history.enabled", "false")];
    let settings = quiet.iter().chain(keys);
    let builder = settings.fold(UltraPerf::builder(), |to, (key, value)| to.set(*key, *value));
    builder.build().await.expect("a handle")
}

/// The status and the text of an answer.
async fn text(client: &HttpClient, url: &str) -> Result<(StatusCode, String), HttpClientError> {
    let answer = soon("an answer", client.get(url)).await?;
    let status = answer.status();
    let bytes = soon("the body", answer.into_body().bytes()).await?;
    Ok((status, String::from_utf8(bytes.to_vec()).expect("text")))
}

/// What the registry has counted for a client.
fn counted(perf: &UltraPerf, name: &str, labels: &[(&str, &str)]) -> f64 {
    let snapshot = perf.registry().read(SystemClock::new().now());
    snapshot.number(name, labels).unwrap_or(0.0)
}

#[tokio::test]
async fn a_name_is_one_client_whose_connection_is_used_again() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|request| Reply::ok(request.path().as_bytes().to_vec())).await;
    for n in 0..5 {
        let client = perf.http_client("files");
        let url = format!("{}/{n}", origin.url());
        assert_eq!(
            text(&client, &url).await.expect("an answer"),
            (StatusCode::OK, format!("/{n}"))
        );
    }
    assert_eq!((origin.hits(), origin.connections()), (5, 1));
    let ended = [("client", "files"), ("status", "2xx")];
    assert_eq!(counted(&perf, "http_client_requests_total", &ended), 5.0);
}

#[tokio::test]
async fn a_failure_is_repeated_where_that_is_the_same_as_once() {
    let perf = perf(&[]).await;
    let first = std::sync::atomic::AtomicBool::new(true);
    let origin = Origin::start(move |request| {
        let first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        match (request.path(), first) {
            ("/closes", true) => Reply::close(),
            ("/fails", true) => Reply::status(503),
            _ => Reply::ok("well"),
        }
    })
    .await;
    let client = perf.http_client("flaky");
    let answer = text(&client, &format!("{}/closes", origin.url())).await.expect("an answer");
    assert_eq!((answer.1.as_str(), origin.hits()), ("well", 2));
    assert_eq!(counted(&perf, "http_client_retries_total", &[("client", "flaky")]), 1.0);
}

#[tokio::test]
async fn a_refusal_is_repeated_and_the_last_one_is_the_answer() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::status(503)).await;
    let options = HttpClientOptions { attempts: 2, ..HttpClientOptions::default() };
    let client = perf.http_client_with("refused", options);
    let (status, _) = text(&client, &origin.url()).await.expect("an answer");
    assert_eq!((status, origin.hits()), (StatusCode::SERVICE_UNAVAILABLE, 2));
    let put = Request::put(origin.url()).body(Full::from("short")).expect("a request");
    assert_eq!(client.request(put).await.expect("an answer").status(), 503);
    assert_eq!(origin.hits(), 4);
    assert_eq!(origin.last().body, b"short");
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::close()).await;
    let post = Request::post(origin.url()).body(Full::from("once")).expect("a request");
    let error = perf.http_client("orders").request(post).await.expect_err("it broke off");
    assert!(matches!(error, HttpClientError::Broken { .. }) && !error.is_unsent(), "{error:?}");
    assert_eq!(origin.hits(), 1);
}

#[tokio::test]
async fn a_host_that_is_not_there_was_sent_nothing() {
    let perf = perf(&[]).await;
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    drop(listener);
    let post = Request::post(&url).body(Full::from("data")).expect("a request");
    let error = perf.http_client("gone").request(post).await.expect_err("nobody listens");
    assert!(matches!(error, HttpClientError::Connect { .. }) && error.is_unsent(), "{error:?}");
    let retries = counted(&perf, "http_client_retries_total", &[("client", "gone")]);
    assert_eq!(retries, 2.0, "even a POST may be tried again");
    for url in ["/relative", "ftp://host/", "no url at all"] {
        let error = perf.http_client("gone").get(url).await.expect_err("it is none");
        assert!(matches!(error, HttpClientError::Url { .. }), "{url}: {error:?}");
    }
}

#[tokio::test]
async fn a_host_that_fails_is_left_alone_until_it_is_well() {
    let keys = [
        ("balancer.breaker.failures", "3"),
        ("balancer.breaker.open_time", "200ms"),
        ("balancer.breaker.open_time_max", "200ms"),
    ];
    let perf = perf(&keys).await;
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_well = std::sync::Arc::clone(&well);
    let origin = Origin::start(move |_| match is_well.load(std::sync::atomic::Ordering::SeqCst) {
        true => Reply::ok("well"),
        false => Reply::status(500),
    })
    .await;
    let options = HttpClientOptions { attempts: 1, ..HttpClientOptions::default() };
    let client = perf.http_client_with("billing", options);
    for _ in 0..3 {
        assert_eq!(text(&client, &origin.url()).await.expect("an answer").0, 500);
    }
    let error = text(&client, &origin.url()).await.expect_err("it is open");
    assert!(error.retry_after().is_some_and(|it| it <= Duration::from_millis(200)), "{error:?}");
    assert_eq!(origin.hits(), 3, "it was not called");
    let refused = [("client", "billing"), ("status", "refused")];
    assert_eq!(counted(&perf, "http_client_requests_total", &refused), 1.0);
    well.store(true, std::sync::atomic::Ordering::SeqCst);
    until("the recovery", async || text(&client, &origin.url()).await.is_ok()).await;
    assert_eq!(text(&client, &origin.url()).await.expect("an answer").1, "well");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_waited_for_so_long() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::hang()).await;
    let options = HttpClientOptions {
        attempt_timeout: Duration::from_millis(30),
        attempts: 1,
        ..HttpClientOptions::default()
    };
    let client = perf.http_client_with("slow", options);
    let error = text(&client, &origin.url()).await.expect_err("no answer");
    assert!(matches!(error, HttpClientError::TimedOut { .. }), "{error:?}");
    eventually("the connection's end", || origin.open_connections() == 0).await;
    let ended = [("client", "slow"), ("status", "timeout")];
    assert_eq!(counted(&perf, "http_client_requests_total", &ended), 1.0);

    // The deadline of whoever asks counts where it is earlier.
    let client = perf.http_client("patient");
    let deadline = Deadline::after(Duration::from_millis(30), Instant::now());
    let error = deadline.scope(text(&client, &origin.url())).await.expect_err("no answer");
    assert!(matches!(error, HttpClientError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_dropped_request_gives_its_place_and_its_connection_back() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|request| match request.path() {
        "/hang" => Reply::hang(),
        _ => Reply::ok("well"),
    })
    .await;
    let options = HttpClientOptions { requests_max: 1, ..HttpClientOptions::default() };
    let client = perf.http_client_with("one", options);
    let hanging = tokio::spawn({
        let (client, url) = (client.clone(), format!("{}/hang", origin.url()));
        async move { client.get(&url).await.map(drop) }
    });
    origin.wait_for_hits(1).await;
    hanging.abort();
    let answer = text(&client, &format!("{}/well", origin.url())).await;
    assert_eq!(answer.expect("the place is free").1, "well");
    eventually("the connection's end", || origin.open_connections() <= 1).await;
    let ended = [("client", "one"), ("status", "cancelled")];
    assert_eq!(counted(&perf, "http_client_requests_total", &ended), 1.0);
}

#[tokio::test]
async fn an_answer_keeps_its_place_until_it_is_read_or_dropped() {
    let perf = perf(&[]).await;
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |request| match request.path() {
        "/pieces" => Reply::ok("").chunks(["a", "b"]).pieces_when(&held),
        _ => Reply::ok("well"),
    })
    .await;
    let options = HttpClientOptions {
        requests_max: 1,
        queue_timeout: Duration::from_millis(20),
        ..HttpClientOptions::default()
    };
    let client = perf.http_client_with("one", options);
    let begun = soon("the head", client.get(&format!("{}/pieces", origin.url()))).await;
    let body = begun.expect("an answer").into_body();
    let error = text(&client, &origin.url()).await.expect_err("the place is taken");
    assert!(matches!(error, HttpClientError::Busy { .. }) && error.is_unsent(), "{error:?}");
    gate.open();
    assert_eq!(soon("the body", body.bytes()).await.expect("a whole body"), "ab");
    assert_eq!(text(&client, &origin.url()).await.expect("the place is free").1, "well");
}

#[tokio::test]
async fn a_body_that_is_too_long_ends_in_an_error() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|request| match request.path() {
        "/announced" => Reply::ok(vec![b'x'; 2_000]),
        _ => Reply::ok("").chunks([vec![b'x'; 600], vec![b'x'; 600]]),
    })
    .await;
    let options = HttpClientOptions { body_max_bytes: 1_000, ..HttpClientOptions::default() };
    let client = perf.http_client_with("bounded", options);
    for path in ["/announced", "/chunked"] {
        let error = text(&client, &format!("{}{path}", origin.url())).await.expect_err("too long");
        let is_right = matches!(error, HttpClientError::BodyTooLarge { limit_bytes: 1_000 });
        assert!(is_right, "{path}: {error:?}");
    }
}

#[tokio::test]
async fn a_client_is_a_service_and_reads_json() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::ok(r#"{"name": "Ada"}"#)).await;
    let client = perf.http_client("json");
    let request = Request::get(origin.url()).body(Full::default()).expect("a request");
    let answer = client.clone().oneshot(request).await.expect("an answer");
    let json: serde_json::Value = answer.into_body().json().await.expect("JSON");
    assert_eq!(json["name"], "Ada");
    let request = Request::get(origin.url()).body(Full::default()).expect("a request");
    let answer = client.oneshot(request).await.expect("an answer");
    let error = answer.into_body().json::<Vec<u8>>().await.expect_err("it is no list");
    assert!(matches!(error, HttpClientError::Json(_)), "{error:?}");
    let request = Request::get(origin.url()).body(Full::default()).expect("a request");
    let collected = perf.http_client("json").request(request).await.expect("an answer");
    assert_eq!(collected.into_body().collect().await.expect("a body").to_bytes().len(), 15);
}

#[tokio::test]
async fn a_body_of_the_program_that_breaks_off_is_no_failure_of_the_host() {
    let perf = perf(&[("balancer.breaker.failures", "2")]).await;
    let origin = Origin::start(|_| Reply::ok("well")).await;
    let client = perf.http_client("uploads");
    for _ in 0..4 {
        let body = [Ok(Frame::data(Bytes::from("begun"))), Err(io::Error::other("no such file"))];
        let post = Request::post(origin.url()).body(StreamBody::new(stream::iter(body)));
        let sent = soon("an end", client.request(post.expect("a request"))).await;
        let error = sent.expect_err("the body broke off");
        let HttpClientError::RequestBody(source) = &error else { panic!("{error:?}") };
        assert_eq!((source.to_string().as_str(), error.is_unsent()), ("no such file", false));
    }
    assert_eq!(text(&client, &origin.url()).await.expect("the breaker is closed").1, "well");
    let ended = [("client", "uploads"), ("status", "error")];
    assert_eq!(counted(&perf, "http_client_requests_total", &ended), 4.0);
}

#[tokio::test]
async fn a_url_that_is_not_called_is_told_without_what_is_secret_in_it() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::ok("well")).await;
    let client = perf.http_client("files");
    let told = async |url: &str| {
        let error = soon("an end", client.get(url)).await.expect_err("it is not called");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("ann") && !shown.contains("secret"), "{shown}");
        assert!(error.is_unsent(), "{error:?}");
        error.to_string()
    };
    let host = origin.url().replace("http://", "");
    for user in ["ann:secret", "ann", ":secret"] {
        assert_eq!(
            told(&format!("http://{user}@{host}/a")).await,
            format!(
                "the URL for {host} carries a user name or a password; send them in the field \
                 Authorization"
            )
        );
    }
    for (url, shown) in [
        ("ftp://ann:secret@shop.example/", "ftp://***@shop.example/"),
        ("http://ann:se cret@shop.example/", "http://***@shop.example/"),
        ("http://ann:secret/@shop.example /", "http://***@shop.example /"),
        ("ann:secret@shop.example", "***@shop.example"),
        ("/relative", "/relative"),
    ] {
        let expected = format!("\"{shown}\" is not an absolute URL of http or https");
        assert_eq!(told(url).await, expected);
    }
    assert_eq!(origin.hits(), 0);
    assert_eq!(text(&client, &format!("http://{host}/a@b")).await.expect("an answer").1, "well");
}

/// Runs as many threads at once, and returns what each came to.
fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let one = |number| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(number)
            })
        };
        let running: Vec<_> = (0..threads).map(one).collect();
        running.into_iter().map(|it| it.join().expect("a thread ends")).collect()
    })
}

#[tokio::test]
async fn those_who_ask_for_a_name_at_once_get_one_client() {
    let perf = perf(&[]).await;
    let origin = Origin::start(|_| Reply::ok("well")).await;
    for round in 0..20 {
        for client in at_once(8, |_| perf.http_client(&format!("files-{round}"))) {
            assert_eq!(text(&client, &origin.url()).await.expect("an answer").1, "well");
        }
        assert_eq!(origin.connections(), round + 1, "eight clients are one pool");
    }
}

#[tokio::test]
async fn a_client_with_options_is_not_replaced_by_one_without() {
    let perf = perf(&[]).await;
    let options = HttpClientOptions { attempts: 7, ..HttpClientOptions::default() };
    for round in 0..50 {
        let name = format!("files-{round}");
        at_once(4, |number| match number {
            0 => perf.http_client_with(&name, options),
            _ => perf.http_client(&name),
        });
        let kept = format!("{:?}", perf.http_client(&name));
        assert!(kept.contains("attempts: 7,"), "round {round}: {kept}");
    }
}
