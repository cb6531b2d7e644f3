//! Every level and every limit, from made-up trees of `/proc` and control groups.

use std::fs;

use super::*;
use crate::GuardError;

const MIB: u64 = 1 << 20;

/// A made-up system. Files that are rewritten keep their inode, as the kernel's do.
struct Tree(tempfile::TempDir);

impl Tree {
    /// A host of 1,000 MiB with `available` of them free, and no control group.
    fn host(available: u64) -> Self {
        let tree = Self(tempfile::tempdir().expect("a directory"));
        tree.rss(10);
        tree.available(available);
        tree
    }

    fn write(&self, path: &str, text: impl AsRef<str>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
        fs::write(path, text.as_ref()).expect("writable");
    }

    fn rss(&self, mib: u64) {
        let pages = mib * MIB / rustix::param::page_size() as u64;
        self.write("proc/self/statm", format!("{} {pages} 1 1 0 1 0\n", 2 * pages));
    }

    fn available(&self, mib: u64) {
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", 1_000 << 10, mib << 10);
        self.write("proc/meminfo", text);
    }

    fn v2(self, group: &str) -> Self {
        self.write("proc/self/cgroup", format!("0::{group}\n"));
        let line = "24 30 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        self.write("proc/self/mountinfo", line);
        self
    }

    fn v2_group(&self, group: &str, use_mib: u64, file_mib: u64, max: &str) {
        let at = |name: &str| format!("sys/fs/cgroup{group}/{name}");
        self.write(&at("memory.current"), format!("{}\n", use_mib * MIB));
        self.write(&at("memory.stat"), format!("anon 1\ninactive_file {}\n", file_mib * MIB));
        self.write(&at("memory.max"), max);
    }

    fn v1(self, group: &str) -> Self {
        let text = format!("4:memory:{group}\n2:cpu:/\n0::/\n");
        self.write("proc/self/cgroup", text);
        let lines = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     41 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        self.write("proc/self/mountinfo", lines);
        self.write("sys/fs/cgroup/unified/cgroup.controllers", "\n");
        self
    }

    fn v1_group(&self, group: &str, use_mib: u64, file_mib: u64, limit: &str) {
        let at = |name: &str| format!("sys/fs/cgroup/memory{group}/{name}");
        self.write(&at("memory.usage_in_bytes"), format!("{}\n", use_mib * MIB));
        self.write(&at("memory.stat"), format!("total_inactive_file {}\n", file_mib * MIB));
        self.write(&at("memory.limit_in_bytes"), limit);
    }

    fn monitor(&self, now: Instant) -> PressureMonitor {
        self.monitor_with(PressureSettings::default(), now)
    }

    fn monitor_with(&self, settings: PressureSettings, now: Instant) -> PressureMonitor {
        PressureMonitor::new(settings.root(self.0.path()), now).expect("valid settings")
    }
}

/// What decides, and by how many MiB of how many.
fn decided(sample: &MemorySample) -> (LimitedBy, u64, u64) {
    (sample.limited_by, sample.used_bytes / MIB, sample.limit_bytes / MIB)
}

#[test]
fn without_groups_the_host_decides_by_what_this_process_could_grow_to() {
    let now = Instant::now();
    let tree = Tree::host(500);
    let mut monitor = tree.monitor(now);
    let sample = monitor.observe(now);
    assert_eq!(decided(&sample), (LimitedBy::Host, 10, 510));
    assert_eq!((sample.level, sample.vms_bytes), (Level::Normal, 20 * MIB));
    // A full host alone does not make a small process guilty; a large one is.
    tree.available(60);
    assert_eq!(monitor.observe(now).level, Level::Normal);
    tree.rss(900);
    assert_eq!(monitor.observe(now).level, Level::High);
}

#[test]
fn a_group_of_version_2_counts_without_the_files_that_the_kernel_drops() {
    let now = Instant::now();
    let tree = Tree::host(900).v2("/app");
    tree.v2_group("/app", 150, 90, &format!("{}\n", 100 * MIB));
    let sample = tree.monitor(now).observe(now);
    assert_eq!(decided(&sample), (LimitedBy::CgroupV2, 60, 100));
    // memory.high is where the kernel begins to slow the group down: the lower of the two counts.
    tree.write("sys/fs/cgroup/app/memory.high", format!("{}\n", 64 * MIB));
    let sample = tree.monitor(now).observe(now);
    assert_eq!((decided(&sample), sample.level), ((LimitedBy::CgroupV2, 60, 64), Level::High));
}

