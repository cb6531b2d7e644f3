//! Tests of what only the inside of the segment log shows: reads during eviction, and failed writes.

use std::fs;
use std::path::PathBuf;
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

fn with_checkpoints(path: &Path) -> SegmentLogOptions {
    let mut options = small(path);
    options.checkpoint_min_bytes = 0;
    options
}

fn reopen(path: &Path) -> SegmentLog {
    SegmentLog::open(with_checkpoints(path)).expect("it can be opened")
}

/// Six segments of puts, replacements and removals; returns what is there.
fn fill(log: &SegmentLog) -> Vec<Option<Vec<u8>>> {
    let mut model = vec![None; 100];
    for i in 0..180_u64 {
        let key = i * 7 % 100;
        log.put(&key.to_le_bytes(), &value(i), 0).expect("the entry is accepted");
        model[key as usize] = Some(value(i));
        if i % 9 == 4 {
            let gone = i * 3 % 100;
            log.remove(&gone.to_le_bytes()).expect("it can be removed");
            model[gone as usize] = None;
        }
    }
    log.flush().expect("it can be flushed");
    model
}

/// Compares every key; what is not there may be allowed, what is wrong never is.
fn check(log: &SegmentLog, model: &[Option<Vec<u8>>], may_miss: bool, what: &str) {
    for (key, expected) in model.iter().enumerate() {
        let found = log.get(&(key as u64).to_le_bytes(), 0).expect("it can be read");
        if found.is_some() || !may_miss {
            assert_eq!(found.as_deref(), expected.as_deref(), "{what}: key {key}");
        }
    }
}

fn checkpoints(path: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(path).expect("it can be listed").map(|entry| entry.expect("one"));
    let mut paths: Vec<_> = names
        .filter(|entry| entry.file_name().to_str().and_then(Segment::id_of_checkpoint).is_some())
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

#[test]
fn after_a_clean_close_nothing_is_scanned_and_after_a_crash_the_newest_segment_only() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    let image = directory.path().join("image");
    let log = reopen(&path);
    let model = fill(&log);
    let uncovered = log.stats().uncovered_bytes;
    assert!((1..16 << 10).contains(&uncovered), "{uncovered}");
    copy(&path, &image);
    drop(log);
    for (path, scanned) in [(&path, 0), (&image, uncovered)] {
        let log = reopen(path);
        let stats = log.stats();
        assert_eq!((stats.scanned_at_open_bytes, stats.corrupt), (scanned, 0));
        assert_eq!(stats.entries, model.iter().flatten().count() as u64);
        check(&log, &model, false, "reopened");
        // The newest segment goes on, beyond its checkpoint.
        log.put(b"after", b"value", 0).expect("the entry is accepted");
        log.flush().expect("it can be flushed");
        drop(log);
        let log = reopen(path);
        assert_eq!(log.stats().scanned_at_open_bytes, 0);
        assert!(log.get(b"after", 0).expect("it can be read").is_some());
        check(&log, &model, false, "reopened twice");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for entry in fs::read_dir(from).expect("it can be listed") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
    }
}

#[test]
fn a_checkpoint_with_any_bit_flipped_or_any_byte_missing_is_not_believed() {
    let mut digest = Digest::default();
    let mut block = Vec::new();
    for i in 0..6_u64 {
        let header =
            if i == 4 { Header::tombstone(2) } else { Header::put(i, b"key", &value(i), i * 1000) };
        let place = Place { seed: 3, segment: 5, offset: block.len() as u32 };
        block.extend_from_slice(&header.encode(place));
        let mut next = Digest::default();
        next.push(&header, &block[place.offset as usize..], i != 4);
        digest.extend(&next);
        if i != 4 {
            block.extend_from_slice(b"key");
            block.extend_from_slice(&value(i));
        }
    }
    assert_eq!((digest.records(), digest.covered as usize), (6, block.len()));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let segment = directory.path().join("segment-0000000000000005.log");
    digest.write(3, 5, &segment, true).expect("it can be written");
    let file = fs::read(segment::checkpoint_path(&segment)).expect("it is there");
    assert_eq!(file.len() as u64, digest.file_len());
    let parse = |bytes: &[u8], seed, id, len| checkpoint::parse(bytes, seed, id, len);
    let len = block.len() as u64;
    let Ok(checkpoint::Found::Whole(found)) = parse(&file, 3, 5, len) else {
        panic!("it is whole")
    };
    assert_eq!(found, digest);
    assert_eq!(found.changes(5).map(|slot| slot.len).filter(|len| *len == 0).count(), 1);
    let refused = |bytes: &[u8], seed, id, what: &str| {
        let found = parse(bytes, seed, id, len);
        assert!(!matches!(found, Ok(checkpoint::Found::Whole(_))), "{what}: {found:?}");
    };
    for bit in 0..8 * file.len() {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        refused(&damaged, 3, 5, &format!("bit {bit}"));
    }
    for cut in 0..file.len() {
        refused(&file[..cut], 3, 5, &format!("cut at {cut}"));
    }
    refused(&[&file[..], &[0]].concat(), 3, 5, "longer");
    refused(&file, 4, 5, "of another directory");
    refused(&file, 3, 6, "of another segment");
    let shorter = parse(&file, 3, 5, len - 1);
    assert!(matches!(shorter, Ok(checkpoint::Found::Beyond)), "{shorter:?}");
}

