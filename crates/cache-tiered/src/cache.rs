//! The cache's handle: one set of calls over all tiers.
//!
//! A look-up goes down, memory first, and a value that it finds comes up into memory with the time
//! that it has left to live. A write goes into memory at once and is queued for the tiers below, or
//! goes there when memory pushes it out, as the builder says. How a slow value and a quick write of
//! the same key are kept apart, and which locks there are, stands in [`flights`](crate::flights).
//!
//! Every write of a key happens under the lock of its shard in memory, memory and queues in one. With
//! [`Engine::ClockPro`](crate::Engine::ClockPro) an eviction is the one thing that happens to a key
//! without it; where evictions write ([`WritePolicy::OnEviction`]), memory is changed before the queues
//! are, so that an eviction of the older value has been queued by then.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use quick_cache::Equivalent;
use tokio::sync::Semaphore;

use crate::builder::CacheBuilder;
use crate::clock::{Clock, Millis, NEVER, millis};
use crate::error::{LoadError, NotKept};
use crate::fates::Outcome;
use crate::flights::Landed;
use crate::freshness::{Freshness, Life, State, Windows};
use crate::hasher::DefaultHashBuilder;
use crate::invalidation::Events;
use crate::latency::LatencyHistogram;
use crate::lower::{Found, Item, LowerTier, Room, Sink, Tier, Write};
use crate::manage::Chosen;
use crate::memory::{
    Entry, EntryRef, Locked, MemoryTier, Outgoing, Role, Ticket, UnsupportedByEngine,
};
use crate::prefetch::Prefetcher;
use crate::stats::Counter;
use crate::sweeper::Sweep;
use crate::tags::{Attributes, Stamp, Standing, TAGS_MAX, Tag, TagTable};
use crate::tuning::{Tuned, window};

/// A cache with a memory tier and, if it was given them, a Redis and a disk tier.
///
/// Handles are cheap to clone and share one cache. When the last one is dropped, the tiers finish
/// their queues in the background; [`close`](Self::close) waits for that.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use cache_tiered::Cache;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let users = Cache::<u64, String>::builder("users")
///     .entries(10_000)
///     .ttl(Duration::from_secs(600))
///     .build()?;
///
/// let name = users.get_or_load(&7, || async { Ok::<_, std::io::Error>("Ada".to_owned()) }).await?;
/// assert_eq!(name, "Ada");
/// assert_eq!(users.get_in_memory(&7).as_deref(), Some("Ada"));
/// # Ok(())
/// # }
/// ```
pub struct Cache<K, V, S = DefaultHashBuilder> {
    inner: Arc<Inner<K, V, S>>,
}

/// When values go to the tiers below memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WritePolicy {
    /// With every insert, in the background: a restart finds all of them.
    #[default]
    Through,
    /// When memory pushes them out, and when the cache is closed: fewer writes, but a killed process
    /// loses what was in memory.
    OnEviction,
}

/// What an insert sets for its entry alone.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct InsertOptions {
    /// The time to live, instead of the cache's; `Duration::MAX` is for ever, zero removes the key.
    pub ttl: Option<Duration>,
    /// By how many percent at most the time to live is shortened at random, instead of the cache's
    /// [`ttl_jitter`](CacheBuilder::ttl_jitter).
    pub ttl_jitter: Option<u8>,
    /// The names by which the entry can be invalidated together with others, 1,024 at most: one with more
    /// is not kept.
    pub tags: Vec<Tag>,
    /// The window in place of [`stale_while_revalidate`](CacheBuilder::stale_while_revalidate).
    pub stale_while_revalidate: Option<Duration>,
    /// The window in place of [`stale_if_error`](CacheBuilder::stale_if_error).
    pub stale_if_error: Option<Duration>,
    /// The time in place of [`refresh_ahead`](CacheBuilder::refresh_ahead).
    pub refresh_ahead: Option<Duration>,
    /// The factor in place of [`early_refresh`](CacheBuilder::early_refresh); one that is no number from 0
    /// on counts as 0.
    pub early_refresh: Option<f32>,
}

impl InsertOptions {
    /// Makes options with a time to live.
    #[must_use]
    pub fn ttl(ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..Self::default() }
    }

    /// Shortens the time to live at random, by `percent` of it at most; more than 100 counts as 100.
    #[must_use]
    pub fn ttl_jitter(self, percent: u8) -> Self {
        Self { ttl_jitter: Some(percent), ..self }
    }

    /// Adds a tag: see [`Cache::invalidate_tag`].
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds tags.
    #[must_use]
    pub fn tags<T: Into<Tag>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Sets for how long a [`LoadingCache`](crate::LoadingCache) may serve the value past its time to live
    /// while a newer one is loaded. As all windows, no longer than 49 days.
    #[must_use]
    pub fn stale_while_revalidate(self, window: Duration) -> Self {
        Self { stale_while_revalidate: Some(window), ..self }
    }

    /// Sets for how long the value may be served past its time to live where a loader fails.
    #[must_use]
    pub fn stale_if_error(self, window: Duration) -> Self {
        Self { stale_if_error: Some(window), ..self }
    }

    /// Sets with how much left of its time to live a [`LoadingCache`](crate::LoadingCache) loads the value
    /// anew.
    #[must_use]
    pub fn refresh_ahead(self, left: Duration) -> Self {
        Self { refresh_ahead: Some(left), ..self }
    }

    /// Sets how early a [`LoadingCache`](crate::LoadingCache) loads the value anew by chance.
    #[must_use]
    pub fn early_refresh(self, beta: f32) -> Self {
        Self { early_refresh: Some(beta), ..self }
    }

    fn windows(&self) -> Windows {
        let window = |own: Option<Duration>| own.map(|own| window(millis(own)));
        Windows {
            while_revalidate: window(self.stale_while_revalidate),
            if_error: window(self.stale_if_error),
            ahead: window(self.refresh_ahead),
            early: self
                .early_refresh
                .map(|beta| if beta.is_finite() { beta.max(0.0) } else { 0.0 }),
        }
    }
}

