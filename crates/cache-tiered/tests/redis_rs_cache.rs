//! The tests of the whole cache over a real Redis, with the client redis-rs.
#![cfg(feature = "redis-rs")]

#[path = "redis_cache.rs"]
mod redis_cache;
