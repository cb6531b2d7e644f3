//! The Redis tier as a tier of the cache: typed values, the queue of writes, and the task that makes
//! them.
//!
//! Values are sealed on a blocking thread, a batch at a time. Envelopes that came back are opened
//! where they arrived, unless there is so much in them that decoding it would hold up an async worker.
//!
//! A compression dictionary is a key of its own, written before the first value that needs it and
//! again every few minutes, so that it outlives them all. A value whose dictionary is not known here is
//! a miss; a task of its own then fetches the dictionary, so that no call takes longer for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::ears::Ears;
use super::{Coherence, DICTIONARY_SPARE, Lookup, RedisConfig, RedisTier, RemoteWrite};
use crate::envelope;
use crate::error::Problem;
use crate::lower::{Found, LowerTier, Opening, Room, Sealer, Sink, Tier, Write};
use crate::offload::{OffloadedWork, offload};
use crate::stats::{CoherenceStats, CompressionStats, Counter, TierStats};
use crate::write_behind::{Pushed, Taken, Work, Worker, WriteBehind};

/// Writes that go to Redis together.
const BATCH: usize = 128;

/// Envelopes that unpack to this much, one or those of one answer together, are opened on a blocking
/// thread.
const OPEN_INLINE_BYTES: usize = 64 << 10;

/// Dictionaries that wait to be fetched; more are asked for again by the next value that needs them.
const WANTED: usize = 16;

/// Dictionaries whose last storing or fetching is remembered.
const REMEMBERED: usize = 64;

/// How long a dictionary that Redis did not have is not looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(crate) struct RedisFront<K, V> {
    tier: RedisTier,
    queue: Arc<WriteBehind<K, V>>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    /// Numbers of dictionaries that look-ups have missed; none after the tier was closed.
    wanted: Mutex<Option<mpsc::Sender<u32>>>,
    ears: Arc<Ears<K, V>>,
    /// Closed when the writer and the fetcher of dictionaries have ended.
    ended: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct Counters {
    hits: Counter,
    misses: Counter,
    errors: Counter,
    dropped_writes: Counter,
}

impl<K, V> Drop for RedisFront<K, V> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<K, V> RedisFront<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn start(
        name: &str,
        mut config: RedisConfig,
        sealer: Arc<Sealer<K, V>>,
        queue: WriteBehind<K, V>,
    ) -> Result<Self, Vec<Problem>> {
        config.schema_version = sealer.schema;
        let follows = config.coherence != Coherence::Off;
        let ears = Arc::new(Ears::new(Arc::clone(&sealer), follows));
        let tier = RedisTier::start(name, config)?;
        sealer.tags.share(tier.tag_log());
        let queue = Arc::new(queue);
        let counters = Arc::new(Counters::default());
        let (end, ended) = watch::channel(());
        let end = Arc::new(end);
        let writer = Writer {
            tier: tier.clone(),
            queue: Worker::of(&queue),
            sealer: Arc::clone(&sealer),
            counters: Arc::clone(&counters),
            stored: HashMap::new(),
        };
        let (wanted, requests) = mpsc::channel(WANTED);
        let fetcher = fetch_dictionaries(tier.clone(), Arc::clone(&sealer), requests);
        let fetcher_end = Arc::clone(&end);
        tokio::spawn(async move {
            fetcher.await;
            drop(fetcher_end);
        });
        tokio::spawn(async move {
            writer.run().await;
            drop(end);
        });
        let wanted = Mutex::new(Some(wanted));
        Ok(Self { tier, queue, sealer, counters, wanted, ears, ended })
    }

    /// What the queue says of a key: a value, its absence, or nothing.
    fn pending(&self, key: &K) -> Option<Option<Found<V>>> {
        Some(self.sealer.pending(&self.queue.lookup(key)?))
    }

    /// Makes values of what Redis said.
    ///
    /// `began` is the time of the tags before Redis was asked.
    async fn open(&self, answers: Vec<(Bytes, Lookup)>, began: u64) -> Vec<Option<Found<V>>> {
        let unpacked = answers.iter().map(|(_, lookup)| match lookup {
            Lookup::Hit(sealed) => self.sealer.opening_bytes(sealed),
            _ => 0,
        });
        let (count, unpacked) = (answers.len(), unpacked.sum::<usize>());
        let tier = self.tier.clone();
        let (sealer, counters) = (Arc::clone(&self.sealer), Arc::clone(&self.counters));
        let wanted = self.wanted.lock().clone();
        let open = move || {
            let open = |it| {
                let found = open(&sealer, &counters, wanted.as_ref(), it)?;
                take_over(&sealer, &tier, found, began)
            };
            answers.iter().map(open).collect()
        };
        if unpacked < OPEN_INLINE_BYTES {
            return open();
        }
        // It fails only when the runtime shuts down.
        let executor = self.sealer.executor.as_ref();
        let opened: Option<Vec<_>> = offload(executor, OffloadedWork::Read, open).await;
        opened.unwrap_or_else(|| std::iter::repeat_with(|| None).take(count).collect())
    }

    fn count(&self, found: &Option<Found<V>>) {
        match found {
            Some(_) => self.counters.hits.increment(),
            None => self.counters.misses.increment(),
        }
    }

    async fn look_up(&self, key: &K) -> Option<Found<V>> {
        if let Some(known) = self.pending(key) {
            return known;
        }
        let key = Bytes::from(self.sealer.key(key)?);
        let began = self.sealer.tags.now();
        let lookup = self.tier.get(&key).await;
        self.open(vec![(key, lookup)], began).await.pop().flatten()
    }
}