#[test]
fn damaged_missing_and_foreign_checkpoints_cost_a_scan_and_no_entry() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    let model = fill(&reopen(&path));
    let other = directory.path().join("other");
    fill(&reopen(&other));
    let count = checkpoints(&path).len();
    assert_eq!(count, 6);
    for at in 0..count {
        for damage in 0..6 {
            let image = directory.path().join("image");
            copy(&path, &image);
            let file = &checkpoints(&image)[at];
            let mut bytes = fs::read(file).expect("it is there");
            match damage {
                0 => drop(bytes.split_off(bytes.len() / 2)),
                1 => bytes.clear(),
                2 => bytes[60] ^= 4,
                3 => bytes = fs::read(&checkpoints(&other)[at]).expect("it is there"),
                4 => bytes = fs::read(&checkpoints(&image)[(at + 1) % count]).expect("one"),
                _ => {}
            }
            fs::write(file, bytes).expect("it can be written");
            if damage == 5 {
                fs::remove_file(file).expect("it can be deleted");
                // What a process leaves that was killed while it wrote one.
                fs::write(file.with_extension("index-new"), b"UPCP").expect("it can be written");
            }
            for round in 0..2 {
                let log = reopen(&image);
                let stats = log.stats();
                assert_eq!((stats.corrupt, stats.dropped_at_open), (0, 0), "{at}, {damage}");
                assert_eq!(stats.scanned_at_open_bytes > 0, round == 0, "{at}, {damage}");
                check(&log, &model, false, "after damage");
                drop(log);
                assert_eq!(checkpoints(&image).len(), count);
                assert!(!file.with_extension("index-new").exists());
            }
            fs::remove_dir_all(&image).expect("it can be deleted");
        }
    }
}

#[test]
fn a_segment_that_lost_records_is_told_by_its_checkpoint() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    let model = fill(&reopen(&path));
    let record = (HEADER_LEN + 8 + 480) as u64;
    for id in 0..6_u64 {
        let image = directory.path().join("image");
        copy(&path, &image);
        let segment = Segment::new(&image, id).path;
        let file = fs::File::options().write(true).open(&segment).expect("it opens");
        // Between two records, which nothing but the checkpoint can tell.
        file.set_len(record).expect("it can be cut");
        let log = reopen(&image);
        let stats = log.stats();
        assert_eq!(stats.corrupt > 0, id < 5, "segment {id}: {stats:?}");
        if id < 5 {
            check(&log, &model, true, "cut");
        }
        drop(log);
        assert!(reopen(&image).stats().corrupt == 0);
        fs::remove_dir_all(&image).expect("it can be deleted");
    }
}

#[test]
fn a_record_that_is_withdrawn_in_place_takes_its_checkpoint_along() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    drop(fill(&reopen(&path)));
    let log = reopen(&path);
    assert_eq!(checkpoints(&path).len(), 6);
    let slot = log.index.get(log.hash(&99_u64.to_le_bytes())).expect("it is there");
    assert!(log.discard_damaged(&slot, true));
    assert_eq!(checkpoints(&path).len(), 5);
    drop(log);
    let log = reopen(&path);
    assert!(!log.contains(&99_u64.to_le_bytes()));
    assert_eq!(log.stats().corrupt, 0);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_done_without() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    let log = reopen(&path);
    for id in 0..6 {
        // A directory in its place: every way to write the file fails.
        let aside = Segment::new(&path, id).checkpoint_path().with_extension("index-new");
        fs::create_dir(aside).expect("it can be made");
    }
    let model = fill(&log);
    check(&log, &model, false, "while open");
    assert_eq!((log.stats().checkpoints, log.stats().io_errors > 0), (0, true));
    drop(log);
    for id in 0..6 {
        let aside = Segment::new(&path, id).checkpoint_path().with_extension("index-new");
        fs::remove_dir(aside).expect("it can be deleted");
    }
    check(&reopen(&path), &model, false, "reopened");
    check(&reopen(&path), &model, false, "reopened with checkpoints");
}

#[test]
fn a_directory_of_version_1_is_read_and_becomes_one_of_version_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("log");
    let model = fill(&reopen(&path));
    let format = path.join("FORMAT");
    let text = fs::read_to_string(&format).expect("it is there");
    fs::write(&format, text.replace("version = 2", "version = 1")).expect("it can be written");
    checkpoints(&path).iter().for_each(|file| fs::remove_file(file).expect("it can be deleted"));
    check(&reopen(&path), &model, false, "version 1");
    assert_eq!(fs::read_to_string(&format).expect("it is there"), text);
    assert_eq!(reopen(&path).stats().scanned_at_open_bytes, 0);
}

