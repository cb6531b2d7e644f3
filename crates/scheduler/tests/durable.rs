//! Durable jobs against a real Redis: what is queued runs, also when a worker is killed in mid-job.
//!
//! The worker that is killed is a process of its own: this test binary, started again with the name of
//! the one test that is a worker and an address in its environment.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scheduler::{DurableError, DurableQueue, DurableSettings, Job};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS: &str = "SCHEDULER_DURABLE_ADDRESS";
const FOLDER: &str = "SCHEDULER_DURABLE_FOLDER";

#[derive(Debug, Deserialize, Serialize)]
struct Mail {
    number: u32,
    key: Option<String>,
}

impl Job for Mail {
    const NAME: &'static str = "mail";

    fn idempotency_key(&self) -> Option<String> {
        self.key.clone()
    }
}

fn mail(number: u32) -> Mail {
    Mail { number, key: None }
}

/// Settings under which a dead worker is noticed within seconds.
fn settings(concurrency: usize) -> DurableSettings {
    DurableSettings {
        concurrency,
        heartbeat: Duration::from_millis(500),
        missed_heartbeats: 2,
        ..DurableSettings::default()
    }
}

/// A process that is killed when it goes out of scope.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Redis server on a free port of the loopback.
struct Redis {
    _process: Killed,
    _folder: TempDir,
    url: String,
}

impl Redis {
    fn start() -> Self {
        for _ in 0..10 {
            let folder = TempDir::new().expect("the temporary directory is writable");
            let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            let port = free.local_addr().expect("it is bound").port();
            drop(free);
            let process = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server: cargo xtask test installs it");
            let mut process = Killed(process);
            if answers(port, &mut process.0) {
                let url = format!("redis://127.0.0.1:{port}/");
                return Self { _process: process, _folder: folder, url };
            }
        }
        panic!("no redis-server could be started");
    }
}

/// Waits for the server; `false` if it ended because somebody else took its port.
fn answers(port: u16, process: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if process.try_wait().expect("it can be asked").is_some() {
            return false;
        }
        let port = port.to_string();
        let ping = Command::new("redis-cli").args(["-p", &port, "PING"]).output();
        if ping.is_ok_and(|ping| ping.stdout.starts_with(b"PONG")) {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("redis-server does not answer");
}

async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("threads can be had")
}

#[test]
fn every_job_runs_and_never_more_at_once_than_allowed() {
    let redis = Redis::start();
    runtime().block_on(async {
        let queue = DurableQueue::<Mail>::connect(&redis.url, settings(3)).await.expect("is up");
        for number in 0..30 {
            queue.push(mail(number)).await.expect("is up");
        }
        let done = Arc::new(Mutex::new(BTreeSet::new()));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (stop, stopped) = oneshot::channel::<()>();
        let run = {
            let (done, most) = (Arc::clone(&done), Arc::clone(&most));
            move |mail: Mail| {
                let (done, running, most) =
                    (Arc::clone(&done), Arc::clone(&running), Arc::clone(&most));
                async move {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    done.lock().expect("nobody panics").insert(mail.number);
                    Ok::<(), std::io::Error>(())
                }
            }
        };
        let worker = queue.clone();
        let worker =
            tokio::spawn(
                async move { worker.work("only", run, async { drop(stopped.await) }).await },
            );
        wait_until("thirty jobs", || done.lock().expect("nobody panics").len() == 30).await;
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
        assert_eq!(most.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_job_with_the_key_of_another_is_queued_once() {
    let redis = Redis::start();
    runtime().block_on(async {
        let queue = DurableQueue::<Mail>::connect(&redis.url, settings(1)).await.expect("is up");
        for number in 0..5 {
            let key = Some("welcome".to_owned());
            queue.push(Mail { number, key }).await.expect("is up");
        }
        queue.push(mail(99)).await.expect("is up");
        let done = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&done);
        let run = move |mail: Mail| {
            all.lock().expect("nobody panics").push(mail.number);
            async { Ok::<(), std::io::Error>(()) }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let worker =
            tokio::spawn(
                async move { queue.work("only", run, async { drop(stopped.await) }).await },
            );
        wait_until("the last job", || done.lock().expect("nobody panics").contains(&99)).await;
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
        assert_eq!(*done.lock().expect("nobody panics"), [0, 99]);
    });
}

#[test]
fn a_job_that_fails_is_tried_again() {
    let redis = Redis::start();
    runtime().block_on(async {
        let queue = DurableQueue::<Mail>::connect(&redis.url, settings(1)).await.expect("is up");
        queue.push(mail(7)).await.expect("is up");
        let attempts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&attempts);
        let run = move |_: Mail| {
            let attempt = count.fetch_add(1, Ordering::SeqCst);
            async move {
                if attempt == 0 { Err(std::io::Error::other("no route")) } else { Ok(()) }
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let worker =
            tokio::spawn(async move { queue.work("only", run, async { drop(stopped.await) }).await });
        wait_until("the second attempt", || attempts.load(Ordering::SeqCst) == 2).await;
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
    });
}

/// Not a test by itself: the worker that is killed. It says that it has begun and never ends.
#[test]
fn worker_that_is_killed() {
    let (Ok(url), Ok(folder)) = (std::env::var(ADDRESS), std::env::var(FOLDER)) else { return };
    runtime().block_on(async {
        let queue = DurableQueue::<Mail>::connect(&url, settings(2)).await.expect("is up");
        let run = move |mail: Mail| {
            let begun = Path::new(&folder).join(mail.number.to_string());
            async move {
                std::fs::write(begun, "")?;
                std::future::pending::<Result<(), std::io::Error>>().await
            }
        };
        queue.work("doomed", run, std::future::pending()).await.expect("is killed before");
    });
}

#[test]
fn jobs_of_a_worker_that_is_killed_run_elsewhere_and_none_is_lost() {
    let redis = Redis::start();
    let folder = TempDir::new().expect("the temporary directory is writable");
    runtime().block_on(async {
        let queue = DurableQueue::<Mail>::connect(&redis.url, settings(2)).await.expect("is up");
        for number in 0..6 {
            queue.push(mail(number)).await.expect("is up");
        }
        let doomed = Command::new(std::env::current_exe().expect("this binary"))
            .args(["worker_that_is_killed", "--exact", "--test-threads=1"])
            .env(ADDRESS, &redis.url)
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("this binary can be started");
        let doomed = Killed(doomed);
        let begun = || std::fs::read_dir(folder.path()).map_or(0, Iterator::count);
        wait_until("two jobs in the first worker", || begun() == 2).await;
        drop(doomed);

        let done = Arc::new(Mutex::new(BTreeSet::new()));
        let all = Arc::clone(&done);
        let run = move |mail: Mail| {
            all.lock().expect("nobody panics").insert(mail.number);
            async { Ok::<(), std::io::Error>(()) }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = queue.clone();
        let worker = tokio::spawn(async move {
            worker.work("survivor", run, async { drop(stopped.await) }).await
        });
        wait_until("six jobs", || done.lock().expect("nobody panics").len() == 6).await;
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
    });
}

#[test]
fn a_store_that_is_not_there_is_an_error_and_no_panic() {
    runtime().block_on(async {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let url = format!("redis://127.0.0.1:{port}/");
        let error = DurableQueue::<Mail>::connect(&url, settings(1)).await.expect_err("is down");
        assert!(matches!(error, DurableError::Store { queue: "mail", .. }), "{error}");
        let error = DurableQueue::<Mail>::connect("nonsense", settings(1)).await;
        assert!(matches!(error, Err(DurableError::Store { .. })));
    });
}
