//! Pools of objects that are used again, and what each of them is allowed to keep.
//!
//! [`Pool`] is the handle and the guards; how objects rest and move is in [`core`], who waits under a
//! limit in [`limited`] and [`waiters`], and how the age of guards is known in [`births`].

mod births;
pub(crate) mod core;
mod limited;
mod waiters;

#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::core::PoolStats;
pub use self::limited::TakeError;

use self::core::{Core, Home, Kind, Node, Settings};
use self::limited::Turn;
use crate::error::{BuildError, Problem};
use crate::reclaim::{Cost, ReclaimRequest, Reclaimer};

/// Keeps objects that are costly to make and hands them out again.
///
/// Clones share one pool. An object goes back when its guard drops; what rests too long is dropped, so a
/// pool that nobody uses becomes empty. When the last clone is dropped, so is all that rests; guards that
/// are still out stay valid, and their objects are dropped with them.
///
/// # When it pays
///
/// For objects that are costly to make, for memory that would be zeroed each time, and for memory that
/// is used by one thread and freed by another. It does not pay for plain small memory: an allocator
/// takes about as long for that as a pool.
///
/// # Cost
///
/// Taking and returning touch memory of this thread only and do no locked instruction; about once in 32
/// operations a lock is taken for a moment, to fetch or leave half a stash. With a
/// [`limit`](PoolBuilder::limit), each operation takes that lock.
///
/// # Examples
///
/// ```
/// let pool = memory::Pool::builder(|| String::with_capacity(1_024)).reset(String::clear).build()?;
/// {
///     let mut line = pool.take();
///     line.push_str("hello");
/// }
/// assert_eq!(pool.take().capacity(), 1_024);
/// assert_eq!(pool.stats().hits, 1);
/// # Ok::<_, memory::BuildError>(())
/// ```
pub struct Pool<T: Send + 'static> {
    core: Arc<Core<Objects<T>, 1>>,
    _open: Arc<Open<Objects<T>, 1>>,
}

/// A pool of vectors, which are cleared and not freed.
///
/// ```
/// let pool = memory::VecPool::<u32>::vectors().idle_bytes_max(1 << 20).build()?;
/// let mut numbers = pool.take();
/// numbers.extend(0..1_000);
/// drop(numbers);
/// assert!(pool.take().capacity() >= 1_000);
/// # Ok::<_, memory::BuildError>(())
/// ```
pub type VecPool<T> = Pool<Vec<T>>;

