//! Alerts under `kill -9`: a child fires and resolves, the parent kills it at random moments and counts.
//!
//! The child is this test program again, running only `fires_until_killed`. Twenty instances of one rule
//! fire and resolve at set times of a clock that runs fast. The parent is the receiver of the webhook: it
//! takes some messages without an answer, so that the child has to send them again. In the end there must
//! be one message about each beginning and each end, however often it was sent: told apart by the header
//! `Idempotency-Key`, and as lines of the file that another handler writes, where none may come twice.

#![cfg(all(feature = "webhook", unix))]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use monitor::alert::{AlertEvent, Alerting, AlertingOptions, MadeUp, RuleSet};
use monitor::{Clock, Moment, Registry};

const FOLDER: &str = "ULTRA_PERF_ALERTS_FOLDER";
const BEGAN: &str = "ULTRA_PERF_ALERTS_BEGAN";
const URL: &str = "ULTRA_PERF_ALERTS_URL";
/// Set for the last child, which sends what is left and ends by itself.
const LAST: &str = "ULTRA_PERF_ALERTS_LAST";

const INSTANCES: i64 = 20;
/// How many times faster than the machine's the clock of the child runs.
const HURRY: i64 = 20;
/// When the last instance has resolved, in milliseconds of that clock.
const END_MS: i64 = 100_000;

fn machine_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("a date")
}

/// A clock that runs fast since a moment that all children know.
struct Fast {
    began_ms: i64,
    started_ms: i64,
}

impl Clock for Fast {
    fn now(&self) -> Moment {
        let since_start = (machine_ms() - self.started_ms) * HURRY;
        let monotonic = Duration::from_millis(since_start.unsigned_abs());
        Moment { monotonic, unix_ms: self.began_ms + (machine_ms() - self.began_ms) * HURRY }
    }
}

/// Each instance goes up two seconds after the one before, and down later, in the same order.
fn samples(began_ms: i64) -> MadeUp {
    let mut source = MadeUp::new();
    for instance in 0..INSTANCES {
        let value = |second: i64| {
            let high = (2 * instance + 2..2 * instance + 50).contains(&second);
            (began_ms + second * 1_000, if high { 25.0 } else { 5.0 })
        };
        let labels = [("n", &*format!("{instance:02}"))];
        source.gauge("depth", &labels, (-60..20_000).map(value));
    }
    source
}

fn rules(folder: &Path, url: &str) -> RuleSet {
    let lines = folder.join("alerts.jsonl");
    let text = format!(
        "[defaults]
         handlers = ['hook', 'lines']
         [[rule]]
         id = 'deep'
         metric = 'depth'
         agg = 'last'
         by = ['n']
         every = '1s'
         window = '2s'
         level.error = '> 10'
         [[handler]]
         id = 'hook'
         type = 'webhook'
         url = '{url}'
         [[handler]]
         id = 'lines'
         type = 'jsonl'
         path = '{}'",
        lines.display()
    );
    RuleSet::parse(&text, "rules").expect("rules")
}

#[test]
#[ignore = "the child of exactly_one_message_arrives_in_the_end"]
fn fires_until_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let variable = |name| std::env::var(name).expect("the parent sets it");
    let began_ms = variable(BEGAN).parse().expect("a number");
    let last = std::env::var(LAST).is_ok();
    let clock = Arc::new(Fast { began_ms, started_ms: machine_ms() });
    let options = AlertingOptions {
        rules: rules(folder, &variable(URL)),
        journal: Some(folder.join("alerts.journal")),
        pause: Duration::from_millis(5),
        ..AlertingOptions::default()
    };
    let source = Arc::new(samples(began_ms));
    let registry = Registry::default();
    let alerting = Alerting::start(options, clock.clone(), source, &registry).expect("it starts");
    let mut rounds = 0;
    // The parent kills it; the last one ends a while after everything has resolved.
    while !last || rounds < 20 || clock.now().unix_ms < began_ms + END_MS {
        alerting.tick(clock.now());
        thread::sleep(Duration::from_millis(3));
        rounds += 1;
    }
    assert!(alerting.shutdown(Duration::from_secs(20)), "the parent takes everything");
    assert!(alerting.dead_letters().is_empty());
}

/// The keys of the messages about each beginning and end: `(instance, status)` to keys.
type Got = Arc<Mutex<BTreeMap<(String, String), BTreeSet<String>>>>;

/// Takes requests until the test ends; one of four gets no answer.
fn receive(listener: TcpListener, got: Got) {
    let mut random = 0x9e37_79b9_u32;
    for stream in listener.incoming() {
        let Some((key, body)) = stream.ok().and_then(|mut stream| {
            let request = request(&mut stream)?;
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if !(random >> 16).is_multiple_of(4) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
            Some(request)
        }) else {
            continue; // the child was killed while it sent
        };
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let about = (text(&body["alerts"][0]["labels"]["n"]), text(&body["status"]));
        got.lock().expect("nobody panics").entry(about).or_default().insert(key);
    }
}

/// Reads a whole request: its key and its body.
fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
            };
            if body.len() >= header("content-length: ")?.parse().ok()? {
                return Some((header("idempotency-key: ")?, body.to_owned()));
            }
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

/// Ends the child, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn exactly_one_message_arrives_in_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
    let got = Got::default();
    let counted = Arc::clone(&got);
    thread::spawn(move || receive(listener, counted));
    let began_ms = machine_ms();
    let child = || {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"));
        child.args(["--exact", "fires_until_killed", "--ignored", "--nocapture"]);
        child.env(FOLDER, folder.path()).env(BEGAN, began_ms.to_string()).env(URL, &url);
        child
    };
    let mut random = 12_345_u64;
    let mut kills = 0;
    while machine_ms() < began_ms + END_MS / HURRY {
        let _child = Killed(child().spawn().expect("the child starts"));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(20 + (random >> 33) % 180));
        kills += 1;
    }
    let last = child().env(LAST, "").status().expect("the child starts");
    assert!(last.success(), "the last child could not send everything");
    assert!(kills >= 10, "only {kills} kills");

    let got = got.lock().expect("nobody panics");
    let lines = std::fs::read_to_string(folder.path().join("alerts.jsonl")).expect("a file");
    let mut written: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for line in lines.lines() {
        let event: AlertEvent = serde_json::from_str(line).expect("a whole line");
        let status = if event.ends_at_ms.is_some() { "resolved" } else { "firing" };
        let instance = event.labels.get("n").expect("it has one").to_owned();
        written.entry((instance, status.to_owned())).or_default().push(event.key);
    }
    for instance in 0..INSTANCES {
        for status in ["firing", "resolved"] {
            let about = (format!("{instance:02}"), status.to_owned());
            let keys = got.get(&about).map_or(0, BTreeSet::len);
            assert_eq!(
                keys,
                1,
                "messages about {about:?} after {kills} kills: {:?}",
                got.get(&about)
            );
            let lines = written.get(&about).map_or(0, Vec::len);
            assert_eq!(
                lines,
                1,
                "lines about {about:?} after {kills} kills: {:?}",
                written.get(&about)
            );
        }
    }
    assert_eq!((got.len(), written.len()), (2 * INSTANCES as usize, 2 * INSTANCES as usize));
}
