//! Admission: how tasks come into a lane, and what becomes of those that have to make room for them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::Core;
use super::entry::{Entry, Extra, Left, Options, Start, Taken, Task};
use super::state::{GivenUp, LaneState};
use crate::lane::Lane;
use crate::rules::Memory;
use crate::task::{Priority, Refusal, ShedReason, TaskError, TaskId};
use crate::timer::Due;

impl Core {
    /// Takes tasks into a lane, all or none.
    ///
    /// With [`WhenFull::CallerRuns`] a task may come back to be run by the caller.
    pub(crate) fn submit<T: Task + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        name: &'static str,
        options: &Options,
        tasks: &mut impl ExactSizeIterator<Item = Arc<T>>,
        mut taken: impl FnMut(Taken),
    ) -> Result<Option<Start>, Refusal> {
        self.check_dependencies(options)?;
        let now = Instant::now();
        let here = self.lane(lane);
        let (class, count) = (options.class(), tasks.len());
        let gated = options.is_gated(&self.rules);
        let plain = options.is_plain() && !gated;
        let budget = self.rules.budget.load(Relaxed);
        if gated && options.bytes > budget {
            let bytes = options.bytes;
            return Err(Refusal::new(ShedReason::MemoryBudget { bytes, budget }));
        }
        let mut evicted = Vec::new();
        let mut held = Vec::new();
        let mut caller_runs = false;
        let mut start = false;
        let mut run = None;
        let mut first = None;
        let mut given_up = Vec::new();
        let ended;
        {
            let mut state = here.lock();
            let room = state.room(here, options, count, &mut evicted);
            match room {
                Ok(()) => {}
                Err((_, true)) if count == 1 && plain => caller_runs = true,
                Err((reason, _)) => {
                    let row = state.ledger.row(name, class.priority);
                    state.ledger.get(row).counts.refused += count as u64;
                    let retry_after = state.rules.overload(class.priority, now);
                    ended = std::mem::take(&mut state.ended);
                    drop(state);
                    ended.into_iter().for_each(|left| self.settle(left));
                    self.evict(evicted);
                    return Err(Refusal { reason, retry_after });
                }
            }
            let row = state.ledger.row(name, class.priority);
            state.ledger.get(row).counts.submitted += count as u64;
            for task in tasks {
                let entry = Entry { task, row, dependents: false, extra: None };
                let id = if plain {
                    state.queue.insert_queued(entry, class, now)
                } else {
                    state.queue.insert(entry, class, now)
                };
                taken(Taken { id, row });
                if plain {
                    here.has_important(&state, class.priority);
                } else if let Some((entry, _)) = state.queue.get(id) {
                    let mut extra = self.extra(id, options, now);
                    if gated {
                        extra.memory = Memory::Wants(self.rules.estimate(name, options.bytes));
                    }
                    entry.extra = Some(Box::new(extra));
                    held.push(id);
                }
                if caller_runs {
                    let LaneState { queue, ledger, .. } = &mut *state;
                    run = queue
                        .start(id, now)
                        .map(|next| LaneState::started(ledger, next, now, &self.timer));
                }
            }
            if state.queue.claimed_below(class.priority)
                || class.deadline.is_some() && state.queue.claimed() > 0
            {
                // It goes before what was claimed and has not started.
                here.recall(&mut state);
            }
            if held.is_empty() && !caller_runs {
                start = state.take_slot();
            }
            if start && lane == Lane::Io {
                // A future needs no other thread to start, so it goes under the same lock.
                first = state.next(Priority::Low, now, &self.timer);
                state.active -= usize::from(first.is_none());
                start = first.is_some() && state.take_slot();
                given_up = std::mem::take(&mut state.given_up);
            }
            here.queued.store(state.queue.queued(), Relaxed);
            ended = std::mem::take(&mut state.ended);
        }
        ended.into_iter().for_each(|left| self.settle(left));
        if !evicted.is_empty() {
            self.evict(evicted);
        }
        if let Some(first) = first {
            self.start_future(first);
        }
        if start {
            self.start_drainer(lane);
        }
        if !given_up.is_empty() {
            self.give_up(lane, given_up);
        }
        for id in held {
            self.hold(id, options);
        }
        Ok(run)
    }

    pub(super) fn extra(&self, id: TaskId, options: &Options, now: Instant) -> Extra {
        Extra {
            // One for each dependency, one for the group, and one for the submission itself.
            holds: options.after.len() + usize::from(options.group.is_some()) + 1,
            run_timeout: options.timeout,
            wait_key: options.queue_timeout.and_then(|it| self.timer.add(now, it, Due::Wait(id))),
            group: options.group.clone(),
            ..Extra::default()
        }
    }

    pub(super) fn evict(self: &Arc<Self>, evicted: Vec<Left>) {
        for left in evicted {
            let reason = ShedReason::Evicted;
            let error = TaskError::Shed { reason, retry_after: None };
            if let Some((_, wake)) = left.entry.task.end(error) {
                wake.wake();
            }
            self.settle(left);
        }
    }

    /// Ends tasks that were taken out of an overloaded level.
    pub(super) fn give_up(self: &Arc<Self>, lane: Lane, given_up: Vec<GivenUp>) {
        for GivenUp { left, priority, retry_after } in given_up {
            let reason = ShedReason::Overload { lane, priority };
            let error = TaskError::Shed { reason, retry_after: Some(retry_after) };
            if let Some((_, wake)) = left.entry.task.end(error) {
                wake.wake();
            }
            self.settle(left);
        }
    }
}
