//! The log of invalidated tags that all machines of a namespace share: its rules, without any I/O.
//!
//! Whoever invalidates a tag gives it a number, and an entry that was made when the numbers were lower is
//! stale. In Redis the log is one sorted set: a member for each tag, its number as the score. Numbers are
//! made by the server ([`SCRIPT`]): its clock in microseconds, and always above the last one, so they
//! agree for all machines. Each machine has a mirror of the log and knows up to which number it is
//! complete ([`Mirror::head`]); an entry is stamped with that when it is made.
//!
//! **What is not known is stale.** [`Mirror::invalidated`] never tells less than there is: of a tag whose
//! invalidation Redis has not acknowledged it says the highest number there is, and so for every tag
//! until the log was read for the first time.
//!
//! **The floor.** Numbers that are older than any entry in Redis are taken out of the log, and with them
//! goes what could be said of even older entries, those on a disk: they are below the floor, the newest
//! number less that age. Whoever finds the log gone (evicted, flushed, restored from something older)
//! makes a new one whose floor is above all that was before; so does who finds it too large. Such a floor
//! is a member of its own, so that all machines see it.
//!
//! What remains: a log that is lost, and found to be lost first by a machine that has read nothing of it,
//! on a server whose clock was set back.
//!
//! An invalidation that may or may not have been made is made again: its number is only higher then.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// The most tags that a mirror holds; one more, and there is a new floor.
const TAGS_MAX: usize = 1_000_000;
/// The most invalidations that wait for Redis; one more, and there is to be a new floor instead.
const PENDING_MAX: usize = 65_536;
/// Invalidations that are sent together, all under one number.
const APPENDED: usize = 512;
/// Members of the log that are read together. More than have one number.
const READ: usize = 4_096;
/// How long the log is kept beyond what the oldest entry needs.
const SPARE_MICROS: u64 = 600_000_000;
/// The member whose number is the floor; a tag is sixteen digits.
const FLOOR: &[u8] = b"floor";

/// Appends to the log and returns what is in it from a number on.
///
/// The arguments: how old a number may become, the last number that is known, how many members may be
/// returned, `1` for a new floor, and tags.
pub(super) const SCRIPT: &str = "\
local key, age, last = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local head = tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2] or '0')
local anew = ARGV[4] == '1' or head == 0 or head < last
if anew or #ARGV > 4 then
  local time = redis.call('TIME')
  local number = math.max(head + 1, last + 1, time[1] * 1000000 + time[2])
  local score = string.format('%.0f', number)
  if anew then
    redis.call('DEL', key)
    redis.call('ZADD', key, score, 'floor')
  end
  for i = 5, #ARGV do
    redis.call('ZADD', key, score, ARGV[i])
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', number - age))
end
return redis.call('ZRANGEBYSCORE', key, ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
";

/// What one machine knows of the log.
#[derive(Debug)]
pub(super) struct Mirror {
    numbers: HashMap<u64, u64>,
    tags_max: usize,
    /// How much older than the newest a number may be, in microseconds.
    age: u64,
    /// The highest number seen; zero before the first.
    last: u64,
    /// The number up to which nothing is missing.
    head: u64,
    /// What is older cannot be judged.
    floor: u64,
    /// Invalidations that Redis has not acknowledged, in their order, each with its serial number.
    pending: VecDeque<(u64, u64)>,
    /// How often each tag is among them.
    counts: HashMap<u64, usize>,
    serial: u64,
    acknowledged: u64,
    /// A new floor is wanted, up to this serial number.
    wants_floor: Option<u64>,
}

/// One turn of appending and reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) arguments: Vec<Bytes>,
    /// The invalidations up to here are in it.
    serial: u64,
    /// How many of those that wait.
    appended: usize,
    new_floor: bool,
}

