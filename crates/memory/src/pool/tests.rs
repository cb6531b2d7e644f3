//! The pool against a counting model, and the promises of its pages one by one.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use proptest::prelude::*;

use super::*;

/// Counts how many of it exist.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn factory() -> (Arc<AtomicUsize>, impl Fn() -> Self + Send + Sync + 'static) {
        let alive = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&alive);
        let factory = move || {
            count.fetch_add(1, SeqCst);
            Self(Arc::clone(&count))
        };
        (alive, factory)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A clock that stands still, so that a pool decays only when a test says so.
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn after(seconds: u64) -> Instant {
    start() + Duration::from_secs(seconds)
}

fn counted() -> (Arc<AtomicUsize>, PoolBuilder<Counted>) {
    let (alive, factory) = Counted::factory();
    (alive, Pool::builder(factory).clock(start))
}

/// Takes and returns `n` objects at once, so that they rest.
fn fill<T: Send>(pool: &Pool<T>, n: usize) {
    let guards: Vec<_> = (0..n).map(|_| pool.take()).collect();
    drop(guards);
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    TakeOwned,
    Return(usize),
    Detach(usize),
    Decay,
    Trim(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Take),
        3 => Just(Step::TakeOwned),
        8 => any::<usize>().prop_map(Step::Return),
        1 => any::<usize>().prop_map(Step::Detach),
        1 => Just(Step::Decay),
        1 => (0_usize..20).prop_map(Step::Trim),
    ]
}

enum Guard<'p> {
    Borrowed(Pooled<'p, Counted>),
    Owned(PooledOwned<Counted>),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 100 }))]

    /// One number says what rests; a take is a hit if it is not zero, and a return stays if it is below
    /// the cap.
    #[test]
    fn the_pool_does_what_a_counter_would(
        steps in prop::collection::vec(step(), 1..300),
        idle_max in 1_usize..80,
    ) {
        let (alive, builder) = counted();
        let weight = 10;
        let pool = builder.idle_max(idle_max).weigh(move |_| weight).build().expect("valid");
        let (mut hits, mut misses, mut idle, mut discarded, mut seconds) = (0, 0, 0, 0, 0);
        let mut guards = Vec::new();
        let mut kept = Vec::new();
        for step in steps {
            match step {
                Step::Take | Step::TakeOwned => {
                    if idle > 0 { idle -= 1; hits += 1 } else { misses += 1 }
                    guards.push(match step {
                        Step::Take => Guard::Borrowed(pool.take()),
                        _ => Guard::Owned(pool.take_owned()),
                    });
                }
                Step::Return(which) if !guards.is_empty() => {
                    let at = which % guards.len();
                    drop(guards.swap_remove(at));
                    if idle < idle_max { idle += 1 } else { discarded += 1 }
                }
                Step::Detach(which) if !guards.is_empty() => {
                    let at = which % guards.len();
                    kept.push(match guards.swap_remove(at) {
                        Guard::Borrowed(guard) => guard.detach(),
                        Guard::Owned(guard) => guard.detach(),
                    });
                }
                Step::Return(_) | Step::Detach(_) => {}
                Step::Decay => {
                    seconds += 5;
                    let bytes = pool.decay(after(seconds));
                    prop_assert!(bytes <= (idle * weight) as u64);
                    idle -= bytes as usize / weight;
                }
                Step::Trim(objects) => {
                    let bytes = pool.trim((objects * weight) as u64);
                    prop_assert_eq!(bytes as usize, objects.min(idle) * weight);
                    idle -= bytes as usize / weight;
                }
            }
            let stats = pool.stats_at(after(seconds));
            prop_assert_eq!((stats.hits, stats.misses), (hits, misses));
            prop_assert_eq!((stats.idle, stats.idle_bytes), (idle as u64, (idle * weight) as u64));
            prop_assert_eq!(pool.reclaimable_bytes(), stats.idle_bytes);
            prop_assert_eq!((stats.in_use, stats.discarded), (guards.len() as u64, discarded));
            prop_assert_eq!(stats.detached, kept.len() as u64);
            prop_assert_eq!(alive.load(SeqCst), guards.len() + kept.len() + idle);
        }
        drop(guards);
        drop(pool);
        prop_assert_eq!(alive.load(SeqCst), kept.len());
    }

    /// Nothing about the bytes is exact but their bound: what a thread is granted and does not use is not
    /// there for others.
    #[test]
    fn bytes_at_rest_stay_below_their_cap(
        sizes in prop::collection::vec(0_usize..40_000, 1..200),
        cap in 1_usize..200_000,
    ) {
        let pool = VecPool::<u8>::vectors().clock(start).idle_bytes_max(cap).build().expect("valid");
        let mut out = Vec::new();
        for (turn, size) in sizes.into_iter().enumerate() {
            let mut vector = pool.take();
            vector.reserve(size);
            out.push(vector);
            if turn % 7 == 6 {
                out.clear();
            }
            let bytes = pool.stats().idle_bytes;
            prop_assert!(bytes <= cap as u64, "{bytes} of {cap}");
        }
    }
}

