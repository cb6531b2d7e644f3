//! Start, shutdown, and what a restart finds on disk.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::*;
use crate::{
    accelerator::{Accelerated, age, outcome, request},
    support::{
        eventually,
        origin::{Gate, Origin},
        soon, until,
    },
};

#[tokio::test]
async fn a_restart_finds_on_disk_what_was_stored() {
    let origin = Origin::start(|request| {
        let body = request.header("accept-language").unwrap_or("none").to_owned();
        let reply = Reply::ok(format!("{} {body}", request.path()))
            .header("cache-control", "max-age=600")
            .header("age", "100")
            .header("etag", "\"v1\"")
            .header("x-kept", "as it was");
        if request.path() == "/varied" { reply.header("vary", "accept-language") } else { reply }
    })
    .await;
    let directory = tempfile::tempdir().expect("a directory");
    let cases = [
        ("/plain", &[][..]),
        ("/varied", &[("Accept-Language", "de")]),
        ("/varied", &[("Accept-Language", "en")]),
        ("/purged", &[]),
    ];
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    let mut bodies = Vec::new();
    for (target, fields) in cases {
        let answer = proxy.get_with(target, fields).await;
        assert_eq!(outcome(&answer), "MISS", "{target}");
        bodies.push(answer.body);
    }
    proxy.purge("/purged").await;
    assert_eq!(proxy.shutdown(Duration::from_secs(10)).await.aborted, 0);

    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    let hits = origin.hits();
    for ((target, fields), body) in cases.iter().zip(&bodies).take(3) {
        // From disk first, from memory then.
        for _ in 0..2 {
            let answer = proxy.get_with(target, fields).await;
            assert_eq!((outcome(&answer), &answer.body), ("HIT", body), "{target}");
            assert!((100..600).contains(&age(&answer).expect("an age")), "{answer:?}");
            assert_eq!(answer.header("x-kept"), Some("as it was"));
        }
    }
    let head = proxy.send("HEAD", "/plain", &[("If-None-Match", "\"v1\"")], "").await;
    assert_eq!((head.status, outcome(&head)), (304, "HIT"));
    assert_eq!(origin.hits(), hits);
    assert_eq!(outcome(&proxy.get("/purged").await), "MISS");
    proxy.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_restart_finds_encrypted_responses_with_their_key_and_nothing_without() {
    let origin =
        Origin::start(|request| fresh(format!("the secret body of {}", request.path()))).await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path in UTF-8").to_owned();
    let start = async |keys: &[(&str, &str)]| {
        let disk = [("cache.disk.enabled", "true"), ("cache.disk.path", path.as_str())];
        Accelerated::with(&origin.url(), &[&disk[..], keys].concat()).await
    };
    let own = format!("7=hex:{}", "a7".repeat(32));
    let rotated = format!("{own},8=hex:{}", "b8".repeat(32));
    let other = format!("7=hex:{}", "c9".repeat(32));
    let own = [("cache.encryption.keys", own.as_str()), ("cache.compression_method", "lz4")];
    let rotated = [("cache.encryption.keys", rotated.as_str()), ("cache.encryption.active", "8")];
    let other = [("cache.encryption.keys", other.as_str())];

    let proxy = start(&own).await;
    for target in ["/a", "/b", "/c"] {
        assert_eq!(outcome(&proxy.get(target).await), "MISS");
    }
    proxy.shutdown(Duration::from_secs(10)).await;
    let files = walk(directory.path());
    assert!(!files.is_empty());
    let shows = |what: &[u8]| files.iter().any(|it| it.windows(what.len()).any(|it| it == what));
    assert!(!shows(b"the secret body") && !shows(b"max-age"), "the disk has it in clear");

    let cases = [(&own[..], "/a", "HIT"), (&rotated, "/b", "HIT"), (&[], "/c", "MISS")];
    for (keys, target, expected) in cases.into_iter().chain([(&other[..], "/a", "MISS")]) {
        let proxy = start(keys).await;
        let answer = proxy.get(target).await;
        assert_eq!((outcome(&answer), answer.status), (expected, 200), "{target}");
        assert_eq!(answer.text(), format!("the secret body of {target}"));
        proxy.shutdown(Duration::from_secs(10)).await;
    }
}

/// The contents of every file under a directory.
fn walk(directory: &std::path::Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => walk(&path),
            false => vec![std::fs::read(&path).expect("a file")],
        })
        .collect()
}