#[test]
fn the_parent_s_limit_bounds_as_well() {
    let now = Instant::now();
    let tree = Tree::host(900).v2("/slice/app");
    tree.v2_group("/slice/app", 50, 0, "max\n");
    tree.v2_group("/slice", 180, 0, &format!("{}\n", 200 * MIB));
    let mut monitor = tree.monitor(now);
    assert_eq!(decided(&monitor.observe(now)), (LimitedBy::CgroupV2, 180, 200));
    assert_eq!(monitor.source_stats().limited_groups, 1);
}

#[test]
fn a_hybrid_system_is_read_by_version_1() {
    let now = Instant::now();
    let tree = Tree::host(900).v1("/docker/a");
    tree.v1_group("/docker/a", 120, 20, &format!("{}\n", 128 * MIB));
    let sample = tree.monitor(now).observe(now);
    assert_eq!(decided(&sample), (LimitedBy::CgroupV1, 100, 128));
    tree.v1_group("/docker/a", 120, 20, "9223372036854771712\n");
    let sample = tree.monitor(now).observe(now);
    assert_eq!(sample.limited_by, LimitedBy::Host, "that number means no limit");
}

#[test]
fn the_nearest_of_all_limits_decides() {
    let now = Instant::now();
    let tree = Tree::host(900).v2("/app");
    tree.rss(40);
    tree.v2_group("/app", 60, 0, &format!("{}\n", 100 * MIB));
    let with = |limit: u64| {
        let settings = PressureSettings::default().limit_bytes(limit * MIB);
        decided(&tree.monitor_with(settings, now).observe(now))
    };
    assert_eq!(with(1_000), (LimitedBy::CgroupV2, 60, 100));
    assert_eq!(with(50), (LimitedBy::User, 40, 50));
}

#[test]
fn the_level_follows_the_readings_and_is_told() {
    let start = Instant::now();
    let tree = Tree::host(900);
    let mut monitor = tree.monitor_with(PressureSettings::default().limit_bytes(100 * MIB), start);
    let mut levels = Vec::new();
    for (step, rss) in [50, 70, 80, 95, 30, 30, 30, 30].into_iter().enumerate() {
        tree.rss(rss);
        let now = start + Duration::from_secs(step as u64);
        levels.push(monitor.observe(now).level.as_str());
    }
    let expected =
        ["normal", "elevated", "high", "critical", "critical", "critical", "normal", "normal"];
    assert_eq!(levels, expected);
    let changes: Vec<_> = monitor
        .events()
        .into_iter()
        .map(|event| match event.kind {
            EventKind::LevelChanged { from, to } => (event.number, from, to),
            other => panic!("{other:?}"),
        })
        .collect();
    let (n, e, h, c) = (Level::Normal, Level::Elevated, Level::High, Level::Critical);
    assert_eq!(changes, [(1, n, e), (2, e, h), (3, h, c), (4, c, n)]);
    assert_eq!(monitor.seconds().len(), 8);
    assert_eq!(monitor.seconds()[3].level_max, Level::Critical);
}

#[test]
fn stalls_of_the_group_or_of_the_host_lift_the_level() {
    let now = Instant::now();
    let tree = Tree::host(900);
    tree.write("proc/pressure/memory", "some avg10=50.00 avg60=0.00 avg300=0.00 total=0\n");
    let sample = tree.monitor(now).observe(now);
    assert_eq!((sample.level, sample.stalled_percent), (Level::Elevated, Some(50.0)));
    let tree = tree.v2("/app");
    tree.v2_group("/app", 1, 0, "max\n");
    tree.write("sys/fs/cgroup/app/memory.pressure", "some avg10=0.00 avg60=0.00 total=0\n");
    let sample = tree.monitor(now).observe(now);
    assert_eq!((sample.level, sample.stalled_percent), (Level::Normal, Some(0.0)));
}

#[test]
fn a_limit_below_the_use_is_told_once_and_again_when_it_has_changed() {
    let start = Instant::now();
    let tree = Tree::host(900).v2("/app");
    tree.v2_group("/app", 80, 0, &format!("{}\n", 50 * MIB));
    let mut monitor = tree.monitor(start);
    monitor.observe(start);
    monitor.observe(start);
    tree.v2_group("/app", 80, 0, &format!("{}\n", 60 * MIB));
    monitor.observe(start + Duration::from_secs(11));
    let told: Vec<_> = monitor
        .events()
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::LimitBelowUse { limit_bytes, used_bytes } => {
                Some((limit_bytes / MIB, used_bytes / MIB))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [(50, 80), (60, 80)]);
}

