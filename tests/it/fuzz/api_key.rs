//! Bytes as a presented API key, against a second reading of its layout with arithmetic of its own: the checksum bit
//! by bit, the digits of base 62 from the front.

use millrace_base::key::{self, API_KEY_LEN, KeyId};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// `mr_`, id, `_`, secret: all that the checksum is over.
const BODY_LEN: usize = 3 + 12 + 1 + 43;

/// Panics where the two readings differ, for the bytes as they are and with the shape and checksum that a key has:
/// without those hardly any input would get past the checksum.
pub fn check(bytes: &[u8]) {
    compare(bytes);
    compare(&repaired(bytes));
    let id = std::str::from_utf8(bytes).ok().and_then(KeyId::parse);
    assert_eq!(id.is_some(), bytes.len() == 12 && bytes.iter().all(|byte| ALPHABET.contains(byte)));
    assert!(id.is_none_or(|id| id.as_str().as_bytes() == bytes));
}

fn compare(presented: &[u8]) {
    let read = key::parse(presented);
    let expected = is_key(presented).then(|| &presented[3..15]);
    assert_eq!(read.as_ref().map(|id| id.as_str().as_bytes()), expected);
}

fn is_key(text: &[u8]) -> bool {
    text.len() == API_KEY_LEN
        && text.iter().enumerate().all(|(at, byte)| match at {
            0 => *byte == b'm',
            1 => *byte == b'r',
            2 | 15 => *byte == b'_',
            _ => ALPHABET.contains(byte),
        })
        && text[BODY_LEN..] == checksum(&text[..BODY_LEN])
}

fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut text = [b"mr_", bytes].concat();
    text.resize(BODY_LEN, b'x');
    text[15] = b'_';
    let sum = checksum(&text);
    [&text[..], &sum].concat()
}

/// CRC-32 as Ethernet has it, a bit at a time, in six digits.
fn checksum(text: &[u8]) -> [u8; 6] {
    let mut crc = u32::MAX;
    for byte in text {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let sum = u64::from(!crc);
    [5, 4, 3, 2, 1, 0].map(|power| ALPHABET[(sum / 62u64.pow(power) % 62) as usize])
}
