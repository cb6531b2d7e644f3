//! What `Policy::Adaptive` adds to an operation of the policy that it has chosen.

use std::hint::black_box;

use bench_cache::Store;
use bench_cache::workload::Zipf;
use cache_tiered::{Cache, Policy};
use fastrand::Rng;
use ultra_perf_bench::{Clock, Stopwatch, Suite, median};

use crate::{ENTRIES, cache};

/// Keys that are asked for: an eighth of the requests miss, so the samples are worked off as they are
/// in a service.
const KEYS: usize = 2 * ENTRIES as usize;
/// Requests between two looks at the clock; the caches take turns at them.
const TURN: usize = 10_000;
/// Turns of a reading, which is the median of what the one takes longer in each.
const TURNS: usize = 40;
/// Readings closer to zero than the clock can tell are shown as this many nanoseconds.
const FLOOR: f64 = 0.1;

/// Adds the rows of what adapting costs.
pub(crate) fn rows(suite: &mut Suite) {
    let cases = [("sampling and election per request", 3.0), ("the same with the curve", 6.0)];
    for (with_curve, (case, target)) in [false, true].into_iter().zip(cases) {
        if !suite.wants(case) {
            continue;
        }
        let builder = Cache::builder("bench").entries(ENTRIES).policy(Policy::Adaptive);
        let adaptive = builder.miss_ratio_curve(with_curve).build().expect("a valid configuration");
        let mut rng = Rng::with_seed(5);
        let keys = Zipf::new(KEYS).draw(2 * TURNS * TURN, &mut rng);
        adaptive.read_through(&keys);
        let chosen = adaptive.policy_report().expect("the engine has policies").live;
        // A candidate that has no name of its own is LFU with another window.
        let chosen = chosen.parse().unwrap_or(Policy::Lfu);
        let fixed = cache(chosen, ENTRIES);
        fixed.read_through(&keys);

        let mut turns = keys.chunks(TURN).cycle();
        suite.reported(case, "ns CPU/op").at_most(target).rounds(31).measure(|| {
            let difference = |turn: usize| {
                let keys = turns.next().expect("a cycle has no end");
                let mut taken = [0.0; 2];
                let mut order = [(0, &adaptive), (1, &fixed)];
                if turn % 2 == 1 {
                    order.reverse();
                }
                for (side, cache) in order {
                    let watch = Stopwatch::start(Clock::Cpu);
                    black_box(cache.read_through(keys));
                    taken[side] = watch.nanos_per(TURN as u64);
                }
                taken[0] - taken[1]
            };
            let differences: Vec<f64> = (0..TURNS).map(difference).collect();
            median(&differences).expect("there are turns").max(FLOOR)
        });
    }
}
