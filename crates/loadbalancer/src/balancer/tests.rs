//! The balancer through its own calls, with passed time wherever time matters.

use std::collections::BTreeMap;

use proptest::prelude::*;
use resilience::Outcome;

use super::*;
use crate::backend::BackendState;
use crate::event::EjectReason;
use crate::health::{Ejecting, Thresholds};

const SECOND: Duration = Duration::from_secs(1);

/// Backends from `a:2/3 b`: id, weight after the colon, limit after the slash.
fn backends(list: &str) -> Vec<Backend> {
    list.split_whitespace()
        .map(|word| {
            let (word, limit) = word.split_once('/').unwrap_or((word, ""));
            let (id, weight) = word.split_once(':').unwrap_or((word, "1"));
            let backend = Backend::new(id).weight(weight.parse().expect("a weight"));
            match limit.parse() {
                Ok(limit) => backend.max_in_flight(limit),
                Err(_) => backend,
            }
        })
        .collect()
}

fn builder(list: &str) -> BalancerBuilder {
    Balancer::builder().backends(backends(list)).policy(Policy::RoundRobin).seed(1)
}

fn balancer(list: &str) -> (Balancer, Instant) {
    let start = Instant::now();
    (builder(list).build_at(start).expect("a valid set"), start)
}

fn take(balancer: &Balancer, now: Instant) -> Lease {
    balancer.try_acquire_at(&Pick::new(), now).expect("there is room")
}

/// The ids of `count` picks that are given back at once, sorted and without repetition.
fn reached(balancer: &Balancer, count: usize, now: Instant) -> String {
    let ids = (0..count).map(|_| {
        let lease = take(balancer, now);
        let id = lease.backend().to_string();
        lease.complete_at(Outcome::Ignored, now);
        id
    });
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids.dedup();
    ids.join(" ")
}

fn fail(balancer: &Balancer, id: &str, times: u32, now: Instant) {
    for _ in 0..times {
        let lease = balancer.try_acquire_at(&Pick::new().prefer(id), now).expect("there is room");
        assert_eq!(&**lease.backend(), id);
        lease.complete_at(Outcome::Failure, now);
    }
}

fn state(balancer: &Balancer, id: &str, now: Instant) -> BackendState {
    let all = balancer.backends_at(now);
    all.iter().find(|backend| &*backend.id == id).expect("it is in the set").state
}

fn told(events: &mut Events) -> Vec<String> {
    std::iter::from_fn(|| events.try_next()).map(|event| event.to_string()).collect()
}

#[test]
fn a_lease_counts_from_pick_to_end_however_it_ends() {
    let (balancer, start) = balancer("a b");
    let leases: Vec<_> = (0..4).map(|_| take(&balancer, start)).collect();
    assert_eq!(balancer.stats().in_flight, 4);
    for (lease, at) in leases.into_iter().zip(0..) {
        match at {
            0 => lease.complete_at(Outcome::Success, start),
            1 => lease.complete_at(Outcome::Overload { retry_after: None }, start),
            2 => lease.cancel_at(start),
            _ => drop(lease),
        }
    }
    let stats = balancer.stats();
    assert_eq!((stats.in_flight, stats.leases), (0, 4));
    let all = balancer.backends_at(start);
    assert_eq!(all.iter().map(|backend| backend.answered).sum::<u64>(), 2);
    assert_eq!(all.iter().map(|backend| backend.failed).sum::<u64>(), 1);
}

#[test]
fn a_million_dropped_leases_leave_every_count_at_zero() {
    for policy in [Policy::default(), Policy::RingHash { load_factor: 1.25 }] {
        let balancer = builder("a b c d e f g h").policy(policy).build().expect("a valid set");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for count in 0..375_000_u32 {
                        let lease = balancer.try_acquire(&Pick::new()).expect("there is room");
                        match count % 3 {
                            0 => lease.complete(Outcome::Success),
                            _ => drop(lease),
                        }
                    }
                });
            }
        });
        let stats = balancer.stats();
        assert_eq!((stats.in_flight, stats.leases, stats.waiting), (0, 750_000, 0), "{policy:?}");
        assert_eq!(balancer.core.fleet.bounded_leases.load(Relaxed), 0);
    }
}

#[test]
fn full_backends_are_passed_over_and_a_full_set_sheds_with_a_hint() {
    let (balancer, start) = balancer("a/1 b/2");
    let leases: Vec<_> = (0..3).map(|_| take(&balancer, start)).collect();
    let error = balancer.try_acquire_at(&Pick::new(), start).expect_err("it is full");
    assert_eq!(error, AcquireError::Full { waiting: 0, retry_after: SECOND });
    assert_eq!(error.retry_after(), Some(SECOND));
    let stats = balancer.stats();
    assert_eq!((stats.capacity, stats.in_flight, stats.shed), (Some(3), 3, 1));
    drop(leases);
    assert!(balancer.try_acquire_at(&Pick::new(), start).is_ok());
}

