//! The process that works on the cache until it is told to close, or is killed.
//!
//! Each key belongs to one task, which writes it; everybody reads, loads, reserves and clears. Now and
//! then the process forbids its own files to grow (`RLIMIT_FSIZE`), which is what a full disk looks like.
//! A wrong answer ends the process at once, and so does a task that stands still.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use cache_tiered::disk::DiskConfig;
use cache_tiered::redis::{RedisClient, RedisConfig};
use cache_tiered::{Cache, InsertOptions, LoadingCache, Policy, Tier};

use super::book::{Asked, Book, KEYS, STALE, Value, ttl, unix_ms, value};

pub(crate) const DIRECTORY: &str = "ULTRA_PERF_SOAK_DIRECTORY";
pub(crate) const REDIS: &str = "ULTRA_PERF_SOAK_REDIS";
pub(crate) const SEED: &str = "ULTRA_PERF_SOAK_SEED";

const TASKS: u32 = 16;
const DISK_BYTES: u64 = 8 << 20;
/// What files may not grow beyond, now and then: less than a segment.
const FILE_BYTES: u64 = 100 << 10;
/// How long an operation may take before its task counts as stuck.
const STUCK_MS: u64 = 30_000;

struct World {
    cache: Cache<u32, Value>,
    loading: LoadingCache<u32, Value>,
    book: Arc<Book>,
    snapshot: PathBuf,
    closing: AtomicBool,
    operations: AtomicU64,
    values: AtomicU64,
    /// What each task is doing, and since when in milliseconds.
    tasks: Vec<(AtomicU64, AtomicU64)>,
}

/// What a task has written and not yet seen flushed.
struct Unflushed {
    writes: Vec<(u32, u64)>,
    losses: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the child of the_whole_cache_holds_in_every_weather"]
async fn works_until_it_is_told_to_close() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let setting = |name| std::env::var(name).expect("the parent sets it");
    let (url, seed) = (setting(REDIS), setting(SEED).parse().expect("a number"));
    abort_on_panic();
    let directory = PathBuf::from(directory);
    let book = Arc::new(Book::open(&directory.join("book")));
    let disk = directory.join("disk");
    let cache = Cache::<u32, Value>::builder("soak")
        .entries(300)
        .ttl_by(|key, _| Some(ttl(*key)))
        .stale_while_revalidate(STALE)
        .refresh_ahead(STALE / 4)
        .compress_above(512)
        .redis(redis(url, seed))
        .disk(DiskConfig::new(&disk).capacity_bytes(DISK_BYTES))
        .open()
        .await
        .expect("the cache opens after whatever happened to the one before");
    let source = Arc::clone(&book);
    let loading = cache.loading(move |key| {
        let version = source.source(key);
        async move { Ok::<_, Infallible>(value(key, version)) }
    });
    let world = Arc::new(World {
        cache,
        loading,
        book,
        snapshot: directory.join("snapshot"),
        closing: AtomicBool::new(false),
        operations: AtomicU64::new(0),
        values: AtomicU64::new(0),
        tasks: (0..TASKS).map(|_| (AtomicU64::new(0), AtomicU64::new(unix_ms()))).collect(),
    });
    for _ in 0..3 {
        world.check_all("get after a restart").await;
        world.cache.clear(Tier::Memory).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let limited = Arc::new(AtomicBool::new(false));
    {
        let (world, limited, disk) = (Arc::clone(&world), Arc::clone(&limited), disk.clone());
        std::thread::spawn(move || report(&world, &limited, &disk));
    }
    let told = {
        let world = Arc::clone(&world);
        tokio::task::spawn_blocking(move || {
            // One line, or the end of the parent.
            let _ = std::io::stdin().lock().lines().next();
            world.closing.store(true, SeqCst);
        })
    };
    let weather = tokio::spawn(disk_weather(Arc::clone(&world), limited, seed));
    let tasks: Vec<_> =
        (0..TASKS).map(|task| tokio::spawn(Arc::clone(&world).work(task, seed))).collect();
    for task in tasks {
        task.await.expect("the process ends with a task that panics");
    }
    weather.await.expect("the process ends with a task that panics");
    told.await.expect("it only reads a line");
    world.cache.flush().await;
    world.cache.clear(Tier::Memory).await;
    world.check_all("get in the end").await;
    assert_eq!(world.cache.stats().in_flight, 0, "something is still under way");
    world.cache.close().await;
    println!("closed");
}

/// Ends the process with the first wrong answer.
pub(crate) fn abort_on_panic() {
    let complain = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        complain(info);
        std::process::abort();
    }));
}

