//! The edges of the memory tier: capacities of nothing and of everything, weights that do not fit, users'
//! code that panics or calls the cache, and threads that end.
//!
//! Where both engines promise something, both are tried.

#[path = "support/watchdog.rs"]
mod watchdog;

use std::cell::Cell;
use std::collections::HashSet;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cache_tiered::{
    BuildError, Cache, CacheBuilder, Clock, Engine, EvictionCause, InsertOptions, Policy, Tier,
};
use futures_util::FutureExt as _;
use watchdog::Watchdog;

const ENGINES: [Engine; 2] = [Engine::Switchable, Engine::ClockPro];

fn builder() -> CacheBuilder<u32, u32> {
    Cache::builder("test")
}

fn remove<K, V, S>(cache: &Cache<K, V, S>, key: &K)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    cache.remove(key).now_or_never().expect("nothing to wait for");
}

fn clear<K, V>(cache: &Cache<K, V>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache.clear(Tier::Memory).now_or_never().expect("memory does not wait");
}

/// Panics as users' code may, without the report that many of them would make long.
fn panic_as_told() -> ! {
    resume_unwind(Box::new("as told"))
}

/// Tells whether something panics.
fn panics<T>(action: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(action)).is_err()
}

/// Waits for what another thread does in a moment.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < patience, "it never came: {what}");
        thread::yield_now();
    }
}

// Capacities.

#[test]
fn a_cache_of_nothing_is_not_built() {
    for engine in ENGINES {
        let of_bytes = builder().bytes(0, |_, _| 1);
        for (builder, path) in
            [(builder().entries(0), "memory.entries"), (of_bytes, "memory.bytes")]
        {
            let error = builder.engine(engine).build().unwrap_err();
            let BuildError::Invalid { problems, .. } = error else { panic!("{error}") };
            assert_eq!(problems[0].path, path);
            assert_eq!(problems[0].expected, "must be at least 1");
        }
    }
}

#[test]
fn a_tiny_cache_holds_what_came_last() {
    for policy in Policy::ALL {
        for capacity in 1..20 {
            let cache = builder().entries(capacity).policy(policy).build().unwrap();
            for key in 0..1_000 {
                cache.insert(key, key);
                assert_eq!(cache.get_in_memory(&key), Some(key), "{policy} {capacity}");
                let entries = cache.stats().memory.entries;
                assert_eq!(entries, capacity.min(u64::from(key) + 1), "{policy}");
            }
        }
    }
}

#[test]
fn a_cache_resized_to_nothing_refuses_everything_and_grows_again() {
    for policy in Policy::ALL {
        let cache = builder().entries(500).policy(policy).build().unwrap();
        (0..500).for_each(|key| cache.insert(key, key));
        cache.resize(0);
        let stats = cache.stats().memory;
        assert_eq!((stats.entries, stats.capacity, stats.evictions.capacity), (0, 0, 500));
        cache.insert(1, 1);
        assert_eq!(cache.get_in_memory(&1), None);
        assert_eq!(cache.stats().memory.evictions.too_large, 1);
        cache.resize(500);
        (0..500).for_each(|key| cache.insert(key, key));
        let found = (0..500).filter(|key| cache.get_in_memory(key).is_some()).count();
        // Keys are not spread over shards quite evenly.
        assert!(found > 350, "{policy}: {found}");
    }
}

#[test]
fn resizes_at_once_leave_one_capacity() {
    for engine in ENGINES {
        let cache = builder().engine(engine).entries(4_096).build().unwrap();
        for round in 0..30 {
            let begin = Barrier::new(4);
            thread::scope(|scope| {
                for capacity in [256, 512, 1_024, 2_048] {
                    let (cache, begin) = (&cache, &begin);
                    scope.spawn(move || {
                        begin.wait();
                        cache.resize(capacity);
                    });
                }
            });
            (0..4_096).for_each(|key| cache.insert(key, round));
            let stats = cache.stats().memory;
            assert!([256, 512, 1_024, 2_048].contains(&stats.capacity), "{engine}: {stats:?}");
            let full = stats.capacity * 7 / 10..=stats.capacity;
            assert!(full.contains(&stats.entries), "{engine}: {stats:?}");
        }
    }
}