impl<T: Send + 'static> Pool<T> {
    /// Starts the settings of a pool; `factory` makes an object when none rests.
    pub fn builder(factory: impl Fn() -> T + Send + Sync + 'static) -> PoolBuilder<T> {
        PoolBuilder::new(Box::new(factory))
    }

    /// Takes an object that rests, or makes one.
    ///
    /// On a pool with a [`limit`](PoolBuilder::limit) that is reached it waits, blocking the thread; a
    /// task uses [`take_async`](Self::take_async) there.
    ///
    /// # Panics
    ///
    /// If the factory does; the pool counts it and goes on.
    ///
    /// # Cost
    ///
    /// Without a limit: a handful of loads and stores where an object rests with this thread, a lock for
    /// a moment where one is fetched, and the factory where none rests.
    #[inline]
    pub fn take(&self) -> Pooled<'_, T> {
        Pooled { core: &self.core, node: Some(self.take_any()) }
    }

    /// As [`take`](Self::take), with a guard that has no lifetime: for tasks and for structures.
    ///
    /// # Panics
    ///
    /// If the factory does.
    ///
    /// # Cost
    ///
    /// That of `take`, and a reference count that this thread shares with the users of its guards.
    #[inline]
    pub fn take_owned(&self) -> PooledOwned<T> {
        self.owned(self.take_any())
    }

    /// Takes an object unless the limit is reached or others wait; never waits.
    ///
    /// # Panics
    ///
    /// If the factory does.
    #[inline]
    pub fn try_take(&self) -> Option<Pooled<'_, T>> {
        let taken = match self.core.settings.limit {
            None => self.core.take(0),
            Some(_) => self.core.try_claim()?,
        };
        Some(Pooled { core: &self.core, node: Some(taken) })
    }

    /// Takes an object, waiting at most `timeout` where the limit is reached. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`TakeError::TimedOut`] if nothing became free, [`TakeError::TooManyWaiters`] if
    /// [`waiters_max`](PoolBuilder::waiters_max) wait already.
    ///
    /// # Panics
    ///
    /// If the factory does.
    pub fn take_timeout(&self, timeout: Duration) -> Result<Pooled<'_, T>, TakeError> {
        let taken = match self.core.settings.limit {
            None => self.core.take(0),
            Some(_) => self.core.wait(Some(timeout))?,
        };
        Ok(Pooled { core: &self.core, node: Some(taken) })
    }

    /// Takes an object, waiting in line where the limit is reached.
    ///
    /// # Errors
    ///
    /// [`TakeError::TooManyWaiters`] if [`waiters_max`](PoolBuilder::waiters_max) wait already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the line; nothing is lost.
    ///
    /// # Panics
    ///
    /// If the factory does.
    pub async fn take_async(&self) -> Result<PooledOwned<T>, TakeError> {
        let taken = match self.core.settings.limit {
            None => self.core.take(0),
            Some(_) => Turn::new(Arc::clone(&self.core)).await?,
        };
        Ok(self.owned(taken))
    }

    #[inline(always)]
    fn take_any(&self) -> Box<Node<T>> {
        // Where there is a limit, nothing rests with a thread.
        match self.core.take_near(0) {
            Some(node) => node,
            None => self.take_elsewhere(),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_elsewhere(&self) -> Box<Node<T>> {
        match self.core.settings.limit {
            None => self.core.take_slowly(0),
            Some(_) => self.core.wait(None).expect("who waits for ever is let into the queue"),
        }
    }

    #[inline]
    fn owned(&self, taken: Box<Node<T>>) -> PooledOwned<T> {
        PooledOwned { home: self.core.home(), node: Some(taken) }
    }

    /// Reads what the pool has done and holds.
    ///
    /// # Cost
    ///
    /// A lock for a moment and some twenty loads for each thread that uses the pool.
    pub fn stats(&self) -> PoolStats {
        self.stats_at(Instant::now())
    }

    /// Reads what the pool has done and holds, at `now`.
    pub fn stats_at(&self, now: Instant) -> PoolStats {
        self.core.stats(now)
    }

    /// Returns how many bytes rest in the pool, which [`trim`](Self::trim) could drop.
    pub fn reclaimable_bytes(&self) -> u64 {
        self.core.idle_bytes()
    }

    /// Drops what rests until at least `target_bytes` are gone or nothing is left; returns the bytes.
    ///
    /// What rests with other threads is dropped last.
    ///
    /// # Cost
    ///
    /// The destructors, and a system call of some microseconds if stashes of threads are visited.
    pub fn trim(&self, target_bytes: u64) -> u64 {
        self.core.trim(target_bytes)
    }

    /// Drops half of what was not needed lately, if the time of [`decay`](PoolBuilder::decay) has passed
    /// since the last such step; returns the bytes.
    ///
    /// A pool in use does this by itself, and one that is registered with a
    /// [`MemoryGuard`](crate::MemoryGuard) has it done. Otherwise a timer that calls it empties a pool
    /// that is not used, in six steps.
    ///
    /// # Cost
    ///
    /// Nearly nothing before it is time; then as [`trim`](Self::trim).
    pub fn decay(&self, now: Instant) -> u64 {
        self.core.pass_time(now)
    }
}

impl<T: Send + 'static> VecPool<T> {
    /// Starts the settings of a pool of vectors; each weighs what its capacity takes.
    pub fn vectors() -> PoolBuilder<Vec<T>> {
        Self::builder(Vec::new)
            .reset(Vec::clear)
            .weigh(|vector| vector.capacity() * size_of::<T>() + size_of::<Vec<T>>())
    }
}

