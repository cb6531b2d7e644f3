//! Files and bytes that somebody has changed: what is read from them was once written, or nothing is.
//!
//! The same entry points as the fuzz targets have, on every toolchain and with inputs that differ from
//! run to run: a directory of the disk tier with its checkpoints, a snapshot, and the codecs.
#![cfg(feature = "disk")]

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};
use cache_tiered::{Bincode, Cache, Codec};
use proptest::prelude::*;
use proptest::sample::Index;

/// What happens to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Set(Index, Vec<u8>),
    /// Some bytes of the file, over others of it.
    Copy(Index, u16, Index),
    Insert(Index, Vec<u8>),
    Remove(Index, u16),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Set(at, bytes)),
        (any::<Index>(), 1_u16..400, any::<Index>())
            .prop_map(|(from, len, to)| Damage::Copy(from, len, to)),
        (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), 1_u16..400).prop_map(|(at, len)| Damage::Remove(at, len)),
        any::<Index>().prop_map(Damage::Cut),
    ]
}

impl Damage {
    fn strike(self, file: &mut Vec<u8>) {
        let place = |at: Index, file: &[u8]| at.index(file.len() + 1);
        match self {
            Self::Flip(at, bit) => {
                let at = place(at, file);
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Set(at, bytes) => {
                let at = place(at, file);
                let len = bytes.len().min(file.len() - at);
                file[at..at + len].copy_from_slice(&bytes[..len]);
            }
            Self::Copy(from, len, to) => {
                let from = place(from, file);
                let copy = file[from..file.len().min(from + usize::from(len))].to_vec();
                Self::Set(to, copy).strike(file);
            }
            Self::Insert(at, bytes) => {
                let at = place(at, file);
                file.splice(at..at, bytes);
            }
            Self::Remove(at, len) => {
                let at = place(at, file);
                file.drain(at..file.len().min(at + usize::from(len)));
            }
            Self::Cut(keep) => file.truncate(place(keep, file)),
        }
    }
}

const KEYS: u32 = 40;

fn value(key: u32, version: u32) -> String {
    format!("{key} {version} ").repeat(1 + (key + version) as usize % 90)
}

fn log_in(path: &Path) -> SegmentLogOptions {
    SegmentLogOptions {
        segment_bytes: Some(16 << 10),
        buffer_bytes: 4 << 10,
        checkpoint_min_bytes: 0,
        ..SegmentLogOptions::new(path, 1 << 20)
    }
}

/// The files of a log that was closed, all of its segments with checkpoints, by their names.
fn closed_log() -> Vec<(String, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let log = SegmentLog::open(log_in(directory.path())).unwrap();
    for version in 0..200 {
        let key = version * 7 % KEYS;
        if version % 9 == 4 {
            log.remove(&key.to_le_bytes()).unwrap();
        } else {
            log.put(&key.to_le_bytes(), value(key, version).as_bytes(), 0).unwrap();
        }
    }
    log.flush().unwrap();
    drop(log);
    let files = fs::read_dir(&directory).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = files
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    let checkpoints = files.iter().filter(|(name, _)| name.ends_with(".index")).count();
    assert!(checkpoints >= 3, "{checkpoints} checkpoints");
    files
}

/// The version of each key that is there; each value has to prove itself.
fn read_all(log: &SegmentLog) -> Vec<Option<u32>> {
    let read = |key: u32| {
        let found = log.get(&key.to_le_bytes(), 1).unwrap()?;
        let text = String::from_utf8(found.to_vec()).unwrap();
        let version = text.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(text, value(key, version), "key {key} has a value that nobody put");
        Some(version)
    };
    (0..KEYS).map(read).collect()
}

fn entries() -> Vec<(u32, String)> {
    (0..300).map(|key| (key, value(key, 0))).collect()
}

async fn snapshot() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let cache = Cache::builder("test").entries(1_000).build().unwrap();
    entries().into_iter().for_each(|(key, value)| cache.insert(key, value));
    cache.save(&path, |_| ()).await.unwrap();
    fs::read(path).unwrap()
}