#[test]
fn a_capacity_beyond_all_memory_costs_no_memory() {
    for engine in ENGINES {
        for capacity in [1 << 40, u64::MAX] {
            let of_bytes = builder().bytes(capacity, |_, _| 100);
            for builder in [builder().entries(capacity), of_bytes] {
                let cache = builder.engine(engine).build().unwrap();
                (0..2_000).for_each(|key| cache.insert(key, key));
                (0..2_000).for_each(|key| assert_eq!(cache.get_in_memory(&key), Some(key)));
                assert_eq!(cache.stats().memory.evictions.capacity, 0);
            }
        }
    }
    let cache = builder().entries(100).build().unwrap();
    cache.resize(u64::MAX);
    (0..2_000).for_each(|key| cache.insert(key, key));
    (0..2_000).for_each(|key| assert_eq!(cache.get_in_memory(&key), Some(key)));
}

// Weights.

#[test]
fn an_entry_as_heavy_as_its_shard_fits_and_a_heavier_one_does_not() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    // Few entries are expected, so there is a single shard.
    let cache = Cache::<u32, u64>::builder("test")
        .bytes(1_000, |_, weight| *weight)
        .on_eviction(move |key, _, cause| listener.lock().unwrap().push((*key, cause)))
        .build()
        .unwrap();
    cache.insert(1, 10);
    cache.insert(2, 1_000);
    assert_eq!(cache.get_in_memory(&2), Some(1_000));
    cache.insert(2, 1_001);
    cache.insert(3, u64::MAX);
    assert_eq!(cache.stats().memory.entries, 0);
    assert_eq!(cache.stats().memory.evictions.too_large, 2);
    use EvictionCause::{Capacity, Replaced, TooLarge};
    let expected = [(1, Capacity), (2, Replaced), (2, TooLarge), (3, TooLarge)];
    assert_eq!(*told.lock().unwrap(), expected);
}

#[test]
fn no_weight_breaks_the_bound_however_it_is_spread() {
    for engine in ENGINES {
        let cache = Cache::<u32, u64>::builder("test")
            .engine(engine)
            .bytes(1 << 20, |_, weight| *weight)
            .build()
            .unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        for key in 0..20_000 {
            let weight = 1 << rng.u32(0..22);
            cache.insert(key % 3_000, weight + rng.u64(0..weight));
            let bytes = cache.stats().memory.bytes;
            assert!(bytes <= 1 << 20, "{engine}: {bytes}");
        }
    }
}

#[test]
fn entries_that_weigh_nothing_count_as_one() {
    for engine in ENGINES {
        let cache = builder().engine(engine).bytes(64, |_, _| 0).build().unwrap();
        (0..1_000).for_each(|key| cache.insert(key, key));
        let stats = cache.stats().memory;
        assert!(stats.entries <= 64 && stats.bytes == stats.entries, "{engine}: {stats:?}");
    }
}

#[test]
fn a_value_that_becomes_heavier_pushes_out_others_and_stays() {
    for policy in Policy::ALL {
        let cache = Cache::<u32, u64>::builder("test")
            .policy(policy)
            .bytes(100, |_, weight| *weight)
            .build()
            .unwrap();
        (0..100).for_each(|key| cache.insert(key, 1));
        for weight in [2, 30, 99, 100, 3] {
            cache.insert(50, weight);
            assert_eq!(cache.get_in_memory(&50), Some(weight), "{policy}");
            assert!(cache.stats().memory.bytes <= 100, "{policy}");
        }
        assert_eq!(cache.stats().memory.entries, 1, "{policy}");
    }
}

// Time.

#[test]
fn a_life_longer_than_history_is_no_short_one() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    for engine in ENGINES {
        let clock = Clock::manual();
        let cache = builder().engine(engine).clock(clock.clone()).build().unwrap();
        for (key, years) in [(1, 1_000), (2, 8_000), (3, 9_000), (4, 1_000_000)] {
            cache.insert_with(key, key, InsertOptions::ttl(YEAR * years));
        }
        cache.insert_with(5, 5, InsertOptions::ttl(Duration::MAX));
        clock.advance(YEAR * 999);
        cache.remove_expired().now_or_never().expect("memory does not wait");
        let alive = (1..=5).filter(|key| cache.get_in_memory(key).is_some()).count();
        assert_eq!(alive, 5, "{engine}");
        clock.advance(YEAR * 2);
        assert_eq!(cache.remove_expired().now_or_never(), Some(1), "{engine}");
    }
}

