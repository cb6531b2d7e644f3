//! What takes longer than a tick may: walks over `/proc`, lists of connections, limits.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{CollectorOptions, Slow, parse};

/// Longest list of connections that is counted; a longer one has no series.
const LIST_BYTES_MAX: u64 = 8 << 20;
/// Descriptors of this process that are looked at, to tell connections from files.
const DESCRIPTORS_MAX: usize = 20_000;

/// Reads the slow set, but for the file systems.
pub(super) fn read(options: &CollectorOptions) -> Slow {
    let proc = options.root.join("proc");
    let mut slow = Slow::default();

    let processes = fs::read_dir(&proc).map(|entries| {
        let is_process =
            |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        entries.flatten().filter(|entry| is_process(&entry.file_name())).count()
    });
    if let Ok(processes @ 1..) = processes {
        slow.gauge("process_count", &[], processes as f64);
        slow.gauge("system_processes", &[], processes as f64);
    }

    // Longer than most: several kilobytes for each processor.
    if let Some(hertz) = file(&proc.join("cpuinfo")).and_then(|text| parse::frequency(&text)) {
        slow.gauge("system_cpu_frequency_hertz", &[], hertz);
    }

    let mut counts = [0; 12];
    let lists = ["net/tcp", "net/tcp6"].map(|name| file(&proc.join(name)));
    if lists[0].is_some() {
        lists.iter().flatten().for_each(|text| parse::tcp_states(text, &mut counts));
        for (state, count) in parse::TCP_STATES.iter().zip(counts) {
            slow.gauge("system_tcp_connections", &[("state", state)], count as f64);
        }
    }

    let limits = file(&proc.join("self/limits"));
    if let Some(limit) = limits.and_then(|text| parse::open_files_limit(&text)) {
        slow.gauge("process_max_fds", &[], limit as f64);
    }
    if let Ok(entries) = fs::read_dir(proc.join("self/fd")) {
        let is_socket = |path: PathBuf| {
            fs::read_link(path)
                .is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
        };
        let sockets = entries.flatten().take(DESCRIPTORS_MAX);
        let sockets = sockets.filter(|entry| is_socket(entry.path())).count();
        slow.gauge("process_open_connections", &[], sockets as f64);
    }

    limits_of_group(&options.root, &mut slow);
    slow
}

/// Finds the least limits of the own control group and those above it.
///
/// In a container the own group is the root of what can be seen, and carries the limit.
fn limits_of_group(root: &Path, slow: &mut Slow) {
    let Some(text) = file(&root.join("proc/self/cgroup")) else { return };
    let Some(group) = parse::cgroup(&text) else { return };
    let mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"].map(|mount| root.join(mount));
    let Some(mount) = mounts.iter().find(|mount| mount.join("cgroup.controllers").exists()) else {
        return;
    };
    let mut at = mount.join(group);
    loop {
        if let Some(limit) = file(&at.join("memory.max")).and_then(|text| parse::limit(&text))
            && slow.memory_limit.as_ref().is_none_or(|(least, _)| limit < *least)
        {
            slow.memory_limit = Some((limit, at.clone()));
        }
        if let Some(limit) = file(&at.join("cpu.max")).and_then(|text| parse::cpu_limit(&text)) {
            slow.cpu_limit = Some(slow.cpu_limit.map_or(limit, |least: f64| least.min(limit)));
        }
        if at == *mount || !at.pop() {
            return;
        }
    }
}

/// Returns what a file holds, unless it is too long or cannot be read.
fn file(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let read = fs::File::open(path).ok()?.take(LIST_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
    (read as u64 <= LIST_BYTES_MAX).then_some(text)
}
