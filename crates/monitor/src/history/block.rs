//! Rows of samples in columns, as they stand in memory: what is written to and read from.
//!
//! A [`Block`] is a stretch of one tier. Its rows are the ticks of the finest tier, or the minutes and the
//! hours of the others, so the times are shared by all series and kept once. A [`Column`] is what one
//! series has in these rows: plain numbers one after the other, which a loop adds up at the speed of
//! memory. A row that a series does not have is `NaN`; samples that are not finite are never taken in.
//!
//! Columns and times are behind an `Arc`: whoever reads or writes out a block takes a clone of the
//! pointers, and a push copies the column only if such a clone is still alive.

use std::ops::Range;
use std::sync::Arc;

use crate::histogram::{Distribution, Part};

/// Columns of numbers that the widest shape has.
pub(super) const WIDTH: usize = 5;
/// Rows after which a sum of the parts so far is kept, so that long windows merge less.
const GROUP: usize = 32;
/// Values that a part in memory counts at most; more take several.
const PART_MAX: u64 = u32::MAX as u64 / 16;

/// What the numbers of a column mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Samples of a gauge or totals of a counter: the value.
    Samples,
    /// Rolled samples of a gauge: least, greatest, sum, number and last.
    Gauges,
    /// Rolled totals of a counter: increase, last and number.
    Counters,
    /// What a histogram took in: count, sum, total count up to then, and number of ticks.
    Distributions,
}

impl Shape {
    pub(super) fn width(self) -> usize {
        match self {
            Self::Samples => 1,
            Self::Gauges => 5,
            Self::Counters => 3,
            Self::Distributions => 4,
        }
    }
}

/// Parts of distributions, one run of them for each row.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    /// Where the run of a row ends.
    pub(super) ends: Vec<u32>,
    pub(super) index: Vec<u16>,
    pub(super) count: Vec<u32>,
    pub(super) position: Vec<u32>,
    /// The sum of each full group of rows; only where rows are being added.
    groups: Vec<Vec<Part>>,
}

impl Runs {
    /// Returns runs that were read.
    pub(super) fn read(
        ends: Vec<u32>,
        index: Vec<u16>,
        count: Vec<u32>,
        position: Vec<u32>,
    ) -> Self {
        Self { ends, index, count, position, groups: Vec::new() }
    }

    fn push(&mut self, parts: &[Part]) {
        for part in parts {
            let (mut count, mut position) = (part.count, part.position);
            while count > 0 {
                let taken = count.min(PART_MAX);
                let share = u128::from(position) * u128::from(taken) / u128::from(count);
                let share = u32::try_from(share).unwrap_or(u32::MAX);
                self.index.push(part.index);
                self.count.push(taken as u32);
                self.position.push(share);
                count -= taken;
                position = position.saturating_sub(u64::from(share));
            }
        }
        self.ends.push(self.index.len() as u32);
        let rows = self.ends.len();
        if rows.is_multiple_of(GROUP) && self.groups.len() + 1 == rows / GROUP {
            let mut merged = Merged::default();
            self.add_entries(self.entries(rows - GROUP..rows), &mut merged);
            self.groups.push(merged.parts().collect());
        }
    }

    fn entries(&self, rows: Range<usize>) -> Range<usize> {
        let end = |row: usize| if row == 0 { 0 } else { self.ends[row - 1] as usize };
        end(rows.start)..end(rows.end)
    }

    fn add_entries(&self, entries: Range<usize>, merged: &mut Merged) {
        let counts = &self.count[entries.clone()];
        let positions = &self.position[entries.clone()];
        for ((index, count), position) in self.index[entries].iter().zip(counts).zip(positions) {
            merged.add(*index, u64::from(*count), u64::from(*position));
        }
    }

    /// Adds the parts of some rows.
    pub(super) fn merge(&self, rows: Range<usize>, merged: &mut Merged) {
        let (first, last) = (rows.start.div_ceil(GROUP), rows.end / GROUP);
        if first >= last || last > self.groups.len() {
            return self.add_entries(self.entries(rows), merged);
        }
        self.add_entries(self.entries(rows.start..first * GROUP), merged);
        for part in self.groups[first..last].iter().flatten() {
            merged.add(part.index, part.count, part.position);
        }
        self.add_entries(self.entries(last * GROUP..rows.end), merged);
    }

