//! Against a model, under threads, and at the edges. The interleavings are in `loom_tests`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::policy::{Node as _, Nodes as _};

/// Counts how many of its kind are alive, and notices a second drop.
struct Counted {
    value: u64,
    alive: Arc<AtomicUsize>,
    dropped: Box<bool>,
}

impl Counted {
    fn new(value: u64, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { value, alive: Arc::clone(alive), dropped: Box::new(false) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        assert!(!*self.dropped, "a value is dropped once");
        *self.dropped = true;
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

const BATCH: LimboOptions =
    LimboOptions { batch_entries: 4, batch_weight: 1_000, max_entries: 16, max_weight: 4_000 };

fn options(expected_entries: usize) -> TableOptions {
    TableOptions { expected_entries, limbo: BATCH, idle_stamps: false }
}

/// A hash that spreads, and one that crowds all keys into a few chunks and tags.
fn hash(key: u64, crowded: bool) -> u32 {
    if crowded {
        (key % 3) as u32 * 0x5555_0001
    } else {
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
    }
}

fn node<V>(key: u64, value: V, crowded: bool) -> NewNode<u64, V> {
    NewNode { key, value, hash: hash(key, crowded), weight: 3, deadline: NEVER, flags: 0 }
}

fn put<V, X>(table: &Table<u64, V, X>, key: u64, value: V) -> u32 {
    let mut dropped = Vec::new();
    let mut locked = table.lock();
    let new = node(key, value, false);
    let index = match locked.find(new.hash, &key) {
        Some(old) => locked.replace(old, new, |_| ()),
        None => locked.insert(new, |_| ()),
    };
    locked.reclaim(&mut dropped);
    drop(locked);
    index.unwrap_or_else(|_| panic!("the shard is not full"))
}

fn take<V, X>(table: &Table<u64, V, X>, key: u64) -> bool {
    let mut dropped = Vec::new();
    let mut locked = table.lock();
    let Some(index) = locked.find(hash(key, false), &key) else { return false };
    locked.retire(index);
    locked.reclaim_now(&mut dropped);
    true
}

/// Empties limbo. Other tests of this process may be reading at any moment, so it asks until they
/// are not.
fn reclaim_all<V, X>(table: &Table<u64, V, X>) {
    while table.lock().limbo().0 > 0 {
        table.lock().reclaim_now(&mut Vec::new());
        std::thread::yield_now();
    }
}

fn get<X>(table: &Table<u64, u64, X>, key: u64) -> Option<u64> {
    let guard = epoch::pin();
    table.find(&guard, hash(key, false), &key).map(|found| *found.value())
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64),
    Remove(u64),
    Find(u64),
    Reclaim,
    ReclaimNow,
    Resize(usize),
    Walk,
    Pin,
    Unpin,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..120_u64;
    prop_oneof![
        8 => (key.clone(), any::<u64>()).prop_map(|(key, value)| Op::Insert(key, value)),
        4 => key.clone().prop_map(Op::Remove),
        4 => key.prop_map(Op::Find),
        1 => Just(Op::Reclaim),
        1 => Just(Op::ReclaimNow),
        1 => (1..300_usize).prop_map(Op::Resize),
        1 => Just(Op::Walk),
        1 => Just(Op::Pin),
        1 => Just(Op::Unpin),
    ]
}

/// Runs operations on a table and on a map, and compares all that can be seen.
fn compare(expected_entries: usize, crowded: bool, ops: Vec<Op>) {
    let alive = Arc::new(AtomicUsize::new(0));
    let table = Table::new(options(expected_entries), ());
    let mut model = HashMap::new();
    let mut guard = None;
    for op in ops {
        let mut dropped = Vec::new();
        let mut locked = table.lock();
        match op {
            Op::Insert(key, value) => {
                let new = node(key, Counted::new(value, &alive), crowded);
                let index = match locked.find(new.hash, &key) {
                    Some(old) => locked.replace(old, new, |_| ()),
                    None => locked.insert(new, |_| ()),
                };
                let index = index.unwrap_or_else(|_| panic!("the shard is not full"));
                model.insert(key, value);
                assert_eq!(
                    locked.entry(index).map(|(key, it)| (*key, it.value)),
                    Some((key, value))
                );
                locked.reclaim(&mut dropped);
            }
            Op::Remove(key) => {
                let index = locked.find(hash(key, crowded), &key);
                assert_eq!(index.is_some(), model.remove(&key).is_some());
                if let Some(index) = index {
                    locked.retire(index);
                    assert!(locked.entry(index).is_none());
                }
                locked.reclaim(&mut dropped);
            }
            Op::Find(key) => {
                let guard = epoch::pin();
                let found = table.find(&guard, hash(key, crowded), &key);
                assert_eq!(found.map(|it| it.value().value), model.get(&key).copied());
            }
            Op::Reclaim => locked.reclaim(&mut dropped),
            Op::ReclaimNow => locked.reclaim_now(&mut dropped),
            Op::Resize(entries) => locked.resize(entries, BATCH),
            Op::Walk => {
                let mut seen = HashMap::new();
                let guard = epoch::pin();
                table.for_each(&guard, |found| {
                    let earlier = seen.insert(*found.key(), found.value().value);
                    assert_eq!(earlier, None, "an entry is seen once");
                });
                assert_eq!(seen, model);
            }
            Op::Pin => guard = Some(epoch::pin()),
            Op::Unpin => guard = None,
        }
        assert_eq!(locked.len(), model.len());
        let (waiting, weight) = locked.limbo();
        assert_eq!(weight, waiting as u64 * 3);
        // What was moved out is still alive, in `dropped`.
        assert_eq!(alive.load(Ordering::Relaxed), model.len() + waiting + dropped.len());
    }
    drop(guard);
    for key in 0..120 {
        let guard = epoch::pin();
        let found = table.find(&guard, hash(key, crowded), &key);
        assert_eq!(found.map(|it| it.value().value), model.get(&key).copied());
    }
    drop(table);
    assert_eq!(alive.load(Ordering::Relaxed), 0, "each value is dropped");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 192 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_table_is_a_map(
        expected in 1..200_usize,
        crowded in any::<bool>(),
        ops in prop::collection::vec(op(), 1..if cfg!(miri) { 60 } else { 400 }),
    ) {
        compare(expected, crowded, ops);
    }

    #[test]
    fn links_tags_and_marks_do_not_disturb_each_other(
        writes in prop::collection::vec((0..5_u8, 1..4_u32, any::<u32>()), 1..60),
    ) {
        let table: Table<u64, u64, ()> = Table::new(options(10), ());
        for key in 0..3 {
            put(&table, key, key);
        }
        let mut locked = table.lock();
        let (nodes, ()) = locked.split();
        let mut model = [[0_u32; 5]; 4];
        for index in 1..4 {
            model[index as usize] = [NIL, NIL, 0, 0, 0];
        }
        for (what, index, value) in writes {
            let value = match what {
                0 | 1 if value % 5 == 0 => NIL,
                0 | 1 => value % MAX_NODES,
                _ => value % 256,
            };
            let node = nodes.at(index);
            match what {
                0 => node.set_next(value),
                1 => node.set_prev(value),
                2 => node.link(value as u8, node.prev(), node.next()),
                _ => node.set_mark(value as u8),
            }
            model[index as usize][usize::from(what.min(3))] = value;
            for index in 1..4 {
                let node = nodes.at(index);
                let it =
                    [node.next(), node.prev(), u32::from(node.tag()), u32::from(node.mark()), 0];
                assert_eq!(it, model[index as usize]);
                assert_eq!((node.weight(), node.hash()), (3, hash(u64::from(index) - 1, false)));
            }
        }
        drop(locked);
        for key in 0..3 {
            assert!(take(&table, key), "whatever the links say, an entry is where it was");
        }
    }
}

#[test]
fn a_node_of_two_words_takes_forty_bytes() {
    assert_eq!(size_of::<Node<u64, u64>>(), 40);
    assert_eq!(size_of::<Chunk>(), 64);
}

#[test]
fn a_held_entry_outlives_its_removal() {
    let alive = Arc::new(AtomicUsize::new(0));
    let table = Table::new(options(100), ());
    for key in 0..50 {
        put(&table, key, Counted::new(key, &alive));
    }
    let guard = epoch::pin();
    let held: Vec<_> =
        (0..50).map(|key| table.find(&guard, hash(key, false), &key).expect("it is in")).collect();
    for key in 0..50 {
        assert!(take(&table, key));
    }
    for key in 100..150 {
        put(&table, key, Counted::new(key, &alive));
    }
    assert_eq!(alive.load(Ordering::Relaxed), 100);
    for (key, found) in (0..50).zip(&held) {
        assert_eq!((*found.key(), found.value().value), (key, key));
    }
    assert_eq!(table.lock().limbo(), (50, 150));
    drop(guard);
    reclaim_all(&table);
    assert_eq!(alive.load(Ordering::Relaxed), 50);
}

#[test]
fn without_readers_a_removed_value_is_out_at_once() {
    let alive = Arc::new(AtomicUsize::new(0));
    let table = Table::new(options(100), ());
    put(&table, 1, Counted::new(1, &alive));
    assert!(take(&table, 1));
    reclaim_all(&table);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn nested_guards_may_end_in_any_order() {
    let alive = Arc::new(AtomicUsize::new(0));
    let table = Table::new(options(100), ());
    put(&table, 1, Counted::new(1, &alive));
    let first = epoch::pin();
    let second = epoch::pin();
    let found = table.find(&second, hash(1, false), &1).expect("it is in");
    drop(first);
    assert!(take(&table, 1));
    assert_eq!((found.value().value, alive.load(Ordering::Relaxed)), (1, 1));
    assert!(epoch::thread_is_pinned());
    drop(second);
    assert!(!epoch::thread_is_pinned());
}

#[test]
fn a_pinned_writer_lets_limbo_grow_and_another_waits() {
    let table: Table<u64, u64, ()> = Table::new(options(100), ());
    let guard = epoch::pin();
    for value in 0..100 {
        put(&table, 1, value);
        table.settle(&mut Vec::new());
    }
    assert_eq!(table.lock().limbo().0, 99);
    assert!(table.lock().is_over());
    let waited = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            put(&table, 1, 100);
            table.settle(&mut Vec::new());
            assert!(
                waited.load(Ordering::Relaxed),
                "it cannot go on while the reader holds a value"
            );
            assert!(!table.lock().is_over());
        });
        while table.lock().limbo().0 < 100 {
            std::thread::yield_now();
        }
        waited.store(true, Ordering::Relaxed);
        drop(guard);
        writer.join().expect("the writer goes on once the reader is gone");
    });
    assert_eq!(get(&table, 1), Some(100));
}

