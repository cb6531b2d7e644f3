//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

mod interner;
mod raw;
mod suspicion;
mod sync;
mod tracked;

pub use interner::{
    IStr, Interner, InternerBuilder, InternerError, InternerProblem, InternerStats, InternerUsage,
    Sweep, Symbol, SymbolError, SymbolTable, SymbolTableStats,
};
pub use suspicion::{
    Growth, InternerReading, LeakWatch, LeakWatchBuilder, LeakWatchError, MemorySplit, Observation,
    OutstandingGuards, Rise, Suspicion,
};
pub use tracked::{
    InScope, LiveSites, SAMPLE_INTERVAL_BYTES, SITES_MAX, Scope, ScopeExt, ScopeGuard, ScopeReport,
    Site, Track, TrackError, Tracked, TrackedExact, live_sites, track, tracking,
};
