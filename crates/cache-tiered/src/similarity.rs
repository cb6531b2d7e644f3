//! A cache that also answers what is nearly the same question: embeddings under cosine similarity.
//!
//! Beside an exact key each entry has an *embedding*, a vector that a model gives for a text or a
//! picture. A look-up finds the entry of the key itself, or else the one whose embedding points most
//! nearly in the same direction, if that is near enough. The set is bounded: the newest entries stay,
//! in a ring, and the oldest makes room.
//!
//! # The scan
//!
//! There is no index to be built or to be wrong: each look-up by similarity goes over all rows, so its
//! result is exact, and its cost is that of reading memory. Two things keep it short:
//!
//! - Embeddings are kept normalized, so that a cosine is a dot product.
//! - Each row is kept a second time in bytes: its numbers divided by a scale of its own, rounded. The
//!   first pass reads these, a quarter of the memory. What rounding took away, the *residue* of the row,
//!   has a length that is known, and by the inequality of Cauchy and Schwarz the true product is no
//!   further from the rounded one than the residues of both sides allow. Only rows that could pass the
//!   threshold and beat the best so far are computed in full, and these decide. So the first pass saves
//!   work and never changes the result.
//!
//! Rows lie in segments, each with a lock of its own: a scan shares it for the time of one segment, and
//! an insert waits for no more than that.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::clock::{Clock, Millis, NEVER, millis};
use crate::error::Problem;
use crate::hasher::DefaultHashBuilder;
use crate::stats::Counter;

/// Rows that one lock guards.
const SEGMENT: usize = 512;
/// What the arithmetic of `f32` may be off in a product of two normalized vectors.
const ROUNDING: f32 = 1e-5;
/// The largest byte of a row: the rows are symmetric around zero.
const BYTE_MAX: f32 = 127.0;
const DIMENSIONS_MAX: usize = 1 << 16;
const ENTRIES_MAX: usize = 1 << 24;

/// Why a vector cannot be an embedding in a cache.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// It has another length than the cache was built for.
    #[error("an embedding of {found} numbers for a cache of {expected}")]
    Dimensions {
        /// The dimensions of the cache.
        expected: usize,
        /// The length that was given.
        found: usize,
    },
    /// It holds an infinite number or none at all.
    #[error("number {at} of the embedding is {value}; all have to be finite")]
    NotFinite {
        /// Where it stands, from 0.
        at: usize,
        /// What it is.
        value: f32,
    },
    /// It has no direction.
    #[error("an embedding of zeros alone points nowhere")]
    Zero,
}

/// A similarity cache that cannot be built as it was described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("similarity cache {cache:?}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct SimilarityBuildError {
    /// The cache's name.
    pub cache: String,
    /// Every problem found.
    pub problems: Vec<Problem>,
}

/// What a look-up found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Match<K, V> {
    /// The key of the entry; another one than was asked for, unless it is exact.
    pub key: K,
    /// Its value.
    pub value: V,
    /// The cosine between the two embeddings, from the threshold to 1; 1 for the key itself.
    pub similarity: f32,
    /// Whether it is the entry of the very key.
    pub exact: bool,
}

/// What a [`SimilarityCache`] has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SimilarityStats {
    /// Look-ups that found their key.
    pub exact_hits: u64,
    /// Look-ups that found another entry near enough.
    pub similar_hits: u64,
    /// Look-ups that found nothing.
    pub misses: u64,
    /// Entries put in.
    pub writes: u64,
    /// Entries that made room for newer ones.
    pub evicted: u64,
    /// Rows whose bytes were compared, and those that were then computed in full.
    pub rows_scanned: u64,
    /// See [`rows_scanned`](Self::rows_scanned).
    pub rows_computed: u64,
    /// Entries held, those past their time included until their place is needed.
    pub entries: u64,
    /// The most that can be held.
    pub capacity: u64,
}

/// Describes a [`SimilarityCache`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing before `build`"]
pub struct SimilarityCacheBuilder {
    name: String,
    dimensions: usize,
    entries: usize,
    threshold: f32,
    ttl: Option<Duration>,
    clock: Clock,
}

