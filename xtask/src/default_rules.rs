//! `cargo xtask default-rules`: the rules that come with the accelerator fire and clear under real load.
//!
//! A real `ultra-perf serve` in front of a real backend watches this machine with the default rules, in which
//! seconds stand for minutes. Then the machine is made busy, its memory is filled, the backend fails, is slow,
//! and is asked for pages that nobody asked for before; each time the alert must fire, and end when the
//! load does. It needs a quiet machine, and 90 % of its memory for some seconds (`--skip-memory` leaves that
//! out).

use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::prometheus::get;
use crate::{Outcome, repo, scratch};

/// How long an alert may take to fire, and to end; memory is filled slowly on a small machine.
const PATIENCE: Duration = Duration::from_secs(240);
/// What a slow page takes; the rule is about two seconds.
const SLOW: Duration = Duration::from_millis(2_300);
/// The share of the memory to which it is filled; the rule is about 85 %.
const FULL_PERCENT: f64 = 88.0;
const STEP_BYTES: usize = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leaves the machine's memory alone
    #[arg(long)]
    skip_memory: bool,
}

/// Puts a load on the accelerator, or on the machine that it watches.
type StartLoad = dyn Fn(&Accelerator) -> Load;

/// Starts all of it and puts one load after the other on.
pub(crate) fn run(options: &Options) -> Outcome {
    repo::run(&mut repo::cargo("build --package ultra-perf-cli"))?;
    let backend = backend().map_err(|error| format!("the backend does not start: {error}"))?;
    let accelerator = Accelerator::start(&backend)?;
    let skipped = if options.skip_memory { "memory_high" } else { "" };
    let loads: [(&str, &StartLoad); 5] = [
        ("cpu_high", &|_| Load::busy()),
        ("memory_high", &|accelerator| Load::memory(accelerator.admin.clone())),
        ("error_ratio_high", &|it| it.requests(1, |n| format!("/error?{n}"))),
        ("latency_high", &|it| it.requests(4, |_| "/slow".to_owned())),
        ("cache_hit_ratio_low", &|it| it.requests(1, |n| format!("/page?{n}"))),
    ];
    for (rule, load) in loads {
        if rule == skipped {
            println!("{rule:<20} skipped");
            continue;
        }
        // Ratios need requests that the cache answers; beside them slow ones would be too few.
        let steady =
            (rule != "latency_high").then(|| accelerator.requests(1, |_| "/steady".to_owned()));
        let begun = Instant::now();
        let load = load(&accelerator);
        accelerator.await_state(rule, "firing")?;
        let fired = begun.elapsed();
        drop(load);
        // Without any requests there is nothing that could be well again.
        let calm = accelerator.requests(1, |_| "/steady".to_owned());
        accelerator.await_state(rule, "ended")?;
        drop(calm);
        println!("{rule:<20} fired after {fired:.1?}, ended {:.1?} later", begun.elapsed() - fired);
        drop(steady);
    }
    Ok(())
}

/// The accelerator under test; it ends with its handle.
struct Accelerator {
    child: Child,
    proxy: String,
    admin: String,
}

impl Accelerator {
    fn start(backend: &str) -> Result<Self, String> {
        let rules = scratch("default_rules.toml")?;
        fs::write(&rules, hurried()?).map_err(|error| format!("cannot write rules: {error}"))?;
        let mut child = repo::program(repo::target().join("debug/ultra-perf"))
            .args(["serve", "--to", backend, "--log-format", "json"])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("ULTRA_PERF__MONITOR__RULES", &rules)
            .env("ULTRA_PERF__MONITOR__DEFAULT_RULES", "false")
            .env("ULTRA_PERF__MONITOR__HISTORY__ENABLED", "false")
            .env("ULTRA_PERF__CACHE__DISK__ENABLED", "false")
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run ultra-perf: {error}"))?;
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let mut address = || loop {
            let line: Value = serde_json::from_str(&lines.next()?.ok()?).ok()?;
            if let Some((_, rest)) = line["message"].as_str()?.split_once("http://") {
                return Some(rest.split([' ', '/']).next()?.to_owned());
            }
        };
        let (proxy, admin) = (address(), address());
        // Whoever logs must not block on a full pipe.
        thread::spawn(move || lines.for_each(drop));
        match (proxy, admin) {
            (Some(proxy), Some(admin)) => Ok(Self { child, proxy, admin }),
            _ => Err("ultra-perf does not say where it listens".to_owned()),
        }
    }

