//! What all pools have in common: stashes of threads over a shared depot.
//!
//! Objects rest in two places. Each thread has a *stash*, a small stack that only this thread uses, so
//! that taking and returning are a handful of plain loads and stores. Below them is one *depot* behind a
//! lock. A thread whose stash runs empty fetches a *magazine* of objects from the depot, and one whose
//! stash is full leaves half of it there: that is the magazine layer of Bonwick and Adams, "Magazines
//! and Vmem" (USENIX 2001), with the same effect: the lock is taken once for a magazine, also where
//! objects are taken on one thread and returned on another.
//!
//! # Caps
//!
//! The caps on what rests are exact. A thread gets a *grant* with its stash, a part of the caps that it
//! may fill without asking; grants and what is in the depot together are never more than the caps, and
//! grants alone at most half. A thread that comes when no more can be granted works on the depot.
//!
//! With a limit on what exists (see [`PoolBuilder::limit`](super::PoolBuilder::limit)) there are no
//! grants: an object that rests in the stash of another thread could not be had here, and a taker would
//! wait while something is free.
//!
//! # Decay
//!
//! Each stash and the depot remember the fewest objects that they had since the last step. Those were
//! not needed, and each step drops half of them, rounded up; what nobody has touched for
//! [`QUIET_STEPS`] steps goes at once. Steps visit the stashes of other threads; see [`PerThread`] for
//! how that goes without a lock on their side.
//!
//! # Locks
//!
//! A thread that is inside of its stash may lock the depot. So who holds the depot's lock never visits
//! stashes, and who visits drops nothing until the visit is over: destructors are the user's.

mod depot;
mod stash;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use self::depot::Depot;
use self::stash::{Counters, Grant, Stash, increment};
use super::births::{BIRTHS, Birth, Births};
use super::waiters::Woken;
use crate::raw::{PerThread, ThreadEnd, at_end};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Relaxed};

/// How many operations of a thread, a power of two, go by before it looks after the pool.
const UPKEEP_EVERY: u64 = 256;
/// The most objects that a thread is granted.
const STASH_MAX: usize = 64;

/// How a pool makes its objects and what it does when they return.
pub(crate) trait Kind: Send + Sync + 'static {
    /// What is pooled.
    type Object: Send + 'static;

    /// Makes an object of a class.
    fn make(&self, class: usize) -> Self::Object;

    /// Says how many bytes each object takes at all times, if that is one number.
    fn same_weight(&self) -> Option<usize>;

    /// Tells whether an object that comes back is fit for the next user and weighs what it did.
    fn is_plain(&self) -> bool;

    /// Says how many bytes an object takes; this may panic unless objects are plain.
    fn weigh(&self, object: &Self::Object) -> usize;

    /// Makes an object fit for the next user; this may panic.
    fn reset(&self, object: &mut Self::Object);
}

/// The bounds of a pool; checked by the builder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) name: &'static str,
    pub(crate) idle_max: usize,
    pub(crate) idle_bytes_max: usize,
    pub(crate) object_bytes_max: usize,
    pub(crate) stash_bytes_max: usize,
    pub(crate) limit: Option<usize>,
    pub(crate) waiters_max: usize,
    pub(crate) decay: Duration,
    pub(crate) clock: fn() -> Instant,
}

/// An object with what the pool has to know about it.
///
/// It stays at its address between the pool and the guards, so what moves is one pointer.
pub(crate) struct Node<T> {
    pub(crate) object: T,
    /// What it weighed when it came back last; where all are plain, what it weighs.
    bytes: usize,
    birth: Birth,
}

/// Numbers that change seldom.
#[derive(Default)]
pub(super) struct Totals {
    made: AtomicU64,
    discarded: AtomicU64,
    decayed: AtomicU64,
    detached: AtomicU64,
    poisoned: AtomicU64,
    factory_panics: AtomicU64,
    reset_panics: AtomicU64,
}

