//! `cargo xtask bench`: runs suites and gathers their rows.
//!
//! A suite `NAME` is the package `bench-NAME` in `benches/NAME`, built in the release profile; its peers
//! are behind its feature `peers`, so that nobody compiles them by accident. Each suite writes its rows
//! to a file that is read back here, so a suite that dies loses only its own. A suite whose manifest says
//! `full = true` under `[package.metadata.bench]` takes `--full`, and then writes a page of its own too.
//! `--docs` writes the table of a run between the marks of the benchmarks page.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use ultra_perf_bench::{Row, table, write_section};

use crate::{Outcome, repo, scratch};

/// The page about all suites, and its part that a run writes.
const PAGE: &str = "docs/src/benchmarks.md";
const SECTION: &str = "suites";

/// What `cargo xtask bench` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Suites to run; all of them unless named
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Build the peers too and measure against them
    #[arg(long)]
    peers: bool,
    /// Measure all there is, however long it takes, and write the suite's page of the docs
    #[arg(long)]
    full: bool,
    /// Write the rows to FILE as a list of JSON objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to the benchmarks page of the docs
    #[arg(long)]
    docs: bool,
    /// Arguments for the suites, such as `--filter CASE` or `--rounds N`
    #[arg(last = true)]
    args: Vec<String>,
}

/// A package under `benches/` that can be run.
#[derive(Debug)]
struct Suite {
    name: String,
    has_peers: bool,
    /// Whether there is more to measure than what a run usually does.
    has_full: bool,
}

/// Runs the suites and prints one table.
pub(crate) fn run(options: &Options) -> Outcome {
    let known = known()?;
    let suites = selected(&known, &options.suites)?;
    if options.full && !suites.iter().any(|suite| suite.has_full) {
        let full = known.iter().filter(|suite| suite.has_full).map(|suite| suite.name.as_str());
        let full: Vec<_> = full.collect();
        return Err(format!("--full is for: {}", full.join(", ")));
    }
    // A file that cannot be written should not be found out after an hour; it is relative to where the
    // command was given, not to the root.
    if let Some(path) = &options.json {
        let opened = fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }

    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for suite in suites {
        match measure(suite, options) {
            Ok(more) => rows.extend(more),
            Err(message) => {
                eprintln!("{message}");
                failed.push(suite.name.as_str());
            }
        }
    }

    let out = io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    print!("\n{}\n{}", provenance(options), table(&rows, colour));
    println!("{}", verdict(&rows));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows).expect("rows are plain data");
        fs::write(path, text + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if options.docs {
        let section = section(&provenance(options), &rows);
        write_section(&repo::root().join(PAGE), SECTION, &section)
            .map_err(|error| format!("cannot write {error}"))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

/// The part of the benchmarks page that a run writes.
fn section(provenance: &str, rows: &[Row]) -> String {
    format!("```text\n{provenance}\n{}\n{}\n```", table(rows, false).trim_end(), verdict(rows))
}

fn known() -> Result<Vec<Suite>, String> {
    let metadata = repo::metadata()?;
    let mut suites: Vec<Suite> = metadata
        .workspace_packages()
        .into_iter()
        .filter_map(|package| {
            Some(Suite {
                name: package.name.strip_prefix("bench-")?.to_owned(),
                has_peers: package.features.contains_key("peers"),
                has_full: package.metadata["bench"]["full"].as_bool().unwrap_or(false),
            })
        })
        .collect();
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

fn selected<'s>(known: &'s [Suite], names: &[String]) -> Result<Vec<&'s Suite>, String> {
    if names.is_empty() {
        return Ok(known.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            known.iter().find(|suite| suite.name == *name).ok_or_else(|| {
                let known: Vec<_> = known.iter().map(|suite| suite.name.as_str()).collect();
                format!("there is no suite \"{name}\"; the suites are: {}", known.join(", "))
            })
        })
        .collect()
}

fn measure(suite: &Suite, options: &Options) -> Result<Vec<Row>, String> {
    let path = scratch(&format!("bench-{}.json", suite.name))?;
    let _ = fs::remove_file(&path); // rows of an earlier run must not pass for this one's
    let mut command = repo::cargo(&format!("run --release --package bench-{}", suite.name));
    if options.peers && suite.has_peers {
        command.args(["--features", "peers"]);
    }
    command.args(["--", "--no-table", "--json"]).arg(&path);
    if options.full && suite.has_full {
        command.args(["--full", "--docs"]).arg(repo::root().join("docs/src"));
        command.args(["--provenance", &provenance(options)]);
    }
    command.args(&options.args);
    repo::run(&mut command)?;
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("bench-{} left no rows: {error}", suite.name))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("bench-{} left rows that cannot be read: {error}", suite.name))
}