// Collisions and shapes.

/// Gives every key the same hash.
#[derive(Debug, Clone, Copy)]
struct Same;

impl BuildHasher for Same {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn finish(&self) -> u64 {
        0
    }
}

#[test]
fn keys_that_all_collide_are_told_apart() {
    for engine in ENGINES {
        let cache = builder().engine(engine).entries(4_000).hasher(Same).build().unwrap();
        for round in 0..3 {
            (0..400).for_each(|key| cache.insert(key, key + round));
            (0..400).filter(|key| key % 3 == 0).for_each(|key| remove(&cache, &key));
            let found = (0..400).filter(|key| {
                let found = cache.get_in_memory(key);
                assert!(found.is_none_or(|value| value == key + round && key % 3 != 0));
                found.is_some()
            });
            // The shard of all of them holds a part of the capacity.
            assert!(found.count() > 100, "{engine}");
        }
        (400..8_000).for_each(|key| cache.insert(key, key));
        let stats = cache.stats().memory;
        assert!(stats.entries <= 4_000 && stats.evictions.capacity > 0, "{engine}: {stats:?}");
    }
}

#[test]
fn keys_are_found_by_what_they_borrow() {
    for engine in ENGINES {
        let cache = Cache::<String, u32>::builder("test").engine(engine).build().unwrap();
        cache.insert("one".to_owned(), 1);
        assert_eq!(cache.get_in_memory("one"), Some(1));
        assert_eq!(cache.get_in_memory("two"), None);
    }
}

#[test]
fn entries_of_any_size_and_alignment_are_held() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    #[repr(align(256))]
    struct Aligned(u8);

    for engine in ENGINES {
        let units = Cache::<(), ()>::builder("test").engine(engine).entries(3).build().unwrap();
        assert_eq!(units.get_in_memory(&()), None);
        units.insert((), ());
        assert_eq!(units.get_in_memory(&()), Some(()));

        let aligned = Cache::<u8, Aligned>::builder("test").engine(engine).build().unwrap();
        let big = Cache::<u8, [u64; 1_000]>::builder("test").engine(engine).build().unwrap();
        for key in 0..=255 {
            aligned.insert(key, Aligned(key));
            big.insert(key, [u64::from(key); 1_000]);
        }
        for key in 0..=255 {
            assert_eq!(aligned.get_in_memory(&key), Some(Aligned(key)));
            assert_eq!(big.get_in_memory(&key), Some([u64::from(key); 1_000]));
        }
    }
}

#[test]
fn a_snapshot_may_be_held_while_everything_changes() {
    let _watchdog = Watchdog::over("a snapshot that is held");
    for engine in ENGINES {
        let cache = builder().engine(engine).entries(2_000).build().unwrap();
        (0..1_000).for_each(|key| cache.insert(key, key));
        let mut shown = HashSet::new();
        for (key, value) in cache.iter() {
            assert_eq!(key, value);
            shown.insert(key);
            cache.insert(key + 10_000, key + 10_000);
            remove(&cache, &key);
            if shown.len() == 500 {
                clear(&cache);
                cache.resize(500);
            }
        }
        assert!(shown.len() >= 500, "{engine}");
    }
}

// Pins.

#[test]
fn half_of_a_shard_can_be_pinned_and_no_more() {
    let cache = builder().entries(20).build().unwrap();
    (0..20).for_each(|key| cache.insert(key, key));
    let pinned: Vec<_> = (0..20).filter(|key| cache.pin(key).unwrap()).collect();
    assert_eq!(pinned.len(), 10);
    (100..10_000).for_each(|key| cache.insert(key, key));
    for key in &pinned {
        assert_eq!(cache.get_in_memory(key), Some(*key));
        assert!(cache.pin(key).unwrap(), "it is pinned already");
        cache.insert(*key, *key + 1);
    }
    (100..10_000).for_each(|key| cache.insert(key, key));
    for key in &pinned {
        assert_eq!(cache.get_in_memory(key), Some(*key + 1), "a newer value stays pinned");
        assert!(cache.unpin(key).unwrap() && !cache.unpin(key).unwrap());
    }
    (100..10_000).for_each(|key| cache.insert(key, key));
    assert!(pinned.iter().all(|key| cache.get_in_memory(key).is_none()));
    assert!(!cache.pin(&0).unwrap(), "it is not there");
    assert_eq!(cache.stats().memory.entries, 20);
}

