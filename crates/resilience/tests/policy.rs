//! The parts that wait, and the policy that stacks them, by a clock that stands still until all wait.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::time::Duration;

use resilience::{
    AdaptiveLimit, Bulkhead, BulkheadFull, CircuitBreaker, Deadline, Hedge, LimitAlgorithm,
    Outcome, Policy, PolicyError, Repeat, RetryBudget, RetryPolicy, State, TimedOut, Timeout,
};
use tokio::time::{Instant, sleep};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn plenty() -> RetryBudget {
    RetryBudget::builder("plenty").per_second(1_000.0).build().expect("valid")
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("test").consecutive_failures(2).build().expect("valid")
}

fn retry(attempts: u32) -> RetryPolicy {
    let builder = RetryPolicy::builder("test").attempts(attempts).budget(plenty());
    builder.backoff(ms(10), ms(40)).build().expect("valid")
}

/// A hedge that knows that calls take 10 ms.
fn hedge(budget: RetryBudget) -> Hedge {
    let builder = Hedge::builder("test").minimum_calls(1).budget(budget);
    let hedge = builder.build().expect("valid");
    hedge.record_at(ms(10), std::time::Instant::now());
    hedge
}

/// Fails so many times, then succeeds, and counts.
struct Flaky {
    failures: Cell<u32>,
    made: Cell<u32>,
}

impl Flaky {
    fn new(failures: u32) -> Self {
        Self { failures: Cell::new(failures), made: Cell::new(0) }
    }

