//! `ultra-perf check`: the effective configuration, and everything that is wrong with it.

use std::process::ExitCode;

use clap::Args;
use ultra_perf::config::{ConfigError, Explanation, Problem};

use crate::settings::Settings;

/// Options of `ultra-perf check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    settings: Settings,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    match args.settings.loader().load() {
        Ok(config) => {
            show(args, &config.explain(), &[]);
            if !args.json {
                println!("\nno problems");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            show(args, error.explanation(), error.problems());
            if !args.json {
                tell(&error);
            }
            ExitCode::from(2)
        }
    }
}

fn show(args: &CheckArgs, explanation: &Explanation, problems: &[Problem]) {
    if args.json {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let report = serde_json::json!({ "configuration": explanation, "problems": problems });
        println!("{report:#}");
    } else {
        print!("{explanation}");
    }
}

fn tell(error: &ConfigError) {
    eprintln!("\n{error}");
}
