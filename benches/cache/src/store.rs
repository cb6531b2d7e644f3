//! What every measured cache can do, and the loops over it.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use cache_tiered::Cache;

/// One step of a mixed load.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Looks a key up and leaves it alone when it is missing.
    Get(u64),
    /// Inserts a key, which may be there already.
    Insert(u64),
}

/// A cache of `u64` under `u64`.
pub trait Store: Send + Sync {
    /// Looks a key up as a user of the cache would.
    fn get(&self, key: u64) -> Option<u64>;

    /// Inserts a key.
    fn insert(&self, key: u64, value: u64);

    /// Waits until what was inserted is visible and what has to go is gone.
    fn settle(&self) {}

    /// Looks up every key and returns how many were there.
    fn get_all(&self, keys: &[u64]) -> usize {
        keys.iter().filter(|key| black_box(self.get(**key)).is_some()).count()
    }

    /// Inserts every key.
    fn insert_all(&self, keys: &mut dyn Iterator<Item = u64>) {
        for key in keys {
            self.insert(key, key);
        }
    }

    /// Does a mixed load in its order.
    fn run(&self, operations: &[Operation]) {
        for operation in operations {
            match *operation {
                Operation::Get(key) => _ = black_box(self.get(key)),
                Operation::Insert(key) => self.insert(key, key),
            }
        }
    }

    /// Looks up every key, inserts the missing ones, and returns how many were there.
    fn read_through(&self, keys: &[u64]) -> usize {
        let mut hits = 0;
        for key in keys {
            if black_box(self.get(*key)).is_some() {
                hits += 1;
            } else {
                self.insert(*key, *key);
            }
        }
        hits
    }
}

impl Store for Cache<u64, u64> {
    fn get(&self, key: u64) -> Option<u64> {
        self.get_in_memory(&key)
    }

    fn insert(&self, key: u64, value: u64) {
        Cache::insert(self, key, value);
    }
}

/// Returns the value of a future that has no reason to wait.
///
/// # Panics
///
/// When it waits nevertheless.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a look-up in memory does not wait"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{OTHERS, Peer, QUICK_CACHE, Split};
    use crate::workload::key;

    /// Our cache and all peers of this build, each with room for many more keys than the tests use.
    fn stores() -> impl Iterator<Item = (&'static str, Box<dyn Store>)> {
        let ours = Cache::<u64, u64>::builder("test").entries(10_000).build();
        let ours: Box<dyn Store> = Box::new(ours.expect("a valid configuration"));
        let peers = [&QUICK_CACHE].into_iter().chain(OTHERS);
        let made = |split| move |peer: &Peer| (peer.name, (peer.make)(10_000, split));
        let whole = peers.clone().map(made(Split::Never));
        [("ours", ours)].into_iter().chain(peers.map(made(Split::Default))).chain(whole)
    }

    #[test]
    fn every_store_gives_back_what_was_put() {
        for (name, store) in stores() {
            assert_eq!(store.get(key(1)), None, "{name}");
            store.insert_all(&mut (0..100).map(key));
            store.settle();
            let keys: Vec<u64> = (50..150).map(key).collect();
            assert_eq!(store.get_all(&keys), 50, "{name}");
            assert_eq!(store.get(key(7)), Some(key(7)), "{name}");
        }
    }

    #[test]
    fn reading_through_fills_what_was_missing_and_a_mix_does_not() {
        for (name, store) in stores() {
            store.run(&[Operation::Get(1), Operation::Insert(2)]);
            store.settle();
            assert_eq!((store.get(1), store.get(2)), (None, Some(2)), "{name}");
            assert_eq!(store.read_through(&[2, 3]), 1, "{name}");
            store.settle();
            assert_eq!(store.get(3), Some(3), "{name}");
        }
    }

    #[test]
    #[should_panic(expected = "does not wait")]
    fn a_future_that_waits_is_no_look_up_in_memory() {
        ready(std::future::pending::<()>());
    }
}
