//! Several backends behind one accelerator: spread, failures, limits, sessions and the handles to them.

#[path = "support/accelerator.rs"]
mod accelerator;
mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use accelerator::{Accelerated, outcome, request};
use serde_json::{Value, json};
use support::{
    client::Answer,
    eventually,
    origin::{Gate, Origin, Received, Reply},
    soon, until,
};

/// An answer that no cache keeps.
fn unstored(body: impl Into<Vec<u8>>) -> Reply {
    Reply::ok(body).header("cache-control", "no-store")
}

/// Starts a backend that answers with its own name.
async fn named(name: &'static str) -> Origin {
    Origin::start(move |_| unstored(name)).await
}

/// Starts an accelerator in front of these origins, each with its settings.
async fn in_front_of(origins: &[(&Origin, &str)], keys: &[(&str, &str)]) -> Accelerated {
    let to: Vec<_> =
        origins.iter().map(|(origin, settings)| format!("{}{settings}", origin.url())).collect();
    Accelerated::with(&to.join(","), keys).await
}

const IN_TURN: (&str, &str) = ("balancer.policy", "round-robin");

/// What the admin API says of a backend.
async fn node(proxy: &Accelerated, origin: &Origin) -> Value {
    let (status, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    assert_eq!(status, 200, "{stats}");
    let nodes = stats["nodes"].as_array().expect("a list");
    let found = nodes.iter().find(|node| node["id"] == origin.url().as_str());
    found.unwrap_or_else(|| panic!("{} in {stats}", origin.url())).clone()
}

/// Waits until the admin API says this of a backend.
async fn node_until(
    proxy: &Accelerated,
    origin: &Origin,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) {
    until(what, async || holds(&node(proxy, origin).await)).await;
}

/// Waits until a request waits for a backend.
async fn one_waits(proxy: &Accelerated) {
    let waits = async {
        while proxy.admin("GET", "/balancer/stats", "").await.1["queue"]["waiting"] != 1 {
            tokio::task::yield_now().await;
        }
    };
    soon("a request waits", waits).await;
}

/// Changes a backend by the admin API.
async fn order(proxy: &Accelerated, action: &str, body: Value) -> (u16, Value) {
    proxy.admin("POST", &format!("/balancer/{action}"), &body.to_string()).await
}

/// Asks `count` times; the answers must all be good.
async fn ask(proxy: &Accelerated, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let answer = proxy.get("/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        texts.push(answer.text().to_owned());
    }
    texts
}

fn count(texts: &[String], text: &str) -> usize {
    texts.iter().filter(|it| *it == text).count()
}

#[tokio::test]
async fn requests_spread_by_the_policy_and_the_weights() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let proxy = in_front_of(&[(&a, ""), (&b, ""), (&c, "")], &[IN_TURN]).await;
    let texts = ask(&proxy, 30).await;
    assert_eq!(["a", "b", "c"].map(|name| count(&texts, name)), [10, 10, 10]);

    let policy = ("balancer.policy", "smooth-weighted-round-robin");
    let weights = [(&a, ",weight=3"), (&b, ""), (&c, ",weight=0")];
    let texts = ask(&in_front_of(&weights, &[policy]).await, 20).await;
    assert_eq!(["a", "b", "c"].map(|name| count(&texts, name)), [15, 5, 0]);

    // The default compares latencies, and leaves nobody without requests while all are alike.
    let texts = ask(&in_front_of(&[(&a, ""), (&b, "")], &[]).await, 40).await;
    assert!(["a", "b"].iter().all(|name| count(&texts, name) > 0), "{texts:?}");
}

#[tokio::test]
async fn targets_stay_with_their_backend_under_a_policy_of_hashes() {
    let (a, b) = (named("a").await, named("b").await);
    let proxy = in_front_of(&[(&a, ""), (&b, "")], &[("balancer.policy", "maglev")]).await;
    let mut reached = BTreeSet::new();
    for target in 0..16 {
        let target = format!("/{target}");
        let first = proxy.get(&target).await.text().to_owned();
        for _ in 0..3 {
            assert_eq!(proxy.get(&target).await.text(), first, "{target}");
        }
        reached.insert(first);
    }
    assert_eq!(reached.len(), 2);
}

