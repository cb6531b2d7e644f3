//! Memory that begins warm from the disk tier, and what may happen meanwhile.
#![cfg(feature = "disk")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::{Cache, CacheBuilder, Clock, Tier, WarmProgress};

type Numbers = Cache<u32, String>;

fn builder(directory: &Path) -> CacheBuilder<u32, String> {
    Cache::builder("test")
        .entries(100_000)
        .disk(DiskConfig::new(directory).capacity_bytes(64 << 20))
}

fn value(key: u32) -> String {
    format!("the value of {key}")
}

/// Leaves these keys on the disk, in this order, and nothing in memory.
async fn stored(
    builder: CacheBuilder<u32, String>,
    keys: impl IntoIterator<Item = u32>,
) -> Numbers {
    let cache = builder.open().await.unwrap();
    for (at, key) in keys.into_iter().enumerate() {
        cache.insert(key, value(key));
        if at % 10_000 == 9_999 {
            cache.flush().await;
        }
    }
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    cache
}

fn quiet(_: WarmProgress) {}

fn in_memory(cache: &Numbers) -> Vec<u32> {
    let mut keys: Vec<_> = cache.keys().collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn after_a_restart_memory_holds_what_was_written_last() {
    let directory = tempfile::tempdir().unwrap();
    stored(builder(directory.path()), 0..6_000).await.close().await;
    let cache = builder(directory.path()).open().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = {
        let seen = Arc::clone(&seen);
        move |progress: WarmProgress| seen.lock().unwrap().push(progress)
    };
    let done = cache.warm_from_disk(watch).await;
    assert_eq!((done.entries, done.skipped), (6_000, 0));
    assert!(done.bytes > 6_000 * 50 && done.bytes == done.total, "{done:?}");
    assert!((0..6_000).all(|key| cache.get_in_memory(&key) == Some(value(key))));
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen.len() > 4 && seen.is_sorted_by_key(|it| (it.entries, it.bytes)));
    assert_eq!(seen.last(), Some(&done));
    // All of it a second time: memory has it already.
    let again = cache.warm_from_disk(quiet).await;
    assert_eq!((again.entries, again.skipped), (0, 6_000));
    cache.close().await;
}

#[tokio::test]
async fn a_smaller_memory_gets_the_newest_and_no_more_than_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    stored(builder(directory.path()), 0..6_000).await.close().await;
    let cache = builder(directory.path()).entries(1_000).open().await.unwrap();
    let done = cache.warm_from_disk(quiet).await;
    assert_eq!(done.entries, 1_000);
    let keys = in_memory(&cache);
    assert!(keys.len() > 900 && keys.iter().all(|key| *key >= 5_000), "{}", keys.len());
    cache.close().await;
}

#[tokio::test]
async fn a_memory_that_counts_bytes_is_filled_and_not_overrun() {
    let directory = tempfile::tempdir().unwrap();
    let weighing = |bytes| {
        builder(directory.path()).bytes(bytes, |_: &u32, value: &String| value.len() as u64 + 500)
    };
    stored(weighing(64 << 20), 0..6_000).await.close().await;
    let cache = weighing(1 << 20).open().await.unwrap();
    let done = cache.warm_from_disk(quiet).await;
    let stats = cache.stats().memory;
    assert!((1_500..2_200).contains(&done.entries), "{done:?}");
    assert!(stats.bytes > 800_000 && stats.evictions.capacity < 50, "{stats:?}");
    assert!(in_memory(&cache).iter().all(|key| *key >= 3_500));
    cache.close().await;
}

