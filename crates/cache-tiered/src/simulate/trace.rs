//! A list of requests, and reading one from a file.
//!
//! Files may be compressed with gzip, xz or zstd, whatever they are called; what is read is unpacked on
//! the fly. A file becomes 8 bytes for a request, and 4 more where requests have weights; a limit keeps
//! that bounded, and decoders that would need more than [`DECODER_KIB`] are refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use hashbrown::HashMap;

use super::Capacity;
use super::format::{self, Format};
use super::mix::BuildMix;

/// What a decoder may allocate, in KiB: what `xz -9` and `zstd --long` need, and a little more.
const DECODER_KIB: u32 = 160 << 10;
/// The same for zstd, as the logarithm of its window.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Unpacked bytes by which a format is recognized.
pub(super) const SAMPLE_BYTES: u64 = 256 << 10;
const LIMIT: usize = 50_000_000;

/// The keys that were asked for, in order, and what each of them weighed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    name: String,
    keys: Vec<u64>,
    weights: Option<Vec<u32>>,
    format: Option<Format>,
    truncated: bool,
    skipped: u64,
}

/// How a file is read.
#[derive(Debug, Clone)]
pub struct TraceOptions {
    format: Option<Format>,
    limit: usize,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { format: None, limit: LIMIT }
    }
}

impl TraceOptions {
    /// Reads the file in this format, instead of recognizing it.
    #[must_use]
    pub fn format(mut self, format: impl Into<Option<Format>>) -> Self {
        self.format = format.into();
        self
    }

    /// Stops after this many requests; 50 million unless told otherwise, and never more than 2^32 - 2.
    #[must_use]
    pub fn limit(mut self, requests: usize) -> Self {
        self.limit = requests;
        self
    }
}

/// The distinct keys of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// How many there are.
    pub keys: u64,
    /// What they weigh together, each with the weight that it was first asked for with.
    pub weight: u64,
}

impl Footprint {
    /// A capacity of this share of the keys, rounded down, but not to nothing.
    #[must_use]
    pub fn entries(&self, share: f64) -> Capacity {
        Capacity::entries(part(self.keys, share))
    }

    /// A capacity of this share of the weight.
    #[must_use]
    pub fn weight(&self, share: f64) -> Capacity {
        Capacity::weight(part(self.weight, share), part(self.keys, share))
    }

    /// A capacity of this weight, expecting entries of the mean weight.
    #[must_use]
    pub fn weight_of(&self, limit: u64) -> Capacity {
        let mean = (self.weight / self.keys.max(1)).max(1);
        Capacity::weight(limit, (limit / mean).max(1))
    }
}

fn part(whole: u64, share: f64) -> u64 {
    // A hair more, since a share such as 0.07 of 100 must not round down to 6.
    ((whole as f64 * share + 1e-6) as u64).max(1)
}

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read, or what packed it is damaged.
    #[error("cannot read {name} after {requests} requests")]
    Read {
        /// The trace.
        name: String,
        /// How many requests were read before.
        requests: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line is not what the format says.
    #[error("{name}, line {line}: seen {seen:?}, expected {expected}")]
    Line {
        /// The trace.
        name: String,
        /// The number of the line, from 1.
        line: u64,
        /// The beginning of what is there.
        seen: String,
        /// What the format would have there.
        expected: &'static str,
    },
    /// A file of words ends within one.
    #[error("{name}, offset {offset}: {bytes} bytes are left over, expected words of {word} bytes")]
    Tail {
        /// The trace.
        name: String,
        /// Where the piece begins, unpacked.
        offset: u64,
        /// How long it is.
        bytes: usize,
        /// How long a word is.
        word: usize,
    },
    /// Nothing in the file is a request.
    #[error("{name} holds no request{}", skipped_note(*.skipped))]
    Empty {
        /// The trace.
        name: String,
        /// Lines that are no reads.
        skipped: u64,
    },
}

fn skipped_note(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        lines => format!(" that a cache could answer, in {lines} lines"),
    }
}

impl Trace {
    /// Makes a trace of keys that weigh 1 each.
    #[must_use]
    pub fn new(name: impl Into<String>, keys: Vec<u64>) -> Self {
        Self { name: name.into(), keys, weights: None, format: None, truncated: false, skipped: 0 }
    }

    /// Makes a trace of keys with weights; a weight of 0 counts as 1.
    #[must_use]
    pub fn weighted(
        name: impl Into<String>,
        requests: impl IntoIterator<Item = (u64, u32)>,
    ) -> Self {
        let (keys, weights) =
            requests.into_iter().map(|(key, weight)| (key, weight.max(1))).unzip();
        Self { weights: Some(weights), ..Self::new(name, keys) }
    }

