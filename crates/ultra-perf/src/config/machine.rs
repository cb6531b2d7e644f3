//! What the defaults need to know about the machine.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// Describes the machine as far as defaults depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Memory that the process may use: the machine's, or its control group's where that is less.
    pub memory_bytes: u64,
    /// Threads that can run at the same time.
    pub cores: usize,
    /// The user's directory for caches, if there is a home directory.
    pub cache_dir: Option<PathBuf>,
    /// The user's directory for what programs keep between runs, if there is a home directory.
    pub state_dir: Option<PathBuf>,
    /// What the program is called, by the name of its file.
    pub program: Option<String>,
}

impl Machine {
    /// Reads the figures of this machine.
    ///
    /// # Cost
    ///
    /// Reads a handful of small files; meant for start-up.
    #[must_use]
    pub fn detect() -> Self {
        let dirs = etcetera::base_strategy::choose_native_strategy().ok();
        Self {
            memory_bytes: usable_memory().unwrap_or(ASSUMED_MEMORY_BYTES),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cache_dir: dirs.as_ref().map(BaseStrategy::cache_dir),
            // Systems without such a directory keep it with the data.
            state_dir: dirs.map(|dirs| dirs.state_dir().unwrap_or_else(|| dirs.data_dir())),
            program: std::env::current_exe().ok().as_deref().and_then(program),
        }
    }

    /// The directory under `base` that is this program's: no other program's default is the same.
    pub(super) fn own_dir(&self, base: Option<&PathBuf>) -> Option<PathBuf> {
        let base = base.filter(|dir| dir.is_absolute())?;
        Some(match self.program.as_deref() {
            None | Some(OURS) => base.join(OURS),
            Some(program) => base.join(program).join(OURS),
        })
    }
}

/// The program of this project, and in the directories of others what is this library's.
const OURS: &str = "ultra-perf";

/// The name of a program whose file this is, without what changes from build to build.
fn program(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    // A file that was replaced while it runs is called so by Linux.
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let name = name.strip_suffix(std::env::consts::EXE_SUFFIX).unwrap_or(name);
    // What cargo builds to run once, such as tests, has a hash in its name.
    let is_hash = |hash: &str| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    let name = match name.rsplit_once('-') {
        Some((name, hash)) if is_hash(hash) && !name.is_empty() => name,
        _ => name,
    };
    (!name.is_empty()).then(|| name.to_owned())
}

/// Assumed where the system does not tell: enough for the full default of the memory tier.
const ASSUMED_MEMORY_BYTES: u64 = 1 << 30;

fn usable_memory() -> Option<u64> {
    let ram = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(ram).ok()?;
    // The root control group speaks for a container, the process's own one for a service manager.
    let of_system = system.cgroup_limits();
    let of_process = sysinfo::get_current_pid().ok().and_then(|pid| {
        let only_this = ProcessesToUpdate::Some(&[pid]);
        system.refresh_processes_specifics(only_this, true, ProcessRefreshKind::nothing());
        system.process(pid)?.cgroup_limits()
    });
    let limits = [of_system, of_process].into_iter().flatten().map(|limits| limits.total_memory);
    limits.chain([system.total_memory()]).filter(|total| *total > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_cores() {
        let machine = Machine::detect();
        assert!(machine.memory_bytes >= 64 << 20, "{machine:?}");
        assert!(machine.cores >= 1);
        if let Some(dir) = machine.cache_dir {
            assert!(dir.is_absolute());
        }
        let program = machine.program.expect("the tests are a program");
        assert!(!program.contains('/') && !program.is_empty(), "{program}");
    }

    #[test]
    fn a_program_is_called_as_its_file_whatever_the_build() {
        for (file, name) in [
            ("/usr/bin/shop", Some("shop")),
            ("/usr/bin/shop-2.1", Some("shop-2.1")),
            ("/usr/bin/shop (deleted)", Some("shop")),
            ("/target/debug/deps/handle-0123456789abcdef", Some("handle")),
            ("/bin/-0123456789abcdef", Some("-0123456789abcdef")),
            ("/", None),
        ] {
            assert_eq!(program(Path::new(file)).as_deref(), name, "{file}");
        }
    }
}
