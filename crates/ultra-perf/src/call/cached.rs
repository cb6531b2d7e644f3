//! The cache of a function: found in nanoseconds, opened at the first miss, filled by one call of many.
//!
//! A hit is a slot of the handle, a key on the stack, and a look into memory. A miss opens the cache if nobody
//! has, looks below memory and lets one call of those that came at once run the body. What that call was
//! returned and is not kept (`Err`, `None`) goes to the others as a clone, or where it cannot be cloned each of
//! them runs the body for itself.
//!
//! A cache that cannot be opened is told once in the log; the function then does with memory alone, and if that
//! cannot be either, with its body.

use std::collections::HashSet;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cache_tiered::{BuildError, Cache, CacheBuilder, Hit, InsertOptions, Loaded, NotKept, Tag};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use super::invalidation::{Forget, Target, functions};
use super::key::{CallKey, CallKeyBuf};
use super::kind::Kind;
use super::share::Share;
use super::{Call, Site, found, meter, slot};
use crate::UltraPerf;

/// Refreshes in the background of one function; what comes on top stays stale until it is asked for again.
const REFRESHES: usize = 1_024;

/// How the results of a function are kept; what is not said is as configured.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// For how long.
    pub ttl: Option<Duration>,
    /// For how long after that, while a newer one is made.
    pub stale: Option<Duration>,
    /// For how long after that, if making one fails.
    pub stale_if_error: Option<Duration>,
    /// The version of the results' type.
    pub schema: Option<u32>,
    /// Whether they go to a disk tier, if there is one.
    pub disk: bool,
    /// Whether they go to a Redis tier, if there is one.
    pub redis: bool,
}

impl Settings {
    fn on<K, V>(self, mut builder: CacheBuilder<K, V>) -> CacheBuilder<K, V>
    where
        K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        if let Some(ttl) = self.ttl {
            builder = builder.ttl(ttl);
        }
        if let Some(window) = self.stale {
            builder = builder.stale_while_revalidate(window);
        }
        if let Some(window) = self.stale_if_error {
            builder = builder.stale_if_error(window);
        }
        #[cfg(any(feature = "disk", feature = "redis"))]
        if let Some(version) = self.schema {
            builder = builder.schema_version(version);
        }
        builder
    }
}

type FunctionCache<V> = Cache<CallKey, V>;
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts the cache of a function whose results are `V`.
#[diagnostic::on_unimplemented(
    message = "`{V}` cannot go to the tiers below memory",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it, or say `tiers = [memory]`"
)]
pub trait Opens<V>: Copy + Send + Sync + 'static {
    /// Whether something may be in it before it is opened.
    const OUTLIVES: bool;

    /// Describes the cache.
    fn describe(
        &self,
        perf: &UltraPerf,
        name: &str,
        settings: Settings,
    ) -> CacheBuilder<CallKey, V>;
}

/// In memory and the configured tiers below.
#[derive(Debug, Clone, Copy)]
pub struct Tiered;

/// In memory alone.
#[derive(Debug, Clone, Copy)]
pub struct InMemory;

impl<V> Opens<V> for Tiered
where
    V: Clone + Send + Sync + Serialize + DeserializeOwned + 'static,
{
    const OUTLIVES: bool = true;

    fn describe(
        &self,
        perf: &UltraPerf,
        name: &str,
        settings: Settings,
    ) -> CacheBuilder<CallKey, V> {
        let builder = if settings.disk && settings.redis {
            perf.cache(name)
        } else {
            perf.cache_in(name, settings.disk, settings.redis)
        };
        settings.on(builder)
    }
}

impl<V: Clone + Send + Sync + 'static> Opens<V> for InMemory {
    const OUTLIVES: bool = false;

    fn describe(
        &self,
        perf: &UltraPerf,
        name: &str,
        settings: Settings,
    ) -> CacheBuilder<CallKey, V> {
        settings.on(perf.memory_cache(name))
    }
}

