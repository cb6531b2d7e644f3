//! What is watched over real sockets: the default rules under load, the history, the score, and their API.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use accelerator::Accelerated;
use serde_json::{Value, json};
use support::origin::{Gate, Origin, Reply};
use ultra_perf::monitor::alert::DEFAULT_RULES;

/// The default rules with seconds for minutes, so that a test sees them fire and clear.
fn hurried_rules() -> String {
    let hurried = [
        ("every = \"10s\"", "every = \"1s\""),
        ("for = \"2m\"", "for = \"1s\""),
        ("window = \"5m\"", "window = \"4s\""),
        ("[5m]", "[4s]"),
    ];
    hurried.iter().fold(DEFAULT_RULES.to_owned(), |rules, (from, to)| {
        assert!(rules.contains(from), "{from} is not in the default rules");
        rules.replace(from, to)
    })
}

async fn origin(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |request| match request.path().split('?').next() {
        Some("/error") => Reply::status(500).body("oh"),
        Some("/slow") => Reply::ok("late").header("cache-control", "no-store").when(&gate),
        _ => Reply::ok("body").header("cache-control", "max-age=60"),
    })
    .await
}

/// The states of a rule's alerts, those that have ended too.
async fn states(proxy: &Accelerated, rule: &str) -> Vec<String> {
    let (status, answer) = proxy.admin("GET", "/alerts?hours=1", "").await;
    assert_eq!(status, 200, "{answer}");
    let alerts = answer["alerts"].as_array().expect("a list").iter();
    let states = alerts.filter(|alert| alert["type"] == rule).map(|alert| &alert["state"]);
    states.map(|state| state.as_str().expect("a word").to_owned()).collect()
}

