//! The memory tier: bounds, expiry, idle time, weights, and what a builder refuses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cache_tiered::{BuildError, Cache, CacheBuilder, Clock, InsertOptions, Tier};
use proptest::prelude::*;

fn builder() -> CacheBuilder<u32, u32> {
    Cache::builder("test").entries(100)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_entry_lives_as_long_as_its_ttl() {
    let clock = Clock::manual();
    let cache = builder().ttl(seconds(10)).clock(clock.clone()).build().unwrap();
    cache.insert(1, 1);
    cache.insert_with(2, 2, InsertOptions::ttl(seconds(20)));
    cache.insert_with(3, 3, InsertOptions::ttl(Duration::MAX));
    let alive = |cache: &Cache<u32, u32>| [1, 2, 3].map(|key| cache.get_in_memory(&key).is_some());
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(alive(&cache), [true, true, true]);
    clock.advance(Duration::from_millis(1));
    assert_eq!(alive(&cache), [false, true, true]);
    clock.advance(seconds(1_000_000));
    assert_eq!(alive(&cache), [false, false, true]);
    assert_eq!(cache.stats().memory.evictions.expired, 2);
}

#[test]
fn jitter_spreads_the_ends_of_lives_and_prolongs_none() {
    let clock = Clock::manual();
    let builder = builder().entries(10_000).ttl(seconds(100)).ttl_jitter(20);
    let cache = builder.clock(clock.clone()).build().unwrap();
    (0..1_000).for_each(|key| cache.insert(key, key));
    cache.insert_with(1_000, 0, InsertOptions::default().ttl_jitter(0));
    cache.insert_with(1_001, 0, InsertOptions::ttl(Duration::MAX));
    cache.insert_with(1_002, 0, InsertOptions::ttl(Duration::from_millis(1)).ttl_jitter(255));
    assert_eq!(cache.get_in_memory(&1_002), Some(0), "a millisecond is the least");
    let alive = || (0..1_000).filter(|key| cache.get_in_memory(key).is_some()).count();
    clock.advance(seconds(80) - Duration::from_millis(1));
    assert_eq!(alive(), 1_000);
    clock.advance(seconds(10));
    assert!((400..600).contains(&alive()), "{}", alive());
    clock.advance(seconds(10));
    assert!(cache.get_in_memory(&1_000).is_some());
    clock.advance(seconds(1));
    assert_eq!((alive(), cache.get_in_memory(&1_000)), (0, None));
    assert_eq!(cache.get_in_memory(&1_001), Some(0));

    let error = Cache::<u32, u32>::builder("test").ttl_jitter(101).build().unwrap_err();
    assert!(error.to_string().contains("ttl_jitter = \"101\": must be at most 100"), "{error}");
}

#[test]
fn warming_adds_what_is_missing_and_nothing_else() {
    let clock = Clock::manual();
    let cache = builder().ttl(seconds(10)).clock(clock.clone()).build().unwrap();
    cache.insert(1, 100);
    assert_eq!(cache.warm((0..3).map(|key| (key, key))), 2);
    assert_eq!([0, 1, 2].map(|key| cache.get_in_memory(&key)), [Some(0), Some(100), Some(2)]);
    clock.advance(seconds(10));
    assert_eq!(cache.warm([(1, 1)]), 1, "what is past its time is missing");
    cache.warm((0..1_000).map(|key| (key, key)));
    assert!(cache.stats().memory.entries <= 100);
}

#[test]
fn a_ttl_of_zero_removes_the_key() {
    let cache = builder().build().unwrap();
    cache.insert(1, 1);
    cache.insert_with(1, 2, InsertOptions::ttl(Duration::ZERO));
    assert_eq!(cache.get_in_memory(&1), None);
}

#[test]
fn reading_keeps_an_entry_from_going_idle() {
    let clock = Clock::manual();
    let cache = builder().time_to_idle(seconds(10)).clock(clock.clone()).build().unwrap();
    cache.insert(1, 1);
    cache.insert(2, 2);
    for _ in 0..5 {
        clock.advance(seconds(9));
        assert_eq!(cache.get_in_memory(&1), Some(1));
    }
    assert_eq!(cache.get_in_memory(&2), None);
}

#[tokio::test]
async fn expired_entries_can_be_taken_out_at_once() {
    let clock = Clock::manual();
    let cache = builder().ttl(seconds(1)).clock(clock.clone()).build().unwrap();
    for key in 0..50 {
        cache.insert(key, key);
    }
    cache.insert_with(99, 99, InsertOptions::ttl(seconds(100)));
    clock.advance(seconds(2));
    assert_eq!(cache.stats().memory.entries, 51);
    assert_eq!(cache.remove_expired().await, 50);
    assert_eq!(cache.stats().memory.entries, 1);
}

#[test]
fn entries_that_nobody_asks_for_are_swept() {
    let clock = Clock::manual();
    let cache = builder()
        .ttl(seconds(1))
        .clock(clock.clone())
        .expiry_sweep(Duration::from_millis(2))
        .build()
        .unwrap();
    cache.insert(1, 1);
    clock.advance(seconds(2));
    let deadline = std::time::Instant::now() + seconds(30);
    while cache.stats().memory.entries > 0 {
        assert!(std::time::Instant::now() < deadline, "the sweeper never came");
        std::thread::yield_now();
    }
}

#[test]
fn the_bound_holds_in_entries_and_in_bytes() {
    let cache = builder().build().unwrap();
    (0..10_000).for_each(|key| cache.insert(key, key));
    let stats = cache.stats().memory;
    assert!(stats.entries <= 100 && stats.entries > 50, "{stats:?}");
    assert_eq!(stats.entries + stats.evictions.capacity, 10_000);

    let cache = Cache::<u32, Vec<u8>>::builder("test")
        .bytes(1 << 20, |_, value| value.len() as u64)
        .build()
        .unwrap();
    (0..10_000).for_each(|key| cache.insert(key, vec![0; key as usize % 4_096]));
    let stats = cache.stats().memory;
    assert!(stats.bytes <= 1 << 20 && stats.bytes > 1 << 19, "{stats:?}");
}

#[test]
fn a_replaced_value_is_no_eviction() {
    let cache = builder().build().unwrap();
    (0..1_000).for_each(|value| cache.insert(1, value));
    assert_eq!(cache.stats().memory.evictions.capacity, 0);
}

#[test]
fn both_bounds_hold_where_both_are_given() {
    let cache = Cache::<u32, Vec<u8>>::builder("test")
        .bytes(1 << 20, |_, value| value.len() as u64)
        .entries(100)
        .build()
        .unwrap();
    (0..10_000).for_each(|key| cache.insert(key, vec![0; 10]));
    assert!(cache.stats().memory.entries <= 100);
    (0..10_000).for_each(|key| cache.insert(key, vec![0; 100_000]));
    assert!(cache.stats().memory.entries <= 10);
}

#[test]
fn a_value_too_heavy_for_the_tier_takes_the_old_one_along() {
    let cache = Cache::<u32, Vec<u8>>::builder("test")
        .bytes(1_000, |_, value| value.len() as u64)
        .build()
        .unwrap();
    cache.insert(1, vec![0; 10]);
    cache.insert(1, vec![0; 2_000]);
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(cache.stats().memory.evictions.too_large, 1);
}

#[test]
fn values_that_weigh_nothing_are_bounded_too() {
    let cache = Cache::<u32, ()>::builder("test").bytes(100, |_, ()| 0).build().unwrap();
    (0..10_000).for_each(|key| cache.insert(key, ()));
    assert!(cache.stats().memory.entries <= 100);
}

#[test]
fn every_value_is_dropped_once() {
    let value = Arc::new(());
    let cache = Cache::<u32, Arc<()>>::builder("test").entries(10).build().unwrap();
    (0..1_000).for_each(|key| cache.insert(key % 50, Arc::clone(&value)));
    assert_eq!(Arc::strong_count(&value) as u64, 1 + cache.stats().memory.entries);
    drop(cache);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn a_builder_reports_every_problem_at_once() {
    let error = Cache::<u32, u32>::builder("two words")
        .entries(0)
        .ttl(Duration::ZERO)
        .order([Tier::Memory, Tier::Disk, Tier::Disk])
        .build()
        .unwrap_err();
    let BuildError::Invalid { problems, .. } = &error else { panic!("{error}") };
    let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["name", "memory.entries", "ttl", "order[0]", "order[2]"]);
    assert!(error.to_string().contains("memory.entries = \"0\": must be at least 1"), "{error}");
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u32, Option<u64>),
    Get(u32),
    Remove(u32),
    Clear,
    Advance(u64),
    RemoveExpired,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..20u32;
    prop_oneof![
        6 => (key.clone(), any::<u32>(), prop::option::of(0..5_000u64))
            .prop_map(|(key, value, ttl)| Step::Insert(key, value, ttl)),
        8 => key.clone().prop_map(Step::Get),
        2 => key.prop_map(Step::Remove),
        1 => Just(Step::Clear),
        3 => (0..3_000u64).prop_map(Step::Advance),
        1 => Just(Step::RemoveExpired),
    ]
}

