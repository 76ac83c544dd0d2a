//! What came of an attempt, and what that means.

use std::time::Duration;

/// What went wrong, where it was not the receiver's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The URL, or an address its name has, is not allowed.
    AddressNotAllowed,
    /// The name has no address.
    DnsFailed,
    /// Nobody listens there.
    ConnectionRefused,
    /// No connection in time: name, TCP, proxy and TLS together.
    ConnectTimeout,
    /// Any other failure to connect, the proxy's included.
    ConnectFailed,
    /// The certificate is not trusted, or for another host, or TLS failed otherwise.
    TlsFailed,
    /// Connected, but no complete answer in time.
    Timeout,
    /// The connection ended before the answer did.
    ConnectionClosed,
    /// What came is not HTTP, or over its limits.
    InvalidResponse,
    /// The endpoint's secret cannot be opened with the keys this server has, so nothing can be signed.
    SecretUnavailable,
}

impl ErrorClass {
    /// As attempts show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressNotAllowed => "address_not_allowed",
            Self::DnsFailed => "dns_failed",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::Timeout => "timeout",
            Self::ConnectionClosed => "connection_closed",
            Self::InvalidResponse => "invalid_response",
            Self::SecretUnavailable => "secret_unavailable",
        }
    }
}

/// The receiver's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, as a pause from now.
    pub retry_after: Option<Duration>,
    /// The body's first bytes, as text.
    pub body: String,
}

/// What came of an attempt. Both where the answer began and did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the receiver said.
    pub answer: Option<Answer>,
    /// What went wrong.
    pub error: Option<ErrorClass>,
}

/// What an outcome means for the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 2xx, to its end.
    Delivered,
    /// Anything else: again, not before this pause.
    Retry(Option<Duration>),
    /// 410: the endpoint wants nothing any more.
    Gone,
    /// The target is not allowed.
    Blocked,
}

impl Outcome {
    /// What follows.
    pub fn verdict(&self) -> Verdict {
        todo!()
    }
}