#[test]
fn an_array_grows_with_its_entries_and_shrinks_when_told() {
    let count = if cfg!(miri) { 200 } else { 20_000 };
    let table: Table<u64, u64, ()> = Table::new(options(1), ());
    for key in 0..count {
        put(&table, key, key * 2);
    }
    for key in 0..count {
        assert_eq!(get(&table, key), Some(key * 2));
    }
    for key in 10..count {
        assert!(take(&table, key));
    }
    reclaim_all(&table);
    let mut locked = table.lock();
    let (made, chunks) = (locked.made(), locked.chunks().len());
    locked.resize(10, BATCH);
    assert!(locked.made() < made / 2, "{} of {made} nodes are left", locked.made());
    assert!(locked.chunks().len() < chunks / 2);
    drop(locked);
    for key in 0..count {
        assert_eq!(get(&table, key), (key < 10).then_some(key * 2));
    }
    for key in 0..count {
        put(&table, key, key * 3);
    }
    assert!((0..count).all(|key| get(&table, key) == Some(key * 3)));
}

#[test]
fn nodes_are_used_again() {
    let table: Table<u64, u64, ()> = Table::new(options(32), ());
    for round in 0..200 {
        for key in 0..20 {
            put(&table, round * 20 + key, key);
        }
        for key in 0..20 {
            assert!(take(&table, round * 20 + key));
            // Other tests may be reading, so limbo may take a while.
            table.settle(&mut Vec::new());
        }
    }
    assert!(table.lock().made() <= 64, "{} nodes were made", table.lock().made());
}

