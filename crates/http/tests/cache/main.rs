//! The accelerator over real sockets, in front of an origin that the tests script.
//!
//! An origin's answer that is stale on arrival carries an `Age` above its lifetime, so that no test
//! waits for time to pass. One that must come later than something else waits at a gate.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/redis.rs"]
mod redis;

#[path = "../support/accelerator.rs"]
mod accelerator;

mod coalescing;
mod compression;
mod invalidation;
mod lifecycle;
mod serving;
mod shared;
mod stale;
mod storing;
mod streaming;
mod tags;
mod variants;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use support::origin::{Gate, Received, Reply};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// An answer that is fresh for a minute.
fn fresh(body: impl Into<Vec<u8>>) -> Reply {
    Reply::ok(body).header("cache-control", "max-age=60")
}

/// An answer whose lifetime of a minute was over 40 seconds ago; `more` are further directives.
fn aged(body: &str, more: &str) -> Reply {
    Reply::ok(body).header("cache-control", &format!("max-age=60{more}")).header("age", "100")
}

/// Answers the first request for each path as `first` says, and later ones as `then` does.
fn first_then(
    first: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    then: impl Fn(&Received) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    move |request| {
        let is_first =
            seen.lock().expect("no panic under this lock").insert(request.path().to_owned());
        if is_first { first(request) } else { then(request) }
    }
}

/// Numbers for bodies that tell which answer of the origin they are.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn next(&self) -> String {
        (self.0.fetch_add(1, Ordering::SeqCst) + 1).to_string()
    }
}

/// Holds a reply back at a gate, if there is one.
fn held(reply: Reply, gate: Option<&Gate>) -> Reply {
    match gate {
        Some(gate) => reply.when(gate),
        None => reply,
    }
}
