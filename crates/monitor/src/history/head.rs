//! The head: the table of series, the open blocks of all tiers, and what rolls one into the next.
//!
//! A tick becomes a row of the finest tier and is added to the open row of the next one, whose rows end at
//! multiples of its step: a row that ends at `t` holds the samples after `t - step`, up to and with `t`, as
//! windows do. A row is closed by the first tick behind it, and is then added to the open row of the tier
//! above. A block is closed in the same way, and goes to [`Head::closed`] for the writer; the spans of blocks are
//! such that all rows are closed when a block of the finest tier is.
//!
//! Nothing here reads a clock, a file or a lock, so the replay of the tick log runs through the same code.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::block::{Block, Column, Merged, Piece, Shape};
use super::fold::{increase, row_end};
use super::log::{self, Taken, Tick};
use super::record::{Record, TierKey};
use crate::clock::{Moment, millis};
use crate::histogram::{Distribution, Part};
use crate::registry::{Snapshot, Value};
use crate::selector::Selector;
use crate::series::{Kind, SeriesKey, Unit};

/// Numbers of series from here on belong to this process alone, until the store has given them one.
pub(super) const PROVISIONAL: u32 = 1 << 31;
/// Places in the table for one series at most: those of series that were forgotten are not used again.
const PLACES: usize = 4;
/// A tick this part of a step later than expected is as good as on time.
const ON_TIME: i64 = 50;

/// Closed blocks that wait for a store that hangs, at most; older ones are lost and counted.
const PENDING_MAX: usize = 6;

/// A series of the table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Arc<SeriesKey>,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    /// Ticks of a histogram in its unit.
    pub(super) scale: f64,
    /// Its number in the store.
    pub(super) number: u32,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
    pub(super) ended: bool,
    pub(super) forgotten: bool,
    /// Whether the store has not yet been told of it, or of a change.
    changed: bool,
    /// Whether the open log file knows it.
    logged: bool,
    /// The last total of a counter.
    total: f64,
    /// The last reading of a histogram in this process.
    reading: Option<Arc<Distribution>>,
}

impl Entry {
    fn shape(&self) -> Shape {
        if self.kind == Kind::Histogram { Shape::Distributions } else { Shape::Samples }
    }

    fn rolled_shape(&self) -> Shape {
        match self.kind {
            Kind::Counter => Shape::Counters,
            Kind::Gauge => Shape::Gauges,
            Kind::Histogram => Shape::Distributions,
        }
    }

    pub(super) fn record(&self) -> Record {
        Record {
            number: self.number,
            key: Arc::clone(&self.key),
            kind: self.kind,
            unit: self.unit,
            scale: self.scale,
            first_ms: self.first_ms,
            ended_ms: self.ended.then_some(self.last_ms),
        }
    }
}

/// A row that is still open.
#[derive(Debug, Clone)]
struct Rolling {
    numbers: [f64; 5],
    merged: Merged,
}

impl Rolling {
    /// Starts with a row of the tier below, or with a sample.
    fn new(numbers: [f64; 5]) -> Self {
        Self { numbers, merged: Merged::default() }
    }

    fn gauge(value: f64) -> Self {
        Self::new([value, value, value, 1.0, value])
    }

    fn counter(increase: f64, total: f64) -> Self {
        Self::new([increase, total, 1.0, 0.0, 0.0])
    }

    fn taken(
        count: f64,
        sum: f64,
        total: f64,
        ticks: f64,
        parts: impl Iterator<Item = Part>,
    ) -> Self {
        let mut rolling = Self::new([count, sum, total, ticks, 0.0]);
        for part in parts {
            rolling.merged.add(part.index, part.count, part.position);
        }
        rolling
    }

    /// Adds what came later.
    fn absorb(&mut self, kind: Kind, later: &Self) {
        let (own, new) = (&mut self.numbers, &later.numbers);
        match kind {
            Kind::Gauge => {
                *own = [
                    own[0].min(new[0]),
                    own[1].max(new[1]),
                    own[2] + new[2],
                    own[3] + new[3],
                    new[4],
                ];
            }
            Kind::Counter => *own = [own[0] + new[0], new[1], own[2] + new[2], 0.0, 0.0],
            Kind::Histogram => {
                *own = [own[0] + new[0], own[1] + new[1], new[2], own[3] + new[3], 0.0];
                for part in later.merged.parts() {
                    self.merged.add(part.index, part.count, part.position);
                }
            }
        }
    }
}