#[test]
fn threads_lose_nothing_and_hold_the_cap_while_everything_happens_at_once() {
    let rounds = if cfg!(miri) { 30 } else { 30_000 };
    let (alive, factory) = Counted::factory();
    let pool = Pool::builder(factory).idle_max(100).decay(Duration::from_millis(1)).build();
    let pool = pool.expect("valid");
    let (send, receive) = sync_channel::<PooledOwned<Counted>>(32);
    thread::scope(|scope| {
        for seed in 1..=3_u64 {
            let (pool, send) = (pool.clone(), send.clone());
            scope.spawn(move || {
                let mut out = Vec::new();
                let mut random = seed;
                for _ in 0..rounds {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    match random >> 61 {
                        0..3 => out.push(pool.take_owned()),
                        3 => drop(pool.take()),
                        4 => drop(send.try_send(pool.take_owned())),
                        _ => drop(out.pop()),
                    }
                }
            });
        }
        drop(send);
        let pool = &pool;
        scope.spawn(move || receive.iter().for_each(drop));
        scope.spawn(move || {
            for _ in 0..rounds / 30 {
                assert!(
                    pool.stats().idle <= 100 + 3,
                    "a reading may be off by one for each thread"
                );
                pool.trim(8);
                pool.decay(Instant::now());
            }
        });
    });
    let stats = pool.stats();
    assert_eq!(stats.in_use, 0, "{stats:?}");
    assert!(stats.idle <= 100, "{stats:?}");
    assert_eq!(alive.load(SeqCst) as u64, stats.idle, "{stats:?}");
    let core = Arc::downgrade(&pool.core);
    drop(pool);
    assert_eq!(alive.load(SeqCst), 0);
    assert!(core.upgrade().is_none(), "nothing keeps the pool alive");
}

#[test]
fn a_thread_that_ends_gives_back_what_rests_with_it() {
    let (alive, builder) = counted();
    let pool = builder.build().expect("valid");
    thread::scope(|scope| scope.spawn(|| fill(&pool, 10)).join().expect("no panic"));
    assert_eq!(pool.stats().idle, 10);
    fill(&pool, 10);
    assert_eq!((pool.stats().hits, alive.load(SeqCst)), (10, 10));
}

#[test]
fn an_idle_pool_becomes_empty_also_where_a_thread_sleeps_on_its_stash() {
    let (alive, builder) = counted();
    let pool = builder.build().expect("valid");
    let (wake, sleeping) = sync_channel::<()>(0);
    let (ready, filled) = sync_channel(1);
    thread::scope(|scope| {
        let resting = pool.clone();
        scope.spawn(move || {
            fill(&resting, 60);
            ready.send(()).expect("the test waits");
            let _ = sleeping.recv();
        });
        filled.recv().expect("the thread fills");
        fill(&pool, 200);
        assert_eq!(alive.load(SeqCst), 260);
        let left = [5, 10, 15, 20, 25, 30].map(|seconds| {
            pool.decay(after(seconds));
            alive.load(SeqCst)
        });
        assert_eq!(left[0], 260, "only what rests for a whole step was not needed");
        assert!(left.windows(2).all(|pair| pair[1] <= pair[0] / 2 + 3), "{left:?}");
        assert_eq!(left[5], 0);
        drop(wake);
    });
    assert_eq!(alive.load(SeqCst), 0);
    assert_eq!(pool.stats().decayed, 260);
}

