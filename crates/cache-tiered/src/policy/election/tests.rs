//! Decisions on generated streams, and bounds under random ones.

use std::iter::repeat_n;

use proptest::prelude::*;

use super::*;

/// A cache of unit weights under an election, as the engine would run it.
struct Subject {
    election: Election,
    live: MiniCache,
    counts: Counts,
    spent: u64,
    random: fastrand::Rng,
}

impl Subject {
    fn new(capacity: u64, start: Kind, rule: Rule) -> Self {
        Self {
            election: Election::with_rule(capacity, capacity, start, rule),
            live: MiniCache::bounded(start, capacity, 1 << 20),
            counts: Counts::default(),
            spent: 0,
            random: fastrand::Rng::with_seed(7),
        }
    }

    fn feed(&mut self, ids: impl IntoIterator<Item = u64>) {
        for id in ids {
            let hash = spread(id);
            if self.live.request(hash, 1) {
                self.counts.hits += 1;
            } else {
                self.counts.misses += 1;
            }
            if position(hash) < self.election.threshold() {
                self.spent += 1;
                self.election.request(hash, 1);
            }
            if let Some(switch) = self.election.decide(self.counts, 0) {
                assert_eq!(switch.to, self.election.live());
                self.live.switch(switch.to);
            }
        }
    }

    /// `requests` over `keys`, the most popular ones far ahead.
    fn feed_skewed(&mut self, requests: usize, keys: f64) {
        for _ in 0..requests {
            let id = keys.powf(self.random.f64()) as u64;
            self.feed([id]);
        }
    }

    fn resting(&self) -> bool {
        matches!(self.election.phase, Phase::Resting { .. })
    }
}