#[test]
fn nobody_there_and_nobody_ready_are_two_answers() {
    let (empty, start) = balancer("");
    assert_eq!(empty.try_acquire_at(&Pick::new(), start).unwrap_err(), AcquireError::Empty);
    let (weightless, start) = balancer("a:0 b:0");
    let error = weightless.try_acquire_at(&Pick::new(), start).unwrap_err();
    assert_eq!(error, AcquireError::Unavailable { retry_after: SECOND });
    weightless.set_weight("b", 1);
    assert_eq!(reached(&weightless, 4, start), "b");
}

#[test]
fn problems_are_listed_all_at_once_and_the_set_stays() {
    let error = Balancer::builder()
        .policy(Policy::LeastRequest { choices: 1 })
        .panic_threshold(1.5)
        .wait_max(Duration::ZERO)
        .checks(Thresholds { rise: 0, fall: 1 })
        .backends(backends("a a b/0"))
        .backend(Backend::new("").weight(2_000_000))
        .build()
        .expect_err("much is wrong");
    assert_eq!(
        error.to_string(),
        "invalid balancer, 8 problems:\n  \
         wait_max = 0ns: must be from 1 ms to 24 hours\n  \
         panic_threshold = 1.5: must be from 0 to 1\n  \
         checks.rise = 0: must be at least 1\n  \
         policy.choices = 1: must be at least 2\n  \
         backend \"a\" = listed again: must be listed once\n  \
         backend \"b\".max_in_flight = 0: must be at least 1 (weight 0 gives it no traffic)\n  \
         backend \"\" = \"\": must not be empty\n  \
         backend \"\".weight = 2000000: must be at most 1000000"
    );
    let (balancer, start) = balancer("a b");
    assert!(balancer.update_at(backends("c c"), start).is_err());
    assert!(balancer.set_policy(Policy::Maglev { load_factor: 0.0 }).is_err());
    assert_eq!(reached(&balancer, 4, start), "a b");
    let bounded = builder("a").backends_max(2).build_at(start).expect("a valid set");
    assert!(bounded.update_at(backends("a b c"), start).is_err());
    assert!(
        bounded.insert(Backend::new("b")).is_ok() && bounded.insert(Backend::new("c")).is_err()
    );
}

#[test]
fn a_new_set_keeps_what_is_known_of_those_that_stay() {
    let start = Instant::now();
    let balancer = builder("a b").policy(Policy::default()).build_at(start).expect("a valid set");
    let held = balancer.try_acquire_at(&Pick::new().prefer("a"), start).expect("there is room");
    let lease = balancer.try_acquire_at(&Pick::new().prefer("a"), start).expect("there is room");
    lease.complete_at(Outcome::Success, start + SECOND / 10);
    balancer.update_at(backends("c a:3/9"), start + SECOND / 10).expect("a valid set");
    let all = balancer.backends_at(start + SECOND / 10);
    assert_eq!(all.iter().map(|backend| &*backend.id).collect::<Vec<_>>(), ["c", "a"]);
    let a = &all[1];
    assert_eq!((a.in_flight, a.leases, a.weight, a.max_in_flight), (1, 2, 3, Some(9)));
    assert_eq!(a.latency, Some(SECOND / 10));
    drop(held);
    assert_eq!(balancer.stats().in_flight, 0);
}

#[test]
fn a_backend_that_left_keeps_its_leases_and_comes_back_with_its_history() {
    let (balancer, start) = balancer("a b c");
    let mut events = balancer.events();
    fail(&balancer, "a", 5, start);
    let held = balancer.try_acquire_at(&Pick::new().prefer("b"), start).expect("there is room");
    balancer.update_at(backends("c"), start).expect("a valid set");
    assert_eq!(reached(&balancer, 3, start), "c");
    assert_eq!(balancer.stats().in_flight, 0, "of the set");
    balancer.update_at(backends("a b c"), start).expect("a valid set");
    assert_eq!(balancer.stats().in_flight, 1, "the same backend again");
    assert_eq!(state(&balancer, "a", start), BackendState::Ejected);
    balancer.update_at(backends("c"), start).expect("a valid set");
    held.complete_at(Outcome::Failure, start);
    let told = told(&mut events);
    assert!(told[0].starts_with("a: ejected for ") && told[0].ends_with(": 5 failures in a row"));
    assert_eq!(
        told[1..],
        [
            "a: removed",
            "a: drained",
            "b: removed",
            "a: added again",
            "b: added again",
            "a: removed",
            "a: drained",
            "b: removed",
            "b: drained",
        ]
    );
}