#[test]
fn a_file_that_cannot_be_read_any_more_is_left_out_counted_and_looked_for_again() {
    let start = Instant::now();
    let tree = Tree::host(900).v2("/app");
    tree.v2_group("/app", 60, 0, &format!("{}\n", 100 * MIB));
    let mut monitor = tree.monitor(start);
    assert_eq!(monitor.observe(start).limited_by, LimitedBy::CgroupV2);
    tree.write("sys/fs/cgroup/app/memory.current", "");
    assert_eq!(monitor.observe(start).limited_by, LimitedBy::Host);
    assert_eq!(monitor.observe(start).limited_by, LimitedBy::Host);
    let stats = monitor.source_stats();
    assert_eq!((stats.failures, stats.limited_groups, stats.readings), (1, 0, 3));
    let lost = monitor.events().into_iter().any(|event| match event.kind {
        EventKind::SourceLost { path } => path.ends_with("app/memory.current"),
        _ => false,
    });
    assert!(lost, "{:?}", monitor.events());
    tree.v2_group("/app", 60, 0, &format!("{}\n", 100 * MIB));
    assert_eq!(monitor.observe(start + Duration::from_secs(1)).limited_by, LimitedBy::CgroupV2);
    assert_eq!(monitor.source_stats().rescans, 1);
}

#[test]
fn each_file_may_be_missing_or_garbage_and_the_rest_is_read() {
    let now = Instant::now();
    for file in ["proc/self/statm", "proc/meminfo", "sys/fs/cgroup/app/memory.stat"] {
        for text in ["", "garbage", "-1 -1", "\u{fffd}"] {
            let tree = Tree::host(900).v2("/app");
            tree.v2_group("/app", 60, 10, &format!("{}\n", 100 * MIB));
            tree.write(file, text);
            let mut monitor = tree.monitor(now);
            let sample = monitor.observe(now);
            let used = if file.ends_with("stat") && file.contains("memory") { 60 } else { 50 };
            assert_eq!(decided(&sample), (LimitedBy::CgroupV2, used, 100), "{file} {text}");
            assert_eq!(monitor.source_stats().failures, 1, "{file} {text}");
        }
    }
}

#[test]
fn without_any_source_the_level_is_normal_and_nothing_is_made_up() {
    let now = Instant::now();
    let empty = Tree(tempfile::tempdir().expect("a directory"));
    let sample = empty.monitor(now).observe(now);
    assert_eq!(sample, MemorySample::default());
    assert_eq!(sample.percent(), 0.0);
    for text in ["", "::", "0:", "0::/../..", "x:memory", "\u{0}"] {
        let tree = Tree::host(900).v2("/app");
        tree.write("proc/self/cgroup", text);
        tree.write("proc/self/mountinfo", "- cgroup2\n - cgroup2 x\n1 2 3 / / - cgroup\n");
        assert_eq!(tree.monitor(now).observe(now).limited_by, LimitedBy::Host, "{text:?}");
    }
}

#[test]
fn wrong_settings_are_all_told_at_once() {
    let mut thresholds = Thresholds::cleanup_at(0.8);
    thresholds.critical = 0.5;
    let settings = PressureSettings::default().limit_bytes(0).thresholds(thresholds);
    let error = PressureMonitor::new(settings, Instant::now()).expect_err("two problems");
    assert!(matches!(&error, GuardError::Invalid(problems) if problems.len() == 2));
    assert_eq!(
        error.to_string(),
        "invalid settings, 2 problems:\n  limit_bytes = 0: must be at least 1, or left out\n  \
         elevated = 0.7, high = 0.8, critical = 0.5: must rise from above 0 to at most 1"
    );
    for high in [0.05, 0.5, 0.75, 0.8, 0.9, 0.94, 0.95, 0.99] {
        assert_eq!(Thresholds::cleanup_at(high).problem(), None, "{high}");
    }
    for high in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(Thresholds::cleanup_at(high).problem().is_some(), "{high}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn this_machine_can_be_read() {
    let now = Instant::now();
    let mut monitor = PressureMonitor::new(PressureSettings::default(), now).expect("valid");
    let sample = monitor.observe(now);
    assert!(sample.rss_bytes > 100_000 && sample.vms_bytes >= sample.rss_bytes, "{sample:?}");
    assert!(sample.host_bytes > sample.rss_bytes, "{sample:?}");
    assert_ne!(sample.limited_by, LimitedBy::Nothing);
    assert_eq!(monitor.source_stats().failures, 0);
}
