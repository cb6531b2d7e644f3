//! The guard's decisions step by step over a made-up process, and its threads over the real one.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use super::*;
use crate::allocator::AllocatorStats;
use crate::reclaim::ReclaimRequest;

const MIB: u64 = 1 << 20;

/// A process with a cache and an allocator: what the cache frees stays with the allocator.
struct World {
    directory: tempfile::TempDir,
    start: Instant,
    millis: AtomicU64,
    cached: AtomicU64,
    other: AtomicU64,
    unused: AtomicU64,
}

impl World {
    fn new(cached: u64, other: u64) -> Arc<Self> {
        let world = Self {
            directory: tempfile::tempdir().expect("a directory"),
            start: Instant::now(),
            millis: AtomicU64::new(0),
            cached: AtomicU64::new(cached * MIB),
            other: AtomicU64::new(other * MIB),
            unused: AtomicU64::new(0),
        };
        let path = world.directory.path().join("proc/self");
        fs::create_dir_all(path).expect("writable");
        world.write();
        Arc::new(world)
    }

    fn rss(&self) -> u64 {
        [&self.cached, &self.other, &self.unused].map(|it| it.load(Ordering::Relaxed)).iter().sum()
    }

    fn write(&self) {
        let pages = self.rss() / rustix::param::page_size() as u64;
        let path = self.directory.path().join("proc/self/statm");
        fs::write(path, format!("{pages} {pages} 0 0 0 0 0\n")).expect("writable");
    }

    fn pass(&self, millis: u64) {
        self.millis.fetch_add(millis, Ordering::Relaxed);
    }
}

struct Around(Arc<World>);

impl Surroundings for Around {
    fn now(&self) -> Instant {
        self.0.start + Duration::from_millis(self.0.millis.load(Ordering::Relaxed))
    }

    fn resident(&self) -> u64 {
        self.0.rss()
    }
}

struct Cache(Arc<World>);

impl Reclaimer for Cache {
    fn name(&self) -> &str {
        "cache"
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.0.cached.load(Ordering::Relaxed)
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        let freed = request.target_bytes.min(self.reclaimable_bytes());
        self.0.cached.fetch_sub(freed, Ordering::Relaxed);
        self.0.unused.fetch_add(freed, Ordering::Relaxed);
        self.0.write();
        freed
    }
}

/// An allocator that tells, or one that does not.
struct Heap {
    world: Arc<World>,
    tells: bool,
    gives: bool,
}

impl AllocatorControl for Heap {
    fn name(&self) -> &'static str {
        "made-up"
    }

    fn stats(&self) -> Option<AllocatorStats> {
        let unused = self.world.unused.load(Ordering::Relaxed);
        self.tells.then(|| AllocatorStats::allocated(self.world.rss() - unused))
    }

    fn give_back(&self) {
        if self.gives {
            self.world.unused.store(0, Ordering::Relaxed);
            self.world.write();
        }
    }
}

fn core(world: &Arc<World>, heap: Option<Heap>) -> Core {
    let mut builder = MemoryGuard::builder().root(world.directory.path()).limit_bytes(1_000 * MIB);
    if let Some(heap) = heap {
        builder = builder.allocator(heap);
    }
    let around = Box::new(Around(Arc::clone(world)));
    let core = Core::new(builder, world.start, |_| around).expect("valid settings");
    core.reclaimers.register(Cache(Arc::clone(world))).expect("room").keep();
    core
}

/// Lets the guard work for so long, and tells how often it reclaimed and gave back.
fn work(core: &Core, world: &Arc<World>, millis: u64) -> (usize, usize) {
    let ends = world.millis.load(Ordering::Relaxed) + millis;
    let mut done = (0, 0);
    while world.millis.load(Ordering::Relaxed) < ends {
        let now = Around(Arc::clone(world)).now();
        let (period, job) = core.tick(now);
        match job {
            Some(Job::Reclaim) => done.0 += 1,
            Some(Job::GiveBack) => done.1 += 1,
            _ => {}
        }
        if let Some(job) = job {
            core.execute(job);
        }
        world.pass(u64::try_from(period.as_millis()).expect("short"));
    }
    done
}

fn mib(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed) / MIB
}

#[test]
fn under_pressure_as_much_is_freed_as_brings_the_use_ten_points_below_the_threshold() {
    let world = World::new(500, 350);
    let heap = Heap { world: Arc::clone(&world), tells: true, gives: true };
    let core = core(&world, Some(heap));
    work(&core, &world, 3_000);
    assert_eq!((mib(&world.cached), mib(&world.unused), world.rss() / MIB), (350, 0, 700));
    let stats = core.stats();
    assert_eq!((stats.runs > 0, stats.give_backs), (true, 1));
    assert_eq!((stats.claimed_bytes, stats.observed_bytes), (150 * MIB, 150 * MIB));
    assert!(stats.sample.level < Level::High, "{stats:?}");
}

