//! The page of the docs: the judgement, the curve, and a plot and a table for each trace.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::curve::{Answer, worst_and_mean};
use crate::entrants::{Entrant, Role};
use crate::judge::{CAPACITIES, Run, Verdict, judge, percent};
use crate::plot::{Line, Marker, Style, grouped, svg};

/// Writes `hit-ratio.md` and its pictures into a folder.
pub(crate) fn write(
    folder: &Path,
    provenance: &str,
    runs: &[Run],
    entrants: &[Entrant],
    answers: &[Answer],
) -> io::Result<()> {
    let pictures = folder.join("hit-ratio");
    fs::create_dir_all(&pictures)?;
    let mut page = head(provenance);
    page += &judgement(runs, entrants);
    page += &of_curve(answers);
    page += "## Traces\n\n";
    for run in runs {
        _ = writeln!(page, "### {}\n\n{}\n", run.name, describe(run));
        _ = writeln!(page, "![hit ratio against size](hit-ratio/{}.svg)\n", run.name);
        _ = writeln!(page, "{}", table(run, entrants));
        fs::write(pictures.join(format!("{}.svg", run.name)), picture(run, entrants))?;
    }
    fs::write(folder.join("hit-ratio.md"), page.trim_end().to_owned() + "\n")
}

fn head(provenance: &str) -> String {
    format!(
        "# Hit ratios\n\n\
         <!-- Written by `cargo xtask bench hit-ratio --full`. -->\n\n\
         Which share of the requests a cache of a given size answers. Every request is one read of one\n\
         key; a miss is followed by an insert; the cache starts empty and its first misses count; every\n\
         entry weighs 1. `lru`, `lfu`, `arc`, `s3-fifo` and `adaptive` are this repository's cache as\n\
         it is sold, with all its shards. `textbook-*` are the policies of the literature with their\n\
         lists, each in one piece. `optimum` is Belady's, which knows the future and may decline to\n\
         cache. The others are crates in their default configuration, foyer in one shard.\n\n\
         ```text\n{}\n```\n\n\
         The recorded traces are not part of this repository. They come from Caffeine's simulator\n\
         (cache2k by Jens Wilke, CC BY 4.0; LIRS, Corda, Scarab, CloudPhysics, AdaptSize, addresses) and\n\
         from the ARC paper: N. Megiddo and D. S. Modha, \"ARC: A Self-Tuning, Low Overhead Replacement\n\
         Cache\", FAST 2003.\n\n",
        provenance.trim_end(),
    )
}

fn judgement(runs: &[Run], entrants: &[Entrant]) -> String {
    let mut out = format!(
        "## Regret\n\n\
         The *regret* of a cache at one trace and size is the hit ratio of the best of the six textbook\n\
         policies there, less its own, in points of a percent. It is negative where the cache beats all\n\
         six; the *shortfall* counts that as nothing. The sizes are 1, 5 and 20 % of the distinct keys.\n\
         Points with fewer than {CAPACITIES} requests for each entry of the cache do not count, and\n\
         neither do `gzip`, where every policy is the optimum, and `cs`, a single loop. Sorted by the\n\
         mean.\n\n",
    );
    let verdicts = |counts: &dyn Fn(&Run) -> bool| {
        let mut verdicts: Vec<(&Entrant, Verdict)> = entrants
            .iter()
            .enumerate()
            .filter(|(_, entrant)| entrant.role != Role::Optimum)
            .filter_map(|(index, entrant)| Some((entrant, judge(runs, entrants, index, counts)?)))
            .collect();
        verdicts.sort_by(|a, b| a.1.mean_regret.total_cmp(&b.1.mean_regret));
        verdicts
    };
    for (title, verdicts) in [
        ("Recorded traces", verdicts(&|run| run.judged)),
        ("Made-up traces", verdicts(&|run| !run.recorded)),
    ] {
        _ = match verdicts.first() {
            None => writeln!(out, "{title}: none.\n"),
            Some(_) => writeln!(
                out,
                "{title}:\n\n\
                 | cache | points | mean regret | mean shortfall | worst regret | more than 5 behind | more than \
                 10 | mean hit ratio | below the optimum |\n\
                 |---|--:|--:|--:|--:|--:|--:|--:|--:|",
            ),
        };
        for (entrant, verdict) in &verdicts {
            let name = emphasized(&entrant.name, entrant.role == Role::Ours);
            let Verdict { mean_regret, mean_shortfall, worst, worst_at, .. } = verdict;
            let [five, ten] = verdict.behind;
            _ = writeln!(
                out,
                "| {name} | {} | {mean_regret:.2} | {mean_shortfall:.2} | {worst:.1} ({worst_at}) | {five} | \
                 {ten} | {:.2} | {:.2} |",
                verdict.points, verdict.mean_hits, verdict.to_optimum,
            );
        }
        out.push('\n');
    }
    out
}

