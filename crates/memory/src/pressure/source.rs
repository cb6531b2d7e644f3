//! Where readings come from: files of `/proc` and of the control groups, kept open.
//!
//! | file | what | kernel document |
//! |---|---|---|
//! | `/proc/self/statm` | resident pages, pages of address space | `proc_pid_statm(5)` |
//! | `/proc/meminfo` | `MemTotal`, `MemAvailable` | `proc_meminfo(5)` |
//! | `memory.current`, `memory.max`, `memory.high`, `memory.stat` | a group of version 2 | `admin-guide/cgroup-v2.rst` |
//! | `memory.usage_in_bytes`, `memory.limit_in_bytes`, `memory.stat` | a group of version 1 | `admin-guide/cgroup-v1/memory.rst` |
//! | `memory.pressure`, `/proc/pressure/memory` | stalls | `accounting/psi.rst` |
//!
//! `/proc/self/cgroup` names the group in each hierarchy, and `/proc/self/mountinfo` says where the
//! hierarchy is mounted and which of its groups that mount shows, so a container that sees its own
//! group as the root is read right. Version 2 counts where it has the memory controller; a hybrid
//! system has an empty one, and its version 1 is read. Limits of parents bound the group too, so each
//! level up to the mount that has a limit is a source.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{EventKind, Events, LimitedBy};

/// How often groups and limits are looked for anew.
const RESCAN: Duration = Duration::from_secs(10);
/// How soon after a failed read they are.
const RESCAN_AFTER_LOSS: Duration = Duration::from_secs(1);
/// Levels of groups that are followed upwards, at most.
const DEPTH_MAX: usize = 16;
/// Longest file that is read; the kernel's are below 4 KiB.
const FILE_MAX: usize = 8 << 10;
/// From here on a limit of version 1 means that there is none: it is the greatest multiple of a page.
const UNLIMITED: u64 = 1 << 62;

/// What reading has met since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStats {
    /// Readings taken.
    pub readings: u64,
    /// Files that could not be read, or not be understood, and were left out of their reading.
    pub failures: u64,
    /// Times that groups and limits were looked for anew.
    pub rescans: u64,
    /// Groups with a limit that are read now.
    pub limited_groups: usize,
}

/// What the sources said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) rss_bytes: u64,
    pub(super) vms_bytes: u64,
    pub(super) host_bytes: u64,
    pub(super) host_available_bytes: u64,
    pub(super) stalled_percent: Option<f32>,
    /// Use and limit of the group that is nearest to its limit.
    pub(super) group: Option<(u64, u64, LimitedBy)>,
}

/// A small file that is read again and again.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
}

impl Source {
    fn open(path: PathBuf) -> Option<Self> {
        let file = File::open(&path).ok()?;
        Some(Self { path, file })
    }

    fn read<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b str> {
        let length = self.file.read_at(buffer, 0).ok()?;
        std::str::from_utf8(&buffer[..length]).ok()
    }
}

/// The resident bytes of the process, by themselves.
#[derive(Debug)]
pub(crate) struct Resident {
    statm: Option<Source>,
    page_bytes: u64,
}

impl Resident {
    pub(crate) fn new(root: &Path) -> Self {
        let page_bytes = rustix::param::page_size() as u64;
        Self { statm: Source::open(root.join("proc/self/statm")), page_bytes }
    }

    /// Zero where they cannot be read.
    pub(crate) fn bytes(&self) -> u64 {
        let mut buffer = [0; 256];
        let text = self.statm.as_ref().and_then(|it| it.read(&mut buffer));
        text.and_then(statm).map_or(0, |[_, rss]| rss * self.page_bytes)
    }
}

/// A group with a limit.
#[derive(Debug)]
struct Group {
    by: LimitedBy,
    limit: u64,
    usage: Source,
    stat: Option<Source>,
}

#[derive(Debug)]
pub(super) struct Sources {
    root: PathBuf,
    page_bytes: u64,
    process: Option<Source>,
    host: Option<Source>,
    stalls: Option<Source>,
    groups: Vec<Group>,
    rescan_at: Instant,
    buffer: Box<[u8]>,
    stats: SourceStats,
}

impl Sources {
    pub(super) fn new(root: &Path, now: Instant) -> Self {
        let mut sources = Self {
            root: root.to_owned(),
            page_bytes: rustix::param::page_size() as u64,
            process: None,
            host: None,
            stalls: None,
            groups: Vec::new(),
            rescan_at: now + RESCAN,
            buffer: vec![0; FILE_MAX].into_boxed_slice(),
            stats: SourceStats::default(),
        };
        sources.scan();
        sources
    }

    pub(super) fn stats(&self) -> SourceStats {
        SourceStats { limited_groups: self.groups.len(), ..self.stats }
    }

    /// Opens what is there.
    fn scan(&mut self) {
        let at = |path: &str| Source::open(self.root.join(path));
        self.process = at("proc/self/statm");
        self.host = at("proc/meminfo");
        let directories = group_directories(&self.root);
        let own =
            directories.first().and_then(|(_, own)| Source::open(own.join("memory.pressure")));
        self.stalls = own.or_else(|| at("proc/pressure/memory"));
        self.groups = directories.into_iter().filter_map(|(by, it)| Group::open(by, &it)).collect();
    }

