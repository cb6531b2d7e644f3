//! The three servers: an origin, and in front of it the binary `ultra-perf` and nginx.
//!
//! nginx is set up as one would to make it fast: one worker, its cache in memory-backed files where the
//! system has such a directory, `sendfile`, open files kept, connections to the origin kept, no log of
//! accesses. `ultra-perf` runs as it comes, with one thread and its disk tier in a directory of its own.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::fetch;
use crate::process::{Cores, Process, pinned};

/// How long a server may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the origin has, with the length of each.
pub(crate) const FILES: [(&str, usize); 3] =
    [("/cached/1k", 1 << 10), ("/cached/16k", 16 << 10), ("/uncached/1k", 1 << 10)];

/// A running server and what it keeps on disk, which goes when it is dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) process: Process,
    _directory: TempDir,
}

impl Server {
    /// Starts a server on a free port and waits until it serves the origin's first file.
    fn start(
        directory: impl Fn() -> io::Result<TempDir>,
        command: impl Fn(&Path, u16) -> io::Result<Command>,
    ) -> io::Result<Self> {
        // Somebody else may take the port before the server does.
        let mut last = None;
        for _ in 0..5 {
            let directory = directory()?;
            let log = directory.path().join("log");
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let process = Process::start(&mut command(directory.path(), port)?, &log)?;
            let mut server = Self { port, process, _directory: directory };
            match server.wait() {
                Ok(()) => return Ok(server),
                Err(error) => {
                    let log = fs::read_to_string(log).unwrap_or_default();
                    last = Some(io::Error::other(format!("{error}: {}", log.trim())));
                }
            }
        }
        Err(last.expect("tried five times"))
    }

    fn wait(&mut self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            if self.process.has_ended()? {
                return Err(io::Error::other("a server ended before it served"));
            }
            match fetch(self.port, FILES[0].0) {
                Ok(answer) if answer.head.starts_with("http/1.1 200 ") => return Ok(()),
                Ok(answer) if start.elapsed() > PATIENCE => {
                    return Err(io::Error::other(format!("a server answers {:?}", answer.head)));
                }
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Starts an nginx that serves [`FILES`], on the core of the load.
    pub(crate) fn origin(cores: Cores) -> io::Result<Self> {
        Self::start(tempfile::tempdir, |directory, port| {
            for (path, bytes) in FILES {
                let file = directory.join(path.trim_start_matches('/'));
                fs::create_dir_all(file.parent().expect("under the directory"))?;
                fs::write(file, "0123456789abcdef".repeat(bytes / 16))?;
            }
            let root = directory.display();
            let server = format!(
                "server {{
                    listen 127.0.0.1:{port};
                    root \"{root}\";
                    location /cached/ {{ add_header Cache-Control \"public, max-age=86400\"; }}
                    location /uncached/ {{ add_header Cache-Control no-store; }}
                }}"
            );
            nginx(cores.load, directory, &server)
        })
    }

    /// Starts an nginx that caches the origin's answers, on the core of its own.
    pub(crate) fn nginx(cores: Cores, origin: u16) -> io::Result<Self> {
        Self::start(memory_backed_directory, |directory, port| {
            let server = format!(
                "proxy_cache_path cache keys_zone=cache:10m max_size=256m inactive=1d
                    use_temp_path=off;
                upstream origin {{
                    server 127.0.0.1:{origin};
                    keepalive 64;
                    keepalive_requests 1000000000;
                }}
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        proxy_pass http://origin;
                        proxy_http_version 1.1;
                        proxy_set_header Connection \"\";
                        proxy_cache cache;
                        add_header X-Cache $upstream_cache_status;
                    }}
                }}"
            );
            nginx(cores.server, directory, &server)
        })
    }

    /// Starts `ultra-perf serve` in front of the origin, on the core of its own.
    pub(crate) fn ultra_perf(cores: Cores, binary: &Path, origin: u16) -> io::Result<Self> {
        Self::start(tempfile::tempdir, |directory, port| {
            let mut command = pinned(cores.server, binary);
            command
                .args(["serve", "--to", &format!("http://127.0.0.1:{origin}")])
                .args(["--listen", &format!("127.0.0.1:{port}"), "--admin", "127.0.0.1:0"])
                .args(["--log", "warn"])
                // Whatever else the environment says is about another one.
                .env_clear()
                .env("ULTRA_PERF__SERVER__WORKERS", "1")
                .env("ULTRA_PERF__CACHE__DISK__PATH", directory.join("cache"))
                .current_dir(directory);
            if let Some(path) = std::env::var_os("PATH") {
                command.env("PATH", path);
            }
            Ok(command)
        })
    }
}

/// An nginx with one worker, pinned, around what `http` says.
fn nginx(core: usize, directory: &Path, http: &str) -> io::Result<Command> {
    // The worker of a master that runs as root would be another user, who may not read the directory;
    // started by anybody else, nginx ignores the line.
    let config = format!(
        "user root;
        daemon off;
        worker_processes 1;
        pid nginx.pid;
        error_log stderr error;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            sendfile on;
            tcp_nopush on;
            keepalive_requests 1000000000;
            open_file_cache max=1000 inactive=1d;
            client_body_temp_path body;
            proxy_temp_path proxy;
            fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi;
            scgi_temp_path scgi;
            {http}
        }}"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = pinned(core, "nginx");
    command.arg("-p").arg(directory).arg("-c").arg(file).args(["-e", "stderr"]);
    Ok(command)
}

fn memory_backed_directory() -> io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}
