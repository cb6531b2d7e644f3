//! Processes that a suite starts, pins to a core, measures and stops.
//!
//! Pinning goes through `taskset`, which becomes the program it starts, so that the id is the program's.
//! CPU time and memory are read from `/proc`.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(15);

/// The two cores that the suite uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    /// The one for the server that is measured, and for nothing else.
    pub(crate) server: usize,
    /// The one for the load and the origin.
    pub(crate) load: usize,
}

impl Cores {
    /// Takes the first two cores that this process may run on, if there are two.
    pub(crate) fn of_this_machine() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Self::of_list(list.trim())
    }

    /// Reads a list such as `0-3,8`.
    fn of_list(list: &str) -> Option<Self> {
        let mut cores = list.split(',').flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            match (first.parse::<usize>(), last.parse::<usize>()) {
                (Ok(first), Ok(last)) => first..last.saturating_add(1),
                _ => 0..0,
            }
        });
        Some(Self { server: cores.next()?, load: cores.next()? })
    }
}

/// Names the first program that the suite needs and this machine does not have.
pub(crate) fn missing_program() -> Option<&'static str> {
    [("taskset", "--version"), ("nginx", "-v"), ("wrk", "-v")]
        .into_iter()
        .find(|(program, argument)| Command::new(program).arg(argument).output().is_err())
        .map(|(program, _)| program)
}

/// A command that will run on one core.
pub(crate) fn pinned(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program).stdin(Stdio::null());
    command
}

/// A running process; it is stopped when its value is dropped, and its children by itself.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a command whose output goes to a file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = File::create(log)?;
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { child })
    }

    /// Tells whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Returns the CPU time that it and its children have taken, user and system.
    pub(crate) fn cpu_time(&self) -> Duration {
        let ticks: u64 = self.family().iter().map(|stat| stat.ticks).sum();
        Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
    }

    /// Returns the resident memory of the process that has worked most: itself or a child, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let busiest = self.family().into_iter().max_by_key(|stat| stat.ticks);
        let status =
            busiest.and_then(|stat| fs::read_to_string(format!("/proc/{}/status", stat.id)).ok());
        let kib = status.as_deref().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        kib.unwrap_or_default() << 10
    }

    fn family(&self) -> Vec<Stat> {
        let id = self.child.id();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|id| Stat::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?))
            .filter(|stat| stat.id == id || stat.parent == id)
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked first: a master that is killed leaves its workers behind.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/proc/ID/stat` tells that is of interest.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    id: u32,
    parent: u32,
    /// CPU time, user and system.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (id, rest) = text.split_once(" (")?;
        // The name stands in parentheses and may hold anything, parentheses too.
        let (_, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            id: id.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: ticks(11)? + ticks(12)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_allowed_cores_are_taken() {
        let cores = |server, load| Some(Cores { server, load });
        assert_eq!(Cores::of_list("0-1"), cores(0, 1));
        assert_eq!(Cores::of_list("2,5-7"), cores(2, 5));
        assert_eq!(Cores::of_list("3"), None);
        assert_eq!(Cores::of_list(""), None);
    }

    #[test]
    fn a_stat_is_read_past_a_name_with_spaces_and_parentheses() {
        let text = "42 (a) (b) c) S 7 42 42 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 5 6 7";
        assert_eq!(Stat::parse(text), Some(Stat { id: 42, parent: 7, ticks: 42 }));
        assert_eq!(Stat::parse("42 (cut"), None);
    }

    #[test]
    fn a_process_has_taken_time_and_memory_and_ends_when_dropped() {
        let directory = tempfile::tempdir().expect("writable");
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        let process = Process::start(&mut command, &directory.path().join("log")).expect("sh");
        let start = Instant::now();
        while process.cpu_time() < Duration::from_millis(50) {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not run");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(process.resident_bytes() > 0);
        let id = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
