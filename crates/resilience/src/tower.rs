//! A policy around a tower service.
//!
//! There is one layer, [`PolicyLayer`], and every part is a policy of its own: a breaker's layer is
//! `PolicyLayer::new(breaker)`, a bulkhead's `PolicyLayer::new(bulkhead)`. Layers that are stacked
//! share nothing; parts that should know each other belong into one [`Policy`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::{Outcome, Policy, PolicyError, Repeat};

/// Says what a service's answer means.
type Judge<R, E> = Arc<dyn Fn(Result<&R, &E>) -> Outcome + Send + Sync>;

/// Which requests may be repeated, and how another one of the same kind is made.
type Repeats<Q> = (Arc<dyn Fn(&Q) -> bool + Send + Sync>, fn(&Q) -> Q);

/// Puts a [`Policy`] around services that take `Q` and answer with `R` or fail with `E`.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience::{CircuitBreaker, PolicyLayer};
/// use std::convert::Infallible;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let breaker = CircuitBreaker::builder("double").build()?;
/// let service = ServiceBuilder::new()
///     .layer(PolicyLayer::new(breaker).repeat_if(|_: &u32| true))
///     .service(service_fn(|number: u32| async move { Ok::<_, Infallible>(number * 2) }));
/// assert_eq!(service.oneshot(21).await?, 42);
/// # Ok(())
/// # }
/// ```
pub struct PolicyLayer<Q, R, E> {
    policy: Policy,
    judge: Judge<R, E>,
    repeats: Option<Repeats<Q>>,
}

impl<Q, R, E> PolicyLayer<Q, R, E> {
    /// Makes a layer of a policy or of one of its parts.
    ///
    /// `Ok` is a success, `Err` a failure, and no request is repeated, unless told otherwise.
    pub fn new(policy: impl Into<Policy>) -> Self {
        Self {
            policy: policy.into(),
            judge: Arc::new(|result| Outcome::of_result(&result)),
            repeats: None,
        }
    }

    /// Sets what says what an answer means.
    pub fn judge(
        mut self,
        judge: impl Fn(Result<&R, &E>) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        self.judge = Arc::new(judge);
        self
    }

    /// Sets which requests may be made more than once, by retries or hedges.
    pub fn repeat_if(mut self, may: impl Fn(&Q) -> bool + Send + Sync + 'static) -> Self
    where
        Q: Clone,
    {
        self.repeats = Some((Arc::new(may), Q::clone));
        self
    }
}

impl<Q, R, E> Clone for PolicyLayer<Q, R, E> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
            judge: Arc::clone(&self.judge),
            repeats: self.repeats.clone(),
        }
    }
}

impl<Q, R, E> fmt::Debug for PolicyLayer<Q, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyLayer").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<S, Q, R, E> Layer<S> for PolicyLayer<Q, R, E> {
    type Service = PolicyService<S, Q, R, E>;

    fn layer(&self, inner: S) -> Self::Service {
        PolicyService { inner, layer: self.clone() }
    }
}

/// A service behind a policy; made by [`PolicyLayer`].
///
/// It is always ready: each attempt waits by itself, inside the policy and its time limits, until the
/// inner service is. So a full inner service is no reason to block callers that the policy would turn
/// away, and clones are as good as the original.
pub struct PolicyService<S, Q, R, E> {
    inner: S,
    layer: PolicyLayer<Q, R, E>,
}

impl<S: Clone, Q, R, E> Clone for PolicyService<S, Q, R, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, Q, R, E> fmt::Debug for PolicyService<S, Q, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, Q, R, E> Service<Q> for PolicyService<S, Q, R, E>
where
    S: Service<Q, Response = R, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    Q: Send + 'static,
    R: Send + 'static,
    E: Send + 'static,
{
    type Response = R;
    type Error = PolicyError<E>;
    type Future = Pin<Box<dyn Future<Output = Result<R, PolicyError<E>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let Self { inner, layer } = self.clone();
        Box::pin(async move {
            let copy = layer.repeats.as_ref().filter(|it| (it.0)(&request)).map(|it| it.1);
            let repeat = if copy.is_some() { Repeat::Idempotent } else { Repeat::Never };
            // A lock for the compiler, which cannot know that one thread polls at a time.
            let source = Mutex::new((inner, Some(request)));
            let attempt = || {
                let (inner, request) = &mut *source.lock().unwrap_or_else(PoisonError::into_inner);
                let mut service = inner.clone();
                let request = match (copy, &request) {
                    (Some(copy), Some(request)) => Some(copy(request)),
                    _ => request.take(),
                };
                async move {
                    poll_fn(|context| service.poll_ready(context)).await?;
                    let request = request.expect("what may not be repeated is made once");
                    service.call(request).await
                }
            };
            layer.policy.call_judged(repeat, attempt, |result| (layer.judge)(result)).await
        })
    }
}
