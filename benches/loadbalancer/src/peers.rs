//! The same picks by tower's p2c balancer, with pending requests and with peak EWMA as the load.
//!
//! Its `Balance` needs `&mut self`, so it is driven by one thread and without the buffer that a shared
//! one would need, which is the best case for it. The services answer at once; what is measured is
//! being ready, the call and the end of its handle.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
use loadbalancer::Policy;
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, Load, PeakEwma, PendingRequests};
use ultra_perf_bench::{Clock, Suite};

use crate::picks::{balancer, per_round, picks};

/// A service that answers at once.
#[derive(Clone, Copy, Debug)]
struct AtOnce;

impl Service<()> for AtOnce {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    // tower's peak EWMA reads tokio's clock.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without I/O can be built");
    let _entered = runtime.enter();
    let p2c = Policy::PeakEwma { choices: 2, decay: Duration::from_secs(1) };
    for backends in [10, 100, 1_000] {
        let mut pending =
            drive(backends, || PendingRequests::new(AtOnce, CompleteOnResponse::default()));
        let ours = balancer(Policy::LeastRequest { choices: 2 }, backends);
        let case = format!("least request, pick + release, {backends} backends");
        let row = suite.time(&case, Clock::Cpu, per_round());
        row.compare("tower p2c pending", || picks(&ours), &mut pending);

        let mut ewma = drive(backends, || {
            let (first, decay) = (Duration::from_millis(1), 1e9);
            PeakEwma::new(AtOnce, first, decay, CompleteOnResponse::default())
        });
        for (name, policy, target) in
            [("p2c peak EWMA", p2c, None), ("choose-5 peak EWMA", Policy::default(), Some(0.4))]
        {
            let ours = balancer(policy, backends);
            let case = format!("{name}, pick + release, {backends} backends");
            let row = suite.time(&case, Clock::Cpu, per_round());
            let row = match target {
                Some(bound) => row.at_most(bound),
                None => row,
            };
            row.compare("tower p2c peak EWMA", || picks(&ours), &mut ewma);
        }
    }
}

/// A balancer of tower's over `backends` services, and the work of a round.
fn drive<S>(backends: usize, make: impl Fn() -> S) -> impl FnMut()
where
    S: Service<(), Response = (), Error = Infallible> + Load,
    S::Metric: std::fmt::Debug,
{
    let services: Vec<S> = (0..backends).map(|_| make()).collect();
    let mut balance = Balance::new(ServiceList::new::<()>(services));
    move || {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..per_round() {
            let readiness = black_box(&mut balance).poll_ready(&mut context);
            assert!(readiness.is_ready(), "a service that answers at once is ready");
            let answer = balance.call(()).now_or_never();
            assert!(answer.is_some_and(|answer| answer.is_ok()));
        }
    }
}
