//! The thread that writes: the tick log, closed blocks, and what is too old or too much away.
//!
//! A tick never waits for a medium: its frames go into a queue, and a closed block waits in the head until
//! this thread fetches it. Everything that belongs to a block - chunks of all tiers, new series, how far the
//! store is - goes into one batch, so the store is always at the end of a block; then the log file of that block is
//! removed. When the process dies in between, the replay passes over the ticks that are in the store.
//!
//! If the store cannot be opened or written, chunks go to memory ([`Shared::memory`]) within its limit, the
//! oldest making room. From time to time the store is opened again; then the numbers that series had in
//! the meantime are replaced by those of the store, and what waited in memory is merged in.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use parking_lot::RwLock;

use super::block::{Column, Piece, View};
use super::chunk::{self, Wanted};
use super::head::{Closed, Head, PROVISIONAL};
use super::log::{Frame, Logs, Taken, Tick};
use super::record::{self, Marks, Record, TierKey};
use super::store::{Change, HistoryStore, MemoryStore};
use super::{HistoryOptions, Reason};

/// Opens the store, at the start and again after it failed.
pub(super) type Opener = Box<dyn Fn() -> io::Result<Box<dyn HistoryStore>> + Send + Sync>;

/// What the thread is asked to do.
pub(super) enum Job {
    /// Write frames of the log; `now` counts the time to the next try of a failed store.
    Tick { log: u64, frames: Vec<u8>, now: Duration },
    /// Look whether blocks were closed.
    Closed,
    /// Say when all of the above is written and on the medium.
    Flush(SyncSender<io::Result<()>>),
    /// End; close the open blocks too if there is no log that has them.
    Stop,
}

/// What the thread and those who query share.
pub(super) struct Shared {
    pub(super) head: RwLock<Head>,
    pub(super) disk: RwLock<Option<Arc<dyn HistoryStore>>>,
    pub(super) memory: MemoryStore,
    pub(super) degraded: RwLock<Option<Reason>>,
    pub(super) options: HistoryOptions,
    /// Chunks that could not be read.
    pub(super) damaged: AtomicU64,
    /// Bytes that were cut off logs.
    pub(super) torn_bytes: AtomicU64,
    /// Blocks that found no place.
    pub(super) lost: AtomicU64,
    /// Bytes of the chunks of all tiers.
    pub(super) chunk_bytes: AtomicU64,
}

impl Shared {
    fn degrade(&self, reason: Reason) {
        let mut degraded = self.degraded.write();
        if degraded.as_ref() != Some(&reason) {
            tracing::warn!(%reason, "the history is kept in memory only");
        }
        *degraded = Some(reason);
    }
}

/// Bytes of the chunks of each block, by tier.
pub(super) type Blocks = Vec<BTreeMap<i64, u64>>;

