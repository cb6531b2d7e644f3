//! The segment log under damage: flipped bits, cut files, a full disk.

#![cfg(all(feature = "disk", unix))]
#![allow(missing_docs)]

mod disk;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cache_tiered::disk::{DiskError, DiskTier, SegmentLog, SegmentLogOptions};
use disk::{SmallDisk, crash_image, directory, disk_usage};

const HEADER_LEN: usize = 36;

fn options(path: &Path) -> SegmentLogOptions {
    let mut options = SegmentLogOptions::new(path, 8 << 20);
    options.segment_bytes = Some(16 << 10);
    options.buffer_bytes = 4 << 10;
    options
}

fn open(path: &Path) -> SegmentLog {
    SegmentLog::open(options(path)).expect("it can be opened")
}

fn segment(path: &Path, id: u64) -> PathBuf {
    path.join(format!("segment-{id:016x}.log"))
}

fn get(log: &SegmentLog, key: &str) -> Option<Vec<u8>> {
    log.get(key.as_bytes(), 5000).expect("the disk can be read").map(Vec::from)
}

fn put(log: &SegmentLog, key: &str, value: &str) {
    log.put(key.as_bytes(), value.as_bytes(), 0).expect("the entry is accepted");
}

/// Each key with its last value; what was before must never be seen again.
const LATEST: [(&str, Option<&str>); 6] = [
    ("replaced", Some("second")),
    ("removed", None),
    ("put again", Some("third")),
    ("expired", None),
    ("untouched", Some("only")),
    ("last", Some("at the end")),
];

/// Writes a history in which every kind of record is superseded by another, over two segments if asked.
fn write_history(path: &Path, segments: u64) {
    let log = open(path);
    put(&log, "replaced", "first");
    put(&log, "removed", "first");
    put(&log, "put again", "first");
    put(&log, "expired", "first");
    put(&log, "untouched", "only");
    for i in 1..segments {
        // The first ends its segment, the others fill one each.
        put(&log, &format!("pad {i}"), &"x".repeat(if i == 1 { 15_900 } else { 16_340 }));
    }
    put(&log, "replaced", "second");
    log.remove(b"removed").expect("it can be removed");
    put(&log, "put again", "second");
    log.remove(b"put again").expect("it can be removed");
    put(&log, "put again", "third");
    log.put(b"expired", b"second", 4000).expect("the entry is accepted");
    put(&log, "last", "at the end");
    log.flush().expect("it can be flushed");
    assert!(segment(path, segments - 1).exists());
    assert!(!segment(path, segments).exists());
}

fn nothing_wrong(log: &SegmentLog, what: &str) -> usize {
    let found = LATEST.map(|(key, latest)| {
        let found = get(log, key).map(|value| String::from_utf8_lossy(&value).into_owned());
        assert!(found.is_none() || found.as_deref() == latest, "{what}: {key} is {found:?}");
        found.is_some()
    });
    found.into_iter().filter(|found| *found).count()
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).expect("the segment opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the byte is there");
    file.write_all_at(&[byte[0] ^ mask], at).expect("it can be written");
}

/// The bytes worth flipping: all, but of long padding only the beginning.
fn positions(len: u64) -> impl Iterator<Item = u64> {
    (0..len).filter(move |at| !(400..len.saturating_sub(60)).contains(at))
}

#[test]
fn a_flipped_bit_anywhere_never_makes_a_value_wrong_at_the_next_opening() {
    for segments in [1, 2] {
        let directory = directory();
        let path = directory.path().join("cache");
        write_history(&path, segments);
        let mut found = 0;
        for id in 0..segments {
            let file = segment(&path, id);
            let intact = fs::read(&file).expect("the segment can be read");
            for at in positions(intact.len() as u64) {
                for bit in 0..8 {
                    let image = directory.path().join("image");
                    crash_image(&path, &image);
                    flip(&segment(&image, id), at, 1 << bit);
                    for _ in 0..2 {
                        let log = open(&image);
                        found += nothing_wrong(&log, &format!("segment {id}, byte {at}.{bit}"));
                    }
                    fs::remove_dir_all(&image).expect("the image can be deleted");
                }
            }
        }
        assert!(found > 0, "not everything may be lost each time");
    }
}

