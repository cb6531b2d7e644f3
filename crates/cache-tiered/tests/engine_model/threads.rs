//! Sixteen threads, all operations, and what must hold whatever they do.
//!
//! Each value names its key, its version and its end. The writes of an *ordered* key take turns, so
//! that its versions only grow: nobody may find an older one than the last whose write had returned
//! before they asked. *Wild* keys are written by everybody at any time. A watcher compares bounds all
//! along. Now and then everybody holds still: time moves, and the cache has to agree with itself, with
//! its listener and with the number of values that are alive, to the last entry.
//!
//! `ULTRA_PERF_SOAK_SECONDS` sets how long this goes on (10) and `ULTRA_PERF_SOAK_SEED` what is done;
//! which thread does it when, nobody can set. `cargo xtask soak` runs it for longer. The memory of the
//! process may not grow then.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use cache_tiered::{
    Cache, Clock, Engine, EvictionCause, InsertOptions, Loaded, Policy, Tier, UnsupportedByEngine,
};
use futures_util::FutureExt as _;
use tokio::runtime::Runtime;

use crate::value::{Value, alive};
use crate::watchdog::Watchdog;

const THREADS: u64 = 16;
const ORDERED_KEYS: u32 = 256;
const KEYS: u32 = 4_096;
/// Operations between two chances to hold still.
const BREATH: u32 = 32;
const BETWEEN_STILLS: Duration = Duration::from_millis(40);
/// How long what happens in a moment may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const NEVER: u64 = u64::MAX;

/// How a cache is set up.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    name: &'static str,
    engine: Engine,
    policy: Policy,
    /// What the cache is resized to, the first of them at the start: entries, or weight.
    capacities: &'static [u64],
    weighs: bool,
    ttl_ms: Option<u64>,
    idle_ms: Option<u64>,
    /// With a listener every entry is accounted for, and only these threads take entries out.
    listens: bool,
    curve: bool,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "entries",
        engine: Engine::Switchable,
        policy: Policy::Lru,
        capacities: &[300, 40, 1_000, 2_000, 700],
        weighs: false,
        ttl_ms: None,
        idle_ms: None,
        listens: false,
        curve: false,
    },
    Scenario {
        name: "weights",
        engine: Engine::Switchable,
        policy: Policy::S3Fifo,
        capacities: &[16_000, 2_000, 40_000],
        weighs: true,
        ttl_ms: Some(50),
        idle_ms: Some(30),
        listens: false,
        curve: false,
    },
    Scenario {
        name: "accounts",
        engine: Engine::Switchable,
        policy: Policy::Adaptive,
        capacities: &[500, 1_500, 100],
        weighs: false,
        ttl_ms: None,
        idle_ms: Some(40),
        listens: true,
        curve: true,
    },
    Scenario {
        name: "tiny",
        engine: Engine::Switchable,
        policy: Policy::Arc,
        capacities: &[3, 1, 8, 0],
        weighs: false,
        ttl_ms: None,
        idle_ms: None,
        listens: false,
        curve: false,
    },
    Scenario {
        name: "clock-pro",
        engine: Engine::ClockPro,
        policy: Policy::Lfu,
        // quick_cache has as much for each of its shards: these suit up to 64.
        capacities: &[320, 64, 1_024],
        weighs: false,
        ttl_ms: Some(50),
        idle_ms: None,
        listens: false,
        curve: false,
    },
];

#[derive(Default)]
struct Key {
    /// Held by the one who writes an ordered key.
    turn: Mutex<()>,
    /// The newest version that anybody may have seen: a backend would answer it.
    issued: AtomicU64,
    /// The newest version whose write has returned; ordered keys only.
    floor: AtomicU64,
}

/// The most that the cache may hold, as whoever resizes it last said.
#[derive(Default)]
struct Bound {
    /// Odd while it changes.
    generation: AtomicU64,
    capacity: AtomicU64,
}

impl Bound {
    fn set(&self, capacity: u64) {
        self.generation.fetch_add(1, Release);
        self.capacity.store(capacity, Release);
        self.generation.fetch_add(1, Release);
    }

