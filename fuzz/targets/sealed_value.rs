//! What a lower tier keeps of a value, made up: it is a miss or a value, and never more memory than a
//! value may take.
//!
//! Redis is shared with others and a disk lives long, so the envelope around a value can hold anything.
//! The input becomes the bytes under a key of a disk directory, its last four replaced by their right
//! checksum, or nothing but damage would ever be met. Then a cache over that directory, which has a
//! dictionary too, is asked for it. One with encryption keys is asked as well: nobody can guess a tag, so
//! it has no value, whatever the bytes are.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use cache_tiered::disk::{DiskConfig, DiskTier, SegmentLog, SegmentLogOptions};
use cache_tiered::{Bincode, Cache, Codec, EncryptionKeys, MAX_VALUE_BYTES};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::runtime::Runtime;
use ultra_perf_fuzz::scratch;

const KEY: u64 = 7;
/// The least that a tier with dictionaries may have.
const CAPACITY_BYTES: u64 = 16 << 20;
/// The dictionary that the seeds are compressed with, by the number in its name.
const DICTIONARY: (&str, &[u8]) = (
    "90b86e0c",
    include_bytes!("../../crates/cache-tiered/tests/golden/envelope/dictionary-90b86e0c"),
);

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((covered, _)) = input.split_last_chunk::<4>() else { return Corpus::Reject };
    let mut sealed = covered.to_vec();
    sealed.extend_from_slice(&crc32c::crc32c(covered).to_le_bytes());

    let directory = scratch();
    put(directory.path(), &sealed);
    let get = |keys: Option<EncryptionKeys>| {
        runtime().block_on(async {
            let disk = DiskConfig::new(directory.path());
            let disk = disk.capacity_bytes(CAPACITY_BYTES).read_threads(1);
            let mut cache = Cache::<u64, String>::builder("fuzz").entries(1).disk(disk);
            if let Some(keys) = keys {
                cache = cache.encryption(keys);
            }
            let cache = cache.open().await.expect("the directory is whole");
            let found = cache.get(&KEY).await;
            let stats = cache.stats();
            cache.close().await;
            assert_eq!(stats.memory.misses, 1, "memory knew a value that nobody put");
            found
        })
    };
    let keys = EncryptionKeys::new(5, &[5; 32]).with_old(4, &[4; 32]);
    assert_eq!(get(Some(keys)), None, "a forged value was taken");
    let found = get(None);
    if let Some(value) = found {
        assert!(value.len() <= MAX_VALUE_BYTES);
        let key = key_bytes();
        assert!(sealed.windows(key.len()).any(|part| part == key), "another key's value");
    }
    Corpus::Keep
});

fn key_bytes() -> Vec<u8> {
    let mut key = Vec::new();
    Codec::<u64, String>::encode_key(&Bincode, &KEY, &mut key).expect("a number is a key");
    key
}

fn put(directory: &Path, sealed: &[u8]) {
    let options = SegmentLogOptions::new(directory, CAPACITY_BYTES);
    let engine = SegmentLog::open(options).expect("an empty log opens");
    engine.put(&key_bytes(), sealed, 0).expect("there is space");
    engine.flush().expect("there is space");
    let folder = directory.join("dictionaries");
    std::fs::create_dir(&folder).expect("the directory is new");
    std::fs::write(folder.join(DICTIONARY.0), DICTIONARY.1).expect("there is space");
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
    })
}
