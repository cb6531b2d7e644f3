//! Answers that are compressed for clients that accept it.

use std::io::Read as _;

use flate2::read::GzDecoder;

use super::*;
use crate::{
    accelerator::{Accelerated, outcome},
    support::{client::Answer, origin::Origin},
};

const TEXT_BYTES: usize = 20_000;
const GZIP: (&str, &str) = ("Accept-Encoding", "gzip, identity;q=0.5");

fn text(control: &str) -> Reply {
    let reply = Reply::ok(vec![b'x'; TEXT_BYTES]).header("content-type", "text/plain");
    reply.header("cache-control", control).header("etag", "\"v1\"")
}

/// Whether an answer is the text as gzip.
fn is_gzip(answer: &Answer) -> bool {
    let mut text = String::new();
    answer.header("content-encoding") == Some("gzip")
        && answer.body.len() < TEXT_BYTES / 20
        && GzDecoder::new(&answer.body[..]).read_to_string(&mut text).is_ok()
        && text == "x".repeat(TEXT_BYTES)
}

#[tokio::test]
async fn a_text_is_stored_as_it_goes_out() {
    let origin = Origin::start(|_| text("max-age=60")).await;
    let proxy = Accelerated::to(&origin).await;
    for (accepted, expected) in [("gzip", "MISS"), ("gzip;q=0.9", "HIT"), ("x, GZIP", "HIT")] {
        let answer = proxy.get_with("/", &[("Accept-Encoding", accepted)]).await;
        assert_eq!((outcome(&answer), is_gzip(&answer)), (expected, true), "{accepted}");
        assert_eq!(answer.header("etag"), Some("W/\"v1\""));
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
    }
    let plain = proxy.get("/").await;
    assert_eq!((outcome(&plain), plain.body.len()), ("MISS", TEXT_BYTES));
    assert_eq!((plain.header("content-encoding"), plain.header("etag")), (None, Some("\"v1\"")));
    let asked: Vec<_> = origin.received();
    let asked: Vec<_> = asked.iter().map(|request| request.header("accept-encoding")).collect();
    assert_eq!(asked, [Some("gzip"), None]);
}

#[tokio::test]
async fn a_compressed_answer_is_validated_by_its_weak_tag() {
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some("W/\"v1\"") => Reply::status(304).header("etag", "\"v1\""),
        Some(other) => Reply::ok(format!("not {other}")),
        None => text("no-cache"),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for expected in ["MISS", "HIT", "HIT"] {
        let answer = proxy.get_with("/", &[GZIP]).await;
        assert_eq!((outcome(&answer), is_gzip(&answer)), (expected, true));
    }
    assert_eq!(origin.hits(), 3, "one call for each");
}

#[tokio::test]
async fn answers_that_are_not_for_the_cache_are_compressed_as_well() {
    let origin = Origin::start(|_| text("no-store")).await;
    let proxy = Accelerated::to(&origin).await;
    let answer = proxy.send("POST", "/", &[GZIP], "").await;
    assert_eq!((outcome(&answer), is_gzip(&answer)), ("BYPASS", true));
    let answer = proxy.get_with("/", &[GZIP]).await;
    assert_eq!((outcome(&answer), is_gzip(&answer)), ("MISS", true));
}

#[tokio::test]
async fn compression_can_be_turned_off() {
    let origin = Origin::start(|_| text("max-age=60")).await;
    let proxy = Accelerated::with(&origin.url(), &[("server.compression", "false")]).await;
    let answer = proxy.get_with("/", &[GZIP]).await;
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, None));
    assert_eq!(answer.body.len(), TEXT_BYTES);
    assert_eq!(origin.last().header("accept-encoding"), Some(GZIP.1), "as the client sent it");
}

#[tokio::test]
async fn a_304_that_does_not_know_of_compression_does_not_undo_it() {
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some(_) => Reply::status(304).header("etag", "\"v1\"").header("vary", "origin"),
        None => text("no-cache").header("vary", "origin"),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for expected in ["MISS", "HIT", "HIT"] {
        let answer = proxy.get_with("/", &[GZIP]).await;
        assert_eq!((outcome(&answer), is_gzip(&answer)), (expected, true));
        let varies = answer.header_all("vary");
        assert!(varies.contains(&"accept-encoding"), "{expected}: {varies:?}");
    }
    let plain = proxy.get("/").await;
    assert_eq!((plain.header("content-encoding"), plain.body.len()), (None, TEXT_BYTES));
}

#[tokio::test]
async fn a_client_that_wants_no_coding_gets_none_from_the_origin_either() {
    let origin = Origin::start(|request| match request.header("accept-encoding") {
        Some("identity") => text("max-age=60"),
        _ => Reply::ok("packed").header("content-encoding", "gzip"),
    })
    .await;
    let proxy = Accelerated::to(&origin).await;
    for accepted in ["identity", "*;q=0", "gzip;q=0", ""] {
        let answer = proxy.get_with("/", &[("Accept-Encoding", accepted)]).await;
        assert_eq!(answer.header("content-encoding"), None, "{accepted}");
        assert_eq!(answer.body.len(), TEXT_BYTES, "{accepted}");
    }
    assert_eq!(origin.hits(), 1, "they want the same");
}
