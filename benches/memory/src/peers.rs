//! Other pools, each used as its documentation shows: prefilled or filled by use, with its own guards.
//!
//! `ArrayQueue` and `Mutex<Vec>` are what one writes without a crate.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crossbeam_queue::ArrayQueue;
use deadpool::unmanaged;
use lockfree_object_pool::{LinearObjectPool, MutexObjectPool};

use crate::pools::{Lender, lender, over, touch};
use std::hint::black_box;

/// Buffers that a pool of a fixed size begins with: more than a hand-over has under way.
const PREFILLED: usize = 1_024;

type Make = fn(usize) -> Box<dyn Lender>;

/// Peers that are no published pool.
pub(crate) const HAND_MADE: [&str; 2] = ["ArrayQueue", "Mutex<Vec>"];

/// The peers, by name.
pub(crate) const PEERS: [(&str, Make); 7] = [
    ("object-pool", |size| {
        Box::new(ObjectPool(object_pool::Pool::new(prefilled(size), fresh(size)), size))
    }),
    ("lockfree-object-pool linear", |size| {
        Box::new(Linear(LinearObjectPool::new(fresh(size), Vec::clear)))
    }),
    ("lockfree-object-pool mutex", |size| {
        Box::new(Locked(MutexObjectPool::new(fresh(size), Vec::clear)))
    }),
    ("opool", |size| Box::new(Opool(opool::Pool::new(PREFILLED, Allocator(size))))),
    ("deadpool", |size| Box::new(Deadpool(unmanaged::Pool::from(many(size))))),
    ("ArrayQueue", |size| Box::new(Queue(ArrayQueue::new(PREFILLED), size))),
    ("Mutex<Vec>", |size| Box::new(Stack(Mutex::new(Vec::new()), size))),
];

fn fresh(size: usize) -> impl Fn() -> Vec<u8> + Clone + Send + Sync + 'static {
    move || Vec::with_capacity(size)
}

/// Fewer of the large ones: they are not measured by how many fit into the machine.
fn prefilled(size: usize) -> usize {
    if size >= 1 << 20 { PREFILLED / 2 } else { PREFILLED }
}

fn many(size: usize) -> Vec<Vec<u8>> {
    (0..prefilled(size)).map(|_| Vec::with_capacity(size)).collect()
}

struct ObjectPool(object_pool::Pool<Vec<u8>>, usize);
lender!(ObjectPool, |peer| peer.0.pull(|| Vec::with_capacity(peer.1)));

struct Linear(LinearObjectPool<Vec<u8>>);
lender!(Linear, |peer| peer.0.pull());

struct Locked(MutexObjectPool<Vec<u8>>);
lender!(Locked, |peer| peer.0.pull());

struct Allocator(usize);

impl opool::PoolAllocator<Vec<u8>> for Allocator {
    fn allocate(&self) -> Vec<u8> {
        Vec::with_capacity(self.0)
    }
}

struct Opool(opool::Pool<Allocator, Vec<u8>>);
lender!(Opool, |peer| peer.0.get());

struct Deadpool(unmanaged::Pool<Vec<u8>>);
lender!(Deadpool, |peer| peer.0.try_get().expect("more than are under way"));

struct Queue(ArrayQueue<Vec<u8>>, usize);
lender!(Queue, |peer| {
    let taken = peer.0.pop().unwrap_or_else(|| Vec::with_capacity(peer.1));
    Returning { taken, give: &peer.0 }
});

struct Stack(Mutex<Vec<Vec<u8>>>, usize);
lender!(Stack, |peer| {
    let taken = peer.0.lock().expect("no panic").pop();
    let taken = taken.unwrap_or_else(|| Vec::with_capacity(peer.1));
    Returning { taken, give: &peer.0 }
});

/// The guard that a queue lacks.
struct Returning<'q, Q: Give> {
    taken: Vec<u8>,
    give: &'q Q,
}

trait Give {
    fn give(&self, buffer: Vec<u8>);
}

impl Give for ArrayQueue<Vec<u8>> {
    fn give(&self, buffer: Vec<u8>) {
        let _ = self.push(buffer);
    }
}

impl Give for Mutex<Vec<Vec<u8>>> {
    fn give(&self, buffer: Vec<u8>) {
        self.lock().expect("no panic").push(buffer);
    }
}

impl<Q: Give> Deref for Returning<'_, Q> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.taken
    }
}

impl<Q: Give> DerefMut for Returning<'_, Q> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.taken
    }
}

impl<Q: Give> Drop for Returning<'_, Q> {
    fn drop(&mut self) {
        self.give.give(std::mem::take(&mut self.taken));
    }
}
