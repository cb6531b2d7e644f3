//! What a task is called, how important it is, and the ways in which it can end without a value.
//!
//! A task is refused before it is taken ([`SubmitError`] gives it back), or it is taken and then ends
//! in exactly one way: with its value, or with one [`TaskError`]. There is no third case, so a caller
//! who keeps the handle learns about every task.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::lane::Lane;

/// How important a task is; a lane starts a task of a higher level first.
///
/// Levels are strict, with one exception: a level whose oldest task has waited beyond its target gets
/// at least one in sixteen starts, so that endless work above it cannot starve it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Work that everything else may wait for: a health check, a purge that must hold now.
    Critical,
    /// Work that somebody is waiting for.
    High,
    /// Ordinary work.
    #[default]
    Normal,
    /// Work that nobody waits for: revalidation, compaction, clean-up.
    Low,
}

impl Priority {
    /// All levels, the most important first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Returns the level's place in [`ALL`](Self::ALL): 0 for `Critical`, 3 for `Low`.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the level's name in lower case, as statistics and configuration spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names one task of one scheduler, from its submission on.
///
/// The number holds the lane, the place in the lane's table and a sequence number of 40 bits, so
/// finding a task takes no map. It is not used again before a lane has taken 10^12 further tasks.
/// Numbers go beyond 2^53: hand them to JavaScript as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(NonZeroU64);

impl TaskId {
    /// The most tasks that a lane can hold at once, waiting and running.
    pub(crate) const PLACES: usize = 1 << 22;
    const SEQUENCE: u64 = (1 << 40) - 1;

    /// Makes the name of the task that came as `sequence` and lies at `place`.
    pub(crate) fn new(lane: Lane, place: u32, sequence: u64) -> Self {
        let number = (sequence & Self::SEQUENCE) << 24 | u64::from(place) << 2 | (lane as u64 + 1);
        Self(NonZeroU64::new(number).expect("the lane counts from one"))
    }

    /// Returns the number, for a log or an address.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Makes an id from a number that came from [`get`](Self::get).
    ///
    /// Any other number gives `None` or an id that no task has.
    pub fn from_number(number: u64) -> Option<Self> {
        (number & 3 != 0).then(|| NonZeroU64::new(number).map(Self)).flatten()
    }

    /// Returns the lane in which the task runs.
    pub fn lane(self) -> Lane {
        Lane::ALL[(self.0.get() & 3) as usize - 1]
    }

    pub(crate) fn place(self) -> u32 {
        (self.0.get() >> 2) as u32 & (Self::PLACES as u32 - 1)
    }

    pub(crate) fn sequence(self) -> u64 {
        self.0.get() >> 24
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.lane(), self.sequence())
    }
}

/// Why a scheduler would not take a task, or gave up one that was waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShedReason {
    /// The level holds as many tasks as it may.
    #[error("the {priority} level of the {lane} lane holds its maximum of {max} tasks")]
    QueueFull {
        /// The lane.
        lane: Lane,
        /// The level.
        priority: Priority,
        /// The bound.
        max: usize,
    },
    /// The lane holds as many tasks, over all levels, as it may.
    #[error("the {lane} lane holds its maximum of {max} tasks")]
    LaneFull {
        /// The lane.
        lane: Lane,
        /// The bound.
        max: usize,
    },
    /// The tasks that wait in the level have declared as many bytes as they may.
    #[error(
        "the {priority} level of the {lane} lane holds {held} of {max} bytes, and the task declares \
         {bytes}"
    )]
    QueueBytes {
        /// The lane.
        lane: Lane,
        /// The level.
        priority: Priority,
        /// What the task declares.
        bytes: u64,
        /// What the waiting tasks have declared.
        held: u64,
        /// The bound.
        max: u64,
    },
    /// The task declares more memory than the whole budget, so it could never run.
    #[error("the task declares {bytes} bytes of memory, more than the budget of {budget}")]
    MemoryBudget {
        /// What the task declares.
        bytes: u64,
        /// The budget.
        budget: u64,
    },
    /// Queue delay stayed above its target, and the task was past what its level can wait.
    #[error("the {priority} level of the {lane} lane is overloaded")]
    Overload {
        /// The lane.
        lane: Lane,
        /// The level.
        priority: Priority,
    },
    /// A task of a higher level took its place in a full lane.
    #[error("a task of a higher level took the place")]
    Evicted,
    /// The scheduler is draining or closed.
    #[error("the scheduler is closing")]
    Closing,
    /// The runtime on which the lane runs is not there, or has been shut down.
    #[error("the {lane} lane has no runtime to run on")]
    NoRuntime {
        /// The lane.
        lane: Lane,
    },
    /// No task with this id has been submitted.
    ///
    /// An id exists from the submission on, so this is also the answer to every attempt to make tasks
    /// wait for each other in a circle.
    #[error("no task {dependency} has been submitted")]
    DependencyUnknown {
        /// The dependency.
        dependency: TaskId,
    },
    /// A dependency ended so long ago that nobody knows any more whether it succeeded.
    #[error("nobody knows any more how task {dependency} ended")]
    DependencyForgotten {
        /// The dependency.
        dependency: TaskId,
    },
    /// The group holds as many tasks as it may.
    #[error("the group holds its maximum of {max} tasks")]
    GroupFull {
        /// The bound.
        max: usize,
    },
    /// The task has more dependencies than a scheduler keeps account of.
    #[error("the scheduler holds its maximum of {max} dependencies")]
    TooManyDependencies {
        /// The bound.
        max: usize,
    },
}

