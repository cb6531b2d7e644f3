//! The tests of the Redis tier, with the client redis-rs.
#![cfg(feature = "redis-rs")]

#[path = "redis_tier.rs"]
mod redis_tier;
