//! The whole accelerator on free loopback ports, and what its tests ask of it.
#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use ultra_perf::{UltraPerf, config::ConfigLoader};
use ultra_perf_http::{Server, Stopped};

use crate::support::{
    client::{Answer, RawClient},
    origin::Origin,
    soon,
};

/// A running accelerator; it stops when dropped.
pub(crate) struct Accelerated {
    server: Server,
}

impl Accelerated {
    /// Starts one in front of an origin, with a cache in memory alone.
    pub(crate) async fn to(origin: &Origin) -> Self {
        Self::with(&origin.url(), &[]).await
    }

    /// Starts one in front of `url` with these keys of the configuration.
    pub(crate) async fn with(url: &str, keys: &[(&str, &str)]) -> Self {
        let defaults = [
            ("server.to", url),
            ("server.listen", "127.0.0.1:0"),
            ("server.admin", "127.0.0.1:0"),
            ("cache.disk.enabled", "false"),
            ("monitor.history.enabled", "false"),
            ("cache.memory.capacity", "256MiB"),
            // Whoever waits for another's answer and should not fails its test.
            ("response_cache.coalesce_timeout", "10m"),
        ];
        let config = defaults
            .iter()
            .chain(keys)
            .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(*key, *value, "the test"))
            .load()
            .expect("a configuration");
        let server = soon("the start", Server::start(&config)).await.expect("a server");
        Self { server }
    }

    /// Starts one with the parts of a handle.
    pub(crate) async fn on(perf: &UltraPerf) -> Self {
        let server = soon("the start", Server::start_on(perf)).await.expect("a server");
        Self { server }
    }

    /// Starts one in front of an origin whose cache is also in this directory.
    pub(crate) async fn on_disk(origin: &Origin, directory: &std::path::Path) -> Self {
        let path = directory.to_str().expect("a path in UTF-8");
        let keys = [("cache.disk.enabled", "true"), ("cache.disk.path", path)];
        Self::with(&origin.url(), &keys).await
    }

    /// Where clients are served.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.proxy_addr()
    }

    /// Where the admin API is.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.server.admin_addr()
    }

    /// Opens a connection of a client.
    pub(crate) async fn client(&self) -> RawClient {
        RawClient::connect(self.addr()).await
    }

    /// Asks for `target` on a connection of its own.
    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.client().await.get(target).await
    }

    /// As [`get`](Self::get), with more fields.
    pub(crate) async fn get_with(&self, target: &str, fields: &[(&str, &str)]) -> Answer {
        self.send("GET", target, fields, "").await
    }

    /// Sends a request of any kind on a connection of its own.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        send(&mut self.client().await, method, target, fields, body).await
    }

    /// Where metrics alone are.
    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.server.metrics_addr()
    }

    /// The handle over its parts.
    pub(crate) fn perf(&self) -> &UltraPerf {
        self.server.perf()
    }

    /// Asks the admin API, whatever it answers with.
    pub(crate) async fn admin_answer(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut client = RawClient::connect(self.admin_addr()).await;
        let kind = [("Content-Type", "application/json")];
        let fields = if body.is_empty() { &[][..] } else { &kind[..] };
        let target = format!("/performance{path}");
        client.send(request(method, &target, "localhost", fields, body)).await;
        client.answer().await.expect("an answer")
    }

    /// Asks the admin API, with a body of JSON where there is one.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = self.admin_answer(method, path, body).await;
        let json = serde_json::from_slice(&answer.body);
        (answer.status, json.unwrap_or_else(|_| panic!("JSON from {path}: {answer:?}")))
    }

    /// Purges the URL of a target.
    pub(crate) async fn purge(&self, target: &str) {
        let body = format!("{{\"url\":\"http://test{target}\"}}");
        let (status, json) = self.admin("POST", "/cache/purge", &body).await;
        assert_eq!(status, 200, "{json}");
    }

    /// One figure of `/performance/stats`.
    pub(crate) async fn figure(&self, pointer: &str) -> u64 {
        self.figure_of("/stats", pointer).await
    }

    /// One figure of a page of the admin API.
    pub(crate) async fn figure_of(&self, path: &str, pointer: &str) -> u64 {
        let (status, json) = self.admin("GET", path, "").await;
        assert_eq!(status, 200, "{json}");
        json.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {json}"))
    }

    /// Stops it, with this much time for what is under way.
    pub(crate) async fn shutdown(self, grace: Duration) -> Stopped {
        soon("the shutdown", self.server.shutdown(grace)).await
    }
}

/// Writes a request for the host `test`.
pub(crate) fn request(
    method: &str,
    target: &str,
    host: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text
}

/// Sends a request on an open connection and reads its answer.
pub(crate) async fn send(
    client: &mut RawClient,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Answer {
    client.send(request(method, target, "test", fields, body)).await;
    let answer = if method == "HEAD" { client.head_answer().await } else { client.answer().await };
    answer.expect("an answer")
}

/// What the cache did for an answer: the value of `X-Cache`.
pub(crate) fn outcome(answer: &Answer) -> &str {
    answer.header("x-cache").unwrap_or("nothing")
}

/// The `Age` of an answer, in seconds.
pub(crate) fn age(answer: &Answer) -> Option<u64> {
    answer.header("age").map(|age| age.parse().expect("a number of seconds"))
}
