//! A cache that is saved, and one that is loaded from what another has saved.
#![cfg(feature = "disk")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_tiered::{Cache, CacheBuilder, Clock, SnapshotError, SnapshotProgress};

type Numbers = Cache<u32, String>;

fn builder() -> CacheBuilder<u32, String> {
    Cache::builder("test").entries(10_000)
}

fn filled(builder: CacheBuilder<u32, String>, keys: u32) -> Numbers {
    let cache = builder.build().unwrap();
    (0..keys).for_each(|key| cache.insert(key, format!("value {key}")));
    cache
}

fn contents(cache: &Numbers) -> BTreeMap<u32, String> {
    cache.iter().collect()
}

fn quiet(_: SnapshotProgress) {}

#[tokio::test]
async fn a_new_cache_is_as_warm_as_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("numbers.snapshot");
    let old = filled(builder(), 5_000);
    let saved = old.save(&path, quiet).await.unwrap();
    assert_eq!((saved.entries, saved.total), (5_000, 5_000));
    assert_eq!(saved.bytes, fs::metadata(&path).unwrap().len());

    let new = builder().build().unwrap();
    let loaded = new.load(&path, quiet).await.unwrap();
    assert_eq!((loaded.entries, loaded.skipped, loaded.bytes), (5_000, 0, loaded.total));
    assert_eq!(contents(&new), contents(&old));
    let names: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["numbers.snapshot"], "nothing is left aside");
}

#[tokio::test]
async fn the_progress_counts_up_to_the_result() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let cache = builder().build().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    (0..2_000).for_each(|key| cache.insert(key, (0..1_000).map(|_| rng.alphanumeric()).collect()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = || {
        let seen = Arc::clone(&seen);
        move |progress: SnapshotProgress| seen.lock().unwrap().push(progress)
    };
    let saved = cache.save(&path, watch()).await.unwrap();
    let loaded = builder().build().unwrap().load(&path, watch()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 10, "{seen:?}");
    let middle = seen.iter().position(|progress| *progress == saved).unwrap() + 1;
    for (half, last) in [(&seen[..middle], saved), (&seen[middle..], loaded)] {
        assert!(half.is_sorted_by_key(|progress| (progress.entries, progress.bytes)));
        assert_eq!(half.last(), Some(&last));
    }
}

#[tokio::test]
async fn an_entry_keeps_its_time_and_gets_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let clock = Clock::manual();
    let timed = || builder().ttl(Duration::from_secs(60)).clock(clock.clone());
    let old = filled(timed(), 10);
    clock.advance(Duration::from_secs(50));
    old.insert(100, "young".to_owned());
    old.save(&path, quiet).await.unwrap();

    clock.advance(Duration::from_secs(5));
    let new = timed().build().unwrap();
    assert_eq!(new.load(&path, quiet).await.unwrap().entries, 11);
    clock.advance(Duration::from_secs(6));
    assert_eq!(contents(&new).into_keys().collect::<Vec<_>>(), [100]);

    let late = timed().build().unwrap();
    let loaded = late.load(&path, quiet).await.unwrap();
    assert_eq!((loaded.entries, loaded.skipped), (1, 10));
}

#[tokio::test]
async fn what_memory_holds_is_newer_than_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    filled(builder(), 3).save(&path, quiet).await.unwrap();
    let cache = builder().build().unwrap();
    cache.insert(1, "newer".to_owned());
    let loaded = cache.load(&path, quiet).await.unwrap();
    assert_eq!((loaded.entries, loaded.skipped), (2, 1));
    assert_eq!(cache.get_in_memory(&1).as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_smaller_cache_stays_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    filled(builder(), 5_000).save(&path, quiet).await.unwrap();
    let small = builder().entries(100).build().unwrap();
    small.load(&path, quiet).await.unwrap();
    assert!((50..=100).contains(&small.stats().memory.entries));
}

