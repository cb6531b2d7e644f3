//! Who can give memory back: the registry, and one run over it.
//!
//! The model is that of the kernel's shrinkers (`mm/shrinker.c`): each holder of memory tells how much
//! it could free and frees on request, and only the registry knows how much is wanted. A run asks
//! them in the order of what it costs to get the contents back ([`Cost`]); holders of the same cost
//! share what is wanted by weight times size. It ends when enough was freed, or its time is over.
//!
//! A reclaimer is somebody else's code, so the registry trusts it with nothing. A panic is caught and
//! counted. One that is still at work is not called a second time, and other runs go on without it.
//! One that had nothing to give twice in a row, although it said so, or that panicked or overran its
//! time, is left out of the next two runs, then four, up to sixty-four. What it says it freed is
//! reported beside what was seen to become free.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::pressure::Level;

/// Registrations at a time, at most.
pub const RECLAIMERS_MAX: usize = 1_024;

/// Weights above this count as this, and sizes in bytes likewise, so that their products fit.
const WEIGHT_MAX: u32 = 1 << 16;
const SIZE_MAX: u64 = 1 << 50;

/// Fruitless calls in a row after which a reclaimer is left out for a while.
const STRIKES: u32 = 2;
/// The longest pause is two to this power, in runs.
const PAUSE_EXPONENT_MAX: u32 = 6;

/// What it costs to get back what is given up; the cheapest is asked for first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Cost {
    /// Free objects of a pool: the next user makes a new one.
    Surplus,
    /// What nobody refers to any more and a sweep finds, such as unused interned strings.
    Unused,
    /// Copies of what lies on this machine's disk.
    Nearby,
    /// What another machine must be asked for, or what must be computed again.
    #[default]
    Remote,
}

/// What a reclaimer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReclaimRequest {
    /// Bytes to free, about.
    pub target_bytes: u64,
    /// How near the process is to its limit.
    pub level: Level,
    /// When to stop, whatever has been freed by then.
    pub deadline: Instant,
}

/// Holds memory that it can give back.
///
/// # Examples
///
/// ```
/// use std::sync::Mutex;
/// use memory::{ReclaimRequest, Reclaimer};
///
/// struct Scratch(Mutex<Vec<u8>>);
///
/// impl Reclaimer for Scratch {
///     fn name(&self) -> &str {
///         "scratch"
///     }
///     fn reclaimable_bytes(&self) -> u64 {
///         self.0.lock().map_or(0, |buffer| buffer.capacity() as u64)
///     }
///     fn reclaim(&self, _: &ReclaimRequest) -> u64 {
///         self.0.lock().map_or(0, |mut buffer| std::mem::take(&mut *buffer).capacity() as u64)
///     }
/// }
/// ```
pub trait Reclaimer: Send + Sync + 'static {
    /// Returns a name for reports.
    fn name(&self) -> &str;

    /// Returns about how many bytes could be freed now. Must be quick.
    fn reclaimable_bytes(&self) -> u64;

    /// Frees about the target's bytes by the deadline, and returns how many it freed.
    ///
    /// It runs on the guard's own thread, or on that of who asked for a clean-up.
    fn reclaim(&self, request: &ReclaimRequest) -> u64;

    /// Returns what it costs to get the contents back.
    fn cost(&self) -> Cost {
        Cost::default()
    }

    /// Returns the share that it takes among reclaimers of its cost, from 1 to 65,536; 1 unless said
    /// otherwise.
    fn weight(&self) -> u32 {
        1
    }

    /// Tells whether [`decay`](Self::decay) is to be called; it is asked once, when it is registered.
    fn decays(&self) -> bool {
        false
    }

    /// Drops what nobody has used for long, whatever the pressure, and returns the bytes.
    ///
    /// A guard calls it every five seconds from a thread of its own, unless it is not automatic.
    fn decay(&self, _now: Instant) -> u64 {
        0
    }
}