/// A value that was found; see [`Cache::look_up`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit<V> {
    /// The value.
    pub value: V,
    /// Whether it is past its time to live, or softly invalidated.
    pub stale: bool,
}

/// What a loader returns: a value, and how to keep it. Any `V` turns into one.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<V> {
    /// The value.
    pub value: V,
    /// How to keep it.
    pub options: InsertOptions,
}

impl<V> Loaded<V> {
    /// Gives a loaded value its own time to live.
    pub fn with_ttl(value: V, ttl: Duration) -> Self {
        Self { value, options: InsertOptions::ttl(ttl) }
    }

    /// Gives a loaded value options of its own.
    pub fn with_options(value: V, options: InsertOptions) -> Self {
        Self { value, options }
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self { value, options: InsertOptions::default() }
    }
}

/// The tiers below memory, in reading order. Memory's evictions go here too, so it stands apart.
pub(crate) struct LowerTiers<K, V> {
    pub(crate) tiers: Vec<Box<dyn LowerTier<K, V>>>,
    /// How long the reads of each take.
    reads: Vec<LatencyHistogram>,
    /// How many calls are clearing the whole cache: until they are done, no eviction is written, since
    /// it could bring an entry from before the clear into a tier that is empty already.
    clearing: AtomicUsize,
}

/// While this lives, no eviction begins to be written.
pub(crate) struct Clearing<'a>(&'a AtomicUsize);

impl Drop for Clearing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl<K, V> LowerTiers<K, V> {
    pub(crate) fn new(tiers: Vec<Box<dyn LowerTier<K, V>>>) -> Self {
        let reads = tiers.iter().map(|_| LatencyHistogram::default()).collect();
        Self { tiers, reads, clearing: AtomicUsize::new(0) }
    }

    /// The tiers, and how long reads of them take.
    pub(crate) fn with_reads(
        &self,
    ) -> impl Iterator<Item = (&dyn LowerTier<K, V>, &LatencyHistogram)> {
        self.tiers.iter().map(|tier| &**tier).zip(&self.reads)
    }

    pub(crate) fn push(&self, key: &K, write: &Write<V>, dropped: &mut Vec<Write<V>>) {
        for tier in &self.tiers {
            tier.push(key, write.clone(), dropped);
        }
    }

    /// Notes that a key's value may come into memory; called before it is asked for, under no lock.
    fn watch(&self, key: &K, warmed: bool) {
        for tier in &self.tiers {
            tier.watch(key, warmed);
        }
    }

    /// Keeps evictions from being written. Those that have begun are done when the caller has locked
    /// every shard of memory once.
    pub(crate) fn begin_clearing(&self) -> Clearing<'_> {
        self.clearing.fetch_add(1, Ordering::Relaxed);
        Clearing(&self.clearing)
    }
}

impl<K, V: Clone> LowerTiers<K, V> {
    /// Writes an entry that memory gives up to each tier that does not hold it yet.
    pub(crate) fn demote(
        &self,
        key: &K,
        entry: EntryRef<'_, V>,
        clock: &Clock,
        weighs_bytes: bool,
        dropped: &mut Vec<Write<V>>,
    ) {
        // Relaxed: the lock of the entry's shard stands between this and `begin_clearing`.
        let is_clearing = self.clearing.load(Ordering::Relaxed) > 0;
        if is_clearing || entry.expires_at <= clock.now() {
            return;
        }
        let wanting = self.tiers.iter().filter(|tier| !(entry.stored_below && tier.holds(key)));
        let mut write = None;
        for tier in wanting {
            let write = write.get_or_insert_with(|| write_of(&entry, clock, weighs_bytes));
            tier.push(key, write.clone(), dropped);
        }
        dropped.extend(write);
    }
}

fn write_of<V: Clone>(entry: &EntryRef<'_, V>, clock: &Clock, weighs_bytes: bool) -> Write<V> {
    let weight = if weighs_bytes { u64::from(entry.weight) } else { 0 };
    let expires_unix_ms = clock.unix_expiry_of(entry.expires_at);
    let (value, attributes) = (entry.value.clone(), entry.attributes.clone());
    Write::Put(Arc::new(Item::new(value, entry.expires_at, attributes, expires_unix_ms, weight)))
}

/// An entry that is ready to be stored: whatever of it calls a user's code has been done.
struct Prepared<V> {
    entry: Entry<V>,
    /// For the tiers below, if there are any.
    write: Option<Write<V>>,
}

/// What an entry is kept by: its deadline, and what else it carries.
struct Terms {
    expires_at: Millis,
    attributes: Option<Arc<Attributes>>,
}

/// The tags of an entry, by itself.
pub(crate) type TagsBy<K, V> = Arc<dyn Fn(&K, &V, &mut Vec<Tag>) + Send + Sync>;

/// Whether a value means that there is nothing.
pub(crate) type AbsentIf<V> = Arc<dyn Fn(&V) -> bool + Send + Sync>;

/// A fingerprint of a value's content, `None` where it has none.
pub(crate) type ContentOf<V> = Arc<dyn Fn(&V) -> Option<u64> + Send + Sync>;

/// The time to live of an entry, by itself.
pub(crate) type TtlBy<K, V> = Arc<dyn Fn(&K, &V) -> Option<Duration> + Send + Sync>;

