//! Every number that users have named, as a row that holds or does not.
//!
//! A case quotes the claim and then says what was done, because a claim alone does not. The targets are
//! absolute, so a row here says "fast enough for what was asked" on this machine; how the parts compare
//! with others is what the other suites are for. A claim about a part that does not exist yet has no row.
#![forbid(unsafe_code)]

mod caching;
mod expiry;
mod memory;
mod proxy;
mod redis_server;
mod tasks;
mod tiers;
mod users;

use std::hint::black_box;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use resilience::{CircuitBreaker, Outcome};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

fn main() -> ExitCode {
    if users::ran_as_child() {
        return ExitCode::SUCCESS;
    }
    let mut suite = Suite::new("claims");
    caching::measure(&mut suite);
    tiers::measure(&mut suite);
    breaker(&mut suite);
    memory::measure(&mut suite);
    tasks::measure(&mut suite);
    proxy::measure(&mut suite);
    users::measure(&mut suite);
    expiry::measure(&mut suite);
    suite.finish()
}

/// The breaker around a call of a millisecond: first the calls as they are, then its own share.
fn breaker(suite: &mut Suite) {
    const CALLS: u64 = 100;
    const OWN_CALLS: u64 = 200_000;
    const CALL: Duration = Duration::from_millis(1);
    let breaker = CircuitBreaker::builder("claims").build().expect("the defaults are valid");
    let call = |work: fn()| {
        let permit = black_box(&breaker).try_acquire().expect("nothing fails");
        work();
        permit.complete(Outcome::Success);
    };

    let case = "\"breaker > 500 calls/s\": calls of 1 ms, one after the other";
    suite.rate(case, Clock::Wall, CALLS).rounds(9).at_least(500.0).measure(|| {
        (0..CALLS).for_each(|_| call(|| thread::sleep(CALL)));
    });
    // A hundredth of a sleep is less than sleeps differ by, so the breaker's part is measured by itself.
    let case = "\"< 1 % overhead on a 1 ms call\": the breaker's CPU time";
    suite.reported(case, "%").at_most(1.0).measure(|| {
        let watch = Stopwatch::start(Clock::Cpu);
        (0..OWN_CALLS).for_each(|_| call(|| {}));
        watch.nanos_per(OWN_CALLS) / CALL.as_nanos() as f64 * 100.0
    });
}
