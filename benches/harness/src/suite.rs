//! A suite of cases and the interleaved rounds that measure them.
//!
//! [`Suite`] owns the rows and the options of the command line. A [`Case`] is a builder that ends in
//! `compare`, `measure`, `observed` or `skip`, each of which adds one row. Every reading, whoever took
//! it, is one positive number per round, so the statistics know nothing of clocks.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use fastrand::Rng;

use crate::clock::{Clock, nanos_per, per_second};
use crate::median::{interval, median};
use crate::row::{Row, Target, table, thousands};

/// The fewest rounds a row may rest on.
pub const MIN_ROUNDS: u16 = 9;
/// The most rounds a case can be asked for.
pub const MAX_ROUNDS: u16 = 501;
/// Rounds of a case that does not ask for a number of its own.
const DEFAULT_ROUNDS: u16 = 15;

/// What the command line of a suite says.
#[derive(Clone, Debug, Parser)]
#[command(about = "Measures the cases of one suite", long_about = None)]
pub struct Options {
    /// Write the rows to FILE as a list of JSON objects.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measure only cases whose name contains CASE.
    #[arg(long, value_name = "CASE")]
    pub filter: Option<String>,
    /// Measure every case in this many rounds.
    #[arg(long, value_parser = clap::value_parser!(u16).range(i64::from(MIN_ROUNDS)..=i64::from(MAX_ROUNDS)))]
    pub rounds: Option<u16>,
    /// Draw the order inside the pairs from this seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print no table at the end.
    #[arg(long)]
    pub no_table: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { json: None, filter: None, rounds: None, seed: 1, no_table: false }
    }
}

/// Collects the rows of one benchmark program.
#[derive(Debug)]
pub struct Suite {
    name: String,
    options: Options,
    rng: Rng,
    rows: Vec<Row>,
}

impl Suite {
    /// Starts a suite with the options of the command line; ends the process on `--help` or a bad one.
    pub fn new(name: &str) -> Self {
        Self::with_options(name, Options::parse())
    }

    /// Starts a suite with given options.
    pub fn with_options(name: &str, options: Options) -> Self {
        let rng = Rng::with_seed(options.seed);
        Self { name: name.to_owned(), options, rng, rows: Vec::new() }
    }