pub(crate) struct Inner<K, V, S> {
    /// This very state, for who outlives a call.
    #[cfg(feature = "metrics")]
    pub(crate) this: std::sync::Weak<Self>,
    pub(crate) name: String,
    pub(crate) memory: Arc<MemoryTier<K, V, S>>,
    pub(crate) lower: Arc<LowerTiers<K, V>>,
    pub(crate) clock: Clock,
    /// What can be changed while the cache is in use.
    pub(crate) tuned: Tuned,
    pub(crate) ttl_by: Option<TtlBy<K, V>>,
    pub(crate) absent_if: Option<AbsentIf<V>>,
    /// Fingerprints of contents, where it is known how to take them.
    pub(crate) content: Option<ContentOf<V>>,
    pub(crate) tags_by: Option<TagsBy<K, V>>,
    pub(crate) events: RwLock<Events>,
    /// As built; deadlines are reckoned with it.
    pub(crate) freshness: Freshness,
    /// Permits for loads in the background.
    pub(crate) refreshes: Arc<Semaphore>,
    /// What a loader is asked for ahead of requests.
    pub(crate) prefetcher: OnceLock<Arc<Prefetcher<K>>>,
    pub(crate) write_policy: WritePolicy,
    pub(crate) weighs_bytes: bool,
    /// What whoever opened it set itself.
    pub(crate) chosen: Chosen,
    /// What the tiers below seal their values with, where there are any.
    #[cfg(feature = "__lower")]
    pub(crate) sealer: Option<Arc<crate::lower::Sealer<K, V>>>,
    /// The keys of snapshots; the tiers below have theirs.
    #[cfg(all(feature = "encryption", feature = "__lower"))]
    pub(crate) encryption: Option<crate::encryption::Encryption>,
    /// The schema version of the values, for what is written down.
    #[cfg(feature = "__lower")]
    pub(crate) schema: u32,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) loads: Counter,
    pub(crate) load_failures: Counter,
    pub(crate) load_nanos: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) superseded: Counter,
    pub(crate) refreshes: Counter,
    pub(crate) stale_hits: Counter,
    pub(crate) stale_on_error: Counter,
    /// Whether the cache was given a loader.
    pub(crate) has_loader: AtomicBool,
    /// What a load takes of late, in milliseconds, as the bits of an `f64`.
    load_millis: AtomicU64,
}

impl Counters {
    fn note_load(&self, took: Duration) {
        let took = took.as_secs_f64() * 1e3;
        let before = f64::from_bits(self.load_millis.load(Ordering::Relaxed));
        // Relaxed, and not one step: of two loads that end together one may be left out.
        let now = if before > 0.0 { before + (took - before) / 8.0 } else { took };
        self.load_millis.store(now.to_bits(), Ordering::Relaxed);
    }
}