/// What a turn has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Tags whose numbers are new.
    pub(super) tags: Vec<u64>,
    /// The floor was raised above what had been known: any tag may have been invalidated.
    pub(super) lost: bool,
    /// There is more to be appended or read.
    pub(super) more: bool,
}

impl Mirror {
    pub(super) fn new(ttl_max: std::time::Duration) -> Self {
        let micros = u64::try_from(ttl_max.as_micros()).unwrap_or(u64::MAX);
        Self {
            numbers: HashMap::new(),
            tags_max: TAGS_MAX,
            age: micros.saturating_add(SPARE_MICROS),
            last: 0,
            head: 0,
            floor: 0,
            pending: VecDeque::new(),
            counts: HashMap::new(),
            serial: 0,
            acknowledged: 0,
            wants_floor: None,
        }
    }

    /// The number up to which the mirror is complete, zero before the log was read.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The number below which an entry with this tag is stale.
    pub(super) fn invalidated(&self, tag: u64) -> u64 {
        let unknown = self.head == 0 || self.wants_floor.is_some();
        if unknown || self.counts.contains_key(&tag) {
            return u64::MAX;
        }
        self.numbers.get(&tag).copied().unwrap_or(0).max(self.floor)
    }

    /// Whether there is something to append.
    pub(super) fn is_due(&self) -> bool {
        self.wants_floor.is_some() || !self.pending.is_empty()
    }

    /// Invalidates tags; returns what `acknowledged` reaches when Redis has them.
    pub(super) fn invalidate(&mut self, tags: &[u64]) -> u64 {
        self.serial += 1;
        if self.wants_floor.is_some() || self.pending.len() + tags.len() > PENDING_MAX {
            self.want_floor();
        } else {
            for tag in tags {
                self.pending.push_back((self.serial, *tag));
                *self.counts.entry(*tag).or_default() += 1;
            }
        }
        self.serial
    }

    /// Counts the invalidations that Redis has acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn want_floor(&mut self) {
        self.wants_floor = Some(self.serial);
        self.pending = VecDeque::new();
        self.counts = HashMap::new();
    }

    /// What to run the script with next.
    pub(super) fn turn(&self) -> Turn {
        let new_floor = self.wants_floor.is_some();
        let number = |number: u64| Bytes::from(number.to_string());
        let flag = Bytes::from_static(if new_floor { b"1" } else { b"0" });
        let mut arguments = vec![number(self.age), number(self.last), number(READ as u64), flag];
        let appended = self.pending.len().min(APPENDED);
        let tags = self.pending.iter().take(appended);
        arguments.extend(tags.map(|(_, tag)| Bytes::from(format!("{tag:016x}"))));
        // One call's tags may be in several turns: it is made with the last of them.
        let serial = match (self.wants_floor, self.pending.get(appended)) {
            (Some(serial), _) => serial,
            (None, Some((next, _))) => next - 1,
            (None, None) => self.serial,
        };
        Turn { arguments, serial, appended, new_floor }
    }

    /// Takes what the script has returned: members and their numbers in turn.
    ///
    /// `None` if that is no log. Nothing is known then, and there is to be a new one.
    pub(super) fn take(&mut self, turn: &Turn, answer: &[Bytes]) -> Option<News> {
        let Some(members) = parse(answer) else {
            self.head = 0;
            self.want_floor();
            return None;
        };
        if turn.new_floor && self.wants_floor.is_some_and(|serial| serial <= turn.serial) {
            self.wants_floor = None;
        }
        for _ in 0..turn.appended.min(self.pending.len()) {
            if let Some((_, tag)) = self.pending.pop_front()
                && let Some(count) = self.counts.get_mut(&tag)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&tag);
                }
            }
        }
        self.acknowledged = self.acknowledged.max(turn.serial);
        let mut news = News::default();
        let is_first = self.last == 0;
        let known = self.last;
        for (member, number) in &members {
            self.last = self.last.max(*number);
            match member {
                Some(tag) => {
                    if self.numbers.insert(*tag, *number) != Some(*number) {
                        news.tags.push(*tag);
                    }
                }
                None => {
                    news.lost |= !is_first && *number > known;
                    self.floor = self.floor.max(*number);
                }
            }
        }
        self.floor = self.floor.max(self.last.saturating_sub(self.age));
        let is_complete = members.len() < READ;
        if is_complete {
            self.head = self.last;
        }
        self.prune();
        if self.numbers.len() > self.tags_max {
            self.serial += 1;
            self.want_floor();
        }
        news.more = !is_complete || self.is_due();
        Some(news)
    }

    /// Forgets what the floor says anyway, when that may be worth the work.
    fn prune(&mut self) {
        let floor = self.floor;
        if self.numbers.len() > self.tags_max / 2 {
            self.numbers.retain(|_, number| *number > floor);
        }
    }
}

