//! Heap profiles of a process whose allocator is jemalloc, started with and without its profiler.

#![cfg(all(feature = "jemalloc-profile", target_os = "linux"))]

use std::io::Read;
use std::process::Command;

use memory::{HeapProfileError, heap_profile, set_heap_profiling};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CHILD: &str = "MEMORY_TEST_HEAP_PROFILE_CHILD";

#[test]
fn a_process_that_was_not_started_for_it_says_how() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let error = heap_profile().expect_err("the profiler is off");
    assert!(matches!(error, HeapProfileError::Off), "{error}");
    assert!(error.to_string().contains("prof:true"), "{error}");
}

#[test]
fn what_is_alive_is_in_the_profile() {
    let child = Command::new(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", "the_child", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        .env("_RJEM_MALLOC_CONF", "prof:true,lg_prof_sample:12")
        .output()
        .expect("a test can be started");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
#[ignore = "runs as a child, with the profiler on"]
fn the_child() {
    let held: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
    let with = samples(&heap_profile().expect("the profiler is on"));
    assert!(with.count > 0 && with.bytes >= 60 << 20, "{with:?}");
    drop(held);
    let without = samples(&heap_profile().expect("the profiler is on"));
    assert!(without.bytes < with.bytes / 2, "{without:?} after {with:?}");

    set_heap_profiling(false).expect("it can be stopped");
    let stopped: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
    set_heap_profiling(true).expect("and started again");
    let missed = samples(&heap_profile().expect("the profiler is on"));
    assert!(missed.bytes < 32 << 20, "{missed:?}");
    drop(stopped);
}

/// What a profile says in total.
#[derive(Debug)]
struct Samples {
    count: usize,
    bytes: i64,
}

/// Reads the samples of a profile: field 2 of the message, whose values are field 2 of theirs.
fn samples(profile: &[u8]) -> Samples {
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(profile).read_to_end(&mut message).expect("it is gzip");
    let mut all = Samples { count: 0, bytes: 0 };
    for (field, sample) in fields(&message) {
        if field != 2 {
            continue;
        }
        all.count += 1;
        for (field, values) in fields(sample) {
            if field == 2 {
                // Packed or alone, there is one value: the bytes.
                all.bytes += varint(&mut &values[..]) as i64;
            }
        }
    }
    all
}

/// The length-delimited fields of a protobuf message, and varints as the bytes they were.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => message.iter().position(|byte| byte & 0x80 == 0).expect("a varint ends") + 1,
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (field, rest) = message.split_at(length);
        fields.push((tag >> 3, field));
        message = rest;
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a varint ends");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}
