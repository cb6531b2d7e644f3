//! What the samples of a window come to, over any number of series and pieces of them.
//!
//! A [`Fold`] takes in one series after the other and is asked once. Rows may be samples or rolled from
//! samples, the answer is the same as far as rolled rows can tell; where they cannot - quantiles and the
//! standard deviation of gauges - the mean of a row stands for its samples.
//!
//! Growth of counters is counted from the sample before the window if that is near enough, as
//! `VictoriaMetrics` does (<https://docs.victoriametrics.com/metricsql/#rate>): so the growth of windows
//! that follow on each other adds up to the growth of all, and no increase falls between two windows.

use std::ops::Range;

use super::block::{Merged, Shape, View};
use crate::series::Kind;
use crate::source::Aggregate;

/// How far before a window, in halves of a step, a sample may be to count growth from.
const REACH_HALVES: i64 = 5;

/// Returns how far before a window samples are of use to it.
pub(super) fn reach_ms(step_ms: i64) -> i64 {
    step_ms.saturating_mul(REACH_HALVES) / 2
}

/// Returns the end of the row that a moment belongs to: rows end at multiples of the step.
pub(super) fn row_end(at_ms: i64, step_ms: i64) -> i64 {
    let end = at_ms.div_euclid(step_ms).saturating_mul(step_ms);
    if end < at_ms { end.saturating_add(step_ms) } else { end }
}

/// What has been taken in of a window so far.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    aggregate: Aggregate,
    samples: f64,
    weight: f64,
    sum: f64,
    min: f64,
    max: f64,
    lasts: u32,
    grown: u32,
    values: Vec<f64>,
    merged: Option<Box<(f64, Merged)>>,
}

/// One series as it is taken in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) kind: Kind,
    /// Ticks of a histogram in its unit.
    pub(super) scale: f64,
    /// The step of the tier that the pieces are of.
    pub(super) step_ms: i64,
    /// In the order of time.
    pub(super) pieces: &'a [View<'a>],
}

/// Growth of a counter over samples, and from when to when.
#[derive(Default)]
struct Growth {
    start: Option<i64>,
    last: Option<(i64, f64)>,
    increase: f64,
}

impl Growth {
    fn step(&mut self, at: i64, value: f64) {
        if let Some((_, before)) = self.last {
            self.increase += increase(before, value);
        }
        self.start.get_or_insert(at);
        self.last = Some((at, value));
    }
}

/// Returns how much a counter grew from one sample to the next: all of it, if it began anew.
pub(super) fn increase(before: f64, now: f64) -> f64 {
    if now < before { now } else { now - before }
}

impl Fold {
    pub(super) fn new(aggregate: Aggregate) -> Self {
        Self {
            aggregate,
            samples: 0.0,
            weight: 0.0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            lasts: 0,
            grown: 0,
            values: Vec::new(),
            merged: None,
        }
    }

    /// Takes in a series.
    pub(super) fn add(&mut self, series: &Rows<'_>, from_ms: i64, to_ms: i64) {
        if from_ms >= to_ms {
            return;
        }
        if matches!(self.aggregate, Aggregate::Rate | Aggregate::Delta) {
            self.grow(series, from_ms, to_ms);
        }
        let mut last = None;
        for piece in series.pieces {
            let rows = piece.rows(from_ms, to_ms);
            if rows.is_empty() {
                continue;
            }
            match piece.column.shape {
                Shape::Samples => self.samples(piece, rows.clone()),
                Shape::Gauges => self.gauges(piece, rows.clone()),
                Shape::Counters => self.counters(piece, rows.clone()),
                Shape::Distributions => self.distributions(series.scale, piece, rows.clone()),
            }
            if self.aggregate == Aggregate::Last {
                let meaning = match piece.column.shape {
                    Shape::Samples => 0,
                    Shape::Gauges => 4,
                    Shape::Counters => 1,
                    Shape::Distributions => 2,
                };
                last = last_of(&piece.column.values[meaning][rows]).or(last);
            }
        }
        if let Some(last) = last {
            self.sum += last;
            self.lasts += 1;
        }
    }

