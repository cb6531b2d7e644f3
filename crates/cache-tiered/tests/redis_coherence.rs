//! Several caches over one Redis: what one writes or removes leaves the memory of the others, whatever
//! becomes of their connections.
//!
//! The other machine is a second cache in this process, or this test program again, running only
//! `does_as_it_is_told`.
#![cfg(all(feature = "__redis", feature = "disk"))]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod redis_server;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::redis::{Coherence, RedisConfig};
use cache_tiered::{Cache, CacheBuilder, CoherenceStats, EvictionCause, Tier, WritePolicy};
use parking_lot::Mutex;
use redis_server::{RedisCluster, RedisServer};
use tokio::time::sleep;
use watchdog::Watchdog;

/// How long something that comes by itself may take on a machine that does many things at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may happen until it is taken for granted that it will not.
const QUIET: Duration = Duration::from_millis(100);
/// Both ways in which changes are told.
const WAYS: [Coherence; 2] = [Coherence::Tracking, Coherence::PubSub];

const URL: &str = "ULTRA_PERF_COHERENCE_URL";
const WAY: &str = "ULTRA_PERF_COHERENCE_WAY";

fn config(url: &str, coherence: Coherence) -> RedisConfig {
    // A write that is late on a machine that does many things at once would be undone.
    let timeout = Duration::from_millis(800);
    RedisConfig { coherence, timeout, ..redis_server::config(url) }
}

fn builder(url: &str, coherence: Coherence) -> CacheBuilder<u32, String> {
    Cache::builder("test").entries(100_000).redis(config(url, coherence))
}

/// A cache that follows.
async fn open(builder: CacheBuilder<u32, String>) -> Cache<u32, String> {
    let cache = builder.open().await.unwrap();
    coherent(&cache).await;
    cache
}

fn coherence<K, V>(cache: &Cache<K, V>) -> CoherenceStats
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache.stats().coherence.unwrap()
}

async fn coherent(cache: &Cache<u32, String>) {
    until("the cache follows", async || coherence(cache).coherent).await;
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_micros(500)).await;
    }
    start.elapsed()
}

async fn put(cache: &Cache<u32, String>, key: u32, value: &str) {
    cache.insert(key, value.to_owned());
    cache.flush().await;
}

/// Waits until a look-up finds this.
async fn finds(cache: &Cache<u32, String>, key: u32, value: Option<&str>) {
    let start = Instant::now();
    loop {
        let found = cache.get(&key).await;
        if found.as_deref() == value {
            return;
        }
        let stats = (coherence(cache), cache.stats().redis);
        assert!(start.elapsed() < PATIENCE, "key {key} is {found:?}, not {value:?}: {stats:?}");
        sleep(Duration::from_micros(500)).await;
    }
}

/// Waits until these are in memory: what was read before the news of its change came is read again.
async fn in_memory(cache: &Cache<u32, String>, keys: &[u32]) {
    until("all are in memory", async || {
        cache.get_many(keys).await;
        keys.iter().all(|key| cache.get_in_memory(key).is_some())
    })
    .await;
}

/// The name of an entry in Redis.
fn name(server: &RedisServer, key: u32) -> String {
    let key: String = key.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let version = server.cli(&["GET", "ultra-perf:test:0:version"]);
    format!("ultra-perf:test:0:{version}:x:{key}")
}

