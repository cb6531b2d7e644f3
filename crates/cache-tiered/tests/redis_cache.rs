//! The whole cache over a real Redis: what comes back, what another machine sees, and what happens
//! when the server is frozen, killed, restarted or away.
#![cfg(all(feature = "__redis", feature = "disk"))]

#[path = "support/ownership.rs"]
mod ownership;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the tier alone use the rest")]
mod redis_server;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::redis::RedisConfig;
use cache_tiered::{
    BuildError, Cache, CacheBuilder, Clock, InsertOptions, Tier, TierStats, WritePolicy,
};
use redis_server::{RedisServer, config, free_port};
use tokio::time::sleep;
use watchdog::Watchdog;

/// What a call may take beyond the tier's budget, on a machine that does many things at once.
const SLACK: Duration = Duration::from_millis(150);
/// How long something that comes by itself may take at most.
const PATIENCE: Duration = Duration::from_secs(30);

fn builder(server: &RedisServer) -> CacheBuilder<u32, String> {
    Cache::builder("test").entries(1_000).redis(config(server.url()))
}

fn disk(directory: &tempfile::TempDir) -> DiskConfig {
    DiskConfig::new(directory.path()).capacity_bytes(8 << 20)
}

async fn open(builder: CacheBuilder<u32, String>) -> Cache<u32, String> {
    let cache = builder.open().await.unwrap();
    in_service(&cache).await;
    cache
}

/// Waits until Redis serves the cache.
async fn in_service(cache: &Cache<u32, String>) {
    const PROBE: u32 = u32::MAX;
    until("redis is in service", async || {
        cache.insert(PROBE, "probe".to_owned());
        cache.flush().await;
        cache.clear(Tier::Memory).await;
        cache.clear(Tier::Disk).await;
        let hits = redis(cache).hits;
        cache.get(&PROBE).await;
        redis(cache).hits > hits
    })
    .await;
    cache.remove(&PROBE).await;
    cache.flush().await;
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn redis(cache: &Cache<u32, String>) -> TierStats {
    cache.stats().redis.unwrap()
}

/// What is below memory.
async fn below(cache: &Cache<u32, String>, key: u32) -> Option<String> {
    cache.clear(Tier::Memory).await;
    cache.get(&key).await
}

fn noise(len: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(len as u64);
    std::iter::repeat_with(|| rng.alphanumeric()).take(len).collect()
}

#[tokio::test]
async fn two_caches_share_values_of_every_size() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    let values = ["", "small", &"text ".repeat(40_000), &noise(200_000), &noise(3_000)];
    let keys: Vec<u32> = (0..5).collect();
    for (key, value) in keys.iter().zip(values) {
        ours.insert(*key, value.to_owned());
    }
    ours.flush().await;
    let expected: Vec<_> = values.iter().map(|value| Some((*value).to_owned())).collect();
    assert_eq!(theirs.get_many(&keys).await, expected);
    for (key, value) in keys.iter().zip(&expected) {
        assert_eq!(below(&theirs, *key).await, *value);
        // The news of its change may come after it, and takes it out again.
        until("a hit comes up", async || {
            theirs.get(key).await;
            theirs.get_in_memory(key) == *value
        })
        .await;
    }
    // Text is stored compressed, and noise not larger than it is.
    let script = "local n = 0; for _, k in ipairs(redis.call('KEYS', '*')) do \
                  n = n + redis.call('STRLEN', k) end; return n";
    let stored: usize = server.cli(&["EVAL", script, "0"]).parse().unwrap();
    assert!((100_000..213_000).contains(&stored), "{stored} bytes");
    assert_eq!(redis(&theirs).errors, 0);
    ours.close().await;
    theirs.close().await;
}

