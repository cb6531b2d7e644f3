//! What the memory tier offers beyond inserting and looking up: policies, capacity, pins, snapshots,
//! listeners, hashers; with both engines where both can.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_tiered::{Cache, CacheBuilder, Clock, Engine, EvictionCause, Policy};

const ENGINES: [Engine; 2] = [Engine::Switchable, Engine::ClockPro];

fn builder(engine: Engine) -> CacheBuilder<u64, u64> {
    Cache::builder("test").engine(engine)
}

fn held(cache: &Cache<u64, u64>) -> u64 {
    cache.stats().memory.entries
}

#[test]
fn a_switch_of_the_policy_loses_no_entry() {
    let cache = builder(Engine::Switchable).entries(2_000).policy(Policy::Lru).build().unwrap();
    (0..1_000).for_each(|key| cache.insert(key, key));
    for policy in Policy::ALL.into_iter().chain(Policy::ALL.into_iter().rev()) {
        cache.set_policy(policy).unwrap();
        assert_eq!(cache.policy(), Some(policy));
        assert!((0..1_000).all(|key| cache.get_in_memory(&key) == Some(key)), "{policy}");
        // The bound holds and entries leave under each.
        (10_000..13_000).for_each(|key| cache.insert(key, key));
        assert!((1_500..=2_000).contains(&held(&cache)), "{policy}: {}", held(&cache));
        (10_000..13_000)
            .for_each(|key| _ = futures_util::FutureExt::now_or_never(cache.remove(&key)));
        (0..1_000).for_each(|key| cache.insert(key, key));
    }
}

#[test]
fn quick_cache_says_what_it_cannot_do() {
    let cache = builder(Engine::ClockPro).entries(100).build().unwrap();
    cache.insert(1, 1);
    let refused = cache.set_policy(Policy::Lru).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the engine clock-pro cannot change its policy; build the cache with Engine::Switchable"
    );
    assert!(cache.pin(&1).is_err() && cache.unpin(&1).is_err());
    assert_eq!(cache.policy(), None);
    assert_eq!(cache.policy_report(), None);
    assert!(cache.hit_ratio_at(10).is_none());
}

#[test]
fn a_resize_takes_effect_at_once_in_both_directions() {
    for engine in ENGINES {
        let cache = builder(engine).entries(10_000).build().unwrap();
        (0..10_000).for_each(|key| cache.insert(key, key));
        cache.resize(500);
        assert!(held(&cache) <= 500, "{engine}: {}", held(&cache));
        assert!(cache.stats().memory.capacity <= 500, "{engine}");
        assert!(cache.iter().all(|(key, value)| key == value));
        cache.resize(20_000);
        (0..40_000).for_each(|key| cache.insert(key, key));
        assert!((15_000..=20_000).contains(&held(&cache)), "{engine}: {}", held(&cache));
    }
}

#[test]
fn a_capacity_of_zero_keeps_nothing_and_one_smaller_than_the_shards_something() {
    let cache = builder(Engine::Switchable).entries(10_000).build().unwrap();
    (0..10_000).for_each(|key| cache.insert(key, key));
    cache.resize(0);
    assert_eq!(held(&cache), 0);
    cache.insert(1, 1);
    assert_eq!((cache.get_in_memory(&1), cache.stats().memory.evictions.too_large), (None, 1));
    cache.resize(2);
    (0..1_000).for_each(|key| cache.insert(key, key));
    assert_eq!(held(&cache), 2);
}

#[test]
fn a_pinned_entry_outlives_every_other_until_it_is_unpinned() {
    for policy in Policy::ALL {
        let cache = builder(Engine::Switchable).entries(64).policy(policy).build().unwrap();
        assert_eq!(cache.pin(&1), Ok(false), "it is not here");
        cache.insert(1, 10);
        assert_eq!(cache.pin(&1), Ok(true));
        (100..5_000).for_each(|key| cache.insert(key, key));
        assert_eq!(cache.get_in_memory(&1), Some(10), "{policy}");
        cache.insert(1, 11);
        (100..5_000).for_each(|key| cache.insert(key, key));
        assert_eq!(cache.get_in_memory(&1), Some(11), "{policy}: a newer value stays pinned");
        assert_eq!(cache.unpin(&1), Ok(true));
        assert_eq!(cache.unpin(&1), Ok(false));
        (5_000..20_000).for_each(|key| cache.insert(key, key));
        assert_eq!(cache.get_in_memory(&1), None, "{policy}");
        assert!(held(&cache) <= 64);
    }
}

