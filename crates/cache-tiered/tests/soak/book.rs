//! What may be found: the versions of each key, in a file that outlives the process.
//!
//! Per key there are three numbers. The *source* is the newest version that anybody could have: it is
//! written down before the cache is told. The *floor* is the newest version whose write has returned in
//! this process: nobody who asks later may get less. The *durable* version is the newest one that was
//! flushed while neither Redis nor the disk lost anything: it is the floor of the next process, and, with
//! the moment at which it was flushed, of another machine.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const KEYS: u32 = 512;
/// For how long after its time to live a loading cache may serve a value.
pub(crate) const STALE: Duration = Duration::from_secs(2);
/// What may lie between the moment that a value bears and its insert, on a busy machine.
const SLACK: Duration = Duration::from_millis(1_500);

/// A key, a version, the moment at which it was made in milliseconds, and padding that follows from
/// the first two.
pub(crate) type Value = (u32, u64, u64, Vec<u8>);

/// The time to live of a key's values: some expire while one looks, some outlive an outage.
pub(crate) fn ttl(key: u32) -> Duration {
    Duration::from_secs(if key.is_multiple_of(4) { 3 } else { 60 })
}

pub(crate) fn value(key: u32, version: u64) -> Value {
    (key, version, unix_ms(), padding(key, version))
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_millis()).expect("it is not yet so late")
}

/// Mostly small, now and then large; half of it noise and half of it not.
fn padding(key: u32, version: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(version << 20 ^ u64::from(key));
    let length = if rng.u8(0..32) == 0 { rng.usize(..30_000) } else { rng.usize(..1_500) };
    let mut padding = vec![key as u8; length];
    rng.fill(&mut padding[length / 2..]);
    padding
}

/// Bytes of a key in the file: source, durable version, and when that was flushed.
const LINE: usize = 24;

pub(crate) struct Book {
    file: File,
    keys: Vec<Versions>,
    next: AtomicU64,
}

#[derive(Default)]
struct Versions {
    source: AtomicU64,
    floor: AtomicU64,
    durable: AtomicU64,
}

impl Book {
    /// Opens the book, or begins it.
    pub(crate) fn open(path: &Path) -> Self {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.expect("the book can be opened");
        file.set_len(place(KEYS)).expect("the book can be made");
        let read = |key: u32| {
            let [source, durable, _] = line(&file, key);
            Versions { source: source.into(), floor: durable.into(), durable: durable.into() }
        };
        let keys: Vec<_> = (0..KEYS).map(read).collect();
        let next = keys.iter().map(|key| key.source.load(SeqCst)).max().unwrap_or(0) + 1;
        Self { file, keys, next: AtomicU64::new(next) }
    }

    fn versions(&self, key: u32) -> &Versions {
        &self.keys[key as usize]
    }

    fn write(&self, key: u32, at: u64, numbers: &[u64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let written = self.file.write_all_at(&bytes, place(key) + at);
        written.expect("the book can be written");
    }

    /// What the file says of a key that another process writes.
    pub(crate) fn line(&self, key: u32) -> [u64; 3] {
        loop {
            let (one, again) = (line(&self.file, key), line(&self.file, key));
            if one == again {
                return one;
            }
        }
    }

    /// A new version, as its owner announces it before writing it.
    pub(crate) fn announce(&self, key: u32) -> u64 {
        let version = self.next.fetch_add(1, SeqCst);
        self.write(key, 0, &[version]);
        self.versions(key).source.store(version, SeqCst);
        version
    }

    /// The write of a version has returned.
    pub(crate) fn written(&self, key: u32, version: u64) {
        self.versions(key).floor.store(version, SeqCst);
    }

    /// A version has been flushed, and nothing was lost meanwhile.
    pub(crate) fn flushed(&self, key: u32, version: u64) {
        let before = self.versions(key).durable.fetch_max(version, SeqCst);
        if before < version {
            self.write(key, 8, &[version, unix_ms()]);
        }
    }

    pub(crate) fn source(&self, key: u32) -> u64 {
        self.versions(key).source.load(SeqCst)
    }

    /// What must hold of whatever is found for a key from now on.
    pub(crate) fn ask(&self, key: u32) -> Asked<'_> {
        Asked { book: self, key, floor: self.versions(key).floor.load(SeqCst), at: unix_ms() }
    }

    /// Checks a value that may be as old as it likes.
    pub(crate) fn check_old(&self, key: u32, found: &Value, how: &str) {
        is_whole(key, found, how);
        assert!(found.1 <= self.source(key), "{how} of key {key} found version {}", found.1);
    }
}

fn place(key: u32) -> u64 {
    u64::from(key) * LINE as u64
}

fn line(file: &File, key: u32) -> [u64; 3] {
    let mut line = [0; LINE];
    file.read_exact_at(&mut line, place(key)).expect("the book can be read");
    [0, 8, 16].map(|at| u64::from_le_bytes(line[at..at + 8].try_into().expect("eight bytes")))
}

/// Checks that a value is one of its key.
pub(crate) fn is_whole(key: u32, (named, version, _, found): &Value, how: &str) {
    assert_eq!(key, *named, "{how} of key {key} found a value of another");
    assert!(padding(key, *version) == *found, "{how} of key {key} found a broken {version}");
}

/// Checks that a value that was asked for at a moment has not outlived its time.
pub(crate) fn is_young(key: u32, (.., made, _): &Value, at: u64, stale: Duration, how: &str) {
    let age = Duration::from_millis(at.saturating_sub(*made));
    let most = ttl(key) + stale + SLACK;
    assert!(age <= most, "{how} of key {key} found a value that is {age:?} old");
}

/// A question that was asked at a certain moment.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    book: &'a Book,
    key: u32,
    floor: u64,
    at: u64,
}

impl Asked<'_> {
    /// Checks what was found; `stale` is how long after its time to live it may be served.
    pub(crate) fn found(self, found: Option<&Value>, stale: Duration, how: &str) -> u64 {
        let Some(found) = found else { return 0 };
        let Self { book, key, floor, at } = self;
        book.check_old(key, found, how);
        let version = found.1;
        assert!(version >= floor, "{how} of key {key} found {version}, older than {floor}");
        is_young(key, found, at, stale, how);
        1
    }
}
