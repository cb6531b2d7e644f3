//! The admin API over real sockets: its shapes, its checks, and what its handles do.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use accelerator::{Accelerated, outcome, request};
use serde_json::{Value, json};
use support::{
    client::{Answer, RawClient},
    origin::{Origin, Reply},
};

async fn origin() -> Origin {
    Origin::start(|request| match request.path() {
        "/error" => Reply::status(500).body("oh"),
        _ => Reply::ok("body").header("cache-control", "max-age=60"),
    })
    .await
}

/// Sends these bytes to the admin API.
async fn raw(proxy: &Accelerated, bytes: &str) -> Answer {
    let mut client = RawClient::connect(proxy.admin_addr()).await;
    client.send(bytes).await;
    client.answer().await.expect("an answer")
}

fn problem(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(problem["status"], answer.status, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    problem
}

/// Checks that `value` has the fields of `shape`, each of the kind of its example, and no others.
fn check_shape(path: &str, value: &Value, shape: &Value) {
    match (value, shape) {
        (Value::Object(value), Value::Object(shape)) => {
            let names = |map: &serde_json::Map<String, Value>| -> BTreeSet<String> {
                map.keys().cloned().collect()
            };
            assert_eq!(names(value), names(shape), "{path}");
            for (name, shape) in shape {
                check_shape(&format!("{path}.{name}"), &value[name], shape);
            }
        }
        (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => {}
        (Value::String(text), Value::String(example)) => {
            let is_time = |text: &str| text.len() == 20 && text.ends_with('Z');
            assert!(text == example || (is_time(text) && is_time(example)), "{path}: {text}");
        }
        _ => panic!("{path}: {value} is not like {shape}"),
    }
}

const TIME: &str = "2024-01-01T00:00:00Z";

#[tokio::test]
async fn health_has_the_shape_that_was_asked_for() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    let (status, health) = proxy.admin("GET", "/health", "").await;
    assert_eq!(status, 200);
    let resources = json!({ "cpu_percent": 1, "memory_percent": 1, "memory_available": 1 });
    let shape = json!({
        "status": "healthy", "timestamp": TIME, "optimizer_running": true,
        "system_resources": resources,
    });
    check_shape("health", &health, &shape);
    assert_eq!(health["optimizer_running"], true);
    assert!(health["system_resources"]["memory_available"].as_u64() > Some(0), "{health}");

    let plain = Accelerated::with(&origin.url(), &[("response_cache.enabled", "false")]).await;
    let (_, health) = plain.admin("GET", "/health", "").await;
    assert_eq!(health["optimizer_running"], false);
}

#[tokio::test]
async fn stats_have_the_shape_that_was_asked_for_and_count() {
    let origin = origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    for target in ["/a", "/a", "/a", "/b", "/error"] {
        proxy.get(target).await;
    }
    proxy.send("POST", "/b", &[], "x").await;
    let (status, stats) = proxy.admin("GET", "/stats", "").await;
    assert_eq!(status, 200);
    let by_level = json!({ "l1": 1, "l3": 1 });
    let shape = json!({
        "timestamp": TIME,
        "memory": {
            "current": { "rss": 1, "vms": 1, "percent": 1 },
            "gc_stats": { "counter": 0, "last_gc": null },
        },
        "cache": { "hits": by_level, "misses": by_level, "hit_rate": 0.4 },
        "requests": {
            "requests": 6, "hits": 2, "misses": 3, "stale": 0, "bypassed": 1, "server_errors": 1,
            "origin_calls": 4, "origin_failures": 0, "coalesced": 0, "background_refreshes": 0,
            "invalidations": 1, "response_time_p50": 0.1, "response_time_p95": 0.1,
            "response_time_p99": 0.1,
        },
        "origin": {
            "connections_opened": 1, "connections_reused": 1, "connections_active": 1,
            "connections_idle": 1, "requests_waiting": 1, "requests_retried": 1,
            "requests_refused": 1, "flights": 0,
        },
    });
    check_shape("stats", &stats, &shape);
    for (name, expected) in shape["requests"].as_object().expect("an object") {
        if expected.is_u64() {
            assert_eq!(stats["requests"][name], *expected, "{name}");
        }
    }
    assert_eq!(stats["cache"]["hit_rate"], 0.4);
    assert!(stats["memory"]["current"]["rss"].as_u64() > Some(1_000_000), "{stats}");
    assert_eq!(stats["origin"]["flights"], 0);
}

/// Keys that keep this machine's own memory from having a say.
const FAR_FROM_FULL: [(&str, &str); 1] = [("memory.cleanup_threshold", "0.99")];

#[tokio::test]
async fn memory_stats_and_usage_have_their_shapes() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &FAR_FROM_FULL).await;
    let current = json!({ "rss": 1, "vms": 1, "percent": 1 });
    let (status, stats) = proxy.admin("GET", "/memory/stats", "").await;
    assert_eq!(status, 200, "{stats}");
    let names: BTreeSet<_> =
        stats.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "current",
        "events",
        "gc_stats",
        "give_back",
        "pressure",
        "reclaimed",
        "reclaimers",
        "should_cleanup",
        "sources",
        "thresholds",
        "timestamp",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    check_shape("current", &stats["current"], &current);
    let reclaimers = stats["reclaimers"].as_array().expect("a list");
    let names: BTreeSet<_> = reclaimers.iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["backend connections", "responses"]));
    assert_eq!(stats["thresholds"]["high"], 0.99);
    assert_eq!(stats["give_back"]["allocator"], Value::Null, "nobody has named one");
    assert!(stats["pressure"]["limit_bytes"].as_u64() > Some(1_000_000), "{stats}");

    let (status, usage) = proxy.admin("GET", "/memory/usage?seconds=1&minutes=0", "").await;
    assert_eq!(status, 200, "{usage}");
    check_shape("current", &usage["current"], &current);
    assert_eq!(usage["seconds"].as_array().map(Vec::len), Some(1), "{usage}");
    assert_eq!(usage["minutes"], json!([]));
    assert!(usage["seconds"][0]["rss_max_bytes"].as_u64() > Some(1_000_000), "{usage}");
    for query in ["seconds=x", "hours=1", "seconds=-1"] {
        let (status, _) = proxy.admin("GET", &format!("/memory/usage?{query}"), "").await;
        assert_eq!(status, 422, "{query}");
    }
}