impl SimilarityCacheBuilder {
    /// Sets how many entries are kept, the newest ones: 10,000 unless told otherwise.
    pub fn entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Sets the least cosine that counts as the same: 0.95 unless told otherwise.
    pub fn threshold(mut self, threshold: f32) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets the time to live of entries; without it they stay until they are the oldest.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Reads the time elsewhere, for tests.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the cache; rows take memory as they come.
    ///
    /// # Errors
    ///
    /// [`SimilarityBuildError`] with every setting that cannot be used.
    pub fn build<K, V>(self) -> Result<SimilarityCache<K, V>, SimilarityBuildError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let Self { name, dimensions, entries, threshold, ttl, clock } = self;
        let mut problems = Vec::new();
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            let expected = format!("must be from 1 to {DIMENSIONS_MAX}");
            problems.push(Problem::new("dimensions", dimensions, expected));
        }
        if !(1..=ENTRIES_MAX).contains(&entries) {
            let expected = format!("must be from 1 to {ENTRIES_MAX}");
            problems.push(Problem::new("entries", entries, expected));
        }
        if !(threshold > 0.0 && threshold <= 1.0) {
            problems.push(Problem::new("threshold", threshold, "must be above 0 and at most 1"));
        }
        if ttl.is_some_and(|ttl| ttl < Duration::from_millis(1)) {
            problems.push(Problem::new("ttl", "0", "must be at least 1ms"));
        }
        if !problems.is_empty() {
            return Err(SimilarityBuildError { cache: name, problems });
        }
        let segments = entries.div_ceil(SEGMENT);
        Ok(SimilarityCache(Arc::new(Shared {
            name,
            dimensions,
            entries,
            threshold,
            ttl: ttl.map(millis),
            clock,
            hasher: DefaultHashBuilder::default(),
            segments: (0..segments).map(|_| RwLock::new(Segment::new())).collect(),
            index: Mutex::new(Index { rows: HashMap::default(), next: 0 }),
            counters: Counters::default(),
        })))
    }
}

/// A bounded cache that finds values by their key, or by an embedding that is near enough.
///
/// Handles are cheap to clone and share one cache. Entries live in *namespaces*, of which none finds
/// what belongs to another: a tenant, a model, a language.
///
/// # Examples
///
/// ```
/// use cache_tiered::SimilarityCache;
///
/// let answers = SimilarityCache::builder("answers", 3).threshold(0.9).build::<String, &str>()?;
/// answers.insert("en", "opening hours".to_owned(), &[0.9, 0.1, 0.4], "nine to five")?;
/// let found = answers.get("en", "when are you open", &[0.9, 0.1, 0.5])?.expect("near enough");
/// assert_eq!((found.value, found.exact), ("nine to five", false));
/// assert!(answers.get("de", "opening hours", &[0.9, 0.1, 0.4])?.is_none());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct SimilarityCache<K, V>(Arc<Shared<K, V>>);

impl<K, V> Clone for SimilarityCache<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> fmt::Debug for SimilarityCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimilarityCache").field("name", &self.0.name).finish_non_exhaustive()
    }
}

struct Shared<K, V> {
    name: String,
    dimensions: usize,
    entries: usize,
    threshold: f32,
    ttl: Option<Millis>,
    clock: Clock,
    hasher: DefaultHashBuilder,
    segments: Box<[RwLock<Segment<K, V>>]>,
    /// Locked before any segment, never after.
    index: Mutex<Index>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    exact_hits: Counter,
    similar_hits: Counter,
    misses: Counter,
    writes: Counter,
    evicted: Counter,
    scanned: Counter,
    computed: Counter,
}

/// Which row a key has, by the hash of namespace and key; rows tell keys of one hash apart.
#[derive(Debug)]
struct Index {
    rows: HashMap<u64, Vec<u32>>,
    /// The row that is written next, unless the key has one.
    next: usize,
}

impl Index {
    fn forget(&mut self, hash: u64, row: usize) {
        if let Some(rows) = self.rows.get_mut(&hash) {
            rows.retain(|other| *other as usize != row);
            if rows.is_empty() {
                self.rows.remove(&hash);
            }
        }
    }
}

struct Entry<K, V> {
    namespace: Arc<str>,
    key: K,
    value: V,
    expires_at: Millis,
    hash: u64,
}

impl<K: Clone, V: Clone> Entry<K, V> {
    fn matched(&self, similarity: f32, exact: bool) -> Match<K, V> {
        Match { key: self.key.clone(), value: self.value.clone(), similarity, exact }
    }
}

