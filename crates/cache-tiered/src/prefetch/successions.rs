//! Which key tends to follow which: a table of successions of order one, with confidence.
//!
//! Each row stands for a key that was asked for and counts what was asked for within the next
//! [`WINDOW`] requests: up to [`SUCCESSORS`] keys, each by a small counter. A window of more than one
//! finds successions although requests of several clients are mixed. A successor is predicted when it
//! has followed at least [`FOLLOWED_MIN`] times, and so in half of the cases. Counters age: when a key
//! has been seen [`SEEN_MAX`] times, all of its row is halved, so that what no longer follows is
//! forgotten. A successor that finds no room takes one from the least of those that are there, and its
//! place when nothing is left of that.
//!
//! Rows lie in sets of [`WAYS`]; a key that finds its set full takes some credit from the row that
//! was of least use, and its place when that has none. So keys that come once push out what else came
//! once, and seldom what repeats.
//!
//! Rows are known by the 64-bit hashes of their keys. A collision makes a prediction that is of no use.
//! Keys are kept only as successors, because only those have to be loaded.

use std::iter;

/// Requests within which one key counts as the successor of another.
pub(crate) const WINDOW: usize = 2;
/// Successors that a row knows.
const SUCCESSORS: usize = 3;
/// Rows of a set.
const WAYS: usize = 4;
/// How often a key has to have followed before it is predicted.
const FOLLOWED_MIN: u8 = 2;
/// Occurrences after which a row is halved.
const SEEN_MAX: u8 = 16;
const CREDIT_MAX: u8 = 8;

#[derive(Debug, Clone)]
struct Successor<K> {
    hash: u64,
    key: K,
    followed: u8,
}

#[derive(Debug, Clone)]
struct Row<K> {
    hash: u64,
    /// Zero in a row that stands for no key.
    seen: u8,
    credit: u8,
    successors: [Option<Successor<K>>; SUCCESSORS],
}

impl<K> Row<K> {
    fn empty() -> Self {
        Self { hash: 0, seen: 0, credit: 0, successors: [const { None }; SUCCESSORS] }
    }
}

/// The table; see the top of this file.
#[derive(Debug)]
pub(crate) struct Successions<K> {
    rows: Box<[Row<K>]>,
    /// The last keys that were asked for, the newest first; zero for none.
    recent: [u64; WINDOW],
}

impl<K: Clone> Successions<K> {
    /// Makes a table of at least this many rows, some 110 bytes each for keys of 8 bytes.
    pub(crate) fn new(rows: usize) -> Self {
        let sets = rows.div_ceil(WAYS).next_power_of_two();
        let rows = iter::repeat_with(Row::empty).take(sets * WAYS).collect();
        Self { rows, recent: [0; WINDOW] }
    }

    /// Notes that a key was asked for, after those that were asked for before.
    ///
    /// Keys that fall out of the table go into `dropped`.
    pub(crate) fn observe(&mut self, hash: u64, key: &K, dropped: &mut Vec<K>) {
        let recent = self.recent;
        for before in recent.into_iter().filter(|before| *before != 0 && *before != hash) {
            self.follow(before, hash, key, dropped);
        }
        self.see(hash, dropped);
        if recent[0] != hash {
            self.recent.rotate_right(1);
            self.recent[0] = hash;
        }
    }

    /// The keys that are expected after this one, with their hashes, the likeliest first.
    pub(crate) fn expected_after(&self, hash: u64) -> Vec<(u64, K)> {
        let Some(at) = self.find(hash) else { return Vec::new() };
        let row = &self.rows[at];
        let likely = |it: &&Successor<K>| {
            it.followed >= FOLLOWED_MIN && u16::from(it.followed) * 2 >= u16::from(row.seen)
        };
        let mut expected: Vec<_> = row.successors.iter().flatten().filter(likely).collect();
        expected.sort_by_key(|it| std::cmp::Reverse(it.followed));
        expected.into_iter().map(|it| (it.hash, it.key.clone())).collect()
    }

