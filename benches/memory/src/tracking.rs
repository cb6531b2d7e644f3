//! What counting by scope costs: an allocation and its free, with and without the wrapper.
//!
//! 64 bytes, in a window of 16 that are allocated and freed one after another. Both sides call the
//! allocator directly, in one process whose global allocator is tracked too; see [`crate::allocators`].
//!
//! The targets are +10 % under jemalloc and mimalloc and +5 ns under glibc.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::hint::black_box;
use std::thread;

use memory::{IStr, Interner, Scope, Track, Tracked, TrackedExact, track};
use ultra_perf_bench::{Clock, Suite};

const PAIRS: u64 = 200_000;
const WINDOW: usize = 16;
const LAYOUT: Layout = match Layout::from_size_align(64, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("a valid layout"),
};

/// Adds the rows; the global allocator has to be tracked.
pub(crate) fn rows(suite: &mut Suite) {
    let started = track(Track::Scopes).is_ok();
    assert!(started, "the allocator of this process is tracked");
    memory_of_occurrences(suite);
    allocator(suite, "glibc", || System, |base| 1.0 + 5.0 / base);
    #[cfg(feature = "peers")]
    {
        allocator(suite, "jemalloc", || tikv_jemallocator::Jemalloc, |_| 1.1);
        allocator(suite, "mimalloc", || mimalloc::MiMalloc, |_| 1.1);
    }
    track(Track::Off).expect("off is always possible");
}

fn allocator<A: GlobalAlloc + Sync>(
    suite: &mut Suite,
    name: &str,
    make: impl Fn() -> A,
    target: impl Fn(f64) -> f64,
) {
    let (plain, tracked, exact) = (make(), Tracked::new(make()), TrackedExact::new(make()));
    let base = base(&plain);
    // In a scope with a name, as a server's allocations are.
    let _scope = Scope::enter("bench");
    let modes = [
        ("off", Track::Off, false),
        ("by scope", Track::Scopes, true),
        ("by scope and site", Track::Sites, false),
    ];
    for (mode, what, is_target) in modes {
        track(what).expect("the allocator of this process is tracked");
        let case = format!("{name}: alloc + free 64 B, tracked {mode}");
        let mut one = suite.time(&format!("{case}, 1T"), Clock::Cpu, PAIRS);
        if is_target {
            one = one.at_most(target(base));
        }
        one.compare("untracked", || pairs(&tracked), || pairs(&plain));
        let mut two = suite.time(&format!("{case}, 2T"), Clock::Cpu, 2 * PAIRS);
        if is_target {
            two = two.at_most(target(base));
        }
        two.compare("untracked", || in_two_threads(&tracked), || in_two_threads(&plain));
    }
    track(Track::Scopes).expect("the allocator of this process is tracked");
    let case = format!("{name}: alloc + free 64 B, tracked exactly");
    suite.time(&format!("{case}, 1T"), Clock::Cpu, PAIRS).compare(
        "untracked",
        || pairs(&exact),
        || pairs(&plain),
    );
    suite.time(&format!("{case}, 2T"), Clock::Cpu, 2 * PAIRS).compare(
        "untracked",
        || in_two_threads(&exact),
        || in_two_threads(&plain),
    );
}

/// Nanoseconds of a pair without the wrapper: the lowest of a few rounds.
fn base(plain: &impl GlobalAlloc) -> f64 {
    let round = || {
        let start = std::time::Instant::now();
        pairs(plain);
        start.elapsed().as_nanos() as f64 / PAIRS as f64
    };
    (0..20).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn pairs(allocator: &impl GlobalAlloc) {
    let mut window = [std::ptr::null_mut::<u8>(); WINDOW];
    for pair in 0..PAIRS as usize + WINDOW {
        let place = &mut window[pair % WINDOW];
        // SAFETY: the layout is not empty, and each pointer is given back once, to the allocator it
        // came from, with its layout.
        unsafe {
            if !place.is_null() {
                allocator.dealloc(black_box(*place), LAYOUT);
            }
            *place = std::ptr::null_mut();
            if pair < PAIRS as usize {
                *place = black_box(allocator.alloc(LAYOUT));
                assert!(!place.is_null(), "the machine has 64 bytes");
                place.write(1);
            }
        }
    }
}

fn in_two_threads(allocator: &(impl GlobalAlloc + Sync)) {
    thread::scope(|scope| {
        let work = || {
            let _scope = Scope::enter("bench");
            pairs(allocator);
        };
        scope.spawn(work);
        work();
    });
}

/// Bytes allocated for a million occurrences of 10,000 strings, as `String` and interned.
fn memory_of_occurrences(suite: &mut Suite) {
    let strings: Vec<String> = (0..10_000).map(|i| format!("route/{i:05}/attribute")).collect();
    let net = |scope: &str, work: &dyn Fn() -> Box<dyn Any>| {
        let scope = Scope::named(scope);
        let before = scope.report().net;
        let guard = Scope::enter(scope);
        let held = work();
        let taken = scope.report().net - before;
        drop((held, guard));
        taken as f64
    };
    let million = || (0..1_000_000_usize).map(|i| &strings[i % strings.len()]);
    suite.reported("1 M occurrences of 10,000 strings, IStr", "bytes").at_most(1.0 / 3.0).compare(
        "String",
        || {
            net("interned", &|| {
                let interner = Interner::builder().build().expect("the defaults are valid");
                let handles: Vec<IStr> = million().map(|text| interner.intern(text)).collect();
                Box::new((interner, handles))
            })
        },
        || net("strings", &|| Box::new(million().cloned().collect::<Vec<String>>())),
    );
}
