//! Answers that the origin gives tags, purged by those.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome},
    support::{
        eventually,
        origin::{Gate, Origin},
    },
};

async fn purge(proxy: &Accelerated, tags: &str, soft: bool) {
    let body = format!("{{\"tags\":{tags},\"soft\":{soft}}}");
    let (status, json) = proxy.admin("POST", "/cache/purge", &body).await;
    assert_eq!((status, &json["status"]), (200, &"success".into()), "{json}");
}

async fn outcomes<const N: usize>(proxy: &Accelerated, targets: [&str; N]) -> Vec<String> {
    let mut outcomes = Vec::new();
    for target in targets {
        outcomes.push(outcome(&proxy.get(target).await).to_owned());
    }
    outcomes
}

#[tokio::test]
async fn a_tag_purges_its_answers_in_all_variants_and_no_others() {
    let origin = Origin::start(|request| match request.path() {
        "/a" => fresh("a").header("surrogate-key", "user:1 all"),
        "/b" => fresh("b").header("cache-tag", "user:2, all"),
        "/varies" => {
            fresh("c").header("vary", "x-language").header("surrogate-key", "user:1 texts")
        }
        _ => fresh("d"),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let languages = [("X-Language", "de"), ("X-Language", "en")];
    let all = async || {
        let mut all = outcomes(&proxy, ["/a", "/b", "/none"]).await;
        for language in languages {
            all.push(outcome(&proxy.get_with("/varies", &[language]).await).to_owned());
        }
        all
    };
    all().await;
    assert_eq!(all().await, ["HIT"; 5]);
    let answer = proxy.get("/a").await;
    assert_eq!(answer.header("surrogate-key"), Some("user:1 all"), "others may want it");
    purge(&proxy, r#"["user:2"]"#, false).await;
    assert_eq!(all().await, ["HIT", "MISS", "HIT", "HIT", "HIT"]);
    purge(&proxy, r#"["user:1"]"#, false).await;
    assert_eq!(all().await, ["MISS", "HIT", "HIT", "MISS", "MISS"]);
    purge(&proxy, r#"["nobody", "texts", "all"]"#, false).await;
    assert_eq!(all().await, ["MISS", "MISS", "HIT", "MISS", "MISS"]);
    assert_eq!(all().await, ["HIT"; 5]);
}

#[tokio::test]
async fn what_was_asked_for_before_a_purge_is_not_kept_and_nobody_waits_for_it() {
    for vary in [None, Some("x-language")] {
        let gate = Gate::new();
        let (waits, count) = (gate.clone(), Count::default());
        let origin = Origin::start(move |request| {
            let reply = fresh(count.next()).header("surrogate-key", "it");
            let reply = vary.iter().fold(reply, |reply, vary| reply.header("vary", vary));
            if request.index == 0 { reply.when(&waits) } else { reply }
        })
        .await;
        let proxy = Accelerated::to(&origin).await;
        let early = async { proxy.get("/").await.text().to_owned() };
        let late = async {
            eventually("the origin is asked", || origin.hits() == 1).await;
            purge(&proxy, r#"["it"]"#, false).await;
            let answer = proxy.get("/").await;
            assert_eq!((answer.text(), outcome(&answer)), ("2", "MISS"));
            gate.open();
        };
        let (early, ()) = tokio::join!(early, late);
        assert_eq!(early, "1");
        assert_eq!(proxy.get("/").await.text(), "2");
    }
}

#[tokio::test]
async fn a_soft_purge_leaves_what_may_be_served_stale() {
    let origin = Origin::start(first_then(
        |request| {
            let windows = match request.path() {
                "/swr" => ", stale-while-revalidate=600",
                "/error" => ", stale-if-error=600",
                _ => "",
            };
            fresh("old")
                .header("cache-control", &format!("max-age=60{windows}"))
                .header("etag", "\"v1\"")
                .header("cache-tag", "it")
        },
        |request| match request.path() {
            "/error" => Reply::status(500),
            "/304" => {
                assert_eq!(request.header("if-none-match"), Some("\"v1\""));
                Reply::status(304).header("etag", "\"v1\"").header("cache-control", "max-age=60")
            }
            _ => fresh("new").header("cache-tag", "it"),
        },
    ))
    .await;
    let proxy = Accelerated::to(&origin).await;
    let targets = ["/swr", "/error", "/304", "/plain"];
    outcomes(&proxy, targets).await;
    purge(&proxy, r#"["it"]"#, true).await;
    let answer = proxy.get("/swr").await;
    assert_eq!((answer.text(), outcome(&answer)), ("old", "STALE"));
    eventually("it is refreshed", || origin.hits() == 5).await;
    let refreshed = async || outcome(&proxy.get("/swr").await) == "HIT";
    while !refreshed().await {
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.get("/swr").await.text(), "new");
    let answer = proxy.get("/error").await;
    assert_eq!((answer.status, answer.text(), outcome(&answer)), (200, "old", "STALE"));
    let answer = proxy.get("/304").await;
    assert_eq!((answer.status, answer.text()), (200, "old"));
    assert_eq!(outcomes(&proxy, ["/304"]).await, ["HIT"], "validated, so fresh again");
    let answer = proxy.get("/plain").await;
    assert_eq!((answer.text(), outcome(&answer)), ("new", "MISS"));
}

#[tokio::test]
async fn a_restart_does_not_bring_back_what_was_purged() {
    let origin = Origin::start(|_| fresh("body").header("surrogate-key", "it")).await;
    let directory = tempfile::tempdir().expect("a directory");
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    assert_eq!(outcomes(&proxy, ["/", "/"]).await, ["MISS", "HIT"]);
    proxy.shutdown(std::time::Duration::from_secs(5)).await;
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    assert_eq!(outcomes(&proxy, ["/"]).await, ["HIT"], "the disk has it");
    purge(&proxy, r#"["it"]"#, false).await;
    proxy.shutdown(std::time::Duration::from_secs(5)).await;
    let proxy = Accelerated::on_disk(&origin, directory.path()).await;
    assert_eq!(outcomes(&proxy, ["/"]).await, ["MISS"]);
}

#[tokio::test]
async fn a_purge_that_names_nothing_or_too_much_is_refused() {
    let origin = Origin::start(|_| fresh("body")).await;
    let proxy = Accelerated::to(&origin).await;
    for body in [
        "{}",
        r#"{"soft":true}"#,
        r#"{"tags":[]}"#,
        r#"{"tags":[""]}"#,
        r#"{"tags":[" a"]}"#,
        r#"{"tags":["a"],"url":"http://test/"}"#,
        r#"{"url":"http://test/","soft":true}"#,
        r#"{"tags":"a"}"#,
    ] {
        let (status, json) = proxy.admin("POST", "/cache/purge", body).await;
        assert_eq!(status, 422, "{body}: {json}");
    }
}
