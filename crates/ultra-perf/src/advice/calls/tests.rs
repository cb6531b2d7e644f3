//! Each rule at its threshold and below, with its numbers.

use super::*;

#[track_caller]
fn check(finding: Option<Finding>, title: Option<&str>) {
    assert_eq!(finding.as_ref().map(|found| found.title.as_str()), title);
    assert!(finding.is_none_or(|found| found.action.is_none() && !found.why.is_empty()));
}

#[test]
fn a_breaker_that_opens_five_times_flaps() {
    let title = "Circuit breaker `db` opened 6 times, once in 100 s";
    check(flapping("db", 6.0, 600.0), Some(title));
    check(flapping("db", 4.0, 600.0), None);
}

#[test]
fn a_budget_that_refuses_a_tenth_is_told() {
    let title = "The budget of retries refused 200 of 1000 (20 %)";
    check(retry_budget(800.0, 200.0), Some(title));
    check(retry_budget(900.0, 100.0), None);
    check(retry_budget(9.0, 90.0), None);
}

#[test]
fn hedges_that_hardly_ever_win_are_told() {
    check(hedge_waste(1_000.0, 50.0), Some("50 of 1000 hedges were the answer (5.0 %)"));
    check(hedge_waste(1_000.0, 100.0), None);
    check(hedge_waste(99.0, 0.0), None);
}
