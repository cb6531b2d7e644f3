//! A tower service over the backends of a balancer.
//!
//! [`Balanced`] is `Clone` and always ready: a call takes its lease when it begins, where tower's own
//! balancer needs `&mut self` and so a buffer before it. Services are made when their backend is first
//! picked and let go when it is no longer in the set.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use resilience::Outcome;
use tower::{Service, ServiceExt as _};

use crate::balancer::Balancer;
use crate::pick::{AcquireError, Pick};
use crate::sync::{Mutex, lock};

/// Spreads requests over one service for each backend.
///
/// The lease of a request lasts until the future of its response is done; what streams after that
/// does not count as in flight.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use loadbalancer::{Backend, Balanced, Balancer, Outcome};
/// use tower::{Service, ServiceExt, service_fn};
///
/// let balancer = Balancer::builder().backend(Backend::new("a")).build()?;
/// let mut service = Balanced::new(balancer, |backend: &str| {
///     let backend = backend.to_owned();
///     service_fn(move |request: u32| {
///         let answer = format!("{request} at {backend}");
///         async move { Ok::<_, std::io::Error>(answer) }
///     })
/// });
/// assert_eq!(service.ready().await?.call(7).await?, "7 at a");
/// # Ok(())
/// # }
/// ```
pub struct Balanced<S, R, E> {
    shared: Arc<Shared<S, R, E>>,
}

struct Shared<S, R, E> {
    balancer: Balancer,
    make: Box<dyn Fn(&str) -> S + Send + Sync>,
    judge: Judge<R, E>,
    services: Mutex<HashMap<Arc<str>, S>>,
}

/// Says what a response means for the backend.
type Judge<R, E> = Box<dyn Fn(&Result<R, E>) -> Outcome + Send + Sync>;

impl<S, R, E> Balanced<S, R, E> {
    /// Makes a service whose errors are failures of the backend and whose responses are successes.
    pub fn new(balancer: Balancer, make: impl Fn(&str) -> S + Send + Sync + 'static) -> Self {
        Self::judged(balancer, make, |result| match result {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        })
    }

    /// Makes a service; `judge` says what a response means for the backend.
    pub fn judged(
        balancer: Balancer,
        make: impl Fn(&str) -> S + Send + Sync + 'static,
        judge: impl Fn(&Result<R, E>) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            balancer,
            make: Box::new(make),
            judge: Box::new(judge),
            services: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the balancer beneath.
    pub fn balancer(&self) -> &Balancer {
        &self.shared.balancer
    }
}

impl<S: Clone, R, E> Shared<S, R, E> {
    /// The service of a backend.
    fn service(&self, backend: &Arc<str>) -> S {
        if let Some(service) = lock(&self.services).get(backend) {
            return service.clone();
        }
        // Made outside of the lock: it is the caller's code.
        let made = (self.make)(backend);
        let in_set = self.balancer.ids();
        let mut services = lock(&self.services);
        services.retain(|id, _| in_set.contains(id));
        services.entry(Arc::clone(backend)).or_insert(made).clone()
    }
}

impl<S, R, E> Clone for Balanced<S, R, E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S, R, E> std::fmt::Debug for Balanced<S, R, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balanced").field("balancer", self.balancer()).finish_non_exhaustive()
    }
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BalancedError<E> {
    /// There was no backend for it; it was not sent.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// The backend's service returned an error.
    #[error("the backend's service failed")]
    Service(#[source] E),
}

impl<S, Request, R, E> Service<Request> for Balanced<S, R, E>
where
    S: Service<Request, Response = R, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    Request: Send + 'static,
    R: Send + 'static,
    E: Send + 'static,
{
    type Response = R;
    type Error = BalancedError<E>;
    type Future = Pin<Box<dyn Future<Output = Result<R, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let lease = shared.balancer.acquire(&Pick::new()).await?;
            let result = shared.service(lease.backend()).oneshot(request).await;
            lease.complete((shared.judge)(&result));
            result.map_err(BalancedError::Service)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tower::service_fn;

    use super::*;
    use crate::backend::Backend;
    use crate::policy::Policy;

    #[tokio::test]
    async fn clones_share_leases_and_one_service_for_each_backend() {
        let balancer = Balancer::builder()
            .policy(Policy::RoundRobin)
            .backends(["a", "b"].map(Backend::new))
            .build()
            .expect("a valid set");
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let mut service = Balanced::new(balancer, |id: &str| {
            MADE.fetch_add(1, Ordering::Relaxed);
            let fails = id == "b";
            service_fn(move |count: u32| async move { if fails { Err(count) } else { Ok(count) } })
        });
        let mut clone = service.clone();
        let answers = [
            service.call(7).await,
            clone.call(7).await,
            service.call(7).await,
            clone.call(7).await,
        ];
        let good = answers.iter().filter(|answer| matches!(answer, Ok(7))).count();
        let bad = answers.iter().filter(|it| matches!(it, Err(BalancedError::Service(7)))).count();
        assert_eq!((good, bad), (2, 2));
        assert_eq!(MADE.load(Ordering::Relaxed), 2);
        let backends = service.balancer().backends();
        let counts: Vec<_> =
            backends.iter().map(|it| (it.answered, it.failed, it.in_flight)).collect();
        assert_eq!(counts, [(2, 0, 0), (2, 2, 0)]);
        // A backend that left takes its service along, when the next one is made.
        service.balancer().update(["c"].map(Backend::new)).expect("a valid set");
        assert!(matches!(service.call(4).await, Ok(4)));
        assert_eq!(lock(&service.shared.services).len(), 1);
        service.balancer().remove("c");
        let error = service.call(5).await.expect_err("nobody is there");
        assert!(matches!(error, BalancedError::Acquire(AcquireError::Empty)));
    }

    #[tokio::test]
    async fn a_dropped_call_gives_its_place_back() {
        let set = Backend::new("a").max_in_flight(1);
        let balancer = Balancer::builder().backend(set).build().expect("a valid set");
        let mut service = Balanced::new(balancer, |_: &str| {
            service_fn(|(): ()| std::future::pending::<Result<(), ()>>())
        });
        let call = service.call(());
        let wait = std::time::Duration::from_millis(5);
        assert!(tokio::time::timeout(wait, call).await.is_err());
        assert_eq!(service.balancer().stats().in_flight, 0);
    }
}
