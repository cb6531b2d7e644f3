//! The tick log and the head, from inside: what is torn, what the table holds, what a tick is kept under.

use std::time::Duration;

use super::head::{Head, Taking};
use super::log::{Frame, Logs, MAGIC, Taken, Tick, put_series, put_tick, read};
use super::record::{Record, TierKey};
use super::*;
use crate::clock::Moment;
use crate::histogram::Part;
use crate::registry::Registry;
use crate::series::{Kind, Labels, SeriesKey, Unit};

fn record(number: u32) -> Record {
    let labels = Labels::new([("tier", "l1"), ("cache", "users \"x\"")]);
    let key = Arc::new(SeriesKey { name: format!("m{number}").into(), labels });
    let (kind, unit) = (Kind::Histogram, Unit::Seconds);
    Record { number, key, kind, unit, scale: 1e-9, first_ms: 5, ended_ms: Some(9) }
}

fn log_of(ticks: &[Tick]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let mut layout = Vec::new();
    put_series(&mut bytes, &record(1));
    ticks.iter().for_each(|tick| put_tick(&mut bytes, &mut layout, tick));
    bytes
}

fn ticks() -> Vec<Tick> {
    let part = Part { index: 700, count: 3, position: 20 };
    let taken = Taken { sum: 0.5, total: 3.0, parts: vec![part, Part { index: 900, ..part }] };
    let tick = |at_ms, series: &[u32]| Tick {
        at_ms,
        numbers: series.iter().map(|series| (*series, at_ms as f64)).collect(),
        taken: vec![(9, taken.clone()), (10, Taken::default())],
    };
    vec![tick(1, &[1, 2]), tick(2, &[1, 2]), tick(3, &[1, 2, 300]), tick(4, &[]), tick(5, &[2])]
}

#[test]
fn a_log_gives_back_what_was_written() {
    let (frames, sound) = read(&log_of(&ticks()));
    assert_eq!(sound, log_of(&ticks()).len());
    let mut expected = vec![Frame::Series(record(1))];
    expected.extend(ticks().into_iter().map(Frame::Tick));
    assert_eq!(frames, expected);
}

#[test]
fn a_torn_log_gives_the_ticks_before_the_tear() {
    let whole = log_of(&ticks());
    let ends: Vec<usize> = (0..=5).map(|count| log_of(&ticks()[..count]).len()).collect();
    for cut in 0..whole.len() {
        let (frames, sound) = read(&whole[..cut]);
        let complete = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(frames.len(), complete, "cut at {cut}");
        assert!(sound <= cut);
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let (frames, _) = read(&damaged);
        let before = ends.iter().filter(|end| **end <= at).count();
        assert_eq!(frames.len(), before, "damaged at {at}");
    }
}

#[test]
fn a_torn_log_is_cut_where_it_is_sound() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut logs = Logs::new(directory.path());
    let whole = log_of(&ticks());
    logs.append(3, &whole[MAGIC.len()..whole.len() - 5]).expect("there is space");
    logs.append(17, &[]).expect("there is space");
    assert_eq!(logs.list().expect("readable"), [3, 17]);
    let sound = log_of(&ticks()[..4]).len();
    let (frames, torn) = logs.replay(3).expect("readable");
    assert_eq!(frames.len(), 5);
    assert!(torn > 0);
    let length = fs::metadata(directory.path().join("ticks-0000000000000003.log"));
    // A layout that no tick follows is sound as well.
    assert!(length.expect("it is there").len() as usize >= sound);
    assert_eq!(logs.replay(3).expect("readable"), (frames, 0));
    logs.remove_before(17).expect("removable");
    assert_eq!(logs.list().expect("readable"), [17]);
}

