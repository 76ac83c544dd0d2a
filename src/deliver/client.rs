//! Makes requests to strangers.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;
use url::Url;

use super::outcome::Outcome;
use super::target::TargetPolicy;

/// How requests are made.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where they may go.
    pub policy: TargetPolicy,
    /// Until the end of the answer, connecting included.
    pub timeout: Duration,
    /// For name, TCP, proxy and TLS.
    pub connect_timeout: Duration,
    /// Certificates (PEM) that are trusted beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// `http://[user:password@]host:port` of a CONNECT proxy that all requests go through.
    pub proxy: Option<Url>,
}

/// One request: a POST.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to.
    pub url: Url,
    /// All headers but `Host` and `Content-Length`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Keeps connections; used from one tokio runtime.
pub struct WebhookClient;

impl WebhookClient {
    /// Reads the certificates.
    ///
    /// # Errors
    /// What is wrong with them, or with the proxy.
    pub fn new(config: ClientConfig) -> Result<Self, String> {
        let _ = config;
        todo!()
    }

    /// Makes one attempt; ends within the timeout, whatever happens.
    pub async fn send(&self, request: Request) -> Outcome {
        let _ = request;
        todo!()
    }
}
