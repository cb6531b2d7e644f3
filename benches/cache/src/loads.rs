//! Loads that every cache is given: hits, a mix, reads that fill, and inserts that evict.

use std::hint::black_box;
use std::time::Duration;

use bench_cache::peers::{Peer, QUICK_CACHE, Split};
use bench_cache::workload::{Zipf, key};
use bench_cache::{Operation, Store, ready};
use cache_tiered::{Cache, Policy};
use fastrand::Rng;
use ultra_perf_bench::{Clock, Suite};

use crate::{ENTRIES, cache, in_threads, others};

/// Keys that are there in a case of hits: half of the capacity, so that no shard has to evict one.
const RESIDENT: usize = ENTRIES as usize / 2;
/// Keys that the other cases ask for.
const KEYS: usize = 1_000_000;
/// Operations of a round, in each thread: ten for each entry, or a row would measure how fast a cache
/// comes back into the processor's caches after the other one's turn.
const OPERATIONS: usize = 500_000;
/// Rounds until a stream starts over.
const ROUNDS: usize = 16;
/// Keys of one `get_many`.
const BATCH: usize = 16;
/// Operations of a round beside a peer that takes microseconds for each.
const FEW_OPERATIONS: usize = 50_000;
/// The same beside one that takes hundreds of them for an insert.
const FEWEST_OPERATIONS: usize = 1_000;

const UNIT: &str = "ns CPU/op";

/// Adds the rows of all loads.
pub(crate) fn rows(suite: &mut Suite) {
    hits(suite);
    let wanted = ["90/10 mix", "read-through"];
    if Policy::ALL.iter().any(|policy| wanted.iter().any(|case| wants(suite, case, *policy)))
        || wanted.iter().any(|case| suite.wants(&format!("{case} vs moka")))
    {
        mixes(suite);
    }
    inserts(suite);
}

/// Whether a filter lets any row of a case and a policy run.
fn wants(suite: &Suite, case: &str, policy: Policy) -> bool {
    THREADS.iter().any(|(_, of)| suite.wants(&format!("{} vs quick_cache", name(case, of, policy))))
}

/// The numbers of threads, and how a case calls them.
const THREADS: [(usize, &str); 2] = [(1, ""), (2, ", two threads")];

fn name(case: &str, threads: &str, policy: Policy) -> String {
    format!("{case}{threads}, {policy}")
}

fn hits(suite: &mut Suite) {
    let zipf = Zipf::new(RESIDENT);
    let streams: Vec<_> =
        (1..=2).map(|seed| zipf.draw(OPERATIONS, &mut Rng::with_seed(seed))).collect();
    let fill = |store: &dyn Store| {
        store.insert_all(&mut (0..RESIDENT).map(key));
        store.settle();
    };
    let all_there = |store: &dyn Store| {
        in_threads(&streams, |keys| assert_eq!(store.get_all(keys), keys.len(), "all are hits"));
    };
    let peer = (QUICK_CACHE.make)(ENTRIES as usize, Split::Default);
    fill(&*peer);
    all_there(&*peer);

    for policy in Policy::ALL {
        let ours = cache(policy, ENTRIES);
        fill(&ours);
        all_there(&ours);
        for ((threads, of), target) in THREADS.into_iter().zip([1.15, 0.6]) {
            let streams = &streams[..threads];
            suite
                .time(&name("hit", of, policy), Clock::Cpu, (threads * OPERATIONS) as u64)
                .at_most(target)
                .compare(
                    QUICK_CACHE.name,
                    || in_threads(streams, |keys| _ = black_box(ours.get_all(keys))),
                    || in_threads(streams, |keys| _ = black_box(peer.get_all(keys))),
                );
        }
    }

    let keys = &streams[0];
    let adaptive = cache(Policy::Adaptive, ENTRIES);
    let builder = Cache::builder("bench").entries(ENTRIES).policy(Policy::Adaptive);
    let timed = builder.ttl(Duration::from_secs(3_600)).build().expect("a valid configuration");
    for ours in [&adaptive, &timed] {
        fill(ours);
    }
    let operations = OPERATIONS as u64;
    suite.time("hit with a time to live", Clock::Cpu, operations).compare(
        QUICK_CACHE.name,
        || _ = black_box(timed.get_all(keys)),
        || _ = black_box(peer.get_all(keys)),
    );
    suite.time("hit through the async get", Clock::Cpu, operations).compare(
        QUICK_CACHE.name,
        || keys.iter().for_each(|key| _ = black_box(ready(adaptive.get(key)).expect("a hit"))),
        || _ = black_box(peer.get_all(keys)),
    );
    suite.time("hit in a get_many of 16", Clock::Cpu, operations).compare(
        QUICK_CACHE.name,
        || {
            for keys in keys.chunks(BATCH) {
                assert!(ready(adaptive.get_many(keys)).iter().all(Option::is_some));
            }
        },
        || _ = black_box(peer.get_all(keys)),
    );
    for other in others(suite, "hit", UNIT, |_| true) {
        for (threads, of) in THREADS {
            let case = format!("hit{of}");
            if !suite.wants(&format!("{case} vs {}", other.name)) {
                continue;
            }
            let theirs = (other.make)(ENTRIES as usize, Split::Default);
            fill(&*theirs);
            let streams = &streams[..threads];
            suite.time(&case, Clock::Cpu, (threads * OPERATIONS) as u64).rounds(9).compare(
                other.name,
                || in_threads(streams, |keys| _ = black_box(adaptive.get_all(keys))),
                || in_threads(streams, |keys| _ = black_box(theirs.get_all(keys))),
            );
        }
    }
}

