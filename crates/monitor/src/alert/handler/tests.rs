//! Tests of the handlers against servers, files and listeners of their own.

use std::io::Write as _;

use super::*;
use crate::alert::Severity;
use crate::alert::event::Fingerprint;

/// An event of a rule `cache_hit_low`.
pub(in crate::alert) fn event(key: &str, kind: EventKind) -> AlertEvent {
    let starts_at_ms = 1_700_000_000_000;
    AlertEvent {
        key: key.to_owned(),
        kind,
        rule: "cache_hit_low".into(),
        labels: Labels::new([("cache", "users"), ("team", "web")]),
        severity: Severity::Warning,
        value: Some(0.5),
        threshold: Some(0.7),
        summary: "few hits".to_owned(),
        description: String::new(),
        runbook: String::new(),
        starts_at_ms,
        ends_at_ms: (kind == EventKind::Resolve).then_some(starts_at_ms + 60_000),
        at_ms: starts_at_ms,
        fingerprint: Fingerprint(0xff),
        handlers: vec!["hook".into()],
        group: "cache_hit_low".into(),
        recommend: Vec::new(),
    }
}

/// A message of events of these keys.
pub(in crate::alert) fn message(keys: &[&str]) -> Message {
    Message {
        key: format!("hook/{}", keys[0]),
        group: Labels::new([("alertname", "cache_hit_low")]),
        events: keys.iter().map(|key| Arc::new(event(key, EventKind::Fire))).collect(),
        attempts: 0,
    }
}

#[test]
fn a_handler_gets_what_its_filter_lets_through_and_the_end_of_what_it_was_told() {
    let options = DeliveryOptions {
        min_severity: Severity::Error,
        matchers: crate::Selector::parse_matchers("team=\"web\",alertname=~\"cache.*\"")
            .expect("matchers"),
        ..DeliveryOptions::new("page")
    };
    let wants = |kind, severity, team: &str, told| {
        let labels = Labels::new([("team", team)]);
        options.wants(&AlertEvent { severity, labels, ..event("a", kind) }, told)
    };
    assert!(wants(EventKind::Fire, Severity::Error, "web", false));
    assert!(wants(EventKind::Escalate, Severity::Critical, "web", false));
    assert!(!wants(EventKind::Fire, Severity::Warning, "web", false), "not bad enough");
    assert!(!wants(EventKind::Fire, Severity::Error, "data", false), "another team");
    assert!(wants(EventKind::DeEscalate, Severity::Info, "web", true));
    assert!(!wants(EventKind::DeEscalate, Severity::Info, "web", false));
    assert!(wants(EventKind::Resolve, Severity::Info, "web", true));
    assert!(!wants(EventKind::Resolve, Severity::Critical, "web", false), "it never heard of it");
    let no_ends = DeliveryOptions { send_resolved: false, ..options.clone() };
    assert!(!no_ends.wants(&event("a", EventKind::Resolve), true));
}

#[tokio::test]
async fn listeners_get_each_event_and_nobody_listening_is_no_failure() {
    let channel = ChannelHandler::new(2);
    channel.handle(&message(&["a"]), 0).await.expect("nobody listens");
    let mut heard = channel.subscribe();
    channel.handle(&message(&["b", "c"]), 0).await.expect("it is heard");
    assert_eq!(heard.recv().await.expect("an event").key, "b");
    assert_eq!(heard.recv().await.expect("an event").key, "c");
    assert!(heard.try_recv().is_err(), "what was before is not heard");
}

#[tokio::test]
async fn a_callback_ends_its_message_with_the_first_failure() {
    let calls = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let callback = CallbackHandler::new(move |event: &AlertEvent| {
        seen.lock().push(event.key.clone());
        if event.key == "b" { Err(HandlerError::failed("no paper")) } else { Ok(()) }
    });
    let failed = callback.handle(&message(&["a", "b", "c"]), 0).await;
    assert_eq!(failed, Err(HandlerError::failed("no paper")));
    assert_eq!(*calls.lock(), ["a", "b"]);
}

