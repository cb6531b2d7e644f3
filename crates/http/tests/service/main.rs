//! The layers around services of this process, over real sockets.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod cache;
mod compression;
mod guards;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::header::{CACHE_CONTROL, HeaderName};
use support::client::{Answer, RawClient};
use tokio::net::TcpListener;
use ultra_perf::UltraPerf;

/// A handle whose cache is in memory alone.
async fn perf() -> UltraPerf {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        // Whoever waits for another's answer and should not fails its test.
        .set("response_cache.coalesce_timeout", "10m");
    perf.build().await.expect("a handle")
}

/// A service on a port of its own; it stops when dropped.
struct Served {
    addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("it serves");
        });
        Self { addr, task }
    }

    async fn client(&self) -> RawClient {
        RawClient::connect(self.addr).await
    }

    /// Asks for a target on a connection of its own.
    async fn get(&self, target: &str) -> Answer {
        self.client().await.get(target).await
    }

    /// As [`get`](Self::get), with more fields.
    async fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Answer {
        send(&mut self.client().await, "GET", target, fields).await
    }
}

/// Sends a request without a body and reads its answer.
async fn send(
    client: &mut RawClient,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
) -> Answer {
    let fields: String =
        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).await;
    let answer = if method == "HEAD" { client.head_answer().await } else { client.answer().await };
    answer.expect("an answer")
}

/// What the cache did for an answer.
fn outcome(answer: &Answer) -> &str {
    answer.header("x-cache").unwrap_or("nothing")
}

/// Counts calls of a handler.
#[derive(Clone, Default)]
struct Calls(Arc<AtomicUsize>);

impl Calls {
    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// What an answer says that is fresh for a minute.
const FRESH: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "max-age=60")];
