//! Scopes in a program whose global allocator is tracked: threads, tasks, panics and the ends of
//! threads.
//!
//! All tests count in one process, so each has scopes of its own.

use std::alloc::System;
use std::cell::RefCell;
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::thread;

use memory::{Scope, ScopeExt as _, ScopeReport, Track, Tracked, track, tracking};
use proptest::prelude::*;

#[global_allocator]
static ALLOCATOR: Tracked<System> = Tracked::new(System);

fn start() {
    track(Track::Scopes).expect("the allocator is tracked");
}

fn bytes(size: usize) -> Vec<u8> {
    black_box(Vec::with_capacity(size))
}

/// Allocations, bytes, net and peak of a scope.
fn report(scope: &str) -> (u64, u64, i64, u64) {
    let ScopeReport { allocs, bytes, net, peak, .. } = Scope::named(scope).report();
    (allocs, bytes, net, peak)
}

#[test]
fn a_scope_counts_what_is_allocated_inside() {
    start();
    assert_eq!(tracking(), Track::Scopes);
    let before = bytes(1_000);
    let kept = {
        let _scope = Scope::enter("inside");
        let kept = bytes(100);
        drop(bytes(500));
        kept
    };
    drop((before, bytes(1_000)));
    assert_eq!(report("inside"), (2, 600, 100, 600));
    drop(kept);
    assert_eq!(report("inside"), (2, 600, 100, 600), "a free counts where it happens");
}

#[test]
fn a_nested_scope_counts_for_itself() {
    start();
    // Made before they are counted: a name takes memory.
    let [outer, inner] = ["outer", "inner"].map(Scope::named);
    let _outer = Scope::enter(outer);
    drop(bytes(10));
    {
        let _inner = Scope::enter(inner);
        drop(bytes(20));
        let _again = Scope::enter(outer);
        drop(bytes(40));
    }
    drop(bytes(80));
    assert_eq!(report("inner"), (1, 20, 0, 20));
    assert_eq!(report("outer"), (3, 130, 0, 80));
}

#[test]
fn a_reallocation_is_one_allocation_of_the_new_size() {
    start();
    let _scope = Scope::enter("grown");
    let mut vec = bytes(64);
    vec.reserve_exact(256);
    drop(black_box(vec));
    assert_eq!(report("grown"), (2, 64 + 256, 0, 256));
}

#[test]
fn a_panic_leaves_the_scope() {
    start();
    let panicked = std::panic::catch_unwind(|| {
        let _scope = Scope::enter("panicking");
        std::panic::resume_unwind(Box::new(0_u8));
    });
    assert!(panicked.is_err());
    let counted = report("panicking");
    drop(bytes(100));
    assert_eq!(report("panicking"), counted);
    let here = Scope::enter("after a panic");
    drop(bytes(7));
    drop(here);
    assert_eq!(report("after a panic"), (1, 7, 0, 7));
}

#[test]
fn threads_add_up() {
    start();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let _scope = Scope::enter("threads");
                for _ in 0..1_000 {
                    drop(bytes(16));
                }
            });
        }
    });
    assert_eq!(report("threads"), (8_000, 128_000, 0, 16));
}

#[test]
fn many_threads_one_after_another_lose_nothing() {
    start();
    for _ in 0..200 {
        let one = || {
            let _scope = Scope::enter("one after another");
            drop(bytes(3));
        };
        thread::spawn(one).join().expect("does not panic");
    }
    assert_eq!(report("one after another"), (200, 600, 0, 3));
}

#[test]
fn what_another_thread_frees_counts_there() {
    start();
    let made = {
        let _scope = Scope::enter("producer");
        bytes(100)
    };
    let consumer = move || {
        let _scope = Scope::enter("consumer");
        drop(made);
    };
    thread::spawn(consumer).join().expect("does not panic");
    assert_eq!(report("producer"), (1, 100, 100, 100));
    assert_eq!(report("consumer"), (0, 0, -100, 0));
}

/// Is ready at the second poll.
struct Twice(bool);

