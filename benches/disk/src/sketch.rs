//! The least that a log of values can be: what the segment log pays for everything else is seen beside it.
//!
//! Segments of 64 MiB that are only appended to, an index in sixteen shards, a CRC for each record, and
//! copying forward the emptiest segment when the directory is full. Nothing else: a process that is
//! killed loses its last block and its index, nothing is expired, synced, admitted or bounded to the byte,
//! and a full directory is a panic.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

const SEGMENT_BYTES: u32 = 64 << 20;
const BLOCK_BYTES: usize = 64 << 10;
const SHARDS: usize = 16;
const KEY_BYTES: usize = 16;
/// A CRC and the length of the value, before the key.
const HEADER_BYTES: usize = 8;

type Key = [u8; KEY_BYTES];
type Shard = Mutex<HashMap<Key, Place, BuildHasherDefault<DefaultHasher>>>;

#[derive(Clone, Copy, PartialEq)]
struct Place {
    segment: u32,
    offset: u32,
    bytes: u32,
}

struct Segment {
    file: File,
    path: PathBuf,
    written: u32,
}

/// What is appended to, and what of it is not written yet.
struct Tail {
    file: Arc<File>,
    segment: u32,
    written: u32,
    block: Vec<u8>,
}

pub(crate) struct Sketch {
    directory: PathBuf,
    capacity_bytes: u64,
    shards: [Shard; SHARDS],
    tail: Mutex<Tail>,
    /// Those that are full, by their number.
    full: RwLock<HashMap<u32, Arc<Segment>>>,
    dead: Mutex<HashMap<u32, u32>>,
}

impl Sketch {
    pub(crate) fn open(directory: &Path, capacity_bytes: u64) -> Self {
        let tail = Tail { file: create(directory, 0), segment: 0, written: 0, block: Vec::new() };
        Self {
            directory: directory.to_owned(),
            capacity_bytes,
            shards: Default::default(),
            tail: Mutex::new(tail),
            full: RwLock::default(),
            dead: Mutex::default(),
        }
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) {
        let key: Key = key.try_into().expect("a key of 16 bytes");
        self.append(key, value, None);
    }

