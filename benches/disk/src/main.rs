//! The disk tier's engine beside sled, and the tier as a cache uses it.
//!
//! Engines are called synchronously, from the threads that a case names, with 16-byte keys and 1 KiB
//! values. A load goes into an empty directory each time, 256 MiB of it. Gets are warm: the files are in
//! the page cache, and four times as large as the cache that sled is given. Rates and latencies are by
//! the wall clock, since both engines hand work to other threads or to the kernel.
//!
//! Directories are made in the system's temporary one (`TMPDIR` moves it), take 5 GiB there at most and
//! are removed. On a file system in memory the numbers say nothing about a disk.
#![forbid(unsafe_code)]

mod engine;
mod large;
mod records;
#[cfg(target_os = "linux")]
mod sizes;
#[cfg(target_os = "linux")]
mod sketch;
mod workload;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cache_tiered::Cache;
use cache_tiered::disk::{DiskConfig, DiskTier, SegmentLog, SegmentLogOptions};
use tempfile::TempDir;
use ultra_perf_bench::{Clock, Stopwatch, Suite, Target};

use crate::engine::{Engine, Open, SLED, segment_log};
use crate::workload::{VALUE_BYTES, Workload};

/// Entries of a database: 256 MiB of values.
const ENTRIES: u32 = 256 << 10;
/// Gets of a round, over all its threads.
const GETS: usize = 200_000;
/// Gets under way at once in the asynchronous tier.
const IN_FLIGHT: usize = 64;

const NO_PEERS: &str = "built without peers: cargo xtask bench disk --peers";

fn main() -> ExitCode {
    let mut suite = Suite::new("disk");
    let workload = Arc::new(Workload::new(ENTRIES, 1));
    loads(&mut suite, &workload);
    gets(&mut suite, &workload);
    churn(&mut suite, &workload);
    large::rows(&mut suite);
    records::rows(&mut suite);
    asynchronous(&mut suite, &workload);
    #[cfg(target_os = "linux")]
    sizes::rows(&mut suite);
    suite.finish()
}

/// Adds a row for one reading of ours beside sled's; without sled, one for ours alone.
fn beside_sled(
    suite: &mut Suite,
    (case, unit): (&str, &str),
    target: Target,
    mut ours: impl FnMut() -> f64,
    sled: Option<impl FnMut() -> f64>,
) {
    let Some(sled) = sled else {
        suite.reported(case, unit).rounds(9).measure(&mut ours);
        return suite.reported(case, unit).skip("sled", NO_PEERS);
    };
    let case = suite.reported(case, unit).rounds(9);
    let case = match target {
        Target::AtLeast(bound) => case.at_least(bound),
        Target::AtMost(bound) => case.at_most(bound),
    };
    case.compare("sled", ours, sled);
}

fn loads(suite: &mut Suite, workload: &Workload) {
    beside_sled(
        suite,
        ("put, one thread", "op/s"),
        Target::AtLeast(5.0),
        || put_rate(segment_log, workload),
        SLED.map(|open| move || put_rate(open, workload)),
    );
    let sorted = &Workload::new(ENTRIES, 1).sorted();
    beside_sled(
        suite,
        ("put in the order of keys, one thread", "op/s"),
        Target::AtLeast(5.0),
        || put_rate(segment_log, sorted),
        SLED.map(|open| move || put_rate(open, sorted)),
    );
    beside_sled(
        suite,
        ("put, p99", "us"),
        Target::AtMost(0.2),
        || put_p99(segment_log, workload),
        SLED.map(|open| move || put_p99(open, workload)),
    );
    let amplification = "write amplification of a load";
    if suite.wants(amplification) {
        let ours = write_amplification(segment_log, workload);
        suite.reported(amplification, "x").at_most(1.2).observed(ours);
    }
    let of_sled = "write amplification of a load, sled";
    match SLED {
        Some(open) if suite.wants(of_sled) => {
            suite.reported(of_sled, "x").observed(write_amplification(open, workload));
        }
        _ => {}
    }
}

fn put_rate(open: Open, workload: &Workload) -> f64 {
    let (engine, _directory) = empty(open);
    let watch = Stopwatch::start(Clock::Wall);
    load(&*engine, workload);
    watch.per_second(workload.entries().into())
}

