//! `cargo xtask readme`: writes the table of the levels into the README.
//!
//! It lets the demonstration run its load without an accelerator and at each level, and puts what it
//! measured between two markers. Nobody writes the table by hand; `cargo xtask tidy` sees that it is there
//! and whole.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::{Outcome, bench, repo};

pub(crate) const PAGE: &str = "README.md";
pub(crate) const BEGIN: &str = "<!-- levels: written by `cargo xtask readme` -->";
pub(crate) const END: &str = "<!-- end of levels -->";
/// The rows of the table, in their order.
pub(crate) const ROWS: [&str; 5] = ["no accelerator", "basic", "advanced", "ultra", "extreme"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of load at each level
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
}

/// Measures and writes.
pub(crate) fn run(options: &Options) -> Outcome {
    repo::run(&mut repo::cargo("build --release --package ultra-perf-cli"))?;
    let seconds = options.seconds.to_string();
    let mut demo = repo::program(repo::target().join("release/ultra-perf"));
    demo.args(["demo", "--levels", "--json", "--seconds", &seconds]);
    let output = demo.stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot run the demonstration: {error}"))?;
    if !output.status.success() {
        return Err(format!("the demonstration failed, {}", output.status));
    }
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("the demonstration said no JSON: {error}"))?;
    let path = repo::root().join(PAGE);
    let told = |error: std::io::Error| format!("{PAGE}: {error}");
    let page = fs::read_to_string(&path).map_err(told)?;
    let command = format!("cargo xtask readme --seconds {seconds}");
    let page = with_table(&page, &table(&report, &bench::machine(&command))?)?;
    fs::write(&path, page).map_err(told)
}

/// The page with another table between its markers.
fn with_table(page: &str, table: &str) -> Result<String, String> {
    let missing = || format!("{PAGE} has no `{BEGIN}` before a `{END}`");
    let (before, rest) = page.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// What the demonstration measured, as Markdown.
fn table(report: &Value, machine: &str) -> Result<String, String> {
    let rows = report["rows"].as_array().ok_or("the demonstration measured nothing")?;
    let number = |row: &Value, field: &str| row[field].as_f64().unwrap_or(f64::NAN);
    let mut out = String::from(
        "| | requests/s | p50 | p99 | hit ratio | backend calls per 1,000 | memory |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut on = String::new();
    let mut below: Option<&str> = None;
    for row in rows {
        let name = row["level"].as_str();
        let memory = row["rss_bytes"].as_u64();
        let memory =
            memory.map_or_else(|| "-".to_owned(), |it| format!("{} MiB", it.div_ceil(1 << 20)));
        let shown = name.map_or_else(|| ROWS[0].to_owned(), |name| format!("`{name}`"));
        let _ = writeln!(
            out,
            "| {shown} | {:.0} | {:.2} ms | {:.1} ms | {:.1} % | {:.0} | {memory} |",
            number(row, "requests_per_second"),
            number(row, "p50_ms"),
            number(row, "p99_ms"),
            100.0 * number(row, "hit_ratio"),
            number(row, "backend_calls_per_1000"),
        );
        if let Some(name) = name {
            let differs = row["differs"].as_array().into_iter().flatten();
            let differs: Vec<_> =
                differs.filter_map(Value::as_str).map(|it| format!("`{it}`")).collect();
            let _ = writeln!(
                on,
                "- `{name}`, against `{}`: {}",
                below.unwrap_or("advanced"),
                differs.join(", ")
            );
            below = Some(name);
        }
    }
    let load = &report["load"];
    let _ = write!(
        out,
        "\nThe same load of {} clients each time, for {} s and from an empty cache: {} pages by Zipf {}, {} % \
         writes.\n\n{on}\n```text\n{}\n```\n",
        load["clients"],
        load["seconds"],
        load["pages"],
        load["zipf_exponent"],
        load["writes_percent"],
        machine.trim_end(),
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_keeps_what_is_around_its_table() {
        let page = format!("# a\n\n{BEGIN}\nold\n{END}\n\nb\n");
        let written = with_table(&page, "new\n").expect("markers");
        assert_eq!(written, format!("# a\n\n{BEGIN}\nnew\n{END}\n\nb\n"));
        assert!(with_table("# a\n", "new\n").is_err());
        assert!(with_table(&format!("{END}\n{BEGIN}\n"), "new\n").is_err());
    }

    #[test]
    fn a_report_is_a_table_of_all_rows_and_says_what_each_level_is() {
        let row = |level: Value, differs: &[&str]| {
            json!({
                "level": level, "requests_per_second": 1_234.5, "p50_ms": 0.41, "p99_ms": 38.25,
                "hit_ratio": 0.875, "backend_calls_per_1000": 125.2, "differs": differs,
                "rss_bytes": if level.is_null() { Value::Null } else { json!(31 << 20) },
            })
        };
        let report = json!({
            "load": { "clients": 16, "seconds": 20, "pages": 2_000, "zipf_exponent": 0.9, "writes_percent": 5 },
            "rows": [row(Value::Null, &[]), row(json!("basic"), &["a = 1"]), row(json!("advanced"), &["b = 2", "c = 3"])],
        });
        let table = table(&report, "a machine\n").expect("a table");
        for line in [
            "| no accelerator | 1234 | 0.41 ms | 38.2 ms | 87.5 % | 125 | - |",
            "| `basic` | 1234 | 0.41 ms | 38.2 ms | 87.5 % | 125 | 31 MiB |",
            "- `basic`, against `advanced`: `a = 1`",
            "- `advanced`, against `basic`: `b = 2`, `c = 3`",
            "a machine",
        ] {
            assert!(table.lines().any(|it| it == line), "{line} in\n{table}");
        }
    }
}