#[test]
fn records_and_keys_are_read_as_written() {
    let bytes = record(7).encode();
    assert_eq!(Record::decode(&bytes), Some(record(7)));
    for cut in 0..bytes.len() {
        assert_eq!(Record::decode(&bytes[..cut]), None, "cut at {cut}");
    }
    let tier = TierKey { step_ms: 60_000, rows: 240 };
    let starts = [i64::MIN, -5, 0, 5, 1_700_000_000_000];
    let keys: Vec<_> = starts.iter().map(|start| record::chunk_key(tier, 3, *start)).collect();
    assert!(keys.is_sorted());
    for (key, start) in keys.iter().zip(starts) {
        assert_eq!(record::read_chunk_key(key), Some((tier, 3, start)));
    }
}

/// The moments under which ticks are kept, given as seconds of the wall clock and of the other.
#[track_caller]
fn check_moments(ticks: &[(i64, u64)], kept: &[Option<i64>]) {
    let registry = Registry::default();
    registry.gauge("g", &[]).set(1.0);
    let mut head = Head::new(&[TierKey { step_ms: 1_000, rows: 600 }], 10);
    let taken = ticks.iter().map(|(unix_ms, monotonic_ms)| {
        let monotonic = Duration::from_millis(*monotonic_ms);
        match head.take(&registry.read(Moment { monotonic, unix_ms: *unix_ms }), None) {
            Taking::At(at_ms) => Some(at_ms),
            Taking::TooSoon => None,
        }
    });
    assert_eq!(taken.collect::<Vec<_>>(), kept);
}

#[test]
fn ticks_are_kept_in_order_whatever_the_wall_clock_does() {
    check_moments(&[(5_000, 0), (6_000, 1_000)], &[Some(5_000), Some(6_000)]);
    // A little late is on time, and the next is measured from there.
    check_moments(
        &[(5_000, 0), (6_009, 1_009), (7_003, 2_003)],
        &[Some(5_000), Some(6_000), Some(7_000)],
    );
    check_moments(&[(5_000, 0), (6_100, 1_100)], &[Some(5_000), Some(6_100)]);
    check_moments(&[(5_000, 0), (9_300, 4_300)], &[Some(5_000), Some(9_300)]);
    // Set back by an hour: the other clock goes on.
    check_moments(
        &[(7_200_000, 0), (3_601_000, 1_000), (3_602_500, 2_500), (3_603_000, 3_000)],
        &[Some(7_200_000), Some(7_201_000), Some(7_202_500), Some(7_203_000)],
    );
    // Set forward: a gap.
    check_moments(&[(5_000, 0), (3_600_000, 1_000)], &[Some(5_000), Some(3_600_000)]);
    // Twice at once.
    check_moments(
        &[(5_000, 0), (5_400, 400), (5_400, 400), (6_000, 1_000)],
        &[Some(5_000), None, None, Some(6_000)],
    );
}

#[test]
fn series_beyond_the_table_are_refused_and_counted() {
    let registry = Registry::default();
    for name in ["a", "b", "c"] {
        registry.gauge(name, &[]).set(1.0);
    }
    let mut head = Head::new(&[TierKey { step_ms: 1_000, rows: 600 }], 2);
    let _ = head.take(&registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 }), None);
    assert_eq!((head.series(), head.entries.len()), (2, 2));
    assert!(head.refused >= 1);
}

#[test]
fn options_that_cannot_be_met_are_all_named() {
    let tier = |step_ms| TierOptions {
        step: Duration::from_millis(step_ms),
        keep: Duration::from_secs(3_600),
        limit_bytes: 1,
    };
    let options = HistoryOptions {
        tiers: vec![tier(0), tier(1_000), tier(7_000), tier(7_200_000)],
        queue: 0,
        ..HistoryOptions::default()
    };
    let Err(OpenError::Options { problems }) = History::open(options) else {
        panic!("it has problems")
    };
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(problems[0].starts_with("tiers[0].step = 0ns: must be 1 to"), "{}", problems[0]);
    assert!(problems[3].starts_with("queue = 0"), "{}", problems[3]);
}
