//! What a task goes through, from outside: results, errors, bounds, groups, dependencies and the end.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scheduler::{
    Lane, Priority, Retry, Scheduler, SchedulerBuilder, ShedReason, TaskContext, TaskError, TaskId,
    TaskState, WhenFull,
};

/// Longer than anything here takes, on any machine.
const LONG: Duration = Duration::from_secs(60);

/// One worker, so that a task that blocks it holds all others in the queue.
fn one_worker() -> SchedulerBuilder {
    Scheduler::builder().cpu_threads(1)
}

fn built(builder: SchedulerBuilder) -> Scheduler {
    builder.build().expect("the settings are valid")
}

/// Holds the only worker until the sender is used or dropped.
fn plug(scheduler: &Scheduler) -> (SyncSender<()>, scheduler::TaskHandle<()>) {
    let (release, released) = sync_channel::<()>(1);
    let (started, begun) = sync_channel::<()>(1);
    let handle = scheduler
        .cpu("plug", move |_| {
            started.send(()).expect("the test waits");
            let _ = released.recv();
        })
        .priority(Priority::Critical)
        .submit()
        .expect("there is room");
    begun.recv().expect("it starts");
    (release, handle)
}

/// Waits until a condition holds that another thread brings about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Collects what tasks say, in the order in which they ran.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn add(&self, entry: u32) {
        self.0.lock().expect("nobody panics here").push(entry);
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.lock().expect("nobody panics here"))
    }
}

#[test]
fn a_closure_gives_its_value_and_waits_are_bounded() {
    let scheduler = built(one_worker());
    assert_eq!(scheduler.cpu("add", |_| 1 + 1).submit().unwrap().wait(), Ok(2));
    let (release, plug) = plug(&scheduler);
    let mut handle = scheduler.cpu("add", |_| 2 + 2).submit().unwrap();
    assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
    assert_eq!(handle.state(), TaskState::Queued);
    drop(release);
    assert_eq!(handle.wait_timeout(LONG), Some(Ok(4)));
    assert_eq!((plug.wait(), handle.state()), (Ok(()), TaskState::Done));
}

#[test]
fn tasks_start_by_level_and_by_deadline_within_it() {
    let scheduler = built(one_worker());
    let (release, _plug) = plug(&scheduler);
    let log = Log::default();
    let now = Instant::now();
    let submit = |entry: u32, priority: Priority, deadline: Option<Duration>| {
        let log = log.clone();
        let task = scheduler.cpu("log", move |_| log.add(entry)).priority(priority);
        match deadline {
            Some(deadline) => task.deadline(now + deadline).submit().unwrap(),
            None => task.submit().unwrap(),
        }
    };
    let handles = [
        submit(30, Priority::Low, None),
        submit(20, Priority::Normal, Some(LONG)),
        submit(21, Priority::Normal, None),
        submit(22, Priority::Normal, Some(Duration::ZERO)),
        submit(10, Priority::High, None),
        submit(0, Priority::Critical, None),
    ];
    drop(release);
    for handle in handles {
        handle.wait().unwrap();
    }
    let order = log.take();
    // On a slow machine an aged level may have had its share in between.
    assert_eq!((order[0], order.len()), (0, 6));
    let of_normal: Vec<u32> = order.into_iter().filter(|it| (20..30).contains(it)).collect();
    assert_eq!(of_normal, [22, 21, 20]);
}

#[test]
fn a_panic_is_an_error_with_its_text_and_the_worker_goes_on() {
    let scheduler = built(one_worker());
    let panicked = |text: &str| Err(TaskError::Panicked(text.to_owned()));
    let run = scheduler.cpu("panic", |_| -> u32 { panic!("broken {}", 7) });
    assert_eq!(run.submit().unwrap().wait(), panicked("broken 7"));
    let run = scheduler.cpu("panic", |_| -> u32 { std::panic::panic_any(7_u32) });
    assert_eq!(run.submit().unwrap().wait(), panicked("a panic without a text"));
    assert_eq!(scheduler.cpu("fine", |_| 1).submit().unwrap().wait(), Ok(1));
}

