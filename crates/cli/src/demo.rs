//! `ultra-perf demo`: a slow backend becomes fast while you watch.
//!
//! It fills a sample shop in a temporary directory, starts the slow [`backend`] over it, and lets the
//! same [`load`] run twice: directly against the backend, then through the accelerator in front of
//! it, which is the one that `serve` runs. The [`screen`] shows both side by side. At the end, or at
//! Ctrl-C, it prints a summary, stops everything and removes the directory.
//!
//! All traffic stays on loopback addresses that it opened itself; a Redis server takes part only when
//! its URL is given.

mod backend;
mod levels;
mod load;
mod screen;
mod zipf;

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use ultra_perf::OptimizationLevel;

use self::backend::{Backend, BackendError, ShopSize};
use self::load::{Catalog, Load, LoadPlan, Measured, Mix};
use self::screen::{Mode, Outcome, Progress, Reading, Screen};

/// Time between two redraws of the live table.
const REDRAW: Duration = Duration::from_millis(250);

/// Redraws until the numbers in the table change: they are those of the last second.
const REDRAWS_PER_READING: u32 = 4;

/// How long each server has to finish what it is doing.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

/// The share of requests for a page that no shared cache may keep.
const PRIVATE_PERCENT: u8 = 1;

/// The accelerator's disk tier in the demonstration.
const DISK_CAPACITY: &str = "256MiB";

/// The exit code after a second Ctrl-C, as a shell reports it.
const EXIT_INTERRUPTED: i32 = 130;

/// Shows a slow sample backend becoming fast, live, and ends by itself.
///
/// Fills a small shop (SQLite, in a temporary directory), serves it slowly, and sends it the same load
/// twice: directly, then through ultra-perf. Shows requests per second, latencies, hit ratio and
/// backend calls of both, and checks that no page is older than a write that was answered before it.
///
/// Ends by itself; Ctrl-C ends it early, with the summary so far. Exits with 1 if a page was too old
/// or nothing was answered.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Seconds of load in each of the two phases
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,

    /// Clients that ask at the same time, each over its own connection
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1_024))]
    clients: u16,

    /// Requests after which a phase ends before its time
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,

    /// Share of requests that write and must invalidate what is cached, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=90))]
    writes: u8,

    /// Seed of the shop's contents and of the load: the same seed asks for the same
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Loopback port of the accelerator; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,

    /// Loopback port of the sample backend; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    backend_port: u16,

    /// Redis server for a third tier (keys under a prefix of their own, which expire); none otherwise
    #[arg(long, value_name = "URL")]
    redis: Option<String>,

    /// Level of the accelerator: basic, advanced, ultra or extreme [default: advanced]
    #[arg(long, value_name = "LEVEL")]
    level: Option<OptimizationLevel>,

    /// Only measure the backend
    #[arg(long, conflicts_with_all = ["redis", "port", "level"])]
    no_accelerator: bool,

    /// The same load without an accelerator and at each level, as a table
    #[arg(long, conflicts_with_all = ["redis", "port", "backend_port", "level", "no_accelerator"])]
    levels: bool,

    /// Prints the table of the levels as JSON
    #[arg(long, requires = "levels")]
    json: bool,
}

impl DemoArgs {
    /// The load, the same at each run.
    fn plan(&self, to: SocketAddr, catalog: &Arc<Catalog>) -> LoadPlan {
        LoadPlan {
            to,
            clients: usize::from(self.clients),
            duration: Duration::from_secs(self.seconds),
            requests_max: self.requests,
            mix: Mix { writes_percent: self.writes, private_percent: PRIVATE_PERCENT },
            seed: self.seed,
            catalog: Arc::clone(catalog),
        }
    }
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DemoError {
    /// The temporary directory cannot be made.
    #[error("cannot create a temporary directory")]
    Directory(#[source] io::Error),
    /// The async runtime cannot start.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The sample backend cannot start.
    #[error("cannot start the sample backend")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The accelerator cannot start.
    #[error("cannot start the accelerator")]
    Accelerator(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The standard output cannot be written to.
    #[error("cannot write to the standard output")]
    Output(#[source] io::Error),
    /// A whole phase passed without one good answer.
    #[error("no request was answered {phase}: {}", first_error.as_deref().unwrap_or("no reason is known"))]
    NothingAnswered {
        /// Which phase it was.
        phase: String,
        /// What the first request failed with.
        first_error: Option<String>,
    },
    /// Product pages were older than a write answered before they were asked for.
    #[error("{count} product pages were older than a write that was answered before")]
    Stale {
        /// How many.
        count: u64,
    },
    /// Private pages were answered from the shared cache.
    #[error("{count} private pages came out of the shared cache")]
    Leaked {
        /// How many.
        count: u64,
    },
}

impl From<BackendError> for DemoError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error.into())
    }
}

/// Runs the demonstration to its end, on a runtime of its own.
///
/// Blocks; must not be called from an async task.
///
/// # Errors
///
/// Fails when something cannot start, when nothing was answered, and when an answer was one that a
/// cache must not give. What was started is stopped and the directory removed in any case.
pub(crate) fn run(args: DemoArgs) -> Result<(), DemoError> {
    let directory = tempfile::Builder::new()
        .prefix("ultra-perf-demo-")
        .tempdir()
        .map_err(DemoError::Directory)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DemoError::Runtime)?;
    let result = runtime.block_on(demonstrate(&args, directory.path()));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    let path = directory.path().to_owned();
    if let Err(error) = directory.close() {
        tracing::warn!(%error, path = %path.display(), "the temporary directory stays");
    }
    result
}

