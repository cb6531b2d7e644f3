//! The sketch: estimates, ageing, and the memory it takes.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn an_estimate_is_never_below_the_count(
        uses in prop::collection::vec(0_u32..200, 0..250),
        entries in 0_usize..100,
    ) {
        let mut sketch = Sketch::new(entries, Vec::new());
        let mut counts = HashMap::new();
        for key in uses {
            let hash = key.wrapping_mul(0x9E37_79B1);
            sketch.add(hash);
            *counts.entry(hash).or_insert(0_u64) += 1;
        }
        for (hash, count) in counts {
            prop_assert!(u64::from(sketch.estimate(hash)) >= count.min(COUNTER_MAX.into()));
        }
    }
}

#[test]
fn a_key_among_few_is_counted_exactly() {
    let mut sketch = Sketch::new(1_000, Vec::new());
    for uses in 1..=20_u8 {
        sketch.add(0xDEAD_BEEF);
        assert_eq!(sketch.estimate(0xDEAD_BEEF), uses.min(15));
    }
}

#[test]
fn every_count_is_halved_once_sixteen_uses_per_entry_are_counted() {
    let mut sketch = Sketch::new(64, Vec::new());
    for _ in 0..9 {
        sketch.add(7);
    }
    for key in 0..64 * 16 - 9 - 1 {
        sketch.add(0x8000_0000 | key << 8);
    }
    let before = sketch.estimate(7);
    assert!(before >= 9);
    sketch.add(0x8000_0000);
    assert_eq!(sketch.estimate(7), before / 2);
}

#[test]
fn a_thousand_one_time_keys_look_like_one_time_keys() {
    let mut sketch = Sketch::new(1_000, Vec::new());
    let hashes: Vec<u32> = (1..=1_000_u32).map(|n| n.wrapping_mul(0x9E37_79B1)).collect();
    for &hash in &hashes {
        sketch.add(hash);
    }
    let once = hashes.iter().filter(|&&hash| sketch.estimate(hash) == 1).count();
    assert!(once > 970, "{once} of 1,000");
}

#[test]
fn a_large_sketch_costs_seven_bytes_per_entry_and_a_small_one_sixteen() {
    assert_eq!(Sketch::new(125_001, Vec::new()).bytes(), 888_896 + 60);
    assert_eq!(Sketch::new(1_000, Vec::new()).bytes(), 16_000 + 60);
    assert_eq!(Sketch::new(0, Vec::new()).bytes(), 256 + 60);
}

#[test]
fn a_sketch_in_spare_memory_starts_empty_and_allocates_nothing() {
    let spare = vec![u32::MAX; 10_000];
    let memory = spare.as_ptr();
    let sketch = Sketch::new(1_000, spare);
    assert_eq!((0..1_000).map(|key| sketch.estimate(key << 22)).max(), Some(0));
    let spare = sketch.into_spare();
    assert_eq!(spare.as_ptr(), memory);
}
