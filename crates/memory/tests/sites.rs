//! Sampled live allocations by site, in a program whose global allocator is tracked.

use std::alloc::System;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use memory::{Scope, Site, Track, Tracked, live_sites, track};

#[global_allocator]
static ALLOCATOR: Tracked<System> = Tracked::new(System);

const MIB: usize = 1 << 20;

fn sites_of(scope: &str, now: Instant) -> Vec<Site> {
    let scope = Scope::named(scope);
    live_sites(now).sites.into_iter().filter(|site| site.scope == scope).collect()
}

#[inline(never)]
fn one_place(count: usize, size: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| black_box(Vec::with_capacity(size))).collect()
}

#[test]
fn what_lives_is_found_with_its_stack_and_its_size() {
    track(Track::Sites).expect("the allocator is tracked");
    let begun = Instant::now();
    let held = {
        let _scope = Scope::enter("holding");
        one_place(64 * 16, 64 << 10)
    };
    let sites = sites_of("holding", begun + Duration::from_secs(3_600));
    let bytes: f64 = sites.iter().map(|site| site.live_bytes).sum();
    // 64 MiB are 128 expected samples: four standard deviations are 35 %.
    assert!((40.0..90.0).contains(&(bytes / MIB as f64)), "{bytes}");
    assert!(sites[0].frames.len() > 3);
    assert!(sites[0].median_age > Duration::from_secs(3_000));
    drop(held);
    assert_eq!(sites_of("holding", begun), [], "every sample ended");
}

#[test]
fn what_is_freed_elsewhere_or_moved_is_forgotten() {
    track(Track::Sites).expect("the allocator is tracked");
    let (mut grown, held) = {
        let _scope = Scope::enter("moved");
        (one_place(200, 64 << 10), one_place(200, 64 << 10))
    };
    assert!(!sites_of("moved", Instant::now()).is_empty());
    for vec in &mut grown {
        vec.reserve_exact(128 << 10);
    }
    thread::spawn(move || drop(held)).join().expect("does not panic");
    assert_eq!(sites_of("moved", Instant::now()), []);
    drop(grown);
}

#[test]
fn threads_sample_while_others_look() {
    track(Track::Sites).expect("the allocator is tracked");
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let _scope = Scope::enter("busy");
                for _ in 0..200 {
                    drop(one_place(10, 200 << 10));
                }
            });
        }
        for _ in 0..50 {
            live_sites(Instant::now());
        }
    });
    assert_eq!(sites_of("busy", Instant::now()), []);
}
