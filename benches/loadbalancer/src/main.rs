//! What a pick costs, and how long calls take under each policy.
//!
//! A pick takes a lease and completes it with a success, which is what a caller pays for each call. The
//! spread is a simulation (see `spread`): a few seeds in a usual run, 20 with `--full`, which also
//! writes its page and picture to where `--docs` says.
#![forbid(unsafe_code)]

#[cfg(feature = "peers")]
mod peers;
mod picks;
mod spread;

use std::process::ExitCode;

use clap::Parser;
use ultra_perf_bench::Suite;

use crate::spread::{DEFAULT, HELD_OUT, LENGTH, PREQUAL_LIKE, Results};

/// Seeds of a usual run, and of one in full.
const SEEDS: (u64, u64) = (3, 20);

#[derive(Debug, Parser)]
#[command(about = "Measures picks and simulates how calls spread", long_about = None)]
struct Options {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Simulate 20 seeds instead of 3.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
    /// Simulate this many seeds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,
    /// Begin with this seed, in full with 1001; tune on seeds below that.
    #[arg(long, value_name = "SEED", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    first_seed: Option<u64>,
    /// Only simulate, and measure no picks.
    #[arg(long)]
    spread_only: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let show = !options.suite.no_table;
    let simulates =
        options.suite.filter.as_ref().is_none_or(|filter| "spread".starts_with(filter.as_str()));
    let mut suite = Suite::with_options("loadbalancer", options.suite);
    if !options.spread_only {
        picks::rows(&mut suite);
    }
    if simulates {
        let seeds = options.seeds.unwrap_or(if options.full { SEEDS.1 } else { SEEDS.0 });
        let first = options.first_seed.unwrap_or(if options.full { HELD_OUT } else { 1 });
        let seeds = first..first + seeds;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let results = spread::all(LENGTH, &seeds, threads);
        if show {
            println!("{}", spread::table(&results));
        }
        rows(&mut suite, seeds.end - seeds.start, &results);
        if let Some(folder) = &options.page.docs
            && let Err(error) = spread::write(folder, &options.page.provenance, &seeds, &results)
        {
            eprintln!("loadbalancer: cannot write {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    suite.finish()
}

/// The rows of the simulation: the default policy against its bounds, and beside the reference.
fn rows(suite: &mut Suite, seeds: u64, results: &[Results]) {
    let spread = |case, entrant| spread::of(results, case, entrant).unwrap_or_default();
    for (case, p99, p999) in
        [("static", 56.0, 112.0), ("dynamic", 60.0, 118.0), ("log-normal", 106.0, 355.0)]
    {
        let (ours, reference) = (spread(case, DEFAULT), spread(case, PREQUAL_LIKE));
        for (what, ours, reference, bound) in
            [("p99", ours.p99, reference.p99, p99), ("p99.9", ours.p999, reference.p999, p999)]
        {
            let name = format!("spread, {case}, {what}, {seeds} seeds, {DEFAULT}");
            suite.reported(&name, "ms").at_most(bound).observed(ours);
            let name = format!("spread, {case}, {what}, {DEFAULT} / {PREQUAL_LIKE}");
            suite.reported(&name, "ratio").at_most(1.0).observed(ours / reference);
        }
    }
}
