//! Where requests may go.
//!
//! Owns the rule for addresses and the reading of endpoints' URLs; waits for nothing and is called from the control threads
//! (when an endpoint is made) and from the sender (when it connects, for the very address it connects to).
//!
//! - A name says nothing about where it leads: [`TargetPolicy::parse_url`] only refuses what can be refused without
//!   asking DNS. The client vets every address a name has, each time it connects.
//! - IPv4: everything but the special-purpose ranges. IPv6: nothing but global unicast without its special-purpose
//!   ranges, so whatever carries an IPv4 address inside (mapped, compatible, NAT64, 6to4, Teredo) is refused unread.
//!   Operators' own NAT64 prefixes are global unicast and look like any other address: see docs/webhooks.md.
//! - `allowed_networks` opens ranges; the server's own addresses and the database's stay closed in any case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};

use hyper::Uri;
use url::{Host, Url};

use millrace_base::limits::WEBHOOK_URL_BYTES_MAX;

/// IANA's special-purpose registry, multicast and the reserved top: first address and prefix length.
const REFUSED_V4: [(Ipv4Addr, u32); 18] = [
    (Ipv4Addr::UNSPECIFIED, 8),           // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),      // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),   // carriers' shared space
    (Ipv4Addr::new(127, 0, 0, 0), 8),     // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16),  // link-local, and the clouds' metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12),   // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),    // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),    // documentation
    (Ipv4Addr::new(192, 31, 196, 0), 24), // AS112
    (Ipv4Addr::new(192, 52, 193, 0), 24), // AMT relays
    (Ipv4Addr::new(192, 88, 99, 0), 24),  // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),  // private
    (Ipv4Addr::new(192, 175, 48, 0), 24), // AS112
    (Ipv4Addr::new(198, 18, 0, 0), 15),   // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),  // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),     // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),     // reserved, broadcast
];

/// The only IPv6 space that is routed: global unicast.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is special inside it.
const REFUSED_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo among them
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// How a private receiver is allowed, for whoever named one.
const OPENED: &str = " (for a private one the server's operator can set --webhook-allowed-networks, or \
                      --allow-insecure-webhooks to try things out)";

/// What is allowed.
#[derive(Clone, Debug, Default)]
pub struct TargetPolicy {
    /// Plain http and every address, for tests and private installations.
    pub allow_insecure: bool,
    /// Networks that are allowed although they are special.
    pub allowed_networks: Vec<ipnet::IpNet>,
    /// Addresses that are never allowed: where the server itself listens.
    pub forbidden: Vec<IpAddr>,
    /// The same for all of this machine's, however they are written: the server listens on all of them.
    pub forbids_machine: bool,
    /// The same for the database's.
    pub database: DatabaseAddresses,
}

/// Where the database is, as far as is known; clones share it. Names are looked up as the driver does it, by whoever
/// keeps this current.
#[derive(Clone, Debug, Default)]
pub struct DatabaseAddresses(Arc<RwLock<Vec<IpAddr>>>);

impl DatabaseAddresses {
    /// From now on it is there.
    pub fn set(&self, addresses: Vec<IpAddr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn any(&self, is_it: impl FnMut(&IpAddr) -> bool) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(is_it)
    }
}