impl<K, V> LowerTier<K, V> for RedisFront<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn tier(&self) -> Tier {
        Tier::Redis
    }

    fn push(&self, key: &K, write: Write<V>, dropped: &mut Vec<Write<V>>) {
        let is_put = matches!(write, Write::Put(_));
        if let Write::Put(item) = &write
            && item.attributes.as_ref().is_some_and(|it| it.has_tags())
        {
            self.tier.use_tags();
        }
        let (pushed, replaced) = self.queue.push(key, write, false);
        dropped.extend(replaced);
        if pushed == Pushed::Refused
            && let Some(key) = self.sealer.key(key)
        {
            // Redis may hold an older value; it is withheld until it has been deleted.
            self.tier.mark_stale(&Bytes::from(key));
        }
        if is_put && pushed != Pushed::Queued {
            self.counters.dropped_writes.increment();
        }
    }

    fn room(&self, weight: u64) -> Room {
        self.queue.room(weight)
    }

    fn holds(&self, _key: &K) -> bool {
        // Redis is not asked: what came from there stays there for its TTL, as a rule.
        true
    }

    fn get<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Option<Found<V>>> {
        Box::pin(async move {
            let found = self.look_up(key).await;
            self.count(&found);
            found
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a K]) -> BoxFuture<'a, Vec<Option<Found<V>>>> {
        Box::pin(async move {
            let mut found: Vec<Option<Found<V>>> = Vec::with_capacity(keys.len());
            let (mut places, mut names) = (Vec::new(), Vec::new());
            for (at, key) in keys.iter().enumerate() {
                let known = self.pending(key);
                if known.is_none()
                    && let Some(bytes) = self.sealer.key(key)
                {
                    places.push(at);
                    names.push(Bytes::from(bytes));
                }
                found.push(known.flatten());
            }
            if !names.is_empty() {
                let began = self.sealer.tags.now();
                let lookups = self.tier.get_many(&names).await;
                let opened = self.open(names.into_iter().zip(lookups).collect(), began).await;
                for (at, value) in places.into_iter().zip(opened) {
                    found[at] = value;
                }
            }
            found.iter().for_each(|found| self.count(found));
            found
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.queue.displace_all();
            // A batch that the writer has in hand would otherwise reach the new namespace.
            self.queue.after_pending(|| ()).await;
            self.tier.clear().await;
        })
    }

    fn note_invalidated<'a>(&'a self, _: u64, numbers: &'a [u64]) -> BoxFuture<'a, ()> {
        Box::pin(self.tier.invalidate_tags(numbers))
    }

    fn remove_expired(&self) -> BoxFuture<'_, u64> {
        Box::pin(async { 0 })
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.queue.after_pending(|| ()).await;
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.queue.close();
            self.wanted.lock().take();
            let mut ended = self.ended.clone();
            // The channel carries nothing: it only closes, with the writer.
            while ended.changed().await.is_ok() {}
        })
    }

    fn attach(&self, sink: Weak<dyn Sink<K>>) {
        if self.ears.attach(sink) {
            self.tier.listen(Arc::clone(&self.ears) as _);
        }
    }

    fn watch(&self, key: &K, warmed: bool) {
        self.ears.watch(key, warmed);
    }

    fn coherence(&self) -> Option<CoherenceStats> {
        let tier = self.tier.stats();
        let (invalidations, resets) = self.ears.counts();
        let mode = tier.following.map(Coherence::as_str);
        Some(CoherenceStats { coherent: tier.coherent, mode, invalidations, resets })
    }

    fn stats(&self) -> TierStats {
        let tier = self.tier.stats();
        let (queue_depth, queue_bytes) = self.queue.depth();
        TierStats {
            hits: self.counters.hits.get(),
            misses: self.counters.misses.get(),
            errors: self.counters.errors.get() + tier.errors + tier.timeouts + tier.failed_writes,
            writes: tier.writes,
            dropped_writes: self.counters.dropped_writes.get()
                + tier.dropped_writes
                + tier.too_large,
            queue_depth,
            queue_bytes,
            ..TierStats::default()
        }
    }

    fn compression(&self) -> CompressionStats {
        self.sealer.compression()
    }
}