/// Reads bytes as a key and as a value; whatever is understood can be written and read again.
fn read<T: Debug + PartialEq>(codec: &impl Codec<T, T>, bytes: &[u8]) {
    if let Ok(value) = codec.decode(bytes) {
        let mut again = Vec::new();
        codec.encode(&value, &mut again).unwrap();
        assert_eq!(codec.decode(&again).unwrap(), value);
    }
    if let Ok(key) = codec.decode_key(bytes) {
        let mut again = Vec::new();
        codec.encode_key(&key, &mut again).unwrap();
        assert_eq!(again, bytes, "one key has two names");
    }
}

type Nested = Vec<(String, Option<u64>, Vec<Vec<u8>>)>;

/// Some bytes as each type, through each codec.
fn read_as_everything(bytes: &[u8]) {
    read::<u64>(&Bincode, bytes);
    read::<String>(&Bincode, bytes);
    read::<Nested>(&Bincode, bytes);
    #[cfg(feature = "wincode")]
    {
        read::<u64>(&cache_tiered::Wincode, bytes);
        read::<String>(&cache_tiered::Wincode, bytes);
        read::<Nested>(&cache_tiered::Wincode, bytes);
    }
    #[cfg(feature = "messagepack")]
    {
        read::<u64>(&cache_tiered::MessagePack, bytes);
        read::<String>(&cache_tiered::MessagePack, bytes);
        read::<Nested>(&cache_tiered::MessagePack, bytes);
    }
}

#[test]
fn a_directory_with_damaged_segments_and_checkpoints_has_no_wrong_value() {
    let whole = closed_log();
    let cases = prop::collection::vec((any::<Index>(), damage()), 1..6);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) };
    proptest!(config, |(damages in cases, removed in prop::option::weighted(0.2, any::<Index>()))| {
        let mut files = whole.clone();
        files.retain(|(name, _)| name != "LOCK");
        let count = files.len();
        for (file, damage) in damages {
            damage.strike(&mut files[file.index(count)].1);
        }
        if let Some(removed) = removed {
            files.remove(removed.index(count));
        }
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        // A directory whose FORMAT is not understood is refused.
        if let Ok(log) = SegmentLog::open(log_in(directory.path())) {
            let mut seen = read_all(&log);
            log.put(&0_u32.to_le_bytes(), value(0, 1_000).as_bytes(), 0).unwrap();
            log.remove(&1_u32.to_le_bytes()).unwrap();
            log.flush().unwrap();
            drop(log);
            (seen[0], seen[1]) = (Some(1_000), None);
            let log = SegmentLog::open(log_in(directory.path())).unwrap();
            // What lies before damage may go once more is written behind it; nothing may come back.
            for (key, (again, seen)) in read_all(&log).into_iter().zip(seen).enumerate() {
                let fine = again.is_none() || again == seen;
                prop_assert!(fine, "key {} was {:?} and became {:?}", key, seen, again);
            }
            prop_assert_eq!(log.get(&0_u32.to_le_bytes(), 1).unwrap().is_some(), true);
        }
    });
}

#[test]
fn a_damaged_snapshot_loads_what_was_saved_or_less() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let whole = runtime.block_on(snapshot());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    proptest!(config, |(damages in prop::collection::vec(damage(), 0..4))| {
        let mut file = whole.clone();
        damages.into_iter().for_each(|damage| damage.strike(&mut file));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        fs::write(&path, &file).unwrap();
        let cache = Cache::<u32, String>::builder("test").entries(1_000).build().unwrap();
        let loaded = runtime.block_on(cache.load(&path, |_| ()));
        prop_assert!(loaded.is_ok() || file != whole, "{:?}", loaded);
        for (key, found) in cache.iter() {
            prop_assert_eq!(found, value(key, 0), "key {} has a value that was never saved", key);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..<_>::default() })]

    #[test]
    fn bytes_that_no_codec_wrote_are_refused_or_mean_something(
        bytes in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..4, any::<u8>()], 0..120),
    ) {
        read_as_everything(&bytes);
    }

    #[test]
    fn damaged_values_are_refused_or_mean_something(
        value in prop::collection::vec(
            ("\\PC{0,8}", any::<Option<u64>>(), prop::collection::vec(any::<Vec<u8>>(), 0..3)),
            0..4,
        ),
        damages in prop::collection::vec(damage(), 0..3),
    ) {
        let mut bytes = Vec::new();
        Codec::<Nested, Nested>::encode(&Bincode, &value, &mut bytes).unwrap();
        damages.into_iter().for_each(|damage| damage.strike(&mut bytes));
        read_as_everything(&bytes);
    }
}
