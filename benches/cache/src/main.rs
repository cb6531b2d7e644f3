//! The memory tier beside the caches that others ship.
//!
//! The peer of most rows is `quick_cache` as it comes: no time to live, no statistics, no lower tiers. So
//! the ratio is the price of everything that a [`Cache`] does around an operation, and what its own
//! engine gains. With the feature `peers` the same loads run on other crates; the rows that name one of
//! them have `Policy::Adaptive` on our side, which does the most work.
//!
//! All sides hold `u64` under `u64` and see the same keys in the same order. Keys are drawn by a Zipf
//! distribution, an own stream for each thread, and a stream is long enough that no round repeats what
//! an earlier one has left in a cache. Cases in two threads do the same number of operations in each
//! and count CPU time: a cache line that both write shows as a larger number, and waiting for a core
//! does not.
#![forbid(unsafe_code)]

mod adaptive;
mod bytes;
mod loads;
mod similarity;
mod tags;
mod upkeep;

use std::process::ExitCode;
use std::thread;

use bench_cache::peers::{OTHERS, Peer};
use cache_tiered::{Cache, Policy};
use ultra_perf_bench::Suite;

/// Entries that a cache may hold: larger than the second-level cache of a core, as in a service.
const ENTRIES: u64 = 100_000;
/// Entries of a cache that is measured as a whole.
const MANY: u64 = 1_000_000;
const NO_PEERS: &str = "built without peers: cargo xtask bench cache --peers";

fn main() -> ExitCode {
    if let Some(code) = bytes::child() {
        return code;
    }
    let mut suite = Suite::new("cache");
    loads::rows(&mut suite);
    adaptive::rows(&mut suite);
    upkeep::rows(&mut suite);
    bytes::rows(&mut suite);
    similarity::rows(&mut suite);
    tags::rows(&mut suite);
    suite.finish()
}

fn cache(policy: Policy, entries: u64) -> Cache<u64, u64> {
    let builder = Cache::builder("bench").entries(entries).policy(policy);
    builder.build().expect("a valid configuration")
}

/// The other peers that have a place in a case, or a row that says why there is none.
fn others(
    suite: &mut Suite,
    case: &str,
    unit: &str,
    wanted: impl Fn(&Peer) -> bool,
) -> Vec<&'static Peer> {
    if OTHERS.is_empty() {
        suite.reported(case, unit).skip("moka and others", NO_PEERS);
    }
    OTHERS.iter().filter(|peer| wanted(peer)).collect()
}

/// Does some work in as many threads as there are parts of it.
fn in_threads<T: Sync>(parts: &[T], work: impl Fn(&T) + Sync) {
    let Some((first, rest)) = parts.split_first() else { return };
    thread::scope(|scope| {
        for part in rest {
            scope.spawn(|| work(part));
        }
        work(first);
    });
}
