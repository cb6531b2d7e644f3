//! Rules read metrics by their names: each that one of them asks for is published by something.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where the rules are.
const RULES: &[&str] = &["ultra-perf/src/advice.rs", "ultra-perf/src/advice"];

/// Where metrics are published, by the handle and what stands on it.
const PUBLISHERS: &[&str] = &[
    "ultra-perf/src/watch.rs",
    "ultra-perf/src/watch",
    "ultra-perf/src/call/measure.rs",
    "cache-tiered/src/publish.rs",
    "monitor/src/collect.rs",
    "monitor/src/collect",
    "http/src/backends/report.rs",
];

/// What looks like the name of a metric in a rule and is none: settings, labels, names of readings.
const OTHERS: &[&str] = &[
    "balancer_shed",
    "early_refresh",
    "hit_ratio",
    "in_flight",
    "negative_ttl",
    "prefetches_used",
    "queue_wait_p95",
    "reloads_same",
    "repeated_not_found",
    "tasks_per_second",
    "timed_out",
    "waiting_for_loads",
];

/// The files of a place that are no tests.
fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let listed = fs::read_dir(place).expect("a directory of the project");
    let paths = listed.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.is_file() && !path.ends_with("tests.rs")).collect()
}

/// The texts in the sources of some places that could be names of metrics.
fn names(places: &[&str]) -> BTreeSet<String> {
    let is_name = |text: &&str| {
        let is_word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit())
        };
        text.contains('_') && text.split('_').all(is_word)
    };
    let mut names = BTreeSet::new();
    for file in places.iter().flat_map(|place| files(&Path::new(CRATES).join(place))) {
        let text = fs::read_to_string(&file).expect("a source of the project");
        names.extend(text.split('"').filter(is_name).map(str::to_owned));
    }
    names
}

#[test]
fn every_metric_that_a_rule_reads_is_published() {
    let (read, published) = (names(RULES), names(PUBLISHERS));
    for name in ["cache_hits_total", "retry_budget_refused_total", "scheduler_tasks_total"] {
        assert!(read.contains(name) && published.contains(name), "the search finds {name}");
    }
    let is_unknown =
        |name: &&String| !published.contains(*name) && !OTHERS.contains(&name.as_str());
    let unknown: Vec<&String> = read.iter().filter(is_unknown).collect();
    assert!(unknown.is_empty(), "rules read what nothing publishes: {unknown:?}");
    for name in OTHERS {
        assert!(read.contains(*name), "{name} is in no rule any more");
    }
}