#[test]
fn what_is_read_again_and_again_outlives_its_segment_and_the_rest_does_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = open(directory.path());
    let kept = [b"kept 0".as_slice(), b"kept 1", b"kept 2"];
    let get = |key: &[u8], now| log.get(key, now).expect("it can be read");
    for key in kept {
        log.put(key, b"popular", 0).expect("the entry is accepted");
    }
    log.put(b"brief", b"popular", 10_000).expect("the entry is accepted");
    log.put(b"unread", b"value", 0).expect("the entry is accepted");
    let puts = 20_000_u64;
    let mut brief_until = 0;
    for i in 0..puts {
        log.put(&i.to_le_bytes(), &value(i), 0).expect("the entry is accepted");
        for key in kept {
            assert_eq!(get(key, i).as_deref(), Some(&b"popular"[..]), "after {i} puts");
        }
        if get(b"brief", i).is_some() {
            brief_until = i;
        }
    }
    assert_eq!(brief_until, 9_999, "it was copied and kept its expiry");
    assert_eq!(get(b"unread", 0), None);
    log.flush().expect("it can be flushed");
    let stats = log.stats();
    let payload = puts * (HEADER_LEN as u64 + 8 + 480);
    assert!(stats.copied_forward > 20, "{stats:?}");
    assert!(stats.bytes_written < payload + payload / 50, "{stats:?}");
    assert_eq!((stats.corrupt, stats.io_errors), (0, 0), "{stats:?}");
    drop(log);
    let log = open(directory.path());
    for key in kept {
        assert!(log.get(key, puts).expect("it can be read").is_some());
    }
}

#[test]
fn no_more_than_its_share_of_a_segment_is_copied() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = open(directory.path());
    let mut last = 0;
    for i in 0..20_000_u64 {
        log.put(&i.to_le_bytes(), &value(i), 0).expect("the entry is accepted");
        // Everything is read once it is in, and so everything would be copied.
        log.get(&i.to_le_bytes(), 0).expect("it can be read");
        assert!(log.stats().disk_bytes <= 1 << 20);
        last = i;
    }
    assert!(log.contains(&last.to_le_bytes()));
    let stats = log.stats();
    let payload = 20_000 * (HEADER_LEN as u64 + 8 + 480);
    assert!(stats.copied_forward_bytes > payload / 10, "{stats:?}");
    assert!(stats.bytes_written * 3 <= payload * 4, "{stats:?}");
}

#[test]
fn a_copy_never_undoes_a_put_or_a_removal() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = open(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let log = &log;
            scope.spawn(move || {
                let mut model = vec![None; 300];
                for i in 0..6_000_u64 {
                    let at = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 300;
                    let key = (thread * 1_000 + at).to_le_bytes();
                    let found = log.get(&key, 0).expect("it can be read");
                    if found.is_some() {
                        assert_eq!(found.as_deref(), model[at as usize].as_deref(), "{i}");
                    }
                    if i % 5 == 0 {
                        log.remove(&key).expect("it can be removed");
                        model[at as usize] = None;
                    } else if i % 5 < 3 {
                        log.put(&key, &value(i), 0).expect("the entry is accepted");
                        model[at as usize] = Some(value(i));
                    }
                }
            });
        }
    });
    let stats = log.stats();
    assert!(stats.copied_forward > 0 && stats.corrupt == 0, "{stats:?}");
}

proptest::proptest! {
    #[test]
    fn a_replay_does_what_the_changes_do_one_after_the_other(
        changes in proptest::collection::vec((0..40_u64, 0..4_u32, 0..3_u32), 0..400),
    ) {
        let index = Index::new();
        let mut model = std::collections::HashMap::new();
        let slot = |(key, len, segment): (u64, u32, u32), offset: usize| Slot {
            hash: key.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            segment,
            offset: offset as u32,
            len,
            expires_s: 0,
        };
        let changes: Vec<_> =
            changes.into_iter().enumerate().map(|(at, change)| slot(change, at)).collect();
        for change in &changes {
            if change.len == 0 {
                model.remove(&change.hash);
            } else {
                model.insert(change.hash, *change);
            }
        }
        let mut sorted = Vec::new();
        for part in changes.chunks(150) {
            index.replay(part, &mut sorted);
        }
        for change in &changes {
            proptest::prop_assert_eq!(index.get(change.hash), model.get(&change.hash).copied());
        }
        let bytes = model.values().map(|slot| u64::from(slot.len)).sum::<u64>();
        proptest::prop_assert_eq!(index.size(), (model.len() as u64, bytes));
    }
}