#[test]
fn an_ejection_ends_by_itself_and_is_longer_the_next_time() {
    let (balancer, start) = balancer("a b c");
    let mut events = balancer.events();
    fail(&balancer, "a", 4, start);
    assert_eq!(reached(&balancer, 9, start), "a b c");
    let ok = balancer.try_acquire_at(&Pick::new().prefer("a"), start).expect("there is room");
    ok.complete_at(Outcome::Success, start);
    fail(&balancer, "a", 4, start);
    assert_eq!(state(&balancer, "a", start), BackendState::Ready, "a success breaks the row");
    fail(&balancer, "a", 1, start);
    assert_eq!(state(&balancer, "a", start), BackendState::Ejected);
    assert_eq!(reached(&balancer, 9, start), "b c");
    let first = balancer.backends_at(start)[0].ejected_for.expect("it is ejected");
    assert!(first >= 5 * SECOND && first <= 10 * SECOND, "{first:?}");
    let back = start + first;
    assert_eq!(reached(&balancer, 9, back - Duration::from_nanos(1)), "b c");
    assert_eq!(reached(&balancer, 9, back), "a b c");
    fail(&balancer, "a", 5, back);
    let second = balancer.backends_at(back)[0].ejected_for.expect("it is ejected");
    assert!(second >= 10 * SECOND && second <= 20 * SECOND, "{second:?}");
    assert!(balancer.restore_at("a", back) && !balancer.restore_at("z", back));
    assert_eq!(reached(&balancer, 9, back), "a b c");
    let told = told(&mut events);
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[1], "a: restored: the time is over");
    assert_eq!(told[3], "a: restored: asked for");
}

#[test]
fn no_more_than_a_share_is_ejected() {
    let (balancer, start) = balancer("a b c");
    let mut events = balancer.events();
    fail(&balancer, "a", 5, start);
    fail(&balancer, "b", 12, start);
    assert_eq!(reached(&balancer, 9, start), "b c");
    let told = told(&mut events);
    assert_eq!(
        told[1..],
        [
            "b: not ejected, too many are: 5 failures in a row",
            "b: not ejected, too many are: 10 failures in a row"
        ]
    );
    let (alone, start) = self::balancer("a");
    fail(&alone, "a", 50, start);
    assert_eq!(reached(&alone, 3, start), "a");
}

#[test]
fn who_succeeds_less_often_than_the_others_is_ejected() {
    let ejecting = Ejecting { consecutive_failures: 0, ..Ejecting::default() };
    let start = Instant::now();
    let balancer = builder("a b c").ejecting(ejecting).build_at(start).expect("a valid set");
    let mut events = balancer.events();
    let round = |half_of: &str, now: Instant| {
        for count in 0..90 {
            let lease = take(&balancer, now);
            let fails = half_of.contains(&**lease.backend()) && count % 2 == 0;
            lease.complete_at(if fails { Outcome::Failure } else { Outcome::Success }, now);
        }
    };
    // All of them alike: nobody is worse than the others.
    round("abc", start);
    round("abc", start + 10 * SECOND);
    assert_eq!(told(&mut events), Vec::<String>::new());
    round("b", start + 11 * SECOND);
    round("b", start + 20 * SECOND);
    round("b", start + 30 * SECOND);
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    let [Event { backend: Some(backend), change: Change::Ejected { reason, .. } }] = &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(&**backend, "b");
    assert!(matches!(reason, EjectReason::SuccessRate { own, others } if own < others));
}

#[test]
fn checks_start_unknown_and_rise_and_fall() {
    let start = Instant::now();
    let balancer =
        builder("a b c").checks(Thresholds::default()).build_at(start).expect("a valid set");
    let mut events = balancer.events();
    let check = |ids: &str, result: Result<(), &str>, times| {
        for id in ids.split(' ') {
            (0..times).for_each(|_| assert!(balancer.report_check_at(id, result, start)));
        }
    };
    assert_eq!(state(&balancer, "a", start), BackendState::Unknown);
    let error = balancer.try_acquire_at(&Pick::new(), start).unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable { .. }), "unknown is not healthy");
    check("a b c", Ok(()), 2);
    assert_eq!(reached(&balancer, 9, start), "a b c");
    check("b", Err("refused"), 3);
    assert_eq!(state(&balancer, "b", start), BackendState::Down);
    assert_eq!(reached(&balancer, 9, start), "a c");
    check("b", Ok(()), 2);
    assert_eq!(reached(&balancer, 9, start), "a b c");
    assert!(!balancer.report_check_at("z", Ok(()), start));
    assert_eq!(
        told(&mut events),
        [
            "a: up: its checks succeed",
            "b: up: its checks succeed",
            "c: up: its checks succeed",
            "b: down: refused",
            "b: up: its checks succeed",
        ]
    );
}

#[test]
fn when_most_are_down_health_is_ignored() {
    let start = Instant::now();
    let thresholds = Thresholds { rise: 1, fall: 1 };
    let balancer = builder("a b c d").checks(thresholds).build_at(start).expect("a valid set");
    let check = |id: &str, result| balancer.report_check_at(id, result, start);
    for id in ["a", "b", "c"] {
        check(id, Ok(()));
    }
    let mut events = balancer.events();
    check("a", Err("refused"));
    assert_eq!(reached(&balancer, 9, start), "b c");
    check("b", Err("refused"));
    assert!(balancer.stats().panicking);
    assert_eq!(reached(&balancer, 9, start), "a b c", "and not d, of which nothing is known");
    check("a", Ok(()));
    assert_eq!(reached(&balancer, 9, start), "a c");
    assert_eq!(
        told(&mut events)[1..],
        [
            "b: down: refused",
            "health is ignored: 1 of 3 are healthy",
            "a: up: its checks succeed",
            "health counts again"
        ]
    );
}

