//! From a URL to bytes. First, before an attempt's time runs, its name is looked up; then, within one deadline: vet,
//! connect, ask the proxy, encrypt.
//!
//! - One lookup a connection, or one that is remembered; **every** address it gives is vetted, and one that is not allowed
//!   refuses the target: a name that leads to a public and to a private place is an attack, or a mistake that somebody
//!   should see.
//! - The connection is made to the vetted address itself. The name is not resolved again (it could lead elsewhere by
//!   then, "rebinding"); TLS and the `Host` header use the name from the URL.
//! - With a proxy the names are the proxy's; literal addresses are vetted all the same. The proxy's own address is the
//!   operator's choice and is not; that its name is not found is no endpoint's failure.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::Uri;
use hyper::http::uri::Scheme;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use millrace_base::event::OrgId;
use millrace_base::limits::{WEBHOOK_ADDRESSES_MAX, WEBHOOK_NEXT_ADDRESS_AFTER};

use super::lookup::{LookupCache, Unresolved};
use super::proxy::Proxy;
use super::stream::Stream;
use super::{Unsent, tls};
use crate::delivery::outcome::{AttemptError, ErrorClass};
use crate::endpoint::target_policy::TargetPolicy;

/// Whose lookups of the proxy's name are.
const NO_ORG: OrgId = OrgId(Uuid::nil());

/// A host as a URL names it.
pub enum Host {
    Name(String),
    Address(IpAddr),
}

impl From<url::Host<&str>> for Host {
    fn from(host: url::Host<&str>) -> Self {
        match host {
            url::Host::Domain(name) => Self::Name(name.to_owned()),
            url::Host::Ipv4(address) => Self::Address(address.into()),
            url::Host::Ipv6(address) => Self::Address(address.into()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Where a URL leads.
pub struct Destination {
    pub https: bool,
    pub host: Host,
    pub port: u16,
}

impl Destination {
    /// `None` for what [`TargetPolicy::parse_url`] would not have taken.
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        let host = uri.host()?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => Host::Address(IpAddr::V6(address.parse().ok()?)),
            None => host.parse().map_or_else(|_| Host::Name(host.to_owned()), |v4| Host::Address(IpAddr::V4(v4))),
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, host, port })
    }
}

/// Makes connections.
pub struct Connector {
    pub policy: TargetPolicy,
    pub lookups: LookupCache,
    pub proxy: Option<Proxy>,
    pub tls: Arc<rustls::ClientConfig>,
    pub timeout: Duration,
}

/// A place, and the addresses it is reached by: its own, or those of the proxy.
pub struct ResolvedTarget {
    destination: Destination,
    addresses: Arc<[IpAddr]>,
}

impl Connector {
    /// Looks up where the URL leads, for something of `org`, until `until`.
    ///
    /// # Errors
    /// That it leads nowhere, or nowhere it may; or that it is not known for reasons on this side.
    pub async fn target(&self, uri: &Uri, org: OrgId, until: Instant) -> Result<ResolvedTarget, Unsent> {
        let destination = Destination::of(uri).ok_or(ErrorClass::AddressNotAllowed)?;
        if !destination.https && !self.policy.allow_insecure {
            return Err(ErrorClass::AddressNotAllowed.into());
        }
        if let Host::Address(address) = destination.host {
            self.check(&[address])?;
        }
        let addresses = match (&self.proxy, &destination.host) {
            (Some(Proxy { host: Host::Name(name), .. }), _) => {
                let found = self.lookups.addresses(name, NO_ORG, until).await;
                found.map_err(|_| Unsent::Postponed("the name of the proxy is not found"))?
            }
            (Some(Proxy { host: Host::Address(address), .. }), _) | (None, Host::Address(address)) => {
                Arc::from([*address])
            }
            (None, Host::Name(name)) => {
                self.lookups.addresses(name, org, until).await.map_err(|unresolved| match unresolved {
                    Unresolved::Name(why) => Unsent::Failed(AttemptError::new(ErrorClass::DnsFailed, why)),
                    Unresolved::Resolver => Unsent::Postponed("the name servers do not answer, or not yet"),
                })?
            }
        };
        Ok(ResolvedTarget { destination, addresses })
    }

    /// Connects.
    ///
    /// # Errors
    /// Why not; [`ErrorClass::ConnectTimeout`] after the connector's timeout, or at `deadline` if that is earlier.
    pub async fn connect(&self, target: &ResolvedTarget, deadline: Instant) -> Result<Stream, AttemptError> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        timeout_at(deadline, self.connect_steps(target)).await.unwrap_or(Err(ErrorClass::ConnectTimeout.into()))
    }

