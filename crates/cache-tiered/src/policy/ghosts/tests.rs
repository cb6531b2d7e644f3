//! Ghosts against exact lists: who is remembered, for how long, and how often wrongly.

use std::collections::VecDeque;

use super::GhostList::{Main, Young};
use super::*;

/// A well mixed hash for each number.
fn hash(number: u32) -> u32 {
    let mixed = u64::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).wrapping_shr(32) as u32
}

#[test]
fn a_ghost_is_met_once_and_in_its_own_list() {
    let mut ghosts = Ghosts::new(100, Vec::new());
    ghosts.add(hash(1), Young, [50, 50]);
    ghosts.add(hash(2), Main, [50, 50]);
    assert_eq!(ghosts.take(hash(1), [50, 50]), Some(Young));
    assert_eq!(ghosts.take(hash(1), [50, 50]), None);
    assert_eq!(ghosts.take(hash(2), [50, 50]), Some(Main));
    assert_eq!((ghosts.live(Young), ghosts.live(Main)), (0, 0));
}

#[test]
fn a_list_without_a_window_remembers_nothing() {
    let mut ghosts = Ghosts::new(100, Vec::new());
    ghosts.add(hash(1), Main, [50, 0]);
    assert_eq!(ghosts.take(hash(1), [50, 50]), None);
}

/// Sends `joins` keys through one list and compares with an exact FIFO list of the same length: the
/// share of its ghosts that are met, and of those older than it that are.
fn against_exact(entries: usize, window: u32, joins: u32) -> (f64, f64) {
    let mut ghosts = Ghosts::new(entries, Vec::new());
    let mut exact = VecDeque::new();
    for number in 0..joins {
        ghosts.add(hash(number), Young, [window, 0]);
        exact.push_back(number);
        if exact.len() > window as usize {
            exact.pop_front();
        }
    }
    let met = exact.iter().filter(|&&n| ghosts.take(hash(n), [window, 0]).is_some()).count();
    let older = 0..joins - window;
    let false_ones = older.clone().filter(|&n| ghosts.take(hash(n), [window, 0]).is_some()).count();
    (met as f64 / exact.len() as f64, false_ones as f64 / older.len() as f64)
}

#[test]
fn nearly_all_of_a_list_that_fits_is_remembered_and_nearly_nothing_older() {
    for (entries, window) in [(64, 58), (1_000, 900), (10_000, 9_000), (10_000, 3_000)] {
        let (met, older) = against_exact(entries, window, 5 * entries as u32);
        assert!(met > 0.85, "{met} of {window} ghosts");
        assert!(older < 0.01, "{older} of the older ones");
    }
}

#[test]
fn a_flood_of_one_list_leaves_most_of_the_other() {
    let mut ghosts = Ghosts::new(1_000, Vec::new());
    let windows = [500, 500];
    for number in 0..300 {
        ghosts.add(hash(number), Main, windows);
    }
    for number in 1_000..6_000 {
        ghosts.add(hash(number), Young, windows);
    }
    let met = (0..300).filter(|&n| ghosts.take(hash(n), windows) == Some(Main)).count();
    assert!(met > 225, "{met} of 300");
}

#[test]
fn keys_never_seen_are_hardly_ever_taken_for_ghosts() {
    let mut ghosts = Ghosts::new(4_096, Vec::new());
    for number in 0..4_096 {
        ghosts.add(hash(number), Young, [4_096, 0]);
    }
    let false_ones =
        (100_000..200_000).filter(|&n| ghosts.take(hash(n), [4_096, 0]).is_some()).count();
    assert!(false_ones < 20, "{false_ones} of 100,000");
}

#[test]
fn a_ghost_costs_four_and_a_half_bytes() {
    assert_eq!(Ghosts::new(1 << 20, Vec::new()).bytes(), (1 << 20) * 9 / 2 + 60);
}
