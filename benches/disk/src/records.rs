//! Small records with the dictionary that the cache learns from them: how much smaller, and at what cost.
//!
//! Records of about 250 bytes, as an API answers with them: the names of their fields repeat and so do
//! some values; numbers, names and times do not. The figures are those of the cache's own statistics,
//! over what was written after the dictionary was in use.

use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::{Cache, Compression, CompressionStats};
use fastrand::Rng;
use tokio::runtime::Runtime;
use ultra_perf_bench::Suite;

const SMALLER: &str = "records of 250 B with a dictionary, how many times smaller";
const DECODE: &str = "records of 250 B with a dictionary, decoding one";
/// Records of which the dictionary is learned, and as many to measure.
const RECORDS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    if !(suite.wants(SMALLER) || suite.wants(DECODE)) {
        return;
    }
    let runtime = Runtime::new().expect("threads can be started");
    let stats = runtime.block_on(measure());
    suite.reported(SMALLER, "x").at_least(2.8).observed(stats.ratio());
    let decode = stats.decode_time.as_secs_f64() * 1e6 / stats.decompressed.max(1) as f64;
    suite.reported(DECODE, "us").at_most(1.5).observed(decode);
}

/// What compression did from the first record after the dictionary on.
async fn measure() -> CompressionStats {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let disk = DiskConfig::new(directory.path()).capacity_bytes(1 << 30);
    let cache: Cache<u64, String> = Cache::builder("records")
        .entries(64)
        .disk(disk)
        .compression(Compression::ZstdDictionary)
        .open()
        .await
        .expect("a valid configuration");
    let mut rng = Rng::with_seed(1);
    let start = Instant::now();
    let mut key = 0;
    while compression(&cache).dictionary == 0 {
        assert!(start.elapsed() < PATIENCE, "no dictionary was learned");
        for _ in 0..RECORDS / 10 {
            cache.insert(key, record(&mut rng));
            key += 1;
        }
        cache.flush().await;
    }
    let before = compression(&cache);
    for key in key..key + RECORDS {
        cache.insert(key, record(&mut rng));
    }
    cache.flush().await;
    for key in key..key + RECORDS {
        assert!(cache.get(&key).await.is_some(), "there is room for all of them");
    }
    let mut stats = compression(&cache);
    stats.bytes_in -= before.bytes_in;
    stats.bytes_out -= before.bytes_out;
    stats.decompressed -= before.decompressed;
    stats.decode_time -= before.decode_time;
    stats
}

fn compression(cache: &Cache<u64, String>) -> CompressionStats {
    cache.stats().compression
}

fn record(rng: &mut Rng) -> String {
    const STATES: [&str; 4] = ["active", "suspended", "invited", "closed"];
    const CITIES: [&str; 6] = ["Lisbon", "Bergen", "Osaka", "Montevideo", "Tartu", "Perth"];
    let name: String = (0..10).map(|_| rng.lowercase()).collect();
    format!(
        r#"{{"id":{},"name":"{name}","email":"{name}@example.org","state":"{}","city":"{}","visits":{},"balance":{}.{:02},"created":"20{:02}-{:02}-{:02}T{:02}:{:02}:{:02}Z","roles":["reader","editor"],"newsletter":{}}}"#,
        rng.u32(..),
        STATES[rng.usize(..STATES.len())],
        CITIES[rng.usize(..CITIES.len())],
        rng.u32(0..10_000),
        rng.u32(0..100_000),
        rng.u32(0..100),
        rng.u32(10..27),
        rng.u32(1..13),
        rng.u32(1..29),
        rng.u32(0..24),
        rng.u32(0..60),
        rng.u32(0..60),
        rng.bool(),
    )
}
