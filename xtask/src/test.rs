//! `cargo xtask test`: everything the tests need, then all tests.
//!
//! Unit and integration tests run under cargo-nextest where it is installed (it runs the tests of all
//! crates side by side and each in a process of its own) and under `cargo test` elsewhere; documentation
//! tests always under `cargo test`.

use crate::{Outcome, repo};

/// Optional features that the tests and the lints include; everything but the peers of the benches.
pub(crate) const FEATURES: &str = "--features \
     cache-tiered/sled,cache-tiered/lz4,cache-tiered/encryption,cache-tiered/wincode,\
     cache-tiered/messagepack,cache-tiered/redis-rs,\
     memory/glibc,memory/jemalloc-profile,memory/serde,\
     resilience/http,resilience/rate-limit,resilience/tower,\
     loadbalancer/grpc,loadbalancer/discovery,loadbalancer/tower,loadbalancer/webhook,\
     monitor/metrics,monitor/otlp,monitor/profiling,monitor/protobuf,monitor/tower,monitor/trace-ids,\
     monitor/webhook,\
     scheduler/tower,scheduler/durable-redis,scheduler/durable-postgres,\
     ultra-perf/full,ultra-perf/glibc";

/// Installs the Debian package `$1` without letting it start or keep a server: the tests start their own.
///
/// Debian asks `policy-rc.d` before it starts a service; one that is there already is left alone.
const INSTALL: &str = "
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
apt-get update --quiet || echo 'going on with the package lists that are here'
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends \"$1\"
if [ -d /run/systemd/system ]; then systemctl disable --quiet \"$1\" || true; fi
";

/// Where Debian keeps the servers of Postgres, a folder for each version and none in the search path.
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";

/// Runs all tests, or those that `args` select.
pub(crate) fn run(args: &[String]) -> Outcome {
    provide_redis()?;
    provide_postgres()?;
    let runner = match repo::installed("cargo-nextest") {
        true => "nextest run",
        false => "test --no-fail-fast --lib --bins --tests --examples",
    };
    let mut command = repo::cargo(&format!("{runner} --workspace {FEATURES}"));
    let tests = repo::run(command.args(args));
    if !args.is_empty() {
        return tests; // somebody looks for certain tests, which are not in the documentation
    }
    let doc_tests = repo::run(&mut repo::cargo(&format!("test --workspace --doc {FEATURES}")));
    tests.and(doc_tests)
}

/// Installs a Redis server where there is none.
pub(crate) fn provide_redis() -> Outcome {
    provide("redis-server", "redis", || repo::installed("redis-server"))
}

/// Installs a Postgres server where there is none.
fn provide_postgres() -> Outcome {
    provide("postgresql", "postgresql", || {
        let versions = std::fs::read_dir(DEBIAN_POSTGRES).into_iter().flatten().flatten();
        let mut servers = versions.map(|version| version.path().join("bin/initdb"));
        repo::installed("initdb") || servers.any(|server| server.is_file())
    })
}

/// Installs Prometheus with its promtool where they are missing.
pub(crate) fn provide_prometheus() -> Outcome {
    let is_there = || repo::installed("prometheus") && repo::installed("promtool");
    provide("prometheus", "prometheus", is_there)
}

/// Installs an Alertmanager where there is none.
pub(crate) fn provide_alertmanager() -> Outcome {
    let names = ["prometheus-alertmanager", "alertmanager"];
    provide(names[0], names[1], || names.into_iter().any(repo::installed))
}

/// Installs a package of Debian unless what it brings is there; elsewhere says what is missing.
fn provide(debian: &str, macos: &str, is_there: impl Fn() -> bool) -> Outcome {
    if is_there() {
        return Ok(());
    }
    let missing = format!(
        "the tests need {debian} and it is not installed: `apt-get install {debian}` on Debian and \
         Ubuntu, `brew install {macos}` on macOS"
    );
    let root = || repo::output(repo::program("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !(repo::installed("apt-get") && root()) {
        return Err(missing);
    }
    eprintln!("{debian} is not installed; installing it from the distribution");
    let done = repo::succeeds_aloud(repo::program("sh").args(["-c", INSTALL, "sh", debian]));
    if done && is_there() { Ok(()) } else { Err(missing) }
}
