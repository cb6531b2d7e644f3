//! Every interleaving of a reader with a writer, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p cache-tiered --release --lib loom`

use loom::cell::UnsafeCell as Cell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::AtomicBool;

/// A value that loom watches: read while somebody drops it, it fails the model.
struct Watched(Cell<u64>);

impl Watched {
    fn new(value: u64) -> Self {
        Self(Cell::new(value))
    }

    fn read(&self) -> u64 {
        // SAFETY: nobody writes while a reader holds the value: this is what is tested.
        self.0.with(|value| unsafe { *value })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.0.with_mut(|value| unsafe { *value = u64::MAX });
    }
}

type Shard = Table<u64, Watched, ()>;

fn shard() -> Arc<Shard> {
    let limbo =
        LimboOptions { batch_entries: 1, batch_weight: 1, max_entries: 1, max_weight: u64::MAX };
    Arc::new(Table::new(TableOptions { expected_entries: 1, limbo, idle_stamps: false }, ()))
}

fn node(key: u64, value: u64) -> NewNode<u64, Watched> {
    let (hash, value) = (key as u32, Watched::new(value));
    NewNode { key, value, hash, weight: 1, deadline: NEVER, flags: 0 }
}

fn insert(shard: &Shard, key: u64, value: u64) -> u32 {
    shard.lock().insert(node(key, value), |_| ()).ok().expect("there is room")
}

fn get(shard: &Shard, key: u64) -> Option<u64> {
    let guard = epoch::pin();
    let found = shard.find(&guard, key as u32, &key)?;
    assert_eq!(*found.key(), key);
    Some(found.value().read())
}

fn retire(shard: &Shard, index: u32) {
    let mut dropped = Vec::new();
    let mut locked = shard.lock();
    locked.retire(index);
    locked.reclaim_now(&mut dropped);
    drop(locked);
}

/// What a pin promises, without a table: something is unlinked, and freed once its readers are gone.
#[test]
fn loom_a_pin_holds_back_a_stamp() {
    loom::model(|| {
        let shared = Arc::new((AtomicBool::new(true), Cell::new(7_u64)));
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                let guard = epoch::pin();
                if theirs.0.load(Acquire) {
                    // SAFETY: nobody writes while a reader is pinned: this is what is tested.
                    assert_eq!(theirs.1.with(|value| unsafe { *value }), 7);
                }
                drop(guard);
            }
        });
        shared.0.store(false, Relaxed);
        let freed = epoch::horizon() == epoch::NOBODY || {
            let stamp = epoch::advance();
            epoch::horizon() > stamp
        };
        if freed {
            // SAFETY: as above.
            shared.1.with_mut(|value| unsafe { *value = 0 });
        }
        reader.join().expect("the reader sees nothing wrong");
    });
}

#[test]
fn loom_a_look_up_sees_a_whole_entry() {
    loom::model(|| {
        let shard = shard();
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || get(&theirs, 1));
        insert(&shard, 1, 10);
        let seen = reader.join().expect("the reader sees nothing wrong");
        assert!(seen.is_none() || seen == Some(10));
        assert_eq!(get(&shard, 1), Some(10));
    });
}

#[test]
fn loom_a_node_is_not_used_again_under_its_reader() {
    loom::model(|| {
        let shard = shard();
        let index = insert(&shard, 1, 10);
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || get(&theirs, 1));
        retire(&shard, index);
        let again = insert(&shard, 2, 20);
        let seen = reader.join().expect("the reader sees nothing wrong");
        assert!(seen.is_none() || seen == Some(10));
        assert_eq!((get(&shard, 1), get(&shard, 2)), (None, Some(20)));
        retire(&shard, again);
    });
}

#[test]
fn loom_a_look_up_sees_the_old_value_or_the_new() {
    loom::model(|| {
        let shard = shard();
        let old = insert(&shard, 1, 10);
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || (get(&theirs, 1), get(&theirs, 1)));
        let mut dropped = Vec::new();
        let mut locked = shard.lock();
        assert!(locked.replace(old, node(1, 11), |_| ()).is_ok());
        locked.reclaim_now(&mut dropped);
        drop(locked);
        drop(dropped);
        let seen = reader.join().expect("the reader sees nothing wrong");
        assert!(matches!(seen, (Some(10), Some(10 | 11)) | (Some(11), Some(11))), "saw {seen:?}");
    });
}

#[test]
fn loom_a_look_up_survives_a_new_array() {
    loom::model(|| {
        let shard = shard();
        let index = insert(&shard, 1, 10);
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || get(&theirs, 1));
        let mut locked = shard.lock();
        let limbo = locked.inner.options.limbo;
        locked.resize(12, limbo);
        assert_eq!(locked.chunks().len(), 2);
        locked.reclaim_now(&mut Vec::new());
        drop(locked);
        // It left the new array, while the reader may be in the old one.
        retire(&shard, index);
        let seen = reader.join().expect("the reader sees nothing wrong");
        assert!(seen.is_none() || seen == Some(10));
        assert_eq!(get(&shard, 1), None);
    });
}

#[test]
fn loom_a_look_up_survives_a_new_directory() {
    loom::model(|| {
        let shard = shard();
        // With index 0, which is not used, these fill two segments of two nodes.
        for key in 1..4 {
            insert(&shard, key, key);
        }
        let before = shard.lock().inner.directory_len;
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || (get(&theirs, 4), get(&theirs, 1)));
        insert(&shard, 4, 4);
        let mut locked = shard.lock();
        assert!(locked.inner.directory_len > before);
        locked.reclaim_now(&mut Vec::new());
        drop(locked);
        let (new, old) = reader.join().expect("the reader sees nothing wrong");
        assert!((new.is_none() || new == Some(4)) && old == Some(1), "saw {new:?} and {old:?}");
    });
}

#[test]
fn loom_limbo_is_settled_when_the_reader_is_gone() {
    loom::model(|| {
        let shard = shard();
        let (first, second) = (insert(&shard, 1, 10), insert(&shard, 2, 20));
        let theirs = Arc::clone(&shard);
        let reader = thread::spawn(move || get(&theirs, 1));
        retire(&shard, first);
        retire(&shard, second);
        shard.settle(&mut Vec::new());
        assert!(shard.lock().limbo().0 <= 1);
        reader.join().expect("the reader sees nothing wrong");
    });
}
