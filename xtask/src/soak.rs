//! `cargo xtask soak memory`, `soak cache` and `soak memory-pools`: the long tests, as long as one likes.
//!
//! One is the model test of the memory tier. The second runs the whole cache over a disk and a Redis that
//! fail again and again, and kills it. Both live with `cache-tiered`; the third does everything at once to
//! the pools of `memory`. An ordinary test run gives each ten seconds and the development profile. They
//! say now and then how far they are and how much memory the
//! process has (`VmRSS` in `/proc/self/status`), and fail where that grows; here those lines become a
//! progress bar and a table.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::{Outcome, repo, test};

/// The test of the memory tier, and what cargo is told to run it.
const MEMORY: [&str; 2] = [
    "test --release --package cache-tiered --test engine_model",
    "threads::nothing_goes_wrong_when_everything_happens_at_once",
];
/// The test of the whole cache.
const CACHE: [&str; 2] = [
    "test --release --package cache-tiered --features redis,redis-rs --test soak",
    "supervisor::the_whole_cache_holds_in_every_weather",
];

/// The test of the pools of `memory`.
const POOLS: [&str; 2] = [
    "test --release --package memory --all-features --test pools_soak",
    "pools_keep_their_promises_and_their_size",
];

/// What is put to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The memory tier alone, as fast as it goes
    Memory,
    /// Memory, disk and Redis, through outages, full disks and killed processes
    Cache,
    /// The pools of objects, buffers and arenas
    MemoryPools,
}

/// What `cargo xtask soak` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// What is put to the test
    #[arg(default_value = "memory")]
    subject: Subject,
    /// How long it goes on; memory is compared from 90 seconds on, or 225 for the whole cache
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..))]
    seconds: u64,
    /// The same, in minutes
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,
    /// What the threads do, as an earlier run printed it
    #[arg(long)]
    seed: Option<u64>,
}

/// What the test says when a scenario ends, or what the weather was.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    seconds: u64,
    operations: u64,
    resident_kib: u64,
    scenario: String,
}

impl Report {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("soak ")?.split(' ');
        let mut number = || words.next()?.parse().ok();
        let (seconds, operations, resident_kib) = (number()?, number()?, number()?);
        Some(Self { seconds, operations, resident_kib, scenario: words.next()?.to_owned() })
    }
}

/// Runs the test in release and shows how it goes.
pub(crate) fn run(options: &Options) -> Outcome {
    let [words, test] = match options.subject {
        Subject::Memory => MEMORY,
        Subject::MemoryPools => POOLS,
        Subject::Cache => {
            test::provide_redis()?;
            CACHE
        }
    };
    let seconds = options.minutes.map_or(options.seconds, |minutes| minutes * 60);
    let mut command = repo::cargo(&format!("{words} -- --exact --nocapture"));
    command.arg(test).env("ULTRA_PERF_SOAK_SECONDS", seconds.to_string());
    if let Some(seed) = options.seed {
        command.env("ULTRA_PERF_SOAK_SEED", seed.to_string());
    }
    let cannot = |error| format!("cannot run the test: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(cannot)?;
    let output = child.stdout.take().expect("it is piped");

    let bar = ProgressBar::new(seconds);
    let style = "soak [{bar:30}] {pos} of {len} s  {msg}";
    let style = ProgressStyle::with_template(style).expect("the template is a constant");
    bar.set_style(style.progress_chars("##."));
    let mut reports = Vec::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let Some(report) = Report::parse(&line) else {
            bar.suspend(|| println!("{line}"));
            continue;
        };
        bar.set_position(report.seconds);
        bar.set_message(format!("{}, {} KiB", report.scenario, HumanCount(report.resident_kib)));
        bar.enable_steady_tick(Duration::from_millis(250));
        reports.push(report);
    }
    bar.finish_and_clear();
    print!("{}", table(&reports));
    let status = child.wait().map_err(cannot)?;
    if status.success() { Ok(()) } else { Err("the test failed; its seed is above".into()) }
}

/// A line for each scenario: what it did in all rounds, and the memory of the process after them.
fn table(reports: &[Report]) -> String {
    let mut text = format!(
        "{:<12}{:>8}{:>16}{:>14}{:>14}{:>14}\n",
        "scenario", "rounds", "operations", "first KiB", "most KiB", "last KiB"
    );
    let mut names: Vec<&str> = Vec::new();
    for report in reports {
        if !names.contains(&report.scenario.as_str()) {
            names.push(&report.scenario);
        }
    }
    for name in names {
        let rounds = || reports.iter().filter(|report| report.scenario == name);
        let operations = rounds().map(|report| report.operations).sum();
        // A process that is just ending has none left.
        let resident = rounds().map(|report| report.resident_kib).filter(|kib| *kib > 0);
        let kib: Vec<_> = resident.collect();
        let most = kib.iter().copied().max().unwrap_or(0);
        let columns =
            [operations, kib.first().copied().unwrap_or(0), most, kib.last().copied().unwrap_or(0)]
                .map(|n| HumanCount(n).to_string());
        let [operations, first, most, last] = columns;
        let rounds = rounds().count();
        text += &format!("{name:<12}{rounds:>8}{operations:>16}{first:>14}{most:>14}{last:>14}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_per_scenario_with_its_memory_over_the_rounds() {
        let lines = "soak 2 1000000 8100 entries\n\
                     soak 4 500 9000 tiny\n\
                     test threads::it ... ok\n\
                     soak 6 234567 8300 entries\n\
                     soak 8 500 8200 tiny\n";
        let reports: Vec<_> = lines.lines().filter_map(Report::parse).collect();
        assert_eq!(reports.len(), 4);
        assert_eq!(
            table(&reports),
            "scenario      rounds      operations     first KiB      most KiB      last KiB\n\
             entries            2       1,234,567         8,100         8,300         8,300\n\
             tiny               2           1,000         9,000         9,000         8,200\n"
        );
    }
}
