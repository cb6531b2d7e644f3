//! An origin server whose every byte the test decides.
//!
//! [`Origin::start`] takes a closure from the request to a [`Reply`]. A reply is a list of steps -
//! write these bytes, wait, close - so it can be wrong on purpose: a length that lies, a chunked
//! body that stops, a connection closed between two requests. The origin remembers each request
//! and counts connections, so that a test can say what the proxy asked for and how often.
//!
//! ```ignore
//! let origin = Origin::start(|request| match request.path() {
//!     "/slow" => Reply::ok("late").after(Duration::from_millis(200)),
//!     _ => Reply::ok("hello").header("cache-control", "max-age=60"),
//! })
//! .await;
//! proxy.get("/slow").await;
//! assert_eq!(origin.hits(), 1);
//! ```

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use super::eventually;

/// A request as the origin received it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    pub(crate) method: String,
    /// The request target as written: path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    /// The body, de-chunked; empty at an origin that answers early.
    pub(crate) body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub(crate) connection: usize,
    /// How many requests the origin had received before it.
    pub(crate) index: usize,
}

impl Received {
    /// Returns the first value of `name`.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Returns every value of `name`.
    pub(crate) fn header_all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// Returns the target without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<u8>),
    Repeat {
        block: Vec<u8>,
        times: usize,
    },
    Sleep(Duration),
    Wait(Gate),
    /// Reads the rest of the request body, at most this many bytes.
    Read(usize),
    Echo,
    Close,
    Hang,
}

/// A door in a reply that the test opens.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    /// Makes a closed gate.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everything through, now and later.
    pub(crate) fn open(&self) {
        self.0.close();
    }

    /// Lets `n` replies through.
    pub(crate) fn let_through(&self, n: usize) {
        self.0.add_permits(n);
    }

    async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

enum Framing {
    Length,
    Declared(usize),
    Chunked,
    Close,
    Repeat { block: Vec<u8>, times: usize },
}

/// What the origin answers.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<Vec<u8>>,
    framing: Framing,
    before: Vec<Step>,
    between: Vec<Step>,
    after: Vec<Step>,
    raw: Option<Vec<Step>>,
    cut: bool,
}