#[test]
fn a_backend_that_joins_or_comes_back_starts_slowly() {
    let start = Instant::now();
    let policy = Policy::SmoothWeightedRoundRobin;
    let balancer =
        builder("a b").policy(policy).slow_start(10 * SECOND).build_at(start).expect("a valid set");
    let share_of = |id: &str, now: Instant| {
        let taken = (0..1_100).filter(|_| {
            let lease = take(&balancer, now);
            let is_it = &**lease.backend() == id;
            lease.complete_at(Outcome::Success, now);
            is_it
        });
        taken.count()
    };
    assert_eq!(state(&balancer, "b", start), BackendState::Ready, "a set that is all new is warm");
    balancer.update_at(backends("a c"), start).expect("a valid set");
    assert_eq!(state(&balancer, "c", start), BackendState::SlowStart);
    assert_eq!(share_of("c", start), 100, "a tenth of the weight of the other");
    assert_eq!(share_of("c", start + 5 * SECOND), 366, "a half");
    assert_eq!(share_of("c", start + 10 * SECOND), 550);
    assert_eq!(state(&balancer, "c", start + 10 * SECOND), BackendState::Ready);
    balancer.eject_at("a", SECOND, start + 20 * SECOND);
    assert_eq!(share_of("a", start + 20 * SECOND), 0);
    assert_eq!(share_of("a", start + 21 * SECOND), 100);
    assert_eq!(share_of("a", start + 99 * SECOND), 550);
}

#[test]
fn a_draining_backend_gives_no_leases_and_says_when_the_last_is_back() {
    let (balancer, start) = balancer("a b");
    let mut events = balancer.events();
    let held: Vec<_> = (0..4).map(|_| take(&balancer, start)).collect();
    assert!(balancer.drain("a") && balancer.drain("a") && !balancer.drain("z"));
    assert_eq!(state(&balancer, "a", start), BackendState::Draining);
    assert_eq!(reached(&balancer, 4, start), "b");
    assert_eq!(told(&mut events), ["a: draining"]);
    drop(held);
    assert_eq!(told(&mut events), ["a: drained"]);
    balancer.restore_at("a", start);
    assert_eq!(reached(&balancer, 4, start), "a b");
    drop(take(&balancer, start));
    balancer.drain("a");
    assert_eq!(told(&mut events), ["a: resumed", "a: draining", "a: drained"]);
}

#[test]
fn priorities_go_in_order_and_spill_over_when_full() {
    let start = Instant::now();
    let set = [
        Backend::new("far").priority(7),
        Backend::new("near").max_in_flight(1),
        Backend::new("next").max_in_flight(1).priority(1),
    ];
    let balancer = Balancer::builder()
        .policy(Policy::RoundRobin)
        .backends(set)
        .build_at(start)
        .expect("valid");
    let leases: Vec<_> = (0..4).map(|_| take(&balancer, start)).collect();
    let order: Vec<_> = leases.iter().map(|lease| &**lease.backend()).collect();
    assert_eq!(order, ["near", "next", "far", "far"]);
    drop(leases);
    balancer.eject_at("near", SECOND, start);
    assert_eq!(reached(&balancer, 3, start), "next");
}

#[test]
fn the_own_zone_goes_first_while_half_of_it_is_ready() {
    let start = Instant::now();
    let zoned = |id: &str, zone: &str| Backend::new(id).zone(zone);
    let set = [zoned("a", "here"), zoned("b", "here"), zoned("c", "there"), zoned("d", "there")];
    let balancer = Balancer::builder()
        .policy(Policy::RoundRobin)
        .zone("here")
        .backends(set)
        .build_at(start)
        .expect("a valid set");
    assert_eq!(reached(&balancer, 8, start), "a b");
    balancer.eject_at("a", 9 * SECOND, start);
    assert_eq!(reached(&balancer, 8, start), "b");
    balancer.eject_at("b", SECOND, start);
    assert_eq!(reached(&balancer, 8, start), "c d");
    balancer.set_max_in_flight("b", Some(1));
    let later = start + SECOND;
    let held = take(&balancer, later);
    assert_eq!(&**held.backend(), "b");
    assert_eq!(reached(&balancer, 8, later), "c d", "what finds the zone full goes elsewhere");
}

#[test]
fn a_preferred_backend_is_kept_until_it_cannot_take_it() {
    for policy in [Policy::default(), Policy::RingHash { load_factor: 1.25 }] {
        let start = Instant::now();
        let balancer = builder("a b/2 c").policy(policy).build_at(start).expect("a valid set");
        let pick = Pick::new().prefer("b");
        let pick = || balancer.try_acquire_at(&pick, start).expect("there is room");
        let held = [pick(), pick()];
        assert!(held.iter().all(|lease| &**lease.backend() == "b"), "{policy:?}");
        assert_ne!(&**pick().backend(), "b");
        drop(held);
        balancer.eject_at("b", SECOND, start);
        assert_ne!(&**pick().backend(), "b");
    }
}