/// One tier in memory.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) key: TierKey,
    pub(super) open: Block,
    /// Closed blocks that are kept: the last, and those that the store does not have yet.
    pub(super) closed: VecDeque<Block>,
    /// The open row of each series, and when it ends; not of the finest tier.
    rolling: Vec<Option<Rolling>>,
    row_end: Option<i64>,
    /// The start of the oldest block that the store has.
    pub(super) oldest_ms: i64,
}

impl Tier {
    fn new(key: TierKey) -> Self {
        Self {
            key,
            open: Block::default(),
            closed: VecDeque::new(),
            rolling: Vec::new(),
            row_end: None,
            oldest_ms: i64::MAX,
        }
    }

    /// Returns the start of the block that a moment belongs to.
    pub(super) fn block_start(&self, at_ms: i64) -> i64 {
        row_end(at_ms, self.key.span_ms()).saturating_sub(self.key.span_ms())
    }

    /// Closes the open block if a moment is behind it.
    fn reach(&mut self, at_ms: i64) -> bool {
        let start = self.block_start(at_ms);
        if self.open.begun && start <= self.open.start_ms {
            return false;
        }
        if self.open.times.is_empty() {
            self.open = Block::new(start);
            return false;
        }
        let closed = std::mem::replace(&mut self.open, Block::new(start));
        self.closed.push_back(closed);
        true
    }

    /// Returns where memory begins: older rows are in the store.
    pub(super) fn memory_start(&self) -> i64 {
        let blocks = self.closed.iter().chain([&self.open]);
        let first = blocks.filter(|block| block.begun).map(|block| block.start_ms);
        first.min().unwrap_or(i64::MAX)
    }
}

/// What the writer has to put into the store.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// All ticks up to and with this moment are in these blocks, or were in those before.
    pub(super) until_ms: i64,
    /// So are all rolled rows up to and with this one.
    pub(super) rolled_ms: i64,
    pub(super) blocks: Vec<(TierKey, Block)>,
    /// Places of the series whose records are new.
    pub(super) records: Vec<usize>,
    /// Log files before this one are not needed once all this is in the store.
    pub(super) log: u64,
}

/// What a tick came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taking {
    /// The moment under which it is kept.
    At(i64),
    /// It came less than half a step after the one before.
    TooSoon,
}

/// The state of a history, without its store.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) tiers: Vec<Tier>,
    pub(super) entries: Vec<Entry>,
    by_key: HashMap<Arc<SeriesKey>, usize, FixedState>,
    by_name: HashMap<Arc<str>, Vec<usize>, FixedState>,
    /// The place of each series of the registry.
    by_registry: Vec<Option<usize>>,
    pub(super) generation: u64,
    pub(super) last_ms: Option<i64>,
    monotonic: Option<Duration>,
    series_max: usize,
    series: usize,
    /// Samples of series that had no place.
    pub(super) refused: u64,
    /// Blocks that the writer did not get to in time.
    pub(super) lost: u64,
    /// When the first sample of all that are kept came.
    pub(super) first_ms: i64,
    pub(super) next_number: u32,
    provisional: bool,
    /// Up to where rolled rows were handed to the writer, and whether a block of them was closed since.
    rolled_ms: i64,
    rolled_due: bool,
    /// Whether ticks come from the store, which needs nothing of them.
    replaying: bool,
    pub(super) closed: VecDeque<Closed>,
    /// The log file that ticks go to.
    pub(super) log: u64,
    layout: Vec<u32>,
    tick: Tick,
}

impl Head {
    pub(super) fn new(tiers: &[TierKey], series_max: usize) -> Self {
        Self {
            tiers: tiers.iter().map(|key| Tier::new(*key)).collect(),
            entries: Vec::new(),
            by_key: HashMap::default(),
            by_name: HashMap::default(),
            by_registry: Vec::new(),
            generation: 0,
            last_ms: None,
            monotonic: None,
            series_max,
            series: 0,
            refused: 0,
            lost: 0,
            first_ms: i64::MAX,
            next_number: 1,
            provisional: true,
            rolled_ms: i64::MIN,
            rolled_due: false,
            replaying: false,
            closed: VecDeque::new(),
            log: 1,
            layout: Vec::new(),
            tick: Tick::default(),
        }
    }