/// A pool without its handle.
pub(crate) struct Core<K: Kind, const C: usize> {
    pub(crate) kind: K,
    pub(crate) settings: Settings,
    /// Asked of the kind once, since every operation wants to know.
    plain: bool,
    same_weight: Option<usize>,
    stashes: PerThread<Counters, Stash<K::Object, Home<K, C>, C>>,
    births: Births,
    /// Guards taken less guards dropped by threads without a slot; by locked instructions; wraps.
    slotless: [AtomicU64; BIRTHS],
    totals: Totals,
    last_step: Mutex<Instant>,
    depot: CachePadded<Mutex<Depot<K::Object, C>>>,
}

/// A reference to a pool that a thread hands out to its owned guards.
///
/// A guard without a lifetime needs a reference count. One count for the whole pool would be a cache line
/// that all threads write for each object; this one is cloned by its thread alone, so that only a guard
/// that is dropped elsewhere makes it travel.
pub(crate) struct Home<K: Kind, const C: usize> {
    pub(crate) core: Arc<Core<K, C>>,
}

impl<K: Kind, const C: usize> Core<K, C> {
    pub(crate) fn new(kind: K, settings: Settings) -> Arc<Self> {
        let now = (settings.clock)();
        Arc::new(Self {
            plain: kind.is_plain(),
            same_weight: kind.same_weight(),
            kind,
            settings,
            stashes: PerThread::new(),
            births: Births::new(now),
            slotless: Default::default(),
            totals: Totals::default(),
            last_step: Mutex::new(now),
            depot: CachePadded::new(Mutex::new(Depot::new())),
        })
    }

    /// Tells whether objects differ in their weight, so that bytes have to be counted.
    #[inline(always)]
    fn weighed(&self) -> bool {
        self.same_weight.is_none()
    }

    /// Takes an object that rests with this thread.
    #[inline(always)]
    pub(crate) fn take_near(&self, class: usize) -> Option<Box<Node<K::Object>>> {
        let mut due = false;
        let node = self.stashes.enter()?.with(|counters, stash| {
            let mut node = stash.pop(class, counters, self.weighed())?;
            node.birth = self.births.current();
            let taken = increment(&counters.taken[node.birth.index()]);
            due = taken.is_multiple_of(UPKEEP_EVERY);
            Some(node)
        });
        if due {
            self.look_after();
        }
        node
    }

    /// Takes an object that rests, or makes one. For pools without a limit.
    #[inline(always)]
    pub(crate) fn take(self: &Arc<Self>, class: usize) -> Box<Node<K::Object>> {
        match self.take_near(class) {
            Some(node) => node,
            None => self.take_slowly(class),
        }
    }

    /// Takes from the depot and fills the stash on the way, or makes an object.
    #[cold]
    #[inline(never)]
    pub(super) fn take_slowly(self: &Arc<Self>, class: usize) -> Box<Node<K::Object>> {
        let mut look_after = false;
        let fetched = self.stashes.mine(|slot| {
            let (counters, stash) = slot?;
            let stash = stash?;
            self.ask_for_grant(stash);
            let mut depot = self.depot.lock();
            look_after = depot.operate();
            let node = depot.pop(class)?;
            depot.hits += 1;
            self.fetch_magazine(class, stash, counters, &mut depot);
            Some(node)
        });
        let node = match fetched {
            Some(node) => Some(node),
            // Without a slot, or while it is visited; or there is nothing.
            None => {
                let mut depot = self.depot.lock();
                look_after |= depot.operate();
                let node = depot.pop(class);
                depot.hits += u64::from(node.is_some());
                node
            }
        };
        if look_after {
            self.look_after();
        }
        let node = node.unwrap_or_else(|| self.make(class, || {}));
        self.begin(node)
    }

