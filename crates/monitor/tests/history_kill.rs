//! The history under `kill -9`: a child records ticks, the parent kills it and looks for what it had written.
//!
//! The child is this test program again, running only `records_until_killed`. Its clock runs ahead, with jumps that
//! close a block now and then, so that it is also killed while chunks are written. After each tick it waits until
//! the tick log has grown, which has to happen within a second, and says so; all that it said must be there
//! afterwards. `ULTRA_PERF_KILL_ROUNDS` sets how often (10).

#![cfg(all(feature = "history", unix))]

mod history;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use history::{Process, START_MS, Sample};
use monitor::history::OpenError;
use monitor::{Aggregate, Distribution, History, HistoryOptions, Selector, Source, Window};

const DIRECTORY: &str = "ULTRA_PERF_KILL_DIRECTORY";
const FIRST: &str = "ULTRA_PERF_KILL_FIRST";
const ROUNDS: &str = "ULTRA_PERF_KILL_ROUNDS";

fn options(path: &Path) -> HistoryOptions {
    HistoryOptions { path: Some(path.to_owned()), ..HistoryOptions::default() }
}

/// When tick `n` is: every twentieth comes two and a half minutes late.
fn at_ms(n: i64) -> i64 {
    START_MS + n * 1_000 + n / 20 * 150_000
}

/// The last tick that was at a moment or before it.
fn last_tick(last_ms: i64) -> i64 {
    (0..).take_while(|n| at_ms(*n) <= last_ms).last().expect("a tick was kept")
}

fn gauge(n: i64) -> f64 {
    (n * 7_919 % 1_000) as f64 / 8.0
}

/// Name and length of the newest log file.
fn newest_log(path: &Path) -> Option<(String, u64)> {
    let entries = fs::read_dir(path).ok()?.filter_map(Result::ok);
    let logs = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| name.ends_with(".log"))?;
        Some((name, entry.metadata().ok()?.len()))
    });
    logs.max()
}

#[test]
#[ignore = "the child of a_killed_process_leaves_what_it_wrote"]
fn records_until_killed() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    let path = Path::new(&path);
    let first: i64 = std::env::var(FIRST).expect("the parent sets it").parse().expect("a number");
    let history = History::open(options(path)).expect("nobody else has it open");
    assert_eq!(history.degraded(), None);
    let process = Process::new();
    let mut all = Distribution::empty(1e-9);
    for n in first.. {
        let before = newest_log(path);
        all.record(0.001 * (n % 50 + 1) as f64);
        let samples = [
            ("g", Sample::Gauge(gauge(n))),
            ("c_total", Sample::Counter(3.0 * (n - first + 1) as f64)),
            ("h_seconds", Sample::Histogram(all.clone())),
        ];
        assert_eq!(process.tick(&history, at_ms(n), &samples), Some(at_ms(n)));
        let recorded = Instant::now();
        while newest_log(path) == before {
            assert!(recorded.elapsed() < Duration::from_secs(1), "tick {n} is not in the log");
            std::thread::yield_now();
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "written {n}").expect("the parent listens");
    }
}

/// Ends the child, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a child record until it has said so `reports` times, kills it, and returns its last tick.
fn kill_a_recorder(path: &Path, first: i64, reports: usize) -> i64 {
    let mut child = Killed(
        Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--exact", "records_until_killed", "--ignored", "--nocapture"])
            .env(DIRECTORY, path)
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts"),
    );
    let out = BufReader::new(child.0.stdout.take().expect("it is piped"));
    let (mut last, mut seen) = (None, 0);
    for line in out.split(b'\n') {
        let line = String::from_utf8(line.expect("the pipe can be read")).expect("text");
        let tick = line.strip_prefix("written ").and_then(|n| n.parse::<i64>().ok());
        // The last line may be cut short: it may then be any beginning of the number.
        let follows = |tick: &i64| last.is_none_or(|last| *tick == last + 1);
        let Some(tick) = tick.filter(follows) else { continue };
        last = Some(tick);
        seen += 1;
        if seen == reports {
            let locked = History::open(options(path)).err();
            assert!(matches!(locked, Some(OpenError::Locked { .. })), "{locked:?}");
            child.0.kill().expect("it can be killed");
        }
    }
    assert!(seen >= reports, "the child ended early, after {seen} reports");
    last.expect("it reported")
}

#[test]
fn a_killed_process_leaves_what_it_wrote() {
    let rounds = std::env::var(ROUNDS).ok().and_then(|n| n.parse().ok()).unwrap_or(10_u64);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history");
    let mut first = 0;
    for round in 0..rounds {
        let reports = 1 + (round.wrapping_mul(0x9e37_79b9) >> 3) as usize % 150;
        let last = kill_a_recorder(&path, first, reports);
        let history = History::open(options(&path)).expect("the dead have no lock");
        assert_eq!(history.degraded(), None);
        assert_eq!(history.stats().chunks_damaged, 0);
        let kept_ms = history.last_ms().expect("ticks were kept");
        assert!(kept_ms >= at_ms(last), "round {round}: {last} was written, kept up to {kept_ms}");
        let id = |name| history.matching(&Selector::name(name))[0].id;
        // Everything of this round, and here and there something of those before.
        for n in (0..first).step_by(17).chain(first..=last) {
            let window = Window { from_ms: at_ms(n) - 1, to_ms: at_ms(n) };
            let found = history.range(&[id("g")], window, 1, Aggregate::Last);
            assert_eq!(found, [Some(gauge(n))], "round {round}, tick {n}");
        }
        let window = Window { from_ms: at_ms(first) - 1, to_ms: at_ms(last) };
        let sum = |name, aggregate| {
            let points = history.range(&[id(name)], window, 1_000, aggregate);
            points.iter().flatten().sum::<f64>()
        };
        let ticks = last - first + 1;
        assert_eq!(sum("h_seconds", Aggregate::Count), ticks as f64, "round {round}");
        assert_eq!(sum("c_total", Aggregate::Max), (1..=ticks).sum::<i64>() as f64 * 3.0);
        first = last_tick(kept_ms) + 1;
    }
}
