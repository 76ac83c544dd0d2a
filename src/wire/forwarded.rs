//! The client address of a connection or request behind proxies: pure functions over addresses and field values.
//!
//! **Only a trusted proxy is believed.** A peer that is not configured as one is itself the client, whatever it
//! sends. The field to read is configured too, because a proxy passes on a field that it does not write from whoever
//! wrote it.
//!
//! A field is read from its end, which the nearest proxy wrote, past the addresses of further trusted proxies to the
//! first address that is not one: the client. A part that does not parse ends the walk at the proxy that wrote it. If
//! a field comes more than once, its last line is read, because proxies append. At most
//! [`limits::FORWARDED_HOPS_MAX`] proxies are walked past. Runs on the shards; allocates nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use millrace_base::limits;

/// Which field names the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedField {
    /// None: the peer of the connection is the client.
    #[default]
    Off,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// `X-Forwarded-For`.
    XForwardedFor,
}

/// Which proxies are trusted, and how they name the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The proxies; at most [`limits::TRUSTED_PROXIES_MAX`] networks.
    pub proxies: Vec<IpNet>,
    /// Whether they start each connection with a PROXY protocol header, version 2.
    pub proxy_protocol: bool,
    /// The field in which they name the client.
    pub field: ForwardedField,
}

impl Trust {
    /// Whether this is a trusted proxy.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|network| network.contains(&address))
    }

    /// The client that a trusted proxy at `peer` names in a field's value.
    pub fn client_of(&self, peer: IpAddr, value: &[u8]) -> IpAddr {
        let mut client = peer;
        for hop in value.rsplit(|byte| *byte == b',').take(limits::FORWARDED_HOPS_MAX) {
            let named = match self.field {
                ForwardedField::Off => None,
                ForwardedField::Forwarded => forwarded_for(hop),
                ForwardedField::XForwardedFor => node(hop.trim_ascii()),
            };
            let Some(named) = named else { break };
            client = named;
            if !self.covers(named) {
                break;
            }
        }
        client.to_canonical()
    }
}

/// The address in the `for` parameter of one element of `Forwarded`; `None` if there is none, or more than one, or
/// the element is malformed.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in element.split(|byte| *byte == b';') {
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = (pair[..equals].trim_ascii(), &pair[equals + 1..]);
        if name.eq_ignore_ascii_case(b"for") && found.replace(value.trim_ascii()).is_some() {
            return None;
        }
    }
    let value = found?;
    match value.strip_prefix(b"\"") {
        // Colons and brackets must be quoted; escapes have no place in an address.
        Some(quoted) => node(quoted.strip_suffix(b"\"")?),
        None if value.contains(&b':') || value.contains(&b'[') => None,
        None => node(value),
    }
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
/// `None` for anything else, such as `unknown`, `_hidden`, and ports that are names.
fn node(text: &[u8]) -> Option<IpAddr> {
    // The longest: an address of 45 characters, brackets, a colon and five digits.
    if text.len() > 53 {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    if let Some(bracketed) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return bracketed.parse().ok().map(|address: Ipv6Addr| address.into());
    }
    text.parse().ok().or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip()))
}

