//! Every interleaving of the breaker's hand-overs between threads, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p resilience --release --lib loom`

use loom::sync::Arc;
use loom::thread;

use super::*;

const TICK: u64 = 1 << TICK_BITS;
const OPEN_TIME: u64 = 4 * TICK;

/// A breaker that opens after `row` failures in a row, with `probes`, and slots of one tick.
fn machine(row: u32, probes: u32) -> Arc<Machine> {
    Arc::new(Machine::new(settings(row, probes), None))
}

fn settings(row: u32, probes: u32) -> Settings {
    Settings {
        window: crate::window::BUCKETS * TICK,
        minimum_calls: 100,
        failure_rate: 1.0,
        consecutive_failures: row,
        slow_call: None,
        slow_call_rate: 1.0,
        open_base: OPEN_TIME,
        open_max: OPEN_TIME,
        stable: 1_000 * TICK,
        probes,
        probe_timeout: 1_000 * TICK,
        ramp: 0,
        seed: 1,
    }
}

fn admit(machine: &Machine, now: u64) -> Ticket {
    machine.acquire(now).expect("the breaker admits calls at this point")
}

/// Opens a breaker with row 1 and returns a time at which it takes probes.
fn open(machine: &Machine) -> u64 {
    machine.complete(admit(machine, 0), Outcome::Failure, 0);
    assert_eq!(machine.state(0), State::Open);
    OPEN_TIME + TICK
}

/// Runs both at once and then joins them.
fn race<A: 'static, B>(one: impl FnOnce() -> A + 'static, two: impl FnOnce() -> B) -> (A, B) {
    let one = thread::spawn(one);
    let two = two();
    (one.join().expect("the other thread does not panic"), two)
}

#[test]
fn loom_two_failures_open_once() {
    loom::model(|| {
        let machine = machine(2, 1);
        let (first, second) = (admit(&machine, 0), admit(&machine, 0));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(first, Outcome::Failure, 0),
            || machine.complete(second, Outcome::Failure, 0),
        );
        let stats = machine.stats(0);
        assert_eq!((stats.state, stats.opened, stats.late), (State::Open, 1, 0));
    });
}

#[test]
fn loom_a_success_breaks_a_row_of_failures() {
    loom::model(|| {
        let machine = machine(2, 1);
        machine.complete(admit(&machine, 0), Outcome::Failure, 0);
        let (success, failure) = (admit(&machine, 0), admit(&machine, 0));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(success, Outcome::Success, 0),
            || machine.complete(failure, Outcome::Failure, 0),
        );
        // Failure first: the row is two, and it opens. Success first: the row is the failure.
        let stats = machine.stats(0);
        match stats.state {
            State::Open => assert_eq!(stats.opened, 1),
            State::Closed => assert_eq!(stats.consecutive_failures, 1),
            State::HalfOpen => panic!("nobody probed"),
        }
    });
}

#[test]
fn loom_no_call_is_lost_in_one_slot() {
    loom::model(|| {
        let machine = machine(0, 1);
        let (first, second) = (admit(&machine, TICK), admit(&machine, TICK));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(first, Outcome::Failure, TICK),
            || machine.complete(second, Outcome::Failure, TICK),
        );
        let stats = machine.stats(TICK);
        assert_eq!((stats.calls, stats.failures, stats.consecutive_failures), (2, 2, 2));
    });
}

#[test]
fn loom_a_turn_of_the_ring_mixes_no_slots() {
    loom::model(|| {
        let machine = machine(0, 1);
        // An old call in the bucket that both racers want: slot 0, and then slots 2 and 4.
        machine.complete(admit(&machine, 0), Outcome::Failure, 0);
        let (early, late) = (admit(&machine, 0), admit(&machine, 0));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(early, Outcome::Failure, 2 * TICK),
            || machine.complete(late, Outcome::Failure, 4 * TICK),
        );
        // The early one counts in its own slot, which is out of the window by now, or in the
        // newest if it came second; the late one is always there, and the old one never.
        let failures = machine.stats(4 * TICK).failures;
        assert!((1..=2).contains(&failures), "{failures} failures");
        assert_eq!(machine.stats(0).consecutive_failures, 3);
    });
}

#[test]
fn loom_a_place_among_the_probes_is_given_once() {
    loom::model(|| {
        let machine = machine(1, 1);
        let now = open(&machine);
        let other = Arc::clone(&machine);
        let (one, two) = race(move || other.acquire(now), || machine.acquire(now));
        assert!(one.is_ok() != two.is_ok(), "exactly one is the probe");
        assert_eq!(machine.stats(now).opened, 1, "a probe in flight was taken for lost");
        machine.complete(one.or(two).expect("one of them"), Outcome::Success, now);
        assert_eq!(machine.state(now), State::Closed);
    });
}

