//! How long guards have been out, without reading the clock when one is taken.
//!
//! Every guard remembers a *birth*, one of a few small numbers, and each thread counts its guards by
//! birth. About once a second, whenever the pool is looked after, another birth becomes the current one
//! and the time is written beside it; a birth is used again once no guard of it is left. So the oldest
//! guard is as old as the oldest birth that still has one, to within the time for which that birth was
//! current. If guards of all births are out, the current one stays: the age is then that of the oldest
//! all the same, because its birth is not touched.

use std::time::{Duration, Instant};

use crate::sync::{AtomicU8, Mutex, Relaxed};

/// Births that can be told apart.
pub(super) const BIRTHS: usize = if cfg!(loom) { 2 } else { 16 };
/// For how long a birth is the current one, at least.
const PERIOD: Duration = Duration::from_secs(1);

/// When a guard was taken, as a number with a time beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birth(u8);

impl Birth {
    #[inline]
    pub(super) fn index(self) -> usize {
        usize::from(self.0) % BIRTHS
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..BIRTHS as u8).map(Self)
    }
}

/// The current birth, and since when each has been that.
pub(super) struct Births {
    current: AtomicU8,
    since: Mutex<[Instant; BIRTHS]>,
}

impl Births {
    pub(super) fn new(now: Instant) -> Self {
        Self { current: AtomicU8::new(0), since: Mutex::new([now; BIRTHS]) }
    }

    #[inline]
    pub(super) fn current(&self) -> Birth {
        // Relaxed: a taker that reads the former birth makes its guard seem a little older.
        Birth(self.current.load(Relaxed))
    }

    /// Changes the current birth if it has been that for long enough and another is free.
    pub(super) fn pass_time(&self, now: Instant, guards_of: impl Fn(Birth) -> u64) {
        let Some(mut since) = self.since.try_lock() else { return };
        let current = self.current();
        if now.saturating_duration_since(since[current.index()]) < PERIOD {
            return;
        }
        let mut free = std::iter::once(current).chain(Birth::all());
        if let Some(next) = free.find(|birth| guards_of(*birth) == 0) {
            since[next.index()] = now;
            self.current.store(next.0, Relaxed);
        }
    }

    /// Returns the age of the oldest guard.
    pub(super) fn oldest(
        &self,
        now: Instant,
        guards_of: impl Fn(Birth) -> u64,
    ) -> Option<Duration> {
        let since = self.since.lock();
        let alive = Birth::all().filter(|birth| guards_of(*birth) > 0);
        alive.map(|birth| now.saturating_duration_since(since[birth.index()])).max()
    }
}