async fn demonstrate(args: &DemoArgs, directory: &Path) -> Result<(), DemoError> {
    let mode = Mode::of_stdout();
    let mut interrupt = Interrupt::listen(directory.to_owned(), mode);
    let mut screen = Screen::new(io::stdout(), mode);
    let size = ShopSize::DEMO;
    let file = directory.join("shop.sqlite");
    let started = std::time::Instant::now();
    let filled = fill_shop(&file, size, args.seed, &mut screen, &interrupt).await?;
    if !filled {
        return screen
            .print(&["Ended before the first request.".to_owned()])
            .map_err(DemoError::Output);
    }
    if args.levels {
        let report = levels::measure(args, size, &file, directory, &mut interrupt).await?;
        let lines = match args.json {
            true => vec![serde_json::to_string_pretty(&report).expect("only text and numbers")],
            false => report.lines(&heading(args, &Catalog::of(size))),
        };
        return screen.print(&lines).map_err(DemoError::Output);
    }
    let backend = Backend::start(file, args.backend_port).await?;
    // Before the first phase, so that what is wrong with it is told at once; it idles until the second.
    let accelerator = match args.no_accelerator {
        true => None,
        false => Some(start_accelerator(args, backend.addr(), directory).await?),
    };
    let catalog = Arc::new(Catalog::of(size));
    let heading = heading(args, &catalog);
    if !screen.is_live() {
        let seconds = started.elapsed().as_secs_f64();
        let filled =
            format!("filled the shop with {} rows in {seconds:.1} s", screen::count(size.rows()));
        screen.print(&[heading.clone(), filled]).map_err(DemoError::Output)?;
    }

    let mut stage = Stage {
        screen: &mut screen,
        backend: &backend,
        heading: &heading,
        phases: if accelerator.is_some() { 2 } else { 1 },
        direct: None,
    };
    let plan = args.plan(backend.addr(), &catalog);
    let mut outcome = Outcome::default();
    (outcome.direct, outcome.first_error) = stage.run(plan.clone(), &mut interrupt).await?;
    if let Some(accelerator) = accelerator {
        let worth_it = outcome.direct.measured.counts.answered > 0 && !interrupt.is_set();
        let through = if worth_it {
            stage.direct = Some(outcome.direct);
            let plan = LoadPlan { to: accelerator.proxy_addr(), ..plan };
            Some(stage.run(plan, &mut interrupt).await)
        } else {
            None
        };
        accelerator.shutdown(SHUTDOWN_DEADLINE).await;
        if let Some((through, first_error)) = through.transpose()? {
            outcome.through = Some(through);
            outcome.first_error = outcome.first_error.or(first_error);
        }
    }
    outcome.ended_early = interrupt.is_set();
    let style = screen.style();
    let summary = screen::summary(&heading, &outcome, style);
    screen.print(&summary).map_err(DemoError::Output)?;
    backend.shutdown(SHUTDOWN_DEADLINE).await;
    verdict(&outcome)
}

fn heading(args: &DemoArgs, catalog: &Catalog) -> String {
    format!(
        "ultra-perf demo: a slow shop, {} clients, Zipf {} over {} pages, {} % writes",
        args.clients,
        load::ZIPF_EXPONENT,
        catalog.len(),
        args.writes
    )
}

