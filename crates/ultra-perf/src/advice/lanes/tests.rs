//! Each rule at its threshold and below, with its numbers, its action and what undoes it.

use serde_json::json;

use super::*;

fn aims() -> Aims<'static> {
    Aims {
        hit_ratio: 0.8,
        queue_wait: Duration::from_millis(50),
        window: Duration::from_secs(600),
        score: None,
    }
}

/// A busy lane whose tasks wait.
fn lane(lane: Lane) -> LaneReading {
    LaneReading {
        lane,
        limit: 100,
        most: 1_000,
        busy: 0.97,
        wait_seconds: Some(0.2),
        cpu: Some(0.4),
        cpu_pressure: Some(0.01),
        running: Some([97.0, 97.0]),
        ended: Some([10_000.0, 10_000.0]),
        tasks: 20_000.0,
        retried: 0.0,
        lost: 0.0,
        oldest: None,
    }
}

type Check = fn(&LaneReading, &Aims<'_>) -> Option<Finding>;

#[track_caller]
fn says(rule: Check, of: &LaneReading, title: &str, action: Option<(&str, usize, usize)>) {
    let finding = rule(of, &aims()).expect("there is something to say");
    assert_eq!(finding.title, title);
    assert_eq!(finding.subject, of.lane.name());
    assert!(!finding.why.is_empty() && finding.current_value.is_some());
    assert_eq!(finding.target.is_some(), action.is_some(), "a change is for a metric");
    let set = finding.action.as_ref().map(|it| (it.path.as_str(), it.from.clone(), it.to.clone()));
    assert_eq!(set, action.map(|(path, from, to)| (path, json!(from), json!(to))));
    if let (Some(action), Some((_, from, _))) = (&finding.action, action) {
        assert_eq!(action.inverse().to, json!(from));
    }
}

#[track_caller]
fn silent(rule: Check, of: &LaneReading) {
    assert_eq!(rule(of, &aims()), None);
}

#[test]
fn a_lane_that_waits_for_others_gets_a_quarter_more() {
    let title = "Lane `io`: one of 20 tasks waits longer than 200 ms (aimed at 50 ms), 97 % of 100 slots \
        are taken, and the processors are busy 40 %";
    let io = lane(Lane::Io);
    says(under_parallel, &io, title, Some(("scheduler.io.max_in_flight", 100, 125)));
    silent(under_parallel, &LaneReading { wait_seconds: Some(0.05), ..io.clone() });
    silent(under_parallel, &LaneReading { busy: 0.9, ..io.clone() });
    silent(under_parallel, &LaneReading { cpu: Some(0.7), ..io.clone() });
    silent(under_parallel, &LaneReading { cpu: None, ..io.clone() });
    silent(under_parallel, &LaneReading { tasks: 99.0, ..io });
}

#[test]
fn threads_that_are_not_there_cannot_be_added_while_the_program_runs() {
    let cpu = LaneReading { limit: 4, most: 4, ..lane(Lane::Cpu) };
    let title = "Lane `cpu`: one of 20 tasks waits longer than 200 ms (aimed at 50 ms), 97 % of 4 slots \
        are taken, and the processors are busy 40 %";
    says(under_parallel, &cpu, title, None);
    let lowered = LaneReading { most: 5, ..cpu };
    says(under_parallel, &lowered, title, Some(("scheduler.cpu.threads", 4, 5)));
}

#[test]
fn what_brings_no_more_is_taken_back() {
    let of = LaneReading {
        cpu_pressure: Some(0.3),
        running: Some([80.0, 96.0]),
        ended: Some([10_000.0, 10_100.0]),
        ..lane(Lane::Blocking)
    };
    let title = "Lane `blocking`: 20 % more tasks ran at a time and 1.0 % more ended, while tasks waited \
        for a processor 30 % of the time";
    says(over_parallel, &of, title, Some(("scheduler.blocking.max", 100, 80)));
    silent(over_parallel, &LaneReading { cpu_pressure: Some(0.2), ..of.clone() });
    silent(over_parallel, &LaneReading { ended: Some([10_000.0, 10_300.0]), ..of.clone() });
    silent(over_parallel, &LaneReading { running: Some([90.0, 96.0]), ..of.clone() });
    silent(over_parallel, &LaneReading { limit: 1, ..of });
}

#[test]
fn a_level_that_waits_ten_times_as_long_as_it_may_starves() {
    let of = |seconds| LaneReading {
        oldest: Some((Level::Low, Duration::from_secs(seconds), Duration::from_secs(1))),
        ..lane(Lane::Cpu)
    };
    let title = "Lane `cpu`: the oldest task of level low has waited 12 s (it may wait 1 s)";
    says(starvation, &of(12), title, None);
    silent(starvation, &of(9));
    silent(starvation, &lane(Lane::Cpu));
}

#[test]
fn attempts_upon_attempts_are_a_storm() {
    let of = |retried| LaneReading { tasks: 1_000.0, retried, ..lane(Lane::Io) };
    says(retry_storm, &of(500.0), "Lane `io`: 33 % of 1500 executions are further attempts", None);
    silent(retry_storm, &of(250.0));
}

#[test]
fn tasks_that_are_turned_away_are_told() {
    let of = |lost| LaneReading { tasks: 1_000.0, lost, ..lane(Lane::Io) };
    let title = "Lane `io`: 20 of 1000 tasks were refused, given up or timed out (2.0 %)";
    says(shedding, &of(20.0), title, None);
    silent(shedding, &of(10.0));
}

#[test]
fn workers_that_are_busy_without_computing_wait_inside_of_tasks() {
    let of = |busy, cpu| blocking_in_async(&WorkersReading { workers: 4.0, busy, cpu });
    let finding = of(3.6, 0.6).expect("three of four wait");
    assert_eq!(
        finding.title,
        "3 of 4 workers of the runtime wait inside of tasks (75 % of their time)"
    );
    assert_eq!(finding.action, None);
    assert_eq!(of(3.6, 2.9), None, "a fifth may be");
    assert_eq!(of(1.0, 3.0), None, "other threads compute as well");
}
