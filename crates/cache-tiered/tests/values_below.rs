//! What the tiers below memory make of values: dictionaries that survive a restart and reach another
//! machine, encryption at rest, and the statistics of both.
#![cfg(feature = "disk")]

#[cfg(feature = "__redis")]
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the tier alone use the rest")]
mod redis_server;

use std::path::Path;
use std::time::{Duration, Instant};

use cache_tiered::disk::DiskConfig;
use cache_tiered::{BuildError, Cache, CacheBuilder, Compression, Tier};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);
const CAPACITY: u64 = 32 << 20;

fn builder(directory: &Path) -> CacheBuilder<u32, String> {
    let disk = DiskConfig::new(directory).capacity_bytes(CAPACITY);
    Cache::builder("records").entries(100).disk(disk)
}

fn learning(directory: &Path) -> CacheBuilder<u32, String> {
    builder(directory).compression(Compression::ZstdDictionary)
}

fn record(index: u32) -> String {
    let random = index.wrapping_mul(2_654_435_761);
    format!(
        r#"{{"id":{index},"account":"{random:08x}","email":"user{random}@example.com","city":"Lisbon","plan":"team","score":{},"roles":["reader","team-member"],"preferences":{{"theme":"dark","language":"en"}}}}"#,
        random % 1_000,
    )
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Writes records until the cache has learned a dictionary, and a hundred more that use it.
async fn learn(cache: &Cache<u32, String>) -> u32 {
    for index in 1_000..6_000 {
        cache.insert(index, record(index));
        if index % 500 == 0 {
            cache.flush().await;
        }
    }
    cache.flush().await;
    until("a dictionary", async || cache.stats().compression.dictionary != 0).await;
    for index in 0..100 {
        cache.insert(index, record(index));
    }
    cache.flush().await;
    cache.stats().compression.dictionary
}

async fn readable(cache: &Cache<u32, String>) -> usize {
    cache.clear(Tier::Memory).await;
    let keys: Vec<u32> = (0..100).collect();
    let found = cache.get_many(&keys).await;
    for (key, value) in keys.iter().zip(&found) {
        assert!(value.is_none() || *value == Some(record(*key)), "{key}: {value:?}");
    }
    found.iter().flatten().count()
}

#[tokio::test]
async fn a_dictionary_survives_a_restart_and_reads_what_it_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let cache = learning(directory.path()).open().await.unwrap();
    let id = learn(&cache).await;
    let stats = cache.stats().compression;
    assert!(stats.compressed >= 100 && stats.ratio() > 2.0, "{stats:?}");
    assert_eq!(readable(&cache).await, 100);
    cache.close().await;
    let file = directory.path().join("dictionaries").join(format!("{id:08x}"));
    assert!(file.is_file());

    // A cache that does not learn reads all the same.
    let cache = builder(directory.path()).open().await.unwrap();
    assert_eq!(readable(&cache).await, 100);
    let stats = cache.stats().compression;
    assert_eq!((stats.dictionary, stats.dictionaries), (0, 1));
    assert!(stats.decompressed >= 100);
    cache.close().await;

    let cache = learning(directory.path()).open().await.unwrap();
    let stats = cache.stats().compression;
    assert_eq!((stats.dictionary, stats.dictionaries_trained), (id, 0));
    assert_eq!(readable(&cache).await, 100);
    cache.close().await;

    // A damaged or lost dictionary makes misses, and nothing worse.
    for damage in [Some(&b"not an envelope"[..]), None] {
        match damage {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let cache = builder(directory.path()).open().await.unwrap();
        assert_eq!(readable(&cache).await, 0);
        assert_eq!(cache.stats().disk.unwrap().errors, 0);
        cache.close().await;
    }
}

#[cfg(feature = "sled")]
#[tokio::test]
async fn sled_and_dictionaries_share_a_directory_and_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let disk = DiskConfig::new(directory.path()).capacity_bytes(CAPACITY);
        let disk = disk.engine(cache_tiered::disk::DiskEngine::Sled);
        let cache = Cache::<u32, String>::builder("records").entries(100).disk(disk);
        cache.compression(Compression::ZstdDictionary).open()
    };
    let cache = open().await.unwrap();
    let id = learn(&cache).await;
    assert_eq!(readable(&cache).await, 100);
    cache.close().await;
    let cache = open().await.unwrap();
    assert_eq!(cache.stats().compression.dictionary, id);
    assert_eq!(readable(&cache).await, 100);
    assert!(cache.stats().disk.unwrap().bytes <= CAPACITY);
    cache.close().await;
}

