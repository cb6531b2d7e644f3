//! Clients over TLS: HTTP/2 where the host offers it, HTTP/1.1 where it does not, and whom they trust.
//!
//! What a machine trusts is the same for a whole process, so each scenario is a child: this test program
//! again, running only that one, with `SSL_CERT_FILE` naming what it trusts.

mod support;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::soon;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ultra_perf::UltraPerf;
use ultra_perf_http::{HttpClientError, HttpClientOptions, HttpClients as _};

/// The certificate of the host, and its key, as a child is told.
const CERTIFICATE: &str = "ULTRA_PERF_TEST_CERTIFICATE";
const KEY: &str = "ULTRA_PERF_TEST_KEY";
/// What `/large` has.
const LARGE_BYTES: usize = 100_000;

/// Makes a certificate for the loopback that vouches for itself; nothing without the program for it.
fn certificate(folder: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=host.test"])
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

/// Runs a scenario in a child that trusts the host's certificate, or another one.
fn run(scenario: &str, is_trusted: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((own, key)) = certificate(folder.path(), "own") else {
        return println!("SKIPPED: no certificate without openssl");
    };
    let (other, _) = certificate(folder.path(), "other").expect("the program is there");
    let output = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", scenario, "--ignored", "--nocapture"])
        .env(CERTIFICATE, &own)
        .env(KEY, &key)
        .env("SSL_CERT_FILE", if is_trusted { &own } else { &other })
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("the child runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}\n{failed}");
}

#[test]
fn a_host_that_offers_http_2_is_asked_over_one_connection() {
    run("child_http_2", true);
}

#[test]
fn a_host_that_offers_http_1_alone_is_asked_by_that() {
    run("child_http_1", true);
}

#[test]
fn a_host_whose_certificate_nobody_vouches_for_is_sent_nothing() {
    run("child_untrusted", false);
}

/// A host that speaks TLS, in a child; it stops when dropped.
struct Host {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    /// Starts one that offers these protocols; `None` outside of a child.
    async fn start(protocols: &[&str]) -> Option<Self> {
        let (certificate, key) = (std::env::var_os(CERTIFICATE)?, std::env::var_os(KEY)?);
        let chain = CertificateDer::pem_file_iter(certificate).expect("a file");
        let chain: Vec<_> = chain.collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a configuration");
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (connections, requests) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counted = (Arc::clone(&connections), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("it listens");
                // A client that does not trust us ends the handshake.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                counted.0.fetch_add(1, Ordering::SeqCst);
                let requests = Arc::clone(&counted.1);
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::SeqCst);
                    answer(request)
                });
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    let _ = match is_http2 {
                        true => {
                            let http2 = http2::Builder::new(TokioExecutor::new());
                            http2.serve_connection(io, service).await
                        }
                        false => http1::Builder::new().serve_connection(io, service).await,
                    };
                });
            }
        });
        Some(Self { address, connections, requests, task })
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Says how long `/large` is also where nothing of it comes, and gives a body back otherwise.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let large = Full::from(vec![b'x'; LARGE_BYTES]);
    let announced = |status| {
        let response = Response::builder().status(status).header(CONTENT_LENGTH, LARGE_BYTES);
        response.body(Full::default()).expect("an answer")
    };
    Ok(match (request.method(), request.uri().path()) {
        (&Method::HEAD, _) => announced(StatusCode::OK),
        (_, "/unchanged") => announced(StatusCode::NOT_MODIFIED),
        (_, "/large") => Response::new(large),
        _ => match request.into_body().collect().await {
            Ok(body) => Response::new(Full::from(body.to_bytes())),
            Err(_) => {
                let response = Response::builder().status(StatusCode::BAD_REQUEST);
                response.body(Full::default()).expect("an answer")
            }
        },
    })
}

/// A handle whose breakers open at the second failure.
async fn perf() -> UltraPerf {
    let keys = [
        ("cache.disk.enabled", "false"),
        ("monitor.history.enabled", "false"),
        ("balancer.breaker.failures", "2"),
    ];
    let builder =
        keys.iter().fold(UltraPerf::builder(), |builder, (key, value)| builder.set(*key, *value));
    builder.build().await.expect("a handle")
}