impl Reply {
    /// Answers with `status` and no body.
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            framing: Framing::Length,
            before: Vec::new(),
            between: Vec::new(),
            after: Vec::new(),
            raw: None,
            cut: false,
        }
    }

    /// Answers 200 with `body`.
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// Answers these bytes and nothing else; the connection stays open.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let mut reply = Self::status(0);
        reply.raw = Some(vec![Step::Write(bytes.into())]);
        reply
    }

    /// Closes the connection without a byte.
    pub(crate) fn close() -> Self {
        let mut reply = Self::status(0);
        reply.raw = Some(vec![Step::Close]);
        reply
    }

    /// Never answers.
    pub(crate) fn hang() -> Self {
        let mut reply = Self::status(0);
        reply.raw = Some(vec![Step::Hang]);
        reply
    }

    /// Switches to `protocol` and sends every byte back.
    pub(crate) fn echo(protocol: &str) -> Self {
        let mut reply = Self::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        ));
        if let Some(raw) = &mut reply.raw {
            raw.push(Step::Echo);
        }
        reply
    }

    /// Adds a header line.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body, sent with its Content-Length.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = vec![body.into()];
        self
    }

    /// Sends the body in these chunks with `Transfer-Encoding: chunked`.
    pub(crate) fn chunks<B: Into<Vec<u8>>>(mut self, chunks: impl IntoIterator<Item = B>) -> Self {
        self.body = chunks.into_iter().map(Into::into).collect();
        self.framing = Framing::Chunked;
        self
    }

    /// Sends the body without a length and closes at its end.
    pub(crate) fn until_close(mut self) -> Self {
        self.framing = Framing::Close;
        self
    }

    /// Claims this Content-Length, whatever the body; a shorter body is cut by a close.
    pub(crate) fn claiming(mut self, length: usize) -> Self {
        self.framing = Framing::Declared(length);
        self
    }

    /// Sends `block` `times` times as one body with its Content-Length.
    pub(crate) fn repeated(mut self, block: impl Into<Vec<u8>>, times: usize) -> Self {
        self.framing = Framing::Repeat { block: block.into(), times };
        self
    }

    /// Breaks a chunked body off before its last chunk.
    pub(crate) fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// Waits before the head.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.before.push(Step::Sleep(delay));
        self
    }

    /// Holds the head back until the gate opens.
    pub(crate) fn when(mut self, gate: &Gate) -> Self {
        self.before.push(Step::Wait(gate.clone()));
        self
    }

    /// Waits after the head and after each piece of the body.
    pub(crate) fn pausing(mut self, delay: Duration) -> Self {
        self.between.push(Step::Sleep(delay));
        self
    }

    /// Holds each piece of the body back until the gate lets it through.
    pub(crate) fn pieces_when(mut self, gate: &Gate) -> Self {
        self.between.push(Step::Wait(gate.clone()));
        self
    }

    /// Closes the connection after the reply without having announced it.
    pub(crate) fn then_close(mut self) -> Self {
        self.after.push(Step::Close);
        self
    }

    /// Sends these bytes after the reply, once the gate opens.
    pub(crate) fn then_send(mut self, bytes: &str, gate: &Gate) -> Self {
        self.after.push(Step::Wait(gate.clone()));
        self.after.push(Step::Write(bytes.as_bytes().to_vec()));
        self
    }

    /// Reads at most `limit` bytes of the request body before answering; for an origin started
    /// with [`Origin::start_early`].
    pub(crate) fn reading(mut self, limit: usize) -> Self {
        self.before.push(Step::Read(limit));
        self
    }

    fn steps(self, head_only: bool) -> Vec<Step> {
        if let Some(raw) = self.raw {
            return self.before.into_iter().chain(raw).chain(self.after).collect();
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let bodiless = head_only || matches!(self.status, 204 | 304);
        let length: usize = self.body.iter().map(Vec::len).sum();
        let mut close = self.cut;
        match &self.framing {
            Framing::Length if self.status == 204 || self.status == 304 => {}
            Framing::Length => head.push_str(&format!("Content-Length: {length}\r\n")),
            Framing::Declared(claimed) => {
                close |= *claimed != length;
                head.push_str(&format!("Content-Length: {claimed}\r\n"));
            }
            Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::Close => {
                close = true;
                head.push_str("Connection: close\r\n");
            }
            Framing::Repeat { block, times } => {
                head.push_str(&format!("Content-Length: {}\r\n", block.len() * times));
            }
        }
        head.push_str("\r\n");

        let mut steps = self.before;
        steps.push(Step::Write(head.into_bytes()));
        if !bodiless {
            let chunked = matches!(self.framing, Framing::Chunked);
            for piece in self.body {
                steps.extend(self.between.iter().cloned());
                if chunked {
                    let mut framed = format!("{:x}\r\n", piece.len()).into_bytes();
                    framed.extend_from_slice(&piece);
                    framed.extend_from_slice(b"\r\n");
                    steps.push(Step::Write(framed));
                } else {
                    steps.push(Step::Write(piece));
                }
            }
            if let Framing::Repeat { block, times } = self.framing {
                steps.push(Step::Repeat { block, times });
            } else if chunked && !self.cut {
                steps.push(Step::Write(b"0\r\n\r\n".to_vec()));
            }
            if close {
                steps.push(Step::Close);
            }
        }
        steps.extend(self.after);
        steps
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    early: bool,
    received: Mutex<Vec<Received>>,
    started: AtomicUsize,
    connections: AtomicUsize,
    open: AtomicUsize,
    sent_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

/// A running origin; it stops when dropped.
pub(crate) struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Starts an origin on a free loopback port that answers as `script` says.
    pub(crate) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::launch(Box::new(script), false).await
    }

    /// Starts an origin that answers on the head of a request and leaves its body to
    /// [`Reply::reading`].
    pub(crate) async fn start_early(
        script: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch(Box::new(script), true).await
    }

    async fn launch(script: Box<Script>, early: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            script,
            early,
            received: Mutex::default(),
            started: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            sent_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, task }
    }

    /// Returns where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns its address as a URL without a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns how many requests it has received, answered or not.
    pub(crate) fn hits(&self) -> usize {
        self.shared.started.load(Ordering::SeqCst)
    }

    /// Returns the requests it has received so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no panic under this lock").clone()
    }

    /// Returns the last request it has received.
    pub(crate) fn last(&self) -> Received {
        self.received().pop().expect("a request")
    }

    /// Returns how many connections were opened to it.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns how many of its connections are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Returns how many bytes the kernel took from it.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.shared.sent_bytes.load(Ordering::SeqCst)
    }

    /// Returns how many bytes of request bodies it read.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::SeqCst)
    }

    /// Waits until it has received `n` requests.
    pub(crate) async fn wait_for_hits(&self, n: usize) {
        eventually("the requests at the origin", || self.hits() >= n).await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        stream.set_nodelay(true).expect("nodelay");
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            let open = Open(Arc::clone(&shared));
            Connection { stream, buffer: Vec::new(), number, shared }.run().await;
            drop(open);
        });
        while connections.try_join_next().is_some() {}
    }
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Copy)]
enum BodyLength {
    Known(usize),
    Chunked,
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    number: usize,
    shared: Arc<Shared>,
}

