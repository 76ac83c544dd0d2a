//! Where the database is and how to speak to it: `DATABASE_URL` made into a typed configuration.
//!
//! The URL is what `libpq` takes, with these differences. `sslmode=require` here verifies the server's
//! certificate and name (as `verify-full`, which is taken too, like `verify-ca`), against the Mozilla roots or the PEM
//! file named by `sslrootcert`. `prefer`, the default, encrypts where the server can and verifies nothing
//! unless `sslrootcert` is given. Errors never quote the URL: it holds a password.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::limits;
use crate::store::StoreError;

/// An idle connection whose server vanished is noticed after this plus three probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A database and the way to it.
pub(super) struct Target {
    /// Hosts, user, database, time limits.
    pub(super) config: Config,
    /// How TLS is done where the server offers it.
    pub(super) tls: MakeRustlsConnect,
}

impl Target {
    /// Reads `DATABASE_URL`.
    ///
    /// # Errors
    /// `Misconfigured`, saying which part is wrong.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (url, options) = take_tls_options(url);
        let mut config: Config = url.parse().map_err(|error| misconfigured(reason(&error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(misconfigured("it names no host"));
        }
        if options.require {
            config.ssl_mode(SslMode::Require);
        }
        if !config.get_hosts().is_empty() && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
            config.ssl_mode(SslMode::Disable);
        }
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
        let verify = options.root_cert.is_some() || config.get_ssl_mode() == SslMode::Require;
        let tls = client_config(verify, options.root_cert.as_deref())?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct TlsOptions {
    require: bool,
    root_cert: Option<String>,
}

/// Takes out of the URL's query what the driver does not understand: `sslrootcert`, and `sslmode` verify-*.
fn take_tls_options(url: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    let after_credentials = url.find('@').unwrap_or(0);
    let Some(query_at) = url[after_credentials..].find('?').map(|at| after_credentials + at) else {
        return (url.to_owned(), options);
    };
    let kept: Vec<&str> = url[query_at + 1..]
        .split('&')
        .filter(|pair| match pair.split_once('=') {
            Some(("sslrootcert", path)) => {
                options.root_cert = Some(percent_decode(path));
                false
            }
            Some(("sslmode", "verify-full" | "verify-ca")) => {
                options.require = true;
                false
            }
            _ => true,
        })
        .collect();
    let separator = if kept.is_empty() { "" } else { "?" };
    (format!("{}{separator}{}", &url[..query_at], kept.join("&")), options)
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%');
        out.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The driver's reason, unless it could quote a piece of a password that was not percent-encoded.
fn reason(error: &tokio_postgres::Error) -> String {
    const QUOTABLE: [&str; 7] =
        ["host", "hostaddr", "port", "sslmode", "sslnegotiation", "connect_timeout", "channel_binding"];
    let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let quotes_only_options = text.split('`').skip(1).step_by(2).all(|quoted| QUOTABLE.contains(&quoted));
    if quotes_only_options && text.contains('`') {
        text
    } else {
        "it does not have the form postgres://user:password@host:port/database?option=value with known options and \
         special characters percent-encoded"
            .to_owned()
    }
}

fn misconfigured(why: impl std::fmt::Display) -> StoreError {
    StoreError::Misconfigured(format!("DATABASE_URL cannot be used: {why}"))
}

fn client_config(verify: bool, root_cert: Option<&str>) -> Result<ClientConfig, StoreError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default protocol versions");
    if !verify {
        let verifier = Arc::new(AnyCertificate { algorithms });
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match root_cert {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unreadable = |error: &dyn std::fmt::Display| misconfigured(format!("sslrootcert {path}: {error}"));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                roots.add(certificate).map_err(|error| unreadable(&error))?;
            }
            if roots.is_empty() {
                return Err(unreadable(&"no certificate in it"));
            }
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Takes any certificate, for `sslmode=prefer`: it would do without encryption too. The handshake's signatures
/// are verified all the same.
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
    fn tls_options_leave_the_url_and_nothing_else_does() {
        for (url, rest, require, root_cert) in [
            ("postgres://h/d", "postgres://h/d", false, None),
            ("postgres://h/d?sslmode=require", "postgres://h/d?sslmode=require", false, None),
            ("postgres://h/d?sslmode=verify-full", "postgres://h/d", true, None),
            (
                "postgres://u:p?x@h/d?sslrootcert=/a%20b.pem&port=1",
                "postgres://u:p?x@h/d?port=1",
                false,
                Some("/a b.pem"),
            ),
        ] {
            let options = TlsOptions { require, root_cert: root_cert.map(str::to_owned) };
            assert_eq!(take_tls_options(url), (rest.to_owned(), options), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_without_quoting_it() {
        for (url, part) in [
            ("postgres://u:hunter2@h:port/d", "port"),
            ("postgres://u:hunter2@h/d?sslmode=maybe", "sslmode"),
            ("postgres://u:p@hunter2?hunter2=1@h/d", "percent-encoded"),
            ("postgres://u:hunter2@h/d?hunter2", "percent-encoded"),
            ("host=h password=x hunter2", "percent-encoded"),
            ("hunter2", "percent-encoded"),
            ("postgres://", "no host"),
            ("postgres://u:hunter2@h/d?sslrootcert=/nowhere.pem", "/nowhere.pem"),
        ] {
            let Err(StoreError::Misconfigured(why)) = Target::parse(url).map(|_| ()) else {
                panic!("{url} is taken");
            };
            assert!(why.contains(part), "{url}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