    pub(crate) fn remove(&self, key: &[u8]) {
        let key: Key = key.try_into().expect("a key of 16 bytes");
        let gone = self.shard(&key).lock().unwrap().remove(&key);
        if let Some(place) = gone {
            self.died(place);
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let key: Key = key.try_into().expect("a key of 16 bytes");
        loop {
            let place = *self.shard(&key).lock().unwrap().get(&key)?;
            if let Some(record) = self.read(place) {
                let sum = u32::from_le_bytes(record[..4].try_into().unwrap());
                assert_eq!(sum, crc32c::crc32c(&record[4..]), "a damaged record");
                assert_eq!(record[HEADER_BYTES..][..KEY_BYTES], key);
                return Some(record[HEADER_BYTES + KEY_BYTES..].to_vec());
            }
        }
    }

    pub(crate) fn flush(&self) {
        self.tail.lock().unwrap().write();
    }

    fn shard(&self, key: &Key) -> &Shard {
        &self.shards[key[0] as usize % SHARDS]
    }

    fn died(&self, place: Place) {
        *self.dead.lock().unwrap().entry(place.segment).or_default() += place.bytes;
    }

    /// Reads a record, or nothing if its segment has gone meanwhile.
    fn read(&self, place: Place) -> Option<Vec<u8>> {
        let mut record = vec![0; place.bytes as usize];
        let segment = self.full.read().unwrap().get(&place.segment).cloned();
        if let Some(segment) = segment {
            segment.file.read_exact_at(&mut record, place.offset.into()).unwrap();
            return Some(record);
        }
        let tail = self.tail.lock().unwrap();
        if tail.segment != place.segment {
            return None;
        }
        if place.offset >= tail.written {
            let at = (place.offset - tail.written) as usize;
            record.copy_from_slice(&tail.block[at..][..place.bytes as usize]);
            return Some(record);
        }
        let file = tail.file.clone();
        drop(tail);
        file.read_exact_at(&mut record, place.offset.into()).unwrap();
        Some(record)
    }

    /// Appends a record; when `moved` is given, only if the key is still there.
    fn append(&self, key: Key, value: &[u8], moved: Option<Place>) {
        let mut tail = self.tail.lock().unwrap();
        let start = tail.block.len();
        let place = Place {
            segment: tail.segment,
            offset: tail.written + start as u32,
            bytes: (HEADER_BYTES + KEY_BYTES + value.len()) as u32,
        };
        tail.block.extend_from_slice(&[0; 4]);
        tail.block.extend_from_slice(&(value.len() as u32).to_le_bytes());
        tail.block.extend_from_slice(&key);
        tail.block.extend_from_slice(value);
        let sum = crc32c::crc32c(&tail.block[start + 4..]);
        tail.block[start..][..4].copy_from_slice(&sum.to_le_bytes());
        let mut shard = self.shard(&key).lock().unwrap();
        let before = match moved {
            Some(from) if shard.get(&key) != Some(&from) => Some(place),
            _ => shard.insert(key, place),
        };
        drop(shard);
        if let Some(before) = before {
            self.died(before);
        }
        if tail.block.len() >= BLOCK_BYTES {
            tail.write();
        }
        if tail.written < SEGMENT_BYTES {
            return;
        }
        let number = tail.segment + 1;
        let old = Segment {
            file: tail.file.try_clone().unwrap(),
            path: path(&self.directory, tail.segment),
            written: tail.written,
        };
        self.full.write().unwrap().insert(tail.segment, Arc::new(old));
        let block = std::mem::take(&mut tail.block);
        *tail = Tail { file: create(&self.directory, number), segment: number, written: 0, block };
        drop(tail);
        if moved.is_none() {
            self.make_room();
        }
    }

    /// Copies what lives in the emptiest segment forward, until the directory is under its capacity.
    fn make_room(&self) {
        loop {
            let full = self.full.read().unwrap();
            let bytes: u64 = full.values().map(|segment| u64::from(segment.written)).sum();
            if bytes + u64::from(SEGMENT_BYTES) <= self.capacity_bytes {
                return;
            }
            let dead = self.dead.lock().unwrap();
            let dead_in = |number: &u32| dead.get(number).copied().unwrap_or(0);
            let (number, segment) = full
                .iter()
                .max_by_key(|(number, _)| dead_in(number))
                .map(|(number, segment)| (*number, segment.clone()))
                .expect("a full directory has segments");
            drop(dead);
            drop(full);
            let mut bytes = vec![0; segment.written as usize];
            segment.file.read_exact_at(&mut bytes, 0).unwrap();
            let mut at = 0;
            while at < bytes.len() {
                let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
                let end = at + HEADER_BYTES + KEY_BYTES + length as usize;
                let key: Key = bytes[at + HEADER_BYTES..][..KEY_BYTES].try_into().unwrap();
                let place = Place { segment: number, offset: at as u32, bytes: (end - at) as u32 };
                if self.shard(&key).lock().unwrap().get(&key) == Some(&place) {
                    self.append(key, &bytes[at + HEADER_BYTES + KEY_BYTES..end], Some(place));
                }
                at = end;
            }
            self.full.write().unwrap().remove(&number);
            self.dead.lock().unwrap().remove(&number);
            std::fs::remove_file(&segment.path).unwrap();
        }
    }
}

impl Tail {
    fn write(&mut self) {
        self.file.write_all_at(&self.block, self.written.into()).unwrap();
        self.written += self.block.len() as u32;
        self.block.clear();
    }
}

fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}"))
}

fn create(directory: &Path, number: u32) -> Arc<File> {
    let path = path(directory, number);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    Arc::new(file.expect("the directory can be written"))
}
