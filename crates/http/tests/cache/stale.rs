//! Stale answers: validated, served while they are refreshed, and served when the origin fails.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome, send},
    support::{
        eventually,
        origin::{Gate, Origin},
    },
};

#[tokio::test]
async fn a_stale_answer_that_is_still_current_costs_no_body() {
    let origin = Origin::start(first_then(
        |_| aged("body", "").header("etag", "\"v1\"").header("x-version", "1"),
        |request| {
            assert_eq!(request.header("if-none-match"), Some("\"v1\""));
            Reply::status(304)
                .header("cache-control", "max-age=60")
                .header("etag", "\"v1\"")
                .header("x-version", "2")
        },
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    // Validated, then fresh again; the client's own condition is for the cache.
    for (fields, status, hits) in
        [(&[][..], 200, 2), (&[], 200, 2), (&[("If-None-Match", "\"v1\"")], 304, 2)]
    {
        let answer = proxy.get_with("/", fields).await;
        assert_eq!((answer.status, outcome(&answer)), (status, "HIT"));
        if status == 200 {
            assert_eq!((answer.text(), answer.header("x-version")), ("body", Some("2")));
        }
        assert_eq!(origin.hits(), hits);
    }
    assert_eq!(proxy.figure("/requests/origin_calls").await, 2);
}

#[tokio::test]
async fn a_stale_answer_that_is_out_of_date_is_replaced() {
    for (name, second) in [
        ("a new version", fresh as fn(&'static str) -> Reply),
        // A 304 for a version that is not stored is followed by a request without conditions.
        ("a wrong 304", |_| Reply::status(304).header("etag", "\"v9\"")),
    ] {
        let origin = Origin::start(move |request| match request.index {
            0 => aged("old", "").header("etag", "\"v1\""),
            1 => second("new"),
            _ => fresh("new"),
        })
        .await;
        let proxy = Accelerated::to(&origin).await;
        assert_eq!(proxy.get("/").await.text(), "old");
        for expected in ["MISS", "HIT"] {
            let answer = proxy.get("/").await;
            assert_eq!((answer.text(), outcome(&answer)), ("new", expected), "{name}");
        }
    }
}

#[tokio::test]
async fn a_condition_of_a_client_is_judged_after_the_validation() {
    let origin = Origin::start(first_then(
        |_| aged("old", "").header("etag", "\"v1\""),
        |_| fresh("new").header("etag", "\"v2\""),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    let answer = proxy.get_with("/", &[("If-None-Match", "\"v1\"")]).await;
    assert_eq!((answer.status, answer.text()), (200, "new"));
}

#[tokio::test]
async fn an_answer_that_forbids_storing_takes_the_stale_one_along() {
    let origin = Origin::start(first_then(
        |_| aged("old", ", stale-while-revalidate=600"),
        |_| Reply::ok("secret").header("cache-control", "no-store"),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    assert_eq!(outcome(&proxy.get("/").await), "STALE");
    origin.wait_for_hits(2).await;
    eventually("the end of the refresh", || origin.hits() == 2).await;
    let last = async {
        loop {
            let answer = proxy.get("/").await;
            if answer.text() == "secret" {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(outcome(&crate::support::soon("the new answer", last).await), "MISS");
}

#[tokio::test]
async fn a_refresh_delays_nobody_and_there_is_only_one() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(first_then(
        |_| aged("old", ", stale-while-revalidate=600"),
        move |_| fresh("new").when(&at_origin),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    let mut client = proxy.client().await;
    assert_eq!(outcome(&client.get("/").await), "MISS");
    // All on one connection, while the refresh hangs.
    for _ in 0..5 {
        let answer = client.get("/").await;
        assert_eq!((answer.text(), outcome(&answer)), ("old", "STALE"));
        let status = answer.header("cache-status").expect("a Cache-Status");
        assert!(status.starts_with("ultra-perf; hit; ttl=-"), "{status}");
        origin.wait_for_hits(2).await;
    }
    assert_eq!(outcome(&send(&mut client, "HEAD", "/", &[], "").await), "STALE");
    assert_eq!((origin.hits(), proxy.figure("/requests/background_refreshes").await), (2, 1));
    gate.open();
    let fresh_at_last = async {
        loop {
            let answer = client.get("/").await;
            if outcome(&answer) == "HIT" {
                return answer;
            }
        }
    };
    let answer = crate::support::soon("the fresh answer", fresh_at_last).await;
    assert_eq!(answer.text(), "new");
    assert_eq!(origin.hits(), 2);
}

#[tokio::test]
async fn a_refresh_does_not_carry_the_clients_conditions() {
    let origin = Origin::start(first_then(
        |_| aged("old", ", stale-while-revalidate=600").header("etag", "\"v1\""),
        |_| fresh("new").header("etag", "\"v2\""),
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    let fields =
        [("If-None-Match", "\"v1\""), ("Cache-Control", "max-stale=9999"), ("Range", "bytes=0-1")];
    let answer = proxy.get_with("/", &fields).await;
    assert_eq!((answer.status, outcome(&answer)), (304, "STALE"));
    origin.wait_for_hits(2).await;
    eventually("the request", || origin.received().len() == 2).await;
    let refresh = origin.last();
    assert_eq!(refresh.header("if-none-match"), Some("\"v1\""));
    assert_eq!((refresh.header("cache-control"), refresh.header("range")), (None, None));
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_an_origin_that_fails() {
    for how in ["500", "503", "closed", "silent", "down"] {
        let mut origin = Some(
            Origin::start(first_then(
                |request| {
                    let control =
                        if request.path() == "/strict" { ", must-revalidate" } else { "" };
                    aged("old", &format!(", stale-if-error=600{control}")).header("etag", "\"1\"")
                },
                move |_| match how {
                    "500" => Reply::status(500).body("oh"),
                    "503" => Reply::status(503).body("oh"),
                    "closed" => Reply::close(),
                    _ => Reply::hang(),
                },
            ))
            .await,
        );
        let url = origin.as_ref().expect("it runs").url();
        let proxy = Accelerated::with(&url, &[("server.response_timeout", "200ms")]).await;
        for target in ["/", "/strict"] {
            assert_eq!(outcome(&proxy.get(target).await), "MISS");
        }
        if how == "down" {
            origin = None;
        }
        for (method, fields) in
            [("GET", &[][..]), ("HEAD", &[]), ("GET", &[("Range", "bytes=0-1")])]
        {
            let answer = proxy.send(method, "/", fields, "").await;
            assert_eq!((answer.status, outcome(&answer)), (200, "STALE"), "{how} {method}");
            let status = answer.header("cache-status").expect("a Cache-Status");
            assert!(status.contains("fwd=stale"), "{status}");
            assert!(status.ends_with("detail=stale-if-error"), "{status}");
            assert!(crate::accelerator::age(&answer).is_some_and(|age| age >= 100), "{how}");
            if method == "GET" {
                assert_eq!(answer.text(), "old", "{how}");
            }
        }
        let strict = proxy.get("/strict").await;
        let status = match how {
            "500" => 500,
            "503" => 503,
            "closed" | "down" => 502,
            _ => 504,
        };
        assert_eq!((strict.status, outcome(&strict)), (status, "MISS"), "{how}");
        drop(origin);
    }
}

#[tokio::test]
async fn those_who_wait_have_their_stale_answer_too() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(first_then(
        |_| Reply::ok("old").header("cache-control", "max-age=1, stale-if-error=600"),
        move |request| {
            let reply = if request.path() == "/500" { Reply::status(500) } else { Reply::close() };
            reply.when(&at_origin)
        },
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/500", "/closed"] {
        proxy.get(target).await;
        let only_if_cached = [("Cache-Control", "only-if-cached")];
        while proxy.get_with(target, &only_if_cached).await.status != 504 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let before = origin.hits();
        let all = futures_util::future::join_all((0..10).map(|_| proxy.get(target)));
        let (answers, ()) = tokio::join!(all, async {
            origin.wait_for_hits(before + 1).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            gate.let_through(10);
        });
        for answer in &answers {
            assert_eq!((answer.text(), outcome(answer)), ("old", "STALE"), "{target}");
        }
        assert!(origin.hits() < before + 10, "nobody shared the failure");
    }
}

#[tokio::test]
async fn the_operators_windows_stand_in_where_the_origin_names_none() {
    let origin = Origin::start(first_then(
        |request| {
            let control = if request.path() == "/strict" { ", proxy-revalidate" } else { "" };
            aged("old", control).header("etag", "\"1\"")
        },
        |_| Reply::status(503),
    ))
    .await;
    let keys = [("response_cache.stale_if_error", "10m")];
    let proxy = Accelerated::with(&origin.url(), &keys).await;
    for (target, status) in [("/", 200), ("/strict", 503)] {
        proxy.get(target).await;
        assert_eq!(proxy.get(target).await.status, status, "{target}");
    }
}
