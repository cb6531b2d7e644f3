//! Groups of tasks: wait for all, for the first, or until one fails, and cancel what is left.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use crate::handle::{TaskHandle, block_on};
use crate::scheduler::Scheduler;
use crate::submission::Submission;
use crate::task::{Refusal, ShedReason, SubmitError, TaskError, TaskId};
use crate::work::Work;

/// A number of tasks that belong together.
///
/// The tasks keep the order in which they were added. A group that is dropped, or whose waiting is
/// over, cancels the tasks that have not ended: none outlives what it was for.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use scheduler::Scheduler;
///
/// let scheduler = Scheduler::builder().cpu_threads(2).build()?;
/// let mut squares = scheduler.group().limit(1);
/// for n in 1..=3_u64 {
///     squares.spawn(scheduler.cpu("square", move |_| n * n))?;
/// }
/// let squares = squares.join_all_blocking(Some(Duration::from_secs(10)));
/// assert_eq!(squares, [Ok(1), Ok(4), Ok(9)]);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a group cancels its tasks"]
pub struct TaskGroup<T> {
    scheduler: Scheduler,
    members: Vec<TaskHandle<T>>,
    limit: Option<usize>,
    shared: Option<Membership>,
}

impl<T: Send + 'static> TaskGroup<T> {
    pub(crate) fn new(scheduler: &Scheduler) -> Self {
        Self { scheduler: scheduler.clone(), members: Vec::new(), limit: None, shared: None }
    }

    /// Sets how many tasks of the group may be in their lanes at once; the others are held.
    ///
    /// Zero counts as one. It holds for tasks that are added after it.
    pub fn limit(mut self, tasks: usize) -> Self {
        let limit = tasks.max(1);
        self.limit = Some(limit);
        self.shared = Some(Membership(Arc::new(Mutex::new(Limited::new(limit)))));
        self
    }

    /// Submits a task into the group.
    ///
    /// # Errors
    ///
    /// As [`Submission::submit`]; also if the group holds its maximum, which is the builder's
    /// `group_max`.
    pub fn spawn<W>(&mut self, task: Submission<W>) -> Result<TaskId, SubmitError<Submission<W>>>
    where
        W: Work<Output = T>,
    {
        let max = self.scheduler.group_max();
        if self.members.len() >= max {
            let refusal = Refusal::new(ShedReason::GroupFull { max });
            return Err(SubmitError::new(refusal, task));
        }
        let handle = task.group(self.shared.clone()).submit()?.abort_on_drop(true);
        let id = handle.id();
        self.members.push(handle);
        Ok(id)
    }

    /// Submits a batch into the group, all or none.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), with all the tasks.
    pub fn spawn_all<W>(
        &mut self,
        tasks: Submission<Vec<W>>,
    ) -> Result<(), SubmitError<Submission<Vec<W>>>>
    where
        W: Work<Output = T>,
    {
        let max = self.scheduler.group_max();
        if self.members.len() + tasks.len() > max {
            let refusal = Refusal::new(ShedReason::GroupFull { max });
            return Err(SubmitError::new(refusal, tasks));
        }
        let handles = tasks.group(self.shared.clone()).submit_all()?;
        self.members.extend(handles.into_iter().map(|handle| handle.abort_on_drop(true)));
        Ok(())
    }

    /// Returns how many tasks were added.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Tells whether no task was added.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the ids of the tasks, in the order in which they were added.
    pub fn ids(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.members.iter().map(TaskHandle::id)
    }

    /// Cancels all tasks that have not ended.
    pub fn cancel(&self) {
        self.members.iter().for_each(TaskHandle::cancel);
    }

    /// Waits for all tasks, at most so long, and returns their results in order.
    ///
    /// A task that has not ended by then is cancelled, and its result is
    /// [`TaskError::TimedOut`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the tasks.
    pub async fn join_all(self, timeout: Option<Duration>) -> Vec<Result<T, TaskError>> {
        let end = timeout.and_then(|it| Instant::now().checked_add(it));
        let core = Arc::clone(self.scheduler.core());
        let mut results = Vec::with_capacity(self.members.len());
        for handle in self.members {
            let mut handle = pin!(handle);
            let result = core.timer.until(end, |context| handle.as_mut().poll(context)).await;
            results.push(result.unwrap_or(Err(TaskError::TimedOut)));
        }
        results
    }

    /// Does what [`join_all`](Self::join_all) does, on this thread, which it blocks.
    pub fn join_all_blocking(self, timeout: Option<Duration>) -> Vec<Result<T, TaskError>> {
        let end = timeout.and_then(|it| Instant::now().checked_add(it));
        let wait =
            |mut handle: TaskHandle<T>| handle.wait_until(end).unwrap_or(Err(TaskError::TimedOut));
        self.members.into_iter().map(wait).collect()
    }

    /// Waits for the first task that ends with a value, and cancels the others.
    ///
    /// # Errors
    ///
    /// The error of the task that ended last, if all failed; [`TaskError::Cancelled`] for a group
    /// without tasks.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the tasks.
    pub async fn first(self) -> Result<T, TaskError> {
        let mut members: FuturesUnordered<_> = self.members.into_iter().collect();
        let mut last = Err(TaskError::Cancelled);
        while let Some(result) = members.next().await {
            last = result;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Waits for all tasks, or until one fails; then it cancels the others.
    ///
    /// # Errors
    ///
    /// The error of the task that failed first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the tasks.
    pub async fn try_join_all(self) -> Result<Vec<T>, TaskError> {
        let mut values: Vec<Option<T>> = self.members.iter().map(|_| None).collect();
        let mut members = FuturesUnordered::new();
        for (place, handle) in self.members.into_iter().enumerate() {
            members.push(async move { (place, handle.await) });
        }
        while let Some((place, result)) = members.next().await {
            values[place] = Some(result?);
        }
        Ok(values.into_iter().flatten().collect())
    }

    /// Does what [`first`](Self::first) does, on this thread, which it blocks.
    ///
    /// # Errors
    ///
    /// As [`first`](Self::first).
    pub fn first_blocking(self) -> Result<T, TaskError> {
        block_on(None, self.first()).expect("it ends by itself")
    }

    /// Does what [`try_join_all`](Self::try_join_all) does, on this thread, which it blocks.
    ///
    /// # Errors
    ///
    /// As [`try_join_all`](Self::try_join_all).
    pub fn try_join_all_blocking(self) -> Result<Vec<T>, TaskError> {
        block_on(None, self.try_join_all()).expect("it ends by itself")
    }
}

impl<T> fmt::Debug for TaskGroup<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("tasks", &self.members.len())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// A task's part in a group with a limit.
#[derive(Clone, Debug)]
pub(crate) struct Membership(Arc<Mutex<Limited>>);

#[derive(Debug)]
struct Limited {
    limit: usize,
    /// Tasks that may be in their lanes.
    inside: HashSet<TaskId>,
    /// Tasks that are held, the first to come first.
    outside: VecDeque<TaskId>,
}

impl Limited {
    fn new(limit: usize) -> Self {
        Self { limit, inside: HashSet::new(), outside: VecDeque::new() }
    }
}

impl Membership {
    /// Asks for a held task to be let into its lane; otherwise another's end lets it in.
    pub(crate) fn enter(&self, id: TaskId) -> bool {
        let mut limited = self.0.lock();
        if limited.inside.len() < limited.limit {
            limited.inside.insert(id)
        } else {
            limited.outside.push_back(id);
            false
        }
    }

    /// Says that a task has ended, and returns the one that may go into its lane now.
    pub(crate) fn leave(&self, id: TaskId) -> Option<TaskId> {
        let mut limited = self.0.lock();
        if limited.inside.remove(&id) {
            let next = limited.outside.pop_front()?;
            limited.inside.insert(next);
            Some(next)
        } else {
            limited.outside.retain(|it| *it != id);
            None
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::lane::Lane;

    #[test]
    fn no_more_than_the_limit_are_inside_whoever_leaves() {
        let group = Membership(Arc::new(Mutex::new(Limited::new(2))));
        let id = |n| TaskId::new(Lane::Cpu, 0, n);
        let entered: Vec<bool> = (1..=5).map(|n| group.enter(id(n))).collect();
        assert_eq!(entered, [true, true, false, false, false]);
        assert_eq!(group.leave(id(3)), None, "it was cancelled while it waited");
        assert_eq!(group.leave(id(1)), Some(id(4)));
        assert_eq!(group.leave(id(1)), None, "it has left already");
        assert_eq!(group.leave(id(4)), Some(id(5)));
        assert_eq!((group.leave(id(2)), group.leave(id(5))), (None, None));
        assert!(group.enter(id(6)));
    }
}
