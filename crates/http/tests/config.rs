//! The configuration over the admin API: shown, changed while the accelerator runs, and put back.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use accelerator::{Accelerated, outcome};
use serde_json::{Value, json};
use support::origin::{Origin, Reply};

async fn origin() -> Origin {
    // Stale as soon as it comes.
    Origin::start(|_| Reply::ok("body").header("cache-control", "max-age=60").header("age", "61"))
        .await
}

/// The row of a key.
async fn setting(proxy: &Accelerated, key: &str) -> Value {
    let (status, answer) = proxy.admin("GET", "/config", "").await;
    assert_eq!(status, 200, "{answer}");
    let rows = answer["settings"].as_array().expect("a list");
    rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key}: {answer}")).clone()
}

/// Makes a change and returns its version.
async fn put(proxy: &Accelerated, body: &Value) -> u64 {
    let (status, answer) = proxy.admin("PUT", "/config?by=ann", &body.to_string()).await;
    assert_eq!((status, &answer["by"]), (200, &json!("ann")), "{answer}");
    answer["version"].as_u64().expect("a version")
}

#[tokio::test]
async fn a_change_has_a_version_its_differences_and_a_way_back() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("cache.ttl", "1h")]).await;
    let row = setting(&proxy, "cache.ttl").await;
    assert_eq!(
        (&row["value"], &row["origin"], &row["effect"]),
        (&json!("1h"), &json!("the test"), &json!("live"))
    );

    // By an alias, flat and nested at once; a try changes nothing.
    let body = json!({ "cache_ttl": 600, "balancer": { "policy": "round-robin" }, "server": { "listen": "127.0.0.1:1" } });
    let (status, tried) = proxy.admin("PUT", "/config?dry_run=true", &body.to_string()).await;
    assert_eq!((status, &tried["version"], &tried["dry_run"]), (200, &json!(0), &json!(true)));
    assert_eq!(setting(&proxy, "cache.ttl").await["value"], "1h");

    let version = put(&proxy, &body).await;
    let (_, record) = proxy.admin("GET", "/config/changes", "").await;
    assert_eq!((&record["version"], &record["total_changes"]), (&json!(version), &json!(1)));
    let change = &record["changes"][0];
    let told = change["differences"].as_array().expect("a list");
    let told: Vec<_> = told.iter().map(|it| [&it["key"], &it["to"], &it["effect"]]).collect();
    for expected in [
        ["cache.ttl", "10m", "live"],
        ["balancer.policy", "round-robin", "live"],
        ["server.listen", "127.0.0.1:1", "restart"],
    ] {
        let expected = expected.map(|it| json!(it));
        assert!(told.contains(&expected.each_ref()), "{expected:?} in {told:?}");
    }
    assert_eq!(tried["differences"], change["differences"]);
    assert!(change["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{change}");
    let row = setting(&proxy, "cache.ttl").await;
    assert!(
        row["value"] == "10m" && row["origin"].as_str().expect("text").contains("ann"),
        "{row}"
    );

    // What a later change has set is not put back under it.
    let later = put(&proxy, &json!({ "cache.ttl": "20m" })).await;
    let undo = |version: u64| {
        let (proxy, body) = (&proxy, json!({ "version": version, "by": "bob" }).to_string());
        async move { proxy.admin("POST", "/config/undo", &body).await }
    };
    let (status, answer) = undo(version).await;
    assert!(
        status == 409 && answer["detail"].as_str().expect("text").contains("cache.ttl"),
        "{answer}"
    );
    assert_eq!(undo(later).await.0, 200);
    let (status, undone) = undo(later + 7).await;
    assert_eq!(status, 404, "{undone}");
    assert_eq!(setting(&proxy, "cache.ttl").await["value"], "10m");
    let (_, record) = proxy.admin("GET", "/config/changes?limit=1", "").await;
    assert_eq!(record["changes"][0]["undoes"], json!(later));
}

#[tokio::test]
async fn every_problem_of_a_change_is_told_at_once_and_nothing_is_changed() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    let body =
        json!({ "cache.ttl": "soon", "cache": { "polizy": "lru" }, "balancer.choices": 9_000 });
    for path in ["/config", "/config?dry_run=true"] {
        let (status, answer) = proxy.admin("PUT", path, &body.to_string()).await;
        assert_eq!(status, 422, "{answer}");
        let problems = answer["problems"].as_array().expect("a list");
        for key in ["cache.ttl", "cache.polizy", "balancer.choices"] {
            let named = |it: &Value| it.as_str().is_some_and(|it| it.contains(key));
            assert!(problems.iter().any(named), "{key} in {answer}");
        }
    }
    for (body, problem) in
        [("{}", "names no setting"), ("[1]", "object"), ("{\"a\":", "EOF"), ("7", "object")]
    {
        let (status, answer) = proxy.admin("PUT", "/config", body).await;
        let detail = answer["detail"].as_str().expect("text");
        assert!(status == 422 && detail.contains(problem), "{body}: {answer}");
    }
    let (status, answer) = proxy.admin("PUT", "/config?dry=true", "{\"cache_ttl\": 1}").await;
    assert_eq!(status, 422, "{answer}");
    let (_, config) = proxy.admin("GET", "/config", "").await;
    assert_eq!((&config["version"], &config["changes"]), (&json!(0), &json!([])));
    assert_eq!(proxy.admin("POST", "/config", "{}").await.0, 405);
}

