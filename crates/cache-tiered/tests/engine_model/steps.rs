//! One thread, a small cache, random steps: whatever comes and goes must be accounted for.
//!
//! The listener says what left and why. From that and from its own steps the model knows which value of
//! which key is in the cache, until when, and whether it is pinned; which entry makes room for another
//! is the only thing that the policy decides freely. After every step the model and the cache must
//! agree on every key, on every count and on the weight. `Engine::ClockPro` does not tell its listener
//! all of it; for that engine only wrong values, bounds and the number of living values are looked at.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache_tiered::{Cache, Clock, Engine, EvictionCause, InsertOptions, Loaded, Policy, Tier};
use futures_util::FutureExt as _;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};

const KEYS: u32 = 60;
const NEVER: u64 = u64::MAX;

#[derive(Debug, Clone)]
struct Value {
    version: u64,
    weight: u64,
    _living: Arc<()>,
}

#[derive(Debug, Clone)]
struct SetUp {
    capacity: u64,
    weighs: bool,
    ttl: Option<u64>,
    idle: Option<u64>,
}

fn set_up() -> impl Strategy<Value = SetUp> {
    let capacity = prop_oneof![1..5u64, 5..60u64, 60..400u64];
    let time = || prop::option::of(1..500u64);
    (capacity, any::<bool>(), time(), time()).prop_map(|(capacity, weighs, ttl, idle)| SetUp {
        capacity,
        weighs,
        ttl,
        idle,
    })
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u64, Option<u64>),
    Load(u32, u64, Option<u64>),
    LoadFails(u32),
    Reserve(u32, u64),
    Get(u32),
    GetMany(Vec<u32>),
    Remove(u32),
    Clear,
    Advance(u64),
    RemoveExpired,
    Pin(u32),
    Unpin(u32),
    Resize(u64),
    SetPolicy(Policy),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || prop_oneof![2 => 0..8u32, 1 => 0..KEYS];
    let weight = || prop_oneof![1 => Just(0), 12 => 1..12u64, 2 => 12..60u64, 1 => 0..500u64];
    let ttl = || prop_oneof![3 => Just(None), 1 => (0..400u64).prop_map(Some)];
    prop_oneof![
        20 => (0..KEYS, weight(), ttl()).prop_map(|(key, weight, ttl)| Step::Insert(key, weight, ttl)),
        4 => (key(), weight(), ttl()).prop_map(|(key, weight, ttl)| Step::Load(key, weight, ttl)),
        1 => key().prop_map(Step::LoadFails),
        2 => (key(), weight()).prop_map(|(key, weight)| Step::Reserve(key, weight)),
        12 => key().prop_map(Step::Get),
        2 => prop::collection::vec(key(), 0..6).prop_map(Step::GetMany),
        3 => key().prop_map(Step::Remove),
        1 => Just(Step::Clear),
        4 => (0..200u64).prop_map(Step::Advance),
        1 => Just(Step::RemoveExpired),
        4 => key().prop_map(Step::Pin),
        3 => key().prop_map(Step::Unpin),
        1 => (0..300u64).prop_map(Step::Resize),
        2 => prop::sample::select(Policy::ALL.to_vec()).prop_map(Step::SetPolicy),
    ]
}

type Left = (u32, u64, EvictionCause);

/// What is in the cache, as the listener and the steps tell.
struct Entry {
    version: u64,
    weight: u64,
    expires_at: u64,
    touched: u64,
    pinned: bool,
}

struct Model {
    cache: Cache<u32, Value>,
    clock: Clock,
    set_up: SetUp,
    policy: Policy,
    left: Arc<Mutex<Vec<Left>>>,
    living: Arc<()>,
    now: u64,
    version: u64,
    entries: BTreeMap<u32, Entry>,
    capacity: u64,
    resizes: bool,
    hits: u64,
    misses: u64,
    writes: u64,
    evicted: u64,
    expired: u64,
    removed: u64,
    too_large: u64,
}

