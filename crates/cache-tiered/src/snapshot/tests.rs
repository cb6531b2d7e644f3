//! The file, whole and in every way broken.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

type Entry = (u64, Vec<u8>, Vec<u8>);

fn written(entries: &[Entry], schema: u32) -> Vec<u8> {
    written_with(None, entries, schema)
}

fn written_with(encryption: Option<&Encryption>, entries: &[Entry], schema: u32) -> Vec<u8> {
    let mut writer =
        Writer::begin(Vec::new(), schema, encryption).expect("memory takes everything");
    for (expires, key, value) in entries {
        let copy = |from: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(from);
            Ok(())
        };
        let entry = writer.entry(*expires, [&|out| copy(key, out), &|out| copy(value, out)]);
        entry.expect("they are short").expect("memory takes everything");
    }
    writer.end().expect("memory takes everything")
}

/// What comes out of a file, and whether it was read to a proper end.
fn read(file: &[u8]) -> (Vec<Entry>, bool) {
    read_with(None, file)
}

fn read_with(encryption: Option<&Encryption>, file: &[u8]) -> (Vec<Entry>, bool) {
    let mut entries = Vec::new();
    let begun = Reader::begin(Cursor::new(file), encryption).expect("memory can be read");
    let Beginning::Snapshot(mut reader) = begun else { return (entries, false) };
    loop {
        let block = reader.block(|entry| {
            entries.push((entry.expires_unix_ms, entry.key.to_vec(), entry.value.to_vec()));
            Some(())
        });
        match block {
            Ok(true) => {}
            Ok(false) => return (entries, true),
            Err(Broken::Damaged { offset }) => {
                assert!(offset <= file.len() as u64);
                return (entries, false);
            }
            Err(Broken::Io(error)) => panic!("memory can be read: {error}"),
        }
    }
}

fn three() -> Vec<Entry> {
    vec![
        (0, b"a".to_vec(), b"one".to_vec()),
        (7, vec![], vec![]),
        (u64::MAX, vec![0; 300], vec![1; 5]),
    ]
}

/// Several blocks of entries that do not compress.
fn many() -> Vec<Entry> {
    let mut rng = fastrand::Rng::with_seed(1);
    let entry = |at: u64, rng: &mut fastrand::Rng| {
        let len = rng.usize(..4_000);
        let value = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
        (at, at.to_le_bytes().to_vec(), value)
    };
    (0..500).map(|at| entry(at, &mut rng)).collect()
}

#[test]
fn what_is_written_is_read_in_order() {
    for entries in [Vec::new(), three(), many()] {
        assert_eq!(read(&written(&entries, 3)), (entries, true));
    }
    assert!(written(&many(), 0).len() > 3 * BLOCK, "several blocks");
}

#[test]
fn a_file_that_is_cut_off_anywhere_gives_a_beginning_and_no_proper_end() {
    let (entries, file) = (three(), written(&three(), 0));
    for len in 0..file.len() {
        let (found, complete) = read(&file[..len]);
        assert!(!complete && entries.starts_with(&found), "at {len}");
    }
    let (entries, file) = (many(), written(&many(), 0));
    for len in (0..file.len()).step_by(9_973) {
        let (found, complete) = read(&file[..len]);
        assert!(!complete && entries.starts_with(&found), "at {len}");
    }
}

#[test]
fn a_byte_too_many_at_the_end_is_damage() {
    let mut file = written(&three(), 0);
    file.push(0);
    assert_eq!(read(&file), (three(), false));
}

#[test]
fn a_bit_that_flips_anywhere_is_found() {
    let (entries, file) = (three(), written(&three(), 0));
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut broken = file.clone();
            broken[at] ^= 1 << bit;
            let (found, complete) = read(&broken);
            assert!(!complete && entries.starts_with(&found), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn the_end_tells_whether_blocks_are_missing() {
    let (short, long) = (written(&three()[..1], 0), written(&three(), 0));
    // The blocks of one file and the end of the other.
    let end = |file: &[u8]| file.len() - (written(&[], 0).len() - HEADER);
    let mixed = [&short[..end(&short)], &long[end(&long)..]].concat();
    assert_eq!(read(&mixed), (three()[..1].to_vec(), false));
}

#[test]
fn lengths_that_lie_ask_for_no_memory() {
    // The checksum is right, so only the bounds stand between the lie and the allocator.
    for (raw_len, packed_len, entries) in
        [(u32::MAX, 10, 1), (10, u32::MAX, 1), (10, 10, u32::MAX), (BLOCK_MAX as u32, 9, 1)]
    {
        let mut file = written(&[], 0)[..HEADER].to_vec();
        let mut header = Vec::new();
        for field in [raw_len, packed_len, entries] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        let contents = zstd::bulk::compress(&[0; 10], 1).expect("ten zeros");
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), &contents);
        file.extend([header, checksum.to_le_bytes().to_vec(), contents].concat());
        assert_eq!(read(&file), (Vec::new(), false));
    }
}

#[test]
fn a_later_version_and_other_files_are_told_apart() {
    let mut later = written(&three(), 0);
    later[8..10].copy_from_slice(&3_u16.to_le_bytes());
    let begun = Reader::begin(Cursor::new(later), None).expect("memory can be read");
    assert!(matches!(begun, Beginning::Newer(3)));
    for other in [&b""[..], b"CTSNAPSH", b"#!/bin/sh\nexit 0 and some more text to be long enough"]
    {
        let begun = Reader::begin(Cursor::new(other), None).expect("memory can be read");
        assert!(matches!(begun, Beginning::Foreign));
    }
}

