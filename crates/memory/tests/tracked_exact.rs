//! The exact mode, where a free counts to the scope that allocated, and the switching on and off.

use std::alloc::System;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::thread;

use memory::{Scope, Track, TrackedExact, track};

#[global_allocator]
static ALLOCATOR: TrackedExact<System> = TrackedExact::new(System);

/// One test at a time: they switch tracking for the process.
static ALONE: Mutex<()> = Mutex::new(());

fn bytes(size: usize) -> Vec<u8> {
    black_box(Vec::with_capacity(size))
}

#[test]
fn a_free_anywhere_counts_to_its_owner() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    track(Track::Scopes).expect("the allocator is tracked");
    let mut made = {
        let _scope = Scope::enter("owner");
        vec![bytes(100), bytes(200)]
    };
    let vec = 2 * size_of::<Vec<u8>>() as i64;
    assert_eq!(Scope::named("owner").report().net, 300 + vec);
    drop(made.pop());
    assert_eq!(Scope::named("owner").report().net, 100 + vec);
    let elsewhere = move || {
        let _scope = Scope::enter("consumer");
        drop(made);
    };
    thread::spawn(elsewhere).join().expect("does not panic");
    assert_eq!(Scope::named("owner").report().net, 0);
    assert_eq!(Scope::named("consumer").report().net, 0);
}

#[test]
fn what_grows_changes_its_owner() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    track(Track::Scopes).expect("the allocator is tracked");
    let mut made = {
        let _scope = Scope::enter("small");
        bytes(100)
    };
    {
        let _scope = Scope::enter("large");
        made.reserve_exact(1_000);
    }
    assert_eq!(Scope::named("small").report().net, 0);
    assert_eq!(Scope::named("large").report().net, 1_000);
    drop(made);
    assert_eq!(Scope::named("large").report().net, 0);
}

#[test]
fn what_was_allocated_while_tracking_was_off_is_never_counted() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _scope = Scope::enter("switched");
    let net = || Scope::named("switched").report().net;
    track(Track::Off).expect("off is always possible");
    let before = bytes(100);
    track(Track::Scopes).expect("the allocator is tracked");
    let during = bytes(200);
    assert_eq!(net(), 200);
    drop(before);
    assert_eq!(net(), 200);
    track(Track::Off).expect("off is always possible");
    drop(during);
    assert_eq!(net(), 0, "known by its owner, so counted while off");
}

#[test]
fn alignments_and_zeroes_are_kept() {
    #[repr(align(4096))]
    struct Page([u8; 4_096]);
    let pages: Vec<Box<Page>> = (0..4).map(|i| Box::new(Page([i; 4_096]))).collect();
    for (i, page) in pages.iter().enumerate() {
        assert_eq!(std::ptr::from_ref(&**page).addr() % 4_096, 0);
        assert!(page.0.iter().all(|byte| usize::from(*byte) == i));
    }
    assert!(black_box(vec![0_u8; 100_000]).iter().all(|byte| *byte == 0));
}