impl Connection {
    /// Serves requests until the peer leaves or a step closes.
    async fn run(mut self) -> Option<()> {
        loop {
            let mut request = self.head().await?;
            let mut unread = Some(match request.header("transfer-encoding") {
                Some(_) => BodyLength::Chunked,
                None => BodyLength::Known(
                    request.header("content-length").map_or(0, |n| n.parse().expect("a length")),
                ),
            });
            request.index = self.shared.started.fetch_add(1, Ordering::SeqCst);
            if !self.shared.early
                && let Some(length) = unread.take()
            {
                request.body = self.body(length, usize::MAX).await?;
            }
            let reply = (self.shared.script)(&request);
            let head_only = request.method == "HEAD";
            let close = request
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close"));
            self.shared.received.lock().expect("no panic under this lock").push(request);
            for step in reply.steps(head_only) {
                self.step(step, &mut unread).await?;
            }
            if close || unread.is_some_and(|rest| !matches!(rest, BodyLength::Known(0))) {
                return Some(());
            }
        }
    }

    async fn step(&mut self, step: Step, unread: &mut Option<BodyLength>) -> Option<()> {
        match step {
            Step::Write(bytes) => self.write(&bytes).await?,
            Step::Repeat { block, times } => {
                for _ in 0..times {
                    self.write(&block).await?;
                }
            }
            Step::Sleep(delay) => tokio::time::sleep(delay).await,
            Step::Wait(gate) => gate.pass().await,
            Step::Read(limit) => {
                if let Some(length) = unread.take() {
                    self.body(length, limit).await?;
                }
            }
            Step::Echo => loop {
                let bytes = std::mem::take(&mut self.buffer);
                self.write(&bytes).await?;
                self.fill().await?;
            },
            Step::Close => {
                // Closing with unread bytes would reset the connection and could destroy what
                // was just written.
                self.stream.shutdown().await.ok()?;
                return None;
            }
            Step::Hang => {
                while self.fill().await.is_some() {}
                return None;
            }
        }
        Some(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let n = self.stream.write(bytes).await.ok()?;
            self.shared.sent_bytes.fetch_add(n as u64, Ordering::SeqCst);
            bytes = &bytes[n..];
        }
        Some(())
    }

    async fn fill(&mut self) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => None,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Some(())
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            self.fill().await?;
        }
    }

    async fn head(&mut self) -> Option<Received> {
        let line = self.line().await?;
        let mut words = line.split(' ');
        let mut request = Received {
            method: words.next()?.to_owned(),
            target: words.next()?.to_owned(),
            connection: self.number,
            ..Received::default()
        };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(request);
            }
            let (name, value) = line.split_once(':')?;
            request.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn body(&mut self, length: BodyLength, limit: usize) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        match length {
            BodyLength::Known(length) => self.take(length, limit, &mut body).await?,
            BodyLength::Chunked => loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                self.take(size, limit, &mut body).await?;
                self.line().await?;
            },
        }
        Some(body)
    }

    async fn take(&mut self, length: usize, limit: usize, body: &mut Vec<u8>) -> Option<()> {
        let mut missing = length;
        while missing > 0 && body.len() < limit {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let n = missing.min(self.buffer.len());
            self.shared.read_bytes.fetch_add(n as u64, Ordering::SeqCst);
            body.extend(self.buffer.drain(..n));
            missing -= n;
        }
        Some(())
    }
}
