//! Tags over one Redis: what one machine invalidates is invalid for all, in memory, in Redis and on the
//! disks, through outages and restarts.
#![cfg(all(feature = "__redis", feature = "disk"))]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod redis_server;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::redis::Coherence;
use cache_tiered::{Cache, CacheBuilder, InsertOptions, Loaded, Tier};
use redis_server::RedisServer;
use tokio::time::sleep;

/// How long something that comes by itself may take on a machine that does many things at once.
const PATIENCE: Duration = Duration::from_secs(30);

fn builder(server: &RedisServer) -> CacheBuilder<u32, u32> {
    let mut config = redis_server::config(server.url());
    config.coherence = Coherence::Auto;
    Cache::builder("test").redis(config)
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_micros(200)).await;
    }
    start.elapsed()
}

fn tagged<const N: usize>(tags: [&str; N]) -> InsertOptions {
    InsertOptions::default().tags(tags)
}

/// A cache that knows what the others have invalidated.
async fn open(builder: CacheBuilder<u32, u32>) -> Cache<u32, u32> {
    let cache = builder.open().await.unwrap();
    until("the cache follows", async || cache.stats().coherence.is_some_and(|it| it.coherent))
        .await;
    // The log of tags is read from the first of them on; until then no tagged value is good below.
    until("the log of tags is known", async || {
        cache.insert_with(u32::MAX, 0, tagged(["ready"]));
        cache.flush().await;
        cache.clear(Tier::Memory).await;
        cache.get(&u32::MAX).await.is_some()
    })
    .await;
    cache
}

#[tokio::test]
async fn what_one_machine_invalidates_is_invalid_for_the_others() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    ours.insert_with(1, 10, tagged(["a", "b"]));
    ours.insert_with(2, 20, tagged(["b"]));
    ours.insert(3, 30);
    ours.flush().await;
    // What was read before the news of its change came is read again.
    until("they share", async || {
        theirs.get_many(&[1, 2, 3]).await;
        [1, 2, 3].iter().all(|key| theirs.get_in_memory(key).is_some())
    })
    .await;

    ours.invalidate_tag("a").await;
    assert_eq!(ours.get_many(&[1, 2, 3]).await, [None, Some(20), Some(30)]);
    until("they know", async || theirs.get_in_memory(&1).is_none()).await;
    assert_eq!(theirs.get_many(&[1, 2, 3]).await, [None, Some(20), Some(30)]);
    // A newer value is good everywhere.
    theirs.insert_with(1, 11, tagged(["a"]));
    theirs.flush().await;
    until("it is shared", async || ours.get(&1).await == Some(11)).await;
    assert_eq!(theirs.get(&1).await, Some(11));
    for cache in [ours, theirs] {
        cache.close().await;
    }
}

#[tokio::test]
async fn a_load_that_began_before_anothers_invalidation_is_not_shared() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    let load = async {
        let loader = || async {
            // As slow as the news is fast.
            ours.invalidate_tag("a").await;
            Ok::<_, io::Error>(Loaded::with_options(1, tagged(["a"])))
        };
        theirs.get_or_load(&1, loader).await.unwrap()
    };
    assert_eq!(load.await, 1);
    theirs.flush().await;
    assert_eq!(ours.get(&1).await, None);
    until("they know", async || theirs.get_in_memory(&1).is_none()).await;
    assert_eq!(theirs.get(&1).await, None);
    for cache in [ours, theirs] {
        cache.close().await;
    }
}

#[tokio::test]
async fn softness_is_shared() {
    let server = RedisServer::start();
    let window = Duration::from_secs(600);
    let make = || builder(&server).stale_while_revalidate(window);
    let (ours, theirs) = (open(make()).await, open(make()).await);
    ours.insert_with(1, 10, tagged(["a"]));
    ours.flush().await;
    until("they share", async || theirs.get(&1).await == Some(10)).await;
    ours.soften_tags(["a"]).await;
    until("they know", async || theirs.get_in_memory(&1).is_none()).await;
    // From Redis it comes stale, too.
    theirs.clear(Tier::Memory).await;
    let hit = theirs.look_up(&1).await.unwrap();
    assert_eq!((hit.value, hit.stale), (10, true));
    let loads = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&loads);
    let loading = theirs.loading(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, io::Error>(Loaded::with_options(11, tagged(["a"]))) }
    });
    assert_eq!(loading.get(&1).await.unwrap(), 10);
    until("it is refreshed", async || theirs.get_in_memory(&1) == Some(11)).await;
    theirs.flush().await;
    until("it is shared", async || ours.get(&1).await == Some(11)).await;
    for cache in [ours, theirs] {
        cache.close().await;
    }
}

#[tokio::test]
async fn an_outage_loses_no_invalidation() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    for key in 0..50 {
        ours.insert_with(key, key, tagged(["a"]));
    }
    ours.flush().await;
    let keys: Vec<u32> = (0..50).collect();
    until("they share", async || theirs.get_many(&keys).await.iter().all(Option::is_some)).await;
    server.freeze();
    ours.invalidate_tag("a").await;
    assert_eq!(ours.get_in_memory(&1), None, "here it holds at once");
    server.thaw();
    until("they know", async || theirs.get_many(&keys).await.iter().all(Option::is_none)).await;
    assert!(ours.get_many(&keys).await.iter().all(Option::is_none));
    for cache in [ours, theirs] {
        cache.close().await;
    }
}

#[tokio::test]
async fn a_disk_learns_what_was_invalidated_while_its_machine_was_away() {
    let server = RedisServer::start();
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = |path: &Path| DiskConfig::new(path).capacity_bytes(32 << 20);
    let ours = open(builder(&server).disk(disk(directory.path()))).await;
    let theirs = open(builder(&server).disk(disk(other.path()))).await;
    for key in 0..20 {
        ours.insert_with(key, key, tagged([if key % 2 == 0 { "even" } else { "odd" }]));
    }
    ours.flush().await;
    ours.close().await;
    theirs.invalidate_tag("even").await;
    // The entries are gone from Redis, so only the disk has them.
    server.cli(&[
        "EVAL",
        "for _, key in ipairs(redis.call('KEYS', '*:x:*')) do redis.call('DEL', key) end",
        "0",
    ]);
    let ours = open(builder(&server).disk(disk(directory.path()))).await;
    for key in 0..20 {
        assert_eq!(ours.get(&key).await, (key % 2 == 1).then_some(key), "{key}");
    }
    for cache in [ours, theirs] {
        cache.close().await;
    }
}

/// `cargo test --release -p cache-tiered --features redis --test redis_tags -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_an_invalidation() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for round in 0..1_000 {
        ours.insert_with(1, round, tagged(["a"]));
        ours.flush().await;
        until("they share", async || theirs.get(&1).await == Some(round)).await;
        let start = Instant::now();
        ours.invalidate_tag("a").await;
        here.push(start.elapsed());
        while theirs.get_in_memory(&1).is_some() {
            tokio::task::yield_now().await;
        }
        there.push(start.elapsed());
    }
    for (what, mut times) in [("acknowledged", here), ("seen by another cache", there)] {
        times.sort_unstable();
        println!(
            "{what}: p50 {:?}, p99 {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    }
}