#[test]
fn keys_go_back_to_their_backend_after_its_ejection() {
    for policy in [Policy::RingHash { load_factor: 4.0 }, Policy::Maglev { load_factor: 4.0 }] {
        let start = Instant::now();
        let balancer = builder("a b c d e").policy(policy).build_at(start).expect("a valid set");
        let owners = || -> Vec<_> {
            let owner = |key: u32| {
                let pick = Pick::new().key(key.to_string());
                let lease = balancer.try_acquire_at(&pick, start).expect("there is room");
                lease.backend().to_string()
            };
            (0..200).map(owner).collect()
        };
        let before = owners();
        balancer.eject_at("c", SECOND, start);
        let during = owners();
        for (before, during) in before.iter().zip(&during) {
            assert!(during != "c" && (before == "c" || before == during), "{policy:?}");
        }
        balancer.restore_at("c", start);
        assert_eq!(owners(), before, "{policy:?}");
    }
}

#[test]
fn a_fast_failure_does_not_look_fast() {
    let start = Instant::now();
    let ejecting = Ejecting { consecutive_failures: 0, ..Ejecting::default() };
    let balancer = builder("bad good")
        .policy(Policy::default())
        .ejecting(ejecting)
        .build_at(start)
        .expect("a valid set");
    let mut to_bad = 0;
    for step in 0..1_000_u32 {
        let now = start + step * SECOND / 100;
        let lease = take(&balancer, now);
        if &**lease.backend() == "bad" {
            to_bad += 1;
            lease
                .complete_at(Outcome::Overload { retry_after: Some(SECOND) }, now + SECOND / 1_000);
        } else {
            lease.complete_at(Outcome::Success, now + SECOND / 50);
        }
    }
    assert!((1..100).contains(&to_bad), "{to_bad} of 1,000 went to the backend that fails fast");
}

#[test]
fn a_cancelled_call_makes_a_hanging_backend_look_slow() {
    let start = Instant::now();
    let balancer = builder("hangs works").policy(Policy::default()).build_at(start).expect("valid");
    for id in ["hangs", "works"] {
        let lease = balancer.try_acquire_at(&Pick::new().prefer(id), start).expect("there is room");
        lease.complete_at(Outcome::Success, start + SECOND / 100);
    }
    let lease =
        balancer.try_acquire_at(&Pick::new().prefer("hangs"), start).expect("there is room");
    lease.cancel_at(start + SECOND);
    let now = start + SECOND;
    assert_eq!(reached(&balancer, 20, now), "works");
    let all = balancer.backends_at(now);
    assert_eq!((all[0].answered, all[0].failed), (1, 0), "neither a success nor a failure");
}

#[test]
fn a_hanging_backend_loses_its_traffic_before_anything_has_timed_out() {
    let start = Instant::now() + SECOND;
    let balancer = builder("hangs works").policy(Policy::default()).build_at(start).expect("valid");
    let mut hanging = Vec::new();
    for step in 1..=1_000_u32 {
        let now = start + step * SECOND / 100;
        let lease = take(&balancer, now);
        match &**lease.backend() {
            "hangs" => hanging.push(lease),
            _ => lease.complete_at(Outcome::Success, now + SECOND / 100),
        }
    }
    assert!((1..10).contains(&hanging.len()), "{} calls hang", hanging.len());
}

#[test]
fn clocks_that_jump_end_ejections_and_break_nothing() {
    let start = Instant::now();
    let balancer = builder("a b").policy(Policy::default()).build_at(start).expect("a valid set");
    let far = start + Duration::from_hours(24 * 400);
    let lease = take(&balancer, far);
    lease.complete_at(Outcome::Success, start);
    fail(&balancer, "a", 5, far);
    assert_eq!(reached(&balancer, 9, start), "b", "before the ejection counts as in it");
    assert_eq!(reached(&balancer, 9, far), "b");
    let farther = far + Duration::from_hours(24 * 400);
    let leases = [take(&balancer, farther), take(&balancer, farther)];
    assert_ne!(leases[0].backend(), leases[1].backend(), "both are ordinary again");
    // Before the balancer was built.
    if let Some(before) = start.checked_sub(SECOND) {
        drop(balancer.try_acquire_at(&Pick::new(), before));
    }
}

#[test]
fn another_policy_takes_over_the_counts() {
    let (balancer, start) = balancer("a b");
    let held = [take(&balancer, start), take(&balancer, start)];
    for policy in [Policy::Maglev { load_factor: 2.0 }, Policy::default(), Policy::WeightedRandom] {
        balancer.set_policy(policy).expect("a valid policy");
        let during = take(&balancer, start);
        balancer.set_policy(Policy::RingHash { load_factor: 2.0 }).expect("a valid policy");
        drop(during);
        assert_eq!(balancer.stats().in_flight, 2);
    }
    drop(held);
    assert_eq!(balancer.core.fleet.bounded_leases.load(Relaxed), 0);
}