#[tokio::test]
async fn what_another_cache_writes_or_removes_leaves_memory() {
    let server = RedisServer::start();
    for way in WAYS {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let ours = open(builder(&server.url(), way)).await;
        let theirs = open(builder(&server.url(), way).on_eviction(move |key, _, cause| {
            listener.lock().push((*key, cause));
        }))
        .await;
        assert_eq!(coherence(&ours).mode, Some(way.as_str()));
        put(&ours, 1, "old").await;
        put(&ours, 2, "old").await;
        finds(&theirs, 1, Some("old")).await;
        finds(&theirs, 2, Some("old")).await;
        in_memory(&theirs, &[1, 2]).await;

        put(&ours, 1, "new").await;
        finds(&theirs, 1, Some("new")).await;
        ours.remove(&2).await;
        finds(&theirs, 2, None).await;
        assert!(heard.lock().contains(&(1, EvictionCause::Invalidated)));
        assert!(heard.lock().contains(&(2, EvictionCause::Invalidated)));
        // And back again.
        put(&theirs, 1, "theirs").await;
        finds(&ours, 1, Some("theirs")).await;

        // A cache's own writes stay with it.
        let before = coherence(&ours);
        for round in 0..20 {
            put(&ours, 3, &round.to_string()).await;
            assert_eq!(ours.get_in_memory(&3).as_deref(), Some(&*round.to_string()));
        }
        sleep(QUIET).await;
        assert_eq!(ours.get_in_memory(&3).as_deref(), Some("19"));
        assert_eq!(coherence(&ours), before);
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn the_copy_on_the_disk_goes_too() {
    let server = RedisServer::start();
    for way in WAYS {
        let directory = tempfile::tempdir().unwrap();
        let disk = DiskConfig::new(directory.path()).capacity_bytes(8 << 20);
        let ours = open(builder(&server.url(), way)).await;
        let order = [Tier::Disk, Tier::Redis];
        let theirs = open(builder(&server.url(), way).disk(disk).order(order)).await;
        put(&theirs, 1, "old").await;
        put(&theirs, 2, "old").await;
        put(&ours, 1, "new").await;
        finds(&theirs, 1, Some("new")).await;
        ours.remove(&2).await;
        finds(&theirs, 2, None).await;
        theirs.flush().await;
        theirs.clear(Tier::Memory).await;
        assert_eq!(theirs.get(&1).await.as_deref(), Some("new"));
        assert_eq!(theirs.get(&2).await, None);
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn what_memory_alone_has_is_followed_too() {
    let server = RedisServer::start();
    for way in WAYS {
        let build = || builder(&server.url(), way).write_policy(WritePolicy::OnEviction);
        let (ours, theirs) = (open(build()).await, open(build()).await);
        theirs.insert(1, "old".to_owned());
        theirs.flush().await;
        // Redis holds no value of theirs, but is told that an older one is gone; ours writes no value
        // there either, but says the same.
        put(&ours, 1, "new").await;
        until("it has left their memory", async || theirs.get_in_memory(&1).is_none()).await;
        assert_eq!(theirs.get(&1).await, None);
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn keys_of_every_kind_are_found_by_their_names() {
    let server = RedisServer::start();
    let keys = ["", "plain", "größe:{1}", "two\nlines", &"long".repeat(60), &"\n".repeat(300)];
    for way in WAYS {
        let build = || async {
            let cache = Cache::<String, u32>::builder("texts")
                .redis(config(&server.url(), way))
                .open()
                .await
                .unwrap();
            until("the cache follows", async || coherence(&cache).coherent).await;
            cache
        };
        let (ours, theirs) = (build().await, build().await);
        for (value, expected) in [(1, None), (2, Some(1)), (3, Some(2))] {
            for key in keys.map(str::to_owned) {
                assert_eq!(theirs.get(&key).await, expected, "{key}");
                ours.insert(key.clone(), value);
                ours.flush().await;
                until(&key, async || theirs.get(&key).await == Some(value)).await;
            }
        }
        assert_eq!(coherence(&theirs).resets, 0);
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn a_clear_empties_the_others_memory() {
    let server = RedisServer::start();
    for way in WAYS {
        let (ours, theirs) =
            (open(builder(&server.url(), way)).await, open(builder(&server.url(), way)).await);
        put(&ours, 1, "old").await;
        finds(&theirs, 1, Some("old")).await;
        ours.clear(None).await;
        let took = until("they are clear", async || theirs.get_in_memory(&1).is_none()).await;
        assert!(took < Duration::from_millis(800), "told, and not found by the look each second");
        put(&ours, 1, "new").await;
        finds(&theirs, 1, Some("new")).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn a_server_that_is_flushed_empties_every_memory() {
    let server = RedisServer::start();
    for way in WAYS {
        for flush in ["FLUSHALL", "FLUSHDB"] {
            let (ours, theirs) =
                (open(builder(&server.url(), way)).await, open(builder(&server.url(), way)).await);
            put(&ours, 1, "old").await;
            finds(&theirs, 1, Some("old")).await;
            assert_eq!(server.cli(&[flush]), "OK");
            for cache in [&ours, &theirs] {
                let took = until(flush, async || cache.get_in_memory(&1).is_none()).await;
                assert!(took < Duration::from_secs(5), "{took:?}");
                assert_eq!(cache.get(&1).await, None);
            }
            until("they share again", async || {
                put(&ours, 1, "new").await;
                theirs.get(&1).await.as_deref() == Some("new")
            })
            .await;
            ours.close().await;
            theirs.close().await;
        }
    }
}

#[tokio::test]
async fn what_expires_or_is_evicted_in_redis_leaves_memory() {
    let server = RedisServer::start();
    let cache = open(builder(&server.url(), Coherence::Tracking)).await;
    put(&cache, 1, "1").await;
    put(&cache, 2, "2").await;
    assert_eq!(server.cli(&["PEXPIRE", &name(&server, 1), "20"]), "1");
    until("it has left memory", async || cache.get_in_memory(&1).is_none()).await;
    assert_eq!(cache.get_in_memory(&2).as_deref(), Some("2"));
    cache.close().await;
}

/// Has a receiver that does not keep up overwritten thousands of keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_leaves_nothing_old_behind() {
    const KEYS: u32 = 5_000;
    let _watchdog = Watchdog::over("a burst of changes");
    let server = RedisServer::start();
    for way in WAYS {
        let url = server.url();
        let ours = open(builder(&url, way)).await;
        (0..KEYS).for_each(|key| ours.insert(key, "old".to_owned()));
        ours.flush().await;
        // A runtime of its own, which stands still while the changes come.
        let (filled, is_filled) = std::sync::mpsc::sync_channel(1);
        let (changed, is_changed) = std::sync::mpsc::sync_channel(1);
        let theirs = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let theirs = open(builder(&url, way)).await;
                let keys: Vec<_> = (0..KEYS).collect();
                in_memory(&theirs, &keys).await;
                filled.send(()).unwrap();
                is_changed.recv().unwrap();
                until("nothing old is in memory", async || {
                    let old = |key: &u32| theirs.get_in_memory(key).as_deref() == Some("old");
                    !keys.iter().any(old)
                })
                .await;
                let found = theirs.get_many(&keys).await;
                assert!(found.iter().flatten().all(|value| value == "new"));
                theirs.close().await;
                coherence(&theirs)
            })
        });
        tokio::task::block_in_place(|| is_filled.recv()).unwrap();
        for key in 0..KEYS {
            ours.insert(key, "new".to_owned());
        }
        ours.flush().await;
        changed.send(()).unwrap();
        let stats = tokio::task::block_in_place(|| theirs.join()).unwrap();
        assert!(stats.invalidations >= u64::from(KEYS) || stats.resets > 0, "{stats:?}");
        ours.clear(None).await;
        ours.close().await;
    }
}

/// A change that comes in the same turn of the server as the end of every connection.
#[tokio::test]
async fn what_changes_while_the_connection_is_away_is_not_served_when_it_is_back() {
    let server = RedisServer::start();
    for way in WAYS {
        let cache = open(builder(&server.url(), way)).await;
        for round in 0..3 {
            put(&cache, 1, "old").await;
            coherent(&cache).await;
            let resets = coherence(&cache).resets;
            let script = format!(
                "MULTI\nCLIENT KILL TYPE normal SKIPME yes\nCLIENT KILL TYPE pubsub SKIPME yes\nDEL {}\nEXEC\n",
                name(&server, 1),
            );
            let answers = tell(&server, &script);
            assert!(answers.ends_with('1'), "{answers}");
            until("it has left memory", async || cache.get_in_memory(&1).is_none()).await;
            coherent(&cache).await;
            assert_eq!(cache.get(&1).await, None, "round {round}");
            assert!(coherence(&cache).resets > resets);
        }
        cache.clear(None).await;
        cache.close().await;
    }
}

/// Runs commands from the standard input of one `redis-cli`, and returns what it prints.
fn tell(server: &RedisServer, commands: &str) -> String {
    let mut cli = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli not found: cargo xtask test installs it");
    cli.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = cli.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn a_server_that_is_killed_or_frozen_and_comes_back_is_followed_again() {
    let _watchdog = Watchdog::over("a server that comes back");
    for way in WAYS {
        let mut server = RedisServer::start();
        let (ours, theirs) =
            (open(builder(&server.url(), way)).await, open(builder(&server.url(), way)).await);
        for round in ["killed", "frozen"] {
            put(&ours, 1, "old").await;
            finds(&theirs, 1, Some("old")).await;
            let resets = coherence(&theirs).resets;
            if round == "killed" {
                server.kill();
                assert!(server.run(), "somebody took the port");
            } else {
                server.freeze();
                sleep(Duration::from_millis(1_500)).await;
                server.thaw();
            }
            if round == "killed" {
                until("their memory is empty", async || coherence(&theirs).resets > resets).await;
            }
            coherent(&ours).await;
            coherent(&theirs).await;
            until("they share again", async || {
                put(&ours, 1, round).await;
                theirs.get(&1).await.as_deref() == Some(round)
            })
            .await;
            put(&ours, 1, "newer").await;
            finds(&theirs, 1, Some("newer")).await;
            finds(&ours, 1, Some("newer")).await;
        }
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn every_master_of_a_cluster_is_followed_and_followed_again() {
    let _watchdog = Watchdog::over("a cluster");
    let cluster = RedisCluster::start();
    let keys: Vec<u32> = (0..90).collect();
    for way in WAYS {
        let (ours, theirs) =
            (open(builder(&cluster.url(), way)).await, open(builder(&cluster.url(), way)).await);
        let change = async |value: &str| {
            for key in &keys {
                ours.insert(*key, value.to_owned());
            }
            ours.flush().await;
            let expected: Vec<_> = keys.iter().map(|_| Some(value.to_owned())).collect();
            until(value, async || theirs.get_many(&keys).await == expected).await;
        };
        change("first").await;
        in_memory(&theirs, &keys).await;
        // A cluster that was just made may still settle, which counts as a change of its nodes.
        let settled = coherence(&theirs).resets;
        change("second").await;
        assert_eq!(coherence(&theirs).resets, settled);
        for node in &cluster.nodes {
            let resets = coherence(&theirs).resets;
            node.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            node.cli(&["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"]);
            if way == Coherence::Tracking {
                until("one connection is new", async || coherence(&theirs).resets > resets).await;
            }
            until("redis is in service", async || {
                put(&ours, 1_000, node.port().to_string().as_str()).await;
                theirs.get(&1_000).await == Some(node.port().to_string())
            })
            .await;
            coherent(&theirs).await;
            change(&node.port().to_string()).await;
            change("again").await;
        }
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

/// Has a slot move to a node that was not there before, whose pushes have to be asked for.
#[tokio::test]
async fn a_node_that_joins_a_cluster_is_followed() {
    let _watchdog = Watchdog::over("a cluster that grows");
    let cluster = RedisCluster::start();
    let url = cluster.url();
    let ours = open(builder(&url, Coherence::Tracking)).await;
    let theirs = open(builder(&url, Coherence::Tracking)).await;
    put(&ours, 1, "old").await;
    finds(&theirs, 1, Some("old")).await;

    let first = &cluster.nodes[0];
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let new = RedisServer::with_options(&options);
    first.cli(&["CLUSTER", "MEET", "127.0.0.1", &new.port().to_string()]);
    let nodes: Vec<_> = cluster.nodes.iter().chain([&new]).collect();
    let knows = |it: &&RedisServer| {
        let info = it.cli(&["CLUSTER", "INFO"]);
        info.contains("cluster_known_nodes:4") && info.contains("cluster_state:ok")
    };
    let known = async || nodes.iter().all(knows);
    until("the node is known", known).await;
    // redis-cli does not go where a node sends it, so of three only the right one has the version.
    let version = "ultra-perf:test:0:version";
    let version = cluster.nodes.iter().map(|it| it.cli(&["GET", version]));
    let version = version.into_iter().find(|it| it.parse::<u64>().is_ok()).unwrap();
    let name = format!("ultra-perf:test:0:{version}:x:01000000");
    let slot = first.cli(&["CLUSTER", "KEYSLOT", &name]);
    let old = cluster.nodes.iter().find(|it| it.cli(&["EXISTS", &name]) == "1").unwrap();
    let (from, to) = (old.cli(&["CLUSTER", "MYID"]), new.cli(&["CLUSTER", "MYID"]));
    assert_eq!(new.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]), "OK");
    assert_eq!(old.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]), "OK");
    let port = new.port().to_string();
    assert_eq!(old.cli(&["MIGRATE", "127.0.0.1", &port, &name, "0", "5000"]), "OK");
    for node in [&new].into_iter().chain(nodes.iter().copied()) {
        assert_eq!(node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
    }
    for round in 0..20 {
        until("they share again", async || {
            put(&ours, 1, &round.to_string()).await;
            theirs.get(&1).await == Some(round.to_string())
        })
        .await;
        in_memory(&theirs, &[1]).await;
    }
    assert_eq!(new.cli(&["EXISTS", &name]), "1");
    coherent(&theirs).await;
    put(&ours, 1, "new").await;
    finds(&theirs, 1, Some("new")).await;
    ours.close().await;
    theirs.close().await;
}

/// Readers that never pause, and a writer: a value that was read before a change must not stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_read_while_it_changes_does_not_stay() {
    let _watchdog = Watchdog::over("reads that race with changes");
    let server = RedisServer::start();
    for way in WAYS {
        let (ours, theirs) =
            (open(builder(&server.url(), way)).await, open(builder(&server.url(), way)).await);
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (theirs, done) = (theirs.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    while !done.load(Ordering::Relaxed) {
                        theirs.get(&1).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for round in 0..150 {
            let value = round.to_string();
            put(&ours, 1, &value).await;
            finds(&theirs, 1, Some(&value)).await;
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn what_came_before_the_server_did_is_let_go_and_what_was_warmed_stays() {
    let _watchdog = Watchdog::over("a server that comes late");
    let mut server = RedisServer::stopped(redis_server::free_port(), &[]);
    let cache = builder(&server.url(), Coherence::Auto).open().await.unwrap();
    assert_eq!(coherence(&cache), CoherenceStats::default());
    cache.insert(1, "1".to_owned());
    cache.get_or_load(&2, async || Ok::<_, std::io::Error>("2".to_owned())).await.unwrap();
    cache.warm([(3, "3".to_owned())]);
    assert!(server.run());
    coherent(&cache).await;
    let found = [1, 2, 3].map(|key| cache.get_in_memory(&key).is_some());
    assert_eq!(found, [false, false, true]);
    assert_eq!((coherence(&cache).resets, coherence(&cache).mode), (0, Some("tracking")));
    cache.close().await;
}

#[tokio::test]
async fn without_tracking_messages_are_followed_and_without_either_memory_keeps_its_own() {
    let server = RedisServer::start();
    let user = |rules: &[&str]| {
        let mut command = vec!["ACL", "SETUSER", "cache", "reset", "on", ">secret", "~*", "+@all"];
        command.extend_from_slice(rules);
        assert_eq!(server.cli(&command), "OK");
        format!("redis://cache:secret@127.0.0.1:{}", server.port())
    };
    let url = user(&["&*", "-client|tracking"]);
    let (ours, theirs) =
        (open(builder(&url, Coherence::Auto)).await, open(builder(&url, Coherence::Auto)).await);
    assert_eq!(coherence(&ours).mode, Some("pubsub"));
    put(&ours, 1, "old").await;
    finds(&theirs, 1, Some("old")).await;
    put(&ours, 1, "new").await;
    finds(&theirs, 1, Some("new")).await;
    ours.close().await;
    theirs.close().await;

    let url = user(&["resetchannels", "-client|tracking"]);
    for way in [Coherence::Auto, Coherence::Tracking, Coherence::PubSub, Coherence::Off] {
        let (ours, theirs) =
            (builder(&url, way).open().await.unwrap(), builder(&url, way).open().await.unwrap());
        until("they share", async || {
            put(&ours, 1, "old").await;
            theirs.clear(Tier::Memory).await;
            theirs.get(&1).await.as_deref() == Some("old")
        })
        .await;
        let before = ours.stats().redis.unwrap();
        put(&ours, 1, "new").await;
        sleep(QUIET).await;
        assert_eq!(theirs.get_in_memory(&1).as_deref(), Some("old"), "{way:?}");
        assert_eq!((coherence(&ours).coherent, coherence(&ours).mode), (false, None));
        let after = ours.stats().redis.unwrap();
        let expected = (before.errors, before.dropped_writes, before.writes + 1);
        assert_eq!((after.errors, after.dropped_writes, after.writes), expected, "{way:?}");
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}

#[tokio::test]
async fn a_message_that_nobody_understands_empties_memory() {
    let server = RedisServer::start();
    let cache = open(builder(&server.url(), Coherence::PubSub)).await;
    put(&cache, 1, "1").await;
    sleep(QUIET).await;
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some("1"));
    server.cli(&["PUBLISH", "ultra-perf:test:0:changes", "what?"]);
    until("memory is empty", async || cache.get_in_memory(&1).is_none()).await;
    assert_eq!((coherence(&cache).resets, cache.get(&1).await.as_deref()), (1, Some("1")));
    cache.close().await;
}

/// Another process with a cache of its own.
struct Machine {
    child: Child,
    told: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Machine {
    fn start(url: &str, way: Coherence) -> Self {
        // This file may be a module of another test program.
        let inside = module_path!().split_once("::").map(|(_, module)| format!("{module}::"));
        let name = format!("{}does_as_it_is_told", inside.unwrap_or_default());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture"])
            .env(URL, url)
            .env(WAY, way.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut machine = Self { child, told, says: BufReader::new(says) };
        machine.hear("ready");
        machine
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.told, "{what}").unwrap();
    }

    /// Reads up to a line that begins so, and returns the rest of it.
    fn hear(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "the other process has ended");
            // The test harness prints its own words before it.
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// It waits for what it is told on a thread that the cache needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the tests with two processes"]
async fn does_as_it_is_told() {
    let Ok(url) = std::env::var(URL) else { return };
    let way = match std::env::var(WAY).unwrap().as_str() {
        "tracking" => Coherence::Tracking,
        _ => Coherence::PubSub,
    };
    let cache = open(builder(&url, way)).await;
    println!("ready");
    let lines = std::io::stdin().lines();
    for line in lines {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let (what, key) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
        match what {
            "put" => put(&cache, key, words.next().unwrap()).await,
            "remove" => {
                cache.remove(&key).await;
                cache.flush().await;
            }
            "get" => {}
            other => panic!("{other}"),
        }
        println!("has {:?}", cache.get(&key).await.as_deref().unwrap_or("nothing"));
    }
}

#[tokio::test]
async fn two_processes_agree() {
    let _watchdog = Watchdog::over("two processes");
    let server = RedisServer::start();
    for way in WAYS {
        let cache = open(builder(&server.url(), way)).await;
        let mut machine = Machine::start(&server.url(), way);
        let mut slowest = Duration::ZERO;
        for round in 0..50 {
            machine.tell(&format!("put 1 {round}"));
            machine.hear("has ");
            let value = round.to_string();
            let start = Instant::now();
            finds(&cache, 1, Some(&value)).await;
            slowest = slowest.max(start.elapsed());
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        put(&cache, 1, "ours").await;
        let start = Instant::now();
        loop {
            machine.tell("get 1");
            if machine.hear("has ") == "\"ours\"" {
                break;
            }
            assert!(start.elapsed() < PATIENCE);
        }
        machine.tell("remove 1");
        machine.hear("has ");
        finds(&cache, 1, None).await;
        cache.clear(None).await;
        cache.close().await;
    }
}

/// `cargo nextest run -p cache-tiered --features redis --run-ignored only --no-capture -E
/// 'test(how_long_a_change_takes)'` prints it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_long_a_change_takes() {
    let server = RedisServer::start();
    for way in WAYS {
        let (ours, theirs) =
            (open(builder(&server.url(), way)).await, open(builder(&server.url(), way)).await);
        let mut took = Vec::new();
        for _ in 0..1_000 {
            put(&ours, 1, "old").await;
            finds(&theirs, 1, Some("old")).await;
            in_memory(&theirs, &[1]).await;
            let start = Instant::now();
            ours.insert(1, "new".to_owned());
            while theirs.get_in_memory(&1).as_deref() == Some("old") {
                tokio::task::yield_now().await;
            }
            took.push(start.elapsed());
            ours.flush().await;
            finds(&theirs, 1, Some("new")).await;
        }
        took.sort();
        println!("{way:?}: p50 {:?}, p99 {:?}, most {:?}", took[500], took[990], took[999]);
        ours.clear(None).await;
        ours.close().await;
        theirs.close().await;
    }
}
