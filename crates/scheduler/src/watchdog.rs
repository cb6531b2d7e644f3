//! The watchdog: which task holds a worker too long, and how a lane is.
//!
//! Nothing can take a worker away from a closure that does not return, and a future that blocks holds a
//! thread of somebody else's runtime. What can be done is to say which type of task it is, soon and once.
//! [`Watchdog`] compares, a few times a second, the tasks that run with the limits of their lanes; it
//! needs nothing on the path of a task but the time at which it began. [`health`] turns the figures of a
//! lane into one word.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::{Lane, TaskId};

/// A task that runs, as the watchdog sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningTask {
    /// Its name.
    pub id: TaskId,
    /// Its type.
    pub task_type: &'static str,
    /// Where it runs.
    pub lane: Lane,
    /// When it began.
    pub since: Instant,
}

/// A task has held its worker longer than its lane allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldTooLong {
    /// The task.
    pub id: TaskId,
    /// Its type.
    pub task_type: &'static str,
    /// Where it runs.
    pub lane: Lane,
    /// How long it has held the worker so far.
    pub held: Duration,
    /// What the lane allows.
    pub limit: Duration,
}

impl fmt::Display for HeldTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, task_type, lane, held, limit } = self;
        write!(
            f,
            "{task_type} (task {id}) holds a worker of lane {lane} for {held:?}, more than {limit:?}"
        )
    }
}

/// How long a worker of each lane may be held; none where nobody watches.
///
/// Of the lane `Io` the time of a task counts from its start to its end and so includes its waits;
/// leave it unwatched unless futures there are known to be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldLimits([Option<Duration>; 3]);

impl HoldLimits {
    /// Sets the limit of a lane.
    pub fn lane(mut self, lane: Lane, limit: Option<Duration>) -> Self {
        self.0[lane.index()] = limit;
        self
    }

    /// Returns the limit of a lane.
    pub fn of(&self, lane: Lane) -> Option<Duration> {
        self.0[lane.index()]
    }
}

impl Default for HoldLimits {
    /// A second on `Cpu`, thirty on `Blocking`, and `Io` is not watched.
    fn default() -> Self {
        let none = Self([None; 3]);
        none.lane(Lane::Cpu, Some(Duration::from_secs(1)))
            .lane(Lane::Blocking, Some(Duration::from_secs(30)))
    }
}

/// Finds tasks that hold a worker too long and names each of them once.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    limits: HoldLimits,
    told: HashSet<TaskId>,
    found: u64,
}

impl Watchdog {
    /// Makes a watchdog with the limits of the lanes.
    pub fn new(limits: HoldLimits) -> Self {
        Self { limits, told: HashSet::new(), found: 0 }
    }

    /// Looks at the tasks that run at `now` and returns those that newly exceed their limit.
    ///
    /// # Cost
    ///
    /// One comparison for each running task. What it remembers is a subset of them.
    pub fn scan(
        &mut self,
        running: impl IntoIterator<Item = RunningTask>,
        now: Instant,
    ) -> Vec<HeldTooLong> {
        let mut still = HashSet::new();
        let mut found = Vec::new();
        for RunningTask { id, task_type, lane, since } in running {
            let Some(limit) = self.limits.of(lane) else { continue };
            let held = now.saturating_duration_since(since);
            if held <= limit {
                continue;
            }
            still.insert(id);
            if !self.told.contains(&id) {
                found.push(HeldTooLong { id, task_type, lane, held, limit });
            }
        }
        // Who has ended is forgotten.
        self.told = still;
        self.found += found.len() as u64;
        found
    }

    /// Tells whether a lane has a limit.
    pub fn watches(&self, lane: Lane) -> bool {
        self.limits.of(lane).is_some()
    }

    /// Returns how many tasks of a lane exceed its limit, as of the last scan.
    pub fn holding(&self, lane: Lane) -> usize {
        self.told.iter().filter(|id| id.lane() == lane).count()
    }

    /// Returns how many tasks were found since the start.
    pub fn found(&self) -> u64 {
        self.found
    }
}

/// How a lane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LaneHealth {
    /// Tasks start within their targets, or nothing is to be done.
    #[default]
    Healthy,
    /// All slots are taken and tasks wait longer than they should.
    Saturated,
    /// Tasks wait and none starts.
    Stalled,
}

impl fmt::Display for LaneHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Saturated => "saturated",
            Self::Stalled => "stalled",
        })
    }
}

