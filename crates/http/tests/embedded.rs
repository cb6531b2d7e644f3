//! The accelerator inside a program that has a handle of its own: shared parts, and advice acted on.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use std::time::Duration;

use accelerator::{Accelerated, outcome};
use serde_json::{Value, json};
use support::origin::{Origin, Reply};
use ultra_perf::monitor::MonitorBuilder;
use ultra_perf::monitor::advice::{Action, AdviceContext, AdviceRule, Category, Finding, Priority};
use ultra_perf::{UltraPerf, config::ConfigLoader};

async fn handle(
    origin: &Origin,
    monitor: impl FnOnce(MonitorBuilder) -> MonitorBuilder + Send + 'static,
) -> UltraPerf {
    let config = [
        ("server.to", origin.url().as_str()),
        ("server.listen", "127.0.0.1:0"),
        ("server.admin", "127.0.0.1:0"),
        ("cache.disk.enabled", "false"),
        ("cache.ttl", "1h"),
        ("monitor.history.enabled", "false"),
    ]
    .into_iter()
    .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(key, value, "the test"))
    .load()
    .expect("a configuration");
    UltraPerf::builder().config(config).monitor(monitor).build().await.expect("a handle")
}

async fn origin() -> Origin {
    Origin::start(|_| Reply::ok("body").header("cache-control", "max-age=60")).await
}

#[tokio::test]
async fn a_program_and_its_accelerator_share_the_parts_of_one_handle() {
    let origin = origin().await;
    let perf = handle(&origin, |monitor| monitor).await;
    let users = perf.memory_cache::<u64, String>("users").open().await.expect("a cache");
    let proxy = Accelerated::on(&perf).await;
    for expected in ["MISS", "HIT"] {
        assert_eq!(outcome(&proxy.get("/a").await), expected);
    }
    users.insert(7, "Ada".to_owned());
    let names: Vec<_> = perf.caches().iter().map(|cache| cache.name().to_owned()).collect();
    assert_eq!(names, ["responses", "users"]);
    support::until("the figures of both", async || {
        let metrics = proxy.admin_answer("GET", "/metrics", "").await;
        let both = ["cache=\"users\"", "cache=\"responses\"", "http_requests_total"];
        both.iter().all(|part| metrics.text().contains(part))
    })
    .await;

    let address = proxy.addr();
    assert_eq!(proxy.shutdown(Duration::from_secs(10)).await.aborted, 0);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody is accepted");
    assert_eq!(users.get(&7).await.as_deref(), Some("Ada"), "the program goes on");
    assert_eq!(perf.scheduler().io("sum", async { 1 + 1 }).submit().expect("a task").await, Ok(2));
    let again = Accelerated::on(&perf).await;
    assert_eq!(again.get("/b").await.status, 200);
    again.shutdown(Duration::from_secs(10)).await;
    let report = perf.shutdown(Duration::from_secs(10)).await;
    assert!(report.is_clean(), "{report}");
}

