//! Answers that are compressed once and stored as they go out.

use std::io::Read as _;

use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::routing::get;
use flate2::read::GzDecoder;
use ultra_perf_http::layers;

use super::*;

const TEXT_BYTES: usize = 20_000;

/// A service with one long text, of version 1.
async fn text(perf: &UltraPerf) -> (Served, Calls) {
    let calls = Calls::default();
    let counted = calls.clone();
    let handler = move || {
        counted.next();
        let fields = [
            (CACHE_CONTROL, "max-age=60"),
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
            (ETAG, "\"v1\""),
        ];
        async move { (fields, "x".repeat(TEXT_BYTES)) }
    };
    let app = Router::new().route("/", get(handler)).layer(layers(perf));
    (Served::start(app).await, calls)
}

#[tokio::test]
async fn a_text_is_compressed_once_for_all_who_accept_the_same() {
    let perf = perf().await;
    let (served, calls) = text(&perf).await;
    for (accepted, expected) in
        [("gzip", "MISS"), ("gzip;q=1.0, deflate;q=0.5", "HIT"), ("GZIP, identity;q=0.1", "HIT")]
    {
        let answer = served.get_with("/", &[("accept-encoding", accepted)]).await;
        assert_eq!((outcome(&answer), answer.complete), (expected, true), "{accepted}");
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        assert!(answer.body.len() < TEXT_BYTES / 20, "{}", answer.body.len());
        let mut text = String::new();
        GzDecoder::new(&answer.body[..]).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "x".repeat(TEXT_BYTES));
    }
    assert_eq!(calls.count(), 1);
    let plain = served.get("/").await;
    assert_eq!((outcome(&plain), plain.header("content-encoding")), ("MISS", None));
    assert_eq!(plain.body.len(), TEXT_BYTES);
    for (accepted, coding) in [("br", "br"), ("deflate", "deflate"), ("gzip, zstd", "zstd")] {
        let answer = served.get_with("/", &[("accept-encoding", accepted)]).await;
        assert_eq!(answer.header("content-encoding"), Some(coding));
        assert!(answer.body.len() < TEXT_BYTES / 20, "{}", answer.body.len());
    }
    assert_eq!(calls.count(), 5);
}

#[tokio::test]
async fn a_compressed_answer_has_a_weak_tag_that_its_client_may_ask_about() {
    let perf = perf().await;
    let (served, calls) = text(&perf).await;
    let gzip = ("accept-encoding", "gzip");
    let answer = served.get_with("/", &[gzip]).await;
    assert_eq!(answer.header("etag"), Some("W/\"v1\""));
    let known = served.get_with("/", &[gzip, ("if-none-match", "W/\"v1\"")]).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    let plain = served.get("/").await;
    assert_eq!(plain.header("etag"), Some("\"v1\""));
    assert_eq!(calls.count(), 2);
}

#[tokio::test]
async fn without_a_cache_answers_are_compressed_as_they_come() {
    let perf = perf().await;
    let fields = [(CONTENT_TYPE, "application/json")];
    let handler = move || async move { (fields, "0".repeat(TEXT_BYTES)) };
    let app = Router::new().route("/", get(handler)).layer(layers(&perf).response_cache(None));
    let served = Served::start(app).await;
    let answer = served.get_with("/", &[("accept-encoding", "gzip")]).await;
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(answer.complete && answer.body.len() < TEXT_BYTES / 20);
}