    pub(super) fn step_ms(&self) -> i64 {
        i64::from(self.tiers[0].key.step_ms)
    }

    /// Takes the table of a store over; series that are here already keep their places.
    pub(super) fn adopt(&mut self, records: Vec<Record>, next: u32, until_ms: Option<i64>) {
        self.provisional = false;
        self.next_number = self.next_number.max(next);
        for record in records {
            self.next_number = self.next_number.max(record.number.saturating_add(1));
            let known = self.by_key.get(&record.key).copied();
            if let Some(place) = known.filter(|place| self.entries[*place].kind == record.kind) {
                let entry = &mut self.entries[place];
                entry.number = record.number;
                entry.first_ms = entry.first_ms.min(record.first_ms);
                entry.changed = true;
            } else if known.is_none()
                && let Some(place) = self.add_record(&record, until_ms)
            {
                self.entries[place].changed = false;
            }
        }
        for place in 0..self.entries.len() {
            if self.entries[place].number >= PROVISIONAL {
                self.entries[place].number = self.next_number;
                self.entries[place].changed = true;
                self.next_number += 1;
            }
        }
        self.generation += 1;
    }

    /// Adds a series that the store or the log knows.
    pub(super) fn add_record(&mut self, record: &Record, until_ms: Option<i64>) -> Option<usize> {
        if let Some(place) = self.by_key.get(&record.key) {
            return Some(*place);
        }
        let place = self.place(Arc::clone(&record.key), record.kind, record.unit, record.scale)?;
        self.next_number = self.next_number.max(record.number.saturating_add(1));
        let entry = &mut self.entries[place];
        entry.number = record.number;
        entry.first_ms = record.first_ms;
        self.first_ms = self.first_ms.min(record.first_ms);
        entry.last_ms = record.ended_ms.or(until_ms).unwrap_or(record.first_ms);
        entry.ended = record.ended_ms.is_some();
        Some(place)
    }

    /// Makes a place in the table; `None` if it is full.
    fn place(&mut self, key: Arc<SeriesKey>, kind: Kind, unit: Unit, scale: f64) -> Option<usize> {
        if self.series >= self.series_max || self.entries.len() >= PLACES * self.series_max {
            return None;
        }
        let place = self.entries.len();
        let number = if self.provisional {
            PROVISIONAL | place as u32
        } else {
            self.next_number += 1;
            self.next_number - 1
        };
        self.by_key.insert(Arc::clone(&key), place);
        self.by_name.entry(Arc::clone(&key.name)).or_default().push(place);
        self.entries.push(Entry {
            key,
            kind,
            unit,
            scale,
            number,
            first_ms: i64::MAX,
            last_ms: i64::MIN,
            ended: false,
            forgotten: false,
            changed: true,
            logged: false,
            total: f64::NAN,
            reading: None,
        });
        self.series += 1;
        self.generation += 1;
        Some(place)
    }

    /// Forgets series of which nothing is kept any more; returns their numbers in the store.
    pub(super) fn forget_before(&mut self, oldest_ms: i64) -> Vec<u32> {
        let mut numbers = Vec::new();
        for place in 0..self.entries.len() {
            let entry = &mut self.entries[place];
            if !entry.forgotten && entry.ended && entry.last_ms <= oldest_ms {
                entry.forgotten = true;
                numbers.push(entry.number);
                let key = Arc::clone(&entry.key);
                self.by_key.remove(&key);
                if let Some(places) = self.by_name.get_mut(&key.name) {
                    places.retain(|other| *other != place);
                    if places.is_empty() {
                        self.by_name.remove(&key.name);
                    }
                }
                self.series -= 1;
                self.generation += 1;
            }
        }
        numbers
    }

    /// Returns the places of the series that a selector matches, in the order of their keys.
    pub(super) fn matching(&self, selector: &Selector) -> Vec<usize> {
        let places = self.by_name.get(&selector.name).map_or(&[][..], Vec::as_slice);
        let matches = |place: &&usize| selector.matches(&self.entries[**place].key);
        let mut found: Vec<usize> = places.iter().filter(matches).copied().collect();
        found.sort_by(|one, other| self.entries[*one].key.cmp(&self.entries[*other].key));
        found
    }

