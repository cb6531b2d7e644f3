//! A damaged snapshot: what is loaded from it was saved, or nothing is.
//!
//! A snapshot of some blocks is written once and kept in memory. Each input is a list of damages to its
//! bytes. Then it is loaded into an empty cache. Values name their key and are recomputed, so that one
//! that comes back proves itself. An input that begins otherwise is taken as the file itself, with the
//! right beginning, or nothing but damage to a real one would ever be met.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use cache_tiered::Cache;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;
use ultra_perf_fuzz::scratch;

/// Entries of the snapshot; with their values, several blocks.
const ENTRIES: u32 = 400;
/// What a file that is made up keeps of a real one: its header.
const BEGINNING: usize = 20;

#[derive(Arbitrary, Debug)]
enum Input {
    Damaged(Vec<Damage>),
    MadeUp(Vec<u8>),
}

/// What happens to the file. Numbers are taken modulo what is there.
#[derive(Arbitrary, Debug)]
enum Damage {
    Flip { at: u32, bit: u8 },
    Set { at: u32, bytes: Vec<u8> },
    Copy { from: u32, len: u16, to: u32 },
    Insert { at: u32, bytes: Vec<u8> },
    Remove { at: u32, len: u16 },
    Cut { keep: u32 },
    Append { bytes: Vec<u8> },
}

fuzz_target!(|input: Input| {
    let mut file = saved().to_vec();
    match input {
        Input::Damaged(damages) => {
            for damage in damages.into_iter().take(16) {
                damage.strike(&mut file);
            }
        }
        Input::MadeUp(bytes) => {
            file.truncate(BEGINNING);
            file.extend_from_slice(&bytes);
        }
    }
    let directory = scratch();
    let path = directory.path().join("snapshot");
    std::fs::write(&path, &file).expect("there is space");
    let cache = cache();
    let loaded = runtime().block_on(cache.load(&path, |_| ()));
    if file == saved() {
        assert_eq!(loaded.expect("it is whole").entries, u64::from(ENTRIES));
    }
    for (key, found) in cache.iter() {
        assert_eq!(found, value(key), "key {key} has a value that was never saved");
    }
});

fn cache() -> Cache<u32, String> {
    Cache::builder("fuzz").entries(u64::from(ENTRIES) * 4).build().expect("a small cache")
}

fn value(key: u32) -> String {
    format!("{key} ").repeat(1 + key as usize % 200)
}

fn saved() -> &'static [u8] {
    static SAVED: OnceLock<Vec<u8>> = OnceLock::new();
    SAVED.get_or_init(|| {
        let directory = scratch();
        let path: &Path = &directory.path().join("snapshot");
        let cache = cache();
        (0..ENTRIES).for_each(|key| cache.insert(key, value(key)));
        runtime().block_on(cache.save(path, |_| ())).expect("there is space");
        std::fs::read(path).expect("it was just written")
    })
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
    })
}

impl Damage {
    fn strike(self, file: &mut Vec<u8>) {
        let place = |at: u32, file: &[u8]| at as usize % (file.len() + 1);
        match self {
            Self::Flip { at, bit } => {
                let at = place(at, file);
                if let Some(byte) = file.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Set { at, bytes } => {
                let at = place(at, file);
                let len = bytes.len().min(file.len() - at);
                file[at..at + len].copy_from_slice(&bytes[..len]);
            }
            Self::Copy { from, len, to } => {
                let from = place(from, file);
                let copy = file[from..file.len().min(from + usize::from(len))].to_vec();
                Self::Set { at: to, bytes: copy }.strike(file);
            }
            Self::Insert { at, bytes } => {
                let at = place(at, file);
                file.splice(at..at, bytes);
            }
            Self::Remove { at, len } => {
                let at = place(at, file);
                file.drain(at..file.len().min(at + usize::from(len)));
            }
            Self::Cut { keep } => file.truncate(place(keep, file)),
            Self::Append { bytes } => file.extend_from_slice(&bytes),
        }
    }
}