#[tokio::test]
async fn a_failed_save_leaves_the_older_snapshot() {
    /// Serde has no bytes for some of these.
    #[derive(Clone, serde::Deserialize)]
    struct Fickle(bool);

    impl serde::Serialize for Fickle {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            if self.0 { to.serialize_bool(true) } else { Err(serde::ser::Error::custom("no")) }
        }
    }

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let cache = Cache::<u8, Fickle>::builder("test").build().unwrap();
    cache.insert(1, Fickle(true));
    cache.save(&path, quiet).await.unwrap();
    let before = fs::read(&path).unwrap();
    cache.insert(2, Fickle(false));
    let error = cache.save(&path, quiet).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Encode { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left aside");

    let nowhere = directory.path().join("missing").join("snapshot");
    let error = cache.save(&nowhere, quiet).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot create ") && error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_told_apart_from_a_damaged_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    let cache = builder().build().unwrap();
    let load = async |path: &Path| cache.load(path, quiet).await.unwrap_err();

    assert!(load(&path).await.to_string().starts_with("cannot open "));
    fs::write(&path, "some text").unwrap();
    assert!(matches!(load(&path).await, SnapshotError::NotASnapshot { .. }));

    filled(builder().schema_version(2), 100).save(&path, quiet).await.unwrap();
    let error = load(&path).await;
    assert!(matches!(error, SnapshotError::OtherSchema { found: 2, expected: 0, .. }), "{error}");
    assert_eq!(cache.stats().memory.entries, 0);

    filled(builder(), 100).save(&path, quiet).await.unwrap();
    let mut file = fs::read(&path).unwrap();
    let last = file.len() - 1;
    file[last] ^= 1;
    fs::write(&path, file).unwrap();
    let error = load(&path).await;
    assert!(matches!(error, SnapshotError::Damaged { loaded: 100, .. }), "{error}");
    assert_eq!(cache.stats().memory.entries, 100, "what came before the damage is there");
}

#[tokio::test]
async fn a_snapshot_of_the_first_version_is_read_for_ever() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/snapshot-1");
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        filled(builder(), 3).save(&golden, quiet).await.unwrap();
    }
    let cache = builder().build().unwrap();
    assert_eq!(cache.load(&golden, quiet).await.unwrap().entries, 3);
    assert_eq!(contents(&cache), contents(&filled(builder(), 3)));
}

#[cfg(feature = "encryption")]
#[tokio::test]
async fn a_cache_with_keys_saves_and_loads_nothing_that_is_not_protected() {
    use cache_tiered::EncryptionKeys;

    let directory = tempfile::tempdir().unwrap();
    let [clear, protected] = ["clear", "protected"].map(|name| directory.path().join(name));
    let with = |keys: EncryptionKeys| builder().encryption(keys);
    let (old, new) = ([1; 32], [2; 32]);
    filled(builder(), 100).save(&clear, quiet).await.unwrap();
    let cache = filled(with(EncryptionKeys::new(1, &old)), 100);
    let saved = cache.save(&protected, quiet).await.unwrap();
    assert_eq!(saved.bytes, fs::metadata(&protected).unwrap().len());

    let load = async |builder: CacheBuilder<u32, String>, path: &Path| {
        let cache = builder.build().unwrap();
        let loaded = cache.load(path, quiet).await;
        assert_eq!(cache.stats().memory.entries, loaded.as_ref().map_or(0, |it| it.entries));
        loaded
    };
    let rotated = || with(EncryptionKeys::new(2, &new).with_old(1, &old));
    assert_eq!(load(rotated(), &protected).await.unwrap().entries, 100);
    let refused = load(rotated(), &clear).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::NotEncrypted { .. }), "{refused}");
    let refused = load(builder(), &protected).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Encrypted { .. }), "{refused}");
    let refused = load(with(EncryptionKeys::new(2, &new)), &protected).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::UnknownKey { key: 1, .. }), "{refused}");
    let wrong = load(with(EncryptionKeys::new(1, &new)), &protected).await.unwrap_err();
    assert!(matches!(wrong, SnapshotError::Damaged { loaded: 0, .. }), "{wrong}");
}

#[cfg(feature = "encryption")]
#[tokio::test]
async fn a_protected_snapshot_is_read_for_ever() {
    use cache_tiered::EncryptionKeys;

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/snapshot-2");
    let protected = || builder().encryption(EncryptionKeys::new(7, &[7; 32]));
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        filled(protected(), 3).save(&golden, quiet).await.unwrap();
    }
    let cache = protected().build().unwrap();
    assert_eq!(cache.load(&golden, quiet).await.unwrap().entries, 3);
    assert_eq!(contents(&cache), contents(&filled(builder(), 3)));
}
