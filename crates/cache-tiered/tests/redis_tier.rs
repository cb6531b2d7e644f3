//! The Redis tier against real servers that are killed, frozen, flushed and restarted.
#![cfg(feature = "__redis")]

#[path = "support/redis_server.rs"]
mod redis_server;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cache_tiered::redis::{BreakerState, Lookup, RedisConfig, RedisTier, RemoteWrite};
use futures_util::future::join_all;
use redis_server::{RedisCluster, RedisServer, config, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// The key of the namespace's version.
const VERSION: &str = "ultra-perf:test:0:version";
/// What a call may take beyond its budget, on a machine that does many things at once.
const SLACK: Duration = Duration::from_millis(150);
/// How long something that comes by itself may take at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tier in service.
async fn tier(server: &RedisServer) -> RedisTier {
    start(config(server.url())).await
}

async fn start(config: RedisConfig) -> RedisTier {
    let tier = RedisTier::start("test", config).unwrap();
    in_service(&tier).await;
    tier
}

async fn in_service(tier: &RedisTier) {
    until("the tier is in service", async || {
        let stats = tier.stats();
        stats.serving && stats.connected && stats.breaker == BreakerState::Closed
    })
    .await;
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

fn bytes(text: impl ToString) -> Bytes {
    Bytes::from(text.to_string())
}

fn hit(value: impl ToString) -> Lookup {
    Lookup::Hit(bytes(value))
}

fn put(key: impl ToString, value: impl ToString, ttl: Option<Duration>) -> RemoteWrite {
    RemoteWrite::Put { key: bytes(key), value: bytes(value), ttl }
}

async fn write(tier: &RedisTier, key: &str, value: &str) {
    tier.write(vec![put(key, value, None)]).await;
}

async fn get(tier: &RedisTier, key: &str) -> Lookup {
    tier.get(key.as_bytes()).await
}

/// Puts until the value is found, as it must be once the tier is well.
async fn works(tier: &RedisTier) -> Duration {
    until("a put value is found", async || {
        write(tier, "works", "yes").await;
        get(tier, "works").await == hit("yes")
    })
    .await
}

/// Checks for a while that a value does not come back.
async fn never(tier: &RedisTier, key: &str, value: &str, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_ne!(get(tier, key).await, hit(value), "after {:?}", start.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
}

/// Checks that no call takes longer than it may, and that calls cost nothing when the breaker is open.
async fn an_outage_is_cheap(tier: &RedisTier) {
    let budget = RedisConfig::default().timeout;
    until("the breaker is open", async || {
        let start = Instant::now();
        let many = [bytes("a"), bytes("b")];
        let (one, many, ()) =
            tokio::join!(get(tier, "k"), tier.get_many(&many), write(tier, "w", "1"));
        assert!(start.elapsed() <= budget + SLACK, "{:?}", start.elapsed());
        assert_eq!((one, many), (Lookup::Unavailable, vec![Lookup::Unavailable; 2]));
        tier.stats().breaker == BreakerState::Open
    })
    .await;
    // The upkeep may be probing at any moment; then the breaker is half-open, and as cheap.
    let start = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(get(tier, "k").await, Lookup::Unavailable);
    }
    assert!(start.elapsed() <= SLACK, "a thousand gets took {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_come_back_until_they_expire_at_the_server() {
    let server = RedisServer::start();
    let tier = tier(&server).await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
    let ttl = Duration::from_millis(700);
    tier.write(vec![put("short", 1, Some(ttl)), put("long", vec_text(100_000), None)]).await;
    let start = Instant::now();
    if start.elapsed() < ttl / 2 {
        assert_eq!(get(&tier, "short").await, hit(1));
    }
    assert_eq!(get(&tier, "long").await, hit(vec_text(100_000)));
    until("it has expired", async || get(&tier, "short").await == Lookup::Miss).await;
    let names = server.cli(&["KEYS", "*:r:long"]);
    assert!(names.starts_with("ultra-perf:test:0:"), "{names}");
    let left: u64 = server.cli(&["PTTL", &names]).parse().unwrap();
    assert!((1..=24 * 60 * 60 * 1_000).contains(&left), "{left}");
    tier.write(vec![RemoteWrite::Remove { key: bytes("long") }]).await;
    assert_eq!(get(&tier, "long").await, Lookup::Miss);
}

fn vec_text(length: usize) -> String {
    "x".repeat(length)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_gets_share_commands() {
    let server = RedisServer::start();
    let tier = start(RedisConfig { timeout: Duration::from_secs(5), ..config(server.url()) }).await;
    let keys: Vec<String> = (0..64).map(|key| key.to_string()).collect();
    tier.write(keys.iter().map(|key| put(key, key, None)).collect()).await;
    let before = server.calls("mget");
    for _ in 0..10 {
        let found = join_all(keys.iter().map(|key| get(&tier, key))).await;
        assert!(found.iter().zip(&keys).all(|(found, key)| *found == hit(key)));
    }
    let calls = server.calls("mget") - before;
    assert!(calls <= 160, "{calls} commands for 640 gets");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_little_and_is_found_again() {
    let mut server = RedisServer::start();
    let tier = tier(&server).await;
    write(&tier, "k", "1").await;
    server.kill();
    an_outage_is_cheap(&tier).await;
    assert!(server.run());
    let took = works(&tier).await;
    assert!(took <= Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_costs_little_and_is_found_again() {
    for frozen in [Duration::from_millis(300), Duration::from_secs(7)] {
        let server = RedisServer::start();
        let tier = tier(&server).await;
        server.freeze();
        let start = Instant::now();
        an_outage_is_cheap(&tier).await;
        sleep(frozen.saturating_sub(start.elapsed())).await;
        server.thaw();
        let took = works(&tier).await;
        assert!(took <= Duration::from_secs(8), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_socket_is_full_is_found_again() {
    let server = RedisServer::start();
    let tier = tier(&server).await;
    server.freeze();
    // More than both sockets hold, so that the client hangs in the middle of sending.
    for key in 0..4 {
        tier.write(vec![put(key, vec_text(7 << 20), None)]).await;
    }
    an_outage_is_cheap(&tier).await;
    sleep(Duration::from_secs(4)).await;
    server.thaw();
    works(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_later_is_found() {
    let mut server = RedisServer::stopped(free_port(), &[]);
    let tier = RedisTier::start("test", config(server.url())).unwrap();
    let start = Instant::now();
    assert_eq!(get(&tier, "k").await, Lookup::Unavailable);
    write(&tier, "k", "lost").await;
    assert!(start.elapsed() <= SLACK);
    sleep(Duration::from_secs(1)).await;
    assert!(server.run(), "the port was taken");
    works(&tier).await;
    assert_eq!(get(&tier, "k").await, Lookup::Miss);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_value_does_not_come_back_after_a_freeze() {
    for frozen in [Duration::from_millis(200), Duration::from_secs(6)] {
        let server = RedisServer::start();
        let tier = tier(&server).await;
        write(&tier, "k", "1").await;
        assert_eq!(get(&tier, "k").await, hit(1));
        server.freeze();
        write(&tier, "k", "2").await;
        assert_eq!(tier.stats().failed_writes, 1);
        sleep(frozen).await;
        // Its write may be executed when the server goes on, and must not undo this one.
        server.thaw();
        works(&tier).await;
        write(&tier, "k", "3").await;
        never(&tier, "k", "1", Duration::from_millis(50)).await;
        never(&tier, "k", "2", Duration::from_secs(3)).await;
        until("the key is clean", async || tier.stats().dirty_keys == 0).await;
        write(&tier, "k", "4").await;
        assert_eq!(get(&tier, "k").await, hit(4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_lost_writes_empty_the_namespace() {
    let server = RedisServer::start();
    let tier = start(RedisConfig { dirty_keys: 8, ..config(server.url()) }).await;
    tier.write((0..20).map(|key| put(key, "old", None)).collect()).await;
    let version = server.cli(&["GET", "ultra-perf:test:0:version"]);
    server.freeze();
    tier.write((0..9).map(|key| put(key, "new", None)).collect()).await;
    server.thaw();
    in_service(&tier).await;
    for key in 0..20 {
        assert_ne!(get(&tier, &key.to_string()).await, hit("old"));
    }
    assert_ne!(server.cli(&["GET", "ultra-perf:test:0:version"]), version);
    works(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_while_the_server_is_frozen_holds_for_everybody_afterwards() {
    let server = RedisServer::start();
    let (one, other) = (tier(&server).await, tier(&server).await);
    write(&one, "k", "1").await;
    assert_eq!(get(&other, "k").await, hit(1));
    server.freeze();
    let start = Instant::now();
    one.clear().await;
    assert!(start.elapsed() <= RedisConfig::default().timeout + SLACK);
    assert_eq!(get(&one, "k").await, Lookup::Unavailable);
    sleep(Duration::from_millis(500)).await;
    server.thaw();
    in_service(&one).await;
    assert_eq!(get(&one, "k").await, Lookup::Miss);
    in_service(&other).await;
    until("the other has seen it", async || get(&other, "k").await == Lookup::Miss).await;
    works(&other).await;
    until("they agree", async || get(&one, "works").await == hit("yes")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_is_seen_by_others_within_a_second_or_so() {
    let server = RedisServer::start();
    let (one, other) = (tier(&server).await, tier(&server).await);
    write(&one, "k", "1").await;
    assert_eq!(get(&other, "k").await, hit(1));
    one.clear().await;
    assert_eq!(get(&one, "k").await, Lookup::Miss);
    let seen =
        until("the other has seen it", async || get(&other, "k").await == Lookup::Miss).await;
    assert!(seen <= Duration::from_millis(1_500), "{seen:?}");
    write(&other, "k", "2").await;
    assert_eq!(get(&one, "k").await, hit(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_without_its_version_gets_a_new_one() {
    let server = RedisServer::start();
    let tier = tier(&server).await;
    for lose in [&["FLUSHALL"][..], &["DEL", "ultra-perf:test:0:version"]] {
        write(&tier, "k", "1").await;
        assert_eq!(get(&tier, "k").await, hit(1));
        server.cli(lose);
        let exists = async || server.cli(&["EXISTS", "ultra-perf:test:0:version"]).ends_with('1');
        until("there is a version", exists).await;
        until("it is used", async || get(&tier, "k").await == Lookup::Miss).await;
        works(&tier).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_restored_from_a_snapshot_does_not_bring_old_values_back() {
    let mut server = RedisServer::start();
    let tier = tier(&server).await;
    write(&tier, "k", "1").await;
    assert_eq!(server.cli(&["SAVE"]), "OK");
    write(&tier, "k", "2").await;
    server.kill();
    assert!(server.run());
    assert_eq!(server.cli(&["KEYS", "*:r:k"]).lines().count(), 1, "the snapshot was not loaded");
    until("the tier is connected", async || tier.stats().connected).await;
    never(&tier, "k", "1", Duration::from_secs(2)).await;
    works(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_writes_is_still_read_and_nothing_stale_is_found() {
    let server = RedisServer::start();
    let tier = tier(&server).await;
    tier.write(vec![put("k", "1", None), put("other", "1", None)]).await;
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    write(&tier, "k", "2").await;
    never(&tier, "k", "1", Duration::from_millis(500)).await;
    assert_eq!(get(&tier, "other").await, hit(1));
    assert_eq!(tier.stats().breaker, BreakerState::Closed);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    works(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_in_the_url_opens_the_server() {
    let server = RedisServer::with_options(&["--requirepass", "sec/ret"]);
    let port = server.port();
    let with = |password: &str| config(format!("redis://:{password}@127.0.0.1:{port}/3"));
    works(&start(with("sec%2Fret")).await).await;
    let wrong = RedisTier::start("test", with("wrong")).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(get(&wrong, "k").await, Lookup::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_connections_serve_as_one() {
    let server = RedisServer::start();
    let tier = start(RedisConfig { connections: 2, ..config(server.url()) }).await;
    for value in 0..50 {
        write(&tier, "k", &value.to_string()).await;
        let pair = tokio::join!(get(&tier, "k"), get(&tier, "k"));
        assert_eq!(pair, (hit(value), hit(value)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_or_dropped_tier_leaves_no_connection() {
    let server = RedisServer::start();
    // One is that of the command itself.
    let alone = async || server.cli(&["CLIENT", "LIST"]).lines().count() == 1;
    let closed = tier(&server).await;
    assert!(!alone().await);
    closed.close().await;
    until("the closed one is gone", alone).await;
    let dropped = tier(&server).await;
    assert!(!alone().await);
    drop(dropped);
    until("the dropped one is gone", alone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_a_frozen_server() {
    let server = RedisServer::start();
    let tier = tier(&server).await;
    server.freeze();
    let start = Instant::now();
    tier.close().await;
    assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_one_tier() {
    let mut cluster = RedisCluster::start();
    let budget = Duration::from_secs(1);
    let tier = start(RedisConfig { timeout: budget, ..config(cluster.url()) }).await;
    let keys: Vec<Bytes> = (0..300).map(bytes).collect();
    tier.write(keys.iter().map(|key| put(key.escape_ascii(), key.escape_ascii(), None)).collect())
        .await;
    let found = tier.get_many(&keys).await;
    assert!(found.iter().zip(&keys).all(|(found, key)| *found == Lookup::Hit(key.clone())));
    assert_eq!(get(&tier, "7").await, hit(7));
    for node in &cluster.nodes {
        let held: u64 = node.cli(&["DBSIZE"]).trim_start_matches("(integer) ").parse().unwrap();
        assert!(held > 50, "{held} of 300 keys on one of three nodes");
    }
    tier.clear().await;
    let found = tier.get_many(&keys).await;
    assert!(found.iter().all(|found| *found == Lookup::Miss));
    works(&tier).await;

    cluster.nodes[1].kill();
    let start = Instant::now();
    tier.get_many(&keys).await;
    assert!(start.elapsed() <= budget + SLACK, "{:?}", start.elapsed());
    assert!(cluster.nodes[1].run());
    works(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_take_their_values_along() {
    let cluster = RedisCluster::start();
    let budget = Duration::from_secs(1);
    let tier = start(RedisConfig { timeout: budget, ..config(cluster.url()) }).await;
    let keys: Vec<Bytes> = (0..300).map(bytes).collect();
    let put = |key: &Bytes| put(key.escape_ascii(), key.escape_ascii(), None);
    tier.write(keys.iter().map(put).collect()).await;
    let version = |cluster: &RedisCluster| cluster.nodes[0].cli(&["-c", "GET", VERSION]);
    let before = version(&cluster);
    let moved = Arc::new(AtomicBool::new(false));
    let reader = {
        let (tier, keys, moved) = (tier.clone(), keys.clone(), Arc::clone(&moved));
        tokio::spawn(async move {
            while !moved.load(Ordering::Relaxed) {
                for (found, key) in tier.get_many(&keys).await.into_iter().zip(&keys) {
                    let right = Lookup::Hit(key.clone());
                    assert!(found == right || !matches!(found, Lookup::Hit(_)), "{found:?}");
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
    };
    let [from, to] = [0, 1].map(|node| cluster.nodes[node].cli(&["CLUSTER", "MYID"]));
    let address = format!("127.0.0.1:{}", cluster.nodes[0].port());
    let reshard = tokio::task::spawn_blocking(move || {
        Command::new("redis-cli")
            .args(["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to])
            .args(["--cluster-slots", "2000", "--cluster-yes"])
            .output()
            .expect("redis-cli not found: cargo xtask test installs it")
    });
    let resharded = reshard.await.unwrap();
    assert!(resharded.status.success(), "{}", String::from_utf8_lossy(&resharded.stdout));
    moved.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    let all: Vec<_> = keys.iter().cloned().map(Lookup::Hit).collect();
    until("every value is found", async || tier.get_many(&keys).await == all).await;
    assert_eq!(version(&cluster), before, "nothing was left behind");
    works(&tier).await;
}

/// Takes connections, says hello and hangs up, until told to stop.
async fn flapping(port: u16, accepted: Arc<AtomicU64>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let _ = socket.read(&mut [0; 4_096]).await;
            let _ = socket.write_all(b"%1\r\n+server\r\n+redis\r\n").await;
            sleep(Duration::from_millis(20)).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_up_at_once_is_not_stormed() {
    let mut server = RedisServer::stopped(free_port(), &[]);
    let accepted = Arc::new(AtomicU64::new(0));
    let flapping = tokio::spawn(flapping(server.port(), Arc::clone(&accepted)));
    let tier = RedisTier::start("test", config(server.url())).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let call = Instant::now();
        assert_eq!(get(&tier, "k").await, Lookup::Unavailable);
        write(&tier, "k", "lost").await;
        let most = 2 * RedisConfig::default().timeout + SLACK;
        assert!(call.elapsed() <= most, "{:?}", call.elapsed());
        sleep(Duration::from_millis(1)).await;
    }
    let accepted = accepted.load(Ordering::Relaxed);
    assert!((1..60).contains(&accepted), "{accepted} connections in two seconds");
    flapping.abort();
    let _ = flapping.await;
    assert!(server.run(), "the port was taken");
    works(&tier).await;
}

const TLS_URL: &str = "ULTRA_PERF_TLS_URL";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of a_server_behind_tls_is_reached_if_its_certificate_is_trusted"]
async fn reaches_a_server_behind_tls() {
    let Ok(url) = std::env::var(TLS_URL) else { return };
    let Ok(tier) = RedisTier::start("test", config(url)) else { return println!("no roots") };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) && !tier.stats().serving {
        sleep(Duration::from_millis(5)).await;
    }
    if tier.stats().serving {
        works(&tier).await;
        println!("it works");
    }
}

#[test]
fn a_server_behind_tls_is_reached_if_its_certificate_is_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for name in ["own", "other"] {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &path(&format!("{name}.key"))])
            .args(["-out", &path(&format!("{name}.pem"))])
            .output();
        match made {
            Ok(made) => assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr)),
            Err(error) => return println!("SKIPPED: no certificate without openssl: {error}"),
        }
    }
    let port = free_port().to_string();
    let files = [path("own.pem"), path("own.key")];
    let tls = ["--tls-port", &port, "--tls-auth-clients", "no"];
    let tls = [&tls[..], &["--tls-cert-file", &files[0], "--tls-key-file", &files[1]]].concat();
    let _server = RedisServer::with_options(&[&tls[..], &["--requirepass", "secret"]].concat());
    // This file may be a module of another test program.
    let inside = module_path!().split_once("::").map(|(_, module)| format!("{module}::"));
    let name = format!("{}reaches_a_server_behind_tls", inside.unwrap_or_default());
    for (roots, host, expected) in
        [("own", "localhost", true), ("other", "localhost", false), ("own", "127.0.0.1", false)]
    {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture"])
            .env(TLS_URL, format!("rediss://:secret@{host}:{port}/2"))
            .env("SSL_CERT_FILE", path(&format!("{roots}.pem")))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}");
        assert_eq!(told.contains("it works"), expected, "{roots} {host}: {told}");
    }
}
