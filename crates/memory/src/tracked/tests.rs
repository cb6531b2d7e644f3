//! What of the tracking can be seen without being the global allocator.

use super::*;

#[test]
fn tracking_without_the_allocator_is_an_error_that_says_what_to_do() {
    let error = track(Track::Scopes).expect_err("the tests use the system's allocator");
    assert_eq!(error, TrackError::NotInstalled);
    assert!(error.to_string().contains("#[global_allocator]"));
    assert_eq!(tracking(), Track::Off);
}

#[test]
fn an_entry_has_its_own_peak() {
    let block = Block::claim();
    let counters = block.counters(900);
    counters.allocated(100);
    let outer = counters.enter();
    counters.allocated(50);
    let inner = counters.enter();
    counters.allocated(30);
    counters.freed(30);
    counters.allocated(10);
    counters.leave(inner);
    assert_eq!(counters.report().peak, 80, "of the outer, which is still open: 50 + 30");
    counters.freed(60);
    counters.leave(outer);
    // The outermost entry is the thread's life: 100 + 50 + 30.
    let report = counters.report();
    assert_eq!((report.allocs, report.bytes, report.net, report.peak), (4, 190, 100, 180));
    block.release();
}

#[test]
fn an_entry_tells_what_it_has_counted_so_far() {
    let block = Block::claim();
    let counters = block.counters(901);
    counters.allocated(100);
    let frame = counters.enter();
    counters.allocated(50);
    counters.freed(20);
    counters.allocated(5);
    let so_far = counters.since(&frame);
    assert_eq!((so_far.allocs, so_far.bytes, so_far.net, so_far.peak), (2, 55, 35, 50));
    counters.leave(frame);
    block.release();
}

#[test]
fn a_block_is_used_again() {
    let one = Block::claim();
    let two = Block::claim();
    assert!(!std::ptr::eq(one, two));
    one.release();
    two.release();
}

#[test]
fn scopes_have_names_and_a_bound() {
    let one = Scope::named("tests/one");
    assert_eq!((one, one.name()), (Scope::from("tests/one"), "tests/one"));
    assert_eq!((Scope::ROOT.name(), Scope::OTHER.name()), ("(none)", "(other)"));
    let many: Vec<Scope> =
        (0..Scope::MAX).map(|i| Scope::named(&format!("tests/many {i}"))).collect();
    assert_eq!(many.last(), Some(&Scope::OTHER));
    assert_eq!(one.name(), "tests/one");
    assert_eq!(Scope::all().count(), Scope::MAX);
}
