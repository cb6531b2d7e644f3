//! Keys on which something is under way: who loads, who waits, and whose result is no longer wanted.
//!
//! # Protocol
//!
//! A call that will bring a value for a key from somewhere slow (a lower tier, a loader) takes a
//! [`Ticket`] first. The ticket keeps the key's [`Slot`] in the table and remembers the slot's
//! generation. Every write of the key (`insert`, `remove`, `clear`) bumps the generation under the
//! shard's lock, so when the slow value arrives, [`Ticket::redeem`] compares under that same lock and
//! stores nothing that a write has overtaken. A key that nobody is busy with has no slot: the table
//! holds as many slots as calls are in flight, and a write normally finds an empty map.
//!
//! The slot also carries the single flight: a channel on which the one who loads publishes. A write
//! detaches it, so whoever comes after a `remove` starts a load of its own instead of joining one
//! that began before. A leader that is dropped closes the channel without a word; its waiters wake,
//! come back to the table, and the first of them leads with its own loader.
//!
//! Lock order in this crate: a shard here, then a shard of the memory tier, then a write queue, then
//! what is below. A lock is held over memory operations only, never over I/O, an await, a user's
//! loader or weigher, or the drop of a value: whatever falls out of a structure is carried past the
//! unlock first, so a value's `Drop` may call the cache. A key's `Hash`, `Eq` and `Clone`, and a value's
//! `Clone`, do run under a lock, and may not.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use quick_cache::DefaultHashBuilder;
use tokio::sync::watch;

use crate::error::LoadError;

const SHARDS: usize = 64;

/// What a flight ends with; `None` while it is in the air.
pub(crate) type Landing<V> = Option<Result<V, LoadError>>;

type Flight<V> = watch::Receiver<Landing<V>>;

struct Slot<K, V> {
    key: K,
    generation: u64,
    tickets: usize,
    flight: Option<Flight<V>>,
}

type Slots<K, V> = HashTable<Slot<K, V>>;
type Shard<K, V> = CachePadded<Mutex<Slots<K, V>>>;

pub(crate) struct InFlight<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: DefaultHashBuilder,
}

/// A key's shard, locked: as long as this lives, no write and no fill of its keys happens elsewhere.
pub(crate) struct Locked<'a, K, V> {
    slots: MutexGuard<'a, Slots<K, V>>,
    /// Declared after the guard, because it may hold the last of a value.
    overtaken: Option<Flight<V>>,
}

/// The right to store a slow value, unless the key is written first.
pub(crate) struct Ticket<K: Hash + Eq, V> {
    table: Arc<InFlight<K, V>>,
    key: K,
    hash: u64,
    generation: u64,
}

/// The part that a call plays in a single flight.
pub(crate) enum Role<K: Hash + Eq, V> {
    /// Loads, and publishes through the sender.
    Leader(Ticket<K, V>, watch::Sender<Landing<V>>),
    /// Waits for the leader.
    Waiter(Flight<V>),
}

impl<K: Hash + Eq, V> InFlight<K, V> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| CachePadded::new(Mutex::new(HashTable::new()))).collect(),
            hasher: DefaultHashBuilder::default(),
        })
    }

    fn shard(&self, hash: u64) -> &Mutex<Slots<K, V>> {
        // The top bits but seven, which the table below uses; its bucket comes from the low ones.
        &self.shards[(hash >> 51) as usize % SHARDS]
    }

    /// Locks the key's shard, and leaves what is under way alone.
    pub(crate) fn lock(&self, key: &K) -> Locked<'_, K, V> {
        let slots = self.shard(self.hasher.hash_one(key)).lock();
        Locked { slots, overtaken: None }
    }

    /// Locks the key's shard for a write, and overtakes whatever is under way for the key.
    pub(crate) fn overtake(&self, key: &K) -> Locked<'_, K, V> {
        let hash = self.hasher.hash_one(key);
        let mut slots = self.shard(hash).lock();
        let mut overtaken = None;
        if !slots.is_empty()
            && let Some(slot) = slots.find_mut(hash, |slot| slot.key == *key)
        {
            slot.generation += 1;
            overtaken = slot.flight.take();
        }
        Locked { slots, overtaken }
    }

    /// Overtakes everything that is under way.
    ///
    /// When this returns, no value whose fetch began before is stored any more.
    pub(crate) fn overtake_all(&self) {
        for shard in &self.shards {
            let mut overtaken = Vec::new();
            let mut slots = shard.lock();
            for slot in slots.iter_mut() {
                slot.generation += 1;
                overtaken.extend(slot.flight.take());
            }
            drop(slots);
        }
    }

    /// Keys on which something is under way.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl<K: Hash + Eq + Clone, V> InFlight<K, V> {
    /// Takes a ticket for a key, to fetch it from a lower tier.
    pub(crate) fn ticket(self: &Arc<Self>, key: &K) -> Ticket<K, V> {
        let hash = self.hasher.hash_one(key);
        self.ticket_in(&mut self.shard(hash).lock(), key, hash).0
    }

    /// Joins the key's flight, or starts one.
    pub(crate) fn join(self: &Arc<Self>, key: &K) -> Role<K, V> {
        let hash = self.hasher.hash_one(key);
        let mut slots = self.shard(hash).lock();
        if let Some(Slot { flight: Some(flight), .. }) = slots.find(hash, |slot| slot.key == *key)
            // An error means that its leader is gone.
            && flight.has_changed().is_ok()
        {
            return Role::Waiter(flight.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let (ticket, slot) = self.ticket_in(&mut slots, key, hash);
        let landed = slot.flight.replace(receiver);
        drop(slots);
        drop(landed);
        Role::Leader(ticket, sender)
    }

    fn ticket_in<'a>(
        self: &Arc<Self>,
        slots: &'a mut Slots<K, V>,
        key: &K,
        hash: u64,
    ) -> (Ticket<K, V>, &'a mut Slot<K, V>) {
        // Cloned before anything is counted: a user's `Clone` may panic.
        let ticket_key = key.clone();
        let slot = slots
            .entry(hash, |slot| slot.key == *key, |slot| self.hasher.hash_one(&slot.key))
            .or_insert_with(|| Slot { key: key.clone(), generation: 0, tickets: 0, flight: None })
            .into_mut();
        slot.tickets += 1;
        let generation = slot.generation;
        (Ticket { table: Arc::clone(self), key: ticket_key, hash, generation }, slot)
    }
}