/// Says always the same.
struct Always(&'static str, Finding);

impl AdviceRule for Always {
    fn id(&self) -> &str {
        self.0
    }

    fn check(&self, _: &AdviceContext<'_>) -> Vec<Finding> {
        vec![self.1.clone()]
    }
}

fn finding(subject: &str, action: Option<Action>) -> Finding {
    let advice =
        Finding::advice(Category::Cache, Priority::High, "Half is missed", "Keep it longer");
    Finding {
        subject: subject.to_owned(),
        action,
        current_value: Some(0.5),
        target_value: Some(0.8),
        ..advice
    }
}

/// An accelerator with three recommendations: one to apply, one for people, one that is refused.
async fn advised(origin: &Origin) -> Accelerated {
    let ttl = finding("users:eu/1", Some(Action::set("cache.ttl", "1h", "2h")));
    let refused = finding("all", Some(Action::set("cache.ttl", "1h", "never")));
    let perf = handle(origin, |monitor| {
        monitor
            .without_generic_advice()
            .advice_rule(Always("made.ttl", ttl))
            .advice_rule(Always("other.ttl", refused))
            .advice_rule(Always("people.act", finding("", None)))
    })
    .await;
    let proxy = Accelerated::on(&perf).await;
    support::until("three recommendations", async || {
        let (_, answer) = proxy.admin("GET", "/recommendations", "").await;
        let list = answer["recommendations"].as_array().expect("a list");
        ["made.ttl:users:eu/1", "other.ttl:all", "people.act"]
            .iter()
            .all(|id| list.iter().any(|one| one["id"] == *id))
    })
    .await;
    proxy
}

async fn state(proxy: &Accelerated, id: &str) -> Value {
    let (status, answer) = proxy.admin("GET", &format!("/recommendations/{id}"), "").await;
    assert_eq!(status, 200, "{answer}");
    answer["recommendation"]["state"].clone()
}

const ID: &str = "made.ttl:users:eu%2F1";

#[tokio::test]
async fn a_recommendation_is_tried_applied_and_undone() {
    let origin = origin().await;
    let proxy = advised(&origin).await;
    let (_, answer) = proxy.admin("GET", "/recommendations?priority=high&state=open", "").await;
    let list = answer["recommendations"].as_array().expect("a list");
    let one = list.iter().find(|one| one["id"] == "made.ttl:users:eu/1").expect("it is there");
    for (field, value) in [
        ("category", json!("cache")),
        ("priority", json!("high")),
        ("recommendation", json!("Keep it longer")),
        ("current_value", json!(0.5)),
        ("target_value", json!(0.8)),
        ("title", json!("Half is missed")),
    ] {
        assert_eq!(one[field], value, "{field} in {one}");
    }

    let ttl = || proxy.perf().config().cache.ttl;
    let (hour, two) = (Duration::from_secs(3_600), Duration::from_secs(7_200));
    let path = format!("/recommendations/{ID}/apply");
    let (status, tried) = proxy.admin("POST", &format!("{path}?dry_run=true"), "{}").await;
    assert_eq!((status, &tried["differences"][0]["to"]), (200, &json!("2h")), "{tried}");
    assert_eq!((ttl(), state(&proxy, ID).await), (hour, json!("open")));

    let (status, applied) = proxy.admin("POST", &path, r#"{"by": "ann"}"#).await;
    assert_eq!((status, &applied["applied"]), (200, &json!("made.ttl:users:eu/1")), "{applied}");
    assert_eq!(
        (&applied["version"], &applied["differences"][0]["key"]),
        (&json!(1), &json!("cache.ttl"))
    );
    assert_eq!((ttl(), state(&proxy, ID).await), (two, json!("applied")));
    let (status, answer) = proxy.admin("POST", &path, "{}").await;
    let detail = answer["detail"].as_str().expect("text");
    assert!(status == 409 && detail.contains("is applied; it must be open"), "{detail}");
    let dismissed = proxy.admin("POST", &format!("/recommendations/{ID}/dismiss"), "{}").await;
    assert_eq!(dismissed.0, 409, "what is watched is not dismissed");

    let (status, undone) = proxy.admin("POST", &format!("/recommendations/{ID}/undo"), "{}").await;
    assert_eq!((status, &undone["undone"]), (200, &json!("made.ttl:users:eu/1")), "{undone}");
    assert_eq!((ttl(), state(&proxy, ID).await), (hour, json!("rolled_back")));
}

#[tokio::test]
async fn what_cannot_be_applied_says_why() {
    let origin = origin().await;
    let proxy = advised(&origin).await;
    for (id, status, why) in [
        ("people.act", 409, "for people to act on: Keep it longer"),
        ("other.ttl:all", 422, "cache.ttl"),
        ("made.ttl:users", 404, "made.ttl:users:eu/1"),
    ] {
        for path in [format!("/recommendations/{id}/apply"), format!("/optimize/{id}")] {
            let (found, answer) = proxy.admin("POST", &path, "{}").await;
            assert_eq!(found, status, "{path}: {answer}");
            assert!(answer.to_string().contains(why), "{path}: {answer}");
        }
        let tried = format!("/recommendations/{id}/apply?dry_run=true");
        assert_eq!(proxy.admin("POST", &tried, "{}").await.0, status, "{tried}");
    }
    let (_, changes) = proxy.admin("GET", "/config/changes", "").await;
    assert_eq!(changes["total_changes"], json!(0));
    assert_eq!(proxy.admin("POST", &format!("/optimize/{ID}"), "{}").await.0, 200);
}

#[tokio::test]
async fn a_dismissed_recommendation_tells_until_when_and_why() {
    let origin = origin().await;
    let proxy = advised(&origin).await;
    let body = r#"{"time": "24h", "reason": "not before the sale", "by": "ann"}"#;
    let path = format!("/recommendations/{ID}/dismiss");
    let (status, answer) = proxy.admin("POST", &path, body).await;
    let one = &answer["recommendation"];
    assert_eq!((status, &one["state"]), (200, &json!("dismissed")), "{answer}");
    assert_eq!((&one["reason"], &one["by"]), (&json!("not before the sale"), &json!("ann")));
    assert!(one["until_ms"].as_i64() > one["opened_ms"].as_i64(), "{one}");
    let (_, open) = proxy.admin("GET", "/recommendations?state=open", "").await;
    assert_eq!(open["total_recommendations"], json!(2));
}