#[tokio::test]
async fn each_backend_has_a_base_path_of_its_own() {
    let echo = |request: &Received| unstored(request.target.clone());
    let (a, b) = (Origin::start(echo).await, Origin::start(echo).await);
    let proxy = in_front_of(&[(&a, "/one"), (&b, "/two,max=5")], &[IN_TURN]).await;
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        seen.insert(proxy.get("/x?y=z").await.text().to_owned());
    }
    assert_eq!(seen, BTreeSet::from(["/one/x?y=z".to_owned(), "/two/x?y=z".to_owned()]));
}

#[tokio::test]
async fn who_reads_does_not_notice_that_a_backend_was_killed() {
    let (a, b, c) = (named("a").await, named("b").await, named("c").await);
    let proxy = in_front_of(&[(&a, ""), (&b, ""), (&c, "")], &[IN_TURN]).await;
    ask(&proxy, 6).await;
    let killed = b.url();
    drop(b);
    let texts = ask(&proxy, 60).await;
    assert_eq!(count(&texts, "b"), 0);
    let (_, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    let nodes = stats["nodes"].as_array().expect("a list");
    let node = nodes.iter().find(|node| node["id"] == killed.as_str()).expect("it is still there");
    assert_ne!(node["state"], "ready", "{stats}");
    // Five failures in a row are enough; those were sent again elsewhere.
    assert_eq!(
        (&node["requests"]["failure"], &stats["retries"]["retried"]),
        (&json!(5), &json!(5))
    );
}

#[tokio::test]
async fn a_backend_that_refuses_is_left_alone_and_its_refusals_go_no_further() {
    let bad = Origin::start(|_| Reply::status(503).header("retry-after", "7").body("no")).await;
    let good = named("good").await;
    let proxy = in_front_of(&[(&bad, ""), (&good, "")], &[IN_TURN]).await;
    let texts = ask(&proxy, 40).await;
    assert_eq!((count(&texts, "good"), bad.hits()), (40, 5));
    let now = node(&proxy, &bad).await;
    assert_eq!(now["requests"]["overload"], 5, "{now}");
    assert_eq!(now["breaker"]["state"], "open", "{now}");
}

#[tokio::test]
async fn a_request_that_was_sent_and_is_not_idempotent_is_not_sent_again() {
    let broken = Origin::start(|_| Reply::close()).await;
    let good = named("good").await;
    let to = [(&broken, ""), (&good, ",priority=1")];
    let proxy = in_front_of(&to, &[("balancer.eject", "off")]).await;
    let answer = proxy.send("POST", "/", &[], "order").await;
    assert_eq!((answer.status, broken.hits(), good.hits()), (502, 1, 0));
    // The same of a method that is idempotent.
    let answer = proxy.send("DELETE", "/", &[], "").await;
    assert_eq!((answer.status, answer.text()), (200, "good"));
    // A body that streams is gone by then.
    let answer = proxy.send("PUT", "/", &[], "order").await;
    assert_eq!((answer.status, good.hits()), (502, 1));
}

#[tokio::test]
async fn any_request_goes_on_if_its_backend_cannot_have_got_it() {
    let gone = named("gone").await;
    let url = gone.url();
    drop(gone);
    let good = Origin::start(|request| unstored(request.body.clone())).await;
    let proxy = Accelerated::with(&format!("{url},{},priority=1", good.url()), &[]).await;
    let answer = proxy.send("POST", "/", &[], "order").await;
    assert_eq!((answer.status, answer.text(), good.hits()), (200, "order", 1));
    let never = [("balancer.retries", "0")];
    let proxy = Accelerated::with(&format!("{url},{},priority=1", good.url()), &never).await;
    assert_eq!(proxy.send("POST", "/", &[], "order").await.status, 502);
}

#[tokio::test]
async fn an_answer_that_has_begun_is_not_asked_for_again() {
    let cut = Origin::start(|_| {
        Reply::status(200).header("cache-control", "no-store").chunks(["begun"]).cut()
    })
    .await;
    let good = named("good").await;
    let proxy = in_front_of(&[(&cut, ""), (&good, ",priority=1")], &[]).await;
    let answer = proxy.get("/").await;
    assert!(!answer.complete && answer.text() == "begun", "{answer:?}");
    assert_eq!(good.hits(), 0);
    // It answered well and then failed.
    node_until(&proxy, &cut, "the end of the lease", |node| node["in_flight"] == 0).await;
}

#[tokio::test]
async fn requests_wait_while_all_are_full_and_then_are_told_when_to_come_again() {
    let gate = Gate::new();
    let held = || {
        let gate = gate.clone();
        Origin::start(move |_| unstored("late").when(&gate))
    };
    let (a, b) = (held().await, held().await);
    let keys = [("balancer.queue", "1"), ("balancer.queue_timeout", "300ms")];
    let proxy = in_front_of(&[(&a, ",max=1"), (&b, ",max=1")], &keys).await;
    let mut clients = Vec::new();
    for target in ["/first", "/second"] {
        let mut client = proxy.client().await;
        client.send(request("GET", target, "test", &[], "")).await;
        clients.push(client);
    }
    a.wait_for_hits(1).await;
    b.wait_for_hits(1).await;
    let mut third = proxy.client().await;
    third.send(request("GET", "/third", "test", &[], "")).await;
    one_waits(&proxy).await;
    // The queue is full, and then the time of the one in it is over.
    let refused = proxy.get("/fourth").await;
    let late = third.answer().await.expect("an answer");
    for answer in [refused, late] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let retry_after = answer.header("retry-after").and_then(|it| it.parse::<u64>().ok());
        assert!((1..=10).contains(&retry_after.unwrap_or(0)), "{answer:?}");
    }
    let (_, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    assert_eq!(stats["queue"], json!({ "waiting": 0, "shed": 1, "timed_out": 1 }), "{stats}");
    // One that waits gets the place of the next that is done.
    let mut fifth = proxy.client().await;
    fifth.send(request("GET", "/fifth", "test", &[], "")).await;
    one_waits(&proxy).await;
    gate.open();
    clients.push(fifth);
    for client in &mut clients {
        assert_eq!(client.answer().await.expect("an answer").status, 200);
    }
}

/// An answer that is stale on arrival and may stand in for an error.
fn aged(body: &'static str) -> Reply {
    let lifetime = "max-age=60, stale-if-error=600";
    Reply::ok(body).header("cache-control", lifetime).header("age", "100")
}

#[tokio::test]
async fn a_stale_answer_stands_in_when_all_are_down_or_full() {
    let (a, b) = (Origin::start(|_| aged("a")).await, Origin::start(|_| aged("b")).await);
    let keys = [("balancer.breaker.open_time", "1h"), ("balancer.breaker.open_time_max", "1h")];
    let proxy = in_front_of(&[(&a, ""), (&b, "")], &keys).await;
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    drop((a, b));
    // Both before and after the breakers have opened.
    for _ in 0..12 {
        let answer = proxy.get("/").await;
        assert_eq!((answer.status, outcome(&answer)), (200, "STALE"), "{answer:?}");
    }
    let answer = proxy.get("/other").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");

    let gate = Gate::new();
    let at_backend = gate.clone();
    let full = Origin::start(move |request| match request.path() {
        "/held" => unstored("late").when(&at_backend),
        _ => aged("body"),
    })
    .await;
    let keys = [("balancer.queue", "0")];
    let proxy = in_front_of(&[(&full, ",max=1")], &keys).await;
    assert_eq!(outcome(&proxy.get("/").await), "MISS");
    let mut client = proxy.client().await;
    client.send(request("GET", "/held", "test", &[], "")).await;
    full.wait_for_hits(2).await;
    assert_eq!(outcome(&proxy.get("/").await), "STALE");
    gate.open();
    assert_eq!(client.answer().await.expect("an answer").status, 200);
}

#[tokio::test]
async fn a_breaker_opens_gives_its_backend_nothing_and_lets_it_come_back() {
    let healthy = Arc::new(AtomicBool::new(false));
    let at_backend = Arc::clone(&healthy);
    let sick = Origin::start(move |_| match at_backend.load(Ordering::SeqCst) {
        true => unstored("sick"),
        false => Reply::status(500).body("oh"),
    })
    .await;
    let good = named("good").await;
    let keys = [
        IN_TURN,
        ("balancer.eject", "off"),
        ("balancer.breaker.failures", "3"),
        ("balancer.breaker.open_time", "1h"),
        ("balancer.breaker.open_time_max", "1h"),
    ];
    let proxy = in_front_of(&[(&sick, ""), (&good, "")], &keys).await;
    let mut failed = 0;
    for _ in 0..30 {
        // A 500 is an answer like any other: it is not asked for again.
        failed += usize::from(proxy.get("/").await.status == 500);
    }
    assert_eq!((failed, sick.hits()), (3, 3));
    let now = node(&proxy, &sick).await;
    assert_eq!((&now["state"], &now["breaker"]["state"]), (&json!("suspended"), &json!("open")));
    assert_eq!(now["breaker"]["opened"], 1, "{now}");
    // By hand.
    healthy.store(true, Ordering::SeqCst);
    let (status, restored) = order(&proxy, "restore", json!({ "backend": sick.url() })).await;
    assert_eq!((status, &restored["node"]["state"]), (200, &json!("ready")), "{restored}");
    assert_eq!(count(&ask(&proxy, 10).await, "sick"), 5);

    // And by itself.
    healthy.store(false, Ordering::SeqCst);
    let keys = [
        IN_TURN,
        ("balancer.eject", "off"),
        ("balancer.breaker.failures", "3"),
        ("balancer.breaker.open_time", "20ms"),
        ("balancer.breaker.open_time_max", "20ms"),
    ];
    let proxy = in_front_of(&[(&sick, ""), (&good, "")], &keys).await;
    for _ in 0..10 {
        proxy.get("/").await;
    }
    assert!(node(&proxy, &sick).await["breaker"]["opened"].as_u64() >= Some(1));
    healthy.store(true, Ordering::SeqCst);
    let recovery = async {
        while node(&proxy, &sick).await["breaker"]["state"] != "closed" {
            proxy.get("/").await;
        }
    };
    soon("the recovery", recovery).await;
    let texts = ask(&proxy, 10).await;
    assert_eq!((count(&texts, "sick"), count(&texts, "good")), (5, 5));
}

#[tokio::test]
async fn a_lease_lasts_until_the_body_was_read_and_its_latency_only_until_the_head() {
    let gate = Gate::new();
    let at_backend = gate.clone();
    let slow = Origin::start(move |request| match request.path() {
        "/long" => unstored("one").chunks(["one", "two"]).pieces_when(&at_backend),
        _ => unstored("short"),
    })
    .await;
    let proxy = in_front_of(&[(&slow, "")], &[]).await;
    let mut client = proxy.client().await;
    client.send(request("GET", "/long", "test", &[], "")).await;
    node_until(&proxy, &slow, "the head", |node| node["requests"]["success"] == 1).await;
    assert_eq!(node(&proxy, &slow).await["in_flight"], 1);
    gate.open();
    assert_eq!(client.answer().await.expect("an answer").text(), "onetwo");
    node_until(&proxy, &slow, "the end", |node| node["in_flight"] == 0).await;
    // A client that leaves gives the place back as well.
    let held = Gate::new();
    let at_backend = held.clone();
    let origin = Origin::start(move |_| unstored("x").when(&at_backend)).await;
    let proxy = in_front_of(&[(&origin, ",max=1")], &[("balancer.queue", "0")]).await;
    let mut client = proxy.client().await;
    client.send(request("GET", "/", "test", &[], "")).await;
    origin.wait_for_hits(1).await;
    assert_eq!(proxy.send("POST", "/", &[], "x").await.status, 503);
    drop(client);
    node_until(&proxy, &origin, "the place", |node| node["in_flight"] == 0).await;
    let now = node(&proxy, &origin).await;
    assert_eq!(now["requests"]["cancelled"], 1, "{now}");
    held.open();
}

/// The pair of the cookie that an answer sets.
fn cookie(answer: &Answer) -> Option<&str> {
    let set = answer.header("set-cookie")?;
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{set}");
    set.split(';').next()
}

#[tokio::test]
async fn a_client_stays_on_its_backend_by_a_signed_cookie() {
    let script = |name: &'static str| {
        move |request: &Received| {
            assert_eq!(request.header("cookie"), request.header("x-others"), "{request:?}");
            match request.path() {
                "/cached" => Reply::ok(name).header("cache-control", "max-age=60"),
                _ => unstored(name),
            }
        }
    };
    let (a, b) = (Origin::start(script("a")).await, Origin::start(script("b")).await);
    let keys = [IN_TURN, ("balancer.sticky", "on"), ("balancer.sticky_cookie", "lane")];
    let proxy = in_front_of(&[(&a, ""), (&b, "")], &keys).await;
    let first = proxy.get("/").await;
    let mut lane = cookie(&first).expect("a cookie").to_owned();
    assert!(lane.starts_with("lane="), "{lane}");
    for _ in 0..6 {
        let mine = format!("x=1; {lane}");
        let answer = proxy.get_with("/", &[("Cookie", &mine), ("X-Others", "x=1")]).await;
        assert_eq!((answer.text(), answer.header("set-cookie")), (first.text(), None));
    }
    // Nothing that others may get as well carries it, from the cache or on its way there.
    for _ in 0..2 {
        assert_eq!(proxy.get("/cached").await.header("set-cookie"), None);
    }
    // Nobody makes one himself.
    let forged = format!("{lane}0");
    assert!(cookie(&proxy.get_with("/", &[("Cookie", &forged)]).await).is_some());
    // When its backend goes, the client moves, and is told.
    let mine = if first.text() == "a" { &a } else { &b };
    let (status, _) = order(&proxy, "drain", json!({ "backend": mine.url() })).await;
    assert_eq!(status, 200);
    let moved = proxy.get_with("/", &[("Cookie", &lane)]).await;
    assert_ne!(moved.text(), first.text());
    lane = cookie(&moved).expect("another cookie").to_owned();
    let (status, _) = order(&proxy, "restore", json!({ "backend": mine.url() })).await;
    assert_eq!(status, 200);
    for _ in 0..4 {
        assert_eq!(proxy.get_with("/", &[("Cookie", &lane)]).await.text(), moved.text());
    }
}

