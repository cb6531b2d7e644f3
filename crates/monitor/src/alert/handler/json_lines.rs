//! A file with a line of JSON for each event.
//!
//! A line is written once even if its message comes again after a crash: the keys at the end of the file
//! are read when it is opened. A line that a crash cut short is cut away, since its message comes again.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Deserialize;

use super::{AlertHandler, HandlerError, Handling, Message};

/// Keys that are remembered; more than can wait to be sent again.
const KEYS_MAX: usize = 4_096;
/// How much of the end of a file is read for keys, in bytes.
const TAIL_BYTES: u64 = 1024 * 1024;
/// How every line of ours begins.
const BEGINNING: &[u8] = b"{\"key\":";

/// Appends each event as a line of JSON to a file.
///
/// When the file would grow over `max_bytes` it is renamed to the same name with `.1` behind it, in place of
/// an older one, and begun anew; so the two hold at most twice as much. A line is on the disk before its
/// message counts as sent.
#[derive(Debug)]
pub struct JsonLinesHandler {
    path: PathBuf,
    max_bytes: u64,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    length: u64,
    keys: Keys,
}

/// The keys of the last lines.
#[derive(Debug, Default)]
struct Keys {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Keys {
    fn insert(&mut self, key: String) {
        if self.known.insert(key.clone()) {
            self.order.push_back(key);
        }
        if self.order.len() > KEYS_MAX {
            let oldest = self.order.pop_front().expect("there are more than none");
            self.known.remove(&oldest);
        }
    }
}

impl JsonLinesHandler {
    /// Writes to this file, which is opened with the first event; folders on the way to it are made.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, max_bytes: u64) -> Self {
        Self { path: path.into(), max_bytes, open: Mutex::new(None) }
    }

    fn append(&self, message: &Message) -> io::Result<()> {
        let mut slot = self.open.lock();
        // Taken out, and put back only if all goes well: after a failure the file is opened and looked
        // at again. So it is when somebody moved or removed it.
        let mut open = match slot.take() {
            Some(open) if length_of(&self.path).is_ok_and(|length| length == open.length) => open,
            _ => Open::new(&self.path)?,
        };
        let mut lines = Vec::new();
        let mut written = Vec::new();
        for event in &message.events {
            if !open.keys.known.contains(&event.key) {
                serde_json::to_writer(&mut lines, &**event).map_err(io::Error::other)?;
                lines.push(b'\n');
                written.push(event.key.clone());
            }
        }
        let length = lines.len() as u64;
        if open.length > 0 && open.length + length > self.max_bytes {
            std::fs::rename(&self.path, previous(&self.path))?;
            open = Open { keys: open.keys, ..Open::new(&self.path)? };
        }
        open.file.write_all(&lines)?;
        open.file.sync_data()?;
        open.length += length;
        for key in written {
            open.keys.insert(key);
        }
        *slot = Some(open);
        Ok(())
    }
}

fn length_of(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// The name of the file before.
fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut keys = Keys::default();
        if let Ok(mut file) = File::open(previous(path)) {
            remember(&tail(&mut file)?, &mut keys);
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let end = tail(&mut file)?;
        let mut length = file.metadata()?.len();
        let last = end.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let torn = &end[last..];
        if !torn.is_empty() {
            let ours = torn.starts_with(BEGINNING) || BEGINNING.starts_with(torn);
            if ours {
                length -= torn.len() as u64;
                file.set_len(length)?;
            } else {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        remember(&end[..last], &mut keys);
        Ok(Self { file, length, keys })
    }
}

fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut end = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut end)?;
    Ok(end)
}

fn remember(lines: &[u8], keys: &mut Keys) {
    #[derive(Deserialize)]
    struct Line {
        key: String,
    }
    for line in lines.split(|&byte| byte == b'\n') {
        // The first line of a tail may have lost its beginning.
        if let Ok(Line { key }) = serde_json::from_slice(line) {
            keys.insert(key);
        }
    }
}

impl AlertHandler for JsonLinesHandler {
    fn handle<'a>(&'a self, message: &'a Message, _at_ms: i64) -> Handling<'a> {
        Box::pin(async move {
            self.append(message).map_err(|error| {
                HandlerError::failed(format_args!("cannot write {}: {error}", self.path.display()))
            })
        })
    }
}