#[tokio::test]
async fn a_clean_up_pushes_entries_out_if_it_is_forced_and_is_counted() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &FAR_FROM_FULL).await;
    for target in ["/a", "/b"] {
        proxy.get(target).await;
    }
    let (status, told) = proxy.admin("POST", "/memory/cleanup", "{}").await;
    assert_eq!((status, &told["ran"], &told["claimed_bytes"]), (200, &json!(false), &json!(0)));
    assert_eq!(outcome(&proxy.get("/a").await), "HIT");
    let body = "{\"force\":true,\"aggressive\":true}";
    let (status, told) = proxy.admin("POST", "/memory/cleanup", body).await;
    assert_eq!((status, &told["ran"]), (200, &json!(true)), "{told}");
    assert!(told["claimed_bytes"].as_u64() > Some(0), "{told}");
    assert_eq!(told["reclaimers"][0]["outcome"], "done", "{told}");
    assert_eq!(outcome(&proxy.get("/a").await), "MISS");
    let (_, stats) = proxy.admin("GET", "/stats", "").await;
    assert_eq!(stats["memory"]["gc_stats"]["counter"], 1, "{stats}");
    assert!(stats["memory"]["gc_stats"]["last_gc"].is_string(), "{stats}");
    for body in ["{\"force\":1}", "{\"target_bytes\":-1}", "{\"all\":true}"] {
        assert_eq!(proxy.admin("POST", "/memory/cleanup", body).await.0, 422, "{body}");
    }
}

