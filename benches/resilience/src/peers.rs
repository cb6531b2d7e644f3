//! Other breakers under the same loads, in their default configuration where they have one.
//!
//! A peer's clock cannot be turned, so the failing calls until it opens come without a pause between
//! them; a peer whose window is made of time gets a window of one second, which the successes fill and
//! leave.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use failsafe::CircuitBreaker as _;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_circuitbreaker::{CircuitBreakerLayer, SlidingWindowType};
use ultra_perf_bench::{Clock, Suite};

use crate::{CALLS, calls};

/// Rounds of a service that is slower by orders of magnitude make fewer calls.
const SERVICE_CALLS: u64 = 20_000;
const TIMED_CALLS: u64 = 1_000;
/// After so many failing calls a breaker is taken for one that does not open.
const GIVE_UP: u32 = 50_000;

pub(crate) fn rows(suite: &mut Suite, ours: &resilience::CircuitBreaker) {
    let recloser = recloser::Recloser::custom().build();
    suite.time("closed call", Clock::Cpu, CALLS).compare(
        "recloser",
        || calls(ours),
        || {
            for _ in 0..CALLS {
                black_box(&recloser).call(|| Ok::<_, ()>(())).expect("closed");
            }
        },
    );

    let failsafe = failsafe::Config::new().build();
    suite.time("closed call", Clock::Cpu, CALLS).compare(
        "failsafe",
        || calls(ours),
        || {
            for _ in 0..CALLS {
                black_box(&failsafe).call(|| Ok::<_, ()>(())).expect("closed");
            }
        },
    );

    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let inner = service_fn(|failed: bool| async move { if failed { Err(()) } else { Ok(()) } });
    for (name, window, count) in [
        ("tower-resilience, by count", SlidingWindowType::CountBased, SERVICE_CALLS),
        ("tower-resilience, 10 s", SlidingWindowType::TimeBased, TIMED_CALLS),
    ] {
        let layer = CircuitBreakerLayer::builder()
            .sliding_window_type(window)
            .sliding_window_duration(Duration::from_secs(10))
            .build();
        let mut service = layer.expect("a valid configuration").layer(inner);
        suite.time("closed call", Clock::Cpu, count).compare(
            name,
            || {
                for _ in 0..count {
                    let permit = black_box(ours).try_acquire().expect("closed");
                    permit.complete(resilience::Outcome::Success);
                }
            },
            || {
                runtime.block_on(async {
                    for _ in 0..count {
                        let service = service.ready().await.expect("ready");
                        service.call(false).await.expect("closed");
                    }
                });
            },
        );
    }

    let case = "failing calls until open, after 10,000";
    let ours = resilience::CircuitBreaker::builder("bench").consecutive_failures(0);
    let ours = ours.window(Duration::from_secs(1)).build().expect("a valid configuration");
    let opened = until_open(|failed| match ours.try_acquire() {
        Ok(permit) => {
            let outcome =
                if failed { resilience::Outcome::Failure } else { resilience::Outcome::Success };
            permit.complete(outcome);
            false
        }
        Err(_) => true,
    });
    suite.reported(&format!("{case}: ours, by rate"), "calls").observed(opened);

    let recloser = recloser::Recloser::custom().build();
    let opened = until_open(|failed| {
        let call = || if failed { Err(()) } else { Ok(()) };
        matches!(recloser.call(call), Err(recloser::Error::Rejected))
    });
    suite.reported(&format!("{case}: recloser"), "calls").observed(opened);

    let failsafe = failsafe::Config::new()
        .failure_policy(failsafe::failure_policy::success_rate_over_time_window(
            0.5,
            10,
            Duration::from_secs(1),
            failsafe::backoff::constant(Duration::from_secs(60)),
        ))
        .build();
    let opened = until_open(|failed| {
        let call = || if failed { Err(()) } else { Ok(()) };
        matches!(failsafe.call(call), Err(failsafe::Error::Rejected))
    });
    suite.reported(&format!("{case}: failsafe, by rate"), "calls").observed(opened);

    let layer = CircuitBreakerLayer::builder().wait_duration_in_open(Duration::from_secs(60));
    let mut service = layer.build().expect("a valid configuration").layer(inner);
    let opened = until_open(|failed| {
        let result = runtime.block_on(async { service.ready().await?.call(failed).await });
        matches!(result, Err(error) if error.is_circuit_open())
    });
    suite.reported(&format!("{case}: tower-resilience, by count"), "calls").observed(opened);
}

/// Counts the failing calls that are let through after 10,000 good ones and a pause of a second and a
/// half.
fn until_open(mut rejected: impl FnMut(bool) -> bool) -> f64 {
    for _ in 0..10_000 {
        assert!(!rejected(false), "successes do not open a breaker");
    }
    thread::sleep(Duration::from_millis(1_500));
    f64::from((0..GIVE_UP).find(|_| rejected(true)).unwrap_or(GIVE_UP))
}
