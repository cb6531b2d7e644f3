//! The tower layer: levels from requests, refusals before the service is called, errors told apart.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::{Priority, ScheduledError, Scheduler, SchedulerLayer, ShedReason};
use tokio::sync::oneshot;
use tower::{Layer as _, ServiceExt as _, service_fn};

struct Request {
    name: &'static str,
    level: Priority,
}

fn level(request: &Request) -> Priority {
    request.level
}

#[tokio::test]
async fn calls_start_by_the_level_of_their_request() {
    let scheduler = Scheduler::builder().io_slots(1).build().expect("valid");
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let service = service_fn(move |Request { name, .. }: Request| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().expect("nobody panics").push(name);
            Ok::<_, std::io::Error>(name.len())
        }
    });
    let service = SchedulerLayer::new(&scheduler, "request", level).layer(service);
    let (release, released) = oneshot::channel::<()>();
    let occupies = scheduler.io("occupy", released).submit().expect("there is room");
    tokio::task::yield_now().await;
    let requests =
        [("low", Priority::Low), ("high", Priority::High), ("critical", Priority::Critical)];
    let calls: Vec<_> = requests
        .map(|(name, level)| {
            let call = service.clone().oneshot(Request { name, level });
            tokio::spawn(call)
        })
        .into_iter()
        .collect();
    let queued = || {
        let stats = scheduler.stats();
        stats.lanes[0].levels.iter().map(|level| level.queued).sum::<usize>()
    };
    while queued() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    release.send(()).expect("the task listens");
    assert!(occupies.await.is_ok());
    for (call, length) in calls.into_iter().zip([3, 4, 8]) {
        assert_eq!(call.await.expect("does not panic").expect("is served"), length);
    }
    assert_eq!(*order.lock().expect("nobody panics"), ["critical", "high", "low"]);
}

#[tokio::test]
async fn a_lane_without_room_refuses_before_the_service_has_begun() {
    let builder = Scheduler::builder().io_slots(1).level_tasks(Priority::Low, 1);
    let scheduler = builder.build().expect("valid");
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let service = service_fn(move |(): ()| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(())
        }
    });
    let service = SchedulerLayer::new(&scheduler, "request", Priority::Low).layer(service);
    let (release, released) = oneshot::channel::<()>();
    let occupies = scheduler.io("occupy", released).submit().expect("there is room");
    let waits = scheduler.io("waits", async {}).priority(Priority::Low).submit().expect("room");
    let error = service.oneshot(()).await.expect_err("the level is full");
    let ScheduledError::Refused(refusal) = error else { panic!("{error}") };
    assert!(matches!(refusal.reason, ShedReason::QueueFull { max: 1, .. }), "{refusal}");
    assert_eq!(called.load(Ordering::SeqCst), 0);
    release.send(()).expect("the task listens");
    assert!(occupies.await.is_ok() && waits.await.is_ok());
}

#[tokio::test]
async fn the_error_of_the_service_and_a_panic_in_it_are_told_apart() {
    let scheduler = Scheduler::builder().build().expect("valid");
    let service = service_fn(|panics: bool| async move {
        assert!(!panics, "no such luck");
        Err::<(), _>(std::io::Error::other("no route"))
    });
    let service = SchedulerLayer::new(&scheduler, "request", Priority::Normal).layer(service);
    let error = service.clone().oneshot(false).await.expect_err("fails");
    assert!(matches!(&error, ScheduledError::Service(source) if source.to_string() == "no route"));
    let error = service.oneshot(true).await.expect_err("panics");
    assert!(matches!(error, ScheduledError::Task(_)) && error.to_string().contains("no such luck"));
}

#[tokio::test]
async fn a_response_that_is_dropped_cancels_its_call() {
    let scheduler = Scheduler::builder().build().expect("valid");
    let (dropped, drops) = oneshot::channel::<()>();
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    let service = service_fn(move |(): ()| {
        let guard = dropped.lock().expect("nobody panics").take();
        async move {
            let _guard = guard;
            std::future::pending::<Result<(), std::io::Error>>().await
        }
    });
    let service = SchedulerLayer::new(&scheduler, "request", Priority::Normal).layer(service);
    let call = tokio::time::timeout(Duration::from_millis(5), service.oneshot(()));
    assert!(call.await.is_err());
    // The sender goes with the future.
    assert!(drops.await.is_err());
}