#[test]
fn deadlines_and_flags_come_back_as_they_went_in() {
    let table: Table<u64, u64, ()> = Table::new(options(32), ());
    let deadlines = [0, 1, 0xffff_ffff, 0x1_0000_0000, 0xabcd_1234_5678, (1 << 48) - 2, NEVER];
    for (key, deadline) in (0..).zip(deadlines) {
        let new = NewNode { deadline, flags: 7, ..node(key, key, false) };
        let index = table.lock().insert(new, |_| ()).expect("there is room");
        let guard = epoch::pin();
        let found = table.find(&guard, hash(key, false), &key).expect("it is in");
        assert_eq!((found.deadline(), found.flags(), found.index()), (deadline, 7, index));
        table.lock().set_flags(index, 9);
        assert_eq!(found.flags(), 9);
        assert!(found.touched().is_none());
        let mut locked = table.lock();
        assert_eq!(locked.split().0.deadline(index), deadline);
    }
}

#[test]
fn stamps_are_beside_the_nodes_where_they_are_asked_for() {
    let options = TableOptions { idle_stamps: true, ..options(100) };
    let table: Table<u64, u64, ()> = Table::new(options, ());
    for key in 0..300 {
        put(&table, key, key);
    }
    let guard = epoch::pin();
    for key in 0..300 {
        let found = table.find(&guard, hash(key, false), &key).expect("it is in");
        let stamp = found.touched().expect("stamps are kept");
        assert_eq!(stamp.swap(key as u32 + 1, Ordering::Relaxed), 0);
    }
    for key in 0..300 {
        let found = table.find(&guard, hash(key, false), &key).expect("it is in");
        let stamp = found.touched().map(|it| it.load(Ordering::Relaxed));
        assert_eq!(stamp, Some(key as u32 + 1));
    }
}

