//! The response cache in front of routes.

use axum::http::header::{AGE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use futures_util::future::join_all;
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