#[test]
fn a_flipped_bit_anywhere_never_makes_a_value_wrong_while_open() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 2);
    for id in 0..2 {
        for at in positions(fs::metadata(segment(&path, id)).expect("it is there").len()) {
            let image = directory.path().join("image");
            crash_image(&path, &image);
            let log = open(&image);
            let mask = 1 << (at % 8);
            flip(&segment(&image, id), at, mask);
            nothing_wrong(&log, &format!("segment {id}, byte {at}, while open"));
            for (key, _) in LATEST {
                log.remove(key.as_bytes()).expect("it can be removed");
            }
            drop(log);
            // The damage heals, as that of a bad cable does: what was removed stays away.
            if File::open(segment(&image, id)).is_ok() {
                flip(&segment(&image, id), at, mask);
            }
            let log = open(&image);
            for (key, _) in LATEST {
                assert_eq!(get(&log, key), None, "segment {id}, byte {at}: {key} came back");
            }
            drop(log);
            fs::remove_dir_all(&image).expect("the image can be deleted");
        }
    }
}

#[test]
fn damage_in_a_value_costs_that_entry_only() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 1);
    let file = segment(&path, 0);
    let bytes = fs::read(&file).expect("the segment can be read");
    let at = bytes.windows(4).position(|window| window == b"only").expect("the value is there");
    flip(&file, at as u64, 1);
    let log = open(&path);
    assert_eq!(log.stats().corrupt, 1);
    assert_eq!(nothing_wrong(&log, "a flipped value"), 3);
    assert_eq!(get(&log, "untouched"), None);
}

#[test]
fn damage_in_a_header_costs_what_is_older_and_nothing_newer() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 3);
    // The pad of the second segment begins with its header.
    flip(&segment(&path, 1), 20, 1);
    let log = open(&path);
    assert!(!segment(&path, 0).exists());
    assert_eq!(get(&log, "untouched"), None);
    assert_eq!(nothing_wrong(&log, "a flipped header"), 3);
    assert!(log.stats().dropped_at_open > 0);
}

#[test]
fn a_missing_segment_costs_what_is_older() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 3);
    fs::remove_file(segment(&path, 1)).expect("it can be deleted");
    let log = open(&path);
    assert_eq!(get(&log, "untouched"), None, "what replaced it may have been in the hole");
    assert_eq!(nothing_wrong(&log, "a missing segment"), 3);
}

#[test]
fn a_log_cut_anywhere_is_the_log_of_an_earlier_moment() {
    let directory = directory();
    let path = directory.path().join("cache");
    let log = open(&path);
    let mut states = vec![(0, HashMap::new())];
    let mut model: HashMap<String, String> = HashMap::new();
    for i in 0..12_u64 {
        let key = format!("key {}", i % 4);
        if i % 5 == 4 {
            assert_eq!(log.remove(key.as_bytes()).expect("it works"), model.remove(&key).is_some());
        } else {
            put(&log, &key, &format!("value {i}"));
            model.insert(key, format!("value {i}"));
        }
        log.flush().expect("it can be flushed");
        let len = fs::metadata(segment(&path, 0)).expect("it is there").len();
        states.push((len, model.clone()));
    }
    drop(log);
    let full = states.last().expect("there are states").0;
    for cut in 0..=full {
        let image = directory.path().join("image");
        crash_image(&path, &image);
        let file = File::options().write(true).open(segment(&image, 0)).expect("it opens");
        file.set_len(cut).expect("it can be cut");
        let (len, expected) = states.iter().rev().find(|(len, _)| *len <= cut).expect("one fits");
        for _ in 0..2 {
            let log = open(&image);
            for key in (0..4).map(|i| format!("key {i}")) {
                let found = get(&log, &key).map(|v| String::from_utf8(v).expect("text"));
                assert_eq!(found.as_ref(), expected.get(&key), "{key}, cut at {cut}");
            }
            assert_eq!(log.stats().corrupt, 0, "a torn tail is no damage");
        }
        assert_eq!(fs::metadata(segment(&image, 0)).expect("it is there").len(), *len);
        fs::remove_dir_all(&image).expect("the image can be deleted");
    }
}

