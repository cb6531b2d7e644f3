//! The hand-overs of a pool under every interleaving of two or three threads.
//!
//! Objects are counted while they are alive, and each is marked while it is out, so a lost object, one in
//! two hands, and one in two places are all found. Caps are as small as they can be: a grant is one
//! object, so that nearly every operation moves something between a stash and the depot.

use std::sync::atomic::AtomicUsize as Count;
use std::sync::atomic::Ordering::SeqCst;

use loom::model::Builder;
use loom::thread;

use super::*;
use crate::raw::thread::begin;

struct Objects(Arc<Count>);

/// An object that loom watches: taking it twice is a race.
struct Object {
    alive: Arc<Count>,
    mark: loom::cell::UnsafeCell<u32>,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

impl Kind for Objects {
    type Object = Object;

    fn make(&self, _class: usize) -> Object {
        self.0.fetch_add(1, SeqCst);
        Object { alive: Arc::clone(&self.0), mark: loom::cell::UnsafeCell::new(0) }
    }

    fn same_weight(&self) -> Option<usize> {
        Some(1)
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn weigh(&self, _object: &Object) -> usize {
        1
    }

    fn reset(&self, _object: &mut Object) {}
}

type Pool = Core<Objects, 1>;

fn pool(idle_max: usize) -> (Arc<Count>, Arc<Pool>) {
    let alive = Arc::new(Count::new(0));
    let settings = Settings {
        name: "model",
        idle_max,
        idle_bytes_max: 100,
        object_bytes_max: 100,
        stash_bytes_max: 100,
        limit: None,
        waiters_max: 1,
        decay: Duration::ZERO,
        clock: Instant::now,
    };
    (Arc::clone(&alive), Core::new(Objects(alive), settings))
}

fn take_and_put(pool: &Arc<Pool>) {
    let node = pool.take(0);
    node.object.mark.with_mut(|_| ());
    pool.put(0, node);
}

fn idle(pool: &Arc<Pool>) -> usize {
    pool.stashes.shared().map(|it| it.idle.load(Relaxed)).sum::<usize>() + pool.depot.lock().idle
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[test]
fn loom_two_threads_exchange_objects_by_the_depot() {
    explore(|| {
        let (alive, pool) = pool(4);
        begin(0);
        // Makes the slots of all threads, which the standard library hands over and loom does not see.
        take_and_put(&pool);
        let other = thread::spawn({
            let pool = Arc::clone(&pool);
            move || {
                begin(1);
                let both = [pool.take(0), pool.take(0)];
                both.into_iter().for_each(|node| pool.put(0, node));
                pool.thread_ends();
            }
        });
        take_and_put(&pool);
        take_and_put(&pool);
        other.join().expect("no panic");
        assert_eq!(idle(&pool), alive.load(SeqCst));
        assert!(idle(&pool) <= 4);
        pool.close();
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn loom_trim_empties_the_stash_of_a_thread_that_uses_it() {
    explore(|| {
        let (alive, pool) = pool(4);
        begin(0);
        take_and_put(&pool);
        let other = thread::spawn({
            let pool = Arc::clone(&pool);
            move || {
                begin(1);
                pool.trim(u64::MAX)
            }
        });
        take_and_put(&pool);
        let trimmed = other.join().expect("no panic");
        assert!(trimmed <= 2);
        assert_eq!(idle(&pool), alive.load(SeqCst));
        assert_eq!(pool.idle_bytes(), alive.load(SeqCst) as u64);
        pool.close();
        assert_eq!(alive.load(SeqCst), 0);
    });
}

#[test]
fn loom_a_pool_that_closes_loses_no_object_that_comes_back() {
    explore(|| {
        let (alive, pool) = pool(4);
        begin(0);
        take_and_put(&pool);
        let node = pool.take(0);
        let other = thread::spawn({
            let pool = Arc::clone(&pool);
            move || {
                begin(1);
                pool.close();
            }
        });
        pool.put(0, node);
        other.join().expect("no panic");
        // What came back just before the door closed, while its stash could not be visited.
        pool.close();
        assert_eq!(alive.load(SeqCst), 0);
    });
}
