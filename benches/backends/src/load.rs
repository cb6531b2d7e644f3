//! An open-loop load: requests are due at random moments, whatever became of those before.
//!
//! A closed loop waits for an answer before it asks again, so a server that stalls is asked less while
//! it does and looks better than it is (coordinated omission). Here the moments are drawn first, a
//! Poisson stream, and the latency of a request counts from when it was due, also if the program was
//! late to send it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// A request without an answer after this is an error.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are out at once; what is due beyond that is an error.
const OUTSTANDING_MAX: usize = 10_000;

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// When it was due, from the start of the load.
    pub(crate) due: Duration,
    /// From then to the end of its answer, or to when it was given up.
    pub(crate) latency: Duration,
    /// Whether the answer was a 200 with its whole body.
    pub(crate) good: bool,
}

/// Names what the request of a number asks for.
pub(crate) type Paths = fn(u64) -> String;

/// A path of its own for each request, whose answer may not be stored: none is answered by a cache or
/// along with another.
pub(crate) fn work(number: u64) -> String {
    format!("/pages/{number}")
}

/// Sends `per_second` requests for `length` and returns what became of each.
pub(crate) async fn run(
    to: SocketAddr,
    paths: Paths,
    per_second: f64,
    length: Duration,
    seed: u64,
) -> Vec<Sample> {
    let idle = Arc::new(Idle::default());
    let mut rng = Rng::with_seed(seed);
    let mut running = JoinSet::new();
    let mut samples = Vec::new();
    let start = Instant::now();
    let mut due = Duration::ZERO;
    for number in 0_u64.. {
        due += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / per_second);
        if due >= length {
            break;
        }
        sleep_until(start + due).await;
        while let Some(done) = running.try_join_next() {
            samples.extend(done.ok());
        }
        if running.len() >= OUTSTANDING_MAX {
            samples.push(Sample { due, latency: TIMEOUT, good: false });
            continue;
        }
        let idle = Arc::clone(&idle);
        running.spawn(async move {
            let asked = timeout(TIMEOUT, idle.ask(to, paths(number))).await;
            let good = matches!(asked, Ok(Ok(StatusCode::OK)));
            Sample { due, latency: Instant::now() - start - due, good }
        });
    }
    while let Some(done) = running.join_next().await {
        samples.extend(done.ok());
    }
    samples.sort_by_key(|sample| sample.due);
    samples
}

type Connection = SendRequest<Empty<Bytes>>;

/// Connections that nobody uses at the moment, the last used on top.
#[derive(Default)]
struct Idle(Mutex<Vec<Connection>>);

impl Idle {
    /// Sends a request over a connection that is free or new.
    async fn ask(&self, to: SocketAddr, path: String) -> Result<StatusCode, Failed> {
        loop {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match kept {
                Some(kept) if kept.is_closed() => continue,
                Some(kept) => kept,
                None => connect(to).await?,
            };
            connection.ready().await?;
            let request = Request::get(path.as_str())
                .header(http::header::HOST, "backends.test")
                .body(Empty::new())
                .expect("the path and the header are valid");
            let answer = match connection.send_request(request).await {
                Ok(answer) => answer,
                // It was never sent: the server had closed a connection that it had kept for long.
                Err(error) if error.is_canceled() => continue,
                Err(error) => return Err(error.into()),
            };
            let status = answer.status();
            answer.into_body().collect().await?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            return Ok(status);
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn connect(to: SocketAddr) -> Result<Connection, Failed> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong on it reaches the request that it happened to.
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_request_that_was_due_counts_and_a_stall_is_not_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let to = listener.local_addr().expect("it is bound");
        let begun = Instant::now();
        // Answers nothing for the first 300 ms, and 500 from 600 ms on.
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("it listens");
                tokio::spawn(async move {
                    let mut head = [0; 1_024];
                    while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                        sleep_until(begun + Duration::from_millis(300)).await;
                        let late = begun.elapsed() > Duration::from_millis(600);
                        let status = if late { "500 Oh" } else { "200 OK" };
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                        _ = stream.write_all(answer.as_bytes()).await;
                    }
                });
            }
        });
        let samples = run(to, work, 200.0, Duration::from_millis(900), 7).await;
        server.abort();
        assert!((120..250).contains(&samples.len()), "{} were sent", samples.len());
        let first = samples[0];
        assert!(first.good && first.due + first.latency >= Duration::from_millis(290), "{first:?}");
        let last = samples[samples.len() - 1];
        assert!(!last.good, "{last:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error_of_each_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let to = listener.local_addr().expect("it is bound");
        drop(listener);
        let samples = run(to, work, 500.0, Duration::from_millis(50), 7).await;
        assert!(!samples.is_empty() && samples.iter().all(|sample| !sample.good));
    }
}