impl<K: Hash + Eq, V> Ticket<K, V> {
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Runs `store` with the key's shard locked, unless the key has been written since the ticket
    /// was taken. Tells whether it ran.
    pub(crate) fn redeem(&self, store: impl FnOnce()) -> bool {
        let slots = self.table.shard(self.hash).lock();
        let slot = slots.find(self.hash, |slot| slot.key == self.key);
        let current = slot.is_some_and(|slot| slot.generation == self.generation);
        if current {
            store();
        }
        current
    }
}

impl<K: Hash + Eq, V> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        let mut slots = self.table.shard(self.hash).lock();
        let mut last = None;
        if let Ok(mut entry) = slots.find_entry(self.hash, |slot| slot.key == self.key) {
            entry.get_mut().tickets -= 1;
            if entry.get().tickets == 0 {
                last = Some(entry.remove().0);
            }
        }
        drop(slots);
        // The slot may hold a flight's landing, and that the last of a value.
        drop(last);
    }
}

impl<K, V> Locked<'_, K, V> {
    /// Ends the exclusive section.
    pub(crate) fn release(self) {
        drop(self.slots);
        drop(self.overtaken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redeemed(ticket: &Ticket<u32, u32>) -> bool {
        let mut ran = false;
        let told = ticket.redeem(|| ran = true);
        assert_eq!(told, ran);
        ran
    }

    #[test]
    fn a_ticket_is_good_until_its_key_is_written() {
        let table = InFlight::<u32, u32>::new();
        let ticket = table.ticket(&1);
        table.overtake(&2).release();
        assert!(redeemed(&ticket));
        table.overtake(&1).release();
        assert!(!redeemed(&ticket));
        let later = table.ticket(&1);
        assert!(redeemed(&later) && !redeemed(&ticket));
    }

    #[test]
    fn overtaking_everything_spoils_every_ticket() {
        let table = InFlight::<u32, u32>::new();
        let tickets: Vec<_> = (0..1_000).map(|key| table.ticket(&key)).collect();
        table.overtake_all();
        assert!(!tickets.iter().any(redeemed));
    }

    #[test]
    fn nothing_stays_behind_when_the_tickets_are_gone() {
        let table = InFlight::<u32, u32>::new();
        let tickets: Vec<_> = (0..100).map(|key| table.ticket(&(key % 10))).collect();
        assert_eq!(table.len(), 10);
        drop(tickets);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_second_caller_waits_and_one_after_a_write_does_not() {
        let table = InFlight::<u32, u32>::new();
        let first = table.join(&1);
        assert!(matches!(first, Role::Leader(..)));
        assert!(matches!(table.join(&1), Role::Waiter(_)));
        table.overtake(&1).release();
        assert!(matches!(table.join(&1), Role::Leader(..)));
    }

    #[test]
    fn a_flight_whose_leader_is_gone_is_not_joined() {
        let table = InFlight::<u32, u32>::new();
        let other_work = table.ticket(&1);
        drop(table.join(&1));
        assert!(matches!(table.join(&1), Role::Leader(..)));
        drop(other_work);
    }
}
