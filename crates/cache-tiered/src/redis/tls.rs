//! TLS for the clients of the Redis tier: the machine's trusted certificates, and `ring`.
//!
//! The cryptography provider is named, because with two of them in one program rustls' default panics.

use std::sync::Arc;

use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// Trusts the certificates of the machine, or those in the file that `SSL_CERT_FILE` names.
pub(super) fn trusted() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let loaded = load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(loaded.certs);
    if usable == 0 {
        let why = loaded.errors.first().map_or(String::new(), |error| format!(": {error}"));
        return Err(format!("TLS: this machine has no trusted certificates{why}"));
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}
