//! A damaged segment log: it opens, and no value comes back that was not the last word.
//!
//! A small log of several segments is written once and its files are kept in memory. Each input is a
//! list of damages to those files: bits, ranges, ends, whole files. Then the log is opened and every
//! key is read. Values name their key and version and are recomputed, so that one that comes back
//! proves itself. And all that comes back must have been the truth at *one* moment: a torn tail may
//! take the log back in time, but not some keys further than others.
//!
//! One damage is excepted from the second: a segment in the middle that ends between two records, cleanly,
//! says nothing of what it lost, so older values may come back. They are still the values of their keys.
#![no_main]

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};
use libfuzzer_sys::fuzz_target;
use ultra_perf_fuzz::scratch;

/// Keys of the log.
const KEYS: u32 = 24;
/// Puts and removals in it.
const OPERATIONS: u32 = 160;
/// The smallest that the engine takes, so that the log has several.
const SEGMENT_BYTES: u64 = 16 << 10;
const CAPACITY_BYTES: u64 = 1 << 20;
/// Before every expiry.
const NOW_MS: u64 = 1;
/// Records are salted by the directory's seed; a drawn one would make inputs mean something else in
/// every process.
const FORMAT: &str =
    "ultra-perf disk tier\nengine = segment-log\nversion = 1\nseed = 5eed5eed5eed5eed\n";

/// What happens to the files. Numbers are taken modulo what is there.
#[derive(Arbitrary, Debug)]
enum Damage {
    Flip {
        file: u8,
        at: u16,
        bit: u8,
    },
    Set {
        file: u8,
        at: u16,
        bytes: Vec<u8>,
    },
    Zero {
        file: u8,
        at: u16,
        len: u16,
    },
    /// Cuts the file off that was written last, as the death of a process does.
    Tear {
        keep: u16,
    },
    /// Cuts any file off, as a loss of power does.
    Cut {
        file: u8,
        keep: u16,
    },
    Append {
        file: u8,
        bytes: Vec<u8>,
    },
    Copy {
        from: u8,
        at: u16,
        len: u16,
        to: u8,
        to_at: u16,
    },
    Swap {
        one: u8,
        other: u8,
    },
    Duplicate {
        file: u8,
        to: u8,
    },
    Remove {
        file: u8,
    },
    Format {
        text: Vec<u8>,
    },
}

fuzz_target!(|damages: Vec<Damage>| {
    let log = Log::written();
    let mut files = log.files.clone();
    let mut format = FORMAT.as_bytes().to_vec();
    for damage in damages.into_iter().take(16) {
        damage.strike(&mut files, &mut format);
    }

    let directory = scratch();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(directory.path().join(name), bytes).expect("there is space");
    };
    write("FORMAT", &format);
    for (name, bytes) in files.iter().filter_map(|(name, bytes)| Some((name, bytes.as_ref()?))) {
        write(name, bytes);
    }

    let Ok(engine) = SegmentLog::open(options(directory.path())) else { return };
    let seen = read_all(&engine);
    if !log.lacks_an_end(&files) {
        log.assert_one_moment(&seen);
    }

    // It goes on, and what it says survives the next opening.
    engine.put(b"after", b"the damage", 0).expect("there is space");
    assert!(engine.remove(&key(0)).is_ok());
    engine.flush().expect("there is space");
    drop(engine);
    let engine = SegmentLog::open(options(directory.path())).expect("it opened before");
    assert_eq!(
        engine.get(b"after", NOW_MS).expect("readable").as_deref(),
        Some(&b"the damage"[..])
    );
    let mut expected = seen;
    expected[0] = None;
    assert_eq!(read_all(&engine), expected, "the second opening says something else");
});

fn options(path: &Path) -> SegmentLogOptions {
    SegmentLogOptions {
        segment_bytes: Some(SEGMENT_BYTES),
        buffer_bytes: 4 << 10,
        ..SegmentLogOptions::new(path, CAPACITY_BYTES)
    }
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// The value that operation `version` gave to a key: its name, then bytes that follow from it.
fn value(number: u32, version: u32) -> Vec<u8> {
    let mut value = format!("{number} {version} ").into_bytes();
    let mut state = u64::from(number) << 32 | u64::from(version) | 1 << 63;
    for _ in 0..40 + (version * 37) % 600 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.push(state as u8);
    }
    value
}

/// The version of every key that is there; each value has to prove itself.
fn read_all(engine: &SegmentLog) -> Vec<Option<u32>> {
    let read = |number| {
        let found = engine.get(&key(number), NOW_MS).expect("the file can be read")?;
        let text = String::from_utf8_lossy(&found);
        let version = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        let version = version.filter(|version| value(number, *version) == found);
        assert!(version.is_some(), "key {number} has a value that nobody put: {found:?}");
        version
    };
    (0..KEYS).map(read).collect()
}

/// The name and the bytes of a segment's file; `None` once removed.
type Segment = (String, Option<Vec<u8>>);

/// A log as it was written, and its history.
struct Log {
    /// Oldest first.
    files: Vec<Segment>,
    /// For each key, the operation from which and the one up to which a value was current.
    lives: Vec<Vec<Range<u32>>>,
}