#[tokio::test]
async fn the_time_left_goes_along_through_redis() {
    let server = RedisServer::start();
    let clock = Clock::manual();
    let build = || builder(&server).ttl(Duration::from_secs(100)).clock(clock.clone());
    let (ours, theirs) = (open(build()).await, open(build()).await);
    ours.insert(1, "1".to_owned());
    ours.insert_with(2, "2".to_owned(), InsertOptions::ttl(Duration::MAX));
    ours.flush().await;
    clock.advance(Duration::from_secs(60));
    until("a hit comes up", async || {
        assert_eq!(theirs.get(&1).await.as_deref(), Some("1"));
        theirs.get_in_memory(&1).is_some()
    })
    .await;
    clock.advance(Duration::from_secs(39));
    assert_eq!(theirs.get_in_memory(&1).as_deref(), Some("1"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(theirs.get(&1).await, None, "a promotion must not lengthen a life");
    assert_eq!(theirs.get(&2).await.as_deref(), Some("2"));

    // Redis itself lets go of it.
    ours.insert_with(3, "3".to_owned(), InsertOptions::ttl(Duration::from_millis(300)));
    ours.flush().await;
    let entries = async || server.cli(&["EVAL", "return #redis.call('KEYS', '*')", "0"]);
    let before: u32 = entries().await.parse().unwrap();
    until("the entry has left Redis", async || entries().await.parse::<u32>().unwrap() < before)
        .await;
    ours.close().await;
    theirs.close().await;
}

#[tokio::test]
async fn what_one_cache_removes_or_clears_is_gone_below_for_the_other() {
    let server = RedisServer::start();
    let (ours, theirs) = (open(builder(&server)).await, open(builder(&server)).await);
    (0..10).for_each(|key| ours.insert(key, "old".to_owned()));
    ours.flush().await;
    assert_eq!(below(&theirs, 1).await.as_deref(), Some("old"));
    ours.remove(&1).await;
    assert_eq!(ours.get(&1).await, None);
    ours.insert(2, "new".to_owned());
    ours.flush().await;
    assert_eq!(below(&theirs, 1).await, None);
    assert_eq!(below(&theirs, 2).await.as_deref(), Some("new"));

    ours.clear(None).await;
    assert_eq!(ours.get_many(&[2, 3]).await, [None, None]);
    ours.insert(4, "new".to_owned());
    ours.flush().await;
    assert_eq!(below(&ours, 4).await.as_deref(), Some("new"));
    until("the other one has seen the clear", async || below(&theirs, 3).await.is_none()).await;
    until("they share again", async || below(&theirs, 4).await.as_deref() == Some("new")).await;
    ours.close().await;
    theirs.close().await;
}

#[tokio::test]
async fn tiers_are_read_in_the_order_given() {
    let server = RedisServer::start();
    for (order, from_redis) in [([Tier::Redis, Tier::Disk], 1), ([Tier::Disk, Tier::Redis], 0)] {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(builder(&server).order(order).disk(disk(&directory))).await;
        cache.insert(1, "1".to_owned());
        cache.flush().await;
        let before = cache.stats();
        assert_eq!(below(&cache, 1).await.as_deref(), Some("1"));
        let after = cache.stats();
        assert_eq!(after.redis.unwrap().hits - before.redis.unwrap().hits, from_redis);
        assert_eq!(after.disk.unwrap().hits - before.disk.unwrap().hits, 1 - from_redis);
        cache.clear(Tier::Redis).await;
        assert_eq!(below(&cache, 1).await.as_deref(), Some("1"), "the disk still has it");
        cache.clear(None).await;
        assert_eq!(cache.get(&1).await, None);
        cache.close().await;
    }
}

#[tokio::test]
async fn values_of_another_schema_are_misses_and_stay() {
    let server = RedisServer::start();
    let first = open(builder(&server)).await;
    let second = open(builder(&server).schema_version(1)).await;
    first.insert(1, "first".to_owned());
    first.flush().await;
    assert_eq!(second.get(&1).await, None);
    second.insert(1, "second".to_owned());
    second.flush().await;
    assert_eq!(below(&first, 1).await.as_deref(), Some("first"));
    assert_eq!(below(&second, 1).await.as_deref(), Some("second"));
    assert_eq!((redis(&first).errors, redis(&second).errors), (0, 0));
    first.close().await;
    second.close().await;
}

#[tokio::test]
async fn a_frozen_redis_costs_its_budget_and_the_disk_still_answers() {
    let _watchdog = Watchdog::over("a frozen redis");
    let server = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let cache = open(builder(&server).disk(disk(&directory))).await;
    let keys: Vec<u32> = (0..40).collect();
    keys.iter().for_each(|key| cache.insert(*key, key.to_string()));
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    server.freeze();
    let most = RedisConfig::default().timeout + SLACK;
    for key in 0..20 {
        let start = Instant::now();
        let found = cache.get(&key).await;
        assert!(start.elapsed() <= most, "get {key} took {:?}", start.elapsed());
        assert_eq!(found, Some(key.to_string()), "the disk has it");
    }
    let start = Instant::now();
    let found = cache.get_many(&keys[20..]).await;
    assert!(start.elapsed() <= most, "get_many took {:?}", start.elapsed());
    assert_eq!(found, keys[20..].iter().map(|key| Some(key.to_string())).collect::<Vec<_>>());
    // Nobody has it: the loader runs after the budget, and the write does not wait.
    let start = Instant::now();
    let loaded = cache.get_or_load(&99, async || Ok::<_, std::io::Error>("99".to_owned())).await;
    assert_eq!(loaded.unwrap(), "99");
    cache.insert(1, "new".to_owned());
    cache.remove(&2).await;
    assert!(start.elapsed() <= most, "a load and two writes took {:?}", start.elapsed());
    cache.flush().await;
    assert_eq!(below(&cache, 1).await.as_deref(), Some("new"));
    assert_eq!(below(&cache, 2).await, None);

    server.thaw();
    let start = Instant::now();
    until("redis is back by itself", async || {
        assert_eq!(below(&cache, 1).await.as_deref(), Some("new"));
        assert_eq!(below(&cache, 2).await, None);
        let hits = redis(&cache).hits;
        cache.get(&3).await;
        redis(&cache).hits > hits && start.elapsed() > Duration::from_secs(2)
    })
    .await;
    cache.close().await;
}

#[tokio::test]
async fn after_a_restart_with_old_data_nothing_stale_is_found() {
    let _watchdog = Watchdog::over("a restart with old data");
    // What Redis has been told survives its death, as with replicas or a good disk.
    let mut server = RedisServer::with_options(&["--appendonly", "yes", "--appendfsync", "always"]);
    let cache = open(builder(&server)).await;
    (0..20).for_each(|key| cache.insert(key, "old".to_owned()));
    cache.flush().await;
    server.kill();
    (0..10).for_each(|key| cache.insert(key, "new".to_owned()));
    for key in 10..15 {
        cache.remove(&key).await;
    }
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    assert!(server.run());
    let start = Instant::now();
    until("redis is back by itself", async || {
        for key in 0..15 {
            let found = below(&cache, key).await;
            assert_ne!(found.as_deref(), Some("old"), "key {key} after {:?}", start.elapsed());
        }
        cache.insert(30, "30".to_owned());
        cache.flush().await;
        let hits = redis(&cache).hits;
        below(&cache, 30).await;
        redis(&cache).hits > hits && start.elapsed() > Duration::from_secs(2)
    })
    .await;
    cache.close().await;
}

#[tokio::test]
async fn writes_that_did_not_fit_the_queue_leave_nothing_stale() {
    let _watchdog = Watchdog::over("an overflowing queue");
    let server = RedisServer::start();
    let cache = open(builder(&server).write_queue(4, u64::MAX)).await;
    let mut written = Vec::new();
    // One at a time: the queue is short on purpose.
    for key in 0..100 {
        cache.insert(key, "old".to_owned());
        cache.flush().await;
        written.push(below(&cache, key).await);
    }
    assert!(written.iter().all(|it| it.as_deref() == Some("old")), "{written:?}");
    server.freeze();
    for key in 0..100 {
        match key % 2 {
            0 => cache.insert(key, "new".to_owned()),
            _ => cache.remove(&key).await,
        }
    }
    assert!(redis(&cache).dropped_writes > 0);
    cache.clear(Tier::Memory).await;
    server.thaw();
    let (start, mut served) = (Instant::now(), HashMap::new());
    while start.elapsed() < Duration::from_secs(4) {
        for key in 0..100 {
            let found = below(&cache, key).await;
            assert_ne!(found.as_deref(), Some("old"), "key {key} after {:?}", start.elapsed());
            served.insert(key, found);
        }
    }
    assert!(served.values().filter(|it| it.is_some()).count() <= 50);
    in_service(&cache).await;
    cache.close().await;
}

#[tokio::test]
async fn a_cache_starts_without_redis_and_takes_it_when_it_comes() {
    let _watchdog = Watchdog::over("a server that comes late");
    let mut server = RedisServer::stopped(free_port(), &[]);
    let start = Instant::now();
    let cache = builder(&server).open().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "open waited {:?}", start.elapsed());
    cache.insert(1, "1".to_owned());
    assert_eq!(cache.get(&1).await.as_deref(), Some("1"));
    cache.flush().await;
    assert!(server.run());
    in_service(&cache).await;
    cache.close().await;
}

#[tokio::test]
async fn closing_or_dropping_ends_every_connection() {
    let server = RedisServer::start();
    let clients = async || server.cli(&["CLIENT", "LIST"]).lines().count();
    for close in [true, false] {
        let cache = open(builder(&server)).await;
        (0..500).for_each(|key| cache.insert(key, key.to_string()));
        assert!(clients().await > 1);
        if close {
            cache.close().await;
            cache.close().await;
            let start = Instant::now();
            assert_eq!(cache.get(&1_000).await, None);
            cache.insert(1, "still in memory".to_owned());
            assert_eq!(cache.get(&1).await.as_deref(), Some("still in memory"));
            cache.clear(None).await;
            assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
        }
        drop(cache);
        // redis-cli itself is one.
        until("every connection has ended", async || clients().await == 1).await;
        // What was queued has been written first.
        let entries: u32 =
            server.cli(&["EVAL", "return #redis.call('KEYS', '*')", "0"]).parse().unwrap();
        assert!(entries > 500, "{entries}");
    }
}

#[tokio::test]
async fn a_wrong_url_is_told_with_every_other_problem() {
    let error = Cache::<u32, String>::builder("test")
        .entries(0)
        .redis(RedisConfig { batch: 0, ..RedisConfig::new("http://localhost") })
        .open()
        .await
        .unwrap_err();
    let BuildError::Invalid { problems, .. } = error else { panic!("{error}") };
    let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["memory.entries", "redis.url", "redis.batch"]);
}

