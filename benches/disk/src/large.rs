//! Two GiB in the segment log: the memory that an open one takes, and how long it takes to open.
//!
//! A killed process leaves what was flushed and nothing that closing writes: a copy of the files of a log
//! that is still open. Times are given for ten GB, five times what was measured.

use std::path::Path;

use tempfile::TempDir;
use ultra_perf_bench::{Clock, Stopwatch, Suite, median};

use crate::engine::segment_log;
use crate::workload::{VALUE_BYTES, Workload};

const ENTRIES: u32 = 2 << 20;
const READINGS: usize = 3;
/// What the documentation of the segment log says that an entry takes in memory, at most, and 16 MiB of
/// buffers.
const MEMORY_PER_ENTRY: f64 = 65.0 + (16 << 20) as f64 / ENTRIES as f64;

const MEMORY: &str = "memory of an open log of 2 GiB, per entry";
const OPEN: &str = "open after a restart, per 10 GB";
const OPEN_CRASHED: &str = "open after a crash, per 10 GB";

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    if ![MEMORY, OPEN, OPEN_CRASHED].iter().any(|case| suite.wants(case)) {
        return;
    }
    let workload = Workload::new(ENTRIES, 1);
    let directory = temporary();
    let before = resident_bytes();
    let log = segment_log(directory.path());
    for entry in 0..workload.entries() {
        log.put(workload.key(entry), workload.value(entry).as_bytes());
    }
    log.flush();
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        let per_entry = after.saturating_sub(before) as f64 / f64::from(ENTRIES);
        suite.reported(MEMORY, "B").at_most(MEMORY_PER_ENTRY).observed(per_entry);
    }
    let crashed = temporary();
    copy_files(directory.path(), crashed.path());
    drop(log);

    let scale = 10e9 / workload.bytes() as f64;
    let open = |path: &Path| {
        let watch = Stopwatch::start(Clock::Wall);
        let log = segment_log(path);
        let seconds = watch.elapsed().as_secs_f64();
        assert_eq!(log.get(workload.key(0)), VALUE_BYTES);
        seconds * scale
    };
    if suite.wants(OPEN) {
        let seconds = [(); READINGS].map(|()| open(directory.path()));
        suite.reported(OPEN, "s").at_most(1.0).observed(median(&seconds).expect("some"));
    }
    drop(directory);
    if suite.wants(OPEN_CRASHED) {
        let seconds = [(); READINGS].map(|()| {
            let image = temporary();
            copy_files(crashed.path(), image.path());
            open(image.path())
        });
        suite.reported(OPEN_CRASHED, "s").at_most(10.0).observed(median(&seconds).expect("some"));
    }
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("the temporary directory is writable")
}

/// The memory of this process that is in RAM, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("the directory can be listed") {
        let entry = entry.expect("the directory can be listed");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("the file can be copied");
    }
}
