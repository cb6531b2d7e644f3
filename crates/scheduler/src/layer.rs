//! A tower layer: the calls of a service run through the lane `Io`, with a level taken from the request.
//!
//! What a server accepts it otherwise polls at once and all together. Through the lane, at most as many
//! calls run as it has slots, the important ones start first, and what the lane has no room for is refused
//! before the service has done anything. The service itself must be ready (`poll_ready`) before a call is
//! queued, so a limit inside of it bounds the queue as well: put this layer outside of such limits.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower::{Layer, Service};

use crate::{Priority, Refusal, Scheduler, TaskError, TaskHandle};

/// Runs the calls of a service through the lane `Io` of a scheduler.
///
/// `priority` says how important a request is; a plain [`Priority`] is one for all.
///
/// # Examples
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use scheduler::{Priority, Scheduler, SchedulerLayer};
/// use tower::{ServiceBuilder, ServiceExt as _, service_fn};
///
/// let scheduler = Scheduler::builder().build()?;
/// let level = |request: &&str| match *request {
///     "/health" => Priority::Critical,
///     _ => Priority::Normal,
/// };
/// let service = ServiceBuilder::new()
///     .layer(SchedulerLayer::new(&scheduler, "request", level))
///     .service(service_fn(|path: &'static str| async move { Ok::<_, std::io::Error>(path.len()) }));
/// assert_eq!(service.oneshot("/health").await?, 7);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SchedulerLayer<P> {
    scheduler: Scheduler,
    name: &'static str,
    priority: P,
}

impl<P> SchedulerLayer<P> {
    /// Makes a layer; `name` is the type of its tasks in the statistics.
    pub fn new(scheduler: &Scheduler, name: &'static str, priority: P) -> Self {
        Self { scheduler: scheduler.clone(), name, priority }
    }
}

impl<S, P: Clone> Layer<S> for SchedulerLayer<P> {
    type Service = Scheduled<S, P>;

    fn layer(&self, service: S) -> Self::Service {
        Scheduled { service, layer: self.clone() }
    }
}

/// A service whose calls run through a scheduler; [`SchedulerLayer`] makes it.
#[derive(Clone)]
pub struct Scheduled<S, P> {
    service: S,
    layer: SchedulerLayer<P>,
}

/// Says how important a request is; functions over requests do, and a [`Priority`] by itself.
pub trait RequestPriority<R> {
    /// Returns the level of a request.
    fn of(&self, request: &R) -> Priority;
}

impl<R> RequestPriority<R> for Priority {
    fn of(&self, _: &R) -> Priority {
        *self
    }
}

impl<R, F: Fn(&R) -> Priority> RequestPriority<R> for F {
    fn of(&self, request: &R) -> Priority {
        self(request)
    }
}

/// Why a call through a scheduler gave no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduledError<E> {
    /// The lane had no room; the service was not called.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The call was taken and then given up, or panicked.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The service failed.
    #[error("the service failed")]
    Service(#[source] E),
}

impl<S, P, R> Service<R> for Scheduled<S, P>
where
    S: Service<R>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    P: RequestPriority<R>,
{
    type Response = S::Response;
    type Error = ScheduledError<S::Error>;
    type Future = ScheduledCall<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context).map_err(ScheduledError::Service)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let priority = self.layer.priority.of(&request);
        let call = self.service.call(request);
        let task = self.layer.scheduler.io(self.layer.name, call).priority(priority);
        // Whoever drops the response wants the call to end.
        let submitted = task.submit().map(|handle| handle.abort_on_drop(true));
        ScheduledCall(submitted.map_err(|error| Some(error.refusal())))
    }
}

/// The response of a call; dropped before it is ready, the call is cancelled.
#[must_use = "futures do nothing unless polled"]
pub struct ScheduledCall<T, E>(Result<TaskHandle<Result<T, E>>, Option<Refusal>>);

impl<T, E> Future for ScheduledCall<T, E> {
    type Output = Result<T, ScheduledError<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(handle) => Pin::new(handle).poll(context).map(|result| match result {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(error)) => Err(ScheduledError::Service(error)),
                Err(error) => Err(ScheduledError::Task(error)),
            }),
            Err(refusal) => {
                let refusal = refusal.take().expect("a future that was ready is not polled again");
                Poll::Ready(Err(ScheduledError::Refused(refusal)))
            }
        }
    }
}

impl<P> fmt::Debug for SchedulerLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerLayer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, P> fmt::Debug for Scheduled<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduled").field("service", &self.service).finish_non_exhaustive()
    }
}

impl<T, E> fmt::Debug for ScheduledCall<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.as_ref().map(TaskHandle::id);
        f.debug_struct("ScheduledCall").field("task", &id.ok()).finish_non_exhaustive()
    }
}