impl Model {
    fn new(engine: Engine, policy: Policy, set_up: SetUp) -> Self {
        let (clock, left) = (Clock::manual(), Arc::new(Mutex::new(Vec::new())));
        let mut builder = Cache::<u32, Value>::builder("steps")
            .engine(engine)
            .policy(policy)
            .clock(clock.clone());
        builder = match set_up.weighs {
            true => builder.bytes(set_up.capacity, |_, value| value.weight),
            false => builder.entries(set_up.capacity),
        };
        if let Some(ttl) = set_up.ttl {
            builder = builder.ttl(Duration::from_millis(ttl));
        }
        if let Some(idle) = set_up.idle {
            builder = builder.time_to_idle(Duration::from_millis(idle));
        }
        if engine == Engine::Switchable {
            let left = Arc::clone(&left);
            builder = builder.on_eviction(move |key, value, cause| {
                left.lock().expect("nobody panics with it").push((*key, value.version, cause));
            });
        }
        Self {
            cache: builder.build().expect("the set-up is in order"),
            clock,
            policy,
            left,
            living: Arc::new(()),
            now: 0,
            version: 0,
            entries: BTreeMap::new(),
            capacity: set_up.capacity,
            resizes: false,
            set_up,
            hits: 0,
            misses: 0,
            writes: 0,
            evicted: 0,
            expired: 0,
            removed: 0,
            too_large: 0,
        }
    }

    fn value(&mut self, weight: u64) -> Value {
        self.version += 1;
        Value { version: self.version, weight, _living: Arc::clone(&self.living) }
    }

    fn entry(&self, value: &Value, ttl: Option<u64>) -> Entry {
        let ttl = ttl.or(self.set_up.ttl);
        Entry {
            version: value.version,
            weight: if self.set_up.weighs { value.weight.max(1) } else { 1 },
            expires_at: ttl.map_or(NEVER, |ttl| self.now + ttl),
            touched: self.now,
            pinned: false,
        }
    }

    fn is_dead(&self, entry: &Entry) -> bool {
        let idle = self.set_up.idle.is_some_and(|limit| entry.touched + limit <= self.now);
        entry.expires_at <= self.now || (idle && !entry.pinned)
    }

    /// The version that a look-up has to find.
    fn find(&self, key: u32) -> Option<u64> {
        let entry = self.entries.get(&key).filter(|entry| !self.is_dead(entry))?;
        Some(entry.version)
    }

    fn look_up(&mut self, key: u32, found: Option<Value>) {
        let expected = self.find(key);
        assert_eq!(found.map(|value| value.version), expected, "key {key}");
        if expected.is_some() {
            self.hits += 1;
            let entry = self.entries.get_mut(&key).expect("it was found");
            entry.touched = self.now;
        } else {
            self.misses += 1;
        }
    }

    /// Takes note of an entry that was put in, and of all that it pushed out.
    fn put(&mut self, key: u32, mut entry: Entry) {
        let mut left = std::mem::take(&mut *self.left.lock().expect("nobody panics with it"));
        let mut pinned = None;
        // The older value leaves first, whenever the listener hears of it.
        let older = |(left, _, cause): &Left| {
            *left == key && matches!(cause, EvictionCause::Replaced | EvictionCause::Expired)
        };
        if let Some(at) = left.iter().position(older) {
            let (_, version, cause) = left.remove(at);
            let old = self.entries.remove(&key).expect("it can only leave if it was there");
            assert_eq!(old.version, version);
            if cause == EvictionCause::Expired {
                assert!(self.is_dead(&old), "key {key} has expired before its time");
                self.expired += 1;
            }
            pinned = (old.pinned && cause == EvictionCause::Replaced).then_some(old.weight);
        }
        assert!(!self.entries.contains_key(&key), "the older value of {key} has not left");
        let refused = (key, entry.version, EvictionCause::TooLarge);
        if let Some(at) = left.iter().position(|left| *left == refused) {
            left.remove(at);
            self.too_large += 1;
        } else {
            self.writes += 1;
            entry.pinned = pinned.is_some_and(|old_weight| entry.weight <= old_weight);
            let may_be_pinned = pinned.is_some() && !entry.pinned;
            self.entries.insert(key, entry);
            if may_be_pinned {
                // As long as the shard has room for it among the pinned, which nobody tells.
                self.cache.unpin(&key).expect("this engine pins");
            }
        }
        self.settle(left, &[EvictionCause::Capacity, EvictionCause::Expired]);
    }

