//! The format of a chunk: up to [`ROWS_MAX`] rows of one series, compressed with `pco`.
//!
//! ```text
//! version   1 byte, 1
//! codec     1 byte, 1: pco (<https://github.com/pcodec/pcodec>)
//! shape     1 byte: 1 samples, 2 gauges, 3 counters, 4 distributions
//! flags     1 byte: bit 0 = times as a list, bit 1 = anomaly bitmap follows the times
//! step_ms   varint
//! start_ms  varint, zigzag: the time of the first row
//! count     varint: rows
//! times     list: a column of the distances in ms; else slots (varint) of a step each from the start on
//!           and, if there are more slots than rows, a bitmap of those that have a row
//! anomalies one bit a row; written by nobody yet
//! columns   as many as the shape has
//! runs      of distributions: the columns of run length, bucket, count, position
//! checksum  4 bytes, CRC-32C of all before
//! ```
//!
//! A column is a mode, and then: 0 one number (8 bytes) that all rows have, 1 a `pco` file behind its length
//! (varint). Numbers of distributions are whole, the others are the bits of a `f64`.
//!
//! A reader believes nothing: every length is checked against what is there and against a bound before
//! anything is allocated, so bytes that were damaged in spite of a right checksum give an error.

use std::sync::Arc;

use pco::ChunkConfig;
use pco::data_types::Number;
use pco::standalone::{simple_compress, simple_decompress_into};

use super::block::{Column, Piece, Runs, Shape, View, WIDTH};
use super::record::put_varint;

/// Rows that a chunk has at most.
pub(super) const ROWS_MAX: usize = 1 << 14;
/// Parts of distributions that a chunk has at most.
const PARTS_MAX: usize = 1 << 22;
const VERSION: u8 = 1;
const CODEC_PCO: u8 = 1;
const TIMES_LISTED: u8 = 1;
const ANOMALIES: u8 = 2;
/// Where `pco` stops to try harder: 0.01 bytes per sample better than level 4, at twice the time.
const LEVEL: usize = 8;
const SAME: u8 = 0;
const PCO: u8 = 1;

/// Why a chunk cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ChunkError {
    #[error("the checksum is {found:08x}, and that of the bytes {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    #[error("it ends early")]
    Truncated,
    #[error("version {0}; this program reads version {VERSION}")]
    Version(u8),
    #[error("codec {0}; this program knows {CODEC_PCO}")]
    Codec(u8),
    #[error("{what} is {found}, at most {most} can be")]
    Bound { what: &'static str, found: u64, most: u64 },
    #[error("{0}")]
    Content(&'static str),
}

fn shape_code(shape: Shape) -> u8 {
    match shape {
        Shape::Samples => 1,
        Shape::Gauges => 2,
        Shape::Counters => 3,
        Shape::Distributions => 4,
    }
}

/// Writes out the rows that a series has; `None` if it has none.
pub(super) fn encode(view: &View<'_>, step_ms: i64) -> Option<Vec<u8>> {
    let column = view.column;
    let rows: Vec<usize> = (0..column.rows()).filter(|row| column.has(*row)).collect();
    let times: Vec<i64> = rows.iter().map(|row| view.times[*row]).collect();
    let (start, count) = (*times.first()?, times.len());
    let on_grid = times.iter().all(|at| (at - start) % step_ms == 0);
    let slots = (times[count - 1] - start) / step_ms + 1;
    // A list is smaller than a bitmap of long absence.
    let listed = !on_grid || slots > 8 * count as i64 + 64;
    let mut out = Vec::with_capacity(count * 2 + 64);
    out.extend([VERSION, CODEC_PCO, shape_code(column.shape), u8::from(listed)]);
    put_varint(&mut out, step_ms.unsigned_abs());
    put_varint(&mut out, zigzag(start));
    put_varint(&mut out, count as u64);
    if listed {
        let distances = times.windows(2).map(|pair| pair[1].abs_diff(pair[0]));
        put_column(&mut out, &distances.collect::<Vec<u64>>());
    } else {
        put_varint(&mut out, slots.unsigned_abs());
        if slots.unsigned_abs() > count as u64 {
            let mut bitmap = vec![0_u8; (slots as usize).div_ceil(8)];
            for at in &times {
                let slot = ((at - start) / step_ms) as usize;
                bitmap[slot / 8] |= 1 << (slot % 8);
            }
            out.extend(bitmap);
        }
    }
    for meaning in 0..column.shape.width() {
        let all = &column.values[meaning];
        if count == all.len() {
            put_column(&mut out, all);
        } else {
            put_column(&mut out, &rows.iter().map(|row| all[*row]).collect::<Vec<f64>>());
        }
    }
    if let Some(runs) = &column.runs {
        let parts: Vec<Vec<_>> = rows.iter().map(|row| runs.row(*row).collect()).collect();
        let all = || parts.iter().flatten();
        put_column(&mut out, &parts.iter().map(|run| run.len() as u32).collect::<Vec<_>>());
        put_column(&mut out, &all().map(|part| u32::from(part.index)).collect::<Vec<_>>());
        put_column(&mut out, &all().map(|part| part.count as u32).collect::<Vec<_>>());
        put_column(&mut out, &all().map(|part| part.position as u32).collect::<Vec<_>>());
    }
    let checksum = crc32c::crc32c(&out);
    out.extend(checksum.to_le_bytes());
    Some(out)
}

/// Reads a chunk; of its numbers only those in `wanted`, and the runs if they are.
pub(super) fn decode(bytes: &[u8], wanted: Wanted) -> Result<Piece, ChunkError> {
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(ChunkError::Truncated)?;
    let (found, computed) = (u32::from_le_bytes(*checksum), crc32c::crc32c(body));
    if found != computed {
        return Err(ChunkError::Checksum { found, computed });
    }
    decode_body(body, wanted)
}

/// What of a chunk somebody reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) columns: [bool; WIDTH],
    pub(super) runs: bool,
}

