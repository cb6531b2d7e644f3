//! Tags against a naive history of everything that was ever invalidated.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn attributes(table: &TagTable, tags: &[u64], stamp: Stamp) -> Arc<Attributes> {
    Attributes::new(table, tags.iter().copied(), stamp, Windows::default()).expect("it has tags")
}

fn standing(table: &TagTable, attributes: &Attributes) -> Standing {
    attributes.standing(table).0
}

#[test]
fn a_tag_is_the_hash_of_its_name_for_ever() {
    // Written down by earlier versions, so these do not change.
    assert_eq!(Tag::new("user:42").number(), 0x9fc1_e605_fa71_74aa);
    assert_eq!(Tag::from("a"), Tag::from(&"a".to_owned()));
    assert_ne!(Tag::from("a"), Tag::from("b"));
    assert_eq!(Tag::new("a").number() | 1, Tag::new("a").soft_number());
}

#[test]
fn an_entry_falls_with_any_of_its_tags_and_a_newer_one_stands() {
    let table = TagTable::default();
    let old = attributes(&table, &[2, 4, 6], table.stamp());
    let other = attributes(&table, &[8], table.stamp());
    assert_eq!(standing(&table, &old), Standing::Good);
    table.invalidate(&[4]);
    let new = attributes(&table, &[2, 4, 6], table.stamp());
    let standings = [&old, &other, &new].map(|it| standing(&table, it));
    assert_eq!(standings, [Standing::Invalid, Standing::Good, Standing::Good]);
}

#[test]
fn a_value_that_was_being_made_is_refused_even_if_its_tag_was_unknown() {
    let table = TagTable::default();
    let began = table.stamp();
    table.invalidate(&[2]);
    assert_eq!(standing(&table, &attributes(&table, &[2], began)), Standing::Invalid);
    assert_eq!(standing(&table, &attributes(&table, &[4], began)), Standing::Good);
}

#[test]
fn soft_is_stale_and_hard_is_more() {
    let table = TagTable::default();
    let entry = attributes(&table, &[2, 4], table.stamp());
    table.invalidate(&[2 | SOFT]);
    assert_eq!(standing(&table, &entry), Standing::Stale);
    table.invalidate(&[4]);
    assert_eq!(standing(&table, &entry), Standing::Invalid);
}

#[test]
fn tags_that_nobody_has_are_forgotten_in_the_safe_direction() {
    let table = TagTable::default();
    let kept = attributes(&table, &[2], table.stamp());
    let began = table.stamp();
    let tags = (2..40_000_u64).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15) & !SOFT);
    for tag in tags.clone() {
        table.invalidate(&[tag]);
        assert!(table.len() <= 2 * SHARDS * (IDLE_OF_SHARD + 2), "{}", table.len());
    }
    assert_eq!(standing(&table, &kept), Standing::Good, "its tag is in use");
    for tag in tags.step_by(97) {
        assert_eq!(standing(&table, &attributes(&table, &[tag], began)), Standing::Invalid);
        assert_eq!(standing(&table, &attributes(&table, &[tag], table.stamp())), Standing::Good);
    }
}