#[tokio::test]
async fn a_tier_too_small_for_dictionaries_is_refused_and_a_wrong_level_too() {
    let directory = tempfile::tempdir().unwrap();
    let small = DiskConfig::new(directory.path()).capacity_bytes(8 << 20);
    let learning =
        Cache::<u32, String>::builder("records").compression(Compression::ZstdDictionary);
    let Err(BuildError::Invalid { problems, .. }) = learning.disk(small).open().await else {
        panic!("8 MiB were enough");
    };
    assert_eq!(problems[0].path, "disk.capacity_bytes");
    let wrong = builder(directory.path()).compression(Compression::Zstd { level: 20 });
    let Err(BuildError::Invalid { problems, .. }) = wrong.open().await else {
        panic!("there is no level 20");
    };
    assert_eq!(problems[0].path, "compression.level");
}

#[cfg(feature = "encryption")]
mod encryption {
    use cache_tiered::EncryptionKeys;

    use super::*;

    const SECRET: &str = "the secret of seven, in clear";

    /// Whether any file below a directory holds these bytes.
    fn contains(directory: &Path, text: &[u8]) -> bool {
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
            if path.is_dir() {
                contains(&path, text)
            } else {
                std::fs::read(path).unwrap().windows(text.len()).any(|part| part == text)
            }
        })
    }

    async fn get(builder: CacheBuilder<u32, String>) -> (Option<String>, u64) {
        let cache = builder.open().await.unwrap();
        let found = cache.get(&7).await;
        let errors = cache.stats().disk.unwrap().errors;
        cache.close().await;
        (found, errors)
    }

    #[tokio::test]
    async fn values_are_encrypted_on_the_disk_and_keys_can_be_changed() {
        let directory = tempfile::tempdir().unwrap();
        let keys = || EncryptionKeys::new(1, &[1; 32]);
        let cache = builder(directory.path()).encryption(keys()).open().await.unwrap();
        cache.insert(7, SECRET.to_owned());
        cache.close().await;
        assert!(!contains(directory.path(), SECRET.as_bytes()));
        assert!(!contains(directory.path(), &[1; 32]));

        let open = |keys| get(builder(directory.path()).encryption(keys));
        let secret = Some(SECRET.to_owned());
        assert_eq!(open(keys()).await, (secret.clone(), 0));
        assert_eq!(open(EncryptionKeys::new(2, &[2; 32]).with_old(1, &[1; 32])).await, (secret, 0));
        assert_eq!(open(EncryptionKeys::new(2, &[2; 32])).await, (None, 0), "an unknown key");
        assert_eq!(open(EncryptionKeys::new(1, &[2; 32])).await, (None, 1), "a wrong key");
        assert_eq!(get(builder(directory.path())).await, (None, 0), "no key");
    }

    #[tokio::test]
    async fn checking_and_compacting_a_directory_takes_no_keys() {
        use cache_tiered::disk::{Verdict, compact, verify};

        let directory = tempfile::tempdir().unwrap();
        let keys = || EncryptionKeys::new(1, &[1; 32]);
        let cache = builder(directory.path()).encryption(keys()).open().await.unwrap();
        (0..200).for_each(|key| cache.insert(key, SECRET.to_owned()));
        cache.close().await;
        assert_eq!(verify(directory.path(), |_, _| ()).unwrap().verdict(), Verdict::Sound);
        compact(directory.path(), |_, _| ()).unwrap();
        assert_eq!(verify(directory.path(), |_, _| ()).unwrap().verdict(), Verdict::Sound);
        assert!(!contains(directory.path(), SECRET.as_bytes()));
        let (found, errors) = get(builder(directory.path()).encryption(keys())).await;
        assert_eq!((found.as_deref(), errors), (Some(SECRET), 0));
    }

    #[tokio::test]
    async fn what_is_in_clear_is_a_miss_once_there_are_keys() {
        let directory = tempfile::tempdir().unwrap();
        let cache = builder(directory.path()).open().await.unwrap();
        cache.insert(7, SECRET.to_owned());
        cache.close().await;
        assert!(contains(directory.path(), SECRET.as_bytes()));
        let keys = EncryptionKeys::new(1, &[1; 32]);
        assert_eq!(get(builder(directory.path()).encryption(keys)).await, (None, 0));
    }

    /// A dictionary is made of pieces of values.
    #[tokio::test]
    async fn dictionaries_are_encrypted_too_and_change_keys_with_the_values() {
        let directory = tempfile::tempdir().unwrap();
        let piece = br#""roles":["reader","team-member"]"#;
        let old = || EncryptionKeys::new(1, &[1; 32]);
        let cache = learning(directory.path()).encryption(old()).open().await.unwrap();
        let id = learn(&cache).await;
        assert_eq!(readable(&cache).await, 100);
        cache.close().await;
        assert!(!contains(directory.path(), piece));

        let both = EncryptionKeys::new(2, &[2; 32]).with_old(1, &[1; 32]);
        let cache = learning(directory.path()).encryption(both).open().await.unwrap();
        assert_eq!(cache.stats().compression.dictionary, id);
        assert_eq!(readable(&cache).await, 100);
        (0..50).for_each(|index| cache.insert(index, record(index)));
        cache.close().await;

        let new = EncryptionKeys::new(2, &[2; 32]);
        let cache = learning(directory.path()).encryption(new).open().await.unwrap();
        assert_eq!(cache.stats().compression.dictionary, id, "written again under the new key");
        assert_eq!(readable(&cache).await, 50);
        cache.close().await;
    }
}

