//! Three times as much work as there is capacity: what becomes of the important tenth, and of the rest?
//!
//! All tasks compute for 1 ms. The capacity is what two workers do when they never wait, while the source
//! of the load makes as many tasks as it will and drops them: on a machine of two cores it takes a share of
//! what the workers could have done, whatever becomes of the tasks. Important tasks arrive at a tenth of it, alone at first, then beside so many others that both are three times the
//! capacity, then alone again. Arrivals are a Poisson stream that nobody slows down (an open loop), so
//! what is not shed waits. An answer takes from the submission to the end of the task.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use ultra_perf_bench::{MIN_ROUNDS, Suite};

use crate::engines::{Engine, Entrant, OVERLOADED, RAYON, Task};
use crate::work::{compute, quantile};

const TASK_TIME: Duration = Duration::from_millis(1);
/// The share of the capacity that important tasks ask for.
const HIGH_SHARE: f64 = 0.1;
/// What is offered during the overload, over the capacity.
const OFFERED: f64 = 3.0;
/// Windows of each phase: those that the harness wants, and the one that does not count.
const WINDOWS: usize = MIN_ROUNDS as usize + 1;

/// How long the phases are.
#[derive(Clone, Copy)]
pub(crate) struct Phases {
    pub(crate) alone: Duration,
    pub(crate) overload: Duration,
}

impl Phases {
    /// Long enough for a number.
    pub(crate) const SHORT: Self =
        Self { alone: Duration::from_secs(3), overload: Duration::from_secs(5) };
    /// As the promise has it.
    pub(crate) const FULL: Self =
        Self { alone: Duration::from_secs(10), overload: Duration::from_secs(30) };

    /// The phases in their order, and whether each is an overload.
    fn all(self) -> [(Duration, bool); 3] {
        [(self.alone, false), (self.overload, true), (self.alone, false)]
    }

    pub(crate) fn total(self) -> Duration {
        2 * self.alone + self.overload
    }
}

/// A task that ended, by the time of its submission.
#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Duration,
    took: Duration,
}

/// What one engine did.
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) phases: Phases,
    /// Tasks that two workers do in a second.
    pub(crate) capacity: f64,
    high: Vec<Answer>,
    /// When others were done.
    low_done: Vec<Duration>,
    /// When others were turned away or given up.
    low_shed: Vec<Duration>,
}

impl Run {
    /// The 99th percentile of the answers to important tasks submitted in a stretch of time, in ms.
    pub(crate) fn high_p99(&self, from: Duration, to: Duration) -> f64 {
        let within = self.high.iter().filter(|answer| (from..to).contains(&answer.at));
        let mut took: Vec<f64> = within.map(|answer| answer.took.as_secs_f64() * 1e3).collect();
        took.sort_by(f64::total_cmp);
        quantile(&took, 0.99)
    }

    /// Tasks of both levels done in a second.
    pub(crate) fn done_per_second(&self, from: Duration, to: Duration) -> f64 {
        let ends = self.high.iter().map(|answer| answer.at + answer.took);
        let done = ends.chain(self.low_done.iter().copied());
        per_second(done, from, to)
    }

    /// Others shed in a second.
    pub(crate) fn shed_per_second(&self, from: Duration, to: Duration) -> f64 {
        per_second(self.low_shed.iter().copied(), from, to)
    }

    /// Readings of the windows of a phase, without its first tenth, in which the queues fill.
    fn windows(&self, phase: usize, read: impl Fn(Duration, Duration) -> f64) -> Vec<f64> {
        let phases = self.phases.all();
        let begin: Duration = phases[..phase].iter().map(|(length, _)| *length).sum();
        let length = phases[phase].0;
        let begin = begin + length / 10;
        let step = length * 9 / 10 / WINDOWS as u32;
        (0..WINDOWS as u32).map(|i| read(begin + step * i, begin + step * (i + 1))).collect()
    }
}

fn per_second(times: impl Iterator<Item = Duration>, from: Duration, to: Duration) -> f64 {
    times.filter(|time| (from..to).contains(time)).count() as f64 / (to - from).as_secs_f64()
}

/// Runs the overload and adds its rows; returns what there is to draw.
pub(crate) fn rows(suite: &mut Suite, phases: Phases) -> Vec<Run> {
    let what = ["high answers, p99", "done", "others shed"];
    let names = OVERLOADED.iter().chain([&RAYON]).map(|entrant| entrant.name);
    let mut cases = names.flat_map(|name| what.map(|what| format!("overload: {what}, {name}")));
    if !cases.any(|case| suite.wants(&case)) {
        return Vec::new();
    }
    let capacity = capacity(&RAYON, OFFERED * capacity(&RAYON, 0.0));
    let mut runs = Vec::new();
    for entrant in OVERLOADED {
        let run = run(&entrant, capacity, phases);
        add(suite, &run);
        runs.push(run);
    }
    runs.push(self::run(&RAYON, capacity, phases));
    let rayon = runs.last().expect("just pushed");
    add(suite, rayon);
    runs
}

fn add(suite: &mut Suite, run: &Run) {
    let ours = run.name.starts_with("ours");
    let alone = run.windows(0, |from, to| run.high_p99(from, to));
    let loaded = run.windows(1, |from, to| run.high_p99(from, to).max(f64::MIN_POSITIVE));
    let case = format!("overload: high answers, p99, {}", run.name);
    let mut case = suite.reported(&case, "ms").rounds(MIN_ROUNDS);
    if ours {
        case = case.at_most(2.0);
    }
    let (mut loaded, mut alone) = (loaded.into_iter(), alone.into_iter());
    let mut next_alone = move || alone.next().expect("as many windows as rounds");
    case.compare("alone", move || loaded.next().expect("as above"), &mut next_alone);

    let mut done =
        run.windows(1, |from, to| run.done_per_second(from, to).max(f64::MIN_POSITIVE)).into_iter();
    let mut case =
        suite.reported(&format!("overload: done, {}", run.name), "op/s").rounds(MIN_ROUNDS);
    if ours {
        case = case.at_least(0.9);
    }
    case.compare("capacity", || done.next().expect("as above"), || run.capacity);
    let shed = run.low_shed.len() as f64;
    suite.reported(&format!("overload: others shed, {}", run.name), "tasks").observed(shed);
}

