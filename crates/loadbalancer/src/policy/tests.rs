//! Policies against naive models, and what each of them promises.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::node::Fleet;

/// Nodes called `0`, `1`, and so on, with these weights and limits.
fn nodes(weights: &[f64], limit: u32) -> Vec<Arc<Node>> {
    let fleet = Arc::new(Fleet::new(Duration::ZERO));
    let epoch = Instant::now();
    let node = |(index, weight): (usize, &f64)| {
        let node = Node::new(index.to_string().into(), epoch, Arc::clone(&fleet), Weak::new());
        node.set_weight(*weight);
        node.set_limit(limit);
        Arc::new(node)
    };
    weights.iter().enumerate().map(node).collect()
}

fn level(policy: Policy, weights: &[f64], limit: u32) -> Level {
    let nodes = nodes(weights, limit);
    let keys = policy.hashes().then(|| {
        let members: Vec<_> = nodes
            .iter()
            .zip(weights)
            .map(|(node, weight)| (Arc::clone(&node.id), *weight as u32))
            .collect();
        let table = match policy {
            Policy::Maglev { .. } => Table::maglev(&members),
            _ => Table::ring(&members),
        };
        (Arc::new(table), (0..members.len() as u32).map(Some).collect())
    });
    Level::new(&policy, nodes, weights, keys, 0)
}

const ALL: [Policy; 7] = [
    Policy::PeakEwma { choices: 5, decay: Duration::from_secs(1) },
    Policy::LeastRequest { choices: 2 },
    Policy::RoundRobin,
    Policy::SmoothWeightedRoundRobin,
    Policy::WeightedRandom,
    Policy::RingHash { load_factor: 1.25 },
    Policy::Maglev { load_factor: 1.25 },
];

/// Picks `times` times with draws from a seed, and returns the indices of the nodes.
fn picks(level: &Level, times: u64, pick: &Pick) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(3);
    (0..times)
        .filter_map(|_| {
            let how = How { pick, now: 0, draw: random.u64(..), usual: 1.0 };
            let entered = level.enter(&how, true).or_else(|| level.enter(&how, false));
            entered.map(|node| node.id.parse().expect("an index"))
        })
        .collect()
}

#[test]
fn every_policy_fills_every_place_and_no_more() {
    for policy in ALL {
        for count in [1, 3, 17, 40] {
            let level = level(policy, &vec![1.0; count], 3);
            let picked = picks(&level, 4 * count as u64, &Pick::new());
            assert_eq!(picked.len(), 3 * count, "{policy:?} with {count}");
            assert!(level.nodes().iter().all(|node| node.in_flight() == 3), "{policy:?}");
        }
    }
}

#[test]
fn every_policy_goes_elsewhere_if_told_to_and_back_if_there_is_nothing_else() {
    for policy in ALL {
        let level = level(policy, &[1.0; 3], 2);
        let picked = picks(&level, 6, &Pick::new().key("k").avoid("1"));
        assert!(picked[..4].iter().all(|index| *index != 1), "{policy:?}: {picked:?}");
        assert_eq!(picked[4..], [1, 1], "{policy:?}: {picked:?}");
    }
}

/// Releases after each pick and counts how often each node was taken.
fn shares(policy: Policy, weights: &[f64], times: u64) -> Vec<f64> {
    let level = level(policy, weights, 1_000);
    let mut random = fastrand::Rng::with_seed(5);
    let mut counts = vec![0_u64; weights.len()];
    let pick = Pick::new();
    for _ in 0..times {
        let how = How { pick: &pick, now: 0, draw: random.u64(..), usual: 1.0 };
        let node = level.enter(&how, true).expect("there is room");
        counts[node.id.parse::<usize>().expect("an index")] += 1;
        node.leave();
        if policy.hashes() {
            node.fleet.bounded_leases.fetch_sub(1, Relaxed);
        }
    }
    counts.iter().map(|count| *count as f64 / times as f64).collect()
}

