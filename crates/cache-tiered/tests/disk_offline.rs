//! `verify` and `compact`: what they report of a log, sound or damaged, and what they leave.

#![cfg(all(feature = "disk", unix))]
#![allow(missing_docs)]

mod disk;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cache_tiered::disk::{
    CheckpointState, CompactError, Damage, DiskTier, OpenError, SegmentLog, SegmentLogOptions,
    Verdict, compact, verify,
};
use disk::{SmallDisk, crash_image, directory, disk_usage};

fn open(path: &Path) -> SegmentLog {
    let mut options = SegmentLogOptions::new(path, 8 << 20);
    options.segment_bytes = Some(32 << 10);
    options.buffer_bytes = 4 << 10;
    options.checkpoint_min_bytes = 0;
    SegmentLog::open(options).expect("it can be opened")
}

fn segment(path: &Path, id: u64) -> PathBuf {
    path.join(format!("segment-{id:016x}.log"))
}

type Model = HashMap<u32, Vec<u8>>;

/// Puts 500 keys three times over, removes some and lets some expire; returns what is alive.
fn write(path: &Path) -> Model {
    let log = open(path);
    let mut model = Model::new();
    for i in 0..1_500_u32 {
        let key = i * 7 % 500;
        let value = i.to_le_bytes().repeat(60);
        if key % 10 == 3 {
            // In 1970.
            log.put(&key.to_le_bytes(), &value, 5_000).expect("the entry is accepted");
            continue;
        }
        log.put(&key.to_le_bytes(), &value, 0).expect("the entry is accepted");
        model.insert(key, value);
        if i % 11 == 0 {
            log.remove(&key.to_le_bytes()).expect("it can be removed");
            model.remove(&key);
        }
    }
    log.flush().expect("it can be flushed");
    model
}

fn check(path: &Path, model: &Model, may_miss: bool) {
    let log = open(path);
    for key in 0..500_u32 {
        let found = log.get(&key.to_le_bytes(), 10_000).expect("it can be read");
        if found.is_some() || !may_miss {
            assert_eq!(found.as_deref(), model.get(&key).map(Vec::as_slice), "{key}");
        }
    }
}

fn verdict(path: &Path) -> Verdict {
    verify(path, |_, _| {}).expect("it can be read").verdict()
}

#[test]
fn a_sound_log_is_verified_to_the_byte_and_not_changed() {
    let directory = directory();
    let path = directory.path().join("cache");
    let model = write(&path);
    let files = |path: &Path| -> HashMap<_, _> {
        let entries = fs::read_dir(path).expect("it can be listed").flatten();
        entries.map(|entry| (entry.file_name(), fs::read(entry.path()).expect("a file"))).collect()
    };
    let before = files(&path);
    let mut told = Vec::new();
    let report = verify(&path, |done, all| told.push((done, all))).expect("it can be read");
    assert_eq!(files(&path), before);
    assert_eq!(report.verdict(), Verdict::Sound);
    let log = open(&path);
    let stats = log.stats();
    assert_eq!((report.entries, report.live_bytes), (stats.entries, stats.live_bytes));
    assert_eq!(report.entries as usize, model.len() + 50);
    assert!(report.segments.len() > 8);
    assert_eq!(report.segments.iter().map(|s| s.live_records).sum::<u64>(), report.entries);
    assert_eq!(report.segments.iter().map(|s| s.live_bytes).sum::<u64>(), report.live_bytes);
    assert!(report.segments.iter().all(|s| s.checkpoint == CheckpointState::Sound));
    let all: u64 = report.segments.iter().map(|s| s.bytes).sum();
    assert_eq!(told.last(), Some(&(all, all)));
    assert!(told.is_sorted());
}

