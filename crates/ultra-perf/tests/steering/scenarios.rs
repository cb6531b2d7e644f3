//! A handle that steers itself, in five stories: each is played in passed time, and told minute by minute.
//!
//! The monitor's clock stands still until it is turned, so hours take seconds. The requests come from a
//! seeded generator. Only the squeeze of memory happens in real time, because the guard over it has a
//! thread of its own; what it reads is a process that is made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ultra_perf::cache_tiered::{Cache, Policy};
use ultra_perf::config::ConfigLoader;
use ultra_perf::monitor::advice::{Action, AuditEntry, Category, Finding, Priority, State};
use ultra_perf::monitor::insight::{MetricSpec, Worse};
use ultra_perf::monitor::{Clock, Moment, Monitor, Selector};
use ultra_perf::{OptimizationLevel, UltraPerf};

const MIB: u64 = 1 << 20;
/// Where the clock begins.
const START_MS: i64 = 1_790_000_000_000;
/// The monitor reads six times a minute.
const ROUND: Duration = Duration::from_secs(10);
const ROUNDS_A_MINUTE: u32 = 6;

/// A clock that stands still until it is turned.
#[derive(Clone, Default)]
struct Turned(Arc<AtomicU64>);

impl Clock for Turned {
    fn now(&self) -> Moment {
        let millis = self.0.load(Ordering::SeqCst);
        Moment {
            monotonic: Duration::from_millis(millis),
            unix_ms: START_MS + i64::try_from(millis).expect("a few days"),
        }
    }
}

/// Numbers as a Zipf law draws them: the first is asked for most.
struct Zipf {
    below: Vec<f64>,
    random: fastrand::Rng,
}

impl Zipf {
    fn new(keys: u32, exponent: f64, seed: u64) -> Self {
        let mut sum = 0.0;
        let below = (1..=keys).map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        });
        Self { below: below.collect(), random: fastrand::Rng::with_seed(seed) }
    }

    fn next(&mut self) -> u64 {
        let all = self.below.last().copied().unwrap_or_default();
        let drawn = self.random.f64() * all;
        self.below.partition_point(|below| *below < drawn) as u64
    }
}

type Numbers = Cache<u64, u64>;

/// Asks for a key, puts it in if it is not there, and tells whether it was.
fn ask(cache: &Numbers, key: u64) -> bool {
    let hit = cache.get_in_memory(&key).is_some();
    if !hit {
        cache.insert(key, key);
    }
    hit
}

/// A handle whose time is turned.
struct World {
    perf: UltraPerf,
    clock: Turned,
}

impl World {
    async fn start(level: OptimizationLevel, settings: &[(&str, &str)]) -> Self {
        let clock = Turned::default();
        let always = [
            ("cache.disk.enabled", "false"),
            ("monitor.history.enabled", "false"),
            ("monitor.interval", "10s"),
            ("memory.enabled", "false"),
            ("memory.tracking", "false"),
        ];
        let loader = ConfigLoader::new().set("level", level.to_string(), "the scenario");
        let all = always.iter().chain(settings);
        let loader = all.fold(loader, |to, (key, value)| to.set(*key, *value, "the scenario"));
        let turned = clock.clone();
        let perf = UltraPerf::builder()
            .config(loader.load().expect("a configuration"))
            .monitor(move |monitor| monitor.manual().collector(None).clock(turned))
            .build()
            .await
            .expect("a handle");
        Self { perf, clock }
    }

    fn monitor(&self) -> &Monitor {
        self.perf.monitor().expect("it is on")
    }

    fn cache(&self, name: &str, entries: u64, policy: Policy) -> Numbers {
        let builder = self.perf.memory_cache(name).entries(entries).policy(policy);
        builder.build().expect("a cache")
    }

    /// Lets a minute pass and returns the share of requests that hit; `request` makes one and tells.
    fn minute(&self, requests: u32, mut request: impl FnMut() -> bool) -> f64 {
        let mut hits = 0;
        for _ in 0..ROUNDS_A_MINUTE {
            hits += (0..requests / ROUNDS_A_MINUTE).filter(|_| request()).count();
            self.turn();
        }
        hits as f64 / f64::from(requests / ROUNDS_A_MINUTE * ROUNDS_A_MINUTE)
    }

    fn turn(&self) {
        self.clock.0.fetch_add(ROUND.as_millis() as u64, Ordering::SeqCst);
        self.monitor().tick();
    }

    fn state(&self, id: &str) -> &'static str {
        let all = self.monitor().recommendations();
        all.iter().find(|one| one.id == id).map_or("none", |one| one.state.name())
    }

    async fn end(self) {
        self.perf.shutdown(Duration::from_secs(5)).await;
    }
}

