//! What the memory tier adds to the bare cache that it stands on.
//!
//! The peer is `quick_cache` as it comes: no time to live, no statistics, no lower tiers. So the ratio is
//! the price of everything that a [`Cache`] does around it on a hit and on an insert. Both sides hold
//! `u64` under `u64` and see the same keys in the same order.
//!
//! Cases in two threads do the same number of operations in each and count CPU time: a cache line that
//! both write shows as a larger number, and waiting for a core does not.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use cache_tiered::Cache;
use ultra_perf_bench::{Clock, Suite};

/// Entries a cache holds: larger than the second-level cache of a core, as in a service.
const ENTRIES: u64 = 100_000;
/// Operations per round and thread.
const OPERATIONS: usize = 200_000;

fn main() -> ExitCode {
    let mut suite = Suite::new("cache");
    hits(&mut suite);
    inserts(&mut suite);
    suite.finish()
}

fn hits(suite: &mut Suite) {
    let ours = cache(2 * ENTRIES, None);
    let timed = cache(2 * ENTRIES, Some(Duration::from_secs(3_600)));
    let peer = quick_cache::sync::Cache::new(2 * ENTRIES as usize);
    for key in 0..ENTRIES {
        ours.insert(key, key);
        timed.insert(key, key);
        peer.insert(key, key);
    }
    let mut rng = fastrand::Rng::with_seed(1);
    // With room for twice the entries a shard that got more than its share evicts nothing, or little.
    let keys: Vec<u64> = std::iter::repeat_with(|| rng.u64(0..ENTRIES))
        .filter(|key| {
            peer.get(key).is_some()
                && ours.get_in_memory(key).is_some()
                && timed.get_in_memory(key).is_some()
        })
        .take(OPERATIONS)
        .collect();

    let peer_hits = || keys.iter().for_each(|key| _ = black_box(peer.get(key).expect("a hit")));
    let hits_of = |cache: &Cache<u64, u64>| {
        keys.iter().for_each(|key| _ = black_box(cache.get_in_memory(key).expect("a hit")));
    };
    let operations = OPERATIONS as u64;

    suite.time("hit", Clock::Cpu, operations).at_most(1.15).compare(
        "quick_cache",
        || hits_of(&ours),
        peer_hits,
    );
    suite.time("hit, two threads", Clock::Cpu, 2 * operations).compare(
        "quick_cache",
        || in_two_threads(|| hits_of(&ours)),
        || in_two_threads(peer_hits),
    );
    suite.time("hit with a time to live", Clock::Cpu, operations).compare(
        "quick_cache",
        || hits_of(&timed),
        peer_hits,
    );
    suite.time("hit through the async get", Clock::Cpu, operations).compare(
        "quick_cache",
        || keys.iter().for_each(|key| _ = black_box(ready(ours.get(key)).expect("a hit"))),
        peer_hits,
    );
}

fn inserts(suite: &mut Suite) {
    let ours = cache(ENTRIES, None);
    let peer = quick_cache::sync::Cache::new(ENTRIES as usize);
    let (mut our_key, mut peer_key) = (0, 0);
    let mut insert_ours = || {
        for _ in 0..OPERATIONS {
            ours.insert(our_key, our_key);
            our_key += 1;
        }
    };
    let mut insert_peer = || {
        for _ in 0..OPERATIONS {
            peer.insert(peer_key, peer_key);
            peer_key += 1;
        }
    };
    // Full from here on: every insert evicts.
    insert_ours();
    insert_peer();
    suite.time("insert that evicts", Clock::Cpu, OPERATIONS as u64).at_most(1.2).compare(
        "quick_cache",
        insert_ours,
        insert_peer,
    );
}

fn cache(entries: u64, ttl: Option<Duration>) -> Cache<u64, u64> {
    let builder = Cache::builder("bench").entries(entries);
    let builder = match ttl {
        Some(ttl) => builder.ttl(ttl),
        None => builder,
    };
    builder.build().expect("a valid configuration")
}

/// The value of a future that has no reason to wait.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a hit in memory does not wait"),
    }
}

fn in_two_threads(work: impl Fn() + Sync) {
    thread::scope(|scope| {
        scope.spawn(&work);
        work();
    });
}
