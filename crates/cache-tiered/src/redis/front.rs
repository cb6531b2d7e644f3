//! The Redis tier as a tier of the cache: typed values, the queue of writes, and the task that makes
//! them.
//!
//! Values are sealed on a blocking thread, a batch at a time. An envelope that came back is opened
//! where it arrived, unless it is so large that decoding it would hold up an async worker.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Lookup, RedisConfig, RedisTier, RemoteWrite};
use crate::error::Problem;
use crate::lower::{Found, LowerTier, Opening, Sealer, Tier, Write};
use crate::stats::{Counter, TierStats};
use crate::write_behind::{Pushed, Taken, Work, WriteBehind};

/// Writes that go to Redis together.
const BATCH: usize = 128;

/// Envelopes from this length on are opened on a blocking thread.
const OPEN_INLINE_BYTES: usize = 64 << 10;

pub(crate) struct RedisFront<K, V> {
    tier: RedisTier,
    queue: Arc<WriteBehind<K, V>>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
    /// Closed when the writer has ended.
    ended: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct Counters {
    hits: Counter,
    misses: Counter,
    errors: Counter,
    dropped_writes: Counter,
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
        let tier = RedisTier::start(name, config)?;
        let queue = Arc::new(queue);
        let counters = Arc::new(Counters::default());
        let (end, ended) = watch::channel(());
        let writer = Writer {
            tier: tier.clone(),
            queue: Arc::clone(&queue),
            sealer: Arc::clone(&sealer),
            counters: Arc::clone(&counters),
        };
        tokio::spawn(async move {
            writer.run().await;
            drop(end);
        });
        Ok(Self { tier, queue, sealer, counters, ended })
    }

    /// What the queue says of a key: a value, its absence, or nothing.
    fn pending(&self, key: &K) -> Option<Option<Found<V>>> {
        Some(match self.queue.lookup(key)? {
            Write::Put(item) if item.expires_at > self.sealer.clock.now() => {
                Some(Found { value: item.value.clone(), expires_at: item.expires_at })
            }
            _ => None,
        })
    }

    /// Makes a value of what Redis said.
    async fn open(&self, key: Bytes, lookup: Lookup) -> Option<Found<V>> {
        let Lookup::Hit(sealed) = lookup else { return None };
        let opening = if sealed.len() < OPEN_INLINE_BYTES {
            self.sealer.open(&key, &sealed)
        } else {
            let sealer = Arc::clone(&self.sealer);
            let opening = tokio::task::spawn_blocking(move || sealer.open(&key, &sealed));
            opening.await.unwrap_or(Opening::Miss)
        };
        match opening {
            Opening::Value(found) => Some(found),
            Opening::Miss => None,
            Opening::Corrupt => {
                self.counters.errors.increment();
                None
            }
        }
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
        let lookup = self.tier.get(&key).await;
        self.open(key, lookup).await
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

    fn push(&self, key: &K, write: Write<V>) {
        let is_put = matches!(write, Write::Put(_));
        let pushed = self.queue.push(key, write, false);
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
            let mut asked = Vec::new();
            for (at, key) in keys.iter().enumerate() {
                let known = self.pending(key);
                if known.is_none()
                    && let Some(bytes) = self.sealer.key(key)
                {
                    asked.push((at, Bytes::from(bytes)));
                }
                found.push(known.flatten());
            }
            let names: Vec<_> = asked.iter().map(|(_, key)| key.clone()).collect();
            if !names.is_empty() {
                let lookups = self.tier.get_many(&names).await;
                for ((at, key), lookup) in asked.into_iter().zip(lookups) {
                    found[at] = self.open(key, lookup).await;
                }
            }
            found.iter().for_each(|found| self.count(found));
            found
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.queue.clear();
            // A batch that the writer has in hand would otherwise reach the new namespace.
            self.queue.after_pending(|| ()).await;
            self.tier.clear().await;
        })
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
            self.start_close();
            let mut ended = self.ended.clone();
            // The channel carries nothing: it only closes, with the writer.
            while ended.changed().await.is_ok() {}
        })
    }

    fn start_close(&self) {
        self.queue.close();
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
}

struct Writer<K, V> {
    tier: RedisTier,
    queue: Arc<WriteBehind<K, V>>,
    sealer: Arc<Sealer<K, V>>,
    counters: Arc<Counters>,
}

impl<K, V> Writer<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    async fn run(self) {
        loop {
            match self.queue.take(BATCH) {
                Work::Batch(batch) => self.write(batch).await,
                Work::Errand(errand) => errand(),
                Work::Nothing => self.queue.wait_async().await,
                Work::Finished => return self.tier.close().await,
            }
        }
    }

    async fn write(&self, batch: Vec<Taken<K, V>>) {
        let (sealer, counters) = (Arc::clone(&self.sealer), Arc::clone(&self.counters));
        let sealed = tokio::task::spawn_blocking(move || {
            let writes: Vec<_> =
                batch.iter().filter_map(|taken| remote_write(&sealer, &counters, taken)).collect();
            (batch, writes)
        });
        // It fails only when the runtime shuts down, and then nothing is written any more.
        if let Ok((batch, writes)) = sealed.await {
            self.tier.write(writes).await;
            self.queue.done(batch);
        }
    }
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