    /// Counts a guard that begins its life without the stash.
    pub(super) fn begin(&self, mut node: Box<Node<K::Object>>) -> Box<Node<K::Object>> {
        node.birth = self.births.current();
        let birth = node.birth.index();
        self.stashes.mine(|slot| match slot {
            Some((counters, _)) => {
                increment(&counters.taken[birth]);
                increment(&counters.past);
            }
            None => _ = self.slotless[birth].fetch_add(1, Relaxed),
        });
        node
    }

    /// Counts a guard whose life ends without the stash.
    fn end(&self, birth: Birth) {
        let birth = birth.index();
        self.stashes.mine(|slot| match slot {
            Some((counters, _)) => _ = increment(&counters.dropped[birth]),
            None => _ = self.slotless[birth].fetch_sub(1, Relaxed),
        });
    }

    /// Moves objects into the stash, to half of what it may hold.
    fn fetch_magazine(
        &self,
        class: usize,
        stash: &mut Stash<K::Object, Home<K, C>, C>,
        counters: &Counters,
        depot: &mut Depot<K::Object, C>,
    ) {
        let want = stash.grant.objects / 2;
        stash.make_room(class);
        for _ in 0..want {
            let Some(next) = depot.free[class].back() else { break };
            if self.weighed() {
                let bytes = counters.bytes.load(Relaxed) + next.bytes;
                if bytes > stash.grant.bytes / 2 {
                    break;
                }
                counters.bytes.store(bytes, Relaxed);
            }
            let Some(node) = depot.pop(class) else { break };
            stash.free[class].push(node);
            counters.arrive::<C>(stash.free[class].len(), 1);
        }
        // The newest has to be taken first.
        stash.free[class].reverse();
    }

    /// Makes an object; `undo` runs if the factory panics, and the panic goes on.
    pub(super) fn make(&self, class: usize, undo: impl Fn()) -> Box<Node<K::Object>> {
        let made = panic::catch_unwind(AssertUnwindSafe(|| self.kind.make(class)));
        match made {
            Ok(object) => {
                self.totals.made.fetch_add(1, Relaxed);
                let bytes = if self.plain { self.kind.weigh(&object) } else { 0 };
                Box::new(Node { object, bytes, birth: self.births.current() })
            }
            Err(payload) => {
                self.totals.factory_panics.fetch_add(1, Relaxed);
                undo();
                panic::resume_unwind(payload)
            }
        }
    }

    /// Gives an object back, or drops it where it is not wanted.
    #[inline(always)]
    pub(crate) fn put(self: &Arc<Self>, class: usize, mut node: Box<Node<K::Object>>) {
        if thread::panicking() {
            return self.poisoned(node);
        }
        if !self.plain {
            match self.restore(node) {
                Some(restored) => node = restored,
                None => return,
            }
        }
        let birth = node.birth.index();
        let refused = match self.stashes.enter() {
            Some(inside) => inside.with(|counters, stash| {
                stash.push(class, node, counters, self.weighed())?;
                increment(&counters.dropped[birth]);
                Ok(())
            }),
            None => Err(node),
        };
        if let Err(node) = refused {
            self.put_slowly(class, node);
        }
    }

    /// Drops what its user may have left half changed.
    #[cold]
    #[inline(never)]
    fn poisoned(&self, node: Box<Node<K::Object>>) {
        self.totals.poisoned.fetch_add(1, Relaxed);
        self.gone(&node);
    }

    /// Runs what the user wants done to an object that comes back; drops it if that panics.
    #[inline(never)]
    fn restore(&self, mut node: Box<Node<K::Object>>) -> Option<Box<Node<K::Object>>> {
        let restored = panic::catch_unwind(AssertUnwindSafe(|| {
            self.kind.reset(&mut node.object);
            self.same_weight.unwrap_or_else(|| self.kind.weigh(&node.object))
        }));
        if let Ok(bytes) = restored {
            node.bytes = bytes;
            return Some(node);
        }
        self.totals.reset_panics.fetch_add(1, Relaxed);
        self.gone(&node);
        // A destructor may panic over the state in which the reset left it.
        let _ = panic::catch_unwind(AssertUnwindSafe(move || drop(node)));
        None
    }

