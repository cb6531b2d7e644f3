//! The cache over its disk tier: what comes back, what must not, and what happens at the bounds.
#![cfg(feature = "disk")]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use cache_tiered::disk::{Admission, DiskConfig, OpenError};
use cache_tiered::{
    BuildError, Cache, CacheBuilder, Clock, Codec, CodecError, InsertOptions, Tier, WritePolicy,
};
use proptest::prelude::*;

const CAPACITY: u64 = 8 << 20;

fn builder(path: &Path) -> CacheBuilder<u32, String> {
    Cache::builder("test").entries(1_000).disk(DiskConfig::new(path).capacity_bytes(CAPACITY))
}

async fn open(path: &Path) -> Cache<u32, String> {
    builder(path).open().await.unwrap()
}

fn value(key: u32) -> String {
    format!("value of {key}")
}

#[tokio::test]
async fn entries_survive_a_restart_and_come_up_into_memory() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    (0..500).for_each(|key| cache.insert(key, value(key)));
    cache.close().await;

    let cache = open(directory.path()).await;
    for key in 0..500 {
        assert_eq!(cache.get_in_memory(&key), None);
        assert_eq!(cache.get(&key).await, Some(value(key)));
        assert_eq!(cache.get_in_memory(&key), Some(value(key)));
    }
    assert_eq!(cache.get(&500).await, None);
    let stats = cache.stats();
    assert_eq!(stats.disk.unwrap().hits, 500);
    assert_eq!(stats.disk.unwrap().misses, 1);
    cache.close().await;
}

#[tokio::test]
async fn many_keys_are_found_wherever_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    (0..100).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    (50..60).for_each(|key| cache.insert(key, "new".to_owned()));
    let keys = [3, 55, 200, 3, 99];
    let expected = [Some(value(3)), Some("new".to_owned()), None, Some(value(3)), Some(value(99))];
    assert_eq!(cache.get_many(&keys).await, expected);
    assert_eq!(cache.get_many(&[]).await, []);
    cache.close().await;
}

#[tokio::test]
async fn the_time_left_goes_along_through_every_tier() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let open =
        || builder(directory.path()).ttl(Duration::from_secs(100)).clock(clock.clone()).open();
    let cache = open().await.unwrap();
    cache.insert(1, value(1));
    cache.insert_with(2, value(2), InsertOptions::ttl(Duration::MAX));
    cache.close().await;
    clock.advance(Duration::from_secs(60));

    let cache = open().await.unwrap();
    assert_eq!(cache.get(&1).await, Some(value(1)));
    clock.advance(Duration::from_secs(39));
    assert_eq!(cache.get_in_memory(&1), Some(value(1)));
    clock.advance(Duration::from_secs(1));
    assert_eq!(cache.get(&1).await, None, "a promotion must not lengthen a life");
    assert_eq!(cache.get(&2).await, Some(value(2)));
    cache.close().await;
}

#[tokio::test]
async fn what_is_removed_or_cleared_stays_away() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    (0..10).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    cache.remove(&1).await;
    cache.insert_with(2, value(2), InsertOptions::ttl(Duration::ZERO));
    assert_eq!(cache.get(&1).await, None);
    cache.clear(Tier::Memory).await;
    assert_eq!(cache.get(&1).await, None);
    assert_eq!(cache.get(&3).await, Some(value(3)));
    cache.close().await;

    let cache = open(directory.path()).await;
    assert_eq!(cache.get_many(&[1, 2, 3]).await, [None, None, Some(value(3))]);
    cache.clear(None).await;
    assert_eq!(cache.get(&4).await, None);
    cache.close().await;
    let cache = open(directory.path()).await;
    assert_eq!(cache.get(&5).await, None);
    assert_eq!(cache.stats().disk.unwrap().entries, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_value_that_memory_has_lost_is_read_back_before_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::<u32, String>::builder("test")
        .entries(1)
        .disk(DiskConfig::new(directory.path()).capacity_bytes(CAPACITY))
        .open()
        .await
        .unwrap();
    for round in 0..200 {
        for key in 0..20 {
            cache.insert(key, format!("{key} in {round}"));
        }
        for key in 0..20 {
            assert_eq!(cache.get(&key).await, Some(format!("{key} in {round}")));
        }
    }
    cache.close().await;
}

