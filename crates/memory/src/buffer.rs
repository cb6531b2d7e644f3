//! Byte buffers by size class: zeroed once, used many times, and frozen into `Bytes` without a copy.
//!
//! All memory of a buffer is initialised when it is made and stays so. What an earlier user left in the
//! room of a buffer is visible to the next one who asks for that room; it is never undefined, and never
//! part of the contents. Where that matters, [`resize`](PooledBuf::resize) writes over it.
//!
//! Classes go from 4 KiB to 4 MiB, four to a doubling, as in jemalloc: a buffer is at most a quarter
//! larger than asked for. One cap counts the bytes of all classes.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{BuildError, Problem};
use crate::pool::core::{Core, Home, Kind, Node, Settings};
use crate::pool::{Open, PoolStats};
use crate::reclaim::{Cost, ReclaimRequest, Reclaimer};

/// The smallest class.
const SMALLEST: usize = 4 << 10;
/// The largest class.
const LARGEST: usize = 4 << 20;
/// Four classes to each of ten doublings, and the smallest.
const CLASSES: usize = 41;

/// Lends byte buffers of any size and takes them back.
///
/// Clones share one pool. Sizes up to 4 KiB share the smallest class; a buffer larger than
/// [`buffer_bytes_max`](BufferPoolBuilder::buffer_bytes_max) is made and freed as if there were no pool.
///
/// # When it pays
///
/// From 64 KiB on, where a buffer would otherwise be zeroed for each use, and wherever it is filled by one
/// thread and dropped by another. Below 16 KiB a `Vec` that is not zeroed is as good.
///
/// # Examples
///
/// ```
/// use std::io::Read as _;
///
/// let pool = memory::BufferPool::builder().idle_bytes_max(16 << 20).build()?;
/// let mut source: &[u8] = b"what a socket sends";
///
/// let mut buffer = pool.take(64 << 10);
/// let n = source.read(buffer.spare_mut(1))?;
/// buffer.advance(n);
///
/// let body: bytes::Bytes = buffer.freeze(); // goes back when the last clone is dropped
/// assert_eq!(body, "what a socket sends");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct BufferPool {
    core: Arc<Core<Buffers, CLASSES>>,
    _open: Arc<Open<Buffers, CLASSES>>,
}

impl BufferPool {
    /// Starts the settings of a pool.
    pub fn builder() -> BufferPoolBuilder {
        BufferPoolBuilder::default()
    }

    /// Takes an empty buffer with room for at least `capacity` bytes.
    ///
    /// # Cost
    ///
    /// As [`Pool::take_owned`](crate::Pool::take_owned) where a buffer of the class rests; else it is
    /// allocated and zeroed.
    #[inline]
    pub fn take(&self, capacity: usize) -> PooledBuf {
        PooledBuf::from(self.core.home(), capacity)
    }

    /// Reads what the pool has done and holds, over all classes.
    pub fn stats(&self) -> PoolStats {
        self.stats_at(Instant::now())
    }

    /// Reads what the pool has done and holds, at `now`.
    pub fn stats_at(&self, now: Instant) -> PoolStats {
        self.core.stats(now)
    }

    /// Returns how many bytes rest in the pool, which [`trim`](Self::trim) could free.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.core.idle_bytes()
    }

    /// Frees what rests, large buffers first, until `target_bytes` are gone or nothing is left; returns
    /// the bytes.
    pub fn trim(&self, target_bytes: u64) -> u64 {
        self.core.trim(target_bytes)
    }

    /// Frees half of what was not needed lately, if it is time; see [`Pool::decay`](crate::Pool::decay).
    pub fn decay(&self, now: Instant) -> u64 {
        self.core.pass_time(now)
    }
}

/// Under pressure the pool gives up what rests, before anything that is of use.
impl Reclaimer for BufferPool {
    fn name(&self) -> &str {
        self.core.settings.name
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.core.idle_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.core.trim(request.target_bytes)
    }

    fn cost(&self) -> Cost {
        Cost::Surplus
    }

    fn decays(&self) -> bool {
        true
    }

