//! The dictionaries of a disk tier, in files beside the engine's own.
//!
//! `dictionaries/` holds one file for each, named by its number in hex, with the dictionary in an
//! envelope: checked when it is read, and encrypted where the values are. A file is written aside,
//! synced and renamed into place before the first value that needs it goes to the engine, so whatever
//! a restart finds can be read. At most eight are kept; one more and the oldest is deleted, and what
//! was written with it is a miss. The file changed last is the dictionary that was in use.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::clock::{Millis, millis};
use crate::dictionary::{DICTIONARY_BYTES_MAX, Dictionary};
use crate::files::replace;

/// What the files may take on the disk, and what the engine gets less.
pub(super) const RESERVED_BYTES: u64 = 512 << 10;
/// The smallest tier with dictionaries: in a smaller one they would take too large a part.
pub(super) const MIN_CAPACITY_BYTES: u64 = 16 << 20;

const FOLDER: &str = "dictionaries";
const FILES_MAX: usize = 8;
/// How long after a failure a file is not tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The files of one directory, which the engine's lock protects.
#[derive(Debug)]
pub(super) struct DictionaryFiles {
    folder: PathBuf,
    /// Numbers, and whether their files may stay as they are; oldest first.
    files: Vec<(u32, bool)>,
    retry_at: Millis,
}

/// What the envelope in a file turned out to hold.
pub(super) struct Loaded {
    pub(super) dictionary: Dictionary,
    /// Whether it would be written the same way today.
    pub(super) is_current: bool,
}

impl DictionaryFiles {
    /// Whether a directory has dictionaries.
    pub(super) fn exist(directory: &Path) -> bool {
        directory.join(FOLDER).is_dir()
    }

    /// Deletes the dictionaries of a directory; what was written with them is a miss.
    pub(super) fn delete(directory: &Path) {
        if let Err(error) = fs::remove_dir_all(directory.join(FOLDER)) {
            tracing::debug!(%error, "the dictionaries of a disk tier were not deleted");
        }
    }

    /// Reads what there is, oldest first. What is damaged or foreign is left out, and nothing fails.
    pub(super) fn open(
        directory: &Path,
        load: impl Fn(u32, &[u8]) -> Option<Loaded>,
    ) -> (Self, Vec<Dictionary>) {
        let mut this =
            Self { folder: directory.join(FOLDER), files: Vec::new(), retry_at: Millis::MIN };
        let mut dictionaries = Vec::new();
        for (id, path) in this.list() {
            let loaded = read(&path).ok().and_then(|sealed| load(id, &sealed));
            if loaded.is_none() {
                tracing::warn!(file = %path.display(), "a compression dictionary cannot be read");
            }
            this.files.push((id, loaded.as_ref().is_some_and(|loaded| loaded.is_current)));
            dictionaries.extend(loaded.map(|loaded| loaded.dictionary));
        }
        this.prune();
        (this, dictionaries)
    }

    /// Whether there is a file that needs no writing.
    pub(super) fn has(&self, id: u32) -> bool {
        self.files.contains(&(id, true))
    }

    /// Writes a dictionary's file, and tells whether it is there now.
    pub(super) fn keep(&mut self, id: u32, sealed: &[u8], now: Millis) -> bool {
        if now < self.retry_at {
            return false;
        }
        match self.write(id, sealed) {
            Ok(()) => {
                self.files.retain(|(other, _)| *other != id);
                self.files.push((id, true));
                self.prune();
                true
            }
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "a compression dictionary was not written");
                self.retry_at = now.saturating_add(millis(RETRY));
                false
            }
        }
    }

    fn write(&self, id: u32, sealed: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(id);
        replace(&path, &path.with_extension("new"), sealed).map(drop)
    }

    fn prune(&mut self) {
        while self.files.len() > FILES_MAX {
            let (id, _) = self.files.remove(0);
            if let Err(error) = fs::remove_file(self.path(id)) {
                tracing::debug!(%error, "an old compression dictionary was not deleted");
            }
        }
    }

    fn path(&self, id: u32) -> PathBuf {
        self.folder.join(format!("{id:08x}"))
    }

    /// The files with the name of a dictionary, oldest first; leftovers are deleted.
    fn list(&self) -> Vec<(u32, PathBuf)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let id = name.to_str().filter(|name| name.len() == 8);
            match id.and_then(|name| u32::from_str_radix(name, 16).ok()) {
                Some(id) => {
                    let changed = entry.metadata().and_then(|meta| meta.modified());
                    found.push((changed.unwrap_or(SystemTime::UNIX_EPOCH), id, path));
                }
                None if path.extension().is_some_and(|it| it == "new") => {
                    let _ = fs::remove_file(&path);
                }
                None => {}
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, id, path)| (id, path)).collect()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::new();
    // An envelope adds less than that, and a longer file is none.
    let most = DICTIONARY_BYTES_MAX as u64 + 1_024;
    File::open(path)?.take(most).read_to_end(&mut sealed)?;
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> (DictionaryFiles, Vec<u8>) {
        let load = |_, bytes: &[u8]| {
            let dictionary = Dictionary::new(bytes.to_vec())?;
            Some(Loaded { dictionary, is_current: true })
        };
        let (files, loaded) = DictionaryFiles::open(directory, load);
        (files, loaded.iter().map(|it| it.bytes()[0]).collect())
    }

    #[test]
    fn the_newest_dictionaries_survive_and_leftovers_do_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!DictionaryFiles::exist(directory.path()));
        let (mut files, loaded) = open(directory.path());
        assert_eq!(loaded, []);
        for id in 1..=10_u8 {
            assert!(files.keep(u32::from(id), &[id; 100], 0));
            let file = File::options().write(true).open(files.path(u32::from(id))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(id))).unwrap();
        }
        assert!(files.has(10) && !files.has(2));
        fs::write(directory.path().join(FOLDER).join("0000000b.new"), b"half").unwrap();
        let (files, loaded) = open(directory.path());
        assert_eq!(loaded, [3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(files.has(3) && !files.has(11));
        assert_eq!(fs::read_dir(directory.path().join(FOLDER)).unwrap().count(), 8);
        DictionaryFiles::delete(directory.path());
        assert!(!DictionaryFiles::exist(directory.path()));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_tried_again_after_a_while() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FOLDER), b"in the way").unwrap();
        let (mut files, loaded) = open(directory.path());
        assert_eq!(loaded, []);
        assert!(!files.keep(1, b"one", 0));
        fs::remove_file(directory.path().join(FOLDER)).unwrap();
        assert!(!files.keep(1, b"one", 999));
        assert!(files.keep(1, b"one", 1_000));
    }

    #[test]
    fn a_file_that_is_damaged_or_too_long_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (mut files, _) = open(directory.path());
        assert!(files.keep(1, b"", 0));
        assert!(files.keep(2, &vec![2; DICTIONARY_BYTES_MAX + 1], 0));
        assert!(files.keep(3, &[3; 64], 0));
        let (files, loaded) = open(directory.path());
        assert_eq!(loaded, [3]);
        assert!(!files.has(1) && files.has(3));
    }
}
