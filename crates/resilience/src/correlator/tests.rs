//! The correlator against replayed incidents, long random times, and its edges.

use super::*;
use crate::{CircuitBreaker, Extra, Outcome, RetryBudget, State};

/// A correlator with a clock that the test turns, second by second.
struct Rig {
    correlator: Correlator,
    members: Vec<Member>,
    start: Instant,
    second: u64,
    random: fastrand::Rng,
}

impl Rig {
    fn new(tags: &[&[&str]]) -> Self {
        let start = Instant::now();
        let correlator = Correlator::builder("test").build_at(start).expect("valid");
        let join = |(index, tags): (usize, &&[&str])| {
            correlator.join(format!("m{index}"), tags.iter().copied()).expect("there is room")
        };
        let members = tags.iter().enumerate().map(join).collect();
        Self { correlator, members, start, second: 0, random: fastrand::Rng::with_seed(11) }
    }

    fn fail(&self, member: usize, millis: u64) {
        let now = self.start + Duration::from_secs(self.second) + Duration::from_millis(millis);
        self.members[member].failed_at(now);
    }

    fn step(&mut self) -> Vec<IncidentEvent> {
        self.second += 1;
        self.correlator.step_at(self.start + Duration::from_secs(self.second))
    }

    /// Seconds in which each member fails by chance, now and then.
    fn usual(&mut self, seconds: u64, chance: f64) {
        for _ in 0..seconds {
            for member in 0..self.members.len() {
                if self.random.f64() < chance {
                    let millis = self.random.u64(..1_000);
                    self.fail(member, millis);
                }
            }
            let events = self.step();
            assert_eq!(events, [], "in usual times, second {}", self.second);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "12,000 steps")]
fn an_incident_is_grouped_with_its_first_mover_within_ten_seconds() {
    for seed in 0..20 {
        // The storage breaks; the two that use it follow; two others on the host fail as usual.
        let mut rig = Rig::new(&[&["host"], &["host"], &["host"], &["host"], &["elsewhere"]]);
        rig.random = fastrand::Rng::with_seed(seed);
        rig.usual(600, 0.01);
        let mut found = None;
        for second in 0..10_u64 {
            for (member, behind) in [(2, 0), (0, 900), (1, 1_700)] {
                for call in 0..20 {
                    let at = second * 1_000 + call * 50;
                    if at >= behind && rig.random.f64() < 0.7 {
                        rig.fail(member, call * 50);
                    }
                }
            }
            for event in rig.step() {
                if let IncidentEvent::Started(incident) | IncidentEvent::Changed(incident) = event {
                    found = Some(incident);
                }
            }
        }
        let mut incident = found.expect("found within ten seconds");
        incident.members.sort_unstable();
        assert_eq!(incident.first_mover, "m2", "seed {seed}");
        assert_eq!(incident.members, ["m0", "m1", "m2"], "seed {seed}");
        assert!(rig.members[2].in_incident() && !rig.members[3].in_incident());
    }
}

#[test]
#[cfg_attr(miri, ignore = "86,400 steps")]
fn a_day_of_independent_failures_gives_at_most_one_false_group() {
    // Twelve members on one host, each with its own rate of failing seconds, in runs of one to four.
    let tags: [&[&str]; 12] = [&["host"]; 12];
    let mut rig = Rig::new(&tags);
    let mut until = [0_u64; 12];
    let mut started = 0;
    while rig.second < 24 * 3_600 {
        for (member, until) in until.iter_mut().enumerate() {
            let chance = [0.001, 0.005, 0.01, 0.03][member % 4];
            if rig.random.f64() < chance {
                *until = rig.second + rig.random.u64(1..=4);
            }
            if rig.second < *until {
                let millis = rig.random.u64(..1_000);
                rig.fail(member, millis);
            }
        }
        let events = rig.step();
        started += events.iter().filter(|it| matches!(it, IncidentEvent::Started(_))).count();
    }
    assert!(started <= 1, "{started} groups");
}

/// Makes the first two members fail for so many seconds and returns the events.
fn break_both(rig: &mut Rig, seconds: u64) -> Vec<IncidentEvent> {
    (0..seconds)
        .flat_map(|_| {
            rig.fail(0, 100);
            rig.fail(1, 200);
            rig.step()
        })
        .collect()
}

#[test]
fn an_incident_goes_on_while_it_lasts_and_ends_after_it() {
    let mut rig = Rig::new(&[&["a", "b"], &["b"]]);
    rig.usual(100, 0.0);
    let events = break_both(&mut rig, 300);
    assert!(
        matches!(&events[..], [IncidentEvent::Started(it)] if it.first_mover == "m0"),
        "{events:?}"
    );
    assert_eq!(rig.correlator.incidents().len(), 1);
    let events: Vec<_> = (0..10).flat_map(|_| rig.step()).collect();
    assert!(matches!(&events[..], [IncidentEvent::Ended(it)] if it.id == 1), "{events:?}");
    assert!(!rig.members[0].in_incident() && !rig.members[1].in_incident());
    assert!(rig.correlator.incidents().is_empty());
}

#[test]
fn members_without_a_common_tag_are_never_grouped() {
    let mut rig = Rig::new(&[&["a"], &["b"]]);
    assert_eq!(break_both(&mut rig, 60), []);
    let mut rig = Rig::new(&[&[], &[]]);
    assert_eq!(break_both(&mut rig, 60), []);
}

#[test]
fn a_member_that_always_fails_is_in_no_group() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    for second in 0..600 {
        rig.fail(0, 5);
        if second > 500 {
            rig.fail(1, 5);
        }
        assert_eq!(rig.step(), [], "second {second}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "7,200 steps")]
fn a_steady_rate_of_errors_is_no_bad_second() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    // Ten errors a second are what is usual for both, one after the other; thirty are not.
    for second in 0..7_200 {
        for member in (0..2).filter(|member| second > 100 * member) {
            (0..10).for_each(|call| rig.fail(member, call));
        }
        rig.step();
    }
    assert!(rig.correlator.incidents().is_empty());
    for _ in 0..10 {
        for member in 0..2 {
            (0..30).for_each(|call| rig.fail(member, call));
        }
        rig.step();
    }
    assert_eq!(rig.correlator.incidents().len(), 1);
}

#[test]
fn members_and_tags_have_bounds_and_dropped_members_make_room() {
    let builder = Correlator::builder("small").members_max(2).tags_max(1);
    let correlator = builder.build().expect("valid");
    let first = correlator.join("a", ["x"]).expect("room");
    let _second = correlator.join("b", ["x"]).expect("room");
    assert_eq!(correlator.join("c", ["x"]).err(), Some(JoinError::Full { max: 2 }));
    assert_eq!(correlator.join("c", ["x", "y"]).err(), Some(JoinError::TooManyTags { max: 1 }));
    drop(first);
    assert!(correlator.join("c", ["x"]).is_ok());
}

#[test]
fn times_out_of_order_and_long_gaps_are_no_trouble() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    rig.usual(100, 0.5);
    let late = rig.start;
    rig.members[0].failed_at(late);
    rig.second += 1_000_000;
    rig.fail(0, 1);
    rig.members[0].failed_at(late + Duration::from_secs(rig.second - 3));
    assert_eq!(rig.step(), []);
    assert_eq!(rig.correlator.step_at(late), []);
}

#[test]
fn an_incident_cuts_the_budget_and_stops_hedges() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    let now = rig.start;
    let budget = |rig: &Rig| {
        let builder = RetryBudget::builder("test").share(0.0).per_second(4.0);
        builder.member(rig.members[0].clone()).build_at(now).expect("valid")
    };
    let given =
        |budget: &RetryBudget, extra| (0..100).filter(|_| budget.try_spend_at(extra, now)).count();
    assert_eq!(given(&budget(&rig), Extra::Hedge), 40);
    break_both(&mut rig, 20);
    assert_eq!(given(&budget(&rig), Extra::Hedge), 0);
    assert_eq!(given(&budget(&rig), Extra::Retry), 10);
}