/// A store as it was found.
pub(super) struct Loaded {
    pub(super) head: Head,
    pub(super) blocks: Blocks,
    pub(super) torn_bytes: u64,
    pub(super) damaged: u64,
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// Reads how far a store is and the series in it.
fn read_tables(store: &dyn HistoryStore) -> io::Result<(Option<Marks>, Vec<Record>)> {
    let (mut marks, mut unknown) = (None, false);
    store.scan(&record::MARKS, &record::SERIES, &mut |_, value| {
        marks = Marks::decode(value);
        unknown = marks.is_none();
        true
    })?;
    if unknown {
        return Err(invalid("the history was written in a format that this program does not know"));
    }
    let mut records = Vec::new();
    store.scan(&record::SERIES, &record::SERIES_END, &mut |_, value| {
        records.extend(Record::decode(value));
        true
    })?;
    Ok((marks, records))
}

/// Reads the sizes of blocks; those of tiers that are no longer configured are removed with their chunks.
fn read_blocks(store: &dyn HistoryStore, tiers: &[TierKey], numbers: &[u32]) -> io::Result<Blocks> {
    let mut blocks = vec![BTreeMap::new(); tiers.len()];
    let mut obsolete = Vec::new();
    store.scan(&record::BLOCKS, &record::BLOCKS_END, &mut |key, value| {
        if let Some((tier, start_ms)) = record::read_block_key(key) {
            match tiers.iter().position(|other| *other == tier) {
                Some(at) => {
                    let bytes = value.try_into().map_or(0, u64::from_le_bytes);
                    blocks[at].insert(start_ms, bytes);
                }
                None => obsolete.push((tier, start_ms)),
            }
        }
        true
    })?;
    for (tier, start_ms) in obsolete {
        store.write(&removal(tier, start_ms, numbers.iter().copied()))?;
    }
    Ok(blocks)
}

fn removal(tier: TierKey, start_ms: i64, numbers: impl Iterator<Item = u32>) -> Vec<Change> {
    let chunks = numbers.map(|number| Change::Delete(record::chunk_key(tier, number, start_ms)));
    chunks.chain([Change::Delete(record::block_key(tier, start_ms))]).collect()
}

/// Reads one value.
fn get(store: &dyn HistoryStore, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut found = None;
    let until = [key, &[0]].concat();
    store.scan(key, &until, &mut |_, value| {
        found = Some(value.to_vec());
        false
    })?;
    Ok(found)
}

/// Reads a store and replays its logs.
pub(super) fn load(
    store: &dyn HistoryStore,
    tiers: &[TierKey],
    options: &HistoryOptions,
    logs: Option<(&Logs, &[u64])>,
) -> io::Result<Loaded> {
    let (marks, records) = read_tables(store)?;
    let numbers: Vec<u32> = records.iter().map(|record| record.number).collect();
    let blocks = read_blocks(store, tiers, &numbers)?;
    let mut head = Head::new(tiers, options.series);
    head.adopt(records, marks.map_or(1, |marks| marks.next), marks.map(|marks| marks.until_ms));
    let mut damaged = 0;
    if let Some(marks) = marks {
        for tier in 1..tiers.len() {
            let start_ms = head.tiers[tier].block_start(marks.rolled_ms);
            for (place, piece) in read_block(store, &head, tier, start_ms, &mut damaged)? {
                head.restore(tier, place, start_ms, &piece);
            }
        }
        head.resume(marks.rolled_ms);
        let first_ms = head.tiers[0].block_start(marks.rolled_ms.min(marks.until_ms));
        for start_ms in blocks[0].range(first_ms..).map(|(start_ms, _)| *start_ms) {
            let pieces = read_block(store, &head, 0, start_ms, &mut damaged)?;
            replay_block(&mut head, &pieces);
        }
        head.last_ms = head.last_ms.max(Some(marks.until_ms));
        for (tier, blocks) in head.tiers.iter_mut().zip(&blocks) {
            tier.oldest_ms = blocks.keys().next().copied().unwrap_or(i64::MAX);
        }
    }
    let mut torn_bytes = 0;
    let (logs, sequences) = logs.map_or((None, &[][..]), |(logs, all)| (Some(logs), all));
    for sequence in sequences {
        let Some(logs) = logs else { break };
        let (frames, torn) = logs.replay(*sequence)?;
        torn_bytes += torn;
        replay(&mut head, frames);
    }
    // Which files are no longer needed shows when the next block is closed.
    head.closed.iter_mut().for_each(|closed| closed.log = 0);
    head.log = sequences.last().map_or(1, |last| last + 1);
    Ok(Loaded { head, blocks, torn_bytes, damaged })
}

/// Reads the chunks of a block.
fn read_block(
    store: &dyn HistoryStore,
    head: &Head,
    tier: usize,
    start_ms: i64,
    damaged: &mut u64,
) -> io::Result<Vec<(usize, Piece)>> {
    let mut pieces = Vec::new();
    for (place, entry) in head.entries.iter().enumerate() {
        let key = record::chunk_key(head.tiers[tier].key, entry.number, start_ms);
        let Some(bytes) = get(store, &key)? else { continue };
        match chunk::decode(&bytes, Wanted::ALL) {
            Ok(piece) if head.fits(tier, place, &piece.column) => pieces.push((place, piece)),
            _ => *damaged += 1,
        }
    }
    Ok(pieces)
}

/// Takes the ticks of a block in again, in the order of time.
fn replay_block(head: &mut Head, pieces: &[(usize, Piece)]) {
    let mut times: Vec<i64> =
        pieces.iter().flat_map(|(_, piece)| piece.times.iter().copied()).collect();
    times.sort_unstable();
    times.dedup();
    let mut rows = vec![0; pieces.len()];
    let mut tick = Tick::default();
    for at_ms in times {
        (tick.at_ms, tick.numbers, tick.taken) = (at_ms, Vec::new(), Vec::new());
        for ((place, piece), next) in pieces.iter().zip(&mut rows) {
            if piece.times.get(*next) != Some(&at_ms) {
                continue;
            }
            let (row, column) = (*next, &piece.column);
            *next += 1;
            match &column.runs {
                None => tick.numbers.push((*place as u32, column.values[0][row])),
                Some(runs) => {
                    let (sum, total) = (column.values[1][row], column.values[2][row]);
                    let parts = runs.row(row).collect();
                    tick.taken.push((*place as u32, Taken { sum, total, parts }));
                }
            }
        }
        head.replay_stored(&tick);
    }
}

fn replay(head: &mut Head, frames: Vec<Frame>) {
    let mut places = hashbrown::HashMap::<u32, u32, foldhash::fast::FixedState>::default();
    for frame in frames {
        match frame {
            Frame::Series(record) => {
                if let Some(place) = head.add_record(&record, None) {
                    places.insert(record.number, place as u32);
                }
            }
            Frame::Tick(mut tick) => {
                tick.numbers.retain_mut(|(series, _)| place_of(&places, series));
                tick.taken.retain_mut(|(series, _)| place_of(&places, series));
                head.apply(&tick);
            }
        }
    }
}

fn place_of(
    places: &hashbrown::HashMap<u32, u32, foldhash::fast::FixedState>,
    series: &mut u32,
) -> bool {
    let place = places.get(series);
    if let Some(place) = place {
        *series = *place;
    }
    place.is_some()
}

/// The thread's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) opener: Option<Opener>,
    pub(super) logs: Option<Logs>,
    /// Log files of an earlier process that could not be replayed yet.
    pub(super) unread: Vec<u64>,
    pub(super) blocks: Blocks,
    /// Frames for log files before this one are in the store or in the newer file.
    pub(super) log_from: u64,
    pub(super) next_try: Option<Duration>,
}

