//! The wheel against a map of deadlines, and what it costs when nothing is due.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const START: Millis = 1_000_000_000_000;
const TICK: Millis = 1 << TICK_BITS;

/// A wheel beside what it should know: the deadline of each node that is scheduled.
struct Pair {
    wheel: Wheel,
    due: BTreeMap<u32, Millis>,
    now: Millis,
}

impl Pair {
    fn new() -> Self {
        Self { wheel: Wheel::new(START), due: BTreeMap::new(), now: START }
    }

    fn schedule(&mut self, node: u32, due: Millis) {
        self.wheel.schedule(node, due);
        self.due.insert(node, due);
        if due >= END {
            self.due.remove(&node);
        }
    }

    fn cancel(&mut self, node: u32) {
        self.wheel.cancel(node);
        self.due.remove(&node);
    }

    /// Takes out what is reported, and returns it with the looks that were left.
    fn pop_all(&mut self, mut budget: usize) -> (Vec<u32>, usize) {
        let mut popped = Vec::new();
        while let Some(node) = self.wheel.pop(self.now, &mut budget, |node| self.due[&node]) {
            let due = self.due.remove(&node).expect("what is reported was scheduled");
            assert!(due <= self.now, "{node} is reported {} ms early", due - self.now);
            popped.push(node);
        }
        (popped, budget)
    }

    /// The nodes that must have been reported by now.
    fn late(&self) -> impl Iterator<Item = &u32> {
        let tick_begun = self.now & !(TICK - 1);
        self.due.iter().filter(move |(_, due)| **due < tick_begun).map(|(node, _)| node)
    }

    fn check(&self) {
        assert_eq!(self.wheel.len(), self.due.len());
        assert_eq!(self.wheel.next_due().is_some(), !self.due.is_empty());
        // Each node is in the list of one slot, where its occupied bit says that there is something.
        let mut linked = 0;
        for head in 0..HEADS.min(self.wheel.links.len() as u32) {
            let mut at = head;
            loop {
                let next = self.wheel.links[at as usize].next;
                assert_eq!(self.wheel.links[next as usize].prev, at);
                at = next;
                if at == head {
                    break;
                }
                assert!(self.due.contains_key(&(at - HEADS)));
                linked += 1;
            }
            if head < BEGUN {
                let bit = self.wheel.occupied[(head / 64) as usize] >> (head % 64) & 1;
                assert_eq!(bit == 1, self.wheel.links[head as usize].next != head);
            }
        }
        assert_eq!(linked, self.due.len());
    }
}

#[test]
fn nothing_is_reported_early_and_nothing_more_than_a_tick_late() {
    for life in [0, 1, 63, 64, 65, 4_095, 4_096, 262_143, 300_000, 16_777_216, 3_600_000_000] {
        let mut pair = Pair::new();
        pair.schedule(3, START + life);
        pair.now = START + life.saturating_sub(1);
        if life > 0 {
            assert!(pair.pop_all(100).0.is_empty(), "{life}");
        }
        pair.now = START + life + TICK;
        assert_eq!(pair.pop_all(100).0, [3], "{life}");
    }
}

#[test]
fn a_close_look_reports_to_the_millisecond() {
    for life in [1, 63, 64, 65, 4_095, 4_096, 300_000, 16_777_216] {
        let mut pair = Pair::new();
        pair.schedule(3, START + life);
        for (now, popped) in [(START + life - 1, vec![]), (START + life, vec![3])] {
            pair.now = now;
            pair.wheel.look_closely(now);
            assert_eq!(pair.pop_all(100).0, popped, "{life}");
        }
        pair.check();
    }
}

#[test]
fn a_jump_over_years_looks_at_each_entry_once() {
    let mut pair = Pair::new();
    for node in 0..10_000 {
        pair.schedule(node, START + u64::from(node) * u64::from(node) * 300);
    }
    pair.now = START + 2_000 * 365 * 86_400_000;
    let (popped, left) = pair.pop_all(1_000_000);
    assert_eq!(popped.len(), 10_000);
    assert_eq!(left, 1_000_000 - 10_000);
}

