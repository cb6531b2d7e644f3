//! What the handle over all parts costs: a call, a request, a scope, a start, standing idle.
//!
//! A target that the project was given stands at its row. Ours and the peer take turns in one process;
//! what belongs to a process of its own (the time it takes to start, the memory and the CPU time of
//! standing idle) is measured in a child that is this program again.
#![forbid(unsafe_code)]

mod start;

use std::process::ExitCode;

use ultra_perf_bench::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new("ultra-perf");
    start::measure(&mut suite);
    suite.finish()
}
