//! The breaker against explicit times: named cases first, then random histories against a model.

mod model;

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::BuildError;

/// Deadlines are rounded up to a tick of 2^20 ns.
const TICK: Duration = Duration::from_nanos(1 << 20);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A breaker with a clock that the test turns.
struct Rig {
    breaker: CircuitBreaker,
    now: Instant,
}

impl Rig {
    fn new(settings: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder) -> Self {
        let now = Instant::now();
        let builder = settings(CircuitBreaker::builder("test").seed(7));
        Self { breaker: builder.build_at(now).expect("the test's settings are valid"), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn acquire(&self) -> Result<Permit, Open> {
        self.breaker.try_acquire_at(self.now)
    }

    fn permit(&self) -> Permit {
        self.acquire().expect("the breaker admits calls at this point")
    }

    /// Asks until a call passes, in a stage of the ramp that lets calls pass after `skip` refusals.
    fn permit_of_stage(&mut self, skip: u32) -> Permit {
        self.pass(ms(200) * skip);
        (0..100).find_map(|_| self.acquire().ok()).expect("some calls pass")
    }

    fn end(&self, permit: Permit, outcome: Outcome) {
        permit.complete_at(outcome, self.now);
    }

    fn calls(&self, count: usize, outcome: Outcome) {
        for _ in 0..count {
            self.end(self.permit(), outcome);
        }
    }

    fn state(&self) -> State {
        self.breaker.state_at(self.now)
    }

    fn stats(&self) -> CircuitBreakerStats {
        self.breaker.stats_at(self.now)
    }

    /// Waits until the open time is over and returns how long it was.
    fn wait_until_half_open(&mut self) -> Duration {
        let rest = self.stats().retry_after;
        self.pass(rest);
        assert_eq!(self.state(), State::HalfOpen);
        rest
    }
}

/// Makes 10,000 successful calls `apart`, then failing ones 10 ms apart; returns when it opened.
fn time_to_open_after_10_000_successes(apart: Duration) -> Duration {
    let mut rig = Rig::new(|b| b.consecutive_failures(0).window(ms(10_000)));
    for _ in 0..10_000 {
        rig.calls(1, Outcome::Success);
        rig.pass(apart);
    }
    let failing_since = rig.now;
    loop {
        rig.calls(1, Outcome::Failure);
        if rig.state() == State::Open {
            break;
        }
        rig.pass(ms(10));
        assert!(rig.now - failing_since < ms(100_000), "it never opens");
    }
    rig.now - failing_since
}

#[test]
fn after_10_000_steady_successes_failures_open_it_within_the_window() {
    let took = time_to_open_after_10_000_successes(ms(10));
    assert!(took > ms(4_000) && took <= ms(10_000), "{took:?}");
}

#[test]
fn after_a_burst_of_10_000_successes_failures_open_it_within_the_window() {
    let took = time_to_open_after_10_000_successes(Duration::ZERO);
    assert!(took > ms(1_000) && took <= ms(10_000), "{took:?}");
}

/// Makes the calls in order (`.` succeeds, `x` fails, `s` is slow, `i` is ignored) and tells
/// whether they open the breaker at the last of them.
fn opens_at_the_last(
    settings: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder,
    calls: &str,
) -> bool {
    let mut rig = Rig::new(settings);
    for (index, call) in calls.chars().enumerate() {
        assert_eq!(rig.state(), State::Closed, "open before call {index} of {calls}");
        let permit = rig.permit();
        if call == 's' {
            rig.pass(ms(21));
        }
        rig.end(
            permit,
            match call {
                'x' => Outcome::Failure,
                'i' => Outcome::Ignored,
                _ => Outcome::Success,
            },
        );
    }
    rig.state() == State::Open
}

#[test]
fn failures_in_a_row_open_it_below_the_minimum_of_calls() {
    for (calls, opens) in
        [("xxx", true), ("xx", false), ("xx.xx", false), ("xx.xxx", true), ("xxix", true)]
    {
        let settings = |b: CircuitBreakerBuilder| b.consecutive_failures(3).minimum_calls(100);
        assert_eq!(opens_at_the_last(settings, calls), opens, "{calls}");
    }
}

#[test]
fn a_failure_rate_opens_it_from_the_minimum_of_calls_on() {
    for (calls, opens) in [
        ("x.x.x", false),
        ("x.x..x", true),
        ("x.....", false),
        ("xxxx..", false),
        ("xxxx..x", true),
        ("iiiiiix", false),
    ] {
        let settings =
            |b: CircuitBreakerBuilder| b.consecutive_failures(0).minimum_calls(6).failure_rate(0.5);
        assert_eq!(opens_at_the_last(settings, calls), opens, "{calls}");
    }
}

#[test]
fn a_rate_is_reached_exactly() {
    for percent in 1..=100 {
        let calls = ".".repeat(100 - percent) + &"x".repeat(percent);
        let settings = |b: CircuitBreakerBuilder| {
            b.consecutive_failures(0).minimum_calls(100).failure_rate(percent as f64 / 100.0)
        };
        assert!(opens_at_the_last(settings, &calls), "{percent} of 100");
    }
}

#[test]
fn a_rate_of_slow_successes_opens_it() {
    for (calls, opens) in [("ss.s", true), ("ss..", false), ("..ss", false), ("sss", false)] {
        let settings = |b: CircuitBreakerBuilder| {
            b.slow_call(ms(20)).slow_call_rate(0.75).minimum_calls(4).failure_rate(1.0)
        };
        assert_eq!(opens_at_the_last(settings, calls), opens, "{calls}");
    }
}

#[test]
fn a_call_is_slow_only_beyond_the_limit() {
    for (took, slow) in [(ms(20), 0), (ms(20) + Duration::from_nanos(1), 1)] {
        let mut rig = Rig::new(|b| b.slow_call(ms(20)));
        let permit = rig.permit();
        rig.pass(took);
        rig.end(permit, Outcome::Success);
        assert_eq!(rig.stats().slow, slow, "{took:?}");
    }
}

#[test]
fn slow_calls_are_no_matter_where_they_are_off() {
    assert!(!opens_at_the_last(|b| b.minimum_calls(1).slow_call_rate(0.1), "ssssssssss"));
}

#[test]
fn failures_leave_the_window_with_time() {
    let mut rig = Rig::new(|b| b.consecutive_failures(0).minimum_calls(4).window(ms(1_000)));
    rig.calls(3, Outcome::Failure);
    rig.pass(ms(899));
    assert_eq!(rig.stats().failures, 3);
    rig.pass(ms(101));
    assert_eq!(rig.stats().failures, 0);
    rig.calls(1, Outcome::Failure);
    assert_eq!(rig.state(), State::Closed);
}

#[test]
fn half_open_lets_as_many_probes_through_as_must_succeed() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1).half_open_probes(3));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    let mut probes: Vec<_> = (0..3).map(|_| rig.permit()).collect();
    assert_eq!(rig.acquire().unwrap_err().retry_after, ms(250));
    for left in (0..3).rev() {
        let probe = probes.pop().expect("three probes");
        rig.end(probe, Outcome::Success);
        assert_eq!(rig.state(), if left == 0 { State::Closed } else { State::HalfOpen });
    }
    rig.calls(1, Outcome::Success);
}

