//! A backend on a real socket, the real binary in front of it, and what tests ask of both.
#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What the backend sends for a page under `/large/`.
pub(crate) const LARGE_BYTES: usize = 8 << 10;

/// A backend that answers every request with the same cacheable page, and counts.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

impl Backend {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let calls = Arc::clone(&counted);
                std::thread::spawn(move || answer(stream, &calls));
            }
        });
        Self { address, calls }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, calls: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut path = String::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            line.clear();
        }
        if path.is_empty() {
            return;
        }
        calls.fetch_add(1, Ordering::SeqCst);
        match &*path {
            "/slow" => std::thread::sleep(Duration::from_secs(1)),
            "/slower" => std::thread::sleep(PATIENCE),
            _ => {}
        }
        let body =
            if path.starts_with("/large/") { "x".repeat(LARGE_BYTES) } else { "hello".to_owned() };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nSurrogate-Key: pages all\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A running `ultra-perf serve`; killed when dropped.
pub(crate) struct Accelerator {
    child: Child,
    pub(crate) proxy: String,
    pub(crate) admin: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, in a directory of its own and with an environment that says nothing to it.
pub(crate) fn ultra_perf(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ultra-perf"));
    command
        .current_dir(directory)
        .env_clear()
        .env("XDG_CACHE_HOME", directory.join("cache"))
        .env("HOME", directory)
        .stdin(Stdio::null());
    command
}

impl Accelerator {
    pub(crate) fn start(directory: &Path, backend: &Backend) -> Self {
        Self::start_with(directory, backend, &[])
    }

    pub(crate) fn start_with(directory: &Path, backend: &Backend, more: &[&str]) -> Self {
        let mut child = ultra_perf(directory)
            .args(["serve", "--to", &format!("http://{}", backend.address)])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut message = || loop {
            let line = lines.next().expect("it is still running").unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON log");
            let message = line["message"].as_str().unwrap();
            if message.contains("http://") {
                return message.to_owned();
            }
        };
        let address = |message: &str| {
            let rest = message.split("http://").nth(1).unwrap();
            rest.split([' ', '/']).next().unwrap().to_owned()
        };
        let (proxy, admin) = (address(&message()), address(&message()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&log);
        // Whoever logs must not block on a full pipe.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| told.lock().unwrap().push(line));
        });
        Self { child, proxy, admin, log }
    }

    /// Whether a text is in the log.
    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// A page of the admin API.
    pub(crate) fn admin_get(&self, path: &str) -> serde_json::Value {
        let request = format!(
            "GET /performance{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        let answer = ask(&self.admin, &request);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        ask(&self.proxy, &format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"))
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: `kill` takes plain numbers; the child is ours and has not been waited for.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }
}

pub(crate) fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| {
        let (field, value) = line.split_once(": ")?;
        field.eq_ignore_ascii_case(name).then_some(value)
    })
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn run(directory: &Path, args: &[&str]) -> Output {
    ultra_perf(directory).args(args).output().unwrap()
}
