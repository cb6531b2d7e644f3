//! Tests of the journal: that it reads as it was written, whatever happened to its end or its middle.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::alert::event::{EventKind, Fingerprint};
use crate::alert::handler::tests::event;
use crate::series::Labels;

/// A record of an event of a key for a handler.
fn fired(key: &str, kind: EventKind) -> Record {
    let event = Arc::new(event(key, kind));
    let routed = Routed { event, to: vec!["hook".into()], full: Vec::new() };
    let (changed, removed, ended) = (Vec::new(), Vec::new(), Vec::new());
    Record::Outcome { changed, removed, ended, events: vec![routed], at_ms: 1 }
}

/// What a journal of a path holds now.
fn read(path: &Path) -> (Kept, JournalReplay) {
    let (_, kept, replay) = Journal::open(path, 0).expect("it can be opened");
    (kept, replay)
}

fn waiting(kept: &Kept) -> Vec<&str> {
    let outbox = kept.outboxes.get("hook");
    outbox.into_iter().flat_map(|it| &it.waiting).map(|event| event.key.as_str()).collect()
}

#[test]
fn what_was_appended_is_there_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sub/alerts.journal");
    let (mut journal, mut kept, replay) = Journal::open(&path, 7).expect("it is made");
    assert_eq!(replay, JournalReplay::default());
    for record in [fired("a", EventKind::Fire), fired("b", EventKind::Resolve)] {
        journal.append(std::slice::from_ref(&record));
        kept.apply(&record);
    }
    let locked = Journal::open(&path, 7).expect_err("it is in use");
    assert!(matches!(locked, JournalError::Locked { .. }), "{locked}");
    drop(journal);
    let (again, replay) = read(&path);
    assert_eq!((waiting(&again), replay.records), (vec!["a", "b"], 3));
    assert_eq!(Kept { version: None, ..again }, kept);
}

#[test]
fn a_torn_end_is_cut_and_a_broken_line_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.journal");
    let (mut journal, ..) = Journal::open(&path, 7).expect("it is made");
    for key in ["a", "b", "c"] {
        journal.append(&[fired(key, EventKind::Fire)]);
    }
    drop(journal);
    let whole = std::fs::read(&path).expect("bytes");
    let starts: Vec<_> = whole
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    // Every place at which a crash can have ended the file.
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).expect("written");
        let (kept, replay) = read(&path);
        let lines = starts.iter().filter(|&&end| end <= cut).count();
        assert_eq!(waiting(&kept), &["a", "b", "c"][..lines.saturating_sub(1)], "cut at {cut}");
        let end = starts[..lines].last().copied().unwrap_or(0);
        assert_eq!(replay.cut_bytes, (cut - end) as u64, "cut at {cut}");
    }
    // A flipped bit in the record in the middle.
    let mut broken = whole.clone();
    broken[(starts[1] + starts[2]) / 2] ^= 4;
    std::fs::write(&path, &broken).expect("written");
    let (kept, replay) = read(&path);
    assert_eq!((waiting(&kept), replay.damaged), (vec!["a", "c"], 1));
}