/// What a cache did while its size was changed, minute by minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sized {
    /// Minutes since the start.
    pub(crate) minute: Vec<f64>,
    /// Of the requests of the minute, those that hit.
    pub(crate) hit_ratio: Vec<f64>,
    /// Entries that the cache may hold.
    pub(crate) capacity: Vec<f64>,
    /// The minute in which the change was made.
    pub(crate) applied_at: f64,
    /// The hit ratio that was foretold.
    pub(crate) predicted: f64,
    /// The hit ratio that was reached: the mean of the last ten minutes.
    pub(crate) reached: f64,
    /// What became of the recommendation.
    pub(crate) state: String,
    /// What it said.
    pub(crate) said: String,
}

impl Sized {
    fn push(&mut self, cache: &Numbers, hit_ratio: f64) {
        self.minute.push(self.minute.len() as f64 + 1.0);
        self.hit_ratio.push(hit_ratio);
        self.capacity.push(cache.capacity() as f64);
    }

    fn end(&mut self) {
        let last = &self.hit_ratio[self.hit_ratio.len().saturating_sub(10)..];
        self.reached = last.iter().sum::<f64>() / last.len().max(1) as f64;
    }
}

const USERS: &str = "cache.undersized:users";

/// A cache that is too small gets its advice, somebody applies it, and what it foretold comes true.
pub(crate) async fn undersized() -> Sized {
    let world = World::start(OptimizationLevel::Ultra, &[]).await;
    let users = world.cache("users", 1_000, Policy::S3Fifo);
    let mut keys = Zipf::new(20_000, 0.9, 7);
    let mut told = Sized::default();
    while world.state(USERS) != "open" && told.minute.len() < 60 {
        let hit_ratio = world.minute(6_000, || ask(&users, keys.next()));
        told.push(&users, hit_ratio);
    }
    // The advice of a cache that has just been filled is about its filling.
    for _ in 0..20 {
        let hit_ratio = world.minute(6_000, || ask(&users, keys.next()));
        told.push(&users, hit_ratio);
    }
    let advice = world.monitor().recommendations();
    let Some(advice) = advice.iter().find(|one| one.id == USERS) else {
        world.end().await;
        return told;
    };
    told.said = format!("{}. {}", advice.finding.title, advice.finding.recommendation);
    told.predicted = advice.finding.expected.as_ref().map_or(0.0, |expected| expected.to);
    world.monitor().apply(USERS, "an operator").expect("it is open");
    told.applied_at = told.minute.len() as f64;
    for _ in 0..20 {
        let hit_ratio = world.minute(6_000, || ask(&users, keys.next()));
        told.push(&users, hit_ratio);
        if told.state.is_empty() && world.state(USERS) != "applied" {
            world.state(USERS).clone_into(&mut told.state);
        }
    }
    told.end();
    world.end().await;
    told
}