#[test]
fn a_probe_that_is_dropped_or_ignored_gives_its_place_back() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    for _ in 0..5 {
        let probe = rig.permit();
        assert!(rig.acquire().is_err(), "the one place is taken");
        drop(probe);
        rig.calls(1, Outcome::Ignored);
        assert_eq!((rig.state(), rig.stats().probes_in_flight), (State::HalfOpen, 0));
    }
    rig.calls(1, Outcome::Success);
    assert_eq!(rig.state(), State::Closed);
}

#[test]
fn a_slow_probe_opens_it_again() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1).slow_call(ms(20)));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    let probe = rig.permit();
    rig.pass(ms(21));
    rig.end(probe, Outcome::Success);
    assert_eq!((rig.state(), rig.stats().opened), (State::Open, 2));
}

#[test]
fn a_probe_that_hangs_cannot_keep_it_half_open() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1).probe_timeout(ms(5_000)));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    let hung = rig.permit();
    rig.pass(ms(4_999));
    assert!(rig.acquire().is_err());
    assert_eq!(rig.state(), State::HalfOpen);
    rig.pass(ms(1));
    assert!(rig.acquire().is_err());
    assert_eq!((rig.state(), rig.stats().opened), (State::Open, 2));
    rig.wait_until_half_open();
    let probe = rig.permit();
    rig.end(hung, Outcome::Failure);
    assert_eq!((rig.state(), rig.stats().late), (State::HalfOpen, 1));
    rig.end(probe, Outcome::Success);
    assert_eq!(rig.state(), State::Closed);
}

