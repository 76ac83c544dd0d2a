//! Where the database is and how it is reached, from a `DATABASE_URL`.
//!
//! The URL is what `libpq` takes (`url` has the options), with these differences. `sslmode=require` verifies the server's
//! certificate and name, as `verify-full` and `verify-ca` do, against the Mozilla roots or the PEM file that `sslrootcert`
//! names. `prefer`, the default, encrypts if the server can, and verifies only if `sslrootcert` is given. Errors never quote
//! the URL, because it holds a password.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::Host;
use tokio_postgres_rustls::MakeRustlsConnect;

use millrace_base::limits;

use super::rsa_pss::WithPssKeys;
use super::url::{DatabaseUrl, DatabaseUrlError};
use crate::StoreError;

/// An idle connection whose server vanished is noticed after this plus three probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A database and the way to it.
pub(super) struct Target {
    /// Hosts, user, database, time limits.
    pub(super) config: Config,
    /// How TLS is done if the server offers it.
    pub(super) tls: MakeRustlsConnect,
    /// The schema of the tables, if it is not the role's.
    pub(super) schema: Option<String>,
    /// Whether sessions are known not to be lent by a pooler; checked again after a connection has failed.
    pub(super) sessions_are_own: AtomicBool,
}

impl Target {
    /// Reads a `DATABASE_URL`, and the certificates that it names.
    ///
    /// # Errors
    /// `Misconfigured`, with the part that is wrong.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        Self::read(url).map_err(|why| StoreError::Misconfigured(format!("DATABASE_URL cannot be used: {why}")))
    }

    /// The same, with the reason by itself.
    pub(super) fn read(url: &str) -> Result<Self, DatabaseUrlError> {
        let DatabaseUrl { mut config, verify, root_cert, schema } = DatabaseUrl::parse(url)?;
        if config.get_application_name().is_none() {
            config.application_name("millrace");
        }
        config
            .connect_timeout(limits::STORE_CONNECT_TIMEOUT)
            .tcp_user_timeout(limits::STORE_CALL_TIMEOUT)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES);
        let tls = client_config(verify, root_cert.as_deref())?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), schema, sessions_are_own: AtomicBool::new(false) })
    }

    /// Names and addresses of the hosts that are connected to over the network.
    pub(super) fn hosts(&self) -> Vec<String> {
        let addresses = self.config.get_hostaddrs();
        if !addresses.is_empty() {
            return addresses.iter().map(ToString::to_string).collect();
        }
        let name = |host: &Host| match host {
            Host::Tcp(name) => Some(name.trim_matches(['[', ']']).to_owned()),
            Host::Unix(_) => None,
        };
        self.config.get_hosts().iter().filter_map(name).collect()
    }
}

fn client_config(verify: bool, root_cert: Option<&str>) -> Result<ClientConfig, DatabaseUrlError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default protocol versions");
    let with = |verifier: Arc<dyn ServerCertVerifier>| {
        let verifier = Arc::new(WithPssKeys(verifier));
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    };
    if !verify {
        return with(Arc::new(AnyCertificate { algorithms }));
    }
    let mut roots = RootCertStore::empty();
    match root_cert {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unreadable = |error: &dyn std::fmt::Display| DatabaseUrlError::RootCertificates {
                path: path.to_owned(),
                why: error.to_string(),
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
            if roots.is_empty() {
                return Err(unreadable(&"no certificate in it"));
            }
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    with(verifier.map_err(|error| DatabaseUrlError::Verifier(error.to_string()))?)
}

/// Accepts any certificate, for `sslmode=prefer`, which would do without encryption, and for `no-verify`. The handshake's
/// signatures are verified all the same.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_that_are_connected_to() {
        for (url, hosts) in [
            ("postgres://u:p@db.example,10.0.0.5:5433/d", &["db.example", "10.0.0.5"][..]),
            ("postgres://[fd00::5]/d", &["fd00::5"]),
            ("postgres://db.example/d?hostaddr=10.0.0.6", &["10.0.0.6"]),
            ("postgres:///d?host=/run/postgresql", &[]),
        ] {
            assert_eq!(Target::parse(url).map(|target| target.hosts()).ok().unwrap(), hosts, "{url}");
        }
    }

    #[test]
    fn certificates_that_cannot_be_read_are_refused() {
        let why =
            Target::read("postgres://u:hunter2@h/d?sslrootcert=/nowhere.pem").map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("`sslrootcert` names /nowhere.pem") && !why.contains("hunter2"), "{why}");
    }
}