/// A change that does harm, whoever thought of it, is undone by the guard.
pub(crate) async fn harmful() -> Sized {
    const ID: &str = "cache.thrift";
    let world = World::start(OptimizationLevel::Ultra, &[]).await;
    let users = world.cache("users", 2_000, Policy::S3Fifo);
    world.monitor().add_advice_rule(ID, |_| {
        let select = |name: &str| {
            let text = format!(r#"{name}{{cache="users",type="memory"}}"#);
            Selector::parse(&text).expect("a selector")
        };
        let all = [select("cache_hits_total"), select("cache_misses_total")];
        let hits = select("cache_hits_total");
        let mut finding =
            Finding::advice(Category::Cache, Priority::Low, "`users` is large", "Make it small");
        finding.action = Some(Action::set("caches.users.entries", 2_000, 100));
        finding.target = Some(MetricSpec::ratio("hit_ratio", hits, all, Worse::Lower));
        vec![finding]
    });
    let mut keys = Zipf::new(20_000, 0.9, 11);
    let mut told = Sized::default();
    for minute in 1..=45 {
        let hit_ratio = world.minute(6_000, || ask(&users, keys.next()));
        told.push(&users, hit_ratio);
        if minute == 15 {
            world.monitor().apply(ID, "an operator").expect("it is open");
            told.applied_at = told.minute.len() as f64;
        }
        let all = world.monitor().recommendations();
        let one = all.iter().find(|one| one.id == ID);
        if let Some(State::RolledBack { reason, .. }) = one.map(|one| &one.state)
            && told.state.is_empty()
        {
            (told.state, told.said) = ("rolled_back".to_owned(), reason.clone());
        }
    }
    told.end();
    world.end().await;
    told
}

/// The hit ratios of five policies on the same requests, minute by minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shifted {
    /// Minutes since the start.
    pub(crate) minute: Vec<f64>,
    /// Of each policy its name and its hit ratio in each minute; `adaptive` is the first.
    pub(crate) hit_ratio: Vec<(&'static str, Vec<f64>)>,
    /// The minute in which the requests changed.
    pub(crate) shifted_at: f64,
    /// The policy that `adaptive` ran in each minute.
    pub(crate) live: Vec<&'static str>,
}

impl Shifted {
    /// Returns the mean of a policy over some minutes.
    pub(crate) fn mean(&self, policy: &str, minutes: std::ops::Range<usize>) -> f64 {
        let found = self.hit_ratio.iter().find(|(name, _)| *name == policy);
        let values = found.map_or(&[][..], |(_, values)| &values[minutes]);
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }
}

/// Requests for what is popular, between scans, turn into a loop that is longer than the cache.
pub(crate) async fn shift() -> Shifted {
    const PHASE: usize = 30;
    let world = World::start(OptimizationLevel::Ultra, &[]).await;
    let policies = [Policy::Adaptive, Policy::Lru, Policy::Lfu, Policy::Arc, Policy::S3Fifo];
    let caches = policies.map(|policy| world.cache(policy.as_str(), 1_000, policy));
    let mut told = Shifted {
        shifted_at: PHASE as f64,
        hit_ratio: policies.map(|policy| (policy.as_str(), Vec::new())).into(),
        ..Shifted::default()
    };
    let mut popular = Zipf::new(4_000, 0.9, 3);
    let (mut once, mut round) = (1_000_000, 0);
    for minute in 0..2 * PHASE {
        let mut hits = [0u32; 5];
        const REQUESTS: u32 = 3_000;
        world.minute(REQUESTS, || {
            let key = if minute >= PHASE {
                round = (round + 1) % 1_400;
                10_000 + round
            } else if round % 3 == 0 {
                // Each third request is for what is asked for once.
                (once, round) = (once + 1, round + 1);
                once
            } else {
                round += 1;
                popular.next()
            };
            for (hits, cache) in hits.iter_mut().zip(&caches) {
                *hits += u32::from(ask(cache, key));
            }
            true
        });
        told.minute.push(minute as f64 + 1.0);
        for ((_, of), hits) in told.hit_ratio.iter_mut().zip(hits) {
            of.push(f64::from(hits) / f64::from(REQUESTS));
        }
        told.live.push(caches[0].policy_report().map_or("", |report| report.live));
    }
    world.end().await;
    told
}

/// A process that is squeezed, step by step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Squeezed {
    /// Milliseconds since the start.
    pub(crate) millis: Vec<f64>,
    /// What the program itself holds, in MiB.
    pub(crate) program_mib: Vec<f64>,
    /// What the cache holds, in MiB.
    pub(crate) cache_mib: Vec<f64>,
    /// Urgent tasks that have ended.
    pub(crate) urgent: Vec<f64>,
    /// Tasks in the background that have ended.
    pub(crate) background: Vec<f64>,
    /// The limit, in MiB.
    pub(crate) limit_mib: f64,
    /// When the squeeze began and when it ended, in milliseconds.
    pub(crate) squeeze: (f64, f64),
}

