//! The rows of a stretch of time as CSV or as JSON lines, written as they are read.
//!
//! One chunk of one series is in memory at a time, so a year takes no more than an hour. CSV is that of RFC 4180 with
//! one header for all kinds; fields that a row does not have are empty.

use std::io::{self, Write};

use serde::Serialize;

use super::block::{Shape, View};
use super::chunk::Wanted;
use super::head::Entry;
use super::{History, QueryError, QueryProblem};
use crate::histogram::Distribution;
use crate::selector::Selector;
use crate::series::{Kind, Labels};
use crate::source::Window;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExportFormat {
    /// RFC 4180, with a header.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// One row as it is written.
#[derive(Debug, Default, Serialize)]
struct Row<'a> {
    at_ms: i64,
    name: &'a str,
    labels: Labels,
    kind: Option<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    increase: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
}

const HEADER: &str = "at_ms,name,labels,kind,value,min,max,sum,count,increase,p50,p95,p99\n";

impl<'a> Row<'a> {
    fn of(entry: &'a Entry, view: &View<'_>, row: usize) -> Self {
        let number = |meaning: usize| Some(view.column.values[meaning][row]);
        let mut out = Self {
            at_ms: view.times[row],
            name: &entry.key.name,
            labels: entry.key.labels.clone(),
            kind: Some(entry.kind),
            ..Self::default()
        };
        match view.column.shape {
            Shape::Samples => out.value = number(0),
            Shape::Gauges => {
                (out.min, out.max, out.sum) = (number(0), number(1), number(2));
                (out.count, out.value) = (number(3), number(4));
            }
            Shape::Counters => {
                (out.increase, out.value, out.count) = (number(0), number(1), number(2));
            }
            Shape::Distributions => {
                (out.count, out.sum) = (number(0), number(1));
                let parts = view.column.runs.iter().flat_map(|runs| runs.row(row));
                let taken = Distribution::from_parts(entry.scale, parts);
                let quantile = |q| taken.quantile(q);
                (out.p50, out.p95, out.p99) = (quantile(0.5), quantile(0.95), quantile(0.99));
            }
        }
        out
    }

    fn write_csv(&self, out: &mut dyn Write) -> io::Result<()> {
        let labels = self.labels.to_string().replace('"', "\"\"");
        let kind = match self.kind {
            Some(Kind::Counter) => "counter",
            Some(Kind::Gauge) => "gauge",
            Some(Kind::Histogram) => "histogram",
            None => "",
        };
        write!(out, "{},{},\"{labels}\",{kind}", self.at_ms, self.name)?;
        let numbers = [self.value, self.min, self.max, self.sum, self.count, self.increase];
        for number in numbers.into_iter().chain([self.p50, self.p95, self.p99]) {
            match number {
                Some(number) => write!(out, ",{number}")?,
                None => out.write_all(b",")?,
            }
        }
        out.write_all(b"\n")
    }
}

impl History {
    /// Writes the rows of some series after `from_ms`, up to and with `to_ms`; returns how many.
    ///
    /// Rows come from the coarsest tier whose step is at most `step_ms`, or from the finest without one.
    ///
    /// # Errors
    ///
    /// What the writer says, or [`io::ErrorKind::InvalidInput`] with a [`QueryError`] if the window is none.
    ///
    /// # Cost
    ///
    /// Reads the store on the calling thread, a chunk at a time.
    pub fn export(
        &self,
        selector: &Selector,
        window: Window,
        step_ms: Option<i64>,
        format: ExportFormat,
        out: &mut dyn Write,
    ) -> io::Result<u64> {
        let Window { from_ms, to_ms } = window;
        if from_ms >= to_ms {
            let problems = vec![QueryProblem::Window { from_ms, to_ms }];
            return Err(io::Error::new(io::ErrorKind::InvalidInput, QueryError { problems }));
        }
        let shared = &self.0.shared;
        let head = shared.head.read();
        let fits = |step: i64| step_ms.is_some_and(|most| step <= most);
        let mut steps = head.tiers.iter().map(|tier| i64::from(tier.key.step_ms));
        let tier = steps.rposition(fits).unwrap_or(0);
        let span_ms = head.tiers[tier].key.span_ms();
        let entries: Vec<(usize, Entry)> = head
            .matching(selector)
            .into_iter()
            .map(|place| (place, head.entries[place].clone()))
            .collect();
        let oldest_ms = head.tiers[tier].oldest_ms.min(head.tiers[tier].memory_start());
        let begin_ms = from_ms.max(oldest_ms.saturating_sub(1));
        let end_ms = head.last_ms.map_or(begin_ms, |last| to_ms.min(last.saturating_add(span_ms)));
        let first_start = head.tiers[tier].block_start(begin_ms.saturating_add(1));
        drop(head);
        if format == ExportFormat::Csv {
            out.write_all(HEADER.as_bytes())?;
        }
        let mut rows = 0;
        for (place, entry) in &entries {
            let mut start_ms = first_start;
            while start_ms < end_ms {
                let stretch = (start_ms.max(from_ms), start_ms.saturating_add(span_ms).min(to_ms));
                let pieces = shared.pieces(tier, *place, entry.number, stretch, Wanted::ALL);
                for piece in &pieces {
                    let view = piece.view();
                    for row in view.rows(stretch.0, stretch.1).filter(|row| view.column.has(*row)) {
                        let row = Row::of(entry, &view, row);
                        match format {
                            ExportFormat::Csv => row.write_csv(out)?,
                            ExportFormat::JsonLines => {
                                serde_json::to_writer(&mut *out, &row)?;
                                out.write_all(b"\n")?;
                            }
                        }
                        rows += 1;
                    }
                }
                start_ms = start_ms.saturating_add(span_ms);
            }
        }
        Ok(rows)
    }
}
