//! Active checks: a task that asks every backend now and then whether it is well.
//!
//! A check is a TCP connection, an HTTP request whose status is looked at, or a call of the health
//! service of gRPC (`grpc`). Backends are asked at times of their own, spread over the interval and moved
//! by chance, so that neither many backends nor many balancers are in step. The results go to
//! [`Balancer::report_check`], whose thresholds decide.

#[cfg(feature = "grpc")]
mod grpc;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::balancer::Balancer;

/// How backends are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// Well if it takes a connection.
    Tcp,
    /// Well if it answers a GET of `path` with a status in `statuses`, without TLS.
    Http {
        /// The path and query, such as `/healthz`.
        path: String,
        /// The statuses that are good.
        statuses: RangeInclusive<u16>,
    },
    /// Well if `grpc.health.v1.Health/Check` says SERVING, without TLS.
    #[cfg(feature = "grpc")]
    Grpc {
        /// The service that is asked about; empty for the whole server.
        service: String,
    },
}

/// When and how backends are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checks {
    /// How they are asked.
    pub check: Check,
    /// How often each is asked, give or take a tenth; at least 10 ms, 5 s unless told.
    pub interval: Duration,
    /// How long an answer may take; 2 s unless told.
    pub timeout: Duration,
    /// How many are asked at once at most, at least one; 64 unless told.
    pub at_once_max: usize,
}

impl Checks {
    /// Asks by `check`, with the default times.
    pub fn new(check: Check) -> Self {
        let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(2));
        Self { check, interval, timeout, at_once_max: 64 }
    }

    /// Starts to check the backends of a balancer, whoever they are over time.
    ///
    /// The address of a backend is its id without `http://` and without what follows the port, so
    /// `10.0.0.1:8000` and `http://10.0.0.1:8000/` are the same; without a port it is port 80. The
    /// balancer must have been built with [`checks`](crate::BalancerBuilder::checks) for the results to
    /// count.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(self, balancer: &Balancer) -> CheckTask {
        CheckTask { task: tokio::spawn(self.run(balancer.clone())) }
    }

    async fn run(self, balancer: Balancer) {
        let interval = self.interval.max(Duration::from_millis(10));
        let mut due: HashMap<Arc<str>, Instant> = HashMap::new();
        let mut running: JoinSet<(Arc<str>, Result<(), String>)> = JoinSet::new();
        loop {
            let now = Instant::now();
            let ids = balancer.ids();
            due.retain(|id, _| ids.contains(id));
            for id in &ids {
                // A new one is asked soon, since it gets nothing before.
                let soon = || now + interval.mul_f64(0.1 * fastrand::f64());
                due.entry(Arc::clone(id)).or_insert_with(soon);
            }
            for (id, at) in &mut due {
                if *at <= now && running.len() < self.at_once_max.max(1) {
                    *at = now + interval.mul_f64(0.9 + 0.2 * fastrand::f64());
                    let (id, check, time) = (Arc::clone(id), self.check.clone(), self.timeout);
                    running.spawn(async move {
                        let result = timeout(time, check.ask(&id)).await;
                        let late = |_| Err(format!("no answer in {time:?}"));
                        (id, result.unwrap_or_else(late))
                    });
                }
            }
            // Wakes for results, for who is due, and in time to see changes of the set.
            let free = running.len() < self.at_once_max.max(1);
            let next = due.values().copied().filter(|_| free).min();
            let look = now + interval / 10;
            let wake = next.map_or(look, |next| next.min(look));
            tokio::select! {
                Some(Ok((id, result))) = running.join_next() => {
                    let result = match &result {
                        Ok(()) => Ok(()),
                        Err(reason) => Err(reason.as_str()),
                    };
                    balancer.report_check(&id, result);
                }
                () = sleep_until(wake) => {}
            }
        }
    }
}

impl Check {
    async fn ask(&self, id: &str) -> Result<(), String> {
        let address = address(id);
        let connected = match has_port(address) {
            true => TcpStream::connect(address).await,
            false => TcpStream::connect(format!("{address}:80")).await,
        };
        let mut stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
        let (path, statuses) = match self {
            Self::Tcp => return Ok(()),
            #[cfg(feature = "grpc")]
            Self::Grpc { service } => return grpc::ask(stream, address, service).await,
            Self::Http { path, statuses } => (path, statuses),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: health-check\r\n\
             Connection: close\r\n\r\n"
        );
        let broken = |error: std::io::Error| format!("connection broke: {error}");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        // `HTTP/1.1 200` is all that matters.
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.map_err(broken)?;
        let status = std::str::from_utf8(&line)
            .ok()
            .and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..)?.parse::<u16>().ok());
        match status {
            Some(status) if statuses.contains(&status) => Ok(()),
            Some(status) => Err(format!("status {status}")),
            None => Err("no HTTP response".to_owned()),
        }
    }
}

