//! Serves some metrics for Prometheus in whichever format is asked for.
//!
//! `/metrics` goes by the `Accept` header, `/metrics/text` and `/metrics/openmetrics` have one format each.
//! The first line of the output is the address; the program ends when its input does. What it records is
//! always the same, and beside the histogram it shows quantiles of its own, so that those which a server
//! makes of the histogram can be compared. `cargo xtask prometheus` does that with a real Prometheus.
//!
//! ```text
//! cargo run -p monitor --example serve_metrics --features protobuf
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use monitor::{
    Clock as _, Format, Histogram, Kind, Registry, Renderer, SystemClock, TraceId, Unit, negotiate,
};

const QUANTILES: [&str; 4] = ["0.5", "0.9", "0.99", "0.999"];

fn main() -> io::Result<()> {
    let registry = Registry::default();
    registry.describe("example_orders_total", Kind::Counter, Unit::None, "Orders taken.");
    registry.counter("example_orders_total", &[("kind", "book")]).increment(12_345);
    registry.counter("example_orders_total", &[("kind", "a \"b\"\n\\c")]).increment(7);
    registry.describe("example_heap_bytes", Kind::Gauge, Unit::Bytes, "Bytes in use.");
    registry.gauge("example_heap_bytes", &[]).set(1_572_864.0);
    latencies(&registry);
    registry.describe("example_scrapes_total", Kind::Counter, Unit::None, "Scrapes, by format.");

    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        let (clock, renderer) = (SystemClock::new(), Renderer::every(Duration::ZERO));
        for stream in listener.incoming() {
            // A client that goes away takes nothing but its own answer with it.
            if let Err(error) =
                stream.and_then(|stream| answer(stream, &registry, &clock, &renderer))
            {
                eprintln!("{error}");
            }
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The median of a call, by its number.
type Median = fn(u32) -> f64;

/// Records 100,000 latencies of two kinds of calls, and shows their quantiles.
fn latencies(registry: &Registry) {
    let name = "example_latency_seconds";
    registry.describe(name, Kind::Histogram, Unit::Seconds, "Time that calls took.");
    let quantiles = "example_latency_quantile_seconds";
    registry.describe(
        quantiles,
        Kind::Gauge,
        Unit::Seconds,
        "Quantiles of the same, by ourselves.",
    );
    // Log-normal about 8 ms; and nine in ten about 0.2 ms, the others about 40 ms.
    let kinds: [(&str, Median, f64); 2] = [
        ("origin", |_| 0.008, 0.6),
        ("cache", |at| if at % 10 == 0 { 0.04 } else { 0.000_2 }, 0.2),
    ];
    for (kind, median, sigma) in kinds {
        let histogram: Histogram = registry.histogram(name, &[("kind", kind)]);
        let mut random = fastrand::Rng::with_seed(42);
        for at in 0..100_000 {
            // The sum of twelve uniform numbers is near enough to a normal one.
            let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            histogram.record(median(at) * (normal * sigma).exp());
        }
        if let Some(trace_id) = TraceId::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c) {
            let now = SystemClock::new().now();
            histogram.offer_exemplar(0.04, trace_id, now.unix_ms);
        }
        let all = histogram.distribution();
        for q in QUANTILES {
            let value = all.quantile(q.parse().expect("a number")).expect("there are values");
            registry.gauge(quantiles, &[("kind", kind), ("q", q)]).set(value);
        }
    }
}

/// Answers one request and closes the connection.
fn answer(
    mut stream: TcpStream,
    registry: &Registry,
    clock: &SystemClock,
    renderer: &Renderer,
) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(16 * 1024)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut accept = None;
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("accept") => {
                accept = Some(value.trim().to_owned());
            }
            Some(_) => {}
            None => break, // the empty line behind the head
        }
    }
    let format = match first.split(' ').nth(1) {
        Some("/metrics") => negotiate(accept.as_deref()),
        Some("/metrics/text") => Format::Text,
        Some("/metrics/openmetrics") => Format::OpenMetrics,
        _ => return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    };
    registry.counter("example_scrapes_total", &[("format", &format!("{format:?}"))]).increment(1);
    let body = renderer.render(&registry.read(clock.now()), format);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        format.content_type(),
        body.len(),
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}
