//! How connections to other services are made: TCP, and TLS by rustls with the roots of the system.

use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

pub(super) type Connector = HttpsConnector<HttpConnector>;

/// What connections by TLS are made with.
///
/// Reads the certificates of the system, some milliseconds of work; what cannot be read is left out.
pub(super) fn tls() -> Arc<ClientConfig> {
    let loaded = load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(error = error as &dyn std::error::Error, "a certificate cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(loaded.certs);
    if unusable > 0 {
        tracing::debug!(unusable, "certificates of the system that are no roots");
    }
    if roots.is_empty() {
        tracing::warn!("the system has no root certificates, so no host is trusted over TLS");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Makes connections that come about within this time.
pub(super) fn connector(tls: &ClientConfig, timeout: Duration) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp)
}
