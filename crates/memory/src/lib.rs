//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

mod allocator;
#[cfg(feature = "arena")]
mod arena;
#[cfg(feature = "buffers")]
mod buffer;
mod error;
mod guard;
mod interner;
mod pool;
mod pressure;
#[cfg(feature = "jemalloc-profile")]
mod profile;
mod raw;
mod reclaim;
mod suspicion;
mod sync;
mod tracked;

#[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
pub use allocator::Glibc;
#[cfg(feature = "jemalloc")]
pub use allocator::Jemalloc;
#[cfg(feature = "mimalloc")]
pub use allocator::Mimalloc;
pub use allocator::{AllocatorControl, AllocatorStats, GiveBackReport};
#[cfg(feature = "arena")]
pub use arena::{ArenaPool, ArenaPoolBuilder};
#[cfg(feature = "buffers")]
pub use buffer::{BufferPool, BufferPoolBuilder, PooledBuf};
pub use error::{BuildError, Problem};
pub use guard::{
    CleanupReport, CleanupRequest, CleanupScope, GuardError, GuardStats, MemoryGuard,
    MemoryGuardBuilder,
};
pub use interner::{
    IStr, Interner, InternerBuilder, InternerError, InternerProblem, InternerStats, InternerUsage,
    Sweep, Symbol, SymbolError, SymbolTable, SymbolTableStats,
};
pub use pool::{Pool, PoolBuilder, PoolStats, Pooled, PooledOwned, TakeError, VecPool};
pub use pressure::{
    Event, EventKind, HistoryPoint, Level, LimitedBy, MemorySample, PressureMonitor,
    PressureSettings, PressureWatch, SourceStats, Thresholds,
};
#[cfg(feature = "jemalloc-profile")]
pub use profile::{HeapProfileError, heap_profile, set_heap_profiling};
pub use reclaim::{
    Cost, RECLAIMERS_MAX, ReclaimOutcome, ReclaimRequest, Reclaimer, ReclaimerReport, Reclaimers,
    Registration, TooManyReclaimers,
};
pub use suspicion::{
    Growth, InternerReading, LeakWatch, LeakWatchBuilder, LeakWatchError, MemorySplit, Observation,
    OutstandingGuards, Rise, Suspicion,
};
pub use tracked::{
    InScope, LiveSites, SAMPLE_INTERVAL_BYTES, SITES_MAX, Scope, ScopeExt, ScopeGuard, ScopeReport,
    Site, Track, TrackError, Tracked, TrackedExact, live_sites, track, tracking,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