/// Memory becomes short: the cache gives way, what is urgent goes on, and what is not waits until it is over.
pub(crate) async fn squeeze() -> Squeezed {
    const LIMIT: u64 = 200 * MIB;
    const PAGE: u64 = 64 << 10;
    let root = tempfile::tempdir().expect("a directory");
    let statm = root.path().join("proc/self/statm");
    std::fs::create_dir_all(statm.parent().expect("it has one")).expect("writable");
    let page = 4_096;
    let is = {
        let statm = statm.clone();
        move |bytes: u64| {
            let pages = bytes / page;
            // Whole or not at all: the guard reads at any time.
            let new = statm.with_extension("new");
            std::fs::write(&new, format!("{pages} {pages} 0 0 0 0 0\n")).expect("writable");
            std::fs::rename(&new, &statm).expect("writable");
        }
    };
    is(40 * MIB);
    let made_up = root.path().to_owned();
    let perf = UltraPerf::builder()
        .set("level", "advanced")
        .set("cache.disk.enabled", "false")
        .set("monitor.enabled", "false")
        .set("memory.enabled", "true")
        .set("memory.limit", LIMIT.to_string())
        .set("scheduler.memory_budget", (64 * MIB).to_string())
        .memory_guard(move |guard| guard.root(made_up))
        .build()
        .await
        .expect("a handle");
    let pages: Numbers =
        perf.memory_cache("pages").bytes(100 * MIB, |_, _| PAGE).build().expect("a cache");
    (0..100 * MIB / PAGE).for_each(|key| pages.insert(key, key));
    let guard = perf.memory().expect("it is on").clone();
    let mut told = Squeezed { limit_mib: (LIMIT / MIB) as f64, ..Squeezed::default() };
    let (urgent, background) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let step = |told: &mut Squeezed, program: u64| {
        let cached = pages.stats().memory.bytes;
        is(program + cached);
        let count = |to: &Arc<AtomicU64>| {
            let to = Arc::clone(to);
            async move {
                to.fetch_add(1, Ordering::Relaxed);
            }
        };
        let scheduler = perf.scheduler();
        let is_urgent = scheduler.io("urgent", count(&urgent));
        is_urgent.priority(ultra_perf::scheduler::Priority::Critical).spawn().expect("room");
        let is_not = scheduler.io("background", count(&background)).memory_bytes(MIB);
        is_not.priority(ultra_perf::scheduler::Priority::Low).spawn().expect("room");
        told.millis.push(began.elapsed().as_secs_f64() * 1e3);
        told.program_mib.push((program / MIB) as f64);
        told.cache_mib.push(cached as f64 / MIB as f64);
        told.urgent.push(urgent.load(Ordering::Relaxed) as f64);
        told.background.push(background.load(Ordering::Relaxed) as f64);
    };
    /// Between two steps.
    const PAUSE: Duration = Duration::from_millis(20);
    for _ in 0..30 {
        step(&mut told, 40 * MIB);
        tokio::time::sleep(PAUSE).await;
    }
    told.squeeze.0 = began.elapsed().as_secs_f64() * 1e3;
    // The program takes all that there is, and keeps it until the cache has given way.
    let patience = Instant::now() + Duration::from_secs(60);
    let mut after = 0;
    while after < 50 && Instant::now() < patience {
        step(&mut told, 196 * MIB);
        let critical = guard.level() == ultra_perf::memory::Level::Critical;
        after += u32::from(critical && pages.stats().memory.bytes < 20 * MIB);
        tokio::time::sleep(PAUSE).await;
    }
    told.squeeze.1 = began.elapsed().as_secs_f64() * 1e3;
    let waiting = told.urgent.len() as f64;
    let patience = Instant::now() + Duration::from_secs(60);
    while told.background.last().is_some_and(|ended| *ended < waiting) && Instant::now() < patience
    {
        step(&mut told, 40 * MIB);
        tokio::time::sleep(PAUSE).await;
    }
    perf.shutdown(Duration::from_secs(5)).await;
    told
}

/// What happened by itself, minute by minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByItself {
    /// Minutes since the start.
    pub(crate) minute: Vec<f64>,
    /// Of each of two caches its hit ratio.
    pub(crate) hit_ratio: [Vec<f64>; 2],
    /// Of each of two caches the entries that it may hold.
    pub(crate) capacity: [Vec<f64>; 2],
    /// Changes on probation at the end of each minute.
    pub(crate) on_probation: Vec<f64>,
    /// What the audit list says.
    pub(crate) audit: Vec<AuditEntry>,
}

/// At the level `extreme` two caches that are too small grow by themselves, one after the other.
pub(crate) async fn by_itself() -> ByItself {
    let world = World::start(OptimizationLevel::Extreme, &[]).await;
    let caches = ["users", "pages"].map(|name| world.cache(name, 1_000, Policy::S3Fifo));
    let mut keys = [Zipf::new(20_000, 0.9, 5), Zipf::new(30_000, 0.85, 6)];
    let mut told = ByItself::default();
    for minute in 1..=90 {
        let mut hits = [0u32; 2];
        const REQUESTS: u32 = 6_000;
        world.minute(REQUESTS, || {
            for ((cache, keys), hits) in caches.iter().zip(&mut keys).zip(&mut hits) {
                *hits += u32::from(ask(cache, keys.next()));
            }
            true
        });
        told.minute.push(f64::from(minute));
        for (index, cache) in caches.iter().enumerate() {
            told.hit_ratio[index].push(f64::from(hits[index]) / f64::from(REQUESTS));
            told.capacity[index].push(cache.capacity() as f64);
        }
        let all = world.monitor().recommendations();
        let applied = all.iter().filter(|one| matches!(one.state, State::Applied { .. }));
        told.on_probation.push(applied.count() as f64);
    }
    told.audit = world.monitor().advice_audit();
    world.end().await;
    told
}
