//! The binary `ultra-perf`: an accelerator in front of any HTTP backend.
//!
//! Exit codes: 0 when all went well, 1 when something failed, 2 when the command line or the
//! configuration is wrong, a setting that a running accelerator refuses included.
#![forbid(unsafe_code)]

mod admin;
mod advise;
mod cache;
mod check;
mod demo;
mod logs;
mod purge;
mod serve;
mod settings;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

/// A request allocates some dozens of times, on whichever worker it happens to be.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Makes a slow backend fast: a tiered response cache in front of any HTTP server.
#[derive(Debug, Parser)]
#[command(name = "ultra-perf", version, propagate_version = true)]
#[command(after_help = "\
Try `ultra-perf demo` first; it needs nothing installed.

Exit codes: 0 all went well, 1 something failed, 2 the command line or the configuration is wrong.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves clients from the cache, and asks the backend for the rest.
    Serve(serve::ServeArgs),
    /// Prints the effective configuration, where each value comes from, and every problem in it.
    Check(check::CheckArgs),
    Demo(demo::DemoArgs),
    /// Makes a running accelerator forget a URL.
    Purge(purge::PurgeArgs),
    /// Shows how well a running accelerator does, and where its points are lost.
    Score(advise::ScoreArgs),
    /// Shows what a running accelerator should change, and what that should bring.
    Recommend(advise::RecommendArgs),
    /// Shows what a recommendation or settings would change, and changes it with --yes.
    Apply(advise::ApplyArgs),
    /// Takes back a recommendation that was applied, or a change of settings.
    Undo(advise::UndoArgs),
    /// Answers questions about caches, and checks and compacts disk tiers.
    Cache(cache::CacheArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => exit(demo::run(args)),
        Command::Purge(args) => exit(purge::run(&args)),
        Command::Score(args) => advise::score(&args),
        Command::Recommend(args) => advise::recommend(&args),
        Command::Apply(args) => advise::apply(&args),
        Command::Undo(args) => advise::undo(&args),
        Command::Cache(args) => cache::run(&args),
    }
}

/// The exit code of a command that failed or not; a failure is told with its causes.
fn exit<E: Error>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error with its causes to standard error.
fn tell(error: &dyn Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
