//! The response cache in front of routes.

use axum::body::Body;
use axum::http::header::{AGE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::Semaphore;
use ultra_perf_http::{ResponseCacheLayer, layers};

use super::*;
use crate::support::{eventually, soon};

/// A service whose every answer is the number of its call, with this `Cache-Control`.
async fn counting(
    cache_control: &'static str,
    perf: &UltraPerf,
) -> (Served, Calls, ResponseCacheLayer) {
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        let count = counted.next().to_string();
        async move { ([(CACHE_CONTROL, cache_control)], count) }
    };
    let cache = ResponseCacheLayer::new(perf, "numbers").expect("a cache");
    let app = Router::new().route("/{*path}", get(handler.clone()).post(handler));
    let served = Served::start(app.layer(cache.clone())).await;
    (served, calls, cache)
}

#[tokio::test]
async fn parallel_misses_are_one_call() {
    let perf = perf().await;
    let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(0)));
    let (counted, at_service) = (calls.clone(), Arc::clone(&gate));
    let handler = move || {
        let (count, gate) = (counted.next(), Arc::clone(&at_service));
        async move {
            gate.acquire().await.expect("the gate is never closed").forget();
            (FRESH, count.to_string())
        }
    };
    let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
    let app =
        Router::new().route("/", get(handler)).layer(layers(&perf).response_cache(cache.clone()));
    let served = Served::start(app).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(served.client().await);
    }
    let all = join_all(clients.iter_mut().map(|client| client.get("/")));
    let meanwhile = async {
        eventually("the call", || calls.count() == 1).await;
        gate.add_permits(20);
    };
    let (answers, ()) = tokio::join!(soon("20 answers", all), meanwhile);
    assert!(answers.iter().all(|answer| answer.text() == "1"), "{answers:?}");
    assert_eq!((calls.count(), cache.stats().origin_calls), (1, 1));
}

#[tokio::test]
async fn a_request_that_changes_something_has_it_fetched_anew() {
    let perf = perf().await;
    let (served, _, _) = counting("max-age=60", &perf).await;
    let ask = async |method| send(&mut served.client().await, method, "/a", &[]).await;
    assert_eq!(ask("GET").await.text(), "1");
    assert_eq!(ask("GET").await.text(), "1");
    let head = ask("HEAD").await;
    assert_eq!((outcome(&head), head.header("content-length")), ("HIT", Some("1")));
    let post = ask("POST").await;
    assert_eq!((outcome(&post), post.text()), ("BYPASS", "2"));
    assert_eq!(ask("GET").await.text(), "3");
}

#[tokio::test]
async fn what_must_not_be_stored_is_not() {
    let perf = perf().await;
    for (cache_control, detail) in
        [("no-store", "no-store"), ("private, max-age=60", "private"), ("", "no-lifetime")]
    {
        let (served, _, _) = counting(cache_control, &perf).await;
        for expected in ["1", "2"] {
            let answer = served.get("/a").await;
            assert_eq!((outcome(&answer), answer.text()), ("MISS", expected), "{cache_control}");
            let status = answer.header("cache-status").expect("a status");
            assert!(status.ends_with(&format!("detail={detail}")), "{status}");
        }
    }
}

#[tokio::test]
async fn a_stale_answer_goes_out_at_once_and_is_refreshed_behind() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        let count = counted.next();
        // The first is stale on arrival.
        let age = if count == 1 { "100" } else { "0" };
        let control = "max-age=60, stale-while-revalidate=600";
        async move { ([(CACHE_CONTROL, control), (AGE, age)], count.to_string()) }
    };
    let app = Router::new().route("/", get(handler));
    let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
    let served = Served::start(app.layer(cache.clone())).await;
    assert_eq!(served.get("/").await.text(), "1");
    let stale = served.get("/").await;
    assert_eq!((outcome(&stale), stale.text()), ("STALE", "1"));
    eventually("the refresh", || calls.count() == 2).await;
    eventually("the new answer", || cache.stats().background_refreshes == 1).await;
    let fresh = async || served.get("/").await.text() == "2";
    crate::support::until("the new answer", fresh).await;
    assert_eq!(calls.count(), 2);
}

#[tokio::test]
async fn a_stored_version_is_validated_and_judged_for_the_client() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move |headers: HeaderMap| {
        counted.next();
        async move {
            let fields = [(CACHE_CONTROL, "no-cache"), (ETAG, "\"v1\"")];
            match headers.get(IF_NONE_MATCH) {
                Some(tag) if tag == "\"v1\"" => (StatusCode::NOT_MODIFIED, fields).into_response(),
                _ => (fields, "the body").into_response(),
            }
        }
    };
    let cache = ResponseCacheLayer::new(&perf, "versions").expect("a cache");
    let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
    assert_eq!(served.get("/").await.text(), "the body");
    let validated = served.get("/").await;
    assert_eq!((outcome(&validated), validated.text()), ("HIT", "the body"));
    let status = validated.header("cache-status").expect("a status");
    assert!(status.contains("fwd-status=304"), "{status}");
    let known = served.get_with("/", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!((known.status, known.header("etag")), (304, Some("\"v1\"")));
    assert_eq!(calls.count(), 3);
}

