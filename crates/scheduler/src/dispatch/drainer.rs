//! Who fills a slot of a lane of closures: a job on the rayon pool, or a thread of somebody else's.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Core;
use super::entry::Step;
use super::turn::{CURRENT, Seat, Then, Turn};
use crate::lane::Lane;
use crate::task::{ShedReason, TaskId};

/// A drainer on threads of others gives its thread back after so many tasks, or so long.
const HAND_BACK: (u32, Duration) = (64, Duration::from_millis(5));
/// How often a drainer without a task looks for one before it gives its slot back: about a microsecond.
const LINGER: u32 = 32;
/// How often a drainer that was stolen by a waiting worker looks for another one to run it.
const BOUNCES: u32 = 32;

/// A slot of a lane of closures, and who fills it.
pub(super) struct Drainer {
    core: Arc<Core>,
    lane: Lane,
    /// Whether it has the slot still.
    slot: bool,
    started: bool,
}

impl Drainer {
    pub(super) fn new(core: &Arc<Core>, lane: Lane) -> Self {
        Self { core: Arc::clone(core), lane, slot: true, started: false }
    }

    /// Runs tasks on a worker of the rayon pool until none is left.
    ///
    /// A worker that waits in `join` or a parallel iterator takes whatever job it finds. A drainer that
    /// finds itself on top of a task this way would run other tasks above it, which deadlocks if
    /// they want a lock that it holds (rayon#592). So it goes back to the pool, for a worker that is idle;
    /// if none takes it, it gives its slot back, and the worker below starts it again when its task
    /// has ended.
    pub(super) fn run_on_pool(mut self, bounces: u32) {
        if CURRENT.get().is_some() {
            if bounces < BOUNCES {
                std::thread::yield_now();
                rayon::spawn(move || self.run_on_pool(bounces + 1));
            } else {
                self.started = true;
            }
            return;
        }
        self.started = true;
        let core = Arc::clone(&self.core);
        let batch = rayon::current_thread_index().and_then(|it| core.lane(self.lane).batch(it));
        let mut seat = batch.map(|batch| Seat { batch, batched: false });
        let mut ended = None;
        let mut then = Then::Linger;
        loop {
            match self.turn(seat.as_mut(), ended.take(), then) {
                Turn::Start(start) => {
                    ended = match &seat {
                        Some(Seat { batch, batched: true }) => core.run_batch(start, batch),
                        _ => {
                            let id = start.id;
                            core.run(start).map(|step| (id, step))
                        }
                    };
                    then = Then::Linger;
                }
                Turn::Linger => {
                    self.linger();
                    then = Then::More;
                }
                Turn::Over => return,
            }
        }
    }

    /// Gives a submitter a moment to bring the next task, which spares both of them a wake-up.
    fn linger(&self) {
        let queued = &self.core.lane(self.lane).queued;
        for _ in 0..LINGER {
            if queued.load(Relaxed) > 0 {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Runs tasks on a thread of somebody else's, which it gives back now and then.
    pub(super) fn run(mut self) {
        self.started = true;
        let (tasks, time) = HAND_BACK;
        let began = Instant::now();
        let mut ended = None;
        for count in 0.. {
            let more = count < tasks && (count == 0 || began.elapsed() < time);
            let then = if more { Then::More } else { Then::Stop };
            let Turn::Start(start) = self.turn(None, ended.take(), then) else { return };
            let id = start.id;
            ended = self.core.run(start).map(|step| (id, step));
        }
    }

    fn turn(
        &mut self,
        seat: Option<&mut Seat<'_>>,
        ended: Option<(TaskId, Step)>,
        then: Then,
    ) -> Turn {
        // Whatever happens in here, the slot is accounted for.
        self.slot = false;
        let turn = self.core.turn(self.lane, seat, ended, then);
        self.slot = !matches!(turn, Turn::Over);
        turn
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        if !self.slot {
            return;
        }
        let here = self.core.lane(self.lane);
        here.state.lock().active -= 1;
        if !self.started {
            // It was dropped and not run, so nothing else will be run here either.
            self.core.close(self.lane, ShedReason::NoRuntime { lane: self.lane });
        }
    }
}
