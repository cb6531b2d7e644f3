//! Three times as much work as there is capacity, on one lane with passed time: nothing here sleeps.
//!
//! Two servers, tasks of 1 ms, important ones at a tenth of the capacity: first alone, then beside so many
//! others that both are three times the capacity, for 5 s. Arrivals are a Poisson stream that nobody slows
//! down. The queue of the others is bounded and sheds what waits too long while it is overloaded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::Core;
use super::entry::{Ending, Entry, Options, Step, Task};
use super::state::{LaneCore, LaneSettings};
use crate::admission::{CoDelSettings, WhenFull};
use crate::cell::{Wake, Was};
use crate::lane::Lane;
use crate::limits::{LimitRule, LimitSettings};
use crate::queue::Bounds;
use crate::task::{Priority, ShedReason, TaskError, TaskId};
use crate::timer::Timer;

const SERVERS: usize = 2;
const TASK_TIME: Duration = Duration::from_millis(1);
const CAPACITY_PER_SECOND: f64 = 2_000.0;
const LOW_MAX: usize = 200;

/// A task of which only the way through the lane matters.
struct Nothing;

impl Task for Nothing {
    fn start(self: Arc<Self>, _: &Arc<Core>, _: TaskId, _: Priority) -> Option<Step> {
        None
    }

    fn end(&self, _: TaskError) -> Option<(Was, Wake)> {
        None
    }
}

/// What became of the tasks of one phase.
#[derive(Default)]
struct Seen {
    /// From the arrival to the end, of the important ones.
    high: Vec<Duration>,
    done: usize,
    low_shed: usize,
    low_refused: usize,
    low_came: usize,
    high_lost: usize,
}

struct Simulation {
    lane: LaneCore,
    timer: Arc<Timer>,
    now: Instant,
    rng: Rng,
    /// What each server runs, and until when.
    servers: [Option<(TaskId, Instant)>; SERVERS],
    came: HashMap<TaskId, (Instant, Priority)>,
}

impl Simulation {
    fn new() -> Self {
        let mut codel = [None; 4];
        codel[Priority::Low.index()] = Some(CoDelSettings {
            target: Duration::from_millis(50),
            interval: Duration::from_millis(100),
            shed_after: Duration::from_millis(80),
        });
        let mut tasks = [100_000; 4];
        tasks[Priority::Low.index()] = LOW_MAX;
        let settings = LaneSettings {
            slots: SERVERS,
            bounds: Bounds { lane_tasks: 400_000, tasks, bytes: [1 << 30; 4] },
            targets: [10, 50, 200, 1_000].map(Duration::from_millis),
            types_max: 4,
            when_full: [WhenFull::Reject; 4],
            codel,
            limit: LimitSettings::new(LimitRule::Fixed, SERVERS, SERVERS, SERVERS),
            least: Priority::High,
            batches: 0,
            keeps: false,
        };
        Self {
            lane: LaneCore::new(Lane::Cpu, settings),
            timer: Timer::new(),
            now: Instant::now(),
            rng: Rng::with_seed(1),
            servers: [None; SERVERS],
            came: HashMap::new(),
        }
    }

    /// Lets tasks arrive at so many times the capacity for a while.
    fn phase(&mut self, offered: f64, length: Duration) -> Seen {
        let mut seen = Seen::default();
        let end = self.now + length;
        let rate = offered * CAPACITY_PER_SECOND;
        loop {
            let gap = Duration::from_secs_f64(-(1.0 - self.rng.f64()).ln() / rate);
            let next = self.now + gap;
            self.serve_until(next.min(end), &mut seen);
            if next >= end {
                return seen;
            }
            let high = self.rng.f64() * offered < 0.1;
            self.arrive(if high { Priority::High } else { Priority::Low }, &mut seen);
            self.serve_until(next, &mut seen);
        }
    }

    fn arrive(&mut self, priority: Priority, seen: &mut Seen) {
        let mut state = self.lane.lock();
        let options = Options { priority, ..Options::default() };
        seen.low_came += usize::from(priority == Priority::Low);
        if let Err((reason, _)) = state.room(&self.lane, &options, 1, &mut Vec::new()) {
            let full = ShedReason::QueueFull { lane: Lane::Cpu, priority, max: LOW_MAX };
            assert_eq!(reason, full);
            seen.low_refused += 1;
            return;
        }
        let row = state.ledger.row("task", priority);
        let entry = Entry { task: Arc::new(Nothing), row, dependents: false, extra: None };
        let id = state.queue.insert_queued(entry, options.class(), self.now);
        self.came.insert(id, (self.now, priority));
    }

    /// Ends and starts tasks until then.
    fn serve_until(&mut self, end: Instant, seen: &mut Seen) {
        loop {
            self.start_tasks(seen);
            let busy = self.servers.iter_mut().filter(|it| it.is_some_and(|it| it.1 <= end));
            let Some(server) = busy.min_by_key(|it| it.map(|it| it.1)) else {
                self.now = end;
                return;
            };
            let (id, at) = server.take().expect("only such were looked at");
            self.now = at;
            let left = self.lane.lock().finish(id, Ending::Done, at);
            assert!(left.is_some(), "it ran");
            let (came, priority) = self.came.remove(&id).expect("it came");
            seen.done += 1;
            if priority == Priority::High {
                seen.high.push(at - came);
            }
        }
    }

    fn start_tasks(&mut self, seen: &mut Seen) {
        let mut state = self.lane.lock();
        for server in self.servers.iter_mut().filter(|it| it.is_none()) {
            let start = state.next(Priority::Low, self.now, &self.timer);
            *server = start.map(|start| (start.id, self.now + TASK_TIME));
        }
        for given_up in std::mem::take(&mut state.given_up) {
            assert!(!given_up.retry_after.is_zero());
            self.came.remove(&given_up.left.id);
            match given_up.priority {
                Priority::Low => seen.low_shed += 1,
                _ => seen.high_lost += 1,
            }
        }
    }
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn three_times_the_capacity_leaves_the_important_tenth_as_it_was() {
    let mut simulation = Simulation::new();
    let alone = simulation.phase(0.1, Duration::from_secs(5));
    let overload = simulation.phase(3.0, Duration::from_secs(5));
    let after = simulation.phase(0.1, Duration::from_secs(1));

    assert_eq!((alone.high_lost, overload.high_lost, after.high_lost), (0, 0, 0));
    assert!(overload.high.len() > 800, "{} important ones", overload.high.len());
    let (unloaded, loaded) = (p99(alone.high), p99(overload.high));
    assert!(loaded <= 2 * unloaded, "p99 of the important ones: {unloaded:?} -> {loaded:?}");

    let goodput = overload.done as f64 / (5.0 * CAPACITY_PER_SECOND);
    assert!(goodput >= 0.9, "{goodput:.3} of the capacity");
    let shed = overload.low_shed + overload.low_refused;
    let excess = overload.low_came as f64 - 0.9 * 5.0 * CAPACITY_PER_SECOND;
    assert!((shed as f64 - excess).abs() < 500.0, "{shed} shed, {excess:.0} too many");
    assert!(overload.low_shed > 0 && overload.low_refused > 0);

    assert_eq!(after.low_refused, 0, "the overload is over when its queue is empty");
    let state = simulation.lane.lock();
    assert!(state.queue.queued() <= SERVERS);
    assert_eq!(state.rules.overload(Priority::Low, simulation.now), None);
}