#[test]
fn a_task_that_is_cancelled_in_the_queue_frees_its_work_and_is_not_run() {
    let scheduler = built(one_worker());
    let (release, _plug) = plug(&scheduler);
    let held = Arc::new(());
    let inside = Arc::clone(&held);
    let handle = scheduler.cpu("held", move |_| drop(inside)).submit().unwrap();
    let other = scheduler.cpu("other", |_| 1).submit().unwrap();
    assert_eq!(Arc::strong_count(&held), 2);
    handle.cancel();
    assert_eq!((Arc::strong_count(&held), handle.state()), (1, TaskState::Failed));
    assert!(scheduler.cancel(other.id()) && !scheduler.cancel(other.id()));
    drop(release);
    assert_eq!(handle.wait(), Err(TaskError::Cancelled));
    assert_eq!(other.wait(), Err(TaskError::Cancelled));
    let stats = scheduler.stats();
    let levels = &stats.lane(Lane::Cpu).levels;
    assert_eq!(levels[Priority::Normal.index()].counts.cancelled, 2);
}

#[test]
fn a_closure_is_told_that_it_is_to_stop() {
    let scheduler = built(one_worker());
    let (started, begun) = sync_channel::<()>(1);
    let (ended, end) = sync_channel::<bool>(1);
    let handle = scheduler
        .cpu("long", move |context| {
            started.send(()).unwrap();
            while context.checkpoint().is_ok() {
                std::thread::yield_now();
            }
            ended.send(context.is_cancelled()).unwrap();
        })
        .submit()
        .unwrap();
    begun.recv().unwrap();
    drop(handle.abort_on_drop(true));
    assert_eq!(end.recv(), Ok(true));
}

#[test]
fn waiting_and_running_time_out_apart() {
    let scheduler = built(one_worker());
    let (release, _plug) = plug(&scheduler);
    let short = Duration::from_millis(1);
    let waits = scheduler.cpu("waits", |_| ()).queue_timeout(short).submit().unwrap();
    let runs = scheduler.cpu("runs", |_| 1).timeout(LONG).queue_timeout(LONG).submit().unwrap();
    assert_eq!(waits.wait(), Err(TaskError::TimedOut));
    drop(release);
    assert_eq!(runs.wait(), Ok(1));
    let (ended, end) = sync_channel::<()>(1);
    let long = scheduler
        .cpu("long", move |context| {
            while !context.is_cancelled() {
                std::thread::yield_now();
            }
            drop(ended);
        })
        .timeout(short)
        .submit()
        .unwrap();
    assert_eq!(long.wait(), Err(TaskError::TimedOut));
    assert!(end.recv().is_err(), "the closure was told");
    let counts = scheduler.stats().lane(Lane::Cpu).levels[2].counts;
    assert_eq!((counts.timed_out, counts.done), (2, 1));
}

#[test]
fn a_full_level_gives_the_task_back_with_a_reason() {
    let scheduler = built(one_worker().level_tasks(Priority::Low, 1));
    let (release, _plug) = plug(&scheduler);
    let task = |value: u32| scheduler.cpu("low", move |_| value).priority(Priority::Low);
    let first = task(1).submit().unwrap();
    let error = task(2).submit().unwrap_err();
    let full = ShedReason::QueueFull { lane: Lane::Cpu, priority: Priority::Low, max: 1 };
    assert_eq!(error.reason(), full);
    drop(release);
    assert_eq!(first.wait(), Ok(1));
    assert_eq!(error.into_task().submit().unwrap().wait(), Ok(2));
    let counts = scheduler.stats().lane(Lane::Cpu).levels[3].counts;
    assert_eq!((counts.submitted, counts.refused), (2, 1));
}