    fn samples(&mut self, piece: &View<'_>, rows: Range<usize>) {
        let values = &piece.column.values[0][rows];
        let count = if piece.column.holes == 0 { values.len() as f64 } else { count_of(values) };
        self.samples += count;
        match self.aggregate {
            Aggregate::Avg | Aggregate::Sum => {
                self.sum += sum_of(values);
                self.weight += count;
            }
            Aggregate::Count => self.weight += count,
            Aggregate::Min => self.min = self.min.min(min_of(values)),
            Aggregate::Max => self.max = self.max.max(max_of(values)),
            Aggregate::Stddev | Aggregate::Quantile(_) if piece.column.holes == 0 => {
                self.values.extend_from_slice(values);
            }
            Aggregate::Stddev | Aggregate::Quantile(_) => {
                self.values.extend(values.iter().filter(|value| !value.is_nan()));
            }
            Aggregate::Last | Aggregate::Rate | Aggregate::Delta => {}
        }
    }

    fn gauges(&mut self, piece: &View<'_>, rows: Range<usize>) {
        let column = |meaning: usize| &piece.column.values[meaning][rows.clone()];
        let count = sum_of(column(3));
        self.samples += count;
        match self.aggregate {
            Aggregate::Avg | Aggregate::Sum => {
                self.sum += sum_of(column(2));
                self.weight += count;
            }
            Aggregate::Count => self.weight += count,
            Aggregate::Min => self.min = self.min.min(min_of(column(0))),
            Aggregate::Max => self.max = self.max.max(max_of(column(1))),
            Aggregate::Stddev | Aggregate::Quantile(_) => {
                let means = column(2).iter().zip(column(3)).map(|(sum, count)| sum / count);
                self.values.extend(means.filter(|mean| !mean.is_nan()));
            }
            Aggregate::Last | Aggregate::Rate | Aggregate::Delta => {}
        }
    }

    fn counters(&mut self, piece: &View<'_>, rows: Range<usize>) {
        let column = |meaning: usize| &piece.column.values[meaning][rows.clone()];
        let count = sum_of(column(2));
        self.samples += count;
        match self.aggregate {
            Aggregate::Avg | Aggregate::Sum => {
                let totals = column(1).iter().zip(column(2));
                self.sum += totals
                    .filter(|(last, _)| !last.is_nan())
                    .map(|(last, n)| last * n)
                    .sum::<f64>();
                self.weight += count;
            }
            Aggregate::Count => self.weight += count,
            Aggregate::Min => self.min = self.min.min(min_of(column(1))),
            Aggregate::Max => self.max = self.max.max(max_of(column(1))),
            Aggregate::Stddev | Aggregate::Quantile(_) => {
                self.values.extend(column(1).iter().filter(|last| !last.is_nan()));
            }
            Aggregate::Last | Aggregate::Rate | Aggregate::Delta => {}
        }
    }

    fn distributions(&mut self, scale: f64, piece: &View<'_>, rows: Range<usize>) {
        let column = |meaning: usize| &piece.column.values[meaning][rows.clone()];
        self.samples += sum_of(column(3));
        match self.aggregate {
            Aggregate::Avg | Aggregate::Sum => {
                self.sum += sum_of(column(1));
                self.weight += sum_of(column(0));
            }
            Aggregate::Count => self.weight += sum_of(column(0)),
            Aggregate::Min | Aggregate::Max | Aggregate::Stddev | Aggregate::Quantile(_) => {
                if let Some(runs) = &piece.column.runs {
                    let merged = &mut *self.merged.get_or_insert_with(Box::default);
                    if merged.0 == 0.0 || merged.0 == scale {
                        merged.0 = scale;
                        runs.merge(rows, &mut merged.1);
                    } else {
                        let mut other = Merged::default();
                        runs.merge(rows, &mut other);
                        let mut both = merged.1.distribution(merged.0);
                        both.merge(&other.distribution(scale));
                        merged.1 = Merged::default();
                        for part in both.parts() {
                            merged.1.add(part.index, part.count, part.position);
                        }
                    }
                }
            }
            Aggregate::Last | Aggregate::Rate | Aggregate::Delta => {}
        }
    }