proptest! {
    /// Below its capacity, the cache is a map whose entries expire.
    #[test]
    fn the_cache_agrees_with_a_map_that_expires(steps in prop::collection::vec(step(), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Clock::manual();
        let cache = Cache::<u32, u32>::builder("model")
            .entries(10_000)
            .ttl(Duration::from_secs(2))
            .clock(clock.clone())
            .build()
            .unwrap();
        let mut model = HashMap::<u32, (u32, u64)>::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Insert(key, value, ttl) => {
                    let options = ttl.map_or_else(InsertOptions::default, |ttl| {
                        InsertOptions::ttl(Duration::from_millis(ttl))
                    });
                    cache.insert_with(key, value, options);
                    model.insert(key, (value, now + ttl.unwrap_or(2_000)));
                }
                Step::Get(key) => {
                    let expected = model.get(&key).filter(|(_, end)| *end > now).map(|(value, _)| *value);
                    prop_assert_eq!(cache.get_in_memory(&key), expected);
                }
                Step::Remove(key) => {
                    runtime.block_on(cache.remove(&key));
                    model.remove(&key);
                }
                Step::Clear => {
                    runtime.block_on(cache.clear(None));
                    model.clear();
                }
                Step::Advance(by) => {
                    clock.advance(Duration::from_millis(by));
                    now += by;
                }
                Step::RemoveExpired => {
                    runtime.block_on(cache.remove_expired());
                    model.retain(|_, (_, end)| *end > now);
                    prop_assert_eq!(cache.stats().memory.entries, model.len() as u64);
                }
            }
        }
    }
}
