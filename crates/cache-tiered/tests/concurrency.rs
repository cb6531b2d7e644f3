//! Everything at once: many tasks over small tiers, values and weighers that call the cache, futures
//! that are dropped at each await, and threads whose work panics.
#![cfg(feature = "disk")]

#[path = "support/ownership.rs"]
mod ownership;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, RwLock, mpsc};
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::{
    BuildError, Cache, CacheBuilder, Clock, Codec, CodecError, InsertOptions, Tier, WritePolicy,
};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use ownership::drop_after;
use watchdog::Watchdog;

const POLICIES: [WritePolicy; 2] = [WritePolicy::Through, WritePolicy::OnEviction];

fn small(path: &Path, policy: WritePolicy) -> CacheBuilder<u32, u64> {
    Cache::builder("test")
        .entries(12)
        .expiry_sweep(Duration::from_millis(3))
        .write_policy(policy)
        .write_queue(5, u64::MAX)
        .disk(DiskConfig::new(path).capacity_bytes(2 << 20).read_threads(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_finds_a_value_older_than_the_last_write_that_returned() {
    let _watchdog = Watchdog::over("the ownership model over a disk");
    for (seed, policy) in POLICIES.into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let cache = small(directory.path(), policy).open().await.unwrap();
        let values = ownership::run(&cache, Duration::from_secs(3), seed as u64).await;
        let stats = cache.stats();
        cache.close().await;
        // The run has been through everything that it is about.
        let disk = stats.disk.unwrap();
        assert!(values > 1_000, "{stats:?}");
        assert!(disk.hits > 0 && disk.dropped_writes > 0, "{policy:?} {stats:?}");
        assert!(stats.superseded > 0 && stats.coalesced > 0, "{policy:?} {stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_finds_a_value_older_than_the_last_write_in_memory_alone() {
    let _watchdog = Watchdog::over("the ownership model in memory");
    let cache = Cache::builder("test").entries(12).build().unwrap();
    ownership::run(&cache, Duration::from_secs(2), 7).await;
}

/// What a clear has to leave behind: numbers taken before it began.
struct Era {
    next: AtomicU64,
    /// The newest clear that has returned.
    cleared: AtomicU64,
    /// Held while something is inserted, so that no insert spans the beginning of a clear.
    inserting: RwLock<()>,
}

impl Era {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_from_before_a_clear_is_found_after_it() {
    let _watchdog = Watchdog::over("clears");
    for policy in POLICIES {
        let directory = tempfile::tempdir().unwrap();
        let cache = small(directory.path(), policy).write_queue(1_000, u64::MAX).open().await;
        let cache = cache.unwrap();
        let era = Arc::new(Era {
            next: AtomicU64::new(1),
            cleared: AtomicU64::new(0),
            inserting: RwLock::new(()),
        });
        let until = Instant::now() + Duration::from_secs(2);
        let tasks = (0..8).map(|task| {
            let (cache, era) = (cache.clone(), Arc::clone(&era));
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(task);
                while Instant::now() < until {
                    let key = rng.u32(0..40);
                    let cleared = era.cleared.load(SeqCst);
                    let found = match rng.u32(0..200) {
                        0..80 => cache.get(&key).await,
                        80..140 => {
                            // Its number says when it began: the caller may have asked earlier.
                            let load = || async {
                                let number = era.number();
                                tokio::task::yield_now().await;
                                Ok::<_, Infallible>(number)
                            };
                            cache.get_or_load(&key, load).await.ok()
                        }
                        140..196 => {
                            let _inserting = era.inserting.read().unwrap();
                            cache.insert(key, era.number());
                            None
                        }
                        _ => {
                            let began = {
                                let _nobody_inserts = era.inserting.write().unwrap();
                                era.number()
                            };
                            cache.clear(None).await;
                            era.cleared.fetch_max(began, SeqCst);
                            None
                        }
                    };
                    assert!(
                        found.is_none_or(|it| it > cleared),
                        "{found:?} is from before {cleared}"
                    );
                    tokio::task::yield_now().await;
                }
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        assert!(era.cleared.load(SeqCst) > 0);
        cache.close().await;
    }
}

/// A value whose drop looks into the cache and writes to it.
#[derive(Debug, Clone)]
struct Nosy {
    key: u32,
    cache: Arc<OnceLock<Cache<u32, Option<Nosy>>>>,
}

impl Drop for Nosy {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.get() {
            std::mem::forget(cache.get_in_memory(&self.key));
            // The same shard, and another one.
            cache.insert(self.key, None);
            cache.insert(self.key ^ 1, None);
            cache.remove(&(self.key ^ 2)).now_or_never().expect("nothing to wait for");
        }
    }
}

struct NosyCodec(Arc<OnceLock<Cache<u32, Option<Nosy>>>>);

impl Codec<u32, Option<Nosy>> for NosyCodec {
    fn id(&self) -> u8 {
        200
    }

    fn encode_key(&self, key: &u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&key.to_be_bytes());
        Ok(())
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    fn encode(&self, value: &Option<Nosy>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend(value.iter().flat_map(|nosy| nosy.key.to_be_bytes()));
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Option<Nosy>, CodecError> {
        let Ok(key) = <[u8; 4]>::try_from(bytes) else { return Ok(None) };
        Ok(Some(Nosy { key: u32::from_be_bytes(key), cache: Arc::clone(&self.0) }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_values_drop_may_call_the_cache() {
    let _watchdog = Watchdog::over("values that call the cache when dropped");
    for policy in POLICIES {
        let directory = tempfile::tempdir().unwrap();
        let home = Arc::new(OnceLock::new());
        let clock = Clock::manual();
        let cache = Cache::<u32, Option<Nosy>>::builder("test")
            // Every hundredth is refused.
            .bytes(20, |key, _| if key % 100 == 99 { 1_000 } else { 1 })
            .ttl(Duration::from_secs(1))
            .expiry_sweep(Duration::from_millis(2))
            .clock(clock.clone())
            .write_policy(policy)
            .write_queue(8, u64::MAX)
            .disk_with(
                DiskConfig::new(directory.path()).capacity_bytes(2 << 20),
                NosyCodec(Arc::clone(&home)),
            )
            .open()
            .await
            .unwrap();
        home.set(cache.clone()).unwrap();
        let tasks = (0..4).map(|task| {
            let (cache, home, clock) = (cache.clone(), Arc::clone(&home), clock.clone());
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(task);
                for _ in 0..1_500 {
                    let key = rng.u32(0..100);
                    let nosy = || Some(Nosy { key, cache: Arc::clone(&home) });
                    match rng.u32(0..12) {
                        0..4 => cache.insert(key, nosy()),
                        4..6 => drop(cache.get(&key).await),
                        6..8 => {
                            let load = || async { Ok::<_, Infallible>(nosy()) };
                            drop(cache.get_or_load(&key, load).await);
                        }
                        8 => cache.remove(&key).await,
                        9 => drop(cache.get_many(&[key, key ^ 1]).await),
                        10 => clock.advance(Duration::from_millis(40)),
                        _ if rng.u8(0..10) == 0 => cache.clear(None).await,
                        _ => _ = cache.remove_expired().await,
                    }
                }
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        cache.close().await;
    }
}

#[tokio::test]
async fn a_weigher_may_call_the_cache() {
    let _watchdog = Watchdog::over("a weigher that calls the cache");
    let directory = tempfile::tempdir().unwrap();
    let home = Arc::new(OnceLock::<Cache<u32, u64>>::new());
    let inner = Arc::clone(&home);
    let cache = Cache::<u32, u64>::builder("test")
        .bytes(100, move |key, value| {
            let Some(cache) = inner.get().filter(|_| *value > 0) else { return 1 };
            cache.insert(*key, 0);
            cache.get_in_memory(key).map_or(1, |_| 2)
        })
        .disk(DiskConfig::new(directory.path()).capacity_bytes(2 << 20))
        .open()
        .await
        .unwrap();
    home.set(cache.clone()).unwrap();
    cache.insert(1, 10);
    assert_eq!(cache.get(&1).await, Some(10));
    cache.flush().await;
    cache.clear(Tier::Memory).await;
    // On its way up, the weigher replaces it: what was read is returned, and not kept.
    assert_eq!(cache.get(&1).await, Some(10));
    assert_eq!(cache.get(&1).await, Some(0));
    let load = || async { Ok::<_, Infallible>(20) };
    assert_eq!(cache.get_or_load(&2, load).await.unwrap(), 20);
    cache.close().await;
}

const OLD: u64 = 1;
const NEW: u64 = 2;
/// Is not written before its gate opens, and keeps the disk's writer busy until then.
const GATE: u64 = 3;

struct Gated {
    reached: mpsc::SyncSender<()>,
    opened: Mutex<mpsc::Receiver<()>>,
}

impl Codec<u32, u64> for Gated {
    fn id(&self) -> u8 {
        202
    }

    fn encode_key(&self, key: &u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&key.to_be_bytes());
        Ok(())
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    fn encode(&self, value: &u64, out: &mut Vec<u8>) -> Result<(), CodecError> {
        // Where a key is watched, whoever inserts encodes as well.
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        if *value == GATE && name.ends_with("disk-write") {
            self.reached.send(())?;
            // An error says that the gate's other side is gone: it is open.
            let _ = self.opened.lock().unwrap().recv();
        }
        out.extend_from_slice(&value.to_be_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
        Ok(u64::from_be_bytes(bytes.try_into()?))
    }
}

#[tokio::test]
async fn a_value_that_is_pushed_out_at_once_during_a_clear_leaves_nothing_older_below() {
    let _watchdog = Watchdog::over("a clear behind a busy writer");
    let directory = tempfile::tempdir().unwrap();
    let (gate, opened) = mpsc::sync_channel(0);
    let (reached, is_reached) = mpsc::sync_channel(1);
    let config = DiskConfig::new(directory.path()).capacity_bytes(8 << 20);
    let cache = Cache::<u32, u64>::builder("test")
        // Twelve entries, and the gate is too heavy: it goes to the disk at once.
        .bytes(12 << 10, |_, value| if *value == GATE { 1 << 20 } else { 1 << 10 })
        .write_policy(WritePolicy::OnEviction)
        .disk_with(config, Gated { reached, opened: Mutex::new(opened) })
        .open()
        .await
        .unwrap();
    (0..60).for_each(|key| cache.insert(key, OLD));
    cache.flush().await;
    cache.insert(100, GATE);
    is_reached.recv().unwrap();
    // The disk is not empty before the gate opens, and evictions are not written.
    let mut clear = Box::pin(cache.clear(None));
    assert!(clear.as_mut().now_or_never().is_none());
    // Memory is full of what is in use, so that a key which it remembers as evicted comes in among
    // entries that are all warmer, and is the first to go.
    let warm = 200..212;
    warm.clone().for_each(|key| cache.insert(key, NEW));
    for key in (40..59).rev() {
        for _ in 0..3 {
            warm.clone().for_each(|key| assert_ne!(cache.get_in_memory(&key), Some(OLD)));
        }
        cache.insert(key, NEW);
        assert_ne!(cache.get(&key).await, Some(OLD), "key {key}");
    }
    drop(gate);
    clear.await;
    assert_eq!(cache.get(&30).await, None);
    cache.close().await;
}

#[tokio::test]
async fn every_future_can_be_dropped_at_every_await() {
    let _watchdog = Watchdog::over("futures that are dropped");
    for policy in POLICIES {
        let directory = tempfile::tempdir().unwrap();
        let cache = small(directory.path(), policy).open().await.unwrap();
        for polls in 0..12 {
            let load = || async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Infallible>(7)
            };
            cache.clear(None).await;
            // A waiter must get through, whatever becomes of the one who leads.
            let waiter = async {
                tokio::task::yield_now().await;
                cache.get_or_load(&1, load).await.unwrap()
            };
            let (_, waited) = tokio::join!(drop_after(polls, cache.get_or_load(&1, load)), waiter);
            assert_eq!(waited, 7);
            (0..40).for_each(|key| cache.insert(key, 7));
            drop_after(polls, cache.get(&2)).await;
            drop_after(polls, cache.get_many(&[3, 4, 5])).await;
            drop_after(polls, cache.remove_expired()).await;
            drop_after(polls, cache.flush()).await;
            drop_after(polls, cache.clear(None)).await;
            assert_eq!(cache.stats().in_flight, 0, "after {polls} polls");

            cache.insert(1, polls as u64);
            assert_eq!(cache.get(&1).await, Some(polls as u64));
            let on_disk = cache.stats().disk.unwrap().writes;
            (0..40).for_each(|key| cache.insert(key, 8));
            cache.flush().await;
            assert!(cache.stats().disk.unwrap().writes > on_disk, "a clear was left half-way");
        }
        cache.close().await;
    }
}

#[tokio::test]
async fn a_close_or_open_that_is_dropped_leaves_the_directory_free_in_the_end() {
    let _watchdog = Watchdog::over("close and open that are dropped");
    let directory = tempfile::tempdir().unwrap();
    // Room for all of them: an eviction that meets a full queue may be lost, and that is no matter here.
    let open = || small(directory.path(), WritePolicy::OnEviction).entries(1_000).open();
    for polls in 0..8 {
        let cache = open_when_free(open).await;
        (0..100).for_each(|key| cache.insert(key, polls));
        drop_after(polls as usize, cache.close()).await;
        cache.close().await;
        cache.close().await;
        // The opening that was dropped below may still come to its turn, and go.
        let cache = open_when_free(open).await;
        let found = cache.get_many(&Vec::from_iter(0..100)).await;
        assert_eq!(found, vec![Some(polls); 100], "after {polls} polls");
        cache.close().await;
        drop(drop_after(polls as usize, open()).await);
    }
}

/// Opens when those who had the directory before have gone.
async fn open_when_free<F>(open: impl Fn() -> F) -> Cache<u32, u64>
where
    F: Future<Output = Result<Cache<u32, u64>, BuildError>>,
{
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match open().await {
            Ok(cache) => return cache,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_that_are_under_way_survive_a_close() {
    let _watchdog = Watchdog::over("reads during a close");
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let cache = small(directory.path(), WritePolicy::Through)
            .write_queue(1_000, u64::MAX)
            .open()
            .await
            .unwrap();
        (0..500).for_each(|key| cache.insert(key, u64::from(key)));
        cache.flush().await;
        let reads: Vec<_> = (0..500)
            .map(|key| {
                let cache = cache.clone();
                tokio::spawn(async move { (u64::from(key), cache.get(&key).await) })
            })
            .collect();
        cache.close().await;
        for read in reads {
            let (key, found) = read.await.unwrap();
            assert!(found.is_none_or(|found| found == key));
        }
        // What memory has is still there, and a write is no error.
        cache.insert(1, 2);
        assert_eq!(cache.get(&1).await, Some(2));
        assert_eq!(cache.stats().disk.unwrap().entries, 500);
        cache.flush().await;
        cache.clear(None).await;
    }
}

#[tokio::test]
async fn with_writes_on_eviction_a_close_writes_more_than_the_queue_holds() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        Cache::<u32, u64>::builder("test")
            .entries(4_000)
            .write_policy(WritePolicy::OnEviction)
            .write_queue(3, u64::MAX)
            .disk(DiskConfig::new(directory.path()).capacity_bytes(4 << 20))
            .open()
    };
    let cache = open().await.unwrap();
    (0..2_000).for_each(|key| cache.insert(key, u64::from(key)));
    cache.close().await;
    assert_eq!(cache.stats().disk.unwrap().dropped_writes, 0);
    let cache = open().await.unwrap();
    for key in 0..2_000 {
        assert_eq!(cache.get(&key).await, Some(u64::from(key)));
    }
    cache.close().await;
}

/// Panics once when it is dropped on a thread of the disk tier.
#[derive(Debug, Clone)]
struct Fragile(Arc<AtomicBool>);

impl Drop for Fragile {
    fn drop(&mut self) {
        let on_disk_thread = std::thread::current().name().is_some_and(|it| it.contains("-disk-"));
        if on_disk_thread && self.0.swap(false, SeqCst) {
            panic!("as told");
        }
    }
}

struct FragileCodec(Arc<AtomicBool>);

impl Codec<u32, Fragile> for FragileCodec {
    fn id(&self) -> u8 {
        201
    }

    fn encode_key(&self, key: &u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&key.to_be_bytes());
        Ok(())
    }

    fn decode_key(&self, bytes: &[u8]) -> Result<u32, CodecError> {
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    fn encode(&self, _: &Fragile, _: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(())
    }

    fn decode(&self, _: &[u8]) -> Result<Fragile, CodecError> {
        Ok(Fragile(Arc::clone(&self.0)))
    }
}

#[tokio::test]
async fn a_value_that_panics_when_dropped_does_not_take_the_disk_tier_along() {
    let _watchdog = Watchdog::over("a drop that panics");
    let directory = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let config = DiskConfig::new(directory.path()).capacity_bytes(2 << 20).read_threads(1);
    let cache = Cache::<u32, Fragile>::builder("test")
        .entries(1)
        .disk_with(config, FragileCodec(Arc::clone(&armed)))
        .open()
        .await
        .unwrap();
    for round in 0..10 {
        armed.store(true, SeqCst);
        // Memory keeps one entry, so the writer drops the last of most of them.
        (0..50).for_each(|key| cache.insert(key, Fragile(Arc::clone(&armed))));
        cache.flush().await;
        assert!(cache.get(&round).await.is_some());
    }
    assert!(cache.stats().disk.unwrap().errors >= 10);
    armed.store(false, SeqCst);
    cache.close().await;
}

#[tokio::test]
async fn a_reservation_keeps_what_no_write_has_overtaken() {
    let cache = Cache::<u32, u64>::builder("test").entries(10).build().unwrap();
    let options = InsertOptions::default();
    let reservation = cache.reserve(&1);
    assert_eq!(cache.stats().in_flight, 1);
    assert!(reservation.is_current() && reservation.insert(1, options.clone()));
    assert!(reservation.insert(2, options.clone()), "its own insert does not end it");
    cache.insert(1, 3);
    assert!(!reservation.is_current() && !reservation.insert(4, options));
    assert_eq!(cache.get_in_memory(&1), Some(3));
    let second = cache.reserve(&1);
    assert!(!second.insert(5, InsertOptions::ttl(Duration::ZERO)));
    assert_eq!(cache.get_in_memory(&1), Some(3));
    cache.clear(None).await;
    assert!(!second.is_current());
    drop((reservation, second));
    assert_eq!(cache.stats().in_flight, 0);
}
