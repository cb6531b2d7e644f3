//! The same load at every level: what each costs and brings, as a table or as JSON.
//!
//! For each level an accelerator of its own is started as a process, as `serve` would be, in front of a
//! backend of its own over a copy of the same shop, so that no level finds what another has left. The load
//! is the same to the last request: one seed, one plan. Every accelerator begins with an empty cache.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use ultra_perf::OptimizationLevel;
use ultra_perf::config::{Config, ConfigLoader};

use super::backend::{Backend, ShopSize};
use super::load::{Catalog, Load, LoadPlan, ZIPF_EXPONENT};
use super::screen::{self, Reading};
use super::{DemoArgs, DemoError, Interrupt, SHUTDOWN_DEADLINE};
use crate::admin::AdminArgs;

/// The levels, the lowest first.
const LEVELS: [OptimizationLevel; 4] = [
    OptimizationLevel::Basic,
    OptimizationLevel::Advanced,
    OptimizationLevel::Ultra,
    OptimizationLevel::Extreme,
];
/// How long an accelerator may take until it serves.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// What all levels were measured with, and what came out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    load: Plan,
    /// Without an accelerator first, then each level.
    rows: Vec<Row>,
    ended_early: bool,
}

#[derive(Debug, Serialize)]
struct Plan {
    seconds: u64,
    clients: u16,
    pages: usize,
    zipf_exponent: f64,
    writes_percent: u8,
    seed: u64,
}

/// One run of the load.
#[derive(Debug, Serialize)]
struct Row {
    /// `None` without an accelerator.
    level: Option<String>,
    requests: u64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    hit_ratio: f64,
    backend_calls: u64,
    backend_calls_per_1000: f64,
    errors: u64,
    /// Resident memory of the accelerator's process when the load ended.
    rss_bytes: Option<u64>,
    /// The settings that are other than one level below; for the lowest, other than one level above.
    differs: Vec<String>,
}

