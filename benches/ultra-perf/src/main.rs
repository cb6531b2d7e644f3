//! What the handle over all parts costs: a call, a scope, a start, standing idle.
//!
//! A target that the project was given stands at its row. Ours and the peer take turns in one process;
//! what belongs to a process of its own (the time it takes to start, the memory and the CPU time of
//! standing idle) is measured in a child that is this program again. `--full` with `--docs` writes the
//! table of the umbrella's page.
#![forbid(unsafe_code)]

mod alone;
mod call;
mod layers;
mod scope;

use std::process::ExitCode;

use clap::Parser;
use ultra_perf_bench::{Suite, table, write_section};

#[derive(Debug, Parser)]
#[command(about = "Measures the handle over all parts", long_about = None)]
struct Arguments {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Write the table of the page too.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
}

fn main() -> ExitCode {
    if alone::ran_as_child() {
        return ExitCode::SUCCESS;
    }
    let options = Arguments::parse();
    let mut suite = Suite::with_options("ultra-perf", options.suite);
    call::measure(&mut suite);
    layers::measure(&mut suite);
    scope::measure(&mut suite);
    alone::measure(&mut suite);
    if let Some(docs) = options.page.docs.filter(|_| options.full) {
        let table = table(suite.rows(), false);
        let text = format!("```text\n{}\n{}\n```", options.page.provenance.trim(), table.trim());
        if let Err(error) = write_section(&docs.join("ultra-perf.md"), "measurements", &text) {
            eprintln!("ultra-perf: {error}");
            return ExitCode::FAILURE;
        }
    }
    suite.finish()
}
