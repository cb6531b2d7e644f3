//! `cargo xtask ci`: the checks that every change has to pass.
//!
//! Every job runs, whatever the one before came to, and a table at the end says how each went and how
//! long it took. A tool that is not part of a Rust installation cannot be had on every machine, so a job
//! whose tool is missing is skipped and says so; with `--require-tools`, as the workflows call it, that
//! is a failure.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use cargo_metadata::Package;
use clap::{Args, ValueEnum};

use crate::test::FEATURES;
use crate::{Outcome, examples, features, fuzz, repo, test, tidy};

/// What `cargo xtask ci` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these jobs; all of them unless named
    jobs: Vec<Job>,
    /// Leave this job out
    #[arg(long, value_name = "JOB")]
    skip: Vec<Job>,
    /// Fail where a tool is missing, instead of skipping the job
    #[arg(long)]
    require_tools: bool,
}

/// One check, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    /// Formatting
    Fmt,
    /// Lints, with warnings denied
    Clippy,
    /// Layers, pages, file heads, links and sizes
    Tidy,
    /// All tests
    Test,
    /// The examples of all crates
    Examples,
    /// Each crate with no feature, each feature alone, sets that users take, and all
    Features,
    /// Documentation, with warnings denied
    Doc,
    /// What threads hand over without a lock, under every interleaving of them
    Loom,
    /// Licences, advisories and sources of the dependencies
    Deny,
    /// Each crate with every set of features
    Hack,
    /// The breaker, the memory tier and the pools under Miri
    Miri,
    /// Every fuzz target for a short while
    Fuzz,
}

impl Job {
    fn name(self) -> String {
        self.to_possible_value().expect("no job is hidden").get_name().to_owned()
    }

    /// What is missing for this job and how to get it.
    fn missing(self) -> Option<&'static str> {
        let (there, missing) = match self {
            Self::Fmt => (
                repo::succeeds(&mut repo::cargo("fmt --version")),
                "rustfmt is not installed (rustup component add rustfmt)",
            ),
            Self::Clippy => (
                repo::succeeds(&mut repo::cargo("clippy --version")),
                "clippy is not installed (rustup component add clippy)",
            ),
            Self::Deny => (
                repo::installed("cargo-deny"),
                "cargo-deny is not installed (cargo install --locked cargo-deny)",
            ),
            Self::Hack => (
                repo::installed("cargo-hack"),
                "cargo-hack is not installed (cargo install --locked cargo-hack)",
            ),
            Self::Miri => (
                repo::succeeds(nightly().args(["miri", "--version"])),
                "Miri is not installed (rustup +nightly component add miri rust-src)",
            ),
            Self::Fuzz => return fuzz::missing(&mut nightly()),
            Self::Tidy | Self::Test | Self::Examples | Self::Features | Self::Doc | Self::Loom => {
                return None;
            }
        };
        (!there).then_some(missing)
    }

    fn run(self) -> Outcome {
        match self {
            Self::Fmt => {
                let fuzz = "fmt --manifest-path fuzz/Cargo.toml --check";
                let all = ["fmt --all --check", fuzz].map(|it| repo::run(&mut repo::cargo(it)));
                all.into_iter().collect()
            }
            Self::Clippy => repo::run(&mut repo::cargo(&format!(
                "clippy --workspace --all-targets {FEATURES} -- --deny warnings"
            ))),
            Self::Tidy => tidy::run(),
            Self::Test => test::run(&[]),
            Self::Examples => examples::run(&examples::Options::default()),
            Self::Features => features::compile(&crates()?),
            Self::Doc => {
                // The binary and the umbrella crate share a name, so only one of them can have pages.
                let words =
                    format!("doc --workspace --exclude ultra-perf-cli --no-deps {FEATURES}");
                repo::run(repo::cargo(&words).env("RUSTDOCFLAGS", "--deny warnings"))
            }
            Self::Loom => loom(),
            Self::Deny => repo::run(&mut repo::cargo("deny check")),
            Self::Hack => {
                let mut hack = repo::cargo("hack check --feature-powerset");
                for package in crates()? {
                    hack.args(["--package", &package.name]);
                }
                repo::run(&mut hack)
            }
            Self::Miri => {
                let miri = |package: &str, tests: &[&str]| {
                    let mut miri = nightly();
                    miri.args(["miri", "test", "--no-default-features", "--lib"]);
                    miri.args(["--package", package, "--"]).args(tests);
                    // Files and clocks of the host: proptest looks for past failures, tests read the
                    // time.
                    repo::run(miri.env("MIRIFLAGS", "-Zmiri-disable-isolation"))
                };
                let all = [
                    miri("resilience", &[]),
                    miri("cache-tiered", &["memory::", "policy::"]),
                    miri("memory", &["raw::", "pool::"]),
                ];
                all.into_iter().collect()
            }
            Self::Fuzz => fuzz::run(nightly),
        }
    }
}