/// What one thread is given, a round at a time.
struct Stream<T> {
    all: Vec<T>,
}

impl<T> Stream<T> {
    fn round(&self, round: usize, operations: usize) -> &[T] {
        let rounds = self.all.len() / operations;
        &self.all[round % rounds * operations..][..operations]
    }
}

/// Runs the next round of a load whenever it is called.
fn in_rounds<'a, T: Sync>(
    streams: &'a [Stream<T>],
    operations: usize,
    work: impl Fn(&[T]) + Sync + 'a,
) -> impl FnMut() + 'a {
    let mut round = 0;
    move || {
        let parts: Vec<&[T]> =
            streams.iter().map(|stream| stream.round(round, operations)).collect();
        round += 1;
        in_threads(&parts, |part| work(part));
    }
}

fn mixes(suite: &mut Suite) {
    let zipf = Zipf::new(KEYS);
    let mut rng = Rng::with_seed(3);
    let mut mixed = || zipf.mix(ROUNDS * OPERATIONS, &mut rng);
    let mixed: Vec<_> = (0..2).map(|_| Stream { all: mixed() }).collect();
    let mut keys = || zipf.draw(ROUNDS * OPERATIONS, &mut rng);
    let keys: Vec<_> = (0..2).map(|_| Stream { all: keys() }).collect();
    // A cache that has seen a few of its capacities is in the state in which it stays.
    let fill = zipf.draw(10 * ENTRIES as usize, &mut rng);

    let mix = |store: &dyn Store, part: &[Operation]| store.run(part);
    let through = |store: &dyn Store, part: &[u64]| _ = black_box(store.read_through(part));
    for policy in Policy::ALL {
        for (threads, of) in THREADS {
            let operations = (threads * OPERATIONS) as u64;
            let case = name("90/10 mix", of, policy);
            if suite.wants(&format!("{case} vs quick_cache")) {
                let (ours, peer) = filled(policy, &fill);
                suite.time(&case, Clock::Cpu, operations).at_most(1.1).compare(
                    QUICK_CACHE.name,
                    in_rounds(&mixed[..threads], OPERATIONS, |part| mix(&ours, part)),
                    in_rounds(&mixed[..threads], OPERATIONS, |part| mix(&*peer, part)),
                );
            }
            let case = name("read-through", of, policy);
            if suite.wants(&format!("{case} vs quick_cache")) {
                let (ours, peer) = filled(policy, &fill);
                suite.time(&case, Clock::Cpu, operations).at_most(1.1).compare(
                    QUICK_CACHE.name,
                    in_rounds(&keys[..threads], OPERATIONS, |part| through(&ours, part)),
                    in_rounds(&keys[..threads], OPERATIONS, |part| through(&*peer, part)),
                );
            }
        }
    }
    for other in others(suite, "90/10 mix", UNIT, |peer| peer.evicts) {
        if suite.wants(&format!("90/10 mix vs {}", other.name)) {
            let (ours, _) = filled(Policy::Adaptive, &fill);
            let theirs = (other.make)(ENTRIES as usize, Split::Default);
            theirs.read_through(&fill);
            theirs.settle();
            let operations = operations_beside(other);
            suite.time("90/10 mix", Clock::Cpu, operations as u64).rounds(9).compare(
                other.name,
                in_rounds(&mixed[..1], operations, |part| mix(&ours, part)),
                in_rounds(&mixed[..1], operations, |part| {
                    mix(&*theirs, part);
                    theirs.settle();
                }),
            );
        }
    }
}