/// Fills the shop's file beside the runtime, with a bar on a terminal; `false` at an interrupt.
async fn fill_shop<W: io::Write>(
    file: &Path,
    size: ShopSize,
    seed: u64,
    screen: &mut Screen<W>,
    interrupt: &Interrupt,
) -> Result<bool, DemoError> {
    let bar = if screen.is_live() { ProgressBar::new(size.rows()) } else { ProgressBar::hidden() };
    bar.set_style(
        ProgressStyle::with_template(
            "filling the sample shop [{bar:30}] {human_pos} of {human_len} rows",
        )
        .expect("the template is a constant")
        .progress_chars("##."),
    );
    let (file, interrupted) = (file.to_owned(), interrupt.receiver.clone());
    tokio::task::spawn_blocking(move || {
        let filled = backend::create_shop(&file, size, seed, |rows| {
            bar.set_position(rows);
            if *interrupted.borrow() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        filled
    })
    .await
    .map_err(|error| DemoError::Backend(error.into()))?
    .map_err(DemoError::from)
}

/// Starts the accelerator of `serve` before the backend, with its disk tier in `directory`.
async fn start_accelerator(
    args: &DemoArgs,
    backend: SocketAddr,
    directory: &Path,
) -> Result<ultra_perf_http::Server, DemoError> {
    const ORIGIN: &str = "ultra-perf demo";
    let path = |name: &str| {
        directory.join(name).into_os_string().into_string().map_err(|_| {
            DemoError::Accelerator("the path of the temporary directory is not UTF-8".into())
        })
    };
    let mut loader = ultra_perf::config::ConfigLoader::new()
        .set("server.to", format!("http://{backend}"), ORIGIN)
        .set("server.listen", format!("127.0.0.1:{}", args.port), "--port")
        .set("server.admin", "127.0.0.1:0", ORIGIN)
        .set("cache.disk.path", path("cache")?, ORIGIN)
        .set("monitor.history.path", path("monitor")?, ORIGIN)
        .set("cache.disk.capacity", DISK_CAPACITY, ORIGIN);
    if let Some(level) = args.level {
        loader = loader.set("level", level.to_string(), "--level");
    }
    if let Some(url) = &args.redis {
        // A prefix of its own: another run's pages are of another shop.
        let prefix = format!("ultra-perf-demo-{}", std::process::id());
        loader = loader.set("cache.redis.url", url.as_str(), "--redis").set(
            "cache.redis.prefix",
            prefix,
            ORIGIN,
        );
    }
    let config = loader.load().map_err(|error| DemoError::Accelerator(error.into()))?;
    ultra_perf_http::Server::start(&config)
        .await
        .map_err(|error| DemoError::Accelerator(error.into()))
}

/// What the phases have in common.
struct Stage<'a, W: io::Write> {
    screen: &'a mut Screen<W>,
    backend: &'a Backend,
    heading: &'a str,
    phases: usize,
    /// The first phase, once it is over.
    direct: Option<Reading>,
}

impl<W: io::Write> Stage<'_, W> {
    /// Runs one load to its end or the interrupt, showing it, and returns all that it measured.
    async fn run(
        &mut self,
        plan: LoadPlan,
        interrupt: &mut Interrupt,
    ) -> Result<(Reading, Option<String>), DemoError> {
        let length = plan.duration;
        let calls_before = self.backend.calls();
        let mut calls_seen = calls_before;
        let mut load = Load::start(plan);
        let mut redraw = tokio::time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Skip);
        redraw.tick().await;
        let mut redraws = 0;
        let mut latest = Reading::default();
        self.show(&load, length, &latest)?;
        loop {
            tokio::select! {
                () = load.finished() => break,
                () = interrupt.wait() => break,
                _ = redraw.tick() => {}
            }
            redraws += 1;
            if redraws % REDRAWS_PER_READING == 0 {
                let calls = self.backend.calls();
                latest = Reading {
                    measured: load.recent(),
                    backend_calls: calls - calls_seen,
                    errors: load.total().counts.errors,
                };
                calls_seen = calls;
                if !self.screen.is_live() {
                    let line =
                        screen::plain_line(self.name(), self.progress(&load, length), &latest);
                    self.screen.print(&[line]).map_err(DemoError::Output)?;
                }
            }
            self.show(&load, length, &latest)?;
        }
        let measured = load.total();
        let reading = Reading {
            measured,
            backend_calls: self.backend.calls() - calls_before,
            errors: measured.counts.errors,
        };
        self.show(&load, length, &reading)?;
        Ok((reading, load.first_error()))
    }

    fn name(&self) -> &'static str {
        if self.direct.is_none() { screen::DIRECT } else { screen::THROUGH }
    }

    fn progress(&self, load: &Load, length: Duration) -> Progress {
        let phase = if self.direct.is_none() { 1 } else { 2 };
        Progress { phase, phases: self.phases, age: load.age(), length }
    }

    fn show(&mut self, load: &Load, length: Duration, latest: &Reading) -> Result<(), DemoError> {
        if !self.screen.is_live() {
            return Ok(());
        }
        let progress = self.progress(load, length);
        let (direct, through) = match &self.direct {
            None => (latest, None),
            Some(direct) => (direct, Some(latest)),
        };
        let style = self.screen.style();
        let table = screen::table(self.heading, Some(direct), through, progress, style);
        self.screen.draw(&table).map_err(DemoError::Output)
    }
}

