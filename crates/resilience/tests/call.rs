//! Calls through the breaker as a program makes them: async, with the real clock.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::{pending, ready};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use resilience::{CallError, CircuitBreaker, CircuitBreakerBuilder, Outcome, State};

#[derive(Debug, PartialEq)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection refused")
    }
}

impl Error for Refused {}

fn build(settings: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder) -> CircuitBreaker {
    settings(CircuitBreaker::builder("test").consecutive_failures(1))
        .build()
        .expect("the test's settings are valid")
}

/// Opens the breaker by one failing call.
async fn fail(breaker: &CircuitBreaker) {
    let failed = breaker.call(|| ready(Err::<(), _>(Refused))).await;
    assert!(matches!(failed, Err(CallError::Failed(Refused))), "{failed:?}");
}

#[tokio::test]
async fn an_open_breaker_builds_no_future() {
    let breaker = build(|b| b);
    fail(&breaker).await;
    let built = Cell::new(false);
    let refused = breaker
        .call(|| {
            built.set(true);
            ready(Ok::<_, Refused>(()))
        })
        .await;
    assert!(matches!(refused, Err(CallError::Open(open)) if !open.retry_after.is_zero()));
    assert!(!built.get());
}

#[tokio::test]
async fn it_closes_by_itself_when_the_dependency_is_back() {
    let time = Duration::from_millis(20);
    let breaker = build(|b| b.open_time(time, time));
    fail(&breaker).await;
    let value = loop {
        match breaker.call(|| ready(Ok::<_, Refused>(7))).await {
            Ok(value) => break value,
            Err(CallError::Open(open)) => tokio::time::sleep(open.retry_after).await,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!((value, breaker.state()), (7, State::Closed));
}

#[tokio::test]
async fn a_dropped_call_counts_neither_way_and_gives_its_place_back() {
    let time = Duration::from_millis(1);
    let breaker = build(|b| b.open_time(time, time));
    let hang = || breaker.call(pending::<Result<(), Refused>>);
    let budget = Duration::from_millis(5);
    assert!(tokio::time::timeout(budget, hang()).await.is_err());
    assert_eq!((breaker.state(), breaker.stats().calls), (State::Closed, 0));

    fail(&breaker).await;
    while breaker.state() == State::Open {
        tokio::time::sleep(time).await;
    }
    assert!(tokio::time::timeout(budget, hang()).await.is_err());
    assert_eq!((breaker.state(), breaker.stats().probes_in_flight), (State::HalfOpen, 0));
}

#[tokio::test]
async fn a_call_that_panics_gives_its_place_back() {
    let time = Duration::from_millis(1);
    let breaker = build(|b| b.open_time(time, time));
    fail(&breaker).await;
    while breaker.state() == State::Open {
        tokio::time::sleep(time).await;
    }
    let call = breaker.call(|| async {
        if breaker.name() == "test" {
            panic!("a bug in the call");
        }
        Ok::<_, Refused>(())
    });
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| poll_once(call)));
    assert!(panicked.is_err());
    assert_eq!(breaker.stats().probes_in_flight, 0);
}

/// Polls a future once, in place.
fn poll_once<F: Future>(future: F) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = std::pin::pin!(future).poll(&mut context);
}

#[tokio::test]
async fn the_judge_says_what_a_result_means() {
    let cases: [(Result<u16, Refused>, Outcome, State); 5] = [
        (Ok(200), Outcome::Success, State::Closed),
        (Ok(500), Outcome::Failure, State::Open),
        (Ok(503), Outcome::Overload { retry_after: None }, State::Open),
        (Ok(404), Outcome::Ignored, State::Closed),
        (Err(Refused), Outcome::Ignored, State::Closed),
    ];
    for (result, outcome, state) in cases {
        let breaker = build(|b| b);
        let failed = result.is_err();
        let answer = breaker.call_judged(|| ready(result), |_| outcome).await;
        assert_eq!((answer.is_err(), breaker.state()), (failed, state), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_failed_call_carries_its_cause() {
    let breaker = build(|b| b);
    let error = breaker.call(|| ready(Err::<(), _>(Refused))).await.expect_err("it fails");
    assert_eq!(error.to_string(), "call failed");
    let cause = error.source().expect("the cause is the call's error");
    assert_eq!(cause.downcast_ref(), Some(&Refused));
    let error = breaker.call(|| ready(Err::<(), _>(Refused))).await.expect_err("it is open");
    assert!(error.to_string().starts_with("circuit breaker is open, retry in "), "{error}");
}

#[test]
fn handles_permits_and_calls_can_be_sent() {
    fn check<T: Send>(_: &T) {}
    let breaker = build(|b| b);
    check(&breaker);
    check(&breaker.try_acquire().expect("closed"));
    check(&breaker.call(|| ready(Ok::<_, Refused>(()))));
}
