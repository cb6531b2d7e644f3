//! A `redis-server` of the suite's own on a free loopback port, and `redis-benchmark` against it.
//!
//! The server keeps nothing on disk, works in a temporary directory, and is killed when its value is
//! dropped.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names the first program that the suite needs and this machine does not have.
pub(crate) fn missing_program() -> Option<&'static str> {
    ["redis-server", "redis-benchmark"].into_iter().find(|program| {
        let started = Command::new(program).arg("--version").output();
        started.is_err()
    })
}

/// A running server.
pub(crate) struct Server {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> io::Result<Self> {
        // Somebody else may take the port before the server does.
        let mut last = None;
        for _ in 0..10 {
            match Self::start_on(free_port()?) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("tried ten times"))
    }

    fn start_on(port: u16) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { port, child, _directory: directory };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("redis-server ended: {status}")));
            }
            match server.send(["PING\r\n".to_owned()]) {
                Ok(()) => return Ok(server),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Gives `redis-benchmark` the keys that it will ask for.
    pub(crate) fn fill_for_benchmark(&self, keys: u32, value: &str) -> io::Result<()> {
        self.send((0..keys).map(|key| format!("SET {} {value}\r\n", benchmark_key(key))))
    }

    /// Sends inline commands and waits until each has been answered without an error.
    fn send(&self, commands: impl IntoIterator<Item = String>) -> io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        for command in commands {
            stream.write_all(command.as_bytes())?;
            let mut answer = String::new();
            answers.read_line(&mut answer)?;
            if !answer.starts_with('+') {
                return Err(io::Error::other(format!("redis-server says {:?}", answer.trim())));
            }
        }
        Ok(())
    }

    /// Runs `redis-benchmark` with as many connections as gets are under way, and returns its rate.
    pub(crate) fn benchmark(&self, clients: usize, gets: usize, keys: u32) -> io::Result<f64> {
        let output = Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-t", "get", "-d", "1024", "-q", "--csv"])
            .args(["-c", &clients.to_string()])
            .args(["-n", &gets.to_string()])
            .args(["-r", &keys.to_string()])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        rate(&text).ok_or_else(|| io::Error::other(format!("redis-benchmark says {text:?}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The name of a key in `redis-benchmark -r`.
pub(crate) fn benchmark_key(key: u32) -> String {
    format!("key:{key:012}")
}

/// Reads the gets per second out of a report with `--csv`.
fn rate(report: &str) -> Option<f64> {
    let row = report.lines().find_map(|line| line.strip_prefix("\"GET\",\""))?;
    row.split('"').next()?.parse().ok()
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_second_column_of_the_row_of_gets() {
        let header = "\"test\",\"rps\",\"avg_latency_ms\"\n";
        let row = "\"GET\",\"96153.85\",\"0.311\"\n";
        assert_eq!(rate(&format!("{header}{row}")), Some(96_153.85));
        assert_eq!(rate(row), Some(96_153.85));
        assert_eq!(rate(header), None);
    }
}