#[cfg(feature = "__redis")]
mod redis {
    use cache_tiered::redis::RedisConfig;

    use super::redis_server::RedisServer;
    use super::*;

    fn on(server: &RedisServer) -> CacheBuilder<u32, String> {
        Cache::builder("records").entries(100).redis(RedisConfig::new(server.url()))
    }

    async fn open(builder: CacheBuilder<u32, String>) -> Cache<u32, String> {
        let cache = builder.open().await.unwrap();
        until("redis is in service", async || {
            cache.insert(u32::MAX, "probe".to_owned());
            cache.flush().await;
            cache.clear(Tier::Memory).await;
            cache.get(&u32::MAX).await.is_some()
        })
        .await;
        cache
    }

    /// One machine learns, one only reads, and one that would learn takes over what there is.
    async fn share(
        server: &RedisServer,
        protect: impl Fn(CacheBuilder<u32, String>) -> CacheBuilder<u32, String>,
    ) {
        let learning = || protect(on(server).compression(Compression::ZstdDictionary));
        let one = open(learning()).await;
        let id = learn(&one).await;
        assert_eq!(readable(&one).await, 100);

        let reader = open(protect(on(server))).await;
        until("the reader has the dictionary", async || readable(&reader).await == 100).await;
        assert_eq!(reader.stats().compression.dictionary, 0);
        let other = open(learning()).await;
        until("the other has the dictionary", async || readable(&other).await == 100).await;
        let stats = other.stats().compression;
        assert_eq!((stats.dictionary, stats.dictionaries_trained), (id, 0));
        assert_eq!(reader.stats().redis.unwrap().errors, 0);
        for cache in [one, reader, other] {
            cache.close().await;
        }
    }

    #[tokio::test]
    async fn another_machine_reads_and_takes_over_a_dictionary() {
        share(&RedisServer::start(), |builder| builder).await;
    }

    #[cfg(feature = "encryption")]
    #[tokio::test]
    async fn another_machine_takes_over_an_encrypted_dictionary() {
        let keys = cache_tiered::EncryptionKeys::new(1, &[1; 32]);
        share(&RedisServer::start(), |builder| builder.encryption(keys.clone())).await;
    }

    #[cfg(feature = "encryption")]
    #[tokio::test]
    async fn values_are_encrypted_in_redis() {
        use cache_tiered::EncryptionKeys;

        let server = RedisServer::start();
        let keys = || EncryptionKeys::new(1, &[1; 32]);
        let one = open(on(&server).encryption(keys())).await;
        one.insert(7, "seven".to_owned());
        one.flush().await;
        let other = open(on(&server).encryption(keys())).await;
        assert_eq!(other.get(&7).await.as_deref(), Some("seven"));
        let without = open(on(&server)).await;
        assert_eq!(without.get(&7).await, None);
        for cache in [one, other, without] {
            cache.close().await;
        }
    }
}
