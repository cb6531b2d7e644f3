//! Describes a cache, checks the description once, and starts it.

use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

#[cfg(feature = "__lower")]
use serde::{Serialize, de::DeserializeOwned};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::cache::{
    AbsentIf, Cache, ContentOf, Counters, Inner, LowerTiers, TagsBy, TtlBy, WritePolicy,
};
use crate::clock::{Clock, NEVER, millis};
#[cfg(feature = "__lower")]
use crate::codec::{Bincode, Codec};
#[cfg(feature = "__lower")]
use crate::compression::{Compressing, Compression, Floor};
#[cfg(feature = "disk")]
use crate::disk::{DiskConfig, DiskFront, DiskOpenError};
#[cfg(all(feature = "encryption", feature = "__lower"))]
use crate::encryption::{Encryption, EncryptionKeys};
#[cfg(feature = "__lower")]
use crate::envelope::Envelopes;
use crate::error::{BuildError, Problem};
use crate::freshness::Freshness;
use crate::hasher::DefaultHashBuilder;
#[cfg(feature = "__lower")]
use crate::lower::Sealer;
use crate::lower::{LowerTier, Sink, Tier};
use crate::manage::{Chosen, ManagedCache};
use crate::memory::{
    Demote, Engine, EntryRef, EvictionCause, Listener, MemoryOptions, MemoryTier, Weigher,
};
#[cfg(feature = "__redis")]
use crate::offload::{Executor, OffloadedWork};
use crate::policy::Policy;
use crate::prefetch::{self, Prefetch, Prefetcher, Related};
#[cfg(feature = "__redis")]
use crate::redis::{RedisConfig, RedisFront};
use crate::sweeper;
use crate::tags::{Tag, TagTable};
use crate::tuning::Tuned;
#[cfg(feature = "__lower")]
use crate::write_behind::WriteBehind;

/// Loads that may be under way in the background at once.
const REFRESHES: usize = 64;
/// Entries of a memory tier that was not told otherwise.
const DEFAULT_ENTRIES: u64 = 10_000;
/// The weight that an entry is expected to have when the bound is in bytes.
const EXPECTED_WEIGHT: u64 = 1_024;

/// Describes a [`Cache`]; every setting has a default.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use cache_tiered::Cache;
///
/// let pages = Cache::<String, Vec<u8>>::builder("pages")
///     .bytes(64 << 20, |url, page| (url.len() + page.len()) as u64)
///     .ttl(Duration::from_secs(300))
///     .time_to_idle(Duration::from_secs(60))
///     .build()?;
/// # Ok::<_, cache_tiered::BuildError>(())
/// ```
#[must_use = "a builder does nothing before `build` or `open`"]
pub struct CacheBuilder<K, V, S = DefaultHashBuilder> {
    name: String,
    engine: Engine,
    policy: Policy,
    curve: bool,
    hasher: S,
    listener: Option<Listener<K, V>>,
    entries: Option<u64>,
    default_entries: u64,
    bytes: Option<(u64, Weigher<K, V>)>,
    ttl: Option<Duration>,
    ttl_jitter: u8,
    ttl_by: Option<TtlBy<K, V>>,
    negative_ttl: Option<Duration>,
    absent_if: Option<AbsentIf<V>>,
    content: Option<ContentOf<V>>,
    tags_by: Option<TagsBy<K, V>>,
    freshness: Freshness,
    prefetch: Option<Prefetch>,
    related: Option<Related<K>>,
    time_to_idle: Option<Duration>,
    expiry_sweep: Duration,
    clock: Clock,
    tags: Arc<TagTable>,
    order: Vec<Tier>,
    write_policy: WritePolicy,
    on_open: Hooks,
    chosen: Chosen,
    #[cfg(feature = "__lower")]
    lower: LowerSettings<K, V>,
}

/// Who hears of the cache when it is there. Locked, so that a description can be shared by threads
/// although these cannot.
type Hooks = Mutex<Vec<Box<dyn FnOnce(Arc<dyn ManagedCache>) + Send>>>;

/// What only the tiers below memory need.
#[cfg(feature = "__lower")]
struct LowerSettings<K, V> {
    codec: Option<Arc<dyn Codec<K, V>>>,
    schema_version: u32,
    compression: Compression,
    compress_above: Floor,
    #[cfg(feature = "encryption")]
    encryption: Option<EncryptionKeys>,
    queue_entries: usize,
    queue_bytes: u64,
    #[cfg(feature = "disk")]
    disk: Option<DiskConfig>,
    #[cfg(feature = "disk")]
    warm_up: bool,
    #[cfg(feature = "__redis")]
    redis: Option<RedisConfig>,
    #[cfg(feature = "__redis")]
    executor: Option<Executor>,
}

