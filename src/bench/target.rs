//! The server to send to: a URL, its address, and TLS where the URL is https.

use std::fmt::{self, Display};
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use url::Url;

/// A server that was reached once.
#[derive(Debug)]
pub struct Target {
    /// The URL as given, without a trailing slash.
    pub url: String,
    /// The value of the `Host` field.
    pub host: String,
    /// The path that comes before every route; empty or begins with a slash.
    pub base_path: String,
    /// The first of its addresses that took a connection.
    pub addr: SocketAddr,
    /// The TLS configuration and the name that the server's certificate must have.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Why there is no target.
#[derive(Debug)]
pub enum TargetError {
    /// The URL is not that of an HTTP server.
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file with certificate authorities cannot be used.
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: CaFileError,
    },
    /// No address of the host takes a connection.
    Unreachable {
        /// Host and port.
        place: String,
        /// What the last address answered.
        error: io::Error,
    },
}

/// What is wrong with a file of certificate authorities.
#[derive(Debug)]
pub enum CaFileError {
    /// It cannot be read, or is not PEM.
    Pem(pem::Error),
    /// It holds no certificate.
    Empty,
    /// A certificate in it is not one of an authority.
    Certificate(rustls::Error),
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, why } => write!(f, "the URL {url:?} cannot be used: {why}"),
            Self::CaFile { path, why } => write!(f, "CA file {}: {why}", path.display()),
            Self::Unreachable { place, error } => write!(f, "no connection to {place}: {error}"),
        }
    }
}

impl fmt::Display for CaFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(error) => error.fmt(f),
            Self::Empty => f.write_str("no certificate in it; it must be PEM"),
            Self::Certificate(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TargetError {}
impl std::error::Error for CaFileError {}

impl Target {
    /// Finds the server of a URL. `ca_file`: further authorities to trust.
    ///
    /// # Errors
    /// Where the URL is not one of an HTTP server, or none of its addresses takes a connection within `timeout`.
    pub fn find(text: &str, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, TargetError> {
        let wrong = |why: &dyn Display| TargetError::Url { url: text.to_owned(), why: why.to_string() };
        let url = Url::parse(text).map_err(|error| wrong(&error))?;
        let is_https = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong(&"it must begin with http:// or https://")),
        };
        let is_plain = url.username().is_empty() && url.password().is_none();
        if !is_plain || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(&"it must be no more than scheme, host, port and path"));
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(wrong(&"it names no host"));
        };
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let tls = match is_https {
            true => {
                let server_name = ServerName::try_from(bare_host.to_owned()).map_err(|why| wrong(&why))?;
                Some((tls(ca_file)?, server_name))
            }
            false if ca_file.is_some() => return Err(wrong(&"authorities are for https:// only")),
            false => None,
        };
        let addr = reach(bare_host, port, timeout)
            .map_err(|error| TargetError::Unreachable { place: format!("{host}:{port}"), error })?;
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let base_path = url.path().trim_end_matches('/').to_owned();
        Ok(Self { url: text.trim_end_matches('/').to_owned(), host, base_path, addr, tls })
    }
}

/// Trusts the public authorities that are built in, and those in `ca_file`.
fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TargetError> {
    let mut trusted = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        add_file(&mut trusted, path).map_err(|why| TargetError::CaFile { path: path.to_owned(), why })?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the ring provider has both versions' cipher suites")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn add_file(trusted: &mut RootCertStore, path: &Path) -> Result<(), CaFileError> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(CaFileError::Pem)?;
    if certificates.is_empty() {
        return Err(CaFileError::Empty);
    }
    for certificate in certificates {
        trusted.add(certificate).map_err(CaFileError::Certificate)?;
    }
    Ok(())
}

/// The first address that takes a connection.
fn reach(host: &str, port: u16, timeout: Duration) -> io::Result<SocketAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, timeout) {
            Ok(_) => return Ok(addr),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn urls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (text, host, base_path) in [
            ("http://127.0.0.1:PORT", "127.0.0.1:PORT", ""),
            ("http://127.0.0.1:PORT/", "127.0.0.1:PORT", ""),
            ("HTTP://127.0.0.1:PORT/in/", "127.0.0.1:PORT", "/in"),
            ("https://127.0.0.1:PORT", "127.0.0.1:PORT", ""),
        ] {
            let given = |text: &str| text.replace("PORT", &port.to_string());
            let target = Target::find(&given(text), None, Duration::from_secs(10)).unwrap();
            assert_eq!((target.host, target.base_path.as_str()), (given(host), base_path), "{text}");
            assert_eq!(target.tls.is_some(), text.starts_with("https"));
        }
        for text in ["", "127.0.0.1:3000", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "http://127.0.0.1/?q", "http://"]
        {
            let refused = Target::find(text, None, Duration::from_secs(10));
            assert!(matches!(refused, Err(TargetError::Url { .. })), "{text}: {refused:?}");
        }
        drop(listener);
        let nobody = Target::find(&format!("http://127.0.0.1:{port}"), None, Duration::from_secs(10));
        assert!(matches!(nobody, Err(TargetError::Unreachable { .. })), "{nobody:?}");
    }
}
