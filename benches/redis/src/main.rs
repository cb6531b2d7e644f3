//! The Redis tier beside `redis-benchmark` and beside fred, the client that it stands on as a rule; and
//! the tier over redis-rs, its other client.
//!
//! A `redis-server` of the suite's own holds 1 KiB values; it, the client and `redis-benchmark` share the
//! machine. Many gets at once go through tasks on a Tokio runtime as it comes, each waiting for its value
//! before it asks for the next. A rate counts only gets that had a value, by the wall clock, because most
//! of the work is in another process. `redis-benchmark` has one connection for each get under way and
//! does not pipeline, as a program without a multiplexing client.
#![forbid(unsafe_code)]

#[cfg(feature = "peers")]
mod peer;
mod server;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cache_tiered::redis::{BreakerState, Lookup, RedisClient, RedisConfig, RedisTier, RemoteWrite};
use tokio::runtime::Runtime;
use ultra_perf_bench::{Clock, Stopwatch, Suite};

use crate::server::{Server, missing_program};

/// Keys in the server.
const KEYS: u32 = 10_000;
/// Bytes of a value.
const VALUE_BYTES: usize = 1 << 10;
/// Gets under way at once.
const IN_FLIGHT: usize = 64;
/// Gets of a round, a multiple of those under way.
const GETS: usize = 200_000;
/// Keys of one `get_many`.
const MANY: usize = 50;
/// Gets of a round without a server.
const GETS_OF_THE_DEAD: u64 = 200_000;
/// The time limit of a get while it is measured: long, so that a busy machine is slow and not wrong.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long something that comes by itself may take.
const PATIENCE: Duration = Duration::from_secs(30);

const SINGLE: (&str, &str) = ("get 1 KiB, 64 in flight", "get/s");
const CPU: &str = "get 1 KiB, 64 in flight, CPU of the client";
const BATCH: (&str, &str) = ("get_many of 50 x 1 KiB", "key/s");
/// The tier over its other client.
const OTHER: &str = "the tier over redis-rs";
const OPEN: (&str, &str) = ("get while the breaker is open", "ms");

#[cfg(not(feature = "peers"))]
const NO_PEERS: &str = "built without peers: cargo xtask bench redis --peers";

fn main() -> ExitCode {
    let mut suite = Suite::new("redis");
    if let Some(program) = missing_program() {
        let reason = format!("{program} is not installed");
        for (case, unit) in [SINGLE, BATCH, OPEN] {
            suite.reported(case, unit).skip(program, &reason);
        }
    } else if let Err(error) = measure(&mut suite) {
        eprintln!("redis: {error}");
        return ExitCode::FAILURE;
    }
    suite.finish()
}

fn measure(suite: &mut Suite) -> io::Result<()> {
    let runtime = Runtime::new()?;
    alive(suite, &runtime, &Server::start()?)?;
    if suite.wants(OPEN.0) {
        dead(suite, &runtime, Server::start()?);
    }
    Ok(())
}

/// What is asked of the tier and of fred.
trait Client: Clone + Send + Sync + 'static {
    /// Fetches a value and tells whether there was one.
    fn get(&self, key: &Bytes) -> impl Future<Output = bool> + Send;

    /// Fetches values and tells how many there were.
    fn get_many(&self, keys: &[Bytes]) -> impl Future<Output = usize> + Send;
}

impl Client for RedisTier {
    async fn get(&self, key: &Bytes) -> bool {
        matches!(RedisTier::get(self, key).await, Lookup::Hit(_))
    }

    async fn get_many(&self, keys: &[Bytes]) -> usize {
        let found = RedisTier::get_many(self, keys).await;
        found.iter().filter(|lookup| matches!(lookup, Lookup::Hit(_))).count()
    }
}