/// Under pressure a pool gives up what rests, before anything that is of use.
impl<T: Send + 'static> Reclaimer for Pool<T> {
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

impl<T: Send + 'static> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), _open: Arc::clone(&self._open) }
    }
}

impl<T: Send + 'static> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Closes a pool when the last handle goes, whatever guards are out.
pub(crate) struct Open<K: Kind, const C: usize>(pub(crate) Arc<Core<K, C>>);

impl<K: Kind, const C: usize> Drop for Open<K, C> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// An object of a [`Pool`], which goes back when this is dropped.
///
/// If it is dropped while its thread panics, the object is dropped too: it may be half changed.
#[must_use = "the object goes back at once"]
pub struct Pooled<'p, T: Send + 'static> {
    core: &'p Arc<Core<Objects<T>, 1>>,
    node: Option<Box<Node<T>>>,
}

/// An object of a [`Pool`] without a lifetime, which goes back when this is dropped.
///
/// As [`Pooled`]; it keeps nothing of the pool alive but what it needs to go back.
#[must_use = "the object goes back at once"]
pub struct PooledOwned<T: Send + 'static> {
    home: Arc<Home<Objects<T>, 1>>,
    node: Option<Box<Node<T>>>,
}

const THERE: &str = "the object is there until the guard goes";

macro_rules! guard {
    ([$($life:lifetime)?] $guard:ident, $core:expr) => {
        impl<T: Send + 'static> $guard<$($life,)? T> {
            /// Takes the object out of the pool for good; the pool counts it and forgets it.
            pub fn detach(mut self) -> T {
                let node = self.node.take().expect(THERE);
                let core: fn(&Self) -> &Arc<Core<Objects<T>, 1>> = $core;
                core(&self).detached(&node);
                node.object
            }
        }

        impl<T: Send + 'static> Deref for $guard<$($life,)? T> {
            type Target = T;

            #[inline]
            fn deref(&self) -> &T {
                &self.node.as_ref().expect(THERE).object
            }
        }

        impl<T: Send + 'static> DerefMut for $guard<$($life,)? T> {
            #[inline]
            fn deref_mut(&mut self) -> &mut T {
                &mut self.node.as_mut().expect(THERE).object
            }
        }

        impl<T: Send + 'static> Drop for $guard<$($life,)? T> {
            #[inline]
            fn drop(&mut self) {
                let core: fn(&Self) -> &Arc<Core<Objects<T>, 1>> = $core;
                if let Some(node) = self.node.take() {
                    core(self).put(0, node);
                }
            }
        }

        impl<T: Send + fmt::Debug + 'static> fmt::Debug for $guard<$($life,)? T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }
    };
}

