//! The heart: lanes with their queues and slots, and the one way in which tasks start and end.
//!
//! A lane has *slots*. Whoever holds one is a *drainer*: a job on the rayon pool, a blocking thread, or
//! a future that runs. `active` counts them. A submission puts its task into the queue and, if
//! `active < slots`, takes a slot for a new drainer; a drainer asks for the next task when its last
//! has ended, and gives its slot back when there is none. Both happen under the lane's lock, so there
//! is never a queued task beside a free slot that nobody is on the way to fill. A drainer that finds
//! more tasks and a free slot starts one more, so a batch needs one wake-up.
//!
//! A drainer of the rayon pool claims short tasks several at a time and tells the lane later how they
//! ended; see [`batch`](crate::batch). A slot is given back only when nothing is claimed that was not
//! started, and whoever claims something while there is a free slot starts one more drainer. So what was
//! said of queued tasks holds for claimed ones too: none waits beside a free slot.
//!
//! The lock order is: one lane, then a batch, the dependencies or the timer. No two lanes are locked together,
//! and nothing foreign - work, results, wakers, drops - runs under any lock.

mod drainer;
mod end;
mod entry;
mod holds;
#[cfg(all(test, not(loom)))]
mod overload_tests;
mod state;
mod submit;
mod turn;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::{Mutex, RwLock};
use rayon::ThreadPool;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub(crate) use entry::{Ending, Options, Step, Taken, Task, panic_text, state_of};
pub(crate) use state::{LaneCore, LaneSettings};
pub(crate) use turn::Entered;

use crate::lane::Lane;
use crate::rules::Rules;
use crate::task::{Priority, ShedReason, TaskId};
use crate::timer::Timer;

pub(crate) struct Core {
    pub(crate) lanes: [LaneCore; 3],
    pub(crate) rules: Rules,
    pub(crate) timer: Arc<Timer>,
    /// The tasks that wait for the end of another, by that other.
    dependents: Mutex<HashMap<TaskId, Vec<TaskId>>>,
    waits: AtomicUsize,
    dependencies_max: usize,
    /// Gone once the scheduler is closed.
    pool: RwLock<Option<ThreadPool>>,
    runtime: Option<Handle>,
    /// For futures of the upper levels, where there is one.
    urgent: Option<Handle>,
    /// Told whenever a lane has become empty.
    pub(crate) emptied: Notify,
}

/// Where the lanes run.
pub(crate) struct Backends {
    pub(crate) pool: ThreadPool,
    pub(crate) runtime: Option<Handle>,
    pub(crate) urgent: Option<Handle>,
}

impl Core {
    pub(crate) fn new(
        settings: [LaneSettings; 3],
        backends: Backends,
        dependencies_max: usize,
        rules: Rules,
    ) -> Arc<Self> {
        let mut lanes = Lane::ALL.into_iter().zip(settings);
        let core = Self {
            lanes: std::array::from_fn(|_| {
                let (lane, settings) = lanes.next().expect("one for each lane");
                LaneCore::new(lane, settings)
            }),
            rules,
            timer: Timer::new(),
            dependents: Mutex::new(HashMap::new()),
            waits: AtomicUsize::new(0),
            dependencies_max,
            pool: RwLock::new(Some(backends.pool)),
            runtime: backends.runtime,
            urgent: backends.urgent,
            emptied: Notify::new(),
        };
        if core.runtime.is_none() {
            for lane in [Lane::Io, Lane::Blocking] {
                core.lane(lane).state.lock().closed = Some(ShedReason::NoRuntime { lane });
            }
        }
        Arc::new(core)
    }

    pub(crate) fn lane(&self, lane: Lane) -> &LaneCore {
        &self.lanes[lane.index()]
    }

    /// Returns the runtime for the futures of a level.
    pub(crate) fn runtime(&self, priority: Priority) -> Option<&Handle> {
        let urgent = self.urgent.as_ref().filter(|_| priority <= Priority::High);
        urgent.or(self.runtime.as_ref())
    }
}
