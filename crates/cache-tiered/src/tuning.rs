//! What of a cache can be changed while it is in use.
//!
//! A change holds for what comes in from then on; an entry keeps the time to live, and the windows past
//! it, that it came with. That takes care where a window changes: an entry's deadline is the end of
//! its time to live and of its cache's windows, and when it stops being fresh is reckoned back from
//! it. So the windows of the builder stay those that a deadline is reckoned with, and an entry that
//! comes under others carries them like windows of its own, in every tier.
//!
//! The numbers lie in atomics that whoever writes an entry reads, relaxed and each for itself. A
//! look-up in memory reads none of them.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::cache::{Cache, Inner};
use crate::clock::{Millis, NEVER, millis};
use crate::error::Problem;
use crate::freshness::{Freshness, Windows};
use crate::prefetch::{Prefetch, Prefetcher};

/// What of a cache can be changed while it is in use: see [`Cache::tune`].
///
/// Got from [`Cache::tuning`], changed field by field, and given back.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Tuning {
    /// The time to live of entries that name none; `None` until they are pushed out.
    pub ttl: Option<Duration>,
    /// By how many percent at most a time to live is shortened at random.
    pub ttl_jitter: u8,
    /// The time to live of what means that there is nothing; `None` is that of all others. Only where
    /// the cache can tell: [`CacheBuilder::absent_if`](crate::CacheBuilder::absent_if).
    pub negative_ttl: Option<Duration>,
    /// [`CacheBuilder::stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate).
    pub stale_while_revalidate: Duration,
    /// [`CacheBuilder::stale_if_error`](crate::CacheBuilder::stale_if_error).
    pub stale_if_error: Duration,
    /// [`CacheBuilder::refresh_ahead`](crate::CacheBuilder::refresh_ahead); holds for all entries at
    /// once.
    pub refresh_ahead: Duration,
    /// [`CacheBuilder::early_refresh`](crate::CacheBuilder::early_refresh); holds for all entries at
    /// once.
    pub early_refresh: f64,
    /// Encoded bytes from which on values are compressed in the tiers below memory, `None` for no
    /// value. Only where there are such tiers, and a [`Compression`](crate::Compression) was chosen.
    pub compress_above: Option<usize>,
    /// What a [`LoadingCache`](crate::LoadingCache) loads before it is asked for; `None` is nothing,
    /// not even what is [related](crate::CacheBuilder::related).
    pub prefetch: Option<Prefetch>,
}

/// A change of a cache that cannot be made; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TuneError {
    /// The cache's name.
    pub cache: String,
    /// Every problem found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for TuneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache {:?}: {}", self.cache, crate::error::list(&self.problems))
    }
}

impl Error for TuneError {}

/// A window as an entry of its own holds it: one less than what stands for none, at most.
pub(crate) fn window(window: Millis) -> u32 {
    u32::try_from(window).unwrap_or(u32::MAX).min(u32::MAX - 1)
}

/// The numbers that hold at present.
#[derive(Debug)]
pub(crate) struct Tuned {
    /// Held while they are changed, and to read them all at one time.
    order: Mutex<()>,
    /// Whether a window that deadlines depend on is another than the cache was built with.
    other_windows: AtomicBool,
    /// [`NEVER`] for none, like the next.
    ttl: AtomicU64,
    negative_ttl: AtomicU64,
    ttl_jitter: AtomicU8,
    while_revalidate: AtomicU64,
    if_error: AtomicU64,
    ahead: AtomicU64,
    /// As the bits of an `f64`.
    early: AtomicU64,
}

impl Tuned {
    pub(crate) fn new(
        ttl: Option<Duration>,
        ttl_jitter: u8,
        negative_ttl: Option<Duration>,
        freshness: Freshness,
    ) -> Self {
        let or_never = |ttl: Option<Duration>| AtomicU64::new(ttl.map_or(NEVER, millis));
        Self {
            order: Mutex::new(()),
            other_windows: AtomicBool::new(false),
            ttl: or_never(ttl),
            negative_ttl: or_never(negative_ttl),
            ttl_jitter: AtomicU8::new(ttl_jitter),
            while_revalidate: AtomicU64::new(freshness.while_revalidate),
            if_error: AtomicU64::new(freshness.if_error),
            ahead: AtomicU64::new(freshness.ahead),
            early: AtomicU64::new(freshness.early.to_bits()),
        }
    }

