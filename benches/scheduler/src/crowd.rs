//! A million tasks that wait and are cancelled at once: how long it takes, and what is left of them.
//!
//! A running task holds the only worker, so that all of them wait. They are a group, which is dropped.
//! Then the allocator is asked to give back what is free (`malloc_trim(3)`), as the memory guard does under
//! pressure, and the resident size of the process is set against the one before, with the scheduler still
//! there and its worker still busy.

use std::fs;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use memory::{AllocatorControl as _, Glibc};
use scheduler::{Priority, Scheduler};
use ultra_perf_bench::Suite;

const CROWD: usize = 1_000_000;
const MIB: f64 = 1_048_576.0;
const TIME: &str = "a million cancelled at once";
const MEMORY: &str = "a million cancelled: resident after";
const PEAK: &str = "a million waiting: resident";

/// Adds the rows.
pub(crate) fn rows(suite: &mut Suite) {
    if ![TIME, PEAK, MEMORY].iter().any(|case| suite.wants(case)) {
        return;
    }
    let seen = crowd();
    suite.reported(TIME, "s").at_most(1.0).observed(seen.seconds);
    suite.reported(PEAK, "MiB").observed(seen.peak / MIB);
    suite.reported(MEMORY, "MiB").at_most(1.1 * seen.before / MIB).observed(seen.after / MIB);
}

/// What became of the crowd, and the resident size of the process meanwhile.
struct Seen {
    seconds: f64,
    before: f64,
    peak: f64,
    after: f64,
}

fn crowd() -> Seen {
    let builder = Scheduler::builder().cpu_threads(1).lane_tasks(CROWD);
    let scheduler = builder.level_tasks(Priority::Normal, CROWD).build().expect("valid settings");
    let (release, released) = sync_channel::<()>(1);
    let (started, begun) = sync_channel::<()>(1);
    let plug = scheduler.cpu("plug", move |_| {
        started.send(()).expect("somebody waits");
        let _ = released.recv();
    });
    plug.priority(Priority::Critical).spawn().expect("there is room");
    begun.recv().expect("it starts");

    let before = resident_bytes();
    let mut group = scheduler.group();
    for number in 0..CROWD as u64 {
        let payload = [number; 4];
        group.spawn(scheduler.cpu("crowd", move |_| payload)).expect("there is room");
    }
    let peak = resident_bytes();
    let start = Instant::now();
    drop(group);
    let seconds = start.elapsed().as_secs_f64();
    // The lane looks at its table ten times a second, and keeps what it needed since the last time.
    thread::sleep(Duration::from_millis(500));
    let after = resident_bytes();
    drop(release);
    Seen { seconds, before, peak, after }
}

/// The resident size of the process, after the allocator gave back what is free.
fn resident_bytes() -> f64 {
    Glibc.give_back();
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok());
    pages.expect("Linux tells") * rustix::param::page_size() as f64
}
