//! Measuring ours against a peer, so that the answer survives a noisy machine.
//!
//! A [`Suite`] is one benchmark program. Each of its cases becomes one [`Row`]: what ours took, what
//! the peer took, the ratio, how sure that is, and whether the target holds.
//!
//! ```no_run
//! use std::{hint::black_box, process::ExitCode, time::Instant};
//! use ultra_perf_bench::{Clock, Suite};
//!
//! fn main() -> ExitCode {
//!     let mut suite = Suite::new("example"); // reads --json, --filter, --rounds, --seed
//!
//!     // CPU nanoseconds per operation, at most 1.7 times the peer's.
//!     suite.time("one call", Clock::Cpu, 100_000).at_most(1.7).compare(
//!         "Instant::now()",
//!         || (0..100_000).for_each(|i: u64| _ = black_box(i.wrapping_mul(3))),
//!         || (0..100_000).for_each(|_| _ = black_box(Instant::now())),
//!     );
//!
//!     // Operations per second by the wall clock, at least five times the peer's.
//!     suite.rate("put, 1 KiB", Clock::Wall, 10_000).at_least(5.0).rounds(9).compare(
//!         "other engine",
//!         || { /* 10,000 puts */ },
//!         || { /* the same 10,000 puts */ },
//!     );
//!
//!     // A number that somebody else measured (wrk, redis-benchmark), or that needs set-up outside
//!     // of the measured part: the closure returns it.
//!     suite.reported("1 KiB hits", "req/s").at_least(1.0).compare("nginx", || 52_000.0, || 50_000.0);
//!
//!     // No peer: an absolute target, the median over the rounds, or one observation.
//!     suite.reported("open after kill -9", "s").at_most(10.0).measure(|| 0.8);
//!     suite.reported("write amplification", "x").at_most(1.2).observed(1.03);
//!
//!     // The peer is not on this machine or not in this build: say so instead of saying nothing.
//!     suite.reported("1 KiB hits", "req/s").skip("wrk", "wrk is not installed");
//!
//!     suite.finish() // the table, and the file of --json
//! }
//! ```
//!
//! # Method
//!
//! After one round that is thrown away, ours and the peer run in pairs, in random order inside each
//! pair, at least [`MIN_ROUNDS`] times. Each pair gives one ratio `ours / peer`, so a slow minute of the
//! machine strikes both. The row shows the medians. `spread` is a 95 % interval of the median ratio from
//! its binomial order statistics: the k-th smallest and k-th largest ratio, with k the largest number
//! for which the chance that the true median lies outside is at most 5 %, whatever the distribution
//! (for 9 rounds the second of each end). A target holds when the *unfavourable end* of that interval
//! meets it, so a lucky median does not.
//!
//! [`Clock::Cpu`] counts the CPU time of all threads of this process and is what to use when both
//! sides live in it; a neighbour on the machine then costs precision but not truth. Work that waits for
//! a device or for another process is measured by [`Clock::Wall`] or reported by the closure.
#![forbid(unsafe_code)]

mod binary;
mod chart;
mod clock;
mod median;
mod page;
mod row;
mod suite;

pub use binary::build_ultra_perf;
pub use chart::{Line, Panel, Scale};
pub use clock::{Clock, Stopwatch};
pub use median::{interval, median};
pub use page::{PageOptions, begin_picture, escape, write_section};
pub use row::{ParseTargetError, Row, Target, table};
pub use suite::{Case, MAX_ROUNDS, MIN_ROUNDS, Options, Reported, Suite, Timed};
