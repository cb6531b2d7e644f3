//! What every disk engine promises: the same tests run over each of them.

#![cfg(all(feature = "disk", unix))]
#![allow(missing_docs)]

mod disk;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cache_tiered::disk::{DiskError, DiskTier, OpenError};
use disk::{Engine, crash_image, directory, disk_usage, engines};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// Runs a test on each engine, in a directory of its own.
fn on_each(test: impl Fn(Engine, &Path)) {
    for engine in engines() {
        println!("engine: {}", engine.name);
        let directory = directory();
        test(engine, &directory.path().join("cache"));
    }
}

fn get(tier: &dyn DiskTier, key: &str) -> Option<Vec<u8>> {
    tier.get(key.as_bytes(), 0).expect("the disk can be read").map(Vec::from)
}

fn put(tier: &dyn DiskTier, key: &str, value: &[u8]) {
    tier.put(key.as_bytes(), value, 0).expect("the entry is accepted");
}

#[test]
fn a_put_is_read_back_before_and_after_a_flush_and_a_reopening() {
    on_each(|engine, path| {
        let values: Vec<Vec<u8>> =
            [0, 1, 35, 36, 37, 699, 700, 701, 5000, 15_000].map(|len| vec![len as u8; len]).into();
        let check = |tier: &dyn DiskTier| {
            for (i, value) in values.iter().enumerate() {
                assert_eq!(get(tier, &format!("key {i}")).as_ref(), Some(value));
            }
        };
        let tier = engine.at(path, 16 * MIB);
        for (i, value) in values.iter().enumerate() {
            put(&*tier, &format!("key {i}"), value);
        }
        check(&*tier);
        tier.flush().expect("it can be flushed");
        check(&*tier);
        put(&*tier, "", b"under the empty key");
        drop(tier);
        let tier = engine.at(path, 16 * MIB);
        check(&*tier);
        assert_eq!(get(&*tier, "").as_deref(), Some(&b"under the empty key"[..]));
        assert_eq!(get(&*tier, "key"), None);
        assert_eq!(tier.stats().entries, values.len() as u64 + 1);
        assert_eq!(tier.stats().corrupt, 0);
    });
}

#[test]
fn the_last_put_wins_and_a_removed_key_stays_away_through_a_reopening() {
    on_each(|engine, path| {
        let tier = engine.at(path, 16 * MIB);
        put(&*tier, "a", b"old");
        put(&*tier, "b", b"old");
        tier.flush().expect("it can be flushed");
        put(&*tier, "a", b"new");
        assert!(tier.remove(b"b").expect("it can be removed"));
        assert!(!tier.remove(b"b").expect("it can be removed"), "it is gone already");
        assert!(!tier.remove(b"never").expect("it can be removed"));
        for _ in 0..2 {
            let stats = tier.stats();
            assert_eq!((stats.entries, stats.replaced, stats.removed), (1, 1, 1));
            assert_eq!(get(&*tier, "a").as_deref(), Some(&b"new"[..]));
            assert_eq!(get(&*tier, "b"), None);
            assert!(tier.contains(b"a") && !tier.contains(b"b"));
            tier.flush().expect("it can be flushed");
        }
        drop(tier);
        let tier = engine.at(path, 16 * MIB);
        assert_eq!(get(&*tier, "a").as_deref(), Some(&b"new"[..]));
        assert_eq!(get(&*tier, "b"), None);
        assert!(!tier.contains(b"b"));
    });
}

#[test]
fn an_expired_entry_is_a_miss_and_uncovers_nothing_older() {
    on_each(|engine, path| {
        let tier = engine.at(path, 16 * MIB);
        put(&*tier, "k", b"for ever");
        tier.put(b"k", b"for a while", 1500).expect("it is accepted");
        tier.put(b"far", b"away", u64::MAX).expect("it is accepted");
        tier.flush().expect("it can be flushed");
        let at = |tier: &dyn DiskTier, now| tier.get(b"k", now).expect("the disk can be read");
        assert!(at(&*tier, 1499).is_some());
        assert_eq!(at(&*tier, 1500), None);
        assert_eq!(at(&*tier, 1499), None, "it was removed");
        assert_eq!(tier.stats().evicted_expired, 1);
        assert!(tier.get(b"far", u64::MAX - 1).expect("the disk can be read").is_some());
        drop(tier);
        let tier = engine.at(path, 16 * MIB);
        assert_eq!(at(&*tier, 2000), None);
    });
}

