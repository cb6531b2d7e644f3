//! The claims about memory: what interning saves, and how often a pool lends and takes back.

use std::alloc::System;
use std::hint::black_box;

use memory::{IStr, Interner, Pool, Scope, Track, Tracked, track};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

/// Counts by scope while it is told to, and costs a branch otherwise.
#[global_allocator]
static ALLOCATOR: Tracked<System> = Tracked::new(System);

/// Records that are kept, each of three texts.
const RECORDS: u64 = 200_000;
/// Objects that are out at the same time.
const OUT: u64 = 10_000;
const OBJECT_BYTES: usize = 4 << 10;

/// Measures the claims about memory.
pub(crate) fn measure(suite: &mut Suite) {
    interning(suite);
    pool(suite);
}

fn interning(suite: &mut Suite) {
    const CASE: &str =
        "\"memory 40 % less\": 200,000 records of route, agent and tenant, interned, bytes held";
    const PEER: &str = "as String";
    if !suite.wants(&format!("{CASE} vs {PEER}")) {
        return;
    }
    track(Track::Scopes).expect("the allocator of this program is tracked");
    suite.reported(CASE, "MB").rounds(9).at_most(0.6).compare(
        PEER,
        || {
            held_mb(|| {
                let interner = Interner::builder().strings_max(100_000).build();
                let interner = interner.expect("a valid configuration");
                let kept: Vec<[IStr; 3]> =
                    (0..RECORDS).map(|at| record(at).map(|text| interner.intern(&text))).collect();
                (interner, kept)
            })
        },
        || held_mb(|| (0..RECORDS).map(record).collect::<Vec<_>>()),
    );
    track(Track::Off).expect("the allocator of this program is tracked");
}

/// What a service could keep of each request: one of 400 routes, 60 agents and 2,000 tenants.
fn record(at: u64) -> [String; 3] {
    let at = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    [
        format!("GET /api/v1/shops/articles/group-{}", at % 400),
        format!("Mozilla/5.0 (X11; Linux x86_64; rv:{}.0) Gecko/20100101", at / 7 % 60),
        format!("tenant-{:08}.example.com", at / 11 % 2_000),
    ]
}

/// The bytes that are held once something has been made, all of it counted.
fn held_mb<T>(make: impl FnOnce() -> T) -> f64 {
    let scope = Scope::enter("held");
    let made = black_box(make());
    let net = scope.so_far().net;
    drop(made);
    net as f64 / 1e6
}

fn pool(suite: &mut Suite) {
    let pool = Pool::builder(|| vec![0_u8; OBJECT_BYTES]).idle_max(2 * OUT as usize).build();
    let pool = pool.expect("a valid configuration");
    let take_all = || (0..OUT).map(|_| black_box(&pool).take()).collect::<Vec<_>>();
    drop(take_all());

    let case = "\"pool > 5,000 takes/s\": 10,000 objects of 4 KiB, all out at once, one thread";
    suite.reported(case, "op/s").at_least(5_000.0).measure(|| {
        let watch = Stopwatch::start(Clock::Wall);
        let out = take_all();
        let rate = watch.per_second(OUT);
        drop(out);
        rate
    });
    let case = "\"pool > 10,000 releases/s\": the same objects given back, one thread";
    suite.reported(case, "op/s").at_least(10_000.0).measure(|| {
        let out = take_all();
        let watch = Stopwatch::start(Clock::Wall);
        drop(out);
        watch.per_second(OUT)
    });
}
