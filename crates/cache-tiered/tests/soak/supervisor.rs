//! The process that makes the weather, and starts, kills and closes the one that works.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::redis_server::RedisServer;
use super::worker::{DIRECTORY, REDIS, SEED};

/// How long the worker may say nothing.
const SILENT: Duration = Duration::from_secs(45);
/// How long a life must be for its memory to be compared, and how much of it counts as warming up.
const COMPARED: Duration = Duration::from_secs(90);
const WARM_UP: Duration = Duration::from_secs(45);
/// How much the memory may grow after that: a share, and as much as an allocator may hold on to.
const GROWTH: f64 = 1.2;
const GROWTH_KIB: u64 = 16 << 10;

/// How the other process is, as it says several times a second.
#[derive(Debug, Clone, Copy, Default)]
struct Report {
    operations: u64,
    values: u64,
    resident_kib: u64,
    disk_kib: u64,
    full_disk: bool,
}

impl Report {
    fn parse(line: &str) -> Option<Self> {
        // The harness may have begun the line.
        let (_, line) = line.split_once("work ")?;
        let mut words = line.split(' ');
        let mut number = || words.next()?.parse().ok();
        Some(Self {
            operations: number()?,
            values: number()?,
            resident_kib: number()?,
            disk_kib: number()?,
            full_disk: words.next()? == "full-disk",
        })
    }
}

/// What the weather over Redis is, in one word.
struct Weather {
    now: Mutex<&'static str>,
    events: AtomicU64,
    over: AtomicBool,
}

impl Weather {
    fn becomes(&self, what: &'static str) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = what;
        if what != "well" {
            self.events.fetch_add(1, SeqCst);
        }
    }

    /// Waits so long, or until the soak is over.
    fn wait(&self, milliseconds: u64) {
        let until = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < until && !self.over.load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn make(&self, mut server: RedisServer, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !self.over.load(SeqCst) {
            self.becomes("well");
            self.wait(rng.u64(500..3_000));
            match rng.u32(0..10) {
                0..3 => {
                    self.becomes("frozen");
                    server.freeze();
                    self.wait(rng.u64(50..2_500));
                    server.thaw();
                }
                3..6 => {
                    self.becomes("killed");
                    server.kill();
                    self.wait(rng.u64(0..2_000));
                    assert!(server.run(), "somebody took the port");
                }
                6 => {
                    self.becomes("flushed");
                    server.cli(&["FLUSHALL"]);
                }
                7 => {
                    self.becomes("unversioned");
                    server.cli(&["DEL", "ultra-perf:soak:0:version"]);
                }
                _ => {
                    self.becomes("cut-off");
                    for _ in 0..rng.u32(1..6) {
                        server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
                        self.wait(rng.u64(0..200));
                    }
                }
            }
        }
    }
}

/// The working process; ended whatever becomes of the test.
struct Worker {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Worker {
    fn start(test: &str, directory: &std::path::Path, url: &str, seed: u64) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(REDIS, url)
            .env(SEED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the worker starts");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::sync_channel(256);
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { process, lines }
    }

    /// Has the process close, and returns what it says at the end.
    fn close(mut self, seed: u64) -> String {
        // One that has ended by itself tells by its status.
        let _ = self.process.stdin.take().expect("it is piped").write_all(b"close\n");
        let closing = Instant::now();
        let mut said = String::new();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if line.contains("closed") => break,
                Ok(line) => said = line,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            assert!(closing.elapsed() < SILENT, "the process does not close; its seed is {seed}");
        }
        let status = self.process.wait().expect("it was started");
        assert!(status.success(), "the process did not close well: {status}; its seed is {seed}");
        said
    }

