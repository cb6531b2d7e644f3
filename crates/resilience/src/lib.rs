//! Calling what may fail: circuit breakers, retries under a budget, limits, and who fails together.
//!
//! [`CircuitBreaker`] watches the outcomes of calls to one dependency. While it is closed, calls
//! pass and are counted in a sliding time window. When they fail in a row, fail too often, or take
//! too long too often, it opens: calls are turned away at once, for a time that grows with every
//! opening. Then a few probes decide whether it closes.
//!
//! Around it: [`Registry`] (breakers by key), [`RetryPolicy`] and [`Hedge`] under one
//! [`RetryBudget`], [`AdaptiveLimit`], [`Deadline`], and [`Correlator`], which finds out which
//! dependencies fail together. With the feature `tokio`: `Timeout`, `Bulkhead`, and `Policy`, which
//! stacks them; with `tower`, a layer; with `rate-limit`, `RateLimit` over governor; with `http`, what
//! a response means.
//!
//! Without features nothing here waits, spawns or owns a thread, and no async runtime is needed; the
//! breaker's calls do not lock. Every method that needs the time has a form that takes it
//! (`try_acquire_at`, `complete_at`), and what is random comes from a seed, so that a schedule can be
//! replayed exactly.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use resilience::{CircuitBreaker, Outcome, State};
//!
//! let start = Instant::now();
//! let breaker = CircuitBreaker::builder("orders-db")
//!     .consecutive_failures(3)
//!     .open_time(Duration::from_secs(1), Duration::from_secs(60))
//!     .build_at(start)?;
//!
//! for _ in 0..3 {
//!     breaker.try_acquire_at(start)?.complete_at(Outcome::Failure, start);
//! }
//! assert_eq!(breaker.state_at(start), State::Open);
//! let refused = breaker.try_acquire_at(start).unwrap_err();
//!
//! let later = start + refused.retry_after;
//! breaker.try_acquire_at(later)?.complete_at(Outcome::Success, later);
//! assert_eq!(breaker.state_at(later), State::Closed);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # A policy
//!
//! What a `Policy` puts around a call, from the outside in; every part is optional:
//!
//! | part | a refusal or an end means |
//! |---|---|
//! | deadline of the whole call | the call took too long with all its waits |
//! | rate limit | it came too often |
//! | bulkhead | too many at a time, and the queue is full or the wait over |
//! | retry | repeats what is inside, where that may be repeated |
//! | circuit breaker | the dependency is taken for broken |
//! | hedge | makes what is inside a second time when it takes long |
//! | adaptive limit | as much is in flight as the dependency can take |
//! | time limit of an attempt | a failure, which a retry may follow |

#![forbid(unsafe_code)]

mod adaptive;
mod breaker;
mod budget;
mod build_error;
#[cfg(feature = "tokio")]
mod bulkhead;
mod correlator;
mod deadline;
mod hedge;
#[cfg(feature = "http")]
mod http;
mod nanos;
#[cfg(feature = "tokio")]
mod policy;
#[cfg(feature = "rate-limit")]
mod rate_limit;
mod registry;
mod retry;
mod sync;
#[cfg(feature = "tower")]
mod tower;
mod window;

pub use adaptive::{
    AdaptiveLimit, AdaptiveLimitBuilder, AdaptiveLimitStats, LimitAlgorithm, LimitPermit,
    LimitReached,
};
pub use breaker::{
    CallError, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerStats, Open, Outcome, Permit,
    Reason, State, StateChange,
};
pub use budget::{Extra, RetryBudget, RetryBudgetBuilder, RetryBudgetStats};
pub use build_error::{BuildError, Problem};
#[cfg(feature = "tokio")]
pub use bulkhead::{Bulkhead, BulkheadBuilder, BulkheadFull, BulkheadPermit, BulkheadStats};
pub use correlator::{Correlator, CorrelatorBuilder, Incident, IncidentEvent, JoinError, Member};
pub use deadline::Deadline;
#[cfg(feature = "tokio")]
pub use deadline::{TimedOut, Timeout};
pub use hedge::{Hedge, HedgeBuilder, HedgeStats};
#[cfg(feature = "tokio")]
pub use policy::{Policy, PolicyBuilder, PolicyError, Repeat};
#[cfg(feature = "rate-limit")]
pub use rate_limit::{RateLimit, RateLimitBuilder, RateLimited};
pub use registry::{Registry, RegistryBuilder, RegistryStats};
pub use retry::{GiveUp, RetryPolicy, RetryPolicyBuilder};
#[cfg(feature = "tower")]
pub use tower::{PolicyLayer, PolicyService};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