/// Some rows: what identifies them, their bytes, and the numbers themselves.
struct Segment<K, V> {
    entries: Vec<Option<Arc<Entry<K, V>>>>,
    sketches: Vec<Sketch>,
    bytes: Vec<i8>,
    numbers: Vec<f32>,
}

/// What the first pass needs to know of a row beside its bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Sketch {
    /// The hash of its namespace, 0 for an empty row.
    namespace: u64,
    /// What a byte counts for.
    scale: f32,
    /// The length of what rounding took away.
    residue: f32,
}

impl<K, V> Segment<K, V> {
    fn new() -> Self {
        Self { entries: Vec::new(), sketches: Vec::new(), bytes: Vec::new(), numbers: Vec::new() }
    }

    /// Makes the rows up to one exist.
    fn reach(&mut self, row: usize, dimensions: usize) {
        if row >= self.entries.len() {
            self.entries.resize_with(row + 1, || None);
            self.sketches.resize(row + 1, Sketch::default());
            self.bytes.resize((row + 1) * dimensions, 0);
            self.numbers.resize((row + 1) * dimensions, 0.0);
        }
    }
}

/// A vector of length one, and its bytes.
struct Embedding {
    numbers: Vec<f32>,
    bytes: Vec<i8>,
    scale: f32,
    residue: f32,
}

impl Embedding {
    fn new(numbers: &[f32], dimensions: usize) -> Result<Self, EmbeddingError> {
        if numbers.len() != dimensions {
            let found = numbers.len();
            return Err(EmbeddingError::Dimensions { expected: dimensions, found });
        }
        if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(EmbeddingError::NotFinite { at, value: numbers[at] });
        }
        // In f64, where the squares of all f32 are numbers.
        let length = numbers.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            return Err(EmbeddingError::Zero);
        }
        let numbers: Vec<f32> =
            numbers.iter().map(|number| (f64::from(*number) / length) as f32).collect();
        let largest = numbers.iter().fold(0.0_f32, |most, number| most.max(number.abs()));
        let scale = largest.max(f32::MIN_POSITIVE) / BYTE_MAX;
        let bytes: Vec<i8> = numbers.iter().map(|number| (number / scale).round() as i8).collect();
        let lost =
            |(number, byte): (&f32, &i8)| f64::from(*number - f32::from(*byte) * scale).powi(2);
        let residue = numbers.iter().zip(&bytes).map(lost).sum::<f64>().sqrt() as f32;
        Ok(Self { numbers, bytes, scale, residue })
    }

    /// The most that the product with a row can be.
    fn at_most(&self, bytes: &[i8], sketch: Sketch) -> f32 {
        let rounded = dot_bytes(&self.bytes, bytes) as f32 * self.scale * sketch.scale;
        // x y = x' y' + (x - x') y + x' (y - y'), with y of length one and x' no longer than one and its
        // residue.
        rounded + sketch.residue + (1.0 + sketch.residue) * self.residue + ROUNDING
    }
}

/// The product of two rows of bytes: exact, because 2^16 products of 127^2 fit.
fn dot_bytes(one: &[i8], other: &[i8]) -> i32 {
    one.iter().zip(other).map(|(a, b)| i32::from(i16::from(*a) * i16::from(*b))).sum()
}

