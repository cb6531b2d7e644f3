//! Pools, buffers and arenas under everything at once, for as long as one likes, with flat memory.
//!
//! Threads come and go, take and give back on each other's behalf, freeze, detach and panic, while one
//! thread trims and lets time pass and pools are made and dropped. Every buffer carries a stamp that its
//! user writes first and checks last, so that two users of one buffer are found out. At the end of each
//! round the pools are empty of guards and within their caps, and the memory of the process may not have
//! grown since the first rounds.
//!
//! `ULTRA_PERF_SOAK_SECONDS` sets how long this goes on (10) and `ULTRA_PERF_SOAK_SEED` what is done;
//! which thread does it when, nobody can set. `cargo xtask soak memory-pools` runs it for longer.
#![cfg(all(feature = "arena", feature = "buffers"))]

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use memory::{ArenaPool, BufferPool, Pool, PooledBuf, VecPool};

const THREADS: u64 = 4;
const ROUND: Duration = Duration::from_millis(500);
/// Rounds after which the process has what it needs.
const WARM_UP: u64 = 4;
const IDLE_MAX: usize = 200;
const BUFFER_BYTES_MAX: usize = 4 << 20;
/// What an allocator may hold more than at first, by fragmentation and arenas of its own.
const SLACK_KIB: u64 = 48 << 10;

/// xorshift64: what a thread does next.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

struct Pools {
    vectors: VecPool<u64>,
    limited: Pool<Box<u64>>,
    buffers: BufferPool,
    arenas: ArenaPool,
    operations: AtomicU64,
    stamps: AtomicU64,
}

impl Pools {
    fn new() -> Self {
        let often = Duration::from_millis(20);
        Self {
            vectors: VecPool::vectors().idle_max(IDLE_MAX).decay(often).build().expect("valid"),
            limited: Pool::builder(|| Box::new(0)).limit(3).decay(often).build().expect("valid"),
            buffers: BufferPool::builder()
                .idle_bytes_max(BUFFER_BYTES_MAX)
                .decay(often)
                .build()
                .expect("valid"),
            arenas: ArenaPool::builder().arena_bytes_max(64 << 10).build().expect("valid"),
            operations: AtomicU64::new(0),
            stamps: AtomicU64::new(1),
        }
    }

    fn stamped(&self, size: usize) -> (PooledBuf, u64) {
        let stamp = self.stamps.fetch_add(1, Relaxed);
        let mut buffer = self.buffers.take(size);
        assert!(buffer.is_empty() && buffer.capacity() >= size);
        buffer.extend_from_slice(&stamp.to_le_bytes());
        (buffer, stamp)
    }

    fn one(&self, random: &mut Random, other: &SyncSender<(Bytes, u64)>) {
        match random.below(9) {
            0 => {
                let mut vector = self.vectors.take();
                assert!(vector.is_empty());
                vector.extend(0..random.below(500));
            }
            1 => {
                let many: Vec<_> =
                    (0..random.below(90)).map(|_| self.vectors.take_owned()).collect();
                drop(many);
            }
            2 => drop(self.vectors.take_owned().detach()),
            3 => {
                let mut only = self.limited.take();
                **only += 1;
            }
            4 => {
                if let Ok(mut only) = self.limited.take_timeout(Duration::from_micros(50)) {
                    **only += 1;
                }
            }
            5 => {
                let size = 1 << random.below(18);
                let (mut buffer, stamp) = self.stamped(size);
                buffer.resize(8 + random.below(2 * size as u64) as usize, 9);
                assert_eq!(buffer[..8], stamp.to_le_bytes());
            }
            6 => {
                let (buffer, stamp) = self.stamped(64 << 10);
                // Dropped here if the other side has enough to do.
                let _ = other.try_send((buffer.freeze(), stamp));
            }
            7 => self.arenas.scope(|arena| {
                let numbers = arena.alloc_slice_fill_iter(0..random.below(9_000) as u32);
                assert!(numbers.iter().is_sorted());
            }),
            _ => {
                let pool = Pool::builder(|| 1_u8).build().expect("valid");
                let guard = pool.take_owned();
                drop(pool);
                assert_eq!(*guard, 1);
            }
        }
        self.operations.fetch_add(1, Relaxed);
    }

    fn work(&self, seed: u64, until: Instant, other: &SyncSender<(Bytes, u64)>) {
        let mut random = Random(seed | 1);
        while Instant::now() < until {
            for _ in 0..64 {
                self.one(&mut random, other);
            }
        }
        let panicking = AssertUnwindSafe(|| {
            let _guard = self.vectors.take();
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        catch_unwind(panicking).expect_err("it goes on");
    }

    fn round(&self, seed: u64) {
        let until = Instant::now() + ROUND;
        let (send, receive) = sync_channel::<(Bytes, u64)>(64);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let send = send.clone();
                scope.spawn(move || self.work(seed.wrapping_add(thread * 7_919), until, &send));
            }
            drop(send);
            scope.spawn(move || {
                for (bytes, stamp) in receive {
                    assert_eq!(bytes[..], stamp.to_le_bytes());
                }
            });
            while Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
                self.vectors.trim(10_000);
                self.buffers.trim(100_000);
                self.arenas.decay(Instant::now());
                // A thread may be between two counters while these are read.
                assert!(self.vectors.stats().idle <= IDLE_MAX as u64 + THREADS);
                assert!(self.buffers.reclaimable_bytes() <= 2 * BUFFER_BYTES_MAX as u64);
            }
        });
        for stats in [self.vectors.stats(), self.limited.stats(), self.buffers.stats()] {
            assert_eq!((stats.in_use, stats.waiting), (0, 0), "{stats:?}");
        }
        assert!(self.vectors.stats().idle <= IDLE_MAX as u64);
        assert!(self.buffers.reclaimable_bytes() <= BUFFER_BYTES_MAX as u64);
        assert!(self.limited.stats().misses - self.limited.stats().decayed <= 3);
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn pools_keep_their_promises_and_their_size() {
    let seconds = from_env("ULTRA_PERF_SOAK_SECONDS", 10);
    let seed = from_env("ULTRA_PERF_SOAK_SEED", 1);
    println!("soak seed {seed}");
    let pools = Pools::new();
    let start = Instant::now();
    let mut first = None;
    let mut rounds = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        pools.round(seed.wrapping_add(rounds * 104_729));
        rounds += 1;
        let Some(resident) = resident_kib() else { continue };
        let operations = pools.operations.swap(0, Relaxed);
        println!("soak {} {operations} {resident} pools", start.elapsed().as_secs());
        if rounds == WARM_UP {
            first = Some(resident);
        }
        if let Some(first) = first {
            assert!(resident <= first + SLACK_KIB, "{first} KiB have become {resident} KiB");
        }
    }
    // The end of a scope does not wait for what its threads do after their closures, and that is when they
    // give up what they had put by.
    let patience = Instant::now() + Duration::from_secs(10);
    let left = || {
        pools.vectors.trim(u64::MAX);
        pools.buffers.trim(u64::MAX);
        (pools.vectors.stats().idle, pools.buffers.reclaimable_bytes())
    };
    while left() != (0, 0) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(left(), (0, 0));
}
