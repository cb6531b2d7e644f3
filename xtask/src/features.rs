//! Which sets of features of a crate are worth compiling.
//!
//! None, each one alone, all together, and those that the manifest lists as what users take
//! (`[package.metadata.features] sets`); the powerset is left to cargo-hack. Features bring others
//! along, so sets that come to the same are compiled once: a feature that is the default's only member
//! is the default, and a crate without features is one set. A feature whose name begins with `__` is a
//! part of others and nobody's to ask for: it is not compiled alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use cargo_metadata::Package;

use crate::{Outcome, repo};

/// Builds side by side: one alone leaves cores idle, since a set ends with one crate after the other.
const WORKERS_MAX: usize = 4;

/// Compiles the sets of features of every crate; a warning of the compiler counts as an error.
pub(crate) fn compile(packages: &[Package]) -> Outcome {
    let mut open: VecDeque<(&str, Vec<String>)> = VecDeque::new();
    for package in packages {
        let taken = taken(&package.metadata, &package.features)
            .map_err(|problem| format!("{}: {problem}", package.manifest_path))?;
        open.extend(
            sets(&package.features, &taken).into_iter().map(|set| (package.name.as_str(), set)),
        );
    }
    let total = open.len();
    let workers = std::thread::available_parallelism().map_or(1, |it| it.get().min(WORKERS_MAX));
    let (open, failed) = (Mutex::new(open), Mutex::new(Vec::new()));
    let work = |worker: usize| {
        loop {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            // From both ends, so that sets of one crate, which share much, meet in one folder.
            let next = if worker == 0 { open.pop_front() } else { open.pop_back() };
            let number = total - open.len();
            drop(open);
            let Some((package, set)) = next else { return };
            let set = set.join(",");
            eprintln!("{number} of {total}: {package} with [{set}]");
            // Not under clippy, which looks at all our crates again for each set and takes twice as long.
            let mut command = repo::cargo("check --quiet --no-default-features --package");
            command.arg(package);
            // The first finds the dependencies that the lints have been through.
            if worker > 0 {
                let folder = repo::target().join("features").join(worker.to_string());
                command.env("CARGO_TARGET_DIR", folder);
            }
            if !set.is_empty() {
                command.args(["--features", &set]);
            }
            // Flags that deny warnings would have every dependency compiled again. Told to be quiet, cargo
            // says nothing but errors and warnings.
            let said = command.output().map_err(|error| error.to_string());
            let said =
                said.map(|it| (it.status.success(), String::from_utf8_lossy(&it.stderr).into()));
            let (succeeded, said): (bool, String) = said.unwrap_or_else(|error| (false, error));
            if !succeeded || !said.trim().is_empty() {
                eprint!("{said}");
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push(format!("{package} with [{set}]"));
            }
        }
    };
    std::thread::scope(|scope| {
        (0..workers).for_each(|worker| drop(scope.spawn(move || work(worker))));
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("does not compile without a warning: {}", failed.join("; ")))
    }
}

/// Returns the sets to compile, each as the features to name on the command line.
fn sets(features: &BTreeMap<String, Vec<String>>, taken: &[Vec<String>]) -> Vec<Vec<String>> {
    let singles = features.keys().map(|name| vec![name.clone()]);
    let all = features.keys().filter(|name| *name != "default").cloned().collect();
    let mut seen = BTreeSet::new();
    std::iter::once(Vec::new())
        .chain(singles.filter(|set| set[0] != "default" && !set[0].starts_with("__")))
        .chain(taken.iter().cloned())
        .chain([all])
        .filter(|set: &Vec<String>| seen.insert(closure(set, features)))
        .collect()
}

