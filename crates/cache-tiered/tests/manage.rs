//! Looking after a cache without knowing the types of its keys and values.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use cache_tiered::{Cache, Clock, Engine, InsertOptions, ManagedCache, Policy, Tag, Tier};
use parking_lot::Mutex;

type Seen = Arc<Mutex<Vec<Weak<dyn ManagedCache>>>>;

/// A list and a hook that adds the cache to it, weakly.
fn hook(seen: &Seen) -> impl FnOnce(Arc<dyn ManagedCache>) + Send + 'static {
    let seen = Arc::clone(seen);
    move |cache| seen.lock().push(Arc::downgrade(&cache))
}

fn names(seen: &Seen) -> Vec<String> {
    let seen = seen.lock();
    seen.iter().filter_map(Weak::upgrade).map(|cache| cache.name().to_owned()).collect()
}

#[test]
fn a_managed_cache_can_go_to_any_thread_and_be_shown() {
    fn check<T: std::fmt::Debug + Send + Sync + 'static + ?Sized>() {}
    check::<dyn ManagedCache>();
    let cache = Cache::<u64, u64>::builder("users").build().unwrap();
    assert_eq!(format!("{:?}", cache.managed()), format!("{cache:?}"));
}

#[test]
fn each_hook_is_called_once_by_build_and_survives_another_hasher() {
    let (first, second) = (Seen::default(), Seen::default());
    let cache = Cache::<u64, u64>::builder("users")
        .on_open(hook(&first))
        .hasher(std::collections::hash_map::RandomState::new())
        .on_open(hook(&second))
        .build()
        .unwrap();
    assert_eq!((names(&first), names(&second)), (vec!["users".into()], vec!["users".into()]));
    assert!(Weak::ptr_eq(&first.lock()[0], &Arc::downgrade(&cache.managed())));
}

#[test]
fn a_cache_that_cannot_be_built_calls_no_hook() {
    let seen = Seen::default();
    let builder = Cache::<u64, u64>::builder("users").entries(0).on_open(hook(&seen));
    assert!(builder.build().is_err());
    assert!(seen.lock().is_empty());
}

#[cfg(feature = "disk")]
#[tokio::test]
async fn open_calls_a_hook_once_and_not_when_the_disk_cannot_be_had() {
    use cache_tiered::disk::DiskConfig;

    let directory = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let builder = || {
        Cache::<u64, u64>::builder("users")
            .disk(DiskConfig::new(directory.path()).capacity_bytes(2 << 20))
            .on_open(hook(&seen))
    };
    let cache = builder().open().await.unwrap();
    assert_eq!(names(&seen), ["users"]);
    // The directory is locked.
    assert!(builder().open().await.is_err());
    assert_eq!(names(&seen), ["users"]);
    cache.close().await;
}

#[test]
fn who_keeps_a_weak_reference_does_not_keep_the_cache() {
    let seen = Seen::default();
    let cache = Cache::<u64, u64>::builder("users").on_open(hook(&seen)).build().unwrap();
    let handle = cache.clone();
    drop(cache);
    assert_eq!(names(&seen), ["users"]);
    drop(handle);
    assert!(names(&seen).is_empty());
}

#[tokio::test]
async fn what_is_done_through_it_is_done_to_the_cache() {
    let clock = Clock::manual();
    let cache = Cache::<u64, Vec<u8>>::builder("pages")
        .bytes(64_000, |_, page| page.len() as u64)
        .policy(Policy::Lru)
        .clock(clock.clone())
        .build()
        .unwrap();
    let managed = cache.managed();
    for page in 0..60 {
        cache.insert(page, vec![0; 1_000]);
    }
    assert_eq!((managed.name(), managed.capacity()), ("pages", 64_000));
    assert!(managed.is_bounded_by_bytes());
    assert_eq!(managed.stats(), cache.stats());
    assert_eq!(managed.reclaimable_bytes(), cache.reclaimable_bytes());

    managed.resize(32_000);
    assert_eq!(cache.capacity(), 32_000);
    assert!(cache.stats().memory.bytes <= 32_000);
    let held = cache.reclaimable_bytes();
    let freed = managed.reclaim_until(10_000, Instant::now() + Duration::from_secs(60));
    assert!(freed >= 10_000, "{freed}");
    assert_eq!(cache.reclaimable_bytes(), held - freed);

    managed.set_policy(Policy::S3Fifo).unwrap();
    assert_eq!((managed.policy(), cache.policy()), (Some(Policy::S3Fifo), Some(Policy::S3Fifo)));
    assert_eq!(managed.policy_report(), cache.policy_report());
    assert!(managed.miss_ratio_curve().is_none() && managed.hit_ratio_at(1).is_none());

    cache.insert_with(100, Vec::new(), InsertOptions::default().tag("user:1"));
    managed.invalidate_tags(&[Tag::new("user:1")]).await;
    assert_eq!(cache.get_in_memory(&100), None);
    cache.insert_with(101, Vec::new(), InsertOptions::ttl(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(2));
    assert_eq!(managed.remove_expired().await, 1);
    managed.clear(Some(Tier::Memory)).await;
    assert_eq!(cache.stats().memory.entries, 0);
    managed.flush().await;
    managed.close().await;
}

#[test]
fn an_engine_without_policies_says_so() {
    let builder = Cache::<u64, u64>::builder("users").engine(Engine::ClockPro).entries(1_000);
    let managed = builder.build().unwrap().managed();
    assert!(managed.set_policy(Policy::Lru).is_err());
    assert_eq!((managed.policy(), managed.is_bounded_by_bytes()), (None, false));
    assert_eq!(managed.capacity(), managed.stats().memory.capacity);
}

#[cfg(feature = "metrics")]
#[test]
fn a_publisher_publishes_as_long_as_the_cache_is_there_and_does_not_keep_it() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let cache = Cache::<u64, u64>::builder("users").build().unwrap();
    let weak = Arc::downgrade(&cache.managed());
    let publish = metrics::with_local_recorder(&recorder, || cache.managed().publisher());
    let shown = |line: &str| handle.render().lines().any(|shown| shown == line);
    cache.insert(1, 1);
    cache.get_in_memory(&1);
    publish();
    assert!(shown("cache_hits_total{cache=\"users\",type=\"memory\"} 1"), "{}", handle.render());
    drop(cache);
    assert!(weak.upgrade().is_none());
    publish();
    assert!(shown("cache_hits_total{cache=\"users\",type=\"memory\"} 1"));
}