#[test]
fn what_is_damaged_is_named_with_its_place() {
    let directory = directory();
    let path = directory.path().join("cache");
    let model = write(&path);
    let record = 36 + 4 + 240_u64;
    let damage = |what: &dyn Fn(&Path)| {
        let image = directory.path().join("image");
        crash_image(&path, &image);
        what(&image);
        let report = verify(&image, |_, _| {}).expect("it can be read");
        check(&image, &model, true);
        fs::remove_dir_all(&image).expect("it can be deleted");
        report
    };
    let set = |path: &Path, at: u64| {
        let file = File::options().read(true).write(true).open(path).expect("it opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("the byte is there");
        file.write_all_at(&[byte[0] ^ 1], at).expect("it can be written");
    };
    let broken = |report: &cache_tiered::disk::VerifyReport, segment: usize| {
        let broken = &report.segments[segment].broken;
        broken.iter().map(|broken| (broken.offset, broken.reason)).collect::<Vec<_>>()
    };

    let report = damage(&|image| set(&segment(image, 2), 5));
    assert_eq!(report.verdict(), Verdict::Damaged);
    assert_eq!(broken(&report, 2), [(0, Damage::Header)]);
    assert_eq!(report.segments[1].live_records, 0, "what is older is not trusted");

    let report = damage(&|image| {
        // The first record of the segment may be a tombstone; the second is not, then.
        let bytes = fs::read(segment(image, 2)).expect("it is there");
        let first = if bytes[3] == 2 { 36 } else { 0 };
        set(&segment(image, 2), first + 100);
    });
    assert_eq!(report.verdict(), Verdict::Damaged);
    assert!(matches!(broken(&report, 2)[..], [(0 | 36, Damage::Body)]), "{report:?}");

    let report = damage(&|image| {
        let file = File::options().write(true).open(segment(image, 2)).expect("it opens");
        file.set_len(record).expect("it can be cut");
    });
    assert_eq!(report.verdict(), Verdict::Damaged);
    assert!(broken(&report, 2).iter().any(|(_, reason)| *reason == Damage::CutOff), "{report:?}");

    let report = damage(&|image| fs::remove_file(segment(image, 3)).expect("it can be deleted"));
    assert_eq!((report.verdict(), report.gaps), (Verdict::Damaged, 1));

    let report = damage(&|image| {
        set(&segment(image, 4).with_extension("index"), 50);
    });
    assert_eq!(report.verdict(), Verdict::Damaged);
    assert_eq!(report.segments[4].checkpoint, CheckpointState::Broken);

    let last = fs::read_dir(&path).expect("it can be listed").flatten().map(|e| e.path());
    let last = last.filter(|p| p.extension().is_some_and(|e| e == "log")).max().expect("one");
    let report = damage(&|image| {
        let file = image.join(last.file_name().expect("a name"));
        let len = fs::metadata(&file).expect("it is there").len();
        File::options().write(true).open(file).expect("it opens").set_len(len - 7).expect("a cut");
    });
    assert_eq!(report.verdict(), Verdict::TornTail);
}

#[test]
fn compaction_keeps_what_is_alive_and_gives_the_rest_back() {
    let directory = directory();
    let path = directory.path().join("cache");
    let model = write(&path);
    let before = disk_usage(&path);
    let mut told = Vec::new();
    let report = compact(&path, |done, all| told.push((done, all))).expect("it can be compacted");
    assert_eq!((report.entries as usize, report.expired, report.broken), (model.len(), 50, 0));
    assert!(report.bytes_after * 2 < report.bytes_before, "{report:?}");
    assert!(disk_usage(&path) * 2 < before);
    assert!(told.is_sorted() && told.last().is_some_and(|(done, all)| done == all));
    assert_eq!(verdict(&path), Verdict::Sound);
    let live: u64 = verify(&path, |_, _| {}).expect("it can be read").live_bytes;
    let entries = model.len() as u64;
    assert_eq!(live, entries * (36 + 4 + 240), "an expired entry is gone");
    check(&path, &model, false);
    let again = compact(&path, |_, _| {}).expect("it can be compacted");
    assert_eq!((again.entries, again.expired), (entries, 0));
    check(&path, &model, false);
}

#[test]
fn an_empty_newest_segment_is_gone_on_with() {
    let directory = directory();
    let path = directory.path().join("cache");
    let model = write(&path);
    // As a process leaves it that was killed between making a file and writing to it.
    let newest = verify(&path, |_, _| {}).expect("it can be read").segments.last().map(|it| it.id);
    let empty = segment(&path, newest.expect("there are segments") + 1);
    File::create(&empty).expect("it can be made");
    let report = compact(&path, |_, _| {}).expect("it can be compacted");
    assert_eq!(report.entries as usize, model.len());
    assert!(fs::metadata(&empty).is_ok_and(|file| file.len() > 0));
    assert_eq!(verdict(&path), Verdict::Sound);
    check(&path, &model, false);
}

#[test]
fn compaction_killed_at_any_moment_leaves_a_log_that_opens_with_every_entry() {
    let directory = directory();
    let path = directory.path().join("cache");
    let model = write(&path);
    let images = directory.path().join("images");
    let mut steps = 0;
    compact(&path, |_, _| {
        // A killed process leaves what the files hold.
        crash_image(&path, &images.join(steps.to_string()));
        steps += 1;
    })
    .expect("it can be compacted");
    assert!(steps > 8);
    for step in 0..steps {
        let image = images.join(step.to_string());
        assert_ne!(verdict(&image), Verdict::Damaged, "step {step}");
        check(&image, &model, false);
        let report = compact(&image, |_, _| {}).expect("it can be compacted");
        assert_eq!(report.entries as usize, model.len());
        check(&image, &model, false);
    }
}

#[test]
fn a_full_disk_stops_compaction_and_makes_nothing_wrong() {
    let directory = directory();
    let Some(disk) = SmallDisk::mount(&directory.path().join("disk"), 2 << 20) else {
        println!("SKIPPED: mounting a tmpfs takes root");
        return;
    };
    let path = disk.path().join("cache");
    let log = open(&path);
    let mut model = Model::new();
    for key in 0..500_u32 {
        // All of it is alive, so that nothing is freed on the way.
        let value = key.to_le_bytes().repeat(60);
        log.put(&key.to_le_bytes(), &value, 0).expect("the entry is accepted");
        model.insert(key, value);
    }
    drop(log);
    disk.set_ballast(2 << 20);
    let error = compact(&path, |_, _| {}).expect_err("there is no room");
    assert!(matches!(error, CompactError::Disk(_)), "{error:?}");
    disk.set_ballast(0);
    check(&path, &model, true);
    compact(&path, |_, _| {}).expect("there is room again");
    check(&path, &model, true);
}

#[test]
fn a_directory_in_use_or_of_something_else_is_left_alone() {
    let directory = directory();
    let path = directory.path().join("cache");
    let log = open(&path);
    log.put(b"k", b"value", 0).expect("the entry is accepted");
    assert!(matches!(verify(&path, |_, _| {}), Err(OpenError::Locked { .. })));
    let error = compact(&path, |_, _| {}).expect_err("it is in use");
    assert!(matches!(error, CompactError::Open(OpenError::Locked { .. })), "{error:?}");
    drop(log);
    assert_eq!(verdict(&path), Verdict::Sound);

    let empty = directory.path().join("empty");
    fs::create_dir(&empty).expect("a directory");
    assert!(matches!(verify(&empty, |_, _| {}), Err(OpenError::NotACache { .. })));
    assert!(compact(&empty, |_, _| {}).is_err());
    assert!(verify(directory.path().join("absent"), |_, _| {}).is_err());
    assert_eq!(fs::read_dir(&empty).expect("it can be listed").count(), 0);
}
