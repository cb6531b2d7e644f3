//! The log: lines for people on a terminal, JSON for everything that reads them.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, reload};
use ultra_perf::config::{Log, LogFormat};

/// Changes what the log tells.
pub(crate) type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

/// Starts the log, to standard error, and returns what changes its level.
pub(crate) fn start(log: &Log) -> SetLevel {
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
    if human {
        let builder = builder.with_ansi(colours).with_target(false).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Box::new(move |level| told(handle.reload(filter(level))))
    } else {
        let builder =
            builder.json().flatten_event(true).with_current_span(false).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Box::new(move |level| told(handle.reload(filter(level))))
    }
}

fn told(changed: Result<(), reload::Error>) {
    if let Err(error) = changed {
        tracing::warn!(%error, "the level of the log stays");
    }
}

/// The filter of the configuration, in which the engine of the history speaks from warnings on unless it is named.
fn filter(level: &str) -> EnvFilter {
    let quiet = ["fjall", "lsm_tree"].into_iter().filter(|target| !level.contains(target));
    let quiet: String = quiet.map(|target| format!("{target}=warn,")).collect();
    EnvFilter::new(quiet + level)
}
