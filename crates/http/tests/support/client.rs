//! A client that writes the bytes it is told to and reads one response at a time.
//!
//! Tests use it where a real HTTP client would refuse to send what they need: broken framing,
//! half a head, pipelined requests, a reader that stops reading.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::soon;

/// A response as it came off the socket, its body already de-chunked.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The body ended as its framing said; false when the connection broke off earlier.
    pub(crate) complete: bool,
}

impl Answer {
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

    /// Returns the body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text body")
    }
}

/// One raw connection.
pub(crate) struct RawClient {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl RawClient {
    /// Connects to `addr`.
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = soon("connecting", TcpStream::connect(addr)).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: Vec::new() }
    }

    /// Writes `bytes` as they are.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("send");
    }

    /// Writes `bytes`, telling whether the other side still took them.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Sends a `GET` for `target` and reads the answer.
    pub(crate) async fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        self.answer().await.expect("an answer")
    }

    /// Reads the answer to a request that was not `HEAD`; `None` if the connection ends first.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        self.read(false).await
    }

    /// Reads the answer to a `HEAD` request.
    pub(crate) async fn head_answer(&mut self) -> Option<Answer> {
        self.read(true).await
    }

    /// Reads raw bytes, as many as are there; empty at the end of the connection.
    pub(crate) async fn bytes(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            self.fill().await;
        }
        std::mem::take(&mut self.buffer)
    }

    /// Waits until the other side closed, returning what it still sent.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Gives the socket away.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        match soon("bytes from the server", self.stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
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
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Moves up to `length` bytes to `body`, telling whether all were there.
    async fn take(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        let mut missing = length;
        while missing > 0 {
            if self.buffer.is_empty() && !self.fill().await {
                return false;
            }
            let n = missing.min(self.buffer.len());
            body.extend(self.buffer.drain(..n));
            missing -= n;
        }
        true
    }

    async fn read(&mut self, head_only: bool) -> Option<Answer> {
        loop {
            let status_line = self.line().await?;
            let status: u16 = status_line.split(' ').nth(1)?.parse().ok()?;
            let mut headers = Vec::new();
            loop {
                let line = self.line().await?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').expect("a header line");
                headers.push((name.to_owned(), value.trim().to_owned()));
            }
            if status < 200 && status != 101 {
                continue;
            }
            let mut answer = Answer { status, headers, body: Vec::new(), complete: true };
            if head_only || matches!(status, 101 | 204 | 304) {
                return Some(answer);
            }
            let mut body = Vec::new();
            if answer.header("transfer-encoding").is_some() {
                answer.complete = self.chunked(&mut body).await;
            } else if let Some(length) = answer.header("content-length") {
                let length = length.parse().expect("a length");
                answer.complete = self.take(length, &mut body).await;
            } else {
                body = self.rest().await;
            }
            answer.body = body;
            return Some(answer);
        }
    }

    async fn chunked(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line().await else { return false };
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).expect("a chunk size");
            if size == 0 {
                while let Some(line) = self.line().await {
                    if line.is_empty() {
                        return true;
                    }
                }
                return false;
            }
            if !self.take(size, body).await || self.line().await.is_none() {
                return false;
            }
        }
    }
}