#[tokio::test]
#[ignore = "the child of a_host_that_offers_http_2_is_asked_over_one_connection"]
async fn child_http_2() {
    let Some(host) = Host::start(&["h2", "http/1.1"]).await else { return };
    let perf = perf().await;
    let options = HttpClientOptions {
        attempts: 1,
        body_max_bytes: LARGE_BYTES as u64 / 2,
        ..HttpClientOptions::default()
    };
    let client = perf.http_client_with("files", options);
    let first = soon("an answer", client.get(&host.url("/"))).await.expect("an answer");
    assert_eq!((first.version(), first.status()), (Version::HTTP_2, StatusCode::OK));
    let posts = (0..20).map(|number| {
        let post = Request::post(host.url("/echo")).body(Full::from(format!("order {number}")));
        let post = client.request(post.expect("a request"));
        async move {
            let answer = soon("an answer", post).await.expect("an answer");
            let body = soon("the body", answer.into_body().bytes()).await.expect("a whole body");
            assert_eq!(body, format!("order {number}"));
        }
    });
    join_all(posts).await;
    assert_eq!((host.connections(), host.requests()), (1, 21));

    // A length that is told is none of a body that does not come.
    let url = host.url("/large");
    let error = soon("an answer", client.get(&url)).await.expect_err("it is too long");
    assert!(matches!(error, HttpClientError::BodyTooLarge { .. }), "{error:?}");
    let head = Request::head(&url).body(Full::<Bytes>::default()).expect("a request");
    let head = soon("an answer", client.request(head)).await.expect("the head alone");
    assert_eq!(head.headers()[CONTENT_LENGTH], LARGE_BYTES.to_string());
    assert!(head.into_body().bytes().await.expect("nothing").is_empty());
    let unchanged = soon("an answer", client.get(&host.url("/unchanged"))).await;
    let unchanged = unchanged.expect("the head alone");
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    assert!(unchanged.into_body().bytes().await.expect("nothing").is_empty());

    // What goes wrong with the program's own body leaves the breaker closed.
    for _ in 0..4 {
        let body = [Ok(Frame::data(Bytes::from("begun"))), Err(io::Error::other("no such file"))];
        let post = Request::post(host.url("/echo")).body(StreamBody::new(stream::iter(body)));
        let sent = soon("an answer", client.request(post.expect("a request"))).await;
        let error = sent.expect_err("the body broke off");
        let HttpClientError::RequestBody(source) = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), "no such file");
    }
    assert!(soon("an answer", client.get(&host.url("/"))).await.is_ok());
}

#[tokio::test]
#[ignore = "the child of a_host_that_offers_http_1_alone_is_asked_by_that"]
async fn child_http_1() {
    let Some(host) = Host::start(&["http/1.1"]).await else { return };
    let client = perf().await.http_client("files");
    for _ in 0..3 {
        let answer = soon("an answer", client.get(&host.url("/"))).await.expect("an answer");
        assert_eq!((answer.version(), answer.status()), (Version::HTTP_11, StatusCode::OK));
        soon("the body", answer.into_body().bytes()).await.expect("a whole body");
    }
    assert_eq!((host.connections(), host.requests()), (1, 3));
}

#[tokio::test]
#[ignore = "the child of a_host_whose_certificate_nobody_vouches_for_is_sent_nothing"]
async fn child_untrusted() {
    let Some(host) = Host::start(&["h2", "http/1.1"]).await else { return };
    let client = perf().await.http_client("files");
    let error = soon("an end", client.get(&host.url("/"))).await.expect_err("nobody is trusted");
    assert!(matches!(error, HttpClientError::Connect { .. }) && error.is_unsent(), "{error:?}");
    let mut told = error.to_string();
    assert_eq!(told, format!("no connection to {}", host.address));
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    assert!(told.contains("invalid peer certificate"), "{told}");
    assert_eq!((host.connections(), host.requests()), (0, 0));
}