#[test]
fn a_fresh_probe_is_not_taken_for_lost() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1).probe_timeout(ms(5_000)));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    drop(rig.permit());
    rig.pass(ms(4_999));
    let _fresh = rig.permit();
    rig.pass(ms(4_999));
    assert!(rig.acquire().is_err());
    assert_eq!(rig.state(), State::HalfOpen);
}

#[test]
fn a_late_completion_changes_nothing() {
    let mut rig = Rig::new(|b| b.consecutive_failures(2).minimum_calls(1_000));
    let late: Vec<_> = (0..6).map(|_| rig.permit()).collect();
    rig.calls(2, Outcome::Failure);
    let mut late = late.into_iter();
    let mut end_two_late = |rig: &Rig| {
        let before = CircuitBreakerStats { late: 0, ..rig.stats() };
        for outcome in [Outcome::Failure, Outcome::Success] {
            rig.end(late.next().expect("six late permits"), outcome);
        }
        assert_eq!(CircuitBreakerStats { late: 0, ..rig.stats() }, before);
    };
    end_two_late(&rig);
    rig.wait_until_half_open();
    let probe = rig.permit();
    end_two_late(&rig);
    rig.end(probe, Outcome::Success);
    end_two_late(&rig);
    assert_eq!((rig.state(), rig.stats().late), (State::Closed, 6));
}

#[test]
fn a_closed_breaker_starts_from_zero() {
    let mut rig = Rig::new(|b| b.consecutive_failures(0).minimum_calls(4).window(ms(600_000)));
    rig.calls(4, Outcome::Failure);
    rig.wait_until_half_open();
    rig.calls(1, Outcome::Success);
    rig.calls(3, Outcome::Failure);
    assert_eq!((rig.state(), rig.stats().failures), (State::Closed, 3));
}

#[test]
fn open_times_lie_between_a_quarter_and_the_whole_of_the_ceiling() {
    let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
    for seed in 0..1_000 {
        let mut rig =
            Rig::new(|b| b.consecutive_failures(1).open_time(ms(1_000), ms(16_000)).seed(seed));
        for ceiling in [1_000, 2_000, 4_000, 8_000, 16_000, 16_000].map(ms) {
            rig.calls(1, Outcome::Failure);
            let time = rig.wait_until_half_open();
            assert!(time >= ceiling / 4 && time <= ceiling + TICK, "{time:?} of {ceiling:?}");
            least = least.min(time * 1_000 / ceiling.as_millis() as u32);
            most = most.max(time * 1_000 / ceiling.as_millis() as u32);
        }
    }
    assert!(least < ms(260) && most > ms(990), "the jitter spans {least:?} to {most:?} of 1 s");
}

#[test]
fn equal_seeds_give_equal_open_times_and_others_do_not() {
    let open_times = |seed| {
        let mut rig = Rig::new(|b| b.consecutive_failures(1).seed(seed));
        [(); 5].map(|()| {
            rig.calls(1, Outcome::Failure);
            rig.wait_until_half_open()
        })
    };
    assert_eq!(open_times(1), open_times(1));
    assert_ne!(open_times(1), open_times(2));
}