#[tokio::test]
async fn the_schema_describes_what_the_configuration_takes() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    let answer = proxy.admin_answer("GET", "/config/schema", "").await;
    assert_eq!(answer.header("content-type"), Some("application/schema+json"));
    let schema: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert!(schema["properties"]["cache"]["properties"]["ttl"].is_object(), "{schema}");
}

#[tokio::test]
async fn how_long_stale_answers_are_used_changes_while_it_runs() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("response_cache.keep", "0s")]).await;
    assert_eq!(outcome(&proxy.get("/a").await), "MISS");
    assert_eq!(outcome(&proxy.get("/a").await), "MISS");
    let version = put(&proxy, &json!({ "response_cache.stale_while_revalidate": "10m" })).await;
    assert_eq!(outcome(&proxy.get("/b").await), "MISS");
    assert_eq!(outcome(&proxy.get("/b").await), "STALE");
    let body = json!({ "version": version }).to_string();
    assert_eq!(proxy.admin("POST", "/config/undo", &body).await.0, 200);
    assert_eq!(outcome(&proxy.get("/c").await), "MISS");
    assert_eq!(outcome(&proxy.get("/c").await), "MISS");
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_an_error_from_when_it_may() {
    let origin = Origin::start(|request| match request.header("x-fail") {
        Some(_) => Reply::status(500).body("oh"),
        None => Reply::ok("body").header("cache-control", "max-age=60").header("age", "61"),
    })
    .await;
    let proxy = Accelerated::with(&origin.url(), &[("response_cache.keep", "1h")]).await;
    let fails = [("X-Fail", "yes")];
    proxy.get("/a").await;
    assert_eq!(proxy.get_with("/a", &fails).await.status, 500);
    put(&proxy, &json!({ "response_cache": { "stale_if_error": "10m" } })).await;
    proxy.get("/b").await;
    let answer = proxy.get_with("/b", &fails).await;
    assert_eq!((answer.status, outcome(&answer)), (200, "STALE"));
}

#[tokio::test]
async fn requests_are_spread_by_another_policy_from_when_it_is_set() {
    let reply = |name: &'static str| {
        Origin::start(move |_| Reply::ok(name).header("cache-control", "no-store"))
    };
    let (a, b) = (reply("a").await, reply("b").await);
    let keys = [("balancer.policy", "ring-hash"), ("response_cache.enabled", "false")];
    let proxy = Accelerated::with(&format!("{},{}", a.url(), b.url()), &keys).await;
    for _ in 0..10 {
        proxy.get("/same").await;
    }
    assert!([a.hits(), b.hits()].contains(&10), "one URL, one backend: {} {}", a.hits(), b.hits());
    put(&proxy, &json!({ "balancer.policy": "round-robin" })).await;
    let before = [a.hits(), b.hits()];
    for _ in 0..10 {
        proxy.get("/same").await;
    }
    assert_eq!([a.hits() - before[0], b.hits() - before[1]], [5, 5]);
    let (_, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    assert_eq!(stats["policy"], "round-robin");
}

#[tokio::test]
async fn the_capacity_of_the_cache_changes_while_it_runs() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("cache.memory.capacity", "64MiB")]).await;
    let capacity = async || proxy.figure_of("/cache/stats", "/levels/l1/capacity_bytes").await;
    assert_eq!(capacity().await, 64 << 20);
    put(&proxy, &json!({ "caches.responses.capacity": "32MiB" })).await;
    assert_eq!(capacity().await, 32 << 20);
    put(&proxy, &json!({ "caches.responses.capacity": null })).await;
    assert_eq!(capacity().await, 64 << 20);
}

#[tokio::test]
async fn a_scraper_reaches_metrics_at_an_address_of_their_own_and_nothing_else() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("server.metrics_listen", "127.0.0.1:0")]).await;
    let address = proxy.metrics_addr().expect("an address");
    let mut client = support::client::RawClient::connect(address).await;
    for path in ["/metrics", "/performance/metrics"] {
        // By whatever name Prometheus knows the machine.
        let answer = client.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.text().contains("process_resident_memory_bytes"), "{path}");
    }
    for path in ["/performance/config", "/performance/stats", "/"] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
    client.send(accelerator::request("POST", "/metrics", "test", &[], "")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 405);
    assert_eq!(Accelerated::to(&origin).await.metrics_addr(), None);
}

#[tokio::test]
async fn a_profile_is_taken_only_where_that_is_allowed() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    let (status, answer) = proxy.admin("GET", "/profile?seconds=1", "").await;
    let detail = answer["detail"].as_str().expect("text");
    assert!(status == 409 && detail.contains("monitor.profiling = true"), "{answer}");

    let proxy = Accelerated::with(&origin.url(), &[("monitor.profiling", "true")]).await;
    let (status, answer) = proxy.admin("GET", "/profile?seconds=61", "").await;
    assert_eq!(status, 422, "{answer}");
    assert_eq!(proxy.admin("GET", "/profile?format=png", "").await.0, 422);
    let answer = proxy.admin_answer("GET", "/profile?seconds=1", "").await;
    let kind = answer.header("content-type");
    assert_eq!((answer.status, kind), (200, Some("image/svg+xml")), "{answer:?}");
    assert!(answer.text().starts_with("<svg"), "{}", answer.text());
    let answer = proxy.admin_answer("GET", "/profile?seconds=1&format=pprof", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with(&[0x1f, 0x8b]), "gzip");
}