#[tokio::test]
async fn a_full_queue_drops_values_and_never_leaves_an_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let cache = builder(directory.path()).write_queue(4, u64::MAX).open().await.unwrap();
    let mut latest = HashMap::new();
    for round in 0..50 {
        for key in 0..100 {
            let value = format!("{key} in {round}");
            cache.insert(key, value.clone());
            latest.insert(key, value);
        }
        cache.clear(Tier::Memory).await;
        for (key, value) in &latest {
            let found = cache.get(key).await;
            assert!(
                found.is_none() || found.as_ref() == Some(value),
                "{found:?} instead of {value}"
            );
        }
    }
    assert!(cache.stats().disk.unwrap().dropped_writes > 0);
    cache.close().await;
}

#[tokio::test]
async fn on_eviction_only_what_memory_gives_up_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        Cache::<u32, String>::builder("test")
            .entries(100)
            .write_policy(WritePolicy::OnEviction)
            .disk(DiskConfig::new(directory.path()).capacity_bytes(CAPACITY))
            .open()
    };
    let cache = open().await.unwrap();
    (0..50).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    assert_eq!(cache.stats().disk.unwrap().entries, 0);
    (50..1_000).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    let stats = cache.stats();
    assert_eq!(stats.disk.unwrap().entries, stats.memory.evictions.capacity);
    for key in (0..1_000).step_by(2) {
        cache.remove(&key).await;
    }
    cache.close().await;

    let cache = open().await.unwrap();
    for key in 0..1_000 {
        let expected = (key % 2 == 1).then(|| value(key));
        assert_eq!(cache.get(&key).await, expected, "key {key}");
    }
    cache.close().await;
}

#[tokio::test]
async fn a_shorter_life_in_memory_does_not_bring_back_what_lay_below() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let cache = Cache::<u32, String>::builder("test")
        .entries(10)
        .clock(clock.clone())
        .write_policy(WritePolicy::OnEviction)
        .disk(DiskConfig::new(directory.path()).capacity_bytes(CAPACITY))
        .open()
        .await
        .unwrap();
    cache.insert(1, "old".to_owned());
    (100..200).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    cache.insert_with(1, "new".to_owned(), InsertOptions::ttl(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(2));
    assert_eq!(cache.get(&1).await, None);
    cache.close().await;
}

#[tokio::test]
async fn values_of_another_schema_are_misses() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    cache.insert(1, value(1));
    cache.close().await;
    let cache = builder(directory.path()).schema_version(1).open().await.unwrap();
    assert_eq!(cache.get(&1).await, None);
    assert_eq!(cache.stats().disk.unwrap().errors, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_directory_belongs_to_one_cache_until_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    let second = builder(directory.path()).open().await.unwrap_err();
    let BuildError::Disk { source: second @ OpenError::Locked { .. }, .. } = second else {
        panic!("{second:?}")
    };
    let expected = format!("{} is in use by another cache", directory.path().display());
    assert_eq!(second.to_string(), expected);
    let named = DiskConfig::new(directory.path()).setting("cache.disk.path");
    let third = Cache::<String, String>::builder("pages").disk(named).open().await.unwrap_err();
    let third = std::error::Error::source(&third).expect("the directory is locked").to_string();
    assert_eq!(third, format!("{expected}; cache.disk.path can name another directory"));
    cache.close().await;
    open(directory.path()).await.close().await;
}

#[tokio::test]
async fn a_dropped_cache_writes_what_it_has_and_lets_the_directory_go() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path()).await;
    (0..1_000).for_each(|key| cache.insert(key, value(key)));
    drop(cache);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let cache = loop {
        match builder(directory.path()).open().await {
            Ok(cache) => break cache,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(cache.get(&999).await, Some(value(999)));
    cache.close().await;
}

#[tokio::test]
async fn build_says_that_a_disk_tier_wants_open() {
    let error = builder(Path::new("/tmp/never-made")).build().unwrap_err();
    assert!(error.to_string().contains("open().await"), "{error}");
    let error = Cache::<u32, String>::builder("test")
        .disk(DiskConfig::new("").capacity_bytes(10).read_threads(0))
        .order([Tier::Redis])
        .open()
        .await
        .unwrap_err();
    let BuildError::Invalid { problems, .. } = error else { panic!("{error}") };
    let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["order", "disk.path", "disk.capacity_bytes", "disk.read_threads"]);
}