    /// Makes room in the stash or puts the object into the depot.
    #[cold]
    #[inline(never)]
    fn put_slowly(self: &Arc<Self>, class: usize, node: Box<Node<K::Object>>) {
        self.end(node.birth);
        let mut surplus = Surplus::default();
        let mut look_after = false;
        let left = if node.bytes > self.settings.object_bytes_max {
            surplus.push(node);
            None
        } else {
            self.stashes.mine(|slot| {
                let Some((counters, Some(stash))) = slot else { return Some(node) };
                self.ask_for_grant(stash);
                // Half of the stash goes to the depot once it is full, so that as many operations
                // pass until the next trip.
                let heavy = || counters.bytes.load(Relaxed) + node.bytes > stash.grant.bytes;
                let full =
                    stash.free[class].len() >= stash.grant.objects || (self.weighed() && heavy());
                if full {
                    let mut depot = self.depot.lock();
                    look_after |= depot.operate();
                    let half = stash.free[class].len().div_ceil(2);
                    let n = depot.fitting(&stash.free[class][..half], &self.settings);
                    for old in stash.drain(class, n, counters, self.weighed()) {
                        surplus.extend(depot.push(class, old, &self.settings).err());
                    }
                }
                stash.make_room(class);
                stash.push(class, node, counters, self.weighed()).err()
            })
        };
        let limited = self.settings.limit.is_some();
        let mut woken = Woken::default();
        if left.is_some() || limited {
            let mut depot = self.depot.lock();
            look_after |= depot.operate();
            if let Some(node) = left {
                surplus.extend(depot.push(class, node, &self.settings).err());
            }
            if limited {
                depot.existing = depot.existing.saturating_sub(surplus.len());
                woken = depot.waiters.wake();
            }
        }
        self.totals.discarded.fetch_add(surplus.len() as u64, Relaxed);
        woken.wake();
        if look_after {
            self.look_after();
        }
        drop(surplus);
    }

    /// Returns from which size on objects are not kept.
    #[cfg(feature = "buffers")]
    #[inline]
    pub(crate) fn largest_object(&self) -> usize {
        self.settings.object_bytes_max
    }

    /// Counts an object that will not come back.
    pub(crate) fn gone(&self, node: &Node<K::Object>) {
        self.end(node.birth);
        if self.settings.limit.is_some() {
            self.no_longer_exists();
        }
    }

    /// Counts an object that its user keeps.
    pub(crate) fn detached(&self, node: &Node<K::Object>) {
        self.totals.detached.fetch_add(1, Relaxed);
        self.gone(node);
    }

    /// Gives up the place of one object under the limit.
    pub(super) fn no_longer_exists(&self) {
        let woken = {
            let mut depot = self.depot.lock();
            depot.existing = depot.existing.saturating_sub(1);
            depot.waiters.wake()
        };
        woken.wake();
    }