/// Sends requests until an alert of a rule is in a state.
async fn load_until(proxy: &Accelerated, rule: &str, state: &str, path: impl Fn(usize) -> String) {
    let mut sent = 0;
    support::until(&format!("{rule} is {state}"), async || {
        for _ in 0..5 {
            proxy.get(&path(sent)).await;
            sent += 1;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        states(proxy, rule).await.iter().any(|now| now == state)
    })
    .await;
}

async fn hurried(origin: &Origin, directory: &std::path::Path) -> Accelerated {
    let rules = directory.join("rules.toml");
    std::fs::write(&rules, hurried_rules()).expect("a file of rules");
    let path = rules.to_str().expect("a path in UTF-8");
    Accelerated::with(&origin.url(), &[("monitor.rules", path), ("monitor.default_rules", "false")])
        .await
}

#[tokio::test]
async fn errors_and_misses_raise_their_default_alerts_and_clear_them() {
    let origin = origin(&Gate::new()).await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = hurried(&origin, directory.path()).await;
    load_until(&proxy, "error_ratio_high", "firing", |n| format!("/error?{n}")).await;
    load_until(&proxy, "cache_hit_ratio_low", "firing", |n| format!("/other?{n}")).await;
    load_until(&proxy, "error_ratio_high", "ended", |_| "/a".to_owned()).await;
    load_until(&proxy, "cache_hit_ratio_low", "ended", |_| "/a".to_owned()).await;
}

#[tokio::test]
async fn slow_answers_raise_their_default_alert_and_clear_it() {
    let gate = Gate::new();
    let origin = origin(&gate).await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = hurried(&origin, directory.path()).await;
    let slow = async { tokio::join!(proxy.get("/slow?1"), proxy.get("/slow?2")) };
    let open = async {
        tokio::time::sleep(std::time::Duration::from_millis(2_300)).await;
        gate.open();
    };
    tokio::join!(slow, open);
    support::until("latency_high is firing", async || {
        states(&proxy, "latency_high").await.iter().any(|state| state == "firing")
    })
    .await;
    load_until(&proxy, "latency_high", "ended", |_| "/a".to_owned()).await;
}

#[tokio::test]
async fn the_history_answers_with_the_main_figures_and_with_any_metric() {
    let origin = origin(&Gate::new()).await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/a").await;
    support::until("a second of history", async || {
        let target = "/metrics/history?hours=1&step=1s&metric=request_count&aggregate=last";
        let (status, answer) = proxy.admin("GET", target, "").await;
        assert_eq!(status, 200, "{answer}");
        let points = answer["result"]["series"][0]["points"].as_array().cloned();
        points.is_some_and(|points| points.contains(&json!(1.0)))
    })
    .await;
    let (status, answer) = proxy.admin("GET", "/metrics/history?hours=1", "").await;
    let last = answer["points"].as_array().and_then(|points| points.last()).expect("points");
    assert_eq!(status, 200);
    assert!(last["memory_percent"].as_f64() > Some(0.0), "{last}");
    for (query, problem) in [
        ("metric=a%7B", "expected"),
        ("metric=a&step=0s", "step is \"0s\""),
        ("metric=a&aggregate=p1000000", "aggregate is"),
        ("metric=a&format=xml", "json, csv or jsonl"),
        ("hours=0", "hours is 0"),
        ("hour=1", "unknown field"),
        ("metric=request_count&hours=17520&step=1s", "points"),
    ] {
        let target = format!("/metrics/history?{query}");
        let (status, answer) = proxy.admin("GET", &target, "").await;
        assert_eq!(status, 422, "{query}");
        let detail = answer["detail"].as_str().expect("a detail");
        assert!(detail.contains(problem), "{query}: {detail}");
    }
}

#[tokio::test]
async fn the_score_says_what_it_lacks_and_advice_is_a_list() {
    let origin = origin(&Gate::new()).await;
    let proxy = Accelerated::to(&origin).await;
    let (status, score) = proxy.admin("GET", "/score", "").await;
    assert_eq!((status, &score["score"]), (200, &Value::Null), "{score}");
    assert_eq!(score["parts"].as_array().map(Vec::len), Some(7));
    let (status, advice) = proxy.admin("GET", "/recommendations", "").await;
    assert_eq!((status, &advice["total_recommendations"]), (200, &json!(0)), "{advice}");
    let (status, baselines) = proxy.admin("GET", "/metrics/baselines", "").await;
    assert_eq!(status, 200);
    assert_eq!(baselines["baselines"].as_array().map(Vec::len), Some(4), "{baselines}");
}

#[tokio::test]
async fn silences_are_set_and_ended_and_bad_ones_refused() {
    let origin = origin(&Gate::new()).await;
    let proxy = Accelerated::to(&origin).await;
    let body = r#"{"matchers": "alertname=\"cpu_high\"", "time": "2h", "by": "ann"}"#;
    let (status, answer) = proxy.admin("POST", "/alerts/silence", body).await;
    assert_eq!((status, &answer["silence"]["author"]), (200, &json!("ann")), "{answer}");
    let (_, list) = proxy.admin("GET", "/alerts/silences", "").await;
    assert_eq!(list["total_silences"], 1, "{list}");
    let body = format!("{{\"id\": {}}}", answer["silence"]["id"]);
    let (status, _) = proxy.admin("POST", "/alerts/unsilence", &body).await;
    assert_eq!(status, 200);
    let (status, _) = proxy.admin("POST", "/alerts/unsilence", &body).await;
    assert_eq!(status, 404);
    for (path, body, expected) in [
        ("silence", r#"{"matchers": "a=b", "time": "2h"}"#, 422),
        ("silence", r#"{"matchers": "a=\"b\"", "time": "2 weeks"}"#, 422),
        ("silence", r#"{"matchers": "", "time": "2h"}"#, 422),
        ("acknowledge", r#"{"fingerprint": "nonsense"}"#, 422),
        ("acknowledge", r#"{"fingerprint": "00000000000000ff"}"#, 404),
        ("clear", "{}", 200),
        ("reload", "{}", 200),
    ] {
        let target = format!("/alerts/{path}");
        let (status, answer) = proxy.admin("POST", &target, body).await;
        assert_eq!(status, expected, "{path} {body}: {answer}");
    }
}

#[tokio::test]
async fn a_bad_rule_file_is_refused_with_every_problem_and_the_rules_before_it_stay() {
    let origin = origin(&Gate::new()).await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = hurried(&origin, directory.path()).await;
    let bad =
        "version = 1\n[[rule]]\nid = \"a\"\nmetrik = \"b\"\n[[rule]]\nid = \"c\"\nmetric = \"{\"\n";
    std::fs::write(directory.path().join("rules.toml"), bad).expect("a file of rules");
    let (status, answer) = proxy.admin("POST", "/alerts/reload", "{}").await;
    let detail = answer["detail"].as_str().expect("a detail");
    assert_eq!(status, 422, "{answer}");
    assert!(detail.contains("metrik") && detail.contains(":7:"), "{detail}");
    load_until(&proxy, "error_ratio_high", "firing", |n| format!("/error?{n}")).await;
}

#[tokio::test]
async fn where_nothing_is_watched_metrics_answer_and_the_rest_says_so() {
    let origin = origin(&Gate::new()).await;
    let proxy = Accelerated::with(&origin.url(), &[("monitor.enabled", "false")]).await;
    for path in ["alerts", "score", "recommendations", "metrics/history", "metrics/baselines"] {
        let (status, answer) = proxy.admin("GET", &format!("/{path}"), "").await;
        assert_eq!(status, 409, "{path}");
        assert!(
            answer["detail"].as_str().is_some_and(|it| it.contains("monitor.enabled")),
            "{answer}"
        );
    }
    let (status, health) = proxy.admin("GET", "/health", "").await;
    assert_eq!(status, 200);
    assert!(health["system_resources"]["memory_percent"].as_f64() > Some(0.0), "{health}");
}

#[tokio::test]
async fn a_recommendation_that_is_not_there_is_said_whatever_its_name() {
    let origin = origin(&Gate::new()).await;
    let proxy = Accelerated::to(&origin).await;
    for id in ["cache.undersized:users", "disk.full:%2Fvar%2Flib", "x%20y", "."] {
        for act in ["apply", "undo", "dismiss"] {
            let path = format!("/recommendations/{id}/{act}");
            let (status, answer) = proxy.admin("POST", &path, "{}").await;
            assert_eq!(status, 404, "{path}: {answer}");
            let detail = answer["detail"].as_str().expect("a detail");
            assert!(detail.starts_with("There is no recommendation \""), "{path}: {detail}");
            let (status, _) = proxy.admin("GET", &path, "").await;
            assert_eq!(status, 405, "no GET changes anything: {path}");
        }
        assert_eq!(proxy.admin("POST", &format!("/optimize/{id}"), "{}").await.0, 404, "{id}");
    }
    for (body, problem) in [
        (r#"{"until": "tomorrow"}"#, "RFC 3339"),
        (r#"{"time": "5"}"#, "duration with a unit"),
        (r#"{"time": "5h", "until": "2030-01-01T00:00:00Z"}"#, "either until or time"),
        (r#"{"who": "ann"}"#, "unknown field"),
    ] {
        let (status, answer) = proxy.admin("POST", "/recommendations/a.b/dismiss", body).await;
        let detail = answer["detail"].as_str().expect("a detail");
        assert!(status == 422 && detail.contains(problem), "{body}: {answer}");
    }
    let (status, answer) = proxy.admin("GET", "/recommendations?state=closed", "").await;
    let states =
        "must be one of open, applied, verified, no_effect, rolled_back, lapsed, dismissed";
    let detail = answer["detail"].as_str().expect("a detail");
    assert!(status == 422 && detail.contains(states), "{detail}");
}
