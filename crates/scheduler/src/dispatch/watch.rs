//! What is looked at from time to time: limits that move, tasks that hold their worker, and tables that
//! have become too large.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use crate::lane::Lane;
use crate::limits::{LimitChange, MovingLimit};
use crate::queue::Standing;
use crate::rules::{SchedulerEvent, TICK};
use crate::timer::Due;
use crate::watchdog::RunningTask;

/// How many places of a lane's table the watchdog looks at under one lock.
const PAGE: usize = 4_096;

impl Core {
    /// Ends the windows of the limits, cuts off what tables do not need, and looks for tasks that hold their
    /// worker too long.
    pub(super) fn tick(self: &Arc<Self>) {
        let now = Instant::now();
        // First, so that a listener that panics does not end the ticks.
        self.timer.add(now, TICK, Due::Tick);
        for here in &self.lanes {
            let (change, start, unused) = {
                let mut state = here.state.lock();
                let unused = state.queue.shrink();
                let queued = state.queue.queued();
                let change = state.rules.limit.tick(queued, now);
                state.slots = state.rules.limit.get();
                (change, change.is_some() && state.take_slot(), unused)
            };
            drop(unused);
            if start {
                self.start_drainer(here.lane);
            }
            if let Some(change) = change {
                self.rules.tell(SchedulerEvent::LimitChanged(change));
            }
        }
        let found = {
            let mut watchdog = self.rules.watchdog.lock();
            let watched = Lane::ALL.into_iter().filter(|lane| watchdog.watches(*lane));
            let running: Vec<_> = watched.flat_map(|lane| self.running(lane)).collect();
            watchdog.scan(running, now)
        };
        for held in found {
            self.rules.tell(SchedulerEvent::HeldTooLong(held));
        }
    }

    /// The tasks of a lane that run; looks at some places of the table at a time.
    pub(super) fn running(&self, lane: Lane) -> Vec<RunningTask> {
        let mut tasks = Vec::new();
        for first in (0..).step_by(PAGE) {
            let state = self.lane(lane).exact();
            if tasks.len() >= state.queue.running() || first >= state.queue.places() {
                break;
            }
            let page = state.queue.page(first, PAGE);
            let running = page.filter(|seen| seen.standing == Standing::Running);
            tasks.extend(running.map(|seen| RunningTask {
                id: seen.id,
                task_type: state.ledger.name(seen.task.row),
                lane,
                since: seen.since,
            }));
        }
        tasks
    }

    /// Sets the limit of a lane by hand, or lets it be what it was.
    pub(crate) fn set_limit(self: &Arc<Self>, lane: Lane, limit: Option<usize>) {
        self.change_limit(lane, |moving, now| moving.set_override(limit, now));
    }

    /// Sets between which bounds the limit of a lane moves.
    pub(crate) fn set_limit_range(self: &Arc<Self>, lane: Lane, min: usize, max: usize) {
        self.change_limit(lane, |moving, now| moving.set_range(min, max, now));
    }

    fn change_limit(
        self: &Arc<Self>,
        lane: Lane,
        change: impl FnOnce(&mut MovingLimit, Instant) -> Option<LimitChange>,
    ) {
        let now = Instant::now();
        let (change, start) = {
            let mut state = self.lane(lane).state.lock();
            let change = change(&mut state.rules.limit, now);
            state.slots = state.rules.limit.get();
            (change, state.take_slot())
        };
        // The first drainer starts the others.
        if start {
            self.start_drainer(lane);
        }
        if let Some(change) = change {
            self.rules.tell(SchedulerEvent::LimitChanged(change));
        }
    }
}
