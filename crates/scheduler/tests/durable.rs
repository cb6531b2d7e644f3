//! Durable jobs against a real Redis and a real Postgres: what is queued runs, also when a worker is killed
//! in mid-job. Both stores pass the same cases.
//!
//! The worker that is killed is a process of its own: this test binary, started again with the name of
//! the one test that is a worker and an address in its environment.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
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

/// A server that belongs to a test.
enum Server {
    Redis(Redis),
    Postgres(Postgres),
}

impl Server {
    fn url(&self) -> &str {
        match self {
            Self::Redis(server) => &server.url,
            Self::Postgres(server) => &server.url,
        }
    }

    async fn connect(&self, settings: DurableSettings) -> DurableQueue<Mail> {
        connect(self.url(), settings).await.expect("is up")
    }
}

/// Connects to the kind of server that the address names.
async fn connect(url: &str, settings: DurableSettings) -> Result<DurableQueue<Mail>, DurableError> {
    match url.starts_with("postgres:") {
        true => DurableQueue::connect_postgres(url, settings).await,
        false => DurableQueue::connect(url, settings).await,
    }
}

/// A port of the loopback that nobody has now.
fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    free.local_addr().expect("it is bound").port()
}

/// A server on a free port of the loopback, with a folder of its own.
struct Served {
    // Dropped in this order.
    process: Killed,
    folder: TempDir,
    port: String,
}

impl Served {
    /// Starts one with `begin` until it answers as `ready` says; both get the folder and the port.
    fn start(begin: impl Fn(&Path, &str) -> Child, ready: impl Fn(&Path, &str) -> bool) -> Self {
        // Somebody else may take the port in between.
        for _ in 0..10 {
            let folder = TempDir::new().expect("the temporary directory is writable");
            let port = free_port().to_string();
            let mut process = Killed(begin(folder.path(), &port));
            if answers(&mut process.0, || ready(folder.path(), &port)) {
                return Self { process, folder, port };
            }
        }
        panic!("the server could not be started");
    }
}

struct Redis {
    _server: Served,
    url: String,
}

impl Redis {
    fn start() -> Self {
        let begin = |folder: &Path, port: &str| {
            Command::new("redis-server")
                .args(["--port", port, "--bind", "127.0.0.1", "--save", ""])
                .current_dir(folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server: cargo xtask test installs it")
        };
        let ready = |_: &Path, port: &str| {
            let ping = Command::new("redis-cli").args(["-p", port, "PING"]).output();
            ping.is_ok_and(|ping| ping.stdout.starts_with(b"PONG"))
        };
        let server = Served::start(begin, ready);
        let url = format!("redis://127.0.0.1:{}/", server.port);
        Self { _server: server, url }
    }
}

/// A Postgres server with a cluster of its own.
struct Postgres {
    server: Served,
    url: String,
}

impl Postgres {
    fn start() -> Self {
        let begin = |folder: &Path, port: &str| {
            if is_root(folder) {
                chown(folder, Some(NOBODY), Some(NOBODY)).expect("root may");
            }
            let made = postgres_command("initdb", folder)
                .args(["-D", "data", "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C"])
                .output()
                .expect("initdb: cargo xtask test installs it");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            postgres_command("postgres", folder)
                .args(["-D", "data", "-p", port, "-c", "listen_addresses=127.0.0.1"])
                .args(["-c", "unix_socket_directories=", "-c", "fsync=off"])
                .stderr(Stdio::null())
                .spawn()
                .expect("postgres is beside initdb")
        };
        let ready = |folder: &Path, port: &str| {
            let ask = postgres_command("pg_isready", folder)
                .args(["-q", "-h", "127.0.0.1", "-p", port])
                .status();
            ask.is_ok_and(|status| status.success())
        };
        let server = Served::start(begin, ready);
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
        Self { server, url }
    }
}

impl Drop for Postgres {
    /// Stops it as a server is stopped, so that it leaves no shared memory behind.
    fn drop(&mut self) {
        let stopped = postgres_command("pg_ctl", self.server.folder.path())
            .args(["stop", "-D", "data", "-m", "immediate", "-s"])
            .status();
        if stopped.is_ok_and(|status| status.success()) {
            let _ = self.server.process.0.wait();
        }
    }
}

/// The user and group that Postgres runs as where the test is root, which it refuses to be.
const NOBODY: u32 = 65_534;

/// Whether a folder that was just made belongs to root, and so this process is root.
fn is_root(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|folder| folder.uid() == 0)
}

