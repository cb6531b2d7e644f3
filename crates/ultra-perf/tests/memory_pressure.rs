//! A process that fills a cache far beyond its limit lives on, and keeps what it uses.
//!
//! The work is done by a child process, this program again, so that nobody else's memory counts and a
//! kill would be seen. The limit is one that the child is given. With `ULTRA_PERF_TEST_CGROUP=1` it is
//! that of a control group instead, which the test makes below its own and takes away again; the kernel
//! then kills what exceeds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ultra_perf::CacheReclaimer;
use ultra_perf::cache_tiered::Cache;
use ultra_perf::config::ConfigLoader;
use ultra_perf::memory::{EventKind, Glibc, Level, LimitedBy};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 192 * MIB;
const VALUE_BYTES: u64 = 16 << 10;
/// Entries that are used all the time: 8 MiB.
const HOT: u64 = 512;
/// What is put in beside them: three times the limit.
const COLD_BYTES: u64 = 3 * LIMIT;

/// Tells the child that it is one, and whether it has a limit of its own or a group's.
const CHILD: &str = "ULTRA_PERF_PRESSURE_CHILD";
/// Asks for a control group.
const GROUP: &str = "ULTRA_PERF_TEST_CGROUP";

#[test]
fn filling_a_cache_beyond_the_limit_pushes_out_what_is_cold() {
    let group = std::env::var_os(GROUP).and_then(|_| Group::make());
    let child = std::env::current_exe().expect("this program has a path");
    let mut command = match &group {
        // The shell joins the group before it becomes the child, so all of its memory counts.
        Some(group) => {
            let mut command = Command::new("sh");
            let join = "echo $$ > \"$1\" && shift && exec \"$@\"";
            command.args(["-c", join, "sh"]).arg(group.0.join("cgroup.procs")).arg(child);
            command
        }
        None => Command::new(child),
    };
    let kind = if group.is_some() { "group" } else { "user" };
    command.args(["--exact", "the_child_of_the_test_above", "--nocapture"]).env(CHILD, kind);
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(status.success(), "{status}: {said}");
    assert!(said.contains("survived"), "the child did its work: {said}");
}

#[test]
fn the_child_of_the_test_above() {
    let Some(kind) = std::env::var_os(CHILD) else { return };
    let group = kind == "group";
    let mut loader = ConfigLoader::new().set("cache.disk.enabled", "false", "the test");
    if !group {
        loader = loader.set("memory.limit", LIMIT.to_string(), "the test");
    }
    let config = loader.load().expect("a configuration");
    let cache: Cache<u64, Vec<u8>> = config
        .memory_cache_builder("pages")
        .bytes(16 * LIMIT, |_, page: &Vec<u8>| page.len() as u64)
        .build()
        .expect("a cache");
    let guard = config.memory_guard_builder().expect("it is enabled").allocator(Glibc);
    let guard = guard.start().expect("a guard");
    let _registration = guard.register(CacheReclaimer::new(cache.clone())).expect("room");
    let by = if group { LimitedBy::CgroupV1 } else { LimitedBy::User };
    let sample = guard.sample();
    assert!(
        sample.limited_by == by || (group && sample.limited_by == LimitedBy::CgroupV2),
        "{sample:?}"
    );

    let page = || vec![7u8; VALUE_BYTES as usize];
    (0..HOT).for_each(|hot| cache.insert(hot, page()));
    let mut most = 0.0f64;
    let mut next = 0;
    for cold in 0..COLD_BYTES / VALUE_BYTES {
        cache.insert(1_000_000 + cold, page());
        // Each hot entry is used once for 32 cold ones.
        for _ in 0..16 {
            next = (next + 1) % HOT;
            cache.get_in_memory(&next);
        }
        if cold % 64 == 0 {
            // Some 100 MiB a second: what a program can do to itself before anybody looks is bounded by
            // the guard's period.
            std::thread::sleep(Duration::from_millis(10));
            most = most.max(guard.sample().share());
        }
    }
    let filled = Instant::now();
    // What the last run freed may lie in the allocator, which below the critical level is asked to give
    // back once in five seconds.
    let patience = filled + Duration::from_secs(10);
    let threshold = guard.thresholds().high;
    while guard.observe().share() >= threshold && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = filled.elapsed();
    let hot = (0..HOT).filter(|hot| cache.get_in_memory(hot).is_some()).count() as u64;
    let (sample, stats) = (guard.observe(), guard.stats());
    println!(
        "survived: {hot} of {HOT} hot entries, {:.1} % of {} MiB in use ({:?}), at most {:.1} %, under the \
         threshold {} ms after the last insert, {} runs, {} MiB claimed, {} MiB seen",
        sample.percent(),
        sample.limit_bytes / MIB,
        sample.limited_by,
        100.0 * most,
        took.as_millis(),
        stats.runs,
        stats.claimed_bytes / MIB,
        stats.observed_bytes / MIB,
    );
    let highs: Vec<_> = guard
        .events()
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::LevelChanged { from, to } => Some((event.at, from, to)),
            _ => None,
        })
        .collect();
    for pair in highs.windows(2) {
        let [(began, _, level), (ended, _, _)] = pair else { continue };
        println!("{level} for {} ms", ended.saturating_duration_since(*began).as_millis());
    }
    assert!(highs.iter().any(|(_, _, to)| *to >= Level::High), "{highs:?}");
    assert!(sample.share() < threshold, "{sample:?}");
    assert!(stats.runs > 0 && stats.claimed_bytes > LIMIT, "{stats:?}");
    // By chance it would be less than a quarter.
    assert!(hot >= HOT * 3 / 4, "{hot} of {HOT}");
}

/// A control group with the limit, below this process's own.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may not make one.
    fn make() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let of = |pick: fn(&str) -> bool| {
            groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).find_map(
                |(controllers, path)| pick(controllers).then(|| path.trim_start_matches('/')),
            )
        };
        let first = of(|it| it.split(',').any(|it| it == "memory"))
            .map(|path| (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
        let second =
            of(str::is_empty).map(|path| (Path::new("/sys/fs/cgroup").join(path), "memory.max"));
        [first, second].into_iter().flatten().find_map(|(own, file)| {
            let directory = own.join(format!("ultra-perf-test-{}", std::process::id()));
            fs::create_dir(&directory).ok()?;
            let group = Self(directory);
            fs::write(group.0.join(file), LIMIT.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty by now: the child has ended.
        let _ = fs::remove_dir(&self.0);
    }
}
