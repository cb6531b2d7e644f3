//! `ultra-perf purge`: asks the admin API of a running accelerator to forget a URL, or tags.

use clap::Args;
use serde_json::json;

use crate::admin::{AdminArgs, AdminError, text};

/// Options of `ultra-perf purge`.
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The URL as clients ask for it, with scheme and host
    #[arg(required_unless_present = "tags")]
    url: Option<String>,
    /// Every answer with this name in its Surrogate-Key or Cache-Tag; may be given several times
    #[arg(long = "tag", value_name = "TAG", conflicts_with = "url")]
    tags: Vec<String>,
    /// Leave what has the tags stale: it is refreshed behind the next request where it allows that
    #[arg(long, requires = "tags", conflicts_with = "url")]
    soft: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(crate) fn run(args: &PurgeArgs) -> Result<(), AdminError> {
    let body = match &args.url {
        Some(url) => json!({ "url": url }),
        None => json!({ "tags": args.tags, "soft": args.soft }),
    };
    let answer = args.admin.post("/cache/purge", &body)?;
    let purged = match &args.url {
        Some(_) => text(&answer["purged"]),
        None if args.soft => format!("{} softly", args.tags.join(", ")),
        None => args.tags.join(", "),
    };
    println!("purged {purged}");
    Ok(())
}