#[tokio::test]
async fn the_handles_of_the_admin_api_do_what_they_say() {
    let (a, b) = (named("a").await, named("b").await);
    let proxy = in_front_of(&[(&a, ""), (&b, "")], &[IN_TURN]).await;
    let url = a.url();
    for (action, body, state) in [
        ("eject", json!({ "backend": url, "time": "1h" }), "ejected"),
        ("restore", json!({ "backend": url }), "ready"),
        ("drain", json!({ "backend": url }), "draining"),
        ("restore", json!({ "backend": url }), "ready"),
        ("weight", json!({ "backend": url, "weight": 0 }), "draining"),
        ("weight", json!({ "backend": url, "weight": 7 }), "ready"),
    ] {
        let (status, done) = order(&proxy, action, body).await;
        assert_eq!(
            (status, &done["status"], &done["action"]),
            (200, &json!("success"), &json!(action))
        );
        assert_eq!(done["node"]["state"], state, "{action}: {done}");
        let texts = ask(&proxy, 6).await;
        assert_eq!(count(&texts, "a") == 3, state == "ready", "{action}: {texts:?}");
    }
    assert_eq!(node(&proxy, &a).await["weight"], 7);
    for (action, body, status, says) in [
        ("eject", json!({ "backend": "http://c" }), 404, url.as_str()),
        ("drain", json!({ "backend": "" }), 404, "There is no backend"),
        ("restore", json!({ "backend": "x" }), 404, "There is no backend"),
        ("weight", json!({ "backend": "x", "weight": 1 }), 404, "There is no backend"),
        ("weight", json!({ "backend": url, "weight": 1_000_001 }), 422, "from 0 to 1000000"),
        ("weight", json!({ "backend": url, "weight": -1 }), 422, "invalid value"),
        ("weight", json!({ "backend": url }), 422, "missing field `weight`"),
        ("eject", json!({ "backend": url, "time": "1 hour" }), 422, "such as \"90s\""),
        ("eject", json!({ "backend": url, "time": "25h" }), 422, "at most 24 hours"),
        ("eject", json!({ "node": url }), 422, "unknown field"),
    ] {
        let (seen, problem) = order(&proxy, action, body).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(seen == status && detail.contains(says), "{action}: {seen} {problem}");
    }
    let mut client = support::client::RawClient::connect(proxy.admin_addr()).await;
    let target = "/performance/balancer/eject";
    client.send(request("POST", target, "localhost", &[], "{}")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 415);
    client.send(request("GET", target, "localhost", &[], "")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 405);
}

