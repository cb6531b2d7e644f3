//! What it costs to take a lease and to complete it, for sets of 10, 100 and 1,000 backends.
//!
//! The clock counts CPU time over all threads, so a shared cache line that travels between two threads
//! shows as a larger number. Between picks nothing else happens, so everything that a pick looks at is in
//! the caches, for ours and for the peers alike.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use loadbalancer::{Backend, Balancer, Outcome, Pick, Policy};
use ultra_perf_bench::{Clock, Suite};

/// Picks per round: some milliseconds.
const PICKS: u64 = 50_000;

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    let p2c = Policy::PeakEwma { choices: 2, decay: Duration::from_secs(1) };
    let policies = [
        ("least request", Policy::LeastRequest { choices: 2 }, Some(60.0)),
        ("p2c peak EWMA", p2c, Some(220.0)),
        ("choose-5 peak EWMA", Policy::default(), Some(350.0)),
        ("round robin", Policy::RoundRobin, None),
        ("smooth WRR", Policy::SmoothWeightedRoundRobin, None),
        ("weighted random", Policy::WeightedRandom, None),
        ("ring hash", Policy::RingHash { load_factor: 1.25 }, None),
        ("Maglev", Policy::Maglev { load_factor: 1.25 }, None),
    ];
    for (name, policy, target) in policies {
        for backends in [10, 100, 1_000] {
            let balancer = balancer(policy, backends);
            let case = format!("{name}, pick + release, {backends} backends");
            let row = suite.time(&case, Clock::Cpu, PICKS);
            let row = match target {
                Some(bound) => row.at_most(bound),
                None => row,
            };
            row.measure(|| picks(&balancer));
            if target.is_some() {
                let row = suite.time(&format!("{case}, two threads"), Clock::Cpu, 2 * PICKS);
                row.measure(|| in_two_threads(|| picks(&balancer)));
            }
        }
    }
    against_peers(suite);
}

#[cfg(feature = "peers")]
fn against_peers(suite: &mut Suite) {
    crate::peers::rows(suite);
}

#[cfg(not(feature = "peers"))]
fn against_peers(suite: &mut Suite) {
    let reason = "built without the feature peers";
    suite.time("choose-5 peak EWMA, pick + release", Clock::Cpu, 1).skip("tower", reason);
}

/// A balancer over backends without limits, which has seen an answer of each.
pub(crate) fn balancer(policy: Policy, backends: usize) -> Balancer {
    let backends =
        (0..backends).map(|index| Backend::new(format!("10.0.{}.{}:80", index / 250, index % 250)));
    let balancer = Balancer::builder().policy(policy).backends(backends).build();
    let balancer = balancer.expect("a valid set");
    picks(&balancer);
    balancer
}

/// Takes and completes leases, one after the other.
pub(crate) fn picks(balancer: &Balancer) {
    let pick = Pick::new();
    for _ in 0..PICKS {
        let lease = black_box(balancer).try_acquire(black_box(&pick)).expect("there is room");
        lease.complete(Outcome::Success);
    }
}

/// How many picks [`picks`] does.
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
pub(crate) const fn per_round() -> u64 {
    PICKS
}

fn in_two_threads(work: impl Fn() + Sync) {
    thread::scope(|scope| {
        scope.spawn(&work);
        work();
    });
}
