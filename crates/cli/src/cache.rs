//! `ultra-perf cache`: questions about caches, and the care of a disk tier that nobody has open.
//!
//! `verify` and `compact` are in [`offline`]. `simulate` tells what a cache of another size or policy would
//! have answered. It reads a record of requests, lets every policy serve them at every size, in parallel, and prints the
//! hit ratios as a table, or as JSON. Nothing is measured live and nothing is configured: the [`report`]
//! ends in what the numbers advise.

mod offline;
mod report;

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ultra_perf::cache_tiered::simulate::{
    Capacity, Contender, Footprint, Format, Trace, TraceError, TraceOptions, UnknownContender,
    UnknownFormat, sweep,
};
use ultra_perf::config::ByteSize;

use self::report::{Report, Row, Style};

/// Options of `ultra-perf cache`.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    Simulate(SimulateArgs),
    Verify(offline::VerifyArgs),
    Compact(offline::CompactArgs),
}

/// Tells from a record of requests what a cache would have answered, by size and policy.
///
/// TRACE is an access log of an HTTP server in common or combined format, a list of keys (one on each
/// line), `key,size` lines, or one of the formats of published cache traces; gzip, xz and zstd are
/// unpacked. Every request reads one key, and a miss stores it.
///
/// Prints hit ratios, sizes as rows and policies as columns, and ends with a recommendation. The best
/// policy of each row is marked; `belady` knows the future and is what no policy can pass.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// File with the requests
    trace: PathBuf,

    /// Sizes of the cache: a share of all keys (of all bytes, where sizes are known), a number of
    /// entries, or bytes with a unit
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1%,5%,20%")]
    sizes: Vec<Size>,

    /// Policies: lru, lfu, arc, s3-fifo, adaptive, clock-pro, those of the literature as
    /// textbook-NAME, and belady; the beginning of a name with * means all of those
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "lru,lfu,arc,s3-fifo,adaptive,belady")]
    policies: Vec<Policies>,

    /// Format of TRACE: words32, words64, blocks, addresses, ranges, sized, lines, csv or access-log
    /// [default: recognized]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,

    /// Requests after which reading stops
    #[arg(long, value_name = "N", default_value_t = 50_000_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// Prints JSON
    #[arg(long)]
    json: bool,
}

fn parse_format(name: &str) -> Result<Format, UnknownFormat> {
    name.parse()
}

/// The contenders that one word of a list names.
#[derive(Debug, Clone)]
struct Policies(Vec<Contender>);

impl FromStr for Policies {
    type Err = UnknownContender;

    fn from_str(pattern: &str) -> Result<Self, UnknownContender> {
        Contender::matching(pattern.trim()).map(Self)
    }
}

/// How large a cache is, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Size {
    /// Of all keys, or of all bytes where these are known.
    Percent(f64),
    Entries(u64),
    Bytes(ByteSize),
}

/// A word that is no size.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "must be a share such as 5%, a number of entries such as 1000, or bytes with a unit such as 64MiB"
)]
struct NoSize;

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim_end().parse().map_err(|_| NoSize)?;
            let possible = percent.is_finite() && percent > 0.0 && percent <= 1e6;
            return if possible { Ok(Self::Percent(percent)) } else { Err(NoSize) };
        }
        let size = if text.ends_with(|last: char| last.is_ascii_alphabetic()) {
            text.parse().map(Self::Bytes).map_err(|_| NoSize)?
        } else {
            text.parse().map(Self::Entries).map_err(|_| NoSize)?
        };
        let is_nothing = matches!(size, Self::Entries(0)) || size == Self::Bytes(ByteSize::new(0));
        if is_nothing { Err(NoSize) } else { Ok(size) }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Entries(entries) => write!(f, "{entries}"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl Size {
    /// The capacity that this is for a trace, unless it needs weights and there are none.
    fn capacity(self, footprint: &Footprint, weighted: bool) -> Option<Capacity> {
        match self {
            Self::Percent(percent) if weighted => Some(footprint.weight(percent / 100.0)),
            Self::Percent(percent) => Some(footprint.entries(percent / 100.0)),
            Self::Entries(entries) => Some(Capacity::entries(entries)),
            Self::Bytes(bytes) => weighted.then(|| footprint.weight_of(bytes.as_u64())),
        }
    }
}

/// Why a simulation was not made.
#[derive(Debug, thiserror::Error)]
enum SimulateError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(
        "--sizes {size}: {trace} does not tell how many bytes its keys have; \
         give a share such as 5% or a number of entries"
    )]
    NoWeights { size: Size, trace: String },
    #[error("cannot write to the standard output")]
    Output(#[source] io::Error),
}

