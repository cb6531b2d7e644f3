//! Invalidating many entries at once: by tag, by event, by namespace, by predicate.
//!
//! All but the predicate come down to tags, whose rules are in [`tags`](crate::tags).

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use crate::cache::{Cache, InsertOptions, Loaded};
use crate::error::LoadError;
use crate::hasher::DefaultHashBuilder;
use crate::lower::Write;
use crate::memory::Outgoing;
use crate::tags::Tag;

/// What events mean: for each type of event, the tags that it invalidates.
#[derive(Default)]
pub(crate) struct Events {
    meanings: HashMap<TypeId, Vec<Arc<Meaning>>>,
}

type Meaning = dyn Fn(&dyn Any) -> Vec<Tag> + Send + Sync;

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Invalidates every entry with this tag, in all tiers.
    ///
    /// When this returns, no call that begins finds an entry in this cache whose value was made before,
    /// nor is a value kept whose load began before. Entries get tags from
    /// [`InsertOptions::tags`], from a loader ([`Loaded::with_options`]) or from
    /// [`CacheBuilder::tags_by`](crate::CacheBuilder::tags_by).
    ///
    /// A value that is read elsewhere before this call and inserted after it counts as made after it. Load
    /// it with [`get_or_load`](Self::get_or_load), or [`reserve`](Self::reserve) its key before it is read.
    ///
    /// # Cancel safety
    ///
    /// In memory it is done at the first poll; dropped after that, a tier below may bring entries back
    /// with the next start.
    ///
    /// # Cost
    ///
    /// Two short locks, whatever the number of entries. What is invalid takes its room in memory until
    /// it is asked for, pushed out, or swept (each minute, unless told otherwise). With a disk tier, an
    /// append to a file; with Redis, a round trip.
    ///
    /// # Examples
    ///
    /// ```
    /// use cache_tiered::{Cache, InsertOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pages = Cache::<String, String>::builder("pages").build()?;
    /// let options = InsertOptions::default().tag("user:42").tag("team:7");
    /// pages.insert_with("/users/42".to_owned(), "Ada".to_owned(), options);
    /// pages.invalidate_tag("team:7").await;
    /// assert_eq!(pages.get_in_memory("/users/42"), None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn invalidate_tag(&self, tag: impl Into<Tag>) {
        self.inner().invalidate(vec![tag.into().number()]).await;
    }

    /// Invalidates every entry with one of these tags; otherwise as
    /// [`invalidate_tag`](Self::invalidate_tag).
    pub async fn invalidate_tags<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) {
        self.inner().invalidate(tags.into_iter().map(|tag| tag.into().number()).collect()).await;
    }

    /// Declares every entry with one of these tags stale, as if its time to live had just ended.
    ///
    /// A [`LoadingCache`](crate::LoadingCache) serves such an entry while it loads a newer value, and where
    /// the loader fails, as far as the windows of the cache or of the entry are not zero. For all others
    /// it is gone.
    ///
    /// # Cancel safety
    ///
    /// As for [`invalidate_tag`](Self::invalidate_tag).
    pub async fn soften_tags<T: Into<Tag>>(&self, tags: impl IntoIterator<Item = T>) {
        self.inner()
            .invalidate(tags.into_iter().map(|tag| tag.into().soft_number()).collect())
            .await;
    }

    /// Says which tags an event invalidates; [`emit`](Self::emit) does it.
    ///
    /// Events are told apart by their type; of several meanings of one type all hold. What is said here
    /// stays as long as the cache.
    ///
    /// # Examples
    ///
    /// ```
    /// # use cache_tiered::{Cache, InsertOptions};
    /// struct Renamed { user: u64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pages = Cache::<String, String>::builder("pages").build()?;
    /// pages.on_event(|event: &Renamed| [format!("user:{}", event.user)]);
    /// # let options = InsertOptions::default().tag("user:42");
    /// # pages.insert_with("/users/42".to_owned(), "Ada".to_owned(), options);
    /// pages.emit(&Renamed { user: 42 }).await;
    /// # assert_eq!(pages.get_in_memory("/users/42"), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_event<E, I>(&self, tags: impl Fn(&E) -> I + Send + Sync + 'static)
    where
        E: Any,
        I: IntoIterator,
        I::Item: Into<Tag>,
    {
        let meaning = move |event: &dyn Any| {
            let tags = event.downcast_ref().map(|event| tags(event).into_iter().map(Into::into));
            tags.into_iter().flatten().collect()
        };
        let mut events = self.inner().events.write();
        events.meanings.entry(TypeId::of::<E>()).or_default().push(Arc::new(meaning));
    }

    /// Invalidates what an event stands for by [`on_event`](Self::on_event); nothing, if nobody said.
    ///
    /// # Cancel safety
    ///
    /// As for [`invalidate_tag`](Self::invalidate_tag).
    pub async fn emit<E: Any>(&self, event: &E) {
        let meanings = self.inner().events.read().meanings.get(&TypeId::of::<E>()).cloned();
        let tags = meanings.into_iter().flatten().flat_map(|meaning| meaning(event));
        self.inner().invalidate(tags.map(Tag::number).collect()).await;
    }

    /// Removes every entry in memory that a predicate picks out, from all tiers; tells how many.
    ///
    /// The slow way, for what has no tag. Entries that only tiers below hold are not looked at. One that is
    /// written meanwhile may be looked at or not.
    ///
    /// # Cost
    ///
    /// A clone of each key in memory and a call of the predicate on this thread, then a removal of what it
    /// picked out.
    pub async fn invalidate_if(&self, predicate: impl Fn(&K, &V) -> bool + Send + Sync) -> u64 {
        let inner = self.inner();
        let picked = |key: &K, value: &V| predicate(key, value).then(|| key.clone());
        let picked: Vec<K> =
            inner.memory.snapshot(|key, entry| picked(key, entry.value)).flatten().collect();
        let mut removed = 0;
        for key in picked {
            let mut out = Outgoing::default();
            let mut locked = inner.memory.overtake(&key, &mut out);
            // It may have been replaced since by one that is not meant.
            let entry = locked.entry_of(&key);
            if entry.as_ref().is_none_or(|entry| predicate(&key, &entry.value)) {
                locked.remove(&key, &mut out);
                inner.lower.push(&key, &Write::Remove, &mut out.writes);
                removed += 1;
            }
            locked.release(&out);
            drop(entry);
        }
        removed
    }

    /// Returns a view of the cache whose entries can be invalidated together.
    ///
    /// The keys are those of the cache: a key that is put in through two namespaces is one entry, and
    /// belongs to the last.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Namespace<K, V, S> {
        Namespace { cache: self.clone(), tag: Tag::new(format!("namespace\0{name}")) }
    }
}

