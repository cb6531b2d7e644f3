//! What a call through a circuit breaker costs, beside one reading of the clock.
//!
//! A closed breaker is on the path of every call, so it has to cost about as much as the timestamp that a
//! caller takes anyway. The peer is `Instant::now()`: it is the floor that every breaker with a time
//! window stands on, and it moves with the machine as the breaker does.
//!
//! A case in two threads runs the same number of calls in each of them and counts CPU time, so a shared
//! cache line that travels shows as a larger number, and waiting for a core does not.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use resilience::{CircuitBreaker, Outcome};
use ultra_perf_bench::{Clock, Suite};

/// Calls per round: a few milliseconds.
const CALLS: u64 = 200_000;

fn main() -> ExitCode {
    let mut suite = Suite::new("resilience");

    let closed = breaker();
    suite.time("closed call, complete(Success)", Clock::Cpu, CALLS).at_most(1.7).compare(
        "Instant::now()",
        || calls(&closed),
        read_time,
    );

    // The caller has the time already, as one who measures latency does.
    let now = Instant::now();
    suite.time("closed call at a given time", Clock::Cpu, CALLS).compare(
        "Instant::now()",
        || {
            for _ in 0..CALLS {
                let permit = black_box(&closed).try_acquire_at(black_box(now));
                permit.expect("closed").complete_at(Outcome::Success, black_box(now));
            }
        },
        read_time,
    );

    suite.time("closed call, two threads", Clock::Cpu, 2 * CALLS).compare(
        "Instant::now()",
        || in_two_threads(|| calls(&closed)),
        || in_two_threads(read_time),
    );

    let open = breaker();
    open.try_acquire_at(now).expect("closed").complete_at(Outcome::Failure, now);
    suite.time("refused call", Clock::Cpu, CALLS).compare(
        "Instant::now()",
        || {
            for _ in 0..CALLS {
                assert!(black_box(&open).try_acquire_at(black_box(now)).is_err());
            }
        },
        read_time,
    );

    suite.finish()
}

/// A breaker that opens at the first failure and for longer than any run.
fn breaker() -> CircuitBreaker {
    let hour = Duration::from_secs(3_600);
    let builder = CircuitBreaker::builder("bench").consecutive_failures(1).open_time(hour, hour);
    builder.seed(1).build().expect("a valid configuration")
}

fn calls(breaker: &CircuitBreaker) {
    for _ in 0..CALLS {
        black_box(breaker).try_acquire().expect("closed").complete(Outcome::Success);
    }
}

fn read_time() {
    for _ in 0..CALLS {
        black_box(Instant::now());
    }
}

fn in_two_threads(work: impl Fn() + Sync) {
    thread::scope(|scope| {
        scope.spawn(&work);
        work();
    });
}
