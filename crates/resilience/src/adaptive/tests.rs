//! The limit against a simulated server that queues, against the textbook formulas, and at its edges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::thread;

use proptest::prelude::*;

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limit(
    settings: impl FnOnce(AdaptiveLimitBuilder) -> AdaptiveLimitBuilder,
    now: Instant,
) -> AdaptiveLimit {
    let builder = settings(AdaptiveLimit::builder("test"));
    builder.build_at(now).expect("the test's settings are valid")
}

/// A server with `slots` workers that takes 10 ms for a call and queues the rest, and callers that
/// always want one more call. Returns the limits seen in the last half of the time.
fn against_a_server(limit: &AdaptiveLimit, slots: usize, seconds: u64, start: Instant) -> Vec<u32> {
    let end = start + Duration::from_secs(seconds);
    let mut workers: BinaryHeap<Reverse<Instant>> = (0..slots).map(|_| Reverse(start)).collect();
    let mut calls: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut permits: Vec<Option<LimitPermit>> = Vec::new();
    let mut seen = Vec::new();
    let mut now = start;
    while now < end {
        while let Ok(permit) = limit.try_acquire_at(now) {
            let Reverse(free) = workers.pop().expect("there are workers");
            let done = free.max(now) + ms(10);
            workers.push(Reverse(done));
            calls.push(Reverse((done, permits.len())));
            permits.push(Some(permit));
        }
        let Reverse((done, index)) = calls.pop().expect("the limit is at least one");
        now = done;
        permits[index].take().expect("it ends once").complete_at(Outcome::Success, now);
        if now > start + Duration::from_secs(seconds) / 2 {
            seen.push(limit.stats().limit);
        }
    }
    seen
}

#[test]
#[cfg_attr(miri, ignore = "many calls")]
fn aimd_settles_where_the_latency_reaches_its_limit() {
    // 10 workers of 10 ms: with n calls in flight the latency is about n ms, so 20 ms are 20 calls.
    let start = Instant::now();
    let aimd = LimitAlgorithm::Aimd { latency: ms(20) };
    let limit = limit(|b| b.algorithm(aimd).initial(100), start);
    let seen = against_a_server(&limit, 10, 60, start);
    let (least, most) = (seen.iter().min(), seen.iter().max());
    assert!(least >= Some(&15) && most <= Some(&24), "{least:?} to {most:?}");
}

#[test]
#[cfg_attr(miri, ignore = "many calls")]
fn gradient2_does_not_grow_without_bound_and_keeps_the_server_busy() {
    let start = Instant::now();
    let limit = limit(|b| b.limits(1, 1_000).initial(5), start);
    let seen = against_a_server(&limit, 10, 60, start);
    let (least, most) = (seen.iter().min(), seen.iter().max());
    assert!(least >= Some(&10) && most <= Some(&100), "{least:?} to {most:?}");
}

#[test]
#[cfg_attr(miri, ignore = "many calls")]
fn gradient2_gives_way_when_the_server_loses_workers() {
    let start = Instant::now();
    let limit = limit(|b| b.limits(1, 1_000).initial(20), start);
    let before = against_a_server(&limit, 20, 30, start);
    let high = before.last().copied().expect("rounds were made");
    let after = against_a_server(&limit, 2, 10, start + Duration::from_secs(40));
    let low = after.iter().min().copied().expect("rounds were made");
    assert!(low < high / 2, "{high} before, {low} at least after");
}

/// Ends `calls` calls, all in flight at once, `latency` after they began.
fn round(
    limit: &AdaptiveLimit,
    calls: u32,
    latency: Duration,
    outcome: Outcome,
    now: &mut Instant,
) {
    let permits: Vec<_> =
        (0..calls).map(|_| limit.try_acquire_at(*now).expect("below the limit")).collect();
    *now += latency;
    permits.into_iter().for_each(|permit| permit.complete_at(outcome, *now));
    *now += ms(100);
}

#[test]
fn an_overload_takes_a_tenth_in_both_algorithms() {
    for algorithm in [LimitAlgorithm::GRADIENT2, LimitAlgorithm::Aimd { latency: ms(50) }] {
        let mut now = Instant::now();
        let limit = limit(|b| b.algorithm(algorithm).initial(100).round(ms(1), 10), now);
        now += ms(10);
        round(&limit, 1, ms(1), Outcome::Overload { retry_after: None }, &mut now);
        assert_eq!(limit.stats().limit, 90, "{algorithm:?}");
        let permit = limit.try_acquire_at(now).expect("below the limit");
        now += ms(10);
        permit.timed_out_at(now);
        assert_eq!(limit.stats().limit, 81, "{algorithm:?}");
    }
}

