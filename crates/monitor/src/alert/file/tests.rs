//! What a rule file may say, how its mistakes are told, and that no text makes it panic.

use super::*;
use crate::Moment;
use crate::alert::{Engine, EngineOptions, MadeUp};
use proptest::prelude::*;

/// Every feature of the format once.
const ALL: &str = r#"
version = 1

[defaults]
every = "10s"
cooldown = "4m"
flap = { changes = 5, within = "20m", hold = "10m" }
handlers = ["log", "dashboard"]
repeat.critical = "1h"
notify = { up = "0s", down = "1m", multiplier = 1.5, max = "10m" }
labels = { env = "test" }

[[rule]]
id = "cache_hit_low"
metric = 'cache_hit_ratio{tier="l1"}'
agg = "avg"
window = "5m"
by = ["cache"]
level.warning  = { raise = "< 0.70", clear = ">= 0.75", for = "5m" }
level.critical = { raise = "< 0.40", clear = ">= 0.50", for = "2m" }
keep_firing_for = "2m"
only_if = 'rate(cache_requests_total[5m]) > 10'
on_missing = "keep"
labels = { team = "platform" }
summary = "{{labels.cache}}: L1 hit ratio {{value|pct}} (wanted {{threshold|pct}}) for {{active_for}}"
description = "of {{labels.team}}"
runbook = "docs/runbooks/cache_hit_low.md"
recommend = ["cache.undersized", "cache.ttl_too_short"]

[[rule]]
id = "error_ratio"
ratio = { num = 'rate(http_requests_total{status=~"5.."}[5m])', den = 'rate(http_requests_total[5m])', min_den = 1.0 }
level.error = { raise = "> 0.05", clear = "< 0.03", for = "2m" }
inhibited_by = ["cache_hit_low"]
handlers = ["am"]
cooldown = "1m"
flap = false
limit = 7

[[rule]]
id = "slo_burn"
burn = { slo = 0.999, bad = 'errors', total = 'requests', pairs = [["1h","5m",14.4], ["6h","30m",6.0]] }
level.critical = {}

[[rule]]
id = "latency_odd"
anomaly = { metric = 'http_request_duration_seconds', agg = "p95", step = "10s", z = 3.0, of = "60% of 2m", baseline = ["1h", "week"], min_change = "20%" }
level.info = { for = "2m" }
enabled = false

[[rule]]
id = "rss_will_hit_limit"
forecast = { metric = 'process_resident_memory_bytes', window = "6h", limit = 'memory_limit_bytes * 0.9', within = "24h" }
level.warning = { for = "10m" }

[[rule]]
id = "short"
metric = "rate(errors_total[1m])"
level.error = "> 80%"

[[handler]]
id = "am"
type = "alertmanager"
url = "http://127.0.0.1:9093"
min_severity = "warning"
resend = "30s"

[[handler]]
id = "hook"
type = "webhook"
url = "https://example.org/hook"
headers = { X-Team = "platform" }
token = "sesame"
hmac_file = "/run/secrets/hook"
match = 'team="platform"'
group_by = ["alertname"]
send_resolved = false

[[handler]]
id = "file"
type = "jsonl"
path = "alerts.jsonl"
max_bytes = "1MiB"

[[inhibit]]
source = 'severity="critical"'
target = 'severity=~"info|warning"'
equal = ["cache"]
"#;

fn rule<'a>(set: &'a RuleSet, id: &str) -> &'a Rule {
    set.rules().iter().find(|rule| &*rule.id == id).expect("the rule")
}

/// Reads a file that is wrong, and compares what is said, line by line.
#[track_caller]
fn problems(text: &str, expected: &[&str]) {
    let errors = RuleSet::parse(text, "a.toml").expect_err("a wrong file");
    let said: Vec<String> = errors.problems().iter().map(ToString::to_string).collect();
    assert_eq!(said, expected);
}