#[test]
fn a_seed_replays_the_picks() {
    let start = Instant::now();
    let picks = |seed: u64| -> Vec<String> {
        let list = (0..40).map(|index| Backend::new(index.to_string()));
        let balancer =
            Balancer::builder().backends(list).seed(seed).build_at(start).expect("valid");
        let mut random = fastrand::Rng::with_seed(4);
        (0..300)
            .map(|step| {
                let now = start + step * SECOND / 1_000;
                let lease = take(&balancer, now);
                let id = lease.backend().to_string();
                lease.complete_at(Outcome::Success, now + SECOND / random.u32(10..1_000));
                id
            })
            .collect()
    };
    assert_eq!(picks(7), picks(7));
    assert_ne!(picks(7), picks(8));
}

/// Runs a future with time that stands still until everything waits.
fn paused<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true);
    runtime.build().expect("a runtime without I/O can be built").block_on(future)
}

#[test]
fn waiters_are_served_in_order_and_shed_beyond_the_bound() {
    paused(async {
        let balancer = builder("a/1").queue_max(2).build().expect("a valid set");
        let held = balancer.acquire(&Pick::new()).await.expect("there is room");
        let order = Arc::new(std::sync::Mutex::new(String::new()));
        let wait = |name: char| {
            let (balancer, order) = (balancer.clone(), Arc::clone(&order));
            tokio::spawn(async move {
                let lease = balancer.acquire(&Pick::new()).await;
                order.lock().expect("not poisoned").push(name);
                tokio::task::yield_now().await;
                drop(lease);
            })
        };
        let first = wait('1');
        tokio::task::yield_now().await;
        let second = wait('2');
        tokio::task::yield_now().await;
        assert_eq!(balancer.stats().waiting, 2);
        let error = balancer.acquire(&Pick::new()).await.expect_err("the queue is full");
        assert!(matches!(error, AcquireError::Full { waiting: 2, .. }), "{error:?}");
        drop(held);
        assert!(
            matches!(balancer.try_acquire(&Pick::new()), Err(AcquireError::Full { .. })),
            "nobody goes past those who wait"
        );
        first.await.expect("no panic");
        second.await.expect("no panic");
        assert_eq!(*order.lock().expect("not poisoned"), "12");
        let stats = balancer.stats();
        assert_eq!((stats.waiting, stats.in_flight, stats.shed, stats.timed_out), (0, 0, 2, 0));
    });
}

#[test]
fn a_wait_ends_at_its_deadline_and_leaves_nothing_behind() {
    paused(async {
        let balancer =
            builder("a/1").wait_max(Duration::from_millis(300)).build().expect("a valid set");
        let held = balancer.acquire(&Pick::new()).await.expect("there is room");
        let now = tokio::time::Instant::now();
        let error = balancer.acquire(&Pick::new()).await.expect_err("nobody gives a place back");
        assert!(matches!(error, AcquireError::TimedOut { .. }), "{error:?}");
        assert!(now.elapsed() >= Duration::from_millis(299));
        // A deadline that has passed does not queue at all.
        let passed = Pick::new().deadline(Instant::now());
        let error = balancer.acquire(&passed).await.expect_err("it is too late");
        assert!(matches!(error, AcquireError::Full { .. }), "{error:?}");
        // A future that is dropped leaves the queue.
        let pick = Pick::new();
        let abandoned = tokio::time::timeout(Duration::from_millis(10), balancer.acquire(&pick));
        assert!(abandoned.await.is_err());
        let stats = balancer.stats();
        assert_eq!((stats.waiting, stats.timed_out, stats.shed), (0, 1, 1));
        drop(held);
        assert_eq!(balancer.stats().in_flight, 0);
        assert!(balancer.try_acquire(&Pick::new()).is_ok());
    });
}

#[test]
fn those_who_wait_learn_of_a_new_backend_and_of_the_end_of_all() {
    paused(async {
        let balancer = builder("a/1").build().expect("a valid set");
        let _held = balancer.acquire(&Pick::new()).await.expect("there is room");
        let wait = || {
            let balancer = balancer.clone();
            tokio::spawn(async move {
                balancer.acquire(&Pick::new()).await.map(|lease| lease.backend().to_string())
            })
        };
        let waits = wait();
        tokio::task::yield_now().await;
        balancer.insert(Backend::new("b").max_in_flight(1)).expect("a valid backend");
        assert_eq!(waits.await.expect("no panic"), Ok("b".to_owned()));
        let b = balancer.acquire(&Pick::new()).await.expect("there is room");
        let waits = wait();
        tokio::task::yield_now().await;
        assert!(balancer.remove("a") && balancer.remove("b") && !balancer.remove("b"));
        assert_eq!(waits.await.expect("no panic"), Err(AcquireError::Empty));
        drop(b);
    });
}

