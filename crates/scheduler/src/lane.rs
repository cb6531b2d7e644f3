//! The lanes: where a task runs, and so what it may do.

use std::fmt;

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Futures, on the tokio runtime that the scheduler was given.
    Io,
    /// Closures that compute, on the scheduler's own rayon pool.
    Cpu,
    /// Closures that wait in the kernel, on tokio's blocking threads.
    Blocking,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 3] = [Self::Io, Self::Cpu, Self::Blocking];

    /// Returns the lane's place in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the lane's name in lower case, as statistics and configuration spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Cpu => "cpu",
            Self::Blocking => "blocking",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
