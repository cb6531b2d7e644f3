//! Two processes over one Redis: what one writes, the other no longer has in its memory.
//!
//! The example starts a Redis of its own on a free port, and itself a second time. Both keep what they read
//! in memory for an hour, so that reading it again costs no round trip; Redis tells each of them what the
//! other has changed.
//!
//! ```text
//! cargo run -p ultra-perf --example shared_redis --features redis
//! ```
//!
//! Without a `redis-server` in the search path it says how to get one, and ends.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};
use ultra_perf::UltraPerf;
use ultra_perf::cache_tiered::Cache;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Prices = Cache<u32, u32>;

/// How long all of it may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks at what comes by itself.
const MOMENT: Duration = Duration::from_micros(500);
/// The article whose price the processes change.
const ARTICLE: u32 = 7;
/// Tells the second process that it is the second one, and which Redis to use.
const SECOND: &str = "--second";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [second, url] if second == SECOND => does_as_it_is_told(url).await,
        _ => match timeout(PATIENCE, two_processes()).await {
            Ok(done) => done,
            Err(_) => Err(format!("not done after {PATIENCE:?}").into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn two_processes() -> Result<()> {
    let Some((_redis, url)) = start_redis().await? else {
        println!(
            "This example needs Redis, and there is no redis-server in the search path: \
             `apt-get install redis-server` on Debian and Ubuntu, `brew install redis` on macOS."
        );
        return Ok(());
    };
    let (perf, prices) = open(&url).await?;
    let mut second = Second::start(&url)?;

    put(&prices, 100).await;
    println!("first writes 100");
    let (value, tier) = second.get().await?;
    println!("second reads {value} from {tier}");
    let (again, nearest) = second.get().await?;
    println!("second reads {again} from {nearest}, and would for an hour");

    put(&prices, 120).await;
    println!("first writes 120");
    let written = Instant::now();
    while second.get().await?.0 != "120" {
        sleep(MOMENT).await;
    }
    println!("second reads 120, {:.1?} after it was written", written.elapsed());

    let before = prices.get(&ARTICLE).await;
    second.put(90).await?;
    println!("second writes 90");
    let written = Instant::now();
    while prices.get(&ARTICLE).await != Some(90) {
        sleep(MOMENT).await;
    }
    println!("first reads 90, {:.1?} after it was written", written.elapsed());

    let followed = prices.stats().coherence.ok_or("the cache has no Redis")?;
    println!("changes are told by {}", followed.mode.unwrap_or("nobody"));
    perf.shutdown(Duration::from_secs(5)).await;
    let seen = [value.as_str(), &tier, &again, &nearest];
    match (seen, before) {
        (["100", "Redis", "100", "memory"], Some(120)) => Ok(()),
        (seen, before) => Err(format!("read something else: {seen:?}, then {before:?}").into()),
    }
}

/// A handle and a cache that follows what others change.
async fn open(url: &str) -> Result<(UltraPerf, Prices)> {
    let perf = UltraPerf::builder()
        .set("cache.redis.url", url)
        .set("cache.redis.timeout", "1s")
        .set("cache.disk.enabled", "false")
        .set("cache.ttl", "1h")
        .set("monitor.history.enabled", "false")
        .build()
        .await?;
    let prices: Prices = perf.cache("prices").open().await?;
    // It connects in the background, and works without Redis until it has.
    while !prices.stats().coherence.is_some_and(|coherence| coherence.coherent) {
        sleep(MOMENT).await;
    }
    Ok((perf, prices))
}

/// Writes the price and waits until Redis has it.
async fn put(prices: &Prices, price: u32) {
    prices.insert(ARTICLE, price);
    prices.flush().await;
}

/// The second process: answers each line that it is sent, until there are no more.
async fn does_as_it_is_told(url: &str) -> Result<()> {
    let (perf, prices) = open(url).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.strip_prefix("put ") {
            Some(price) => {
                put(&prices, price.parse()?).await;
                println!("done");
            }
            None => {
                let near = prices.get_in_memory(&ARTICLE).is_some();
                let price =
                    prices.get(&ARTICLE).await.map_or("none".to_owned(), |it| it.to_string());
                println!("{price} {}", if near { "memory" } else { "Redis" });
            }
        }
    }
    perf.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// The second process as the first one sees it; it ends with this value.
struct Second {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Second {
    fn start(url: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([SECOND, url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn()?;
        let input = process.stdin.take().ok_or("its input is piped")?;
        let output = process.stdout.take().ok_or("its output is piped")?;
        Ok(Self { _process: process, input, output: BufReader::new(output).lines() })
    }

    async fn ask(&mut self, line: &str) -> Result<String> {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.output.next_line().await?.ok_or("the second process has ended")?)
    }

    /// What it reads, and where it had it.
    async fn get(&mut self) -> Result<(String, String)> {
        let answer = self.ask("get").await?;
        let (price, tier) = answer.split_once(' ').ok_or("an answer without a tier")?;
        Ok((price.to_owned(), tier.to_owned()))
    }

    async fn put(&mut self, price: u32) -> Result<()> {
        self.ask(&format!("put {price}")).await.map(drop)
    }
}

/// Starts a Redis that keeps nothing and ends with its value; `None` where none is installed.
async fn start_redis() -> Result<Option<(Child, String)>> {
    loop {
        // Somebody else may take the port before the server does; then it ends, and another is tried.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no"]).current_dir(std::env::temp_dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = match command.kill_on_drop(true).spawn() {
            Ok(server) => server,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        while server.try_wait()?.is_none() {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Some((server, format!("redis://127.0.0.1:{port}"))));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}
