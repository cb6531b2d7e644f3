//! The formats that traces come in, and telling them apart.
//!
//! Only whether two keys are equal matters, so a file of words is the same trace in either byte order
//! and with either sign. What is not a number is hashed to 64 bits by XXH3; that two of a hundred million
//! keys share a hash has a probability of 0.03 %, and then costs one wrong answer.

use std::io::{self, BufRead, Read};
use std::str::FromStr;

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_64;

use super::mix::{BuildMix, mix};
use super::trace::{Requests, TraceError};

/// The longest line.
const LINE_BYTES: u64 = 64 << 10;
/// How much of a wrong line an error shows.
const SEEN_CHARS: usize = 60;
/// Lines by which a format is recognized.
const SAMPLE_LINES: usize = 200;

/// A form in which requests are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Keys of four bytes, one after the other; either byte order.
    Words32,
    /// Keys of eight bytes, one after the other; either byte order.
    Words64,
    /// A decimal block number on each line; empty lines and `*` are skipped (the LIRS traces).
    Blocks,
    /// `op 0xADDRESS gap` on each line; the address is the key.
    Addresses,
    /// `start count 0 sequence` on each line: `count` keys beginning with `start` (the ARC traces).
    Ranges,
    /// `time id size` on each line; the key is the id with the size, the weight is the size.
    Sized,
    /// Any text on each line is the key; empty lines are skipped.
    Lines,
    /// `key,size` on each line, with or without a header; the weight is the size.
    Csv,
    /// An HTTP server's log in common or combined format. A key is a method and a target; it weighs
    /// what its largest answer did. Only GET and HEAD count, other lines are skipped.
    AccessLog,
}

/// The name of a format that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such format: {0:?}; expected {list}", list = names())]
pub struct UnknownFormat(String);

fn names() -> String {
    let names = Format::ALL.map(Format::as_str);
    let (last, first) = names.split_last().expect("there are formats");
    format!("{} or {last}", first.join(", "))
}

impl Format {
    /// Every one of them.
    pub const ALL: [Self; 9] = [
        Self::Words32,
        Self::Words64,
        Self::Blocks,
        Self::Addresses,
        Self::Ranges,
        Self::Sized,
        Self::Lines,
        Self::Csv,
        Self::AccessLog,
    ];

    /// Names the format as the command line does.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Words32 => "words32",
            Self::Words64 => "words64",
            Self::Blocks => "blocks",
            Self::Addresses => "addresses",
            Self::Ranges => "ranges",
            Self::Sized => "sized",
            Self::Lines => "lines",
            Self::Csv => "csv",
            Self::AccessLog => "access-log",
        }
    }

    /// Whether requests in this format have weights.
    #[must_use]
    pub fn has_weights(self) -> bool {
        matches!(self, Self::Sized | Self::Csv | Self::AccessLog)
    }

    /// What a line should hold.
    fn expected(self) -> &'static str {
        match self {
            Self::Words32 | Self::Words64 => "binary words",
            Self::Blocks => "a decimal block number or `*`",
            Self::Addresses => "`op 0xADDRESS gap`",
            Self::Ranges => "`start count 0 sequence`, four decimal numbers",
            Self::Sized => "`time id size`, the last two decimal numbers",
            Self::Lines => "a key of at most 64 KiB",
            Self::Csv => "`key,size`, the size a decimal number of bytes",
            Self::AccessLog => "`host ident user [time] \"METHOD target HTTP/x\" status bytes`",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.into_iter().find(|format| format.as_str() == name);
        found.ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// What a line of text says.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Keys from the first on, this many, each of this weight.
    Keys { first: u64, count: u64, weight: u32 },
    /// Nothing, as the format allows.
    Nothing,
    /// Something that is no read.
    NoRead,
}

impl Line {
    fn key(key: u64) -> Self {
        Self::weighted(key, 1)
    }

    fn weighted(key: u64, weight: u32) -> Self {
        Self::Keys { first: key, count: 1, weight }
    }
}

