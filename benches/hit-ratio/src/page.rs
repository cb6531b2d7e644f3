//! The page of the docs: the judgement, the curve, and a plot and a table for each trace.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::curve::{Answer, CURVE_ERROR_MAX, worst_and_mean};
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
         cache. The others are crates in their default configuration, foyer in one shard. stretto's\n\
         own thread is waited for, or it would hold far more than its capacity; that takes so long that\n\
         it is measured at small sizes only.\n\n\
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
            None => writeln!(out, "{title}: none."),
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
         whole trace, in points: {mean:.2} in the mean of {} answers, {:.1} at worst ({} under `{}` at\n\
         {} times the size: {:.1} % for {:.1} %).\n\n\
         | size | answers | mean error | worst error |\n|---|--:|--:|--:|",
        answers.len(),
        worst.error(),
        worst.trace,
        worst.policy,
        times(worst.eighths),
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
    let mut far: Vec<&Answer> =
        answers.iter().filter(|answer| answer.error() > CURVE_ERROR_MAX).collect();
    far.sort_by(|a, b| b.error().total_cmp(&a.error()));
    _ = writeln!(
        out,
        "\n{} of {} are more than {CURVE_ERROR_MAX} off{}",
        far.len(),
        answers.len(),
        if far.is_empty() { ".\n" } else { ":\n" }
    );
    for answer in far {
        _ = writeln!(
            out,
            "- {} under `{}`, {} times {} entries: {:.1} % for {:.1} %",
            answer.trace,
            answer.policy,
            times(answer.eighths),
            grouped(answer.entries),
            answer.estimated,
            answer.simulated,
        );
    }
    out + "\n"
}

fn times(eighths: u64) -> String {
    if eighths.is_multiple_of(8) { (eighths / 8).to_string() } else { format!("1/{}", 8 / eighths) }
}

fn describe(run: &Run) -> String {
    let cut = if run.cut { ", the first of more," } else { "" };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrants;
    use crate::judge::{JUDGED, Point};

    /// A trace in which everybody has the hit ratio of the size, and the last, the optimum, 90.
    fn run(entrants: &[Entrant]) -> Run {
        let point = |(share, capacity)| {
            let mut hits = vec![Some(share * 100.0); entrants.len()];
            *hits.last_mut().expect("there are some") = Some(90.0);
            Point { share, capacity, hits }
        };
        Run {
            name: "t",
            about: "a test",
            recorded: true,
            judged: true,
            requests: 2_000,
            keys: 1_000,
            cut: true,
            points: JUDGED.into_iter().zip([10, 50, 200]).map(point).collect(),
        }
    }

    #[test]
    fn a_table_sets_the_best_online_one_apart_and_never_the_optimum() {
        let entrants = entrants::all();
        let mut run = run(&entrants);
        run.points[1].hits[0] = Some(33.0);
        run.points[2].hits[0] = None;
        let table = table(&run, &entrants);
        assert!(
            table.contains("| 1 % (10) | 5 % (50) | 20 % (200, too short to count) |"),
            "{table}"
        );
        assert!(table.contains("\n| lru | **1.00** | **33.00** | - |\n"), "{table}");
        assert!(table.contains("\n| lfu | **1.00** | 5.00 | **20.00** |\n"), "{table}");
        assert!(table.contains("\n| optimum | 90.00 | 90.00 | 90.00 |\n"), "{table}");
    }

    #[test]
    fn a_page_has_a_picture_for_each_trace_and_a_row_for_each_cache() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let entrants = entrants::all();
        let answers = [Answer {
            trace: "t",
            policy: cache_tiered::Policy::Lru,
            entries: 20,
            eighths: 4,
            estimated: 12.0,
            simulated: 10.0,
        }];
        write(folder.path(), "on a machine\n", &[run(&entrants)], &entrants, &answers)
            .expect("the folder is there");
        let page = fs::read_to_string(folder.path().join("hit-ratio.md")).expect("was written");
        for part in [
            "```text\non a machine\n```",
            "a test: 2,000 requests, the first of more, for 1,000 distinct keys.",
            "![hit ratio against size](hit-ratio/t.svg)",
            "| 1/2 | 1 | 2.00 | 2.0 (t, lru) |",
            "| **adaptive** | 2 | 0.00 |",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        let picture = fs::read_to_string(folder.path().join("hit-ratio/t.svg"));
        assert!(picture.expect("was written").contains(">t: a test<"));
    }
}