impl<K, V, S> Clone for Cache<K, V, S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V, S> fmt::Debug for Cache<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Starts to describe a cache; the name is for statistics, threads and keys in Redis.
    pub fn builder(name: impl Into<String>) -> CacheBuilder<K, V> {
        CacheBuilder::new(name.into())
    }
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    pub(crate) fn from_inner(inner: Arc<Inner<K, V, S>>) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner<K, V, S>> {
        &self.inner
    }

    /// Returns the name that the cache was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the value from memory, without looking further down.
    ///
    /// # Cost
    ///
    /// One hash, a look-up that locks nothing, and a clone of the value; a coarse clock where the entry
    /// can expire. With [`Engine::ClockPro`](crate::Engine::ClockPro), one shared lock.
    // A hit is one piece of code with its caller: the length of a key, its hash and what is done with
    // the value are known there.
    #[inline(always)]
    pub fn get_in_memory<Q>(&self, key: &Q) -> Option<V>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.inner.memory.get(key)
    }

    /// Returns what memory has, fresh or stale, without looking further down.
    ///
    /// For callers that have a use of their own for what is stale: past its time to live and within a
    /// window of the cache or of the entry, or softly invalidated
    /// ([`soften_tags`](Self::soften_tags)).
    ///
    /// # Cost
    ///
    /// As [`get_in_memory`](Self::get_in_memory).
    #[inline]
    pub fn look_up_in_memory<Q>(&self, key: &Q) -> Option<Hit<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let (value, life) = self.inner.memory.read(key)?;
        Some(Hit { value, stale: !self.inner.memory.is_fresh(&life) })
    }

    /// Returns what memory has and is good enough while a newer one is made, without looking further down.
    ///
    /// That is what is fresh, or within
    /// [`stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate). What is kept beyond for the
    /// case that a loader fails is a miss.
    ///
    /// # Cost
    ///
    /// As [`get_in_memory`](Self::get_in_memory).
    #[inline]
    pub fn look_up_servable<Q>(&self, key: &Q) -> Option<Hit<V>>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let (value, life) = self.inner.memory.read_servable(key)?;
        Some(Hit { value, stale: !self.inner.memory.is_fresh(&life) })
    }

    /// Returns what the first tier has, fresh or, if none has it fresh, stale.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; a value on its way up is then not kept.
    ///
    /// # Cost
    ///
    /// As [`get`](Self::get).
    pub async fn look_up(&self, key: &K) -> Option<Hit<V>> {
        let found = self.look_up_in_memory(key);
        if self.inner.lower.tiers.is_empty() || found.as_ref().is_some_and(|hit| !hit.stale) {
            return found;
        }
        let ticket = self.inner.ticket(key);
        match self.inner.get_below(key, &ticket).await {
            Some(landed) => Some(Hit { value: landed.value, stale: false }),
            // What is stale below was brought up by that.
            None => {
                let (value, life) = self.inner.memory.peek(key)?;
                Some(Hit { value, stale: !self.inner.memory.is_fresh(&life) })
            }
        }
    }

    /// Returns the value from the first tier that has it, and keeps it in memory.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; a value on its way up is then not kept.
    ///
    /// # Cost
    ///
    /// In memory as [`get_in_memory`](Self::get_in_memory). Below, a thread hop for the disk, a round
    /// trip (shared with other look-ups, and bounded by the tier's time budget) for Redis.
    pub async fn get(&self, key: &K) -> Option<V> {
        let inner = &*self.inner;
        if let Some(value) = inner.memory.get(key) {
            return Some(value);
        }
        if inner.lower.tiers.is_empty() {
            return None;
        }
        let ticket = inner.ticket(key);
        match inner.memory.peek_fresh(key) {
            // It came between the first look and the ticket.
            Some(value) => Some(value),
            None => inner.get_below(key, &ticket).await.map(|landed| landed.value),
        }
    }

    /// Returns the values of several keys, in the order asked; each tier is asked once.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; values on their way up are then not kept.
    ///
    /// # Cost
    ///
    /// In memory one entry into the cache for all keys, and no lock.
    pub async fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        let inner = &*self.inner;
        let mut values = inner.memory.get_many(keys);
        if inner.lower.tiers.is_empty() {
            return values;
        }
        let mut missing = Vec::new();
        for (at, value) in values.iter_mut().enumerate().filter(|(_, value)| value.is_none()) {
            let ticket = inner.ticket(&keys[at]);
            *value = inner.memory.peek_fresh(&keys[at]);
            if value.is_none() {
                missing.push((at, ticket));
            }
        }
        for (tier, reads) in inner.lower.with_reads() {
            if missing.is_empty() {
                break;
            }
            let asked: Vec<_> = missing.iter().map(|(at, _)| &keys[*at]).collect();
            let started = Instant::now();
            let found = tier.get_many(&asked).await;
            reads.record(started.elapsed(), 1);
            let mut found = found.into_iter();
            missing.retain(|(at, ticket)| {
                let Some(found) = found.next().flatten() else { return true };
                values[*at] = inner.promote(found, ticket).map(|landed| landed.value);
                values[*at].is_none()
            });
        }
        values
    }

    /// Puts a value in, under the cache's own time to live.
    ///
    /// No call that begins after this has returned gets an older value of the key from this cache.
    /// The tiers below are written in the background.
    ///
    /// # Cost
    ///
    /// One short lock and, with tiers below, a push to each of their queues. Never waits: a queue
    /// that is full drops the value, counts that, and has the older one removed.
    pub fn insert(&self, key: K, value: V) {
        self.insert_with(key, value, InsertOptions::default());
    }

    /// Puts a value in, with options for this entry alone.
    ///
    /// A time to live of less than a millisecond counts as zero and removes the key.
    pub fn insert_with(&self, key: K, value: V, options: InsertOptions) {
        let inner = &*self.inner;
        let Some(terms) = inner.terms(&key, &value, &options, None) else {
            self.remove_now(&key);
            return;
        };
        let mut out = Outgoing::default();
        let Prepared { entry, write } = inner.prepare(&key, value, terms);
        inner.lower.watch(&key, false);
        let mut locked = inner.memory.overtake(&key, &mut out);
        inner.store(&mut locked, key, entry, write.as_ref(), &mut out);
        locked.release(&out);
    }

    /// Puts entries into memory whose keys are not there, under the cache's own time to live, and tells
    /// how many.
    ///
    /// To begin warm: from a database, a list, or what another cache holds. The tiers below are neither
    /// asked nor written, and a key that is written meanwhile keeps its newer value.
    ///
    /// # Cost
    ///
    /// Three short locks for each entry. It comes to its end on the calling thread, so a long one is
    /// work for a thread that may block.
    pub fn warm(&self, entries: impl IntoIterator<Item = (K, V)>) -> u64 {
        let inner = &*self.inner;
        let mut warmed = 0;
        for (key, value) in entries {
            let options = InsertOptions::default();
            let Some(terms) = inner.terms(&key, &value, &options, None) else { continue };
            let Terms { expires_at, attributes } = terms;
            let found = Found { value, expires_at, attributes };
            warmed += u64::from(inner.warm(key, found, |_| true));
        }
        warmed
    }

    /// Returns the value, and has `loader` make it if no tier has it.
    ///
    /// However many calls ask for one key at once, one loader runs; the others wait for its value, or
    /// get its error. Errors are not kept: the next call loads again. A value whose key is written
    /// while it is being loaded is returned, but not kept. A loader must not ask the same cache for
    /// its own key: it would wait for itself.
    ///
    /// # Errors
    ///
    /// [`LoadError::Loader`] with the loader's own error, [`LoadError::NotKept`] where it says so by a
    /// [`NotKept`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point. The loader runs inside this future: when the call that runs it is
    /// dropped, or panics, one that waits goes on with its own loader.
    ///
    /// # Examples
    ///
    /// A loader that says how long its value is good:
    ///
    /// ```
    /// # use std::time::Duration;
    /// use cache_tiered::{Cache, Loaded};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = Cache::<u64, String>::builder("users").entries(10).build()?;
    /// let token = cache
    ///     .get_or_load(&7, || async {
    ///         Ok::<_, std::io::Error>(Loaded::with_ttl("token".to_owned(), Duration::from_secs(30)))
    ///     })
    ///     .await?;
    /// # assert_eq!(token, "token");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_load<F, Fut, R, E>(&self, key: &K, loader: F) -> Result<V, LoadError>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<R, E>> + Send,
        R: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        if let Some(value) = self.inner.memory.get(key) {
            return Ok(value);
        }
        self.load_missing(key, loader).await
    }

    /// Does what [`get_or_load`](Self::get_or_load) does, of a key that the caller has just found missing in
    /// memory: the miss is not counted again.
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    pub async fn load_missing<F, Fut, R, E>(&self, key: &K, loader: F) -> Result<V, LoadError>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<R, E>> + Send,
        R: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let inner = &*self.inner;
        let began = inner.memory.tags.now();
        let (ticket, publish) = loop {
            match inner.join(key) {
                Role::Leader(ticket, publish) => break (ticket, publish),
                Role::Waiter(mut landing) => {
                    // An error here means that the leader was dropped: the key is free again.
                    if landing.changed().await.is_ok()
                        && let Some(result) = landing.borrow_and_update().clone()
                        && result.as_ref().map_or(true, |landed| landed.serves(began))
                    {
                        inner.counters.coalesced.increment();
                        let result = result.map(|landed| landed.value);
                        return result.or_else(|error| inner.covered(key, error));
                    }
                }
            }
        };
        // Whoever led before may have landed between the first look and the ticket.
        let found = match inner.memory.peek_fresh(key) {
            Some(value) => Some(Landed { value, attributes: None, good_at: ticket.stamp().local }),
            None => inner.get_below(key, &ticket).await,
        };
        let result = match found {
            Some(landed) => Ok(landed),
            None => match inner.load(&ticket, loader).await {
                Err(error) => {
                    let good_at = inner.memory.tags.now();
                    let covered = inner.covered(key, error);
                    covered.map(|value| Landed { value, attributes: None, good_at })
                }
                loaded => loaded,
            },
        };
        // Whoever waits gets this; if nobody does, there is nobody to tell.
        let _ = publish.send(Some(result.clone()));
        result.map(|landed| landed.value)
    }

    /// Reserves a key for a value that is being fetched elsewhere.
    ///
    /// For callers that cannot fetch inside a loader, such as one that streams a value while it
    /// stores it. [`Reservation::insert`] stores only what no write has overtaken.
    #[must_use = "a reservation that is dropped stores nothing"]
    pub fn reserve(&self, key: &K) -> Reservation<K, V, S> {
        let ticket = self.inner.ticket(key);
        Reservation { inner: Arc::clone(&self.inner), ticket }
    }

    /// Removes a key from every tier.
    ///
    /// Resolves when memory has lost it and the tiers below hold its removal in their queues, so that
    /// no call returns the value from this cache any more. It does not wait for disk or Redis.
    ///
    /// # Cancel safety
    ///
    /// There is nothing to wait for: it is done at the first poll.
    pub async fn remove(&self, key: &K) {
        self.remove_now(key);
    }

    fn remove_now(&self, key: &K) {
        let inner = &*self.inner;
        let mut out = Outgoing::default();
        let mut locked = inner.memory.overtake(key, &mut out);
        inner.displace(&locked);
        locked.remove(key, &mut out);
        inner.lower.push(key, &Write::Remove, &mut out.writes);
        locked.release(&out);
    }

    /// Keeps an entry from being pushed out for want of room or for being idle.
    ///
    /// Tells whether it is pinned now: `false` when the key is not in memory, or when the pinned entries
    /// of its shard would weigh more than half of what the shard may hold. A newer value of the key stays
    /// pinned, unless it is heavier and the pinned ones would then weigh more than half; a removal and the
    /// end of its time to live unpin it.
    ///
    /// # Errors
    ///
    /// [`UnsupportedByEngine`] with [`Engine::ClockPro`](crate::Engine::ClockPro).
    pub fn pin(&self, key: &K) -> Result<bool, UnsupportedByEngine> {
        self.inner.memory.set_pinned(key, true)
    }

    /// Lets an entry be pushed out again; tells whether it was pinned.
    ///
    /// # Errors
    ///
    /// [`UnsupportedByEngine`] with [`Engine::ClockPro`](crate::Engine::ClockPro).
    pub fn unpin(&self, key: &K) -> Result<bool, UnsupportedByEngine> {
        self.inner.memory.set_pinned(key, false)
    }

    /// Returns the keys in memory, a snapshot taken shard by shard as the iterator comes to it.
    ///
    /// A key that is there throughout is returned once. One that comes or goes meanwhile may be left out,
    /// and one that is removed and put in again may come twice.
    pub fn keys(&self) -> impl Iterator<Item = K> + Send + '_ {
        self.inner.memory.snapshot(|key, _| key.clone())
    }

    /// Returns the entries in memory, a snapshot taken shard by shard as the iterator comes to it.
    ///
    /// An entry that is there throughout is returned once. One that comes or goes meanwhile may be left
    /// out, and one that is removed and put in again may come twice. This is no use of an entry.
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> + Send + '_ {
        self.inner.memory.snapshot(|key, entry| (key.clone(), entry.value.clone()))
    }
}