/// Understands a line, without its end, or says by `None` that the format has no such line.
fn parse(format: Format, line: &[u8]) -> Option<Line> {
    let line = line.trim_ascii();
    match format {
        Format::Words32 | Format::Words64 => None,
        Format::Blocks if line.is_empty() || line == b"*" => Some(Line::Nothing),
        Format::Blocks => decimal(line).map(Line::key),
        Format::Lines if line.is_empty() => Some(Line::Nothing),
        Format::Lines => Some(Line::key(xxh3_64(line))),
        _ if line.is_empty() => Some(Line::Nothing),
        Format::Addresses => {
            let [_, address, _] = fields(line)?;
            let hex = address.strip_prefix(b"0x").or_else(|| address.strip_prefix(b"0X"))?;
            let hex = std::str::from_utf8(hex).ok().filter(|hex| !hex.starts_with('+'))?;
            u64::from_str_radix(hex, 16).ok().map(Line::key)
        }
        Format::Ranges => {
            let [first, count, _, _] = fields(line)?.map(decimal);
            let (first, count) = (first?, count?);
            first.checked_add(count)?;
            Some(Line::Keys { first, count, weight: 1 })
        }
        Format::Sized => {
            let [_, id, size] = fields(line)?;
            // The pair is the key: what was changed has another size and is another object.
            let key = mix(mix(decimal(id)?) ^ decimal(size)?);
            Some(Line::weighted(key, size_of(size)?))
        }
        Format::Csv => {
            let comma = line.iter().rposition(|byte| *byte == b',')?;
            let (key, size) = (&line[..comma], line[comma + 1..].trim_ascii());
            Some(Line::weighted(xxh3_64(unquote(key.trim_ascii())), size_of(unquote(size))?))
        }
        Format::AccessLog => parse_access(line),
    }
}

/// Understands a line of an access log.
fn parse_access(line: &[u8]) -> Option<Line> {
    let open = line.iter().position(|byte| *byte == b'"')?;
    line[..open].contains(&b'[').then_some(())?;
    let (request, rest) = quoted(&line[open + 1..])?;
    let mut rest = rest.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let (status, bytes) = (rest.next()?, rest.next()?);
    if status.len() != 3 || decimal(status).is_none() {
        return None;
    }
    let weight = if bytes == b"-" { 0 } else { size_of(bytes)? };
    let mut words = request.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next());
    match (method, target) {
        (b"GET" | b"HEAD", Some(target)) if !target.is_empty() => {
            Some(Line::weighted(xxh3_64(&request[..method.len() + 1 + target.len()]), weight))
        }
        _ => Some(Line::NoRead),
    }
}

/// Splits at the quote that closes a text; one after a backslash does not.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let close = text.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    })?;
    Some((&text[..close], &text[close + 1..]))
}

fn unquote(text: &[u8]) -> &[u8] {
    let inner = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    inner.unwrap_or(text)
}

/// The fields of a line, if there are exactly so many.
fn fields<const N: usize>(line: &[u8]) -> Option<[&[u8]; N]> {
    let mut fields = [&line[..0]; N];
    let mut split = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    for field in &mut fields {
        *field = split.next()?;
    }
    split.next().is_none().then_some(fields)
}