/// The cache of an instance of a function in one handle, however it is reached.
pub(super) struct Shared<V> {
    name: String,
    /// The name that another function has, so that nothing may be kept under it below memory.
    displaced: Option<String>,
    cache: tokio::sync::OnceCell<Option<FunctionCache<V>>>,
    building: Mutex<()>,
    refreshing: Mutex<HashSet<CallKey>>,
    complained: AtomicBool,
}

impl<V: Clone + Send + Sync + 'static> Shared<V> {
    pub(super) fn new(name: String, displaced: Option<String>) -> Self {
        Self {
            name,
            displaced,
            cache: tokio::sync::OnceCell::new(),
            building: Mutex::new(()),
            refreshing: Mutex::default(),
            complained: AtomicBool::new(false),
        }
    }

    async fn open<T: Opens<V>>(
        &self,
        perf: &UltraPerf,
        tiers: T,
        settings: Settings,
    ) -> Option<&FunctionCache<V>> {
        let opened = self.cache.get_or_init(|| async {
            if self.displaced.is_some() {
                return self.beside(perf, settings);
            }
            let described = tiers.describe(perf, &self.name, settings);
            #[cfg(any(feature = "disk", feature = "redis"))]
            let opened = described.open().await;
            #[cfg(not(any(feature = "disk", feature = "redis")))]
            let opened = described.build();
            let cache = match opened {
                Ok(cache) => cache,
                Err(error) => {
                    self.complain_of_opening(&error);
                    self.in_memory(perf, settings)?
                }
            };
            let handle: Arc<dyn Forget> = Arc::new(cache.clone());
            while let Some(orders) = functions(perf).opened(&self.name, &handle) {
                handle.forget(&orders).await;
            }
            Some(cache)
        });
        opened.await.as_ref()
    }

    fn build(&self, perf: &UltraPerf, settings: Settings) -> Option<&FunctionCache<V>> {
        if let Some(cache) = self.cache.get() {
            return cache.as_ref();
        }
        let _one_at_a_time = self.building.lock();
        if self.cache.get().is_none() {
            let cache = self.beside(perf, settings);
            // Only a call under the same lock sets it.
            let _ = self.cache.set(cache);
        }
        self.cache.get().and_then(Option::as_ref)
    }

    /// A cache of memory alone: new and empty, so that there is nothing in it to forget.
    fn beside(&self, perf: &UltraPerf, settings: Settings) -> Option<FunctionCache<V>> {
        let cache = self.in_memory(perf, settings)?;
        let handle: Arc<dyn Forget> = Arc::new(cache.clone());
        match &self.displaced {
            Some(name) => functions(perf).opened_beside(name, &self.name, handle),
            None => while functions(perf).opened(&self.name, &handle).is_some() {},
        }
        Some(cache)
    }

    fn in_memory(&self, perf: &UltraPerf, settings: Settings) -> Option<FunctionCache<V>> {
        let built = InMemory.describe(perf, &self.name, settings).build();
        built.inspect_err(|error| self.complain_of_opening(error)).ok()
    }

    fn complain_of_opening(&self, error: &BuildError) {
        tracing::error!(
            cache = self.name,
            error = error as &(dyn std::error::Error + 'static),
            "the cache of a function cannot be opened as configured: it does with less"
        );
    }

    fn complain_of_key(&self, problem: &str) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = self.name, problem, "a call has no key and is not cached");
        }
    }
}

/// What a handle keeps for a cached function.
struct Cached<V> {
    shared: Arc<Shared<V>>,
    /// The cache, once a call has found it open.
    cache: OnceLock<Option<FunctionCache<V>>>,
}

impl<V: Clone + Send + Sync + 'static> Cached<V> {
    #[inline]
    fn of(perf: &UltraPerf, call: Call) -> &Self {
        match found(perf, &call.site.cached, call.instance) {
            Some(cached) => cached,
            None => Self::make(perf, call.site, call.instance),
        }
    }

    // What fits in registers: a hit writes nothing for this call's sake.
    #[cold]
    #[inline(never)]
    fn make<'perf>(
        perf: &'perf UltraPerf,
        site: &'static Site,
        instance: &'static str,
    ) -> &'perf Self {
        slot(perf, &site.cached, instance, || {
            let shared = functions(perf).shared(site.identity, instance);
            Self { shared, cache: OnceLock::new() }
        })
    }

    #[inline]
    fn opened(&self) -> Option<&FunctionCache<V>> {
        self.cache.get().and_then(Option::as_ref)
    }

    fn remember(&self, cache: Option<&FunctionCache<V>>) -> Option<&FunctionCache<V>> {
        self.cache.get_or_init(|| cache.cloned()).as_ref()
    }
}