fn nightly() -> std::process::Command {
    let mut command = repo::program("rustup");
    command.args(["run", "nightly", "cargo"]).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

/// The packages that others can use: those under `crates/`.
fn crates() -> Result<Vec<Package>, String> {
    let folder = repo::root().join("crates");
    let mut packages = repo::metadata()?.packages;
    packages.retain(|package| package.manifest_path.starts_with(&folder));
    Ok(packages)
}

/// Runs the loom tests of the crates that have some.
fn loom() -> Outcome {
    let with_models = ["resilience", "loadbalancer", "cache-tiered", "memory", "scheduler"];
    with_models.into_iter().try_for_each(loom_of)
}

/// Runs the loom tests of a crate, with a folder of their own so that the flag does not rebuild the
/// workspace.
fn loom_of(package: &str) -> Outcome {
    let cargo = |last: &str| {
        let words = "test --no-default-features --release --lib --package";
        let mut command = repo::cargo(&format!("{words} {package} loom{last}"));
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", repo::target().join("loom"));
        // The models are small: most of the time would go into optimizing what drives them.
        for (setting, value) in [
            ("OPT_LEVEL", "1"),
            ("LTO", "off"),
            ("CODEGEN_UNITS", "16"),
            ("DEBUG", "false"),
            ("OVERFLOW_CHECKS", "true"),
            ("DEBUG_ASSERTIONS", "true"),
        ] {
            command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        command
    };
    // A filter that matches nothing passes, so ask first.
    let listed = repo::output(&mut cargo(" -- --list"))?;
    if !listed.lines().any(|line| line.ends_with(": test")) {
        return Err(format!("no test of {package} has loom in its name"));
    }
    repo::run(&mut cargo(""))
}

enum Verdict {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

/// Runs the jobs that are asked for and prints what each came to.
pub(crate) fn run(options: &Options) -> Outcome {
    let jobs: Vec<Job> = Job::value_variants()
        .iter()
        .copied()
        .filter(|job| options.jobs.is_empty() || options.jobs.contains(job))
        .filter(|job| !options.skip.contains(job))
        .collect();
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut verdicts = Vec::new();
    for job in jobs {
        println!("== {}", job.name());
        let start = Instant::now();
        let verdict = match job.missing() {
            Some(missing) if options.require_tools => Verdict::Failed(missing.to_owned()),
            Some(missing) => Verdict::Skipped(missing),
            None => job.run().map_or_else(Verdict::Failed, |()| Verdict::Passed),
        };
        match &verdict {
            Verdict::Passed => {}
            Verdict::Failed(message) => println!("failed: {message}"),
            Verdict::Skipped(missing) => println!("skipped: {missing}"),
        }
        verdicts.push((job, verdict, start.elapsed()));
    }
    print!("\n{}", summary(&verdicts, colour));
    let failed = verdicts.iter().filter(|(_, verdict, _)| matches!(verdict, Verdict::Failed(_)));
    match failed.count() {
        0 => Ok(()),
        n => Err(format!("{n} of {} jobs failed", verdicts.len())),
    }
}

fn summary(verdicts: &[(Job, Verdict, Duration)], colour: bool) -> String {
    let mut text = format!("{:<10}{:>7}  result\n", "job", "time");
    for (job, verdict, took) in verdicts {
        let (code, word, more) = match verdict {
            Verdict::Passed => (32, "ok", ""),
            Verdict::Failed(message) => (31, "FAILED", message.as_str()),
            Verdict::Skipped(missing) => (33, "skipped", *missing),
        };
        let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
        let seconds = took.as_secs();
        let time = format!("{}:{:02}", seconds / 60, seconds % 60);
        let more = if more.is_empty() { String::new() } else { format!(": {more}") };
        text += &format!("{:<10}{time:>7}  {word}{more}\n", job.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_a_line_per_job_with_its_time_and_reason() {
        let verdicts = [
            (Job::Fmt, Verdict::Passed, Duration::from_millis(1_900)),
            (Job::Clippy, Verdict::Failed("`cargo clippy` failed".into()), Duration::from_secs(75)),
            (Job::Deny, Verdict::Skipped("cargo-deny is not installed"), Duration::ZERO),
        ];
        assert_eq!(
            summary(&verdicts, false),
            "job          time  result\n\
             fmt          0:01  ok\n\
             clippy       1:15  FAILED: `cargo clippy` failed\n\
             deny         0:00  skipped: cargo-deny is not installed\n"
        );
        assert!(summary(&verdicts, true).contains("\x1b[31mFAILED\x1b[0m: "));
    }
}