impl Writer {
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        self.write_closed();
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Tick { log, frames, now } => self.tick(log, &frames, now),
                Job::Closed => self.write_closed(),
                Job::Flush(done) => {
                    self.write_closed();
                    // Whoever asked may have gone.
                    let _ = done.send(self.flush());
                }
                Job::Stop => break,
            }
        }
        self.write_closed();
        if self.logs.is_none() || self.is_degraded() {
            self.shared.head.write().close_all();
            self.write_closed();
        }
        let _ = self.flush();
        *self.shared.disk.write() = None;
    }

    fn is_degraded(&self) -> bool {
        self.shared.degraded.read().is_some()
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(reason) = &*self.shared.degraded.read() {
            return Err(io::Error::other(reason.to_string()));
        }
        if let Some(logs) = &self.logs {
            logs.sync()?;
        }
        self.shared.disk.read().as_ref().map_or(Ok(()), |disk| disk.flush())
    }

    fn tick(&mut self, log: u64, frames: &[u8], now: Duration) {
        if self.is_degraded() {
            let due = *self.next_try.get_or_insert(now + self.shared.options.retry);
            if now >= due {
                self.next_try = Some(now + self.shared.options.retry);
                if let Err(error) = self.recover() {
                    self.shared.degrade(Reason::of(&error, false));
                }
            }
        } else if log >= self.log_from
            && let Some(logs) = &mut self.logs
            && let Err(error) = logs.append(log, frames)
        {
            // A torn frame would hide those behind it.
            logs.close();
            self.shared.degrade(Reason::of(&error, true));
        }
    }

    fn write_closed(&mut self) {
        loop {
            let closed = self.shared.head.write().closed.pop_front();
            let Some(closed) = closed else { return };
            self.write_block(&closed);
        }
    }

    fn write_block(&mut self, closed: &Closed) {
        let (changes, sizes) = self.changes_of(closed);
        let disk = self.shared.disk.read().clone().filter(|_| !self.is_degraded());
        let mut on_disk = false;
        if let Some(disk) = disk {
            match disk.write(&changes) {
                Ok(()) => on_disk = true,
                Err(error) => self.shared.degrade(Reason::of(&error, true)),
            }
        }
        if !on_disk && !self.keep_in_memory(&changes) {
            self.shared.lost.fetch_add(1, Relaxed);
        }
        for (tier, start_ms, bytes) in sizes {
            self.blocks[tier].insert(start_ms, bytes);
        }
        self.remove_old(closed.until_ms, on_disk);
        self.shared.head.write().stored(closed.until_ms, closed.rolled_ms);
        if on_disk
            && let Some(logs) = &self.logs
            && let Err(error) = logs.remove_before(closed.log)
        {
            tracing::warn!(%error, "an old tick log stays");
        }
    }

    /// Returns what a block changes in the store, and the bytes of its chunks by tier and start.
    fn changes_of(&self, closed: &Closed) -> (Vec<Change>, Vec<(usize, i64, u64)>) {
        let head = self.shared.head.read();
        let numbers: Vec<u32> = head.entries.iter().map(|entry| entry.number).collect();
        let places = closed.records.iter().filter_map(|place| head.entries.get(*place));
        let records: Vec<Record> = places.map(super::head::Entry::record).collect();
        let next = head.next_number;
        drop(head);
        let mut changes = Vec::new();
        let mut sizes = Vec::new();
        for (tier, block) in &closed.blocks {
            let mut bytes = 0;
            for (place, column) in block.series() {
                let view = View::new(&block.times, column);
                if let Some(chunk) = chunk::encode(&view, i64::from(tier.step_ms)) {
                    let key = record::chunk_key(*tier, numbers[place], block.start_ms);
                    bytes += (key.len() + chunk.len()) as u64;
                    changes.push(Change::Put(key, chunk));
                }
            }
            let key = record::block_key(*tier, block.start_ms);
            changes.push(Change::Put(key, bytes.to_le_bytes().to_vec()));
            if let Some(at) = self.tier_of(*tier) {
                sizes.push((at, block.start_ms, bytes));
            }
        }
        for record in records {
            changes.push(Change::Put(record::series_key(record.number), record.encode()));
        }
        let Closed { until_ms, rolled_ms, .. } = *closed;
        let marks = Marks { until_ms, rolled_ms, next };
        changes.push(Change::Put(record::MARKS.to_vec(), marks.encode()));
        (changes, sizes)
    }

    fn tier_of(&self, key: TierKey) -> Option<usize> {
        self.shared.head.read().tiers.iter().position(|tier| tier.key == key)
    }

    /// Puts changes into memory, the oldest blocks making room; whether there was room.
    fn keep_in_memory(&mut self, changes: &[Change]) -> bool {
        while self.shared.memory.write(changes).is_err() {
            // The tier that takes the most gives way, its oldest block first.
            let mut tiers: Vec<(u64, TierKey, i64)> = Vec::new();
            for (key, value) in self.shared.memory.all() {
                let Some((tier, _, start_ms)) = record::read_chunk_key(&key) else { continue };
                match tiers.iter_mut().find(|(_, other, _)| *other == tier) {
                    Some((bytes, _, first)) => {
                        *bytes += value.len() as u64;
                        *first = start_ms.min(*first);
                    }
                    None => tiers.push((value.len() as u64, tier, start_ms)),
                }
            }
            let Some((_, tier, start_ms)) = tiers.into_iter().max_by_key(|(bytes, ..)| *bytes)
            else {
                return false;
            };
            let old = self.shared.memory.all().into_iter().map(|(key, _)| key).filter(|key| {
                record::read_chunk_key(key).is_some_and(|(t, _, at)| (t, at) == (tier, start_ms))
            });
            let old = old.chain([record::block_key(tier, start_ms)]).map(Change::Delete);
            if self.shared.memory.write(&old.collect::<Vec<_>>()).is_err() {
                return false;
            }
            if self.shared.disk.read().is_none()
                && let Some(at) = self.tier_of(tier)
            {
                self.blocks[at].remove(&start_ms);
            }
        }
        true
    }

    /// Removes what is older or more than its tier allows, and series of which nothing is left.
    fn remove_old(&mut self, until_ms: i64, on_disk: bool) {
        let mut changes = Vec::new();
        let mut kept_ms = 0;
        let mut all_bytes = 0;
        for at in 0..self.blocks.len() {
            let options = &self.shared.options.tiers[at];
            let keep_ms = crate::clock::millis(options.keep);
            kept_ms = kept_ms.max(keep_ms);
            let limit_bytes = options.limit_bytes;
            let mut bytes: u64 = self.blocks[at].values().sum();
            while let Some((&start_ms, &size)) = self.blocks[at].first_key_value() {
                let head = self.shared.head.read();
                let tier = head.tiers[at].key;
                let end_ms = start_ms.saturating_add(tier.span_ms());
                let too_old = end_ms <= until_ms.saturating_sub(keep_ms);
                let too_much = bytes > limit_bytes && self.blocks[at].len() > 1;
                if !too_old && !too_much {
                    break;
                }
                let entries = head.entries.iter();
                let there = entries.filter(|e| e.first_ms <= end_ms && e.last_ms > start_ms);
                changes.extend(removal(tier, start_ms, there.map(|entry| entry.number)));
                drop(head);
                self.blocks[at].remove(&start_ms);
                bytes -= size;
            }
            all_bytes += bytes;
        }
        self.shared.chunk_bytes.store(all_bytes, Relaxed);
        let mut head = self.shared.head.write();
        let forgotten = head.forget_before(until_ms.saturating_sub(kept_ms));
        changes.extend(forgotten.into_iter().map(|n| Change::Delete(record::series_key(n))));
        for (tier, blocks) in head.tiers.iter_mut().zip(&self.blocks) {
            tier.oldest_ms = blocks.keys().next().copied().unwrap_or(i64::MAX);
        }
        drop(head);
        if changes.is_empty() {
            return;
        }
        let disk = self.shared.disk.read().clone().filter(|_| on_disk);
        let removed = match disk {
            Some(disk) => disk.write(&changes),
            None => self.shared.memory.write(&changes),
        };
        if let Err(error) = removed {
            self.shared.degrade(Reason::of(&error, true));
        }
    }

    /// Opens the store again and brings into it what was kept in memory.
    fn recover(&mut self) -> io::Result<()> {
        let Some(opener) = &self.opener else { return Ok(()) };
        // The old one holds a lock that the new one needs.
        *self.shared.disk.write() = None;
        let store: Arc<dyn HistoryStore> = Arc::from(opener()?);
        let tiers: Vec<TierKey> =
            self.shared.head.read().tiers.iter().map(|tier| tier.key).collect();
        if !self.unread.is_empty() {
            self.write_unread(&*store, &tiers)?;
        }
        let (marks, records) = read_tables(&*store)?;
        let numbers: Vec<u32> = records.iter().map(|record| record.number).collect();
        let mut blocks = read_blocks(&*store, &tiers, &numbers)?;
        let mut head = self.shared.head.write();
        head.adopt(records, marks.map_or(1, |marks| marks.next), None);
        let numbers: Vec<u32> = head.entries.iter().map(|entry| entry.number).collect();
        self.shared.memory.rename(|key| {
            let (tier, number, start_ms) = record::read_chunk_key(key)?;
            let number = *numbers.get(number.checked_sub(PROVISIONAL)? as usize)?;
            Some(record::chunk_key(tier, number, start_ms))
        });
        // What it has can be read from now on, whether it can be written or not.
        *self.shared.disk.write() = Some(Arc::clone(&store));
        let live = head.entries.iter().filter(|entry| !entry.forgotten);
        let records: Vec<Record> = live.map(super::head::Entry::record).collect();
        let next = head.next_number;
        drop(head);
        let mut done = marks;
        let mut changes = Vec::new();
        for (key, value) in self.shared.memory.all() {
            if key == record::MARKS {
                let later = |marks: &Marks| done.is_none_or(|done| marks.until_ms > done.until_ms);
                if let Some(marks) = Marks::decode(&value).filter(later) {
                    let rolled_ms = done.map_or(i64::MIN, |done| done.rolled_ms);
                    done = Some(Marks { rolled_ms: rolled_ms.max(marks.rolled_ms), ..marks });
                }
            }
            let Some((tier, _, start_ms)) = record::read_chunk_key(&key) else { continue };
            let value = match get(&*store, &key)? {
                Some(old) => merged(&old, &value, i64::from(tier.step_ms)),
                None => value.to_vec(),
            };
            if let Some(at) = tiers.iter().position(|other| *other == tier) {
                *blocks[at].entry(start_ms).or_default() += (key.len() + value.len()) as u64;
            }
            changes.push(Change::Put(key, value));
        }
        for (tier, blocks) in tiers.iter().zip(&blocks) {
            for (start_ms, bytes) in blocks {
                let key = record::block_key(*tier, *start_ms);
                changes.push(Change::Put(key, bytes.to_le_bytes().to_vec()));
            }
        }
        for record in records {
            changes.push(Change::Put(record::series_key(record.number), record.encode()));
        }
        if let Some(done) = done {
            let marks = Marks { next, ..done };
            changes.push(Change::Put(record::MARKS.to_vec(), marks.encode()));
        }
        store.write(&changes)?;
        self.blocks = blocks;
        self.begin_log()?;
        self.shared.memory.clear();
        *self.shared.degraded.write() = None;
        self.next_try = None;
        tracing::info!("the history is kept on disk again");
        Ok(())
    }

    fn begin_log(&mut self) -> io::Result<()> {
        let Some(logs) = &mut self.logs else { return Ok(()) };
        let mut frames = Vec::new();
        let log = {
            let mut head = self.shared.head.write();
            head.begin_log(&mut frames);
            head.log
        };
        self.log_from = log;
        logs.append(log, &frames)?;
        logs.remove_before(log)
    }

    /// Writes what the logs of an earlier process hold into the store that it could not be replayed with.
    fn write_unread(&mut self, store: &dyn HistoryStore, tiers: &[TierKey]) -> io::Result<()> {
        let Some(logs) = &self.logs else { return Ok(()) };
        let unread = Some((logs, self.unread.as_slice()));
        let mut loaded = load(store, tiers, &self.shared.options, unread)?;
        self.shared.torn_bytes.fetch_add(loaded.torn_bytes, Relaxed);
        self.shared.damaged.fetch_add(loaded.damaged, Relaxed);
        loaded.head.close_all();
        let closed = std::mem::take(&mut loaded.head.closed);
        let shared = Shared {
            head: RwLock::new(loaded.head),
            disk: RwLock::new(None),
            memory: MemoryStore::new(0),
            degraded: RwLock::new(None),
            options: self.shared.options.clone(),
            damaged: AtomicU64::new(0),
            torn_bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            chunk_bytes: AtomicU64::new(0),
        };
        let earlier = Writer {
            shared: Arc::new(shared),
            opener: None,
            logs: None,
            unread: Vec::new(),
            blocks: loaded.blocks,
            log_from: 0,
            next_try: None,
        };
        for closed in &closed {
            store.write(&earlier.changes_of(closed).0)?;
        }
        self.unread.clear();
        Ok(())
    }
}

