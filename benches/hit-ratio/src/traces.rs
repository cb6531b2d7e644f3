//! The traces: recorded ones where they lie beside the repository, made-up ones always.

use std::path::{Path, PathBuf};

use cache_tiered::simulate::{Trace, TraceError, TraceOptions, Workload};

/// Requests of a made-up trace, and the most that are taken of a recorded one in a quick run.
pub(crate) const QUICK: usize = 1_000_000;

/// Where a trace comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// A file, among those of the folder of traces.
    Recorded(&'static str),
    /// A pattern and the seed it is drawn with.
    MadeUp(Workload, u64),
}

/// A trace and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// What it is called in tables and files.
    pub(crate) name: &'static str,
    /// Where its requests come from.
    pub(crate) about: &'static str,
    pub(crate) source: Source,
    /// Whether its points count. Two recorded ones tell policies apart by nothing or by a single loop.
    pub(crate) judged: bool,
}

const fn recorded(name: &'static str, file: &'static str, about: &'static str) -> Subject {
    Subject { name, about, source: Source::Recorded(file), judged: true }
}

const fn made_up(name: &'static str, about: &'static str, workload: Workload) -> Subject {
    Subject { name, about, source: Source::MadeUp(workload, 1), judged: false }
}

const fn shown(subject: Subject) -> Subject {
    Subject { judged: false, ..subject }
}

/// Every trace, in the order of the page.
pub(crate) const ALL: [Subject; 28] = [
    recorded("web07", "cache2k-web07.trace.xz", "product pages of a shop, July"),
    recorded("web12", "cache2k-web12.trace.xz", "product pages of a shop, December"),
    recorded("orm-busy", "cache2k-orm-busy.trace.xz", "database objects read by a web application"),
    recorded("scarab", "scarab-recs.trace.xz", "product recommendations"),
    recorded("w106", "cloudphysics-w106.trace.xz", "blocks read by a virtual machine"),
    recorded(
        "corda",
        "corda-vaultservice.gz",
        "a ledger: scans whose keys come again soon, thrice",
    ),
    recorded("adaptsize", "adaptsize-request.trace.xz", "objects of a web cache"),
    recorded("oltp", "arc-OLTP.lis.zst", "pages of a CODASYL database, one hour"),
    recorded("p2", "arc-P2.lis.zst", "disk blocks of a workstation"),
    recorded("p3", "arc-P3.lis.zst", "disk blocks of a workstation"),
    recorded("sprite", "lirs-sprite.trace.gz", "files of a network file system"),
    recorded("cpp", "lirs-cpp.trace.gz", "files read by a C preprocessor"),
    recorded("gli", "lirs-gli.trace.gz", "files read by a text search"),
    recorded("ps", "lirs-ps.trace.gz", "pages read by joins of a database"),
    recorded("multi1", "lirs-multi1.trace.gz", "two programs at once"),
    recorded("multi3", "lirs-multi3.trace.gz", "four programs at once"),
    recorded("2-pools", "lirs-2_pools.trace.gz", "a synthetic pool of index and one of data pages"),
    recorded("loop", "lirs-loop.trace.gz", "a synthetic loop"),
    recorded("zigzag", "lirs-zigzag.trace.gz", "a synthetic sweep forth and back"),
    recorded("gcc", "address-gcc.trace.gz", "memory addresses of a compiler"),
    recorded("twolf", "address-twolf.trace.gz", "memory addresses of a placement program"),
    shown(recorded("cs", "lirs-cs.trace.gz", "a loop over source files")),
    shown(recorded("gzip", "address-gzip.trace.gz", "memory addresses of a compressor")),
    made_up(
        "zipf-made",
        "100,000 keys, exponent 0.9",
        Workload::Zipf { keys: 100_000, exponent: 0.9 },
    ),
    made_up(
        "scan-made",
        "new keys, each read three times within 2,000",
        Workload::Scan { reads: 3, spread: 2_000 },
    ),
    made_up("loop-made", "20,000 keys, round and round", Workload::Loop { keys: 20_000 }),
    made_up(
        "shifting-made",
        "50,000 keys; 90 % of the requests go to 1,000 of them, to others after 50,000 requests",
        Workload::ShiftingHotSet { keys: 50_000, hot: 1_000, hot_percent: 90, shift_every: 50_000 },
    ),
    made_up(
        "mixed-made",
        "50,000 keys, exponent 0.9, and after each 20,000 requests a scan over 5,000 new ones",
        Workload::Mixed { keys: 50_000, exponent: 0.9, scan_every: 20_000, scan_keys: 5_000 },
    ),
];

/// The folder of recorded traces beside the repository.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces")
}

impl Subject {
    /// Reads or makes the trace, no longer than `limit` requests.
    pub(crate) fn load(&self, folder: &Path, limit: usize) -> Result<Trace, TraceError> {
        match self.source {
            Source::Recorded(file) => {
                Trace::open(folder.join(file), &TraceOptions::default().limit(limit))
            }
            Source::MadeUp(workload, seed) => Ok(workload.trace(QUICK.min(limit), seed)),
        }
    }

    /// Whether it is recorded, as opposed to made up.
    pub(crate) fn is_recorded(&self) -> bool {
        matches!(self.source, Source::Recorded(_))
    }
}

/// A name for exactly these requests.
pub(crate) fn fingerprint(trace: &Trace) -> u64 {
    // FNV-1a over words: quick, and the same on every machine.
    trace.keys().iter().fold(0xcbf2_9ce4_8422_2325, |state: u64, key| {
        (state ^ key).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_traces_have_two_names_and_two_fingerprints() {
        let mut names: Vec<_> = ALL.iter().map(|subject| subject.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        let of = |keys: &[u64]| fingerprint(&Trace::new("t", keys.to_vec()));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 3, 2]));
        assert_ne!(of(&[1, 2]), of(&[1, 2, 2]));
        assert_eq!(of(&[1, 2]), of(&[1, 2]));
    }

    #[test]
    fn a_made_up_trace_needs_no_file() {
        for subject in ALL.iter().filter(|subject| !subject.is_recorded()) {
            let trace = subject.load(Path::new("nowhere"), 5_000).expect("it is made");
            assert_eq!(trace.keys().len(), 5_000, "{}", subject.name);
        }
        ALL[0].load(Path::new("nowhere"), 1).expect_err("there is no such folder");
    }
}