/// Measures what an engine's workers do in a second when they never wait, beside a source of so many tasks
/// per second.
fn capacity(entrant: &Entrant, source_per_second: f64) -> f64 {
    let engine = (entrant.make)();
    let done = Arc::new(AtomicU64::new(0));
    let for_a_second = Instant::now() + Duration::from_secs(1);
    for _ in 0..8 {
        again(&engine, &done, for_a_second);
    }
    thread::sleep(Duration::from_millis(200));
    let (start, before) = (Instant::now(), done.load(Ordering::Relaxed));
    make_and_drop(source_per_second, Duration::from_millis(700));
    let counted = done.load(Ordering::Relaxed) - before;
    let rate = counted as f64 / start.elapsed().as_secs_f64();
    while Arc::strong_count(&engine) > 1 {
        thread::sleep(Duration::from_millis(1));
    }
    engine.stop();
    rate
}

/// Does what a source of tasks does, without an engine that takes them.
fn make_and_drop(per_second: f64, length: Duration) {
    let mut rng = Rng::with_seed(1);
    let start = Instant::now();
    let mut next = Duration::ZERO;
    while next < length {
        wait_until(start, next);
        if per_second == 0.0 {
            next = length;
            continue;
        }
        let seen = Arc::new(Seen::default());
        let ticket = Ticket { seen, start, at: next, high: false, ran: false };
        drop::<Task>(Box::new(move || ticket.run()));
        next += gap(&mut rng, per_second);
    }
    wait_until(start, length);
}

/// Sleeps until a time after `start`.
fn wait_until(start: Instant, time: Duration) {
    let now = start.elapsed();
    if now < time {
        thread::sleep(time - now);
    }
}

/// The time to the next of tasks that arrive at random moments.
fn gap(rng: &mut Rng, per_second: f64) -> Duration {
    Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / per_second)
}

fn again(engine: &Arc<dyn Engine>, done: &Arc<AtomicU64>, until: Instant) {
    let (next, count) = (Arc::clone(engine), Arc::clone(done));
    engine.submit(
        false,
        Box::new(move || {
            compute(TASK_TIME);
            count.fetch_add(1, Ordering::Relaxed);
            if Instant::now() < until {
                again(&next, &count, until);
            }
        }),
    );
}

/// Counts what was seen of the tasks.
#[derive(Default)]
struct Seen {
    high: Mutex<Vec<Answer>>,
    low_done: Mutex<Vec<Duration>>,
    low_shed: Mutex<Vec<Duration>>,
}

/// A task of the overload; one that is dropped before it ran was shed, whoever did it.
struct Ticket {
    seen: Arc<Seen>,
    start: Instant,
    at: Duration,
    high: bool,
    ran: bool,
}

impl Ticket {
    fn run(mut self) {
        compute(TASK_TIME);
        self.ran = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = self.start.elapsed();
        let push = |times: &Mutex<Vec<Duration>>| times.lock().expect("nobody panics").push(now);
        match (self.high, self.ran) {
            (true, true) => {
                let answer = Answer { at: self.at, took: now - self.at };
                self.seen.high.lock().expect("nobody panics").push(answer);
            }
            // An important task that is lost is a slow answer that no percentile hides.
            (true, false) => {
                let answer = Answer { at: self.at, took: Duration::from_secs(3_600) };
                self.seen.high.lock().expect("nobody panics").push(answer);
            }
            (false, true) => push(&self.seen.low_done),
            (false, false) => push(&self.seen.low_shed),
        }
    }
}

fn run(entrant: &Entrant, capacity: f64, phases: Phases) -> Run {
    let engine = (entrant.make)();
    let seen = Arc::new(Seen::default());
    let mut rng = Rng::with_seed(1);
    let start = Instant::now();
    let mut submitted = Vec::new();
    let mut next = Duration::ZERO;
    let mut end = Duration::ZERO;
    for (length, overload) in phases.all() {
        end += length;
        let high_rate = HIGH_SHARE * capacity;
        let rate = if overload { OFFERED * capacity } else { high_rate };
        while next < end {
            wait_until(start, next);
            let high = rng.f64() * rate < high_rate;
            let ticket = Ticket { seen: Arc::clone(&seen), start, at: next, high, ran: false };
            if high {
                submitted.push(next);
            }
            engine.submit(high, Box::new(move || ticket.run()));
            next += gap(&mut rng, rate);
        }
    }
    // A queue without a bound is left as it is: it would take as long again to empty it.
    thread::sleep(Duration::from_millis(200));
    let take = |times: &Mutex<Vec<Duration>>| times.lock().expect("nobody panics").clone();
    let (low_done, low_shed) = (take(&seen.low_done), take(&seen.low_shed));
    let mut high = seen.high.lock().expect("nobody panics").clone();
    // What has not come yet takes at least until now.
    let answered: HashSet<Duration> = high.iter().map(|answer| answer.at).collect();
    let now = start.elapsed();
    let missing = submitted.into_iter().filter(|at| !answered.contains(at));
    high.extend(missing.map(|at| Answer { at, took: now - at }));
    engine.stop();
    Run { name: entrant.name, phases, capacity, high, low_done, low_shed }
}