#[test]
fn weights_are_kept_by_the_policies_that_draw_and_take_turns() {
    for policy in [
        Policy::SmoothWeightedRoundRobin,
        Policy::WeightedRandom,
        Policy::RingHash { load_factor: 9.0 },
        Policy::Maglev { load_factor: 9.0 },
    ] {
        let shares = shares(policy, &[1.0, 2.0, 5.0], 16_000);
        for (share, due) in shares.iter().zip([0.125, 0.25, 0.625]) {
            assert!((share - due).abs() < 0.06, "{policy:?}: {shares:?}");
        }
    }
}

#[test]
fn few_choices_are_all_different_and_each_as_likely() {
    for choices in [2, 3, 5, 7] {
        let all = nodes(&[1.0; 23], 9);
        let mut random = fastrand::Rng::with_seed(9);
        let mut seen = vec![0; all.len()];
        for _ in 0..23_000 {
            let pick = &Pick::new();
            let how = How { pick, now: 0, draw: random.u64(..), usual: 1.0 };
            let looked = std::cell::RefCell::new(Vec::new());
            let cost = |node: &Node| {
                looked.borrow_mut().push(node.id.parse::<usize>().expect("an index"));
                Some(1.0)
            };
            least(&all, choices, &how, &cost).expect("there is room").leave();
            let mut looked = looked.into_inner();
            looked.iter().for_each(|index| seen[*index] += 1);
            looked.sort_unstable();
            looked.dedup();
            assert_eq!(looked.len(), choices);
        }
        let due = 1_000.0 * choices as f64;
        assert!(
            seen.iter().all(|seen| (f64::from(*seen) - due).abs() < due * 0.15),
            "{choices}: {seen:?}"
        );
    }
}

#[test]
fn peak_ewma_takes_the_fast_one_until_its_queue_costs_more() {
    let level = level(ALL[0], &[1.0, 1.0], 100);
    let averaging = Averaging::new(Duration::from_secs(1));
    level.nodes()[0].latency.record(10e6, 0, averaging, 10e6);
    level.nodes()[1].latency.record(29e6, 0, averaging, 10e6);
    // 10 x (leases + 2) against 58: the fifth goes to the slow one.
    assert_eq!(picks(&level, 6, &Pick::new()), [0, 0, 0, 0, 1, 0]);
}

#[test]
fn a_key_stays_and_moves_only_from_where_it_was() {
    for policy in [Policy::RingHash { load_factor: 100.0 }, Policy::Maglev { load_factor: 100.0 }] {
        let owner = |count: usize| {
            let level = level(policy, &vec![1.0; count], 1_000_000);
            move |key: u64| picks(&level, 1, &Pick::new().key(key.to_le_bytes()))[0]
        };
        let (of_ten, of_ten_again, of_nine) = (owner(10), owner(10), owner(9));
        let mut moved = 0;
        for key in 0..2_000 {
            assert_eq!(of_ten(key), of_ten_again(key), "{policy:?}");
            moved += u32::from(of_ten(key) != 9 && of_ten(key) != of_nine(key));
        }
        // A ring moves no key that was not on the node that left; Maglev a few.
        let most = if matches!(policy, Policy::Maglev { .. }) { 200 } else { 0 };
        assert!(moved <= most, "{policy:?} moved {moved} of 2,000");
    }
}

#[test]
fn a_hot_key_spills_over_at_the_bound() {
    for policy in [Policy::RingHash { load_factor: 1.25 }, Policy::Maglev { load_factor: 1.25 }] {
        let level = level(policy, &[1.0; 8], 1_000);
        picks(&level, 400, &Pick::new().key("hot"));
        let most = level.nodes().iter().map(|node| node.in_flight()).max().expect("some");
        assert!(most <= 63, "{policy:?}: {most} of 400 where 50 is the mean");
    }
}

#[test]
fn a_table_of_nobody_owns_nothing() {
    assert_eq!(Table::ring(&[]).owners(7).count(), 0);
    assert_eq!(Table::maglev(&[]).owners(7).count(), 0);
}