#[cfg(feature = "__lower")]
impl<K, V> Default for LowerSettings<K, V> {
    fn default() -> Self {
        Self {
            codec: None,
            schema_version: 0,
            compression: Compression::default(),
            compress_above: Floor::default(),
            #[cfg(feature = "encryption")]
            encryption: None,
            queue_entries: 16_384,
            queue_bytes: 64 << 20,
            #[cfg(feature = "disk")]
            disk: None,
            #[cfg(feature = "disk")]
            warm_up: false,
            #[cfg(feature = "__redis")]
            redis: None,
            #[cfg(feature = "__redis")]
            executor: None,
        }
    }
}

/// The opened tiers below memory, in reading order.
struct Below<K, V> {
    tiers: Vec<Box<dyn LowerTier<K, V>>>,
    #[cfg(feature = "__lower")]
    sealer: Option<Arc<Sealer<K, V>>>,
}

impl<K, V> Default for Below<K, V> {
    fn default() -> Self {
        Self {
            tiers: Vec::new(),
            #[cfg(feature = "__lower")]
            sealer: None,
        }
    }
}

impl<K, V, S> std::fmt::Debug for CacheBuilder<K, V, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("entries", &self.entries)
            .field("bytes", &self.bytes.as_ref().map(|(capacity, _)| capacity))
            .field("ttl", &self.ttl)
            .field("engine", &self.engine)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<K, V> CacheBuilder<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            engine: Engine::default(),
            policy: Policy::default(),
            curve: false,
            hasher: DefaultHashBuilder::default(),
            listener: None,
            entries: None,
            default_entries: DEFAULT_ENTRIES,
            bytes: None,
            ttl: None,
            ttl_jitter: 0,
            ttl_by: None,
            negative_ttl: None,
            absent_if: None,
            content: None,
            tags_by: None,
            freshness: Freshness::default(),
            prefetch: None,
            related: None,
            time_to_idle: None,
            expiry_sweep: Duration::from_secs(60),
            clock: Clock::default(),
            tags: Arc::default(),
            order: vec![Tier::Redis, Tier::Disk],
            write_policy: WritePolicy::default(),
            on_open: Hooks::default(),
            chosen: Chosen::default(),
            #[cfg(feature = "__lower")]
            lower: LowerSettings::default(),
        }
    }
}

