//! The rules at work in a scheduler: memory, overload, limits, the watchdog, and kept threads.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scheduler::{
    CoDelSettings, Lane, LaneHealth, LimitReason, Priority, Scheduler, SchedulerBuilder,
    SchedulerEvent, ShedReason, TaskError,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn one_worker() -> SchedulerBuilder {
    Scheduler::builder().cpu_threads(1)
}

/// A runtime for the lanes that need one.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).build().expect("threads can be had")
}

/// Submits a task that keeps the worker until the sender is dropped, and waits until it runs.
fn occupy(scheduler: &Scheduler) -> SyncSender<()> {
    let (release, released) = sync_channel::<()>(1);
    let (begun, begins) = sync_channel(1);
    let task = scheduler.cpu("occupy", move |_| {
        begun.send(()).expect("the test listens");
        let _ = released.recv();
    });
    task.spawn().expect("there is room");
    begins.recv_timeout(PATIENCE).expect("the worker is free");
    release
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(ms(1));
    }
}

fn next<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("something comes")
}

#[test]
fn tasks_that_declare_memory_never_hold_more_than_the_budget_together() {
    let scheduler =
        Scheduler::builder().cpu_threads(4).memory_budget_bytes(100).build().expect("valid");
    let (held, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let handles: Vec<_> = (0..200_u64)
        .map(|number| {
            let (held, most) = (Arc::clone(&held), Arc::clone(&most));
            let bytes = 1 + number * 37 % 100;
            let task = scheduler.cpu("load", move |_| {
                most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                thread::yield_now();
                held.fetch_sub(bytes, Ordering::SeqCst);
            });
            let priority = Priority::ALL[number as usize % 4];
            task.memory_bytes(bytes).priority(priority).submit().expect("there is room")
        })
        .collect();
    for handle in handles {
        handle.wait().expect("it runs");
    }
    assert!((1..=100).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    wait_until("all bytes back", || {
        scheduler.memory_stats().is_some_and(|stats| stats.used_bytes == 0 && stats.waiting == 0)
    });
}

#[test]
fn a_task_larger_than_the_budget_is_refused_with_both_numbers_and_given_back() {
    let scheduler = one_worker().memory_budget_bytes(100).build().expect("valid");
    let error = scheduler.cpu("load", |_| 7).memory_bytes(101).submit().expect_err("too large");
    assert_eq!(error.reason(), ShedReason::MemoryBudget { bytes: 101, budget: 100 });
    let text = error.to_string();
    assert!(text.contains("101") && text.contains("100"), "{text}");
    let task = error.into_task().memory_bytes(100);
    assert_eq!(task.submit().expect("fits").wait(), Ok(7));
}

#[test]
fn a_closed_gate_keeps_tasks_waiting_until_it_opens_and_lets_others_run() {
    let scheduler = one_worker().memory_budget_bytes(100).build().expect("valid");
    scheduler.set_memory_scale(0.0);
    let waits = scheduler.cpu("load", |_| 1).memory_bytes(10).submit().expect("there is room");
    let cancelled = scheduler.cpu("load", |_| 2).memory_bytes(10).submit().expect("room");
    assert_eq!(scheduler.cpu("light", |_| 3).submit().expect("there is room").wait(), Ok(3));
    assert_eq!(scheduler.memory_stats().expect("a budget").waiting, 2);
    cancelled.cancel();
    assert_eq!(cancelled.wait(), Err(TaskError::Cancelled));
    scheduler.set_memory_scale(1.0);
    assert_eq!(waits.wait(), Ok(1));
    let stats = scheduler.memory_stats().expect("a budget");
    assert_eq!((stats.waiting, stats.admitted), (0, 1));
}

#[test]
fn a_task_that_waits_for_another_takes_no_memory_meanwhile() {
    let scheduler = one_worker().memory_budget_bytes(100).build().expect("valid");
    let release = occupy(&scheduler);
    let first = scheduler.cpu("first", |_| ()).memory_bytes(100).submit().expect("room");
    let second = scheduler.cpu("second", |_| ()).memory_bytes(100).after(&[first.id()]);
    let second = second.submit().expect("there is room");
    assert_eq!(scheduler.memory_stats().expect("a budget").used_bytes, 100);
    drop(release);
    assert_eq!((first.wait(), second.wait()), (Ok(()), Ok(())));
}

#[test]
fn measured_peaks_correct_what_a_type_of_task_declares() {
    let scheduler = one_worker().memory_budget_bytes(1_000).build().expect("valid");
    scheduler.observe_memory("resize", 100, 300);
    let release = occupy(&scheduler);
    let resize = scheduler.cpu("resize", |_| ()).memory_bytes(100).submit().expect("room");
    let other = scheduler.cpu("other", |_| ()).memory_bytes(100).submit().expect("room");
    assert_eq!(scheduler.memory_stats().expect("a budget").used_bytes, 400);
    drop(release);
    assert_eq!((resize.wait(), other.wait()), (Ok(()), Ok(())));
}

#[test]
fn an_overloaded_level_sheds_what_is_too_old_with_a_hint_and_loses_nobody() {
    let settings = CoDelSettings { target: ms(1), interval: ms(5), shed_after: ms(10) };
    let scheduler = one_worker().codel(Priority::Low, settings).build().expect("valid");
    let release = occupy(&scheduler);
    let ran = Arc::new(AtomicUsize::new(0));
    let handles: Vec<_> = (0..60)
        .map(|_| {
            let ran = Arc::clone(&ran);
            let task = scheduler.cpu("page", move |_| {
                ran.fetch_add(1, Ordering::SeqCst);
                thread::sleep(ms(3));
            });
            task.priority(Priority::Low).submit().expect("there is room")
        })
        .collect();
    thread::sleep(ms(20));
    drop(release);
    let (mut done, mut shed) = (0, 0);
    for handle in handles {
        match handle.wait() {
            Ok(()) => done += 1,
            Err(TaskError::Shed {
                reason: ShedReason::Overload { lane, priority },
                retry_after,
            }) => {
                assert_eq!((lane, priority), (Lane::Cpu, Priority::Low));
                assert!(retry_after.is_some_and(|after| !after.is_zero()));
                shed += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((done + shed, done), (60, ran.load(Ordering::SeqCst)));
    assert!(shed > 0 && done > 0, "{done} done, {shed} shed");
    let stats = scheduler.stats();
    let level = &stats.lanes[Lane::Cpu.index()].levels[Priority::Low.index()];
    assert_eq!(level.counts.shed, shed as u64);
}

#[test]
fn the_limit_of_blocking_tasks_that_sleep_rises_with_a_reason() {
    let runtime = runtime();
    let scheduler = one_worker()
        .runtime(runtime.handle().clone())
        .blocking_slots(1)
        .limit_range(Lane::Blocking, 1, 3)
        .build()
        .expect("valid");
    let stop = Arc::new(AtomicUsize::new(0));
    wait_until("a higher limit", || {
        let stop = Arc::clone(&stop);
        let lane = &scheduler.stats().lanes[Lane::Blocking.index()];
        if lane.levels[Priority::Normal.index()].queued < 20 {
            let task = scheduler.blocking("read", move |_| {
                thread::sleep(ms(10));
                stop.fetch_add(1, Ordering::SeqCst);
            });
            task.spawn().expect("there is room");
        }
        // The event comes a moment after the change.
        lane.slots > 1 && !scheduler.events().is_empty()
    });
    let change = scheduler.events().into_iter().find_map(|event| match event {
        SchedulerEvent::LimitChanged(change) => Some(change),
        _ => None,
    });
    let change = change.expect("the limit moved");
    assert_eq!((change.lane, change.from, change.to), (Lane::Blocking, 1, 2));
    assert!(matches!(change.reason, LimitReason::Waiting { waited } if waited > 0.5));
}

#[test]
fn a_limit_set_by_hand_is_an_event_and_stays_in_its_bounds() {
    let scheduler = Scheduler::builder().cpu_threads(2).build().expect("valid");
    let slots = || scheduler.stats().lanes[Lane::Cpu.index()].slots;
    scheduler.set_limit(Lane::Cpu, Some(100));
    assert_eq!(slots(), 2, "never more than the threads");
    scheduler.set_limit(Lane::Cpu, Some(1));
    assert_eq!(slots(), 1);
    scheduler.set_limit(Lane::Cpu, None);
    assert_eq!(slots(), 2);
    let reasons: Vec<String> = scheduler.events().iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        ["cpu limit 2 -> 1: set by hand", "cpu limit 1 -> 2: no longer set by hand"]
    );
}

#[test]
fn the_watchdog_names_a_task_that_holds_its_worker_once() {
    let (sender, events) = sync_channel(16);
    let scheduler = one_worker()
        .hold_limit(Lane::Cpu, Some(ms(20)))
        .on_event(move |event| sender.send(*event).expect("the test listens"))
        .build()
        .expect("valid");
    let release = occupy(&scheduler);
    let SchedulerEvent::HeldTooLong(held) = next(&events) else { panic!("another event") };
    assert_eq!((held.task_type, held.lane, held.limit), ("occupy", Lane::Cpu, ms(20)));
    assert!(held.held > ms(20));
    let health = || scheduler.stats().lane(Lane::Cpu).health;
    assert_eq!(health(), LaneHealth::Healthy, "nothing waits");
    let waits = scheduler.cpu("waits", |_| ()).submit().expect("there is room");
    assert_eq!(health(), LaneHealth::Stalled, "every worker is held too long");
    assert!(events.recv_timeout(ms(250)).is_err(), "it is named once");
    drop(release);
    assert_eq!(waits.wait(), Ok(()));
}

#[test]
fn a_kept_thread_runs_important_tasks_while_all_workers_are_busy() {
    let scheduler = one_worker().reserve_threads(Priority::High, 1).build().expect("valid");
    let release = occupy(&scheduler);
    let order = Arc::new(Mutex::new(Vec::new()));
    let task = |name, priority| {
        let order = Arc::clone(&order);
        let task = scheduler.cpu(name, move |_| order.lock().expect("no panics").push(name));
        task.priority(priority).submit().expect("there is room")
    };
    let low = task("low", Priority::Normal);
    // The worker is held, so only the kept thread can do it.
    assert_eq!(task("high", Priority::High).wait(), Ok(()));
    assert_eq!(task("critical", Priority::Critical).wait(), Ok(()));
    assert_eq!(*order.lock().expect("no panics"), ["high", "critical"]);
    drop(release);
    assert_eq!(low.wait(), Ok(()));
}

#[cfg(target_os = "linux")]
#[test]
fn workers_are_nice_and_kept_threads_are_not() {
    let before = scheduler::nice();
    let scheduler =
        one_worker().cpu_nice(19).reserve_threads(Priority::High, 1).build().expect("valid");
    let low = scheduler.cpu("low", |_| scheduler::nice()).submit().expect("there is room");
    assert_eq!(low.wait(), Ok(Some(19)));
    let release = occupy(&scheduler);
    let high = scheduler.cpu("high", |_| scheduler::nice()).priority(Priority::High);
    assert_eq!(high.submit().expect("there is room").wait(), Ok(before));
    drop(release);
}

#[test]
fn the_drop_waits_for_no_task_of_a_kept_thread() {
    let scheduler = one_worker().reserve_threads(Priority::High, 1).build().expect("valid");
    let release = occupy(&scheduler);
    let (begun, begins) = sync_channel(1);
    let (end, ends) = sync_channel::<()>(1);
    let stuck = scheduler.cpu("stuck", move |_| {
        begun.send(()).expect("the test listens");
        let _ = ends.recv();
    });
    stuck.priority(Priority::High).spawn().expect("there is room");
    next(&begins);
    // Neither has been told to go on, so a drop that waits for one of them does not come back.
    drop(scheduler);
    drop((release, end));
}

#[test]
fn a_scheduler_with_every_rule_ends() {
    let runtime = runtime();
    for _ in 0..20 {
        let scheduler = one_worker()
            .runtime(runtime.handle().clone())
            .reserve_threads(Priority::Critical, 2)
            .limit_range(Lane::Blocking, 1, 8)
            .limit_range(Lane::Io, 1, 8)
            .memory_budget_bytes(10)
            .blocking_slots(2)
            .io_slots(2)
            .build()
            .expect("valid");
        for number in 0..20 {
            let task = scheduler.cpu("any", |_| ()).memory_bytes(number % 10);
            task.priority(Priority::ALL[number as usize % 4]).spawn().expect("there is room");
        }
        let start = Instant::now();
        drop(scheduler);
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn every_problem_of_the_rules_is_named_at_once() {
    let error = Scheduler::builder()
        .limit_range(Lane::Cpu, 1, 2)
        .limit_range(Lane::Io, 5, 4)
        .reserve_threads(Priority::Low, 1)
        .cpu_nice(20)
        .memory_budget_bytes(0)
        .build()
        .expect_err("nothing of it can be used");
    let text = error.to_string();
    for part in ["5 problems", "limit_range", "reserve_threads", "cpu_nice", "memory_budget_bytes"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}