#[test]
fn what_a_budget_leaves_over_is_reported_later() {
    let mut pair = Pair::new();
    for node in 0..100 {
        pair.schedule(node, START + 1_000);
    }
    pair.now = START + 2_000;
    for calls in 1..=10 {
        assert!(pair.wheel.is_due(pair.now));
        let (popped, left) = pair.pop_all(10);
        assert_eq!((popped.len(), left), (10, 0));
        // What is scheduled meanwhile does not get lost either.
        pair.schedule(100 + calls, pair.now + 5_000);
        pair.check();
    }
    assert!(pair.pop_all(10).0.is_empty() && !pair.wheel.is_due(pair.now));
    pair.now += 5_000 + TICK;
    assert_eq!(pair.pop_all(100).0.len(), 10);
}

#[test]
fn an_entry_that_was_used_meanwhile_goes_round_again() {
    let mut pair = Pair::new();
    pair.schedule(1, START + 1_000);
    for _ in 0..10 {
        pair.now += 900;
        pair.due.insert(1, pair.now + 1_000);
        assert!(pair.pop_all(10).0.is_empty());
        pair.check();
    }
    pair.now += 1_000 + TICK;
    assert_eq!(pair.pop_all(10).0, [1]);
}

#[test]
fn a_caller_with_an_older_time_is_no_harm() {
    let mut pair = Pair::new();
    pair.schedule(1, START + 1_000);
    pair.schedule(2, START + 1_000);
    pair.now = START + 5_000;
    assert_eq!(pair.pop_all(1).0, [1]);
    let mut budget = 10;
    assert_eq!(pair.wheel.pop(START + 10, &mut budget, |_| START + 1_000), Some(2));
    assert_eq!(pair.wheel.pop(START + 10, &mut budget, |_| START + 1_000), None);
    pair.wheel.look_closely(START + 10);
    assert_eq!(pair.wheel.pop(START + 10, &mut budget, |_| START + 1_000), None);
}

#[test]
fn an_unused_wheel_allocates_nothing_and_an_empty_one_gives_its_memory_back() {
    let mut pair = Pair::new();
    assert_eq!(pair.wheel.bytes(), 0);
    pair.cancel(7);
    pair.schedule(7, Millis::MAX);
    pair.wheel.look_closely(START + 1_000);
    assert!(pair.pop_all(10).0.is_empty());
    assert_eq!(pair.wheel.bytes(), 0);
    for node in 0..1_000 {
        pair.schedule(node, START + 1);
    }
    assert!((1_000 * 8..1_000 * 8 * 2 + 4_096 * 2).contains(&pair.wheel.bytes()));
    for node in 100..1_000 {
        pair.cancel(node);
    }
    pair.wheel.shrink(99);
    assert!(pair.wheel.bytes() > 8_000, "node 99 is scheduled");
    pair.wheel.shrink(100);
    assert!(pair.wheel.bytes() < 8_000);
    pair.check();
    (0..100).for_each(|node| pair.cancel(node));
    pair.wheel.shrink(1_000);
    assert_eq!(pair.wheel.bytes(), 0);
    pair.schedule(5, START + 10);
    pair.now += 100;
    assert_eq!(pair.pop_all(10).0, [5]);
}

#[test]
fn a_wheel_that_has_given_its_memory_back_can_be_asked() {
    let mut pair = Pair::new();
    pair.schedule(5, START + 10);
    pair.cancel(5);
    pair.wheel.shrink(0);
    pair.now += 1_000;
    assert!(pair.pop_all(10).0.is_empty());
    pair.wheel.look_closely(pair.now);
    assert!(pair.pop_all(10).0.is_empty());
}

#[test]
fn the_tick_that_is_running_is_not_looked_at_over_and_over() {
    let mut pair = Pair::new();
    (0..10).for_each(|node| pair.schedule(node, START + 64 + 63));
    pair.schedule(10, START);
    pair.now = START + 64;
    // The first looks are for the one that is due.
    assert_eq!(pair.pop_all(100), (vec![10], 99));
    for now in 64..128 {
        pair.now = START + now;
        assert_eq!(pair.pop_all(100), (vec![], 100));
    }
}

