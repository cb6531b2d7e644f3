//! A cache's end of what the tier is told: which key a change is for, and who lets its entry go.
//!
//! Most names tell their key. A name with a hash in it does not, so such keys are remembered from before
//! their value is asked for or written until they are forgotten: there is room for a number of them, and
//! one that falls out takes its entry in memory along. So a change whose hash is not known here is of a
//! key that memory does not have.
//!
//! Keys that come before the server has promised to tell of changes are remembered, too, and let go when
//! it has. After that, or if there are too many of them, a promise empties all of memory.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::invalidation::{Changed, Listener};
use super::keys::Names;
use crate::lower::{Sealer, Sink, Tier};
use crate::stats::Counter;

/// Keys without a telling name that memory may hold, and their bytes.
const HASHED_MAX: usize = 65_536;
const HASHED_BYTES_MAX: usize = 32 << 20;
/// Keys that may come before the first promise without all of memory being emptied for it.
const EARLY_MAX: usize = 16_384;
/// How often a user's code may panic before what it breaks off is left as it is.
const TRIES: usize = 64;

/// Finds the keys of changes, and has their entries let go.
pub(super) struct Ears<K, V> {
    sealer: Arc<Sealer<K, V>>,
    sink: OnceLock<Weak<dyn Sink<K>>>,
    /// Whether changes are told at all.
    follows: bool,
    /// Whether no promise has come yet, so that keys are to be remembered.
    is_early: AtomicBool,
    early: Mutex<Early<K>>,
    hashed: Mutex<Hashed<K>>,
    invalidations: Counter,
    resets: AtomicU64,
}

/// The keys that came before the first promise.
enum Early<K> {
    Keys(Vec<K>),
    TooMany,
    Over,
}

/// Keys by the hashes in their names, in the order in which they came.
struct Hashed<K> {
    keys: HashMap<u128, (K, usize)>,
    order: VecDeque<u128>,
    bytes: usize,
}

impl<K: Eq + Clone> Hashed<K> {
    /// Remembers a key; what falls out for it goes into `out`.
    fn insert(&mut self, hash: u128, key: &K, bytes: usize, out: &mut Vec<K>) {
        if let Some((known, _)) = self.keys.get_mut(&hash) {
            if known != key {
                // Two keys under one name: in Redis, too, only one of them can be there.
                out.push(std::mem::replace(known, key.clone()));
            }
            return;
        }
        self.keys.insert(hash, (key.clone(), bytes));
        self.order.push_back(hash);
        self.bytes += bytes;
        while self.keys.len() > 1 && (self.keys.len() > HASHED_MAX || self.bytes > HASHED_BYTES_MAX)
        {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some((key, bytes)) = self.keys.remove(&oldest) {
                self.bytes -= bytes;
                out.push(key);
            }
        }
    }
}

impl<K, V> Ears<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(sealer: Arc<Sealer<K, V>>, follows: bool) -> Self {
        let hashed = Hashed { keys: HashMap::new(), order: VecDeque::new(), bytes: 0 };
        Self {
            sealer,
            sink: OnceLock::new(),
            follows,
            is_early: AtomicBool::new(true),
            early: Mutex::new(Early::Keys(Vec::new())),
            hashed: Mutex::new(hashed),
            invalidations: Counter::default(),
            resets: AtomicU64::new(0),
        }
    }

    /// Sets who lets entries go; `false` if it was set before.
    pub(super) fn attach(&self, sink: Weak<dyn Sink<K>>) -> bool {
        self.sink.set(sink).is_ok()
    }

    /// Keys that others have changed, and how often memory was emptied.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.invalidations.get(), self.resets.load(Ordering::Relaxed))
    }

    fn sink(&self) -> Option<Arc<dyn Sink<K>>> {
        self.sink.get()?.upgrade()
    }

    /// Remembers a key whose value may come into memory, if it would not be found otherwise.
    pub(super) fn watch(&self, key: &K, warmed: bool) {
        if !self.follows {
            return;
        }
        // Acquire: pairs with the Release in `lost`. Whoever sees the first promise asks for values
        // that are followed; whoever does not comes to the lock, and finds the set or its end there.
        if !warmed && self.is_early.load(Ordering::Acquire) {
            let key = key.clone();
            let mut early = self.early.lock();
            if let Early::Keys(keys) = &mut *early {
                if keys.len() < EARLY_MAX {
                    keys.push(key);
                } else {
                    let keys = std::mem::replace(&mut *early, Early::TooMany);
                    drop(early);
                    drop(keys);
                }
            }
        }
        // A key that cannot be written is in no other machine's hands.
        let Some(bytes) = self.sealer.key(key) else { return };
        let Some(hash) = Names::hash(&bytes) else { return };
        let mut fallen = Vec::new();
        self.hashed.lock().insert(hash, key, bytes.len(), &mut fallen);
        if let Some(sink) = self.sink().filter(|_| !fallen.is_empty()) {
            fallen.iter().for_each(|key| sink.forget(key));
        }
    }

    /// Takes the keys that came before the first promise, if this is the first.
    fn take_early(&self) -> Early<K> {
        let early = std::mem::replace(&mut *self.early.lock(), Early::Over);
        self.is_early.store(false, Ordering::Release);
        early
    }
}