impl ShedReason {
    /// Tells whether waiting may help: another task has to start, and then there is room.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::QueueFull { .. }
                | Self::LaneFull { .. }
                | Self::QueueBytes { .. }
                | Self::Overload { .. }
        )
    }
}

/// How a task that was taken ended without a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Somebody cancelled it, or its group or the scheduler ended.
    #[error("the task was cancelled")]
    Cancelled,
    /// It waited, or ran, longer than it may.
    #[error("the task timed out")]
    TimedOut,
    /// It panicked; the text of the panic's payload.
    #[error("the task panicked: {0}")]
    Panicked(String),
    /// The scheduler gave it up while it waited.
    #[error("the task was shed: {reason}")]
    Shed {
        /// Why.
        reason: ShedReason,
        /// When it may be worth another try, where that can be told.
        retry_after: Option<Duration>,
    },
    /// A task that it waits for failed, was cancelled, or was shed.
    #[error("task {0}, which the task waits for, did not succeed")]
    DependencyFailed(TaskId),
}

/// What a refused submission says, without the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task was refused: {reason}")]
#[non_exhaustive]
pub struct Refusal {
    /// Why.
    pub reason: ShedReason,
    /// When it may be worth another try, where that can be told.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(reason: ShedReason) -> Self {
        Self { reason, retry_after: None }
    }
}

/// A submission that was refused, with the task in it.
pub struct SubmitError<S> {
    // In a box so that the way of a task that is taken stays narrow.
    inner: Box<(Refusal, S)>,
}

impl<S> SubmitError<S> {
    pub(crate) fn new(refusal: Refusal, task: S) -> Self {
        Self { inner: Box::new((refusal, task)) }
    }

    /// Returns why the task was refused.
    pub fn reason(&self) -> ShedReason {
        self.inner.0.reason
    }

    /// Returns when it may be worth another try, where that can be told.
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.0.retry_after
    }

    /// Returns why the task was refused, without the task.
    ///
    /// For `?` into an error that must be `Sync`, which a task need not be.
    pub fn refusal(&self) -> Refusal {
        self.inner.0
    }

    /// Takes the task back, to submit it again or do it otherwise.
    pub fn into_task(self) -> S {
        self.inner.1
    }
}

impl<S> fmt::Debug for SubmitError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubmitError").field("refusal", &self.inner.0).finish_non_exhaustive()
    }
}

impl<S> fmt::Display for SubmitError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner.0, f)
    }
}

impl<S> std::error::Error for SubmitError<S> {}

impl<S> From<SubmitError<S>> for Refusal {
    fn from(error: SubmitError<S>) -> Self {
        error.inner.0
    }
}

/// Where a task is between its submission and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// It waits for other tasks, for memory, for its group's limit, or for its next attempt.
    Held,
    /// It waits in its lane for a slot.
    Queued,
    /// It runs.
    Running,
    /// It ended with a value.
    Done,
    /// It ended with an error.
    Failed,
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_lane_its_place_and_its_sequence() {
        for lane in Lane::ALL {
            let id = TaskId::new(lane, (TaskId::PLACES - 1) as u32, (1 << 40) - 1);
            assert_eq!(id.lane(), lane);
            assert_eq!((id.place(), id.sequence()), ((1 << 22) - 1, (1 << 40) - 1));
            assert_eq!(TaskId::from_number(id.get()), Some(id));
        }
        assert_eq!(TaskId::from_number(0), None);
        assert_eq!(TaskId::from_number(8), None, "no lane has the number zero");
    }

    #[test]
    fn refusals_say_what_was_seen_and_what_would_be_right() {
        let reason = ShedReason::MemoryBudget { bytes: 9, budget: 4 };
        let error = SubmitError::new(Refusal::new(reason), ());
        assert_eq!(
            error.to_string(),
            "the task was refused: the task declares 9 bytes of memory, more than the budget of 4"
        );
    }
}
