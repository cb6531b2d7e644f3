//! Hit ratios: our cache, the policies of the literature, the optimum, and other caches.
//!
//! A quick run takes the first million requests of each trace and three sizes. With `--full` every
//! request counts, lines are drawn over eight sizes, and `--docs` says where the page goes. Numbers that
//! a change to our code cannot change are kept in the build folder from one run to the next.
#![forbid(unsafe_code)]

mod curve;
mod entrants;
mod judge;
mod kept;
mod page;
mod plot;
mod prediction;
mod promotion;
mod traces;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use cache_tiered::simulate::{Contender, Trace, sweep};
use clap::Parser;
use ultra_perf_bench::Suite;

use crate::curve::{Answer, CURVE_ERROR_MAX, worst_and_mean};
use crate::entrants::{Entrant, Role};
use crate::judge::{JUDGED, Point, Run, judge};
use crate::kept::Kept;

/// The sizes of the plots; those of the tables are among them.
const PLOTTED: [f64; 8] = [0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4];

#[derive(Debug, Parser)]
#[command(about = "Measures hit ratios on traces", long_about = None)]
struct Options {
    #[command(flatten)]
    suite: ultra_perf_bench::Options,
    /// Take every request of each trace, and draw lines over eight sizes.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    page: ultra_perf_bench::PageOptions,
    /// Only traces whose name contains NAME.
    #[arg(long, value_name = "NAME")]
    trace: Option<String>,
    /// Read recorded traces from this folder instead of the one beside the repository.
    #[arg(long, value_name = "FOLDER")]
    traces: Option<PathBuf>,
    /// Measure again what is kept from earlier runs.
    #[arg(long)]
    fresh: bool,
    /// Measure what fetching ahead brings, and nothing else; writes the table into this file.
    #[arg(long, value_name = "FILE")]
    prediction: Option<PathBuf>,
    /// Measure what it brings to wait for the second sight of a key before a value that a lower tier
    /// had comes into memory, and nothing else; prints a table.
    #[arg(long)]
    promotion: bool,
    /// Measure only what is kept for later runs, and show nothing.
    #[arg(long)]
    prepare: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hit-ratio: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> io::Result<ExitCode> {
    if let Some(page) = &options.prediction {
        let folder = options.traces.clone().unwrap_or_else(traces::folder);
        let named = |name: &str| options.trace.as_ref().is_none_or(|part| name.contains(part));
        prediction::write(page, &folder, named, &options.page.provenance)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.promotion {
        let folder = options.traces.clone().unwrap_or_else(traces::folder);
        print!("{}", promotion::table(&folder));
        return Ok(ExitCode::SUCCESS);
    }
    let entrants = entrants::all();
    let mut kept = Kept::open()?;
    if options.fresh {
        kept.forget();
    }
    let folder = options.traces.clone().unwrap_or_else(traces::folder);
    let (mut runs, mut answers) = (Vec::new(), Vec::new());
    for subject in traces::ALL {
        if options.trace.as_ref().is_some_and(|part| !subject.name.contains(part.as_str()))
            || (subject.is_recorded() && !folder.is_dir())
        {
            continue;
        }
        let limit = if options.full { usize::MAX } else { traces::QUICK };
        let trace = match subject.load(&folder, limit) {
            Ok(trace) => trace,
            Err(error) => {
                eprintln!("{}: left out: {error}", subject.name);
                continue;
            }
        };
        let started = Instant::now();
        let sizes = if options.full { PLOTTED.as_slice() } else { &JUDGED };
        let wanted = |entrant: &Entrant| !options.prepare || entrant.kept_as.is_some();
        let measured = measure(&trace, &subject, sizes, &entrants, wanted, &mut kept);
        kept.save()?;
        if subject.judged && !options.prepare {
            answers.extend(curve::answers(subject.name, &trace, threads(), &|_| ()));
        }
        eprintln!("{}: {:.1} s", subject.name, started.elapsed().as_secs_f64());
        runs.push(measured);
    }

    if options.prepare {
        return Ok(ExitCode::SUCCESS);
    }
    if !options.suite.no_table {
        for run in &runs {
            println!("{}\n{}", run.name, page::table(run, &entrants));
        }
    }
    if let Some(docs) = &options.page.docs {
        page::write(docs, &options.page.provenance, &runs, &entrants, &answers)?;
    }
    let mut suite = Suite::with_options("hit-ratio", options.suite);
    rows(&mut suite, &runs, &entrants, &answers);
    Ok(suite.finish())
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Runs everybody on one trace, at all sizes or at those of the tables.
fn measure(
    trace: &Trace,
    subject: &traces::Subject,
    sizes: &[f64],
    entrants: &[Entrant],
    wanted: impl Fn(&Entrant) -> bool,
    kept: &mut Kept,
) -> Run {
    let fingerprint = traces::fingerprint(trace);
    let footprint = trace.footprint();
    let requests = trace.keys().len() as u64;
    let mut points = Vec::new();
    for share in sizes {
        let capacity = footprint.entries(*share);
        let known: Vec<Option<u64>> = entrants
            .iter()
            .map(|entrant| kept.get(fingerprint, capacity.limit(), entrant.kept_as.as_deref()?))
            .collect();
        let takes_part = |entrant: &Entrant| {
            let shown = entrant.plotted || JUDGED.contains(share);
            shown && capacity.limit() <= entrant.largest && wanted(entrant)
        };
        let missing: Vec<usize> = (0..entrants.len())
            .filter(|index| known[*index].is_none() && takes_part(&entrants[*index]))
            .collect();
        let contenders: Vec<Contender> =
            missing.iter().map(|index| entrants[*index].contender.clone()).collect();
        let outcomes = sweep(trace, &contenders, &[capacity], threads(), &|_| ());
        let mut hits = known;
        for (index, outcome) in missing.into_iter().zip(&outcomes[0]) {
            let count = outcome.expect("entries have an optimum").hits;
            hits[index] = Some(count);
            if let Some(name) = &entrants[index].kept_as {
                kept.put(fingerprint, capacity.limit(), name, count);
            }
        }
        let percent = |hits: u64| hits as f64 / requests as f64 * 100.0;
        let hits = hits.into_iter().map(|hits| hits.map(percent)).collect();
        points.push(Point { share: *share, capacity: capacity.limit(), hits });
    }
    Run {
        name: subject.name,
        about: subject.about,
        recorded: subject.is_recorded(),
        judged: subject.judged,
        requests,
        keys: footprint.keys,
        cut: trace.is_truncated(),
        points,
    }
}

fn rows(suite: &mut Suite, runs: &[Run], entrants: &[Entrant], answers: &[Answer]) {
    const POINTS: &str = "points";
    if !runs.iter().any(|run| run.judged) {
        let reason = "there are no recorded traces beside the repository";
        suite.reported("mean regret", POINTS).skip("the best textbook policy", reason);
    }
    let wanted = |entrant: &&(usize, &Entrant)| matches!(entrant.1.role, Role::Ours | Role::Peer);
    for (index, Entrant { name, .. }) in entrants.iter().enumerate().filter(|e| wanted(&e)) {
        let made_up = judge(runs, entrants, index, |run| !run.recorded);
        let Some(verdict) = judge(runs, entrants, index, |run| run.judged) else { continue };
        let row = suite.reported(&format!("mean regret, {name}"), POINTS);
        if name == "adaptive" {
            row.at_most(1.4).observed(verdict.mean_regret);
            let [five, ten] = verdict.behind;
            let case = format!("of {} sizes and traces, those", verdict.points);
            let more = suite.reported(&format!("{case} more than 5 behind, {name}"), POINTS);
            more.at_most(3.0).observed(five as f64);
            let more = suite.reported(&format!("{case} more than 10 behind, {name}"), POINTS);
            more.at_most(0.0).observed(ten as f64);
            if let Some(made_up) = made_up {
                let row = suite.reported(&format!("mean regret on made-up traces, {name}"), POINTS);
                row.observed(made_up.mean_regret);
            }
        } else {
            row.observed(verdict.mean_regret);
        }
    }
    match worst_and_mean(answers) {
        Some((worst, mean)) => {
            suite.reported("hit_ratio_at, mean error", POINTS).at_most(2.0).observed(mean);
            let row = suite.reported("hit_ratio_at, worst error", POINTS);
            row.at_most(CURVE_ERROR_MAX).observed(worst.error());
            let far = answers.iter().filter(|answer| answer.error() > CURVE_ERROR_MAX).count();
            let case = format!("hit_ratio_at, more than 4 off among {} answers", answers.len());
            suite.reported(&case, "answers").observed(far as f64);
        }
        None => {
            let reason = "no recorded trace is there that is long enough";
            suite.reported("hit_ratio_at, error", POINTS).skip("a simulation", reason);
        }
    }
}
