//! Disk engines under `kill -9`: a child writes, the parent kills it in mid-write and looks.
//!
//! The child is this test program again, running only `writes_until_killed`. It works through a fixed
//! sequence of operations, flushes now and then and reports how far it got; what was reported must be
//! there afterwards. `ULTRA_PERF_KILL_ROUNDS` sets how often (20).

#![cfg(all(feature = "disk", unix))]
#![allow(missing_docs)]

mod disk;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cache_tiered::disk::{DiskTier, OpenError};
use disk::{Engine, directory, engines};

const DIRECTORY: &str = "ULTRA_PERF_KILL_DIRECTORY";
const ENGINE: &str = "ULTRA_PERF_KILL_ENGINE";
const CAPACITY: &str = "ULTRA_PERF_KILL_CAPACITY";
const ROUNDS: &str = "ULTRA_PERF_KILL_ROUNDS";
const THREADS: u64 = 2;
const FLUSH_EVERY: u64 = 64;

/// What a thread does in step `i`: each even step puts a key of its own, the others fight over few.
enum Op {
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
}

fn op(thread: u64, i: u64) -> Op {
    let random = (thread << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    if i.is_multiple_of(2) {
        return Op::Put(format!("{thread}/once/{i}").into(), value(i, random));
    }
    let key = format!("{thread}/often/{}", random % 50).into();
    if (random / 50).is_multiple_of(8) { Op::Remove(key) } else { Op::Put(key, value(i, random)) }
}

fn value(i: u64, random: u64) -> Vec<u8> {
    let mut value = i.to_be_bytes().to_vec();
    value.resize(8 + (random / 512 % 1500) as usize, i as u8);
    value
}

#[test]
#[ignore = "the child of a_killed_process_leaves_what_it_flushed"]
fn writes_until_killed() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    let engine = std::env::var(ENGINE).expect("the parent names the engine");
    let engine = engines().into_iter().find(|e| e.name == engine).expect("a known engine");
    let capacity = std::env::var(CAPACITY).expect("the parent sets it").parse().expect("a number");
    let tier: &dyn DiskTier = &*Box::leak(engine.at(Path::new(&path), capacity));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for i in 0.. {
                    match op(thread, i) {
                        Op::Put(key, value) => tier.put(&key, &value, 0).expect("accepted"),
                        Op::Remove(key) => drop(tier.remove(&key).expect("accepted")),
                    }
                    if i % FLUSH_EVERY == FLUSH_EVERY - 1 {
                        tier.flush().expect("it can be flushed");
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "flushed {thread} {i}").expect("the parent listens");
                    }
                }
            });
        }
    });
}