    /// Adds the growth of a series: `sum` is that of all, `weight` that in a second.
    fn grow(&mut self, series: &Rows<'_>, from_ms: i64, to_ms: i64) {
        let mut growth = Growth::default();
        // The last row before the window.
        let mut before = None;
        for piece in series.pieces {
            let rows = piece.rows(from_ms, to_ms);
            let meaning = match (piece.column.shape, series.kind) {
                (Shape::Gauges, _) => 4,
                (Shape::Samples | Shape::Distributions | Shape::Counters, _) => 0,
            };
            let values = &piece.column.values[meaning];
            if growth.last.is_none() {
                let earlier = values[..rows.start].iter().rposition(|value| !value.is_nan());
                before = earlier.map(|row| (piece.times[row], values[row])).or(before);
            }
            if rows.is_empty() {
                continue;
            }
            let inside = &values[rows.clone()];
            let Some(first) = inside.iter().position(|value| !value.is_nan()) else { continue };
            let end = inside.iter().rposition(|value| !value.is_nan()).unwrap_or(first);
            let time = |row: usize| piece.times[rows.start + row];
            if growth.last.is_none() {
                let near = before.filter(|(at, _)| time(first) - at <= reach_ms(series.step_ms));
                match (piece.column.shape, series.kind) {
                    (Shape::Samples, Kind::Gauge) | (Shape::Gauges, _) => {}
                    (Shape::Samples, _) => {
                        if let Some((at, value)) = near {
                            growth.step(at, value);
                        }
                    }
                    (Shape::Counters | Shape::Distributions, _) => {
                        let begin = row_end(time(first), series.step_ms) - series.step_ms;
                        growth.start = Some(near.map_or(begin, |(at, _)| at));
                    }
                }
            }
            match piece.column.shape {
                Shape::Counters | Shape::Distributions => {
                    growth.increase += sum_of(inside);
                    growth.last = Some((time(end), inside[end]));
                }
                Shape::Samples if series.kind != Kind::Gauge && piece.column.falls > 0 => {
                    for (row, value) in inside.iter().enumerate().filter(|(_, v)| !v.is_nan()) {
                        growth.step(time(row), *value);
                    }
                }
                Shape::Samples if series.kind != Kind::Gauge => {
                    growth.step(time(first), inside[first]);
                    if end > first {
                        growth.step(time(end), inside[end]);
                    }
                }
                Shape::Samples | Shape::Gauges => {
                    if let Some((_, before)) = growth.last {
                        growth.increase += inside[first] - before;
                    }
                    growth.increase += inside[end] - inside[first];
                    growth.start.get_or_insert(time(first));
                    growth.last = Some((time(end), inside[end]));
                }
            }
        }
        if let (Some(start), Some((end, _))) = (growth.start, growth.last)
            && end > start
        {
            self.sum += growth.increase;
            self.weight += growth.increase / ((end - start) as f64 / 1_000.0);
            self.grown += 1;
        }
    }

    /// Returns how many samples there were.
    pub(super) fn samples_seen(&self) -> u32 {
        self.samples as u32
    }