#[test]
fn remove_expired_takes_exactly_the_expired_entries() {
    on_each(|engine, path| {
        let tier = engine.at(path, 16 * MIB);
        for second in 1..=100_u64 {
            tier.put(&second.to_be_bytes(), &[7; 100], second * 1000).expect("it is accepted");
        }
        put(&*tier, "never", b"expires");
        assert_eq!(tier.remove_expired(40_000).expect("it works"), 40);
        assert_eq!(tier.remove_expired(40_000).expect("it works"), 0);
        assert!(!tier.contains(&40_u64.to_be_bytes()) && tier.contains(&41_u64.to_be_bytes()));
        assert_eq!(tier.stats().evicted_expired, 40);
        assert_eq!(tier.remove_expired(u64::MAX).expect("it works"), 60);
        assert_eq!(tier.stats().entries, 1);
    });
}

#[test]
fn clear_gives_the_space_back_and_nothing_returns() {
    on_each(|engine, path| {
        let tier = engine.at(path, 16 * MIB);
        for i in 0..3000 {
            put(&*tier, &format!("key {i}"), &[1; 1000]);
        }
        tier.flush().expect("it can be flushed");
        put(&*tier, "unflushed", b"value");
        tier.clear().expect("it can be cleared");
        let stats = tier.stats();
        assert_eq!((stats.entries, stats.live_bytes), (0, 0));
        assert!(stats.cleared > 0);
        assert!(disk_usage(path) < MIB, "{} bytes are left", disk_usage(path));
        assert_eq!(get(&*tier, "key 7"), None);
        put(&*tier, "after", b"value");
        drop(tier);
        let tier = engine.at(path, 16 * MIB);
        assert_eq!(tier.stats().entries, 1);
        assert_eq!(get(&*tier, "after").as_deref(), Some(&b"value"[..]));
    });
}

#[test]
fn an_entry_that_can_never_fit_is_refused_and_takes_its_old_value_along() {
    on_each(|engine, path| {
        let tier = engine.at(path, 4 * MIB);
        put(&*tier, "k", b"small");
        let error = tier.put(b"k", &vec![0; 2 << 20], 0).expect_err("it is too large");
        assert!(matches!(error, DiskError::TooLarge { .. }), "{error:?}");
        assert_eq!(get(&*tier, "k"), None, "the old value is out of date");
        assert_eq!(tier.stats().too_large, 1);
    });
}

#[test]
fn the_files_stay_within_the_capacity_and_hold_the_newest_entries() {
    on_each(|engine, path| {
        for (capacity, value_len) in [(MIB, 300), (4 * MIB, 1000), (12 * MIB, 9000)] {
            let path = path.join(capacity.to_string());
            let tier = engine.at(&path, capacity);
            let count = 5 * capacity / (value_len as u64 + 50);
            let value = |i: u64| {
                let mut random = Random(i);
                (0..value_len).map(|_| random.next() as u8).collect::<Vec<u8>>()
            };
            for i in 0..count {
                tier.put(&i.to_be_bytes(), &value(i), 0).expect("the entry is accepted");
                if i.is_multiple_of(count / 50) {
                    let usage = disk_usage(&path);
                    assert!(usage <= capacity * 11 / 10, "{}: {usage} of {capacity}", engine.name);
                }
            }
            tier.flush().expect("it can be flushed");
            let (usage, stats) = (disk_usage(&path), tier.stats());
            println!("{} of {capacity}: {usage} bytes, {stats:?}", engine.name);
            assert!(usage <= capacity * 11 / 10, "{}: {usage} of {capacity}", engine.name);
            assert!(stats.disk_bytes.abs_diff(usage) <= capacity / 10, "{stats:?}, du {usage}");
            if engine.is_a_log {
                assert!(usage >= capacity * 9 / 10, "{}: {usage} of {capacity}", engine.name);
                let kept = stats.entries;
                for i in 0..count {
                    let found = tier.get(&i.to_be_bytes(), 0).expect("the disk can be read");
                    assert_eq!(found.is_some(), i >= count - kept, "the oldest go first, {i}");
                    assert!(found.is_none_or(|found| *found == value(i)));
                }
                assert_eq!(stats.evicted_capacity, count - kept);
            }
            drop(tier);
            let smaller = engine.at(&path, capacity.max(2 * MIB) / 2);
            assert!(disk_usage(&path) <= capacity.max(2 * MIB) / 2 * 11 / 10);
            drop(smaller);
        }
    });
}

#[test]
fn a_directory_has_one_owner_at_a_time() {
    on_each(|engine, path| {
        let tier = engine.at(path, 16 * MIB);
        let second = (engine.open)(path, 16 * MIB).err().expect("it is locked");
        assert!(matches!(second, OpenError::Locked { .. }), "{second:?}");
        put(&*tier, "k", b"the owner was not disturbed");
        drop(tier);
        assert!(get(&*engine.at(path, 16 * MIB), "k").is_some());
    });
}