#[test]
fn what_is_no_sample_moves_nothing() {
    let mut now = Instant::now();
    let limit = limit(|b| b.initial(20).round(ms(0), 1), now);
    for outcome in [Outcome::Failure, Outcome::Ignored, Outcome::Cancelled] {
        round(&limit, 20, ms(5_000), outcome, &mut now);
    }
    drop(limit.try_acquire_at(now));
    assert_eq!(limit.stats(), AdaptiveLimitStats { limit: 20, in_flight: 0, rejected: 0 });
}

#[test]
fn a_limit_that_is_not_used_does_not_grow() {
    for algorithm in [LimitAlgorithm::GRADIENT2, LimitAlgorithm::Aimd { latency: ms(50) }] {
        let mut now = Instant::now();
        let limit = limit(|b| b.algorithm(algorithm).initial(20).round(ms(1), 1), now);
        (0..50).for_each(|_| round(&limit, 9, ms(10), Outcome::Success, &mut now));
        assert_eq!(limit.stats().limit, 20, "{algorithm:?}");
        (0..50).for_each(|_| round(&limit, 19, ms(10), Outcome::Success, &mut now));
        assert!(limit.stats().limit > 20, "{algorithm:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "many calls")]
fn no_more_calls_are_in_flight_than_the_limit_allows() {
    let now = Instant::now();
    let limit = limit(|b| b.limits(7, 7).initial(7), now);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    if let Ok(permit) = limit.try_acquire_at(now) {
                        assert!(limit.stats().in_flight <= 7);
                        permit.complete_at(Outcome::Success, now);
                    }
                }
            });
        }
    });
    assert_eq!(limit.stats().in_flight, 0);
}

#[test]
fn settings_that_cannot_be_used_are_problems() {
    let error = AdaptiveLimit::builder("")
        .algorithm(LimitAlgorithm::Gradient2 { tolerance: 0.5, queue: 0.0, smoothing: 0.0 })
        .limits(0, 10)
        .initial(11)
        .round(ms(1), 0)
        .build()
        .expect_err("seven settings cannot be used");
    assert_eq!(
        error.to_string(),
        "invalid adaptive limit \"\", 7 problems:\n  \
         name = \"\": must not be empty\n  \
         algorithm.tolerance = 0.5: must be from 1 to 10\n  \
         algorithm.queue = 0.0: must be from 1 to 1000\n  \
         algorithm.smoothing = 0.0: must be above 0 and at most 1\n  \
         limits.least = 0: must be at least 1\n  \
         initial = 11: must be within limits\n  \
         round.calls = 0: must be at least 1"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, ..ProptestConfig::default() })]

    /// Rounds of equal calls, against the formulas as the papers write them.
    #[test]
    fn the_limit_is_that_of_the_formula(
        aimd in any::<bool>(),
        rounds in prop::collection::vec((1_u64..100, 0_u8..10), 1..60),
    ) {
        let mut now = Instant::now();
        let algorithm = if aimd {
            LimitAlgorithm::Aimd { latency: ms(50) }
        } else {
            LimitAlgorithm::GRADIENT2
        };
        let limit = limit(|b| b.algorithm(algorithm).limits(2, 60).initial(20).round(ms(0), 1), now);
        let (mut expected, mut long, mut count) = (20.0_f64, 0.0_f64, 0.0_f64);
        for (millis, kind) in rounds {
            // One call ends each round, and all places are taken when it begins.
            let full: Vec<_> = std::iter::from_fn(|| limit.try_acquire_at(now).ok()).collect();
            prop_assert_eq!(full.len(), expected as usize);
            now += ms(millis);
            let mut full = full.into_iter();
            let last = full.next_back().expect("at least two");
            full.for_each(drop);
            if kind == 0 {
                last.complete_at(Outcome::Overload { retry_after: None }, now);
                expected *= 0.9;
            } else {
                last.complete_at(Outcome::Success, now);
                let rtt = millis as f64 * 1e6;
                count += 1.0;
                long += (rtt - long) * if count <= 10.0 { 1.0 / count } else { 2.0 / 601.0 };
                if long > 2.0 * rtt {
                    long *= 0.95;
                }
                expected = if aimd {
                    if millis > 50 { expected * 0.9 } else { expected + 1.0 }
                } else {
                    let gradient = (1.5 * long / rtt).clamp(0.5, 1.0);
                    expected * 0.8 + (expected * gradient + 4.0) * 0.2
                };
            }
            expected = expected.clamp(2.0, 60.0);
            let difference = f64::from(limit.stats().limit) - expected.floor();
            prop_assert!(difference.abs() <= 1.0, "{} instead of {expected}", limit.stats().limit);
            expected = limit.shared.estimate().limit;
        }
    }
}
