//! A real Redis on a free loopback port, to be killed, frozen and restarted. Stops on drop.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cache_tiered::redis::RedisConfig;
use tempfile::TempDir;

/// How long a server may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One `redis-server` with its own directory.
pub(crate) struct RedisServer {
    port: u16,
    directory: TempDir,
    options: Vec<String>,
    process: Option<Child>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with_options(&[])
    }

    pub(crate) fn with_options(options: &[&str]) -> Self {
        // Somebody else may take the port before the server does.
        for _ in 0..10 {
            let mut server = Self::stopped(free_port(), options);
            if server.run() {
                return server;
            }
        }
        panic!("no redis-server could be started");
    }

    /// A server that is not running yet, and its port.
    pub(crate) fn stopped(port: u16, options: &[&str]) -> Self {
        Self {
            port,
            directory: TempDir::new().unwrap(),
            options: options.iter().map(ToString::to_string).collect(),
            process: None,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server, again if it was killed; `false` if its port is taken.
    pub(crate) fn run(&mut self) -> bool {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(&self.options)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("redis-server not found: cargo xtask test installs it")
            }
            Err(error) => panic!("redis-server does not start: {error}"),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.cli(&["PING"]).contains("PONG") || self.cli(&["PING"]).contains("NOAUTH") {
                self.process = Some(child);
                return true;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command with `redis-cli` and returns what it prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli not found: cargo xtask test installs it");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// How often the server has been asked to do something.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let prefix = format!("cmdstat_{command}:calls=");
        let stats = self.cli(&["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next());
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    /// SIGKILL: no goodbye, and sockets are closed by the system.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGSTOP: sockets stay open and take what is sent, and nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        let id = self.process.as_ref().expect("a running server").id();
        let id = libc::pid_t::try_from(id).unwrap();
        // SAFETY: `kill` touches no memory; the id is that of a child that nobody has waited for, so
        // it cannot be another process.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The configuration for a server, over the client that this test program is about: its name tells.
pub(crate) fn config(url: impl Into<String>) -> RedisConfig {
    let config = RedisConfig::new(url);
    #[cfg(feature = "redis-rs")]
    if env!("CARGO_CRATE_NAME").starts_with("redis_rs_") {
        let client = cache_tiered::redis::RedisClient::RedisRs;
        return RedisConfig { client, ..config };
    }
    config
}

/// A port that is free, as is the one that a cluster node takes along, ten thousand above.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Some(bus) = port.checked_add(10_000)
            && TcpListener::bind(("127.0.0.1", bus)).is_ok()
        {
            return port;
        }
    }
}

/// Three masters without replicas, each with a third of the slots.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub(crate) fn start() -> Self {
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let nodes: Vec<_> = (0..3).map(|_| RedisServer::with_options(&options)).collect();
        let addresses: Vec<_> = nodes.iter().map(|it| format!("127.0.0.1:{}", it.port())).collect();
        let created = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .arg("--cluster-yes")
            .output()
            .expect("redis-cli not found: cargo xtask test installs it");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        let deadline = Instant::now() + PATIENCE;
        while !nodes.iter().all(|it| it.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")) {
            assert!(Instant::now() < deadline, "the cluster does not come up");
            thread::sleep(Duration::from_millis(50));
        }
        Self { nodes }
    }

    pub(crate) fn url(&self) -> String {
        let others = self.nodes[1..].iter().map(|node| format!("node=127.0.0.1:{}", node.port()));
        let others: Vec<_> = others.collect();
        format!("redis-cluster://127.0.0.1:{}?{}", self.nodes[0].port(), others.join("&"))
    }
}
