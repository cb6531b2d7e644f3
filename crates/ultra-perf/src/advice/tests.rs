//! The rules as a whole, the page that lists them, and the way by which their actions are made.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use monitor::advice::{Category, Priority};
use monitor::advice::{GenericOptions, generic_rules};
use monitor::{History, HistoryOptions};
use serde_json::json;

use super::*;

#[cfg(feature = "cache")]
mod guard;
mod names;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/advice.md");

fn every() -> impl Iterator<Item = &'static Rule> {
    TABLES.iter().copied().flatten()
}

#[test]
fn every_rule_has_a_name_of_its_own_and_says_what_it_does() {
    let ids: BTreeSet<_> = every().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), every().count());
    let mut generic = generic_rules(&GenericOptions::default()).into_iter();
    assert!(generic.all(|rule| !ids.contains(rule.id())), "names are those of the monitor too");
    for rule in every() {
        assert!(rule.id.split_once('.').is_some(), "{}", rule.id);
        assert!(!rule.sees.is_empty() && rule.risk <= 2, "{}", rule.id);
        assert_eq!(rule.risk == 0, rule.does.starts_with("advice: "), "{}", rule.id);
    }
}

#[cfg(all(feature = "cache", feature = "memory"))]
#[test]
fn what_the_alert_rules_recommend_is_there() {
    let generic = generic_rules(&GenericOptions::default());
    let ids: BTreeSet<_> =
        every().map(|rule| rule.id).chain(generic.iter().map(|rule| rule.id())).collect();
    let alerts = monitor::alert::RuleSet::defaults();
    let mut recommended = 0;
    for alert in alerts.rules() {
        for name in &alert.recommend {
            assert!(ids.contains(&**name), "{} recommends {name}, which is no rule", alert.id);
            recommended += 1;
        }
    }
    assert!(recommended > 0);
}

#[cfg(all(feature = "cache", feature = "scheduler", feature = "memory", feature = "loadbalancer"))]
#[test]
fn the_page_about_advice_lists_the_rules() {
    let mut page =
        format!("{}\n| rule | sees | does | risk |\n|---|---|---|---|\n", HEAD.trim_start());
    for Rule { id, sees, does, risk, .. } in every() {
        let risk = if *risk == 0 { "-".to_owned() } else { risk.to_string() };
        _ = writeln!(page, "| `{id}` | {sees} | {does} | {risk} |");
    }
    let generic = generic_rules(&GenericOptions::default());
    let names: Vec<String> = generic.iter().map(|rule| format!("`{}`", rule.id())).collect();
    _ = writeln!(
        page,
        "\nThe rules of the [monitor](monitor.md) for any program stand beside them, as advice for people:\n{}.",
        names.join(", ")
    );
    page.push_str(FOOT);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(PAGE, &page).expect("the page can be written");
    }
    let kept = fs::read_to_string(PAGE).expect("the page is there");
    assert!(
        kept == page,
        "docs/src/advice.md is not what the rules say: run this test with UPDATE=1"
    );
}

const HEAD: &str = "
# Advice

<!-- Written by a test of crates/ultra-perf/src/advice/tests.rs, which runs with UPDATE=1. -->

Every five minutes (`advice.every`) rules look at what each part did in the last ten (`advice.window`), and
say what should be set otherwise: a sentence with the numbers, the metrics that it rests on, the change and
what undoes it, what it should bring as a number and as points of the score, how risky it is and how sure.
`ultra-perf recommend` and `GET /performance/recommendations` list it.

```text
cache.undersized:users   medium   risk 1   confidence 0.9
  Cache `users` is too small: 31 % of misses are for keys evicted not long ago at 64 MiB
  Raise `caches.users.capacity` from 64 MiB to 96 MiB; expected hit ratio 0.71 -> 0.83 (+6.0 points), +32 MiB
```

Applied, a change is on probation for another window. If what it is for became better, it is *verified*. If
that, the 95th percentile, the errors or the memory became worse by more than a tenth, it is undone; memory
that the change was known to take does not count. Of one part (what stands before the point of a rule's
name) and of one key one change is on probation at a time, so an effect has one cause.