    async fn connect_steps(
        &self,
        ResolvedTarget { destination, addresses }: &ResolvedTarget,
    ) -> Result<Stream, AttemptError> {
        let tcp = if let Some(proxy) = &self.proxy {
            let tcp = dial(addresses, proxy.port).await?;
            proxy.tunnel(tcp, destination).await.map_err(|_| ErrorClass::ConnectFailed)?
        } else {
            self.check(addresses)?;
            dial(addresses, destination.port).await?
        };
        if !destination.https {
            return Ok(Stream::plain(tcp));
        }
        let name = match &destination.host {
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| AttemptError::new(ErrorClass::TlsFailed, "no certificate can be for this name"))?,
            Host::Address(address) => ServerName::IpAddress((*address).into()),
        };
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
        tls.map(Stream::tls).map_err(|error| tls::handshake_error(&error))
    }

    fn check(&self, addresses: &[IpAddr]) -> Result<(), AttemptError> {
        let allowed = addresses.iter().all(|address| self.policy.allows(*address));
        if allowed { Ok(()) } else { Err(ErrorClass::AddressNotAllowed.into()) }
    }
}

/// Connects to the first address that answers. Each gets a head start of [`WEBHOOK_NEXT_ADDRESS_AFTER`] before the next
/// is tried beside it, so that one which swallows packets costs that much and not the whole connect time; a refusal
/// starts the next at once.
async fn dial(addresses: &[IpAddr], port: u16) -> Result<TcpStream, ErrorClass> {
    let mut next = alternate_families(addresses).into_iter().take(WEBHOOK_ADDRESSES_MAX).peekable();
    let mut dials = FuturesUnordered::new();
    let mut failure = ErrorClass::ConnectFailed;
    loop {
        let Some(address) = next.next() else { return Err(failure) };
        dials.push(TcpStream::connect(SocketAddr::new(address, port)));
        // Until it is the next one's turn.
        loop {
            tokio::select! {
                Some(tried) = dials.next() => match tried {
                    Ok(tcp) => {
                        // Requests are written whole; there is nothing to wait for.
                        let _ = tcp.set_nodelay(true);
                        return Ok(tcp);
                    }
                    Err(error) => {
                        // A refusal says more than what the other family's missing route says.
                        if failure != ErrorClass::ConnectionRefused {
                            failure = class_of(&error);
                        }
                        if next.peek().is_some() || dials.is_empty() {
                            break;
                        }
                    }
                },
                () = sleep(WEBHOOK_NEXT_ADDRESS_AFTER), if next.peek().is_some() => break,
            }
        }
    }
}

fn class_of(error: &io::Error) -> ErrorClass {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorClass::ConnectionRefused,
        io::ErrorKind::TimedOut => ErrorClass::ConnectTimeout,
        // Accepted and ended before we looked.
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => ErrorClass::ConnectionClosed,
        _ => ErrorClass::ConnectFailed,
    }
}

/// The families take turns, beginning with the resolver's choice: where one has no route the other is next.
fn alternate_families(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let mut ours = addresses.iter().filter(|address| address.is_ipv4() == first.is_ipv4());
    let mut others = addresses.iter().filter(|address| address.is_ipv4() != first.is_ipv4());
    let mut turns = Vec::with_capacity(addresses.len());
    while turns.len() < addresses.len() {
        turns.extend(ours.next());
        turns.extend(others.next());
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        for (given, expected) in [
            (&[][..], &[][..]),
            (&["::1"], &["::1"]),
            (&["::1", "::2", "1.1.1.1"], &["::1", "1.1.1.1", "::2"]),
            (&["1.1.1.1", "1.1.1.2", "::1", "::2", "::3"], &["1.1.1.1", "::1", "1.1.1.2", "::2", "::3"]),
        ] {
            assert_eq!(alternate_families(&parse(given)), parse(expected));
        }
    }

    #[test]
    fn places() {
        for (uri, expected) in [
            ("https://example.com/a", Some("example.com:443")),
            ("https://example.com:8443/a", Some("example.com:8443")),
            ("https://8.8.8.8/", Some("8.8.8.8:443")),
            ("https://[2606:4700::1]:1/", Some("[2606:4700::1]:1")),
            ("http://example.com/", Some("example.com:80")),
            ("https://user@example.com/", None),
            ("ftp://example.com/", None),
            ("/path", None),
        ] {
            let destination = Destination::of(&uri.parse().unwrap());
            assert_eq!(
                destination.map(|destination| format!("{}:{}", destination.host, destination.port)).as_deref(),
                expected,
                "{uri}"
            );
        }
    }
}