    fn decay(&self, now: Instant) -> u64 {
        self.core.pass_time(now)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The settings of a [`BufferPool`].
#[derive(Clone, Debug)]
#[must_use = "nothing is built until `build`"]
pub struct BufferPoolBuilder {
    name: &'static str,
    idle_bytes_max: usize,
    buffer_bytes_max: usize,
    decay: Duration,
}

impl Default for BufferPoolBuilder {
    fn default() -> Self {
        Self {
            name: "buffers",
            idle_bytes_max: 64 << 20,
            buffer_bytes_max: LARGEST,
            decay: Duration::from_secs(5),
        }
    }
}

impl BufferPoolBuilder {
    /// Names the pool in the reports of a [`MemoryGuard`](crate::MemoryGuard); `buffers` unless said.
    pub fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Bounds the bytes that rest, over all classes; 64 MiB unless said.
    pub fn idle_bytes_max(mut self, bytes: usize) -> Self {
        self.idle_bytes_max = bytes;
        self
    }

    /// Sets from which size on buffers are not pooled; 4 MiB, the most, unless said.
    pub fn buffer_bytes_max(mut self, bytes: usize) -> Self {
        self.buffer_bytes_max = bytes;
        self
    }

    /// Sets how often half of what was not needed is freed; 5 s unless said.
    pub fn decay(mut self, interval: Duration) -> Self {
        self.decay = interval;
        self
    }

    /// Builds the pool; it is empty.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every setting that cannot be used.
    pub fn build(self) -> Result<BufferPool, BuildError> {
        let mut problems = Vec::new();
        if self.idle_bytes_max < SMALLEST {
            let expected = "must be at least 4096, the smallest buffer";
            problems.push(Problem::new("idle_bytes_max", self.idle_bytes_max, expected));
        }
        if !(SMALLEST..=LARGEST).contains(&self.buffer_bytes_max) {
            let expected = "must be between 4096 and 4194304, the smallest and the largest class";
            problems.push(Problem::new("buffer_bytes_max", self.buffer_bytes_max, expected));
        }
        if self.decay.is_zero() {
            problems.push(Problem::new("decay", self.decay, "must be longer than nothing"));
        }
        BuildError::check("buffer pool", problems)?;
        let settings = Settings {
            name: self.name,
            // Bytes are what is bounded, and with them the number of buffers.
            idle_max: usize::MAX / 2,
            idle_bytes_max: self.idle_bytes_max,
            object_bytes_max: self.buffer_bytes_max,
            stash_bytes_max: LARGEST,
            limit: None,
            waiters_max: 0,
            decay: self.decay,
            clock: Instant::now,
        };
        let core = Core::new(Buffers, settings);
        Ok(BufferPool { _open: Arc::new(Open(Arc::clone(&core))), core })
    }
}

/// Makes buffers by class.
struct Buffers;

impl Kind for Buffers {
    type Object = Box<[u8]>;

    fn make(&self, class: usize) -> Box<[u8]> {
        zeroed(size_of_class(class))
    }

    fn same_weight(&self) -> Option<usize> {
        None
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn weigh(&self, buffer: &Box<[u8]>) -> usize {
        buffer.len()
    }

    fn reset(&self, _buffer: &mut Box<[u8]>) {}
}

/// Allocates zeroed memory; fresh pages of the system are not written for that.
fn zeroed(bytes: usize) -> Box<[u8]> {
    vec![0; bytes].into_boxed_slice()
}

/// The smallest class that holds `bytes`, which are at most the largest class.
#[inline]
fn class_of(bytes: usize) -> usize {
    if bytes <= SMALLEST {
        return 0;
    }
    let last = bytes - 1;
    let doubling = last.ilog2();
    let quarter = (last >> (doubling - 2)) & 3;
    (doubling - SMALLEST.ilog2()) as usize * 4 + quarter + 1
}

fn size_of_class(class: usize) -> usize {
    ((SMALLEST / 4) << (class / 4)) * (4 + class % 4)
}

/// A byte buffer of a [`BufferPool`], which goes back when this is dropped.
///
/// It derefs to its contents, and grows like a `Vec`, by moving to a larger buffer of the pool.
/// [`bytes::BufMut`], [`io::Write`] and [`extend_from_slice`](Self::extend_from_slice) append;
/// [`spare_mut`](Self::spare_mut) and [`advance`](Self::advance) let a reader append without a copy.
#[must_use = "the buffer goes back at once"]
pub struct PooledBuf {
    home: Arc<Home<Buffers, CLASSES>>,
    memory: Memory,
    len: usize,
}

/// The memory of a buffer, all of it initialised.
enum Memory {
    Pooled(Box<Node<Box<[u8]>>>),
    /// Too large for the pool; or moved out, and then empty.
    Own(Box<[u8]>),
}

impl Memory {
    fn take(core: &Arc<Core<Buffers, CLASSES>>, capacity: usize) -> Self {
        if capacity > core.largest_object() {
            Self::Own(zeroed(capacity))
        } else {
            Self::Pooled(core.take(class_of(capacity)))
        }
    }

    #[inline]
    fn give_back(self, core: &Arc<Core<Buffers, CLASSES>>) {
        if let Self::Pooled(node) = self {
            core.put(class_of(node.object.len()), node);
        }
    }
}

impl Deref for Memory {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Pooled(node) => &node.object,
            Self::Own(memory) => memory,
        }
    }
}

impl DerefMut for Memory {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Pooled(node) => &mut node.object,
            Self::Own(memory) => memory,
        }
    }
}

