//! The page of the docs: a table and a picture of the latencies under each policy.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use ultra_perf_bench::begin_picture;

use super::{CASES, Case, DEFAULT, PREQUAL_LIKE, Spread};

/// The spreads of one case, by the names of the entrants.
pub(crate) type Results = (Case, Vec<(&'static str, Spread)>);

/// Writes `spread.md` and its picture into a folder.
pub(crate) fn write(
    folder: &Path,
    provenance: &str,
    seeds: &Range<u64>,
    results: &[Results],
) -> io::Result<()> {
    fs::create_dir_all(folder.join("spread"))?;
    fs::write(folder.join("spread/spread.svg"), picture(results))?;
    fs::write(folder.join("spread.md"), page(provenance, seeds, results))
}

fn page(provenance: &str, seeds: &Range<u64>, results: &[Results]) -> String {
    let held_out = if seeds.start >= HELD_OUT {
        "none of these seeds was looked at"
    } else {
        "some of these seeds may have been looked at"
    };
    let (count, first, last) = (seeds.end - seeds.start, seeds.start, seeds.end - 1);
    let mut out = format!(
        "# How calls spread over servers\n\n\
         <!-- Written by `cargo xtask bench loadbalancer --full`. -->\n\n\
         A simulation drives the balancers of this repository with passed time: fifty servers of four\n\
         slots and of nominal speeds 1/2, 1, 1 and 2 serve calls that take 10 ms in the mean at speed 1,\n\
         and some servers are four times slower than anybody was told. Calls come at random (Poisson).\n\
         A run is 15 s of warm-up and 45 s that count, some 775,000 calls; what is not done at the end\n\
         counts with the time it has taken by then. Every policy has one set of parameters for all\n\
         cases. `{PREQUAL_LIKE}` is no code of ours but a reference: probes of load and latency after the\n\
         paper, as far as that is known from its abstract and what was written about it.\n\n\
         It is a model: one topology, no failures, no network. Numbers in milliseconds, each the mean of\n\
         {count} seeds, {first} to {last}; {held_out} when the parameters were chosen.\n\n\
         ```text\n{}\n```\n\n\
         ![latencies under each policy](spread/spread.svg)\n\n",
        provenance.trim_end(),
    );
    for (case, _) in results {
        _ = writeln!(out, "- {}: {}", case.name, case.about);
    }
    out.push('\n');
    out += &table(results);
    out
}

/// The table: p50, p99 and p99.9 of each case, a row for each entrant.
pub(crate) fn table(results: &[Results]) -> String {
    let mut out = String::from("| policy |");
    for (case, _) in results {
        _ = write!(out, " {} p50 | p99 | p99.9 |", case.name);
    }
    out += "\n|---|";
    out += &"--:|--:|--:|".repeat(results.len());
    out.push('\n');
    let names = results.first().map(|(_, rows)| rows.iter().map(|(name, _)| *name));
    for (at, name) in names.into_iter().flatten().enumerate() {
        let mark = if name == DEFAULT { "**" } else { "" };
        _ = write!(out, "| {mark}{name}{mark} |");
        for (_, rows) in results {
            let Spread { p50, p99, p999 } = rows[at].1;
            for value in [p50, p99, p999] {
                _ = write!(out, " {} |", shown(value));
            }
        }
        out.push('\n');
    }
    out
}

/// Three digits, or thousands set apart.
fn shown(milliseconds: f64) -> String {
    match milliseconds {
        it if it < 99.95 => format!("{it:.1}"),
        it if it < 999.5 => format!("{it:.0}"),
        it => {
            let whole = it.round() as u64;
            format!("{},{:03}", whole / 1_000, whole % 1_000)
        }
    }
}

const WIDTH: f64 = 820.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 790.0;
const TOP: f64 = 62.0;
const ROW: f64 = 21.0;
const GAP: f64 = 44.0;
/// The ends of the axis, as powers of ten of milliseconds.
const DECADES: (f64, f64) = (0.6, 5.0);

/// A line for each policy from its median over p99 to p99.9, on a logarithmic axis.
fn picture(results: &[Results]) -> String {
    let rows: usize = results.iter().map(|(_, rows)| rows.len()).sum();
    let height = TOP + rows as f64 * ROW + results.len() as f64 * GAP + 26.0;
    let title = "Latencies under each policy";
    let mut out = begin_picture((WIDTH, height), title, 16.0, title);
    out += "<text class=\"faint\" x=\"16\" y=\"42\">median (disc), p99 (square) and p99.9 (diamond), in \
            milliseconds, logarithmic; shorter is better</text>\n";
    let mut y = TOP;
    for (case, rows) in results {
        let (top, bottom) = (y + 26.0, y + 26.0 + rows.len() as f64 * ROW);
        for power in 1..=5 {
            let x = across(10_f64.powi(power));
            _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
                 <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
                 font-size=\"10\">{}</text>",
                bottom + 12.0,
                10_u64.pow(power as u32),
            );
        }
        let title = format!("{}: {}", case.name, case.about);
        _ = writeln!(out, "<text class=\"text\" x=\"16\" y=\"{:.1}\">{title}</text>", y + 16.0);
        y = top;
        for (name, spread) in rows {
            row(&mut out, name, *spread, y + ROW / 2.0);
            y += ROW;
        }
        y = bottom + GAP - 26.0;
    }
    out += "</svg>\n";
    out
}

fn row(out: &mut String, name: &str, spread: Spread, y: f64) {
    let (colour, width) = match name {
        DEFAULT => ("#0a7bc4", 3.0),
        PREQUAL_LIKE => ("#8a8a8a", 1.6),
        _ => ("#e69f00", 1.6),
    };
    let [p50, p99, p999] = [spread.p50, spread.p99, spread.p999].map(across);
    _ = writeln!(
        out,
        "<text class=\"text\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\
         <path d=\"M{p50:.1} {y:.1}H{p999:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\
         <circle cx=\"{p50:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"{colour}\"/>\
         <rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\" fill=\"{colour}\"/>\
         <path d=\"M{p999:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5-4.5z\" fill=\"{colour}\"/>",
        LEFT - 12.0,
        y + 4.0,
        p99 - 3.5,
        y - 3.5,
        y - 4.5,
    );
}

fn across(milliseconds: f64) -> f64 {
    let (from, to) = DECADES;
    let share = (milliseconds.max(1e-9).log10() - from) / (to - from);
    LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
}

/// Returns the spread of an entrant in a case.
pub(crate) fn of(results: &[Results], case: &str, entrant: &str) -> Option<Spread> {
    let (_, rows) = results.iter().find(|(it, _)| it.name == case)?;
    rows.iter().find(|(name, _)| *name == entrant).map(|(_, spread)| *spread)
}

/// The first of the seeds on which nothing was ever tuned: `cargo xtask bench` once began at 1.
pub(crate) const HELD_OUT: u64 = 1_001;

/// Runs all entrants through all cases with each of the seeds, on `threads` threads.
pub(crate) fn all(length: super::Length, seeds: &Range<u64>, threads: usize) -> Vec<Results> {
    let entrants = super::entrants();
    CASES
        .into_iter()
        .map(|case| {
            let rows = entrants.iter().map(|entrant| {
                let spreads =
                    in_threads(threads, seeds, |seed| super::run(case, *entrant, length, seed));
                (entrant.name(), Spread::mean(&spreads))
            });
            (case, rows.collect())
        })
        .collect()
}

/// Runs the seeds and returns their results in that order.
fn in_threads(
    threads: usize,
    seeds: &Range<u64>,
    run: impl Fn(u64) -> Spread + Sync,
) -> Vec<Spread> {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let mut results = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if seed >= seeds.end {
                    return mine;
                }
                mine.push((seed, run(seed)));
            }
        };
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().expect("a run does not panic"));
        joined.flatten().collect::<Vec<_>>()
    });
    results.sort_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, spread)| spread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Vec<Results> {
        let spread = Spread { p50: 7.25, p99: 112.4, p999: 12_345.6 };
        CASES.map(|case| (case, vec![("round robin", spread), (DEFAULT, spread)])).into()
    }

    #[test]
    fn a_page_has_a_row_for_each_policy_and_a_picture() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        write(folder.path(), "on a machine\n", &(HELD_OUT..1_021), &results())
            .expect("the folder is there");
        let page = fs::read_to_string(folder.path().join("spread.md")).expect("was written");
        for part in [
            "```text\non a machine\n```",
            "20 seeds, 1001 to 1020; none of these seeds was looked at",
            "| round robin | 7.2 | 112 | 12,346 | 7.2 |",
            "| **choose-5 peak EWMA** | 7.2 |",
            "![latencies under each policy](spread/spread.svg)",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        let svg = fs::read_to_string(folder.path().join("spread/spread.svg")).expect("was written");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }

    #[test]
    fn seeds_come_back_in_their_order() {
        let run = |seed| Spread { p50: seed as f64, ..Spread::default() };
        let seeds: Vec<f64> =
            in_threads(3, &(5..10), run).iter().map(|spread| spread.p50).collect();
        assert_eq!(seeds, [5.0, 6.0, 7.0, 8.0, 9.0]);
    }

    #[test]
    fn a_result_is_found_by_its_names() {
        assert!(of(&results(), "static", DEFAULT).is_some());
        assert!(of(&results(), "static", "nobody").is_none());
    }
}
