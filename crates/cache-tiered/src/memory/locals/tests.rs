//! Counters and samples, without loom.

use super::*;

#[test]
fn sums_cover_threads_with_and_without_a_block() {
    let locals = Locals::new();
    for thread in [0, 1, EXCLUSIVE - 1, EXCLUSIVE, usize::MAX] {
        locals.hit(thread);
        locals.hit(thread);
        assert!(!locals.miss(thread));
    }
    assert_eq!(locals.counts(), Counts { hits: 10, misses: 5 });
}

#[test]
fn each_thread_has_a_heartbeat_in_its_misses() {
    let locals = Locals::new();
    for thread in [0, 1, EXCLUSIVE] {
        let beats = (0..3 * HEARTBEAT).filter(|_| locals.miss(thread)).count();
        assert_eq!(beats, 3);
    }
}

#[test]
fn a_cache_takes_eight_kibibytes_and_a_thread_that_samples_one_more() {
    let locals = Locals::new();
    locals.hit(3);
    assert!(locals.bytes() <= 8 * 1024, "{}", locals.bytes());
    let idle = locals.bytes();
    locals.sample(3, 1, 1);
    assert_eq!(locals.bytes() - idle, size_of::<Buffer>());
    assert!(size_of::<Buffer>() <= 1024, "{}", size_of::<Buffer>());
}

#[test]
fn a_drain_gives_the_samples_in_order_once() {
    let locals = Locals::new();
    for id in 0..10 {
        locals.sample(5, id, id as u32 + 1);
    }
    let mut seen = Vec::new();
    assert_eq!(locals.drain(5, |id, weight| seen.push((id, weight))), 0);
    assert_eq!(seen, (0..10).map(|id| (id, id as u32 + 1)).collect::<Vec<_>>());
    locals.drain(5, |_, _| panic!("drained twice"));
    locals.drain(6, |_, _| panic!("another thread's sample"));
}

#[test]
fn a_full_buffer_keeps_the_oldest_and_counts_the_rest() {
    let locals = Locals::new();
    let asked = (0..RING as u64 + 70).filter(|&id| locals.sample(0, id, 1)).count();
    // Half, three quarters, full, and once per half a buffer of drops.
    assert_eq!(asked, 3 + 70 / (RING / 2));
    let mut next = 0;
    let dropped = locals.drain(0, |id, _| {
        assert_eq!(id, next);
        next += 1;
    });
    assert_eq!((next, dropped), (RING as u64, 70));
    assert!(!locals.sample(0, 1, 1));
    assert_eq!(locals.drain(0, |id, _| assert_eq!(id, 1)), 0);
}

#[test]
fn a_thread_without_a_block_is_counted_but_not_sampled() {
    let locals = Locals::new();
    assert!((0..1_000).all(|id| !locals.sample(EXCLUSIVE, id, 1)));
    assert_eq!(locals.drain(EXCLUSIVE, |_, _| panic!("nothing was kept")), 0);
}

#[test]
fn the_threshold_takes_its_share_of_the_keys_whatever_bits_they_differ_in() {
    let locals = Locals::new();
    assert!((0..1_000).all(|hash| !locals.sampled(hash)));
    locals.set_threshold(EVERY_KEY);
    assert!((0..1_000).all(|hash| locals.sampled(hash)));
    locals.set_threshold(EVERY_KEY / 16);
    for shift in [0, 7, 20, 32, 44] {
        let taken = (0..1_u64 << 16).filter(|key| locals.sampled(key << shift)).count();
        assert!((3_600..4_600).contains(&taken), "{taken} of 65,536 at shift {shift}");
    }
}

#[test]
fn threads_lose_no_count_and_no_sample() {
    const THREADS: usize = 4;
    const REQUESTS: u64 = if cfg!(miri) { 200 } else { 20_000 };
    let locals = Locals::new();
    let sampled: u64 = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..THREADS)
            .map(|thread| {
                let locals = &locals;
                scope.spawn(move || {
                    let mut seen = 0;
                    for id in 0..REQUESTS {
                        locals.hit(thread);
                        if locals.sample(thread, id, 1) {
                            assert_eq!(locals.drain(thread, |_, _| seen += 1), 0);
                        }
                    }
                    locals.drain(thread, |_, _| seen += 1);
                    seen
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).sum()
    });
    assert_eq!(locals.counts().hits, THREADS as u64 * REQUESTS);
    assert_eq!(sampled, THREADS as u64 * REQUESTS);
}