    /// Returns the parts of one row, in the order in which they came.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = Part> + '_ {
        self.entries(row..row + 1).map(|at| Part {
            index: self.index[at],
            count: u64::from(self.count[at]),
            position: u64::from(self.position[at]),
        })
    }

    fn bytes(&self) -> usize {
        let groups: usize = self.groups.iter().map(Vec::len).sum();
        self.ends.capacity() * 4 + self.index.capacity() * 10 + groups * size_of::<Part>()
    }
}

/// The sum of distributions, by bucket from the least that there is.
#[derive(Debug, Clone, Default)]
pub(super) struct Merged {
    first: usize,
    /// Count and position.
    cells: Vec<(u64, u64)>,
}

impl Merged {
    pub(super) fn add(&mut self, index: u16, count: u64, position: u64) {
        let index = usize::from(index);
        if self.cells.is_empty() {
            self.first = index;
        } else if index < self.first {
            // Room for a power of two at once, so that a descending run does not move everything each time.
            let first = index.saturating_sub(31);
            let more = self.first - first;
            self.cells.splice(0..0, std::iter::repeat_n((0, 0), more));
            self.first = first;
        }
        let at = index - self.first;
        if at >= self.cells.len() {
            self.cells.resize(at + 1, (0, 0));
        }
        let cell = &mut self.cells[at];
        cell.0 = cell.0.saturating_add(count);
        cell.1 = cell.1.saturating_add(position);
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let cells = self.cells.iter().enumerate().filter(|(_, (count, _))| *count > 0);
        cells.map(|(at, (count, position))| Part {
            index: (self.first + at) as u16,
            count: *count,
            position: *position,
        })
    }

    pub(super) fn distribution(&self, scale: f64) -> Distribution {
        Distribution::from_parts(scale, self.parts())
    }
}

/// What one series has in the rows of a block.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) shape: Shape,
    /// The row of the block that is the first here.
    pub(super) begin: usize,
    /// Numbers by what they mean and by row; those that were not asked for are empty.
    pub(super) values: [Vec<f64>; WIDTH],
    pub(super) runs: Option<Runs>,
    /// Rows between others that the series does not have.
    pub(super) holes: u32,
    /// Rows whose value is less than the one before; of a counter each is a reset.
    pub(super) falls: u32,
    rows: usize,
    last: f64,
}

impl Column {
    pub(super) fn new(shape: Shape, begin: usize) -> Self {
        let runs = (shape == Shape::Distributions).then(Runs::default);
        let values = [const { Vec::new() }; WIDTH];
        Self { shape, begin, values, runs, holes: 0, falls: 0, rows: 0, last: f64::NAN }
    }

    /// Returns a column of numbers that were read; `rows` of them in each that is not empty.
    pub(super) fn read(
        shape: Shape,
        rows: usize,
        values: [Vec<f64>; WIDTH],
        runs: Option<Runs>,
    ) -> Self {
        let mut column = Self { rows, values, runs, ..Self::new(shape, 0) };
        if shape == Shape::Samples {
            let values = &column.values[0];
            column.falls = values.windows(2).filter(|pair| pair[1] < pair[0]).count() as u32;
            column.last = values.last().copied().unwrap_or(f64::NAN);
        }
        column
    }

    /// Rows from `begin` on.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row of the block; rows between the last and this one are missing.
    pub(super) fn push(&mut self, row: usize, numbers: &[f64], parts: &[Part]) {
        debug_assert_eq!(numbers.len(), self.shape.width());
        while self.begin + self.rows < row {
            self.values[..numbers.len()].iter_mut().for_each(|column| column.push(f64::NAN));
            self.runs.iter_mut().for_each(|runs| runs.push(&[]));
            self.rows += 1;
            self.holes += 1;
        }
        for (column, number) in self.values.iter_mut().zip(numbers) {
            column.push(*number);
        }
        self.runs.iter_mut().for_each(|runs| runs.push(parts));
        self.falls += u32::from(numbers[0] < self.last);
        self.last = numbers[0];
        self.rows += 1;
    }

