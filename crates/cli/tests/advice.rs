//! Advice and settings of a running accelerator from the command line, as an operator would.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Accelerator, Backend, LARGE_BYTES, PATIENCE, run, text};
use ultra_perf::UltraPerf;
use ultra_perf::monitor::MonitorBuilder;
use ultra_perf::monitor::advice::{Action, Category, Finding, Priority};
use ultra_perf_http::AdminServer;

/// Runs a command against an accelerator.
fn command(directory: &Path, accelerator: &Accelerator, args: &[&str]) -> Output {
    run(directory, &[args, &["--admin", &accelerator.admin]].concat())
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn setting(accelerator: &Accelerator, key: &str) -> Value {
    let config = accelerator.admin_get("/config");
    let rows = config["settings"].as_array().unwrap();
    rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key}"))["value"].clone()
}

#[test]
fn settings_are_shown_changed_and_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let accelerator =
        Accelerator::start_with(directory.path(), &Backend::start(), &["--level", "basic"]);
    let command = |args: &[&str]| command(directory.path(), &accelerator, args);
    assert_eq!(accelerator.admin_get("/config")["level"], "basic");
    let before = setting(&accelerator, "cache.ttl");
    let asked = ["apply", "cache_ttl=10m", "balancer.choices=3"];
    let shown = text(&command(&asked).stdout);
    let lines = format!("cache.ttl         {} -> 10m\n", before.as_str().unwrap());
    assert!(shown.contains(&lines) && shown.contains("nothing was changed; --yes"), "{shown}");
    assert_eq!(setting(&accelerator, "cache.ttl"), before);

    let changed = json(&command(&[&asked[..], &["--yes", "--json"]].concat()));
    assert_eq!((&changed["version"], &changed["by"]), (&1.into(), &"the command line".into()));
    assert_eq!(setting(&accelerator, "cache.ttl"), "10m");
    assert_eq!(setting(&accelerator, "balancer.choices"), "3");
    let undone = text(&command(&["undo", "1"]).stdout);
    assert!(undone.contains("10m -> ") && undone.contains("`ultra-perf undo 2`"), "{undone}");
    assert_eq!(setting(&accelerator, "cache.ttl"), before);

    for (args, code, problem) in [
        (&["apply", "cache.ttl=soon", "cache.polizy=lru", "--yes"][..], 2, "cache.polizy"),
        (&["apply", "cache.ttl=soon"], 2, "cache.ttl"),
        (&["apply", "cache.ttl=1m", "some.rule"], 2, "\"some.rule\" is no setting"),
        (&["apply", "no.such:advice", "--yes"], 1, "no recommendation \"no.such:advice\""),
        (&["undo", "no.such:advice"], 1, "no recommendation"),
        (&["undo", "99"], 1, "no change of version 99"),
        (&["apply"], 2, "ID|KEY=VALUE"),
    ] {
        let output = command(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(problem), "{args:?}: {output:?}");
    }
    assert_eq!(accelerator.admin_get("/config")["version"], 2);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = run(directory.path(), &["recommend", "--admin", &gone.to_string()]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("no accelerator answers on"), "{nobody:?}");
}

#[test]
fn what_is_logged_changes_while_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let accelerator = Accelerator::start(directory.path(), &Backend::start());
    let command = |args: &[&str]| {
        let done = command(directory.path(), &accelerator, args);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    };
    command(&["apply", "log.level=warn", "--yes"]);
    command(&["purge", "http://shop/unsaid"]);
    command(&["undo", "1"]);
    command(&["purge", "http://shop/said"]);
    let deadline = Instant::now() + PATIENCE;
    while !accelerator.has_logged("http://shop/said") {
        assert!(Instant::now() < deadline, "it says no more");
        std::thread::yield_now();
    }
    assert!(!accelerator.has_logged("http://shop/unsaid"));
}

/// Asks for large pages by chance until told to stop, on one connection.
fn load(proxy: &str, pages: u64, stop: &AtomicBool) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut answer = vec![0; LARGE_BYTES * 2];
    while !stop.load(Ordering::Relaxed) {
        let request = format!("GET /large/{} HTTP/1.1\r\nHost: shop\r\n\r\n", rng.u64(0..pages));
        stream.write_all(request.as_bytes()).unwrap();
        let mut read = 0;
        let whole = loop {
            read += stream.read(&mut answer[read..]).unwrap();
            let head = answer[..read].windows(4).position(|end| end == b"\r\n\r\n");
            if let Some(head) = head {
                break head + 4 + LARGE_BYTES;
            }
        };
        stream.read_exact(&mut answer[read..whole]).unwrap();
    }
}

/// Keeps a load up until it is dropped.
struct Loaded(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Loaded {
    fn start(accelerator: &Accelerator, pages: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, proxy) = (Arc::clone(&stop), accelerator.proxy.clone());
        Self(stop, Some(std::thread::spawn(move || load(&proxy, pages, &stopped))))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let ended = self.1.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the load broke off");
    }
}

