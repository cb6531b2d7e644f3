//! A backend whose capacity is known, as a process that can be made slow, failing, dead or frozen.
//!
//! It serves so many requests at once and lets each wait for a while; the others queue. Nothing is
//! computed, so its capacity is slots over service time on any machine. The process is this program
//! again: it prints its port, takes commands from its standard input and ends when that closes.

use std::convert::Infallible;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use fastrand::Rng;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Requests that a backend serves at once.
pub(crate) const SLOTS: u16 = 16;
/// The mean time of a request; each takes between half of it and one and a half.
pub(crate) const SERVICE: Duration = Duration::from_millis(40);
/// Requests that wait for a slot; more get a 503.
const QUEUE_MAX: usize = 2_000;
/// What slowness divides by: one is as fast as it should be.
const FAILING: u32 = 0;
const BODY: [u8; 1024] = [b'x'; 1024];

/// Requests per second that a backend can serve.
pub(crate) fn capacity() -> f64 {
    f64::from(SLOTS) / SERVICE.as_secs_f64()
}

/// What the process of a backend is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct BackendOptions {
    /// The loopback port; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the requests of a backend share.
struct State {
    /// How many times longer a request takes than it should; [`FAILING`] answers 503 at once.
    slowness: AtomicU32,
    slots: Semaphore,
    waiting: AtomicUsize,
    rng: Mutex<Rng>,
}

/// Serves until standard input closes.
pub(crate) fn serve(options: &BackendOptions) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let state = Arc::new(State {
        slowness: AtomicU32::new(1),
        slots: Semaphore::new(usize::from(SLOTS)),
        waiting: AtomicUsize::new(0),
        rng: Mutex::new(Rng::with_seed(options.seed)),
    });
    let told = Arc::clone(&state);
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if let Ok(slowness) = line.trim().parse() {
                told.slowness.store(slowness, Ordering::Relaxed);
            }
        }
        std::process::exit(0);
    });
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
        println!("{}", listener.local_addr()?.port());
        io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                let service = service_fn(|request| answer(&state, request));
                // A connection that breaks is the client's affair.
                _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

/// Answers what is not to be stored, is fresh for long, or is stale at once, by the first of the path.
async fn answer<B>(
    state: &State,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let control = match request.uri().path() {
        path if path.starts_with("/fresh/") => "max-age=3600",
        path if path.starts_with("/stale/") => "max-age=0, stale-while-revalidate=3600",
        _ => "no-store",
    };
    let status =
        if serve_one(state).await { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = Response::new(Full::new(Bytes::from_static(&BODY)));
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(control));
    Ok(response)
}

/// Waits for a slot and then for the service; tells whether the request is served.
async fn serve_one(state: &State) -> bool {
    if state.slowness.load(Ordering::Relaxed) == FAILING {
        return false;
    }
    let Some(queued) = Queued::enter(&state.waiting) else { return false };
    let Ok(_slot) = state.slots.acquire().await else { return false };
    drop(queued);
    let share = state.rng.lock().unwrap_or_else(PoisonError::into_inner).f64() + 0.5;
    let slowness = state.slowness.load(Ordering::Relaxed).max(1);
    // The timer rounds up to the next millisecond, half of one in the mean.
    let service = SERVICE.mul_f64(share * f64::from(slowness));
    tokio::time::sleep(service.saturating_sub(Duration::from_micros(500))).await;
    true
}

/// A place in the queue; leaves it when dropped, also when the client has gone.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Option<Self> {
        let queued = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < QUEUE_MAX).then_some(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A backend's process, as its parent sees it. It is killed when this is dropped.
pub(crate) struct Backend {
    pub(crate) port: u16,
    child: Child,
    commands: ChildStdin,
    seed: u64,
}

impl Backend {
    /// Starts one on a free port and waits until it listens.
    pub(crate) fn start(seed: u64) -> io::Result<Self> {
        Self::start_on(0, seed)
    }

    fn start_on(port: u16, seed: u64) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["backend", "--port", &port.to_string(), "--seed", &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        // From here on a failure ends the process.
        let mut backend = Self { port, child, commands, seed };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        backend.port = line
            .trim()
            .parse()
            .map_err(|_| io::Error::other(format!("a backend on port {port} did not start")))?;
        Ok(backend)
    }

    /// Makes every request take so many times longer than it should.
    pub(crate) fn slow(&mut self, times: u32) -> io::Result<()> {
        writeln!(self.commands, "{}", times.max(1))
    }

    /// Makes it answer every request with 503 at once.
    pub(crate) fn fail(&mut self) -> io::Result<()> {
        writeln!(self.commands, "{FAILING}")
    }

    /// Makes it serve as it should.
    pub(crate) fn heal(&mut self) -> io::Result<()> {
        self.slow(1)
    }

    /// Kills it, with whatever it was doing.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        *self = Self::start_on(self.port, self.seed)?;
        Ok(())
    }

    /// Stops its clock, so that connections stand and nothing is answered.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::STOP)?)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Also ends a process that is frozen.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(slowness: u32) -> State {
        State {
            slowness: AtomicU32::new(slowness),
            slots: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            rng: Mutex::new(Rng::with_seed(1)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_take_turns_and_a_failing_backend_answers_at_once() {
        let start = tokio::time::Instant::now();
        let state = state(10);
        assert_eq!(tokio::join!(serve_one(&state), serve_one(&state)), (true, true));
        // Two turns of half to one and a half of ten times the service time.
        let took = start.elapsed();
        assert!(took >= SERVICE * 10 && took <= SERVICE * 30, "{took:?}");
        state.slowness.store(FAILING, Ordering::Relaxed);
        assert!(!serve_one(&state).await);
        assert_eq!(start.elapsed(), took);
    }

    #[tokio::test]
    async fn a_full_queue_turns_away_and_who_leaves_makes_room() {
        let waiting = AtomicUsize::new(QUEUE_MAX - 1);
        let last = Queued::enter(&waiting).expect("one place is left");
        assert!(Queued::enter(&waiting).is_none());
        drop(last);
        assert_eq!(waiting.load(Ordering::Relaxed), QUEUE_MAX - 1);
    }
}