#[test]
fn a_directory_of_a_newer_version_is_refused_and_left_alone() {
    on_each(|engine, path| {
        put(&*engine.at(path, 16 * MIB), "k", b"value");
        let format = path.join("FORMAT");
        let ours = fs::read_to_string(&format).expect("there is a FORMAT");
        let replace = |text: &str| fs::write(&format, text).expect("FORMAT can be written");
        let open = || (engine.open)(path, 16 * MIB).map(drop);

        let version = ours.lines().nth(2).expect("a third line");
        replace(&ours.replace(version, "version = 7"));
        let error = open().expect_err("it is newer");
        assert!(
            matches!(error, OpenError::NewerFormat { found: 7, supported: 1 | 2, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("version 7"), "{error}");

        let other = ours.lines().nth(1).expect("a second line");
        replace(&ours.replace(other, "engine = drum"));
        assert!(matches!(open(), Err(OpenError::OtherEngine { .. })));

        replace(&ours.replace("seed = ", "seed = x"));
        assert!(matches!(open(), Err(OpenError::DamagedFormat { missing: "seed", .. })));

        replace("something else");
        assert!(matches!(open(), Err(OpenError::NotACache { .. })));

        replace(&ours);
        assert!(get(&*engine.at(path, 16 * MIB), "k").is_some(), "nothing was lost on the way");
    });
}

#[test]
fn a_directory_of_somebody_else_is_refused_and_left_alone() {
    on_each(|engine, path| {
        fs::create_dir(path).expect("a directory");
        fs::write(path.join("thesis.txt"), "precious").expect("a file");
        let error = (engine.open)(path, 16 * MIB).map(drop).expect_err("it is not ours");
        assert!(matches!(error, OpenError::NotACache { .. }), "{error:?}");
        let names: Vec<_> = fs::read_dir(path).expect("it can be listed").flatten().collect();
        assert_eq!(names.len(), 1, "nothing was added: {names:?}");
        let error = (engine.open)(&path.join("thesis.txt"), 16 * MIB).map(drop);
        assert!(matches!(error, Err(OpenError::NotACache { .. })), "{error:?}");
        let error = (engine.open)(&path.join("new"), 1000).map(drop);
        assert!(matches!(error, Err(OpenError::CapacityTooSmall { .. })), "{error:?}");
        assert!(!path.join("new").exists());
    });
}

/// A small generator, for values and choices that a failure can be replayed with.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Threads work on keys of their own against a map, and on shared ones that must never be torn.
fn hammer(engine: Engine, path: &Path, capacity: u64, may_evict: bool) {
    let tier = engine.at(path, capacity);
    let rounds = if engine.is_a_log { 1500 } else { 300 };
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let tier = &*tier;
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut model: HashMap<u64, Vec<u8>> = HashMap::new();
                for round in 0..rounds {
                    let number = random.below(40);
                    let key = format!("{thread}/{number}");
                    match random.below(10) {
                        0..=4 => {
                            let len = random.below(2000) as usize;
                            let value = vec![random.next() as u8; len];
                            put(tier, &key, &value);
                            model.insert(number, value);
                        }
                        5 => {
                            let removed = tier.remove(key.as_bytes()).expect("it can be removed");
                            let expected = model.remove(&number).is_some();
                            assert!(removed == expected || may_evict && !removed, "{key}");
                        }
                        6 if round % 50 == 0 => tier.flush().expect("it can be flushed"),
                        6 => {
                            let shared = format!("shared {}", random.below(4));
                            let fill = random.next() as u8;
                            put(tier, &shared, &[&[fill; 500], shared.as_bytes()].concat());
                        }
                        7 => {
                            let shared = format!("shared {}", random.below(4));
                            if let Some(value) = get(tier, &shared) {
                                let (fill, name) = value.split_at(500);
                                assert!(fill.iter().all(|byte| *byte == fill[0]));
                                assert_eq!(name, shared.as_bytes());
                            }
                        }
                        _ => match get(tier, &key) {
                            None => assert!(may_evict || !model.contains_key(&number), "{key}"),
                            found => assert_eq!(found.as_ref(), model.get(&number), "{key}"),
                        },
                    }
                }
                for (number, value) in &model {
                    match get(tier, &format!("{thread}/{number}")) {
                        None => assert!(may_evict),
                        Some(found) => assert_eq!(found, *value),
                    }
                }
            });
        }
    });
    let stats = tier.stats();
    assert_eq!((stats.corrupt, stats.io_errors, stats.dropped_writes), (0, 0, 0), "{stats:?}");
    assert_eq!(stats.evicted_capacity > 0, may_evict, "{stats:?}");
}

#[test]
fn sixteen_threads_find_what_they_put() {
    on_each(|engine, path| hammer(engine, path, 64 * MIB, false));
}

