//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

#[cfg(feature = "arena")]
mod arena;
#[cfg(feature = "buffers")]
mod buffer;
mod error;
mod interner;
mod pool;
mod raw;
mod suspicion;
mod sync;
mod tracked;

#[cfg(feature = "arena")]
pub use arena::{ArenaPool, ArenaPoolBuilder};
#[cfg(feature = "buffers")]
pub use buffer::{BufferPool, BufferPoolBuilder, PooledBuf};
pub use error::{BuildError, Problem};
pub use interner::{
    IStr, Interner, InternerBuilder, InternerError, InternerProblem, InternerStats, InternerUsage,
    Sweep, Symbol, SymbolError, SymbolTable, SymbolTableStats,
};
pub use pool::{Pool, PoolBuilder, PoolStats, Pooled, PooledOwned, TakeError, VecPool};
pub use suspicion::{
    Growth, InternerReading, LeakWatch, LeakWatchBuilder, LeakWatchError, MemorySplit, Observation,
    OutstandingGuards, Rise, Suspicion,
};
pub use tracked::{
    InScope, LiveSites, SAMPLE_INTERVAL_BYTES, SITES_MAX, Scope, ScopeExt, ScopeGuard, ScopeReport,
    Site, Track, TrackError, Tracked, TrackedExact, live_sites, track, tracking,
};