#[test]
fn a_stable_time_forgives_one_opening() {
    for (stable_times, ceiling) in [(0, 8_000), (1, 4_000), (2, 2_000), (3, 1_000), (9, 1_000)] {
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for seed in 0..200 {
            let mut rig =
                Rig::new(|b| b.consecutive_failures(1).stable_time(ms(30_000)).seed(seed));
            for _ in 0..3 {
                rig.calls(1, Outcome::Failure);
                rig.wait_until_half_open();
            }
            rig.calls(1, Outcome::Success);
            rig.pass(ms(30_000) * stable_times + ms(2));
            rig.calls(1, Outcome::Failure);
            let time = rig.stats().retry_after;
            (least, most) = (least.min(time), most.max(time));
        }
        let ceiling = ms(ceiling);
        assert!(least >= ceiling / 4 && most <= ceiling + TICK, "{stable_times}: {most:?}");
        assert!(most > ceiling * 9 / 10, "{stable_times}: {most:?}");
    }
}

#[test]
fn a_retry_hint_makes_the_open_time_longer_up_to_the_maximum() {
    let overload = |millis| Outcome::Overload { retry_after: Some(ms(millis)) };
    for (outcomes, least, most) in [
        ([overload(20_000), overload(20_000)], 20_000, 20_002),
        ([overload(20_000), Outcome::Failure], 20_000, 20_002),
        ([overload(1), overload(1)], 250, 1_002),
        ([overload(10_000_000), Outcome::Failure], 60_000, 60_002),
        ([Outcome::Overload { retry_after: None }; 2], 250, 1_002),
        ([Outcome::Overload { retry_after: Some(Duration::MAX) }; 2], 60_000, 60_002),
    ] {
        let rig = Rig::new(|b| b.consecutive_failures(2));
        for outcome in outcomes {
            rig.calls(1, outcome);
        }
        let refused = rig.acquire().expect_err("two failures open it").retry_after;
        assert!(refused >= ms(least) && refused <= ms(most), "{outcomes:?}: {refused:?}");
    }
}

#[test]
fn a_probe_that_meets_overload_honours_its_hint() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    rig.calls(1, Outcome::Overload { retry_after: Some(ms(45_000)) });
    assert!(rig.stats().retry_after >= ms(45_000));
}

#[test]
fn a_refusal_says_exactly_when_to_come_back() {
    let mut rig = Rig::new(|b| b.consecutive_failures(1));
    rig.calls(1, Outcome::Failure);
    let refused = rig.acquire().expect_err("one failure opens it");
    rig.pass(refused.retry_after - Duration::from_nanos(1));
    assert_eq!(rig.acquire().unwrap_err().retry_after, Duration::from_nanos(1));
    rig.pass(Duration::from_nanos(1));
    rig.calls(1, Outcome::Success);
    assert_eq!((rig.state(), rig.stats().rejected), (State::Closed, 2));
}

#[test]
fn a_reset_closes_it_and_forgets() {
    let mut rig = Rig::new(|b| b.consecutive_failures(2));
    for _ in 0..3 {
        rig.calls(1, Outcome::Failure);
        rig.calls(1, Outcome::Overload { retry_after: Some(ms(60_000)) });
        rig.wait_until_half_open();
        let probe = rig.permit();
        rig.breaker.reset_at(rig.now);
        rig.end(probe, Outcome::Failure);
        let stats = rig.stats();
        assert_eq!((stats.state, stats.calls, stats.consecutive_failures), (State::Closed, 0, 0));
    }
    rig.calls(2, Outcome::Failure);
    assert!(rig.stats().retry_after <= ms(1_000) + TICK, "the level was forgotten, too");
}

