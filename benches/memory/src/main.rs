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
mod give_back;
mod interning;
#[cfg(feature = "peers")]
mod peers;
mod plot;
mod pools;
mod pressure;
mod tracking;

use std::process::ExitCode;

use clap::Parser;
use ultra_perf_bench::Suite;

#[derive(Debug, Parser)]
#[command(about = "Measures pools, interning, tracking and what is given back", long_about = None)]
struct Options {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Accepted for `cargo xtask bench --full`, which says where the docs are.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
}

fn main() -> ExitCode {
    if give_back::ran_as_child() {
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let docs = options.page.docs.filter(|_| options.full);
    let mut suite = Suite::with_options("memory", options.suite);
    let evidence = pressure::rows(&mut suite)
        .and_then(|()| give_back::rows(&mut suite, docs.as_deref(), &options.page.provenance));
    if let Err(error) = evidence {
        eprintln!("memory: {error}");
        return ExitCode::FAILURE;
    }
    match allocators::name() {
        "tracked" => tracking::rows(&mut suite),
        "malloc" => {
            pools::rows(&mut suite);
            interning::rows(&mut suite);
        }
        _ => pools::rows(&mut suite),
    }
    allocators::children(&mut suite);
    suite.finish()
}
