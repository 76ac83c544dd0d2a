//! The egress proxy: an HTTP CONNECT tunnel, for https and http targets alike.
//!
//! The proxy resolves names and decides about their addresses; the connector still checks literal addresses.

use std::io;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use millrace_base::limits::{WEBHOOK_PROXY_HEAD_BYTES_MAX, WEBHOOK_PROXY_HEADERS_MAX};

use super::connect::{Destination, Host};

/// The proxy's address and credentials.
pub struct Proxy {
    pub host: Host,
    pub port: u16,
    /// The complete `Proxy-Authorization` line, or an empty string.
    authorization: String,
}

impl Proxy {
    /// Parses `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// What is accepted; never quotes the URL.
    pub fn parse(url: &Url) -> Result<Self, String> {
        let right = "the proxy must be http://[user:password@]host:port";
        let host = match url.host() {
            Some(host) if url.scheme() == "http" => Host::from(host),
            _ => return Err(right.to_owned()),
        };
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{right}, with nothing behind the port"));
        }
        let port = url.port_or_known_default().expect("http has a default port");
        let authorization = match (url.username(), url.password()) {
            ("", None) => String::new(),
            (user, password) => {
                let mut credentials = percent_decode_str(user).collect::<Vec<u8>>();
                credentials.push(b':');
                credentials.extend(percent_decode_str(password.unwrap_or_default()));
                format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(credentials))
            }
        };
        Ok(Self { host, port, authorization })
    }

    /// Requests a tunnel to `destination` on a connection to the proxy.
    ///
    /// # Errors
    /// Those of the connection, or [`io::ErrorKind::InvalidData`] if the proxy refuses or does not speak HTTP.
    pub async fn tunnel(&self, mut tcp: TcpStream, destination: &Destination) -> io::Result<TcpStream> {
        let authority = format!("{}:{}", destination.host, destination.port);
        let authorization = &self.authorization;
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(1024);
        loop {
            let room = WEBHOOK_PROXY_HEAD_BYTES_MAX - head.len();
            if room == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if (&mut tcp).take(room as u64).read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if is_established(&head)? {
                return Ok(tcp);
            }
        }
    }
}

/// Whether the proxy's response is complete; an error if it is not a 2xx. Neither TLS nor HTTP receivers speak first, so
/// bytes after the head would come from the proxy: also an error.
fn is_established(bytes: &[u8]) -> io::Result<bool> {
    let mut headers = [httparse::EMPTY_HEADER; WEBHOOK_PROXY_HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    match answer.parse(bytes) {
        Ok(httparse::Status::Partial) => Ok(false),
        Ok(httparse::Status::Complete(length))
            if length == bytes.len() && answer.code.is_some_and(|code| (200..300).contains(&code)) =>
        {
            Ok(true)
        }
        Ok(httparse::Status::Complete(_)) | Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies() {
        for (text, shown, authorization) in [
            ("http://proxy:3128", "proxy:3128", ""),
            ("http://proxy", "proxy:80", ""),
            ("http://10.0.0.1:8080/", "10.0.0.1:8080", ""),
            ("http://[::1]:8080/", "[::1]:8080", ""),
            ("http://us%3Aer:p%40ss@proxy:1", "proxy:1", "Proxy-Authorization: Basic dXM6ZXI6cEBzcw==\r\n"),
            ("http://user@proxy:1", "proxy:1", "Proxy-Authorization: Basic dXNlcjo=\r\n"),
        ] {
            let proxy = Proxy::parse(&text.parse().unwrap()).unwrap();
            assert_eq!(format!("{}:{}", proxy.host, proxy.port), shown);
            assert_eq!(proxy.authorization, authorization, "{text}");
        }
        for text in
            ["https://proxy:3128", "socks5://proxy:3128", "http://u:secret@proxy/path", "http://proxy/?a", "a:b"]
        {
            let complaint = Proxy::parse(&text.parse().unwrap()).err().unwrap();
            assert!(complaint.contains("http://[user"), "{complaint}");
            assert!(!complaint.contains("secret"), "{complaint}");
        }
    }

    #[test]
    fn answers() {
        for (text, expected) in [
            ("", Some(false)),
            ("HTTP/1.1 200", Some(false)),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", Some(false)),
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(true)),
            ("HTTP/1.0 204 OK\r\nA: b\r\n\r\n", Some(true)),
            ("HTTP/1.1 200 OK\r\n\r\nmore", None),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", None),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", None),
            ("HTTP/1.1 100 Continue\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
        ] {
            assert_eq!(is_established(text.as_bytes()).ok(), expected, "{text}");
        }
        let many = "A: b\r\n".repeat(WEBHOOK_PROXY_HEADERS_MAX + 1);
        assert!(is_established(format!("HTTP/1.1 200 OK\r\n{many}\r\n").as_bytes()).is_err());
    }
}
