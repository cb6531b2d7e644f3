//! One call to the origin for requests that come together, and no waiting where that cannot be.

use std::time::Duration;

use futures_util::future::join_all;

use super::*;
use crate::{
    accelerator::{Accelerated, age, outcome, request},
    support::{
        client::{Answer, RawClient},
        eventually,
        origin::{Gate, Origin},
        soon,
    },
};

/// Sends 20 requests at once and, while they are under way, does `meanwhile`.
async fn twenty(
    proxy: &Accelerated,
    target: &str,
    fields: &[(&str, &str)],
    meanwhile: impl Future<Output = ()>,
) -> Vec<Answer> {
    let all = join_all((0..20).map(|_| proxy.get_with(target, fields)));
    tokio::join!(soon("20 answers", all), meanwhile).0
}

#[tokio::test]
async fn parallel_misses_are_one_call() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |request| {
        let reply = match request.path() {
            "/chunked" => fresh("").chunks(["bo", "dy"]),
            "/empty" => fresh(""),
            _ => fresh("body"),
        };
        reply.when(&at_origin)
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for (n, target) in ["/known", "/chunked", "/empty"].into_iter().enumerate() {
        let answers = twenty(&proxy, target, &[], async {
            origin.wait_for_hits(n + 1).await;
            gate.let_through(1);
        })
        .await;
        let body = if target == "/empty" { "" } else { "body" };
        for answer in &answers {
            assert_eq!(
                (answer.status, answer.text(), answer.complete),
                (200, body, true),
                "{target}"
            );
        }
        // The others had it from the first, so for them it has an age.
        let aged = answers.iter().filter(|answer| age(answer).is_some()).count();
        assert_eq!((origin.hits(), aged), (n + 1, 19), "{target}");
    }
    assert_eq!(proxy.figure("/requests/origin_calls").await, 3);
    assert!(proxy.figure("/requests/coalesced").await > 0);
    assert_eq!(proxy.figure("/origin/flights").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_race_for_the_same_urls_fetch_each_of_them_once() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::to(&origin).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = proxy.client().await;
        clients.spawn(async move {
            for n in 0..300 {
                assert_eq!(client.get(&format!("/{n}")).await.text(), "body");
            }
        });
    }
    soon("all answers", clients.join_all()).await;
    assert_eq!(origin.hits(), 300);
}

#[tokio::test]
async fn those_who_wait_read_along_while_the_body_comes() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |_| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 8\r\n\r\n";
        Reply::raw(format!("{head}four")).then_send("more", &at_origin)
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.client().await;
        client.send(request("GET", "/", "test", &[], "")).await;
        clients.push(client);
    }
    let mut got = vec![Vec::new(); 5];
    for (client, got) in clients.iter_mut().zip(&mut got) {
        while !got.ends_with(b"\r\n\r\nfour") {
            let bytes = client.bytes().await;
            assert!(!bytes.is_empty(), "the connection ended");
            got.extend(bytes);
        }
    }
    // One that comes in the middle begins at the beginning.
    let mut late = proxy.client().await;
    late.send(request("GET", "/", "test", &[], "")).await;
    let first = soon("the first bytes", late.bytes()).await;
    assert!(String::from_utf8_lossy(&first).contains("collapsed"), "{first:?}");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.bytes().await, b"more");
    }
    assert_eq!(origin.hits(), 1);
}

#[tokio::test]
async fn requests_for_an_answer_that_cannot_be_shared_never_queue() {
    for (what, control) in
        [("private", "private"), ("no-cache", "no-cache"), ("max-age", "max-age=0")]
    {
        let gate = Gate::new();
        let at_origin = gate.clone();
        let origin = Origin::start(move |request| {
            let reply = match request.header("if-none-match") {
                Some(_) => Reply::status(304),
                None => Reply::ok("body"),
            };
            reply.header("cache-control", control).header("etag", "\"1\"").when(&at_origin)
        })
        .await;
        let proxy = Accelerated::to(&origin).await;
        // The first round finds out, and after that everybody is at the origin at once.
        let answers = twenty(&proxy, "/", &[], async {
            origin.wait_for_hits(1).await;
            gate.let_through(1);
            origin.wait_for_hits(20).await;
            gate.let_through(19);
        })
        .await;
        assert!(answers.iter().all(|answer| answer.text() == "body"), "{what}");
        // From the second round on nobody waits for anybody.
        for round in 2..=3 {
            twenty(&proxy, "/", &[], async {
                origin.wait_for_hits(20 * round).await;
                gate.let_through(20);
            })
            .await;
        }
        assert_eq!(origin.hits(), 60, "{what}");
    }
}

