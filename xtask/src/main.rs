//! The repository's own commands, run as `cargo xtask COMMAND` from anywhere inside of it.
//!
//! Whatever a workflow or a person does to this repository is a command here, so that all of them do
//! the same: `.ci/run` and the GitHub workflows only call these.
#![forbid(unsafe_code)]

mod alertmanager;
mod bench;
mod ci;
mod compile_time;
mod default_rules;
mod examples;
mod features;
mod fuzz;
mod kill;
mod prometheus;
mod readme;
mod repo;
mod soak;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The repository's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all tests, getting what they need first
    Test {
        /// Arguments for cargo-nextest, or for `cargo test` where that is not installed
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run the checks that every change has to pass, or some of them
    Ci(ci::Options),
    /// Check layers, pages, file heads, links and sizes
    Tidy,
    /// Measure the suites under benches/ and print their rows
    Bench(bench::Options),
    /// Run the examples of all crates, each within a minute
    Examples(examples::Options),
    /// Compile a service that uses some of the features, and tell how long it takes
    CompileTime(compile_time::Options),
    /// Kill a process in the middle of its disk writes, again and again
    KillRounds {
        /// How many processes to kill
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// Let a real Prometheus scrape the monitor, and compare what it reads
    Prometheus,
    /// Send alerts to a real Alertmanager, getting one first
    Alertmanager,
    /// Run the demonstration at every level, and write its table into the README
    Readme(readme::Options),
    /// Put real load on an accelerator until its default alert rules fire, and see them end
    DefaultRules(default_rules::Options),
    /// Run the long tests in release for as long as told, and watch the memory
    Soak(soak::Options),
}

/// What a command comes to: nothing to add, or one message for the person who started it.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test { args } => test::run(&args),
        Command::Ci(options) => ci::run(&options),
        Command::Tidy => tidy::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Examples(options) => examples::run(&options),
        Command::CompileTime(options) => compile_time::run(&options),
        Command::KillRounds { rounds } => kill::run(rounds),
        Command::Prometheus => prometheus::run(),
        Command::Alertmanager => alertmanager::run(),
        Command::Readme(options) => readme::run(&options),
        Command::DefaultRules(options) => default_rules::run(&options),
        Command::Soak(options) => soak::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A file under `target/` for what one command hands to the next.
fn scratch(name: &str) -> Result<PathBuf, String> {
    let folder = repo::target().join("xtask");
    std::fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    Ok(folder.join(name))
}
