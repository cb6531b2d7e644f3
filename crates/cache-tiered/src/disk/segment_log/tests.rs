//! Tests of what only the inside of the segment log shows: reads during eviction, and failed writes.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::record::START;
use super::*;

fn small(path: &Path) -> SegmentLogOptions {
    let mut options = SegmentLogOptions::new(path, 1 << 20);
    options.segment_bytes = Some(16 << 10);
    options.buffer_bytes = 2 << 10;
    options
}

fn open(path: &Path) -> SegmentLog {
    SegmentLog::open(small(path)).expect("it can be opened")
}

fn value(i: u64) -> Vec<u8> {
    i.to_le_bytes().repeat(60)
}

#[test]
fn a_header_is_valid_at_its_own_place_only() {
    let place = Place { seed: 1, segment: 2, offset: 3 };
    let header = Header::put(7, b"key", b"value", 9);
    let bytes = header.encode(place);
    assert_eq!(Header::decode(&bytes, place), Some(header));
    for other in [
        Place { seed: 0, ..place },
        Place { segment: 3, ..place },
        Place { segment: 2 + (1 << 32), ..place },
        Place { offset: 4, ..place },
    ] {
        assert_eq!(Header::decode(&bytes, other), None, "{other:?}");
    }
    for bit in 0..8 * HEADER_LEN {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        let decoded = Header::decode(&damaged, place);
        assert!(decoded.is_none_or(|header| !header.live), "bit {bit}: {decoded:?}");
    }
    assert_eq!(Header::decode(&bytes[..HEADER_LEN - 1], place), None);
}

#[test]
fn a_value_that_looks_like_a_record_is_never_taken_for_one() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path();
    let log = open(path);
    let hash = log.hash(b"victim");
    // All that an attacker could copy: valid records of this very segment, of other places.
    let mut forged = Vec::new();
    for offset in 0..200 {
        let place = Place { seed: log.directory.seed(), segment: 0, offset: offset * 64 + 7 };
        forged.extend_from_slice(&Header::put(hash, b"victim", b"forged", 0).encode(place));
        forged.extend_from_slice(b"victimforged");
    }
    log.put(b"carrier", &forged, 0).expect("the entry is accepted");
    log.put(b"next", b"value", 0).expect("the entry is accepted");
    log.flush().expect("it can be flushed");
    let file = log.segments.read()[0].path.clone();
    drop(log);
    let mut bytes = fs::read(&file).expect("the segment can be read");
    assert!(bytes.windows(2).filter(|window| *window == START).count() > 200);
    bytes[9] ^= 1;
    fs::write(&file, bytes).expect("the segment can be written");
    let log = open(path);
    assert_eq!(log.get(b"victim", 0).expect("it can be read"), None);
    assert!(!log.contains(b"victim"));
    assert_eq!(log.get(b"next", 0).expect("it can be read").as_deref(), Some(&b"value"[..]));
}

#[test]
fn readers_of_the_oldest_entries_see_them_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = open(directory.path());
    let written = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let hits = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (log, written, done) = (&log, &written, &done);
                scope.spawn(move || {
                    let mut hits = 0_u64;
                    let mut back = reader;
                    while !done.load(Ordering::Acquire) {
                        // Around the age at which entries are evicted, about 1,850 puts.
                        back = (back + 7) % 400;
                        let Some(i) = written.load(Ordering::Acquire).checked_sub(1600 + back)
                        else {
                            continue;
                        };
                        if let Some(found) = log.get(&i.to_le_bytes(), 0).expect("it can be read") {
                            assert_eq!(found, value(i));
                            hits += 1;
                        }
                    }
                    hits
                })
            })
            .collect();
        for i in 0..30_000_u64 {
            log.put(&i.to_le_bytes(), &value(i), 0).expect("the entry is accepted");
            written.store(i, Ordering::Release);
        }
        done.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().expect("the reader ends")).sum::<u64>()
    });
    let stats = log.stats();
    assert!(hits > 0 && stats.evicted_capacity > 20_000, "{hits} hits, {stats:?}");
    assert_eq!((stats.corrupt, stats.io_errors), (0, 0), "{stats:?}");
}

#[test]
fn segments_that_cannot_be_marked_are_deleted_with_all_that_is_older() {
    for through in [1, 3, 6] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = open(directory.path());
        for i in 0..200_u64 {
            log.put(&i.to_le_bytes(), &value(i), 0).expect("the entry is accepted");
        }
        log.flush().expect("it can be flushed");
        assert_eq!(log.tail.lock().segment.id, 6);
        log.delete_through(&mut log.tail.lock(), through);
        let first_left = log.segments.read().front().expect("there is one").id;
        assert_eq!(first_left, u64::from(through) + 1);
        log.put(b"after", b"value", 0).expect("the entry is accepted");
        drop(log);
        let log = open(directory.path());
        let stats = log.stats();
        assert_eq!((stats.corrupt, stats.dropped_at_open), (0, 0), "{stats:?}");
        assert!(log.get(b"after", 0).expect("it can be read").is_some());
        for i in 0..200_u64 {
            let found = log.get(&i.to_le_bytes(), 0).expect("it can be read");
            let per_segment = (16 << 10) / (HEADER_LEN as u64 + 8 + 480);
            assert_eq!(found.is_some(), i / per_segment > u64::from(through), "{i}");
        }
    }
}

#[test]
fn the_default_layout_keeps_the_number_of_open_files_small() {
    for (capacity, expected) in [(1 << 20, 32 << 10), (4 << 30, 64 << 20), (1 << 40, 4 << 30)] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = SegmentLog::open(SegmentLogOptions::new(directory.path(), capacity))
            .expect("it can be opened");
        assert_eq!(u64::from(log.segment_bytes), expected.min(MAX_SEGMENT), "{capacity}");
        assert!(log.buffer_bytes <= log.segment_bytes as usize);
    }
}