#[test]
fn an_older_segment_cut_anywhere_makes_nothing_wrong() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 3);
    let len = fs::metadata(segment(&path, 1)).expect("it is there").len();
    for cut in positions(len).step_by(3) {
        for id in [0, 1] {
            let image = directory.path().join("image");
            crash_image(&path, &image);
            let file = File::options().write(true).open(segment(&image, id)).expect("it opens");
            if cut < file.metadata().expect("it is there").len() {
                file.set_len(cut).expect("it can be cut");
            }
            nothing_wrong(&open(&image), &format!("segment {id} cut at {cut}"));
            fs::remove_dir_all(&image).expect("the image can be deleted");
        }
    }
}

#[test]
fn a_tail_of_zeros_is_cut_off() {
    let directory = directory();
    let path = directory.path().join("cache");
    write_history(&path, 1);
    let file = File::options().write(true).open(segment(&path, 0)).expect("it opens");
    let len = file.metadata().expect("it is there").len();
    file.set_len(len + 3 * 4096).expect("it can grow");
    let log = open(&path);
    assert_eq!(nothing_wrong(&log, "zeros at the end"), 4);
    assert_eq!(log.stats().corrupt, 0);
    assert_eq!(file.metadata().expect("it is there").len(), len);
}

/// Fills the first segment so far that the next entry of 3,000 bytes begins another.
fn fill_first_segment(log: &SegmentLog, path: &Path) {
    let room = |path: &Path| 16_384 - fs::metadata(segment(path, 0)).map_or(0, |meta| meta.len());
    for i in 0.. {
        log.flush().expect("it can be flushed");
        if room(path) < 3000 {
            return;
        }
        put(log, &format!("fill {i}"), &"f".repeat(2000));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_failed_write_replaced_does_not_come_back() {
    let directory = directory();
    let path = directory.path().join("cache");
    let log = open(&path);
    for key in ["replaced", "removed", "kept"] {
        put(&log, key, "first");
    }
    fill_first_segment(&log, &path);

    std::os::unix::fs::symlink("/dev/full", segment(&path, 1)).expect("a link can be made");
    put(&log, "replaced", &"second".repeat(500));
    assert!(log.remove(b"removed").expect("it is queued"));
    let error = log.flush().expect_err("the device is full");
    assert!(matches!(error, DiskError::Full { .. }), "{error:?}");
    log.flush().expect("a failure is reported once");
    assert_eq!(log.stats().dropped_writes, 2);

    let image = directory.path().join("image");
    crash_image(&path, &image);
    for log in [&log, &open(&image)] {
        assert_eq!(get(log, "replaced"), None);
        assert_eq!(get(log, "removed"), None);
        assert_eq!(get(log, "kept").as_deref(), Some(&b"first"[..]), "reads go on");
    }

    put(&log, "replaced", "third");
    log.flush().expect("there is room again");
    drop(log);
    let log = open(&path);
    assert_eq!(get(&log, "replaced").as_deref(), Some(&b"third"[..]));
    assert_eq!(get(&log, "removed"), None);
    let stats = log.stats();
    assert_eq!((stats.corrupt, stats.dropped_at_open), (0, 0));
}

#[test]
fn on_a_full_disk_writes_are_dropped_and_reads_go_on_and_it_recovers() {
    let directory = directory();
    let Some(disk) = SmallDisk::mount(&directory.path().join("disk"), 2 << 20) else {
        println!("SKIPPED: mounting a tmpfs takes root; /dev/full covers the rest");
        return;
    };
    let path = disk.path().join("cache");
    let mut log = Some(open(&path));
    let mut model: HashMap<String, Vec<u8>> = HashMap::new();
    let (mut full, mut flushed) = (0, 0);
    let mut random = random();
    for round in 0..120 {
        disk.set_ballast(if round % 15 % 7 < 3 { 0 } else { 2 << 20 });
        if round % 15 == 0 {
            // A log never shrinks otherwise while its oldest entries live.
            let log = log.as_ref().expect("it is open");
            log.clear().expect("it can be cleared");
            model.clear();
            for key in 0..20 {
                put(log, &format!("kept {key}"), "reads go on");
            }
            log.flush().expect("there is room again");
        }
        match scribble(log.as_ref().expect("it is open"), &mut model, &mut random, round) {
            Ok(()) => flushed += 1,
            Err(DiskError::Full { .. }) => full += 1,
            Err(other) => panic!("{other:?}"),
        }
        compare(log.as_ref().expect("it is open"), &model, "while open");
        let image = directory.path().join("image");
        crash_image(&path, &image);
        compare(&open(&image), &model, "after a crash");
        fs::remove_dir_all(&image).expect("the image can be deleted");
        if round % 4 == 3 {
            drop(log.take());
            log = Some(open(&path));
        }
        for key in 0..20 {
            let found = get(log.as_ref().expect("it is open"), &format!("kept {key}"));
            assert_eq!(found.as_deref(), Some(&b"reads go on"[..]), "round {round}");
        }
    }
    println!("{full} flushes failed for want of room, {flushed} did not");
    assert!(full > 20 && flushed > 20, "{full} flushes failed, {flushed} did not");
}

#[test]
fn a_log_larger_than_its_disk_goes_on_with_the_space_of_the_dead() {
    let directory = directory();
    let Some(disk) = SmallDisk::mount(&directory.path().join("disk"), 256 << 10) else {
        println!("SKIPPED: mounting a tmpfs takes root");
        return;
    };
    let log = open(&disk.path().join("cache"));
    let mut model = HashMap::new();
    let mut random = random();
    let mut run = |rounds: std::ops::Range<u64>| {
        let before = log.stats().bytes_written;
        let results = rounds.map(|round| scribble(&log, &mut model, &mut random, round).is_ok());
        let full = results.filter(|ok| !ok).count();
        (full, log.stats().bytes_written - before)
    };
    let (full, _) = run(0..50);
    assert!(full > 0, "the disk was full");
    let (_, written) = run(50..100);
    assert!(written > 256 << 10, "{written} bytes were written to a disk that had been full");
    compare(&log, &model, "at the end");
}

/// Returns a generator of numbers below a bound, the same each time.
fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 7_u64;
    move |end| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    }
}