Undone is the change itself, as by `undo` with its version: a key that nobody had changed before follows the
level and the keys for all caches again. A change that somebody else has undone, or whose key somebody has
changed since, is *lapsed*: it is neither judged nor undone, and does not apply itself again for a day. So is one
that was on probation when the process ended, for changes last until then; it opens again when it is found.

With `advice.auto_apply`, the default of the level `extreme`, a recommendation applies itself if it was found
three times in a row, its risk is 2 or less and its confidence 0.7 or more. What was undone, did nothing or
was refused does not apply itself again for a day. [Steering](steering.md) shows it.

An action sets a key that takes effect at once. Where it would need a restart, or the configuration refuses it,
the recommendation says so and is advice for people.

## The rules
";

const FOOT: &str = "
## Rules of your own

`monitor.add_advice_rule(\"name.of_rule\", |context| ..)` adds a closure that returns findings; with an `Action` they
are applied, guarded and undone like these. `ultra_perf::advice_rules(&perf)` returns the rules over a handle
for an `Advisor` of your own.
";

async fn handle() -> UltraPerf {
    let settings = [
        ("level", "advanced"),
        ("cache.disk.enabled", "false"),
        ("monitor.enabled", "false"),
        ("memory.enabled", "false"),
    ];
    let builder = UltraPerf::builder();
    let all = settings.into_iter().fold(builder, |to, (key, value)| to.set(key, value));
    all.build().await.expect("a handle")
}

#[tokio::test]
async fn advice_is_applied_as_a_change_like_any_other_and_refused_like_one() {
    let perf = handle().await;
    let weak = perf.downgrade();
    weak.apply("cache.ttl", &json!("10m")).expect("a live key");
    assert_eq!(perf.config().cache.ttl, Duration::from_secs(600));
    let applied = perf.changes().pop().expect("it is remembered");
    assert_eq!((applied.by.as_str(), applied.version), (BY, 1));
    let refused = weak.apply("cache.tll", &json!("10m")).expect_err("no such key");
    assert!(refused.0.contains("cache.tll"), "{refused}");
    assert_eq!(perf.version(), 1);
    perf.shutdown(Duration::ZERO).await;
    drop(perf);
    let gone = weak.apply("cache.ttl", &json!("10m")).expect_err("nobody is there");
    assert_eq!(gone.0, "the handle is gone");
}

#[tokio::test]
async fn what_cannot_be_done_at_once_is_left_to_people() {
    let perf = handle().await;
    let history = History::open(HistoryOptions::default()).expect("in memory");
    let config = perf.config();
    let look = Look {
        #[cfg(any(feature = "cache", feature = "scheduler", feature = "memory"))]
        perf: &perf,
        context: AdviceContext { source: &history, at_ms: 0, score: None },
        config: &config,
    };
    for (path, to, is_kept, words) in [
        ("cache.ttl", json!("10m"), true, "Do it"),
        ("cache.ttl", json!("soon"), false, "Do it (where the configuration allows it)"),
        ("cache.disk.capacity", json!("2GiB"), false, "Do it (that needs a restart)"),
    ] {
        let mut finding = Finding::advice(Category::Cache, Priority::Low, "x", "Do it");
        finding.action = Some(Action::set(path, Value::Null, to));
        look.keep_what_is_live(&mut finding);
        assert_eq!((finding.action.is_some(), finding.recommendation.as_str()), (is_kept, words));
    }
}

#[tokio::test]
async fn without_figures_nothing_is_said() {
    let perf = handle().await;
    let history = History::open(HistoryOptions::default()).expect("in memory");
    let context = AdviceContext { source: &history, at_ms: 0, score: None };
    let rules = rules(&perf);
    assert_eq!(rules.len(), every().count());
    for rule in &rules {
        assert_eq!(rule.check(&context), [], "{}", rule.id());
    }
    perf.shutdown(Duration::ZERO).await;
    drop(perf);
    assert!(rules.iter().all(|rule| rule.check(&context).is_empty()));
}