#[test]
fn the_breakers_of_a_group_probe_in_turns() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    let second = Duration::from_secs(1);
    let breakers = [0, 1].map(|index| {
        CircuitBreaker::builder("test")
            .consecutive_failures(1)
            .open_time(second, second)
            .probe_timeout(60 * second)
            .member(rig.members[index].clone())
            .build_at(rig.start)
            .expect("valid")
    });
    break_both(&mut rig, 20);
    let now = rig.start + Duration::from_secs(rig.second);
    for breaker in &breakers {
        breaker.try_acquire_at(now).expect("closed").complete_at(Outcome::Failure, now);
    }
    let later = now + 2 * second;
    let probe = breakers[0].try_acquire_at(later).expect("the first to probe");
    assert!(breakers[1].try_acquire_at(later).is_err());
    probe.complete_at(Outcome::Success, later);
    assert_eq!(breakers[0].state_at(later), State::Closed);
    let lost = breakers[1].try_acquire_at(later).expect("its turn");
    breakers[0].try_acquire_at(later).expect("closed").complete_at(Outcome::Failure, later);
    let much_later = later + 61 * second;
    let probe = breakers[0].try_acquire_at(much_later).expect("the turn was lost");
    drop(lost);
    drop(probe);
    assert!(breakers[1].try_acquire_at(much_later).is_ok());
}