/// Returns a chunk with the rows of an old one before those of a new one.
fn merged(old: &[u8], new: &[u8], step_ms: i64) -> Vec<u8> {
    let pieces = (chunk::decode(old, Wanted::ALL), chunk::decode(new, Wanted::ALL));
    let (Ok(old), Ok(later)) = pieces else { return new.to_vec() };
    if old.column.shape != later.column.shape {
        return new.to_vec();
    }
    let earlier = later.times.first().map_or(0, |first| old.times.partition_point(|at| at < first));
    let mut column = Column::new(later.column.shape, 0);
    let mut times = Vec::new();
    for (piece, rows) in [(&old, earlier), (&later, later.times.len())] {
        append(&mut column, &mut times, piece, rows);
    }
    chunk::encode(&View::new(&times, &column), step_ms).unwrap_or_else(|| new.to_vec())
}

fn append(column: &mut Column, times: &mut Vec<i64>, piece: &Piece, rows: usize) {
    for row in 0..rows {
        let from = &piece.column;
        let numbers: Vec<f64> =
            from.values[..from.shape.width()].iter().map(|values| values[row]).collect();
        let parts: Vec<_> = from.runs.iter().flat_map(|runs| runs.row(row)).collect();
        column.push(times.len(), &numbers, &parts);
        times.push(piece.times[row]);
    }
}