/// Returns the result of a call from memory.
///
/// # Cost
///
/// A slot of the handle, and [`Cache::get_in_memory`].
#[inline(always)]
pub fn find<R, K>(
    perf: &UltraPerf,
    call: Call,
    _: &K,
    _: PhantomData<fn() -> R>,
    key: &CallKeyBuf,
) -> Option<K::Kept>
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
{
    let cache = Cached::<K::Kept>::of(perf, call).opened()?;
    if key.problem().is_some() { None } else { cache.get_in_memory(key) }
}

/// Returns the result of a call from memory, fresh or within its `stale`; costs as [`find`].
#[inline(always)]
pub fn look_up<R, K>(
    perf: &UltraPerf,
    call: Call,
    _: &K,
    _: PhantomData<fn() -> R>,
    key: &CallKeyBuf,
) -> Option<Hit<K::Kept>>
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
{
    let cache = Cached::<K::Kept>::of(perf, call).opened()?;
    if key.problem().is_some() { None } else { cache.look_up_servable(key) }
}

/// A call that was not answered from memory.
#[derive(Debug)]
pub struct Load<T, K, X, P> {
    /// Whose it is.
    pub site: Call,
    /// How results are kept.
    pub settings: fn() -> Settings,
    /// And where.
    pub tiers: T,
    /// What of them.
    pub kind: K,
    /// Under which key.
    pub key: CallKeyBuf,
    /// How what is not kept gets to those who wait.
    pub share: Share<P>,
    /// Makes that of what goes wrong around the body.
    pub raise: fn(X) -> P,
}

/// What the body made.
#[derive(Debug)]
pub struct Made<R, X> {
    /// The names under which it can be invalidated.
    pub tags: Vec<Tag>,
    /// What was returned, or what went wrong around the body.
    pub outcome: Result<R, X>,
}

/// What is kept, and how; or what is passed on, and whether that is a failure.
type Kept<V, P> = Result<Loaded<V>, (P, bool)>;

impl<T, K, X, P> Load<T, K, X, P> {
    fn failed<R>(&self, made: &Made<R, X>) -> bool
    where
        K: Kind<R>,
    {
        made.outcome.as_ref().map_or(true, |returned| self.kind.failed(returned))
    }

    fn split<R>(&self, made: Made<R, X>) -> Kept<K::Kept, P>
    where
        K: Kind<R, Passed = P>,
    {
        let returned = made.outcome.map_err(|fault| ((self.raise)(fault), true))?;
        let failed = self.kind.failed(&returned);
        let value = self.kind.split(returned).map_err(|passed| (passed, failed))?;
        let mut options = InsertOptions::default().tags(made.tags);
        options.ttl = self.kind.life(&value);
        Ok(Loaded::with_options(value, options))
    }
}

/// How a flight ended for one who took part.
enum Landing<V, P> {
    Kept(V),
    Passed(P),
    /// The leader has something that cannot be handed on.
    Alone,
}

/// Has the one call of all that want this key make the result.
async fn fly<R, T, K, X, M, Fut>(
    perf: &UltraPerf,
    load: &Load<T, K, X, K::Passed>,
    cache: &FunctionCache<K::Kept>,
    key: &CallKey,
    make: &mut Option<M>,
) -> Landing<K::Kept, K::Passed>
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static, Passed: Send>,
    T: Opens<K::Kept>,
    X: Send,
    R: Send,
    M: FnOnce() -> Fut + Send,
    Fut: Future<Output = Made<R, X>> + Send,
{
    let mut own = None;
    let slot = &mut own;
    let meter = meter(perf, load.site);
    let loader = move || {
        let make = make.take();
        async move {
            let make = make.expect("a flight has one leader, which loads once");
            let measuring = meter.begin();
            let made = make().await;
            measuring.end(load.failed(&made));
            load.split(made).map_err(|(passed, failed)| {
                let error = load.share.publish(&passed);
                *slot = Some(passed);
                // What was kept before covers a failure, and not the answer that there is nothing.
                if failed { error } else { NotKept::new(error).into() }
            })
        }
    };
    match cache.load_missing(key, loader).await {
        Ok(value) => Landing::Kept(value),
        Err(error) => match own {
            Some(passed) => Landing::Passed(passed),
            None => match load.share.recover(&error) {
                Some(passed) => Landing::Passed(passed),
                None => Landing::Alone,
            },
        },
    }
}