#[test]
fn a_removal_ends_a_pin() {
    let cache = builder().entries(10).build().unwrap();
    for end in 0..2 {
        cache.insert(1, 1);
        assert!(cache.pin(&1).unwrap());
        if end == 0 {
            remove(&cache, &1);
        } else {
            clear(&cache);
        }
        cache.insert(1, 2);
        (100..10_000).for_each(|key| cache.insert(key, key));
        assert_eq!(cache.get_in_memory(&1), None);
    }
}

#[test]
fn a_pinned_entry_expires_and_does_not_go_idle() {
    let clock = Clock::manual();
    let cache = builder()
        .entries(10)
        .time_to_idle(Duration::from_secs(1))
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    cache.insert_with(2, 2, InsertOptions::ttl(Duration::from_secs(5)));
    assert!(cache.pin(&1).unwrap() && cache.pin(&2).unwrap());
    let expired = |seconds| {
        clock.advance(Duration::from_secs(seconds));
        cache.remove_expired().now_or_never().expect("memory does not wait")
    };
    assert_eq!([expired(4), expired(1), expired(100)], [0, 1, 0]);
    assert_eq!(cache.get_in_memory(&1), Some(1));
    assert!(cache.unpin(&1).unwrap());
    assert_eq!([expired(0), expired(1)], [0, 1]);
}

// Users' code that panics.

/// A key and a value whose every method panics when it is told to.
#[derive(Debug)]
struct Fragile {
    number: u32,
    fuse: Arc<Fuse>,
}

#[derive(Debug, Default)]
struct Fuse {
    hash: AtomicBool,
    eq: AtomicBool,
    clone: AtomicBool,
    drop: AtomicBool,
    living: AtomicUsize,
}

impl Fuse {
    fn burn(fuse: &AtomicBool) {
        // One panic each time that it is set; nothing here may panic while another one unwinds.
        if !thread::panicking() && fuse.swap(false, Relaxed) {
            panic_as_told();
        }
    }

    fn fragile(self: &Arc<Self>, number: u32) -> Fragile {
        self.living.fetch_add(1, Relaxed);
        Fragile { number, fuse: Arc::clone(self) }
    }
}

impl Hash for Fragile {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Fuse::burn(&self.fuse.hash);
        self.number.hash(state);
    }
}

impl PartialEq for Fragile {
    fn eq(&self, other: &Self) -> bool {
        Fuse::burn(&self.fuse.eq);
        self.number == other.number
    }
}

impl Eq for Fragile {}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        Fuse::burn(&self.fuse.clone);
        self.fuse.fragile(self.number)
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.fuse.living.fetch_sub(1, Relaxed);
        Fuse::burn(&self.fuse.drop);
    }
}

/// Something that calls the user's code, and its name.
type Operation<'a> = (&'static str, Box<dyn Fn() + 'a>);

struct Fragiles {
    cache: Cache<Fragile, Fragile>,
    fuse: Arc<Fuse>,
    clock: Clock,
}

impl Fragiles {
    fn new(engine: Engine, listens: bool) -> Self {
        let (fuse, clock) = (Arc::new(Fuse::default()), Clock::manual());
        let mut builder = Cache::builder("test").engine(engine).entries(40).clock(clock.clone());
        if listens {
            builder = builder.on_eviction(|key: &Fragile, value: &Fragile, _| {
                assert!(key.number <= value.number);
            });
        }
        let cache = builder.build().unwrap();
        let fragiles = Self { cache, fuse, clock };
        (0..40).for_each(|key| fragiles.insert(key, key));
        fragiles
    }

    fn insert(&self, key: u32, value: u32) {
        self.cache.insert(self.fuse.fragile(key), self.fuse.fragile(value));
    }

