//! `cargo xtask compile-time`: what a service that uses some of the features takes to compile.
//!
//! The service is a package of its own outside of the workspace, as a user's is: the workspace unites the
//! features of all that is built together, and its profiles are not those of others. Each build begins with
//! an empty folder, after everything has been downloaded.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cargo_metadata::Message;
use clap::Args;
use ultra_perf_bench::write_section;

use crate::{Outcome, bench, repo, scratch};

/// What `cargo xtask compile-time` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Sets of features of `ultra-perf`, each with commas between its features
    #[arg(value_name = "FEATURES", default_values_t = ["cache".to_owned(), "default".to_owned()])]
    sets: Vec<String>,
    /// Write the table to the page of the docs
    #[arg(long)]
    docs: bool,
}

/// One build of the service.
#[derive(Debug)]
struct Build {
    features: String,
    profile: &'static str,
    crates: usize,
    took: Duration,
}

/// Builds the service with each set, in the development profile and in release.
pub(crate) fn run(options: &Options) -> Outcome {
    let mut builds = Vec::new();
    for features in &options.sets {
        let folder = scratch("compile-time")?;
        write_service(&folder, features)
            .map_err(|error| format!("cannot write {}: {error}", folder.display()))?;
        repo::run(&mut service(&folder, "fetch"))?;
        for (profile, words) in [("dev", "build"), ("release", "build --release")] {
            builds.push(build(&folder, features, profile, words)?);
        }
    }
    let table = table(&builds);
    print!("{table}");
    if options.docs {
        let mut command = format!("cargo xtask compile-time {}", options.sets.join(" "));
        if let Some(jobs) = std::env::var_os("CARGO_BUILD_JOBS") {
            command += &format!(", {} jobs", jobs.to_string_lossy());
        }
        let text = format!("```text\n{}```\n\n{table}", bench::machine(&command));
        let page = repo::root().join("docs/src/ultra-perf.md");
        write_section(&page, "compile-time", &text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Writes a service that has a cache and asks it, with the versions of dependencies that we have.
fn write_service(folder: &Path, features: &str) -> std::io::Result<()> {
    let features: Vec<String> =
        features.split(',').map(|name| format!("{:?}", name.trim())).collect();
    let manifest = format!(
        "[package]\nname = \"service\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nultra-perf = {{ path = {:?}, default-features = false, features = [{}] }}\n\
         tokio = {{ version = \"1\", features = [\"rt\", \"macros\"] }}\n\n[workspace]\n",
        repo::root().join("crates/ultra-perf"),
        features.join(", "),
    );
    fs::create_dir_all(folder.join("src"))?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(repo::root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::write(folder.join("src/main.rs"), SERVICE)
}

const SERVICE: &str = r#"//! A service that uses a cache and nothing else.

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let perf = ultra_perf::UltraPerf::builder().process_env().build().await?;
    let users = perf.cache::<u64, String>("users").build()?;
    users.insert(7, "Ada".to_owned());
    println!("{:?}", users.get(&7).await);
    perf.shutdown(std::time::Duration::from_secs(10)).await;
    Ok(())
}
"#;

fn service(folder: &Path, words: &str) -> Command {
    let mut command = repo::cargo(words);
    command.current_dir(folder).env("CARGO_TARGET_DIR", folder.join("target"));
    command.env("CARGO_INCREMENTAL", "0");
    command
}

fn build(
    folder: &Path,
    features: &str,
    profile: &'static str,
    words: &str,
) -> Result<Build, String> {
    let target = folder.join("target");
    if target.exists() {
        fs::remove_dir_all(&target)
            .map_err(|error| format!("cannot empty {}: {error}", target.display()))?;
    }
    let cannot = |error| format!("cannot build the service: {error}");
    let mut command = service(folder, words);
    command.args(["--offline", "--message-format", "json-render-diagnostics"]);
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(cannot)?;
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut packages = BTreeSet::new();
    for message in Message::parse_stream(output) {
        if let Message::CompilerArtifact(artifact) = message.map_err(cannot)? {
            packages.insert(artifact.package_id.repr);
        }
    }
    let status = child.wait().map_err(cannot)?;
    let took = start.elapsed();
    // The service itself is one of them.
    let crates = packages.len().saturating_sub(1);
    match status.success() {
        true => Ok(Build { features: features.to_owned(), profile, crates, took }),
        false => Err(format!("the service with [{features}] does not compile")),
    }
}

fn table(builds: &[Build]) -> String {
    let mut text = String::from("| features | profile | crates | seconds |\n|---|---|--:|--:|\n");
    for Build { features, profile, crates, took } in builds {
        text += &format!("| `{features}` | {profile} | {crates} | {:.1} |\n", took.as_secs_f64());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_build() {
        let build = |profile, seconds| Build {
            features: "cache,redis".into(),
            profile,
            crates: 42,
            took: Duration::from_secs_f64(seconds),
        };
        assert_eq!(
            table(&[build("dev", 9.96), build("release", 20.0)]),
            "| features | profile | crates | seconds |\n|---|---|--:|--:|\n\
             | `cache,redis` | dev | 42 | 10.0 |\n| `cache,redis` | release | 42 | 20.0 |\n"
        );
    }
}
