//! The whole cache in every weather: sixteen tasks do everything that a cache can do, over memory, a disk
//! and a real Redis that is killed, frozen, flushed and restarted, while files stop growing and the
//! process itself is killed and comes back on the same directory.
//!
//! `supervisor` starts Redis and makes its weather, starts the process that works, kills or closes it, and
//! starts it again. `worker` is that process: this test program once more. `observer` is another machine
//! over the same Redis, which only reads. `book` says what may be found:
//! a value names its key and its version, and a version is never older than the last write that counts.
//!
//! `ULTRA_PERF_SOAK_SECONDS` sets how long this goes on (10) and `ULTRA_PERF_SOAK_SEED` the weather and
//! what is done; which task does it when, nobody can set. `cargo xtask soak cache` runs it for longer.
//! From lives of 90 seconds on, the memory of the process may not grow.
#![cfg(all(feature = "__redis", feature = "disk", target_os = "linux"))]

mod book;
mod observer;
#[path = "../support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the tier alone use the rest")]
mod redis_server;
mod supervisor;
mod worker;