struct Writer<K, V> {
    tier: RedisTier,
    queue: Worker<K, V>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    /// When Redis was last given a dictionary.
    stored: HashMap<u32, Instant>,
}

impl<K, V> Writer<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    async fn run(mut self) {
        loop {
            match self.queue.take(BATCH) {
                Work::Batch(batch) => self.write(batch).await,
                Work::Errand(errand) => errand(),
                Work::Nothing => self.queue.wait_async().await,
                Work::Finished => return self.tier.close().await,
            }
        }
    }

    async fn write(&mut self, batch: Vec<Taken<K, V>>) {
        let (sealer, counters) = (Arc::clone(&self.sealer), Arc::clone(&self.counters));
        let seal = move || {
            let writes: Vec<_> =
                batch.iter().filter_map(|taken| remote_write(&sealer, &counters, taken)).collect();
            (batch, writes)
        };
        let executor = self.sealer.executor.as_ref();
        let sealed = offload(executor, OffloadedWork::Write, seal).await;
        // It fails only when the runtime shuts down, and then nothing is written any more.
        if let Some((batch, writes)) = sealed {
            self.store_dictionaries(&writes).await;
            self.tier.write(writes).await;
            // It drops values, and a user's `Drop` may panic.
            if catch_unwind(AssertUnwindSafe(|| self.queue.done(batch))).is_err() {
                self.counters.errors.increment();
            }
        }
    }
}

impl<K: 'static, V: 'static> Writer<K, V> {
    /// Gives Redis the dictionaries of these values, unless it was given them a short while ago.
    ///
    /// Where that fails, the values are written all the same: whoever has the dictionary reads them,
    /// for others they are misses, and the next batch tries again.
    async fn store_dictionaries(&mut self, writes: &[RemoteWrite]) {
        for write in writes {
            let RemoteWrite::Put { value, .. } = write else { continue };
            let id = envelope::dictionary(value);
            let now = Instant::now();
            let is_stored = |at: &Instant| now.duration_since(*at) < DICTIONARY_SPARE / 2;
            if id == 0 || self.stored.get(&id).is_some_and(is_stored) {
                continue;
            }
            let dictionary = self.sealer.envelopes.compressing.dictionaries().get(id);
            let sealed = dictionary.and_then(|dictionary| self.sealer.seal_dictionary(&dictionary));
            let Some(sealed) = sealed else { continue };
            if !self.tier.store_dictionary(id, Bytes::from(sealed)).await {
                return;
            }
            if self.stored.len() >= REMEMBERED {
                self.stored.clear();
            }
            self.stored.insert(id, now);
        }
    }
}

