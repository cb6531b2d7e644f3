//! Tests of the rounds, with readings and clocks that the tests make up.

use super::*;
use std::cell::{Cell, RefCell};

fn suite(options: Options) -> Suite {
    Suite::with_options("test", options)
}

/// A reading that wanders around `centre` like a busy machine does, the same for every run.
fn noisy(centre: f64, seed: u64) -> impl FnMut() -> f64 {
    let mut rng = Rng::with_seed(seed);
    move || centre * (0.9 + 0.2 * rng.f64())
}

/// Compares two noisy readings of a known ratio and returns the row.
fn compared(ratio: f64, describe: impl FnOnce(Case<'_, Reported>) -> Case<'_, Reported>) -> Row {
    let mut suite = suite(Options::default());
    describe(suite.reported("case", "x")).compare("peer", noisy(ratio, 2), noisy(1.0, 3));
    suite.rows()[0].clone()
}

#[test]
fn a_known_ratio_is_found_within_its_spread() {
    let row = compared(3.0, |case| case.rounds(51));
    let [low, high] = row.spread.expect("51 rounds");
    assert!(low <= 3.0 && 3.0 <= high, "{row:?}");
    assert!(high - low < 0.5, "{row:?}");
    assert!((row.ratio.expect("compared") - 3.0).abs() < 0.25, "{row:?}");
    assert_eq!((row.case.as_str(), row.holds), ("case vs peer", None));
}

#[test]
fn a_target_is_held_against_the_unfavourable_end() {
    assert_eq!(compared(3.0, |case| case.at_least(2.0)).holds, Some(true));
    assert_eq!(compared(3.0, |case| case.at_least(3.0)).holds, Some(false));
    assert_eq!(compared(3.0, |case| case.at_most(4.0)).holds, Some(true));
    assert_eq!(compared(3.0, |case| case.at_most(3.0)).holds, Some(false));
}

#[test]
fn a_drift_that_strikes_both_sides_leaves_the_ratio() {
    let slowdown = Cell::new(1.0);
    let reading = |centre: f64| {
        slowdown.set(slowdown.get() * 1.0005); // the machine gets slower with every reading
        centre * slowdown.get()
    };
    let mut suite = suite(Options::default());
    suite.reported("drift", "x").rounds(101).compare("peer", || reading(2.0), || reading(1.0));
    let row = &suite.rows()[0];
    assert!((row.ratio.expect("compared") - 2.0).abs() < 0.01, "{row:?}");
}

#[test]
fn rounds_are_pairs_in_both_orders_after_one_that_does_not_count() {
    let calls = RefCell::new(String::new());
    let log = |who: char| {
        calls.borrow_mut().push(who);
        1.0
    };
    let mut suite = suite(Options::default());
    suite.reported("order", "x").rounds(25).compare("peer", || log('o'), || log('p'));
    let calls = calls.into_inner();
    assert_eq!(calls.len(), 2 * 26);
    let pairs: Vec<&str> = (0..26).map(|i| &calls[2 * i..2 * i + 2]).collect();
    assert!(pairs.iter().all(|pair| ["op", "po"].contains(pair)), "{calls}");
    assert!(pairs.contains(&"op") && pairs.contains(&"po"), "{calls}");
}

#[test]
fn time_and_rate_come_from_the_clock_that_is_passed() {
    let now = Cell::new(Duration::ZERO);
    let read = |as_rate| {
        let meter = Timed { clock: Clock::Cpu, operations: 1_000, as_rate };
        meter.read(|| now.get(), &mut || now.set(now.get() + Duration::from_micros(50)))
    };
    assert!((read(false) - 50.0).abs() < 1e-9);
    assert!((read(true) - 20_000_000.0).abs() < 1e-3);
}

#[test]
fn work_that_takes_no_time_still_gives_a_finite_number() {
    let meter = Timed { clock: Clock::Cpu, operations: 1_000, as_rate: true };
    assert!(meter.read(|| Duration::ZERO, &mut || ()).is_finite());
}

#[test]
fn timed_cases_carry_the_unit_of_their_clock() {
    let mut suite = suite(Options { rounds: Some(9), ..Options::default() });
    let mut spin = || (0..2_000_u64).for_each(|i| _ = std::hint::black_box(i));
    suite.time("a", Clock::Cpu, 2_000).measure(&mut spin);
    suite.time("b", Clock::Wall, 2_000).measure(&mut spin);
    suite.rate("c", Clock::Cpu, 2_000).measure(&mut spin);
    suite.rate("d", Clock::Wall, 2_000).measure(&mut spin);
    let units: Vec<&str> = suite.rows().iter().map(|row| row.unit.as_str()).collect();
    assert_eq!(units, ["ns CPU/op", "ns/op", "op/CPU s", "op/s"]);
    assert!(suite.rows().iter().all(|row| row.ours > Some(0.0) && row.peer.is_none()));
}

#[test]
fn an_absolute_target_is_held_against_the_spread_of_ours() {
    let mut suite = suite(Options::default());
    suite.reported("measured", "s").at_most(1.2).measure(noisy(1.0, 5));
    suite.reported("too slow", "s").at_most(1.0).measure(noisy(1.0, 5));
    suite.reported("observed", "x").at_most(1.2).observed(1.03);
    suite.reported("observed", "x").at_most(1.0).observed(1.03);
    let holds: Vec<_> = suite.rows().iter().map(|row| row.holds).collect();
    assert_eq!(holds, [Some(true), Some(false), Some(true), Some(false)]);
    assert!(suite.rows().iter().all(|row| row.ratio.is_none()));
}

#[test]
fn a_filtered_case_is_neither_run_nor_listed() {
    let mut suite = suite(Options { filter: Some("get vs".into()), ..Options::default() });
    suite.reported("put", "x").compare("peer", || unreachable!(), || unreachable!());
    suite.reported("put", "x").measure(|| unreachable!());
    suite.reported("put", "x").skip("peer", "not here");
    suite.reported("get", "x").compare("peer", || 1.0, || 1.0);
    let cases: Vec<&str> = suite.rows().iter().map(|row| row.case.as_str()).collect();
    assert_eq!(cases, ["get vs peer"]);
}

#[test]
fn a_skipped_case_is_listed_with_its_reason_and_no_verdict() {
    let mut suite = suite(Options::default());
    suite.reported("hits", "req/s").at_least(1.0).skip("nginx", "nginx is not installed");
    let row = &suite.rows()[0];
    assert_eq!(row.skipped.as_deref(), Some("nginx is not installed"));
    assert_eq!((row.ours, row.holds), (None, None));
}

#[test]
fn rounds_of_the_command_line_go_before_those_of_a_case() {
    let count = Cell::new(0);
    let mut suite = suite(Options { rounds: Some(9), ..Options::default() });
    suite.reported("case", "x").rounds(99).measure(|| {
        count.set(count.get() + 1);
        1.0
    });
    assert_eq!(count.get(), 1 + 9);
}

#[test]
fn fewer_rounds_than_the_bound_needs_are_refused() {
    assert!(Options::try_parse_from(["suite", "--rounds", "8"]).is_err());
    assert!(Options::try_parse_from(["suite", "--rounds", "9"]).is_ok());
}

#[test]
#[should_panic(expected = "case vs peer: a reading of NaN cannot be compared")]
fn a_reading_that_is_no_number_stops_the_case() {
    let mut suite = suite(Options::default());
    suite.reported("case", "x").compare("peer", || f64::NAN, || 1.0);
}
