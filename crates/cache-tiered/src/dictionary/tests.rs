//! Dictionaries that are learned, tried, given up and kept within their bounds.

use std::time::Instant;

use super::*;
use crate::compression::{Compressing, Compression, Floor, Unpacked};

/// A record such as services keep: about 250 bytes of names that repeat and values that do not.
pub(crate) fn record(index: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(index);
    let mut pick = |from: &[&str]| from[random.usize(..from.len())].to_owned();
    let (city, plan) = (
        pick(&["Berlin", "Lisbon", "Nairobi", "Osaka", "Quito", "Tromso"]),
        pick(&["free", "team", "business"]),
    );
    let name = format!(
        "{} {}",
        pick(&["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"]),
        pick(&["Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Knuth"]),
    );
    let (number, score, seen) =
        (random.u32(..), random.u16(..), 1_760_000_000 + u64::from(random.u32(..10_000_000)));
    let record = format!(
        r#"{{"id":{index},"account":"{number:08x}","name":"{name}","email":"user{number}@example.com","city":"{city}","plan":"{plan}","score":{score},"last_seen":{seen},"active":{},"roles":["reader","{plan}-member"],"preferences":{{"theme":"dark","language":"en"}}}}"#,
        score % 3 == 0,
    );
    record.into_bytes()
}

/// Records that share nothing with those of `record`.
fn other(index: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(index);
    let (x, y) = (random.u16(..), random.u16(..));
    format!(
        "<point><x unit='mm'>{x}</x><y unit='mm'>{y}</y><label>station {index}</label><measured by='sensor-{}'/><quality>good</quality><calibration>yesterday</calibration></point>",
        x % 20
    )
    .into_bytes()
}