impl Future for Twice {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Polls once, and allocates outside of the scope.
fn poll(task: &mut Pin<Box<impl Future<Output = ()>>>) -> Poll<()> {
    let ready = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(bytes(1_000));
    ready
}

#[test]
fn a_future_counts_across_awaits_and_threads() {
    start();
    let task = async {
        let held = bytes(10);
        Twice(false).await;
        let more = bytes(20);
        drop((held, more));
        Twice(false).await;
    };
    let mut task = Box::pin(task.in_scope("task"));
    assert_eq!(poll(&mut task), Poll::Pending);
    let elsewhere = thread::spawn(move || (poll(&mut task), task));
    let (ready, mut task) = elsewhere.join().expect("does not panic");
    assert_eq!(ready, Poll::Pending);
    assert_eq!(poll(&mut task), Poll::Ready(()));
    drop(task);
    assert_eq!(report("task"), (2, 30, 0, 20));
}

#[test]
fn a_future_that_is_dropped_frees_in_its_scope() {
    start();
    {
        let task = async {
            let _held = bytes(50);
            std::future::pending::<()>().await;
        };
        let mut task = pin!(task.in_scope("cancelled"));
        assert!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(report("cancelled").2, 50);
    }
    assert_eq!(report("cancelled"), (1, 50, 0, 50));
}

/// Allocates when its thread ends, after and before other destructors.
struct AtEnd(Vec<u8>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let _scope = Scope::enter("at the end");
        self.0 = bytes(900);
    }
}

thread_local! {
    static EARLY: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
}

#[test]
fn destructors_of_a_thread_can_allocate() {
    start();
    for _ in 0..20 {
        let ends = || {
            EARLY.with(|it| *it.borrow_mut() = Some(AtEnd(bytes(1))));
            drop(bytes(1));
            LATE.with(|it| *it.borrow_mut() = Some(AtEnd(bytes(1))));
        };
        thread::spawn(ends).join().expect("does not panic");
    }
    // Whatever ran after the thread's block was gone counts as outside of scopes.
    assert!(report("at the end").0 <= 40);
}

#[test]
fn the_top_is_sorted_by_what_is_held() {
    start();
    let held: Vec<Vec<u8>> = [("top 1", 9_000_000), ("top 2", 8_000_000), ("top 3", 7_000_000)]
        .map(|(name, size)| {
            let _scope = Scope::enter(name);
            bytes(size)
        })
        .into();
    let top: Vec<&str> = Scope::top(3).iter().map(|(scope, _)| scope.name()).collect();
    assert_eq!(top, ["top 1", "top 2", "top 3"]);
    drop(held);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Free(usize),
    Enter(usize),
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..5_000).prop_map(Step::Allocate),
        3 => any::<usize>().prop_map(Step::Free),
        2 => (0_usize..4).prop_map(Step::Enter),
        2 => Just(Step::Leave),
    ]
}

const NAMES: [&str; 5] = ["model 0", "model 1", "model 2", "model 3", "model"];

/// What the model counts for one scope.
#[derive(Clone, Copy, Default)]
struct Count {
    allocs: u64,
    bytes: u64,
    net: i64,
}

proptest! {
    /// Against a list of numbers, on one thread.
    #[test]
    fn counts_as_a_list_would(steps in prop::collection::vec(step(), 1..100)) {
        start();
        // Everything the model needs is made before anything is counted.
        let mut held: Vec<Vec<u8>> = Vec::with_capacity(200);
        let mut guards = Vec::with_capacity(200);
        let mut model = [Count::default(); 5];
        let before = NAMES.map(|name| Scope::named(name).report());
        let scopes = NAMES.map(Scope::named);
        let mut current = vec![4];
        current.reserve(200);
        let guard = Scope::enter(scopes[4]);
        for step in &steps {
            let here = &mut model[*current.last().expect("never empty")];
            match step {
                Step::Allocate(size) => {
                    held.push(bytes(*size));
                    here.allocs += 1;
                    here.bytes += *size as u64;
                    here.net += *size as i64;
                }
                Step::Free(at) if !held.is_empty() => {
                    let freed = held.swap_remove(at % held.len());
                    here.net -= freed.capacity() as i64;
                }
                Step::Enter(scope) => {
                    guards.push(Scope::enter(scopes[*scope]));
                    current.push(*scope);
                }
                Step::Leave if current.len() > 1 => {
                    guards.pop();
                    current.pop();
                }
                Step::Free(_) | Step::Leave => {}
            }
        }
        while guards.pop().is_some() {}
        drop(guard);
        for ((scope, before), model) in scopes.into_iter().zip(before).zip(model) {
            let after = scope.report();
            prop_assert_eq!(after.allocs - before.allocs, model.allocs);
            prop_assert_eq!(after.bytes - before.bytes, model.bytes);
            prop_assert_eq!(after.net - before.net, model.net);
            prop_assert!(after.peak as i64 <= after.bytes as i64);
        }
    }
}
