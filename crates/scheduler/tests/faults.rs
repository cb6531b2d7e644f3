//! What breaks around a scheduler: panics, dropped handles and groups, a runtime that ends, and crowds.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use scheduler::{Lane, Priority, Scheduler, ShedReason, TaskError};

/// Longer than anything here takes, on any machine.
const LONG: Duration = Duration::from_secs(60);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Counts how many of its clones are there.
#[derive(Clone)]
struct Payload(Arc<()>, [u64; 8]);

impl Payload {
    fn new() -> Self {
        Self(Arc::new(()), [0; 8])
    }

    fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Leaves the reports of panics that are meant out of the output.
fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[test]
fn thousands_of_panics_leave_the_lanes_as_they_were() {
    quiet();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let builder = Scheduler::builder().cpu_threads(2).runtime(runtime.handle().clone());
    let scheduler = builder.build().unwrap();
    let mut handles = Vec::new();
    for n in 0..2_000_u32 {
        let broken = move || -> u32 { panic!("broken {n}") };
        handles.push(scheduler.cpu("cpu", move |_| broken()).submit().unwrap());
        handles.push(scheduler.blocking("blocking", move |_| broken()).submit().unwrap());
        handles.push(scheduler.io("io", async move { broken() }).submit().unwrap());
    }
    for (n, handle) in handles.into_iter().enumerate() {
        let text = format!("broken {}", n / 3);
        assert_eq!(handle.wait(), Err(TaskError::Panicked(text)));
    }
    assert_eq!(scheduler.cpu("cpu", |_| 1).submit().unwrap().wait(), Ok(1));
    assert_eq!(scheduler.blocking("blocking", |_| 1).submit().unwrap().wait(), Ok(1));
    assert_eq!(scheduler.io("io", async { 1 }).submit().unwrap().wait(), Ok(1));
    until("all are counted", || {
        let stats = scheduler.stats();
        stats.lanes.iter().all(|lane| lane.levels[2].counts.failed == 2_000 && lane.running == 0)
    });
}

#[test]
fn values_that_panic_when_they_are_dropped_do_no_harm() {
    quiet();
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let scheduler = Scheduler::builder().cpu_threads(1).build().unwrap();
    for _ in 0..100 {
        scheduler.cpu("value", |_| Bomb).spawn().unwrap();
        scheduler.cpu("payload", |_| std::panic::panic_any(Bomb)).spawn().unwrap();
    }
    assert_eq!(scheduler.cpu("fine", |_| 1).submit().unwrap().wait(), Ok(1));
    until("nothing runs", || scheduler.stats().lane(Lane::Cpu).running == 0);
}

#[test]
fn dropped_handles_let_tasks_run_and_dropped_groups_do_not() {
    let scheduler = Scheduler::builder().cpu_threads(1).build().unwrap();
    let (release, released) = sync_channel::<()>(1);
    scheduler
        .cpu("plug", move |_| released.recv().is_err())
        .priority(Priority::Critical)
        .spawn()
        .unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let payload = Payload::new();
    let task = || {
        let (ran, payload) = (Arc::clone(&ran), payload.clone());
        scheduler.cpu("task", move |_| {
            ran.fetch_add(1, SeqCst);
            payload
        })
    };
    let mut group = scheduler.group();
    for _ in 0..1_000 {
        drop(task().submit().unwrap());
        group.spawn(task()).unwrap();
    }
    assert_eq!(payload.others(), 2_000);
    drop(group);
    assert_eq!(payload.others(), 1_000);
    drop(release);
    let report = scheduler.drain_blocking(LONG);
    assert!(report.is_complete());
    assert_eq!((ran.load(SeqCst), payload.others()), (1_000, 0));
}

#[test]
fn a_runtime_that_ends_ends_the_tasks_with_a_reason() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let builder = Scheduler::builder().cpu_threads(1).io_slots(50).blocking_slots(1);
    let scheduler = builder.runtime(runtime.handle().clone()).build().unwrap();
    let futures: Vec<_> = (0..1_000)
        .map(|_| scheduler.io("forever", std::future::pending::<()>()).submit().unwrap())
        .collect();
    until("the slots are taken", || scheduler.stats().lane(Lane::Io).running == 50);
    runtime.shutdown_background();
    let reason = ShedReason::NoRuntime { lane: Lane::Io };
    for handle in futures {
        assert_eq!(handle.wait(), Err(TaskError::Shed { reason, retry_after: None }));
    }
    // The runtime takes closures no more; whichever way it says so, none is lost.
    let reason = ShedReason::NoRuntime { lane: Lane::Blocking };
    match scheduler.blocking("late", |_| ()).submit() {
        Ok(handle) => {
            assert_eq!(handle.wait(), Err(TaskError::Shed { reason, retry_after: None }));
        }
        Err(error) => assert_eq!(error.reason(), reason),
    }
    assert_eq!(
        scheduler.io("late", async {}).submit().unwrap_err().reason(),
        ShedReason::NoRuntime { lane: Lane::Io }
    );
    assert_eq!(scheduler.cpu("cpu", |_| 1).submit().unwrap().wait(), Ok(1));
    assert!(scheduler.drain_blocking(LONG).is_complete());
}

