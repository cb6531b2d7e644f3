//! `wrk` against a server, and single requests that look at what it answers.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::process::pinned;

/// Connections of the load.
const CONNECTIONS: &str = "-c32";
/// How long a round lasts.
const DURATION: &str = "-d2s";

/// What `wrk` has counted.
#[derive(Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
}

/// Loads a server for one round. Any answer but a good one is an error.
pub(crate) fn wrk(core: usize, port: u16, path: &str) -> io::Result<Load> {
    let output = pinned(core, "wrk")
        .args(["-t1", CONNECTIONS, DURATION, &format!("http://127.0.0.1:{port}{path}")])
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout);
    Load::parse(&report).ok_or_else(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!("wrk says {:?}", format!("{report}{complaint}").trim()))
    })
}

impl Load {
    /// Reads a report without failed requests; time-outs of a busy machine are let pass.
    fn parse(report: &str) -> Option<Self> {
        let after = |label: &str| {
            let line = report.lines().find_map(|line| line.trim_start().strip_prefix(label))?;
            Some(line.trim())
        };
        let failed = after("Non-2xx or 3xx responses:").is_some()
            || after("Socket errors:")
                .is_some_and(|errors| !errors.starts_with("connect 0, read 0, write 0,"));
        let requests = report.lines().find_map(|line| line.split_once(" requests in "))?.0;
        let load = Self {
            requests: requests.trim().parse().ok()?,
            per_second: after("Requests/sec:")?.parse().ok()?,
        };
        (!failed).then_some(load)
    }
}

/// One answer: its head, in lower case, and the length of its body.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body_bytes: usize,
}

/// Asks for `path` over a connection of its own.
pub(crate) fn fetch(port: u16, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("an answer without an end of its head"))?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    Ok(Answer { head, body_bytes: answer.len() - end - 4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 2s test @ http://127.0.0.1:1/1k
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   435.19us  210.11us   9.03ms   95.91%
    Req/Sec    73.10k     2.24k   76.61k    85.00%
  145432 requests in 2.00s, 180.21MB read
";

    #[test]
    fn a_report_is_read() {
        let report = format!("{GOOD}Requests/sec:  72590.12\nTransfer/sec:     90.10MB\n");
        let load = Load { requests: 145_432, per_second: 72_590.12 };
        assert_eq!(Load::parse(&report), Some(load));
    }

    #[test]
    fn a_report_with_failed_requests_is_none() {
        for (errors, good) in [
            ("  Non-2xx or 3xx responses: 7\n", false),
            ("  Socket errors: connect 0, read 3, write 0, timeout 0\n", false),
            ("  Socket errors: connect 0, read 0, write 0, timeout 3\n", true),
        ] {
            let report = format!("{GOOD}{errors}Requests/sec:  72590.12\n");
            assert_eq!(Load::parse(&report).is_some(), good, "{errors}");
        }
        assert_eq!(Load::parse("unable to connect to 127.0.0.1:1 Connection refused\n"), None);
    }
}