#[test]
fn marks_stop_at_their_highest() {
    let table: Table<u64, u64, ()> = Table::new(options(32), ());
    let index = put(&table, 1, 1);
    let guard = epoch::pin();
    let found = table.find(&guard, hash(1, false), &1).expect("it is in");
    (0..10).for_each(|_| found.raise_mark(3));
    assert_eq!(table.lock().split().0.at(index).mark(), 3);
}

#[test]
fn an_index_that_is_not_live_is_no_entry() {
    let table: Table<u64, u64, ()> = Table::new(options(32), ());
    let index = put(&table, 1, 1);
    let guard = epoch::pin();
    let mut locked = table.lock();
    assert!(
        locked.get(0).is_none() && locked.get(index + 1).is_none() && locked.get(NIL).is_none()
    );
    locked.retire(index);
    assert!(locked.get(index).is_none());
    assert!(catch_unwind(AssertUnwindSafe(|| locked.retire(index))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| locked.split().0.at(index + 1).next())).is_err());
    drop(guard);
}

/// Panics when it is compared while `ARMED`, on this thread only.
#[derive(Debug)]
struct Touchy(u64);

thread_local! {
    static ARMED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl PartialEq for Touchy {
    fn eq(&self, other: &Self) -> bool {
        assert!(!ARMED.get(), "armed");
        self.0 == other.0
    }
}

impl Eq for Touchy {}

impl std::hash::Hash for Touchy {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[test]
fn a_panicking_eq_leaves_table_and_guard_in_order() {
    let table: Table<Touchy, u64, ()> = Table::new(options(32), ());
    let new = NewNode { key: Touchy(1), value: 5, hash: 9, weight: 1, deadline: NEVER, flags: 0 };
    let index = table.lock().insert(new, |_| ()).expect("there is room");
    ARMED.set(true);
    let look = || {
        let guard = epoch::pin();
        table.find(&guard, 9, &Touchy(1)).map(|found| *found.value())
    };
    assert!(catch_unwind(AssertUnwindSafe(look)).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| table.lock().find(9, &Touchy(1)))).is_err());
    ARMED.set(false);
    assert!(!epoch::thread_is_pinned());
    assert_eq!(look(), Some(5));
    assert_eq!(table.lock().find(9, &Touchy(1)), Some(index));
}