impl TargetPolicy {
    /// Reads an endpoint's URL: https (http where insecure ones are allowed), a host, no credentials, no fragment; a
    /// literal address must be allowed. What comes back is normalised as browsers do it, so `https://2130706433/` is
    /// judged as the address it means; [`request_uri`] takes it.
    ///
    /// # Errors
    /// What is wrong with it and what would be right.
    pub fn parse_url(&self, text: &str) -> Result<Url, String> {
        if text.len() > WEBHOOK_URL_BYTES_MAX {
            return Err(format!("the URL is longer than {WEBHOOK_URL_BYTES_MAX} bytes"));
        }
        // The parser would drop some of these in silence.
        if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err("the URL has white space or control characters in it; write them percent-encoded".to_owned());
        }
        let url = Url::parse(text).map_err(|error| format!("not a URL: {error}; write https://host/path"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_insecure => {}
            "http" => {
                return Err("the URL must begin with https:// (the server's operator can allow http with \
                            --allow-insecure-webhooks)"
                    .to_owned());
            }
            _ => return Err("the URL must begin with https:// and name a host".to_owned()),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the URL must not hold credentials; use the endpoint's headers".to_owned());
        }
        if url.fragment().is_some() {
            return Err("the URL must not have a fragment (#…): it would never be sent".to_owned());
        }
        if url.port() == Some(0) {
            return Err("port 0 cannot be connected to".to_owned());
        }
        if let Some(complaint) = url.host().and_then(|host| self.complaint(&host)) {
            return Err(complaint);
        }
        // Percent-encoding may have made it three times as long.
        if url.as_str().len() > WEBHOOK_URL_BYTES_MAX || url.as_str().parse::<Uri>().is_err() {
            return Err("the URL cannot be sent in a request; write special characters percent-encoded".to_owned());
        }
        Ok(url)
    }

    fn complaint(&self, host: &Host<&str>) -> Option<String> {
        let address = match host {
            Host::Domain(name) if !self.allow_insecure && is_localhost(name) => {
                return Some(format!("the URL's host is this machine; name a public one{OPENED}"));
            }
            Host::Domain(_) => return None,
            Host::Ipv4(address) => IpAddr::V4(*address),
            Host::Ipv6(address) => IpAddr::V6(*address),
        };
        if self.allows(address) {
            None
        } else if self.is_forbidden(address) {
            Some(format!("the address {address} is not allowed: this server or its database is there"))
        } else {
            Some(format!("the address {address} is not allowed; use a public one{OPENED}"))
        }
    }

    /// Whether a connection to this address may be made.
    pub fn allows(&self, address: IpAddr) -> bool {
        !self.is_forbidden(address)
            && (self.allow_insecure
                || self.allowed_networks.iter().any(|network| network.contains(&address))
                || is_public(address))
    }

    /// The kernel connects to a mapped address as to the IPv4 address inside, and to the unspecified one as to loopback.
    fn is_forbidden(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_it = |forbidden: &IpAddr| {
            let forbidden = forbidden.to_canonical();
            forbidden == address || address.is_unspecified() && forbidden.is_loopback()
        };
        self.forbidden.iter().any(is_it)
            || self.database.any(is_it)
            || self.forbids_machine && (address.is_unspecified() || address.is_loopback() || is_local(address))
    }
}

/// Whether an address is one of this machine's, also one that came lately: then a packet to it would come from it. None is
/// sent.
fn is_local(address: IpAddr) -> bool {
    let any = if address.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// The URL as requests carry it; for URLs that [`TargetPolicy::parse_url`] took.
///
/// # Errors
/// It is not one of those.
pub fn request_uri(url: &Url) -> Result<Uri, hyper::http::uri::InvalidUri> {
    url.as_str().parse()
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !REFUSED_V4.iter().any(|&(first, prefix)| within_v4(address, first, prefix)),
        IpAddr::V6(address) => {
            within_v6(address, GLOBAL_V6.0, GLOBAL_V6.1)
                && !REFUSED_V6.iter().any(|&(first, prefix)| within_v6(address, first, prefix))
        }
    }
}

fn within_v4(address: Ipv4Addr, first: Ipv4Addr, prefix: u32) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (u32::BITS - prefix) == 0
}

fn within_v6(address: Ipv6Addr, first: Ipv6Addr, prefix: u32) -> bool {
    (address.to_bits() ^ first.to_bits()) >> (u128::BITS - prefix) == 0
}

/// The parser has put the name into lower case.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
#[path = "target_policy_tests.rs"]
mod tests;
