//! Another machine over the same Redis, with memory alone: it writes nothing and sees what it may.
//!
//! What it finds is a whole value of its key, not newer than the source and not older than its time to
//! live. And as long as memory has been following Redis for a while, a value that was flushed a while ago
//! is the least that it may find.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use cache_tiered::{Cache, Tier};

use super::book::{Book, KEYS, STALE, Value, is_whole, is_young, ttl, unix_ms};
use super::worker::{DIRECTORY, REDIS, SEED, abort_on_panic, redis};

const TASKS: u64 = 4;
/// How long ago a value must have been flushed, and how long memory must have been following, for the
/// value to be the least that may be found: a server that was emptied is noticed within about a second.
const SETTLED_MS: u64 = 4_000;

struct Observer {
    cache: Cache<u32, Value>,
    book: Book,
    closing: AtomicBool,
    /// Since when memory has been following without a break, in milliseconds; `u64::MAX` if it is not.
    coherent_since: AtomicU64,
    /// How often memory had been emptied then.
    resets: AtomicU64,
    /// The values that were found, and those among them that had a floor.
    values: AtomicU64,
    settled: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "another child of the_whole_cache_holds_in_every_weather"]
async fn watches_until_it_is_told_to_close() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let setting = |name| std::env::var(name).expect("the parent sets it");
    let (url, seed) = (setting(REDIS), setting(SEED).parse().expect("a number"));
    abort_on_panic();
    // The same times as the other machine: entries in Redis bear the end of its windows.
    let cache = Cache::<u32, Value>::builder("soak")
        .entries(400)
        .ttl_by(|key, _| Some(ttl(*key)))
        .stale_while_revalidate(STALE)
        .redis(redis(url, seed))
        .open()
        .await
        .expect("the cache opens");
    let observer = Arc::new(Observer {
        cache,
        book: Book::open(&PathBuf::from(directory).join("book")),
        closing: AtomicBool::new(false),
        coherent_since: AtomicU64::new(u64::MAX),
        resets: AtomicU64::new(u64::MAX),
        values: AtomicU64::new(0),
        settled: AtomicU64::new(0),
    });
    let told = {
        let observer = Arc::clone(&observer);
        tokio::task::spawn_blocking(move || {
            // One line, or the end of the parent.
            let _ = std::io::stdin().lock().lines().next();
            observer.closing.store(true, SeqCst);
        })
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(Arc::clone(&observer).watch(seed ^ task << 32)))
        .collect();
    for task in tasks {
        task.await.expect("the process ends with a task that panics");
    }
    told.await.expect("it only reads a line");
    observer.cache.close().await;
    let (values, settled) = (observer.values.load(SeqCst), observer.settled.load(SeqCst));
    println!("another machine found {values} values, {settled} of them with a floor");
    println!("closed");
}

impl Observer {
    /// Notes whether memory is following, and returns since when.
    fn following(&self) -> u64 {
        let stats = self.cache.stats().coherence.unwrap_or_default();
        let resets = self.resets.swap(stats.resets, SeqCst);
        if !stats.coherent || stats.resets != resets {
            self.coherent_since.store(u64::MAX, SeqCst);
        } else if self.coherent_since.load(SeqCst) == u64::MAX {
            self.coherent_since.store(unix_ms(), SeqCst);
        }
        self.coherent_since.load(SeqCst)
    }

    async fn watch(self: Arc<Self>, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !self.closing.load(SeqCst) {
            let keys: Vec<_> = (0..rng.usize(1..20)).map(|_| rng.u32(0..KEYS)).collect();
            let (since, at) = (self.following(), unix_ms());
            let lines: Vec<_> = keys.iter().map(|key| self.book.line(*key)).collect();
            let found = match rng.u8(0..3) {
                0 => self.cache.get_many(&keys).await,
                1 => keys.iter().map(|key| self.cache.get_in_memory(key)).collect(),
                _ => {
                    let mut found = Vec::new();
                    for key in &keys {
                        found.push(self.cache.get(key).await);
                    }
                    found
                }
            };
            let settled = since.saturating_add(SETTLED_MS) <= at && self.following() == since;
            for ((key, [_, durable, flushed]), found) in keys.into_iter().zip(lines).zip(found) {
                let Some(found) = found else { continue };
                let how = "another machine's get";
                is_whole(key, &found, how);
                is_young(key, &found, at, Duration::ZERO, how);
                let (version, [source, ..]) = (found.1, self.book.line(key));
                assert!(version <= source, "{how} of key {key} found {version} of {source}");
                self.values.fetch_add(1, SeqCst);
                if settled && flushed + SETTLED_MS <= at {
                    self.settled.fetch_add(1, SeqCst);
                    assert!(
                        version >= durable,
                        "{how} of key {key} found {version}, and {durable} was flushed {} ms ago",
                        at - flushed
                    );
                }
            }
            if rng.u16(..) == 0 {
                self.cache.clear(Tier::Memory).await;
            }
            tokio::time::sleep(Duration::from_micros(rng.u64(0..2_000))).await;
        }
    }
}
