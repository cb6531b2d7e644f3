//! Where the rules meet the lanes: overload, moving limits, the memory gate, the watchdog, kept threads.
//!
//! The rules themselves are elsewhere and know no locks. Those of one lane lie beside its queue, under the
//! lane's lock; the memory gate has a lock of its own, taken after a lane's and never before. A tick of the
//! timer ends the windows of the limits and looks for tasks that hold their
//! worker too long. What happened is an event: handed to the builder's function, and remembered, the last
//! 256 of them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::admission::{CoDel, CoDelSettings, Order};
use crate::lane::Lane;
use crate::limits::{LimitChange, LimitSettings, MovingLimit};
use crate::memory_gate::{Estimates, MemoryGate, Waiting};
use crate::queue::Queue;
use crate::task::{Priority, TaskId};
use crate::watchdog::{HeldTooLong, HoldLimits, Watchdog};

/// Events that are remembered.
const EVENTS: usize = 256;
/// Types of tasks whose memory is estimated.
const ESTIMATES: usize = 4_096;
/// How often limits, held workers and the sizes of tables are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Something a scheduler did, or saw, by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum SchedulerEvent {
    /// A lane may run more tasks at once, or fewer.
    LimitChanged(LimitChange),
    /// A task has held its worker longer than its lane allows.
    HeldTooLong(HeldTooLong),
}

impl fmt::Display for SchedulerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LimitChanged(change) => fmt::Display::fmt(change, f),
            Self::HeldTooLong(held) => fmt::Display::fmt(held, f),
        }
    }
}

/// Who is told of events.
#[derive(Clone)]
pub(crate) struct Listener(pub(crate) Arc<dyn Fn(&SchedulerEvent) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// The rules of all lanes together, as the builder collects them.
#[derive(Clone, Debug)]
pub(crate) struct RuleSettings {
    pub(crate) codel: [Option<CoDelSettings>; 4],
    /// The least and the most slots of the lanes whose limit moves.
    pub(crate) ranges: [Option<(usize, usize)>; 3],
    pub(crate) memory_budget: Option<u64>,
    pub(crate) hold_limits: HoldLimits,
    pub(crate) listener: Option<Listener>,
    /// The lowest level of the threads that are kept, and how many there are.
    pub(crate) reserved: (Priority, usize),
    pub(crate) cpu_nice: Option<i32>,
}

impl Default for RuleSettings {
    fn default() -> Self {
        Self {
            codel: [None; 4],
            ranges: [None; 3],
            memory_budget: None,
            hold_limits: HoldLimits::default(),
            listener: None,
            reserved: (Priority::High, 0),
            cpu_nice: None,
        }
    }
}

/// The rules of one lane, under its lock.
pub(crate) struct LaneRules {
    codel: [Option<CoDel>; 4],
    any_codel: bool,
    pub(crate) limit: MovingLimit,
    pub(crate) moves: bool,
    /// Threads that wait for tasks of the upper levels, and the lowest that they take.
    pub(crate) idle: usize,
    /// How many of them run a task.
    pub(crate) busy: usize,
    pub(crate) least: Priority,
    /// Whether there are such threads.
    keeps: bool,
    /// When a task was last started.
    pub(crate) last_start: Instant,
}

impl LaneRules {
    pub(crate) fn new(
        lane: Lane,
        codel: &[Option<CoDelSettings>; 4],
        limit: LimitSettings,
        (least, keeps): (Priority, bool),
        now: Instant,
    ) -> Self {
        let limit = MovingLimit::new(lane, limit, now);
        Self {
            codel: codel.map(|settings| settings.map(CoDel::new)),
            any_codel: codel.iter().any(Option::is_some),
            moves: limit.moves(),
            limit,
            idle: 0,
            busy: 0,
            least,
            keeps,
            last_start: now,
        }
    }

    /// Tells whether tasks of a level may be started in batches.
    ///
    /// Not where each start counts: for the delay of the level, for a limit, or for a kept thread that could
    /// take the task at once.
    pub(crate) fn batches(&self, priority: Priority) -> bool {
        let kept = self.keeps && priority <= self.least;
        !kept && !self.moves && self.codel[priority.index()].is_none()
    }

    /// Counts a start.
    pub(crate) fn started(&mut self, waited: Duration, running: usize, now: Instant) {
        self.last_start = now;
        if self.moves {
            self.limit.started(waited, running);
        }
    }

    /// Looks at the delay of each level before a task is taken, and names the tasks to give up.
    ///
    /// # Cost
    ///
    /// Nothing where no level has a target of its own.
    pub(crate) fn overdue<T>(
        &mut self,
        queue: &mut Queue<T>,
        now: Instant,
    ) -> Option<(TaskId, Priority, Duration)> {
        if !self.any_codel {
            return None;
        }
        for priority in Priority::ALL {
            let Some(codel) = &mut self.codel[priority.index()] else { continue };
            let Some(oldest) = queue.oldest_of(priority) else {
                codel.emptied();
                queue.set_newest_first(priority, false);
                continue;
            };
            codel.observe(now.saturating_duration_since(oldest), now);
            queue.set_newest_first(priority, codel.order() == Order::NewestFirst);
            if let Some((id, since)) = queue.oldest_listed(priority)
                && codel.sheds(now.saturating_duration_since(since))
            {
                return Some((id, priority, codel.retry_after(now)));
            }
        }
        None
    }

    /// Tells whether a level is overloaded, and how long to stay away.
    pub(crate) fn overload(&self, priority: Priority, now: Instant) -> Option<Duration> {
        let codel = self.codel[priority.index()].as_ref()?;
        codel.is_overloaded().then(|| codel.retry_after(now))
    }
}

/// What a task has of the memory budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It needs none, or there is no gate.
    #[default]
    None,
    /// It will ask when nothing else holds it.
    Wants(u64),
    /// It waits at the gate.
    Waits(Waiting),
    /// It has so many bytes.
    Has(u64),
}

