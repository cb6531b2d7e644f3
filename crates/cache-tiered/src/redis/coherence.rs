//! Which version of the namespace counts, and which keys may be stale: the rules, without any I/O.
//!
//! **Version.** Every entry's name holds the version of its namespace, and a key in Redis holds the
//! version that counts. Clearing sets a new one, never used before, and so leaves all entries behind
//! at once. A version is known from an answer of Redis, or not at all: until the first answer, and
//! from `clear` until Redis has acknowledged the new version, nothing is read or written.
//!
//! Versions grow (the wall clock in microseconds, with some bits of the process's own, and always
//! above every version seen). A version *below* the one in use therefore says that the server has
//! forgotten writes: it was restored from a snapshot, or a replica took over too early. The same goes
//! for a server process that was not there before. Both end the namespace's version, because values
//! that were overwritten or removed may be back. A missing version (evicted, `FLUSHALL`) is made anew.
//!
//! **Dirty keys.** A write without a good answer leaves Redis with an older value, now or when the
//! outage ends. Its key becomes dirty, which makes every read of it a miss, until a delete (or a newer
//! write) of it has been acknowledged that is *known to come after* the lost one:
//!
//! - on the same connection, because a server executes one connection's commands in order;
//! - on a newer connection only after the server has been answering there for [`SETTLE`]. What the old
//!   connection left in the server's socket is executed within a few turns of its event loop, since
//!   the client closes with a reset and sends nothing more. The key is deleted once at once, for the
//!   other machines' sake, and once more then.
//!
//! There may be as many dirty keys as the bound says. One more, and the whole namespace gets a new
//! version instead, which needs no memory. What remains: a proxy that holds a command back for longer
//! than [`SETTLE`] after it has let newer ones pass.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// How long a server must have answered on a new connection before what an older connection sent is
/// taken as executed or lost.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// Low bits of a version that tell apart machines which clear in the same microsecond.
const NONCE_BITS: u32 = 10;

#[derive(Debug)]
pub(super) struct Rules {
    /// In use; `None` until Redis has told.
    version: Option<u64>,
    /// The highest version seen or made.
    highest: u64,
    nonce: u64,
    /// New versions asked for, and how many of them Redis has acknowledged.
    bumps_wanted: u64,
    bumps_done: u64,
    bump_in_flight: bool,
    /// Versions that ended without this machine asking for it.
    replaced: u64,
    dirty: HashMap<Bytes, Mark>,
    dirty_max: usize,
    marks: u64,
    servers: BTreeSet<String>,
    connection: u64,
    answering_since: Option<Instant>,
}

/// Why a key is dirty.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Tells this mark from a newer one of the same key.
    serial: u64,
    /// The connection that may have carried the lost write; `None` if it was never sent.
    sent_on: Option<u64>,
    /// Whether a delete has been acknowledged that may not have come last.
    deleted: bool,
}

/// The circumstances in which a command was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    connection: u64,
    settled: bool,
    /// Marks made later are not answered by this command.
    marks: u64,
}

/// A new version on its way to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bump {
    pub(super) version: u64,
    wanted: u64,
}

/// What Redis holds as the namespace's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Version(u64),
    /// A value that no version can be.
    Garbage,
    Nothing,
}

impl Rules {
    pub(super) fn new(dirty_max: usize, nonce: u64) -> Self {
        Self {
            version: None,
            highest: 0,
            nonce: nonce & ((1 << NONCE_BITS) - 1),
            bumps_wanted: 0,
            bumps_done: 0,
            bump_in_flight: false,
            replaced: 0,
            dirty: HashMap::new(),
            dirty_max,
            marks: 0,
            servers: BTreeSet::new(),
            connection: 0,
            answering_since: None,
        }
    }

    /// The version to read and write, if one counts.
    pub(super) fn serving(&self) -> Option<u64> {
        self.version.filter(|_| self.bumps_wanted == self.bumps_done)
    }

    /// Ends the version in use. Returns what `bumps_done` reaches when a newer one counts.
    pub(super) fn want_bump(&mut self) -> u64 {
        self.bumps_wanted += 1;
        if !self.bump_in_flight {
            // The version to come was made after all of these.
            self.dirty.clear();
        }
        self.bumps_wanted
    }

    pub(super) fn bumps_done(&self) -> u64 {
        self.bumps_done
    }

    /// A version that nobody has used, to be set if the namespace has none.
    pub(super) fn candidate(&self, unix_micros: u64) -> u64 {
        ((unix_micros << NONCE_BITS) | self.nonce).max(self.highest + 1)
    }

    /// The next version to set, if one is wanted.
    pub(super) fn begin_bump(&mut self, unix_micros: u64) -> Option<Bump> {
        if self.bumps_wanted == self.bumps_done {
            return None;
        }
        let version = self.candidate(unix_micros);
        self.highest = version;
        self.bump_in_flight = true;
        self.dirty.clear();
        Some(Bump { version, wanted: self.bumps_wanted })
    }