#[tokio::test]
async fn the_stats_and_the_metrics_tell_of_every_backend() {
    let (a, b) = (named("a").await, named("b").await);
    let keys = [("balancer.zone", "west")];
    let to = [(&a, ",weight=2,max=8,zone=west"), (&b, ",zone=east,priority=1")];
    let proxy = in_front_of(&to, &keys).await;
    ask(&proxy, 3).await;
    let (_, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    assert_eq!((&stats["policy"], &stats["total_nodes"]), (&json!("peak-ewma"), &json!(2)));
    assert_eq!((&stats["panicking"], &stats["hedges"]), (&json!(false), &Value::Null));
    let node = &stats["nodes"][0];
    for (pointer, expected) in [
        ("/id", json!(a.url())),
        ("/state", json!("ready")),
        ("/weight", json!(2)),
        ("/max_in_flight", json!(8)),
        ("/zone", json!("west")),
        ("/priority", json!(0)),
        ("/in_flight", json!(0)),
        ("/ejection", json!({ "count": 0, "in_a_row": 0, "remaining_seconds": null })),
        ("/breaker/state", json!("closed")),
        ("/requests/success", json!(3)),
        ("/connections/opened", json!(1)),
        ("/connections/idle", json!(1)),
    ] {
        assert_eq!(node.pointer(pointer), Some(&expected), "{pointer} of {node}");
    }
    assert!(node["ewma_seconds"].as_f64() > Some(0.0), "{node}");
    assert_eq!(stats["nodes"][1]["max_in_flight"], 256);

    let url = a.url();
    // What is served is a second old at most.
    let mut text = String::new();
    let counted = async || {
        let mut client = support::client::RawClient::connect(proxy.admin_addr()).await;
        client.send(request("GET", "/performance/metrics", "localhost", &[], "")).await;
        text = client.answer().await.expect("metrics").text().to_owned();
        text.contains(&format!("backend_requests_total{{backend=\"{url}\",outcome=\"success\"}} 3"))
    };
    support::until("three requests in the metrics", counted).await;
    for line in [
        format!("backend_requests_total{{backend=\"{url}\",outcome=\"success\"}} 3"),
        format!("backend_in_flight{{backend=\"{url}\"}} 0"),
        format!("backend_state{{backend=\"{url}\",state=\"ready\"}} 1"),
        format!("backend_ejections_total{{backend=\"{url}\"}} 0"),
        format!("circuit_breaker_state{{backend=\"{url}\"}} 0"),
        "balancer_retries_total 0".to_owned(),
        "balancer_waiting{balancer=\"backends\"} 0".to_owned(),
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn a_request_that_takes_long_is_hedged_where_that_is_on() {
    let gate = Gate::new();
    let at_backend = gate.clone();
    let stuck = Arc::new(AtomicBool::new(false));
    let is_stuck = Arc::clone(&stuck);
    let a = Origin::start(move |_| match is_stuck.load(Ordering::SeqCst) {
        true => unstored("a").when(&at_backend),
        false => unstored("a"),
    })
    .await;
    let b = named("b").await;
    let keys = [("balancer.hedge", "0.99")];
    let proxy = in_front_of(&[(&a, ""), (&b, ",priority=1")], &keys).await;
    // As many as it takes to know how long an answer takes.
    let mut client = proxy.client().await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.text(), "a");
    }
    stuck.store(true, Ordering::SeqCst);
    assert_eq!(client.get("/").await.text(), "b");
    let (_, stats) = proxy.admin("GET", "/balancer/stats", "").await;
    assert!(stats["hedges"]["won"].as_u64() >= Some(1), "{stats}");
    // What may not be made twice is not.
    let mut other = proxy.client().await;
    other.send(request("POST", "/", "test", &[], "x")).await;
    a.wait_for_hits(102).await;
    gate.open();
    assert_eq!(other.answer().await.expect("an answer").text(), "a");
}

#[tokio::test]
async fn a_backend_whose_checks_fail_gets_nothing() {
    let well = Arc::new(AtomicBool::new(true));
    let script = |name: &'static str, well: Option<Arc<AtomicBool>>| {
        move |request: &Received| match request.path() {
            "/healthz" if well.as_ref().is_some_and(|well| !well.load(Ordering::SeqCst)) => {
                Reply::status(503)
            }
            "/healthz" => Reply::status(204),
            _ => unstored(name),
        }
    };
    let a = Origin::start(script("a", Some(Arc::clone(&well)))).await;
    let b = Origin::start(script("b", None)).await;
    let keys = [
        IN_TURN,
        ("balancer.check_path", "/healthz"),
        ("balancer.check_interval", "20ms"),
        ("balancer.check_rise", "1"),
        ("balancer.check_fall", "1"),
    ];
    let proxy = in_front_of(&[(&a, ""), (&b, "")], &keys).await;
    let is = |state: &'static str| move |node: &Value| node["state"] == state;
    // Nobody waits for the first checks.
    assert!(count(&ask(&proxy, 10).await, "a") > 0);
    well.store(false, Ordering::SeqCst);
    node_until(&proxy, &a, "the bad check", is("down")).await;
    assert_eq!(count(&ask(&proxy, 10).await, "a"), 0);
    well.store(true, Ordering::SeqCst);
    node_until(&proxy, &a, "the good check", is("ready")).await;
    assert!(count(&ask(&proxy, 10).await, "a") > 0);
}