    /// Describes a case measured in nanoseconds per operation; the closures do `operations` per call.
    pub fn time(&mut self, case: &str, clock: Clock, operations: u64) -> Case<'_, Timed> {
        let unit = match clock {
            Clock::Cpu => "ns CPU/op",
            Clock::Wall => "ns/op",
        };
        self.case(case, unit, Timed { clock, operations, as_rate: false })
    }

    /// Describes a case measured in operations per second; the closures do `operations` per call.
    pub fn rate(&mut self, case: &str, clock: Clock, operations: u64) -> Case<'_, Timed> {
        let unit = match clock {
            Clock::Cpu => "op/CPU s",
            Clock::Wall => "op/s",
        };
        self.case(case, unit, Timed { clock, operations, as_rate: true })
    }

    /// Describes a case whose closures return their reading, a positive number of `unit`.
    pub fn reported(&mut self, case: &str, unit: &str) -> Case<'_, Reported> {
        self.case(case, unit, Reported(()))
    }

    fn case<M>(&mut self, name: &str, unit: &str, meter: M) -> Case<'_, M> {
        let rounds = self.options.rounds.unwrap_or(DEFAULT_ROUNDS);
        Case {
            suite: self,
            name: name.to_owned(),
            unit: unit.to_owned(),
            target: None,
            rounds,
            meter,
        }
    }

    /// Tells whether the filter lets a case run, for set-up that is dear.
    ///
    /// `case` is the name as the table shows it: for a comparison `"{case} vs {peer}"`.
    pub fn wants(&self, case: &str) -> bool {
        self.options.filter.as_deref().is_none_or(|filter| case.contains(filter))
    }

    /// Returns the rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Runs a suite in another process, with the options of this one, and takes its rows over.
    ///
    /// For what a process can choose only once, such as its allocator. A child that fails becomes a
    /// skipped row that says so.
    pub fn adopt(&mut self, command: &mut Command) {
        let path = std::env::temp_dir().join(format!("bench-child-{}.json", std::process::id()));
        command.args(["--no-table", "--seed", &self.options.seed.to_string(), "--json"]).arg(&path);
        if let Some(filter) = &self.options.filter {
            command.args(["--filter", filter]);
        }
        if let Some(rounds) = self.options.rounds {
            command.args(["--rounds", &rounds.to_string()]);
        }
        let rows = command.status().and_then(|status| match status.success() {
            true => {
                Ok(serde_json::from_reader::<_, Vec<Row>>(io::BufReader::new(File::open(&path)?))?)
            }
            false => Err(io::Error::other(format!("{command:?} ended with {status}"))),
        });
        let _ = std::fs::remove_file(&path);
        match rows {
            Ok(rows) => self.rows.extend(rows),
            Err(error) => {
                self.reported("rows of a child", "").skip("itself", &error.to_string());
            }
        }
    }

    /// Prints the table and writes the file of `--json`.
    ///
    /// A missed target is a row that says so, not a failure; not being able to write the file is one.
    #[must_use = "is the exit code of the program"]
    pub fn finish(self) -> ExitCode {
        if self.rows.is_empty() {
            let filter = self.options.filter.as_deref().unwrap_or_default();
            eprintln!("{}: no case contains \"{filter}\"", self.name);
        } else if !self.options.no_table {
            let out = io::stdout();
            let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            // A reader that went away (`| head`) is no reason to fail.
            let _ = out.lock().write_all(table(&self.rows, colour).as_bytes());
        }
        let Some(path) = &self.options.json else { return ExitCode::SUCCESS };
        let written = File::create(path).and_then(|mut file| {
            serde_json::to_writer_pretty(&mut file, &self.rows)?;
            file.write_all(b"\n")
        });
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: cannot write {}: {error}", self.name, path.display());
                ExitCode::FAILURE
            }
        }
    }

    fn push(&mut self, row: Row) {
        let mut line = format!("{}: {}: ", row.suite, row.case);
        match (&row.skipped, row.ours, row.ratio) {
            (Some(reason), ..) => line += &format!("skipped: {reason}"),
            (None, Some(ours), Some(ratio)) => {
                line += &format!("{} {}, ratio {}", thousands(ours), row.unit, thousands(ratio));
            }
            (None, ours, _) => {
                line += &format!("{} {}", thousands(ours.unwrap_or_default()), row.unit);
            }
        }
        eprintln!("{line}");
        self.rows.push(row);
    }
}

/// Lets the harness take the time of closures that do a known number of operations.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    clock: Clock,
    operations: u64,
    as_rate: bool,
}

impl Timed {
    fn read(self, now: impl Fn() -> Duration, work: &mut dyn FnMut()) -> f64 {
        let start = now();
        work();
        let elapsed = now().saturating_sub(start).max(Duration::from_nanos(1));
        match self.as_rate {
            true => per_second(elapsed, self.operations),
            false => nanos_per(elapsed, self.operations),
        }
    }
}

/// Takes the readings that the closures return.
#[derive(Clone, Copy, Debug)]
pub struct Reported(());

/// Describes one case; ends in a call that measures it and adds its row to the suite.
#[derive(Debug)]
#[must_use = "a case measures nothing until `compare`, `measure`, `observed` or `skip`"]
pub struct Case<'s, M> {
    suite: &'s mut Suite,
    name: String,
    unit: String,
    target: Option<Target>,
    rounds: u16,
    meter: M,
}