    /// Takes note of what left, which must have one of these causes.
    fn settle(&mut self, left: Vec<Left>, causes: &[EvictionCause]) {
        for (key, version, cause) in left {
            assert!(causes.contains(&cause), "key {key} left: {cause}");
            let entry = self.entries.remove(&key).expect("only what is there can leave");
            assert_eq!(entry.version, version, "key {key}");
            match cause {
                EvictionCause::Capacity => {
                    assert!(!entry.pinned || self.resizes, "key {key} was pinned and evicted");
                    self.evicted += 1;
                }
                EvictionCause::Expired => {
                    assert!(self.is_dead(&entry), "key {key} has expired before its time");
                    self.expired += 1;
                }
                EvictionCause::Removed => self.removed += 1,
                cause => panic!("{cause} is no cause of this"),
            }
        }
    }

    fn settle_all(&mut self, causes: &[EvictionCause]) {
        let left = std::mem::take(&mut *self.left.lock().expect("nobody panics with it"));
        self.settle(left, causes);
    }

    fn take(&mut self, step: Step) {
        use EvictionCause::{Capacity, Expired, Removed};
        let options = |ttl: Option<u64>| {
            ttl.map_or_else(InsertOptions::default, |ttl| {
                InsertOptions::ttl(Duration::from_millis(ttl))
            })
        };
        match step {
            Step::Insert(key, weight, ttl) => {
                let value = self.value(weight);
                let entry = self.entry(&value, ttl);
                self.cache.insert_with(key, value, options(ttl));
                if ttl == Some(0) {
                    self.settle_all(&[Removed, Expired]);
                    assert!(!self.entries.contains_key(&key));
                } else {
                    self.put(key, entry);
                }
            }
            Step::Load(key, weight, ttl) => {
                let value = self.value(weight);
                let version = value.version;
                let entry = self.entry(&value, ttl);
                let loaded = Loaded { value, options: options(ttl) };
                let found = self
                    .cache
                    .get_or_load(&key, async || Ok::<_, Infallible>(loaded))
                    .now_or_never()
                    .expect("the loader does not wait")
                    .expect("the loader does not fail");
                if self.find(key).is_some() {
                    return self.look_up(key, Some(found));
                }
                self.look_up(key, None);
                assert_eq!(found.version, version);
                drop(found);
                if ttl != Some(0) {
                    self.put(key, entry);
                }
            }
            Step::LoadFails(key) => {
                let load = async || Err::<Value, _>("as told");
                let found = self.cache.get_or_load(&key, load).now_or_never();
                self.look_up(key, found.expect("the loader does not wait").ok());
            }
            Step::Reserve(key, weight) => {
                let value = self.value(weight);
                let entry = self.entry(&value, None);
                let reservation = self.cache.reserve(&key);
                assert!(reservation.insert(value, InsertOptions::default()));
                self.put(key, entry);
            }
            Step::Get(key) => {
                let found = self.cache.get_in_memory(&key);
                self.look_up(key, found);
            }
            Step::GetMany(keys) => {
                let found = self.cache.get_many(&keys).now_or_never().expect("memory is here");
                for (key, found) in keys.into_iter().zip(found) {
                    self.look_up(key, found);
                }
            }
            Step::Remove(key) => {
                self.cache.remove(&key).now_or_never().expect("nothing to wait for");
                self.settle_all(&[Removed, Expired]);
                assert!(!self.entries.contains_key(&key));
            }
            Step::Clear => {
                self.cache.clear(Tier::Memory).now_or_never().expect("memory is here");
                self.settle_all(&[Removed, Expired]);
                assert!(self.entries.is_empty());
            }
            Step::Advance(by) => {
                self.clock.advance(Duration::from_millis(by));
                self.now += by;
            }
            Step::RemoveExpired => {
                let before = self.expired;
                let told = self.cache.remove_expired().now_or_never().expect("memory is here");
                self.settle_all(&[Expired]);
                assert_eq!(self.expired - before, told);
                assert!(!self.entries.values().any(|entry| self.is_dead(entry)));
            }
            Step::Pin(key) => {
                let pinned = self.cache.pin(&key).expect("this engine pins");
                let is_there = self.find(key).is_some();
                assert!(is_there || !pinned, "key {key} is not there");
                if let Some(entry) = self.entries.get_mut(&key).filter(|_| is_there) {
                    assert!(pinned || !entry.pinned, "key {key} was pinned");
                    entry.pinned = pinned;
                }
            }
            Step::Unpin(key) => {
                let was_pinned = self.cache.unpin(&key).expect("this engine pins");
                let expected = self.find(key).is_some() && self.entries[&key].pinned;
                assert_eq!(was_pinned, expected, "key {key}");
                if was_pinned {
                    let entry = self.entries.get_mut(&key).expect("it was pinned");
                    (entry.pinned, entry.touched) = (false, self.now);
                }
                self.settle_all(&[Capacity]);
            }
            Step::Resize(capacity) => {
                self.cache.resize(capacity);
                self.capacity = capacity;
                // Pinned entries are the last to go, but go.
                self.resizes = true;
                self.settle_all(&[Capacity, Expired]);
                self.resizes = false;
            }
            Step::SetPolicy(policy) => {
                self.cache.set_policy(policy).expect("this engine has policies");
                self.policy = policy;
            }
        }
        assert!(self.left.lock().expect("nobody panics with it").is_empty());
    }

