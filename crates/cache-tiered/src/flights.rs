//! Keys on which something is under way: who loads, who waits, and whose result is no longer wanted.
//!
//! # Protocol
//!
//! A call that will bring a value for a key from somewhere slow (a lower tier, a loader) takes a
//! [`Ticket`](crate::memory::Ticket) first. It puts a placeholder for the key, its [`Slot`], beside the
//! entries of the key's shard and remembers the slot's generation. Every write of the key (`insert`,
//! `remove`, `clear`) bumps the generation under the lock of that shard, so when the slow value
//! arrives, the ticket compares under the same lock and stores nothing that a write has overtaken. A
//! key that nobody is busy with has no slot: a shard holds as many as calls are in flight, and a write
//! normally finds none and pays one comparison for it.
//!
//! The slot also carries the single flight: a channel on which the one who loads publishes. A write
//! detaches it, so whoever comes after a `remove` starts a load of its own instead of joining one
//! that began before. A leader that is dropped closes the channel without a word; its waiters wake,
//! come back to the shard, and the first of them leads with its own loader. What tags a value has is known
//! only when it lands: who waits for one of which a tag was invalidated before it began to wait comes
//! back, too.
//!
//! Lock order in this crate: a shard of the memory tier, then a write queue, then what is below. A lock
//! is held over memory operations only, never over I/O, an await, a user's loader, weigher or listener,
//! or the drop of a value: whatever falls out of a structure is carried past the unlock first, so a
//! value's `Drop` may call the cache. A key's `Hash` runs before the lock. Its `Eq` and `Clone`, and a
//! value's `Clone` where evictions are written below or listened to, do run under it, and may not call
//! the cache.

use std::sync::Arc;

use hashbrown::HashTable;
use tokio::sync::watch;

use crate::error::LoadError;
use crate::tags::Attributes;

/// What a flight ends with; `None` while it is in the air.
pub(crate) type Landing<V> = Option<Result<Landed<V>, LoadError>>;

/// A value that was fetched, and what it carries.
#[derive(Debug, Clone)]
pub(crate) struct Landed<V> {
    pub(crate) value: V,
    /// What it carries, if that is known.
    pub(crate) attributes: Option<Arc<Attributes>>,
    /// A time of the tags at which it was good.
    pub(crate) good_at: u64,
}

impl<V> Landed<V> {
    /// Whether a call that began at this time of the tags may have the value.
    pub(crate) fn serves(&self, began: u64) -> bool {
        self.good_at >= began || self.attributes.as_ref().is_some_and(|it| it.is_untouched())
    }
}

/// Where those who wait for a load hear of its end.
pub(crate) type Flight<V> = watch::Receiver<Landing<V>>;

/// The placeholder of one key.
#[derive(Debug)]
pub(crate) struct Slot<K, V> {
    key: K,
    hash: u64,
    id: u64,
    generation: u64,
    tickets: usize,
    flight: Option<Flight<V>>,
}

/// Names a slot and the moment in its history at which a ticket was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Booking {
    hash: u64,
    id: u64,
    generation: u64,
}

impl Booking {
    /// The hash of the booked key.
    pub(crate) fn hash(self) -> u64 {
        self.hash
    }
}

/// The placeholders of one shard.
#[derive(Debug)]
pub(crate) struct Flights<K, V> {
    slots: HashTable<Slot<K, V>>,
    next_id: u64,
    /// Bookings of keys that were booked already.
    doubled: u64,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { slots: HashTable::new(), next_id: 0, doubled: 0 }
    }
}

impl<K, V> Flights<K, V> {
    /// Keys on which something is under way.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How often a fetch of a key has begun while another was under way.
    pub(crate) fn doubled(&self) -> u64 {
        self.doubled
    }

    /// Overtakes whatever is under way for every key; the flights are to be dropped after the unlock.
    pub(crate) fn overtake_all(&mut self, overtaken: &mut Vec<Flight<V>>) {
        for slot in &mut self.slots {
            slot.generation += 1;
            overtaken.extend(slot.flight.take());
        }
    }

    /// Whether the booked key has not been written since.
    pub(crate) fn is_current(&self, booking: Booking) -> bool {
        let slot = self.slots.find(booking.hash, |slot| slot.id == booking.id);
        slot.is_some_and(|slot| slot.generation == booking.generation)
    }

    /// Gives a booking back. The slot of the last one comes out, to be dropped after the unlock.
    pub(crate) fn cancel(&mut self, booking: Booking) -> Option<Slot<K, V>> {
        let found = self.slots.find_entry(booking.hash, |slot| slot.id == booking.id);
        let mut entry = found.ok()?;
        entry.get_mut().tickets -= 1;
        (entry.get().tickets == 0).then(|| entry.remove().0)
    }
}