impl<R: Reclaimer + ?Sized> Reclaimer for Arc<R> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn reclaimable_bytes(&self) -> u64 {
        (**self).reclaimable_bytes()
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        (**self).reclaim(request)
    }

    fn cost(&self) -> Cost {
        (**self).cost()
    }

    fn weight(&self) -> u32 {
        (**self).weight()
    }

    fn decays(&self) -> bool {
        (**self).decays()
    }

    fn decay(&self, now: Instant) -> u64 {
        (**self).decay(now)
    }
}

/// There are as many reclaimers as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{RECLAIMERS_MAX} reclaimers are registered already; drop a Registration first")]
#[non_exhaustive]
pub struct TooManyReclaimers;

/// Holds a reclaimer in the registry until it is dropped.
#[derive(Debug)]
#[must_use = "a registration that is dropped takes its reclaimer out again"]
pub struct Registration {
    registry: Weak<Mutex<Vec<Arc<Entry>>>>,
    number: u64,
}

impl Registration {
    /// Leaves the reclaimer registered for as long as the registry lives.
    pub fn keep(mut self) {
        self.registry = Weak::new();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(registry) = self.registry.upgrade() else { return };
        let mut entries = registry.lock();
        let at = entries.iter().position(|entry| entry.number == self.number);
        let entry = at.map(|at| entries.remove(at));
        drop(entries);
        // A user's reclaimer is dropped without the lock.
        drop(entry);
    }
}

struct Entry {
    number: u64,
    /// Taken once: a name that changes would make two of one.
    name: Arc<str>,
    cost: Cost,
    weight: u64,
    decays: bool,
    reclaimer: Box<dyn Reclaimer>,
    /// Whether a run is inside of it.
    busy: AtomicBool,
    backoff: Mutex<Backoff>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Backoff {
    strikes: u32,
    /// Pauses in a row.
    pauses: u32,
    /// Runs that it is still left out of.
    left_out: u32,
}

impl Backoff {
    /// Whether this run leaves it out.
    fn skips(&mut self) -> bool {
        let skips = self.left_out > 0;
        self.left_out = self.left_out.saturating_sub(1);
        skips
    }

    fn note(&mut self, fruitful: bool, grave: bool) {
        if fruitful {
            *self = Self::default();
            return;
        }
        self.strikes += 1;
        if grave || self.strikes >= STRIKES {
            self.strikes = 0;
            self.pauses = (self.pauses + 1).min(PAUSE_EXPONENT_MAX);
            self.left_out = 1 << self.pauses;
        }
    }
}

/// How one reclaimer's part of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReclaimOutcome {
    /// It returned in time.
    Done,
    /// It returned after its deadline.
    Late,
    /// It panicked.
    Panicked,
    /// It was still at work for an earlier run.
    Busy,
    /// It was left out because it gave nothing the last times.
    BackedOff,
    /// The run's time was over before its turn.
    OutOfTime,
}

impl ReclaimOutcome {
    /// Returns the outcome's name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Late => "late",
            Self::Panicked => "panicked",
            Self::Busy => "busy",
            Self::BackedOff => "backed-off",
            Self::OutOfTime => "out-of-time",
        }
    }
}

/// One reclaimer's part of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReclaimerReport {
    /// The reclaimer's name.
    pub name: Arc<str>,
    /// What it was asked for, in bytes.
    pub target_bytes: u64,
    /// What it said it freed, in bytes.
    pub claimed_bytes: u64,
    /// By how much the resident bytes of the process fell meanwhile. Often less than was claimed: what
    /// is freed goes to the allocator first.
    pub observed_bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: ReclaimOutcome,
}

/// What is wanted of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Bytes; `u64::MAX` for all there is.
    pub(crate) bytes: u64,
    pub(crate) level: Level,
    /// Asks those that are backing off as well.
    pub(crate) force: bool,
    /// How long one reclaimer may take, and the whole run.
    pub(crate) each: Duration,
    pub(crate) all: Duration,
}