    /// The bound, and `look`'s answer, if it did not change meanwhile.
    fn during<T>(&self, look: impl FnOnce() -> T) -> Option<(u64, T)> {
        let before = self.generation.load(Acquire);
        let capacity = self.capacity.load(Acquire);
        let seen = look();
        let unchanged = before.is_multiple_of(2) && self.generation.load(Acquire) == before;
        unchanged.then_some((capacity, seen))
    }
}

struct World {
    scenario: Scenario,
    cache: Cache<u32, Value>,
    clock: Clock,
    keys: Vec<Key>,
    /// The model's time. It moves only while everybody holds still.
    now: AtomicU64,
    still: RwLock<()>,
    stop: AtomicBool,
    resizing: Mutex<()>,
    bound: Bound,
    /// A snapshot holds the values of a shard; one at a time, so that their number has a bound.
    snapshot: Mutex<()>,
    told: Arc<Told>,
    operations: AtomicU64,
    found: AtomicU64,
}

/// What the listener heard, by cause.
#[derive(Default)]
struct Told {
    capacity: AtomicU64,
    expired: AtomicU64,
    removed: AtomicU64,
    replaced: AtomicU64,
    too_large: AtomicU64,
}

impl Told {
    fn hear(&self, cause: EvictionCause) {
        let counter = match cause {
            EvictionCause::Capacity => &self.capacity,
            EvictionCause::Expired => &self.expired,
            EvictionCause::Removed => &self.removed,
            EvictionCause::Replaced => &self.replaced,
            EvictionCause::TooLarge => &self.too_large,
            cause => panic!("{cause} is new"),
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// Stops everybody when its thread panics, so that the test ends.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Relaxed);
        }
    }
}