/// Decides whether what was measured is a success.
fn verdict(outcome: &Outcome) -> Result<(), DemoError> {
    let sum = |pick: fn(&Measured) -> u64| {
        pick(&outcome.direct.measured)
            + outcome.through.as_ref().map_or(0, |through| pick(&through.measured))
    };
    match sum(|measured| measured.counts.violations) {
        0 => {}
        count => return Err(DemoError::Stale { count }),
    }
    match sum(|measured| measured.counts.leaks) {
        0 => {}
        count => return Err(DemoError::Leaked { count }),
    }
    let phases =
        [(screen::DIRECT, Some(&outcome.direct)), (screen::THROUGH, outcome.through.as_ref())];
    for (phase, reading) in phases {
        let silent = reading.is_some_and(|reading| reading.measured.counts.answered == 0);
        if silent && !outcome.ended_early {
            return Err(DemoError::NothingAnswered {
                phase: phase.to_owned(),
                first_error: outcome.first_error.clone(),
            });
        }
    }
    Ok(())
}

/// Decides whether one run of the load is a success.
fn judge(
    reading: &Reading,
    phase: String,
    first_error: Option<String>,
    ended_early: bool,
) -> Result<(), DemoError> {
    let counts = &reading.measured.counts;
    match (counts.violations, counts.leaks, counts.answered) {
        (0, 0, 0) if !ended_early => Err(DemoError::NothingAnswered { phase, first_error }),
        (0, 0, _) => Ok(()),
        (0, count, _) => Err(DemoError::Leaked { count }),
        (count, ..) => Err(DemoError::Stale { count }),
    }
}

/// Ctrl-C or SIGTERM: the first ends the demonstration in good order, the second at once.
#[derive(Debug)]
struct Interrupt {
    receiver: watch::Receiver<bool>,
    listener: JoinHandle<()>,
}

impl Interrupt {
    fn listen(directory: PathBuf, mode: Mode) -> Self {
        let (sender, receiver) = watch::channel(false);
        let listener = tokio::spawn(async move {
            signal().await;
            sender.send_replace(true);
            signal().await;
            if mode != Mode::Lines {
                print!("{}", screen::RESTORE);
            }
            // What cannot be removed now is left to the system's own cleaning.
            let _ = std::fs::remove_dir_all(directory);
            std::process::exit(EXIT_INTERRUPTED);
        });
        Self { receiver, listener }
    }

    fn is_set(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Waits for the first signal; returns at once ever after.
    async fn wait(&mut self) {
        if self.receiver.wait_for(|&set| set).await.is_err() {
            // Without a listener no signal will be heard.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Waits for Ctrl-C or, where it exists, SIGTERM.
async fn signal() {
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "Ctrl-C cannot be heard");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    () = interrupt => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be heard");
                interrupt.await;
            }
        }
    }
    #[cfg(not(unix))]
    interrupt.await;
}

#[cfg(test)]
mod tests {
    use super::load::Counts;
    use super::*;

    fn reading(answered: u64, violations: u64, leaks: u64) -> Reading {
        let counts = Counts { answered, violations, leaks, ..Counts::default() };
        Reading { measured: Measured { counts, ..Measured::default() }, ..Reading::default() }
    }

    fn check(direct: Reading, through: Option<Reading>, ended_early: bool, expected: &str) {
        let outcome = Outcome { direct, through, first_error: Some("refused".into()), ended_early };
        let found =
            verdict(&outcome).map_or_else(|error| error.to_string(), |()| "fine".to_owned());
        assert_eq!(found, expected);
    }

    #[test]
    fn the_verdict_is_what_the_answers_deserve() {
        let good = reading(10, 0, 0);
        check(good, Some(good), false, "fine");
        check(good, None, false, "fine");
        check(reading(0, 0, 0), None, true, "fine");
        check(
            reading(0, 0, 0),
            None,
            false,
            "no request was answered direct to the backend: refused",
        );
        check(
            good,
            Some(reading(0, 0, 0)),
            false,
            "no request was answered through ultra-perf: refused",
        );
        check(
            good,
            Some(reading(10, 2, 1)),
            true,
            "2 product pages were older than a write that was answered before",
        );
        check(good, Some(reading(10, 0, 3)), false, "3 private pages came out of the shared cache");
    }
}