#[test]
fn decay_waits_for_its_time_and_spares_what_was_needed() {
    let (alive, builder) = counted();
    let pool = builder.decay(Duration::from_secs(10)).build().expect("valid");
    fill(&pool, 32);
    pool.decay(after(9));
    assert_eq!(alive.load(SeqCst), 32);
    for step in 1..=20 {
        fill(&pool, 32); // all of them are needed between two steps
        pool.decay(after(10 * step));
    }
    assert_eq!(alive.load(SeqCst), 32);
}

#[test]
fn trim_reaches_into_the_stashes_of_other_threads() {
    let (alive, builder) = counted();
    let pool = builder.weigh(|_| 100).build().expect("valid");
    let (wake, sleeping) = sync_channel::<()>(0);
    let (ready, filled) = sync_channel(1);
    thread::scope(|scope| {
        let resting = pool.clone();
        scope.spawn(move || {
            fill(&resting, 20);
            ready.send(()).expect("the test waits");
            let _ = sleeping.recv();
        });
        filled.recv().expect("the thread fills");
        assert_eq!(pool.reclaimable_bytes(), 2_000);
        assert_eq!(pool.trim(450), 500);
        assert_eq!(alive.load(SeqCst), 15);
        assert_eq!(pool.trim(u64::MAX), 1_500);
        drop(wake);
    });
    assert_eq!((alive.load(SeqCst), pool.reclaimable_bytes()), (0, 0));
}

#[test]
fn guards_may_outlive_the_pool() {
    let (alive, builder) = counted();
    let pool = builder.build().expect("valid");
    fill(&pool, 3);
    let guards: Vec<_> = (0..2).map(|_| pool.take_owned()).collect();
    let core = Arc::downgrade(&pool.core);
    drop(pool);
    assert_eq!(alive.load(SeqCst), 2, "what rested is gone");
    thread::spawn(move || drop(guards)).join().expect("no panic");
    assert_eq!(alive.load(SeqCst), 0);
    assert!(core.upgrade().is_none());
}

#[test]
fn an_object_dropped_in_a_panic_is_not_used_again() {
    let (alive, builder) = counted();
    let pool = builder.build().expect("valid");
    let panicking = || {
        let _guard = pool.take();
        panic!("on purpose");
    };
    catch_unwind(AssertUnwindSafe(panicking)).expect_err("it goes on");
    let stats = pool.stats();
    assert_eq!((stats.poisoned, stats.in_use, stats.idle), (1, 0, 0));
    assert_eq!(alive.load(SeqCst), 0);
}

#[test]
fn a_factory_that_panics_is_counted_and_survived() {
    let fail = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fail);
    let factory = move || if failing.load(SeqCst) { panic!("on purpose") } else { 7 };
    for limit in [None, Some(1)] {
        let mut builder = Pool::builder(factory.clone());
        if let Some(limit) = limit {
            builder = builder.limit(limit);
        }
        let pool = builder.build().expect("valid");
        fail.store(true, SeqCst);
        for _ in 0..2 {
            catch_unwind(AssertUnwindSafe(|| drop(pool.try_take()))).expect_err("it goes on");
        }
        fail.store(false, SeqCst);
        assert_eq!(*pool.try_take().expect("the place is free again"), 7);
        let stats = pool.stats();
        assert_eq!((stats.factory_panics, stats.misses, stats.in_use), (2, 1, 0));
    }
}

