//! Who stands in front of the backends: `ultra-perf serve` with one policy or another, as a process.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::backend::Backend;

/// How long a proxy may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One that is put to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    /// The value of `balancer.policy`.
    policy: Option<&'static str>,
    /// Whether the targets are for it.
    pub(crate) is_default: bool,
}

/// All of them: the configuration as it comes, and with another policy.
pub(crate) const ENTRANTS: [Entrant; 2] = [
    Entrant { name: "ultra-perf, as it comes", policy: None, is_default: true },
    Entrant { name: "ultra-perf, round robin", policy: Some("round-robin"), is_default: false },
];

/// A running proxy. It is killed when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    child: Child,
    _directory: TempDir,
}

impl Proxy {
    /// Starts the binary in front of the backends, on a free port, and waits until it serves.
    pub(crate) fn start(
        entrant: &Entrant,
        binary: &Path,
        backends: &[Backend],
    ) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("log");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(binary);
        command.arg("serve");
        for backend in backends {
            command.arg("--to").arg(format!("http://127.0.0.1:{}", backend.port));
        }
        command
            .args(["--listen", &format!("127.0.0.1:{port}"), "--admin", "127.0.0.1:0"])
            .args(["--log", "warn"])
            // Whatever else the environment says is about another one.
            .env_clear()
            .env("ULTRA_PERF__CACHE__DISK__ENABLED", "false")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        if let Some(policy) = entrant.policy {
            command.env("ULTRA_PERF__BALANCER__POLICY", policy);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut proxy = Self { address, child: command.spawn()?, _directory: directory };
        let start = Instant::now();
        while !proxy.serves() {
            let ended = proxy.child.try_wait()?.is_some();
            if ended || start.elapsed() > PATIENCE {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!("ultra-perf did not serve: {}", log.trim())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(proxy)
    }

    /// Whether a request is answered well.
    fn serves(&self) -> bool {
        let ask = || -> io::Result<bool> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer.starts_with(b"HTTP/1.1 200 "))
        };
        ask().unwrap_or(false)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
