//! What recording, remembering, judging and telling cost, beside the libraries that others use.
#![forbid(unsafe_code)]

mod alerts;
mod anomaly;
mod history;
#[cfg(feature = "peers")]
mod peers;
mod record;
mod render;
mod tick;

use std::process::ExitCode;

use clap::Parser;
use ultra_perf_bench::Suite;

#[derive(Debug, Parser)]
#[command(about = "Measures metrics, their history and their rules", long_about = None)]
struct Options {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
}

fn main() -> ExitCode {
    let mut suite = Suite::with_options("monitor", Options::parse().suite);
    record::rows(&mut suite);
    render::rows(&mut suite);
    tick::rows(&mut suite);
    tick::reading_rows(&mut suite);
    history::rows(&mut suite);
    alerts::rows(&mut suite);
    anomaly::rows(&mut suite);
    suite.finish()
}
