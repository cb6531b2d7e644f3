//! The crate `memory` beside plain malloc and beside what others ship.
//!
//! Everything about memory depends on the allocator below, so the tables are measured under each of
//! them: the program runs itself again as a child under another allocator and adds the child's rows to
//! its own (see [`allocators`]). Ours and the peer always take turns in one process, so a ratio never
//! spans two of them.
//!
//! A case in two threads does the same number of operations in each and counts CPU time: a cache line
//! that both write shows as a larger number, and waiting for a core does not.

mod allocators;

use std::process::ExitCode;

use ultra_perf_bench::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new("memory");
    allocators::children(&mut suite);
    suite.finish()
}