    /// Takes the outcome of setting a version. One whose outcome is unknown is never used.
    pub(super) fn end_bump(&mut self, bump: Bump, acknowledged: bool) {
        self.bump_in_flight = false;
        if acknowledged {
            self.version = Some(bump.version);
            self.bumps_done = bump.wanted;
        }
        if self.bumps_wanted != self.bumps_done {
            self.dirty.clear();
        }
    }

    /// Takes what Redis holds as the version; `false` if it holds none.
    ///
    /// Only for answers to questions that were asked since the last bump ended.
    pub(super) fn found(&mut self, found: Found) -> bool {
        if self.bumps_wanted != self.bumps_done {
            return true;
        }
        match found {
            Found::Nothing => return false,
            Found::Version(version) if version >= self.highest => {
                let before = self.version.replace(version);
                self.replaced += u64::from(before.is_some_and(|before| before != version));
                self.highest = version;
            }
            Found::Version(_) | Found::Garbage => {
                self.replaced += 1;
                self.want_bump();
            }
        }
        true
    }

    /// Counts the versions that others have ended, or that ended with a server's memory.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Takes the identities of the servers behind a connection.
    pub(super) fn met(&mut self, servers: Vec<String>) {
        let servers: BTreeSet<_> = servers.into_iter().collect();
        if servers.is_empty() {
            return;
        }
        if !self.servers.is_empty() && !servers.is_subset(&self.servers) {
            self.want_bump();
        }
        self.servers = servers;
    }

    /// Notes that the server answers on a connection.
    pub(super) fn answered(&mut self, connection: u64, now: Instant) {
        if self.connection != connection || self.answering_since.is_none() {
            self.connection = connection;
            self.answering_since = Some(now);
        }
    }

    /// Notes the circumstances of a command that is about to be sent on `connection`.
    pub(super) fn sending(&self, connection: u64, now: Instant) -> Sent {
        Sent { connection, settled: self.is_settled(connection, now), marks: self.marks }
    }

    fn is_settled(&self, connection: u64, now: Instant) -> bool {
        self.connection == connection
            && self.answering_since.is_some_and(|since| now.duration_since(since) >= SETTLE)
    }

    pub(super) fn is_dirty(&self, key: &[u8]) -> bool {
        self.dirty.contains_key(key)
    }

    pub(super) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Marks a key whose write was lost before it was sent, or after it was sent as `sent` says.
    pub(super) fn mark(&mut self, key: &Bytes, sent: Option<Sent>) {
        if self.bumps_wanted != self.bumps_done && !self.bump_in_flight {
            return;
        }
        self.marks += 1;
        let older = self.dirty.get(key);
        if older.is_none() && self.dirty.len() >= self.dirty_max {
            self.want_bump();
            return;
        }
        // Of two lost writes the one on the older connection is the harder to outlast, and both have
        // to be. A write that was never sent adds nothing to that.
        let sent_on = match (older.and_then(|mark| mark.sent_on), sent.map(|it| it.connection)) {
            (Some(older), Some(newer)) => Some(older.min(newer)),
            (older, newer) => older.or(newer),
        };
        self.dirty.insert(key.clone(), Mark { serial: self.marks, sent_on, deleted: false });
    }

    /// Takes the acknowledgement of a write or delete; `connection` is the one in use by now.
    pub(super) fn acknowledged(&mut self, key: &[u8], sent: Sent, connection: u64) {
        let Some(mark) = self.dirty.get_mut(key) else {
            return;
        };
        if mark.serial > sent.marks {
            return;
        }
        let same = connection == sent.connection;
        let ordered = mark.sent_on.is_none_or(|it| it == sent.connection) || sent.settled;
        if same && ordered {
            self.dirty.remove(key);
            if self.dirty.is_empty() {
                self.dirty.shrink_to(1_024);
            }
        }
    }

    /// Notes that a dirty key was deleted, if only for the time being.
    pub(super) fn deleted(&mut self, key: &[u8], sent: Sent, connection: u64) {
        self.acknowledged(key, sent, connection);
        if let Some(mark) = self.dirty.get_mut(key)
            && mark.serial <= sent.marks
        {
            mark.deleted = true;
        }
    }

