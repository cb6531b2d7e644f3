//! The collector on files that a test writes, and on this machine.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::Moment;
use crate::registry::Snapshot;

/// A clock that a test sets.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Moment {
        let monotonic = Duration::from_millis(self.0.load(Ordering::Relaxed));
        Moment { monotonic, unix_ms: 0 }
    }
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
    fs::write(path, text).expect("a file");
}

/// The files of a machine with two processors at one of two moments, ten seconds apart.
fn machine(root: &Path, later: bool) {
    let pick = |early: &'static str, late: &'static str| if later { late } else { early };
    // 2,000 ticks in ten seconds on two processors; 500 of them idle, 100 waiting.
    let all = pick("cpu 100 0 100 800 0 0 0 0 0 0", "cpu 1300 0 300 1300 100 0 0 0 0 0");
    write(
        root,
        "proc/stat",
        &format!(
            "{all}\ncpu0 1\ncpu1 1\nctxt 5\nbtime 1000\nprocesses 9\nprocs_running \
                2\nprocs_blocked 0\n"
        ),
    );
    let (user, system) = (pick("100", "700"), pick("0", "100"));
    let own = format!(
        "7 (a b) S 1 7 7 0 -1 4194560 100 0 0 0 {user} {system} 0 0 20 0 9 0 500 1000000 10 0 1 1"
    );
    write(root, "proc/self/stat", &own);
    write(root, "proc/self/io", "read_bytes: 10\nwrite_bytes: 20\n");
    write(root, "proc/self/limits", "Max open files 1024 4096 files\n");
    write(root, "proc/self/cgroup", "0::/app/worker\n");
    write(root, "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\n");
    let busy = pick("1000", "6000");
    write(
        root,
        "proc/diskstats",
        &format!(
            " 8 0 sda 10 0 20 0 30 0 40 0 0 {busy} 0\n 8 1 sda1 10 0 20 0 30 0 40 0 \
                0 {busy} 0\n 7 0 loop0 0 0 0 0 0 0 0 0 0 0 0\n"
        ),
    );
    fs::create_dir_all(root.join("sys/block/sda")).expect("a folder");
    write(
        root,
        "proc/net/dev",
        "a\nb\n lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\neth0: 100 1 2 3 0 0 0 0 200 4 5 6 0 0 0 0\n",
    );
    write(
        root,
        "proc/net/sockstat",
        "sockets: used 21\nTCP: inuse 5 orphan 0 tw 4 alloc 1 mem 2\n",
    );
    write(root, "proc/net/tcp", "head\n 0: a b 01 x\n 1: a b 0A x\n");
    write(root, "proc/loadavg", "0.50 1.00 1.50 2/130 77\n");
    write(
        root,
        "proc/pressure/cpu",
        "some avg10=25.00 avg60=0 avg300=0 total=2000000\nfull avg10=0.00 \
            avg60=0 avg300=0 total=0\n",
    );
    write(root, "proc/cpuinfo", "cpu MHz : 2500.0\n");
    fs::create_dir_all(root.join("proc/41")).expect("a folder");
    fs::create_dir_all(root.join("proc/42")).expect("a folder");
    fs::create_dir_all(root.join("proc/self/fd")).expect("a folder");
}