#[tokio::test]
async fn purges_reach_a_url_and_a_tag() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        let count = counted.next().to_string();
        async move { ([("cache-control", "max-age=60"), ("surrogate-key", "users all")], count) }
    };
    let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
    let app = Router::new().route("/{*path}", get(handler)).layer(cache.clone());
    let served = Served::start(app).await;
    let text = async |target| served.get(target).await.text().to_owned();
    assert_eq!([text("/a").await, text("/b").await, text("/a").await], ["1", "2", "1"]);
    cache.purge("test", "/a").await;
    assert_eq!([text("/a").await, text("/b").await], ["3", "2"]);
    cache.purge_tags(["users"]).await;
    assert_eq!([text("/a").await, text("/b").await], ["4", "5"]);
    cache.purge_tags(["other"]).await;
    assert_eq!(text("/a").await, "4");
    cache.clear().await;
    assert_eq!(text("/a").await, "6");
}

#[tokio::test]
async fn nested_routers_do_not_share_what_their_paths_have_in_common() {
    let perf = perf().await;
    let cache = ResponseCacheLayer::new(&perf, "nested").expect("a cache");
    let inner = |name: &'static str| {
        Router::new().route("/x", get(move || async move { (FRESH, name) })).layer(cache.clone())
    };
    let app = Router::new().nest("/a", inner("a")).nest("/b", inner("b"));
    let served = Served::start(app).await;
    for (target, text, expected) in
        [("/a/x", "a", "MISS"), ("/b/x", "b", "MISS"), ("/a/x", "a", "HIT"), ("/b/x", "b", "HIT")]
    {
        let answer = served.get(target).await;
        assert_eq!((answer.text(), outcome(&answer)), (text, expected), "{target}");
    }
}

#[tokio::test]
async fn two_services_of_a_process_do_not_answer_for_each_other() {
    let perf = perf().await;
    let serve = async |name: &'static str| {
        let app = Router::new().route("/", get(move || async move { (FRESH, name) }));
        Served::start(app.layer(layers(&perf))).await
    };
    let (public, private) = (serve("public").await, serve("private").await);
    for (served, expected) in [(&public, "public"), (&private, "private"), (&public, "public")] {
        assert_eq!(served.get("/").await.text(), expected);
    }
}

#[tokio::test]
async fn a_request_with_two_hosts_is_not_for_the_cache() {
    let perf = perf().await;
    let (served, calls, _) = counting("max-age=60", &perf).await;
    for _ in 0..2 {
        let answer = served.get_with("/a", &[("Host", "other")]).await;
        assert_eq!(outcome(&answer), "BYPASS");
    }
    assert_eq!(calls.count(), 2);
}

#[tokio::test]
async fn an_assumed_lifetime_is_for_answers_that_say_nothing_to_nobody_in_particular() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        let count = counted.next().to_string();
        async move { count }
    };
    let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
    let cache = cache.assume(std::time::Duration::from_secs(60));
    let served = Served::start(Router::new().route("/{*path}", get(handler)).layer(cache)).await;
    let first = served.get("/a").await;
    assert_eq!((first.text(), first.header("ultra-perf-cache-control")), ("1", None));
    let second = served.get("/a").await;
    assert_eq!((second.text(), second.header("ultra-perf-cache-control")), ("1", None));
    for personal in [("cookie", "session=7"), ("authorization", "Basic eDp5")] {
        let texts =
            [served.get_with("/b", &[personal]).await, served.get_with("/b", &[personal]).await];
        assert_ne!(texts[0].text(), texts[1].text(), "{personal:?}");
    }
}