#[test]
fn a_value_that_panics_in_its_drop_does_so_outside() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let table = Table::new(options(32), ());
    put(&table, 1, Bomb);
    let mut dropped = Vec::new();
    let mut locked = table.lock();
    let index = locked.find(hash(1, false), &1).expect("it is in");
    locked.retire(index);
    while locked.limbo().0 > 0 {
        locked.reclaim_now(&mut dropped);
    }
    drop(locked);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(dropped))).is_err());
    assert_eq!(table.lock().len(), 0);
}

/// A value that tells what it belongs to, and notices when it is read after its drop.
struct Checked {
    key: u64,
    version: u64,
    sum: AtomicU64,
    counts: Arc<[AtomicU64; 2]>,
}

impl Checked {
    const MAGIC: u64 = 0x5eed_5eed_5eed_5eed;

    fn new(key: u64, version: u64, counts: &Arc<[AtomicU64; 2]>) -> Box<Self> {
        counts[0].fetch_add(1, Ordering::Relaxed);
        let sum = AtomicU64::new(key ^ version ^ Self::MAGIC);
        Box::new(Self { key, version, sum, counts: Arc::clone(counts) })
    }

    fn check(&self, key: u64) {
        assert_eq!(self.key, key);
        assert_eq!(self.sum.load(Ordering::Relaxed), key ^ self.version ^ Self::MAGIC);
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.check(self.key);
        self.sum.store(0, Ordering::Relaxed);
        self.counts[1].fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn readers_never_see_a_value_that_is_not_theirs() {
    let (keys, rounds) = if cfg!(miri) { (20, 60) } else { (400, 5_000) };
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let table: Table<u64, Box<Checked>, ()> = Table::new(options(16), ());
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    // These come in first and stay, so every look-up and every walk must find them.
    for key in 0..10 {
        put(&table, key, Checked::new(key, 0, &counts));
    }
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (table, stop, seen) = (&table, &stop, &seen);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut hits = 0;
                for round in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = rng.u64(0..keys);
                    let guard = epoch::pin();
                    let found = table.find(&guard, hash(key, false), &key);
                    if let Some(found) = found {
                        found.value().check(key);
                        found.raise_mark(3);
                        hits += 1;
                    }
                    assert!(found.is_some() || key >= 10, "{key} never leaves");
                    if round % 256 == 0 {
                        let mut permanent = 0;
                        table.for_each(&guard, |found| {
                            found.value().check(*found.key());
                            permanent += u64::from(*found.key() < 10);
                        });
                        assert_eq!(permanent, 10);
                    }
                }
                seen.fetch_add(hits, Ordering::Relaxed);
            });
        }
        let writers: Vec<_> = (10..12)
            .map(|seed| {
                let (table, counts) = (&table, &counts);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    for round in 0..rounds {
                        let key = rng.u64(0..keys);
                        match rng.u8(0..100) {
                            0..60 => _ = put(table, key, Checked::new(key, round, counts)),
                            60..98 if key >= 10 => _ = take(table, key),
                            _ => table.lock().resize(rng.usize(1..1000), BATCH),
                        }
                        let mut dropped = Vec::new();
                        table.settle(&mut dropped);
                        let slack = 2 * (BATCH.max_entries + 2);
                        assert!(table.lock().limbo().0 <= slack);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|it| it.expect("a writer sees nothing wrong"));
    });
    assert!(seen.load(Ordering::Relaxed) > 0);
    drop(table);
    assert_eq!(counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed));
}
