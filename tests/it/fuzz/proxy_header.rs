//! Bytes as what a proxy sends before a connection's own, against a second reading of the header that goes through it byte
//! by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use millrace_base::limits::PROXY_HEADER_BYTES_MAX;
use millrace_wire::proxy_protocol::{FIXED_BYTES, Fixed};

/// What the beginning of a connection is.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// More must come before it can be told.
    Incomplete,
    Malformed,
    /// So many bytes, and the client they name, if any.
    Complete(usize, Option<String>),
}

/// Panics where the two readings differ, for the bytes as they are, behind a right signature, and with the length that
/// they have: without those hardly any input would get to the addresses.
pub fn check(bytes: &[u8]) {
    compare(bytes);
    let signed = [b"\r\n\r\n\0\r\nQUIT\n", bytes].concat();
    compare(&signed);
    if let Some(rest) = signed.len().checked_sub(FIXED_BYTES) {
        let mut measured = signed;
        measured[14..FIXED_BYTES].copy_from_slice(&(rest as u16).to_be_bytes());
        compare(&measured);
    }
}

fn compare(bytes: &[u8]) {
    let header = read(bytes);
    assert_eq!(header, read_again(bytes));
    if let Header::Complete(length, _) = header {
        assert!(length <= PROXY_HEADER_BYTES_MAX);
        assert_eq!(read(&bytes[..length]), header, "what follows it has no part in it");
        assert_eq!(read(&bytes[..length - 1]), Header::Incomplete);
    }
}

/// As the server reads it.
fn read(bytes: &[u8]) -> Header {
    let Some((fixed, rest)) = bytes.split_first_chunk() else { return Header::Incomplete };
    let Ok(fixed) = Fixed::parse(fixed) else { return Header::Malformed };
    let Some(rest) = rest.get(..fixed.rest_bytes) else { return Header::Incomplete };
    match fixed.client(rest) {
        Ok(client) => Header::Complete(FIXED_BYTES + rest.len(), client.map(|address| address.to_string())),
        Err(_) => Header::Malformed,
    }
}

fn read_again(bytes: &[u8]) -> Header {
    const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
    if bytes.len() < 16 {
        return Header::Incomplete;
    }
    let (version, command) = (bytes[12] / 16, bytes[12] % 16);
    let length = 16 + usize::from(bytes[14]) * 256 + usize::from(bytes[15]);
    if bytes[..12] != SIGNATURE || version != 2 || command > 1 || length > PROXY_HEADER_BYTES_MAX {
        return Header::Malformed;
    }
    if bytes.len() < length {
        return Header::Incomplete;
    }
    if command == 0 {
        return Header::Complete(length, None);
    }
    let (family, transport) = (bytes[13] / 16, bytes[13] % 16);
    if family > 3 || transport > 2 {
        return Header::Malformed;
    }
    if family == 0 || transport == 0 {
        return Header::Complete(length, None);
    }
    let needed = [0, 4 + 4 + 2 + 2, 16 + 16 + 2 + 2, 108 + 108][usize::from(family)];
    if length - 16 < needed {
        return Header::Malformed;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| number * 256 + u128::from(*byte));
    let client = match family {
        1 => Some(Ipv4Addr::from(number(&bytes[16..20]) as u32).to_string()),
        2 => {
            let address = number(&bytes[16..32]);
            // A mapped address is the IPv4 address that it maps.
            let is_mapped = address / (1 << 32) == 0xffff;
            Some(if is_mapped {
                Ipv4Addr::from(address as u32).to_string()
            } else {
                Ipv6Addr::from(address).to_string()
            })
        }
        _ => None,
    };
    Header::Complete(length, client)
}