#[test]
fn a_caller_can_wait_for_room() {
    let scheduler = built(one_worker().level_tasks(Priority::Normal, 1));
    let (release, _plug) = plug(&scheduler);
    let first = scheduler.cpu("first", |_| 1).submit().unwrap();
    let second = scheduler.cpu("second", |_| 2).submit_blocking(Duration::from_millis(1));
    assert!(second.is_err());
    let second = scheduler.cpu("second", |_| 2);
    let waiter = std::thread::spawn(move || second.submit_blocking(LONG).unwrap().wait());
    drop(release);
    assert_eq!((first.wait(), waiter.join().unwrap()), (Ok(1), Ok(2)));
}

#[test]
fn a_caller_may_run_what_has_no_room() {
    let builder = one_worker().level_tasks(Priority::Normal, 1);
    let builder = builder.when_full(Lane::Cpu, Priority::Normal, WhenFull::CallerRuns);
    let scheduler = built(builder);
    let (release, _plug) = plug(&scheduler);
    let first = scheduler.cpu("first", |_| ()).submit().unwrap();
    let here = std::thread::current().id();
    let second = scheduler.cpu("second", move |_| std::thread::current().id() == here);
    assert_eq!(second.submit().unwrap().wait(), Ok(true));
    drop(release);
    assert_eq!(first.wait(), Ok(()));
}