impl<K, V, S> CacheBuilder<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Chooses the structure that holds the entries in memory.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Sets the policy by which memory chooses what to keep: [`Policy::Adaptive`] unless told otherwise.
    ///
    /// [`Engine::ClockPro`] has a policy of its own and does not look at this one.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.chosen.policy = true;
        self.policy = policy;
        self
    }

    /// Samples what other capacities would hit, for [`Cache::hit_ratio_at`]; off unless told otherwise.
    ///
    /// [`Engine::ClockPro`] does not sample.
    pub fn miss_ratio_curve(mut self, sampled: bool) -> Self {
        self.curve = sampled;
        self
    }

    /// Calls `listener` for each entry that leaves memory, with the cause.
    ///
    /// It runs on the thread whose call made the entry leave, before that call returns and after every
    /// lock was released, so it may call the cache; one that inserts for every entry it hears of calls
    /// itself without end. When it panics, the panic is logged and swallowed. With [`Engine::ClockPro`] it
    /// does not hear of entries that a look-up finds past their time.
    ///
    /// # Cost
    ///
    /// One clone of the key and of the value for each entry that leaves: readers may still hold those in
    /// memory.
    pub fn on_eviction(
        mut self,
        listener: impl Fn(&K, &V, EvictionCause) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Hashes the keys in memory with another hasher.
    ///
    /// The default is seeded at random in each cache, so nobody can choose keys that collide. A hasher
    /// that is not gives that up. With [`Engine::ClockPro`] it has to mix all bits well; the crate's own
    /// engine folds the hashes of others, so that it takes one that passes numbers through.
    pub fn hasher<H>(self, hasher: H) -> CacheBuilder<K, V, H> {
        CacheBuilder {
            name: self.name,
            engine: self.engine,
            policy: self.policy,
            curve: self.curve,
            hasher,
            listener: self.listener,
            entries: self.entries,
            default_entries: self.default_entries,
            bytes: self.bytes,
            ttl: self.ttl,
            ttl_jitter: self.ttl_jitter,
            ttl_by: self.ttl_by,
            negative_ttl: self.negative_ttl,
            absent_if: self.absent_if,
            content: self.content,
            tags_by: self.tags_by,
            freshness: self.freshness,
            prefetch: self.prefetch,
            related: self.related,
            time_to_idle: self.time_to_idle,
            expiry_sweep: self.expiry_sweep,
            clock: self.clock,
            tags: self.tags,
            order: self.order,
            write_policy: self.write_policy,
            on_open: self.on_open,
            chosen: self.chosen,
            #[cfg(feature = "__lower")]
            lower: self.lower,
        }
    }

    /// Bounds the memory tier by a number of entries; 10,000 unless told otherwise.
    ///
    /// Beside a bound in bytes both hold: an entry then weighs at least its share of the bytes.
    pub fn entries(mut self, entries: u64) -> Self {
        self.chosen.entries = true;
        self.entries = Some(entries);
        self
    }

    /// Bounds the memory tier by a number of entries where nobody sets a bound in entries or in bytes.
    ///
    /// For whoever describes a cache before the program says what its values weigh.
    pub fn default_entries(mut self, entries: u64) -> Self {
        self.default_entries = entries;
        self
    }

    /// Bounds the memory tier by bytes, as `weigher` tells them of a key and its value.
    ///
    /// The weigher runs once each time that an entry comes into memory, and under no lock. What it
    /// does not count (about 100 bytes for an entry) comes on top; a weight of zero counts as one. An
    /// entry that weighs more than its shard may hold, an eighth of the bytes on two cores and never 4
    /// GiB, stays out of memory.
    pub fn bytes(
        mut self,
        capacity_bytes: u64,
        weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static,
    ) -> Self {
        self.chosen.bytes = true;
        self.bytes = Some((capacity_bytes, Arc::new(weigher)));
        self
    }

    /// Sets the time to live of entries that name none; without it they live until pushed out.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.chosen.ttl = true;
        self.ttl = Some(ttl);
        self
    }

    /// Lets each value say how long it lives; `None` is the cache's own time to live.
    ///
    /// An insert that names a time to live goes before it. Zero removes the key.
    pub fn ttl_by(
        mut self,
        ttl: impl Fn(&K, &V) -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        self.ttl_by = Some(Arc::new(ttl));
        self
    }

    /// Tells what values mean that there is nothing, for their own time to live
    /// ([`absent_ttl`](Self::absent_ttl)) and for
    /// [`AdviceStats::loads_absent`](crate::AdviceStats::loads_absent).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use cache_tiered::Cache;
    ///
    /// let rows = Cache::<u64, Vec<String>>::builder("rows")
    ///     .ttl(Duration::from_secs(600))
    ///     .absent_if(Vec::is_empty)
    ///     .absent_ttl(Duration::from_secs(5))
    ///     .build()?;
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn absent_if(mut self, absent: impl Fn(&V) -> bool + Send + Sync + 'static) -> Self {
        self.absent_if = Some(Arc::new(absent));
        self
    }

    /// Keeps what means that there is nothing for a time of its own, `None` as long as all others; zero
    /// does not keep it.
    ///
    /// It goes before [`ttl_by`](Self::ttl_by). Without [`absent_if`](Self::absent_if) nothing means that
    /// there is nothing, and this changes nothing.
    pub fn absent_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.chosen.absent_ttl = true;
        self.negative_ttl = ttl.into();
        self
    }

    /// Tells a hash of a value's content, so that the cache notices when a value that was loaded again
    /// is what it was before: [`AdviceStats::reloads_same`](crate::AdviceStats::reloads_same).
    ///
    /// It is asked for some of the keys, one in eight at most. Unless set, a cache with tiers below memory
    /// hashes what it would write, which is as good where equal values are encoded alike; one of memory
    /// alone knows nothing of contents.
    pub fn content_hash(mut self, hash: impl Fn(&V) -> u64 + Send + Sync + 'static) -> Self {
        self.content = Some(Arc::new(move |value| Some(hash(value))));
        self
    }

    /// Lets each value say which tags it has, besides those that its insert or its loader names.
    ///
    /// See [`Cache::invalidate_tag`].
    pub fn tags_by<I>(mut self, tags: impl Fn(&K, &V) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Tag>,
    {
        self.tags_by = Some(Arc::new(move |key, value, out| {
            out.extend(tags(key, value).into_iter().map(Into::into));
        }));
        self
    }

    /// Shortens each time to live at random, by `percent` of it at most; by nothing unless told otherwise.
    ///
    /// Entries that came together then do not expire together, and are not all loaded again at once. A
    /// time to live is never longer than was asked for.
    pub fn ttl_jitter(mut self, percent: u8) -> Self {
        self.ttl_jitter = percent;
        self
    }

    /// Lets a [`LoadingCache`](crate::LoadingCache) serve values for this long past their time to live,
    /// while newer ones are loaded in the background.
    ///
    /// The other look-ups of the cache find only what is fresh. Tiers that are shared keep their entries
    /// longer by this, so all machines should have the same.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.chosen.stale_while_revalidate = true;
        self.freshness.while_revalidate = millis(window);
        self
    }

    /// Serves values for this long past their time to live where a loader fails.
    ///
    /// That goes for [`Cache::get_or_load`], too. As with
    /// [`stale_while_revalidate`](Self::stale_while_revalidate), entries are kept longer by this.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.chosen.stale_if_error = true;
        self.freshness.if_error = millis(window);
        self
    }

    /// Lets a [`LoadingCache`](crate::LoadingCache) load a value anew, in the background, when it is asked
    /// for with less than this left of its time to live.
    pub fn refresh_ahead(mut self, left: Duration) -> Self {
        self.freshness.ahead = millis(left);
        self
    }

    /// Lets a [`LoadingCache`](crate::LoadingCache) load a value anew by chance before it is due, the
    /// likelier the less is left and the longer loads take; `beta` is 1 as a rule, more is earlier.
    ///
    /// So of many machines with the same value one refreshes it, and they do not all miss it at once.
    /// Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB
    /// 2015.
    pub fn early_refresh(mut self, beta: f64) -> Self {
        self.chosen.early_refresh = true;
        self.freshness.early = beta;
        self
    }

    /// Lets a [`LoadingCache`](crate::LoadingCache) learn which keys follow each other, and load what
    /// comes next before it is asked for.
    ///
    /// It learns from what memory lacks, and predicts what has followed in half of the cases. While
    /// fewer than 30 % of what it loaded was of use, it follows fewer of its predictions, down to one of
    /// 64; [`CacheStats::prefetch`](crate::CacheStats::prefetch) tells. Requests of other handles of the
    /// cache teach it nothing.
    ///
    /// # Cost
    ///
    /// Two short locks for a miss. A hit costs a second hash and a look into a small table while values that
    /// were loaded ahead wait for their first hit, and nothing otherwise.
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.chosen.prefetch = true;
        self.prefetch = Some(prefetch);
        self
    }

    /// Lets a [`LoadingCache`](crate::LoadingCache) load keys that belong to one that memory lacks, as
    /// `related` tells them: at most 16, and no more while they turn out to be of no use.
    ///
    /// It is called under no lock, with each key that memory lacks and with each that was loaded ahead
    /// and is hit for the first time. Alone, without [`prefetch`](Self::prefetch), nothing is learned.
    ///
    /// # Examples
    ///
    /// ```
    /// use cache_tiered::Cache;
    ///
    /// // Whoever reads a page of a list will turn to the next one.
    /// let pages = Cache::<(u64, u32), String>::builder("pages")
    ///     .related(|(list, page)| [(*list, page + 1)])
    ///     .build()?;
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn related<F, I>(mut self, related: F) -> Self
    where
        F: Fn(&K) -> I + Send + Sync + 'static,
        I: IntoIterator<Item = K>,
    {
        self.chosen.related = true;
        self.related = Some(prefetch::related(related));
        self
    }

    /// Lets memory drop entries that nobody has read for this long; tiers below keep their copies.
    ///
    /// With [`WritePolicy::OnEviction`] there may be none below: an idle entry is not written down.
    pub fn time_to_idle(mut self, idle: Duration) -> Self {
        self.time_to_idle = Some(idle);
        self
    }

    /// Sets how often entries that nobody asks for any more are taken out; a minute by default.
    pub fn expiry_sweep(mut self, every: Duration) -> Self {
        self.expiry_sweep = every;
        self
    }

    /// Sets where the time comes from; tests give a [`Clock::manual`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the order in which the tiers below memory are read: Redis, then disk, by default.
    ///
    /// Tiers that the cache does not have may be named; a tier that it has must be.
    pub fn order(mut self, order: impl IntoIterator<Item = Tier>) -> Self {
        self.order = order.into_iter().collect();
        self
    }

    /// Sets when values go to the tiers below memory.
    pub fn write_policy(mut self, policy: WritePolicy) -> Self {
        self.write_policy = policy;
        self
    }

    /// Calls `hook` once the cache is there, at the end of [`build`](Self::build) or
    /// [`open`](Self::open); several may be set, and are called in their order.
    ///
    /// For who looks after all caches of a program: it is given the cache without its types. What keeps
    /// it keeps the cache alive, so keep a [`Weak`] where that is not meant. A cache that cannot be built
    /// calls no hook.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use cache_tiered::Cache;
    ///
    /// let (opened, told) = mpsc::channel();
    /// let users = Cache::<u64, String>::builder("users")
    ///     .on_open(move |cache| opened.send(cache.name().to_owned()).unwrap())
    ///     .build()?;
    /// assert_eq!(told.recv().as_deref(), Ok("users"));
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn on_open(mut self, hook: impl FnOnce(Arc<dyn ManagedCache>) + Send + 'static) -> Self {
        self.on_open.get_mut().push(Box::new(hook));
        self
    }

    /// Takes what has been set so far as what is usual: [`ManagedCache::chosen`] tells what is set from
    /// now on.
    ///
    /// For who hands out a description with defaults that may change later, and must know what of the cache
    /// follows them.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use cache_tiered::Cache;
    ///
    /// let usual = Cache::<u64, String>::builder("users").ttl(Duration::from_secs(60)).entries(100);
    /// let users = usual.described().entries(100).build()?;
    /// let chosen = users.managed().chosen();
    /// assert_eq!((chosen.ttl, chosen.entries), (false, true));
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn described(mut self) -> Self {
        self.chosen = Chosen::default();
        self
    }

    /// Builds a cache of memory alone; it needs no runtime.
    ///
    /// # Errors
    ///
    /// [`BuildError::Invalid`] with every problem of the description. A disk or Redis tier is one:
    /// [`open`](Self::open) starts those.
    pub fn build(self) -> Result<Cache<K, V, S>, BuildError> {
        let problems = self.problems();
        #[cfg(feature = "__lower")]
        let problems = {
            let mut problems = problems;
            problems.extend(self.tiers().into_iter().map(|tier| {
                let expected =
                    "is started by `open().await`; `build()` makes caches of memory alone";
                Problem::new(tier.as_str(), "configured", expected)
            }));
            problems
        };
        if !problems.is_empty() {
            return Err(BuildError::Invalid { cache: self.name, problems });
        }
        self.finish(Below::default())
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.name.len() > 64 || !self.name.split('.').all(is_plain) {
            let expected = "must be 1 to 64 letters, digits, '_' or '-', and '.' between them";
            problems.push(Problem::new("name", &self.name, expected));
        }
        let bytes = self.bytes.as_ref().map(|(capacity, _)| *capacity);
        let entries = self.entries.or(self.bytes.is_none().then_some(self.default_entries));
        for (path, bound) in [("memory.entries", entries), ("memory.bytes", bytes)] {
            if bound == Some(0) {
                problems.push(Problem::new(path, 0, "must be at least 1"));
            }
        }
        let times = [
            ("ttl", self.ttl),
            ("time_to_idle", self.time_to_idle),
            ("expiry_sweep", Some(self.expiry_sweep)),
        ];
        for (path, time) in times {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                problems.push(Problem::new(path, "0", "must be at least 1ms"));
            }
        }
        if self.ttl_jitter > 100 {
            let expected = "must be at most 100 percent";
            problems.push(Problem::new("ttl_jitter", self.ttl_jitter, expected));
        }
        if !(self.freshness.early >= 0.0 && self.freshness.early.is_finite()) {
            let expected = "must be a number from 0 on";
            problems.push(Problem::new("early_refresh", self.freshness.early, expected));
        }
        problems.extend(self.prefetch.iter().flat_map(Prefetch::problems));
        for (at, tier) in self.order.iter().enumerate() {
            if *tier == Tier::Memory || self.order[..at].contains(tier) {
                let expected = "must name tiers below memory, each once";
                problems.push(Problem::new(format!("order[{at}]"), tier.as_str(), expected));
            }
        }
        #[cfg(feature = "__lower")]
        self.lower_problems(&mut problems);
        problems
    }

    /// Starts a memory tier over the lower tiers given.
    fn finish(self, below: Below<K, V>) -> Result<Cache<K, V, S>, BuildError> {
        let weighs_bytes = self.bytes.is_some();
        let (capacity, weigher, estimated) = match (self.bytes, self.entries) {
            (None, entries) => {
                let entries = entries.unwrap_or(self.default_entries);
                (entries, None, entries)
            }
            (Some((bytes, weigher)), None) => (bytes, Some(weigher), bytes / EXPECTED_WEIGHT),
            (Some((bytes, weigh)), Some(entries)) => {
                let share = bytes.div_ceil(entries);
                let weigher: Weigher<K, V> =
                    Arc::new(move |key, value| weigh(key, value).max(share));
                (bytes, Some(weigher), entries.min(bytes / EXPECTED_WEIGHT))
            }
        };
        let lower = Arc::new(LowerTiers::new(below.tiers));
        let demotes = self.write_policy == WritePolicy::OnEviction && !lower.tiers.is_empty();
        let demote: Option<Demote<K, V>> = demotes.then(|| {
            let (lower, clock) = (Arc::clone(&lower), self.clock.clone());
            Arc::new(move |key: &K, entry: EntryRef<'_, V>, dropped: &mut _| {
                lower.demote(key, entry, &clock, weighs_bytes, dropped);
            }) as _
        });
        let memory = MemoryTier::new(MemoryOptions {
            engine: self.engine,
            policy: self.policy,
            curve: self.curve,
            hasher: self.hasher,
            listener: self.listener,
            capacity,
            estimated_entries: usize::try_from(estimated).unwrap_or(usize::MAX).max(1),
            weigher,
            time_to_idle: self.time_to_idle.map(millis),
            freshness: self.freshness,
            clock: self.clock.clone(),
            tags: Arc::clone(&self.tags),
            demote,
        });
        let prefetcher = (self.prefetch.is_some() || self.related.is_some()).then(|| {
            let nothing_learned = Prefetch::default().successions(0);
            Arc::new(Prefetcher::new(self.prefetch.unwrap_or(nothing_learned), self.related))
        });
        if let Some(fates) = memory.fates() {
            fates.set_ttl(self.ttl.map_or(NEVER, millis));
        }
        #[cfg(feature = "__lower")]
        let content = self.content.or_else(|| {
            let sealer = Arc::clone(below.sealer.as_ref()?);
            Some(Arc::new(move |value: &V| sealer.content(value)) as ContentOf<V>)
        });
        #[cfg(not(feature = "__lower"))]
        let content = self.content;
        #[cfg(all(feature = "encryption", feature = "__lower"))]
        let encryption = self.lower.encryption.map(|keys| Encryption::new(keys, &self.name));
        let inner = Inner {
            #[cfg(feature = "metrics")]
            this: Weak::new(),
            name: self.name,
            memory: Arc::new(memory),
            lower,
            clock: self.clock,
            tuned: Tuned::new(self.ttl, self.ttl_jitter, self.negative_ttl, self.freshness),
            ttl_by: self.ttl_by,
            absent_if: self.absent_if,
            content,
            tags_by: self.tags_by,
            events: RwLock::default(),
            freshness: self.freshness,
            refreshes: Arc::new(Semaphore::new(REFRESHES)),
            prefetcher: prefetcher.map_or_else(OnceLock::new, OnceLock::from),
            write_policy: self.write_policy,
            weighs_bytes,
            chosen: self.chosen,
            #[cfg(feature = "__lower")]
            sealer: below.sealer,
            #[cfg(all(feature = "encryption", feature = "__lower"))]
            encryption,
            #[cfg(feature = "__lower")]
            schema: self.lower.schema_version,
            counters: Counters::default(),
        };
        #[cfg(feature = "metrics")]
        let inner = Arc::new_cyclic(|this| Inner { this: this.clone(), ..inner });
        #[cfg(not(feature = "metrics"))]
        let inner = Arc::new(inner);
        for tier in &inner.lower.tiers {
            let sink: Weak<dyn Sink<K>> = Arc::<Inner<K, V, S>>::downgrade(&inner);
            tier.attach(sink);
        }
        sweeper::register(&inner, self.expiry_sweep)
            .map_err(|source| BuildError::Thread { cache: inner.name.clone(), source })?;
        let cache = Cache::from_inner(inner);
        for hook in self.on_open.into_inner() {
            hook(cache.managed());
        }
        Ok(cache)
    }
}