    /// Counts an occurrence of a key, and makes its row if there is room for it.
    fn see(&mut self, hash: u64, dropped: &mut Vec<K>) {
        let at = match self.find(hash) {
            Some(at) => at,
            None => match self.make_row(hash, dropped) {
                Some(at) => at,
                None => return,
            },
        };
        let row = &mut self.rows[at];
        if row.seen == SEEN_MAX {
            row.seen /= 2;
            for successor in &mut row.successors {
                if let Some(known) = successor {
                    known.followed /= 2;
                }
                let forgotten = successor.take_if(|known| known.followed == 0);
                dropped.extend(forgotten.map(|known| known.key));
            }
        }
        row.seen += 1;
    }

    fn follow(&mut self, before: u64, hash: u64, key: &K, dropped: &mut Vec<K>) {
        let Some(at) = self.find(before) else { return };
        let row = &mut self.rows[at];
        if let Some(known) = row.successors.iter_mut().flatten().find(|known| known.hash == hash) {
            known.followed = (known.followed + 1).min(row.seen);
            row.credit = (row.credit + 1).min(CREDIT_MAX);
            return;
        }
        let new = Successor { hash, key: key.clone(), followed: 1 };
        if let Some(free) = row.successors.iter_mut().find(|successor| successor.is_none()) {
            *free = Some(new);
            return;
        }
        let least = row.successors.iter_mut().flatten().min_by_key(|known| known.followed);
        let Some(least) = least else { return };
        least.followed -= 1;
        if least.followed == 0 {
            dropped.push(std::mem::replace(least, new).key);
        } else {
            dropped.push(new.key);
        }
    }

    fn set(&self, hash: u64) -> usize {
        let sets = self.rows.len() / WAYS;
        // The upper half of the product has of every bit of the hash.
        let mixed = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (mixed as usize & (sets - 1)) * WAYS
    }

    fn find(&self, hash: u64) -> Option<usize> {
        let set = self.set(hash);
        (set..set + WAYS).find(|at| self.rows[*at].seen > 0 && self.rows[*at].hash == hash)
    }

    fn make_row(&mut self, hash: u64, dropped: &mut Vec<K>) -> Option<usize> {
        let set = self.set(hash);
        let ways = set..set + WAYS;
        let at = ways.min_by_key(|at| {
            let row = &self.rows[*at];
            (row.seen > 0, row.credit)
        })?;
        let row = &mut self.rows[at];
        if row.seen > 0 && row.credit > 0 {
            row.credit -= 1;
            return None;
        }
        let old = std::mem::replace(row, Row { hash, ..Row::empty() });
        dropped.extend(old.successors.into_iter().flatten().map(|known| known.key));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn expected(table: &Successions<u64>, key: u64) -> Vec<u64> {
        table.expected_after(key).into_iter().map(|(_, key)| key).collect()
    }

    fn taught(rows: usize, keys: impl IntoIterator<Item = u64>) -> Successions<u64> {
        let mut table = Successions::new(rows);
        keys.into_iter().for_each(|key| table.observe(key, &key, &mut Vec::new()));
        table
    }

    #[test]
    fn what_has_followed_twice_is_expected_and_the_nearest_comes_first() {
        let once = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert!(expected(&taught(64, once), 1).is_empty());
        let table = taught(64, once.into_iter().chain(once));
        assert_eq!(expected(&table, 1), [2, 3]);
        assert_eq!(expected(&table, 4), [5, 6]);
        assert!(expected(&table, 77).is_empty());
    }

    #[test]
    fn what_follows_seldom_is_not_expected() {
        // After 1 comes 2 in one of four cases, and otherwise something new.
        let keys = (0..200).flat_map(|round| {
            let next = if round % 4 == 0 { 2 } else { 1_000 + round };
            [1, next, 10_000 + round, 20_000 + round]
        });
        assert!(!expected(&taught(4_096, keys), 1).contains(&2));
    }

    #[test]
    fn a_succession_that_has_changed_is_learned_anew() {
        let old = iter::repeat_n([1, 2, 50, 51], 100).flatten();
        let new = iter::repeat_n([1, 3, 50, 51], 16).flatten();
        assert_eq!(expected(&taught(64, old.clone()), 1), [2, 50]);
        let after = expected(&taught(64, old.chain(new)), 1);
        assert!(after.contains(&3) && !after.contains(&2), "{after:?}");
    }

    #[test]
    fn two_clients_at_once_do_not_hide_their_successions() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut ways = [(1..=20).cycle(), (101..=120).cycle()];
        let mut last = [0; 2];
        let mut table = Successions::<u64>::new(256);
        let (mut right, mut predicted) = (0, 0);
        for round in 0..4_000 {
            let client = rng.usize(..2);
            let key = ways[client].next().unwrap();
            if round > 1_000 && last[client] != 0 {
                let after = expected(&table, last[client]);
                predicted += u32::from(!after.is_empty());
                right += u32::from(after.contains(&key));
            }
            last[client] = key;
            table.observe(key, &key, &mut Vec::new());
        }
        assert!(right * 3 > 3_000 * 2 && right * 10 > predicted * 9, "{right} of {predicted}");
    }