    /// Up to `max` dirty keys for which a delete would do something now.
    pub(super) fn to_delete(&self, max: usize, connection: u64, now: Instant) -> Vec<Bytes> {
        let settled = self.is_settled(connection, now);
        let due = self.dirty.iter().filter(|(_, mark)| !mark.deleted || settled);
        due.map(|(key, _)| key.clone()).take(max).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: u64 = 1_800_000_000_000_000;

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    /// Rules that serve version 1, over connection 1, since `start`.
    fn serving(dirty_max: usize, start: Instant) -> Rules {
        let mut rules = Rules::new(dirty_max, 0);
        rules.answered(1, start);
        rules.met(vec!["a".to_owned()]);
        assert_eq!(rules.serving(), None);
        assert!(rules.found(Found::Version(1)));
        assert_eq!(rules.serving(), Some(1));
        rules
    }

    fn bump(rules: &mut Rules) -> u64 {
        let bump = rules.begin_bump(MICROS).expect("a bump is wanted");
        rules.end_bump(bump, true);
        assert_eq!(rules.serving(), Some(bump.version));
        bump.version
    }

    #[test]
    fn a_clear_stops_serving_until_the_new_version_is_acknowledged() {
        let mut rules = serving(10, Instant::now());
        rules.want_bump();
        assert_eq!(rules.serving(), None);
        let first = rules.begin_bump(MICROS).unwrap();
        rules.end_bump(first, false);
        assert_eq!(rules.serving(), None);
        let second = rules.begin_bump(MICROS).unwrap();
        assert!(second.version > first.version, "an unknown version is not used again");
        rules.end_bump(second, true);
        assert_eq!(rules.serving(), Some(second.version));
        assert_eq!(rules.begin_bump(MICROS), None);
    }

    #[test]
    fn a_clear_during_a_clear_needs_one_more_version() {
        let mut rules = serving(10, Instant::now());
        rules.want_bump();
        let first = rules.begin_bump(MICROS).unwrap();
        rules.want_bump();
        rules.end_bump(first, true);
        assert_eq!(rules.serving(), None);
        assert!(bump(&mut rules) > first.version);
    }

    #[test]
    fn an_answer_that_was_asked_for_before_a_clear_does_not_bring_the_old_version_back() {
        let mut rules = serving(10, Instant::now());
        rules.want_bump();
        assert!(rules.found(Found::Version(1)));
        assert_eq!(rules.serving(), None);
    }

    #[test]
    fn anothers_version_is_adopted_and_an_older_one_is_not() {
        let mut rules = serving(10, Instant::now());
        rules.found(Found::Version(5));
        assert_eq!((rules.serving(), rules.replaced()), (Some(5), 1));
        for odd in [Found::Version(4), Found::Garbage] {
            rules.found(odd);
            assert_eq!(rules.serving(), None);
            assert!(bump(&mut rules) > 5);
        }
        assert_eq!(rules.replaced(), 3, "its own new versions do not count");
        assert!(!rules.found(Found::Nothing));
    }

    #[test]
    fn a_server_that_was_not_there_before_ends_the_version() {
        let mut rules = serving(10, Instant::now());
        rules.met(Vec::new());
        rules.met(vec!["a".to_owned()]);
        assert!(rules.serving().is_some());
        rules.met(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(rules.serving(), None);
        bump(&mut rules);
        rules.met(vec!["b".to_owned()]);
        assert!(rules.serving().is_some(), "a master that left took nothing along");
    }

    #[test]
    fn a_later_command_on_the_same_connection_cleans_a_key() {
        let start = Instant::now();
        let mut rules = serving(10, start);
        let lost = rules.sending(1, start);
        rules.mark(&key("k"), Some(lost));
        rules.acknowledged(b"k", lost, 1);
        assert!(rules.is_dirty(b"k"), "it was not sent after the lost one");
        let later = rules.sending(1, start);
        rules.acknowledged(b"k", later, 2);
        assert!(rules.is_dirty(b"k"), "nobody knows which connection carried it");
        rules.acknowledged(b"k", later, 1);
        assert!(!rules.is_dirty(b"k"));
    }

    #[test]
    fn on_a_new_connection_a_key_is_deleted_at_once_and_again_when_the_server_has_settled() {
        let start = Instant::now();
        let mut rules = serving(10, start);
        let lost = rules.sending(1, start);
        rules.mark(&key("k"), Some(lost));
        rules.answered(2, start);
        assert_eq!(rules.to_delete(9, 2, start), [key("k")]);
        let first = rules.sending(2, start);
        rules.deleted(b"k", first, 2);
        assert!(rules.is_dirty(b"k"));
        assert!(rules.to_delete(9, 2, start).is_empty());
        let settled = start + SETTLE;
        assert_eq!(rules.to_delete(9, 2, settled), [key("k")]);
        let second = rules.sending(2, settled);
        rules.deleted(b"k", second, 2);
        assert!(!rules.is_dirty(b"k"));
    }

    #[test]
    fn a_write_that_was_never_sent_does_not_hide_one_that_may_have_been() {
        let start = Instant::now();
        let mut rules = serving(10, start);
        let lost = rules.sending(1, start);
        rules.mark(&key("k"), Some(lost));
        rules.mark(&key("k"), None);
        rules.answered(2, start);
        let later = rules.sending(2, start);
        rules.acknowledged(b"k", later, 2);
        assert!(rules.is_dirty(b"k"));
    }

    #[test]
    fn too_many_dirty_keys_end_the_version_instead() {
        let mut rules = serving(2, Instant::now());
        for name in ["a", "b", "a"] {
            rules.mark(&key(name), None);
        }
        assert_eq!((rules.dirty_len(), rules.serving()), (2, Some(1)));
        rules.mark(&key("c"), None);
        assert_eq!((rules.dirty_len(), rules.serving()), (0, None));
        rules.mark(&key("d"), None);
        assert_eq!(rules.dirty_len(), 0, "the version to come is newer");
        let bump = rules.begin_bump(MICROS).unwrap();
        rules.mark(&key("e"), None);
        rules.end_bump(bump, true);
        assert!(rules.is_dirty(b"e"), "the version may be older than this mark");
        assert_eq!(rules.serving(), Some(bump.version));
    }
}
