//! `cargo xtask ci fuzz`: every fuzz target for a short while.
//!
//! The targets are the files of `fuzz/targets`. Each starts from what it has found on this machine before
//! (`fuzz/corpus`, which it adds to) and from its seeds in the repository (`fuzz/seeds`). A short run meets
//! what a change has just broken; for a search, give it more time:
//!
//! ```text
//! ULTRA_PERF_FUZZ_SECONDS=3600 cargo xtask ci fuzz
//! ```

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use crate::{Outcome, repo};

/// Seconds for each target unless told otherwise.
const SECONDS: u32 = 10;
/// How long a target may take for one input before that counts as a failure.
const INPUT_SECONDS: u32 = 20;

/// What is missing to run the targets and how to get it.
pub(crate) fn missing(cargo: &mut Command) -> Option<&'static str> {
    if !repo::installed("cargo-fuzz") {
        return Some("cargo-fuzz is not installed (cargo install --locked cargo-fuzz)");
    }
    let nightly = repo::succeeds(cargo.arg("--version"));
    (!nightly).then_some("a nightly toolchain is not installed (rustup toolchain install nightly)")
}

/// Runs every target, the others too when one fails; `cargo` makes the command of a nightly cargo.
pub(crate) fn run(cargo: impl Fn() -> Command) -> Outcome {
    let seconds = seconds(env::var("ULTRA_PERF_FUZZ_SECONDS").ok().as_deref())?;
    let folder = repo::root().join("fuzz");
    let mut failed = Vec::new();
    for target in targets(&folder)? {
        let corpus = folder.join("corpus").join(&target);
        fs::create_dir_all(&corpus)
            .map_err(|error| format!("cannot make {}: {error}", corpus.display()))?;
        let mut fuzz = cargo();
        fuzz.current_dir(&folder).env("CARGO_TARGET_DIR", repo::target().join("fuzz"));
        fuzz.args(["fuzz", "run", &target]).arg(corpus).arg(folder.join("seeds").join(&target));
        fuzz.args(["--", "-verbosity=0", "-print_funcs=0", "-print_final_stats=1"]);
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_SECONDS}"));
        if repo::run(&mut fuzz).is_err() {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("{}: the inputs are under fuzz/artifacts", failed.join(", ")))
}

fn seconds(given: Option<&str>) -> Result<u32, String> {
    let Some(text) = given else { return Ok(SECONDS) };
    text.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
        format!("ULTRA_PERF_FUZZ_SECONDS = \"{text}\": must be a number of seconds, at least 1")
    })
}

/// The names of the targets, in order.
fn targets(folder: &Path) -> Result<Vec<String>, String> {
    let folder = folder.join("targets");
    let files = fs::read_dir(&folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.ok()?.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_positive_number_of_seconds() {
        assert_eq!(seconds(None), Ok(SECONDS));
        assert_eq!(seconds(Some("60")), Ok(60));
        for wrong in ["", "0", "-1", "1m"] {
            let message = seconds(Some(wrong)).expect_err("no time");
            assert!(message.contains(&format!("{wrong:?}")), "{message}");
        }
    }

    #[test]
    fn every_target_is_in_the_manifest_and_has_seeds() {
        let folder = repo::root().join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
        let targets = targets(&folder).expect("a folder of targets");
        assert!(!targets.is_empty());
        for target in &targets {
            assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
            let seeds = fs::read_dir(folder.join("seeds").join(target)).map(Iterator::count);
            assert!(seeds.is_ok_and(|seeds| seeds > 0), "{target} has no seeds");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    }
}