#[test]
fn everything_the_format_has_is_read() {
    let set = RuleSet::parse(ALL, "a.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let hit = rule(&set, "cache_hit_low");
    assert_eq!(hit.levels.len(), 2);
    assert_eq!(hit.cooldown, Duration::from_secs(240));
    assert_eq!(hit.repeat[3], Some(Duration::from_secs(3_600)));
    assert_eq!(hit.labels, Labels::new([("env", "test"), ("team", "platform")]));
    assert_eq!(hit.flap.map(|flap| flap.changes), Some(5));
    let Signal::Metric(query) = &hit.signal else { panic!("a metric") };
    assert_eq!(query.to_string(), "avg(cache_hit_ratio{tier=\"l1\"}[5m])");
    assert_eq!((rule(&set, "error_ratio").flap, rule(&set, "error_ratio").limit), (None, 7));
    let Signal::Burn { pairs, .. } = &rule(&set, "slo_burn").signal else { panic!("a burn") };
    assert_eq!(pairs.len(), 2);
    let Signal::Anomaly { options, .. } = &rule(&set, "latency_odd").signal else { panic!() };
    assert!(options.weekly && options.short == Duration::from_secs(3_600));
    assert!(!rule(&set, "latency_odd").enabled);
    assert_eq!(rule(&set, "rss_will_hit_limit").every, Duration::from_secs(60));
    assert_eq!(
        rule(&set, "short").levels[0].raise.as_ref().map(ToString::to_string),
        Some("> 0.8".into())
    );
    assert_eq!(set.handlers().len(), 5);
    assert!(!format!("{:?}", set.handlers()).contains("sesame"), "a secret is shown");
    let routes = set.routes();
    let of = |id: &str| routes[id].iter().map(|id| &**id).collect::<Vec<_>>();
    // Who is named nowhere gets everything that its filters pass.
    assert_eq!(of("error_ratio"), ["am", "hook", "file"]);
    assert_eq!(of("short"), ["log", "dashboard", "hook", "file"]);
}

#[test]
fn what_a_rule_means_decides_about_its_hash_and_words_do_not() {
    let set = RuleSet::parse(ALL, "a.toml").expect("rules");
    for (from, to, same) in [
        ("wanted", "hoped", true),
        ("cooldown = \"4m\"", "cooldown = \"9m\"", true),
        ("platform\" }\nsummary", "other\" }\nsummary", true),
        ("< 0.70", "< 0.71", false),
        ("for = \"5m\" }", "for = \"6m\" }", false),
        ("tier=\"l1\"", "tier=\"l2\"", false),
        ("by = [\"cache\"]", "by = [\"cache\", \"tier\"]", false),
        ("> 10'", "> 11'", false),
    ] {
        let text = ALL.replacen(from, to, 1);
        assert_ne!(text, ALL, "{from}");
        let other = RuleSet::parse(&text, "a.toml").expect("rules");
        let hashes = [&set, &other].map(|set| rule(set, "cache_hit_low").hash());
        assert_eq!(hashes[0] == hashes[1], same, "{from} -> {to}");
    }
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_would_be_right() {
    problems(
        "version = 2\n[[rule]]\nid = 'a'\nmetrik = 'm'\nmetric = 'm{x}'\nlevel.warning = { raise = '>> 1', fro = '5m' }\n\
         only_if = 'rate(x[5m])'\nsummary = '{{vale}}'\n  window = 5\nby = 'x'\n[[hanlder]]\n",
        &[
            "a.toml:1:11: version = 2: expected version 1",
            "a.toml:4:1: rule a: metrik: unknown key, did you mean metric?",
            "a.toml:5:10: rule a: metric = 'm{x}': expected =, !=, =~ or !~, found `}` (at character 4)",
            "a.toml:6:27: rule a: level.warning.raise = '>> 1': expected a number such as 0.8, \"80%\", \"2s\" or \"512MiB\"",
            "a.toml:6:35: rule a: level.warning.fro: unknown key, did you mean for?",
            "a.toml:7:11: rule a: only_if = 'rate(x[5m])': expected a comparison, such as rate(x[5m]) > 10",
            "a.toml:8:11: rule a: summary = '{{vale}}': {{vale}} is no field, did you mean value?: expected value, threshold, active_for, starts_at, severity, rule or labels.<name>",
            "a.toml:9:12: rule a: window = 5: expected a duration in quotes, such as \"5m\"",
            "a.toml:10:6: rule a: by = 'x': expected a list of texts",
            "a.toml:11:3: hanlder: unknown key, did you mean handler?",
        ],
    );
}

#[test]
fn what_does_not_go_together_is_told_too() {
    problems(
        "[defaults]\nhandlers = ['lgo']\n\
         [[rule]]\nid = 'a'\nmetric = 'm'\nlevel.warning = { raise = '> 5', clear = '< 7' }\nsummary = '{{labels.x}}'\n\
         [[rule]]\nid = 'a'\nmetric = 'm'\n\
         [[rule]]\nid = 'b'\nmetric = 'm'\nratio = {}\nlevel.info = '> 1'\n\
         [[rule]]\nid = 'c'\nburn = { slo = 1.5, bad = 'b', total = 't' }\nlevel.info = '> 1'\ninhibited_by = ['bb']\n\
         [[rule]]\nid = 'd'\nmetric = 'rate(m[1m])'\nagg = 'avg'\nlevel.info = '> 1'\nlimit = 0\nevery = '10ms'\n\
         [[handler]]\nid = 'h'\ntype = 'webhook'\nurl = 'ftp://x'\ntoken = 'a'\ntoken_file = 'b'\npath = 'c'\n",
        &[
            "a.toml:1:1: defaults.handlers = lgo: no such handler, did you mean log?",
            "a.toml:6:42: rule a: level.warning.clear = \"< 7\": expected < or <= and at most the number of raise",
            "a.toml:7:11: rule a: summary = {{labels.x}}: expected a label of `by` or `labels`",
            "a.toml:8:1: rule a: level = nothing: expected at least one of level.info, .warning, .error and .critical",
            "a.toml:9:6: rule a: id = a: expected a name that no other rule has",
            "a.toml:11:1: rule b: metric = metric, ratio: expected one of metric, ratio, burn, anomaly, forecast",
            "a.toml:18:16: rule c: burn.slo = 1.5: expected 0 to less than 1, such as 0.999",
            "a.toml:19:14: rule c: level.info.raise = \"> 1\": expected none, as the signal is met or not by itself",
            "a.toml:20:16: rule c: inhibited_by = bb: no such rule, did you mean b?",
            "a.toml:24:7: rule d: agg = 'avg': is already in the query of metric",
            "a.toml:26:9: rule d: limit = 0: expected 1 to 10000 instances",
            "a.toml:27:9: rule d: every = 10ms: expected 1s to 1d",
            "a.toml:31:7: url: expected an address with http:// or https://",
            "a.toml:33:14: token_file = 'b': expected either token or token_file",
            "a.toml:34:1: path: unknown key: expected id, type, min_severity, send_resolved, match, group_by, group_wait, group_interval, timeout, retries, queue, url, headers, token, token_file, hmac, hmac_file",
        ],
    );
}

#[test]
fn a_text_that_is_no_toml_is_told_with_its_place() {
    let errors = RuleSet::parse("[[rule]]\nid = \n\n[x", "a.toml").expect_err("no TOML");
    let said = errors.to_string();
    assert!(said.starts_with("invalid rules, 2 problems:\n  a.toml:2:"), "{said}");
    assert!(said.contains("not valid TOML") && said.contains("a.toml:4:"), "{said}");
}

#[test]
fn the_short_form_and_the_file_make_the_same_checks() {
    let rule = Rule::short("a", "rate(m[5m])", 10.0, Severity::Error, "{{value}}").expect("a rule");
    assert_eq!(rule.levels[0].clear.as_ref().map(ToString::to_string), Some("<= 9.5".into()));
    let errors = Rule::short("a b", "m{", 10.0, Severity::Error, "{{x").expect_err("wrong");
    assert_eq!(errors.problems().len(), 2, "{errors}");
    let errors = Rule::short("a b", "m", f64::NAN, Severity::Error, "").expect_err("wrong");
    let errors = errors.to_string();
    assert!(errors.contains("rule a b: id"), "{errors}");
    assert!(errors.contains("level.error.raise = NaN: expected a finite number"), "{errors}");
}

#[test]
fn a_set_laid_over_another_replaces_rules_of_the_same_name() {
    let text = "[[rule]]\nid = 'cpu_high'\nmetric = 'other'\nlevel.info = '> 1'\n\
                [[rule]]\nid = 'new'\nmetric = 'm'\nlevel.info = '> 1'\n";
    let over = RuleSet::parse(text, "a.toml").expect("rules");
    let set = RuleSet::defaults().overlaid(&over);
    assert_eq!(set.rules().len(), RuleSet::defaults().rules().len() + 1);
    assert_eq!(rule(&set, "cpu_high").levels[0].severity, Severity::Info);
    assert!(set.with(Rule::new("empty", rule(&set, "new").signal.clone())).is_err());
    assert_eq!(set.without("new").rules().len(), set.rules().len() - 1);
}

/// A file that reads must also evaluate.
fn evaluate(text: &str) {
    let Ok(set) = RuleSet::parse(text, "a.toml") else { return };
    let mut source = MadeUp::new().step_ms(10_000);
    for name in ["m", "errors", "requests", "cache_hit_ratio", "cache_requests_total"] {
        let samples = (0..60).map(|at| (at * 10_000, (at % 7) as f64));
        source.gauge(name, &[("tier", "l1"), ("cache", "a")], samples);
    }
    let mut engine = Engine::new(set, EngineOptions::default());
    for at in 0..10 {
        let monotonic = Duration::from_secs(at * 60);
        let now = Moment { monotonic, unix_ms: at as i64 * 60_000 };
        let outcome = engine.evaluate(now, &source);
        assert!(outcome.events.iter().all(|event| !event.key.is_empty()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = RuleSet::parse(&text, "a.toml");
        for small in [text.as_str(), text.trim()] {
            let _ = (duration(small), quantity(small), Condition::parse(small), Template::parse(small));
            let _ = (Gate::parse(small, Duration::ZERO), crate::alert::expand(small));
        }
    }

    #[test]
    fn no_damage_to_a_file_panics(at in 0..ALL.len(), cut in 0_usize..40, put in "[\\PC\n]{0,12}") {
        let start = (0..=at).rev().find(|&at| ALL.is_char_boundary(at)).unwrap_or(0);
        let end = (start + cut).min(ALL.len());
        let end = (end..=ALL.len()).find(|&at| ALL.is_char_boundary(at)).unwrap_or(ALL.len());
        evaluate(&format!("{}{put}{}", &ALL[..start], &ALL[end..]));
    }

    #[test]
    fn no_values_of_known_keys_panic(
        keys in proptest::collection::vec((0..RULE_KEYS.len(), 0_usize..16), 0..8),
    ) {
        const VALUES: [&str; 16] = [
            "''", "'m'", "'10s'", "'> 1'", "0", "-1", "1e300", "nan", "true", "[]", "['a']", "{}",
            "{ a = 'b' }", "{ warning = '> 1' }", "'rate(m[5m])'",
            "{ metric = 'm', limit = 1, num = 'm', den = 'm', slo = 0.5, bad = 'm', total = 'm' }",
        ];
        let mut text = "[[rule]]\n".to_owned();
        let mut seen = Vec::new();
        for (key, value) in keys {
            if !seen.contains(&key) {
                seen.push(key);
                text += &format!("{} = {}\n", RULE_KEYS[key], VALUES[value]);
            }
        }
        evaluate(&text);
    }
}
