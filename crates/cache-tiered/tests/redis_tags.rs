//! The log of tags in a real Redis: machines agree, and what may have been missed is stale.
#![cfg(feature = "__redis")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod redis_server;

use std::time::{Duration, Instant};

use cache_tiered::redis::RedisTier;
use redis_server::{RedisCluster, RedisServer, free_port};
use tokio::time::sleep;

/// How long something that comes by itself may take on a machine that does many things at once.
const PATIENCE: Duration = Duration::from_secs(30);
const LOG: &str = "ultra-perf:test:0:tags";

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A tier that has read the log.
async fn tier(url: &str) -> RedisTier {
    let tier = RedisTier::start("test", redis_server::config(url)).unwrap();
    until("the log is read", async || tier.tag_head() > 0).await;
    tier
}

/// Whether an entry with this stamp and tag is stale; `None` if that is not known.
fn is_stale(tier: &RedisTier, tag: u64, stamp: u64) -> Option<bool> {
    match tier.tag_invalidated(tag) {
        u64::MAX => None,
        number => Some(number > stamp),
    }
}

async fn agree(url: &str) {
    let (ours, theirs) = (tier(url).await, tier(url).await);
    let stamps = [ours.tag_head(), theirs.tag_head()];
    for tag in [1, u64::MAX] {
        assert_eq!(is_stale(&theirs, tag, stamps[1]), Some(false));
        ours.invalidate_tags(&[tag]).await;
        assert_eq!(is_stale(&ours, tag, stamps[0]), Some(true));
        until("they know it", async || is_stale(&theirs, tag, stamps[1]) == Some(true)).await;
        assert_eq!(ours.tag_invalidated(tag), theirs.tag_invalidated(tag));
    }
    // What is made from now on is fresh, on both.
    for tier in [&ours, &theirs] {
        assert_eq!(is_stale(tier, 1, tier.tag_head()), Some(false));
        assert_eq!(is_stale(tier, 2, stamps[0]), Some(false), "another tag");
    }
    // Many at once, and one who comes later.
    let tags: Vec<u64> = (1_000..11_000).collect();
    let before = ours.tag_head();
    ours.invalidate_tags(&tags).await;
    until("all are acknowledged", async || is_stale(&ours, 10_999, before) == Some(true)).await;
    let late = tier(url).await;
    until("it has read all", async || late.tag_head() >= ours.tag_head()).await;
    assert!(tags.iter().all(|tag| is_stale(&late, *tag, before) == Some(true)));
    for tier in [ours, theirs, late] {
        tier.close().await;
    }
}

#[tokio::test]
async fn machines_agree_over_a_server() {
    let server = RedisServer::start();
    agree(&server.url()).await;
    // One number for all that were invalidated together, and none of them old.
    let members: u64 = server.cli(&["ZCARD", LOG]).parse().unwrap();
    assert_eq!(members, 10_000 + 2 + 1);
}

#[tokio::test]
async fn machines_agree_over_a_cluster() {
    let cluster = RedisCluster::start();
    agree(&cluster.url()).await;
}

#[tokio::test]
async fn a_log_that_is_gone_or_none_leaves_nothing_fresh_that_was() {
    let server = RedisServer::start();
    let (ours, theirs) = (tier(&server.url()).await, tier(&server.url()).await);
    for loss in [&["DEL", LOG][..], &["SET", LOG, "no log"]] {
        ours.invalidate_tags(&[1]).await;
        until("they know it", async || theirs.tag_head() >= ours.tag_head()).await;
        let stamp = ours.tag_head();
        server.cli(loss);
        if loss[0] == "SET" {
            // Nobody can read it, and so nobody takes an invalidation for acknowledged.
            ours.invalidate_tags(&[2]).await;
            assert_eq!(is_stale(&ours, 2, stamp), None);
            server.cli(&["DEL", LOG]);
        }
        for tier in [&ours, &theirs] {
            until("all is stale", async || is_stale(tier, 2, stamp) == Some(true)).await;
        }
        until("they agree", async || ours.tag_head() == theirs.tag_head()).await;
        assert_eq!(ours.tag_invalidated(2), theirs.tag_invalidated(2));
    }
    ours.close().await;
    theirs.close().await;
}

#[tokio::test]
async fn numbers_that_are_older_than_any_entry_leave_the_log() {
    let server = RedisServer::start();
    let tier = tier(&server.url()).await;
    let day = Duration::from_secs(24 * 60 * 60).as_micros() as u64;
    let (old, recent) = (tier.tag_head() - day - 700_000_000, tier.tag_head() - day);
    for (number, tag) in [(old, 1), (recent, 2)] {
        server.cli(&["ZADD", LOG, &number.to_string(), &format!("{tag:016x}")]);
    }
    tier.invalidate_tags(&[3]).await;
    assert_eq!(server.cli(&["ZCOUNT", LOG, "-inf", &old.to_string()]), "0");
    assert_eq!(server.cli(&["ZCOUNT", LOG, "-inf", &recent.to_string()]), "1");
    // What is as old as that is stale whatever its tags are.
    assert_eq!(is_stale(&tier, 77, old), Some(true));
    tier.close().await;
}

#[tokio::test]
async fn what_is_invalidated_while_the_server_is_away_is_not_forgotten() {
    // What Redis has been told survives its death.
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::with_options(&options);
    let (ours, theirs) = (tier(&server.url()).await, tier(&server.url()).await);
    let stamp = ours.tag_head();
    server.kill();
    let start = Instant::now();
    ours.invalidate_tags(&[1]).await;
    ours.invalidate_tags(&[2]).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    for tag in [1, 2] {
        assert_eq!(is_stale(&ours, tag, stamp), None);
    }
    assert_eq!(is_stale(&ours, 3, stamp), Some(false));
    assert!(server.run(), "somebody took the port");
    for tier in [&ours, &theirs] {
        for tag in [1, 2] {
            until("it is known", async || is_stale(tier, tag, stamp) == Some(true)).await;
        }
        assert_eq!(is_stale(tier, 3, stamp), Some(false), "the log is the same");
    }
    ours.close().await;
    theirs.close().await;
}

#[tokio::test]
async fn without_a_server_nothing_is_known_to_be_fresh() {
    let tier = RedisTier::start(
        "test",
        redis_server::config(format!("redis://127.0.0.1:{}", free_port())),
    )
    .unwrap();
    tier.invalidate_tags(&[1]).await;
    assert_eq!((tier.tag_head(), tier.tag_invalidated(2)), (0, u64::MAX));
    tier.close().await;
}
