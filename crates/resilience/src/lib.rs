//! Circuit breaking: stop calling what does not answer, and find out cheaply when it does again.
//!
//! [`CircuitBreaker`] watches the outcomes of calls to one dependency. While it is closed, calls
//! pass and are counted in a sliding time window. When they fail in a row, fail too often, or take
//! too long too often, it opens: calls are turned away at once, for a time that grows with every
//! opening. Then a few probes decide whether it closes.
//!
//! Nothing here waits, locks, spawns or owns a thread, and no async runtime is needed. Every
//! method that needs the time has a form that takes it (`try_acquire_at`, `complete_at`), and the
//! jitter comes from a seed, so that a schedule can be replayed exactly.
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

#![forbid(unsafe_code)]

mod breaker;
mod sync;

pub use breaker::{
    BuildError, CallError, CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerStats, Open,
    Outcome, Permit, Problem, State,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