#[test]
fn important_work_evicts_the_newest_of_the_least_important() {
    let builder = one_worker().lane_tasks(2);
    let builder = builder.when_full(Lane::Cpu, Priority::High, WhenFull::EvictLower);
    let scheduler = built(builder);
    let (release, _plug) = plug(&scheduler);
    let low = |value: u32| scheduler.cpu("low", move |_| value).priority(Priority::Low);
    let (old, new) = (low(1).submit().unwrap(), low(2).submit().unwrap());
    let high = |value: u32| scheduler.cpu("high", move |_| value).priority(Priority::High);
    let first = high(3).submit().unwrap();
    let reason = ShedReason::Evicted;
    assert_eq!(new.wait(), Err(TaskError::Shed { reason, retry_after: None }));
    assert!(low(4).submit().is_err());
    let second = high(5).submit().unwrap();
    assert!(old.wait().is_err());
    assert_eq!(
        high(6).submit().unwrap_err().reason(),
        ShedReason::LaneFull { lane: Lane::Cpu, max: 2 }
    );
    drop(release);
    assert_eq!((first.wait(), second.wait()), (Ok(3), Ok(5)));
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let scheduler = built(one_worker().level_tasks(Priority::Normal, 3));
    let (release, _plug) = plug(&scheduler);
    let batch =
        |size: u64| scheduler.cpu_all("batch", (0..size).map(|n| move |_: &TaskContext<'_>| n * n));
    let error = batch(4).submit_all().unwrap_err();
    assert_eq!(error.into_task().len(), 4);
    let handles = batch(3).submit_all().unwrap();
    drop(release);
    let results: Vec<u64> = handles.into_iter().map(|handle| handle.wait().unwrap()).collect();
    assert_eq!(results, [0, 1, 4]);
}

#[test]
fn a_task_runs_after_those_it_waits_for() {
    let scheduler = built(one_worker());
    let (release, _plug) = plug(&scheduler);
    let log = Log::default();
    let task = |entry: u32, priority: Priority| {
        let log = log.clone();
        scheduler.cpu("log", move |_| log.add(entry)).priority(priority)
    };
    let first = task(1, Priority::Low).submit().unwrap();
    let second = task(2, Priority::Low).submit().unwrap();
    let last = task(3, Priority::Critical).after(&[first.id(), second.id()]).submit().unwrap();
    assert_eq!(last.state(), TaskState::Held);
    drop(release);
    assert_eq!(last.wait(), Ok(()));
    assert_eq!(log.take(), [1, 2, 3]);
    let after_the_end = task(4, Priority::Low).after(&[first.id()]).submit().unwrap();
    assert_eq!(after_the_end.wait(), Ok(()));
}

#[test]
fn a_failure_passes_on_to_all_that_depend_on_it() {
    let scheduler = built(one_worker());
    let (release, _plug) = plug(&scheduler);
    let first = scheduler.cpu("first", |_| -> () { panic!("no") }).submit().unwrap();
    let mut chain = vec![first];
    // Long enough to overflow the stack if it were followed by recursion.
    for _ in 0..10_000 {
        let before = chain.last().expect("it is not empty").id();
        chain.push(scheduler.cpu("next", |_| ()).after(&[before]).submit().unwrap());
    }
    drop(release);
    let mut before: Option<TaskId> = None;
    for handle in chain {
        let id = handle.id();
        let error = handle.wait().unwrap_err();
        match before {
            None => assert_eq!(error, TaskError::Panicked("no".to_owned())),
            Some(before) => assert_eq!(error, TaskError::DependencyFailed(before)),
        }
        before = Some(id);
    }
    let late = scheduler.cpu("late", |_| ()).after(&before.map(|it| [it]).unwrap());
    let error = late.submit().unwrap().wait().unwrap_err();
    assert_eq!(Some(error), before.map(TaskError::DependencyFailed));
}

#[test]
fn tasks_cannot_be_made_to_wait_for_each_other() {
    let scheduler = built(one_worker());
    let (_release, plug) = plug(&scheduler);
    // To close a circle, the first task has to name one that comes later.
    let later = TaskId::from_number(plug.id().get() + (1 << 24)).expect("it looks like an id");
    let error = scheduler.cpu("first", |_| ()).after(&[later]).submit().unwrap_err();
    assert_eq!(error.reason(), ShedReason::DependencyUnknown { dependency: later });
    assert_eq!(
        error.to_string(),
        format!("the task was refused: no task {later} has been submitted")
    );
}

#[test]
fn a_group_gives_its_results_in_order_and_marks_what_has_not_ended() {
    let scheduler = built(Scheduler::builder().cpu_threads(2));
    let (_release, gate) = sync_channel::<()>(1);
    let mut group = scheduler.group();
    group.spawn(scheduler.cpu("quick", |_| 1)).unwrap();
    let gate: Receiver<()> = gate;
    let slow = scheduler.cpu("slow", move |context| {
        while gate.recv_timeout(Duration::from_millis(1)).is_err() && !context.is_cancelled() {}
        2
    });
    group.spawn(slow).unwrap();
    group.spawn(scheduler.cpu("quick", |_| 3)).unwrap();
    let results = group.join_all_blocking(Some(Duration::from_millis(300)));
    assert_eq!(results, [Ok(1), Err(TaskError::TimedOut), Ok(3)]);
    until("the rest was cancelled", || scheduler.stats().lane(Lane::Cpu).running == 0);
}

#[test]
fn a_group_keeps_its_limit_and_ends_at_the_first_failure() {
    let scheduler = built(Scheduler::builder().cpu_threads(2));
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let mut group = scheduler.group().limit(1);
    for n in 0..20_u32 {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        let task = scheduler.cpu("limited", move |_| {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, SeqCst);
            n
        });
        group.spawn(task).unwrap();
    }
    assert_eq!(group.try_join_all_blocking(), Ok((0..20).collect()));
    assert_eq!(most.load(SeqCst), 1);

    let mut group = scheduler.group();
    let forever = scheduler.cpu("forever", |context| {
        while !context.is_cancelled() {
            std::thread::yield_now();
        }
    });
    group.spawn(forever).unwrap();
    group.spawn(scheduler.cpu("fails", |_| panic!("no"))).unwrap();
    assert_eq!(group.try_join_all_blocking(), Err(TaskError::Panicked("no".to_owned())));
    until("the other was cancelled", || scheduler.stats().lane(Lane::Cpu).running == 0);
}

#[test]
fn the_first_value_of_a_group_ends_the_others() {
    let scheduler = built(Scheduler::builder().cpu_threads(2));
    let mut group = scheduler.group();
    let forever = scheduler.cpu("forever", |context| {
        while !context.is_cancelled() {
            std::thread::yield_now();
        }
        0
    });
    group.spawn(forever).unwrap();
    group.spawn(scheduler.cpu("fails", |_| -> u32 { panic!("no") })).unwrap();
    group.spawn(scheduler.cpu("value", |_| 7)).unwrap();
    assert_eq!(group.first_blocking(), Ok(7));
    until("the other was cancelled", || scheduler.stats().lane(Lane::Cpu).running == 0);
    assert_eq!(scheduler.group::<()>().first_blocking(), Err(TaskError::Cancelled));
}

#[test]
fn a_closure_is_tried_again_until_it_succeeds_or_may_not() {
    let scheduler = built(one_worker());
    let retry = || Retry::exponential(3).delays(Duration::from_micros(1), Duration::from_millis(1));
    let mut left = 2;
    let succeeds = scheduler.cpu_retry("retry", retry(), move |_| {
        left -= 1;
        if left < 0 { Ok(7) } else { Err("not yet") }
    });
    assert_eq!(succeeds.submit().unwrap().wait(), Ok(Ok(7)));
    let fails = scheduler.cpu_retry("retry", retry(), |_| Err::<(), _>("never"));
    assert_eq!(fails.submit().unwrap().wait(), Ok(Err("never")));
    let counts = scheduler.stats().lane(Lane::Cpu).levels[2].counts;
    assert_eq!((counts.retried, counts.done, counts.failed), (5, 1, 1));
}

#[test]
fn tasks_submit_tasks_and_wait_for_them_with_one_worker() {
    fn tree(scheduler: &Scheduler, depth: u32) -> u32 {
        if depth == 0 {
            return 1;
        }
        let branch = || {
            let inner = scheduler.clone();
            scheduler.cpu("branch", move |_| tree(&inner, depth - 1)).submit().unwrap()
        };
        let (left, right) = (branch(), branch());
        left.wait().unwrap() + right.wait().unwrap()
    }
    let scheduler = built(one_worker());
    let inner = scheduler.clone();
    let root = scheduler.cpu("root", move |_| tree(&inner, 5)).submit().unwrap();
    assert_eq!(root.wait(), Ok(32));
}

#[test]
fn a_long_closure_lets_more_important_work_run_at_its_checkpoints() {
    let scheduler = built(one_worker());
    let (submitted, go) = sync_channel::<()>(1);
    let (started, begun) = sync_channel::<()>(1);
    let log = Log::default();
    let inner = log.clone();
    let long = scheduler
        .cpu("long", move |context| {
            started.send(()).unwrap();
            go.recv().unwrap();
            // The lock of the lane may be taken for a moment.
            for _ in 0..1_000 {
                context.checkpoint().unwrap();
            }
            inner.add(2);
        })
        .priority(Priority::Normal)
        .submit()
        .unwrap();
    begun.recv().unwrap();
    let entry = |n: u32| {
        let log = log.clone();
        scheduler.cpu("entry", move |_| log.add(n))
    };
    let low = entry(3).priority(Priority::Low).submit().unwrap();
    let high = entry(1).priority(Priority::High).submit().unwrap();
    submitted.send(()).unwrap();
    for handle in [long, low, high] {
        handle.wait().unwrap();
    }
    assert_eq!(log.take(), [1, 2, 3]);
}

#[test]
fn parallel_work_inside_a_task_uses_the_pool_and_runs_no_other_task_on_its_stack() {
    let scheduler = built(Scheduler::builder().cpu_threads(2));
    let lock = Arc::new(Mutex::new(()));
    let mut group = scheduler.group();
    for n in 0..200_u64 {
        let lock = Arc::clone(&lock);
        let task = scheduler.cpu("parallel", move |_| {
            // With another task on top of this one the lock would be taken twice by one thread.
            let _held = lock.lock().unwrap();
            let (left, right) = rayon::join(
                || (0..100 * n).fold(0, |sum: u64, it| sum ^ it),
                || (0..100 * n).fold(0, |sum: u64, it| sum ^ it),
            );
            left == right
        });
        group.spawn(task).unwrap();
    }
    let results = group.join_all_blocking(Some(LONG));
    assert!(results.into_iter().all(|result| result == Ok(true)));
}

#[test]
fn tasks_are_listed_within_a_bound_and_can_be_cancelled_by_id() {
    let scheduler = built(one_worker());
    let (release, plug) = plug(&scheduler);
    let waiting: Vec<_> =
        (0..10).map(|_| scheduler.cpu("waits", |_| ()).memory_bytes(5).submit().unwrap()).collect();
    let tasks = scheduler.tasks(4);
    assert_eq!(tasks.len(), 4);
    let first = tasks[0];
    assert_eq!((first.id, first.name, first.state), (plug.id(), "plug", TaskState::Running));
    assert!(
        tasks[1..]
            .iter()
            .all(|it| (it.name, it.bytes, it.state) == ("waits", 5, TaskState::Queued))
    );
    assert_eq!(scheduler.state(waiting[0].id()), Some(TaskState::Queued));
    assert!(waiting.iter().all(|handle| scheduler.cancel(handle.id())));
    assert_eq!(scheduler.tasks(4).len(), 1);
    drop(release);
    plug.wait().unwrap();
}

#[test]
fn draining_finishes_what_it_can_and_names_what_it_cannot() {
    let scheduler = built(one_worker());
    let done = scheduler.cpu("done", |_| ()).submit().unwrap();
    let report = scheduler.drain_blocking(LONG);
    assert!(report.is_complete() && done.wait().is_ok());
    let error = scheduler.cpu("late", |_| ()).submit().unwrap_err();
    assert_eq!(error.reason(), ShedReason::Closing);

    let scheduler = built(one_worker());
    let (release, plug) = plug(&scheduler);
    let waits = scheduler.cpu("waits", |_| ()).submit().unwrap();
    let report = scheduler.drain_blocking(Duration::from_millis(20));
    let names = |list: &[scheduler::TaskInfo]| list.iter().map(|it| it.name).collect::<Vec<_>>();
    assert_eq!((names(&report.dropped), names(&report.stopped)), (vec!["waits"], vec!["plug"]));
    let reason = ShedReason::Closing;
    assert_eq!(waits.wait(), Err(TaskError::Shed { reason, retry_after: None }));
    assert_eq!(plug.wait(), Err(TaskError::Cancelled));
    drop(release);
    assert!(scheduler.drain_blocking(LONG).is_complete());
}

#[test]
fn dropping_the_scheduler_ends_every_task_and_waits_for_none() {
    let scheduler = built(one_worker());
    let (release, plug) = plug(&scheduler);
    let waits = scheduler.cpu("waits", |_| ()).submit().unwrap();
    let held = scheduler.cpu("held", |_| ()).after(&[waits.id()]).submit().unwrap();
    drop(scheduler);
    let reason = ShedReason::Closing;
    assert_eq!(waits.wait(), Err(TaskError::Shed { reason, retry_after: None }));
    assert!(held.wait().is_err());
    assert_eq!(plug.wait(), Err(TaskError::Cancelled));
    drop(release);
}

#[test]
fn all_problems_of_the_settings_are_told_at_once() {
    let builder = Scheduler::builder().cpu_threads(0).io_slots(0).lane_tasks(usize::MAX);
    assert_eq!(
        builder.build().unwrap_err().to_string(),
        "invalid scheduler, 3 problems:\n  cpu_threads = 0: must be from 1 to 65536\n  io_slots = 0: \
         must be from 1 to 65536\n  lane_tasks = 18446744073709551615: must be from 1 to 4000000"
    );
}