#[tokio::test]
async fn a_tunnel_keeps_its_place_and_gives_it_back() {
    let origin = Origin::start(|_| Reply::echo("websocket")).await;
    let proxy = in_front_of(&[(&origin, "")], &[]).await;
    let mut client = proxy.client().await;
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    client.send(request("GET", "/", "test", &upgrade, "")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 101);
    client.send("hello").await;
    assert_eq!(client.bytes().await, b"hello");
    assert_eq!(node(&proxy, &origin).await["in_flight"], 1);
    drop(client);
    node_until(&proxy, &origin, "the end", |node| node["in_flight"] == 0).await;
}

#[tokio::test]
async fn a_cleanup_of_memory_closes_idle_connections() {
    let origin = named("a").await;
    let proxy = in_front_of(&[(&origin, "")], &[]).await;
    ask(&proxy, 1).await;
    eventually("one is open", || origin.open_connections() == 1).await;
    let (_, stats) = proxy.admin("GET", "/memory/stats", "").await;
    let reclaimers = stats["reclaimers"].as_array().expect("a list");
    let named = |it: &&Value| it["name"] == "backend connections";
    let idle = reclaimers.iter().find(named).expect("it is registered");
    assert_eq!(idle["reclaimable_bytes"], 16 << 10, "{stats}");
    let (status, report) =
        proxy.admin("POST", "/memory/cleanup", "{\"force\":true,\"aggressive\":true}").await;
    assert_eq!(status, 200, "{report}");
    eventually("none is open", || origin.open_connections() == 0).await;
    ask(&proxy, 1).await;
}
