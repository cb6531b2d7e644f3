//! The caches that are measured, behind one trait, and the keys they are asked for.
//!
//! [`Store`] holds `u64` under `u64`. Its loops are provided methods, so that behind a `dyn Store` a
//! whole batch costs one indirect call and each operation in it is called directly: the trait adds
//! nothing to what is measured. [`peers`] are the caches of others in their default configuration,
//! [`workload`] draws the keys.
#![forbid(unsafe_code)]

pub mod peers;
mod store;
pub mod workload;

pub use store::{Operation, Store, ready};