    /// Does everything that calls the user's code.
    fn operations(&self) -> Vec<Operation<'_>> {
        let (cache, fuse) = (&self.cache, &self.fuse);
        let some = cache.keys().next().expect("they are there").number;
        vec![
            ("get", Box::new(move || drop(cache.get_in_memory(&fuse.fragile(some))))),
            ("get_many", {
                Box::new(move || {
                    let keys: Vec<_> = (0..40).map(|key| fuse.fragile(key)).collect();
                    drop(cache.get_many(&keys).now_or_never());
                })
            }),
            ("insert", Box::new(move || (100..110).for_each(|key| self.insert(key, key)))),
            ("replace", Box::new(move || self.insert(some, 1_000))),
            ("remove", Box::new(move || remove(cache, &fuse.fragile(some)))),
            ("iter", Box::new(move || drop(cache.iter().collect::<Vec<_>>()))),
            ("get_or_load", {
                Box::new(move || {
                    let load = async || Ok::<_, Infallible>(fuse.fragile(200));
                    drop(cache.get_or_load(&fuse.fragile(200), load).now_or_never());
                })
            }),
            ("reserve", {
                Box::new(move || {
                    let reservation = cache.reserve(&fuse.fragile(201));
                    reservation.insert(fuse.fragile(201), InsertOptions::default());
                })
            }),
            ("expire", {
                Box::new(move || {
                    let short = InsertOptions::ttl(Duration::from_millis(1));
                    cache.insert_with(fuse.fragile(300), fuse.fragile(300), short);
                    self.clock.advance(Duration::from_secs(1));
                    cache.remove_expired().now_or_never().expect("memory does not wait");
                })
            }),
            ("resize", {
                Box::new(move || {
                    cache.resize(10);
                    cache.resize(40);
                })
            }),
            ("clear", Box::new(move || clear(cache))),
        ]
    }

    /// Panics unless the cache still does what a cache does.
    fn check(&self) {
        let Self { cache, fuse, .. } = self;
        assert_eq!(cache.stats().in_flight, 0);
        for key in 400..600 {
            self.insert(key, key);
            let found = cache.get_in_memory(&fuse.fragile(key)).map(|value| value.number);
            assert_eq!(found, Some(key));
            let entries = cache.stats().memory.entries;
            assert!((1..=40).contains(&entries), "{entries}");
        }
        let keys: HashSet<_> = cache.keys().map(|key| key.number).collect();
        assert_eq!(keys.len() as u64, cache.stats().memory.entries);
    }
}

#[test]
fn a_cache_survives_every_panic_of_a_users_code() {
    type Choose = fn(&Fuse) -> &AtomicBool;
    let fuses: [(&str, Choose); 4] = [
        ("Hash", |fuse| &fuse.hash),
        ("Eq", |fuse| &fuse.eq),
        ("Clone", |fuse| &fuse.clone),
        ("Drop", |fuse| &fuse.drop),
    ];
    let _watchdog = Watchdog::over("panics of a user's code");
    let mut panicked = HashSet::new();
    for listens in [false, true] {
        for (method, choose) in fuses {
            let operations = Fragiles::new(Engine::Switchable, listens).operations().len();
            for operation in 0..operations {
                let fragiles = Fragiles::new(Engine::Switchable, listens);
                let (name, operate) = fragiles.operations().swap_remove(operation);
                choose(&fragiles.fuse).store(true, Relaxed);
                if panics(&operate) {
                    panicked.insert((method, name));
                }
                choose(&fragiles.fuse).store(false, Relaxed);
                drop(operate);
                fragiles.check();
                // Nothing is lost and nothing is dropped twice.
                let Fragiles { cache, fuse, .. } = fragiles;
                drop(cache);
                eventually(&format!("{name} with a {method} that panics drops all"), || {
                    fuse.living.load(Relaxed) == 0
                });
            }
        }
    }
    // It was worth the while.
    for case in [("Hash", "get"), ("Eq", "replace"), ("Clone", "get"), ("Drop", "replace")] {
        assert!(panicked.contains(&case), "{case:?} did not panic: {panicked:?}");
    }
}

#[test]
fn a_weigher_that_panics_leaves_the_older_value() {
    for engine in ENGINES {
        let cache = builder()
            .engine(engine)
            .bytes(1_000, |_, value| if *value == 13 { panic_as_told() } else { 1 })
            .build()
            .unwrap();
        cache.insert(1, 1);
        assert!(panics(|| cache.insert(1, 13)));
        assert_eq!(cache.get_in_memory(&1), Some(1));
        cache.insert(1, 2);
        assert_eq!(cache.get_in_memory(&1), Some(2));
    }
}