/// Waits for the thread that trains; it cannot be asked to run elsewhere.
pub(crate) fn wait_for(dictionaries: &Dictionaries) {
    let start = Instant::now();
    while dictionaries.trainer.lock().busy {
        assert!(start.elapsed() < Duration::from_secs(60), "the training does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

fn feed(compressing: &Compressing, record: fn(u64) -> Vec<u8>, range: std::ops::Range<u64>) {
    range.for_each(|index| drop(compressing.pack(&record(index))));
    wait_for(compressing.dictionaries());
}

fn saves(compressing: &Compressing, value: &[u8]) -> f64 {
    let packed = compressing.pack(value);
    let bytes = packed.bytes.as_ref().expect("it is compressed");
    let unpacked = compressing.unpack(packed.compression, packed.dictionary, bytes, value.len());
    assert_eq!(unpacked, Unpacked::Value(value.to_vec()));
    value.len() as f64 / bytes.len() as f64
}

#[test]
fn small_records_become_several_times_smaller_once_there_is_a_dictionary() {
    let clock = Clock::manual();
    let compressing = Compressing::new(Compression::ZstdDictionary, Floor::Measured, clock.clone());
    feed(&compressing, record, 0..3_999);
    assert_eq!(compressing.stats().dictionaries, 0, "values are still being collected");
    feed(&compressing, record, 3_999..4_001);
    let stats = compressing.stats();
    assert_eq!((stats.dictionaries, stats.dictionaries_trained), (1, 1));
    assert_ne!(stats.dictionary, 0);
    let mean =
        (10_000..10_100).map(|index| saves(&compressing, &record(index))).sum::<f64>() / 100.0;
    assert!(mean > 2.5, "{mean}");

    // The values change their kind: that is noticed, though not within the hour.
    let first = compressing.pack(&record(1));
    feed(&compressing, record, 0..20_000);
    feed(&compressing, other, 0..40_000);
    assert_eq!(compressing.stats().dictionaries_trained, 1);
    clock.advance(REST);
    feed(&compressing, other, 0..40_000);
    feed(&compressing, other, 40_000..80_000);
    let stats = compressing.stats();
    assert_eq!((stats.dictionaries, stats.dictionaries_trained), (2, 2));
    assert!(saves(&compressing, &other(7)) > 3.0);
    let bytes = first.bytes.unwrap();
    let old = compressing.unpack(first.compression, first.dictionary, &bytes, record(1).len());
    assert_eq!(old, Unpacked::Value(record(1)), "the older dictionary still reads");
}

#[test]
fn values_that_share_nothing_get_no_dictionary_and_no_second_try_within_the_hour() {
    let clock = Clock::manual();
    let compressing = Compressing::new(Compression::ZstdDictionary, Floor::Measured, clock.clone());
    let noise = |index| {
        let mut random = fastrand::Rng::with_seed(index);
        std::iter::repeat_with(|| random.u8(..)).take(250).collect()
    };
    feed(&compressing, noise, 0..4_001);
    assert_eq!(compressing.stats().dictionaries, 0);
    feed(&compressing, record, 0..5_000);
    assert_eq!(compressing.stats().dictionaries, 0);
    clock.advance(REST);
    feed(&compressing, record, 0..5_000);
    assert_eq!(compressing.stats().dictionaries, 1);
}

#[test]
fn what_is_collected_and_what_is_known_have_bounds() {
    let dictionaries = Dictionaries::new(Clock::manual());
    dictionaries.want();
    for _ in 0..400 {
        dictionaries.sample(&[7; VALUE_BYTES_MAX]);
    }
    wait_for(&dictionaries);
    assert!(dictionaries.trainer.lock().samples.is_empty(), "4 MiB are enough");

    let made = |index: u8| Arc::new(Dictionary::new(vec![index; 64]).unwrap());
    dictionaries.activate(made(0));
    (1..40).for_each(|index| dictionaries.learn(made(index)));
    assert_eq!(dictionaries.len(), KNOWN_MAX);
    assert!(dictionaries.get(made(0).id()).is_some(), "the active one is kept");
    assert!(dictionaries.get(made(1).id()).is_none());
    assert!(dictionaries.get(made(39).id()).is_some());
    assert!(Dictionary::new(Vec::new()).is_none());
    assert!(Dictionary::new(vec![1; DICTIONARY_BYTES_MAX + 1]).is_none());
}

/// Whoever can write to a tier without encryption can put any dictionary there under its right number.
#[test]
fn a_forged_dictionary_gives_wrong_bytes_or_none_and_never_a_panic() {
    let samples: Vec<_> = (0..1_000).map(record).collect();
    let trained = train(&samples).expect("records share much");
    let mut random = fastrand::Rng::with_seed(7);
    let mut taken = 0;
    for round in 0..300 {
        let mut bytes = trained.bytes().to_vec();
        // The tables stand in the first bytes, and a mistake there is the worst.
        let range = if round % 2 == 0 { 1_024 } else { bytes.len() };
        for _ in 0..random.usize(1..4) {
            bytes[random.usize(..range)] = random.u8(..);
        }
        if round % 3 == 0 {
            bytes.truncate(random.usize(1..bytes.len()));
        }
        let Some(forged) = Dictionary::new(bytes) else { continue };
        taken += 1;
        let compressing = Compressing::new(Compression::None, Floor::Measured, Clock::manual());
        let forged = Arc::new(forged);
        compressing.dictionaries().learn(Arc::clone(&forged));
        let mut context = CCtx::create();
        for sample in &samples[..4] {
            for dictionary in [&*forged, &trained] {
                let mut packed = Vec::with_capacity(sample.len() + 64);
                if context.compress_using_cdict(&mut packed, sample, &dictionary.encoder).is_err() {
                    continue;
                }
                match compressing.unpack(1, forged.id(), &packed, sample.len()) {
                    Unpacked::Value(value) => assert!(value.capacity() < 4 * sample.len()),
                    unpacked => assert_eq!(unpacked, Unpacked::Corrupt),
                }
            }
        }
    }
    assert!(taken > 20, "{taken} of the forged ones were taken");
}

#[tokio::test]
async fn closing_waits_for_the_thread_that_trains_and_nothing_is_trained_afterwards() {
    let compressing =
        Compressing::new(Compression::ZstdDictionary, Floor::Measured, Clock::manual());
    let dictionaries = compressing.dictionaries();
    (0..4_001).for_each(|index| drop(compressing.pack(&record(index))));
    dictionaries.close().await;
    let is_idle =
        |trainer: &Trainer| !trainer.busy && trainer.thread.is_none() && trainer.samples.is_empty();
    assert!(is_idle(&dictionaries.trainer.lock()));
    assert_eq!(dictionaries.trained(), 1);

    let closed = Dictionaries::new(Clock::manual());
    closed.want();
    closed.close().await;
    closed.want();
    (0..5_000).for_each(|index| closed.sample(&record(index)));
    assert!(closed.trainer.lock().samples.is_empty() && closed.trained() == 0);
}

#[test]
fn a_training_that_does_not_end_is_not_waited_for_for_ever() {
    let dictionaries = Dictionaries::new(Clock::manual());
    dictionaries.trainer.lock().busy = true;
    dictionaries.wait_for_training(Duration::from_millis(10));
    assert!(dictionaries.trainer.lock().busy);
}
