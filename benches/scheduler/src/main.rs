//! The scheduler beside tokio and rayon: order under a flood, the cost of a task, a crowd, an overload.
//!
//! Every engine has two workers on any machine, because the promise is about two workers and a backlog of
//! ten times as much. The submitter is a thread of its own. A quick run overloads each engine for five
//! seconds; `--full` does it for thirty, and `--docs` says where the picture goes.
#![forbid(unsafe_code)]

mod crowd;
mod engines;
mod flood;
mod overhead;
mod overload;
mod plot;
mod work;

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use ultra_perf_bench::Suite;

use crate::overload::Phases;

const PEERS: bool = cfg!(feature = "peers");

#[derive(Debug, Parser)]
#[command(about = "Measures the scheduler", long_about = None)]
struct Options {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Overload for half a minute.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let rounds = options.suite.rounds;
    let mut suite = Suite::with_options("scheduler", options.suite);
    flood::rows(&mut suite, rounds, PEERS);
    overhead::rows(&mut suite);
    crowd::rows(&mut suite);
    let phases = if options.full { Phases::FULL } else { Phases::SHORT };
    let runs = overload::rows(&mut suite, phases);
    if let Some(docs) = &options.page.docs {
        let folder = docs.join("scheduler");
        let picture = plot::svg(&runs, &options.page.provenance);
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join("overload.svg"), picture));
        if let Err(error) = written {
            eprintln!("scheduler: cannot write into {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    suite.finish()
}
