//! The page of the docs: what was done, what clients saw of each fault, and the course of it drawn.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ultra_perf_bench::{Line, Panel, Scale, begin_picture, escape};

use crate::backend::{SERVICE, SLOTS, capacity};
use crate::timeline::{FAULTS, RECOVERED, Run};

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 530.0;
const SIDES: (f64, f64) = (70.0, 640.0);
const UPPER: (f64, f64) = (80.0, 270.0);
const LOWER: (f64, f64) = (320.0, 470.0);

/// Writes `backends.md` and its picture into a folder.
pub(crate) fn write(
    folder: &Path,
    provenance: &str,
    per_second: f64,
    runs: &[Run],
) -> io::Result<()> {
    fs::create_dir_all(folder.join("backends"))?;
    fs::write(folder.join("backends/timeline.svg"), picture(provenance, runs))?;
    fs::write(folder.join("backends.md"), page(provenance, per_second, runs))
}

fn page(provenance: &str, per_second: f64, runs: &[Run]) -> String {
    let (all, two) = (3.0 * capacity(), 2.0 * capacity());
    let mut out = format!(
        "# When backends fail\n\n\
         <!-- Written by `cargo xtask bench backends --full`. -->\n\n\
         Three processes serve {SLOTS} requests at once each, in {:.0} to {:.0} ms, so {all:.0} a second\n\
         together. `ultra-perf serve` stands in front of them, and {per_second:.0} GETs a second are due at\n\
         random moments whatever became of those before (an open loop; latency counts from when a request\n\
         was due). That is {:.0} % of what all three can do and {:.0} % of what is left while one of them\n\
         is out; three equal backends at 85 % of their sum could not do without one of them, whoever\n\
         balances. No answer may be stored, and a request fails if it is not answered with 200 in 10 s.\n\n\
         After a quiet time one backend is made ten times slower, answers 503 at once, is killed and\n\
         restarted, or is frozen (SIGSTOP) and thawed; each time all processes are fresh. p99 has\n\
         *recovered* when every second from then on has a p99 of at most {RECOVERED:.0} times that of the\n\
         quiet times; a failed request is slower than any other. `-` means that it did not before the next\n\
         change.\n\n\
         ```text\n{}\n```\n\n\
         ![p99 and errors over time](backends/timeline.svg)\n\n",
        SERVICE.as_secs_f64() * 500.0,
        SERVICE.as_secs_f64() * 1500.0,
        100.0 * per_second / all,
        100.0 * per_second / two,
        provenance.trim_end(),
    );
    out += &table(runs);
    out
}

/// The tables: all requests of each run, and what was seen of each fault.
pub(crate) fn table(runs: &[Run]) -> String {
    let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    let seconds = |time: Option<Duration>| {
        time.map_or("-".to_owned(), |it| format!("{:.1}", it.as_secs_f64()))
    };
    let mut out = String::from(
        "| | requests | failed | share of failed, % | quiet p50, ms | quiet p99, ms |\n\
         |---|--:|--:|--:|--:|--:|\n",
    );
    for run in runs {
        let (requests, errors) = run.requests_and_errors();
        let (p50, p99) = run.quiet();
        let share = 100.0 * errors as f64 / requests.max(1) as f64;
        _ = writeln!(
            out,
            "| {} | {requests} | {errors} | {share:.3} | {} | {} |",
            run.name,
            ms(p50),
            ms(p99)
        );
    }
    out += "\n| one backend is | balanced by | failed | worst p99, ms | recovered from its begin, s | \
            from its end, s |\n|---|---|--:|--:|--:|--:|\n";
    for (index, fault) in FAULTS.into_iter().enumerate() {
        for run in runs {
            let seen = run.seen(index);
            _ = writeln!(
                out,
                "| {} | {} | {} of {} | {} | {} | {} |",
                fault.name(),
                run.name,
                seen.errors,
                seen.requests,
                ms(seen.worst_p99),
                seconds(seen.after_begin),
                seconds(seen.after_end),
            );
        }
    }
    out
}

fn picture(provenance: &str, runs: &[Run]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let lines = |read: fn(&(f64, f64, f64)) -> f64| -> Vec<Line> {
        let line = |(index, run): (usize, &Run)| {
            let points = run.course().iter().map(|point| (point.0, read(point))).collect();
            Line::new(2 * index, run.name, points)
        };
        runs.iter().enumerate().map(line).collect()
    };
    let (p99, errors) = (lines(|point| point.1), lines(|point| point.2));
    let upper = Panel {
        title: "p99, ms",
        sides: SIDES,
        heights: UPPER,
        scale: &Scale::decades(&p99),
        lines: &p99,
        across_max: first.phases.total().as_secs_f64(),
    };
    let scale = Scale::linear(&errors);
    let title = "failed requests per second";
    let lower = Panel { title, heights: LOWER, scale: &scale, lines: &errors, ..upper };
    let mut out = begin_picture(
        (WIDTH, HEIGHT),
        "What clients see when backends fail",
        SIDES.0,
        "One of three backends fails in the shaded times",
    );
    _ = writeln!(out, "<desc>{}</desc>", escape(provenance.trim()));
    for panel in [upper, lower] {
        for (index, fault) in FAULTS.into_iter().enumerate() {
            let (begin, end) = first.phases.of_fault(index);
            let (begin, end) = (begin.as_secs_f64(), end.as_secs_f64());
            panel.shade(&mut out, begin, end);
            if panel.heights == UPPER {
                _ = writeln!(
                    out,
                    "<text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
                     font-size=\"11\">{}</text>",
                    panel.across(f64::midpoint(begin, end)),
                    UPPER.0 - 26.0,
                    escape(fault.name()),
                );
            }
        }
        panel.draw(&mut out);
    }
    lower.draw_across(&mut out, "seconds");
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Sample;
    use crate::timeline::Phases;

    fn runs() -> [Run; 2] {
        let samples = |good: bool| {
            let sample = move |number: u64| Sample {
                due: Duration::from_millis(10 * number),
                latency: Duration::from_millis(50),
                good: good || number != 150,
            };
            (0..800).map(sample).collect::<Vec<_>>()
        };
        let run = |name, good| Run::new(name, Phases::SHORT, vec![samples(good); 4]);
        [run("one", true), run("two", false)]
    }

    #[test]
    fn the_page_says_what_was_asked_and_what_was_seen() {
        let folder = tempfile::tempdir().expect("a directory");
        write(folder.path(), "on a machine\n", 680.0, &runs()).expect("it can be written");
        let page = fs::read_to_string(folder.path().join("backends.md")).expect("was written");
        for part in [
            "```text\non a machine\n```",
            "680 GETs a second",
            "57 % of what all three can do and 85 % of what is left",
            "| one | 2800 | 0 | 0.000 | 50 | 50 |",
            "| two | 2800 | 4 | 0.143 | 50 | 50 |",
            "| frozen | one | 0 of 525 | 50 | 0.0 | 0.0 |",
            "![p99 and errors over time](backends/timeline.svg)",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        let svg = fs::read_to_string(folder.path().join("backends/timeline.svg")).expect("written");
        assert_eq!(svg.matches("<rect").count(), 1 + 2 * FAULTS.len());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }
}
