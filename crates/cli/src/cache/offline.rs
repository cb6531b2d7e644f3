//! `ultra-perf cache verify` and `compact`: a disk tier's directory, while no cache has it open.
//!
//! The work is `cache_tiered`'s; here are its progress, its table or JSON, and the exit code: 1 where
//! something is damaged or failed.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use ultra_perf::cache_tiered::disk::{
    self, CheckpointState, CompactReport, SegmentReport, Verdict, VerifyReport,
};
use ultra_perf::config::ByteSize;

/// Checks every record of a disk tier that no cache has open.
///
/// DIR is the directory of one cache. Nothing in it is changed. Exits with 1 if something is damaged: opening
/// the cache drops what cannot be trusted. A newest segment that ends inside a record is how a killed
/// process leaves it, and no damage.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Directory of the disk tier
    dir: PathBuf,

    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Gives back the space of expired, replaced and removed entries of a disk tier that no cache has open.
///
/// DIR is the directory of one cache. What is alive is written into new segments, the oldest first, which
/// takes room for one more segment. It may be killed at any time: the directory still opens.
#[derive(Debug, Args)]
pub(super) struct CompactArgs {
    /// Directory of the disk tier
    dir: PathBuf,

    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(args: &VerifyArgs) -> ExitCode {
    let bar = progress_bar("verifying");
    let report = disk::verify(&args.dir, |done, all| show(&bar, done, all));
    bar.finish_and_clear();
    let report = match report {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    let text =
        if args.json { format!("{:#}\n", verify_json(&report)) } else { verify_text(&report) };
    let code = match report.verdict() {
        Verdict::Damaged => ExitCode::FAILURE,
        Verdict::Sound | Verdict::TornTail => ExitCode::SUCCESS,
    };
    print(&text, code)
}

pub(super) fn compact(args: &CompactArgs) -> ExitCode {
    let bar = progress_bar("compacting");
    let report = disk::compact(&args.dir, |done, all| show(&bar, done, all));
    bar.finish_and_clear();
    let report = match report {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    let text =
        if args.json { format!("{:#}\n", compact_json(&report)) } else { compact_text(&report) };
    print(&text, ExitCode::SUCCESS)
}

fn failed(error: &dyn Error) -> ExitCode {
    crate::tell(error);
    ExitCode::FAILURE
}

fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(error) => failed(&error),
    }
}

fn bytes(count: u64) -> String {
    ByteSize::new(count).to_string()
}

fn verdict(report: &VerifyReport) -> &'static str {
    match report.verdict() {
        Verdict::Sound => "sound",
        Verdict::TornTail => "torn-tail",
        Verdict::Damaged => "damaged",
    }
}

fn checkpoint(segment: &SegmentReport) -> &'static str {
    match segment.checkpoint {
        CheckpointState::Sound => "sound",
        CheckpointState::Broken => "broken",
        _ => "-",
    }
}

fn verify_text(report: &VerifyReport) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:>18}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>7}",
        "segment", "bytes", "records", "live", "live bytes", "checkpoint", "damaged"
    );
    for segment in &report.segments {
        let _ = writeln!(
            text,
            "{:>18x}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>7}",
            segment.id,
            segment.bytes,
            segment.records,
            segment.live_records,
            segment.live_bytes,
            checkpoint(segment),
            segment.damaged,
        );
    }
    for segment in &report.segments {
        let path = segment.path.display();
        for broken in &segment.broken {
            let _ = writeln!(text, "{path}, byte {}: {}", broken.offset, broken.reason);
        }
        let unnamed = segment.damaged - segment.broken.len() as u64;
        if unnamed > 0 {
            let _ = writeln!(text, "{path}: {unnamed} more places are damaged");
        }
        if let Some(at) = segment.torn_at {
            let _ = writeln!(text, "{path}: ends inside a record, at byte {at}");
        }
    }
    if report.gaps > 0 {
        let _ = writeln!(text, "segments are missing in {} places", report.gaps);
    }
    let said = match report.verdict() {
        Verdict::Sound => "sound",
        Verdict::TornTail => "sound up to its end, which was cut off in a write",
        Verdict::Damaged => "damaged; opening drops what cannot be trusted",
    };
    let (entries, live) = (report.entries, bytes(report.live_bytes));
    let _ = writeln!(text, "{said}: {entries} entries of {live} in {} segments", {
        report.segments.len()
    });
    text
}

fn verify_json(report: &VerifyReport) -> Value {
    let segment = |segment: &SegmentReport| {
        let broken = segment
            .broken
            .iter()
            .map(|broken| json!({ "offset": broken.offset, "reason": broken.reason.to_string() }));
        json!({
            "id": segment.id,
            "path": segment.path.display().to_string(),
            "bytes": segment.bytes,
            "records": segment.records,
            "live_records": segment.live_records,
            "live_bytes": segment.live_bytes,
            "checkpoint": match segment.checkpoint {
                CheckpointState::Absent => Value::Null,
                _ => checkpoint(segment).into(),
            },
            "torn_at": segment.torn_at,
            "damaged": segment.damaged,
            "broken": broken.collect::<Vec<_>>(),
        })
    };
    json!({
        "verdict": verdict(report),
        "entries": report.entries,
        "live_bytes": report.live_bytes,
        "gaps": report.gaps,
        "segments": report.segments.iter().map(segment).collect::<Vec<_>>(),
    })
}

fn compact_text(report: &CompactReport) -> String {
    let freed = report.bytes_before.saturating_sub(report.bytes_after);
    format!(
        "kept {} entries, dropped {} expired and {} broken ones\n{} -> {}, {} given back\n",
        report.entries,
        report.expired,
        report.broken,
        bytes(report.bytes_before),
        bytes(report.bytes_after),
        bytes(freed),
    )
}

fn compact_json(report: &CompactReport) -> Value {
    json!({
        "entries": report.entries,
        "expired": report.expired,
        "broken": report.broken,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
    })
}

/// A bar on standard error, where a person sees it; indicatif hides it elsewhere.
fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_style(
        ProgressStyle::with_template(
            "{prefix} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left",
        )
        .expect("the template is a constant")
        .progress_chars("##."),
    );
    bar.set_prefix(what);
    bar
}

fn show(bar: &ProgressBar, done: u64, all: u64) {
    bar.set_length(all);
    bar.set_position(done);
}
