//! What a simulation prints: a table, JSON, and what the numbers advise. All of it is made by functions
//! of the numbers alone.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde_json::{Value, json};
use ultra_perf::cache_tiered::Policy;
use ultra_perf::cache_tiered::simulate::{Capacity, Contender, Footprint, Format, Outcome, Trace};

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// A step to a larger size is worth its memory if it adds this share of the requests.
const WORTH: f64 = 0.02;
/// Another policy is recommended over the adaptive one if it hits this share of the requests more often.
const BETTER: f64 = 0.01;

/// How words are set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) colour: bool,
}

impl Style {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("{code}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// The results of one size.
#[derive(Debug)]
pub(super) struct Row {
    /// As it was asked for.
    pub(super) size: String,
    pub(super) capacity: Capacity,
    /// One for each contender, where there is one.
    pub(super) outcomes: Vec<Option<Outcome>>,
}

/// A simulation that was made.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) trace: &'a Trace,
    pub(super) footprint: Footprint,
    pub(super) contenders: &'a [Contender],
    pub(super) rows: Vec<Row>,
}

impl Report<'_> {
    /// The table, what was left out of it, and the advice.
    pub(super) fn text(&self, style: Style) -> String {
        let mut text = format!("{}\n", self.heading());
        self.table(&mut text, "hit ratio in %", style, Outcome::hit_ratio, |_| true);
        if self.rows.iter().any(|row| row.capacity.weighs()) {
            let title = "share of bytes answered in %";
            self.table(&mut text, title, style, Outcome::weight_hit_ratio, Row::weighs);
        }
        text.push('\n');
        for note in self.notes() {
            let _ = writeln!(text, "{note}");
        }
        if let Some(advice) = self.advice() {
            let _ = writeln!(text, "{}", style.wrap(BOLD, &advice));
        }
        text
    }

    /// What was read.
    fn heading(&self) -> String {
        let requests = count(self.trace.keys().len() as u64);
        let keys = count(self.footprint.keys);
        let mut heading = format!("{}: {requests} requests of {keys} keys", self.trace.name());
        if self.trace.weights().is_some() {
            let _ = write!(heading, " with {}", bytes(self.footprint.weight));
        }
        if let Some(format) = self.trace.format() {
            let _ = write!(heading, ", read as {format}");
        }
        heading
    }

    /// A line for each of the rows that `takes_part`, the best contender marked.
    fn table(
        &self,
        text: &mut String,
        title: &str,
        style: Style,
        measure: fn(&Outcome) -> f64,
        takes_part: fn(&Row) -> bool,
    ) {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| takes_part(row)).collect();
        let labels: Vec<String> = rows.iter().map(|row| row.label()).collect();
        let width = labels.iter().map(String::len).chain([title.len()]).max().unwrap_or(0);
        let columns: Vec<usize> =
            self.contenders.iter().map(|contender| contender.name().len().max(6)).collect();
        let mut head = format!("{title:width$}");
        for (contender, column) in self.contenders.iter().zip(&columns) {
            let _ = write!(head, "  {:>column$}", contender.name());
        }
        let _ = writeln!(text, "\n{}", style.wrap(BOLD, &head));
        for (row, label) in rows.iter().zip(labels) {
            let best = row.best(self.contenders, measure);
            let mut line = format!("{label:>width$}");
            // A mark stands in the gap behind the digits, so that these keep their places.
            let mut mark = " ";
            for ((contender, outcome), column) in
                self.contenders.iter().zip(&row.outcomes).zip(&columns)
            {
                let value = outcome.as_ref().map(measure);
                let digits =
                    value.map_or_else(|| "-".to_owned(), |it| format!("{:.2}", it * 100.0));
                let is_best = !contender.is_optimum() && value.is_some() && value == best;
                let gap = column - digits.len();
                let digits = if is_best { style.wrap(GREEN, &digits) } else { digits };
                let _ = write!(line, "{mark} {:gap$}{digits}", "");
                mark = if is_best { "*" } else { " " };
            }
            let _ = writeln!(text, "{}", format!("{line}{mark}").trim_end());
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.trace.is_truncated() {
            notes.push("The limit was reached; what follows in the file was not read.".to_owned());
        }
        match self.trace.skipped() {
            0 => {}
            1 => notes.push("1 line is neither GET nor HEAD and was skipped.".to_owned()),
            lines => notes
                .push(format!("{} lines are neither GET nor HEAD and were skipped.", count(lines))),
        }
        let has_optimum = self.contenders.iter().any(Contender::is_optimum);
        if has_optimum && self.rows.iter().any(Row::weighs) {
            notes.push(
                "belady: the optimum is known only for sizes in entries, not in bytes.".to_owned(),
            );
        }
        notes
    }

