//! Classes, growth, the contents of buffers, and their way through `Bytes`.

use std::io::Write as _;
use std::thread;

use bytes::BufMut as _;
use proptest::prelude::*;

use super::*;

fn pool() -> BufferPool {
    BufferPool::builder().build().expect("valid")
}

#[test]
fn a_class_holds_what_is_asked_for_and_at_most_a_quarter_more() {
    assert_eq!((size_of_class(0), size_of_class(CLASSES - 1)), (SMALLEST, LARGEST));
    for bytes in (1..LARGEST).step_by(97).chain([SMALLEST, SMALLEST + 1, LARGEST - 1, LARGEST]) {
        let class = class_of(bytes);
        let size = size_of_class(class);
        assert!(size >= bytes, "{bytes} in {size}");
        assert!(bytes <= SMALLEST || size <= bytes + bytes / 4, "{bytes} in {size}");
        assert!(class == 0 || size_of_class(class - 1) < bytes, "{bytes} in {size}");
        assert_eq!(class_of(size), class);
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Extend(Vec<u8>),
    Put(u64),
    Write(Vec<u8>),
    Resize(usize, u8),
    Truncate(usize),
    Clear,
    Spare(u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..6_000);
    prop_oneof![
        bytes().prop_map(Edit::Extend),
        any::<u64>().prop_map(Edit::Put),
        bytes().prop_map(Edit::Write),
        (0_usize..20_000, any::<u8>()).prop_map(|(len, value)| Edit::Resize(len, value)),
        (0_usize..20_000).prop_map(Edit::Truncate),
        Just(Edit::Clear),
        any::<u8>().prop_map(Edit::Spare),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 100 }))]

    #[test]
    fn a_buffer_holds_what_a_vector_would(edits in prop::collection::vec(edit(), 1..60)) {
        let pool = pool();
        let mut vector = Vec::new();
        let mut buffer = pool.take(0);
        for edit in edits {
            match edit {
                Edit::Extend(bytes) => {
                    vector.extend_from_slice(&bytes);
                    buffer.extend_from_slice(&bytes);
                }
                Edit::Put(number) => {
                    vector.put_u64(number);
                    buffer.put_u64(number);
                }
                Edit::Write(bytes) => {
                    vector.write_all(&bytes).expect("memory");
                    buffer.write_all(&bytes).expect("memory");
                }
                Edit::Resize(len, value) => {
                    vector.resize(len, value);
                    buffer.resize(len, value);
                }
                Edit::Truncate(len) => {
                    vector.truncate(len);
                    buffer.truncate(len);
                }
                Edit::Clear => {
                    vector.clear();
                    buffer.clear();
                }
                Edit::Spare(value) => {
                    vector.push(value);
                    buffer.spare_mut(1)[0] = value;
                    buffer.advance(1);
                }
            }
            prop_assert_eq!(&vector[..], &buffer[..]);
            prop_assert!(buffer.capacity() >= buffer.len());
        }
        prop_assert_eq!(pool.stats().in_use, 1);
        prop_assert_eq!(buffer.freeze(), vector);
        prop_assert_eq!(pool.stats().in_use, 0);
    }
}

#[test]
fn frozen_bytes_go_back_at_their_last_drop_on_whatever_thread() {
    let pool = pool();
    let mut buffer = pool.take(64 << 10);
    buffer.put_slice(b"hello, world");
    let bytes = buffer.freeze();
    let hello = bytes.slice(..5);
    drop(bytes);
    assert_eq!((pool.stats().in_use, pool.stats().idle), (1, 0));
    thread::spawn(move || assert_eq!(hello, "hello")).join().expect("no panic");
    assert_eq!((pool.stats().in_use, pool.stats().idle), (0, 1));
    assert!(pool.take(60 << 10).is_empty());
    assert_eq!(pool.stats().hits, 1);
}

#[test]
fn memory_is_zeroed_when_it_is_made_and_not_again() {
    let pool = pool();
    let mut buffer = pool.take(10_000);
    assert!(buffer.spare_mut(0).iter().all(|byte| *byte == 0));
    buffer.spare_mut(0)[7] = 7;
    drop(buffer);
    let mut again = pool.take(10_000);
    assert_eq!(again.spare_mut(0)[7], 7);
    again.resize(10, 0);
    assert_eq!(*again, [0; 10]);
}

#[test]
fn what_is_too_large_passes_through() {
    let pool = BufferPool::builder().buffer_bytes_max(64 << 10).build().expect("valid");
    let mut large = pool.take((64 << 10) + 1);
    assert_eq!(large.capacity(), (64 << 10) + 1);
    large.put_u8(1);
    drop(large);
    assert_eq!(pool.stats(), PoolStats::default());
    let mut grown = pool.take(64 << 10);
    grown.resize(1 << 20, 3);
    assert_eq!(grown.len(), 1 << 20);
    assert_eq!((pool.stats().in_use, pool.stats().idle), (0, 1), "it moved out of the pool");
}

#[test]
fn one_cap_counts_the_bytes_of_all_classes() {
    let cap = 1 << 20;
    let pool = BufferPool::builder().idle_bytes_max(cap).build().expect("valid");
    let buffers: Vec<_> = (1..100).map(|n| pool.take(n * 3_000)).collect();
    drop(buffers);
    let rest = pool.reclaimable_bytes();
    assert!(rest <= cap as u64 && rest > 0, "{rest}");
    assert!(pool.trim(1_000) >= 1_000);
    pool.trim(u64::MAX);
    assert_eq!(pool.reclaimable_bytes(), 0);
}

#[test]
fn an_unused_pool_becomes_empty() {
    let pool = pool();
    drop((0..40).map(|n| pool.take(n << 12)).collect::<Vec<_>>());
    assert!(pool.reclaimable_bytes() > 1 << 20);
    let now = Instant::now();
    for step in 1..9 {
        pool.decay(now + step * Duration::from_secs(6));
    }
    assert_eq!(pool.reclaimable_bytes(), 0);
}

#[test]
fn buffers_may_outlive_the_pool() {
    let pool = pool();
    let mut buffer = pool.take(10);
    buffer.put_slice(b"still here");
    drop(pool);
    buffer.resize(10_000, 0);
    assert_eq!(buffer.freeze()[..10], *b"still here");
}

#[test]
fn every_setting_that_cannot_be_used_is_named() {
    let builder = BufferPool::builder().idle_bytes_max(0).buffer_bytes_max(8 << 20);
    let error = builder.decay(Duration::ZERO).build().expect_err("three problems");
    assert_eq!(error.problems.len(), 3, "{error}");
    assert!(error.to_string().starts_with("invalid buffer pool, 3 problems:"), "{error}");
}
