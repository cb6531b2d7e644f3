//! The tests of the log of tags in a real Redis, with the client redis-rs.
#![cfg(feature = "redis-rs")]

#[path = "redis_tags.rs"]
mod redis_tags;