#[test]
fn a_cache_is_not_emptied_because_its_allocator_keeps_what_it_frees() {
    for (tells, heap) in [(true, true), (false, true), (false, false)] {
        let world = World::new(500, 350);
        let heap = heap.then(|| Heap { world: Arc::clone(&world), tells, gives: false });
        let core = core(&world, heap);
        work(&core, &world, 4_000);
        assert_eq!((mib(&world.cached), world.rss() / MIB), (350, 850), "{tells}");
    }
}

#[test]
fn what_nobody_uses_goes_by_itself() {
    let world = World::new(0, 100);
    let core = core(&world, None);
    let pool = crate::Pool::builder(|| vec![0_u8; 100]).build().expect("valid settings");
    let builder = crate::Interner::builder().idle(Duration::from_secs(10));
    let interner = builder.build_at(world.start).expect("valid settings");
    core.reclaimers.register(pool.clone()).expect("room").keep();
    core.reclaimers.register(interner.clone()).expect("room").keep();
    drop((0..10).map(|_| pool.take()).collect::<Vec<_>>());
    drop(interner.intern("nobody holds this"));
    assert_eq!((pool.stats().idle, interner.stats().strings), (10, 1));
    work(&core, &world, 4_000);
    assert_eq!((pool.stats().idle, interner.stats().strings), (10, 1));
    work(&core, &world, 40_000);
    assert_eq!((pool.stats().idle, interner.stats().strings), (0, 0));
    assert!(core.stats().decayed_bytes > 0);
    assert_eq!(core.stats().runs, 0);
}

#[test]
fn one_that_panics_while_time_passes_keeps_nobody_from_it() {
    struct Panics;
    impl Reclaimer for Panics {
        fn name(&self) -> &str {
            "panics"
        }
        fn reclaimable_bytes(&self) -> u64 {
            0
        }
        fn reclaim(&self, _: &ReclaimRequest) -> u64 {
            0
        }
        fn decays(&self) -> bool {
            true
        }
        fn decay(&self, _: Instant) -> u64 {
            panic!("on purpose")
        }
    }
    let world = World::new(0, 100);
    let core = core(&world, None);
    let pool = crate::Pool::builder(|| 7_u64).build().expect("valid settings");
    core.reclaimers.register(Panics).expect("room").keep();
    core.reclaimers.register(pool.clone()).expect("room").keep();
    drop(pool.take());
    work(&core, &world, 60_000);
    assert_eq!(pool.stats().idle, 0);
    assert!(core.stats().panics >= 6, "{:?}", core.stats());
    let named = |it: &&crate::pressure::Event| matches!(&it.kind, EventKind::ReclaimerPanicked { name } if name == "panics");
    assert!(core.monitor.lock().events().iter().any(|it| named(&it)));
}

#[test]
fn at_the_critical_level_there_is_no_such_credit() {
    let world = World::new(500, 460);
    let heap = Heap { world: Arc::clone(&world), tells: true, gives: false };
    let core = core(&world, Some(heap));
    work(&core, &world, 1_000);
    assert_eq!(mib(&world.cached), 0);
}

#[test]
fn idle_memory_is_given_back_within_five_seconds_at_any_level() {
    for tells in [true, false] {
        let world = World::new(10, 10);
        let heap = Heap { world: Arc::clone(&world), tells, gives: true };
        let core = core(&world, Some(heap));
        work(&core, &world, 10_000);
        world.unused.store(600 * MIB, Ordering::Relaxed);
        world.write();
        let done = work(&core, &world, 5_000);
        assert_eq!((done, world.rss() / MIB), ((0, 1), 20), "{tells}");
    }
}

#[test]
fn a_clean_up_by_hand_does_nothing_below_the_threshold_unless_it_is_forced() {
    let world = World::new(400, 100);
    let heap = Heap { world: Arc::clone(&world), tells: true, gives: true };
    let core = core(&world, Some(heap));
    let report = core.cleanup(CleanupRequest::default());
    assert_eq!((report.ran, report.claimed_bytes, core.stats().runs), (false, 0, 0));
    let report = core.cleanup(CleanupRequest::default().force());
    assert_eq!(
        (report.ran, report.claimed_bytes / MIB, report.observed_bytes() / MIB),
        (true, 100, 100)
    );
    let report = core.cleanup(CleanupRequest::default().force().target_bytes(50 * MIB));
    assert_eq!((report.claimed_bytes / MIB, report.reclaimers.len()), (50, 1));
    let report = core.cleanup(CleanupRequest::default().force().aggressive());
    assert_eq!((report.claimed_bytes / MIB, mib(&world.cached)), (250, 0));
    assert_eq!(report.give_back.map(|it| it.allocator), Some("made-up"));
    assert_eq!(core.stats().runs, 3);
    assert!(core.stats().last_run.is_some());
}

#[test]
fn runs_that_free_nothing_become_rare() {
    let world = World::new(0, 900);
    let core = core(&world, None);
    let (often, _) = work(&core, &world, 2_000);
    let (rarely, _) = work(&core, &world, 60_000);
    assert!(often <= 5 && rarely <= 14, "{often} {rarely}");
    assert!(rarely >= 11, "they do not end: {rarely}");
}

