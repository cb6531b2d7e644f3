//! What the macros add to a hit.

use std::hint::black_box;

use tokio::runtime::Builder;
use ultra_perf::cache_tiered::Cache;
use ultra_perf::{OptimizationLevel, TaskError, UltraPerf};
use ultra_perf_bench::{Clock, Suite};

/// Calls of a round, over so many keys.
const CALLS: u64 = 200_000;
const KEYS: u64 = 1_000;

#[ultra_perf::optimize(io, cache = "10m", timeout = "2s")]
async fn optimized(_perf: &UltraPerf, key: u64) -> Result<u64, TaskError> {
    Ok(key.wrapping_mul(3))
}

#[ultra_perf::cached(ttl = "10m")]
async fn kept(_perf: &UltraPerf, key: u64) -> u64 {
    key.wrapping_mul(3)
}

/// Measures calls whose result is there, beside asking a cache of the same kind.
pub(crate) fn measure(suite: &mut Suite) {
    const PEER: &str = "cache.get";
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (perf, cache) = runtime.block_on(async {
        let perf = UltraPerf::builder()
            .level(OptimizationLevel::Basic)
            .set("monitor.history.enabled", "false")
            .build()
            .await
            .expect("a valid configuration");
        let cache: Cache<u64, u64> =
            perf.cache("direct").open().await.expect("a valid configuration");
        for key in 0..KEYS {
            cache.insert(key, key.wrapping_mul(3));
            assert_eq!(
                optimized(&perf, key).await.expect("it does not fail"),
                kept(&perf, key).await
            );
        }
        (perf, cache)
    });
    let direct = || {
        runtime.block_on(async {
            for call in 0..CALLS {
                black_box(cache.get(&black_box(call % KEYS)).await);
            }
        });
    };
    let row = suite.time("a hit of #[optimize(io, cache, timeout)]", Clock::Cpu, CALLS);
    row.at_most(1.3).compare(
        PEER,
        || {
            runtime.block_on(async {
                for call in 0..CALLS {
                    let _ = black_box(optimized(&perf, black_box(call % KEYS)).await);
                }
            });
        },
        direct,
    );
    suite.time("a hit of #[cached]", Clock::Cpu, CALLS).at_most(1.3).compare(
        PEER,
        || {
            runtime.block_on(async {
                for call in 0..CALLS {
                    black_box(kept(&perf, black_box(call % KEYS)).await);
                }
            });
        },
        direct,
    );
}