/// Members and their numbers; `None` for the floor.
fn parse(answer: &[Bytes]) -> Option<Vec<(Option<u64>, u64)>> {
    let (pairs, rest) = answer.as_chunks::<2>();
    if !rest.is_empty() || pairs.is_empty() {
        return None;
    }
    let pair = |[member, number]: &[Bytes; 2]| {
        let text = std::str::from_utf8(member).ok()?;
        let member = match &**member {
            FLOOR => None,
            _ => Some(u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)?),
        };
        // The server writes scores as it does floating-point numbers.
        let number: f64 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let is_whole = number.fract() == 0.0 && (1.0..9e15).contains(&number);
        is_whole.then_some((member, number as u64))
    };
    pairs.iter().map(pair).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The log as the script keeps it.
    #[derive(Debug, Default)]
    pub(in super::super) struct Log {
        pub(in super::super) members: BTreeMap<Vec<u8>, u64>,
        clock: u64,
    }

    impl Log {
        pub(in super::super) fn run(&mut self, arguments: &[Bytes]) -> Vec<Bytes> {
            let number =
                |at: usize| String::from_utf8_lossy(&arguments[at]).parse::<u64>().unwrap();
            let (age, last, limit) = (number(0), number(1), number(2) as usize);
            // No two calls are made within a microsecond.
            self.clock += 1;
            let head = self.members.values().copied().max().unwrap_or(0);
            let anew = number(3) == 1 || head == 0 || head < last;
            if anew || arguments.len() > 4 {
                let number = (head + 1).max(last + 1).max(self.clock);
                if anew {
                    self.members.clear();
                    self.members.insert(FLOOR.to_vec(), number);
                }
                for tag in &arguments[4..] {
                    self.members.insert(tag.to_vec(), number);
                }
                self.members.retain(|_, it| *it >= number.saturating_sub(age));
            }
            let mut found: Vec<_> = self.members.iter().filter(|(_, it)| **it >= last).collect();
            found.sort_by_key(|(member, number)| (**number, (*member).clone()));
            let pair = |(member, number): (&Vec<u8>, &u64)| {
                [Bytes::from(member.clone()), Bytes::from(number.to_string())]
            };
            found.into_iter().take(limit).flat_map(pair).collect()
        }
    }

    fn mirror() -> Mirror {
        Mirror::new(Duration::from_secs(1))
    }

    fn sync(mirror: &mut Mirror, log: &mut Log) -> News {
        let mut all = News::default();
        loop {
            let turn = mirror.turn();
            let news = mirror.take(&turn, &log.run(&turn.arguments)).unwrap();
            all.tags.extend(news.tags);
            all.lost |= news.lost;
            if !news.more {
                return all;
            }
        }
    }

    #[test]
    fn two_machines_agree_on_what_is_stale() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let (mut ours, mut theirs) = (mirror(), mirror());
        assert_eq!(ours.invalidated(7), u64::MAX, "nothing is known yet");
        assert_eq!(sync(&mut ours, &mut log), News::default());
        sync(&mut theirs, &mut log);
        assert_eq!((ours.head(), theirs.head(), theirs.invalidated(7)), (1_001, 1_001, 1_001));

        let stamp = theirs.head();
        let serial = ours.invalidate(&[7, 8]);
        assert_eq!((ours.invalidated(7), ours.acknowledged()), (u64::MAX, 0));
        assert!(sync(&mut ours, &mut log).tags.contains(&7));
        assert_eq!(ours.acknowledged(), serial);
        assert_eq!(sync(&mut theirs, &mut log).tags, [7, 8]);
        assert!(theirs.invalidated(7) > stamp && ours.invalidated(7) == theirs.invalidated(7));
        assert!(theirs.invalidated(9) <= stamp, "another tag");
        assert!(theirs.invalidated(7) <= theirs.head(), "what is made from now on is fresh");
        assert_eq!(sync(&mut theirs, &mut log), News::default());
    }

    #[test]
    fn a_log_that_is_gone_makes_all_that_was_before_stale() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let (mut ours, mut theirs) = (mirror(), mirror());
        sync(&mut ours, &mut log);
        sync(&mut theirs, &mut log);
        let stamp = ours.head();
        // On a server whose clock is behind, too.
        log = Log { clock: 10, ..Log::default() };
        assert!(sync(&mut ours, &mut log).lost);
        assert!(ours.invalidated(1) > stamp);
        assert!(sync(&mut theirs, &mut log).lost);
        assert_eq!(theirs.invalidated(1), ours.invalidated(1));
        assert_eq!(sync(&mut theirs, &mut log), News::default());
    }

    #[test]
    fn old_numbers_leave_the_log_and_what_is_older_still_is_stale() {
        let mut log = Log { clock: 1, ..Log::default() };
        let mut ours = mirror();
        ours.invalidate(&[1]);
        sync(&mut ours, &mut log);
        let (stamp, age) = (ours.head(), ours.age);
        log.clock = age * 2;
        ours.invalidate(&[2]);
        sync(&mut ours, &mut log);
        assert_eq!(log.members.len(), 1);
        assert!(ours.invalidated(3) > stamp, "the floor has passed it");
        assert!(ours.invalidated(3) < ours.head());
    }

    #[test]
    fn too_many_tags_are_one_new_floor_for_all() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let (mut ours, mut theirs) = (mirror(), mirror());
        ours.tags_max = 1_000;
        sync(&mut theirs, &mut log);
        for tags in (0..1_200).collect::<Vec<u64>>().chunks(100) {
            ours.invalidate(tags);
            sync(&mut ours, &mut log);
        }
        assert!(ours.numbers.len() <= 1_000 && log.members.len() <= 1_001);
        assert!(sync(&mut theirs, &mut log).lost);
        assert_eq!((theirs.floor, theirs.head()), (ours.floor, ours.head()));
        assert!(theirs.invalidated(9_999) >= ours.floor);
    }

    #[test]
    fn too_many_that_wait_are_one_new_floor() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let mut ours = mirror();
        sync(&mut ours, &mut log);
        let stamp = ours.head();
        let tags: Vec<u64> = (0..1_000).collect();
        let serials: Vec<_> = (0..100).map(|_| ours.invalidate(&tags)).collect();
        assert!(ours.pending.len() <= PENDING_MAX);
        assert_eq!(ours.invalidated(5_000_000), u64::MAX);
        assert!(sync(&mut ours, &mut log).lost);
        assert_eq!(ours.acknowledged(), serials[99]);
        assert!(ours.invalidated(5_000_000) > stamp && ours.invalidated(0) <= ours.head());
    }

    #[test]
    fn a_long_log_is_read_in_parts_and_is_not_complete_before_its_end() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let (mut ours, mut theirs) = (mirror(), mirror());
        for tags in (0..6_000).collect::<Vec<u64>>().chunks(500) {
            ours.invalidate(tags);
        }
        sync(&mut ours, &mut log);
        let turn = theirs.turn();
        let news = theirs.take(&turn, &log.run(&turn.arguments)).unwrap();
        assert!(news.more);
        assert_eq!((theirs.head(), theirs.invalidated(0)), (0, u64::MAX));
        assert!(sync(&mut theirs, &mut log).tags.len() < 3_000);
        assert_eq!(theirs.numbers, ours.numbers);
    }

    #[test]
    fn what_is_no_log_is_replaced_by_one() {
        let mut log = Log { clock: 1_000, ..Log::default() };
        let mut ours = mirror();
        sync(&mut ours, &mut log);
        for answer in [
            &[][..],
            &["floor"],
            &["floor", "x"],
            &["floor", "-1"],
            &["floor", "0.5"],
            &["floor", "nan"],
            &["abc", "5"],
            &["00000000000000zz", "5"],
            &["\u{ff}", "5"],
        ] {
            let answer: Vec<_> =
                answer.iter().map(|it| Bytes::from_static(it.as_bytes())).collect();
            let turn = ours.turn();
            assert_eq!(ours.take(&turn, &answer), None, "{answer:?}");
            assert_eq!(ours.invalidated(1), u64::MAX);
            sync(&mut ours, &mut log);
            assert_ne!(ours.invalidated(1), u64::MAX);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Invalidate(usize, Vec<u64>),
        /// With an answer, or with one that is lost.
        Sync(usize, bool),
        Store(usize, u64),
        Flush,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..2_usize, proptest::collection::vec(0..4_u64, 1..3))
                .prop_map(|(who, tags)| Step::Invalidate(who, tags)),
            5 => (0..2_usize, prop::bool::weighted(0.8)).prop_map(|(who, ok)| Step::Sync(who, ok)),
            3 => (0..2_usize, 0..4_u64).prop_map(|(who, tag)| Step::Store(who, tag)),
            1 => Just(Step::Flush),
            1 => (1..2_000_000_000_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// An entry that was made before its tag was invalidated is stale for whoever invalidated it at
        /// once, and for the other when both have synchronized.
        #[test]
        fn nothing_stale_passes_for_fresh(steps in proptest::collection::vec(step(), 1..60)) {
            let mut log = Log { clock: 1, ..Log::default() };
            let mut mirrors = [mirror(), mirror()];
            // Entries: their tag, their stamp, and whether an invalidation has come since.
            let mut entries: Vec<(u64, u64, HashSet<usize>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Invalidate(who, tags) => {
                        mirrors[who].invalidate(&tags);
                        for (tag, _, by) in &mut entries {
                            if tags.contains(tag) {
                                by.insert(who);
                            }
                        }
                    }
                    Step::Sync(who, true) => drop(sync(&mut mirrors[who], &mut log)),
                    Step::Sync(who, false) => {
                        let turn = mirrors[who].turn();
                        log.run(&turn.arguments);
                    }
                    Step::Store(who, tag) => entries.push((tag, mirrors[who].head(), HashSet::new())),
                    Step::Flush => {
                        log.members.clear();
                        log.clock += 1;
                    }
                    Step::Pass(micros) => log.clock += micros,
                }
                for (tag, stamp, by) in &entries {
                    for who in by {
                        prop_assert!(mirrors[*who].invalidated(*tag) > *stamp);
                    }
                }
            }
            for who in [0, 1, 0] {
                sync(&mut mirrors[who], &mut log);
            }
            for (tag, stamp, by) in &entries {
                if !by.is_empty() {
                    prop_assert!(mirrors.iter().all(|it| it.invalidated(*tag) > *stamp));
                }
            }
            for tag in 0..4 {
                prop_assert_eq!(mirrors[0].invalidated(tag), mirrors[1].invalidated(tag));
                prop_assert!(mirrors[0].invalidated(tag) <= mirrors[0].head());
            }
        }
    }
}