impl<K: Eq, V> Flights<K, V> {
    /// Overtakes whatever is under way for a key that is being written.
    #[inline]
    pub(crate) fn overtake(&mut self, hash: u64, key: &K) -> Option<Flight<V>> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slots.find_mut(hash, |slot| slot.key == *key)?;
        slot.generation += 1;
        slot.flight.take()
    }

    /// The key's flight, if its leader is still there.
    pub(crate) fn flight(&self, hash: u64, key: &K) -> Option<Flight<V>> {
        let slot = self.slots.find(hash, |slot| slot.key == *key)?;
        // An error means that the leader is gone.
        slot.flight.as_ref().filter(|flight| flight.has_changed().is_ok()).cloned()
    }

    /// Books a key: makes its slot, or joins the one that is there.
    pub(crate) fn book(&mut self, hash: u64, key: &K) -> Booking
    where
        K: Clone,
    {
        let id = self.next_id;
        let slot = self
            .slots
            .entry(hash, |slot| slot.key == *key, |slot| slot.hash)
            .or_insert_with(|| Slot {
                key: key.clone(),
                hash,
                id,
                generation: 0,
                tickets: 0,
                flight: None,
            })
            .into_mut();
        if slot.id == id {
            self.next_id += 1;
        } else {
            self.doubled += 1;
        }
        slot.tickets += 1;
        Booking { hash, id: slot.id, generation: slot.generation }
    }

    /// Books a key and starts its flight. A flight that has landed comes out, to be dropped after the
    /// unlock.
    pub(crate) fn start(
        &mut self,
        hash: u64,
        key: &K,
    ) -> (Booking, watch::Sender<Landing<V>>, Option<Flight<V>>)
    where
        K: Clone,
    {
        let booking = self.book(hash, key);
        let (sender, receiver) = watch::channel(None);
        let slot = self.slots.find_mut(hash, |slot| slot.id == booking.id);
        let landed = slot.and_then(|slot| slot.flight.replace(receiver));
        (booking, sender, landed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Flights<u32, u32>;

    const HASH: u64 = 7;

    #[test]
    fn a_booking_is_good_until_its_key_is_written() {
        let mut table = Table::default();
        let booking = table.book(HASH, &1);
        assert!(table.overtake(HASH, &2).is_none());
        assert!(table.is_current(booking));
        table.overtake(HASH, &1);
        assert!(!table.is_current(booking));
        let later = table.book(HASH, &1);
        assert!(table.is_current(later) && !table.is_current(booking));
    }

    #[test]
    fn overtaking_everything_spoils_every_booking() {
        let mut table = Table::default();
        let bookings: Vec<_> = (0..1_000).map(|key| table.book(u64::from(key), &key)).collect();
        table.overtake_all(&mut Vec::new());
        assert!(!bookings.iter().any(|booking| table.is_current(*booking)));
    }

    #[test]
    fn a_fetch_that_another_was_under_way_for_counts_as_doubled() {
        let mut table = Table::default();
        let first = table.book(HASH, &1);
        let _second = table.book(HASH, &1);
        let _leader = table.start(HASH, &1);
        let _other = table.book(HASH, &2);
        assert_eq!(table.doubled(), 2);
        table.cancel(first);
        assert_eq!(table.doubled(), 2);
    }

    #[test]
    fn nothing_stays_behind_when_the_bookings_are_gone() {
        let mut table = Table::default();
        let bookings: Vec<_> = (0..100).map(|at| table.book(at % 5, &((at % 10) as u32))).collect();
        assert_eq!(table.len(), 10);
        let slots = bookings.into_iter().filter_map(|booking| table.cancel(booking)).count();
        assert_eq!((slots, table.len()), (10, 0));
    }

    #[test]
    fn a_slot_that_was_made_anew_does_not_honour_an_old_booking() {
        let mut table = Table::default();
        let old = table.book(HASH, &1);
        table.cancel(old);
        let new = table.book(HASH, &1);
        assert!(table.is_current(new) && !table.is_current(old));
    }

    #[test]
    fn a_second_caller_waits_and_one_after_a_write_does_not() {
        let mut table = Table::default();
        let _leader = table.start(HASH, &1);
        assert!(table.flight(HASH, &1).is_some());
        table.overtake(HASH, &1);
        assert!(table.flight(HASH, &1).is_none());
    }

    #[test]
    fn a_flight_whose_leader_is_gone_is_not_joined() {
        let mut table = Table::default();
        let _other_work = table.book(HASH, &1);
        drop(table.start(HASH, &1));
        assert!(table.flight(HASH, &1).is_none());
    }
}