#[test]
fn a_place_for_one_who_has_gone_goes_to_the_next() {
    paused(async {
        let balancer = builder("a/1").build().expect("a valid set");
        let held = balancer.acquire(&Pick::new()).await.expect("there is room");
        let core = &balancer.core;
        let gone = Waiting::queue(core, &Pick::new()).expect("the queue has room");
        let mut next = Waiting::queue(core, &Pick::new()).expect("the queue has room");
        drop(held);
        drop(gone);
        let lease = (&mut next.answer).await.expect("an answer").expect("a place");
        assert_eq!((balancer.stats().in_flight, balancer.stats().waiting), (1, 0));
        drop(lease);
        assert_eq!(balancer.stats().in_flight, 0);
    });
}

#[test]
fn many_tasks_over_few_places_all_get_one() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime without I/O can be built");
    let balancer =
        builder("a/1 b/2").wait_max(60 * SECOND).queue_max(64).build().expect("a valid set");
    runtime.block_on(async {
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let balancer = balancer.clone();
                tokio::spawn(async move {
                    for _ in 0..200 {
                        let lease = balancer.acquire(&Pick::new()).await.expect("a place in time");
                        tokio::task::yield_now().await;
                        lease.complete(Outcome::Success);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    let stats = balancer.stats();
    assert_eq!((stats.leases, stats.in_flight, stats.waiting), (64 * 200, 0, 0));
}

#[test]
fn a_balancer_that_is_gone_lets_its_leases_go() {
    let (balancer, start) = balancer("a/1");
    let lease = take(&balancer, start);
    let mut events = balancer.events();
    drop(balancer);
    lease.complete_at(Outcome::Failure, start);
    assert_eq!(events.try_next(), None);
}

/// What the model of the set says of one backend.
#[derive(Clone, Debug, Default)]
struct Model {
    leases: u32,
    in_set: bool,
    draining: bool,
    limit: u32,
}

proptest! {
    /// Any order of picks, releases and changes of the set against plain counting.
    #[test]
    fn counts_and_limits_hold_under_any_changes(
        steps in prop::collection::vec((0_u8..8, 0_usize..5, 1_u32..4), 1..150),
        policy in 0_usize..4,
    ) {
        let policies = [
            Policy::default(),
            Policy::RoundRobin,
            Policy::RingHash { load_factor: 1.25 },
            Policy::WeightedRandom,
        ];
        let ids = ["a", "b", "c", "d", "e"];
        let start = Instant::now();
        let balancer = Balancer::builder().policy(policies[policy]).seed(2).build_at(start).expect("valid");
        let mut model: BTreeMap<&str, Model> = ids.iter().map(|id| (*id, Model::default())).collect();
        let mut held: Vec<Lease> = Vec::new();
        for (step, at, number) in steps {
            let id = ids[at];
            match step {
                0 => {
                    balancer.insert(Backend::new(id).max_in_flight(number)).expect("valid");
                    let model = model.get_mut(id).expect("one of them");
                    // One that comes back is not draining any more; one that stays still is.
                    model.draining &= model.in_set;
                    model.in_set = true;
                    model.limit = number;
                }
                1 => {
                    prop_assert_eq!(balancer.remove(id), model[id].in_set);
                    model.get_mut(id).expect("one of them").in_set = false;
                }
                2 => {
                    prop_assert_eq!(balancer.drain(id), model[id].in_set);
                    model.get_mut(id).expect("one of them").draining |= model[id].in_set;
                }
                3 => {
                    prop_assert_eq!(balancer.restore_at(id, start), model[id].in_set);
                    let model = model.get_mut(id).expect("one of them");
                    model.draining &= !model.in_set;
                }
                4 if !held.is_empty() => {
                    let lease = held.swap_remove(at % held.len());
                    model.get_mut(&**lease.backend()).expect("one of them").leases -= 1;
                    lease.complete_at(Outcome::Success, start);
                }
                _ => {
                    let room = |model: &Model| model.in_set && !model.draining && model.leases < model.limit;
                    let ready = model.values().any(|model| model.in_set && !model.draining);
                    match balancer.try_acquire_at(&Pick::new().key(id), start) {
                        Ok(lease) => {
                            let model = model.get_mut(&**lease.backend()).expect("one of them");
                            prop_assert!(room(model), "{:?} has no room", lease);
                            model.leases += 1;
                            held.push(lease);
                        }
                        Err(AcquireError::Empty) => {
                            prop_assert!(!model.values().any(|model| model.in_set));
                        }
                        Err(AcquireError::Unavailable { .. }) => prop_assert!(!ready),
                        Err(error) => {
                            prop_assert!(ready && !model.values().any(room), "{}", error);
                        }
                    }
                }
            }
            for backend in balancer.backends_at(start) {
                prop_assert_eq!(backend.in_flight, model[&*backend.id].leases);
            }
        }
        drop(held);
        prop_assert_eq!(balancer.stats().in_flight, 0);
    }
}

#[test]
fn a_suspended_backend_gets_nothing_even_in_panic_and_is_no_failure() {
    let (balancer, start) = balancer("a b c");
    let at = |seconds| start + seconds * SECOND;
    let mut events = balancer.events();
    assert!(balancer.suspend_at("a", 10 * SECOND, start));
    assert!(balancer.suspend_at("b", 20 * SECOND, start));
    assert!(!balancer.suspend_at("x", SECOND, start));
    // One of three is healthy, which is panic; an ejection would not count now.
    assert_eq!(reached(&balancer, 6, at(1)), "c");
    assert_eq!(balancer.backends_at(at(1))[0].state, BackendState::Suspended);
    assert_eq!(balancer.backends_at(at(1))[0].ejections, 0);
    assert_eq!(reached(&balancer, 6, at(10)), "a c");
    assert!(balancer.resume_at("b", at(11)));
    assert!(balancer.resume_at("b", at(11)));
    assert_eq!(reached(&balancer, 6, at(11)), "a b c");
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).map(|it| it.to_string()).collect();
    let expected = [
        "a: suspended for 10.0s",
        "b: suspended for 20.0s",
        "health is ignored: 1 of 3 are healthy",
        "a: resumed",
        "health counts again",
        "b: resumed",
    ];
    assert_eq!(told, expected);
    for id in ["a", "b", "c"] {
        balancer.suspend_at(id, 5 * SECOND, at(12));
    }
    let none = balancer.try_acquire_at(&Pick::new(), at(13)).expect_err("all are suspended");
    assert_eq!(none, AcquireError::Unavailable { retry_after: 4 * SECOND });
}

#[test]
fn an_answered_lease_keeps_its_place_and_says_no_more_about_speed() {
    let start = Instant::now();
    let policy = Policy::PeakEwma { choices: 5, decay: SECOND };
    let builder = Balancer::builder().backends(backends("a/1 b")).policy(policy).seed(1);
    let balancer = builder.build_at(start).expect("a valid set");
    let at = |millis| start + Duration::from_millis(millis);
    let pick = |id: &str| Pick::new().prefer(id);
    let mut lease = balancer.try_acquire_at(&pick("a"), start).expect("there is room");
    lease.answered_at(Outcome::Success, at(10));
    // Only the first time counts.
    lease.answered_at(Outcome::Failure, at(20));
    let stats = &balancer.backends_at(at(20))[0];
    let seen = (stats.in_flight, stats.answered, stats.failed, stats.latency);
    assert_eq!(seen, (1, 1, 0, Some(Duration::from_millis(10))));
    let other = balancer.try_acquire_at(&pick("a"), at(30)).expect("elsewhere");
    assert_eq!(&**other.backend(), "b");
    other.complete_at(Outcome::Success, at(40));
    lease.complete_at(Outcome::Success, at(60_000));
    let stats = &balancer.backends_at(at(60_000))[0];
    let seen = (stats.in_flight, stats.answered, stats.latency);
    assert_eq!(seen, (0, 1, Some(Duration::from_millis(10))));
    // One whose answer breaks off has failed after all.
    let mut lease = balancer.try_acquire_at(&pick("a"), at(60_000)).expect("there is room");
    lease.answered_at(Outcome::Success, at(60_010));
    lease.complete_at(Outcome::Failure, at(60_020));
    let stats = &balancer.backends_at(at(60_020))[0];
    assert_eq!((stats.in_flight, stats.answered, stats.failed), (0, 2, 1));
}

#[test]
fn a_backend_that_only_streams_is_not_taken_for_a_silent_one() {
    let start = Instant::now();
    let builder = Balancer::builder().backends(backends("a b")).seed(1);
    let balancer = builder.build_at(start).expect("a valid set");
    let at = |millis| start + Duration::from_millis(millis);
    for id in ["a", "b"] {
        let lease = balancer.try_acquire_at(&Pick::new().prefer(id), at(1)).expect("there is room");
        lease.complete_at(Outcome::Success, at(11));
    }
    let mut stream = balancer.try_acquire_at(&Pick::new().prefer("a"), at(20)).expect("room");
    stream.answered_at(Outcome::Success, at(30));
    // An hour later: two more streams at `b` make `a` the one with fewer.
    let later = at(3_600_000);
    let leases = [(); 2].map(|()| {
        let mut lease = balancer.try_acquire_at(&Pick::new().prefer("b"), later).expect("room");
        lease.answered_at(Outcome::Success, later + Duration::from_millis(10));
        lease
    });
    let next = balancer.try_acquire_at(&Pick::new(), later + SECOND).expect("there is room");
    assert_eq!(&**next.backend(), "a");
    drop((stream, leases, next));
}

#[test]
fn another_priority_goes_before_a_backend_that_is_avoided() {
    let start = Instant::now();
    let builder = Balancer::builder().backend(Backend::new("a"));
    let builder = builder.backend(Backend::new("b").priority(1).max_in_flight(1));
    let balancer = builder.build_at(start).expect("a valid set");
    let avoiding = Pick::new().avoid("a");
    let other = balancer.try_acquire_at(&avoiding, start).expect("there is room");
    let same = balancer.try_acquire_at(&avoiding, start).expect("there is room");
    assert_eq!((&**other.backend(), &**same.backend()), ("b", "a"));
    drop((other, same));
}