/// Runs the body outside of a flight, and keeps what it makes unless that was overtaken.
async fn alone<R, T, K, X, M, Fut>(
    perf: &UltraPerf,
    load: &Load<T, K, X, K::Passed>,
    cache: Option<(&FunctionCache<K::Kept>, &CallKey)>,
    make: M,
) -> R
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
    M: FnOnce() -> Fut,
    Fut: Future<Output = Made<R, X>>,
{
    let reservation = cache.map(|(cache, key)| cache.reserve(key));
    let measuring = meter(perf, load.site).begin();
    let made = make().await;
    measuring.end(load.failed(&made));
    finish(load, reservation.as_ref(), made)
}

fn finish<R, T, K, X>(
    load: &Load<T, K, X, K::Passed>,
    reservation: Option<&cache_tiered::Reservation<CallKey, K::Kept>>,
    made: Made<R, X>,
) -> R
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
{
    match load.split(made) {
        Ok(Loaded { value, options }) => {
            if let Some(reservation) = reservation {
                reservation.insert(value.clone(), options);
            }
            load.kind.kept(value)
        }
        Err((passed, _)) => load.kind.passed(passed),
    }
}

/// Answers a call from the tiers below memory, or by running the body once for all that want it.
///
/// # Cancel safety
///
/// May be dropped at any point; if it was the one that ran the body, one that waits runs its own.
///
/// # Cost
///
/// One allocation: what a miss needs is no part of the function's own future, which stays small.
#[cold]
#[inline(never)]
pub fn load<R, T, K, X, M, Fut>(
    perf: UltraPerf,
    load: Load<T, K, X, K::Passed>,
    make: M,
) -> Pin<Box<impl Future<Output = R>>>
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static, Passed: Send>,
    T: Opens<K::Kept>,
    X: Send,
    R: Send,
    M: FnOnce() -> Fut + Send,
    Fut: Future<Output = Made<R, X>> + Send,
{
    Box::pin(async move { load_inline(&perf, load, make).await })
}

async fn load_inline<R, T, K, X, M, Fut>(
    perf: &UltraPerf,
    load: Load<T, K, X, K::Passed>,
    make: M,
) -> R
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static, Passed: Send>,
    T: Opens<K::Kept>,
    X: Send,
    R: Send,
    M: FnOnce() -> Fut + Send,
    Fut: Future<Output = Made<R, X>> + Send,
{
    let cached = Cached::<K::Kept>::of(perf, load.site);
    // Nobody has looked into a cache that was not open.
    let is_first = cached.opened().is_none();
    let cache = match cached.opened() {
        Some(cache) => Some(cache),
        None => {
            let opened = cached.shared.open(perf, load.tiers, (load.settings)()).await;
            cached.remember(opened)
        }
    };
    if let Some(problem) = load.key.problem() {
        cached.shared.complain_of_key(problem);
        return alone(perf, &load, None, make).await;
    }
    let Some(cache) = cache else { return alone(perf, &load, None, make).await };
    if is_first && let Some(value) = cache.get_in_memory(&load.key) {
        return load.kind.kept(value);
    }
    let key = load.key.to_key();
    let mut make = Some(make);
    match fly(perf, &load, cache, &key, &mut make).await {
        Landing::Kept(value) => load.kind.kept(value),
        Landing::Passed(passed) => load.kind.passed(passed),
        Landing::Alone => {
            let make = make.expect("who did not lead has its body");
            alone(perf, &load, Some((cache, &key)), make).await
        }
    }
}