#[test]
fn calls_that_hang_open_it_before_they_end() {
    // A step is 100 ms: ten calls that began at 0 are overdue from 150 ms on, seen at 200 ms.
    let mut rig = Rig::new(|b| b.window(ms(1_000)).slow_call(ms(50)).minimum_calls(10));
    let hanging: Vec<_> = (0..10).map(|_| rig.permit()).collect();
    rig.pass(ms(149));
    assert_eq!((rig.stats().overdue, rig.state()), (0, State::Closed));
    rig.pass(ms(1));
    assert_eq!((rig.stats().overdue, rig.stats().calls, rig.state()), (10, 0, State::Closed));
    rig.pass(ms(50));
    assert!(rig.acquire().is_err(), "the first call of the step sees that everything hangs");
    assert_eq!((rig.state(), rig.stats().overdue), (State::Open, 0));
    for permit in hanging {
        rig.end(permit, Outcome::Success);
    }
    assert_eq!((rig.state(), rig.stats().late), (State::Open, 10));
}

#[test]
fn few_calls_that_hang_among_many_do_not_open_it() {
    let mut rig = Rig::new(|b| b.window(ms(1_000)).slow_call(ms(50)).slow_call_rate(0.5));
    let hanging: Vec<_> = (0..9).map(|_| rig.permit()).collect();
    rig.calls(10, Outcome::Success);
    for _ in 0..5 {
        rig.pass(ms(100));
        rig.calls(1, Outcome::Ignored);
    }
    assert_eq!((rig.state(), rig.stats().overdue), (State::Closed, 9));
    rig.pass(ms(200));
    let tenth = rig.permit();
    rig.pass(ms(200));
    assert!(rig.acquire().is_err(), "ten of twenty");
    drop((hanging, tenth));
}

#[test]
fn a_call_that_hangs_counts_for_one_window() {
    let mut rig = Rig::new(|b| b.window(ms(1_000)).slow_call(ms(50)));
    let _hangs = rig.permit();
    rig.pass(ms(1_199));
    assert_eq!(rig.stats().overdue, 1);
    rig.pass(ms(1));
    assert_eq!(rig.stats().overdue, 0);
}

#[test]
fn a_limit_beyond_the_window_works_too() {
    let mut rig = Rig::new(|b| b.window(ms(100)).slow_call(ms(1_000)).minimum_calls(1));
    let _hangs = rig.permit();
    rig.pass(ms(1_000));
    rig.calls(1, Outcome::Ignored);
    assert_eq!(rig.state(), State::Closed);
    rig.pass(ms(200));
    assert!(rig.acquire().is_err());
}

#[test]
fn a_cancelled_call_counts_only_where_it_was_slow_already() {
    let mut rig = Rig::new(|b| {
        b.slow_call(ms(20)).minimum_calls(2).failure_rate(1.0).consecutive_failures(2)
    });
    rig.calls(1, Outcome::Failure);
    rig.calls(1, Outcome::Cancelled);
    assert_eq!((rig.stats().calls, rig.stats().slow), (1, 0));
    let slow = rig.permit();
    rig.pass(ms(21));
    rig.end(slow, Outcome::Cancelled);
    let stats = rig.stats();
    assert_eq!((stats.calls, stats.failures, stats.slow, stats.consecutive_failures), (2, 1, 1, 1));
    rig.calls(1, Outcome::Failure);
    assert_eq!(rig.state(), State::Open, "it did not break the row of failures");
}

#[test]
fn slow_calls_that_are_cancelled_open_it() {
    let mut rig = Rig::new(|b| b.slow_call(ms(20)).minimum_calls(3));
    for expected in [State::Closed, State::Closed, State::Open] {
        let permit = rig.permit();
        rig.pass(ms(21));
        rig.end(permit, Outcome::Cancelled);
        assert_eq!(rig.state(), expected);
    }
    rig.wait_until_half_open();
    let probe = rig.permit();
    rig.pass(ms(21));
    rig.end(probe, Outcome::Cancelled);
    assert_eq!((rig.state(), rig.stats().opened), (State::Open, 2));
}

/// Opens, probes and enters the ramp of one second.
fn ramp(settings: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder) -> Rig {
    let mut rig = Rig::new(|b| settings(b.consecutive_failures(1).ramp(ms(1_000))));
    rig.calls(1, Outcome::Failure);
    rig.wait_until_half_open();
    // The ramp begins at a tick.
    let into_tick = rig.now.duration_since(rig.breaker.shared.epoch).as_nanos() % TICK.as_nanos();
    rig.pass(TICK - Duration::from_nanos(into_tick as u64));
    rig.calls(1, Outcome::Success);
    rig
}

