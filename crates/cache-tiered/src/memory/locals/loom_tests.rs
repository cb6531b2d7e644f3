//! Interleavings of a block's owners and of those who sum it, under loom.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::*;

#[test]
fn loom_sums_never_go_back_and_end_complete() {
    loom::model(|| {
        let locals = Arc::new(Locals::new());
        locals.hit(0);
        let other = Arc::clone(&locals);
        let owner = thread::spawn(move || {
            other.hit(0);
            let _ = other.miss(0);
        });
        let (first, second) = (locals.counts(), locals.counts());
        assert!(1 <= first.hits && first.hits <= second.hits && second.hits <= 2);
        assert!(first.misses <= second.misses);
        owner.join().expect("the owner does not panic");
        assert_eq!(locals.counts(), Counts { hits: 2, misses: 1 });
    });
}

#[test]
fn loom_an_index_handed_over_loses_no_count() {
    loom::model(|| {
        let locals = Arc::new(Locals::new());
        let free = Arc::new(AtomicBool::new(false));
        locals.hit(0);
        let (theirs, given) = (Arc::clone(&locals), Arc::clone(&free));
        let old = thread::spawn(move || {
            theirs.hit(0);
            theirs.sample(0, 7, 3);
            // As the registry does when a thread ends.
            given.store(true, Ordering::Release);
        });
        let taken = free.load(Ordering::Acquire);
        if taken {
            locals.hit(0);
            locals.sample(0, 8, 4);
            let mut samples = Vec::new();
            locals.drain(0, |id, weight| samples.push((id, weight)));
            assert_eq!(samples, [(7, 3), (8, 4)]);
        }
        old.join().expect("the old owner does not panic");
        assert_eq!(locals.counts().hits, 2 + u64::from(taken));
    });
}

#[test]
fn loom_the_threshold_is_seen_whole() {
    loom::model(|| {
        let locals = Arc::new(Locals::new());
        let other = Arc::clone(&locals);
        let setter = thread::spawn(move || other.set_threshold(EVERY_KEY));
        let sampled = locals.sampled(1);
        let later = locals.sampled(1);
        assert!(later || !sampled);
        setter.join().expect("the setter does not panic");
        assert!(locals.sampled(1));
    });
}
