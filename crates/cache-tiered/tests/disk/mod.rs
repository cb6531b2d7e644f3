//! What the tests of the disk engines share: the engines, and what a directory holds.

#![allow(dead_code)] // each test program uses its part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cache_tiered::disk::{DiskTier, OpenError, SegmentLog, SegmentLogOptions};

/// Opens an engine in a directory, with a capacity in bytes.
pub(crate) type Open = fn(&Path, u64) -> Result<Box<dyn DiskTier>, OpenError>;

/// An engine as the tests see it.
#[derive(Clone, Copy)]
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    pub(crate) open: Open,
    /// Whether a copy of the directory, taken at any time, opens as an earlier state of the log.
    pub(crate) is_a_log: bool,
}

impl Engine {
    pub(crate) fn at(&self, path: &Path, capacity_bytes: u64) -> Box<dyn DiskTier> {
        (self.open)(path, capacity_bytes).unwrap_or_else(|e| panic!("{}: {e:?}", self.name))
    }
}

/// The segment log as it is used.
pub(crate) const SEGMENT_LOG: Engine = Engine {
    name: "segment log",
    open: |path, capacity| Ok(Box::new(SegmentLog::open(SegmentLogOptions::new(path, capacity))?)),
    is_a_log: true,
};

/// The segment log with the smallest segments and buffers, so that every edge is near.
pub(crate) const SMALL_SEGMENTS: Engine = Engine {
    name: "segment log, small segments",
    open: |path, capacity| {
        let mut options = SegmentLogOptions::new(path, capacity);
        options.segment_bytes = Some(16 << 10);
        options.buffer_bytes = 700;
        options.checkpoint_min_bytes = 0;
        Ok(Box::new(SegmentLog::open(options)?))
    },
    is_a_log: true,
};

#[cfg(feature = "sled")]
pub(crate) const SLED: Engine = Engine {
    name: "sled",
    open: |path, capacity| {
        use cache_tiered::disk::{SledEngine, SledOptions};
        let mut options = SledOptions::new(path, capacity);
        options.memory_bytes = 8 << 20;
        Ok(Box::new(SledEngine::open(options)?))
    },
    is_a_log: false,
};

/// Every engine that this build has.
pub(crate) fn engines() -> Vec<Engine> {
    vec![
        SEGMENT_LOG,
        SMALL_SEGMENTS,
        #[cfg(feature = "sled")]
        SLED,
    ]
}

/// A directory on the file system that the build uses, which is a real one more often than `/tmp`.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// Copies a directory: what a crash at this moment would leave.
pub(crate) fn crash_image(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the copy can be made");
    for entry in fs::read_dir(from).expect("the directory can be listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            crash_image(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("the file can be copied");
        }
    }
}

/// What `du` says.
#[cfg(unix)]
pub(crate) fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let Ok(entries) = fs::read_dir(path) else { return own };
    own + entries.flatten().map(|entry| disk_usage(&entry.path())).sum::<u64>()
}

/// A file system of its own, as small as the test wants it.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(path: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir(path).expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(path.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes or gives back most of the room.
    pub(crate) fn set_ballast(&self, bytes: u64) {
        let file = self.0.join("ballast");
        if bytes == 0 {
            let _ = fs::remove_file(file);
        } else {
            // As much as fits: the rest is in use already.
            let _ = fs::write(file, vec![1; bytes as usize]);
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
