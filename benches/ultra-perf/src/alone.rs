//! What belongs to a process of its own: the time of a start, and the memory and CPU time of standing idle.
//!
//! The child is this program again. One that starts at `Basic` says how long it took and by how much its
//! resident set grew; one that stands idle at `Ultra`, with an open cache, says every few seconds how much
//! of a core it took.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use ultra_perf::{OptimizationLevel, UltraPerf};
use ultra_perf_bench::{Clock, Stopwatch, Suite};

const START: &str = "start at Basic, to the handle";
const START_IN_MEMORY: &str = "start at Basic, the monitor's history not on disk";
const GROWTH: &str = "start at Basic, growth of the resident set until a second later";
/// Without the pages of the program's file, which the system shares between processes and drops at will.
const OWN_GROWTH: &str = "start at Basic, growth of the anonymous memory until a second later";
const IDLE: &str = "idle at Ultra with a cache open, share of a core over 4 s";

/// Tells a child what it is to do.
const CHILD: &str = "BENCH_ULTRA_PERF_CHILD";
/// Where a child keeps what it writes to the disk.
const DIRECTORY: &str = "BENCH_ULTRA_PERF_DIRECTORY";
/// How long one reading of the idle process takes.
const WINDOW: Duration = Duration::from_secs(4);

/// Does what a child is asked for, if this process is one.
pub(crate) fn ran_as_child() -> bool {
    match std::env::var(CHILD).as_deref() {
        Ok("start") => start(true),
        Ok("start in memory") => start(false),
        Ok("idle") => idle(),
        _ => return false,
    }
    true
}

fn start(history: bool) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("threads can be started");
    let before = resident_mib();
    let began = Instant::now();
    let perf = runtime.block_on(build(OptimizationLevel::Basic, history));
    let took = began.elapsed();
    // The first tick of the monitor has been by then.
    thread::sleep(Duration::from_secs(1));
    let [all, anonymous] = resident_mib();
    println!("{} {} {}", took.as_secs_f64() * 1e3, all - before[0], anonymous - before[1]);
    drop(perf);
}

fn idle() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("threads can be started");
    let perf = runtime.block_on(build(OptimizationLevel::Ultra, true));
    let cache = runtime.block_on(perf.cache::<u64, String>("idle").open());
    let cache = cache.expect("a valid configuration");
    (0..1_000).for_each(|key| cache.insert(key, key.to_string()));
    loop {
        let watch = Stopwatch::start(Clock::Cpu);
        thread::sleep(WINDOW);
        let share = 100.0 * watch.elapsed().as_secs_f64() / WINDOW.as_secs_f64();
        println!("{share}");
    }
}

async fn build(level: OptimizationLevel, history: bool) -> UltraPerf {
    let directory = std::env::var(DIRECTORY).expect("the parent says where");
    let perf = UltraPerf::builder()
        .level(level)
        .set("cache.disk.path", format!("{directory}/cache"))
        .set("monitor.history.enabled", history.to_string())
        .set("monitor.history.path", format!("{directory}/history"));
    perf.build().await.expect("a valid configuration")
}

/// The resident set and what of it belongs to no file, in MiB; zero where the system does not tell.
fn resident_mib() -> [f64; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    };
    ["VmRSS:", "RssAnon:"].map(|key| of(key).unwrap_or(0.0) / 1_024.0)
}

/// Measures the start and the idle process.
pub(crate) fn measure(suite: &mut Suite) {
    let started = |what, number| {
        let mut child = Told::start(what).expect("this program can be started");
        let line = child.line().expect("the child says what it saw");
        let number = line.split(' ').nth(number).expect("three numbers");
        number.parse().expect("a number")
    };
    suite.reported(START, "ms").rounds(9).at_most(20.0).measure(|| started("start", 0));
    suite.reported(START_IN_MEMORY, "ms").rounds(9).measure(|| started("start in memory", 0));
    if resident_mib()[0] > 0.0 {
        suite.reported(GROWTH, "MiB").rounds(9).at_most(5.0).measure(|| started("start", 1));
        suite.reported(OWN_GROWTH, "MiB").rounds(9).measure(|| started("start", 2));
    } else {
        suite.reported(GROWTH, "MiB").skip("itself", "this system has no /proc/self/status");
    }
    if suite.wants(IDLE) {
        let mut child = Told::start("idle").expect("this program can be started");
        suite.reported(IDLE, "%").rounds(9).at_most(0.5).measure(|| {
            let line = child.line().expect("the child says what it took");
            line.trim().parse().expect("a number")
        });
    }
}

/// A child and what it says; it ends with this value.
struct Told {
    child: Child,
    output: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Told {
    fn start(what: &str) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env(CHILD, what).env(DIRECTORY, directory.path()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, output, _directory: directory })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err(io::Error::other("the child has ended")),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