/// Reads the sets that a manifest lists as what users take.
///
/// # Errors
///
/// If they are not a list of lists of features that the crate has.
fn taken(
    metadata: &serde_json::Value,
    features: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<Vec<String>>, String> {
    let Some(listed) = metadata["features"].get("sets") else { return Ok(Vec::new()) };
    let sets: Vec<Vec<String>> = serde_json::from_value(listed.clone()).map_err(|_| {
        format!("package.metadata.features.sets = {listed}: expected lists of names")
    })?;
    match sets.iter().flatten().find(|name| !features.contains_key(*name)) {
        None => Ok(sets),
        Some(name) => {
            Err(format!("package.metadata.features.sets: there is no feature \"{name}\""))
        }
    }
}

/// The features that are on when `set` is asked for.
fn closure(set: &[String], features: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut on = BTreeSet::new();
    let mut open = set.to_vec();
    while let Some(name) = open.pop() {
        if let Some(brings) = features.get(&name)
            && on.insert(name)
        {
            open.extend(brings.iter().cloned());
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `name: brings, brings; name` and compares the sets, written as `-, a, a+b`.
    fn check(features: &str, expected: &str) {
        check_with(features, &[], expected);
    }

    fn check_with(features: &str, taken: &[&[&str]], expected: &str) {
        let taken: Vec<Vec<String>> =
            taken.iter().map(|set| set.iter().map(|&name| name.to_owned()).collect()).collect();
        let features = features
            .split(';')
            .filter(|feature| !feature.trim().is_empty())
            .map(|feature| {
                let (name, brings) = feature.split_once(':').unwrap_or((feature, ""));
                let brings = brings.split(',').map(str::trim).filter(|name| !name.is_empty());
                (name.trim().to_owned(), brings.map(str::to_owned).collect())
            })
            .collect();
        let sets: Vec<String> = sets(&features, &taken).iter().map(|set| set.join("+")).collect();
        assert_eq!(format!("-{}", sets.join(", ")), expected);
    }

    #[test]
    fn a_crate_without_features_is_one_set() {
        check("", "-");
    }

    #[test]
    fn each_feature_stands_alone_and_all_stand_together() {
        check("a; b; c", "-, a, b, c, a+b+c");
    }

    #[test]
    fn an_only_feature_is_not_compiled_twice() {
        check("default: disk; disk: dep:x", "-, disk");
    }

    #[test]
    fn a_part_of_features_is_not_compiled_alone() {
        check("a: __p; b: __p; __p", "-, a, b, __p+a+b");
    }

    #[test]
    fn a_feature_that_brings_all_others_is_all_of_them() {
        check("a: b; b", "-, a, b");
    }

    #[test]
    fn a_set_that_users_take_is_compiled_unless_it_comes_to_another() {
        check_with("a; b; c", &[&["a", "b"], &["b", "a"], &["c"]], "-, a, b, c, a+b, a+b+c");
    }

    #[test]
    fn a_manifest_that_lists_what_is_no_feature_is_told() {
        let features = BTreeMap::from([("a".to_owned(), Vec::new())]);
        let read =
            |listed| taken(&serde_json::json!({ "features": { "sets": listed } }), &features);
        assert_eq!(read(serde_json::json!([["a"]])), Ok(vec![vec!["a".to_owned()]]));
        let error = read(serde_json::json!([["a", "d"]])).expect_err("there is no d");
        assert_eq!(error, "package.metadata.features.sets: there is no feature \"d\"");
        assert!(read(serde_json::json!("a")).expect_err("a text").contains("lists of names"));
        assert_eq!(taken(&serde_json::Value::Null, &features), Ok(Vec::new()));
    }

    /// The packages that a crate of ours is compiled with, but for tests and build scripts.
    fn packages_of(package: &str, features: &str) -> BTreeSet<String> {
        let words = "tree --quiet --offline --edges normal --prefix none --format {p} --no-default-features";
        let mut tree = repo::cargo(words);
        tree.args(["--package", package, "--features", features]);
        let listed = repo::output(&mut tree).expect("the lock file has all of it");
        listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    const PARTS: [&str; 7] = [
        "cache-tiered",
        "loadbalancer",
        "memory",
        "monitor",
        "resilience",
        "scheduler",
        "ultra-perf-macros",
    ];

    #[test]
    fn the_umbrella_without_features_brings_no_part_and_no_runtime() {
        let packages = packages_of("ultra-perf", "");
        assert!(packages.contains("ultra-perf") && packages.contains("serde"), "{packages:?}");
        for not in
            PARTS.into_iter().chain(["hyper", "metrics", "rayon", "redis", "tokio", "tracing"])
        {
            assert!(!packages.contains(not), "{not} comes along: {packages:?}");
        }
    }

    #[test]
    fn a_part_brings_no_other_part() {
        for (feature, its) in [
            ("cache", &["cache-tiered"][..]),
            ("memory", &["memory"]),
            ("monitor", &["monitor"]),
            ("resilience", &["resilience"]),
            ("loadbalancer", &["loadbalancer", "resilience"]),
            ("scheduler", &["scheduler"]),
        ] {
            let packages = packages_of("ultra-perf", feature);
            let parts: Vec<&str> =
                PARTS.into_iter().filter(|part| packages.contains(*part)).collect();
            assert_eq!(parts, its, "{feature}");
        }
    }
}