const SCRIBBLED: u64 = 60;

/// Puts and removes at random, about 100 KiB, and flushes.
fn scribble(
    log: &SegmentLog,
    model: &mut HashMap<String, Vec<u8>>,
    random: &mut impl FnMut(u64) -> u64,
    round: u64,
) -> Result<(), DiskError> {
    for step in 0..60 {
        let key = format!("key {}", random(SCRIBBLED));
        if random(5) == 0 {
            log.remove(key.as_bytes()).expect("it is queued");
            model.remove(&key);
        } else {
            let value = format!("{round}/{step}/").repeat(1 + random(600) as usize).into_bytes();
            log.put(key.as_bytes(), &value, 0).expect("it is queued");
            model.insert(key, value);
        }
    }
    log.flush()
}

/// Every key has its last value or none.
fn compare(log: &SegmentLog, model: &HashMap<String, Vec<u8>>, what: &str) {
    for key in (0..SCRIBBLED).map(|i| format!("key {i}")) {
        if let Some(value) = get(log, &key) {
            assert_eq!(Some(&value), model.get(&key), "{what}: {key}");
        }
    }
}

#[test]
fn the_index_is_bounded_in_entries() {
    let directory = directory();
    let path = directory.path().join("cache");
    let mut options = options(&path);
    options.max_entries = Some(1000);
    let log = SegmentLog::open(options).expect("it can be opened");
    for i in 0..5000_u32 {
        log.put(&i.to_le_bytes(), b"tiny", 0).expect("the entry is accepted");
    }
    log.flush().expect("it can be flushed");
    let stats = log.stats();
    let in_a_buffer = (4 << 10) / HEADER_LEN as u64;
    assert!(stats.entries <= 1000 + in_a_buffer, "{stats:?}");
    assert!(stats.entries >= 500, "{stats:?}");
    assert!(disk_usage(&path) < 1 << 20);
}

#[test]
fn every_put_is_synced_where_the_policy_says_always() {
    use cache_tiered::disk::Fsync;
    let directory = directory();
    let path = directory.path().join("cache");
    let mut options = options(&path);
    options.fsync = Fsync::Always;
    let log = SegmentLog::open(options).expect("it can be opened");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for i in 0..5 {
                    put(log, &format!("{thread}/{i}"), "value");
                }
            });
        }
    });
    let image = directory.path().join("image");
    crash_image(&path, &image);
    let stats = log.stats();
    assert!((1..=20).contains(&stats.syncs), "{stats:?}");
    let copy = open(&image);
    assert_eq!(copy.stats().entries, 20, "nothing waits in a buffer");
}
