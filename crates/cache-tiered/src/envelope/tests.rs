//! Every form of an envelope: what comes out again, what is noticed, and what earlier versions wrote.

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::compression::{Compression, Floor};
use crate::dictionary::Dictionary;
#[cfg(feature = "encryption")]
use crate::encryption::EncryptionKeys;

const FORMAT: Format = Format { codec: 1, schema: 3 };
const KEY: &[u8] = b"user:7";

fn envelopes(compression: Compression) -> Envelopes {
    let compressing = Compressing::new(compression, Floor::Set(Some(100)), Clock::manual());
    if compression == Compression::ZstdDictionary {
        compressing.dictionaries().activate(Arc::new(dictionary()));
    }
    Envelopes {
        compressing,
        #[cfg(feature = "encryption")]
        encryption: None,
    }
}

#[cfg(feature = "encryption")]
fn encrypted(compression: Compression) -> Envelopes {
    with_keys(compression, EncryptionKeys::new(5, &[5; 32]).with_old(4, &[4; 32]))
}

#[cfg(feature = "encryption")]
fn with_keys(compression: Compression, keys: EncryptionKeys) -> Envelopes {
    Envelopes { encryption: Some(Encryption::new(keys, "users")), ..envelopes(compression) }
}

/// A dictionary that nobody trained: for zstd, any bytes are one.
fn dictionary() -> Dictionary {
    Dictionary::new(b"the quick brown fox jumps over the lazy dog ".to_vec()).unwrap()
}

fn zstd() -> Envelopes {
    envelopes(Compression::default())
}

/// Every form of an envelope that this build writes, by its name in the golden directory.
fn forms() -> Vec<(&'static str, Envelopes)> {
    vec![
        ("1-raw", envelopes(Compression::None)),
        ("1-zstd", zstd()),
        ("1-dictionary", envelopes(Compression::ZstdDictionary)),
        #[cfg(feature = "lz4")]
        ("1-lz4", envelopes(Compression::Lz4)),
        #[cfg(feature = "encryption")]
        ("2-raw", encrypted(Compression::None)),
        #[cfg(feature = "encryption")]
        ("2-zstd", encrypted(Compression::default())),
        #[cfg(feature = "encryption")]
        ("2-dictionary", encrypted(Compression::ZstdDictionary)),
        #[cfg(all(feature = "encryption", feature = "lz4"))]
        ("2-lz4", encrypted(Compression::Lz4)),
    ]
}

fn sealed(value: &[u8]) -> Vec<u8> {
    zstd().seal(FORMAT, KEY, value, 42).unwrap()
}

fn open<'a>(format: Format, key: &[u8], sealed: &'a [u8]) -> Result<Opened<'a>, Rejected> {
    zstd().open(format, key, sealed)
}

fn text(len: usize) -> Vec<u8> {
    b"the quick brown fox ".iter().copied().cycle().take(len).collect()
}