#[test]
fn a_cache_that_is_too_small_gets_advice_that_is_applied_and_undone() {
    const ID: &str = "cache.undersized:responses";
    let directory = tempfile::tempdir().unwrap();
    let file = "[cache]\ndisk.enabled = false\nmemory.capacity = \"4MiB\"\n\
                [advice]\nevery = \"1s\"\nwindow = \"10s\"\n";
    std::fs::write(directory.path().join("ultra-perf.toml"), file).unwrap();
    let accelerator = Accelerator::start(directory.path(), &Backend::start());
    let command = |args: &[&str]| command(directory.path(), &accelerator, args);
    // Twice as much as the cache holds.
    let _loaded = Loaded::start(&accelerator, (8 << 20) / LARGE_BYTES as u64);
    let deadline = Instant::now() + PATIENCE;
    let advice = loop {
        let answer = json(&command(&["recommend", "--json"]));
        let list = answer["recommendations"].as_array().unwrap();
        if let Some(one) = list.iter().find(|one| one["id"] == ID) {
            break one.clone();
        }
        assert!(Instant::now() < deadline, "no such advice in {answer:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(advice["action"]["path"], "caches.responses.capacity", "{advice:#}");
    let table = text(&command(&["recommend"]).stdout);
    assert!(table.contains(ID) && table.contains("caches.responses.capacity"), "{table}");

    let capacity = || {
        accelerator.admin_get("/cache/stats")["levels"]["l1"]["capacity_bytes"].as_u64().unwrap()
    };
    let before = capacity();
    let shown = text(&command(&["apply", ID]).stdout);
    assert!(shown.contains("caches.responses.capacity") && shown.contains("--yes"), "{shown}");
    assert_eq!(capacity(), before);
    let applied = json(&command(&["apply", ID, "--yes", "--json"]));
    assert_eq!(applied["recommendation"]["state"], "applied", "{applied:#}");
    assert!(capacity() > before, "{applied:#}");
    assert_eq!(
        json(&command(&["recommend", "--all", "--json"]))["recommendations"][0]["state"],
        "applied"
    );
    let undone = command(&["undo", ID]);
    assert_eq!(undone.status.code(), Some(0), "{undone:?}");
    assert_eq!(capacity(), before);
    let changes = accelerator.admin_get("/config/changes");
    assert_eq!(changes["total_changes"], 2, "{changes:#}");
}

#[test]
fn a_service_that_has_no_accelerator_is_steered_by_the_same_commands() {
    const ID: &str = "made.ttl";
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (perf, admin) = runtime.block_on(async {
        let builder = UltraPerf::builder()
            .set("server.admin", "127.0.0.1:0")
            .set("cache.disk.enabled", "false")
            .set("cache.ttl", "1h")
            .set("monitor.history.enabled", "false")
            .set("advice.every", "1s")
            .monitor(MonitorBuilder::without_generic_advice);
        let perf = builder.build().await.unwrap();
        perf.monitor().unwrap().add_advice_rule(ID, |_| {
            let finding = Finding::advice(
                Category::Cache,
                Priority::High,
                "Half is missed",
                "Keep it longer",
            );
            vec![Finding { action: Some(Action::set("cache.ttl", "1h", "2h")), ..finding }]
        });
        let admin = AdminServer::start(&perf).await.unwrap();
        (perf, admin)
    });
    let address = admin.addr().to_string();
    let command = |args: &[&str]| run(directory.path(), &[args, &["--admin", &address]].concat());
    let ttl = || perf.config().cache.ttl.as_secs();
    let deadline = Instant::now() + PATIENCE;
    while !text(&command(&["recommend"]).stdout).contains(ID) {
        assert!(Instant::now() < deadline, "it has no advice");
        std::thread::sleep(Duration::from_millis(100));
    }
    let score = command(&["score"]);
    assert!(score.status.success() && text(&score.stdout).contains("points"), "{score:?}");
    assert!(json(&command(&["score", "--json"]))["parts"].is_array());
    let shown = text(&command(&["apply", ID]).stdout);
    assert!(shown.contains("cache.ttl  1h -> 2h") && shown.contains("--yes"), "{shown}");
    assert_eq!(ttl(), 3_600);
    let applied = json(&command(&["apply", ID, "--yes", "--json"]));
    assert_eq!((&applied["version"], ttl()), (&1.into(), 7_200), "{applied:#}");
    let undone = text(&command(&["undo", ID]).stdout);
    assert!(undone.contains("2h -> 1h") && ttl() == 3_600, "{undone}");
    assert_eq!(json(&command(&["apply", "cache.ttl=10m", "--yes", "--json"]))["version"], 3);
    assert_eq!(ttl(), 600);
    assert!(command(&["undo", "3"]).status.success() && ttl() == 3_600);

    let purged = command(&["purge", "http://shop/"]);
    assert_eq!(purged.status.code(), Some(1));
    assert!(text(&purged.stderr).contains("come with an accelerator"), "{purged:?}");
}