impl Wanted {
    pub(super) const ALL: Self = Self { columns: [true; WIDTH], runs: true };
}

/// Reads what is before the checksum.
pub(super) fn decode_body(body: &[u8], wanted: Wanted) -> Result<Piece, ChunkError> {
    let mut reader = Reader(body);
    match reader.take(2)? {
        [VERSION, CODEC_PCO] => {}
        [VERSION, codec] => return Err(ChunkError::Codec(*codec)),
        head => return Err(ChunkError::Version(head[0])),
    }
    let shape = match reader.byte()? {
        1 => Shape::Samples,
        2 => Shape::Gauges,
        3 => Shape::Counters,
        4 => Shape::Distributions,
        _ => return Err(ChunkError::Content("its shape is none that there is")),
    };
    let flags = reader.byte()?;
    if flags & !(TIMES_LISTED | ANOMALIES) != 0 {
        return Err(ChunkError::Content("it has flags that this program does not know"));
    }
    let step_ms = reader.bounded("the step", i64::MAX as u64 >> 16)? as i64;
    let start_ms = unzigzag(reader.varint()?);
    let count = reader.bounded("the number of rows", ROWS_MAX as u64)? as usize;
    if count == 0 || step_ms == 0 {
        return Err(ChunkError::Content("it has no rows or no step"));
    }
    let times = if flags & TIMES_LISTED != 0 {
        reader.listed_times(start_ms, count)?
    } else {
        reader.grid_times(start_ms, step_ms, count)?
    };
    if flags & ANOMALIES != 0 {
        reader.take(count.div_ceil(8))?;
    }
    let mut values = [const { Vec::new() }; WIDTH];
    for (meaning, column) in values.iter_mut().enumerate().take(shape.width()) {
        if wanted.columns[meaning] {
            *column = reader.column::<f64>(count)?;
            // The fold takes `NaN` for a row that is missing, and a chunk has only rows that are there.
            if column.iter().any(|value| value.is_nan()) {
                return Err(ChunkError::Content("a number is none"));
            }
        } else {
            reader.skip_column()?;
        }
    }
    let runs =
        if shape == Shape::Distributions && wanted.runs { Some(reader.runs(count)?) } else { None };
    let column = Column::read(shape, count, values, runs);
    Ok(Piece { times: Arc::new(times), column: Arc::new(column) })
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A number that a column can have.
trait Word: Number + Copy {
    fn to_word(self) -> u64;
    fn of_word(word: u64) -> Self;
}

impl Word for f64 {
    fn to_word(self) -> u64 {
        self.to_bits()
    }
    fn of_word(word: u64) -> Self {
        Self::from_bits(word)
    }
}

impl Word for u64 {
    fn to_word(self) -> u64 {
        self
    }
    fn of_word(word: u64) -> Self {
        word
    }
}

impl Word for u32 {
    fn to_word(self) -> u64 {
        self.into()
    }
    fn of_word(word: u64) -> Self {
        word as Self
    }
}

fn put_column<T: Word>(out: &mut Vec<u8>, numbers: &[T]) {
    let first = numbers.first().map_or(0, |first| first.to_word());
    if numbers.iter().all(|number| number.to_word() == first) {
        out.push(SAME);
        return out.extend(first.to_le_bytes());
    }
    let config = ChunkConfig::default().with_compression_level(LEVEL);
    let packed = simple_compress(numbers, &config)
        .expect("the level is one that there is, and a vector takes every byte");
    out.push(PCO);
    put_varint(out, packed.len() as u64);
    out.extend(packed);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ChunkError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ChunkError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ChunkError> {
        Ok(self.take(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, ChunkError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ChunkError::Content("a number is longer than 64 bits"))
    }

    fn bounded(&mut self, what: &'static str, most: u64) -> Result<u64, ChunkError> {
        let found = self.varint()?;
        if found > most { Err(ChunkError::Bound { what, found, most }) } else { Ok(found) }
    }

    fn column<T: Word>(&mut self, count: usize) -> Result<Vec<T>, ChunkError> {
        match self.byte()? {
            SAME => {
                let word = self.take(8)?.try_into().expect("8 were taken");
                Ok(vec![T::of_word(u64::from_le_bytes(word)); count])
            }
            PCO => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| ChunkError::Truncated)?;
                let packed = self.take(length)?;
                let mut numbers = vec![T::of_word(0); count];
                let progress = simple_decompress_into(packed, &mut numbers)
                    .map_err(|_| ChunkError::Content("a column cannot be unpacked"))?;
                if progress.n_processed != count {
                    return Err(ChunkError::Content("a column has too few numbers"));
                }
                Ok(numbers)
            }
            _ => Err(ChunkError::Content("a column is packed in a way that there is not")),
        }
    }

    fn skip_column(&mut self) -> Result<(), ChunkError> {
        let length = match self.byte()? {
            SAME => 8,
            _ => usize::try_from(self.varint()?).map_err(|_| ChunkError::Truncated)?,
        };
        self.take(length).map(drop)
    }

    fn listed_times(&mut self, start_ms: i64, count: usize) -> Result<Vec<i64>, ChunkError> {
        let mut at = start_ms;
        let mut times = vec![at];
        for distance in self.column::<u64>(count - 1)? {
            let later = at.checked_add_unsigned(distance).filter(|_| distance > 0);
            at = later.ok_or(ChunkError::Content("a time is not later than the one before"))?;
            times.push(at);
        }
        Ok(times)
    }

    fn grid_times(
        &mut self,
        start_ms: i64,
        step_ms: i64,
        count: usize,
    ) -> Result<Vec<i64>, ChunkError> {
        let slots = self.bounded("the number of slots", 8 * count as u64 + 64)? as usize;
        let bitmap = match slots {
            _ if slots < count => return Err(ChunkError::Content("it has fewer slots than rows")),
            _ if slots == count => &[][..],
            _ => self.take(slots.div_ceil(8))?,
        };
        let has =
            |slot: &usize| bitmap.get(slot / 8).is_none_or(|byte| byte >> (slot % 8) & 1 == 1);
        let last = step_ms.checked_mul(slots as i64).and_then(|span| start_ms.checked_add(span));
        last.ok_or(ChunkError::Content("its times are beyond all time"))?;
        let times: Vec<i64> =
            (0..slots).filter(has).map(|slot| start_ms + slot as i64 * step_ms).collect();
        if times.len() != count {
            return Err(ChunkError::Content("its bitmap has another number of rows"));
        }
        Ok(times)
    }

    fn runs(&mut self, rows: usize) -> Result<Runs, ChunkError> {
        let lengths = self.column::<u32>(rows)?;
        let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        if total > PARTS_MAX as u64 {
            let (what, most) = ("the number of parts", PARTS_MAX as u64);
            return Err(ChunkError::Bound { what, found: total, most });
        }
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let ends = ends.collect();
        let index = self.column::<u32>(total as usize)?;
        let index: Result<Vec<u16>, _> = index
            .into_iter()
            .map(|index| u16::try_from(index).ok().filter(|index| *index < 1_920))
            .map(|index| index.ok_or(ChunkError::Content("a bucket is none that there is")))
            .collect();
        let (index, count) = (index?, self.column::<u32>(total as usize)?);
        let position = self.column::<u32>(total as usize)?;
        Ok(Runs::read(ends, index, count, position))
    }
}

/// Reads bytes as a chunk without believing its checksum, for whoever makes up bytes.
#[doc(hidden)]
pub fn try_decode(bytes: &[u8]) -> Option<usize> {
    let piece = decode_body(bytes, Wanted::ALL).ok()?;
    let view = piece.view();
    // What was read can be written, and then reads the same.
    let again = encode(&view, 1_000)?;
    let read = decode(&again, Wanted::ALL).expect("what was just written can be read");
    assert_eq!(read.times, piece.times);
    Some(view.times.len())
}

#[cfg(test)]
mod tests;