pub(crate) fn run(args: &CacheArgs) -> ExitCode {
    let args = match &args.command {
        CacheCommand::Simulate(args) => args,
        CacheCommand::Verify(args) => return offline::verify(args),
        CacheCommand::Compact(args) => return offline::compact(args),
    };
    match simulate(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::tell(&error as &dyn Error);
            match error {
                SimulateError::NoWeights { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn simulate(args: &SimulateArgs) -> Result<(), SimulateError> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let options = TraceOptions::default().format(args.format).limit(limit);
    let trace = Trace::open(&args.trace, &options)?;
    let footprint = trace.footprint();
    let (sizes, capacities) = capacities(args, &trace, &footprint)?;
    let contenders = contenders(args);

    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let work = (trace.keys().len() * contenders.len() * capacities.len()) as u64;
    let bar = progress_bar(work);
    let outcomes = sweep(&trace, &contenders, &capacities, threads, &|done| bar.inc(done));
    bar.finish_and_clear();

    let rows = sizes.into_iter().zip(capacities).zip(outcomes);
    let rows = rows.map(|((size, capacity), outcomes)| Row { size, capacity, outcomes });
    let report = Report { trace: &trace, footprint, contenders: &contenders, rows: rows.collect() };
    let text = if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.text(Style { colour: colour_on_stdout() })
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(SimulateError::Output)
}

/// The sizes asked for with the capacities that they are, each once.
fn capacities(
    args: &SimulateArgs,
    trace: &Trace,
    footprint: &Footprint,
) -> Result<(Vec<String>, Vec<Capacity>), SimulateError> {
    let weighted = trace.weights().is_some();
    let (mut sizes, mut capacities) = (Vec::new(), Vec::new());
    for size in &args.sizes {
        let Some(capacity) = size.capacity(footprint, weighted) else {
            let trace = trace.name().to_owned();
            return Err(SimulateError::NoWeights { size: *size, trace });
        };
        if !capacities.contains(&capacity) {
            sizes.push(size.to_string());
            capacities.push(capacity);
        }
    }
    Ok((sizes, capacities))
}

/// The contenders asked for, each once.
fn contenders(args: &SimulateArgs) -> Vec<Contender> {
    let mut contenders: Vec<Contender> = Vec::new();
    for contender in args.policies.iter().flat_map(|policies| &policies.0) {
        if contenders.iter().all(|known| known.name() != contender.name()) {
            contenders.push(contender.clone());
        }
    }
    contenders
}

/// A bar on standard error, where a person sees it; indicatif hides it elsewhere.
fn progress_bar(requests: u64) -> ProgressBar {
    let bar = ProgressBar::new(requests);
    bar.set_style(
        ProgressStyle::with_template(
            "simulating [{bar:30}] {human_pos} of {human_len} requests, {eta} left",
        )
        .expect("the template is a constant")
        .progress_chars("##."),
    );
    bar
}

fn colour_on_stdout() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !dumb && !set("NO_COLOR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shares_entries_or_bytes() {
        assert_eq!("5%".parse(), Ok(Size::Percent(5.0)));
        assert_eq!(" 0.1 %".parse(), Ok(Size::Percent(0.1)));
        assert_eq!("1000".parse(), Ok(Size::Entries(1_000)));
        assert_eq!("64MiB".parse::<Size>().unwrap().to_string(), "64MiB");
        for wrong in
            ["", "%", "0%", "-1%", "NaN%", "inf%", "1e9%", "-1", "1.5", "0", "0MiB", "64 apples"]
        {
            assert_eq!(wrong.parse::<Size>(), Err(NoSize), "{wrong:?}");
        }
    }

    #[test]
    fn a_share_is_of_bytes_where_these_are_known() {
        let footprint = Footprint { keys: 200, weight: 10_000 };
        let capacity =
            |size: &str, weighted| size.parse::<Size>().unwrap().capacity(&footprint, weighted);
        assert_eq!(capacity("10%", false), Some(Capacity::entries(20)));
        assert_eq!(capacity("10%", true), Some(Capacity::weight(1_000, 20)));
        assert_eq!(capacity("30", true), Some(Capacity::entries(30)));
        assert_eq!(capacity("5kB", true).map(Capacity::limit), Some(5_000));
        assert_eq!(capacity("5kB", false), None);
    }
}
