//! The binary in front of three backends that fail one after the other: what clients see of it.
//!
//! Everything is a process of its own: three backends of this program's own (`backend`), whose capacity is
//! known and which can be made slow, failing, dead or frozen, and `ultra-perf serve` in front of them. The
//! load is an open loop (`load`), and the `timeline` says what happens when and when p99 has recovered.
//! For each fault and each entrant they are started anew, and the same requests are due at the same moments.
#![forbid(unsafe_code)]

mod backend;
mod entrants;
mod load;
mod page;
mod timeline;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ultra_perf_bench::{Suite, build_ultra_perf};

use crate::backend::{Backend, BackendOptions, capacity};
use crate::entrants::{ENTRANTS, Entrant, Proxy};
use crate::timeline::{FAULTS, Phases, Run};

/// The load, as a share of what two of the three backends can do.
const LOAD: f64 = 0.85;

#[derive(Debug, Parser)]
#[command(about = "Measures what clients see when backends fail", long_about = None)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Let each fault last longer.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
    /// Use this binary of ultra-perf instead of building it.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Write every request to FILE, as comma-separated values.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as one of the backends until standard input closes.
    Backend(BackendOptions),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.command {
        Some(Command::Backend(backend)) => backend::serve(backend).map(|()| ExitCode::SUCCESS),
        None => measure(options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("backends: {error}");
        ExitCode::FAILURE
    })
}

fn measure(options: Options) -> io::Result<ExitCode> {
    let phases = if options.full { Phases::FULL } else { Phases::SHORT };
    let (show, seed) = (!options.suite.no_table, options.suite.seed);
    let mut suite = Suite::with_options("backends", options.suite);
    let wanted: Vec<Entrant> =
        ENTRANTS.into_iter().filter(|it| cases(it).iter().any(|case| suite.wants(case))).collect();
    if !wanted.is_empty() {
        let binary = options.binary.map_or_else(build_ultra_perf, Ok)?;
        let per_second = LOAD * 2.0 * capacity();
        let runs = wanted
            .iter()
            .map(|entrant| run(entrant, &binary, phases, per_second, seed))
            .collect::<io::Result<Vec<Run>>>()?;
        if let Some(file) = &options.requests {
            fs::write(file, runs.iter().flat_map(Run::lines).collect::<String>())?;
        }
        if show {
            println!("{}", page::table(&runs));
        }
        for (entrant, run) in wanted.iter().zip(&runs) {
            rows(&mut suite, entrant, run);
        }
        if let Some(folder) = &options.page.docs {
            page::write(folder, &options.page.provenance, per_second, &runs)?;
        }
    }
    Ok(suite.finish())
}

/// Lets every fault strike with one entrant, each time with fresh processes.
fn run(
    entrant: &Entrant,
    binary: &Path,
    phases: Phases,
    per_second: f64,
    seed: u64,
) -> io::Result<Run> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut of_faults = Vec::new();
    for (fault, number) in FAULTS.into_iter().zip(10 * seed..) {
        let backends = (1..=3).map(|backend| Backend::start(10 * number + backend));
        let mut backends = backends.collect::<io::Result<Vec<_>>>()?;
        let proxy = Proxy::start(entrant, binary, &backends)?;
        let load = load::run(proxy.address, per_second, phases.length(), number);
        let samples = std::thread::scope(|scope| {
            let played = scope.spawn(|| timeline::play(&phases, fault, &mut backends[0]));
            let samples = runtime.block_on(load);
            played.join().expect("it panics nowhere").map(|()| samples)
        })?;
        of_faults.push(samples);
    }
    Ok(Run::new(entrant.name, phases, of_faults))
}

/// The names of an entrant's rows: errors, quiet p99, and each fault's begin and end.
fn cases(entrant: &Entrant) -> Vec<String> {
    let name = entrant.name;
    let mut cases = vec![format!("failed requests, {name}"), format!("quiet p99, {name}")];
    for fault in FAULTS {
        for moment in ["begin", "end"] {
            cases.push(format!("{}: recovered from its {moment}, {name}", fault.name()));
        }
    }
    cases
}

fn rows(suite: &mut Suite, entrant: &Entrant, run: &Run) {
    let mut names = cases(entrant).into_iter();
    let mut row = |unit: &str, target: Option<f64>, value: f64| {
        let case = suite.reported(&names.next().expect("a name for each row"), unit);
        match target.filter(|_| entrant.is_default) {
            Some(bound) => case.at_most(bound).observed(value),
            None => case.observed(value),
        }
    };
    let (requests, errors) = run.requests_and_errors();
    row("%", Some(0.1), 100.0 * errors as f64 / requests.max(1) as f64);
    row("ms", None, run.quiet().1.as_secs_f64() * 1e3);
    for index in 0..FAULTS.len() {
        let seen = run.seen(index);
        let (begin, end) = run.phases.of_fault(index);
        let rest = run.phases.rest();
        // What did not recover took at least as long as it was looked at.
        for (recovered, looked) in [(seen.after_begin, end - begin), (seen.after_end, rest)] {
            row("s", Some(2.0), recovered.unwrap_or(looked).as_secs_f64());
        }
    }
}