    pub(crate) fn ttl(&self) -> Option<Millis> {
        Self::some(&self.ttl)
    }

    pub(crate) fn negative_ttl(&self) -> Option<Millis> {
        Self::some(&self.negative_ttl)
    }

    pub(crate) fn ttl_jitter(&self) -> u8 {
        self.ttl_jitter.load(Ordering::Relaxed)
    }

    fn some(ttl: &AtomicU64) -> Option<Millis> {
        Some(ttl.load(Ordering::Relaxed)).filter(|ttl| *ttl != NEVER)
    }

    /// Whether an entry that comes now is to carry [`windows`](Self::windows).
    #[inline]
    pub(crate) fn has_other_windows(&self) -> bool {
        self.other_windows.load(Ordering::Relaxed)
    }

    /// The windows of an entry that comes now, in a cache that was built with others.
    pub(crate) fn windows(&self, own: Windows, built: Freshness) -> Windows {
        let tuned = |own: Option<u32>, tuned: &AtomicU64, built: Millis| {
            let tuned = tuned.load(Ordering::Relaxed);
            own.or_else(|| (tuned != built).then(|| window(tuned)))
        };
        Windows {
            while_revalidate: tuned(
                own.while_revalidate,
                &self.while_revalidate,
                built.while_revalidate,
            ),
            if_error: tuned(own.if_error, &self.if_error, built.if_error),
            ..own
        }
    }

    /// What entries are judged by now: no deadline depends on what is changed here.
    pub(crate) fn judging(&self, built: Freshness) -> Freshness {
        Freshness {
            ahead: self.ahead.load(Ordering::Relaxed),
            early: f64::from_bits(self.early.load(Ordering::Relaxed)),
            ..built
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.order.lock()
    }

    fn set(&self, tuning: &Tuning, built: Freshness) {
        let or_never = |ttl: Option<Duration>| ttl.map_or(NEVER, millis);
        self.ttl.store(or_never(tuning.ttl), Ordering::Relaxed);
        self.negative_ttl.store(or_never(tuning.negative_ttl), Ordering::Relaxed);
        self.ttl_jitter.store(tuning.ttl_jitter, Ordering::Relaxed);
        self.while_revalidate.store(millis(tuning.stale_while_revalidate), Ordering::Relaxed);
        self.if_error.store(millis(tuning.stale_if_error), Ordering::Relaxed);
        let windows = self.windows(Windows::default(), built);
        self.other_windows.store(windows != Windows::default(), Ordering::Relaxed);
        self.ahead.store(millis(tuning.refresh_ahead), Ordering::Relaxed);
        self.early.store(tuning.early_refresh.to_bits(), Ordering::Relaxed);
    }
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Returns what holds at present of what [`tune`](Self::tune) changes.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.inner().tuning()
    }

    /// Changes the cache while it is in use; the capacity is [`resize`](Self::resize)'s, the policy
    /// [`set_policy`](Self::set_policy)'s.
    ///
    /// Entries keep the time to live and the windows past it that they came with. A write that is under
    /// way on another thread may see a part of the change.
    ///
    /// # Errors
    ///
    /// [`TuneError`] with everything that the cache cannot do or no cache can; then nothing is changed.
    ///
    /// # Cost
    ///
    /// Some stores; look-ups in memory do not notice. An entry that comes in while
    /// [`stale_while_revalidate`](Tuning::stale_while_revalidate) or
    /// [`stale_if_error`](Tuning::stale_if_error) is not what the cache was built with takes about 130
    /// bytes more, because it carries its windows.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use cache_tiered::Cache;
    ///
    /// let users = Cache::<u64, String>::builder("users").ttl(Duration::from_secs(60)).build()?;
    /// let mut tuning = users.tuning();
    /// tuning.ttl = Some(Duration::from_secs(600));
    /// users.tune(&tuning)?;
    /// assert_eq!(users.tuning(), tuning);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn tune(&self, tuning: &Tuning) -> Result<(), TuneError> {
        self.inner().tune(tuning)
    }
}

