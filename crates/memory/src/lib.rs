//! Who uses my memory, how do I reuse it, and how do I get it back.

#![deny(unsafe_code)]

#[cfg(feature = "arena")]
mod arena;
#[cfg(feature = "buffers")]
mod buffer;
mod error;
mod pool;
mod raw;
mod sync;

#[cfg(feature = "arena")]
pub use arena::{ArenaPool, ArenaPoolBuilder};
#[cfg(feature = "buffers")]
pub use buffer::{BufferPool, BufferPoolBuilder, PooledBuf};
pub use error::{BuildError, Problem};
pub use pool::{Pool, PoolBuilder, PoolStats, Pooled, PooledOwned, TakeError, VecPool};