    /// Sends requests from some threads until the load is dropped.
    fn requests(
        &self,
        threads: usize,
        path: impl Fn(u64) -> String + Clone + Send + 'static,
    ) -> Load {
        let proxy = self.proxy.clone();
        Load::of(threads, move |stop| {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                // A failure shows in the alerts, and that is what is waited for.
                let _ = get(&proxy, &path(sent));
                sent += 1;
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    /// Waits until an alert of a rule is in a state.
    fn await_state(&self, rule: &str, state: &str) -> Outcome {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let alerts = get(&self.admin, "/performance/alerts?hours=1")?;
            let alerts: Value = serde_json::from_str(&alerts).map_err(|error| error.to_string())?;
            let list = alerts["alerts"].as_array().map_or(&[][..], Vec::as_slice);
            let mut states = list.iter().filter(|alert| alert["type"] == rule).peekable();
            let reached = match state {
                // An earlier one may have ended while this one goes on.
                "ended" => states.peek().is_some() && states.all(|alert| alert["state"] == state),
                _ => states.any(|alert| alert["state"] == state),
            };
            if reached {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(format!("{rule} is not {state} after {PATIENCE:?}"))
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The default rules with seconds for minutes.
fn hurried() -> Result<String, String> {
    let path = repo::root().join("crates/monitor/src/alert/default_rules.toml");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let hurried = [
        ("every = \"10s\"", "every = \"1s\""),
        ("for = \"2m\"", "for = \"2s\""),
        ("for = \"5m\"", "for = \"5s\""),
        ("window = \"1m\"", "window = \"3s\""),
        ("window = \"5m\"", "window = \"5s\""),
        ("[5m]", "[5s]"),
        ("within = \"30m\", hold = \"15m\"", "within = \"10s\", hold = \"5s\""),
    ];
    Ok(hurried.iter().fold(text, |text, (from, to)| text.replace(from, to)))
}

/// Threads that load something until this is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn of(threads: usize, work: impl Fn(&AtomicBool) + Clone + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let (stop, work) = (Arc::clone(&stop), work.clone());
            thread::spawn(move || work(&stop))
        };
        Self { threads: (0..threads).map(start).collect(), stop }
    }

    /// Computes on all cores.
    fn busy() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::of(cores, |stop| {
            let mut number = 1_u64;
            while !stop.load(Relaxed) {
                (0..10_000).for_each(|step| number = black_box(number.wrapping_mul(31) ^ step));
            }
        })
    }

    /// Fills the memory until the accelerator reads [`FULL_PERCENT`].
    fn memory(admin: String) -> Self {
        Self::of(1, move |stop| {
            let mut blocks = Vec::new();
            while !stop.load(Relaxed) {
                let health = get(&admin, "/performance/health").unwrap_or_default();
                let health: Value = serde_json::from_str(&health).unwrap_or_default();
                let system = &health["system_resources"];
                let used = system["memory_percent"].as_f64().unwrap_or(100.0);
                let free = system["memory_available"].as_f64().unwrap_or(0.0);
                if used >= FULL_PERCENT {
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
                // The reading is a second old at most: a quarter of what is missing is no overshoot.
                let total = free / (1.0 - used / 100.0).max(0.01);
                let missing = (FULL_PERCENT - used) / 100.0 * total;
                for _ in 0..(missing / 4.0 / STEP_BYTES as f64).ceil() as usize {
                    blocks.push(vec![1_u8; STEP_BYTES]);
                }
                thread::sleep(Duration::from_millis(1_200));
            }
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been told by itself.
            let _ = thread.join();
        }
    }
}

/// Starts a backend that fails, is slow or answers, and returns its URL.
fn backend() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes away is no concern of the backend's.
            thread::spawn(move || drop(answer(client)));
        }
    });
    Ok(url)
}

fn answer(mut client: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let status = if path.starts_with("/error") { "500 Broken" } else { "200 OK" };
    if path.starts_with("/slow") {
        thread::sleep(SLOW);
    }
    let kept = if path.starts_with("/slow") { "no-store" } else { "max-age=3600" };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: 2\r\nCache-Control: {kept}\r\nConnection: \
         close\r\n\r\nok"
    )
}
