//! The claim about responses: the accelerator in front of a slow backend, beside the backend alone.
//!
//! Both are asked for the same pages over a kept connection, each page several times. The pages of a
//! round have new names, so the first request of each goes to the backend on both sides.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream as AsyncStream};
use tokio::runtime::Runtime;
use ultra_perf::config::ConfigLoader;
use ultra_perf_bench::{Clock, Stopwatch, Suite};
use ultra_perf_http::Server;

const CASE: &str = "\"responses 60 % faster\": a 20 ms backend, 10 new pages, each 5 times";
/// What the backend takes for an answer.
const WORK: Duration = Duration::from_millis(20);
const PAGES: u32 = 10;
const REPEATS: u32 = 5;
const BODY: &str = "{\"answer\":42}";

/// Measures the claim about responses.
pub(crate) fn measure(suite: &mut Suite) {
    const PEER: &str = "the backend alone";
    if !suite.wants(&format!("{CASE} vs {PEER}")) {
        return;
    }
    let runtime = Runtime::new().expect("threads can be started");
    let backend = runtime.block_on(start_backend()).expect("loopback has a free port");
    let server = runtime.block_on(start_server(backend));
    let mut round = 0;
    let mut mean = |address| {
        round += 1;
        mean_ms(address, round).expect("both sides answer")
    };
    let mut peer_round = 1_000_000;
    suite.reported(CASE, "ms").rounds(9).at_most(0.4).compare(
        PEER,
        || mean(server.proxy_addr()),
        || {
            peer_round += 1;
            mean_ms(backend, peer_round).expect("both sides answer")
        },
    );
    runtime.block_on(server.shutdown(Duration::from_secs(1)));
    runtime.shutdown_background();
}

/// Starts the accelerator in front of a backend.
pub(crate) async fn start_server(backend: SocketAddr) -> Server {
    let set =
        |loader: ConfigLoader, (key, value): (&str, String)| loader.set(key, value, "the suite");
    let config = [
        ("server.to", format!("http://{backend}")),
        ("server.listen", "127.0.0.1:0".to_owned()),
        ("server.admin", "127.0.0.1:0".to_owned()),
        ("cache.disk.enabled", "false".to_owned()),
    ];
    let config = config.into_iter().fold(ConfigLoader::new(), set).load();
    Server::start(&config.expect("a valid configuration")).await.expect("loopback has free ports")
}

/// Starts a backend that takes its time for every page and allows a minute of caching.
pub(crate) async fn start_backend() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes away ends its connection, and nothing else.
            tokio::spawn(async move { _ = answer_all(stream).await });
        }
    });
    Ok(address)
}

async fn answer_all(stream: AsyncStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = tokio::io::BufReader::new(stream);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut line = String::new();
    loop {
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
        }
        tokio::time::sleep(WORK).await;
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Asks for the pages of a round; the mean time of a response in milliseconds.
fn mean_ms(address: SocketAddr, round: u32) -> io::Result<f64> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut stream = BufReader::new(stream);
    let watch = Stopwatch::start(Clock::Wall);
    for request in 0..PAGES * REPEATS {
        get(&mut stream, &format!("/round/{round}/page/{}", request % PAGES))?;
    }
    Ok(watch.elapsed().as_secs_f64() * 1e3 / f64::from(PAGES * REPEATS))
}

fn get(stream: &mut BufReader<TcpStream>, path: &str) -> io::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut status = String::new();
    stream.read_line(&mut status)?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("answered {:?}", status.trim())));
    }
    let mut length = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length.ok_or_else(|| io::Error::other("no length"))?];
    stream.read_exact(&mut body)?;
    if body == BODY.as_bytes() { Ok(()) } else { Err(io::Error::other("another body")) }
}
