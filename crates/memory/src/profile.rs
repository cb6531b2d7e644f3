//! Which code holds the memory: jemalloc's own heap profiler, in the format of pprof.
//!
//! jemalloc samples allocations by their bytes (one in 512 KiB unless told otherwise) and keeps the stack
//! of each sample while it lives. It does so only in a process that was started with `prof:true`, from
//! where on it costs a few percent; this module reads what it has. The format is gzipped protobuf,
//! which `go tool pprof`, speedscope and Pyroscope open.

use std::sync::Arc;

use jemalloc_pprof::{JemallocProfCtl, PROF_CTL};

/// No profile could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeapProfileError {
    /// jemalloc was not told at start-up to profile, or it is not the program's allocator.
    #[error(
        "jemalloc does not profile: start the process with _RJEM_MALLOC_CONF=prof:true (MALLOC_CONF \
         if the allocator is built unprefixed), and have tikv-jemallocator as the global allocator"
    )]
    Off,
    /// Another thread is taking a profile now.
    #[error("another heap profile is being taken; try again when it is done")]
    Busy,
    /// jemalloc or the system refused, such as for want of room for a temporary file.
    #[error("the heap profile could not be taken: {0}")]
    Failed(String),
}

/// Takes a profile of the live heap by allocation site, as gzipped pprof.
///
/// Addresses are given with the mappings and build ids of the running program; pprof resolves them with
/// its binary.
///
/// # Errors
///
/// See [`HeapProfileError`].
///
/// # Cost
///
/// Blocks the calling thread for some milliseconds, and writes a temporary file: jemalloc knows no other
/// way. Call it where blocking is allowed.
pub fn heap_profile() -> Result<Vec<u8>, HeapProfileError> {
    with_profiler(|profiler| {
        profiler.dump_pprof().map_err(|error| HeapProfileError::Failed(format!("{error:#}")))
    })
}

/// Starts and stops the sampling of a process that was started with `prof:true`.
///
/// Stopping forgets the samples. What lives from before a start is in no profile.
///
/// # Errors
///
/// See [`HeapProfileError`].
pub fn set_heap_profiling(active: bool) -> Result<(), HeapProfileError> {
    with_profiler(|profiler| {
        let done = match (active, profiler.activated()) {
            (true, false) => profiler.activate(),
            (false, true) => profiler.deactivate(),
            (true, true) | (false, false) => Ok(()),
        };
        done.map_err(|error| HeapProfileError::Failed(error.to_string()))
    })
}

fn with_profiler<T>(
    use_it: impl FnOnce(&mut JemallocProfCtl) -> Result<T, HeapProfileError>,
) -> Result<T, HeapProfileError> {
    let profiler = PROF_CTL.as_ref().map(Arc::clone).ok_or(HeapProfileError::Off)?;
    let mut profiler = profiler.try_lock().map_err(|_| HeapProfileError::Busy)?;
    use_it(&mut profiler)
}
