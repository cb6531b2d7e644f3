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

#[tokio::test]
async fn an_answer_to_head_says_what_the_one_to_get_would() {
    let perf = perf().await;
    let (served, _) = text(&perf).await;
    let gzip = ("accept-encoding", "gzip");
    let described = |answer: &Answer| {
        ["content-encoding", "etag", "vary", "content-length"]
            .map(|name| answer.header(name).map(str::to_owned))
    };
    for fields in [&[gzip][..], &[]] {
        // The first comes from the service, the second from what is stored of the GET.
        let head = send(&mut served.client().await, "HEAD", "/", fields).await;
        assert_eq!(outcome(&head), "MISS");
        let get = served.get_with("/", fields).await;
        let mut expected = described(&get);
        if fields.is_empty() {
            expected[3] = Some(TEXT_BYTES.to_string());
        }
        assert_eq!(described(&head), expected, "{fields:?}");
    }
}

#[tokio::test]
async fn the_configuration_turns_compression_off() {
    let perf = UltraPerf::builder()
        .set("cache.disk.enabled", "false")
        .set("monitor.history.enabled", "false")
        .set("server.compression", "false");
    let perf = perf.build().await.expect("a handle");
    let (served, _) = text(&perf).await;
    let answer = served.get_with("/", &[("accept-encoding", "gzip")]).await;
    assert_eq!((answer.header("content-encoding"), answer.body.len()), (None, TEXT_BYTES));
}
