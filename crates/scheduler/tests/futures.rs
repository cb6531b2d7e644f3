//! The lanes that need a tokio runtime: order, slots, time-outs, retries and what happens without one.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::{
    Lane, Priority, Retry, Scheduler, SchedulerBuilder, ShedReason, TaskError, TaskState,
};
use tokio::sync::oneshot;

/// Longer than anything here takes, on any machine.
const LONG: Duration = Duration::from_secs(60);

fn built(builder: SchedulerBuilder) -> Scheduler {
    builder.cpu_threads(1).build().expect("the settings are valid")
}

/// Takes the only slot of the lane until the sender is used or dropped.
async fn plug(scheduler: &Scheduler) -> oneshot::Sender<()> {
    let (release, released) = oneshot::channel::<()>();
    let (started, begun) = oneshot::channel::<()>();
    let future = async move {
        let _ = started.send(());
        let _ = released.await;
    };
    scheduler.io("plug", future).priority(Priority::Critical).spawn().expect("there is room");
    begun.await.expect("it starts");
    release
}

#[tokio::test]
async fn futures_start_by_level_as_slots_become_free() {
    let scheduler = built(Scheduler::builder().io_slots(1));
    let release = plug(&scheduler).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let submit = |entry: u32, priority: Priority| {
        let order = Arc::clone(&order);
        let task = scheduler.io("log", async move { order.lock().unwrap().push(entry) });
        task.priority(priority).submit().unwrap()
    };
    let handles =
        [submit(3, Priority::Low), submit(2, Priority::Normal), submit(1, Priority::High)];
    assert_eq!(handles[0].state(), TaskState::Queued);
    drop(release);
    for handle in handles {
        handle.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn a_future_that_runs_too_long_is_dropped() {
    let scheduler = built(Scheduler::builder());
    let inside = Arc::new(());
    let held = Arc::clone(&inside);
    let forever = async move {
        let _held = held;
        std::future::pending::<()>().await;
    };
    let handle = scheduler.io("forever", forever).timeout(Duration::from_millis(5)).submit();
    assert_eq!(handle.unwrap().await, Err(TaskError::TimedOut));
    while Arc::strong_count(&inside) > 1 {
        tokio::task::yield_now().await;
    }
    let handle = scheduler.io("forever", std::future::pending::<()>()).submit().unwrap();
    tokio::task::yield_now().await;
    handle.cancel();
    assert_eq!(handle.await, Err(TaskError::Cancelled));
    while scheduler.stats().lane(Lane::Io).running > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_future_that_panics_is_an_error_and_gives_its_slot_back() {
    let scheduler = built(Scheduler::builder().io_slots(1));
    for _ in 0..3 {
        let handle = scheduler.io("panic", async { panic!("broken") }).submit().unwrap();
        assert_eq!(handle.await, Err::<(), _>(TaskError::Panicked("broken".to_owned())));
    }
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("at the end");
        }
    }
    let bomb = Bomb;
    let future = async move {
        let _bomb = bomb;
        std::future::pending::<()>().await;
    };
    let handle = scheduler.io("bomb", future).submit().unwrap();
    tokio::task::yield_now().await;
    handle.cancel();
    assert_eq!(scheduler.io("fine", async { 7 }).submit().unwrap().await, Ok(7));
}

#[tokio::test]
async fn futures_that_wait_for_futures_need_no_second_slot() {
    fn tree(scheduler: Scheduler, depth: u32) -> futures_util::future::BoxFuture<'static, u32> {
        Box::pin(async move {
            if depth == 0 {
                return 1;
            }
            let branch = || {
                let inner = scheduler.clone();
                scheduler.io("branch", tree(inner, depth - 1)).submit().unwrap()
            };
            let (left, right) = (branch(), branch());
            left.await.unwrap() + right.await.unwrap()
        })
    }
    let scheduler = built(Scheduler::builder().io_slots(1));
    let root = scheduler.io("root", tree(scheduler.clone(), 5)).submit().unwrap();
    assert_eq!(root.await, Ok(32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lane_submits_to_every_lane_and_waits() {
    let scheduler = built(Scheduler::builder().io_slots(1).blocking_slots(1));
    let s = scheduler.clone();
    let chain = scheduler.io("io", async move {
        let inner = s.clone();
        let cpu = s.cpu("cpu", move |_| {
            let deeper = inner.clone();
            let blocking = inner.blocking("blocking", move |_| {
                let io = deeper.io("io", async { 1 }).submit().unwrap();
                io.wait().unwrap() + 1
            });
            blocking.submit().unwrap().wait().unwrap() + 1
        });
        cpu.submit().unwrap().await.unwrap() + 1
    });
    assert_eq!(chain.submit().unwrap().await, Ok(4));
}

#[tokio::test]
async fn a_future_is_made_again_until_it_succeeds() {
    let scheduler = built(Scheduler::builder().io_slots(1));
    let tries = Arc::new(AtomicUsize::new(0));
    let retry = Retry::exponential(5).delays(Duration::from_micros(1), Duration::from_millis(1));
    let count = Arc::clone(&tries);
    let task = scheduler.io_retry("retry", retry, move |_context| {
        let count = Arc::clone(&count);
        async move { if count.fetch_add(1, SeqCst) < 2 { Err("not yet") } else { Ok(7) } }
    });
    assert_eq!(task.submit().unwrap().await, Ok(Ok(7)));
    assert_eq!(tries.load(SeqCst), 3);
}

#[tokio::test]
async fn futures_can_wait_for_room() {
    let scheduler = built(Scheduler::builder().io_slots(1).level_tasks(Priority::Normal, 1));
    let release = plug(&scheduler).await;
    let first = scheduler.io("first", async { 1 }).submit().unwrap();
    let second = scheduler.io("second", async { 2 });
    let error = second.submit_wait(Duration::from_millis(1)).await.unwrap_err();
    let waits = tokio::spawn(error.into_task().submit_wait(LONG));
    tokio::task::yield_now().await;
    drop(release);
    assert_eq!(first.await, Ok(1));
    assert_eq!(waits.await.unwrap().unwrap().await, Ok(2));
}

#[tokio::test]
async fn groups_of_futures_are_joined_and_cancelled() {
    let scheduler = built(Scheduler::builder());
    let mut group = scheduler.group();
    group.spawn_all(scheduler.io_all("batch", (0..5).map(|n| async move { n }))).unwrap();
    assert_eq!(group.try_join_all().await, Ok(vec![0, 1, 2, 3, 4]));
    let mut group = scheduler.group();
    group.spawn(scheduler.io("forever", std::future::pending::<u32>())).unwrap();
    group.spawn(scheduler.io("value", async { 7 })).unwrap();
    let results = group.join_all(Some(Duration::from_millis(20))).await;
    assert_eq!(results, [Err(TaskError::TimedOut), Ok(7)]);
    let mut group = scheduler.group();
    group.spawn(scheduler.io("forever", std::future::pending::<u32>())).unwrap();
    let id = group.ids().next().unwrap();
    drop(group);
    while scheduler.state(id).is_some() {
        tokio::task::yield_now().await;
    }
    let counts = scheduler.stats().lane(Lane::Io).levels[2].counts;
    assert_eq!((counts.done, counts.cancelled), (6, 2));
}

#[tokio::test]
async fn urgent_futures_have_threads_of_their_own() {
    let scheduler = built(Scheduler::builder().urgent_io_threads(1));
    let name = || std::thread::current().name().unwrap_or_default().to_owned();
    let task = |priority: Priority| {
        scheduler.io("name", async move { name() }).priority(priority).submit().unwrap()
    };
    assert_eq!(task(Priority::High).await.unwrap(), "scheduler-io");
    assert_ne!(task(Priority::Normal).await.unwrap(), "scheduler-io");
}

#[test]
fn without_a_runtime_two_lanes_refuse_and_one_works() {
    let scheduler = built(Scheduler::builder());
    assert_eq!(scheduler.cpu("cpu", |_| 1).submit().unwrap().wait(), Ok(1));
    let error = scheduler.io("io", async {}).submit().unwrap_err();
    assert_eq!(error.reason(), ShedReason::NoRuntime { lane: Lane::Io });
    let error = scheduler.blocking("blocking", |_| ()).submit().unwrap_err();
    assert_eq!(error.reason(), ShedReason::NoRuntime { lane: Lane::Blocking });
}
