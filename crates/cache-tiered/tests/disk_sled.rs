//! The sled engine under damage: flipped bits, a full disk.

#![cfg(all(feature = "sled", unix))]
#![allow(missing_docs)]

mod disk;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cache_tiered::disk::{DiskTier, SledEngine, SledOptions};
use disk::{SmallDisk, crash_image, directory};

fn open(path: &Path, capacity_bytes: u64) -> SledEngine {
    let mut options = SledOptions::new(path, capacity_bytes);
    options.memory_bytes = 1 << 20;
    SledEngine::open(options).expect("it can be opened")
}

fn value(key: u8) -> Vec<u8> {
    vec![key; 40 + usize::from(key)]
}

fn database(path: &Path) -> PathBuf {
    let mut entries = fs::read_dir(path).expect("it can be listed").flatten();
    let db = entries.find(|entry| entry.file_name().to_string_lossy().starts_with("db-"));
    db.expect("there is a database").path().join("db")
}

#[test]
fn a_flipped_bit_never_makes_a_value_wrong() {
    let directory = directory();
    let path = directory.path().join("cache");
    let engine = open(&path, 4 << 20);
    for key in 0..20 {
        engine.put(&[key], &value(key), 0).expect("the entry is accepted");
    }
    drop(engine);
    let bytes = fs::read(database(&path)).expect("it can be read");
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut found = 0;
    // A sample: each opening of sled takes milliseconds.
    for at in used.iter().step_by((used.len() / 120).max(1)) {
        let image = directory.path().join("image");
        crash_image(&path, &image);
        let file = File::options().write(true).open(database(&image)).expect("it opens");
        file.write_all_at(&[bytes[*at] ^ (1 << (at % 8))], *at as u64).expect("it is written");
        for _ in 0..2 {
            let engine = open(&image, 4 << 20);
            for key in 0..20 {
                if let Ok(Some(read)) = engine.get(&[key], 0) {
                    assert_eq!(read, value(key), "byte {at}");
                    found += 1;
                }
            }
        }
        fs::remove_dir_all(&image).expect("the image can be deleted");
    }
    assert!(found > 0, "not everything may be lost each time");
}

#[test]
fn a_database_that_outgrows_its_bound_is_begun_anew() {
    let directory = directory();
    let engine = open(&directory.path().join("cache"), 1 << 20);
    for i in 0..10_000_u32 {
        let value = i.to_be_bytes().repeat((i as usize * 7919) % 500);
        engine.put(&(i * 31 % 640).to_be_bytes(), &value, 0).expect("it is accepted");
        if i % 100 == 0 {
            engine.flush().expect("it can be flushed");
        }
    }
    let stats = engine.stats();
    assert!(stats.rebuilds > 0, "the case was not met: {stats:?}");
    assert!(stats.disk_bytes <= 1 << 20, "{stats:?}");
    engine.put(b"after", b"value", 0).expect("it is accepted");
    assert_eq!(engine.get(b"after", 0).expect("it is read").as_deref(), Some(&b"value"[..]));
}

#[test]
fn after_a_full_disk_it_works_again() {
    let directory = directory();
    let Some(disk) = SmallDisk::mount(&directory.path().join("disk"), 3 << 20) else {
        println!("SKIPPED: mounting a tmpfs takes root");
        return;
    };
    let options = SledOptions::new(disk.path().join("cache"), 64 << 20);
    let engine = SledEngine::open(options).expect("it can be opened");
    let mut failures = 0;
    for i in 0..9000_u32 {
        let value = i.to_be_bytes().repeat(250);
        let mut ok = engine.put(&(i % 3000).to_be_bytes(), &value, 0).is_ok();
        if i % 100 == 99 {
            ok &= engine.flush().is_ok();
        }
        failures += u32::from(!ok);
        if let Ok(Some(found)) = engine.get(&(i % 3000).to_be_bytes(), 0) {
            assert_eq!(found, value, "step {i}");
        }
    }
    assert!(failures > 0, "the disk was full");
    disk.set_ballast(0);
    let _ = engine.flush();
    engine.put(b"after", b"value", 0).expect("there is room again");
    engine.flush().expect("there is room again");
    assert_eq!(engine.get(b"after", 0).expect("it is read").as_deref(), Some(&b"value"[..]));
}