/// The host and port that an id stands for.
fn address(id: &str) -> &str {
    let rest = id.strip_prefix("http://").unwrap_or(id);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// Whether a port stands behind a host, of which an address of IPv6 is in brackets.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'))
}

/// Running checks; they stop when this is dropped.
#[derive(Debug)]
#[must_use = "the checks stop when this is dropped"]
pub struct CheckTask {
    task: JoinHandle<()>,
}

impl Drop for CheckTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::backend::{Backend, BackendState};
    use crate::event::Events;
    use crate::health::Thresholds;

    /// Answers every connection with `answer`; returns the address.
    async fn server(answer: &'static str) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1_024];
                _ = stream.read(&mut request).await;
                _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, task)
    }

    fn fast(check: Check) -> Checks {
        Checks {
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(500),
            ..Checks::new(check)
        }
    }

    fn checked(ids: &[&str]) -> Balancer {
        Balancer::builder()
            .backends(ids.iter().map(|id| Backend::new(*id)))
            .checks(Thresholds { rise: 1, fall: 1 })
            .panic_threshold(0.0)
            .build()
            .expect("a valid set")
    }

    /// Waits for so many events and returns them, sorted.
    async fn told(events: &mut Events, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        while told.len() < count {
            let event = timeout(Duration::from_secs(20), events.next()).await;
            told.push(event.expect("it happens soon").expect("the balancer lives").to_string());
        }
        told.sort();
        told
    }

    #[tokio::test]
    async fn an_http_check_looks_at_the_status() {
        let http = |path: &str| Check::Http { path: path.to_owned(), statuses: 200..=299 };
        let (good, _good) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        let (bad, _bad) = server("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let (odd, _odd) = server("SSH-2.0-OpenSSH_9.2 hello").await;
        assert_eq!(http("/").ask(&good).await, Ok(()));
        assert_eq!(http("/").ask(&format!("http://{good}/app")).await, Ok(()));
        assert_eq!(http("/").ask(&bad).await, Err("status 503".to_owned()));
        assert_eq!(http("/").ask(&odd).await, Err("no HTTP response".to_owned()));
    }

    #[tokio::test]
    async fn the_task_finds_who_is_up_and_who_went_down() {
        let (one, one_runs) = server("").await;
        let (two, _two_runs) = server("").await;
        let balancer = checked(&[&one, &two]);
        let mut events = balancer.events();
        let task = fast(Check::Tcp).start(&balancer);
        let up = "up: its checks succeed";
        let mut expected = vec![format!("{one}: {up}"), format!("{two}: {up}")];
        expected.sort();
        assert_eq!(told(&mut events, 2).await, expected);
        one_runs.abort();
        let down = told(&mut events, 1).await;
        assert!(down[0].starts_with(&format!("{one}: down: cannot connect: ")), "{down:?}");
        assert_eq!(balancer.backends()[0].state, BackendState::Down);
        drop(task);
    }

    #[tokio::test]
    async fn a_backend_that_does_not_answer_is_late() {
        // It listens, and never accepts: the connection stands, the answer never comes.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let id = listener.local_addr().expect("it is bound").to_string();
        let balancer = checked(&[&id]);
        let mut events = balancer.events();
        let check = Check::Http { path: "/".to_owned(), statuses: 200..=299 };
        let checks = Checks { timeout: Duration::from_millis(20), ..fast(check) };
        let _task = checks.start(&balancer);
        assert_eq!(told(&mut events, 1).await, [format!("{id}: down: no answer in 20ms")]);
    }

    #[test]
    fn an_id_is_its_address_with_more_around_it() {
        for id in ["h:1", "http://h:1", "http://h:1/", "http://h:1/app?x", "h:1/app"] {
            assert_eq!(address(id), "h:1", "{id}");
        }
        for (address, port) in [("h", false), ("h:1", true), ("[::1]", false), ("[::1]:1", true)] {
            assert_eq!(has_port(address), port, "{address}");
        }
    }
}