    fn agree(&self) {
        let alive = self.entries.iter().filter(|(_, entry)| !self.is_dead(entry));
        let alive: BTreeMap<_, _> = alive.map(|(key, entry)| (*key, entry.version)).collect();
        let shown: BTreeMap<_, _> =
            self.cache.iter().map(|(key, value)| (key, value.version)).collect();
        assert_eq!(shown, alive);
        let keys: Vec<_> = self.cache.keys().collect();
        assert_eq!(keys.len(), shown.len());
        assert!(keys.iter().all(|key| shown.contains_key(key)));

        let stats = self.cache.stats().memory;
        let weight: u64 = self.entries.values().map(|entry| entry.weight).sum();
        assert!(weight <= self.capacity, "{weight} held, {} allowed", self.capacity);
        assert_eq!(stats.entries, self.entries.len() as u64);
        assert_eq!(stats.bytes, if self.set_up.weighs { weight } else { 0 });
        assert_eq!(stats.capacity, self.capacity);
        assert_eq!((stats.hits, stats.misses), (self.hits, self.misses));
        assert_eq!(stats.writes, self.writes);
        let left = stats.evictions;
        let counted = (left.capacity, left.expired, left.removed, left.too_large);
        assert_eq!(counted, (self.evicted, self.expired, self.removed, self.too_large));
        assert_eq!(self.cache.policy(), Some(self.policy));
    }

    /// Drops the cache: every value goes with it.
    fn end(self) {
        let Self { cache, living, .. } = self;
        drop(cache);
        // The sweeper may hold the cache for a moment.
        let patience = Instant::now() + Duration::from_secs(20);
        while Arc::strong_count(&living) > 1 {
            assert!(Instant::now() < patience, "values outlive their cache");
            std::thread::yield_now();
        }
    }
}