fn decimal(text: &[u8]) -> Option<u64> {
    // `parse` would take a sign.
    let digits = text.first().is_some_and(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// A size as a weight; what is beyond 4 GiB weighs that.
fn size_of(text: &[u8]) -> Option<u32> {
    decimal(text).map(|size| u32::try_from(size).unwrap_or(u32::MAX))
}

/// Guesses the format from the first bytes, unpacked, and from the name where these leave a choice.
pub(super) fn recognize(name: &str, sample: &[u8]) -> Format {
    let odd = |byte: &&u8| **byte < b' ' && !byte.is_ascii_whitespace();
    if sample.iter().filter(odd).count() > sample.len() / 50 {
        return recognize_words(sample);
    }
    let mut lines: Vec<&[u8]> = sample.split(|byte| *byte == b'\n').collect();
    if lines.len() > 1 {
        // What the sample ends in may go on behind it.
        lines.pop();
    }
    lines.retain(|line| !line.trim_ascii().is_empty());
    lines.truncate(SAMPLE_LINES);
    let fits = |format| lines.iter().filter(|line| parse(format, line).is_some()).count();
    let exact = [Format::Ranges, Format::Sized, Format::Addresses, Format::Blocks];
    if let Some(format) = exact.into_iter().find(|format| fits(*format) == lines.len()) {
        return if lines.is_empty() { Format::Lines } else { format };
    }
    if fits(Format::AccessLog) * 2 > lines.len() {
        return Format::AccessLog;
    }
    let is_named_csv = name.split('.').skip(1).any(|part| part.eq_ignore_ascii_case("csv"));
    let is_csv = |line: &&[u8]| parse(Format::Csv, line).is_some();
    let body = match lines.split_first() {
        Some((header, body)) if !is_csv(header) && header.contains(&b',') => body,
        _ => &lines,
    };
    if is_named_csv || !body.is_empty() && body.iter().all(is_csv) {
        return Format::Csv;
    }
    Format::Lines
}

/// Tells words of four bytes from words of eight.
///
/// Halves of longer words keep to their side: what is a first half is hardly ever a second half too,
/// and in small numbers one side is nearly always zero. Whole words turn up on both sides, or, in a scan
/// that repeats nothing, follow each other closely.
fn recognize_words(sample: &[u8]) -> Format {
    let words: Vec<u32> = sample
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes(word.try_into().expect("chunks of four")))
        .collect();
    let side = |first: usize| -> HashSet<u32, BuildMix> {
        words.iter().skip(first).step_by(2).copied().collect()
    };
    let (even, odd) = (side(0), side(1));
    let (fewer, more) = (even.len().min(odd.len()), even.len().max(odd.len()));
    if words.len() % 2 == 1 && (sample.len() as u64) < super::trace::SAMPLE_BYTES || fewer == 0 {
        return Format::Words32;
    }
    if fewer * 16 < more {
        return Format::Words64;
    }
    let close = |swap: fn(u32) -> u32| {
        let near = |pair: &&[u32]| swap(pair[0]).abs_diff(swap(pair[1])) < 1 << 16;
        words.windows(2).filter(near).count() * 2 > words.len()
    };
    let shared = even.intersection(&odd).count();
    if shared * 64 > fewer || close(|word| word) || close(u32::swap_bytes) {
        Format::Words32
    } else {
        Format::Words64
    }
}

/// Why reading ended early.
pub(super) enum ReadError {
    Io(io::Error),
    Trace(TraceError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads requests until the source or the limit ends.
pub(super) fn read(
    format: Format,
    name: &str,
    source: impl BufRead,
    requests: &mut Requests,
) -> Result<(), ReadError> {
    match format {
        Format::Words32 => read_words::<4>(name, source, requests),
        Format::Words64 => read_words::<8>(name, source, requests),
        _ => read_lines(format, name, source, requests),
    }
}

fn read_words<const N: usize>(
    name: &str,
    mut source: impl BufRead,
    requests: &mut Requests,
) -> Result<(), ReadError> {
    for index in 0_u64.. {
        let mut key = [0; 8];
        let mut filled = 0;
        while filled < N {
            match source.read(&mut key[filled..N]) {
                Ok(0) if filled == 0 => return Ok(()),
                Ok(0) => {
                    let offset = index * N as u64;
                    let name = name.to_owned();
                    let tail = TraceError::Tail { name, offset, bytes: filled, word: N };
                    return Err(ReadError::Trace(tail));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !requests.push(u64::from_le_bytes(key), 1) {
            break;
        }
    }
    Ok(())
}

fn read_lines(
    format: Format,
    name: &str,
    mut source: impl BufRead,
    requests: &mut Requests,
) -> Result<(), ReadError> {
    let mut line = Vec::new();
    let mut is_first = true;
    for number in 1_u64.. {
        line.clear();
        source.by_ref().take(LINE_BYTES + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        let parsed = parse(format, &line).filter(|_| line.len() as u64 <= LINE_BYTES);
        match parsed {
            Some(Line::Keys { first, count, weight }) => {
                is_first = false;
                if !(0..count).all(|more| requests.push(first.wrapping_add(more), weight)) {
                    break;
                }
            }
            Some(Line::Nothing) => {}
            Some(Line::NoRead) => requests.skip(),
            None if format == Format::Csv && is_first && line.contains(&b',') => is_first = false,
            None => {
                let text = String::from_utf8_lossy(&line);
                let mut seen: String = text.trim().chars().take(SEEN_CHARS).collect();
                if seen.len() < text.trim().len() {
                    seen.push_str("...");
                }
                let expected = format.expected();
                let name = name.to_owned();
                return Err(ReadError::Trace(TraceError::Line {
                    name,
                    line: number,
                    seen,
                    expected,
                }));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
