//! The tick log: every tick in one write, so that a process that dies loses a second and not ten minutes.
//!
//! A file begins with [`MAGIC`]. Frames follow: length (4 bytes), CRC-32C (4 bytes), body. A body is a series that is
//! new in this file, a layout - the series whose numbers the ticks behind it hold, in order -, or a tick. A
//! new file is begun with each block, and the old one removed once its block is in the store.
//!
//! What was written is in the page cache of the system: it survives the death of the process by any signal, and
//! after a loss of power as much of it as the system had written out by itself.
//!
//! Reading stops at the first frame that is cut short or damaged, and cuts the file there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::record::{Reader, Record, put_varint};
use crate::histogram::Part;

pub(super) const MAGIC: &[u8; 8] = b"upticks\x01";
/// Bytes of a frame that is believed.
const FRAME_MAX: usize = 64 << 20;
const SERIES: u8 = 1;
const LAYOUT: u8 = 2;
const TICK: u8 = 3;

/// What a histogram took in during a tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Taken {
    pub(super) sum: f64,
    /// Values up to now.
    pub(super) total: f64,
    pub(super) parts: Vec<Part>,
}

/// All samples of one moment; series are the numbers of whoever makes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tick {
    pub(super) at_ms: i64,
    pub(super) numbers: Vec<(u32, f64)>,
    pub(super) taken: Vec<(u32, Taken)>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Frame {
    Series(Record),
    Tick(Tick),
}

fn put_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let head = out.len();
    out.extend([0; 8]);
    write(out);
    let body = &out[head + 8..];
    let (length, checksum) = (body.len() as u32, crc32c::crc32c(body));
    out[head..head + 4].copy_from_slice(&length.to_le_bytes());
    out[head + 4..head + 8].copy_from_slice(&checksum.to_le_bytes());
}

pub(super) fn put_series(out: &mut Vec<u8>, record: &Record) {
    put_frame(out, |out| {
        out.push(SERIES);
        out.extend(record.encode());
    });
}

/// Writes a layout, if the series are others than those of the one before, and a tick.
pub(super) fn put_tick(out: &mut Vec<u8>, layout: &mut Vec<u32>, tick: &Tick) {
    if !tick.numbers.iter().map(|(series, _)| series).eq(layout.iter()) {
        layout.clear();
        layout.extend(tick.numbers.iter().map(|(series, _)| *series));
        put_frame(out, |out| {
            out.push(LAYOUT);
            layout.iter().for_each(|series| put_varint(out, (*series).into()));
        });
    }
    put_frame(out, |out| {
        out.push(TICK);
        out.extend(tick.at_ms.to_le_bytes());
        for (_, number) in &tick.numbers {
            out.extend(number.to_le_bytes());
        }
        for (series, taken) in &tick.taken {
            put_varint(out, (*series).into());
            out.extend(taken.sum.to_le_bytes());
            out.extend(taken.total.to_le_bytes());
            put_varint(out, taken.parts.len() as u64);
            for part in &taken.parts {
                put_varint(out, part.index.into());
                put_varint(out, part.count);
                put_varint(out, part.position);
            }
        }
    });
}

/// Reads the frames of a file; returns them and up to which byte they are sound.
pub(super) fn read(bytes: &[u8]) -> (Vec<Frame>, usize) {
    let mut frames = Vec::new();
    let mut layout = Vec::new();
    let mut at = MAGIC.len();
    if !bytes.starts_with(MAGIC) {
        return (frames, 0);
    }
    while let Some((body, end)) = body_at(bytes, at) {
        match read_body(body, &mut layout) {
            Some(Some(frame)) => frames.push(frame),
            Some(None) => {}
            None => break,
        }
        at = end;
    }
    (frames, at)
}

fn body_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let mut reader = Reader(bytes.get(at..)?);
    let length = u32::from_le_bytes(reader.array()?) as usize;
    let checksum = u32::from_le_bytes(reader.array()?);
    let body = reader.take(Some(length).filter(|length| *length <= FRAME_MAX)?)?;
    (crc32c::crc32c(body) == checksum).then_some((body, at + 8 + length))
}

/// Reads a body; a layout is remembered and gives no frame.
fn read_body(body: &[u8], layout: &mut Vec<u32>) -> Option<Option<Frame>> {
    let mut reader = Reader(body);
    match reader.byte()? {
        SERIES => Some(Some(Frame::Series(Record::decode(reader.0)?))),
        LAYOUT => {
            layout.clear();
            while !reader.0.is_empty() {
                layout.push(u32::try_from(reader.varint()?).ok()?);
            }
            Some(None)
        }
        TICK => {
            let mut tick = Tick { at_ms: i64::from_le_bytes(reader.array()?), ..Tick::default() };
            for series in layout.iter() {
                let number = f64::from_le_bytes(reader.array()?);
                if number.is_finite() {
                    tick.numbers.push((*series, number));
                }
            }
            while !reader.0.is_empty() {
                let series = u32::try_from(reader.varint()?).ok()?;
                let sum = f64::from_le_bytes(reader.array()?);
                let total = f64::from_le_bytes(reader.array()?);
                let parts = reader.varint()?;
                let parts = (0..parts).map(|_| {
                    let index = u16::try_from(reader.varint()?).ok().filter(|at| *at < 1_920)?;
                    Some(Part { index, count: reader.varint()?, position: reader.varint()? })
                });
                let parts = parts.collect::<Option<Vec<_>>>()?;
                if sum.is_finite() && total.is_finite() {
                    tick.taken.push((series, Taken { sum, total, parts }));
                }
            }
            Some(Some(Frame::Tick(tick)))
        }
        _ => None,
    }
}

/// The log files of a directory.
#[derive(Debug)]
pub(super) struct Logs {
    directory: PathBuf,
    open: Option<(u64, File)>,
}

impl Logs {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: None }
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.directory.join(format!("ticks-{sequence:016x}.log"))
    }

    /// Returns the numbers of the files that are there, ascending.
    pub(super) fn list(&self) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| {
                u64::from_str_radix(name.strip_prefix("ticks-")?.strip_suffix(".log")?, 16).ok()
            });
            found.extend(number);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Reads a file and cuts off what is torn or damaged at its end; returns how many bytes were cut.
    pub(super) fn replay(&self, sequence: u64) -> io::Result<(Vec<Frame>, u64)> {
        let path = self.path(sequence);
        let bytes = fs::read(&path)?;
        let (frames, sound) = read(&bytes);
        let torn = (bytes.len() - sound) as u64;
        if torn > 0 {
            OpenOptions::new().write(true).open(&path)?.set_len(sound as u64)?;
        }
        Ok((frames, torn))
    }

    /// Appends frames to a file, which becomes the one that is written to.
    pub(super) fn append(&mut self, sequence: u64, frames: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != sequence) {
            let mut file =
                OpenOptions::new().create(true).append(true).open(self.path(sequence))?;
            file.write_all(MAGIC)?;
            self.open = Some((sequence, file));
        }
        match &mut self.open {
            Some((_, file)) => file.write_all(frames),
            None => Ok(()),
        }
    }

    /// Writes what the system still holds to the medium.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |(_, file)| file.sync_data())
    }

    /// Closes the file that is written to.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Removes the files before a number.
    pub(super) fn remove_before(&self, sequence: u64) -> io::Result<()> {
        for old in self.list()?.into_iter().filter(|old| *old < sequence) {
            fs::remove_file(self.path(old))?;
        }
        Ok(())
    }
}