fn operations_beside(other: &Peer) -> usize {
    if other.queues { FEWEST_OPERATIONS } else { FEW_OPERATIONS }
}

fn filled(policy: Policy, keys: &[u64]) -> (Cache<u64, u64>, Box<dyn Store>) {
    let (ours, peer) =
        (cache(policy, ENTRIES), (QUICK_CACHE.make)(ENTRIES as usize, Split::Default));
    ours.read_through(keys);
    peer.read_through(keys);
    (ours, peer)
}

fn inserts(suite: &mut Suite) {
    let case = "insert that evicts";
    for policy in Policy::ALL {
        for (threads, of) in THREADS {
            let case = name(case, of, policy);
            if !suite.wants(&format!("{case} vs quick_cache")) {
                continue;
            }
            let (ours, peer) =
                (cache(policy, ENTRIES), (QUICK_CACHE.make)(ENTRIES as usize, Split::Default));
            let row = suite.time(&case, Clock::Cpu, (threads * OPERATIONS) as u64);
            // What two threads gain over one lock each is not promised; it is there to be seen.
            let row = if threads == 1 { row.at_most(1.2) } else { row };
            row.compare(
                QUICK_CACHE.name,
                new_keys(threads, OPERATIONS, |keys| ours.insert_all(keys)),
                new_keys(threads, OPERATIONS, |keys| peer.insert_all(keys)),
            );
        }
    }
    for other in others(suite, case, UNIT, |peer| peer.evicts) {
        if suite.wants(&format!("{case} vs {}", other.name)) {
            let ours = cache(Policy::Adaptive, ENTRIES);
            let theirs = (other.make)(ENTRIES as usize, Split::Default);
            // Keys that no round comes to fill both.
            let others = || (usize::MAX - ENTRIES as usize..usize::MAX).map(key);
            ours.insert_all(&mut others());
            theirs.insert_all(&mut others());
            theirs.settle();
            let operations = operations_beside(other);
            suite.time(case, Clock::Cpu, operations as u64).rounds(9).compare(
                other.name,
                new_keys(1, operations, |keys| ours.insert_all(keys)),
                new_keys(1, operations, |keys| {
                    theirs.insert_all(keys);
                    theirs.settle();
                }),
            );
        }
    }
}

/// Inserts keys that were never there, other ones whenever it is called.
fn new_keys<'a>(
    threads: usize,
    operations: usize,
    insert: impl Fn(&mut dyn Iterator<Item = u64>) + Sync + 'a,
) -> impl FnMut() + 'a {
    let mut first = 0;
    move || {
        let starts: Vec<usize> = (0..threads).map(|part| first + part * operations).collect();
        first += threads * operations;
        in_threads(&starts, |start| insert(&mut (*start..start + operations).map(key)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn each_round_takes_the_next_part_of_a_stream_until_it_starts_over() {
        let stream = Stream { all: vec![1, 2, 3, 4, 5, 6] };
        let rounds: Vec<&[i32]> = (0..4).map(|round| stream.round(round, 2)).collect();
        assert_eq!(rounds, [[1, 2], [3, 4], [5, 6], [1, 2]]);
    }

    #[test]
    fn threads_insert_keys_that_no_other_round_or_thread_does() {
        let seen = Mutex::new(Vec::new());
        let mut insert = new_keys(2, 10, |keys| seen.lock().expect("no panic").extend(keys));
        insert();
        insert();
        drop(insert);
        let mut seen = seen.into_inner().expect("no panic");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40);
    }
}