/// What a run reads from outside.
pub(crate) trait Surroundings {
    fn now(&self) -> Instant;
    /// Resident bytes of the process.
    fn resident(&self) -> u64;
}

/// The registry of those who can give memory back; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reclaimers {
    entries: Arc<Mutex<Vec<Arc<Entry>>>>,
    numbers: Arc<AtomicU64>,
}

impl Reclaimers {
    /// Adds a reclaimer until the registration is dropped.
    ///
    /// Its name, cost, weight and whether it decays are asked for once, here.
    ///
    /// # Errors
    ///
    /// [`TooManyReclaimers`] with [`RECLAIMERS_MAX`] there already.
    pub fn register(&self, reclaimer: impl Reclaimer) -> Result<Registration, TooManyReclaimers> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            number,
            name: Arc::from(reclaimer.name()),
            cost: reclaimer.cost(),
            weight: u64::from(reclaimer.weight().clamp(1, WEIGHT_MAX)),
            decays: reclaimer.decays(),
            reclaimer: Box::new(reclaimer),
            busy: AtomicBool::new(false),
            backoff: Mutex::default(),
        });
        let mut entries = self.entries.lock();
        if entries.len() == RECLAIMERS_MAX {
            drop(entries);
            return Err(TooManyReclaimers);
        }
        let at = entries.partition_point(|other| other.cost <= entry.cost);
        entries.insert(at, entry);
        Ok(Registration { registry: Arc::downgrade(&self.entries), number })
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns what each could free now, by name, the cheapest to get back first.
    ///
    /// # Cost
    ///
    /// Asks every reclaimer; one that panics counts as zero, one at work as well.
    #[must_use]
    pub fn reclaimable(&self) -> Vec<(Arc<str>, u64)> {
        let entries = self.entries.lock().clone();
        entries.iter().map(|entry| (Arc::clone(&entry.name), entry.size().unwrap_or(0))).collect()
    }

    /// Tells whether any of them decays.
    pub(crate) fn decay_is_of_use(&self) -> bool {
        self.entries.lock().iter().any(|entry| entry.decays)
    }

    /// Lets time pass for those that decay; returns the bytes they say they dropped, and the names of
    /// those that panicked.
    pub(crate) fn decay(&self, now: Instant) -> (u64, Vec<Arc<str>>) {
        let entries = self.entries.lock().clone();
        let mut bytes: u64 = 0;
        let mut panicked = Vec::new();
        for entry in entries.iter().filter(|entry| entry.decays) {
            let Some(_busy) = entry.enter() else { continue };
            match catch_unwind(AssertUnwindSafe(|| entry.reclaimer.decay(now))) {
                Ok(dropped) => bytes = bytes.saturating_add(dropped),
                Err(_) => panicked.push(Arc::clone(&entry.name)),
            }
        }
        (bytes, panicked)
    }

    /// Asks the reclaimers for what is wanted.
    pub(crate) fn run(&self, wanted: Wanted, around: &dyn Surroundings) -> Vec<ReclaimerReport> {
        let entries = self.entries.lock().clone();
        let ends = around.now() + wanted.all;
        let mut reports = Vec::new();
        let mut missing = wanted.bytes;
        for group in entries.chunk_by(|one, other| one.cost == other.cost) {
            let mut sizes = Vec::with_capacity(group.len());
            for entry in group {
                let outcome = if entry.busy.load(Ordering::Relaxed) {
                    Some(ReclaimOutcome::Busy)
                } else if missing > 0 && !wanted.force && entry.backoff.lock().skips() {
                    Some(ReclaimOutcome::BackedOff)
                } else {
                    None
                };
                match outcome {
                    Some(outcome) => reports.push(entry.untouched(outcome)),
                    None => match entry.size() {
                        Some(0) => {}
                        Some(size) => sizes.push((entry, size)),
                        None => {
                            entry.backoff.lock().note(false, true);
                            reports.push(entry.untouched(ReclaimOutcome::Panicked));
                        }
                    },
                }
            }
            // What one of them leaves over falls to those after it; the heavy ones are full first.
            sizes.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.weight));
            let portion =
                |(entry, size): &(&Arc<Entry>, u64)| u128::from(entry.weight) * u128::from(*size);
            let mut portions: u128 = sizes.iter().map(portion).sum();
            let mut left: u64 = sizes.iter().map(|(_, size)| *size).sum();
            for item in &sizes {
                let (entry, size) = item;
                let share = u128::from(missing.min(left)) * portion(item) / portions.max(1);
                portions -= portion(item);
                left -= size;
                let target = u64::try_from(share).unwrap_or(u64::MAX).min(*size);
                if target == 0 {
                    continue;
                }
                let now = around.now();
                if now >= ends {
                    reports.push(entry.untouched(ReclaimOutcome::OutOfTime));
                    continue;
                }
                let request = ReclaimRequest {
                    target_bytes: target,
                    level: wanted.level,
                    deadline: ends.min(now + wanted.each),
                };
                let report = entry.ask(&request, around);
                missing = missing.saturating_sub(report.claimed_bytes);
                reports.push(report);
            }
        }
        reports
    }

    /// The name of one that is at work, for the report of a run that does not end.
    pub(crate) fn at_work(&self) -> Option<Arc<str>> {
        let entries = self.entries.lock();
        let entry = entries.iter().find(|entry| entry.busy.load(Ordering::Relaxed))?;
        Some(Arc::clone(&entry.name))
    }
}

