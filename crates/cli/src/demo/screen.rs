//! What the demonstration shows: a table that redraws in place, or plain lines in a pipe.
//!
//! Everything that is shown is made by pure functions from the numbers ([`table`], [`plain_line`],
//! [`summary`]); [`Screen`] only decides how lines reach the output. On a terminal it hides the cursor
//! and the wrapping of long lines while the table is up and gives both back when it drops, whatever
//! ended the demonstration. In a pipe it writes no control character at all.

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use super::load::Measured;

/// What gives the terminal its cursor and its line wrapping back.
pub(super) const RESTORE: &str = "\x1b[?7h\x1b[?25h";

const PREPARE: &str = "\x1b[?25l\x1b[?7l";
const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Cells of the progress bar.
const BAR_WIDTH: usize = 30;

/// The two phases, as the table names them.
pub(super) const DIRECT: &str = "direct to the backend";
pub(super) const THROUGH: &str = "through ultra-perf";

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A terminal: redraw in place.
    Live { colour: bool },
    /// Anything else: a line at a time.
    Lines,
}

impl Mode {
    /// Chooses the mode for an output, from the usual environment variables.
    fn choose(is_terminal: bool, term: Option<&str>, no_color: Option<&str>) -> Self {
        if is_terminal && term != Some("dumb") {
            Self::Live { colour: no_color.is_none_or(str::is_empty) }
        } else {
            Self::Lines
        }
    }

    /// Chooses the mode for the standard output of this process.
    pub(super) fn of_stdout() -> Self {
        let variable =
            |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::choose(
            io::stdout().is_terminal(),
            variable("TERM").as_deref(),
            variable("NO_COLOR").as_deref(),
        )
    }

    fn style(self) -> Style {
        Style { colour: self == Self::Live { colour: true } }
    }
}

/// Puts colour around words, or leaves them as they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("{code}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.wrap(BOLD, text)
    }

    fn green(self, text: &str) -> String {
        self.wrap(GREEN, text)
    }
}

