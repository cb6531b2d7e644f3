//! How files are written that have to be there whole or not at all, also after a loss of power.

use std::fs::File;
use std::io;
use std::path::Path;

/// Writes a file aside, syncs it and renames it into place, in the same directory; returns it, open
/// behind its end.
///
/// What is left aside by a killed process is written over the next time.
#[cfg(feature = "disk")]
pub(crate) fn replace(path: &Path, aside: &Path, bytes: &[u8]) -> io::Result<File> {
    let written: io::Result<File> = (|| {
        let mut file = File::create(aside)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(aside, path)?;
        Ok(file)
    })();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(aside);
    }
    let file = written?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    Ok(file)
}

/// Makes the names in a directory durable.
#[cfg(unix)]
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Elsewhere a directory cannot be opened for syncing; its entries are journalled.
#[cfg(not(unix))]
pub(crate) fn sync_dir(_path: &Path) -> io::Result<()> {
    Ok(())
}