#[test]
fn maglev_shares_its_table_by_weight() {
    let members: Vec<(Arc<str>, u32)> =
        (1..=10).map(|weight| (weight.to_string().into(), weight)).collect();
    let Table::Maglev { owners, .. } = Table::maglev(&members) else { panic!("not Maglev's") };
    let mut counts = HashMap::new();
    owners.iter().for_each(|owner| *counts.entry(*owner).or_insert(0) += 1);
    for (index, (_, weight)) in (0..).zip(&members) {
        let due = owners.len() as f64 * f64::from(*weight) / 55.0;
        assert!((f64::from(counts[&index]) - due).abs() < due * 0.02 + 2.0, "{counts:?}");
    }
}

#[test]
fn what_a_policy_cannot_use_is_named() {
    for (policy, setting) in [
        (Policy::LeastRequest { choices: 1 }, "policy.choices"),
        (Policy::PeakEwma { choices: 0, decay: Duration::from_secs(1) }, "policy.choices"),
        (Policy::PeakEwma { choices: 2, decay: Duration::ZERO }, "policy.decay"),
        (Policy::RingHash { load_factor: 1.0 }, "policy.load_factor"),
        (Policy::Maglev { load_factor: f64::NAN }, "policy.load_factor"),
    ] {
        assert_eq!(policy.problem().map(|problem| problem.0), Some(setting), "{policy:?}");
    }
    assert!(ALL.iter().all(|policy| policy.problem().is_none()));
}

proptest! {
    /// Against the naive model: sort all turns by when they are due.
    #[test]
    fn turns_are_as_often_as_due_and_never_far_from_it(
        weights in prop::collection::vec(1_u32..40, 1..12),
    ) {
        let as_floats: Vec<f64> = weights.iter().map(|weight| f64::from(*weight)).collect();
        let turns = turns(&as_floats);
        let divisor = weights.iter().fold(0, |a, b| greatest_common_divisor(a, u64::from(*b)));
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        prop_assert_eq!(turns.len() as u64, sum / divisor);
        let mut counts = vec![0_u64; weights.len()];
        for (taken, index) in turns.iter().enumerate() {
            counts[*index as usize] += 1;
            for (count, weight) in counts.iter().zip(&as_floats) {
                let due = (taken + 1) as f64 * weight / sum as f64;
                let slack = 1.0 + weights.len() as f64 * weight / sum as f64 / 2.0;
                prop_assert!((*count as f64 - due).abs() <= slack, "{turns:?}");
            }
        }
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert_eq!(*count, u64::from(*weight) / divisor);
        }
    }

    /// With all choices, least request is the naive minimum at every step.
    #[test]
    fn least_request_over_all_is_the_naive_minimum(
        weights in prop::collection::vec(1_u32..5, 1..30),
        steps in prop::collection::vec((any::<u64>(), any::<bool>()), 1..120),
    ) {
        let as_floats: Vec<f64> = weights.iter().map(|weight| f64::from(*weight)).collect();
        let level = level(Policy::LeastRequest { choices: u32::MAX }, &as_floats, 4);
        let pick = Pick::new();
        let mut model = vec![0_u32; weights.len()];
        for (draw, release) in steps {
            if release && let Some(busy) = model.iter().position(|count| *count > 0) {
                level.nodes()[busy].leave();
                model[busy] -= 1;
                continue;
            }
            let how = How { pick: &pick, now: 0, draw, usual: 1.0 };
            // One through the weight, rounded as a node keeps it.
            let cost = |at: usize| {
                f64::from(model[at] + 1) * f64::from((1.0 / as_floats[at]) as f32)
            };
            let lowest = (0..model.len())
                .filter(|at| model[*at] < 4)
                .map(cost)
                .fold(f64::INFINITY, f64::min);
            match level.enter(&how, true) {
                None => prop_assert!(lowest.is_infinite()),
                Some(node) => {
                    let at: usize = node.id.parse().expect("an index");
                    prop_assert_eq!(cost(at), lowest);
                    model[at] += 1;
                }
            }
        }
    }
}