#[tokio::test]
async fn memory_is_shown_in_answers_where_that_is_asked_for_and_nowhere_without_the_guard() {
    let origin = origin().await;
    let shown = Accelerated::with(&origin.url(), &[("memory.header", "true")]).await;
    for target in ["/a", "/a"] {
        let answer = shown.get(target).await;
        let percent = answer.header("x-memory-usage").and_then(|it| it.strip_suffix('%'));
        let percent: f64 = percent.and_then(|it| it.parse().ok()).expect("a percentage");
        assert!(percent > 0.0, "{answer:?}");
    }
    let off = [("memory.header", "true"), ("memory.enabled", "false")];
    let off = Accelerated::with(&origin.url(), &off).await;
    assert_eq!(off.get("/a").await.header("x-memory-usage"), None);
    for (method, path, body) in [
        ("GET", "/memory/stats", ""),
        ("GET", "/memory/usage", ""),
        ("POST", "/memory/cleanup", "{}"),
    ] {
        assert_eq!(off.admin(method, path, body).await.0, 409, "{path}");
    }
    assert_eq!(off.admin("GET", "/stats", "").await.1["memory"]["gc_stats"]["counter"], 0);
}

#[tokio::test]
async fn cache_stats_tell_about_every_level_there_is() {
    let origin = origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    for target in ["/a", "/a", "/b"] {
        proxy.get(target).await;
    }
    let (status, stats) = proxy.admin("GET", "/cache/stats", "").await;
    assert_eq!(status, 200);
    let level = |tier: &str| {
        json!({
            "tier": tier, "hits": 1, "misses": 1, "hit_rate": 0.1, "entries": 1, "size_bytes": 1,
            "capacity_bytes": 1,
            "evictions": { "capacity": 1, "expired": 1, "removed": 1, "too_large": 1 },
            "errors": 0, "writes": 1, "dropped_writes": 0,
            "refused_writes": { "admission": 0, "budget": 0 },
            "copied_forward": 0, "checkpoints": 0, "queue_depth": 0, "queue_bytes": 0,
        })
    };
    let shape = json!({
        "timestamp": TIME, "levels": { "l1": level("memory"), "l3": level("disk") },
        "hit_rate": 0.3, "superseded": 0,
        "compression": {
            "tried": 1, "compressed": 1, "skipped": 0, "decompressed": 0, "bytes_in": 1,
            "bytes_out": 1, "ratio": 0.1, "encode_seconds": 0.1, "decode_seconds": 0.1,
            "dictionaries": 0, "dictionaries_trained": 0,
        },
    });
    check_shape("cache/stats", &stats, &shape);
    assert_eq!(stats["levels"]["l1"]["entries"], 2, "{stats}");
    assert_eq!(stats["levels"]["l1"]["capacity_bytes"], 256 << 20, "{stats}");
    let size = stats["levels"]["l1"]["size_bytes"].as_u64().expect("a size");
    assert!((800..8_000).contains(&size), "{stats}");
}

#[tokio::test]
async fn the_policy_is_reported_and_can_be_changed() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("cache.policy", "s3-fifo")]).await;
    let (status, told) = proxy.admin("GET", "/cache/policy", "").await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["policy"], "s3-fifo");
    assert_eq!(told["candidates"], json!([]));

    let (status, _) = proxy.admin("POST", "/cache/policy", "{\"policy\":\"adaptive\"}").await;
    assert_eq!(status, 200);
    proxy.get("/a").await;
    let (_, told) = proxy.admin("GET", "/cache/policy", "").await;
    assert_eq!((&told["policy"], &told["live"]), (&json!("adaptive"), &json!("s3-fifo")));
    assert!(told["candidates"].as_array().is_some_and(|it| it.len() > 3), "{told}");
    assert_eq!(told["curve"], Value::Null, "it was not asked for");

    let (status, told) = proxy.admin("POST", "/cache/policy", "{\"policy\":\"lruu\"}").await;
    assert_eq!(status, 422);
    assert!(told["detail"].as_str().is_some_and(|it| it.contains("s3-fifo")), "{told}");
}

