//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

mod allocator;
mod guard;
mod pressure;
mod raw;
mod reclaim;

#[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
pub use allocator::Glibc;
#[cfg(feature = "jemalloc")]
pub use allocator::Jemalloc;
#[cfg(feature = "mimalloc")]
pub use allocator::Mimalloc;
pub use allocator::{AllocatorControl, AllocatorStats, GiveBackReport};
pub use guard::{
    CleanupReport, CleanupRequest, CleanupScope, GuardError, GuardStats, MemoryGuard,
    MemoryGuardBuilder,
};
pub use pressure::{
    Event, EventKind, HistoryPoint, Level, LimitedBy, MemorySample, PressureMonitor,
    PressureSettings, PressureWatch, SourceStats, Thresholds,
};
pub use reclaim::{
    Cost, RECLAIMERS_MAX, ReclaimOutcome, ReclaimRequest, Reclaimer, ReclaimerReport, Reclaimers,
    Registration, TooManyReclaimers,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