/// A program of Postgres, from where Debian keeps it or from the search path, in a folder and as its owner.
fn postgres_command(program: &str, folder: &Path) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    found.retain(|folder| folder.join("initdb").is_file());
    found.sort();
    let mut command = match found.pop() {
        Some(newest) => Command::new(newest.join(program)),
        None => Command::new(program),
    };
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    if std::fs::metadata(folder).is_ok_and(|folder| folder.uid() == NOBODY) {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Waits for a server; `false` if it ended because somebody else took its port.
fn answers(process: &mut Child, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if process.try_wait().expect("it can be asked").is_some() {
            return false;
        }
        if ready() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the server does not answer");
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

fn every_job_runs_and_never_more_at_once_than_allowed(server: &Server) {
    runtime().block_on(async {
        let queue = server.connect(settings(3)).await;
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

fn a_job_with_the_key_of_another_is_queued_once(server: &Server) {
    runtime().block_on(async {
        let queue = server.connect(settings(1)).await;
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

fn a_job_that_fails_is_tried_again(server: &Server) {
    runtime().block_on(async {
        let queue = server.connect(settings(1)).await;
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
        let queue = connect(&url, settings(2)).await.expect("is up");
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

fn jobs_of_a_worker_that_is_killed_run_elsewhere_and_none_is_lost(server: &Server) {
    let folder = TempDir::new().expect("the temporary directory is writable");
    runtime().block_on(async {
        let queue = server.connect(settings(2)).await;
        for number in 0..6 {
            queue.push(mail(number)).await.expect("is up");
        }
        let doomed = Command::new(std::env::current_exe().expect("this binary"))
            .args(["worker_that_is_killed", "--exact", "--test-threads=1"])
            .env(ADDRESS, server.url())
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

fn a_key_is_forgotten_after_its_time(server: &Server) {
    runtime().block_on(async {
        let ttl = Duration::from_secs(1);
        let queue = server.connect(DurableSettings { idempotency_ttl: ttl, ..settings(1) }).await;
        let done = Arc::new(Mutex::new(BTreeSet::new()));
        let all = Arc::clone(&done);
        let run = move |mail: Mail| {
            all.lock().expect("nobody panics").insert(mail.number);
            async { Ok::<(), std::io::Error>(()) }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = queue.clone();
        let worker =
            tokio::spawn(
                async move { worker.work("only", run, async { drop(stopped.await) }).await },
            );
        let key = || Some("welcome".to_owned());
        queue.push(Mail { number: 0, key: key() }).await.expect("is up");
        wait_until("the first job", || done.lock().expect("nobody panics").contains(&0)).await;
        let start = Instant::now();
        for number in 1.. {
            queue.push(Mail { number, key: key() }).await.expect("is up");
            tokio::time::sleep(Duration::from_millis(200)).await;
            if done.lock().expect("nobody panics").len() > 1 {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "the key is never forgotten");
        }
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
    });
}

fn a_worker_started_again_under_its_name_does_not_keep_what_it_lost(server: &Server) {
    runtime().block_on(async {
        let queue = server.connect(settings(1)).await;
        queue.push(mail(7)).await.expect("is up");
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let run = move |_: Mail| {
            // The first never ends.
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                Ok::<(), std::io::Error>(())
            }
        };
        let (worker, first) = (queue.clone(), run.clone());
        let died =
            tokio::spawn(async move { worker.work("only", first, std::future::pending()).await });
        wait_until("the first attempt", || begun.load(Ordering::SeqCst) == 1).await;
        died.abort();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker =
            tokio::spawn(
                async move { queue.work("only", run, async { drop(stopped.await) }).await },
            );
        wait_until("the second attempt", || begun.load(Ordering::SeqCst) == 2).await;
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
    });
}

fn a_long_job_stays_with_its_worker_while_that_lives(server: &Server) {
    runtime().block_on(async {
        // A dead worker's jobs would run elsewhere after 3 s.
        let settings = DurableSettings { missed_heartbeats: 6, ..settings(1) };
        let queue = server.connect(settings).await;
        for number in 0..2 {
            queue.push(mail(number)).await.expect("is up");
        }
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let run = {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            move |_: Mail| {
                begun.fetch_add(1, Ordering::SeqCst);
                let ended = Arc::clone(&ended);
                async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok::<(), std::io::Error>(())
                }
            }
        };
        let mut stops = Vec::new();
        let mut workers = Vec::new();
        for name in ["one", "two"] {
            let (stop, stopped) = oneshot::channel::<()>();
            let (queue, run) = (queue.clone(), run.clone());
            stops.push(stop);
            workers.push(tokio::spawn(async move {
                queue.work(name, run, async { drop(stopped.await) }).await
            }));
        }
        wait_until("two jobs", || ended.load(Ordering::SeqCst) == 2).await;
        drop(stops);
        for worker in workers {
            worker.await.expect("does not panic").expect("the store is up");
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    });
}

fn what_has_ended_is_removed_after_its_time(server: &Server) {
    let Server::Postgres(postgres) = server else { panic!("asks Postgres") };
    let rows = |table: &str| {
        let count = postgres_command("psql", postgres.server.folder.path())
            .args(["-X", "-A", "-t", "-c", &format!("SELECT count(*) FROM apalis.{table}")])
            .arg(&postgres.url)
            .stdout(Stdio::piped())
            .output()
            .expect("psql is beside initdb");
        String::from_utf8_lossy(&count.stdout).trim().to_owned()
    };
    runtime().block_on(async {
        let idempotency_ttl = Duration::from_secs(1);
        let queue = server.connect(DurableSettings { idempotency_ttl, ..settings(2) }).await;
        for number in 0..5 {
            queue.push(mail(number)).await.expect("is up");
        }
        assert_eq!(rows("jobs"), "5");
        let (stop, stopped) = oneshot::channel::<()>();
        let run = |_: Mail| async { Ok::<(), std::io::Error>(()) };
        let worker =
            tokio::spawn(
                async move { queue.work("only", run, async { drop(stopped.await) }).await },
            );
        wait_until("no job is left", || rows("jobs") == "0").await;
        assert_eq!(rows("workers"), "1");
        stop.send(()).expect("the worker listens");
        worker.await.expect("does not panic").expect("the store is up");
    });
}

/// Runs each case against a server of its own.
macro_rules! against {
    ($module:ident, $server:expr, [$($case:ident),+ $(,)?]) => {
        mod $module {
            use super::*;

            $(
                #[test]
                fn $case() {
                    super::$case(&$server);
                }
            )+
        }
    };
}

against!(
    redis,
    Server::Redis(Redis::start()),
    [
        every_job_runs_and_never_more_at_once_than_allowed,
        a_job_with_the_key_of_another_is_queued_once,
        a_key_is_forgotten_after_its_time,
        a_job_that_fails_is_tried_again,
        jobs_of_a_worker_that_is_killed_run_elsewhere_and_none_is_lost,
        a_long_job_stays_with_its_worker_while_that_lives,
    ]
);

against!(
    postgres,
    Server::Postgres(Postgres::start()),
    [
        every_job_runs_and_never_more_at_once_than_allowed,
        a_job_with_the_key_of_another_is_queued_once,
        a_key_is_forgotten_after_its_time,
        a_job_that_fails_is_tried_again,
        jobs_of_a_worker_that_is_killed_run_elsewhere_and_none_is_lost,
        a_long_job_stays_with_its_worker_while_that_lives,
        a_worker_started_again_under_its_name_does_not_keep_what_it_lost,
        what_has_ended_is_removed_after_its_time,
    ]
);

#[test]
fn a_store_that_is_not_there_is_an_error_and_no_panic() {
    runtime().block_on(async {
        for scheme in ["redis", "postgres"] {
            let url = format!("{scheme}://127.0.0.1:{}/", free_port());
            let error = connect(&url, settings(1)).await.expect_err("is down");
            assert!(matches!(error, DurableError::Store { queue: "mail", .. }), "{error}");
        }
        for nonsense in ["nonsense", "postgres://a:b:c"] {
            let error = connect(nonsense, settings(1)).await;
            assert!(matches!(error, Err(DurableError::Store { .. })), "{nonsense}");
        }
    });
}
