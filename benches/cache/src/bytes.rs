//! Bytes of memory for an entry, by what the kernel counts for a process that holds little else.
//!
//! Each number comes from a process of its own, since an allocator that has given memory away before
//! may have some left over. The process makes a small cache first, so that what is made once (threads,
//! tables of the allocator) is not counted, and fills a second one with 1 M new keys. The growth of its
//! resident set is divided by how many of the keys are then found.

use std::env;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use bench_cache::Store;
use bench_cache::peers::{OTHERS, Peer, QUICK_CACHE, Split};
use bench_cache::workload::key;
use cache_tiered::{Cache, CacheBuilder, Policy};
use ultra_perf_bench::Suite;

use crate::{MANY, NO_PEERS, cache};

/// The argument that makes this program measure one cache and print the result.
const CHILD: &str = "--bytes-per-entry-of";
/// Entries of the cache that is made first.
const FEW: usize = 1_000;
const HOUR: Duration = Duration::from_secs(3_600);
/// What a plain entry may take, deadline and weight included.
const TARGET: f64 = 56.0;

/// What is measured: a name for the table and a cache for so many entries.
type Subject = (String, Box<dyn Fn(usize) -> Box<dyn Store>>);

fn ours() -> Vec<Subject> {
    let policy = |policy: Policy| -> Subject {
        (policy.to_string(), Box::new(move |entries| Box::new(cache(policy, entries as u64))))
    };
    Policy::ALL.into_iter().map(policy).collect()
}

/// Our caches with the side arrays that are made at the first use of what needs them.
fn with_side_arrays() -> Vec<Subject> {
    fn build(
        entries: usize,
        more: fn(CacheBuilder<u64, u64>) -> CacheBuilder<u64, u64>,
    ) -> Cache<u64, u64> {
        let builder = Cache::builder("bench").entries(entries as u64).policy(Policy::Adaptive);
        more(builder).build().expect("a valid configuration")
    }
    vec![
        (
            "adaptive, entries that expire".to_owned(),
            Box::new(|entries| Box::new(build(entries, |builder| builder.ttl(HOUR)))),
        ),
        (
            "adaptive, a time to idle".to_owned(),
            Box::new(|entries| Box::new(build(entries, |builder| builder.time_to_idle(HOUR)))),
        ),
        (
            "adaptive, pins".to_owned(),
            Box::new(|entries| Box::new(Pinning(build(entries, |builder| builder)))),
        ),
    ]
}

fn of(peer: &Peer) -> Subject {
    let make = peer.make;
    (peer.name.to_owned(), Box::new(move |entries| make(entries, Split::Default)))
}

/// A cache in which one entry is pinned, so that there is a place for pins.
struct Pinning(Cache<u64, u64>);

impl Store for Pinning {
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get_in_memory(&key)
    }

    fn insert(&self, id: u64, value: u64) {
        self.0.insert(id, value);
        if id == key(0) {
            assert!(self.0.pin(&id).expect("the engine has pins"), "it has just been inserted");
        }
    }
}

/// Measures one cache, if that is what this process was started for.
pub(crate) fn child() -> Option<ExitCode> {
    let mut args = env::args().skip(1);
    let name = args.next().filter(|arg| arg == CHILD).and(args.next())?;
    let peers = OTHERS.iter().chain([&QUICK_CACHE]).map(of);
    let mut subjects = ours().into_iter().chain(with_side_arrays()).chain(peers);
    let measured = subjects.find(|(of, _)| *of == name).and_then(|(_, make)| measure(&*make));
    Some(match measured {
        Some(bytes) => {
            println!("{bytes}");
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    })
}

fn measure(make: &dyn Fn(usize) -> Box<dyn Store>) -> Option<f64> {
    let small = make(FEW);
    small.insert_all(&mut (0..FEW).map(key));
    small.settle();
    let keys: Vec<u64> = (0..MANY as usize).map(key).collect();

    let before = resident_bytes()?;
    let cache = make(MANY as usize);
    cache.insert_all(&mut keys.iter().copied());
    cache.settle();
    let after = resident_bytes()?;
    let there = cache.get_all(&keys);
    assert!(there > keys.len() / 2, "only {there} entries are there");
    Some(after.saturating_sub(before) as f64 / there as f64)
}

/// Bytes of this process that are in memory, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Adds the rows of memory: ours with a target, what side arrays add, and the peers.
pub(crate) fn rows(suite: &mut Suite) {
    for (name, _) in ours() {
        row(suite, &name, Some(TARGET));
    }
    for (name, _) in with_side_arrays() {
        row(suite, &name, None);
    }
    for peer in [&QUICK_CACHE].into_iter().chain(OTHERS) {
        row(suite, peer.name, None);
    }
    if OTHERS.is_empty() {
        suite.reported("bytes per entry", "B").skip("moka and others", NO_PEERS);
    }
}

fn row(suite: &mut Suite, name: &str, target: Option<f64>) {
    let case = format!("bytes per entry, {name}");
    if !suite.wants(&case) {
        return;
    }
    let row = suite.reported(&case, "B");
    match (in_a_child(name), target) {
        (Ok(bytes), Some(target)) => row.at_most(target).observed(bytes),
        (Ok(bytes), None) => row.observed(bytes),
        (Err(reason), _) => row.skip("nothing", &reason),
    }
}

fn in_a_child(name: &str) -> Result<f64, String> {
    let program = env::current_exe().map_err(|error| format!("cannot start a process: {error}"))?;
    let output = Command::new(program).args([CHILD, name]).output();
    let output = output.map_err(|error| format!("cannot start a process: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("its process tells no number: {}", said.lines().next().unwrap_or("no /proc"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_has_a_name_of_its_own() {
        let peers = OTHERS.iter().chain([&QUICK_CACHE]).map(of);
        let all = ours().into_iter().chain(with_side_arrays()).chain(peers);
        let mut names: Vec<String> = all.map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_written_becomes_resident() {
        let before = resident_bytes().expect("the system tells");
        let written = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident_bytes().expect("the system tells");
        assert!(after >= before + (48 << 20), "{before} {after}");
        drop(written);
    }
}
