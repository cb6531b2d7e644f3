//! Stored answers that go because something has changed them.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome, request},
    support::{
        client::RawClient,
        eventually,
        origin::{Gate, Origin},
    },
};

#[tokio::test]
async fn a_successful_unsafe_request_forgets_its_target() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "GET" => fresh("body"),
        _ => Reply::status(
            request.header("x-status").map_or(200, |it| it.parse().expect("a status")),
        ),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for (method, status, forgotten) in [
        ("POST", "200", true),
        ("POST", "303", true),
        ("PUT", "201", true),
        ("PUT", "204", true),
        ("DELETE", "204", true),
        ("PATCH", "200", true),
        ("PURPLE", "200", true),
        ("POST", "400", false),
        ("PUT", "409", false),
        ("DELETE", "404", false),
        ("POST", "500", false),
        ("OPTIONS", "200", false),
    ] {
        for target in ["/it", "/other"] {
            proxy.get(target).await;
        }
        let changed = proxy.send(method, "/it", &[("X-Status", status)], "x").await;
        assert_eq!(changed.status.to_string(), status);
        assert_eq!(outcome(&changed), "BYPASS");
        let expected = if forgotten { "MISS" } else { "HIT" };
        assert_eq!(outcome(&proxy.get("/it").await), expected, "{method} {status}");
        assert_eq!(outcome(&proxy.get("/other").await), "HIT", "{method} {status}");
    }
}

#[tokio::test]
async fn what_the_answer_points_to_on_the_same_host_is_forgotten_too() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "GET" => fresh("body"),
        _ => {
            ["location", "content-location"].into_iter().fold(Reply::status(201), |reply, name| {
                match request.header(&format!("x-{name}")) {
                    Some(value) => reply.header(name, value),
                    None => reply,
                }
            })
        }
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let get = async |host: &str, target: &str| {
        let mut client = RawClient::connect(proxy.addr()).await;
        client.send(request("GET", target, host, &[], "")).await;
        outcome(&client.answer().await.expect("an answer")).to_owned()
    };
    for (field, value, host, target, forgotten) in [
        ("X-Location", "/items/7", "test", "/items/7", true),
        ("X-Location", "http://test/items/7", "test", "/items/7", true),
        ("X-Content-Location", "7", "test", "/items/7", true),
        ("X-Content-Location", "https://TEST:443/items/7?q", "test", "/items/7?q", false),
        ("X-Location", "//test/items/7?q=1", "test", "/items/7?q=1", true),
        ("X-Location", "http://other.example/items/7", "other.example", "/items/7", false),
        ("X-Location", "http://other.example/items/7", "test", "/items/7", false),
        ("X-Location", "http://test:81/items/7", "test", "/items/7", false),
    ] {
        get(host, target).await;
        assert_eq!(get(host, target).await, "HIT");
        proxy.send("POST", "/items/", &[(field, value)], "").await;
        if value.starts_with("https") {
            continue;
        }
        let expected = if forgotten { "MISS" } else { "HIT" };
        assert_eq!(get(host, target).await, expected, "{field}: {value}");
    }
}

/// What overtakes a GET that is on its way.
async fn overtake(proxy: &Accelerated, how: &str) {
    match how {
        "request" => {
            proxy.send("PUT", "/", &[], "new").await;
        }
        "purge" => proxy.purge("/").await,
        _ => {
            let (status, json) =
                proxy.admin("POST", "/cache/manage", "{\"action\":\"clear\"}").await;
            assert_eq!(status, 200, "{json}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_asked_for_before_a_change_is_neither_kept_nor_shared() {
    for vary in [false, true] {
        for how in ["request", "purge", "clear"] {
            let (old, new) = (Gate::new(), Gate::new());
            let gates = [old.clone(), new.clone()];
            let count = Count::default();
            let origin = Origin::start(move |request| {
                if request.method != "GET" {
                    return Reply::status(204);
                }
                let body = count.next();
                let gate = if body == "1" { &gates[0] } else { &gates[1] };
                let reply = fresh(body).when(gate);
                if vary { reply.header("vary", "x-language") } else { reply }
            })
            .await;
            let proxy = Accelerated::to(&origin).await;
            let mut before = proxy.client().await;
            before.send(request("GET", "/", "test", &[], "")).await;
            origin.wait_for_hits(1).await;

            overtake(&proxy, how).await;
            let hits = origin.hits();
            // Whoever asks from here on must not be given what was asked for before.
            let mut after = proxy.client().await;
            after.send(request("GET", "/", "test", &[], "")).await;
            origin.wait_for_hits(hits + 1).await;
            new.open();
            let answer = after.answer().await.expect("an answer");
            assert_eq!(answer.text(), "2", "{how} {vary}");

            old.open();
            assert_eq!(before.answer().await.expect("an answer").text(), "1");
            let answer = proxy.get("/").await;
            assert_eq!((answer.text(), outcome(&answer)), ("2", "HIT"), "{how} {vary}");
        }
    }
}

#[tokio::test]
async fn a_refresh_that_a_change_has_overtaken_is_not_kept() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |request| match (request.method.as_str(), request.index) {
        ("GET", 0) => aged("old", ", stale-while-revalidate=600").header("etag", "\"1\""),
        ("GET", 1) => Reply::status(304).header("cache-control", "max-age=60").when(&at_origin),
        ("GET", _) => fresh("new"),
        _ => Reply::status(204),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    assert_eq!(outcome(&proxy.get("/").await), "STALE");
    origin.wait_for_hits(2).await;
    proxy.send("DELETE", "/", &[], "").await;
    gate.open();
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.text(), "new");
    }
}

#[tokio::test]
async fn a_change_whose_client_leaves_before_the_answer_counts() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "GET" => fresh("body"),
        _ => Reply::hang(),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    let mut client = proxy.client().await;
    client.send(request("POST", "/", "test", &[], "change it")).await;
    origin.wait_for_hits(2).await;
    assert_eq!(outcome(&proxy.get("/").await), "HIT");
    drop(client);
    eventually("the end of the call", || origin.open_connections() <= 1).await;
    let forgotten = async {
        while outcome(&proxy.get("/").await) == "HIT" {
            tokio::task::yield_now().await;
        }
    };
    crate::support::soon("the invalidation", forgotten).await;
}

#[tokio::test]
async fn a_purge_forgets_one_url() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/a", "/a?b=c"] {
        proxy.get(target).await;
    }
    proxy.purge("/a?b=c").await;
    assert_eq!(outcome(&proxy.get("/a").await), "HIT");
    assert_eq!(outcome(&proxy.get("/a?b=c").await), "MISS");
    assert_eq!(proxy.figure("/requests/invalidations").await, 1);
}

#[tokio::test]
async fn an_unsafe_request_without_an_answer_forgets_its_target() {
    let origin = Origin::start(|request| match request.method.as_str() {
        "GET" => fresh("body"),
        _ => Reply::close(),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for method in ["POST", "PUT", "DELETE"] {
        proxy.get("/it").await;
        assert_eq!(outcome(&proxy.get("/it").await), "HIT");
        assert_eq!(proxy.send(method, "/it", &[], "x").await.status, 502);
        assert_eq!(outcome(&proxy.get("/it").await), "MISS", "{method}");
    }
}