/// The clients take turns where there are two.
pub(crate) fn redis(url: String, seed: u64) -> RedisConfig {
    let clients = [
        #[cfg(feature = "redis")]
        RedisClient::Fred,
        #[cfg(feature = "redis-rs")]
        RedisClient::RedisRs,
    ];
    let client = clients[seed as usize % clients.len()];
    println!("over {client:?}");
    RedisConfig { client, ..RedisConfig::new(url) }
}

impl World {
    async fn check_all(&self, how: &str) {
        for key in 0..KEYS {
            let asked = self.book.ask(key);
            self.found(asked, self.cache.get(&key).await.as_ref(), how);
        }
    }

    fn found(&self, asked: Asked<'_>, found: Option<&Value>, how: &str) {
        self.values.fetch_add(asked.found(found, Duration::ZERO, how), SeqCst);
    }

    /// What the tiers below have lost so far: as long as this stands still, a flush is one.
    fn losses(&self) -> u64 {
        let stats = self.cache.stats();
        let tiers = [stats.redis, stats.disk].into_iter().flatten();
        tiers.map(|tier| tier.errors + tier.dropped_writes).sum()
    }

    async fn load(&self, key: u32) -> Value {
        tokio::task::yield_now().await;
        let version = self.book.source(key);
        tokio::task::yield_now().await;
        value(key, version)
    }