impl<K, V> Listener for Ears<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn changed(&self, entry: Changed<'_>) -> bool {
        let key = match entry {
            Changed::Key(bytes) => match self.sealer.key_of(bytes) {
                Some(key) => key,
                None => return false,
            },
            Changed::Hash(hash) => match self.hashed.lock().keys.get(&hash) {
                Some((key, _)) => key.clone(),
                None => return true,
            },
        };
        self.invalidations.increment();
        let Some(sink) = self.sink() else { return true };
        surely(|| sink.changed(&key, Tier::Redis));
        true
    }

    fn tags_invalidated<'a>(&'a self, numbers: &'a [u64]) -> BoxFuture<'a, ()> {
        let sink = self.sink();
        Box::pin(async move {
            if let Some(sink) = sink {
                sink.tags_invalidated(numbers, Tier::Redis).await;
            }
        })
    }

    fn tags_known(&self) -> BoxFuture<'_, ()> {
        let sink = self.sink();
        Box::pin(async move {
            let Some(sink) = sink else { return };
            // It fails only when the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || surely(|| sink.tags_known())).await;
        })
    }

    fn lost(&self, promised: bool) -> BoxFuture<'_, ()> {
        let early = if promised { self.take_early() } else { Early::Over };
        let sink = self.sink();
        if !matches!(early, Early::Keys(_)) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        Box::pin(async move {
            let Some(sink) = sink else { return };
            let work = move || match early {
                Early::Keys(keys) => {
                    keys.iter().for_each(|key| surely(|| sink.forget(key)));
                }
                Early::TooMany | Early::Over => surely(|| sink.forget_all()),
            };
            // It fails only when the runtime shuts down.
            let _ = tokio::task::spawn_blocking(work).await;
        })
    }
}

/// Does something that a user's `Drop` or listener may break off, again until it comes to its end.
fn surely(work: impl Fn()) {
    for _ in 0..TRIES {
        if catch_unwind(AssertUnwindSafe(&work)).is_ok() {
            return;
        }
        tracing::error!("a panic while entries were let go that another machine may have changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_keys_are_bounded_in_number_and_bytes_and_the_oldest_falls_out() {
        let mut hashed = Hashed { keys: HashMap::new(), order: VecDeque::new(), bytes: 0 };
        let mut out = Vec::new();
        for key in 0..HASHED_MAX as u128 {
            hashed.insert(key, &key, 101, &mut out);
            hashed.insert(key, &key, 101, &mut out);
        }
        assert_eq!((out.len(), hashed.keys.len()), (0, HASHED_MAX));
        hashed.insert(1 << 100, &(1 << 100), 101, &mut out);
        assert_eq!(std::mem::take(&mut out), [0]);
        hashed.insert(1 << 101, &(1 << 101), HASHED_BYTES_MAX + 1, &mut out);
        assert_eq!((out.len(), hashed.keys.len(), hashed.order.len()), (HASHED_MAX, 1, 1));
        out.clear();
        hashed.insert(1 << 101, &7, 101, &mut out);
        assert_eq!(out, [1 << 101], "another key of the same hash takes its place");
    }
}