/// The product of two vectors, in sixteen sums at once, which is how a processor adds fastest.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let (ones, rest) = one.as_chunks::<LANES>();
    let (others, other_rest) = other.as_chunks::<LANES>();
    for (a, b) in ones.iter().zip(others) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = rest.iter().zip(other_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

impl SimilarityCache<(), ()> {
    /// Starts to describe a cache of embeddings with `dimensions` numbers each.
    pub fn builder(name: impl Into<String>, dimensions: usize) -> SimilarityCacheBuilder {
        SimilarityCacheBuilder {
            name: name.into(),
            dimensions,
            entries: 10_000,
            threshold: 0.95,
            ttl: None,
            clock: Clock::default(),
        }
    }
}

impl<K, V> SimilarityCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Puts an entry in, in the place of the one with its key or else of the oldest.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`]; nothing is changed then.
    ///
    /// # Cost
    ///
    /// Two short locks; it waits for scans of one segment of 512 rows at most.
    pub fn insert(
        &self,
        namespace: &str,
        key: K,
        embedding: &[f32],
        value: V,
    ) -> Result<(), EmbeddingError> {
        let shared = &*self.0;
        let embedding = Embedding::new(embedding, shared.dimensions)?;
        let expires_at = shared.ttl.map_or(NEVER, |ttl| shared.clock.now().saturating_add(ttl));
        let hash = shared.hash(namespace, &key);
        let sketch = Sketch {
            namespace: shared.namespace(namespace),
            scale: embedding.scale,
            residue: embedding.residue,
        };
        let namespace_name = namespace.into();
        let entry = Arc::new(Entry { namespace: namespace_name, key, value, expires_at, hash });

        let mut index = shared.index.lock();
        let known = shared.row_of(&index, hash, namespace, &entry.key);
        let row = known.unwrap_or(index.next);
        let mut segment = shared.segments[row / SEGMENT].write();
        let at = row % SEGMENT;
        segment.reach(at, shared.dimensions);
        let numbers = at * shared.dimensions..(at + 1) * shared.dimensions;
        segment.numbers[numbers.clone()].copy_from_slice(&embedding.numbers);
        segment.bytes[numbers].copy_from_slice(&embedding.bytes);
        segment.sketches[at] = sketch;
        let old = segment.entries[at].replace(entry);
        drop(segment);
        if known.is_none() {
            index.next = (row + 1) % shared.entries;
            if let Some(old) = &old {
                index.forget(old.hash, row);
                shared.counters.evicted.increment();
            }
            index.rows.entry(hash).or_default().push(row as u32);
        }
        shared.counters.writes.increment();
        drop(index);
        // A user's Drop runs under no lock.
        drop(old);
        Ok(())
    }

    /// Finds the entry of the key, or the nearest one over the threshold.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`]; the key is not looked up then.
    ///
    /// # Cost
    ///
    /// For the key two short locks. Else a pass over the bytes of all rows: about a millisecond for
    /// 10,000 rows of 768, on the calling thread; more of them are work for a thread that may block.
    pub fn get<Q>(
        &self,
        namespace: &str,
        key: &Q,
        embedding: &[f32],
    ) -> Result<Option<Match<K, V>>, EmbeddingError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let embedding = Embedding::new(embedding, self.0.dimensions)?;
        if let Some(found) = self.find(namespace, key) {
            self.0.counters.exact_hits.increment();
            return Ok(Some(found));
        }
        Ok(self.count(self.scan(namespace, &embedding)))
    }

    /// Finds the nearest entry over the threshold, whatever its key.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`].
    ///
    /// # Cost
    ///
    /// As [`get`](Self::get) for a key that is not there.
    pub fn nearest(
        &self,
        namespace: &str,
        embedding: &[f32],
    ) -> Result<Option<Match<K, V>>, EmbeddingError> {
        let embedding = Embedding::new(embedding, self.0.dimensions)?;
        Ok(self.count(self.scan(namespace, &embedding)))
    }

    /// Finds the entry of the key alone.
    pub fn get_exact<Q>(&self, namespace: &str, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let found = self.find(namespace, key);
        let counters = &self.0.counters;
        if found.is_some() { &counters.exact_hits } else { &counters.misses }.increment();
        found.map(|found| found.value)
    }

    /// Removes the entry of the key and tells whether there was one.
    pub fn remove<Q>(&self, namespace: &str, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let shared = &*self.0;
        let hash = shared.hash(namespace, key);
        let mut index = shared.index.lock();
        let Some(row) = shared.row_of(&index, hash, namespace, key) else { return false };
        index.forget(hash, row);
        let old = shared.empty(row);
        drop(index);
        old.is_some()
    }

    /// Removes every entry of a namespace and tells how many there were.
    ///
    /// # Cost
    ///
    /// A look at each row; an insert waits for all of them.
    pub fn clear_namespace(&self, namespace: &str) -> u64 {
        self.clear_if(|entry| &*entry.namespace == namespace)
    }

    /// Removes every entry.
    pub fn clear(&self) {
        self.clear_if(|_| true);
    }

    fn clear_if(&self, wanted: impl Fn(&Entry<K, V>) -> bool) -> u64 {
        let shared = &*self.0;
        let mut removed = Vec::new();
        let mut index = shared.index.lock();
        for row in 0..shared.entries {
            let segment = shared.segments[row / SEGMENT].read();
            let entry = segment.entries.get(row % SEGMENT).and_then(Option::as_deref);
            let Some(hash) = entry.filter(|entry| wanted(entry)).map(|entry| entry.hash) else {
                continue;
            };
            drop(segment);
            index.forget(hash, row);
            removed.extend(shared.empty(row));
        }
        drop(index);
        removed.len() as u64
    }

    /// Returns what the cache has done and holds.
    #[must_use]
    pub fn stats(&self) -> SimilarityStats {
        let shared = &*self.0;
        let Counters { exact_hits, similar_hits, misses, writes, evicted, scanned, computed } =
            &shared.counters;
        let entries = shared.index.lock().rows.values().map(Vec::len).sum::<usize>();
        SimilarityStats {
            exact_hits: exact_hits.get(),
            similar_hits: similar_hits.get(),
            misses: misses.get(),
            writes: writes.get(),
            evicted: evicted.get(),
            rows_scanned: scanned.get(),
            rows_computed: computed.get(),
            entries: entries as u64,
            capacity: shared.entries as u64,
        }
    }

    fn find<Q>(&self, namespace: &str, key: &Q) -> Option<Match<K, V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let shared = &*self.0;
        let hash = shared.hash(namespace, key);
        let index = shared.index.lock();
        let row = shared.row_of(&index, hash, namespace, key)?;
        let segment = shared.segments[row / SEGMENT].read();
        drop(index);
        let entry = segment.entries[row % SEGMENT].clone()?;
        drop(segment);
        let alive = entry.expires_at > shared.clock.now();
        alive.then(|| entry.matched(1.0, true))
    }

    /// The nearest entry over the threshold; of several that are equally near, the first row.
    fn scan(&self, namespace: &str, embedding: &Embedding) -> Option<Match<K, V>> {
        let shared = &*self.0;
        let (now, wanted) = (shared.clock.now(), shared.namespace(namespace));
        let mut least = shared.threshold;
        // The last one is the best; the others are dropped with it, under no lock.
        let mut leaders: Vec<Arc<Entry<K, V>>> = Vec::new();
        let (mut scanned, mut computed) = (0, 0);
        for segment in &shared.segments {
            let segment = segment.read();
            let rows = segment.sketches.iter().zip(segment.bytes.chunks_exact(shared.dimensions));
            for (at, (sketch, bytes)) in rows.enumerate() {
                if sketch.namespace != wanted {
                    continue;
                }
                scanned += 1;
                if embedding.at_most(bytes, *sketch) < least {
                    continue;
                }
                let Some(entry) = &segment.entries[at] else { continue };
                if entry.expires_at <= now || &*entry.namespace != namespace {
                    continue;
                }
                computed += 1;
                let numbers = at * shared.dimensions..(at + 1) * shared.dimensions;
                let similarity = dot(&embedding.numbers, &segment.numbers[numbers]).min(1.0);
                if similarity > least || (similarity >= least && leaders.is_empty()) {
                    least = similarity;
                    leaders.push(Arc::clone(entry));
                }
            }
        }
        shared.counters.scanned.add(scanned);
        shared.counters.computed.add(computed);
        leaders.last().map(|best| best.matched(least, false))
    }

    fn count(&self, found: Option<Match<K, V>>) -> Option<Match<K, V>> {
        let counters = &self.0.counters;
        if found.is_some() { &counters.similar_hits } else { &counters.misses }.increment();
        found
    }
}

impl<K: Eq, V> Shared<K, V> {
    fn hash<Q: Hash + ?Sized>(&self, namespace: &str, key: &Q) -> u64 {
        self.hasher.hash_one((namespace, key))
    }

    /// A namespace's number in the rows, which is never that of an empty one.
    fn namespace(&self, namespace: &str) -> u64 {
        self.hasher.hash_one(namespace).max(1)
    }

    /// The row of a key. Whoever wants it to stay keeps the index locked.
    fn row_of<Q>(&self, index: &Index, hash: u64, namespace: &str, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        index.rows.get(&hash)?.iter().map(|row| *row as usize).find(|row| {
            let segment = self.segments[row / SEGMENT].read();
            let entry = segment.entries.get(row % SEGMENT).and_then(Option::as_deref);
            entry.is_some_and(|it| &*it.namespace == namespace && it.key.borrow() == key)
        })
    }

    /// Empties a row; the caller drops what was there under no lock.
    fn empty(&self, row: usize) -> Option<Arc<Entry<K, V>>> {
        let mut segment = self.segments[row / SEGMENT].write();
        segment.sketches[row % SEGMENT] = Sketch::default();
        segment.entries[row % SEGMENT].take()
    }
}

#[cfg(test)]
mod tests;
