//! What the machine and this process use, for the admin API.
//!
//! Readings are taken when somebody asks, and at most twice a second: CPU use is a difference
//! between two readings and means nothing over shorter times.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

const EVERY: Duration = Duration::from_millis(500);

/// The system's use of its resources.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct SystemResources {
    pub(crate) cpu_percent: f32,
    pub(crate) memory_percent: f64,
    /// Bytes that can be given out without swapping.
    pub(crate) memory_available: u64,
}

/// The memory of this process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct ProcessMemory {
    pub(crate) rss: u64,
    pub(crate) vms: u64,
    /// Share of the machine's memory.
    pub(crate) percent: f64,
}

/// Reads the machine.
#[derive(Debug)]
pub(crate) struct Machine(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    system: System,
    at: Instant,
}

impl Machine {
    /// Begins to watch; on a system that cannot be read, everything stays zero.
    pub(crate) fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            refresh(system);
        }
        Self(Mutex::new(system.map(|system| State { system, at: Instant::now() })))
    }

    /// The readings, half a second old at most. Takes about a millisecond, so not on an async thread.
    pub(crate) fn read(&self) -> (SystemResources, ProcessMemory) {
        let mut state = self.0.lock();
        let Some(State { system, at }) = &mut *state else { return Default::default() };
        if at.elapsed() >= EVERY {
            refresh(system);
            *at = Instant::now();
        }
        let total = system.total_memory().max(1) as f64;
        let resources = SystemResources {
            cpu_percent: system.global_cpu_usage(),
            memory_percent: 100.0 * system.used_memory() as f64 / total,
            memory_available: system.available_memory(),
        };
        let process = system.process(Pid::from_u32(std::process::id()));
        let process = process.map_or_else(ProcessMemory::default, |process| ProcessMemory {
            rss: process.memory(),
            vms: process.virtual_memory(),
            percent: 100.0 * process.memory() as f64 / total,
        });
        (resources, process)
    }
}

fn refresh(system: &mut System) {
    system.refresh_cpu_usage();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let this = [Pid::from_u32(std::process::id())];
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&this), false, kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_the_machine_has_more() {
        let (system, process) = Machine::new().read();
        assert!(process.rss > 0 && process.vms >= process.rss, "{process:?}");
        assert!(system.memory_available > process.rss, "{system:?}");
        assert!((0.0..100.0).contains(&process.percent), "{process:?}");
    }
}
