//! Each rule at its threshold and below, with its numbers, its action and what undoes it.

use serde_json::json;

use super::*;

fn backend(id: &str, in_flight: f64, succeeded: f64, failed: f64) -> BackendReading {
    BackendReading { id: id.to_owned(), in_flight, latency_seconds: None, succeeded, failed }
}

fn reading(policy: Balancing, in_flight: [f64; 3]) -> BalancerReading {
    let backends = ["a", "b", "c"].into_iter().zip(in_flight);
    BalancerReading {
        name: "api".to_owned(),
        policy,
        backends: backends.map(|(id, calls)| backend(id, calls, 1_000.0, 0.0)).collect(),
        leases: 3_000.0,
        turned_away: 0.0,
        panicking: 0.0,
    }
}

#[test]
fn calls_that_pile_up_at_one_backend_want_a_policy_that_sees_them() {
    let finding = uneven(&reading(Balancing::RoundRobin, [16.0, 2.0, 3.0])).expect("uneven");
    assert_eq!(
        finding.title,
        "Balancer `api`: backend `a` has 16 calls in flight, the mean of 3 is 7"
    );
    let action = finding.action.expect("an action");
    assert_eq!(action, Action::set("balancer.policy", "round-robin", "peak-ewma"));
    assert_eq!(action.inverse().to, json!("round-robin"));
    for (policy, in_flight) in [
        (Balancing::PeakEwma, [16.0, 2.0, 3.0]),
        (Balancing::RingHash, [16.0, 2.0, 3.0]),
        (Balancing::RoundRobin, [8.0, 6.0, 7.0]),
        (Balancing::RoundRobin, [0.9, 0.0, 0.0]),
    ] {
        assert_eq!(uneven(&reading(policy, in_flight)), None, "{policy:?} {in_flight:?}");
    }
}

#[test]
fn a_backend_that_fails_alone_is_named() {
    let of = |failed: f64, others: f64| {
        let mut of = reading(Balancing::PeakEwma, [1.0; 3]);
        of.backends[1].failed = failed;
        of.backends[0].failed = others;
        outlier(&of)
    };
    let finding = of(250.0, 0.0).expect("an outlier");
    assert_eq!(
        finding.title,
        "Balancer `api`: 20 % of the calls to `b` fail, 0.0 % of those to the others"
    );
    assert_eq!(of(50.0, 0.0), None, "less than one of twenty");
    assert_eq!(of(250.0, 200.0), None, "all of them fail");
}

#[test]
fn calls_without_a_place_and_a_panic_are_told() {
    let base = reading(Balancing::PeakEwma, [1.0; 3]);
    let short = |turned_away| short_of_places(&BalancerReading { turned_away, ..base.clone() });
    let finding = short(60.0).expect("two of a hundred");
    assert_eq!(finding.title, "Balancer `api`: 60 of 3060 calls found no place (2.0 %)");
    assert_eq!(short(30.0), None);
    let panic = |share| panicking(&BalancerReading { panicking: share, ..base.clone() });
    let finding = panic(0.2).expect("a fifth of the time");
    assert_eq!(finding.title, "Balancer `api`: too few of 3 backends were well, 20 % of the time");
    assert_eq!(panic(0.05), None);
}