    pub(super) fn read(&mut self, now: Instant, events: &mut Events) -> Reading {
        if now >= self.rescan_at {
            self.rescan_at = now + RESCAN;
            self.stats.rescans += 1;
            self.scan();
        }
        self.stats.readings += 1;
        let mut reading = Reading::default();
        let mut lost = Vec::new();
        let buffer = &mut self.buffer[..];

        let pages = take(&mut self.process, buffer, &mut lost, statm);
        if let Some([vms, rss]) = pages {
            reading.rss_bytes = rss * self.page_bytes;
            reading.vms_bytes = vms * self.page_bytes;
        }
        if let Some([total, available]) = take(&mut self.host, buffer, &mut lost, meminfo) {
            reading.host_bytes = total;
            reading.host_available_bytes = available;
        }
        reading.stalled_percent = take(&mut self.stalls, buffer, &mut lost, stalled);

        let share =
            |(used, limit, _): &(u64, u64, LimitedBy)| *used as f64 / (*limit).max(1) as f64;
        let mut nearest: Option<(u64, u64, LimitedBy)> = None;
        self.groups.retain_mut(|group| {
            let Some(usage) = group.usage.read(buffer).and_then(|text| text.trim().parse().ok())
            else {
                lost.push(group.usage.path.clone());
                return false;
            };
            let usage: u64 = usage;
            let field = match group.by {
                LimitedBy::CgroupV1 => "total_inactive_file",
                _ => "inactive_file",
            };
            let droppable = take(&mut group.stat, buffer, &mut lost, |text| field_of(text, field));
            let used = usage.saturating_sub(droppable.unwrap_or(0));
            let this = (used, group.limit, group.by);
            if nearest.is_none_or(|nearest| share(&this) > share(&nearest)) {
                nearest = Some(this);
            }
            true
        });
        reading.group = nearest;

        if !lost.is_empty() {
            self.stats.failures += lost.len() as u64;
            self.rescan_at = self.rescan_at.min(now + RESCAN_AFTER_LOSS);
            for path in lost {
                events.push(now, EventKind::SourceLost { path });
            }
        }
        reading
    }
}

/// Reads one source; one that fails is closed and noted.
fn take<T>(
    source: &mut Option<Source>,
    buffer: &mut [u8],
    lost: &mut Vec<PathBuf>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let open = source.as_ref()?;
    let value = open.read(buffer).and_then(parse);
    if value.is_none()
        && let Some(source) = source.take()
    {
        lost.push(source.path);
    }
    value
}

impl Group {
    /// Opens a group that has a limit.
    fn open(by: LimitedBy, directory: &Path) -> Option<Self> {
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
        };
        let (usage, limit) = match by {
            // "max" is no number, and no limit.
            LimitedBy::CgroupV2 => {
                let limits = [number("memory.max"), number("memory.high")];
                ("memory.current", limits.into_iter().flatten().min())
            }
            _ => ("memory.usage_in_bytes", number("memory.limit_in_bytes")),
        };
        let limit = limit.filter(|limit| *limit < UNLIMITED)?;
        let usage = Source::open(directory.join(usage))?;
        Some(Self { by, limit, usage, stat: Source::open(directory.join("memory.stat")) })
    }
}

/// The directories of the process's group and of its parents, own first.
fn group_directories(root: &Path) -> Vec<(LimitedBy, PathBuf)> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let versions =
        [(LimitedBy::CgroupV2, "memory.current"), (LimitedBy::CgroupV1, "memory.usage_in_bytes")];
    for (by, file) in versions {
        let Some(group) = groups.lines().find_map(|line| group_of(line, by)) else { continue };
        for mount in mounts.lines().filter_map(|line| Mount::parse(line, by)) {
            let directories: Vec<_> = mount
                .levels(root, group)
                .into_iter()
                .filter(|directory| directory.join(file).exists())
                .map(|directory| (by, directory))
                .collect();
            if !directories.is_empty() {
                return directories;
            }
        }
    }
    Vec::new()
}

/// The group that a line of `/proc/self/cgroup` names, if it is the one with the memory controller.
fn group_of(line: &str, by: LimitedBy) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let wanted = match by {
        LimitedBy::CgroupV2 => number == "0" && controllers.is_empty(),
        _ => controllers.split(',').any(|controller| controller == "memory"),
    };
    // A group that was removed meanwhile carries this mark.
    wanted.then(|| path.trim_end_matches(" (deleted)"))
}