fn put_p99(open: Open, workload: &Workload) -> f64 {
    let (engine, _directory) = empty(open);
    p99_us((0..workload.entries()).map(|entry| {
        let start = Instant::now();
        engine.put(workload.key(entry), workload.value(entry).as_bytes());
        start.elapsed().as_nanos() as u64
    }))
}

/// Bytes written per byte put, by the kernel's count for this process or the engine's, if that is more.
fn write_amplification(open: Open, workload: &Workload) -> f64 {
    let (engine, _directory) = empty(open);
    let before = bytes_written_by_process();
    load(&*engine, workload);
    let own_count = engine.written();
    drop(engine); // sled writes the rest when it is closed
    let written = bytes_written_by_process() - before;
    written.max(own_count) as f64 / workload.bytes() as f64
}

/// What this process has made dirty in the page cache, in bytes; nothing where the system has no count.
fn bytes_written_by_process() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let count = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    count.unwrap_or_default()
}

fn gets(suite: &mut Suite, workload: &Workload) {
    const RATES: [&str; 2] = ["warm get, four threads", "warm get, one thread"];
    const P99: &str = "warm get, four threads, p99";
    // The databases take a while to fill, so only for a case that will run.
    let beside = |case: &&str| suite.wants(&format!("{case} vs sled"));
    if !RATES.iter().chain(&[P99]).any(beside) {
        return;
    }
    let four: Vec<_> = (0..4).map(|thread| workload.zipf(GETS / 4, 10 + thread)).collect();
    let one = [workload.zipf(GETS, 20)];
    let (ours, _directory) = full(segment_log, workload);
    let sled = SLED.map(|open| full(open, workload));
    let sled = sled.as_ref().map(|(engine, _directory)| &**engine);

    for (case, reads) in RATES.into_iter().zip([four.as_slice(), &one]) {
        beside_sled(
            suite,
            (case, "op/s"),
            Target::AtLeast(3.0),
            || get_rate(&*ours, workload, reads),
            sled.map(|sled| move || get_rate(sled, workload, reads)),
        );
    }
    beside_sled(
        suite,
        (P99, "us"),
        Target::AtMost(0.2),
        || get_p99(&*ours, workload, &four),
        sled.map(|sled| || get_p99(sled, workload, &four)),
    );
}

/// A log of half the entries' size, filled through its misses: each get that finds nothing is a put.
fn churn(suite: &mut Suite, workload: &Workload) {
    const RATE: &str = "churn, one thread";
    const HIT_RATIO: &str = "churn, hit ratio";
    const AMPLIFICATION: &str = "churn, write amplification";
    if ![RATE, HIT_RATIO, AMPLIFICATION].iter().any(|case| suite.wants(case)) {
        return;
    }
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let options = SegmentLogOptions::new(directory.path(), workload.bytes() / 2);
    let log = SegmentLog::open(options).expect("the segment log opens its own directory");
    let mut seed = 40;
    let (mut hits, mut gets, mut put_bytes) = (0_u64, 0_u64, 0_u64);
    let mut round = || {
        seed += 1;
        let reads = workload.zipf(GETS * 2, seed);
        let watch = Stopwatch::start(Clock::Wall);
        for entry in &reads {
            let key = workload.key(*entry);
            gets += 1;
            if DiskTier::get(&log, key, 0).expect("the disk can be read").is_some() {
                hits += 1;
            } else {
                let value = workload.value(*entry).as_bytes();
                DiskTier::put(&log, key, value, 0).expect("there is room");
                put_bytes += (key.len() + value.len()) as u64;
            }
        }
        watch.per_second(reads.len() as u64)
    };
    for _ in 0..4 {
        round();
    }
    suite.reported(RATE, "op/s").rounds(9).measure(&mut round);
    DiskTier::flush(&log).expect("there is room");
    let stats = log.stats();
    assert!(stats.evicted_capacity > 0, "{stats:?}");
    suite.reported(HIT_RATIO, "").observed(hits as f64 / gets as f64);
    let amplification = stats.bytes_written as f64 / put_bytes as f64;
    suite.reported(AMPLIFICATION, "x").at_most(2.0).observed(amplification);
}

fn get_rate(engine: &dyn Engine, workload: &Workload, reads: &[Vec<u32>]) -> f64 {
    let watch = Stopwatch::start(Clock::Wall);
    in_threads(reads, |entry| assert_eq!(engine.get(workload.key(entry)), VALUE_BYTES));
    watch.per_second(reads.iter().map(|reads| reads.len() as u64).sum())
}

