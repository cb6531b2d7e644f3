//! A program that has a handle of its own: with the accelerator inside it, and steered without one.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use std::time::Duration;

use accelerator::{Accelerated, outcome, request};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::{Value, json};
use support::client::{Answer, RawClient};
use support::origin::{Origin, Reply};
use tower::ServiceExt as _;
use ultra_perf::monitor::advice::{
    Action, Actuator, ActuatorError, AdviceContext, AdviceRule, Category, Finding, Priority,
    Receipt, UndoError,
};
use ultra_perf::monitor::{MonitorBuilder, negotiate};
use ultra_perf::{UltraPerf, config::ConfigLoader};
use ultra_perf_http::{AdminServer, admin, layers};

/// A handle for an accelerator in front of an origin.
async fn handle(
    origin: &Origin,
    monitor: impl FnOnce(MonitorBuilder) -> MonitorBuilder + Send + 'static,
) -> UltraPerf {
    let keys = [("server.to", origin.url()), ("server.listen", "127.0.0.1:0".to_owned())];
    handle_with(&keys, monitor).await
}

async fn handle_with(
    keys: &[(&str, String)],
    monitor: impl FnOnce(MonitorBuilder) -> MonitorBuilder + Send + 'static,
) -> UltraPerf {
    let quiet = [
        ("server.admin", "127.0.0.1:0"),
        ("cache.disk.enabled", "false"),
        ("cache.ttl", "1h"),
        ("monitor.history.enabled", "false"),
    ]
    .map(|(key, value)| (key, value.to_owned()));
    let config = quiet
        .iter()
        .chain(keys)
        .fold(ConfigLoader::new(), |loader, (key, value)| loader.set(*key, value, "the test"))
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

/// Three recommendations: one to apply, one for people, one that is refused.
fn advising(monitor: MonitorBuilder) -> MonitorBuilder {
    let ttl = finding("users:eu/1", Some(Action::set("cache.ttl", "1h", "2h")));
    let refused = finding("all", Some(Action::set("cache.ttl", "1h", "never")));
    monitor
        .without_generic_advice()
        .advice_rule(Always("made.ttl", ttl))
        .advice_rule(Always("other.ttl", refused))
        .advice_rule(Always("people.act", finding("", None)))
}

/// An accelerator with three recommendations.
async fn advised(origin: &Origin) -> Accelerated {
    let proxy = Accelerated::on(&handle(origin, advising).await).await;
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

/// Makes a change of its own before each that advice makes.
struct Busy(UltraPerf);

impl Busy {
    fn change(&self, setting: (&str, Value), by: &str) -> Result<u64, ActuatorError> {
        let applied = self.0.apply([setting], by);
        applied.map(|it| it.version).map_err(|error| ActuatorError(error.to_string()))
    }

    fn own(&self) -> Result<u64, ActuatorError> {
        self.change(("balancer.choices", json!(self.0.version() + 2)), "bob")
    }
}

impl Actuator for Busy {
    fn apply(&self, path: &str, value: &Value) -> Result<Receipt, ActuatorError> {
        self.own()?;
        self.change((path, value.clone()), "advice").map(Receipt::new)
    }

    fn undo(&self, receipt: &Receipt) -> Result<(), UndoError> {
        self.own()?;
        let version = receipt.change().as_u64().expect("it is a version");
        let undone = self.0.undo(version, "advice");
        undone.map(drop).map_err(|error| ActuatorError(error.to_string()).into())
    }
}

#[tokio::test]
async fn what_is_told_of_a_recommendation_is_its_own_change_and_nobody_elses() {
    let origin = origin().await;
    let proxy = advised(&origin).await;
    proxy.perf().monitor().expect("it is watched").set_actuator(Busy(proxy.perf().clone()));
    for (action, version) in [("apply", 2), ("undo", 4)] {
        let path = format!("/recommendations/{ID}/{action}");
        let (status, answer) = proxy.admin("POST", &path, "{}").await;
        let told = (&answer["version"], &answer["by"], &answer["differences"][0]["key"]);
        assert_eq!(told, (&json!(version), &json!("advice"), &json!("cache.ttl")), "{answer}");
        assert_eq!((status, answer["differences"].as_array().map(Vec::len)), (200, Some(1)));
    }
    let (_, changes) = proxy.admin("GET", "/config/changes", "").await;
    assert_eq!(changes["total_changes"], json!(4));
}

/// A page of metrics among the routes of a service.
async fn metrics(State(perf): State<UltraPerf>, headers: HeaderMap) -> impl IntoResponse {
    let format = negotiate(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    ([(CONTENT_TYPE, format.content_type())], perf.render(format).to_vec())
}

/// A service of its own with layers around it, and the admin API of its handle.
struct Steered {
    perf: UltraPerf,
    admin: AdminServer,
    app: Router,
}

impl Steered {
    async fn start(keys: &[(&str, String)]) -> Self {
        let perf = handle_with(keys, advising).await;
        let admin = AdminServer::start(&perf).await.expect("a server without a backend");
        let app = Router::new()
            .route("/users/{id}", get(async || "Ada"))
            .layer(layers(&perf))
            .route("/metrics", get(metrics))
            .with_state(perf.clone());
        let steered = Self { perf, admin, app };
        support::until("three recommendations", async || {
            steered.ask("GET", "/recommendations", "").await.1["total_recommendations"] == json!(3)
        })
        .await;
        steered
    }

    /// Asks the admin API, with a body of JSON where there is one.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let kind = [("Content-Type", "application/json")];
        let target = format!("/performance{path}");
        let answer = self.raw(&request(method, &target, "localhost", &kind, body)).await;
        let json = serde_json::from_slice(&answer.body);
        (answer.status, json.unwrap_or_else(|_| panic!("JSON from {path}: {answer:?}")))
    }

    async fn raw(&self, text: &str) -> Answer {
        let mut client = RawClient::connect(self.admin.addr()).await;
        client.send(text).await;
        client.answer().await.expect("an answer")
    }
}

#[tokio::test]
async fn a_service_without_an_accelerator_is_steered_like_one() {
    let service = Steered::start(&[]).await;
    let ttl = || service.perf.config().cache.ttl;
    let (hour, two) = (Duration::from_secs(3_600), Duration::from_secs(7_200));

    let apply = format!("/recommendations/{ID}/apply");
    let (status, tried) = service.ask("POST", &format!("{apply}?dry_run=true"), "{}").await;
    assert_eq!((status, &tried["differences"][0]["to"], ttl()), (200, &json!("2h"), hour));
    let (status, applied) = service.ask("POST", &apply, r#"{"by": "ann"}"#).await;
    assert_eq!((status, &applied["version"], ttl()), (200, &json!(1), two), "{applied}");
    let undo = format!("/recommendations/{ID}/undo");
    let (status, undone) = service.ask("POST", &undo, "{}").await;
    assert_eq!((status, &undone["undone"], ttl()), (200, &json!("made.ttl:users:eu/1"), hour));
    let dismiss = "/recommendations/people.act/dismiss";
    assert_eq!(service.ask("POST", dismiss, r#"{"time": "24h"}"#).await.0, 200);
    let (_, open) = service.ask("GET", "/recommendations?state=open", "").await;
    assert_eq!(open["total_recommendations"], json!(1), "{open}");

    let body = r#"{"cache_ttl": 600}"#;
    let (status, tried) = service.ask("PUT", "/config?dry_run=true", body).await;
    assert_eq!((status, &tried["differences"][0]["to"], ttl()), (200, &json!("10m"), hour));
    let (status, set) = service.ask("PUT", "/config?by=ann", body).await;
    assert_eq!((status, &set["version"], &set["by"]), (200, &json!(3), &json!("ann")), "{set}");
    assert_eq!(ttl(), Duration::from_secs(600));
    assert_eq!(service.ask("POST", "/config/undo", r#"{"version": 3}"#).await.0, 200);
    let (_, changes) = service.ask("GET", "/config/changes", "").await;
    assert_eq!((&changes["total_changes"], ttl()), (&json!(4), hour), "{changes}");
    let (status, refused) = service.ask("PUT", "/config", r#"{"cache.tttl": 600}"#).await;
    assert_eq!((status, refused["problems"].as_array().map(Vec::len)), (422, Some(1)));
    service.admin.shutdown().await;
    assert_eq!(service.perf.version(), 4, "the handle goes on");
}

#[tokio::test]
async fn a_service_without_an_accelerator_shows_what_it_does() {
    let listen = [("server.metrics_listen", "127.0.0.1:0".to_owned())];
    let service = Steered::start(&listen).await;
    for _ in 0..2 {
        let asked = Request::get("/users/7").header("host", "shop").body(Body::empty());
        let answer = service.app.clone().oneshot(asked.expect("a request")).await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
    }
    let metrics_addr = service.admin.metrics_addr().expect("an address for metrics alone");
    support::until("the requests in the metrics", async || {
        let target = |path| request("GET", path, "localhost", &[], "");
        let admin = service.raw(&target("/performance/metrics")).await;
        let mut scraper = RawClient::connect(metrics_addr).await;
        let alone = scraper.get("/metrics").await;
        let told = |answer: &Answer| {
            answer.text().contains("http_requests_total") && answer.text().contains("/users/{id}")
        };
        told(&admin) && told(&alone)
    })
    .await;
    let asked = Request::get("/metrics").header("accept", "application/openmetrics-text");
    let page = service.app.clone().oneshot(asked.body(Body::empty()).expect("a request")).await;
    let page = page.expect("an answer");
    let kind = page.headers()[CONTENT_TYPE].to_str().expect("text").to_owned();
    let body = axum::body::to_bytes(page.into_body(), 1 << 20).await.expect("a page");
    assert!(
        kind.starts_with("application/openmetrics-text") && body.ends_with(b"# EOF\n"),
        "{kind}"
    );
    let (status, health) = service.ask("GET", "/health", "").await;
    assert_eq!((status, &health["optimizer_running"]), (200, &json!(true)), "{health}");
    for (path, field) in [
        ("/config", "settings"),
        ("/score", "parts"),
        ("/alerts", "alerts"),
        ("/memory/stats", "pressure"),
        ("/scheduler/stats", "lanes"),
        ("/metrics/history?hours=1", "points"),
    ] {
        let (status, answer) = service.ask("GET", path, "").await;
        assert!(status == 200 && !answer[field].is_null(), "{path}: {status} {answer}");
    }

    // What is about an accelerator says so, and the guard is before all of it.
    let (status, answer) = service.ask("GET", "/cache/stats", "").await;
    let detail = answer["detail"].as_str().expect("text");
    assert!(status == 404 && detail.contains("come with an accelerator"), "{answer}");
    for target in ["/performance/health", "/performance/nothing", "/nothing"] {
        let text = request("GET", target, "evil.example", &[], "");
        assert_eq!(service.raw(&text).await.status, 421, "{target}");
        let text = request("GET", target, "localhost", &[("Sec-Fetch-Site", "cross-site")], "");
        assert_eq!(service.raw(&text).await.status, 403, "{target}");
    }
}

#[tokio::test]
async fn the_admin_routes_leave_the_rest_of_a_router_alone() {
    let perf = handle_with(&[], |monitor| monitor).await;
    let app = Router::new()
        .route("/users/{id}", get(async || "Ada"))
        .fallback(async || (StatusCode::IM_A_TEAPOT, "nothing"))
        .merge(admin(&perf));
    let status = async |target: &str, host: Option<&str>| {
        let asked = Request::get(target);
        let asked = host.into_iter().fold(asked, |asked, host| asked.header("host", host));
        let asked = asked.body(Body::empty()).expect("a request");
        app.clone().oneshot(asked).await.expect("an answer").status().as_u16()
    };
    for (target, host, expected) in [
        ("/users/7", Some("shop.example"), 200),
        ("/nothing", Some("shop.example"), 418),
        ("/performance/config", Some("localhost"), 200),
        ("/performance/config", Some("shop.example"), 421),
        ("/performance/config", None, 421),
        ("/performance/nothing", Some("localhost"), 404),
        // As HTTP/2 names the host, and as a request to a proxy does.
        ("http://localhost/performance/config", None, 200),
        ("http://shop.example/performance/config", None, 421),
        ("http://shop.example/performance/config", Some("localhost"), 421),
    ] {
        assert_eq!(status(target, host).await, expected, "{target} {host:?}");
    }
    let taken = AdminServer::start(&perf).await.expect("a server");
    let again = [("server.admin", taken.addr().to_string())];
    let error = AdminServer::start(&handle_with(&again, |monitor| monitor).await).await;
    let error = error.expect_err("the address is taken").to_string();
    assert_eq!(error, format!("cannot listen on {} (server.admin)", taken.addr()));
}