impl Log {
    fn written() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(Self::write)
    }

    fn write() -> Self {
        let directory = scratch();
        std::fs::write(directory.path().join("FORMAT"), FORMAT).expect("there is space");
        let engine = SegmentLog::open(options(directory.path())).expect("an empty log opens");
        let mut lives: Vec<Vec<Range<u32>>> = vec![Vec::new(); KEYS as usize];
        for version in 0..OPERATIONS {
            let number = version * 7 % KEYS + version / 50 % 3;
            let number = number % KEYS;
            let lives = &mut lives[number as usize];
            let current = lives.last_mut().filter(|life| life.end == OPERATIONS);
            let exists = current.map(|life| life.end = version).is_some();
            if exists && version % 9 == 4 {
                engine.remove(&key(number)).expect("there is space");
            } else {
                engine.put(&key(number), &value(number, version), 0).expect("there is space");
                lives.push(version..OPERATIONS);
            }
        }
        engine.flush().expect("there is space");
        let log = Self { files: segments(directory.path()), lives };
        assert!(log.files.len() >= 3, "the log has several segments");
        log.assert_one_moment(&read_all(&engine));
        log
    }

    /// Whether a segment with another behind it is shorter than it was written.
    fn lacks_an_end(&self, files: &[Segment]) -> bool {
        let last = files.iter().rposition(|(_, bytes)| bytes.is_some()).unwrap_or_default();
        let len = |(_, bytes): &Segment| bytes.as_ref().map(Vec::len);
        files[..last]
            .iter()
            .zip(&self.files)
            .any(|(now, then)| len(now).is_some_and(|now| Some(now) < len(then)))
    }

    /// All values were current at the same time.
    fn assert_one_moment(&self, seen: &[Option<u32>]) {
        let lives = self.lives.iter().zip(seen).filter_map(|(lives, version)| {
            let version = (*version)?;
            let life = lives.iter().find(|life| life.start == version);
            Some(life.expect("a value that proved itself was put").clone())
        });
        let moment =
            lives.fold(0..OPERATIONS, |all, life| all.start.max(life.start)..all.end.min(life.end));
        assert!(!moment.is_empty(), "what was replaced or removed came back: {seen:?}");
    }
}

fn segments(directory: &Path) -> Vec<Segment> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("it was just made")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("ASCII names"))
        .filter(|name| name.starts_with("segment-"))
        .map(|name| {
            let bytes = std::fs::read(directory.join(&name)).expect("readable");
            (name, Some(bytes))
        })
        .collect();
    files.sort();
    files
}

impl Damage {
    fn strike(self, files: &mut [Segment], format: &mut Vec<u8>) {
        let count = files.len();
        match self {
            Self::Flip { file, at, bit } => {
                if let Some(byte) = bytes_of(files, file).and_then(|bytes| byte_at(bytes, at)) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Set { file, at, bytes: new } => {
                if let Some(bytes) = bytes_of(files, file) {
                    overwrite(bytes, at, &new);
                }
            }
            Self::Zero { file, at, len } => {
                if let Some(bytes) = bytes_of(files, file) {
                    overwrite(bytes, at, &vec![0; usize::from(len)]);
                }
            }
            Self::Tear { keep } => {
                let newest = files.iter_mut().rev().find_map(|(_, bytes)| bytes.as_mut());
                if let Some(bytes) = newest {
                    bytes.truncate(usize::from(keep) % (bytes.len() + 1));
                }
            }
            Self::Cut { file, keep } => {
                if let Some(bytes) = bytes_of(files, file) {
                    bytes.truncate(usize::from(keep) % (bytes.len() + 1));
                }
            }
            Self::Append { file, bytes: new } => {
                if let Some(bytes) = bytes_of(files, file) {
                    bytes.extend_from_slice(&new);
                }
            }
            Self::Copy { from, at, len, to, to_at } => {
                let range = usize::from(at)..usize::from(at) + usize::from(len);
                let copy = bytes_of(files, from).and_then(|bytes| Some(bytes.get(range)?.to_vec()));
                if let (Some(copy), Some(bytes)) = (copy, bytes_of(files, to)) {
                    overwrite(bytes, to_at, &copy);
                }
            }
            Self::Swap { one, other } => {
                let (one, other) = (usize::from(one) % count, usize::from(other) % count);
                let bytes = files[one].1.clone();
                files[one].1 = std::mem::replace(&mut files[other].1, bytes);
            }
            Self::Duplicate { file, to } => {
                files[usize::from(to) % count].1 = files[usize::from(file) % count].1.clone();
            }
            Self::Remove { file } => files[usize::from(file) % count].1 = None,
            Self::Format { text } => *format = text,
        }
    }
}

/// The bytes of a file that is still there.
fn bytes_of(files: &mut [Segment], file: u8) -> Option<&mut Vec<u8>> {
    let count = files.len();
    files[usize::from(file) % count].1.as_mut()
}

fn byte_at(bytes: &mut [u8], at: u16) -> Option<&mut u8> {
    let len = bytes.len();
    bytes.get_mut(usize::from(at) % len.max(1))
}

/// Writes over what is there, and never past its end.
fn overwrite(bytes: &mut [u8], at: u16, new: &[u8]) {
    let at = usize::from(at).min(bytes.len());
    let len = new.len().min(bytes.len() - at);
    bytes[at..at + len].copy_from_slice(&new[..len]);
}
