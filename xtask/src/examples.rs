//! `cargo xtask examples`: runs the examples of all crates, each as its head says and within a minute.
//!
//! An example ends by itself, with a failure when what it is there to show did not happen, so running it
//! is a test. The command that runs it stands in its head, after `//! cargo run`, because that is where
//! readers look; here it is taken from there, so it is never wrong. Only `--release` is left out: the
//! build would take minutes, and what an example shows does not depend on it. Building has no bound,
//! running has.
//!
//! All of them together are run as the tests have built them, with every feature: another build for each
//! would take longer than all else.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::{Outcome, repo, test};

/// How long an example may run.
const BOUND: Duration = Duration::from_secs(60);
/// What stands before the command in an example's head.
const COMMAND: &str = "//! cargo run ";

/// What `cargo xtask examples` can be told.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only these examples; all of them unless named
    #[arg(value_name = "EXAMPLE")]
    names: Vec<String>,
}

/// An example, and what cargo is told to run it.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    package: String,
    name: String,
    arguments: Vec<String>,
}

/// Runs the examples, or those that are named, and prints how each went.
pub(crate) fn run(options: &Options) -> Outcome {
    let known = known()?;
    if let Some(name) = options.names.iter().find(|name| !known.iter().any(|it| it.name == **name))
    {
        let known: Vec<_> = known.iter().map(|example| example.name.as_str()).collect();
        return Err(format!(
            "there is no example \"{name}\"; the examples are: {}",
            known.join(", ")
        ));
    }
    let wanted =
        |example: &&Example| options.names.is_empty() || options.names.contains(&example.name);
    // One of them starts a Redis of its own. Without any it says so and ends well, which tests nothing.
    test::provide_redis()?;

    let together = options.names.is_empty();
    if together {
        let features = test::FEATURES;
        repo::run(&mut repo::cargo(&format!("build --workspace --examples {features}")))?;
    }
    let mut lines = String::new();
    let mut failed = Vec::new();
    for example in known.iter().filter(wanted) {
        println!("== {}", example.name);
        let start = Instant::now();
        let result = match together {
            true => {
                let built = repo::target().join("debug/examples").join(&example.name);
                within(BOUND, repo::program(built))
            }
            false => {
                repo::run(repo::cargo("build --quiet").args(&example.arguments)).and_then(|()| {
                    let mut command = repo::cargo("run --quiet");
                    command.args(&example.arguments);
                    within(BOUND, command)
                })
            }
        };
        let word = match &result {
            Ok(()) => "ok".to_owned(),
            Err(message) => format!("FAILED: {message}"),
        };
        lines += &format!("{:<20}{:>7.1} s  {word}\n", example.name, start.elapsed().as_secs_f64());
        if result.is_err() {
            failed.push(example.name.as_str());
        }
    }
    print!("\n{:<20}{:>9}  result\n{lines}", "example", "time");
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

/// Runs an example that has been built, and ends it when its time is over.
fn within(bound: Duration, mut command: Command) -> Outcome {
    // Some end when their input does.
    command.stdin(Stdio::null());
    let child = command.spawn().map_err(|error| format!("cannot run it: {error}"))?;
    match wait(child, bound).map_err(|error| format!("cannot wait for it: {error}"))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(status.to_string()),
        None => Err(format!("did not end within {} s", bound.as_secs())),
    }
}

/// Waits for a process; one that takes longer than the bound is killed and has no status.
fn wait(mut child: Child, bound: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// All examples of the crates, with the commands of their heads.
fn known() -> Result<Vec<Example>, String> {
    let metadata = repo::metadata()?;
    let mut examples = Vec::new();
    for package in metadata.workspace_packages() {
        for target in package.targets.iter().filter(|target| target.is_example()) {
            let source = fs::read_to_string(&target.src_path)
                .map_err(|error| format!("cannot read {}: {error}", target.src_path))?;
            let arguments = command(&source, &package.name, &target.name)
                .map_err(|problem| format!("{}: {problem}", target.src_path))?;
            let (package, name) = (package.name.to_string(), target.name.clone());
            examples.push(Example { package, name, arguments });
        }
    }
    examples.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
    Ok(examples)
}

/// The command that an example's head gives, without `cargo run`.
fn command(source: &str, package: &str, name: &str) -> Result<Vec<String>, String> {
    let head = source.lines().take_while(|line| line.starts_with("//!"));
    let right =
        format!("\"{COMMAND}-p {package} --example {name}\", with the features that it needs");
    let Some(line) = head.clone().find_map(|line| line.strip_prefix(COMMAND)) else {
        return Err(format!("its head does not say how to run it; it needs a line {right}"));
    };
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let says =
        |option: &str, value: &str| words.windows(2).any(|it| it[0] == option && it[1] == value);
    if says("-p", package) && says("--example", name) {
        Ok(words.into_iter().filter(|word| word != "--release").collect())
    } else {
        Err(format!("its head runs something else, \"cargo run {line}\"; it needs {right}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "docs/src/examples.md";

    #[test]
    fn every_example_says_how_to_run_it_and_is_on_the_page() {
        let examples = known().expect("every head has its command");
        let page = fs::read_to_string(repo::root().join(PAGE)).expect("there is the page");
        assert!(examples.iter().any(|example| example.name == "memory_only"), "{examples:?}");
        for Example { package, name, .. } in examples {
            let entry = format!("| `{name}` | `{package}` |");
            assert!(page.contains(&entry), "{PAGE} has no line that begins with {entry}");
        }
    }

    #[test]
    fn the_page_says_how_many_lines_the_shop_takes() {
        let read = |path| fs::read_to_string(repo::root().join(path)).expect("there is the file");
        let shop = read("crates/http/examples/shop.rs");
        let marked = shop.lines().filter(|line| line.ends_with(" // +")).count();
        let says = format!("accelerated in {marked} lines");
        assert!(read(PAGE).contains(&says), "{PAGE} does not say \"{says}\"");
        assert!(marked <= 15, "{marked} lines are more than a service should take");
        let mut ours = shop.lines().filter(|line| line.contains("ultra_perf"));
        assert!(ours.all(|line| line.ends_with(" // +")), "a line of ours is not marked");
    }

    #[test]
    fn the_command_of_a_head_is_taken_as_it_stands() {
        let source = "//! Shows it.\n//!\n//! cargo run --release -p a --example b --features c\n";
        let words = ["-p", "a", "--example", "b", "--features", "c"].map(str::to_owned);
        assert_eq!(command(source, "a", "b"), Ok(words.to_vec()));
    }

    #[test]
    fn a_head_without_its_own_command_is_told_what_it_needs() {
        let error = command("//! Shows it.\n\n//! cargo run -p a --example b", "a", "b");
        let error = error.expect_err("the command is not in the head");
        assert!(error.ends_with("-p a --example b\", with the features that it needs"), "{error}");
        let error = command("//! cargo run -p a --example c", "a", "b").expect_err("another's");
        assert!(error.contains("runs something else, \"cargo run -p a --example c\""), "{error}");
    }

    #[test]
    fn a_process_that_does_not_end_is_ended() {
        let sleep = |seconds: &str| repo::program("sleep").arg(seconds).spawn().expect("it starts");
        let done = wait(sleep("0"), BOUND).expect("waited").expect("it ends by itself");
        assert!(done.success());
        assert_eq!(wait(sleep("600"), Duration::ZERO).expect("waited"), None);
    }
}
