//! A cache together with the way to load what it lacks, so that it can do so on its own.
//!
//! A loader that belongs to a call runs in the future of that call and may borrow from it. One that
//! refreshes a value in the background has to outlive every call, so it is given once, here. All loads
//! of a key are one flight, whoever started them: a call waits for a background load that is under way
//! only if it has no value to give meanwhile.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::{Cache, Loaded};
use crate::error::LoadError;
use crate::flights::Landed;
use crate::freshness::State;
use crate::hasher::DefaultHashBuilder;
use crate::memory::Role;
use crate::prefetch::Prefetcher;

type BoxError = Box<dyn Error + Send + Sync>;
type Loading<V> = Pin<Box<dyn Future<Output = Result<Loaded<V>, BoxError>> + Send>>;
type Loader<K, V> = dyn Fn(K) -> Loading<V> + Send + Sync;

/// A [`Cache`] with a loader: values that it lacks are loaded, and such as grow old are loaded anew.
///
/// Made by [`Cache::loading`]. What is served meanwhile, and when a load begins early, is told to the
/// builder of the cache: [`stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate),
/// [`stale_if_error`](crate::CacheBuilder::stale_if_error),
/// [`refresh_ahead`](crate::CacheBuilder::refresh_ahead) and
/// [`early_refresh`](crate::CacheBuilder::early_refresh). What is loaded before it is asked for, too:
/// [`prefetch`](crate::CacheBuilder::prefetch) and [`related`](crate::CacheBuilder::related).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use cache_tiered::Cache;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = Cache::<u64, String>::builder("users")
///     .ttl(Duration::from_secs(60))
///     .stale_while_revalidate(Duration::from_secs(30))
///     .stale_if_error(Duration::from_secs(3_600))
///     .build()?;
/// let users = cache.loading(|id: u64| async move { Ok::<_, std::io::Error>(format!("user {id}")) });
/// assert_eq!(users.get(&7).await?, "user 7");
/// # Ok(())
/// # }
/// ```
pub struct LoadingCache<K, V, S = DefaultHashBuilder> {
    cache: Cache<K, V, S>,
    loader: Arc<Loader<K, V>>,
}

impl<K, V, S> Clone for LoadingCache<K, V, S> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), loader: Arc::clone(&self.loader) }
    }
}

impl<K, V, S> fmt::Debug for LoadingCache<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoadingCache").field(&self.cache).finish()
    }
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Gives the cache a loader for what it lacks; both handles share one cache.
    pub fn loading<F, Fut, R, E>(&self, loader: F) -> LoadingCache<K, V, S>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        let loader = move |key| -> Loading<V> {
            let load = loader(key);
            Box::pin(async move { load.await.map(Into::into).map_err(Into::into) })
        };
        // Relaxed: it is only told.
        self.inner().counters.has_loader.store(true, Ordering::Relaxed);
        LoadingCache { cache: self.clone(), loader: Arc::new(loader) }
    }
}

