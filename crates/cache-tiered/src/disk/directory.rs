//! The directory of a disk tier: whose it is, who has it open, and which format it has.
//!
//! `LOCK` is held with an advisory lock for as long as the engine lives; the operating system frees
//! it when the process dies, so there is no stale lock to clean up. `FORMAT` is four lines of text,
//! written aside, synced and renamed into place:
//!
//! ```text
//! ultra-perf disk tier
//! engine = segment-log
//! version = 1
//! seed = 5f3a09c2b41e77d8
//! ```
//!
//! A directory of an older version is read, and becomes one of this version when it is opened; a newer
//! one is refused. The seed is drawn once per directory. Engines hash keys and salt checksums with it, so nobody who
//! chooses keys or values can aim at the index or forge a record. A directory without `FORMAT` is
//! taken only if it is empty: files of somebody else are never touched.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use super::engine::OpenError;
use crate::files::{replace, sync_dir};

const TITLE: &str = "ultra-perf disk tier";
const LOCK: &str = "LOCK";
const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
/// A file system of its own brings this along, so it does not make a directory foreign.
const LOST_FOUND: &str = "lost+found";

/// A directory that this engine holds alone, until it is dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    seed: u64,
    lock: File,
}

impl Directory {
    /// Creates or checks the directory and locks it.
    pub(super) fn open(path: &Path, engine: &'static str, version: u32) -> Result<Self, OpenError> {
        if !path.exists() {
            create(path).map_err(|e| OpenError::io("create", path, e))?;
        }
        if !path.is_dir() || is_foreign(path).map_err(|e| OpenError::io("list", path, e))? {
            return Err(OpenError::NotACache { path: path.to_owned() });
        }
        let lock = lock(path)?;
        let format_path = path.join(FORMAT);
        let seed = match fs::read(&format_path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let (found, seed) = parse(path, &text, engine, version)?;
                if found < version {
                    // Before anything is written that the older version would not understand.
                    write_format(path, engine, version, seed)
                        .map_err(|e| OpenError::io("write", &format_path, e))?;
                }
                seed
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let seed = RandomState::new().hash_one(path);
                write_format(path, engine, version, seed)
                    .map_err(|e| OpenError::io("write", &format_path, e))?;
                seed
            }
            Err(e) => return Err(OpenError::io("read", &format_path, e)),
        };
        Ok(Self { path: path.to_owned(), seed, lock })
    }

    /// Locks a directory that exists already, and changes nothing in it.
    pub(super) fn existing(
        path: &Path,
        engine: &'static str,
        version: u32,
    ) -> Result<Self, OpenError> {
        let format_path = path.join(FORMAT);
        let text = match fs::read(&format_path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::NotACache { path: path.to_owned() });
            }
            Err(e) => return Err(OpenError::io("read", &format_path, e)),
        };
        let (_, seed) = parse(path, &String::from_utf8_lossy(&text), engine, version)?;
        Ok(Self { path: path.to_owned(), seed, lock: lock(path)? })
    }

    /// Returns where the directory is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number that was drawn when the directory was made.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Makes the names of new files survive a power loss.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path)
    }
}

impl Drop for Directory {
    /// Closing the file is not enough while a child process is being started: it has a copy of the
    /// descriptor until it runs its own program, and the lock would live as long.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = path.join(LOCK);
    let lock = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|e| OpenError::io("open", &lock_path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(OpenError::Locked { path: path.to_owned(), setting: None })
        }
        Err(TryLockError::Error(e)) => Err(OpenError::io("lock", &lock_path, e)),
    }
}

/// Cached answers may be private, so only the owner may look.
fn create(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn is_foreign(path: &Path) -> io::Result<bool> {
    let mut strange = false;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name == FORMAT {
            return Ok(false);
        }
        strange |= ![LOCK, FORMAT_NEW, LOST_FOUND].iter().any(|own| name == *own);
    }
    Ok(strange)
}

/// Returns version and seed if the text describes a directory that this engine can use.
fn parse(
    directory: &Path,
    text: &str,
    engine: &'static str,
    version: u32,
) -> Result<(u32, u64), OpenError> {
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some(TITLE) {
        return Err(OpenError::NotACache { path: directory.to_owned() });
    }
    let fields: Vec<(&str, &str)> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let field = |name: &'static str| {
        fields.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).ok_or(name)
    };
    let damaged =
        |missing: &'static str| OpenError::DamagedFormat { path: directory.join(FORMAT), missing };

    let found = field("engine").map_err(damaged)?;
    if found != engine {
        return Err(OpenError::OtherEngine {
            path: directory.to_owned(),
            found: found.to_owned(),
            wanted: engine,
        });
    }
    let found: u32 = field("version").map_err(damaged)?.parse().map_err(|_| damaged("version"))?;
    if found > version {
        return Err(OpenError::NewerFormat {
            path: directory.to_owned(),
            found,
            supported: version,
        });
    }
    let seed = field("seed").map_err(damaged)?;
    let seed = u64::from_str_radix(seed, 16).map_err(|_| damaged("seed"))?;
    Ok((found, seed))
}

fn write_format(directory: &Path, engine: &str, version: u32, seed: u64) -> io::Result<()> {
    let text = format!("{TITLE}\nengine = {engine}\nversion = {version}\nseed = {seed:016x}\n");
    replace(&directory.join(FORMAT), &directory.join(FORMAT_NEW), text.as_bytes()).map(drop)
}