#[test]
fn a_ramp_lets_a_growing_share_of_the_calls_pass() {
    let mut rig = ramp(|b| b);
    for share in [1, 5, 10, 25, 50] {
        assert_eq!((rig.state(), rig.stats().admitted_percent), (State::HalfOpen, share));
        drop(rig.acquire().expect("the first call of a stage passes"));
        let passed = 1 + (1..1_000).filter(|_| rig.acquire().is_ok()).count();
        assert_eq!(passed, usize::from(share) * 10);
        let refused = (0..100).find_map(|_| rig.acquire().err()).expect("some are refused");
        assert_eq!(refused.retry_after, ms(200));
        rig.pass(ms(200));
    }
    rig.calls(1_000, Outcome::Success);
    assert_eq!((rig.state(), rig.stats().admitted_percent), (State::Closed, 100));
}

#[test]
fn a_failure_in_the_ramp_opens_it_for_longer() {
    let rig = ramp(|b| b.open_time(ms(1_000), ms(60_000)));
    rig.calls(1, Outcome::Failure);
    assert_eq!((rig.state(), rig.stats().opened), (State::Open, 2));
    assert!(rig.stats().retry_after >= ms(500));
}

#[test]
fn what_the_ramp_has_counted_stays_counted() {
    let mut rig = ramp(|b| b.minimum_calls(100));
    let (early, late) = (rig.permit(), rig.permit_of_stage(2));
    rig.end(early, Outcome::Success);
    rig.pass(ms(1_000));
    rig.calls(1, Outcome::Success);
    rig.end(late, Outcome::Success);
    assert_eq!((rig.state(), rig.stats().calls, rig.stats().late), (State::Closed, 3, 0));
}

#[test]
fn forced_open_nothing_passes_and_nothing_probes() {
    let mut rig = Rig::new(|b| b.open_time(ms(1_000), ms(5_000)));
    rig.breaker.force_open_at(rig.now);
    for _ in 0..3 {
        assert_eq!(rig.acquire().unwrap_err().retry_after, ms(5_000));
        assert!((rig.state(), rig.stats().forced) == (State::Open, true));
        rig.pass(Duration::from_hours(24 * 365));
    }
    rig.breaker.reset_at(rig.now);
    rig.calls(1, Outcome::Success);
    assert!(!rig.stats().forced);
}

#[test]
fn forced_closed_it_counts_and_does_not_open() {
    let mut rig = Rig::new(|b| b.slow_call(ms(1)).minimum_calls(1));
    rig.breaker.force_open_at(rig.now);
    rig.breaker.force_closed_at(rig.now);
    let _hangs = rig.permit();
    rig.pass(ms(5_000));
    rig.calls(100, Outcome::Failure);
    assert_eq!((rig.state(), rig.stats().forced), (State::Closed, true));
    assert_eq!((rig.stats().failures, rig.stats().overdue), (100, 1));
    rig.breaker.reset_at(rig.now);
    rig.calls(1, Outcome::Failure);
    assert_eq!(rig.state(), State::Open);
}

