//! The segment log at four sizes of values.
//!
//! The targets are four fifths of what a sketch of ninety lines reached (segments, a sharded index, a
//! CRC for each record, nothing else: no checkpoints, no bound to the byte, no fsync policy), two cores
//! of an AMD EPYC virtual machine, medians. Loads and churn have one thread, reads and the mix four. For a
//! cold get the files have left the page cache.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};
use fastrand::Rng;
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::workload::Workload;

/// A size of values, entries of it, and the sketch's thousands of operations a second.
struct Size {
    name: &'static str,
    bytes: usize,
    entries: u32,
    put: f64,
    cold: f64,
    warm: f64,
    /// Gets and puts together.
    mix: f64,
    churn: f64,
}

const SIZES: [Size; 4] = [
    Size {
        name: "100 B",
        bytes: 100,
        entries: 1 << 20,
        put: 892.0,
        cold: 960.0,
        warm: 1_340.0,
        mix: 804.0,
        churn: 365.0,
    },
    Size {
        name: "1 KiB",
        bytes: 1 << 10,
        entries: 384 << 10,
        put: 403.0,
        cold: 184.0,
        warm: 743.0,
        mix: 494.0,
        churn: 159.0,
    },
    Size {
        name: "16 KiB",
        bytes: 16 << 10,
        entries: 48 << 10,
        put: 107.0,
        cold: 152.0,
        warm: 451.0,
        mix: 88.0,
        churn: 23.0,
    },
    Size {
        name: "64 KiB",
        bytes: 64 << 10,
        entries: 12 << 10,
        put: 39.0,
        cold: 81.0,
        warm: 142.0,
        mix: 28.0,
        churn: 6.6,
    },
];

const SHARE: f64 = 0.8;
const THREADS: u64 = 4;
/// Readings of which the median is taken.
const READINGS: usize = 3;
/// Operations of one thread in one reading, at most.
const OPERATIONS: usize = 50_000;

/// Adds five rows for each size.
pub(crate) fn rows(suite: &mut Suite) {
    for size in &SIZES {
        let mut cases = ["put", "cold get", "warm get", "gets and puts", "churn"]
            .map(|case| format!("{case}, values of {}", size.name));
        if cases.iter().any(|case| suite.wants(case)) {
            let values = Readings::of(size).medians();
            let targets = [size.put, size.cold, size.warm, size.mix, size.churn];
            for ((case, value), target) in cases.iter_mut().zip(values).zip(targets) {
                suite.reported(case, "1000 op/s").at_least(target * SHARE).observed(value);
            }
        }
    }
}

/// Thousands of operations a second, for each case.
struct Readings([Vec<f64>; 5]);

impl Readings {
    fn of(size: &Size) -> Self {
        let workload = Workload::new(size.entries, 1);
        let mut readings: [Vec<f64>; 5] = Default::default();
        for seed in 0..READINGS as u64 {
            let values = read(size, &workload, seed);
            readings.iter_mut().zip(values).for_each(|(all, value)| all.push(value / 1e3));
        }
        Self(readings)
    }

    fn medians(self) -> [f64; 5] {
        self.0.map(|mut all| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        })
    }
}

fn read(size: &Size, workload: &Workload, seed: u64) -> [f64; 5] {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let live = u64::from(size.entries) * (size.bytes as u64 + 16);
    let log = open(&directory, live * 2);
    let put = |entry: u32| {
        let value = workload.value_of(entry, size.bytes).as_bytes();
        log.put(workload.key(entry), value, 0).expect("there is room");
    };
    let get = |entry: u32| {
        let value = log.get(workload.key(entry), 0).expect("the disk can be read");
        assert_eq!(value.expect("nothing is evicted").len(), size.bytes);
    };

    let watch = Stopwatch::start(Clock::Wall);
    (0..size.entries).for_each(put);
    log.flush().expect("there is room");
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
    [loaded, cold, warm, mix, churn(size, workload, seed)]
}

/// New entries come and random ones go, while the number of live ones stays.
fn churn(size: &Size, workload: &Workload, seed: u64) -> f64 {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let half = size.entries / 2;
    let live = u64::from(half) * (size.bytes as u64 + 16);
    let log = open(&directory, live * 2);
    let put = |entry: u32| {
        let value = workload.value_of(entry, size.bytes).as_bytes();
        log.put(workload.key(entry), value, 0).expect("there is room");
    };
    (0..half).for_each(put);
    let mut rng = Rng::with_seed(seed);
    let next = AtomicU32::new(half);
    let watch = Stopwatch::start(Clock::Wall);
    for _ in 0..half {
        put(next.fetch_add(1, Ordering::Relaxed));
        log.remove(workload.key(rng.u32(0..half))).expect("there is room");
    }
    log.flush().expect("there is room");
    watch.per_second(half.into())
}

fn open(directory: &TempDir, capacity_bytes: u64) -> SegmentLog {
    let options = SegmentLogOptions::new(directory.path(), capacity_bytes.max(256 << 20));
    SegmentLog::open(options).expect("the segment log opens its own directory")
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
