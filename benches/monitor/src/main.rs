//! What recording, remembering, judging and telling cost, beside the libraries that others use.
#![forbid(unsafe_code)]

#[cfg(feature = "peers")]
mod peers;
mod record;
mod render;
mod anomaly;
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
    anomaly::rows(&mut suite);
    tick::rows(&mut suite);
mod history;

use std::process::ExitCode;

use ultra_perf_bench::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new("monitor");
    history::rows(&mut suite);
    suite.finish()
}
