//! Answers that depend on fields of the request.

use super::*;
use crate::{
    accelerator::{Accelerated, outcome},
    support::{
        origin::{Gate, Origin},
        soon,
    },
};

/// Answers with the values of the fields named in the query, and says that it varies on them.
fn varying(request: &Received) -> Reply {
    let fields = request.target.split('?').nth(1).unwrap_or_default();
    let values: Vec<_> =
        fields.split(',').map(|name| request.header(name).unwrap_or("none")).collect();
    fresh(values.join("|")).header("vary", fields)
}

#[tokio::test]
async fn each_variant_is_a_hit_for_its_own_requests() {
    let origin = Origin::start(varying).await;
    // Where it compresses, the proxy itself reduces the field.
    let proxy = Accelerated::with(&origin.url(), &[("server.compression", "false")]).await;
    let cases = [
        (&[("Accept-Encoding", "gzip, br")][..], "MISS", "gzip, br"),
        (&[("Accept-Encoding", "identity")], "MISS", "identity"),
        (&[], "MISS", "none"),
        (&[("Accept-Encoding", "gzip, br")], "HIT", "gzip, br"),
        (&[("Accept-Encoding", "BR,gzip")], "HIT", "gzip, br"),
        (&[("Accept-Encoding", "identity")], "HIT", "identity"),
        (&[], "HIT", "none"),
        (&[("Accept", "anything")], "HIT", "none"),
    ];
    for (fields, expected, body) in cases {
        let answer = proxy.get_with("/?accept-encoding", fields).await;
        assert_eq!((outcome(&answer), answer.text()), (expected, body), "{fields:?}");
    }
    let miss = proxy.get_with("/?accept-encoding", &[("Accept-Encoding", "zstd")]).await;
    assert!(miss.header("cache-status").expect("one").contains("fwd=vary-miss"), "{miss:?}");
}

#[tokio::test]
async fn variants_are_told_apart_by_every_field_that_any_of_them_named() {
    let origin = Origin::start(|request| {
        let body =
            [request.header("x-a").unwrap_or("-"), request.header("x-b").unwrap_or("-")].concat();
        // Whoever sends no X-A gets an answer that names X-A alone.
        fresh(body).header("vary", if request.header("x-a").is_some() { "x-a, x-b" } else { "x-a" })
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    let ask = async |a: &str, b: &str| {
        let fields: Vec<_> =
            [("X-A", a), ("X-B", b)].into_iter().filter(|(_, value)| *value != "-").collect();
        let answer = proxy.get_with("/", &fields).await;
        assert_eq!(answer.text(), [a, b].concat());
        outcome(&answer).to_owned()
    };
    assert_eq!(ask("-", "-").await, "MISS");
    assert_eq!(ask("1", "1").await, "MISS");
    assert_eq!(ask("1", "2").await, "MISS");
    for (a, b) in [("1", "1"), ("1", "2")] {
        assert_eq!(ask(a, b).await, "HIT", "{a} {b}");
    }
}

#[tokio::test]
async fn variants_that_come_at_once_are_all_kept() {
    let gate = Gate::new();
    let at_origin = gate.clone();
    let origin = Origin::start(move |request| varying(request).when(&at_origin)).await;
    let proxy = Accelerated::to(&origin).await;
    let languages: Vec<String> = (0..8).map(|n| format!("l{n}")).collect();
    let ask = async |language: &str| {
        let answer = proxy.get_with("/?x-language", &[("X-Language", language)]).await;
        assert_eq!(answer.text(), language);
        outcome(&answer).to_owned()
    };
    let twice = languages.iter().chain(&languages);
    let all = futures_util::future::join_all(twice.map(|language| ask(language)));
    let (_, ()) = tokio::join!(soon("the answers", all), async {
        // One flight finds out that there are variants; then each of them has a flight.
        origin.wait_for_hits(1).await;
        gate.let_through(1);
        origin.wait_for_hits(8).await;
        gate.open();
    });
    for language in &languages {
        assert_eq!(ask(language).await, "HIT", "{language}");
    }
    assert_eq!(origin.hits(), 8);
}

#[tokio::test]
async fn an_invalidation_takes_all_variants() {
    let origin = Origin::start(varying).await;
    let proxy = Accelerated::to(&origin).await;
    let variants = ["en", "de", "fr"];
    let ask = async |language| {
        let answer = proxy.get_with("/?x-language", &[("X-Language", language)]).await;
        outcome(&answer).to_owned()
    };
    for by in ["request", "purge"] {
        for expected in ["MISS", "HIT"] {
            for language in variants {
                assert_eq!(ask(language).await, expected, "{language}");
            }
        }
        match by {
            "request" => {
                proxy.send("DELETE", "/?x-language", &[], "").await;
            }
            _ => proxy.purge("/?x-language").await,
        }
    }
    for language in variants {
        assert_eq!(ask(language).await, "MISS", "{language}");
    }
}

#[tokio::test]
async fn a_target_that_names_ever_new_fields_stays_correct() {
    let count = Count::default();
    let origin = Origin::start(move |_| {
        let n = count.next();
        fresh(n.clone()).header("vary", &format!("x-{n}"))
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for n in 1..=80 {
        // Each asks for a variant that nobody has asked for.
        let all: Vec<_> = (1..=80).map(|field| (format!("X-{field}"), n.to_string())).collect();
        let fields: Vec<_> = all.iter().map(|(name, value)| (&**name, &**value)).collect();
        let answer = proxy.get_with("/", &fields).await;
        assert_eq!(outcome(&answer), "MISS", "{n}");
    }
    assert_eq!(origin.hits(), 80);
}
