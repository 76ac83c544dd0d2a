//! Whom to send to: a URL, resolved, and TLS where it is https.

use std::fmt::Display;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use url::Url;

/// A server that was reached once.
#[derive(Debug)]
pub struct Target {
    /// As given, without a trailing slash.
    pub url: String,
    /// For the `Host` field.
    pub host: String,
    /// What its routes are below; empty or begins with a slash.
    pub base_path: String,
    /// The first of its addresses that took a connection.
    pub addr: SocketAddr,
    /// How TLS is spoken, and who must answer.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// Why there is no target.
#[derive(Debug)]
pub enum TargetError {
    /// The URL or the file with authorities is not right.
    Argument(String),
    /// Nobody is there.
    Unreachable(String),
}

impl Target {
    /// Finds the server of a URL. `ca_file`: further authorities to trust.
    ///
    /// # Errors
    /// Where the URL is not one of an HTTP server, or none of its addresses takes a connection within `timeout`.
    pub fn find(text: &str, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, TargetError> {
        let wrong = |why: &dyn Display| TargetError::Argument(format!("the URL {text:?} cannot be used: {why}"));
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
                Some((tls(ca_file).map_err(TargetError::Argument)?, server_name(bare_host).map_err(|why| wrong(&why))?))
            }
            false if ca_file.is_some() => return Err(wrong(&"authorities are for https:// only")),
            false => None,
        };
        let addr = reach(bare_host, port, timeout)
            .map_err(|error| TargetError::Unreachable(format!("no connection to {host}:{port}: {error}")))?;
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let base_path = url.path().trim_end_matches('/').to_owned();
        Ok(Self { url: text.trim_end_matches('/').to_owned(), host, base_path, addr, tls })
    }
}

/// Trusts the public authorities that are built in, and those in `ca_file`.
fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut trusted = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        add_file(&mut trusted, path).map_err(|why| format!("CA file {}: {why}", path.display()))?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the ring provider has both versions' cipher suites")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn add_file(trusted: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("no certificate in it; it must be PEM".to_owned());
    }
    for certificate in certificates {
        trusted.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn server_name(host: &str) -> Result<ServerName<'static>, impl Display + use<>> {
    ServerName::try_from(host.to_owned())
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
            assert!(matches!(refused, Err(TargetError::Argument(_))), "{text}: {refused:?}");
        }
        drop(listener);
        let nobody = Target::find(&format!("http://127.0.0.1:{port}"), None, Duration::from_secs(10));
        assert!(matches!(nobody, Err(TargetError::Unreachable(_))), "{nobody:?}");
    }
}
