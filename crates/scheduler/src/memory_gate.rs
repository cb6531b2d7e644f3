//! The memory gate: tasks that declare bytes wait here until the budget has room for them.
//!
//! What is scarce is bytes and not threads, so this is no pool but a gate in front of every lane, with
//! queues of its own by priority. The head is the first task of the most important level. When it does
//! not fit, smaller ones behind it may pass so that the free bytes are used, but not for ever: a head
//! that was passed [`PASSES`] times or waited [`PATIENCE`] since it first did not fit *reserves*, and then
//! nothing of its own level or below is let in until it fits. Tasks of higher levels are worth more:
//! they may pass sixteen times as often and as long, the share that ageing gives a lower level elsewhere
//! in this crate, before the head reserves against them too. So a large task neither starves others nor
//! is starved.
//!
//! The budget follows the outside by [`MemoryGate::set_scale`]: half of it, or nothing, while memory is
//! short. A task larger than the scaled budget cannot reserve, since no release would ever make room.
//! What is already let in is never taken back.
//!
//! The gate is a plain state machine: the caller brings the time and runs what it lets in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::Priority;

/// How often a head that does not fit may be passed by tasks of its own level or below.
pub const PASSES: u32 = 8;
/// How long a head that does not fit may be passed by tasks of its own level or below.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// How many times as often, and as long, tasks of higher levels may pass.
const HIGHER: u32 = 16;
/// How many tasks behind a head are looked at for one that fits.
const LOOK_AHEAD: usize = 64;

/// The task can never pass the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task declares {declared_bytes} bytes, the memory budget is {budget_bytes} bytes")]
#[non_exhaustive]
pub struct TooLarge {
    /// What the task declared.
    pub declared_bytes: u64,
    /// What all tasks may hold together.
    pub budget_bytes: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<T> {
    /// It has its bytes and may run; give them back with [`MemoryGate::release`].
    Admitted(T),
    /// It waits; [`MemoryGate::next`] hands it out.
    Waiting(Waiting),
}

/// Names a waiting task, to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    level: Priority,
    number: u64,
}

/// A snapshot of the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryGateStats {
    /// The budget, unscaled.
    pub budget_bytes: u64,
    /// What of it may be used at this moment.
    pub scaled_bytes: u64,
    /// Bytes of the tasks that were let in and have not given them back.
    pub used_bytes: u64,
    /// Tasks that wait.
    pub waiting: usize,
    /// The sum of their bytes.
    pub waiting_bytes: u64,
    /// Tasks let in since the start.
    pub admitted: u64,
    /// Those of them that passed a head that did not fit.
    pub passed: u64,
}

/// Lets tasks of type `T` in as their bytes fit.
#[derive(Debug)]
pub struct MemoryGate<T> {
    budget: u64,
    /// The share of it that may be used.
    scale: f64,
    scaled: u64,
    used: u64,
    lowest: Priority,
    levels: [Level<T>; 4],
    numbers: u64,
    admitted: u64,
    passed: u64,
}

#[derive(Debug)]
struct Level<T> {
    waiting: VecDeque<Waiter<T>>,
    /// Since the present head was first found not to fit.
    blocked: Option<Blocked>,
}

#[derive(Debug)]
struct Waiter<T> {
    number: u64,
    bytes: u64,
    item: T,
}

#[derive(Clone, Copy, Debug)]
struct Blocked {
    since: Instant,
    passes: u32,
    passes_higher: u32,
}

impl Blocked {
    fn reserves(&self, now: Instant) -> bool {
        self.passes >= PASSES || now.saturating_duration_since(self.since) >= PATIENCE
    }

    fn reserves_against_higher(&self, now: Instant) -> bool {
        self.passes_higher >= HIGHER * PASSES
            || now.saturating_duration_since(self.since) >= HIGHER * PATIENCE
    }
}