    /// Takes the last row away.
    pub(super) fn pop(&mut self) {
        for values in &mut self.values {
            values.pop();
        }
        if let Some(runs) = &mut self.runs {
            runs.ends.pop();
            let end = runs.ends.last().map_or(0, |end| *end as usize);
            runs.index.truncate(end);
            runs.count.truncate(end);
            runs.position.truncate(end);
            runs.groups.truncate(runs.ends.len() / GROUP);
        }
        self.rows = self.rows.saturating_sub(1);
    }

    /// Whether the series has a row, counted from `begin`.
    pub(super) fn has(&self, row: usize) -> bool {
        self.holes == 0
            || !self.values.iter().any(|column| column.get(row).is_some_and(|v| v.is_nan()))
    }

    /// Returns the number of the given meaning in the last row that is there.
    pub(super) fn last(&self, meaning: usize) -> Option<f64> {
        self.values[meaning].iter().rev().copied().find(|value| !value.is_nan())
    }

    fn bytes(&self) -> usize {
        let values: usize = self.values.iter().map(Vec::capacity).sum();
        size_of::<Self>() + values * 8 + self.runs.as_ref().map_or(0, Runs::bytes)
    }
}

/// A stretch of a tier: after `start_ms`, up to and with `start_ms` and the span of the tier's chunks.
#[derive(Debug, Clone, Default)]
pub(super) struct Block {
    pub(super) start_ms: i64,
    pub(super) times: Arc<Vec<i64>>,
    /// By the number of the series in this process.
    pub(super) columns: Vec<Option<Arc<Column>>>,
    /// Whether it has rows that were not handed to the store.
    pub(super) dirty: bool,
    /// Whether it stands for a stretch of time, with rows or not yet.
    pub(super) begun: bool,
}

impl Block {
    pub(super) fn new(start_ms: i64) -> Self {
        Self { start_ms, begun: true, ..Self::default() }
    }

    /// Adds a row for all series; it has to be later than the one before.
    pub(super) fn begin_row(&mut self, at_ms: i64) {
        debug_assert!(self.times.last().is_none_or(|last| *last < at_ms));
        Arc::make_mut(&mut self.times).push(at_ms);
        self.dirty = true;
    }

    /// Adds what a series has in the row that was begun last.
    pub(super) fn push(&mut self, series: usize, shape: Shape, numbers: &[f64], parts: &[Part]) {
        if series >= self.columns.len() {
            self.columns.resize(series + 1, None);
        }
        let row = self.times.len() - 1;
        let column = self.columns[series].get_or_insert_with(|| Arc::new(Column::new(shape, row)));
        Arc::make_mut(column).push(row, numbers, parts);
    }

    /// Returns what a series has.
    pub(super) fn column(&self, series: usize) -> Option<&Arc<Column>> {
        self.columns.get(series)?.as_ref()
    }

    /// Returns the series that have something, in the order of their numbers.
    pub(super) fn series(&self) -> impl Iterator<Item = (usize, &Arc<Column>)> {
        let columns = self.columns.iter().enumerate();
        columns.filter_map(|(series, column)| Some((series, column.as_ref()?)))
    }

    pub(super) fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().flatten().map(|column| column.bytes()).sum();
        columns + self.times.capacity() * 8 + self.columns.capacity() * 8
    }
}

/// Rows of one series with their times, in memory or just read.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) times: Arc<Vec<i64>>,
    pub(super) column: Arc<Column>,
}

impl Piece {
    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.times, &self.column)
    }
}

/// Rows of one series with their times.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) times: &'a [i64],
    pub(super) column: &'a Column,
}

impl<'a> View<'a> {
    pub(super) fn new(times: &'a [i64], column: &'a Column) -> Self {
        Self { times: &times[column.begin..column.begin + column.rows], column }
    }

    /// The rows after `from_ms`, up to and with `to_ms`.
    pub(super) fn rows(&self, from_ms: i64, to_ms: i64) -> Range<usize> {
        let start = self.times.partition_point(|at| *at <= from_ms);
        let inside = self.times[start..].partition_point(|at| *at <= to_ms);
        start..start + inside
    }
}
