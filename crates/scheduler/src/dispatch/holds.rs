//! What holds a task back before its lane's queue - dependencies, groups, memory - and how it is let go.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::Core;
use super::entry::{Left, Options, drop_task};
use super::state::Dependency;
use crate::memory_gate::Entry as AtGate;
use crate::queue::Standing;
use crate::rules::Memory;
use crate::task::{Refusal, ShedReason, TaskError, TaskId};

impl Core {
    pub(super) fn check_dependencies(&self, options: &Options) -> Result<(), Refusal> {
        if options.after.is_empty() {
            return Ok(());
        }
        let max = self.dependencies_max;
        if self.waits.load(Relaxed) + options.after.len() > max {
            return Err(Refusal::new(ShedReason::TooManyDependencies { max }));
        }
        for &dependency in &options.after {
            let standing = self.lane(dependency.lane()).exact().dependency(dependency);
            let reason = match standing {
                Dependency::Unknown => ShedReason::DependencyUnknown { dependency },
                Dependency::Forgotten => ShedReason::DependencyForgotten { dependency },
                Dependency::Open | Dependency::Succeeded | Dependency::Failed => continue,
            };
            return Err(Refusal::new(reason));
        }
        Ok(())
    }

    /// Ties a held task to what it waits for, and lets it go if there is nothing.
    pub(super) fn hold(self: &Arc<Self>, id: TaskId, options: &Options) {
        for &dependency in &options.after {
            let standing = {
                let mut state = self.lane(dependency.lane()).exact();
                let standing = state.dependency(dependency);
                if matches!(standing, Dependency::Open) {
                    // Under the lane's lock, so that the dependency cannot end in between.
                    self.waits.fetch_add(1, Relaxed);
                    self.dependents.lock().entry(dependency).or_default().push(id);
                }
                standing
            };
            match standing {
                Dependency::Open => {}
                Dependency::Succeeded => self.let_go(id),
                Dependency::Failed | Dependency::Forgotten | Dependency::Unknown => {
                    self.end_id(id, TaskError::DependencyFailed(dependency));
                }
            }
        }
        if let Some(group) = &options.group {
            if group.enter(id) {
                self.let_go(id);
            }
            if self.lane(id.lane()).state.lock().queue.get(id).is_none() {
                // It ended before it entered, and so has not left.
                if let Some(next) = group.leave(id) {
                    self.let_go(next);
                }
            }
        }
        self.let_go(id);
    }

    /// Takes away one of the things that a held task waits for; the last one queues it.
    pub(crate) fn let_go(self: &Arc<Self>, id: TaskId) {
        let lane = id.lane();
        let here = self.lane(lane);
        let mut gated = false;
        let start = {
            // Whatever has been claimed and not started is queued again, so that this finds its place.
            let mut state = here.exact();
            let Some(class) = state.queue.class_of(id) else { return };
            let priority = class.priority;
            let Some((entry, Standing::Held)) = state.queue.get(id) else { return };
            let Some(extra) = &mut entry.extra else { return };
            extra.holds = extra.holds.saturating_sub(1);
            if extra.holds > 0 {
                return;
            }
            let now = Instant::now();
            if let (Memory::Wants(bytes), Some(gate)) = (extra.memory, &self.rules.gate) {
                match gate.lock().request(id, priority, bytes, now) {
                    // It was compared with the budget when it was submitted.
                    Ok(AtGate::Admitted(_)) | Err(_) => extra.memory = Memory::Has(bytes),
                    Ok(AtGate::Waiting(place)) => {
                        extra.memory = Memory::Waits(place);
                        gated = true;
                    }
                }
            }
            if gated {
                false
            } else {
                state.queue.release(id, now);
                here.has_important(&state, priority);
                state.take_slot()
            }
        };
        if start {
            self.start_drainer(lane);
        }
        if gated {
            self.open_gate();
        }
    }

    /// Lets tasks through the memory gate as far as the budget goes.
    pub(crate) fn open_gate(self: &Arc<Self>) {
        let Some(gate) = &self.rules.gate else { return };
        loop {
            let now = Instant::now();
            let Some((id, bytes)) = gate.lock().next(now) else { return };
            let here = self.lane(id.lane());
            let start = {
                let mut state = here.exact();
                let priority = state.queue.class_of(id).map(|class| class.priority);
                match (state.queue.get(id), priority) {
                    (Some((entry, Standing::Held)), Some(priority)) => {
                        if let Some(extra) = &mut entry.extra {
                            extra.memory = Memory::Has(bytes);
                        }
                        state.queue.release(id, now);
                        here.has_important(&state, priority);
                        Some(state.take_slot())
                    }
                    _ => None,
                }
            };
            match start {
                Some(true) => self.start_drainer(id.lane()),
                Some(false) => {}
                // It ended between the gate and here, and nobody knew that it has bytes.
                None => gate.lock().release(bytes),
            }
        }
    }

    /// Gives back what a task that has left has of the memory budget, or its place at the gate.
    pub(super) fn leave_gate(self: &Arc<Self>, memory: Memory) {
        let Some(gate) = &self.rules.gate else { return };
        match memory {
            Memory::None | Memory::Wants(_) => return,
            Memory::Waits(place) => drop(gate.lock().remove(place)),
            Memory::Has(bytes) => gate.lock().release(bytes),
        }
        self.open_gate();
    }

    /// Deals with what hangs on a task that has left: timers, its group, and who waits for it.
    pub(super) fn settle(self: &Arc<Self>, left: Left) {
        if left.entry.extra.is_none() && !left.entry.dependents {
            drop_task(left.entry.task);
            return;
        }
        // A list and not recursion: chains of dependencies are as long as somebody makes them.
        let mut list = vec![left];
        while let Some(Left { id, entry, succeeded }) = list.pop() {
            if let Some(extra) = &entry.extra {
                let keys = [extra.wait_key, extra.run_key, extra.attempt_key];
                keys.into_iter().flatten().for_each(|key| self.timer.remove(key));
                self.leave_gate(extra.memory);
                if let Some(next) = extra.group.as_ref().and_then(|group| group.leave(id)) {
                    self.let_go(next);
                }
            }
            drop_task(entry.task);
            if !entry.dependents {
                continue;
            }
            let dependents = self.dependents.lock().remove(&id).unwrap_or_default();
            self.waits.fetch_sub(dependents.len(), Relaxed);
            for dependent in dependents {
                if succeeded {
                    self.let_go(dependent);
                } else {
                    list.extend(self.take_out(dependent, TaskError::DependencyFailed(id)));
                }
            }
        }
    }
}