#[test]
fn nothing_goes_wrong_when_everything_happens_at_once() {
    let seconds = setting("ULTRA_PERF_SOAK_SECONDS").unwrap_or(10).max(1);
    let seed = setting("ULTRA_PERF_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ULTRA_PERF_SOAK_SEED={seed}");
    let total = Duration::from_secs(seconds);
    // Rounds enough to compare their memory, and short enough for the watchdog.
    let rounds = (seconds / 10).clamp(1, 12).max(seconds / 300);
    let slice = total / (rounds as u32 * SCENARIOS.len() as u32);
    let start = Instant::now();
    let mut resident = Resident::default();
    for round in 0..rounds {
        for scenario in SCENARIOS {
            let _watchdog = Watchdog::over(scenario.name);
            let operations = run(scenario, slice, seed.wrapping_add(round));
            let kib = resident_kib();
            resident.note(scenario.name, kib);
            // `cargo xtask soak` reads these lines.
            let seconds = start.elapsed().as_secs();
            println!("soak {seconds} {operations} {} {}", kib.unwrap_or(0), scenario.name);
        }
    }
    resident.check();
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// The memory of the process after each round, for each scenario.
#[derive(Default)]
struct Resident(HashMap<&'static str, Vec<u64>>);

impl Resident {
    fn note(&mut self, scenario: &'static str, kib: Option<u64>) {
        self.0.entry(scenario).or_default().extend(kib);
    }

    /// Panics if even the leanest of the last third of the rounds needs more than any of the first
    /// third did, the very first round left out.
    fn check(&self) {
        for (scenario, kib) in &self.0 {
            let third = kib.len() / 3;
            if third < 3 {
                continue;
            }
            let early = kib[1..=third].iter().max().copied().unwrap_or(0);
            let late = kib[kib.len() - third..].iter().min().copied().unwrap_or(0);
            assert!(late <= early + early / 50 + 512, "{scenario}: memory grows, {kib:?} KiB");
        }
    }
}

#[test]
fn memory_that_grows_is_found_out() {
    let verdict = |kib: &[u64]| {
        let resident = Resident(HashMap::from([("it", kib.to_vec())]));
        std::panic::catch_unwind(|| resident.check()).is_ok()
    };
    let wavers = [9_000, 12_000, 12_100, 12_050, 12_300, 12_200, 12_300, 12_100, 12_250];
    assert!(verdict(&wavers));
    let early = [9_000, 11_000, 12_000, 12_500, 12_800, 12_900, 12_900, 12_950, 12_900];
    assert!(verdict(&early), "what it takes to begin with has come by then");
    assert!(verdict(&[9_000, 12_000, 30_000, 30_000, 30_000, 30_000]), "too few rounds to tell");
    let grows = [9_000, 12_000, 12_300, 12_600, 12_900, 13_200, 13_500, 13_800, 14_100];
    assert!(!verdict(&grows));
    assert!(!verdict(&[9_000, 9_000, 9_000, 9_000, 9_000, 9_500, 10_000, 10_500, 11_000]));
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Works on a cache for a while and returns how many operations that were.
fn run(scenario: Scenario, time: Duration, seed: u64) -> u64 {
    assert_eq!(alive(), 0, "values of the last scenario are alive");
    let world = World::new(scenario);
    let until = Instant::now() + time;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let world = &world;
            scope.spawn(move || {
                let _stop = StopOnPanic(&world.stop);
                world.work(fastrand::Rng::with_seed(seed ^ thread << 48));
            });
        }
        scope.spawn(|| {
            let _stop = StopOnPanic(&world.stop);
            world.watch();
        });
        let _stop = StopOnPanic(&world.stop);
        let mut rng = fastrand::Rng::with_seed(!seed);
        while Instant::now() < until && !world.stop.load(Relaxed) {
            thread::park_timeout(BETWEEN_STILLS);
            world.hold_still(&mut rng);
        }
        world.stop.store(true, Relaxed);
    });
    let (operations, found) = (world.operations.load(Relaxed), world.found.load(Relaxed));
    assert!(found > operations / 200, "{}: {found} values in {operations}", scenario.name);
    drop(world);
    // The sweeper may hold the cache for a moment.
    let patience = Instant::now() + PATIENCE;
    while alive() != 0 {
        assert!(Instant::now() < patience, "{}: {} values too many", scenario.name, alive());
        thread::yield_now();
    }
    operations
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let clock = Clock::manual();
        let capacity = scenario.capacities[0];
        let mut builder = Cache::<u32, Value>::builder(scenario.name)
            .engine(scenario.engine)
            .policy(scenario.policy)
            .miss_ratio_curve(scenario.curve)
            .clock(clock.clone());
        builder = match scenario.weighs {
            true => builder.bytes(capacity, |_, value: &Value| u64::from(value.weight)),
            false => builder.entries(capacity),
        };
        if let Some(ttl) = scenario.ttl_ms {
            builder = builder.ttl(Duration::from_millis(ttl));
        }
        if let Some(idle) = scenario.idle_ms {
            builder = builder.time_to_idle(Duration::from_millis(idle));
        }
        let told = Arc::new(Told::default());
        builder = if scenario.listens {
            let told = Arc::clone(&told);
            builder.on_eviction(move |key, value: &Value, cause| {
                value.check();
                assert_eq!(*key, value.key);
                told.hear(cause);
            })
        } else {
            builder.expiry_sweep(Duration::from_millis(3))
        };
        let bound = Bound::default();
        bound.set(capacity);
        Self {
            scenario,
            cache: builder.build().expect("the scenarios are in order"),
            clock,
            keys: std::iter::repeat_with(Key::default).take(KEYS as usize).collect(),
            now: AtomicU64::new(0),
            still: RwLock::default(),
            stop: AtomicBool::new(false),
            resizing: Mutex::default(),
            bound,
            snapshot: Mutex::default(),
            told,
            operations: AtomicU64::new(0),
            found: AtomicU64::new(0),
        }
    }

    fn work(&self, mut rng: fastrand::Rng) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime without drivers needs nothing");
        while !self.stop.load(Relaxed) {
            let moving = self.still.read().unwrap_or_else(PoisonError::into_inner);
            let found: u64 = (0..BREATH).map(|_| self.operate(&mut rng, &runtime)).sum();
            drop(moving);
            self.operations.fetch_add(u64::from(BREATH), Relaxed);
            self.found.fetch_add(found, Relaxed);
        }
    }

    fn key(&self, key: u32) -> &Key {
        &self.keys[key as usize]
    }

    fn some_key(rng: &mut fastrand::Rng) -> u32 {
        match rng.u8(0..4) {
            // Mostly a few keys that everybody wants, both ordered and wild.
            0 => rng.u32(0..8),
            1 => ORDERED_KEYS + rng.u32(0..8),
            2 => rng.u32(0..ORDERED_KEYS),
            _ => rng.u32(0..KEYS),
        }
    }

    /// What nobody may fall behind who asks for the key from now on.
    fn floor(&self, key: u32) -> u64 {
        self.key(key).floor.load(Acquire)
    }

    /// Panics unless `found` is a value of the key that its reader may have; tells whether there is one.
    fn check(&self, key: u32, floor: u64, found: Option<&Value>, how: &str) -> u64 {
        let Some(found) = found else { return 0 };
        found.check();
        assert_eq!(found.key, key, "{how} found the value of another key");
        let newest = self.key(key).issued.load(Acquire);
        assert!(
            (floor..=newest).contains(&found.version),
            "key {key}: {how} found version {}, not within {floor} and {newest}",
            found.version
        );
        let now = self.now.load(Relaxed);
        assert!(found.expires_at > now, "key {key}: {how} found a value past its end");
        1
    }

    /// A value of the version, and the options to put it in with.
    fn value(&self, rng: &mut fastrand::Rng, key: u32, version: u64) -> (Value, InsertOptions) {
        let weight = match rng.u32(0..1_000) {
            0..5 => 1_000_000,
            5..20 => 0,
            _ => rng.u32(1..=64),
        };
        let own_ttl = rng.u32(0..5) == 0;
        let ttl = if own_ttl { Some(rng.u64(1..200)) } else { self.scenario.ttl_ms };
        let expires_at = ttl.map_or(NEVER, |ttl| self.now.load(Relaxed) + ttl);
        let options = match ttl {
            Some(ttl) if own_ttl => InsertOptions::ttl(Duration::from_millis(ttl)),
            _ => InsertOptions::default(),
        };
        (Value::new(key, weight, version, expires_at), options)
    }

    /// What a backend would answer at this moment.
    fn load(&self, rng: &mut fastrand::Rng, key: u32) -> Loaded<Value> {
        let issued = &self.key(key).issued;
        let version = match key < ORDERED_KEYS {
            true => issued.load(Acquire),
            false => issued.fetch_add(1, Relaxed) + 1,
        };
        let (value, options) = self.value(rng, key, version);
        Loaded { value, options }
    }

    /// Does one thing and tells how many values it found.
    fn operate(&self, rng: &mut fastrand::Rng, runtime: &Runtime) -> u64 {
        let (cache, key) = (&self.cache, Self::some_key(rng));
        let floor = self.floor(key);
        match rng.u32(0..10_000) {
            0..4_000 => {
                let found = cache.get_in_memory(&key);
                self.check(key, floor, found.as_ref(), "get_in_memory")
            }
            4_000..4_500 => {
                let found = cache.get(&key).now_or_never().expect("memory does not wait");
                self.check(key, floor, found.as_ref(), "get")
            }
            4_500..5_000 => {
                let keys: Vec<_> = (0..rng.usize(0..8)).map(|_| Self::some_key(rng)).collect();
                let floors: Vec<_> = keys.iter().map(|key| self.floor(*key)).collect();
                let found = cache.get_many(&keys).now_or_never().expect("memory does not wait");
                assert_eq!(found.len(), keys.len());
                let found = keys.iter().zip(floors).zip(&found);
                found
                    .map(|((key, floor), it)| self.check(*key, floor, it.as_ref(), "get_many"))
                    .sum()
            }
            5_000..7_500 => {
                self.write(rng, key);
                0
            }
            7_500..8_600 => {
                let load = async || {
                    let loaded = self.load(&mut rng.clone(), key);
                    tokio::task::yield_now().await;
                    Ok::<_, Infallible>(loaded)
                };
                let found = runtime.block_on(cache.get_or_load(&key, load));
                // None if it waited for somebody whose load failed.
                self.check(key, floor, found.ok().as_ref(), "get_or_load")
            }
            8_600..8_700 => {
                let load = async || Err::<Value, _>("as told");
                let found = runtime.block_on(cache.get_or_load(&key, load));
                self.check(key, floor, found.ok().as_ref(), "get_or_load that fails")
            }
            8_700..8_900 => {
                let load = async || {
                    tokio::task::yield_now().await;
                    let loaded = self.load(&mut rng.clone(), key);
                    tokio::task::yield_now().await;
                    Ok::<_, Infallible>(loaded)
                };
                let polls = rng.clone().u32(0..4);
                let found = drop_after(polls, cache.get_or_load(&key, load)).and_then(Result::ok);
                self.check(key, floor, found.as_ref(), "get_or_load in time")
            }
            8_900..9_100 => {
                let reservation = cache.reserve(&key);
                let Loaded { value, options } = self.load(rng, key);
                reservation.insert(value, options);
                0
            }
            9_100..9_500 => {
                let pinned = if rng.bool() { cache.pin(&key) } else { cache.unpin(&key) };
                self.expect_support(pinned);
                0
            }
            9_500..9_560 => {
                let Ok(_one) = self.snapshot.try_lock() else { return 0 };
                let floors: Vec<_> = (0..KEYS).map(|key| self.floor(key)).collect();
                let most = if rng.bool() { usize::MAX } else { rng.usize(0..100) };
                let mut seen = HashMap::new();
                for (key, value) in cache.iter().take(most) {
                    self.check(key, floors[key as usize], Some(&value), "iter");
                    // Twice only if it was put in again meanwhile, and then it is no older.
                    let before = seen.insert(key, value.version);
                    let older = before.is_some_and(|before| before > value.version);
                    assert!(!older || key >= ORDERED_KEYS, "iter goes back in time for {key}");
                }
                seen.len() as u64
            }
            9_560..9_600 => {
                assert!(cache.keys().all(|key| key < KEYS));
                0
            }
            9_600..9_620 => {
                let Ok(_one) = self.resizing.try_lock() else { return 0 };
                self.resize(*rng.choice(self.scenario.capacities).expect("there are some"));
                0
            }
            9_620..9_660 => {
                let policy = *rng.choice(Policy::ALL.iter()).expect("there are some");
                self.expect_support(cache.set_policy(policy));
                0
            }
            9_660..9_680 => {
                cache.remove_expired().now_or_never().expect("memory does not wait");
                0
            }
            9_680..9_684 => {
                let tier = if rng.bool() { None } else { Some(Tier::Memory) };
                cache.clear(tier).now_or_never().expect("memory does not wait");
                0
            }
            9_684..9_700 => {
                let (report, curve) = (cache.policy_report(), cache.miss_ratio_curve());
                assert_eq!(report.is_some(), self.switchable());
                assert!(curve.is_none() || self.scenario.curve);
                let ratio = cache.hit_ratio_at(rng.u64(0..5_000)).map(|it| it.hit_ratio);
                assert!(ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)), "{ratio:?}");
                0
            }
            _ => {
                let stats = cache.stats();
                assert!(stats.in_flight <= THREADS, "{stats:?}");
                0
            }
        }
    }

    fn switchable(&self) -> bool {
        self.scenario.engine == Engine::Switchable
    }

    fn expect_support<T>(&self, result: Result<T, UnsupportedByEngine>) {
        assert_eq!(result.is_ok(), self.switchable());
    }

    fn write(&self, rng: &mut fastrand::Rng, key: u32) {
        let state = self.key(key);
        let ordered = key < ORDERED_KEYS;
        let _turn = match state.turn.try_lock() {
            _ if !ordered => None,
            Ok(turn) => Some(turn),
            Err(_) => return,
        };
        let version = state.issued.fetch_add(1, Release) + 1;
        if rng.u8(0..4) == 0 {
            self.cache.remove(&key).now_or_never().expect("nothing to wait for");
        } else {
            let (value, options) = self.value(rng, key, version);
            self.cache.insert_with(key, value, options);
        }
        if ordered {
            state.floor.store(version, Release);
        }
    }

    /// The bound is raised before the cache grows, and lowered once it has shrunk.
    fn resize(&self, capacity: u64) {
        let old = self.bound.capacity.load(Relaxed);
        if capacity > old {
            self.bound.set(capacity);
        }
        self.cache.resize(capacity);
        if capacity < old {
            self.bound.set(capacity);
        }
    }

    /// Compares what the cache holds with its bound until everybody stops.
    fn watch(&self) {
        let most = self.scenario.capacities.iter().max().copied().expect("there are some");
        while !self.stop.load(Relaxed) {
            if let Some((capacity, stats)) = self.bound.during(|| self.cache.stats()) {
                let held = if self.scenario.weighs { stats.memory.bytes } else { 0 };
                let held = held.max(stats.memory.entries);
                assert!(held <= capacity, "{held} held, {capacity} allowed");
            }
            // One snapshot of a shard, what the threads have in their hands, and what waits for
            // readers. A sum of moving numbers may be too high, but not so many times.
            let allowed = 2 * most + most / 4 + 64 * THREADS;
            let least = (0..32).map(|_| alive()).min().expect("some");
            assert!(least <= allowed as i64, "{least} values are alive, {allowed} allowed");
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Makes everybody hold still, looks whether the cache agrees with itself, and moves the time.
    fn hold_still(&self, rng: &mut fastrand::Rng) {
        let _nobody_moves = self.still.write().unwrap_or_else(PoisonError::into_inner);
        let (cache, scenario) = (&self.cache, self.scenario);
        let by = if rng.bool() { rng.u64(0..20) } else { rng.u64(0..300) };
        self.clock.advance(Duration::from_millis(by));
        self.now.fetch_add(by, Relaxed);
        let now = self.now.load(Relaxed);

        let entries: HashMap<_, _> = cache.iter().collect();
        assert!(entries.values().all(|value| value.expires_at > now), "iter shows what is dead");
        cache.remove_expired().now_or_never().expect("memory does not wait");
        let stats = cache.stats();
        assert_eq!(stats.in_flight, 0);
        assert_eq!(stats.memory.capacity, self.bound.capacity.load(Relaxed), "{}", scenario.name);
        if self.switchable() {
            // What is dead is gone, and the rest is what iter showed.
            assert_eq!(stats.memory.entries, entries.len() as u64, "{}", scenario.name);
            let weights = entries.values().map(|value| u64::from(value.weight.max(1)));
            let weight = if scenario.weighs { weights.sum() } else { 0 };
            assert_eq!(stats.memory.bytes, weight, "{}", scenario.name);
        }
        for (key, value) in entries {
            let found = cache.get_in_memory(&key);
            let version = found.as_ref().map(|value| value.version);
            assert_eq!(version, Some(value.version), "key {key}");
            self.check(key, self.floor(key), found.as_ref(), "get while all hold still");
        }
        if scenario.listens {
            let (told, left) = (&self.told, stats.memory.evictions);
            assert_eq!(told.capacity.load(Relaxed), left.capacity);
            assert_eq!(told.expired.load(Relaxed), left.expired);
            assert_eq!(told.removed.load(Relaxed), left.removed);
            assert_eq!(told.too_large.load(Relaxed), left.too_large);
            let gone = left.capacity + left.expired + left.removed + told.replaced.load(Relaxed);
            assert_eq!(stats.memory.writes, stats.memory.entries + gone);
        }
        self.count_the_living();
        if self.switchable() && rng.u8(0..4) == 0 {
            self.pin_and_flood(rng);
        }
    }

    /// Nobody reads, so nothing waits for readers: what is alive is in the cache.
    fn count_the_living(&self) {
        let patience = Instant::now() + PATIENCE;
        loop {
            // The sweeper may hold something for a moment, and so may a reader of another test.
            self.cache.remove_expired().now_or_never().expect("memory does not wait");
            let (alive, entries) = (alive(), self.cache.stats().memory.entries);
            if alive == entries as i64 {
                return;
            }
            let late = Instant::now() > patience;
            assert!(!late, "{}: {alive} values alive, {entries} entries", self.scenario.name);
            thread::yield_now();
        }
    }

    /// A pinned entry stays, whatever else comes.
    fn pin_and_flood(&self, rng: &mut fastrand::Rng) {
        let cache = &self.cache;
        let fresh = |key: u32| {
            let version = self.key(key).issued.fetch_add(1, Relaxed) + 1;
            Value::new(key, 1, version, NEVER)
        };
        let forever = InsertOptions::ttl(Duration::MAX);
        let key = rng.u32(ORDERED_KEYS..KEYS);
        let value = fresh(key);
        let version = value.version;
        cache.insert_with(key, value, forever.clone());
        if !cache.pin(&key).expect("this engine pins") {
            return;
        }
        for other in (ORDERED_KEYS..KEYS).filter(|other| *other != key) {
            cache.insert_with(other, fresh(other), forever.clone());
        }
        let found = cache.get_in_memory(&key).map(|value| value.version);
        assert_eq!(found, Some(version), "{}: a pinned entry is gone", self.scenario.name);
        assert!(cache.unpin(&key).expect("this engine pins"));
    }
}

/// Polls a future so many times and then drops it.
fn drop_after<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..polls).find_map(|_| match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    })
}