/// Whoever is inside of a reclaimer.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // Release: what the reclaimer did is seen by who calls it next. Pairs with `enter`.
        self.0.store(false, Ordering::Release);
    }
}

impl Entry {
    /// What it could free; `None` if it panicked.
    fn size(&self) -> Option<u64> {
        let size = catch_unwind(AssertUnwindSafe(|| self.reclaimer.reclaimable_bytes())).ok()?;
        Some(size.min(SIZE_MAX))
    }

    /// Goes inside of the reclaimer, unless somebody is.
    fn enter(&self) -> Option<Busy<'_>> {
        // Acquire: pairs with the Release in `Busy::drop`.
        (!self.busy.swap(true, Ordering::Acquire)).then_some(Busy(&self.busy))
    }

    fn untouched(&self, outcome: ReclaimOutcome) -> ReclaimerReport {
        ReclaimerReport {
            name: Arc::clone(&self.name),
            target_bytes: 0,
            claimed_bytes: 0,
            observed_bytes: 0,
            took: Duration::ZERO,
            outcome,
        }
    }

    fn ask(&self, request: &ReclaimRequest, around: &dyn Surroundings) -> ReclaimerReport {
        let Some(busy) = self.enter() else { return self.untouched(ReclaimOutcome::Busy) };
        let (began, before) = (around.now(), around.resident());
        // Unwind safety: what a panic leaves behind is the reclaimer's own, and it is asked again only
        // after a pause.
        let claimed = catch_unwind(AssertUnwindSafe(|| self.reclaimer.reclaim(request)));
        drop(busy);
        let (ended, after) = (around.now(), around.resident());
        let outcome = match claimed {
            Err(_) => ReclaimOutcome::Panicked,
            Ok(_) if ended > request.deadline => ReclaimOutcome::Late,
            Ok(_) => ReclaimOutcome::Done,
        };
        let claimed = claimed.unwrap_or(0);
        let grave = outcome != ReclaimOutcome::Done;
        self.backoff.lock().note(claimed > 0 && !grave, grave);
        ReclaimerReport {
            target_bytes: request.target_bytes,
            claimed_bytes: claimed,
            observed_bytes: before.saturating_sub(after),
            took: ended.saturating_duration_since(began),
            ..self.untouched(outcome)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