fn keys_in(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let key = |line: &str| {
        let line: AlertEvent = serde_json::from_str(line).expect("a line of JSON");
        line.key
    };
    text.lines().map(key).collect()
}

#[tokio::test]
async fn a_line_is_written_once_even_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sub/alerts.jsonl");
    let open = || JsonLinesHandler::new(&path, 1 << 20);
    let handler = open();
    handler.handle(&message(&["a", "b"]), 0).await.expect("written");
    handler.handle(&message(&["a", "b"]), 0).await.expect("passed over");
    assert_eq!(keys_in(&path), ["a", "b"]);
    // A crash in the middle of a line, and the same message again.
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("the file");
    file.write_all(br#"{"key":"c","kind":"fi"#).expect("half a line");
    let handler = open();
    handler.handle(&message(&["b", "c"]), 0).await.expect("written");
    assert_eq!(keys_in(&path), ["a", "b", "c"]);
    // Somebody moves it away.
    std::fs::remove_file(&path).expect("removed");
    handler.handle(&message(&["d"]), 0).await.expect("begun anew");
    assert_eq!(keys_in(&path), ["d"]);
}

#[tokio::test]
async fn half_a_line_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "my notes").expect("written");
    let handler = JsonLinesHandler::new(&path, 1 << 20);
    handler.handle(&message(&["a"]), 0).await.expect("written");
    let text = std::fs::read_to_string(&path).expect("text");
    assert!(text.starts_with("my notes\n{\"key\":\"a\""), "{text}");
}