#[test]
fn what_is_not_automatic_only_watches() {
    let world = World::new(500, 400);
    let builder = MemoryGuard::builder()
        .root(world.directory.path())
        .limit_bytes(1_000 * MIB)
        .automatic(false);
    let around = Box::new(Around(Arc::clone(&world)));
    let core = Core::new(builder, world.start, |_| around).expect("valid settings");
    assert_eq!(work(&core, &world, 2_000), (0, 0));
    assert_eq!(core.stats().sample.level, Level::High);
}

/// Panics whatever it is asked.
struct Broken;

impl AllocatorControl for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn stats(&self) -> Option<AllocatorStats> {
        panic!("as told")
    }

    fn give_back(&self) {
        panic!("as told")
    }
}

#[test]
fn an_allocator_s_control_that_panics_is_counted_and_survived() {
    let world = World::new(500, 350);
    let builder = MemoryGuard::builder()
        .root(world.directory.path())
        .limit_bytes(1_000 * MIB)
        .allocator(Broken);
    let around = Box::new(Around(Arc::clone(&world)));
    let core = Core::new(builder, world.start, |_| around).expect("valid settings");
    core.reclaimers.register(Cache(Arc::clone(&world))).expect("room").keep();
    work(&core, &world, 4_000);
    let stats = core.stats();
    assert!(stats.panics > 1 && stats.give_backs > 0, "{stats:?}");
    assert_eq!(mib(&world.cached), 350, "the cache gave what was asked for all the same");
}

#[test]
fn wrong_settings_are_all_told_at_once() {
    let error = MemoryGuard::builder()
        .cleanup_threshold(1.5)
        .headroom(2.0)
        .limit_bytes(0)
        .periods(Duration::ZERO, Duration::from_secs(1))
        .start()
        .expect_err("five problems");
    assert!(matches!(&error, GuardError::Invalid(problems) if problems.len() == 5), "{error}");
}

/// Blocks in its reclaim until it is let go.
struct Blocks {
    entered: mpsc::SyncSender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Reclaimer for Blocks {
    fn name(&self) -> &str {
        "blocks"
    }

    fn reclaimable_bytes(&self) -> u64 {
        MIB
    }

    fn reclaim(&self, _: &ReclaimRequest) -> u64 {
        let _ = self.entered.try_send(());
        let _ = self.release.lock().recv();
        0
    }
}

/// Tells of each call.
struct Tells(mpsc::SyncSender<Level>, AtomicBool);

impl Reclaimer for Tells {
    fn name(&self) -> &str {
        "tells"
    }

    fn reclaimable_bytes(&self) -> u64 {
        MIB
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        if !self.1.swap(true, Ordering::Relaxed) {
            let _ = self.0.try_send(request.level);
        }
        request.target_bytes
    }
}

#[test]
fn the_guard_s_own_threads_reclaim_and_end_with_it() {
    let (sender, called) = mpsc::sync_channel(1);
    // This process has more than a byte, so it is at the critical level at once.
    let guard = MemoryGuard::builder().limit_bytes(1).start().expect("a guard");
    let held = guard.register(Tells(sender, AtomicBool::new(false))).expect("room");
    assert_eq!(called.recv_timeout(Duration::from_secs(30)), Ok(Level::Critical));
    assert!(guard.should_cleanup());
    let mut watch = guard.watch();
    drop(held);
    drop(guard);
    assert_eq!(watch.wait(Duration::from_secs(30)), None, "a watcher sees the end");
}

#[test]
fn a_request_is_served_by_the_guard_s_thread() {
    let (sender, called) = mpsc::sync_channel(1);
    let guard = MemoryGuard::builder().limit_bytes(u64::MAX).start().expect("a guard");
    let _held = guard.register(Tells(sender, AtomicBool::new(false))).expect("room");
    drop(guard.cleanup_scope(CleanupRequest::default().force()));
    assert_eq!(called.recv_timeout(Duration::from_secs(30)), Ok(Level::Normal));
}

#[test]
fn readings_go_on_while_a_reclaimer_hangs_and_a_drop_does_not_wait_for_it_for_ever() {
    let (sender, entered) = mpsc::sync_channel(1);
    let (release, released) = mpsc::sync_channel(0);
    let guard = MemoryGuard::builder()
        .limit_bytes(1)
        .periods(Duration::from_millis(2), Duration::from_millis(1))
        .start()
        .expect("a guard");
    let blocks = Blocks { entered: sender, release: Mutex::new(released) };
    guard.register(blocks).expect("room").keep();
    entered.recv_timeout(Duration::from_secs(30)).expect("it is called");
    let before = guard.stats().sources.readings;
    let deadline = Instant::now() + Duration::from_secs(30);
    while guard.stats().sources.readings < before + 20 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(guard.stats().sources.readings >= before + 20);
    drop(guard);
    drop(release);
}