fn get_p99(engine: &dyn Engine, workload: &Workload, reads: &[Vec<u32>]) -> f64 {
    p99_us(in_threads(reads, |entry| {
        let start = Instant::now();
        engine.get(workload.key(entry));
        start.elapsed().as_nanos() as u64
    }))
}

/// Does some work for every entry, in as many threads as there are lists of them.
fn in_threads<T: Send>(reads: &[Vec<u32>], work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = reads
            .iter()
            .map(|reads| scope.spawn(move || reads.iter().map(|entry| work(*entry)).collect()))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("a get succeeds"));
        results.flat_map(|results: Vec<T>| results).collect()
    })
}

fn empty(open: Open) -> (Box<dyn Engine>, TempDir) {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    (open(directory.path()), directory)
}

fn full(open: Open, workload: &Workload) -> (Box<dyn Engine>, TempDir) {
    let (engine, directory) = empty(open);
    load(&*engine, workload);
    (engine, directory)
}

fn load(engine: &dyn Engine, workload: &Workload) {
    for entry in 0..workload.entries() {
        engine.put(workload.key(entry), workload.value(entry).as_bytes());
    }
    engine.flush();
}

/// The 99th percentile of some nanoseconds, in microseconds.
fn p99_us(nanos: impl IntoIterator<Item = u64>) -> f64 {
    let mut nanos: Vec<u64> = nanos.into_iter().collect();
    let rank = (nanos.len() * 99).div_ceil(100) - 1;
    *nanos.select_nth_unstable(rank).1 as f64 / 1e3
}

/// The tier as a cache uses it: queues, reader threads, checksum and decoding, for callers that wait.
fn asynchronous(suite: &mut Suite, workload: &Arc<Workload>) {
    let case = "async get, 64 in flight";
    if !suite.wants(case) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let cache = runtime.block_on(cache_on_disk(directory.path(), workload));
    let reads: Vec<_> = (0..IN_FLIGHT as u64)
        .map(|task| Arc::new(workload.uniform(GETS / IN_FLIGHT, 30 + task)))
        .collect();
    let gets = reads.iter().map(|reads| reads.len() as u64).sum();

    suite.rate(case, Clock::Wall, gets).measure(|| {
        runtime.block_on(async {
            let tasks: Vec<_> = reads
                .iter()
                .map(|reads| tokio::spawn(read_all(cache.clone(), Arc::clone(reads))))
                .collect();
            for task in tasks {
                task.await.expect("a get succeeds");
            }
        });
    });

    let stats = cache.stats();
    let from_disk = stats.disk.map_or(0, |disk| disk.hits);
    assert!(from_disk > stats.memory.hits * 100, "memory answered: {stats:?}");
    runtime.block_on(cache.close());
}

/// A full cache whose memory holds next to nothing.
async fn cache_on_disk(directory: &Path, workload: &Workload) -> Cache<u32, String> {
    let disk = DiskConfig::new(directory).capacity_bytes(4 << 30);
    let cache = Cache::builder("bench").entries(IN_FLIGHT as u64).disk(disk);
    let cache = cache.open().await.expect("a valid configuration");
    for entry in 0..workload.entries() {
        cache.insert(entry, workload.value(entry).to_owned());
        // Half of what the queue of writes takes.
        if entry % 8_192 == 0 {
            cache.flush().await;
        }
    }
    cache.flush().await;
    cache
}

async fn read_all(cache: Cache<u32, String>, entries: Arc<Vec<u32>>) {
    for entry in entries.iter() {
        let value = cache.get(entry).await.expect("was inserted and fits");
        assert_eq!(value.len(), VALUE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_the_smallest_reading_that_99_of_100_do_not_exceed() {
        assert!((p99_us((1..=100).rev().map(|micros| micros * 1_000)) - 99.0).abs() < 1e-9);
        assert!((p99_us([5_000]) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn every_engine_gives_back_what_was_put() {
        let workload = Workload::new(500, 1);
        for open in [Some(segment_log as Open), SLED].into_iter().flatten() {
            let (engine, _directory) = full(open, &workload);
            assert!(get_rate(&*engine, &workload, &[workload.zipf(1_000, 2)]) > 0.0);
        }
    }
}