#[test]
fn a_listener_that_panics_is_heard_no_further() {
    for engine in ENGINES {
        let heard = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&heard);
        let cache = builder()
            .engine(engine)
            .entries(10)
            .on_eviction(move |_, _, _| {
                counter.fetch_add(1, Relaxed);
                panic_as_told();
            })
            .build()
            .unwrap();
        (0..100).for_each(|key| cache.insert(key, key));
        clear(&cache);
        assert_eq!(heard.load(Relaxed), 100, "{engine}");
        assert_eq!(cache.stats().memory.entries, 0);
    }
}

#[test]
fn a_loader_that_panics_leaves_nothing_under_way() {
    for engine in ENGINES {
        let cache = builder().engine(engine).build().unwrap();
        let load = async || -> Result<u32, Infallible> { panic_as_told() };
        assert!(panics(|| cache.get_or_load(&1, load).now_or_never()));
        assert_eq!(cache.stats().in_flight, 0);
        let loaded = cache.get_or_load(&1, async || Ok::<_, Infallible>(7)).now_or_never();
        assert_eq!(loaded.expect("nobody else loads").unwrap(), 7);
    }
}

// Users' code that calls the cache.

#[test]
fn a_listener_may_call_the_cache() {
    let _watchdog = Watchdog::over("a listener that calls the cache");
    for engine in ENGINES {
        let home = Arc::new(OnceLock::<Cache<u32, u32>>::new());
        let weak = Arc::downgrade(&home);
        let cache = builder()
            .engine(engine)
            .entries(10)
            .on_eviction(move |key, value, cause| {
                let Some(home) = weak.upgrade() else { return };
                let Some(cache) = home.get() else { return };
                assert_ne!(cache.get_in_memory(key), Some(*value), "{key} has left: {cause}");
                // What it puts in pushes out others, of which it hears in turn.
                if *key < 1_000 {
                    cache.insert(*key + 1_000, 0);
                }
                remove(cache, &(*key + 2_000));
                assert!(cache.iter().count() <= 10 && cache.stats().memory.entries <= 10);
                if *key % 50 == 0 {
                    cache.resize(10);
                    cache.remove_expired().now_or_never().expect("memory does not wait");
                    let _ = cache.set_policy(Policy::ALL[*key as usize / 50 % 5]);
                }
            })
            .build()
            .unwrap();
        home.set(cache.clone()).unwrap();
        (0..1_000).for_each(|key| cache.insert(key, key));
        clear(&cache);
        assert!(cache.stats().memory.entries <= 10);
        drop(home);
    }
}

/// A value that calls the cache when it is cloned or dropped.
struct Nosy {
    key: u32,
    home: Arc<OnceLock<Cache<u32, Nosy>>>,
}

thread_local! {
    /// Whether a `Nosy` of this thread is at it: what it causes is not to call the cache as well.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

impl Nosy {
    fn new(key: u32, home: &Arc<OnceLock<Cache<u32, Nosy>>>) -> Self {
        Self { key, home: Arc::clone(home) }
    }

    fn look_around(&self) {
        let Some(cache) = self.home.get() else { return };
        if BUSY.replace(true) {
            return;
        }
        // The same shard, and others; enough to make a writer wait for readers, this one among them.
        drop(cache.get_in_memory(&self.key));
        for key in [self.key, self.key + 1, self.key + 2_000] {
            cache.insert(key, Nosy::new(key, &self.home));
        }
        remove(cache, &(self.key + 1));
        assert!(cache.stats().memory.entries <= 50);
        cache.keys().for_each(drop);
        if self.key.is_multiple_of(64) {
            clear(cache);
            cache.resize(20);
            cache.resize(50);
        }
        BUSY.set(false);
    }
}

impl Clone for Nosy {
    fn clone(&self) -> Self {
        self.look_around();
        Self::new(self.key, &self.home)
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.look_around();
    }
}

#[test]
fn a_values_clone_and_drop_may_call_the_cache() {
    let _watchdog = Watchdog::over("values that call the cache");
    let home = Arc::new(OnceLock::new());
    let cache = Cache::<u32, Nosy>::builder("test").entries(50).build().unwrap();
    assert!(home.set(cache.clone()).is_ok());
    thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, home) = (&cache, &home);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for _ in 0..1_000 {
                    let key = rng.u32(0..100);
                    match rng.u8(0..10) {
                        0..6 => drop(cache.get_in_memory(&key)),
                        6 => drop(cache.get_many(&[key, key + 1, key + 2]).now_or_never()),
                        7 => cache.iter().take(5).for_each(drop),
                        8 => remove(cache, &key),
                        _ => cache.insert(key, Nosy::new(key, home)),
                    }
                }
            });
        }
    });
    clear(&cache);
    // The values hold the cache, and the cache the values: without its home nothing does.
    BUSY.set(true);
    cache.resize(0);
    assert_eq!(cache.stats().memory.entries, 0);
}

