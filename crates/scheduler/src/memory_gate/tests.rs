//! The gate against scripted schedules and a naive account of who holds what.

use proptest::prelude::*;

use super::*;
use crate::Priority::{Critical, High, Low, Normal};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Everybody that may go at `now`, in their order.
fn go(gate: &mut MemoryGate<&'static str>, now: Instant) -> Vec<&'static str> {
    std::iter::from_fn(|| gate.next(now)).map(|(item, _)| item).collect()
}

/// A gate of 100 bytes in which `held` are used, and tasks that wait behind them.
fn gate(
    held: u64,
    tasks: &[(&'static str, Priority, u64)],
    now: Instant,
) -> MemoryGate<&'static str> {
    let mut gate = MemoryGate::new(100);
    if held > 0 {
        assert_eq!(gate.request("held", Normal, held, now), Ok(Entry::Admitted("held")));
    }
    for (item, level, bytes) in tasks {
        let entry = gate.request(item, *level, *bytes, now).expect("not too large");
        assert!(matches!(entry, Entry::Waiting(_)), "{item} did not wait");
    }
    gate
}

#[test]
fn what_fits_is_let_in_at_once_and_the_rest_by_level_and_arrival() {
    let now = Instant::now();
    let tasks =
        [("low", Low, 50), ("normal", Normal, 50), ("high", High, 50), ("high 2", High, 50)];
    let mut gate = gate(100, &tasks, now);
    assert_eq!(go(&mut gate, now), [""; 0]);
    gate.release(100);
    assert_eq!(go(&mut gate, now), ["high", "high 2"]);
    gate.release(50);
    gate.release(50);
    assert_eq!(go(&mut gate, now), ["normal", "low"]);
    assert_eq!(gate.stats().used_bytes, 100);
}

#[test]
fn a_task_larger_than_the_budget_is_refused_with_both_numbers() {
    let now = Instant::now();
    let mut gate = MemoryGate::new(100);
    let (item, error) = gate.request("large", Low, 101, now).expect_err("too large");
    assert_eq!(item, "large");
    assert_eq!(error.to_string(), "the task declares 101 bytes, the memory budget is 100 bytes");
    assert_eq!(gate.request("whole", Low, 100, now), Ok(Entry::Admitted("whole")));
}

/// One task of 10 bytes ends and one arrives at each step, while a large one waits.
///
/// Returns after how many steps the large one was let in, and how many others were before.
fn steps_until_large(level_of_small: Priority, step: Duration) -> (u32, u32) {
    let start = Instant::now();
    let mut gate = MemoryGate::new(100);
    for _ in 0..10 {
        assert!(matches!(gate.request("small", level_of_small, 10, start), Ok(Entry::Admitted(_))));
    }
    assert!(matches!(gate.request("large", Normal, 80, start), Ok(Entry::Waiting(_))));
    let mut others = 0;
    for number in 1..10_000 {
        let now = start + step * number;
        gate.release(10);
        gate.request("small", level_of_small, 10, now).expect("not too large");
        for item in go(&mut gate, now) {
            match item {
                "large" => return (number, others),
                _ => others += 1,
            }
        }
    }
    panic!("the large task starved");
}

#[test]
fn a_large_task_is_passed_eight_times_by_its_like_and_then_room_is_kept_for_it() {
    // Eight steps let one in each, eight more collect the bytes.
    assert_eq!(steps_until_large(Normal, ms(1)), (16, 8));
    assert_eq!(steps_until_large(Low, ms(1)), (16, 8));
}

#[test]
fn a_large_task_is_passed_for_a_tenth_of_a_second_by_its_like() {
    // At 33 ms a step: the third step is at 99 ms, the fourth too late.
    assert_eq!(steps_until_large(Normal, ms(33)), (11, 3));
}

#[test]
fn a_large_task_is_passed_sixteen_times_as_often_by_higher_levels_and_never_for_ever() {
    assert_eq!(steps_until_large(High, ms(1)), (136, 128));
    assert_eq!(steps_until_large(Critical, ms(400)), (11, 3));
}

#[test]
fn a_blocked_large_task_leaves_the_free_bytes_to_others() {
    let now = Instant::now();
    let tasks = [("large", High, 90), ("small", High, 10), ("smaller", Low, 5)];
    let mut gate = gate(80, &tasks, now);
    assert_eq!(go(&mut gate, now), ["small", "smaller"]);
    gate.release(80);
    assert_eq!(go(&mut gate, now), [""; 0]);
    gate.release(15);
    assert_eq!(go(&mut gate, now), ["large"]);
    assert_eq!(gate.stats().passed, 2);
}

#[test]
fn a_reservation_tells_when_it_begins() {
    let now = Instant::now();
    let mut gate = gate(80, &[("large", Normal, 90)], now);
    assert_eq!(gate.next_change(now), Some(now + PATIENCE));
    assert_eq!(gate.next_change(now + PATIENCE), Some(now + HIGHER * PATIENCE));
    gate.release(80);
    assert_eq!(go(&mut gate, now), ["large"]);
    assert_eq!(gate.next_change(now), None);
}

#[test]
fn the_next_head_begins_with_a_clock_of_its_own() {
    let start = Instant::now();
    let mut gate = gate(100, &[("one", Normal, 60), ("two", Normal, 60)], start);
    let later = start + ms(500);
    gate.release(100);
    assert_eq!(go(&mut gate, later), ["one"]);
    gate.request("small", Normal, 10, later).expect("not too large");
    assert_eq!(go(&mut gate, later), ["small"], "the second has waited for no time as a head");
}

#[test]
fn half_the_scale_halves_the_room_and_none_closes_the_gate() {
    let now = Instant::now();
    let mut gate = gate(0, &[], now);
    gate.set_scale(0.5);
    assert_eq!(gate.request("half", Normal, 50, now), Ok(Entry::Admitted("half")));
    assert!(matches!(gate.request("more", Normal, 1, now), Ok(Entry::Waiting(_))));
    gate.release(50);
    gate.set_scale(0.0);
    assert!(matches!(gate.request("nothing", Critical, 0, now), Ok(Entry::Waiting(_))));
    assert_eq!(go(&mut gate, now), [""; 0]);
    gate.set_scale(f64::NAN);
    assert_eq!(go(&mut gate, now), ["nothing", "more"]);
    gate.set_scale(7.0);
    assert_eq!(gate.stats().scaled_bytes, 100);
}

#[test]
fn another_budget_keeps_its_scale_and_its_waiters() {
    let now = Instant::now();
    let mut gate = gate(100, &[("large", High, 80)], now);
    gate.set_scale(0.5);
    gate.set_budget(200);
    assert_eq!((gate.stats().budget_bytes, gate.stats().scaled_bytes), (200, 100));
    gate.release(100);
    assert_eq!(go(&mut gate, now), ["large"]);
    gate.release(80);
    gate.set_scale(1.0);
    assert!(matches!(gate.request("held", Normal, 150, now), Ok(Entry::Admitted(_))));
    gate.set_budget(60);
    assert!(gate.request("more", Normal, 80, now).is_err(), "it can never fit");
    assert!(matches!(gate.request("small", Normal, 10, now), Ok(Entry::Waiting(_))));
    gate.release(150);
    assert_eq!(go(&mut gate, now), ["small"]);
}

#[test]
fn a_task_larger_than_the_scaled_budget_waits_and_keeps_nobody_out() {
    let start = Instant::now();
    let mut gate = gate(100, &[("large", High, 80), ("small", Low, 10)], start);
    gate.set_scale(0.5);
    gate.release(100);
    let later = start + ms(60_000);
    assert_eq!(go(&mut gate, later), ["small"]);
    gate.set_scale(1.0);
    assert_eq!(go(&mut gate, later), ["large"]);
}

#[test]
fn lower_levels_can_be_kept_out() {
    let start = Instant::now();
    let mut gate = gate(100, &[("low", Low, 1), ("high", High, 1)], start);
    gate.set_lowest(High);
    gate.release(100);
    let later = start + ms(60_000);
    assert_eq!(go(&mut gate, later), ["high"]);
    gate.set_lowest(Low);
    assert_eq!(go(&mut gate, later), ["low"]);
}

#[test]
fn a_task_that_is_taken_out_gives_its_place_and_reservation_up() {
    let start = Instant::now();
    let mut gate = MemoryGate::new(100);
    gate.request("held", Normal, 90, start).expect("fits");
    let Ok(Entry::Waiting(large)) = gate.request("large", Normal, 100, start) else {
        panic!("it must wait");
    };
    let later = start + ms(200);
    gate.request("small", Normal, 10, later).expect("not too large");
    assert_eq!(go(&mut gate, later), [""; 0], "room is kept");
    assert_eq!(gate.remove(large), Some("large"));
    assert_eq!(gate.remove(large), None);
    assert_eq!(go(&mut gate, later), ["small"]);
}

#[test]
fn draining_hands_everybody_out_by_level() {
    let now = Instant::now();
    let mut gate = gate(100, &[("low", Low, 1), ("high", High, 1), ("low 2", Low, 1)], now);
    assert_eq!(gate.drain(), ["high", "low", "low 2"]);
    assert_eq!((gate.waiting(), gate.next_change(now)), (0, None));
}

#[test]
fn an_estimate_rises_at_once_and_falls_slowly() {
    let mut estimates = Estimates::new(1);
    assert_eq!(estimates.corrected("thumbnail", 100, 1_000), 100);
    estimates.observe("thumbnail", 100, 200);
    assert_eq!(estimates.corrected("thumbnail", 50, 1_000), 100);
    estimates.observe("thumbnail", 100, 100);
    assert_eq!(estimates.corrected("thumbnail", 100, 1_000), 190);
    estimates.observe("other", 100, 900);
    assert_eq!(estimates.corrected("other", 100, 1_000), 100, "no room for a second type");
    estimates.observe("thumbnail", 0, 900);
    estimates.observe("thumbnail", 1, 900);
    assert_eq!(estimates.corrected("thumbnail", 100, 1_000), 400, "never more than four times");
    assert_eq!(estimates.corrected("thumbnail", 500, 1_000), 1_000, "runs alone");
    assert_eq!(estimates.corrected("thumbnail", 1_001, 1_000), 1_001, "stays too large");
}

#[derive(Clone, Debug)]
enum Step {
    Request(usize, u64),
    Release(usize),
    Remove(usize),
    Scale(u8),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..4, 0_u64..110).prop_map(|(level, bytes)| Step::Request(level, bytes)),
        4 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => (0_u8..=4).prop_map(Step::Scale),
        1 => (0_u64..500).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// A naive account beside the gate: the budget holds, everybody is handed out exactly once, and when
    /// all is given back nobody is left behind.
    #[test]
    fn nobody_is_lost_or_doubled_and_the_budget_holds(steps in steps()) {
        let start = Instant::now();
        let mut now = start;
        let mut gate = MemoryGate::new(100);
        let mut scaled = 100;
        let mut inside: Vec<(u64, u64)> = Vec::new();
        let mut outside: Vec<(u64, Waiting)> = Vec::new();
        let mut number = 0_u64;
        for step in steps {
            match step {
                Step::Request(level, bytes) => {
                    number += 1;
                    match gate.request((number, bytes), Priority::ALL[level], bytes, now) {
                        Ok(Entry::Admitted(item)) => {
                            let used: u64 = inside.iter().map(|(_, bytes)| bytes).sum();
                            prop_assert!(outside.is_empty() && used + bytes <= scaled);
                            inside.push(item);
                        }
                        Ok(Entry::Waiting(waiting)) => outside.push((number, waiting)),
                        Err(_) => prop_assert!(bytes > 100),
                    }
                }
                Step::Release(which) if !inside.is_empty() => {
                    let (_, bytes) = inside.swap_remove(which % inside.len());
                    gate.release(bytes);
                }
                Step::Remove(which) if !outside.is_empty() => {
                    let (number, waiting) = outside.swap_remove(which % outside.len());
                    prop_assert_eq!(gate.remove(waiting).map(|item| item.0), Some(number));
                }
                Step::Scale(quarters) => {
                    scaled = 25 * u64::from(quarters);
                    gate.set_scale(f64::from(quarters) / 4.0);
                }
                Step::Pass(milliseconds) => now += ms(milliseconds),
                Step::Release(_) | Step::Remove(_) => {}
            }
            while let Some((item, bytes)) = gate.next(now) {
                let place = outside.iter().position(|(number, _)| *number == item.0);
                prop_assert!(place.is_some(), "{} was handed out twice", item.0);
                outside.swap_remove(place.expect("checked above"));
                inside.push((item.0, bytes));
                let used: u64 = inside.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(used <= scaled);
            }
            let used: u64 = inside.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(gate.stats().used_bytes, used);
            prop_assert_eq!(gate.waiting(), outside.len());
        }
        gate.set_scale(1.0);
        for (_, bytes) in inside.drain(..) {
            gate.release(bytes);
        }
        while gate.waiting() > 0 {
            let mut ended = 0;
            while let Some((_, bytes)) = gate.next(now) {
                ended += 1;
                gate.release(bytes);
            }
            prop_assert!(ended > 0, "tasks wait at an empty gate");
        }
    }
}