    pub(super) fn depot(&self) -> MutexGuard<'_, Depot<K::Object, C>> {
        self.depot.lock()
    }

    /// Takes an object that rests in the depot, whose lock is held.
    pub(super) fn pop_locked(
        &self,
        depot: &mut Depot<K::Object, C>,
        class: usize,
    ) -> Option<Box<Node<K::Object>>> {
        let node = depot.pop(class)?;
        depot.hits += 1;
        Some(node)
    }

    /// Returns a reference for an owned guard; the thread's own where there is one.
    #[inline]
    pub(crate) fn home(self: &Arc<Self>) -> Arc<Home<K, C>> {
        let home = self.stashes.mine(|slot| slot?.1?.home.clone());
        home.unwrap_or_else(|| self.make_home())
    }

    #[cold]
    fn make_home(self: &Arc<Self>) -> Arc<Home<K, C>> {
        let home = Arc::new(Home { core: Arc::clone(self) });
        self.stashes.mine(|slot| {
            let Some((_, Some(stash))) = slot else { return };
            self.ask_for_grant(stash);
            // Nobody would break the circle after the pool has been closed.
            if !self.depot.lock().closed {
                stash.home = Some(Arc::clone(&home));
            }
        });
        home
    }

    /// Makes the thread known to the pool, once, and gives it a part of the caps if there is one left.
    fn ask_for_grant(self: &Arc<Self>, stash: &mut Stash<K::Object, Home<K, C>, C>) {
        if stash.asked {
            return;
        }
        let mut depot = self.depot.lock();
        if depot.closed {
            return;
        }
        stash.asked = true;
        let end: Arc<dyn ThreadEnd> = Arc::clone(self) as _;
        at_end(Arc::downgrade(&end));
        let grant = self.grant();
        let free = |granted: usize, max: usize| (max / 2).saturating_sub(granted);
        let settings = &self.settings;
        let objects = grant.objects * C;
        if objects == 0
            || objects > free(depot.granted.objects, settings.idle_max)
            || grant.bytes > free(depot.granted.bytes, settings.idle_bytes_max)
            // The depot may have filled up to the caps while there were fewer grants.
            || depot.idle + depot.granted.objects + objects > settings.idle_max
            || depot.bytes + depot.granted.bytes + grant.bytes > settings.idle_bytes_max
        {
            return;
        }
        depot.granted.objects += objects;
        depot.granted.bytes += grant.bytes;
        stash.grant = grant;
    }

    /// The part of the caps for one thread.
    ///
    /// Twice as many threads as there are cores fill the half of the caps that is for grants.
    fn grant(&self) -> Grant {
        if self.settings.limit.is_some() {
            return Grant::default();
        }
        let parts = 4 * cores();
        let bytes = (self.settings.idle_bytes_max / parts).min(self.settings.stash_bytes_max);
        let mut objects = (self.settings.idle_max / parts / C).min(STASH_MAX);
        let heaviest = self.settings.object_bytes_max;
        if let Some(weight) = self.same_weight {
            let fitting = bytes.checked_div(weight).unwrap_or(STASH_MAX);
            objects = if weight <= heaviest { objects.min(fitting) } else { 0 };
        }
        Grant { objects, bytes, heaviest }
    }

    /// Lets time pass, by the pool's own clock.
    #[cold]
    #[inline(never)]
    fn look_after(&self) {
        self.pass_time((self.settings.clock)());
    }

    /// Takes a step of decay if it is time for one; returns the bytes that were dropped.
    pub(crate) fn pass_time(&self, now: Instant) -> u64 {
        self.births.pass_time(now, |birth| self.guards_of(birth));
        {
            // Somebody else is at it.
            let Some(mut last) = self.last_step.try_lock() else { return 0 };
            if now.saturating_duration_since(*last) < self.settings.decay {
                return 0;
            }
            *last = now;
        }
        let dropped = self.step();
        self.totals.decayed.fetch_add(dropped.len() as u64, Relaxed);
        dropped.bytes()
    }

    /// Takes out half of what was not needed since the last step.
    fn step(&self) -> Surplus<K::Object> {
        let mut surplus = Surplus::default();
        self.stashes.visit(|counters, stash| {
            for class in 0..C {
                let n = stash.unused[class].step(stash.free[class].len());
                if n > 0 {
                    surplus.extend(stash.drain(class, n, counters, self.weighed()));
                }
                let left = stash.free[class].len();
                if left == 0 {
                    stash.free[class] = Vec::new();
                }
                stash.unused[class].begin(left);
            }
        });
        let mut depot = self.depot.lock();
        let mut from_depot = 0;
        for class in 0..C {
            let len = depot.free[class].len();
            let n = depot.unused[class].step(len);
            for _ in 0..n {
                surplus.extend(depot.pop_oldest(class));
            }
            from_depot += n;
            let free = &mut depot.free[class];
            if free.len() < free.capacity() / 4 {
                free.shrink_to(free.len() * 2);
            }
            depot.unused[class].begin(len - n);
        }
        depot.existing = depot.existing.saturating_sub(from_depot);
        surplus
    }

    /// Drops what rests until `target` bytes are gone or nothing is left; returns the bytes dropped.
    pub(crate) fn trim(&self, target: u64) -> u64 {
        let mut surplus = Surplus::default();
        {
            let mut depot = self.depot.lock();
            // The largest classes first: the fewest objects for the most bytes.
            for class in (0..C).rev() {
                while surplus.bytes() < target
                    && let Some(node) = depot.pop_oldest(class)
                {
                    surplus.push(node);
                }
            }
            depot.existing = depot.existing.saturating_sub(surplus.len());
        }
        if surplus.bytes() < target {
            self.stashes.visit(|counters, stash| {
                for class in (0..C).rev() {
                    while surplus.bytes() < target && !stash.free[class].is_empty() {
                        surplus.extend(stash.drain(class, 1, counters, self.weighed()));
                    }
                }
            });
        }
        self.totals.decayed.fetch_add(surplus.len() as u64, Relaxed);
        surplus.bytes()
    }

    /// Drops all that rests and keeps nothing from now on.
    pub(crate) fn close(&self) {
        let mut surplus = Surplus::default();
        let mut homes = Vec::new();
        {
            let mut depot = self.depot.lock();
            depot.closed = true;
            for class in 0..C {
                while let Some(node) = depot.pop(class) {
                    surplus.push(node);
                }
            }
        }
        // An owner that is preempted inside of its stash is out of it again soon.
        for _ in 0..1_000 {
            let left_out = self.stashes.visit(|counters, stash| {
                for class in 0..C {
                    let all = stash.free[class].len();
                    surplus.extend(stash.drain(class, all, counters, self.weighed()));
                    stash.free[class] = Vec::new();
                }
                stash.grant = Grant::default();
                homes.extend(stash.home.take());
            });
            if left_out == 0 {
                break;
            }
        }
        self.depot.lock().granted = Grant::default();
    }

    /// Returns the bytes that rest.
    pub(crate) fn idle_bytes(&self) -> u64 {
        let stashes: usize = self.stashes.shared().map(|it| self.bytes_of(it)).sum();
        (stashes + self.depot.lock().bytes) as u64
    }

    /// Returns the bytes that rest with a thread.
    fn bytes_of(&self, counters: &Counters) -> usize {
        match self.same_weight {
            Some(weight) => counters.idle.load(Relaxed) * weight,
            None => counters.bytes.load(Relaxed),
        }
    }

    /// Guards that were taken while a birth was the current one and are still there.
    fn guards_of(&self, birth: Birth) -> u64 {
        let index = birth.index();
        let slots = self.stashes.shared().map(|it| it.guards_of(birth));
        let sum = slots.fold(self.slotless[index].load(Relaxed), u64::wrapping_add);
        // A guard that moves from one thread to another while this runs can be seen to leave only.
        u64::try_from(sum.cast_signed()).unwrap_or(0)
    }

    pub(crate) fn stats(&self, now: Instant) -> PoolStats {
        self.births.pass_time(now, |birth| self.guards_of(birth));
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let (mut idle, mut idle_bytes, mut hits, waiting) = {
            let depot = self.depot.lock();
            (depot.idle, depot.bytes, depot.hits, depot.waiters.len())
        };
        for slot in self.stashes.shared() {
            idle += slot.idle.load(Relaxed);
            idle_bytes += self.bytes_of(slot);
            hits += slot.hits();
        }
        let in_use = Birth::all().map(|birth| self.guards_of(birth)).sum();
        PoolStats {
            hits,
            misses: load(&self.totals.made),
            in_use,
            oldest: self.births.oldest(now, |birth| self.guards_of(birth)),
            idle: idle as u64,
            idle_bytes: idle_bytes as u64,
            waiting: waiting as u64,
            discarded: load(&self.totals.discarded),
            decayed: load(&self.totals.decayed),
            detached: load(&self.totals.detached),
            poisoned: load(&self.totals.poisoned),
            factory_panics: load(&self.totals.factory_panics),
            reset_panics: load(&self.totals.reset_panics),
        }
    }
}