impl<K, T, S> CacheBuilder<K, Option<T>, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Keeps `None`, the knowledge that there is nothing, for a time of its own: as
    /// [`absent_ttl`](Self::absent_ttl), with [`absent_if`](Self::absent_if) where that was not said.
    ///
    /// What is asked for in vain is then not looked up again and again, and what comes into being is found
    /// before long. It goes before [`ttl_by`](Self::ttl_by), and zero keeps no `None`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use cache_tiered::Cache;
    ///
    /// let users = Cache::<u64, Option<String>>::builder("users")
    ///     .ttl(Duration::from_secs(600))
    ///     .negative_ttl(Duration::from_secs(5))
    ///     .build()?;
    /// users.insert(7, None);
    /// assert_eq!(users.get_in_memory(&7), Some(None));
    /// # Ok::<_, cache_tiered::BuildError>(())
    /// ```
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.absent_if.get_or_insert_with(|| Arc::new(Option::is_none));
        self.absent_ttl(ttl)
    }
}

/// What the parts of a name between points may hold. It becomes part of thread names, metric labels, Redis
/// keys and, as one component, of paths: without a part that is empty it is neither `.` nor `..`.
fn is_plain(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

#[cfg(feature = "__lower")]
impl<K, V, S> CacheBuilder<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Gives the cache a disk tier, its values written through serde.
    #[cfg(feature = "disk")]
    pub fn disk(self, config: DiskConfig) -> Self
    where
        K: Serialize + DeserializeOwned,
        V: Serialize + DeserializeOwned,
    {
        self.disk_with(config, Bincode)
    }

    /// Gives the cache a disk tier and its own codec; the last codec given is used by all tiers.
    #[cfg(feature = "disk")]
    pub fn disk_with(mut self, config: DiskConfig, codec: impl Codec<K, V>) -> Self {
        self.lower.disk = Some(config);
        self.lower.codec = Some(Arc::new(codec));
        self
    }

    /// Has [`open`](Self::open) fill memory with the newest entries of the disk tier, in the background;
    /// off unless told otherwise.
    ///
    /// See [`Cache::warm_from_disk`].
    #[cfg(feature = "disk")]
    pub fn warm_up(mut self, warm_up: bool) -> Self {
        self.lower.warm_up = warm_up;
        self
    }

    /// Gives the cache a Redis tier, its values written through serde.
    #[cfg(feature = "__redis")]
    pub fn redis(self, config: RedisConfig) -> Self
    where
        K: Serialize + DeserializeOwned,
        V: Serialize + DeserializeOwned,
    {
        self.redis_with(config, Bincode)
    }

    /// Gives the cache a Redis tier and its own codec; the last codec given is used by all tiers.
    #[cfg(feature = "__redis")]
    pub fn redis_with(mut self, config: RedisConfig, codec: impl Codec<K, V>) -> Self {
        self.lower.redis = Some(config);
        self.lower.codec = Some(Arc::new(codec));
        self
    }

    /// Sets the schema version of the value's type; bump it whenever the type changes shape.
    ///
    /// Values that were written under another version are misses.
    pub fn schema_version(mut self, version: u32) -> Self {
        self.lower.schema_version = version;
        self
    }

    /// Chooses how values are compressed in the tiers below memory: zstd unless told otherwise.
    ///
    /// A value that would not shrink by a tenth is stored as it is. What was written under another
    /// choice is still read.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.lower.compression = compression;
        self
    }

    /// Compresses values of this many encoded bytes or more, `None` for none.
    ///
    /// By default the kind of [`Compression`] decides: 2 KiB for zstd, 128 bytes with dictionaries.
    pub fn compress_above(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.lower.compress_above = Floor::Set(bytes.into());
        self
    }

    /// Encrypts what the tiers below memory keep; what is not encrypted there is a miss from then on.
    ///
    /// The names of keys stay visible: in Redis as names, on the disk in the engine's records. The
    /// files of [`Cache::save`] are encrypted altogether, and others are not loaded any more.
    #[cfg(feature = "encryption")]
    pub fn encryption(mut self, keys: EncryptionKeys) -> Self {
        self.lower.encryption = Some(keys);
        self
    }

    /// Bounds the writes that wait for each lower tier: 16,384 entries and 64 MiB by default.
    ///
    /// The bytes are those of the weigher given to [`bytes`](Self::bytes); without one, only entries
    /// count. A write that does not fit is dropped and counted.
    pub fn write_queue(mut self, entries: usize, bytes: u64) -> Self {
        self.lower.queue_entries = entries;
        self.lower.queue_bytes = bytes;
        self
    }

    /// Hands the sealing of values for Redis, and the opening of large ones, to an executor; unless
    /// set, tokio's blocking threads do it.
    ///
    /// `run` is called in async tasks and must not block: it runs the work elsewhere, now or later. Work
    /// that it drops is done on the blocking threads after all.
    #[cfg(feature = "__redis")]
    pub fn executor(
        mut self,
        run: impl Fn(OffloadedWork, Box<dyn FnOnce() + Send>) + Send + Sync + 'static,
    ) -> Self {
        self.lower.executor = Some(Arc::new(run));
        self
    }

    /// Builds the cache and opens its tiers.
    ///
    /// The disk tier is read through, which takes about a second for each GiB in it. Redis is not
    /// waited for: until it answers, it has no values.
    ///
    /// # Errors
    ///
    /// [`BuildError::Invalid`] with every problem of the description, [`BuildError::Disk`] when the
    /// directory is locked, foreign, of a newer version or not accessible, [`BuildError::Thread`]
    /// when the system has no threads left.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, when the cache has a Redis or a disk tier.
    ///
    /// # Cancel safety
    ///
    /// May be dropped; what has been opened is closed.
    pub async fn open(self) -> Result<Cache<K, V, S>, BuildError> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(BuildError::Invalid { cache: self.name, problems });
        }
        // Tiers close when they are dropped, so an error or a dropped future leaves none behind.
        let mut below = Below::default();
        if let Some(codec) = self.lower.codec.clone() {
            let sealer = Arc::new(self.sealer(codec));
            for tier in &self.order {
                below.tiers.extend(self.open_tier(*tier, &sealer).await?);
            }
            below.sealer = Some(sealer);
        }
        #[cfg(feature = "disk")]
        let warm_up = self.lower.warm_up;
        let cache = self.finish(below)?;
        #[cfg(feature = "disk")]
        if warm_up {
            cache.begin_to_warm_up();
        }
        Ok(cache)
    }

    fn sealer(&self, codec: Arc<dyn Codec<K, V>>) -> Sealer<K, V> {
        let lower = &self.lower;
        let clock = self.clock.clone();
        let compressing = Compressing::new(lower.compression, lower.compress_above, clock.clone());
        let envelopes = Envelopes {
            compressing,
            #[cfg(feature = "encryption")]
            encryption: lower.encryption.clone().map(|keys| Encryption::new(keys, &self.name)),
        };
        Sealer {
            codec,
            schema: lower.schema_version,
            envelopes,
            clock,
            tags: Arc::clone(&self.tags),
            #[cfg(feature = "__redis")]
            executor: lower.executor.clone(),
        }
    }

    async fn open_tier(
        &self,
        tier: Tier,
        sealer: &Arc<Sealer<K, V>>,
    ) -> Result<Option<Box<dyn LowerTier<K, V>>>, BuildError> {
        let queue = WriteBehind::new(self.lower.queue_entries, self.lower.queue_bytes);
        match tier {
            #[cfg(feature = "disk")]
            Tier::Disk => {
                let Some(config) = self.lower.disk.clone() else { return Ok(None) };
                let (name, sealer) = (self.name.clone(), Arc::clone(sealer));
                let opened = tokio::task::spawn_blocking(move || {
                    DiskFront::open(&name, &config, sealer, queue)
                });
                let cache = self.name.clone();
                match opened.await {
                    Ok(Ok(front)) => Ok(Some(Box::new(front))),
                    Ok(Err(DiskOpenError::Open(source))) => Err(BuildError::Disk { cache, source }),
                    Ok(Err(DiskOpenError::Thread(source))) => {
                        Err(BuildError::Thread { cache, source })
                    }
                    Err(join) => {
                        Err(BuildError::Thread { cache, source: std::io::Error::other(join) })
                    }
                }
            }
            #[cfg(feature = "__redis")]
            Tier::Redis => {
                let Some(config) = self.lower.redis.clone() else { return Ok(None) };
                let sealer = Arc::clone(sealer);
                let front =
                    RedisFront::start(&self.name, config, sealer, queue).map_err(|problems| {
                        BuildError::Invalid { cache: self.name.clone(), problems }
                    })?;
                Ok(Some(Box::new(front)))
            }
            _ => Ok(None),
        }
    }

    /// The tiers below memory that were asked for.
    fn tiers(&self) -> Vec<Tier> {
        let mut tiers = Vec::new();
        #[cfg(feature = "__redis")]
        tiers.extend(self.lower.redis.as_ref().map(|_| Tier::Redis));
        #[cfg(feature = "disk")]
        tiers.extend(self.lower.disk.as_ref().map(|_| Tier::Disk));
        tiers
    }

    fn lower_problems(&self, problems: &mut Vec<Problem>) {
        for tier in self.tiers().into_iter().filter(|tier| !self.order.contains(tier)) {
            let expected = format!("must name {}, which the cache has", tier.as_str());
            let order: Vec<_> = self.order.iter().map(|tier| tier.as_str()).collect();
            problems.push(Problem::new("order", order.join(", "), expected));
        }
        if self.lower.queue_entries == 0 {
            problems.push(Problem::new("write_queue.entries", 0, "must be at least 1"));
        }
        problems.extend(self.lower.compression.problem());
        #[cfg(feature = "encryption")]
        problems.extend(self.lower.encryption.iter().flat_map(EncryptionKeys::problems));
        #[cfg(feature = "disk")]
        {
            let learns = self.lower.compression == Compression::ZstdDictionary;
            problems.extend(self.lower.disk.iter().flat_map(|disk| disk.problems(learns)));
        }
        #[cfg(feature = "__redis")]
        problems.extend(self.lower.redis.iter().flat_map(RedisConfig::validate));
    }
}
