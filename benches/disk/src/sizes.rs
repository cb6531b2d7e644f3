//! The segment log at four sizes of values.
//!
//! Beside it stands [`Sketch`], which has none of its promises; the target is four fifths of its speed.
//! Loads and churn have one thread, reads and the mix four. For a cold get the files have left the page
//! cache.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};
use fastrand::Rng;
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::sketch::Sketch;
use crate::workload::Workload;

/// A size of values, and entries of it.
struct Size {
    name: &'static str,
    bytes: usize,
    entries: u32,
}

const SIZES: [Size; 4] = [
    Size { name: "100 B", bytes: 100, entries: 1 << 20 },
    Size { name: "1 KiB", bytes: 1 << 10, entries: 384 << 10 },
    Size { name: "16 KiB", bytes: 16 << 10, entries: 48 << 10 },
    Size { name: "64 KiB", bytes: 64 << 10, entries: 12 << 10 },
];

const SHARE: f64 = 0.8;
const THREADS: u64 = 4;
/// Readings of which the median is taken.
const READINGS: u16 = 9;
/// Operations of one thread in one reading, at most.
const OPERATIONS: usize = 50_000;

const CASES: [&str; 5] = ["put", "cold get", "warm get", "gets and puts", "churn"];

/// Adds five rows for each size.
pub(crate) fn rows(suite: &mut Suite) {
    for size in &SIZES {
        let cases = CASES.map(|case| format!("{case}, values of {}", size.name));
        if !cases.iter().any(|case| suite.wants(case)) {
            continue;
        }
        let workload = Workload::new(size.entries, 1);
        let mut ours = Vec::new();
        let mut sketch = Vec::new();
        for seed in 0..u64::from(READINGS) {
            ours.push(read(SegmentLog::open_in, size, &workload, seed));
            sketch.push(read(Sketch::open_in, size, &workload, seed));
        }
        for (at, case) in cases.iter().enumerate() {
            let reading = |all: &[[f64; 5]]| all.iter().map(|values| values[at] / 1e3).collect();
            let [ours, sketch]: [Vec<f64>; 2] = [reading(&ours), reading(&sketch)];
            let [mut ours, mut sketch] = [ours, sketch].map(|values| values.into_iter().cycle());
            let mut next = || ours.next().expect("a cycle has no end");
            let mut next_of_sketch = || sketch.next().expect("a cycle has no end");
            suite.reported(case, "1000 op/s").rounds(READINGS).at_least(SHARE).compare(
                "a sketch",
                &mut next,
                &mut next_of_sketch,
            );
        }
    }
}

/// What is measured.
trait Log: Sync {
    fn open_in(directory: &TempDir, capacity_bytes: u64) -> Self;
    fn put(&self, key: &[u8], value: &[u8]);
    fn get(&self, key: &[u8]) -> Option<usize>;
    fn remove(&self, key: &[u8]);
    fn flush(&self);
}

impl Log for SegmentLog {
    fn open_in(directory: &TempDir, capacity_bytes: u64) -> Self {
        let options = SegmentLogOptions::new(directory.path(), capacity_bytes);
        Self::open(options).expect("the segment log opens its own directory")
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        DiskTier::put(self, key, value, 0).expect("there is room");
    }

    fn get(&self, key: &[u8]) -> Option<usize> {
        DiskTier::get(self, key, 0).expect("the disk can be read").map(|value| value.len())
    }

    fn remove(&self, key: &[u8]) {
        DiskTier::remove(self, key).expect("there is room");
    }

    fn flush(&self) {
        DiskTier::flush(self).expect("there is room");
    }
}

impl Log for Sketch {
    fn open_in(directory: &TempDir, capacity_bytes: u64) -> Self {
        Self::open(directory.path(), capacity_bytes)
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        self.put(key, value);
    }

    fn get(&self, key: &[u8]) -> Option<usize> {
        self.get(key).map(|value| value.len())
    }

    fn remove(&self, key: &[u8]) {
        self.remove(key);
    }

    fn flush(&self) {
        self.flush();
    }
}

type Open<L> = fn(&TempDir, u64) -> L;

fn read<L: Log>(open: Open<L>, size: &Size, workload: &Workload, seed: u64) -> [f64; 5] {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let live = u64::from(size.entries) * (size.bytes as u64 + 16);
    let log = open(&directory, capacity_for(live));
    let put = |entry: u32| {
        let value = workload.value_of(entry, size.bytes).as_bytes();
        log.put(workload.key(entry), value);
    };
    let get = |entry: u32| {
        assert_eq!(log.get(workload.key(entry)), Some(size.bytes), "nothing is evicted");
    };

    let watch = Stopwatch::start(Clock::Wall);
    (0..size.entries).for_each(put);
    log.flush();
    let loaded = watch.per_second(size.entries.into());

    let per_thread = OPERATIONS.min(size.entries as usize / 2);
    let all = per_thread as u64 * THREADS;
    let draws: Vec<_> =
        (0..THREADS).map(|thread| workload.zipf(per_thread, seed * 100 + thread)).collect();
    let in_threads = |work: &(dyn Fn(u32, usize) + Sync)| {
        let watch = Stopwatch::start(Clock::Wall);
        std::thread::scope(|scope| {
            for draws in &draws {
                scope.spawn(|| draws.iter().enumerate().for_each(|(at, entry)| work(*entry, at)));
            }
        });
        watch.per_second(all)
    };
    forget_pages(directory.path());
    let cold = in_threads(&|entry, _| get(entry));
    let warm = in_threads(&|entry, _| get(entry));
    let mix = in_threads(&|entry, at| if at % 2 == 0 { get(entry) } else { put(entry) });
    drop(log);
    [loaded, cold, warm, mix, churn(open, size, workload, seed)]
}

/// New entries come and random ones go, while the number of live ones stays.
fn churn<L: Log>(open: Open<L>, size: &Size, workload: &Workload, seed: u64) -> f64 {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let half = size.entries / 2;
    let live = u64::from(half) * (size.bytes as u64 + 16);
    let log = open(&directory, capacity_for(live));
    let put = |entry: u32| {
        let value = workload.value_of(entry, size.bytes).as_bytes();
        log.put(workload.key(entry), value);
    };
    (0..half).for_each(put);
    let mut rng = Rng::with_seed(seed);
    let next = AtomicU32::new(half);
    let watch = Stopwatch::start(Clock::Wall);
    for _ in 0..half {
        put(next.fetch_add(1, Ordering::Relaxed));
        log.remove(workload.key(rng.u32(0..half)));
    }
    log.flush();
    watch.per_second(half.into())
}

/// Twice what lives, so that no log has to throw anything away.
fn capacity_for(live: u64) -> u64 {
    (live * 2).max(256 << 20)
}

/// Has the operating system write the files out and forget their pages.
fn forget_pages(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("the directory can be listed") {
        let file = File::open(entry.expect("the directory can be listed").path());
        let file = file.expect("the file can be read");
        file.sync_all().expect("the file can be synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
    }
}