/// Answers a call of a function that cannot wait. Calls that come at once run the body each for itself.
#[cold]
#[inline(never)]
pub fn load_sync<R, T, K, X, M>(perf: UltraPerf, load: Load<T, K, X, K::Passed>, make: M) -> R
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
    M: FnOnce() -> Made<R, X>,
{
    let perf = &perf;
    let cached = Cached::<K::Kept>::of(perf, load.site);
    let is_first = cached.opened().is_none();
    let cache = match cached.opened() {
        Some(cache) => Some(cache),
        None => cached.remember(cached.shared.build(perf, (load.settings)())),
    };
    if let Some(problem) = load.key.problem() {
        cached.shared.complain_of_key(problem);
    }
    let cache = cache.filter(|_| load.key.problem().is_none());
    if is_first && let Some(value) = cache.and_then(|cache| cache.get_in_memory(&load.key)) {
        return load.kind.kept(value);
    }
    let reservation = cache.map(|cache| cache.reserve(&load.key.to_key()));
    let measuring = meter(perf, load.site).begin();
    let made = make();
    measuring.end(load.failed(&made));
    finish(&load, reservation.as_ref(), made)
}

/// Has a newer result made in the background, unless that is under way or too much of it is.
pub fn refresh<R, T, K, X, M, Fut>(perf: &UltraPerf, load: Load<T, K, X, K::Passed>, make: M)
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static, Passed: Send + 'static>,
    T: Opens<K::Kept>,
    X: Send + 'static,
    R: Send + 'static,
    M: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Made<R, X>> + Send + 'static,
{
    let cached = Cached::<K::Kept>::of(perf, load.site);
    let Some(cache) = cached.opened().cloned() else { return };
    let key = load.key.to_key();
    let Some(turn) = Refreshing::begin(&cached.shared, &key) else { return };
    let own = perf.clone();
    let label = load.site.label();
    let work = async move {
        let _turn = turn;
        let mut make = Some(make);
        fly(&own, &load, &cache, &key, &mut make).await;
    };
    spawn(perf, label, work);
}

#[cfg(feature = "scheduler")]
fn spawn(perf: &UltraPerf, label: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    let task = perf.scheduler().io(label, work).priority(scheduler::Priority::Low);
    // A lane that has no room leaves the result stale.
    let _ = task.spawn();
}

#[cfg(not(feature = "scheduler"))]
fn spawn(_: &UltraPerf, _: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        // It ends with its body, of which there are so many at a time at most.
        drop(runtime.spawn(work));
    }
}

/// The turn of one refresh.
struct Refreshing<V> {
    shared: Arc<Shared<V>>,
    key: CallKey,
}

impl<V> Refreshing<V> {
    fn begin(shared: &Arc<Shared<V>>, key: &CallKey) -> Option<Self> {
        let mut refreshing = shared.refreshing.lock();
        let is_new = refreshing.len() < REFRESHES && refreshing.insert(key.clone());
        is_new.then(|| Self { shared: Arc::clone(shared), key: key.clone() })
    }
}

impl<V> Drop for Refreshing<V> {
    fn drop(&mut self) {
        self.shared.refreshing.lock().remove(&self.key);
    }
}

/// A cache that is being opened so that something in it can be forgotten.
pub struct Opening<'perf>(pub(super) BoxFuture<'perf, ()>);

impl std::fmt::Debug for Opening<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

/// Opens the cache of a plain function.
pub fn opening<'perf, R, T, K>(
    perf: &'perf UltraPerf,
    target: Target,
    settings: fn() -> Settings,
    tiers: T,
    _: K,
    _: PhantomData<fn() -> R>,
) -> Opening<'perf>
where
    K: Kind<R, Kept: Clone + Send + Sync + 'static>,
    T: Opens<K::Kept>,
{
    let shared: Arc<Shared<K::Kept>> = functions(perf).shared(target.identity, target.instance);
    Opening(Box::pin(async move {
        if T::OUTLIVES {
            shared.open(perf, tiers, settings()).await;
        }
    }))
}