#[test]
fn pins_take_half_of_the_room_and_no_more() {
    let cache = builder(Engine::Switchable).entries(20).build().unwrap();
    (0..20).for_each(|key| cache.insert(key, key));
    let pinned = (0..20).filter(|key| cache.pin(key) == Ok(true)).count();
    assert_eq!(pinned, 10);
    (100..1_000).for_each(|key| cache.insert(key, key));
    assert_eq!((0..20).filter(|key| cache.get_in_memory(key).is_some()).count(), 10);
    assert_eq!(held(&cache), 20);
}

#[tokio::test]
async fn a_pin_ends_with_the_time_to_live_or_a_removal() {
    let clock = Clock::manual();
    let cache = builder(Engine::Switchable)
        .entries(100)
        .ttl(Duration::from_secs(10))
        .time_to_idle(Duration::from_secs(2))
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    cache.insert(2, 2);
    assert_eq!((cache.pin(&1), cache.pin(&2)), (Ok(true), Ok(true)));
    clock.advance(Duration::from_secs(5));
    assert_eq!(cache.get_in_memory(&1), Some(1), "a pinned entry does not go idle");
    cache.remove(&2).await;
    assert_eq!(cache.unpin(&2), Ok(false));
    clock.advance(Duration::from_secs(5));
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(held(&cache), 0);
}

#[tokio::test]
async fn a_snapshot_has_every_entry_once_and_is_no_look_up() {
    for engine in ENGINES {
        let cache = builder(engine).entries(10_000).build().unwrap();
        (0..1_000).for_each(|key| cache.insert(key, key * 2));
        let entries: HashMap<_, _> = cache.iter().collect();
        assert_eq!(entries.len(), 1_000);
        assert!(entries.iter().all(|(key, value)| key * 2 == *value));
        let mut keys: Vec<_> = cache.keys().collect();
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..1_000), "{engine}");
        assert_eq!(cache.stats().memory.hits, 0);

        let asked = [5, 5_000, 7, 5];
        let found = cache.get_many(&asked).await;
        assert_eq!(found, [Some(10), None, Some(14), Some(10)], "{engine}: in the order asked");
        assert_eq!((cache.stats().memory.hits, cache.stats().memory.misses), (3, 1));
    }
}

#[tokio::test]
async fn a_listener_hears_of_each_departure_with_its_cause() {
    for engine in ENGINES {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let clock = Clock::manual();
        let told = Arc::clone(&heard);
        let cache = Cache::<u64, u64>::builder("test")
            .engine(engine)
            .bytes(1_000, |_, value| *value)
            .clock(clock.clone())
            .on_eviction(move |key, value, cause| {
                told.lock().unwrap().push((*key, *value, cause));
            })
            .build()
            .unwrap();
        cache.insert(1, 100);
        cache.insert(1, 101);
        cache.remove(&1).await;
        cache.insert(2, 5_000);
        let ttl = cache_tiered::InsertOptions::ttl(Duration::from_secs(1));
        cache.insert_with(3, 100, ttl);
        clock.advance(Duration::from_secs(2));
        cache.remove_expired().await;
        let mut heard_so_far = std::mem::take(&mut *heard.lock().unwrap());
        let expected = [
            (1, 100, EvictionCause::Replaced),
            (1, 101, EvictionCause::Removed),
            (2, 5_000, EvictionCause::TooLarge),
            (3, 100, EvictionCause::Expired),
        ];
        assert_eq!(heard_so_far, expected, "{engine}");
        (10..40).for_each(|key| cache.insert(key, 90));
        heard_so_far = std::mem::take(&mut *heard.lock().unwrap());
        assert!(heard_so_far.len() >= 18, "{engine}: {heard_so_far:?}");
        assert!(heard_so_far.iter().all(|(.., cause)| *cause == EvictionCause::Capacity));
        cache.clear(None).await;
        heard_so_far = std::mem::take(&mut *heard.lock().unwrap());
        assert!(heard_so_far.iter().all(|(.., cause)| *cause == EvictionCause::Removed));
        assert_eq!(held(&cache), 0, "{engine}");
    }
}