#[tokio::test]
async fn an_engine_with_one_policy_says_so() {
    let origin = origin().await;
    let engine = [("cache.memory.engine", "clock-pro")];
    let proxy = Accelerated::with(&origin.url(), &engine).await;
    for (method, body) in [("GET", ""), ("POST", "{\"policy\":\"lru\"}")] {
        let (status, told) = proxy.admin(method, "/cache/policy", body).await;
        assert_eq!(status, 409, "{told}");
        assert!(told["detail"].as_str().is_some_and(|it| it.contains("clock-pro")), "{told}");
    }
}

#[tokio::test]
async fn levels_are_cleared_by_each_of_their_names() {
    let origin = origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    for (level, cleared, expected) in [
        ("\"l1\"", json!(["l1"]), "HIT"),
        ("\"memory\"", json!(["l1"]), "HIT"),
        ("\"l3\"", json!(["l3"]), "HIT"),
        ("\"disk\"", json!(["l3"]), "HIT"),
        ("\"all\"", json!(["l1", "l3"]), "MISS"),
    ] {
        proxy.get("/a").await;
        let body = format!("{{\"action\":\"clear\",\"level\":{level}}}");
        let (status, told) = proxy.admin("POST", "/cache/manage", &body).await;
        let shape = json!({
            "timestamp": TIME, "status": "success", "action": "clear", "cleared": cleared,
        });
        let mut told_without_time = told.clone();
        told_without_time["timestamp"] = json!(TIME);
        assert_eq!((status, told_without_time), (200, shape), "{level}");
        assert_eq!(outcome(&proxy.get("/a").await), expected, "{level}");
    }
    // Without a level it is all of them.
    let (_, told) = proxy.admin("POST", "/cache/manage", "{\"action\":\"clear\"}").await;
    assert_eq!(told["cleared"], json!(["l1", "l3"]));
    assert_eq!(outcome(&proxy.get("/a").await), "MISS");
    for level in ["l2", "redis"] {
        let body = format!("{{\"action\":\"clear\",\"level\":\"{level}\"}}");
        let (status, problem) = proxy.admin("POST", "/cache/manage", &body).await;
        assert_eq!(status, 409, "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|it| it.contains("l1, l3")), "{problem}");
    }
}

#[tokio::test]
async fn expired_entries_alone_can_be_removed() {
    let origin = Origin::start(|request| {
        let control = if request.path() == "/short" { "max-age=1" } else { "max-age=60" };
        Reply::ok("body").header("cache-control", control)
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for target in ["/short", "/long"] {
        proxy.get(target).await;
    }
    let body = "{\"action\":\"clear\",\"level\":\"all\",\"expired_only\":true}";
    let mut removed = 0;
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while removed == 0 && std::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let (status, told) = proxy.admin("POST", "/cache/manage", body).await;
        assert_eq!((status, &told["status"]), (200, &json!("success")), "{told}");
        removed = told["expired_removed"].as_u64().expect("a number");
    }
    assert_eq!(removed, 1);
    assert_eq!(outcome(&proxy.get("/long").await), "HIT");
    let one_level = "{\"action\":\"clear\",\"level\":\"l1\",\"expired_only\":true}";
    assert_eq!(proxy.admin("POST", "/cache/manage", one_level).await.0, 422);
}

#[tokio::test]
async fn a_purge_tells_what_it_has_forgotten() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/a").await;
    let (status, told) =
        proxy.admin("POST", "/cache/purge", "{\"url\":\"http://TEST:80/a\"}").await;
    assert_eq!((status, &told["purged"]), (200, &json!("http://test/a")));
    assert_eq!(outcome(&proxy.get("/a").await), "MISS");
    for url in ["/a", "test/a", "", "http://", "not a url"] {
        let body = json!({ "url": url }).to_string();
        let (status, problem) = proxy.admin("POST", "/cache/purge", &body).await;
        assert_eq!(status, 422, "{url}: {problem}");
    }
}

#[tokio::test]
async fn work_in_the_background_is_listed_counted_and_can_be_cancelled() {
    let origin = Origin::start(|request| match request.index {
        0 => Reply::ok("stale")
            .header("cache-control", "max-age=1, stale-while-revalidate=600")
            .header("age", "1"),
        _ => Reply::hang(),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/").await;
    assert_eq!(outcome(&proxy.get("/").await), "STALE");
    origin.wait_for_hits(2).await;
    let (status, list) = proxy.admin("GET", "/scheduler/tasks", "").await;
    assert_eq!((status, list["tasks"].as_array().map(Vec::len)), (200, Some(1)), "{list}");
    let task = &list["tasks"][0];
    let shown = ["name", "lane", "priority", "state", "bytes"].map(|it| task[it].clone());
    assert_eq!(shown, [json!("refresh"), json!("io"), json!("low"), json!("running"), json!(5)]);

    // A purge does not wait behind it.
    let purge = "{\"url\":\"http://test/other\"}";
    assert_eq!(proxy.admin("POST", "/cache/purge", purge).await.0, 200);
    let id = json!({ "id": task["id"] }).to_string();
    let (status, told) = proxy.admin("POST", "/scheduler/cancel", &id).await;
    assert_eq!((status, &told["cancelled"]), (200, &task["id"]));
    assert_eq!(proxy.admin("POST", "/scheduler/cancel", &id).await.0, 404);

    let (_, stats) = proxy.admin("GET", "/scheduler/stats", "").await;
    let lane = &stats["lanes"][0];
    assert_eq!((&lane["lane"], &lane["running"]), (&json!("io"), &json!(0)), "{stats}");
    let of = |name: &str| {
        let types = lane["types"].as_array().expect("a list");
        types.iter().find(|it| it["name"] == name).expect("it has run")["tasks"].clone()
    };
    assert_eq!((&of("purge")["done"], &of("refresh")["cancelled"]), (&json!(1), &json!(1)));
    let line = "scheduler_tasks_total{lane=\"io\",outcome=\"cancelled\",priority=\"low\"} 1";
    support::until(line, async || metrics(&proxy).await.contains(line)).await;

    for (path, detail) in [
        ("/scheduler/tasks?limit=0", "from 1 to"),
        ("/scheduler/tasks?limit=x", "limit"),
        ("/scheduler/tasks?other=1", "other"),
    ] {
        let (status, problem) = proxy.admin("GET", path, "").await;
        let told = problem["detail"].as_str().unwrap_or_default();
        assert!(status == 422 && told.contains(detail), "{path}: {problem}");
    }
    for id in ["", "x", "-1"] {
        let body = json!({ "id": id }).to_string();
        assert_eq!(proxy.admin("POST", "/scheduler/cancel", &body).await.0, 422, "{id}");
    }
}

#[tokio::test]
async fn without_a_cache_there_is_nothing_to_manage() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("response_cache.enabled", "false")]).await;
    for (method, path, body) in [
        ("GET", "/cache/stats", ""),
        ("POST", "/cache/manage", "{\"action\":\"clear\"}"),
        ("POST", "/cache/purge", "{\"url\":\"http://test/\"}"),
        ("GET", "/cache/policy", ""),
        ("POST", "/cache/policy", "{\"policy\":\"lru\"}"),
    ] {
        assert_eq!(proxy.admin(method, path, body).await.0, 409, "{path}");
    }
    assert_eq!(proxy.admin("GET", "/stats", "").await.1["cache"], Value::Null);
}

