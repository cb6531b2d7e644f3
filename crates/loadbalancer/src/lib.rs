//! Latency-aware balancing with leases: capacities, a bounded queue, ejection and live changes.
//!
//! A [`Balancer`] holds a set of [`Backend`]s. A call takes a [`Lease`] of one, which counts as in
//! flight until it is completed or dropped, and what the lease learns (that the call was slow, that
//! it failed) decides where the next one goes. The default policy compares five random backends by
//! latency times leases; see [`Policy`] for the others.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use loadbalancer::{Backend, Balancer, Outcome, Pick};
//!
//! let start = Instant::now();
//! let balancer = Balancer::builder()
//!     .backend(Backend::new("http://10.0.0.1:8000").weight(2).max_in_flight(8))
//!     .backend(Backend::new("http://10.0.0.2:8000").max_in_flight(4))
//!     .build_at(start)?;
//!
//! let lease = balancer.try_acquire_at(&Pick::new(), start)?;
//! println!("the call goes to {}", lease.backend());
//! lease.complete_at(Outcome::Success, start + Duration::from_millis(12));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a balancer does besides picking
//!
//! - A backend never has more leases than its `max_in_flight`. When all are full, calls wait in a
//!   queue with a bound and a deadline, in order, and what does not fit is turned away with a hint.
//! - Backends that fail are ejected for a time that grows, never more than a share of them; when too
//!   few are healthy, health is ignored. Those that come back can start slowly. Active checks are
//!   reported by whoever runs them (feature `checks`: TCP and HTTP, and with `grpc` its health service).
//! - The set, weights, limits and the policy change while calls go on. A backend is known by its id,
//!   so its counts, latency and ejections survive; leases of a backend that left stay good.
//! - A [`Scaler`] advises how many backends there should be; with the feature `actuators` a task starts and
//!   stops workers of this process by it, or asks somebody else (`webhook`).
//! - Everything that changes is an [`Event`] with its reason.
//!
//! # Edges
//!
//! - An empty set answers [`AcquireError::Empty`]; one whose backends are all ejected, down, draining
//!   or of weight zero answers [`AcquireError::Unavailable`] with a hint.
//! - An id that is listed twice, an empty id, and a limit of zero are errors of the set, which then
//!   stays as it was.
//! - Times are of a monotonic clock. One that lies before the last counts as no time passed; one far
//!   ahead ends ejections and lets latencies go to the fleet's median.
//!
//! Nothing here spawns a task or owns a thread, except the tasks of the features `checks`, `discovery`
//! and `actuators`, which end with their handles. Every method that needs the time has a form that takes
//! it (`try_acquire_at`, `complete_at`), and chance comes from a seed if there is one, so that a
//! schedule can be replayed exactly.

#![forbid(unsafe_code)]

#[cfg(feature = "actuators")]
mod actuate;
mod advice;
mod backend;
mod balancer;
mod builder;
#[cfg(feature = "checks")]
mod checks;
#[cfg(feature = "discovery")]
mod discovery;
mod event;
mod health;
mod latency;
mod lease;
mod node;
mod pick;
mod policy;
#[cfg(feature = "tower")]
mod service;
mod set;
mod sync;
mod waiting;
mod workers;

#[cfg(feature = "actuators")]
pub use actuate::{ActuateError, Actuator, ChildWorker, ScaleTask, TaskWorker, Worker, WorkerPool};
#[cfg(feature = "webhook")]
pub use actuate::{Webhook, WebhookError};
pub use advice::{ScaleAdvice, ScaleReason, Scaler, Scaling};
pub use backend::{Backend, BackendState, BackendStats};
pub use balancer::{Balancer, BalancerStats};
pub use builder::{BalancerBuilder, BuildError, Problem};
#[cfg(feature = "checks")]
pub use checks::{Check, CheckTask, Checks};
#[cfg(feature = "discovery")]
pub use discovery::Discovery;
pub use event::{Change, EjectReason, Event, Events};
pub use health::{Ejecting, Thresholds};
pub use lease::Lease;
pub use pick::{AcquireError, Pick};
pub use policy::Policy;
/// How a call ended, as far as the backend's health goes.
pub use resilience::Outcome;
#[cfg(feature = "tower")]
pub use service::{Balanced, BalancedError};
pub use workers::{Held, Workers};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