#[tokio::test]
async fn an_uncacheable_url_takes_two_delays_once_and_one_from_then_on() {
    const DELAY: Duration = Duration::from_millis(300);
    let origin = Origin::start(|_| Reply::ok("body").after(DELAY)).await;
    let proxy = Accelerated::to(&origin).await;
    // One after the other they would take 20 delays; the slack is for a busy machine.
    for delays in [2, 1] {
        let begun = std::time::Instant::now();
        twenty(&proxy, "/", &[], async {}).await;
        let took = begun.elapsed();
        assert!(took >= DELAY * delays && took < DELAY * 12, "{delays}: {took:?}");
    }
}

#[tokio::test]
async fn credentials_do_not_stop_the_others_from_sharing() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |request| {
        held(fresh("body"), request.header("authorization").is_none().then_some(&at_origin))
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get_with("/", &[("Authorization", "Basic eDp5")]).await;
    twenty(&proxy, "/", &[], async {
        origin.wait_for_hits(2).await;
        gate.open();
    })
    .await;
    assert_eq!(origin.hits(), 2);
}

#[tokio::test]
async fn an_error_does_not_end_the_sharing() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(first_then(
        |request| match request.path() {
            "/500" => Reply::status(500),
            "/broken" => fresh("half").claiming(8),
            _ => Reply::raw("nonsense\r\n\r\n"),
        },
        move |_| fresh("body").when(&at_origin),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/500", "/broken", "/nonsense"] {
        proxy.get(target).await;
        let before = origin.hits();
        twenty(&proxy, target, &[], async {
            origin.wait_for_hits(before + 1).await;
            gate.let_through(1);
        })
        .await;
        assert_eq!(origin.hits(), before + 1, "{target}");
    }
}

#[tokio::test]
async fn a_failure_is_everybodys_and_is_not_kept() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin =
        Origin::start(first_then(move |_| Reply::close().when(&at_origin), |_| fresh("body")))
            .await;
    let proxy = Accelerated::to(&origin).await;
    let answers = twenty(&proxy, "/", &[], async {
        origin.wait_for_hits(1).await;
        // Time for the others to join; who comes later is answered well.
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.open();
    })
    .await;
    assert!(answers.iter().any(|answer| answer.status == 502));
    assert!(answers.iter().all(|answer| matches!(answer.status, 502 | 200)));
    assert!(origin.hits() <= 2);
    assert_eq!(proxy.get("/").await.text(), "body");
}

#[tokio::test]
async fn when_the_first_client_leaves_the_others_are_served() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |_| fresh("body").when(&at_origin)).await;
    let proxy = Accelerated::to(&origin).await;
    let mut first = proxy.client().await;
    first.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    let answers = twenty(&proxy, "/", &[], async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(first);
        // One of them has taken over.
        origin.wait_for_hits(2).await;
        gate.open();
    })
    .await;
    assert!(answers.iter().all(|answer| answer.text() == "body"));
    assert_eq!(origin.hits(), 2);
}

#[tokio::test]
async fn a_body_whose_first_client_leaves_is_stored_all_the_same() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin =
        Origin::start(move |_| fresh("").chunks(["fo", "ur"]).pieces_when(&at_origin)).await;
    let proxy = Accelerated::to(&origin).await;
    let mut first = proxy.client().await;
    first.send(request("GET", "/", "test", &[], "")).await;
    gate.let_through(1);
    assert!(!first.bytes().await.is_empty());
    drop(first);
    let answers = twenty(&proxy, "/", &[], async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.open();
    })
    .await;
    assert!(answers.iter().all(|answer| answer.text() == "four"));
    assert_eq!(origin.hits(), 1);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_time_for_it() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin =
        Origin::start(first_then(move |_| fresh("slow").when(&at_origin), |_| fresh("quick")))
            .await;
    let keys = [("response_cache.coalesce_timeout", "100ms")];
    let proxy = Accelerated::with(&origin.url(), &keys).await;
    let mut first = proxy.client().await;
    first.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    assert_eq!(proxy.get("/").await.text(), "quick");
    gate.open();
    assert_eq!(first.answer().await.expect("an answer").text(), "slow");
}

#[tokio::test]
async fn a_forced_reload_does_not_queue_behind_others() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |_| fresh("body").when(&at_origin)).await;
    let proxy = Accelerated::to(&origin).await;
    twenty(&proxy, "/", &[("Cache-Control", "no-cache")], async {
        origin.wait_for_hits(1).await;
        gate.let_through(1);
        origin.wait_for_hits(20).await;
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn only_if_cached_waits_for_nobody() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |_| fresh("body").when(&at_origin)).await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    let mut first: RawClient = proxy.client().await;
    first.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    let answer = proxy.get_with("/", &[("Cache-Control", "only-if-cached")]).await;
    assert_eq!(answer.status, 504);
    gate.open();
    assert_eq!(outcome(&first.answer().await.expect("an answer")), "MISS");
    drop(first);
    eventually("the end of the call", || origin.hits() == 1).await;
}