#[test]
fn a_reset_that_panics_costs_the_object_and_goes_no_further() {
    let pool = Pool::builder(|| Box::new(0)).reset(|n| assert!(**n < 5, "on purpose"));
    let pool = pool.limit(1).build().expect("valid");
    **pool.take() = 5;
    let stats = pool.stats();
    assert_eq!((stats.reset_panics, stats.idle, stats.in_use), (1, 0, 0));
    **pool.try_take().expect("its place is free") = 4;
    assert_eq!(**pool.take(), 4);
}

#[test]
fn a_destructor_that_panics_after_such_a_reset_goes_no_further_either() {
    struct Angry;
    impl Drop for Angry {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let pool = Pool::builder(|| Angry).reset(|_| panic!("on purpose")).build().expect("valid");
    drop(pool.take());
    assert_eq!(pool.stats().reset_panics, 1);
}

#[test]
fn heavy_objects_do_not_stay() {
    let pool = VecPool::<u64>::vectors().object_bytes_max(1_000).build().expect("valid");
    pool.take().reserve(1_000);
    assert_eq!((pool.stats().idle, pool.stats().discarded), (0, 1));
    pool.take().reserve(100);
    assert_eq!(pool.stats().idle, 1);
    assert!(pool.take().is_empty());
}

#[test]
fn a_destructor_may_use_the_pool() {
    static POOL: OnceLock<Pool<Nested>> = OnceLock::new();
    thread_local! { static DEPTH: Cell<u32> = const { Cell::new(0) }; }
    struct Nested;
    impl Drop for Nested {
        fn drop(&mut self) {
            if DEPTH.get() < 3 {
                DEPTH.set(DEPTH.get() + 1);
                if let Some(pool) = POOL.get() {
                    drop(pool.take());
                }
            }
        }
    }
    let pool = POOL.get_or_init(|| Pool::builder(|| Nested).idle_max(1).build().expect("valid"));
    fill(pool, 8);
    pool.trim(u64::MAX);
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn the_oldest_guard_is_known_to_the_second_and_its_age_does_not_shrink() {
    let (_, builder) = counted();
    let pool = builder.build().expect("valid");
    let oldest = |second| pool.stats_at(after(second)).oldest.map(|age| age.as_secs());
    assert_eq!(oldest(100), None);
    let first = pool.take();
    assert_eq!(oldest(130), Some(30));
    let mut later = Vec::new();
    for second in 131..200 {
        later.push(pool.take());
        assert_eq!(oldest(second), Some(second - 100));
    }
    drop(first);
    assert_eq!(oldest(200), Some(70), "taken in the second that began at 130");
    later.clear();
    assert_eq!(oldest(201), None);
    let _again = pool.take();
    assert_eq!(oldest(203), Some(2));
}

#[test]
fn every_setting_that_cannot_be_used_is_named() {
    let builder = Pool::builder(|| ()).idle_max(0).idle_bytes_max(0).limit(0);
    let error = builder.decay(Duration::ZERO).build().expect_err("four problems");
    assert_eq!(
        error.to_string(),
        "invalid pool, 4 problems:\n  idle_max = 0: must be at least 1\n  \
         idle_bytes_max = 0: must be at least 1\n  limit = 0: must be at least 1\n  \
         decay = 0ns: must be longer than nothing"
    );
}

#[test]
fn no_more_objects_exist_than_the_limit_allows() {
    let (alive, builder) = counted();
    let pool = builder.limit(2).idle_max(1).build().expect("valid");
    let first = pool.try_take().expect("none is out");
    let second = pool.try_take().expect("one is out");
    assert!(pool.try_take().is_none());
    let waited = Duration::from_millis(1);
    assert_eq!(pool.take_timeout(waited).err(), Some(TakeError::TimedOut { waited }));
    drop(first);
    drop(second);
    assert_eq!(alive.load(SeqCst), 1, "one may rest");
    let kept = pool.take().detach();
    let both = [pool.take(), pool.take()];
    assert_eq!(alive.load(SeqCst), 3, "what is detached counts no more");
    assert_eq!(pool.stats().waiting, 0);
    drop((kept, both));
}

#[test]
fn a_thread_that_waits_gets_what_another_returns() {
    let (_, builder) = counted();
    let pool = builder.limit(1).build().expect("valid");
    let rounds = if cfg!(miri) { 10 } else { 2_000 };
    let inside = AtomicU32::new(0);
    thread::scope(|scope| {
        for turn in 0..4 {
            let (pool, inside) = (&pool, &inside);
            scope.spawn(move || {
                for _ in 0..rounds {
                    let guard = match turn % 2 {
                        0 => pool.take(),
                        _ => pool.take_timeout(Duration::from_secs(60)).expect("in time"),
                    };
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "one at a time");
                    inside.fetch_sub(1, SeqCst);
                    drop(guard);
                }
            });
        }
    });
    assert_eq!(pool.stats().misses, 1);
}

/// Polls futures by hand and notes who was woken.
struct Named(u32, Arc<Mutex<Vec<u32>>>);

impl Wake for Named {
    fn wake(self: Arc<Self>) {
        self.1.lock().expect("not poisoned").push(self.0);
    }
}

#[test]
fn tasks_get_their_turn_in_order_and_one_that_gives_up_passes_it_on() {
    let (_, builder) = counted();
    let pool = builder.limit(1).waiters_max(3).build().expect("valid");
    let woken = Arc::new(Mutex::new(Vec::new()));
    let waker = |name| Waker::from(Arc::new(Named(name, Arc::clone(&woken))));
    let first = pool.take();
    let mut waiting: Vec<_> = (0..3).map(|_| Some(Box::pin(pool.take_async()))).collect();
    fn poll<F: Future>(future: &mut Option<Pin<Box<F>>>, waker: &Waker) -> Poll<F::Output> {
        let future = future.as_mut().expect("still waiting");
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
    for (name, future) in waiting.iter_mut().enumerate() {
        assert!(poll(future, &waker(name as u32)).is_pending());
    }
    let mut fourth = Some(Box::pin(pool.take_async()));
    let Poll::Ready(Err(error)) = poll(&mut fourth, &waker(9)) else { panic!("the queue is full") };
    assert_eq!(error, TakeError::TooManyWaiters { waiters_max: 3 });

    drop(first);
    assert_eq!(*woken.lock().expect("not poisoned"), [0]);
    assert!(pool.try_take().is_none(), "it is promised");
    assert!(poll(&mut waiting[1], &waker(1)).is_pending(), "nobody overtakes");
    waiting[0] = None;
    assert_eq!(*woken.lock().expect("not poisoned"), [0, 1]);
    waiting[2] = None;
    let Poll::Ready(Ok(second)) = poll(&mut waiting[1], &waker(1)) else { panic!("its turn") };
    drop(second);
    assert_eq!(pool.stats().waiting, 0);
    assert!(pool.try_take().is_some());
}

#[test]
fn what_was_returned_last_is_taken_first() {
    let made = AtomicUsize::new(0);
    let pool = Pool::builder(move || made.fetch_add(1, SeqCst)).build().expect("valid");
    let guards: Vec<_> = (0..300).map(|_| pool.take()).collect();
    let names: HashSet<_> = guards.iter().map(|guard| **guard).collect();
    assert_eq!(names.len(), 300, "nobody has another's object");
    for guard in guards {
        let name = *guard;
        drop(guard);
        assert_eq!(*pool.take(), name);
    }
}

#[test]
fn a_guard_can_have_a_pool_give_up_what_rests() {
    let (alive, builder) = counted();
    let pool = builder.name("counted").weigh(|_| 100).build().expect("valid");
    let reclaimers = crate::Reclaimers::default();
    let _registration = reclaimers.register(pool.clone()).expect("room");
    fill(&pool, 10);
    assert_eq!(reclaimers.reclaimable(), [("counted".into(), 1_000)]);
    assert_eq!(Reclaimer::cost(&pool), Cost::Surplus);
    drop(reclaimers);
    assert_eq!(alive.load(SeqCst), 10);
}