#[tokio::test]
async fn a_file_and_the_one_before_it_have_a_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("alerts.jsonl");
    let line = serde_json::to_vec(&event("a-00", EventKind::Fire)).expect("JSON").len() as u64 + 1;
    let handler = JsonLinesHandler::new(&path, 3 * line);
    for at in 0..8 {
        handler.handle(&message(&[&format!("a-{at:02}")]), 0).await.expect("written");
    }
    assert_eq!(keys_in(&path), ["a-06", "a-07"]);
    assert_eq!(keys_in(&folder.path().join("alerts.jsonl.1")), ["a-03", "a-04", "a-05"]);
    // What is in the file before is known too.
    let again = JsonLinesHandler::new(&path, 3 * line);
    again.handle(&message(&["a-05", "a-07"]), 0).await.expect("passed over");
    assert_eq!(keys_in(&path), ["a-06", "a-07"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_a_failure_that_may_pass() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("taken");
    std::fs::create_dir(&path).expect("a folder in its place");
    let handler = JsonLinesHandler::new(&path, 1_000);
    let error = handler.handle(&message(&["a"]), 0).await.expect_err("it is a folder");
    assert!(error.may_retry() && error.to_string().contains("taken"), "{error}");
}

#[cfg(feature = "webhook")]
mod over_the_network {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers one connection after the other; an empty answer closes it.
    pub(super) async fn server(
        answers: &'static [&'static str],
    ) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("it listens");
                let mut request = Vec::new();
                while !whole(&request) {
                    let read = stream.read_buf(&mut request).await.expect("it is readable");
                    assert!(read > 0, "the request ends early");
                }
                asked.push(String::from_utf8(request).expect("it is text"));
                if !answer.is_empty() {
                    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("it is writable");
                }
            }
            asked
        });
        (url, task)
    }

    fn whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
    }

    #[tokio::test]
    async fn a_webhook_carries_its_key_its_headers_its_token_and_a_signature() {
        let (url, server) = server(&["204 Done"]).await;
        let webhook = WebhookHandler::new("hook", &format!("{url}/in?of=shop"))
            .expect("a URL")
            .header("x-team", "web")
            .expect("a header")
            .token(Secret::new("sesame"))
            .sign_with(Secret::new("key"));
        webhook.handle(&message(&["a"]), 1_700_000_000_000).await.expect("taken");
        let request = server.await.expect("it was asked").remove(0);
        let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
        for line in [
            "POST /in?of=shop HTTP/1.1",
            "content-type: application/json",
            "idempotency-key: hook/a",
            "x-team: web",
            "authorization: Bearer sesame",
        ] {
            assert!(head.lines().any(|it| it == line), "{line} in {head}");
        }
        let signature = head.lines().find_map(|line| line.strip_prefix("x-signature: "));
        let signature = signature.expect("a signature");
        let tolerance = Duration::from_secs(1);
        let body = body.as_bytes();
        assert!(verify_signature(b"key", signature, body, 1_700_000_000_000, tolerance));
    }

    #[tokio::test]
    async fn what_breaks_may_be_tried_again_and_what_is_refused_may_not() {
        let (url, server) = server(&["", "503 Busy", "400 What"]).await;
        let webhook = WebhookHandler::new("hook", &url).expect("a URL");
        let message = message(&["a"]);
        let mut outcomes = Vec::new();
        for _ in 0..3 {
            let error = webhook.handle(&message, 0).await.expect_err("not taken");
            outcomes.push(error.may_retry());
        }
        assert_eq!(outcomes, [true, true, false]);
        server.await.expect("it was asked three times");
        let error = webhook.handle(&message, 0).await.expect_err("nobody listens");
        assert!(error.may_retry() && error.to_string().starts_with("cannot connect"), "{error}");
    }

    #[tokio::test]
    async fn one_alertmanager_of_several_is_enough() {
        let (broken, _server) = server(&["500 No"]).await;
        let (good, server) = server(&["200 OK"]).await;
        let handler = AlertmanagerHandler::new([broken.as_str(), &good]).expect("URLs");
        handler.handle(&message(&["a"]), 1_700_000_000_000).await.expect("one took it");
        let request = server.await.expect("it was asked").remove(0);
        assert!(request.starts_with("POST /api/v2/alerts HTTP/1.1"), "{request}");
        let (_, body) = request.split_once("\r\n\r\n").expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body[0]["labels"]["alertname"], "cache_hit_low");
        assert_eq!(body[0]["endsAt"], "2023-11-14T22:17:20Z");
        let handler = AlertmanagerHandler::new([broken.as_str()]).expect("a URL");
        handler.handle(&message(&["b"]), 0).await.expect_err("nobody is there any more");
    }

    #[tokio::test]
    async fn who_does_not_speak_tls_is_no_receiver_of_https() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let webhook = WebhookHandler::new("hook", &format!("https://{address}/")).expect("a URL");
        let message = message(&["a"]);
        let plain = async {
            let (mut stream, _) = listener.accept().await.expect("it listens");
            stream.write_all(b"HTTP/1.1 204 Done\r\n\r\n").await.expect("it is writable");
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            answer = webhook.handle(&message, 0) => answer.expect_err("it does not speak TLS"),
            () = plain => unreachable!("it waits forever"),
        };
        assert!(error.may_retry() && error.to_string().starts_with("TLS: "), "{error}");
    }
}

#[test]
fn a_handler_of_a_file_is_made_or_says_what_is_wrong() {
    let channel = ChannelHandler::new(1);
    let make = |kind| handler_of(&HandlerSpec::new("x", kind), &channel).err();
    assert!(make(HandlerKind::Log).is_none() && make(HandlerKind::Channel).is_none());
    let webhook = |url: &str, hmac| HandlerKind::Webhook {
        url: url.into(),
        headers: vec![("x-a".into(), "1".into())],
        token: None,
        hmac,
    };
    #[cfg(feature = "webhook")]
    {
        assert!(make(webhook("http://127.0.0.1:1", None)).is_none());
        let missing = SecretSource::File("/nonexistent/secret".into());
        let problem = make(webhook("http://127.0.0.1:1", Some(missing))).expect("no secret");
        assert!(problem.to_string().starts_with("handler \"x\": the secret in /nonexistent"));
        let problem = make(webhook("nowhere", None)).expect("no URL");
        assert!(problem.to_string().contains("must begin with http://"), "{problem}");
    }
    #[cfg(not(feature = "webhook"))]
    {
        let problem = make(webhook("http://127.0.0.1:1", None)).expect("it is not compiled in");
        assert!(problem.to_string().contains("feature `webhook`"), "{problem}");
    }
}