impl<K, V, S> Inner<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    pub(crate) fn tuning(&self) -> Tuning {
        let _order = self.tuned.lock();
        self.tuning_in_order()
    }

    fn tuning_in_order(&self) -> Tuning {
        let tuned = &self.tuned;
        let duration = |millis: &AtomicU64| Self::duration(millis.load(Ordering::Relaxed));
        let judging = tuned.judging(self.freshness);
        Tuning {
            ttl: tuned.ttl().map(Self::duration),
            ttl_jitter: tuned.ttl_jitter(),
            negative_ttl: tuned.negative_ttl().map(Self::duration),
            stale_while_revalidate: duration(&tuned.while_revalidate),
            stale_if_error: duration(&tuned.if_error),
            refresh_ahead: Self::duration(judging.ahead),
            early_refresh: judging.early,
            compress_above: self.compress_above(),
            prefetch: self.prefetcher.get().and_then(|prefetcher| prefetcher.options()),
        }
    }

    /// What [`millis`] was told.
    fn duration(millis: Millis) -> Duration {
        if millis >= crate::clock::millis(Duration::MAX) {
            Duration::MAX
        } else {
            Duration::from_millis(millis)
        }
    }

    #[cfg(feature = "__lower")]
    fn compress_above(&self) -> Option<usize> {
        self.sealer.as_ref()?.envelopes.compressing.compress_above()
    }

    #[cfg(not(feature = "__lower"))]
    fn compress_above(&self) -> Option<usize> {
        None
    }

    pub(crate) fn tune(&self, tuning: &Tuning) -> Result<(), TuneError> {
        let order = self.tuned.lock();
        let before = self.tuning_in_order();
        let problems = self.problems(tuning, &before);
        if !problems.is_empty() {
            return Err(TuneError { cache: self.name.clone(), problems });
        }
        self.tuned.set(tuning, self.freshness);
        if let Some(fates) = self.memory.fates() {
            fates.set_ttl(tuning.ttl.map_or(NEVER, millis));
        }
        #[cfg(feature = "__lower")]
        if let Some(sealer) = &self.sealer
            && tuning.compress_above != before.compress_above
        {
            sealer.envelopes.compressing.set_compress_above(tuning.compress_above);
        }
        if tuning.prefetch != before.prefetch {
            let nothing_learned = || Prefetcher::new(Prefetch::default().successions(0), None);
            let prefetcher = self.prefetcher.get_or_init(|| Arc::new(nothing_learned()));
            prefetcher.set_options(tuning.prefetch);
        }
        drop(order);
        Ok(())
    }

    fn problems(&self, tuning: &Tuning, before: &Tuning) -> Vec<Problem> {
        let mut problems = Vec::new();
        if tuning.ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            problems.push(Problem::new("ttl", "0", "must be at least 1ms"));
        }
        if tuning.ttl_jitter > 100 {
            let expected = "must be at most 100 percent";
            problems.push(Problem::new("ttl_jitter", tuning.ttl_jitter, expected));
        }
        if !(tuning.early_refresh >= 0.0 && tuning.early_refresh.is_finite()) {
            let expected = "must be a number from 0 on";
            problems.push(Problem::new("early_refresh", tuning.early_refresh, expected));
        }
        if tuning.negative_ttl != before.negative_ttl && self.absent_if.is_none() {
            let found =
                tuning.negative_ttl.map_or_else(|| "none".to_owned(), |it| format!("{it:?}"));
            let expected =
                "cannot be changed: the cache was not told what means that there is nothing";
            problems.push(Problem::new("negative_ttl", found, expected));
        }
        if tuning.compress_above != before.compress_above && !self.can_compress() {
            let found =
                tuning.compress_above.map_or_else(|| "none".to_owned(), |it| it.to_string());
            let expected = "must be none: the cache has no tier that compresses";
            problems.push(Problem::new("compress_above", found, expected));
        }
        problems.extend(tuning.prefetch.iter().flat_map(Prefetch::problems));
        problems
    }

    #[cfg(feature = "__lower")]
    fn can_compress(&self) -> bool {
        self.sealer.as_ref().is_some_and(|it| it.envelopes.compressing.can_compress())
    }

    #[cfg(not(feature = "__lower"))]
    fn can_compress(&self) -> bool {
        false
    }
}
