//! The claims about the tiers below memory: rates through all of them, and compression.

use std::path::Path;
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::redis::RedisConfig;
use cache_tiered::{Cache, Tier};
use fastrand::Rng;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::redis_server::{PATIENCE, RedisServer};

/// Entries of a round.
const ENTRIES: u32 = 2_000;
/// Bytes of a value.
const VALUE_BYTES: usize = 1 << 10;
/// The time limit of an operation in Redis: long, so that a busy machine is slow and not wrong.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Entries that memory has room for.
const IN_MEMORY: u64 = 16;

const SETS: &str = "\"> 1,000 sets/s\": 1 KiB until memory, Redis and disk have them all";
const GETS: &str =
    "\"> 2,000 gets/s\": 1 KiB past memory and Redis off the disk, one after the other";

/// Measures the claims about the tiers below memory.
pub(crate) fn measure(suite: &mut Suite) {
    let runtime = Runtime::new().expect("threads can be started");
    if suite.wants(SETS) || suite.wants(GETS) {
        through_all(suite, &runtime);
    }
    compression(suite, &runtime);
}

fn through_all(suite: &mut Suite, runtime: &Runtime) {
    let server = match RedisServer::start() {
        Ok(server) => server,
        Err(error) => {
            let reason = format!("redis-server does not start: {error}");
            suite.reported(SETS, "op/s").skip("redis-server", &reason);
            suite.reported(GETS, "op/s").skip("redis-server", &reason);
            return;
        }
    };
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let cache = runtime.block_on(open(directory.path(), &server));
    let value = "0123456789abcdef".repeat(VALUE_BYTES / 16);
    let made = |writes: Option<cache_tiered::TierStats>| writes.map_or(0, |tier| tier.writes);

    suite.rate(SETS, Clock::Wall, ENTRIES.into()).rounds(9).at_least(1_000.0).measure(|| {
        runtime.block_on(async {
            let before = cache.stats();
            for entry in 0..ENTRIES {
                cache.insert(entry, value.clone());
            }
            cache.flush().await;
            let after = cache.stats();
            for (before, after) in [(before.redis, after.redis), (before.disk, after.disk)] {
                assert_eq!(made(after) - made(before), u64::from(ENTRIES), "a tier has not all");
            }
        });
    });

    // What comes up from the disk goes into memory only, so Redis is asked in vain every time.
    runtime.block_on(async {
        for entry in 0..ENTRIES {
            cache.insert(entry, value.clone());
        }
        cache.flush().await;
        cache.clear(Tier::Redis).await;
    });
    let before = cache.stats();
    suite.rate(GETS, Clock::Wall, ENTRIES.into()).rounds(9).at_least(2_000.0).measure(|| {
        runtime.block_on(async {
            for entry in 0..ENTRIES {
                assert!(cache.get(&entry).await.is_some(), "the disk has everything");
            }
        });
    });
    let after = cache.stats();
    if suite.wants(GETS) {
        let hits = |stats: Option<cache_tiered::TierStats>| stats.map_or(0, |tier| tier.hits);
        let from_disk = hits(after.disk) - hits(before.disk);
        assert_eq!(hits(after.redis), hits(before.redis), "Redis was asked in vain");
        assert!(from_disk >= 10 * u64::from(ENTRIES) * 9 / 10, "the disk answers: {after:?}");
    }
    runtime.block_on(cache.close());
}

/// A cache of all tiers whose Redis is in service.
async fn open(directory: &Path, server: &RedisServer) -> Cache<u32, String> {
    let cache = Cache::builder("claims")
        .entries(IN_MEMORY)
        .disk(DiskConfig::new(directory).capacity_bytes(1 << 30))
        .redis(RedisConfig { timeout: TIMEOUT, ..RedisConfig::new(server.url()) })
        .open()
        .await
        .expect("a valid configuration");
    // The tier connects in the background; a write that arrives shows that it has.
    let deadline = Instant::now() + PATIENCE;
    while cache.stats().redis.is_none_or(|redis| redis.writes == 0) {
        assert!(Instant::now() < deadline, "Redis never came into service");
        cache.insert(u32::MAX, String::new());
        cache.flush().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cache
}

/// A value of 100 KB on its way to the disk: how long, and how much smaller it arrives.
fn compression(suite: &mut Suite, runtime: &Runtime) {
    const TIME: &str = "\"compression < 10 ms\": a 100 KB JSON list, from insert until on disk";
    const FACTOR: &str = "\"compression > 1.5x\": the same, bytes of the value per byte on disk";
    const VALUES: u32 = 50;
    if !(suite.wants(TIME) || suite.wants(FACTOR)) {
        return;
    }
    let directory: TempDir = tempfile::tempdir().expect("the temporary directory is writable");
    let mut rng = Rng::with_seed(4);
    let values: Vec<String> = (0..VALUES).map(|_| orders(100_000, &mut rng)).collect();
    let bytes: usize = values.iter().map(String::len).sum();
    let cache = runtime.block_on(async {
        let disk = DiskConfig::new(directory.path()).capacity_bytes(1 << 30);
        Cache::builder("claims").entries(IN_MEMORY).disk(disk).open().await
    });
    let cache: Cache<u32, String> = cache.expect("a valid configuration");

    let mut next = 0;
    suite.reported(TIME, "ms").rounds(51).at_most(10.0).measure(|| {
        let value = values[next % values.len()].clone();
        let key = next as u32;
        next += 1;
        runtime.block_on(async {
            let watch = Stopwatch::start(Clock::Wall);
            cache.insert(key, value);
            cache.flush().await;
            watch.elapsed().as_secs_f64() * 1e3
        })
    });
    runtime.block_on(async {
        cache.clear(None).await;
        for (key, value) in (0..VALUES).zip(&values) {
            cache.insert(key, value.clone());
        }
        cache.flush().await;
    });
    let disk = cache.stats().disk.expect("the cache has a disk tier");
    assert_eq!(disk.entries, u64::from(VALUES), "everything is on disk");
    suite.reported(FACTOR, "x").at_least(1.5).observed(bytes as f64 / disk.bytes as f64);
    runtime.block_on(cache.close());
}

/// A list of orders as an API sends it, at least this long.
fn orders(bytes: usize, rng: &mut Rng) -> String {
    let mut json = String::from("[");
    while json.len() < bytes {
        let (id, customer) = (rng.u64(..), rng.u32(..100_000));
        let (cents, stock) = (rng.u32(100..100_000), rng.u32(..500));
        let name: String = (0..rng.usize(5..20)).map(|_| rng.lowercase()).collect();
        let status = ["open", "paid", "shipped", "returned"][rng.usize(..4)];
        json += &format!(
            "{{\"order_id\":\"{id:016x}\",\"customer_id\":{customer},\"product_name\":\"{name}\",\
             \"price_cents\":{cents},\"in_stock\":{stock},\"status\":\"{status}\"}},"
        );
    }
    json.pop();
    json + "]"
}