#[test]
fn sixteen_threads_never_find_anything_wrong_while_entries_are_evicted() {
    on_each(|engine, path| hammer(engine, path, MIB, true));
}

#[derive(Debug, Clone)]
enum Op {
    Put { key: u8, len: usize, ttl: Option<u64> },
    Get(u8),
    Remove(u8),
    Advance(u64),
    RemoveExpired,
    Clear,
    Flush,
    Reopen,
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..12_u8;
    let len = prop_oneof![0..50_usize, 600..800_usize, 3000..9000_usize];
    let ttl = proptest::option::of(1..5000_u64);
    let op = prop_oneof![
        10 => (key.clone(), len, ttl).prop_map(|(key, len, ttl)| Op::Put { key, len, ttl }),
        6 => key.clone().prop_map(Op::Get),
        4 => key.prop_map(Op::Remove),
        2 => (1..3000_u64).prop_map(Op::Advance),
        1 => Just(Op::RemoveExpired),
        1 => Just(Op::Clear),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..80)
}

/// What a cache without bounds would hold: value and expiry by key.
type Model = HashMap<u8, (Vec<u8>, u64)>;

/// Reads every key, without a time so that nothing is removed on the way.
fn state(tier: &dyn DiskTier, now: u64) -> HashMap<u8, Vec<u8>> {
    (0..12)
        .filter_map(|key| {
            Some((key, tier.get(&[key], now).expect("the disk can be read")?.to_vec()))
        })
        .collect()
}

fn expected(model: &Model, now: u64) -> HashMap<u8, Vec<u8>> {
    let live = |(_, expires): &(Vec<u8>, u64)| *expires == 0 || now < *expires;
    let live = model.iter().filter(|(_, entry)| live(entry));
    live.map(|(key, (value, _))| (*key, value.clone())).collect()
}

fn follows_the_model(engine: Engine, ops: &[Op]) {
    let root = directory();
    let mut lives = 0;
    let mut path = root.path().join("0");
    let mut tier = engine.at(&path, 64 * MIB);
    let mut now = 1_000_000;
    let mut model = Model::new();
    // States since the last flush: a crash may lead to any of them, and to no other.
    let mut since_flush = vec![model.clone()];
    for (step, op) in ops.iter().enumerate() {
        match op {
            Op::Put { key, len, ttl } => {
                let value = [&step.to_be_bytes()[..], &vec![*key; *len]].concat();
                let expires = ttl.map_or(0, |ttl| now + ttl);
                tier.put(&[*key], &value, expires).expect("the entry is accepted");
                model.insert(*key, (value, expires));
            }
            Op::Get(key) => {
                let found = tier.get(&[*key], now).expect("the disk can be read");
                assert_eq!(found.as_deref(), expected(&model, now).get(key).map(|v| &v[..]));
            }
            Op::Remove(key) => {
                let removed = tier.remove(&[*key]).expect("it can be removed");
                assert!(removed || !expected(&model, now).contains_key(key));
                assert!(!removed || model.contains_key(key));
                model.remove(key);
            }
            Op::Advance(by) => now += by,
            Op::RemoveExpired => drop(tier.remove_expired(now).expect("it works")),
            Op::Clear => {
                tier.clear().expect("it can be cleared");
                model.clear();
                since_flush.clear();
            }
            Op::Flush => {
                tier.flush().expect("it can be flushed");
                since_flush.clear();
            }
            Op::Reopen => {
                drop(tier);
                tier = engine.at(&path, 64 * MIB);
                since_flush.clear();
            }
            Op::Crash => {
                if !engine.is_a_log {
                    tier.flush().expect("it can be flushed");
                    since_flush = vec![model.clone()];
                }
                lives += 1;
                let image = root.path().join(lives.to_string());
                crash_image(&path, &image);
                drop(tier);
                path = image;
                tier = engine.at(&path, 64 * MIB);
                let found = state(&*tier, now);
                let survivor = since_flush.iter().find(|model| expected(model, now) == found);
                model = survivor.expect("a crash leads to an earlier state").clone();
                since_flush.clear();
            }
        }
        since_flush.push(model.clone());
        assert_eq!(state(&*tier, now), expected(&model, now), "after step {step}, {op:?}");
    }
    let stats = tier.stats();
    assert_eq!((stats.corrupt, stats.dropped_at_open, stats.dropped_writes), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn the_segment_log_behaves_like_a_map(ops in ops()) {
        follows_the_model(disk::SMALL_SEGMENTS, &ops);
        follows_the_model(disk::SEGMENT_LOG, &ops);
    }
}

#[cfg(feature = "sled")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn the_sled_engine_behaves_like_a_map(ops in ops()) {
        follows_the_model(disk::SLED, &ops);
    }
}