/// The command, the machine and the day: a number means nothing without them.
fn provenance(options: &Options) -> String {
    let mut command = String::from("cargo xtask bench");
    for suite in &options.suites {
        command += &format!(" {suite}");
    }
    if options.peers {
        command += " --peers";
    }
    if options.full {
        command += " --full";
    }
    if !options.args.is_empty() {
        command += &format!(" -- {}", options.args.join(" "));
    }
    machine(&command)
}

/// A command with the machine that it ran on and the day.
pub(crate) fn machine(command: &str) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let system = quiet_line(repo::program("uname").arg("-sr"));
    let day = quiet_line(repo::program("date").args(["-u", "+%F"]));
    format!("{command}\n{cpu}, {cores} cores, {system}, {day}\n")
}

fn quiet_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn verdict(rows: &[Row]) -> String {
    let count = |what: fn(&Row) -> bool| rows.iter().filter(|row| what(row)).count();
    format!(
        "{} rows: {} targets hold, {} are missed, {} cases skipped",
        rows.len(),
        count(|row| row.holds == Some(true)),
        count(|row| row.holds == Some(false)),
        count(|row| row.skipped.is_some()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites() -> Vec<Suite> {
        ["cache", "disk"]
            .map(|name| Suite { name: name.into(), has_peers: false, has_full: false })
            .into()
    }

    #[test]
    fn no_name_means_every_suite_and_a_name_means_that_one() {
        let suites = suites();
        assert_eq!(selected(&suites, &[]).expect("all").len(), 2);
        assert_eq!(selected(&suites, &["disk".into()]).expect("known")[0].name, "disk");
    }

    #[test]
    fn an_unknown_suite_is_answered_with_the_known_ones() {
        assert_eq!(
            selected(&suites(), &["disc".into()]).expect_err("unknown"),
            "there is no suite \"disc\"; the suites are: cache, disk"
        );
    }

    #[test]
    fn a_suite_says_in_its_manifest_that_it_can_be_run_in_full() {
        let known = known().expect("a workspace");
        let full: Vec<_> = known.iter().filter(|suite| suite.has_full).map(|s| &s.name).collect();
        assert_eq!(
            full,
            ["backends", "hit-ratio", "loadbalancer", "memory", "scheduler", "ultra-perf"]
        );
    }

    #[test]
    fn the_page_lists_every_suite_and_has_a_place_for_the_table() {
        let page = fs::read_to_string(repo::root().join(PAGE)).expect("there is the page");
        for suite in known().expect("a workspace") {
            let entry = format!("| `{}` |", suite.name);
            assert!(page.contains(&entry), "{PAGE} has no line that begins with {entry}");
        }
        let copy = scratch("the-page-of-the-suites.md").expect("a folder");
        fs::write(&copy, &page).expect("it can be written");
        write_section(&copy, SECTION, &section("a command\n", &[])).expect("both marks");
        let written = fs::read_to_string(&copy).expect("a page");
        assert!(written.contains("0 rows: 0 targets hold"), "{written}");
        let lines = |page: &str| page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(lines(&written), lines(&page), "the list of suites stays");
    }

    #[test]
    fn every_folder_under_benches_but_the_harness_is_a_suite() {
        let folders = std::fs::read_dir(repo::root().join("benches")).expect("a folder");
        let mut folders: Vec<_> = folders
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "harness")
            .collect();
        folders.sort();
        let known: Vec<_> = known().expect("a workspace").into_iter().map(|s| s.name).collect();
        assert_eq!(known, folders);
    }
}