    /// Reads a file, recognizing how it is packed and, unless told, its format.
    ///
    /// # Errors
    ///
    /// [`TraceError`], with the line or the offset where a file is not what it seems to be.
    pub fn open(path: impl AsRef<Path>, options: &TraceOptions) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let file = File::open(path)
            .map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Self::read(&name, file, options)
    }

    /// Reads a trace from bytes; the end of `name` helps to recognize the format.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn read(name: &str, source: impl Read, options: &TraceOptions) -> Result<Self, TraceError> {
        let fail = |requests| {
            let name = name.to_owned();
            move |source| TraceError::Read { name, requests, source }
        };
        let mut source = unpack(BufReader::new(source)).map_err(fail(0))?;
        let mut sample = Vec::new();
        source.by_ref().take(SAMPLE_BYTES).read_to_end(&mut sample).map_err(fail(0))?;
        let format = options.format.unwrap_or_else(|| format::recognize(name, &sample));
        let mut requests = Requests {
            keys: Vec::new(),
            weights: format.has_weights().then(Vec::new),
            limit: options.limit.min(u32::MAX as usize - 1),
            truncated: false,
            skipped: 0,
        };
        let source = BufReader::with_capacity(1 << 16, sample.as_slice().chain(source));
        match format::read(format, name, source, &mut requests) {
            Ok(()) => {}
            Err(format::ReadError::Io(source)) => {
                return Err(fail(requests.keys.len())(source));
            }
            Err(format::ReadError::Trace(error)) => return Err(error),
        }
        let Requests { mut keys, mut weights, truncated, skipped, .. } = requests;
        if keys.is_empty() && !truncated {
            return Err(TraceError::Empty { name: name.to_owned(), skipped });
        }
        keys.shrink_to_fit();
        weights.iter_mut().for_each(Vec::shrink_to_fit);
        if let Some(weights) = &mut weights
            && format == Format::AccessLog
        {
            weigh_by_largest(&keys, weights);
        }
        Ok(Self { name: name.to_owned(), keys, weights, format: Some(format), truncated, skipped })
    }

    /// What the trace is called: its file, or its pattern.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The keys in the order of the requests. Two are equal if what was asked for was the same; beyond
    /// that they mean nothing.
    #[must_use]
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// What each request weighed, if that is known. None is 0.
    #[must_use]
    pub fn weights(&self) -> Option<&[u32]> {
        self.weights.as_deref()
    }

    /// The format that the trace was read in, or `None` if it was not read.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether the limit left out further requests.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Lines that are no reads: writes and garbage in an access log.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Leaves out all requests after the first `requests`.
    pub fn truncate(&mut self, requests: usize) {
        self.truncated |= self.keys.len() > requests;
        self.keys.truncate(requests);
        self.weights.iter_mut().for_each(|weights| weights.truncate(requests));
    }

    /// Counts the distinct keys.
    ///
    /// # Cost
    ///
    /// One pass, with a table of all keys.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let mut seen: hashbrown::HashSet<u64, BuildMix> = hashbrown::HashSet::default();
        let mut weight = 0;
        for (at, key) in self.keys.iter().enumerate() {
            if seen.insert(*key) {
                weight += self.weights.as_ref().map_or(1, |weights| u64::from(weights[at]));
            }
        }
        Footprint { keys: seen.len() as u64, weight }
    }
}

/// Gives each key the largest of its weights: of an object, a log also tells parts and empty answers.
fn weigh_by_largest(keys: &[u64], weights: &mut [u32]) {
    let mut largest: HashMap<u64, u32, BuildMix> = HashMap::default();
    for (key, weight) in keys.iter().zip(&*weights) {
        let known = largest.entry(*key).or_default();
        *known = (*known).max(*weight);
    }
    for (key, weight) in keys.iter().zip(weights) {
        *weight = largest[key];
    }
}

/// What has been read so far.
pub(super) struct Requests {
    keys: Vec<u64>,
    weights: Option<Vec<u32>>,
    limit: usize,
    truncated: bool,
    skipped: u64,
}

impl Requests {
    /// Adds a request; `false` when the limit does not allow it, and nothing more need be read.
    pub(super) fn push(&mut self, key: u64, weight: u32) -> bool {
        if self.keys.len() >= self.limit {
            self.truncated = true;
            return false;
        }
        self.keys.push(key);
        if let Some(weights) = &mut self.weights {
            weights.push(weight.max(1));
        }
        true
    }

    pub(super) fn skip(&mut self) {
        self.skipped += 1;
    }
}

/// Puts the right decoder before a source, by the first bytes of it.
fn unpack<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 6];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let source = io::Cursor::new(magic).take(filled as u64).chain(source);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, DECODER_KIB))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(source),
    })
}

#[cfg(test)]
mod tests;