impl PooledBuf {
    #[inline]
    fn from(home: Arc<Home<Buffers, CLASSES>>, capacity: usize) -> Self {
        let memory = Memory::take(&home.core, capacity);
        Self { home, memory, len: 0 }
    }

    /// Returns how many bytes fit before the buffer has to move.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Drops the contents.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Shortens the contents to `len` bytes, if they are longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the contents `len` bytes long, filling with `value` what is new.
    pub fn resize(&mut self, len: usize, value: u8) {
        if len > self.len {
            self.reserve(len - self.len);
            self.memory[self.len..len].fill(value);
        }
        self.len = len;
    }

    /// Sees to it that `additional` bytes fit after the contents.
    ///
    /// # Panics
    ///
    /// If the sum overflows, as `Vec` does.
    #[inline]
    pub fn reserve(&mut self, additional: usize) {
        if additional > self.memory.len() - self.len {
            self.grow(additional);
        }
    }

    #[cold]
    fn grow(&mut self, additional: usize) {
        let needed = self.len.checked_add(additional).expect("capacity overflow");
        // At least double, so that appending byte by byte copies each byte a constant number of times.
        let wanted = needed.max(self.memory.len().saturating_mul(2).min(LARGEST.max(needed)));
        let memory = Memory::take(&self.home.core, wanted);
        let small = std::mem::replace(&mut self.memory, memory);
        self.memory[..self.len].copy_from_slice(&small[..self.len]);
        small.give_back(&self.home.core);
    }

    /// Appends a copy of `bytes`.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Returns the room after the contents, at least `min` bytes of it; what it holds is what an earlier
    /// user left or zero.
    #[inline]
    pub fn spare_mut(&mut self, min: usize) -> &mut [u8] {
        self.reserve(min);
        &mut self.memory[self.len..]
    }

    /// Makes the first `n` bytes of the room part of the contents.
    ///
    /// # Panics
    ///
    /// If there is less room than that.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let room = self.memory.len() - self.len;
        assert!(n <= room, "cannot advance by {n} bytes, there is room for {room}");
        self.len += n;
    }

    /// Turns the buffer into shared bytes, which go back to the pool when the last clone is dropped.
    ///
    /// All of the buffer stays out as long as one byte of it is in use; a small value that lives long
    /// is better copied.
    ///
    /// # Cost
    ///
    /// One small allocation, and no copy.
    pub fn freeze(self) -> Bytes {
        if self.len == 0 { Bytes::new() } else { Bytes::from_owner(self) }
    }
}

impl Drop for PooledBuf {
    #[inline]
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Own(Box::default()));
        memory.give_back(&self.home.core);
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for PooledBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl io::Write for PooledBuf {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