/// Fetches dictionaries that look-ups have missed, one after the other, until the tier is closed.
///
/// A cache that learns dictionaries and has none yet takes the first one into use: so machines that
/// share a Redis mostly share a dictionary.
async fn fetch_dictionaries<K: 'static, V: 'static>(
    tier: RedisTier,
    sealer: Arc<Sealer<K, V>>,
    mut requests: mpsc::Receiver<u32>,
) {
    let compressing = &sealer.envelopes.compressing;
    let known = compressing.dictionaries();
    let mut missing: HashMap<u32, Instant> = HashMap::new();
    while let Some(id) = requests.recv().await {
        let now = Instant::now();
        let is_missing = |at: &Instant| now.duration_since(*at) < LOOK_AGAIN;
        if known.get(id).is_some() || missing.get(&id).is_some_and(is_missing) {
            continue;
        }
        let sealed = tier.fetch_dictionary(id).await;
        match sealed.and_then(|sealed| sealer.open_dictionary(id, &sealed)).map(Arc::new) {
            Some(found) if compressing.uses_dictionaries() && known.active().is_none() => {
                known.activate(found);
            }
            Some(found) => known.learn(found),
            None => {
                if missing.len() >= REMEMBERED {
                    missing.clear();
                }
                missing.insert(id, now);
            }
        }
    }
}

fn open<K: 'static, V: 'static>(
    sealer: &Sealer<K, V>,
    counters: &Counters,
    wanted: Option<&mpsc::Sender<u32>>,
    (key, lookup): &(Bytes, Lookup),
) -> Option<Found<V>> {
    let Lookup::Hit(sealed) = lookup else { return None };
    if sealed.is_empty() {
        // It is just being removed.
        return None;
    }
    match sealer.open(key, sealed) {
        Opening::Value(found) => Some(found),
        Opening::Miss => None,
        Opening::NoDictionary(id) => {
            if let Some(wanted) = wanted {
                // One that does not fit is asked for again by the next value that needs it.
                let _ = wanted.try_send(id);
            }
            None
        }
        Opening::Corrupt => {
            counters.errors.increment();
            None
        }
    }
}

/// Judges a value by what all machines have done to its tags, and translates its time into this cache's.
fn take_over<K: 'static, V: 'static>(
    sealer: &Sealer<K, V>,
    tier: &RedisTier,
    found: Found<V>,
    began: u64,
) -> Option<Found<V>> {
    let Some(attributes) = found.attributes else { return Some(found) };
    // It was made with the value, a moment ago, so nobody shares it.
    let attributes = Arc::into_inner(attributes)?;
    if attributes.has_tags() {
        tier.use_tags();
    }
    let attributes = attributes.taken_over(&sealer.tags, began)?;
    Some(Found { attributes: Some(Arc::new(attributes)), ..found })
}

fn remote_write<K: 'static, V: 'static>(
    sealer: &Sealer<K, V>,
    counters: &Counters,
    taken: &Taken<K, V>,
) -> Option<RemoteWrite> {
    let Some(key) = sealer.key(&taken.key).map(Bytes::from) else {
        counters.dropped_writes.increment();
        return None;
    };
    let Write::Put(item) = &taken.write else { return Some(RemoteWrite::Remove { key }) };
    let Some(value) = sealer.seal(&key, item) else {
        counters.dropped_writes.increment();
        return Some(RemoteWrite::Remove { key });
    };
    let ttl = (item.expires_unix_ms != 0).then(|| {
        Duration::from_millis(item.expires_unix_ms.saturating_sub(sealer.clock.unix_now()))
    });
    Some(RemoteWrite::Put { key, value, ttl })
}