#[tokio::test]
async fn only_requests_to_this_machine_by_its_own_name_are_answered() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/a").await;
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1:8600", 200),
        ("[::1]:8600", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.nip.io", 421),
        ("10.0.0.1", 421),
    ] {
        let answer = raw(&proxy, &request("GET", "/performance/health", host, &[], "")).await;
        assert_eq!(answer.status, status, "{host}");
        if status == 421 {
            problem(&answer);
        }
        // Before anything else: the path and the method do not matter.
        for (method, target) in [("GET", "/nothing"), ("DELETE", "/performance/health")] {
            let other = raw(&proxy, &request(method, target, host, &[], "")).await;
            assert_eq!(other.status == 421, status == 421, "{host}");
        }
    }
    let clear = "{\"action\":\"clear\"}";
    let kind = [("Content-Type", "application/json")];
    let text = request("POST", "/performance/cache/manage", "evil.example", &kind, clear);
    assert_eq!(raw(&proxy, &text).await.status, 421);
    assert_eq!(outcome(&proxy.get("/a").await), "HIT");
    // An absolute target replaces the Host field.
    let absolute = "GET http://evil.example/performance/health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(raw(&proxy, absolute).await.status, 421);
}

#[tokio::test]
async fn a_page_from_elsewhere_cannot_make_a_browser_ask() {
    let origin = origin().await;
    let proxy = Accelerated::with(&origin.url(), &[("monitor.profiling", "true")]).await;
    for (site, status) in
        [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
    {
        let fields = [("Sec-Fetch-Site", site)];
        let text = request("GET", "/performance/health", "localhost", &fields, "");
        let answer = raw(&proxy, &text).await;
        assert_eq!(answer.status, status, "{site}");
        if status == 403 {
            problem(&answer);
        }
        // Whatever the path is; what would start a profile starts none.
        for target in ["/performance/profile?seconds=60", "/performance/nothing", "/nothing"] {
            let text = request("GET", target, "localhost", &fields, "");
            if status == 403 {
                assert_eq!(raw(&proxy, &text).await.status, status, "{site} {target}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_a_problem_document() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    proxy.get("/a").await;
    let json = "application/json";
    let long = format!("{{\"action\":\"clear\",\"x\":\"{}\"}}", "x".repeat(70_000));
    for (method, path, kind, body, status) in [
        ("GET", "/nothing", "", "", 404),
        ("GET", "/cache", "", "", 404),
        ("POST", "/health", json, "{}", 405),
        ("GET", "/cache/manage", "", "", 405),
        ("DELETE", "/cache/purge", "", "", 405),
        ("POST", "/cache/manage", "", "{\"action\":\"clear\"}", 415),
        ("POST", "/cache/manage", "text/plain", "{\"action\":\"clear\"}", 415),
        ("POST", "/cache/manage", "application/x-www-form-urlencoded", "action=clear", 415),
        ("POST", "/cache/manage", json, "", 422),
        ("POST", "/cache/manage", json, "{", 422),
        ("POST", "/cache/manage", json, "[]", 422),
        ("POST", "/cache/manage", json, "{}", 422),
        ("POST", "/cache/manage", json, "{\"action\":\"explode\"}", 422),
        ("POST", "/cache/manage", json, "{\"action\":\"clear\",\"level\":\"l4\"}", 422),
        ("POST", "/cache/manage", json, "{\"action\":\"clear\",\"levle\":\"l1\"}", 422),
        ("POST", "/cache/manage", json, &long, 413),
        ("POST", "/cache/purge", json, "{\"url\":7}", 422),
    ] {
        let fields = [("Content-Type", kind)];
        let fields = if kind.is_empty() { &[][..] } else { &fields[..] };
        let target = format!("/performance{path}");
        let answer = raw(&proxy, &request(method, &target, "localhost", fields, body)).await;
        assert_eq!(answer.status, status, "{method} {path} {kind} {body:.40}");
        problem(&answer);
        if status == 405 {
            assert!(answer.header("allow").is_some(), "{answer:?}");
        }
    }
    let charset = [("Content-Type", "application/json; charset=utf-8")];
    let body = "{\"action\":\"clear\",\"level\":\"l1\"}";
    // Nothing of all that has done anything.
    assert_eq!(outcome(&proxy.get("/a").await), "HIT");
    let good = request("POST", "/performance/cache/manage", "localhost", &charset, body);
    assert_eq!(raw(&proxy, &good).await.status, 200);
}

#[tokio::test]
async fn answers_are_not_cached_and_not_sniffed() {
    let origin = origin().await;
    let proxy = Accelerated::to(&origin).await;
    for path in ["/health", "/stats", "/metrics", "/nothing"] {
        let target = format!("/performance{path}");
        let answer = raw(&proxy, &request("GET", &target, "localhost", &[], "")).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
}

/// Reads the text format of Prometheus: the samples by name and labels.
fn parse_metrics(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut finished = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (word, name, value) = (words.next(), words.next(), words.next());
            let (Some(word), Some(name), Some(value)) = (word, name, value) else {
                panic!("a comment of three words: {line}");
            };
            match word {
                "HELP" => assert!(helped.insert(name.to_owned()), "{name} is explained twice"),
                "TYPE" => {
                    assert!(typed.insert(name.to_owned(), value.to_owned()).is_none(), "{name}");
                    finished.insert(std::mem::replace(&mut current, name.to_owned()));
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a name and a value");
        let name = series.split('{').next().expect("a name");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| typed.get(*family).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(name);
        assert!(helped.contains(family) && typed.contains_key(family), "{line}");
        assert_eq!(family, current, "the samples of a family stand together");
        assert!(!finished.contains(family), "{family} comes again");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
        if typed[family] == "counter" {
            assert!(family.ends_with("_total") && value >= 0.0, "{line}");
        }
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} stands there twice");
    }
    samples
}

async fn metrics(proxy: &Accelerated) -> String {
    let answer = raw(proxy, &request("GET", "/performance/metrics", "localhost", &[], "")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.text().to_owned()
}

#[tokio::test]
async fn metrics_are_in_the_format_of_prometheus_and_count() {
    let origin = origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    parse_metrics(&metrics(&proxy).await);
    for target in ["/a", "/a", "/error"] {
        proxy.get(target).await;
    }
    proxy.send("POST", "/a", &[], "x").await;
    // What is served is a second old at most, and rendered once in that time.
    let mut samples = BTreeMap::new();
    let all_counted = async || {
        samples = parse_metrics(&metrics(&proxy).await);
        samples.get("request_count") == Some(&4.0)
    };
    support::until("four requests in the metrics", all_counted).await;
    for (series, value) in [
        ("http_request_duration_seconds_count{cache=\"hit\",status=\"2xx\"}", 1.0),
        ("http_request_duration_seconds_count{cache=\"miss\",status=\"2xx\"}", 1.0),
        ("http_request_duration_seconds_count{cache=\"miss\",status=\"5xx\"}", 1.0),
        ("http_request_duration_seconds_count{cache=\"bypass\",status=\"2xx\"}", 1.0),
        ("http_request_duration_seconds_bucket{cache=\"miss\",status=\"2xx\",le=\"+Inf\"}", 1.0),
        ("http_requests_total{cache=\"hit\",status=\"2xx\"}", 1.0),
        ("cache_requests_total{cache=\"responses\",result=\"hit\"}", 1.0),
        ("http_server_errors_total", 1.0),
        ("error_count", 1.0),
        ("http_origin_calls_total", 3.0),
        ("http_invalidations_total", 1.0),
        ("cache_entries{cache=\"responses\",type=\"memory\"}", 0.0),
        ("scheduler_slots{lane=\"io\"}", 1000.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
    }
    for series in [
        "cache_hits_total{cache=\"responses\",type=\"memory\"}",
        "cache_misses_total{cache=\"responses\",type=\"disk\"}",
        "memory_usage_bytes{type=\"rss\"}",
        "process_resident_memory_bytes",
    ] {
        assert!(samples.get(series).is_some_and(|value| *value > 0.0), "{series} in {samples:#?}");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_metrics() {
    let origin = origin().await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    for target in ["/a", "/a", "/error"] {
        proxy.get(target).await;
    }
    let text = metrics(&proxy).await;
    let command = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match command {
        Ok(promtool) => promtool,
        Err(error) => {
            eprintln!("skipped: promtool cannot be run ({error}); Debian has it in `prometheus`");
            return;
        }
    };
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
