//! What is done to a whole cache while it is in use: another policy, another size.

use bench_cache::Store;
use bench_cache::workload::key;
use cache_tiered::Policy;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::{MANY, cache};

/// Adds the rows of changes to a live cache.
pub(crate) fn rows(suite: &mut Suite) {
    switches(suite);
    resizes(suite);
}

fn switches(suite: &mut Suite) {
    let case = "slowest switch among the policies, per shard of a cache of 1 M entries";
    if !suite.wants(case) {
        return;
    }
    let cache = cache(Policy::Lru, MANY);
    cache.insert_all(&mut (0..MANY as usize).map(key));
    // What the engine makes of so many entries.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = (4 * cores).next_power_of_two();
    let switch = |policy| {
        let watch = Stopwatch::start(Clock::Cpu);
        cache.set_policy(policy).expect("the engine has policies");
        watch.elapsed().as_secs_f64() * 1e3 / shards as f64
    };
    suite
        .reported(case, "ms CPU")
        .at_most(1.0)
        .rounds(15)
        .measure(|| Policy::ALL.map(switch).into_iter().fold(0.0, f64::max));
}

fn resizes(suite: &mut Suite) {
    let case = "resize to a half, per entry that goes";
    if !suite.wants(case) {
        return;
    }
    let cache = cache(Policy::S3Fifo, MANY);
    let mut next = 0;
    suite.reported(case, "ns CPU/op").rounds(9).measure(|| {
        cache.resize(MANY);
        cache.insert_all(&mut (next..next + MANY as usize).map(key));
        next += MANY as usize;
        let watch = Stopwatch::start(Clock::Cpu);
        cache.resize(MANY / 2);
        watch.nanos_per(MANY / 2)
    });
}
