//! What the lanes know of a task: how it runs and ends, and what the queue keeps of it meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use crate::admission::WhenFull;
use crate::cell::{Wake, Was};
use crate::group::Membership;
use crate::queue::{Class, Standing};
use crate::rules::{Memory, Rules};
use crate::stats::Counts;
use crate::task::{Priority, TaskError, TaskId, TaskState};
use crate::timer::Key;

/// What a lane can do with a task, whatever it is.
pub(crate) trait Task: Send + Sync {
    /// Runs a closure to its end, or sets a future going and returns none.
    fn start(self: Arc<Self>, core: &Arc<Core>, id: TaskId, priority: Priority) -> Option<Step>;

    /// Ends the task from outside, unless it has ended.
    fn end(&self, error: TaskError) -> Option<(Was, Wake)>;
}

/// How an attempt of a task came out.
pub(crate) enum Step {
    /// It is over.
    Ended(Ending, Wake),
    /// There will be another attempt after this time.
    Again(Duration),
}

/// How a task ended, for the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Failed,
    Cancelled,
    TimedOut,
    Shed,
    /// Somebody outside has ended it before, and counted it.
    Stopped,
}

impl Ending {
    pub(super) fn of(error: &TaskError) -> Self {
        match error {
            TaskError::Cancelled => Self::Cancelled,
            TaskError::TimedOut => Self::TimedOut,
            TaskError::Shed { .. } => Self::Shed,
            TaskError::Panicked(_) | TaskError::DependencyFailed(_) => Self::Failed,
        }
    }

    pub(super) fn count(self, counts: &mut Counts) {
        match self {
            Self::Done => counts.done += 1,
            Self::Failed => counts.failed += 1,
            Self::Cancelled => counts.cancelled += 1,
            Self::TimedOut => counts.timed_out += 1,
            Self::Shed => counts.shed += 1,
            Self::Stopped => {}
        }
    }
}

/// A task that has been given a slot.
pub(crate) struct Start {
    pub(crate) id: TaskId,
    pub(crate) priority: Priority,
    pub(crate) task: Arc<dyn Task>,
}

/// What the queue keeps of a task.
pub(crate) struct Entry {
    pub(super) task: Arc<dyn Task>,
    pub(super) row: u16,
    /// Somebody waits for its end in [`Core::dependents`].
    pub(super) dependents: bool,
    /// What most tasks do not have.
    pub(super) extra: Option<Box<Extra>>,
}

#[derive(Default)]
pub(super) struct Extra {
    /// What must happen before it is queued.
    pub(super) holds: usize,
    pub(super) run_timeout: Option<Duration>,
    pub(super) wait_key: Option<Key>,
    pub(super) run_key: Option<Key>,
    pub(super) attempt_key: Option<Key>,
    pub(super) group: Option<Membership>,
    pub(super) memory: Memory,
}

/// A task that has left the table.
pub(super) struct Left {
    pub(super) id: TaskId,
    pub(super) entry: Entry,
    pub(super) succeeded: bool,
}

/// How a task is to be taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bytes: u64,
    pub(crate) after: Vec<TaskId>,
    pub(crate) when_full: Option<WhenFull>,
    pub(crate) group: Option<Membership>,
}

impl Entry {
    /// Returns the row of the figures of the task's type and level.
    pub(crate) fn row(&self) -> u16 {
        self.row
    }

    /// Tells whether nothing hangs on the task, so that it may start and end in a batch.
    pub(super) fn is_plain(&self) -> bool {
        self.extra.is_none() && !self.dependents
    }
}

impl Options {
    pub(super) fn class(&self) -> Class {
        Class { priority: self.priority, deadline: self.deadline, bytes: self.bytes }
    }

    /// Tells whether a task with these needs nothing but its place in the queue.
    pub(super) fn is_plain(&self) -> bool {
        self.queue_timeout.is_none()
            && self.timeout.is_none()
            && self.after.is_empty()
            && self.group.is_none()
    }

    /// Tells whether a task with these has to pass the memory gate first.
    pub(super) fn is_gated(&self, rules: &Rules) -> bool {
        self.bytes > 0 && rules.gate.is_some()
    }
}

/// Where a task that was taken is.
pub(crate) struct Taken {
    pub(crate) id: TaskId,
    pub(crate) row: u16,
}

/// Drops a task, and with it maybe the last of its work or value, whose drop may panic.
///
/// The hook has reported it then, and nobody here has anything to do with it.
pub(super) fn drop_task(task: Arc<dyn Task>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
}

/// Returns the text of a panic's payload.
pub(crate) fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = match payload.downcast::<String>() {
        Ok(text) => return *text,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(text) => return (*text).to_owned(),
            Err(payload) => payload,
        },
    };
    // The drop of a foreign payload may panic in its turn.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(text)));
    "a panic without a text".to_owned()
}

/// Says where a task of the table is.
pub(crate) fn state_of(standing: Standing) -> TaskState {
    match standing {
        Standing::Held | Standing::Free => TaskState::Held,
        Standing::Listed | Standing::Dated | Standing::Claimed => TaskState::Queued,
        Standing::Running => TaskState::Running,
    }
}
