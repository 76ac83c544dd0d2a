//! The target policy: which addresses webhooks may be sent to, and which URLs an endpoint may have.
//!
//! Never blocks. Control threads call it when an endpoint is created or changed, and the client calls it with the very address
//! that it is about to connect to.
//!
//! - [`TargetPolicy::parse_url`] refuses only what can be refused without DNS. The client checks every address of a name, each
//!   time it connects.
//! - IPv4: everything except the special-purpose ranges. IPv6: only global unicast without its special-purpose ranges, which
//!   also refuses every address that embeds an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo). An operator's own
//!   NAT64 prefix is global unicast and cannot be recognised: see docs/webhooks.md.
//! - `allowed_networks` opens ranges. The addresses of the server itself and of the database stay refused in any case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};

use hyper::Uri;
use url::{Host, Url};

use millrace_base::limits::WEBHOOK_URL_BYTES_MAX;

/// IANA's special-purpose ranges, multicast and the reserved top: first address and prefix length.
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

/// Global unicast, the only routed IPv6 space.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Special-purpose ranges inside it.
const REFUSED_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo among them
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// Appended to errors about private targets: how an operator can allow them.
const OPENED: &str = " (for a private one the server's operator can set --webhook-allowed-networks, or \
                      --allow-insecure-webhooks to try things out)";

/// Which targets are allowed.
#[derive(Clone, Debug, Default)]
pub struct TargetPolicy {
    /// Allows plain http and every address, for tests and private installations.
    pub allow_insecure: bool,
    /// Special-purpose networks that are nevertheless allowed.
    pub allowed_networks: Vec<ipnet::IpNet>,
    /// Addresses that are never allowed: those that the server listens on.
    pub forbidden: Vec<IpAddr>,
    /// Whether all addresses of this machine are refused, because the server listens on all of them.
    pub forbids_machine: bool,
    /// The addresses of the database, which are never allowed either.
    pub database: DatabaseAddresses,
}

/// The known addresses of the database. Clones share them; `database_hosts` keeps them current.
#[derive(Clone, Debug, Default)]
pub struct DatabaseAddresses(Arc<RwLock<Vec<IpAddr>>>);

impl DatabaseAddresses {
    /// Replaces the known addresses.
    pub fn set(&self, addresses: Vec<IpAddr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn any(&self, is_it: impl FnMut(&IpAddr) -> bool) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(is_it)
    }
}

impl TargetPolicy {
    /// Parses an endpoint's URL: https (or http with `allow_insecure`), a host, no credentials, no fragment. A literal address
    /// must be allowed. The result is normalised as browsers do it, so `https://2130706433/` is checked as the address that it
    /// stands for. [`request_uri`] accepts the result.
    ///
    /// # Errors
    /// What is wrong with the URL and what is accepted.
    pub fn parse_url(&self, text: &str) -> Result<Url, String> {
        if text.len() > WEBHOOK_URL_BYTES_MAX {
            return Err(format!("the URL is longer than {WEBHOOK_URL_BYTES_MAX} bytes"));
        }
        // The parser would silently remove some of these.
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
        // Percent-encoding can make it three times as long.
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

    /// Whether the client may connect to this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        !self.is_forbidden(address)
            && (self.allow_insecure
                || self.allowed_networks.iter().any(|network| network.contains(&address))
                || is_public(address))
    }

    /// Compares as the kernel connects: a mapped address means the IPv4 address inside, the unspecified address means loopback.
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

/// Whether an address belongs to this machine now: then the kernel chooses it as the source of packets to itself. Sends no
/// packet.
fn is_local(address: IpAddr) -> bool {
    let any = if address.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// Converts a URL from [`TargetPolicy::parse_url`] for use in a request.
///
/// # Errors
/// If the URL is not from there.
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

/// `name` is in lower case, as the parser returns it.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
#[path = "target_policy_tests.rs"]
mod tests;
