//! What compression does with values that shrink, that do not, and that lie about their length.

use super::*;
use crate::dictionary::tests::record;

fn compressing(method: Compression) -> Compressing {
    Compressing::new(method, Floor::Measured, Clock::manual())
}

fn text(len: usize) -> Vec<u8> {
    b"the quick brown fox ".iter().copied().cycle().take(len).collect()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

#[test]
fn each_kind_has_a_floor_and_the_user_may_set_another() {
    let cases = [
        (Compression::default(), 2_047, 2_048),
        (Compression::ZstdDictionary, 2_047, 2_048),
        #[cfg(feature = "lz4")]
        (Compression::Lz4, 1_023, 1_024),
    ];
    for (method, below, at) in cases {
        let compressing = compressing(method);
        assert_eq!(compressing.pack(&text(below)), Packed::RAW, "{method:?}");
        assert!(compressing.pack(&text(at)).bytes.is_some(), "{method:?}");
        let compressing = Compressing::new(method, Floor::Set(Some(100)), Clock::manual());
        assert!(compressing.pack(&text(100)).bytes.is_some(), "{method:?}");
        let compressing = Compressing::new(method, Floor::Set(None), Clock::manual());
        assert_eq!(compressing.pack(&text(at)), Packed::RAW, "{method:?}");
    }
    assert_eq!(compressing(Compression::None).pack(&text(9_000)), Packed::RAW);
}

#[test]
fn a_tenth_must_be_saved() {
    let compressing = compressing(Compression::default());
    // A part that is free to compress behind one that cannot be.
    for (free, pays) in [(100, false), (900, true)] {
        let value = [noise(4_000, 1), text(free)].concat();
        assert_eq!(compressing.pack(&value).bytes.is_some(), pays, "{free} bytes");
    }
}

#[test]
fn values_that_do_not_shrink_are_soon_left_alone_and_a_change_is_noticed() {
    let compressing = compressing(Compression::default());
    for seed in 0..10_000 {
        assert_eq!(compressing.pack(&noise(3_000, seed)), Packed::RAW);
    }
    let stats = compressing.stats();
    assert_eq!(stats.tried + stats.skipped, 10_000);
    assert!(stats.tried < 100, "tried {}", stats.tried);
    assert_eq!((stats.compressed, stats.ratio()), (0, 1.0));
    let until = (0..2_000).position(|_| compressing.pack(&text(3_000)).bytes.is_some());
    assert!(until.is_some_and(|values| values <= PAUSE_MAX as usize), "{until:?}");
    assert!((0..100).all(|_| compressing.pack(&text(3_000)).bytes.is_some()));
    assert!(compressing.stats().compressed == 101);
}

#[test]
fn lengths_that_lie_give_nothing() {
    let compressing = compressing(Compression::default());
    let packed = compressing.pack(&text(5_000)).bytes.unwrap();
    assert_eq!(compressing.unpack(ZSTD, 0, &packed, 5_000), Unpacked::Value(text(5_000)));
    assert_eq!(compressing.unpack(ZSTD, 0, &packed, 4_000), Unpacked::Corrupt);
    assert_eq!(compressing.unpack(ZSTD, 7, &packed, 5_000), Unpacked::NoDictionary);
    assert_eq!(compressing.unpack(RAW, 7, &packed, 5_000), Unpacked::Unknown);
    assert_eq!(compressing.unpack(99, 0, &packed, 5_000), Unpacked::Unknown);
}

#[cfg(feature = "lz4")]
#[test]
fn lz4_unpacks_what_it_packed_and_nothing_else() {
    let compressing = compressing(Compression::Lz4);
    let packed = compressing.pack(&text(5_000)).bytes.unwrap();
    assert_eq!(compressing.unpack(LZ4, 0, &packed, 5_000), Unpacked::Value(text(5_000)));
    for (payload, raw_len) in [(&packed[..], 4_999), (&packed, 5_001), (&packed[1..], 5_000)] {
        assert_eq!(compressing.unpack(LZ4, 0, payload, raw_len), Unpacked::Corrupt);
    }
    assert_eq!(compressing.unpack(LZ4, 0, &packed, 64 << 20), Unpacked::Corrupt);
}

/// What a dictionary is worth on records of about 250 bytes, and what it costs.
///
/// `cargo test --release -p cache-tiered --lib -- --ignored --nocapture measure_small_records`
#[test]
#[ignore = "a measurement, for a release build"]
fn measure_small_records() {
    let compressing = compressing(Compression::ZstdDictionary);
    for index in 0..4_100 {
        compressing.pack(&record(index));
    }
    crate::dictionary::tests::wait_for(compressing.dictionaries());
    for floor in [60, 100, 128, 160, 200] {
        let short: Vec<_> =
            (0..2_000).map(|index| record(9_000 + index)[..floor].to_vec()).collect();
        let dictionary = compressing.dictionaries().active().unwrap();
        let size =
            |value: &Vec<u8>| compress_with(value, &dictionary).map_or(value.len(), |it| it.len());
        let out: usize = short.iter().map(size).sum();
        println!("first {floor} bytes: {:.2}x", (floor * short.len()) as f64 / out as f64);
    }
    let values: Vec<_> = (0..20_000).map(|index| record(50_000 + index)).collect();
    let bytes: usize = values.iter().map(Vec::len).sum();
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (mut encode, mut decode, mut stored) = (Vec::new(), Vec::new(), 0);
    for _ in 0..15 {
        let start = Instant::now();
        let packed: Vec<_> = values.iter().map(|value| compressing.pack(value)).collect();
        encode.push(start.elapsed().as_nanos() as f64 / values.len() as f64);
        stored = packed.iter().map(|it| it.bytes.as_ref().unwrap().len()).sum();
        let start = Instant::now();
        for (packed, value) in packed.iter().zip(&values) {
            let payload = packed.bytes.as_ref().unwrap();
            let unpacked = compressing.unpack(ZSTD, packed.dictionary, payload, value.len());
            assert!(matches!(unpacked, Unpacked::Value(_)));
        }
        decode.push(start.elapsed().as_nanos() as f64 / values.len() as f64);
    }
    println!(
        "{} bytes each: {:.2}x, encode {:.0} ns, decode {:.0} ns",
        bytes / values.len(),
        bytes as f64 / stored as f64,
        median(encode),
        median(decode),
    );
}
