//! The binary `ultra-perf` beside nginx: hits from the cache, and answers that may not be cached.
//!
//! Both stand in front of the same origin and are pinned to the same core, one worker each; `wrk` and the
//! origin share another one. They are loaded in turn for two seconds at a time, over 32 connections that
//! stay open. So requests per second are those of one busy core. Before the load, each answer is looked
//! at: that it comes from the cache, or does not, and is as long as it should be.
//!
//! CPU time per request is the server's own, user and system, over all rounds of a case; a slow load
//! generator or a busy neighbour lowers the rate and leaves it be.
//!
//! Needs `wrk`, `nginx` and `taskset`, and two cores.
#![forbid(unsafe_code)]

mod load;
mod process;
mod servers;

use std::cell::Cell;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use ultra_perf_bench::{Suite, Target, build_ultra_perf};

use crate::load::{fetch, wrk};
use crate::process::{Cores, missing_program};
use crate::servers::{FILES, Server};

/// What is asked for, whether the cache answers, and what is wanted of it.
struct Kind {
    case: &'static str,
    path: &'static str,
    body_bytes: usize,
    hit: bool,
    target: Option<Target>,
}

const KINDS: [Kind; 3] = [
    Kind {
        case: "1 KiB hits",
        path: FILES[0].0,
        body_bytes: FILES[0].1,
        hit: true,
        target: Some(Target::AtLeast(1.0)),
    },
    Kind { case: "16 KiB hits", path: FILES[1].0, body_bytes: FILES[1].1, hit: true, target: None },
    Kind {
        case: "1 KiB passed through",
        path: FILES[2].0,
        body_bytes: FILES[2].1,
        hit: false,
        target: Some(Target::AtLeast(0.8)),
    },
];

const UNIT: &str = "req/s";

fn main() -> ExitCode {
    let mut suite = Suite::new("http");
    let missing = missing_program().map(|program| format!("{program} is not installed"));
    let cores = Cores::of_this_machine().ok_or_else(|| "needs two cores".to_owned());
    match missing.map_or(cores, Err) {
        Err(reason) => {
            for kind in &KINDS {
                suite.reported(kind.case, UNIT).skip("nginx", &reason);
            }
        }
        Ok(cores) => {
            if let Err(error) = measure(&mut suite, cores) {
                eprintln!("http: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    suite.finish()
}

fn measure(suite: &mut Suite, cores: Cores) -> io::Result<()> {
    let binary = build_ultra_perf()?;
    let origin = Server::origin(cores)?;
    let ours = Server::ultra_perf(cores, &binary, origin.port)?;
    let nginx = Server::nginx(cores, origin.port)?;

    for kind in &KINDS {
        for server in [&ours, &nginx] {
            check(server, kind)?;
        }
        let costs = [Cost::default(), Cost::default()];
        let round = |server: &Server, cost: &Cost| {
            let before = server.process.cpu_time();
            let load = wrk(cores.load, server.port, kind.path).expect("every request is answered");
            cost.add(server.process.cpu_time().saturating_sub(before), load.requests);
            load.per_second
        };
        let case = suite.reported(kind.case, UNIT);
        let case = match kind.target {
            Some(Target::AtLeast(bound)) => case.at_least(bound),
            Some(Target::AtMost(bound)) => case.at_most(bound),
            None => case,
        };
        case.compare("nginx", || round(&ours, &costs[0]), || round(&nginx, &costs[1]));
        for (name, cost) in ["ultra-perf", "nginx"].into_iter().zip(&costs) {
            if let Some(micros) = cost.micros_per_request() {
                let case = format!("{}, CPU of {name}", kind.case);
                suite.reported(&case, "us/req").observed(micros);
            }
        }
    }
    for (name, server) in [("ultra-perf", &ours), ("nginx", &nginx)] {
        let mib = server.process.resident_bytes() as f64 / f64::from(1 << 20);
        suite.reported(&format!("resident memory of {name}"), "MiB").observed(mib);
    }
    Ok(())
}

/// CPU time taken, and requests answered for it.
#[derive(Default)]
struct Cost {
    cpu: Cell<Duration>,
    requests: Cell<u64>,
}

impl Cost {
    fn add(&self, cpu: Duration, requests: u64) {
        self.cpu.set(self.cpu.get() + cpu);
        self.requests.set(self.requests.get() + requests);
    }

    fn micros_per_request(&self) -> Option<f64> {
        let requests = self.requests.get();
        (requests > 0).then(|| self.cpu.get().as_secs_f64() * 1e6 / requests as f64)
    }
}

/// Makes sure that a server answers as the case says, after two requests that may fill its cache.
fn check(server: &Server, kind: &Kind) -> io::Result<()> {
    for _ in 0..2 {
        fetch(server.port, kind.path)?;
    }
    let answer = fetch(server.port, kind.path)?;
    let is_hit = answer.head.lines().any(|line| line == "x-cache: hit");
    let is_good = answer.head.starts_with("http/1.1 200 ") && answer.body_bytes == kind.body_bytes;
    if is_good && is_hit == kind.hit {
        return Ok(());
    }
    let (path, bytes, head) = (kind.path, answer.body_bytes, answer.head);
    Err(io::Error::other(format!("{path} was answered with {bytes} bytes and {head:?}")))
}