guard!(['_] Pooled, |guard| guard.core);
guard!([] PooledOwned, |guard| &guard.home.core);

type Factory<T> = Box<dyn Fn() -> T + Send + Sync>;
type Reset<T> = Box<dyn Fn(&mut T) + Send + Sync>;
type Weigh<T> = Box<dyn Fn(&T) -> usize + Send + Sync>;

/// The closures of a pool.
struct Objects<T> {
    factory: Factory<T>,
    reset: Option<Reset<T>>,
    weigh: Option<Weigh<T>>,
}

impl<T: Send + 'static> Kind for Objects<T> {
    type Object = T;

    fn make(&self, _class: usize) -> T {
        (self.factory)()
    }

    fn same_weight(&self) -> Option<usize> {
        self.weigh.is_none().then_some(size_of::<T>())
    }

    fn is_plain(&self) -> bool {
        self.reset.is_none() && self.weigh.is_none()
    }

    fn weigh(&self, object: &T) -> usize {
        self.weigh.as_ref().map_or(size_of::<T>(), |weigh| weigh(object))
    }

    fn reset(&self, object: &mut T) {
        if let Some(reset) = &self.reset {
            reset(object);
        }
    }
}

/// The settings of a [`Pool`].
#[must_use = "nothing is built until `build`"]
pub struct PoolBuilder<T> {
    objects: Objects<T>,
    settings: Settings,
}

impl<T: Send + 'static> PoolBuilder<T> {
    fn new(factory: Factory<T>) -> Self {
        Self {
            objects: Objects { factory, reset: None, weigh: None },
            settings: Settings {
                name: "pool",
                idle_max: 1_024,
                idle_bytes_max: 64 << 20,
                object_bytes_max: usize::MAX,
                stash_bytes_max: 1 << 20,
                limit: None,
                waiters_max: 1_024,
                decay: Duration::from_secs(5),
                clock: Instant::now,
            },
        }
    }

    /// Names the pool in the reports of a [`MemoryGuard`](crate::MemoryGuard); `pool` unless said.
    pub fn name(mut self, name: &'static str) -> Self {
        self.settings.name = name;
        self
    }

    /// Makes an object fit for its next user, when it comes back; nothing unless said.
    ///
    /// If it panics, the object is dropped, the pool counts it, and the panic goes no further.
    pub fn reset(mut self, reset: impl Fn(&mut T) + Send + Sync + 'static) -> Self {
        self.objects.reset = Some(Box::new(reset));
        self
    }

    /// Says how many bytes an object takes, when it comes back; `size_of::<T>()` unless said.
    pub fn weigh(mut self, weigh: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.objects.weigh = Some(Box::new(weigh));
        self
    }

    /// Bounds the objects that rest; 1,024 unless said.
    pub fn idle_max(mut self, objects: usize) -> Self {
        self.settings.idle_max = objects;
        self
    }

    /// Bounds the bytes that rest; 64 MiB unless said.
    pub fn idle_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.idle_bytes_max = bytes;
        self
    }

    /// Drops objects that come back heavier than this, so that one large use does not stay; no bound of
    /// its own unless said.
    pub fn object_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.object_bytes_max = bytes;
        self
    }

    /// Bounds the objects that exist, resting and in use; no bound unless said.
    ///
    /// Objects then rest in one place behind a lock, so that whoever needs one finds it: 20 to 40 ns more
    /// for each take.
    pub fn limit(mut self, objects: usize) -> Self {
        self.settings.limit = Some(objects);
        self
    }

    /// Bounds who waits under a limit; 1,024 unless said. Threads in [`Pool::take`] are let in anyway.
    pub fn waiters_max(mut self, waiters: usize) -> Self {
        self.settings.waiters_max = waiters;
        self
    }

    /// Sets how often half of what was not needed is dropped; 5 s unless said, so that a pool without
    /// use is empty after 30 s. `Duration::MAX` keeps objects for ever.
    pub fn decay(mut self, interval: Duration) -> Self {
        self.settings.decay = interval;
        self
    }

    /// Bounds the bytes that rest with one thread; 1 MiB unless said here.
    #[cfg(feature = "arena")]
    pub(crate) fn stash_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.stash_bytes_max = bytes;
        self
    }

    /// Sets the clock by which the pool looks after itself, for tests.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn clock(mut self, clock: fn() -> Instant) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Builds the pool; it is empty.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every setting that cannot be used.
    pub fn build(self) -> Result<Pool<T>, BuildError> {
        BuildError::check("pool", self.settings.problems())?;
        let core = Core::new(self.objects, self.settings);
        Ok(Pool { _open: Arc::new(Open(Arc::clone(&core))), core })
    }
}

impl<T> fmt::Debug for PoolBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Settings {
    fn problems(&self) -> Vec<Problem> {
        let at_least_one = "must be at least 1";
        let counts = [
            ("idle_max", Some(self.idle_max)),
            ("idle_bytes_max", Some(self.idle_bytes_max)),
            ("object_bytes_max", Some(self.object_bytes_max)),
            ("limit", self.limit),
            ("waiters_max", Some(self.waiters_max)),
        ];
        let zero = counts.into_iter().filter(|(_, value)| *value == Some(0));
        let mut problems: Vec<_> =
            zero.map(|(setting, _)| Problem::new(setting, 0, at_least_one)).collect();
        if self.decay.is_zero() {
            problems.push(Problem::new("decay", self.decay, "must be longer than nothing"));
        }
        problems
    }
}