#[test]
fn calls_of_a_ramp_take_no_turns() {
    let mut rig = Rig::new(&[&["a"], &["a"]]);
    let second = Duration::from_secs(1);
    let breaker = CircuitBreaker::builder("test")
        .consecutive_failures(1)
        .open_time(second, second)
        .ramp(100 * second)
        .member(rig.members[0].clone())
        .build_at(rig.start)
        .expect("valid");
    break_both(&mut rig, 20);
    let now = rig.start + Duration::from_secs(rig.second);
    breaker.try_acquire_at(now).expect("closed").complete_at(Outcome::Failure, now);
    let later = now + 2 * second;
    breaker.try_acquire_at(later).expect("a probe").complete_at(Outcome::Success, later);
    // In the stage of 50 %, every other call passes, while the first are still in flight.
    let stage = later + 90 * second;
    let passed: Vec<_> = (0..10).filter_map(|_| breaker.try_acquire_at(stage).ok()).collect();
    assert_eq!(passed.len(), 5);
}

#[test]
fn a_breaker_tells_its_failures_to_its_member() {
    let rig = Rig::new(&[&["a"]]);
    let breaker = CircuitBreaker::builder("test")
        .member(rig.members[0].clone())
        .build_at(rig.start)
        .expect("valid");
    for outcome in [Outcome::Success, Outcome::Ignored, Outcome::Failure] {
        breaker.try_acquire_at(rig.start).expect("closed").complete_at(outcome, rig.start);
    }
    assert_eq!(lock(&rig.members[0].0.history).failures[0], 1);
}

#[test]
fn the_bound_of_the_poisson_tail_holds_and_is_close() {
    for (k, mean) in [(5_u32, 0.0064_f64), (7, 0.16), (3, 1.0), (16, 2.56), (20, 10.0)] {
        let mut term = (-mean).exp();
        let mut tail = 0.0;
        for i in 0..200_u32 {
            if i >= k {
                tail += term;
            }
            term *= mean / f64::from(i + 1);
        }
        let bound = poisson_tail_ln(k, mean).exp();
        assert!(bound >= tail * 0.999_999 && bound <= tail * 1.5, "{k} {mean}: {bound} {tail}");
    }
    assert!(poisson_tail_ln(5, 6.0) >= 0.0);
}