#[test]
fn another_hasher_serves_as_well() {
    for engine in ENGINES {
        let cache = builder(engine)
            .entries(1_000)
            .hasher(BuildHasherDefault::<DefaultHasher>::default())
            .build()
            .unwrap();
        (0..500).for_each(|key| cache.insert(key, key));
        assert!((0..500).all(|key| cache.get_in_memory(&key) == Some(key)), "{engine}");
    }
}

/// A number is its own hash.
#[derive(Debug, Clone, Copy, Default)]
struct Identity(u64);

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[test]
fn numbers_that_are_their_own_hashes_fill_every_shard() {
    for shift in [0, 8, 32, 48] {
        let cache = Cache::<u64, u64>::builder("test")
            .entries(10_000)
            .hasher(BuildHasherDefault::<Identity>::default())
            .build()
            .unwrap();
        (0..10_000).for_each(|key: u64| cache.insert(key << shift, key));
        let held = cache.stats().memory.entries;
        assert!(held > 9_000, "{held} of 10,000 at shift {shift}");
    }
}

/// Every key has the same hash.
#[derive(Debug, Clone, Copy, Default)]
struct Constant;

impl std::hash::Hasher for Constant {
    fn finish(&self) -> u64 {
        7
    }

    fn write(&mut self, _: &[u8]) {}
}

#[test]
fn keys_that_all_collide_are_told_apart() {
    for policy in Policy::ALL {
        let cache = builder(Engine::Switchable)
            .entries(200)
            .policy(policy)
            .hasher(BuildHasherDefault::<Constant>::default())
            .build()
            .unwrap();
        for key in 0..1_000 {
            cache.insert(key, key);
            assert_eq!(cache.get_in_memory(&key), Some(key), "{policy}");
        }
        assert!(cache.iter().all(|(key, value)| key == value));
        assert!(cache.stats().memory.entries <= 200);
    }
}

#[test]
fn the_adaptive_policy_tells_what_it_saw() {
    // A hasher of fixed keys: which keys are sampled decides by how much an estimate is off.
    let cache = builder(Engine::Switchable)
        .entries(1_000)
        .policy(Policy::Adaptive)
        .miss_ratio_curve(true)
        .hasher(BuildHasherDefault::<DefaultHasher>::default())
        .build()
        .unwrap();
    assert!(cache.hit_ratio_at(1_000).is_none(), "nothing was asked for yet");
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..80_000 {
        // Small keys are popular.
        let key = (rng.f64().powi(3) * 20_000.0) as u64;
        if cache.get_in_memory(&key).is_none() {
            cache.insert(key, key);
        }
    }
    let report = cache.policy_report().expect("it has one");
    assert!(report.sampled > 500, "{report:?}");
    let live = report.candidates.iter().find(|it| it.live).expect("one of them is live");
    let stats = cache.stats().memory;
    let seen = live.hit_ratio.expect("it was sampled");
    assert!((seen - stats.hit_ratio()).abs() < 0.05, "{seen} against {}", stats.hit_ratio());

    let here = cache.hit_ratio_at(1_000).expect("enough was seen");
    let more = cache.hit_ratio_at(4_000).expect("it is in the curve's range");
    let less = cache.hit_ratio_at(250).expect("it is in the curve's range");
    assert!((here.hit_ratio - stats.hit_ratio()).abs() < 0.05, "{here:?}");
    assert!(less.hit_ratio < here.hit_ratio && here.hit_ratio < more.hit_ratio);
}
