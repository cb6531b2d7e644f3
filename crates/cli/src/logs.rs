//! The log: lines for people on a terminal, JSON for everything that reads them.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use ultra_perf::config::{Log, LogFormat};

/// Starts the log, to standard error.
pub(crate) fn start(log: &Log) {
    let terminal = io::stderr().is_terminal();
    let human = match log.format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log.level.as_str()))
        .with_writer(io::stderr);
    // A second start in one process, as in a test, keeps the first log.
    let _ = if human {
        builder.with_ansi(colours).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
}

/// The filter of the configuration, in which the engine of the history speaks from warnings on unless it is named.
fn filter(level: &str) -> EnvFilter {
    let quiet = ["fjall", "lsm_tree"].into_iter().filter(|target| !level.contains(target));
    let quiet: String = quiet.map(|target| format!("{target}=warn,")).collect();
    EnvFilter::new(quiet + level)
}