#[test]
fn ten_thousand_time_outs_at_once_are_ten_thousand_errors() {
    let scheduler = Scheduler::builder().cpu_threads(1).build().unwrap();
    let (release, released) = sync_channel::<()>(1);
    scheduler
        .cpu("plug", move |_| released.recv().is_err())
        .priority(Priority::Critical)
        .spawn()
        .unwrap();
    let payload = Payload::new();
    let handles: Vec<_> = (0..10_000)
        .map(|_| {
            let payload = payload.clone();
            let task = scheduler.cpu("late", move |_| drop(payload));
            task.queue_timeout(Duration::from_millis(200)).submit().unwrap()
        })
        .collect();
    for handle in handles {
        assert_eq!(handle.wait(), Err(TaskError::TimedOut));
    }
    assert_eq!(payload.others(), 0);
    let stats = scheduler.stats();
    let level = &stats.lane(Lane::Cpu).levels[2];
    assert_eq!((level.counts.timed_out, level.queued), (10_000, 0));
    drop(release);
}

#[test]
fn a_hundred_thousand_cancelled_tasks_leave_nothing() {
    let scheduler = Scheduler::builder().cpu_threads(1).build().unwrap();
    let (release, released) = sync_channel::<()>(1);
    scheduler
        .cpu("plug", move |_| released.recv().is_err())
        .priority(Priority::Critical)
        .spawn()
        .unwrap();
    let payload = Payload::new();
    let tasks = (0..100_000).map(|n: u64| {
        let mut payload = payload.clone();
        payload.1[0] = n;
        move |_: &scheduler::TaskContext<'_>| drop(payload)
    });
    let handles = scheduler.cpu_all("many", tasks).priority(Priority::Low).submit_all().unwrap();
    assert_eq!(payload.others(), 100_000);
    handles.iter().for_each(scheduler::TaskHandle::cancel);
    assert_eq!(payload.others(), 0);
    assert!(handles.into_iter().all(|handle| handle.wait() == Err(TaskError::Cancelled)));
    drop(release);
    assert_eq!(scheduler.cpu("fine", |_| 1).submit().unwrap().wait(), Ok(1));
}

#[test]
fn submissions_cancellations_and_the_end_at_once_lose_no_task() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for round in 0..20_u64 {
        let builder = Scheduler::builder().cpu_threads(2).io_slots(3).blocking_slots(2);
        let scheduler = builder.runtime(runtime.handle().clone()).build().unwrap();
        let ended: Vec<_> = (0..3_u64)
            .map(|thread| {
                let scheduler = scheduler.clone();
                std::thread::spawn(move || {
                    let mut handles = Vec::new();
                    for n in 0..200_u64 {
                        let priority = Priority::ALL[(n % 4) as usize];
                        let submitted = match (n + thread) % 3 {
                            0 => scheduler.cpu("cpu", move |_| n).priority(priority).submit().ok(),
                            1 => {
                                let task = scheduler.blocking("blocking", move |_| n);
                                task.priority(priority).submit().ok()
                            }
                            _ => {
                                let future = async move {
                                    tokio::task::yield_now().await;
                                    n
                                };
                                scheduler.io("io", future).priority(priority).submit().ok()
                            }
                        };
                        let Some(handle) = submitted else { break };
                        if n % 7 == round % 7 {
                            handle.cancel();
                        }
                        handles.push((n, handle));
                    }
                    for (n, handle) in handles {
                        match handle.wait() {
                            Ok(value) => assert_eq!(value, n),
                            Err(TaskError::Cancelled | TaskError::Shed { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        if round % 2 == 0 {
            scheduler.close();
        } else {
            scheduler.drain_blocking(Duration::from_millis(round / 4));
        }
        drop(scheduler);
        ended.into_iter().for_each(|thread| thread.join().expect("no task is lost"));
    }
}

#[test]
fn a_crowd_that_is_cancelled_at_once_leaves_nothing_and_the_next_one_is_served() {
    const CROWD: usize = 100_000;
    let scheduler = Scheduler::builder().cpu_threads(1).build().unwrap();
    let (release, released) = sync_channel::<()>(1);
    let (started, begun) = sync_channel::<()>(1);
    let plug = scheduler.cpu("plug", move |_| {
        started.send(()).unwrap();
        released.recv().is_err()
    });
    let plug = plug.priority(Priority::Critical).submit().unwrap();
    begun.recv().unwrap();
    let payload = Payload::new();
    for _ in 0..2 {
        let mut group = scheduler.group();
        let tasks = (0..CROWD).map(|_| {
            let payload = payload.clone();
            move |_: &scheduler::TaskContext<'_>| drop(payload)
        });
        group.spawn_all(scheduler.cpu_all("crowd", tasks)).unwrap();
        assert_eq!(payload.others(), CROWD);
        assert!(scheduler.cpu("more", |_| ()).spawn().is_err(), "the level is full");
        drop(group);
        assert_eq!(payload.others(), 0);
        let ids: Vec<_> = scheduler.tasks(10).iter().map(|task| task.id).collect();
        assert_eq!(ids, [plug.id()]);
    }
    let next = scheduler.cpu("next", |_| 1).submit().unwrap();
    drop(release);
    assert_eq!((plug.wait(), next.wait()), (Ok(true), Ok(1)));
    let stats = scheduler.stats();
    assert_eq!(stats.lane(Lane::Cpu).levels[2].counts.cancelled, 2 * CROWD as u64);
}