// Threads.

#[test]
fn a_thread_may_use_the_cache_while_it_ends() {
    struct AtEnd(Cache<u32, Arc<()>>, u32);

    impl Drop for AtEnd {
        fn drop(&mut self) {
            let Self(cache, key) = self;
            assert!(cache.get_in_memory(key).is_some());
            // Enough of them that what is counted and sampled for each thread is handed in.
            for more in 0..1_000 {
                cache.insert(*key + more % 100, cache.get_in_memory(key).unwrap_or_default());
            }
            assert!(cache.iter().count() <= 1_000);
            remove(cache, key);
        }
    }

    thread_local! {
        // Torn down in the reverse order of their first use.
        static BEFORE: Cell<Option<AtEnd>> = const { Cell::new(None) };
        static AFTER: Cell<Option<AtEnd>> = const { Cell::new(None) };
    }

    for engine in ENGINES {
        let value = Arc::new(());
        let cache = Cache::<u32, Arc<()>>::builder("test").engine(engine).entries(1_000);
        let cache = cache.build().unwrap();
        for round in 0..15 {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let (cache, value) = (cache.clone(), Arc::clone(&value));
                    thread::spawn(move || {
                        let keys = [thread * 200, thread * 200 + 100].map(|key| key + round % 7);
                        BEFORE.set(Some(AtEnd(cache.clone(), keys[0])));
                        // The first use of the cache lies between.
                        keys.iter().for_each(|key| cache.insert(*key, Arc::clone(&value)));
                        assert!(cache.get_in_memory(&keys[0]).is_some());
                        AFTER.set(Some(AtEnd(cache, keys[1])));
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        drop(cache);
        eventually("every value is dropped", || Arc::strong_count(&value) == 1);
    }
}

#[test]
fn more_threads_than_anybody_expects_find_their_values() {
    const THREADS: u32 = 200;
    let cache = builder().entries(10_000).build().unwrap();
    (0..100).for_each(|key| cache.insert(key, key));
    let all_here = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, all_here) = (&cache, &all_here);
            scope.spawn(move || {
                all_here.wait();
                for key in 0..100 {
                    assert_eq!(cache.get_in_memory(&key), Some(key));
                    cache.insert(1_000 + thread * 10 + key % 10, thread);
                }
                // All of them hold their slots until here.
                all_here.wait();
            });
        }
    });
    assert_eq!(cache.stats().memory.hits, u64::from(THREADS) * 100);
}

#[test]
fn a_cache_may_be_dropped_on_any_thread_and_by_its_own_values() {
    struct Last(Option<Cache<u32, Arc<Mutex<Last>>>>);

    for engine in ENGINES {
        let cache = Cache::<u32, Arc<Mutex<Last>>>::builder("test").engine(engine).build().unwrap();
        let value = Arc::new(Mutex::new(Last(None)));
        let seen = Arc::downgrade(&value);
        value.lock().unwrap().0 = Some(cache.clone());
        cache.insert(1, value);
        drop(cache);
        // A circle keeps itself alive; broken, it takes itself apart.
        let value = seen.upgrade().expect("the cache holds it");
        let cache = value.lock().unwrap().0.take().expect("it holds the cache");
        drop(value);
        thread::spawn(move || drop(cache)).join().unwrap();
        eventually("the value is dropped", || seen.upgrade().is_none());
    }
}

#[test]
fn calls_make_futures_that_can_be_sent() {
    fn check<T: Send>(_: T) {}
    let cache = builder().build().unwrap();
    check(cache.get(&1));
    check(cache.get_many(&[1]));
    check(cache.get_or_load(&1, || async { Ok::<_, Infallible>(1) }));
    check(cache.clear(None));
    check(cache.iter());
    check(cache.reserve(&1));
}