    async fn call(&self) -> Result<u32, &'static str> {
        self.made.set(self.made.get() + 1);
        if self.failures.get() > 0 {
            self.failures.set(self.failures.get() - 1);
            return Err("flaky");
        }
        Ok(self.made.get())
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_reaches_what_is_inside() {
    let start = Instant::now();
    let outer = Timeout::new(ms(100));
    let inner = Timeout::new(ms(500));
    let ended = outer
        .call(|| async {
            sleep(ms(30)).await;
            let left = Deadline::current().expect("inside").remaining_at(Instant::now().into_std());
            assert_eq!(left, ms(70));
            inner.call(pending::<()>).await
        })
        .await;
    let timed_out: TimedOut = match ended {
        Ok(Err(inner)) => inner,
        Err(outer) => outer,
        Ok(Ok(())) => unreachable!("it is pending for ever"),
    };
    assert_eq!(start.elapsed(), ms(100));
    assert!(timed_out.after <= ms(100));
    assert!(Deadline::current().is_none(), "outside");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_with_nothing_left_makes_no_call() {
    let made = Cell::new(false);
    let over = Deadline::at(Instant::now().into_std());
    let ended = over
        .scope(Timeout::new(ms(100)).call(|| async { made.set(true) }))
        .await
        .expect_err("nothing was left");
    assert!(ended.by_outer && !made.get());
    let own = Timeout::new(ms(5)).call(pending::<()>).await.expect_err("too slow");
    assert_eq!((own.after, own.by_outer), (ms(5), false));
    assert_eq!(own.to_string(), "timed out after 5ms by its limit");
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_bounds_calls_queue_and_wait() {
    let builder = Bulkhead::builder("test").calls_max(1).queue_max(1).wait_max(ms(50));
    let bulkhead = builder.build().expect("valid");
    let place = bulkhead.acquire().await.expect("free");
    let (first, second) = tokio::join!(bulkhead.acquire(), bulkhead.acquire());
    let (waited, full) = (first.expect_err("the wait is over"), second.expect_err("no queue left"));
    assert_eq!((waited.waited, full.waited), (true, false));
    assert_eq!(waited.to_string(), "all 1 places are taken and none came free in time");

    let (next, ()) = tokio::join!(bulkhead.acquire(), async {
        sleep(ms(10)).await;
        assert_eq!((bulkhead.stats().in_flight, bulkhead.stats().waiting), (1, 1));
        drop(place);
    });
    drop(next.expect("came free"));
    let stats = bulkhead.stats();
    assert_eq!((stats.in_flight, stats.waiting, stats.rejected), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_the_queue_ends_with_the_deadline_and_when_dropped() {
    let bulkhead = Bulkhead::builder("test").calls_max(1).build().expect("valid");
    let _place = bulkhead.try_acquire().expect("free");
    let start = Instant::now();
    let deadline = Deadline::after(ms(7), start.into_std());
    let full: BulkheadFull = deadline.scope(bulkhead.acquire()).await.expect_err("no time");
    assert!(full.waited);
    assert_eq!(start.elapsed(), ms(7));
    assert!(tokio::time::timeout(ms(5), bulkhead.acquire()).await.is_err());
    assert_eq!(bulkhead.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_repeats_until_it_succeeds_or_may_not() {
    for (failures, attempts, expected, made) in
        [(0, 3, Ok(1), 1), (2, 3, Ok(3), 3), (3, 3, Err("flaky"), 3), (9, 1, Err("flaky"), 1)]
    {
        let flaky = Flaky::new(failures);
        let result = retry(attempts).call(|| flaky.call(), |it| Outcome::of_result(&it)).await;
        assert_eq!((result, flaky.made.get()), (expected, made), "{failures} of {attempts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_made_after_the_usual_time_and_the_first_answer_wins() {
    let hedge = hedge(plenty());
    // The first call hangs; the second answers after 5 ms.
    let made = Cell::new(0);
    let start = Instant::now();
    let answer = hedge
        .call(
            || {
                made.set(made.get() + 1);
                let nth = made.get();
                async move {
                    sleep(if nth == 1 { ms(10_000) } else { ms(5) }).await;
                    nth
                }
            },
            |_| true,
        )
        .await;
    assert_eq!((answer, made.get()), (2, 2));
    assert!(start.elapsed() >= ms(15) && start.elapsed() <= ms(18), "{:?}", start.elapsed());
    assert_eq!((hedge.stats().hedged, hedge.stats().won), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_fast_call_is_not_hedged_and_a_failed_one_waits_for_the_other() {
    let made = Cell::new(0);
    let call = async |delays: [u64; 2], results: [Result<u8, u8>; 2]| {
        made.set(0);
        let made = &made;
        let make = move || {
            let nth = made.replace(made.get() + 1);
            async move {
                sleep(ms(delays[nth])).await;
                results[nth]
            }
        };
        hedge(plenty()).call(make, Result::is_ok).await
    };
    assert_eq!(call([5, 0], [Err(1), Ok(2)]).await, Err(1), "it failed before a hedge was due");
    assert_eq!(made.get(), 1);
    assert_eq!(call([20, 30], [Err(1), Ok(2)]).await, Ok(2));
    assert_eq!(call([60, 5], [Ok(1), Err(2)]).await, Ok(1));
    assert_eq!(call([20, 30], [Err(1), Err(2)]).await, Err(2));
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nothing_is_hedged() {
    let broke = RetryBudget::builder("broke").share(0.0).per_second(0.0).build().expect("valid");
    let hedge = hedge(broke);
    let made = Cell::new(0);
    hedge
        .call(
            || {
                made.set(made.get() + 1);
                sleep(ms(50))
            },
            |()| true,
        )
        .await;
    assert_eq!((made.get(), hedge.stats().hedged), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_policy_without_parts_is_the_call() {
    let policy = Policy::default();
    assert_eq!(policy.call(Repeat::Never, || async { Ok::<_, ()>(7) }).await, Ok(7));
    let failed = policy.call(Repeat::Idempotent, || async { Err::<(), _>(7) }).await;
    assert_eq!(failed, Err(PolicyError::Failed(7)));
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_repeated_is() {
    let policy = Policy::from(retry(3));
    for (repeat, expected) in [(Repeat::Never, 1), (Repeat::Idempotent, 3)] {
        let flaky = Flaky::new(9);
        let result = policy.call(repeat, || flaky.call()).await;
        assert_eq!((result, flaky.made.get()), (Err(PolicyError::Failed("flaky")), expected));
    }
}

#[tokio::test(start_paused = true)]
async fn retries_stop_when_the_breaker_opens() {
    let breaker = breaker();
    let policy = Policy::builder().retry(retry(5)).breaker(breaker.clone()).build();
    let flaky = Flaky::new(9);
    let result = policy.call(Repeat::Idempotent, || flaky.call()).await;
    assert!(matches!(result, Err(PolicyError::Open(_))), "{result:?}");
    assert!(result.expect_err("open").retry_after() > Some(ms(1)));
    assert_eq!((flaky.made.get(), breaker.state()), (2, State::Open));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_a_failure_and_retried() {
    let breaker = breaker();
    let builder = Policy::builder().retry(retry(2)).breaker(breaker.clone());
    let policy = builder.attempt_timeout(ms(100)).build();
    let start = Instant::now();
    let result = policy.call(Repeat::Idempotent, pending::<Result<(), ()>>).await;
    assert!(matches!(result, Err(PolicyError::TimedOut(it)) if !it.by_outer), "{result:?}");
    assert!(start.elapsed() >= ms(200) && start.elapsed() <= ms(215));
    assert_eq!((breaker.stats().opened, breaker.stats().calls), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_whole_bounds_attempts_and_waits() {
    let builder = Policy::builder().timeout(ms(250)).retry(retry(100));
    let policy = builder.attempt_timeout(ms(100)).build();
    let start = Instant::now();
    let made = Cell::new(0);
    let result = policy
        .call(Repeat::Idempotent, || {
            made.set(made.get() + 1);
            pending::<Result<(), ()>>()
        })
        .await;
    assert!(matches!(result, Err(PolicyError::TimedOut(_))), "{result:?}");
    assert!(start.elapsed() <= ms(252) && made.get() <= 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_adaptive_limit_says_nothing_about_the_dependency() {
    let limit = AdaptiveLimit::builder("test").limits(1, 1).initial(1).build().expect("valid");
    let breaker = breaker();
    let parts = Policy::builder().retry(retry(3)).breaker(breaker.clone());
    let policy = parts.adaptive_limit(limit.clone()).build();
    let held = limit.try_acquire().expect("free");
    let flaky = Flaky::new(0);
    let result = policy.call(Repeat::Idempotent, || flaky.call()).await;
    assert!(matches!(result, Err(PolicyError::LimitReached(it)) if it.limit == 1), "{result:?}");
    assert_eq!((flaky.made.get(), breaker.stats().calls), (0, 0));
    drop(held);
    assert_eq!(policy.call(Repeat::Idempotent, || flaky.call()).await, Ok(1));
    assert_eq!((breaker.stats().calls, limit.stats().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_attempt_lowers_the_adaptive_limit() {
    let aimd = LimitAlgorithm::Aimd { latency: ms(10) };
    let builder = AdaptiveLimit::builder("test").algorithm(aimd).initial(100).round(ms(0), 1);
    let limit = builder.build().expect("valid");
    let policy = Policy::builder().adaptive_limit(limit.clone()).attempt_timeout(ms(50)).build();
    let result = policy.call(Repeat::Never, pending::<Result<(), ()>>).await;
    assert!(matches!(result, Err(PolicyError::TimedOut(_))));
    assert_eq!(limit.stats().limit, 90);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_and_its_hedge_are_one_call_for_the_breaker() {
    let breaker = breaker();
    let budget = plenty();
    let parts = Policy::builder().breaker(breaker.clone()).hedge(hedge(budget.clone()));
    let policy = parts.build();
    let made = Cell::new(0);
    let slow = || {
        made.set(made.get() + 1);
        async {
            sleep(ms(50)).await;
            Ok::<_, ()>(())
        }
    };
    policy.call(Repeat::Idempotent, slow).await.expect("it succeeds");
    assert_eq!((made.get(), breaker.stats().calls), (2, 1));
    policy.call(Repeat::Never, slow).await.expect("it succeeds");
    assert_eq!((made.get(), breaker.stats().calls), (3, 2));
    assert_eq!(budget.stats_at(std::time::Instant::now()).calls, 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_everything_back() {
    let limit = AdaptiveLimit::builder("test").build().expect("valid");
    let bulkhead = Bulkhead::builder("test").build().expect("valid");
    let breaker = breaker();
    let parts = Policy::builder().bulkhead(bulkhead.clone()).breaker(breaker.clone());
    let policy = parts.adaptive_limit(limit.clone()).retry(retry(3)).build();
    for _ in 0..1_000 {
        let call = policy.call(Repeat::Idempotent, pending::<Result<(), ()>>);
        assert!(tokio::time::timeout(ms(1), call).await.is_err());
    }
    assert_eq!((limit.stats().in_flight, bulkhead.stats().in_flight), (0, 0));
    assert_eq!((breaker.state(), breaker.stats().calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn the_judge_decides_about_retry_and_breaker() {
    let breaker = breaker();
    let policy = Policy::builder().retry(retry(3)).breaker(breaker.clone()).build();
    let made = RefCell::new(vec![404_u16, 200, 503, 200]);
    let ask = || async { Ok::<_, ()>(made.borrow_mut().remove(0)) };
    let judge = |status: Result<&u16, &()>| Outcome::of_status(*status.expect("no error"), None);
    let call = || policy.call_judged(Repeat::Idempotent, ask, judge);
    assert_eq!(call().await, Ok(404));
    assert_eq!(call().await, Ok(200));
    assert_eq!(call().await, Ok(200));
    assert!(made.borrow().is_empty());
    assert_eq!((breaker.stats().calls, breaker.stats().failures), (3, 1));
}

#[cfg(feature = "rate-limit")]
#[tokio::test(start_paused = true)]
async fn what_comes_too_often_is_turned_away_first() {
    let limit = resilience::RateLimit::builder("test").calls(1, ms(1_000)).build().expect("valid");
    let policy = Policy::builder().rate_limit(limit).retry(retry(3)).build();
    let flaky = Flaky::new(1);
    assert_eq!(policy.call(Repeat::Idempotent, || flaky.call()).await, Ok(2));
    let result = policy.call(Repeat::Idempotent, || flaky.call()).await;
    assert!(matches!(result, Err(PolicyError::RateLimited(_))), "{result:?}");
    assert_eq!(flaky.made.get(), 2);
}

#[tokio::test]
async fn calls_through_a_policy_can_be_spawned() {
    let policy = Policy::builder()
        .timeout(ms(1_000))
        .bulkhead(Bulkhead::builder("test").build().expect("valid"))
        .retry(retry(3))
        .breaker(breaker())
        .hedge(hedge(plenty()))
        .adaptive_limit(AdaptiveLimit::builder("test").build().expect("valid"))
        .attempt_timeout(ms(500))
        .build();
    let call = async move { policy.call(Repeat::Idempotent, || async { Ok::<_, ()>(1) }).await };
    assert_eq!(tokio::spawn(call).await.expect("it does not panic"), Ok(1));
}