#[test]
fn attributes_are_read_back_as_they_were_and_nonsense_is_refused() {
    let table = TagTable::default();
    let windows = Windows { while_revalidate: Some(7), early: Some(0.5), ..Windows::default() };
    let stamp = Stamp { local: 1, shared: 99 };
    for (tags, windows) in
        [(&[2_u64, 4, 6][..], windows), (&[], windows), (&[8], Windows::default())]
    {
        let written = Attributes::of(&table, tags, stamp, true, windows);
        let bytes = written.encode(true);
        let read = Attributes::decode(&table, &bytes).expect("it was written here");
        assert_eq!(read.tags().collect::<Vec<_>>(), tags);
        assert_eq!((read.stamp(), read.windows, read.is_stale()), (stamp, windows, true));
        for len in 0..bytes.len() {
            // Cut at a tag's end it is one tag less, which the envelope's checksum is there for.
            let cut = Attributes::decode(&table, &bytes[..len]);
            assert!(cut.is_none_or(|cut| cut.tags().len() < tags.len()));
        }
    }
    // As the golden envelopes have them.
    let windows = Windows { while_revalidate: Some(7), ..Windows::default() };
    let stamp = Stamp { local: 9, shared: 8 };
    let bytes = Attributes::of(&table, &[2, 4], stamp, false, windows).encode(false);
    let beginning = [2, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
    assert_eq!(bytes, [&beginning[..], &2_u64.to_le_bytes(), &4_u64.to_le_bytes()].concat());
    let mut bytes = Attributes::of(&table, &[2], stamp, false, windows).encode(false);
    bytes[0] |= 1 << 5;
    assert!(Attributes::decode(&table, &bytes).is_none());
    let not_a_number = Windows { early: Some(f32::NAN), ..windows };
    let bytes = Attributes::of(&table, &[2], stamp, false, not_a_number).encode(false);
    assert!(Attributes::decode(&table, &bytes).is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Invalidate(Vec<u64>),
    Begin,
    /// A value comes whose making began at one of the beginnings.
    Fill {
        began: prop::sample::Index,
        tags: Vec<u64>,
    },
    Look(prop::sample::Index),
    Drop(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tags = || prop::collection::vec(2_u64..9, 1..4);
    let step = prop_oneof![
        3 => tags().prop_map(Step::Invalidate),
        2 => Just(Step::Begin),
        3 => (any::<prop::sample::Index>(), tags())
            .prop_map(|(began, tags)| Step::Fill { began, tags }),
        4 => any::<prop::sample::Index>().prop_map(Step::Look),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
    ];
    prop::collection::vec(step, 1..80)
}

/// The naive rule: every invalidation that ever was, and when.
#[derive(Default)]
struct Model {
    now: u64,
    history: Vec<(u64, u64)>,
}

impl Model {
    fn standing(&self, tags: &[u64], began: u64) -> Standing {
        let hit = |soft: u64| {
            self.history.iter().any(|(number, time)| {
                *time > began && tags.iter().any(|tag| tag & !SOFT | soft == *number)
            })
        };
        match (hit(0), hit(SOFT)) {
            (true, _) => Standing::Invalid,
            (false, true) => Standing::Stale,
            (false, false) => Standing::Good,
        }
    }
}

proptest! {
    #[test]
    fn entries_stand_as_the_whole_history_says(steps in steps()) {
        let table = TagTable::default();
        let mut model = Model::default();
        let mut begun = vec![(table.stamp(), 0)];
        let mut entries: Vec<(Arc<Attributes>, Vec<u64>, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Invalidate(numbers) => {
                    model.now += 1;
                    model.history.extend(numbers.iter().map(|number| (*number, model.now)));
                    table.invalidate(&numbers);
                }
                Step::Begin => begun.push((table.stamp(), model.now)),
                Step::Fill { began, tags } => {
                    let (stamp, at) = *began.get(&begun);
                    let numbers: Vec<u64> = tags.iter().map(|tag| tag & !SOFT).collect();
                    entries.push((attributes(&table, &numbers, stamp), numbers, at));
                }
                Step::Look(which) if !entries.is_empty() => {
                    let (entry, tags, began) = which.get(&entries);
                    prop_assert_eq!(standing(&table, entry), model.standing(tags, *began));
                }
                Step::Drop(which) if !entries.is_empty() => {
                    entries.swap_remove(which.index(entries.len()));
                }
                Step::Look(_) | Step::Drop(_) => {}
            }
        }
    }

    #[test]
    fn what_is_forgotten_refuses_and_never_keeps(tags in prop::collection::vec(any::<u64>(), 1..800)) {
        let table = TagTable::default();
        let mut last = HashMap::new();
        let mut begun = Vec::new();
        for (at, tag) in tags.iter().enumerate() {
            if at % 50 == 0 {
                begun.push(table.stamp());
            }
            last.insert(tag & !SOFT, table.invalidate(&[tag & !SOFT]));
        }
        for (tag, time) in &last {
            for began in begun.iter().filter(|began| began.local < *time) {
                let entry = attributes(&table, &[*tag], *began);
                prop_assert_eq!(standing(&table, &entry), Standing::Invalid);
            }
        }
    }

    #[test]
    fn nonsense_is_not_attributes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Attributes::decode(&TagTable::default(), &bytes);
    }
}