/// The right to store a value that was asked for before; see [`Cache::reserve`].
pub struct Reservation<K, V, S = DefaultHashBuilder>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    inner: Arc<Inner<K, V, S>>,
    ticket: Ticket<K, V, S>,
}

impl<K, V, S> fmt::Debug for Reservation<K, V, S>
where
    K: Hash + Eq + Clone,
    V: Clone,
    S: BuildHasher + Clone + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("cache", &self.inner.name).finish_non_exhaustive()
    }
}

impl<K, V, S> Reservation<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Stores the value, unless its key was inserted, removed or cleared since the reservation.
    ///
    /// Tells whether it was stored: one with a time to live of zero is not, and leaves the key as it
    /// is.
    pub fn insert(&self, value: V, options: InsertOptions) -> bool {
        self.inner.store_unless_overtaken(&self.ticket, value, &options)
    }

    /// Stores a value under another key, as one that was asked for when this reservation was made.
    ///
    /// For a value that belongs to the reserved key's. Tells whether it was stored: not, if one of its
    /// tags was invalidated since.
    pub fn insert_beside(&self, key: &K, value: V, options: InsertOptions) -> bool {
        let inner = &*self.inner;
        let terms = inner.terms(key, &value, &options, Some(self.ticket.stamp()));
        let Some(terms) = terms.filter(|terms| inner.is_valid(terms.attributes.as_deref())) else {
            return false;
        };
        let mut out = Outgoing::default();
        let Prepared { entry, write } = inner.prepare(key, value, terms);
        inner.lower.watch(key, false);
        let mut locked = inner.memory.overtake(key, &mut out);
        inner.store(&mut locked, key.clone(), entry, write.as_ref(), &mut out);
        locked.release(&out);
        true
    }

    /// Tells whether the key was not inserted, removed or cleared since the reservation.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.ticket.redeem().is_some()
    }
}

