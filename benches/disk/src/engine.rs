//! The engines side by side: the segment log of the disk tier, and sled where it is built.
//!
//! Neither syncs a put to the medium: the segment log leaves that to the operating system, sled does it
//! twice a second behind the caller's back. sled is given 64 MiB of cache; the segment log has none and
//! reads from the page cache.

use std::path::Path;

use cache_tiered::disk::{DiskTier, SegmentLog, SegmentLogOptions};

/// Room for every case, so that nothing is evicted.
const CAPACITY_BYTES: u64 = 4 << 30;

/// Opens an engine in a directory of its own.
pub(crate) type Open = fn(&Path) -> Box<dyn Engine>;

/// What both engines are asked to do. A failure ends the suite: its number would mean nothing.
pub(crate) trait Engine: Sync {
    fn put(&self, key: &[u8], value: &[u8]);

    /// Reads a value and returns its length.
    fn get(&self, key: &[u8]) -> usize;

    /// Hands what is buffered to the operating system.
    fn flush(&self);

    /// Bytes written by the engine's own count, where it has one.
    fn written(&self) -> u64;
}

/// Opens the segment log, with the disk tier's own settings.
pub(crate) fn segment_log(directory: &Path) -> Box<dyn Engine> {
    let options = SegmentLogOptions::new(directory, CAPACITY_BYTES);
    Box::new(SegmentLog::open(options).expect("the segment log opens its own directory"))
}

impl Engine for SegmentLog {
    fn put(&self, key: &[u8], value: &[u8]) {
        DiskTier::put(self, key, value, 0).expect("there is room");
    }

    fn get(&self, key: &[u8]) -> usize {
        DiskTier::get(self, key, 0)
            .expect("the disk can be read")
            .expect("nothing is evicted")
            .len()
    }

    fn flush(&self) {
        DiskTier::flush(self).expect("there is room");
    }

    fn written(&self) -> u64 {
        self.stats().bytes_written
    }
}

/// Opens sled, if it was built.
#[cfg(not(feature = "peers"))]
pub(crate) const SLED: Option<Open> = None;

/// Opens sled, if it was built.
#[cfg(feature = "peers")]
pub(crate) const SLED: Option<Open> = Some(|directory| {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(64 << 20)
        .mode(sled::Mode::HighThroughput);
    Box::new(config.open().expect("sled opens its own directory"))
});

#[cfg(feature = "peers")]
impl Engine for sled::Db {
    fn put(&self, key: &[u8], value: &[u8]) {
        self.insert(key, value).expect("there is room");
    }

    fn get(&self, key: &[u8]) -> usize {
        sled::Tree::get(self, key).expect("the disk can be read").expect("was put").len()
    }

    // Its own flush also waits for the medium, which nobody asks of the segment log.
    fn flush(&self) {}

    fn written(&self) -> u64 {
        0
    }
}
