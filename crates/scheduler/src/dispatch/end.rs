//! Ending from outside: by a handle, by an id, by the timer, and when a lane closes.

use std::sync::Arc;

use super::Core;
use super::entry::{Ending, Left, Task};
use crate::cell::Was;
use crate::lane::Lane;
use crate::queue::Standing;
use crate::task::{ShedReason, TaskError, TaskId};
use crate::timer::Due;

impl Core {
    /// Ends a task by its handle.
    pub(crate) fn end(self: &Arc<Self>, id: TaskId, row: u16, task: &dyn Task, error: TaskError) {
        let ending = Ending::of(&error);
        let Some((was, wake)) = task.end(error) else { return };
        let here = self.lane(id.lane());
        let mut empty = false;
        let left = {
            let mut state = here.state.lock();
            ending.count(&mut state.ledger.get(row).counts);
            // One that is on its way to run now is dealt with by its drainer.
            let removed = (was == Was::Waiting).then(|| state.queue.remove(id)).flatten();
            removed.map(|(entry, _)| {
                here.has_room(1);
                empty = state.queue.len() == 0;
                state.left(id, entry, false)
            })
        };
        wake.wake();
        if let Some(left) = left {
            self.settle(left);
        }
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// Ends a task by its id; `false` if it has ended.
    pub(crate) fn end_id(self: &Arc<Self>, id: TaskId, error: TaskError) -> bool {
        let found = {
            let mut state = self.lane(id.lane()).state.lock();
            state.queue.get(id).map(|(entry, _)| (Arc::clone(&entry.task), entry.row))
        };
        let Some((task, row)) = found else { return false };
        self.end(id, row, &*task, error);
        true
    }

    /// Ends a waiting task and leaves what hangs on it to the caller.
    pub(super) fn take_out(self: &Arc<Self>, id: TaskId, error: TaskError) -> Option<Left> {
        let here = self.lane(id.lane());
        let ending = Ending::of(&error);
        let (left, empty) = {
            let mut state = here.exact();
            if state.queue.get(id)?.1 == Standing::Claimed {
                // It has been started, and its drainer is about to say how it ended.
                return None;
            }
            let (entry, _) = state.queue.remove(id)?;
            here.has_room(1);
            (state.left(id, entry, false), state.queue.len() == 0)
        };
        if let Some((_, wake)) = left.entry.task.end(error) {
            ending.count(&mut here.state.lock().ledger.get(left.entry.row).counts);
            wake.wake();
        }
        if empty {
            self.emptied.notify_waiters();
        }
        Some(left)
    }

    /// Does what is due.
    pub(crate) fn due(self: &Arc<Self>, due: Due) {
        match due {
            Due::Wait(id) => {
                let waits = {
                    let mut state = self.lane(id.lane()).exact();
                    let found = state.queue.get(id);
                    found.is_some_and(|(_, standing)| standing != Standing::Running)
                };
                if waits && let Some(left) = self.take_out(id, TaskError::TimedOut) {
                    self.settle(left);
                }
            }
            Due::Run(id) => {
                let runs = {
                    let mut state = self.lane(id.lane()).exact();
                    let found = state.queue.get(id);
                    found.is_some_and(|(_, standing)| standing == Standing::Running)
                };
                if runs {
                    self.end_id(id, TaskError::TimedOut);
                }
            }
            Due::Attempt(id) => self.let_go(id),
            Due::Wake(waker) => waker.wake(),
            Due::Tick => self.tick(),
        }
    }

    /// Stops a lane from taking tasks and ends those that wait.
    pub(crate) fn close(self: &Arc<Self>, lane: Lane, reason: ShedReason) -> Vec<TaskId> {
        self.stop_admission(lane, reason);
        self.end_waiting(lane, &TaskError::Shed { reason, retry_after: None })
    }

    /// Stops a lane from taking tasks; what is in it stays.
    pub(crate) fn stop_admission(&self, lane: Lane, reason: ShedReason) {
        let here = self.lane(lane);
        here.state.lock().closed.get_or_insert(reason);
        for room in &here.room {
            room.notify_waiters();
        }
    }

    /// Ends all tasks of a lane that wait and returns their ids.
    pub(crate) fn end_waiting(self: &Arc<Self>, lane: Lane, error: &TaskError) -> Vec<TaskId> {
        let waiting: Vec<TaskId> = {
            let state = self.lane(lane).exact();
            let all = state.queue.iter();
            all.filter(|it| it.standing != Standing::Running).map(|it| it.id).collect()
        };
        let mut ended = Vec::with_capacity(waiting.len());
        for id in waiting {
            if let Some(left) = self.take_out(id, error.clone()) {
                ended.push(id);
                self.settle(left);
            }
        }
        ended
    }

    /// Ends all tasks of a lane that run, as far as they can be: futures stop, closures are told.
    pub(crate) fn end_running(self: &Arc<Self>, lane: Lane, error: &TaskError) {
        let running: Vec<(TaskId, u16, Arc<dyn Task>)> = {
            let state = self.lane(lane).exact();
            let all = state.queue.iter().filter(|it| it.standing == Standing::Running);
            all.map(|it| (it.id, it.task.row, Arc::clone(&it.task.task))).collect()
        };
        for (id, row, task) in running {
            self.end(id, row, &*task, error.clone());
        }
    }

    /// Lets go of the rayon pool, whose threads end when their work does.
    pub(crate) fn drop_pool(&self) {
        let pool = self.pool.write().take();
        drop(pool);
    }
}