#[test]
fn every_change_of_state_is_told_with_its_reason() {
    use State::{Closed, HalfOpen, Open};

    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let mut rig = Rig::new(|b| {
        b.consecutive_failures(2).minimum_calls(4).probe_timeout(ms(1_000)).ramp(ms(100)).on_change(
            move |change| {
                let mut told = listener.lock().expect("no test panics here");
                told.push((change.breaker.to_owned(), change.from, change.to, change.reason));
            },
        )
    });
    let expect = |changes: &[(State, State, Reason)]| {
        let told = std::mem::take(&mut *told.lock().expect("no test panics here"));
        let changes: Vec<_> =
            changes.iter().map(|(from, to, why)| ("test".to_owned(), *from, *to, *why)).collect();
        assert_eq!(told, changes);
    };

    rig.calls(2, Outcome::Failure);
    expect(&[(Closed, Open, Reason::ConsecutiveFailures { failures: 2 })]);
    rig.wait_until_half_open();
    rig.calls(1, Outcome::Failure);
    expect(&[(Open, HalfOpen, Reason::OpenTimeOver), (HalfOpen, Open, Reason::ProbeFailed)]);
    rig.wait_until_half_open();
    let lost = rig.permit();
    rig.pass(ms(1_000));
    assert!(rig.acquire().is_err());
    drop(lost);
    expect(&[(Open, HalfOpen, Reason::OpenTimeOver), (HalfOpen, Open, Reason::ProbesLost)]);
    rig.wait_until_half_open();
    rig.calls(1, Outcome::Success);
    rig.pass(ms(102));
    rig.calls(1, Outcome::Success);
    expect(&[(Open, HalfOpen, Reason::OpenTimeOver), (HalfOpen, Closed, Reason::RampOver)]);
    rig.calls(1, Outcome::Failure);
    rig.calls(1, Outcome::Success);
    rig.calls(1, Outcome::Failure);
    expect(&[(Closed, Open, Reason::FailureRate { failures: 2, calls: 4 })]);
    rig.breaker.force_closed_at(rig.now);
    rig.breaker.force_open_at(rig.now);
    rig.breaker.reset_at(rig.now);
    expect(&[
        (Open, Closed, Reason::Forced),
        (Closed, Open, Reason::Forced),
        (Open, Closed, Reason::Reset),
    ]);
}

#[test]
fn a_slow_rate_is_told_with_what_is_overdue() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let mut rig = Rig::new(|b| {
        b.window(ms(1_000)).slow_call(ms(50)).slow_call_rate(0.5).minimum_calls(4).on_change(
            move |change| listener.lock().expect("no test panics here").push(change.reason),
        )
    });
    rig.calls(2, Outcome::Success);
    let _hanging = [rig.permit(), rig.permit()];
    rig.pass(ms(200));
    assert!(rig.acquire().is_err());
    let expected = Reason::SlowCallRate { slow: 2, overdue: 2, calls: 4 };
    assert_eq!(*told.lock().expect("no test panics here"), [expected]);
}

#[test]
fn status_codes_have_a_meaning() {
    let hint = Some(ms(5));
    for (codes, expected) in [
        (&[200, 204, 301, 304, 399][..], Outcome::Success),
        (&[400, 401, 404, 409, 418, 422, 499, 501, 505], Outcome::Ignored),
        (&[408, 500, 502, 504, 507, 520, 599], Outcome::Failure),
        (&[429, 503], Outcome::Overload { retry_after: hint }),
    ] {
        for code in codes {
            assert_eq!(Outcome::of_status(*code, hint), expected, "{code}");
        }
    }
}

#[test]
fn times_before_the_breaker_was_built_count_as_then() {
    let rig = Rig::new(|b| b.consecutive_failures(2));
    let Some(earlier) = rig.now.checked_sub(ms(1_000)) else { return };
    for _ in 0..2 {
        let permit = rig.breaker.try_acquire_at(earlier).expect("closed");
        permit.complete_at(Outcome::Failure, earlier);
    }
    assert_eq!(rig.breaker.state_at(earlier), State::Open);
}

#[test]
fn calls_of_many_threads_are_counted_exactly() {
    let rig = Rig::new(|b| b.consecutive_failures(0).failure_rate(1.0));
    // With one success counted, the failures are never all of the calls.
    rig.calls(1, Outcome::Success);
    thread::scope(|scope| {
        for outcome in [Outcome::Success, Outcome::Failure, Outcome::Success, Outcome::Ignored] {
            let rig = &rig;
            scope.spawn(move || rig.calls(20_000, outcome));
        }
    });
    let stats = rig.stats();
    assert_eq!((stats.state, stats.calls, stats.failures), (State::Closed, 60_001, 20_000));
}