impl<K: Kind, const C: usize> ThreadEnd for Core<K, C> {
    fn thread_ends(&self) {
        let mut surplus = Surplus::default();
        // While somebody visits the stash it cannot be emptied; visits are short.
        for _ in 0..1_000 {
            let mut done = false;
            self.stashes.mine(|slot| {
                let Some((counters, Some(stash))) = slot else { return };
                let mut depot = self.depot.lock();
                depot.granted.objects -= stash.grant.objects * C;
                depot.granted.bytes -= stash.grant.bytes;
                for class in 0..C {
                    let all = stash.free[class].len();
                    for node in stash.drain(class, all, counters, self.weighed()) {
                        surplus.extend(depot.push(class, node, &self.settings).err());
                    }
                }
                let home = std::mem::take(stash).home;
                drop(depot);
                drop(home);
                done = true;
            });
            if done {
                break;
            }
            thread::yield_now();
        }
        self.totals.discarded.fetch_add(surplus.len() as u64, Relaxed);
        // A panic here would end the process.
        let _ = panic::catch_unwind(AssertUnwindSafe(move || drop(surplus)));
    }
}

/// Objects that have left the pool and are dropped where no lock is held.
struct Surplus<T> {
    nodes: Vec<Box<Node<T>>>,
    bytes: u64,
}

