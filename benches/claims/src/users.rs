//! The claims about many users: the accelerator in a process of its own, asked over kept connections.
//!
//! The process is this program again, so that its memory is that of the accelerator and of nothing else. The
//! backend takes 20 ms for a page and allows a minute of caching; it and the users live in this process.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use ultra_perf_bench::Suite;

use crate::proxy::{start_backend, start_server};

const SUCCESS: &str = "\"> 95 % success with 100 users\": 50 requests each, no pause between them";
const P95: &str = "\"1,000 users at p95 < 200 ms\": 3 requests each, about a second between two";
const MEMORY: &str =
    "\"1,000 users in < 512 MB\": the accelerator's largest resident set meanwhile";
/// Pages that the users ask for.
const PAGES: u32 = 200;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tells the child where its backend is.
const BACKEND: &str = "BENCH_CLAIMS_BACKEND";

/// Serves as the accelerator until its input ends, if this process was started for that.
pub(crate) fn ran_as_child() -> bool {
    let Some(backend) = std::env::var(BACKEND).ok().and_then(|text| text.parse().ok()) else {
        return false;
    };
    allow_connections();
    let runtime = Runtime::new().expect("threads can be started");
    let server = runtime.block_on(start_server(backend));
    println!("{}", server.proxy_addr());
    io::stdin().read_to_end(&mut Vec::new()).expect("its input is a pipe");
    runtime.block_on(server.shutdown(Duration::from_secs(1)));
    true
}

/// Measures the claims about many users.
pub(crate) fn measure(suite: &mut Suite) {
    if ![SUCCESS, P95, MEMORY].iter().any(|case| suite.wants(case)) {
        return;
    }
    allow_connections();
    let runtime = Runtime::new().expect("threads can be started");
    let backend = runtime.block_on(start_backend()).expect("loopback has a free port");
    let accelerator = Accelerator::start(backend).expect("this program can be started");
    let mut round = 0;
    let mut ask = |users, requests, pause| {
        round += 1;
        let crowd = Crowd { to: accelerator.address, users, requests, pause, round };
        runtime.block_on(crowd.ask())
    };
    suite.reported(SUCCESS, "%").rounds(9).at_least(95.0).measure(|| {
        let answers = ask(100, 50, Duration::ZERO);
        100.0 * answers.in_time.len() as f64 / answers.requests as f64
    });
    let mut p95 = || {
        let mut answers = ask(1_000, 3, Duration::from_secs(1));
        // What was not answered took longer than all that was.
        let rank = (0.95 * answers.requests as f64).ceil() as usize;
        answers.in_time.sort();
        answers.in_time.get(rank - 1).unwrap_or(&PATIENCE).as_secs_f64() * 1e3
    };
    let alone = !suite.wants(P95);
    suite.reported(P95, "ms").rounds(9).at_most(200.0).measure(&mut p95);
    if alone && suite.wants(MEMORY) {
        p95();
    }
    match accelerator.peak_mb() {
        Some(peak) => suite.reported(MEMORY, "MB").at_most(512.0).observed(peak),
        None => suite.reported(MEMORY, "MB").skip("itself", "this system has no /proc/PID/status"),
    }
    drop(accelerator);
    runtime.shutdown_background();
}

/// Raises the number of files that this process may have open to what it is allowed to ask for.
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, connections fail and the rows show it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The accelerator in its process, which ends with this value.
struct Accelerator {
    child: Child,
    address: SocketAddr,
}

impl Accelerator {
    fn start(backend: SocketAddr) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(BACKEND, backend.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line)?;
        match line.trim().parse() {
            Ok(address) => Ok(Self { child, address }),
            Err(_) => {
                let _ = child.kill();
                Err(io::Error::other(format!("the accelerator said {line:?}")))
            }
        }
    }

    /// The most that it has had in memory so far, in megabytes.
    fn peak_mb(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1_024.0 / 1e6)
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Users that ask at the same time, each over a connection of its own.
#[derive(Clone, Copy)]
struct Crowd {
    to: SocketAddr,
    users: u32,
    requests: u32,
    /// Between two requests of a user, half of it to one and a half.
    pause: Duration,
    round: u64,
}

/// What became of the requests of a crowd.
struct Answers {
    requests: u32,
    /// How long those took that were answered with a page.
    in_time: Vec<Duration>,
}

impl Crowd {
    async fn ask(self) -> Answers {
        let mut users = JoinSet::new();
        for user in 0..self.users {
            users.spawn(self.be(user));
        }
        let in_time = users.join_all().await.into_iter().flatten().collect();
        Answers { requests: self.users * self.requests, in_time }
    }

    async fn be(self, user: u32) -> Vec<Duration> {
        let mut rng = Rng::with_seed(self.round << 32 | u64::from(user));
        let mut in_time = Vec::new();
        let mut connection = None;
        // Nobody begins at the same moment as all the others.
        sleep(self.pause.mul_f64(rng.f64())).await;
        for _ in 0..self.requests {
            let path = format!("/page/{}", rng.u32(..PAGES));
            let asked = Instant::now();
            let mut used = connection.take();
            if let Ok(Ok(())) = timeout(PATIENCE, get(self.to, &mut used, &path)).await {
                in_time.push(asked.elapsed());
                connection = used;
            }
            sleep(self.pause.mul_f64(0.5 + rng.f64())).await;
        }
        in_time
    }
}

type Connection = tokio::io::BufReader<TcpStream>;

/// Asks for a page over a connection, which is opened if there is none.
async fn get(to: SocketAddr, connection: &mut Option<Connection>, path: &str) -> io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            connection.insert(Connection::new(stream))
        }
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("answered {:?}", line.trim())));
    }
    let mut length = None;
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length.ok_or_else(|| io::Error::other("no length"))?];
    stream.read_exact(&mut body).await.map(drop)
}