    /// Returns what it comes to.
    pub(super) fn value(self) -> Option<f64> {
        if self.samples <= 0.0 {
            return None;
        }
        if let Some(merged) = &self.merged {
            let all = merged.1.distribution(merged.0);
            return match self.aggregate {
                Aggregate::Min => all.buckets().next().map(|bucket| bucket.low),
                Aggregate::Max => all.buckets().next_back().map(|bucket| bucket.high),
                Aggregate::Quantile(q) => all.quantile(q),
                _ => {
                    let (count, mean) = (all.count() as f64, all.sum() / all.count() as f64);
                    let square = |value: f64| (value - mean) * (value - mean);
                    let squares = all.buckets().map(|b| square(b.mean) * b.count as f64);
                    (count > 0.0).then(|| (squares.sum::<f64>() / count).sqrt())
                }
            };
        }
        match self.aggregate {
            Aggregate::Avg => (self.weight > 0.0).then(|| self.sum / self.weight),
            Aggregate::Last => (self.lasts > 0).then(|| self.sum / f64::from(self.lasts)),
            Aggregate::Min => Some(self.min).filter(|min| min.is_finite()),
            Aggregate::Max => Some(self.max).filter(|max| max.is_finite()),
            Aggregate::Sum => Some(self.sum),
            Aggregate::Count => Some(self.weight),
            Aggregate::Rate => (self.grown > 0).then_some(self.weight),
            Aggregate::Delta => (self.grown > 0).then_some(self.sum),
            Aggregate::Stddev => {
                let count = self.values.len() as f64;
                let mean = sum_of(&self.values) / count;
                let squares: f64 = self.values.iter().map(|v| (v - mean) * (v - mean)).sum();
                (count > 0.0).then(|| (squares / count).sqrt())
            }
            Aggregate::Quantile(q) => quantile(&self.values, q),
        }
    }
}

/// Returns a quantile of numbers, between two of them as `quantile_over_time` of Prometheus does.
fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let rank = q.clamp(0.0, 1.0) * values.len().checked_sub(1)? as f64;
    let below = rank.floor() as usize;
    // Whole numbers in the order of IEEE 754's `totalOrder` are faster to compare.
    let mut keys: Vec<i64> = values.iter().map(|value| order(value.to_bits() as i64)).collect();
    let (_, low, above) = keys.select_nth_unstable(below);
    let high = above.iter().copied().min().unwrap_or(*low);
    let (low, high) = (*low, high);
    let value = |key: i64| f64::from_bits(order(key) as u64);
    let (low, high) = (value(low), value(high));
    let part = rank - below as f64;
    // Two equal numbers give themselves, and no rounding between them.
    Some(if part == 0.0 { low } else { low * (1.0 - part) + high * part })
}

/// Turns the bits of a number into a whole number that sorts as it does, and back.
fn order(bits: i64) -> i64 {
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

/// Numbers that are added up side by side: a processor does several at once, and rounding stays small.
const LANES: usize = 8;

fn sum_of(values: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += if value.is_nan() { 0.0 } else { *value };
        }
    }
    let rest: f64 = rest.iter().filter(|value| !value.is_nan()).sum();
    lanes.iter().sum::<f64>() + rest
}

fn count_of(values: &[f64]) -> f64 {
    values.iter().map(|value| u32::from(!value.is_nan())).sum::<u32>().into()
}

fn min_of(values: &[f64]) -> f64 {
    bound_of(values, f64::INFINITY, |bound, value| value < bound)
}

fn max_of(values: &[f64]) -> f64 {
    bound_of(values, f64::NEG_INFINITY, |bound, value| value > bound)
}

/// A comparison with `NaN` is false, so what is missing never becomes the bound.
fn bound_of(values: &[f64], none: f64, beyond: impl Fn(f64, f64) -> bool) -> f64 {
    let further = |bound: f64, value: f64| if beyond(bound, value) { value } else { bound };
    let mut lanes = [none; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = further(*lane, *value);
        }
    }
    lanes.iter().chain(rest).fold(none, |bound, value| further(bound, *value))
}

fn last_of(values: &[f64]) -> Option<f64> {
    values.iter().rev().copied().find(|value| !value.is_nan())
}