/// Ends the child, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a child write until it has reported `reports` times, kills it, and returns its last reports.
fn kill_a_writer(engine: Engine, path: &Path, capacity: u64, reports: usize) -> HashMap<u64, u64> {
    let mut child = Killed(
        Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--exact", "writes_until_killed", "--ignored", "--nocapture"])
            .env(DIRECTORY, path)
            .env(ENGINE, engine.name)
            .env(CAPACITY, capacity.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts"),
    );
    let out = BufReader::new(child.0.stdout.take().expect("it is piped"));
    let mut flushed = HashMap::new();
    let mut seen = 0;
    for line in out.split(b'\n') {
        let line = String::from_utf8(line.expect("the pipe can be read")).expect("text");
        let mut words = line.split(' ');
        let Some("flushed") = words.next() else { continue };
        let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
        // The last line may be cut short, and then says nothing.
        let Some([thread, i]) = numbers.as_deref() else { continue };
        if i % FLUSH_EVERY == FLUSH_EVERY - 1 {
            flushed.insert(*thread, *i);
        }
        seen += 1;
        if seen == reports {
            let locked = (engine.open)(path, capacity).err();
            assert!(matches!(locked, Some(OpenError::Locked { .. })), "{locked:?}");
            child.0.kill().expect("it can be killed");
        }
    }
    assert!(seen >= reports, "the child ended early, after {seen} reports");
    flushed
}

/// Compares what is there with what the dead process reported, and returns how many entries are
/// missing or older than they should be. A value that was never put under its key fails the test.
fn lost(tier: &dyn DiskTier, flushed: &HashMap<u64, u64>, may_evict: bool) -> u64 {
    let mut lost = 0;
    for (&thread, &upto) in flushed {
        let mut last = HashMap::new();
        for i in 0..=upto {
            match op(thread, i) {
                Op::Put(key, value) => last.insert(key, (i, Some(value))),
                Op::Remove(key) => last.insert(key, (i, None)),
            };
        }
        for (key, (i, expected)) in last {
            let name = String::from_utf8_lossy(&key).into_owned();
            let Some(found) = tier.get(&key, 0).expect("the disk can be read") else {
                let removed_later = name.contains("often");
                lost += u64::from(!may_evict && !removed_later && expected.is_some());
                continue;
            };
            let step = u64::from_be_bytes(found[..8].try_into().expect("8 bytes"));
            let Op::Put(at, value) = op(thread, step) else { panic!("{name}: {step} is no put") };
            assert!(at == key && *found == value, "{name} has a value that it never had");
            let older = step < i || step == i && expected.is_none();
            lost += u64::from(older);
        }
    }
    lost
}

#[test]
fn a_killed_process_leaves_what_it_flushed() {
    let rounds = std::env::var(ROUNDS).ok().and_then(|n| n.parse().ok()).unwrap_or(20_u64);
    for engine in engines() {
        let rounds = if engine.is_a_log { rounds } else { rounds.div_ceil(4) };
        let mut rounds_with_losses = 0;
        for round in 0..rounds {
            // Every other round in a cache so small that it evicts while it is killed.
            let may_evict = round % 2 == 1;
            let capacity = if may_evict { 2 << 20 } else { 512 << 20 };
            let directory = directory();
            let path = directory.path().join("cache");
            let reports = 1 + (round.wrapping_mul(0x9e37_79b9) >> 3) as usize % 60;
            let flushed = kill_a_writer(engine, &path, capacity, reports);
            for _ in 0..2 {
                let tier = engine.at(&path, capacity);
                let (stats, lost) = (tier.stats(), lost(&*tier, &flushed, may_evict));
                if engine.is_a_log {
                    assert_eq!(
                        (stats.corrupt, stats.dropped_at_open),
                        (0, 0),
                        "{round}: {stats:?}"
                    );
                    assert_eq!(lost, 0, "round {round}: flushed entries are missing");
                }
                rounds_with_losses += u64::from(lost > 0);
                tier.put(b"after", b"the crash", 0).expect("it can be written again");
            }
        }
        println!("{}: {rounds} rounds, {rounds_with_losses} lost something", engine.name);
        // sled cannot open what it wrote now and then, and is begun anew; never is an entry wrong.
        assert!(rounds_with_losses * 2 <= rounds, "{} loses too much", engine.name);
    }
}

/// The log that is compacted: segments as small as they can be, each with a checkpoint.
fn compacted(path: &Path) -> cache_tiered::disk::SegmentLog {
    let mut options = cache_tiered::disk::SegmentLogOptions::new(path, 8 << 20);
    options.segment_bytes = Some(16 << 10);
    options.checkpoint_min_bytes = 0;
    cache_tiered::disk::SegmentLog::open(options).expect("it can be opened")
}

#[test]
#[ignore = "the child of compaction_that_is_killed_loses_nothing"]
fn compacts_until_killed() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    println!("begins");
    loop {
        cache_tiered::disk::compact(&path, |_, _| {}).expect("it can be compacted");
    }
}

#[test]
fn compaction_that_is_killed_loses_nothing() {
    let directory = directory();
    let path = directory.path().join("cache");
    let value = |key: u32| key.to_le_bytes().repeat(64);
    let log = compacted(&path);
    for key in (0..600_u32).chain(0..300) {
        log.put(&key.to_le_bytes(), &value(key), 0).expect("accepted");
    }
    drop(log);
    for round in 0..15_u64 {
        let mut child = Killed(
            Command::new(std::env::current_exe().expect("this program has a path"))
                .args(["--exact", "compacts_until_killed", "--ignored", "--nocapture"])
                .env(DIRECTORY, &path)
                .stdout(Stdio::piped())
                .spawn()
                .expect("the child starts"),
        );
        let out = BufReader::new(child.0.stdout.take().expect("it is piped"));
        let mut lines = out.lines().map(|line| line.expect("the pipe can be read"));
        assert!(lines.any(|line| line.contains("begins")), "the child ended early");
        std::thread::sleep(std::time::Duration::from_millis(round * 7 % 60));
        child.0.kill().expect("it can be killed");
        drop(child);
        let report = cache_tiered::disk::verify(&path, |_, _| {}).expect("it can be read");
        assert_ne!(report.verdict(), cache_tiered::disk::Verdict::Damaged, "{round}: {report:?}");
        let log = compacted(&path);
        for key in 0..600_u32 {
            let found = log.get(&key.to_le_bytes(), 0).expect("the disk can be read");
            assert_eq!(found.as_deref(), Some(&value(key)[..]), "round {round}, key {key}");
        }
    }
}