fn of_curve(answers: &[Answer]) -> String {
    let mut out = "## The miss-ratio curve\n\n".to_owned();
    let Some((worst, mean)) = worst_and_mean(answers) else {
        return out + "No trace was long enough.\n\n";
    };
    _ = writeln!(
        out,
        "A cache of 5 % of the keys runs each recorded trace under a fixed policy and is then asked, by\n\
         `hit_ratio_at`, for other sizes. The error is the distance to a cache of that size that ran the\n\
         whole trace, in points: {mean:.2} in the mean of {} answers, {:.1} at worst ({} under {} at {} \
         times the size: {:.1} % for {:.1} %).\n\n\
         | size | answers | mean error | worst error |\n|---|--:|--:|--:|",
        answers.len(),
        worst.error(),
        worst.trace,
        worst.policy,
        worst.eighths as f64 / 8.0,
        worst.estimated,
        worst.simulated,
    );
    let mut sizes: Vec<u64> = answers.iter().map(|answer| answer.eighths).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for eighths in sizes {
        let of_size: Vec<_> =
            answers.iter().filter(|answer| answer.eighths == eighths).cloned().collect();
        let (worst, mean) = worst_and_mean(&of_size).expect("there is one of this size");
        _ = writeln!(
            out,
            "| {} | {} | {mean:.2} | {:.1} ({}, {}) |",
            times(eighths),
            of_size.len(),
            worst.error(),
            worst.trace,
            worst.policy,
        );
    }
    out + "\n"
}

fn times(eighths: u64) -> String {
    if eighths.is_multiple_of(8) { (eighths / 8).to_string() } else { format!("1/{}", 8 / eighths) }
}

fn describe(run: &Run) -> String {
    let cut = if run.cut { ", the first of more" } else { "" };
    let why = match (run.judged, run.recorded) {
        (false, true) => " Shown, not judged.",
        (false, false) => " Made up; shown, not judged.",
        (true, _) => "",
    };
    format!(
        "{}: {} requests{cut} for {} distinct keys.{why}",
        run.about,
        grouped(run.requests),
        grouped(run.keys),
    )
}

/// The hit ratios of a trace at the judged sizes, as Markdown.
pub(crate) fn table(run: &Run, entrants: &[Entrant]) -> String {
    let mut out = String::from("| hit ratio in percent |");
    for point in run.table() {
        let note = if run.is_long_enough(point) { "" } else { ", too short to count" };
        _ = write!(out, " {} ({}{note}) |", percent(point.share), grouped(point.capacity));
    }
    out += "\n|---|";
    out += &"--:|".repeat(run.table().count());
    out.push('\n');
    for (index, entrant) in entrants.iter().enumerate() {
        _ = write!(out, "| {} |", entrant.name);
        for point in run.table() {
            let best = point.best(entrants, |role| role != Role::Optimum);
            let online = entrant.role != Role::Optimum;
            _ = match point.hits[index] {
                None => write!(out, " - |"),
                Some(hits) => {
                    let best = online && best.is_some_and(|best| best - hits < 0.005);
                    write!(out, " {} |", emphasized(&format!("{hits:.2}"), best))
                }
            };
        }
        out.push('\n');
    }
    out
}

fn emphasized(text: &str, emphasis: bool) -> String {
    if emphasis { format!("**{text}**") } else { text.to_owned() }
}

fn picture(run: &Run, entrants: &[Entrant]) -> String {
    let shares: Vec<_> =
        run.points.iter().map(|point| (point.capacity, percent(point.share))).collect();
    let lines: Vec<Line> = entrants
        .iter()
        .enumerate()
        .filter(|(_, entrant)| entrant.plotted)
        .map(|(index, entrant)| {
            let points = run.points.iter();
            let points = points.filter_map(|point| Some((point.capacity, point.hits[index]?)));
            Line { name: entrant.name.clone(), style: style(entrant), points: points.collect() }
        })
        .collect();
    svg(&format!("{}: {}", run.name, run.about), &shares, &lines)
}

/// Ours are solid, others dashed, the optimum dotted; colours after Okabe and Ito.
fn style(entrant: &Entrant) -> Style {
    let (colour, width, dashes, marker) = match entrant.name.as_str() {
        "adaptive" => ("#0a7bc4", 3.4, "", Marker::Disc),
        "lru" => ("#e69f00", 1.6, "", Marker::Square),
        "lfu" => ("#009e73", 1.6, "", Marker::Diamond),
        "arc" => ("#cc79a7", 1.6, "", Marker::Triangle),
        "s3-fifo" => ("#d55e00", 1.6, "", Marker::Disc),
        "optimum" => ("#8a8a8a", 1.6, "2 3", Marker::None),
        name if name.starts_with("quick_cache") => ("#56b4e9", 1.6, "7 4", Marker::Square),
        name if name.starts_with("moka") => ("#9a7d5a", 1.6, "7 4", Marker::Triangle),
        _ => ("#9467bd", 1.6, "7 4", Marker::Diamond),
    };
    Style { colour, width, dashes, marker }
}