/// Freezes, thaws, kills and restarts a server until told to stop, and leaves it running.
async fn plague(mut server: RedisServer, until: Instant) -> RedisServer {
    let round = |mut server: RedisServer| {
        server.freeze();
        std::thread::sleep(Duration::from_millis(400));
        server.thaw();
        std::thread::sleep(Duration::from_millis(1_200));
        server.kill();
        std::thread::sleep(Duration::from_millis(300));
        assert!(server.run(), "somebody took the port");
        std::thread::sleep(Duration::from_millis(1_200));
        server
    };
    while Instant::now() < until {
        server = tokio::task::spawn_blocking(move || round(server)).await.unwrap();
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_finds_a_value_older_than_the_last_write_through_every_outage() {
    let _watchdog = Watchdog::over("the ownership model over redis");
    for (policy, order) in [
        (WritePolicy::Through, [Tier::Redis, Tier::Disk]),
        (WritePolicy::OnEviction, [Tier::Disk, Tier::Redis]),
    ] {
        let options = ["--appendonly", "yes", "--appendfsync", "always"];
        let server = RedisServer::with_options(&options);
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::<u32, u64>::builder("test")
            .entries(12)
            .write_policy(policy)
            .order(order)
            .write_queue(8, u64::MAX)
            .redis(RedisConfig { dirty_keys: 20, ..config(server.url()) })
            .disk(disk(&directory))
            .open()
            .await
            .unwrap();
        let time = Duration::from_secs(8);
        let plague = tokio::spawn(plague(server, Instant::now() + time - Duration::from_secs(3)));
        let values = ownership::run(&cache, time, 11).await;
        let stats = cache.stats();
        assert!(values > 1_000 && stats.redis.unwrap().hits > 0, "{policy:?} {stats:?}");
        cache.close().await;
        drop(plague.await.unwrap());
    }
}
