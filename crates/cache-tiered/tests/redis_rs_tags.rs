//! The tests of tags over one Redis, with the client redis-rs.
#![cfg(feature = "redis-rs")]

#[path = "redis_tags.rs"]
mod redis_tags;
