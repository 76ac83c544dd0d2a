//! The header of the PROXY protocol, version 2: a load balancer sends it before a connection's own bytes to name the
//! client.
//!
//! A pure function over bytes. It is strict: a wrong signature, version or command, or a length that does not hold
//! its addresses, is refused together with the connection, because the bytes that follow would be misread. Version 1,
//! a line of text, is not supported. The TLVs behind the addresses are skipped; [`limits::PROXY_HEADER_BYTES_MAX`]
//! bounds them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use millrace_base::limits;

/// The fixed part: signature, version and command, family and transport, length of the rest.
pub const FIXED_BYTES: usize = 16;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;

/// The bytes are not a header of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    is_local: bool,
    family: u8,
    /// The number of bytes that follow it.
    pub rest_bytes: usize,
}

impl Fixed {
    /// Reads the fixed part.
    ///
    /// # Errors
    /// If it is not a header of this version, or too long.
    pub fn parse(bytes: &[u8; FIXED_BYTES]) -> Result<Self, Malformed> {
        let rest_bytes = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
        let command = bytes[12] ^ VERSION;
        let is_known = bytes.starts_with(SIGNATURE) && (command == LOCAL || command == PROXY);
        if !is_known || FIXED_BYTES + rest_bytes > limits::PROXY_HEADER_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(Self { is_local: command == LOCAL, family: bytes[13], rest_bytes })
    }

    /// The client that the rest names. `None` if the proxy speaks for itself (a health check) or for a client of a
    /// family without IP addresses.
    ///
    /// # Errors
    /// If `rest` is too short for its addresses, or the family does not exist.
    pub fn client(self, rest: &[u8]) -> Result<Option<IpAddr>, Malformed> {
        if self.is_local {
            return Ok(None);
        }
        // Two addresses and two ports each; the first address is the client's.
        match (self.family >> 4, self.family & 0xf) {
            (_, 3..) | (4.., _) => Err(Malformed),
            (0, _) | (_, 0) => Ok(None),
            (1, _) => match (rest.len() >= 12, rest.first_chunk::<4>()) {
                (true, Some(source)) => Ok(Some(Ipv4Addr::from(*source).into())),
                _ => Err(Malformed),
            },
            (2, _) => match (rest.len() >= 36, rest.first_chunk::<16>()) {
                (true, Some(source)) => Ok(Some(Ipv6Addr::from(*source).to_canonical())),
                _ => Err(Malformed),
            },
            // A socket of the proxy's own machine.
            (3, _) if rest.len() >= 216 => Ok(None),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0x1f, 0x90, 0, 80];

    fn fixed(version_and_command: u8, family: u8, length: u16) -> [u8; FIXED_BYTES] {
        let mut bytes = [0; FIXED_BYTES];
        bytes[..12].copy_from_slice(SIGNATURE);
        bytes[12..14].copy_from_slice(&[version_and_command, family]);
        bytes[14..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn read(version_and_command: u8, family: u8, rest: &[u8]) -> Result<Option<String>, Malformed> {
        let fixed = Fixed::parse(&fixed(version_and_command, family, rest.len() as u16))?;
        assert_eq!(fixed.rest_bytes, rest.len());
        fixed.client(rest).map(|client| client.map(|address| address.to_string()))
    }

    #[test]
    fn the_client_is_the_source_of_what_was_proxied() {
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let mut mapped = [0; 36];
        mapped[..16].copy_from_slice(&"::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        let with_tlv = [&V4[..], &[0x20, 0, 3, 1, 2, 3]].concat();
        for (command, family, rest, expected) in [
            (0x21, 0x11, &V4[..], Some("192.0.2.1")),
            (0x21, 0x12, &V4, Some("192.0.2.1")),
            (0x21, 0x11, &with_tlv, Some("192.0.2.1")),
            (0x21, 0x21, &v6, Some("2001:db8::1")),
            (0x21, 0x21, &mapped, Some("192.0.2.1")),
            (0x21, 0x31, &[0; 216], None),
            (0x21, 0x00, &[], None),
            (0x21, 0x00, &V4, None),
            (0x21, 0x10, &V4, None),
            (0x20, 0x00, &[], None),
            (0x20, 0x11, &V4, None),
            // Of the proxy's own connection nothing is read.
            (0x20, 0xff, &[1], None),
        ] {
            assert_eq!(read(command, family, rest), Ok(expected.map(str::to_owned)), "{command:x} {family:x} {rest:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_header_or_refused(
            command in 0x20u8..0x23,
            family in 0u8..0x43,
            rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            wild in proptest::array::uniform16(proptest::prelude::any::<u8>()),
        ) {
            if let Ok(Some(client)) = read(command, family, &rest) {
                proptest::prop_assert_eq!(command, 0x21);
                proptest::prop_assert!(client.parse::<IpAddr>().is_ok());
            }
            proptest::prop_assert_eq!(Fixed::parse(&wild), Err(Malformed));
        }
    }

    #[test]
    fn what_is_not_a_header_of_version_2_is_refused() {
        for (command, family, rest) in [
            (0x11, 0x11, &V4[..]),
            (0x31, 0x11, &V4),
            (0x01, 0x11, &V4),
            (0x22, 0x11, &V4),
            (0x2f, 0x11, &V4),
            (0x21, 0x13, &V4),
            (0x21, 0x41, &V4),
            (0x21, 0xff, &V4),
            (0x21, 0x11, &V4[..11]),
            (0x21, 0x11, &[]),
            (0x21, 0x21, &V4),
            (0x21, 0x21, &[0; 35]),
            (0x21, 0x31, &[0; 215]),
        ] {
            assert_eq!(read(command, family, rest), Err(Malformed), "{command:x} {family:x} {rest:?}");
        }
        for at in 0..12 {
            let mut bytes = fixed(0x21, 0x11, 12);
            bytes[at] ^= 1;
            assert_eq!(Fixed::parse(&bytes), Err(Malformed), "the signature's byte {at}");
        }
        assert_eq!(Fixed::parse(b"PROXY TCP4 192.0"), Err(Malformed), "version 1");
        assert_eq!(Fixed::parse(b"GET / HTTP/1.1\r\n"), Err(Malformed));
        let most = (limits::PROXY_HEADER_BYTES_MAX - FIXED_BYTES) as u16;
        assert!(Fixed::parse(&fixed(0x21, 0x11, most)).is_ok());
        assert_eq!(Fixed::parse(&fixed(0x21, 0x11, most + 1)), Err(Malformed));
        assert_eq!(Fixed::parse(&fixed(0x21, 0x11, u16::MAX)), Err(Malformed));
    }
}
