//! The history in a real directory: it is taken up again, has one owner, and outlives a disk that is full.

#![cfg(feature = "history")]

mod history;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use history::{Process, START_MS, Sample};
use monitor::history::{OpenError, Reason};
use monitor::{Aggregate, Distribution, History, HistoryOptions, Selector, Source, Window};

fn open(path: &Path) -> History {
    History::open(HistoryOptions { path: Some(path.to_owned()), ..HistoryOptions::default() })
        .expect("nobody else has it open")
}

fn run(history: &History, process: &Process, from: i64, until: i64) {
    let mut all = Distribution::empty(1e-9);
    for n in from..until {
        all.record(0.001 * (n % 100 + 1) as f64);
        let samples = [
            ("g", Sample::Gauge((n * 7_919 % 1_000) as f64 / 8.0)),
            ("h_seconds", Sample::Histogram(all.clone())),
        ];
        process.tick(history, START_MS + n * 1_000, &samples).expect("a second has passed");
        if n % 30 == 0 {
            // What is not written while the disk is full is in memory.
            let _ = history.flush();
        }
    }
    let _ = history.flush();
}

#[track_caller]
fn assert_whole(history: &History, from: i64, until: i64) {
    let id = |name| history.matching(&Selector::name(name))[0].id;
    let to_ms = START_MS + (until - 1) * 1_000;
    let window = Window { from_ms: START_MS + from * 1_000 - 1, to_ms };
    let points = history.range(&[id("g")], window, 1_000, Aggregate::Last);
    let expected = (from..until).map(|n| Some((n * 7_919 % 1_000) as f64 / 8.0));
    assert!(points.iter().copied().eq(expected), "{points:?}");
    for step_ms in [1_000, 60_000, 3_600_000] {
        let window = Window { to_ms: START_MS + 3_600_000 * 2, from_ms: START_MS - 3_600_000 };
        let counts = history.range(&[id("h_seconds")], window, step_ms, Aggregate::Count);
        let values = counts.iter().flatten().sum::<f64>();
        assert_eq!(values, until as f64, "by {step_ms} ms");
    }
}

fn newest_log(path: &Path) -> PathBuf {
    let entries = fs::read_dir(path).expect("it is there").filter_map(Result::ok);
    let logs = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"));
    logs.max().expect("there is a log")
}

#[test]
fn a_directory_is_taken_up_where_it_was_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history");
    for (from, until) in [(0, 700), (700, 1_000), (1_000, 2_500)] {
        let history = open(&path);
        assert_eq!(history.degraded(), None);
        assert_eq!(history.last_ms(), (from > 0).then_some(START_MS + (from - 1) * 1_000));
        run(&history, &Process::new(), from, until);
        assert_whole(&history, 0, until);
    }
    let history = open(&path);
    assert_whole(&history, 0, 2_500);
    let found = history.series(&Selector::name("g"));
    assert_eq!((found.len(), found[0].first_ms), (1, START_MS));
    let window = Window { from_ms: START_MS - 1, to_ms: START_MS + 2_499_000 };
    let seconds = history.matching(&Selector::name("h_seconds"))[0].id;
    let p90 = history.aggregate(&[seconds], window, Aggregate::Quantile(0.9)).expect("values");
    assert!((p90.value - 0.09).abs() < 0.09 * 0.016, "{p90:?}");
    assert_eq!((p90.samples, p90.expected), (2_500, 2_499));
}

#[test]
fn a_directory_has_one_owner() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history");
    let history = open(&path);
    let options = HistoryOptions { path: Some(path.clone()), ..HistoryOptions::default() };
    let Err(OpenError::Locked { path: locked }) = History::open(options) else {
        panic!("it has two owners")
    };
    assert_eq!(locked, path);
    drop(history);
    open(&path);
}

#[test]
fn a_torn_log_loses_the_tick_that_was_torn() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history");
    let history = open(&path);
    run(&history, &Process::new(), 0, 100);
    drop(history);
    let log = newest_log(&path);
    let length = fs::metadata(&log).expect("it is there").len();
    fs::OpenOptions::new()
        .write(true)
        .open(&log)
        .and_then(|log| log.set_len(length - 3))
        .expect("cut");
    let history = open(&path);
    assert!(history.stats().torn_bytes > 0);
    assert_eq!(history.last_ms(), Some(START_MS + 98_000));
    assert_whole(&history, 0, 99);
    run(&history, &Process::new(), 99, 200);
    drop(history);
    fs::OpenOptions::new()
        .append(true)
        .open(newest_log(&path))
        .and_then(|mut log| log.write_all(b"garbage"))
        .expect("there is space");
    let history = open(&path);
    assert_eq!(history.stats().torn_bytes, 7);
    assert_whole(&history, 0, 200);
}

/// A small file system in memory, unmounted whatever becomes of the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until there is no space, and returns the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = fs::File::create(&path).expect("there is an entry left");
        while file.write_all(&[7; 512]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

#[test]
fn a_full_disk_is_outlived() {
    let Some(disk) = SmallDisk::mount("8m") else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let path = disk.path().join("history");
    let (history, process) = (open(&path), Process::new());
    run(&history, &process, 0, 700);
    assert_eq!(history.degraded(), None);
    let ballast = disk.fill();
    run(&history, &process, 700, 1_900);
    assert!(matches!(history.degraded(), Some(Reason::Full(_))), "{:?}", history.degraded());
    assert_whole(&history, 700, 1_900);
    fs::remove_file(ballast).expect("it is there");
    run(&history, &process, 1_900, 1_990);
    assert_eq!(history.degraded(), None);
    assert_whole(&history, 0, 1_990);
    assert_eq!(history.stats().blocks_lost, 0);
    drop(history);
    let history = open(&path);
    assert_whole(&history, 0, 1_990);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_no_reason_to_fail() {
    let Some(disk) = SmallDisk::mount("1m") else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let path = disk.path().join("history");
    fs::create_dir(&path).expect("there is space");
    let ballast = disk.fill();
    let (history, process) = (open(&path), Process::new());
    run(&history, &process, 0, 700);
    assert!(history.degraded().is_some());
    assert_whole(&history, 0, 700);
    fs::remove_file(ballast).expect("it is there");
    run(&history, &process, 700, 800);
    assert_eq!(history.degraded(), None);
    assert_whole(&history, 0, 800);
}