impl<K, V, S> LoadingCache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Returns the value: from a tier that has it, or else from the loader.
    ///
    /// One that is not fresh any more is returned all the same within the windows of the cache, and a
    /// newer one is loaded in the background, once however many ask. That takes a runtime of tokio;
    /// elsewhere the call loads itself.
    ///
    /// # Errors
    ///
    /// [`LoadError::Loader`] with the loader's own error, where no older value may be served in place
    /// of it.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; a background load goes on.
    pub async fn get(&self, key: &K) -> Result<V, LoadError> {
        let inner = self.cache.inner();
        if let Some((value, life)) = inner.memory.read(key) {
            if let Some(prefetcher) = inner.prefetcher.get()
                && prefetcher.watches()
            {
                self.note_hit(prefetcher, key);
            }
            match inner.judge(&life) {
                State::Fresh => return Ok(value),
                State::Due => {
                    self.refresh(key);
                    return Ok(value);
                }
                State::Stale if self.refresh(key) => {
                    inner.counters.stale_hits.increment();
                    return Ok(value);
                }
                State::Stale | State::Old => {}
            }
        }
        if let Some(prefetcher) = inner.prefetcher.get() {
            let hash = inner.memory.hash(key);
            prefetcher.missed(hash);
            self.fetch_after(prefetcher, hash, key);
        }
        self.cache.load_missing(key, || (self.loader)(key.clone())).await
    }

    /// Goes on predicting from a key that was fetched ahead, when it is hit for the first time.
    fn note_hit(&self, prefetcher: &Arc<Prefetcher<K>>, key: &K) {
        let hash = self.cache.inner().memory.hash(key);
        if prefetcher.hit(hash) {
            self.fetch_after(prefetcher, hash, key);
        }
    }

    /// Fetches in the background what is expected to be asked for after this key.
    #[inline(never)]
    fn fetch_after(&self, prefetcher: &Arc<Prefetcher<K>>, hash: u64, key: &K) {
        for key in prefetcher.expected_after(hash, key) {
            self.fetch_ahead(prefetcher, key);
        }
    }

    fn fetch_ahead(&self, prefetcher: &Arc<Prefetcher<K>>, key: K) {
        let inner = self.cache.inner();
        if inner.memory.contains(&key) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Some(permit) = prefetcher.permit() else { return prefetcher.skip() };
        // Whoever loads it already will do.
        let Role::Leader(ticket, publish) = inner.join(&key) else { return };
        let hash = inner.memory.hash(&key);
        if !prefetcher.begin(hash, key, |key| inner.memory.contains(key)) {
            return;
        }
        let landing = Landing { prefetcher: Arc::clone(prefetcher), hash, kept: false };
        let (inner, loader) = (Arc::clone(inner), Arc::clone(&self.loader));
        runtime.spawn(async move {
            let mut landing = landing;
            let key = ticket.key();
            let found = match inner.memory.peek_fresh(key) {
                Some(value) => {
                    Some(Landed { value, attributes: None, good_at: ticket.stamp().local })
                }
                None => inner.get_below(key, &ticket).await,
            };
            let result = match found {
                Some(landed) => Ok(landed),
                None => inner.load(&ticket, || loader(key.clone())).await,
            };
            landing.kept = result.is_ok() && ticket.redeem().is_some();
            drop(landing);
            // Whoever waits gets this; if nobody does, there is nobody to tell.
            let _ = publish.send(Some(result));
            drop(permit);
        });
    }

    /// Has the value loaded anew in the background; whatever is there is served meanwhile.
    ///
    /// Tells whether a newer value is on its way: not outside of a runtime of tokio, and not while 64 such
    /// loads of this cache are under way. A loader that fails leaves the value as it is.
    pub fn refresh(&self, key: &K) -> bool {
        let inner = self.cache.inner();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
        let Ok(permit) = Arc::clone(&inner.refreshes).try_acquire_owned() else { return false };
        // Whoever loads it already will do.
        let Role::Leader(ticket, publish) = inner.join(key) else { return true };
        let (inner, loading) = (Arc::clone(inner), (self.loader)(key.clone()));
        runtime.spawn(async move {
            let result = inner.load(&ticket, || loading).await;
            inner.counters.refreshes.increment();
            // Whoever waits gets this; if nobody does, there is nobody to tell.
            let _ = publish.send(Some(result));
            drop(permit);
        });
        true
    }

    /// Returns the cache itself.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V, S> {
        &self.cache
    }
}

/// Tells how a fetch ahead has ended, also when its loader panics.
struct Landing<K> {
    prefetcher: Arc<Prefetcher<K>>,
    hash: u64,
    kept: bool,
}

impl<K> Drop for Landing<K> {
    fn drop(&mut self) {
        self.prefetcher.landed(self.hash, self.kept);
    }
}
