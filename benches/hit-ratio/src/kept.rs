//! Hit counts kept from one run to the next, for entrants that a change to our code cannot change.
//!
//! They lie in one file in the build folder. A count is known by the requests, the capacity, and the
//! entrant with its version, so a newer peer or a longer trace is measured anew.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

/// The counts that are known.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    hits: BTreeMap<String, u64>,
}

impl Kept {
    /// Reads the file beside this program; starts afresh when there is none, or when it is damaged.
    pub(crate) fn open() -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let path = program.with_file_name("hit-ratio-kept.json");
        let hits = fs::read_to_string(&path).ok();
        let hits = hits.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Ok(Self { path, hits })
    }

    /// Forgets everything.
    pub(crate) fn forget(&mut self) {
        self.hits.clear();
    }

    /// The hits of an entrant, if they are known.
    pub(crate) fn get(&self, trace: u64, capacity: u64, entrant: &str) -> Option<u64> {
        self.hits.get(&key(trace, capacity, entrant)).copied()
    }

    /// Adds a count.
    pub(crate) fn put(&mut self, trace: u64, capacity: u64, entrant: &str, hits: u64) {
        self.hits.insert(key(trace, capacity, entrant), hits);
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn save(&self) -> io::Result<()> {
        let unfinished = self.path.with_extension("tmp");
        fs::write(&unfinished, serde_json::to_string_pretty(&self.hits)?)?;
        fs::rename(unfinished, &self.path)
    }
}

fn key(trace: u64, capacity: u64, entrant: &str) -> String {
    format!("{trace:016x} {capacity} {entrant}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_known_by_trace_capacity_and_entrant() {
        let mut kept = Kept { path: PathBuf::new(), hits: BTreeMap::new() };
        kept.put(1, 10, "lru", 5);
        assert_eq!(kept.get(1, 10, "lru"), Some(5));
        for (trace, capacity, entrant) in [(2, 10, "lru"), (1, 11, "lru"), (1, 10, "arc")] {
            assert_eq!(kept.get(trace, capacity, entrant), None);
        }
    }
}