impl<T> MemoryGate<T> {
    /// Makes a gate for a budget in bytes.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget: budget_bytes,
            scale: 1.0,
            scaled: budget_bytes,
            used: 0,
            lowest: Priority::Low,
            levels: std::array::from_fn(|_| Level { waiting: VecDeque::new(), blocked: None }),
            numbers: 0,
            admitted: 0,
            passed: 0,
        }
    }

    /// Asks to let `item` in with so many bytes.
    ///
    /// It is admitted at once only if nobody of its level or above waits and it fits; otherwise it
    /// waits, and the caller asks [`next`](Self::next) who may go.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] with both numbers if it exceeds the whole budget, and the item.
    pub fn request(
        &mut self,
        item: T,
        level: Priority,
        bytes: u64,
        now: Instant,
    ) -> Result<Entry<T>, (T, TooLarge)> {
        if bytes > self.budget {
            return Err((item, TooLarge { declared_bytes: bytes, budget_bytes: self.budget }));
        }
        let nobody_before = self.levels.iter().all(|level| level.waiting.is_empty());
        if nobody_before && self.lets_in(level) && self.fits(bytes) {
            self.take(bytes);
            return Ok(Entry::Admitted(item));
        }
        let number = self.numbers;
        self.numbers += 1;
        let queue = &mut self.levels[level.index()];
        queue.waiting.push_back(Waiter { number, bytes, item });
        // The clock of a head runs from the moment at which it first does not fit.
        let _ = self.find_at(now, false);
        Ok(Entry::Waiting(Waiting { level, number }))
    }

    /// Hands out the next task that may run at `now`; call it until it returns none.
    ///
    /// Ask after a request that waits, a release, a removal, a change of the scale, and at
    /// [`next_change`](Self::next_change) for the patience of a head.
    ///
    /// # Cost
    ///
    /// Looks at no more than 64 tasks of each level.
    pub fn next(&mut self, now: Instant) -> Option<(T, u64)> {
        let (level, place) = self.find_at(now, true)?;
        let waiter = self.levels[level.index()].waiting.remove(place).expect("found above");
        if place == 0 {
            self.levels[level.index()].blocked = None;
        }
        let mut passed = false;
        for other in Priority::ALL {
            let Some(blocked) = &mut self.levels[other.index()].blocked else { continue };
            passed = true;
            if level < other {
                blocked.passes_higher = blocked.passes_higher.saturating_add(1);
            } else {
                blocked.passes = blocked.passes.saturating_add(1);
            }
        }
        self.passed += u64::from(passed);
        self.take(waiter.bytes);
        Some((waiter.item, waiter.bytes))
    }

    /// Finds who may go: the level and the place in its queue. Starts the clocks of heads that do not
    /// fit; whoever reserves ends the search for those below it.
    fn find_at(&mut self, now: Instant, take: bool) -> Option<(Priority, usize)> {
        for level in Priority::ALL {
            self.mark(level, now);
        }
        if !take {
            return None;
        }
        // A lower head whose turn is overdue goes first, or keeps everybody out until it fits.
        let overdue = Priority::ALL.into_iter().rev().find(|level| {
            let blocked = self.levels[level.index()].blocked;
            self.could_ever(*level)
                && blocked.is_some_and(|blocked| blocked.reserves_against_higher(now))
        });
        if let Some(level) = overdue {
            return self.head_fits(level).then_some((level, 0));
        }
        for level in Priority::ALL {
            if !self.lets_in(level) {
                break;
            }
            let queue = &self.levels[level.index()];
            if queue.waiting.is_empty() {
                continue;
            }
            if self.head_fits(level) {
                return Some((level, 0));
            }
            let reserved = queue.blocked.is_some_and(|blocked| blocked.reserves(now));
            if reserved && self.could_ever(level) {
                return None;
            }
            let behind = queue.waiting.iter().take(LOOK_AHEAD).skip(1);
            if let Some(place) = behind.map(|waiter| waiter.bytes).position(|b| self.fits(b)) {
                return Some((level, place + 1));
            }
        }
        None
    }

    fn mark(&mut self, level: Priority, now: Instant) {
        let stuck = self.could_ever(level) && !self.head_fits(level);
        let queue = &mut self.levels[level.index()];
        if queue.waiting.is_empty() {
            queue.blocked = None;
        } else if stuck && queue.blocked.is_none() {
            queue.blocked = Some(Blocked { since: now, passes: 0, passes_higher: 0 });
        }
    }

    fn head_fits(&self, level: Priority) -> bool {
        let head = self.levels[level.index()].waiting.front();
        head.is_some_and(|head| self.lets_in(level) && self.fits(head.bytes))
    }

    /// Tells whether the head of a level would fit if everybody else were gone.
    fn could_ever(&self, level: Priority) -> bool {
        let head = self.levels[level.index()].waiting.front();
        head.is_some_and(|head| self.scaled > 0 && self.lets_in(level) && head.bytes <= self.scaled)
    }

    fn fits(&self, bytes: u64) -> bool {
        // A closed gate lets nobody in, not even a task without bytes.
        self.scaled > 0 && self.used.checked_add(bytes).is_some_and(|sum| sum <= self.scaled)
    }

    fn lets_in(&self, level: Priority) -> bool {
        level <= self.lowest
    }

    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.admitted += 1;
    }

    /// Takes back the bytes of a task that was let in.
    pub fn release(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// Takes a waiting task out, for instance because it was cancelled; none if it is not waiting.
    ///
    /// # Cost
    ///
    /// A binary search in its level, and moving what is behind it.
    pub fn remove(&mut self, waiting: Waiting) -> Option<T> {
        let queue = &mut self.levels[waiting.level.index()];
        let place = queue.waiting.binary_search_by_key(&waiting.number, |w| w.number).ok()?;
        if place == 0 {
            queue.blocked = None;
        }
        queue.waiting.remove(place).map(|waiter| waiter.item)
    }

    /// Takes all waiting tasks out, the most important ones first.
    pub fn drain(&mut self) -> Vec<T> {
        let mut items = Vec::with_capacity(self.waiting());
        for level in &mut self.levels {
            level.blocked = None;
            items.extend(level.waiting.drain(..).map(|waiter| waiter.item));
        }
        items
    }

    /// Sets the share of the budget that may be used: 1 all of it, 0 closes the gate.
    ///
    /// Numbers outside of 0 to 1 count as the nearer end, one that is no number as 1.
    pub fn set_scale(&mut self, scale: f64) {
        self.scale = if scale.is_nan() { 1.0 } else { scale.clamp(0.0, 1.0) };
        self.set_budget(self.budget);
    }

    /// Sets the budget, of which the same share as before may be used.
    pub fn set_budget(&mut self, budget_bytes: u64) {
        self.budget = budget_bytes;
        self.scaled = match self.scale {
            whole if whole >= 1.0 => budget_bytes,
            part => (budget_bytes as f64 * part) as u64,
        };
    }

    /// Lets in only tasks of `lowest` and above; all of them wait again with `Low`.
    pub fn set_lowest(&mut self, lowest: Priority) {
        self.lowest = lowest;
    }

    /// Returns when the patience of a head ends that has not ended at `now`.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        let ends = self
            .levels
            .iter()
            .filter_map(|level| level.blocked)
            .flat_map(|blocked| [blocked.since + PATIENCE, blocked.since + HIGHER * PATIENCE]);
        ends.filter(|end| *end > now).min()
    }

    /// Returns how many tasks wait.
    pub fn waiting(&self) -> usize {
        self.levels.iter().map(|level| level.waiting.len()).sum()
    }

    /// Reads the state.
    ///
    /// # Cost
    ///
    /// Looks at each waiting task.
    pub fn stats(&self) -> MemoryGateStats {
        let bytes = |level: &Level<T>| level.waiting.iter().map(|waiter| waiter.bytes).sum::<u64>();
        MemoryGateStats {
            budget_bytes: self.budget,
            scaled_bytes: self.scaled,
            used_bytes: self.used,
            waiting: self.waiting(),
            waiting_bytes: self.levels.iter().map(bytes).sum(),
            admitted: self.admitted,
            passed: self.passed,
        }
    }
}