/// A view of a cache whose entries carry a common tag; see [`Cache::namespace`].
pub struct Namespace<K, V, S = DefaultHashBuilder> {
    cache: Cache<K, V, S>,
    tag: Tag,
}

impl<K, V, S> Clone for Namespace<K, V, S> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), tag: self.tag }
    }
}

impl<K, V, S> fmt::Debug for Namespace<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<K, V, S> Namespace<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Puts a value in, under the cache's own time to live.
    pub fn insert(&self, key: K, value: V) {
        self.insert_with(key, value, InsertOptions::default());
    }

    /// Puts a value in, with options for this entry alone.
    pub fn insert_with(&self, key: K, value: V, options: InsertOptions) {
        self.cache.insert_with(key, value, options.tag(self.tag));
    }

    /// As [`Cache::get_or_load`]; a value that is loaded belongs to the namespace.
    ///
    /// # Errors
    ///
    /// [`LoadError::Loader`] with the loader's own error.
    ///
    /// # Cancel safety
    ///
    /// As for [`Cache::get_or_load`].
    pub async fn get_or_load<F, Fut, R, E>(&self, key: &K, loader: F) -> Result<V, LoadError>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<R, E>> + Send,
        R: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let tag = self.tag;
        let loader = || async move {
            let Loaded { value, options } = loader().await?.into();
            Ok::<_, E>(Loaded::with_options(value, options.tag(tag)))
        };
        self.cache.get_or_load(key, loader).await
    }

    /// Invalidates every entry of the namespace: as [`Cache::invalidate_tag`].
    ///
    /// # Cancel safety
    ///
    /// As for [`Cache::invalidate_tag`].
    pub async fn clear(&self) {
        self.cache.invalidate_tag(self.tag).await;
    }

    /// Returns the cache itself, for look-ups and removals.
    #[must_use]
    pub fn cache(&self) -> &Cache<K, V, S> {
        &self.cache
    }
}