#[cfg(feature = "encryption")]
mod protected {
    use super::*;
    use crate::encryption::EncryptionKeys;

    fn keys(id: u32) -> Encryption {
        Encryption::new(EncryptionKeys::new(id, &[id as u8 + 1; 32]), "test")
    }

    /// Where each block begins, and the end of the file.
    fn blocks(file: &[u8]) -> Vec<usize> {
        let mut at = HEADER + 4 + FILE_ID;
        let mut all = vec![at];
        while at < file.len() {
            at += BLOCK_HEADER + u32_at(file, at + 4) as usize;
            all.push(at);
        }
        all
    }

    #[test]
    fn what_is_written_is_read_in_order_and_cannot_be_seen() {
        let keys = keys(1);
        for entries in [Vec::new(), three(), many()] {
            let file = written_with(Some(&keys), &entries, 3);
            assert_eq!(read_with(Some(&keys), &file), (entries, true));
        }
        let secret = vec![(0, b"the key".to_vec(), b"the value".to_vec())];
        let file = written_with(Some(&keys), &secret, 0);
        let shows = |file: &[u8], what: &[u8]| file.windows(what.len()).any(|it| it == what);
        assert!(!shows(&file, b"the key") && !shows(&file, b"the value"));
        assert!(shows(&written(&secret, 0), b"the value"), "this is how it would be seen");
    }

    #[test]
    fn cut_off_anywhere_or_with_any_bit_flipped_it_has_no_proper_end() {
        let keys = keys(1);
        let (entries, file) = (three(), written_with(Some(&keys), &three(), 0));
        for at in 0..file.len() {
            let (found, complete) = read_with(Some(&keys), &file[..at]);
            assert!(!complete && entries.starts_with(&found), "cut at {at}");
            for bit in 0..8 {
                let mut broken = file.clone();
                broken[at] ^= 1 << bit;
                let (found, complete) = read_with(Some(&keys), &broken);
                assert!(!complete && entries.starts_with(&found), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn blocks_do_not_change_places_and_none_can_be_left_out_doubled_or_brought_in() {
        let keys = keys(1);
        let (one, other) =
            (written_with(Some(&keys), &many(), 0), written_with(Some(&keys), &many(), 0));
        assert_ne!(one, other, "each file has a number of its own");
        let at = blocks(&one);
        assert!(at.len() > 4, "several blocks");
        let header = &one[..at[0]];
        let block = |file: &[u8], which: usize| file[at[which]..at[which + 1]].to_vec();
        let last = at.len() - 2;
        let rest = |from: usize| one[at[from]..].to_vec();
        let swapped = [header, &block(&one, 1), &block(&one, 0), &rest(2)].concat();
        let left_out = [header, &block(&one, 0), &rest(2)].concat();
        let doubled = [header, &block(&one, 0), &rest(0)].concat();
        let shortened = [header, &block(&one, 0), &block(&one, last)].concat();
        let foreign_block = [header, &block(&other, 0), &rest(1)].concat();
        let foreign_header = [&other[..at[0]], &rest(0)].concat();
        for file in [swapped, left_out, doubled, shortened, foreign_block, foreign_header] {
            let (found, complete) = read_with(Some(&keys), &file);
            assert!(!complete && many().starts_with(&found));
        }
        assert_eq!(read_with(Some(&keys), &one), (many(), true));
    }

    #[test]
    fn keys_and_no_keys_do_not_read_each_other() {
        fn beginning<'a>(
            file: &'a [u8],
            encryption: Option<&'a Encryption>,
        ) -> Beginning<Reader<'a, Cursor<&'a [u8]>>> {
            Reader::begin(Cursor::new(file), encryption).expect("memory can be read")
        }
        let clear = written(&three(), 0);
        let protected = written_with(Some(&keys(1)), &three(), 0);
        assert!(matches!(beginning(&clear, Some(&keys(1))), Beginning::Clear));
        assert!(matches!(beginning(&protected, None), Beginning::Protected));
        assert!(matches!(beginning(&protected, Some(&keys(2))), Beginning::UnknownKey(1)));

        // The number is known, but another key has it, or the cache has another name.
        let other = Encryption::new(EncryptionKeys::new(1, &[9; 32]), "test");
        let renamed = Encryption::new(EncryptionKeys::new(1, &[2; 32]), "other");
        for encryption in [other, renamed] {
            assert_eq!(read_with(Some(&encryption), &protected), (Vec::new(), false));
        }
        let rotated = EncryptionKeys::new(2, &[3; 32]).with_old(1, &[2; 32]);
        let rotated = Encryption::new(rotated, "test");
        assert_eq!(read_with(Some(&rotated), &protected), (three(), true));
        let newer = written_with(Some(&rotated), &three(), 0);
        assert_eq!(u32_at(&newer, HEADER_START), 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_entries_survive_and_any_damage_leaves_a_beginning(
        entries in prop::collection::vec(
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..200)),
            0..40,
        ),
        schema: u32,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        inserted in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let file = written(&entries, schema);
        prop_assert_eq!(read(&file), (entries.clone(), true));
        let mut broken = file.clone();
        for (at, byte) in damage {
            let at = at.index(broken.len());
            broken[at] = byte;
        }
        let middle = broken.len() / 2;
        broken.splice(middle..middle, inserted);
        let (found, complete) = read(&broken);
        prop_assert!(entries.starts_with(&found));
        prop_assert!(!complete || broken == file || broken[12..16] != file[12..16]);
    }
}