fn spread(id: u64) -> u64 {
    let mixed = (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn looping(keys: u64, requests: usize) -> impl Iterator<Item = u64> {
    (0..keys).cycle().take(requests)
}

/// Each key is used three times, a few requests apart, and never again.
fn passing(from: u64, keys: u64) -> impl Iterator<Item = u64> {
    (from..from + keys).flat_map(|id| [id + 8, id + 4, id])
}

#[test]
fn skewed_traffic_does_not_make_it_flap() {
    let mut subject = Subject::new(200, Kind::Lfu, RULE);
    subject.feed_skewed(60_000, 5_000.0);
    let report = subject.election.report();
    assert!(report.switched <= 2, "{report:#?}");
}

#[test]
fn a_loop_larger_than_the_cache_elects_who_resists_it() {
    let mut subject = Subject::new(200, Kind::Lru, RULE);
    subject.feed(looping(300, 20_000));
    let before = subject.counts;
    subject.feed(looping(300, 10_000));
    let report = subject.election.report();
    assert!(!matches!(subject.election.live(), Kind::Lru | Kind::Arc), "{report:#?}");
    let reached = subject.counts.since(before).hit_ratio();
    assert!(reached > 0.4, "{reached}: {report:#?}");
}

#[test]
fn traffic_that_passes_by_drives_out_who_keeps_the_frequent() {
    let mut subject = Subject::new(100, Kind::LfuNarrow, RULE);
    subject.feed_skewed(5_000, 1_000.0);
    subject.feed(passing(1 << 20, 10_000));
    let before = subject.counts;
    subject.feed(passing(1 << 30, 2_000));
    let report = subject.election.report();
    assert_ne!(subject.election.live(), Kind::LfuNarrow, "{report:#?}");
    let reached = subject.counts.since(before).hit_ratio();
    assert!(reached > 0.6, "{reached}: {report:#?}");
}

#[test]
fn it_follows_traffic_that_changes() {
    let mut subject = Subject::new(100, Kind::Lru, RULE);
    subject.feed(looping(150, 15_000));
    let looped = subject.election.live();
    assert_ne!(looped, Kind::Lru);
    // Sweeps in turns: whoever keeps what came last has half of it in hand at each turn.
    let turn = (0..400_u64).chain((0..400).rev());
    subject.feed(repeat_n(turn, 100).flatten());
    let report = subject.election.report();
    let best = report.candidates.iter().filter_map(|c| c.recent_hit_ratio).fold(0.0, f64::max);
    let live = report.candidates.iter().find(|candidate| candidate.live);
    let live = live.and_then(|candidate| candidate.recent_hit_ratio);
    assert!(live.is_some_and(|ratio| ratio > 0.95 * best - 0.01), "{report:#?}");
}

#[test]
fn what_it_spends_is_bounded_whatever_the_requests_are() {
    // It never settles, so nothing but the allowance makes it rest.
    let rule = Rule { savings: 4_096.0, settled: 1e9, ..RULE };
    for capacity in [1, 12, 100] {
        let mut subject = Subject::new(capacity, Kind::Lfu, rule);
        for round in 0..5 {
            subject.feed_skewed(2_000, 2_000.0);
            subject.feed(looping(2 * capacity, 2_000));
            subject.feed(passing(round << 20, 700));
        }
        let earned = subject.counts.requests() as f64 * rule.earns;
        assert!(subject.spent as f64 <= rule.savings + earned + 1.0, "{}", subject.spent);
        assert!(subject.spent >= 4_096);
    }
}

#[test]
fn it_rests_longer_and_longer_while_nothing_changes() {
    let mut subject = Subject::new(50, Kind::Lfu, RULE);
    let mut votes = Vec::new();
    let mut since = 0;
    for _ in 0..60_000 {
        let rested = subject.resting();
        subject.feed_skewed(1, 200.0);
        since += 1;
        if rested && !subject.resting() {
            votes.push(std::mem::take(&mut since));
        }
    }
    assert!(votes.len() >= 3 && votes.is_sorted(), "{votes:?}");
    assert!(votes.last() > Some(&(2 * votes[0])), "{votes:?}");
}

#[test]
fn a_fall_of_the_hit_ratio_ends_its_rest() {
    let mut subject = Subject::new(50, Kind::Lfu, RULE);
    while !subject.resting() {
        subject.feed_skewed(1, 200.0);
    }
    let Phase::Resting { until, .. } = &mut subject.election.phase else {
        unreachable!("it rests")
    };
    *until = u64::MAX;
    subject.feed_skewed(10_000, 200.0);
    assert!(subject.resting(), "nothing has changed");
    let woken = (1_000..6_000).any(|id| {
        subject.feed([id]);
        !subject.resting()
    });
    assert!(woken, "nothing hits any more");
}

#[test]
fn the_report_tells_who_did_how_well_and_why_it_switched() {
    let mut subject = Subject::new(200, Kind::Lru, RULE);
    assert!(subject.election.report().candidates.iter().all(|c| c.hit_ratio.is_none()));
    subject.feed(looping(300, 20_000));
    let report = subject.election.report();
    assert_eq!(report.candidates.len(), Kind::ALL.len());
    assert_eq!(report.candidates.iter().filter(|candidate| candidate.live).count(), 1);
    assert!(report.sampled > 10_000 && report.sampled <= subject.spent);
    assert_eq!(report.switched as usize, report.switches.len());
    let first = &report.switches[0];
    assert_eq!(first.from, "lru");
    assert!(first.to_hit_ratio > first.from_hit_ratio && first.request > 0);
    let line = first.to_string();
    assert!(line.starts_with(&format!("lru -> {} at request ", first.to)), "{line}");
}

#[test]
fn no_more_than_sixteen_switches_are_kept() {
    let eager = Rule {
        lead: 1.0,
        lead_ballots: 0.0,
        deviations: 0.0,
        dwell: 0.0,
        term: 1.0,
        checks: 8.0,
        settled: 1e9,
        ..RULE
    };
    let mut subject = Subject::new(16, Kind::Lru, eager);
    subject.feed_skewed(30_000, 500.0);
    let report = subject.election.report();
    assert!(report.switched > 16, "{report:#?}");
    assert_eq!(report.switches.len(), 16);
    assert!(report.switches.is_sorted_by_key(|switch| switch.request));
}

#[test]
fn going_back_and_forth_makes_a_switch_wait_longer() {
    let mut election = Election::new(100, 100, Kind::Lru);
    for expected in [0, 1, 2, 3, 4, 4] {
        let to = if election.live == 0 { 1 } else { 0 };
        election.elect(to);
        assert_eq!(election.backoff, expected);
    }
    election.reign = 1e9;
    election.elect(1 - election.live);
    assert_eq!(election.backoff, 0);
}

#[test]
fn two_switches_between_two_looks_are_one_or_none() {
    let mut election = Election::new(100, 100, Kind::Lru);
    let (second, third) = (election.candidates[1].kind, election.candidates[2].kind);
    election.elect(1);
    election.elect(2);
    let decided = election.decide(Counts::default(), 0);
    assert_eq!(decided, Some(Switch { from: Kind::Lru, to: third }));
    election.elect(1);
    election.elect(2);
    assert_eq!(election.decide(Counts::default(), 0), None);
    election.elect(1);
    let decided = election.decide(Counts::default(), 0);
    assert_eq!(decided, Some(Switch { from: third, to: second }));
}

/// Feeds distinct and repeated keys of one weight.
fn weigh(election: &mut Election, weight: u32) {
    let mut random = fastrand::Rng::with_seed(3);
    let mut counts = Counts::default();
    for _ in 0..120_000 {
        let hash = spread(random.u64(0..1 << 18));
        counts.misses += 1;
        if position(hash) < election.threshold() {
            election.request(hash, weight);
        }
        election.decide(counts, 0);
    }
}

#[test]
fn heavier_entries_than_expected_raise_the_rate() {
    let mut election = Election::new(1 << 16, 1 << 16, Kind::Lru);
    let before = election.rate;
    weigh(&mut election, 64);
    let entries = election.candidates[election.live].mini.len();
    assert!(election.rate > before && entries >= MINI_ENTRIES_MIN, "{entries} entries");
}

#[test]
fn lighter_entries_than_expected_lower_the_rate() {
    let mut election = Election::new(1 << 20, 1 << 11, Kind::Lru);
    let before = election.rate;
    weigh(&mut election, 64);
    let entries = election.candidates[election.live].mini.len();
    assert!(election.rate < before && entries <= MINI_ENTRIES_MAX, "{entries} entries");
}

#[test]
fn lost_samples_thin_the_rest_but_not_to_nothing() {
    let mut election = Election::new(1 << 12, 1 << 12, Kind::Lru);
    let before = election.threshold();
    election.decide(Counts::default(), 1_000);
    assert_eq!(election.threshold(), before, "that many may be lost");
    election.decide(Counts::default(), 1_000);
    assert_eq!(election.threshold(), before / 2);
    for _ in 0..100 {
        election.decide(Counts::default(), 2_000);
    }
    assert_eq!(election.threshold(), before / 8);
    assert_eq!(election.report().dropped, 202_000);
}

#[test]
fn a_cache_of_nothing_samples_nothing() {
    let mut election = Election::new(0, 0, Kind::Lru);
    assert_eq!(election.threshold(), 0);
    election.request(1, 1);
    assert_eq!(election.decide(Counts { hits: 0, misses: 1 }, 0), None);
    election.resize(10, 10);
    assert_eq!(election.threshold(), EVERY_KEY);
}

#[test]
fn its_memory_does_not_grow_with_the_cache() {
    for entries in [1 << 9, 1 << 13] {
        let mut election = Election::new(entries, entries, Kind::Lru);
        (0..4 * entries).for_each(|id| election.request(spread(id), 1));
        let each = election.bytes() / Kind::ALL.len();
        assert!(each <= 24 << 10, "{each} bytes per mini at {entries} entries");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }))]

    #[test]
    fn bounds_hold_for_any_traffic(
        capacity in prop_oneof![0_u64..4, 4_u64..2_000, Just(u64::MAX)],
        entries in 0_u64..1 << 40,
        start in 0..Kind::ALL.len(),
        steps in proptest::collection::vec(
            (0_u64..3_000, prop_oneof![1_u32..3, Just(u32::MAX), 0..=u32::MAX], 0_u64..3, 0_u32..400),
            1..600,
        ),
    ) {
        let mut election = Election::new(capacity, entries, Kind::ALL[start]);
        let mut live = election.live();
        let mut counts = Counts::default();
        for (id, weight, dropped, chance) in steps {
            match chance {
                0 => election.resize(id, entries),
                1 => election.resize(0, 0),
                _ => {}
            }
            for near in 0..8 {
                election.request(spread(id + near), weight);
            }
            counts.hits += id & 7;
            counts.misses += 1;
            if let Some(switch) = election.decide(counts, dropped) {
                prop_assert_eq!(switch.from, live);
                prop_assert_ne!(switch.to, live);
                live = switch.to;
            }
            prop_assert_eq!(live, election.live());
            prop_assert!(election.threshold() <= EVERY_KEY);
            for candidate in &election.candidates {
                prop_assert!(candidate.mini.len() <= 2 * MINI_ENTRIES_MAX);
            }
        }
        let report = election.report();
        for ratio in report.candidates.iter().flat_map(|c| [c.hit_ratio, c.recent_hit_ratio]) {
            prop_assert!(ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)), "{:?}", ratio);
        }
    }
}