#[test]
fn loom_a_dropped_probe_gives_its_place_back() {
    loom::model(|| {
        let machine = machine(1, 1);
        let now = open(&machine);
        let probe = admit(&machine, now);
        let other = Arc::clone(&machine);
        let (_, next) = race(move || other.release(probe), || machine.acquire(now));
        match next {
            Ok(_) => assert!(machine.acquire(now).is_err(), "the place was given twice"),
            Err(_) => _ = admit(&machine, now),
        }
        assert_eq!(machine.stats(now).probes_in_flight, 1);
    });
}

#[test]
fn loom_two_good_probes_close_it() {
    loom::model(|| {
        let machine = machine(1, 2);
        let now = open(&machine);
        let (first, second) = (admit(&machine, now), admit(&machine, now));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(first, Outcome::Success, now),
            || machine.complete(second, Outcome::Success, now),
        );
        assert_eq!(machine.state(now), State::Closed);
    });
}

#[test]
fn loom_one_bad_probe_of_two_opens_it_again() {
    loom::model(|| {
        let machine = machine(1, 2);
        let now = open(&machine);
        let (good, bad) = (admit(&machine, now), admit(&machine, now));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(good, Outcome::Success, now),
            || machine.complete(bad, Outcome::Failure, now),
        );
        let stats = machine.stats(now);
        assert_eq!((stats.state, stats.opened), (State::Open, 2));
    });
}

#[test]
fn loom_a_late_failure_never_reopens_a_closed_breaker() {
    loom::model(|| {
        let machine = machine(1, 1);
        let late = admit(&machine, 0);
        let now = open(&machine);
        let probe = admit(&machine, now);
        let other = Arc::clone(&machine);
        race(
            move || other.complete(late, Outcome::Failure, now),
            || machine.complete(probe, Outcome::Success, now),
        );
        let stats = machine.stats(now);
        assert_eq!((stats.state, stats.failures, stats.late), (State::Closed, 0, 1));
    });
}

#[test]
fn loom_a_failure_of_before_a_reset_counts_nothing_after_it() {
    loom::model(|| {
        let machine = machine(1, 1);
        let ticket = admit(&machine, 0);
        let other = Arc::clone(&machine);
        race(move || other.complete(ticket, Outcome::Failure, 0), || machine.reset(0));
        let stats = machine.stats(0);
        assert_eq!(stats.state, State::Closed);
        assert_eq!((stats.calls, stats.consecutive_failures), (0, 0));
    });
}

#[test]
fn loom_a_success_of_before_a_reset_clears_nothing_after_it() {
    loom::model(|| {
        let machine = machine(3, 1);
        machine.complete(admit(&machine, 0), Outcome::Failure, 0);
        let success = admit(&machine, 0);
        let other = Arc::clone(&machine);
        race(
            move || other.complete(success, Outcome::Success, 0),
            || {
                machine.reset(0);
                machine.complete(admit(&machine, 0), Outcome::Failure, 0);
            },
        );
        let stats = machine.stats(0);
        assert_eq!((stats.calls, stats.failures, stats.consecutive_failures), (1, 1, 1));
    });
}

#[test]
fn loom_a_call_that_ends_is_not_overdue() {
    loom::model(|| {
        let slow = Settings { slow_call: Some(TICK), ..settings(0, 1) };
        let machine = Arc::new(Machine::new(slow, None));
        let (first, second) = (admit(&machine, 0), admit(&machine, 0));
        let other = Arc::clone(&machine);
        race(
            move || other.complete(first, Outcome::Success, 0),
            || {
                machine.release(second);
                admit(&machine, TICK)
            },
        );
        // Of the three calls one is still in flight, since the slot after the first.
        assert_eq!(machine.stats(2 * TICK).overdue, 0);
        assert_eq!(machine.stats(3 * TICK).overdue, 1);
    });
}

#[test]
fn loom_whoever_turns_the_ring_opens_a_hanging_breaker_once() {
    loom::model(|| {
        let slow = Settings { slow_call: Some(TICK), minimum_calls: 1, ..settings(0, 1) };
        let machine = Arc::new(Machine::new(slow, None));
        let _hangs = admit(&machine, 0);
        let other = Arc::clone(&machine);
        race(move || other.acquire(2 * TICK).is_ok(), || machine.acquire(2 * TICK).is_ok());
        let stats = machine.stats(2 * TICK);
        assert_eq!((stats.state, stats.opened), (State::Open, 1));
    });
}