#[test]
fn a_snapshot_replaces_the_file_with_what_came_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.journal");
    let (mut journal, mut kept, _) = Journal::open(&path, 7).expect("it is made");
    let add = |journal: &mut Journal, kept: &mut Kept, key: &str| {
        let record = fired(key, EventKind::Fire);
        journal.append(std::slice::from_ref(&record));
        kept.apply(&record);
    };
    for at in 0..100 {
        add(&mut journal, &mut kept, &format!("old-{at}"));
        let sent = Record::Formed {
            handler: "hook".into(),
            key: "k".into(),
            group: Labels::default(),
            events: vec![format!("old-{at}")],
        };
        let done = Record::Sent { handler: "hook".into(), key: "k".into() };
        journal.append(&[sent.clone(), done.clone()]);
        kept.apply(&sent);
        kept.apply(&done);
    }
    add(&mut journal, &mut kept, "a");
    let before = std::fs::metadata(&path).expect("it is there").len();
    let snapshot = journal.begin_snapshot(&kept, 9).expect("it is on the disk");
    assert!(journal.begin_snapshot(&kept, 9).is_none(), "one at a time");
    add(&mut journal, &mut kept, "b");
    journal.end_snapshot(snapshot.write());
    add(&mut journal, &mut kept, "c");
    drop(journal);
    assert!(std::fs::metadata(&path).expect("it is there").len() < before / 4);
    let (again, replay) = read(&path);
    assert_eq!((waiting(&again), replay.damaged), (vec!["a", "b", "c"], 0));
    assert_eq!(again.outboxes, kept.outboxes);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_counted_and_a_snapshot_makes_good_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.journal");
    let (mut journal, mut kept, _) = Journal::open(&path, 7).expect("it is made");
    // Every write to this device fails as on a full disk.
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    journal.on_disk.as_mut().expect("it is on the disk").file = Some(full);
    for key in ["a", "b"] {
        journal.append(&[fired(key, EventKind::Fire)]);
        kept.apply(&fired(key, EventKind::Fire));
    }
    assert_eq!((journal.errors(), journal.is_degraded()), (1, true));
    assert!(journal.wants_snapshot());
    let snapshot = journal.begin_snapshot(&kept, 9).expect("it is on the disk");
    journal.end_snapshot(snapshot.write());
    assert!(!journal.is_degraded() && !journal.wants_snapshot());
    drop(journal);
    assert_eq!(waiting(&read(&path).0), ["a", "b"]);
}

#[test]
fn a_journal_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.journal");
    let mut bytes = Vec::new();
    line(&Record::Journal { version: VERSION + 1, at_ms: 0 }, &mut bytes);
    std::fs::write(&path, bytes).expect("written");
    let error = Journal::open(&path, 0).expect_err("it is from the future");
    assert!(matches!(error, JournalError::Version { version: 2, .. }), "{error}");
}

fn records() -> impl Strategy<Value = Record> {
    let key = || "[a-d]";
    let handler = || prop_oneof![Just(Arc::from("x")), Just(Arc::from("y"))];
    let kind = prop_oneof![Just(EventKind::Fire), Just(EventKind::Resolve)];
    prop_oneof![
        (key(), kind, 0_u64..3, any::<bool>()).prop_map(|(key, kind, instance, full)| {
            let mut event = event(&key, kind);
            event.fingerprint = Fingerprint(instance);
            let (to, full) = match full {
                true => (vec!["x".into()], vec!["y".into()]),
                false => (vec!["x".into(), "y".into()], Vec::new()),
            };
            let routed = Routed { event: Arc::new(event), to, full };
            let (changed, removed, ended) = (Vec::new(), Vec::new(), Vec::new());
            Record::Outcome { changed, removed, ended, events: vec![routed], at_ms: 3 }
        }),
        (handler(), key()).prop_map(|(handler, key)| {
            let events = vec![key.clone()];
            Record::Formed { handler, key, group: Labels::default(), events }
        }),
        (handler(), key()).prop_map(|(handler, key)| Record::Tried { handler, key }),
        (handler(), key()).prop_map(|(handler, key)| Record::Sent { handler, key }),
        (handler(), key()).prop_map(|(handler, key)| {
            Record::Dead { handler, key, error: "why".into(), at_ms: 4 }
        }),
        (handler(), key()).prop_map(|(handler, key)| Record::Revived { handler, key }),
    ]
}

proptest! {
    #[test]
    fn a_snapshot_and_a_replay_come_to_the_same(records in prop::collection::vec(records(), 0..60)) {
        let mut kept = Kept::default();
        let (mut replayed, mut bytes) = (Kept::default(), Vec::new());
        for record in &records {
            kept.apply(record);
            bytes.clear();
            line(record, &mut bytes);
            let again = read_line(bytes.strip_suffix(b"\n").expect("a line")).expect("sound");
            prop_assert_eq!(&again, record);
            replayed.apply(&again);
        }
        prop_assert_eq!(&replayed, &kept);
        let mut from_snapshot = Kept::default();
        for record in kept.records() {
            from_snapshot.apply(&record);
        }
        from_snapshot.outboxes.retain(|_, it| *it != Outbox::default());
        kept.outboxes.retain(|_, it| *it != Outbox::default());
        prop_assert_eq!(from_snapshot, kept);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("alerts.journal");
        std::fs::write(&path, &bytes).expect("written");
        let (kept, replay) = read(&path);
        prop_assert_eq!((kept, replay.records), (Kept::default(), 0));
    }
}
