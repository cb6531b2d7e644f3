//! Two accelerators over one Redis: what one of them forgets, the other does not serve.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome},
    redis::Redis,
    support::{origin::Origin, until},
};

async fn pair(redis: &Redis, origin: &Origin) -> [Accelerated; 2] {
    let keys = [("cache.redis.url", &*redis.url())];
    let with = async || Accelerated::with(&origin.url(), &keys).await;
    [with().await, with().await]
}

/// Asks until the answer is what it should be.
async fn becomes(proxy: &Accelerated, target: &str, body: &str, expected: &str) {
    let what = format!("{target}: {body:?}, {expected}");
    let is_so = async || {
        let answer = proxy.get(target).await;
        (answer.text(), outcome(&answer)) == (body, expected)
    };
    until(&what, is_so).await;
}

/// One figure about Redis.
async fn figure(proxy: &Accelerated, name: &str) -> u64 {
    let (status, stats) = proxy.admin("GET", "/cache/stats", "").await;
    assert_eq!(status, 200, "{stats}");
    stats["levels"]["l2"][name].as_u64().expect("a number")
}

/// Asks for one page after the other until Redis takes them, and has them all.
async fn in_service(proxy: &Accelerated) {
    let mut page = 0;
    let takes = async || {
        page += 1;
        proxy.get(&format!("/first/{page}")).await;
        figure(proxy, "writes").await > 0 && figure(proxy, "queue_depth").await == 0
    };
    until("Redis in service", takes).await;
}

/// An origin with a version that changes when it is told.
async fn versioned() -> (Origin, Count) {
    let count = Count::default();
    let version = count.clone();
    let origin = Origin::start(move |request| {
        let current = version.0.load(Ordering::SeqCst);
        let tags = if request.path() == "/tagged" { "it" } else { "other" };
        match request.method.as_str() {
            "GET" => fresh(format!("version {current}")).header("surrogate-key", tags),
            _ => {
                version.0.fetch_add(1, Ordering::SeqCst);
                Reply::status(204)
            }
        }
    })
    .await;
    (origin, count)
}

#[tokio::test]
async fn what_one_accelerator_forgets_the_other_does_not_serve() {
    let redis = Redis::start();
    let (origin, version) = versioned().await;
    let [one, other] = pair(&redis, &origin).await;
    let next = || version.0.fetch_add(1, Ordering::SeqCst) + 1;
    // The first ones may come before the caches follow.
    for target in ["/plain", "/tagged"] {
        becomes(&one, target, "version 0", "HIT").await;
        becomes(&other, target, "version 0", "HIT").await;
    }
    let body = format!("version {}", next());
    one.purge("/plain").await;
    becomes(&other, "/plain", &body, "HIT").await;
    becomes(&one, "/plain", &body, "HIT").await;

    let body = format!("version {}", next());
    let (status, _) = other.admin("POST", "/cache/purge", r#"{"tags":["it"]}"#).await;
    assert_eq!(status, 200);
    becomes(&one, "/tagged", &body, "HIT").await;
    becomes(&other, "/tagged", &body, "HIT").await;

    // A successful unsafe request is a purge, too.
    let changed = one.send("POST", "/plain", &[], "x").await;
    assert_eq!(changed.status, 204);
    becomes(&other, "/plain", "version 3", "HIT").await;
    let (status, _) = one.admin("POST", "/cache/purge", r#"{"tags":["it"],"soft":true}"#).await;
    assert_eq!(status, 200);
    becomes(&other, "/tagged", "version 3", "HIT").await;
}

#[tokio::test]
async fn what_one_accelerator_has_the_other_takes_from_redis() {
    let redis = Redis::start();
    let (origin, _) = versioned().await;
    let [one, other] = pair(&redis, &origin).await;
    for proxy in [&one, &other] {
        in_service(proxy).await;
    }
    let hits = origin.hits();
    for page in 0..20 {
        becomes(&one, &format!("/page/{page}"), "version 0", "HIT").await;
    }
    assert_eq!(origin.hits() - hits, 20);
    until("everything written", async || figure(&one, "queue_depth").await == 0).await;
    for page in 0..20 {
        becomes(&other, &format!("/page/{page}"), "version 0", "HIT").await;
    }
    assert_eq!(origin.hits() - hits, 20, "all came from Redis");
}