/// The address of a peer that has none.
pub const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    fn trust(field: ForwardedField) -> Trust {
        let proxies = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        Trust { proxies: proxies.to_vec(), field, ..Trust::default() }
    }

    const PEER: &str = "10.0.0.1";

    fn client(field: ForwardedField, value: &str) -> String {
        trust(field).client_of(PEER.parse().unwrap(), value.as_bytes()).to_string()
    }

    #[test]
    fn proxies_are_covered_in_either_form() {
        let trust = trust(ForwardedField::Off);
        for (address, is_covered) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("fd12::1", true),
            ("2001:db8::1", false),
            ("::ffff:11.0.0.1", false),
        ] {
            assert_eq!(trust.covers(address.parse().unwrap()), is_covered, "{address}");
        }
        assert!(!Trust::default().covers(NOBODY));
    }

    #[test]
    fn x_forwarded_for_is_read_from_its_end_past_trusted_proxies() {
        for (value, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1\t", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            // Whatever the client wrote before it stands to the left of what the proxy saw.
            ("203.0.113.9, 192.0.2.1", "192.0.2.1"),
            ("203.0.113.9,192.0.2.1", "192.0.2.1"),
            ("127.0.0.1, 10.9.9.9, 192.0.2.1", "192.0.2.1"),
            // Further proxies of ours.
            ("192.0.2.1, 10.0.0.7", "192.0.2.1"),
            ("203.0.113.9, 192.0.2.1, 10.0.0.7, fd00::7", "192.0.2.1"),
            ("10.0.0.8, 10.0.0.7", "10.0.0.8"),
            // What does not parse was written by the proxy named last.
            ("", PEER),
            (",", PEER),
            ("192.0.2.1,", PEER),
            ("192.0.2.1, unknown", PEER),
            ("192.0.2.1, unknown, 10.0.0.7", "10.0.0.7"),
            ("192.0.2.1, _hidden", PEER),
            ("192.0.2", PEER),
            ("192.0.2.1:", PEER),
            ("192.0.2.1:99999", PEER),
            ("192.0.2.01", PEER),
            ("192.0.2.1/24", PEER),
            ("[192.0.2.1]", PEER),
            ("[2001:db8::1", PEER),
            ("2001:db8::1]", PEER),
            ("fe80::1%eth0", PEER),
            ("\"192.0.2.1\"", PEER),
            ("for=192.0.2.1", PEER),
            ("192.0.2.1 192.0.2.2", PEER),
            ("192.0.2.1\u{e9}", PEER),
        ] {
            assert_eq!(client(ForwardedField::XForwardedFor, value), expected, "{value:?}");
        }
        assert_eq!(client(ForwardedField::XForwardedFor, &"1".repeat(4000)), PEER);
    }

    #[test]
    fn forwarded_is_read_by_the_letter() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=192.0.2.1;proto=https;by=203.0.113.43", "192.0.2.1"),
            ("proto=https; for=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1:4711\"", "192.0.2.1"),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("FOR=\"[2001:db8::1]:80\"", "2001:db8::1"),
            ("for=203.0.113.9, for=192.0.2.1", "192.0.2.1"),
            ("for=192.0.2.1, for=10.0.0.7;by=10.0.0.1", "192.0.2.1"),
            ("for=192.0.2.1, for=\"[fd00::7]\"", "192.0.2.1"),
            // A comma in what a client once had quoted: read from the end, it cannot hide what the proxy added.
            ("for=\"1.2.3.4, for=5.6.7.8\", for=192.0.2.1", "192.0.2.1"),
            ("", PEER),
            ("for=", PEER),
            ("for=unknown", PEER),
            ("for=\"_gazonk\"", PEER),
            ("for=192.0.2.1;for=192.0.2.2", PEER),
            ("by=192.0.2.1", PEER),
            ("192.0.2.1", PEER),
            ("for=192.0.2.1;", PEER),
            ("for=192.0.2.1:4711", PEER),
            ("for=[2001:db8::1]", PEER),
            ("for=\"[2001:db8::1]", PEER),
            ("for=\"192.0.2.1\\\"\"", PEER),
        ] {
            assert_eq!(client(ForwardedField::Forwarded, value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_field_that_is_not_configured_says_nothing() {
        assert_eq!(client(ForwardedField::Off, "192.0.2.1"), PEER);
        assert_eq!(client(ForwardedField::Off, "for=192.0.2.1"), PEER);
    }

    proptest::proptest! {
        #[test]
        fn the_client_is_the_last_address_a_trusted_proxy_saw(
            before in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            seen in proptest::prelude::any::<u32>().prop_filter("a proxy", |seen| seen >> 24 != 10),
        ) {
            let seen = Ipv4Addr::from(seen);
            for (field, element) in [
                (ForwardedField::XForwardedFor, seen.to_string()),
                (ForwardedField::Forwarded, format!("for={seen}")),
            ] {
                let value = [&before[..], b", ", element.as_bytes()].concat();
                let client = trust(field).client_of(PEER.parse().unwrap(), &value);
                proptest::prop_assert_eq!(client, IpAddr::from(seen));
                // And bytes alone make no panic.
                trust(field).client_of(PEER.parse().unwrap(), &before);
            }
        }
    }

    #[test]
    fn only_so_many_hops_are_walked() {
        let value = format!("192.0.2.1{}", ", 10.0.0.7".repeat(limits::FORWARDED_HOPS_MAX));
        assert_eq!(client(ForwardedField::XForwardedFor, &value), "10.0.0.7");
    }
}
