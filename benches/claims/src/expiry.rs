//! The claim about expired entries: gone in time, and memory stays flat.
//!
//! Nobody asks for the entries again, so the sweep alone takes them out. It runs by the machine's clock,
//! every minute unless told otherwise; here it runs every [`SWEEP`], and the time until all entries are
//! gone is scaled up by as much. Entries expire by a clock that is moved by hand.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cache_tiered::{Cache, Clock};
use ultra_perf_bench::Suite;

const GONE: &str =
    "\"expired entries gone within 5 minutes\": 50,000, a sweep of 1 min run as 100 ms";
const FLAT: &str =
    "\"with flat memory\": resident set after 20 generations of 50 MB over that after 3";
/// The sweep of the measurement, and the one that it stands for.
const SWEEP: Duration = Duration::from_millis(100);
const SCALED: Duration = Duration::from_secs(60);
const ENTRIES: u64 = 50_000;
const VALUE_BYTES: usize = 1 << 10;
const TTL: Duration = Duration::from_secs(60);
/// How long a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures the claim about expired entries.
pub(crate) fn measure(suite: &mut Suite) {
    if suite.wants(GONE) {
        let mut generation = Generations::new();
        suite.reported(GONE, "s, scaled").rounds(9).at_most(300.0).measure(|| {
            generation.live_and_die().as_secs_f64() / SWEEP.as_secs_f64() * SCALED.as_secs_f64()
        });
    }
    if !suite.wants(FLAT) {
        return;
    }
    if resident_pages().is_none() {
        suite.reported(FLAT, "x").skip("itself", "this system has no /proc/self/statm");
        return;
    }
    let mut generation = Generations::new();
    let mut resident_after = |generations| {
        (0..generations).for_each(|_| _ = generation.live_and_die());
        resident_pages().expect("was there before") as f64
    };
    let (early, late) = (resident_after(3), resident_after(17));
    suite.reported(FLAT, "x").at_most(1.1).observed(late / early);
}

/// Entries that are put, expire together and are swept out, again and again.
struct Generations {
    clock: Clock,
    cache: Cache<u64, Vec<u8>>,
    next: u64,
}

impl Generations {
    fn new() -> Self {
        let clock = Clock::manual();
        let cache = Cache::builder("claims")
            // Room for all generations: what leaves has expired.
            .entries(100 * ENTRIES)
            .ttl(TTL)
            .expiry_sweep(SWEEP)
            .clock(clock.clone());
        Self { clock, cache: cache.build().expect("a valid configuration"), next: 0 }
    }

    /// Puts a generation, lets it expire, and returns how long it then takes until all of it is gone.
    fn live_and_die(&mut self) -> Duration {
        for _ in 0..ENTRIES {
            self.cache.insert(self.next, vec![1; VALUE_BYTES]);
            self.next += 1;
        }
        assert_eq!(self.cache.stats().memory.entries, ENTRIES, "nothing leaves before its time");
        self.clock.advance(TTL + Duration::from_secs(1));
        let start = Instant::now();
        while self.cache.stats().memory.entries > 0 {
            assert!(start.elapsed() < PATIENCE, "expired entries stay");
            thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        assert_eq!(self.cache.stats().memory.evictions.expired, self.next);
        took.max(Duration::from_millis(1))
    }
}

/// The resident set of this process, where the system tells; in pages, of which only ratios are used.
fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}
