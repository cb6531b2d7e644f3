//! Webhooks over TLS: a certificate that the machine trusts is good, and any other is refused.
//!
//! What a machine trusts is the same for a whole process, so each attempt is a child: this test program
//! again, running only `sends_one_message` with `SSL_CERT_FILE` naming what it trusts.

#![cfg(feature = "webhook")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use monitor::alert::{
    AlertEvent, AlertHandler as _, EventKind, Fingerprint, Message, Severity, WebhookHandler,
};
use monitor::{Labels, SystemClock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const URL: &str = "ULTRA_PERF_WEBHOOK_URL";

fn message() -> Message {
    let event = AlertEvent {
        key: "a".to_owned(),
        kind: EventKind::Fire,
        rule: "deep".into(),
        labels: Labels::default(),
        severity: Severity::Error,
        value: None,
        threshold: None,
        summary: "too deep".to_owned(),
        description: String::new(),
        runbook: String::new(),
        starts_at_ms: 0,
        ends_at_ms: None,
        at_ms: 0,
        fingerprint: Fingerprint(1),
        handlers: Vec::new(),
        group: "deep".into(),
        recommend: Vec::new(),
    };
    let events = vec![Arc::new(event)];
    Message { key: "hook/a".to_owned(), group: Labels::default(), events, attempts: 0 }
}

#[tokio::test]
#[ignore = "the child of only_a_trusted_certificate_is_good"]
async fn sends_one_message() {
    let Ok(url) = std::env::var(URL) else { return };
    let webhook = WebhookHandler::new("hook", &url).expect("a URL");
    let now = monitor::Clock::now(&SystemClock::new());
    let outcome = webhook.handle(&message(), now.unix_ms).await;
    println!("outcome: {outcome:?}");
}

/// Makes a certificate for the loopback that vouches for itself; nothing without the program for it.
fn certificate(folder: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=hook.test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&pem)
        .output()
        .ok()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some((pem, key))
}

/// What a child that trusts a certificate says about sending to a URL.
async fn outcome(url: &str, trusts: &Path) -> String {
    let mut child =
        tokio::process::Command::new(std::env::current_exe().expect("this program has a path"));
    child.args(["--exact", "sends_one_message", "--ignored", "--nocapture"]);
    child.env(URL, url).env("SSL_CERT_FILE", trusts).kill_on_drop(true);
    let output = child.output().await.expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| Some(line.split_once("outcome: ")?.1));
    line.unwrap_or_else(|| panic!("no outcome in {text}")).to_owned()
}

#[tokio::test]
async fn only_a_trusted_certificate_is_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((own, key)) = certificate(folder.path(), "own") else {
        return println!("SKIPPED: no certificate without openssl");
    };
    let (other, _) = certificate(folder.path(), "other").expect("the program is there");
    let chain = CertificateDer::pem_file_iter(&own).expect("a file");
    let chain: Vec<_> = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("https://{}/in", listener.local_addr().expect("it is bound"));
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it listens");
            // A client that does not trust us ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            assert!(request.starts_with(b"POST /in HTTP/1.1\r\n"));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    assert_eq!(outcome(&url, &own).await, "Ok(())");
    let refused = outcome(&url, &other).await;
    assert!(refused.contains("TLS: invalid peer certificate"), "{refused}");
    server.abort();
}
