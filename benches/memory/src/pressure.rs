//! What one reading of the pressure costs, on this machine and with a limited group.

use std::fs;
use std::hint::black_box;
use std::io;
use std::time::Instant;

use memory::{PressureMonitor, PressureSettings};
use ultra_perf_bench::{Clock, Suite};

use crate::allocators;

/// Readings of a round.
const READINGS: usize = 2_000;
/// The target, in nanoseconds.
const MOST: f64 = 30_000.0;

pub(crate) fn rows(suite: &mut Suite) -> io::Result<()> {
    if allocators::name() != "malloc" {
        return Ok(());
    }
    let mut own = monitor(PressureSettings::default())?;
    suite
        .time("pressure sample, this machine", Clock::Cpu, READINGS as u64)
        .at_most(MOST)
        .measure(|| readings(&mut own));

    // The same /proc, and a group that names this one's files with a limit of its own: where the tree is
    // made up, reading it costs what plain files cost; the kernel's own files are in the row above.
    let group = group()?;
    let mut limited = monitor(PressureSettings::default().root(group.path()))?;
    suite
        .time("pressure sample, group with a limit, made-up files", Clock::Cpu, READINGS as u64)
        .at_most(MOST)
        .measure(|| readings(&mut limited));
    Ok(())
}

fn monitor(settings: PressureSettings) -> io::Result<PressureMonitor> {
    PressureMonitor::new(settings, Instant::now()).map_err(io::Error::other)
}

fn readings(monitor: &mut PressureMonitor) {
    for _ in 0..READINGS {
        black_box(monitor.observe(Instant::now()));
    }
}

/// A made-up tree with `/proc` and one limited group of version 2.
fn group() -> io::Result<tempfile::TempDir> {
    let tree = tempfile::tempdir()?;
    let write = |path: &str, text: &str| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(tree.path()))?;
        fs::write(path, text)
    };
    for file in ["proc/self/statm", "proc/meminfo", "proc/pressure/memory"] {
        write(file, &fs::read_to_string(format!("/{file}")).unwrap_or_default())?;
    }
    write("proc/self/cgroup", "0::/app\n")?;
    write("proc/self/mountinfo", "24 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")?;
    write("sys/fs/cgroup/app/memory.current", "1000000000\n")?;
    write("sys/fs/cgroup/app/memory.max", "2000000000\n")?;
    let stat: String = (0..60).map(|line| format!("field_{line} 123456789\n")).collect();
    write("sys/fs/cgroup/app/memory.stat", &format!("{stat}inactive_file 1000\n{stat}"))?;
    Ok(tree)
}