/// A mounted hierarchy.
#[derive(Debug)]
struct Mount {
    /// The group that the mount shows.
    shows: String,
    point: String,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo`, if it is of a hierarchy with the memory controller.
    fn parse(line: &str, by: LimitedBy) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let wanted = match by {
            LimitedBy::CgroupV2 => kind == "cgroup2",
            _ => {
                let options = after.nth(1)?;
                kind == "cgroup" && options.split(',').any(|option| option == "memory")
            }
        };
        let mut before = before.split(' ').skip(3);
        let (shows, point) = (before.next()?, before.next()?);
        wanted.then(|| Self { shows: unescaped(shows), point: unescaped(point) })
    }

    /// The directories of a group and of its parents, as far as the mount shows them.
    fn levels(&self, root: &Path, group: &str) -> Vec<PathBuf> {
        let point = root.join(self.point.trim_start_matches('/'));
        let below = Path::new(group).strip_prefix(&self.shows).ok();
        // A path with ".." lies outside of this process's name space: the mount is all there is to see.
        let outside =
            |path: &&Path| path.components().any(|it| it == std::path::Component::ParentDir);
        let below = below.filter(|path| !outside(path)).unwrap_or(Path::new(""));
        let own = point.join(below.strip_prefix("/").unwrap_or(below));
        own.ancestors()
            .take_while(|level| level.starts_with(&point))
            .take(DEPTH_MAX)
            .map(Path::to_owned)
            .collect()
    }
}

/// Undoes the octal escapes of `mountinfo`: space, tab, line feed and backslash.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// Pages of address space, and resident ones.
fn statm(text: &str) -> Option<[u64; 2]> {
    let mut words = text.split_ascii_whitespace();
    Some([words.next()?.parse().ok()?, words.next()?.parse().ok()?])
}

/// Total and available bytes.
fn meminfo(text: &str) -> Option<[u64; 2]> {
    Some([field_of(text, "MemTotal:")? << 10, field_of(text, "MemAvailable:")? << 10])
}

/// The `avg10` of the line `some`.
fn stalled(text: &str) -> Option<f32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// The number after a name at the start of a line.
fn field_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start().split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_files_are_read() {
        assert_eq!(statm("2512 380 300 5 0 93 0\n"), Some([2512, 380]));
        let text = "MemTotal:       24683524 kB\nMemFree: 1 kB\nMemAvailable:   23811000 kB\n";
        assert_eq!(meminfo(text), Some([24_683_524 << 10, 23_811_000 << 10]));
        let text = "some avg10=12.50 avg60=0.00 avg300=0.00 total=0\nfull avg10=1.00 total=0\n";
        assert_eq!(stalled(text), Some(12.5));
        assert_eq!(field_of("total_inactive_file 7\ninactive_file 8\n", "inactive_file"), Some(8));
        for garbage in ["", "x", "1", "some", "some avg10=x", "MemTotal: kB"] {
            assert_eq!((statm(garbage), meminfo(garbage)), (None, None), "{garbage}");
            assert_eq!(stalled(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_group_is_named_by_its_controller() {
        let line = "4:cpu,memory:/docker/a b";
        assert_eq!(group_of(line, LimitedBy::CgroupV1), Some("/docker/a b"));
        assert_eq!(group_of(line, LimitedBy::CgroupV2), None);
        assert_eq!(group_of("0::/user.slice (deleted)", LimitedBy::CgroupV2), Some("/user.slice"));
        assert_eq!(group_of("1:name=systemd:/x", LimitedBy::CgroupV1), None);
    }

    /// Levels under a mount that shows `shows`, for a process in `group`.
    fn check_levels(shows: &str, group: &str, levels: &[&str]) {
        let mount = Mount { shows: shows.to_owned(), point: "/sys/fs/cgroup".to_owned() };
        let found = mount.levels(Path::new("/t"), group);
        let expected: Vec<_> = levels.iter().map(|level| Path::new("/t").join(level)).collect();
        assert_eq!(found, expected, "{shows} {group}");
    }

    #[test]
    fn a_group_is_found_below_what_the_mount_shows() {
        check_levels("/", "/a/b", &["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"]);
        check_levels("/docker/x", "/docker/x", &["sys/fs/cgroup"]);
        check_levels("/docker/x", "/docker/x/y", &["sys/fs/cgroup/y", "sys/fs/cgroup"]);
        check_levels("/", "/../../elsewhere", &["sys/fs/cgroup"]);
        check_levels("/docker/x", "/other", &["sys/fs/cgroup"]);
    }

    #[test]
    fn a_mount_is_read_with_and_without_optional_fields() {
        let plain = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        let mount = Mount::parse(plain, LimitedBy::CgroupV1).expect("it has the controller");
        assert_eq!((mount.shows.as_str(), mount.point.as_str()), ("/", "/sys/fs/cgroup/memory"));
        let shared = "41 31 0:32 /x /a\\040b rw shared:9 master:1 - cgroup2 none rw";
        let mount = Mount::parse(shared, LimitedBy::CgroupV2).expect("it is version 2");
        assert_eq!((mount.shows.as_str(), mount.point.as_str()), ("/x", "/a b"));
        assert!(Mount::parse(plain, LimitedBy::CgroupV2).is_none());
        assert!(
            Mount::parse("35 31 0:32 / /x rw - cgroup cgroup rw,cpu", LimitedBy::CgroupV1)
                .is_none()
        );
    }
}
