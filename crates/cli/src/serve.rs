//! `ultra-perf serve`: the accelerator, until a signal ends it.

use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use ultra_perf::cache_tiered::BuildError;
use ultra_perf::config::Config;
use ultra_perf::memory::Mimalloc;
use ultra_perf_http::{Server, StartError};

use crate::settings::Settings;
use crate::{logs, tell};

/// Options of `ultra-perf serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    settings: Settings,
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the accelerator did not start")]
    Start(#[from] StartError),
    #[error("the runtime did not start")]
    Runtime(#[source] std::io::Error),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    let config = match args.settings.loader().require("server.to", "--to URL").load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            eprintln!("\n`ultra-perf check` shows the whole configuration.");
            return ExitCode::from(2);
        }
    };
    let set_level = logs::start(&config.log);
    match serve(&config, set_level) {
        Ok(code) => code,
        Err(error) => {
            tell(&error);
            if matches!(&error, ServeError::Start(StartError::Cache(BuildError::Disk { .. }))) {
                eprintln!(
                    "cache.disk.path must name a directory of this instance alone; \
                     cache.disk.enabled = false does without one"
                );
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Config, set_level: logs::SetLevel) -> Result<ExitCode, ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server.workers)
        .thread_name("ultra-perf")
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
        // The allocator that this binary is built with; see main.
        let server = Server::start_with(config, |parts| parts.allocator(Mimalloc)).await?;
        server.perf().on_change(move |before, after| {
            if before.log.level != after.log.level {
                set_level(after.log.level.as_str());
            }
        });
        greet(config, &server);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let grace = config.server.drain_timeout;
        tracing::info!("stopping: requests under way have {grace:?}; a second signal stops at once");
        tokio::select! {
            stopped = server.shutdown(grace) => {
                if stopped.aborted > 0 {
                    tracing::warn!(aborted = stopped.aborted, "stopped; some requests were cut off");
                } else {
                    tracing::info!("stopped");
                }
                Ok(ExitCode::SUCCESS)
            }
            _ = terminate.recv() => Ok(ExitCode::FAILURE),
            _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

/// Says what runs where.
fn greet(config: &Config, server: &Server) {
    let backend = config.server.to.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut tiers = format!("memory {}", config.cache.memory.capacity);
    if let Some(redis) = &config.cache.redis.url {
        tiers.push_str(&format!(", redis {redis}"));
    }
    if let Some(path) = config.cache.disk.location() {
        tiers.push_str(&format!(", disk {} in {}", config.cache.disk.capacity, path.display()));
    }
    let proxy = server.proxy_addr();
    let level = config.level;
    tracing::info!("http://{proxy} now serves {backend} (level: {level}, cache: {tiers})");
    let admin = server.admin_addr();
    tracing::info!(
        "statistics: http://{admin}/performance/stats, metrics: http://{admin}/performance/metrics"
    );
    if let Some(metrics) = server.metrics_addr() {
        tracing::info!("metrics alone: http://{metrics}/metrics");
    }
}
