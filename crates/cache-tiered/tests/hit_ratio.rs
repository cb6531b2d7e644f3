//! Hit ratios on made-up traces, kept as golden numbers: a change of a policy shows as a change here.
//!
//! The textbook policies and the optimum are exact. The crate's own policies depend on the number of
//! shards, which follows the cores of the machine: their bands hold what 1, 4, 8 and 16 shards gave, and a
//! point on either side. When a policy changes on purpose, a test that fails prints what belongs here.

use cache_tiered::Policy;
use cache_tiered::simulate::{Capacity, Contender, Textbook, Workload, sweep};

const REQUESTS: usize = 30_000;
const SEED: u64 = 1;

const ZIPF: Workload = Workload::Zipf { keys: 20_000, exponent: 0.9 };
const SCAN: Workload = Workload::Scan { reads: 3, spread: 30 };
const LOOP: Workload = Workload::Loop { keys: 2_000 };
const SHIFTING: Workload =
    Workload::ShiftingHotSet { keys: 20_000, hot: 400, hot_percent: 80, shift_every: 10_000 };
const MIXED: Workload =
    Workload::Mixed { keys: 5_000, exponent: 0.9, scan_every: 3_000, scan_keys: 1_000 };

/// Hits of each textbook policy and of the optimum, by pattern and entries.
#[rustfmt::skip]
const EXACT: [(Workload, u64, [u64; 7]); 10] = [
    //                       lru        lfu        arc    s3-fifo      sieve  w-tinylfu    optimum
    (ZIPF, 250,       [    9_283,    11_919,    12_226,    12_282,    11_919,    12_313,    15_163]),
    (ZIPF, 1_000,     [   13_948,    15_572,    15_859,    15_754,    15_572,    15_885,    19_122]),
    (SCAN, 250,       [   19_980,       470,    19_970,    18_355,       470,     1_751,    19_980]),
    (SCAN, 1_000,     [   19_980,     1_970,    19_970,    19_868,     1_970,     2_970,    19_980]),
    (LOOP, 250,       [        0,         0,         0,         0,         0,     2_530,     3_500]),
    (LOOP, 1_000,     [        0,         0,         0,         0,         0,    13_488,    14_000]),
    (SHIFTING, 250,   [   11_246,     4_915,    14_030,    13_520,    12_154,    12_612,    20_386]),
    (SHIFTING, 1_000, [   23_107,    18_344,    22_987,    22_503,    20_868,    22_529,    23_946]),
    (MIXED, 250,      [    9_462,    11_534,    11_645,    11_872,    11_534,    11_890,    14_470]),
    (MIXED, 1_000,    [   12_812,    15_432,    15_535,    14_960,    15_432,    15_554,    17_939]),
];

type Bands = [(u32, u32); Policy::ALL.len()];

/// The lowest and the highest percentage of hits that each policy of the crate may have.
#[rustfmt::skip]
const BANDS: [(Workload, u64, Bands); 10] = [
    //                      lru       lfu       arc   s3-fifo  adaptive
    (ZIPF, 250,       [(31, 34), (40, 43), (39, 43), (39, 42), (40, 43)]),
    (ZIPF, 1_000,     [(46, 49), (52, 55), (51, 54), (51, 54), (52, 55)]),
    (SCAN, 250,       [(65, 68),  (2, 17), (65, 68), (50, 68), (46, 61)]),
    (SCAN, 1_000,     [(65, 68), (61, 66), (65, 68), (65, 68), (63, 67)]),
    (LOOP, 250,       [  (0, 1),   (3, 7),   (0, 1),   (0, 1),   (3, 7)]),
    (LOOP, 1_000,     [  (0, 1), (40, 44),   (0, 1),   (0, 7), (42, 46)]),
    (SHIFTING, 250,   [(37, 40), (37, 40), (44, 48), (44, 47), (41, 44)]),
    (SHIFTING, 1_000, [(76, 79), (72, 75), (75, 78), (74, 77), (74, 78)]),
    (MIXED, 250,      [(31, 34), (39, 42), (37, 41), (38, 41), (39, 42)]),
    (MIXED, 1_000,    [(42, 46), (51, 54), (50, 53), (48, 51), (51, 54)]),
];

/// Runs contenders over a pattern and tells the hits of each.
fn hits(workload: Workload, entries: u64, contenders: &[Contender]) -> Vec<u64> {
    let trace = workload.trace(REQUESTS, SEED);
    let outcomes = sweep(&trace, contenders, &[Capacity::entries(entries)], 2, &|_| ()).remove(0);
    let hits = outcomes.iter().map(|outcome| outcome.expect("entries have an optimum too").hits);
    hits.collect()
}

fn percent(hits: u64) -> f64 {
    hits as f64 * 100.0 / REQUESTS as f64
}

#[test]
fn textbook_policies_and_the_optimum_hit_exactly_what_they_did() {
    let textbooks = Textbook::ALL.into_iter().map(Contender::textbook);
    let contenders: Vec<_> = textbooks.chain([Contender::optimum()]).collect();
    let line = |workload: Workload, entries, hits: &[u64]| {
        format!("{} {entries}: {hits:?}", workload.name())
    };
    let lines = EXACT.map(|(workload, entries, expected)| {
        let found = hits(workload, entries, &contenders);
        (line(workload, entries, &expected), line(workload, entries, &found))
    });
    let (expected, found): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
    assert_eq!(found, expected, "found:\n{}", found.join("\n"));
}

#[test]
fn own_policies_keep_to_their_bands_and_the_adaptive_one_hits_most() {
    let contenders = Policy::ALL.map(Contender::policy);
    let mut lines = Vec::new();
    let mut strays = Vec::new();
    let mut totals = [0.0; Policy::ALL.len()];
    for (workload, entries, bands) in BANDS {
        let name = format!("{} {entries}", workload.name());
        let found: Vec<f64> =
            hits(workload, entries, &contenders).into_iter().map(percent).collect();
        for (((policy, found), (low, high)), total) in
            Policy::ALL.into_iter().zip(&found).zip(bands).zip(&mut totals)
        {
            *total += found;
            if !(f64::from(low)..=f64::from(high)).contains(found) {
                strays.push(format!("{name}: {policy} hits {found:.2}, not {low} to {high}"));
            }
        }
        lines.push(format!("{name}: {found:.2?}"));
    }
    assert!(strays.is_empty(), "{}\nfound:\n{}", strays.join("\n"), lines.join("\n"));
    let (adaptive, fixed) = totals.split_last().expect("there are policies");
    let best = fixed.iter().copied().fold(0.0, f64::max);
    assert!(adaptive > &best, "together {totals:.1?}\nfound:\n{}", lines.join("\n"));
}