#[test]
fn permits_go_to_other_threads_and_outlive_the_handle() {
    let rig = Rig::new(|b| b.consecutive_failures(1));
    let (permit, now, watcher) = (rig.permit(), rig.now, rig.breaker.clone());
    drop(rig);
    thread::spawn(move || permit.complete_at(Outcome::Failure, now))
        .join()
        .expect("completing does not panic");
    assert_eq!(watcher.state_at(now), State::Open);
}

/// Builds with one setting changed and compares the problems found.
fn check_problems(
    settings: impl FnOnce(CircuitBreakerBuilder) -> CircuitBreakerBuilder,
    expected: &[&str],
) {
    let found = match settings(CircuitBreaker::builder("redis")).build() {
        Ok(_) => Vec::new(),
        Err(BuildError::Invalid { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        }
    };
    assert_eq!(found, expected);
}

#[test]
fn every_setting_that_cannot_be_used_is_a_problem() {
    let rate = "must be above 0 and at most 1";
    let hour = "must be from 10 ms to 1 hour";
    let day = "must be from 1 ms to 24 hours";
    check_problems(|b| b, &[]);
    check_problems(|b| b.window(ms(9)), &[&format!("window = 9ms: {hour}")]);
    check_problems(|b| b.window(ms(3_600_001)), &[&format!("window = 3600.001s: {hour}")]);
    check_problems(|b| b.minimum_calls(0), &["minimum_calls = 0: must be at least 1"]);
    check_problems(|b| b.failure_rate(0.0), &[&format!("failure_rate = 0.0: {rate}")]);
    check_problems(|b| b.failure_rate(1.1), &[&format!("failure_rate = 1.1: {rate}")]);
    check_problems(|b| b.failure_rate(f64::NAN), &[&format!("failure_rate = NaN: {rate}")]);
    check_problems(|b| b.slow_call(ms(0)), &["slow_call = 0ns: must be above 0"]);
    check_problems(|b| b.slow_call_rate(-1.0), &[&format!("slow_call_rate = -1.0: {rate}")]);
    check_problems(|b| b.open_time(ms(0), ms(1)), &[&format!("open_time.base = 0ns: {day}")]);
    check_problems(
        |b| b.open_time(ms(1), ms(86_400_001)),
        &[&format!("open_time.max = 86400.001s: {day}")],
    );
    check_problems(
        |b| b.open_time(ms(3), ms(2)),
        &["open_time.base = 3ms: must be at most open_time.max"],
    );
    check_problems(|b| b.stable_time(ms(0)), &["stable_time = 0ns: must be at least 1 ms"]);
    check_problems(|b| b.half_open_probes(0), &["half_open_probes = 0: must be from 1 to 65535"]);
    check_problems(
        |b| b.half_open_probes(65_536),
        &["half_open_probes = 65536: must be from 1 to 65535"],
    );
    check_problems(|b| b.probe_timeout(ms(0)), &["probe_timeout = 0ns: must be at least 1 ms"]);
    check_problems(|b| b.ramp(ms(3_600_001)), &["ramp = 3600.001s: must be at most 1 hour"]);
}

#[test]
fn the_settings_at_their_bounds_can_be_used() {
    check_problems(
        |b| {
            b.window(ms(10))
                .minimum_calls(u32::MAX)
                .failure_rate(1.0)
                .slow_call_rate(f64::MIN_POSITIVE)
                .open_time(ms(1), ms(86_400_000))
                .stable_time(Duration::MAX)
                .half_open_probes(65_535)
                .probe_timeout(Duration::MAX)
        },
        &[],
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let error = CircuitBreaker::builder("")
        .minimum_calls(0)
        .failure_rate(2.0)
        .build()
        .expect_err("three settings cannot be used");
    assert_eq!(
        error.to_string(),
        "invalid circuit breaker \"\", 3 problems:\n  \
         name = \"\": must not be empty\n  \
         minimum_calls = 0: must be at least 1\n  \
         failure_rate = 2.0: must be above 0 and at most 1"
    );
}
