//! What tags cost: the invalidation of many entries, and hits of entries that have some.

use std::hint::black_box;

use bench_cache::workload::{Zipf, key};
use bench_cache::{Store, ready};
use cache_tiered::{Cache, InsertOptions, Policy};
use fastrand::Rng;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::{ENTRIES, MANY, cache};

const RESIDENT: usize = ENTRIES as usize / 2;
const LOOK_UPS: usize = 500_000;

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    invalidations(suite);
    hits(suite);
}

fn fill(cache: &Cache<u64, u64>, entries: usize, tags: usize) {
    for key in (0..entries).map(key) {
        let own = (0..tags).map(|at| match at {
            0 => "all".to_owned(),
            at => format!("{at}:{}", key % 1_000),
        });
        cache.insert_with(key, key, InsertOptions::default().tags(own));
    }
}

fn invalidations(suite: &mut Suite) {
    let case = "invalidate a tag of 1 M entries";
    if !suite.wants(case) {
        return;
    }
    let cache = cache(Policy::Adaptive, MANY);
    fill(&cache, MANY as usize, 1);
    suite.reported(case, "µs").at_most(10.0).rounds(101).measure(|| {
        let watch = Stopwatch::start(Clock::Wall);
        ready(cache.invalidate_tag("all"));
        watch.nanos_per(1) / 1e3
    });
    assert_eq!(cache.get_in_memory(&key(0)), None, "it is invalid");
}

fn hits(suite: &mut Suite) {
    let keys = Zipf::new(RESIDENT).draw(LOOK_UPS, &mut Rng::with_seed(1));
    let caches = [0, 1, 3, 8].map(|tags| {
        let cache = cache(Policy::Adaptive, ENTRIES);
        fill(&cache, RESIDENT, tags);
        (tags, cache)
    });
    let nanos = |cache: &Cache<u64, u64>, between: usize| {
        let watch = Stopwatch::start(Clock::Cpu);
        for keys in keys.chunks(between) {
            black_box(cache.get_all(keys));
            if between < LOOK_UPS {
                ready(cache.invalidate_tag("nobody has this one"));
            }
        }
        watch.nanos_per(LOOK_UPS as u64)
    };
    let [(_, plain), tagged @ ..] = &caches;
    for (tags, cache) in tagged {
        // More than a thousandth of a nanosecond, whatever the noise: a reading is positive.
        let more = |between| (nanos(cache, between) - nanos(plain, between)).max(1e-3);
        let name = format!("hit of an entry with {tags} tags, over one without");
        let quiet = suite.reported(&name, "ns CPU/op");
        let quiet = if *tags == 3 { quiet.at_most(40.0) } else { quiet };
        quiet.measure(|| more(LOOK_UPS));
        if *tags == 3 {
            let name = format!("{name}, an invalidation each 1,000 hits");
            suite.reported(&name, "ns CPU/op").measure(|| more(1_000));
        }
    }
}