    #[test]
    fn keys_that_come_once_do_not_push_out_what_repeats() {
        let mut table = Successions::<u64>::new(64);
        for round in 0..200_u64 {
            let once = (0..20).map(|at| 1_000 + round * 20 + at);
            (1..=10).chain(once).for_each(|key| table.observe(key, &key, &mut Vec::new()));
        }
        let kept = (1..10).filter(|key| expected(&table, *key).contains(&(key + 1))).count();
        assert!(kept >= 8, "{kept} of 9");
    }

    /// Keys and how often they have followed.
    type Followers = [Option<(u64, u8)>; SUCCESSORS];

    /// The same rules, with a map for the rows and without a bound on them.
    #[derive(Default)]
    struct Model {
        rows: HashMap<u64, (u8, Followers)>,
        recent: Vec<u64>,
    }

    impl Model {
        fn observe(&mut self, key: u64) {
            for before in self.recent.clone() {
                let Some((seen, followers)) = self.rows.get_mut(&before) else { continue };
                if before == key {
                    continue;
                }
                if let Some(known) = followers.iter_mut().flatten().find(|it| it.0 == key) {
                    known.1 = (known.1 + 1).min(*seen);
                } else if let Some(free) = followers.iter_mut().find(|it| it.is_none()) {
                    *free = Some((key, 1));
                } else {
                    let counts = followers.map(|it| it.unwrap().1);
                    let least = counts.iter().min().unwrap();
                    let at = counts.iter().position(|count| count == least).unwrap();
                    let followed = least - 1;
                    followers[at] = if followed == 0 {
                        Some((key, 1))
                    } else {
                        followers[at].map(|it| (it.0, followed))
                    };
                }
            }
            let (seen, followers) = self.rows.entry(key).or_default();
            if *seen == SEEN_MAX {
                *seen /= 2;
                for follower in followers {
                    *follower = follower.map(|it| (it.0, it.1 / 2)).filter(|it| it.1 > 0);
                }
            }
            *seen += 1;
            if self.recent.first() != Some(&key) {
                self.recent.insert(0, key);
                self.recent.truncate(WINDOW);
            }
        }

        fn expected(&self, key: u64) -> Vec<u64> {
            let Some((seen, followers)) = self.rows.get(&key) else { return Vec::new() };
            let likely = |it: &(u64, u8)| it.1 >= FOLLOWED_MIN && it.1 * 2 >= *seen;
            let mut all: Vec<_> = followers.iter().flatten().copied().filter(likely).collect();
            all.sort_by_key(|it| std::cmp::Reverse(it.1));
            all.into_iter().map(|it| it.0).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn with_room_for_all_it_does_what_the_model_does(
            keys in prop::collection::vec(1..=8_u64, 0..400),
        ) {
            let (mut table, mut model) = (Successions::new(1_024), Model::default());
            for key in keys {
                table.observe(key, &key, &mut Vec::new());
                model.observe(key);
                for of in 1..=8 {
                    prop_assert_eq!(expected(&table, of), model.expected(of));
                }
            }
        }

        #[test]
        fn whatever_comes_it_stays_within_its_bounds(
            keys in prop::collection::vec(1..60_u64, 0..600),
        ) {
            let table = taught(16, keys);
            prop_assert_eq!(table.rows.len(), 16);
            for row in &table.rows {
                prop_assert!(row.seen <= SEEN_MAX && row.credit <= CREDIT_MAX);
                for known in row.successors.iter().flatten() {
                    prop_assert!((1..=SEEN_MAX).contains(&known.followed));
                    prop_assert_ne!(known.hash, row.hash);
                }
            }
        }
    }
}
