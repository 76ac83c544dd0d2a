//! From a URL to a connection. The name is resolved before the attempt's timeout starts. Then, within one deadline: check
//! the addresses, connect, ask the proxy for a tunnel, negotiate TLS.
//!
//! - One lookup per connection, or a cached one. **Every** address of the name is checked, and a single address that is not
//!   allowed refuses the target: a name with both public and private addresses is an attack or a mistake.
//! - The connection goes to the checked address itself. The name is not resolved again, because it could have other addresses
//!   by then (DNS rebinding). TLS and the `Host` header use the name from the URL.
//! - With a proxy, the proxy resolves names; literal addresses are still checked here. The proxy's own address is the
//!   operator's choice and is not checked. If its name does not resolve, deliveries are postponed and no endpoint is blamed.

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

/// The organisation that lookups of the proxy's name count for.
const NO_ORG: OrgId = OrgId(Uuid::nil());

/// The host of a URL.
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

/// The scheme, host and port of a URL.
pub struct Destination {
    pub https: bool,
    pub host: Host,
    pub port: u16,
}

impl Destination {
    /// `None` for a URL that [`TargetPolicy::parse_url`] refuses.
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

/// Opens connections.
pub struct Connector {
    pub policy: TargetPolicy,
    pub lookups: LookupCache,
    pub proxy: Option<Proxy>,
    pub tls: Arc<rustls::ClientConfig>,
    pub timeout: Duration,
}

/// A destination with the addresses to connect to: its own, or those of the proxy.
pub struct ResolvedTarget {
    destination: Destination,
    addresses: Arc<[IpAddr]>,
}

impl Connector {
    /// Resolves the host of the URL for a delivery of `org`, until `until`.
    ///
    /// # Errors
    /// [`Unsent::Failed`] if it has no address or one that is not allowed; [`Unsent::Postponed`] if name servers or the proxy's
    /// name are at fault.
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
    /// Why it failed; [`ErrorClass::ConnectTimeout`] after the connector's timeout, or at `deadline` if that is earlier.
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

/// Connects to the first address that accepts ("happy eyeballs"). Each address gets a head start of
/// [`WEBHOOK_NEXT_ADDRESS_AFTER`] before the next one is tried in parallel, so an address that drops packets costs only that
/// and not the whole connect timeout. A refusal starts the next one at once.
async fn dial(addresses: &[IpAddr], port: u16) -> Result<TcpStream, ErrorClass> {
    let mut next = alternate_families(addresses).into_iter().take(WEBHOOK_ADDRESSES_MAX).peekable();
    let mut dials = FuturesUnordered::new();
    let mut failure = ErrorClass::ConnectFailed;
    loop {
        let Some(address) = next.next() else { return Err(failure) };
        dials.push(TcpStream::connect(SocketAddr::new(address, port)));
        // Waits until the next address may start.
        loop {
            tokio::select! {
                Some(tried) = dials.next() => match tried {
                    Ok(tcp) => {
                        // Requests are written in one piece; Nagle's algorithm would only delay them.
                        let _ = tcp.set_nodelay(true);
                        return Ok(tcp);
                    }
                    Err(error) => {
                        // A refusal is more informative than a missing route of the other address family.
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
        // Accepted and closed before this side noticed.
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => ErrorClass::ConnectionClosed,
        _ => ErrorClass::ConnectFailed,
    }
}

/// Alternates between the address families, beginning with the resolver's choice: if one has no route the other is next.
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
