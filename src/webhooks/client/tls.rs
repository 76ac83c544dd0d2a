//! The TLS configuration, and messages that say why a certificate is refused. Certificate and host name are always verified;
//! no option turns that off.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use time::OffsetDateTime;

use millrace_base::limits::WEBHOOK_TLS_SESSIONS_MAX;

use super::TrustRoots;
use crate::delivery::outcome::{AttemptError, ErrorClass};

/// TLS 1.2 and 1.3; offers HTTP/2 before HTTP/1.1.
///
/// # Errors
/// Which certificates cannot be read, and why.
pub fn client_config(roots: TrustRoots, ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut trusted = match roots {
        TrustRoots::Webpki => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        TrustRoots::System => system_roots()?,
    };
    if let Some(path) = ca_file {
        add_file(&mut trusted, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(trusted), Arc::clone(&provider))
        .build()
        .map_err(|error| format!("the trusted certificates cannot be used: {error}"))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the ring provider has both versions' cipher suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExplainingVerifier(verifier)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(WEBHOOK_TLS_SESSIONS_MAX);
    Ok(config)
}

/// The system's store may contain unusable certificates; only an empty one is an error.
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

/// The ordinary verifier, which also says what is wrong with the receiver's certificate when no trusted authority signed
/// it: that is what its owner can fix.
#[derive(Debug)]
struct ExplainingVerifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ExplainingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) if intermediates.is_empty() => {
                let lone = if is_self_signed(end_entity) {
                    LoneCertificate::SelfSigned
                } else {
                    LoneCertificate::NoIntermediate
                };
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(lone))))
            }
            error => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A certificate that was sent without intermediates and that no trusted authority signed.
#[derive(Debug)]
enum LoneCertificate {
    SelfSigned,
    NoIntermediate,
}

impl fmt::Display for LoneCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SelfSigned => "the certificate is signed by itself, and is not trusted",
            Self::NoIntermediate => {
                "the certificate came without an intermediate one, and no trusted authority signed it directly"
            }
        })
    }
}

impl std::error::Error for LoneCertificate {}

/// Whether issuer and subject are the same; `false` if the certificate cannot be parsed.
fn is_self_signed(certificate: &[u8]) -> bool {
    /// One DER element.
    struct Element<'a> {
        tag: u8,
        whole: &'a [u8],
        content: &'a [u8],
        /// The bytes after it.
        rest: &'a [u8],
    }
    fn element(der: &[u8]) -> Option<Element<'_>> {
        let (&tag, &first) = (der.first()?, der.get(1)?);
        let (header, length) = if first < 0x80 {
            (2, usize::from(first))
        } else {
            let bytes = der.get(2..2 + usize::from(first & 0x7f)).filter(|bytes| (1..=4).contains(&bytes.len()))?;
            (2 + bytes.len(), bytes.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)))
        };
        let whole = der.get(..header.checked_add(length)?)?;
        Some(Element { tag, whole, content: &whole[header..], rest: &der[whole.len()..] })
    }
    let names = || {
        let mut rest = element(element(certificate)?.content)?.content;
        // The optional version.
        let first = element(rest)?;
        if first.tag == 0xa0 {
            rest = first.rest;
        }
        // Skips serial number and algorithm; then come issuer, validity and subject.
        for _ in 0..2 {
            rest = element(rest)?.rest;
        }
        let issuer = element(rest)?;
        let subject = element(element(issuer.rest)?.rest)?;
        Some(issuer.whole == subject.whole)
    };
    names().unwrap_or_default()
}

/// Why the TLS handshake failed.
pub fn handshake_error(error: &io::Error) -> AttemptError {
    let detail = explain(error).unwrap_or_else(|| match error.kind() {
        io::ErrorKind::UnexpectedEof => "the receiver closed the connection during the handshake".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            "the receiver reset the connection during the handshake".into()
        }
        kind => format!("the connection failed during the handshake: {kind}").into(),
    });
    AttemptError::new(ErrorClass::TlsFailed, detail)
}

/// The explanation of a TLS error; `None` for other I/O errors.
pub fn explain(error: &io::Error) -> Option<Cow<'static, str>> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(error) => explain_certificate(error),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "the receiver speaks neither TLS 1.2 nor TLS 1.3".into(),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "the receiver chose a cipher that was not offered".into()
        }
        Error::InvalidMessage(_) => "what came is not TLS".into(),
        Error::NoCertificatesPresented => "the receiver showed no certificate".into(),
        error => error.to_string().into(),
    })
}

fn explain_certificate(error: &CertificateError) -> Cow<'static, str> {
    match error {
        CertificateError::Expired => "the certificate has expired".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("a certificate has expired on {}", date(*not_after)).into()
        }
        CertificateError::NotValidYet => "the certificate is not valid yet".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("a certificate is not valid before {}", date(*not_before)).into()
        }
        CertificateError::UnknownIssuer => "the certificate is signed by an authority that is not trusted".into(),
        CertificateError::NotValidForName => "the certificate is for another name".into(),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().take(4).map(|name| shown_name(name)).collect();
            match names[..] {
                [] => "the certificate names no host".into(),
                _ => format!("the certificate is for another name: {}", names.join(", ")).into(),
            }
        }
        CertificateError::BadEncoding => "the certificate cannot be read".into(),
        CertificateError::BadSignature => "a signature does not fit its certificate".into(),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "a certificate's key or signature is of a kind that is not supported".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is not for servers".into()
        }
        CertificateError::UnhandledCriticalExtension => "a certificate demands what is not supported".into(),
        CertificateError::Other(OtherError(error)) => error.to_string().into(),
        error => format!("the certificate is not accepted: {error}").into(),
    }
}

fn explain_alert(alert: AlertDescription) -> Cow<'static, str> {
    match alert {
        AlertDescription::ProtocolVersion => "the receiver speaks neither TLS 1.2 nor TLS 1.3".into(),
        AlertDescription::HandshakeFailure => {
            "the receiver found no cipher, or no kind of key and signature, in common".into()
        }
        AlertDescription::UnrecognisedName => "the receiver does not know this host name".into(),
        AlertDescription::CertificateRequired | AlertDescription::BadCertificate => {
            "the receiver asks for a client's certificate".into()
        }
        alert => format!("the receiver ended the handshake: {alert:?}").into(),
    }
}

/// rustls writes `DnsName("example.com")` and `IpAddress(127.0.0.1)`.
fn shown_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

fn date(at: UnixTime) -> String {
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok())
        .map_or_else(|| "no date".to_owned(), |at| at.date().to_string())
}