    /// Returns the names of all series, in order.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = self.by_name.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub(super) fn series(&self) -> usize {
        self.series
    }

    /// Takes a tick in, and writes it as frames of the log if there is one.
    pub(super) fn take(&mut self, snapshot: &Snapshot, frames: Option<&mut Vec<u8>>) -> Taking {
        let Some(at_ms) = self.moment(snapshot.at) else { return Taking::TooSoon };
        self.monotonic = Some(snapshot.at.monotonic);
        let mut tick = std::mem::take(&mut self.tick);
        tick.at_ms = at_ms;
        tick.numbers.clear();
        tick.taken.clear();
        for family in &snapshot.families {
            for series in &family.series {
                let scale = match &series.value {
                    Value::Number(_) => 1.0,
                    Value::Distribution(all) => all.scale(),
                };
                let known = self.by_registry.get(series.id.0 as usize).copied().flatten();
                let known = known.filter(|place| {
                    let entry = &self.entries[*place];
                    !entry.forgotten
                        && (Arc::ptr_eq(&entry.key, &series.key) || entry.key == series.key)
                });
                let place = known.or_else(|| {
                    let place = self.by_key.get(&series.key).copied().or_else(|| {
                        self.place(Arc::clone(&series.key), family.kind, family.unit, scale)
                    })?;
                    // The registry's own key is the one that is met again.
                    self.entries[place].key = Arc::clone(&series.key);
                    let id = series.id.0 as usize;
                    if id >= self.by_registry.len() && id < PLACES * PLACES * self.series_max {
                        self.by_registry.resize(id + 1, None);
                    }
                    if let Some(known) = self.by_registry.get_mut(id) {
                        *known = Some(place);
                    }
                    Some(place)
                });
                let Some(place) = place.filter(|at| self.entries[*at].kind == family.kind) else {
                    self.refused += 1;
                    continue;
                };
                match &series.value {
                    Value::Number(number) if number.is_finite() => {
                        tick.numbers.push((place as u32, *number));
                    }
                    Value::Distribution(all) if scale == self.entries[place].scale => {
                        let taken = self.taken(place, all);
                        tick.taken.push((place as u32, taken));
                    }
                    _ => {}
                }
            }
        }
        self.apply(&tick);
        if let Some(frames) = frames {
            self.write_log(&tick, frames);
        }
        self.tick = tick;
        Taking::At(at_ms)
    }

    /// Returns what a histogram took in since the last tick.
    fn taken(&mut self, place: usize, all: &Arc<Distribution>) -> Taken {
        let before = self.entries[place].reading.replace(Arc::clone(all));
        let total = all.count() as f64;
        let since = match before {
            Some(before) if Arc::ptr_eq(&before, all) => {
                return Taken { total, ..Taken::default() };
            }
            Some(before) => &all.since(&before),
            None => &**all,
        };
        Taken { sum: since.sum(), total, parts: since.parts().to_vec() }
    }

    /// Decides under which moment a tick is kept, always later than the one before.
    ///
    /// Ticks that are a little late count as on time, so that a chunk needs no list of times. If the wall
    /// clock was set back, the distance by the other clock is added to the last moment.
    fn moment(&self, at: Moment) -> Option<i64> {
        let Some(last) = self.last_ms else { return Some(at.unix_ms) };
        let step = self.step_ms();
        let after = |now: i64| now.saturating_sub(last);
        let elapsed = self.monotonic.map_or(step, |before| millis(at.since(before)));
        let now =
            if after(at.unix_ms) < step / 2 { last.saturating_add(elapsed) } else { at.unix_ms };
        if after(now) < step / 2 || after(now) <= 0 {
            return None;
        }
        let late = after(now) % step;
        Some(if late <= step / ON_TIME && late < after(now) { now - late } else { now })
    }

    /// Adds a tick whose series are places of the table; those that are not are passed over.
    pub(super) fn apply(&mut self, tick: &Tick) {
        let at_ms = tick.at_ms;
        if self.last_ms.is_some_and(|last| at_ms <= last) {
            return;
        }
        for tier in 1..self.tiers.len() {
            self.close_row(tier, at_ms);
        }
        if self.tiers[0].reach(at_ms) {
            self.hand_out();
        }
        self.tiers[0].open.begin_row(at_ms);
        self.last_ms = Some(at_ms);
        for (place, value) in &tick.numbers {
            let place = *place as usize;
            let Some(entry) = self.entries.get_mut(place).filter(|e| e.kind != Kind::Histogram)
            else {
                continue;
            };
            self.tiers[0].open.push(place, Shape::Samples, &[*value], &[]);
            let rolling = if entry.kind == Kind::Counter {
                let first = entry.total.is_nan();
                let grown = if first { 0.0 } else { increase(entry.total, *value) };
                entry.total = *value;
                Rolling::counter(grown, *value)
            } else {
                Rolling::gauge(*value)
            };
            self.seen(place, at_ms);
            self.roll(1, place, at_ms, rolling);
        }
        for (place, taken) in &tick.taken {
            let place = *place as usize;
            if self.entries.get(place).is_none_or(|entry| entry.kind != Kind::Histogram) {
                continue;
            }
            let count = taken.parts.iter().map(|part| part.count).sum::<u64>() as f64;
            let numbers = [count, taken.sum, taken.total, 1.0];
            self.tiers[0].open.push(place, Shape::Distributions, &numbers, &taken.parts);
            let parts = taken.parts.iter().copied();
            let rolling = Rolling::taken(count, taken.sum, taken.total, 1.0, parts);
            self.seen(place, at_ms);
            self.roll(1, place, at_ms, rolling);
        }
    }

    fn seen(&mut self, place: usize, at_ms: i64) {
        let entry = &mut self.entries[place];
        entry.last_ms = at_ms;
        self.first_ms = self.first_ms.min(at_ms);
        if entry.first_ms > at_ms || entry.ended {
            entry.first_ms = entry.first_ms.min(at_ms);
            entry.ended = false;
            entry.changed = true;
        }
    }

    /// Adds to the open row of a tier.
    fn roll(&mut self, tier: usize, place: usize, at_ms: i64, new: Rolling) {
        let kind = self.entries[place].kind;
        let Some(tier) = self.tiers.get_mut(tier) else { return };
        tier.row_end.get_or_insert_with(|| row_end(at_ms, i64::from(tier.key.step_ms)));
        if place >= tier.rolling.len() {
            tier.rolling.resize(place + 1, None);
        }
        match &mut tier.rolling[place] {
            Some(rolling) => rolling.absorb(kind, &new),
            empty => *empty = Some(new),
        }
    }

    /// Closes the open row of a tier if a moment is behind it, and adds it to the one above.
    fn close_row(&mut self, at: usize, at_ms: i64) {
        let tier = &mut self.tiers[at];
        let Some(end) = tier.row_end.filter(|end| *end < at_ms) else { return };
        tier.row_end = None;
        let mut rolling = std::mem::take(&mut tier.rolling);
        if tier.open.times.last().is_none_or(|last| *last < end) {
            self.rolled_due |= tier.reach(end);
            tier.open.begin_row(end);
            for (place, row) in rolling.iter().enumerate() {
                let Some(row) = row else { continue };
                let shape = self.entries[place].rolled_shape();
                let parts: Vec<Part> = row.merged.parts().collect();
                tier.open.push(place, shape, &row.numbers[..shape.width()], &parts);
            }
        }
        if at + 1 < self.tiers.len() {
            self.close_row(at + 1, end);
            for (place, row) in rolling.iter_mut().enumerate() {
                if let Some(row) = row.take() {
                    self.roll(at + 1, place, end, row);
                }
            }
        }
        rolling.iter_mut().for_each(|row| *row = None);
        self.tiers[at].rolling = rolling;
    }

    /// Hands what the store does not have to the writer, after a block of the finest tier was closed.
    fn hand_out(&mut self) {
        let tier = &mut self.tiers[0];
        let until_ms = tier
            .closed
            .back()
            .map_or(i64::MIN, |block| block.start_ms.saturating_add(tier.key.span_ms()));
        if self.replaying {
            tier.closed.iter_mut().for_each(|block| block.dirty = false);
            tier.closed.drain(..tier.closed.len().saturating_sub(1));
            return;
        }
        let mut blocks = Vec::new();
        // Open rolled blocks are written when one of the first rolled tier is closed: every few hours. What
        // came since is rolled again from the finest tier when the history is opened.
        if std::mem::take(&mut self.rolled_due) {
            self.rolled_ms = until_ms;
        }
        let written = if self.rolled_ms == until_ms { self.tiers.len() } else { 1 };
        for tier in &mut self.tiers[..written] {
            let dirty = tier.closed.iter_mut().chain([&mut tier.open]).filter(|b| b.dirty);
            for block in dirty.filter(|block| !block.times.is_empty()) {
                block.dirty = false;
                blocks.push((tier.key, block.clone()));
            }
        }
        self.log += 1;
        self.layout.clear();
        let previous = self.tiers[0].closed.back().map_or(i64::MIN, |block| block.start_ms);
        let mut records = Vec::new();
        let entries = self.entries.iter_mut().enumerate();
        for (place, entry) in entries.filter(|(_, entry)| !entry.forgotten) {
            entry.logged = false;
            if !entry.ended && entry.last_ms <= previous {
                entry.ended = true;
                entry.changed = true;
                self.generation += 1;
            }
            if std::mem::take(&mut entry.changed) {
                records.push(place);
            }
        }
        self.closed.push_back(Closed {
            until_ms,
            rolled_ms: self.rolled_ms,
            blocks,
            records,
            log: self.log,
        });
        while self.closed.len() > PENDING_MAX {
            self.closed.pop_front();
            self.lost += 1;
        }
        for tier in &mut self.tiers {
            while tier.closed.len() > PENDING_MAX {
                tier.closed.pop_front();
            }
        }
    }

    /// Closes all rows and blocks as they are.
    pub(super) fn close_all(&mut self) {
        let Some(last) = self.last_ms else { return };
        for tier in 1..self.tiers.len() {
            self.close_row(tier, i64::MAX);
        }
        if self.tiers[0].open.dirty {
            let start = self.tiers[0].open.start_ms;
            let open = std::mem::replace(&mut self.tiers[0].open, Block::new(start));
            self.tiers[0].closed.push_back(open);
            self.rolled_due = true;
            self.hand_out();
            self.rolled_ms = last;
            if let Some(closed) = self.closed.back_mut() {
                (closed.until_ms, closed.rolled_ms) = (last, last);
            }
        }
    }

    /// Marks blocks as being in the store, up to a moment; the last one stays in memory all the same.
    pub(super) fn stored(&mut self, until_ms: i64, rolled_ms: i64) {
        for (at, tier) in self.tiers.iter_mut().enumerate() {
            let until_ms = if at == 0 { until_ms } else { rolled_ms };
            let span_ms = tier.key.span_ms();
            let stored = |block: &Block| block.start_ms.saturating_add(span_ms) <= until_ms;
            while tier.closed.len() > 1 && tier.closed.front().is_some_and(stored) {
                tier.closed.pop_front();
            }
        }
    }

    /// Says everything anew in the log, because some of it was not written.
    pub(super) fn repeat_log(&mut self) {
        self.layout.clear();
        self.entries.iter_mut().for_each(|entry| entry.logged = false);
    }

    fn write_log(&mut self, tick: &Tick, frames: &mut Vec<u8>) {
        let mut renumbered = Tick { at_ms: tick.at_ms, ..Tick::default() };
        let places = tick.numbers.iter().map(|(place, _)| place);
        for place in places.chain(tick.taken.iter().map(|(place, _)| place)) {
            let entry = &mut self.entries[*place as usize];
            if !std::mem::replace(&mut entry.logged, true) {
                log::put_series(frames, &entry.record());
            }
        }
        let number = |place: &u32| self.entries[*place as usize].number;
        renumbered
            .numbers
            .extend(tick.numbers.iter().map(|(place, value)| (number(place), *value)));
        renumbered.taken.extend(tick.taken.iter().map(|(at, taken)| (number(at), taken.clone())));
        log::put_tick(frames, &mut self.layout, &renumbered);
    }

    /// Begins a new log file with all that the store does not have.
    pub(super) fn begin_log(&mut self, frames: &mut Vec<u8>) {
        self.log += 1;
        self.repeat_log();
        let blocks: Vec<Block> = self.tiers[0]
            .closed
            .iter()
            .chain([&self.tiers[0].open])
            .filter(|b| b.dirty)
            .cloned()
            .collect();
        for block in blocks {
            for (row, at_ms) in block.times.iter().enumerate() {
                let mut tick = Tick { at_ms: *at_ms, ..Tick::default() };
                for (place, column) in block.series() {
                    let Some(row) = row.checked_sub(column.begin).filter(|at| *at < column.rows())
                    else {
                        continue;
                    };
                    let value = column.values[0][row];
                    match &column.runs {
                        _ if value.is_nan() => {}
                        None => tick.numbers.push((place as u32, value)),
                        Some(runs) => {
                            let parts = runs.row(row).collect();
                            let (sum, total) = (column.values[1][row], column.values[2][row]);
                            tick.taken.push((place as u32, Taken { sum, total, parts }));
                        }
                    }
                }
                self.write_log(&tick, frames);
            }
        }
    }

    /// Puts a chunk of the store back into memory, as part of the block that is open.
    pub(super) fn restore(&mut self, tier: usize, place: usize, start_ms: i64, piece: &Piece) {
        let block = &mut self.tiers[tier].open;
        if block.start_ms != start_ms || block.columns.is_empty() {
            *block = Block::new(start_ms);
        }
        if place >= block.columns.len() {
            block.columns.resize(place + 1, None);
        }
        // The rows of a block are those of all its series; they are put in place once all are known.
        block.columns[place] = Some(Arc::clone(&piece.column));
        let mut times = Vec::clone(&block.times);
        times.extend(piece.times.iter());
        times.sort_unstable();
        times.dedup();
        let old = std::mem::replace(&mut block.times, Arc::new(times));
        let own = Arc::clone(&piece.times);
        for (other, column) in block.columns.iter_mut().enumerate() {
            let Some(column) = column else { continue };
            let known = if other == place { &own } else { &old };
            if known.len() == block.times.len() && column.begin == 0 {
                continue;
            }
            *column = Arc::new(moved(column, &known[column.begin..], &block.times));
        }
    }

    /// Takes up what the restored rolled blocks say: the last totals, and the rows that are still open.
    pub(super) fn resume(&mut self, rolled_ms: i64) {
        self.rolled_ms = rolled_ms;
        for (place, column) in self.tiers.get(1).iter().flat_map(|tier| tier.open.series()) {
            let entry = &mut self.entries[place];
            if entry.kind == Kind::Counter
                && let Some(total) = column.last(1)
            {
                entry.total = total;
            }
        }
        self.reopen_rows(rolled_ms);
        for tier in 1..self.tiers.len().saturating_sub(1) {
            let done = self.tiers[tier + 1].open.times.last().copied().unwrap_or(i64::MIN);
            let block = self.tiers[tier].open.clone();
            for (row, end) in block.times.iter().enumerate().filter(|(_, end)| **end > done) {
                self.close_row(tier + 1, *end);
                for (place, column) in block.series() {
                    if let Some(rolling) = rolled(column, row) {
                        self.roll(tier + 1, place, *end, rolling);
                    }
                }
            }
        }
    }

    /// Adds a tick of the store again: to the block in memory, and to rolled rows that the store lacks.
    pub(super) fn replay_stored(&mut self, tick: &Tick) {
        self.replaying = true;
        if tick.at_ms > self.rolled_ms {
            self.apply(tick);
        } else if self.last_ms.is_none_or(|last| tick.at_ms > last) {
            if self.tiers[0].reach(tick.at_ms) {
                self.hand_out();
            }
            self.tiers[0].open.begin_row(tick.at_ms);
            self.last_ms = Some(tick.at_ms);
            for (place, value) in &tick.numbers {
                self.tiers[0].open.push(*place as usize, Shape::Samples, &[*value], &[]);
                self.entries[*place as usize].total = *value;
            }
            for (place, taken) in &tick.taken {
                let count = taken.parts.iter().map(|part| part.count).sum::<u64>() as f64;
                let numbers = [count, taken.sum, taken.total, 1.0];
                let place = *place as usize;
                self.tiers[0].open.push(place, Shape::Distributions, &numbers, &taken.parts);
            }
        }
        self.tiers[0].open.dirty = false;
        self.replaying = false;
    }

    /// Opens the rows again that were closed before their end, because the history was.
    fn reopen_rows(&mut self, until_ms: i64) {
        for (at, tier) in self.tiers.iter_mut().enumerate().skip(1) {
            let Some(end) = tier.open.times.last().copied().filter(|end| *end > until_ms) else {
                continue;
            };
            let row = tier.open.times.len() - 1;
            Arc::make_mut(&mut tier.open.times).pop();
            // The rows of the tiers above are made anew of the rows below.
            let kept = (at == 1).then_some(&mut tier.rolling);
            let mut reopened = Vec::new();
            for column in &mut tier.open.columns {
                let open = column.as_mut().filter(|column| column.begin + column.rows() == row + 1);
                reopened.push(open.as_ref().and_then(|column| rolled(column, row)));
                if let Some(open) = open {
                    Arc::make_mut(open).pop();
                }
                if column.as_ref().is_some_and(|column| column.rows() == 0) {
                    *column = None;
                }
            }
            if let Some(kept) = kept {
                *kept = reopened;
                tier.row_end = Some(end);
            }
        }
    }

    /// Returns the open row of a series in a tier, with those of the tiers below, under the last moment.
    pub(super) fn open_row(&self, tier: usize, place: usize) -> Option<Piece> {
        let last_ms = self.last_ms?;
        let entry = self.entries.get(place)?;
        let mut all: Option<Rolling> = None;
        for below in (1..=tier).rev() {
            let Some(Some(row)) = self.tiers[below].rolling.get(place) else { continue };
            match &mut all {
                Some(all) => all.absorb(entry.kind, row),
                None => all = Some(row.clone()),
            }
        }
        let row = all?;
        let shape = entry.rolled_shape();
        let mut column = Column::new(shape, 0);
        let parts: Vec<Part> = row.merged.parts().collect();
        column.push(0, &row.numbers[..shape.width()], &parts);
        Some(Piece { times: Arc::new(vec![last_ms]), column: Arc::new(column) })
    }

    /// Returns what memory has of a series in a tier, in the order of time.
    pub(super) fn pieces(&self, tier: usize, place: usize, out: &mut Vec<Piece>) {
        let blocks = self.tiers[tier].closed.iter().chain([&self.tiers[tier].open]);
        for block in blocks {
            if let Some(column) = block.column(place) {
                let (times, column) = (Arc::clone(&block.times), Arc::clone(column));
                out.push(Piece { times, column });
            }
        }
        if tier > 0 {
            out.extend(self.open_row(tier, place));
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let blocks = self.tiers.iter().flat_map(|tier| tier.closed.iter().chain([&tier.open]));
        blocks.map(Block::bytes).sum::<usize>() + self.entries.len() * size_of::<Entry>()
    }

    /// Whether series have the shape that a chunk says.
    pub(super) fn fits(&self, tier: usize, place: usize, column: &Column) -> bool {
        let entry = &self.entries[place];
        column.shape == if tier == 0 { entry.shape() } else { entry.rolled_shape() }
    }
}

