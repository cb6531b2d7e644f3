//! `ultra-perf score`, `recommend`, `apply` and `undo`: how well a running accelerator does, what it should
//! change, and changing it.
//!
//! All of them speak with the admin API. `apply` shows what would change, and changes it with `--yes`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::admin::{AdminArgs, AdminError, segment, text};
use crate::tell;

/// Who the accelerator notes as having changed something.
const BY: &str = "the command line";
/// More than an accelerator keeps.
const LIST_MAX: u32 = 10_000;
/// Columns of running text.
const WIDTH: usize = 100;

/// Options of `ultra-perf score`.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Prints the answer of the admin API
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Options of `ultra-perf recommend`.
#[derive(Debug, Args)]
pub(crate) struct RecommendArgs {
    /// Also those that were applied, verified, rolled back or dismissed
    #[arg(long)]
    all: bool,
    /// Prints the answer of the admin API
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Options of `ultra-perf apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A recommendation, or settings such as cache.ttl=10m; KEY=null takes back what was set before
    #[arg(required = true, value_name = "ID|KEY=VALUE")]
    what: Vec<String>,
    /// Makes the change; without it, only shows what it would be
    #[arg(long)]
    yes: bool,
    /// Prints the answer of the admin API
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Options of `ultra-perf undo`.
#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    /// A recommendation that was applied, or the number of a change
    #[arg(value_name = "ID|VERSION")]
    what: String,
    /// Prints the answer of the admin API
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Shows the score and where its points are lost.
pub(crate) fn score(args: &ScoreArgs) -> ExitCode {
    ended(args.json, args.admin.get("/score"), scored)
}

/// Shows recommendations.
pub(crate) fn recommend(args: &RecommendArgs) -> ExitCode {
    let state = if args.all { "" } else { "&state=open" };
    ended(args.json, args.admin.get(&format!("/recommendations?limit={LIST_MAX}{state}")), table)
}

/// Applies a recommendation or settings, or shows what that would change.
pub(crate) fn apply(args: &ApplyArgs) -> ExitCode {
    let mode = if args.yes { "false" } else { "true" };
    let done = match wanted(&args.what) {
        Ok(Wanted::Recommendation(id)) => {
            let path = format!("/recommendations/{}/apply?dry_run={mode}", segment(id));
            args.admin.post(&path, &json!({ "by": BY }))
        }
        Ok(Wanted::Settings(settings)) => {
            let path = format!("/config?dry_run={mode}&by={}", segment(BY));
            args.admin.put(&path, &Value::Object(settings))
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            return ExitCode::from(2);
        }
    };
    ended(args.json, done, |answer| {
        let mut shown = changes(answer);
        if !args.yes {
            shown.push_str("nothing was changed; --yes makes the change\n");
        }
        shown
    })
}

/// Undoes a recommendation or a change.
pub(crate) fn undo(args: &UndoArgs) -> ExitCode {
    let done = match args.what.parse::<u64>() {
        Ok(version) => args.admin.post("/config/undo", &json!({ "version": version, "by": BY })),
        Err(_) => {
            let path = format!("/recommendations/{}/undo", segment(&args.what));
            args.admin.post(&path, &json!({ "by": BY }))
        }
    };
    ended(args.json, done, changes)
}

fn ended(
    json: bool,
    done: Result<Value, AdminError>,
    show: impl FnOnce(&Value) -> String,
) -> ExitCode {
    match done {
        Ok(answer) if json => println!("{answer:#}"),
        Ok(answer) => print!("{}", show(&answer)),
        Err(error) => {
            tell(&error);
            return error.exit_code();
        }
    }
    ExitCode::SUCCESS
}

/// What `apply` is asked to do.
#[derive(Debug, PartialEq)]
enum Wanted<'a> {
    Recommendation(&'a str),
    Settings(serde_json::Map<String, Value>),
}

/// Reads the arguments of `apply`; what has a key before an equals sign is a setting.
fn wanted(what: &[String]) -> Result<Wanted<'_>, String> {
    let key = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let setting = |text: &'_ str| -> Option<(String, Value)> {
        let (name, value) = text.split_once('=').filter(|(name, _)| key(name))?;
        Some((name.to_owned(), value_of(value)))
    };
    let mut settings = serde_json::Map::new();
    for one in what {
        match setting(one) {
            Some((key, value)) => {
                if settings.insert(key.clone(), value).is_some() {
                    return Err(format!("{key} is given twice"));
                }
            }
            None if what.len() == 1 => return Ok(Wanted::Recommendation(one)),
            None => {
                return Err(format!(
                    "\"{one}\" is no setting: expected one recommendation alone, or settings as \
                     KEY=VALUE"
                ));
            }
        }
    }
    Ok(Wanted::Settings(settings))
}

/// Numbers, `true`, `false` and `null` as such, all else as text.
fn value_of(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// The score in a line, and a line for each part: what it gives of what it could.
fn scored(answer: &Value) -> String {
    let figure =
        |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |it| format!("{it:.1}"));
    let mut out = match answer["score"].as_f64() {
        Some(_) => {
            let band = text(&answer["band"]).replace('_', " ");
            format!("{} of 100, {band}", figure(&answer["score"]))
        }
        None => "no score yet: too little has been measured".to_owned(),
    };
    if answer["yesterday"].is_number() {
        let _ = write!(out, "; {} a day ago", figure(&answer["yesterday"]));
    }
    out.push('\n');
    let alerts = answer["capped_by"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !alerts.is_empty() {
        let alerts: Vec<_> = alerts.iter().map(text).collect();
        let _ = writeln!(out, "held below 50 by critical alerts: {}", alerts.join(", "));
    }
    let parts = answer["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let width = parts.iter().map(|one| text(&one["part"]).len()).max().unwrap_or(0).max(4);
    let _ = writeln!(out, "{:width$}  points     of   lost", "part");
    for one in parts {
        let name = text(&one["part"]);
        let line = match one["state"].as_str() {
            Some("scored") => {
                let [points, most, lost] =
                    ["points", "points_max", "lost"].map(|it| figure(&one[it]));
                format!("{name:width$}  {points:>6} {most:>6} {lost:>6}")
            }
            _ => {
                format!("{name:width$}  {:>6} {:>6} {:>6}  {}", "-", "-", "-", text(&one["state"]))
            }
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// The recommendations: a line of figures for each, and under it what it says.
fn table(answer: &Value) -> String {
    let list = answer["recommendations"].as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return "nothing to recommend\n".to_owned();
    }
    let width = list.iter().map(|one| text(&one["id"]).chars().count()).max().unwrap_or(0).max(2);
    let mut out = format!("{:width$}  priority  points  risk  state\n", "id");
    for one in list {
        let points = one["expected"]["points"].as_f64();
        let points = points.map_or_else(|| "-".to_owned(), |points| format!("{points:+.1}"));
        let (id, state) = (text(&one["id"]), text(&one["state"]));
        let (priority, risk) = (text(&one["priority"]), text(&one["risk"]));
        let _ = writeln!(out, "{id:width$}  {priority:8}  {points:>6}  {risk:>4}  {state}");
        let action = match &one["action"] {
            Value::Null => "by people".to_owned(),
            action => format!(
                "{}: {} -> {}",
                text(&action["path"]),
                text(&action["from"]),
                text(&action["to"])
            ),
        };
        for (label, words) in [
            ("what", text(&one["title"])),
            ("do", text(&one["recommendation"])),
            ("why", text(&one["why"])),
            ("action", action),
        ] {
            if !words.is_empty() {
                paragraph(&mut out, label, &words);
            }
        }
    }
    out
}

/// Writes words under each other beside their label.
fn paragraph(out: &mut String, label: &str, words: &str) {
    let mut line = format!("  {label:7}");
    let mut used = line.len();
    for word in words.split_whitespace() {
        if used + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(9);
            used = line.len();
        }
        line.push(' ');
        line.push_str(word);
        used += 1 + word.chars().count();
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// What changed, or would: key by key, and by which number it can be undone.
fn changes(answer: &Value) -> String {
    let mut out = String::new();
    let differences = answer["differences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let width = differences.iter().map(|one| text(&one["key"]).len()).max().unwrap_or(0);
    for one in differences {
        let effect = match one["effect"].as_str() {
            Some("restart") => "  (with the next start)",
            _ => "",
        };
        let (key, from, to) = (text(&one["key"]), text(&one["from"]), text(&one["to"]));
        let _ = writeln!(out, "{key:width$}  {from} -> {to}{effect}");
    }
    if differences.is_empty() {
        out.push_str("no setting changes by that\n");
    }
    if let Some(version) = answer["version"].as_u64()
        && answer["dry_run"] != json!(true)
    {
        let _ = writeln!(out, "changed; `ultra-perf undo {version}` takes it back");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: &[&str], expected: Result<Value, &str>) {
        let what: Vec<_> = what.iter().map(|&it| it.to_owned()).collect();
        let found = wanted(&what).map(|wanted| match wanted {
            Wanted::Recommendation(id) => json!(id),
            Wanted::Settings(settings) => Value::Object(settings),
        });
        assert_eq!(found, expected.map_err(str::to_owned), "{what:?}");
    }

    #[test]
    fn settings_are_told_from_recommendations_by_their_equals_sign() {
        check(&["cache.undersized:users"], Ok(json!("cache.undersized:users")));
        check(&["lb.uneven:http://a?b=c"], Ok(json!("lb.uneven:http://a?b=c")));
        check(
            &["cache.ttl=10m", "balancer.choices=3", "cache_ttl=null", "server.to=http://a?b=c"],
            Ok(json!({
                "cache.ttl": "10m",
                "balancer.choices": 3,
                "cache_ttl": null,
                "server.to": "http://a?b=c",
            })),
        );
        check(&["a=true", "b=[1]", "c="], Ok(json!({ "a": true, "b": "[1]", "c": "" })));
        check(&["a=1", "a=2"], Err("a is given twice"));
        let alone =
            "\"x.y\" is no setting: expected one recommendation alone, or settings as KEY=VALUE";
        check(&["a=1", "x.y"], Err(alone));
        check(&["x.y", "a=1"], Err(alone));
    }

    #[test]
    fn a_recommendation_is_a_line_of_figures_and_its_words() {
        let answer = json!({ "recommendations": [
            {
                "id": "cache.undersized:users", "priority": "high", "state": "open", "risk": 1,
                "title": "Cache `users`: 31 % of misses are for keys evicted less than 60 s ago",
                "recommendation": "Raise its capacity", "why": "",
                "action": { "kind": "config.set", "path": "caches.users.entries", "from": 1000, "to": 1500 },
                "expected": { "metric": "hit ratio", "from": 0.7, "to": 0.8, "points": 6.04 },
            },
            { "id": "disk.full", "priority": "low", "state": "open", "risk": 0, "title": "Full",
              "recommendation": "word ".repeat(30), "why": "", "action": null, "expected": null },
        ]});
        let shown = table(&answer);
        let expected = "\
id                      priority  points  risk  state
cache.undersized:users  high        +6.0     1  open
  what    Cache `users`: 31 % of misses are for keys evicted less than 60 s ago
  do      Raise its capacity
  action  caches.users.entries: 1000 -> 1500
disk.full               low            -     0  open
  what    Full
";
        assert!(shown.starts_with(expected), "{shown}");
        assert!(shown.ends_with("  action  by people\n"), "{shown}");
        assert!(shown.lines().all(|line| line.len() <= WIDTH), "{shown}");
        assert_eq!(shown.matches("word").count(), 30);
        assert_eq!(table(&json!({ "recommendations": [] })), "nothing to recommend\n");
    }

    #[test]
    fn a_score_says_where_its_points_are_lost() {
        let part = |part: &str, state: &str, points: Option<f64>, lost: f64| {
            let most = points.map_or(0.0, |points| points + lost);
            json!({ "part": part, "state": state, "points": points, "points_max": most, "lost": lost })
        };
        let parts = [
            part("latency", "scored", Some(20.04), 5.0),
            part("saturation", "collecting", None, 0.0),
            part("cache", "absent", None, 0.0),
        ];
        let mut answer = json!({
            "score": 71.25, "band": "needs_work", "yesterday": 68.0, "capped_by": [], "parts": parts,
        });
        let table = "\
part        points     of   lost
latency       20.0   25.0    5.0
saturation       -      -      -  collecting
cache            -      -      -  absent
";
        assert_eq!(scored(&answer), format!("71.2 of 100, needs work; 68.0 a day ago\n{table}"));
        answer["capped_by"] = json!(["cpu_high", "disk\u{1b}[2J"]);
        let held = "held below 50 by critical alerts: cpu_high, disk [2J\n";
        assert!(scored(&answer).contains(held), "{}", scored(&answer));
        let none = json!({ "score": null, "band": null, "yesterday": null, "capped_by": [] });
        let expected = "no score yet: too little has been measured\npart  points     of   lost\n";
        assert_eq!(scored(&none), expected);
    }

    #[test]
    fn a_change_says_what_is_live_and_how_to_take_it_back() {
        let answer = json!({ "version": 3, "differences": [
            { "key": "cache.ttl", "from": "1h", "to": "10m", "effect": "live" },
            { "key": "server.listen", "from": "a", "to": "b", "effect": "restart" },
        ]});
        let expected = "\
cache.ttl      1h -> 10m
server.listen  a -> b  (with the next start)
changed; `ultra-perf undo 3` takes it back
";
        assert_eq!(changes(&answer), expected);
        let dry = json!({ "version": 2, "dry_run": true, "differences": [] });
        assert_eq!(changes(&dry), "no setting changes by that\n");
    }
}