impl<M> Case<'_, M> {
    /// Sets a target: `ours / peer`, or ours where there is no peer, is at most `bound`.
    pub fn at_most(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtMost(bound));
        self
    }

    /// Sets a target: `ours / peer`, or ours where there is no peer, is at least `bound`.
    pub fn at_least(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtLeast(bound));
        self
    }

    /// Sets the number of rounds, 15 unless said; `--rounds` goes before it.
    ///
    /// # Panics
    ///
    /// Outside of [`MIN_ROUNDS`] to [`MAX_ROUNDS`].
    pub fn rounds(mut self, rounds: u16) -> Self {
        assert!((MIN_ROUNDS..=MAX_ROUNDS).contains(&rounds), "{rounds} rounds: must be 9 to 501");
        self.rounds = self.suite.options.rounds.unwrap_or(rounds);
        self
    }

    /// Records that the case cannot be measured against `peer` here, and why.
    pub fn skip(mut self, peer: &str, reason: &str) {
        self.name = format!("{} vs {peer}", self.name);
        if self.suite.wants(&self.name) {
            let row = self.row(None, None, None, None);
            self.suite.push(Row { skipped: Some(reason.to_owned()), holds: None, ..row });
        }
    }

    fn compare_readings(
        mut self,
        peer_name: &str,
        ours: &mut dyn FnMut() -> f64,
        peer: &mut dyn FnMut() -> f64,
    ) {
        self.name = format!("{} vs {peer_name}", self.name);
        if !self.suite.wants(&self.name) {
            return;
        }
        let pairs = interleave(self.rounds, &mut self.suite.rng, &self.name, ours, peer);
        let column = |pick: fn(&(f64, f64)) -> f64| pairs.iter().map(pick).collect::<Vec<_>>();
        let ratios = column(|(ours, peer)| ours / peer);
        let row = self.row(
            median(&column(|pair| pair.0)),
            median(&column(|pair| pair.1)),
            median(&ratios),
            interval(&ratios),
        );
        self.suite.push(row);
    }

    fn measure_readings(self, ours: &mut dyn FnMut() -> f64) {
        if !self.suite.wants(&self.name) {
            return;
        }
        ours();
        let readings: Vec<f64> = (0..self.rounds).map(|_| checked(&self.name, ours())).collect();
        let row = self.row(median(&readings), None, None, interval(&readings));
        self.suite.push(row);
    }

    fn row(
        &self,
        ours: Option<f64>,
        peer: Option<f64>,
        ratio: Option<f64>,
        spread: Option<[f64; 2]>,
    ) -> Row {
        let single = ratio.or(ours).map(|value| [value; 2]);
        Row {
            suite: self.suite.name.clone(),
            case: self.name.clone(),
            ours,
            peer,
            unit: self.unit.clone(),
            ratio,
            spread,
            target: self.target,
            holds: self.target.zip(spread.or(single)).map(|(target, spread)| target.holds(spread)),
            skipped: None,
        }
    }
}

impl Case<'_, Timed> {
    /// Measures `ours` against `peer` in interleaved rounds.
    pub fn compare(self, peer_name: &str, mut ours: impl FnMut(), mut peer: impl FnMut()) {
        let meter = self.meter;
        let now = || meter.clock.now();
        self.compare_readings(peer_name, &mut || meter.read(now, &mut ours), &mut || {
            meter.read(now, &mut peer)
        });
    }

    /// Measures `ours` alone; a target is then one for the number itself.
    pub fn measure(self, mut ours: impl FnMut()) {
        let meter = self.meter;
        self.measure_readings(&mut || meter.read(|| meter.clock.now(), &mut ours));
    }
}

impl Case<'_, Reported> {
    /// Compares the readings of `ours` and `peer` in interleaved rounds.
    ///
    /// # Panics
    ///
    /// When a reading is not a positive, finite number.
    pub fn compare(
        self,
        peer_name: &str,
        mut ours: impl FnMut() -> f64,
        mut peer: impl FnMut() -> f64,
    ) {
        self.compare_readings(peer_name, &mut ours, &mut peer);
    }

    /// Takes the median of the readings of `ours`; a target is then one for the number itself.
    ///
    /// # Panics
    ///
    /// When a reading is not a positive, finite number.
    pub fn measure(self, mut ours: impl FnMut() -> f64) {
        self.measure_readings(&mut ours);
    }

    /// Records a number that has no noise worth repeating it for, such as bytes written per byte.
    pub fn observed(self, value: f64) {
        if self.suite.wants(&self.name) {
            let row = self.row(Some(value), None, None, None);
            self.suite.push(row);
        }
    }
}

/// Runs a round that does not count and then `rounds` pairs, each in an order of its own.
fn interleave(
    rounds: u16,
    rng: &mut Rng,
    case: &str,
    ours: &mut dyn FnMut() -> f64,
    peer: &mut dyn FnMut() -> f64,
) -> Vec<(f64, f64)> {
    let mut pair = || {
        if rng.bool() {
            let first = ours();
            (first, peer())
        } else {
            let first = peer();
            (ours(), first)
        }
    };
    pair();
    (0..rounds)
        .map(|_| pair())
        .map(|(ours, peer)| (checked(case, ours), checked(case, peer)))
        .collect()
}

fn checked(case: &str, reading: f64) -> f64 {
    assert!(
        reading.is_finite() && reading > 0.0,
        "{case}: a reading of {reading} cannot be compared"
    );
    reading
}

#[cfg(test)]
mod tests;
