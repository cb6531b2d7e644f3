//! What a call through a circuit breaker costs, beside one reading of the clock.
//!
//! A closed breaker is on the path of every call, so it has to cost about as much as the timestamp that a
//! caller takes anyway. The peer is `Instant::now()`: it is the floor that every breaker with a time
//! window stands on, and it moves with the machine as the breaker does.
//!
//! With the feature `peers` the same loads run on other breakers: `recloser` (ring buffer of the last
//! calls), `failsafe` (moving average, behind a lock) and `tower-resilience` (a tower service; its default
//! window by count, and one by time). Beside the costs stands what they are for: how many failing calls
//! it takes to open after 10,000 that succeeded.
//!
//! A case in two threads runs the same number of calls in each of them and counts CPU time, so a shared
//! cache line that travels shows as a larger number, and waiting for a core does not.
#![forbid(unsafe_code)]

#[cfg(feature = "peers")]
mod peers;

use std::future::ready;
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use resilience::{AdaptiveLimit, CircuitBreaker, Outcome, RetryBudget, State};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

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

    suite.time("closed call, call(|| future)", Clock::Cpu, CALLS).at_most(1.7).compare(
        "Instant::now()",
        || futures(&closed),
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

    let timed = CircuitBreaker::builder("bench").slow_call(Duration::from_secs(1));
    let timed = timed.build().expect("a valid configuration");
    suite.time("closed call where slow calls count", Clock::Cpu, CALLS).compare(
        "Instant::now() twice",
        || calls(&timed),
        || (0..2).for_each(|_| read_time()),
    );

    suite.reported("closed call, share of a call of 1 ms", "%").at_most(1.0).measure(|| {
        let stopwatch = Stopwatch::start(Clock::Cpu);
        calls(&closed);
        stopwatch.nanos_per(CALLS) / 1e6 * 100.0
    });

    let limit = AdaptiveLimit::builder("bench").build().expect("a valid configuration");
    suite.time("adaptive limit, one call", Clock::Cpu, CALLS).compare(
        "Instant::now() twice",
        || {
            for _ in 0..CALLS {
                let permit = black_box(&limit).try_acquire().expect("one in flight");
                permit.complete(Outcome::Success);
            }
        },
        || (0..2).for_each(|_| read_time()),
    );

    let budget = RetryBudget::builder("bench").build().expect("a valid configuration");
    suite.time("retry budget, one call counted", Clock::Cpu, CALLS).compare(
        "Instant::now()",
        || (0..CALLS).for_each(|_| black_box(&budget).call_at(Instant::now())),
        read_time,
    );

    let case = "failing calls until open, after 10,000 at 100/s";
    suite.reported(case, "calls").at_most(500.0).observed(f64::from(calls_until_open()));
    #[cfg(feature = "peers")]
    peers::rows(&mut suite, &closed);
    #[cfg(not(feature = "peers"))]
    suite
        .reported("closed call beside", "ns")
        .skip("recloser and others", "built without peers: cargo xtask bench resilience --peers");

    suite.finish()
}

/// How many failing calls 10 ms apart it takes to open, after 10,000 that succeeded 10 ms apart; by
/// rate alone, with a window of 10 s.
fn calls_until_open() -> u32 {
    let mut now = Instant::now();
    let builder = CircuitBreaker::builder("bench").consecutive_failures(0).seed(1);
    let breaker = builder.build_at(now).expect("a valid configuration");
    let mut call = |outcome| {
        now += Duration::from_millis(10);
        breaker.try_acquire_at(now).expect("closed").complete_at(outcome, now);
        breaker.state_at(now) == State::Open
    };
    for _ in 0..10_000 {
        call(Outcome::Success);
    }
    (1..=100_000).find(|_| call(Outcome::Failure)).unwrap_or(u32::MAX)
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

/// Calls whose future is there at once, polled in place.
fn futures(breaker: &CircuitBreaker) {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..CALLS {
        let call = pin!(black_box(breaker).call(|| ready(Ok::<_, ()>(()))));
        assert!(matches!(call.poll(&mut context), Poll::Ready(Ok(()))));
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
