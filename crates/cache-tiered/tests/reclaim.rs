//! Memory that is given back under pressure: how much goes, which entries, and what stays below.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cache_tiered::{Cache, Engine, EvictionCause, Policy};

const ENGINES: [Engine; 2] = [Engine::Switchable, Engine::ClockPro];

fn pages(engine: Engine, count: u64) -> Cache<u64, Vec<u8>> {
    let cache = Cache::builder("pages")
        .engine(engine)
        .bytes(64 << 20, |_, page: &Vec<u8>| page.len() as u64)
        .build()
        .expect("valid settings");
    for page in 0..count {
        cache.insert(page, vec![0; 1_000]);
    }
    cache
}

#[test]
fn about_as_much_goes_as_was_asked_for() {
    for engine in ENGINES {
        let cache = pages(engine, 10_000);
        let before = cache.stats().memory;
        assert_eq!(cache.reclaimable_bytes(), before.bytes);
        let freed = cache.reclaim(3_000_000);
        let after = cache.stats().memory;
        assert_eq!(freed, before.bytes - after.bytes, "{engine}");
        assert!((3_000_000..=3_100_000).contains(&freed), "{engine}: {freed}");
        assert_eq!(after.capacity, before.capacity, "{engine}");
        // Room again.
        cache.insert(1_000_000, vec![0; 1_000]);
        assert!(cache.get_in_memory(&1_000_000).is_some(), "{engine}");
        assert!(cache.reclaim(u64::MAX) >= 6_900_000, "{engine}");
        assert!(cache.stats().memory.entries <= 16, "{engine}: {:?}", cache.stats().memory);
        assert_eq!(cache.reclaim(0), 0);
    }
}

#[test]
fn what_is_in_use_stays_though_the_cache_was_never_full() {
    for policy in [Policy::Lru, Policy::Lfu, Policy::Arc, Policy::S3Fifo, Policy::Adaptive] {
        let cache = Cache::builder("pages")
            .policy(policy)
            .bytes(64 << 20, |_, page: &Vec<u8>| page.len() as u64)
            .build()
            .expect("valid settings");
        for page in 0..10_000u64 {
            cache.insert(page, vec![0; 1_000]);
            if page % 100 == 0 {
                (0..500).for_each(|hot| drop(cache.get_in_memory(&hot)));
            }
        }
        for _ in 0..4 {
            assert!(cache.reclaim(1_500_000) >= 1_500_000);
            (0..500).for_each(|hot| drop(cache.get_in_memory(&hot)));
        }
        let left = (0..500).filter(|hot| cache.get_in_memory(hot).is_some()).count();
        assert!(left >= 450, "{policy}: {left} of 500");
    }
}

#[test]
fn what_is_pinned_stays_whatever_is_asked_for() {
    let cache = pages(Engine::Switchable, 1_000);
    assert_eq!(cache.pin(&7), Ok(true));
    assert!(cache.reclaim(u64::MAX) > 0);
    assert_eq!(cache.keys().collect::<Vec<_>>(), [7]);
}

#[test]
fn entries_that_are_not_weighed_are_taken_for_their_own_size() {
    let cache = Cache::<u64, u64>::builder("numbers").entries(10_000).build().expect("valid");
    for number in 0..5_000 {
        cache.insert(number, number);
    }
    assert_eq!(cache.reclaimable_bytes(), 5_000 * 116);
    let freed = cache.reclaim(116_000);
    // Each shard rounds up.
    assert!((116_000..=120_000).contains(&freed), "{freed}");
    assert_eq!(cache.stats().memory.entries, 5_000 - freed / 116);
}

#[test]
fn a_listener_hears_of_it_and_a_deadline_ends_it() {
    let heard = Arc::new(AtomicU64::new(0));
    let cache = Cache::<u64, u64>::builder("numbers")
        .entries(10_000)
        .on_eviction({
            let heard = Arc::clone(&heard);
            move |_, _, cause| {
                assert_eq!(cause, EvictionCause::Capacity);
                heard.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()
        .expect("valid");
    for number in 0..1_000 {
        cache.insert(number, number);
    }
    assert_eq!(cache.reclaim_until(u64::MAX, Instant::now() - Duration::from_secs(1)), 0);
    cache.reclaim_until(1_160, Instant::now() + Duration::from_secs(60));
    assert_eq!(heard.load(Ordering::Relaxed), 10);
}

#[cfg(feature = "disk")]
#[tokio::test]
async fn the_tiers_below_keep_what_leaves_memory() {
    use cache_tiered::WritePolicy;
    use cache_tiered::disk::DiskConfig;

    for write in [WritePolicy::Through, WritePolicy::OnEviction] {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::<u64, u64>::builder("numbers")
            .entries(1_000)
            .write_policy(write)
            .disk(DiskConfig::new(directory.path()).capacity_bytes(16 << 20))
            .open()
            .await
            .expect("it opens");
        for number in 0..100 {
            cache.insert(number, number);
        }
        assert!(cache.reclaim(u64::MAX) > 0);
        cache.flush().await;
        assert_eq!(cache.keys().count(), 0);
        for number in 0..100 {
            assert_eq!(cache.get(&number).await, Some(number), "{write:?}");
        }
        cache.close().await;
    }
}
