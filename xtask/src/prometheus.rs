//! `cargo xtask prometheus`: a real Prometheus scrapes the example of `monitor`, and reads what was recorded.
//!
//! It is run twice, with native histograms and without, and each time scrapes the negotiated format, plain
//! text and `OpenMetrics`. Counters must be what they are, and quantiles that the server makes of histograms
//! must be near those that the example computes itself: within 5.5 % from native buckets, and within the
//! ratio of two bounds, 2.5, from classic ones. `promtool check metrics` must have nothing to say.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Outcome, repo, scratch, test};

/// How long the server may take to start and to scrape everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// The formats and where the example serves them; the first is what the server asks for.
const JOBS: [(&str, &str); 3] = [
    ("negotiated", "/metrics"),
    ("text", "/metrics/text"),
    ("openmetrics", "/metrics/openmetrics"),
];

/// Runs the comparison, or says why not.
pub(crate) fn run() -> Outcome {
    if let Err(missing) = test::provide_prometheus() {
        eprintln!("skipped: {missing}");
        return Ok(());
    }
    repo::run(&mut repo::cargo(
        "build --package monitor --features protobuf --example serve_metrics",
    ))?;
    let (_example, address) = example()?;
    check_text(&address)?;
    for native in [true, false] {
        check(&address, native)?;
    }
    Ok(())
}

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the example and returns where it listens.
fn example() -> Result<(Running, String), String> {
    let mut command = repo::program(repo::target().join("debug/examples/serve_metrics"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.map_err(|error| format!("cannot run the example: {error}"))?);
    let mut line = String::new();
    let output = running.0.stdout.take().expect("its output is piped");
    BufReader::new(output)
        .read_line(&mut line)
        .map_err(|error| format!("the example says nothing: {error}"))?;
    let address = line.trim().strip_prefix("http://").ok_or("the example names no address")?;
    let address = address.to_owned();
    Ok((running, address))
}

/// Lets `promtool` look at the text format.
fn check_text(address: &str) -> Outcome {
    let text = get(address, "/metrics/text")?;
    let mut promtool = repo::program("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run promtool: {error}"))?;
    let mut input = promtool.stdin.take().expect("its input is piped");
    input.write_all(text.as_bytes()).map_err(|error| format!("promtool does not read: {error}"))?;
    drop(input);
    let output = promtool.wait_with_output().map_err(|error| format!("promtool: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() && said.is_empty() {
        println!("promtool check metrics: nothing to say");
        return Ok(());
    }
    Err(format!("promtool check metrics says: {}", String::from_utf8_lossy(&said).trim()))
}

/// Runs a server over the example and compares what it has read.
fn check(example: &str, native: bool) -> Outcome {
    let folder = scratch("prometheus")?;
    // What an earlier run left would be part of the answers.
    let _ = fs::remove_dir_all(&folder);
    let (_server, server) = server(&folder, example, native)?;
    await_targets(&server)?;
    let format = if native { "Protobuf" } else { "OpenMetrics" };
    let scraped = format!("example_scrapes_total{{job=\"negotiated\",format=\"{format}\"}} > 0");
    let title = if native { "with native histograms" } else { "without native histograms" };
    println!("\nPrometheus {title}, negotiated: {format}");
    await_value(&server, &scraped)?;

    for (job, _) in JOBS {
        for (kind, expected) in [("book", 12_345.0), ("a \\\"b\\\"\\n\\\\c", 7.0)] {
            let query = format!("example_orders_total{{job=\"{job}\",kind=\"{kind}\"}}");
            let value = await_value(&server, &query)?;
            if value != expected {
                return Err(format!("{query} is {value} and not {expected}"));
            }
        }
        for kind in ["origin", "cache"] {
            for q in ["0.5", "0.9", "0.99", "0.999"] {
                quantile(&server, job, kind, q, native)?;
            }
        }
    }
    Ok(())
}

/// Compares a quantile that the server makes of a histogram with the one that the example made.
fn quantile(server: &str, job: &str, kind: &str, q: &str, native: bool) -> Outcome {
    let is_native = native && job == "negotiated";
    let suffix = if is_native { "" } else { "_bucket" };
    let query = format!(
        "histogram_quantile({q}, example_latency_seconds{suffix}{{job=\"{job}\",kind=\"{kind}\"}})"
    );
    let own =
        format!("example_latency_quantile_seconds{{job=\"{job}\",kind=\"{kind}\",q=\"{q}\"}}");
    let (theirs, ours) = (await_value(server, &query)?, await_value(server, &own)?);
    let ratio = theirs / ours;
    let bound = if is_native { 1.055 } else { 2.5 };
    let buckets = if is_native { "native" } else { "classic" };
    println!(
        "  {job:<12} {kind:<6} p{:<4} {buckets:<7} {:>9.4} ms, ours {:>9.4} ms, {:+.1} %",
        (q.parse::<f64>().unwrap_or(0.0) * 1_000.0).round() / 10.0,
        theirs * 1_000.0,
        ours * 1_000.0,
        (ratio - 1.0) * 100.0,
    );
    if (1.0 / bound..=bound).contains(&ratio) {
        return Ok(());
    }
    Err(format!(
        "{query} is {theirs}, and our own quantile {ours}: more than a factor {bound} apart"
    ))
}

/// Starts a server that scrapes the example each second, and returns where it listens.
fn server(folder: &Path, example: &str, native: bool) -> Result<(Running, String), String> {
    let cannot = |error| format!("cannot write to {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(cannot)?;
    let mut config =
        String::from("global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n");
    for (job, path) in JOBS {
        config += &format!(
            "  - {{job_name: {job}, metrics_path: {path}, static_configs: [{{targets: ['{example}']}}]}}\n"
        );
    }
    let config_file = folder.join("prometheus.yml");
    fs::write(&config_file, config).map_err(cannot)?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.map_err(|error| format!("no port is free: {error}"))?.to_string();
    let log = fs::File::create(folder.join("log")).map_err(cannot)?;
    let mut command = repo::program("prometheus");
    command.arg(format!("--config.file={}", config_file.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address={address}"));
    if native {
        command.arg("--enable-feature=native-histograms");
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    let child = child.map_err(|error| format!("cannot run prometheus: {error}"))?;
    Ok((Running(child), address))
}

/// Asks again until there is an answer.
fn await_some<T>(what: &str, ask: impl Fn() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("{what}: nothing for {} s, last {error}", PATIENCE.as_secs()));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Waits until all targets are up.
fn await_targets(server: &str) -> Outcome {
    await_some("targets", || {
        let targets = json(server, "/api/v1/targets")?;
        let targets = targets["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let up = targets.iter().filter(|target| target["health"] == "up").count();
        let errors: Vec<&str> =
            targets.iter().filter_map(|target| target["lastError"].as_str()).collect();
        if up == JOBS.len() { Ok(()) } else { Err(format!("{up} are up; {}", errors.join("; "))) }
    })
}

/// The one value that a query gives, as soon as it gives one.
fn await_value(server: &str, query: &str) -> Result<f64, String> {
    await_some(query, || {
        let answer = json(server, &format!("/api/v1/query?query={}", encoded(query)))?;
        let result = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let [series] = result.as_slice() else {
            return Err(format!("{} series: {answer}", result.len()));
        };
        let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
        value.ok_or_else(|| format!("no number: {answer}"))
    })
}

fn json(server: &str, path: &str) -> Result<Value, String> {
    serde_json::from_str(&get(server, path)?).map_err(|error| format!("no JSON: {error}"))
}

/// The body of an answer.
pub(crate) fn get(server: &str, path: &str) -> Result<String, String> {
    let request = || {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // Of version 1.0 the answer comes in one piece and ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer: Result<String, std::io::Error> = request();
    let answer = answer.map_err(|error| format!("{server} does not answer: {error}"))?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a body")?;
    Ok(body.to_owned())
}

/// A query as a part of a URL.
fn encoded(query: &str) -> String {
    query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