/// Gives changed bytes the right checksum, as somebody who can write to a tier would.
fn fix_checksum(sealed: &mut [u8]) {
    let end = sealed.len() - CHECKSUM;
    let checksum = crc32c::crc32c(&sealed[..end]);
    sealed[end..].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn text_above_the_floor_is_stored_smaller_and_noise_as_it_is() {
    assert!(sealed(&text(5_000)).len() < 500);
    assert_eq!(sealed(&text(99)).len(), HEADER + KEY.len() + 99 + CHECKSUM);
    let noise: Vec<u8> =
        (0..5_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert!(sealed(&noise).len() <= HEADER + KEY.len() + noise.len() + CHECKSUM);
}

#[cfg(feature = "__redis")]
#[test]
fn an_envelope_tells_how_much_it_unpacks_to() {
    assert_eq!(raw_len(&sealed(&text(5_000))), 5_000);
    assert_eq!(raw_len(b"short"), 0);
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (name, envelopes) in forms() {
        for value in [text(60), text(400)] {
            let whole = envelopes.seal(FORMAT, KEY, &value, 42).unwrap();
            for bit in 0..whole.len() * 8 {
                let mut broken = whole.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                let opened = envelopes.open(FORMAT, KEY, &broken);
                assert_eq!(opened, Err(Rejected::Corrupt), "{name}, bit {bit}");
            }
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for (name, envelopes) in forms() {
        let whole = envelopes.seal(FORMAT, KEY, &text(400), 42).unwrap();
        for len in 0..whole.len() {
            let opened = envelopes.open(FORMAT, KEY, &whole[..len]);
            assert_eq!(opened, Err(Rejected::Corrupt), "{name}, length {len}");
            let mut cut = whole[..len].to_vec();
            if len >= CHECKSUM {
                fix_checksum(&mut cut);
                assert!(envelopes.open(FORMAT, KEY, &cut).is_err(), "{name}, length {len}");
            }
        }
    }
}

#[test]
fn another_key_codec_or_schema_is_a_miss() {
    let whole = sealed(b"value");
    let cases = [
        (FORMAT, &b"user:8"[..]),
        (Format { codec: 2, ..FORMAT }, KEY),
        (Format { schema: 4, ..FORMAT }, KEY),
    ];
    for (format, key) in cases {
        assert_eq!(open(format, key, &whole), Err(Rejected::Foreign), "{format:?} {key:?}");
    }
}

#[test]
fn an_envelope_of_a_newer_version_is_a_miss() {
    for (at, byte) in [(2, 2), (2, 3), (4, 9), (5, 1), (12, 1)] {
        let mut newer = sealed(b"value");
        newer[at] = byte;
        fix_checksum(&mut newer);
        assert_eq!(open(FORMAT, KEY, &newer), Err(Rejected::Foreign), "offset {at}");
    }
}

#[test]
fn a_value_whose_dictionary_is_not_known_names_it() {
    let whole = envelopes(Compression::ZstdDictionary).seal(FORMAT, KEY, &text(400), 0).unwrap();
    let id = dictionary().id();
    assert_eq!(super::dictionary(&whole), id);
    assert_eq!(open(FORMAT, KEY, &whole), Err(Rejected::NoDictionary(id)));
    let reader = zstd();
    reader.compressing.dictionaries().learn(Arc::new(dictionary()));
    assert_eq!(reader.open(FORMAT, KEY, &whole).unwrap().value, text(400));
}

#[test]
fn a_dictionary_that_is_not_the_one_meant_gives_no_value() {
    let other = Dictionary::new(b"jackdaws love my big sphinx of quartz".to_vec()).unwrap();
    let mut whole =
        envelopes(Compression::ZstdDictionary).seal(FORMAT, KEY, &text(400), 0).unwrap();
    whole[12..16].copy_from_slice(&other.id().to_le_bytes());
    fix_checksum(&mut whole);
    let reader = zstd();
    reader.compressing.dictionaries().learn(Arc::new(other));
    match reader.open(FORMAT, KEY, &whole) {
        // The checksum was forged: without encryption, bytes of the right length are a value.
        Ok(opened) => assert_eq!(opened.value.len(), 400),
        Err(rejected) => assert_eq!(rejected, Rejected::Corrupt),
    }
}

/// Every form reads what every other one of the same protection has written.
#[test]
fn what_compresses_is_not_what_reads() {
    for (name, writer) in forms() {
        let whole = writer.seal(FORMAT, KEY, &text(400), 7).unwrap();
        for (other, reader) in forms() {
            if other == "1-raw"
                || other.ends_with("lz4")
                || name.as_bytes()[0] != other.as_bytes()[0]
            {
                continue;
            }
            reader.compressing.dictionaries().learn(Arc::new(dictionary()));
            let opened = reader.open(FORMAT, KEY, &whole).unwrap();
            assert_eq!((opened.value.as_ref(), opened.expires_unix_ms), (&text(400)[..], 7));
        }
    }
}

#[cfg(feature = "encryption")]
mod encryption {
    use super::*;

    fn seal(value: &[u8]) -> Vec<u8> {
        encrypted(Compression::None).seal(FORMAT, KEY, value, 42).unwrap()
    }

    fn open(keys: EncryptionKeys, whole: &[u8]) -> Result<Vec<u8>, Rejected> {
        let envelopes = with_keys(Compression::None, keys);
        envelopes.open(FORMAT, KEY, whole).map(|opened| opened.value.into_owned())
    }

    #[test]
    fn neither_key_nor_value_can_be_read() {
        let whole = seal(b"a secret of seven");
        assert!(!whole.windows(KEY.len()).any(|part| part == KEY));
        assert!(!whole.windows(6).any(|part| part == b"secret"));
        assert_ne!(whole, seal(b"a secret of seven"), "a nonce came twice");
    }

    #[test]
    fn old_keys_read_and_unknown_ones_miss() {
        let whole = seal(b"value");
        let rotated = || EncryptionKeys::new(6, &[6; 32]);
        assert_eq!(open(rotated().with_old(5, &[5; 32]), &whole).unwrap(), b"value");
        assert_eq!(open(rotated(), &whole), Err(Rejected::Foreign));
        assert_eq!(open(rotated().with_old(5, &[7; 32]), &whole), Err(Rejected::Corrupt));
    }

    #[test]
    fn nothing_is_read_with_less_or_more_protection_than_asked_for() {
        let (clear, secret) = (sealed(b"value"), seal(b"value"));
        let protected = encrypted(Compression::None);
        assert_eq!(protected.open(FORMAT, KEY, &clear), Err(Rejected::Foreign));
        assert_eq!(super::open(FORMAT, KEY, &secret), Err(Rejected::Foreign));
    }

    #[test]
    fn an_entry_in_the_place_of_another_is_no_value() {
        let whole = seal(b"value");
        let protected = encrypted(Compression::None);
        assert_eq!(protected.open(FORMAT, b"user:8", &whole), Err(Rejected::Corrupt));
        let keys = EncryptionKeys::new(5, &[5; 32]);
        let other_cache = Envelopes {
            encryption: Some(Encryption::new(keys, "orders")),
            ..envelopes(Compression::None)
        };
        assert_eq!(other_cache.open(FORMAT, KEY, &whole), Err(Rejected::Corrupt));
    }

    #[test]
    fn a_header_that_was_changed_or_swapped_is_no_value() {
        for (name, protected) in forms().into_iter().filter(|(name, _)| name.starts_with('2')) {
            let whole = protected.seal(FORMAT, KEY, &text(400), 42).unwrap();
            for bit in 0..(whole.len() - CHECKSUM) * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                fix_checksum(&mut changed);
                assert!(protected.open(FORMAT, KEY, &changed).is_err(), "{name}, bit {bit}");
            }
            let later = protected.seal(FORMAT, KEY, &text(400), 43).unwrap();
            let mut swapped = whole.clone();
            swapped[..HEADER].copy_from_slice(&later[..HEADER]);
            fix_checksum(&mut swapped);
            assert_eq!(protected.open(FORMAT, KEY, &swapped), Err(Rejected::Corrupt), "{name}");
        }
    }

    /// What encryption costs beside an envelope without it.
    ///
    /// `cargo test --release -p cache-tiered --features encryption --lib -- --ignored --nocapture
    /// measure_encryption`
    #[test]
    #[ignore = "a measurement, for a release build"]
    fn measure_encryption() {
        let (clear, protected) = (envelopes(Compression::None), encrypted(Compression::None));
        for len in [250, 2_000, 16_000] {
            let value = text(len);
            for (name, envelopes) in [("clear", &clear), ("encrypted", &protected)] {
                let whole = envelopes.seal(FORMAT, KEY, &value, 42).unwrap();
                let nanos = |work: &dyn Fn()| {
                    let mut times: Vec<u128> = (0..15)
                        .map(|_| {
                            let start = std::time::Instant::now();
                            (0..2_000).for_each(|_| work());
                            start.elapsed().as_nanos() / 2_000
                        })
                        .collect();
                    times.sort_unstable();
                    times[7]
                };
                let seal = nanos(&|| drop(envelopes.seal(FORMAT, KEY, &value, 42)));
                let open = nanos(&|| drop(envelopes.open(FORMAT, KEY, &whole)));
                println!("{len} bytes {name}: seal {seal} ns, open {open} ns");
            }
        }
    }

    #[test]
    fn keys_are_not_printed_and_bad_ones_are_refused() {
        let keys = EncryptionKeys::new(3, &[9; 32]).with_old(1, &[8; 32]);
        assert_eq!(format!("{keys:?}"), "EncryptionKeys { active: 3, ids: [1, 3] }");
        assert_eq!(keys.problems(), []);
        assert_eq!(keys.with_old(3, &[7; 32]).problems().len(), 1);
        assert_eq!(EncryptionKeys::new(3, &[0; 32]).problems().len(), 1);
    }
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/envelope").join(name)
}

/// What earlier versions have written stays readable. These files are never written again.
#[test]
fn envelopes_of_every_version_are_read() {
    for (name, envelopes) in forms() {
        for value in [&b"short"[..], &text(400)] {
            let path = golden(&format!("{name}-{}", value.len()));
            let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let opened = envelopes.open(FORMAT, KEY, &whole).unwrap();
            assert_eq!((opened.value.as_ref(), opened.expires_unix_ms), (value, 42), "{name}");
        }
    }
}

/// The file of a dictionary is an envelope too.
fn golden_dictionary() -> (PathBuf, Format) {
    let id = dictionary().id();
    (golden(&format!("dictionary-{id:08x}")), Format { codec: 0, schema: id })
}

#[test]
fn dictionaries_of_every_version_are_read() {
    let (path, format) = golden_dictionary();
    let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let opened = zstd().open(format, b"dictionary", &whole).unwrap();
    assert_eq!(opened.value, dictionary().bytes());
}

/// Writes the golden files of forms that have none yet; run once for each new form.
#[test]
#[ignore = "writes into the source tree"]
fn write_golden_files_that_are_missing() {
    std::fs::create_dir_all(golden("")).unwrap();
    let (path, format) = golden_dictionary();
    if !path.exists() {
        let sealed = zstd().seal_raw(format, b"dictionary", dictionary().bytes());
        std::fs::write(path, sealed.unwrap()).unwrap();
    }
    for (name, envelopes) in forms() {
        for value in [&b"short"[..], &text(400)] {
            let path = golden(&format!("{name}-{}", value.len()));
            if !path.exists() {
                std::fs::write(path, envelopes.seal(FORMAT, KEY, value, 42).unwrap()).unwrap();
            }
        }
    }
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(value in prop::collection::vec(any::<u8>(), 0..2_000), expiry: u64) {
        for (name, envelopes) in forms() {
            let whole = envelopes.seal(FORMAT, KEY, &value, expiry).unwrap();
            let opened = envelopes.open(FORMAT, KEY, &whole).unwrap();
            prop_assert_eq!(opened.value.as_ref(), value.as_slice(), "{}", name);
            prop_assert_eq!(opened.expires_unix_ms, expiry, "{}", name);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, envelopes) in forms() {
            prop_assert!(envelopes.open(FORMAT, KEY, &bytes).is_err());
        }
    }

    /// Changed anywhere and with a right checksum: no panic, no value longer than the header says,
    /// and where the value is encrypted no value at all.
    #[test]
    fn forged_envelopes_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        len in 0..600_usize,
    ) {
        for (name, envelopes) in forms() {
            let whole = envelopes.seal(FORMAT, KEY, &text(len), 42).unwrap();
            let mut forged = whole.clone();
            for (at, byte) in &edits {
                let at = at.index(forged.len());
                forged[at] = *byte;
            }
            forged.truncate(forged.len() - cut.index(forged.len() / 4));
            fix_checksum(&mut forged);
            match envelopes.open(FORMAT, KEY, &forged) {
                Ok(opened) if name.starts_with('2') => {
                    prop_assert_eq!(&forged, &whole);
                    prop_assert_eq!(opened.value.as_ref(), text(len));
                }
                Ok(opened) => prop_assert_eq!(opened.value.len(), field(&forged, 24) as usize),
                Err(_) => {}
            }
        }
    }
}