/// Runs the load at every level.
pub(super) async fn measure(
    args: &DemoArgs,
    size: ShopSize,
    shop: &Path,
    directory: &Path,
    interrupt: &mut Interrupt,
) -> Result<Report, DemoError> {
    let catalog = Arc::new(Catalog::of(size));
    let mut report = Report {
        load: Plan {
            seconds: args.seconds,
            clients: args.clients,
            pages: catalog.len(),
            zipf_exponent: ZIPF_EXPONENT,
            writes_percent: args.writes,
            seed: args.seed,
        },
        rows: Vec::new(),
        ended_early: false,
    };
    let levels = std::iter::once(None).chain(LEVELS.map(Some));
    let bar = ProgressBar::new(1 + LEVELS.len() as u64).with_message("measuring");
    for level in levels {
        if interrupt.is_set() {
            break;
        }
        let name = level.map_or_else(|| "backend".to_owned(), |level| level.to_string());
        let home = directory.join(&name);
        let file = home.join("shop.sqlite");
        std::fs::create_dir(&home)
            .and_then(|()| std::fs::copy(shop, &file))
            .map_err(DemoError::Directory)?;
        let backend = Backend::start(file, 0).await?;
        let accelerator = match level {
            Some(level) => Some(Accelerator::start(level, backend.addr(), &home).await?),
            None => None,
        };
        let to = accelerator.as_ref().map_or(backend.addr(), |it| it.proxy);
        let mut load = Load::start(LoadPlan { to, ..args.plan(backend.addr(), &catalog) });
        tokio::select! {
            () = load.finished() => {}
            () = interrupt.wait() => {}
        }
        let measured = load.total();
        let rss_bytes = match accelerator {
            Some(accelerator) => accelerator.stop().await,
            None => None,
        };
        let reading =
            Reading { measured, backend_calls: backend.calls(), errors: measured.counts.errors };
        backend.shutdown(SHUTDOWN_DEADLINE).await;
        let phase = match level {
            Some(level) => format!("at the level {level}"),
            None => screen::DIRECT.to_owned(),
        };
        super::judge(&reading, phase, load.first_error(), interrupt.is_set())?;
        report.rows.push(row(level, &reading, rss_bytes)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.ended_early = interrupt.is_set();
    Ok(report)
}

fn row(
    level: Option<OptimizationLevel>,
    reading: &Reading,
    rss_bytes: Option<u64>,
) -> Result<Row, DemoError> {
    let measured = &reading.measured;
    let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    Ok(Row {
        level: level.map(|level| level.to_string()),
        requests: measured.counts.answered,
        requests_per_second: reading.rate().unwrap_or_default(),
        p50_ms: millis(measured.p50),
        p99_ms: millis(measured.p99),
        hit_ratio: measured.counts.hit_ratio().unwrap_or_default(),
        backend_calls: reading.backend_calls,
        backend_calls_per_1000: reading.backend_calls_per_thousand().unwrap_or_default(),
        errors: reading.errors,
        rss_bytes,
        differs: level.map(differs).transpose()?.unwrap_or_default(),
    })
}

/// What a level sets otherwise than its neighbour.
fn differs(level: OptimizationLevel) -> Result<Vec<String>, DemoError> {
    let at = LEVELS.iter().position(|one| *one == level).unwrap_or_default();
    let other = LEVELS[at.checked_sub(1).unwrap_or(1)];
    let config = |level: OptimizationLevel| -> Result<Config, DemoError> {
        let loader = ConfigLoader::new().set("level", level.to_string(), "ultra-perf demo");
        loader.load().map_err(|error| DemoError::Accelerator(error.into()))
    };
    let differences = config(other)?.differences(&config(level)?);
    let told = differences.iter().filter(|it| it.key != "level");
    Ok(told.map(|it| format!("{} = {}", it.key, it.to)).collect())
}

/// An accelerator in a process of its own; killed when dropped.
struct Accelerator {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Accelerator {
    /// Starts `serve` at a level, with its caches in `home` and an environment that says nothing else.
    async fn start(
        level: OptimizationLevel,
        backend: SocketAddr,
        home: &Path,
    ) -> Result<Self, DemoError> {
        let failed = |error: std::io::Error| DemoError::Accelerator(error.into());
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--to", &format!("http://{backend}"), "--level", &level.to_string()])
            .args(["--log", "info", "--log-format", "json"])
            .current_dir(home)
            .env_clear()
            .env("ULTRA_PERF__CACHE__DISK__PATH", home.join("cache"))
            .env("ULTRA_PERF__CACHE__DISK__CAPACITY", super::DISK_CAPACITY)
            .env("ULTRA_PERF__MONITOR__HISTORY__PATH", home.join("monitor"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let said = child.stderr.take().expect("it was asked for");
        let mut lines = BufReader::new(said).lines();
        let (mut proxy, mut admin, mut last) = (None, None, String::new());
        let greeting = async {
            while let Some(line) = lines.next_line().await.map_err(failed)? {
                proxy = proxy.or_else(|| address(&line, "\"http://", " now serves"));
                admin = admin.or_else(|| address(&line, "statistics: http://", "/performance"));
                if let (Some(proxy), Some(admin)) = (proxy, admin) {
                    return Ok((proxy, admin));
                }
                last = line;
            }
            Err(DemoError::Accelerator(last.as_str().into()))
        };
        let greeted = tokio::time::timeout(START_PATIENCE, greeting).await;
        let late = |_| DemoError::Accelerator("it took too long to start".into());
        let (proxy, admin) = greeted.map_err(late)??;
        // Whoever logs must not block on a full pipe; ends with the process.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, proxy, admin })
    }

    /// Stops it, and returns the resident memory that it had.
    async fn stop(mut self) -> Option<u64> {
        let admin = AdminArgs::at(self.admin);
        let stats = tokio::task::spawn_blocking(move || admin.get("/stats")).await;
        // Its directory is removed with it, so there is nothing to write down.
        let _ = self.child.kill().await;
        stats.ok()?.ok()?["memory"]["current"]["rss"].as_u64()
    }
}

/// The address between two texts in a line of the log.
fn address(line: &str, before: &str, after: &str) -> Option<SocketAddr> {
    line.split_once(before)?.1.split_once(after)?.0.parse().ok()
}

impl Report {
    /// The table: a row for each level, and under it what each level is.
    pub(super) fn lines(&self, heading: &str) -> Vec<String> {
        let mut lines = vec![heading.to_owned(), String::new()];
        let line = |cells: [&str; 8]| {
            let [name, rest @ ..] = cells;
            let rest: String = rest.iter().map(|cell| format!("{cell:>13}")).collect();
            format!("  {name:<16}{rest}")
        };
        lines.push(line([
            "",
            "requests/s",
            "p50",
            "p99",
            "hit ratio",
            "backend calls",
            "calls/1000",
            "RSS",
        ]));
        for row in &self.rows {
            let rss = row.rss_bytes.map_or_else(|| "-".to_owned(), mebibytes);
            lines.push(line([
                row.level.as_deref().unwrap_or("no accelerator"),
                &screen::number(row.requests_per_second),
                &screen::latency(row.p50_ms / 1_000.0),
                &screen::latency(row.p99_ms / 1_000.0),
                &screen::percent(row.hit_ratio),
                &screen::count(row.backend_calls),
                &screen::number(row.backend_calls_per_1000),
                &rss,
            ]));
        }
        lines.push(String::new());
        for (at, row) in self.rows.iter().enumerate() {
            let Some(level) = &row.level else { continue };
            let than = match (at, self.rows.get(at.saturating_sub(1))) {
                (2.., Some(Row { level: Some(below), .. })) => below.as_str(),
                _ => "advanced",
            };
            lines.push(format!("  {level}, against {than}: {}", row.differs.join(", ")));
        }
        if self.ended_early {
            lines.push("Ended early; the numbers are those up to then.".to_owned());
        }
        lines
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_greeting() {
        let line =
            r#"{"level":"INFO","message":"http://127.0.0.1:81 now serves http://127.0.0.1:82"}"#;
        assert_eq!(address(line, "\"http://", " now serves"), "127.0.0.1:81".parse().ok());
        let line =
            r#"{"message":"statistics: http://127.0.0.1:86/performance/stats, metrics: .."}"#;
        assert_eq!(
            address(line, "statistics: http://", "/performance"),
            "127.0.0.1:86".parse().ok()
        );
        assert_eq!(address("something else", "\"http://", " now serves"), None);
    }

    #[test]
    fn every_level_says_what_it_is() {
        for level in LEVELS {
            let differs = differs(level).expect("a configuration");
            assert!(!differs.is_empty(), "{level}");
            assert!(!differs.iter().any(|it| it.starts_with("level")), "{differs:?}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_level_and_says_what_is_on() {
        let row = |level: Option<&str>, differs: &[&str]| Row {
            level: level.map(str::to_owned),
            requests: 10_000,
            requests_per_second: 1_234.6,
            p50_ms: 0.41,
            p99_ms: 38.2,
            hit_ratio: 0.875,
            backend_calls: 1_250,
            backend_calls_per_1000: 125.0,
            errors: 0,
            rss_bytes: level.map(|_| 30 << 20),
            differs: differs.iter().map(|&it| it.to_owned()).collect(),
        };
        let report = Report {
            load: Plan {
                seconds: 1,
                clients: 1,
                pages: 1,
                zipf_exponent: 0.9,
                writes_percent: 5,
                seed: 1,
            },
            rows: vec![
                row(None, &[]),
                row(Some("basic"), &["a = 1"]),
                row(Some("advanced"), &["a = 2", "b = 3"]),
                row(Some("ultra"), &["c = 4"]),
            ],
            ended_early: false,
        };
        let lines = report.lines("heading");
        let cells: Vec<_> = lines[5].split_whitespace().collect();
        let expected = [
            "advanced", "1,235", "0.41", "ms", "38", "ms", "87.5", "%", "1,250", "125", "30", "MiB",
        ];
        assert_eq!(cells, expected);
        assert!(lines[3].trim_end().ends_with('-'), "{}", lines[3]);
        let said = &lines[lines.len() - 3..];
        let expected = [
            "  basic, against advanced: a = 1",
            "  advanced, against basic: a = 2, b = 3",
            "  ultra, against advanced: c = 4",
        ];
        assert_eq!(said, expected);
    }
}