fn check(policy: Policy) {
    let steps = prop::collection::vec(step(), 1..150);
    let run = |(set_up, steps)| -> TestCaseResult {
        let mut model = Model::new(Engine::Switchable, policy, set_up);
        for step in steps {
            model.take(step);
            model.agree();
        }
        model.end();
        Ok(())
    };
    let config = ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() };
    TestRunner::new(config).run(&(set_up(), steps), run).unwrap();
}

#[test]
fn every_step_is_accounted_for_under_lru() {
    check(Policy::Lru);
}

#[test]
fn every_step_is_accounted_for_under_lfu() {
    check(Policy::Lfu);
}

#[test]
fn every_step_is_accounted_for_under_arc() {
    check(Policy::Arc);
}

#[test]
fn every_step_is_accounted_for_under_s3_fifo() {
    check(Policy::S3Fifo);
}

#[test]
fn every_step_is_accounted_for_under_an_election() {
    check(Policy::Adaptive);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    /// A hit is the last value that was put in, alive, and the bounds hold.
    #[test]
    fn clock_pro_returns_nothing_wrong(
        set_up in set_up(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut model = Model::new(Engine::ClockPro, Policy::Lru, set_up);
        for step in steps {
            model.take_loosely(step);
        }
        model.end();
    }
}

impl Model {
    /// Takes a step of which the cache need not give account.
    fn take_loosely(&mut self, step: Step) {
        match step {
            Step::Insert(key, weight, ttl) => {
                let value = self.value(weight);
                let entry = self.entry(&value, ttl);
                let options = ttl.map_or_else(InsertOptions::default, |ttl| {
                    InsertOptions::ttl(Duration::from_millis(ttl))
                });
                self.cache.insert_with(key, value, options);
                self.entries.insert(key, entry);
            }
            Step::Remove(key) => {
                self.cache.remove(&key).now_or_never().expect("nothing to wait for");
                self.entries.remove(&key);
            }
            Step::Clear => {
                self.cache.clear(Tier::Memory).now_or_never().expect("memory is here");
                self.entries.clear();
            }
            Step::Advance(by) => {
                self.clock.advance(Duration::from_millis(by));
                self.now += by;
            }
            Step::Resize(capacity) => {
                self.cache.resize(capacity);
                // quick_cache has as much for each of its shards, and one at least.
                self.capacity = self.cache.stats().memory.capacity;
                assert!(self.capacity <= capacity.max(64), "{capacity}: {}", self.capacity);
            }
            Step::RemoveExpired => {
                self.cache.remove_expired().now_or_never().expect("memory is here");
            }
            Step::SetPolicy(policy) => assert!(self.cache.set_policy(policy).is_err()),
            Step::Pin(key) => assert!(self.cache.pin(&key).is_err()),
            Step::Unpin(key) => assert!(self.cache.unpin(&key).is_err()),
            Step::Get(key) | Step::LoadFails(key) => {
                let found = self.cache.get_in_memory(&key).map(|value| value.version);
                assert!(found.is_none() || found == self.find(key), "key {key}: {found:?}");
                if found.is_some() {
                    self.entries.get_mut(&key).expect("it was found").touched = self.now;
                }
            }
            Step::GetMany(keys) => {
                keys.into_iter().for_each(|key| self.take_loosely(Step::Get(key)));
            }
            Step::Load(key, weight, _) | Step::Reserve(key, weight) => {
                self.take_loosely(Step::Get(key));
                self.take_loosely(Step::Insert(key, weight, None));
            }
        }
        for (key, value) in self.cache.iter() {
            assert_eq!(Some(value.version), self.find(key), "key {key}");
        }
        let stats = self.cache.stats().memory;
        assert!(stats.entries.max(stats.bytes) <= self.capacity, "{stats:?}");
        // The model and the step before hold none.
        assert_eq!(Arc::strong_count(&self.living) as u64, 1 + stats.entries);
    }
}