/// Panics on the value "panic", fails on "fail".
#[derive(Debug)]
struct Moody;

impl Codec<u32, String> for Moody {
    fn id(&self) -> u8 {
        200
    }

    fn encode_key(&self, key: &u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&key.to_be_bytes());
        Ok(())
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    fn encode(&self, value: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
        assert_ne!(value, "panic");
        if value == "fail" {
            return Err("failed as told".into());
        }
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        let text = String::from_utf8(bytes.to_vec())?;
        assert_ne!(text, "panic later");
        Ok(text)
    }
}

#[tokio::test]
async fn a_codec_that_fails_or_panics_costs_its_value_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let config = DiskConfig::new(directory.path()).capacity_bytes(CAPACITY);
    let cache =
        Cache::<u32, String>::builder("test").disk_with(config, Moody).open().await.unwrap();
    for (key, value) in ["fine", "panic", "fail", "panic later", "fine too"].iter().enumerate() {
        cache.insert(key as u32, (*value).to_owned());
    }
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    let found = cache.get_many(&[0, 1, 2, 3, 4]).await;
    let expected = [Some("fine".to_owned()), None, None, None, Some("fine too".to_owned())];
    assert_eq!(found, expected);
    let stats = cache.stats().disk.unwrap();
    assert_eq!((stats.dropped_writes, stats.errors), (2, 1));
    cache.close().await;
}

#[tokio::test]
async fn a_value_too_large_for_memory_is_served_from_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::<u32, Vec<u8>>::builder("test")
        .bytes(100, |_, value| value.len() as u64)
        .disk(DiskConfig::new(directory.path()).capacity_bytes(CAPACITY))
        .open()
        .await
        .unwrap();
    cache.insert(1, vec![7; 10_000]);
    assert_eq!(cache.get_in_memory(&1), None);
    assert_eq!(cache.get(&1).await, Some(vec![7; 10_000]));
    cache.flush().await;
    assert_eq!(cache.get(&1).await, Some(vec![7; 10_000]));
    cache.close().await;
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u16, Option<u64>),
    Get(u32),
    GetMany(Vec<u32>),
    Load(u32, u16),
    Remove(u32),
    ClearMemory,
    ClearAll,
    Flush,
    Advance(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12u32;
    prop_oneof![
        6 => (key.clone(), any::<u16>(), prop::option::of(1..5_000u64))
            .prop_map(|(key, value, ttl)| Step::Insert(key, value, ttl)),
        6 => key.clone().prop_map(Step::Get),
        2 => prop::collection::vec(key.clone(), 0..6).prop_map(Step::GetMany),
        3 => (key.clone(), any::<u16>()).prop_map(|(key, value)| Step::Load(key, value)),
        3 => key.prop_map(Step::Remove),
        3 => Just(Step::ClearMemory),
        1 => Just(Step::ClearAll),
        2 => Just(Step::Flush),
        2 => (0..3_000u64).prop_map(Step::Advance),
        1 => Just(Step::Reopen),
    ]
}

