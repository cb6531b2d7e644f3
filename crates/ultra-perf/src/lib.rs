//! One configuration and one handle over the crates of ultra-perf.
//!
//! [`Config`](config::Config) is read from a file, the environment and the command line, checked
//! once, and explains itself. [`UltraPerf`] makes the parts from it and connects them: what every part
//! counts is watched, pressure on memory reaches the caches and the scheduler, advice is applied through
//! the same checked path as a change by hand, and all of it stops in order.
//!
#![cfg_attr(all(feature = "disk", feature = "scheduler", feature = "memory"), doc = "```")]
#![cfg_attr(
    not(all(feature = "disk", feature = "scheduler", feature = "memory")),
    doc = "```ignore"
)]
//! use std::time::Duration;
//! use ultra_perf::UltraPerf;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = |name| directory.path().join(name).to_str().expect("a plain name").to_owned();
//! let perf = UltraPerf::builder()
//!     .process_env()
//!     .set("cache.ttl", "10m")
//! #   .set("cache.disk.path", path("cache"))
//! #   .set("monitor.history.path", path("monitor"))
//!     .build()
//!     .await?;
//! let users = perf.cache::<u64, String>("users").open().await?;
//! users.insert(7, "Ada".to_owned());
//! assert_eq!(users.get(&7).await.as_deref(), Some("Ada"));
//! perf.shutdown(Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! On unless switched off: `cache`, `disk`, `memory`, `monitor`, `resilience`, `scheduler`, `macros`. With
//! `--no-default-features` there is the configuration and nothing else.
//!
//! - `cache`: caches in memory; `disk`, `sled`, `redis`: the tiers below.
//! - `lz4`, `encryption`: LZ4 as another compression, and encryption of what lower tiers keep.
//! - `metrics`: the caches' statistics through the `metrics` facade.
//! - `simulate`: simulations of other sizes and policies.
//! - `memory`: the guard over the process's memory, and caches that give way to it; `glibc`, `jemalloc`
//!   and `mimalloc`: what gives idle memory back, for programs with that allocator.
//! - `monitor`: metrics, their history, alert rules, a score and advice.
//! - `metrics-exporter-prometheus`: all of that on the page of a program that serves this exporter.
//! - `profiling`: CPU profiles of the process, on demand.
//! - `resilience`: circuit breakers and the budget of retries.
//! - `loadbalancer`: the balancer over the configured backends.
//! - `scheduler`: priorities for futures, closures that compute and closures that wait.
//! - `macros`: `#[ultra_perf::optimize]`, `#[cached]`, `#[cache_invalidate]` and `#[monitored]`; each of their options
//!   needs the feature of its part.
//! - `full`: all of these that need no other allocator.
#![forbid(unsafe_code)]

// Each part looks at some of what the rules share.
#[cfg(feature = "monitor")]
#[cfg_attr(
    not(all(
        feature = "cache",
        feature = "loadbalancer",
        feature = "memory",
        feature = "scheduler"
    )),
    allow(dead_code)
)]
mod advice;
#[cfg(feature = "loadbalancer")]
mod balance;
#[cfg(feature = "cache")]
mod caches;
#[cfg(feature = "cache")]
mod caching;
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod call;
pub mod config;
#[cfg(feature = "metrics-exporter-prometheus")]
mod exporter;
#[cfg(feature = "resilience")]
mod guarding;
#[cfg(feature = "scheduler")]
mod jobs;
#[cfg(feature = "__parts")]
mod live;
#[cfg(feature = "monitor")]
mod observe;
#[cfg(all(feature = "memory", feature = "scheduler"))]
mod peaks;
#[cfg(feature = "__parts")]
mod perf;
#[cfg(feature = "memory")]
mod pressure;
#[cfg(all(feature = "memory", feature = "cache"))]
mod reclaim;
#[cfg(feature = "scheduler")]
mod schedule;
#[cfg(feature = "__parts")]
mod scope;
#[cfg(feature = "__parts")]
mod slots;
#[cfg(feature = "monitor")]
mod watch;

#[cfg(feature = "monitor")]
pub use advice::rules as advice_rules;
#[cfg(feature = "cache")]
pub use cache_tiered;
#[cfg(feature = "macros")]
pub use call::{TaskError, TaskErrorKind};
pub use config::OptimizationLevel;
#[cfg(feature = "metrics-exporter-prometheus")]
pub use exporter::PrometheusExporter;
#[cfg(feature = "__parts")]
pub use live::{Applied, ApplyError};
#[cfg(feature = "loadbalancer")]
pub use loadbalancer;
#[cfg(feature = "memory")]
pub use memory;
#[cfg(feature = "monitor")]
pub use monitor;
#[cfg(feature = "monitor")]
pub use observe::MonitorError;
#[cfg(all(feature = "memory", feature = "scheduler"))]
pub use peaks::WithPeak;
#[cfg(feature = "__parts")]
pub use perf::{
    BuildError, HookError, Outcome, ShutdownReport, Step, UltraPerf, UltraPerfBuilder,
    WeakUltraPerf,
};
#[cfg(all(feature = "memory", feature = "cache"))]
pub use reclaim::CacheReclaimer;
#[cfg(feature = "resilience")]
pub use resilience;
#[cfg(all(feature = "scheduler", feature = "redis"))]
pub use schedule::offload_to;
#[cfg(feature = "scheduler")]
pub use scheduler;
#[cfg(feature = "__parts")]
pub use scope::{InScope, Scope, ScopeReport};
#[cfg(feature = "memory")]
pub use scope::{MemoryScope, MemoryScopeReport};
#[cfg(feature = "__parts")]
#[doc(hidden)]
pub use slots::Site;
#[cfg(feature = "macros")]
pub use ultra_perf_macros::{cache_invalidate, cached, monitored, optimize, optimized};

#[cfg(all(doctest, feature = "disk", feature = "memory", feature = "scheduler"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(
    doctest,
    feature = "disk",
    feature = "memory",
    feature = "monitor",
    feature = "scheduler"
))]
#[doc = include_str!("../../../docs/src/ultra-perf.md")]
struct Page;