/// Returns a column whose rows stand where their times stand among others.
fn moved(column: &Column, times: &[i64], all: &[i64]) -> Column {
    let row_of = |at: &i64| all.partition_point(|other| other < at);
    let begin = times.first().map_or(0, row_of);
    let mut to = Column::new(column.shape, begin);
    for row in 0..column.rows() {
        let numbers: Vec<f64> =
            column.values[..column.shape.width()].iter().map(|values| values[row]).collect();
        if numbers[0].is_nan() {
            continue;
        }
        let parts: Vec<Part> = column.runs.iter().flat_map(|runs| runs.row(row)).collect();
        to.push(row_of(&times[row]), &numbers, &parts);
    }
    to
}

/// Returns a row of a rolled column.
fn rolled(column: &Column, row: usize) -> Option<Rolling> {
    let row = row.checked_sub(column.begin).filter(|row| *row < column.rows())?;
    let number = |meaning: usize| column.values[meaning][row];
    if number(0).is_nan() {
        return None;
    }
    Some(match column.shape {
        Shape::Samples => return None,
        Shape::Gauges => Rolling::new([number(0), number(1), number(2), number(3), number(4)]),
        Shape::Counters => Rolling::new([number(0), number(1), number(2), 0.0, 0.0]),
        Shape::Distributions => {
            let parts = column.runs.iter().flat_map(|runs| runs.row(row));
            Rolling::taken(number(0), number(1), number(2), number(3), parts)
        }
    })
}
