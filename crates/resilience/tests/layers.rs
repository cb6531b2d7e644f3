//! A policy around tower services.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use resilience::{
    Bulkhead, CircuitBreaker, Outcome, Policy, PolicyError, PolicyLayer, RetryPolicy, Timeout,
};
use tower::{Layer, Service, ServiceExt, service_fn};

/// Fails for odd calls, and wants to be asked whether it is ready before each.
#[derive(Default)]
struct Odd {
    made: Arc<AtomicU32>,
    ready: bool,
}

impl Clone for Odd {
    fn clone(&self) -> Self {
        Self { made: Arc::clone(&self.made), ready: false }
    }
}

impl Service<&'static str> for Odd {
    type Response = u32;
    type Error = &'static str;
    type Future = Ready<Result<u32, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called before it was ready");
        let nth = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        ready(if nth % 2 == 1 { Err("odd") } else { Ok(nth) })
    }
}

fn retry() -> RetryPolicy {
    RetryPolicy::builder("test").build().expect("valid")
}

#[tokio::test(start_paused = true)]
async fn only_requests_that_may_be_repeated_are() {
    let odd = Odd::default();
    let layer = PolicyLayer::new(retry()).repeat_if(|request| *request == "get");
    let service = layer.layer(odd.clone());
    assert_eq!(service.clone().oneshot("get").await, Ok(2));
    assert_eq!(service.clone().oneshot("post").await, Err(PolicyError::Failed("odd")));
    assert_eq!(odd.made.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn without_being_told_nothing_is_repeated() {
    let odd = Odd::default();
    let service = PolicyLayer::new(retry()).layer(odd.clone());
    assert_eq!(service.oneshot("get").await, Err(PolicyError::Failed("odd")));
}

#[tokio::test]
async fn clones_of_a_service_share_the_breaker() {
    let builder = CircuitBreaker::builder("test").consecutive_failures(2);
    let breaker = builder.build().expect("valid");
    let inner = service_fn(|status: u16| ready(Ok::<_, Infallible>(status)));
    let service = PolicyLayer::new(breaker)
        .judge(|status: Result<&u16, &Infallible>| {
            status.map_or(Outcome::Failure, |status| Outcome::of_status(*status, None))
        })
        .layer(inner);
    for status in [500, 404, 502] {
        assert_eq!(service.clone().oneshot(status).await, Ok(status));
    }
    assert!(matches!(service.oneshot(200).await, Err(PolicyError::Open(_))));
}

#[tokio::test(start_paused = true)]
async fn each_part_is_a_layer() {
    let slow = service_fn(|()| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, ()>(())
    });
    let timeout = PolicyLayer::new(Timeout::new(Duration::from_millis(10))).layer(slow);
    assert!(matches!(timeout.oneshot(()).await, Err(PolicyError::TimedOut(_))));

    let bulkhead = Bulkhead::builder("test").calls_max(1).queue_max(0).build().expect("valid");
    let full = PolicyLayer::new(bulkhead).layer(slow);
    let (first, second) = tokio::join!(full.clone().oneshot(()), full.clone().oneshot(()));
    assert_eq!(first, Ok(()));
    assert!(matches!(second, Err(PolicyError::BulkheadFull(_))));
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_is_never_ready_runs_into_the_time_limit() {
    #[derive(Clone)]
    struct Never;

    impl Service<()> for Never {
        type Response = ();
        type Error = ();
        type Future = Ready<Result<(), ()>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
            Poll::Pending
        }

        fn call(&mut self, (): ()) -> Self::Future {
            unreachable!("it is never ready")
        }
    }

    let policy = Policy::builder().attempt_timeout(Duration::from_millis(10)).build();
    let service = PolicyLayer::new(policy).layer(Never);
    assert!(matches!(service.oneshot(()).await, Err(PolicyError::TimedOut(_))));
}