#[tokio::test]
async fn after_a_restart_parallel_requests_share_the_look_and_the_call() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        let reply = held(fresh(language.clone()), (language == "new").then_some(&at_origin));
        reply.header("vary", "accept-language")
    })
    .await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    proxy.get_with("/", &[("Accept-Language", "old")]).await;
    proxy.shutdown(Duration::from_secs(10)).await;

    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    let twenty = |language| {
        let proxy = &proxy;
        join_all((0..20).map(move |_| async move {
            proxy.get_with("/", &[("Accept-Language", language)]).await
        }))
    };
    // Memory knows of no variants yet.
    let (answers, ()) = tokio::join!(soon("the answers", twenty("new")), async {
        origin.wait_for_hits(2).await;
        gate.open();
    });
    assert!(answers.iter().all(|answer| answer.text() == "new"));
    let answers = twenty("old").await;
    assert!(answers.iter().all(|answer| answer.text() == "old" && outcome(answer) == "HIT"));
    assert_eq!(origin.hits(), 2);
}

#[tokio::test]
async fn requests_that_are_under_way_end_well_before_a_shutdown() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |_| fresh("body").when(&at_origin)).await;
    let proxy = Accelerated::to(&origin).await;
    let addr = proxy.addr();
    let mut clients = Vec::new();
    for target in ["/a", "/b"] {
        let mut client = proxy.client().await;
        client.send(request("GET", target, "test", &[], "")).await;
        clients.push(client);
    }
    origin.wait_for_hits(2).await;
    let stopping = tokio::spawn(proxy.shutdown(Duration::from_secs(30)));
    let refused = async || TcpStream::connect(addr).await.is_err();
    until("the refusal of new connections", refused).await;
    gate.open();
    for client in &mut clients {
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.text(), answer.header("connection")), ("body", Some("close")));
    }
    assert_eq!(soon("the shutdown", stopping).await.expect("no panic").aborted, 0);
}

#[tokio::test]
async fn a_shutdown_cuts_off_at_its_deadline_what_does_not_end() {
    let origin = Origin::start(|_| Reply::hang()).await;
    let proxy = Accelerated::to(&origin).await;
    let mut client = proxy.client().await;
    client.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    assert_eq!(proxy.shutdown(Duration::from_millis(100)).await.aborted, 1);
    assert!(client.answer().await.is_none());
}

#[tokio::test]
async fn a_dropped_accelerator_stops_its_refreshes_and_bodies() {
    let origin = Origin::start(first_then(
        |request| match request.path() {
            "/stale" => aged("old", ", stale-while-revalidate=600"),
            _ => fresh("").chunks(["x"; 10_000]).pausing(Duration::from_millis(20)),
        },
        |_| Reply::hang(),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/stale").await;
    assert_eq!(outcome(&proxy.get("/stale").await), "STALE");
    let mut client = proxy.client().await;
    client.send(request("GET", "/body", "test", &[], "")).await;
    // Its head has come, so that a task reads the body.
    assert!(!client.bytes().await.is_empty());
    drop(client);
    origin.wait_for_hits(3).await;
    assert!(origin.open_connections() > 0);
    drop(proxy);
    eventually("the end of all connections", || origin.open_connections() == 0).await;
}

#[tokio::test]
async fn an_origin_that_comes_back_is_used_again() {
    let origin = Origin::start(|_| fresh("body")).await;
    let addr = origin.addr();
    let proxy = Accelerated::to(&origin).await;
    drop(origin);
    let answer = proxy.get("/").await;
    assert_eq!((answer.status, outcome(&answer)), (502, "MISS"));
    assert_eq!(proxy.figure("/requests/origin_failures").await, 1);

    let listener = tokio::net::TcpListener::bind(addr).await.expect("the same port");
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a byte"));
        }
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback";
        stream.write_all(reply).await.expect("it is read");
    });
    assert_eq!(proxy.get("/").await.text(), "back");
    serving.await.expect("no panic");
}