#[tokio::test]
async fn a_host_with_a_path_stores_nothing_under_that_path() {
    let perf = perf().await;
    let (served, _, _) = counting("max-age=60", &perf).await;
    for (n, host) in ["test/a", "test/a?b=", "test/a#", "user@test/a"].into_iter().enumerate() {
        let mut client = served.client().await;
        client.send(format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((outcome(&answer), answer.text()), ("BYPASS", &*(n + 1).to_string()), "{host}");
    }
    let answer = served.get("/a/x").await;
    assert_eq!((outcome(&answer), answer.text()), ("MISS", "5"));
}

#[tokio::test]
async fn a_field_of_the_connection_selects_nothing_and_is_not_seen() {
    let perf = perf().await;
    let handler = |headers: HeaderMap| async move {
        let language = headers.get("x-language").map_or("none", |it| it.to_str().expect("text"));
        ([("cache-control", "max-age=60"), ("vary", "x-language")], language.to_owned())
    };
    let cache = ResponseCacheLayer::new(&perf, "languages").expect("a cache");
    let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
    let hidden = [("connection", "X-Language"), ("x-language", "de")];
    assert_eq!(served.get_with("/", &hidden).await.text(), "none");
    let plain = served.get("/").await;
    assert_eq!((outcome(&plain), plain.text()), ("HIT", "none"));
    assert_eq!(served.get_with("/", &[("x-language", "de")]).await.text(), "de");
    assert_eq!(served.get("/").await.text(), "none");
}

#[tokio::test]
async fn what_asks_for_another_protocol_reaches_the_service_as_it_came() {
    let perf = perf().await;
    let handler = |headers: HeaderMap| async move {
        let text = |name| headers.get(name).map_or("none", |it| it.to_str().expect("text"));
        format!("{} {}", text("connection"), text("upgrade"))
    };
    let cache = ResponseCacheLayer::new(&perf, "upgrades").expect("a cache");
    let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
    let fields = [("connection", "upgrade"), ("upgrade", "websocket")];
    let answer = served.get_with("/", &fields).await;
    assert_eq!((outcome(&answer), answer.text()), ("BYPASS", "upgrade websocket"));
}

#[tokio::test]
async fn no_lifetime_is_assumed_where_any_field_speaks_of_caching() {
    let perf = perf().await;
    for (name, value) in [
        ("cdn-cache-control", "no-store"),
        ("ultra-perf-cache-control", "no-store"),
        ("pragma", "no-cache"),
        ("cache-control", "no-store"),
        ("expires", "0"),
        ("set-cookie", "a=b"),
    ] {
        let calls = Calls::default();
        let counted = calls.clone();
        let handler = move || {
            let count = counted.next().to_string();
            async move { ([(name, value)], count) }
        };
        let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
        let cache = cache.assume(std::time::Duration::from_secs(60));
        let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
        let texts = [served.get("/").await, served.get("/").await];
        assert_ne!(texts[0].text(), texts[1].text(), "{name}");
        assert_eq!(texts[0].header(name), Some(value));
    }
}

#[tokio::test]
async fn an_answer_with_an_assumed_lifetime_is_for_nobody_who_says_who_asks() {
    let perf = perf().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move |axum::extract::Path(path): axum::extract::Path<String>| {
        let count = counted.next().to_string();
        async move {
            match path.as_str() {
                "public" => (FRESH, count).into_response(),
                _ => count.into_response(),
            }
        }
    };
    let cache = ResponseCacheLayer::new(&perf, "numbers").expect("a cache");
    let cache = cache.assume(std::time::Duration::from_secs(60));
    let served = Served::start(Router::new().route("/{*path}", get(handler)).layer(cache)).await;
    for (target, shared) in [("/silent", false), ("/public", true)] {
        let first = served.get(target).await.text().to_owned();
        for personal in [("cookie", "session=7"), ("authorization", "Basic eDp5")] {
            let answer = served.get_with(target, &[personal]).await;
            let expected = if shared { "HIT" } else { "MISS" };
            assert_eq!(outcome(&answer), expected, "{target} {personal:?}");
            assert_eq!(answer.text() == first, shared, "{target} {personal:?}");
        }
        let again = served.get(target).await;
        assert_eq!((outcome(&again), again.text()), ("HIT", &*first), "{target}");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up_and_its_url_is_free_again() {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        .set("response_cache.coalesce_timeout", "10m")
        .set("server.idle_timeout", "50ms")
        .build()
        .await
        .expect("a handle");
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        let count = counted.next();
        async move {
            if count > 1 {
                return (FRESH, "whole").into_response();
            }
            let half = stream::once(async { Ok::<_, std::io::Error>("half") });
            (FRESH, Body::from_stream(half.chain(stream::pending()))).into_response()
        }
    };
    let cache = ResponseCacheLayer::new(&perf, "stalling").expect("a cache");
    let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
    let half = soon("the end", served.get("/")).await;
    assert_eq!((half.text(), half.complete), ("half", false));
    assert_eq!(soon("the answer", served.get("/")).await.text(), "whole");
}

#[tokio::test]
async fn nobody_waits_for_a_body_that_turns_out_to_be_too_long_to_keep() {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        .set("response_cache.coalesce_timeout", "10m")
        .set("response_cache.max_body", "4KiB")
        .build()
        .await
        .expect("a handle");
    let (calls, gate) = (Calls::default(), Arc::new(Semaphore::new(0)));
    let (counted, at_service) = (calls.clone(), Arc::clone(&gate));
    let handler = move || {
        counted.next();
        let gate = Arc::clone(&at_service);
        async move {
            let first = stream::once(async { Ok::<_, std::io::Error>("x".repeat(5_000)) });
            let rest = stream::once(async move {
                gate.acquire().await.expect("the gate is never closed").forget();
                Ok("the end".to_owned())
            });
            (FRESH, Body::from_stream(first.chain(rest)))
        }
    };
    let cache = ResponseCacheLayer::new(&perf, "long").expect("a cache");
    let served = Served::start(Router::new().route("/", get(handler)).layer(cache)).await;
    let mut clients = [served.client().await, served.client().await];
    for (n, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
        eventually("a call", || calls.count() == n + 1).await;
    }
    gate.add_permits(2);
    for client in &mut clients {
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.body.len(), answer.complete), (5_007, true));
    }
}