async fn agrees_with_a_map(steps: Vec<Step>, policy: WritePolicy) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let open = || {
        Cache::<u32, u16>::builder("model")
            .entries(4)
            .clock(clock.clone())
            .write_policy(policy)
            .disk(DiskConfig::new(directory.path()).capacity_bytes(CAPACITY).read_threads(1))
            .open()
    };
    let mut cache = open().await.unwrap();
    let mut model = HashMap::<u32, (u16, u64)>::new();
    let mut now = 0;
    for step in steps {
        let alive = |model: &HashMap<u32, (u16, u64)>, key: &u32| {
            model.get(key).filter(|(_, end)| *end > now).map(|(value, _)| *value)
        };
        match step {
            Step::Insert(key, value, ttl) => {
                let options = ttl.map_or_else(InsertOptions::default, |ttl| {
                    InsertOptions::ttl(Duration::from_millis(ttl))
                });
                cache.insert_with(key, value, options);
                model.insert(key, (value, ttl.map_or(u64::MAX, |ttl| now + ttl)));
            }
            Step::Get(key) => prop_assert_eq!(cache.get(&key).await, alive(&model, &key)),
            Step::GetMany(keys) => {
                let expected: Vec<_> = keys.iter().map(|key| alive(&model, key)).collect();
                prop_assert_eq!(cache.get_many(&keys).await, expected);
            }
            Step::Load(key, value) => {
                let expected = alive(&model, &key).unwrap_or(value);
                let load = || async { Ok::<_, std::convert::Infallible>(value) };
                prop_assert_eq!(cache.get_or_load(&key, load).await.unwrap(), expected);
                if alive(&model, &key).is_none() {
                    model.insert(key, (value, u64::MAX));
                }
            }
            Step::Remove(key) => {
                cache.remove(&key).await;
                model.remove(&key);
            }
            // Emptying memory loses what has not been written yet when writing waits for evictions.
            Step::ClearMemory if policy == WritePolicy::Through => cache.clear(Tier::Memory).await,
            Step::ClearMemory => {}
            Step::ClearAll => {
                cache.clear(None).await;
                model.clear();
            }
            Step::Flush => cache.flush().await,
            Step::Advance(by) => {
                clock.advance(Duration::from_millis(by));
                now += by;
            }
            Step::Reopen => {
                cache.close().await;
                cache = open().await.unwrap();
            }
        }
    }
    cache.close().await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Over a disk with room, the cache is a map whose entries expire, restarts included.
    #[test]
    fn the_tiers_agree_with_a_map_that_expires(
        steps in prop::collection::vec(step(), 1..80),
        through: bool,
    ) {
        let policy = if through { WritePolicy::Through } else { WritePolicy::OnEviction };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(agrees_with_a_map(steps, policy))?;
    }
}

#[tokio::test]
async fn by_second_sight_a_value_is_written_when_its_key_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let config = DiskConfig::new(directory.path()).capacity_bytes(CAPACITY);
    let config = config.admission(Admission::SecondSight);
    let cache: Cache<u32, String> =
        Cache::builder("test").entries(10).disk(config).open().await.unwrap();
    let disk = |cache: &Cache<u32, String>| cache.stats().disk.unwrap();
    (0..300).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    assert_eq!((disk(&cache).writes, disk(&cache).refused_admission), (0, 300));
    (0..100).for_each(|key| cache.insert(key, value(key)));
    cache.flush().await;
    assert_eq!((disk(&cache).writes, disk(&cache).entries), (100, 100));
    // What is there is replaced at once, whatever the filters remember.
    for key in 0..100 {
        cache.insert(key, format!("newer {key}"));
    }
    cache.flush().await;
    assert_eq!((disk(&cache).writes, disk(&cache).refused_admission), (200, 300));
    cache.close().await;
    let cache = open(directory.path()).await;
    for key in 0..300 {
        let expected = (key < 100).then(|| format!("newer {key}"));
        assert_eq!(cache.get(&key).await, expected, "{key}");
    }
}

#[tokio::test]
async fn what_the_write_budget_refuses_is_counted_and_leaves_no_older_value() {
    let directory = tempfile::tempdir().unwrap();
    let config = || DiskConfig::new(directory.path()).capacity_bytes(CAPACITY);
    let tight = config().write_budget_bytes_per_second(10_000);
    let cache: Cache<u32, String> =
        Cache::builder("test").entries(10).disk(tight).open().await.unwrap();
    cache.insert(0, "old".to_owned());
    cache.flush().await;
    (1..200).for_each(|key| cache.insert(key, random_text(key, 1_000)));
    cache.insert(0, random_text(0, 1_000));
    cache.flush().await;
    let disk = cache.stats().disk.unwrap();
    assert_eq!(disk.writes + disk.refused_budget, 201);
    assert!((150..200).contains(&disk.refused_budget), "{disk:?}");
    cache.close().await;
    let cache = open(directory.path()).await;
    for key in 0..200 {
        let found = cache.get(&key).await;
        assert!(found.is_none_or(|found| found == random_text(key, 1_000)), "{key}");
    }

    let none = config().write_budget_bytes_per_second(0);
    let error = Cache::<u32, String>::builder("test").entries(1).disk(none).open().await;
    let error = error.expect_err("nothing could ever be written");
    assert!(error.to_string().contains("write_budget_bytes_per_second"), "{error}");
}

/// Text that does not compress much, so that a budget counts about its length.
fn random_text(seed: u32, len: usize) -> String {
    let mut state = u64::from(seed) + 1;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + (state >> 33) as u8 % 95)
    };
    (0..len).map(letter).collect()
}