impl<K, V, S> Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Takes a ticket for a key that is about to be fetched.
    fn ticket(&self, key: &K) -> Ticket<K, V, S> {
        self.lower.watch(key, false);
        self.memory.ticket(key)
    }

    /// Joins the key's flight, or starts one.
    pub(crate) fn join(&self, key: &K) -> Role<K, V, S> {
        self.lower.watch(key, false);
        self.memory.join(key)
    }

    /// What an entry that comes now is kept by; `None` when it is not kept. `stamp` says when its value
    /// began to be made, if that was not now.
    fn terms(
        &self,
        key: &K,
        value: &V,
        options: &InsertOptions,
        stamp: Option<Stamp>,
    ) -> Option<Terms> {
        if self.tuned.has_other_windows() {
            return self.tuned_terms(key, value, options, stamp);
        }
        self.terms_within(key, value, options, options.windows(), stamp)
    }

    /// [`terms`](Self::terms) where other windows hold than those that the cache was built with.
    #[inline(never)]
    fn tuned_terms(
        &self,
        key: &K,
        value: &V,
        options: &InsertOptions,
        stamp: Option<Stamp>,
    ) -> Option<Terms> {
        let windows = self.tuned.windows(options.windows(), self.freshness);
        self.terms_within(key, value, options, windows, stamp)
    }

    /// [`terms`](Self::terms) of an entry with these windows of its own; inlined, so that an insert without
    /// options is not asked for any.
    #[inline(always)]
    fn terms_within(
        &self,
        key: &K,
        value: &V,
        options: &InsertOptions,
        windows: Windows,
        stamp: Option<Stamp>,
    ) -> Option<Terms> {
        let tuned = &self.tuned;
        let negative = || tuned.negative_ttl().filter(|_| self.is_absent(value));
        let own = || self.ttl_by.as_ref().and_then(|ttl| ttl(key, value)).map(millis);
        let ttl = options.ttl.map(millis).or_else(negative).or_else(own).or(tuned.ttl());
        let expires_at = match ttl {
            Some(0) => return None,
            Some(ttl) => {
                let percent = options.ttl_jitter.unwrap_or(tuned.ttl_jitter());
                let fresh = self.clock.now().saturating_add(shortened(ttl, percent));
                fresh.saturating_add(self.freshness.of(windows).grace())
            }
            None => NEVER,
        };
        if self.tags_by.is_none() && options.tags.is_empty() && windows == Windows::default() {
            return Some(Terms { expires_at, attributes: None });
        }
        let attributes = self.attributes(key, value, options, windows, stamp)?;
        Some(Terms { expires_at, attributes })
    }

    #[inline(never)]
    fn attributes(
        &self,
        key: &K,
        value: &V,
        options: &InsertOptions,
        windows: Windows,
        stamp: Option<Stamp>,
    ) -> Option<Option<Arc<Attributes>>> {
        let mut tags = options.tags.clone();
        if let Some(tags_by) = &self.tags_by {
            tags_by(key, value, &mut tags);
        }
        if tags.len() > TAGS_MAX {
            return None;
        }
        let table = &self.memory.tags;
        let stamp = stamp.unwrap_or_else(|| table.stamp());
        Some(Attributes::new(table, tags.into_iter().map(Tag::number), stamp, windows))
    }

    /// What a value with this life is good for now.
    pub(crate) fn judge(&self, life: &Life) -> State {
        let load_millis = f64::from_bits(self.counters.load_millis.load(Ordering::Relaxed));
        let chance = || 1.0 - fastrand::f64();
        self.tuned.judging(self.freshness).judge(life, self.clock.now(), load_millis, chance)
    }

    fn is_absent(&self, value: &V) -> bool {
        self.absent_if.as_ref().is_some_and(|absent| absent(value))
    }

    /// Tells a watched key's fate of its new value.
    #[inline(never)]
    fn note_content(&self, key: &K, value: &V) {
        if let (Some(content), Some(fates)) = (&self.content, self.memory.fates()) {
            let hash = self.memory.hash(key) as u32;
            if fates.watches(hash)
                && let Some(content) = content(value)
            {
                fates.written(hash, content);
            }
        }
    }

    /// Tells a watched key's fate what a load of it came to.
    fn note_load(&self, hash: u64, outcome: impl FnOnce() -> Outcome) {
        let hash = hash as u32;
        if let Some(fates) = self.memory.fates().filter(|fates| fates.watches(hash)) {
            fates.loaded(hash, outcome(), self.clock.now());
        }
    }

    /// Makes an entry of a new value. This calls the user's weigher and clones, so no lock is held.
    fn prepare(&self, key: &K, value: V, terms: Terms) -> Prepared<V> {
        if self.content.is_some() {
            self.note_content(key, &value);
        }
        let through = self.write_policy == WritePolicy::Through;
        let Terms { expires_at, attributes } = terms;
        let entry = self.memory.entry(key, value, expires_at, attributes, through);
        let write = (!self.lower.tiers.is_empty()).then(|| {
            // A value that stays in memory must not leave an older one below: that one would come
            // back when this one expires first.
            let stays = !through && self.memory.admits(&entry);
            if stays {
                Write::Remove
            } else {
                write_of(&entry.by_ref(), &self.clock, self.weighs_bytes)
            }
        });
        Prepared { entry, write }
    }

    /// Stores a new value in memory and queues it for the tiers below; the key's shard is locked.
    fn store(
        &self,
        locked: &mut Locked<'_, K, V, S>,
        key: K,
        entry: Entry<V>,
        write: Option<&Write<V>>,
        out: &mut Outgoing<K, V>,
    ) {
        self.displace(locked);
        let Some(write) = write else { return locked.insert(key, entry, out) };
        if self.write_policy == WritePolicy::Through {
            self.lower.push(&key, write, &mut out.writes);
            return locked.insert(key, entry, out);
        }
        // Memory first: once the older value has left it, its eviction cannot be queued after this.
        let below = key.clone();
        locked.insert(key, entry, out);
        // A value may be the first to go, when its key was evicted not long ago and all the others
        // are in use. It goes below like one that memory refuses: its eviction may have written
        // nothing, and an older value must not be left there.
        let refused = out
            .turned_away(&below)
            .map(|it| write_of(&it.by_ref(), &self.clock, self.weighs_bytes));
        self.lower.push(&below, refused.as_ref().unwrap_or(write), &mut out.writes);
        out.writes.extend(refused);
    }

    /// Notes that the value of a key that was fetched ahead goes, with nobody having asked for it.
    #[inline]
    fn displace(&self, locked: &Locked<'_, K, V, S>) {
        if let Some(prefetcher) = self.prefetcher.get() {
            prefetcher.displaced(locked.hash());
        }
    }

    fn store_unless_overtaken(
        &self,
        ticket: &Ticket<K, V, S>,
        value: V,
        options: &InsertOptions,
    ) -> bool {
        let terms = self.terms(ticket.key(), &value, options, Some(ticket.stamp()));
        terms.is_some_and(|terms| self.store_on_terms(ticket, value, terms))
    }

    fn store_on_terms(&self, ticket: &Ticket<K, V, S>, value: V, terms: Terms) -> bool {
        let mut out = Outgoing::default();
        let key = ticket.key().clone();
        let valid = self.is_valid(terms.attributes.as_deref());
        let Prepared { entry, write } = self.prepare(&key, value, terms);
        let Some(mut locked) = ticket.redeem().filter(|_| valid) else {
            self.counters.superseded.increment();
            return false;
        };
        self.store(&mut locked, key, entry, write.as_ref(), &mut out);
        locked.release(&out);
        true
    }

    /// Invalidates the tags of these numbers, in all tiers.
    pub(crate) async fn invalidate(&self, numbers: Vec<u64>) {
        if numbers.is_empty() {
            return;
        }
        let time = self.memory.tags.invalidate(&numbers);
        let tiers = self.lower.tiers.iter();
        join_all(tiers.map(|tier| tier.note_invalidated(time, &numbers))).await;
    }

    /// Whether no tag has been invalidated since the value was made.
    fn is_valid(&self, attributes: Option<&Attributes>) -> bool {
        attributes.is_none_or(|it| it.is_valid(&self.memory.tags))
    }

    pub(crate) async fn get_below(&self, key: &K, ticket: &Ticket<K, V, S>) -> Option<Landed<V>> {
        for (tier, reads) in self.lower.with_reads() {
            let started = Instant::now();
            let found = tier.get(key).await;
            reads.record(started.elapsed(), 1);
            if let Some(found) = found {
                // One that is not fresh any more does not keep the tiers below from being asked.
                if let Some(landed) = self.promote(found, ticket) {
                    return Some(landed);
                }
            }
        }
        None
    }

    /// Brings a value up into memory, with the time that it has left; gives it back if it is fresh.
    fn promote(&self, found: Found<V>, ticket: &Ticket<K, V, S>) -> Option<Landed<V>> {
        let Found { value, expires_at, attributes } = found;
        if !self.is_valid(attributes.as_deref()) {
            return None;
        }
        let key = ticket.key().clone();
        let life = life_of(expires_at, attributes.as_deref(), &self.memory.tags);
        let entry = self.memory.entry(&key, value.clone(), expires_at, attributes.clone(), true);
        match ticket.redeem() {
            Some(mut locked) => {
                let mut out = Outgoing::default();
                locked.insert(key, entry, &mut out);
                locked.release(&out);
            }
            None => self.counters.superseded.increment(),
        }
        self.memory.is_fresh(&life).then_some(Landed {
            value,
            attributes,
            good_at: ticket.stamp().local,
        })
    }

    /// Puts a value into memory alone, unless its key is there, is not `current` any more where it is
    /// from, or is written meanwhile; tells whether it did.
    pub(crate) fn warm(&self, key: K, found: Found<V>, current: impl Fn(&K) -> bool) -> bool {
        let Found { value, expires_at, attributes } = found;
        self.lower.watch(&key, true);
        let ticket = self.memory.ticket(&key);
        // After the ticket: what was written before it is seen here, and what is written after it
        // overtakes it.
        let valid = self.is_valid(attributes.as_deref());
        if !valid || !current(&key) || self.memory.contains(&key) {
            return false;
        }
        let entry = self.memory.entry(&key, value, expires_at, attributes, true);
        let Some(mut locked) = ticket.redeem() else { return false };
        let mut out = Outgoing::default();
        locked.insert(key, entry, &mut out);
        locked.release(&out);
        true
    }

    /// How much more memory takes, in the unit of its capacity.
    #[cfg(feature = "disk")]
    pub(crate) fn room_in_memory(&self) -> u64 {
        let stats = self.memory.stats();
        let held = if self.weighs_bytes { stats.bytes } else { stats.entries };
        stats.capacity.saturating_sub(held)
    }

    /// An older value in place of an error, if there is one that may be.
    fn covered(&self, key: &K, error: LoadError) -> Result<V, LoadError> {
        match error {
            LoadError::Loader(_) => self.serve_on_error(key).ok_or(error),
            LoadError::NotKept(_) => Err(error),
        }
    }

    /// An older value that may be served because the loader has failed.
    fn serve_on_error(&self, key: &K) -> Option<V> {
        let (value, life) = self.memory.peek(key)?;
        let serves = self.freshness.serves_on_error(&life, self.clock.now());
        serves.then(|| {
            self.counters.stale_on_error.increment();
            value
        })
    }

    /// Queues everything in memory for the tiers below, waiting for room in their queues.
    pub(crate) async fn write_all_down(&self) {
        for (key, weight) in self.memory.snapshot(|key, entry| (key.clone(), entry.weight)) {
            let weight = u64::from(weight);
            let weight = if self.weighs_bytes { weight } else { 0 };
            let mut any_open = false;
            for tier in &self.lower.tiers {
                let room = tier.room(weight);
                if room == Room::Full {
                    tier.flush().await;
                }
                any_open |= room != Room::Closed;
            }
            if !any_open {
                return;
            }
            // Looked up again under the lock: it may have been written or removed meanwhile.
            let mut dropped = Vec::new();
            let locked = self.memory.lock(&key);
            let entry = locked.entry_of(&key);
            if let Some(entry) = &entry {
                let entry = entry.by_ref();
                self.lower.demote(&key, entry, &self.clock, self.weighs_bytes, &mut dropped);
            }
            drop(locked);
        }
    }

    /// Removes the value that one which is not kept takes the place of, unless it was written since. One below
    /// memory would have come up before the load began, so where memory has none nobody below is troubled.
    fn remove_older(&self, ticket: &Ticket<K, V, S>) {
        let key = ticket.key();
        let mut out = Outgoing::default();
        let Some(mut locked) = ticket.redeem() else { return };
        if locked.entry_of(key).is_some() {
            self.displace(&locked);
            locked.remove(key, &mut out);
            self.lower.push(key, &Write::Remove, &mut out.writes);
        }
        locked.release(&out);
    }

    pub(crate) async fn load<F, Fut, R, E>(
        &self,
        ticket: &Ticket<K, V, S>,
        loader: F,
    ) -> Result<Landed<V>, LoadError>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<R, E>> + Send,
        R: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let started = Instant::now();
        let loaded = loader().await;
        let took = started.elapsed();
        self.counters.load_nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        let Loaded { value, options } = match loaded {
            Ok(loaded) => loaded.into(),
            Err(error) => match error.into().downcast::<NotKept>() {
                Ok(nothing) => {
                    self.counters.loads.increment();
                    self.counters.note_load(took);
                    self.note_load(ticket.hash(), || Outcome::Absent);
                    self.remove_older(ticket);
                    return Err(LoadError::NotKept(Arc::from(nothing.into_reason())));
                }
                Err(error) => {
                    self.counters.load_failures.increment();
                    self.note_load(ticket.hash(), || Outcome::Failed);
                    return Err(LoadError::Loader(Arc::from(error)));
                }
            },
        };
        self.counters.loads.increment();
        self.counters.note_load(took);
        self.note_load(ticket.hash(), || {
            if self.is_absent(&value) { Outcome::Absent } else { Outcome::Found }
        });
        let Some(terms) = self.terms(ticket.key(), &value, &options, Some(ticket.stamp())) else {
            self.remove_older(ticket);
            return Ok(Landed { value, attributes: None, good_at: ticket.stamp().local });
        };
        let attributes = terms.attributes.clone();
        self.store_on_terms(ticket, value.clone(), terms);
        Ok(Landed { value, attributes, good_at: ticket.stamp().local })
    }
}