#[test]
fn the_end_of_time_comes_for_all_but_those_that_never_expire() {
    let mut pair = Pair::new();
    pair.schedule(1, END - 1);
    pair.schedule(2, START + 5_000);
    pair.now = START + 6_000;
    // Its deadline was taken away meanwhile.
    assert_eq!(pair.wheel.pop(pair.now, &mut 10, |_| END), None);
    pair.due.remove(&2);
    pair.check();
    pair.now = Millis::MAX;
    assert_eq!(pair.pop_all(10).0, [1]);
    pair.check();
    pair.schedule(3, 7);
    assert_eq!(pair.pop_all(10).0, [3]);
}

#[derive(Debug, Clone)]
enum Step {
    Schedule(u32, Millis),
    /// Its deadline moves, and nobody tells the wheel.
    Postpone(u32, Millis),
    Cancel(u32),
    Advance(Millis),
    Pop(usize),
    LookClosely,
    Shrink(u32),
}

/// Times of every order of magnitude, and those about the edges of slots.
fn span() -> impl Strategy<Value = Millis> {
    prop_oneof![
        4 => 0..200u64,
        4 => (0..46u32, 0..64u64).prop_map(|(bits, more)| (1 << bits) + more),
        4 => (1..46u32, 1..64u64).prop_map(|(bits, less)| ((1u64 << bits) - 1).saturating_sub(less)),
        1 => Just(END),
        1 => Just(Millis::MAX / 2),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let node = prop_oneof![0..3u32, 0..40u32];
    prop_oneof![
        8 => (node.clone(), span()).prop_map(|(node, life)| Step::Schedule(node, life)),
        2 => (node.clone(), span()).prop_map(|(node, more)| Step::Postpone(node, more)),
        3 => node.clone().prop_map(Step::Cancel),
        4 => span().prop_map(Step::Advance),
        6 => (0..20usize).prop_map(Step::Pop),
        1 => Just(Step::LookClosely),
        1 => node.prop_map(Step::Shrink),
    ]
}

proptest! {
    #[test]
    fn the_wheel_agrees_with_a_map_of_deadlines(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut pair = Pair::new();
        for step in steps {
            match step {
                Step::Schedule(node, life) => pair.schedule(node, pair.now.saturating_add(life)),
                Step::Postpone(node, more) => {
                    if let Some(due) = pair.due.get_mut(&node) {
                        *due = due.saturating_add(more).min(END - 1);
                    }
                }
                Step::Cancel(node) => pair.cancel(node),
                Step::Advance(by) => pair.now = pair.now.saturating_add(by).min(END - TICK),
                Step::Pop(budget) => {
                    if pair.pop_all(budget).1 > 0 {
                        prop_assert_eq!(pair.late().next(), None);
                    }
                }
                Step::LookClosely => {
                    pair.wheel.look_closely(pair.now);
                    pair.pop_all(usize::MAX);
                    prop_assert!(pair.due.values().all(|due| *due > pair.now));
                }
                Step::Shrink(nodes) => pair.wheel.shrink(nodes),
            }
            pair.check();
        }
    }

    /// Whoever sleeps until `next_due` each time reports every entry, none more than a tick late, and
    /// wakes at most once for each level that an entry goes down.
    #[test]
    fn next_due_wakes_in_time_and_seldom(lives in prop::collection::vec(span(), 1..20)) {
        let mut pair = Pair::new();
        for (node, life) in lives.iter().enumerate() {
            pair.schedule(node as u32, START.saturating_add(*life));
        }
        let mut wakes = 0;
        while let Some(next) = pair.wheel.next_due() {
            prop_assert!(pair.due.values().all(|due| next <= due + TICK));
            pair.now = pair.now.max(next);
            pair.pop_all(usize::MAX);
            wakes += 1;
            prop_assert!(wakes <= lives.len() * LEVELS as usize, "no end");
        }
        prop_assert!(pair.due.is_empty());
    }
}
