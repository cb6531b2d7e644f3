//! `ultra-perf demo` as a user runs it: the real binary, in a pipe and on a terminal.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than any of these takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(150);

/// A demonstration whose temporary files and caches go into `home`.
fn demo(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ultra-perf"));
    command
        .arg("demo")
        .args(args)
        .env("TMPDIR", home)
        .env("XDG_CACHE_HOME", home)
        .env("HOME", home)
        .env_remove("NO_COLOR")
        .env_remove("REDIS_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end of a child, reading what it writes; kills it, and fails, when that takes long.
fn finish(mut child: Child) -> Output {
    fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            bytes
        })
    }
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("still running after {PATIENCE:?}: {:?}", out.join());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The cells of the summary's line with this label.
fn cells(summary: &str, label: &str) -> Vec<String> {
    let line = summary
        .lines()
        .filter(|line| line.trim_start().starts_with(label))
        .find(|line| line.starts_with("  "))
        .unwrap_or_else(|| panic!("no line {label:?} in {summary}"));
    let rest = line.trim_start().strip_prefix(label).unwrap();
    rest.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

fn assert_nothing_is_left(home: &Path) {
    let left: Vec<_> =
        std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?} was left behind");
}

#[test]
fn a_piped_demo_measures_both_phases_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--requests", "150", "--seconds", "60", "--clients", "4"];
    let output = finish(demo(home.path(), &args).spawn().unwrap());
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n'),
        "control characters in a pipe: {text:?}"
    );
    assert_eq!(cells(&text, "errors"), ["0", "0"]);
    assert_eq!(cells(&text, "hit ratio").first().map(String::as_str), Some("0.0 %"));
    let ratio = cells(&text, "hit ratio")[1].strip_suffix(" %").unwrap().parse::<f64>().unwrap();
    assert!((10.0..100.0).contains(&ratio), "{text}");
    assert!(text.contains("no product page older than one of them"), "{text}");
    assert!(text.contains("ultra-perf serve --to http://127.0.0.1:8000"), "{text}");
    assert_nothing_is_left(home.path());
}

#[test]
fn the_backend_alone_has_one_column_and_no_factor() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--no-accelerator", "--requests", "20", "--clients", "2"];
    let output = finish(demo(home.path(), &args).spawn().unwrap());
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(cells(&text, "requests "), ["20"]);
    assert!(!text.contains("through ultra-perf"), "{text}");
    assert_nothing_is_left(home.path());
}

#[test]
#[cfg(unix)]
fn a_signal_ends_it_early_with_the_summary_so_far() {
    for signal in ["-INT", "-TERM"] {
        let home = tempfile::tempdir().unwrap();
        let args = ["--seconds", "600", "--clients", "2"];
        let mut child = demo(home.path(), &args).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first =
            lines.by_ref().map(Result::unwrap).find(|line| line.contains(" s: requests/s "));
        assert!(first.is_some(), "it ended without a reading");
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        let output = finish(child);
        assert!(output.status.success(), "{signal}: {output:?}");
        assert!(rest.iter().any(|line| line.starts_with("Ended early")), "{signal}: {rest:?}");
        assert_nothing_is_left(home.path());
    }
}

#[test]
fn arguments_out_of_range_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        ["--clients", "0"],
        ["--seconds", "0"],
        ["--writes", "91"],
        ["--requests", "0"],
        ["--port", "70000"],
    ] {
        let output = finish(demo(home.path(), &args).spawn().unwrap());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(args[0]) && error.contains(args[1]), "{error}");
    }
}

#[test]
fn what_cannot_start_is_told_before_any_load() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, named) in [
        (["--backend-port", &port], port.as_str()),
        (["--port", &port], port.as_str()),
        (["--redis", "nonsense"], "--redis"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let output = finish(demo(home.path(), &args).spawn().unwrap());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(error.contains(named), "{args:?}: {error}");
        assert!(!stdout(&output).contains("requests/s"), "{output:?}");
        assert_nothing_is_left(home.path());
    }
}

/// Runs the demonstration on a pseudo-terminal of `script`, which every Debian has.
#[cfg(target_os = "linux")]
fn on_a_terminal(environment: &[(&str, &str)]) -> Option<String> {
    let home = tempfile::tempdir().unwrap();
    let command = format!(
        "{} demo --requests 20 --clients 2 --no-accelerator",
        env!("CARGO_BIN_EXE_ultra-perf")
    );
    let child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("TMPDIR", home.path())
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    match child {
        Ok(child) => {
            let output = finish(child);
            assert!(output.status.success(), "{output:?}");
            assert_nothing_is_left(home.path());
            Some(stdout(&output))
        }
        Err(_) => {
            eprintln!("skipped: there is no `script` to give a terminal");
            None
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_terminal_sees_the_table_redrawn_and_gets_its_cursor_back() {
    let Some(text) = on_a_terminal(&[]) else { return };
    let hidden = text.find("\x1b[?25l").expect("the cursor is hidden while the table is up");
    let shown = text.rfind("\x1b[?25h").expect("the cursor comes back");
    assert!(hidden < shown);
    assert!(text.contains("\x1b[1m"), "no bold heading in {text:?}");
    assert!(text.contains("phase 1 of 1"));

    let Some(text) = on_a_terminal(&[("NO_COLOR", "1")]) else { return };
    assert!(!text.contains("\x1b[1m") && !text.contains("\x1b[32m"), "colour in {text:?}");

    let Some(text) = on_a_terminal(&[("TERM", "dumb")]) else { return };
    assert!(!text.contains("\x1b[?25l") && !text.contains("phase 1 of 1"), "{text:?}");
}

#[test]
fn the_same_load_is_measured_at_every_level() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--levels", "--json", "--requests", "150", "--seconds", "60", "--clients", "4"];
    let output = finish(demo(home.path(), &args).spawn().unwrap());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let levels: Vec<_> = rows.iter().map(|row| row["level"].as_str()).collect();
    let all = [None, Some("basic"), Some("advanced"), Some("ultra"), Some("extreme")];
    assert_eq!(levels, all);
    for row in rows {
        assert_eq!((&row["requests"], &row["errors"]), (&150.into(), &0.into()), "{row}");
        assert!(row["backend_calls"].as_u64().unwrap() > 0, "{row}");
        let accelerated = !row["level"].is_null();
        assert_eq!(row["rss_bytes"].as_u64().is_some_and(|it| it > 0), accelerated, "{row}");
        assert_eq!(row["hit_ratio"].as_f64().unwrap() > 0.1, accelerated, "{row}");
        assert_eq!(row["differs"].as_array().unwrap().is_empty(), !accelerated, "{row}");
    }
    assert_nothing_is_left(home.path());

    let refused = finish(demo(home.path(), &["--json"]).spawn().unwrap());
    assert_eq!(refused.status.code(), Some(2));
    let refused = finish(demo(home.path(), &["--level", "best"]).spawn().unwrap());
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && told.contains("extreme"), "{told}");
}
