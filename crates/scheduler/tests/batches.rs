//! Short tasks are started in batches, and nobody sees it: order, listing, cancelling, dependencies and
//! waiting are as if every task were started alone.
//!
//! A drainer batches tasks of types that have been short so far. So each test first lets a type be short,
//! and then one task of it blocks, with others of the batch behind it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scheduler::{Lane, Priority, Scheduler, TaskError, TaskHandle, TaskId, TaskState};

/// Longer than anything here takes, on any machine.
const LONG: Duration = Duration::from_secs(60);
const SHORT: &str = "short";

/// Makes a scheduler that knows the tasks of a type as short.
fn with_short_tasks(threads: usize) -> Scheduler {
    let scheduler = Scheduler::builder().cpu_threads(threads).build().expect("valid settings");
    for _ in 0..20 {
        let tasks = (0..50).map(|_| |_: &scheduler::TaskContext<'_>| ());
        let handles = scheduler.cpu_all(SHORT, tasks).submit_all().expect("there is room");
        handles.into_iter().for_each(|handle| handle.wait().expect("it runs"));
    }
    until("all are counted", || scheduler.stats().lane(Lane::Cpu).running == 0);
    scheduler
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Holds a worker until the sender is used or dropped.
fn block(scheduler: &Scheduler, name: &'static str) -> (SyncSender<()>, Receiver<()>, TaskId) {
    let (release, released) = sync_channel::<()>(1);
    let (started, begun) = sync_channel::<()>(1);
    let task = scheduler.cpu(name, move |_| {
        started.send(()).expect("the test waits");
        let _ = released.recv();
    });
    let id = task.spawn().expect("there is room");
    (release, begun, id)
}

/// A worker that is blocked by a short task with others of its type behind it.
struct Blocked {
    scheduler: Scheduler,
    release: SyncSender<()>,
    blocker: TaskId,
    behind: Vec<TaskHandle<usize>>,
    log: Arc<Mutex<Vec<usize>>>,
}

/// Blocks one worker of `threads`; the others are free.
fn blocked(threads: usize, before: usize, behind: usize) -> Blocked {
    let scheduler = with_short_tasks(threads);
    let plugs: Vec<_> = (0..threads).map(|_| block(&scheduler, "plug")).collect();
    plugs.iter().for_each(|(_, begun, _)| begun.recv().expect("it starts"));
    let log = Arc::new(Mutex::new(Vec::new()));
    let task = |number: usize| {
        let log = Arc::clone(&log);
        let task = scheduler.cpu(SHORT, move |_| {
            log.lock().expect("nobody panics").push(number);
            number
        });
        task.submit().expect("there is room")
    };
    let first: Vec<_> = (0..before).map(task).collect();
    let (release, begun, blocker) = block(&scheduler, SHORT);
    let behind = (before..before + behind).map(task).collect();
    // One worker goes on, and the others after it has come to the blocker.
    let mut plugs = plugs.into_iter();
    drop(plugs.next());
    begun.recv().expect("it starts");
    drop(plugs);
    first.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    Blocked { scheduler, release, blocker, behind, log }
}

#[test]
fn a_more_important_task_goes_before_what_was_claimed() {
    let Blocked { scheduler, release, behind, log, .. } = blocked(1, 0, 12);
    let important = Arc::clone(&log);
    let high = scheduler.cpu("high", move |_| important.lock().expect("nobody panics").push(99));
    let high = high.priority(Priority::High).submit().expect("there is room");
    let last = Arc::clone(&log);
    let low = scheduler.cpu(SHORT, move |_| last.lock().expect("nobody panics").push(100));
    let low = low.priority(Priority::Low).submit().expect("there is room");
    drop(release);
    high.wait().expect("it runs");
    behind.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    low.wait().expect("it runs");
    let order = log.lock().expect("nobody panics").clone();
    let expected: Vec<usize> = [99].into_iter().chain(0..12).chain([100]).collect();
    assert_eq!(order, expected, "and the others in the order in which they came");
}

#[test]
fn a_more_important_task_that_was_held_goes_before_what_was_claimed() {
    let Blocked { scheduler, release, behind, log, .. } = blocked(1, 0, 12);
    let important = Arc::clone(&log);
    let high = scheduler.cpu("high", move |_| important.lock().expect("nobody panics").push(99));
    let high = high.priority(Priority::High).queue_timeout(LONG).submit().expect("there is room");
    drop(release);
    high.wait().expect("it runs");
    behind.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    assert_eq!(log.lock().expect("nobody panics")[0], 99);
}

#[test]
fn a_nearer_deadline_goes_before_what_was_claimed() {
    let Blocked { release, scheduler, behind, log, .. } = blocked(1, 0, 12);
    let due = Arc::clone(&log);
    let due = scheduler.cpu("due", move |_| due.lock().expect("nobody panics").push(99));
    let due = due.deadline(Instant::now()).submit().expect("there is room");
    drop(release);
    due.wait().expect("it runs");
    behind.into_iter().for_each(|handle| assert!(handle.wait().is_ok()));
    assert_eq!(log.lock().expect("nobody panics")[0], 99);
}

#[test]
fn what_was_claimed_behind_a_long_task_runs_on_another_worker() {
    let Blocked { scheduler, release, behind, .. } = blocked(2, 3, 12);
    for (number, mut handle) in behind.into_iter().enumerate() {
        assert_eq!(handle.wait_timeout(LONG), Some(Ok(3 + number)));
    }
    drop(release);
    assert!(scheduler.drain_blocking(LONG).is_complete());
}

#[test]
fn the_list_and_the_figures_know_what_runs_what_has_ended_and_what_waits() {
    let Blocked { scheduler, release, blocker, behind, .. } = blocked(1, 5, 12);
    let tasks = scheduler.tasks(100);
    let running: Vec<TaskId> =
        tasks.iter().filter(|it| it.state == TaskState::Running).map(|it| it.id).collect();
    assert_eq!(running, [blocker]);
    assert_eq!(tasks.len(), 13);
    assert_eq!(scheduler.state(blocker), Some(TaskState::Running));
    assert!(behind.iter().all(|handle| handle.state() == TaskState::Queued));
    let stats = scheduler.stats();
    let lane = stats.lane(Lane::Cpu);
    let short = lane.of_type(SHORT, Priority::Normal).expect("there were some");
    assert_eq!((lane.running, lane.levels[2].queued), (1, 12));
    assert_eq!((short.counts.done, short.run.count()), (1_005, 1_005));
    assert_eq!(short.wait.count(), 1_006, "what runs has been started");
    drop(release);
    assert!(scheduler.drain_blocking(LONG).is_complete());
    let short = scheduler.stats();
    let short = short.lane(Lane::Cpu).of_type(SHORT, Priority::Normal).expect("there were some");
    assert_eq!((short.counts.done, short.wait.count()), (1_018, 1_018));
}

#[test]
fn a_claimed_task_that_is_cancelled_is_freed_at_once_and_does_not_run() {
    let scheduler = with_short_tasks(1);
    let (plug, begun, _) = block(&scheduler, "plug");
    begun.recv().expect("it starts");
    let (release, begun, _) = block(&scheduler, SHORT);
    let payload = Arc::new(());
    let task = |_| {
        let payload = Arc::clone(&payload);
        scheduler.cpu(SHORT, move |_| Arc::strong_count(&payload)).submit().expect("there is room")
    };
    let handles: Vec<_> = (0..12).map(task).collect();
    drop(plug);
    begun.recv().expect("it starts");
    for handle in handles.iter().step_by(2) {
        handle.cancel();
    }
    assert_eq!(Arc::strong_count(&payload), 7);
    drop(release);
    for (number, handle) in handles.into_iter().enumerate() {
        let cancelled = handle.wait() == Err(TaskError::Cancelled);
        assert_eq!(cancelled, number % 2 == 0);
    }
    assert!(scheduler.drain_blocking(LONG).is_complete());
    let stats = scheduler.stats();
    let short = stats.lane(Lane::Cpu).of_type(SHORT, Priority::Normal).expect("there were some");
    assert_eq!((short.counts.done, short.counts.cancelled), (1_007, 6));
}

#[test]
fn a_task_that_ended_in_a_batch_lets_those_go_that_wait_for_it() {
    let scheduler = with_short_tasks(2);
    let plugs = [block(&scheduler, "plug"), block(&scheduler, "plug")];
    plugs.iter().for_each(|(_, begun, _)| begun.recv().expect("it starts"));
    let quick: Vec<TaskId> =
        (0..3).map(|_| scheduler.cpu(SHORT, |_| ()).spawn().expect("there is room")).collect();
    let after = |ids: &[TaskId]| scheduler.cpu("after", |_| 7).after(ids).submit();
    let early = after(&quick).expect("all are known");
    let (release, begun, blocker) = block(&scheduler, SHORT);
    let [one, other] = plugs;
    drop(one);
    begun.recv().expect("it starts");
    let late = after(&quick).expect("all are known");
    let mut never = after(&[blocker]).expect("it is known");
    drop(other);
    assert_eq!((early.wait(), late.wait()), (Ok(7), Ok(7)), "though the batch is not over");
    assert_eq!(never.wait_timeout(Duration::from_millis(10)), None);
    drop(release);
    assert_eq!(never.wait(), Ok(7));
}

#[test]
fn a_task_that_waits_for_one_behind_it_in_its_batch_runs_it() {
    let scheduler = with_short_tasks(1);
    let (plug, begun, _) = block(&scheduler, "plug");
    begun.recv().expect("it starts");
    let (sender, handles) = sync_channel::<TaskHandle<u32>>(10);
    let waits = scheduler.cpu(SHORT, move |_| {
        handles.into_iter().map(|handle| handle.wait().expect("it runs")).sum::<u32>()
    });
    let waits = waits.submit().expect("there is room");
    for number in 0..10 {
        let handle = scheduler.cpu(SHORT, move |_| number).submit().expect("there is room");
        sender.send(handle).expect("it is there");
    }
    drop((sender, plug));
    assert_eq!(waits.wait(), Ok(45));
}

#[test]
fn what_waits_for_room_gets_it_when_a_batch_starts() {
    let scheduler = Scheduler::builder().cpu_threads(1).level_tasks(Priority::Normal, 8).build();
    let scheduler = scheduler.expect("valid settings");
    let submitters: Vec<_> = (0..4)
        .map(|_| {
            let scheduler = scheduler.clone();
            std::thread::spawn(move || {
                for _ in 0..500 {
                    let task = scheduler.cpu(SHORT, |_| ());
                    drop(task.submit_blocking(LONG).expect("there is room sometime"));
                }
            })
        })
        .collect();
    submitters.into_iter().for_each(|it| it.join().expect("nothing was refused"));
    assert!(scheduler.drain_blocking(LONG).is_complete());
    assert_eq!(scheduler.stats().lane(Lane::Cpu).levels[2].counts.done, 2_000);
}

#[test]
fn a_scheduler_that_closes_ends_what_was_claimed() {
    let Blocked { scheduler, release, behind, .. } = blocked(1, 0, 12);
    scheduler.close();
    for handle in behind {
        assert!(matches!(handle.wait(), Err(TaskError::Shed { .. })));
    }
    drop(release);
}
