//! Alerts in a real Alertmanager: they arrive, stay as long as they are sent again, and end.
//!
//! The test starts the server of Debian's package `prometheus-alertmanager` on a free port and reads what it
//! holds through its API. Where there is none it says so and does nothing.

#![cfg(feature = "webhook")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use monitor::alert::{Alerting, AlertingOptions, MadeUp, RuleSet};
use monitor::{
    Aggregate, Clock as _, Matched, Reading, Registry, Selector, SeriesId, Source, SystemClock,
    Window,
};

/// Names of the program, Debian's first.
const PROGRAMS: [&str; 2] = ["prometheus-alertmanager", "alertmanager"];

/// A running Alertmanager.
struct Server {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server, if there is a program.
    fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
        let program = PROGRAMS.into_iter().find(is_there)?;
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("alertmanager.yml");
        let text = "global: { resolve_timeout: 1s }\n\
                    route: { receiver: nobody }\n\
                    receivers: [{ name: nobody }]\n";
        std::fs::write(&config, text).expect("written");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let child = Command::new(program)
            .arg(flag("config.file", &config))
            .arg(flag("storage.path", folder.path()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let server = Self { child, address, _folder: folder };
        eventually("the server answers", || server.get("/-/ready").is_some());
        Some(server)
    }

    /// The body of an answer of 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
    }

    /// The severities of the alerts that go on.
    fn active(&self) -> Vec<String> {
        let body = self.get("/api/v2/alerts?active=true").expect("it answers");
        let alerts: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let alerts = alerts.as_array().expect("a list").iter();
        let mut severities: Vec<_> = alerts
            .map(|alert| {
                assert_eq!(text(&alert["labels"]["alertname"]), "deep");
                assert_eq!(text(&alert["annotations"]["summary"]), "too deep");
                text(&alert["labels"]["severity"])
            })
            .collect();
        severities.sort();
        severities
    }
}

#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {what}");
}

/// Samples that the test can change.
#[derive(Default)]
struct Samples(RwLock<MadeUp>);

impl Samples {
    /// Makes the value of the last minute and of the next ten.
    fn set(&self, value: f64) {
        let mut source = MadeUp::new();
        let now = SystemClock::new().now().unix_ms / 1_000;
        source.gauge("depth", &[], (now - 60..now + 600).map(|at| (at * 1_000, value)));
        *self.0.write().expect("nobody panics") = source;
    }
}

impl Source for Samples {
    fn generation(&self) -> u64 {
        self.0.read().expect("nobody panics").generation()
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        self.0.read().expect("nobody panics").matching(selector)
    }

    fn aggregate(&self, series: &[SeriesId], window: Window, of: Aggregate) -> Option<Reading> {
        self.0.read().expect("nobody panics").aggregate(series, window, of)
    }

    fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        of: Aggregate,
    ) -> Vec<Option<f64>> {
        self.0.read().expect("nobody panics").range(series, window, step_ms, of)
    }
}

fn start(server: &Server, samples: &Arc<Samples>, journal: &Path, resend: &str) -> Alerting {
    let rules = format!(
        "[defaults]
         cooldown = '0s'
         handlers = ['am']
         [[rule]]
         id = 'deep'
         metric = 'depth'
         agg = 'last'
         every = '1s'
         window = '10s'
         level.warning = '> 10'
         level.critical = '> 100'
         summary = 'too deep'
         [[handler]]
         id = 'am'
         type = 'alertmanager'
         url = 'http://{}'
         resend = '{resend}'",
        server.address
    );
    let options = AlertingOptions {
        rules: RuleSet::parse(&rules, "rules").expect("rules"),
        journal: Some(journal.to_owned()),
        ..AlertingOptions::default()
    };
    let (clock, source) = (Arc::new(SystemClock::new()), Arc::clone(samples));
    Alerting::start(options, clock, source, &Registry::default()).expect("it starts")
}

#[test]
fn an_alert_arrives_stays_while_it_is_sent_again_and_ends() {
    let Some(server) = Server::start() else {
        return println!("SKIPPED: there is no prometheus-alertmanager on this machine");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("alerts.journal");
    let samples = Arc::new(Samples::default());
    let clock = SystemClock::new();
    // Sending goes on between evaluations.
    let tick = |alerting: &Alerting| alerting.tick(clock.now());

    samples.set(25.0);
    let alerting = start(&server, &samples, &journal, "1s");
    tick(&alerting);
    eventually("the alert arrives", || server.active() == ["warning"]);
    // What was said first would be over after 4 s.
    for _ in 0..55 {
        thread::sleep(Duration::from_millis(100));
        assert_eq!(server.active(), ["warning"], "it is sent again before it ends");
    }
    samples.set(250.0);
    thread::sleep(Duration::from_millis(1_100));
    tick(&alerting);
    eventually("it is critical and no warning any more", || server.active() == ["critical"]);
    drop(alerting);
    eventually("without us it ends by itself", || server.active().is_empty());

    // After a restart it goes on without a new message, and this time for four minutes.
    let alerting = start(&server, &samples, &journal, "1m");
    eventually("it is sent again at once", || server.active() == ["critical"]);
    tick(&alerting);
    samples.set(5.0);
    thread::sleep(Duration::from_millis(1_100));
    tick(&alerting);
    eventually("it ends when we say so", || server.active().is_empty());
    assert!(alerting.shutdown(Duration::from_secs(10)));
    assert!(alerting.dead_letters().is_empty());
}