fn groups(root: &Path) {
    write(root, "sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
    write(root, "sys/fs/cgroup/app/memory.max", "2147483648\n");
    write(root, "sys/fs/cgroup/app/memory.current", "1610612736\n");
    write(root, "sys/fs/cgroup/app/memory.stat", "anon 1\ninactive_file 536870912\n");
    write(root, "sys/fs/cgroup/app/worker/memory.max", "max\n");
    write(root, "sys/fs/cgroup/app/worker/cpu.max", "100000 100000\n");
}

/// Reads at two moments ten seconds apart, the slow set in between.
fn twice(root: &Path) -> Snapshot {
    let clock = Arc::new(Hand::default());
    let registry = Registry::default();
    machine(root, false);
    let options =
        CollectorOptions { root: root.to_owned(), clock: clock.clone(), ..Default::default() };
    let _collector = Collector::start(&registry, options).expect("a thread");
    // The thread of the slow set begins with a reading.
    let slow = |read: &Snapshot| read.number("process_count", &[]).is_some();
    while !slow(&registry.read(clock.now())) {
        std::thread::yield_now();
    }
    machine(root, true);
    clock.0.store(10_000, Ordering::Relaxed);
    let read = registry.read(clock.now());
    assert_eq!(registry.problems().into_iter().collect::<Vec<_>>(), []);
    read
}

/// A name, labels and a value.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

#[track_caller]
fn check(read: &Snapshot, expected: &[Expected<'_>]) {
    for (name, labels, value) in expected {
        let found = read.number(name, labels);
        let found = found.unwrap_or_else(|| panic!("{name} {labels:?} is absent"));
        assert!((found - value).abs() < 1e-9, "{name} {labels:?} is {found} and not {value}");
    }
}

#[test]
fn a_machine_is_read_as_its_files_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = twice(folder.path());
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    let gibi = f64::from(1 << 30);
    check(
        &read,
        &[
            ("system_cpu_usage_ratio", &[], 0.7),
            ("cpu_usage", &[], 70.0),
            ("system_cpu_seconds_total", &[("mode", "user")], 1_300.0 / ticks),
            ("system_cpu_count", &[], 2.0),
            ("system_cpu_frequency_hertz", &[], 2.5e9),
            ("process_cpu_seconds_total", &[], 800.0 / ticks),
            ("process_cpu_usage_ratio", &[], 700.0 / ticks / 10.0 / 2.0),
            ("process_cpu_limit", &[("limit_source", "host")], 2.0),
            ("process_resident_memory_bytes", &[], 10.0 * page),
            ("process_start_time_seconds", &[], 1_000.0 + 500.0 / ticks),
            ("process_threads", &[], 9.0),
            ("process_max_fds", &[], 1_024.0),
            ("process_open_connections", &[], 0.0),
            ("process_memory_limit_bytes", &[("limit_source", "host")], 8.0 * gibi),
            ("system_memory_usage_ratio", &[], 0.25),
            ("memory_usage", &[], 25.0),
            ("system_disk_read_bytes_total", &[("device", "sda")], 20.0 * 512.0),
            ("system_disk_writes_total", &[("device", "sda")], 30.0),
            ("system_disk_busy_ratio", &[("device", "sda")], 0.5),
            ("system_network_received_bytes_total", &[("interface", "eth0")], 100.0),
            ("system_network_send_errors_total", &[("interface", "eth0")], 5.0),
            ("network_io", &[("direction", "sent")], 200.0),
            ("system_tcp_time_wait", &[], 4.0),
            ("system_tcp_connections", &[("state", "listen")], 1.0),
            ("system_psi_cpu_some_ratio", &[], 0.25),
            ("system_psi_cpu_some_seconds_total", &[], 2.0),
            ("system_load5", &[], 1.0),
            ("system_threads", &[], 130.0),
            ("process_count", &[], 2.0),
        ],
    );
    // A partition is counted by its disk, and a disk that never did anything has no series.
    assert_eq!(read.number("system_disk_reads_total", &[("device", "sda1")]), None);
    assert_eq!(read.number("system_disk_reads_total", &[("device", "loop0")]), None);
    // There is no file, so there is no series.
    assert_eq!(read.number("system_psi_memory_some_ratio", &[]), None);
}

#[test]
fn the_least_limit_of_the_control_groups_applies_and_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    groups(folder.path());
    let read = twice(folder.path());
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    check(
        &read,
        &[
            ("process_memory_limit_bytes", &[("limit_source", "cgroup")], f64::from(1 << 30) * 2.0),
            ("system_memory_usage_ratio", &[], 0.5),
            ("process_cpu_limit", &[("limit_source", "cgroup")], 1.0),
            ("process_cpu_usage_ratio", &[], 700.0 / ticks / 10.0),
        ],
    );
    assert_eq!(read.number("process_memory_limit_bytes", &[("limit_source", "host")]), None);
}

#[test]
fn a_folder_with_nothing_in_it_gives_no_series_and_no_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::default();
    let root = folder.path().to_owned();
    let options = CollectorOptions { root, ..Default::default() };
    let _collector = Collector::start(&registry, options).expect("a thread");
    for _ in 0..3 {
        let read = registry.read(SystemClock::new().now());
        let own = read.families.iter().filter(|family| {
            let name = &*family.name;
            name.starts_with("process_") || name.starts_with("system_cpu")
        });
        assert_eq!(own.count(), 0);
    }
    assert_eq!(registry.problems().into_iter().collect::<Vec<_>>(), []);
}

