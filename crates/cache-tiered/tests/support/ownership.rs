//! Many tasks on few keys, each written by one task, and the one rule that must hold: nobody gets a
//! value older than the last write of its key that had returned before they asked.
//!
//! Values are versions that only grow. A key's owner writes it (insert, insert with a short life,
//! remove); everybody reads, loads, reserves, clears and drops futures halfway. What a loader or a
//! reservation brings is the version that the owner has announced as the source's, as with a backend.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

use cache_tiered::{Cache, InsertOptions, Tier};

const TASKS: u32 = 16;
const KEYS: u32 = 48;

struct Key {
    /// What a backend would answer: written before the cache is.
    source: AtomicU64,
    /// The newest version whose write has returned.
    floor: AtomicU64,
}

struct World {
    cache: Cache<u32, u64>,
    keys: Vec<Key>,
    next: AtomicU64,
    until: Instant,
}

/// Works on the cache for a while, checks every answer, and returns how many were values.
pub(crate) async fn run(cache: &Cache<u32, u64>, time: Duration, seed: u64) -> u64 {
    let key = || Key { source: AtomicU64::new(0), floor: AtomicU64::new(0) };
    let world = Arc::new(World {
        cache: cache.clone(),
        keys: std::iter::repeat_with(key).take(KEYS as usize).collect(),
        next: AtomicU64::new(1),
        until: Instant::now() + time,
    });
    let tasks: Vec<_> =
        (0..TASKS).map(|task| tokio::spawn(Arc::clone(&world).work(task, seed))).collect();
    let mut values = 0;
    for task in tasks {
        values += task.await.expect("a task found an answer that is wrong");
    }
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    for key in 0..KEYS {
        world.check(key, world.floor(key), cache.get(&key).await, "in the end");
    }
    assert_eq!(cache.stats().in_flight, 0, "something is still under way");
    values
}

impl World {
    fn floor(&self, key: u32) -> u64 {
        self.keys[key as usize].floor.load(SeqCst)
    }

    fn check(&self, key: u32, floor: u64, found: Option<u64>, how: &str) -> u64 {
        if let Some(found) = found {
            let newest = self.keys[key as usize].source.load(SeqCst);
            assert!(
                (floor..=newest).contains(&found),
                "key {key}: {how} found {found}, not within {floor} and {newest}"
            );
        }
        u64::from(found.is_some())
    }

    async fn load(&self, key: u32) -> u64 {
        tokio::task::yield_now().await;
        let version = self.keys[key as usize].source.load(SeqCst);
        tokio::task::yield_now().await;
        version
    }

    async fn work(self: Arc<Self>, task: u32, seed: u64) -> u64 {
        let mut rng = fastrand::Rng::with_seed(seed ^ u64::from(task));
        let mut values = 0;
        while Instant::now() < self.until {
            let own = rng.u32(0..KEYS / TASKS) * TASKS + task;
            // Mostly a few keys that everybody wants.
            let key = if rng.bool() { rng.u32(0..6) } else { rng.u32(0..KEYS) };
            let (cache, floor) = (&self.cache, self.floor(key));
            match rng.u32(0..1_000) {
                0..200 => self.write(own, rng.u32(0..8)).await,
                200..230 => {
                    values += self.check(own, self.floor(own), cache.get(&own).await, "its owner");
                }
                230..450 => values += self.check(key, floor, cache.get(&key).await, "get"),
                450..550 => {
                    values += self.check(key, floor, cache.get_in_memory(&key), "get_in_memory");
                }
                550..650 => {
                    let keys: Vec<_> = (0..4).map(|_| rng.u32(0..KEYS)).collect();
                    let floors: Vec<_> = keys.iter().map(|key| self.floor(*key)).collect();
                    let found = cache.get_many(&keys).await;
                    for ((key, floor), found) in keys.into_iter().zip(floors).zip(found) {
                        values += self.check(key, floor, found, "get_many");
                    }
                }
                650..850 => {
                    let load = || async { Ok::<_, Infallible>(self.load(key).await) };
                    // No value if it waited for somebody whose load failed.
                    let found = cache.get_or_load(&key, load).await.ok();
                    values += self.check(key, floor, found, "get_or_load");
                }
                850..900 => {
                    let load = || async { Err::<u64, _>("as told") };
                    let found = cache.get_or_load(&key, load).await.ok();
                    self.check(key, floor, found, "get_or_load that fails");
                }
                900..940 => {
                    let reservation = cache.reserve(&key);
                    let version = self.load(key).await;
                    reservation.insert(version, InsertOptions::default());
                }
                940..985 => {
                    let load = || async { Ok::<_, Infallible>(self.load(key).await) };
                    let polls = rng.usize(0..6);
                    let found = drop_after(polls, cache.get_or_load(&key, load)).await;
                    self.check(key, floor, found.and_then(Result::ok), "get_or_load in time");
                    let found = drop_after(polls, cache.get(&key)).await.flatten();
                    self.check(key, floor, found, "get in time");
                }
                985..992 => {
                    // Memory alone only where nothing is lost by it that a later check would miss.
                    let tier = [None, Some(Tier::Memory), Some(Tier::Disk), Some(Tier::Redis)];
                    let tier = tier[rng.usize(0..4)];
                    if rng.bool() {
                        cache.clear(tier).await;
                    } else {
                        drop_after(rng.usize(0..4), cache.clear(tier)).await;
                    }
                }
                992..996 => _ = cache.remove_expired().await,
                _ => drop(drop_after(rng.usize(0..20), cache.flush()).await),
            }
            if rng.u8(0..16) == 0 {
                tokio::task::yield_now().await;
            }
        }
        values
    }

    async fn write(&self, key: u32, how: u32) {
        let version = self.next.fetch_add(1, SeqCst);
        let state = &self.keys[key as usize];
        state.source.store(version, SeqCst);
        match how {
            0..2 => self.cache.remove(&key).await,
            2 => {
                let ttl = InsertOptions::ttl(Duration::from_millis(5));
                self.cache.insert_with(key, version, ttl);
            }
            _ => self.cache.insert(key, version),
        }
        state.floor.store(version, SeqCst);
    }
}

/// Polls a future so many times, with a moment in between, and then drops it.
pub(crate) async fn drop_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    None
}