#[tokio::test]
async fn what_was_removed_replaced_or_has_expired_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let timed = || builder(directory.path()).clock(clock.clone());
    let cache = stored(timed(), 0..1_000).await;
    for key in 0..100 {
        cache.remove(&key).await;
    }
    (100..200).for_each(|key| cache.insert(key, "newer".to_owned()));
    let soon = cache_tiered::InsertOptions::ttl(Duration::from_secs(5));
    (200..300).for_each(|key| cache.insert_with(key, "short".to_owned(), soon));
    let later = cache_tiered::InsertOptions::ttl(Duration::from_secs(50));
    (300..400).for_each(|key| cache.insert_with(key, "long".to_owned(), later));
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    clock.advance(Duration::from_secs(6));
    assert_eq!(cache.warm_from_disk(quiet).await.entries, 800);
    let keys = in_memory(&cache);
    assert_eq!(keys, (100..200).chain(300..1_000).collect::<Vec<_>>());
    assert_eq!(cache.get_in_memory(&150).as_deref(), Some("newer"));
    // They have the time that they had left, and no more.
    clock.advance(Duration::from_secs(43));
    assert!(cache.get_in_memory(&350).is_some());
    clock.advance(Duration::from_secs(2));
    assert!(cache.get_in_memory(&350).is_none() && cache.get_in_memory(&150).is_some());
    cache.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_removed_or_cleared_meanwhile_wins() {
    let directory = tempfile::tempdir().unwrap();
    let cache = stored(builder(directory.path()), 0..7_000).await;
    for round in 0..4 {
        let warming = tokio::spawn({
            let cache = cache.clone();
            async move { cache.warm_from_disk(quiet).await }
        });
        let newer = format!("newer {round}");
        for key in (0..7_000).rev().step_by(7) {
            cache.insert(key, newer.clone());
        }
        for key in (3..7_000).step_by(7) {
            cache.remove(&key).await;
        }
        warming.await.unwrap();
        let wrong: Vec<_> = (0..7_000)
            .rev()
            .step_by(7)
            .filter(|key| cache.get_in_memory(key).is_some_and(|value| value != newer))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let removed = (3..7_000).step_by(7).filter(|key| (6_999 - key) % 7 != 0);
        let back: Vec<_> = removed.filter(|key| cache.get_in_memory(key).is_some()).collect();
        assert!(back.is_empty(), "{back:?}");
        cache.flush().await;
        cache.clear(Tier::Memory).await;
    }
    let warming = tokio::spawn({
        let cache = cache.clone();
        async move { cache.warm_from_disk(quiet).await }
    });
    cache.clear(None).await;
    warming.await.unwrap();
    assert!(in_memory(&cache).is_empty());
    cache.close().await;
}

#[tokio::test]
async fn the_builder_warms_up_in_the_background_and_closing_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    stored(builder(directory.path()), 0..5_000).await.close().await;
    let cache = builder(directory.path()).warm_up(true).open().await.unwrap();
    let start = Instant::now();
    while cache.stats().memory.entries < 5_000 {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cache.close().await;
    for _ in 0..20 {
        let cache = builder(directory.path()).warm_up(true).open().await.unwrap();
        cache.close().await;
        assert_eq!(cache.warm_from_disk(quiet).await, WarmProgress::default());
    }
    // The last handle goes without a word; the directory is free soon.
    drop(builder(directory.path()).warm_up(true).open().await.unwrap());
    let start = Instant::now();
    while builder(directory.path()).open().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn damage_and_what_is_of_another_schema_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    stored(builder(directory.path()), 0..5_000).await.close().await;
    let other = builder(directory.path()).schema_version(7).open().await.unwrap();
    let done = other.warm_from_disk(quiet).await;
    assert_eq!((done.entries, done.skipped), (0, 5_000));
    other.close().await;

    let log = directory.path().join("segment-0000000000000000.log");
    let cache = builder(directory.path()).open().await.unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    for at in (1_000..bytes.len()).step_by(50_000) {
        bytes[at..at + 200].fill(0xEE);
    }
    // In place: the tier has the file open.
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    std::io::Write::write_all(&mut &file, &bytes).unwrap();
    let done = cache.warm_from_disk(quiet).await;
    assert!((4_900..5_000).contains(&done.entries), "{done:?}");
    assert!(cache.iter().all(|(key, found)| found == value(key)));
    cache.close().await;
}

#[tokio::test]
async fn without_a_disk_there_is_nothing_to_warm_up_from() {
    let cache = Cache::<u32, String>::builder("test").build().unwrap();
    assert_eq!(cache.warm_from_disk(quiet).await, WarmProgress::default());
}

#[cfg(feature = "encryption")]
#[tokio::test]
async fn encrypted_entries_come_up_with_their_key_and_not_without() {
    use cache_tiered::EncryptionKeys;

    let directory = tempfile::tempdir().unwrap();
    let with = |key: u8| builder(directory.path()).encryption(EncryptionKeys::new(1, &[key; 32]));
    stored(with(1), 0..500).await.close().await;
    for (key, entries) in [(1, 500), (2, 0)] {
        let cache = with(key).open().await.unwrap();
        assert_eq!(cache.warm_from_disk(quiet).await.entries, entries);
        cache.close().await;
    }
}