fn alive(suite: &mut Suite, runtime: &Runtime, server: &Server) -> io::Result<()> {
    let value = "0123456789abcdef".repeat(VALUE_BYTES / 16);
    server.fill_for_benchmark(KEYS, &value)?;
    let keys: Arc<[Bytes]> = (0..KEYS).map(|key| server::benchmark_key(key).into()).collect();
    let tier = runtime.block_on(filled_tier(server, &keys, &value, RedisClient::Fred));
    let other = runtime.block_on(filled_tier(server, &keys, &value, RedisClient::RedisRs));
    let single = || runtime.block_on(single_rate(&tier, &keys));

    suite.reported(SINGLE.0, SINGLE.1).at_least(3.0).compare("redis-benchmark", single, || {
        server.benchmark(IN_FLIGHT, GETS, KEYS).expect("redis-benchmark measures a running server")
    });
    let all = GETS as u64;
    suite
        .reported(SINGLE.0, SINGLE.1)
        .compare(OTHER, single, || runtime.block_on(single_rate(&other, &keys)));
    suite.time(CPU, Clock::Cpu, all).compare(
        OTHER,
        || assert_eq!(runtime.block_on(single_hits(&tier, &keys)), all, "every get is a hit"),
        || assert_eq!(runtime.block_on(single_hits(&other, &keys)), all, "every get is a hit"),
    );
    suite.reported(BATCH.0, BATCH.1).compare(
        OTHER,
        || runtime.block_on(batch_rate(&tier, &keys)),
        || runtime.block_on(batch_rate(&other, &keys)),
    );
    #[cfg(feature = "peers")]
    {
        let fred = runtime.block_on(peer::Fred::connect(&server.url(), TIMEOUT));
        suite
            .reported(SINGLE.0, SINGLE.1)
            .at_least(1.5)
            .compare("fred's GET", single, || runtime.block_on(single_rate(&fred, &keys)));
        suite.time(CPU, Clock::Cpu, all).compare(
            "fred's GET",
            || assert_eq!(runtime.block_on(single_hits(&tier, &keys)), all, "every get is a hit"),
            || assert_eq!(runtime.block_on(single_hits(&fred, &keys)), all, "every get is a hit"),
        );
        suite.reported(BATCH.0, BATCH.1).compare(
            "fred's MGET",
            || runtime.block_on(batch_rate(&tier, &keys)),
            || runtime.block_on(batch_rate(&fred, &keys)),
        );
    }
    #[cfg(not(feature = "peers"))]
    {
        suite.reported(SINGLE.0, SINGLE.1).skip("fred's GET", NO_PEERS);
        suite.reported(BATCH.0, BATCH.1).skip("fred's MGET", NO_PEERS);
    }
    runtime.block_on(other.close());
    runtime.block_on(tier.close());
    Ok(())
}

/// A tier in service whose namespace holds every key.
async fn filled_tier(
    server: &Server,
    keys: &[Bytes],
    value: &str,
    client: RedisClient,
) -> RedisTier {
    let config = RedisConfig { client, timeout: TIMEOUT, ..RedisConfig::new(server.url()) };
    let tier = tier_in_service(config).await;
    for keys in keys.chunks(128) {
        let put = |key: &Bytes| RemoteWrite::Put {
            key: key.clone(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ttl: None,
        };
        tier.write(keys.iter().map(put).collect()).await;
    }
    let writes = tier.stats().writes;
    assert_eq!(writes, keys.len() as u64, "the server takes every value");
    tier
}

async fn tier_in_service(config: RedisConfig) -> RedisTier {
    let tier = RedisTier::start("bench", config).expect("a valid configuration");
    until("the tier is in service", || tier.stats().serving).await;
    tier
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Values per second through gets of one key, asked for by as many tasks as gets are under way.
async fn single_rate<C: Client>(client: &C, keys: &Arc<[Bytes]>) -> f64 {
    let watch = Stopwatch::start(Clock::Wall);
    watch.per_second(single_hits(client, keys).await)
}

/// Asks for [`GETS`] keys and tells how many had a value.
async fn single_hits<C: Client>(client: &C, keys: &Arc<[Bytes]>) -> u64 {
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|task| {
            let (client, keys) = (client.clone(), Arc::clone(keys));
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(task as u64);
                let mut hits = 0;
                for _ in 0..GETS / IN_FLIGHT {
                    hits += u64::from(client.get(&keys[rng.usize(..keys.len())]).await);
                }
                hits
            })
        })
        .collect();
    let mut hits = 0;
    for task in tasks {
        hits += task.await.expect("a get does not panic");
    }
    hits
}

/// Values per second through gets of many keys, one after the other.
async fn batch_rate<C: Client>(client: &C, keys: &Arc<[Bytes]>) -> f64 {
    let (client, keys) = (client.clone(), Arc::clone(keys));
    let watch = Stopwatch::start(Clock::Wall);
    let task = tokio::spawn(async move {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut hits = 0;
        for _ in 0..GETS / MANY {
            let first = rng.usize(..keys.len() - MANY);
            hits += client.get_many(&keys[first..first + MANY]).await as u64;
        }
        hits
    });
    let hits = task.await.expect("a get does not panic");
    watch.per_second(hits)
}

/// What a get costs that has a dead server beneath it, once the breaker has noticed.
fn dead(suite: &mut Suite, runtime: &Runtime, server: Server) {
    let config = RedisConfig::new(server.url());
    let tier = runtime.block_on(tier_in_service(config));
    drop(server);
    let key = Bytes::from_static(b"key");
    runtime.block_on(async {
        let start = Instant::now();
        while tier.stats().breaker != BreakerState::Open {
            assert!(start.elapsed() < PATIENCE, "the breaker stays closed");
            Client::get(&tier, &key).await;
        }
    });
    suite.reported(OPEN.0, OPEN.1).at_most(0.01).measure(|| {
        let watch = Stopwatch::start(Clock::Wall);
        runtime.block_on(async {
            for _ in 0..GETS_OF_THE_DEAD {
                assert_eq!(RedisTier::get(&tier, &key).await, Lookup::Unavailable);
            }
        });
        watch.nanos_per(GETS_OF_THE_DEAD) / 1e6
    });
    runtime.block_on(tier.close());
}
