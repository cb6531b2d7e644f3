//! Important tasks under a flood of others: how long until they start?
//!
//! Tasks of 50 us of CPU arrive 500 times a second, at random moments (a Poisson stream), while tasks of
//! 1 ms keep twenty of their kind outstanding on two workers: each of them, when it ends, submits the next
//! from where it runs. So every engine has the same backlog of ten times its workers. A reading is the
//! time from the submission of an important task to its start, and how many of the others were done.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use ultra_perf_bench::{MIN_ROUNDS, Suite};

use crate::engines::{Engine, Entrant, OTHERS, OURS, RAYON, Task};
use crate::work::{compute, quantile};

const HIGH_TIME: Duration = Duration::from_micros(50);
const HIGH_PER_SECOND: f64 = 500.0;
const LOW_TIME: Duration = Duration::from_millis(1);
const LOW_OUTSTANDING: usize = 20;
/// A round of one engine.
const ROUND: Duration = Duration::from_millis(700);
/// Of that, what passes before anything counts.
const WARM_UP: Duration = Duration::from_millis(100);

/// What a round of one engine came to.
#[derive(Clone, Copy, Debug)]
struct Reading {
    p50_us: f64,
    p99_us: f64,
    low_per_second: f64,
}

/// Measures all engines in interleaved rounds and adds their rows.
pub(crate) fn rows(suite: &mut Suite, rounds: Option<u16>, peers: bool) {
    let rounds = rounds.unwrap_or(MIN_ROUNDS);
    let mut entrants = vec![RAYON];
    entrants.extend(OURS);
    if peers {
        entrants.extend(OTHERS);
    }
    let wanted = |entrant: &Entrant| {
        ["high waits, p50", "high waits, p99", "low done"]
            .iter()
            .any(|what| suite.wants(&format!("flood: {what}, {}", entrant.name)))
    };
    if !entrants.iter().any(wanted) {
        return;
    }
    // Everybody's rows about the flood itself stand beside this one's.
    entrants.retain(|entrant| entrant.name == RAYON.name || wanted(entrant));
    let mut readings = vec![Vec::new(); entrants.len()];
    // The first round is the one that does not count.
    for round in 0..=u64::from(rounds) {
        for (entrant, readings) in entrants.iter().zip(&mut readings) {
            readings.push(measure(entrant, round));
        }
    }
    let (rayon, others) = readings.split_first().expect("rayon is there");
    for (entrant, readings) in entrants.iter().skip(1).zip(others) {
        add(suite, rounds, entrant, readings, rayon);
    }
    add(suite, rounds, &RAYON, rayon, rayon);
}

fn add(suite: &mut Suite, rounds: u16, entrant: &Entrant, readings: &[Reading], rayon: &[Reading]) {
    let name = entrant.name;
    let (p50, p99) = match name {
        "ours, ordered" | "ours, ordered, lane io" => (Some(450.0), Some(1_150.0)),
        "ours, reserved, nice 19" => (Some(30.0), Some(600.0)),
        _ => (None, None),
    };
    for (what, target, pick) in [
        ("p50", p50, (|reading| reading.p50_us) as fn(&Reading) -> f64),
        ("p99", p99, |reading| reading.p99_us),
    ] {
        let case = format!("flood: high waits, {what}, {name}");
        let mut case = suite.reported(&case, "us").rounds(rounds);
        if let Some(target) = target {
            case = case.at_most(target);
        }
        let mut values = readings.iter().map(pick);
        case.measure(|| values.next().expect("a reading for each round"));
    }
    let case = format!("flood: low done, {name}");
    if name == RAYON.name {
        let mut values = readings.iter().map(|reading| reading.low_per_second);
        suite.reported(&case, "op/s").rounds(rounds).measure(|| values.next().expect("as above"));
        return;
    }
    let mut ours = readings.iter().map(|reading| reading.low_per_second);
    let mut peer = rayon.iter().map(|reading| reading.low_per_second);
    let mut case = suite.reported(&case, "op/s").rounds(rounds);
    if name.starts_with("ours") {
        case = case.at_least(0.97);
    }
    case.compare(RAYON.name, || ours.next().expect("as above"), || peer.next().expect("as above"));
}

/// Runs one engine for a round.
fn measure(entrant: &Entrant, seed: u64) -> Reading {
    let engine = (entrant.make)();
    let flood = Arc::new(Flood {
        engine: Arc::clone(&engine),
        ends: AtomicBool::new(false),
        low_done: AtomicU64::new(0),
    });
    for _ in 0..LOW_OUTSTANDING {
        flood.submit_low();
    }
    thread::sleep(WARM_UP);

    let waits = Arc::new(Mutex::new(Vec::with_capacity(1_000)));
    let mut rng = Rng::with_seed(seed);
    let low_before = flood.low_done.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut next = start;
    loop {
        next += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / HIGH_PER_SECOND);
        if next >= start + (ROUND - WARM_UP) {
            break;
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let waits = Arc::clone(&waits);
        let submitted = Instant::now();
        engine.submit(
            true,
            Box::new(move || {
                let waited = submitted.elapsed();
                compute(HIGH_TIME);
                waits.lock().expect("nobody panics").push(waited.as_secs_f64() * 1e6);
            }),
        );
    }
    let low_done = flood.low_done.load(Ordering::Relaxed) - low_before;
    let measured = start.elapsed();
    flood.ends.store(true, Ordering::Relaxed);
    // What was submitted last may wait for the whole backlog, and a runtime must not be dropped by a task
    // of its own.
    while Arc::strong_count(&flood) > 1 || Arc::strong_count(&waits) > 1 {
        thread::sleep(Duration::from_millis(1));
    }
    engine.stop();
    let mut waits = std::mem::take(&mut *waits.lock().expect("nobody panics"));
    waits.sort_by(f64::total_cmp);
    Reading {
        p50_us: quantile(&waits, 0.5),
        p99_us: quantile(&waits, 0.99),
        low_per_second: low_done as f64 / measured.as_secs_f64(),
    }
}

/// The flood of a round.
struct Flood {
    engine: Arc<dyn Engine>,
    ends: AtomicBool,
    low_done: AtomicU64,
}

impl Flood {
    fn submit_low(self: &Arc<Self>) {
        let flood = Arc::clone(self);
        let task: Task = Box::new(move || {
            compute(LOW_TIME);
            flood.low_done.fetch_add(1, Ordering::Relaxed);
            if !flood.ends.load(Ordering::Relaxed) {
                flood.submit_low();
            }
        });
        self.engine.submit(false, task);
    }
}