/// What tasks of each type really need, learned from measured peaks.
///
/// The factor between the peak and what was declared rises at once to a larger one and falls by a tenth
/// of the way with each smaller one: too few bytes are a worse mistake than too many. At most
/// `types_max` types are remembered; of others the declared bytes are believed.
#[derive(Clone, Debug)]
pub struct Estimates {
    factors: HashMap<&'static str, f64>,
    types_max: usize,
}

impl Estimates {
    /// Remembers up to `types_max` types.
    pub fn new(types_max: usize) -> Self {
        Self { factors: HashMap::new(), types_max }
    }

    /// Takes the measured peak of a task that declared so many bytes; a declared 0 teaches nothing.
    pub fn observe(&mut self, task_type: &'static str, declared_bytes: u64, peak_bytes: u64) {
        if declared_bytes == 0 {
            return;
        }
        let seen = peak_bytes as f64 / declared_bytes as f64;
        let full = self.factors.len() >= self.types_max;
        match self.factors.get_mut(task_type) {
            Some(factor) if seen > *factor => *factor = seen,
            Some(factor) => *factor += (seen - *factor) * 0.1,
            None if full => {}
            None => {
                self.factors.insert(task_type, seen);
            }
        }
    }

    /// Returns what to ask the gate for; between a quarter and four times the declared bytes.
    ///
    /// A correction alone does not make a task larger than `budget_bytes`: it then runs alone.
    pub fn corrected(&self, task_type: &str, declared_bytes: u64, budget_bytes: u64) -> u64 {
        let Some(factor) = self.factors.get(task_type) else { return declared_bytes };
        let corrected = (declared_bytes as f64 * factor.clamp(0.25, 4.0)).round() as u64;
        if declared_bytes <= budget_bytes { corrected.min(budget_bytes) } else { declared_bytes }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