/// What decides about the life of an entry with this deadline.
fn life_of(expires_at: Millis, attributes: Option<&Attributes>, tags: &TagTable) -> Life {
    attributes.map_or(Life::until(expires_at), |attributes| Life {
        deadline: expires_at,
        stale: attributes.standing(tags).0 == Standing::Stale,
        windows: attributes.windows,
    })
}

/// A time to live that is shorter by up to `percent`, evenly at random, and a millisecond at least; one
/// for ever stays so.
fn shortened(ttl: Millis, percent: u8) -> Millis {
    if percent == 0 || ttl >= millis(Duration::MAX) {
        return ttl;
    }
    let most = u128::from(ttl) * u128::from(percent.min(100)) / 100;
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    (ttl - fastrand::u64(..=most)).max(1)
}

impl<K, V, S> Sink<K> for Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    fn changed(&self, key: &K, shared: Tier) {
        let mut out = Outgoing::default();
        let mut locked = self.memory.overtake(key, &mut out);
        locked.invalidate(key, &mut out);
        for tier in self.lower.tiers.iter().filter(|it| it.tier() != shared) {
            tier.push(key, Write::Remove, &mut out.writes);
        }
        locked.release(&out);
    }

    fn forget(&self, key: &K) {
        let mut out = Outgoing::default();
        let mut locked = self.memory.overtake(key, &mut out);
        locked.invalidate(key, &mut out);
        locked.release(&out);
    }

    fn forget_all(&self) {
        // First: what has been asked for by now must not come into memory behind its back.
        self.memory.overtake_all();
        self.memory.invalidate_all();
    }

    fn tags_invalidated<'a>(&'a self, numbers: &'a [u64], shared: Tier) -> BoxFuture<'a, ()> {
        let time = self.memory.tags.invalidate(numbers);
        Box::pin(async move {
            for tier in self.lower.tiers.iter().filter(|it| it.tier() != shared) {
                tier.note_invalidated(time, numbers).await;
            }
        })
    }

    fn tags_known(&self) {
        let invalid = |attributes: &Attributes| {
            attributes.shared_standing(&self.memory.tags) != Standing::Good
        };
        let invalid: Vec<K> = self
            .memory
            .snapshot(|key, entry| {
                entry.attributes.is_some_and(|it| invalid(&it)).then(|| key.clone())
            })
            .flatten()
            .collect();
        invalid.iter().for_each(|key| self.forget(key));
    }
}

impl<K, V, S> Sweep for Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    fn sweep(&self) {
        self.memory.remove_expired();
    }
}