/// The rules of a scheduler that are not those of one lane.
pub(crate) struct Rules {
    pub(crate) gate: Option<Mutex<MemoryGate<TaskId>>>,
    pub(crate) estimates: Mutex<Estimates>,
    pub(crate) budget: AtomicU64,
    pub(crate) watchdog: Mutex<Watchdog>,
    events: Mutex<VecDeque<SchedulerEvent>>,
    listener: Option<Listener>,
    cpu_time: bool,
}

impl Rules {
    pub(crate) fn new(settings: &RuleSettings) -> Self {
        Self {
            gate: settings.memory_budget.map(|bytes| Mutex::new(MemoryGate::new(bytes))),
            estimates: Mutex::new(Estimates::new(ESTIMATES)),
            budget: AtomicU64::new(settings.memory_budget.unwrap_or(u64::MAX)),
            watchdog: Mutex::new(Watchdog::new(settings.hold_limits)),
            events: Mutex::new(VecDeque::new()),
            listener: settings.listener.clone(),
            cpu_time: settings.ranges[Lane::Blocking.index()].is_some(),
        }
    }

    /// Tells whether the CPU time of a lane's tasks is measured.
    pub(crate) fn cpu_time(&self, lane: Lane) -> bool {
        self.cpu_time && lane == Lane::Blocking
    }

    /// Returns what a task is expected to need that declares so many bytes.
    pub(crate) fn estimate(&self, name: &str, bytes: u64) -> u64 {
        self.estimates.lock().corrected(name, bytes, self.budget.load(Relaxed))
    }

    /// Remembers an event and tells the listener; no lock is held.
    pub(crate) fn tell(&self, event: SchedulerEvent) {
        {
            let mut events = self.events.lock();
            if events.len() == EVENTS {
                events.pop_front();
            }
            events.push_back(event);
        }
        if let Some(Listener(listener)) = &self.listener {
            listener(&event);
        }
    }

    /// Returns the remembered events, the oldest first.
    pub(crate) fn events(&self) -> Vec<SchedulerEvent> {
        self.events.lock().iter().copied().collect()
    }
}
