//! Who is trusted. Certificate and name are always verified: there is no option to turn that off.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::Roots;
use crate::limits::WEBHOOK_TLS_SESSIONS_MAX;

/// TLS 1.2 and 1.3, HTTP/2 offered before HTTP/1.1.
///
/// # Errors
/// Which certificates cannot be read, and why.
pub fn client_config(roots: Roots, ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut trusted = match roots {
        Roots::Webpki => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        Roots::System => system_roots()?,
    };
    if let Some(path) = ca_file {
        add_file(&mut trusted, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the ring provider has both versions' cipher suites")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(WEBHOOK_TLS_SESSIONS_MAX);
    Ok(config)
}

/// The system's store may hold certificates that cannot be used; only an empty one is an error.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut trusted = RootCertStore::empty();
    trusted.add_parsable_certificates(found.certs);
    if trusted.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(format!("the system has no root certificates{why}; install its ca-certificates package"));
    }
    Ok(trusted)
}

fn add_file(trusted: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("CA file {}: {why}", path.display());
    let mut certificates = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        trusted.add(certificate).map_err(|error| unreadable(&error))?;
        certificates += 1;
    }
    if certificates == 0 {
        return Err(unreadable(&"no certificate in it; it must be PEM"));
    }
    Ok(())
}
