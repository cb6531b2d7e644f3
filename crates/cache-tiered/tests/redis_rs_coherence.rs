//! The tests of several caches over one Redis, with the client redis-rs.
#![cfg(feature = "redis-rs")]

#[path = "redis_coherence.rs"]
mod redis_coherence;
