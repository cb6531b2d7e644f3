//! A `redis-server` of the suite's own on a free loopback port, killed when its value is dropped.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long something that comes by itself may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running server that keeps nothing on disk.
pub(crate) struct RedisServer {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> io::Result<Self> {
        let mut last = None;
        // Somebody else may take the port before the server does.
        for _ in 0..10 {
            match Self::start_on(free_port()?) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                done => return done,
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
        while let Err(error) = server.ping() {
            if let Some(status) = server.child.try_wait()? {
                let ended = format!("redis-server ended: {status}");
                return Err(io::Error::new(io::ErrorKind::AddrInUse, ended));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn ping(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        if &answer == b"+PONG\r\n" { Ok(()) } else { Err(io::Error::other("no PONG")) }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