impl<T> Default for Surplus<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), bytes: 0 }
    }
}

impl<T> Surplus<T> {
    fn push(&mut self, node: Box<Node<T>>) {
        self.bytes += node.bytes as u64;
        self.nodes.push(node);
    }

    fn extend(&mut self, nodes: impl IntoIterator<Item = Box<Node<T>>>) {
        nodes.into_iter().for_each(|node| self.push(node));
    }

    fn len(&self) -> usize {
        self.nodes.len()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn cores() -> usize {
    if cfg!(loom) {
        return 1;
    }
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// What a pool has done and holds, read at one moment while work goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Objects that were taken again after a rest.
    pub hits: u64,
    /// Objects that had to be made.
    pub misses: u64,
    /// Guards that are out now.
    pub in_use: u64,
    /// How long the oldest of them has been out, to about a second: never less than the truth, and more
    /// by at most the time between two uses or readings of the pool. `None` if no guard is out.
    pub oldest: Option<Duration>,
    /// Objects that rest in the pool.
    pub idle: u64,
    /// Bytes of the objects that rest in the pool.
    pub idle_bytes: u64,
    /// Takers that wait because the limit is reached.
    pub waiting: u64,
    /// Objects that were dropped when they returned, because a cap was reached or they were too large.
    pub discarded: u64,
    /// Objects that were dropped from the pool by decay or by [`trim`](super::Pool::trim).
    pub decayed: u64,
    /// Objects that their users keep.
    pub detached: u64,
    /// Objects that were dropped because their guard went while its thread panicked.
    pub poisoned: u64,
    /// Panics of the factory; each went on to the caller.
    pub factory_panics: u64,
    /// Panics of the reset; each cost the object and went no further.
    pub reset_panics: u64,
}

impl PoolStats {
    /// Returns the share of takes that found an object, or `None` before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let takes = self.hits + self.misses;
        (takes > 0).then(|| self.hits as f64 / takes as f64)
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
