//! Entries on their way up and down: never written twice, and never older than they may become.
#![cfg(feature = "disk")]

#[cfg(feature = "redis")]
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the tier alone use the rest")]
mod redis_server;

use std::path::Path;
use std::time::Duration;

use cache_tiered::disk::DiskConfig;
use cache_tiered::{Cache, CacheBuilder, Clock, InsertOptions, Policy, Tier, WritePolicy};

const TTL: Duration = Duration::from_secs(100);

fn builder(directory: &Path) -> CacheBuilder<u32, String> {
    Cache::builder("moves").entries(64).disk(DiskConfig::new(directory).capacity_bytes(16 << 20))
}

fn disk_writes(cache: &Cache<u32, String>) -> u64 {
    let disk = cache.stats().disk.unwrap();
    disk.writes + disk.dropped_writes
}

#[tokio::test]
async fn what_was_read_from_the_disk_is_not_written_there_again() {
    for policy in [WritePolicy::OnEviction, WritePolicy::Through] {
        let directory = tempfile::tempdir().unwrap();
        // One that lets go of everything in turn.
        let builder = builder(directory.path()).policy(Policy::Lru).write_policy(policy);
        let cache = builder.open().await.unwrap();
        let read_all = async || {
            for key in 0..500 {
                assert_eq!(cache.get(&key).await.as_deref(), Some("value"), "{policy:?}");
            }
            cache.flush().await;
        };
        (0..500).for_each(|key| cache.insert(key, "value".to_owned()));
        cache.flush().await;
        // The first round writes down what only memory has had until then.
        read_all().await;
        let (writes, evicted) = (disk_writes(&cache), cache.stats().memory.evictions.capacity);
        assert!((500..=564).contains(&writes), "{policy:?}: {writes}");
        for _ in 0..3 {
            read_all().await;
        }
        assert_eq!(disk_writes(&cache), writes, "{policy:?}");
        assert!(cache.stats().memory.evictions.capacity > evicted + 1_000);
        cache.close().await;
    }
}

/// Moves the entry of key 0 down and up in every way there is, second after second, until its time to
/// live is over.
async fn lives_no_longer(clock: &Clock, open: impl AsyncFn() -> Cache<u32, String>) {
    let snapshots = tempfile::tempdir().unwrap();
    let mut cache = open().await;
    cache.insert_with(0, "mortal".to_owned(), InsertOptions::ttl(TTL));
    for second in 1..=100 {
        clock.advance(Duration::from_secs(1));
        match second % 5 {
            // Pushed out by others, and looked up.
            0 => {
                for other in 1..400 {
                    cache.insert_with(other, "other".to_owned(), InsertOptions::ttl(Duration::MAX));
                }
                cache.flush().await;
            }
            1 => cache.clear(Tier::Memory).await,
            2 => {
                cache.close().await;
                cache = open().await;
                cache.warm_from_disk(|_| ()).await;
            }
            3 => {
                let path = snapshots.path().join("snapshot");
                cache.save(&path, |_| ()).await.unwrap();
                cache.clear(Tier::Memory).await;
                cache.load(&path, |_| ()).await.unwrap();
            }
            _ => drop(cache.get_many(&[0, 1, 2]).await),
        }
        let found = cache.get(&0).await;
        let expected = (second < 100).then_some("mortal");
        assert!(
            found.as_deref() == expected || (second % 5 == 1 && found.is_none()),
            "after {second} s: {found:?}"
        );
        if found.is_none() && second < 100 {
            // Only memory had it, and that was cleared: another one with the time that is left.
            let left = InsertOptions::ttl(TTL - Duration::from_secs(second));
            cache.insert_with(0, "mortal".to_owned(), left);
        }
    }
    assert_eq!(cache.get_in_memory(&0), None);
    cache.clear(Tier::Memory).await;
    assert_eq!(cache.get_many(&[0]).await, [None]);
    cache.close().await;
}

#[tokio::test]
async fn between_memory_and_disk_a_time_to_live_never_grows() {
    for policy in [WritePolicy::OnEviction, WritePolicy::Through] {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual();
        let open = async || {
            let builder = builder(directory.path()).write_policy(policy).clock(clock.clone());
            builder.open().await.unwrap()
        };
        lives_no_longer(&clock, open).await;
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn with_redis_between_them_it_does_not_grow_either() {
    use cache_tiered::redis::RedisConfig;

    let server = redis_server::RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let open = async || {
        let builder = builder(directory.path()).redis(RedisConfig::new(server.url()));
        builder.clock(clock.clone()).open().await.unwrap()
    };
    lives_no_longer(&clock, open).await;
}