/// The figures of a lane by which its health is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneFigures {
    /// Tasks that wait.
    pub queued: usize,
    /// Tasks that run.
    pub running: usize,
    /// How many may run at once.
    pub slots: usize,
    /// Tasks that hold a worker longer than allowed.
    pub holding: usize,
    /// How long the oldest waiting task has waited.
    pub oldest: Duration,
    /// How long ago a task was last started.
    pub last_start: Duration,
}

/// Judges a lane: `target` is a good wait, and after `stalled_after` without a start it stands still.
///
/// Stalled means that something waits although nothing has started for `stalled_after`, or that every
/// slot is held by a task beyond its limit.
pub fn health(figures: LaneFigures, target: Duration, stalled_after: Duration) -> LaneHealth {
    let LaneFigures { queued, running, slots, holding, oldest, last_start } = figures;
    if queued == 0 {
        return LaneHealth::Healthy;
    }
    let nothing_starts = oldest >= stalled_after && last_start >= stalled_after;
    if nothing_starts || (slots > 0 && holding >= slots) {
        LaneHealth::Stalled
    } else if running >= slots && oldest > target {
        LaneHealth::Saturated
    } else {
        LaneHealth::Healthy
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(lane: Lane, place: u32, task_type: &'static str, since: Instant) -> RunningTask {
        RunningTask { id: TaskId::new(lane, place, 1), task_type, lane, since }
    }

    #[test]
    fn a_task_beyond_its_limit_is_named_once_with_its_type_lane_and_time() {
        let start = Instant::now();
        let mut watchdog = Watchdog::default();
        let running = [task(Lane::Cpu, 1, "resize", start), task(Lane::Blocking, 2, "copy", start)];
        assert_eq!(watchdog.scan(running, start + SECOND), [], "a second is allowed");
        let found = watchdog.scan(running, start + 2 * SECOND);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].task_type, found[0].lane), ("resize", Lane::Cpu));
        assert_eq!((found[0].held, found[0].limit), (2 * SECOND, SECOND));
        let id = running[0].id;
        assert_eq!(
            found[0].to_string(),
            format!("resize (task {id}) holds a worker of lane cpu for 2s, more than 1s")
        );
        assert_eq!(watchdog.scan(running, start + 3 * SECOND), []);
        let found = watchdog.scan(running, start + 31 * SECOND);
        assert_eq!(found.iter().map(|task| task.task_type).collect::<Vec<_>>(), ["copy"]);
        assert_eq!((watchdog.found(), watchdog.holding(Lane::Cpu)), (2, 1));
    }

    #[test]
    fn who_has_ended_is_forgotten() {
        let start = Instant::now();
        let mut watchdog = Watchdog::default();
        let stuck = task(Lane::Cpu, 1, "resize", start);
        assert_eq!(watchdog.scan([stuck], start + 2 * SECOND).len(), 1);
        assert_eq!(watchdog.scan([], start + 3 * SECOND), []);
        assert_eq!(watchdog.holding(Lane::Cpu), 0);
    }

    #[test]
    fn a_lane_without_a_limit_is_not_watched() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(HoldLimits::default().lane(Lane::Cpu, None));
        let running = [task(Lane::Cpu, 1, "resize", start), task(Lane::Io, 2, "fetch", start)];
        assert_eq!(watchdog.scan(running, start + 3_600 * SECOND), []);
    }

    /// Judges a lane of two slots by `queued running holding oldest last_start`, times in seconds.
    fn check(figures: [u64; 5], expected: LaneHealth) {
        let [queued, running, holding, oldest, last_start] = figures;
        let figures = LaneFigures {
            queued: queued as usize,
            running: running as usize,
            slots: 2,
            holding: holding as usize,
            oldest: Duration::from_secs(oldest),
            last_start: Duration::from_secs(last_start),
        };
        assert_eq!(health(figures, SECOND, 10 * SECOND), expected, "{figures:?}");
    }

    #[test]
    fn a_lane_is_healthy_saturated_or_stalled() {
        check([0, 0, 0, 0, 999], LaneHealth::Healthy);
        check([0, 2, 2, 0, 999], LaneHealth::Healthy);
        check([9, 2, 0, 1, 0], LaneHealth::Healthy);
        check([9, 1, 0, 9, 0], LaneHealth::Healthy);
        check([9, 2, 0, 2, 0], LaneHealth::Saturated);
        check([9, 2, 1, 60, 1], LaneHealth::Saturated);
        check([9, 2, 2, 0, 1], LaneHealth::Stalled);
        check([9, 0, 0, 10, 10], LaneHealth::Stalled);
    }
}
