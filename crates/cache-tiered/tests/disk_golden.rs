//! A segment log that format version 2 wrote, kept in the repository: it must be readable for ever.
//!
//! A change of the format adds a directory and a test; it does not write this one anew. It was made by
//! `writes_the_golden_directory`, which refuses to overwrite it.

#![cfg(all(feature = "disk", unix))]
#![allow(missing_docs)]

mod disk;

use std::fs;
use std::path::{Path, PathBuf};

use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions, Verdict, verify};
use disk::{crash_image, directory};

const ENTRIES: u32 = 60;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment-log-2")
}

fn open(path: &Path) -> SegmentLog {
    let mut options = SegmentLogOptions::new(path, 1 << 20);
    options.segment_bytes = Some(16 << 10);
    options.checkpoint_min_bytes = 0;
    SegmentLog::open(options).expect("it can be opened")
}

fn value(i: u32) -> Vec<u8> {
    i.to_be_bytes().repeat(i as usize * 2)
}

/// Every third key expires, in the year 2100; every seventh was removed; the first ten were replaced.
fn expected(i: u32, now_ms: u64) -> Option<Vec<u8>> {
    let gone = i.is_multiple_of(7) || i.is_multiple_of(3) && now_ms >= EXPIRY_MS;
    let version = if i < 10 { i + 100 } else { i };
    (!gone).then(|| value(version))
}

const EXPIRY_MS: u64 = 4_102_444_800_000;

#[test]
#[ignore = "the golden directory is written once"]
fn writes_the_golden_directory() {
    assert!(!golden().exists(), "it is there already");
    let log = open(&golden());
    for i in (0..ENTRIES).chain(0..10) {
        let again = log.contains(&i.to_le_bytes());
        let version = if again { i + 100 } else { i };
        let expires = if i.is_multiple_of(3) { EXPIRY_MS } else { 0 };
        log.put(&i.to_le_bytes(), &value(version), expires).expect("the entry is accepted");
    }
    for i in (0..ENTRIES).step_by(7) {
        log.remove(&i.to_le_bytes()).expect("it can be removed");
    }
}

fn check(path: &Path) {
    assert_eq!(verify(path, |_, _| {}).expect("it can be read").verdict(), Verdict::Sound);
    let log = open(path);
    assert_eq!(log.stats().corrupt, 0);
    for now_ms in [1, EXPIRY_MS] {
        for i in 0..ENTRIES {
            let found = log.get(&i.to_le_bytes(), now_ms).expect("it can be read");
            assert_eq!(found.as_deref(), expected(i, now_ms).as_deref(), "{i} at {now_ms}");
        }
    }
}

#[test]
fn a_directory_of_version_2_is_read_by_its_checkpoints() {
    let directory = directory();
    let path = directory.path().join("cache");
    crash_image(&golden(), &path);
    assert_eq!(open(&path).stats().scanned_at_open_bytes, 0);
    check(&path);
}

#[test]
fn without_its_checkpoints_it_is_one_of_version_1_and_is_read_too() {
    let directory = directory();
    let path = directory.path().join("cache");
    crash_image(&golden(), &path);
    for entry in fs::read_dir(&path).expect("it can be listed").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "index") {
            fs::remove_file(entry.path()).expect("it can be deleted");
        }
    }
    let format = path.join("FORMAT");
    let text = fs::read_to_string(&format).expect("it is there");
    fs::write(&format, text.replace("version = 2", "version = 1")).expect("it can be written");
    check(&path);
    assert_eq!(fs::read_to_string(&format).expect("it is there"), text);
}