/// The output of the demonstration.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: W,
    mode: Mode,
    /// Lines of the table that stand above the cursor.
    drawn: usize,
    prepared: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, mode: Mode) -> Self {
        Self { out, mode, drawn: 0, prepared: false }
    }

    pub(super) fn is_live(&self) -> bool {
        self.mode != Mode::Lines
    }

    pub(super) fn style(&self) -> Style {
        self.mode.style()
    }

    /// Draws the table over the one drawn before. In a pipe this writes nothing.
    ///
    /// # Errors
    ///
    /// Fails when the output does.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        if !self.is_live() {
            return Ok(());
        }
        let mut frame = String::new();
        if !self.prepared {
            frame.push_str(PREPARE);
            self.prepared = true;
        }
        self.rewind(&mut frame);
        for line in lines {
            frame.push_str(line);
            frame.push('\n');
        }
        self.drawn = lines.len();
        self.out.write_all(frame.as_bytes())?;
        self.out.flush()
    }

    /// Replaces the table by lines that stay.
    ///
    /// # Errors
    ///
    /// Fails when the output does.
    pub(super) fn print(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        if self.is_live() {
            self.rewind(&mut text);
        }
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Moves to where the table starts and clears from there, with what a Ctrl-C echoed.
    fn rewind(&mut self, to: &mut String) {
        if self.drawn > 0 {
            to.push_str(&format!("\r\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.prepared {
            // Nothing can be done for a terminal that is gone.
            let _ = self.out.write_all(RESTORE.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// The numbers of one phase.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// Rates and latencies: of the last second while the phase runs, of all of it afterwards.
    pub(super) measured: Measured,
    /// Requests that reached the backend in the same time.
    pub(super) backend_calls: u64,
    /// Since the phase began.
    pub(super) errors: u64,
}

impl Reading {
    fn per_second(&self, count: u64) -> Option<f64> {
        let seconds = self.measured.elapsed.as_secs_f64();
        (seconds > 0.0).then(|| count as f64 / seconds)
    }

    pub(super) fn rate(&self) -> Option<f64> {
        self.per_second(self.measured.counts.answered)
    }

    fn backend_rate(&self) -> Option<f64> {
        self.per_second(self.backend_calls)
    }

    /// Backend calls for a thousand answers.
    pub(super) fn backend_calls_per_thousand(&self) -> Option<f64> {
        let answered = self.measured.counts.answered;
        (answered > 0).then(|| self.backend_calls as f64 * 1_000.0 / answered as f64)
    }

    fn latency(&self, pick: fn(&Measured) -> Duration) -> Option<f64> {
        (self.measured.counts.answered > 0).then(|| pick(&self.measured).as_secs_f64())
    }
}

/// How far a phase has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) phase: usize,
    pub(super) phases: usize,
    pub(super) age: Duration,
    pub(super) length: Duration,
}

/// Renders the live table: a column per phase, and how far the running one has come.
pub(super) fn table(
    heading: &str,
    direct: Option<&Reading>,
    through: Option<&Reading>,
    progress: Progress,
    style: Style,
) -> Vec<String> {
    let mut lines = vec![style.bold(heading), String::new()];
    let second = if progress.phases > 1 { THROUGH } else { "" };
    lines.push(style.bold(&row("", DIRECT, second, "")));
    let both = |show: &dyn Fn(&Reading) -> String| {
        let cell = |reading: Option<&Reading>| reading.map(show).unwrap_or_default();
        (cell(direct), cell(through))
    };
    for (label, show) in MEASURES {
        let (direct, through) = both(&|reading| show(reading));
        lines.push(row(label, &direct, &through, ""));
    }
    lines.push(String::new());
    lines.push(progress_line(progress));
    lines
}

/// A line of the table: its name, and how a reading shows it.
type MeasureRow = (&'static str, fn(&Reading) -> String);

const MEASURES: [MeasureRow; 7] = [
    ("requests/s", |reading| optional(reading.rate(), number)),
    ("p50", |reading| optional(reading.latency(|measured| measured.p50), latency)),
    ("p95", |reading| optional(reading.latency(|measured| measured.p95), latency)),
    ("p99", |reading| optional(reading.latency(|measured| measured.p99), latency)),
    ("hit ratio", |reading| optional(reading.measured.counts.hit_ratio(), percent)),
    ("backend calls/s", |reading| optional(reading.backend_rate(), number)),
    ("errors", |reading| count(reading.errors)),
];

/// Renders one second of a phase as one line for a pipe.
pub(super) fn plain_line(name: &str, progress: Progress, reading: &Reading) -> String {
    let cells: Vec<String> =
        MEASURES.iter().map(|(label, show)| format!("{label} {}", show(reading))).collect();
    format!("{name}, {} s: {}", progress.age.as_secs_f64().round(), cells.join(", "))
}

/// Everything that the summary tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) direct: Reading,
    pub(super) through: Option<Reading>,
    pub(super) first_error: Option<String>,
    pub(super) ended_early: bool,
}

/// Renders the summary: before, after, the factor between, and what to do next.
pub(super) fn summary(heading: &str, outcome: &Outcome, style: Style) -> Vec<String> {
    let direct = &outcome.direct;
    let through = outcome.through.as_ref();
    let mut lines = vec![style.bold(heading), String::new()];
    let factor_heading = if through.is_some() { "factor" } else { "" };
    let through_heading = if through.is_some() { THROUGH } else { "" };
    lines.push(style.bold(&row("", DIRECT, through_heading, factor_heading)));

    let line = |label, show: &dyn Fn(&Reading) -> String, factor: Option<f64>| {
        let after = through.map(show).unwrap_or_default();
        let factor = factor.map(|factor| format!("{}x", factor_number(factor))).unwrap_or_default();
        // Coloured after it is padded: escape codes have no width.
        let text = row(label, &show(direct), &after, &factor);
        match text.strip_suffix(&factor) {
            Some(front) if !factor.is_empty() => format!("{front}{}", style.green(&factor)),
            _ => text,
        }
    };
    let ratio = |value: &dyn Fn(&Reading) -> Option<f64>| {
        let (before, after) = (value(direct)?, value(through?)?);
        (before > 0.0 && after > 0.0).then(|| before / after)
    };

    lines.push(line("requests", &|r| count(r.measured.counts.answered), None));
    lines.push(line(
        "requests/s",
        &|r| optional(r.rate(), number),
        ratio(&Reading::rate).map(f64::recip),
    ));
    for (label, pick) in
        [("p50", (|m| m.p50) as fn(&Measured) -> Duration), ("p95", |m| m.p95), ("p99", |m| m.p99)]
    {
        lines.push(line(
            label,
            &|r| optional(r.latency(pick), latency),
            ratio(&|r| r.latency(pick)),
        ));
    }
    lines.push(line("hit ratio", &|r| optional(r.measured.counts.hit_ratio(), percent), None));
    lines.push(line(
        "backend calls/1000",
        &|r| optional(r.backend_calls_per_thousand(), number),
        ratio(&Reading::backend_calls_per_thousand),
    ));
    lines.push(line("errors", &|r| count(r.errors), None));
    lines.push(String::new());

    lines.extend(through.and_then(|through| saved_line(direct, through)));
    lines.push(freshness_line(direct, through));
    let leaks: u64 = phases(direct, through).map(|reading| reading.measured.counts.leaks).sum();
    if leaks > 0 {
        lines.push(format!("Private:   {} private pages came out of the cache.", count(leaks)));
    }
    if let Some(error) = &outcome.first_error {
        lines.push(format!("Errors:    the first was: {}", printable(error)));
    }
    if outcome.ended_early {
        lines.push("Ended early; the numbers are those up to then.".to_owned());
    }
    lines.push(String::new());
    lines.push("In front of your own backend (here one that listens on port 8000):".to_owned());
    lines.push(format!("    {}", style.bold("ultra-perf serve --to http://127.0.0.1:8000")));
    lines
}

fn phases<'a>(
    direct: &'a Reading,
    through: Option<&'a Reading>,
) -> impl Iterator<Item = &'a Reading> {
    std::iter::once(direct).chain(through)
}

fn saved_line(direct: &Reading, through: &Reading) -> Option<String> {
    let before = direct.backend_calls_per_thousand()? / 1_000.0;
    let answered = through.measured.counts.answered;
    let would_be = before * answered as f64;
    if would_be <= 0.0 {
        return None;
    }
    let saved = would_be - through.backend_calls as f64;
    (saved > 0.0).then(|| {
        format!(
            "Saved:     {} backend calls of {} ({}); {} reads were stale while renewed.",
            count(saved as u64),
            count(would_be as u64),
            percent(saved / would_be),
            count(through.measured.counts.stale),
        )
    })
}

fn freshness_line(direct: &Reading, through: Option<&Reading>) -> String {
    let sum = |pick: fn(&Measured) -> u64| -> u64 {
        phases(direct, through).map(|reading| pick(&reading.measured)).sum()
    };
    let writes = sum(|measured| measured.counts.writes);
    match sum(|measured| measured.counts.violations) {
        0 => format!(
            "Freshness: {} writes, and no product page older than one of them.",
            count(writes)
        ),
        old => format!(
            "Freshness: {} product pages were OLDER than a write before them ({} writes).",
            count(old),
            count(writes)
        ),
    }
}

fn row(label: &str, direct: &str, through: &str, factor: &str) -> String {
    format!("  {label:<20}{direct:>22}{through:>22}{factor:>12}").trim_end().to_owned()
}

fn progress_line(progress: Progress) -> String {
    let share = if progress.length.is_zero() {
        1.0
    } else {
        (progress.age.as_secs_f64() / progress.length.as_secs_f64()).min(1.0)
    };
    let filled = (share * BAR_WIDTH as f64) as usize;
    format!(
        "  phase {} of {} [{}{}] {} s of {} s, Ctrl-C ends early",
        progress.phase,
        progress.phases,
        "#".repeat(filled),
        ".".repeat(BAR_WIDTH - filled),
        progress.age.min(progress.length).as_secs(),
        progress.length.as_secs()
    )
}

fn optional(value: Option<f64>, show: fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

/// Formats a whole number with its thousands apart.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn number(value: f64) -> String {
    if value < 99.95 { format!("{value:.1}") } else { count(value.round() as u64) }
}

fn factor_number(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { count(value.round() as u64) }
}

pub(super) fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

pub(super) fn latency(seconds: f64) -> String {
    let millis = seconds * 1_000.0;
    if millis < 0.9995 {
        format!("{millis:.2} ms")
    } else if millis < 9.95 {
        format!("{millis:.1} ms")
    } else if millis < 999.5 {
        format!("{millis:.0} ms")
    } else {
        format!("{seconds:.2} s")
    }
}

/// Keeps what another process said from moving the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