#[test]
fn lists_of_devices_keep_their_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    let disks: String =
        (0..100).map(|at| format!(" 8 {at} d{at} 1 0 1 0 1 0 1 0 0 1 0\n")).collect();
    write(folder.path(), "proc/diskstats", &disks);
    let line = "1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0";
    let interfaces: String = (0..100).map(|at| format!("e{at}: {line}\n")).collect();
    write(folder.path(), "proc/net/dev", &interfaces);
    let registry = Registry::default();
    let options = CollectorOptions { root: folder.path().to_owned(), ..Default::default() };
    let _collector = Collector::start(&registry, options).expect("a thread");
    let read = registry.read(SystemClock::new().now());
    for name in ["system_disk_reads_total", "system_network_sent_bytes_total"] {
        let family = read.families.iter().find(|family| &*family.name == name).expect("there");
        assert_eq!(family.series.len(), 32, "{name}");
    }
    // What is over has no series of its own, and still counts.
    assert_eq!(read.number("network_io", &[("direction", "sent")]), Some(100.0));
}

#[test]
fn a_collector_that_is_dropped_reads_no_more() {
    let registry = Registry::default();
    let collector = Collector::start(&registry, CollectorOptions::default()).expect("a thread");
    let now = SystemClock::new().now();
    assert!(registry.read(now).number("process_threads", &[]).is_some());
    drop(collector);
    assert_eq!(registry.read(now).number("process_threads", &[]), None);
}

#[test]
fn this_machine_is_read_through_sysinfo_too() {
    let registry = Registry::default();
    let options = CollectorOptions { portable: true, ..Default::default() };
    let _collector = Collector::start(&registry, options).expect("a thread");
    let clock = SystemClock::new();
    let read = loop {
        let read = registry.read(clock.now());
        if read.number("process_resident_memory_bytes", &[]).is_some() {
            break read;
        }
        std::thread::yield_now();
    };
    let number = |name| read.number(name, &[]).unwrap_or_else(|| panic!("{name} is absent"));
    assert!(number("process_resident_memory_bytes") > 1e6);
    assert!(number("system_memory_total_bytes") > number("process_resident_memory_bytes"));
    assert!(number("system_cpu_count") >= 1.0);
    assert_eq!(registry.problems().into_iter().collect::<Vec<_>>(), []);
}

#[test]
fn the_two_ways_agree_about_this_machine() {
    let total = |portable| {
        let registry = Registry::default();
        let options = CollectorOptions { portable, ..Default::default() };
        let _collector = Collector::start(&registry, options).expect("a thread");
        let clock = SystemClock::new();
        loop {
            let read = registry.read(clock.now());
            if let Some(total) = read.number("system_memory_total_bytes", &[]) {
                break (total, read.number("system_cpu_count", &[]));
            }
            std::thread::yield_now();
        }
    };
    assert_eq!(total(false), total(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_tells_its_workers_and_tasks() {
    let registry = Registry::default();
    let handle = tokio::runtime::Handle::current();
    let clock = Arc::new(Hand::default());
    let options = CollectorOptions {
        runtime: Some(handle),
        clock: clock.clone(),
        ..CollectorOptions::default()
    };
    let _collector = Collector::start(&registry, options).expect("a thread");
    let waiting = tokio::spawn(std::future::pending::<()>());
    let _ = registry.read(clock.now());
    clock.0.store(1_000, Ordering::Relaxed);
    let read = registry.read(clock.now());
    assert_eq!(read.number("tokio_workers", &[]), Some(2.0));
    assert!(read.number("tokio_alive_tasks", &[]) >= Some(1.0));
    let busy = read.number("tokio_busy_ratio", &[]).expect("the second reading");
    assert!((0.0..=1.0).contains(&busy));
    waiting.abort();
}

#[test]
fn everything_that_is_reported_is_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = twice(folder.path());
    let described: Vec<&str> = names::NAMES.iter().map(|(name, ..)| *name).collect();
    for family in read.families.iter().filter(|family| !family.name.starts_with("monitor_")) {
        assert!(described.contains(&&*family.name), "{} is not described", family.name);
        let (_, kind, unit, _) =
            names::NAMES.iter().find(|(name, ..)| *name == &*family.name).expect("found above");
        assert_eq!((family.kind, family.unit), (*kind, *unit), "{}", family.name);
    }
}

#[test]
fn growth_is_told_from_the_second_reading_on() {
    let mut growth = Growth::default();
    let at = Duration::from_secs;
    assert_eq!(growth.per_second("a", 10.0, at(0)), None);
    assert_eq!(growth.per_second("a", 30.0, at(10)), Some(2.0));
    assert_eq!(growth.per_second("a", 20.0, at(20)), None, "it began anew");
    assert_eq!(growth.per_second("a", 30.0, at(20)), None, "no time has passed");
    growth.keep_only(at(30));
    assert_eq!(growth.per_second("a", 40.0, at(40)), None);
}