    /// Takes the next report; `None` when the process has said that it is closed, or is gone.
    fn report(&self, within: Duration) -> Option<Option<Report>> {
        match self.lines.recv_timeout(within) {
            Ok(line) if line.contains("closed") => None,
            Ok(line) => Some(Report::parse(&line)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_whole_cache_holds_in_every_weather() {
    let seconds = setting("ULTRA_PERF_SOAK_SECONDS").unwrap_or(10).max(5);
    let seed = setting(SEED).unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED}={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().expect("a directory");
    // What Redis has been told survives its death, as with replicas or a good disk.
    let server = RedisServer::with_options(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = server.url();
    let weather = Arc::new(Weather {
        now: Mutex::new("well"),
        events: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let over_redis = {
        let weather = Arc::clone(&weather);
        thread::spawn(move || weather.make(server, seed))
    };
    let test = "observer::watches_until_it_is_told_to_close";
    let observer_seed = rng.u64(..);
    let observer = Worker::start(test, directory.path(), &url, observer_seed);
    let (start, total) = (Instant::now(), Duration::from_secs(seconds));
    // The last life is a long one, to compare its memory.
    let last = total * 2 / 5;
    let (mut lives, mut killed, mut sum) = (0, 0, Report::default());
    loop {
        let left = total.saturating_sub(start.elapsed());
        let is_last = left <= last || left < Duration::from_secs(3);
        let longest = (left - last.min(left)).min(Duration::from_secs(60)).as_millis() as u64;
        let time =
            if is_last { left } else { Duration::from_millis(rng.u64(..=longest).max(1_500)) };
        // Closed in the end, and now and then before that.
        let to_close = is_last || rng.u8(..4) == 0;
        let report = live(&directory, &url, rng.u64(..), time, to_close, start, &weather);
        lives += 1;
        killed += u32::from(!to_close);
        sum.operations += report.operations;
        sum.values += report.values;
        if is_last {
            break;
        }
    }
    // What the last one left is found, too.
    live(&directory, &url, rng.u64(..), Duration::from_millis(500), true, start, &weather);
    println!("{}", observer.close(observer_seed));
    weather.over.store(true, SeqCst);
    let events = weather.events.load(SeqCst);
    over_redis.join().expect("the weather is made to the end");
    println!(
        "{} operations, {} values checked, {lives} lives, {killed} of them killed, {events} outages",
        sum.operations, sum.values
    );
    assert!(sum.values > seconds * 100, "too few values were found: {sum:?}");
}

/// Lets a process work for a while, and kills or closes it.
fn live(
    directory: &tempfile::TempDir,
    url: &str,
    seed: u64,
    time: Duration,
    to_close: bool,
    start: Instant,
    weather: &Weather,
) -> Report {
    let test = "worker::works_until_it_is_told_to_close";
    let mut worker = Worker::start(test, directory.path(), url, seed);
    let born = Instant::now();
    let (mut last, mut heard, mut told) = (Report::default(), born, born);
    let (mut warm_kib, mut most_kib, mut told_operations) = (0, 0, 0);
    while born.elapsed() < time {
        match worker.report(Duration::from_millis(100)) {
            None => panic!("the worker has ended by itself; its seed is {seed}"),
            Some(None) => assert!(heard.elapsed() < SILENT, "the worker says nothing: {last:?}"),
            Some(Some(report)) => {
                (last, heard) = (report, Instant::now());
                if born.elapsed() < WARM_UP {
                    warm_kib = warm_kib.max(report.resident_kib);
                } else {
                    most_kib = most_kib.max(report.resident_kib);
                }
                if told.elapsed() >= Duration::from_secs(1) {
                    tell(start, last, told_operations, weather);
                    (told, told_operations) = (heard, last.operations);
                }
            }
        }
    }
    tell(start, last, told_operations, weather);
    if !to_close {
        worker.process.kill().expect("it can be killed");
        return last;
    }
    worker.close(seed);
    if time >= COMPARED {
        let allowed = (warm_kib as f64 * GROWTH) as u64 + GROWTH_KIB;
        println!("memory: {warm_kib} KiB at most while warming up, {most_kib} KiB after that");
        assert!(most_kib <= allowed, "the memory grows: from {warm_kib} to {most_kib} KiB");
    }
    last
}

/// A line as `cargo xtask soak` reads it, with what was done since the last one.
fn tell(start: Instant, report: Report, before: u64, weather: &Weather) {
    let mut now = *weather.now.lock().unwrap_or_else(PoisonError::into_inner);
    if report.full_disk {
        now = "full-disk";
    }
    let Report { operations, resident_kib, disk_kib, .. } = report;
    let operations = operations - before;
    println!("soak {} {operations} {resident_kib} {now} {disk_kib}", start.elapsed().as_secs());
}