    /// What to do, in one line; nothing if none of the crate's own policies was measured.
    fn advice(&self) -> Option<String> {
        let own = self.recommended()?;
        let weighs = self.rows.first()?.capacity.weighs();
        let mut steps: Vec<(Capacity, f64)> = self
            .rows
            .iter()
            .filter(|row| row.capacity.weighs() == weighs && row.capacity.limit() > 0)
            .filter_map(|row| Some((row.capacity, row.outcomes[own].as_ref()?.hit_ratio())))
            .collect();
        steps.sort_by_key(|(capacity, _)| capacity.limit());
        let best = steps.iter().map(|(_, ratio)| *ratio).fold(0.0, f64::max);
        let at = steps.iter().position(|(_, ratio)| best - ratio < WORTH)?;
        let (capacity, ratio) = steps[at];
        let name = self.contenders[own].name();
        let mut advice = format!("{name} at {} answers {:.1} %", amount(capacity), ratio * 100.0);
        if let Some((smaller, before)) = at.checked_sub(1).map(|at| steps[at]) {
            let points = points(ratio - before);
            let _ = write!(advice, ", {points} more than at {}", amount(smaller));
        }
        // Whatever its size, a cache misses each key once.
        let requests = self.trace.keys().len() as f64;
        let ceiling = 1.0 - self.footprint.keys as f64 / requests;
        if ceiling - ratio < WORTH {
            let _ = write!(advice, "; no size can answer more than {:.1} %", ceiling * 100.0);
        } else if let Some((largest, last)) = steps.get(at + 1..).and_then(<[_]>::last) {
            let more = points((last - ratio).max(0.0));
            let _ = write!(advice, "; going on to {} adds only {more}", amount(*largest));
        } else {
            let _ = write!(
                advice,
                "; more memory may add up to {}: try larger --sizes",
                points(ceiling - ratio),
            );
        }
        Some(advice)
    }

    /// The policy of the crate that hits most over all sizes; the adaptive one if it is close to that.
    fn recommended(&self) -> Option<usize> {
        let is_own = |name: &str| name.parse::<Policy>().is_ok() || name == "clock-pro";
        let total = |at: usize| -> f64 {
            let outcomes = self.rows.iter().filter_map(|row| row.outcomes[at].as_ref());
            outcomes.map(Outcome::hit_ratio).sum()
        };
        let own = (0..self.contenders.len()).filter(|at| is_own(self.contenders[*at].name()));
        let best = own.max_by(|a, b| total(*a).total_cmp(&total(*b)))?;
        let adaptive = Policy::Adaptive.as_str();
        let adaptive = self.contenders.iter().position(|contender| contender.name() == adaptive);
        let close = |at: &usize| total(best) - total(*at) < BETTER * self.rows.len() as f64;
        Some(adaptive.filter(close).unwrap_or(best))
    }

    /// Everything, under names that stay.
    pub(super) fn json(&self) -> Value {
        let names: Vec<_> = self.contenders.iter().map(Contender::name).collect();
        let weighted = self.trace.weights().is_some();
        let sizes: Vec<Value> = self.rows.iter().map(|row| row.json(self.contenders)).collect();
        json!({
            "trace": {
                "name": self.trace.name(),
                "format": self.trace.format().map(Format::as_str),
                "requests": self.trace.keys().len(),
                "keys": self.footprint.keys,
                "bytes": weighted.then_some(self.footprint.weight),
                "truncated": self.trace.is_truncated(),
                "skipped_lines": self.trace.skipped(),
            },
            "policies": names,
            "sizes": sizes,
            "recommended": self.recommended().map(|at| names[at]),
            "advice": self.advice(),
        })
    }
}

impl Row {
    fn weighs(&self) -> bool {
        self.capacity.weighs()
    }

    fn label(&self) -> String {
        let amount = amount(self.capacity);
        if self.size.ends_with('%') { format!("{} = {amount}", self.size) } else { amount }
    }

    /// The best that a contender reached which does not know the future.
    fn best(&self, contenders: &[Contender], measure: fn(&Outcome) -> f64) -> Option<f64> {
        let online = contenders.iter().zip(&self.outcomes).filter(|(it, _)| !it.is_optimum());
        let values = online.filter_map(|(_, outcome)| outcome.as_ref().map(measure));
        values.filter(|value| *value > 0.0).max_by(f64::total_cmp)
    }

    fn json(&self, contenders: &[Contender]) -> Value {
        let weighs = self.capacity.weighs();
        let limit = self.capacity.limit();
        let results: Vec<Value> = contenders
            .iter()
            .zip(&self.outcomes)
            .map(|(contender, outcome)| {
                let outcome = outcome.as_ref();
                json!({
                    "policy": contender.name(),
                    "hits": outcome.map(|outcome| outcome.hits),
                    "hit_ratio": outcome.map(Outcome::hit_ratio),
                    "byte_hit_ratio": outcome.filter(|_| weighs).map(Outcome::weight_hit_ratio),
                })
            })
            .collect();
        json!({
            "size": self.size,
            "entries": (!weighs).then_some(limit),
            "bytes": weighs.then_some(limit),
            "results": results,
        })
    }
}

/// A capacity in words.
fn amount(capacity: Capacity) -> String {
    match (capacity.weighs(), capacity.limit()) {
        (true, limit) => bytes(limit),
        (false, 1) => "1 entry".to_owned(),
        (false, entries) => format!("{} entries", count(entries)),
    }
}

fn points(share: f64) -> String {
    let points = format!("{:.1}", share * 100.0);
    if points == "1.0" { "1.0 point".to_owned() } else { format!("{points} points") }
}

/// Formats bytes with three digits and the unit in which that is possible.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().expect("there are units");
    while value >= 999.5
        && let Some(larger) = units.next()
    {
        value /= 1_024.0;
        unit = larger;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {unit}")
}

/// Formats a whole number with its thousands apart.
fn count(value: u64) -> String {
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