    async fn work(self: Arc<Self>, task: u32, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed ^ u64::from(task) << 32);
        let mut unflushed = Unflushed { writes: Vec::new(), losses: self.losses() };
        while !self.closing.load(SeqCst) {
            let own = rng.u32(0..KEYS / TASKS) * TASKS + task;
            let key = if rng.bool() { rng.u32(0..8) } else { rng.u32(0..KEYS) };
            let what = rng.u32(0..10_000);
            let (doing, since) = &self.tasks[task as usize];
            doing.store(what.into(), SeqCst);
            since.store(unix_ms(), SeqCst);
            self.operation(what, own, key, &mut rng, &mut unflushed).await;
            self.operations.fetch_add(1, SeqCst);
            if rng.u8(0..16) == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn operation(
        &self,
        what: u32,
        own: u32,
        key: u32,
        rng: &mut fastrand::Rng,
        unflushed: &mut Unflushed,
    ) {
        let (cache, asked) = (&self.cache, self.book.ask(key));
        match what {
            0..1_500 => {
                let version = self.book.announce(own);
                match rng.u32(0..10) {
                    0..2 => cache.remove(&own).await,
                    2 => {
                        let ttl = Duration::from_millis(rng.u64(0..500));
                        cache.insert_with(own, value(own, version), InsertOptions::ttl(ttl));
                    }
                    _ => cache.insert(own, value(own, version)),
                }
                self.book.written(own, version);
                unflushed.writes.push((own, version));
                let asked = self.book.ask(own);
                let found = cache.get_in_memory(&own);
                self.found(asked, found.as_ref(), "its owner's get_in_memory");
            }
            1_500..4_000 => self.found(asked, cache.get(&key).await.as_ref(), "get"),
            4_000..5_500 => {
                self.found(asked, cache.get_in_memory(&key).as_ref(), "get_in_memory");
            }
            5_500..6_500 => {
                let keys: Vec<_> = (0..rng.usize(1..40)).map(|_| rng.u32(0..KEYS)).collect();
                let asked: Vec<_> = keys.iter().map(|key| self.book.ask(*key)).collect();
                for (asked, found) in asked.into_iter().zip(cache.get_many(&keys).await) {
                    self.found(asked, found.as_ref(), "get_many");
                }
            }
            6_500..8_000 => {
                let load = || async { Ok::<_, Infallible>(self.load(key).await) };
                // No value if it waited for somebody whose load failed.
                let found = cache.get_or_load(&key, load).await.ok();
                self.found(asked, found.as_ref(), "get_or_load");
            }
            8_000..8_300 => {
                let load = || async { Err::<Value, _>("as told") };
                let found = cache.get_or_load(&key, load).await.ok();
                self.found(asked, found.as_ref(), "get_or_load that fails");
            }
            8_300..9_300 => {
                let found = self.loading.get(&key).await.ok();
                self.values.fetch_add(
                    asked.found(found.as_ref(), STALE, "get of the loading cache"),
                    SeqCst,
                );
            }
            9_300..9_500 => {
                let reservation = cache.reserve(&key);
                let loaded = self.load(key).await;
                reservation.insert(loaded, InsertOptions::default());
            }
            9_500..9_600 => {
                cache.flush().await;
                let losses = self.losses();
                let flushed = unflushed.losses == losses;
                for (key, version) in unflushed.writes.drain(..).filter(|_| flushed) {
                    self.book.flushed(key, version);
                }
                unflushed.losses = losses;
            }
            // Seldom: the disk is to fill up and to evict.
            9_600..9_602 if rng.u8(0..64) > 0 => tokio::task::yield_now().await,
            9_600..9_602 => {
                let tier = [Some(Tier::Memory), Some(Tier::Memory), Some(Tier::Disk), None];
                cache.clear(tier[rng.usize(..4)]).await;
            }
            9_602..9_620 => _ = cache.remove_expired().await,
            9_620..9_650 => {
                let policy = Policy::ALL[rng.usize(..Policy::ALL.len())];
                cache.set_policy(policy).expect("the engine switches policies");
            }
            9_650..9_680 => cache.resize(rng.u64(32..400)),
            9_680..9_682 => self.snapshot().await,
            _ => {
                // Somebody gives up halfway.
                let load = || async { Ok::<_, Infallible>(self.load(key).await) };
                let patience = Duration::from_micros(rng.u64(0..2_000));
                let found = tokio::time::timeout(patience, cache.get_or_load(&key, load)).await;
                let found = found.ok().and_then(Result::ok);
                self.found(asked, found.as_ref(), "get_or_load in time");
            }
        }
    }

    /// Saves a snapshot and reads it into another cache.
    async fn snapshot(&self) {
        // One file for all tasks: whoever saves at the same time loses, as on a full disk.
        if self.cache.save(&self.snapshot, |_| ()).await.is_err() {
            return;
        }
        let scratch = Cache::builder("scratch").entries(1_000).build().expect("a small cache");
        if scratch.load(&self.snapshot, |_| ()).await.is_ok() {
            for (key, value) in scratch.iter() {
                self.book.check_old(key, &value, "load of a snapshot");
                self.values.fetch_add(1, SeqCst);
            }
        }
    }
}

/// Forbids the files of this process to grow, now and then.
async fn disk_weather(world: Arc<World>, limited: Arc<AtomicBool>, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xd15c);
    // SAFETY: no handler is installed; the signal is ignored, so that a write fails instead.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    while !world.closing.load(SeqCst) {
        let (well, full) = (rng.u64(1_000..6_000), rng.u64(100..1_500));
        for (limit, time) in [(libc::RLIM_INFINITY, well), (FILE_BYTES, full)] {
            limit_files(limit);
            limited.store(limit == FILE_BYTES, SeqCst);
            for _ in 0..time / 50 {
                if world.closing.load(SeqCst) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    limit_files(libc::RLIM_INFINITY);
}

fn limit_files(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: it reads the structure, which lives until it returns.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
    assert_eq!(set, 0, "the limit can be set");
}

/// Says four times a second how it goes, and ends the process when a task stands still.
fn report(world: &World, limited: &AtomicBool, disk: &Path) {
    let mut full_since = None;
    loop {
        std::thread::sleep(Duration::from_millis(250));
        let now = unix_ms();
        let is_stuck = |since: &AtomicU64| now.saturating_sub(since.load(SeqCst)) > STUCK_MS;
        let closing = world.closing.load(SeqCst);
        let mut stuck = String::new();
        for (task, (doing, _)) in
            world.tasks.iter().enumerate().filter(|(_, (_, since))| !closing && is_stuck(since))
        {
            let _ = write!(stuck, " {task} in operation {}", doing.load(SeqCst));
        }
        if !stuck.is_empty() {
            eprintln!("tasks that stand still:{stuck}; {:?}", world.cache.stats());
            std::process::abort();
        }
        let bytes = bytes_of(disk);
        if bytes <= DISK_BYTES {
            full_since = None;
        }
        let since = *full_since.get_or_insert(now);
        assert!(bytes <= DISK_BYTES || now - since < 2_000, "the disk tier takes {bytes} bytes");
        let (operations, values) = (world.operations.load(SeqCst), world.values.load(SeqCst));
        let (resident, weather) =
            (resident_kib(), if limited.load(SeqCst) { "full-disk" } else { "well" });
        println!("work {operations} {values} {resident} {} {weather}", bytes >> 10);
    }
}

/// What a directory takes, as `du` counts.
fn bytes_of(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}
