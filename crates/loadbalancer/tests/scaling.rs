//! Advice that starts and stops real processes while calls go on.
//!
//! The worker is this test program again: it listens on a port of its own, answers a line after 20 ms and
//! serves two connections at a time. Callers ask without a pause, so one worker is not enough; the
//! `ScaleTask` has to start more, and to stop them when the callers are gone, without failing a call.

#![cfg(feature = "actuators")]

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loadbalancer::{
    Backend, Balancer, Change, ChildWorker, Outcome, Pick, ScaleTask, Scaling, WorkerPool,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Semaphore;

const IS_WORKER: &str = "LOADBALANCER_TEST_WORKER";
const PLACES: u32 = 2;
const CALLERS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(30);

/// The process of a worker, when it is told to be one; else a test that does nothing.
#[test]
fn worker_process() {
    if std::env::var_os(IS_WORKER).is_none() {
        return;
    }
    let listener = StdListener::bind("127.0.0.1:0").expect("a port is free");
    println!("\nport {}", listener.local_addr().expect("it is bound").port());
    std::io::stdout().flush().expect("the parent listens");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

/// Answers each line with the id of the process.
fn serve(mut stream: StdStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    while let Some(Ok(_)) = lines.next() {
        // This is the work.
        std::thread::sleep(Duration::from_millis(20));
        if writeln!(stream, "{}", std::process::id()).is_err() {
            return;
        }
    }
}

async fn start_worker(_number: u64) -> std::io::Result<(Backend, ChildWorker)> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["worker_process", "--exact", "--nocapture"])
        .env(IS_WORKER, "yes")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut worker = ChildWorker::spawn(&mut command)?;
    let output = worker.child().stdout.take().expect("it is piped");
    let mut lines = tokio::io::BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(port) = line.strip_prefix("port ") {
            let id = format!("127.0.0.1:{port}");
            return Ok((Backend::new(id).max_in_flight(PLACES), worker));
        }
    }
    Err(std::io::Error::other("it ended before it listened"))
}

/// Asks a worker once; returns the id of its process.
async fn call(address: &str) -> std::io::Result<u32> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"work\n").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.trim().parse().map_err(std::io::Error::other)
}

/// Waits until the balancer has so many backends.
async fn until(balancer: &Balancer, backends: usize) {
    // Every change of the set is an event; what has happened before is seen by looking first.
    let mut events = balancer.events();
    let changes = async {
        while balancer.stats().backends != backends {
            events.next().await.expect("the balancer lives");
        }
    };
    let waited = tokio::time::timeout(PATIENCE, changes).await;
    waited.unwrap_or_else(|_| panic!("there are {} backends", balancer.stats().backends));
}

#[tokio::test]
async fn load_starts_processes_and_its_end_stops_them_and_no_call_fails() {
    let balancer = Balancer::builder().wait_max(PATIENCE).build().expect("a valid set");
    let mut events = balancer.events();
    let scaling = Scaling {
        fewest: 1,
        most: 4,
        up_after: Duration::from_millis(200),
        down_after: Duration::from_millis(400),
        cooldown: Duration::from_millis(100),
        ..Scaling::default()
    };
    let pool = WorkerPool::new(&balancer, start_worker).workers_max(4);
    let task = ScaleTask::start(&balancer, scaling, Duration::from_millis(20), pool);
    until(&balancer, 1).await;
    let first = Arc::clone(&balancer.backends()[0].id);

    let goes_on = Arc::new(AtomicBool::new(true));
    // One permit for each call that has been answered.
    let calls = Arc::new(Semaphore::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (balancer, goes_on) = (balancer.clone(), Arc::clone(&goes_on));
            let calls = Arc::clone(&calls);
            tokio::spawn(async move {
                let mut processes = HashSet::new();
                while goes_on.load(Ordering::Relaxed) {
                    let lease =
                        balancer.acquire(&Pick::new()).await.expect("there is room in time");
                    processes.insert(call(lease.backend()).await.expect("the worker answers"));
                    lease.complete(Outcome::Success);
                    calls.add_permits(1);
                }
                processes
            })
        })
        .collect();
    until(&balancer, 4).await;
    let others: Vec<_> = balancer.backends().into_iter().map(|it| it.id).collect();
    calls.forget_permits(usize::MAX);
    drop(calls.acquire_many(100).await.expect("it is open"));
    // One caller goes on while workers are stopped: none of its calls may fail either.
    let mut processes = HashSet::new();
    goes_on.store(false, Ordering::Relaxed);
    for caller in callers {
        processes.extend(caller.await.expect("no call failed"));
    }
    assert_eq!(processes.len(), 4, "all four worked");
    let start = Instant::now();
    while balancer.stats().backends > 1 {
        let lease = balancer.acquire(&Pick::new()).await.expect("there is room");
        call(lease.backend()).await.expect("a worker that is stopped has no calls");
        lease.complete(Outcome::Success);
        assert!(start.elapsed() < PATIENCE, "there are {} workers", balancer.stats().backends);
    }
    assert_eq!(balancer.backends()[0].id, first, "the youngest go first");
    let stats = balancer.stats();
    assert_eq!((stats.in_flight, stats.shed, stats.timed_out), (0, 0, 0));

    drop(task);
    until(&balancer, 0).await;
    for id in others {
        let start = Instant::now();
        while TcpStream::connect(&*id).await.is_ok() {
            assert!(start.elapsed() < PATIENCE, "{id} still listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut advised = Vec::new();
    while let Some(event) = events.try_next() {
        match event.change {
            Change::ScaleAdvised { advice } => advised.push(advice.desired),
            Change::ScaleFailed { reason } => panic!("{reason}"),
            _ => {}
        }
    }
    assert!(advised.contains(&4) && advised.last() == Some(&1), "{advised:?}");
}
